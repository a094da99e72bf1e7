"""Score samples at every branch of a network.

Axes: N branches, S samples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from portend.errors import InvalidValue, MismatchError
from portend.models.backbone import Backbone
from portend.models.data import Dataset
from portend.models.exits import score

__all__ = ["check_fit", "evaluate"]


def evaluate(
    backbone: Backbone,
    dataset: Dataset,
    indices: ArrayLike,
    batch_size: int = 256,
    on_progress: Callable[[int, int], None] | None = None,
    *,
    criterion: str = "entropy",
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return (score by ``criterion`` float64 [S, N], correct bool [S, N]) of every branch, in float32 arithmetic.

    Where a cut has no branch, scores are NaN and nothing is correct.

    Args:
        indices: S samples of the dataset; on_progress: called with (samples done, S) after each batch.

    Raises:
        MismatchError: the network does not take this dataset's samples; DataError: a sample cannot be decoded.
    """
    check_fit(backbone, dataset)
    if batch_size < 1:
        raise InvalidValue(f"batch_size is at least 1, but got {batch_size}")
    chosen = np.asarray(indices, dtype=np.int64)
    shape = (chosen.size, len(backbone.blocks))
    scores, correct = np.full(shape, np.nan), np.zeros(shape, dtype=np.bool_)
    exits = np.array(backbone.exits) - 1
    was_training = backbone.training
    backbone.eval()
    try:
        for first in range(0, chosen.size, batch_size):
            rows = slice(first, first + batch_size)
            logits = _logits(backbone, dataset.tensors(chosen[rows]))
            scores[rows, exits] = score(logits, criterion).numpy()
            correct[rows, exits] = logits.argmax(dim=2).numpy() == dataset.labels[chosen[rows], None]
            if on_progress:
                on_progress(min(first + batch_size, chosen.size), chosen.size)
    finally:
        backbone.train(was_training)
    return scores, correct


def check_fit(backbone: Backbone, dataset: Dataset) -> None:
    """Raise MismatchError unless the network takes this dataset's samples and has its classes."""
    if tuple(backbone.input_shape) != tuple(dataset.decoder.shape) or backbone.num_classes != dataset.num_classes:
        raise MismatchError(
            f"{backbone.name} takes samples of shape {backbone.input_shape} in {backbone.num_classes} classes, but "
            f"{dataset.name} has {dataset.decoder.shape} in {dataset.num_classes}; "
            "build the network with the dataset's in_channels, input_size and num_classes"
        )


@torch.inference_mode()
def _logits(backbone: Backbone, samples: NDArray[np.float32]) -> Tensor:
    return torch.stack(backbone(torch.from_numpy(samples)), dim=1)
