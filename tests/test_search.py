"""Both searches against the exhaustive one, to the last bit, and against a mixed-integer program."""

from __future__ import annotations

import gc
import math
import os
import sys
import weakref
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import milp
from portend.errors import SearchError
from portend.io.forms import load_topology
from portend.io.storage import load_profile
from portend.perfmodel.model import Estimator, PerformanceModel
from portend.planner import dynamic, replay
from portend.planner import search as search_module
from portend.planner.completions import Completions
from portend.planner.descent import Descent
from portend.planner.exhaustive import solve_exhaustive
from portend.planner.goals import BestGoal, Found, Front
from portend.planner.limits import Limits
from portend.planner.metrics import latency_quantile
from portend.planner.problem import FrontPoint, Problem, SearchSpace, accuracy, latency
from portend.planner.promise import keep_promise
from portend.planner.search import FRONT_LIMIT, search
from portend.planner.space import PlanSpace
from portend.values.exits import SampleExits
from portend.values.plan import Plan
from portend.values.profile import Profile
from portend.values.topology import Tier, Topology
from problems import (
    Case,
    backbone,
    codec,
    device,
    draws,
    random_case,
    random_problem,
    random_space,
    result_profile,
    some_exits,
    without_branches,
)
from reference import Reference
from test_planner import FAST

ROOT = Path(__file__).resolve().parents[1]


def a_case(seed: int, estimator: Estimator = "marginal") -> tuple[Case, SearchSpace]:
    """Rates that need not grow, ties (every other case is exact), any mixture of hints, branches at some cuts only."""
    rng = np.random.default_rng([seed, 9])
    blocks, tiers = int(rng.integers(2, 7)), int(rng.integers(1, 5))
    case = random_case(seed, exact=seed % 2 == 0, blocks=blocks, tiers=tiers, estimator=estimator)
    space = random_space(rng, blocks, tiers)
    if isinstance(case.profile.exits, SampleExits) and rng.random() < 0.3:
        case = without_branches(case, some_exits(rng, blocks))
        known = case.profile.backbone.exit_cuts
        space = replace(space, exits=space.exits and tuple(cut for cut in space.exits if cut in known))
    return case, space


def a_problem(seed: int, estimator: Estimator) -> tuple[Case, Problem] | None:
    """A problem whose every field is drawn; None where the space is empty."""
    case, hints = a_case(seed, estimator)
    front = exhaustive_front(hints, case.model())
    rng = np.random.default_rng([seed, 10])
    seconds, right = [p.latency_s for p in front], [p.accuracy for p in front]
    return (case, random_problem(rng, hints, latency, seconds, right)) if front else None


@pytest.mark.parametrize("kind", [SearchSpace, Problem])
def test_every_field_is_drawn(kind: type[SearchSpace] | type[Problem]) -> None:
    """A field that the random problems of these tests never vary is one that no test checks."""
    drawn = [found[1] for found in (a_problem(seed, "sample") for seed in range(60)) if found]
    some: list[Any] = [problem.space for problem in drawn] if kind is SearchSpace else drawn
    for field in fields(kind):
        values = [getattr(one, field.name) for one in some]
        assert len({repr(value) for value in values}) > 1, f"{field.name} is always {values[0]}"
    spaces = [problem.space for problem in drawn]
    assert any(not s.truncation and s.exits_per_tier > 1 and max(s.thresholds) == 1 for s in spaces)


@pytest.mark.parametrize("estimator", ["marginal", "sample"])
@pytest.mark.parametrize("block", draws(12, 4))
def test_any_problem_has_the_exhaustive_answer(
    block: int, estimator: Estimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objectives, bounds that cannot be met among them, hints and promises, with the whole front and by one search."""
    for seed in range(20 * block, 20 * block + 20):
        found = a_problem(seed, estimator)
        if found is None:
            continue
        model, problem = found[0].model(), found[1]
        promised = problem.robust is not None and problem.min_accuracy > 0
        tested = promised and isinstance(model.profile.exits, SampleExits)
        exhaustively = (
            keep_promise(problem, model, lambda asked, on, _: solve_exhaustive(asked, on)) if tested else None
        )
        expected = exhaustively or solve_exhaustive(problem, model)
        for limit in (FRONT_LIMIT, 0) if not tested else (FRONT_LIMIT,):  # which plans are tested, the front decides
            monkeypatch.setattr(search_module, "FRONT_LIMIT", limit)
            got = search(problem, model)
            assert (got.status, got.plan) == (expected.status, expected.plan), (seed, str(problem))


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


def the_front(space: PlanSpace) -> Front[Any]:
    """The front, which must be whole."""
    front, whole = dynamic.front(space) if space.bits is None else replay.front(space)
    assert whole
    return front


def the_best(space: PlanSpace, *, need: float, budget: float, fastest: bool) -> Found | None:
    """The optimum, which must be proven."""
    best = dynamic.best if space.bits is None else replay.best
    found, bound = best(space, need=need, budget=budget, fastest=fastest)
    none = math.inf if fastest else -math.inf
    assert bound == (none if found is None else found.latency if fastest else found.right)
    return found


def fastest(space: PlanSpace, right: float) -> Found | None:
    return the_best(space, need=right, budget=math.inf, fastest=True)


@pytest.mark.parametrize("block", draws(26, 9))
def test_on_marginals_the_front_and_every_optimum_equal_the_exhaustive_search_to_the_last_bit(block: int) -> None:
    """520 random instances, 20 a test; 180 of them fast."""
    for seed in range(20 * block, 20 * block + 20):
        case, hints = a_case(seed)
        model = case.model()
        space, expected = PlanSpace(hints, model), exhaustive_front(hints, model)
        front = the_front(space)
        assert points(space, front) == list(expected), seed
        for point in front:
            most_accurate = the_best(space, need=-math.inf, budget=point.latency, fastest=False)
            assert fastest(space, point.right) == most_accurate == point, seed


@pytest.mark.parametrize("block", draws(15, 6))
def test_on_samples_the_front_and_every_optimum_equal_the_exhaustive_search_to_the_last_bit(block: int) -> None:
    """300 random score tables, 20 a test; 120 of them fast."""
    for seed in range(6 * block, 6 * block + 6):
        case, hints = a_case(seed, "sample")
        model = case.model()
        space, expected = PlanSpace(hints, model), exhaustive_front(hints, model)
        front = the_front(space)
        assert points(space, front) == list(expected), seed
        for point in front:
            most_accurate = the_best(space, need=-math.inf, budget=point.latency, fastest=False)
            assert fastest(space, point.right) == most_accurate == point, seed


def one_tier(first_s: float, second_s: float, whole_s: float, estimator: Estimator) -> PerformanceModel:
    """Two blocks on one tier; the one sample may leave at the first exit."""
    table = [[0, first_s, whole_s], [0, 0, second_s], [0, 0, 0]]
    exits = SampleExits(scores={"entropy": np.array([[0.1, 0.1]])}, correct=np.ones((1, 2), dtype=np.bool_))
    edge = device("edge", table, codecs={"float32": codec([10.0] * 3)}, result=result_profile([0.0]))
    return PerformanceModel(
        Profile(backbone=backbone(2), exits=exits, devices={"edge": edge}),
        Topology(name="one", tiers=(Tier(name="edge", device="edge"),), links=()),
        estimator=estimator,
    )


@pytest.mark.parametrize("estimator", ["marginal", "sample"])
def test_a_plan_that_nobody_finishes_counts_where_the_shorter_one_is_forbidden(estimator: Estimator) -> None:
    """All leave at the first exit after 1 ms; without truncation, that exit must be followed by the last block."""
    hints = SearchSpace(thresholds=(0.5,), exits_per_tier=2, truncation=False)
    found = search(Problem(minimize=latency, space=hints), one_tier(1e-3, 1e-3, 2e-3, estimator))
    assert found.plan == Plan(cuts=(1, 2), placement=(0, 0), thresholds=(0.5,), codecs=(None, None))
    assert found.estimate.mean_s == pytest.approx(1e-3)
    at_two = search(
        Problem(minimize=latency, space=replace(hints, cuts=(1, 2), truncation=True)),
        one_tier(1e-3, 1e-3, 2e-3, estimator),
    )
    assert at_two.plan.cuts == (1,)  # the same, but shorter


@pytest.mark.parametrize("estimator", ["marginal", "sample"])
def test_no_plan_cuts_a_tiers_blocks_in_two_where_nobody_may_leave(estimator: Estimator) -> None:
    """Two parts were measured, by noise, as faster than the whole."""
    model = one_tier(1e-3, 1e-3, 3e-3, estimator)
    for hints in (SearchSpace(thresholds=(0.0,), exits_per_tier=2), SearchSpace(exits=(), exits_per_tier=2)):
        problem = Problem(minimize=latency, subject_to=(accuracy >= 1.0,), space=replace(hints, truncation=False))
        for solved in (
            search(problem, model),
            solve_exhaustive(problem, model),
            search(replace(problem, minimize=latency_quantile(0.5)), model),
        ):
            assert solved.plan.cuts == (2,)
            assert solved.stats.plans == 1
        with pytest.raises(SearchError, match="no plan"):
            search(replace(problem, space=replace(problem.space, min_partitions=2)), model)


def test_where_no_exit_may_be_used_nobody_replays_samples() -> None:
    """Such problems are the same by either estimator, and easy however long the network is."""
    case = random_case(3, blocks=30, tiers=5, estimator="sample")
    sampled, marginal = case.model(), replace(case, estimator="marginal").model()
    for hints in (SearchSpace(exits=()), SearchSpace(thresholds=(0.0,)), SearchSpace(max_partitions=1)):
        problem = Problem(minimize=latency, subject_to=(accuracy >= 0.4,), space=hints)
        found, expected = search(problem, sampled), search(problem, marginal)
        assert (found.status, found.plan) == (expected.status, expected.plan)
        assert found.stats.solver == "dynamic programming"
        assert found.estimate.estimator == "sample"


@pytest.mark.parametrize("block", draws(8, 2))
def test_descents_end_at_plans_of_the_space_with_their_own_values(block: int) -> None:
    ended = 0
    for seed in range(6 * block, 6 * block + 6):
        case, hints = a_case(seed, "sample")
        model = case.model()
        space = PlanSpace(hints, model)
        if space.bits is None or not space.count():
            continue
        run, fast = replay._Search(space), seed % 3 > 0
        need, budget = (0.7 * space.samples, math.inf) if fast else (-math.inf, 1.5 * space.least_cost())
        goal = BestGoal(run.none(), replay._canonical, need=need, budget=budget, fastest=fast)
        descent = Descent(space, run._placed, goal)
        price = space.least_cost() / space.samples
        ends = {end for row in range(space.theta.size) for end in descent.from_row(row, price, Limits())}
        for chain, took, right in ends:
            found = run.answer(run._ends(chain, took, right), 0)  # finds a placement that takes just so long
            estimate = model.estimate(space.complete(found.plan))
            assert estimate.mean_s == pytest.approx(float(space.value(took)), rel=1e-6)
            assert round(estimate.accuracy * space.samples) == right
            best = the_best(space, need=right, budget=took, fastest=True)
            assert best is not None
            assert best.latency <= took
            ended += 1
    assert ended


def test_descents_find_the_best_plan_where_the_first_look_does_not() -> None:
    case = random_case(7, blocks=9, tiers=3, estimator="sample")
    space = PlanSpace(SearchSpace(per_exit_thresholds=True, max_partitions=4), case.model())
    need = float(np.rint(0.97 * space.right.max()))
    run = replay._Search(space)
    goal = BestGoal(run.none(), replay._canonical, need=need, budget=space.limit, fastest=True)
    run.look(goal, Limits())
    looked = goal.value
    common = space.part(replace(space.space, per_exit_thresholds=False))
    run.descend(goal, Completions(common, Limits()).best(goal), Limits())
    best = fastest(space, need)
    assert looked is not None
    assert best is not None
    assert goal.value == best.latency < looked


@pytest.mark.parametrize("block", draws(4, 1))
def test_no_plan_beats_what_the_sharper_bounds_say(block: int) -> None:
    """A plan that is best at a price of a right answer lies on the front, and so does the most accurate one."""
    seen = set()
    for case, hints in (a_case(seed, "sample") for seed in range(40 * block, 40 * block + 40)):
        space = PlanSpace(hints, case.model())
        if space.bits is None or not space.count():
            continue
        longer = [found for found in the_front(space) if len(found.plan) > 1]
        run, completions = replay._Search(space), Completions(space, Limits())
        goal = BestGoal(run.none(), replay._canonical, need=1.0, budget=math.inf, fastest=True)
        loose = completions.best(goal)
        rights = completions.right()
        assert rights is not None
        assert -rights.whole.min() >= max((found.right for found in longer), default=-math.inf)
        for price in (loose.price, loose.price * 10, loose.price / 10):
            for sharp in completions.sharper(loose, goal, price):
                for found in longer:
                    rows = [int(np.searchsorted(space.theta, t)) for t in found.plan.thresholds if t > 0]
                    value = found.latency - sharp.price * found.right
                    at_least = sharp.whole - np.abs(sharp.whole) * 1e-12 - 8
                    row = rows[0] if rows and not hints.per_exit_thresholds else slice(None)
                    assert np.min(at_least[row]) <= np.max(value[row])
                    seen.add((hints.per_exit_thresholds, len(found.plan)))
    assert {kind for kind, _ in seen} == {True, False}
    assert max(length for _, length in seen) >= 4


def test_bounds_of_a_deep_network_are_near_the_truth() -> None:
    """By the last exit alone, own thresholds leave a bound far below the best plan, and accuracy one above all."""
    topology = load_topology(ROOT / "configs/topologies/three_tier.yaml")
    model = PerformanceModel(load_profile(ROOT / "profiles/resnet110-cifar10.zip"), topology)
    some, cuts = (0.0, 0.2, 0.4, 0.6, 0.8), (*range(2, 56, 3), 55)
    own = PlanSpace(SearchSpace(per_exit_thresholds=True, thresholds=some, cuts=cuts), model)
    need = own.counts(model.profile.full_accuracy - 0.01)
    best = fastest(own, need)
    assert best is not None
    completions = Completions(own, Limits())
    goal = BestGoal(replay._Search(own).none(), replay._canonical, need=need, budget=best.latency, fastest=True)
    loose = completions.best(goal)
    common = Completions(own.part(replace(own.space, per_exit_thresholds=False)), Limits()).best(goal)
    price = np.full_like(common.price, common.price[common.proven(goal).argmin()])
    sharp = [one.proven(goal).min() for one in completions.sharper(loose, goal, price)]
    assert loose.proven(goal).min() < 0.5 * best.latency
    assert 0.75 * best.latency < sharp[-1] <= best.latency
    rights = Completions(PlanSpace(SearchSpace(thresholds=(0.3,)), model), Limits()).right()
    assert rights is not None
    assert 0.9018 < -rights.whole.min() / model.samples < 0.92


def test_descents_change_no_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_FEW", 0)
    monkeypatch.setattr(replay, "_STARTS", 2)
    for case, hints in (a_case(seed, "sample") for seed in range(500, 512)):
        space = PlanSpace(hints, case.model())
        if space.bits is None or not space.count():
            continue
        front = list(the_front(space))
        for point in front[:: max(1, len(front) - 1)]:
            assert fastest(space, point.right) == point
            assert the_best(space, need=-math.inf, budget=point.latency, fastest=False) == point


def test_few_nodes_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    spaces = [PlanSpace(hints, case.model()) for case, hints in (a_case(seed, "sample") for seed in range(40))]
    spaces = [space for space in spaces if space.bits is not None]
    whole = [list(the_front(space)) for space in spaces]
    monkeypatch.setattr(replay, "_BYTES", 1)
    monkeypatch.setattr(replay, "_WORDS", 8)
    for space, expected in zip(spaces, whole, strict=True):
        assert list(the_front(space)) == expected


def test_few_labels_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [a_case(seed) for seed in range(40)]
    spaces = [PlanSpace(hints, case.model()) for case, hints in cases]
    whole = [list(the_front(space)) for space in spaces]
    monkeypatch.setattr(dynamic, "_CELLS", 1)
    monkeypatch.setattr(dynamic, "_LABELS", 1)
    monkeypatch.setattr(dynamic, "_BEAM", 1)
    for space, expected in zip(spaces, whole, strict=True):
        assert list(the_front(space)) == expected
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
    for module in (dynamic, replay):
        case = random_case(1, blocks=5, tiers=3, estimator="sample" if module is replay else "marginal")
        space = PlanSpace(SearchSpace(thresholds=(0.0, 0.25)), case.model())
        gone = weakref.ref(space)
        assert len(module.front(space)[0])
        del space
        gc.collect()
        assert gone() is None, f"{module.__name__} keeps what it searched"


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
    hints = SearchSpace(thresholds=(threshold,), tier_order="increasing" if increasing else "any", exits_per_tier=1)
    for drop in drops:
        bound = max(model.profile.full_accuracy - drop, 0.0)
        expected = milp.fastest(plain, threshold, bound, increasing=increasing)
        found = search(Problem(minimize=latency, subject_to=(accuracy >= bound,), space=hints), model)
        assert (found.status == "optimal") == (expected is not None)
        if expected is not None:
            assert math.isclose(found.estimate.mean_s, expected, rel_tol=1e-7), (threshold, drop)
