"""Score samples at every branch of a network.

Axes: B batch, N branches, S samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from portend.errors import InvalidValue, MismatchError
from portend.models.data import Dataset
from portend.plan import CRITERIA

if TYPE_CHECKING:
    from portend.models.backbone import Backbone

__all__ = ["Scorer", "check_fit", "evaluate", "score_samples", "torch_scorer"]

Scores = dict[str, NDArray[np.float32]]
Scorer = Callable[[NDArray[np.float32]], tuple[Mapping[str, NDArray[np.float32]], NDArray[np.int64]]]
"""Samples float32 [B, ...] to the scores by each criterion [B, N] and the answers [B, N] of all branches.

Where a cut has no branch, scores are NaN and the answer is -1.
"""


def torch_scorer(backbone: Backbone) -> Scorer:
    """Return a scorer that runs the network's branches as they are, in float32, with all of ``plan.CRITERIA``."""
    import torch

    from portend.models.exits import scores

    exits = [cut - 1 for cut in backbone.exits]

    @torch.inference_mode()
    def run(samples: NDArray[np.float32]) -> tuple[Scores, NDArray[np.int64]]:
        shape = (len(samples), len(backbone.blocks))
        found = {name: np.full(shape, np.nan, dtype=np.float32) for name in CRITERIA}
        answers = np.full(shape, -1, dtype=np.int64)
        for branch, logits in zip(exits, backbone(torch.from_numpy(samples)), strict=True):
            answers[:, branch] = logits.argmax(dim=1).numpy()
            for name, value in scores(logits).items():
                found[name][:, branch] = value.numpy()
        return found, answers

    return run


def score_samples(
    scorer: Scorer,
    dataset: Dataset,
    indices: ArrayLike,
    *,
    batch_size: int = 256,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Scores, NDArray[np.bool_]]:
    """Return (scores float32 [S, N] by criterion, correct bool [S, N]) of all branches in one pass over the samples.

    Only one batch of samples is held at a time. The tables lie branch by branch, as planning reads them.

    Args:
        indices: S samples of the dataset; on_progress: called with (samples done, S) after each batch.

    Raises:
        InvalidValue: there is no sample, or batch_size is not positive; DataError: a sample cannot be decoded.
    """
    chosen = np.asarray(indices, dtype=np.int64)
    if batch_size < 1 or not chosen.size:
        raise InvalidValue(
            f"scoring needs samples, in batches of at least 1, but got {chosen.size} in batches of {batch_size}"
        )
    tables: Scores = {}
    correct = np.zeros((0, 0), dtype=np.bool_)
    for first in range(0, chosen.size, batch_size):
        rows = slice(first, first + batch_size)
        scores, answers = scorer(dataset.tensors(chosen[rows]))
        if not tables:
            shape = (chosen.size, answers.shape[1])
            tables = {name: np.empty(shape, dtype=np.float32, order="F") for name in scores}
            correct = np.empty(shape, dtype=np.bool_, order="F")
        for name, table in scores.items():
            tables[name][rows] = table
        correct[rows] = answers == dataset.labels[chosen[rows], None]
        if on_progress:
            on_progress(min(first + batch_size, chosen.size), chosen.size)
    return tables, correct


def evaluate(
    backbone: Backbone,
    dataset: Dataset,
    indices: ArrayLike,
    batch_size: int = 256,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Scores, NDArray[np.bool_]]:
    """Return ``score_samples`` of a network as it would run, that is not in training mode.

    Raises:
        MismatchError: the network does not take this dataset's samples; DataError: a sample cannot be decoded.
    """
    check_fit(backbone, dataset)
    was_training = backbone.training
    backbone.eval()
    try:
        return score_samples(torch_scorer(backbone), dataset, indices, batch_size=batch_size, on_progress=on_progress)
    finally:
        backbone.train(was_training)


def check_fit(backbone: Backbone, dataset: Dataset) -> None:
    """Raise MismatchError unless the network takes this dataset's samples and has its classes."""
    if tuple(backbone.input_shape) != tuple(dataset.decoder.shape) or backbone.num_classes != dataset.num_classes:
        raise MismatchError(
            f"{backbone.name} takes samples of shape {backbone.input_shape} in {backbone.num_classes} classes, but "
            f"{dataset.name} has {dataset.decoder.shape} in {dataset.num_classes}; "
            "build the network with the dataset's in_channels, input_size and num_classes"
        )
