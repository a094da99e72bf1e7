"""The socket on which an agent hears others: messages are read in turns, checked, and handed on with their sender.

What comes from the network is trusted as far as its key goes; sizes and forms are checked here, before anything of a
message is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import zmq

from portend.address import Address
from portend.errors import DeploymentError, MessageError, PortendError
from portend.runtime.protocol import Header, pack_control, unpack_control, unpack_header
from portend.service.drops import Drops
from portend.service.keys import OPERATOR, Keys
from portend.service.metrics import Metrics
from portend.service.pieces import Ack, Assembly, is_piece

__all__ = ["Inbox", "Received", "read_message"]

_LOG: Final = logging.getLogger("portend.service")
_LARGEST_FRAME: Final = 64 << 20
_MOST_FRAMES: Final = 2
_MOST_AT_ONCE: Final = 16  # messages that are read before anything else has its turn


def read_message(frames: Sequence[Any]) -> tuple[Header | dict[str, Any], Any]:
    """Return what a message says and its payload (None if it has none).

    Args:
        frames: bytes or memory; a header or a control message, and at most one payload.

    Raises:
        MessageError: too many frames, too large, malformed, or of another version.
    """
    if not 1 <= len(frames) <= _MOST_FRAMES:
        raise MessageError(f"a message has one or two frames, but got {len(frames)}")
    if any(len(frame) > _LARGEST_FRAME for frame in frames):
        raise MessageError(f"a frame has at most {_LARGEST_FRAME} bytes, but got {max(map(len, frames))}")
    head, payload = bytes(frames[0]), frames[1] if len(frames) > 1 else None
    if head[:1] and 0x90 <= head[0] <= 0x9F:
        return unpack_header(head), payload
    return unpack_control(head), payload


@dataclass(frozen=True, slots=True)
class Received:
    """A message that is well formed.

    Attributes:
        sender: name of the key that sent it; empty if it is nobody's. routing: where a reply goes.
        content: a header of data, or a control message. payload: bytes or memory; None if there is none.
        received_ns: by our monotonic clock.
    """

    sender: str
    routing: bytes
    content: Header | dict[str, Any]
    payload: Any
    received_ns: int


class Inbox:
    """The inbox of one agent; used in an event loop.

    Args:
        listen: its address. keys: None for plain text. incarnation: which life of the agent acknowledges.
        received: gets every message; what it raises costs that message alone.

    Raises:
        DeploymentError: the address is in use.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        listen: Address,
        *,
        keys: Keys | None,
        incarnation: int,
        metrics: Metrics,
        drop: Drops,
        received: Callable[[Received], None],
    ) -> None:
        self._keys, self._incarnation, self._metrics = keys, incarnation, metrics
        self._drop, self._received = drop, received
        self._loop = asyncio.get_running_loop()
        self._assembly = Assembly(_LARGEST_FRAME)
        self._acks: dict[bytes, Ack] = {}  # that are due, by connection
        self._scheduled = False
        self._socket = self._bind(context, listen)

    def _bind(self, context: zmq.Context[zmq.Socket[bytes]], listen: Address) -> zmq.Socket[bytes]:
        inbox: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        inbox.setsockopt(zmq.LINGER, 0)
        inbox.setsockopt(zmq.MAXMSGSIZE, 4 * _LARGEST_FRAME)
        inbox.setsockopt(zmq.RCVHWM, 100)
        inbox.setsockopt(zmq.SNDHWM, 1000)
        inbox.setsockopt(zmq.HANDSHAKE_IVL, 10_000)  # about 1.5 kB each way, on links of some kbit/s too
        for option, value in ((zmq.TCP_KEEPALIVE, 1), (zmq.TCP_KEEPALIVE_IDLE, 10), (zmq.TCP_KEEPALIVE_INTVL, 5)):
            inbox.setsockopt(option, value)  # who called and vanished is forgotten
        inbox.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
        inbox.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a connection that is made anew takes the place of the broken one
        inbox.setsockopt(zmq.IPV6, int(":" in listen.host))
        if self._keys is not None:
            self._keys.serve(inbox)
        try:
            inbox.bind(f"tcp://{listen}")
        except zmq.ZMQError as error:
            raise DeploymentError(f"{listen} cannot be used ({error}); choose another --listen") from None
        return inbox

    def open(self) -> None:
        """Hand messages on from now on."""
        self._loop.add_reader(self._socket.fileno(), self._receive_soon)
        self._receive_soon()

    def close(self) -> None:
        """Hand on no more; the socket ends with its context."""
        self._loop.remove_reader(self._socket.fileno())

    def reply(self, routing: bytes, command: str, **values: Any) -> None:
        """Send a control message to who sent one."""
        with contextlib.suppress(zmq.Again, zmq.ZMQError):  # who is gone, or takes nothing, asks again
            self._socket.send_multipart([routing, pack_control(command, **values)], zmq.NOBLOCK)
        self._receive_soon()  # a message that came meanwhile is not announced again

    def _receive_soon(self) -> None:
        """Read in the loop's next turn, once however often it is asked for."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._receive)

    def _receive(self) -> None:
        """Read what came, and let others have a turn after some messages."""
        self._scheduled = False
        if self._socket.closed:
            return
        for _ in range(_MOST_AT_ONCE):
            if not int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                if not self._acknowledge():
                    return
                continue  # what came while that was sent is not announced
            frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            received_ns = time.monotonic_ns()
            self._metrics.received_bytes.inc(sum(len(frame) for frame in frames))
            try:
                self._read(frames, received_ns)
            except PortendError as error:
                self._drop("malformed", error)
            except Exception:  # whatever a message does, the agent lives on
                self._metrics.dropped.labels("error").inc()
                _LOG.exception("a message could not be handled")
        self._acknowledge()
        self._receive_soon()

    def _acknowledge(self) -> bool:
        """Acknowledge the last piece of each connection, and so those before it; return whether there was any."""
        acks, self._acks = self._acks, {}
        for routing, ack in acks.items():
            with contextlib.suppress(zmq.Again, zmq.ZMQError):  # the next one says the same of these pieces
                self._socket.send_multipart([routing, ack.packed()], zmq.NOBLOCK)
        return bool(acks)

    def _read(self, frames: Sequence[zmq.Frame], received_ns: int) -> None:
        routing, parts = frames[0].bytes, [frame.buffer for frame in frames[1:]]
        sender = self._sender(frames[0] if len(frames) < 2 else frames[1], routing)
        if parts and is_piece(parts[0]):
            whole = self._piece(sender, routing, parts, received_ns)
            if whole is None:
                return
            parts = whole
        try:
            content, payload = read_message(parts)
        except MessageError as error:
            if sender == OPERATOR:
                self.reply(routing, "error", message=str(error))
            raise
        self._received(Received(sender, routing, content, payload, received_ns))

    def _piece(self, sender: str, routing: bytes, parts: list[Any], received_ns: int) -> list[Any] | None:
        """Take a piece of a message, to be acknowledged; return the message's frames if it is complete."""
        if not sender or sender == OPERATOR:
            self._drop("not_allowed", f"{sender!r} is no tier and sends no pieces")
            return None
        number, end, whole = self._assembly.add(sender, routing, parts)
        self._acks[routing] = Ack(number, end, self._incarnation, received_ns)
        return whole

    def _sender(self, frame: zmq.Frame, routing: bytes) -> str:
        """Name of the key that sent it; in plain text the name that the sender gives itself."""
        if self._keys is None:
            return routing.partition(b"/")[0].decode(errors="replace")
        try:
            return self._keys.trust.name_of(str(frame.get("User-Id")).encode())
        except zmq.ZMQError:
            return ""
