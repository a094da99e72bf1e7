"""The planner's front door."""

from __future__ import annotations

import math
from dataclasses import replace

from portend.perfmodel.model import PerformanceModel
from portend.planner.baselines import solve_baselines
from portend.planner.problem import Problem, Solution
from portend.planner.search import search
from portend.planner.why import explain

__all__ = ["solve"]


def solve(problem: Problem, model: PerformanceModel, *, baselines: bool = True, seconds: float = math.inf) -> Solution:
    """Return the best plan of ``problem`` on ``model``, with the baselines it must beat and why it is the answer.

    The plan is proven to be the best, unless ``seconds``, the limit of each search, do not suffice: then ``status`` is
    ``feasible`` and ``gap`` states what a better plan might save. An infeasible problem is an answer, too: the
    plan that comes nearest is given.

    Raises:
        SearchError: the space is empty, or too large to compute metrics of every plan.
    """
    solution = search(problem, model, seconds=seconds)
    criterion = model.profile.exits.criterion
    if any(point.plan.criterion != criterion for point in solution.front[:1]):
        front = tuple(replace(point, plan=replace(point.plan, criterion=criterion)) for point in solution.front)
        solution = replace(solution, front=front)
    if not baselines:
        return solution
    why = explain(solution, model, seconds=seconds)
    return replace(solution, baselines=solve_baselines(problem, model, seconds=seconds), why=why)
