"""Score samples at every exit branch of a network.

Axes: N branches, S samples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from portend.data.dataset import Dataset
from portend.errors import InvalidValue, MismatchError
from portend.networks.evaluators import Evaluator
from portend.values.backbone import BackboneSpec

__all__ = ["check_fit", "score_samples"]


def score_samples(
    evaluator: Evaluator,
    dataset: Dataset,
    indices: ArrayLike,
    *,
    batch_size: int = 256,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.bool_]]:
    """Return (scores float32 [S, N] by criterion, correct bool [S, N]) of all branches in one pass over the samples.

    Only one batch of samples is held at a time. The tables lie branch by branch, as planning reads them.

    Args:
        indices: S samples of the dataset; on_progress: called with (samples done, S) after each batch.

    Raises:
        InvalidValue: there is no sample, or batch_size is not positive; DataError: a sample cannot be decoded.
        MismatchError: the network does not take this dataset's samples.
    """
    check_fit(evaluator.spec, dataset)
    chosen = np.asarray(indices, dtype=np.int64)
    if batch_size < 1 or not chosen.size:
        raise InvalidValue(
            f"scoring needs samples, in batches of at least 1, but got {chosen.size} in batches of {batch_size}"
        )
    tables: dict[str, NDArray[np.float32]] = {}
    correct = np.zeros((0, 0), dtype=np.bool_)
    for first in range(0, chosen.size, batch_size):
        rows = slice(first, first + batch_size)
        scores, answers = evaluator.exits(dataset.tensors(chosen[rows]))
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


def check_fit(network: BackboneSpec, dataset: Dataset) -> None:
    """Raise MismatchError unless the network takes this dataset's samples and has its classes."""
    shape = network.cut_shapes[0]
    if shape != tuple(dataset.decoder.shape) or network.num_classes != dataset.num_classes:
        raise MismatchError(
            f"{network.name} takes samples of shape {shape} in {network.num_classes} classes, but "
            f"{dataset.name} has {dataset.decoder.shape} in {dataset.num_classes}; "
            "build the network with the dataset's in_channels, input_size and num_classes"
        )
