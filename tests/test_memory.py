"""Memory of tiers: what a plan needs by hand, and that no search gives a plan that does not fit."""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from portend.errors import InvalidValue, MismatchError, SearchError
from portend.io.storage import load_profile, save
from portend.perfmodel.model import Estimator, PerformanceModel
from portend.planner import search as search_module
from portend.planner.exhaustive import solve_exhaustive
from portend.planner.metrics import Batch, accuracy, energy, latency, latency_quantile, load_metric, memory
from portend.planner.problem import Problem, SearchSpace
from portend.planner.search import search
from portend.planner.solve import solve
from portend.planner.space import PlanSpace
from portend.values.backbone import BackboneSpec
from portend.values.exits import SampleExits
from portend.values.plan import Plan
from portend.values.topology import Tier
from problems import Case, draws, random_case, random_plan, random_space
from test_metrics import hand_model, powered, value
from test_search import the_best, the_front

SPEC = BackboneSpec(
    name="three",
    block_names=("a", "b", "c"),
    num_classes=2,
    cut_shapes=((3, 4, 4), (8, 4, 4), (16, 2, 2), (32, 1, 1)),
    block_bytes=(1000, 2000, 4000),
    branch_bytes=(10, 20, 40),
)


def test_what_a_partition_needs_by_hand() -> None:
    need = SPEC.partition_bytes()
    # Tensors: 192, 512, 256 and 128 bytes. Pairs at the blocks: 704, 768, 384.
    assert need[0, 1] == 1000 + 10 + 704
    assert need[0, 2] == 1000 + 2000 + 20 + 768
    assert need[0, 3] == 7000 + 40 + 768
    assert need[2, 3] == 4000 + 40 + 384
    assert np.isnan(need[np.tril_indices(4)]).all()
    with pytest.raises(MismatchError, match=r"three needs is not known.*profile it again"):
        replace(SPEC, block_bytes=()).partition_bytes()
    for wrong in ((1, 2), (1, 2, -3), (1, 2, math.nan)):
        with pytest.raises(InvalidValue, match="block_bytes are 3 sizes"):
            replace(SPEC, block_bytes=wrong)
    with pytest.raises(InvalidValue, match="memory is not negative"):
        Tier(name="a", device="a", memory_bytes=-1.0)


def sized(case: Case, rng: np.random.Generator, *, limited: bool = True) -> Case:
    """The case with random sizes, and with tiers that have room for parts of the network only."""
    blocks = case.profile.num_blocks
    spec = replace(
        case.profile.backbone,
        block_bytes=tuple(rng.integers(0, 4, blocks) * 1000.0),
        branch_bytes=tuple(rng.integers(0, 3, blocks) * 500.0),
        cut_shapes=tuple((int(n), 5, 5) for n in rng.integers(1, 20, blocks + 1)),
    )
    case = replace(case, profile=replace(case.profile, backbone=spec))
    whole, tiers = spec.partition_bytes()[0, -1], list(case.topology.tiers)
    for i in range(len(tiers) if limited else 0):
        if rng.random() < 0.8:
            tiers[i] = replace(tiers[i], memory_bytes=float(np.round(whole * rng.uniform(0.3, 1.5))))
    return replace(case, topology=replace(case.topology, tiers=tuple(tiers)))


def needs(spec: BackboneSpec, plan: Plan, tier: int) -> float:
    """Bytes that a plan needs on a tier, added up one by one."""
    total = 0.0
    for (start, end), place in zip(plan.partitions, plan.placement, strict=True):
        if place == tier:
            size = [4 * math.prod(shape) for shape in spec.cut_shapes]
            total += sum(spec.block_bytes[start:end]) + spec.branch_bytes[end - 1]
            total += max(size[b] + size[b + 1] for b in range(start, end))
    return total


@pytest.mark.parametrize("seed", range(20))
def test_the_metric_is_what_a_plan_needs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = sized(random_case(seed), rng)
    spec, tiers, model = case.profile.backbone, len(case.topology.tiers), case.model()
    for _ in range(10):
        plan = random_plan(rng, case.profile.num_blocks, tiers)
        each = [needs(spec, plan, tier) for tier in range(tiers)]
        for tier in range(tiers):
            assert value(memory(tier), plan, model) == each[tier]
            assert value(memory(f"tier{tier}"), plan, model) == each[tier]
        assert value(memory(), plan, model) == max(each)
    plan = random_plan(rng, case.profile.num_blocks, tiers)
    with pytest.raises(MismatchError, match=rf"memory\({tiers}\) names no tier"):
        value(memory(tiers), plan, model)
    with pytest.raises(InvalidValue, match="no tier is called 'moon'"):
        value(memory("moon"), plan, model)
    with pytest.raises(InvalidValue, match="tiers count from 0"):
        memory(-1)


@pytest.mark.parametrize("text", ["memory", "memory(1)", "memory(edge)"])
def test_the_name_of_the_metric_gives_it_back(text: str) -> None:
    assert load_metric(text).name == text
    assert load_metric(text) in (memory(), memory(1), memory("edge"))


def a_case(seed: int, estimator: Estimator) -> tuple[Case, SearchSpace]:
    rng = np.random.default_rng([seed, 29])
    blocks, tiers = int(rng.integers(2, 7)), int(rng.integers(1, 5))
    case = powered(random_case(seed, exact=seed % 2 == 0, blocks=blocks, tiers=tiers, estimator=estimator))
    return sized(case, rng), random_space(rng, blocks, tiers)


@pytest.mark.parametrize("estimator", ["marginal", "sample"])
@pytest.mark.parametrize("block", draws(10, 4))
def test_the_searches_equal_the_exhaustive_one_and_what_fits(block: int, estimator: Estimator) -> None:
    """400 random problems, 160 of them fast; most of which have room for less than they would take."""
    for seed in range(20 * block, 20 * block + 20):
        case, hints = a_case(seed, estimator)
        model, asked = case.model(), (latency, energy)[seed % 2]
        free = replace(case.topology, tiers=tuple(replace(tier, memory_bytes=None) for tier in case.topology.tiers))
        unlimited = Problem(
            minimize=asked,
            maximize=accuracy,
            subject_to=tuple(
                memory(i) <= t.memory_bytes for i, t in enumerate(case.topology.tiers) if t.memory_bytes is not None
            ),
            space=replace(hints, codecs=("float32",)),
        )
        space = PlanSpace(hints, model, asked)
        problem = Problem(minimize=asked, space=hints)
        found = the_front(space)
        points = [(float(space.value(f.latency)), float(space.accuracy(f.right)), f.plan) for f in found]
        try:
            expected = solve_exhaustive(problem, model).front
        except SearchError:
            expected = ()
        assert points == [(p.cost(asked), p.accuracy, replace(p.plan, codecs=())) for p in expected], seed
        for one in found:
            for tier, place in enumerate(case.topology.tiers):
                assert needs(case.profile.backbone, one.plan, tier) <= (place.memory_bytes or math.inf), seed
            for fastest, need, budget in ((True, one.right, math.inf), (False, -math.inf, one.latency)):
                assert the_best(space, need=need, budget=budget, fastest=fastest) == one, seed
        if unlimited.cost is not None or seed % 4:
            continue  # the same limits as constraints, on every plan of the space
        same = replace(problem, maximize=accuracy, space=unlimited.space)
        try:
            others = solve_exhaustive(unlimited, PerformanceModel(case.profile, free, estimator=estimator))
        except SearchError:
            others = None
        if others is None or others.status == "infeasible":
            with pytest.raises(SearchError):
                search(same, model)
            continue
        values = [(p.latency_s if asked == latency else p.values[asked.name], p.accuracy) for p in others.front]
        got = [(p.cost(asked), p.accuracy) for p in search(same, model).front]
        np.testing.assert_allclose(got, values, rtol=1e-8)


@pytest.mark.parametrize("estimator", ["marginal", "sample"])
def test_a_small_tier_changes_the_answer(estimator: Estimator, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    case = sized(random_case(4, blocks=6, tiers=3, estimator=estimator), rng, limited=False)
    hints = SearchSpace(thresholds=(0.0, 0.25, 0.5), exits_per_tier=2)
    problem = Problem(minimize=latency, subject_to=(accuracy >= 0.4,), space=hints)
    before = search(problem, case.model())
    tier = before.plan.placement[0]
    needed = needs(case.profile.backbone, before.plan, tier)
    for spare, same in ((0.0, True), (-1.0, False)):
        places = case.topology.with_tier(tier, memory_bytes=needed + spare)
        model = PerformanceModel(case.profile, places, estimator=estimator)
        for limit in (search_module.FRONT_LIMIT, 0):
            monkeypatch.setattr(search_module, "FRONT_LIMIT", limit)
            after = search(problem, model)
            assert (after.plan == before.plan) == same
            assert needs(case.profile.backbone, after.plan, tier) <= needed + spare
            assert after.estimate.mean_s >= before.estimate.mean_s * (1 - 1e-9)
        for baseline in solve(problem, model).baselines.values():
            assert needs(case.profile.backbone, baseline.plan, tier) <= needed + spare
        p99 = search(replace(problem, minimize=latency_quantile(0.99)), model)
        assert needs(case.profile.backbone, p99.plan, tier) <= needed + spare


@pytest.mark.parametrize("estimator", ["marginal", "sample"])
def test_where_nothing_fits_the_error_names_tier_need_and_have(
    estimator: Estimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    case = sized(random_case(1, blocks=3, tiers=2, estimator=estimator), rng, limited=False)
    case = replace(case, profile=replace(case.profile, backbone=replace(SPEC, name="three")))
    tiers = tuple(replace(t, memory_bytes=size) for t, size in zip(case.topology.tiers, (1700.0, 900.0), strict=True))
    case = replace(case, topology=replace(case.topology, tiers=tiers))
    for limit in (search_module.FRONT_LIMIT, 0):
        monkeypatch.setattr(search_module, "FRONT_LIMIT", limit)
        for solver in (search, solve_exhaustive):
            with pytest.raises(
                SearchError, match=r"'tier0' has 1.7 kB, but .* 1.714 kB and the whole network 7.808 kB"
            ):
                solver(Problem(minimize=latency), case.model())


def test_a_tier_with_memory_needs_a_profile_with_sizes() -> None:
    model = hand_model()
    limited = PerformanceModel(model.profile, model.topology.with_tier(0, memory_bytes=1e9))
    with pytest.raises(MismatchError, match="has no sizes of its weights; profile it again"):
        search(Problem(minimize=latency), limited)
    with pytest.raises(MismatchError, match="has no sizes"):
        value(memory(), Plan(cuts=(2,), placement=(0,)), model)


def test_room_that_is_no_limit_changes_nothing() -> None:
    case = sized(random_case(9, blocks=6, tiers=3, estimator="marginal"), np.random.default_rng(9), limited=False)
    hints = SearchSpace(thresholds=(0.0, 0.25), exits_per_tier=3)
    huge = replace(case.topology, tiers=tuple(replace(t, memory_bytes=1e9) for t in case.topology.tiers))
    model = PerformanceModel(case.profile, huge, estimator="marginal")
    assert PlanSpace(hints, model).held is None
    problem = Problem(minimize=latency, space=hints)
    assert search(problem, model).front == search(problem, case.model()).front


def test_profiles_from_before_sizes_were_kept_can_be_read(tmp_path: Path) -> None:
    case = sized(random_case(2, blocks=3), np.random.default_rng(2))
    save(case.profile, tmp_path / "new.zip")
    assert load_profile(tmp_path / "new.zip").backbone == case.profile.backbone
    with zipfile.ZipFile(tmp_path / "new.zip") as new, zipfile.ZipFile(tmp_path / "old.zip", "w") as old:
        for name in new.namelist():
            content = new.read(name)
            if name == "value.json":
                document = json.loads(content)
                for key in ("block_bytes", "branch_bytes"):
                    del document["value"]["backbone"][key]
                content = json.dumps(document).encode()
            old.writestr(name, content)
    assert load_profile(tmp_path / "old.zip").backbone.block_bytes == ()


def test_nobody_left_to_do_what_is_forbidden() -> None:
    """Everyone leaves at the first exit, a second partition is asked for, and none may run anywhere."""
    case = random_case(3, blocks=3, tiers=2, estimator="sample")
    exits = SampleExits(scores={"entropy": np.zeros((20, 3))}, correct=np.ones((20, 3), dtype=np.bool_))
    model = PerformanceModel(replace(case.profile, exits=exits), case.topology)
    hints = SearchSpace(thresholds=(1.0,), min_partitions=2, block_tiers={2: (), 3: ()})
    with pytest.raises(SearchError, match="no plan satisfies the hints"):
        search(Problem(minimize=latency, space=hints), model)
    assert not len(Batch.of(Plan(cuts=(1,), placement=(0,)), model).thresholds[0])
