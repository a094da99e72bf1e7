"""Prediction against measurement: what was estimated for a plan, and what it did when it ran.

Axes: L partitions of one plan (its exits). Latencies are in seconds inside and in ms under names
that say so in ``to_dict``; ratios, shares and relative errors are fractions of 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from portend.errors import InvalidValue, MismatchError
from portend.perfmodel.estimate import PARTS, Estimate
from portend.stats.exit_drift import ExitDrift, exit_drift
from portend.values.measurement import Measurement
from portend.values.plan import Plan

__all__ = [
    "TERMS",
    "Comparison",
    "Fit",
    "Intervals",
    "Term",
    "agreement",
    "compare",
    "exit_drifts",
    "fit",
    "inside",
    "undecided_exits",
]

Floats = NDArray[np.float64]

TERMS: Final[dict[str, tuple[str, ...]]] = {
    "compute": ("compute",),
    "encode": ("encode",),
    "decode": ("decode",),
    "transfer": ("transmission", "propagation", "dispatch"),
    "other": (),
}
"""Each measured term and the predicted parts it is compared with. A message is seen when it is
sent and when it has arrived, so its three predicted parts are measured as one; ``other`` is the
time that no span covers, which the model says is zero."""

_ROUNDING: Final = 1e-12  # shares are sums of floats; an interval's end counts as inside


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """One latency term of a plan: mean seconds per request, predicted and measured."""

    name: str
    predicted_s: float
    measured_s: float

    @property
    def error_s(self) -> float:
        """Predicted minus measured seconds."""
        return self.predicted_s - self.measured_s


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Intervals:
    """Where a test of this size should fall: accuracy [2] and exit_rates [2, L], lower and upper ends."""

    accuracy: Floats
    exit_rates: Floats


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Comparison:
    """One plan's estimate beside its measurement; everything else is derived.

    Attributes:
        name: what the plan is called in tables and figures.
        level: probability that the stated intervals hold, within 0–1.
    """

    name: str
    estimate: Estimate
    measurement: Measurement
    level: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise InvalidValue(f"the level of an interval lies between 0 and 1, but got {self.level}")
        if self.estimate.plan != self.measurement.plan:
            raise MismatchError(
                f"an estimate is compared with a measurement of the same plan, but for {self.name!r} the estimate is "
                f"of {self.estimate.plan.to_dict()} and the measurement of {self.measurement.plan.to_dict()}"
            )
        last = int(self.measurement.exit_index.max())
        if last >= len(self.plan):
            raise MismatchError(
                f"a plan of {len(self.plan)} partitions has the exits 0–{len(self.plan) - 1}, "
                f"but the measurement of {self.name!r} has samples that left at {last}"
            )

    @property
    def plan(self) -> Plan:
        return self.estimate.plan

    @property
    def test_samples(self) -> int:
        return self.measurement.stands_for

    @property
    def disturbed(self) -> str:
        """What disturbed the measurement (``runtime.watch``); empty where nothing did or nobody knows."""
        return self.measurement.provenance.get("disturbed", "")

    @property
    def error(self) -> float:
        """Relative error of the mean latency: (predicted - measured) / measured."""
        return self.estimate.mean_s / self.measurement.mean_s - 1

    @property
    def standard_error_s(self) -> float | None:
        """Standard error of the measured mean in seconds, requests taken as independent; None for one request."""
        return self.measurement.standard_error_s

    @property
    def reweighted_mean_s(self) -> float:
        """Predicted mean in seconds had the samples left as they did: Σ measured share x predicted ℓ_k.

        Its distance to the measured mean is the latency model's own error, without that of the exit rates.
        """
        return float(self.measurement.exit_rates() @ self.estimate.latency_s)

    def intervals(self) -> Intervals:
        """Return the predictive intervals for a test of this many samples."""
        draws = self.estimate.draws(test_samples=self.test_samples)
        return Intervals(
            accuracy=draws.interval("accuracy", self.level),
            exit_rates=draws.interval("exit_rates", self.level),
        )

    def accuracy_inside(self) -> bool:
        """Whether the measured accuracy lies within its interval."""
        return bool(inside(self.measurement.accuracy, self.intervals().accuracy))

    def exit_rates_inside(self) -> NDArray[np.bool_]:
        """Whether each measured exit rate lies within its interval, [L]."""
        return inside(self.measurement.exit_rates(), self.intervals().exit_rates)

    def exit_drift(self, level: float = 0.99) -> ExitDrift:
        """Return whether the run's exits drifted from the profile's; ``level``: that none is found where none is."""
        counts = np.rint(self.measurement.exit_rates() * self.test_samples).astype(np.int64)
        return exit_drift(self.plan, self.estimate.exit_counts, counts, level)

    def undecided(self) -> NDArray[np.bool_]:
        """Exits whose rate the plan leaves open, [L] (``undecided_exits``)."""
        return undecided_exits(self.plan)

    @property
    def terms(self) -> tuple[Term, ...]:
        """The latency terms, in the order of TERMS; each side adds up to its mean latency."""
        predicted, measured = self.estimate.parts_s, self.measurement.parts_s()
        return tuple(
            Term(name=name, predicted_s=math.fsum(predicted[part] for part in parts), measured_s=measured[name])
            for name, parts in TERMS.items()
        )

    @property
    def contributions_s(self) -> dict[str, float]:
        """The mean's error in seconds (predicted - measured), in parts that add up to it.

        ``exit rates``: what the predicted exit rates change against the measured ones. Then each of TERMS, with the
        measured exit rates: the latency model's own errors.
        """
        at = dict(zip(PARTS, self.measurement.exit_rates() @ self.estimate.latency_parts_s, strict=True))
        measured = self.measurement.parts_s()
        own = {name: math.fsum(float(at[part]) for part in parts) - measured[name] for name, parts in TERMS.items()}
        return {"exit rates": self.estimate.mean_s - self.reweighted_mean_s} | own

    @property
    def largest_error(self) -> Term:
        """The term with the largest absolute error."""
        return max(self.terms, key=lambda term: abs(term.error_s))

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON values, latencies in ms."""
        intervals = self.intervals()
        measured_rates = self.measurement.exit_rates()
        return {
            "name": self.name,
            "plan": self.plan.to_dict(),
            "profile_samples": self.estimate.samples,
            "test_samples": self.test_samples,
            "level": self.level,
            "latency_ms": {
                "predicted": _latency_ms(self.estimate),
                "measured": _latency_ms(self.measurement) | {"standard_error": _ms(self.standard_error_s)},
                "reweighted_mean": _ms(self.reweighted_mean_s),
                "terms": {
                    term.name: {"predicted": _ms(term.predicted_s), "measured": _ms(term.measured_s)}
                    for term in self.terms
                },
            },
            "latency_error": self.error,
            "largest_error_term": self.largest_error.name,
            "disturbed": self.disturbed,
            "accuracy": {
                "predicted": self.estimate.accuracy,
                "measured": self.measurement.accuracy,
                "interval": intervals.accuracy.tolist(),
                "inside": bool(inside(self.measurement.accuracy, intervals.accuracy)),
            },
            "exit_rates": {
                "predicted": self.estimate.share.tolist(),
                "measured": measured_rates.tolist(),
                "interval": intervals.exit_rates.T.tolist(),
                "inside": inside(measured_rates, intervals.exit_rates).tolist(),
            },
            "exit_drift": self.exit_drift().to_dict(),
        }


def compare(cases: Mapping[str, tuple[Estimate, Measurement]], level: float = 0.95) -> tuple[Comparison, ...]:
    """Return one comparison per named case, in order; MismatchError if a case mixes two plans."""
    return tuple(
        Comparison(name=name, estimate=estimate, measurement=measurement, level=level)
        for name, (estimate, measurement) in cases.items()
    )


def exit_drifts(comparisons: Sequence[Comparison], level: float = 0.99) -> dict[str, ExitDrift]:
    """Return, for each plan with early exits, whether its exits drifted; all of them together keep the level."""
    asked = [case for case in comparisons if case.undecided().any()]
    return {case.name: case.exit_drift(1 - (1 - level) / len(asked)) for case in asked}


def agreement(comparisons: Sequence[Comparison]) -> dict[str, dict[str, float | int | None]]:
    """Return how predictions agree with measurements over plans (paper, Fig. 4), as JSON values.

    ``latency``: n plans, mape (fraction of 1) and rmse_ms of the means. ``exit_rate``: n branches, of all plans, whose
    rate the plan leaves open (the paper counts every branch; a rate that can only be 1 or 0 proves nothing).
    ``accuracy``: n plans. ``inside`` counts those within their interval; ``beta`` and ``r2`` belong to the
    least-squares line, with intercept, of predicted on measured. None where there is too little to tell.
    """
    if not comparisons:
        raise InvalidValue("agreement needs at least one comparison, but got none")
    latency = np.array([(c.measurement.mean_s, c.estimate.mean_s) for c in comparisons])
    accuracy = np.array([(c.measurement.accuracy, c.estimate.accuracy) for c in comparisons])
    rates = np.concatenate([np.stack([c.measurement.exit_rates(), c.estimate.share], axis=1) for c in comparisons])
    undecided = np.concatenate([c.undecided() for c in comparisons])
    rates_inside = np.concatenate([c.exit_rates_inside() for c in comparisons])[undecided]
    errors = latency[:, 1] - latency[:, 0]
    return {
        "latency": {
            "n": len(comparisons),
            "mape": float(np.mean(np.abs(errors / latency[:, 0]))),
            "rmse_ms": 1e3 * float(np.sqrt(np.mean(errors**2))),
            **_line(latency),
        },
        "exit_rate": {"n": int(undecided.sum()), "inside": int(rates_inside.sum()), **_line(rates[undecided])},
        "accuracy": {
            "n": len(comparisons),
            "inside": sum(c.accuracy_inside() for c in comparisons),
            **_line(accuracy),
        },
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """How n predictions agree with what was measured; None where there is too little to tell.

    Attributes:
        beta, intercept: of the least-squares line, with intercept, of predicted on measured (paper, Fig. 4: a slope of
            1.49 for accuracies below 100 % has one). beta_origin: slope of the line through the origin.
        r2: share of the predictions' variance on that line. r2_identity: share of the measurements' variance that is
            left over by predicted = measured: 1 - Σ (p - m)² / Σ (m - mean m)², also negative.
        rmse, bias: root mean square, and mean, of predicted - measured, in the unit of the values.
        mape: mean of |predicted - measured| / measured as a fraction of 1, over values measured as other than 0.
    """

    n: int
    beta: float | None
    intercept: float | None
    beta_origin: float | None
    r2: float | None
    r2_identity: float | None
    rmse: float | None
    bias: float | None
    mape: float | None


def undecided_exits(plan: Plan) -> NDArray[np.bool_]:
    """Return which exits' rates the plan leaves open, [L]: no branch with threshold 0, nor the only way out."""
    open_ = np.append(np.asarray(plan.thresholds) > 0, True)
    return open_ if open_.sum() > 1 else np.zeros_like(open_)


def fit(measured: ArrayLike, predicted: ArrayLike) -> Fit:
    """Return how predictions [n] agree with measurements [n]."""
    x, y = np.asarray(measured, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise InvalidValue(f"each measurement has one prediction, but got {x.shape} and {y.shape}")
    if not x.size:
        empty = dict.fromkeys(("beta", "intercept", "beta_origin", "r2", "r2_identity", "rmse", "bias", "mape"))
        return Fit(n=0, **empty)
    dx, dy, error = x - x.mean(), y - y.mean(), y - x
    spread_x, spread_y, squares = float(dx @ dx), float(dy @ dy), float(x @ x)
    differ = spread_x > _ROUNDING * squares
    beta = float(dx @ dy) / spread_x if differ else None
    known = differ and x.size >= 3
    some = x != 0
    return Fit(
        n=x.size,
        beta=beta,
        intercept=None if beta is None else float(y.mean() - beta * x.mean()),
        beta_origin=float(x @ y) / squares if squares > 0 else None,
        r2=float(dx @ dy) ** 2 / (spread_x * spread_y) if known and spread_y > 0 else None,
        r2_identity=1 - float(error @ error) / spread_x if known else None,
        rmse=float(np.sqrt(np.mean(error**2))),
        bias=float(error.mean()),
        mape=float(np.mean(np.abs(error[some] / x[some]))) if some.any() else None,
    )


def inside(value: ArrayLike, interval: Floats) -> NDArray[np.bool_]:
    """Whether values [...] lie within interval [2, ...], its ends included, up to rounding."""
    at = np.asarray(value)
    return np.asarray((interval[0] - _ROUNDING <= at) & (at <= interval[1] + _ROUNDING))


def _line(points: Floats) -> dict[str, float | None]:
    """Return slope and R² of the least-squares line through (measured, predicted) points [n, 2]."""
    found = fit(*points.T)
    return {"beta": found.beta, "r2": found.r2}


def _latency_ms(of: Estimate | Measurement) -> dict[str, float | None]:
    return {"mean": _ms(of.mean_s), "p50": _ms(of.quantile_s(0.50)), "p95": _ms(of.quantile_s(0.95))}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds
