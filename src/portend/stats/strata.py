"""How sure rates are that were counted on samples drawn class by class.

A profiling split holds every class in its share of the data set (``models.data.make_splits``). What then varies from
split to split is only what the samples of a class do, not how many there are of it: a rate is known better than the
same count of samples drawn at random would tell (Cochran, Sampling Techniques, 1977, Sec. 5.3). The classes' shares
are those of the samples; intervals hold for data with these shares.

The variance within a class is estimated from its own few samples, which takes one of them away (Rao & Wu 1988 rescale
the bootstrap for it); classes of one or two samples count as one class ("collapsed strata", Cochran, Sec. 5A.12),
which errs on the wide side. Both vanish where there is one class: then intervals are those of plain samples.

Axes: C classes, J outcomes, D draws.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from portend.errors import law

__all__ = ["class_counts", "draw_rates", "rate_interval"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_LEAST: Final = 3.0
"""Samples of a class that is a stratum of its own."""
_STEPS: Final = 60  # of bisection: a shift of the log-odds within -40 ... 40 to the last bits
_GAMMAS: Final = 1 << 23
_LEAST_DRAWS: Final = 2_000


def class_counts(flags: ArrayLike, labels: Ints | None) -> tuple[Floats, Floats]:
    """Return (how many samples [C, ...] of each class that is there have the flags [S, ...], samples [C])."""
    table = np.asarray(flags)
    if labels is None:
        return table.sum(axis=0, dtype=np.float64)[None], np.array([float(len(table))])
    order = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    return np.add.reduceat(table[order], starts, axis=0, dtype=np.float64), sizes.astype(np.float64)


def rate_interval(yes: ArrayLike, samples: ArrayLike, level: float) -> tuple[Floats, Floats]:
    """Return the ends [...] in 0–1 of the interval of rates, from counts [C, ...] of so many samples [C] a class.

    Wilson's score interval (1927) by strata (after Yan & Su 2010): the rates p that lie within z standard deviations
    of the one seen, the standard deviation being that *at p*. There, the classes' rates are those seen, all
    log-odds shifted alike. With one class it is Wilson's own interval.

    Raises:
        InvalidValue: the level does not lie between 0 and 1.
    """
    law(0 < level < 1, f"the level of an interval lies between 0 and 1, but got {level}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    counts, sizes = _merged(np.asarray(yes, dtype=np.float64), np.asarray(samples, dtype=np.float64))
    shape = (-1, *(1,) * (counts.ndim - 1))
    share = (sizes / sizes.sum()).reshape(shape)
    free = sizes.reshape(shape) - (1 - share)
    seen = counts.sum(axis=0) / sizes.sum()
    own = (counts + share / 2) / (sizes.reshape(shape) + share)  # Jeffreys' prior, shared out: no rate is 0 or 1
    log_odds = np.log(own) - np.log1p(-own)

    def excess(shift: Floats) -> tuple[Floats, Floats]:
        """The rates at a shift, and how many standard deviations these lie above the ones seen."""
        at = log_odds + shift
        tail = np.exp(-np.abs(at))  # p (1 - p) = tail / (1 + tail)², which never rounds to 0
        total = (share * np.where(at > 0, 1.0, tail) / (1 + tail)).sum(axis=0)
        return total, (total - seen) / np.sqrt((share**2 * tail / (1 + tail) ** 2 / free).sum(axis=0))

    ends = []
    for side in (-1.0, 1.0):
        inner, outer = np.zeros(seen.shape), np.full(seen.shape, 40.0 * side)
        for _ in range(_STEPS):
            middle = (inner + outer) / 2
            inside = side * excess(middle)[1] < z
            inner, outer = np.where(inside, middle, inner), np.where(inside, outer, middle)
        ends.append(excess(inner)[0])
    return np.where(seen <= 0, 0.0, ends[0]), np.where(seen >= 1, 1.0, ends[1])


def draw_rates(counts: ArrayLike, *, possible: NDArray[np.bool_], count: int, rng: np.random.Generator) -> Floats:
    """Draw the true rates [D, J] of J outcomes of which exactly one happens, from counts [C, J].

    In each class a Dirichlet distribution about what was seen there, with Jeffreys' prior (½ for each ``possible``
    outcome [J]) shared out over the classes: the stratified form of the Bayesian bootstrap (Rubin 1981). An outcome
    that is seldom in all classes is drawn as if there were one; with one class the prior is Jeffreys' own.
    Where classes are many, fewer draws than ``count`` are made, at least 2,000.
    """
    table = np.asarray(counts, dtype=np.float64)
    table, sizes = _merged(table, table.sum(axis=1))
    share = sizes / sizes.sum()
    alpha = (table + share[:, None] / 2) * possible
    total = alpha.sum(axis=1)
    alpha *= ((total - 2 * (1 - share)) / total)[:, None]
    draws = count if len(table) == 1 else min(count, max(_GAMMAS // table.size, _LEAST_DRAWS))
    rates = np.zeros((draws, table.shape[1]))
    for weight, own in zip(share, alpha, strict=True):
        gamma = rng.standard_gamma(np.broadcast_to(own, rates.shape))
        rates += weight * gamma / gamma.sum(axis=1, keepdims=True)
    return rates


def _merged(counts: Floats, sizes: Floats) -> tuple[Floats, Floats]:
    """The counts [C, ...] and samples [C] with the classes of few samples as one, and with those of none left out."""
    order = np.argsort(sizes, kind="stable")
    order = order[sizes[order] > 0]
    few = int((sizes[order] < _LEAST).sum())
    if few:
        few = max(few, 1 + int(np.searchsorted(np.cumsum(sizes[order]), _LEAST)))
    if few < 2:
        return counts[np.sort(order)], sizes[np.sort(order)]
    first, rest = order[:few], np.sort(order[few:])

    def joined(table: Floats) -> Any:
        return np.concatenate([table[first].sum(axis=0, keepdims=True), table[rest]])

    return joined(counts), joined(sizes)
