"""What one device needs for one network: its partitions, and its messages.

Axes: S samples, N blocks (N+1 cuts), T thresholds, R repeats, C channels. Every per-cut table has N+1
entries; entries without a meaning (an end cut not after its start, a codec that cannot be used
at a cut) are NaN. Raw repeats are kept; what is used of them is their mean, because a mean
latency is a sum of means: times are skewed, and medians would understate it. From ten repeats on, the
tails (the lowest and highest tenth) are shared out over the whole table in proportion to time: a
disturbance hits whatever runs, so what disturbances add is estimated from all entries together. Planning
uses the compute times that all means together make likely (``compute_fit``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from portend.errors import law
from portend.values.arrays import Floats, Same, freeze
from portend.values.backbone import BackboneSpec
from portend.values.codecs import CodecProfile, ResultProfile
from portend.values.compute_fit import ComputeFit, Features, StartFit, fit_compute, fit_starts, mean_repeats
from portend.values.execution import Execution

__all__ = ["DeviceProfile", "Prediction"]


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
            freeze(self, following_repeats_s=(self.following_repeats_s, np.float64))
        freeze(
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
        return _fitted(Same(self.compute_repeats_s), Same(self.branch_repeats_s), self.network)

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
            Same(self.idle_repeats_s), None if following is None else Same(following), Same(self.compute_s), slowdown
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


@lru_cache(maxsize=32)
def _started(woken: Same, following: Same | None, busy: Same, slowdown: float) -> StartFit:
    fit = fit_starts(woken.array, None if following is None else following.array, busy.array, slowdown)
    for table in (fit.woken_s, fit.following_s):
        table.setflags(write=False)
    return fit


@lru_cache(maxsize=16)
def _fitted(compute: Same, branch: Same, network: BackboneSpec | None) -> ComputeFit:
    """The estimate from these repeats, which are read-only: devices that differ in other fields share it."""
    count = compute.array.shape[1] - 1
    features = Features(range(count), (0,) * count) if network is None else network.features()
    fit = fit_compute(compute.array, branch.array, features)
    for table in (fit.seconds, fit.sd_s, fit.branch_s, fit.off):
        table.setflags(write=False)
    return fit
