"""The planner's front door."""

from __future__ import annotations

from dataclasses import replace

from portend.perfmodel.model import PerformanceModel
from portend.planner.baselines import solve_baselines
from portend.planner.problem import Problem, Solution
from portend.planner.search import search

__all__ = ["solve"]


def solve(problem: Problem, model: PerformanceModel, *, baselines: bool = True) -> Solution:
    """Return the proven best plan of ``problem`` on ``model``, with the baselines it must beat.

    An infeasible problem is an answer: ``status`` says so and the plan that comes nearest is given.

    Raises:
        SearchError: the space is empty or too large to cover.
    """
    solution = search(problem, model)
    return replace(solution, baselines=solve_baselines(problem, model)) if baselines else solution
