"""Both searches against the exhaustive one, to the last bit, and against a mixed-integer program."""

from __future__ import annotations

import gc
import math
import os
import sys
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import milp
from portend.errors import SearchError
from portend.perfmodel.model import Estimator, PerformanceModel
from portend.planner import dynamic, replay
from portend.planner import search as search_module
from portend.planner.exhaustive import solve_exhaustive
from portend.planner.goals import BestGoal, Found
from portend.planner.problem import FrontPoint, Problem, SearchSpace, accuracy, latency
from portend.planner.search import search
from portend.planner.space import PlanSpace
from portend.topology import Link
from problems import Case, draws, random_case
from reference import Reference
from test_planner import FAST, random_space

ROOT = Path(__file__).resolve().parents[1]


def a_case(seed: int, estimator: Estimator = "marginal") -> tuple[Case, SearchSpace]:
    """Rates that need not grow, ties (every other case is exact), and any mixture of hints."""
    rng = np.random.default_rng([seed, 9])
    blocks, tiers = int(rng.integers(2, 7)), int(rng.integers(1, 5))
    case = random_case(seed, exact=seed % 2 == 0, blocks=blocks, tiers=tiers, estimator=estimator)
    return case, random_space(rng, blocks, tiers)


def exhaustive_front(space: SearchSpace, model: PerformanceModel) -> tuple[FrontPoint, ...]:
    try:
        return solve_exhaustive(replace(FAST, space=space), model).front
    except SearchError:
        return ()


def points(space: PlanSpace, front: Sequence[Found]) -> list[FrontPoint]:
    return [
        FrontPoint(latency_s=float(space.value(f.latency)), accuracy=float(space.accuracy(f.right)), plan=f.plan)
        for f in front
    ]


def fastest(space: PlanSpace, right: float) -> Found | None:
    return dynamic.best(space, need=right, budget=math.inf, fastest=True)


@pytest.mark.parametrize("block", draws(26, 9))
def test_on_marginals_the_front_and_every_optimum_equal_the_exhaustive_search_to_the_last_bit(block: int) -> None:
    """520 random instances, 20 a test; 180 of them fast."""
    for seed in range(20 * block, 20 * block + 20):
        case, hints = a_case(seed)
        model = case.model()
        space, expected = PlanSpace(hints, model), exhaustive_front(hints, model)
        front = dynamic.front(space)
        assert points(space, front) == list(expected), seed
        for point in front:
            most_accurate = dynamic.best(space, need=-math.inf, budget=point.latency, fastest=False)
            assert fastest(space, point.right) == most_accurate == point, seed


@pytest.mark.parametrize("block", draws(15, 6))
def test_on_samples_the_front_and_every_optimum_equal_the_exhaustive_search_to_the_last_bit(block: int) -> None:
    """300 random score tables, 20 a test; 120 of them fast."""
    for seed in range(20 * block, 20 * block + 20):
        case, hints = a_case(seed, "sample")
        model = case.model()
        space, expected = PlanSpace(hints, model), exhaustive_front(hints, model)
        front = replay.front(space)
        assert points(space, front) == list(expected), seed
        for point in front:
            found, bound = replay.best(space, need=point.right, budget=math.inf, fastest=True)
            assert (found, bound) == (point, point.latency), seed
            found, _ = replay.best(space, need=-math.inf, budget=point.latency, fastest=False)
            assert found == point, seed


def test_few_nodes_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    spaces = [PlanSpace(hints, case.model()) for case, hints in (a_case(seed, "sample") for seed in range(40))]
    whole = [list(replay.front(space)) for space in spaces]
    monkeypatch.setattr(replay, "_NODES", 2)
    monkeypatch.setattr(replay, "_WORDS", 8)
    for space, expected in zip(spaces, whole, strict=True):
        assert list(replay.front(space)) == expected


def test_a_search_that_is_cut_short_states_what_it_may_have_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "FRONT_LIMIT", 0)
    case = random_case(11, blocks=9, tiers=3, estimator="sample")
    links = tuple(Link(bandwidth_bps=1e6, propagation_delay_s=0.001) for _ in range(2))
    case = replace(case, topology=replace(case.topology, source=0, destination=0, links=links))
    hints = SearchSpace(thresholds=(0.0, 0.125, 0.25, 0.5), exits_per_tier=3, per_exit_thresholds=True)
    bound = 0.9 * float(max(case.profile.exits.accuracies()))
    problem = Problem(minimize=latency, subject_to=(accuracy >= bound,), space=hints)
    whole, cut_short = search(problem, case.model()), search(problem, case.model(), seconds=0.0)
    assert (whole.status, whole.gap, cut_short.status) == ("optimal", 0.0, "feasible")
    assert cut_short.gap is not None
    assert 0 < cut_short.gap < 1
    assert cut_short.estimate.accuracy >= bound
    least = cut_short.estimate.mean_s * (1 - cut_short.gap)
    assert least <= whole.estimate.mean_s * (1 + 1e-9) <= cut_short.estimate.mean_s * (1 + 2e-9)


def test_few_labels_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [a_case(seed) for seed in range(40)]
    spaces = [PlanSpace(hints, case.model()) for case, hints in cases]
    whole = [list(dynamic.front(space)) for space in spaces]
    monkeypatch.setattr(dynamic, "_CELLS", 1)
    monkeypatch.setattr(dynamic, "_LABELS", 1)
    monkeypatch.setattr(dynamic, "_BEAM", 1)
    for space, expected in zip(spaces, whole, strict=True):
        assert list(dynamic.front(space)) == expected
        for point in expected:
            assert fastest(space, point.right) == point


@pytest.mark.parametrize("estimator", ["marginal", "sample"])
@pytest.mark.parametrize("seed", range(40))
def test_answers_equal_those_of_the_exhaustive_search(
    seed: int, estimator: Estimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, hints = a_case(seed, estimator)
    model = case.model()
    front = exhaustive_front(hints, model)
    if not front:
        with pytest.raises(SearchError, match="no plan satisfies the hints"):
            search(replace(FAST, space=hints), model)
        return
    best, quickest = front[-1].accuracy, front[0].latency_s
    middle = front[len(front) // 2]
    problems = [
        FAST,
        Problem(minimize=latency, subject_to=(accuracy >= middle.accuracy,)),
        Problem(minimize=latency, subject_to=(accuracy >= (best + 1) / 2,)),
        Problem(minimize=latency, subject_to=(accuracy >= middle.accuracy, latency <= quickest / 2)),
        Problem(maximize=accuracy, subject_to=(latency <= middle.latency_s,)),
        Problem(maximize=accuracy, subject_to=(latency <= quickest / 2,)),
    ]
    for problem in (replace(problem, space=hints) for problem in problems):
        expected = solve_exhaustive(problem, model)
        for limit in (search_module.FRONT_LIMIT, 0):  # with the front, and by one search
            monkeypatch.setattr(search_module, "FRONT_LIMIT", limit)
            found = search(problem, model)
            assert (found.status, found.plan) == (expected.status, expected.plan), problem
            assert found.stats.plans == expected.stats.plans
            assert found.front == (expected.front if limit else ())


def test_prices_that_no_threshold_needs_are_not_looked_for() -> None:
    case, hints = a_case(2)
    space = PlanSpace(hints, case.model())
    search_ = dynamic._Search(space)
    goal = BestGoal(dynamic._no_plans(), search_.best_first, need=1.0, budget=math.inf, fastest=True)
    prices = dynamic._Prices(search_, goal)
    goal.budget = -math.inf  # every threshold is proven not to hold a better plan
    prices.refine(beam=1)
    assert not len(goal.best)


def test_a_search_leaves_nothing_behind() -> None:
    for front in (dynamic.front, replay.front):
        case = random_case(1, blocks=5, tiers=3, estimator="sample" if front is replay.front else "marginal")
        space = PlanSpace(SearchSpace(thresholds=(0.0, 0.25)), case.model())
        gone = weakref.ref(space)
        assert len(front(space))
        del space
        gc.collect()
        assert gone() is None, f"{front.__module__} keeps what it searched"


def test_more_plans_than_anyone_could_enumerate() -> None:
    case = random_case(7, blocks=30, tiers=4, estimator="marginal")
    hints = SearchSpace(thresholds=(0.0, 0.25, 0.5), exits_per_tier=3, per_exit_thresholds=True)
    problem = Problem(minimize=latency, subject_to=(accuracy >= 0.4,), space=hints)
    solution = search(problem, case.model())
    assert solution.stats.plans > 1e12
    assert solution.front == ()
    narrow = search(replace(problem, space=SearchSpace(thresholds=(0.0, 0.25, 0.5))), case.model())
    assert solution.estimate.mean_s <= narrow.estimate.mean_s * (1 + 1e-9)


# -- an independent reference ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_a_mixed_integer_program_finds_nothing_faster(seed: int) -> None:
    case = random_case(seed + 50, blocks=6, tiers=3, estimator="marginal")
    plain = Reference(case.profile, case.topology, "marginal")
    for threshold in (0.0, 0.25, 0.5):
        compare_with_milp(case.model(), plain, threshold, drops=(0.0, 0.05), increasing=seed % 2 == 0)


@pytest.mark.parametrize(
    "network", ["ResNet20", "EfficientNetB0", "VGGish", pytest.param("ResNet110", marks=pytest.mark.slow)]
)
def test_a_mixed_integer_program_finds_nothing_faster_for_the_papers_networks(network: str) -> None:
    folder = Path(os.environ.get("PORTEND_DATA", ROOT.parent / "shared" / "data")) / "portend_aws"
    if not folder.exists():
        pytest.skip(f"{folder} is absent; set PORTEND_DATA to the folder with the shared data")
    sys.path.insert(0, str(ROOT / "examples" / "paper"))
    import authors

    topology = authors.read_topology(folder)
    profile = authors.read_profile(folder, network, topology)
    model, plain = PerformanceModel(profile, topology), Reference(profile, topology, "marginal")
    for threshold in authors.read_thresholds(folder):
        compare_with_milp(model, plain, threshold, drops=(0.0, 0.03), increasing=False)


def compare_with_milp(
    model: PerformanceModel, plain: Reference, threshold: float, *, drops: tuple[float, ...], increasing: bool
) -> None:
    hints = SearchSpace(thresholds=(threshold,), tier_order="increasing" if increasing else "any")
    for drop in drops:
        bound = max(model.profile.full_accuracy - drop, 0.0)
        expected = milp.fastest(plain, threshold, bound, increasing=increasing)
        found = search(Problem(minimize=latency, subject_to=(accuracy >= bound,), space=hints), model)
        assert (found.status == "optimal") == (expected is not None)
        if expected is not None:
            assert math.isclose(found.estimate.mean_s, expected, rel_tol=1e-7), (threshold, drop)
