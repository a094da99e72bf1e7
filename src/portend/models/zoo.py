"""The networks that Portend can build by name."""

from __future__ import annotations

import inspect
from typing import Any

from portend.errors import InvalidValue
from portend.models.backbone import Backbone
from portend.models.resnet import resnet

__all__ = ["build", "names"]

_DEPTHS = {f"resnet{depth}": depth for depth in (8, 14, 20, 32, 44, 56, 110)}
_OPTIONS = tuple(inspect.signature(resnet).parameters)[2:]


def names() -> tuple[str, ...]:
    """Return the names that ``build`` accepts."""
    return tuple(_DEPTHS)


def build(name: str, **options: Any) -> Backbone:
    """Return a new network with random weights; ``options`` are those of ``resnet.resnet``.

    Raises:
        InvalidValue: an unknown name or option, or an option out of its range.
    """
    if name not in _DEPTHS:
        raise InvalidValue(f"{name!r} is not a network of the zoo; choose one of {', '.join(names())}")
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise InvalidValue(f"{name} has no option {', '.join(unknown)}; its options are {', '.join(_OPTIONS)}")
    return resnet(name, _DEPTHS[name], **options)
