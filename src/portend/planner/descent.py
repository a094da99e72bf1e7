"""Good plans to begin with, for the tree search: descents over sequences of exits, which prove nothing.

A neighbor of a sequence has one exit more, less or elsewhere, or another threshold, or ends at another cut. A descent
goes to the best neighbor as long as that is better. What is missed of a bound is weighted with a price, at first so low
that the descent passes plans that miss it, then higher and higher. Each sequence is on its best placement.

Axes: C sequences, L partitions, M tiers, N+1 cuts, P placement states.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from portend.planner.goals import BestGoal
from portend.planner.limits import Limits
from portend.planner.space import NEVER, PlanSpace

__all__ = ["Chain", "Descent", "Placed"]

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Flags = NDArray[np.bool_]
Chain = tuple[tuple[int, ...], tuple[int, ...]]
"""Cuts, and the threshold rows of all but the last."""

_DEARER: Final = (1.0, 1.2, 1.5, 2.0, 3.0, 6.0, 20.0)
_TOGETHER: Final = 32


class Placed(Protocol):
    """The least latency [C] of sequences of ``cuts`` [C, L] whose exits are ``used`` [C, L] and reached by [C, L]."""

    def __call__(self, cuts: Ints, used: Flags, reach: Floats) -> Floats: ...


class Descent:
    """Descents in a space for plans as good as a goal has."""

    def __init__(self, space: PlanSpace, placed: Placed, goal: BestGoal[Any]) -> None:
        assert space.bits is not None
        self.space, self.bits, self.placed = space, space.bits, placed
        self.need, self.budget, self.fastest = goal.need, goal.budget, goal.fastest
        self.inner, self.last = (np.flatnonzero(where).tolist() for where in (space.inner, space.last))
        self.lengths, self.per_exit = space.lengths(), space.space.per_exit_thresholds
        self.hop = np.where(np.isfinite(space.step), space.step, NEVER)
        increasing = space.space.tier_order == "increasing"
        self.hop[:, np.tri(space.tiers, dtype=bool) if increasing else np.eye(space.tiers, dtype=bool)] = NEVER
        self.bare, self.full = (np.minimum(table, NEVER) for table in (space.bare, space.full))

    def from_row(self, row: int, price: float, limits: Limits) -> Iterator[tuple[Chain, float, float]]:
        """Yield the sequences, with latency and right answers, where descents end; the first begins with few exits.

        Raises:
            Over: a limit is met.
        """
        before = [cut for cut in self.inner if cut < self.last[-1]]
        exits = max(1, self.lengths.start - 1)
        if len(before) < exits:
            return
        cuts = [before[(2 * i + 1) * len(before) // (2 * exits)] for i in range(exits)]
        chain: Chain = (*cuts, self.last[-1]), tuple(self._row(row, cut) for cut in cuts)
        for dearer in _DEARER:
            chain, latency, right = self._down(chain, price, dearer, limits)
            if np.isfinite(latency):
                yield chain, latency, right

    def _row(self, row: int, cut: int) -> int:
        """The row that stands for a threshold at a cut: where the exit is not used, the first such."""
        used = self.space.used[row, cut] or not self.per_exit
        return row if used else int(self.space.first_unused[cut])

    def _down(self, chain: Chain, price: float, dearer: float, limits: Limits) -> tuple[Chain, float, float]:
        latency, right = np.inf, 0.0
        best, tried, new = np.inf, {chain}, [chain]
        while new:
            at = chain
            by_length = defaultdict(list)
            for one in new:
                by_length[len(one[0])].append(one)
            for chains in by_length.values():
                cuts, rows = (np.array([one[i] for one in chains], dtype=np.intp) for i in (0, 1))
                rows = rows.reshape(len(chains), -1)
                share, correct = self.bits.outcomes(cuts, rows)
                reach, rights = share[:, ::-1].cumsum(axis=1)[:, ::-1], correct.sum(axis=1)
                used = np.ones(cuts.shape, dtype=np.bool_)
                used[:, :-1] = self.space.used[rows, cuts[:, :-1]]
                at_least = self._score(self._relaxed(cuts, used, reach), rights, price, dearer)
                order = np.argsort(at_least, kind="stable")
                for begin in range(0, order.size, _TOGETHER):
                    limits.check()
                    some = order[begin : begin + _TOGETHER]
                    some = some[at_least[some] < best]
                    if not some.size:
                        break
                    took = self.placed(cuts[some], used[some], reach[some])
                    score = self._score(took, rights[some], price, dearer)
                    i = int(np.argmin(score))
                    if score[i] < best:
                        best, at = float(score[i]), chains[some[i]]
                        latency, right = float(took[i]), float(rights[some[i]])
            if at == chain and len(tried) > 1:
                break
            chain = at
            new = [one for one in self._neighbors(chain) if one not in tried]
            tried.update(new)
        return chain, latency, right

    def _score(self, latency: Floats, right: Floats, price: float, dearer: float) -> Floats:
        """The less the better."""
        if self.fastest:
            return np.asarray(latency + dearer * price * np.maximum(self.need - right, 0.0))
        possible = np.isfinite(latency)
        over = np.maximum(np.where(possible, latency, 0.0) - self.budget, 0.0)
        return np.where(possible, dearer * over - price * right, np.inf)

    def _relaxed(self, cuts: Ints, used: Flags, reach: Floats) -> Floats:
        """At most the least latency [C]: a tier may be visited again, and hold any number of partitions."""
        space, tiers = self.space, np.arange(self.space.tiers)
        latency, start = np.zeros((len(cuts), 1)), np.zeros(len(cuts), dtype=np.intp)
        for k in range(cuts.shape[1]):
            cut, run = cuts[:, k], np.where(used[:, k, None, None], 1, 0)
            at = tiers, start[:, None], cut[:, None]
            woken, same = (np.where(run[:, 0], self.full[w][at], self.bare[w][at]) for w in (1, 0))
            if k == 0:
                cost = np.minimum(space.first, NEVER) + woken
                latency = reach[:, :1] * cost
            else:
                cost = self.hop[start] + woken[:, None, :]
                if space.space.exits_per_tier > 1:
                    cost[:, tiers, tiers] = np.where(used[:, k - 1, None], same, NEVER)
                latency = (latency[:, :, None] + reach[:, k, None, None] * cost).min(axis=1)
            start = cut
        return np.asarray(latency.min(axis=1))

    def _neighbors(self, chain: Chain) -> set[Chain]:
        cuts, rows = chain
        shorter = [(cuts[:i] + cuts[i + 1 :], rows[:i] + rows[i + 1 :]) for i in range(len(rows))]
        found = set(shorter)
        for end in self.last:
            before = sum(cut < end for cut in cuts[:-1])
            found.add(((*cuts[:before], end), rows[:before]))
        every = range(self.space.theta.size)
        if not self.per_exit:
            found.update((cuts, (row,) * len(rows)) for row in every if rows)
        for at, kept in [chain, *shorter]:
            for cut in self.inner:
                if cut < at[-1] and cut not in at:
                    i = sum(one < cut for one in at)
                    for row in {self._row(row, cut) for row in every} if self.per_exit or not kept else kept[:1]:
                        found.add(((*at[:i], cut, *at[i:]), (*kept[:i], row, *kept[i:])))
        if self.per_exit:
            for i, cut in enumerate(cuts[:-1]):
                found.update((cuts, (*rows[:i], self._row(row, cut), *rows[i + 1 :])) for row in every)
        return {one for one in found if len(one[0]) in self.lengths}
