"""Dynamic programming against the exhaustive search, to the last bit, and against a mixed-integer program."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import milp
from portend.errors import SearchError
from portend.perfmodel.model import PerformanceModel
from portend.planner import dynamic
from portend.planner.dynamic import Front, fastest, most_accurate, solve_dynamic, whole_front
from portend.planner.exhaustive import solve_exhaustive
from portend.planner.problem import FrontPoint, Problem, SearchSpace, accuracy, latency
from portend.planner.space import PlanSpace
from problems import Case, random_case
from reference import Reference
from test_planner import FAST, random_space

ROOT = Path(__file__).resolve().parents[1]


def a_case(seed: int) -> tuple[Case, SearchSpace]:
    """Rates that need not grow, ties (every other case is exact), and any mixture of hints."""
    rng = np.random.default_rng([seed, 9])
    blocks, tiers = int(rng.integers(2, 7)), int(rng.integers(1, 5))
    case = random_case(seed, exact=seed % 2 == 0, blocks=blocks, tiers=tiers, estimator="marginal")
    return case, random_space(rng, blocks, tiers)


def exhaustive_front(space: SearchSpace, model: PerformanceModel) -> tuple[FrontPoint, ...]:
    try:
        return solve_exhaustive(replace(FAST, space=space), model).front
    except SearchError:
        return ()


def points(space: PlanSpace, front: Front) -> list[FrontPoint]:
    return [
        FrontPoint(latency_s=float(space.seconds(f.latency)), accuracy=float(space.accuracy(f.right)), plan=f.plan)
        for f in front
    ]


@pytest.mark.parametrize("block", range(26))
def test_the_front_and_every_optimum_equal_the_exhaustive_search_to_the_last_bit(block: int) -> None:
    """520 random instances, 20 a test."""
    for seed in range(20 * block, 20 * block + 20):
        case, hints = a_case(seed)
        model = case.model()
        space, expected = PlanSpace(hints, model), exhaustive_front(hints, model)
        front = whole_front(space)
        assert points(space, front) == list(expected), seed
        for point in front:
            for found in (fastest(space, point.right), most_accurate(space, point.latency)):
                assert found == point, seed


def test_few_labels_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [a_case(seed) for seed in range(40)]
    spaces = [PlanSpace(hints, case.model()) for case, hints in cases]
    whole = [list(whole_front(space)) for space in spaces]
    monkeypatch.setattr(dynamic, "_CELLS", 1)
    monkeypatch.setattr(dynamic, "_LABELS", 1)
    monkeypatch.setattr(dynamic, "_BEAM", 1)
    for space, expected in zip(spaces, whole, strict=True):
        assert list(whole_front(space)) == expected
        for point in expected:
            assert fastest(space, point.right) == point


@pytest.mark.parametrize("seed", range(40))
def test_answers_equal_those_of_the_exhaustive_search(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case, hints = a_case(seed)
    model = case.model()
    front = exhaustive_front(hints, model)
    if not front:
        with pytest.raises(SearchError, match="no plan satisfies the hints"):
            solve_dynamic(replace(FAST, space=hints), model)
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
        for limit in (dynamic.FRONT_LIMIT, 0):  # with the front, and by one search
            monkeypatch.setattr(dynamic, "FRONT_LIMIT", limit)
            found = solve_dynamic(problem, model)
            assert (found.status, found.plan) == (expected.status, expected.plan), problem
            assert found.stats.plans == expected.stats.plans
            assert found.front == (expected.front if limit else ())


def test_samples_have_no_states() -> None:
    model = random_case(3, estimator="sample").model()
    with pytest.raises(SearchError, match="marginal"):
        solve_dynamic(FAST, model)


def test_more_plans_than_anyone_could_enumerate() -> None:
    case = random_case(7, blocks=30, tiers=4, estimator="marginal")
    hints = SearchSpace(thresholds=(0.0, 0.25, 0.5), exits_per_tier=3, per_exit_thresholds=True)
    problem = Problem(minimize=latency, subject_to=(accuracy >= 0.4,), space=hints)
    solution = solve_dynamic(problem, case.model())
    assert solution.stats.plans > 1e12
    assert solution.front == ()
    narrow = solve_dynamic(replace(problem, space=SearchSpace(thresholds=(0.0, 0.25, 0.5))), case.model())
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
        found = solve_dynamic(Problem(minimize=latency, subject_to=(accuracy >= bound,), space=hints), model)
        assert (found.status == "optimal") == (expected is not None)
        if expected is not None:
            assert math.isclose(found.estimate.mean_s, expected, rel_tol=1e-7), (threshold, drop)
