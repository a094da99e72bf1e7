"""How many samples leave at each partition, and how many of them are right.

Two estimators. *Sample* replays the plan on the per-sample score table: exact on the profiling
set, no independence assumed. *Marginal* is the paper's: it knows only each branch's exit rate
and accuracy (paper, Sec. II-C1).

Axes: C plans, L partitions, S samples, W = ceil(S/64) words of a bit set.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from portend.errors import MismatchError
from portend.values.exits import Exits, SampleExits
from portend.values.plan import Plan, takes_exit

__all__ = ["BitTables", "exit_counts", "marginal_outcomes", "outcomes_by_class", "replay", "sample_outcomes"]

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Words = NDArray[np.uint64]

_CHUNK_WORDS = 1 << 18


def _pack(flags: NDArray[np.bool_]) -> Words:
    """Pack bool [..., S] into uint64 words [..., W]; the spare bits are 0."""
    samples = flags.shape[-1]
    padded = np.zeros((*flags.shape[:-1], -(-samples // 64) * 64), dtype=np.bool_)
    padded[..., :samples] = flags
    return np.packbits(padded, axis=-1, bitorder="little").view(np.uint64)


def _count(words: Words) -> Ints:
    """Count the samples in bit sets [..., W], [...]."""
    return np.asarray(np.bitwise_count(words).sum(axis=-1, dtype=np.intp))


class BitTables:
    """Bit sets of one exit table for given thresholds.

    ``leaves`` [T, N+1, W]: the samples whose score at the branch of cut c is below threshold t
    (cut 0 has no branch: empty), nobody where ``used`` [T, N+1] says that the exit is not asked.
    ``right`` [N+1, W]: those it classifies correctly. ``everyone`` [W].
    """

    def __init__(self, exits: SampleExits, thresholds: Floats, used: NDArray[np.bool_] | None = None) -> None:
        self.samples = exits.samples
        self.everyone: Words = _pack(np.ones(exits.samples, dtype=np.bool_))
        shape = (exits.num_branches + 1, self.everyone.size)
        self.leaves: Words = np.zeros((len(thresholds), *shape), dtype=np.uint64)
        self.right: Words = np.zeros(shape, dtype=np.uint64)
        for cut in range(1, shape[0]):  # one branch at a time: the table itself is never copied
            self.leaves[:, cut] = _pack(takes_exit(exits.score[:, cut - 1], np.asarray(thresholds)[:, None]))
            self.right[cut] = _pack(exits.correct[:, cut - 1])
        if used is not None:
            self.leaves[~used] = 0

    def outcomes(self, cuts: Ints, rows: Ints) -> tuple[Floats, Floats]:
        """Counts [C, L] of samples that leave at each partition, and of the right ones among them.

        ``cuts`` [C, L]; ``rows`` [C, L-1] index the thresholds. The counts are whole numbers.
        """
        plans, length = cuts.shape
        share, correct = np.empty((plans, length)), np.empty((plans, length))
        chunk = max(1, _CHUNK_WORDS // self.everyone.size)
        for start in range(0, plans, chunk):
            part = slice(start, start + chunk)
            stay = np.broadcast_to(self.everyone, (len(cuts[part]), self.everyone.size))
            for k in range(length):
                cut = cuts[part, k]
                leave = stay if k == length - 1 else stay & self.leaves[rows[part, k], cut]
                share[part, k] = _count(leave)
                correct[part, k] = _count(leave & self.right[cut])
                stay = stay & ~leave
        return share, correct


def sample_outcomes(exits: SampleExits, cuts: Ints, thresholds: Floats) -> tuple[Floats, Floats]:
    """Shares [C, L] in 0–1 that leave at each partition, and that leave there and are right.

    Exact on the profiling samples for any thresholds [C, L-1]; the last partition takes everyone.
    """
    values, rows = np.unique(thresholds, return_inverse=True)
    theta = values if values.size else np.zeros(1)
    used = np.broadcast_to(theta[:, None] > 0, (theta.size, exits.num_branches + 1))
    tables = BitTables(exits, theta, used=used)  # an exit with threshold 0 is not run, whatever its scores
    share, correct = tables.outcomes(cuts, rows.reshape(thresholds.shape))
    return share / exits.samples, correct / exits.samples


def replay(exits: SampleExits, plan: Plan) -> tuple[Ints, NDArray[np.bool_]]:
    """The partition at which each sample leaves under one plan, and whether it is right there, [S] each."""
    left = np.full(exits.samples, len(plan) - 1)
    right = exits.correct[:, plan.cuts[-1] - 1].copy()
    staying = np.ones(exits.samples, dtype=np.bool_)
    for k, (cut, threshold) in enumerate(zip(plan.cuts, plan.thresholds, strict=False)):
        if threshold > 0:
            leaves = staying & takes_exit(exits.score[:, cut - 1], threshold)
            left[leaves], right[leaves] = k, exits.correct[leaves, cut - 1]
            staying &= ~leaves
    return left, right


def outcomes_by_class(exits: SampleExits, plan: Plan) -> Floats:
    """Samples [C, 2, L] of each class that leave at each partition of one plan and are right, or wrong.

    Replayed like ``sample_outcomes``; where labels are not known, all are one class.
    """
    left, right = replay(exits, plan)
    cell = np.where(right, 0, len(plan)) + left
    _, row = np.unique(exits.labels if exits.labels is not None else np.zeros_like(cell), return_inverse=True)
    width = 2 * len(plan)
    counts = np.bincount(row * width + cell, minlength=width * (int(row.max()) + 1))
    return counts.reshape(-1, 2, len(plan)).astype(np.float64)


def exit_counts(exits: Exits, plan: Plan) -> Floats:
    """Samples [C, L] of each class that leave at each partition of one plan; of tables one class, and estimated.

    Raises:
        MismatchError: the plan has cuts, thresholds or a criterion that the exits do not have.
    """
    if plan.cuts[-1] > exits.num_branches:
        raise MismatchError(f"these exits are at the cuts 1–{exits.num_branches}, but the plan has {plan.cuts}")
    exits = exits.by(plan.criterion) if plan.asks else exits
    if isinstance(exits, SampleExits):
        return np.asarray(outcomes_by_class(exits, plan).sum(axis=1))
    thresholds = np.array([plan.thresholds], dtype=np.float64).reshape(1, len(plan) - 1)
    share, _ = marginal_outcomes(exits, np.array([plan.cuts], dtype=np.intp), thresholds)
    return np.rint(share * exits.samples)


def marginal_outcomes(exits: Exits, cuts: Ints, thresholds: Floats) -> tuple[Floats, Floats]:
    """Shares [C, L] in 0–1 that leave at each partition, and A_i E_k (paper, E_k and Acc^est).

    S_k = 1 - max ER over the chosen exits so far: the running maximum keeps E_k >= 0 where a later
    branch exits fewer samples than an earlier one; otherwise it equals the paper's formula.
    """
    values, rows = np.unique(thresholds, return_inverse=True)
    rows = rows.reshape(thresholds.shape)
    left = np.ones(cuts.shape)
    if values.size:
        rates = np.zeros((values.size, exits.num_branches))  # nobody leaves at threshold 0
        if (values > 0).any():
            rates[values > 0] = exits.rates(values[values > 0])
        left[:, :-1] = np.maximum.accumulate(rates[rows, cuts[:, :-1] - 1], axis=1)
    share = np.diff(left, axis=1, prepend=0.0)
    return share, share * exits.accuracies()[cuts - 1]
