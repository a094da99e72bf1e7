"""What a search looks for, whatever way it goes: the whole front, or one optimum.

Values are the counts of ``PlanSpace``: samples times quanta, and right answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, Self, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from portend.values.plan import Plan

__all__ = ["BestGoal", "Found", "Front", "FrontGoal", "Goal", "Plans", "climb", "repeats"]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_BINS: Final = 4096
_GOLDEN: Final = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, slots=True)
class Found:
    """A plan, with its mean latency and right answers."""

    latency: float
    right: float
    plan: Plan


class Plans(Protocol):
    """Complete plans of a search."""

    @property
    def latency(self) -> Floats: ...
    @property
    def right(self) -> Floats: ...
    def __len__(self) -> int: ...
    def take(self, index: NDArray[np.intp]) -> Self: ...
    def and_then(self, other: Self) -> Self: ...


P = TypeVar("P", bound=Plans)
Order = Callable[[P, tuple[Floats, ...]], NDArray[np.intp]]
"""Indices that sort plans by keys, the first of which counts most, and equals canonically."""


class Goal(Protocol[P]):
    """What a search still wants, and the best plans that it has found."""

    best: P

    def wants(self, latency: Floats, right: Floats) -> Flags:
        """Whether plans of these values, or not better than these, may be among the best."""

    def add(self, plans: P) -> None:
        """Keep the best of these and those found before."""


class FrontGoal(Generic[P]):
    """The goal to know every plan up to a latency ``most`` that no other beats in both latency and accuracy."""

    def __init__(self, none: P, order: Order[P], certain: float, most: float = np.inf) -> None:
        self.best, self._order = none, order
        self._scale = (_BINS - 1) / certain
        self._fastest = np.full(_BINS, np.inf)
        """The latency of the fastest plan of each bin of accuracy."""
        self._limit = np.full(_BINS, np.nextafter(most, np.inf))
        """The latency of the fastest plan that is more accurate than any value of a bin."""

    def wants(self, latency: Floats, right: Floats) -> Flags:
        return np.asarray(latency < self._limit[self._bins(right)])

    def add(self, plans: P) -> None:
        np.minimum.at(self._fastest, self._bins(plans.right), plans.latency)
        self._limit[:-1] = np.minimum(self._limit[:-1], np.minimum.accumulate(self._fastest[:0:-1])[::-1])
        every = self.best.and_then(plans)
        every = every.take(np.flatnonzero(self.wants(every.latency, every.right)))
        order = self._order(every, (every.latency, -every.right))
        right = every.right[order]
        kept = np.append(True, right[1:] > np.maximum.accumulate(right)[:-1])
        self.best = every.take(order[kept])

    def _bins(self, right: Floats) -> NDArray[np.intp]:
        return (right * self._scale).astype(np.intp)


class Front(Sequence[Found], Generic[P]):
    """The plans that no other beats in both latency and accuracy, by latency; each is named when it is asked for."""

    def __init__(self, plans: P, name: Callable[[P, int], Found]) -> None:
        self._plans, self._name = plans, name

    def __len__(self) -> int:
        return len(self._plans)

    @overload
    def __getitem__(self, index: int) -> Found: ...
    @overload
    def __getitem__(self, index: slice) -> list[Found]: ...
    def __getitem__(self, index: int | slice) -> Found | list[Found]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._name(self._plans, range(len(self))[index])


class BestGoal(Generic[P]):
    """The goal to know one optimum: of the plans that meet both bounds the fastest, or the most accurate.

    ``budget`` is the latency that a plan must not exceed, ``need`` the right answers that it must reach, to be
    as good as the best so far, of which ``value`` is the one or the other; None: none was found.
    """

    def __init__(self, none: P, order: Order[P], *, need: float, budget: float, fastest: bool) -> None:
        self._none, self._order = none, order
        self.best, self.need, self.budget, self.fastest = none, need, budget, fastest
        self.value: float | None = None

    def wants(self, latency: Floats, right: Floats) -> Flags:
        return np.asarray((latency <= self.budget) & (right >= self.need))

    def add(self, plans: P) -> None:
        every = self.best.and_then(plans)
        keys = (every.latency, -every.right) if self.fastest else (-every.right, every.latency)
        self.best = every.take(self._order(every, keys)[:1])
        if self.fastest:
            self.budget = self.value = float(self.best.latency[0])
        else:
            self.need = self.value = float(self.best.right[0])

    def bounded(self, bound: float, found: Found | None) -> float:
        """What no plan can beat: a bound on those that were not looked at, or what was found."""
        if found is None:
            return bound
        return min(bound, found.latency) if self.fastest else max(bound, found.right)

    def again(self) -> None:
        """Forget the best plan, but not how good it was, before the search goes another way."""
        self.best = self._none


def repeats(*columns: NDArray[np.float64] | NDArray[np.int64]) -> Flags:
    """Whether an entry equals the one before in every column."""
    same = np.zeros(columns[0].size, dtype=np.bool_)
    if same.size > 1:
        same[1:] = np.logical_and.reduce([column[1:] == column[:-1] for column in columns])
    return same


def climb(proven: Callable[[Floats], Floats], low: Floats, high: Floats, steps: int) -> None:
    """Ask concave functions, each between ``low`` and ``high``, for their values ``steps`` times, nearing their tops.

    Golden section search, for all functions [n] at once; ``proven`` remembers the best that it was asked for.
    """
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = proven(left), proven(right)
    for _ in range(steps - 2):
        rising = at_left < at_right
        low, high = np.where(rising, left, low), np.where(rising, high, right)
        probe = np.where(rising, low + _GOLDEN * (high - low), high - _GOLDEN * (high - low))
        at_probe = proven(probe)
        left, right = np.where(rising, right, probe), np.where(rising, probe, left)
        at_left, at_right = np.where(rising, at_right, at_probe), np.where(rising, at_probe, at_left)
