"""Every branch's scores and correctness on the profiling split."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from portend.data.dataset import Dataset
from portend.networks.evaluators import Evaluator
from portend.networks.scoring import score_samples
from portend.values.exits import SampleExits

__all__ = ["profile_exits"]


def profile_exits(
    evaluator: Evaluator,
    dataset: Dataset,
    indices: NDArray[np.int64],
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> SampleExits:
    """Return all branches' scores by every criterion, correctness [S, N] and labels [S] of the samples ``indices``.

    In one pass over the samples (``models.exits.scores``). Each branch sees every sample, whether or not an
    earlier one would have let it go (paper, Sec. II-B).

    Raises:
        MismatchError: the data set's labels or samples do not fit the network; DataError: a sample cannot be decoded.
    """
    scores, correct = score_samples(evaluator, dataset, indices, on_progress=on_progress)
    for table in (*scores.values(), correct):
        table.setflags(write=False)
    return SampleExits(scores=scores, correct=correct, labels=dataset.labels[indices])
