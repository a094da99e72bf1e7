"""What the performance model says of plans: a discrete distribution of outcomes, term by term.

Axes: C plans, L partitions, P latency parts. A sample leaves at partition k with probability
``share[k]`` after ``latency_s[k]``; mean, quantiles, CDF and deadline misses all follow from
these pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from portend.errors import InvalidValue, choice
from portend.stats.strata import draw_rates
from portend.values.plan import Plan

__all__ = ["PARTS", "Estimate", "EstimateBatch", "quantile_s"]

Floats = NDArray[np.float64]
Quantity = Literal["exit_rates", "accuracy", "mean"]

PARTS: Final = ("compute", "encode", "decode", "transmission", "propagation", "dispatch")
"""The latency terms: the paper's four with serialization split in two, and what the runtime spends per message."""


def quantile_s(share: Floats, latency_s: Floats, q: float) -> Floats:
    """Latency quantile in seconds of discrete outcomes [..., L], [...].

    The smallest latency that at least a share ``q`` of the samples do not exceed.
    """
    if not 0 < q <= 1:
        raise InvalidValue(f"a quantile lies within 0–1 and above 0, but got {q}")
    order = np.argsort(latency_s, axis=-1, kind="stable")
    cumulative = np.cumsum(np.take_along_axis(share, order, axis=-1), axis=-1)
    reached = cumulative >= q * cumulative[..., -1:] - 1e-12
    first = np.argmax(reached, axis=-1)[..., None]
    ordered = np.take_along_axis(latency_s, order, axis=-1)
    return np.asarray(np.take_along_axis(ordered, first, axis=-1)[..., 0])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EstimateBatch:
    """Estimates of C plans of L partitions each.

    Attributes:
        share: [C, L], E_k; correct: [C, L], share that leaves at k and is right.
        step_parts_s: [C, L, P] seconds per part of the hop into partition k and its compute;
            result_parts_s: [C, L, P] seconds per part of the result's way back from partition k.
    """

    share: Floats
    correct: Floats
    step_parts_s: Floats
    result_parts_s: Floats

    @property
    def latency_parts_s(self) -> Floats:
        """Seconds per part for a sample that leaves at partition k, [C, L, P]."""
        return np.asarray(np.cumsum(self.step_parts_s, axis=-2) + self.result_parts_s)

    @property
    def latency_s(self) -> Floats:
        """Seconds for a sample that leaves at partition k, ℓ_k, [C, L]."""
        return np.asarray(self.latency_parts_s.sum(axis=-1))

    @property
    def mean_s(self) -> Floats:
        """Mean latency in seconds, Σ E_k ℓ_k, [C] (paper, Lat^est)."""
        return np.asarray((self.share * self.latency_s).sum(axis=-1))

    @property
    def parts_s(self) -> Floats:
        """Mean seconds per part, [C, P]."""
        return np.asarray((self.share[..., None] * self.latency_parts_s).sum(axis=-2))

    @property
    def accuracy(self) -> Floats:
        """Share of right answers, [C] (paper, Acc^est, when the estimator is marginal)."""
        return np.asarray(self.correct.sum(axis=-1))

    def quantile_s(self, q: float) -> Floats:
        """Latency quantile in seconds, [C]."""
        return quantile_s(self.share, self.latency_s, q)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Estimate:
    """One plan's estimate; the same fields as a row of EstimateBatch, with intervals.

    Attributes:
        plan: complete with codecs; estimator: ``sample`` or ``marginal``.
        share, correct: [L]; step_parts_s, result_parts_s: [L, P] seconds (see EstimateBatch).
        samples: profiling samples behind the shares.
        class_counts: [C, 2, L] samples of each class that leave at k and are right, or wrong (``perfmodel.exits``);
            None where classes are not known: all samples then count as one class.
        time_sd_s: standard deviation of the mean latency that uncertain compute times leave, s.
    """

    plan: Plan
    estimator: str
    share: Floats
    correct: Floats
    step_parts_s: Floats
    result_parts_s: Floats
    samples: int
    class_counts: Floats | None = None
    time_sd_s: float = 0.0

    @property
    def latency_parts_s(self) -> Floats:
        """Seconds per part for a sample that leaves at partition k, [L, P]."""
        return np.asarray(np.cumsum(self.step_parts_s, axis=0) + self.result_parts_s)

    @property
    def latency_s(self) -> Floats:
        """Seconds for a sample that leaves at partition k, ℓ_k, [L]."""
        return np.asarray(self.latency_parts_s.sum(axis=-1))

    @property
    def mean_s(self) -> float:
        """Mean latency in seconds."""
        return float(self.share @ self.latency_s)

    @property
    def parts_s(self) -> dict[str, float]:
        """Mean seconds of each latency part; they add up to the mean latency."""
        return dict(zip(PARTS, (float(x) for x in self.share @ self.latency_parts_s), strict=True))

    @property
    def accuracy(self) -> float:
        return float(self.correct.sum())

    @property
    def exit_counts(self) -> Floats:
        """Profiling samples of each class that leave at k, [C, L]; one class where classes are not known."""
        if self.class_counts is not None:
            return np.asarray(self.class_counts.sum(axis=1))
        return np.rint(self.samples * self.share)[None]

    def quantile_s(self, q: float) -> float:
        """Latency quantile in seconds: the smallest latency that a share ``q`` does not exceed."""
        return float(quantile_s(self.share, self.latency_s, q))

    def miss_rate(self, deadline_s: float) -> float:
        """Share of samples that take longer than ``deadline_s``."""
        return float(self.share[self.latency_s > deadline_s].sum())

    def cdf(self, seconds: ArrayLike) -> Floats:
        """Share of samples answered within ``seconds``, same shape."""
        at = np.asarray(seconds, dtype=np.float64)
        return np.asarray(((self.latency_s <= at[..., None]) * self.share).sum(axis=-1))

    def draws(self, *, test_samples: int | None = None, count: int = 20_000, seed: int = 0) -> OutcomeDraws:
        """Draw what ``test_samples`` new samples may do (None: infinitely many, the true rates).

        The profile's outcome counts (leaves at k, right or wrong) give Dirichlet distributions, one
        for each class, of the true rates (``strata.draw_rates``); new samples are multinomial draws from
        their sum. So the spread covers both the finite profile and the finite test. Outcomes that the plan
        rules out (threshold 0) keep rate 0. With many classes there are fewer draws than ``count``.
        """
        counts = self.class_counts
        if counts is None:
            wrong = np.maximum(self.share - self.correct, 0.0)
            counts = self.samples * np.stack([np.minimum(self.correct, self.share), wrong])[None]
        possible = np.ones(len(self.plan), dtype=bool)
        possible[:-1] = np.asarray(self.plan.thresholds) > 0
        rng = np.random.default_rng(seed)
        drawn = draw_rates(counts.reshape(len(counts), -1), possible=np.tile(possible, 2), count=count, rng=rng)
        if test_samples is not None:
            drawn = rng.multinomial(test_samples, drawn) / test_samples
        outcome = drawn.reshape(len(drawn), 2, -1)
        return OutcomeDraws(
            exit_rates=outcome.sum(axis=1), accuracy=outcome[:, 0].sum(axis=1), latency_s=self.latency_s
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the estimate as JSON values, latencies in ms, with 95 % intervals of the true values."""
        draws = self.draws()
        return {
            "latency_ms": {
                "mean": 1e3 * self.mean_s,
                "p50": 1e3 * self.quantile_s(0.50),
                "p95": 1e3 * self.quantile_s(0.95),
                "p99": 1e3 * self.quantile_s(0.99),
                "mean_interval": [1e3 * float(x) for x in draws.interval("mean")],
                "time_sd": 1e3 * self.time_sd_s,
                "parts": {part: 1e3 * seconds for part, seconds in self.parts_s.items()},
                "per_exit": [1e3 * float(x) for x in self.latency_s],
            },
            "accuracy": self.accuracy,
            "accuracy_interval": [float(x) for x in draws.interval("accuracy")],
            "exit_rates": [float(x) for x in self.share],
            "estimator": self.estimator,
            "samples": self.samples,
        }


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OutcomeDraws:
    """Monte Carlo draws of what a plan may do: exit_rates [D, L], accuracy [D], latency_s [L]."""

    exit_rates: Floats
    accuracy: Floats
    latency_s: Floats

    def interval(self, quantity: Quantity, level: float = 0.95) -> Floats:
        """Central interval of ``exit_rates`` [2, L], ``accuracy`` [2] or ``mean`` latency in s [2]."""
        choice("an interval's quantity", quantity, get_args(Quantity))
        values = {
            "exit_rates": self.exit_rates,
            "accuracy": self.accuracy,
            "mean": self.exit_rates @ self.latency_s,
        }[quantity]
        return np.asarray(np.quantile(values, ((1 - level) / 2, (1 + level) / 2), axis=0))
