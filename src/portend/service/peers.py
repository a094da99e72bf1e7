"""The other agents as one agent knows them: a connection to each, whether it lives, and what its clock says.

A connection carries messages one way, in pieces (``pieces``), and acknowledgments back. Nothing else is needed to know
whether it works: where none came for too long it is given up and made anew, with the name resolved again, however long
that takes to succeed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import zmq
from zmq.utils.monitor import parse_monitor_message

from portend.address import Address, read_address
from portend.errors import DeploymentError, MessageError, PortendError
from portend.runtime.protocol import pack_control
from portend.service.keys import Keys
from portend.service.pieces import Ack, Outbox

__all__ = ["Beat", "Peer", "call", "read_beat"]

_HELD: Final = 1000  # messages for one peer that a socket holds
_LARGEST: Final = 32 << 20  # bytes of what an agent answers
_CLOCKS: Final = 32  # round trips that are remembered
_MOST_NAMES: Final = 64


def call(
    context: Any,
    name: str,
    endpoint: str,
    keys: Keys | None,
    ours: str,
    before: Callable[[zmq.Socket[bytes]], None] = lambda _: None,
    *,
    connect_ms: int = 1000,
    heartbeat_s: int = 15,
) -> zmq.Socket[bytes]:
    """Return a socket that connects to the agent ``name`` at host:port, and again whenever the connection breaks.

    It holds nothing for who is not there: what is sent then is refused with ``zmq.Again``. ``before`` gets the socket
    before it connects. The far socket hands a routing id over to a new connection (``ZMQ_ROUTER_HANDOVER``), so the id
    is 128 random bits after ``ours``: nobody else can guess it, and a new socket never meets the id of an old one.

    Raises:
        ConfigError: there is no public key of that name. DeploymentError: this is no endpoint.
    """
    made: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    made.setsockopt(zmq.LINGER, 0)
    made.setsockopt(zmq.IDENTITY, f"{ours}/{secrets.token_hex(16)}".encode())
    made.setsockopt(zmq.IMMEDIATE, 1)
    made.setsockopt(zmq.MAXMSGSIZE, _LARGEST)
    made.setsockopt(zmq.SNDHWM, _HELD)
    made.setsockopt(zmq.RCVHWM, _HELD)
    made.setsockopt(zmq.RECONNECT_IVL, 50)
    made.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
    made.setsockopt(zmq.CONNECT_TIMEOUT, connect_ms)  # then it calls again; the system's own pauses double each time
    if heartbeat_s:  # a dead connection is given up, so that a new one can be made
        made.setsockopt(zmq.HEARTBEAT_IVL, 1000)
        made.setsockopt(zmq.HEARTBEAT_TIMEOUT, 1000 * heartbeat_s)
    made.setsockopt(zmq.IPV6, 1)
    try:
        if keys is not None:
            keys.call(made, name)
        before(made)
        made.connect(f"tcp://{endpoint}")
    except zmq.ZMQError as error:
        made.close()
        raise DeploymentError(
            f"{name} cannot be called at {endpoint!r} ({error}); state host and port in the topology"
        ) from None
    except BaseException:
        made.close()
        raise
    return made


@dataclass(frozen=True, slots=True)
class Beat:
    """What an agent says of itself, a few times a second.

    Attributes:
        incarnation: another one whenever its process is started. sent_ns: its monotonic clock.
        versions: of the releases it can run. reaches: for each of them, by tier, which of its connections there works:
            the first, the second, ...; 0 where none does.
        active, oldest: from the source: the release that new samples take, and the oldest in use; 0 from others.
    """

    incarnation: int
    sent_ns: int
    versions: tuple[int, ...]
    reaches: tuple[tuple[int, ...], ...]
    active: int
    oldest: int

    def packed(self) -> bytes:
        """Return the beat as a control message; short, for links of some kbit/s."""
        return pack_control("beat", says=[getattr(self, name) for name in self.__slots__])

    def reaches_tier(self, version: int, tier: int) -> int:
        """Which of its connections to a tier of a release works; 0 if none does."""
        reached = self.reaches[self.versions.index(version)] if version in self.versions else ()
        return reached[tier] if tier < len(reached) else 0


def read_beat(values: dict[str, Any]) -> Beat:
    """Return the beat in a control message; MessageError if it is none."""

    def whole(value: Any) -> bool:
        return type(value) is int and 0 <= value < 1 << 64

    def all_of(values: Any, kind: Callable[[Any], bool]) -> bool:
        return isinstance(values, list) and len(values) <= _MOST_NAMES and all(map(kind, values))

    match values.get("says"):
        case [incarnation, sent_ns, versions, reaches, active, oldest] if (
            all(map(whole, (incarnation, sent_ns, active, oldest)))
            and all_of(versions, whole)
            and all_of(reaches, lambda each: all_of(each, whole))
            and len(versions) == len(reaches)
        ):
            reached = tuple(map(tuple, reaches))
            return Beat(incarnation, sent_ns, tuple(versions), reached, active, oldest)
    raise MessageError("a beat says who lives, reaches whom and runs what, but this one says something else")


class Peer:
    """One other agent at one address; used in an event loop.

    Args:
        changed: called when the connection begins to work, or when it broke.
    """

    def __init__(
        self, context: Any, name: str, endpoint: str, keys: Keys | None, ours: str, changed: Callable[[], None]
    ) -> None:
        self.name, self.endpoint = name, endpoint
        self._context, self._keys, self._ours, self._changed = context, keys, ours, changed
        self.key: bytes | None = None
        self._loop = asyncio.get_running_loop()
        self._place = read_address(endpoint)
        self.outbox = Outbox()
        self.works = False
        """Whether what is sent arrives: something was acknowledged, and since then nothing was missing for too long."""
        self.life = 0
        """How often a connection began to work."""
        self.incarnation = 0
        """Which life of it acknowledges."""
        self.beat: Beat | None = None
        self._beaten_s = self._dialed_s = -math.inf
        self._beats = self._dials = 0
        self._round_trip_s = 0.0
        self._finding: asyncio.Task[None] | None = None
        self._clocks: deque[tuple[float, int]] = deque(maxlen=_CLOCKS)
        self._socket: zmq.Socket[bytes] | None = None
        self.dial()

    # -- the connection ------------------------------------------------------------------------

    def dial(self) -> None:
        """Give up the connection, if there is one, and call anew."""
        self._hang_up()
        self._dialed_s = time.monotonic()
        self._dials += 1
        self._addresses = 1
        self.key = None if self._keys is None else self._keys.trust.key_of(self.name)
        try:
            ipaddress.ip_address(self._place.host.partition("%")[0])
        except ValueError:
            if self._finding is None or self._finding.done():
                self._finding = self._loop.create_task(self._find())
        else:
            self._connect(self._place.host)

    async def _find(self) -> None:
        """Look a name up, each time anew for it may have moved, and take one of its addresses after the other."""
        try:
            resolved = await self._loop.getaddrinfo(self._place.host, self._place.port, type=socket.SOCK_STREAM)
        except OSError:
            return  # the next dial tries again
        hosts = list(dict.fromkeys(str(address[4][0]) for address in resolved))
        if self._socket is None and hosts:
            self._dialed_s, self._addresses = time.monotonic(), len(hosts)
            with contextlib.suppress(PortendError):  # the next dial tries again
                self._connect(hosts[self._dials % len(hosts)])

    def _connect(self, host: str) -> None:
        silence_s = self.outbox.silence_s
        known = self._round_trip_s
        connect_s = max(silence_s / 2, 4 * known) if known else silence_s / 2 * (1 << self._dials % 5)
        made = call(
            self._context, self.name, str(Address(host, self._place.port)), self._keys, self._ours, self._listen,
            connect_ms=int(1e3 * connect_s) + 1, heartbeat_s=0,
        )  # fmt: skip
        self._socket = made
        self._loop.add_reader(made.fileno(), self._turn)
        self._loop.call_soon(self._turn)

    def _attempt_s(self) -> float:
        """How long an open connection may take to work: some round trips, now more and now less."""
        return max(3 * self.outbox.silence_s, 16 * self._round_trip_s) * (1 << self._dials % 3)

    def _listen(self, socket: zmq.Socket[bytes]) -> None:
        """Hear of connections that break, or that nobody takes."""
        self._monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED)

    def _hang_up(self) -> None:
        self._broke()
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
            self._socket.close(linger=0)
            self._socket = None

    def close(self) -> None:
        """Hang up for good."""
        self._changed = lambda: None
        if self._finding is not None:
            self._finding.cancel()
        self._hang_up()

    def _broke(self) -> None:
        worked, self.works = self.works, False
        self.outbox.begin_anew()
        self._beats = 0
        self._beaten_s = -math.inf
        if worked:
            self._changed()

    def watch(self, now: float, silence_s: float) -> None:
        """Notice a connection that broke or carries nothing, and make another one."""
        self.outbox.silence_s = silence_s
        again = False
        while self._socket is not None and self._monitor.poll(0):
            event = parse_monitor_message(self._monitor.recv_multipart())["event"]
            again = again or event == zmq.EVENT_DISCONNECTED or self._addresses > 1  # another address may answer
        if self.works:
            again = again or self.outbox.silent(now)
        elif self._finding is None or self._finding.done():
            again = again or now - self._dialed_s > self._attempt_s()
        if again:
            with contextlib.suppress(PortendError):  # its key is gone; the next dial tries again
                self.dial()

    # -- messages ------------------------------------------------------------------------------

    def post(self, head: bytes, payload: Any = None, done: Callable[[], None] | None = None) -> bool:
        """Send a message after those that wait, or say at once that the connection does not work."""
        if not self.works:
            return False
        self.outbox.put(head, payload, done)
        self._turn()
        return True

    def tell(self, beat: Callable[[], Beat], now: float, beat_s: float) -> None:
        """Send a beat if it is time: not before the one before it arrived, and less often over a long or a busy way."""
        least_s = self.outbox.silence_s if self.outbox.carries_data else beat_s
        if self._beats or now - self._beaten_s < max(least_s, 4 * (self.outbox.round_trip_s or 0.0)):
            return
        self._beats, self._beaten_s = 1, now
        self.outbox.put(beat().packed(), done=self._beat_arrived)
        self._turn()

    def _beat_arrived(self) -> None:
        self._beats = 0

    def hurry(self) -> None:
        """Let the next beat go as soon as it can: there is news."""
        self._beaten_s = -math.inf

    def _turn(self) -> None:
        """Read acknowledgments and send what may be sent, until there is nothing of either."""
        while self._socket is not None:
            events = int(self._socket.getsockopt(zmq.EVENTS))
            if events & zmq.POLLIN:
                self._read(self._socket)
                continue
            if not events & zmq.POLLOUT:
                return
            if (frames := self.outbox.next(time.monotonic())) is None:
                return
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)

    def _read(self, socket: zmq.Socket[bytes]) -> None:
        frames = socket.recv_multipart(zmq.NOBLOCK)
        now_ns = time.monotonic_ns()
        try:
            ack = Ack.read(frames[0])
        except MessageError:
            return
        sent_s = self.outbox.acked(ack, 1e-9 * now_ns)
        if sent_s is not None:
            self._arrived(ack, sent_s, now_ns)

    def _arrived(self, ack: Ack, sent_s: float, now_ns: int) -> None:
        if ack.incarnation != self.incarnation:
            self._clocks.clear()
            self.incarnation = ack.incarnation
        sent_ns = int(1e9 * sent_s)
        self._clocks.append((now_ns - sent_ns, ack.received_ns - (sent_ns + now_ns) // 2))
        self._round_trip_s = self.outbox.round_trip_s or 0.0
        if not self.works:
            self.works = True
            self.life += 1
            self._changed()

    # -- what it says --------------------------------------------------------------------------

    def hear(self, beat: Beat) -> bool:
        """Remember what it says, unless it said that earlier; return True if it was started again since the last."""
        last = self.beat
        if last is not None and last.incarnation == beat.incarnation and beat.sent_ns < last.sent_ns:
            return False
        self.beat = beat
        return last is not None and last.incarnation != beat.incarnation

    @property
    def says(self) -> Beat | None:
        """What it said last, if the connection works and it is the life that says so."""
        return self.beat if self.works and self.beat and self.beat.incarnation == self.incarnation else None

    @property
    def round_trip_s(self) -> float | None:
        """Seconds of the least round trip of the last 10 to 20 s; None while there is no connection."""
        return self.outbox.round_trip_s

    def transfer_s(self, sent_ns: int, received_ns: int) -> float | None:
        """Seconds that a message of it took, by its clock as estimated from the quickest round trip; None if unknown.

        Right within half the difference between the two ways (Cristian 1989, "Probabilistic clock synchronization").
        """
        if not self._clocks:
            return None
        return 1e-9 * (received_ns - (sent_ns - min(self._clocks)[1]))
