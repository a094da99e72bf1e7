"""Arrays that nobody can write to, and means of repeats that are computed once."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from portend.errors import law
from portend.values.compute_fit import mean_repeats

__all__ = ["Floats", "Same", "freeze", "frozen", "mean_of"]

Floats = NDArray[np.float64]


def freeze(owner: Any, **arrays: tuple[ArrayLike, Any]) -> None:
    """Store each array read-only, with the given dtype, on a frozen dataclass."""
    for name, (value, dtype) in arrays.items():
        object.__setattr__(owner, name, frozen(value, dtype))


def frozen(value: ArrayLike, dtype: Any) -> NDArray[Any]:
    """The array itself where nobody can write to it (such as one mapped from a file), else a read-only copy."""
    if isinstance(value, np.ndarray) and value.dtype == dtype and _read_only(value):
        return value
    array = np.array(value, dtype=dtype)
    law(
        np.issubdtype(dtype, np.floating) or np.array_equal(array, value),
        f"counts and labels are whole numbers, and what is right is true or false, but got {np.asarray(value).dtype}",
    )
    array.setflags(write=False)
    return array


def _read_only(array: NDArray[Any]) -> bool:
    base: Any = array
    while isinstance(base, np.ndarray):
        if base.flags.writeable:
            return False
        base = base.base
    return base is None or memoryview(base).readonly


class Same:
    """An array as a key: equal to itself alone."""

    def __init__(self, array: Floats) -> None:
        self.array = array

    def __hash__(self) -> int:
        return id(self.array)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.array is other.array


@lru_cache(maxsize=256)
def mean_of(repeats: Same) -> Floats:
    """``mean_repeats`` of an array that is read-only: a sweep asks for the same ones at each of its points."""
    mean = mean_repeats(repeats.array)
    mean.setflags(write=False)
    return mean
