"""Additive metrics: what every step costs that a sample may take, whoever reaches it pays it.

A plan's value is the sum, over the steps, of the share of samples that take a step times its cost, as mean latency
is (``docs/model.md``). So the exact searches for latency (``dynamic``, ``replay``) answer any such metric.

Axes: K codecs, M tiers, N+1 cuts, R rows and C columns of a block.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from portend.errors import InvalidValue, MismatchError
from portend.perfmodel.estimate import PARTS
from portend.perfmodel.model import PerformanceModel
from portend.planner.batch import Block, OnBlocks
from portend.values.plan import blocks

__all__ = ["Additive", "Hops", "OwnCosts", "Results", "Runs", "Terms", "message_bytes"]

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Flags = NDArray[np.bool_]

_MOST: Final = 1e100
_ENCODE, _DECODE = PARTS.index("encode"), PARTS.index("decode")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Terms:
    """What each step costs for one sample, in the metric's unit; what no plan can do may hold anything.

    Attributes:
        compute: [2 woken, 2 branch run, M, N+1, N+1], blocks start:end on a tier.
        hop: [K, N+1, M, M], to bring the tensor of a cut from tier to tier.
        result: [M], to leave on a tier and bring the result to the destination.
        unknown: for each tier whose costs are not known, why a plan with it is refused.
    """

    compute: Floats
    hop: Floats
    result: Floats
    unknown: Mapping[int, str] = field(default_factory=dict)


class Additive(OnBlocks):
    """A metric's function that is a sum of ``Terms``."""

    @abstractmethod
    def terms(self, model: PerformanceModel) -> Terms:
        """Return the cost of every step on a model."""

    def on_block(self, block: Block) -> Floats:
        """Return the values of a block, [R, C].

        Raises:
            MismatchError: the costs of a tier that works are not known.
        """
        known = _TERMS.setdefault(block.model, {})
        if self not in known:
            known[self] = self.terms(block.model)
        terms, tiers = known[self], set(block.placement)
        for tier in (*tiers, *block.senders[: block.sent(0)], block.model.topology.destination):
            if tier in terms.unknown:
                raise MismatchError(terms.unknown[tier])
        total = np.zeros(block.shape)
        for k, tier in enumerate(block.placement):
            cost = block.at_run(k, terms.compute)
            if block.sent(k):
                cost = cost + block.at_hop(k, terms.hop[:, :, block.senders[k], tier])
            total += _paid(block.reach[k], cost)
            if terms.result[tier]:
                leaves = True if k == len(block.placement) - 1 else block.thresholds[k] > 0
                total += np.where(leaves, _paid(block.share[k], terms.result[tier]), 0.0)
        return total


def _paid(share: Floats, cost: Floats | float) -> Floats:
    """What those who take a step pay; a forbidden step (inf) forbids the plan also where nobody takes it."""
    forbidden = np.isinf(cost)
    return np.where(forbidden, np.inf, share * np.where(forbidden, 0.0, cost))


_TERMS: WeakKeyDictionary[PerformanceModel, dict[Additive, Terms]] = WeakKeyDictionary()


def message_bytes(model: PerformanceModel) -> tuple[Floats, Floats]:
    """Bytes of what each tier sends, without the headers of packets: tensors [K, N+1, M], a result [M].

    0 where nothing is sent: where a codec is not offered, and for results on the destination.
    """
    devices = [model.profile.devices[tier.device] for tier in model.topology.tiers]
    size = np.zeros((len(model.tables.codecs), model.profile.num_blocks + 1, len(devices)))
    for k, name in enumerate(model.tables.codecs):
        for tier, device in enumerate(devices):
            if name in device.codecs:
                size[k, :, tier] = np.nan_to_num(device.codecs[name].message_bytes)
    result = np.array([device.result.message_bytes for device in devices], dtype=np.float64)
    result[model.topology.destination] = 0.0
    return size, result


# -- own costs -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Runs:
    """Every run of a partition on a tier, as arrays that broadcast to [2 woken, 2 branch run, M, N+1, N+1].

    Attributes:
        model: profile and topology; tier, start, end: int, blocks start:end of cuts; woken: 1 where a message or a
            new sample wakes the tier; branch: 1 where the exit branch at ``end`` is run.
        seconds: that it computes.
    """

    model: PerformanceModel
    woken: Ints
    branch: Ints
    tier: Ints
    start: Ints
    end: Ints
    seconds: Floats


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Hops:
    """Every message with a tensor from tier to tier, as arrays that broadcast to [K, N+1, M, M].

    Attributes:
        model: profile and topology; codec: int, index into ``model.tables.codecs``; cut, sender, receiver: int.
        links: number of links that it crosses; bytes: of the message, without the headers of packets.
        seconds: of the hop; encode_s, decode_s: of them, seconds that the sender and the receiver work.
    """

    model: PerformanceModel
    codec: Ints
    cut: Ints
    sender: Ints
    receiver: Ints
    links: Ints
    bytes: Floats
    seconds: Floats
    encode_s: Floats
    decode_s: Floats


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Results:
    """Leaving on each tier, [M]; on the destination nothing is sent.

    Attributes:
        model: profile and topology; tier: int; links: number of links to the destination; bytes: of the message.
        seconds: that the result needs; encode_s, decode_s: of them, that the tier and the destination work.
    """

    model: PerformanceModel
    tier: Ints
    links: Ints
    bytes: Floats
    seconds: Floats
    encode_s: Floats
    decode_s: Floats


@dataclass(frozen=True, kw_only=True)
class OwnCosts(Additive):
    """The costs that own functions give to runs, hops and results; what is None costs nothing."""

    name: str
    compute: Callable[[Runs], Any] | None = None
    hop: Callable[[Hops], Any] | None = None
    result: Callable[[Results], Any] | None = None

    def terms(self, model: PerformanceModel) -> Terms:
        """Ask the functions for the cost of every step.

        Raises:
            InvalidValue: a cost is negative or no number, or a function gave an array of the wrong shape.
        """
        runs, hops, results = _runs(model), _hops(model), _results(model)
        sent: Flags = np.asarray(np.isfinite(model.tables.hop_parts_s).all(axis=-1))
        same = np.arange(len(model.topology.tiers))
        sent[:, int(model.topology.ingest == "message") :, same, same] = False
        possible = np.broadcast_to(runs.start < runs.end, runs.seconds.shape)
        return Terms(
            compute=self._asked("compute", self.compute, runs, possible),
            hop=self._asked("hop", self.hop, hops, sent),
            result=self._asked("result", self.result, results, np.ones(results.tier.size, dtype=np.bool_)),
        )

    def _asked(self, what: str, function: Callable[..., Any] | None, steps: Any, possible: Flags) -> Floats:
        """The costs that a function gives to steps, 0 where no plan can take them."""
        if function is None:
            return np.zeros(possible.shape)
        given = np.asarray(function(steps), dtype=np.float64)
        try:
            costs = np.where(possible, given, 0.0)
        except ValueError:
            costs = np.empty(0)
        if costs.shape != possible.shape:
            raise InvalidValue(
                f"the {what} costs of the metric {self.name!r} broadcast to {possible.shape}, but got {given.shape}; "
                "compute them from the arrays of the steps, such as 2 * step.seconds"
            )
        wrong = ~((costs >= 0) & ((costs <= _MOST) | np.isposinf(costs)))
        if wrong.any():
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise InvalidValue(
                f"an additive metric's costs are 0 to {_MOST:g}, or inf where a step is forbidden, but {self.name!r} "
                f"gives {costs[at]} to the {what} {_step(what, at, steps.model)}"
            )
        return costs


def _step(what: str, at: tuple[int, ...], model: PerformanceModel) -> str:
    """What an element of a step's costs is of, in words."""
    names = model.topology.names
    if what == "compute":
        woken, branch, tier, start, end = at
        kind = ("after idling" if woken else "") + (" with its exit" if branch else "")
        return f"of {blocks(start, end)} on {names[tier]} {kind}".rstrip()
    if what == "hop":
        codec, cut, sender, receiver = at
        return f"by {model.tables.codecs[codec]} at cut {cut} from {names[sender]} to {names[receiver]}"
    return f"from {names[at[0]]}"


def _runs(model: PerformanceModel) -> Runs:
    tiers, cuts = np.arange(len(model.topology.tiers)), np.arange(model.profile.num_blocks + 1)
    two = np.arange(2)
    return Runs(
        model=model,
        woken=two[:, None, None, None, None],
        branch=two[:, None, None, None],
        tier=tiers[:, None, None],
        start=cuts[:, None],
        end=cuts,
        seconds=np.nan_to_num(model.tables.compute_s),
    )


def _hops(model: PerformanceModel) -> Hops:
    tiers, cuts = np.arange(len(model.topology.tiers)), np.arange(model.profile.num_blocks + 1)
    size, _ = message_bytes(model)
    parts = model.tables.hop_parts_s
    parts = np.where(np.isfinite(parts), parts, 0.0)
    return Hops(
        model=model,
        codec=np.arange(len(model.tables.codecs))[:, None, None, None],
        cut=cuts[:, None, None],
        sender=tiers[:, None],
        receiver=tiers,
        links=np.abs(tiers[:, None] - tiers),
        bytes=size[..., None],
        seconds=parts.sum(axis=-1),
        encode_s=parts[..., _ENCODE],
        decode_s=parts[..., _DECODE],
    )


def _results(model: PerformanceModel) -> Results:
    tiers = np.arange(len(model.topology.tiers))
    _, size = message_bytes(model)
    parts = model.tables.result_parts_s
    return Results(
        model=model,
        tier=tiers,
        links=np.abs(tiers - model.topology.destination),
        bytes=size,
        seconds=parts.sum(axis=-1),
        encode_s=parts[:, _ENCODE],
        decode_s=parts[:, _DECODE],
    )
