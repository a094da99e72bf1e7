"""Pareto fronts of mean latency (less is better) and accuracy (more is better)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["front_indices"]

_BINS = 4096


def front_indices(latency_s: NDArray[np.float64], accuracy: NDArray[np.float64]) -> NDArray[np.intp]:
    """Indices of the points that no other point dominates, by increasing latency.

    Of points equal in both, the one of the lowest index stays. Points with infinite latency
    never count. A coarse pass discards what a point of a strictly higher accuracy bin beats, so
    that only the survivors are sorted.
    """
    candidates = np.flatnonzero(np.isfinite(latency_s))
    if candidates.size > _BINS:
        candidates = candidates[_survives(latency_s[candidates], accuracy[candidates])]
    order = candidates[np.lexsort((candidates, -accuracy[candidates], latency_s[candidates]))]
    if not order.size:
        return order
    best_before = np.concatenate(([-np.inf], np.maximum.accumulate(accuracy[order])[:-1]))
    return order[accuracy[order] > best_before]


def _survives(latency_s: NDArray[np.float64], accuracy: NDArray[np.float64]) -> NDArray[np.bool_]:
    low, high = accuracy.min(), accuracy.max()
    scale = (_BINS - 1) / (high - low) if high > low else 0.0
    bins = ((accuracy - low) * scale).astype(np.intp)
    fastest = np.full(_BINS + 1, np.inf)
    np.minimum.at(fastest, bins, latency_s)
    fastest_above = np.minimum.accumulate(fastest[::-1])[::-1]
    return np.asarray(latency_s <= fastest_above[bins + 1])
