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
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from portend.errors import SearchError
from portend.perfmodel.model import PerformanceModel
from portend.planner import exact
from portend.planner.answers import by_front, points, resolved
from portend.planner.batch import Block, Outcomes
from portend.planner.limits import Ended, Limits, Over, gap
from portend.planner.metrics import latency
from portend.planner.nondominated import NonDominated
from portend.planner.pareto import front_indices
from portend.planner.problem import FrontPoint, Problem, SearchSpace, SearchStats, Solution, Status
from portend.planner.space import PlanSpace
from portend.values.plan import Plan

__all__ = ["count_plans", "sample_space", "solve_exhaustive"]

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

_PLAN_LIMIT = 200_000_000
_METRIC_LIMIT = 20_000_000
_BLOCK_CELLS = 1 << 15
_BATCH_CELLS = 1 << 14
_SLOW_CELLS = 1 << 8
"""Plans of a batch whose metrics are asked plan by plan."""
_FIRST = 200
"""Pieces of work beyond the limits while there is no answer."""


@dataclass(frozen=True, slots=True)
class _BlockFront:
    """Pareto front of one block of plans of one length, F points: what is needed to name a point as a plan later.

    ``latency`` and ``right`` are the search's own counts (``PlanSpace``), ``rows`` [F, L-1], ``cuts`` [F, L] and
    ``placement`` [F] say which plans these are; of placements that take equally long it is the first.
    """

    latency: Floats
    right: Floats
    rows: Ints
    cuts: Ints
    placement: Ints


class _Asking:
    """Asks the limits between two pieces of work, of at most ``_BLOCK_CELLS`` plans each.

    While there is no answer at all, the search goes on for a few pieces beyond the limits.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits, self.answered, self.met = limits, False, False
        self._left = _FIRST

    def over(self) -> bool:
        """Whether the search must end now; once it must, it stays so."""
        if self.limits.over() and not self.met:
            self._left -= 1
            self.met = self.answered or self._left < 0
        return self.met

    def check(self) -> None:
        """Raise ``Over`` if the search must end now."""
        if self.over():
            raise Over


def solve_exhaustive(problem: Problem, model: PerformanceModel, *, limits: Limits | None = None) -> Solution:
    """Return the proven best plan of the problem's space, and the Pareto front; the best so far if a limit is met.

    A problem that has no additive cost (``Problem.cost``) has the values of its metrics computed for every plan. Where
    a limit ends it, ``bound`` is that of the exact searches for sums (``exact.bound``); None: the objective is no sum.

    Raises:
        SearchError: the space holds no plan, or more than 200 million, 20 million where the problem has no cost.
        InvalidValue, MismatchError: a hint names a cut, branch, tier or codec that does not exist.
    """
    begin, cost, limits = time.perf_counter(), problem.cost, limits or Limits()
    search = _Search(problem.space, model, cost or latency)
    total = search.count()
    if total == 0:
        raise search.empty()
    limit = _METRIC_LIMIT if cost is None else _PLAN_LIMIT
    if total > limit:
        raise SearchError(
            f"an exhaustive search covers at most {limit:,} plans{' for such metrics' if cost is None else ''}, but "
            f"this space has {total:,}; restrict the cuts, thresholds, exits_per_tier or max_partitions, or use one "
            "global threshold"
        )
    if cost is None:
        return replace(_solve_metrics(problem.promised(model.samples), search, limits, begin), problem=problem)
    asked = problem.promised(model.samples)
    front, whole = resolved(search, lambda space: _front(space, asked, limits))
    if whole:
        return by_front(problem, search, front, begin=begin, solver="exhaustive", plans=total)
    return by_front(
        problem, search, front, begin=begin, solver="exhaustive", plans=total, ended=limits.reason or "memory",
        bound=exact.bound(asked, model, limits.silent()),
    )  # fmt: skip


def _front(search: _Search, problem: Problem, limits: Limits) -> tuple[tuple[FrontPoint, ...], bool]:
    fronts: list[_BlockFront] = []
    whole, asking = False, _Asking(limits)
    with limits.until_met():
        for length in search.lengths():
            for front in search.block_fronts(length, asking):
                fronts.append(front)
                asking.answered = True
                if limits.due():
                    limits.tell(*_known(problem, search, fronts))
        whole = not asking.met
    return _merge(fronts, search), whole


def _known(problem: Problem, search: _Search, fronts: list[_BlockFront]) -> tuple[float | None, float]:
    """The best value so far of a problem with a cost, and what no plan beats."""
    fastest = problem.minimize is not None
    need, most = search.counts(problem.min_accuracy), search.quanta(problem.max_cost)
    met = [(front.right >= need) & (front.latency <= most) for front in fronts]
    values = np.concatenate([(f.latency if fastest else f.right)[ok] for f, ok in zip(fronts, met, strict=True)])
    if fastest:
        return float(search.value(values.min())) if values.size else None, float(search.value(search.least_cost()))
    return float(search.accuracy(values.max())) if values.size else None, float(search.accuracy(search.most_right()))


def _solve_metrics(problem: Problem, search: _Search, limits: Limits, begin: float) -> Solution:
    """The best plan, and the front, of a problem whose metrics are computed for every plan."""
    best, nearest = NonDominated(), NonDominated()
    whole = False
    (first, sense), asking = problem.objectives[0], _Asking(limits)
    cells = _SLOW_CELLS if any(metric.by_plan for metric in problem.metrics) else _BATCH_CELLS
    with limits.until_met():
        for length in search.lengths():
            for cuts, rows in search.blocks_of(length, cells):
                for block, allowed in search.plans_of(cuts, rows, asking):
                    goals = [sense * metric.of_block(block) for metric, sense in problem.objectives]
                    missed = np.zeros(goals[0].size)
                    missed[np.isposinf(goals).any(axis=0)] = np.inf  # what is forbidden is no answer
                    for constraint in problem.subject_to:
                        missed += constraint.missed_by(constraint.metric.of_block(block))
                    met = np.flatnonzero((missed == 0) & allowed)
                    if met.size:
                        best.add(block, rows, met, goals, [])
                    elif not best.found and allowed.any():
                        nearest.add(block, rows, np.flatnonzero(allowed), [missed], goals)
                    asking.answered = bool(best.found or nearest.found)
                    if limits.due():
                        limits.tell(sense * min(goals[0] for goals in best.found) if best.found else None, None)
        whole = True
    ended: Ended = "" if whole else limits.reason or "memory"
    found = sorted((best if best.found else nearest).found.values())
    if not found:
        raise search.empty(ended)
    proven: tuple[Status, Status] = ("feasible", "unknown") if ended else ("optimal", "infeasible")
    status = proven[not best.found]
    front = tuple(
        FrontPoint(
            latency_s=one.latency_s,
            accuracy=one.accuracy,
            plan=one.plan,
            values={m.name: sense * goal for (m, sense), goal in zip(problem.objectives, one.goals, strict=True)},
        )
        for one in (found if best.found else ())
    )
    model = search.model
    estimate = model.estimate(model.complete(found[0].plan, problem.space.codecs))
    values, _ = problem.judge(estimate.plan, model)
    bound = exact.bound(problem, model, limits.silent()) if ended else values[first.name] if best.found else None
    return Solution(
        problem=problem,
        status=status,
        estimate=estimate,
        front=front,
        front_complete=not ended,
        stats=SearchStats(plans=search.count(), seconds=time.perf_counter() - begin, solver="exhaustive", ended=ended),
        bound=bound,
        gap=0.0 if status == "optimal" else gap(values[first.name], bound) if best.found else None,
        values=values,
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
        placements = list(search.placements(length))
        for cuts, rows in search.blocks_of(length, _BLOCK_CELLS):
            reach, right = search.outcomes(cuts, rows)
            for placement in placements:
                latency = search.latency(cuts, rows, reach, placement)
                chosen = np.isfinite(latency) & (rng.random(latency.shape) < share)
                columns["latency_s"].append(search.value(latency[chosen]))
                columns["accuracy"].append(search.accuracy(right[chosen]))
                columns["partitions"].append(np.full(int(chosen.sum()), float(length)))
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def _merge(fronts: list[_BlockFront], search: _Search) -> tuple[FrontPoint, ...]:
    """Front of the union of block fronts, with its plans; of equals the first in canonical order.

    Canonical: fewer partitions, then the thresholds, then the cuts.
    """
    if not fronts:
        return ()
    latency, right, placement = (
        np.concatenate([getattr(front, name) for front in fronts]) for name in ("latency", "right", "placement")
    )
    length = np.concatenate([np.full(front.placement.size, front.cuts.shape[1]) for front in fronts])
    most = int(length.max())
    rows, cuts = (
        np.concatenate([np.pad(part, ((0, 0), (0, most - part.shape[1]))) for part in parts])
        for parts in ([front.rows for front in fronts], [front.cuts for front in fronts])
    )
    canonical = np.lexsort((*cuts.T[::-1], *rows.T[::-1], length))
    kept = canonical[front_indices(latency[canonical], right[canonical])]
    placements = {n: list(search.placements(n)) for n in np.unique(length[kept]).tolist()}
    plans = [
        search.plan(cuts[i, :n], placements[n][placement[i]], rows[i, : n - 1])
        for i, n in zip(kept.tolist(), length[kept].tolist(), strict=True)
    ]
    return points(search, latency[kept], right[kept], plans)


class _Search(PlanSpace):
    """The evaluation of whole blocks of plans."""

    @cached_property
    def always_used(self) -> NDArray[np.bool_]:
        """Whether a threshold is asked at every branch, [T]."""
        return np.asarray(self.used[:, 1:].all(axis=1))

    def blocks_of(self, length: int, cells: int) -> Iterator[tuple[Ints, list[tuple[int, ...]]]]:
        """Cuts [C, L] and rows of thresholds [R], together all plans of a length; R x C is at most ``cells``."""
        for cuts in self.columns(length, cells):
            for rows in self.rows(length, cells):
                yield cuts, rows

    def block_fronts(self, length: int, asking: _Asking) -> Iterator[_BlockFront]:
        """Pareto fronts of all plans with ``length`` partitions, block by block.

        Where a limit is met in a block, it ends with the front of the placements so far.
        """
        placements = list(self.placements(length))
        for cuts, rows in self.blocks_of(length, _BLOCK_CELLS):
            reach, right = self.outcomes(cuts, rows, asking)
            best, first = np.full(right.shape, np.inf), np.zeros(right.shape, dtype=np.intp)
            for index, placement in enumerate(placements):
                latency = self.latency(cuts, rows, reach, placement)
                faster = latency < best
                np.copyto(best, latency, where=faster)
                np.copyto(first, index, where=faster)
                if asking.over():
                    break
            best[best > self.limit] = np.inf
            cells = front_indices(best.ravel(), right.ravel())
            if cells.size:
                row, column = np.divmod(cells, len(cuts))
                yield _BlockFront(
                    latency=best.ravel()[cells],
                    right=right.ravel()[cells],
                    rows=np.array(rows, dtype=np.intp).reshape(len(rows), length - 1)[row],
                    cuts=cuts[column],
                    placement=first.ravel()[cells],
                )
            asking.check()

    def plan(self, cuts: Ints, placement: tuple[int, ...], rows: Ints) -> Plan:
        """Return a plan with cuts [L] and rows of thresholds [L-1]."""
        ends = tuple(cuts.tolist())
        thresholds = tuple(self.threshold(row, cut) for row, cut in zip(rows.tolist(), ends[:-1], strict=True))
        return Plan(cuts=ends, placement=placement, thresholds=thresholds)

    def outcomes(self, cuts: Ints, rows: list[tuple[int, ...]], asking: _Asking | None = None) -> tuple[Floats, Floats]:
        """Samples that reach partition k [R, L+1, C] (S at k=0, 0 at k=L), and right answers [R, C]."""
        asking = asking or _Asking(Limits(memory=math.inf))
        columns, length = cuts.shape
        reach = np.empty((len(rows), length + 1, columns))
        reach[:, 0], reach[:, -1] = self.samples, 0.0
        if self.bits is None:
            return reach, self._marginal(cuts, np.array(rows, dtype=np.intp), reach)
        right = np.empty((len(rows), columns))
        for index, row in enumerate(rows):
            asking.check()
            self._replay(cuts, row, reach[index], right[index])
        return reach, right

    def _marginal(self, cuts: Ints, rows: Ints, reach: Floats) -> Floats:
        """Fill in reach and return right answers [R, C]; ``rows`` [R, L-1] index the thresholds."""
        for k in range(cuts.shape[1] - 1):
            np.minimum(reach[:, k], self.stays[rows[:, k, None], cuts[:, k]], out=reach[:, k + 1])
        first = self.right[cuts[:, 0]]
        right = np.broadcast_to(self.samples * first, reach[:, 0].shape).copy()
        for k in range(1, cuts.shape[1]):
            right += reach[:, k] * (self.right[cuts[:, k]] - self.right[cuts[:, k - 1]])
        return right

    def _replay(self, cuts: Ints, row: tuple[int, ...], reach: Floats, right: Floats) -> None:
        assert self.bits is not None
        share, correct = self.bits.outcomes(
            cuts, np.broadcast_to(np.asarray(row, dtype=np.intp), (len(cuts), len(row)))
        )
        np.subtract(self.samples, np.cumsum(share, axis=1)[:, :-1].T, out=reach[1:-1])
        np.sum(correct, axis=1, out=right)

    def plans_of(
        self, cuts: Ints, rows: list[tuple[int, ...]], asking: _Asking | None = None
    ) -> Iterator[tuple[Block, NDArray[np.bool_]]]:
        """Every placement's plans, without cuts that are forbidden there, and which are in the space, [R x C]."""
        columns, length = cuts.shape
        asking = asking or _Asking(Limits(memory=math.inf))
        outcomes = self._shares(cuts, rows, asking)
        asked = np.where(self.used, self.theta[:, None], 0.0)
        theta = asked[np.array(rows, dtype=np.intp).T[:, :, None], cuts.T[:-1, None]]
        start = np.concatenate([np.zeros((columns, 1), dtype=np.intp), cuts[:, :-1]], axis=1)
        _, best = self.model.tables.hop_s(self.space.codecs)
        for placement in self.placements(length):
            asking.check()
            seconds = np.zeros(columns)
            codecs = np.empty((length, columns), dtype=np.intp)
            sender = self.model.topology.source
            for k, tier in enumerate(placement):
                woken = int(k == 0 or tier != sender)
                seconds += self.hop[start[:, k], sender, tier] + self.compute[woken, 1, tier, start[:, k], cuts[:, k]]
                codecs[k] = best[start[:, k], sender, tier]
                sender = tier
            allowed = np.isfinite(seconds) & self.fits(cuts, placement)
            if not allowed.any():
                continue
            kept: slice | NDArray[np.bool_] = slice(None) if allowed.all() else allowed
            block = Block(
                model=self.model,
                placement=placement,
                cuts=cuts[kept],
                codecs=codecs[:, kept].T,
                thresholds=theta[:, :, kept],
                outcomes=outcomes if isinstance(kept, slice) else outcomes.take(kept),
            )
            yield block, ~self.split(block.cuts, rows, placement).ravel()

    def _shares(self, cuts: Ints, rows: list[tuple[int, ...]], asking: _Asking) -> Outcomes:
        """Shares [L, R, C] that leave at each partition, and that leave there and are right."""
        columns, length = cuts.shape
        share, correct = np.empty((2, length, len(rows), columns))
        if self.bits is not None:
            for index, row in enumerate(rows):
                asking.check()
                each = np.broadcast_to(np.asarray(row, dtype=np.intp), (columns, len(row)))
                left, right = self.bits.outcomes(cuts, each)
                share[:, index], correct[:, index] = left.T, right.T
        else:
            picked = np.array(rows, dtype=np.intp)
            reach: Floats = np.full((len(rows), columns), float(self.samples))
            for k in range(length):
                last = k == length - 1
                after = np.zeros(1) if last else np.minimum(reach, self.stays[picked[:, k, None], cuts[:, k]])
                np.subtract(reach, after, out=share[k])
                correct[k] = share[k] * self.right[cuts[:, k]] / self.samples
                reach = after
        return Outcomes(share=share / self.samples, correct=correct / self.samples)

    def latency(self, cuts: Ints, rows: list[tuple[int, ...]], reach: Floats, placement: tuple[int, ...]) -> Floats:
        """Mean latency of one placement in samples times quanta, [R, C]; +inf where a hint or a codec forbids it."""
        length, size = len(placement), self.blocks + 1
        latency, term = np.empty((2, len(rows), len(cuts)))
        forbidden = np.zeros((1, len(cuts)), dtype=np.bool_)
        at, sender = cuts[:, 0], -1
        for k, tier in enumerate(placement):
            full, bare, banned, banned_bare = self._steps[sender, tier]
            cost, other = full.take(at), bare.take(at)
            if k == 0:  # everyone reaches the first partition
                latency[:] = self.samples * cost
            else:
                np.multiply(reach[:, k], cost, out=term)
            used: NDArray[np.bool_] = np.ones((1, 1), dtype=np.bool_)
            if k < length - 1:
                for index in np.flatnonzero(~self.always_used[[row[k] for row in rows]]):
                    asked = self.used[rows[index][k], cuts[:, k]]
                    (latency if k == 0 else term)[index] = reach[index, k] * np.where(asked, cost, other)
                if banned is not banned_bare:
                    used = self.used[np.array([row[k] for row in rows])[:, None], cuts[:, k]]
            forbidden = forbidden | np.where(used, banned.take(at), banned_bare.take(at))
            if k < length - 1:
                at, sender = cuts[:, k] * size + cuts[:, k + 1], tier
            if k:
                latency += term
        if self.held is not None:
            forbidden = forbidden | ~self.fits(cuts, placement)
        latency[forbidden | self.split(cuts, rows, placement)] = np.inf
        return latency

    def split(self, cuts: Ints, rows: list[tuple[int, ...]], placement: tuple[int, ...]) -> NDArray[np.bool_]:
        """Whether a plan splits a tier's blocks where nobody may leave, which is no plan of the space, [R, C]."""
        split = np.zeros((len(rows), len(cuts)), dtype=np.bool_)
        for k, (tier, then) in enumerate(pairwise(placement)):
            if tier == then:
                split |= ~self.used[np.array([row[k] for row in rows])[:, None], cuts[:, k]]
        return split

    @cached_property
    def _steps(self) -> dict[tuple[int, int], tuple[Floats, Floats, NDArray[np.bool_], NDArray[np.bool_]]]:
        """Quanta of a partition from start to end cut, flat, on a tier after another (-1: the first one).

        With the hop to it and what it changes in the way back: with the branch and without it (0 where it is
        forbidden), and whether it is forbidden, with the branch and without it (the same array where that is the same).
        """
        steps = {}
        for sender in range(-1, self.tiers):
            for tier in range(self.tiers):
                moves = self.first[None, tier, None] if sender < 0 else self.step[:, sender, tier, None]
                full, bare = ((moves + self.compute[int(sender != tier), run, tier]).ravel() for run in (1, 0))
                banned, banned_bare = ~np.isfinite(full), ~np.isfinite(bare)
                steps[sender, tier] = (
                    np.where(banned, 0.0, full),
                    np.where(banned_bare, 0.0, bare),
                    banned,
                    banned if np.array_equal(banned, banned_bare) else banned_bare,
                )
        return steps
