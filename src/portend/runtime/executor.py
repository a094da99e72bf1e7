"""What runs a partition on a device, as protocols; ``executors.make_executor`` makes one.

Axes: one sample; K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from portend.values.backbone import BackboneSpec

__all__ = ["Executor", "Outcome", "Partition"]

Tensor = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a partition gives: the tensor at its end cut, and its branch's score and label.

    Without a branch the score is NaN and the label -1. After the last exit nobody takes the tensor; it may be empty.
    """

    features: Tensor
    score: float
    label: int


class Partition(Protocol):
    """Runs one sample through blocks start:end and, if it has one, the exit branch at end.

    When it returns, the work is done: what runs beside the CPU has been waited for.
    """

    def __call__(self, tensor: Tensor) -> Outcome: ...

    def many(self, tensors: Sequence[Tensor]) -> list[Outcome]:
        """Run several samples in one batch; at most as many as the partition was made for."""


class Executor(Protocol):
    """Makes partitions of one network."""

    spec: BackboneSpec

    def partition(self, start: int, end: int, *, branch: bool, most: int = 1) -> Partition:
        """Return blocks start:end, with the branch at ``end`` (where there is one) or without.

        ``most``: samples that it runs at once. InvalidValue if the network takes one only.
        """
