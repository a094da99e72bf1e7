"""What runs a partition on a device."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from portend.models.backbone import Backbone, Segment
from portend.models.checkpoint import load_checkpoint
from portend.models.exits import score

__all__ = ["Executor", "Outcome", "Partition", "TorchExecutor"]

Tensor = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a partition gives: the tensor at its end cut, and its branch's score and label.

    Without a branch the score is NaN and the label -1.
    """

    features: Tensor
    score: float
    label: int


class Partition(Protocol):
    """Runs one sample through blocks start:end and, if it has one, the exit branch at end."""

    def __call__(self, tensor: Tensor) -> Outcome: ...


class Executor(Protocol):
    """Makes partitions of one network."""

    name: str

    def partition(self, start: int, end: int, *, branch: bool) -> Partition:
        """Return blocks start:end, with the branch at ``end`` (where there is one) or without."""


class TorchExecutor:
    """Eager PyTorch in inference mode on the CPU, with a fixed number of threads; scores by ``criterion``."""

    name = "torch"

    def __init__(
        self,
        backbone: Backbone | str | Path,
        *,
        threads: int = 1,
        criterion: str = "entropy",
        allow_code: Collection[str] = (),
    ) -> None:
        if not isinstance(backbone, Backbone):
            backbone = load_checkpoint(backbone, allow_code=allow_code)
        self.backbone = backbone
        self.backbone.eval()
        self.criterion = criterion
        torch.set_num_threads(threads)

    def partition(self, start: int, end: int, *, branch: bool) -> _TorchPartition:
        return _TorchPartition(self.backbone.segment(start, end, branch=branch).eval(), self.criterion)


class _TorchPartition:
    def __init__(self, segment: Segment, criterion: str) -> None:
        self._segment, self._criterion = segment, criterion

    def __call__(self, tensor: Tensor) -> Outcome:
        with torch.inference_mode():
            features, logits = self._segment(torch.from_numpy(tensor)[None])
            if logits is None:
                return Outcome(features[0].numpy(), float("nan"), -1)
            return Outcome(features[0].numpy(), float(score(logits, self._criterion)[0]), int(logits[0].argmax()))
