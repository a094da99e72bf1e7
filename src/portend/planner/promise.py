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
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from portend.errors import SearchError
from portend.perfmodel.exits import replay
from portend.perfmodel.model import Estimator, PerformanceModel
from portend.planner.metrics import Batch
from portend.planner.problem import (
    Constraint,
    FrontPoint,
    NewSamples,
    Problem,
    SearchStats,
    Solution,
    accuracy,
    latency,
)
from portend.stats.strata import class_counts, draw_rates
from portend.values.exits import SampleExits
from portend.values.plan import Plan

__all__ = ["HALVINGS", "keep_promise", "least_right", "on_new_samples", "parts"]

Search = Callable[[Problem, PerformanceModel, float], Solution]
"""Solves a problem in so many pieces of work: a plan to be tested, or judged, need not be proven the best."""

HALVINGS: Final = 4
"""Times that the samples are halved to say how a plan does on new ones."""
_EACH: Final = 300
"""Pieces of work for a plan to test, some seconds: counted, so that the answer is the same on a busy machine."""
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
    order = np.random.default_rng(0).permutation(model.samples)
    chosen_on = max(1, round(_CHOOSING * model.samples))
    return _on(model, order[:chosen_on]), _on(model, order[chosen_on:], estimator="sample")


def _on(model: PerformanceModel, samples: NDArray[np.int64], estimator: Estimator | None = None) -> PerformanceModel:
    """The model on some of the samples."""
    exits = model.profile.exits
    assert isinstance(exits, SampleExits)
    return PerformanceModel(
        replace(model.profile, exits=exits.part(np.sort(samples))),
        model.topology,
        estimator=estimator or model.estimator,
        codec_tolerance=model.codec_tolerance,
    )


def on_new_samples(solution: Solution, model: PerformanceModel, search: Search) -> NewSamples | None:
    """Return what accuracy the answer to a problem without a promise has on new samples; None without samples.

    The samples are halved again and again, alike in classes. The choice is made anew on each half, and its plan judged
    by the other half too: by so much does the half that chose it flatter it. Luck chooses among means that spread by
    1/√S, so all samples flatter their plan by 1/√2 of that; the interval is shifted by it, and widened for its error.
    """
    exits = model.profile.exits
    if not isinstance(exits, SampleExits) or exits.samples < 4:
        return None
    rng = np.random.default_rng(0)
    flattered = []
    for _ in range(HALVINGS):
        order = rng.permutation(exits.samples)
        if exits.labels is not None:
            order = order[np.argsort(exits.labels[order], kind="stable")]
        for choosing, judging in ((order[::2], order[1::2]), (order[1::2], order[::2])):
            right = replay(exits, search(solution.problem, _on(model, choosing), _EACH).plan)[1]
            flattered.append(float(right[choosing].mean() - right[judging].mean()))
    found = np.array(flattered) / math.sqrt(2)
    right = replay(exits, solution.plan)[1]
    return _stated(
        right,
        exits.labels,
        seen=solution.estimate.accuracy,
        flattered=float(found.mean()),
        error=float(found.std(ddof=1)) / math.sqrt(HALVINGS),
    )


def _stated(
    right: NDArray[np.bool_],
    labels: NDArray[np.int64] | None,
    *,
    seen: float,
    flattered: float = 0.0,
    error: float = 0.0,
    confidence: float = 0.95,
) -> NewSamples:
    """What samples say of a plan, from who of them is right [S] and of which class.

    ``flattered``: by how much they say too much of it, with its standard error.
    """
    counts, sizes = class_counts(right, labels)
    rng = np.random.default_rng(0)
    table = np.stack([counts, sizes - counts], axis=1)
    drawn = draw_rates(table, possible=np.ones(2, dtype=np.bool_), count=20_000, rng=rng)[:, 0]
    drawn = np.clip(drawn - flattered - error * rng.standard_normal(drawn.size), 0.0, 1.0)
    low, high = np.quantile(drawn, ((1 - confidence) / 2, (1 + confidence) / 2))
    share = float(np.clip(right.mean() - flattered, 0.0, 1.0))
    return NewSamples(
        accuracy=share,
        interval=(float(low), float(high)),
        at_least=float(np.quantile(drawn, 1 - confidence)),
        optimism=seen - share,
        confidence=confidence,
    )


def keep_promise(problem: Problem, model: PerformanceModel, search: Search) -> Solution:
    """Return the best of the plans that were tested to reach the accuracy asked for.

    ``status`` is ``feasible``: the plan keeps the promise, but that no better one could is not proven. Where no plan
    passes, ``infeasible`` and the most accurate one, and ``remedy`` says why and what to do. Other bounds are met on
    all samples. ``search`` solves problems without promises, in so many pieces of work.
    """
    begin = time.perf_counter()
    assert problem.robust is not None
    choosing, testing = parts(model)
    asked = replace(problem, robust=None)
    enough = least_right(testing.samples, _bound(problem), problem.robust)
    passed: list[Plan] = []
    tested: list[int] = []
    for plan in _candidates(asked, choosing, testing.samples, search):
        tested.append(round(testing.estimate(plan).accuracy * testing.samples))
        if tested[-1] < enough:
            break
        passed.append(plan)
    found = _best(asked, passed, model)
    whole = search(asked, model, math.inf) if found else search(_unreachable(asked), model, _EACH)
    stats = SearchStats(
        plans=whole.stats.plans,
        seconds=time.perf_counter() - begin,
        solver=f"{whole.stats.solver}; {len(tested)} tested on {testing.samples:,} samples",
    )
    if not found:
        remedy = (
            ""
            if passed or not tested
            else _remedy(tested[0], testing.samples, model.samples, _bound(problem), problem.robust)
        )
        return replace(whole, problem=problem, status="infeasible", stats=stats, remedy=remedy, new_samples=None)
    plan = found[0].plan
    estimate = model.estimate(plan if plan.codecs else model.complete(plan, problem.space.codecs))
    right, labels = _judged(testing, estimate.plan)
    return Solution(
        problem=problem,
        status="feasible",
        estimate=estimate,
        front=tuple(found) if problem.cost is None or len(problem.objectives) > 1 else whole.front,
        stats=stats,
        gap=None,
        values={} if problem.cost == latency else asked.judge(estimate.plan, model)[0],
        new_samples=_stated(right, labels, seen=estimate.accuracy, confidence=problem.robust),
    )


def _judged(model: PerformanceModel, plan: Plan) -> tuple[NDArray[np.bool_], NDArray[np.int64] | None]:
    exits = model.profile.exits
    assert isinstance(exits, SampleExits)
    return replay(exits, plan)[1], exits.labels


def _remedy(right: int, tested: int, samples: int, bound: float, confidence: float) -> str:
    """Why no plan passed, the most accurate one being right in so many of the samples tested; and what to do."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if least_right(tested, middle, confidence) <= right else (low, middle)
    share, sure = right / tested, f"{100 * confidence:g} %"
    why = (
        f"the most accurate plan was right in {100 * share:.2f} % of its {tested:,} test samples, which promises "
        f"at most {100 * low:.2f} % ({sure}), not {100 * bound:g} %"
    )
    if share <= bound:
        return f"{why}; ask for less, or train a more accurate network: more samples will not do"
    z = NormalDist().inv_cdf(confidence)
    needed = samples * max(1.0, z**2 * bound * (1 - bound) / (share - bound) ** 2 / tested)
    return f"{why}; ask for less, or profile on about {math.ceil(needed / 100) * 100:,} samples instead of {samples:,}"


def _candidates(problem: Problem, model: PerformanceModel, tested: int, search: Search) -> Iterator[Plan]:
    """Plans to test, the most accurate first: the front of latency and accuracy, or answers to ever lower bounds."""
    cost = problem.cost
    if cost is not None:
        front = search(replace(problem, minimize=cost, maximize=None, subject_to=()), model, math.inf).front
        yield from (point.plan for point in reversed(front))
        if front:
            return
    known = set()
    bound = _bound(problem)
    width = 2 * math.sqrt(bound * (1 - bound) / tested)
    for step in _STEPS:
        bounds = (*_others(problem), accuracy >= min(bound + step * width, 1.0))
        try:
            solution = search(replace(problem, subject_to=bounds), model, _EACH)
        except SearchError:  # none was found in time
            continue
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
