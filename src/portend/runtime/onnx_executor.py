"""Partitions by onnxruntime, without PyTorch; the score is computed inside the graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from portend.errors import InvalidValue, choice
from portend.networks.onnxfile import load_onnx
from portend.networks.onnxsession import session
from portend.runtime.executor import Outcome
from portend.values.execution import Execution
from portend.values.plan import CRITERIA

__all__ = ["OnnxExecutor"]

Tensor = NDArray[np.float32]


class OnnxExecutor:
    """onnxruntime on one processor; scores by ``criterion``."""

    def __init__(self, network: str | Path, execution: Execution, *, criterion: str = "entropy") -> None:
        self._network = load_onnx(network)
        choice("a criterion", criterion, CRITERIA)
        self._execution, self._criterion = execution, criterion
        self.spec = self._network.spec

    def partition(self, start: int, end: int, *, branch: bool, most: int = 1) -> _OnnxPartition:
        """Return blocks start:end; for one sample at a time onnxruntime prepares better."""
        if most > 1 and not self._network.batches:
            raise InvalidValue(
                f"{self.spec.name} was exported for one sample at a time, but batches of {most} were asked; run it "
                "without batches, or by PyTorch"
            )
        graph = self._network.partition(start, end, branch=branch, criterion=self._criterion)
        processor, threads = self._execution.processor, self._execution.threads
        return _OnnxPartition(session(graph, processor=processor, threads=threads, one_by_one=most == 1))


class _OnnxPartition:
    """A session with one input, always float32; its outputs are the tensor, the label and the score, if it has them."""

    def __init__(self, running: ort.InferenceSession) -> None:
        self._session = running
        self._input = running.get_inputs()[0].name
        self._names = [value.name for value in running.get_outputs()]
        self._sends = self._names[0].startswith("cut_")
        self._exits = len(self._names) > self._sends

    def __call__(self, tensor: Tensor) -> Outcome:
        return self._outcome(
            self._session.run(self._names, {self._input: np.asarray(tensor[None], dtype=np.float32)}), 0
        )

    def many(self, tensors: Sequence[Tensor]) -> list[Outcome]:
        found = self._session.run(self._names, {self._input: np.asarray(np.stack(tensors), dtype=np.float32)})
        return [self._outcome(found, place) for place in range(len(tensors))]

    def _outcome(self, found: Sequence[NDArray[Any]], place: int) -> Outcome:
        features = found[0][place] if self._sends else _NOTHING
        if not self._exits:
            return Outcome(features, float("nan"), -1)
        score = np.float32(found[-1][place])  # files exported before scores were rounded give float64
        return Outcome(features, float(score), int(found[-2][place]))


_NOTHING: Tensor = np.zeros(0, dtype=np.float32)
