"""What a network's file says, be it a checkpoint (``.safetensors``) or an exported network (``.onnx``)."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from portend.values.backbone import BackboneSpec

__all__ = ["is_exported", "read_provenance", "read_spec"]


def is_exported(path: str | Path) -> bool:
    """Whether the file is one that ``portend export`` writes, going by its name."""
    return Path(path).suffix == ".onnx"


def read_spec(path: str | Path, *, allow_code: Collection[str] = ()) -> BackboneSpec:
    """Return names, shapes and digest of the network in a file.

    Raises:
        StorageError: the file is missing, damaged, or names code that is not allowed.
    """
    if is_exported(path):
        from portend.networks.onnxfile import load_onnx

        return load_onnx(path).spec
    from portend.networks.checkpoint import load_checkpoint

    return load_checkpoint(path, allow_code=allow_code).spec()


def read_provenance(path: str | Path) -> dict[str, str]:
    """Return what the file says about the origin of its weights.

    Raises:
        StorageError: the file is missing or damaged.
    """
    if is_exported(path):
        from portend.networks.onnxfile import load_onnx

        return load_onnx(path).provenance
    from portend.networks import checkpoint

    return checkpoint.read_provenance(path)
