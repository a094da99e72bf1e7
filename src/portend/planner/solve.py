"""The planner's front door."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from portend.perfmodel.model import PerformanceModel
from portend.planner.baselines import judged, solve_baselines
from portend.planner.limits import Limits, Progress
from portend.planner.problem import Problem, Solution
from portend.planner.promise import HALVINGS
from portend.planner.search import search
from portend.planner.why import explain

__all__ = ["solve"]

_FOR_THE_ANSWER: Final = 0.7
"""Share of the time for the answer; the rest is for what it is compared with."""

NEW_SAMPLES: Final = 1000
"""Pieces of work that it may take to say how the plan does on new samples, if nothing else is asked: about two seconds
at most, but counted, so that an answer says the same on a busy machine."""

UNPROVEN_S: Final = 10.0
"""Seconds for what a plan without proof is compared with; where its own search took longer, as long as that."""


def solve(
    problem: Problem,
    model: PerformanceModel,
    *,
    baselines: bool = True,
    seconds: float = math.inf,
    memory: float | None = None,
    progress: Callable[[Progress], None] | None = None,
    limits: Limits | None = None,
    new_samples: bool | None = None,
) -> Solution:
    """Return the best plan of ``problem`` on ``model``, with the baselines it must beat and why it is the answer.

    The plan is proven to be the best, or no plan meets the constraints, unless a limit is met before: then
    ``Solution.status``, ``bound`` and ``gap`` say what is known. The first Ctrl-C meanwhile is such a limit.

    Args:
        seconds: for all of it, the baselines included; those that there is no time for are left out.
        memory: bytes beyond what the process has now; default: half of what is free.
        progress: called about five times a second with the best value so far and its bound.
        limits: in place of the three.
        new_samples: whether to say what accuracy the plan has on new samples (``Solution.new_samples``), for which the
            choice is made again several times; None: of the plan alone, where that takes about two seconds at most,
            by the pieces of work that the search took.

    Raises:
        SearchError: the space is empty, or too large to compute metrics of every plan, or a limit was met before
            any plan was found.

    Example:
        >>> problem = pt.Problem(minimize=pt.latency, subject_to=(pt.accuracy >= 0.9,))
        >>> print(pt.solve(problem, pt.PerformanceModel(profile, topology)))
    """
    limits = limits or Limits(seconds=seconds, memory=memory, progress=progress)
    with limits.interruptible():
        before = limits.pieces
        solution = search(problem, model, limits=limits.part(_FOR_THE_ANSWER) if baselines else limits)
        again = HALVINGS * (limits.pieces - before)
        solution = replace(solution, tiers=tuple(tier.name for tier in model.topology.tiers))
        criterion = model.profile.exits.criterion
        if any(point.plan.criterion != criterion for point in solution.front[:1]):
            front = tuple(replace(point, plan=replace(point.plan, criterion=criterion)) for point in solution.front)
            solution = replace(solution, front=front)
        if problem.robust is None and (again <= NEW_SAMPLES if new_samples is None else new_samples):
            solution = replace(solution, new_samples=judged(solution, model, limits.silent()))
        if not baselines or limits.over():
            return solution
        limits = limits.silent()
        if solution.status in ("feasible", "unknown"):
            limits = limits.within(max(solution.stats.seconds, UNPROVEN_S))
        why = explain(solution, model, limits=limits.part(0.5))
        judge = problem.robust is None and bool(new_samples)
        rivals = solve_baselines(problem, model, limits=limits, new_samples=judge)
        return replace(solution, baselines=rivals, why=why)
