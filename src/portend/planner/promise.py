"""Accuracies that hold on new samples, for the best of many plans.

The best of many plans is the one whose samples flatter it most, so what its own samples say of it is no promise. Hence
the profiling samples are divided: on one part plans are chosen, from the most accurate one down; on the other each is
tested by replay, an exact binomial test at the level that was asked for, until the first one fails. Those before it
reach the accuracy, all of them at once, with that confidence, whatever their number ("fixed sequence testing":
Maurer, Hothorn & Lehmacher 1995; with a front chosen on samples apart: Laufer-Goldshtein et al., "Efficiently
Controlling Multiple Risks with Pareto Testing", 2023). So any of them may be taken, and the one that is best on all
samples is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from portend.perfmodel.model import PerformanceModel
from portend.plan import Plan
from portend.planner.metrics import Batch
from portend.planner.problem import Constraint, FrontPoint, Problem, SearchStats, Solution, accuracy, latency
from portend.profile import SampleExits

__all__ = ["keep_promise", "least_right", "parts"]

Search = Callable[[Problem, PerformanceModel], Solution]

_CHOOSING: Final = 1 / 3
"""Share of the samples on which plans are chosen: a test needs more of them than a choice."""
_STEPS: Final = (2.0, 1.5, 1.25, 1.0, 0.75, 0.5, 0.0)
"""Where a search gives no front: how far above the bound plans are asked for, in widths of the test."""


def least_right(samples: int, share: float, confidence: float) -> int:
    """Return the fewest right answers in so many samples that prove at least a share 0–1 of right answers.

    A share below it gives as many with a probability of at most 1 - confidence; more than there are samples where
    even no wrong answer at all proves too little.
    """
    if share <= 0:
        return 0
    if share >= 1:
        return samples + 1
    logs = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, samples + 1)))))
    k = np.arange(samples + 1)
    log_pmf = logs[-1] - logs - logs[::-1] + k * math.log(share) + (samples - k) * math.log1p(-share)
    at_least = np.cumsum(np.exp(log_pmf)[::-1])[::-1]
    return int(np.count_nonzero(at_least > 1 - confidence))


def parts(model: PerformanceModel) -> tuple[PerformanceModel, PerformanceModel]:
    """Return a model on the samples to choose on, and one on those to test on by replay; always the same parts."""
    exits = model.profile.exits
    assert isinstance(exits, SampleExits)
    order = np.random.default_rng(0).permutation(exits.samples)
    chosen_on = max(1, round(_CHOOSING * exits.samples))

    def on(indices: NDArray[np.int64], sampled: bool) -> PerformanceModel:
        own = exits.part(np.sort(indices))
        estimator = "sample" if sampled else model.estimator
        return PerformanceModel(
            replace(model.profile, exits=own),
            model.topology,
            estimator=estimator,
            codec_tolerance=model.codec_tolerance,
        )

    return on(order[:chosen_on], False), on(order[chosen_on:], True)


def keep_promise(problem: Problem, model: PerformanceModel, search: Search) -> Solution:
    """Return the best of the plans that were tested to reach the accuracy asked for.

    ``status`` is ``feasible``: the plan keeps the promise, but that no better one could is not proven. Where no plan
    passes, ``infeasible`` and the most accurate one. Other bounds are met on all samples. ``search`` solves problems
    without promises.
    """
    begin = time.perf_counter()
    assert problem.robust is not None
    choosing, testing = parts(model)
    asked = replace(problem, robust=None)
    enough = least_right(testing.samples, _bound(problem), problem.robust)
    passed: list[Plan] = []
    tested = 0
    for plan in _candidates(asked, choosing, testing.samples, search):
        tested += 1
        if round(testing.estimate(plan).accuracy * testing.samples) < enough:
            break
        passed.append(plan)
    found = _best(asked, passed, model)
    whole = search(asked if found else _unreachable(asked), model)
    stats = SearchStats(
        plans=whole.stats.plans,
        seconds=time.perf_counter() - begin,
        solver=f"{whole.stats.solver}; {tested} tested on {testing.samples:,} samples",
    )
    if not found:
        return replace(whole, problem=problem, stats=stats)
    plan = found[0].plan
    estimate = model.estimate(plan if plan.codecs else model.complete(plan, problem.space.codecs))
    return Solution(
        problem=problem,
        status="feasible",
        estimate=estimate,
        front=tuple(found) if problem.cost is None or len(problem.objectives) > 1 else whole.front,
        stats=stats,
        gap=None,
        values={} if problem.cost == latency else asked.judge(estimate.plan, model)[0],
    )


def _candidates(problem: Problem, model: PerformanceModel, tested: int, search: Search) -> Iterator[Plan]:
    """Plans to test, the most accurate first: the front of latency and accuracy, or answers to ever lower bounds."""
    cost = problem.cost
    if cost is not None:
        front = search(replace(problem, minimize=cost, maximize=None, subject_to=()), model).front
        yield from (point.plan for point in reversed(front))
        if front:
            return
    known = set()
    bound = _bound(problem)
    width = 2 * math.sqrt(bound * (1 - bound) / tested)
    for step in _STEPS:
        bounds = (*_others(problem), accuracy >= min(bound + step * width, 1.0))
        solution = search(replace(problem, subject_to=bounds), model)
        answers = [] if cost is not None else sorted(solution.front, key=lambda point: -point.accuracy)
        for plan in [point.plan for point in answers] or [solution.plan]:
            key = (plan.cuts, plan.placement, plan.thresholds)
            if key not in known:
                known.add(key)
                yield plan


def _best(problem: Problem, plans: list[Plan], model: PerformanceModel) -> list[FrontPoint]:
    """The plans that meet the other bounds and that none of them beats, the best in the first objective first."""
    met: list[tuple[tuple[float, ...], FrontPoint]] = []
    for plan in plans:
        batch = Batch.of(plan, model)
        if any(c.missed_by(c.metric.of(batch)).any() for c in _others(problem)):
            continue
        goals = {m.name: float(m.of(batch)[0]) for m, _ in problem.objectives}
        key = tuple(sense * goals[m.name] for m, sense in problem.objectives)
        point = FrontPoint(
            latency_s=float(batch.mean_s[0]),
            accuracy=float(batch.accuracy[0]),
            plan=plan,
            values={} if problem.cost == latency and len(problem.objectives) == 1 else goals,
        )
        met.append((key, point))
    met.sort(key=lambda one: (one[0], one[1].latency_s, -one[1].accuracy))
    front: list[tuple[tuple[float, ...], FrontPoint]] = []
    for key, point in met:
        if not any(all(a <= b for a, b in zip(other, key, strict=True)) for other, _ in front):
            front.append((key, point))
    return [point for _, point in front]


def _bound(problem: Problem) -> float:
    """The accuracy that is promised."""
    return max(c.bound for c in problem.subject_to if c not in _others(problem))


def _others(problem: Problem) -> tuple[Constraint, ...]:
    """The bounds that are no promise."""
    return tuple(c for c in problem.subject_to if (c.metric, c.sense) != (accuracy, ">="))


def _unreachable(problem: Problem) -> Problem:
    """The problem with an accuracy that no plan reaches, so that the nearest is the answer."""
    return replace(problem, subject_to=(*_others(problem), accuracy >= math.inf))
