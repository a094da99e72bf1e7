"""The best plan by one additive metric and accuracy, by the exact search that fits; and the bound that it gives others.

The marginal estimator's prefixes of plans have states: dynamic programming. Where samples are replayed: a tree search.
"""

from __future__ import annotations

import math

from portend.errors import MismatchError
from portend.perfmodel.model import PerformanceModel
from portend.planner import dynamic, replay
from portend.planner.answers import closer
from portend.planner.goals import Found
from portend.planner.limits import Limits
from portend.planner.metrics import accuracy, latency
from portend.planner.problem import Problem
from portend.planner.space import PlanSpace

__all__ = ["best", "bound"]


def bound(problem: Problem, model: PerformanceModel, limits: Limits) -> float | None:
    """Return what no plan beats in a problem's first objective, in its unit; None where nothing is known.

    That of the problem without its bounds on other metrics than this one and accuracy. An objective that is no sum,
    such as a quantile, has none. Whatever the limits, a few plans are looked at.
    """
    goal, sense = problem.objectives[0]
    sums = [c.metric for c in problem.subject_to if c.sense == "<=" and c.metric.additive is not None]
    cost = goal if goal != accuracy else sums[0] if sums else latency
    if cost.additive is None or sense != (-1 if goal == accuracy else 1):
        return None
    need = max((c.bound for c in problem.subject_to if (c.metric, c.sense) == (accuracy, ">=")), default=-math.inf)
    most = min((c.bound for c in problem.subject_to if (c.metric, c.sense) == (cost, "<=")), default=math.inf)
    try:
        space = PlanSpace(problem.space, model, cost)
        _, found, _ = best(space, space.counts(need), most, fastest=goal != accuracy, limits=limits)
    except (MismatchError, MemoryError):  # the metric is not known on some tier, or there is no room to look
        return None
    return found if math.isfinite(found) else None


def best(
    space: PlanSpace, need: float, most: float, *, fastest: bool, limits: Limits
) -> tuple[Found | None, float, bool]:
    """The best plan that costs at most ``most``, a bound on the objective, and whether no better plan is proven.

    Where the plan, or what it may cost, is next to nothing against the dearest steps, it is searched in finer quanta.
    """
    if most > 0 and not space.resolves(most):
        space = space.within(most)
    found, bound = _best_in(space, need, most, fastest=fastest, limits=limits)
    proven = math.isinf(bound) if found is None else bound == (found.latency if fastest else found.right)
    while found is not None and proven and not space.resolves(float(space.value(found.latency))):
        finer = closer(space, [found.plan])
        if finer is None:
            break
        space, need = finer, need if fastest else found.right
        better, least = _best_in(space, need, most, fastest=True, limits=limits)
        found = better or found
        if fastest and better is not None:
            bound, proven = least, least == better.latency
    return found, float(space.value(bound) if fastest else space.accuracy(bound)), proven


def _best_in(
    space: PlanSpace, need: float, most: float, *, fastest: bool, limits: Limits
) -> tuple[Found | None, float]:
    limits = limits.told_in(lambda counts: float(space.value(counts) if fastest else space.accuracy(counts)))
    search = dynamic.best if space.bits is None else replay.best
    return search(space, need=need, budget=space.quanta(most), fastest=fastest, limits=limits)
