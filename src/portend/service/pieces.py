"""Messages between agents go in pieces, each acknowledged on its connection, with few bytes on the way at once.

So a life sign waits behind a tenth of a second of data and not behind all that is due, every piece that arrives shows
that the way works, and the sender knows what it still has itself. Three things are learned from the acknowledgments:

- the round trip without a queue: the least of the last 10 to 20 s. Every 10 s (less often where that takes long) the
  way is let run empty for it.
- the rate, from below: bytes on the way by their round trip.
- the window, the bytes that may be on the way: as many as keep the round trip within 0.1 s of the one without a queue.
  It grows by what is acknowledged while it is full (by thrice that as long as there is no queue), and falls to what
  would have kept the limit when that is exceeded (by delay and not by loss, as LEDBAT, RFC 6817).

Nothing here touches sockets or clocks; the caller says what time it is.
"""

from __future__ import annotations

import math
import struct
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from portend.errors import MessageError

__all__ = ["Ack", "Assembly", "Outbox", "is_piece"]

_MAGIC: Final = 0xC1  # no msgpack begins with it
_PIECE: Final = struct.Struct("!BIII")
_ACK: Final = struct.Struct("!BIIQq")
_QUEUE_S: Final = 0.1
_LEAST: Final = 512
_FULL: Final = 1390
"""Bytes of the smallest piece, and of one that fills a packet."""
_INLINE: Final = 4096
"""Bytes of a piece up to which it is copied behind its header: a frame more costs 35 bytes and more time than that."""
_EXTRA: Final = 120
"""Bytes of a small message besides its payload: encryption, framing, TCP, IP."""
_EPOCH_S: Final = 10.0
_DRAINS: Final = 32
"""An epoch is so many times what the way takes to run empty, if that is longer."""
_MOST_BYTES: Final = 64 << 20
_MOST_AT_ONCE: Final = 2
"""Unfinished messages that are kept of one sender: of a connection and of the one before it."""


@dataclass(frozen=True, slots=True)
class Ack:
    """Says that a piece was read: message ``number`` up to byte ``end``, by which life of the agent, and when."""

    number: int
    end: int
    incarnation: int
    received_ns: int

    def packed(self) -> bytes:
        """Return it as a frame."""
        return _ACK.pack(_MAGIC, self.number, self.end, self.incarnation, self.received_ns)

    @classmethod
    def read(cls, frame: bytes) -> Ack:
        """Return what a frame says; MessageError if it is no acknowledgment."""
        if len(frame) != _ACK.size or frame[0] != _MAGIC:
            raise MessageError(f"an acknowledgment has {_ACK.size} bytes, but got {len(frame)}")
        return cls(*_ACK.unpack(frame)[1:])


# -- the sender ------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class _Message:
    head: bytes
    payload: memoryview
    done: Callable[[], None] | None
    number: int = -1
    sent: int = 0


@dataclass(frozen=True, slots=True)
class _OnTheWay:
    number: int
    end: int
    bytes: int
    flight: int
    sent_s: float
    full: bool
    done: Callable[[], None] | None


class Outbox:
    """What one connection has to send, and what is on its way there."""

    def __init__(self, silence_s: float = 1.0) -> None:
        self.silence_s = silence_s
        self._urgent: deque[_Message] = deque()
        self._data: deque[_Message] = deque()
        self._on_the_way: deque[_OnTheWay] = deque()
        self._number = 0
        self._epoch_s = -math.inf
        self._least: list[float] = [math.inf, math.inf]  # round trips, of this and of the last 10 s
        self._rates: list[float] = [0.0, 0.0]  # bytes/s, the largest
        self._draining = self._filled = False
        self._acked_s = -math.inf
        self._window = 0.0
        self.flight = 0
        """Bytes on the way."""

    @property
    def carries_data(self) -> bool:
        """Whether more than a life sign is on the way or waits."""
        return bool(self._data) or len(self._on_the_way) > 1

    @property
    def round_trip_s(self) -> float | None:
        """Seconds of the least round trip of late; None before there was any."""
        least = min(self._least)
        return least if math.isfinite(least) else None

    @property
    def rate_bps(self) -> float | None:
        """Bit/s that the way carries at least; None before anything was acknowledged."""
        return 8 * max(self._rates) or None

    def put(self, head: bytes, payload: Any = None, done: Callable[[], None] | None = None) -> None:
        """Add a message; ``done`` is called when all of it arrived. Those without a payload go before the others."""
        queue = self._urgent if payload is None else self._data
        queue.append(_Message(head, memoryview(payload or b"").cast("B"), done))

    def clear(self) -> None:
        """Forget all messages; what is on the way is lost."""
        self._urgent.clear()
        self._data.clear()
        self._on_the_way.clear()
        self.flight, self._draining = 0, False

    def begin_anew(self) -> None:
        """Forget also what is known of the way: it is another connection."""
        self.clear()
        self._least, self._rates, self._window = [math.inf, math.inf], [0.0, 0.0], 0.0

    def _piece_bytes(self) -> int:
        """Bytes of a piece that the way carries in half of the silence; more on a quick one."""
        paced = max(self._rates) * self.silence_s / 2
        return int(min(max(paced, _LEAST), max(_FULL, self._window / 4)))

    def next(self, now: float) -> list[Any] | None:
        """Return the frames of the next piece, if one may be sent now; it counts as sent."""
        if now - self._epoch_s >= max(_EPOCH_S, _DRAINS * self._flight_s()):
            self._epoch_s = now
            self._least = [math.inf, self._least[0]]
            if self._filled:  # otherwise nothing new is known of the rate
                self._rates, self._filled = [0.0, self._rates[0]], False
            self._draining = bool(self.flight)
        self._draining = self._draining and self.flight > 0
        if self._urgent:
            message = self._urgent.popleft()
            message.number = self._next_number()
            self._sent(message, 0, _EXTRA + len(message.head), now, last=True)
            return [_PIECE.pack(_MAGIC, message.number, 0, 0) + message.head]
        if not self._data or self._draining:
            return None
        message, size = self._data[0], self._piece_bytes()
        left = len(message.payload) - message.sent
        room = int(max(self._window, 2 * (size + 2 * _EXTRA)) - self.flight) - _EXTRA  # two pieces and a life sign
        if self.flight and room < min(left, size):
            return None
        part = message.payload[message.sent : message.sent + (left if left <= room else size)]
        if not message.sent:
            message.number = self._next_number()
        piece = _PIECE.pack(_MAGIC, message.number, message.sent, len(message.payload))
        inline = message.sent and len(part) <= _INLINE
        frames = [piece + part] if inline else [piece + (b"" if message.sent else message.head), part]
        message.sent += len(part)
        last = message.sent == len(message.payload)
        self._sent(message, message.sent, _EXTRA + len(part), now, last=last, full=not last or len(part) >= room - size)
        if last:
            self._data.popleft()
        return frames

    def _next_number(self) -> int:
        self._number = (self._number + 1) & 0xFFFFFFFF
        return self._number

    def _sent(self, message: _Message, end: int, size: int, now: float, *, last: bool, full: bool = False) -> None:
        self.flight += size
        done = message.done if last else None
        self._on_the_way.append(_OnTheWay(message.number, end, size, self.flight, now, full, done))

    def acked(self, ack: Ack, now: float) -> float | None:
        """Take an acknowledgment in, and those before it that got lost; return when its piece was sent, if it was."""
        if not any((piece.number, piece.end) == (ack.number, ack.end) for piece in self._on_the_way):
            return None
        self._acked_s, before = now, self.flight
        while True:
            piece = self._on_the_way.popleft()
            self.flight -= piece.bytes
            if piece.done is not None:
                piece.done()
            if (piece.number, piece.end) == (ack.number, ack.end):
                break
        self._learn(piece, before - self.flight, max(now - piece.sent_s, 1e-6))
        return piece.sent_s

    def _learn(self, piece: _OnTheWay, acked: int, round_trip_s: float) -> None:
        self._least[0] = min(self._least[0], round_trip_s)
        self._rates[0] = max(self._rates[0], piece.flight / round_trip_s)
        self._filled = self._filled or piece.full
        allowed_s = min(self._least) + _QUEUE_S
        if not self._window:
            self._window = piece.flight / round_trip_s * self.silence_s / 2
        elif piece.full and round_trip_s > allowed_s:
            self._window = min(self._window, piece.flight * allowed_s / round_trip_s)
        elif piece.full and piece.flight >= self._window / 2:
            grown = acked * (3 if round_trip_s < allowed_s - 0.9 * _QUEUE_S else 1)
            self._window = min(self._window + grown, _MOST_BYTES)

    def patience_s(self) -> float:
        """Seconds until an acknowledgment must have come: the silence, and twice what all on the way takes."""
        return self.silence_s + 2 * ((self.round_trip_s or 0.0) + self._flight_s())

    def _flight_s(self) -> float:
        """Seconds that all on the way takes by the rate, as far as that is known."""
        rate = max(self._rates)
        return self.flight / rate if rate else 0.0

    def excuse(self, now: float) -> None:
        """Wait anew for acknowledgments: this process stood still, and has not read what came."""
        self._acked_s = max(self._acked_s, now)

    def silent(self, now: float) -> bool:
        """Whether nothing was acknowledged for longer than it may take."""
        if not self._on_the_way:
            return False
        return now - max(self._on_the_way[0].sent_s, self._acked_s) > self.patience_s()


# -- the receiver ----------------------------------------------------------------------------------


def is_piece(frame: Any) -> bool:
    """Whether a first frame is that of a piece."""
    return len(frame) >= _PIECE.size and frame[0] == _MAGIC


@dataclass(eq=False, slots=True)
class _Begun:
    number: int
    size: int
    head: Any
    payload: bytearray = field(default_factory=bytearray)


class Assembly:
    """Puts the pieces of each sender's messages together again; holds no more than what really came."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._begun: dict[str, OrderedDict[bytes, _Begun]] = {}

    def add(self, sender: str, connection: bytes, frames: Sequence[Any]) -> tuple[int, int, list[Any] | None]:
        """Return a piece's number, where it ends, and the frames of its message if that is complete now.

        Raises:
            MessageError: it follows no other, or its message is too large.
        """
        _, number, offset, size = _PIECE.unpack_from(frames[0])
        parts = [frames[0][_PIECE.size :], *frames[1:]]
        if size > self._largest:
            raise MessageError(f"a frame has at most {self._largest} bytes, but got {size}")
        if len(parts) > 2 or not (parts[0] if not offset else size):
            raise MessageError(f"a piece has a header first, and then bytes, but got {len(parts)} frames at {offset}")
        end = offset + (sum(map(len, parts if offset else parts[1:])) if size else 0)
        if end > size or (size and end == offset):
            raise MessageError(f"a message of {size} bytes has no piece of bytes {offset} to {end}")
        begun = self._begun.setdefault(sender, OrderedDict())
        if not offset:
            if end == size:
                return number, end, list(parts)
            one = begun[connection] = _Begun(number, size, bytes(parts[0]))
            begun.move_to_end(connection)
            while len(begun) > _MOST_AT_ONCE:
                begun.popitem(last=False)
        else:
            found = begun.get(connection)
            if found is None or (found.number, len(found.payload)) != (number, offset):
                raise MessageError(f"a piece of message {number} at byte {offset} follows no other")
            one = found
        for part in parts if offset else parts[1:]:
            one.payload += part
        if end < size:
            return number, end, None
        del begun[connection]
        return number, end, [one.head, one.payload]
