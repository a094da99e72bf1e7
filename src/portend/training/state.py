"""The state of an unfinished training run in one file: nested values and tensors, no pickle.

Whatever Lightning wants to keep is mappings, lists, numbers, texts and tensors. The tensors go into a safetensors
file by number, the rest into its JSON document, where ``{"tensor": n}`` stands for the n-th tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from portend.errors import StorageError, TrainingError, first_difference
from portend.networks.tensorfile import read_tensors, write_tensors

__all__ = ["read_state", "write_state"]

_KIND, _VERSION = "training-state", 2
_OVER = "start over (resume=False, --restart)"


def write_state(path: str | Path, values: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Write the values atomically; ``identity`` (JSON values) says which run they belong to.

    Raises:
        StorageError: the folder cannot be written, or the disk is full.
    """
    tensors: dict[str, Tensor] = {}
    document = {"kind": _KIND, "version": _VERSION, "identity": dict(identity), "values": _packed(values, tensors)}
    write_tensors(path, tensors, document)


def read_state(path: str | Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that ``write_state`` wrote for the run with this identity.

    Raises:
        StorageError: the file is missing, damaged, or no training state of this version.
        TrainingError: it belongs to another run; the message tells the difference.
    """
    tensors, document = read_tensors(path)
    if document is None or (document.get("kind"), document.get("version")) != (_KIND, _VERSION):
        raise StorageError(f"{path} is not a training state of this version; remove it, or {_OVER}")
    told = first_difference({key: document["identity"].get(key) for key in identity}, identity)
    if told:
        raise TrainingError(f"{path} belongs to another training run ({told}); choose another folder, or {_OVER}")
    return dict(_unpacked(document["values"], tensors))


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return JSON values; the digest of the file vouches for what ``_unpacked`` reads back."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"mapping": [[_packed(key, tensors), _packed(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple | list):
        return [_packed(item, tensors) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be kept in a training state")


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, tensors) for item in value]
    if isinstance(value, dict) and "tensor" in value:
        return tensors[value["tensor"]]
    if isinstance(value, dict):
        return {_unpacked(key, tensors): _unpacked(item, tensors) for key, item in value["mapping"]}
    return value
