"""Exact search by dynamic programming over prefixes of plans, for the marginal estimator.

With ``S_k`` the samples that stay after partition k, mean latency and right answers are sums over
partitions,

    latency = Σ_k S_{k-1} · ( hop_k + compute_k + x_k − x_{k-1} )      right = Σ_k S_{k-1} · ( A_k − A_{k-1} )

(x: returning a result, A: right answers of a branch), so every prefix of a plan is a plan too. What may
follow a prefix, and at what price, depends only on its *state*: threshold, cut, tier, tiers visited,
partitions on this tier and whether another may follow there, samples that stay. Of two prefixes in one
state, one that is neither faster nor more accurate is dropped. And a prefix is dropped when no completion
of it can be wanted any more:

- looking for the whole front: the front already holds a plan that is as fast as the prefix with the
  cheapest next step alone, and more accurate than if all who stay met the best later branch;
- looking for one optimum: by Lagrangian relaxation. For any price λ >= 0 of a right answer,
  latency − λ · right, minimized over all completions without the rule that no tier is visited twice, is
  a shortest path (`_Search.relaxed`), which bounds what a completion can still gain.

Axes: T thresholds, M tiers, N+1 cuts, n labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from portend.planner.goals import BestGoal, Found, Front, FrontGoal, Goal, climb, repeats
from portend.planner.limits import Limits
from portend.planner.space import NEVER, PlanSpace
from portend.values.plan import Plan

__all__ = ["best", "front"]


Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Index = NDArray[np.intp] | Flags

_CELLS: Final = 1 << 19
_BEAM: Final = 300
_FIRST: Final = 8
_LABELS: Final = 20_000
_MIX: Final = np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing
_DUAL_STEPS: Final = 6
_PRICE_RANGE: Final = 4.0


@dataclass(frozen=True, slots=True)
class _Labels:
    """Prefixes of plans, all of one length."""

    row: Ints  # threshold of the last exit
    cut: Ints
    tier: Ints
    visited: Ints  # a bit per tier
    on_tier: Ints  # partitions on the current tier (the most where no other may follow there), and its memory where
    # that must be added up (``_Search.load``)
    stay: Floats
    latency: Floats
    right: Floats
    parent: Ints  # label one partition shorter

    def __len__(self) -> int:
        return int(self.cut.size)

    def take(self, index: Index) -> _Labels:
        return _Labels(*(getattr(self, name)[index] for name in self.__slots__))

    @staticmethod
    def joined(parts: list[_Labels]) -> _Labels:
        if len(parts) == 1:
            return parts[0]
        return _Labels(*(np.concatenate([getattr(p, name) for p in parts]) for name in _Labels.__slots__))


@dataclass(frozen=True, slots=True)
class _Plans:
    """Complete plans: their values, and the label (one partition shorter) that the last partition follows."""

    latency: Floats
    right: Floats
    length: Ints
    parent: Ints
    cut: Ints
    tier: Ints

    def __len__(self) -> int:
        return int(self.cut.size)

    def take(self, index: Index) -> _Plans:
        return _Plans(*(getattr(self, name)[index] for name in self.__slots__))

    def and_then(self, other: _Plans) -> _Plans:
        return _Plans(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in self.__slots__))


def _no_plans() -> _Plans:
    empty = np.empty(0, dtype=np.int64)
    return _Plans(np.empty(0), np.empty(0), empty, empty, empty, empty)


class _Search:
    """The prefixes of a space, one partition longer at a time."""

    def __init__(self, space: PlanSpace, limits: Limits | None = None) -> None:
        self.space = space
        self.limits = limits or Limits()
        hints = space.space
        self.lengths = space.lengths()
        self.most_on_tier = hints.exits_per_tier
        self.per_exit = hints.per_exit_thresholds
        self.increasing = hints.tier_order == "increasing"
        self.size = space.blocks + 1
        self.cuts = np.arange(self.size)
        self.levels: list[_Labels] = []
        self.always_used = bool(space.used[:, space.inner].all())
        inner = space.stays[:, space.inner]
        self.stay_is_known = not self.per_exit and self.always_used and bool((np.diff(inner, axis=1) <= 0).all())
        """Whether the threshold and the last cut alone say how many samples stay."""
        self.backward: Flags = np.tri(space.tiers, dtype=bool) if self.increasing else np.eye(space.tiers, dtype=bool)
        """[M, M]: from where to where no partition moves."""
        self.load = None if space.held is None else (self.most_on_tier + 1) * space.held.astype(np.int64)
        """[M, N+1, N+1], what a partition adds to ``on_tier``: a multiple of its bytes, beside the number."""
        self.gain, self.least = self._next_steps()
        self.bound: _Relaxed | None = None
        self.known: Found | None = None

    def _next_steps(self) -> tuple[Floats, Floats]:
        """The most that right [N+1], and the least that latency [N+1, M], can grow by for each who stays."""
        space = self.space
        ends = np.where(space.last | space.inner, space.right, -np.inf)
        later = np.append(np.maximum.accumulate(ends[::-1])[::-1][1:], -np.inf)
        alone = np.minimum(space.bare, space.full).min(axis=-1).transpose(0, 2, 1)  # [2, N+1, M]
        move = space.step + alone[1][:, None, :]
        move[:, self.backward] = np.inf
        least = move.min(axis=-1)
        if self.most_on_tier > 1:
            least = np.minimum(least, alone[0])
        if (least < 0).any():  # a hop can bring the sample nearer to where its result goes, once or more often
            least = np.broadcast_to(space.result.min() - space.result, least.shape)
        return np.where(np.isfinite(later), later - space.right, 0.0), np.minimum(least, NEVER)

    # -- the run -------------------------------------------------------------------------------

    def look(self, goal: BestGoal[_Plans]) -> None:
        """Look for some plan along few prefixes, whatever the limits."""
        limits, self.limits = self.limits, Limits()
        self.run(goal, beam=_FIRST)
        self.limits = limits
        self.again(goal)

    def again(self, goal: BestGoal[_Plans]) -> None:
        """Keep the best plan by name, before the search goes another way."""
        if len(goal.best):
            self.known = self.found(goal.best, 0)
        goal.again()

    def proven(self, goal: BestGoal[_Plans]) -> float:
        """What is known of any plan that meets the goal's bounds: its least latency, or its most right answers."""
        space, least = self.space, -math.inf
        if self.bound is not None:
            least = float(_proven(goal, self.bound.whole, self.bound.price).min())
            least -= abs(least) * 1e-12 + 8  # a price is no whole number
        return max(least, space.least_cost()) if goal.fastest else min(-least, space.most_right())

    def check(self, goal: Goal[_Plans]) -> None:
        """Report, and raise ``Over`` if a limit is met."""
        if isinstance(goal, BestGoal) and self.limits.due():
            self.limits.tell(goal.value, self.proven(goal))
        self.limits.check()

    def run(
        self, goal: Goal[_Plans], *, relaxed: _Relaxed | None = None, beam: int = 0, most: float = math.inf
    ) -> bool:
        """Go through all prefixes that the goal wants, and return whether there were at most ``most`` of a length.

        With ``beam`` go only through so many of each length; ``relaxed`` says which are the most promising, without it
        those of least latency are.

        Raises:
            Over: a limit is met; the goal has what was found so far.
        """
        with np.errstate(invalid="ignore"):  # nobody (0) who would do what is impossible (inf): no number, not wanted
            return self._run(goal, relaxed, beam, most)

    def _run(self, goal: Goal[_Plans], relaxed: _Relaxed | None, beam: int, most: float) -> bool:
        labels = self._root()
        self.levels = [labels]
        for length in range(1, self.lengths.stop):
            moved = self._moved(labels, first=length == 1)
            if length > 2 or self.increasing:  # before, no two prefixes meet in one state
                moved = moved.take(self._undominated(moved))
            parts: list[_Labels] = []
            for chunk in self._chunks(moved, branching=length == 1 or self.per_exit):
                self.check(goal)
                parts += self._grown(chunk, goal, length)
                if sum(map(len, parts)) > 4 * most:
                    return False
            if not parts:
                return True
            labels = _Labels.joined(parts)
            left = self.lengths.stop - 1 - length
            if len(parts) > 1:  # once more, for now the goal has seen all plans of this length
                at = (labels.row, labels.cut, labels.tier)
                labels = labels.take(self._hopeful(goal, left, *at, labels.stay, labels.latency, labels.right))
            if len(labels) > beam > 0:
                promise = labels.latency
                if relaxed is not None:
                    least = relaxed.value(left, labels.row, labels.cut, labels.tier, labels.latency, labels.right)
                    promise = _proven(goal, least, relaxed.price[labels.row])
                labels = labels.take(_spread(promise, labels.cut, beam))
            labels = labels.take(self._undominated(labels))
            self.levels.append(labels)
            if len(labels) > most:
                return False
        return True

    def _hopeful(
        self,
        goal: Goal[_Plans],
        left: int,
        row: Ints,
        cut: Ints,
        tier: Ints,
        stay: Floats,
        latency: Floats,
        right: Floats,
    ) -> Flags:
        """Whether a completion of prefixes by at most ``left`` partitions may be wanted; arrays that broadcast."""
        wanted = goal.wants(latency + stay * self.least[cut, tier], right + stay * self.gain[cut])
        if self.bound is not None and isinstance(goal, BestGoal):
            least = self.bound.value(left, row, cut, tier, latency, right) + self.bound.price[row] * goal.need
            wanted &= least <= goal.budget + abs(goal.budget) * 1e-12 + 8  # a price is no whole number
        return wanted

    def _root(self) -> _Labels:
        zero, none = np.zeros(1, dtype=np.int64), np.zeros(1)
        source = zero + self.space.model.topology.source
        return _Labels(zero, zero, source, zero, zero, none + self.space.samples, none, none, zero)

    def _moved(self, labels: _Labels, *, first: bool) -> _Labels:
        """Each label on each tier where its next partition may run; ``parent`` is the label itself."""
        tiers = np.arange(self.space.tiers)
        at = labels.tier[:, None]
        if first:
            allowed = np.ones((1, tiers.size), dtype=np.bool_)
            step = self.space.first[None]
            same = np.zeros_like(allowed)
        else:
            same = at == tiers
            allowed = tiers > at if self.increasing else (labels.visited[:, None] >> tiers) & 1 == 0
            if self.most_on_tier > 1:
                number = labels.on_tier if self.load is None else labels.on_tier % (self.most_on_tier + 1)
                allowed |= same & (number < self.most_on_tier)[:, None]
            step = self.space.step[labels.cut[:, None], at, tiers]
        index, tier = np.nonzero(allowed & np.isfinite(step))
        stays_here = same[index, tier]
        kept = labels.take(index)
        return _Labels(
            row=kept.row,
            cut=kept.cut,
            tier=tier,
            visited=kept.visited | (1 << tier),
            on_tier=np.where(stays_here, kept.on_tier + 1, 1),
            stay=kept.stay,
            latency=kept.latency + kept.stay * step[index, tier],
            right=kept.right,
            parent=index,
        )

    def _chunks(self, labels: _Labels, *, branching: bool) -> Iterator[_Labels]:
        rows = self.space.theta.size if branching else 1
        most = max(1, _CELLS // (self.size * rows))
        for start in range(0, len(labels), most):
            yield labels if len(labels) <= most else labels.take(np.arange(start, min(start + most, len(labels))))

    def _grown(self, moved: _Labels, goal: Goal[_Plans], length: int) -> list[_Labels]:
        """Run the next partition to every later cut: tell the goal the plans that end there, return the prefixes."""
        space = self.space
        at = ((moved.on_tier == 1).astype(np.intp), moved.tier, moved.cut)
        stay = moved.stay[:, None]
        latency = moved.latency[:, None] + stay * space.full[at]
        load = self._loaded(moved)
        crowded = None if load is None else ~self._fits(load, moved.tier)
        if crowded is not None:
            latency[crowded] = np.inf
        right = moved.right[:, None] + stay * (space.right - space.right[moved.cut][:, None])
        if length >= self.lengths.start:
            index, cut = np.nonzero(goal.wants(latency, right) & space.last)
            if index.size:
                goal.add(
                    _Plans(
                        latency[index, cut],
                        right[index, cut],
                        np.full(index.size, length),
                        moved.parent[index],
                        cut,
                        moved.tier[index],
                    )
                )
        if length + 1 == self.lengths.stop:
            return []
        left, branching = self.lengths.stop - 1 - length, length == 1 or self.per_exit
        row = np.arange(space.theta.size)[:, None, None] if branching else moved.row[None, :, None]
        used, stays = space.used[row[..., 0]], space.stays[row[..., 0]]  # [T, 1, N+1] or [1, n, N+1]
        stay_then = np.minimum(stay, stays)
        onward = latency[None]
        if not self.always_used:
            shorter = moved.latency[:, None] + stay * space.bare[at]
            if crowded is not None:
                shorter[crowded] = np.inf
            onward = np.where(used, latency, shorter)
        wanted = self._hopeful(goal, left, row, self.cuts, moved.tier[:, None], stay_then, onward, right) & space.inner
        if length >= self.lengths.start:
            wanted &= (
                stay_then > 0
            ) | ~space.last  # where nobody stays, the plan that ends here is the same but shorter
        if self.per_exit:
            wanted &= used | (row == space.first_unused)
        flat = np.flatnonzero(wanted)
        if not flat.size:
            return []
        onward = onward if onward.shape == wanted.shape else np.broadcast_to(onward, wanted.shape)
        which, cell = np.divmod(flat, right.size)
        index, cut = np.divmod(cell, self.size)
        chosen = which if branching else moved.row[index]
        on_tier = moved.on_tier[index] if load is None else load.ravel()[cell]
        return [
            _Labels(
                row=chosen,
                cut=cut,
                tier=moved.tier[index],
                visited=moved.visited[index],
                on_tier=np.where(space.used[chosen, cut], on_tier, self.most_on_tier),
                stay=stay_then.ravel()[flat],
                latency=onward.ravel()[flat],
                right=right.ravel()[cell],
                parent=moved.parent[index],
            )
        ]

    def _loaded(self, moved: _Labels) -> Ints | None:
        """What ``on_tier`` is with the next partition, to every later cut, [n, N+1]; None where nothing is added up."""
        return None if self.load is None else moved.on_tier[:, None] + self.load[moved.tier, moved.cut]

    def _fits(self, load: Ints, tier: Ints) -> Flags:
        return np.asarray(load // (self.most_on_tier + 1) <= self.space.room[tier][:, None])

    def _undominated(self, labels: _Labels) -> NDArray[np.intp]:
        """Indices of the labels that no other of their state beats; of equals, the first in canonical order."""
        key = labels.cut * self.space.tiers + labels.tier
        if not self.per_exit:
            key = key + labels.row * (self.size * self.space.tiers)
        if not self.increasing:
            key = (key << self.space.tiers) | labels.visited
        if self.load is not None:
            distinct, number = np.unique(labels.on_tier, return_inverse=True)
            key = key * distinct.size + number
        elif self.most_on_tier > 1:
            key = key * (self.most_on_tier + 1) + labels.on_tier
        if not self.stay_is_known:
            key = key * (self.space.samples + 1) + labels.stay.astype(np.int64)
        some = _behind_fastest(key, labels.latency, labels.right)
        key, latency, right = key[some], labels.latency[some], labels.right[some]
        order = np.lexsort((-right, latency, key))
        equal = repeats(key[order], latency[order], right[order])
        if equal.any():
            members = order[equal | np.append(equal[1:], False)]
            rank = np.zeros(order.size, dtype=np.intp)
            rank[members] = self._ranks(len(self.levels) - 1, labels.take(some[members]))
            order = np.lexsort((rank, -right, latency, key))
        group = np.append(0, np.cumsum(key[order][1:] != key[order][:-1])) * (self.space.certain + 1)
        value = right[order] + group
        kept = np.ones(order.size, dtype=np.bool_)
        kept[1:] = value[1:] > np.maximum.accumulate(value)[:-1]
        return np.asarray(some[order[kept]])

    # -- names ---------------------------------------------------------------------------------

    def _ways(self, level: int, index: NDArray[np.intp]) -> tuple[list[Ints], list[Ints], list[Ints]]:
        """Rows, cuts and tiers, from the first partition on, of labels of ``level`` partitions; a column each."""
        rows: list[Ints] = []
        cuts: list[Ints] = []
        tiers: list[Ints] = []
        for labels in self.levels[level:0:-1]:
            for column, values in ((rows, labels.row), (cuts, labels.cut), (tiers, labels.tier)):
                column.insert(0, values[index])
            index = labels.parent[index]
        return rows, cuts, tiers

    def _ranks(self, level: int, last: _Labels | _Plans) -> NDArray[np.intp]:
        """Canonical order among continuations of labels of ``level``: thresholds, then cuts, then placement."""
        rows, cuts, tiers = self._ways(level, last.parent)
        own = [last.row] if isinstance(last, _Labels) else []
        columns = [*rows, *own, *cuts, last.cut, *tiers, last.tier]
        rank = np.empty(len(last), dtype=np.intp)
        rank[np.lexsort(columns[::-1])] = np.arange(len(last))
        return rank

    def best_first(self, plans: _Plans, keys: tuple[Floats, ...]) -> NDArray[np.intp]:
        """Indices that sort plans by the keys (the first counts most), and equals by length and canonically."""
        order = np.lexsort((plans.length, *keys[::-1]))
        equal = repeats(*(key[order] for key in keys), plans.length[order])
        if equal.any():
            rank = np.zeros(len(plans), dtype=np.intp)
            members = order[equal | np.append(equal[1:], False)]
            for length in np.unique(plans.length[members]):
                mine = members[plans.length[members] == length]
                rank[mine] = self._ranks(int(length) - 1, plans.take(mine))
            order = np.lexsort((rank, plans.length, *keys[::-1]))
        return np.asarray(order)

    def found(self, plans: _Plans, index: int) -> Found:
        """Return one of the complete plans by name; an exit that is not used has threshold 0."""
        rows, cuts, tiers = self._ways(int(plans.length[index]) - 1, plans.parent[index : index + 1])
        inner = [(int(row[0]), int(cut[0])) for row, cut in zip(rows, cuts, strict=True)]
        plan = Plan(
            cuts=(*(cut for _, cut in inner), int(plans.cut[index])),
            placement=(*(int(tier[0]) for tier in tiers), int(plans.tier[index])),
            thresholds=tuple(self.space.threshold(row, cut) for row, cut in inner),
        )
        return Found(float(plans.latency[index]), float(plans.right[index]), plan)

    # -- bounds --------------------------------------------------------------------------------

    def relaxed(self, price: Floats, rows: NDArray[np.intp]) -> tuple[Floats, Floats]:
        """What latency - price x right can come to at ``price`` [T], where tiers may be visited again.

        For the thresholds ``rows`` only. Returns its least change from a prefix on that goes on by at least one
        and at most k partitions, [K, rows, N+1, M] for k = 0 ... K-1, and its least value over whole plans, [rows].
        """
        if self.per_exit:
            rest, whole = self._relaxed(price, np.arange(price.size))
            return rest[:, rows], whole[rows]
        most = max(1, _CELLS * 4 // (self.space.tiers * self.size**2))
        parts = []
        for start in range(0, rows.size, most):
            self.limits.check()
            parts.append(self._relaxed(price, rows[start : start + most]))
        return np.concatenate([rest for rest, _ in parts], axis=1), np.concatenate([whole for _, whole in parts])

    def _relaxed(self, price: Floats, rows: NDArray[np.intp]) -> tuple[Floats, Floats]:
        space = self.space
        stays = space.stays[rows]
        inner_stays = np.where(space.inner, stays, space.samples)
        fewest = np.minimum.accumulate(inner_stays.min(axis=0, keepdims=True) if self.per_exit else inner_stays, axis=1)
        fewest = np.broadcast_to(fewest, stays.shape).copy()
        fewest[:, 0] = stays[:, 0]
        exact = bool((fewest == stays)[:, space.inner].all())

        def paid(cost: Floats) -> Floats:
            """By those who stay at a cut, [rows, tier, N+1, ...]: as few or as many as makes it least."""
            low, high = (x.reshape(len(rows), 1, self.size, 1) for x in (fewest, stays))
            return low * cost if exact else np.where(cost >= 0, low * cost, high * cost)

        worth = price[rows, None, None, None] * (space.right[None, :] - space.right[:, None])
        kinds = (1, 0) if self.most_on_tier > 1 else (1,)
        full = {kind: paid(np.where(np.isfinite(space.full[kind]), space.full[kind] - worth, NEVER)) for kind in kinds}
        bare = full
        if not self.always_used:
            bare = {
                kind: paid(np.where(np.isfinite(space.bare[kind]), space.bare[kind] - worth, NEVER)) for kind in kinds
            }
        step = np.where(np.isfinite(space.step), space.step, NEVER)
        step[:, self.backward] = NEVER
        step = paid(step.transpose(1, 0, 2))  # [rows, M, N+1, M]
        first = np.minimum(space.first, NEVER)
        used = space.used[rows][:, None, :]  # [rows, 1, N+1]

        levels = self.lengths.stop - 1
        rest = np.full((levels, len(rows), self.size, space.tiers), NEVER)
        onward = np.full((2, len(rows), space.tiers, self.size), NEVER)  # [branch run or not]
        end = np.where(space.last, 0.0, NEVER)
        run: dict[int, Floats] = {}
        for k in range(levels):
            for kind in kinds:
                run[kind] = (full[kind] + np.minimum(end, onward[1])[:, :, None, :]).min(axis=-1)
                if not self.always_used:
                    run[kind] = np.minimum(run[kind], (bare[kind] + onward[0][:, :, None, :]).min(axis=-1))
            if k == levels - 1:
                break
            then = (step + run[1].transpose(0, 2, 1)[:, None]).min(axis=-1)  # [rows, M, N+1]
            if 0 in run:
                then = np.where(used, np.minimum(then, run[0]), then)
            then = np.where(space.inner, then, NEVER)
            rest[k + 1] = then.transpose(0, 2, 1)
            onward = np.stack([np.where(used, NEVER, then), np.where(used, then, NEVER)])
            if self.per_exit:
                onward = np.broadcast_to(onward.min(axis=1, keepdims=True), onward.shape)
        return rest, (space.samples * first + run[1][:, :, 0]).min(axis=-1)


@dataclass(frozen=True, slots=True)
class _Relaxed:
    """A Lagrangian relaxation: a price [T] of a right answer, and what it says (`_Search.relaxed`) of each row.

    ``whole`` [T] is the least latency - price x right of a whole plan.
    """

    price: Floats
    rest: Floats
    whole: Floats

    def value(self, left: int, row: Ints, cut: Ints, tier: Ints, latency: Floats, right: Floats) -> Floats:
        """The least latency - price x right of a completion by at most ``left`` partitions."""
        return np.asarray(latency - self.price[row] * right + self.rest[left][row, cut, tier])


def _behind_fastest(key: Ints, latency: Floats, right: Floats) -> NDArray[np.intp]:
    """Indices of the labels that the fastest one of their state (``key``) does not beat; most are beaten.

    States share slots; a state that meets a faster one in its slot is left as it is.
    """
    bits = max(key.size.bit_length() + 1, 8)
    slot = ((key.astype(np.uint64) * _MIX) >> np.uint64(64 - bits)).astype(np.intp)
    least = np.full(1 << bits, np.inf)
    np.minimum.at(least, slot, latency)
    fast = np.flatnonzero(latency == least[slot])
    fastest = np.zeros(1 << bits, dtype=np.intp)
    fastest[slot[fast]] = fast
    other = fastest[slot]
    worse = (right < right[other]) | ((right == right[other]) & (latency > latency[other]))
    return np.flatnonzero(~worse | (key != key[other]))


def _proven(goal: Goal[_Plans], value: Floats, price: Floats) -> Floats:
    """What no plan of a least latency - price x right (``value``) can be better than, less being better.

    The latency of a plan that is accurate enough, or the right answers, negative, of one that is fast enough.
    """
    assert isinstance(goal, BestGoal)
    return value + price * goal.need if goal.fastest else (value - goal.budget) / price


def _spread(promise: Floats, cut: Ints, beam: int) -> NDArray[np.intp]:
    """Indices of ``beam`` labels of the least ``promise`` at their cut: as many at one cut as at another."""
    order = np.lexsort((promise, cut))
    ordered = cut[order]
    first = np.append(True, ordered[1:] != ordered[:-1])
    place = np.arange(order.size)
    place -= np.maximum.accumulate(np.where(first, place, 0))
    return np.asarray(order[np.argpartition(place, beam)[:beam]])


def front(space: PlanSpace, limits: Limits | None = None) -> tuple[Front[_Plans], bool]:
    """Return the Pareto front of latency and accuracy, by latency, and whether it is whole.

    Of equal plans it has the canonical first.
    """
    search = _Search(space, limits)
    goal = FrontGoal(_no_plans(), search.best_first, space.certain, space.limit)
    whole = False
    with search.limits.until_met():
        search.run(goal)
        whole = True
    return Front(goal.best, search.found), whole


def best(
    space: PlanSpace, *, need: float, budget: float, fastest: bool, limits: Limits | None = None
) -> tuple[Found | None, float]:
    """Return the fastest (or most accurate) plan of ``need`` right answers within a latency ``budget``, and a bound.

    Of plans that are equally fast the most accurate, of equally accurate ones the fastest. No such plan takes less
    (has more right answers) than the bound, which is the plan's own value unless a limit was met; +inf (-inf): there
    is no such plan.
    """
    search = _Search(space, limits)
    goal = BestGoal(
        _no_plans(),
        search.best_first,
        need=need,
        budget=min(budget, space.limit, NEVER * space.samples),
        fastest=fastest,
    )
    search.look(goal)
    bound = None
    with search.limits.until_met():
        _run(search, goal)
        bound = math.inf if fastest else -math.inf
    found = search.found(goal.best, 0) if len(goal.best) else search.known
    return found, goal.bounded(search.proven(goal) if bound is None else bound, found)


def _run(search: _Search, goal: BestGoal[_Plans]) -> None:
    prices = _Prices(search, goal) if math.isfinite(goal.need if goal.fastest else goal.budget) else None
    beam, most = _BEAM, float(_LABELS)
    while prices is not None:
        search.run(goal, relaxed=search.bound, beam=beam)
        search.again(goal)
        if search.run(goal, most=most):
            return
        search.again(goal)
        beam, most = 2 * beam, 4 * most
        prices.refine(beam)
    search.run(goal)


class _Prices:
    """The price of a right answer, for each threshold, that proves most about a goal, and what it proves.

    What a price proves of the latency is a concave function of it, of the right answers one of its inverse. A
    golden section finds the best one for some thresholds, between which the others are interpolated; ``refine``
    looks closer at those that are still in question.
    """

    def __init__(self, search: _Search, goal: BestGoal[_Plans]) -> None:
        self.search, self.goal = search, goal
        rows = np.arange(search.space.theta.size)
        some = np.unique(np.linspace(0, rows[-1], min(rows.size, max(3, rows.size // 8))).astype(np.intp))
        center = _usual_price(search, goal)
        low, high = np.full(some.size, center - _PRICE_RANGE), np.full(some.size, center + _PRICE_RANGE / 3)
        best_value, best_at = np.full(some.size, -np.inf), np.full(some.size, center)

        def prove(at: Floats) -> Floats:
            price = np.zeros(rows.size)
            price[some] = np.exp(at)
            bound = _proven(goal, search.relaxed(price, some)[1], price[some])
            better = bound > best_value
            best_value[better], best_at[better] = bound[better], at[better]
            return bound

        climb(prove, low, high, _DUAL_STEPS)
        price = np.exp(np.interp(rows, some, best_at))
        search.bound = _Relaxed(price, *search.relaxed(price, rows))
        self.stride = 0.4

    def refine(self, beam: int) -> None:
        """Try a higher and a lower price for each threshold that may hold a better plan, and look for one there."""
        known = self.search.bound
        assert known is not None
        proven = _proven(self.goal, known.whole, known.price)
        center = known.price.copy()
        for factor in (math.exp(self.stride), math.exp(-self.stride)):
            rows = np.flatnonzero(proven <= (self.goal.budget if self.goal.fastest else -self.goal.need))
            if not rows.size:
                break
            price = center * factor
            rest, whole = self.search.relaxed(price, rows)
            bound = _proven(self.goal, whole, price[rows])
            better = bound > proven[rows]
            chosen = rows[better]
            proven[chosen], known.price[chosen], known.whole[chosen] = bound[better], price[chosen], whole[better]
            known.rest[:, chosen] = rest[:, better]
            there = np.full_like(known.rest, NEVER)
            there[:, rows] = rest
            self.search.run(self.goal, relaxed=_Relaxed(price, there, known.whole), beam=beam)
            self.goal.again()
        self.stride /= 2


def _usual_price(search: _Search, goal: BestGoal[_Plans]) -> float:
    """Logarithm of what a right answer costs in latency around the goal, among plans of a single partition."""
    space = search.space
    latency = (space.first[:, None] + space.full[1][:, 0]).min(axis=0) * space.samples
    ends = np.flatnonzero(np.isfinite(latency) & space.last)
    latency, right = latency[ends], space.right[ends] * (space.certain / space.samples)
    enough = right >= goal.need if goal.fastest else latency > goal.budget
    if not enough.any() or enough.all():
        return math.log(max(float(np.median(latency)) / space.certain, 1.0)) if ends.size else 0.0
    first_enough = np.flatnonzero(enough)[latency[enough].argmin()]
    more = right[first_enough] - right[~enough]
    price = (latency[first_enough] - latency[~enough])[more > 0] / more[more > 0]
    return math.log(max(float(np.median(price)), 1.0)) if price.size else 0.0
