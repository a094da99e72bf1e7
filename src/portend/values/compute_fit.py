"""What computing takes, estimated from noisy repeats: blocks, branches, starting and noise, fitted together.

A plan is the best of many, so a planner that takes each measured mean at its word picks those that noise made low.
The estimate here is what the repeats of all partitions together say of each one.

*Busy.* The time of a partition is what its blocks take, what its branch takes, and what it costs to start; a smooth
remainder and a deviation of its own are relative to the time. That is a Gaussian process over partitions: blocks alike
in shape have a mean in common and differ a little, so do branches. How much each part varies is chosen by marginal
likelihood; how sure each mean is, its repeats tell; what lies far off counts less (Rasmussen and Williams, Gaussian
Processes for Machine Learning, Sec. 2.2, 2.7 and 5.4). The posterior is computed on features, of which there are some
3 N, so it costs N^2 F^2 operations and not N^6.

*Starting.* What the first runs take longer than busy ones after idling, and after another partition, is a constant
each and a share of the busy time in common (cold caches), with a deviation of a partition's own as far as its repeats
show one.

Times of a single repeat are given, not measured: nothing tells their noise, and they are taken as they are.

Axes: N+1 cuts, R repeats, B runs of a burst, P partitions, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["ComputeFit", "Features", "StartFit", "fit_compute", "fit_starts", "mean_repeats"]

Floats = NDArray[np.float64]
Pairs = NDArray[np.int64]

_VAGUE: Final = 3.0  # standard deviation of the mean times, in times of a typical block
_REACH: Final = 0.3  # of the smooth remainder, in lengths of the network
_LEAST_EIGENVALUE: Final = 1e-3
_OWN: Final = (0.003, 0.01, 0.03, 0.1)
_STEPS: Final = (0.3, 1.0, 3.0)
_ROUNDS: Final = 3
_OUTLYING: Final = 2.5
_LEAST_KNOWN: Final = 3
_POOLED: Final = 10.0  # repeats that the usual spread of all partitions counts for in that of one


def mean_repeats(repeats: Floats) -> Floats:
    """Mean over the repeats [R, ...] that were measured, with the tails shared out over all entries.

    The mean without the lowest and highest tenth, times one factor for the whole table, by which the
    sum over all entries and repeats is what was measured.
    """
    known = np.isfinite(repeats).sum(axis=0)
    kept, ordered = _kept(repeats, known)
    total = np.where(kept, ordered, 0.0).sum(axis=0)
    middle = np.asarray(np.where(known > 0, total / np.maximum(kept.sum(axis=0), 1), np.nan))
    if (known // 10).any():
        whole = np.nansum(known * middle)
        middle *= np.nansum(repeats) / whole if whole > 0 else 1.0
    return middle


def _kept(repeats: Floats, known: NDArray[np.int64]) -> tuple[NDArray[np.bool_], Floats]:
    """Which of the sorted repeats (NaN last) are no tails, and the sorted repeats."""
    rank = np.arange(len(repeats)).reshape(-1, *(1,) * (repeats.ndim - 1))
    return (rank >= known // 10) & (rank < known - known // 10), np.sort(repeats, axis=0)


def _relative_variance(repeats: Floats) -> Floats:
    """Variance of ``mean_repeats`` [...] relative to its square; 0 where there is a single repeat for each.

    That of a trimmed mean (Tukey and McLaughlin 1963), where few repeats lean on what is usual in the table.
    """
    known = np.isfinite(repeats).sum(axis=0)
    if not (known > 1).any():
        return np.zeros(known.shape)
    kept, ordered = _kept(repeats, known)
    low = np.where(kept, ordered, np.inf).min(axis=0)
    high = np.where(kept, ordered, -np.inf).max(axis=0)
    count, tail = np.maximum(known, 1), known // 10
    inside = np.where(np.isfinite(ordered), np.clip(ordered, low, high), 0.0)
    mean = inside.sum(axis=0) / count
    squares = np.where(np.isfinite(ordered), (inside - mean) ** 2, 0.0).sum(axis=0)
    single = squares / np.maximum(known - 1, 1) / np.where(mean > 0, mean, 1.0) ** 2
    usual = float(np.median(single[known > 1]))
    pooled = (_POOLED * usual + (known - 1).clip(0) * single) / (_POOLED + (known - 1).clip(0))
    return np.asarray(pooled / count / (1 - 2 * tail / count) ** 2)


def _level(repeats: Floats, means: Floats) -> float:
    """Relative standard deviation that all means [...] have in common, from how the repeats [R, ...] went together."""
    known = np.isfinite(repeats)
    axes = tuple(range(1, repeats.ndim))
    speeds = np.nansum(repeats, axis=axes) / np.where(known, means, 0.0).sum(axis=axes).clip(1e-300)
    speeds = speeds[known.any(axis=axes)]
    return float(speeds.std(ddof=1) / np.sqrt(speeds.size)) if speeds.size > 1 else 0.0


# -- busy ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Variation:
    """Standard deviations: of single blocks, branches and starts in times of a typical block; the others relative."""

    block: float = 0.1
    end: float = 0.1
    start: float = 0.05
    smooth: float = 0.02
    own: float = 0.01


class Features:
    """What partitions have in common, as numbers whose weights are independent.

    Args:
        blocks: int [N], what blocks are alike; ends: int [N], what branches are.
    """

    def __init__(self, blocks: Sequence[int], ends: Sequence[int]) -> None:
        self.num_blocks = count = len(blocks)
        self._kind, self._end = np.eye(max(blocks) + 1)[list(blocks)], np.eye(max(ends) + 1)[list(ends)]
        cuts = np.arange(count + 1)
        value, vector = np.linalg.eigh(np.exp(-(((cuts[:, None] - cuts) / (_REACH * count)) ** 2) / 2))
        self._wave = vector * np.sqrt(np.maximum(value, 0.0))
        self._waves = np.argwhere(np.outer(value, value) > _LEAST_EIGENVALUE * value[-1] ** 2)
        sizes = (1, self._kind.shape[1], self._end.shape[1], count, count, count, len(self._waves))
        self._sizes, edges = sizes, np.cumsum((0, *sizes))
        one, kinds, ends_, end, block, start, smooth = (slice(a, b) for a, b in pairwise(edges.tolist()))
        self.starting, self.branch, self.smooth = (one, start), (ends_, end), smooth
        self._work = (kinds, block)

    def of(self, pairs: Pairs, scale: Floats) -> Floats:
        """Features [P, F] of partitions whose times are about ``scale``, in times of a typical block."""
        start, end = pairs[:, 0], pairs[:, 1]
        block = np.arange(self.num_blocks)
        inside = ((block >= start[:, None]) & (block < end[:, None])).astype(np.float64)
        rows = np.zeros((len(pairs), sum(self._sizes)))
        for columns, values in zip(
            (*self.starting, *self._work, *self.branch),
            (1.0, block == start[:, None], inside @ self._kind, inside, self._end[end - 1], block == end[:, None] - 1),
            strict=True,
        ):
            rows[:, columns] = values
        smooth = self._wave[start][:, self._waves[:, 0]] * self._wave[end][:, self._waves[:, 1]]
        rows[:, self.smooth] = scale[:, None] * smooth
        return rows

    def of_branches(self, cuts: NDArray[np.int64]) -> Floats:
        """Features [P, F] of the branches alone."""
        rows = np.zeros((len(cuts), sum(self._sizes)))
        for columns, values in zip(self.branch, (self._end[cuts - 1], np.eye(self.num_blocks)[cuts - 1]), strict=True):
            rows[:, columns] = values
        return rows

    def prior(self, variation: Variation) -> Floats:
        """Variances [F] of the weights."""
        own = (_VAGUE, _VAGUE, _VAGUE, variation.end, variation.block, variation.start, variation.smooth)
        return np.repeat(np.square(own), self._sizes)


@dataclass(frozen=True, eq=False)
class ComputeFit:
    """The estimate of busy times.

    Attributes:
        seconds: [N+1, N+1] of blocks start:end with the branch at end, NaN elsewhere; sd_s: their standard deviation,
            with a partition's own deviation, for it does not come again, and what all repeats have in common.
        branch_s: [N+1], of the branches alone.
        off: [N+1, N+1] by how much each measured mean lies off what all others say, relative; NaN elsewhere.
        variance_s2: of a sum of so many times [N+1, N+1] of each partition and [N+1] of each branch, in s^2.
    """

    seconds: Floats
    sd_s: Floats
    branch_s: Floats
    off: Floats
    variance_s2: Callable[[Floats, Floats], float]


def fit_compute(repeats_s: Floats, branch_repeats_s: Floats, features: Features) -> ComputeFit:
    """Fit the times of all partitions, measured or not; see the module.

    Args:
        repeats_s: [R, N+1, N+1] seconds, NaN where a partition was not measured.
        branch_repeats_s: [R, N+1] seconds of the branches alone.
    """
    upper = np.triu(np.ones(repeats_s.shape[1:], dtype=bool), k=1)
    means, branch = mean_repeats(repeats_s), mean_repeats(branch_repeats_s)
    given, known = len(repeats_s) == 1, np.isfinite(means) & upper
    if (given and known.sum() == upper.sum()) or known.sum() < _LEAST_KNOWN:
        none = np.full(means.shape, np.nan)
        return ComputeFit(means, np.where(known, 0.0, np.nan), branch, none, lambda *_: 0.0)
    noise, branch_noise = _relative_variance(repeats_s), _relative_variance(branch_repeats_s)
    return _Posterior(means, noise, branch, branch_noise, features).result(known & given, _level(repeats_s, means))


class _Posterior:
    """Weights of the features given all means, in times of a typical block.

    Rows are all partitions, then the branches that were measured alone.
    """

    def __init__(self, means: Floats, noise: Floats, branch: Floats, branch_noise: Floats, features: Features) -> None:
        self._features, self._means, self._branch = features, means, branch
        self._pairs = np.argwhere(np.triu(np.ones(means.shape, dtype=bool), k=1))
        self._cuts = np.flatnonzero(np.isfinite(branch) & (branch > 0))
        at = tuple(self._pairs.T)
        values = np.concatenate([means[at], branch[self._cuts]])
        length = np.concatenate([np.diff(self._pairs)[:, 0], np.ones(len(self._cuts))])
        self._known = np.isfinite(values)
        self._unit = float(np.median((values / length)[self._known])) or 1.0
        self._y = values[self._known] / self._unit
        self._noise = np.concatenate([noise[at], branch_noise[self._cuts]])[self._known]
        self._least = float(self._y[self._y > 0].min(initial=1.0)) / 10
        self._scale = np.where(np.arange(len(length)) < len(self._pairs), length, values / self._unit)
        self._doubt = np.ones(len(self._y))
        self._variation = Variation()
        partitions, branches = features.of(self._pairs, np.ones(len(self._pairs))), features.of_branches(self._cuts)
        self._rows = np.vstack([partitions, branches])
        waves = partitions[:, features.smooth]
        for turn in range(_ROUNDS):
            self._rows[: len(waves), features.smooth] = self._scale[: len(waves), None] * waves
            if turn == 1:
                self._variation = self._likeliest()
            self._solve()

    def _apart(self, own: float) -> Floats:
        """Variance of each mean about what its features say."""
        return np.asarray((own**2 + self._noise) * self._doubt * self._scale[self._known] ** 2)

    def _normal(self, own: float) -> tuple[Floats, Floats, float]:
        apart = self._apart(own)
        rows, y = self._rows[self._known] / np.sqrt(apart)[:, None], self._y / np.sqrt(apart)
        return rows.T @ rows, rows.T @ y, float(y @ y + np.log(apart).sum())

    def _likeliest(self) -> Variation:
        """The variation under which the means are likeliest, of a few: first the own one, then the others."""
        normal = {own: self._normal(own) for own in _OWN}

        def unlikely(tried: Variation) -> float:
            gram, right, rest = normal[tried.own]
            root = np.sqrt(self._features.prior(tried))
            lower = np.linalg.cholesky(np.eye(len(root)) + gram * root[:, None] * root)
            explained = float((np.linalg.solve(lower, root * right) ** 2).sum())
            return rest + 2 * float(np.log(lower.diagonal()).sum()) - explained

        own = min((Variation(own=own) for own in _OWN), key=unlikely).own
        return min(
            (
                Variation(block=0.1 * by, end=0.1 * by, start=0.05 * by, smooth=0.02 * smooth, own=own)
                for by, smooth in product(_STEPS, repeat=2)
            ),
            key=unlikely,
        )

    def _solve(self) -> None:
        """Weights and their covariance; then new scales, and doubt where a mean lies far off what all others say."""
        self._covariance, self._weights = self._posterior(self._variation)
        self._common = self._rows @ self._weights
        rows, apart = self._rows[self._known], self._apart(self._variation.own)
        lever = ((rows @ self._covariance) * rows).sum(axis=1) / apart
        self._off = (self._y - self._common[self._known]) / np.maximum(1 - lever, 1e-6)
        relative = np.abs(self._off) / np.sqrt(apart / self._doubt)
        self._usual = max(1.4826 * float(np.median(relative)), 1e-9)
        self._doubt = np.maximum(1.0, relative / (_OUTLYING * self._usual)) ** 2
        self._scale = np.maximum(self._common, self._least)

    def _posterior(self, variation: Variation) -> tuple[Floats, Floats]:
        """Covariance [F, F] and mean [F] of the weights."""
        gram, right, _ = self._normal(variation.own)
        root = np.sqrt(self._features.prior(variation))
        covariance = np.linalg.inv(np.eye(len(root)) + gram * root[:, None] * root) * root[:, None] * root
        return np.asarray(covariance), np.asarray(covariance @ right)

    def result(self, given: NDArray[np.bool_], level: float) -> ComputeFit:
        """Return the estimate, with the times that were ``given`` [N+1, N+1] as they are.

        ``level``: relative standard deviation of all times together.
        """
        count, at, cuts, unit = len(self._pairs), tuple(self._pairs.T), self._cuts, self._unit
        sure = np.concatenate([given[at], np.zeros(len(cuts), dtype=bool)])
        rows, covariance = np.where(sure[:, None], 0.0, self._rows), self._covariance
        alone = np.where(sure, 0.0, (self._variation.own * self._scale) ** 2)
        estimate, kept_back = self._estimate(((rows @ covariance) * rows).sum(axis=1) + alone)
        kept_back = np.where(sure, 0.0, kept_back)
        together = np.where(sure, 0.0, level * estimate)
        variance = ((rows @ covariance) * rows).sum(axis=1) + alone + kept_back**2 + together**2
        branch_s, off = np.array(self._branch), np.full(len(self._known), np.nan)
        branch_s[cuts] = unit * estimate[count:]
        off[self._known] = np.abs(self._off) / np.where(self._y > 0, self._y, np.inf)

        def variance_s2(times: Floats, branches: Floats) -> float:
            weight = np.concatenate([times[at], branches[cuts]])
            common = weight @ rows
            found = common @ covariance @ common + weight**2 @ alone + (weight @ kept_back) ** 2
            return float(unit**2 * (found + (weight @ together) ** 2))

        return ComputeFit(
            seconds=np.where(given, self._means, self._table(unit * estimate[:count])),
            sd_s=self._table(unit * np.sqrt(variance[:count])),
            branch_s=branch_s,
            off=self._table(off[:count]),
            variance_s2=variance_s2,
        )

    def _estimate(self, variance: Floats) -> tuple[Floats, Floats]:
        """Times of all rows, such that no whole is slower than its parts by more than a standard deviation.

        Also what that keeps back of the likeliest times: times that only add up, with no smooth remainder, are such;
        the estimate goes from them as far towards the likeliest as it can. Starting costs nothing or something. A
        single block that takes longer alone than all others say is believed so far as it is out of the usual.
        """
        count, variation = len(self._pairs), self._variation
        _, weights = self._posterior(replace(variation, smooth=1e-9))
        sums, likeliest = (self._rows @ each + self._unpaid(each) for each in (weights, self._weights))
        more = likeliest - sums
        plain, toward, sd = (self._table(values[:count]) for values in (sums, more, np.sqrt(variance)))
        branch = np.zeros((2, len(self._means)))
        branch[:, self._cuts] = sums[count:], more[count:]
        start, cut, end = self._splits()
        room = np.sqrt(sd[start, cut] ** 2 + sd[cut, end] ** 2 + sd[start, end] ** 2)
        room += plain[start, cut] - branch[0, cut] + plain[cut, end] - plain[start, end]
        need = toward[start, end] - toward[start, cut] + branch[1, cut] - toward[cut, end]
        share = (np.maximum(room, 0.0)[need > 0] / need[need > 0]).min(initial=1.0)
        estimate = np.maximum(sums + share * more, self._least)
        usual = _OUTLYING * self._usual * np.sqrt(self._apart(variation.own) / self._doubt)
        special = np.zeros(len(estimate))
        special[self._known] = np.maximum(self._y - estimate[self._known] - usual, 0.0)
        special[np.concatenate([np.diff(self._pairs)[:, 0] > 1, np.ones(len(self._cuts), dtype=bool)])] = 0.0
        return estimate + special, (1 - share) * more

    def _unpaid(self, weights: Floats) -> Floats:
        """What the times of all rows lack where starting would cost less than nothing."""
        started = sum(self._rows[:, part] @ weights[part] for part in self._features.starting)
        return np.asarray(np.maximum(-started, 0.0))

    def _splits(self) -> NDArray[np.int64]:
        """Start, cut and end of every partition in two parts, [3, N (N + 1) (N - 1) / 6]."""
        cuts = np.arange(self._features.num_blocks + 1)
        inner = (cuts[:, None, None] < cuts[:, None]) & (cuts[:, None] < cuts)
        return np.array(inner.nonzero())

    def _table(self, values: Floats) -> Floats:
        table = np.full(self._means.shape, np.nan)
        table[tuple(self._pairs.T)] = values
        return table


# -- starting --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class StartFit:
    """The estimate of what partitions take longer than busy ones, for one slowdown.

    Attributes:
        woken_s, following_s: [N+1, N+1] after idling, and after another partition; at least 0.
        variance_s2: of a sum of so many of either, [N+1, N+1] each, in s^2.
    """

    woken_s: Floats
    following_s: Floats
    variance_s2: Callable[[Floats, Floats], float]


def fit_starts(
    woken_repeats_s: Floats, following_repeats_s: Floats | None, busy_s: Floats, slowdown: float
) -> StartFit:
    """Fit what the first runs take longer on a device ``slowdown`` times slower; see the module.

    A slower device does the work ``slowdown`` times: the first times cost what they do at first, the others what busy
    ones do. Where nothing was measured after another partition, there are the cold caches and no more.

    Args:
        woken_repeats_s, following_repeats_s: [R, B, N+1, N+1] seconds of the first runs; R = 0 or None: not measured.
        busy_s: [N+1, N+1].
    """
    tables = [t for t in (woken_repeats_s, following_repeats_s) if t is not None]
    share = np.clip(slowdown - np.arange(max(table.shape[1] for table in tables)), 0.0, 1.0)
    share[0] = 1.0  # what waking costs is not shortened by a faster device
    total = np.zeros((2, *busy_s.shape))
    parts: list[tuple[Floats, Floats, Floats]] = []
    for run in np.flatnonzero(share).tolist():
        extra, noise = np.full((2, *total.shape), np.nan)
        for kind, table in enumerate((woken_repeats_s, following_repeats_s)):
            if table is not None and len(table) and run < table.shape[1]:
                mean = mean_repeats(table)[run]
                extra[kind], noise[kind] = mean - busy_s, _relative_variance(table[:, run]) * mean**2
        if np.isfinite(extra).any():
            estimate, *part = _extras(extra, noise, busy_s)
            total += share[run] * estimate
            parts.append((share[run] * part[0], part[1], share[run] ** 2 * part[2]))
    total = np.where(np.isfinite(busy_s), np.maximum(total, 0.0), np.nan)

    def variance_s2(woken: Floats, following: Floats) -> float:
        times, found = np.stack([woken, following]), 0.0
        for common, covariance, alone in parts:
            shared = np.tensordot(times, common, axes=3)
            found += float(shared @ covariance @ shared + (times**2 * alone).sum())
        return found

    return StartFit(total[0], total[1], variance_s2)


def _extras(extra: Floats, noise: Floats, busy_s: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """What one run takes longer after idling and after another partition, [2, N+1, N+1], from what was measured.

    Also the rows [2, N+1, N+1, 3] by which it rests on the line, the line's covariance, and the variance about it.
    """
    known = np.isfinite(extra)
    rows = np.zeros((*extra.shape, 3))
    rows[0, ..., 0] = rows[1, ..., 1] = 1.0
    rows[..., 2] = np.nan_to_num(busy_s)
    weights, covariance, own = _line(rows[known], extra[known], noise[known])
    trust, left = np.zeros(extra.shape), np.zeros(extra.shape)
    trust[known] = np.where(noise[known] > 0, own / np.maximum(own + noise[known], 1e-300), 1.0)
    left[known] = (extra - rows @ weights)[known]
    alone = np.where(known, trust * np.nan_to_num(noise), own)
    return rows @ weights + trust * left, rows * (1 - trust)[..., None], covariance, alone


def _line(rows: Floats, extra: Floats, noise: Floats) -> tuple[Floats, Floats, float]:
    """Weights [3] of ``rows`` [P, 3] by least squares, none below 0, their covariance, and the variance about them.

    The first two columns tell what kind an extra is, the third is the busy time. What lies far off counts less.
    """
    weight, own, weights = np.ones(len(extra)), 0.0, np.zeros(3)
    measured = bool(noise.any())
    for _ in range(_ROUNDS if measured else 1):
        weights = _positive_line(rows, extra, weight)
        off = np.abs(extra - rows @ weights)
        if measured:
            usual = 1.4826 * float(np.median(off))
            own = max(usual**2 - float(np.median(noise)), 0.0)
            doubt = np.maximum(1.0, off / max(_OUTLYING * usual, 1e-300)) ** 2
            weight = 1 / np.maximum((own + noise) * doubt, 1e-300)
    used = weights > 0
    if not measured:
        own = float((off**2).sum() / max(len(off) - int(used.sum()), 1))
        weight = np.full(len(extra), 1 / max(own, 1e-300))
    covariance = np.zeros((3, 3))
    covariance[np.ix_(used, used)] = np.linalg.pinv((rows[:, used] * weight[:, None]).T @ rows[:, used])
    return weights, covariance, own


def _positive_line(rows: Floats, extra: Floats, weight: Floats) -> Floats:
    """Weighted least squares of a constant for each kind, and one slope; a constant below 0 is 0, the slope too."""
    kinds, x = rows[:, :2] > 0, rows[:, 2]
    fixed = np.zeros(2, dtype=bool)  # constants that are 0
    while True:
        spread = product_ = 0.0
        centers = np.zeros((2, 2))
        for kind in np.flatnonzero(kinds.any(axis=0)):
            of = kinds[:, kind]
            w, values = weight[of], np.stack([x[of], extra[of]])
            centers[kind] = 0.0 if fixed[kind] else values @ w / w.sum()
            dx, dy = values - centers[kind][:, None]
            spread, product_ = spread + float(w @ dx**2), product_ + float(w @ (dx * dy))
        slope = max(product_ / spread, 0.0) if spread > 0 else 0.0
        constants = np.where(fixed, 0.0, centers[:, 1] - slope * centers[:, 0])
        if (constants >= 0).all():
            return np.array([*constants, slope])
        fixed |= constants < 0
