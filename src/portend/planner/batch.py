"""Plans by the thousand with one placement, and what the model says of them: as a list, or as a block.

Axes: C plans of a batch or columns of a block, R rows of a block, L partitions, M tiers, N+1 cuts, K codecs, P latency
parts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from portend.perfmodel.estimate import PARTS, Estimate, EstimateBatch
from portend.perfmodel.model import PerformanceModel
from portend.values.device_profile import DeviceProfile
from portend.values.plan import Plan, PlanBatch

__all__ = ["Batch", "Block", "OnBlocks", "Outcomes", "weighted"]

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Columns:
    """C ways to cut with one placement, [C, L] each, with what depends on nothing else."""

    model: PerformanceModel
    placement: tuple[int, ...]
    cuts: Ints
    codecs: Ints

    @property
    def senders(self) -> tuple[int, ...]:
        """The tier from which each partition gets its input."""
        return (self.model.topology.source, *self.placement[:-1])

    @cached_property
    def starts(self) -> Ints:
        """The cut at which each partition begins, [C, L]."""
        starts = np.zeros(self.cuts.shape[::-1], dtype=np.intp)
        starts[1:] = self.cuts.T[:-1]
        return starts.T

    def sent(self, k: int) -> bool:
        """Whether a message goes into partition k; on the source's own tier that is the topology's ``ingest``."""
        return self.senders[k] != self.placement[k] or (k == 0 and self.model.topology.ingest == "message")

    def hop_s(self, k: int, part: str | None = None) -> Floats:
        """Seconds [C] of the hop into partition k, or of one of its parts (``PARTS``)."""
        table = self.model.tables.hop_parts_s[:, :, self.senders[k], self.placement[k]]
        return self.at_hop(k, table.sum(axis=-1) if part is None else table[..., PARTS.index(part)])

    def hop_bytes(self, k: int) -> Floats:
        """Bytes [C] of the message into partition k, without the headers of packets."""
        codecs = _device(self.model, self.senders[k]).codecs
        never = np.full(self.model.profile.num_blocks + 1, np.nan)
        sizes = [codecs[c].message_bytes if c in codecs else never for c in self.model.tables.codecs]
        return self.at_hop(k, np.stack(sizes))

    def at_hop(self, k: int, table: Floats) -> Floats:
        """A table [K, N+1] at the codec and cut of each message into partition k; 0 where nothing is sent."""
        size = table.shape[1]
        padded = np.append(table.ravel(), np.zeros(size))  # codec -1 finds the zeros at the end
        return np.asarray(padded.take(self.codecs[:, k] * size + self.starts[:, k]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch(_Columns):
    """C plans with one placement, and what the model says of them.

    The arrays may be views with any memory order, and must not be written to.

    Attributes:
        model: profile, topology and lookup tables; placement: the tier of each partition.
        cuts: int [C, L]; thresholds: float [C, L-1], 0 where an exit is not used; codecs: int [C, L], index into
            ``model.tables.codecs``, -1 where nothing is sent.
        share: [C, L], of the samples that leave at each partition; correct: [C, L], that leave there and are right.
    """

    thresholds: Floats
    share: Floats
    correct: Floats

    def plan(self, index: int) -> Plan:
        """Return one of the plans, without its codecs."""
        return Plan(
            cuts=tuple(self.cuts[index].tolist()),
            placement=self.placement,
            thresholds=tuple(self.thresholds[index].tolist()),
        )

    @classmethod
    def of(cls, plan: Plan, model: PerformanceModel) -> Self:
        """Return the batch of a single plan."""
        estimate = model.estimate(plan)
        names = {name: k for k, name in enumerate(model.tables.codecs)}
        return cls(
            model=model,
            placement=plan.placement,
            cuts=np.array([plan.cuts], dtype=np.intp),
            thresholds=np.array([plan.thresholds], dtype=np.float64).reshape(1, -1),
            codecs=np.array([[-1 if c is None else names[c] for c in estimate.plan.codecs]], dtype=np.intp),
            share=estimate.share[None],
            correct=estimate.correct[None],
        )

    def __len__(self) -> int:
        return len(self.cuts)

    @cached_property
    def reach(self) -> Floats:
        """Share of the samples that reach each partition, [C, L]."""
        reach = np.array(self.share.T, order="C")
        for k in range(len(reach) - 2, -1, -1):
            reach[k] += reach[k + 1]
        return reach.T

    @cached_property
    def accuracy(self) -> Floats:
        """Share of right answers, [C]."""
        return np.asarray(self.correct.sum(axis=1))

    @cached_property
    def latency_s(self) -> Floats:
        """Seconds for a sample that leaves at each partition, ℓ_k, [C, L]."""
        result = self.model.tables.result_parts_s.sum(axis=-1)
        seconds = np.empty(self.cuts.shape[::-1])
        before: Floats | float = 0.0
        for k, tier in enumerate(self.placement):
            step = self.compute_s(k)
            if self.sent(k):
                step += self.hop_s(k)
            before = step + before
            np.add(before, result[tier], out=seconds[k])
        return seconds.T

    @cached_property
    def mean_s(self) -> Floats:
        """Mean latency in seconds, [C]."""
        return _dot(self.share, self.latency_s)

    def compute_s(self, k: int) -> Floats:
        """Seconds [C] that partition k computes."""
        return self.at_run(k, self.model.tables.compute_s)

    def at_run(self, k: int, table: Floats) -> Floats:
        """A table [2 woken, 2 branch run, M, N+1, N+1] at what partition k runs, [C]."""
        size = self.model.profile.num_blocks + 1
        woken = int(k == 0 or self.senders[k] != self.placement[k])
        used: Any = self.thresholds[:, k] > 0 if k < len(self.placement) - 1 else 1
        row = (used * size + self.starts[:, k]) * size + self.cuts[:, k]
        return np.asarray(table[woken, :, self.placement[k]].ravel().take(row))

    @cached_property
    def busy_s(self) -> dict[int, Floats]:
        """Mean seconds [C] per sample that each tier computes, encodes and decodes; only tiers that do."""
        busy: dict[int, Floats] = {}

        def add(tier: int, seconds: Floats) -> None:
            busy[tier] = busy[tier] + seconds if tier in busy else seconds

        tables, to = self.model.tables, self.model.topology.destination
        encode, decode = PARTS.index("encode"), PARTS.index("decode")
        for k, (sender, tier) in enumerate(zip(self.senders, self.placement, strict=True)):
            reach = self.reach[:, k]
            work = self.compute_s(k)
            if self.sent(k):
                add(sender, reach * self.hop_s(k, "encode"))
                work += self.hop_s(k, "decode")
            add(tier, reach * work)
            if tier != to:
                add(tier, self.share[:, k] * tables.result_parts_s[tier, encode])
                add(to, self.share[:, k] * tables.result_parts_s[tier, decode])
        return busy

    def messages(self) -> list[tuple[int, int, Floats, Floats]]:
        """Messages between tiers: sender, receiver, mean number per sample [C] and bytes each [C]."""
        found = []
        to = self.model.topology.destination
        for k, (sender, tier) in enumerate(zip(self.senders, self.placement, strict=True)):
            if sender != tier:
                found.append((sender, tier, self.reach[:, k], self.hop_bytes(k)))
            if tier != to:
                size = np.full(len(self), _device(self.model, tier).result.message_bytes)
                found.append((tier, to, self.share[:, k], size))
        return found

    @cached_property
    def link_s(self) -> dict[tuple[int, int], Floats]:
        """Mean seconds [C] per sample that each link (j, direction ±1) is sending, packet headers included."""
        busy: dict[tuple[int, int], Floats] = {}
        for sender, receiver, count, size in self.messages():
            path = self.model.topology.path(sender, receiver)
            header = max(link.header_bytes for link in path)
            room = min(link.mtu_bytes for link in path) - header
            bits = 8 * (size + header * np.maximum(np.ceil(size / room), 1.0))
            way = 1 if receiver > sender else -1
            for j in range(min(sender, receiver), max(sender, receiver)):
                seconds = count * bits / self.model.topology.links[j].bandwidth_bps
                busy[j, way] = busy[j, way] + seconds if (j, way) in busy else seconds
        return busy

    @cached_property
    def busiest_s(self) -> Floats:
        """Seconds [C] per sample of the tier or link direction that is busy longest."""
        return np.asarray(np.maximum.reduce([*self.busy_s.values(), *self.link_s.values()]))

    @cached_property
    def plans(self) -> PlanBatch:
        """The plans as columns."""
        placement = np.broadcast_to(np.asarray(self.placement, dtype=np.intp), self.cuts.shape)
        return PlanBatch(cuts=self.cuts, placement=placement, thresholds=self.thresholds, codecs=self.codecs)

    @cached_property
    def estimates(self) -> EstimateBatch:
        """The estimates part by part; slower than the other fields, which add the parts up at once."""
        parts = np.zeros((*self.cuts.shape, len(PARTS)))
        for k in range(len(self.placement)):
            if self.sent(k):
                for index, part in enumerate(PARTS):
                    parts[:, k, index] = self.hop_s(k, part)
            parts[:, k, PARTS.index("compute")] = self.compute_s(k)
        back = self.model.tables.result_parts_s[np.asarray(self.placement)]
        return EstimateBatch(
            share=self.share,
            correct=self.correct,
            step_parts_s=parts,
            result_parts_s=np.broadcast_to(back, parts.shape),
        )

    def __iter__(self) -> Iterator[Estimate]:
        """The estimates one by one, as ``Estimate``."""
        names = (*self.model.tables.codecs, None)
        for i in range(len(self)):
            yield Estimate(
                plan=Plan(
                    cuts=tuple(self.cuts[i].tolist()),
                    placement=self.placement,
                    thresholds=tuple(self.thresholds[i].tolist()),
                    codecs=tuple(names[k] for k in self.codecs[i]),
                    criterion=self.model.profile.exits.criterion,
                ),
                estimator=self.model.estimator,
                share=self.share[i],
                correct=self.correct[i],
                step_parts_s=self.estimates.step_parts_s[i],
                result_parts_s=self.estimates.result_parts_s[i],
                samples=self.model.samples,
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcomes:
    """Who leaves where, and who is right: share and correct [L, R, C], of all samples."""

    share: Floats
    correct: Floats

    @cached_property
    def reach(self) -> Floats:
        """Share of the samples that reach each partition, [L, R, C]."""
        reach = np.array(self.share)
        for k in range(len(reach) - 2, -1, -1):
            reach[k] += reach[k + 1]
        return reach

    @cached_property
    def accuracy(self) -> Floats:
        """Share of right answers, [R, C]."""
        return np.asarray(self.correct.sum(axis=0))

    def take(self, columns: Ints | NDArray[np.bool_]) -> Outcomes:
        """Return those of some columns."""
        return Outcomes(share=self.share[:, :, columns], correct=self.correct[:, :, columns])


@dataclass(frozen=True, kw_only=True, eq=False)
class Block(_Columns):
    """R x C plans with one placement: a row for each choice of thresholds, a column for each choice of cuts.

    What depends on the cuts alone is there once for each column, so that a metric is a few operations on arrays [R, C].

    Attributes:
        model: profile, topology and lookup tables; placement: the tier of each partition.
        cuts: int [C, L]; codecs: int [C, L], index into ``model.tables.codecs``, -1 where nothing is sent.
        thresholds: [L-1, R, C], 0 where an exit is not used.
        outcomes: who leaves where, shared by the blocks of all placements.
    """

    thresholds: Floats
    outcomes: Outcomes

    @classmethod
    def of(cls, batch: Batch) -> Self:
        """Return a batch as a block of one row."""
        return cls(
            model=batch.model,
            placement=batch.placement,
            cuts=batch.cuts,
            codecs=batch.codecs,
            thresholds=batch.thresholds.T[:, None],
            outcomes=Outcomes(share=batch.share.T[:, None], correct=batch.correct.T[:, None]),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(R, C)."""
        return self.outcomes.share.shape[1], len(self.cuts)

    @property
    def share(self) -> Floats:
        """Share of the samples that leave at each partition, [L, R, C]."""
        return self.outcomes.share

    @property
    def correct(self) -> Floats:
        """Share of the samples that leave at each partition and are right, [L, R, C]."""
        return self.outcomes.correct

    @property
    def reach(self) -> Floats:
        """Share of the samples that reach each partition, [L, R, C]."""
        return self.outcomes.reach

    @property
    def accuracy(self) -> Floats:
        """Share of right answers, [R, C]."""
        return self.outcomes.accuracy

    @cached_property
    def latency_s(self) -> list[Floats]:
        """Seconds for a sample that leaves at each partition: L arrays [1, C], or [R, C] where thresholds matter."""
        result = self.model.tables.result_parts_s.sum(axis=-1)
        seconds: list[Floats] = []
        before: Floats = np.zeros((1, len(self.cuts)))
        for k, tier in enumerate(self.placement):
            before = before + self.compute_s(k) + (self.hop_s(k) if self.sent(k) else 0.0)
            seconds.append(before + result[tier])
        return seconds

    @cached_property
    def mean_s(self) -> Floats:
        """Mean latency in seconds, [R, C]."""
        return weighted(self.share, self.latency_s)

    def compute_s(self, k: int) -> Floats:
        """Seconds that partition k computes: [1, C], or [R, C] where exits are used in some rows only."""
        return self.at_run(k, self.model.tables.compute_s)

    def at_run(self, k: int, table: Floats) -> Floats:
        """A table [2 woken, 2 branch run, M, N+1, N+1] at what partition k runs, [1, C] or [R, C]."""
        woken = int(k == 0 or self.senders[k] != self.placement[k])
        bare, full = table[woken, :, self.placement[k], self.starts[:, k], self.cuts[:, k]].T[:, None]
        used = self.thresholds[k] > 0 if k < len(self.placement) - 1 else np.True_
        return np.asarray(full if used.all() else np.where(used, full, bare))

    @cached_property
    def flat(self) -> Batch:
        """The plans one by one, row after row."""
        length, (rows, columns) = len(self.placement), self.shape
        return Batch(
            model=self.model,
            placement=self.placement,
            cuts=np.tile(self.cuts.T, rows).T,
            thresholds=self.thresholds.reshape(length - 1, rows * columns).T,
            codecs=np.tile(self.codecs.T, rows).T,
            share=self.share.reshape(length, -1).T,
            correct=self.correct.reshape(length, -1).T,
        )


class OnBlocks(ABC):
    """A metric's function of a whole ``Block``, which needs no list of its plans."""

    @abstractmethod
    def on_block(self, block: Block) -> Any:
        """Return the values of a block, [R, C]."""

    def __call__(self, batch: Batch) -> Any:
        """Return the values of a batch, [C]."""
        (values,) = np.asarray(self.on_block(Block.of(batch)))
        return values


def weighted(weights: Floats, costs: list[Floats]) -> Floats:
    """Sum over the partitions of weights [L, R, C] times costs that broadcast to [R, C]."""
    total: Floats = weights[0] * costs[0]
    for weight, cost in zip(weights[1:], costs[1:], strict=True):
        total += weight * cost
    return total


def _dot(a: Floats, b: Floats) -> Floats:
    """Sum over the partitions of the products of [C, L] and [C, L], in the order of the partitions."""
    total: Floats = a[:, 0] * b[:, 0]
    for k in range(1, a.shape[1]):
        total += a[:, k] * b[:, k]
    return total


def _device(model: PerformanceModel, tier: int) -> DeviceProfile:
    return model.profile.devices[model.topology.tiers[tier].device]
