"""NSGA-II for problems whose plans are too many to compute every plan's metrics: good plans, without a certificate.

A plan is a chain of steps along the blocks: where a partition ends, on which tier, with which threshold. Two plans
cross by joining the first steps of one with the last steps of the other; mutations change, add or drop a step; and
what breaks a hint is repaired, so that every plan that is looked at lies in the space. In each generation all that is
one change away from one of the best plans is looked at, too. Plans survive by rank and crowding distance (Deb et al.,
"A fast and elitist multiobjective genetic algorithm: NSGA-II", 2002); plans that miss bounds come after those that meet
them, by how much they miss them.

The search begins with what can be had exactly: the front over all plans of few partitions, and the plans of least mean
latency for several accuracies.

Axes: C plans, L partitions, D objectives, B bounds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from portend.errors import SearchError
from portend.perfmodel.model import PerformanceModel
from portend.planner import dynamic, exact, replay
from portend.planner.exhaustive import solve_exhaustive
from portend.planner.limits import Ended, Limits, gap
from portend.planner.metrics import Batch
from portend.planner.nondominated import NonDominated
from portend.planner.problem import FrontPoint, Problem, SearchStats, Solution
from portend.planner.space import PlanSpace
from portend.values.plan import Plan

__all__ = ["solve_evolutionary"]

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

_POPULATION: Final = 200
_GENERATIONS: Final = 400
_PATIENCE: Final = 40
"""Generations without a better plan after which the search ends."""
_SEED_PLANS: Final = 200_000
"""Plans up to which a part of the space is searched exhaustively for a start."""
_ACCURACIES: Final = 6
_SEED: Final = 100
"""Pieces of work for the fastest plan at an accuracy."""


@dataclass(frozen=True, order=True, slots=True)
class _Step:
    """One partition: its last cut, its tier, and the row of its exit's threshold (0 where it is the last one)."""

    cut: int
    tier: int
    row: int


_Chain = tuple[_Step, ...]


def solve_evolutionary(
    problem: Problem, model: PerformanceModel, *, limits: Limits | None = None, seed: int = 0
) -> Solution:
    """Return good plans of a problem in any metrics, and their front; the same ones for the same seed.

    ``status`` is ``feasible``. Where the first objective is a sum or accuracy, ``bound`` says what no plan beats
    (``exact.bound``); of others it is None: how much better a plan there may be is not known. Where no plan was found
    that meets the constraints, ``unknown`` and the plan that missed them least. Limits end the search early, at the
    expense of the same answer every time.

    Raises:
        SearchError: the space holds no plan.
        InvalidValue, MismatchError: a hint names a cut, branch, tier or codec that does not exist.
    """
    begin, limits = time.perf_counter(), limits or Limits()
    asked, problem = problem, problem.promised(model.samples)
    space = PlanSpace(problem.space, model)
    if not space.count():
        raise space.empty()
    rng = np.random.default_rng(seed)
    judge, breed = _Judge(problem, space), _Breeder(space, rng)
    population = _Population(rng)
    bound = exact.bound(problem, model, limits.silent().part(0.1).within_pieces(_SEED))
    first = [breed.chain(plan) for plan in _known(problem, space, limits.silent().part(0.5))]
    while len(first) < _POPULATION and not (first and limits.over()):
        one = breed.random()
        if one is None and not first:
            break
        first += [one] if one else []
    if not first:
        raise SearchError(f"no plan that satisfies the hints was found: {space.hints()}; relax one of them")
    generation = idle = 0

    def compete(plans: Iterable[_Chain]) -> bool:
        """Let plans compete, as many as a population between two questions to the limits; False: one is met."""
        waiting = iter(plans)
        while some := list(dict.fromkeys(islice(waiting, _POPULATION))):
            population.add(some, *judge.values(some))
            limits.tell(judge.value(), bound, f"generation {generation}")
            if limits.over():
                return False
        return True

    explored: set[_Chain] = set()
    left = compete(first)
    while left and generation < _GENERATIONS and idle < _PATIENCE:
        before, generation = judge.best(), generation + 1
        looked_at = next((one for one in population.leaders() if one not in explored), None)
        near: Iterable[_Chain] = ()
        if looked_at is not None:
            explored.add(looked_at)
            near = breed.neighbors(looked_at)
        left = compete(chain((breed.child(*population.parents()) for _ in range(_POPULATION)), near))
        idle = idle + 1 if judge.best() == before else 0
    return judge.solution(asked, begin, bound, "" if left else limits.reason)


def _known(problem: Problem, space: PlanSpace, limits: Limits) -> list[Plan]:
    """Plans to begin with: the exact front of a small part of the space, and the fastest plans at some accuracies."""
    found: list[Plan] = []
    for hints in (problem.space, replace(problem.space, per_exit_thresholds=False)):
        for most in range(space.lengths()[-1], problem.space.min_partitions - 1, -1):
            smaller = replace(hints, max_partitions=most)
            if 0 < PlanSpace(smaller, space.model).count() <= _SEED_PLANS:
                solution = solve_exhaustive(replace(problem, space=smaller), space.model, limits=limits.part(0.5))
                found += [point.plan for point in solution.front] or [solution.plan]
                break
    accuracies = space.right[1:] / space.samples
    steps = np.linspace(accuracies.min(), accuracies.max(), _ACCURACIES).tolist()
    for bound in (-math.inf, problem.min_accuracy, *steps):
        if limits.over():
            break
        best, few = (dynamic if space.bits is None else replay).best, limits.part(0.3).within_pieces(_SEED)
        fastest, _ = best(space, need=space.counts(bound), budget=math.inf, fastest=True, limits=few)
        found += [] if fastest is None else [fastest.plan]
    return list(dict.fromkeys(replace(plan, codecs=()) for plan in found))


class _Judge:
    """Computes the objectives and missed bounds of plans, once each, and keeps those that no other beats."""

    def __init__(self, problem: Problem, space: PlanSpace) -> None:
        self._problem, self._space = problem, space
        self._known: dict[_Chain, tuple[Floats, Floats]] = {}
        self._met, self._nearest = NonDominated(), NonDominated()
        _, self._codecs = space.model.tables.hop_s(space.space.codecs)

    def best(self) -> set[tuple[float, ...]]:
        """The values of the best plans so far."""
        return set((self._met.found or self._nearest.found).keys())

    def value(self) -> float | None:
        """The first objective of the best plan so far that meets the bounds, in its unit."""
        sense = self._problem.objectives[0][1]
        return sense * min(goals[0] for goals in self._met.found) if self._met.found else None

    def values(self, chains: Sequence[_Chain]) -> tuple[Floats, Floats]:
        """Objectives [C, D], where less is better, and by how much bounds are missed, [C, B]."""
        new = [c for c in dict.fromkeys(chains) if c not in self._known]
        groups: dict[tuple[int, ...], list[_Chain]] = {}
        for one in new:
            groups.setdefault(tuple(step.tier for step in one), []).append(one)
        for placement, group in groups.items():
            self._compute(placement, group)
        goals, missed = zip(*(self._known[c] for c in chains), strict=True)
        return np.stack(goals), np.stack(missed)

    def _compute(self, placement: tuple[int, ...], group: list[_Chain]) -> None:
        batch, rows = self._batch(placement, group)
        goals = [sense * metric.of(batch) for metric, sense in self._problem.objectives]
        bounds = [c.missed_by(c.metric.of(batch)) for c in self._problem.subject_to]
        missed = np.sum(bounds, axis=0) if bounds else np.zeros(len(batch))
        missed = np.where(np.isposinf(goals).any(axis=0), np.inf, missed)  # what is forbidden is no answer
        met = np.flatnonzero(missed == 0)
        if met.size:
            self._met.add(batch, rows, met, goals, [])
        elif not self._met.found:
            self._nearest.add(batch, rows, np.arange(len(batch)), [missed], goals)
        for i, one in enumerate(group):
            self._known[one] = np.array([g[i] for g in goals]), np.array([b[i] for b in bounds])

    def _batch(self, placement: tuple[int, ...], group: list[_Chain]) -> tuple[Batch, list[tuple[int, ...]]]:
        space = self._space
        cuts = np.array([[step.cut for step in one] for one in group], dtype=np.intp)
        rows = np.array([[step.row for step in one[:-1]] for one in group], dtype=np.intp).reshape(len(group), -1)
        share, correct = self._shares(cuts, rows)
        starts = np.concatenate([np.zeros((len(cuts), 1), dtype=np.intp), cuts[:, :-1]], axis=1)
        senders = (space.model.topology.source, *placement[:-1])
        batch = Batch(
            model=space.model,
            placement=placement,
            cuts=cuts,
            thresholds=np.where(space.used[rows, cuts[:, :-1]], space.theta[rows], 0.0),
            codecs=np.stack([self._codecs[starts[:, k], senders[k], tier] for k, tier in enumerate(placement)], axis=1),
            share=share / space.samples,
            correct=correct / space.samples,
        )
        return batch, [tuple(row) for row in rows.tolist()]

    def _shares(self, cuts: Ints, rows: Ints) -> tuple[Floats, Floats]:
        """Samples [C, L] that leave at each partition, and that leave there and are right."""
        space = self._space
        if space.bits is not None:
            return space.bits.outcomes(cuts, rows)
        stay = np.zeros((len(cuts), cuts.shape[1] + 1))
        stay[:, 0] = space.samples
        for k in range(rows.shape[1]):
            stay[:, k + 1] = np.minimum(stay[:, k], space.stays[rows[:, k], cuts[:, k]])
        share = stay[:, :-1] - stay[:, 1:]
        return share, share * space.right[cuts] / space.samples

    def solution(self, asked: Problem, begin: float, bound: float | None, ended: Ended) -> Solution:
        problem, space = self._problem, self._space
        met = bool(self._met.found)
        found = sorted((self._met if met else self._nearest).found.values())
        front = tuple(
            FrontPoint(
                latency_s=one.latency_s,
                accuracy=one.accuracy,
                plan=one.plan,
                values={m.name: sense * goal for (m, sense), goal in zip(problem.objectives, one.goals, strict=True)},
            )
            for one in (found if met else ())
        )
        estimate = space.model.estimate(space.model.complete(found[0].plan, problem.space.codecs))
        values, _ = problem.judge(estimate.plan, space.model)
        return Solution(
            problem=asked,
            status="feasible" if met else "unknown",
            estimate=estimate,
            front=front,
            front_complete=False,
            stats=SearchStats(
                plans=len(self._known),
                seconds=time.perf_counter() - begin,
                solver="NSGA-II, no certificate",
                ended=ended,
            ),
            bound=bound,
            gap=gap(values[problem.objectives[0][0].name], bound) if met else None,
            values=values,
        )


class _Population:
    """The plans that breed; parents win a tournament of two by what they miss, then rank, then crowding distance."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self.members: list[_Chain] = []
        self._goals, self._missed = np.empty((0, 0)), np.empty((0, 0))
        self._order: Ints = np.empty(0, dtype=np.intp)
        self._best = 0

    def add(self, chains: list[_Chain], goals: Floats, missed: Floats) -> None:
        """Let the best of the members and of new plans survive."""
        if self.members:
            known = set(self.members)
            new = [i for i, one in enumerate(chains) if one not in known]
            chains = self.members + [chains[i] for i in new]
            goals = np.concatenate([self._goals, goals[new]])
            missed = np.concatenate([self._missed, missed[new]])
        kept, rank, crowding = _survivors(goals, missed.sum(axis=1), _POPULATION, self._rng)
        self.members = [chains[i] for i in kept]
        self._goals, self._missed = goals[kept], missed[kept]
        total = self._missed.sum(axis=1)
        self._order = np.empty(len(kept), dtype=np.intp)
        self._order[np.lexsort((-crowding, rank, total))] = np.arange(len(kept))
        self._best = int(((total == total.min()) & (rank == 0)).sum())

    def leaders(self) -> list[_Chain]:
        """The plans that no other member beats, the loneliest first; where none meets the bounds, the nearest."""
        return [self.members[i] for i in np.argsort(self._order)[: self._best]]

    def parents(self) -> tuple[_Chain, _Chain]:
        pairs = self._rng.integers(len(self.members), size=(2, 2))
        one, two = (int(pair[np.argmin(self._order[pair])]) for pair in pairs)
        return self.members[one], self.members[two]


def _survivors(goals: Floats, missed: Floats, most: int, rng: np.random.Generator) -> tuple[Ints, Ints, Floats]:
    """Return which at most ``most`` of the plans survive, and their ranks and crowding distances.

    Of plans of one rank that do not all survive, the most crowded die. Plans that miss bounds have neither rank nor
    distance (0).
    """
    met, others = np.flatnonzero(missed == 0), np.flatnonzero(missed != 0)
    kept: list[Ints] = []
    ranks: list[Ints] = []
    crowding: list[Floats] = []
    free = most
    for rank, front in enumerate(_fronts(goals[met], most)):
        distance = _crowding(goals[met[front]])
        some = np.arange(len(front))
        if len(front) > free:
            shuffled = rng.permutation(len(front))  # equals survive by chance
            some = np.flip(shuffled[np.argsort(distance[shuffled])])[:free]
        kept.append(met[front[some]])
        ranks.append(np.full(len(some), rank))
        crowding.append(distance[some])
        free -= len(some)
    kept.append(others[np.argsort(missed[others])][:free])
    none = np.zeros(len(kept[-1]))
    return np.concatenate(kept), np.concatenate([*ranks, none.astype(np.intp)]), np.concatenate([*crowding, none])


def _fronts(goals: Floats, most: int) -> list[Ints]:
    """Return the points [C, D] that no other dominates, then those that only these dominate, until ``most`` are in."""
    no_worse: NDArray[np.bool_] = np.all(goals[:, None] <= goals[None], axis=2)
    dominates: NDArray[np.bool_] = no_worse & ~no_worse.T
    above = dominates.sum(axis=0)  # points that are not in a front yet and dominate
    fronts: list[Ints] = []
    while sum(map(len, fronts)) < min(most, len(goals)):
        fronts.append(np.flatnonzero(above == 0))
        above -= dominates[fronts[-1]].sum(axis=0)
        above[fronts[-1]] = -1
    return fronts


def _crowding(goals: Floats) -> Floats:
    """Return how far each point [C, D] is from its neighbors along each axis, as a mean of shares of the axis.

    The ends of an axis are infinitely far from others; an axis on which all are equal does not count.
    """
    count, axes = goals.shape
    if count <= 2:
        return np.full(count, np.inf)
    order = np.argsort(goals, axis=0, kind="stable")
    along = np.take_along_axis(goals, order, axis=0)
    ends = np.full((1, axes), np.inf)
    with np.errstate(invalid="ignore", divide="ignore"):
        width = along[-1] - along[0]
        gaps = np.diff(np.concatenate([-ends, along, ends]), axis=0) / np.where(width == 0, np.nan, width)
    gaps[np.isnan(gaps)] = 0.0
    distance = np.empty_like(goals)
    np.put_along_axis(distance, order, gaps[:-1] + gaps[1:], axis=0)
    mean: Floats = distance.sum(axis=1) / axes
    return mean


class _Breeder:
    """Makes plans of plans, all of them within the hints."""

    def __init__(self, space: PlanSpace, rng: np.random.Generator) -> None:
        self._space, self._rng = space, rng
        hints = space.space
        self._tiers = sorted(range(space.tiers) if hints.tiers is None else set(hints.tiers))
        self._inner = np.flatnonzero(space.inner).tolist()
        self._last = np.flatnonzero(space.last).tolist()
        self._cuts = sorted({*self._inner, *self._last})
        self._rows = space.theta.size

    def chain(self, plan: Plan) -> _Chain:
        """A plan of the space as a chain."""
        space = self._space
        fits = [
            {row for row in range(self._rows) if space.threshold(row, cut) == threshold}
            for cut, threshold in zip(plan.cuts[:-1], plan.thresholds, strict=True)
        ]
        if space.space.per_exit_thresholds:
            rows = [min(one) for one in fits]
        else:
            rows = [min(set.intersection(*fits))] * len(fits) if fits else []
        return tuple(_Step(*step) for step in zip(plan.cuts, plan.placement, [*rows, 0], strict=True))

    def random(self) -> _Chain | None:
        """A random plan; None where chance finds none."""
        for _ in range(20):
            length = min(int(self._rng.choice(list(self._space.lengths()))), len(self._cuts))
            cuts = sorted(self._rng.choice(self._cuts, size=length, replace=False).tolist())
            found = self._repaired(self._step(cut) for cut in cuts)
            if found is not None:
                return found
        return None

    def child(self, one: _Chain, other: _Chain) -> _Chain:
        """A plan of both, or of the first alone, with mutations; the first where that is not to be had."""
        for _ in range(10):
            steps = list(one)
            if self._rng.random() < 0.6:
                at = int(self._rng.integers(self._space.blocks))
                steps = [*(s for s in one if s.cut <= at), *(s for s in other if s.cut > at)]
            for _ in range(int(self._rng.poisson(1.2))):
                steps = self._mutated(steps)
            found = self._repaired(steps)
            if found is not None and found != one:
                return found
        return one

    def neighbors(self, one: _Chain) -> Iterator[_Chain]:
        """The plans that differ in a step's cut, tier or threshold, in a stretch's tier, or by a step more or less."""
        tried: list[Iterable[_Step]] = []
        for step in one:
            others = [s for s in one if s is not step]
            tried.append(others)
            tried += [[*others, replace(step, cut=cut)] for cut in self._cuts]
            for tier in self._tiers:
                tried.append([*others, replace(step, tier=tier)])
                tried.append([replace(s, tier=tier) if s.tier == step.tier else s for s in one])
        if self._space.space.per_exit_thresholds:
            for step, row in product(one, range(self._rows)):
                tried.append([*(s for s in one if s is not step), replace(step, row=row)])
        else:
            tried += [[replace(s, row=row) for s in one] for row in range(self._rows)]
        for cut in sorted(set(self._cuts) - {step.cut for step in one}):
            beside = {s.tier for s in one if s.cut > cut} or {one[-1].tier}
            rows = range(self._rows) if self._space.space.per_exit_thresholds else [one[0].row]
            tried += [[*one, _Step(cut, tier, row)] for tier in sorted(beside) for row in rows]
        return (found for found in map(self._repaired, tried) if found is not None)

    def _step(self, cut: int) -> _Step:
        return _Step(cut, int(self._rng.choice(self._tiers)), int(self._rng.integers(self._rows)))

    def _mutated(self, steps: list[_Step]) -> list[_Step]:
        """A chain with one change: a cut moved, a threshold, a tier or a tier's whole stretch, a step more or less."""
        rng, what = self._rng, int(self._rng.integers(6))
        if not steps or what == 0:
            return sorted([*steps, self._step(int(rng.choice(self._cuts)))])
        at = int(rng.integers(len(steps)))
        step = steps[at]
        if what == 1:
            return [s for s in steps if s is not step]
        if what == 2:
            by = int(rng.choice([-3, -2, -1, 1, 2, 3]))
            near = min(max(self._cuts.index(step.cut) + by, 0), len(self._cuts) - 1) if step.cut in self._cuts else 0
            steps[at] = replace(step, cut=self._cuts[near])
        elif what == 3:
            near_row = step.row + int(rng.choice([-1, 1])) if rng.random() < 0.7 else int(rng.integers(self._rows))
            row = min(max(near_row, 0), self._rows - 1)
            everywhere = not self._space.space.per_exit_thresholds
            steps = [replace(s, row=row) if everywhere or s is step else s for s in steps]
        elif what == 4:
            steps[at] = replace(step, tier=int(rng.choice(self._tiers)))
        else:
            tier = int(rng.choice(self._tiers))
            steps = [replace(s, tier=tier) if s.tier == step.tier else s for s in steps]
        return steps

    def _repaired(self, steps: Iterable[_Step]) -> _Chain | None:
        """The chain as a plan of the space: what breaks a hint is moved, placed elsewhere or left out."""
        lengths, per_exit = self._space.lengths(), self._space.space.per_exit_thresholds
        wanted = [*{step.cut: step for step in sorted(steps)}.values()]
        wanted = wanted if per_exit else [replace(step, row=wanted[0].row) for step in wanted]
        for _ in range(8):
            kept = self._walked(wanted)
            if kept is None:
                return None
            if len(kept) in lengths:
                return self._canonical(kept)
            if len(kept) > lengths[-1]:
                del kept[int(self._rng.integers(len(kept) - 1))]
            else:
                free = sorted(set(self._inner) - {step.cut for step in kept})
                if not free:
                    return None
                cut = int(self._rng.choice(free))
                after = next((step for step in kept if step.cut > cut), kept[-1])
                new = replace(self._step(cut), tier=after.tier)
                kept = sorted([*kept, new if per_exit or len(kept) == 1 else replace(new, row=kept[0].row)])
            wanted = kept
        return None

    def _walked(self, wanted: list[_Step]) -> list[_Step] | None:
        """The steps from first to last, each on its tier if it can be, else on another, else left out."""
        kept: list[_Step] = []
        for step in wanted[:-1]:
            if self._space.inner[step.cut]:
                tier = self._tier(kept, step)
                kept += [] if tier is None else [replace(step, tier=tier)]
        if not wanted:
            return None
        end = min(self._last, key=lambda cut: abs(cut - wanted[-1].cut))
        while kept and kept[-1].cut >= end:
            kept.pop()
        while (tier := self._tier(kept, replace(wanted[-1], cut=end))) is None:
            if not kept:
                return None
            kept.pop()
        return [*kept, _Step(end, tier, 0)]

    def _tier(self, kept: list[_Step], step: _Step) -> int | None:
        """The tier for the next step, its own one first; None where there is none."""
        for tier in (step.tier, *self._rng.permutation(self._tiers).tolist()):
            if self._may_follow(kept, tier, step.cut):
                return int(tier)
        return None

    def _may_follow(self, kept: list[_Step], tier: int, cut: int) -> bool:
        space, hints = self._space, self._space.space
        if tier not in self._tiers:
            return False
        start, sender = (kept[-1].cut, kept[-1].tier) if kept else (0, space.model.topology.source)
        if kept and tier == sender:
            asked = space.used[kept[-1].row, kept[-1].cut]
            if not asked or sum(step.tier == tier for step in kept) >= hints.exits_per_tier:
                return False
        elif any(step.tier == tier for step in kept) or (kept and hints.tier_order == "increasing" and tier < sender):
            return False
        woken = int(not kept or tier != sender)
        if not np.isfinite(space.hop[start, sender, tier] + space.compute[woken, 1, tier, start, cut]):
            return False
        cuts, placement = (*(step.cut for step in kept), cut), (*(step.tier for step in kept), tier)
        return space.held is None or bool(space.fits(np.array([cuts]), placement)[0])

    def _canonical(self, kept: list[_Step]) -> _Chain:
        """Of the rows that make the same plan, one: where the exit is not used, the first such row."""
        if not self._space.space.per_exit_thresholds:
            row = kept[0].row if len(kept) > 1 else 0
            return (*(replace(step, row=row) for step in kept[:-1]), kept[-1])
        unused = self._space.first_unused
        return (
            *(s if self._space.used[s.row, s.cut] else replace(s, row=int(unused[s.cut])) for s in kept[:-1]),
            kept[-1],
        )
