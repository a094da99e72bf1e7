"""What was measured when a plan ran: raw spans of every sample, and the statistics they give.

Axes: n requests (one sample each), K spans. The columns are raw; all statistics are derived.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from portend.errors import InvalidValue, MismatchError
from portend.values.plan import Plan
from portend.values.topology import Topology

__all__ = ["SPAN_KINDS", "Measurement", "RequestTrace", "Span"]

SPAN_KINDS: Final = ("encode", "transfer", "decode", "compute")
"""A hop is an ``encode`` on the sender, a ``transfer`` (sent to received: transmission,
propagation and what the runtime spends) and a ``decode`` on the receiver; a partition is a ``compute``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """One thing that happened to a sample, in seconds since it was available at the source.

    Attributes:
        kind: one of SPAN_KINDS.
        step: the partition that the hop leads to or that computes; L for the returning result.
        tier: where it happened; for a transfer, the receiving tier.
    """

    kind: str
    step: int
    tier: int
    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestTrace:
    """One sample's way: which sample, where it left, what was answered, and its spans in order."""

    sample: int
    exit_index: int
    label: int
    latency_s: float
    spans: tuple[Span, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Measurement:
    """A plan's run over n samples.

    Attributes:
        plan, topology: what ran where.
        sample: int64 [n], index in the data split; exit_index: int64 [n], partition at which it left.
        label: int64 [n] answered; correct: bool [n], judged by the coordinator, which alone has the labels.
        start_s: float64 [n], when the sample became available, since the first one did.
        latency_s: float64 [n], from available at the source to answered at the destination.
        span_request, span_kind, span_step, span_tier: int64 [K]; span_start_s, span_end_s: float64 [K],
            relative to the request's start. ``span_kind`` indexes SPAN_KINDS.
        provenance: versions, machine, time, window; under ``disturbed`` what else the machine did, if it did.
        weight: float64 [n], how many samples of a larger test each one stands for; means, rates and quantiles are
            of that test. None: each for itself.
    """

    plan: Plan
    topology: Topology
    sample: NDArray[np.int64]
    exit_index: NDArray[np.int64]
    label: NDArray[np.int64]
    correct: NDArray[np.bool_]
    start_s: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    span_request: NDArray[np.int64]
    span_kind: NDArray[np.int64]
    span_step: NDArray[np.int64]
    span_tier: NDArray[np.int64]
    span_start_s: NDArray[np.float64]
    span_end_s: NDArray[np.float64]
    provenance: Mapping[str, str] = field(default_factory=dict)
    weight: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        columns: list[NDArray[Any]] = [self.sample, self.exit_index, self.label, self.correct]
        columns += [self.start_s, self.latency_s]
        if self.weight is not None:
            columns.append(self.weight)
            if not (np.all(self.weight > 0) and np.all(np.isfinite(self.weight))):
                raise InvalidValue(f"each sample stands for some, but got weights down to {self.weight.min()}")
        per_request = {column.size for column in columns}
        if len(per_request) != 1 or not self.sample.size:
            raise InvalidValue(f"a measurement has one entry per request in each column, but got lengths {per_request}")
        per_span = {
            column.size
            for column in (
                self.span_request, self.span_kind, self.span_step, self.span_tier, self.span_start_s, self.span_end_s,
            )
        }  # fmt: skip
        if len(per_span) != 1:
            raise InvalidValue(f"a measurement has one entry per span in each column, but got lengths {per_span}")

    @classmethod
    def joined(cls, parts: Sequence[Measurement]) -> Measurement:
        """Return several runs of one plan as one: requests in their order, each run's starts after the one before.

        Raises:
            MismatchError: the runs are of different plans or topologies, or there is none.
        """
        if not parts or any((p.plan, p.topology) != (parts[0].plan, parts[0].topology) for p in parts):
            raise MismatchError(f"runs that are joined have one plan and topology, but got {len(parts)} that do not")
        first = np.cumsum([0, *(len(part) for part in parts)])
        start = np.cumsum([0.0, *(part.start_s[-1] + part.latency_s[-1] for part in parts)])
        moved = [
            {"start_s": p.start_s + start[i], "span_request": p.span_request + first[i]} for i, p in enumerate(parts)
        ]
        arrays = [item.name for item in fields(cls) if isinstance(getattr(parts[0], item.name), np.ndarray)]
        columns: dict[str, Any] = {
            name: np.concatenate([m.get(name, getattr(p, name)) for p, m in zip(parts, moved, strict=True)])
            for name in arrays
        }
        disturbed = {k: v for part in parts for k, v in part.provenance.items() if k == "disturbed"}
        return replace(parts[-1], **columns, provenance={**parts[-1].provenance, **disturbed})

    def __len__(self) -> int:
        return int(self.sample.size)

    @property
    def stands_for(self) -> int:
        """How many samples the test has: as many as ran, or those that they stand for."""
        return len(self) if self.weight is None else round(float(self.weight.sum()))

    @property
    def share(self) -> NDArray[np.float64]:
        """Each sample's share of the test, [n], in sum 1."""
        return np.full(len(self), 1 / len(self)) if self.weight is None else self.weight / self.weight.sum()

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean() if self.weight is None else self.share @ self.correct)

    @property
    def mean_s(self) -> float:
        """Mean latency in seconds."""
        return float(self.latency_s.mean() if self.weight is None else self.share @ self.latency_s)

    @property
    def standard_error_s(self) -> float | None:
        """Standard error of the mean in seconds, requests taken as independent; None for one request.

        Of weighted samples it is that of a sample stratified by exits: only latencies of one exit vary by chance.
        """
        if len(self) < 2:
            return None
        if self.weight is None:
            return float(self.latency_s.std(ddof=1)) / math.sqrt(len(self))
        variance = 0.0
        for exit_index in np.unique(self.exit_index):
            at = self.exit_index == exit_index
            if at.sum() > 1:
                variance += float(self.share[at].sum()) ** 2 * float(self.latency_s[at].var(ddof=1)) / int(at.sum())
        return math.sqrt(variance)

    def quantile_s(self, q: float) -> float:
        """Latency quantile in seconds: the smallest latency with at least a share ``q`` at or below it."""
        return float(np.quantile(self.latency_s, q, method="inverted_cdf", weights=self.weight))

    def exit_rates(self) -> NDArray[np.float64]:
        """Share of the samples that left at each partition, [L]."""
        if self.weight is None:
            return np.bincount(self.exit_index, minlength=len(self.plan)) / len(self)
        return np.asarray(np.bincount(self.exit_index, weights=self.share, minlength=len(self.plan)), dtype=np.float64)

    def parts_s(self) -> dict[str, float]:
        """Mean seconds per request of each span kind, and ``other``: what no span covers."""
        duration = (self.span_end_s - self.span_start_s) * self.share[self.span_request]
        total = np.bincount(self.span_kind, weights=duration, minlength=len(SPAN_KINDS))
        parts = {kind: float(seconds) for kind, seconds in zip(SPAN_KINDS, total, strict=True)}
        return parts | {"other": self.mean_s - float(total.sum())}

    def traces(self) -> Iterator[RequestTrace]:
        """Yield the requests in the order in which they were made."""
        order = np.argsort(self.span_request, kind="stable")
        bounds = np.searchsorted(self.span_request[order], np.arange(len(self) + 1))
        for index in range(len(self)):
            rows = order[bounds[index] : bounds[index + 1]]
            rows = rows[np.argsort(self.span_start_s[rows], kind="stable")]
            yield RequestTrace(
                sample=int(self.sample[index]),
                exit_index=int(self.exit_index[index]),
                label=int(self.label[index]),
                latency_s=float(self.latency_s[index]),
                spans=tuple(
                    Span(
                        kind=SPAN_KINDS[self.span_kind[row]],
                        step=int(self.span_step[row]),
                        tier=int(self.span_tier[row]),
                        start_s=float(self.span_start_s[row]),
                        end_s=float(self.span_end_s[row]),
                    )
                    for row in rows
                ),
            )
