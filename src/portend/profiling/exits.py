"""Every branch's scores and correctness on the profiling split."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from portend.errors import DataError
from portend.models.backbone import Backbone
from portend.models.data import Dataset
from portend.models.scoring import evaluate
from portend.profile import SampleExits

__all__ = ["profile_exits"]


def profile_exits(
    backbone: Backbone,
    dataset: Dataset,
    indices: NDArray[np.int64],
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> SampleExits:
    """Return all branches' scores by every criterion, correctness [S, N] and labels [S] of the samples ``indices``.

    In one pass over the samples (``models.exits.scores``). Each branch sees every sample, whether or not an
    earlier one would have let it go (paper, Sec. II-B).

    Raises:
        DataError: the data set's labels or samples do not fit the network.
    """
    if dataset.num_classes != backbone.num_classes:
        raise DataError(
            f"{backbone.name} has {backbone.num_classes} classes, but {dataset.name} has {dataset.num_classes}"
        )
    if dataset.decoder.shape != tuple(backbone.input_shape):
        raise DataError(
            f"{backbone.name} takes samples of shape {tuple(backbone.input_shape)}, but {dataset.name} gives "
            f"{dataset.decoder.shape}; load the data with another size, or build the network for it"
        )
    scores, correct = evaluate(backbone, dataset, indices, on_progress=on_progress)
    for table in (*scores.values(), correct):
        table.setflags(write=False)
    return SampleExits(scores=scores, correct=correct, labels=dataset.labels[indices])
