"""What a link between two hosts does: round trip, one-way delay, jitter, rate, and how long messages of a size take.

A `Peer` receives, sends and answers on one side; `measure` asks it from the other, over TCP, as messages of a plan go.
Both are plain sockets, so that they run between any two processes: ``python -m portend.runtime.link_probe peer`` is
one that ends with its standard input.

A request is a fixed header with a secret that both sides were given, then as many bytes as it announces::

    4 B "PLK1" | 1 B what | 16 B secret | 8 B size

what: 0 hello, 1 take (size bytes follow), 2 give (size bytes are wanted)

The peer keeps nothing of what it takes, and sends zeros.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import math
import secrets
import socket
import statistics
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from pathlib import Path
from time import monotonic
from typing import Final

from portend.address import read_address
from portend.errors import DeploymentError, InvalidValue, law
from portend.runtime.arrivals import receive, stamp

__all__ = ["Budget", "LinkMeasurement", "Peer", "main", "measure"]

Connect = Callable[[], socket.socket]

_MAGIC: Final = b"PLK1"
_REQUEST: Final = struct.Struct("!4sB16sQ")
_ANSWER: Final = struct.Struct("!3d")
_HELLO, _TAKE, _GIVE = range(3)
_SECRET_BYTES: Final = 16
_CLOCK_BYTES: Final = 16
_LARGEST: Final = 256 << 20
_CHUNK: Final = 256 << 10
_PATIENCE_S: Final = 10.0
_STALLED_S: Final = 60.0  # without a byte: on the slowest links a packet takes 10 s
_STRANGER_S: Final = 2.0
_PROBES: Final = 25
_PROBE_GAP_S: Final = 2e-3
_FIRST_BULK: Final = 64 << 10
_TRIAL: Final = 4 << 10
_LEAST_BPS: Final = 1e3
"""What a link is taken to carry before its rate is known."""
_OF_PROBES: Final = 0.15
_OF_STREAMS: Final = 0.5
"""Shares of the budget after which probes, and then streams, have to end; the rest is for the transfer curve."""
_SKIPPED: Final = 0.5
_MARKS: Final = 48
_LEAST_PIECE: Final = 1500
"""Bytes that are read at once of a small message: about a packet."""
_STREAMS: Final = 3
_CONNECTIONS: Final = 3
_WARM: Final = 2
_SIZES: Final = (300, 1_000, 4_000, 16_000, 64_000, 256_000, 1_000_000, 4_000_000, 16_000_000)


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What measuring a link may take at most: seconds, and bytes over it in both directions together."""

    seconds: float = 20.0
    bytes: float = 64e6

    def __post_init__(self) -> None:
        law(
            self.seconds > 0 and self.bytes >= 1e5,
            f"measuring a link takes some time and at least 100 kB, but got {self.seconds} s and {self.bytes} B",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkMeasurement:
    """What was measured from one side (*there*: from it to the peer). Bytes and rates are payload, without headers.

    Attributes:
        round_trip_s: median; least_round_trip_s: of requests of ``probe_bytes`` and answers of ``answer_bytes``.
        one_way_s: medians there and back; jitter_s: mean difference between one and the next.
        clock_offset_s: the peer's clock less this one's; clock_error_s: by how much that may be off: half of the least
            round trip, or 0 where both sides read one clock.
        rates_bps: payload bit/s of a long stream there and back.
        sizes_bytes: of the messages of the transfer curve; warm_s, cold_s: their medians there (``TransferCurve``).
        congestion_control: of the connections here; empty where the system does not tell.
        seconds, bytes: what measuring took.
    """

    round_trip_s: float
    least_round_trip_s: float
    probe_bytes: int
    answer_bytes: int
    one_way_s: tuple[float, ...]
    jitter_s: tuple[float, ...]
    clock_offset_s: float
    clock_error_s: float
    rates_bps: tuple[float, ...]
    sizes_bytes: tuple[float, ...]
    warm_s: tuple[float, ...]
    cold_s: tuple[float, ...]
    congestion_control: str
    seconds: float
    bytes: float


# -- the peer --------------------------------------------------------------------------------------


class Peer:
    """Answers on a listening socket, one connection at a time, whoever knows the secret; a context manager.

    It holds one buffer, whatever is announced to it.
    """

    def __init__(self, listener: socket.socket, secret: bytes) -> None:
        self._listener, self._secret = listener, secret
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._buffer = bytearray(_CHUNK)
        stamp(listener)

    def __enter__(self) -> Peer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError, ValueError):
                self._attend(connection)

    def _attend(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stamp(connection)
        connection.settimeout(_STRANGER_S)
        while (request := self._request(connection)) is not None:
            what, size, arrived = request
            connection.settimeout(_STALLED_S)
            if what == _HELLO:
                connection.sendall(_clock(self._secret))
            elif what == _TAKE:
                last, rate_bps = _take(connection, size, self._buffer)
                connection.sendall(_ANSWER.pack(last if size else arrived, monotonic(), rate_bps))
            else:
                connection.sendall(struct.pack("!d", monotonic()))
                _send_zeros(connection, size)

    def _request(self, connection: socket.socket) -> tuple[int, int, float] | None:
        """What is asked, how many bytes, and when the question came; None at the end. ValueError for a stranger's."""
        buffer = memoryview(self._buffer)[: _REQUEST.size]
        got, arrived = 0, 0.0
        while got < _REQUEST.size:
            more, arrived, _ = receive(connection, buffer[got:])
            if not more:
                return None
            got += more
        magic, what, secret, size = _REQUEST.unpack(buffer)
        if magic != _MAGIC or not hmac.compare_digest(secret, self._secret) or what > _GIVE or size > _LARGEST:
            raise ValueError("not a request of ours")
        return what, size, arrived


def _take(connection: socket.socket, size: int, buffer: bytearray) -> tuple[float, float]:
    """Receive ``size`` bytes; return when the last of them came, and the rate of their second half in bit/s.

    In pieces, so that the kernel's word of when each came makes a rate also of bytes that were read late, all at once.
    """
    view, got, last = memoryview(buffer), 0, 0.0
    marks: list[tuple[int, float]] = []
    due, piece = _SKIPPED * size, max(_LEAST_PIECE, size // _MARKS)
    while got < size:
        more, last, _ = receive(connection, view[: min(len(view), piece, size - got)])
        if not more:
            raise ConnectionResetError("the other side hung up")
        got += more
        if got >= due:
            marks.append((got, last))
            due = got + (1 - _SKIPPED) * size / _MARKS
    return last, _rate(marks)


def _rate(marks: list[tuple[int, float]]) -> float:
    """Bit/s of a stream of which so many bytes had come at each moment: the median of the slopes between any two.

    So that arrivals that were late for once do not count (Theil and Sen). NaN where nothing is known.
    """
    slopes = [8 * (n - m) / (u - t) for (m, t), (n, u) in combinations(marks, 2) if u > t]
    return statistics.median(slopes) if slopes else math.nan


def _send_zeros(connection: socket.socket, size: int, before: bytes = b"") -> None:
    if size <= _CHUNK:
        connection.sendall(before + bytes(size))
        return
    connection.sendall(before)
    zeros = bytes(_CHUNK)
    while size:
        connection.sendall(zeros[: min(size, _CHUNK)])
        size -= min(size, _CHUNK)


def _clock(secret: bytes) -> bytes:
    """Names the clock that this process reads: equal on both sides only if they read the same one."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
        names = bytes(Path("/proc/self/ns/time").readlink())
        return hashlib.blake2b(boot + names, key=secret, digest_size=_CLOCK_BYTES).digest()
    return secrets.token_bytes(_CLOCK_BYTES)


# -- the side that asks ----------------------------------------------------------------------------


class _Session:
    """One connection to a peer."""

    def __init__(self, connect: Connect, secret: bytes) -> None:
        self.sock = connect()
        self.rate_bps = _LEAST_BPS
        """What the link carries at least, as far as it is known."""
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stamp(self.sock)
        self._secret = secret

    def __enter__(self) -> _Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def shares_clock(self) -> bool:
        self._wait_for(0)
        self.sock.sendall(_REQUEST.pack(_MAGIC, _HELLO, self._secret, 0))
        answer, _ = self._read(_CLOCK_BYTES)
        return answer == _clock(self._secret)

    def _wait_for(self, size: int) -> None:
        """Be patient for as long as so many bytes may take, twice."""
        self.sock.settimeout(_PATIENCE_S + 2 * 8 * size / self.rate_bps)

    def take(self, size: int) -> tuple[float, float, float, float, float]:
        """Send ``size`` bytes; return when sent, arrived (all of it), answered and back, and the stream's rate.

        Moments of the peer are by its clock.
        """
        self._wait_for(size)
        sent = monotonic()
        _send_zeros(self.sock, size, _REQUEST.pack(_MAGIC, _TAKE, self._secret, size))
        answer, back = self._read(_ANSWER.size)
        last, answered, rate_bps = _ANSWER.unpack(answer)
        return sent, last, answered, back, rate_bps

    def give(self, size: int) -> float:
        """Let the peer send ``size`` bytes and return the stream's rate."""
        self._wait_for(size)
        self.sock.sendall(_REQUEST.pack(_MAGIC, _GIVE, self._secret, size))
        self._read(8)
        return _take(self.sock, size, bytearray(_CHUNK))[1]

    def congestion_control(self) -> str:
        if not hasattr(socket, "TCP_CONGESTION"):
            return ""
        with contextlib.suppress(OSError):
            return self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).split(b"\0")[0].decode()
        return ""

    def _read(self, size: int) -> tuple[bytes, float]:
        buffer, got, arrived = bytearray(size), 0, 0.0
        while got < size:
            more, arrived, _ = receive(self.sock, memoryview(buffer)[got:])
            if not more:
                raise ConnectionResetError("the peer hung up; do both sides have one secret?")
            got += more
        return bytes(buffer), arrived


class _Purse:
    """What is left of a budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget, self._began, self.bytes = budget, monotonic(), 0

    @property
    def seconds(self) -> float:
        return monotonic() - self._began

    def allows(self, n_bytes: float, seconds: float, share: float = 1.0) -> bool:
        """Whether so much more stays within a share of the budget."""
        return (
            self.bytes + n_bytes <= share * self._budget.bytes
            and self.seconds + seconds <= share * self._budget.seconds
        )


def measure(connect: Connect, secret: bytes, budget: Budget | None = None) -> LinkMeasurement:
    """Measure the link to a peer.

    Round trips come first, then the rates; what the budget leaves goes into the transfer curve, from small messages to
    large ones. The smallest streams and messages are sent whatever it says.

    Args:
        connect: makes a new connection to the peer.

    Raises:
        DeploymentError: the peer is not there, does not answer in time, or has another secret.
    """
    purse = _Purse(budget or Budget())
    try:
        with _Session(connect, secret) as session:
            one_clock = session.shares_clock()
            probes = _probe(session, purse)
            least = min(probes, key=lambda p: (p[3] - p[0]) - (p[2] - p[1]))
            offset = 0.0 if one_clock else ((least[1] - least[0]) + (least[2] - least[3])) / 2
            round_trips = [(back - sent) - (answered - arrived) for sent, arrived, answered, back in probes]
            there = [arrived - sent - offset for sent, arrived, _, _ in probes]
            home = [back - answered + offset for _, _, answered, back in probes]
            rates = _rates(session, purse, min(round_trips))
            control = session.congestion_control()
        sizes, warm, cold = _curve(connect, secret, purse, rates[0], min(round_trips), offset)
    except (TimeoutError, ConnectionError) as error:
        raise DeploymentError(
            f"the peer of a link does not answer ({str(error) or type(error).__name__}); check that it runs and that "
            "messages reach it"
        ) from None
    return LinkMeasurement(
        round_trip_s=statistics.median(round_trips),
        least_round_trip_s=min(round_trips),
        probe_bytes=_REQUEST.size,
        answer_bytes=_ANSWER.size,
        one_way_s=(statistics.median(there), statistics.median(home)),
        jitter_s=(_jitter(there), _jitter(home)),
        clock_offset_s=offset,
        clock_error_s=0.0 if one_clock else min(round_trips) / 2,
        rates_bps=rates,
        sizes_bytes=sizes,
        warm_s=warm,
        cold_s=cold,
        congestion_control=control,
        seconds=purse.seconds,
        bytes=float(purse.bytes),
    )


def _probe(session: _Session, purse: _Purse) -> list[tuple[float, float, float, float]]:
    """Moments sent, arrived, answered and back of small requests; fewer where a round trip is long."""
    probes: list[tuple[float, float, float, float]] = []
    session.take(0)  # warms both sides
    began = monotonic()
    for _ in range(_PROBES):
        round_trip_s = (monotonic() - began) / max(len(probes), 1)
        if len(probes) >= 3 and not purse.allows(0, round_trip_s, _OF_PROBES):
            break
        sent, arrived, answered, back, _ = session.take(0)
        purse.bytes += _REQUEST.size + _ANSWER.size
        probes.append((sent, arrived, answered, back))
        time.sleep(_PROBE_GAP_S)
    return probes


def _rates(session: _Session, purse: _Purse, round_trip_s: float) -> tuple[float, float]:
    """Payload bit/s there and back: medians of streams that take some round trips, as far as their budget reaches.

    Shorter ones, each longer than the one before it, say how long those are; they also open the windows. A stream that
    came in one piece tells no rate: whatever the budget says, a longer one follows it.

    Raises:
        DeploymentError: the longest stream came in one piece.
    """
    wanted_s = max(0.2, 5 * round_trip_s)
    began = monotonic()
    session.take(_TRIAL)
    took_s = monotonic() - began
    purse.bytes += _TRIAL
    session.rate_bps = 8 * _TRIAL / took_s
    size = _FIRST_BULK if took_s * _FIRST_BULK / _TRIAL < 10 * wanted_s else _TRIAL
    there: list[float] = []
    back: list[float] = []
    while len(there) < _STREAMS:
        began = monotonic()
        there.append(session.take(size)[-1])
        back.append(session.give(size))
        took_s = monotonic() - began
        purse.bytes += 2 * size
        known = all(map(math.isfinite, (*there, *back)))
        session.rate_bps = max(session.rate_bps, 8 * size / took_s)
        grown = size if known and took_s >= 2 * wanted_s else min(4 * size, _LARGEST)
        if known and not purse.allows(2 * grown, took_s * grown / size, _OF_STREAMS):
            break
        if grown > size:
            there, back, size = [], [], grown
        elif not known:
            raise DeploymentError(f"{size:,} bytes came over a link at one moment: its rate cannot be measured")
    return statistics.median(there), statistics.median(back)


def _curve(
    connect: Connect, secret: bytes, purse: _Purse, rate_bps: float, round_trip_s: float, offset: float
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Sizes, and medians of messages there on warm and on new connections, as the nearest curves that do not fall."""
    sizes: list[float] = []
    warm: list[float] = []
    cold: list[float] = []
    messages = _CONNECTIONS * (1 + _WARM)
    for size in _SIZES:
        if sizes and not purse.allows(
            messages * size, messages * 8 * size / rate_bps + (messages + _CONNECTIONS) * round_trip_s
        ):
            break
        first: list[float] = []
        later: list[float] = []
        for _ in range(_CONNECTIONS):
            with _Session(connect, secret) as session:
                session.rate_bps = max(rate_bps, _LEAST_BPS)
                for found in (first, *[later] * _WARM):
                    sent, arrived, *_ = session.take(size)
                    purse.bytes += size + _REQUEST.size
                    found.append(arrived - sent - offset)
        sizes.append(float(size))
        warm.append(max(statistics.median(later), 0.0))
        cold.append(max(statistics.median(first), 0.0))
    return tuple(sizes), _rising(warm), _rising(cold)


def _rising(values: list[float]) -> tuple[float, ...]:
    """The nearest values, by least squares, none of which is less than the one before it (pool adjacent violators)."""
    pools: list[tuple[float, int]] = []
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, m), (b, n) = pools[-2:]
            pools[-2:] = [((a * m + b * n) / (m + n), m + n)]
    return tuple(value for value, count in pools for _ in range(count))


def _jitter(one_way_s: list[float]) -> float:
    """Mean difference between one delay and the next (RFC 3550, 6.4.1, without its smoothing)."""
    return statistics.fmean(abs(b - a) for a, b in pairwise(one_way_s))


# -- as processes ----------------------------------------------------------------------------------


def main() -> int:
    """Be a peer (``peer HOST [PORT]``), or measure one (``measure HOST:PORT SECONDS BYTES``), with the secret on stdin.

    A peer says its port on stdout and ends with stdin; who measures prints JSON.
    """
    what, where, *limits = sys.argv[1:]
    secret = bytes.fromhex(sys.stdin.readline())
    try:
        if what == "peer":
            family = socket.AF_INET6 if ":" in where else socket.AF_INET
            listener = socket.create_server((where, int(limits[0]) if limits else 0), family=family)
            with Peer(listener, secret):
                print(listener.getsockname()[1], flush=True)
                sys.stdin.read()
            return 0
        target = read_address(where, least_port=1)
        budget = Budget(seconds=float(limits[0]), bytes=float(limits[1]))
        found = measure(lambda: socket.create_connection(target, _PATIENCE_S), secret, budget)
    except (DeploymentError, InvalidValue, OSError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    print(json.dumps(asdict(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
