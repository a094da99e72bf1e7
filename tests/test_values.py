"""Units, plans, topologies, profiles, measurements, and the files that hold them."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from portend.errors import InvalidValue, MismatchError, PortendError, StorageError
from portend.io import storage
from portend.units import Dimension, format_bandwidth, format_bytes, format_time, parse
from portend.values.compute_fit import mean_repeats
from portend.values.device_profile import DeviceProfile
from portend.values.exits import SampleExits, TabulatedExits
from portend.values.measurement import SPAN_KINDS, Measurement
from portend.values.plan import Plan, PlanBatch, takes_exit
from portend.values.profile import Profile
from portend.values.topology import Link, Tier, Topology
from problems import backbone, codec, device, random_case, result_profile, upper

NAN = math.nan

# -- units -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("3 ns", "time", 3e-9),
        ("3 us", "time", 3e-6),
        ("3 µs", "time", 3e-6),
        ("20 ms", "time", 0.020),
        ("1.5 s", "time", 1.5),
        ("2 min", "time", 120.0),
        ("8 bit/s", "bandwidth", 8.0),
        ("8 kbit/s", "bandwidth", 8e3),
        ("10 Mbit/s", "bandwidth", 1e7),
        ("1 Gbit/s", "bandwidth", 1e9),
        ("1 B/s", "bandwidth", 8.0),
        ("1 kB/s", "bandwidth", 8e3),
        ("1 MB/s", "bandwidth", 8e6),
        ("1 GB/s", "bandwidth", 8e9),
        ("1500 B", "size", 1500.0),
        ("1 kB", "size", 1e3),
        ("1 MB", "size", 1e6),
        ("1 GB", "size", 1e9),
        ("1 KiB", "size", 1024.0),
        ("1 MiB", "size", 1048576.0),
        ("1 GiB", "size", 1073741824.0),
        ("5 mW", "power", 5e-3),
        ("5 W", "power", 5.0),
        ("5 kW", "power", 5e3),
        ("0.10 USD/h", "price", 0.1),
        ("20ms", "time", 0.020),
        ("  +2e1   ms ", "time", 0.020),
        (".5 s", "time", 0.5),
        ("5. s", "time", 5.0),
        (0, "time", 0.0),
        ("0", "bandwidth", 0.0),
        ("0.0 s", "time", 0.0),
    ],
)
def test_quantities(text: str | float, dimension: Dimension, value: float) -> None:
    assert parse(text, dimension) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    ("text", "dimension", "message"),
    [
        ("20", "time", "no unit"),
        (20.0, "time", "no unit"),
        ("20 ms", "bandwidth", "unknown unit 'ms'"),
        ("20 mbit/s", "bandwidth", "unknown unit 'mbit/s'"),
        ("20 Mbps", "bandwidth", "unknown unit 'Mbps'"),
        ("20 MS", "time", "unknown unit 'MS'"),
        ("0 lightyears", "time", "unknown unit"),
        ("-1 ms", "time", "not negative"),
        ("nan s", "time", "a number and a unit"),
        ("inf s", "time", "a number and a unit"),
        (NAN, "time", "a number and a unit"),
        ("1e999 s", "time", "finite"),
        ("", "time", "a number and a unit"),
        ("ms", "time", "a number and a unit"),
        ("1 ms 2", "time", "a number and a unit"),
        ("1_000 ms", "time", "a number and a unit"),
        (True, "time", "a number and a unit"),
    ],
)
def test_what_is_no_quantity(text: str | float, dimension: Dimension, message: str) -> None:
    with pytest.raises(InvalidValue, match=message) as caught:
        parse(text, dimension)
    assert {"time": "20 ms", "bandwidth": "10 Mbit/s"}[dimension] in str(caught.value)  # the remedy


def test_quantities_as_text() -> None:
    assert [format_time(x) for x in (2.5, 0.0125, 3e-6, 0, NAN)] == ["2.5 s", "12.5 ms", "3 µs", "0 µs", "nan"]
    assert [format_bandwidth(x) for x in (1e9, 1e7, 5e3, 8)] == ["1 Gbit/s", "10 Mbit/s", "5 kbit/s", "8 bit/s"]
    assert [format_bytes(x) for x in (2e9, 3e6, 65_536, 40)] == ["2 GB", "3 MB", "65.54 kB", "40 B"]
    assert parse(format_time(0.0125), "time") == 0.0125


# -- plans -----------------------------------------------------------------------------------------


def test_an_exit_is_taken_strictly_below_and_never_with_nan() -> None:
    score = np.array([0.2, 0.5, 0.7, NAN])
    assert takes_exit(score, 0.5).tolist() == [True, False, False, False]
    assert takes_exit(score, 0.0).tolist() == [False] * 4
    assert takes_exit(score, 1.0).tolist() == [True, True, True, False]
    assert takes_exit(0.1, NAN).tolist() is False
    assert takes_exit(score[:, None], [0.3, 0.6]).shape == (4, 2)


WRONG_PLANS: list[tuple[dict[str, Any], str]] = [
    ({"cuts": (), "placement": ()}, "at least one partition"),
    ({"cuts": (0,), "placement": (0,)}, "increase from 1"),
    ({"cuts": (2, 2), "placement": (0, 1), "thresholds": (0.5,)}, "increase"),
    ({"cuts": (3, 2), "placement": (0, 1), "thresholds": (0.5,)}, "increase"),
    ({"cuts": (1, 2), "placement": (0,), "thresholds": (0.5,)}, "one tier"),
    ({"cuts": (1,), "placement": (-1,)}, "from 0"),
    ({"cuts": (1, 2, 3), "placement": (0, 1, 0), "thresholds": (0.5, 0.5)}, "not revisited"),
    ({"cuts": (1, 2), "placement": (0, 1)}, "one threshold"),
    ({"cuts": (1,), "placement": (0,), "thresholds": (0.5,)}, "one threshold"),
    ({"cuts": (1, 2), "placement": (0, 1), "thresholds": (1.1,)}, "0–1"),
    ({"cuts": (1, 2), "placement": (0, 1), "thresholds": (-0.1,)}, "0–1"),
    ({"cuts": (1, 2), "placement": (0, 1), "thresholds": (NAN,)}, "0–1"),
    ({"cuts": (1, 2), "placement": (0, 1), "thresholds": (0.5,), "codecs": ("x",)}, "codec"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_PLANS)
def test_laws_of_plans(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        Plan(**arguments)


def test_a_plan() -> None:
    plan = Plan(cuts=(4, 5, 10), placement=(2, 2, 0), thresholds=(0.3, 0.0), codecs=("int8", None, "float32"))
    assert len(plan) == 3
    assert plan.partitions == ((0, 4), (4, 5), (5, 10))
    assert plan.describe() == "tier 2 [1–4] η<0.3 → tier 2 [5] (no exit) → tier 0 [6–10]"
    assert plan.describe(["a", "b", "c"]).startswith("c [1–4]")
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.mark.parametrize(
    "values",
    [None, {}, {"cuts": 3, "placement": [0]}, {"cuts": ["1"], "placement": [0]}, {"cuts": [True], "placement": [0]}],
)
def test_what_is_no_plan(values: Any) -> None:
    with pytest.raises(InvalidValue):
        Plan.from_dict(values)


@pytest.mark.parametrize("wrong", ["placement", "thresholds", "codecs"])
def test_a_batch_of_plans_has_equal_columns(wrong: str) -> None:
    columns: dict[str, Any] = {
        "cuts": np.array([[1, 2], [1, 3]]),
        "placement": np.zeros((2, 2), dtype=np.intp),
        "thresholds": np.zeros((2, 1)),
        "codecs": np.zeros((2, 2), dtype=np.intp),
    }
    assert len(PlanBatch(**columns)) == 2
    with pytest.raises(InvalidValue, match=wrong):
        PlanBatch(**{**columns, wrong: np.zeros((3, 2))})


# -- topologies ------------------------------------------------------------------------------------


def chain(count: int = 3, **changes: Any) -> Topology:
    arguments: dict[str, Any] = {
        "name": "chain",
        "tiers": tuple(Tier(name=f"t{i}", device="d") for i in range(count)),
        "links": tuple(Link(bandwidth_bps=10.0**i, propagation_delay_s=float(i)) for i in range(1, count)),
    }
    return Topology(**(arguments | changes))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tier(name="", device="d"), "name"),
        (lambda: Tier(name="a", device="d", slowdown=0.0), "slowdown"),
        (lambda: Tier(name="a", device="d", slowdown=NAN), "slowdown"),
        (lambda: Link(bandwidth_bps=0.0, propagation_delay_s=0.0), "bandwidth"),
        (lambda: Link(bandwidth_bps=math.inf, propagation_delay_s=0.0), "bandwidth"),
        (lambda: Link(bandwidth_bps=1.0, propagation_delay_s=-1.0), "propagation"),
        (lambda: Link(bandwidth_bps=1.0, propagation_delay_s=NAN), "propagation"),
        (lambda: Link(bandwidth_bps=1.0, propagation_delay_s=0.0, mtu_bytes=52), "packet"),
        (lambda: Link(bandwidth_bps=1.0, propagation_delay_s=0.0, header_bytes=-1), "packet"),
        (lambda: chain(tiers=(), links=()), "at least one tier"),
        (lambda: chain(links=()), "2 links"),
        (lambda: chain(tiers=(Tier(name="a", device="d"),) * 3), "unique"),
        (lambda: chain(source=3), "source"),
        (lambda: chain(destination=-1), "destination"),
        (lambda: chain(ingest="telepathy"), "ingest"),
        (lambda: chain().tier_index("t9"), "t9"),
    ],
)
def test_laws_of_topologies(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        make()


def test_a_chain_of_tiers() -> None:
    topology = chain()
    assert topology.tier_index("t1") == 1
    assert [link.propagation_delay_s for link in topology.path(2, 0)] == [2.0, 1.0]
    assert [link.propagation_delay_s for link in topology.path(0, 2)] == [1.0, 2.0]
    assert list(topology.path(1, 1)) == []
    assert topology.propagation_s().tolist() == [[0, 1, 3], [1, 0, 2], [3, 2, 0]]
    faster = topology.with_link(1, bandwidth_bps=7.0)
    assert (faster.links[1].bandwidth_bps, faster.links[0], topology.links[1].bandwidth_bps) == (
        7.0,
        topology.links[0],
        100.0,
    )
    slower = topology.with_tier(2, slowdown=3.0)
    assert [tier.slowdown for tier in slower.tiers] == [1.0, 1.0, 3.0]


def test_a_path_whose_packets_hold_no_byte_is_refused() -> None:
    links = (
        Link(bandwidth_bps=1e6, propagation_delay_s=0.0, mtu_bytes=60, header_bytes=0),
        Link(bandwidth_bps=1e6, propagation_delay_s=0.0, mtu_bytes=1500, header_bytes=60),
    )
    with pytest.raises(InvalidValue, match="smallest MTU"):
        chain(links=links).transmission_s(100)


# -- profiles --------------------------------------------------------------------------------------


def test_exit_rates_and_accuracies_by_hand() -> None:
    exits = SampleExits(
        scores={"entropy": np.array([[0.1, 0.0], [0.5, 0.4], [NAN, 0.6], [0.2, NAN]])},
        correct=np.array([[1, 1], [0, 1], [0, 1], [0, 0]]),
    )
    assert exits.rates([0.0, 0.2, 0.5, 1.0]).tolist() == [[0, 0], [0.25, 0.25], [0.5, 0.5], [0.75, 0.75]]
    assert exits.accuracies().tolist() == [0.25, 0.75]
    assert (exits.samples, exits.num_branches) == (4, 2)
    table = TabulatedExits(
        thresholds=np.array([0.2, 0.5]), exited=np.array([[1, 1], [2, 2]]), correct=np.array([1, 3]), samples=4
    )
    assert table.rates([0.5, 0.2]).tolist() == [[0.5, 0.5], [0.25, 0.25]]
    assert table.rates(0.2 + 1e-12).tolist() == [[0.25, 0.25]]
    assert table.accuracies().tolist() == [0.25, 0.75]
    with pytest.raises(MismatchError, match=r"0\.3"):
        table.rates([0.2, 0.3])


def flat(**changes: Any) -> DeviceProfile:
    return replace(device("d", np.ones((3, 3)), codecs={"float32": codec([1, 2, 3])}), **changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(backbone(2), block_names=()), "at least one block"),
        (lambda: replace(backbone(2), num_classes=1), "two classes"),
        (lambda: replace(backbone(2), cut_shapes=((1,),)), "cuts"),
        (lambda: SampleExits(scores={"entropy": np.zeros((2, 2))}, correct=np.ones((2, 3), dtype=bool)), "alike"),
        (lambda: SampleExits(scores={"entropy": np.zeros((0, 2))}, correct=np.ones((0, 2), dtype=bool)), "not empty"),
        (lambda: SampleExits(scores={"entropy": np.zeros(2)}, correct=np.ones(2, dtype=bool)), "branches"),
        (
            lambda: TabulatedExits(thresholds=np.zeros(1), exited=np.array([[5]]), correct=np.array([1]), samples=4),
            "exited counts",
        ),
        (
            lambda: TabulatedExits(thresholds=np.zeros(1), exited=np.array([[1]]), correct=np.array([-1]), samples=4),
            "correct counts",
        ),
        (
            lambda: TabulatedExits(thresholds=np.zeros(2), exited=np.array([[1]]), correct=np.array([1]), samples=4),
            "thresholds, branches",
        ),
        (
            lambda: TabulatedExits(thresholds=np.zeros(1), exited=np.array([[0]]), correct=np.array([0]), samples=0),
            "at least one sample",
        ),
        (lambda: replace(codec([1, 2]), encode_repeats_s=np.zeros((1, 3))), "encode_repeats_s"),
        (lambda: replace(codec([1, 2]), decode_repeats_s=np.zeros(2)), "decode_repeats_s"),
        (lambda: replace(codec([1, 2]), dispatch_repeats_s=np.zeros((0, 2))), "dispatch_repeats_s"),
        (lambda: replace(result_profile(), encode_repeats_s=np.zeros((1, 1))), "encode_repeats_s"),
        (lambda: flat(codecs={}), "at least one codec"),
        (lambda: flat(codecs={"float32": codec([1, 2])}), "2 cuts"),
        (lambda: flat(compute_repeats_s=np.full((1, 3, 3), NAN)), "3 are missing"),
        (lambda: flat(compute_repeats_s=-np.ones((1, 3, 3))), "3 negative"),
        (lambda: flat(compute_repeats_s=np.ones((3, 3))), "compute_repeats_s"),
        (lambda: flat(idle_repeats_s=np.ones((1, 2, 2))), "idle_repeats_s"),
        (lambda: flat(branch_repeats_s=np.ones((1, 2))), "branch_repeats_s"),
        (lambda: a_profile(devices={}), "at least one device"),
        (lambda: a_profile(backbone=backbone(3)), "3 branches"),
        (lambda: a_profile(exits=random_case(1, blocks=3).profile.exits, backbone=backbone(3)), "2 blocks"),
    ],
)
def test_laws_of_profiles(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        make()


def a_profile(**changes: Any) -> Profile:
    exits = SampleExits(scores={"entropy": np.array([[0.1, NAN], [0.5, 0.0]])}, correct=np.array([[1, 1], [0, 1]]))
    return replace(Profile(backbone=backbone(2), exits=exits, devices={"d": flat()}), **changes)


def test_means_leave_out_what_was_not_measured() -> None:
    repeats = upper(np.stack([np.full((3, 3), x) for x in (1.0, 9.0, 2.0)]))
    repeats[1, 0, 1] = NAN
    profile = flat(compute_repeats_s=repeats, branch_repeats_s=np.array([[NAN, 1, 5], [NAN, 3, 7]]))
    assert profile.measured_s[0, 1] == 1.5
    assert profile.measured_s[0, 2] == 4.0
    assert np.isnan(profile.measured_s[1, 0])
    assert mean_repeats(profile.branch_repeats_s)[1:].tolist() == [2.0, 6.0]
    assert np.isnan(profile.branch_s[0])
    assert codec([1, NAN, 3]).offered.tolist() == [True, False, True]


def test_tails_are_shared_out_over_the_table_in_proportion_to_time() -> None:
    # Ten repeats: 0:1 takes 1 s, once 12 s; 0:2 and 1:2 always 2 s and 1 s. Without the tails the means are
    # 1, 2 and 1 s; 51 s were measured where these give 40, so each entry is 51/40 of its own.
    repeats = upper(np.stack([np.array([[0, 1.0, 2.0], [0, 0, 1.0], [0, 0, 0]])] * 10))
    repeats[3, 0, 1] = 12.0
    profile = flat(compute_repeats_s=repeats)
    assert np.allclose(profile.measured_s[[0, 0, 1], [1, 2, 2]], np.array([1.0, 2.0, 1.0]) * 51 / 40, rtol=1e-14)
    assert 10 * np.nansum(profile.measured_s) == pytest.approx(np.nansum(repeats), rel=1e-14)
    few = flat(compute_repeats_s=repeats[:9])
    assert few.measured_s[0, 1] == pytest.approx((8 + 12) / 9), "fewer than ten repeats: the plain mean"


def test_a_device_timed_again_changes_only_what_was_timed() -> None:
    busy = np.array([[0, 1.0, 3.0], [0, 0, 2.0], [0, 0, 0]])
    old = device("d", busy, idle=busy + 1, codecs={"f": codec([1, 1, 1])})
    bursts = np.full((2, 2, 3, 3, 3), NAN)
    bursts[1, :, :, 0, 1] = [[2.5, 1.5, 1.1], [2.7, 1.3, 1.1]]  # the first run after idling, then two busy ones
    new = old.timed_again(bursts)
    assert new.compute_s[0, 1] == pytest.approx(1.25)
    assert new.woken_s()[0, 1] == pytest.approx(2.6)
    assert new.woken_s(2.0)[0, 1] == pytest.approx(2.6 + 1.25)
    for cut in ((0, 2), (1, 2)):
        assert (new.compute_s[cut], new.woken_s()[cut]) == (old.compute_s[cut], old.woken_s()[cut])
    with pytest.raises(InvalidValue, match="more than 1 runs"):
        old.timed_again(bursts[:, :, :1])
    bursts[0, :, :, 1, 2] = [[3.5, 2.5, 2.1], [3.7, 2.3, 2.1]]  # after 0:1
    both = old.timed_again(bursts)
    assert (both.compute_s[1, 2], both.following_s()[1, 2]) == pytest.approx((2.25, 3.6))
    assert both.following_s(3.0)[1, 2] == pytest.approx(3.6 + 2 * 2.25)
    assert both.woken_s()[1, 2] == pytest.approx(3.0), "after idling it was not timed again"
    assert old.following_s(2.0)[1, 2] == 4.0, "not measured: as a busy one"


def test_coding_timed_again_changes_only_what_was_timed() -> None:
    old = device("d", np.triu(np.ones((3, 3)), 1), codecs={"f": codec([1, 1, 1]), "g": codec([1, 1, 1])})
    again = np.full((4, 2, 3), NAN)
    again[:2, :, 1] = [[0.5, 0.7], [0.1, 0.3]]  # decode at cut 1, once and right after
    new = old.coded_again({"f": again})
    assert new.codecs["f"].decode_s()[1] == pytest.approx(0.6)
    assert new.codecs["f"].decode_s(3.0)[1] == pytest.approx(0.6 + 2 * 0.2)
    for slow in (1.0, 3.0):
        assert new.codecs["f"].decode_s(slow)[[0, 2]] == pytest.approx(old.codecs["f"].decode_s(slow)[[0, 2]])
        assert np.array_equal(new.codecs["f"].encode_s(slow), old.codecs["f"].encode_s(slow))
        assert np.array_equal(new.codecs["g"].decode_s(slow), old.codecs["g"].decode_s(slow))
    again[2:, :, 2] = [[0.9, 1.1], [0.4, 0.4]]
    assert old.coded_again({"f": again}).codecs["f"].encode_s(2.0)[2] == pytest.approx(1.0 + 0.4)
    with pytest.raises(InvalidValue, match=r"coding of f is \[4, repeats, 3\]"):
        old.coded_again({"f": again[:, :, :2]})


def test_dispatch_timed_again_changes_every_message_by_as_much() -> None:
    old = device("d", np.triu(np.ones((3, 3)), 1), codecs={"f": codec([1, 1, 1])})
    by_codec, of_results = old.codecs["f"].dispatch_s, old.result.dispatch_s
    new = old.dispatched_again([[NAN, of_results + 0.2], [NAN, of_results + 0.6]])
    assert new.result.dispatch_s == pytest.approx(of_results + 0.4)
    assert new.codecs["f"].dispatch_s == pytest.approx(by_codec + 0.4)
    assert old.dispatched_again([-9.0]).codecs["f"].dispatch_s.tolist() == [0.0, 0.0, 0.0]
    assert old.dispatched_again([NAN, NAN]) is old, "no message came"


def test_what_waking_costs_by_hand() -> None:
    busy = np.array([[0, 1.0, 3.0], [0, 0, 2.0], [0, 0, 0]])
    unmeasured = device("d", busy, codecs={"f": codec([1, 1, 1])})
    assert unmeasured.woken_s()[0, 1:].tolist() == [1.0, 3.0]
    # Two measured: 0:1 costs 0.5 more at 1 s, 1:2 costs 1.0 more at 2 s: the line 0.5 · busy gives 1.5
    # for 0:2, which was not measured.
    some = device("d", busy, idle=[[0, 1.5, NAN], [0, 0, 3.0], [0, 0, 0]], codecs={"f": codec([1, 1, 1])})
    assert some.woken_s()[[0, 0, 1], [1, 2, 2]] == pytest.approx([1.5, 4.5, 3.0])
    # Never below busy, even where the idle mean came out lower.
    lucky = device("d", busy, idle=[[0, 0.5, 4.0], [0, 0, 2.5], [0, 0, 0]], codecs={"f": codec([1, 1, 1])})
    assert lucky.woken_s()[[0, 0, 1], [1, 2, 2]] == pytest.approx([1.0, 4.0, 2.5])
    # The work done 2.5 times, the first runs after idling taking 0.8, 0.4 and 0.2 longer than a busy one:
    # 2.5 · 1 + 0.8 + 0.4 + half of 0.2.
    bursts = np.stack([upper(busy + extra) for extra in (0.8, 0.4, 0.2)])[None]
    warming = replace(unmeasured, idle_repeats_s=bursts)
    assert warming.woken_s(2.5)[0, 1] == pytest.approx(2.5 + 0.8 + 0.4 + 0.1)


def test_arrays_of_a_profile_are_its_own_and_read_only() -> None:
    score = np.array([[0.1, 0.2]])
    exits = SampleExits(scores={"entropy": score}, correct=np.ones((1, 2), dtype=bool))
    score[0, 0] = 0.9
    assert exits.score[0, 0] == 0.1
    with pytest.raises(ValueError, match="read-only"):
        exits.score[0, 0] = 0.5
    assert a_profile().full_accuracy == 1.0


# -- measurements ----------------------------------------------------------------------------------


def a_measurement(**changes: Any) -> Measurement:
    # Request 0 leaves at the edge: compute 0–10 ms. Request 1 goes on: compute 0–8, encode 8–9,
    # transfer 9–29, decode 29–30, compute 30–35, transfer of the result 36–40. In no order.
    spans = [
        (1, "compute", 1, 1, 30, 35),
        (1, "transfer", 2, 0, 36, 40),
        (0, "compute", 0, 0, 0, 10),
        (1, "compute", 0, 0, 0, 8),
        (1, "encode", 1, 0, 8, 9),
        (1, "decode", 1, 1, 29, 30),
        (1, "transfer", 1, 1, 9, 29),
    ]
    columns: dict[str, Any] = {
        "plan": Plan(cuts=(1, 2), placement=(0, 1), thresholds=(0.5,), codecs=(None, "float32")),
        "topology": chain(2),
        "sample": np.array([7, 3, 5, 9]),
        "exit_index": np.array([0, 1, 0, 0]),
        "label": np.array([4, 4, 2, 1]),
        "correct": np.array([True, False, True, True]),
        "start_s": np.array([0.0, 0.1, 0.2, 0.3]),
        "latency_s": np.array([0.010, 0.042, 0.020, 0.012]),
        "span_request": np.array([s[0] for s in spans]),
        "span_kind": np.array([SPAN_KINDS.index(str(s[1])) for s in spans]),
        "span_step": np.array([s[2] for s in spans]),
        "span_tier": np.array([s[3] for s in spans]),
        "span_start_s": np.array([1e-3 * float(s[4]) for s in spans]),
        "span_end_s": np.array([1e-3 * float(s[5]) for s in spans]),
        "provenance": {"machine": "hand"},
    }
    return Measurement(**(columns | changes))


def test_runs_of_one_plan_join_into_one() -> None:
    run = a_measurement()
    both = Measurement.joined((run, run))
    assert len(both) == 8
    assert both.mean_s == pytest.approx(run.mean_s)
    assert both.parts_s() == pytest.approx(run.parts_s())
    assert both.start_s.tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.312, 0.412, 0.512, 0.612])
    later = list(both.traces())[4:]
    assert [t.spans for t in later] == [t.spans for t in run.traces()]
    loud = replace(run, provenance={"disturbed": "someone"})
    assert Measurement.joined((loud, run)).provenance == {"machine": "hand", "disturbed": "someone"}
    other = replace(run, plan=replace(run.plan, thresholds=(0.25,)))
    for parts in ((), (run, other)):
        with pytest.raises(MismatchError, match="one plan and topology"):
            Measurement.joined(parts)


def test_statistics_of_a_measurement_by_hand() -> None:
    run = a_measurement()
    assert len(run) == 4
    assert run.accuracy == 0.75
    assert run.mean_s == pytest.approx(0.021)
    assert run.exit_rates().tolist() == [0.75, 0.25]
    assert [run.quantile_s(q) for q in (0.25, 0.26, 0.5, 0.75, 0.76, 1.0)] == [
        0.010, 0.012, 0.012, 0.020, 0.042, 0.042,
    ]  # fmt: skip
    # Over four requests: compute 10 + 8 + 5, encode 1, transfer 20 + 4, decode 1; the rest of 84 ms.
    assert {kind: 4e3 * seconds for kind, seconds in run.parts_s().items()} == pytest.approx(
        {"encode": 1, "transfer": 24, "decode": 1, "compute": 23, "other": 35}
    )


def test_weighted_samples_stand_for_a_larger_test() -> None:
    # 10, 42, 20 and 12 ms stand for 1, 3, 5 and 1 of ten samples; the second leaves late and is wrong.
    run = a_measurement(weight=np.array([1.0, 3.0, 5.0, 1.0]))
    assert (len(run), run.stands_for) == (4, 10)
    assert run.mean_s == pytest.approx(0.1 * (10 + 3 * 42 + 5 * 20 + 12) * 1e-3)
    assert run.accuracy == pytest.approx(0.7)
    assert run.exit_rates() == pytest.approx([0.7, 0.3])
    assert [run.quantile_s(q) for q in (0.1, 0.2, 0.7, 0.71)] == pytest.approx([0.010, 0.012, 0.020, 0.042])
    assert sum(run.parts_s().values()) == pytest.approx(run.mean_s)
    # Exits vary apart: three of 10, 20, 12 ms (variance 28 ms²) in seven tenths; one alone tells nothing.
    assert run.standard_error_s == pytest.approx(1e-3 * 0.7 * math.sqrt(28 / 3))
    assert Measurement.joined((run, run)).stands_for == 20
    with pytest.raises(InvalidValue, match="stands for"):
        a_measurement(weight=np.array([1.0, 0.0, 5.0, 1.0]))


def test_traces_in_order() -> None:
    traces = list(a_measurement().traces())
    assert [(t.sample, t.exit_index, t.label, len(t.spans)) for t in traces] == [
        (7, 0, 4, 1), (3, 1, 4, 6), (5, 0, 2, 0), (9, 0, 1, 0),
    ]  # fmt: skip
    assert [(s.kind, s.step, s.tier) for s in traces[1].spans] == [
        ("compute", 0, 0), ("encode", 1, 0), ("transfer", 1, 1), ("decode", 1, 1), ("compute", 1, 1),
        ("transfer", 2, 0),
    ]  # fmt: skip
    assert traces[1].spans[2].duration_s == pytest.approx(0.020)


@pytest.mark.parametrize(
    ("name", "value"), [("label", np.zeros(3)), ("latency_s", np.zeros(5)), ("span_step", np.zeros(6))]
)
def test_columns_of_different_length_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidValue, match="one entry per"):
        a_measurement(**{name: value})


# -- files -----------------------------------------------------------------------------------------


def identical(a: Any, b: Any) -> bool:
    """Equal in type and to the last bit, NaN included."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if is_dataclass(a):
        return type(a) is type(b) and all(identical(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(identical(a[k], b[k]) for k in a)
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(identical, a, b))
    return type(a) is type(b) and bool(a == b)


@pytest.mark.parametrize("seed", range(8))
def test_profiles_come_back_to_the_last_bit(seed: int, tmp_path: Path) -> None:
    profile = replace(random_case(seed).profile, provenance={"weights": "näïve", "a/b": "c"})
    storage.save(profile, tmp_path / "p.portend")
    assert identical(storage.load_profile(tmp_path / "p.portend"), profile)
    one = next(iter(profile.devices.values()))
    storage.save(one, tmp_path / "d.portend")
    assert identical(storage.load(tmp_path / "d.portend", DeviceProfile), one)


def test_measurements_come_back_to_the_last_bit(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "m.portend"
    run = a_measurement(topology=chain(2).with_tier(0, memory_bytes=5.0))
    storage.save(run, path)
    assert identical(storage.load_measurement(path), run)
    assert [p.name for p in path.parent.iterdir()] == ["m.portend"]  # no temporary file is left
    assert not identical(run, a_measurement())


def test_names_that_differ_only_in_a_slash_do_not_mix(tmp_path: Path) -> None:
    profile = flat(codecs={"a/b": codec([1, 2, 3]), "a_b": codec([4, 5, 6])})
    storage.save(profile, tmp_path / "d")
    assert identical(storage.load(tmp_path / "d", DeviceProfile), profile)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    storage.save(a_profile(), tmp_path / "p.portend")
    return tmp_path / "p.portend"


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path: Path, content: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = members(path)
    document = json.loads(content["value.json"])
    change(document)
    rewrite(path, content | {"value.json": json.dumps(document).encode()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=storage.FORMAT_VERSION + 1), "format version 3.*upgrade"),
        (lambda d: d.update(version="1"), "format version"),
        (lambda d: d.update(kind="Measurement"), "is what a run measured, but a profile is needed here"),
        (lambda d: d.update(kind="Path"), "is no file of Portend, or damaged, but a profile"),
        (lambda d: d.update(format="other"), "is a zip file of another program, but a profile"),
        (lambda d: d.pop("format"), "is a zip file of another program, but a profile"),
        (lambda d: d.pop("version"), "damaged"),
        (lambda d: d.pop("value"), "damaged"),
        (lambda d: d.update(value=3), "damaged"),
        (lambda d: d["value"].pop("exits"), "damaged"),
        (lambda d: d["value"].update(devices=[]), "damaged"),
        (lambda d: d["value"].update(devices={}), "at least one device"),
        (lambda d: d["value"]["backbone"].update(num_classes="10"), "expected int"),
        (lambda d: d["value"]["backbone"].update(num_classes=True), "expected int"),
        (lambda d: d["value"]["exits"].update(correct={"array": "nowhere"}), "nowhere"),
        (lambda d: d["value"]["exits"].update(scores={"entropy": [[0.1]]}), "damaged"),
        (lambda d: d["value"]["exits"].update(score=[[0.1]]), "damaged"),
    ],
)
def test_documents_that_do_not_fit(saved: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    edit(saved, change)
    with pytest.raises(StorageError, match=message):
        storage.load_profile(saved)


@pytest.mark.parametrize("content", [b"[]", b"null", b"3", b"{", b"\xff\xfe", b'"text"', b"[" * 100_000])
def test_documents_that_are_no_documents(saved: Path, content: bytes) -> None:
    rewrite(saved, members(saved) | {"value.json": content})
    with pytest.raises(StorageError):
        storage.load_profile(saved)


def test_no_pickle_is_ever_loaded(saved: Path) -> None:
    touched = saved.parent / "touched"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (touched,)

    buffer = io.BytesIO()
    bomb = np.empty((2, 2), dtype=object)
    bomb[:] = Bomb()
    np.save(buffer, bomb, allow_pickle=True)
    buffer.seek(0)
    np.load(buffer, allow_pickle=True)  # the bomb is live ...
    assert touched.exists()
    touched.unlink()
    content = members(saved)
    name = next(n for n in content if n.endswith("scores.entropy.npy"))
    rewrite(saved, content | {name: buffer.getvalue()})
    with pytest.raises(StorageError, match="Object arrays cannot be loaded"):
        storage.load_profile(saved)
    assert not touched.exists()  # ... and was not run


def test_every_corrupt_byte_is_found_or_harmless(saved: Path) -> None:
    original, value = saved.read_bytes(), a_profile()
    rng = np.random.default_rng(0)
    found = 0
    for position in rng.choice(len(original), 300, replace=False):
        damaged = bytearray(original)
        damaged[position] ^= int(rng.integers(1, 256))
        saved.write_bytes(damaged)
        try:
            assert identical(storage.load_profile(saved), value)  # such as a time stamp inside the zip
        except StorageError:
            found += 1
    assert found > 100


def test_truncated_files_are_found(saved: Path) -> None:
    original = saved.read_bytes()
    for keep in [0, 1, *range(20, len(original), 97), len(original) - 1]:
        saved.write_bytes(original[:keep])
        with pytest.raises(StorageError):
            storage.load_profile(saved)


def test_what_is_no_file_of_ours(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no file"):
        storage.load_profile(tmp_path / "missing")
    with pytest.raises(StorageError, match="folder"):
        storage.load_profile(tmp_path)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(StorageError, match="is no file of Portend"):
        storage.load_profile(tmp_path / "text")
    rewrite(tmp_path / "zip", {"other.txt": b"hello"})
    with pytest.raises(StorageError, match="is a zip file of another program"):
        storage.load_profile(tmp_path / "zip")
    storage.save(a_measurement(), tmp_path / "m")
    with pytest.raises(StorageError, match="is what a run measured, but a profile is needed here: portend profile"):
        storage.load_profile(tmp_path / "m")
    assert issubclass(StorageError, PortendError)


def test_a_file_that_declares_too_much_is_not_unpacked(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_LARGEST", 100)
    with pytest.raises(StorageError, match="more than the 100"):
        storage.load_profile(saved)


def test_an_interrupted_save_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()
    written = 0

    def fail(*_: Any, **__: Any) -> None:
        nonlocal written
        written += 1
        raise KeyboardInterrupt

    monkeypatch.setattr("numpy.lib.format.write_array", fail)
    with pytest.raises(KeyboardInterrupt):
        storage.save(flat(), saved)
    assert written == 1
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_value_that_cannot_be_saved_leaves_the_old_file(saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(TypeError, match="set cannot be saved"):
        storage.save(a_profile(provenance={"a": {1}}), saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_json_for_people(tmp_path: Path) -> None:
    storage.write_json({"θ": [0.5, None]}, tmp_path / "a" / "x.json")
    text = (tmp_path / "a" / "x.json").read_text(encoding="utf-8")
    assert "θ" in text
    assert json.loads(text) == {"θ": [0.5, None]}
    with pytest.raises(ValueError, match="JSON"):
        storage.write_json({"x": NAN}, tmp_path / "a" / "x.json")
    assert (tmp_path / "a" / "x.json").read_text(encoding="utf-8") == text


@pytest.mark.parametrize("changes", [{"labels": [0.5, 1.0]}, {"correct": [[0.5], [1.0]]}], ids=["labels", "correct"])
def test_counts_and_labels_are_never_cut_to_whole_numbers(changes: dict[str, Any]) -> None:
    good: dict[str, Any] = {"scores": {"entropy": [[0.1], [0.2]]}, "correct": [[True], [False]]}
    SampleExits(**good | {"labels": [0.0, 1.0]})
    with pytest.raises(InvalidValue, match="whole numbers"):
        SampleExits(**good | changes)
    table: dict[str, Any] = {"thresholds": [0.5], "exited": [[12.5]], "correct": [9], "samples": 20}
    with pytest.raises(InvalidValue, match="whole numbers"):
        TabulatedExits(**table)
