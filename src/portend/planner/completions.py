"""What a completion of a plan can still gain, for the tree search: a Lagrangian bound over pairs of exits.

Who stays after an exit is a set that depends on all exits before. But it lies between two sets that depend on the
last exit alone: those who stay if every exit up to there was used, and those who stay if only this one was. A partition
from cut a to cut b costs everyone who reaches it. If all who stay at a go on to b, it adds those right answers that b
gives and a does not, and takes those that a gives and b does not. For any price of a right answer, each sample between
the two sets is counted as staying or as gone, whichever is better. So the least cost - price x right answers of all
completions is a shortest path over cuts and tiers, where tiers may be visited again.

With scores that grow surer with depth the two sets are nearly the same, and the bound is near the truth. Sharper ones
know, besides the last exit, the one before it at which most leave (the *main* one): whoever leaves at either is gone,
and others before have sent away only whom exits where fewer leave can send away. So after two exits all is exact.

Axes: T thresholds, M tiers, N+1 cuts, k partitions to come, F families of D exits that may be used together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
Flags = NDArray[np.bool_]

_STEPS: Final = 10
_RANGE: Final = 5.0
_CELLS: Final = 1 << 19
_AFTER: Final = 1 << 23
_NEAR: Final = 1.15
"""Between prices that are tried for sharper bounds, up or down from those of the others."""
_TRIES: Final = 4


@dataclass(frozen=True, slots=True)
class _Exits:
    """Families of exits that may be used together: of each threshold, or one of all where each exit has its own."""

    family: Ints  # [T]
    number: Ints  # [T, N+1], of an exit in its family; 0 is none
    row: Ints  # [F, D]
    cut: Ints  # [F, D], 0 where there is none
    rank: Ints  # [F, D], by how many leave; -1 where there is none


@dataclass(frozen=True, slots=True)
class Priced:
    """Completions at a price [T] of a right answer.

    ``rest`` [k, T, N+1, M]: the least that latency - price x right grows by from an exit on, where at least one and at
    most k partitions follow, and right begins with all who stay answered at the exit. ``whole`` [T]: its least value
    over plans of two or more partitions with threshold t, from the start. ``after`` [k, F, D, D, M], where it is
    known: as ``rest``, by the main exit before (0: none) and the last one, of ``exits``.
    """

    price: Floats
    rest: Floats
    whole: Floats
    after: Floats | None = None
    exits: _Exits | None = None

    def onward(self, most: int, rows: Ints, cuts: Ints, row: Ints, cut: Ints) -> Floats:
        """``rest`` [n, M] of at most so many partitions after exits, of which ``rows``, ``cuts`` [n, j] lie before."""
        if self.after is None or self.exits is None:
            return np.asarray(self.rest[most, row, cut])
        family, last = self.exits.family[row], self.exits.number[row, cut]
        main = np.zeros_like(last)
        for k in range(cuts.shape[1]):
            one = self.exits.number[rows[:, k], cuts[:, k]]
            main = np.where(self.exits.rank[family, one] > self.exits.rank[family, main], one, main)
        return np.asarray(self.after[most, family, main, last])

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
    """Who stays at n exits, [n], and whom each of m later cuts classifies otherwise, [n, m], of pairs [m, n]."""

    sure: Floats  # who stay whatever was used before
    sure_gain: Floats  # of these, more are right at b than at a
    maybe: Floats  # who stay or are gone
    maybe_right: Floats  # of these, right at b alone
    maybe_wrong: Floats  # of these, right at a alone


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Main and last exits of prefixes that end at a cut, [n]."""

    cut: int
    used: bool  # whether the last one is asked
    main: Ints
    last: Ints
    then: Ints  # the main exit of what follows
    counts: _Counts

    def take(self, some: slice | Flags) -> _Pairs:
        counts = _Counts(*(getattr(self.counts, name)[..., some] for name in _Counts.__slots__))
        return _Pairs(self.cut, self.used, self.main[some], self.last[some], self.then[some], counts)

    def alone(self) -> _Pairs:
        """The same, where there are no other exits before: then all are sure."""
        of = self.counts
        none = np.zeros_like(of.maybe_right)
        gain = of.sure_gain + of.maybe_right - of.maybe_wrong
        return replace(self, counts=_Counts(of.sure + of.maybe, gain, np.zeros_like(of.maybe), none, none))


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

    def sharper(self, priced: Priced, goal: BestGoal[Any], price: Floats) -> Iterator[Priced]:
        """Yield ever sharper bounds at prices near ``price`` [T], by the main and the last exit."""
        exits = self._exits()
        if exits is None:
            return
        proven = priced.proven(goal)
        hopeful = proven - np.abs(proven) * 1e-12 - 8 <= (goal.budget if goal.fastest else -goal.need)
        families = np.unique(exits.family[hopeful]).tolist()
        pairs = {family: self._pairs(exits, family) for family in families}
        size = exits.rank.shape[1]
        tables = [np.full((self.levels, size, size, self.tiers), NEVER)] * len(exits.rank)
        most = np.full(len(exits.rank), -np.inf)
        best = replace(priced, price=priced.price.copy(), whole=priced.whole.copy(), exits=exits)
        power = dict.fromkeys(families, 0)
        for step in range(_TRIES):
            for family in list(power):
                rows = exits.family == family
                at = float(price[rows][0]) * _NEAR ** power[family]
                rest, least = self._after(exits, family, pairs[family], at)
                bound = least + at * goal.need if goal.fastest else (least - goal.budget) / at
                if bound > most[family]:
                    most[family], best.price[rows], best.whole[rows], tables[family] = bound, at, least, rest
                    power[family] += 1 if power[family] >= 0 else -1
                elif step == 1:
                    power[family] = -1
                else:
                    del power[family]
            yield replace(best, price=best.price.copy(), whole=best.whole.copy(), after=np.stack(tables, axis=1))

    def right(self) -> Priced | None:
        """Return bounds on right answers alone, as at a price of 1 where nothing costs; None: tables are too large."""
        exits = self._exits()
        if exits is None:
            return None
        shape = (self.levels, *exits.rank.shape, exits.rank.shape[1], self.tiers)
        after, whole = np.full(shape, NEVER), np.full(exits.family.size, NEVER)
        for family in np.unique(exits.family).tolist():
            pairs = self._pairs(exits, family)
            after[:, family], whole[exits.family == family] = self._after(exits, family, pairs, 1.0, weight=0.0)
        return Priced(np.ones(whole.size), np.empty(0), whole, after, exits)

    def _exits(self) -> _Exits | None:
        """The families of a space; None where tables of their pairs are too large."""
        space, rows = self.space, range(self.space.theta.size)
        known = [
            [
                (row, cut)
                for cut in np.flatnonzero(space.inner[: self.size - 1]).tolist()
                for row in (rows if self.per_exit else [family])
                if not self.per_exit or space.used[row, cut] or space.first_unused[cut] == row
            ]
            for family in ([0] if self.per_exit else rows)
        ]
        most = 1 + max(map(len, known))
        if self.levels * len(known) * most**2 * self.tiers > _AFTER:
            return None
        number = np.zeros(space.used.shape, dtype=np.intp)
        row, cut, rank = np.zeros((3, len(known), most), dtype=np.intp)
        rank -= 1
        for family, exits in enumerate(known):
            for i, one in enumerate(exits, start=1):
                number[one], row[family, i], cut[family, i] = i, *one
            left = _count(self.bits.leaves[row[family, 1 : len(exits) + 1], cut[family, 1 : len(exits) + 1]])
            rank[family, 1 + np.argsort(left, kind="stable")] = np.arange(left.size)
        return _Exits(
            np.zeros(len(rows), dtype=np.intp) if self.per_exit else np.arange(len(rows)), number, row, cut, rank
        )

    def _pairs(self, exits: _Exits, family: int) -> list[_Pairs]:
        """Main and last exits of prefixes, by the cut of the last one."""
        cut, row, rank = exits.cut[family], exits.row[family], exits.rank[family]
        leaves, right, everyone = self.bits.leaves[row, cut], self.bits.right, self.bits.everyone
        leaves[0] = 0
        left, found = np.zeros_like(leaves), []  # by exits before where fewer leave than at each main one
        for at in range(1, self.size - 1):
            here = np.flatnonzero(cut == at)
            for used in (True, False):
                lasts = here[self.space.used[row[here], at] == used]
                if not lasts.size:
                    continue
                self.limits.check()
                mains = np.flatnonzero(cut < at)
                main, last = np.tile(mains, lasts.size), np.repeat(lasts, mains.size)
                stay = everyone & ~leaves[main] & ~leaves[last]
                sure = stay & ~left[main]
                found.append(
                    _Pairs(
                        at, used, main, last, np.where(rank[main] > rank[last], main, last),
                        self._otherwise(sure, stay & ~sure, right[at + 1 :], right[at]),
                    )
                )  # fmt: skip
            for one in here:
                left[rank >= rank[one]] |= leaves[one]
        return found

    def _otherwise(self, sure: Words, maybe: Words, there: Words, here: Words) -> _Counts:
        """What is counted of sets [n, W] at a cut ``here`` [W] and later ones ``there`` [m, W]."""
        up, down = there & ~here, here & ~there
        return _Counts(
            _count(sure),
            self._common(sure, up) - self._common(sure, down),
            _count(maybe),
            self._common(maybe, up),
            self._common(maybe, down),
        )

    def _common(self, some: Words, others: Words) -> Floats:
        """How many samples two sets [n, W] and [m, W] have in common, [m, n]."""
        self.limits.check()
        common = np.zeros((len(others), len(some)), dtype=np.int32)
        for one, other in zip(np.ascontiguousarray(some.T), np.ascontiguousarray(others.T), strict=True):
            common += np.bitwise_count(other[:, None] & one)
        return common.astype(np.float64)

    def _after(
        self, exits: _Exits, family: int, pairs: list[_Pairs], price: float, weight: float = 1.0
    ) -> tuple[Floats, float]:
        """``Priced.after`` of a family [k, D, D, M], and ``Priced.whole`` of it; costs count ``weight``."""
        size = exits.rank.shape[1]
        rest = np.full((self.levels, size, size, self.tiers), NEVER)
        onward = np.full((2, self.levels, size, self.size, self.tiers), NEVER)  # [used], by main exit and next cut
        for group in reversed(pairs):
            most = max(1, _CELLS // (self.tiers**2 * (self.size - group.cut)))
            for begin in range(0, len(group.main), most):
                self.limits.check()
                self._extend(rest, onward, group.take(slice(begin, begin + most)), price, weight)
            onward[int(group.used), :, :, group.cut] = rest[:, :, np.unique(group.last)].min(axis=2)
        whole = NEVER
        for group in pairs:
            run = self.space.full if group.used else self.space.bare
            first = np.minimum(self.space.first, NEVER) + np.minimum(run[1][:, 0, group.cut], NEVER)
            begun = weight * self.space.samples * first - price * self.space.right[group.cut]
            begun[first >= NEVER] = NEVER
            whole = min(whole, float((begun + rest[self.levels - 1, 0, np.unique(group.last)]).min()))
        return rest, whole

    def _extend(self, rest: Floats, onward: Floats, pairs: _Pairs, price: float, weight: float) -> None:
        """Fill in ``rest`` of pairs by what may follow at later cuts."""
        later, levels = slice(pairs.cut + 1, self.size), self.levels
        split = bool((onward[0, :, :, later] < NEVER).any())

        def fill(pairs: _Pairs, followed_by: range) -> None:
            if not followed_by or not pairs.main.size:
                return
            ways = [self._value(pairs, self.space.full, price, weight)]
            ways += [self._value(pairs, self.space.bare, price, weight)] * split
            total = np.empty_like(ways[0])
            for k in followed_by:
                least = np.full((self.tiers, len(pairs.main)), NEVER)
                for used, value in zip((1, 0), ways, strict=False):
                    then = onward[used, k - 1, :, later]
                    then = np.minimum(then, self.ends[later]) if used else then
                    np.add(value, then.reshape(len(then), -1).T[:, pairs.then], out=total)
                    np.minimum(least, total.min(axis=1), out=least)
                rest[k, pairs.main, pairs.last] = least.T

        fill(pairs, range(1, levels - 2))
        exact = pairs.alone()
        fill(exact, range(max(levels - 2, 1), levels - 1))  # these follow two exits
        fill(exact.take(exact.main == 0), range(levels - 1, levels))  # these one

    def _value(self, pairs: _Pairs, run: Floats, price: float, weight: float) -> Floats:
        """The least value of a partition after pairs of exits, [M, later cuts x M, n]: from tier to cut and tier."""
        space, at, of = self.space, pairs.cut, pairs.counts
        cost = self.moves[:, :, at] + np.minimum(run[1], NEVER)[None, :, at, at + 1 :]  # [M, M, later cuts]
        if space.space.exits_per_tier > 1:
            stays = np.minimum(run[0], NEVER)[:, at, at + 1 :]
            cost[range(self.tiers), range(self.tiers)] = stays if pairs.used else NEVER
        cost = cost.transpose(0, 2, 1)[..., None]  # [M, later cuts, M, 1]
        paid = weight * cost
        better, worse = of.maybe_right[:, None], of.maybe_wrong[:, None]
        value = of.sure * paid - price * of.sure_gain[:, None]
        if of.maybe.any():
            value += better * np.minimum(paid - price, 0.0)
            if (paid < 0).any():
                value += worse * np.minimum(paid + price, 0.0) + (of.maybe - better - worse) * np.minimum(paid, 0.0)
        value[np.broadcast_to(cost >= NEVER, value.shape)] = NEVER
        return np.asarray(value.reshape(self.tiers, -1, len(pairs.main)))

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


def _count(words: Words) -> Floats:
    """Samples in bit sets [n, W], [n]."""
    return np.asarray(np.bitwise_count(words).sum(axis=-1, dtype=np.int64), dtype=np.float64)
