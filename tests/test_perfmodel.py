"""The performance model against plain loops, hand-worked numbers and its own laws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from portend.errors import InvalidValue, MismatchError
from portend.perfmodel.estimate import PARTS, quantile_s
from portend.perfmodel.exits import marginal_outcomes, sample_outcomes
from portend.perfmodel.model import PerformanceModel
from portend.values.exits import SampleExits, TabulatedExits
from portend.values.plan import Plan, PlanBatch
from portend.values.profile import Profile
from portend.values.topology import Link, SlowStart, Tier, Topology
from problems import THRESHOLDS, Case, backbone, codec, device, random_case, random_plan, result_profile
from reference import PARTS as REFERENCE_PARTS
from reference import Reference, packet_simulation, slow_start_simulation, transmission

NAN = float("nan")


def reference(case: Case) -> Reference:
    return Reference(case.profile, case.topology, case.estimator)


# -- worked by hand --------------------------------------------------------------------------------
#
# Two blocks; tier 0 "edge" (slowdown 2) and tier 1 "cloud" (slowdown 1); 1 Mbit/s, 10 ms, MTU 1000,
# headers 50, so 950 B of payload in a packet. All times below in ms.
#
#   device   0:1 busy  woken   1:2 busy  woken   0:2 busy  woken   branch at 1, 2
#   slow        4        5        6        8        9       10        1, 2
#   fast        1       1.5       2       2.5      2.5      3        0.25, 0.5
#
#   float32         cut 0    cut 1    cut 2        result (one message of 200 B)
#   message bytes   1900      500      400
#   slow enc/dec/disp  0.5 / 0.25 / 0.125          0.1 / 0.2 / 0.4
#   fast enc/dec/disp  0.4 / 0.3  / 0.2            0.05 / 0.1 / 0.2
#   once more, warm: encoding 80 %, decoding 60 %, decoding a result 75 % of that
#
# Slowdown f: first + (f - 1) · warm; dispatch and a result's encoding have no warm value.


def hand_profile() -> Profile:
    ms = 1e-3
    sizes = [1900, 500, 400]
    slow = device(
        "slow",
        np.array([[0, 4, 9], [0, 0, 6], [0, 0, 0]]) * ms,
        idle=np.array([[0, 5, 10], [0, 0, 8], [0, 0, 0]]) * ms,
        branch=[0, 1 * ms, 2 * ms],
        codecs={"float32": codec(sizes, 0.5 * ms, 0.25 * ms, 0.125 * ms)},
        result=result_profile([0.1 * ms], 200.0),
    )
    fast = device(
        "fast",
        np.array([[0, 1, 2.5], [0, 0, 2], [0, 0, 0]]) * ms,
        idle=np.array([[0, 1.5, 3], [0, 0, 2.5], [0, 0, 0]]) * ms,
        branch=[0, 0.25 * ms, 0.5 * ms],
        codecs={"float32": codec(sizes, 0.4 * ms, 0.3 * ms, 0.2 * ms)},
        result=result_profile([0.05 * ms], 200.0),
    )
    # Branch 1 is right on samples 0, 1, 2; branch 2 on 0, 1, 3, 4. At θ = 0.5 samples 0, 1 and 3
    # are below (0.5 itself is not, NaN is not).
    exits = SampleExits(
        scores={"entropy": np.array([[0.1, 0.0], [0.4, 0.9], [0.5, 0.2], [0.3, 0.6], [NAN, 0.7]])},
        correct=np.array([[1, 1], [1, 1], [1, 0], [0, 1], [0, 1]]),
    )
    return Profile(backbone=backbone(2), exits=exits, devices={"slow": slow, "fast": fast})


def hand_topology(**changes: object) -> Topology:
    topology = Topology(
        name="hand",
        tiers=(Tier(name="edge", device="slow", slowdown=2.0), Tier(name="cloud", device="fast")),
        links=(Link(bandwidth_bps=1e6, propagation_delay_s=0.010, mtu_bytes=1000, header_bytes=50),),
    )
    return replace(topology, **changes)  # type: ignore[arg-type]


def test_two_blocks_on_two_tiers_by_hand() -> None:
    model = PerformanceModel(hand_profile(), hand_topology())
    estimate = model.estimate(Plan(cuts=(1, 2), placement=(0, 1), thresholds=(0.5,)))
    assert estimate.plan.codecs == (None, "float32")
    # Samples 0, 1, 3 leave at branch 1 (0 and 1 right); samples 2, 4 at branch 2 (4 right).
    assert estimate.share.tolist() == [3 / 5, 2 / 5]
    assert estimate.correct.tolist() == [2 / 5, 1 / 5]
    # ℓ_1: in process, block 1 on the woken edge: 5 + 4 = 9 ms; the result is already there.
    # ℓ_2: + encode 0.5 + 0.4 = 0.9, transmission (500 + 50) · 8 / 1e6 = 4.4, propagation 10,
    #      dispatch 0.2, decode 0.3, block 2 on the woken cloud 2.5; result back: encode 0.05,
    #      (200 + 50) · 8 / 1e6 = 2.0, propagation 10, dispatch of the edge 0.4, decode 0.2 + 0.15.
    expected = {
        "compute": (9, 11.5),
        "encode": (0, 0.95),
        "decode": (0, 0.65),
        "transmission": (0, 6.4),
        "propagation": (0, 20),
        "dispatch": (0, 0.6),
    }
    for index, part in enumerate(PARTS):
        assert estimate.latency_parts_s[:, index] == pytest.approx(np.array(expected[part]) * 1e-3, rel=1e-12), part
    assert estimate.latency_s == pytest.approx([0.009, 0.0401], rel=1e-12)
    assert estimate.mean_s == pytest.approx(0.6 * 0.009 + 0.4 * 0.0401, rel=1e-12)  # 21.44 ms
    assert estimate.accuracy == pytest.approx(0.6, rel=1e-12)
    assert estimate.quantile_s(0.5) == pytest.approx(0.009)
    assert estimate.quantile_s(0.6) == pytest.approx(0.009)
    assert estimate.quantile_s(0.61) == pytest.approx(0.0401)
    assert estimate.miss_rate(0.02) == pytest.approx(0.4)
    assert estimate.miss_rate(0.05) == 0.0
    assert estimate.cdf([0.005, 0.02, 0.05]) == pytest.approx([0.0, 0.6, 1.0])


def test_the_marginal_estimator_by_hand() -> None:
    model = PerformanceModel(hand_profile(), hand_topology(), estimator="marginal")
    estimate = model.estimate(Plan(cuts=(1, 2), placement=(0, 1), thresholds=(0.5,)))
    # ER_1 = 3/5, A_1 = 3/5, A_2 = 4/5: Acc = 0.6 · 0.6 + 0.4 · 0.8.
    assert estimate.share == pytest.approx([0.6, 0.4], rel=1e-12)
    assert estimate.accuracy == pytest.approx(0.68, rel=1e-12)


def test_an_exit_with_threshold_0_is_not_run_by_hand() -> None:
    model = PerformanceModel(hand_profile(), hand_topology())
    estimate = model.estimate(Plan(cuts=(1, 2), placement=(0, 0), thresholds=(0.0,)))
    # Edge all the way: 5 + 4 - 2 · branch 1, then 2 · busy 6: 19 ms; nobody leaves at branch 1.
    assert estimate.share.tolist() == [0.0, 1.0]
    assert estimate.mean_s == pytest.approx(0.019, rel=1e-12)
    asked = model.estimate(Plan(cuts=(1, 2), placement=(0, 0), thresholds=(0.05,)))
    assert asked.share.tolist() == [0.0, 1.0]
    assert asked.mean_s == pytest.approx(0.021, rel=1e-12)


def test_a_branch_dearer_than_its_partition_costs_nothing_below_zero() -> None:
    profile = hand_profile()
    slow = replace(profile.devices["slow"], branch_repeats_s=np.array([[0, 0.007, 0]]))
    model = PerformanceModel(replace(profile, devices={**profile.devices, "slow": slow}), hand_topology())
    estimate = model.estimate(Plan(cuts=(1, 2), placement=(0, 0), thresholds=(0.0,)))
    assert estimate.step_parts_s[0, PARTS.index("compute")] == 0.0


def test_cloud_only_pays_for_its_input_by_hand() -> None:
    model = PerformanceModel(hand_profile(), hand_topology())
    estimate = model.estimate(Plan(cuts=(2,), placement=(1,)))
    # 1900 B fill two packets of 950 + 50: 2 · 8 ms. encode 0.9, propagation 10, dispatch 0.2,
    # decode 0.3, compute 3 (woken); result 12.8 as above.
    assert estimate.mean_s == pytest.approx(16e-3 + 14.4e-3 + 12.8e-3, rel=1e-12)
    assert estimate.accuracy == pytest.approx(4 / 5)


def test_ingest_by_message_charges_encode_and_decode_by_hand() -> None:
    model = PerformanceModel(hand_profile(), hand_topology(ingest="message"))
    estimate = model.estimate(Plan(cuts=(2,), placement=(0,)))
    assert estimate.plan.codecs == ("float32",)
    # 0.5 + 0.4 and 0.25 + 0.15 around 10 + 9 of compute; no link, no dispatch.
    assert estimate.parts_s == pytest.approx(
        {"compute": 0.019, "encode": 0.0009, "decode": 0.0004, "transmission": 0, "propagation": 0, "dispatch": 0}
    )


def three_tiers(header: int = 52) -> Topology:
    return Topology(
        name="three",
        tiers=tuple(Tier(name=f"tier{i}", device="slow") for i in range(3)),
        links=(
            Link(bandwidth_bps=10e6, propagation_delay_s=0.020, header_bytes=header),
            Link(bandwidth_bps=400e6, propagation_delay_s=0.040, header_bytes=header),
        ),
    )


@pytest.mark.parametrize(
    ("size", "milliseconds"),
    [
        # 1448 B of payload a packet, 1500 B take 1.2 ms at 10 Mbit/s; the last packet pays both links.
        (300, 60 + (352 * 8) * (1e-4 + 2.5e-6)),  # 60.289
        (12_000, 60 + 8 * 1.2 + (468 * 8) * (1e-4 + 2.5e-6)),  # 69.984
        (65_000, 60 + 44 * 1.2 + (1340 * 8) * (1e-4 + 2.5e-6)),  # 113.899
        (65_536, 60 + 45 * 1.2 + (428 * 8) * (1e-4 + 2.5e-6)),  # 114.351
        (1448, 60 + (1500 * 8) * (1e-4 + 2.5e-6)),  # one full packet
        (1449, 60 + 1.2 + (53 * 8) * (1e-4 + 2.5e-6)),  # one byte more: a second packet
    ],
)
def test_messages_over_three_tiers_by_hand(size: int, milliseconds: float) -> None:
    topology = three_tiers()
    seconds = topology.transmission_s(size) + topology.propagation_s()
    assert 1e3 * seconds[0, 2] == pytest.approx(milliseconds, rel=1e-12)
    assert 1e3 * seconds[2, 0] == pytest.approx(milliseconds, rel=1e-12)
    assert seconds[1, 1] == 0.0


def test_the_design_documents_numbers() -> None:
    topology = three_tiers()
    total = 1e3 * (topology.transmission_s([300, 12_000, 65_000, 65_536]) + topology.propagation_s())[:, 0, 2]
    assert [round(float(x), 1) for x in total] == [60.3, 70.0, 113.9, 114.4]


def test_without_headers_transmission_is_the_papers_formula() -> None:
    # 4 full packets of 1500 B: 3 at the slowest pace (1.2 ms) and one over both links (1.2 + 0.03).
    assert three_tiers(header=0).transmission_s(6000)[0, 2] == pytest.approx(3 * 1.2e-3 + 1.23e-3, rel=1e-12)


@pytest.mark.parametrize(
    ("size", "start", "milliseconds"),
    [
        # A full packet there (1.2 + 0.03), an acknowledgment of 52 B back (0.0416 + 0.00104), 120 ms of delays:
        # 121.27264. Ten packets keep the slow link busy for 12 ms, so it waits 109.27264 ms; then 20, 40 and 80:
        # 97.27264, 73.27264, 25.27264; 160 take longer than a round trip.
        (300, SlowStart(), 0.0),
        (14_480, SlowStart(), 0.0),  # ten full packets
        (14_481, SlowStart(), 109.27264),
        (65_000, SlowStart(), 109.27264 + 97.27264),  # 45 packets: 10, 20, 15
        (217_200, SlowStart(), 109.27264 + 97.27264 + 73.27264),  # 150 = 10 + 20 + 40 + 80 packets
        (217_201, SlowStart(), 109.27264 + 97.27264 + 73.27264 + 25.27264),
        (4_000_000, SlowStart(), 109.27264 + 97.27264 + 73.27264 + 25.27264),
        # A window of any size, but 65,535 B at first: 45 packets, 54 ms.
        (65_160, SlowStart(initial_window=10_000), 0.0),
        (65_161, SlowStart(initial_window=10_000), 121.27264 - 54),
        (4_000_000, SlowStart(initial_window=10_000), 121.27264 - 54),
        # One packet at first, and less than one let in still lets one through: 1, 2, 4 packets.
        (5_000, SlowStart(initial_window=1, receive_window_bytes=1), 2 * 121.27264 - 1.2 - 2.4),
    ],
)
def test_waits_for_acknowledgments_by_hand(size: int, start: SlowStart, milliseconds: float) -> None:
    warm = three_tiers()
    cold = replace(warm, slow_start=start)
    waits = 1e3 * (cold.transmission_s(size) - warm.transmission_s(size))
    assert waits[0, 2] == waits[2, 0] == pytest.approx(milliseconds, abs=1e-9)
    assert waits[1, 1] == 0.0


def test_a_window_that_fills_the_path_at_once_never_waits() -> None:
    # 1.2 + 0.0416 ms of packet and acknowledgment, 2 · 5 ms of delay: ten packets of 1.2 ms take longer.
    near = Topology(
        name="near",
        tiers=tuple(Tier(name=name, device="slow") for name in "ab"),
        links=(Link(bandwidth_bps=10e6, propagation_delay_s=0.005),),
    )
    sizes = [1, 10_000, 1_000_000]
    cold = replace(near, slow_start=SlowStart())
    assert cold.transmission_s(sizes).tolist() == near.transmission_s(sizes).tolist()


@pytest.mark.parametrize("seed", range(20))
def test_slow_start_agrees_with_a_simulation_of_packets_and_acknowledgments(seed: int) -> None:
    rng = np.random.default_rng(seed)
    links = tuple(
        Link(bandwidth_bps=float(10 ** rng.uniform(6, 8.5)), propagation_delay_s=float(rng.uniform(0.001, 0.05)))
        for _ in range(3)
    )
    topology = Topology(
        name="chain",
        tiers=tuple(Tier(name=f"tier{i}", device="slow") for i in range(4)),
        links=links,
        slow_start=SlowStart(
            initial_window=int(rng.integers(1, 20)), receive_window_bytes=int(rng.integers(2_000, 100_000))
        ),
    )
    for a, b in ((0, 1), (0, 3), (3, 1)):
        size = int(10 ** rng.uniform(2, 6))
        got = float(topology.transmission_s(size)[a, b] + topology.propagation_s()[a, b])
        # The formula lets the slowest link stand for all, which others are off by a packet or two each.
        packets = sum(2 * 1500 * 8 / link.bandwidth_bps for link in topology.path(a, b))
        assert got == pytest.approx(slow_start_simulation(topology, size, a, b), abs=packets)


@pytest.mark.parametrize("seed", range(20))
def test_transmission_agrees_with_a_packet_by_packet_simulation(seed: int) -> None:
    case = random_case(seed, tiers=4)
    topology, rng = replace(case.topology, slow_start=None), np.random.default_rng(seed)
    for a, b in ((0, 1), (0, 3), (3, 1)):
        links = [topology.links[j] for j in range(min(a, b), max(a, b))]
        header = max(link.header_bytes for link in links)
        room = min(link.mtu_bytes for link in links) - header
        full = int(rng.integers(1, 30)) * room
        assert topology.transmission_s(full)[a, b] == pytest.approx(packet_simulation(topology, full, a, b), rel=1e-9)
        # A short last packet may wait for the one before it: off by less than one packet's way.
        size = int(rng.integers(1, 30_000))
        got, simulated = float(topology.transmission_s(size)[a, b]), packet_simulation(topology, size, a, b)
        packet = sum((room + header) * 8 / link.bandwidth_bps for link in links)
        assert simulated - packet <= got <= simulated + 1e-12
        assert got == pytest.approx(transmission(topology, size, a, b), rel=1e-12)


# -- against the reference -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_the_model_equals_the_reference(seed: int) -> None:
    case = random_case(seed)
    model, plain = case.model(), reference(case)
    rng = np.random.default_rng(seed)
    assert PARTS == REFERENCE_PARTS
    for _ in range(6):
        plan = random_plan(rng, case.profile.num_blocks, len(case.topology.tiers))
        got, expected = model.estimate(plan), plain.estimate(plan)
        assert expected is not None
        assert got.share == pytest.approx(expected.share, rel=1e-12, abs=1e-15)
        assert got.correct == pytest.approx(expected.correct, rel=1e-12, abs=1e-15)
        table = [[parts[part] for part in PARTS] for parts in expected.parts]
        assert got.latency_parts_s == pytest.approx(np.array(table), rel=1e-12, abs=1e-15)
        assert got.latency_s == pytest.approx(expected.latency, rel=1e-12)
        assert got.mean_s == pytest.approx(expected.mean, rel=1e-12)
        assert got.accuracy == pytest.approx(expected.accuracy, rel=1e-12)
        for q in (0.01, 0.5, 0.95, 0.99, 1.0):
            assert got.quantile_s(q) == pytest.approx(expected.quantile(q), rel=1e-12)
        fixed = plain.estimate(got.plan)  # the codecs that were chosen, now given
        assert fixed is not None
        assert fixed.mean == pytest.approx(expected.mean, rel=1e-12)
        assert model.estimate(got.plan).mean_s == got.mean_s


@pytest.mark.parametrize("seed", range(12))
def test_a_model_with_another_topology_is_the_one_made_for_it(seed: int) -> None:
    case = random_case(seed, tiers=3)
    places, model = case.topology, case.model()
    for other in (
        places.with_link(0, bandwidth_bps=3e5, propagation_delay_s=0.3),
        replace(places, slow_start=SlowStart(initial_window=2)),
        replace(places, source=(places.source + 1) % 3),
        places.with_tier(1, slowdown=3.0),
        replace(places, destination=(places.destination + 1) % 3),
    ):
        got, made = model.with_topology(other), PerformanceModel(case.profile, other, estimator=case.estimator)
        assert got.topology == other
        assert got.estimator == made.estimator
        for table in ("hop_parts_s", "result_parts_s", "compute_s"):
            assert np.array_equal(getattr(got.tables, table), getattr(made.tables, table), equal_nan=True), table
    again = PerformanceModel(case.profile, places, estimator=case.estimator)
    assert np.array_equal(model.tables.hop_parts_s, again.tables.hop_parts_s), "the model itself stays as it was"


@pytest.mark.parametrize("estimator", ["sample", "marginal"])
@pytest.mark.parametrize("seed", range(10))
def test_a_batch_equals_its_plans_one_by_one(seed: int, estimator: str) -> None:
    case = random_case(seed, blocks=8, estimator="sample" if estimator == "sample" else "marginal")
    model, rng = case.model(), np.random.default_rng(seed)
    plans = [model.complete(random_plan(rng, 8, len(case.topology.tiers), length=4)) for _ in range(25)]
    index = {None: -1} | {name: k for k, name in enumerate(model.tables.codecs)}
    batch = PlanBatch(
        cuts=np.array([p.cuts for p in plans]),
        placement=np.array([p.placement for p in plans]),
        thresholds=np.array([p.thresholds for p in plans]),
        codecs=np.array([[index[name] for name in p.codecs] for p in plans]),
    )
    many = model.estimate_batch(batch)
    assert len(batch) == 25
    for row, plan in enumerate(plans):
        one = model.estimate(plan)
        assert many.share[row].tolist() == one.share.tolist()
        assert many.correct[row].tolist() == one.correct.tolist()
        assert many.latency_s[row] == pytest.approx(one.latency_s, rel=1e-12)
        assert many.mean_s[row] == pytest.approx(one.mean_s, rel=1e-12)
        assert many.accuracy[row] == pytest.approx(one.accuracy, rel=1e-12)
        assert many.quantile_s(0.95)[row] == pytest.approx(one.quantile_s(0.95), rel=1e-12)
        assert dict(zip(PARTS, many.parts_s[row], strict=True)) == pytest.approx(one.parts_s, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("seed", range(15))
def test_many_replays_in_chunks_equal_one(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(seed, blocks=6, estimator="sample")
    exits = case.profile.exits
    assert isinstance(exits, SampleExits)
    rng = np.random.default_rng(seed)
    plans = [random_plan(rng, 6, 1, length=3) for _ in range(30)]
    cuts, theta = np.array([p.cuts for p in plans]), np.array([p.thresholds for p in plans])
    whole = sample_outcomes(exits, cuts, theta)
    monkeypatch.setattr("portend.perfmodel.exits._CHUNK_WORDS", 7)
    parts = sample_outcomes(exits, cuts, theta)
    assert whole[0].tolist() == parts[0].tolist()
    assert whole[1].tolist() == parts[1].tolist()


@pytest.mark.parametrize("samples", [1, 63, 64, 65, 127, 128, 129])
def test_the_replay_counts_everyone_at_any_number_of_samples(samples: int) -> None:
    exits = SampleExits(scores={"entropy": np.full((samples, 2), 0.3)}, correct=np.ones((samples, 2), dtype=bool))
    share, correct = sample_outcomes(exits, np.array([[1, 2], [1, 2]]), np.array([[0.3], [0.31]]))
    assert share.tolist() == [[0.0, 1.0], [1.0, 0.0]]  # strictly below
    assert correct.tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_where_later_branches_exit_fewer_the_stay_rate_is_a_running_minimum() -> None:
    # ER at θ = 0.5: 0.6, 0.2, 0.7. Paper: E_2 = 0.2 - 0.6 < 0. Here E = 0.6, 0, 0.1, 0.3.
    tables = TabulatedExits(
        thresholds=np.array([0.5]), exited=np.array([[6, 2, 7, 9]]), correct=np.array([4, 6, 8, 10]), samples=10
    )
    share, correct = marginal_outcomes(tables, np.array([[1, 2, 3, 4]]), np.full((1, 3), 0.5))
    assert share[0] == pytest.approx([0.6, 0.0, 0.1, 0.3])
    assert correct[0] == pytest.approx([0.24, 0.0, 0.08, 0.3])


# -- laws ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_laws_of_every_estimate(seed: int) -> None:
    case = random_case(seed)
    model, rng = case.model(), np.random.default_rng(seed)
    for _ in range(5):
        estimate = model.estimate(random_plan(rng, case.profile.num_blocks, len(case.topology.tiers)))
        assert estimate.share.min() >= 0
        assert estimate.share.sum() == pytest.approx(1.0, abs=1e-12)
        assert np.all((estimate.correct >= 0) & (estimate.correct <= estimate.share + 1e-15))
        assert 0 <= estimate.accuracy <= 1 + 1e-12
        assert sum(estimate.parts_s.values()) == pytest.approx(estimate.mean_s, rel=1e-12)
        assert estimate.latency_parts_s.sum(axis=1) == pytest.approx(estimate.latency_s, rel=1e-12)
        quantiles = [estimate.quantile_s(q) for q in (0.1, 0.5, 0.9, 1.0)]
        assert quantiles == sorted(quantiles)
        taken = estimate.latency_s[estimate.share > 0]
        assert quantiles[-1] == taken.max()
        assert estimate.miss_rate(float(taken.max())) == 0.0
        assert float(estimate.cdf(taken.max())) == pytest.approx(1.0)
        ruled_out = [k for k, theta in enumerate(estimate.plan.thresholds) if theta == 0]
        assert np.all(estimate.share[ruled_out] == 0)


@pytest.mark.parametrize("seed", range(10))
def test_the_order_of_the_samples_does_not_matter(seed: int) -> None:
    case = random_case(seed, estimator="sample")
    exits = case.profile.exits
    assert isinstance(exits, SampleExits)
    rng = np.random.default_rng(seed)
    order = rng.permutation(exits.samples)
    shuffled = replace(case.profile, exits=exits.part(order))
    other = PerformanceModel(shuffled, case.topology, estimator="sample")
    for _ in range(5):
        plan = random_plan(rng, case.profile.num_blocks, len(case.topology.tiers))
        a, b = case.model().estimate(plan), other.estimate(plan)
        assert (a.share.tolist(), a.correct.tolist()) == (b.share.tolist(), b.correct.tolist())
        assert a.mean_s == b.mean_s


def test_slowdown_repeats_the_work_but_not_the_waking_nor_the_dispatch() -> None:
    profile, topology = hand_profile(), hand_topology()
    plan = Plan(cuts=(2,), placement=(1,))
    slow = topology.with_tier(0, slowdown=6.0).with_tier(1, slowdown=3.0)
    parts = PerformanceModel(profile, slow).estimate(plan).parts_s
    assert {part: 1e3 * seconds for part, seconds in parts.items()} == pytest.approx(
        {
            "compute": 3 + 2 * 2.5,  # woken, then twice more
            "encode": (0.5 + 5 * 0.4) + 3 * 0.05,
            "decode": (0.3 + 2 * 0.18) + (0.2 + 5 * 0.15),
            "transmission": 16 + 2,
            "propagation": 20,
            "dispatch": 0.2 + 0.4,
        },
        rel=1e-12,
    )


def test_quantiles_refuse_what_is_no_share() -> None:
    for q in (0.0, -0.1, 1.1, NAN):
        with pytest.raises(InvalidValue, match="quantile"):
            quantile_s(np.array([1.0]), np.array([1.0]), q)


def test_a_quantile_of_a_batch_is_taken_row_by_row() -> None:
    share = np.array([[0.2, 0.5, 0.3], [0.0, 0.0, 1.0]])
    latency = np.array([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    assert quantile_s(share, latency, 0.5).tolist() == [1.0, 2.0]
    assert quantile_s(share, latency, 0.8).tolist() == [2.0, 2.0]
    assert quantile_s(share, latency, 0.81).tolist() == [3.0, 2.0]


# -- intervals -------------------------------------------------------------------------------------


def test_intervals_hold_the_truth_about_95_times_in_100() -> None:
    # The truth: 50 % leave at exit 1 (92 % right), 30 % at exit 2 (85 %), 20 % at the end (70 %).
    rng = np.random.default_rng(7)
    truth = np.array([0.5, 0.3, 0.2])
    right = np.array([0.92, 0.85, 0.70])
    accuracy, runs, samples = float(truth @ right), 300, 400
    profile, topology = random_case(3, blocks=3, tiers=2, estimator="sample").profile, hand_topology()
    topology = replace(topology, tiers=tuple(replace(t, device=next(iter(profile.devices))) for t in topology.tiers))
    hits = dict.fromkeys(("mean", "accuracy", "test accuracy"), 0)
    rate_hits = np.zeros(3)
    for run in range(runs):
        leave = rng.choice(3, size=samples, p=truth)
        score = np.where(np.arange(3) == leave[:, None], 0.0, 1.0)
        correct = np.broadcast_to((rng.random(samples) < right[leave])[:, None], (samples, 3))
        exits = SampleExits(scores={"entropy": score}, correct=correct)
        model = PerformanceModel(replace(profile, exits=exits), topology)
        estimate = model.estimate(Plan(cuts=(1, 2, 3), placement=(0, 0, 1), thresholds=(0.5, 0.5)))
        draws = estimate.draws(count=2000, seed=run)
        mean = float(truth @ estimate.latency_s)
        low, high = draws.interval("mean")
        hits["mean"] += int(low <= mean <= high)
        low, high = draws.interval("accuracy")
        hits["accuracy"] += int(low <= accuracy <= high)
        rates = draws.interval("exit_rates")
        rate_hits += (rates[0] <= truth) & (truth <= rates[1])
        # What 100 new samples of the truth show lies in the interval for 100 test samples.
        tested = rng.random(100) < right[rng.choice(3, size=100, p=truth)]
        low, high = estimate.draws(test_samples=100, count=2000, seed=run).interval("accuracy")
        hits["test accuracy"] += int(low <= tested.mean() <= high)
    for name, hit in hits.items():  # 95 % ± three standard deviations of 300 coin throws, more where discrete
        assert 0.912 * runs <= hit <= (0.995 if name == "test accuracy" else 0.99) * runs, (name, hit)
    assert np.all((rate_hits >= 0.912 * runs) & (rate_hits <= 0.99 * runs)), rate_hits


def test_draws_keep_an_exit_that_is_not_run_at_zero() -> None:
    model = PerformanceModel(hand_profile(), hand_topology())
    estimate = model.estimate(Plan(cuts=(1, 2), placement=(0, 1), thresholds=(0.0,)))
    for draws in (estimate.draws(count=200), estimate.draws(test_samples=50, count=200)):
        assert np.all(draws.exit_rates[:, 0] == 0)
        assert draws.exit_rates[:, 1] == pytest.approx(np.ones(200))
    possible = model.estimate(Plan(cuts=(1, 2), placement=(0, 1), thresholds=(0.05,)))
    assert possible.share[0] == 0
    assert np.all(possible.draws(count=200).exit_rates[:, 0] > 0)  # five samples cannot rule it out


def test_draws_are_repeatable_and_narrow_with_more_samples() -> None:
    estimate = PerformanceModel(hand_profile(), hand_topology()).estimate(
        Plan(cuts=(1, 2), placement=(0, 1), thresholds=(0.5,))
    )
    assert estimate.draws(count=50).accuracy.tolist() == estimate.draws(count=50).accuracy.tolist()
    assert estimate.draws(count=50).accuracy.tolist() != estimate.draws(count=50, seed=1).accuracy.tolist()
    few = estimate.draws(count=2000).interval("accuracy")
    many = replace(estimate, samples=50_000).draws(count=2000).interval("accuracy")
    assert many[1] - many[0] < 0.02 < few[1] - few[0]
    half = estimate.draws(count=2000).interval("accuracy", level=0.5)
    assert few[0] < half[0] < half[1] < few[1]


def test_an_estimate_as_json_values() -> None:
    estimate = PerformanceModel(hand_profile(), hand_topology()).estimate(
        Plan(cuts=(1, 2), placement=(0, 1), thresholds=(0.5,))
    )
    values = estimate.to_dict()
    assert values["latency_ms"]["mean"] == pytest.approx(21.44)
    assert values["latency_ms"]["p50"] == pytest.approx(9)
    assert values["latency_ms"]["p95"] == pytest.approx(40.1)
    assert values["latency_ms"]["per_exit"] == pytest.approx([9, 40.1])
    low, high = values["latency_ms"]["mean_interval"]
    assert 9 < low < 21.44 < high < 40.1
    assert values["exit_rates"] == [0.6, 0.4]
    assert (values["estimator"], values["samples"]) == ("sample", 5)


# -- mismatches ------------------------------------------------------------------------------------


def test_a_tier_without_its_device_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"'edge'.*'phone'.*\['fast', 'slow'\]"):
        PerformanceModel(hand_profile(), hand_topology().with_tier(0, device="phone"))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan(cuts=(1, 3), placement=(0, 1), thresholds=(0.5,)), r"cuts 1–2.*\(1, 3\)"),
        (Plan(cuts=(2,), placement=(2,)), r"places on 3 tiers, but the topology has 2: .*plan for this topology"),
        (Plan(cuts=(2,), placement=(1,), codecs=("gzip",)), r"float32.*gzip"),
        (Plan(cuts=(2,), placement=(1,), codecs=(None,)), "not offered at its cut"),
    ],
)
def test_plans_that_do_not_fit_are_refused(plan: Plan, message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        PerformanceModel(hand_profile(), hand_topology()).estimate(plan)


def with_encoded(profile: Profile) -> Profile:
    encoded = codec([600, NAN, NAN], 0.0, 0.002, 0.0)
    return replace(
        profile,
        devices={n: replace(d, codecs={**d.codecs, "encoded": encoded}) for n, d in profile.devices.items()},
    )


def test_a_codec_is_used_only_where_it_is_offered() -> None:
    model = PerformanceModel(with_encoded(hand_profile()), hand_topology())
    # The encoded input saves more of the link (5.2 ms for 16 ms) than its decoding costs.
    assert model.complete(Plan(cuts=(2,), placement=(1,))).codecs == ("encoded",)
    assert model.complete(Plan(cuts=(2,), placement=(1,)), codecs=("float32",)).codecs == ("float32",)
    assert model.complete(Plan(cuts=(1, 2), placement=(0, 1), thresholds=(0.5,))).codecs == (None, "float32")
    with pytest.raises(MismatchError, match="not offered"):
        model.estimate(Plan(cuts=(1, 2), placement=(0, 1), thresholds=(0.5,), codecs=(None, "encoded")))
    with pytest.raises(InvalidValue, match=r"a codec is one of float32, encoded, .*, but got 'zip'"):
        model.complete(Plan(cuts=(2,), placement=(1,)), codecs=("zip",))


def test_a_codec_that_the_receiver_lacks_is_not_offered() -> None:
    profile = with_encoded(hand_profile())
    fast = replace(profile.devices["fast"], codecs={"float32": profile.devices["fast"].codecs["float32"]})
    model = PerformanceModel(replace(profile, devices={**profile.devices, "fast": fast}), hand_topology())
    assert model.complete(Plan(cuts=(2,), placement=(1,))).codecs == ("float32",)
    with pytest.raises(MismatchError, match="not offered"):
        model.estimate(Plan(cuts=(2,), placement=(1,), codecs=("encoded",)))


def tabulated(theta: tuple[float, ...] = THRESHOLDS) -> TabulatedExits:
    exited = np.array([[int(3 * t), int(5 * t)] for t in theta])
    return TabulatedExits(thresholds=np.array(theta), exited=exited, correct=np.array([3, 4]), samples=5)


def test_tables_have_no_samples_to_replay() -> None:
    profile = replace(hand_profile(), exits=tabulated())
    with pytest.raises(MismatchError, match=r"needs per-sample scores.*marginal"):
        PerformanceModel(profile, hand_topology(), estimator="sample")
    assert PerformanceModel(profile, hand_topology()).estimator == "marginal"
    assert PerformanceModel(hand_profile(), hand_topology()).estimator == "sample"
    with pytest.raises(MismatchError, match=r"0\.3"):
        PerformanceModel(profile, hand_topology()).estimate(Plan(cuts=(1, 2), placement=(0, 1), thresholds=(0.3,)))


# -- found by these tests: remove the marks once the model is corrected ----------------------------


def test_a_table_without_a_row_for_0_still_knows_that_nobody_leaves_at_0() -> None:
    model = PerformanceModel(replace(hand_profile(), exits=tabulated((0.25, 0.5))), hand_topology())
    assert model.estimate(Plan(cuts=(1, 2), placement=(0, 1), thresholds=(0.0,))).share.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("estimator", ["sample", "marginal"])
def test_a_score_a_hair_below_0_does_not_leave_at_an_exit_that_is_not_run(estimator: str) -> None:
    exits = SampleExits(
        scores={"entropy": np.full((4, 2), -1e-9)}, correct=np.ones((4, 2), dtype=bool)
    )  # 1 - 1.000000001
    profile = replace(hand_profile(), exits=exits)
    model = PerformanceModel(profile, hand_topology(), estimator="sample" if estimator == "sample" else "marginal")
    estimate = model.estimate(Plan(cuts=(1, 2), placement=(0, 1), thresholds=(0.0,)))
    assert estimate.share.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("missing", ["encode_repeats_s", "dispatch_repeats_s"])
def test_a_hop_whose_cost_is_unknown_is_never_free(missing: str) -> None:
    profile = hand_profile()
    unknown = {
        name: replace(d, codecs={"float32": replace(d.codecs["float32"], **{missing: np.full((1, 3), NAN)})})
        for name, d in profile.devices.items()
    }
    with pytest.raises((MismatchError, InvalidValue)):
        PerformanceModel(replace(profile, devices=unknown), hand_topology()).estimate(Plan(cuts=(2,), placement=(1,)))
