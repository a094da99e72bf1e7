"""Which search answers a problem: every one of them is exact."""

from __future__ import annotations

from portend.perfmodel.model import PerformanceModel
from portend.planner.dynamic import solve_dynamic
from portend.planner.exhaustive import solve_exhaustive
from portend.planner.problem import Problem, Solution

__all__ = ["search"]


def search(problem: Problem, model: PerformanceModel) -> Solution:
    """Return the proven best plan of ``problem`` on ``model``: dynamic programming where plans have states.

    Raises:
        SearchError: the space is empty, or too large to cover by replaying samples.
    """
    return solve_dynamic(problem, model) if model.estimator == "marginal" else solve_exhaustive(problem, model)
