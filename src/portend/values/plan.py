"""What is decided: where to cut, which tier runs each partition, when a sample may leave.

Cuts: a backbone of N blocks has N+1 cuts; cut 0 is the input, cut c the point after c blocks.
Partition k is the half-open block range ``cuts[k-1]:cuts[k]`` (``cuts[-1]`` read as 0) with its
exit branch at cut ``cuts[k]``; ``cuts[k]`` is the paper's P_k, ``placement[k]`` its D_k.

Axes: C plans, L partitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from portend.errors import InvalidValue, choice, law

__all__ = ["CODECS", "CRITERIA", "LOSSY", "NUMBERS", "Plan", "PlanBatch", "blocks", "codec_parts", "takes_exit"]

CRITERIA: Final = MappingProxyType({"entropy": "η", "max_probability": "1−p₁", "margin": "1−(p₁−p₂)"})
"""How a score is made of a branch's soft-max (``models.exits.score``), and how it is written."""

NUMBERS: Final = ("float32", "float16", "int8", "int8-channel")
"""How a codec writes the numbers of a tensor (``runtime.codecs``)."""

LOSSY: Final = NUMBERS[1:]
"""Those that do not give back what they got."""

_COMPRESSORS: Final = ("", "lz4", "zstd")

CODECS: Final = (
    "float32",
    "encoded",
    *(f"{numbers}{'+' if by else ''}{by}" for numbers in NUMBERS for by in _COMPRESSORS if numbers + by != "float32"),
)
"""Every codec: ``numbers`` or ``numbers+compressor``; and ``encoded``, the sample's own encoding, at cut 0 alone."""


def codec_parts(name: str) -> tuple[str, str]:
    """Return how the codec writes numbers, and what compresses them ("" for nothing).

    Raises:
        InvalidValue: there is no such codec, or it is ``encoded``, which writes no numbers.
    """
    numbers, plus, compressor = name.partition("+")
    if name == "encoded" or numbers not in NUMBERS or compressor not in _COMPRESSORS or bool(plus) != bool(compressor):
        choice("a codec that writes numbers", name, [codec for codec in CODECS if codec != "encoded"])
    return numbers, compressor


def blocks(start: int, end: int) -> str:
    """Return what messages call the blocks between two cuts, such as ``blocks 3–5`` or ``block 3``."""
    return f"block {end}" if end == start + 1 else f"blocks {start + 1}–{end}"


def takes_exit(score: ArrayLike, threshold: ArrayLike) -> NDArray[np.bool_]:
    """Whether samples with ``score`` leave at a branch with ``threshold`` (broadcast, bool).

    Strictly below (paper, Sec. II-A); a NaN score never leaves. The one rule that the profile,
    the model and the runtime share. A plan's last branch takes everyone and never asks.
    Compared in float64 whatever the scores' dtype: a threshold is never rounded to float32.

    Example:
        >>> pt.takes_exit([0.1, 0.3, 0.5], 0.3).tolist()
        [True, False, False]
    """
    with np.errstate(invalid="ignore"):
        return np.asarray(np.less(score, np.asarray(threshold, dtype=np.float64)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """One way to run a network over the tiers.

    Attributes:
        cuts: last cut of each of the L partitions, increasing, at least 1.
        placement: tier of each partition; the partitions of one tier are consecutive.
        thresholds: exit thresholds of the first L-1 partitions, within 0–1; at 0 nobody leaves
            and the exit branch is not run.
        codecs: how the tensor entering each partition is encoded; None where it stays on its
            tier (then nothing is sent). Empty: to be chosen by ``PerformanceModel.complete``.
        criterion: what the thresholds are compared with, one of ``CRITERIA``.
    """

    cuts: tuple[int, ...]
    placement: tuple[int, ...]
    thresholds: tuple[float, ...] = ()
    codecs: tuple[str | None, ...] = ()
    criterion: str = "entropy"

    def __post_init__(self) -> None:
        count = len(self.cuts)
        law(count >= 1, "a plan needs at least one partition, but got no cuts")
        law(
            all(a < b for a, b in pairwise((0, *self.cuts))),
            f"cuts must increase from 1 on, but got {self.cuts}; each partition needs at least one block",
        )
        law(
            len(self.placement) == count,
            f"each partition needs one tier, but got {count} cuts and placement {self.placement}",
        )
        law(all(tier >= 0 for tier in self.placement), f"tiers count from 0, but got {self.placement}")
        changes = 1 + sum(a != b for a, b in pairwise(self.placement))
        law(
            changes == len(set(self.placement)),
            f"a tier is not revisited, but got placement {self.placement}; "
            "put the partitions of one tier next to each other",
        )
        law(
            len(self.thresholds) == count - 1,
            f"each partition but the last needs one threshold, but got {count} partitions and "
            f"{len(self.thresholds)} thresholds",
        )
        law(
            all(0.0 <= threshold <= 1.0 for threshold in self.thresholds),
            f"thresholds lie within 0–1, but got {self.thresholds}",
        )
        law(
            len(self.codecs) in (0, count),
            f"each partition has one incoming codec (or None), but got {count} partitions and "
            f"{len(self.codecs)} codecs",
        )
        choice("a criterion", self.criterion, CRITERIA)

    @property
    def asks(self) -> bool:
        """Whether any exit before the last is used."""
        return any(threshold > 0 for threshold in self.thresholds)

    def __len__(self) -> int:
        return len(self.cuts)

    @property
    def partitions(self) -> tuple[tuple[int, int], ...]:
        """Block ranges (start cut, end cut) of the partitions."""
        return tuple(pairwise((0, *self.cuts)))

    @property
    def exits(self) -> tuple[int, ...]:
        """Cuts whose exit branches the plan runs: the early ones at which somebody may leave, and the last."""
        early = (cut for cut, threshold in zip(self.cuts, self.thresholds, strict=False) if threshold > 0)
        return (*early, self.cuts[-1])

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {
            "cuts": list(self.cuts),
            "placement": list(self.placement),
            "thresholds": list(self.thresholds),
            "codecs": list(self.codecs),
            "criterion": self.criterion,
        }

    @classmethod
    def from_dict(cls, values: Any) -> Plan:
        """Return the plan that ``to_dict`` gave; InvalidValue if a field is missing or of the wrong kind."""
        kinds = {"cuts": int, "placement": int, "thresholds": (int, float), "codecs": (str, type(None))}
        if not isinstance(values, dict):
            raise InvalidValue(f"a plan is a mapping with {', '.join(kinds)}, but got {values!r:.60}")
        for name, kind in kinds.items():
            items = values.get(name, [] if name in ("thresholds", "codecs") else None)
            if not isinstance(items, list) or any(not isinstance(x, kind) or isinstance(x, bool) for x in items):  # type: ignore[arg-type]
                what = {"thresholds": "numbers", "codecs": "names or null"}.get(name, "whole numbers")
                raise InvalidValue(f"a plan's {name} is a list of {what}, but got {items!r:.60}")
        if not isinstance(values.get("criterion", ""), str):
            raise InvalidValue(f"a plan's criterion is a name, but got {values['criterion']!r:.60}")
        return cls(
            cuts=tuple(values["cuts"]),
            placement=tuple(values["placement"]),
            thresholds=tuple(float(x) for x in values.get("thresholds", [])),
            codecs=tuple(values.get("codecs", [])),
            criterion=values.get("criterion", "entropy"),
        )

    def describe(self, tier_names: Sequence[str] | None = None) -> str:
        """Return one line such as ``edge [1–4] η<0.3 → cloud [5–10]`` (blocks counted from 1)."""
        parts = []
        for index, (start, end) in enumerate(self.partitions):
            tier = self.placement[index]
            name = tier_names[tier] if tier_names else f"tier {tier}"
            blocks = f"{start + 1}–{end}" if end > start + 1 else f"{end}"
            leave = ""
            if index < len(self.thresholds):
                threshold = self.thresholds[index]
                leave = f" {CRITERIA[self.criterion]}<{threshold:g}" if threshold > 0 else " (no exit)"
            parts.append(f"{name} [{blocks}]{leave}")
        return " → ".join(parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanBatch:
    """Many plans of the same number of partitions, as columns.

    Attributes:
        cuts, placement: int [C, L]; thresholds: float [C, L-1].
        codecs: int [C, L], index into the model's codecs, -1 where nothing is sent.
    """

    cuts: NDArray[np.intp]
    placement: NDArray[np.intp]
    thresholds: NDArray[np.float64]
    codecs: NDArray[np.intp]

    def __post_init__(self) -> None:
        count, length = self.cuts.shape
        for name, shape in (
            ("placement", (count, length)),
            ("codecs", (count, length)),
            ("thresholds", (count, length - 1)),
        ):
            got = getattr(self, name).shape
            law(
                got == shape,
                f"a batch of {count} plans of {length} partitions needs {name} of shape {shape}, but got {got}",
            )

    def __len__(self) -> int:
        return int(self.cuts.shape[0])
