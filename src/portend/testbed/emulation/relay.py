"""Links between processes of one machine, in user space and without root.

One process carries all the links of a chain of tiers. It listens once per route, and the bytes of
every connection that it accepts cross the links between the route's tiers packet by packet, as
`Topology.transmission_s` and `Topology.propagation_s` charge them (paper, L_{i→j} and Lat^prop):

- A link direction is a FIFO server that all connections share. A packet of s bytes, headers
  included, holds it for 8 s / bandwidth, arrives the propagation delay later, and is then sent on
  whole over the next link. Replies cross the same links in the other direction and do not meet
  the requests.
- On its first link a packet is formed when the link is free, from what the connection has sent by
  then, at most the path's smallest MTU with the path's largest header. So a message that is read in
  pieces fills its packets, and a lone byte costs a header of its own, as with TCP. Bytes take their
  turn in the order in which they were sent, whatever their connection.
- TCP itself costs nothing: no handshake, acknowledgement, loss, slow start or pacing is emulated. An
  end of stream and a reset take no time on a link but follow the bytes before them and are delayed too.

`Network` holds all of that, without a socket or a clock. The shell around it is what
``python -m portend.testbed.emulation.relay`` runs, and `Relay` starts and stops that process:

- stdin: one line of JSON, ``{"links": [{"bandwidth_bps", "propagation_delay_s", "mtu_bytes",
  "header_bytes"}, ...], "routes": [{"from": 0, "to": 2, "target": "127.0.0.1:5555"}, ...]}``;
- stdout: one line of JSON, ``{"listen": [port, ...]}``, a port of 127.0.0.1 per route;
- it ends with status 0 at the end of stdin, SIGTERM or SIGINT, and with status 2 and one line on
  stderr if it cannot do what stdin says.

Times are virtual: a process that wakes up late delivers late but shifts nothing that comes after. One
process moves some hundred thousand packets a second; give a faster link a larger MTU.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import json
import os
import select
import selectors
import signal
import socket
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from heapq import heappop, heappush
from itertools import count
from time import monotonic
from typing import Any, Final, Literal, NamedTuple, Self

from portend.address import read_address
from portend.errors import ConfigError, InvalidValue, PortendError
from portend.testbed.emulation.child import Child
from portend.values.topology import Link, Topology

__all__ = ["Delivery", "Flow", "Mark", "Network", "Relay", "Route", "main"]

Mark = Literal["", "end", "reset"]
"""What a delivery is: bytes (``""``), the end of the stream, or its abortion."""

_BATCH: Final = 32  # packets that a link commits to in advance; the rest wait for later bytes
_READ_BYTES: Final = 1 << 18
_MOST_HELD_BYTES: Final = 1 << 26  # of one direction of a connection; then its sender has to wait
_CONNECT_TIMEOUT_S: Final = 5.0
_MOST_SPIN_S: Final = 100e-6


# --- the network: no sockets, no clock -------------------------------------------------------------


class Flow:
    """One direction of a connection, as `Network.open` gives it; a handle without public parts."""

    __slots__ = ("_formed", "_header", "_offered", "_room", "_servers")

    def __init__(self, servers: tuple[_Server, ...], room: int, header: int) -> None:
        self._servers = servers
        self._room = room
        self._header = header
        self._offered = 0  # bytes since the start
        self._formed = 0  # bytes that became packets


class Delivery(NamedTuple):
    """What leaves the last link of a flow at ``time_s``: ``n_bytes`` of its stream, or a mark (then 0 bytes)."""

    time_s: float
    flow: Flow
    n_bytes: int
    mark: Mark


class _Packet(NamedTuple):
    flow: Flow
    hop: int
    n_bytes: int
    mark: Mark


class _Pending:
    """A place in a link's queue for a flow's bytes up to the ``upto``-th; packets are made of them later."""

    __slots__ = ("flow", "upto")

    def __init__(self, flow: Flow, upto: int) -> None:
        self.flow = flow
        self.upto = upto


class _Server:
    """One direction of one link. Its queue is empty unless pending bytes are in it."""

    __slots__ = ("armed", "delay_s", "free_s", "queue", "seconds_per_byte")

    def __init__(self, link: Link) -> None:
        self.seconds_per_byte = 8 / link.bandwidth_bps
        self.delay_s = link.propagation_delay_s
        self.free_s = -float("inf")
        self.queue: deque[_Pending | _Packet] = deque()
        self.armed = False


class Network:
    """The links of a chain and the packets on them, in virtual time.

    Times are seconds of any one clock and must not decrease from call to call (InvalidValue).

    Source: paper, L_{i→j} and Lat^prop, packet by packet. A message alone on its path takes
    ``Topology.transmission_s + propagation_s``, exactly if it is one packet, fills its last one, or
    crosses one link; else never less, and longer by less than one full packet on each link of the
    path but the slowest (a short last packet catches up with the full one before it).
    """

    def __init__(self, links: Sequence[Link]) -> None:
        self._links = tuple(links)
        self._up = [_Server(link) for link in links]
        self._down = [_Server(link) for link in links]
        # A packet that enters a link comes out at least this much later, so that is how long nobody must look.
        self._lookahead_s = min((link.propagation_delay_s for link in links), default=0.0) / 2
        self._order = count()
        self._events: list[tuple[float, int, _Server | _Packet]] = []
        self._arrivals: list[tuple[float, int, _Packet]] = []
        self._now = -float("inf")

    def open(self, start: int, end: int) -> Flow:
        """Return a new flow of bytes from tier ``start`` to tier ``end`` (0-based, different).

        Raises:
            InvalidValue: no such tiers, or the path's smallest MTU does not exceed its largest header.
        """
        tiers = len(self._links) + 1
        if not (0 <= start < tiers and 0 <= end < tiers and start != end):
            raise InvalidValue(f"a route joins two different tiers of 0–{tiers - 1}, but got {start} to {end}")
        low, high = min(start, end), max(start, end)
        header = max(link.header_bytes for link in self._links[low:high])
        room = min(link.mtu_bytes for link in self._links[low:high]) - header
        if room <= 0:
            raise InvalidValue(
                f"the smallest MTU of a path must exceed its largest header, but {room} B are left "
                f"on the links {low + 1} to {high}, counted from 1"
            )
        servers = self._up[low:high] if start < end else self._down[low:high][::-1]
        return Flow(tuple(servers), room, header)

    def offer(self, flow: Flow, n_bytes: int, now: float) -> None:
        """Append ``n_bytes`` (>= 0) to a flow's stream at ``now``.

        Raises:
            InvalidValue: a negative number of bytes, or a time before that of an earlier call.
        """
        if n_bytes < 0:
            raise InvalidValue(f"the number of bytes is not negative, but got {n_bytes}")
        self._run(now, inclusive=False)
        flow._offered += n_bytes
        server = flow._servers[0]
        last = server.queue[-1] if server.queue else None
        if isinstance(last, _Pending) and last.flow is flow:
            last.upto = flow._offered
        elif n_bytes:
            self._enqueue(server, _Pending(flow, flow._offered), now)

    def mark(self, flow: Flow, mark: Mark, now: float) -> None:
        """Send the end of a flow's stream, or its abortion, after the bytes offered so far."""
        self._run(now, inclusive=False)
        self._enqueue(flow._servers[0], _Packet(flow, 0, 0, mark), now)

    def discard(self, flow: Flow) -> None:
        """Drop the bytes of a flow that are not packets yet; the packets on the way travel on."""
        flow._formed = flow._offered

    def wake_s(self) -> float | None:
        """Return when to call `advance` next for no delivery to be late; None if nothing is under way.

        Never later than the next delivery, but it can be before it.
        """
        times = []
        if self._arrivals:
            times.append(self._arrivals[0][0])
        if self._events:
            times.append(self._events[0][0] + self._lookahead_s)
        return min(times, default=None)

    def advance(self, now: float) -> list[Delivery]:
        """Return what arrived up to ``now`` (included) and was not returned before, in order of time.

        Raises:
            InvalidValue: a time before that of an earlier call.
        """
        self._run(now, inclusive=True)
        deliveries = []
        arrivals = self._arrivals
        while arrivals and arrivals[0][0] <= now:
            time, _, packet = heappop(arrivals)
            deliveries.append(Delivery(time, packet.flow, packet.n_bytes, packet.mark))
        return deliveries

    def _run(self, now: float, *, inclusive: bool) -> None:
        """Handle the events before ``now``; those at ``now`` only if nothing can be offered then any more."""
        if now < self._now:
            raise InvalidValue(f"time does not run backwards, but got {now} s after {self._now} s")
        self._now = now
        events = self._events
        while events and (events[0][0] < now or (inclusive and events[0][0] == now)):
            time, _, what = heappop(events)
            if isinstance(what, _Server):
                what.armed = False
                self._serve(what, time)
            else:
                server = what.flow._servers[what.hop]
                if server.queue:
                    server.queue.append(what)
                else:
                    self._transmit(server, what, time)

    def _enqueue(self, server: _Server, item: _Pending | _Packet, now: float) -> None:
        server.queue.append(item)
        if not server.armed:
            self._arm(server, max(now, server.free_s))

    def _arm(self, server: _Server, time: float) -> None:
        server.armed = True
        heappush(self._events, (time, next(self._order), server))

    def _serve(self, server: _Server, now: float) -> None:
        """Put the next packets of a free link's queue on it, back to back.

        What comes later queues behind them, so all but a packet that later bytes could fill up is
        settled now.
        """
        queue = server.queue
        settled = 0
        while queue and settled < _BATCH:
            head = queue[0]
            if isinstance(head, _Packet):
                packet = head
                queue.popleft()
            else:
                flow = head.flow
                ready = flow._offered - flow._formed
                if flow._formed >= head.upto:  # an earlier packet took them along, or they were discarded
                    queue.popleft()
                    continue
                if ready < flow._room and server.free_s > now:
                    break
                packet = _Packet(flow, 0, min(ready, flow._room), "")
                flow._formed += packet.n_bytes
                if flow._formed >= head.upto:
                    queue.popleft()
            self._transmit(server, packet, now)
            settled += 1
        if queue:
            self._arm(server, max(now, server.free_s))

    def _transmit(self, server: _Server, packet: _Packet, now: float) -> None:
        flow, hop, n_bytes, mark = packet
        size = 0 if mark else n_bytes + flow._header
        server.free_s = max(now, server.free_s) + size * server.seconds_per_byte
        arrival = server.free_s + server.delay_s
        hop += 1
        moved = _Packet(flow, hop, n_bytes, mark)
        if hop == len(flow._servers):
            heappush(self._arrivals, (arrival, next(self._order), moved))
        else:
            heappush(self._events, (arrival, next(self._order), moved))


# --- the shell: sockets and the clock --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Route:
    """A way into the relay: what connects to its port arrives at ``target`` from tier ``start`` at tier ``end``.

    Attributes:
        start, end: different tier indices.
        target: ``"host:port"`` that serves tier ``end``.
    """

    start: int
    end: int
    target: str


class _Pipe:
    """One direction of a connection: what its source sent and its sink has not got yet."""

    __slots__ = ("chunks", "done", "due", "flow", "held", "mark", "offset", "sink", "source")

    def __init__(self, source: _End, sink: _End, flow: Flow) -> None:
        self.source = source
        self.sink = sink
        self.flow = flow
        self.chunks: deque[bytes] = deque()
        self.offset = 0  # bytes of the first chunk that are written
        self.held = 0  # bytes read and not written
        self.due = 0  # bytes that arrived and are not written
        self.mark: Mark = ""  # arrived after them
        self.done = False  # the sink was told of the end


class _End:
    """One socket of a connection."""

    __slots__ = ("connected", "eof", "incoming", "interest", "open", "outgoing", "paused", "sock")

    incoming: _Pipe  # its source is the other end
    outgoing: _Pipe

    def __init__(self, sock: socket.socket, *, connected: bool) -> None:
        self.sock = sock
        self.connected = connected
        self.open = True
        self.eof = False  # nothing more is read from it
        self.paused = False  # nothing is read for now
        self.interest = 0


_Address = tuple[socket.AddressFamily, Any]


class _Listener(NamedTuple):
    sock: socket.socket
    route: Route
    address: _Address


class _Shell:
    """Moves bytes between sockets at the times of a `Network`."""

    def __init__(self, links: Sequence[Link], routes: Sequence[Route]) -> None:
        self._network = Network(links)
        self._selector = selectors.DefaultSelector()
        self._fileno: Callable[[], int] | None = getattr(self._selector, "fileno", None)
        self._pipes: dict[Flow, _Pipe] = {}
        self._connecting: deque[tuple[float, _End]] = deque()
        self._paused_listeners: list[_Listener] = []
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._early_s = 50e-6
        self._waker, self.stopper = socket.socketpair()
        self.stopper.setblocking(False)
        self._selector.register(self._waker, selectors.EVENT_READ, None)
        self._listeners = [self._listen(route) for route in routes]
        self.ports = [listener.sock.getsockname()[1] for listener in self._listeners]

    def _listen(self, route: Route) -> _Listener:
        self._network.open(route.start, route.end)  # both ways or neither
        address = _resolve(route.target)
        sock = socket.create_server(("127.0.0.1", 0), backlog=128)
        sock.setblocking(False)
        listener = _Listener(sock, route, address)
        self._selector.register(sock, selectors.EVENT_READ, listener)
        return listener

    def run(self) -> None:
        """Forward until something is written to ``stopper``."""
        while True:
            ready = self._wait()
            self._deliver(monotonic())
            for key, mask in ready:
                what = key.data
                if what is None:
                    return
                if isinstance(what, _Listener):
                    self._accept(what)
                    continue
                if mask & selectors.EVENT_WRITE and what.open:
                    self._writable(what)
                if mask & selectors.EVENT_READ and what.open and not what.eof:
                    self._read(what)
            while self._connecting and (self._connecting[0][1].connected or not self._connecting[0][1].open):
                self._connecting.popleft()
            if self._connecting and self._connecting[0][0] <= monotonic():
                self._fail(self._connecting.popleft()[1])

    # -- waiting

    def _wait(self) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for a socket or the next virtual event, and return the sockets.

        A sleeper wakes up late by tens of microseconds. So go to bed for a little less and watch the
        clock for the rest, at most `_MOST_SPIN_S`; how much less, the lateness so far tells. Events
        that follow each other faster are not worth it: they are late by one sleep, together.
        """
        until = self._network.wake_s()
        if self._connecting:
            deadline = self._connecting[0][0]
            until = deadline if until is None else min(until, deadline)
        if until is None:
            return self._select(None)
        left = until - monotonic()
        if left <= self._early_s:
            return self._select(max(left, 0.0))
        ready = self._select(left - self._early_s)
        now = monotonic()
        if not ready:
            late = now - until + self._early_s  # the upper quartile of this, step by step
            self._early_s = min(max(self._early_s + (3e-6 if late > self._early_s else -1e-6), 0.0), _MOST_SPIN_S)
        while not ready and now < until:
            ready = self._select(0.0)
            now = monotonic()
        return ready

    def _select(self, timeout_s: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        # epoll counts milliseconds and rounds up; select() on the epoll takes microseconds.
        if self._fileno is None:
            return self._selector.select(timeout_s)
        if timeout_s != 0.0:
            readable, _, _ = select.select([self._fileno()], [], [], timeout_s)
            if not readable:
                return []
        return self._selector.select(0)

    def _watch(self, end: _End) -> None:
        """Ask for the events that an end can use now."""
        interest = 0
        if end.open:
            if end.connected and not end.eof and not end.paused:
                interest |= selectors.EVENT_READ
            if not end.connected or end.incoming.due:
                interest |= selectors.EVENT_WRITE
        if interest == end.interest:
            return
        if not interest:
            self._selector.unregister(end.sock)
        elif not end.interest:
            self._selector.register(end.sock, interest, end)
        else:
            self._selector.modify(end.sock, interest, end)
        end.interest = interest

    # -- connections

    def _accept(self, listener: _Listener) -> None:
        while True:
            try:
                sock, _ = listener.sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._selector.unregister(listener.sock)  # until a connection ends
                    self._paused_listeners.append(listener)
                    return
                continue  # the client is gone already
            self._connect(sock, listener)

    def _connect(self, sock: socket.socket, listener: _Listener) -> None:
        family, address = listener.address
        try:
            other = socket.socket(family, socket.SOCK_STREAM)
        except OSError:
            sock.close()
            return
        for each in (sock, other):
            each.setblocking(False)
            with contextlib.suppress(OSError):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        near, far = _End(sock, connected=True), _End(other, connected=False)
        start, end = listener.route.start, listener.route.end
        near.outgoing = far.incoming = _Pipe(near, far, self._network.open(start, end))
        far.outgoing = near.incoming = _Pipe(far, near, self._network.open(end, start))
        for pipe in (near.outgoing, near.incoming):
            self._pipes[pipe.flow] = pipe
        self._watch(near)
        status = other.connect_ex(address)
        if status in (0, errno.EISCONN):
            self._connected(far)
        elif status in (errno.EINPROGRESS, errno.EWOULDBLOCK):
            self._connecting.append((monotonic() + _CONNECT_TIMEOUT_S, far))
            self._watch(far)
        else:
            self._fail(far)

    def _connected(self, end: _End) -> None:
        end.connected = True
        self._flush(end.incoming)
        self._watch(end)

    def _writable(self, end: _End) -> None:
        if end.connected:
            self._flush(end.incoming)
        elif end.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._fail(end)
        else:
            self._connected(end)

    def _read(self, end: _End) -> None:
        pipe = end.outgoing
        try:
            n_bytes = end.sock.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            self._fail(end)
            return
        now = monotonic()
        if n_bytes:
            pipe.chunks.append(bytes(self._buffer[:n_bytes]))
            pipe.held += n_bytes
            self._network.offer(pipe.flow, n_bytes, now)
            end.paused = pipe.held >= _MOST_HELD_BYTES
        else:
            end.eof = True
            self._network.mark(pipe.flow, "end", now)
        self._watch(end)

    def _deliver(self, now: float) -> None:
        due = {}
        for delivery in self._network.advance(now):
            pipe = self._pipes.get(delivery.flow)
            if pipe is not None and pipe.sink.open:
                pipe.due += delivery.n_bytes
                pipe.mark = delivery.mark or pipe.mark
                due[delivery.flow] = pipe
        for pipe in due.values():
            self._flush(pipe)

    def _flush(self, pipe: _Pipe) -> None:
        """Write what is due, as far as the sink takes it, and then pass on the end."""
        end = pipe.sink
        if not (end.open and end.connected):
            return
        try:
            while pipe.due:
                chunk = pipe.chunks[0]
                sent = end.sock.send(memoryview(chunk)[pipe.offset : pipe.offset + pipe.due])
                pipe.due -= sent
                pipe.held -= sent
                pipe.offset += sent
                if pipe.offset == len(chunk):
                    pipe.chunks.popleft()
                    pipe.offset = 0
            if pipe.mark == "end" and not pipe.done:
                pipe.done = True
                end.sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:
            self._fail(end)
            return
        if not pipe.due and pipe.mark == "reset":
            end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._close(end)
            return
        self._watch(end)
        source = pipe.source
        if source.paused and pipe.held <= _MOST_HELD_BYTES // 2:
            source.paused = False
            self._watch(source)
        if pipe.done and end.outgoing.done:
            self._close(end)
            self._close(source)

    def _fail(self, end: _End) -> None:
        """An end is gone: the other one learns it after the bytes on the way to it."""
        if end.open:
            self._close(end)
            if end.outgoing.sink.open:
                self._network.mark(end.outgoing.flow, "reset", monotonic())

    def _close(self, end: _End) -> None:
        if not end.open:
            return
        end.open = False
        self._watch(end)
        end.sock.close()
        lost = end.incoming
        lost.chunks.clear()
        lost.due = 0
        self._network.discard(lost.flow)
        other = lost.source
        other.eof = True  # nobody is left to read for
        if other.open:
            self._watch(other)
            return
        for pipe in (end.incoming, end.outgoing):
            del self._pipes[pipe.flow]
        for listener in self._paused_listeners:
            self._selector.register(listener.sock, selectors.EVENT_READ, listener)
        self._paused_listeners.clear()


def _resolve(target: str) -> _Address:
    host, port = read_address(target, least_port=1)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"no address is known for the target {target!r}: {error}") from error
    return family, address


def _parse(line: bytes) -> tuple[list[Link], list[Route]]:
    """Return what the line on stdin says; ConfigError or InvalidValue if it makes no sense."""
    try:
        config = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"stdin starts with one line of JSON, but: {error}") from error
    if not (isinstance(config, dict) and set(config) == {"links", "routes"}):
        raise ConfigError("the configuration is an object with 'links' and 'routes'")
    if not all(isinstance(config[key], list) and config[key] for key in config):
        raise ConfigError("'links' and 'routes' are lists and not empty")
    links, routes = [], []
    for index, fields in enumerate(config["links"]):
        try:
            link = Link(**fields)
        except (TypeError, OverflowError, InvalidValue) as error:
            raise ConfigError(f"links[{index}]: {error}") from error
        if not (type(link.mtu_bytes) is int and type(link.header_bytes) is int):
            raise ConfigError(f"links[{index}]: 'mtu_bytes' and 'header_bytes' are whole numbers, but got {fields}")
        links.append(link)
    for index, fields in enumerate(config["routes"]):
        shape = {"from": int, "to": int, "target": str}
        if not (isinstance(fields, dict) and {key: type(value) for key, value in fields.items()} == shape):
            raise ConfigError(
                f"routes[{index}]: a route has the tiers 'from' and 'to' and a 'target', but got {fields}"
            )
        routes.append(Route(fields["from"], fields["to"], fields["target"]))
    return links, routes


def _stop_at_end_of_stdin(stopper: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 1 << 16):
            pass
    with contextlib.suppress(OSError):
        stopper.send(b"\0")


def main() -> int:
    """Run the relay that stdin describes until stdin ends or a signal comes; return the exit status.

    0 after a stop that was asked for, 2 after one line on stderr if the configuration is wrong or a
    port could not be had. See the module for the lines on stdin and stdout.
    """
    try:
        shell = _Shell(*_parse(sys.stdin.buffer.readline()))
    except (PortendError, OSError) as error:
        print(f"relay: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(shell.stopper.fileno())
    threading.Thread(target=_stop_at_end_of_stdin, args=(shell.stopper,), daemon=True).start()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(29, 1, 0, 0, 0)  # PR_SET_TIMERSLACK: 1 ns instead of 50 µs
    print(json.dumps({"listen": shell.ports}), flush=True)
    gc.freeze()
    shell.run()
    return 0


# --- the launcher ----------------------------------------------------------------------------------


class Relay(Child):
    """A running relay for a topology's links, as a context manager.

    Example::

        with Relay(topology, [Route(0, 2, "127.0.0.1:5555")]) as relay:
            connect(("127.0.0.1", relay.ports[0]))  # tier 2, as tier 0 sees it

    It ends with the ``with`` block or with this process, however that ends.
    """

    def __init__(self, topology: Topology, routes: Sequence[Route], *, start_timeout_s: float = 10.0) -> None:
        super().__init__("relay", "portend.testbed.emulation.relay", start_timeout_s=start_timeout_s)
        self._links = topology.links
        self._routes = tuple(routes)
        self._ports: tuple[int, ...] = ()

    @property
    def ports(self) -> tuple[int, ...]:
        """The ports on 127.0.0.1, one per route in their order; empty when it is not running."""
        return () if self.pid is None else self._ports

    def __enter__(self) -> Self:
        """Start the process; DeploymentError with its last words if it cannot do what it is told."""
        config = {
            "links": [asdict(replace(link, transfer=None)) for link in self._links],
            "routes": [{"from": route.start, "to": route.end, "target": route.target} for route in self._routes],
        }
        self._ports = tuple(self._start(config)["listen"])
        return self


if __name__ == "__main__":
    sys.exit(main())
