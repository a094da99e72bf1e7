"""The model's formulas once more, as plain loops over Python numbers, written from its definitions.

Nothing here comes from ``portend.perfmodel`` or ``portend.planner`` but the *description* of a
search space. Slow on purpose: every term is looked up and added on its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

from portend.values.device_profile import DeviceProfile
from portend.values.exits import SampleExits
from portend.values.plan import Plan
from portend.values.profile import Profile
from portend.values.topology import Link, Topology

if TYPE_CHECKING:
    from portend.planner.problem import SearchSpace

PARTS = ("compute", "encode", "decode", "transmission", "propagation", "dispatch")
Parts = dict[str, float]


def propagation(topology: Topology, a: int, b: int) -> float:
    """One-way delay of every link between two tiers, in either direction."""
    total = 0.0
    for j in range(min(a, b), max(a, b)):
        total += topology.links[j].propagation_delay_s
    return total


def transmission(topology: Topology, size: float, a: int, b: int) -> float:
    """F-1 full packets at the pace of the slowest link, then the last packet over every link."""
    if a == b:
        return 0.0
    links = [topology.links[j] for j in range(min(a, b), max(a, b))]
    header = max(link.header_bytes for link in links)
    room = min(link.mtu_bytes for link in links) - header
    packets = 1
    while packets * room < size:
        packets += 1
    last = size - (packets - 1) * room + header
    total = 0.0
    for link in links:
        total += last * 8 / link.bandwidth_bps
    packet = (room + header) * 8 / min(link.bandwidth_bps for link in links)
    return total + (packets - 1) * packet + window_waits(topology, links, packets, packet)


def window_waits(topology: Topology, links: Sequence[Link], packets: int, packet: float) -> float:
    """The gaps at the slowest link between the windows of a connection in slow start."""
    start = topology.slow_start
    if start is None:
        return 0.0
    header = max(link.header_bytes for link in links)
    room = min(link.mtu_bytes for link in links) - header
    round_trip = 0.0
    for link in links:
        round_trip += 2 * link.propagation_delay_s + ((room + header) + header) * 8 / link.bandwidth_bps
    total, left = 0.0, packets
    flight = min(start.initial_window, max(1, start.receive_window_bytes // room))
    following = start.initial_window + flight
    while True:
        left -= flight
        if left <= 0 or flight * packet >= round_trip:
            return total
        total += round_trip - flight * packet
        flight, following = following, 2 * following


def packet_simulation(topology: Topology, size: int, a: int, b: int) -> float:
    """Store-and-forward of one message, packet by packet and link by link (no formula)."""
    step = 1 if b > a else -1
    links = [topology.links[min(j, j + step)] for j in range(a, b, step)]
    header = max(link.header_bytes for link in links)
    room = min(link.mtu_bytes for link in links) - header
    packets = [min(room, size - at) + header for at in range(0, size, room)]
    free = [0.0] * len(links)
    arrived = 0.0
    for packet in packets:
        at = 0.0
        for index, link in enumerate(links):
            at = max(at, free[index]) + packet * 8 / link.bandwidth_bps
            free[index] = at
        arrived = at
    return arrived


def slow_start_simulation(topology: Topology, size: int, a: int, b: int) -> float:
    """One message on a fresh connection, packet by packet: each has its acknowledgment, which lets two more go."""
    step = 1 if b > a else -1
    links = [topology.links[min(j, j + step)] for j in range(a, b, step)]
    header = max(link.header_bytes for link in links)
    room = min(link.mtu_bytes for link in links) - header
    start = topology.slow_start
    assert start is not None
    packets = [min(room, size - at) + header for at in range(0, size, room)]
    there, back = [0.0] * len(links), [0.0] * len(links)
    window, acknowledged, sent, arrived = start.initial_window, 0, 0, 0.0
    acks: list[float] = []
    allowed = min(window, max(1, start.receive_window_bytes // room))
    at = 0.0
    while sent < len(packets):
        while sent < min(acknowledged + allowed, len(packets)):
            now = at
            for index, link in enumerate(links):
                now = max(now, there[index]) + packets[sent] * 8 / link.bandwidth_bps
                there[index] = now
                now += link.propagation_delay_s
            arrived = now
            for index, link in reversed(list(enumerate(links))):
                now = max(now, back[index]) + header * 8 / link.bandwidth_bps
                back[index] = now
                now += link.propagation_delay_s
            acks.append(now)
            sent += 1
        at = acks[acknowledged]
        acknowledged += 1
        window += 1
        allowed = window
    return arrived


@dataclass(frozen=True)
class Outcome:
    """A plan's discrete outcomes: share, share that is right, seconds per part, for each exit."""

    share: list[float]
    correct: list[float]
    parts: list[Parts]

    @property
    def latency(self) -> list[float]:
        return [sum(parts.values()) for parts in self.parts]

    @property
    def mean(self) -> float:
        return sum(e * seconds for e, seconds in zip(self.share, self.latency, strict=True))

    @property
    def accuracy(self) -> float:
        return sum(self.correct)

    def quantile(self, q: float) -> float:
        covered = 0.0
        for seconds, e in sorted(zip(self.latency, self.share, strict=True)):
            covered += e
            if covered >= q - 1e-12:
                return seconds
        raise AssertionError("the shares do not reach 1")


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return math.fsum(known) / len(known) if known else math.nan


def _column_means(repeats: Any) -> list[float]:
    return [_mean(column) for column in zip(*repeats.tolist(), strict=True)]


def _slower(first: float, busy: float, factor: float) -> float:
    """The start (waking up) costs what it costs; the work itself is done ``factor`` times."""
    start = max(first - busy, 0.0)
    return start + factor * busy


class _Device:
    def __init__(self, device: DeviceProfile) -> None:
        repeats = device.compute_repeats_s.tolist()
        size = len(repeats[0])
        self.busy = [[_mean([r[i][j] for r in repeats]) for j in range(size)] for i in range(size)]
        following = device.following_repeats_s
        self.idle = self._firsts(device.idle_repeats_s.tolist(), size)
        self.following = [] if following is None else self._firsts(following.tolist(), size)
        self.branch = _column_means(device.branch_repeats_s)
        self.size = {name: codec.message_bytes.tolist() for name, codec in device.codecs.items()}
        self.encode = {name: _column_means(codec.encode_repeats_s) for name, codec in device.codecs.items()}
        self.decode = {name: _column_means(codec.decode_repeats_s) for name, codec in device.codecs.items()}
        self.encode_busy = {name: _column_means(codec.encode_busy_repeats_s) for name, codec in device.codecs.items()}
        self.decode_busy = {name: _column_means(codec.decode_busy_repeats_s) for name, codec in device.codecs.items()}
        self.dispatch = {name: _column_means(codec.dispatch_repeats_s) for name, codec in device.codecs.items()}
        self.result_size = device.result.message_bytes
        self.result_encode = _mean(device.result.encode_repeats_s.tolist())
        self.result_decode = _mean(device.result.decode_repeats_s.tolist())
        self.result_decode_busy = _mean(device.result.decode_busy_repeats_s.tolist())
        self.result_dispatch = _mean(device.result.dispatch_repeats_s.tolist())

    @staticmethod
    def _firsts(bursts: Any, size: int) -> list[list[list[float]]]:
        places = len(bursts[0]) if bursts else 0
        return [
            [[_mean([r[b][i][j] for r in bursts]) for j in range(size)] for i in range(size)] for b in range(places)
        ]

    def compute(self, start: int, end: int, factor: float, *, woken: bool) -> float:
        """``factor`` times the busy time, and what the first runs take longer than busy ones."""
        extra = 0.0
        for place in range(max(len(self.idle), len(self.following))):
            share = 1.0 if place == 0 else min(max(factor - place, 0.0), 1.0)
            extra += share * self._extra(place, start, end, woken)
        return factor * self.busy[start][end] + max(extra, 0.0)

    def _extra(self, place: int, start: int, end: int, woken: bool) -> float:
        """Measured, or else on the line: a constant for each kind, neither below 0, and a share of the busy time."""
        size = len(self.busy)
        points = {
            kind: [
                (self.busy[i][j], table[place][i][j] - self.busy[i][j])
                for i in range(size)
                for j in range(size)
                if place < len(table) and not math.isnan(table[place][i][j])
            ]
            for kind, table in ((True, self.idle), (False, self.following))
        }
        own = self.idle if woken else self.following
        if place < len(own) and not math.isnan(own[place][start][end]):
            return own[place][start][end] - self.busy[start][end]
        at_zero: set[bool] = set()
        while True:
            center, spread, product = {True: (0.0, 0.0), False: (0.0, 0.0)}, 0.0, 0.0
            for kind, some in points.items():
                if some and kind not in at_zero:
                    center[kind] = (_mean([x for x, _ in some]), _mean([y for _, y in some]))
                spread += math.fsum((x - center[kind][0]) ** 2 for x, _ in some)
                product += math.fsum((x - center[kind][0]) * (y - center[kind][1]) for x, y in some)
            slope = max(product / spread, 0.0) if spread else 0.0
            constant = {kind: y - slope * x for kind, (x, y) in center.items()}
            below = {kind for kind, value in constant.items() if value < 0 and kind not in at_zero}
            if not below:
                return max(constant[woken], 0.0) + slope * self.busy[start][end]
            at_zero |= below


class Reference:
    """One profile on one topology, by one estimator."""

    def __init__(self, profile: Profile, topology: Topology, estimator: str) -> None:
        self.profile, self.topology, self.estimator = profile, topology, estimator
        self.blocks = profile.num_blocks
        self.devices = [_Device(profile.devices[tier.device]) for tier in topology.tiers]
        self.codecs: list[str] = []
        for device in self.devices:
            for name in device.size:
                if name not in self.codecs:
                    self.codecs.append(name)
        self._hops: dict[tuple[str, int, int, int], Parts | None] = {}
        self._best: dict[tuple[int, int, int, tuple[str, ...] | None], tuple[str | None, Parts] | None] = {}
        exits = profile.exits
        self.scores: list[list[float]] = exits.score.tolist() if isinstance(exits, SampleExits) else []
        self.right: list[list[bool]] = exits.correct.tolist() if isinstance(exits, SampleExits) else []

    # -- exits ---------------------------------------------------------------------------------

    def outcomes(self, cuts: Sequence[int], thresholds: Sequence[float]) -> tuple[list[float], list[float]]:
        return self._replay(cuts, thresholds) if self.estimator == "sample" else self._marginal(cuts, thresholds)

    def _replay(self, cuts: Sequence[int], thresholds: Sequence[float]) -> tuple[list[float], list[float]]:
        left, right = [0] * len(cuts), [0] * len(cuts)
        for scores, correct in zip(self.scores, self.right, strict=True):
            k = 0
            # A threshold of 0 means that the exit is not run; NaN < θ is false, so NaN stays.
            while k < len(cuts) - 1 and not (thresholds[k] > 0 and scores[cuts[k] - 1] < thresholds[k]):
                k += 1
            left[k] += 1
            right[k] += correct[cuts[k] - 1]
        return [n / len(self.scores) for n in left], [n / len(self.scores) for n in right]

    def rate(self, cut: int, threshold: float) -> float:
        """ER of the branch at a cut: each branch on all samples, as if no other existed."""
        if threshold == 0:
            return 0.0
        exits = self.profile.exits
        if isinstance(exits, SampleExits):
            return sum(row[cut - 1] < threshold for row in self.scores) / len(self.scores)
        for row, theta in enumerate(exits.thresholds.tolist()):
            if abs(theta - threshold) < 1e-9:
                return int(exits.exited[row, cut - 1]) / exits.samples
        raise AssertionError(f"threshold {threshold} is not in the table")

    def _marginal(self, cuts: Sequence[int], thresholds: Sequence[float]) -> tuple[list[float], list[float]]:
        exits = self.profile.exits
        share: list[float] = []
        highest = 0.0
        for cut, threshold in zip(cuts[:-1], thresholds, strict=True):
            after = max(highest, self.rate(cut, threshold))
            share.append(after - highest)
            highest = after
        share.append(1.0 - highest)
        if isinstance(exits, SampleExits):
            accuracy = [sum(row[i] for row in self.right) / len(self.right) for i in range(self.blocks)]
        else:
            accuracy = [int(n) / exits.samples for n in exits.correct]
        return share, [e * accuracy[cut - 1] for e, cut in zip(share, cuts, strict=True)]

    # -- latency -------------------------------------------------------------------------------

    def hop(self, codec: str, cut: int, a: int, b: int) -> Parts | None:
        """Seconds per part to bring a cut's tensor from tier a to tier b; None: not offered."""
        key = (codec, cut, a, b)
        if key not in self._hops:
            self._hops[key] = self._hop(*key)
        return self._hops[key]

    def _hop(self, codec: str, cut: int, a: int, b: int) -> Parts | None:
        local = a == b
        if local and (cut > 0 or self.topology.ingest == "in_process"):
            return dict.fromkeys(PARTS, 0.0)
        sender, receiver = self.devices[a], self.devices[b]
        if codec not in sender.size or codec not in receiver.size:
            return None
        size = sender.size[codec][cut]
        if codec in ("float16", "int8", "int8-channel") and not self.loss(codec, cut) <= 0.002:
            return None
        if math.isnan(size) or math.isnan(receiver.decode[codec][cut]):
            return None
        return {
            "compute": 0.0,
            "encode": _slower(
                sender.encode[codec][cut], sender.encode_busy[codec][cut], self.topology.tiers[a].slowdown
            ),
            "decode": _slower(
                receiver.decode[codec][cut], receiver.decode_busy[codec][cut], self.topology.tiers[b].slowdown
            ),
            "transmission": transmission(self.topology, size, a, b),
            "propagation": propagation(self.topology, a, b),
            "dispatch": 0.0 if local else receiver.dispatch[codec][cut],
        }

    def loss(self, codec: str, cut: int) -> float:
        """Largest share of right answers that a branch after the cut loses; NaN where none was counted."""
        counted = self.profile.losses[codec]
        drops = [
            (lost - gained) / counted.samples
            for lost, gained in zip(counted.lost[cut].tolist(), counted.gained[cut].tolist(), strict=True)
            if not math.isnan(lost)
        ]
        return max(0.0, *drops) if drops else math.nan

    def best_hop(
        self, cut: int, a: int, b: int, admitted: tuple[str, ...] | None = None
    ) -> tuple[str | None, Parts] | None:
        """Cheapest admitted codec and its parts; None if no codec can make the hop."""
        key = (cut, a, b, admitted)
        if key not in self._best:
            offers = [(name, self.hop(name, cut, a, b)) for name in self.codecs if admitted is None or name in admitted]
            real = [(name, parts) for name, parts in offers if parts is not None]
            sends = a != b or (cut == 0 and self.topology.ingest == "message")
            best = min(real, key=lambda offer: sum(offer[1].values()), default=None)
            self._best[key] = None if best is None else (best[0] if sends else None, best[1])
        return self._best[key]

    def result(self, tier: int) -> Parts:
        """Seconds per part to bring a label from a tier to the destination."""
        to = self.topology.destination
        if tier == to:
            return dict.fromkeys(PARTS, 0.0)
        sender, receiver = self.devices[tier], self.devices[to]
        return {
            "compute": 0.0,
            "encode": sender.result_encode * self.topology.tiers[tier].slowdown,
            "decode": _slower(receiver.result_decode, receiver.result_decode_busy, self.topology.tiers[to].slowdown),
            "transmission": transmission(self.topology, sender.result_size, tier, to),
            "propagation": propagation(self.topology, tier, to),
            "dispatch": receiver.result_dispatch,
        }

    def compute(self, tier: int, start: int, end: int, *, woken: bool, exit_run: bool) -> float:
        device, factor = self.devices[tier], self.topology.tiers[tier].slowdown
        seconds = device.compute(start, end, factor, woken=woken)
        return seconds if exit_run else max(seconds - factor * device.branch[end], 0.0)

    def latency_parts(self, plan: Plan, admitted: tuple[str, ...] | None = None) -> list[Parts] | None:
        """ℓ_k of every partition, by parts; None if a hop cannot be made."""
        here, start = self.topology.source, 0
        so_far = dict.fromkeys(PARTS, 0.0)
        leaving: list[Parts] = []
        for k, (end, tier) in enumerate(zip(plan.cuts, plan.placement, strict=True)):
            if plan.codecs:
                name = plan.codecs[k]
                hop = dict.fromkeys(PARTS, 0.0) if name is None else self.hop(name, start, here, tier)
            else:
                best = self.best_hop(start, here, tier, admitted)
                hop = None if best is None else best[1]
            if hop is None:
                return None
            for part in PARTS:
                so_far[part] += hop[part]
            last = k == len(plan) - 1
            so_far["compute"] += self.compute(
                tier, start, end, woken=k == 0 or here != tier, exit_run=last or plan.thresholds[k] > 0
            )
            back = self.result(tier)
            leaving.append({part: so_far[part] + back[part] for part in PARTS})
            here, start = tier, end
        return leaving

    def estimate(self, plan: Plan, admitted: tuple[str, ...] | None = None) -> Outcome | None:
        """The plan's outcomes; None if a hop cannot be made."""
        parts = self.latency_parts(plan, admitted)
        if parts is None:
            return None
        share, correct = self.outcomes(plan.cuts, plan.thresholds)
        return Outcome(share, correct, parts)


# -- the paper's search: enumerate, evaluate one by one ------------------------------------------


@dataclass(frozen=True, order=True)
class Candidate:
    """A plan's values; sorts by latency, -accuracy, partitions, threshold row, cuts, placement."""

    latency: float
    minus_accuracy: float
    length: int
    row: int
    cuts: tuple[int, ...]
    placement: tuple[int, ...]
    thresholds: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        return -self.minus_accuracy

    @property
    def plan(self) -> Plan:
        return Plan(cuts=self.cuts, placement=self.placement, thresholds=self.thresholds)


def _placements(space: SearchSpace, tiers: int, length: int) -> Iterator[tuple[int, ...]]:
    allowed = range(tiers) if space.tiers is None else sorted(set(space.tiers))
    for placement in product(allowed, repeat=length):
        order = [t for k, t in enumerate(placement) if k == 0 or placement[k - 1] != t]
        if len(set(order)) < len(order):
            continue  # a tier is revisited
        if any(placement.count(t) > space.exits_per_tier for t in order):
            continue
        if space.tier_order == "increasing" and order != sorted(order):
            continue
        yield placement


def _rows(space: SearchSpace, length: int) -> list[tuple[float, ...]]:
    if length == 1:
        return [()]
    thetas = [0.0] if space.exits == () else sorted(space.thresholds)
    if space.per_exit_thresholds:
        return list(product(thetas, repeat=length - 1))
    return [(theta,) * (length - 1) for theta in thetas]


def enumerate_plans(
    space: SearchSpace, blocks: int, tiers: int
) -> Iterator[tuple[int, tuple[float, ...], tuple[int, ...], tuple[int, ...]]]:
    """Every (threshold row, thresholds, cuts, placement) of a space, without regard to ``block_tiers``."""
    most = space.max_partitions or blocks
    for length in range(space.min_partitions, min(blocks, most) + 1):
        placements = list(_placements(space, tiers, length))
        if not placements:
            continue
        for cuts in combinations(range(1, blocks + 1), length):
            if space.cuts is not None and not set(cuts) <= set(space.cuts):
                continue
            if not space.truncation and cuts[-1] != blocks:
                continue
            for row, thetas in enumerate(_rows(space, length)):
                usable = tuple(
                    theta if space.exits is None or cut in space.exits else 0.0
                    for theta, cut in zip(thetas, cuts[:-1], strict=True)
                )
                for placement in placements:
                    if not _splits_a_tier(placement, usable):
                        yield row, usable, cuts, placement


def _splits_a_tier(placement: tuple[int, ...], thresholds: tuple[float, ...]) -> bool:
    """Whether a tier's blocks are cut in two where nobody may leave, which no plan of a space does."""
    return any(placement[k] == placement[k + 1] and thresholds[k] == 0 for k in range(len(thresholds)))


def brute_force(reference: Reference, space: SearchSpace) -> list[Candidate]:
    """Evaluate every plan of a space, one by one; those that a hint or a codec forbids are left out."""
    tiers = len(reference.topology.tiers)
    found: list[Candidate] = []
    outcomes: dict[tuple[tuple[int, ...], tuple[float, ...]], tuple[list[float], list[float]]] = {}
    for row, thresholds, cuts, placement in enumerate_plans(space, reference.blocks, tiers):
        start, allowed = 0, True
        for end, tier in zip(cuts, placement, strict=True):
            for block in range(start + 1, end + 1):
                allowed = allowed and tier in space.block_tiers.get(block, (tier,))
            start = end
        if not allowed:
            continue
        plan = Plan(cuts=cuts, placement=placement, thresholds=thresholds)
        parts = reference.latency_parts(plan, space.codecs)
        if parts is None:
            continue
        key = (cuts, thresholds)
        if key not in outcomes:
            outcomes[key] = reference.outcomes(cuts, thresholds)
        outcome = Outcome(*outcomes[key], parts)
        found.append(Candidate(outcome.mean, -outcome.accuracy, len(cuts), row, cuts, placement, thresholds))
    return found


def pareto(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Plans that none beats in both latency and accuracy, by latency; ties by the candidates' order."""
    front: list[Candidate] = []
    for candidate in sorted(candidates):
        if not front or candidate.accuracy > front[-1].accuracy:
            front.append(candidate)
    return front


def solve_p_lat(candidates: Sequence[Candidate], min_accuracy: float) -> Candidate | None:
    """Fastest plan that is accurate enough (P_lat); None if there is none."""
    return min((c for c in candidates if c.accuracy >= min_accuracy), default=None)


def solve_p_acc(candidates: Sequence[Candidate], max_latency: float) -> Candidate | None:
    """Most accurate plan that is fast enough (P_acc), the fastest among equals; None if there is none."""
    feasible = [c for c in candidates if c.latency <= max_latency]
    return min(feasible, key=lambda c: (c.minus_accuracy, c), default=None)
