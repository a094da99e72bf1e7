"""Which partitions to measure where there is no time for all, and how far the estimate of the others is off.

``portend.values.compute_fit`` estimates all partitions from those that were measured. Half of those are the ones that
make the estimate least uncertain, half are drawn at random: each of these, estimated without itself, tells the error.

Axes: N+1 cuts, P partitions.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from portend.errors import law
from portend.values.backbone import BackboneSpec
from portend.values.compute_fit import ComputeFit, Variation
from portend.values.device_profile import Prediction

__all__ = ["checked", "measuring_order"]

Floats = NDArray[np.float64]
Pairs = NDArray[np.int64]

_CANDIDATES: Final = 1600
_USUAL: Final = Variation()


def measuring_order(spec: BackboneSpec, *, most: int | None = None, seed: int = 0) -> Pairs:
    """Return partitions (start, end) in the order in which measuring them tells most, [P, 2].

    Every second one, the first included, most reduces the mean relative variance of all partitions; the others
    are random. ``most``: so many at most (default: all).
    """
    count = spec.num_blocks
    rng = np.random.default_rng(seed)
    pairs = rng.permutation(np.argwhere(np.triu(np.ones((count + 1, count + 1), dtype=bool), k=1)))
    near = pairs[:_CANDIDATES]
    length = (near[:, 1] - near[:, 0]).astype(np.float64)
    features = spec.features()
    rows = features.of(near, length)
    covariance = (rows * features.prior(_USUAL)) @ rows.T
    noise = (_USUAL.own * length) ** 2
    left = np.ones(len(near), dtype=bool)
    order: list[int] = []
    for number in range(min(len(near), len(pairs) if most is None else most)):
        if number % 2:
            chosen = int(left.argmax())  # the pairs are in random order
        else:
            gain = (length**-2.0) @ covariance**2 / (covariance.diagonal() + noise)
            chosen = int(np.where(left, gain, -1.0).argmax())
        column = covariance[:, chosen].copy()
        covariance -= np.outer(column, column / (column[chosen] + noise[chosen]))
        left[chosen] = False
        order.append(chosen)
    return np.concatenate([pairs[order], pairs[_CANDIDATES:]])[:most]


def checked(fit: ComputeFit, drawn: ArrayLike) -> Prediction:
    """Return how far the estimate was off at measured partitions, each estimated from all others.

    Args:
        drawn: [P, 2] measured partitions (start, end) that were chosen at random.

    Raises:
        InvalidValue: none of them was measured, or fewer than three partitions were.
    """
    start, end = np.asarray(drawn, dtype=np.int64).reshape(-1, 2).T
    errors = fit.off[start, end]
    errors = errors[np.isfinite(errors)]
    law(
        errors.size > 0,
        "an error needs at least three measured partitions, one of them drawn at random, but there are none to check; "
        "measure more",
    )
    return Prediction(mean_error=float(errors.mean()), worst_error=float(errors.max()), checks=int(errors.size))
