"""A whole network on batches of samples, to see what its exits answer: by PyTorch or by onnxruntime.

Executors (``portend.runtime``) run partitions on one sample, as a plan asks; evaluators run all exits on many, for
profiles and reports. Imports no torch before a ``TorchEvaluator`` is made. Axes: B batch, N blocks, E exit branches.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from portend.networks.networkfile import is_exported
from portend.values.backbone import BackboneSpec
from portend.values.execution import available_cores
from portend.values.plan import CRITERIA

if TYPE_CHECKING:
    from portend.networks.backbone import Backbone
    from portend.networks.onnxfile import OnnxNetwork

__all__ = ["Evaluator", "OnnxEvaluator", "TorchEvaluator", "load_evaluator"]

Tensor = NDArray[np.float32]
Answers = NDArray[np.int64]
Scores = Mapping[str, NDArray[np.float32]]


class Evaluator(Protocol):
    """What answers for all exits of a network; ``spec`` describes it. No argument is changed."""

    @property
    def spec(self) -> BackboneSpec: ...

    def exits(self, samples: Tensor) -> tuple[Scores, Answers]:
        """Return the scores by each criterion, float32 [B, N], and the answers, int64 [B, N], for samples [B, ...].

        Where a cut has no branch, scores are NaN and the answer is -1.
        """
        ...

    def block(self, cut: int, x: Tensor) -> Tensor:
        """Return the tensor at cut + 1, [B, ...], of that at ``cut`` < N-1."""
        ...

    def answers(self, cut: int, x: Tensor) -> Answers:
        """Return the answers, int64 [B, E], of the branches after ``cut``, of the tensor there, [B, ...]."""
        ...


def load_evaluator(path: str | Path, *, allow_code: Collection[str] = ()) -> Evaluator:
    """Return what evaluates the network of a file: a checkpoint by PyTorch, an exported network by onnxruntime.

    Raises:
        StorageError: the file is missing, damaged, or names code that is not allowed.
    """
    if is_exported(path):
        from portend.networks.onnxfile import load_onnx

        return OnnxEvaluator(load_onnx(path))
    from portend.networks.checkpoint import load_checkpoint

    return TorchEvaluator(load_checkpoint(path, allow_code=allow_code))


class TorchEvaluator:
    """The network's own modules, as they run in evaluation mode, whatever mode they are left in."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone

    @cached_property
    def spec(self) -> BackboneSpec:
        return self._backbone.spec()

    def exits(self, samples: Tensor) -> tuple[Scores, Answers]:
        from portend.networks.scores import scores

        backbone = self._backbone
        found, answers = _empty(len(samples), len(backbone.blocks))
        with _evaluating(backbone) as tensor:
            for cut, logits in zip(backbone.exits, backbone(tensor(samples)), strict=True):
                answers[:, cut - 1] = logits.argmax(dim=1).numpy()
                for name, value in scores(logits).items():
                    found[name][:, cut - 1] = value.numpy()
        return found, answers

    def block(self, cut: int, x: Tensor) -> Tensor:
        with _evaluating(self._backbone) as tensor:
            following: Tensor = self._backbone.blocks[cut](tensor(x)).numpy()
            return following

    def answers(self, cut: int, x: Tensor) -> Answers:
        found = []
        with _evaluating(self._backbone) as tensor:
            at = tensor(x)
            blocks = list(zip(self._backbone.blocks, self._backbone.branches, strict=True))[cut:]
            for block, branch in blocks:
                at = block(at)
                if branch is not None:
                    found.append(branch(at).argmax(dim=1).numpy())
        return np.stack(found, axis=1)


@contextmanager
def _evaluating(backbone: Backbone) -> Iterator[Any]:
    """Evaluation mode; gives what copies an array to a tensor, for a block may work in place."""
    import torch

    was_training = backbone.training
    if was_training:
        backbone.eval()
    try:
        with torch.inference_mode():
            yield torch.tensor
    finally:
        if was_training:
            backbone.train()


class OnnxEvaluator:
    """An exported network, one session a block, on all cores that this process may use."""

    def __init__(self, network: OnnxNetwork) -> None:
        from portend.networks.onnxsession import session

        self.spec: BackboneSpec = network.spec
        self._batches = network.batches
        self._sessions = [
            session(network.partition(start, start + 1, branch=True), threads=len(available_cores()))
            for start in range(network.spec.num_blocks)
        ]

    def exits(self, samples: Tensor) -> tuple[Scores, Answers]:
        from portend.networks.onnxfile import cut_value, exit_values

        last = self.spec.num_blocks
        found, answers = _empty(len(samples), last)
        x = samples
        for cut in range(1, last + 1):
            own = exit_values(cut) if cut in self.spec.exit_cuts else ()
            names = [cut_value(cut)] if cut < last else []
            values = dict(zip([*names, *own], self._run(cut - 1, [*names, *own], x), strict=True))
            if own:
                answers[:, cut - 1] = values[own[0]]
                for name, value in zip(CRITERIA, own[1:], strict=True):
                    found[name][:, cut - 1] = values[value]
            x = values.get(cut_value(cut), x)
        return found, answers

    def block(self, cut: int, x: Tensor) -> Tensor:
        from portend.networks.onnxfile import cut_value

        following: Tensor = self._run(cut, [cut_value(cut + 1)], x)[0]
        return following

    def answers(self, cut: int, x: Tensor) -> Answers:
        from portend.networks.onnxfile import cut_value, exit_values

        last, found = self.spec.num_blocks, []
        for end in range(cut + 1, last + 1):
            exits = end in self.spec.exit_cuts
            names = ([exit_values(end)[0]] if exits else []) + ([cut_value(end)] if end < last else [])
            values = self._run(end - 1, names, x)
            if exits:
                found.append(values[0])
            x = values[-1]
        return np.stack(found, axis=1)

    def _run(self, block: int, names: list[str], x: Tensor) -> list[NDArray[Any]]:
        running = self._sessions[block]
        own = running.get_inputs()[0].name
        x = np.asarray(x, dtype=np.float32)  # also whole numbers, which the graph turns back
        parts = [x] if self._batches else np.split(x, len(x))
        values = [running.run(names, {own: part}) for part in parts]
        return values[0] if len(values) == 1 else [np.concatenate(column) for column in zip(*values, strict=True)]


def _empty(samples: int, blocks: int) -> tuple[dict[str, NDArray[np.float32]], Answers]:
    scores = {name: np.full((samples, blocks), np.nan, dtype=np.float32) for name in CRITERIA}
    return scores, np.full((samples, blocks), -1, dtype=np.int64)
