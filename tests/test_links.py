"""Links, measured by real sockets: on the loopback interface, through the relay, and in network namespaces (root)."""

from __future__ import annotations

import json
import math
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import MISSING, fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from clocks import EXACTLY
from portend.cli.app import cli
from portend.errors import ConfigError, DeploymentError, InvalidValue
from portend.io.forms import load_topology, topology_yaml
from portend.profiling.links import measured_link
from portend.runtime import link_probe as links
from portend.runtime.link_probe import Budget, LinkMeasurement, Peer, measure
from portend.service.keys import OPERATOR, make_keys
from portend.testbed.emulation.namespaces import Namespaces, unavailable
from portend.values.topology import Link, SlowStart, Tier, Topology, TransferCurve
from service_hosts import Cable

real = pytest.mark.skipif(bool(unavailable()), reason=f"no testbed here: {unavailable()}")
CURVE = TransferCurve(sizes_bytes=(1000.0, 3000.0), warm_s=(0.5, 0.9), cold_s=(0.6, 1.2))
SLOW = Link(bandwidth_bps=80_000, propagation_delay_s=0.1, mtu_bytes=1000, header_bytes=0)  # 0.1 s a packet


def chain(*links: Link) -> Topology:
    tiers = tuple(Tier(name=f"t{i}", device="local") for i in range(len(links) + 1))
    return Topology(name="t", tiers=tiers, links=links)


# -- the curve in the model ------------------------------------------------------------------------


def test_a_measured_link_takes_what_was_measured() -> None:
    topology = chain(replace(SLOW, transfer=CURVE))
    sizes = np.array([0, 1000, 2000, 3000, 5000])
    whole = topology.transmission_s(sizes)[:, 0, 1] + topology.propagation_s()[0, 1]
    assert whole == pytest.approx([0.5, 0.5, 0.7, 0.9, 1.1])  # at last two packets more than the largest measured
    assert np.array_equal(topology.transmission_s(sizes), topology.transmission_s(sizes).swapaxes(-1, -2))


def test_on_a_path_the_slowest_link_counts_and_a_packet_on_the_others() -> None:
    quick = Link(bandwidth_bps=800_000, propagation_delay_s=0.0, mtu_bytes=1000, header_bytes=0)  # 0.01 s a packet
    topology = chain(replace(SLOW, transfer=CURVE), quick)
    assert topology.transmission_s(3000)[0, 2] == pytest.approx(0.8 + 0.01)
    slower = replace(quick, bandwidth_bps=8_000)  # 1 s a packet
    assert chain(replace(SLOW, transfer=CURVE), slower).transmission_s(3000)[0, 2] == pytest.approx(3.0 + 0.4)


def test_a_changed_link_is_not_the_one_that_was_measured() -> None:
    topology = chain(replace(SLOW, transfer=CURVE))
    assert topology.with_link(0, bandwidth_bps=160_000).transmission_s(1000)[0, 1] == pytest.approx(0.05)
    assert topology.with_link(0, transfer=CURVE) == topology


def test_in_slow_start_a_curve_gives_what_new_connections_took() -> None:
    topology = replace(chain(replace(SLOW, transfer=CURVE)), slow_start=SlowStart(initial_window=1))
    assert topology.transmission_s([1000, 2000, 3000])[:, 0, 1] == pytest.approx([0.5, 0.8, 1.1])
    warm = replace(CURVE, cold_s=())
    without = replace(chain(replace(SLOW, transfer=warm)), slow_start=SlowStart(initial_window=1))
    assert without.transmission_s([1000, 3000])[:, 0, 1] == pytest.approx([0.4, 0.8])


@given(
    st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 1)), min_size=1, max_size=6, unique_by=lambda p: p[0]),
    st.lists(st.integers(0, 3 * 10**6), min_size=2, max_size=20),
)
def test_larger_messages_never_take_less(points: list[tuple[int, float]], sizes: list[int]) -> None:
    columns = sorted(n for n, _ in points), sorted(s for _, s in points)
    curve = TransferCurve(sizes_bytes=tuple(map(float, columns[0])), warm_s=tuple(columns[1]))
    topology = chain(replace(SLOW, transfer=curve), Link(bandwidth_bps=1e6, propagation_delay_s=0.01))
    seconds = topology.transmission_s(np.sort(sizes))[:, 0, 1]
    assert all(a <= b + 1e-12 for a, b in pairwise(seconds))


@pytest.mark.parametrize(
    "changes",
    [
        {"sizes_bytes": ()},
        {"sizes_bytes": (3000.0, 1000.0)},
        {"warm_s": (0.5,)},
        {"warm_s": (0.9, 0.5)},
        {"warm_s": (0.5, math.inf)},
        {"warm_s": (-0.1, 0.5)},
        {"cold_s": (0.5,)},
    ],
)
def test_a_curve_that_is_none_is_refused(changes: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(InvalidValue):
        replace(CURVE, **changes)


# -- in files --------------------------------------------------------------------------------------


def test_a_topology_is_written_as_it_is_read(tmp_path: Path) -> None:
    tier = Tier(
        name="a", device="pi", slowdown=2.5, host="localhost", port=7101, memory_bytes=2.0**30, power_w=5.0,
        price_usd_per_hour=0.1, cores=(0, 1), cpu_quota=0.5,
    )  # fmt: skip
    link = Link(bandwidth_bps=12345678.9, propagation_delay_s=0.0201, mtu_bytes=9000, header_bytes=60, transfer=CURVE)
    topology = Topology(
        name="all",
        tiers=(tier, Tier(name="b", device="x")),
        links=(link,),
        source=1,
        destination=1,
        ingest="message",
        slow_start=SlowStart(initial_window=12, receive_window_bytes=4321),
    )
    for value in (tier, link, topology):
        for field in fields(value):
            assert field.default is MISSING or getattr(value, field.name) != field.default, "every field is tried"
    (tmp_path / "t.yaml").write_text(topology_yaml(topology))
    assert load_topology(tmp_path / "t.yaml") == topology


def test_a_curve_in_a_file_names_what_is_wrong(tmp_path: Path) -> None:
    text = topology_yaml(chain(replace(SLOW, transfer=CURVE)))
    for old, new, says in (
        ("- 1000.0 B", "- 1000", r"links\[0\]\.transfer\.sizes: .*no unit"),
        ("- 0.5 s", "- 1.0 s", r"links\[0\]\.transfer: .*none less than the one before it"),
        ("warm:", "warmer:", "warm is missing; did you mean"),
    ):
        (tmp_path / "t.yaml").write_text(text.replace(old, new))
        with pytest.raises(ConfigError, match=says):
            load_topology(tmp_path / "t.yaml")


def test_a_measurement_gives_the_fields_of_a_link() -> None:
    found = LinkMeasurement(
        round_trip_s=0.05, least_round_trip_s=0.0402, probe_bytes=28, answer_bytes=20, one_way_s=(0.025, 0.025),
        jitter_s=(0.001, 0.001), clock_offset_s=0.0, clock_error_s=0.0, rates_bps=(7.6e6, 1e6),
        sizes_bytes=(1000.0,), warm_s=(0.021,), cold_s=(0.022,), congestion_control="cubic", seconds=1.0, bytes=1e6,
    )  # fmt: skip
    link = measured_link(Link(bandwidth_bps=1, propagation_delay_s=9, mtu_bytes=1000, header_bytes=50), found)
    assert link.bandwidth_bps == pytest.approx(8e6)
    assert link.propagation_delay_s == pytest.approx((0.0402 - 8 * 148 / 8e6) / 2)
    assert link.transfer == TransferCurve(sizes_bytes=(1000.0,), warm_s=(0.021,), cold_s=(0.022,))


# -- measuring -------------------------------------------------------------------------------------


@contextmanager
def peer(secret: bytes, buffer_bytes: int = 0) -> Iterator[Callable[[], socket.socket]]:
    """A peer and what connects to it; what their sockets take in before it is read is that small, if it is said."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()

    def connect() -> socket.socket:
        return small(socket.create_connection(address, 5))

    def small(sock: socket.socket) -> socket.socket:
        if buffer_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        return sock

    with Peer(small(listener), secret):
        yield connect


def test_the_loopback_interface_is_quick_and_has_one_clock() -> None:
    secret = secrets.token_bytes(16)
    with peer(secret) as connect:
        found = measure(connect, secret, Budget(seconds=2.0, bytes=20e6))
    assert 0 < found.least_round_trip_s <= found.round_trip_s
    assert min(found.one_way_s) > 0
    assert (found.clock_offset_s, found.clock_error_s) == (0.0, 0.0)
    assert len(found.sizes_bytes) == len(found.warm_s) == len(found.cold_s) >= 5
    assert found.bytes <= 20e6
    if sys.platform == "linux":
        available = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
        assert found.congestion_control in available


def test_a_small_budget_is_kept() -> None:
    secret = secrets.token_bytes(16)
    with peer(secret, buffer_bytes=8192) as connect:  # so that no stream comes in one piece
        found = measure(connect, secret, Budget(seconds=0.5, bytes=400_000))
    assert found.bytes <= 400_000
    assert found.sizes_bytes[-1] < 64_000


def test_the_rate_is_known_whenever_the_bytes_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a host so busy that whole streams wait in its sockets: the kernel tells when their pieces came."""
    take = links._take

    def late(connection: socket.socket, size: int, buffer: bytearray) -> tuple[float, float]:
        time.sleep(0.05)
        return take(connection, size, buffer)

    monkeypatch.setattr(links, "_take", late)
    secret = secrets.token_bytes(16)
    with peer(secret) as connect:
        found = measure(connect, secret, Budget(seconds=0.1, bytes=200_000))
    assert all(50e6 < rate < math.inf for rate in found.rates_bps)
    assert found.bytes <= 200_000


def test_a_stream_that_tells_no_rate_is_followed_by_a_longer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a budget that is spent by the first, which came at one moment, as the second did."""
    rate = links._rate
    monkeypatch.setattr(links, "_rate", lambda marks: rate(marks) if marks and marks[-1][0] > 300_000 else math.nan)
    secret = secrets.token_bytes(16)
    with peer(secret) as connect:
        found = measure(connect, secret, Budget(seconds=0.1, bytes=200_000))
    assert all(50e6 < rate < math.inf for rate in found.rates_bps)
    assert 2 * (1 << 20) < found.bytes < 3 * (1 << 20)


def test_strangers_get_no_answer_and_the_peer_goes_on() -> None:
    secret = secrets.token_bytes(16)
    with peer(secret) as connect:
        huge = b"PLK1" + bytes([1]) + secret + (1 << 60).to_bytes(8, "big")
        for said in (b"GET / HTTP/1.1\r\n\r\n" + bytes(40), b"PLK1" + bytes([0]) + bytes(16) + bytes(8), huge):
            with connect() as stranger:
                stranger.sendall(said)
                assert _hung_up(stranger)
        with pytest.raises(DeploymentError, match="secret"):
            measure(connect, bytes(16), Budget(seconds=0.5, bytes=400_000))
        measure(connect, secret, Budget(seconds=0.5, bytes=400_000))


def _hung_up(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_peer_that_is_not_there_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    with pytest.raises(DeploymentError, match="does not answer"):
        measure(lambda: socket.create_connection(address, 1), bytes(16))


@real
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare of util-linux")
def test_clocks_that_differ_are_told_apart() -> None:
    """The peer's monotonic clock is 1000 s ahead: it lives in a time namespace of its own."""
    secret = secrets.token_bytes(16)
    command = ["unshare", "--time", "--monotonic", "1000", sys.executable, "-m", "portend.runtime.link_probe"]
    with subprocess.Popen([*command, "peer", "127.0.0.1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(secret.hex().encode() + b"\n")
        process.stdin.flush()
        port = int(process.stdout.readline())
        found = measure(lambda: socket.create_connection(("127.0.0.1", port), 5), secret, Budget(seconds=2, bytes=4e6))
        process.stdin.close()
    assert 0 < found.clock_error_s == found.least_round_trip_s / 2
    assert found.clock_offset_s == pytest.approx(1000, abs=found.clock_error_s)
    assert all(abs(delay) < 10 for delay in (*found.one_way_s, *found.warm_s))


WANTED = (
    Link(bandwidth_bps=50e6, propagation_delay_s=0.015),
    Link(bandwidth_bps=100e6, propagation_delay_s=0.02),
)


def found_as_set(links: Sequence[Link], exactly: bool) -> None:
    """Other work on the machine makes links slower, never faster."""
    for link, wanted in zip(links, WANTED, strict=True):
        rate, delay = link.bandwidth_bps / wanted.bandwidth_bps, link.propagation_delay_s / wanted.propagation_delay_s
        assert rate < 1.05
        assert delay > 0.95
        assert not exactly or (rate > 0.95 and delay < 1.05), (rate, delay)


@EXACTLY
@pytest.mark.parametrize("emulation", ["relay", pytest.param("namespaces", marks=real)])
def test_links_are_found_as_they_were_set(emulation: str, tmp_path: Path, exactly: bool) -> None:
    topology = chain(*WANTED)
    (tmp_path / "t.yaml").write_text(topology_yaml(topology))
    words = ["links", str(tmp_path / "t.yaml"), "--emulation", emulation, "--time", "3 s", "--bytes", "32 MB"]
    done = CliRunner().invoke(cli, [*words, "--out", str(tmp_path / "m.yaml"), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [link["clock_error_s"] for link in found] == [0, 0]
    measured = load_topology(tmp_path / "m.yaml")
    assert measured.tiers == topology.tiers
    found_as_set(measured.links, exactly)
    for link in measured.links:
        assert link.transfer is not None
        assert link.transfer.sizes_bytes[-1] >= 4_000
    if emulation == "namespaces":
        assert [link["congestion_control"] for link in found] == ["cubic", "cubic"]
    sizes = np.array([1000, 4_000])
    for pair in ((0, 1), (1, 2), (0, 2)):
        due, got = (t.transmission_s(sizes)[(..., *pair)] + t.propagation_s()[pair] for t in (topology, measured))
        assert np.all(got > 0.75 * due)
        assert not exactly or np.all(got < 1.25 * due)


@real
@EXACTLY
def test_links_between_hosts_are_measured_by_their_agents(tmp_path: Path, exactly: bool) -> None:
    """Three hosts (namespaces), an agent on each, and the operator on the first: all encrypted but the probes."""
    topology = chain(*WANTED)
    names = [tier.name for tier in topology.tiers]
    make_keys(tmp_path / "keys", [*names, OPERATOR])
    with Namespaces(topology) as hosts, ExitStack() as ends:
        tiers = tuple(replace(tier, host=hosts.host(at), port=7100) for at, tier in enumerate(topology.tiers))
        (tmp_path / "hosts.yaml").write_text(topology_yaml(replace(topology, tiers=tiers)))
        command = [sys.executable, "-m", "portend.cli.app"]
        for at, tier in enumerate(tiers):
            words = f"agent --name {tier.name} --listen {tier.host}:7100 --keys keys --state {tier.name}".split()
            agent = ends.enter_context(hosts.start(at, [*command, *words], cwd=tmp_path))
            ends.callback(agent.terminate)
        words = ["links", "hosts.yaml", "--keys", "keys", "--out", "m.yaml", "--json"]
        limits = ["--time", "3 s", "--bytes", "32 MB"]
        asked = ends.enter_context(
            hosts.start(0, [*command, *words, *limits], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        )
        out, said = asked.communicate(timeout=90)
    assert asked.returncode == 0, said
    found, measured = json.loads(out), load_topology(tmp_path / "m.yaml")
    assert [link["clock_error_s"] for link in found] == [0, 0]
    assert measured.tiers == tiers
    found_as_set(measured.links, exactly)


def test_one_tier_has_no_links(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(topology_yaml(chain()))
    done = CliRunner().invoke(cli, ["links", str(tmp_path / "t.yaml")])
    assert isinstance(done.exception, DeploymentError)


@EXACTLY
def test_a_link_of_some_kbit_is_measured_and_not_given_up(monkeypatch: pytest.MonkeyPatch, exactly: bool) -> None:
    """Over 40 kbit/s the first stream of other links, 64 KiB each way, would take 26 s; patience is 1 s here."""
    monkeypatch.setattr("portend.runtime.link_probe._PATIENCE_S", 1.0)
    secret = bytes(16)
    listener = socket.create_server(("127.0.0.1", 0))
    cable = Cable(listener.getsockname()[1], rate_bps=40e3, delay_s=0.01)
    try:
        with Peer(listener, secret):
            found = measure(
                lambda: socket.create_connection(("127.0.0.1", cable.port), 5), secret, Budget(seconds=3, bytes=1e6)
            )
            assert sum(cable.passed.values()) < 2 * 64 * 1024
    finally:
        cable.close()
    assert max(found.rates_bps) < 1.3 * 40e3
    assert not exactly or min(found.rates_bps) > 0.7 * 40e3
