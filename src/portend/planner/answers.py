"""What a search by cost and accuracy found, as an answer.

Axes: P plans, L partitions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from portend.planner.limits import Ended, gap
from portend.planner.metrics import ACCURACY_SLACK, Batch, accuracy, latency
from portend.planner.problem import FrontPoint, Problem, SearchStats, Solution, Status, affordable, choose
from portend.planner.space import PlanSpace
from portend.values.plan import Plan, PlanBatch

__all__ = ["by_front", "closer", "points", "resolved", "solution", "wanted"]


def points(space: PlanSpace, costs: ArrayLike, right: ArrayLike, plans: Sequence[Plan]) -> tuple[FrontPoint, ...]:
    """Return plans of these costs and right answers, in the counts of ``PlanSpace``, as points of a front."""
    cost, share = space.value(costs).tolist(), space.accuracy(right).tolist()
    if space.metric == latency:
        return tuple(FrontPoint(latency_s=s, accuracy=a, plan=p) for s, a, p in zip(cost, share, plans, strict=True))
    name, plans = space.metric.name, [space.complete(plan) for plan in plans]
    return tuple(
        FrontPoint(latency_s=s, accuracy=a, plan=p, values={name: c})
        for s, c, a, p in zip(_mean_s(space, plans).tolist(), cost, share, plans, strict=True)
    )


def _mean_s(space: PlanSpace, plans: Sequence[Plan]) -> NDArray[np.float64]:
    """Mean latency of complete plans in seconds, [P]."""
    mean_s = np.empty(len(plans))
    codecs = {name: k for k, name in enumerate(space.model.tables.codecs)} | {None: -1}
    lengths = np.array([len(plan) for plan in plans])
    for length in sorted(set(map(len, plans))):
        index = np.flatnonzero(lengths == length)
        chosen = [plans[int(i)] for i in index]
        batch = PlanBatch(
            cuts=np.array([plan.cuts for plan in chosen], dtype=np.intp),
            placement=np.array([plan.placement for plan in chosen], dtype=np.intp),
            thresholds=np.array([plan.thresholds for plan in chosen], dtype=np.float64).reshape(
                len(chosen), length - 1
            ),
            codecs=np.array([[codecs[name] for name in plan.codecs] for plan in chosen], dtype=np.intp),
        )
        mean_s[index] = space.model.estimate_batch(batch).mean_s
    return mean_s


Space = TypeVar("Space", bound=PlanSpace)


def resolved(
    space: Space, find: Callable[[Space], tuple[tuple[FrontPoint, ...], bool]]
) -> tuple[tuple[FrontPoint, ...], bool]:
    """Return the front that ``find`` finds in a space, with every cost resolved, and whether it is whole.

    The quantum follows the dearest steps. Where some plans of the front cost next to nothing against these, the front
    up to their cost is found again, in finer quanta.
    """
    front, whole = find(space)
    cheap = sum(not space.resolves(point.cost(space.metric)) for point in front)
    finer = closer(space, [point.plan for point in front[:cheap]]) if whole else None
    if finer is None:
        return front, whole
    below, whole = resolved(finer, find)
    if not whole:
        return front, False
    return (*below, *(point for point in front[cheap:] if not below or point.accuracy > below[-1].accuracy)), True


def closer(space: Space, plans: Sequence[Plan]) -> Space | None:
    """Return the space for plans as cheap as these, in finer quanta; None where it has its finest, or all are free."""
    costs = [float(space.metric.of(Batch.of(space.complete(plan), space.model))[0]) for plan in plans]
    most = max(costs, default=0.0)
    if not most:
        return None
    finer = space.within(most)
    return finer if finer.quantum < space.quantum else None


def by_front(
    asked: Problem,
    space: PlanSpace,
    front: tuple[FrontPoint, ...],
    *,
    begin: float,
    solver: str,
    plans: int,
    ended: Ended = "",
    bound: float | None = None,
) -> Solution:
    """Return what the front of cost and accuracy, by cost, says to a problem: the whole one unless a limit ended it.

    ``bound``: of the objective, where a limit ended the search.

    Raises:
        SearchError: the front is empty, so no plan satisfies the hints.
    """
    if not front:
        raise space.empty(ended)
    problem = asked.promised(space.model.samples)
    chosen, met = choose(problem, front)
    proven: tuple[Status, Status] = ("feasible", "unknown") if ended else ("optimal", "infeasible")
    return solution(
        asked, space, chosen.plan, status=proven[not met], front=wanted(problem, front), front_complete=not ended,
        stats=SearchStats(plans=plans, seconds=time.perf_counter() - begin, solver=solver, ended=ended), bound=bound,
    )  # fmt: skip


def wanted(problem: Problem, front: tuple[FrontPoint, ...]) -> tuple[FrontPoint, ...]:
    """Return what a problem asks to see of the front of its cost and accuracy."""
    cost, enough = problem.cost, problem.min_accuracy - ACCURACY_SLACK
    if len(problem.objectives) == 1 or cost is None:
        return front
    return tuple(
        replace(point, values={cost.name: point.cost(cost), accuracy.name: point.accuracy})
        for point in affordable(problem, front)
        if point.accuracy >= enough
    )


def solution(
    asked: Problem,
    space: PlanSpace,
    plan: Plan,
    *,
    status: Status,
    front: tuple[FrontPoint, ...],
    stats: SearchStats,
    bound: float | None = None,
    front_complete: bool = True,
) -> Solution:
    """Return a plan as the answer to what was asked; ``bound``: of the objective, its own value where it is optimal."""
    estimate = space.model.estimate(space.complete(plan))
    values = {} if space.metric == latency else asked.judge(estimate.plan, space.model)[0]
    known = {latency.name: estimate.mean_s, accuracy.name: estimate.accuracy, **values}
    value = known[asked.objectives[0][0].name]
    bound = value if status == "optimal" else None if status == "infeasible" else bound
    return Solution(
        problem=asked,
        status=status,
        estimate=estimate,
        front=front,
        stats=stats,
        bound=bound,
        gap=gap(value, bound) if status in ("optimal", "feasible") else None,
        front_complete=front_complete,
        values=values,
    )
