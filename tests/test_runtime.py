"""Agents on real sockets: what is answered, what is measured, and what happens when things break."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from portend.data.dataset import Dataset
from portend.data.sources import load_dataset
from portend.errors import DeploymentError, InvalidValue, MessageError
from portend.io.journal import Journal
from portend.networks.checkpoint import load_checkpoint
from portend.networks.evaluators import TorchEvaluator
from portend.networks.scoring import score_samples
from portend.profiling.bench import Bench
from portend.profiling.losses import profile_ranges
from portend.profiling.messages import count_messages, profile_messages
from portend.profiling.turns import message_ways, run_in_turns, timed_steps
from portend.runtime.codecs import Encoded, Sample, make_codec
from portend.runtime.protocol import (
    Header,
    pack_control,
    pack_header,
    unpack_control,
    unpack_header,
    wire_bytes,
)
from portend.testbed.deployment import Deployment
from portend.values.codecs import ValueRange
from portend.values.execution import Execution
from portend.values.plan import CODECS, Plan, takes_exit
from portend.values.topology import Link, Tier, Topology

SAMPLES = 24


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits:size=16")


ONNX = (Execution(executor="onnxruntime"),) * 2


def chain(*slowdowns: float, delay_s: float = 0.004) -> Topology:
    link = Link(bandwidth_bps=50e6, propagation_delay_s=delay_s)
    tiers = tuple(Tier(name=f"t{i}", device="d", slowdown=s) for i, s in enumerate(slowdowns))
    return Topology(name="chain", tiers=tiers, links=(link,) * (len(tiers) - 1))


@pytest.fixture(scope="module")
def ranges(checkpoint: Path, digits: Dataset) -> tuple[ValueRange, ...]:
    return profile_ranges(TorchEvaluator(load_checkpoint(checkpoint)), digits, np.arange(SAMPLES))


@pytest.fixture(scope="module")
def deployment(checkpoint: Path, digits: Dataset, ranges: tuple[ValueRange, ...]) -> Iterator[Deployment]:
    known = dict(enumerate(ranges[:3]))  # that of cut 3 is left out
    executions = (Execution(), *ONNX)  # PyTorch takes seconds to import
    with Deployment(chain(2.0, 1.5, 1.0), checkpoint, digits.decoder, executions=executions, ranges=known) as running:
        running.load_samples(list(digits.encoded[:SAMPLES]), digits.labels[:SAMPLES])
        yield running


def children(pid: int) -> set[int]:
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found |= {int(child)} | children(int(child))
    return found


def gone(pids: set[int], within_s: float = 30.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        alive = [
            p for p in pids if Path(f"/proc/{p}/stat").exists() and " Z " not in Path(f"/proc/{p}/stat").read_text()
        ]
        if not alive:
            return True
        time.sleep(0.05)
    return False


# -- messages and codecs ---------------------------------------------------------------------------


def test_a_header_survives_the_wire() -> None:
    header = Header("result", 7, 12345, 3, 10**18, exit_index=2, label=9, score=0.25)
    assert unpack_header(pack_header(header)) == header


@given(st.binary(max_size=300))
def test_no_bytes_break_the_header_decoder(data: bytes) -> None:
    try:
        header = unpack_header(data)
    except MessageError:
        return
    assert header.kind in ("tensor", "result", "credit", "probe")


@given(
    st.recursive(
        st.none() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(), st.lists, max_leaves=12
    )
)
def test_no_msgpack_value_breaks_the_decoders(value: object) -> None:
    data = msgpack.packb(value)
    for decode in (unpack_header, unpack_control):
        try:
            decode(data)
        except MessageError:
            continue


def test_another_protocol_version_is_refused_by_name() -> None:
    values = msgpack.unpackb(pack_header(Header("credit", 1, 2, 3, 4)))
    values[0] = 4
    with pytest.raises(MessageError, match="speaks protocol 3, but got 4"):
        unpack_header(msgpack.packb(values))
    with pytest.raises(MessageError, match="protocol 3"):
        unpack_control(pack_control("run").replace(b"version\x03", b"version\x04"))


def test_wire_bytes_count_zmtp_framing() -> None:
    assert wire_bytes([29]) == 31  # one short frame: flags, length, 29 bytes
    assert wire_bytes([30, 255, 256]) == 32 + 257 + 265


def test_encoded_sends_the_samples_own_bytes(digits: Dataset) -> None:
    codec = make_codec("encoded", digits.decoder)
    sample = Sample(digits.encoded[3], digits.tensors([3])[0])
    assert bytes(codec.encode(sample)) == digits.encoded[3]
    assert np.array_equal(codec.decode(digits.encoded[3], (1, 16, 16)), sample.tensor)
    with pytest.raises(InvalidValue, match="only a sample at cut 0"):
        Encoded(digits.decoder).encode(sample.tensor)
    with pytest.raises(InvalidValue, match="a codec that writes numbers is one of"):
        make_codec("gzip", digits.decoder)


# -- running ---------------------------------------------------------------------------------------

PLANS = [
    Plan(cuts=(4,), placement=(0,), codecs=(None,)),
    Plan(cuts=(4,), placement=(2,), codecs=("encoded",)),
    Plan(cuts=(1, 4), placement=(1, 2), thresholds=(0.0,), codecs=("float32", "float32")),
    Plan(
        cuts=(1, 2, 3, 4),
        placement=(0, 0, 1, 2),
        thresholds=(0.75, 0.42, 0.74),
        codecs=(None, None, "float32", "float32"),
    ),
    Plan(cuts=(2, 3), placement=(2, 0), thresholds=(0.44,), codecs=("encoded", "float32")),
]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.describe())
def test_the_agents_answer_as_a_replay_of_the_scores_does(
    deployment: Deployment, checkpoint: Path, digits: Dataset, plan: Plan
) -> None:
    deployment.deploy(plan)
    measured = deployment.run()

    backbone = load_checkpoint(checkpoint)
    scores, correct = score_samples(TorchEvaluator(backbone), digits, np.arange(SAMPLES))
    score = scores[plan.criterion]
    leaves = np.stack(
        [takes_exit(score[:, c - 1], t) for c, t in zip(plan.cuts, (*plan.thresholds, np.inf), strict=True)]
    )
    expected = leaves.argmax(axis=0)
    assert measured.sample.tolist() == list(range(SAMPLES))
    assert measured.exit_index.tolist() == expected.tolist()
    right = correct[np.arange(SAMPLES), np.array(plan.cuts)[expected] - 1]
    assert measured.correct.tolist() == right.tolist()


@pytest.mark.parametrize("name", [name for name in CODECS if name != "encoded"])
def test_the_agents_send_by_any_codec(
    deployment: Deployment, checkpoint: Path, digits: Dataset, ranges: tuple[ValueRange, ...], name: str
) -> None:
    plan = Plan(cuts=(1, 2, 4), placement=(1, 2, 0), thresholds=(0.0, 0.0), codecs=(name,) * 3)
    deployment.deploy(plan)
    measured = deployment.run(samples=range(6), warmup=0)

    backbone = load_checkpoint(checkpoint).eval()
    expected = []
    with torch.inference_mode():
        for tensor in digits.tensors(np.arange(6)):
            for start, end in plan.partitions:
                codec = make_codec(name, digits.decoder, tensor.shape, ranges[start])
                x = torch.from_numpy(codec.decode(bytes(codec.encode(tensor)), tensor.shape))[None]
                features, logits = backbone.segment(start, end)(x)
                tensor = features[0].numpy()
            assert logits is not None
            expected.append(int(logits.argmax()))
    assert measured.label.tolist() == expected


def test_a_hop_by_int8_needs_the_range_of_its_cut(
    network: Path, digits: Dataset, deployment: Deployment, ranges: tuple[ValueRange, ...]
) -> None:
    plan = Plan(cuts=(3, 4), placement=(0, 1), thresholds=(0.0,), codecs=(None, "int8+lz4"))
    with pytest.raises(InvalidValue, match=r"takes its tensor by int8\+lz4, but .* no range of the values at cut 3"):
        deployment.deploy(plan)
    other = {3: replace(ranges[0], channels=np.zeros((2, 5)))}
    odd = Deployment(chain(1.0, 1.0), network, digits.decoder, executions=ONNX, ranges=other, emulation="none")
    with (
        odd as running,
        pytest.raises(DeploymentError, match="channels, but got ranges of 5"),
    ):
        running.deploy(replace(plan, codecs=(None, "int8-channel")))


def test_messages_are_profiled_at_every_cut(
    checkpoint: Path, network: Path, digits: Dataset, ranges: tuple[ValueRange, ...]
) -> None:
    """Cut 0 and two sizes by real messages, the others on lines; compressed sizes are those of the samples' tensors."""
    backbone, names = load_checkpoint(checkpoint).eval(), ("float32", "encoded", "int8-channel+zstd")
    known = dict(enumerate(ranges))
    two = Deployment(chain(1.0, 1.0), network, digits.decoder, executions=ONNX, emulation="none", ranges=known)
    with two as running:
        running.load_samples([digits.encoded[i] for i in range(5)], digits.labels[:5])
        spec = backbone.spec()
        journal = Journal(None, {})
        journal.open()
        bench = Bench(running, journal, spec.num_blocks)
        found = profile_messages(bench, spec, digits, names, samples=5, cuts=2, repeats=3, gap_s=0.001)
    assert tuple(found) == names
    assert count_messages(spec, names, 2) == 3 + 1 + 3
    assert found["encoded"].offered.tolist() == [True, False, False, False, False]
    probed = [0, 2, 3]  # of cuts 1–3 the largest tensor (at 1 and 2) and the smallest
    for name in ("float32", "int8-channel+zstd"):
        codec = found[name]
        assert codec.offered.tolist() == [True] * 4 + [False]
        assert np.flatnonzero(np.isfinite(codec.encode_repeats_s).all(axis=0)).tolist() == probed
        assert np.isfinite(codec.decode_busy_repeats_s[:, :4]).all()
        for seconds in (codec.encode_s(), codec.decode_s(), codec.dispatch_s):
            assert np.all(seconds[:4] > 0)
    assert found["float32"].message_bytes[1] == wire_bytes([27, 4 * 16 * 16 * 16])
    with torch.inference_mode():
        features, _ = backbone.segment(0, 2, branch=False)(torch.from_numpy(digits.tensors(range(5))))
    one = make_codec("int8-channel+zstd", digits.decoder, spec.cut_shapes[2], ranges[2])
    sizes = [len(one.encode(tensor.numpy())) for tensor in features]
    assert found["int8-channel+zstd"].message_bytes[2] == pytest.approx(np.mean(sizes) + 38, abs=12)
    assert found["int8-channel+zstd"].spread_bytes[2] == pytest.approx(np.std(sizes), abs=3)


def test_every_sample_leaves_the_spans_of_its_way(deployment: Deployment) -> None:
    plan = PLANS[3]
    deployment.deploy(plan)
    measured = deployment.run()
    assert len(set(measured.exit_index.tolist())) > 1, "the case must exercise more than one exit"
    for trace in measured.traces():
        last = trace.exit_index
        computes = [(s.step, s.tier) for s in trace.spans if s.kind == "compute"]
        assert computes == [(k, plan.placement[k]) for k in range(last + 1)]
        hops = [k for k in range(1, last + 1) if plan.placement[k] != plan.placement[k - 1]]
        back = [len(plan)] if plan.placement[last] != 0 else []
        for kind, steps in (("encode", hops), ("transfer", hops + back), ("decode", hops + back)):
            assert [s.step for s in trace.spans if s.kind == kind] == steps
        assert all(0 <= s.start_s <= s.end_s <= trace.latency_s + 1e-9 for s in trace.spans)
        assert sum(s.duration_s for s in trace.spans) <= trace.latency_s + 1e-9
    parts = measured.parts_s()
    assert sum(parts.values()) == pytest.approx(measured.mean_s)
    assert 0 <= parts["other"] < 0.1 * measured.mean_s


def test_a_hop_takes_at_least_its_propagation_and_transmission(deployment: Deployment) -> None:
    deployment.deploy(PLANS[1])
    measured = deployment.run()
    transfers = [s.duration_s for t in measured.traces() for s in t.spans if s.kind == "transfer" and s.step == 0]
    size = np.mean([len(data) for data in load_dataset("digits:size=16").encoded[:SAMPLES]])
    least = deployment.topology.propagation_s()[0, 2] + 0.8 * deployment.topology.transmission_s(size)[0, 2]
    assert min(transfers) >= least


def test_plans_run_in_turns_and_the_tiers_are_timed_in_between(deployment: Deployment) -> None:
    counts = {PLANS[0]: 7, PLANS[3]: 10}
    told: list[tuple[int, int]] = []
    found = run_in_turns(
        deployment, counts, 4, turns=3, repeats=2, gap_s=0.001, on_progress=lambda *at: told.append(at)
    )
    assert told[-1] == (17, 17)
    for plan, count in counts.items():
        measured = found.measurements[plan]
        assert (measured.plan, measured.sample.tolist()) == (plan, list(range(count)))
        assert np.all(np.diff(measured.start_s) > 0)
    following, woken = 0, 1
    runs_where = (
        {(woken, 0, 4), (woken, 0, 1), (following, 1, 2)}, {(woken, 2, 3)}, {(woken, 3, 4)},
    )  # fmt: skip
    for bursts, partitions in zip(found.bursts_s, runs_where, strict=True):
        assert bursts.shape == (2, 2 * (3 + 1), 12, 5, 5)
        at = np.isfinite(bursts)
        assert np.array_equal(at.all(axis=(1, 2)), at.any(axis=(1, 2))), "a partition is timed in each burst or in none"
        assert set(zip(*(i.tolist() for i in at[:, 0, 0].nonzero()), strict=True)) == partitions
    decode, encode = [0, 1], [2, 3]  # each once, and right after
    coded = (
        {(encode[0], 2), (encode[1], 2)},
        {*((k, 2) for k in decode), *((k, 3) for k in encode)},
        {*((k, 3) for k in decode)},
    )
    for coding, where in zip(found.coding_s, coded, strict=True):
        assert set(coding) == {"float32"}
        table = coding["float32"]
        assert table.shape == (4, 2 * (3 + 1), 5)
        assert {(k, cut) for k, cut in np.argwhere(np.isfinite(table).all(axis=1)).tolist()} == where
        assert np.isfinite(table).sum() == 8 * len(where)
        assert np.nanmin(table) > 0
    ways = {(0, 1), (1, 2), (1, 0), (2, 0)}
    assert {(i, j) for i, j in np.argwhere(np.isfinite(found.empty_s).all(axis=0)).tolist()} == ways
    assert np.isfinite(found.empty_s).sum() == 8 * len(ways)
    links_s = deployment.topology.propagation_s()
    assert all(np.all(found.empty_s[:, i, j] > links_s[i, j]) for i, j in ways)
    for wrong in ({}, {PLANS[0]: 0}):
        with pytest.raises(InvalidValue, match="at least 1"):
            run_in_turns(deployment, wrong, 4)


def test_what_is_timed_again_by_hand() -> None:
    topology = chain(1.0, 1.0, 1.0)
    assert message_ways([PLANS[0]], topology) == []
    assert message_ways([PLANS[2]], topology) == [(0, 1), (1, 2), (2, 0)], "nobody leaves at a threshold of 0"
    assert message_ways([PLANS[4], PLANS[1]], topology) == [(0, 2), (2, 0)]
    edge, base, cloud = timed_steps([PLANS[3]], topology)
    assert edge == [(None, 0, 1, None, None, None), (0, 1, 2, None, "float32", None)]
    assert base == [(None, 2, 3, "float32", "float32", 0)]
    assert cloud == [(None, 3, 4, "float32", None, 1)]


def test_credits_bound_what_is_under_way(deployment: Deployment) -> None:
    deployment.deploy(PLANS[1])
    measured = deployment.run(window=3)
    assert sorted(measured.sample.tolist()) == list(range(SAMPLES))
    begin = measured.start_s
    end = begin + measured.latency_s
    under_way = [int(((begin <= t) & (end > t)).sum()) for t in begin]
    assert max(under_way) == 3
    alone = deployment.run(window=1)
    assert np.all(alone.start_s[1:] >= (alone.start_s + alone.latency_s)[:-1])
    duration = {m: (m.start_s + m.latency_s).max() for m in (measured, alone)}
    assert duration[measured] < duration[alone], "more under way must finish sooner"


def test_bad_orders_are_refused_before_anything_is_sent(deployment: Deployment) -> None:
    with pytest.raises(InvalidValue, match="3 tiers"):
        deployment.deploy(Plan(cuts=(4,), placement=(3,), codecs=("float32",)))
    with pytest.raises(InvalidValue, match="names a codec"):
        deployment.deploy(Plan(cuts=(4,), placement=(1,)))
    with pytest.raises(InvalidValue, match="but the plan says None"):
        deployment.deploy(Plan(cuts=(4,), placement=(1,), codecs=(None,)))
    with pytest.raises(InvalidValue, match="but the plan says 'encoded'"):
        deployment.deploy(Plan(cuts=(1, 4), placement=(0, 1), thresholds=(0.5,), codecs=(None, "encoded")))
    deployment.deploy(PLANS[0])
    for wrong in ({"window": 0}, {"samples": [SAMPLES]}, {"window": 2, "gap_s": 0.1}):
        with pytest.raises(InvalidValue):
            deployment.run(**wrong)


def test_a_cut_beyond_the_network_is_the_agents_error(deployment: Deployment) -> None:
    with pytest.raises(DeploymentError, match=r"tier 't1' reports: .*4"):
        deployment.deploy(Plan(cuts=(9,), placement=(1,), codecs=("float32",)))
    deployment.deploy(PLANS[0])
    assert len(deployment.run(range(3))) == 3


def test_strangers_on_the_data_socket_do_no_harm(network: Path, digits: Dataset) -> None:
    import zmq

    with Deployment(chain(1.0, 1.0), network, digits.decoder, executions=ONNX, emulation="none") as running:
        running.load_samples(list(digits.encoded[:4]), digits.labels[:4])
        running.deploy(Plan(cuts=(4,), placement=(1,), codecs=("float32",)))
        context = zmq.Context()
        endpoint = running.endpoints[1]
        stranger = context.socket(zmq.PUSH)
        stranger.connect(f"tcp://{endpoint}")
        good = pack_header(Header("tensor", 1, 0, 0, time.monotonic_ns()))
        for frames in (
            [b""],
            [b"\x80"],
            [b"\xc1" * 500],
            [good],
            [good, b"short"],
            [good, b"a", b"b"],
            [b"x" * 10_000_000],
        ):
            stranger.send_multipart(frames)
        time.sleep(0.3)
        assert len(running.run()) == 4
        context.destroy(linger=0)


# -- breaking --------------------------------------------------------------------------------------


def test_a_killed_agent_is_named_and_nothing_stays_behind(network: Path, digits: Dataset) -> None:
    before = children(os.getpid())
    with Deployment(chain(1.0, 1.0), network, digits.decoder, executions=ONNX) as running:
        running.load_samples(list(digits.encoded[:4]), digits.labels[:4])
        running.deploy(Plan(cuts=(4,), placement=(1,), codecs=("float32",)))
        everyone = children(os.getpid()) - before
        os.kill(running.agent_pids[1], signal.SIGKILL)
        with pytest.raises(DeploymentError, match="tier 't1' ended with exit code -9"):
            running.run()
    assert gone(everyone)


def test_a_port_in_use_is_named(checkpoint: Path, digits: Dataset) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(DeploymentError, match=f"port {port} of 127.0.0.1 cannot be used"),
            Deployment(chain(1.0), checkpoint, digits.decoder, port=port),
        ):
            pass


def test_an_agent_that_does_not_start_is_an_error_with_its_last_words(tmp_path: Path, digits: Dataset) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a checkpoint")
    before = children(os.getpid())
    with (
        pytest.raises(DeploymentError, match=r"tier 't0' reports: .*broken\.safetensors"),
        Deployment(chain(1.0), broken, digits.decoder),
    ):
        pass
    assert gone(children(os.getpid()) - before)
    with (
        pytest.raises(DeploymentError, match="no network file"),
        Deployment(chain(1.0), tmp_path / "none", digits.decoder),
    ):
        pass


def test_impossible_deployments_are_refused(checkpoint: Path, digits: Dataset) -> None:
    with pytest.raises(DeploymentError, match="slowdown below 1"):
        Deployment(chain(0.5), checkpoint, digits.decoder)
    far = chain(1.0).with_tier(0, host="192.0.2.1")
    with pytest.raises(DeploymentError, match=r"192\.0\.2\.1"):
        Deployment(far, checkpoint, digits.decoder)


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_interrupted_run_leaves_no_process_and_no_file(
    tmp_path: Path, network: Path, how: signal.Signals, code: int
) -> None:
    topology = tmp_path / "t.yaml"
    topology.write_text(
        "tiers: [{name: a}, {name: b}]\nlinks: [{bandwidth: 10 Mbit/s, propagation_delay: 200 ms}]\n", encoding="utf-8"
    )
    plan = tmp_path / "plan.json"
    made = Plan(cuts=(4,), placement=(1,), codecs=("float32",)).to_dict() | {"tiers": ["a", "b"]}
    plan.write_text(json.dumps(made), encoding="utf-8")
    out = tmp_path / "out.zip"
    command = [sys.executable, "-m", "portend.cli.app", "run", str(plan), "--network", str(network)]
    command += ["--topology", str(topology), "--data", "digits:size=16", "--samples", "400", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(family := children(process.pid)) < 3 and time.monotonic() < deadline:  # two agents and the relay
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(how)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code, errors
    assert len(family) == 3
    assert gone(family)
    assert not out.exists()
    assert "Traceback" not in errors
