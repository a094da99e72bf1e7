"""The link emulator: its core against hand-worked numbers and the formulas, its process against real sockets."""

import contextlib
import json
import math
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clocks import EXACTLY, check_times
from portend.errors import DeploymentError, InvalidValue
from portend.testbed.emulation.relay import Delivery, Flow, Network, Relay, Route
from portend.values.topology import Link, Tier, Topology

PAPER = (
    Link(bandwidth_bps=10e6, propagation_delay_s=0.020),
    Link(bandwidth_bps=400e6, propagation_delay_s=0.040),
)
FAST = (Link(bandwidth_bps=1e12, propagation_delay_s=0.0, mtu_bytes=65536),)
# 1000 B of payload, 100 B of headers: 1.1 ms a full packet on SLOW, 0.11 ms on QUICK.
SLOW = Link(bandwidth_bps=8e6, propagation_delay_s=0.010, mtu_bytes=1100, header_bytes=100)
QUICK = Link(bandwidth_bps=80e6, propagation_delay_s=0.005, mtu_bytes=1100, header_bytes=100)


def chain(links: Sequence[Link]) -> Topology:
    tiers = tuple(Tier(name=f"t{index}", device="any") for index in range(len(links) + 1))
    return Topology(name="chain", tiers=tiers, links=tuple(links))


def drain(network: Network) -> list[Delivery]:
    return network.advance(1e9)


def times(deliveries: Sequence[Delivery], flow: Flow) -> list[tuple[int, float]]:
    return [(d.n_bytes, d.time_s) for d in deliveries if d.flow is flow]


def near(pairs: Sequence[tuple[int, float]]) -> list[tuple[int, object]]:
    return [(n_bytes, pytest.approx(time_s, abs=1e-12)) for n_bytes, time_s in pairs]


# --- the core ---


def test_a_message_is_cut_into_packets_that_follow_each_other() -> None:
    network = Network([SLOW])
    flow = network.open(0, 1)
    network.offer(flow, 2300, 5.0)
    assert times(drain(network), flow) == near([(1000, 5.0111), (1000, 5.0122), (300, 5.0126)])


def test_packets_are_stored_and_forwarded_whole() -> None:
    network = Network([SLOW, QUICK])
    up, down = network.open(0, 2), network.open(2, 0)
    network.offer(up, 1500, 0.0)
    network.offer(down, 1500, 0.0)
    deliveries = drain(network)
    # Up: 1.1 ms + 10 ms + 0.11 ms + 5 ms; the second packet, 600 B, leaves the slow link 0.6 ms after the first.
    assert times(deliveries, up) == near([(1000, 0.01621), (500, 0.01676)])
    # Down: 0.11 ms + 5 ms + 1.1 ms + 10 ms; the second one waits for the slow link.
    assert times(deliveries, down) == near([(1000, 0.01621), (500, 0.01681)])


def test_pieces_of_a_message_fill_packets_while_the_link_is_busy() -> None:
    network = Network([SLOW])
    flow = network.open(0, 1)
    network.offer(flow, 1, 0.0)  # alone: 101 B on the wire, until 0.101 ms
    network.offer(flow, 400, 0.00002)
    network.offer(flow, 400, 0.00010)  # in time for the next packet
    network.offer(flow, 5, 0.00011)  # too late for it
    assert times(drain(network), flow) == near([(1, 0.010101), (800, 0.011001), (5, 0.011106)])


def test_bytes_offered_at_the_same_moment_share_a_packet() -> None:
    network = Network([SLOW])
    flow = network.open(0, 1)
    for _ in range(3):
        network.offer(flow, 100, 1.0)
    assert times(drain(network), flow) == near([(300, 1.0104)])


def test_flows_share_a_link_in_the_order_of_their_bytes() -> None:
    network = Network([SLOW])
    first, second = network.open(0, 1), network.open(0, 1)
    network.offer(first, 2000, 0.0)
    network.offer(second, 400, 0.0001)
    network.offer(first, 1000, 0.0002)
    deliveries = drain(network)
    assert times(deliveries, first) == near([(1000, 0.0111), (1000, 0.0122), (1000, 0.0138)])
    assert times(deliveries, second) == near([(400, 0.0127)])


def test_a_short_packet_is_filled_with_later_bytes_of_its_own_flow_only() -> None:
    network = Network([SLOW])
    first, second = network.open(0, 1), network.open(0, 1)
    network.offer(first, 1200, 0.0)
    network.offer(second, 400, 0.0001)
    network.offer(first, 300, 0.0002)
    deliveries = drain(network)
    assert times(deliveries, first) == near([(1000, 0.0111), (500, 0.0117)])
    assert times(deliveries, second) == near([(400, 0.0122)])


def test_packets_in_transit_and_fresh_ones_share_a_link() -> None:
    network = Network([QUICK, SLOW])
    through, local = network.open(0, 2), network.open(1, 2)
    network.offer(through, 1000, 0.0)  # at the slow link at 5.11 ms
    network.offer(local, 900, 0.005)  # holds it until 6 ms
    network.offer(local, 900, 0.0052)  # behind the packet in transit
    deliveries = drain(network)
    assert times(deliveries, local) == near([(900, 0.016), (900, 0.0181)])
    assert times(deliveries, through) == near([(1000, 0.0171)])


def test_directions_do_not_meet() -> None:
    network = Network([SLOW])
    up, down = network.open(0, 1), network.open(1, 0)
    network.offer(up, 100_000, 0.0)
    network.offer(down, 1000, 0.0)
    deliveries = drain(network)
    assert times(deliveries, down) == near([(1000, 0.0111)])
    assert times(deliveries, up)[-1] == near([(1000, 0.12)])[0]


def test_marks_follow_the_bytes_and_cost_nothing() -> None:
    network = Network([SLOW, QUICK])
    flow, other = network.open(0, 2), network.open(0, 2)
    network.offer(flow, 1500, 0.0)
    network.mark(flow, "end", 0.0)
    network.mark(other, "reset", 1.0)
    deliveries = drain(network)
    assert [(d.n_bytes, d.mark) for d in deliveries] == [(1000, ""), (500, ""), (0, "end"), (0, "reset")]
    assert [d.time_s for d in deliveries] == pytest.approx([0.01621, 0.01676, 0.01676, 1.015], abs=1e-12)


def test_discarded_bytes_leave_the_link_to_others() -> None:
    network = Network([SLOW])
    gone, other = network.open(0, 1), network.open(0, 1)
    network.offer(gone, 500, 0.0)
    network.offer(gone, 500_000, 0.0)
    network.discard(gone)
    network.offer(other, 1000, 0.0)
    deliveries = drain(network)
    assert times(deliveries, gone) == []
    assert times(deliveries, other) == near([(1000, 0.0111)])


def test_advance_returns_what_is_due_and_no_more() -> None:
    network = Network([SLOW])
    flow = network.open(0, 1)
    assert network.wake_s() is None
    network.offer(flow, 1500, 0.0)
    assert [d.n_bytes for d in network.advance(0.0112)] == [1000]
    assert network.wake_s() == pytest.approx(0.0117)
    assert network.advance(0.0116) == []
    assert [d.n_bytes for d in network.advance(0.0118)] == [500]
    assert network.wake_s() is None


def test_the_core_refuses_what_makes_no_sense() -> None:
    network = Network([SLOW, Link(bandwidth_bps=1e6, propagation_delay_s=0, mtu_bytes=90, header_bytes=10)])
    for start, end in ((0, 0), (0, 3), (-1, 1)):
        with pytest.raises(InvalidValue, match="two different tiers of 0–2"):
            network.open(start, end)
    with pytest.raises(InvalidValue, match="-10 B are left"):
        network.open(0, 2)
    flow = network.open(0, 1)
    with pytest.raises(InvalidValue, match="not negative"):
        network.offer(flow, -1, 0.0)
    network.offer(flow, 1, 1.0)
    with pytest.raises(InvalidValue, match="backwards"):
        network.advance(0.5)


LINKS = st.builds(
    Link,
    bandwidth_bps=st.floats(1e5, 1e9),
    propagation_delay_s=st.floats(0, 0.1),
    mtu_bytes=st.integers(200, 9000),
    header_bytes=st.integers(0, 100),
)


@given(st.lists(LINKS, min_size=1, max_size=4), st.integers(1, 100_000), st.booleans(), st.booleans(), st.data())
def test_a_lone_message_takes_what_the_topology_says(
    links: list[Link], size: int, fill: bool, down: bool, data: st.DataObject
) -> None:
    """The formula is exact for one link, one packet, or a full last packet, whatever the order of the links.

    Otherwise a short last packet can catch up with the full one before it on any link but the first,
    on a fast link and on an equally fast one. The formula does not charge that wait; it is shorter than one
    full packet on every link of the path but the slowest. The exact law (the longest way through packets
    x links) is checked too.
    """
    topology = chain(links)
    tiers = (0, len(links))
    start, end = tiers[::-1] if down else tiers
    path = topology.path(start, end)
    header = max(link.header_bytes for link in path)
    room = min(link.mtu_bytes for link in path) - header
    packets = math.ceil(size / room)
    if fill:
        size = packets * room
    formula = float(topology.transmission_s(size)[start, end] + topology.propagation_s()[start, end])

    network = Network(links)
    flow = network.open(start, end)
    left = size  # in any pieces, at one moment
    while left:
        piece = data.draw(st.integers(1, left)) if left < size else max(1, left // 2)
        network.offer(flow, piece, 0.0)
        left -= piece
    deliveries = drain(network)
    took = deliveries[-1].time_s
    assert sum(d.n_bytes for d in deliveries) == size
    assert len(deliveries) == packets

    full = [(room + header) * 8 / link.bandwidth_bps for link in path]
    last = [(size - (packets - 1) * room + header) * 8 / link.bandwidth_bps for link in path]
    delay = sum(link.propagation_delay_s for link in path)
    ways = [(packets - 2) * max(full[: k + 1]) + sum(full[: k + 1]) + sum(last[k:]) for k in range(len(path))]
    exact = delay + (sum(last) if packets == 1 else max(ways))
    assert took == pytest.approx(exact, abs=1e-9, rel=1e-12)

    if fill or packets == 1 or len(path) == 1:
        assert took == pytest.approx(formula, abs=1e-9, rel=1e-12)
    else:
        assert formula - 1e-9 <= took <= formula + sum(full) - max(full) + 1e-9


@given(st.integers(1, 1_000_000))
def test_the_papers_path_is_exact_upwards(size: int) -> None:
    """Even 53 B on the slow link take longer than 1500 B on the fast one, so nothing catches up."""
    topology = chain(PAPER)
    network = Network(PAPER)
    network.offer(network.open(0, 2), size, 0.0)
    formula = float(topology.transmission_s(size)[0, 2] + topology.propagation_s()[0, 2])
    assert drain(network)[-1].time_s == pytest.approx(formula, abs=1e-9)


@given(st.integers(0, 2**32))
def test_looking_often_or_late_changes_nothing(seed: int) -> None:
    rng = random.Random(seed)
    offers = sorted((rng.uniform(0, 0.05), rng.randrange(4), rng.randrange(1, 20_000)) for _ in range(20))

    def play(looks: list[float]) -> list[tuple[int, int, float]]:
        network = Network([SLOW, QUICK, SLOW])
        flows = [network.open(*ends) for ends in ((0, 3), (1, 2), (3, 1), (0, 2))]
        found = []
        for now, flow, size in sorted([*offers, *((look, -1, 0) for look in looks)]):
            if flow < 0:
                found += network.advance(now)
            else:
                network.offer(flows[flow], size, now)
        return [(flows.index(d.flow), d.n_bytes, d.time_s) for d in found + drain(network)]

    assert play([rng.uniform(0, 0.5) for _ in range(200)]) == play([])


@given(st.integers(0, 2**32))
def test_whoever_wakes_when_told_misses_nothing(seed: int) -> None:
    rng = random.Random(seed)
    network = Network([SLOW, QUICK, SLOW])
    for ends in ((0, 3), (1, 2), (3, 1)):
        network.offer(network.open(*ends), rng.randrange(1, 100_000), 0.0)
    wakes = 0
    while (now := network.wake_s()) is not None:
        assert all(d.time_s == now for d in network.advance(now))
        wakes += 1
    assert wakes < 1000


# --- the process ---


class Server:
    """A target whose connections are handed to ``serve``, each in its thread."""

    def __init__(self) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.sock.settimeout(60)
        self.target = f"127.0.0.1:{self.sock.getsockname()[1]}"

    def accept(self) -> socket.socket:
        connection, _ = self.sock.accept()
        connection.settimeout(60)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    with made.sock:
        yield made


def connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def read_all(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def read_exactly(sock: socket.socket, n_bytes: int) -> None:
    while n_bytes:
        part = sock.recv(min(n_bytes, 1 << 20))
        assert part
        n_bytes -= len(part)


@EXACTLY
@pytest.mark.parametrize(("start", "end"), [(0, 2), (2, 0)])
def test_messages_take_their_time(server: Server, start: int, end: int, exactly: bool) -> None:
    """Never less than the formula, and the best of a few is close to it."""
    topology = chain(PAPER)
    with (
        Relay(topology, [Route(start, end, server.target)]) as relay,
        connect(relay.ports[0]) as sender,
        server.accept() as receiver,
    ):
        for size in (300, 12_000, 65_000):
            formula = float(topology.transmission_s(size)[start, end] + topology.propagation_s()[start, end])
            took, more = [], 0.001 + 0.02 * formula
            for _ in range(5 if exactly else 1):
                began = time.monotonic()
                sender.sendall(bytes(size))
                read_exactly(receiver, size)
                took.append(time.monotonic() - began)
                if took[-1] <= formula + more:
                    break
            check_times(took, formula, more, exactly=exactly)


@EXACTLY
def test_replies_travel_back(server: Server, exactly: bool) -> None:
    with (
        Relay(chain(PAPER), [Route(0, 2, server.target)]) as relay,
        connect(relay.ports[0]) as client,
        server.accept() as other,
    ):
        began = time.monotonic()
        client.sendall(b"ping")
        read_exactly(other, 4)
        other.sendall(b"pong")
        assert client.recv(10) == b"pong"
        check_times([time.monotonic() - began], 0.12, 0.38, exactly=exactly)


def test_bytes_keep_their_content_and_order_both_ways(server: Server) -> None:
    there, back = random.Random(1).randbytes(1_000_003), random.Random(2).randbytes(1_000_003)
    links = [Link(bandwidth_bps=100e6, propagation_delay_s=0.003), Link(bandwidth_bps=50e6, propagation_delay_s=0.001)]

    def talk(sock: socket.socket, said: bytes, heard: list[bytes]) -> None:
        def say() -> None:
            sock.sendall(said)
            sock.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=say)
        thread.start()
        heard.append(read_all(sock))
        thread.join()

    with (
        Relay(chain(links), [Route(0, 2, server.target)]) as relay,
        connect(relay.ports[0]) as client,
        server.accept() as other,
    ):
        near_heard: list[bytes] = []
        far_heard: list[bytes] = []
        thread = threading.Thread(target=talk, args=(other, back, far_heard))
        thread.start()
        talk(client, there, near_heard)
        thread.join()
    assert far_heard == [there]
    assert near_heard == [back]


def test_half_closed_connections_still_answer(server: Server) -> None:
    with (
        Relay(chain(PAPER[:1]), [Route(0, 1, server.target)]) as relay,
        connect(relay.ports[0]) as client,
        server.accept() as other,
    ):
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert read_all(other) == b"question"
        other.sendall(b"answer")
        other.close()
        assert read_all(client) == b"answer"


def test_a_reset_follows_the_bytes(server: Server) -> None:
    far = Link(bandwidth_bps=10e6, propagation_delay_s=0.4)
    with (
        Relay(chain([far]), [Route(0, 1, server.target)]) as relay,
        connect(relay.ports[0]) as client,
        server.accept() as other,
    ):
        client.sendall(b"last words")
        time.sleep(0.2)  # read by the relay, and still on the link
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        assert other.recv(100) == b"last words"
        with pytest.raises(ConnectionResetError):
            other.recv(100)
        relay.check()


def test_a_slow_receiver_gets_everything_and_a_sender_has_to_wait(server: Server) -> None:
    """The relay holds 64 MiB and the kernel a few more; then the sender waits."""
    block = random.Random(3).randbytes(1 << 20)
    blocks = 140
    with (
        Relay(chain(FAST), [Route(0, 1, server.target)]) as relay,
        connect(relay.ports[0]) as client,
        server.accept() as other,
    ):
        sent = 0

        def send() -> None:
            nonlocal sent
            for _ in range(blocks):
                client.sendall(block)
                sent += 1
            client.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=send)
        thread.start()
        previous, deadline = -1, time.monotonic() + 15
        while (sent != previous or sent < 60) and time.monotonic() < deadline:
            previous = sent
            time.sleep(0.3)
        assert 60 <= sent < blocks
        assert read_all(other) == block * blocks
        thread.join()


def test_routes_are_apart(server: Server) -> None:
    second = Server()
    with second.sock, Relay(chain(PAPER), [Route(0, 1, server.target), Route(2, 1, second.target)]) as relay:
        assert len(set(relay.ports)) == 2
        with (
            connect(relay.ports[0]) as one,
            server.accept() as its,
            connect(relay.ports[1]) as two,
            second.accept() as other,
        ):
            one.sendall(b"one")
            two.sendall(b"two")
            assert its.recv(10) == b"one"
            assert other.recv(10) == b"two"


def test_a_target_that_refuses_ends_the_connection_and_not_the_relay(server: Server) -> None:
    with socket.socket() as nobody:  # bound, not listening
        nobody.bind(("127.0.0.1", 0))
        routes = [Route(0, 1, f"127.0.0.1:{nobody.getsockname()[1]}"), Route(0, 1, server.target)]
        with Relay(chain(PAPER[:1]), routes) as relay:
            for _ in range(3):
                with contextlib.suppress(ConnectionResetError), connect(relay.ports[0]) as client:
                    assert client.recv(1) == b""
            with connect(relay.ports[1]) as client, server.accept() as other:
                client.sendall(b"still here")
                assert other.recv(100) == b"still here"


def test_clients_that_come_and_go_leave_nothing_behind(server: Server) -> None:
    with Relay(chain(FAST), [Route(0, 1, server.target)]) as relay:
        for index in range(30):
            with connect(relay.ports[0]) as client, server.accept() as other:
                client.sendall(b"x" * 1000)
                if index % 3 == 0:
                    read_exactly(other, 1000)
        relay.check()
        assert relay._process is not None
        files = f"/proc/{relay._process.pid}/fd"
        if os.path.isdir(files):  # noqa: PTH112
            deadline = time.monotonic() + 5
            while len(os.listdir(files)) > 12 and time.monotonic() < deadline:  # noqa: PTH208
                time.sleep(0.02)
            assert len(os.listdir(files)) <= 12  # noqa: PTH208


# --- starting and stopping ---


def start(config: object) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "portend.testbed.emulation.relay"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write((config if isinstance(config, str) else json.dumps(config)) + "\n")
    process.stdin.flush()
    return process


LINK = {"bandwidth_bps": 1e6, "propagation_delay_s": 0.01, "mtu_bytes": 1500, "header_bytes": 52}
ROUTE = {"from": 0, "to": 1, "target": "127.0.0.1:9"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it(number: signal.Signals) -> None:
    with start({"links": [LINK], "routes": [ROUTE]}) as process:
        assert process.stdout is not None
        assert len(json.loads(process.stdout.readline())["listen"]) == 1
        process.send_signal(number)
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_it_dies_with_its_parent() -> None:
    program = (
        "import sys, time\n"
        "from portend.testbed.emulation.relay import Relay, Route\n"
        "from portend.values.topology import Link, Tier, Topology\n"
        "tiers = (Tier(name='a', device='x'), Tier(name='b', device='x'))\n"
        "link = Link(bandwidth_bps=1e6, propagation_delay_s=0.0)\n"
        "with Relay(Topology(name='t', tiers=tiers, links=(link,)), [Route(0, 1, '127.0.0.1:9')]) as relay:\n"
        "    print(relay.ports[0], flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline())
        with contextlib.suppress(ConnectionResetError):  # it runs, but its target refuses
            connect(port).close()
        parent.kill()
    deadline = time.monotonic() + 5
    gone = False
    while not gone and time.monotonic() < deadline:
        try:
            connect(port).close()
        except ConnectionRefusedError:
            gone = True
        except ConnectionResetError:
            pass
        time.sleep(0.02)
    assert gone


BAD = [
    ("", "one line of JSON"),
    ("{", "one line of JSON"),
    ([], "'links' and 'routes'"),
    ({"links": [LINK]}, "'links' and 'routes'"),
    ({"links": [], "routes": [ROUTE]}, "not empty"),
    ({"links": [3], "routes": [ROUTE]}, r"links\[0\]"),
    ({"links": [LINK | {"bandwidth_bps": -1}], "routes": [ROUTE]}, r"links\[0\].*positive"),
    ({"links": [LINK | {"mtu_bytes": 1500.5}], "routes": [ROUTE]}, r"links\[0\].*whole"),
    ({"links": [LINK], "routes": [{"from": 0}]}, r"routes\[0\]"),
    ({"links": [LINK], "routes": [ROUTE | {"to": 2}]}, "tiers of 0–1"),
    ({"links": [LINK], "routes": [ROUTE | {"target": "nowhere"}]}, "HOST:PORT"),
]


def test_bad_input_is_one_clear_line() -> None:
    running = [(start(config), says) for config, says in BAD]
    for process, says in running:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 2
        assert out == ""
        assert err.count("\n") == 1
        with pytest.raises(AssertionError, match=says):
            raise AssertionError(err)


def test_the_launcher_reports_the_relays_words() -> None:
    with pytest.raises(DeploymentError, match=r"status 2.*tiers of 0–1"), Relay(chain([SLOW]), [Route(0, 5, "h:1")]):
        pass


def test_the_launcher_notices_a_dead_relay() -> None:
    relay = Relay(chain([SLOW]), [Route(0, 1, "127.0.0.1:9")])
    with pytest.raises(DeploymentError, match="not started"):
        relay.check()
    relay.__enter__()
    process = relay._process
    assert process is not None
    process.kill()
    process.wait()
    with pytest.raises(DeploymentError, match="ended with status -9"):
        relay.__exit__(None, None, None)
    assert relay.ports == ()
