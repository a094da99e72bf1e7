"""Why a plan is the answer: what its latency is made of, what binds it, what came nearest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from portend.errors import SearchError
from portend.perfmodel.estimate import PARTS, Estimate
from portend.perfmodel.model import PerformanceModel
from portend.planner.problem import Alternative, Solution, Why, choose
from portend.planner.search import search

__all__ = ["explain"]

_WORTH_IT: Final = 0.02


def explain(solution: Solution, model: PerformanceModel, *, seconds: float = math.inf) -> Why:
    """Return why the solution of a plain problem is what it is; ``seconds`` limits each search for an alternative."""
    alternatives = [*_neighbors(solution), *_simpler(solution, model, seconds)]
    return Why(
        steps=_steps(solution.estimate, [tier.name for tier in model.topology.tiers]),
        binding=tuple(c for i, c in enumerate(solution.problem.subject_to) if _binds(solution, i, model, seconds)),
        alternatives=tuple(alternatives),
        advice=_advice(solution, alternatives),
    )


def _steps(estimate: Estimate, tiers: list[str]) -> tuple[tuple[str, Mapping[str, float]], ...]:
    """The waterfall: each step's parts, weighted by the share of samples that go through it."""
    plan = estimate.plan
    reach = 1.0 - np.concatenate(([0.0], np.cumsum(estimate.share)[:-1]))
    moving = [part for part in PARTS if part != "compute"]
    steps: list[tuple[str, Mapping[str, float]]] = []
    for k, ((start, end), tier) in enumerate(zip(plan.partitions, plan.placement, strict=True)):
        parts = dict(zip(PARTS, (reach[k] * estimate.step_parts_s[k]).tolist(), strict=True))
        hop = {part: parts[part] for part in moving if parts[part]}
        if hop:
            steps.append((f"to {tiers[tier]}", hop))
        blocks = f"block {end}" if end == start + 1 else f"blocks {start + 1}–{end}"
        steps.append((f"{blocks} on {tiers[tier]}", {"compute": parts["compute"]}))
    back = dict(zip(PARTS, (estimate.share @ estimate.result_parts_s).tolist(), strict=True))
    if any(back.values()):
        steps.append(("result", {part: seconds for part, seconds in back.items() if seconds}))
    return tuple(steps)


def _binds(solution: Solution, index: int, model: PerformanceModel, seconds: float) -> bool:
    """Whether the answer would be another and better one without a constraint."""
    bounds = solution.problem.subject_to
    without = replace(solution.problem, subject_to=(*bounds[:index], *bounds[index + 1 :]))
    if solution.status == "infeasible":
        return True
    if solution.front:
        point, _ = choose(without.promised(model.samples), solution.front)
        freed_s, freed_accuracy = point.latency_s, point.accuracy
    else:
        freed = search(without, model, seconds=seconds).estimate
        freed_s, freed_accuracy = freed.mean_s, freed.accuracy
    if solution.problem.minimize is not None:
        return freed_s < solution.estimate.mean_s * (1 - 1e-9)
    return freed_accuracy > solution.estimate.accuracy + 1e-12


def _neighbors(solution: Solution) -> list[Alternative]:
    """The next faster and the next more accurate plan of the front."""
    mean_s, right = solution.estimate.mean_s, solution.estimate.accuracy
    faster = [p for p in solution.front if p.latency_s < mean_s * (1 - 1e-9) and p.accuracy < right]
    better = [p for p in solution.front if p.accuracy > right + 1e-12 and p.latency_s > mean_s]
    found = []
    for name, points in (("next faster", faster[-1:]), ("next more accurate", better[:1])):
        found += [
            Alternative(name=name, plan=p.plan, slower_s=p.latency_s - mean_s, less_accurate=right - p.accuracy)
            for p in points
        ]
    return found


def _simpler(solution: Solution, model: PerformanceModel, seconds: float) -> list[Alternative]:
    """The best plan on a single tier, and the best without early exits, under the same constraints."""
    problem, space = solution.problem, solution.problem.space
    tiers = range(len(model.topology.tiers)) if space.tiers is None else space.tiers
    spaces = [(f"{model.topology.tiers[t].name} alone", replace(space, tiers=(t,))) for t in tiers]
    if space.exits != ():
        spaces.append(("without early exits", replace(space, thresholds=(0.0,), exits=())))
    found: dict[str, Alternative] = {}
    for name, smaller in spaces:
        try:
            other = search(replace(problem, space=smaller), model, seconds=seconds)
        except SearchError:
            continue
        if other.status == "infeasible" or other.plan == solution.plan:
            continue
        found[name] = Alternative(
            name=name,
            plan=other.plan,
            slower_s=other.estimate.mean_s - solution.estimate.mean_s,
            less_accurate=solution.estimate.accuracy - other.estimate.accuracy,
        )
    return list(found.values())


def _advice(solution: Solution, alternatives: list[Alternative]) -> str:
    """A warning where one tier alone is nearly as good as a plan on several."""
    if solution.status == "infeasible" or len(set(solution.plan.placement)) == 1:
        return ""
    alone = [other for other in alternatives if other.name.endswith(" alone")]
    if solution.problem.minimize is None:
        near = [o for o in alone if o.less_accurate <= 0.001]
        lost = "0.1 points of accuracy"
    else:
        near = [o for o in alone if o.slower_s <= _WORTH_IT * solution.estimate.mean_s]
        lost = f"{100 * _WORTH_IT:g} % of the latency"
    if not near:
        return ""
    nearest = min(near, key=lambda o: (o.slower_s, o.less_accurate))
    return f"Distributing hardly pays: {nearest.name} loses at most {lost} ({nearest.plan.describe()})."
