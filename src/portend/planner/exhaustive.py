"""Exhaustive search: every plan of a space, vectorized, exact.

Plans of L partitions are laid out as a block: columns are the cuts, rows the thresholds. Exit
shares and accuracy depend on (row, column) only and are computed once; each placement then adds
its latency with a few array operations, and only the best placement of each (row, column) is
kept, because nothing but latency depends on the placement.

Axes: R threshold rows, C columns of cuts, L partitions, M tiers, N+1 cuts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from portend.errors import SearchError
from portend.perfmodel.model import PerformanceModel
from portend.plan import Plan
from portend.planner.pareto import front_indices
from portend.planner.problem import FrontPoint, Problem, SearchSpace, SearchStats, Solution, choose
from portend.planner.space import PlanSpace

__all__ = ["count_plans", "sample_space", "solve_exhaustive"]

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

_PLAN_LIMIT = 200_000_000
_BLOCK_CELLS = 1 << 16


@dataclass(frozen=True, slots=True)
class _BlockFront:
    """Pareto front of one block of plans, F points: what is needed to name a point as a plan later.

    ``latency`` and ``right`` are the search's own counts (``PlanSpace``).

    ``order`` [F, 3] sorts points that are equal in both metrics: fewer partitions, then the
    threshold row, then the column of cuts (the first placement in lexicographic order won already).
    """

    latency: Floats
    right: Floats
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
        raise search.empty()
    if total > _PLAN_LIMIT:
        raise SearchError(
            f"an exhaustive search covers at most {_PLAN_LIMIT:,} plans, but this space has {total:,}; restrict "
            "the cuts, thresholds, exits_per_tier or max_partitions, or use one global threshold"
        )
    fronts = list(chain.from_iterable(search.block_fronts(length) for length in search.lengths()))
    front = _merge(fronts, search)
    if not front:
        raise search.empty()
    chosen, status = choose(problem, front)
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
        raise search.empty()
    share = min(1.0, limit / max(search.count(), 1))
    rng = np.random.default_rng(seed)
    columns: dict[str, list[Floats]] = {"latency_s": [], "accuracy": [], "partitions": []}
    for length in search.lengths():
        rows, placements = search.rows(length), list(search.placements(length))
        for cuts in search.columns(length, _BLOCK_CELLS):
            reach, right = search.outcomes(cuts, rows)
            for placement in placements:
                latency = search.latency(cuts, rows, reach, placement)
                chosen = np.isfinite(latency) & (rng.random(latency.shape) < share)
                columns["latency_s"].append(search.seconds(latency[chosen]))
                columns["accuracy"].append(search.accuracy(right[chosen]))
                columns["partitions"].append(np.full(int(chosen.sum()), float(length)))
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def _merge(fronts: list[_BlockFront], search: _Search) -> list[FrontPoint]:
    """Front of the union of block fronts, with its plans."""
    if not fronts:
        return []
    order = np.concatenate([front.order for front in fronts])
    owner = np.repeat(np.arange(len(fronts)), [front.latency.size for front in fronts])
    member = np.concatenate([np.arange(front.latency.size) for front in fronts])
    latency = np.concatenate([front.latency for front in fronts])
    right = np.concatenate([front.right for front in fronts])
    canonical = np.lexsort(order.T[::-1])
    kept = canonical[front_indices(latency[canonical], right[canonical])]
    return [
        FrontPoint(
            latency_s=float(search.seconds(latency[i])),
            accuracy=float(search.accuracy(right[i])),
            plan=search.plan(fronts[owner[i]], int(member[i])),
        )
        for i in kept
    ]


class _Search(PlanSpace):
    """The evaluation of whole blocks of plans."""

    @cached_property
    def always_used(self) -> NDArray[np.bool_]:
        """Whether a threshold is asked at every branch, [T]."""
        return np.asarray(self.used[:, 1:].all(axis=1))

    def block_fronts(self, length: int) -> Iterator[_BlockFront]:
        """Pareto fronts of all plans with ``length`` partitions, block by block."""
        placements = list(self.placements(length))
        rows = self.rows(length)
        offset = 0
        for cuts in self.columns(length, _BLOCK_CELLS):
            reach, right = self.outcomes(cuts, rows)
            best = np.full(right.shape, np.inf)
            winner = np.zeros(right.shape, dtype=np.int32)
            for index, placement in enumerate(placements):
                latency = self.latency(cuts, rows, reach, placement)
                better = latency < best
                np.copyto(best, latency, where=better)
                winner[better] = index
            cells = front_indices(best.ravel(), right.ravel())
            row, column = np.divmod(cells, len(cuts))
            yield _BlockFront(
                latency=best.ravel()[cells],
                right=right.ravel()[cells],
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
        """Samples that reach partition k [R, L+1, C] (S at k=0, 0 at k=L), and right answers [R, C]."""
        columns, length = cuts.shape
        reach = np.empty((len(rows), length + 1, columns))
        reach[:, 0], reach[:, -1] = self.samples, 0.0
        right = np.empty((len(rows), columns))
        for index, row in enumerate(rows):
            if self.bits is not None:
                self._replay(cuts, row, reach[index], right[index])
            else:
                self._marginal(cuts, row, reach[index], right[index])
        return reach, right

    def _marginal(self, cuts: Ints, row: tuple[int, ...], reach: Floats, right: Floats) -> None:
        right[:] = 0.0
        for k in range(cuts.shape[1]):
            if k < len(row):
                np.minimum(reach[k], self.stays[row[k], cuts[:, k]], out=reach[k + 1])
            right += self.right[cuts[:, k]] * (reach[k] - reach[k + 1])

    def _replay(self, cuts: Ints, row: tuple[int, ...], reach: Floats, right: Floats) -> None:
        assert self.bits is not None
        share, correct = self.bits.outcomes(
            cuts, np.broadcast_to(np.asarray(row, dtype=np.intp), (len(cuts), len(row)))
        )
        np.subtract(self.samples, np.cumsum(share, axis=1)[:, :-1].T, out=reach[1:-1])
        np.sum(correct, axis=1, out=right)

    def latency(self, cuts: Ints, rows: list[tuple[int, ...]], reach: Floats, placement: tuple[int, ...]) -> Floats:
        """Mean latency of one placement in samples times quanta, [R, C]; +inf where a hint or a codec forbids it."""
        length = len(placement)
        start, sender = np.zeros(len(cuts), dtype=np.intp), self.model.topology.source
        latency, term = np.zeros(reach[:, 0].shape), np.empty(reach[:, 0].shape)
        forbidden = np.zeros(len(cuts), dtype=np.bool_)
        paid = 0.0  # result cost charged so far to samples that reach the partition
        for k, tier in enumerate(placement):
            end = cuts[:, k]
            bare, full = self.compute[int(k == 0 or tier != sender), :, tier, start, end].T
            hop = self.hop[start, sender, tier]
            forbidden |= ~np.isfinite(hop + full)
            hop, full = np.where(forbidden, 0.0, hop) + (self.result[tier] - paid), np.where(forbidden, 0.0, full)
            np.multiply(reach[:, k], hop + full, out=term)
            for index, row in enumerate(rows if k < length - 1 else ()):
                if not self.always_used[row[k]]:
                    step = hop + np.where(self.used[row[k], end] | forbidden, full, bare)
                    np.multiply(reach[index, k], step, out=term[index])
            latency += term
            start, sender, paid = end, tier, self.result[tier]
        latency[:, forbidden] = np.inf
        return latency
