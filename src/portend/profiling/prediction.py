"""Compute times of partitions that were not measured, from those that were.

A partition's time is nearly the sum of what its blocks take, what its branch takes, and what it costs to
start; what is left changes slowly with where it starts and ends. That is a Gaussian process over partitions:
blocks alike in shape have a mean in common and differ a little, so do branches, and a smooth remainder is
relative to the time. Its posterior mean predicts; how much it varies is chosen by marginal likelihood
(Rasmussen and Williams, Gaussian Processes for Machine Learning, Sec. 2.3 and 5.4). Half of the partitions to
measure are those that make the posterior least uncertain, half are drawn at random: each of these, predicted
without itself, tells the error that predictions have.

Axes: N+1 cuts, P partitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from portend.errors import law
from portend.profile import BackboneSpec, Prediction

__all__ = ["measuring_order", "predict"]

Floats = NDArray[np.float64]
Pairs = NDArray[np.int64]

_CANDIDATES: Final = 1600
_VAGUE: Final = 3.0  # standard deviation of the mean times, in times of a typical block
_REACH: Final = 0.3  # of the smooth remainder, in lengths of the network
_STEPS: Final = (0.3, 1.0, 3.0)
_ROUNDS: Final = 3
_OUTLYING: Final = 2.5


@dataclass(frozen=True, kw_only=True, slots=True)
class _Variation:
    """Standard deviations: of single blocks, branches and starts in times of a typical block; the others relative."""

    block: float = 0.1
    end: float = 0.1
    start: float = 0.05
    smooth: float = 0.02
    noise: float = 0.01

    def times(self, own: float, smooth: float, noise: float) -> _Variation:
        return _Variation(
            block=own * self.block,
            end=own * self.end,
            start=own * self.start,
            smooth=smooth * self.smooth,
            noise=noise * self.noise,
        )


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
    covariance = _covariance(spec, near, near, length, length, _Variation())
    noise = (_Variation().noise * length) ** 2
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


def predict(spec: BackboneSpec, measured_s: ArrayLike, drawn: ArrayLike) -> Prediction:
    """Return the seconds [N+1, N+1] of the partitions that are NaN in ``measured_s``, with the error to expect.

    Args:
        measured_s: [N+1, N+1] seconds of the partitions that were measured, NaN elsewhere.
        drawn: [P, 2] measured partitions that were chosen at random, which tell the error.

    Raises:
        InvalidValue: fewer than three partitions were measured, or no drawn one.
    """
    table = np.asarray(measured_s, dtype=np.float64)
    upper = np.triu(np.ones(table.shape, dtype=bool), k=1)
    known, rest = np.argwhere(upper & np.isfinite(table)), np.argwhere(upper & np.isnan(table))
    seconds = table[known[:, 0], known[:, 1]]
    checks = {(int(start), int(end)) for start, end in np.asarray(drawn).reshape(-1, 2)}
    check = np.array([(int(start), int(end)) in checks for start, end in known], dtype=bool)
    law(
        len(known) >= 3 and bool(check.any()) and bool((seconds > 0).all()),
        "predicting needs at least three partitions with times above 0, one of them drawn at random, but got "
        f"{len(known)}, of which {int(check.sum())} were drawn; measure more",
    )
    unit = float(np.median(seconds / (known[:, 1] - known[:, 0])))
    times, found = seconds / unit, (known[:, 1] - known[:, 0]).astype(np.float64)
    missing = (rest[:, 1] - rest[:, 0]).astype(np.float64)
    doubt = np.ones(len(known))
    variation = _Variation()
    for _ in range(_ROUNDS):  # variances are relative to the times, which get known better; outliers count less
        variation = _likeliest(spec, known, times, found, doubt)
        inverse = np.linalg.inv(_measured(spec, known, found, doubt, variation))
        weight = inverse @ times
        without = times - weight / inverse.diagonal()  # each one predicted from all others
        off = np.abs(without / times - 1)
        usual = max(1.4826 * float(np.median(off)), 1e-4)
        rest_found = _covariance(spec, rest, known, missing, found, variation) @ weight
        found = np.maximum(_covariance(spec, known, known, found, found, variation) @ weight, 1e-3 * times)
        missing = np.maximum(rest_found, times.min() / 10)
        doubt = np.maximum(1.0, off / (_OUTLYING * usual)) ** 2
    result = np.full(table.shape, np.nan)
    result[rest[:, 0], rest[:, 1]] = unit * missing
    errors = off[check]
    return Prediction(
        seconds=result, mean_error=float(errors.mean()), worst_error=float(errors.max()), checks=int(errors.size)
    )


def _likeliest(spec: BackboneSpec, pairs: Pairs, times: Floats, scale: Floats, doubt: Floats) -> _Variation:
    """The variation under which the times are likeliest, of a few around the usual one."""

    def unlikely(variation: _Variation) -> float:
        root = np.linalg.cholesky(_measured(spec, pairs, scale, doubt, variation))
        return float((np.linalg.solve(root, times) ** 2).sum() / 2 + np.log(root.diagonal()).sum())

    return min((_Variation().times(*steps) for steps in product(_STEPS, repeat=3)), key=unlikely)


def _measured(spec: BackboneSpec, pairs: Pairs, scale: Floats, doubt: Floats, variation: _Variation) -> Floats:
    """Covariance of measured times: with noise, more of it where one lies out."""
    covariance = _covariance(spec, pairs, pairs, scale, scale, variation)
    return np.asarray(covariance + np.diag((variation.noise * scale) ** 2 * doubt))


def _covariance(
    spec: BackboneSpec, a: Pairs, b: Pairs, scale_a: Floats, scale_b: Floats, variation: _Variation
) -> Floats:
    """Prior covariance of the times of partitions ``a`` and ``b``, whose times are about ``scale``."""
    kinds, ends = _kinds(spec)
    inside_a, inside_b = _inside(a, spec.num_blocks), _inside(b, spec.num_blocks)
    kind, end = np.eye(kinds.max() + 1)[kinds], np.eye(ends.max() + 1)[ends]
    covariance = (inside_a @ kind) @ (inside_b @ kind).T + end[a[:, 1] - 1] @ end[b[:, 1] - 1].T + 1.0
    covariance *= _VAGUE**2
    covariance += variation.block**2 * (inside_a @ inside_b.T)
    same_start, same_end = a[:, :1] == b[:, 0], a[:, 1:] == b[:, 1]
    covariance += variation.start**2 * same_start + variation.end**2 * same_end
    distance = ((a[:, None] - b[None]) ** 2).sum(axis=2) / (_REACH * spec.num_blocks) ** 2
    covariance += variation.smooth**2 * np.exp(-distance / 2) * scale_a[:, None] * scale_b
    return np.asarray(covariance)


def _inside(pairs: Pairs, count: int) -> Floats:
    """Whether block i lies in each partition, [P, N]."""
    block = np.arange(count)
    return ((block >= pairs[:, :1]) & (block < pairs[:, 1:])).astype(np.float64)


def _kinds(spec: BackboneSpec) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What blocks are alike, by the shapes before and after, [N]; and branches, by their shape, or none, [N]."""
    shapes, exits = spec.cut_shapes, set(spec.exit_cuts)
    blocks = list(pairwise(shapes))
    ends = [(shape, cut in exits) for cut, shape in enumerate(shapes[1:], start=1)]
    return _numbered(blocks), _numbered(ends)


def _numbered(values: Sequence[object]) -> NDArray[np.int64]:
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return np.array([numbers[value] for value in values], dtype=np.int64)
