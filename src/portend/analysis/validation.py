"""How well the model holds over a campaign of many plans: agreement, what explains its errors, and what they cost.

Everything is computed from the plans' estimates and raw measurements (``portend.workflows.validate`` gathers them).
Latencies are in seconds inside, in ms under names that say so in ``to_dict``.

Axes: n plans.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from portend.analysis.compare import TERMS, Comparison, Fit, fit, inside
from portend.errors import choice, law
from portend.perfmodel.estimate import Estimate
from portend.planner.mix import FACTORS
from portend.planner.pareto import front_indices
from portend.units import signed

__all__ = [
    "PAPER",
    "TARGETS",
    "Attribution",
    "Case",
    "Regret",
    "Target",
    "Validation",
    "Verdict",
    "attribute",
    "regret",
]

Floats = NDArray[np.float64]

PAPER: Final[Mapping[str, Mapping[str, tuple[float, float]]]] = {
    "latency": {
        "ResNet-20": (0.98, 1.00),
        "ResNet-110": (0.95, 0.98),
        "EfficientNet-B0": (0.97, 1.00),
        "VGGish": (0.86, 0.97),
    },
    "exit_rate": {
        "ResNet-20": (1.00, 1.00),
        "ResNet-110": (1.00, 1.00),
        "EfficientNet-B0": (1.02, 1.00),
        "VGGish": (1.01, 1.00),
    },
    "accuracy": {
        "ResNet-20": (0.83, 0.77),
        "ResNet-110": (0.89, 0.93),
        "EfficientNet-B0": (1.49, 0.90),
        "VGGish": (1.42, 0.91),
    },
}
"""Slope β and R² by quantity and network, read off the paper's Fig. 4."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What a figure of an agreement shall be: within ``low`` to ``high``."""

    quantity: str
    figure: str
    low: float
    high: float


TARGETS: Final = (
    Target(quantity="latency", figure="beta", low=0.98, high=1.02),
    Target(quantity="latency", figure="r2", low=0.995, high=1.0),
    Target(quantity="latency", figure="mape", low=0.0, high=0.03),
    Target(quantity="exit_rate", figure="beta", low=0.98, high=1.02),
    Target(quantity="exit_rate", figure="r2", low=0.999, high=1.0),
    Target(quantity="accuracy", figure="beta", low=0.95, high=1.05),
    Target(quantity="accuracy", figure="r2", low=0.98, high=1.0),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether a target is met; ``why``: where it is missed, what explains most of it, as text."""

    target: Target
    value: float | None
    met: bool
    why: str = ""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Case:
    """One plan of a campaign: what was predicted, and what it did.

    Attributes:
        comparison: the measurement, with the estimate for the tiers as fast as they were while the plan ran
            (``profiling.turns``): nothing that the plan itself did went into it.
        before: the estimate by the profile alone, written down before anything ran.
        marginal: as the comparison's, by the paper's estimator of exits.
        replayed: as the comparison's, with the exits' scores of the test; None: not known.
        unlike_scores: how many of the samples that ran left elsewhere, or were right where they should be wrong or the
            other way round, than their scores say.
        origin: ``front`` or ``mix``; factors: the plan's levels (``planner.mix``).
    """

    comparison: Comparison
    before: Estimate
    marginal: Estimate
    replayed: Estimate | None = None
    unlike_scores: int = 0
    origin: str = "mix"
    factors: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.comparison.name

    @property
    def measured_s(self) -> float:
        return self.comparison.measurement.mean_s

    @property
    def accuracy(self) -> float:
        """Measured share of right answers."""
        return self.comparison.measurement.accuracy


@dataclass(frozen=True, kw_only=True, slots=True)
class Attribution:
    """What one part does to the errors of n predictions; over all parts, ``slope`` adds up to β - 1 and ``share`` to 1.

    Attributes:
        slope: of the part on the measured values; None where those do not differ.
        share: of the sum of squared errors, Σ part · error / Σ error²; None where there is no error.
        bias, rms: mean and root mean square of the part, in the unit of the values.
    """

    slope: float | None
    share: float | None
    bias: float
    rms: float


def attribute(measured: ArrayLike, parts: Mapping[str, ArrayLike]) -> dict[str, Attribution]:
    """Return what each part [n] of the errors does to slope and size; the parts of a plan add up to its error."""
    x = np.asarray(measured, dtype=np.float64)
    columns = {name: np.asarray(part, dtype=np.float64) for name, part in parts.items()}
    law(x.size > 0, "errors are attributed over at least one plan, but got none")
    error = np.sum(list(columns.values()), axis=0)
    dx, squares = x - x.mean(), float(error @ error)
    spread = float(dx @ dx)
    return {
        name: Attribution(
            slope=float(dx @ part) / spread if spread > 1e-12 * float(x @ x) else None,
            share=float(part @ error) / squares if squares > 0 else None,
            bias=float(part.mean()),
            rms=float(np.sqrt(np.mean(part**2))),
        )
        for name, part in columns.items()
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Regret:
    """What trusting the predictions costs where an accuracy is asked for.

    Attributes:
        bound: least accuracy. plans: how many plans reach it as measured.
        chosen, best: of these, the plan predicted fastest (by the profile alone) and the one measured fastest.
        chosen_s, best_s: their measured mean latencies; standard_error_s: of the difference, 0 for one plan.
        planned: the plan predicted fastest among those *predicted* to reach the bound, as a planner takes it, None if
            there is none; planned_s, planned_accuracy: what it did as measured.
    """

    bound: float
    plans: int
    chosen: str
    best: str
    chosen_s: float
    best_s: float
    standard_error_s: float
    planned: str | None
    planned_s: float | None
    planned_accuracy: float | None

    @property
    def regret_s(self) -> float:
        """Measured seconds lost, at least 0."""
        return self.chosen_s - self.best_s

    @property
    def regret(self) -> float:
        """The loss as a share of the best plan's latency."""
        return self.regret_s / self.best_s


def regret(cases: Sequence[Case], bounds: Sequence[float]) -> tuple[Regret, ...]:
    """Return the regret at each bound that any plan reaches as measured.

    Of plans equally fast the first one counts. Accuracies are counts over samples; a bound is met up to rounding.
    """
    found = []
    for bound in bounds:
        able = [case for case in cases if case.accuracy >= bound - 1e-12]
        if not able:
            continue
        chosen = min(able, key=lambda case: case.before.mean_s)
        best = min(able, key=lambda case: case.measured_s)
        hoped = [case for case in cases if case.before.accuracy >= bound - 1e-12]
        planned = min(hoped, key=lambda case: case.before.mean_s, default=None)
        errors = [case.comparison.standard_error_s or 0.0 for case in (chosen, best)]
        found.append(
            Regret(
                bound=bound,
                plans=len(able),
                chosen=chosen.name,
                best=best.name,
                chosen_s=chosen.measured_s,
                best_s=best.measured_s,
                standard_error_s=0.0 if chosen is best else math.hypot(*errors),
                planned=None if planned is None else planned.name,
                planned_s=None if planned is None else planned.measured_s,
                planned_accuracy=None if planned is None else planned.accuracy,
            )
        )
    return tuple(found)


@dataclass(frozen=True, kw_only=True, eq=False)
class Validation:
    """A campaign's plans that ran, and everything that follows from them.

    Attributes:
        cases: at least one; planned: how many plans the campaign has.
        full_accuracy: of the whole network on the profiling samples, from which the bounds of regret count.
    """

    cases: tuple[Case, ...]
    planned: int
    full_accuracy: float

    def __post_init__(self) -> None:
        law(bool(self.cases), "a validation is of at least one plan that ran, but none did")

    @property
    def comparisons(self) -> list[Comparison]:
        return [case.comparison for case in self.cases]

    # -- agreement -----------------------------------------------------------------------------

    def latency(self, estimate: Callable[[Case], Estimate] = lambda case: case.comparison.estimate) -> Fit:
        """Agreement of the mean latencies in s; ``estimate``: which of a case's, default: for the machine's speed."""
        return fit(self._measured_s, [estimate(case).mean_s for case in self.cases])

    @property
    def latency_at_measured_exits(self) -> Fit:
        """Agreement of mean latencies in s, had the exit rates been predicted exactly."""
        return fit(self._measured_s, [case.comparison.reweighted_mean_s for case in self.cases])

    @property
    def disturbed(self) -> list[str]:
        """Names of the plans that something else on the machine disturbed."""
        return [case.name for case in self.cases if case.comparison.disturbed]

    @property
    def undisturbed(self) -> Fit:
        """Agreement of the mean latencies in s of the plans that nothing disturbed."""
        quiet = [case.comparison for case in self.cases if not case.comparison.disturbed]
        return fit([c.measurement.mean_s for c in quiet], [c.estimate.mean_s for c in quiet])

    def quantile(self, q: float) -> Fit:
        """Agreement of a latency quantile in s."""
        return fit(
            [c.measurement.quantile_s(q) for c in self.comparisons],
            [c.estimate.quantile_s(q) for c in self.comparisons],
        )

    def terms(self) -> dict[str, Fit]:
        """Agreement of each latency term in s, and of their sum as ``total``."""
        both = [{term.name: (term.measured_s, term.predicted_s) for term in c.terms} for c in self.comparisons]
        found = {name: fit(*np.array([plan[name] for plan in both]).T) for name in TERMS}
        return found | {"total": self.latency()}

    def exit_rate(
        self, estimate: Callable[[Case], Estimate | None] = lambda case: case.comparison.estimate, *, all_: bool = False
    ) -> Fit:
        """Agreement of exit rates over branches of all plans.

        Branches whose rate the plan leaves open; ``all_``: every one, as the paper counts.
        """
        measured, predicted = self._rates(estimate, all_=all_)
        return fit(measured, predicted)

    def accuracy(self, estimate: Callable[[Case], Estimate] = lambda case: case.comparison.estimate) -> Fit:
        """Agreement of the accuracies."""
        return fit([case.accuracy for case in self.cases], [estimate(case).accuracy for case in self.cases])

    @property
    def speed_drift(self) -> float:
        """How much longer computing took while the plans ran than in the profile: the mean over plans, relative."""
        then = [case.comparison.estimate.parts_s["compute"] for case in self.cases]
        before = [case.before.parts_s["compute"] for case in self.cases]
        return float(np.mean(np.array(then) / np.array(before)) - 1)

    @property
    def _measured_s(self) -> list[float]:
        return [case.measured_s for case in self.cases]

    @property
    def _replayed(self) -> bool:
        return all(case.replayed is not None for case in self.cases)

    def _rates(self, estimate: Callable[[Case], Estimate | None], *, all_: bool = False) -> tuple[Floats, Floats]:
        """Measured and predicted rates of branches, of all plans in a row."""
        kept = [np.ones(len(c.plan), dtype=bool) if all_ else c.undecided() for c in self.comparisons]
        pairs = [(case, estimate(case), some) for case, some in zip(self.cases, kept, strict=True)]
        measured = [case.comparison.measurement.exit_rates()[some] for case, _, some in pairs]
        predicted = [found.share[some] for _, found, some in pairs if found is not None]
        return np.concatenate(measured), np.concatenate(predicted)

    @cached_property
    def inside(self) -> dict[str, int]:
        """How many exit rates (of branches that the plan leaves open) and accuracies lie within their intervals."""
        found = {"exit_rate": 0, "accuracy": 0}
        for c in self.comparisons:
            intervals = c.intervals()
            found["exit_rate"] += int(inside(c.measurement.exit_rates(), intervals.exit_rates)[c.undecided()].sum())
            found["accuracy"] += bool(inside(c.measurement.accuracy, intervals.accuracy))
        return found

    # -- what explains it ----------------------------------------------------------------------

    def latency_attribution(self) -> dict[str, Attribution]:
        """What exit rates and each latency term do to the errors of the mean latency, in s."""
        each = [c.contributions_s for c in self.comparisons]
        return attribute(self._measured_s, {name: [parts[name] for parts in each] for name in each[0]})

    def exit_attribution(self, quantity: str) -> dict[str, Attribution]:
        """What does to the errors of ``exit_rate`` or ``accuracy``: other samples than profiled, or what ran.

        ``other samples``: predicted - replayed on the test's samples. ``what ran``: replayed - measured, such as what
        codecs lost, or an executor that computes otherwise. Empty where replaying was not possible, or nothing is open.
        """
        choice("a quantity", quantity, ("exit_rate", "accuracy"))
        if not self._replayed:
            return {}
        if quantity == "accuracy":
            x = np.array([case.accuracy for case in self.cases])
            y = np.array([case.comparison.estimate.accuracy for case in self.cases])
            z = np.array([case.replayed.accuracy for case in self.cases if case.replayed is not None])
        else:
            x, y = self._rates(lambda case: case.comparison.estimate)
            _, z = self._rates(lambda case: case.replayed)
        return attribute(x, {"other samples": y - z, "what ran": z - x}) if x.size else {}

    def verdicts(self) -> tuple[Verdict, ...]:
        """Return whether each target is met, and what explains it where not."""
        fits = {"latency": self.latency(), "exit_rate": self.exit_rate(), "accuracy": self.accuracy()}
        found = []
        for target in TARGETS:
            value = getattr(fits[target.quantity], target.figure)
            met = value is not None and target.low <= value <= target.high
            found.append(Verdict(target=target, value=value, met=met, why="" if met else self._why(target, value)))
        return tuple(found)

    def _why(self, target: Target, value: float | None) -> str:
        if value is None:
            return "too few plans, or values that do not differ"
        timed = target.quantity == "latency"
        parts = self.latency_attribution() if timed else self.exit_attribution(target.quantity)
        if not parts:
            return ""
        by_slope = target.figure == "beta"
        name = max(parts, key=lambda key: abs((parts[key].slope if by_slope else parts[key].share) or 0.0))
        part, scale, unit = parts[name], 1e3 if timed else 100.0, "ms" if timed else "points"
        size = f"{signed(scale * part.bias, 2)} {unit} on average, RMS {scale * part.rms:.2f} {unit}"
        if not timed:
            count = len(self.cases) if target.quantity == "accuracy" else self.exit_rate().n
            size += f"; {self.inside[target.quantity]} of {count} lie within their 95 % intervals"
        if by_slope and part.slope is not None:
            return f"{name}: {signed(part.slope, 4)} of the slope's {signed(value - 1, 4)}; {size}"
        return f"{name}: {100 * (part.share or 0.0):.0f} % of the squared error; {size}"

    def worst(self, count: int = 8) -> list[Case]:
        """Return the plans with the largest relative errors of the mean latency, the worst first."""
        return sorted(self.cases, key=lambda case: -abs(case.comparison.error))[:count]

    def by_factor(self) -> dict[str, dict[str, list[Case]]]:
        """Return the plans by the levels of each factor, and by origin."""
        groups: dict[str, dict[str, list[Case]]] = {}
        for name in (*FACTORS, "origin"):
            for case in self.cases:
                level = case.origin if name == "origin" else case.factors.get(name, "")
                groups.setdefault(name, {}).setdefault(level, []).append(case)
        return {name: dict(sorted(levels.items())) for name, levels in groups.items()}

    # -- what it costs -------------------------------------------------------------------------

    @property
    def bounds(self) -> tuple[float, ...]:
        """Accuracies that regret is asked at: none, and 10, 5, 2, 1 and 0 points below the whole network's."""
        return (0.0, *(max(0.0, self.full_accuracy - less) for less in (0.10, 0.05, 0.02, 0.01, 0.0)))

    def regrets(self) -> tuple[Regret, ...]:
        return regret(self.cases, self.bounds)

    def fronts(self) -> tuple[list[Case], list[Case]]:
        """Return the campaign's plans that no other beats, as predicted by the profile alone, and as measured."""
        predicted = [(case.before.mean_s, case.before.accuracy) for case in self.cases]
        measured = [(case.measured_s, case.accuracy) for case in self.cases]
        first, second = ([self.cases[i] for i in front_indices(*np.array(ends).T)] for ends in (predicted, measured))
        return first, second

    # -- all of it -----------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values, latencies in ms."""
        predicted, measured = self.fronts()
        names = {case.name for case in measured}
        return {
            "plans": len(self.cases),
            "planned": self.planned,
            "samples": sorted({len(c.measurement) for c in self.comparisons}),
            "stand_for": sorted({c.test_samples for c in self.comparisons}),
            "runs": sum(len(c.measurement) for c in self.comparisons),
            "runs_unlike_scores": sum(case.unlike_scores for case in self.cases),
            "latency": _ms(self.latency()),
            "exit_rate": asdict(self.exit_rate()) | {"inside": self.inside["exit_rate"]},
            "accuracy": asdict(self.accuracy()) | {"inside": self.inside["accuracy"]},
            "terms": {name: _ms(found) for name, found in self.terms().items()},
            "exit_rate_all_branches": asdict(self.exit_rate(all_=True)),
            "latency_before": _ms(self.latency(lambda case: case.before)),
            "latency_at_measured_exits": _ms(self.latency_at_measured_exits),
            "latency_undisturbed": _ms(self.undisturbed),
            "quantiles": {f"p{100 * q:g}": _ms(self.quantile(q)) for q in (0.5, 0.95)},
            "marginal": {
                "latency": _ms(self.latency(lambda case: case.marginal)),
                "exit_rate": asdict(self.exit_rate(lambda case: case.marginal)),
                "accuracy": asdict(self.accuracy(lambda case: case.marginal)),
            },
            "attribution": {
                "latency": {name: _part_ms(part) for name, part in self.latency_attribution().items()},
                **{
                    quantity: {name: asdict(part) for name, part in self.exit_attribution(quantity).items()}
                    for quantity in ("exit_rate", "accuracy")
                },
            },
            "targets": [
                asdict(verdict.target) | {"value": verdict.value, "met": verdict.met, "why": verdict.why}
                for verdict in self.verdicts()
            ],
            "speed_drift": self.speed_drift,
            "disturbed": self.disturbed,
            "each": [_each(case) for case in self.cases],
            "worst": [_worst(case) for case in self.worst()],
            "regret": [_regret(found) for found in self.regrets()],
            "front": {
                "predicted": [case.name for case in predicted],
                "measured": [case.name for case in measured],
                "both": sum(case.name in names for case in predicted),
            },
            "factors": {
                name: {
                    level: {
                        "n": len(cases),
                        "mean_error": float(np.mean([case.comparison.error for case in cases])),
                        "mape": float(np.mean([abs(case.comparison.error) for case in cases])),
                    }
                    for level, cases in levels.items()
                }
                for name, levels in self.by_factor().items()
            },
        }


def _ms(found: Fit) -> dict[str, Any]:
    """A fit of seconds as JSON values in ms."""
    values = asdict(found)
    return {
        (f"{key}_ms" if key in ("intercept", "rmse", "bias") else key): (
            1e3 * value if key in ("intercept", "rmse", "bias") and value is not None else value
        )
        for key, value in values.items()
    }


def _part_ms(part: Attribution) -> dict[str, Any]:
    return {"slope": part.slope, "share": part.share, "bias_ms": 1e3 * part.bias, "rms_ms": 1e3 * part.rms}


def _each(case: Case) -> dict[str, Any]:
    """One plan by each prediction and as measured; its rates are those of branches that the plan leaves open."""
    at, some = case.comparison, case.comparison.undecided()
    kinds = {"predicted": at.estimate, "before": case.before, "marginal": case.marginal}
    return {
        "name": case.name,
        "origin": case.origin,
        "latency_ms": {"measured": 1e3 * case.measured_s, "at_measured_exits": 1e3 * at.reweighted_mean_s}
        | {kind: 1e3 * found.mean_s for kind, found in kinds.items()},
        "standard_error_ms": None if at.standard_error_s is None else 1e3 * at.standard_error_s,
        "accuracy": {"measured": case.accuracy} | {kind: found.accuracy for kind, found in kinds.items()},
        "exit_rates": {"measured": at.measurement.exit_rates()[some].tolist()}
        | {kind: found.share[some].tolist() for kind, found in kinds.items()},
        "disturbed": bool(at.disturbed),
    }


def _worst(case: Case) -> dict[str, Any]:
    parts = case.comparison.contributions_s
    return {
        "name": case.name,
        "plan": case.comparison.plan.to_dict(),
        "origin": case.origin,
        "measured_ms": 1e3 * case.measured_s,
        "predicted_ms": 1e3 * case.comparison.estimate.mean_s,
        "error": case.comparison.error,
        "explained_by": max(parts, key=lambda name: abs(parts[name])),
        "contributions_ms": {name: 1e3 * seconds for name, seconds in parts.items()},
        "disturbed": case.comparison.disturbed,
    }


def _regret(found: Regret) -> dict[str, Any]:
    return {
        "min_accuracy": found.bound,
        "plans": found.plans,
        "chosen": found.chosen,
        "best": found.best,
        "chosen_ms": 1e3 * found.chosen_s,
        "best_ms": 1e3 * found.best_s,
        "regret_ms": 1e3 * found.regret_s,
        "regret": found.regret,
        "standard_error_ms": 1e3 * found.standard_error_s,
        "planned": found.planned,
        "planned_ms": None if found.planned_s is None else 1e3 * found.planned_s,
        "planned_accuracy": found.planned_accuracy,
    }
