"""Links between network namespaces, in user space: for kernels without netem, and for bandwidth over time.

Each end of a link is a TUN device. One process reads the IP packets that the kernel puts on them, and writes each to
the other end when it has arrived there: a link direction is a FIFO server, which a packet of s bytes on the wire holds
for 8 s / bandwidth, and from which it arrives the propagation delay later, whole (`Wire`). The kernel of a tier in
between routes it on to the next link. So packets take what `Topology.transmission_s` and `Topology.propagation_s` say
(paper, L_{i→j} and Lat^prop), and TCP's own packets, acknowledgments too, take their turn like all others.

What is on the wire: a packet of n bytes as IP has it, headers included, counts n + header_bytes − 52. With the default
headers of a link, 52 bytes of IPv4 and TCP with timestamps, that is the packet itself; larger ones stand for layers
below IP. The devices' MTU is such that the largest packet has the link's ``mtu_bytes`` (`device_mtu`).

Times are virtual: a process that wakes up late delivers late, but shifts nothing that comes after.

``python -m portend.testbed.emulation.forwarder`` is that process (`Forwarder` starts and stops it). Lines of JSON:

- stdin: first ``{"testbed": id, "wires": [{"from": fd, "to": fd, "link": {...}, "trace": {...} or null}, ...]}``, with
  file descriptors of TUN devices that it inherits; later ``"rewind"``, which lets traces begin anew and forgets what
  was counted, and ``"report"``;
- stdout: one line in answer to each, the moment of it on the monotonic clock and, for each wire, what was counted;
- at the end of stdin, SIGTERM or SIGINT it removes what its testbed has put into the kernel, and ends with status 0;
  with status 2 and one line on stderr if it cannot do what the first line says.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import json
import os
import select
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from time import monotonic
from typing import Any, Final, NoReturn, Self

from portend.errors import DeploymentError, PortendError, law
from portend.testbed.emulation.child import Child
from portend.testbed.emulation.remains import erase
from portend.testbed.emulation.traces import BandwidthTrace
from portend.values.topology import Link

__all__ = ["Forwarder", "Wire", "WireEnds", "device_mtu", "main", "wire_bytes"]

IP_TCP_BYTES: Final = 52
"""Headers that every TCP packet of Linux has: IPv4 20, TCP 20, timestamps 12."""

LATE_S: Final = 0.5e-3
"""A packet that is written later than this after it was due counts as late."""

_BURST: Final = 32  # packets of one device before the others have their turn
_SPIN_S: Final = 80e-6  # a sleeper wakes up late by about that; the rest is spent watching the clock
_MOST_QUEUED_BYTES: Final = 1 << 26  # of one wire; then packets are dropped, and counted


def device_mtu(link: Link) -> int:
    """Return the largest IP packet of a link, such that it has ``mtu_bytes`` on the wire; InvalidValue if none fits."""
    mtu = link.mtu_bytes - link.header_bytes + IP_TCP_BYTES
    law(
        68 <= mtu <= 65535,
        f"an IP packet has 68–65535 bytes, but a link with mtu {link.mtu_bytes} B and headers {link.header_bytes} B "
        f"takes {mtu} B of IP, of which {IP_TCP_BYTES} B are headers; change its mtu or headers",
    )
    return mtu


def wire_bytes(link: Link, ip_bytes: int) -> int:
    """Return the bytes on the wire of an IP packet of ``ip_bytes``, headers included."""
    return max(0, ip_bytes + link.header_bytes - IP_TCP_BYTES)


class Wire:
    """One direction of a link: a server with a rate, and a delay behind it.

    Times are seconds of one clock; ``begin_s`` is where a trace starts. A trace takes the place of the bandwidth.
    """

    __slots__ = ("begin_s", "free_s", "link", "trace")

    def __init__(self, link: Link, trace: BandwidthTrace | None = None, begin_s: float = 0.0) -> None:
        self.link = link
        self.trace = trace
        self.begin_s = begin_s
        self.free_s = -float("inf")

    def admit(self, now_s: float, ip_bytes: int) -> float:
        """Return when an IP packet arrives at the other end that is put on the wire now; times must not decrease.

        It waits until the packets before it have left, takes 8 s / bandwidth, and arrives the delay later.
        """
        begin = now_s if now_s > self.free_s else self.free_s
        self.free_s = self.finish_s(begin, wire_bytes(self.link, ip_bytes))
        return self.free_s + self.link.propagation_delay_s

    def finish_s(self, start_s: float, n_bytes: float) -> float:
        """Return when the last of ``n_bytes`` has left of which the first leaves at ``start_s``."""
        if self.trace is None:
            return start_s + 8 * n_bytes / self.link.bandwidth_bps
        return self.begin_s + self.trace.finish_s(start_s - self.begin_s, n_bytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class WireEnds:
    """A wire between two TUN devices: their open files, and the link and trace whose law it follows."""

    source: int
    sink: int
    link: Link
    trace: BandwidthTrace | None = None


# --- the process -----------------------------------------------------------------------------------


class _Carrier:
    """A wire between two files, with the packets on it."""

    def __init__(self, wire: Wire, source: int, sink: int) -> None:
        self.wire, self.source, self.sink = wire, source, sink
        self.mtu = device_mtu(wire.link)
        self.packets: deque[tuple[float, bytes]] = deque()
        self.queued = 0
        self.forget()

    def forget(self) -> None:
        self.sent = self.dropped = self.late = 0
        self.latest_s = 0.0

    def take(self) -> None:
        """Read what the kernel has put on the device."""
        now = monotonic()
        for _ in range(_BURST):
            try:
                packet = os.read(self.source, self.mtu)
            except BlockingIOError:
                return
            if self.queued > _MOST_QUEUED_BYTES:
                self.dropped += 1
                continue
            self.queued += len(packet)
            self.packets.append((self.wire.admit(now, len(packet)), packet))

    def deliver(self, now: float) -> None:
        """Write what has arrived by now."""
        packets = self.packets
        while packets and packets[0][0] <= now:
            due, packet = packets.popleft()
            self.queued -= len(packet)
            late = now - due
            if late > self.latest_s:
                self.latest_s = late
            if late > LATE_S:
                self.late += 1
            try:
                os.write(self.sink, packet)
                self.sent += 1
            except OSError as error:
                if error.errno not in (errno.EIO, errno.ENOBUFS, errno.EAGAIN, errno.EINVAL):  # EIO: it is down
                    raise
                self.dropped += 1

    def report(self) -> dict[str, Any]:
        return {"sent": self.sent, "dropped": self.dropped, "late": self.late, "latest_s": self.latest_s}


class _Shell:
    """Carriers, orders, and a clock."""

    def __init__(self, carriers: Sequence[_Carrier]) -> None:
        self._carriers = carriers
        self._by_file = {carrier.source: carrier for carrier in carriers}
        self._files = [0, *self._by_file]
        self._said = b""

    def run(self) -> None:
        """Forward until the end of stdin."""
        while True:
            now = monotonic()
            due = float("inf")
            for carrier in self._carriers:
                carrier.deliver(now)
                if carrier.packets and carrier.packets[0][0] < due:
                    due = carrier.packets[0][0]
            for file in self._wait(due):
                if file:
                    self._by_file[file].take()
                elif not self._obey():
                    return

    def _wait(self, due: float) -> list[int]:
        """Return the files that can be read, at the latest when a packet is due.

        Packets that follow each other closely are not worth watching the clock for, which would keep the core from
        those who send and receive them: they are late by one sleep, together.
        """
        if due == float("inf"):
            return select.select(self._files, (), ())[0]
        left = due - monotonic()
        if left <= _SPIN_S:
            return select.select(self._files, (), (), max(0.0, left))[0]
        ready = select.select(self._files, (), (), left - _SPIN_S)[0]
        while not ready and monotonic() < due:
            ready = select.select(self._files, (), (), 0)[0]
        return ready

    def _obey(self) -> bool:
        said = os.read(0, 1 << 16)
        if not said:
            return False
        *lines, self._said = (self._said + said).split(b"\n")
        for line in lines:
            now = monotonic()
            if json.loads(line) == "rewind":
                for carrier in self._carriers:
                    carrier.wire.begin_s = now
                    carrier.forget()
            _say({"now_s": now, "wires": [carrier.report() for carrier in self._carriers]})
        return True


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def _read_line() -> bytes:
    """Read the first line of stdin; the next comes only when this one was answered."""
    line = bytearray()
    while not line.endswith(b"\n") and (more := os.read(0, 1 << 16)):
        line += more
    return bytes(line)


def _carrier(fields: Mapping[str, Any]) -> _Carrier:
    trace = fields["trace"]
    if trace is not None:
        trace = BandwidthTrace(
            name=trace["name"],
            times_s=tuple(trace["times_s"]),
            bandwidths_bps=tuple(trace["bandwidths_bps"]),
            period_s=trace["period_s"],
        )
    return _Carrier(Wire(Link(**fields["link"]), trace, monotonic()), fields["from"], fields["to"])


def _stop(*_: object) -> NoReturn:
    raise SystemExit(0)


def main() -> int:
    """Forward what stdin describes until stdin ends or a signal comes, then clean up; return the exit status."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    testbed = ""
    try:
        config = json.loads(_read_line())
        testbed = str(config["testbed"])
        shell = _Shell([_carrier(fields) for fields in config["wires"]])
        if sys.platform == "linux":
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None).prctl(29, 1, 0, 0, 0)  # PR_SET_TIMERSLACK: 1 ns instead of 50 µs
            with contextlib.suppress(OSError):  # where allowed, before any other process that wants the core
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        gc.freeze()
        gc.disable()
        _say({"now_s": monotonic(), "wires": []})
        shell.run()
    except (PortendError, OSError, LookupError, TypeError, ValueError) as error:
        print(f"forwarder: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    finally:
        if testbed:
            with contextlib.suppress(DeploymentError):  # `portend testbed down` says why
                erase(testbed)
    return 0


# --- the launcher ----------------------------------------------------------------------------------


class Forwarder(Child):
    """A running forwarder as a context manager; with no wires it only cleans up after its testbed.

    It ends with the ``with`` block or with this process, however that ends.
    """

    def __init__(self, testbed: str, wires: Sequence[WireEnds]) -> None:
        super().__init__("forwarder", "portend.testbed.emulation.forwarder")
        self._testbed = testbed
        self._wires = tuple(wires)

    def __enter__(self) -> Self:
        """Start it; DeploymentError with its last words if it cannot do what it is told."""
        wires = [
            {
                "from": wire.source,
                "to": wire.sink,
                "link": asdict(replace(wire.link, transfer=None)),
                "trace": None if wire.trace is None else asdict(wire.trace),
            }
            for wire in self._wires
        ]
        files = sorted({file for wire in self._wires for file in (wire.source, wire.sink)})
        self._start({"testbed": self._testbed, "wires": wires}, files)
        return self

    def rewind(self) -> float:
        """Let traces begin anew and forget what was counted; return the moment on the monotonic clock."""
        return float(self._order("rewind")["now_s"])

    def report(self) -> list[dict[str, Any]]:
        """What was counted since the start or ``rewind``, of each wire: packets sent, dropped, late, the latest."""
        return list(self._order("report")["wires"])

    def _order(self, what: str) -> dict[str, Any]:
        answer = self._ask(json.dumps(what))
        if answer is None:
            self.check()
            raise DeploymentError("the forwarder does not answer")
        return dict(answer)


if __name__ == "__main__":
    sys.exit(main())
