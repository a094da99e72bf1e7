"""Network namespaces with emulated links: the laws by hand, then real namespaces (root) with real TCP/IP on them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from clocks import EXACTLY, check_times
from portend.cli.app import cli
from portend.data.sources import load_dataset
from portend.errors import ConfigError, DeploymentError, InvalidValue, MismatchError
from portend.io.forms import load_topology
from portend.networks.checkpoint import load_checkpoint
from portend.networks.evaluators import TorchEvaluator
from portend.networks.scoring import score_samples
from portend.testbed.deployment import Deployment
from portend.testbed.emulation import namespaces, quota
from portend.testbed.emulation.choose import Direct, Relayed, make_emulation
from portend.testbed.emulation.forwarder import Forwarder, Wire, device_mtu, wire_bytes
from portend.testbed.emulation.namespaces import Namespaces, unavailable
from portend.testbed.emulation.remains import NAMESPACES, standing
from portend.testbed.emulation.traces import BandwidthTrace, load_trace, trace_from
from portend.testbed.emulation.verify import Check
from portend.values.execution import Execution
from portend.values.measurement import SPAN_KINDS
from portend.values.plan import Plan
from portend.values.topology import Link, SlowStart, Tier, Topology
from test_models import shared_data

ROOT = Path(__file__).parents[1]
THREE_TIERS = ROOT / "configs/topologies/three_tier.yaml"
PORTEND = (sys.executable, "-m", "portend.cli.app")

real = pytest.mark.skipif(bool(unavailable()), reason=f"no testbed here: {unavailable()}")


def chain(*links: Link, **first: Any) -> Topology:
    tiers = [Tier(name=f"t{i}", device="local", **(first if i == 0 else {})) for i in range(len(links) + 1)]
    return Topology(name=f"test {os.getpid()}", tiers=tuple(tiers), links=links)


QUICK = Link(bandwidth_bps=50e6, propagation_delay_s=0.002)


# --- bandwidth over time ---


def steps(*bandwidths_bps: float) -> BandwidthTrace:
    """A trace of steps of one second."""
    times = tuple(float(i) for i in range(len(bandwidths_bps)))
    return BandwidthTrace(name="steps", times_s=times, bandwidths_bps=bandwidths_bps, period_s=len(times))


def test_bytes_pass_at_the_rate_of_each_moment() -> None:
    trace = steps(800, 0, 1600)  # 100 B, nothing, 200 B; 300 B in 3 s
    assert trace.mean_bps == 800
    assert trace.finish_s(0, 50) == 0.5
    assert trace.finish_s(0, 100) == 1.0  # not after the outage
    assert trace.finish_s(0, 101) == pytest.approx(2.005)
    assert trace.finish_s(1.5, 200) == 3.0
    assert trace.finish_s(2.5, 100) == 3.0
    assert trace.finish_s(2.5, 150) == 3.5  # begins anew
    assert trace.finish_s(0, 3000) == 30.0
    assert trace.finish_s(300.25, 0) == 300.25


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any),
    st.integers(0, 40),
    st.integers(1, 60),
)
def test_traces_agree_with_adding_up_small_steps(rates: list[int], start: int, n_bytes: int) -> None:
    """Counted in quarters of a second; rates are multiples of 32 bit/s, one byte in a quarter."""
    trace = steps(*(32.0 * rate for rate in rates))
    quarter, passed = start, 0.0
    while True:
        rate = rates[quarter // 4 % len(rates)]
        if passed + rate >= n_bytes:
            break
        passed += rate
        quarter += 1
    assert trace.finish_s(start / 4, n_bytes) == pytest.approx((quarter + (n_bytes - passed) / rate) / 4)


def test_traces_are_read_from_text(tmp_path: Path) -> None:
    file = tmp_path / "bus.txt"
    file.write_text("# measured\n0.5 4.0\n1.5\t2.0  # a tunnel\n\n4.0 3\n")
    trace = load_trace(file)
    assert trace == BandwidthTrace(name="bus", times_s=(0.0, 1.0, 3.5), bandwidths_bps=(4e6, 2e6, 3e6), period_s=6.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"bad\.txt is empty, but a trace of bandwidth is needed"),
        ("0 1\n1 fast\n", r"bad\.txt:2: .*seconds.*fast"),
        ("0 1 2\n", r"bad\.txt:1"),
        ("0 1\n", "two lines"),
        ("0 1\n\n# again\n0 2\n", r"bad\.txt:4: times increase.* 0 s follows 0 s"),
        ("0 1\n1 -2\n", r"bad\.txt:2: .*not negative.* -2000000 bit/s"),
        ("0 1\n1 nan\n", r"bad\.txt:2: .*not negative and finite"),
        ("nan 1\n1 1\n", r"bad\.txt:1: times increase"),
        ("0 1\ninf 1\n", r"bad\.txt:2: times increase"),
        ("0 0\n1 0\n", "must get through"),
        ("0,5 10\n1,5 10\n", r"bad\.txt:1"),
        ("5\n7\n6\n", r"bad\.txt:3: .*do not decrease, but 6 follows 7"),
        ("0\n0\n", r"bad\.txt:2: the last packet ends the trace"),
        ("5\n7.5\n", r"bad\.txt:1: a line is a time"),
        ("time,bandwidth\n0,1\n1,2\n", r"bad\.txt:1: the unit of 'time' is not said; .*time=UNIT"),
        ("time (s),bandwidth\n0,1\n1,2\n", r"bad\.txt:1: the unit of 'bandwidth' is not said; .*bandwidth=UNIT"),
        ("time (s),load\n0,1\n1,2\n", r"bad\.txt:1: .*one column of bandwidth.* these are: none"),
        ("t_s,up_kbps,down_kbps,rate_kbps\n0,1,1,1\n", r"'down_kbps' and 'rate_kbps'"),
        ("time_s,mbps\n0,1\n1,\n", r"bad\.txt:3: mbps is a number, but got ''"),
        ("time_s,mbps\n0,1\n1,2,3\n", r"bad\.txt:3: a row has 2 values"),
        ('time_s,mbps\n0,1\n"1,2\n', r"bad\.txt:3: a row has 2 values"),
        ("time_s,mbps\n0,1\n0,2\n", r"bad\.txt:3: times increase"),
        ("time_s,mbps\n", "two lines"),
    ],
)
def test_bad_traces_name_the_place(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "bad.txt"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        load_trace(file)


TABLES = [
    "time (s),bandwidth (Mbit/s)\n0.5,4\n1.5,2\n4,3\n",
    "time_ms;throughput_kbps;cell\n500;4000;a\n1500;2000;b\n4000;3000;c\n",
    "# of a bus\n\nTimestamp [ms]\tRSRP\tDL bitrate [kbit/s]\n500\t-90\t4e3\n1500\t-95\t2e3\n4000\t-90\t3e3\n",
    '"Elapsed seconds","MB/s"\n"0.5","0.5"\n"1.5","0.25"\n"4","0.375"\n',
    "t_us bytes_per_second\n5e5 500000\n1.5e6 250000\n4e6 375000\n",
    "0.5,4\n1.5,2\n4,3\n",
    "0.5; 4\n1.5; 2\n4; 3\n",
]


@pytest.mark.parametrize("text", TABLES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_tables_of_bandwidth_are_read_whatever_program_wrote_them(tmp_path: Path, text: str, encoding: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / "bus.csv").write_bytes((mark + text).replace("\n", "\r\n").encode(encoding))
    trace = load_trace(tmp_path / "bus.csv")
    assert (*trace.times_s, trace.period_s) == pytest.approx((0.0, 1.0, 3.5, 6.0))
    assert trace.bandwidths_bps == pytest.approx((4e6, 2e6, 3e6))


def test_units_of_a_table_can_be_said(tmp_path: Path) -> None:
    file = tmp_path / "a:b.csv"
    file.write_text("time,bandwidth\n0,4000\n1000,2000\n")
    trace = trace_from(f"{file}:time=ms:bandwidth=kbit/s")
    assert (trace.times_s, trace.bandwidths_bps) == ((0.0, 1.0), (4e6, 2e6))
    for options, says in (
        (":bandwidth=kbit/s", "the unit of 'time' is not said"),
        (":time=h", "the unit of time is one of ns, us"),
        (":time=ms:bandwidth=kbps", "the unit of bandwidth is one of bit/s"),
    ):
        with pytest.raises(ConfigError, match=says):
            trace_from(f"{file}{options}")
    file.write_text("time_s,bandwidth_mbps\n0,4\n1,2\n")
    assert trace_from(f"{file}:time=s").bandwidths_bps == (4e6, 2e6)
    with pytest.raises(ConfigError, match=r"a:b\.csv:1: the unit of 'time_s' is s, but time=ms was asked for"):
        trace_from(f"{file}:time=ms")
    file.write_text("0 4\n1 2\n")
    with pytest.raises(ConfigError, match="has no header"):
        trace_from(f"{file}:time=ms")


def test_mahimahis_traces_are_packets_by_millisecond(tmp_path: Path) -> None:
    file = tmp_path / "lte.down"
    file.write_text("".join(f"{at}\n" for at in (0, 2, 2, 2, 4, 5, 9, 10)))
    trace = load_trace(file)
    assert (*trace.times_s, trace.period_s) == pytest.approx((0, 0.002, 0.004, 0.005, 0.009, 0.010))
    assert trace.bandwidths_bps == pytest.approx([1e6 * rate for rate in (18, 6, 12, 3, 24)])
    assert trace.mean_bps == pytest.approx(8 * 8 * 1500 / 0.010)
    for packets, at in ((3, 2), (4, 4), (5, 5), (6, 9), (8, 10), (11, 12)):  # that have passed at that millisecond
        assert trace.finish_s(0.0, 1500 * packets) == pytest.approx(1e-3 * at)


def test_a_steady_trace_of_mahimahis_is_one_step(tmp_path: Path) -> None:
    (tmp_path / "12mbps").write_text("".join(f"{at}\n" for at in range(1, 200)))
    trace = load_trace(tmp_path / "12mbps")
    assert (trace.times_s, trace.bandwidths_bps, trace.period_s) == ((0.0,), (12e6,), 0.199)


@pytest.mark.parametrize("data", [b"0 1\n1 \xff2\n", "0 1\n1 2".encode("utf-16-le"), b"0 1\n1 2\0"])
def test_what_is_no_text_is_said_to_be_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad.txt").write_bytes(data)
    with pytest.raises(ConfigError, match=r"bad\.txt, line [12]: this is not text in UTF-8"):
        load_trace(tmp_path / "bad.txt")


def test_measured_traces_of_others_are_read() -> None:
    files = sorted(shared_data("bandwidth_traces").glob("*_*.txt"))
    assert len(files) > 20
    for file in files:
        first, last = (float(line.split()[0]) for line in np.array(file.read_text().strip().split("\n"))[[0, -1]])
        trace = load_trace(file)
        assert trace.times_s[-1] == pytest.approx(last - first)
        assert 1e3 < trace.mean_bps < 1e9


def test_the_forwarder_takes_long_traces() -> None:
    """A trace of Mahimahi's has ten thousands of steps; they were read byte by byte until the start timed out."""
    forwarder = Forwarder("", ())
    try:
        assert forwarder._start({"testbed": "", "wires": [], "long": "0" * 5_000_000})["wires"] == []
    finally:
        forwarder._stop()


# --- the law of a link ---


def test_packets_follow_each_other_and_are_delayed() -> None:
    wire = Wire(Link(bandwidth_bps=8e3, propagation_delay_s=0.5))  # 1 ms a byte
    assert wire.admit(1.0, 100) == pytest.approx(1.6)
    assert wire.admit(1.0, 200) == pytest.approx(1.8)
    assert wire.admit(1.25, 100) == pytest.approx(1.9)
    assert wire.admit(3.0, 1) == pytest.approx(3.501)


def test_a_trace_takes_the_place_of_the_bandwidth() -> None:
    wire = Wire(Link(bandwidth_bps=1.0, propagation_delay_s=0.5), steps(800, 1600), begin_s=10.0)
    assert wire.admit(10.5, 100) == pytest.approx(11.75)
    assert wire.admit(10.5, 100) == pytest.approx(12.25)


@pytest.mark.parametrize("size", [1, 300, 12_000, 65_000])
def test_packets_of_a_message_take_what_the_model_charges(size: int) -> None:
    """On the paper's path, within the model's stated bound: one full packet on the faster link, 30 µs."""
    topology = load_topology(THREE_TIERS)
    wires = [Wire(link) for link in topology.links]
    arrived, left = 0.0, size
    while left > 0:
        payload = min(left, 1448)
        left -= payload
        arrived = wires[1].admit(wires[0].admit(0.0, payload + 52), payload + 52)
    formula = float(topology.transmission_s(size)[0, 2] + topology.propagation_s()[0, 2])
    assert formula - 1e-12 <= arrived <= formula + 30e-6


@pytest.mark.parametrize(
    ("mtu", "headers", "device"), [(1500, 52, 1500), (9000, 52, 9000), (1518, 70, 1500), (1448, 0, 1500)]
)
def test_headers_below_ip_count_on_the_wire_and_not_in_the_device(mtu: int, headers: int, device: int) -> None:
    link = Link(bandwidth_bps=1e6, propagation_delay_s=0.0, mtu_bytes=mtu, header_bytes=headers)
    assert device_mtu(link) == device
    assert wire_bytes(link, device) == mtu
    assert wire_bytes(link, 52) == headers


def test_a_link_without_room_for_ip_is_refused() -> None:
    with pytest.raises(InvalidValue, match="68–65535 bytes"):
        Namespaces(chain(Link(bandwidth_bps=1e6, propagation_delay_s=0.0, mtu_bytes=60)))


def test_what_is_off_is_said_in_words() -> None:
    def faults(round_trip_s: float, *rates_bps: float) -> list[str]:
        check = Check(
            start=0, end=1, round_trip_s=round_trip_s, due_round_trip_s=0.04,
            rates_bps=rates_bps, due_rates_bps=(10e6, 10e6),
        )  # fmt: skip
        return check.faults(["edge", "base"])

    assert faults(0.0412, 10.2e6, 9.8e6) == []
    assert faults(0.0414) == ["the round trip edge–base takes 41.40 ms, but 40.00 ± 1.30 ms are due"]
    assert faults(0.0386) != []
    assert faults(0.04, 10.4e6, 9.6e6) == [
        "edge → base carries 10.4 Mbit/s, but 10 ± 3 % are due",
        "base → edge carries 9.6 Mbit/s, but 10 ± 3 % are due",
    ]


# --- the choice, and machines that have none ---


def test_an_emulation_is_chosen_by_name() -> None:
    topology = chain(QUICK)
    assert isinstance(make_emulation("relay", topology), Relayed)
    assert isinstance(make_emulation("none", topology), Direct)
    assert isinstance(make_emulation("relay", chain()), Direct)
    assert isinstance(make_emulation("namespaces", topology), Namespaces)
    with pytest.raises(InvalidValue, match="relay, namespaces, none"):
        make_emulation("tc", topology)
    for name in ("relay", "none"):
        with pytest.raises(InvalidValue, match="slow start needs the emulation 'namespaces'"):
            make_emulation(name, replace(topology, slow_start=SlowStart()))
    with pytest.raises(InvalidValue, match=r"needs the emulation 'namespaces'.*\[0\]"):
        make_emulation("relay", topology, {0: steps(1e6)})
    with pytest.raises(InvalidValue, match=r"one of the links 0 \(.*\), but got one for"):
        make_emulation("namespaces", topology, {1: steps(1e6)})


def test_cores_and_quotas_are_read_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text("tiers: [{name: a, cores: [0, 1], cpu_quota: 0.5}]")
    (tier,) = load_topology(file).tiers
    assert (tier.cores, tier.cpu_quota) == ((0, 1), 0.5)
    file.write_text("tiers: [{name: a, cores: [x]}]")
    with pytest.raises(ConfigError, match=r"tiers\[0\].cores"):
        load_topology(file)
    with pytest.raises(InvalidValue, match="cpu_quota is a positive"):
        Tier(name="a", device="x", cpu_quota=0)
    with pytest.raises(DeploymentError, match="network namespaces only"):
        Direct(chain(QUICK, cpu_quota=0.5)).start(0, ["true"])
    with pytest.raises(DeploymentError, match="wants the cores"):
        Direct(chain(QUICK, cores=(4096,))).start(0, ["true"])
    core = min(os.sched_getaffinity(0))
    told = Direct(chain(QUICK, cores=(core,))).start(
        0, [sys.executable, "-c", "import os; print(*os.sched_getaffinity(0))"], stdout=subprocess.PIPE
    )
    assert told.communicate()[0].split() == [str(core).encode()]


@pytest.mark.skipif(sys.platform != "linux", reason="drops the capabilities that Linux knows")
def test_without_root_there_is_a_clear_word_and_the_relay() -> None:
    program = (
        "import ctypes, sys\n"
        "from portend.cli.app import main\n"
        "from portend.cli.inputs import emulated\n"
        "from portend.io.forms import load_topology\n"
        "places = load_topology(sys.argv[1])\n"
        "none = (ctypes.c_uint32 * 6)()\n"  # effective, permitted and inheritable capabilities, twice
        "assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), none) == 0\n"
        "print(emulated('namespaces', places, {}).label, flush=True)\n"
        "sys.argv[1:] = ['testbed', 'up', sys.argv[1]]\n"
        "main()\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(THREE_TIERS)], capture_output=True, text=True, check=False, timeout=60
    )
    assert ran.stdout == "emulated by relay\n"
    note, error = ran.stderr.splitlines()
    assert note.startswith("note: making network namespaces needs root")
    assert error.startswith("Error: making network namespaces needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN)")
    assert ran.returncode == 1


# --- real namespaces ---


@pytest.fixture(scope="module")
def testbed() -> Iterator[Namespaces]:
    """The paper's topology, set up and verified."""
    with Namespaces(load_topology(THREE_TIERS)) as made:
        yield made


def leftovers() -> set[str]:
    return {each.testbed for each in standing() if f"test {os.getpid()}" in str(each.record.get("topology"))}


@real
def test_links_do_what_the_topology_says(testbed: Namespaces) -> None:
    near, far, path = testbed.checks
    assert near.round_trip_s == pytest.approx(0.0400512, abs=0.5e-3 + 0.02 * 0.04)
    assert far.round_trip_s == pytest.approx(0.08, abs=0.5e-3 + 0.02 * 0.08)
    assert path.round_trip_s == pytest.approx(0.12, abs=1e-3 + 0.02 * 0.12)
    assert near.rates_bps == pytest.approx([10e6, 10e6], rel=0.03)
    assert far.rates_bps == pytest.approx([400e6, 400e6], rel=0.03)


@real
def test_packets_go_hop_by_hop(testbed: Namespaces) -> None:
    """A packet with one hop to live dies on the tier in between, which says so."""
    with testbed.inside(0):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.settimeout(60)
        sock.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
        sock.sendto(b"x", (testbed.addresses[2], 9))
        with pytest.raises(OSError) as caught:  # noqa: PT011
            sock.recv(1)
        assert caught.value.errno == errno.EHOSTUNREACH
        _, [(_, _, data)], _, _ = sock.recvmsg(100, 200, socket.MSG_ERRQUEUE)
        family, _, address = struct.unpack_from("=HH4s", data, 16)
        assert (family, socket.inet_ntoa(address)) == (socket.AF_INET, testbed.addresses[1])


class Stream:
    """A TCP connection between two tiers, both ends here."""

    def __init__(self, testbed: Namespaces, start: int, end: int) -> None:
        with testbed.inside(end):
            listener = socket.create_server((testbed.addresses[end], 0))
        with testbed.inside(start):
            self.near = socket.socket()
        with listener:
            self.near.settimeout(60)
            self.near.connect(listener.getsockname())
            self.far, _ = listener.accept()
        self.far.settimeout(60)
        self.near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.near.close()
        self.far.close()

    def message_s(self, size: int) -> float:
        began = time.monotonic()
        self.near.sendall(bytes(size))
        left = size
        while left:
            left -= len(self.far.recv(left))
        return time.monotonic() - began


@real
@EXACTLY
def test_messages_take_their_time_from_the_first_on(testbed: Namespaces, exactly: bool) -> None:
    """Never less than the formula, and the best of a few is close to it; a new connection has no slow start."""
    topology = testbed.topology
    for size in (300, 12_000, 65_000):
        formula = float(topology.transmission_s(size)[0, 2] + topology.propagation_s()[0, 2])
        taken, more = [], 0.001 + 0.02 * formula
        for _ in range(5 if exactly else 1):
            with Stream(testbed, 0, 2) as stream:
                taken.append(stream.message_s(size))
            if taken[-1] <= formula + more:
                break
        check_times(taken, formula, more, exactly=exactly)


@real
def test_on_the_wire_are_the_packets_that_the_model_counts(testbed: Namespaces) -> None:
    """65,000 bytes are 45 segments of at most 1448 bytes; nothing larger, nothing else."""
    with testbed.inside(1):
        watcher = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))  # ETH_P_ALL
        watcher.bind(("left", 3))
    with watcher, Stream(testbed, 0, 2) as stream:
        assert stream.near.getsockopt(socket.IPPROTO_TCP, 13, 16).rstrip(b"\0") == b"cubic"  # TCP_CONGESTION
        assert stream.near.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) == 1448
        stream.message_s(300)
        time.sleep(0.15)
        watcher.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                watcher.recv(1 << 16)
        stream.message_s(65_000)
        packets = []
        with contextlib.suppress(BlockingIOError):
            while True:
                packet, (_, _, kind, *_) = watcher.recvfrom(1 << 16)
                if kind == 0:  # PACKET_HOST or forwarded in; what leaves over this device is 4
                    packets.append(packet)
    payloads = [len(packet) - 20 - 4 * (packet[32] >> 4) for packet in packets]
    assert sum(payloads) == 65_000
    assert max(map(len, packets)) == 1500
    assert len(payloads) == 45
    assert {packet[0] >> 4 for packet in packets} == {4}


@real
def test_a_link_that_is_off_is_refused() -> None:
    from pyroute2 import IPRoute

    with Namespaces(chain(QUICK)) as made:
        with made.inside(0), IPRoute() as kernel:
            index = kernel.link_lookup(ifname="right")[0]
            kernel.tc("add", "tbf", index, "1:", rate="40mbit", burst=3000, latency="1s")
        with pytest.raises(DeploymentError, match=r"t0 → t1 carries [34]\S* Mbit/s, but 50 ± 3 % are due.*Nothing is"):
            made.measure()
    assert not leftovers()


@real
@EXACTLY
def test_bandwidth_follows_a_trace(exactly: bool) -> None:
    trace = BandwidthTrace(name="two steps", times_s=(0, 0.2), bandwidths_bps=(8e6, 40e6), period_s=2.0)
    link = Link(bandwidth_bps=1e6, propagation_delay_s=0.005)
    with Namespaces(chain(link), traces={0: trace}) as made:
        assert "link t0–t1 follows two steps" in made.label
        size = 500_000
        wired = size / 1448 * 1500
        due, taken = 0.005 + trace.finish_s(0, wired), []
        for _ in range(3 if exactly else 1):
            with Stream(made, 0, 1) as stream:
                made.rewind()
                taken.append(stream.message_s(size))
            if abs(taken[-1] - due) < 0.005:
                break
        assert due == pytest.approx(0.005 + 0.2 + (wired - 200_000) * 8 / 40e6)  # 200 kB in the first step
        check_times(taken, due - 0.005, 0.01, exactly=exactly)


@real
def test_links_differ_in_mtu_and_headers() -> None:
    """The path's smallest packets are used from the start, and what the link adds to each counts."""
    wide = Link(bandwidth_bps=50e6, propagation_delay_s=0.001, mtu_bytes=9000)
    narrow = Link(bandwidth_bps=50e6, propagation_delay_s=0.001, mtu_bytes=1018, header_bytes=70)
    with Namespaces(chain(wide, narrow)) as made, Stream(made, 0, 2) as stream:
        assert stream.near.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) == 1000 - 52


@real
def test_a_quota_keeps_a_tiers_process_at_its_share() -> None:
    spin = "import time\nwhile True: pass"
    with Namespaces(chain(QUICK, cpu_quota=0.25), verify=False) as made:
        process = made.start(0, [sys.executable, "-c", spin])
        try:
            time.sleep(0.3)
            before, began = _cpu_s(process.pid), time.monotonic()
            time.sleep(1.0)
            share = (_cpu_s(process.pid) - before) / (time.monotonic() - began)
        finally:
            process.kill()
            process.wait()
        assert 0.02 < share < 0.35
        assert made.names[0] in quota.names()
    assert not leftovers()
    assert made.names[0] not in quota.names()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@real
def test_netem_is_used_or_its_lack_is_told() -> None:
    try:
        with Namespaces(chain(QUICK, QUICK), driver="netem") as made:
            assert len(made.checks) == 3
    except DeploymentError as error:
        assert "netem cannot be set up: No such file or directory" in str(error)  # noqa: PT017
    assert not leftovers()


@real
def test_the_pairs_that_netem_works_on_carry_packets_hop_by_hop(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the queueing discipline itself, which this kernel may lack; without it links are off, and refused."""
    monkeypatch.setattr(namespaces, "_shape", lambda index, link: None)
    with Namespaces(chain(QUICK, QUICK), driver="netem", verify=False) as made:
        with Stream(made, 0, 2) as stream:
            stream.message_s(65_000)
            assert stream.near.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) == 1448
        with pytest.raises(DeploymentError, match="round trip t0–t1"):
            made.measure()


@real
@EXACTLY
def test_slow_start_is_the_topologys_choice(exactly: bool) -> None:
    """A round trip for each window of 10, 20 packets, on links that were verified with open windows."""
    topology = replace(chain(Link(bandwidth_bps=50e6, propagation_delay_s=0.02)), slow_start=SlowStart())
    size = 60_000  # 42 packets: 10, 20, 12
    cold, warm = (float(each.transmission_s(size)[0, 1]) for each in (topology, replace(topology, slow_start=None)))
    assert cold > warm + 2 * 0.03
    with Namespaces(topology) as made:
        assert made.checks
        assert "slow start from 10 packets" in made.label
        taken = []
        for _ in range(5 if exactly else 1):
            with Stream(made, 0, 1) as stream:
                taken.append(stream.message_s(size))
                for _ in range(4):
                    again = stream.message_s(size)
        check_times(taken, 0.95 * (cold + 0.02), 0.1 * (cold + 0.02), exactly=exactly)
        assert not exactly or again < min(taken) - 0.03, "windows stay open while a connection is in use"


@real
def test_the_congestion_control_is_chosen_and_links_are_verified_without_it() -> None:
    with Namespaces(chain(QUICK), congestion_control="reno") as made, Stream(made, 0, 1) as stream:
        assert made.checks
        assert made.label == "network namespaces, forwarder, reno"
        assert stream.near.getsockopt(socket.IPPROTO_TCP, 13, 16).rstrip(b"\0") == b"reno"  # TCP_CONGESTION
    with pytest.raises(DeploymentError, match=r"congestion controls .*reno.*, but 'vegas2'"):
        Namespaces(chain(QUICK), congestion_control="vegas2").__enter__()


# --- what is left when things go wrong ---


@contextlib.contextmanager
def up(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any], Path]]:
    """`portend testbed up` of a small topology of its own, its record, and the topology's file."""
    file = tmp_path / "two.yaml"
    file.write_text(
        f"name: test {os.getpid()} {random.randrange(1 << 30)}\ntiers: [{{name: a}}, {{name: b/1}}]\n"
        "links: [{bandwidth: 50 Mbit/s, propagation_delay: 1 ms}]\n"
    )
    process = subprocess.Popen(
        [*PORTEND, "testbed", "up", str(file), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()
        try:
            yield process, json.loads(line), file
        finally:
            process.kill()


def ask(*arguments: str) -> Any:
    ran = CliRunner().invoke(cli, [*arguments, "--json"])
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.output)


def there(record: dict[str, Any]) -> bool:
    return any((NAMESPACES / tier["namespace"]).exists() for tier in record["tiers"])


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@real
def test_ctrl_c_takes_a_testbed_down(tmp_path: Path) -> None:
    with up(tmp_path) as (process, record, _):
        assert there(record)
        assert record["checks"][0]["round_trip_s"] == pytest.approx(0.002, abs=0.6e-3)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == "the testbed is down\n"
        assert not there(record)
    assert not leftovers()


@real
def test_a_killed_testbed_goes_by_itself(tmp_path: Path) -> None:
    """Its forwarder sees that its owner is gone, and takes everything with it."""
    with up(tmp_path) as (process, record, _):
        process.kill()
        process.wait()
        deadline = time.monotonic() + 5
        while there(record) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not there(record)
    assert not leftovers()


@real
def test_down_ends_what_stands_and_cleans_what_was_left(tmp_path: Path) -> None:
    with up(tmp_path) as (process, record, file):
        (shown,) = ask("testbed", "show", str(file))
        assert shown["alive"]
        assert shown["tiers"] == record["tiers"]
        for pid in children(process.pid):  # first the forwarder, which would clean up
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()
        time.sleep(0.1)
        assert there(record)
        (shown,) = ask("testbed", "show", str(file))
        assert not shown["alive"]
        assert ask("testbed", "down", str(file)) == {"removed": [shown["id"]], "in use": []}
        assert not there(record)
    assert not leftovers()
    with up(tmp_path) as (process, record, file):
        assert len(ask("testbed", "down", str(file))["removed"]) == 1
        assert process.wait(60) == 0
        assert not there(record)
        assert ask("testbed", "down", str(file)) == {"removed": [], "in use": []}


@real
def test_a_living_run_is_left_alone_and_a_dead_forwarder_noticed(tmp_path: Path) -> None:
    made = Namespaces(chain(QUICK), verify=False)
    made.__enter__()
    file = tmp_path / "same.yaml"
    file.write_text(
        f"name: {made.topology.name}\ntiers: [{{name: a}}, {{name: b}}]\n"
        "links: [{bandwidth: 1 Mbit/s, propagation_delay: 1 ms}]"
    )
    assert len(ask("testbed", "down", str(file))["in use"]) == 1
    made.check()
    os.kill(made.pids[0], signal.SIGKILL)
    deadline = time.monotonic() + 5
    with pytest.raises(DeploymentError, match="forwarder ended with status -9"):  # noqa: PT012
        while time.monotonic() < deadline:
            made.check()
            time.sleep(0.01)
    with pytest.raises(DeploymentError, match="forwarder ended with status -9"):
        made.__exit__(None, None, None)
    assert not leftovers()


# --- a deployment in namespaces ---


@real
def test_agents_in_namespaces_answer_as_over_the_relay(checkpoint: Path, network: Path) -> None:
    digits, onnx = load_dataset("digits:size=16"), (Execution(executor="onnxruntime"),) * 2
    link = Link(bandwidth_bps=20e6, propagation_delay_s=0.01)
    topology = chain(link)
    scores, _ = score_samples(TorchEvaluator(load_checkpoint(checkpoint)), digits, np.arange(24))
    threshold = float(np.quantile(scores["entropy"][:, 0], 0.4))
    plan = Plan(cuts=(1, 4), placement=(0, 1), thresholds=(threshold,), codecs=(None, "float32"))
    with pytest.raises(MismatchError, match="one topology"):
        Deployment(topology, network, digits.decoder, emulation=Direct(chain(link, link)))
    with pytest.raises(InvalidValue, match="port 7000"):
        Deployment(topology, network, digits.decoder, emulation="namespaces", port=7000)
    measured = {}
    for emulation in ("relay", "namespaces"):
        with Deployment(topology, network, digits.decoder, executions=onnx, emulation=emulation) as running:
            if emulation == "namespaces":
                assert [running.endpoints[tier].split(":")[0] for tier in range(2)] == [
                    "198.18.0.1", "198.18.0.2",
                ]  # fmt: skip
                spaces = {os.readlink(f"/proc/{pid}/ns/net") for pid in (os.getpid(), *running.agent_pids)}  # noqa: PTH115
                assert len(spaces) == 3
            running.load_samples(list(digits.encoded[:24]), digits.labels[:24])
            running.deploy(plan)
            measured[emulation] = running.run()
    relay, spaced = measured["relay"], measured["namespaces"]
    assert len(set(relay.exit_index)) > 1
    assert np.array_equal(relay.exit_index, spaced.exit_index)
    assert np.array_equal(relay.label, spaced.label)
    assert spaced.provenance["links"] == "network namespaces, forwarder"
    assert " 0 dropped" in spaced.provenance["link packets"]
    transfers = [
        end - start
        for kind, start, end in zip(spaced.span_kind, spaced.span_start_s, spaced.span_end_s, strict=True)
        if kind == SPAN_KINDS.index("transfer")
    ]
    assert transfers
    assert min(transfers) >= 0.01
    assert not leftovers()
