"""The exact search against a brute force, its answers, its refusals, and the baselines."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from portend.errors import InvalidValue, SearchError
from portend.perfmodel.model import PerformanceModel
from portend.planner import exhaustive
from portend.planner.baselines import baseline_spaces, solve_baselines
from portend.planner.exhaustive import count_plans, solve_exhaustive
from portend.planner.pareto import front_indices
from portend.planner.problem import Metric, Problem, SearchSpace, Solution, accuracy, latency
from portend.planner.solve import solve
from portend.values.exits import SampleExits
from portend.values.plan import Plan
from portend.values.profile import Profile
from portend.values.topology import Link, Tier, Topology
from problems import (
    Case,
    backbone,
    codec,
    device,
    draws,
    random_case,
    random_plan,
    random_space,
    result_profile,
)
from reference import Candidate, Reference, brute_force, enumerate_plans, pareto, solve_p_acc, solve_p_lat

FAST = Problem(minimize=latency)


def key(point: Any) -> tuple[Any, ...]:
    return point.plan.cuts, point.plan.placement, point.plan.thresholds


def small_case(seed: int, *, exact: bool = True) -> Case:
    rng = np.random.default_rng(seed)
    tiers = int(rng.choice([1, 2, 2, 3, 3, 3, 4]))
    return random_case(seed, exact=exact, blocks=int(rng.integers(2, 5 if tiers > 2 else 7)), tiers=tiers)


def assert_same(solution: Solution, expected: Candidate, status: str) -> None:
    """The same plan, with the same values to the last bit (the case is exact)."""
    assert solution.status == status
    assert key(solution) == (expected.cuts, expected.placement, expected.thresholds)
    assert solution.estimate.mean_s == expected.latency
    assert solution.estimate.accuracy == expected.accuracy


@pytest.mark.parametrize("seed", range(220))
def test_the_search_equals_the_brute_force_to_the_last_bit(seed: int) -> None:
    case = small_case(seed)
    rng = np.random.default_rng([seed, 1])
    model, plain = case.model(), Reference(case.profile, case.topology, case.estimator)
    space = random_space(rng, plain.blocks, len(case.topology.tiers))
    plans = brute_force(plain, space)
    if not plans:
        with pytest.raises(SearchError, match="no plan satisfies the hints"):
            solve_exhaustive(replace(FAST, space=space), model)
        return
    expected = pareto(plans)
    free = solve_exhaustive(replace(FAST, space=space), model)
    assert [(p.latency_s, p.accuracy, key(p)) for p in free.front] == [
        (c.latency, c.accuracy, (c.cuts, c.placement, c.thresholds)) for c in expected
    ]
    assert_same(free, min(plans), "optimal")
    most_accurate = max(c.accuracy for c in plans)
    fastest = min(c.latency for c in plans)

    for bound in (float(rng.choice([c.accuracy for c in plans])), most_accurate):
        answer = solve_p_lat(plans, bound)
        assert answer is not None
        assert_same(
            solve_exhaustive(Problem(minimize=latency, subject_to=(accuracy >= bound,), space=space), model),
            answer,
            "optimal",
        )
    for bound in (float(rng.choice([c.latency for c in plans])), fastest):
        answer = solve_p_acc(plans, bound)
        assert answer is not None
        assert_same(
            solve_exhaustive(Problem(maximize=accuracy, subject_to=(latency <= bound,), space=space), model),
            answer,
            "optimal",
        )

    # Infeasible: the nearest plan is the most accurate one, or the fastest one.
    if most_accurate < 1:
        bound = (most_accurate + 1) / 2
        nearest = min(c for c in plans if c.accuracy == most_accurate)
        for problem in (
            Problem(minimize=latency, subject_to=(accuracy >= bound,), space=space),
            Problem(maximize=accuracy, subject_to=(accuracy >= bound,), space=space),
        ):
            assert_same(solve_exhaustive(problem, model), nearest, "infeasible")
    problem = Problem(maximize=accuracy, subject_to=(latency <= fastest / 2 - 1e-9,), space=space)
    assert_same(solve_exhaustive(problem, model), min(plans), "infeasible")


@pytest.mark.parametrize("seed", range(60))
def test_the_search_equals_the_brute_force_on_real_numbers(seed: int) -> None:
    case = small_case(seed + 1000, exact=False)
    model, plain = case.model(), Reference(case.profile, case.topology, case.estimator)
    space = SearchSpace(thresholds=(0.0, 0.25, 0.5), exits_per_tier=1 + seed % 2, per_exit_thresholds=seed % 3 == 0)
    expected, got = pareto(brute_force(plain, space)), solve_exhaustive(replace(FAST, space=space), model).front
    # Each front covers the other, up to the quantum to which the search rounds.
    for c in expected:
        assert any(p.latency_s <= c.latency * (1 + 1e-9) and p.accuracy >= c.accuracy - 1e-12 for p in got)
    for p in got:
        assert any(c.latency <= p.latency_s * (1 + 1e-9) and c.accuracy >= p.accuracy - 1e-12 for c in expected)
    for p in got:
        estimate = model.estimate(p.plan)
        assert estimate.mean_s == pytest.approx(p.latency_s, rel=1e-9)
        assert estimate.accuracy == pytest.approx(p.accuracy, abs=1e-9)


@pytest.mark.parametrize("seed", range(25))
def test_the_size_of_blocks_does_not_change_results(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = small_case(seed)
    space = random_space(np.random.default_rng([seed, 2]), case.profile.num_blocks, len(case.topology.tiers))

    def front() -> list[tuple[Any, ...]]:
        try:
            found = solve_exhaustive(replace(FAST, space=space), case.model()).front
        except SearchError:
            return []
        return [(p.latency_s, p.accuracy, p.plan) for p in found]

    whole = front()
    for cells in (1, 5, 17):
        monkeypatch.setattr(exhaustive, "_BLOCK_CELLS", cells)
        assert front() == whole


@pytest.mark.parametrize("seed", range(60))
def test_counting_equals_enumerating(seed: int) -> None:
    case = small_case(seed)
    blocks, tiers = case.profile.num_blocks, len(case.topology.tiers)
    space = random_space(np.random.default_rng([seed, 3]), blocks, tiers)
    assert count_plans(space, case.model()) == sum(1 for _ in enumerate_plans(space, blocks, tiers))


def test_the_papers_largest_space() -> None:
    case = random_case(5, blocks=55, tiers=3, estimator="sample")
    # 55·3 + C(55,2)·6·10 + C(55,3)·6·10: one partition asks no threshold.
    assert 55 * 3 + 1485 * 60 + 26_235 * 60 == 1_663_365
    assert count_plans(SearchSpace(exits_per_tier=1), case.model()) == 1_663_365


# -- the front -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 10, 5000, 20_000])
@pytest.mark.parametrize("levels", [1, 3, 1000, None])
def test_front_indices_against_the_definition(size: int, levels: int | None) -> None:
    rng = np.random.default_rng(size)
    seconds, right = rng.random(size), rng.random(size)
    if levels:
        seconds, right = np.round(seconds * levels) / levels, np.round(right * levels) / levels
    seconds[rng.random(size) < 0.1] = np.inf
    kept, best = [], -math.inf
    for i in sorted(range(size), key=lambda i: (seconds[i], -right[i], i)):
        if right[i] > best and math.isfinite(seconds[i]):
            kept.append(i)
            best = right[i]
    assert front_indices(seconds, right).tolist() == kept


# -- problems and refusals -------------------------------------------------------------------------


def test_an_empty_space_names_its_hints() -> None:
    case = random_case(1, exact=True, blocks=4, tiers=2, estimator="sample")
    for space, name in (
        (SearchSpace(min_partitions=5), "min_partitions=5"),
        (SearchSpace(cuts=(1, 2), truncation=False), r"cuts=\(1, 2\), truncation=False"),
        (SearchSpace(block_tiers={1: ()}), r"block_tiers=\{1: \(\)\}"),
        (SearchSpace(tiers=()), r"tiers=\(\)"),
        (SearchSpace(block_tiers={1: (0,), 2: (1,), 3: (0,)}, cuts=(3, 4)), "block_tiers"),
    ):
        with pytest.raises(SearchError, match=name):
            solve_exhaustive(replace(FAST, space=space), case.model())


def test_a_space_that_is_too_large_is_refused_with_its_size() -> None:
    model = random_case(5, blocks=40, tiers=4, estimator="sample").model()
    space = SearchSpace(per_exit_thresholds=True, exits_per_tier=2)
    with pytest.raises(SearchError, match=r"200,000,000 plans.*restrict"):
        solve_exhaustive(replace(FAST, space=space), model)


@pytest.mark.parametrize(
    ("space", "name"),
    [
        (SearchSpace(cuts=(0,)), "cuts"),
        (SearchSpace(cuts=(5,)), "cuts"),
        (SearchSpace(exits=(5,)), "exits"),
        (SearchSpace(tiers=(2,)), "tiers"),
        (SearchSpace(block_tiers={5: (0,)}), "blocks"),
        (SearchSpace(block_tiers={1: (2,)}), "block_tiers"),
    ],
)
def test_hints_about_what_does_not_exist_are_refused(space: SearchSpace, name: str) -> None:
    model = random_case(1, blocks=4, tiers=2).model()
    with pytest.raises(InvalidValue, match=name):
        solve_exhaustive(replace(FAST, space=space), model)


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(InvalidValue, match=r"a codec is one of .*, but got 'zip'"):
        solve_exhaustive(replace(FAST, space=SearchSpace(codecs=("zip",))), random_case(1, blocks=4, tiers=2).model())


def test_laws_of_spaces_and_problems() -> None:
    wrong_spaces: list[dict[str, Any]] = [
        {"thresholds": ()},
        {"thresholds": (1.5,)},
        {"thresholds": (math.nan,)},
        {"thresholds": (0.1, 0.1)},
        {"min_partitions": 0},
        {"min_partitions": 3, "max_partitions": 2},
        {"exits_per_tier": 0},
        {"tier_order": "random"},
    ]
    for hints in wrong_spaces:
        with pytest.raises(InvalidValue):
            SearchSpace(**hints)
    wrong_problems: tuple[dict[str, Any], ...] = (
        {},
        {"minimize": ()},
        {"minimize": (latency, accuracy), "maximize": accuracy},
        {"minimize": latency, "maximize": Metric("latency", "s", len)},
        {"minimize": latency, "subject_to": (accuracy >= 90,)},
        {"minimize": latency, "subject_to": (accuracy >= math.nan,)},
    )
    for arguments in wrong_problems:
        with pytest.raises(InvalidValue):
            Problem(**arguments)


def test_the_tightest_of_several_bounds_counts() -> None:
    problem = Problem(minimize=latency, subject_to=(accuracy >= 0.5, accuracy >= 0.7, latency <= 2, latency <= 1))
    assert (problem.min_accuracy, problem.max_latency_s) == (0.7, 1.0)
    assert (FAST.min_accuracy, FAST.max_latency_s) == (-math.inf, math.inf)
    assert str(problem.subject_to[0]) == "accuracy ≥ 0.5"
    assert str(problem.subject_to[2]) == "latency ≤ 2 s"


@pytest.mark.parametrize("seed", range(20))
def test_a_bound_on_both_metrics(seed: int) -> None:
    case = small_case(seed)
    plain = Reference(case.profile, case.topology, case.estimator)
    space = SearchSpace(thresholds=(0.0, 0.5))
    plans = brute_force(plain, space)
    middle = pareto(plans)[len(pareto(plans)) // 2]
    both = (accuracy >= middle.accuracy, latency <= middle.latency)
    for problem in (
        Problem(minimize=latency, subject_to=both, space=space),
        Problem(maximize=accuracy, subject_to=both, space=space),
    ):
        assert_same(solve_exhaustive(problem, case.model()), middle, "optimal")
    tight = (accuracy >= middle.accuracy, latency <= middle.latency * 0.999 - 1e-9)
    assert_same(
        solve_exhaustive(Problem(minimize=latency, subject_to=tight, space=space), case.model()), middle, "infeasible"
    )


# -- baselines -------------------------------------------------------------------------------------
#
# Three blocks, three equal tiers whose blocks cost 4, 2 and 1 s at tier 0, 1, 2; the sample and the
# result are at tier 0. Links: 1 s each way and nothing else (bandwidth is as good as infinite). The
# "encoded" input saves the encoding, which costs 3 s. Exit branches cost nothing.


def hand_model() -> PerformanceModel:
    def one(name: str, block: float) -> Any:
        start, end = np.indices((4, 4))
        return device(
            name,
            (end - start) * block,
            codecs={"float32": codec([10] * 4, 3.0), "encoded": codec([10, math.nan, math.nan, math.nan])},
            result=result_profile([0.0], 10.0),
        )

    # Exit 1 takes half of the samples at θ = 0.5 and is always right; later ones take three quarters.
    score = np.array([[0.1, 0.1, 0.0], [0.2, 0.1, 0.0], [0.9, 0.1, 0.0], [0.9, 0.9, 0.0]])
    exits = SampleExits(scores={"entropy": score}, correct=np.array([[1, 1, 1], [1, 1, 1], [0, 1, 1], [0, 0, 1]]))
    link = Link(bandwidth_bps=1e18, propagation_delay_s=1.0)
    return PerformanceModel(
        Profile(
            backbone=backbone(3),
            exits=exits,
            devices={"a": one("a", 4.0), "b": one("b", 2.0), "c": one("c", 1.0)},
        ),
        Topology(
            name="hand",
            tiers=(Tier(name="edge", device="a"), Tier(name="fog", device="b"), Tier(name="cloud", device="c")),
            links=(link, link),
        ),
    )


def test_each_baseline_is_what_its_name_says() -> None:
    model = hand_model()
    full = Problem(minimize=latency, subject_to=(accuracy >= 1.0,), space=SearchSpace(thresholds=(0.0, 0.5)))
    found = solve_baselines(full, model)
    expected = {
        "edge-only": (12.0, (3,), (0,)),  # 3 · 4
        "fog-only": (11.0, (3,), (1,)),  # encode 3 + 1 + 3 · 2 + 1
        "cloud-only": (10.0, (3,), (2,)),  # encode 3 + 2 + 3 · 1 + 2
        "cloud-only encoded": (7.0, (3,), (2,)),  # the same without encoding
        "Neurosurgeon": (10.0, (3,), (2,)),  # a split at 1 would be 4 + 3 + 2 + 2 + 2 = 13
        "best split": (10.0, (3,), (2,)),
        "BranchyNet": (8.0, (1, 3), (0, 0)),  # 4 + half of 8
        "best truncated tier": (10.0, (3,), (2,)),  # accuracy 1 needs all blocks
    }
    for name, (seconds, cuts, placement) in expected.items():
        plan = found[name].plan
        assert (plan.cuts, plan.placement) == (cuts, placement), name
        assert found[name].estimate.mean_s == pytest.approx(seconds), name
        assert found[name].status == "optimal", name
    # The paper's space: edge 4, half of them on to the cloud: 3 + 2 + 2 · 1 + 2 = 9: 8.5 in all,
    # against 10 for the cloud alone; the marginal estimate 0.5 · 0.5 + 0.5 · 1 = 0.75 of that plan
    # forbids it, so that it stays with the cloud.
    assert found["the paper"].plan.placement == (2,)
    assert found["the paper"].estimate.mean_s == pytest.approx(10.0)
    assert found["the paper"].estimate.estimator == "sample"
    assert set(found) == {*expected, "the paper"}
    # At half of the accuracy one block is enough: on the edge 4 s, in the cloud 3 + 2 + 1 + 2 = 8.
    half = solve_baselines(replace(full, subject_to=(accuracy >= 0.5,)), model)
    assert (half["best truncated tier"].plan.cuts, half["best truncated tier"].plan.placement) == ((1,), (0,))
    assert half["edge-only"].plan.cuts == (3,)


def test_baselines_without_exits_never_ask_one() -> None:
    model = hand_model()
    for name, space in baseline_spaces(model, SearchSpace()).items():
        solution = solve_exhaustive(replace(FAST, space=space), model)
        if name != "BranchyNet":
            assert all(theta == 0 for p in solution.front for theta in p.plan.thresholds), name
        if "truncated" not in name:
            assert all(p.plan.cuts[-1] == 3 for p in solution.front), name
        if "encoded" not in name:
            assert all("encoded" not in model.complete(p.plan, space.codecs).codecs for p in solution.front), name


def test_a_single_tier_has_neither_cloud_nor_split() -> None:
    case = random_case(2, blocks=3, tiers=1, estimator="sample")
    found = solve_baselines(replace(FAST, space=SearchSpace(thresholds=(0.0, 0.5))), case.model())
    assert set(found) == {"edge-only", "BranchyNet", "best truncated tier", "the paper"}


@pytest.mark.parametrize("seed", draws(40, 20))
def test_no_baseline_beats_the_optimum_of_a_space_that_holds_it(seed: int) -> None:
    case = random_case(seed, blocks=4, tiers=3, estimator="sample")
    model = case.model()
    space = SearchSpace(thresholds=(0.0, 0.25, 0.5, 0.75), exits_per_tier=2)
    reached = [p.accuracy for p in solve_exhaustive(replace(FAST, space=space), model).front]
    for bound in {reached[0], reached[len(reached) // 2], reached[-1]}:
        problem = Problem(minimize=latency, subject_to=(accuracy >= bound,), space=space)
        solution = solve(problem, model, new_samples=False)
        assert solution.status == "optimal"
        for name, baseline in solution.baselines.items():
            if baseline.status == "optimal":
                assert baseline.estimate.accuracy >= bound - 1e-12, name
                assert baseline.estimate.mean_s >= solution.estimate.mean_s * (1 - 1e-9), name
            else:  # nearest, and truly short of the bound
                assert baseline.estimate.accuracy < bound, name
    assert solve(problem, model, baselines=False, new_samples=False).baselines == {}


def test_a_baseline_that_misses_the_constraint_says_so() -> None:
    model = hand_model()
    problem = Problem(maximize=accuracy, subject_to=(latency <= 6.0,), space=SearchSpace(thresholds=(0.0, 0.5)))
    solution = solve(problem, model)
    assert solution.status == "optimal"
    assert solution.baselines["edge-only"].status == "infeasible"
    text = str(solution)
    assert "(misses the constraint)" in text
    assert "maximize accuracy subject to latency ≤ 6 s: optimal" in text.splitlines()
    values = solution.to_dict()
    assert values["status"] == "optimal"
    assert values["baselines"]["edge-only"]["status"] == "infeasible"
    assert values["plan"]["cuts"] == list(solution.plan.cuts)
    assert [p["latency_ms"] for p in values["front"]] == [1e3 * p.latency_s for p in solution.front]


@pytest.mark.parametrize("seed", range(12))
def test_no_random_plan_beats_the_front(seed: int) -> None:
    case = random_case(seed, blocks=8, tiers=3)
    model, rng = case.model(), np.random.default_rng(seed)
    thetas = (0.0, 0.25, 0.5)
    space = SearchSpace(thresholds=thetas, per_exit_thresholds=True, exits_per_tier=2, max_partitions=3)
    front = solve_exhaustive(replace(FAST, space=space), model).front
    for _ in range(40):
        plan = random_plan(rng, 8, 3, length=int(rng.integers(1, 4)), thresholds=thetas)
        places = zip(pairwise(plan.placement), plan.thresholds, strict=True)
        if max(plan.placement.count(t) for t in plan.placement) > 2 or any(a == b and not t for (a, b), t in places):
            continue
        estimate = model.estimate(plan)
        assert any(
            p.latency_s <= estimate.mean_s * (1 + 1e-9) and p.accuracy >= estimate.accuracy - 1e-12 for p in front
        )


def test_raw_input_kept_on_its_tier() -> None:
    model = hand_model()
    space = SearchSpace(thresholds=(0.0, 0.5), block_tiers={1: (0,)})
    for point in solve_exhaustive(replace(FAST, space=space), model).front:
        assert point.plan.placement[0] == 0
    assert solve_exhaustive(replace(FAST, space=replace(space, truncation=False)), model).plan.placement[0] == 0


def test_the_plan_of_the_hand_case_is_the_one_worked_out() -> None:
    # Block 1 on the edge 4 s; half of the samples go on to the cloud: 3 + 2 + 2 + 2 = 9: 8.5 s. All
    # in the cloud, encoded, with the exit there: 2 + 1 + half of 2 + 2 = 6; all in the fog: 1 + 2 + half
    # of 4 + 1 = 6 as well. Exit 1 is always right. Of equals the first placement wins.
    problem = Problem(
        minimize=latency,
        subject_to=(accuracy >= 1.0,),
        space=SearchSpace(thresholds=(0.0, 0.5), exits_per_tier=2),
    )
    solution = solve_exhaustive(problem, hand_model())
    assert solution.plan == Plan(cuts=(1, 3), placement=(1, 1), thresholds=(0.5,), codecs=("encoded", None))
    assert solution.estimate.mean_s == pytest.approx(6.0)
    assert solution.stats.solver == "exhaustive"
    # One partition: 3 cuts · 3 tiers. Two: 3 pairs of cuts · (6 placements · 2 thresholds + 3 on one tier, with the
    # exit). Three: 1 · (6 placements · 2 thresholds + 2 · 6 with two on a tier, with the exit).
    assert solution.stats.plans == 9 + 45 + 24


@pytest.mark.parametrize("seeds", [range(10), pytest.param(range(10, 30), marks=pytest.mark.slow)])
def test_the_latency_of_a_plan_as_its_own_bound(seeds: range) -> None:
    for seed in seeds:
        case = small_case(seed, exact=False)
        space = SearchSpace(thresholds=(0.0, 0.25, 0.5), exits_per_tier=1)
        for point in solve_exhaustive(replace(FAST, space=space), case.model()).front:
            bound = case.model().estimate(point.plan).mean_s
            problem = Problem(maximize=accuracy, subject_to=(latency <= bound,), space=space)
            solution = solve_exhaustive(problem, case.model())
            assert solution.status == "optimal"
            assert solution.estimate.accuracy >= point.accuracy - 1e-12
