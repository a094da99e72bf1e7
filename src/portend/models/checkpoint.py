"""A trained network in one file: weights, the architecture that rebuilds it, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from portend.errors import InvalidValue, StorageError
from portend.models import zoo
from portend.models.backbone import Backbone
from portend.models.tensorfile import read_tensors, write_tensors

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


def load_checkpoint(path: str | Path) -> Backbone:
    """Return the network of a file written by ``save_checkpoint``, in evaluation mode.

    Raises:
        StorageError: the file is missing, damaged, not a checkpoint, of a newer version, or of a network that
            the zoo does not build.
    """
    weights, document = _read(path)
    backbone = _rebuild(path, document)
    _check_shapes(path, backbone, weights)
    backbone.load_state_dict(weights, assign=True)
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
        raise StorageError(f"{path} is not a Portend checkpoint; give a file written by `save_checkpoint`")
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


def _rebuild(path: str | Path, document: Mapping[str, Any]) -> Backbone:
    """Build the network without memory for weights: a damaged header must not allocate gigabytes."""
    try:
        with torch.device("meta"):
            return zoo.rebuild(document["name"], document["architecture"])
    except InvalidValue as error:
        raise StorageError(f"{path} holds a network that this Portend cannot build: {error}") from error


def _check_shapes(path: str | Path, backbone: Backbone, weights: Mapping[str, Tensor]) -> None:
    expected = {name: (tensor.shape, tensor.dtype) for name, tensor in backbone.state_dict().items()}
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()}
    odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if odd:
        raise StorageError(
            f"{path} does not fit {backbone.name} {backbone.architecture}: {len(odd)} tensors differ, "
            f"the first is {odd[0]!r}; {_REMEDY}"
        )
