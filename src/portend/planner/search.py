"""The search for a plan: which algorithm answers a problem, and what its answer says.

Exact: dynamic programming where prefixes of plans have states (marginal estimator), a tree search where samples are
replayed, every plan for metrics that are no sums. Beyond what can be enumerated these are searched without a
certificate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Final, Literal

from portend.perfmodel.model import PerformanceModel
from portend.planner import dynamic, replay
from portend.planner.answers import by_front, closer, points, resolved, solution
from portend.planner.evolutionary import solve_evolutionary
from portend.planner.exhaustive import solve_exhaustive
from portend.planner.goals import Found
from portend.planner.problem import FrontPoint, Problem, SearchStats, Solution
from portend.planner.promise import keep_promise
from portend.planner.space import PlanSpace
from portend.profile import SampleExits

__all__ = ["FRONT_LIMIT", "METRIC_LIMIT", "search"]

FRONT_LIMIT: Final = 20_000_000
"""Plans up to which the whole front is searched, which holds the answer to every problem."""
METRIC_LIMIT: Final = 20_000_000
"""Plans up to which the metrics of every plan are computed, where a problem has no cost."""


def search(problem: Problem, model: PerformanceModel, *, seconds: float = math.inf) -> Solution:
    """Return the best plan of ``problem`` on ``model``, proven unless ``seconds`` do not suffice.

    Where the space is not huge, or the front is asked for, the answer carries the whole Pareto front of cost and
    accuracy (``Problem.cost``). Only the search for the cheapest plan by replaying samples can be cut short; its
    answer then states the gap to what a better plan could reach.

    Raises:
        SearchError: the space holds no plan.
        InvalidValue, MismatchError: a hint names a cut, branch, tier or codec that does not exist.
    """
    if problem.robust is not None and problem.min_accuracy > 0 and isinstance(model.profile.exits, SampleExits):
        return keep_promise(problem, model, partial(search, seconds=seconds))
    cost = problem.cost
    if cost is None:
        if PlanSpace(problem.space, model).count() > METRIC_LIMIT:
            return solve_evolutionary(problem, model, seconds=seconds)
        return solve_exhaustive(problem, model)
    begin = time.perf_counter()
    space = PlanSpace(problem.space, model, cost)
    plans, solver = space.count(), "dynamic programming" if space.bits is None else "tree search"
    if not plans:
        raise space.empty()
    if plans <= FRONT_LIMIT or len(problem.objectives) > 1:
        return by_front(problem, space, resolved(space, _front), begin=begin, solver=solver, plans=plans)
    best, status, gap = _one(problem.promised(model.samples), space, seconds)
    stats = SearchStats(plans=plans, seconds=time.perf_counter() - begin, solver=solver)
    return solution(problem, space, best.plan, status=status, front=(), stats=stats, gap=gap)


def _front(space: PlanSpace) -> tuple[FrontPoint, ...]:
    every: Sequence[Found] = list(dynamic.front(space) if space.bits is None else replay.front(space))
    return points(space, [f.latency for f in every], [f.right for f in every], [f.plan for f in every])


def _one(
    problem: Problem, space: PlanSpace, seconds: float
) -> tuple[Found, Literal["optimal", "feasible", "infeasible"], float]:
    """The answer without the front; where no plan meets the constraints, the plan that comes nearest."""
    need, most = space.counts(problem.min_accuracy), problem.max_cost
    found, gap = _best(space, need, most, fastest=problem.minimize is not None, seconds=seconds)
    if found is not None:
        return found, "feasible" if gap else "optimal", gap
    nearest, gap = _best(space, need, math.inf, fastest=True, seconds=seconds)
    if nearest is None:
        nearest, gap = _best(space, -math.inf, math.inf, fastest=False, seconds=seconds)
    if nearest is None:
        raise space.empty()
    return nearest, "infeasible", gap


def _best(space: PlanSpace, need: float, most: float, *, fastest: bool, seconds: float) -> tuple[Found | None, float]:
    """The best plan that costs at most ``most``, and the share of its cost that a better one might save.

    Where the plan, or what it may cost, is next to nothing against the dearest steps, it is searched in finer quanta.
    """
    if most > 0 and not space.resolves(most):
        space = space.within(most)
    found, gap = _best_in(space, need, space.quanta(most), fastest=fastest, seconds=seconds)
    while found is not None and not space.resolves(float(space.value(found.latency))):
        finer = closer(space, [found.plan])
        if finer is None:
            break
        space, need = finer, need if fastest else found.right
        better, gap = _best_in(space, need, space.quanta(most), fastest=True, seconds=seconds)
        found = better or found
    return found, gap


def _best_in(
    space: PlanSpace, need: float, budget: float, *, fastest: bool, seconds: float
) -> tuple[Found | None, float]:
    if space.bits is None:
        return dynamic.best(space, need=need, budget=budget, fastest=fastest), 0.0
    found, bound = replay.best(space, need=need, budget=budget, fastest=fastest, seconds=seconds)
    if found is None or not math.isfinite(bound):
        return found, 0.0
    return found, 1 - max(bound, 0.0) / found.latency if found.latency else 0.0
