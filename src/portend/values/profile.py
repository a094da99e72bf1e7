"""What was measured before planning: how samples exit, and what each device needs.

Axes: S samples, N blocks (N+1 cuts), T thresholds, R repeats, C channels. Every per-cut table has N+1
entries; entries without a meaning (an end cut not after its start, a codec that cannot be used
at a cut) are NaN. Raw repeats are kept; what is used of them is their mean, because a mean
latency is a sum of means: times are skewed, and medians would understate it. From ten repeats on, the
tails (the lowest and highest tenth) are shared out over the whole table in proportion to time: a
disturbance hits whatever runs, so what disturbances add is estimated from all entries together. Planning
uses the compute times that all means together make likely (``compute_fit``).
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from portend.errors import InvalidValue, MismatchError, choice, law
from portend.values.compute_fit import ComputeFit, Features, StartFit, fit_compute, fit_starts, mean_repeats
from portend.values.execution import Execution
from portend.values.plan import CODECS, CRITERIA, LOSSY, Plan, takes_exit

__all__ = [
    "BackboneSpec",
    "CodecLoss",
    "CodecProfile",
    "DeviceProfile",
    "Exits",
    "Prediction",
    "Profile",
    "ResultProfile",
    "SampleExits",
    "TabulatedExits",
    "ValueRange",
    "channel_axis",
    "mean_repeats",
    "slowed",
]

Floats = NDArray[np.float64]

_FLOAT_BYTES: Final = 4  # activations are float32


def _freeze(owner: Any, **arrays: tuple[ArrayLike, Any]) -> None:
    """Store each array read-only, with the given dtype, on a frozen dataclass."""
    for name, (value, dtype) in arrays.items():
        object.__setattr__(owner, name, _frozen(value, dtype))


def _frozen(value: ArrayLike, dtype: Any) -> NDArray[Any]:
    """The array itself where nobody can write to it (such as one mapped from a file), else a read-only copy."""
    if isinstance(value, np.ndarray) and value.dtype == dtype and _read_only(value):
        return value
    array = np.array(value, dtype=dtype)
    law(
        np.issubdtype(dtype, np.floating) or np.array_equal(array, value),
        f"counts and labels are whole numbers, and what is right is true or false, but got {np.asarray(value).dtype}",
    )
    array.setflags(write=False)
    return array


def _read_only(array: NDArray[Any]) -> bool:
    base: Any = array
    while isinstance(base, np.ndarray):
        if base.flags.writeable:
            return False
        base = base.base
    return base is None or memoryview(base).readonly


def _overlaid(old: Floats, new: Floats) -> Floats:
    """The means [1, ...] of ``new`` where it has any, those of ``old`` elsewhere: each with its own tails."""
    means = [mean_repeats(repeats) for repeats in (old, new) if len(repeats)]
    table = np.where(np.isfinite(means[-1]), means[-1], means[0])[None]
    return table if np.isfinite(table).any() else old


_M = TypeVar("_M", "CodecProfile", "ResultProfile")


def _timed_by(messages: _M, factor: float) -> _M:
    """What messages cost where all that is timed takes ``factor`` times as long."""
    times = [item.name for item in fields(messages) if item.name.endswith("_repeats_s")]
    return replace(messages, **{name: factor * getattr(messages, name) for name in times})


def _filled(values: Floats, over: Floats) -> Floats:
    """Values [N+1] where they are known; elsewhere on their least-squares line over ``over``, NaN if none is known.

    Cut 0, where the sender was idle before, is left out of the line if others are known.
    """
    known = np.isfinite(values) & np.isfinite(over)
    if known[1:].any():
        known[0] = False
    if not known.any():
        return values
    x, y = over[known], values[known]
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread > 0 else 0.0
    return np.asarray(np.where(np.isfinite(values), values, y.mean() + slope * (over - x.mean())))


def slowed(first: ArrayLike, busy: ArrayLike, slowdown: float) -> Floats:
    """Seconds of work on a device ``slowdown`` times slower: what its start costs, and the work so many times.

    The start (waking up, cold caches) is ``first - busy``; a slower processor does not make it
    longer, which is also how the runtime emulates one: it repeats the work.
    """
    once = np.asarray(busy, dtype=np.float64)
    return np.asarray(np.maximum(first, once) + (slowdown - 1.0) * once)


def _numbered(values: Sequence[object]) -> tuple[int, ...]:
    """Values by numbers from 0 on, in the order in which they first come."""
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return tuple(numbers[value] for value in values)


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneSpec:
    """The network: a chain of N blocks.

    Attributes:
        name: such as ``resnet20``.
        block_names: N names; cut c lies after ``block_names[c-1]``.
        num_classes: number of labels.
        cut_shapes: N+1 tensor shapes of one sample, without the batch axis.
        weights_sha256: digest of the weights that were profiled.
        block_bytes, branch_bytes: N sizes each of the weights of the blocks and of the exit branches; empty: unknown.
        exits: cuts that have an exit branch, increasing; the last cut is one of them. None: all of 1–N.
    """

    name: str
    block_names: tuple[str, ...]
    num_classes: int
    cut_shapes: tuple[tuple[int, ...], ...]
    weights_sha256: str = ""
    block_bytes: tuple[float, ...] = ()
    branch_bytes: tuple[float, ...] = ()
    exits: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        law(len(self.block_names) >= 1, "a backbone has at least one block, but got none")
        law(self.num_classes >= 2, f"a classifier has at least two classes, but got {self.num_classes}")
        law(
            len(self.cut_shapes) == len(self.block_names) + 1,
            f"{len(self.block_names)} blocks have {len(self.block_names) + 1} cuts, "
            f"but got {len(self.cut_shapes)} cut shapes",
        )
        for name, sizes in (("block_bytes", self.block_bytes), ("branch_bytes", self.branch_bytes)):
            law(
                len(sizes) in (0, len(self.block_names)) and all(0 <= size < np.inf for size in sizes),
                f"{name} are {len(self.block_names)} sizes of at least 0, or none where they are not known, "
                f"but got {sizes}",
            )
        cuts = (0, *self.exit_cuts)
        law(
            all(a < b for a, b in pairwise(cuts)) and cuts[-1] == self.num_blocks,
            f"cuts with an exit branch increase within 1–{self.num_blocks} and end with {self.num_blocks}, "
            f"but got {self.exits}; the last block always has one",
        )

    @property
    def num_blocks(self) -> int:
        return len(self.block_names)

    def partition_bytes(self) -> Floats:
        """Bytes of memory that blocks start:end need, [N+1, N+1] (``docs/model.md``, Memory); NaN elsewhere.

        Their weights, those of the branch at ``end``, and the largest input and output of one of the blocks together.

        Raises:
            MismatchError: the sizes of the weights are not known.
        """
        if not (self.block_bytes and self.branch_bytes):
            raise MismatchError(
                f"the memory that {self.name} needs is not known, for the profile has no sizes of its weights; profile "
                "it again, or leave the memory of tiers out of the topology and of the problem"
            )
        count = self.num_blocks
        tensors = _FLOAT_BYTES * np.array([math.prod(shape) for shape in self.cut_shapes], dtype=np.float64)
        weights = np.concatenate(([0.0], np.cumsum(self.block_bytes)))
        table = np.full((count + 1, count + 1), np.nan)
        for start in range(count):
            held = np.maximum.accumulate(tensors[start:-1] + tensors[start + 1 :])
            table[start, start + 1 :] = weights[start + 1 :] - weights[start] + self.branch_bytes[start:] + held
        return table

    def features(self) -> Features:
        """What partitions have in common: blocks of equal shapes before and after, and branches of equal shape."""
        shapes, exits = self.cut_shapes, set(self.exit_cuts)
        ends = [(shape, cut in exits) for cut, shape in enumerate(shapes[1:], start=1)]
        return Features(_numbered(list(pairwise(shapes))), _numbered(ends))

    @property
    def exit_cuts(self) -> tuple[int, ...]:
        """The cuts that have an exit branch."""
        return tuple(range(1, self.num_blocks + 1)) if self.exits is None else self.exits


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SampleExits:
    """Every branch's scores and correctness for every profiling sample, viewed by one criterion.

    Attributes:
        scores: by criterion (``plan.CRITERIA``), float32 or float64 [S, N]; low means confident; a sample leaves
            where score < threshold. Profiling gives float32, as do the agents (``models.exits.score``).
        correct: bool [S, N].
        labels: int64 [S], the samples' classes; None: not known, as in files from before they were kept.
        criterion: that of ``score``, ``rates`` and ``leaving``; one of ``scores``.
    """

    scores: Mapping[str, NDArray[np.floating[Any]]]
    correct: NDArray[np.bool_]
    labels: NDArray[np.int64] | None = None
    criterion: str = "entropy"

    def __post_init__(self) -> None:
        _freeze(self, correct=(self.correct, np.bool_))
        given = {name: np.asarray(table) for name, table in self.scores.items()}
        kinds = {name: np.float32 if table.dtype == np.float32 else np.float64 for name, table in given.items()}
        scores = {name: _frozen(table, kinds[name]) for name, table in given.items()}
        object.__setattr__(self, "scores", scores)
        for name in (*scores, self.criterion):
            choice("a criterion", name, CRITERIA)
        law(
            self.criterion in scores,
            f"exits are viewed by one of the criteria that they have scores of, which are {', '.join(scores)}, "
            f"but got {self.criterion}",
        )
        for name, table in scores.items():
            law(
                table.ndim == 2 and table.shape == self.correct.shape and table.size > 0,
                f"scores and correct are [samples, branches] alike and not empty, but got {table.shape} ({name}) "
                f"and {self.correct.shape}",
            )
        if self.labels is not None:
            _freeze(self, labels=(self.labels, np.int64))
            law(
                self.labels.shape == (self.samples,),
                f"labels are one class for each of the {self.samples} samples, but got {self.labels.shape}",
            )

    @property
    def score(self) -> NDArray[np.floating[Any]]:
        """The scores of ``criterion``, [S, N]."""
        return self.scores[self.criterion]

    @property
    def samples(self) -> int:
        return int(self.correct.shape[0])

    @property
    def num_branches(self) -> int:
        return int(self.correct.shape[1])

    def by(self, criterion: str) -> SampleExits:
        """Return the same exits viewed by another criterion; nothing is copied.

        Raises:
            MismatchError: there are no scores of it.
        """
        if criterion not in self.scores:
            raise MismatchError(
                f"these exits have scores of {', '.join(self.scores)}, but {criterion} was asked for; "
                "profile the network again to have all"
            )
        return self if criterion == self.criterion else replace(self, criterion=criterion)

    def part(self, indices: ArrayLike) -> SampleExits:
        """Return the exits of some of the samples, in the order of ``indices``; a sample may be there twice."""
        rows = np.asarray(indices)
        return replace(
            self,
            scores={name: table[rows] for name, table in self.scores.items()},
            correct=self.correct[rows],
            labels=None if self.labels is None else self.labels[rows],
        )

    def rates(self, thresholds: ArrayLike) -> Floats:
        """Exit rates ER_i^T, [T, N] in 0–1: each branch on all samples, no branch before it."""
        theta = np.atleast_1d(np.asarray(thresholds, dtype=np.float64))
        return np.stack([self.leaving(t).mean(axis=0) for t in theta])

    def leaving(self, threshold: float) -> NDArray[np.bool_]:
        """Which samples a branch would let go, bool [S, N]."""
        return takes_exit(self.score, threshold)

    def accuracies(self) -> Floats:
        """Accuracy A_i of each branch on all samples, [N] in 0–1."""
        return np.asarray(self.correct.mean(axis=0))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TabulatedExits:
    """Exit counts at fixed thresholds, for data that comes only as tables.

    Attributes:
        thresholds: float64 [T], increasing; exited: int64 [T, N] counts; correct: int64 [N] counts
            over all samples; samples: S.
    """

    thresholds: Floats
    exited: NDArray[np.int64]
    correct: NDArray[np.int64]
    samples: int

    def __post_init__(self) -> None:
        _freeze(
            self,
            thresholds=(self.thresholds, np.float64),
            exited=(self.exited, np.int64),
            correct=(self.correct, np.int64),
        )
        law(self.samples > 0, f"a table counts at least one sample, but got {self.samples}")
        law(
            self.exited.shape == (self.thresholds.size, self.correct.size),
            f"exited is [thresholds, branches] = {(self.thresholds.size, self.correct.size)}, "
            f"but got {self.exited.shape}",
        )
        for name, counts in (("exited", self.exited), ("correct", self.correct)):
            law(
                bool(np.all((counts >= 0) & (counts <= self.samples))),
                f"{name} counts lie within 0–{self.samples}, but got {counts.min()} to {counts.max()}",
            )

    @property
    def num_branches(self) -> int:
        return int(self.correct.size)

    @property
    def criterion(self) -> str:
        """What the thresholds are compared with: tables count by normalized entropy."""
        return "entropy"

    def by(self, criterion: str) -> TabulatedExits:
        """Return the table itself; MismatchError for another criterion than entropy."""
        if criterion != self.criterion:
            raise MismatchError(
                f"an exit table counts by entropy, but {criterion} was asked for; profile per-sample scores"
            )
        return self

    def rates(self, thresholds: ArrayLike) -> Floats:
        """Exit rates ER_i^T, [T, N]; MismatchError for a threshold that is not in the table."""
        theta = np.atleast_1d(np.asarray(thresholds, dtype=np.float64))
        row = np.abs(self.thresholds[None, :] - theta[:, None]).argmin(axis=1)
        missing = theta[~np.isclose(self.thresholds[row], theta, rtol=0, atol=1e-9)]
        if missing.size:
            raise MismatchError(
                f"this exit table has the thresholds {self.thresholds.tolist()}, but {missing.tolist()} was asked "
                f"for; choose from the table (--thresholds {','.join(f'{t:g}' for t in self.thresholds)}), or profile "
                "per-sample scores"
            )
        return np.asarray(self.exited[row] / self.samples, dtype=np.float64)

    def accuracies(self) -> Floats:
        """Accuracy A_i of each branch on all samples, [N] in 0–1."""
        return self.correct / self.samples


Exits = SampleExits | TabulatedExits


def _listed(provenance: Mapping[str, str]) -> str:
    """Which samples, of what data, as far as it is known."""
    return f" of {provenance['data']}" if "data" in provenance else ""


def channel_axis(shape: tuple[int, ...]) -> int:
    """Axis of a sample's channels: the last of a sequence [T, D], else the first ([C, H, W], [D])."""
    return 1 if len(shape) == 2 else 0


_LARGEST: Final = 1e30  # far from where float32 overflows


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ValueRange:
    """Between which values int8 writes the numbers at one cut.

    Attributes:
        tensor: float64 [2], low and high end for the whole tensor; channels: float64 [2, C], of each channel.
    """

    tensor: Floats
    channels: Floats

    def __post_init__(self) -> None:
        _freeze(self, tensor=(self.tensor, np.float64), channels=(self.channels, np.float64))
        law(
            self.tensor.shape == (2,)
            and self.channels.ndim == 2
            and len(self.channels) == 2
            and self.channels.size > 0,
            f"a range is [2] for the tensor and [2, channels], but got {self.tensor.shape} and {self.channels.shape}",
        )
        for low, high in (self.tensor, self.channels):
            law(
                bool(np.all(low <= high) and np.all(low >= -_LARGEST) and np.all(high <= _LARGEST)),
                f"a range goes from its low to its high end, finite and within ±{_LARGEST:g}; profile the codecs again",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"tensor": self.tensor.tolist(), "channels": self.channels.tolist()}

    @classmethod
    def from_dict(cls, data: Any) -> ValueRange:
        """Return what ``to_dict`` gave.

        Raises:
            InvalidValue: it is no such range.
        """
        try:
            return cls(tensor=data["tensor"], channels=data["channels"])
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise InvalidValue(f"a range of values has tensor [2] and channels [2, C] of numbers ({error})") from None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CodecLoss:
    """What a lossy codec at one cut does to the answers of the exits after it, counted on profiling samples.

    Attributes:
        lost, gained: float64 [N+1, N]; samples that the branch of a block classifies right without the codec at the cut
            and wrong with it, and the other way round. NaN for branches that are not there or not after the cut.
        samples: how many were counted.
    """

    lost: Floats
    gained: Floats
    samples: int

    def __post_init__(self) -> None:
        _freeze(self, lost=(self.lost, np.float64), gained=(self.gained, np.float64))
        law(self.samples >= 1, f"at least one sample is counted, but got {self.samples}")
        for name, counts in (("lost", self.lost), ("gained", self.gained)):
            law(
                counts.ndim == 2 and counts.shape[0] == counts.shape[1] + 1 and counts.shape == self.lost.shape,
                f"{name} is [cuts, branches] = [N+1, N], but got {counts.shape}",
            )
            known = counts[np.isfinite(counts)]
            law(
                bool(np.all((known >= 0) & (known <= self.samples))),
                f"{name} counts lie within 0–{self.samples}, but got {known.min() if known.size else counts}",
            )

    @property
    def drops(self) -> Floats:
        """Accuracy that each branch loses, [N+1, N] in −1–1."""
        return np.asarray((self.lost - self.gained) / self.samples)

    @property
    def loss(self) -> Floats:
        """Largest accuracy that a branch after each cut loses, [N+1] in 0–1; NaN where nothing was counted."""
        known = np.isfinite(self.drops)
        worst = np.where(known, self.drops, 0.0).max(axis=1, initial=0.0)
        return np.asarray(np.where(known.any(axis=1), worst, np.nan))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CodecProfile:
    """What one codec costs at every cut on one device.

    Attributes:
        message_bytes: float64 [N+1]; the whole message on the wire (framing, header, payload); the mean over samples.
        encode_repeats_s, decode_repeats_s: float64 [R, N+1]; as they happen: encoding after a
            computation (at cut 0 after idling), decoding by a receiver that the message woke. NaN where it was not
            measured: there what it takes more than the busy time follows from a line over that time.
        encode_busy_repeats_s, decode_busy_repeats_s: the same work right after, again and again.
        dispatch_repeats_s: float64 [R, N+1]; what the runtime spends on a message of that size
            between the sender's send and the receiver's receive with no link between them. Where it was not
            measured it follows from a line over the bytes.
        spread_bytes: float64 [N+1]; standard deviation of the sizes over the samples; empty: not known.
    """

    message_bytes: Floats
    encode_repeats_s: Floats
    encode_busy_repeats_s: Floats
    decode_repeats_s: Floats
    decode_busy_repeats_s: Floats
    dispatch_repeats_s: Floats
    spread_bytes: Floats = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        _freeze(self, message_bytes=(self.message_bytes, np.float64), spread_bytes=(self.spread_bytes, np.float64))
        law(
            self.spread_bytes.shape in ((0,), self.message_bytes.shape),
            f"spread_bytes has one number for each of {self.message_bytes.size} cuts, but got "
            f"{self.spread_bytes.shape}",
        )
        for name in (item.name for item in fields(self) if item.name.endswith("_repeats_s")):
            _freeze(self, **{name: (getattr(self, name), np.float64)})
            shape = getattr(self, name).shape
            law(
                len(shape) == 2 and shape[0] >= 1 and shape[1] == self.message_bytes.size,
                f"{name} is [repeats, {self.message_bytes.size} cuts], but got {shape}",
            )

    @property
    def offered(self) -> NDArray[np.bool_]:
        """Cuts at which the codec can be used, [N+1]."""
        return np.isfinite(self.message_bytes)

    def encode_s(self, slowdown: float = 1.0) -> Floats:
        """Mean seconds to encode on a device ``slowdown`` times slower, [N+1] (see ``slowed``)."""
        return _slowed(self.encode_repeats_s, self.encode_busy_repeats_s, slowdown)

    def decode_s(self, slowdown: float = 1.0) -> Floats:
        """Mean seconds to decode on a device ``slowdown`` times slower, [N+1]."""
        return _slowed(self.decode_repeats_s, self.decode_busy_repeats_s, slowdown)

    @property
    def dispatch_s(self) -> Floats:
        """Mean seconds that the runtime spends per message, [N+1]."""
        return np.maximum(_filled(_mean(_Same(self.dispatch_repeats_s)), self.message_bytes), 0.0)


def _slowed(first_repeats: Floats, busy_repeats: Floats, slowdown: float) -> Floats:
    first, busy = _mean(_Same(first_repeats)), _mean(_Same(busy_repeats))
    line = busy + _filled(first - busy, busy)
    return slowed(np.where(np.isfinite(first), first, line), busy, slowdown)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ResultProfile:
    """What returning a result costs on one device: bytes on the wire, seconds [R] (see CodecProfile)."""

    message_bytes: float
    encode_repeats_s: Floats
    decode_repeats_s: Floats
    decode_busy_repeats_s: Floats
    dispatch_repeats_s: Floats

    def __post_init__(self) -> None:
        for name in (item.name for item in fields(self) if item.name != "message_bytes"):
            _freeze(self, **{name: (getattr(self, name), np.float64)})
            shape = getattr(self, name).shape
            law(len(shape) == 1 and shape[0] >= 1, f"{name} is [repeats], at least one, but got {shape}")

    def encode_s(self, slowdown: float = 1.0) -> float:
        """Mean seconds to encode a result on a device ``slowdown`` times slower."""
        return slowdown * float(np.mean(self.encode_repeats_s))

    def decode_s(self, slowdown: float = 1.0) -> float:
        """Mean seconds to decode a result on a device ``slowdown`` times slower."""
        return float(slowed(np.mean(self.decode_repeats_s), np.mean(self.decode_busy_repeats_s), slowdown))

    @property
    def dispatch_s(self) -> float:
        """Mean seconds that the runtime spends on a result."""
        return float(np.mean(self.dispatch_repeats_s))


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """How far the estimate was off where it was checked (``profiling.prediction``), of a profile with a budget.

    Attributes:
        mean_error, worst_error: relative, of ``checks`` measured partitions drawn at random, each estimated
            from all others; the measurement's own noise is part of it.
    """

    mean_error: float
    worst_error: float
    checks: int

    def __post_init__(self) -> None:
        law(
            0 <= self.mean_error <= self.worst_error and self.checks >= 1,
            "a prediction states the mean and the worst error of at least one check, "
            f"but got {self.mean_error}, {self.worst_error} of {self.checks}",
        )

    def __str__(self) -> str:
        return (
            f"an error of {100 * self.mean_error:.1f} % in the mean and {100 * self.worst_error:.1f} % at worst, in "
            f"{self.checks} checks"
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DeviceProfile:
    """What one device needs for one network.

    Attributes:
        device: name that tiers refer to; execution: what ran the network; tiers of this device run it likewise.
        compute_repeats_s: float64 [R, N+1, N+1]; seconds for blocks start:end with the exit
            branch at ``end``, soft-max and score included (paper, CT partition-wise).
        idle_repeats_s: float64 [R, B, N+1, N+1]; the first B times that a partition runs, one right
            after the other, on a device that was idle before: cold caches make them longer. It is
            what a partition costs that a message or a new sample wakes. NaN where it was not
            measured; R = 0: no difference is made.
        following_repeats_s: float64 [R, B, N+1, N+1]; the same right after another partition ran on a device
            that was idle before: what a partition costs that follows another on the same tier. None or
            R = 0: not measured, it costs what a busy one does.
        branch_repeats_s: float64 [R, N+1]; the exit branch at each cut alone; subtracted where
            a partition passes its exit unused (threshold 0).
        codecs: by name; result: the message that returns a label.
        environment: CPU, threads, library versions, clock.
        prediction: how far estimates of partitions that were not measured (NaN in ``compute_repeats_s``) may be off;
            None: all were measured.
        network: what was profiled; None in profiles from before it was kept.
    """

    device: str
    compute_repeats_s: Floats
    idle_repeats_s: Floats
    branch_repeats_s: Floats
    codecs: Mapping[str, CodecProfile]
    result: ResultProfile
    environment: Mapping[str, str] = field(default_factory=dict)
    execution: Execution = field(default_factory=Execution)
    prediction: Prediction | None = None
    network: BackboneSpec | None = None
    following_repeats_s: Floats | None = None

    def __post_init__(self) -> None:
        if self.following_repeats_s is not None:
            _freeze(self, following_repeats_s=(self.following_repeats_s, np.float64))
        _freeze(
            self,
            compute_repeats_s=(self.compute_repeats_s, np.float64),
            idle_repeats_s=(self.idle_repeats_s, np.float64),
            branch_repeats_s=(self.branch_repeats_s, np.float64),
        )
        shape = self.compute_repeats_s.shape
        law(
            len(shape) == 3 and shape[0] >= 1 and shape[1] == shape[2] >= 2,
            f"compute_repeats_s is [repeats, N+1, N+1], but got {shape}",
        )
        for name in ("idle_repeats_s", "following_repeats_s"):
            table = getattr(self, name)
            law(
                table is None or (table.ndim == 4 and table.shape[2:] == shape[1:]),
                f"{name} is [repeats, burst, {shape[1]}, {shape[1]}], but got {table is not None and table.shape}",
            )
        law(
            not self.idle_repeats_s.shape[0] or bool(np.isfinite(mean_repeats(self.idle_repeats_s)).all(axis=0).any()),
            "idle_repeats_s needs at least one measured partition, or no repeats at all",
        )
        law(
            self.branch_repeats_s.ndim == 2 and self.branch_repeats_s.shape[1] == shape[1],
            f"branch_repeats_s is [repeats, {shape[1]} cuts], but got {self.branch_repeats_s.shape}",
        )
        law(bool(self.codecs), "a device profile needs at least one codec, but got none")
        for name, codec in self.codecs.items():
            law(
                codec.message_bytes.size == shape[1],
                f"codec {name!r} of device {self.device!r} has {codec.message_bytes.size} cuts, "
                f"the compute table {shape[1]}",
            )
        known = self.measured_s[np.triu_indices(shape[1], k=1)]
        missing = 0 if self.prediction is not None else int(np.isnan(known).sum())
        law(
            missing == 0 and not bool((known < 0).any()),
            f"device {self.device!r} needs a compute time for every start < end, "
            f"but {missing} are missing and {int(np.sum(known < 0))} negative",
        )

    @property
    def num_blocks(self) -> int:
        return int(self.compute_repeats_s.shape[1]) - 1

    @property
    def measured_s(self) -> Floats:
        """Mean seconds for blocks start:end with the branch at end as they were measured, [N+1, N+1]; NaN: not."""
        return mean_repeats(self.compute_repeats_s)

    @property
    def compute_fit(self) -> ComputeFit:
        """The estimate of the busy times of all partitions and branches (``compute_fit``)."""
        return _fitted(_Same(self.compute_repeats_s), _Same(self.branch_repeats_s), self.network)

    @property
    def compute_s(self) -> Floats:
        """Seconds for blocks start:end with the branch at end, [N+1, N+1]: estimated from all measurements together."""
        return self.compute_fit.seconds

    def predicts(self, start: int, end: int) -> bool:
        """Whether the time of blocks start:end was not measured but predicted."""
        return not bool(np.isfinite(self.compute_repeats_s[:, start, end]).any())

    @property
    def predicted(self) -> str:
        """How many partitions were not measured, and how far predictions were off; empty: all were."""
        if self.prediction is None:
            return ""
        missing = int(np.isnan(self.measured_s[np.triu_indices(self.num_blocks + 1, k=1)]).sum())
        return f"{missing} of its partitions' times are predicted, with {self.prediction}"

    @property
    def disturbed(self) -> str:
        """What disturbed the machine while it was profiled, and what to do; empty where nothing did or nobody knows."""
        told = self.environment.get("disturbed", "")
        return told and (
            f"when device {self.device} was profiled, {told}; its times may be off, so measure it again on a quiet "
            f"machine: portend profile CHECKPOINT --device {self.device} --out PROFILE"
        )

    def starts(self, slowdown: float = 1.0) -> StartFit:
        """What partitions take longer at first, after idling and after another one, ``slowdown`` times slower."""
        following = self.following_repeats_s
        return _started(
            _Same(self.idle_repeats_s), None if following is None else _Same(following), _Same(self.compute_s), slowdown
        )

    def woken_s(self, slowdown: float = 1.0) -> Floats:
        """Seconds for blocks start:end with the branch, after idling, ``slowdown`` times slower, [N+1, N+1].

        Doing the work ``slowdown`` times: the first times cost what they do after idling, the others ``compute_s``.
        Estimated from all measurements together (``compute_fit``). Never below ``slowdown * compute_s``.
        """
        return slowdown * self.compute_s + self.starts(slowdown).woken_s

    def following_s(self, slowdown: float = 1.0) -> Floats:
        """Seconds for blocks start:end with the branch, right after another partition, as ``woken_s``."""
        return slowdown * self.compute_s + self.starts(slowdown).following_s

    def timed_again(self, bursts_s: ArrayLike) -> DeviceProfile:
        """Return the device as it was when partitions were timed again, each in bursts of runs.

        What was timed again counts as it was measured. Branches, encoding, decoding and dispatch are taken to have
        changed as those partitions did, in proportion, until they are timed again themselves (``coded_again``,
        ``dispatched_again``).

        Args:
            bursts_s: [2, R, B', N+1, N+1], following another partition and after idling, with more runs in a
                burst than ``idle_repeats_s`` has, which replace those; the others are busy. NaN where nothing
                was timed again: there the profile stays.
        """
        bursts = np.asarray(bursts_s, dtype=np.float64)
        first, size = self.idle_repeats_s.shape[1], self.num_blocks + 1
        law(
            bursts.ndim == 5 and len(bursts) == 2 and bursts.shape[2] > first and bursts.shape[3:] == (size, size),
            f"bursts_s is [2, repeats, more than {first} runs, {size}, {size}], but got {bursts.shape}",
        )
        following = self.following_repeats_s
        if following is None or following.shape[1] != first:
            following = np.empty((0, first, size, size))
        again = bursts[:, :, first:].reshape(-1, size, size)
        known = np.isfinite(again).any(axis=0)
        if not known.any():
            return self
        mean = mean_repeats(again)
        change = float(mean[known].sum() / self.compute_s[known].sum())
        return replace(
            self,
            codecs={name: _timed_by(codec, change) for name, codec in self.codecs.items()},
            result=_timed_by(self.result, change),
            compute_repeats_s=np.where(known, mean, self.compute_s)[None],
            branch_repeats_s=change * self.branch_s[None],
            idle_repeats_s=_overlaid(self.idle_repeats_s, bursts[1, :, :first]),
            following_repeats_s=_overlaid(following, bursts[0, :, :first]),
        )

    def coded_again(self, coding_s: Mapping[str, ArrayLike]) -> DeviceProfile:
        """Return the device with encoding and decoding as they took when they were timed again.

        Args:
            coding_s: by codec, [4, R, N+1]: seconds to decode once, right after, to encode once, and right after; NaN
                where nothing was timed again: there the profile stays.
        """
        names = ("decode_repeats_s", "decode_busy_repeats_s", "encode_repeats_s", "encode_busy_repeats_s")
        codecs = dict(self.codecs)
        for name, tables in coding_s.items():
            again = np.asarray(tables, dtype=np.float64)
            law(
                again.ndim == 3 and len(again) == len(names) and again.shape[2] == self.num_blocks + 1,
                f"coding of {name} is [4, repeats, {self.num_blocks + 1}], but got {again.shape}",
            )
            old = codecs[name]
            codecs[name] = replace(
                old, **{key: _overlaid(getattr(old, key), new) for key, new in zip(names, again, strict=True)}
            )
        return replace(self, codecs=codecs)

    def dispatched_again(self, dispatch_s: ArrayLike) -> DeviceProfile:
        """Return the device with dispatch as it was when messages without a tensor were timed again.

        Args:
            dispatch_s: of such messages to this device, what they took beyond their links, any shape, NaN where none
                came. What every message takes is taken to have changed by as much as their mean.
        """
        again = np.asarray(dispatch_s, dtype=np.float64)
        if not np.isfinite(again).any():
            return self
        change = float(np.nanmean(again)) - self.result.dispatch_s

        def changed(messages: _M) -> _M:
            return replace(messages, dispatch_repeats_s=np.maximum(messages.dispatch_repeats_s + change, 0.0))

        codecs = {name: changed(codec) for name, codec in self.codecs.items()}
        return replace(self, codecs=codecs, result=changed(self.result))

    @property
    def branch_s(self) -> Floats:
        """Seconds of the exit branch at each cut, [N+1], estimated together with ``compute_s``."""
        return self.compute_fit.branch_s


class _Same:
    """An array as a key: equal to itself alone."""

    def __init__(self, array: Floats) -> None:
        self.array = array

    def __hash__(self) -> int:
        return id(self.array)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.array is other.array


@lru_cache(maxsize=256)
def _mean(repeats: _Same) -> Floats:
    """``mean_repeats`` of an array that is read-only: a sweep asks for the same ones at each of its points."""
    mean = mean_repeats(repeats.array)
    mean.setflags(write=False)
    return mean


@lru_cache(maxsize=32)
def _started(woken: _Same, following: _Same | None, busy: _Same, slowdown: float) -> StartFit:
    fit = fit_starts(woken.array, None if following is None else following.array, busy.array, slowdown)
    for table in (fit.woken_s, fit.following_s):
        table.setflags(write=False)
    return fit


@lru_cache(maxsize=16)
def _fitted(compute: _Same, branch: _Same, network: BackboneSpec | None) -> ComputeFit:
    """The estimate from these repeats, which are read-only: devices that differ in other fields share it."""
    count = compute.array.shape[1] - 1
    features = Features(range(count), (0,) * count) if network is None else network.features()
    fit = fit_compute(compute.array, branch.array, features)
    for table in (fit.seconds, fit.sd_s, fit.branch_s, fit.off):
        table.setflags(write=False)
    return fit


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class Profile:
    """All that planning needs to know of one network: its exits and its cost on each device.

    Attributes:
        backbone: the network; exits: per-sample scores, or tables.
        devices: by the name that tiers refer to.
        provenance: where the samples and weights come from.
        ranges: of the values at the cuts 0 … N−1, for int8; empty: not known.
        losses: what lossy codecs cost, by how they write numbers (``plan.LOSSY``; compressing costs nothing).
    """

    backbone: BackboneSpec
    exits: SampleExits | TabulatedExits
    devices: Mapping[str, DeviceProfile]
    provenance: Mapping[str, str] = field(default_factory=dict)
    ranges: tuple[ValueRange, ...] = ()
    losses: Mapping[str, CodecLoss] = field(default_factory=dict)

    def __post_init__(self) -> None:
        blocks = self.backbone.num_blocks
        law(
            self.exits.num_branches == blocks,
            f"a backbone of {blocks} blocks has {blocks} branches, but the exits have {self.exits.num_branches}",
        )
        law(bool(self.devices), "a profile needs at least one device, but got none")
        for name, device in self.devices.items():
            law(
                device.num_blocks == blocks,
                f"device {name!r} was profiled with {device.num_blocks} blocks, the backbone has {blocks}",
            )
            law(
                device.network is None or device.network.cut_shapes == self.backbone.cut_shapes,
                f"device {name!r} was profiled with a network of other tensors than {self.backbone.name}",
            )
        law(
            len(self.ranges) in (0, blocks),
            f"there are ranges for the cuts 0–{blocks - 1}, or none, but got {len(self.ranges)}",
        )
        for shape, limits in zip(self.backbone.cut_shapes, self.ranges, strict=False):
            law(
                limits.channels.shape[1] == shape[channel_axis(shape)],
                f"a tensor of shape {shape} has {shape[channel_axis(shape)]} channels, but got ranges of "
                f"{limits.channels.shape[1]}",
            )
        for name, loss in self.losses.items():
            law(
                name in LOSSY and loss.lost.shape[1] == blocks,
                f"the losses are of {', '.join(LOSSY)} for {blocks} branches, but got {name!r} for "
                f"{loss.lost.shape[1]}",
            )

    def __repr__(self) -> str:
        return f"<{str(self).partition(chr(10))[0]}>"

    def __str__(self) -> str:
        """Return the profile in about ten lines."""
        net, accuracies = self.backbone, self.exits.accuracies()
        used = [cut for cut in net.exit_cuts if cut < net.num_blocks]
        shape = " × ".join(map(str, net.cut_shapes[0]))
        lines = [
            f"Profile of {net.name}: {net.num_blocks} blocks, {len(net.exit_cuts)} exits, {net.num_classes} classes",
            f"  one sample: {shape}; weights {net.weights_sha256[:12] or 'not known'}",
            f"  exits: {self.exits.samples} samples{_listed(self.provenance)}, viewed by {self.exits.criterion}",
            f"  accuracy: {100 * accuracies[-1]:.2f} % without early exits"
            + (f", {100 * accuracies[used[0] - 1]:.2f} % at exit {used[0]}" if used else ""),
        ]
        for name, device in list(self.devices.items())[:4]:
            disturbed = "; disturbed" if "disturbed" in device.environment else ""
            whole = 1e3 * device.compute_s[0, net.num_blocks]
            lines.append(f"  device {name}: {whole:.2f} ms for all blocks, by {device.execution}{disturbed}")
        if len(self.devices) > 4:
            lines.append(f"  and {len(self.devices) - 4} more devices: {', '.join(list(self.devices)[4:])}")
        codecs = dict.fromkeys(codec for device in self.devices.values() for codec in device.codecs)
        return "\n".join([*lines, f"  codecs: {', '.join(codecs)}"])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    @property
    def num_blocks(self) -> int:
        return self.backbone.num_blocks

    def ranges_for(self, plan: Plan) -> dict[int, ValueRange]:
        """Return the ranges that the plan's int8 codecs need, by cut; MismatchError if they are not known."""
        used = [
            cut for (cut, _), name in zip(plan.partitions, plan.codecs, strict=False) if name and name[:4] == "int8"
        ]
        if used and not self.ranges:
            raise MismatchError("the plan uses int8, but the profile has no ranges of values; profile with this codec")
        return {cut: self.ranges[cut] for cut in used}

    def loss(self, codec: str) -> Floats:
        """Largest accuracy that the codec costs an exit after each cut, [N+1] in 0–1; NaN where not measured.

        0 for a codec that loses nothing.
        """
        choice("a codec", codec, CODECS)
        numbers = codec.partition("+")[0]
        if numbers not in LOSSY:
            return np.zeros(self.num_blocks + 1)
        known = self.losses.get(numbers)
        return np.full(self.num_blocks + 1, np.nan) if known is None else known.loss

    def disturbed(self, devices: Iterable[str] | None = None) -> tuple[str, ...]:
        """What disturbed the machines that were profiled (``DeviceProfile.disturbed``), of some devices or of all."""
        names = dict.fromkeys(self.devices if devices is None else devices)
        return tuple(told for name in names if (told := self.devices[name].disturbed))

    def by(self, criterion: str) -> Profile:
        """Return the profile whose exits are viewed by another criterion; MismatchError without scores of it."""
        return replace(self, exits=self.exits.by(criterion))

    def viewed_for(self, plan: Plan) -> Profile:
        """Return the profile by the criterion of a plan's thresholds, whichever it is where the plan has no exits."""
        return self.by(plan.criterion) if plan.asks else self

    @property
    def full_accuracy(self) -> float:
        """Accuracy of the last branch on all profiling samples: the network without early exits."""
        return float(self.exits.accuracies()[-1])
