"""Whether emulated links do what they are meant to: round trips and rates, measured by real sockets.

`Wire` says what is due, packet by packet; a link is off where the median of the round trips differs by more than
0.5 ms + 2 %, or a rate by more than 3 %. Arrivals are stamped by the kernel, so that a busy machine's scheduling of
this process does not count. Still it can spoil one measurement, so each has five tries.
"""

from __future__ import annotations

import contextlib
import select
import socket
import statistics
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

from portend.errors import DeploymentError
from portend.runtime.arrivals import receive, stamp
from portend.testbed.emulation.forwarder import Wire, device_mtu, wire_bytes
from portend.testbed.emulation.traces import BandwidthTrace
from portend.values.topology import Topology

__all__ = ["Check", "check_links"]

_ROUND_TRIP_S: Final = 0.5e-3
_ROUND_TRIP_SHARE: Final = 0.02
_RATE_SHARE: Final = 0.03
_TRIES: Final = 5
_PROBES: Final = 9
_GAP_S: Final = 3e-3
_UDP_BYTES: Final = 28  # IPv4 20, UDP 8
_TCP_BYTES: Final = 52  # IPv4 20, TCP 20, timestamps 12
_BULK_S: Final = 0.25
_FEWEST_PACKETS: Final = 60
_SKIPPED: Final = 0.2  # of the bulk, until the rate is steady
_PATIENCE_S: Final = 5.0

Inside = Callable[[int], contextlib.AbstractContextManager[None]]
"""Puts this thread into a tier's network for a while."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """What was measured between two tiers, and what is due.

    Attributes:
        start, end: the tiers.
        round_trip_s: median of UDP packets there and back; due_round_trip_s: of the same packets by the law.
        rates_bps: bit/s on the wire of a TCP stream, to the end and back; empty for tiers that are no neighbors.
        due_rates_bps: the law's.
    """

    start: int
    end: int
    round_trip_s: float
    due_round_trip_s: float
    rates_bps: tuple[float, ...] = ()
    due_rates_bps: tuple[float, ...] = ()

    def faults(self, names: Sequence[str]) -> list[str]:
        """Return what is off, in words; ``names`` are those of the tiers."""
        found = []
        allowed_s = _ROUND_TRIP_S * abs(self.end - self.start) + _ROUND_TRIP_SHARE * self.due_round_trip_s
        if abs(self.round_trip_s - self.due_round_trip_s) > allowed_s:
            found.append(
                f"the round trip {names[self.start]}–{names[self.end]} takes {1e3 * self.round_trip_s:.2f} ms, but "
                f"{1e3 * self.due_round_trip_s:.2f} ± {1e3 * allowed_s:.2f} ms are due"
            )
        ends = ((self.start, self.end), (self.end, self.start))
        for (a, b), rate, due in zip(ends, self.rates_bps, self.due_rates_bps, strict=False):
            if abs(rate - due) > _RATE_SHARE * due:
                found.append(
                    f"{names[a]} → {names[b]} carries {rate / 1e6:.4g} Mbit/s, but {due / 1e6:.4g} ± "
                    f"{100 * _RATE_SHARE:g} % are due"
                )
        return found


def check_links(
    topology: Topology,
    addresses: Sequence[str],
    inside: Inside,
    *,
    traces: Mapping[int, BandwidthTrace],
    rewind: Callable[[], float],
) -> tuple[Check, ...]:
    """Measure each link, and the whole path where it has several.

    Args:
        addresses: of the tiers; rewind: starts the traces and returns the moment.

    Raises:
        DeploymentError: a link is off, or does not carry anything.
    """
    count = len(topology.tiers)
    pairs = [(low, low + 1) for low in range(count - 1)] + ([(0, count - 1)] if count > 2 else [])
    checks = []
    for pair in pairs:
        for attempt in range(_TRIES):
            bench = _Bench(topology, addresses, inside, traces, rewind())
            check = bench.check(*pair)
            faults = check.faults([tier.name for tier in topology.tiers])
            if not faults:
                break
            if attempt == _TRIES - 1:
                raise DeploymentError(
                    f"the links are not what the topology says: {'; '.join(faults)}. Nothing is measured on them. "
                    "Close what else uses the processor or the links; a fast link may need a larger mtu"
                )
        checks.append(check)
    return tuple(checks)


class _Bench:
    """Measures between two tiers; both ends' sockets are in this process, which so has one clock for them."""

    def __init__(
        self,
        topology: Topology,
        addresses: Sequence[str],
        inside: Inside,
        traces: Mapping[int, BandwidthTrace],
        begin_s: float,
    ) -> None:
        self._topology, self._addresses, self._inside = topology, addresses, inside
        self._traces, self._begin_s = traces, begin_s

    def check(self, start: int, end: int) -> Check:
        try:
            taken, due = self._round_trips(start, end)
            rates: Sequence[tuple[float, float]] = ()
            if abs(end - start) == 1:
                rates = (self._rate(start, end), self._rate(end, start))
        except (TimeoutError, ConnectionError) as error:
            names = [self._topology.tiers[tier].name for tier in (start, end)]
            raise DeploymentError(
                f"nothing gets through between the tiers {names[0]} and {names[1]} ({error})"
            ) from None
        return Check(
            start=start,
            end=end,
            round_trip_s=taken,
            due_round_trip_s=due,
            rates_bps=tuple(rate for rate, _ in rates),
            due_rates_bps=tuple(due for _, due in rates),
        )

    def _wires(self, start: int, end: int) -> list[Wire]:
        """The wires from tier to tier as they should be."""
        low, high = min(start, end), max(start, end)
        wires = [Wire(self._topology.links[j], self._traces.get(j), self._begin_s) for j in range(low, high)]
        return wires if start <= end else wires[::-1]

    def _socket(self, tier: int, kind: int) -> socket.socket:
        with self._inside(tier):
            made = socket.socket(socket.AF_INET, kind)
        made.bind((self._addresses[tier], 0))
        made.settimeout(_PATIENCE_S)
        stamp(made)  # what a listener accepts has it too
        return made

    def _round_trips(self, start: int, end: int) -> tuple[float, float]:
        """Median seconds that small UDP packets take there and back, and what they should."""
        there, back = self._wires(start, end), self._wires(end, start)
        size = _UDP_BYTES + 4
        sent: list[float] = []
        due: list[float] = []
        taken: list[float] = []
        turned = [0.0] * _PROBES
        gap_s = max([_GAP_S, *(2 * _whole_s(wire, size) for wire in there)])
        with self._socket(start, socket.SOCK_DGRAM) as near, self._socket(end, socket.SOCK_DGRAM) as far:
            deadline = monotonic() + _PATIENCE_S + _PROBES * gap_s
            next_s = monotonic()
            while len(taken) < _PROBES:
                now = monotonic()
                if now > deadline:
                    raise TimeoutError(f"{len(taken)} of {len(sent)} packets came back")
                if len(sent) < _PROBES and now >= next_s:
                    near.sendto(struct.pack("!i", len(sent)), far.getsockname())
                    sent.append(now)
                    due.append(_through(there, now, size) - now)
                    next_s = now + gap_s
                until = next_s if len(sent) < _PROBES else deadline
                for ready in select.select((near, far), (), (), max(0.0, until - monotonic()))[0]:
                    data = bytearray(4)
                    _, arrived, sender = receive(ready, data)
                    (number,) = struct.unpack("!i", data)
                    if ready is far:
                        echoed = monotonic()
                        far.sendto(data, sender)
                        turned[number] = echoed - arrived  # does not count
                        due[number] += _through(back, echoed, size) - echoed
                    else:
                        taken.append(arrived - sent[number] - turned[number])
        return statistics.median(taken), statistics.median(due)

    def _rate(self, start: int, end: int) -> tuple[float, float]:
        """Bit/s on the wire of one TCP stream, and what is due in the same time."""
        (wire,) = self._wires(start, end)
        payload = device_mtu(wire.link) - _TCP_BYTES
        full = wire_bytes(wire.link, payload + _TCP_BYTES)
        mean_bps = wire.link.bandwidth_bps if wire.trace is None else wire.trace.mean_bps
        packets = max(_FEWEST_PACKETS, round(_BULK_S * mean_bps / 8 / full))
        total = packets * payload
        buffer = bytearray(total)
        with self._socket(end, socket.SOCK_STREAM) as listener, self._socket(start, socket.SOCK_STREAM) as sender:
            listener.listen(1)
            sender.connect(listener.getsockname())
            receiver, _ = listener.accept()
            patience_s = _PATIENCE_S + 4 * packets * full * 8 / mean_bps
            if wire.trace is not None:
                patience_s += wire.trace.period_s
            for each in (sender, receiver):
                each.settimeout(patience_s)
            thread = threading.Thread(target=_send, args=(sender, bytes(total)), daemon=True)
            with receiver:
                thread.start()
                got = first = 0
                first_s = last_s = 0.0
                while got < total:
                    got_now, last_s, _ = receive(receiver, buffer)
                    if not got_now:
                        raise ConnectionResetError("the stream ended early")
                    got += got_now
                    if not first and got >= _SKIPPED * total:
                        first, first_s = got, last_s
            thread.join()
        if first_s == last_s:  # all of it at once: there is no rate, or this process did not run for so long
            return float("inf"), mean_bps
        passed = (got - first) / payload * full
        began = first_s - wire.link.propagation_delay_s
        due_s = wire.finish_s(max(began, self._begin_s), passed) - began
        return 8 * passed / (last_s - first_s), 8 * passed / due_s


def _send(sock: socket.socket, data: Any) -> None:
    with contextlib.suppress(OSError):  # the receiver says what is wrong
        sock.sendall(data)


def _whole_s(wire: Wire, ip_bytes: int) -> float:
    """Seconds that a packet takes on a wire at its mean rate."""
    mean_bps = wire.link.bandwidth_bps if wire.trace is None else wire.trace.mean_bps
    return 8 * wire_bytes(wire.link, ip_bytes) / mean_bps


def _through(wires: Sequence[Wire], now_s: float, ip_bytes: int) -> float:
    """Moment at which a packet has crossed all wires that enters the first now."""
    for wire in wires:
        now_s = wire.admit(now_s, ip_bytes)
    return now_s
