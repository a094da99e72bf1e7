"""Tensors and one JSON document in one safetensors file: written atomically, read without pickle, digest checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from portend.errors import StorageError
from portend.io.files import kind_of, wrong_file
from portend.io.storage import atomic_path

__all__ = ["read_tensors", "tensors_sha256", "write_tensors"]

_DOCUMENT, _DIGEST = "portend", "portend_sha256"
_REMEDY = "copy it again from its source, or train again"


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Write tensors and a JSON document; the file at ``path`` is either the old one or the whole new one.

    Raises:
        StorageError: the folder cannot be written.
    """
    contents: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        contents[name] = own.clone() if place in memory else own  # the format holds no tensor under two names
        memory.add(place)
    metadata = {
        "format": "pt",
        _DOCUMENT: json.dumps(document, sort_keys=True),
        _DIGEST: tensors_sha256(contents),
    }
    with atomic_path(path) as temporary:
        try:
            save_file(contents, temporary, metadata=metadata)
        except SafetensorError as error:
            raise StorageError(f"cannot write {path} ({error}); check that its folder has room") from None


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Return all tensors by name, and the JSON document (None in a file that Portend did not write).

    Raises:
        StorageError: the file is missing, damaged, or not a safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        document = json.loads(metadata.get(_DOCUMENT, "null"))
    except FileNotFoundError as error:
        raise StorageError(f"there is no file {path}; check the path, or train the network first") from error
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        if kind_of(path) not in (None, "checkpoint"):
            raise StorageError(wrong_file(path, "checkpoint")) from None
        raise StorageError(f"{path} is not a complete safetensors file ({error}); {_REMEDY}") from error
    if not isinstance(document, dict):
        return tensors, None
    if metadata.get(_DIGEST) != tensors_sha256(tensors):
        raise StorageError(f"the tensors in {path} are not those that were saved (their digest differs); {_REMEDY}")
    return tensors, document


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over name, dtype, shape and bytes of each tensor, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
