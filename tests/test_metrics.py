"""Metrics by hand, the search for any of them against a brute force, and metrics given as text."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands import ROOT, portend
from portend.errors import ConfigError, InvalidValue, MismatchError, SearchError
from portend.perfmodel.model import PerformanceModel
from portend.planner import exhaustive, nondominated
from portend.planner.exhaustive import solve_exhaustive
from portend.planner.metrics import (
    Batch,
    Block,
    Metric,
    accuracy,
    deadline_misses,
    energy,
    latency,
    latency_quantile,
    link_bytes,
    load_metric,
    metric,
    parse_constraint,
    price,
    throughput,
    utilization,
)
from portend.planner.problem import Problem, SearchSpace
from portend.planner.search import search
from portend.values.exits import SampleExits
from portend.values.plan import Plan
from portend.values.profile import Profile
from portend.values.topology import Link, Tier, Topology
from problems import Case, Floats, backbone, codec, device, random_case, random_plan, random_space, result_profile
from reference import Reference, enumerate_plans
from test_planner import small_case

PROFILE = str(ROOT / "profiles/resnet20-digits.zip")
TOPOLOGY = str(ROOT / "configs/topologies/three_tier.yaml")
BUILT_IN = (
    latency,
    latency_quantile(0.5),
    latency_quantile(0.95),
    deadline_misses(0.03),
    accuracy,
    energy,
    price,
    throughput,
    utilization(20.0),
    link_bytes(0),
)


def value(asked: Metric, plan: Plan, model: PerformanceModel) -> float:
    return float(asked.of(Batch.of(plan, model))[0])


# -- by hand ---------------------------------------------------------------------------------------
#
# Two blocks of 4 s each on tier a, 1 s on tiers b and c. A message costs 0.5 s to encode, 0.25 s to
# decode and 0.125 s of dispatch, a result 0.1, 0.2 and 0.4 s. Links: 8 kbit/s and 4 kbit/s, 1 s each
# way, room for 1450 bytes behind 50 bytes of headers. Three of four samples leave at exit 1.


def hand_model() -> PerformanceModel:
    def one(name: str, block: float) -> Any:
        start, end = np.indices((3, 3))
        codecs = {"float32": codec([2000, 500, 10], 0.5, 0.25, 0.125)}
        return device(name, (end - start) * block, codecs=codecs, result=result_profile([0.1], 150.0))

    exits = SampleExits(
        scores={"entropy": np.array([[0.1, 0.0], [0.2, 0.0], [0.3, 0.0], [0.9, 0.0]])},
        correct=np.array([[1, 1], [1, 1], [0, 1], [0, 1]]),
    )
    tiers = (
        Tier(name="a", device="a", power_w=10.0, price_usd_per_hour=3.6),
        Tier(name="b", device="b", power_w=100.0, price_usd_per_hour=36.0),
        Tier(name="c", device="b"),
    )
    links = tuple(
        Link(bandwidth_bps=bps, propagation_delay_s=1.0, mtu_bytes=1500, header_bytes=50) for bps in (8e3, 4e3)
    )
    return PerformanceModel(
        Profile(backbone=backbone(2), exits=exits, devices={"a": one("a", 4.0), "b": one("b", 1.0)}),
        Topology(name="hand", tiers=tiers, links=links),
    )


SPLIT = Plan(cuts=(1, 2), placement=(0, 1), thresholds=(0.5,))


def test_every_metric_by_hand() -> None:
    model = hand_model()
    # Leaving at a: 4 s. At b: 4 + hop (0.5 + 550 B · 8 / 8000 + 1 + 0.125 + 0.25) + 1 + result (0.1 + 0.2 + 1 + 0.4
    # + 0.2) = 4 + 2.425 + 1 + 1.9. Tier a works 4 s, and for a quarter encodes and decodes a result; b the rest.
    at_b = 4 + 2.425 + 1 + 1.9
    busy_a, busy_b = 4 + 0.25 * (0.5 + 0.2), 0.25 * (0.25 + 1 + 0.1)
    for asked, expected in (
        (latency, 0.75 * 4 + 0.25 * at_b),
        (latency_quantile(0.5), 4),
        (latency_quantile(0.75), 4),
        (latency_quantile(0.95), at_b),
        (deadline_misses(3.9), 1),
        (deadline_misses(4), 0.25),
        (deadline_misses(at_b), 0),
        (accuracy, 0.75),
        (energy, 10 * busy_a + 100 * busy_b),
        (price, (3.6 * busy_a + 36 * busy_b) / 3600),
        (link_bytes(0), 0.25 * (500 + 150)),
        (link_bytes(1), 0),
        (throughput, 1 / busy_a),
        (utilization(0.2), 0.2 * busy_a),
    ):
        assert value(asked, SPLIT, model) == pytest.approx(expected, rel=1e-12), asked.name


def test_a_message_over_two_links_occupies_both_by_its_packets() -> None:
    model = hand_model()
    far = Plan(cuts=(2,), placement=(2,))
    # 2000 bytes are two packets: 2100 bytes at 4 kbit/s keep link 1 busy for 4.2 s; tier c computes 2 s.
    assert value(throughput, far, model) == pytest.approx(1 / 4.2)
    assert value(link_bytes(0), far, model) == value(link_bytes(1), far, model) == 2150
    slow = PerformanceModel(model.profile, model.topology.with_link(0, bandwidth_bps=2e3))
    assert value(utilization(0.1), far, slow) == pytest.approx(0.1 * 8.4)


def test_a_metric_needs_what_it_counts_with() -> None:
    model = hand_model()
    far = Plan(cuts=(2,), placement=(2,))
    with pytest.raises(MismatchError, match=r"power_w of every tier that works, but tier 'c' has none.*power: 5 W"):
        value(energy, far, model)
    with pytest.raises(MismatchError, match=r"price_usd_per_hour .* tier 'c'"):
        value(price, far, model)
    with pytest.raises(MismatchError, match=r"links 0 \(.*–.*\), 1 \(.*–.*\), but link 2"):
        value(link_bytes(2), far, model)
    wrong: tuple[tuple[Callable[[Any], Metric], float], ...] = (
        (latency_quantile, 0),
        (deadline_misses, 0),
        (utilization, math.inf),
        (link_bytes, -1),
    )
    for maker, argument in wrong:
        with pytest.raises(InvalidValue):
            maker(argument)


@pytest.mark.parametrize("seed", range(40))
def test_a_batch_agrees_with_the_model(seed: int) -> None:
    case = powered(random_case(seed))
    model, rng = case.model(), np.random.default_rng(seed)
    plain = Reference(case.profile, case.topology, case.estimator)
    for _ in range(5):
        plan = random_plan(rng, plain.blocks, len(case.topology.tiers))
        estimate = model.estimate(plan)
        batch = Batch.of(plan, model)
        (one,) = batch
        for got in (batch.mean_s[0], batch.estimates.mean_s[0], one.mean_s):
            assert got == pytest.approx(estimate.mean_s, rel=1e-12)
        assert batch.plans.cuts.tolist() == [list(plan.cuts)]
        assert one.plan == estimate.plan
        np.testing.assert_allclose(batch.estimates.step_parts_s[0], estimate.step_parts_s)
        for q in (0.01, 0.5, 0.95, 0.99, 1.0):
            assert value(latency_quantile(q), plan, model) == pytest.approx(estimate.quantile_s(q), rel=1e-12)
        expected = by_loops(plain, plan)
        for asked in BUILT_IN:
            if asked.name in expected:
                assert value(asked, plan, model) == pytest.approx(expected[asked.name], rel=1e-9), asked.name


# -- against a brute force -------------------------------------------------------------------------


def powered(case: Case) -> Case:
    tiers = tuple(
        replace(t, power_w=2.0 ** (3 - i), price_usd_per_hour=1.0 + i) for i, t in enumerate(case.topology.tiers)
    )
    return replace(case, topology=replace(case.topology, tiers=tiers))


def by_loops(plain: Reference, plan: Plan, admitted: tuple[str, ...] | None = None) -> dict[str, float]:
    """Metrics of one plan, added up message by message; empty where a codec forbids it."""
    outcome = plain.estimate(plan, admitted)
    if outcome is None:
        return {}
    topology = plain.topology
    tiers, to = topology.tiers, topology.destination
    busy = [0.0] * len(tiers)
    wire: dict[tuple[int, bool], float] = {}
    crossed = 0.0

    def message(size: float, a: int, b: int, count: float) -> None:
        nonlocal crossed
        links = [topology.links[j] for j in range(min(a, b), max(a, b))]
        header = max((link.header_bytes for link in links), default=0)
        room = min((link.mtu_bytes for link in links), default=1) - header
        for j in range(min(a, b), max(a, b)):
            bits = 8 * (size + header * max(1, math.ceil(size / room)))
            wire[j, b > a] = wire.get((j, b > a), 0.0) + count * (bits / topology.links[j].bandwidth_bps)
            crossed += count * size if j == 0 else 0.0

    here, start, left = topology.source, 0, 1.0
    for k, (end, tier) in enumerate(zip(plan.cuts, plan.placement, strict=True)):
        last = k == len(plan) - 1
        best = plain.best_hop(start, here, tier, admitted)
        assert best is not None
        name, parts = best
        if name is not None:
            busy[here] += left * parts["encode"]
            busy[tier] += left * parts["decode"]
            if here != tier:
                message(plain.devices[here].size[name][start], here, tier, left)
        seconds = plain.compute(tier, start, end, woken=k == 0 or here != tier, exit_run=last or plan.thresholds[k] > 0)
        busy[tier] += left * seconds
        if tier != to:
            back = plain.result(tier)
            busy[tier] += outcome.share[k] * back["encode"]
            busy[to] += outcome.share[k] * back["decode"]
            message(plain.devices[tier].result_size, tier, to, outcome.share[k])
        left -= outcome.share[k]
        here, start = tier, end
    busiest = max([*busy, *wire.values()])
    values = {
        "latency": outcome.mean,
        "accuracy": outcome.accuracy,
        "p50": outcome.quantile(0.5),
        "p95": outcome.quantile(0.95),
        "deadline_misses(30 ms)": sum(
            e for e, s in zip(outcome.share, outcome.latency, strict=True) if s > 0.03 + 1e-12
        ),
        "energy": sum(b * (t.power_w or 0.0) for b, t in zip(busy, tiers, strict=True)),
        "price": sum(b * (t.price_usd_per_hour or 0.0) for b, t in zip(busy, tiers, strict=True)) / 3600,
        "throughput": 1 / busiest if busiest else math.inf,
        "utilization(20)": 20 * busiest,
    }
    return values | ({"link_bytes(0)": crossed} if topology.links else {})


Judged = tuple[dict[str, float], tuple[Any, ...]]


def everything(case: Case, space: SearchSpace) -> list[Judged]:
    """Every plan of a space with its metrics and its canonical rank."""
    plain = Reference(case.profile, case.topology, case.estimator)
    found = []
    for row, thresholds, cuts, placement in enumerate_plans(space, plain.blocks, len(case.topology.tiers)):
        blocks = zip((0, *cuts[:-1]), cuts, placement, strict=True)
        if any(t not in space.block_tiers.get(b, (t,)) for i, j, t in blocks for b in range(i + 1, j + 1)):
            continue
        values = by_loops(plain, Plan(cuts=cuts, placement=placement, thresholds=thresholds), space.codecs)
        if values:
            rank = (values["latency"], -values["accuracy"], len(cuts), row, cuts, placement)
            found.append((values, (*rank, thresholds)))
    return found


def rounded(number: float) -> float:
    return float(f"{number:.11e}")


@pytest.mark.parametrize("seed", range(60))
def test_the_best_plan_for_any_metric_equals_the_brute_force(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = powered(small_case(seed))
    rng = np.random.default_rng([seed, 9])
    space = random_space(rng, case.profile.num_blocks, len(case.topology.tiers))
    metrics = [m for m in BUILT_IN if m.name != "link_bytes(0)" or case.topology.links]
    asked, bounded = (metrics[i] for i in rng.choice(len(metrics), 2, replace=False))
    asked = (latency_quantile(0.95), energy, asked)[seed % 3]
    sense = -1 if asked in (accuracy, throughput) else 1
    free = Problem(maximize=asked, space=space) if sense < 0 else Problem(minimize=asked, space=space)
    monkeypatch.setattr(exhaustive, "_BATCH_CELLS", int(rng.choice([1, 7, 1 << 14])))
    if any(m.additive is not None and m != latency for m in (asked, bounded)):  # the codec that costs least is taken
        space = replace(space, codecs=("float32",))
        free = replace(free, space=space)
    plans = everything(case, space)
    if not plans:
        with pytest.raises(SearchError, match="no plan satisfies the hints"):
            solve_exhaustive(free, case.model())
        return
    values = sorted(v[bounded.name] for v, _ in plans)
    bound = values[int(rng.integers(len(values)))]
    constraint = bounded >= bound if bounded in (accuracy, throughput) else bounded <= bound
    problem = replace(free, subject_to=(constraint,))
    solution = solve_exhaustive(problem, case.model())
    met = [one for one in plans if not constraint.missed_by(np.asarray(one[0][bounded.name]))]

    def preferred(one: Judged) -> tuple[Any, ...]:
        values, rank = one
        if problem.cost is None:  # of equals the fastest, then the most accurate
            return rounded(sense * values[asked.name]), rounded(rank[0]), rank[1:]
        other = values[problem.cost.name] if asked == accuracy else -values["accuracy"]
        return rounded(sense * values[asked.name]), rounded(other), rank[2:]

    best, rank = min(met, key=preferred)
    assert solution.status == "optimal"
    assert solution.stats.plans >= len(plans)
    assert solution.metrics[asked.name] == pytest.approx(best[asked.name], rel=1e-11)
    assert solution.metrics[bounded.name] == pytest.approx(best[bounded.name], rel=1e-11)
    assert (solution.plan.cuts, solution.plan.placement, solution.plan.thresholds) == (rank[-3], rank[-2], rank[-1])


@pytest.mark.parametrize("seed", range(40))
def test_the_front_of_several_objectives_equals_the_brute_force(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nondominated, "_PAIRS", (0, 5, 512)[seed % 3])
    monkeypatch.setattr(exhaustive, "_BATCH_CELLS", (1, 1 << 14)[seed % 2])
    case = powered(small_case(seed + 500))
    space = SearchSpace(thresholds=(0.0, 0.5), exits_per_tier=1 + seed % 2)
    goals: tuple[Metric, ...] = (latency_quantile(0.95), energy) if seed % 2 else (energy, utilization(20.0), latency)
    most = None if seed % 4 < 2 else accuracy
    plans = everything(case, space)
    bound = sorted(v["latency"] for v, _ in plans)[len(plans) // 2]
    problem = Problem(minimize=goals, maximize=most, subject_to=(latency <= bound,), space=space)
    points = {}
    for values, _ in plans:
        if values["latency"] <= bound * (1 + 1e-9):
            points[tuple(rounded(values[m.name] * sense) for m, sense in problem.objectives)] = values
    expected = sorted(
        p for p in points if not any(q != p and all(a <= b for a, b in zip(q, p, strict=True)) for q in points)
    )
    solution = solve_exhaustive(problem, case.model())
    got = [[point.values[m.name] * sense for m, sense in problem.objectives] for point in solution.front]
    np.testing.assert_allclose(got, expected, rtol=1e-10)
    assert solution.plan.cuts == solution.front[0].plan.cuts
    assert solution.to_dict()["front"][0]["metrics"] == dict(solution.front[0].values)


@pytest.mark.parametrize("seed", range(30))
def test_non_dominated_against_the_definition(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(nondominated, "_PAIRS", int(rng.choice([0, 3, 512])))
    points: Floats = rng.integers(-2, 4, (1 + seed % 4, 60)) * np.float64(1.0 if seed % 2 else 1e-9)
    points[rng.random(points.shape) < 0.2] = math.inf
    points[rng.random(points.shape) < 0.1] += 1e6
    expected = [
        not any((points[:, j] <= p).all() and (points[:, j] < p).any() for j in range(points.shape[1]))
        for p in points.T
    ]
    assert nondominated._non_dominated(points).tolist() == expected


def test_a_difference_below_the_scale_of_a_front_still_dominates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nondominated, "_PAIRS", 0)
    points = np.array([[1e-20, 0.0, 1.0], [1.0, 1.0, 0.0]])
    assert nondominated._non_dominated(points).tolist() == [False, True, True]


@pytest.mark.parametrize("seed", range(15))
def test_missed_bounds_add_up_as_shares_of_them(seed: int) -> None:
    case = powered(small_case(seed + 50))
    space = SearchSpace(thresholds=(0.0, 0.5))
    plans = everything(case, space)
    joules = min(v["energy"] for v, _ in plans)
    bounds = (accuracy >= 1, energy <= joules / 2)
    solution = solve_exhaustive(Problem(minimize=latency, subject_to=bounds, space=space), case.model())

    def violation(values: Mapping[str, float]) -> float:
        return (1 - values["accuracy"]) + (values["energy"] / (joules / 2) - 1)

    assert solution.status == "infeasible"
    assert violation(solution.metrics) == pytest.approx(min(violation(v) for v, _ in plans), rel=1e-9)


def test_infeasible_is_an_answer_with_the_smallest_violation() -> None:
    case = powered(small_case(3))
    space = SearchSpace(thresholds=(0.0, 0.5))
    plans = everything(case, space)
    least = min(v["p95"] for v, _ in plans)
    solution = solve_exhaustive(
        Problem(minimize=energy, subject_to=(latency_quantile(0.95) <= least / 2,), space=space), case.model()
    )
    assert (solution.status, solution.front) == ("infeasible", ())
    assert solution.metrics["p95"] == pytest.approx(least)
    # Of equals the one of least energy.
    assert solution.metrics["energy"] == pytest.approx(min(v["energy"] for v, _ in plans if v["p95"] <= least))


def test_an_overloaded_plan_is_not_feasible() -> None:
    model = hand_model()
    space = SearchSpace(tiers=(0,), thresholds=(0.0,), truncation=False)
    for rate, status in ((0.124, "optimal"), (0.126, "infeasible")):  # 8 s of work a sample
        problem = Problem(minimize=latency, subject_to=(utilization(rate) <= 1,), space=space)
        assert problem.cost is None
        assert search(problem, model).status == status


@pytest.mark.parametrize("estimator", ["sample", "marginal"])
def test_both_searches_agree_on_latency(estimator: Any) -> None:
    model = random_case(4, blocks=6, tiers=3, estimator=estimator).model()
    plain = Problem(minimize=latency, subject_to=(accuracy >= 0.4,), space=SearchSpace(thresholds=(0.0, 0.25, 0.5)))
    other = replace(plain, subject_to=(accuracy >= 0.4, latency_quantile(1.0) <= 1e9))
    assert (plain.cost, other.cost) == (latency, None)
    assert search(other, model).plan == search(plain, model).plan


@pytest.mark.parametrize("seed", range(15))
def test_a_bound_is_met_up_to_rounding(seed: int) -> None:
    case = powered(small_case(seed, exact=False))
    space = SearchSpace(thresholds=(0.0, 0.5))
    for asked in (energy, latency_quantile(0.95)):
        least = min(v[asked.name] for v, _ in everything(case, space))  # added up in another order
        problem = Problem(maximize=accuracy, subject_to=(asked <= least,), space=space)
        assert solve_exhaustive(problem, case.model()).status == "optimal"


def test_an_infinite_bound_forbids_nothing() -> None:
    assert not (throughput <= math.inf).missed_by(np.array([1.0, math.inf])).any()


def test_too_many_plans_for_any_metric() -> None:
    model = random_case(5, blocks=40, tiers=3, estimator="sample").model()
    with pytest.raises(SearchError, match=r"20,000,000 plans for such metrics.*restrict"):
        solve_exhaustive(Problem(maximize=throughput, space=SearchSpace(exits_per_tier=2)), model)


# -- own metrics -----------------------------------------------------------------------------------


@metric("s")
def slowest(batch: Batch) -> Any:
    return batch.latency_s.max(axis=1)


@metric("s", each=True, name="slowest one by one")
def slowest_each(estimate: Any) -> float:
    return float(estimate.latency_s.max())


@metric("s", block=True, name="slowest by blocks")
def slowest_block(block: Block) -> Any:
    return np.broadcast_to(np.maximum.reduce(np.broadcast_arrays(*block.latency_s)), block.shape)


def partitions(estimate: Any) -> float:
    return float(len(estimate.plan))


number = 3


def test_own_metrics_are_as_good_as_built_in_ones() -> None:
    model = random_case(7, blocks=5, tiers=3, estimator="sample").model()
    space = SearchSpace(thresholds=(0.0, 0.5))
    found = [
        solve_exhaustive(Problem(minimize=m, subject_to=(accuracy >= 0.3,), space=space), model)
        for m in (slowest, slowest_each, slowest_block)
    ]
    assert found[0].plan == found[1].plan == found[2].plan
    assert found[2].metrics["slowest by blocks"] == found[0].metrics["slowest"]
    with pytest.raises(InvalidValue, match="one by one or a whole block"):
        metric(each=True, block=True)
    assert found[0].metrics["slowest"] == found[1].estimate.latency_s.max()
    count = load_metric("test_metrics:partitions")
    fewest = solve_exhaustive(Problem(maximize=count, subject_to=(count <= 2,), space=space), model)
    assert (len(fewest.plan), fewest.metrics["partitions"]) == (2, 2.0)
    assert "partitions 2  " in str(fewest)


@pytest.mark.parametrize("seed", range(30))
def test_a_block_says_what_its_plans_say_one_by_one(seed: int) -> None:
    case = powered(small_case(seed, exact=seed % 2 == 0))
    space = random_space(np.random.default_rng([seed, 4]), case.profile.num_blocks, len(case.topology.tiers))
    search_ = exhaustive._Search(space, case.model())
    metrics = [m for m in (*BUILT_IN, slowest_block) if m.name != "link_bytes(0)" or case.topology.links]
    for length in search_.lengths():
        for cuts in search_.columns(length, 64):
            (rows,) = search_.rows(length, 1 << 20)
            for block, _ in search_.plans_of(cuts, rows):
                flat = block.flat
                assert len(flat) == block.shape[0] * block.shape[1]
                np.testing.assert_allclose(block.reach.reshape(length, -1).T, flat.reach, atol=1e-15)
                for k, seconds in enumerate(block.latency_s):
                    each = np.broadcast_to(seconds, block.shape).ravel()
                    np.testing.assert_allclose(each, flat.latency_s[:, k], rtol=1e-12)
                for asked in metrics:
                    np.testing.assert_allclose(asked.of_block(block), asked.of(flat), rtol=1e-12, err_msg=asked.name)


def test_a_metric_that_gives_no_numbers_is_refused() -> None:
    model = hand_model()
    for wrong, message in (
        (Metric("short", "", lambda batch: [1.0]), "one number a plan"),
        (metric("", block=True, name="row")(lambda block: block.accuracy[0]), r"got \(\d+,\) for \(1, \d+\) plans"),
        (metric("", block=True, name="no")(lambda block: math.nan * block.accuracy), r"not a number for a \[1\]"),
        (Metric("nan", "", lambda batch: np.full(len(batch), np.nan)), r"not a number for a \[1\]"),
    ):
        with pytest.raises(InvalidValue, match=message):
            solve_exhaustive(Problem(minimize=wrong), model)


@pytest.mark.parametrize("asked", [*BUILT_IN, latency_quantile(0.999)])
def test_the_name_of_a_metric_gives_it_back(asked: Metric) -> None:
    assert load_metric(asked.name) == asked
    assert pickle.loads(pickle.dumps(asked)) == asked


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("p95<=80 ms", "p95 ≤ 80 ms"),
        (" energy <= 0.5 J", "energy ≤ 0.5 J"),
        ("accuracy>=0.9", "accuracy ≥ 0.9"),
        ("deadline_misses(80 ms)<=0.05", "deadline_misses(80 ms) ≤ 0.05"),
        ("link_bytes(1)<=2 kB", "link_bytes(1) ≤ 2 kB"),
        ("throughput>=20/s", "throughput ≥ 20 /s"),
        ("test_metrics:slowest<=1 s", "slowest ≤ 1 s"),
        ("test_metrics:partitions<=-1", "partitions ≤ -1"),
    ],
)
def test_constraints_as_text(text: str, shown: str) -> None:
    assert str(parse_constraint(text)) == shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed", "'speed' is not a metric; the metrics are latency, accuracy, energy"),
        ("p0", "a quantile lies within"),
        ("deadline_misses(80)", "no unit"),
        ("link_bytes(x)", "link_bytes"),
        ("test_metrics:nothing", "test_metrics has no 'nothing'"),
        ("test_metrics:number", "neither a Metric nor a function, but int"),
        ("no_such_module:f", "there is no module 'no_such_module'"),
        (":f", "cannot be imported"),
    ],
)
def test_wrong_metrics_are_explained(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_metric(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("p95", "is not a constraint"),
        ("p95<=80", "no unit"),
        ("energy<=0.5", "needs its unit; write it like '0.5 J'"),
        ("energy<=x J", "a bound is a number and J"),
        ("accuracy>=ninety", "a bound is a number, but got 'ninety'"),
    ],
)
def test_wrong_constraints_are_explained(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_constraint(text)


# -- the command line ------------------------------------------------------------------------------


def plan(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return portend("plan", PROFILE, "--topology", TOPOLOGY, *arguments, cwd=cwd)


def test_metrics_from_the_command_line() -> None:
    done = plan(
        "--minimize", "p95", "--subject-to", "deadline_misses(80 ms)<=0.1", "--subject-to", "link_bytes(0)<=4 kB",
        "--min-accuracy", "0.9", "--arrival-rate", "20", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert list(answer["metrics"]) == [
        "p95", "accuracy", "deadline_misses(80 ms)", "link_bytes(0)", "utilization(20)",
    ]  # fmt: skip
    assert 1e3 * answer["metrics"]["p95"] == pytest.approx(answer["estimate"]["latency_ms"]["p95"])
    assert answer["metrics"]["utilization(20)"] <= 1
    assert answer["baselines"]["edge-only"]["status"] == "infeasible"  # 58 ms a sample: overloaded
    assert answer["baselines"]["edge-only"]["metrics"]["utilization(20)"] > 1


def test_a_problem_from_a_file_with_an_own_metric(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def hops(estimate):\n    return len(set(estimate.plan.placement))\n")
    problem = tmp_path / "problem.yaml"
    problem.write_text("minimize: [p95, 'own:hops']\nsubject_to: [accuracy>=0.97]\narrival_rate: 20\n")
    done = plan("--problem", str(problem), "--exits-per-tier", "1", "--thresholds", "0,0.3", "--front", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    stated = "minimize p95 and minimize hops subject to accuracy ≥ 0.97, utilization(20) ≤ 1: optimal"
    assert stated in " ".join(done.stdout.split())
    assert "hops 1  " in done.stdout.partition("Pareto front")[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--minimize", "speed"), "'speed' is not a metric"),
        (("--minimize", "energy"), "tier 'edge' has none; give it one (in YAML 'power: 5 W')"),
        (("--arrival-rate", "20"), "--minimize a metric"),
        (("--minimize", "p95", "--arrival-rate", "0"), "an arrival rate is a positive number"),
    ],
)
def test_the_command_line_explains_wrong_metrics(arguments: tuple[str, ...], message: str) -> None:
    done = plan(*arguments)
    assert done.returncode in (1, 2)
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
