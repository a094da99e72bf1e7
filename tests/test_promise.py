"""Accuracies promised for new samples: the test by its definition, and how often promises are kept."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from portend.perfmodel.model import PerformanceModel
from portend.planner.exhaustive import count_plans, solve_exhaustive
from portend.planner.metrics import energy, latency_quantile
from portend.planner.problem import Problem, SearchSpace, accuracy, latency
from portend.planner.promise import least_right, parts
from portend.planner.search import search
from portend.planner.solve import solve
from portend.values.exits import SampleExits
from problems import random_case

SPACE = SearchSpace(thresholds=(0.0, 0.125, 0.25, 0.5), exits_per_tier=2, per_exit_thresholds=True, max_partitions=4)


def a_model(seed: int, samples: int = 600) -> PerformanceModel:
    """A random network on three tiers that is right four times in five, whatever its exits: every plan alike."""
    case = random_case(seed, blocks=6, tiers=3, estimator="sample")
    rng = np.random.default_rng([seed, 1])
    score = np.round(8 * rng.random((samples, 6))) / 8
    exits = SampleExits(scores={"entropy": score}, correct=rng.random((samples, 6)) < 0.8)
    tiers = tuple(replace(tier, power_w=1.0 + i) for i, tier in enumerate(case.topology.tiers))
    return PerformanceModel(replace(case.profile, exits=exits), replace(case.topology, tiers=tiers))


@pytest.mark.parametrize(("samples", "share", "confidence"), [(10, 0.5, 0.9), (100, 0.9, 0.95), (3333, 0.763, 0.99)])
def test_the_fewest_right_answers_that_prove_a_share(samples: int, share: float, confidence: float) -> None:
    from scipy.stats import binom

    least = least_right(samples, share, confidence)
    assert binom.sf(least - 1, samples, share) <= 1 - confidence < binom.sf(least - 2, samples, share)


def test_the_fewest_right_answers_by_hand() -> None:
    assert least_right(3, 0.5, 0.8) == 3, "three of three have a chance of 1/8, two or more one of 1/2"
    assert least_right(3, 0.5, 0.9) == 4, "not even three of three"
    assert (least_right(5, 0.0, 0.95), least_right(5, 1.0, 0.95)) == (0, 6)


def test_the_parts_are_apart_and_always_the_same() -> None:
    model = a_model(0, samples=100)
    exits = model.profile.exits
    assert isinstance(exits, SampleExits)
    numbered = replace(exits, scores={"entropy": np.tile(np.arange(100.0)[:, None], (1, 6))})
    model = PerformanceModel(replace(model.profile, exits=numbered), model.topology)
    for _ in range(2):
        choosing, testing = (p.profile.exits for p in parts(model))
        assert isinstance(choosing, SampleExits)
        assert isinstance(testing, SampleExits)
        assert (choosing.samples, testing.samples) == (33, 67)
        assert sorted([*choosing.score[:, 0], *testing.score[:, 0]]) == list(range(100))


@pytest.mark.parametrize(("profiles", "least"), [(40, 6), pytest.param(150, 13, marks=pytest.mark.slow)])
def test_the_best_of_many_plans_breaks_a_promise_as_seldom_as_it_says(profiles: int, least: int) -> None:
    """No plan is right four times in five and a bit, so every promise of it is broken: at most 5 of 100, ``least`` with
    a probability below 2 %. Asking one plan's margin of the best of many breaks it nearly always."""
    broken, naive = 0, 0
    problem = Problem(minimize=latency, subject_to=(accuracy >= 0.8 + 1e-9,), space=SPACE, robust=0.95)
    assert count_plans(SPACE, a_model(0)) > 10_000
    for seed in range(profiles):
        model = a_model(seed)
        broken += search(problem, model).status != "infeasible"
        naive += search(problem.promised(model.samples), model).status == "optimal"
    assert broken < least
    assert naive > 2 / 3 * profiles


@pytest.mark.parametrize("seed", range(6))
def test_promises_are_made_where_they_can_be_kept(seed: int) -> None:
    model = a_model(seed)
    for goal in ({"minimize": latency}, {"minimize": latency_quantile(0.95)}, {"minimize": (latency, energy)}):
        problem = Problem(**goal, subject_to=(accuracy >= 0.72,), space=SPACE, robust=0.95)
        sure = search(problem, model)
        assert (sure.status, sure.gap, sure.problem) == ("feasible", None, problem)
        testing = parts(model)[1]
        tested = testing.estimate(sure.plan).accuracy
        assert tested >= least_right(testing.samples, 0.72, 0.95) / testing.samples - 1e-12
        free = search(replace(problem, robust=None), model)
        name = problem.objectives[0][0].name
        assert sure.metrics[name] >= free.metrics[name] * (1 - 1e-9), "a promise costs"
        assert set(sure.metrics) == set(free.metrics)
        assert "with 95 % confidence: feasible" in sure.describe()


def test_other_bounds_hold_on_all_samples_and_hopeless_promises_name_the_most_accurate_plan() -> None:
    model = a_model(1)
    free = search(Problem(minimize=latency, subject_to=(accuracy >= 0.75,), space=SPACE), model).estimate.mean_s
    problem = Problem(maximize=accuracy, subject_to=(accuracy >= 0.7, latency <= 1.2 * free), space=SPACE, robust=0.9)
    found = search(problem, model)
    assert found.status == "feasible"
    assert found.estimate.mean_s <= 1.2 * free * (1 + 1e-9)
    hopeless = replace(problem, subject_to=(accuracy >= 0.95,))
    nearest = search(hopeless, model)
    assert (nearest.status, nearest.problem) == ("infeasible", hopeless)
    most = search(Problem(maximize=accuracy, space=SPACE), model)
    assert nearest.estimate.accuracy == most.estimate.accuracy
    assert "ask for less, or train a more accurate network: more samples will not do" in nearest.remedy
    assert nearest.remedy in nearest.describe()
    assert nearest.to_dict()["remedy"] == nearest.remedy
    assert "(misses the promise)" in nearest.describe()


def test_a_promise_that_lacks_samples_says_how_many_it_needs() -> None:
    """Asked for a little less than the most accurate plan was tested to have; with so many samples it is kept."""
    model, pattern = a_model(1), r"right in ([\d.]+) % of its 400 test samples, which promises at most ([\d.]+) %"
    problem = Problem(minimize=latency, subject_to=(accuracy >= 0.95,), space=SPACE, robust=0.95)
    tested = re.search(pattern, search(problem, model).remedy)
    assert tested
    bound = float(tested[1]) / 100 - 0.012
    found = search(replace(problem, subject_to=(accuracy >= bound,)), model)
    assert found.status == "infeasible"
    told = re.search(pattern, found.remedy)
    more = re.search(r"profile on about ([\d,]+) samples instead of 600", found.remedy)
    assert told
    assert more
    right, most = round(4 * float(told[1])), float(told[2]) / 100
    assert least_right(400, most - 1e-4, 0.95) <= right < least_right(400, most + 1e-4, 0.95)
    size = round(int(more[1].replace(",", "")) * 2 / 3)
    assert least_right(size, bound, 0.95) == pytest.approx(size * right / 400, rel=0.01)


def test_tables_of_exits_have_no_samples_to_test_on() -> None:
    case = next(c for c in map(random_case, range(99)) if not isinstance(c.profile.exits, SampleExits))
    model = case.model()
    space = replace(SPACE, exits_per_tier=1)
    bound = search(Problem(maximize=accuracy, space=space), model).estimate.accuracy - 0.2
    problem = Problem(minimize=latency, subject_to=(accuracy >= bound,), space=space, robust=0.9)
    expected = search(problem.promised(model.samples), model)
    for found in (search(problem, model), solve_exhaustive(problem, model)):
        assert (found.status, found.plan) == (expected.status, expected.plan)
        assert found.problem == problem, "the answer is to what was asked"


def test_baselines_and_reasons_come_with_a_promise() -> None:
    model = a_model(2)
    solution = solve(Problem(minimize=latency, subject_to=(accuracy >= 0.7,), space=SPACE, robust=0.95), model)
    assert solution.why is not None
    assert {s.status for s in solution.baselines.values()} <= {"feasible", "infeasible"}
    assert "the paper" in solution.baselines


def test_what_is_said_of_the_best_of_many_plans_holds() -> None:
    """Every plan is right four times in five. The interval of one plan seldom says so of the most accurate of many;
    that of the choice misses it once in 15 draws on average, and more than three times with a probability of 1 %."""
    problem = Problem(maximize=accuracy, space=SPACE)
    naive, stated, optimism = 0, 0, []
    for seed in range(15):
        model = a_model(seed)
        solution = solve(problem, model, baselines=False, new_samples=True)
        new = solution.new_samples
        assert new is not None
        low, high = solution.estimate.draws(count=2000).interval("accuracy")
        naive += low <= 0.8 <= high
        stated += new.interval[0] <= 0.8 <= new.interval[1]
        assert new.interval[0] < new.at_least < new.accuracy < new.interval[1]
        assert new.optimism == pytest.approx(solution.estimate.accuracy - new.accuracy)
        optimism.append(new.optimism - (solution.estimate.accuracy - 0.8))
    assert naive < 8
    assert stated >= 12
    assert abs(float(np.mean(optimism))) < 0.01


def test_what_is_said_of_a_choice_is_in_the_answer() -> None:
    model = a_model(3)
    problem = Problem(minimize=latency, subject_to=(accuracy >= 0.75,), space=SPACE)
    solution = solve(problem, model, baselines=False, new_samples=True)
    new = solution.new_samples
    assert new is not None
    assert f"at least {100 * new.at_least:.2f} % right on new samples (95 %)" in solution.describe()
    told = solution.to_dict()
    assert told["new_samples"]["at_least"] == new.at_least
    assert told["estimate"]["accuracy_interval"] == list(new.interval)
    assert solve(problem, model, baselines=False, new_samples=False).new_samples is None
    assert solve(problem, model).baselines["edge-only"].new_samples is None, "of baselines only where it is asked for"
    rivals = solve(problem, model, new_samples=True).baselines
    assert all(rival.new_samples for rival in rivals.values())
    fixed = rivals["edge-only"]
    assert fixed.new_samples is not None
    assert fixed.new_samples.optimism == pytest.approx(0, abs=0.02), "nothing was chosen"
    assert fixed.new_samples.at_least < fixed.estimate.accuracy < fixed.new_samples.interval[1]
    promised = search(replace(problem, subject_to=(accuracy >= 0.7,), robust=0.9), model)
    assert promised.new_samples is not None
    assert promised.new_samples.confidence == 0.9
    assert promised.new_samples.at_least >= 0.7, "the test and the statement are of the same samples"
