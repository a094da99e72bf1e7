"""NSGA-II against the exhaustive search: how near it comes, that it keeps to the hints, and that it claims no more."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import pytest

from portend.errors import SearchError
from portend.perfmodel.model import PerformanceModel
from portend.planner import evolutionary, search
from portend.planner.evolutionary import solve_evolutionary
from portend.planner.exhaustive import count_plans, solve_exhaustive
from portend.planner.limits import Limits
from portend.planner.metrics import Batch, Metric, accuracy, energy, latency, latency_quantile, utilization
from portend.planner.problem import Problem, SearchSpace, Solution
from portend.values.plan import Plan
from problems import draws, random_case

THRESHOLDS = (0.0, 0.125, 0.25, 0.5, 0.75)


def a_model(seed: int, *, blocks: int = 7, tiers: int = 3) -> PerformanceModel:
    case = random_case(seed, blocks=blocks, tiers=tiers, estimator="sample" if seed % 2 else "marginal")
    places = tuple(replace(tier, power_w=1.0 + 3.0 * i) for i, tier in enumerate(case.topology.tiers))
    topology = replace(case.topology, tiers=places, slow_start=None)
    return PerformanceModel(case.profile, topology, estimator=case.estimator)


def middle_accuracy(space: SearchSpace, model: PerformanceModel) -> float:
    front = solve_exhaustive(Problem(minimize=latency, space=space), model).front
    return float(np.median([point.accuracy for point in front]))


def values(solution: Solution) -> Any:
    goals = [(m.name, sense) for m, sense in solution.problem.objectives]
    return np.array([[sense * point.values[name] for name, sense in goals] for point in solution.front])


def hypervolume(points: Any) -> float:
    """The area below (1, 1) that points of two objectives dominate."""
    area, height = 0.0, 1.0
    for x, y in sorted(points.tolist()):
        area += (1 - x) * max(height - y, 0.0)
        height = min(height, y)
    return area


def lies_in(plan: Plan, space: SearchSpace, model: PerformanceModel) -> list[str]:
    """The hints that a plan breaks, each checked as ``docs/planner.md`` states it."""
    blocks, tiers = model.profile.num_blocks, len(model.topology.tiers)
    most = min(blocks, len(set(space.tiers or range(tiers))) * space.exits_per_tier, space.max_partitions or blocks)
    runs = [(tier, len(list(run))) for tier, run in groupby(plan.placement)]
    order = [tier for tier, _ in runs]
    asked = {cut: t for cut, t in zip(plan.cuts[:-1], plan.thresholds, strict=True) if t > 0}
    open_to = [c for c in plan.cuts[:-1] if space.exits is None or c in space.exits]
    rows = {dict(zip(plan.cuts[:-1], plan.thresholds, strict=True))[c] for c in open_to}
    laws = {
        "cuts": space.cuts is None or set(plan.cuts[:-1]) <= set(space.cuts),
        "last cut": plan.cuts[-1] == blocks or space.truncation,
        "last cut listed": space.cuts is None or plan.cuts[-1] in space.cuts,
        "exits": space.exits is None or set(asked) <= set(space.exits),
        "thresholds": set(plan.thresholds) <= {0.0, *space.thresholds},
        "one threshold": space.per_exit_thresholds or len(rows) <= 1,
        "tiers": set(plan.placement) <= set(space.tiers or range(tiers)),
        "block_tiers": all(
            tier in space.block_tiers.get(block, (tier,))
            for (start, end), tier in zip(plan.partitions, plan.placement, strict=True)
            for block in range(start + 1, end + 1)
        ),
        "partitions": space.min_partitions <= len(plan) <= most,
        "exits_per_tier": all(count <= space.exits_per_tier for _, count in runs),
        "next to each other": len(set(order)) == len(order),
        "tier_order": space.tier_order == "any" or all(a < b for a, b in pairwise(order)),
    }
    return [name for name, kept in laws.items() if not kept]


def some_hints(seed: int, blocks: int, tiers: int) -> SearchSpace:
    """Hints of all kinds at random."""
    rng = np.random.default_rng([seed, 7])

    def maybe(share: float, value: Any, otherwise: Any = None) -> Any:
        return value if rng.random() < share else otherwise

    some = sorted({blocks, *rng.choice(np.arange(1, blocks + 1), blocks - 2, replace=False).tolist()})
    least = int(rng.integers(1, 4))
    return SearchSpace(
        thresholds=maybe(0.7, THRESHOLDS, (0.25, 0.5)),
        per_exit_thresholds=bool(rng.random() < 0.5),
        cuts=maybe(0.3, tuple(some)),
        exits=maybe(0.3, tuple(some[::2])),
        tiers=maybe(0.3, tuple(rng.permutation(tiers)[:2].tolist())),
        block_tiers=maybe(0.4, {1: (0, 1), int(rng.integers(2, blocks)): (0, 2)}, {}),
        min_partitions=least,
        max_partitions=maybe(0.3, least + 1),
        exits_per_tier=int(rng.integers(1, 4)),
        tier_order=maybe(0.3, "increasing", "any"),
        truncation=bool(rng.random() < 0.7),
    )


@pytest.fixture
def few_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start from hardly more than plans of one partition, so that evolution has to find the rest, and soon."""
    monkeypatch.setattr(evolutionary, "_SEED_PLANS", 100)
    monkeypatch.setattr(evolutionary, "_PATIENCE", 8)


@pytest.mark.usefixtures("few_seeds")
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_it_comes_within_a_percent_of_the_true_front(seed: int) -> None:
    model = a_model(seed)
    space = SearchSpace(thresholds=THRESHOLDS, exits_per_tier=2, per_exit_thresholds=True, max_partitions=4)
    assert count_plans(space, model) > 50_000
    bound = accuracy >= middle_accuracy(space, model)
    p95 = Problem(minimize=latency_quantile(0.95), subject_to=(bound,), space=space)
    exact, found = solve_exhaustive(p95, model), solve_evolutionary(p95, model)
    assert values(exact).min() <= values(found).min() <= 1.01 * values(exact).min()
    both = Problem(minimize=(latency, energy), subject_to=(bound,), space=space)
    truth, near = values(solve_exhaustive(both, model)), values(solve_evolutionary(both, model))
    corner = 1.1 * np.maximum(truth.max(axis=0), near.max(axis=0))
    assert 0.99 <= hypervolume(near / corner) / hypervolume(truth / corner) <= 1 + 1e-9


@pytest.mark.parametrize("seed", draws(24, 12))
def test_every_plan_that_is_looked_at_keeps_the_hints(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evolutionary, "_GENERATIONS", 5)
    monkeypatch.setattr(evolutionary, "_SEED_PLANS", 50)
    model = a_model(seed, blocks=6)
    space = some_hints(seed, 6, 3)
    seen: list[Plan] = []

    def look(batch: Batch) -> Any:
        for i in range(len(batch)):
            cuts, thresholds = tuple(batch.cuts[i].tolist()), tuple(batch.thresholds[i].tolist())
            seen.append(Plan(cuts=cuts, placement=batch.placement, thresholds=thresholds))
        return latency_quantile(0.9).of(batch)

    problem = Problem(minimize=Metric("seen", "s", look), space=space)
    if not count_plans(space, model):
        with pytest.raises(SearchError, match="no plan satisfies the hints"):
            solve_evolutionary(problem, model)
        return
    try:
        solution = solve_evolutionary(problem, model)
    except SearchError:  # each plan is forbidden by a codec or by block_tiers
        with pytest.raises(SearchError):
            solve_exhaustive(problem, model)
        return
    for plan in seen:
        assert lies_in(plan, space, model) == [], (plan, space)
    assert solution.plan.cuts in {plan.cuts for plan in seen}
    assert math.isfinite(solution.estimate.mean_s)


@pytest.mark.usefixtures("few_seeds")
def test_the_values_are_those_of_the_exhaustive_search_and_the_seed_decides() -> None:
    model = a_model(3)
    space = SearchSpace(thresholds=THRESHOLDS, exits_per_tier=2, per_exit_thresholds=True)
    bounds = (accuracy >= middle_accuracy(space, model), utilization(1) <= 1)
    problem = Problem(minimize=(latency_quantile(0.95), energy), subject_to=bounds, space=space)
    first, again = (solve_evolutionary(problem, model, seed=4) for _ in range(2))
    assert first.front == again.front
    assert first.stats.plans == again.stats.plans
    for point in first.front:
        judged, met = problem.judge(model.complete(point.plan), model)
        assert met
        assert {name: judged[name] for name in point.values} == pytest.approx(dict(point.values), rel=1e-12)
    points = values(first)
    for i, point in enumerate(points):
        assert not any((other <= point).all() and (other < point).any() for other in np.delete(points, i, axis=0))


def test_it_claims_nothing_that_is_not_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    model = a_model(1)
    problem = Problem(minimize=latency_quantile(0.95), space=SearchSpace(thresholds=THRESHOLDS, exits_per_tier=2))
    assert search.search(problem, model).status == "optimal"
    monkeypatch.setattr(search, "METRIC_LIMIT", 1000)
    monkeypatch.setattr(evolutionary, "_PATIENCE", 8)
    found = search.search(problem, model)
    assert (found.status, found.gap) == ("feasible", None)
    assert "no certificate" in found.describe()
    assert "from the best" not in found.describe()
    assert found.to_dict()["gap"] is None
    quick = search.search(problem, model, limits=Limits(seconds=0.0))
    assert quick.status == "feasible"
    assert quick.stats.plans <= found.stats.plans


@pytest.mark.usefixtures("few_seeds")
def test_bounds_that_no_plan_meets_are_answered_with_the_nearest() -> None:
    model = a_model(2, blocks=5)
    space = SearchSpace(thresholds=THRESHOLDS, exits_per_tier=2)
    problem = Problem(minimize=energy, subject_to=(latency_quantile(0.95) <= 1e-6,), space=space)
    exact, found = solve_exhaustive(problem, model), solve_evolutionary(problem, model)
    assert (found.status, exact.status) == ("unknown", "infeasible")
    assert found.front == ()
    assert found.values["p95"] == pytest.approx(exact.values["p95"], rel=0.01)


def slow_fronts(goals: Any) -> list[list[int]]:
    left, fronts = list(range(len(goals))), []
    while left:
        fronts.append(
            [i for i in left if not any((goals[j] <= goals[i]).all() and (goals[j] < goals[i]).any() for j in left)]
        )
        left = [i for i in left if i not in fronts[-1]]
    return fronts


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_fronts_are_those_of_the_definition(axes: int) -> None:
    goals = np.random.default_rng(axes).integers(0, 6, (60, axes)).astype(float)  # with equals
    goals[:3, 0] = np.inf
    assert [front.tolist() for front in evolutionary._fronts(goals, 60)] == slow_fronts(goals)
    assert sum(len(front) for front in evolutionary._fronts(goals, 20)[:-1]) < 20


def test_crowding_by_hand() -> None:
    goals = np.array([[0.0, 8.0], [1.0, 4.0], [3.0, 2.0], [4.0, 0.0]])
    assert evolutionary._crowding(goals).tolist() == [math.inf, (3 / 4 + 6 / 8) / 2, (3 / 4 + 4 / 8) / 2, math.inf]
    flat = np.array([[0.0, 5.0], [1.0, 5.0], [4.0, 5.0]])
    assert evolutionary._crowding(flat).tolist() == [math.inf, 0.5, math.inf], "where all are equal, nothing counts"
    assert evolutionary._crowding(goals[:2]).tolist() == [math.inf, math.inf]


def test_survivors_meet_bounds_first_then_miss_least_and_are_not_crowded() -> None:
    rng = np.random.default_rng(0)
    goals = np.array([[0.0, 8.0], [1.0, 4.0], [3.0, 2.0], [4.0, 0.0], [9.0, 9.0], [0.0, 0.0], [0.0, 0.0]])
    missed = np.array([0, 0, 0, 0, 0, 2.0, 1.0])
    kept, rank, _ = evolutionary._survivors(goals, missed, 6, rng)
    assert kept.tolist() == [0, 1, 2, 3, 4, 6]
    assert rank.tolist() == [0, 0, 0, 0, 1, 0]
    kept, rank, _ = evolutionary._survivors(goals, missed, 3, rng)
    assert set(kept.tolist()) == {0, 1, 3}, "of the first front, the most crowded goes"
    assert rank.tolist() == [0, 0, 0]
