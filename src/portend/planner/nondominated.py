"""The plans that no other beats in any number of goals, kept while more come in.

Axes: C plans of a batch, d goals, n points.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portend.planner.batch import Batch, Block
from portend.values.plan import Plan

__all__ = ["NonDominated"]

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

_PAIRS = 1 << 9


@dataclass(frozen=True, slots=True, order=True)
class _Found:
    """A plan that none dominated when it was found; sorts by ``rank``, the canonical order."""

    rank: tuple[Any, ...]
    goals: tuple[float, ...] = field(compare=False)
    latency_s: float = field(compare=False)
    accuracy: float = field(compare=False)
    plan: Plan = field(compare=False)


class NonDominated:
    """The plans that no other beats in all goals; of equals the first by ties, latency, accuracy and the plan itself.

    Values equal up to rounding (``_rounded``) are equal. ``found``: by the values of the goals.
    """

    def __init__(self) -> None:
        self.found: dict[tuple[float, ...], _Found] = {}

    def add(
        self, plans: Batch | Block, rows: list[tuple[int, ...]], among: Ints, goals: list[Floats], ties: list[Floats]
    ) -> None:
        """Add those ``among`` the plans; in goals and ties, each [R x C], less is better."""
        values = np.stack([_rounded(goal[among]) for goal in goals])
        before = np.array(list(self.found)).reshape(-1, len(goals)).T
        kept = _non_dominated(np.concatenate([before, values], axis=1))
        new = kept[before.shape[1] :]
        if not new.any():
            return
        among, values = among[new], values[:, new]
        batch = plans.flat if isinstance(plans, Block) else plans
        seconds, right = batch.mean_s[among], batch.accuracy[among]
        keys = np.stack([*values, *(_rounded(tie[among]) for tie in ties), _rounded(seconds), -_rounded(right)])
        order = np.lexsort((among, *keys[::-1]))
        first = np.append(True, (values[:, order[1:]] != values[:, order[:-1]]).any(axis=0))
        for vector in [v for v, old in zip(list(self.found), kept, strict=False) if not old]:
            del self.found[vector]
        for i in order[first]:
            cell = int(among[i])
            cuts = tuple(batch.cuts[cell].tolist())
            plan = Plan(cuts=cuts, placement=batch.placement, thresholds=tuple(batch.thresholds[cell].tolist()))
            row = rows[cell // (len(batch) // len(rows))]
            one = _Found(
                (*keys[:, i].tolist(), len(cuts), row, cuts, batch.placement),
                tuple(float(goal[cell]) for goal in goals),
                float(seconds[i]),
                float(right[i]),
                plan,
            )
            vector = tuple(values[:, i].tolist())
            self.found[vector] = min(one, self.found.get(vector, one))


def _rounded(values: Floats) -> Floats:
    """Values to 40 bits (12 digits), so that sums that differ by their order only are equal."""
    bits = np.ascontiguousarray(values).view(np.int64)
    return np.asarray(((bits + (1 << 11)) & ~np.int64((1 << 12) - 1)).view(np.float64))


def _non_dominated(values: Floats) -> NDArray[np.bool_]:
    """Which of n points [d, n] no other dominates (less is better); equal points do not dominate each other."""
    kept = np.zeros(values.shape[1], dtype=np.bool_)
    if len(values) == 1:
        return np.asarray(values[0] == values[0].min())
    most = 2 * np.max(np.abs(values), axis=1, where=np.isfinite(values), initial=0.0, keepdims=True)
    bounded = np.clip(values, -most, most)
    low, high = bounded.min(axis=1, keepdims=True), bounded.max(axis=1, keepdims=True)
    score = np.add.reduce((bounded - low) / np.where(high > low, high - low, 1.0))
    rest, alive = values, np.arange(values.shape[1])
    while alive.size > _PAIRS:
        # Whatever dominates a point has at most its score, so of the points of least score the first is kept.
        least = np.flatnonzero(score == score.min())
        pivot = rest[:, least[np.lexsort(rest[::-1, least])[0]], None]
        worse = np.logical_and.reduce(rest >= pivot)
        kept[alive[worse]] = np.logical_and.reduce(rest[:, worse] == pivot)
        alive, rest, score = alive[~worse], rest[:, ~worse], score[~worse]
    no_worse = np.ones((alive.size, alive.size), dtype=np.bool_)
    for row in rest:
        no_worse &= row[:, None] <= row
    kept[alive] = ~(no_worse & ~no_worse.T).any(axis=0)
    return kept
