"""Why a plan is the answer: what its cost is made of, what binds it, what came nearest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from portend.errors import SearchError
from portend.perfmodel.estimate import PARTS, Estimate
from portend.perfmodel.model import PerformanceModel
from portend.planner.limits import Limits
from portend.planner.metrics import Batch, Metric, latency
from portend.planner.problem import Alternative, Problem, Solution, Why, choose
from portend.planner.search import search
from portend.values.plan import Plan, blocks

__all__ = ["explain"]

_WORTH_IT: Final = 0.02
_SURE: Final = 1.96  # standard deviations in which 95 % lie
_ALONE: Final = " alone"
_NO_EXITS: Final = "without early exits"


def explain(solution: Solution, model: PerformanceModel, *, limits: Limits | None = None) -> Why:
    """Return why the solution is what it is, as far as ``limits`` leave time for it."""
    limits = limits or Limits()
    goal, _ = _goal(solution.problem)
    metric = goal if goal.additive is not None else latency
    alternatives = [*_neighbors(solution), *_simpler(solution, model, limits.part(0.5))]
    return Why(
        metric=metric,
        goal=goal,
        steps=_steps(solution.estimate, model, metric),
        binding=tuple(
            c for i, c in enumerate(solution.problem.subject_to) if _binds(solution, i, model, limits.part(0.5))
        ),
        alternatives=tuple(alternatives),
        advice=_advice(solution, alternatives, model),
        caution=_caution(solution.plan, model),
        codecs=_codecs(solution, model),
    )


def _goal(problem: Problem) -> tuple[Metric, int]:
    """The metric in which alternatives lose, 1 where less of it is better: the cost, or else the first objective."""
    return problem.objectives[0] if problem.cost is None else (problem.cost, 1)


def _steps(estimate: Estimate, model: PerformanceModel, cost: Metric) -> tuple[tuple[str, Mapping[str, float]], ...]:
    """The waterfall: each step's parts, weighted by the share of samples that go through it."""
    plan, tiers = estimate.plan, [tier.name for tier in model.topology.tiers]
    hops, runs, result = _parts_s(estimate) if cost == latency else _costs(plan, model, cost)
    steps: list[tuple[str, Mapping[str, float]]] = []
    for (start, end), tier, hop, run in zip(plan.partitions, plan.placement, hops, runs, strict=True):
        if hop:
            steps.append((f"to {tiers[tier]}", hop))
        steps.append((f"{blocks(start, end)} on {tiers[tier]}", {"compute": run}))
    return (*steps, ("result", result)) if result else tuple(steps)


_Parts = tuple[list[dict[str, float]], list[float], dict[str, float]]
"""Of each hop, its parts; of each partition, its computing; of all results, their parts."""


def _parts_s(estimate: Estimate) -> _Parts:
    reach = 1.0 - np.concatenate(([0.0], np.cumsum(estimate.share)[:-1]))
    steps = [dict(zip(PARTS, row, strict=True)) for row in (reach[:, None] * estimate.step_parts_s).tolist()]
    back = dict(zip(PARTS, (estimate.share @ estimate.result_parts_s).tolist(), strict=True))
    hops = [{part: s for part, s in step.items() if s and part != "compute"} for step in steps]
    return hops, [step["compute"] for step in steps], {part: s for part, s in back.items() if s}


def _costs(plan: Plan, model: PerformanceModel, cost: Metric) -> _Parts:
    assert cost.additive is not None
    terms, batch = cost.additive.terms(model), Batch.of(plan, model)
    hops: list[dict[str, float]] = []
    runs: list[float] = []
    back = 0.0
    for k, tier in enumerate(plan.placement):
        reach, share = float(batch.reach[0, k]), float(batch.share[0, k])
        sent = batch.at_hop(k, terms.hop[:, :, batch.senders[k], tier])[0] if batch.sent(k) else 0.0
        hops.append({"hop": reach * float(sent)} if sent else {})
        runs.append(reach * float(batch.at_run(k, terms.compute)[0]))
        back += share * float(terms.result[tier])
    return hops, runs, {"result": back} if back else {}


def _codecs(solution: Solution, model: PerformanceModel) -> tuple[str, ...]:
    """A line for each hop: its codec, what it loses, and the fastest one that would be faster but loses too much."""
    plan, profile, tiers = solution.plan, model.profile, model.topology.tiers
    anything = PerformanceModel(profile, model.topology, estimator=model.estimator, codec_tolerance=math.inf)
    names = model.tables.codecs
    lines = []
    senders = (model.topology.source, *plan.placement[:-1])
    for (cut, _), sender, tier, codec in zip(plan.partitions, senders, plan.placement, plan.codecs, strict=True):
        if codec is None:
            continue
        seconds = dict(zip(names, anything.tables.hop_parts_s[:, cut, sender, tier].sum(axis=-1).tolist(), strict=True))
        losses = {name: float(profile.loss(name)[cut]) for name in names}
        line = f"cut {cut} to {tiers[tier].name}: {codec}"
        if losses[codec] > 0:
            line += f", which may cost {100 * losses[codec]:.2f} points more than the accuracy above"
        asked = solution.problem.space.codecs
        refused = [
            name
            for name in names
            if (asked is None or name in asked)
            and not losses[name] <= model.codec_tolerance
            and seconds[name] < seconds[codec]
        ]
        if refused:
            best = min(refused, key=seconds.__getitem__)
            known = math.isfinite(losses[best])
            lost = f"loses {100 * losses[best]:.2f} points" if known else "what it loses was not measured"
            line += (
                f"; {best} would save {1e3 * (seconds[codec] - seconds[best]):.2f} ms, but {lost} there "
                f"(tolerance {100 * model.codec_tolerance:g})"
            )
        lines.append(line)
    return tuple(lines)


def _binds(solution: Solution, index: int, model: PerformanceModel, limits: Limits) -> bool:
    """Whether the answer would be another and better one without a constraint."""
    bounds = solution.problem.subject_to
    without = replace(solution.problem, subject_to=(*bounds[:index], *bounds[index + 1 :]))
    if not solution.met:
        return True
    if solution.problem.cost is None:
        goal, sense = _goal(solution.problem)
        own = solution.metrics[goal.name]
        freed = search(without, model, limits=limits).metrics[goal.name]
        return sense * (own - freed) > 1e-9 * abs(own)
    if solution.front and len(without.objectives) == 1 and without.robust is None:
        point, _ = choose(without, solution.front)
        freed_accuracy, freed = point.accuracy, point.cost(_cost(without))
    else:
        other = search(without, model, limits=limits)
        freed_accuracy, freed = other.estimate.accuracy, other.cost
    if solution.problem.minimize is not None:
        return freed < solution.cost * (1 - 1e-9)
    return freed_accuracy > solution.estimate.accuracy + 1e-12


def _cost(problem: Problem) -> Metric:
    cost = problem.cost
    assert cost is not None
    return cost


def _neighbors(solution: Solution) -> list[Alternative]:
    """The next plans of the front to both sides."""
    problem = solution.problem
    goal, sense = _goal(problem)
    own, right = _value(solution, goal), solution.estimate.accuracy
    if problem.cost is None:
        around = [("next on the front", p) for p in solution.front[1:2]]  # the first one is the plan itself
    else:
        cheaper = [p for p in solution.front if p.cost(goal) < own * (1 - 1e-9) and p.accuracy < right]
        better = [p for p in solution.front if p.accuracy > right + 1e-12 and p.cost(goal) > own]
        around = [("next faster" if goal == latency else "next cheaper", p) for p in cheaper[-1:]]
        around += [("next more accurate", p) for p in better[:1]]
    return [
        Alternative(
            name=name,
            plan=p.plan,
            slower_s=p.latency_s - solution.estimate.mean_s,
            less_accurate=right - p.accuracy,
            dearer=sense * ((p.values[goal.name] if problem.cost is None else p.cost(goal)) - own),
        )
        for name, p in around
    ]


def _value(solution: Solution, goal: Metric) -> float:
    return solution.metrics[goal.name] if solution.problem.cost is None else solution.cost


def _simpler(solution: Solution, model: PerformanceModel, limits: Limits) -> list[Alternative]:
    """The best plan on a single tier, and the best without early exits, under the same constraints."""
    problem, space = solution.problem, solution.problem.space
    goal, sense = _goal(problem)
    tiers = range(len(model.topology.tiers)) if space.tiers is None else space.tiers
    spaces = [(f"{model.topology.tiers[t].name}{_ALONE}", replace(space, tiers=(t,))) for t in tiers]
    if space.exits != ():
        spaces.append((_NO_EXITS, replace(space, thresholds=(0.0,), exits=())))
    found: dict[str, Alternative] = {}
    for left, (name, smaller) in zip(range(len(spaces), 0, -1), spaces, strict=True):
        if limits.over():
            break
        try:
            other = search(replace(problem, space=smaller), model, limits=limits.part(1 / left))
        except SearchError:
            continue
        if not other.met or other.plan == solution.plan:
            continue
        found[name] = Alternative(
            name=name,
            plan=other.plan,
            slower_s=other.estimate.mean_s - solution.estimate.mean_s,
            less_accurate=solution.estimate.accuracy - other.estimate.accuracy,
            dearer=sense * (_value(other, goal) - _value(solution, goal)),
        )
    return list(found.values())


def _advice(solution: Solution, alternatives: list[Alternative], model: PerformanceModel) -> str:
    """A warning where a simpler plan is nearly as good, or where nobody can tell, for compute times are not so sure."""
    if not solution.met:
        return ""
    names = [tier.name for tier in model.topology.tiers]
    return " ".join(
        filter(None, (_hardly_pays(solution, alternatives, names), _within_doubt(solution, alternatives, model)))
    )


def _hardly_pays(solution: Solution, alternatives: list[Alternative], names: list[str]) -> str:
    """A warning where one tier alone is nearly as good as a plan on several."""
    if len(set(solution.plan.placement)) == 1:
        return ""
    alone = [other for other in alternatives if other.name.endswith(_ALONE)]
    goal, _ = _goal(solution.problem)
    if solution.problem.cost is not None and solution.problem.minimize is None:
        near = [o for o in alone if o.less_accurate <= 0.001]
        lost = "0.1 points of accuracy"
    else:
        near = [o for o in alone if o.dearer <= _WORTH_IT * abs(_value(solution, goal))]
        lost = f"{100 * _WORTH_IT:g} % of the {goal.name}"
    if not near:
        return ""
    nearest = min(near, key=lambda o: (o.dearer, o.less_accurate))
    return f"Distributing hardly pays: {nearest.name} loses at most {lost} ({nearest.plan.describe(names)})."


def _within_doubt(solution: Solution, alternatives: list[Alternative], model: PerformanceModel) -> str:
    """Which simpler plan may be as fast for all that the compute times tell: the gain lies in their 95 % interval."""
    if solution.problem.minimize != latency:
        return ""
    doubts = []
    for other in alternatives:
        if other.name.endswith(_ALONE) or other.name == _NO_EXITS:
            doubt_s = _SURE * model.time_sd_s(solution.estimate, model.estimate(other.plan))
            if 0 < other.slower_s <= doubt_s:
                words = f"on {other.name}" if other.name.endswith(_ALONE) else other.name
                doubts.append((other.slower_s, doubt_s, words))
    if not doubts:
        return ""
    gain_s, doubt_s, words = min(doubts)
    return (
        f"The {1e3 * gain_s:.2f} ms that the plan gains over the one {words} are within what compute times leave open "
        f"(± {1e3 * doubt_s:.2f} ms, 95 %)."
    )


def _caution(plan: Plan, model: PerformanceModel) -> str:
    """What was assumed of the plan's devices, which times are predicted, with their error, and what was disturbed."""
    tiers, devices = model.topology.tiers, model.profile.devices
    parts, errors = [], []
    for (start, end), tier in zip(plan.partitions, plan.placement, strict=True):
        device = devices[tiers[tier].device]
        if device.prediction is not None and device.predicts(start, end):
            parts.append(f"{blocks(start, end)} on {tiers[tier].name}")
            errors.append((device.prediction.mean_error, device.prediction.worst_error))
    told = dict.fromkeys(devices[tiers[tier].device].environment.get("assumed", "") for tier in plan.placement)
    cautions = [f"Assumed: {text}." for text in told if text]
    if parts:
        mean, worst = (100 * max(column) for column in zip(*errors, strict=True))
        cautions.append(
            f"Predicted, not measured: the compute time of {', '.join(parts)} (such predictions were off by "
            f"{mean:.1f} % in the mean, {worst:.1f} % at worst)."
        )
    disturbed = model.profile.disturbed(tier.device for tier in tiers)
    return " ".join([*cautions, *(f"{each[0].upper()}{each[1:]}." for each in disturbed)])
