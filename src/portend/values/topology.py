"""Where a network may run: tiers, the links between neighbors, and what a message costs on them.

Axes: M tiers. Link ``j`` joins tiers ``j`` and ``j + 1``; a message between distant tiers
crosses every link in between, in either direction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from portend.address import read_host
from portend.errors import InvalidValue, choice, law, nearest

__all__ = ["Ingest", "Link", "SlowStart", "Tier", "Topology", "TransferCurve"]

Ingest = Literal["in_process", "message"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tier:
    """One machine of the chain.

    Attributes:
        name: unique within the topology.
        device: key of the device profile that holds its measurements.
        slowdown: how many times slower than the profiled device (``portend.values.codecs.slowed``); emulated where
            the tier runs as a process, which needs at least 1.
        host, port: address of the machine that runs the tier's agent (an IPv6 address is kept without brackets), and
            where the agent of a service listens there.
        memory_bytes: what the tier has for weights and activations; no plan that needs more is feasible.
        power_w, price_usd_per_hour: optional facts for metrics and constraints.
        cores: numbers of the processor cores that the tier's process may use where it runs; empty: all.
        cpu_quota: most of a core's time that it gets, 1.5 for one core and a half; not part of the model.
    """

    name: str
    device: str = "local"
    slowdown: float = 1.0
    host: str = "127.0.0.1"
    port: int = 7100
    memory_bytes: float | None = None
    power_w: float | None = None
    price_usd_per_hour: float | None = None
    cores: tuple[int, ...] = ()
    cpu_quota: float | None = None

    def __post_init__(self) -> None:
        law(bool(self.name), "a tier needs a name, but got an empty one")
        law(
            math.isfinite(self.slowdown) and self.slowdown > 0,
            f"a tier's slowdown is a positive factor, but tier {self.name!r} has {self.slowdown}",
        )
        object.__setattr__(self, "host", read_host(self.host))
        law(1 <= self.port <= 65535, f"a tier's port is 1–65535, but tier {self.name!r} has {self.port}")
        law(
            self.memory_bytes is None or self.memory_bytes >= 0,
            f"a tier's memory is not negative, but tier {self.name!r} has {self.memory_bytes} B",
        )
        law(
            all(core >= 0 for core in self.cores),
            f"cores are numbered from 0, but tier {self.name!r} has {self.cores}",
        )
        law(
            self.cpu_quota is None or (math.isfinite(self.cpu_quota) and self.cpu_quota > 0),
            f"a tier's cpu_quota is a positive number of cores, but tier {self.name!r} has {self.cpu_quota}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferCurve:
    """How long messages took over a link, as `portend links` measured it: from sent to wholly received.

    Attributes:
        sizes_bytes: of the messages, increasing.
        warm_s: seconds on a connection that had carried such a message; not decreasing. What the model uses.
        cold_s: seconds as the first message of a new connection; empty where that was not measured.
    """

    sizes_bytes: tuple[float, ...]
    warm_s: tuple[float, ...]
    cold_s: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        sizes = self.sizes_bytes
        law(
            bool(sizes) and sizes[0] >= 0 and all(a < b for a, b in pairwise(sizes)),
            f"the sizes of a transfer curve increase from 0 on, but got {sizes}",
        )
        for name, seconds in (("warm", self.warm_s), ("cold", self.cold_s)):
            if name == "cold" and not seconds:
                continue
            law(
                len(seconds) == len(sizes)
                and seconds[0] >= 0
                and math.isfinite(seconds[-1])
                and all(a <= b for a, b in pairwise(seconds)),
                f"a transfer curve has one {name} time per size, none less than the one before it, but got "
                f"{len(sizes)} sizes and {seconds}",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """One link, the same in both directions.

    Attributes:
        bandwidth_bps: bit/s on the wire, protocol headers included.
        propagation_delay_s: one-way delay of the first bit.
        mtu_bytes: largest packet; header_bytes: protocol headers inside each packet
            (Ethernet payload 1500 with IPv4 and TCP with timestamps: 52).
        transfer: measured times, which take the formula's place; None: the formula.
    """

    bandwidth_bps: float
    propagation_delay_s: float
    mtu_bytes: int = 1500
    header_bytes: int = 52
    transfer: TransferCurve | None = None

    def __post_init__(self) -> None:
        law(
            math.isfinite(self.bandwidth_bps) and self.bandwidth_bps > 0,
            f"a link's bandwidth is positive and finite, but got {self.bandwidth_bps} bit/s",
        )
        law(
            math.isfinite(self.propagation_delay_s) and self.propagation_delay_s >= 0,
            f"a link's propagation delay is not negative, but got {self.propagation_delay_s} s",
        )
        law(
            0 <= self.header_bytes < self.mtu_bytes,
            f"a packet holds its headers and at least one byte, but got mtu {self.mtu_bytes} B "
            f"and headers {self.header_bytes} B",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SlowStart:
    """TCP connections that send every message with a window that is small at first: new ones, and ones that idled.

    Attributes:
        initial_window: packets that are sent before the first acknowledgment (RFC 6928: 10); with every round trip
            twice as many as before.
        receive_window_bytes: the most that the receiver lets in before its first acknowledgment: what a handshake can
            announce is 65,535 B.
    """

    initial_window: int = 10
    receive_window_bytes: int = 65_535

    def __post_init__(self) -> None:
        law(
            self.initial_window >= 1,
            f"a connection's initial window is at least one packet, but got {self.initial_window}",
        )
        law(
            self.receive_window_bytes >= 1,
            f"a receiver lets in at least one byte, but got a window of {self.receive_window_bytes} B",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Topology:
    """A chain of tiers with the place where samples appear and where results are wanted.

    Attributes:
        source, destination: tier indices.
        slow_start: how every message's connection begins; None: connections are warm, their windows open.
        ingest: ``"in_process"``: the source hands a sample to a partition on its own tier for
            free; ``"message"``: even there it is encoded and decoded, as on the paper's testbed.
    """

    name: str
    tiers: tuple[Tier, ...]
    links: tuple[Link, ...]
    source: int = 0
    destination: int = 0
    ingest: Ingest = "in_process"
    slow_start: SlowStart | None = None

    def __post_init__(self) -> None:
        count = len(self.tiers)
        law(count >= 1, "a topology needs at least one tier, but got none")
        law(
            len(self.links) == count - 1,
            f"a chain of {count} tiers has {count - 1} links, but got {len(self.links)}; "
            "give one link between each pair of neighboring tiers",
        )
        names = [tier.name for tier in self.tiers]
        law(len(set(names)) == count, f"tier names are unique, but got {names}")
        for role, index in (("source", self.source), ("destination", self.destination)):
            law(
                0 <= index < count,
                f"the {role} is one of the tiers {', '.join(names)} by index from 0, but got {index}",
            )
        choice("ingest", self.ingest, get_args(Ingest))

    @property
    def names(self) -> tuple[str, ...]:
        """The tiers' names."""
        return tuple(tier.name for tier in self.tiers)

    @property
    def link_names(self) -> tuple[str, ...]:
        """What messages call the links, such as ``edge–cloud``."""
        return tuple(f"{one}–{other}" for one, other in pairwise(self.names))

    def numbered_links(self) -> str:
        """Return the links with the numbers by which options and paths take them, such as ``0 (edge–cloud)``."""
        return ", ".join(f"{index} ({name})" for index, name in enumerate(self.link_names)) or "none"

    def tier_index(self, name: str) -> int:
        """Return the index of the tier called ``name``, or that has this number, from 0 on; InvalidValue if none."""
        names = [tier.name for tier in self.tiers]
        if name in names:
            return names.index(name)
        if name.isdecimal() and int(name) < len(names):
            return int(name)
        near = nearest(name, names)
        hint = f"; did you mean {near!r}?" if near else ""
        raise InvalidValue(f"no tier is called {name!r}; the tiers are {', '.join(names)}{hint}")

    def with_link(self, index: int, **changes: Any) -> Topology:
        """Return a copy in which link ``index`` has ``changes`` (for what-if).

        It is no longer the link whose times were measured, so it has no transfer curve, unless they give one.
        """
        links = list(self.links)
        links[index] = replace(links[index], **({"transfer": None} | changes))
        return replace(self, links=tuple(links))

    def with_tier(self, index: int, **changes: Any) -> Topology:
        """Return a copy in which tier ``index`` has ``changes``."""
        tiers = list(self.tiers)
        tiers[index] = replace(tiers[index], **changes)
        return replace(self, tiers=tuple(tiers))

    def path(self, start: int, end: int) -> Sequence[Link]:
        """Return the links from tier ``start`` to tier ``end``, in the order they are crossed."""
        if start <= end:
            return self.links[start:end]
        return self.links[end:start][::-1]

    def outward(self, link: int) -> tuple[int, int]:
        """Return the tiers that a link joins, the one nearer to the source first."""
        return (link, link + 1) if self.source <= link else (link + 1, link)

    def propagation_s(self) -> NDArray[np.float64]:
        """Seconds of one-way propagation between any two tiers, [M, M] (paper, Lat^prop).

        The sum of the delays of the links in between. The paper's sum runs one link too far;
        link j joins tiers j and j+1, so it ends at the link before the higher tier.
        """
        position = np.concatenate(([0.0], np.cumsum([link.propagation_delay_s for link in self.links])))
        return np.asarray(np.abs(position[:, None] - position[None, :]), dtype=np.float64)

    def transmission_s(self, message_bytes: ArrayLike) -> NDArray[np.float64]:
        """Seconds to put messages of ``message_bytes`` [...] on the wire between any two tiers, [..., M, M].

        Packets of the path's smallest MTU, each with its headers, stored and forwarded whole and
        pipelined across links: F-1 full packets at the pace of the slowest link, then the last one
        over every link (paper, L_{i→j}; with header 0 and a full last packet the two agree). A link with a
        transfer curve takes what was measured, less its propagation delay. With ``slow_start``, also the waits for
        acknowledgments until the window fills the path; of a transfer curve, what new connections took, if it has that.
        """
        size = np.asarray(message_bytes, dtype=np.float64)
        count = len(self.tiers)
        seconds = np.zeros((*size.shape, count, count))
        for low in range(count):
            for high in range(low + 1, count):
                path = self.path(low, high)
                if any(link.transfer is not None for link in path):
                    one_way = _measured(size, path, new=self.slow_start is not None)
                else:
                    one_way = _pipelined(size, path)
                    if self.slow_start is not None:
                        one_way = one_way + _window_waits(size, path, self.slow_start)
                seconds[..., low, high] = seconds[..., high, low] = one_way
        return seconds


def _packet(path: Sequence[Link]) -> tuple[int, int]:
    """Bytes of a message that one packet of the path holds, and of its headers."""
    header = max(link.header_bytes for link in path)
    room = min(link.mtu_bytes for link in path) - header
    law(room > 0, f"the smallest MTU of a path must exceed its largest header, but {room} B are left")
    return room, header


def _pipelined(size: NDArray[np.float64], path: Sequence[Link]) -> NDArray[np.float64]:
    room, header = _packet(path)
    packets = np.maximum(np.ceil(size / room), 1.0)
    last = size - (packets - 1) * room + header
    slowest = min(link.bandwidth_bps for link in path)
    seconds_per_byte = math.fsum(8 / link.bandwidth_bps for link in path)
    seconds: NDArray[np.float64] = (packets - 1) * (room + header) * 8 / slowest + last * seconds_per_byte
    return seconds


def _measured(size: NDArray[np.float64], path: Sequence[Link], *, new: bool) -> NDArray[np.float64]:
    """Seconds [...] over a path of which a link's times were measured: the slowest link, and a packet on each other."""
    alone = np.stack([_alone(size, link, new=new) for link in path])
    packet = np.stack([_alone(np.minimum(size, link.mtu_bytes - link.header_bytes), link, new=new) for link in path])
    slowest = alone.argmax(axis=0)[None]
    rest = packet.sum(axis=0) - np.take_along_axis(packet, slowest, axis=0)[0]
    return np.asarray(np.take_along_axis(alone, slowest, axis=0)[0] + rest)


def _alone(size: NDArray[np.float64], link: Link, *, new: bool) -> NDArray[np.float64]:
    """Seconds [...] of transmission over one link: measured, between the sizes on lines, else by the formula.

    Below the least size they are its own; beyond the largest they grow as the formula does.
    """
    curve, formula = link.transfer, _pipelined(size, (link,))
    if curve is None:
        return formula
    largest = np.asarray(curve.sizes_bytes[-1])
    beyond = np.where(size > largest, formula - _pipelined(largest, (link,)), 0.0)
    seconds = np.interp(size, curve.sizes_bytes, curve.cold_s if new and curve.cold_s else curve.warm_s) + beyond
    return np.asarray(np.maximum(seconds - link.propagation_delay_s, 0.0))


def _window_waits(size: NDArray[np.float64], path: Sequence[Link], start: SlowStart) -> NDArray[np.float64]:
    """Seconds [...] that the slowest link waits for packets because the sender waits for acknowledgments.

    It passes a window of w packets in w times a packet's time; the first packet of the next window follows one round
    trip after the first of this one.
    """
    room, header = _packet(path)
    packet_s = 8 * (room + header) / min(link.bandwidth_bps for link in path)
    round_trip_s = math.fsum(
        8 * (room + 2 * header) / link.bandwidth_bps + 2 * link.propagation_delay_s for link in path
    )  # a full packet there, an acknowledgment back
    seconds = np.zeros_like(size)
    window = start.initial_window
    announced = max(start.receive_window_bytes // room, 1)
    may = min(window, announced)
    sent = 0
    while may * packet_s < round_trip_s:
        sent += may
        seconds += np.where(size > sent * room, round_trip_s - may * packet_s, 0.0)
        window += may  # one for each packet that is acknowledged
        may = window
    return seconds
