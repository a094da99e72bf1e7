"""Partitions by PyTorch in inference mode, eager or compiled.

Axes: one sample; K classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from portend.errors import DeploymentError, choice
from portend.networks.backbone import Backbone
from portend.networks.checkpoint import load_checkpoint
from portend.networks.scores import score
from portend.runtime.executor import Outcome
from portend.values.execution import Execution
from portend.values.plan import CRITERIA

__all__ = ["TorchExecutor"]

Tensor = NDArray[np.float32]
_PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class TorchExecutor:
    """PyTorch on one processor; scores by ``criterion``.

    Sets the number of compute threads of the whole process.

    Raises:
        DeploymentError: PyTorch has no such processor here.
    """

    def __init__(
        self,
        backbone: Backbone | str | Path,
        execution: Execution | None = None,
        *,
        criterion: str = "entropy",
        allow_code: Collection[str] = (),
    ) -> None:
        self._execution = execution or Execution()
        self._device = _device(self._execution.processor)
        if not isinstance(backbone, Backbone):
            backbone = load_checkpoint(backbone, allow_code=allow_code)
        self.spec = backbone.spec()
        self.backbone = backbone.eval().to(self._device)
        choice("a criterion", criterion, CRITERIA)
        self.criterion = criterion
        torch.set_num_threads(self._execution.threads)

    def partition(self, start: int, end: int, *, branch: bool, most: int = 1) -> _TorchPartition:
        """Return blocks start:end; a compiled one compiles when it runs first, and again for batches."""
        segment: Callable[..., tuple[torch.Tensor, torch.Tensor | None]]
        segment = self.backbone.segment(start, end, branch=branch).eval()
        if self._execution.executor == "torch-compiled":
            segment = torch.compile(segment, dynamic=False if most == 1 else None)
        return _TorchPartition(segment, self.criterion, self._device, _PRECISIONS.get(self._execution.precision))


class _TorchPartition:
    def __init__(
        self,
        segment: Callable[..., tuple[torch.Tensor, torch.Tensor | None]],
        criterion: str,
        device: torch.device,
        precision: torch.dtype | None,
    ) -> None:
        self._segment, self._criterion, self._device, self._precision = segment, criterion, device, precision

    def __call__(self, tensor: Tensor) -> Outcome:
        return self.many([tensor])[0]

    def many(self, tensors: Sequence[Tensor]) -> list[Outcome]:
        batch = torch.from_numpy(tensors[0][None] if len(tensors) == 1 else np.stack(tensors))
        reduced = torch.autocast(self._device.type, self._precision) if self._precision else contextlib.nullcontext()
        with torch.inference_mode(), reduced:
            features, logits = self._segment(batch.to(self._device))
            left = features.to("cpu", torch.float32).numpy()  # waits for the processor
            if logits is None:
                return [Outcome(one, float("nan"), -1) for one in left]
            logits = logits.to("cpu", torch.float32)
            return [
                Outcome(one, float(score(each, self._criterion)), int(each.argmax()))
                for one, each in zip(left, logits, strict=True)
            ]


def _device(processor: str) -> torch.device:
    """Return PyTorch's device of that name if a tensor can be made there."""
    try:
        device = torch.device(processor)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DeploymentError(
            f"PyTorch cannot use the processor {processor!r} here ({str(error).splitlines()[0]}); choose cpu, or "
            "install the build of PyTorch and the driver that it needs"
        ) from None
    return device
