"""What runs a partition on a device: one small protocol, and who fulfils it.

Axes: one sample; K classes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from portend.errors import InvalidValue
from portend.execution import Execution
from portend.profile import BackboneSpec

__all__ = ["Executor", "Outcome", "Partition", "make_executor"]

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


def make_executor(
    network: str | Path,
    execution: Execution,
    *,
    criterion: str = "entropy",
    allow_code: Collection[str] = (),
) -> Executor:
    """Return the executor that ``execution`` names, with the network of a file.

    Args:
        network: a checkpoint (``.safetensors``) for the torch executors, a network of ``portend export`` (``.onnx``)
            for onnxruntime.
        criterion: of the scores. allow_code: ``module:object`` that a checkpoint may name.

    Raises:
        InvalidValue: the file is not of the kind that the executor takes, or its library is not installed.
        StorageError: the file is missing or damaged; DeploymentError: there is no such processor here.
    """
    wanted = ".onnx" if execution.executor == "onnxruntime" else ".safetensors"
    if Path(network).suffix != wanted:
        raise InvalidValue(
            f"the executor {execution.executor} runs a network in a file *{wanted}, but got {network}; "
            "`portend export` makes an .onnx file of a checkpoint"
        )
    try:
        if execution.executor == "onnxruntime":
            from portend.runtime.onnx_executor import OnnxExecutor

            return OnnxExecutor(network, execution, criterion=criterion)
        from portend.runtime.torch_executor import TorchExecutor

        return TorchExecutor(network, execution, criterion=criterion, allow_code=allow_code)
    except ModuleNotFoundError as error:
        extra = "runtime" if execution.executor == "onnxruntime" else "torch"
        raise InvalidValue(
            f"the executor {execution.executor} needs the package {error.name}, which is not installed; "
            f"`pip install 'portend[{extra}]'`"
        ) from None
