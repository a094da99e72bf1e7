"""Exhaustive search: every plan of a space, vectorized, exact.

Plans of L partitions are laid out as a block: columns are the cuts, rows the thresholds. Exit
shares and accuracy depend on (row, column) only and are computed once; each placement then adds
its latency with a few array operations, and only the best placement of each (row, column) is
kept, because nothing but latency depends on the placement.

Axes: R threshold rows, C columns of cuts, L partitions, M tiers, N+1 cuts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import chain, combinations, islice, permutations, product

import numpy as np
from numpy.typing import NDArray

from portend.errors import InvalidValue, SearchError
from portend.perfmodel.exits import BitTables
from portend.perfmodel.model import PerformanceModel
from portend.plan import Plan
from portend.planner.pareto import front_indices
from portend.planner.problem import FrontPoint, Problem, SearchSpace, SearchStats, Solution
from portend.profile import SampleExits

__all__ = ["count_plans", "sample_space", "solve_exhaustive"]

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

_PLAN_LIMIT = 200_000_000
_BLOCK_CELLS = 1 << 16
_TOLERANCE = 1e-12
"""Slack on bounds: a bound that a plan meets on paper is not missed by a rounding error."""


@dataclass(frozen=True, slots=True)
class _BlockFront:
    """Pareto front of one block of plans, F points: what is needed to name a point as a plan later.

    ``order`` [F, 3] sorts points that are equal in both metrics: fewer partitions, then the
    threshold row, then the column of cuts (the first placement in lexicographic order won already).
    """

    latency_s: Floats
    accuracy: Floats
    order: Ints
    cuts: Ints
    rows: list[tuple[int, ...]]
    placements: list[tuple[int, ...]]


def solve_exhaustive(problem: Problem, model: PerformanceModel) -> Solution:
    """Return the proven best plan of the problem's space, and the Pareto front.

    Raises:
        SearchError: the space holds no plan, or more than 200 million.
        InvalidValue, MismatchError: a hint names a cut, branch, tier or codec that does not exist.
    """
    begin = time.perf_counter()
    search = _Search(problem.space, model)
    total = search.count()
    if total == 0:
        raise SearchError(f"no plan satisfies the hints: {search.hints()}; relax one of them")
    if total > _PLAN_LIMIT:
        raise SearchError(
            f"an exhaustive search covers at most {_PLAN_LIMIT:,} plans, but this space has {total:,}; restrict "
            "the cuts, thresholds, exits_per_tier or max_partitions, or use one global threshold"
        )
    fronts = list(chain.from_iterable(search.block_fronts(length) for length in search.lengths()))
    front = _merge(fronts, search)
    if not front:
        raise SearchError(f"no plan satisfies the hints: {search.hints()}; relax one of them")
    chosen, status = _choose(problem, front)
    estimate = model.estimate(model.complete(chosen.plan, problem.space.codecs))
    stats = SearchStats(plans=total, seconds=time.perf_counter() - begin, solver="exhaustive")
    return Solution(
        problem=problem,
        status="optimal" if status else "infeasible",
        estimate=estimate,
        front=tuple(front),
        stats=stats,
    )


def count_plans(space: SearchSpace, model: PerformanceModel) -> int:
    """Return the number of plans in a space."""
    return _Search(space, model).count()


def sample_space(
    space: SearchSpace, model: PerformanceModel, *, limit: int = 20_000, seed: int = 0
) -> dict[str, Floats]:
    """Return ``latency_s``, ``accuracy`` and ``partitions`` [P] of random plans of a space, for a scatter plot.

    About ``limit`` plans, or all where there are fewer.
    """
    search = _Search(space, model)
    if not search.count():
        raise SearchError(f"no plan satisfies the hints: {search.hints()}; relax one of them")
    share = min(1.0, limit / max(search.count(), 1))
    rng = np.random.default_rng(seed)
    columns: dict[str, list[Floats]] = {"latency_s": [], "accuracy": [], "partitions": []}
    for length in search.lengths():
        rows, placements = search.rows(length), list(search.placements(length))
        for cuts in search.columns(length):
            reach, accuracy = search.outcomes(cuts, rows)
            for placement in placements:
                latency = search.latency(cuts, rows, reach, placement)
                chosen = np.isfinite(latency) & (rng.random(latency.shape) < share)
                columns["latency_s"].append(latency[chosen])
                columns["accuracy"].append(accuracy[chosen])
                columns["partitions"].append(np.full(int(chosen.sum()), float(length)))
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def _merge(fronts: list[_BlockFront], search: _Search) -> list[FrontPoint]:
    """Front of the union of block fronts, with its plans."""
    if not fronts:
        return []
    order = np.concatenate([front.order for front in fronts])
    owner = np.repeat(np.arange(len(fronts)), [front.latency_s.size for front in fronts])
    member = np.concatenate([np.arange(front.latency_s.size) for front in fronts])
    latency_s = np.concatenate([front.latency_s for front in fronts])
    accuracy = np.concatenate([front.accuracy for front in fronts])
    canonical = np.lexsort(order.T[::-1])
    kept = canonical[front_indices(latency_s[canonical], accuracy[canonical])]
    return [
        FrontPoint(
            latency_s=float(latency_s[i]),
            accuracy=float(accuracy[i]),
            plan=search.plan(fronts[owner[i]], int(member[i])),
        )
        for i in kept
    ]


def _choose(problem: Problem, front: list[FrontPoint]) -> tuple[FrontPoint, bool]:
    """Pick from the front, which holds an optimum of every problem in latency and accuracy."""
    accurate = [p for p in front if p.accuracy >= problem.min_accuracy - _TOLERANCE]
    if not accurate:
        return front[-1], False
    feasible = [p for p in accurate if p.latency_s <= problem.max_latency_s * (1 + _TOLERANCE)]
    if not feasible:
        return accurate[0], False
    return (feasible[0] if problem.minimize else feasible[-1]), True


class _Search:
    """A space against a model, with everything that does not depend on the plan looked up once."""

    def __init__(self, space: SearchSpace, model: PerformanceModel) -> None:
        self.space, self.model = space, model
        self.blocks = model.profile.num_blocks
        self.tiers = len(model.topology.tiers)
        _check_hints(space, self.blocks, self.tiers)
        self.last_cuts = self._last_cuts()
        self.hop_s, _ = model.tables.hop_s(space.codecs)
        self.result_s = model.tables.result_parts_s.sum(axis=-1)
        allowed = np.isin(np.arange(self.blocks + 1), range(self.blocks + 1) if space.exits is None else space.exits)
        theta = np.asarray(sorted(space.thresholds))
        self.theta = theta if allowed[1:].any() else theta[:1] * 0.0
        self.used = (self.theta[:, None] > 0) & allowed[None, :]
        """[T, N+1]: whether threshold t is really asked at the branch of cut c."""
        self.always_used: NDArray[np.bool_] = np.asarray(self.used[:, 1:].all(axis=1))
        banned = [
            [0] + [int(tier not in space.block_tiers.get(block, (tier,))) for block in range(1, self.blocks + 1)]
            for tier in range(self.tiers)
        ]
        self.banned_before = np.cumsum(banned, axis=1)
        """[M, N+1]: blocks before a cut that must not run on a tier."""
        exits = model.profile.exits
        self.accuracies = exits.accuracies()
        self.bits: BitTables | None = None
        if model.estimator == "sample" and isinstance(exits, SampleExits):
            self.bits = BitTables(exits, self.theta, used=self.used)
        self.rates = np.zeros(self.used.shape)
        """[T, N+1]: exit rates by cut, 0 where a branch is not used as an exit."""
        if (self.theta > 0).any():
            self.rates[self.theta > 0, 1:] = exits.rates(self.theta[self.theta > 0])
            self.rates[~self.used] = 0.0

    def _last_cuts(self) -> tuple[int, ...]:
        cuts = range(1, self.blocks + 1) if self.space.cuts is None else sorted(set(self.space.cuts))
        return tuple(c for c in cuts if self.space.truncation or c == self.blocks)

    def _inner_cuts(self) -> tuple[int, ...]:
        return tuple(range(1, self.blocks)) if self.space.cuts is None else tuple(sorted(set(self.space.cuts)))

    # -- the space -----------------------------------------------------------------------------

    def lengths(self) -> range:
        tiers = self.tiers if self.space.tiers is None else len(set(self.space.tiers))
        most = min(self.blocks, tiers * self.space.exits_per_tier, self.space.max_partitions or self.blocks)
        return range(self.space.min_partitions, most + 1)

    def placements(self, length: int) -> Iterator[tuple[int, ...]]:
        """Tier sequences in lexicographic order; a tier's partitions are consecutive."""
        tiers = sorted(range(self.tiers) if self.space.tiers is None else set(self.space.tiers))
        found = set()
        for used in range(1, min(length, len(tiers)) + 1):
            orders = combinations(tiers, used) if self.space.tier_order == "increasing" else permutations(tiers, used)
            for order in orders:
                for sizes in _compositions(length, used, self.space.exits_per_tier):
                    found.add(tuple(chain.from_iterable([t] * n for t, n in zip(order, sizes, strict=True))))
        return iter(sorted(found))

    def columns(self, length: int) -> Iterator[Ints]:
        """Increasing cuts [C, length], in lexicographic order, a bounded number at a time."""
        last = set(self.last_cuts)
        usable = sorted({*self._inner_cuts(), *last})
        every = combinations(usable, length)
        rows = every if len(last) == len(usable) else (c for c in every if c[-1] in last)
        chunk = max(1, _BLOCK_CELLS // len(self.rows(length)))
        while block := list(islice(rows, chunk)):
            yield np.fromiter(chain.from_iterable(block), dtype=np.intp, count=len(block) * length).reshape(-1, length)

    def rows(self, length: int) -> list[tuple[int, ...]]:
        """Threshold indices of each row; one partition asks no threshold, so one row."""
        if length == 1:
            return [()]
        if self.space.per_exit_thresholds:
            return list(product(range(self.theta.size), repeat=length - 1))
        return [(row,) * (length - 1) for row in range(self.theta.size)]

    def count(self) -> int:
        """Number of plans, without enumerating them; a single partition asks no threshold."""
        usable = sorted({*self._inner_cuts(), *self.last_cuts})
        total = 0
        for length in self.lengths():
            columns = sum(math.comb(sum(c < end for c in usable), length - 1) for end in self.last_cuts)
            rows = self.theta.size ** ((length - 1) if self.space.per_exit_thresholds else min(length - 1, 1))
            total += columns * rows * self._count_placements(length)
        return total

    def _count_placements(self, length: int) -> int:
        tiers = self.tiers if self.space.tiers is None else len(set(self.space.tiers))
        orders = math.comb if self.space.tier_order == "increasing" else math.perm
        sizes = [1] + [0] * length  # ways to fill 0..length partitions with the tiers used so far
        total = 0
        for used in range(1, min(length, tiers) + 1):
            most = self.space.exits_per_tier
            sizes = [sum(sizes[max(0, n - most) : n]) for n in range(length + 1)]
            total += orders(tiers, used) * sizes[length]
        return total

    def hints(self) -> str:
        """Return the hints that differ from the defaults, as text."""
        default = SearchSpace()
        names = [f.name for f in fields(SearchSpace) if getattr(self.space, f.name) != getattr(default, f.name)]
        return ", ".join(f"{name}={getattr(self.space, name)!r}" for name in names) or "none"

    # -- evaluation ----------------------------------------------------------------------------

    def block_fronts(self, length: int) -> Iterator[_BlockFront]:
        """Pareto fronts of all plans with ``length`` partitions, block by block."""
        placements = list(self.placements(length))
        rows = self.rows(length)
        offset = 0
        for cuts in self.columns(length):
            reach, accuracy = self.outcomes(cuts, rows)
            best = np.full(accuracy.shape, np.inf)
            winner = np.zeros(accuracy.shape, dtype=np.int32)
            for index, placement in enumerate(placements):
                latency = self.latency(cuts, rows, reach, placement)
                better = latency < best
                np.copyto(best, latency, where=better)
                winner[better] = index
            cells = front_indices(best.ravel(), accuracy.ravel())
            row, column = np.divmod(cells, len(cuts))
            yield _BlockFront(
                latency_s=best.ravel()[cells],
                accuracy=accuracy.ravel()[cells],
                order=np.stack([np.full_like(cells, length), row, column + offset], axis=1),
                cuts=cuts[column],
                rows=[rows[r] for r in row],
                placements=[placements[w] for w in winner.ravel()[cells]],
            )
            offset += len(cuts)

    def plan(self, front: _BlockFront, member: int) -> Plan:
        """Return a point of a block front as a plan; an exit that may not be used has threshold 0."""
        cuts = tuple(int(c) for c in front.cuts[member])
        inner = zip(front.rows[member], cuts[:-1], strict=True)
        thresholds = tuple(float(self.theta[t]) if self.used[t, c] else 0.0 for t, c in inner)
        return Plan(cuts=cuts, placement=front.placements[member], thresholds=thresholds)

    def outcomes(self, cuts: Ints, rows: list[tuple[int, ...]]) -> tuple[Floats, Floats]:
        """Share reaching partition k [R, L+1, C] (1 at k=0, 0 at k=L), and accuracy [R, C]."""
        columns, length = cuts.shape
        reach = np.empty((len(rows), length + 1, columns))
        reach[:, 0], reach[:, -1] = 1.0, 0.0
        accuracy = np.empty((len(rows), columns))
        for index, row in enumerate(rows):
            if self.bits is not None:
                self._replay(cuts, row, reach[index], accuracy[index])
            else:
                self._marginal(cuts, row, reach[index], accuracy[index])
        return reach, accuracy

    def _marginal(self, cuts: Ints, row: tuple[int, ...], reach: Floats, accuracy: Floats) -> None:
        accuracy[:] = 0.0
        for k in range(cuts.shape[1]):
            if k < len(row):
                np.minimum(reach[k], 1.0 - self.rates[row[k]][cuts[:, k]], out=reach[k + 1])
            accuracy += self.accuracies[cuts[:, k] - 1] * (reach[k] - reach[k + 1])

    def _replay(self, cuts: Ints, row: tuple[int, ...], reach: Floats, accuracy: Floats) -> None:
        assert self.bits is not None
        samples = self.bits.samples
        share, correct = self.bits.outcomes(
            cuts, np.broadcast_to(np.asarray(row, dtype=np.intp), (len(cuts), len(row)))
        )
        np.divide(samples - np.cumsum(share, axis=1)[:, :-1].T, samples, out=reach[1:-1])
        np.divide(correct.sum(axis=1), samples, out=accuracy)

    def latency(self, cuts: Ints, rows: list[tuple[int, ...]], reach: Floats, placement: tuple[int, ...]) -> Floats:
        """Mean latency in seconds of one placement, [R, C]; +inf where a hint or a codec forbids it."""
        tables, length = self.model.tables, len(placement)
        start, sender = np.zeros(len(cuts), dtype=np.intp), self.model.topology.source
        latency, term = np.zeros(reach[:, 0].shape), np.empty(reach[:, 0].shape)
        forbidden = np.zeros(len(cuts), dtype=np.bool_)
        paid = 0.0  # result cost charged so far to samples that reach the partition
        for k, tier in enumerate(placement):
            end = cuts[:, k]
            hop = self.hop_s[start, sender, tier]
            forbidden |= ~np.isfinite(hop) | self._banned(tier, start, end)
            hop = np.where(forbidden, 0.0, hop) + (self.result_s[tier] - paid)
            bare, full = tables.compute_s[int(k == 0 or tier != sender), :, tier, start, end].T
            np.multiply(reach[:, k], hop + full, out=term)
            for index, row in enumerate(rows if k < length - 1 else ()):
                if not self.always_used[row[k]]:
                    step = hop + np.where(self.used[row[k], end], full, bare)
                    np.multiply(reach[index, k], step, out=term[index])
            latency += term
            start, sender, paid = end, tier, self.result_s[tier]
        latency[:, forbidden] = np.inf
        return latency

    def _banned(self, tier: int, start: Ints, end: Ints) -> NDArray[np.bool_]:
        """Whether blocks start:end contain one that must not run on the tier."""
        return np.asarray(self.banned_before[tier, end] > self.banned_before[tier, start])


def _check_hints(space: SearchSpace, blocks: int, tiers: int) -> None:
    hints: Mapping[str, tuple[tuple[int, ...] | None, int, int]] = {
        "cuts": (space.cuts, 1, blocks),
        "exits": (space.exits, 1, blocks),
        "tiers": (space.tiers, 0, tiers - 1),
        "block_tiers (blocks)": (tuple(space.block_tiers), 1, blocks),
        "block_tiers (tiers)": (tuple(chain.from_iterable(space.block_tiers.values())), 0, tiers - 1),
    }
    for name, (values, low, high) in hints.items():
        wrong = [v for v in values or () if not low <= v <= high]
        if wrong:
            raise InvalidValue(f"the hint {name} holds numbers within {low}–{high} here, but got {wrong}")


def _compositions(total: int, parts: int, most: int) -> Iterator[tuple[int, ...]]:
    """Ways to write ``total`` as an ordered sum of ``parts`` numbers within 1–most."""
    if parts == 1:
        if 1 <= total <= most:
            yield (total,)
        return
    for first in range(1, min(most, total - parts + 1) + 1):
        for rest in _compositions(total - first, parts - 1, most):
            yield (first, *rest)
