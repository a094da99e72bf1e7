"""Plans for when a tier is away: the best one without each, and without all at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from portend.errors import SearchError
from portend.perfmodel.model import PerformanceModel
from portend.planner.limits import Limits
from portend.planner.problem import Solution
from portend.planner.search import search

__all__ = ["Fallback", "find_fallbacks"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fallback:
    """The best plan without some tiers (indices in the topology)."""

    without: tuple[int, ...]
    solution: Solution

    def to_dict(self, tier_names: Sequence[str]) -> dict[str, Any]:
        """Return JSON values: the tiers by name, status, plan and estimate."""
        return {
            "without": [tier_names[tier] for tier in self.without],
            "status": self.solution.status,
            "plan": self.solution.plan.to_dict(),
            "estimate": self.solution.estimate.to_dict(),
        }

    def describe(self, tier_names: Sequence[str]) -> str:
        """Return one line for people."""
        estimate = self.solution.estimate
        missed = "" if self.solution.met else " (misses the constraints)"
        return (
            f"without {' and '.join(tier_names[tier] for tier in self.without)}: {1e3 * estimate.mean_s:.2f} ms, "
            f"{100 * estimate.accuracy:.2f} %  {self.solution.plan.describe(tier_names)}{missed}"
        )


def find_fallbacks(
    solution: Solution, model: PerformanceModel, *, limits: Limits | None = None
) -> tuple[Fallback, ...]:
    """Return the best plans of the solution's problem for when a tier is away, each plan once.

    First without one tier that the wanted plan uses, by index, then without all of them. Source and destination cannot
    be away. Where the constraints cannot be met, it is the plan that comes nearest. A tier without which the problem's
    hints leave no plan has no fallback, nor has one that limits leave no time for.
    """
    limits = limits or Limits()
    topology, space = model.topology, solution.problem.space
    kept = {topology.source, topology.destination}
    used = sorted(set(solution.plan.placement) - kept)
    allowed = range(len(topology.tiers)) if space.tiers is None else space.tiers
    every = tuple(tier for tier in range(len(topology.tiers)) if tier not in kept)
    found: dict[Any, Fallback] = {solution.plan: Fallback(without=(), solution=solution)}
    cases = tuple(dict.fromkeys((*((tier,) for tier in used), every)))
    for left, without in zip(range(len(cases), 0, -1), cases, strict=True):
        tiers = tuple(tier for tier in allowed if tier not in without)
        if not without or not tiers or limits.over():
            continue
        try:
            other = search(
                replace(solution.problem, space=replace(space, tiers=tiers)), model, limits=limits.part(1 / left)
            )
        except SearchError:
            continue
        found.setdefault(other.plan, Fallback(without=without, solution=other))
    return tuple(found.values())[1:]
