"""The networks that Portend can build by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from portend.errors import InvalidValue
from portend.models.backbone import Backbone
from portend.models.efficientnet import INPUT_SIZES, efficientnet
from portend.models.resnet import resnet
from portend.models.vggish import vggish

__all__ = ["build", "names", "rebuild"]

_NETWORKS: dict[str, Callable[..., Backbone]] = {
    **{f"resnet{depth}": partial(resnet, depth=depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **dict.fromkeys(INPUT_SIZES, efficientnet),
    "vggish": vggish,
}
_START_ONLY = ("weights",)  # where a network starts from; not part of what it is


def names() -> tuple[str, ...]:
    """Return the names that ``build`` accepts."""
    return tuple(_NETWORKS)


def build(name: str, **options: Any) -> Backbone:
    """Return a new network; ``options`` are those of ``resnet``, ``efficientnet`` or ``vggish``.

    Raises:
        InvalidValue: an unknown name or option, or an option out of its range; StorageError: weights that were
            asked for cannot be had or do not fit.
    """
    if name not in _NETWORKS:
        raise InvalidValue(f"{name!r} is not a network of the zoo; choose one of {', '.join(names())}")
    make = _NETWORKS[name]
    known = [key for key in inspect.signature(make).parameters if key not in ("name", "depth")]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InvalidValue(f"{name} has no option {', '.join(unknown)}; its options are {', '.join(known)}")
    return make(name, **options)


def rebuild(name: str, architecture: dict[str, Any]) -> Backbone:
    """Return the network that a stored name and architecture describe; nothing is fetched or read from files.

    Raises:
        InvalidValue: as ``build``; or the architecture names weights to start from.
    """
    start = [key for key in _START_ONLY if key in architecture]
    if start:
        raise InvalidValue(f"an architecture does not say where weights come from, but got {', '.join(start)}")
    return build(name, **architecture)
