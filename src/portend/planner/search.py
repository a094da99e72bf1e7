"""The search for a plan: which algorithm answers a problem, and what its answer says.

Exact: dynamic programming where prefixes of plans have states (marginal estimator), a tree search where samples are
replayed, every plan for metrics that are no sums. Beyond what can be enumerated these are searched without a
certificate.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Final

from portend.perfmodel.model import PerformanceModel
from portend.planner import dynamic, exact, replay
from portend.planner.answers import by_front, points, resolved, solution, wanted
from portend.planner.evolutionary import solve_evolutionary
from portend.planner.exhaustive import solve_exhaustive
from portend.planner.goals import Found
from portend.planner.limits import Limits
from portend.planner.problem import FrontPoint, Problem, SearchStats, Solution, Status
from portend.planner.promise import keep_promise
from portend.planner.space import PlanSpace
from portend.values.exits import SampleExits

__all__ = ["FRONT_LIMIT", "METRIC_LIMIT", "search"]

FRONT_LIMIT: Final = 20_000_000
"""Plans up to which the whole front is searched, which holds the answer to every problem."""
_FOR_THE_FRONT: Final = 0.5
"""Share of the time after which a search for the whole front gives way to one for the answer alone."""
METRIC_LIMIT: Final = 20_000_000
"""Plans up to which the metrics of every plan are computed, where a problem has no cost."""


def search(problem: Problem, model: PerformanceModel, *, limits: Limits | None = None) -> Solution:
    """Return the best plan of ``problem`` on ``model``, proven unless ``limits`` are met before.

    Where the space is not huge, or the front is asked for, the answer carries the whole Pareto front of cost and
    accuracy (``Problem.cost``). Where a limit is met, it has the best plan so far, and a true bound.

    Raises:
        SearchError: the space holds no plan.
        InvalidValue, MismatchError: a hint names a cut, branch, tier or codec that does not exist.
    """
    limits = limits or Limits()
    if problem.robust is not None and problem.min_accuracy > 0 and isinstance(model.profile.exits, SampleExits):
        return _promised(problem, model, limits)
    cost = problem.cost
    if cost is None:
        if PlanSpace(problem.space, model).count() > METRIC_LIMIT:
            return solve_evolutionary(problem, model, limits=limits)
        return solve_exhaustive(problem, model, limits=limits)
    begin = time.perf_counter()
    space = PlanSpace(problem.space, model, cost)
    plans = space.count()
    solver = "dynamic programming" if space.bits is None else "tree search"
    if not plans:
        raise space.empty()
    front: tuple[FrontPoint, ...] = ()
    if plans <= FRONT_LIMIT or len(problem.objectives) > 1:
        some = limits.part(_FOR_THE_FRONT)
        front, whole = resolved(space, lambda space: _front(space, some))
        if whole:
            return by_front(problem, space, front, begin=begin, solver=solver, plans=plans)
    asked = problem.promised(model.samples)
    best, status, bound = _one(asked, space, limits)
    if best is None:
        return by_front(
            problem, space, front, begin=begin, solver=solver, plans=plans, ended=limits.reason or "time", bound=bound
        )
    ended = "" if status in ("optimal", "infeasible") else limits.reason or "time"
    return solution(
        problem, space, best.plan, status=status, front=wanted(asked, front), bound=bound,
        front_complete=plans > FRONT_LIMIT and len(problem.objectives) == 1,
        stats=SearchStats(plans=plans, seconds=time.perf_counter() - begin, solver=solver, ended=ended),
    )  # fmt: skip


def _promised(problem: Problem, model: PerformanceModel, limits: Limits) -> Solution:
    """The answer to a problem with a promise; each of its searches gets at most half of the time that is left."""
    found = keep_promise(
        problem, model, lambda asked, on, most: search(asked, on, limits=limits.part(0.5).within_pieces(most))
    )
    if found.status == "infeasible" and limits.over():
        found = replace(found, status="unknown")  # which plans are tested, a limit decided
    return found


def _front(space: PlanSpace, limits: Limits) -> tuple[tuple[FrontPoint, ...], bool]:
    found, whole = dynamic.front(space, limits) if space.bits is None else replay.front(space, limits)
    every: list[Found] = list(found)
    return points(space, [f.latency for f in every], [f.right for f in every], [f.plan for f in every]), whole


def _one(problem: Problem, space: PlanSpace, limits: Limits) -> tuple[Found | None, Status, float | None]:
    """The answer without the front, and a bound on the objective; if no plan meets the constraints, the nearest."""
    need, most = space.counts(problem.min_accuracy), problem.max_cost
    found, bound, proven = exact.best(space, need, most, fastest=problem.minimize is not None, limits=limits)
    if found is not None:
        return found, "optimal" if proven else "feasible", bound
    nearest = None
    if problem.minimize is None or math.isfinite(most):  # else that is what was searched
        nearest, _, _ = exact.best(space, need, math.inf, fastest=True, limits=limits)
    if nearest is None:
        nearest, _, _ = exact.best(space, -math.inf, math.inf, fastest=False, limits=limits)
    if nearest is None and not limits.over():
        raise space.empty()
    return nearest, "infeasible" if proven else "unknown", None if proven else bound
