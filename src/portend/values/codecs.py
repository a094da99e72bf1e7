"""What messages cost by codec and cut: bytes, time, and the answers that a lossy codec changes.

Axes: N+1 cuts, R repeats, C channels. NaN where a codec cannot be used.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from portend.errors import InvalidValue, law
from portend.values.arrays import Floats, Same, freeze, mean_of

__all__ = ["CodecLoss", "CodecProfile", "ResultProfile", "ValueRange", "slowed"]


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
        freeze(self, tensor=(self.tensor, np.float64), channels=(self.channels, np.float64))
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
        freeze(self, lost=(self.lost, np.float64), gained=(self.gained, np.float64))
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
        freeze(self, message_bytes=(self.message_bytes, np.float64), spread_bytes=(self.spread_bytes, np.float64))
        law(
            self.spread_bytes.shape in ((0,), self.message_bytes.shape),
            f"spread_bytes has one number for each of {self.message_bytes.size} cuts, but got "
            f"{self.spread_bytes.shape}",
        )
        for name in (item.name for item in fields(self) if item.name.endswith("_repeats_s")):
            freeze(self, **{name: (getattr(self, name), np.float64)})
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
        return np.maximum(_filled(mean_of(Same(self.dispatch_repeats_s)), self.message_bytes), 0.0)


def _slowed(first_repeats: Floats, busy_repeats: Floats, slowdown: float) -> Floats:
    first, busy = mean_of(Same(first_repeats)), mean_of(Same(busy_repeats))
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
            freeze(self, **{name: (getattr(self, name), np.float64)})
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
