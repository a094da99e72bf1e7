"""A trained network in one file: weights, the architecture that rebuilds it, and where it comes from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from portend.errors import PortendError, StorageError
from portend.io.files import wrong_file
from portend.networks import zoo
from portend.networks.backbone import Backbone
from portend.networks.tensorfile import read_tensors, write_tensors

__all__ = ["load_checkpoint", "read_provenance", "save_checkpoint"]

_KIND = "checkpoint"
_VERSION = 1
_REMEDY = "copy it again from its source, or train again"


def save_checkpoint(
    backbone: Backbone, path: str | Path, *, provenance: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Write the network to a safetensors file, replacing the old file only when the new one is complete.

    Raises:
        StorageError: the folder is missing or cannot be written.
    """
    document = {
        "kind": _KIND,
        "version": _VERSION,
        "name": backbone.name,
        "architecture": backbone.architecture,
        "provenance": dict(provenance),
    }
    write_tensors(path, backbone.state_dict(), document)


def load_checkpoint(path: str | Path, *, allow_code: Collection[str] = ()) -> Backbone:
    """Return the network of a file written by ``save_checkpoint``, in evaluation mode.

    Args:
        allow_code: ``module:object`` that the file may name and that are then imported and run; by default a
            file runs no code but Portend's, timm's and torchvision's.

    Raises:
        StorageError: the file is missing, damaged, not a checkpoint, of a newer version, of a network that
            the zoo does not build, or names code that is not allowed.
    """
    weights, document = _read(path)
    most = sum(tensor.numel() for tensor in weights.values())
    try:
        backbone = zoo.rebuild(document["name"], document["architecture"], most_weights=most, allow_code=allow_code)
    except (PortendError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise StorageError(f"{path} holds a network that this Portend cannot build: {error}") from error
    _check_shapes(path, backbone, weights)
    has_memory = not any(tensor.is_meta for tensor in backbone.state_dict().values())
    backbone.load_state_dict(weights, assign=not has_memory)
    return backbone.eval()


def read_provenance(path: str | Path) -> dict[str, str]:
    """Return what ``save_checkpoint`` was told about the origin of the weights.

    Raises:
        StorageError: as ``load_checkpoint``.
    """
    return {str(key): str(value) for key, value in _read(path)[1]["provenance"].items()}


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    weights, document = read_tensors(path)
    if document is None or document.get("kind") != _KIND:
        raise StorageError(wrong_file(path, "checkpoint"))
    if document.get("version") != _VERSION:
        raise StorageError(
            f"{path} has checkpoint version {document.get('version')}, this Portend reads version {_VERSION}; "
            "use the Portend that wrote it, or train again"
        )
    types = {"name": str, "architecture": dict, "provenance": dict}
    wrong = [key for key, kind in types.items() if not isinstance(document.get(key), kind)]
    if wrong:
        raise StorageError(f"the header of {path} lacks {', '.join(wrong)}; {_REMEDY}")
    return weights, document


def _check_shapes(path: str | Path, backbone: Backbone, weights: Mapping[str, Tensor]) -> None:
    expected = {name: (tensor.shape, tensor.dtype) for name, tensor in backbone.state_dict().items()}
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()}
    odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if odd:
        raise StorageError(
            f"{path} does not fit {backbone.name} {backbone.architecture}: {len(odd)} tensors differ, "
            f"the first is {odd[0]!r}; {_REMEDY}"
        )
