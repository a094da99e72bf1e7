"""The other agents as one agent knows them: a connection to each, whether it lives, and what its clock says."""

from __future__ import annotations

import math
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import zmq
from zmq.utils.monitor import parse_monitor_message

from portend.errors import DeploymentError, MessageError
from portend.runtime.messages import pack_control
from portend.service.keys import Keys

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
) -> zmq.Socket[bytes]:
    """Return a socket that connects to the agent ``name`` at host:port, and again whenever the connection breaks.

    It holds nothing for who is not there: what is sent then is refused with ``zmq.Again``. ``before`` gets the socket
    before it connects. The far socket hands a routing id over to a new connection (``ZMQ_ROUTER_HANDOVER``), so the id
    is 128 random bits after ``ours``: nobody else can guess it, and a new socket never meets the id of an old one.

    Raises:
        ConfigError: there is no public key of that name. DeploymentError: this is no endpoint.
    """
    socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.IDENTITY, f"{ours}/{secrets.token_hex(16)}".encode())
    socket.setsockopt(zmq.IMMEDIATE, 1)
    socket.setsockopt(zmq.MAXMSGSIZE, _LARGEST)
    socket.setsockopt(zmq.SNDHWM, _HELD)
    socket.setsockopt(zmq.RCVHWM, _HELD)
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, 1000)  # then it calls again; the system's own pauses double each time
    socket.setsockopt(zmq.HANDSHAKE_IVL, 3000)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 1000)  # a dead connection is given up, so that a new one can be made
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3000)
    socket.setsockopt(zmq.IPV6, 1)
    try:
        if keys is not None:
            keys.call(socket, name)
        before(socket)
        socket.connect(f"tcp://{endpoint}")
    except zmq.ZMQError as error:
        socket.close()
        raise DeploymentError(
            f"{name} cannot be called at {endpoint!r} ({error}); state host and port in the topology"
        ) from None
    except BaseException:
        socket.close()
        raise
    return socket


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """What an agent says of itself, a few times a second.

    Attributes:
        incarnation: another one whenever its process is started. versions: of the releases it can run.
        sent_ns: its monotonic clock. echo_ns: the ``sent_ns`` of ours that it heard last, and when by its clock; 0
            and 0 if none. hears: the agents that it hears; reaches: those to which its own connection stands.
        active, oldest: from the source: the release that new samples take, and the oldest in use; 0 from others.
    """

    incarnation: int
    versions: tuple[int, ...]
    sent_ns: int
    echo_ns: tuple[int, int]
    hears: tuple[str, ...]
    reaches: tuple[str, ...]
    active: int
    oldest: int

    def packed(self) -> bytes:
        """Return the beat as a control message."""
        return pack_control("beat", **{name: getattr(self, name) for name in self.__slots__})


def read_beat(values: dict[str, Any]) -> Beat:
    """Return the beat in a control message; MessageError if it is none."""

    def whole(value: Any) -> bool:
        return type(value) is int and 0 <= value < 1 << 63

    def all_of(value: Any, most: int, kind: Any) -> bool:
        return isinstance(value, list) and len(value) <= most and all(map(kind, value))

    fine = (
        all(whole(values.get(name)) for name in ("incarnation", "sent_ns", "active", "oldest"))
        and all_of(values.get("versions"), _MOST_NAMES, whole)
        and all_of(values.get("echo_ns"), 2, whole)
        and len(values["echo_ns"]) == 2
        and all(
            all_of(values.get(key), _MOST_NAMES, lambda name: isinstance(name, str)) for key in ("hears", "reaches")
        )
    )
    if not fine:
        raise MessageError("a beat says who lives, hears whom and runs what, but this one says something else")
    return Beat(
        incarnation=values["incarnation"],
        versions=tuple(values["versions"]),
        sent_ns=values["sent_ns"],
        echo_ns=(values["echo_ns"][0], values["echo_ns"][1]),
        hears=tuple(values["hears"]),
        reaches=tuple(values["reaches"]),
        active=values["active"],
        oldest=values["oldest"],
    )


class Peer:
    """One other agent."""

    def __init__(self, context: Any, name: str, endpoint: str, keys: Keys | None, ours: str) -> None:
        self.name, self.endpoint = name, endpoint
        self._monitor: zmq.Socket[bytes]
        self._socket = call(context, name, endpoint, keys, ours, self._listen)
        self.key = None if keys is None else keys.trust.key_of(name)
        self.connected = False
        self.beat: Beat | None = None
        self.heard_s = -math.inf
        self._heard_ns = 0
        self._clocks: deque[tuple[int, int]] = deque(maxlen=_CLOCKS)

    def _listen(self, socket: zmq.Socket[bytes]) -> None:
        """Hear of connections from the first one on."""
        self._monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)

    def close(self) -> None:
        """Hang up."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)

    def post(self, frames: Sequence[Any]) -> bool:
        """Send a message, or say at once that it cannot be sent; what is lost on its way is lost."""
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        return True

    def alive(self, now: float, silence_s: float) -> bool:
        """Whether it said something of late."""
        return now - self.heard_s < silence_s

    def watch(self) -> bool:
        """Notice what became of the connection; whether it broke. Then it is taken for dead until it is heard."""
        broke = False
        while self._monitor.poll(0):
            event = parse_monitor_message(self._monitor.recv_multipart())["event"]
            self.connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            broke = broke or not self.connected
        if broke:
            self.heard_s = -math.inf
        return broke

    def hear(self, beat: Beat, now_ns: int) -> bool:
        """Remember what it says; whether it is another life of it than before."""
        reborn = self.beat is not None and self.beat.incarnation != beat.incarnation
        if reborn:
            self._clocks.clear()
        self.beat, self.heard_s, self._heard_ns = beat, 1e-9 * now_ns, now_ns
        ours, theirs = beat.echo_ns
        if ours and ours <= now_ns:
            round_trip = (now_ns - ours) - (beat.sent_ns - theirs)
            self._clocks.append((round_trip, ((theirs - ours) + (beat.sent_ns - now_ns)) // 2))
        return reborn

    @property
    def echo_ns(self) -> tuple[int, int]:
        """What our next beat to it says of its last one."""
        return (self.beat.sent_ns, self._heard_ns) if self.beat else (0, 0)

    @property
    def round_trip_s(self) -> float | None:
        """The least round trip of late; None before there was any."""
        return 1e-9 * min(self._clocks)[0] if self._clocks else None

    def transfer_s(self, sent_ns: int, received_ns: int) -> float | None:
        """Seconds that a message of it took, by its clock as estimated from the quickest round trip; None if unknown.

        Right within half the difference between the two ways (Cristian 1989, "Probabilistic clock synchronization").
        """
        if not self._clocks:
            return None
        return 1e-9 * (received_ns - (sent_ns - min(self._clocks)[1]))
