"""Weights that somebody else trained and published: fetched, read, and copied into a network."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from portend.errors import StorageError
from portend.networks.tensorfile import read_tensors

__all__ = ["copy_weights", "fetch", "read_weights", "without_prefix"]

_NESTED: Final = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
"""Where checkpoints of training code keep the network's state dict."""


def fetch(url: str) -> Path:
    """Return the local copy of a published file, downloaded on first use to PyTorch's own cache.

    The file name ends in the first digits of the file's SHA-256 (the convention of ``torch.hub``), which are checked.

    Raises:
        StorageError: the file is not there and cannot be downloaded, or is not the published one.
    """
    name = Path(urlparse(url).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    prefix = re.search(r"-([0-9a-f]{8,})\.", name)
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), prefix[1] if prefix else None, progress=False)
        except (OSError, RuntimeError) as error:
            raise StorageError(
                f"cannot download {url} ({error}); download it elsewhere and put it at {path}, "
                "or give the path of a file as weights"
            ) from error
    if prefix is not None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not digest.startswith(prefix[1]):
            raise StorageError(
                f"{path} is not the published file: its SHA-256 begins {digest[:8]}, not {prefix[1]}; "
                f"remove it and download {url} again"
            )
    return path


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors by name of a safetensors file, or of a PyTorch state dict (any other ending).

    The state dict may lie in a checkpoint (``state_dict``, as Lightning writes it, ``model``, ...). What wrapped the
    network when it was saved goes from the names: ``module.`` and ``_orig_mod.``. Files are read with
    ``weights_only``: one that holds objects of other code is refused, not run.

    Raises:
        StorageError: the file is missing, damaged, holds something else, or a tensor in it holds NaN.
    """
    path = Path(path)
    tensors = read_tensors(path)[0] if path.suffix == ".safetensors" else _state_dict(path)
    spoilt = [name for name, tensor in tensors.items() if tensor.is_floating_point() and bool(tensor.isnan().any())]
    if spoilt:
        raise StorageError(
            f"{path} holds NaN in {len(spoilt)} tensors, such as {spoilt[0]}: whoever trained it had no finite loss; "
            "give weights from before that"
        )
    return {_unwrapped(name): tensor for name, tensor in tensors.items()}


def without_prefix(found: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """Return the tensors of one attribute, such as Lightning's ``model.``, where more of their names are in ``own``."""
    best = dict(found)
    for first in dict.fromkeys(name.partition(".")[0] for name in found):
        inner = {name[len(first) + 1 :]: found[name] for name in found if name.startswith(f"{first}.")}
        if len(inner.keys() & set(own)) > len(best.keys() & set(own)):
            best = inner
    return best


def _unwrapped(name: str) -> str:
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return ".".join(part for part in name.split(".") if part != "_orig_mod").removeprefix("module.")


def _state_dict(path: Path) -> Mapping[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise StorageError(f"there is no file {path}; check the path of the weights") from error
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, pickle.UnpicklingError) as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StorageError(
            f"{path} is not a file of tensors alone ({cause}); give what torch.save(network.state_dict(), ...) writes, "
            "or safetensors"
        ) from None
    inner = [found] + [found[key] for key in _NESTED if isinstance(found, Mapping) and key in found]
    for each in inner:
        if isinstance(each, Mapping) and each and all(isinstance(tensor, Tensor) for tensor in each.values()):
            return {str(name): tensor for name, tensor in each.items()}
    raise StorageError(
        f"{path} is not a state dict (tensors by name), nor has it one as {', '.join(_NESTED)}; "
        "save `model.state_dict()` and give that"
    )


def copy_weights(network: nn.Module, found: Mapping[str, Tensor], *, path: str | Path, num_classes: int) -> None:
    """Copy the tensors into the network of the same names and shapes.

    A classifier for another number of classes stays as it is: tensors that differ from the network's in their
    first axis only, where the network has ``num_classes``. Counters of batch norm may be missing.

    Raises:
        StorageError: other tensors differ; the network is then left as it was.
    """
    own = network.state_dict()
    found = without_prefix(found, own)
    classifier = {
        name
        for name in own.keys() & found.keys()
        if own[name].ndim
        and own[name].shape[0] == num_classes != found[name].shape[0]
        and own[name].shape[1:] == found[name].shape[1:]
    }
    expected = {name for name in own if not name.endswith("num_batches_tracked")}
    odd = sorted((expected - found.keys()) | (found.keys() - own.keys()))
    odd += sorted(name for name in (own.keys() & found.keys()) - classifier if own[name].shape != found[name].shape)
    if odd:
        raise StorageError(
            f"{path} does not hold the weights of this network: {len(odd)} tensors differ, the first is {odd[0]!r}; "
            "build the network that the file was trained as"
        )
    network.load_state_dict({**own, **{name: tensor for name, tensor in found.items() if name not in classifier}})
