"""Exact search on per-sample scores: sequences of exits, depth first, with bit sets and bounds.

When samples are replayed, who leaves where depends on the exits alone (cuts and thresholds), and a prefix
of a plan leaves behind a *set* of samples, so prefixes have no states that could be merged. But the
placement changes nothing but the latency: a node of the search tree is a sequence of exits with the set of
samples that stay, and for every state of the placement (tier, tiers visited, partitions on it) the least
latency that leads there. As in ``dynamic``, latency and right answers are sums over partitions,

    latency = Σ_k |stay_{k-1}| · ( hop_k + compute_k + x_k − x_{k-1} )      right = Σ_k |left_k ∩ right_k|

A node is given up when no completion of it can be wanted: it takes at least the cheapest next step for all
who stay, and gets at most those right whom some later branch gets right.

Axes: n nodes, P placement states, T thresholds, N+1 cuts, W words of a bit set, k exits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from portend.planner.completions import Completions, Priced
from portend.planner.descent import Chain, Descent
from portend.planner.goals import BestGoal, Found, Front, FrontGoal, Goal, repeats
from portend.planner.limits import Limits
from portend.planner.space import NEVER, PlanSpace
from portend.values.plan import Plan

__all__ = ["best", "front"]

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Flags = NDArray[np.bool_]
Words = NDArray[np.uint64]

_BYTES: Final = 1 << 25
"""Of the nodes that one step of the search makes."""
_BEAM: Final = 64
_WORDS: Final = 1 << 18
_FOR_DESCENTS: Final = 0.3
"""Of the time that is left, at most, before the nodes are gone through."""
_FEW: Final = 1_000_000
"""Plans that are gone through before descents would end."""
_QUICK: Final = 100
"""Pieces of work after which a search takes the time for better bounds and plans."""
_STARTS: Final = 10
"""Thresholds from which descents begin at most, where each exit has its own."""
_CLOSED: Final = -1
"""In place of the number of partitions on a tier: no other may follow there."""


@dataclass(frozen=True, slots=True)
class _Nodes:
    """Sequences of k exits."""

    cuts: Ints  # [n, k]
    rows: Ints  # [n, k]
    stay: Words  # [n, W]
    count: Floats  # [n] samples that stay
    latency: Floats  # [n, P]
    right: Floats  # [n]
    reach: Floats  # [n, N+1] at most so many of those who stay a branch classifies correctly
    least: Floats  # [n] latency of any completion
    most: Floats  # [n] right answers of any completion

    def __len__(self) -> int:
        return int(self.count.size)

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_] | slice) -> _Nodes:
        return _Nodes(*(getattr(self, name)[index] for name in self.__slots__))

    @staticmethod
    def joined(parts: list[_Nodes]) -> _Nodes:
        if len(parts) == 1:
            return parts[0]
        return _Nodes(*(np.concatenate([getattr(part, name) for part in parts]) for name in _Nodes.__slots__))


@dataclass(frozen=True, slots=True)
class _Ends:
    """Complete plans but for the placement; cuts and rows are padded with -1."""

    latency: Floats
    right: Floats
    length: Ints
    cuts: Ints  # [n, L]
    rows: Ints  # [n, L]

    def __len__(self) -> int:
        return int(self.length.size)

    def take(self, index: NDArray[np.intp]) -> _Ends:
        return _Ends(*(getattr(self, name)[index] for name in self.__slots__))

    def and_then(self, other: _Ends) -> _Ends:
        return _Ends(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in self.__slots__))


def _canonical(ends: _Ends, keys: tuple[Floats, ...]) -> NDArray[np.intp]:
    """Indices that sort by the keys; equals by length, thresholds, cuts."""
    order = np.lexsort((ends.length, *keys[::-1]))
    if repeats(*(key[order] for key in keys)).any():
        columns = [*keys, ends.length, *ends.rows.T, *ends.cuts.T]
        order = np.lexsort(columns[::-1])
    return np.asarray(order)


@dataclass(frozen=True, slots=True)
class _Step:
    """A way to run the next partition on a tier, from some placement states to as many others."""

    before: Ints  # [b]
    after: Ints  # [b] where the exit is used, so that the next partition may be on this tier
    closed: Ints  # [b] where it is not
    sender: int
    tier: int
    woken: int
    on_tier: int  # partitions that it already holds, where their memory must be added up, else 0


class _Search:
    def __init__(self, space: PlanSpace, limits: Limits | None = None) -> None:
        assert space.bits is not None
        self.space, self.bits, self.limits = space, space.bits, limits or Limits()
        hints = space.space
        self.lengths = space.lengths()
        self.size = space.blocks + 1
        self.per_exit = hints.per_exit_thresholds
        self.priced: Priced | None = None
        self.rights: Priced | None = None
        """Bounds on right answers, where no plan that has enough of them is known."""
        self.open: list[tuple[_Nodes, int]] = []  # nodes to go through, with the length of the partitions to come
        ends = space.last | space.inner
        self.cover: Words = np.zeros_like(self.bits.right)
        for cut in range(self.size - 2, -1, -1):
            self.cover[cut] = self.cover[cut + 1] | (self.bits.right[cut + 1] if ends[cut + 1] else 0)
        self.reach = self._reach()
        self.tiers, self.first_steps, self.steps = _placement_states(space)
        self.least = self._least()
        self.least_of_all = float(self.least.min())
        words = self.bits.everyone.size + len(self.tiers) + self.size + 2 * self.lengths.stop + 5
        self.most = max(1, _BYTES // (8 * words * self.size))  # nodes, times thresholds, to grow at a time

    def _reach(self) -> Floats:
        """Of all who stay at a branch, how many each later branch classifies correctly, [T, N+1, N+1]."""
        reach = np.zeros((*self.space.used.shape, self.size))
        for cut in np.flatnonzero(self.space.inner):
            stay = ~self.bits.leaves[:, cut, None]
            reach[:, cut, cut + 1 :] = np.bitwise_count(stay & self.bits.right[cut + 1 :]).sum(axis=-1, dtype=np.int64)
        return reach

    def _least(self) -> Floats:
        """The least that latency grows by for each who stays, from a cut and placement state, [N+1, P]."""
        table = np.full((self.size, len(self.tiers)), np.inf)
        run = np.minimum(self.space.bare, self.space.full)
        for step in self.steps:
            cost = (self.space.step[:, step.sender, step.tier, None] + run[step.woken, step.tier]).min(axis=-1)
            table[:, step.before] = np.minimum(table[:, step.before], cost[:, None])
        if (table < 0).any():  # a hop can bring the sample nearer to where its result goes, once or more often
            back = self.space.result.min() - self.space.result[self.tiers]
            table = np.broadcast_to(back, table.shape)
        return np.asarray(np.minimum(table, NEVER))

    # -- the run -------------------------------------------------------------------------------

    def run(self, goal: Goal[_Ends], *, beam: int = 0) -> None:
        """Go through all nodes that the goal wants, depth first, or with ``beam`` through so many of each length.

        Raises:
            Over: a limit is met; ``open`` are the nodes that are left.
        """
        self.open = [(self._root(), 1)]
        self.go_on(goal, beam=beam)

    def go_on(self, goal: Goal[_Ends], *, beam: int = 0) -> None:
        """Go through the nodes that are open, as ``run`` does."""
        while self.open:
            self.check(goal)
            nodes, length = self.open[-1]
            nodes = nodes.take(goal.wants(nodes.least, nodes.most))
            rows = self.space.theta.size if self.per_exit or length == 1 else 1
            some = len(nodes) if beam else max(1, self.most // rows)
            children = self._grown(nodes.take(slice(some)), goal, length) if len(nodes) else None
            self.open[-1] = nodes.take(slice(some, None)), length
            if some >= len(nodes):
                self.open.pop()
            if children is not None:
                order = self._order(goal, children)
                self.open.append((children.take(order[:beam] if beam else order), length + 1))

    def _order(self, goal: Goal[_Ends], nodes: _Nodes) -> Ints:
        """Nodes by what they promise, the best first."""
        fastest = not isinstance(goal, BestGoal) or goal.fastest
        return np.argsort(nodes.least if fastest else -nodes.most, kind="stable")

    def _root(self) -> _Nodes:
        none = np.empty((1, 0), dtype=np.intp)
        start = np.zeros(1)
        return _Nodes(
            cuts=none,
            rows=none,
            stay=self.bits.everyone[None],
            count=start + self.space.samples,
            latency=start[None],
            right=start,
            reach=self.space.right[None],
            least=start - math.inf,
            most=start + _count(self.cover[:1]),
        )

    def look(self, goal: BestGoal[_Ends], limits: Limits) -> None:
        """Look for some plan along few nodes, which leaves all of them to go through."""
        own, self.limits = self.limits, limits
        try:
            self.run(goal, beam=max(1, min(_BEAM, _WORDS // (len(self.tiers) * self.size))))
        finally:
            self.limits, self.open = own, [(self._root(), 1)]

    def descend(self, goal: BestGoal[_Ends], priced: Priced | None, limits: Limits) -> None:
        """Look for good plans by descents, from each threshold that may be the best one's, the most promising first.

        ``priced`` says what is proven of plans with one threshold; None: nothing is.

        Raises:
            Over: a limit is met; the goal has what was found so far.
        """
        descent = Descent(self.space, self._placed, goal)
        size = self.space.theta.size
        price, proven = (
            (np.ones(size), np.full(size, -math.inf)) if priced is None else (priced.price, priced.proven(goal))
        )
        rows = np.argsort(proven, kind="stable").tolist()
        for row in rows[:_STARTS] if self.per_exit else rows:
            if not self.per_exit and proven[row] > (goal.budget if goal.fastest else -goal.need):
                break
            for chain, latency, right in descent.from_row(row, float(price[row]), limits):
                if goal.wants(np.array([latency]), np.array([right])).all():
                    goal.add(self._ends(chain, latency, right))

    def prepare(self, goal: BestGoal[_Ends]) -> None:
        """Find a plan to compare with, and bounds; in small spaces only what is found at once.

        Raises:
            Over: a limit is met; the goal and the search have what was found so far.
        """
        known = math.isfinite(goal.need if goal.fastest else goal.budget)
        if goal.fastest and not known:
            return
        completions = Completions(self.space, self.limits)
        common: Priced | None = None
        if known:
            self.priced = common = completions.best(goal)
        if known:
            self.look(goal, self.limits)
        if self.space.count() <= _FEW or self._is_quick(goal):
            return
        if goal.value is None or not known:
            self.rights = completions.right()
            if self.rights is not None and -self.rights.whole.min() < goal.need:
                return
        some = self.limits.part(_FOR_DESCENTS)
        with some.until_met():
            if known and self.per_exit:
                hints = replace(self.space.space, per_exit_thresholds=False)
                common = Completions(self.space.part(hints), some).best(goal)
            self.descend(goal, common, some)
        if self.priced is not None and common is not None:
            price = common.price
            if self.per_exit:
                price = np.full_like(price, price[common.proven(goal).argmin()])
            for priced in completions.sharper(self.priced, goal, price):
                self.priced = priced
                self.limits.check()

    def _is_quick(self, goal: BestGoal[_Ends]) -> bool:
        """Go through some nodes; whether none is left, so that better bounds are not worth their time."""
        own = self.limits
        self.limits = own.within_pieces(_QUICK)
        try:
            with self.limits.until_met():
                self.go_on(goal)
        finally:
            self.limits = own
        return not self.open

    def _ends(self, chain: Chain, latency: float, right: float) -> _Ends:
        """One plan but for the placement."""
        columns = np.full((2, 1, self.lengths.stop - 1), -1, dtype=np.intp)
        for column, values in zip(columns, chain, strict=True):
            column[0, : len(values)] = values
        return _Ends(np.array([latency]), np.array([right]), np.array([len(chain[0])]), *columns)

    def _placed(self, cuts: Ints, used: Flags, reach: Floats) -> Floats:
        """The least latency [n] of sequences of partitions ``cuts`` [n, L], of which so many reach each."""
        space, ends = self.space, np.column_stack([np.zeros(len(cuts), dtype=np.intp), cuts])
        latency = np.zeros((len(cuts), len(self.tiers)))
        for k in range(cuts.shape[1]):
            start, cut, onward = ends[:, k], ends[:, k + 1], np.full(latency.shape, np.inf)
            for step in self.steps if k else self.first_steps:
                move = space.step[start, step.sender, step.tier] if k else space.first[step.tier]
                run = (table[step.woken, step.tier, start, cut] for table in (space.full, space.bare))
                cost = move + np.where(used[:, k], *run)
                if step.on_tier and k >= step.on_tier:
                    assert space.held is not None
                    on = ends[:, k - step.on_tier : k + 2]
                    cost[space.held[step.tier, on[:, :-1], on[:, 1:]].sum(axis=1) > space.room[step.tier]] = np.inf
                paid = np.where(np.isfinite(cost), reach[:, k] * np.where(np.isfinite(cost), cost, 0.0), np.inf)
                taken = latency[:, step.before] + paid[:, None]
                for some, after in ((used[:, k], step.after), (~used[:, k], step.closed)):
                    at = np.ix_(some, after)
                    onward[at] = np.minimum(onward[at], taken[some])
            latency = onward
        return np.asarray(latency.min(axis=1))

    def proven(self, goal: BestGoal[_Ends]) -> float:
        """What is known of the plans that are left and meet the goal: their least latency, or most right answers."""
        left = [nodes.take(goal.wants(nodes.least, nodes.most)) for nodes, _ in self.open]
        left = [nodes for nodes in left if len(nodes)]
        if not left:
            return math.inf if goal.fastest else -math.inf
        whole = -math.inf  # of plans of two and more partitions; those of one are known after the first look
        if self.priced is not None:
            whole = float(self.priced.proven(goal).min())
            whole -= abs(whole) * 1e-12 + 8  # a price is no whole number
        if self.rights is not None:
            most = -float(self.rights.whole.min())
            if most < goal.need:
                return math.inf if goal.fastest else -math.inf
            whole = whole if goal.fastest else max(whole, -most)
        if goal.fastest:
            return max(min(float(nodes.least.min()) for nodes in left), self.space.least_cost(), whole)
        return min(max(float(nodes.most.max()) for nodes in left), self.space.most_right(), -whole)

    def check(self, goal: Goal[_Ends]) -> None:
        """Report, and raise ``Over`` if a limit is met."""
        if isinstance(goal, BestGoal) and self.limits.due():
            self.limits.tell(goal.value, self.proven(goal))
        self.limits.check()

    def _grown(self, nodes: _Nodes, goal: Goal[_Ends], length: int) -> _Nodes | None:
        """Run partition ``length`` of the nodes: tell the goal the plans that end with it, and return what goes on."""
        parts = []
        last = nodes.cuts[:, -1] if length > 1 else np.zeros(1, dtype=np.intp)
        known: Flags = np.asarray(np.isfinite(nodes.latency).any(axis=0))
        steps = self.first_steps if length == 1 else [step for step in self.steps if known[step.before].any()]
        for cut in np.unique(last):
            parts += self._continued(nodes.take(last == cut), int(cut), goal, length, steps)
        return _Nodes.joined(parts) if parts else None

    def _continued(self, nodes: _Nodes, cut: int, goal: Goal[_Ends], length: int, steps: list[_Step]) -> list[_Nodes]:
        """All nodes lie at one cut; the next partition may end at any later one."""
        space, later = self.space, np.arange(cut + 1, self.size)
        if not later.size:
            return []
        first = length == 1
        if length >= self.lengths.start:
            ended = self._soonest(nodes, cut, steps, first=first)
            at_most = nodes.right[:, None] + np.minimum(nodes.reach[:, later], nodes.count[:, None])
            node, end = np.nonzero(goal.wants(ended, at_most) & space.last[later] & np.isfinite(ended))
            for chunk in self._chunks(node.size):
                i, c = node[chunk], later[end[chunk]]
                right = nodes.right[i] + _count(nodes.stay[i] & self.bits.right[c])
                wanted = goal.wants(ended[i, end[chunk]], right)
                if wanted.any():
                    self._tell(goal, nodes, i[wanted], c[wanted], ended[i, end[chunk]][wanted], right[wanted], length)
        if length + 1 == self.lengths.stop:
            return []
        if self.per_exit or first:
            rows = np.arange(space.theta.size)
            pick = np.ones((len(nodes), 1, rows.size), dtype=np.bool_)
        else:
            rows = np.unique(nodes.rows[:, -1])
            pick = (nodes.rows[:, -1:] == rows)[:, None, :]
        most = nodes.most[:, None]
        full = self._latency(nodes, cut, steps, first=first, used=True)
        used = space.used[np.ix_(rows, later)].T  # [later, rows]
        all_used = bool((used | ~space.inner[later][:, None]).all())
        bare = full if all_used else self._latency(nodes, cut, steps, first=first, used=False)
        wanted_full, wanted_bare = (
            goal.wants(soonest + min(self.least_of_all, 0.0) * nodes.count[:, None], most) & np.isfinite(soonest)
            for soonest in (full.min(axis=1), bare.min(axis=1))
        )
        wanted = np.where(used, wanted_full[..., None], wanted_bare[..., None]) & pick
        wanted &= space.inner[later][:, None]
        if self.per_exit:
            wanted &= used | (rows == space.first_unused[later][:, None])
        node, end, which = np.nonzero(wanted)
        parts = []
        for chunk in self._chunks(node.size):
            i, e, row = node[chunk], end[chunk], rows[which[chunk]]
            parts += self._exited(nodes, i, later[e], row, np.where(
                space.used[row, later[e]][:, None], full[i, :, e], bare[i, :, e]
            ), goal, length)  # fmt: skip
        return parts

    def _reached(
        self, nodes: _Nodes, cut: int, table: Floats, steps: list[_Step], *, first: bool
    ) -> Iterator[tuple[_Step, Floats]]:
        """Latency [n, b, later cuts] of running the next partition by each step."""
        later = slice(cut + 1, self.size)
        for step in steps:
            move = self.space.first[step.tier] if first else self.space.step[cut, step.sender, step.tier]
            cost = move + table[step.woken, step.tier, cut, later]
            allowed = np.isfinite(cost)
            if allowed.all():
                paid = nodes.count[:, None] * cost
            else:
                paid = nodes.count[:, None] * np.where(allowed, cost, 0.0)
                paid[:, ~allowed] = np.inf  # also for nobody: what is forbidden is in no plan
            if step.on_tier:
                paid[~self._fits(nodes, step)] = np.inf
            yield step, nodes.latency[:, step.before, None] + paid[:, None, :]

    def _fits(self, nodes: _Nodes, step: _Step) -> Flags:
        """Whether the next partition, to each later cut, has room beside the last ones, [n, later cuts]."""
        held = self.space.held
        assert held is not None
        zero = np.zeros((len(nodes), 1), dtype=np.intp)
        ends = np.concatenate([zero, nodes.cuts], axis=1)[:, -step.on_tier - 1 :]
        total = held[step.tier, ends[:, :-1], ends[:, 1:]].sum(axis=1)[:, None] + held[step.tier, ends[:, -1]]
        return np.asarray(total[:, int(ends[0, -1]) + 1 :] <= self.space.room[step.tier])

    def _soonest(self, nodes: _Nodes, cut: int, steps: list[_Step], *, first: bool) -> Floats:
        """Latency [n, later cuts] of a plan that ends with the next partition."""
        soonest = np.full((len(nodes), self.size - cut - 1), np.inf)
        for _, latency in self._reached(nodes, cut, self.space.full, steps, first=first):
            np.minimum(soonest, latency.min(axis=1), out=soonest)
        return soonest

    def _latency(self, nodes: _Nodes, cut: int, steps: list[_Step], *, first: bool, used: bool) -> Floats:
        """Latency [n, P, later cuts] of the next partition, its exit used or not, by the placement state after it."""
        table = self.space.full if used else self.space.bare
        by_state = np.full((len(nodes), len(self.tiers), self.size - cut - 1), np.inf)
        for step, latency in self._reached(nodes, cut, table, steps, first=first):
            state = step.after if used else step.closed
            by_state[:, state] = np.minimum(by_state[:, state], latency)
        return by_state

    def _exited(
        self, nodes: _Nodes, i: Ints, cut: Ints, row: Ints, latency: Floats, goal: Goal[_Ends], length: int
    ) -> list[_Nodes]:
        """The nodes that follow when those who may leave have left."""
        stay = nodes.stay[i]
        gone = stay & self.bits.leaves[row, cut]
        stay = stay ^ gone
        count = _count(stay)
        right = nodes.right[i] + _count(gone & self.bits.right[cut])
        reach = np.minimum(nodes.reach[i], self.reach[row, cut])
        if length + 2 == self.lengths.stop:  # one partition may follow
            most = right + np.minimum(np.where(np.arange(self.size) > cut[:, None], reach, 0).max(axis=1), count)
        else:
            most = right + _count(stay & self.cover[cut])
        least = (latency + count[:, None] * self.least[cut]).min(axis=1)
        base, left = nodes.right[i] + _count(nodes.stay[i] & self.bits.right[cut]), self.lengths.stop - 1 - length
        if self.rights is not None:
            rest = self.rights.onward(left, nodes.rows[i], nodes.cuts[i], row, cut)[:, self.tiers]
            most = np.minimum(most, base - np.where(np.isfinite(latency), rest, NEVER).min(axis=1))
        if self.priced is not None and isinstance(goal, BestGoal):
            rest = self.priced.onward(left, nodes.rows[i], nodes.cuts[i], row, cut)[:, self.tiers]
            value = (latency + rest).min(axis=1) - self.priced.price[row] * base
            least, most = self._bounded(goal, self.priced.price[row], value, least, most)
        wanted = goal.wants(least, most) & (least < NEVER)
        if length >= self.lengths.start:
            wanted &= (count > 0) | ~self.space.last[cut]  # where nobody stays, the plan that ends here is the same
        if not wanted.any():
            return []
        i = i[wanted]
        return [
            _Nodes(
                cuts=np.column_stack([nodes.cuts[i], cut[wanted]]),
                rows=np.column_stack([nodes.rows[i], row[wanted]]),
                stay=stay[wanted],
                count=count[wanted],
                latency=latency[wanted],
                right=right[wanted],
                reach=reach[wanted],
                least=least[wanted],
                most=most[wanted],
            )
        ]

    @staticmethod
    def _bounded(
        goal: BestGoal[_Ends], price: Floats, value: Floats, least: Floats, most: Floats
    ) -> tuple[Floats, Floats]:
        """Least latency and most right answers [n] of completions; ``value`` bounds their latency - price x right."""
        value = value - np.abs(value) * 1e-12 - 8  # a price is no whole number
        if goal.fastest:
            return np.maximum(least, value + price * goal.need), most
        return least, np.minimum(most, (goal.budget - value) / price)

    def _tell(
        self, goal: Goal[_Ends], nodes: _Nodes, i: Ints, cut: Ints, latency: Floats, right: Floats, length: int
    ) -> None:
        width = self.lengths.stop - 1
        cuts, rows = (np.full((i.size, width), -1, dtype=np.intp) for _ in range(2))
        cuts[:, : length - 1], rows[:, : length - 1] = nodes.cuts[i], nodes.rows[i]
        cuts[:, length - 1] = cut
        goal.add(_Ends(latency, right, np.full(i.size, length), cuts, rows))

    def _placement(
        self, cuts: tuple[int, ...], used: list[bool], counts: list[float], latency: float
    ) -> tuple[int, ...]:
        """The first placement on which partitions with these exits, reached by so many, take so long."""
        space, starts = self.space, (0, *cuts)
        rest: list[dict[int, float]] = [dict.fromkeys(range(len(self.tiers)), 0.0)]  # from each state on, least latency
        ways: list[list[tuple[int, int, int, float]]] = []
        for k in range(len(cuts) - 1, -1, -1):
            run = space.full if k == len(cuts) - 1 or used[k] else space.bare
            least: dict[int, float] = {}
            ways.insert(0, [])
            for before, after, step in _each(self.steps if k else self.first_steps, k == len(cuts) - 1 or used[k]):
                move = space.step[starts[k], step.sender, step.tier] if k else space.first[step.tier]
                cost = float(move + run[step.woken, step.tier, starts[k], cuts[k]])
                if step.on_tier:
                    assert space.held is not None
                    ends = starts[k - step.on_tier : k + 2]
                    held = sum(space.held[step.tier, start, end] for start, end in pairwise(ends))
                    cost = cost if held <= space.room[step.tier] else math.inf
                if math.isfinite(cost) and after in rest[0]:
                    total = counts[k] * cost + rest[0][after]
                    least[before] = min(total, least.get(before, math.inf))
                    ways[0].append((before, step.tier, after, total))
            rest.insert(0, least)
        assert rest[0][0] == latency, f"no placement takes as long as the search says for the cuts {cuts}"
        placement, state = [], 0
        for k, possible in enumerate(ways):
            best = [(t, after) for before, t, after, total in possible if (before, total) == (state, rest[k][state])]
            tier, state = min(best)
            placement.append(tier)
        return tuple(placement)

    def _chunks(self, size: int) -> Iterator[slice]:
        most = max(1, _WORDS // max(self.bits.everyone.size, len(self.tiers)))
        for start in range(0, size, most):
            yield slice(start, start + most)

    def none(self) -> _Ends:
        """Return no plans."""
        width = self.lengths.stop - 1
        empty = np.empty((0, width), dtype=np.intp)
        return _Ends(np.empty(0), np.empty(0), np.empty(0, dtype=np.intp), empty, empty)

    def answer(self, ends: _Ends, index: int) -> Found:
        """Return one plan by name, on the first placement that takes so long; an unused exit has threshold 0."""
        space, length = self.space, int(ends.length[index])
        cuts = tuple(int(c) for c in ends.cuts[index, :length])
        inner = list(zip(ends.rows[index, : length - 1].tolist(), cuts[:-1], strict=True))
        stay, counts = self.bits.everyone, [float(space.samples)]
        for row, cut in inner:
            stay = stay & ~self.bits.leaves[row, cut]
            counts.append(float(_count(stay[None])[0]))
        placement = self._placement(cuts, [bool(space.used[one]) for one in inner], counts, float(ends.latency[index]))
        thresholds = tuple(space.threshold(row, cut) for row, cut in inner)
        plan = Plan(cuts=cuts, placement=placement, thresholds=thresholds)
        return Found(float(ends.latency[index]), float(ends.right[index]), plan)


def _each(steps: list[_Step], used: bool) -> Iterator[tuple[int, int, _Step]]:
    """Each single step, with the placement state before and after it."""
    for step in steps:
        for before, after in zip(step.before.tolist(), (step.after if used else step.closed).tolist(), strict=True):
            yield before, after, step


def _placement_states(space: PlanSpace) -> tuple[list[int], list[_Step], list[_Step]]:
    """Tier of each placement state, the steps from the source, and those between states."""
    hints = space.space
    increasing, most = hints.tier_order == "increasing", hints.exits_per_tier
    counted = space.held is not None or most < space.lengths().stop - 1
    index: dict[tuple[int, int, int], int] = {}
    open_states: list[tuple[int, int, int]] = []
    alike: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}  # from no two states to one

    def number(tier: int, visited: int, on_tier: int) -> int:
        on_tier = _CLOSED if on_tier in (_CLOSED, most) else on_tier if counted else 1
        state = (tier, 0 if increasing else visited, on_tier)
        if state not in index:
            index[state] = len(index)
            open_states.append(state)
        return index[state]

    def add(before: int, sender: int, was: int, tier: int, visited: int, on_tier: int) -> None:
        states = before, number(tier, visited, on_tier), number(tier, visited, _CLOSED)
        held = was if on_tier > 1 and space.held is not None and space.held[tier].any() else 0
        alike.setdefault((sender, tier, int(on_tier == 1), held, was), []).append(states)

    def steps() -> list[_Step]:
        made = [_Step(*np.array(states, dtype=np.intp).T, *kind[:4]) for kind, states in alike.items()]
        alike.clear()
        return made

    tiers = sorted(range(space.tiers) if hints.tiers is None else set(hints.tiers))
    for tier in tiers:
        add(0, space.model.topology.source, 0, tier, 1 << tier, 1)
    first = steps()
    while open_states:
        state = tier, visited, on_tier = open_states.pop(0)
        before = index[state]
        if on_tier != _CLOSED:
            add(before, tier, on_tier, tier, visited, on_tier + 1)
        for then in tiers:
            if then > tier if increasing else then != tier and not visited >> then & 1:
                add(before, tier, on_tier, then, visited | 1 << then, 1)
    return [state[0] for state in index], first, steps()


def _count(words: Words) -> Floats:
    """Samples in bit sets [n, W], [n]."""
    return np.asarray(np.bitwise_count(words).sum(axis=-1, dtype=np.int64), dtype=np.float64)


def front(space: PlanSpace, limits: Limits | None = None) -> tuple[Front[_Ends], bool]:
    """Return the Pareto front of latency and accuracy, by latency, and whether it is whole.

    Of equal plans it has the canonical first.
    """
    search = _Search(space, limits)
    goal = FrontGoal(search.none(), _canonical, space.certain, space.limit)
    whole = False
    with search.limits.until_met():
        search.run(goal)
        whole = True
    return Front(goal.best, search.answer), whole


def best(
    space: PlanSpace, *, need: float, budget: float, fastest: bool, limits: Limits | None = None
) -> tuple[Found | None, float]:
    """Return the best plan of ``need`` right answers within a latency ``budget``, and a bound, as ``dynamic.best``."""
    search = _Search(space, limits)
    goal = BestGoal(search.none(), _canonical, need=need, budget=min(budget, space.limit), fastest=fastest)
    search.look(goal, Limits())  # whatever the limits, so that there is an answer
    with search.limits.until_met():
        search.prepare(goal)
        search.go_on(goal)
    bound = search.proven(goal)  # where no nodes are left: that there is no other plan
    found = search.answer(goal.best, 0) if len(goal.best) else None
    return found, goal.bounded(bound, found)
