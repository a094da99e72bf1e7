"""What agents are told to run: complete plans, the wanted one first, then those for when a tier is away."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from portend.address import read_address
from portend.errors import MessageError, PortendError, choice, law
from portend.io.storage import from_plain, to_plain
from portend.stats.exit_drift import watch_exits
from portend.values.codecs import ValueRange
from portend.values.execution import Execution
from portend.values.plan import CODECS, CRITERIA, Plan

__all__ = ["MOST_PLANS", "Limits", "NetworkFile", "Release", "plan_name", "read_release"]

MOST_PLANS: Final = 256
"""Plans of one release; a plan's number is the release's version times this, plus its place."""

MOST_IN_A_BATCH: Final = 256


def plan_name(index: int) -> str:
    """Return what messages call the plan at this place of a release."""
    return f"fallback {index}" if index else "the wanted plan"


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the source lets in, and how long it tries.

    Attributes:
        window: samples under way at once. waiting: samples that wait for their turn; more are refused.
        sample_bytes: the largest sample.
        retry_s: a sample that is not answered so long after it was sent is sent again; attempts: how often it is sent
            at most. deadline_s: how long after it was accepted a sample is reported failed.
        beat_s: how often agents tell each other that they live; silence_s: after how much silence one counts as dead.
    """

    window: int = 8
    waiting: int = 64
    sample_bytes: int = 8 << 20
    retry_s: float = 5.0
    attempts: int = 5
    deadline_s: float = 30.0
    beat_s: float = 0.2
    silence_s: float = 1.0

    def __post_init__(self) -> None:
        law(1 <= self.window <= 1 << 16, f"at least one sample is under way, at most 65,536, but got {self.window}")
        law(0 <= self.waiting <= 1 << 16, f"0 to 65,536 samples wait, but got {self.waiting}")
        law(
            1 <= self.sample_bytes <= 1 << 28,
            f"a sample has at least 1 B and at most 256 MiB, but got {self.sample_bytes} B",
        )
        law(1 <= self.attempts <= 1000, f"a sample is sent once to 1,000 times, but got {self.attempts}")
        seconds = (self.retry_s, self.deadline_s, self.beat_s, self.silence_s)
        law(all(0 < s < math.inf for s in seconds), f"times of a service are positive, but got {seconds} s")
        law(
            self.silence_s >= 2 * self.beat_s,
            f"silence is at least two beats, but got {self.silence_s} s of silence and a beat every {self.beat_s} s",
        )

    def too_tight(self, sample_s: float) -> str:
        """Say why samples would fail though nothing is broken, if one alone takes so long; empty if they would not."""
        full_s = self.window * sample_s
        if full_s <= self.deadline_s:
            return ""
        return (
            f"a sample takes {sample_s:.3g} s alone, so up to {full_s:.3g} s with {self.window} under way, but fails "
            f"after {self.deadline_s:g} s; give a smaller --window or a longer --deadline"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkFile:
    """A network's file by what is in it: SHA-256 of the whole file, its size, and how its name ends."""

    sha256: str
    size: int
    suffix: str

    def __post_init__(self) -> None:
        law(
            len(self.sha256) == 64 and not set(self.sha256) - set("0123456789abcdef"),
            f"a SHA-256 has 64 hexadecimal digits, but got {self.sha256!r:.80}",
        )
        law(self.suffix in (".onnx", ".safetensors"), f"a network's file is .onnx or .safetensors, not {self.suffix!r}")
        law(0 < self.size < 1 << 33, f"a network's file has 1 B to 8 GiB, but got {self.size} B")


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """An ordered list of complete plans for the tiers, with all that it takes to run them.

    Attributes:
        version: larger than that of every release before.
        plans: complete ones (``PerformanceModel.complete``), the wanted one first; a new sample takes the first one
            whose tiers are all there.
        tiers: their names, by index. endpoints: host:port of each tier's agent.
        networks, executions, memory_bytes: by tier; memory None: what the host has.
        batches: how many samples a tier runs at once at most, of those that wait for it; by tier; empty: one on each.
        source, destination, ingest: as in the topology. decoder: ``InputDecoder.to_dict``.
        exit_counts: profiling samples of each class that leave at each partition, [C, L], by plan; empty: its exits are
            not watched.
        criterion: of the exits' scores. ranges: of the values at cuts, for int8, by cut as text.
    """

    version: int
    plans: tuple[Plan, ...]
    tiers: tuple[str, ...]
    endpoints: tuple[str, ...]
    networks: tuple[NetworkFile, ...]
    executions: tuple[Execution, ...]
    memory_bytes: tuple[float | None, ...]
    source: int
    destination: int
    ingest: str
    decoder: dict[str, object]
    criterion: str
    ranges: dict[str, dict[str, object]] = field(default_factory=dict)
    batches: tuple[int, ...] = ()
    exit_counts: tuple[tuple[tuple[float, ...], ...], ...] = ()
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        count = len(self.tiers)
        law(0 < self.version < 1 << 48, f"versions count from 1, but got {self.version}")
        law(1 <= len(self.plans) <= MOST_PLANS, f"a release has 1–{MOST_PLANS} plans, but got {len(self.plans)}")
        law(count >= 1 and len(set(self.tiers)) == count, f"tiers have different names, but got {self.tiers}")
        if not self.batches:
            object.__setattr__(self, "batches", (1,) * count)
        law(
            all(1 <= most <= MOST_IN_A_BATCH for most in self.batches),
            f"a batch has 1–{MOST_IN_A_BATCH} samples, but got {self.batches}",
        )
        for name in ("endpoints", "networks", "executions", "memory_bytes", "batches"):
            law(len(getattr(self, name)) == count, f"each of the {count} tiers has its own of {name}")
        for endpoint in self.endpoints:
            read_address(endpoint, least_port=1)
        for role, index in (("source", self.source), ("destination", self.destination)):
            law(0 <= index < count, f"the {role} is one of the {count} tiers by index from 0, but got {index}")
        law(self.ingest in ("in_process", "message"), f"ingest is in_process or message, not {self.ingest!r}")
        choice("a criterion", self.criterion, CRITERIA)
        law(
            len(self.exit_counts) in (0, len(self.plans)),
            f"there are counts for each of {len(self.plans)} plans, or for none, but got {len(self.exit_counts)}",
        )
        for plan in self.plans:
            self._check(plan)
        for plan, counts in zip(self.plans, self.exit_counts, strict=False):
            watch_exits(plan, counts)

    def _check(self, plan: Plan) -> None:
        law(
            max(plan.placement) < len(self.tiers),
            f"there are {len(self.tiers)} tiers, but a plan places on {plan.placement}",
        )
        law(bool(plan.codecs), "a plan that runs names a codec for each hop; complete it by PerformanceModel.complete")
        law(
            not plan.asks or plan.criterion == self.criterion,
            f"the agents score by {self.criterion}, but a plan's thresholds are for {plan.criterion}",
        )
        senders = (self.source, *plan.placement[:-1])
        for step, (sender, tier, codec) in enumerate(zip(senders, plan.placement, plan.codecs, strict=True)):
            usable = CODECS if step == 0 else tuple(name for name in CODECS if name != "encoded")
            if sender != tier or (step == 0 and self.ingest == "message"):
                law(codec in usable, f"partition {step + 1} takes its tensor by a codec, but the plan says {codec!r}")
            cut = str((0, *plan.cuts)[step])
            law(
                codec is None or not codec.startswith("int8") or cut in self.ranges,
                f"partition {step + 1} takes its tensor by {codec}, but there is no range of the values at cut {cut}",
            )

    def number(self, index: int) -> int:
        """Return what messages call the plan at this place."""
        return self.version * MOST_PLANS + index

    def tiers_of(self, index: int) -> frozenset[int]:
        """Return the tiers that a plan needs: those of its partitions, and the destination."""
        return frozenset((*self.plans[index].placement, self.destination))

    def hops_of(self, index: int) -> frozenset[tuple[int, int]]:
        """Return every (sender, receiver) between which a sample under this plan may have to go."""
        plan = self.plans[index]
        path = ((self.source, *plan.placement)[: len(plan.placement)], plan.placement)
        hops = {*zip(*path, strict=True), *((tier, self.destination) for tier in plan.placement)}
        hops.add((self.destination, self.source))
        return frozenset((a, b) for a, b in hops if a != b)

    def senders(self, index: int, kind: str, step: int) -> frozenset[int]:
        """Return the tiers from which a message can come under a plan.

        Args:
            kind: ``tensor`` for partition ``step``, ``result`` for the destination, or ``credit`` for the source.
        """
        path = self.plans[index].placement
        if kind == "credit":
            return frozenset((self.destination,))
        if kind == "result":
            return frozenset((self.source, *path))
        return frozenset((self.source, *path)[step : step + 1] if 0 <= step < len(path) else ())

    def told_by(self, name: str, oldest: int) -> bool:
        """Whether ``name`` may say that this release is active, and that none before ``oldest`` is in use."""
        return name == self.tiers[self.source] and oldest <= self.version

    def value_ranges(self) -> Mapping[int, ValueRange]:
        """Return the ranges of values by cut."""
        return {int(cut): ValueRange.from_dict(data) for cut, data in self.ranges.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return the release as JSON values."""
        values: dict[str, Any] = to_plain(self)
        return values | {"plans": [plan.to_dict() for plan in self.plans]}


def read_release(values: Any) -> Release:
    """Return the release that ``to_dict`` gave.

    Raises:
        MessageError: it is not one, or breaks a law.
    """
    try:
        release = from_plain(Release, values)
        release.value_ranges()
    except (PortendError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise MessageError(f"this is not a release of plans ({error})") from None
    return release
