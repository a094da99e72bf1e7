"""What a completion of a plan can still gain, for the tree search: a Lagrangian bound over pairs of exits.

Who stays after an exit is a set that depends on all exits before. But it lies between two sets that depend on the
last exit alone: those who stay if every exit up to there was used, and those who stay if only this one was. A partition
from cut a to cut b costs everyone who reaches it. If all who stay at a go on to b, it adds those right answers that b
gives and a does not, and takes those that a gives and b does not. For any price of a right answer, each sample between
the two sets is counted as staying or as gone, whichever is better. So the least cost - price x right answers of all
completions is a shortest path over cuts and tiers, where tiers may be visited again.

With scores that grow surer with depth the two sets are nearly the same, and the bound is near the truth.

Axes: T thresholds, M tiers, N+1 cuts, k partitions to come.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from portend.planner.goals import BestGoal, climb
from portend.planner.limits import Limits
from portend.planner.space import NEVER, PlanSpace

__all__ = ["Completions", "Priced"]

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Words = NDArray[np.uint64]

_STEPS: Final = 10
_RANGE: Final = 5.0
_CELLS: Final = 1 << 19
_AFTER: Final = 1 << 22
_NEAR: Final = (0.8, 0.9, 1.0, 1.15, 1.3)
"""Prices that are tried for sharper bounds, to those of the others."""


@dataclass(frozen=True, slots=True)
class Priced:
    """Completions at a price [T] of a right answer.

    ``rest`` [k, T, N+1, M]: the least that latency - price x right grows by from an exit on, where at least one and at
    most k partitions follow, and right begins with all who stay answered at the exit. ``whole`` [T]: its least value
    over plans of two or more partitions with threshold t, from the start. ``after`` [k, T, N+1, N+1, M], where it is
    known: as ``rest``, by the cut of the exit before (0: none) and of this one.
    """

    price: Floats
    rest: Floats
    whole: Floats
    after: Floats | None = None

    def onward(self, most: int, row: Ints, before: Ints, cut: Ints) -> Floats:
        """``rest`` [n, M] of at most so many partitions after exits, by the best that is known."""
        return np.asarray(self.rest[most, row, cut] if self.after is None else self.after[most, row, before, cut])

    def proven(self, goal: BestGoal[Any]) -> Floats:
        """What whole plans prove, the more the better: their least latency, or minus their most right answers, [T]."""
        if goal.fastest:
            return np.asarray(self.whole + self.price * goal.need)
        return np.asarray((self.whole - goal.budget) / self.price)

    def or_where(self, better: NDArray[np.bool_], other: Priced) -> Priced:
        """For each threshold these or, where those are better, the other ones."""
        return Priced(
            np.where(better, other.price, self.price),
            np.where(better[None, :, None, None], other.rest, self.rest),
            np.where(better, other.whole, self.whole),
        )


@dataclass(frozen=True, slots=True)
class _Counts:
    """Of one threshold at each cut a, and those whom a later cut b classifies otherwise, [N+1] and [N+1, N+1]."""

    sure: Floats  # who stay whatever was used before
    sure_gain: Floats  # of these, more are right at b than at a
    maybe: Floats  # who stay or are gone
    maybe_right: Floats  # of these, right at b alone
    maybe_wrong: Floats  # of these, right at a alone


class Completions:
    """The bounds of a space."""

    def __init__(self, space: PlanSpace, limits: Limits) -> None:
        assert space.bits is not None
        self.space, self.bits, self.limits = space, space.bits, limits
        self.size, self.tiers = space.blocks + 1, space.tiers
        self.per_exit = space.space.per_exit_thresholds
        self.levels = space.lengths().stop - 1
        increasing = space.space.tier_order == "increasing"
        backward = np.tri(self.tiers, dtype=bool) if increasing else np.eye(self.tiers, dtype=bool)
        step = np.where(np.isfinite(space.step), space.step, NEVER)
        step[:, backward] = NEVER
        self.moves = step.transpose(1, 2, 0)[:, :, :, None]  # [M, M, N+1, 1]
        self.ends = np.where(space.last, 0.0, NEVER)[:, None]
        self.counts = []
        for row in range(space.theta.size):
            limits.check()
            self.counts.append(self._counted(row))

    def _counted(self, row: int) -> _Counts:
        """Who stays at each exit, with threshold ``row`` there, where any exits were used before."""
        size, right, stay = self.size, self.bits.right, self.bits.everyone
        sure, maybe = np.zeros((2, size))
        gain, better, worse = np.zeros((3, size, size))
        left = np.zeros_like(stay)
        for cut in range(1, size - 1):
            if self.space.inner[cut]:
                leaves = self.bits.leaves[:, cut] if self.per_exit else self.bits.leaves[row : row + 1, cut]
                left = left | np.bitwise_or.reduce(leaves, axis=0)
                surely, between = stay & ~left, stay & left & ~self.bits.leaves[row, cut]
                sure[cut], maybe[cut] = (np.bitwise_count(words).sum(dtype=np.int64) for words in (surely, between))
                up, down = _gains(surely, right[cut:], right[cut])
                gain[cut, cut:] = up - down
                better[cut, cut:], worse[cut, cut:] = _gains(between, right[cut:], right[cut])
        return _Counts(sure, gain, maybe, better, worse)

    def at(self, price: Floats) -> Priced:
        """Return the bounds at a price [T]."""
        rows = price.size
        rest = np.full((self.levels, rows, self.size, self.tiers), NEVER)
        together = rows if self.per_exit else max(1, _CELLS // (self.tiers * self.size) ** 2)
        for begin in range(0, rows, together):
            self.limits.check()
            some = range(begin, min(begin + together, rows))
            arcs = self._arcs([self.counts[row] for row in some], some, price[some.start : some.stop])
            for k in range(1, self.levels):
                self.limits.check()
                rest[k, some] = self._before(arcs, some, rest[k - 1, some])
        return Priced(price, rest, self._whole(price, rest[self.levels - 1]))

    def _before(self, arcs: tuple[Floats, Floats], rows: range, rest: Floats) -> Floats:
        """``rest`` [rows, N+1, M] with at most one partition more."""
        used = self.space.used[rows.start : rows.stop, :, None]
        then = np.where(self.space.inner[:, None], rest, NEVER)
        bare, full = np.where(used, NEVER, then), np.where(used, then, NEVER)
        if self.per_exit:
            bare, full = (np.broadcast_to(x.min(axis=0), x.shape) for x in (bare, full))
        value = self._through(arcs[1], np.minimum(full, self.ends))
        if not used[:, self.space.inner].all():
            value = np.minimum(value, self._through(arcs[0], bare))
        return np.minimum(value, NEVER).transpose(0, 2, 1)

    @staticmethod
    def _through(arcs: Floats, onward: Floats) -> Floats:
        """The least value over arcs and what follows, [n, M, N+1] by tier and cut where the arc begins."""
        least = np.full(arcs.shape[:2] + arcs.shape[3:4], NEVER)
        for tier in range(arcs.shape[2]):
            np.minimum(least, (arcs[:, :, tier] + onward[:, None, None, :, tier]).min(axis=-1), out=least)
        return least

    def _arcs(self, counts: list[_Counts], rows: range, price: Floats) -> tuple[Floats, Floats]:
        """The least value of a partition from cut to cut on a tier after another one, [n, M, M, N+1, N+1].

        Without the branch at its end, and with it.
        """
        shape = (len(rows), self.tiers, self.tiers, self.size, self.size)
        bare, full = np.empty(shape), np.empty(shape)
        for i, (known, row) in enumerate(zip(counts, rows, strict=True)):
            bare[i], full[i] = (self._arc(known, row, price[i], run) for run in (self.space.bare, self.space.full))
        return bare, full

    def _arc(self, counts: _Counts, row: int, price: float, run: Floats) -> Floats:
        space = self.space
        cost = self.moves + np.minimum(run[1], NEVER)[None]
        if space.space.exits_per_tier > 1:
            stays = np.where(space.used[row][:, None], np.minimum(run[0], NEVER), NEVER)
            cost[range(self.tiers), range(self.tiers)] = stays
        value = counts.sure[:, None] * cost - price * counts.sure_gain
        if counts.maybe.any():
            neither = counts.maybe[:, None] - counts.maybe_right - counts.maybe_wrong
            value += counts.maybe_right * np.minimum(cost - price, 0.0)
            value += counts.maybe_wrong * np.minimum(cost + price, 0.0) + neither * np.minimum(cost, 0.0)
        value[cost >= NEVER] = NEVER
        return np.asarray(value)

    def _whole(self, price: Floats, rest: Floats) -> Floats:
        """The least value over plans of two or more partitions, [T], by the threshold of the first exit."""
        space = self.space
        then = np.where(space.inner[:, None], rest, NEVER)  # [T, N+1, M]
        first = np.minimum(space.first, NEVER)
        bare, full = ((first[:, None] + np.minimum(run[1][:, 0], NEVER)).T for run in (space.bare, space.full))
        paid = space.samples * np.where(space.used[..., None], full, bare)
        whole = (paid - price[:, None, None] * space.right[:, None] + then).min(axis=(1, 2))
        return np.full_like(whole, whole.min()) if self.per_exit else np.asarray(whole)

    def best(self, goal: BestGoal[Any]) -> Priced:
        """Return the bounds at the price that proves most about a goal, by golden section."""
        rows = self.space.theta.size
        low = np.full(rows, math.log(self._usual()) - _RANGE)
        high = low + 1.5 * _RANGE
        best: Priced | None = None
        most = np.full(rows, -np.inf)

        def prove(at: Floats) -> Floats:
            nonlocal best, most
            one = self.at(np.exp(at))
            bound = one.proven(goal)
            best = one if best is None else best.or_where(bound > most, one)
            most = np.maximum(most, bound)
            return bound

        climb(prove, low, high, _STEPS)
        assert best is not None
        return best

    def sharper(self, priced: Priced, goal: BestGoal[Any]) -> Priced:
        """Return bounds by the last two exits, where all have one threshold: whoever leaves at either is gone."""
        shape = (self.levels, priced.price.size, self.size, self.size, self.tiers)
        if self.per_exit or math.prod(shape) > _AFTER:
            return priced
        after, price, whole = np.full(shape, NEVER), priced.price.copy(), priced.whole.copy()
        hopeful = priced.proven(goal) <= (goal.budget if goal.fastest else -goal.need)
        for row in np.flatnonzero(hopeful).tolist():
            counts, most = self._counted_after(row), -math.inf
            for factor in _NEAR:
                at = float(priced.price[row]) * factor
                rest, least = self._after(counts, row, at)
                bound = least + at * goal.need if goal.fastest else (least - goal.budget) / at
                if bound > most:
                    most, price[row], whole[row], after[:, row] = bound, at, least, rest
        return Priced(price, priced.rest, whole, after)

    def _counted_after(self, row: int) -> dict[int, _Counts]:
        """``_Counts`` of each exit, with threshold ``row``, [cut] by the cut of the exit before; 0: there is none."""
        leaves, right, everyone = self.bits.leaves[row], self.bits.right, self.bits.everyone
        left, known = np.zeros_like(everyone), {}
        for cut in range(1, self.size - 1):
            if self.space.inner[cut]:
                self.limits.check()
                left = left | leaves[cut]
                stay = np.repeat((everyone & ~left)[None], cut, axis=0)
                stay[0] = everyone & ~leaves[cut]
                between = everyone & left & ~leaves[cut] & ~leaves[:cut]
                between[0] = 0
                sure, maybe = (np.bitwise_count(words).sum(axis=-1, dtype=np.int64) for words in (stay, between))
                up, down = _gains(stay[:, None], right[cut + 1 :], right[cut])
                better, worse = _gains(between[:, None], right[cut + 1 :], right[cut])
                known[cut] = _Counts(sure.astype(float), up - down, maybe.astype(float), better, worse)
        return known

    def _after(self, counts: dict[int, _Counts], row: int, price: float) -> tuple[Floats, float]:
        """``Priced.after`` of a row [k, N+1, N+1, M], and ``Priced.whole`` of it."""
        rest = np.full((self.levels, self.size, self.size, self.tiers), NEVER)
        for cut in reversed(counts):
            self.limits.check()
            later = np.arange(cut + 1, self.size)
            full = self._arcs_after(counts[cut], row, price, cut, self.space.full)
            used, inner = self.space.used[row, later], self.space.inner[later, None]
            exited = full
            if not used[inner[:, 0]].all():
                bare = self._arcs_after(counts[cut], row, price, cut, self.space.bare)
                exited = np.where(used[:, None], full, bare)
            ended = np.minimum(full + self.ends[later], NEVER).min(axis=(2, 3))
            for k in range(1, self.levels):
                then = np.where(inner, rest[k - 1, cut, later], NEVER)
                rest[k, :cut, cut] = np.minimum(ended, (exited + then).min(axis=(2, 3)))
        whole = NEVER
        for cut in counts:
            run = self.space.full if self.space.used[row, cut] else self.space.bare
            first = np.minimum(self.space.first, NEVER) + np.minimum(run[1][:, 0, cut], NEVER)
            begun = self.space.samples * first - price * self.space.right[cut]
            whole = min(whole, float((begun + rest[self.levels - 1, 0, cut]).min()))
        return rest, whole

    def _arcs_after(self, counts: _Counts, row: int, price: float, cut: int, run: Floats) -> Floats:
        """The least value of a partition after an exit, [cut, M, later cuts, M]: by exit before, tier, and then."""
        space = self.space
        cost = self.moves[:, :, cut] + np.minimum(run[1], NEVER)[None, :, cut, cut + 1 :]  # [M, M, later cuts]
        if space.space.exits_per_tier > 1:
            stays = np.minimum(run[0], NEVER)[:, cut, cut + 1 :] if space.used[row, cut] else NEVER
            cost[range(self.tiers), range(self.tiers)] = stays
        cost = cost.transpose(0, 2, 1)[None]  # [1, M, later cuts, M]
        sure, maybe = counts.sure[:, None, None, None], counts.maybe[:, None, None, None]
        gain, better, worse = (
            of[:, None, :, None] for of in (counts.sure_gain, counts.maybe_right, counts.maybe_wrong)
        )
        value = sure * cost - price * gain + better * np.minimum(cost - price, 0.0)
        value += worse * np.minimum(cost + price, 0.0) + (maybe - better - worse) * np.minimum(cost, 0.0)
        return np.where(cost >= NEVER, NEVER, value)

    def _usual(self) -> float:
        """What a right answer costs about, among plans of a single partition."""
        space = self.space
        ends = np.flatnonzero(space.last)
        latency = (space.first[:, None] + space.full[1][:, 0][:, ends]).min(axis=0) * space.samples
        known = np.isfinite(latency)
        if known.sum() < 2:
            return 1.0
        cost, right = np.ptp(latency[known]), np.ptp(space.right[ends][known])
        return max(float(cost / max(right, 1.0)), 1.0)


def _gains(samples: Words, there: Words, here: Words) -> tuple[Floats, Floats]:
    """Of a set of samples, those in each of some sets and not in one, and those in the one and not there."""
    mine = samples & there
    both = np.bitwise_count(mine & here).sum(axis=-1, dtype=np.int64)
    up = np.bitwise_count(mine).sum(axis=-1, dtype=np.int64) - both
    down = np.bitwise_count(samples & here).sum(axis=-1, dtype=np.int64) - both
    return up.astype(np.float64), down.astype(np.float64)
