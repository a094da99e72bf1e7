"""The networks that Portend can build by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch

from portend.errors import InvalidValue, choice
from portend.networks.backbone import Backbone
from portend.networks.efficientnet import INPUT_SIZES, efficientnet
from portend.networks.named import code_in, count_weights, named
from portend.networks.resnet import resnet
from portend.networks.vggish import vggish

__all__ = ["build", "names", "rebuild"]

_NETWORKS: dict[str, Callable[..., Backbone]] = {
    **{f"resnet{depth}": partial(resnet, depth=depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **dict.fromkeys(INPUT_SIZES, efficientnet),
    "vggish": vggish,
}


def names() -> tuple[str, ...]:
    """Return the names of the networks with the paper's blocks; ``build`` also takes any ``library:NAME``."""
    return tuple(_NETWORKS)


def build(name: str, **options: Any) -> Backbone:
    """Return a new network.

    Args:
        name: one of ``names()``, ``timm:NAME``, ``torchvision:NAME``, or ``module:object`` (imported and run).
        options: those of ``resnet``, ``efficientnet``, ``vggish``, and for names with a colon of ``named``.

    Raises:
        InvalidValue: an unknown name or option, or an option out of its range; SplitError, MismatchError: a network
            that cannot be cut as asked; StorageError: weights that cannot be had or do not fit.
    """
    if ":" not in name:
        choice("a network of the zoo (others are timm:NAME, torchvision:NAME or module:object)", name, names())
    make: Callable[..., Backbone] = _NETWORKS.get(name, named)
    known = [key for key in inspect.signature(make).parameters if key not in ("name", "depth")]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InvalidValue(f"{name} has no option {', '.join(unknown)}; its options are {', '.join(known)}")
    return make(name, **options)


def rebuild(
    name: str, architecture: Mapping[str, Any], *, most_weights: int, allow_code: Collection[str] = ()
) -> Backbone:
    """Return the network that a file describes, for weights that follow.

    Nothing is fetched, no other file is read, and code beside timm's and torchvision's runs only if allowed. There
    is no memory for weights yet (device ``meta``) in networks of the zoo's own; others have at most ``most_weights``.

    Args:
        allow_code: the ``module:object`` that may be imported and run.

    Raises:
        InvalidValue: as ``build``; or the file names code that is not allowed, or more weights.
    """
    if "weights" in architecture:
        raise InvalidValue("an architecture does not say where weights come from, but got weights")
    if name in _NETWORKS or ":" not in name:
        with torch.device("meta"):
            return build(name, **architecture)
    code = [each for each in code_in(name, architecture) if each not in allow_code]
    if code:
        raise InvalidValue(
            f"it names code that would be imported and run: {', '.join(code)}; "
            f"if you trust it, allow it by name (allow_code, or --allow-code {code[0]})"
        )
    if not code_in(name, architecture) and (count := count_weights(name, architecture)) > most_weights:
        raise InvalidValue(f"{name} {dict(architecture)} has {count} weights, but the file has {most_weights}")
    return build(name, **architecture)
