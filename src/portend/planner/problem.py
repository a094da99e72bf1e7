"""What is asked: an objective, constraints, and hints that restrict the space of plans."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import NormalDist
from typing import Any, Final, Literal, get_args

import numpy as np

from portend.errors import choice, law
from portend.perfmodel.estimate import Estimate
from portend.perfmodel.model import PerformanceModel
from portend.planner.limits import Ended
from portend.planner.metrics import ACCURACY_SLACK, LATENCY_SLACK, Batch, Constraint, Metric, accuracy, latency
from portend.units import signed
from portend.values.plan import Plan

__all__ = [
    "ACCURACY_SLACK",
    "DEFAULT_THRESHOLDS",
    "LATENCY_SLACK",
    "Constraint",
    "FrontPoint",
    "Metric",
    "Problem",
    "SearchSpace",
    "SearchStats",
    "Solution",
    "Status",
    "TierOrder",
    "accuracy",
    "affordable",
    "choose",
    "latency",
]

TierOrder = Literal["any", "increasing"]

Status = Literal["optimal", "feasible", "infeasible", "unknown"]
_ENDED: Final = {"time": "the time limit", "memory": "the memory limit", "interrupt": "Ctrl-C"}

DEFAULT_THRESHOLDS: Final = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Ten thresholds; 0 means no early exit. 1 would send everyone out at the first exit, which is a shorter plan."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSpace:
    """Hints that restrict the plans. By default a tier holds up to two partitions, each with its exit.

    Attributes:
        thresholds: exit thresholds to try; per_exit_thresholds: one for each exit, instead of the
            paper's single global one.
        cuts: cuts at which a partition may end (None: all); exits: branches that may be used as
            early exits (None: all, (): none).
        tiers: tiers that may be used; block_tiers: tiers for single blocks, counted from 1, so
            ``{1: (0,)}`` keeps raw input on tier 0.
        min_partitions, max_partitions: number of partitions (None: as many as fit).
        exits_per_tier: partitions that one tier may hold, next to each other.
        tier_order: ``any``, or ``increasing`` as in the paper's experiments.
        truncation: whether the last blocks may be left out.
        codecs: codecs that hops may use (None: every profiled one).
    """

    thresholds: tuple[float, ...] = DEFAULT_THRESHOLDS
    per_exit_thresholds: bool = False
    cuts: tuple[int, ...] | None = None
    exits: tuple[int, ...] | None = None
    tiers: tuple[int, ...] | None = None
    block_tiers: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    min_partitions: int = 1
    max_partitions: int | None = None
    exits_per_tier: int = 2
    tier_order: TierOrder = "any"
    truncation: bool = True
    codecs: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        law(
            len(self.thresholds) >= 1 and all(0 <= t <= 1 for t in self.thresholds),
            f"thresholds lie within 0–1 and there is at least one, but got {self.thresholds}",
        )
        law(
            len(set(self.thresholds)) == len(self.thresholds),
            f"thresholds differ from each other, but got {self.thresholds}",
        )
        law(
            self.min_partitions >= 1, f"a plan has at least one partition, but got min_partitions {self.min_partitions}"
        )
        law(
            self.max_partitions is None or self.max_partitions >= self.min_partitions,
            f"max_partitions is at least min_partitions, but got {self.max_partitions} < {self.min_partitions}",
        )
        law(self.exits_per_tier >= 1, f"a tier holds at least one partition, but got {self.exits_per_tier}")
        choice("tier_order", self.tier_order, get_args(TierOrder))


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Minimize or maximize a metric under bounds on others.

    ``Problem(minimize=latency, subject_to=(accuracy >= 0.88,))`` is the paper's P_lat,
    ``Problem(maximize=accuracy, subject_to=(latency <= 0.060,))`` its P_acc. Several objectives,
    ``minimize=(latency, energy)``, ask for the front; the first one chooses the plan, minimized ones first.
    With ``robust``, a confidence such as 0.95, a lower bound on accuracy shall hold for new samples
    (``promised``), not only for those of the profile.
    """

    minimize: Metric | tuple[Metric, ...] | None = None
    maximize: Metric | tuple[Metric, ...] | None = None
    subject_to: tuple[Constraint, ...] = ()
    space: SearchSpace = field(default_factory=SearchSpace)
    robust: float | None = None

    def __post_init__(self) -> None:
        law(
            self.robust is None or 0.5 <= self.robust < 1,
            f"robust is a confidence of at least 0.5 and below 1, but got {self.robust}",
        )
        object.__setattr__(self, "subject_to", tuple(self.subject_to))
        for side in ("minimize", "maximize"):
            goals = _tuple(getattr(self, side))
            law(all(isinstance(m, Metric) for m in goals), f"{side} takes metrics, but got {getattr(self, side)!r}")
            object.__setattr__(self, side, (goals[0] if len(goals) == 1 else goals) if goals else None)
        law(
            bool(self.objectives),
            "a problem minimizes latency or maximizes accuracy, or has another metric as its objective, but got none",
        )
        goals = tuple(goal for goal, _ in self.objectives)
        law(len(set(goals)) == len(goals), f"objectives differ, but got {', '.join(m.name for m in goals)}")
        law(
            len({m.name for m in self.metrics}) == len(self.metrics),
            f"different metrics have different names, but got {', '.join(m.name for m in self.metrics)}",
        )
        for constraint in self.subject_to:
            law(not math.isnan(constraint.bound), f"a bound is a number, but got {constraint}")
            if constraint.metric == accuracy:
                law(
                    0 <= constraint.bound <= 1 or constraint.bound == math.inf,
                    f"accuracy is a share within 0–1, but got {constraint}; write 0.9 for 90 %",
                )

    @property
    def objectives(self) -> tuple[tuple[Metric, int], ...]:
        """The metrics to be optimized, with 1 where they are minimized and -1 where they are maximized."""
        return (*((m, 1) for m in _tuple(self.minimize)), *((m, -1) for m in _tuple(self.maximize)))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Every metric that occurs, objectives first."""
        every = (*(m for m, _ in self.objectives), *(c.metric for c in self.subject_to))
        return tuple(dict.fromkeys(every))

    def promised(self, samples: int) -> Problem:
        """Return what to ask of so many profiling samples, for one fixed plan's promise to be ``robust`` on new ones.

        It is too little for the best of many plans: ``search`` tests those on samples apart (``planner/promise.py``),
        where there are samples. An accuracy of at least ε holds with a confidence (of z standard deviations) where
        the share of right answers in S samples is at least ε + z √(ε (1 - ε) / S), the score test (Wilson); +inf where
        even no wrong answer at all would not do.
        """
        if self.robust is None:
            return self
        z = NormalDist().inv_cdf(self.robust)
        bounds = []
        for constraint in self.subject_to:
            if constraint.metric == accuracy and constraint.sense == ">=":
                e = constraint.bound
                needed = e + z * math.sqrt(e * (1 - e) / samples)
                constraint = replace(constraint, bound=needed if needed <= 1 else math.inf)
            bounds.append(constraint)
        return replace(self, subject_to=tuple(bounds), robust=None)

    @property
    def cost(self) -> Metric | None:
        """The additive metric that is weighed against accuracy, if nothing else is asked; latency where none is named.

        Least cost, most accuracy, or the front of the two, with bounds on the same two: such a problem has an answer
        on the front of cost and accuracy, which the exact searches find. None: it goes to ``solve_exhaustive``.
        """
        costs = [m for m in self.metrics if m != accuracy] or [latency]
        senses = {(m, "<=" if sense > 0 else ">=") for m, sense in self.objectives}
        senses |= {(c.metric, c.sense) for c in self.subject_to}
        if costs[0].additive is None or not senses <= {(costs[0], "<="), (accuracy, ">=")}:
            return None
        return costs[0]

    def judge(self, plan: Plan, model: PerformanceModel) -> tuple[dict[str, float], bool]:
        """Return the values of a plan's metrics by name, and whether they meet the constraints."""
        batch = Batch.of(plan, model)
        values = {m.name: float(m.of(batch)[0]) for m in self.metrics}
        bounds = self.promised(model.samples).subject_to
        met = all(not c.missed_by(np.asarray(values[c.metric.name])).any() for c in bounds)
        return values, met

    @property
    def min_accuracy(self) -> float:
        """Tightest accuracy bound, -inf if none."""
        return max((c.bound for c in self.subject_to if c.metric == accuracy), default=-math.inf)

    @property
    def max_latency_s(self) -> float:
        """Tightest latency bound in seconds, +inf if none."""
        return min((c.bound for c in self.subject_to if c.metric == latency), default=math.inf)

    @property
    def max_cost(self) -> float:
        """Tightest bound on the ``cost`` in its unit, +inf if none."""
        return min((c.bound for c in self.subject_to if c.metric == self.cost), default=math.inf)

    def __str__(self) -> str:
        goal = " and ".join(f"{'minimize' if sense > 0 else 'maximize'} {m.name}" for m, sense in self.objectives)
        bounds = " subject to " + ", ".join(map(str, self.subject_to)) if self.subject_to else ""
        return goal + bounds + (f" with {100 * self.robust:g} % confidence" if self.robust and bounds else "")


def _tuple(goals: Metric | Sequence[Metric] | None) -> tuple[Metric, ...]:
    return () if goals is None else (goals,) if isinstance(goals, Metric) else tuple(goals)


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontPoint:
    """A plan that no other beats in both cost (mean latency in s) and accuracy, or in all objectives of a problem.

    ``values``: by name those of the objectives, and of the cost where it is not latency (``Problem.cost``); empty
    where latency or accuracy is the only objective and no other metric is asked. The plan has codecs where the cost is
    not latency, for it may be others that cost least.
    """

    latency_s: float
    accuracy: float
    plan: Plan
    values: Mapping[str, float] = field(default_factory=dict)

    def cost(self, metric: Metric) -> float:
        """The value of an additive metric."""
        return self.latency_s if metric == latency else self.values[metric.name]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchStats:
    """How the search went: plans covered, seconds, solver, and the limit that ended it, if one did."""

    plans: int
    seconds: float
    solver: str
    ended: Ended = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alternative:
    """A plan that was not chosen: what it is, and how much slower (s) and less accurate it is than the choice.

    ``dearer``: by how much it is worse in the goal (``Why.goal``), in its unit; ``slower_s`` where that is latency.
    """

    name: str
    plan: Plan
    slower_s: float
    less_accurate: float
    dearer: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Why:
    """Why a plan is the answer.

    Attributes:
        metric: the problem's cost, or else its first objective if that is additive, or else latency.
        goal: what alternatives are worse in: the problem's cost, or else its first objective.
        steps: the mean of ``metric`` per sample for each hop, partition and result, by name and part (for latency in
            s, by ``PARTS``); they add up to the plan's mean.
        binding: constraints without which a better plan would be the answer.
        alternatives: the nearest plans that were not chosen.
        advice: a warning where the plan hardly beats a simpler one, or by less than compute times are sure; else empty.
        caution: which of its compute times were not measured but predicted, and how well; which devices were
            disturbed while they were profiled; else empty.
        codecs: for each hop, its codec, what that may cost in accuracy, and which codec was too lossy for it.
    """

    metric: Metric
    goal: Metric
    steps: tuple[tuple[str, Mapping[str, float]], ...]
    binding: tuple[Constraint, ...]
    alternatives: tuple[Alternative, ...]
    advice: str = ""
    caution: str = ""
    codecs: tuple[str, ...] = ()

    def describe(self, tier_names: Sequence[str] | None = None) -> list[str]:
        """Return lines for a reader: the waterfall, codecs, what binds, the alternatives, the advice, the caution."""
        plain = self.metric == latency
        lines = [f"  Where the {'time' if plain else self.metric.name} goes, per sample:"]
        for name, parts in self.steps:
            detail = ", ".join(f"{part} {1e3 * s:.2f}" for part, s in parts.items()) if len(parts) > 1 else ""
            total = math.fsum(parts.values())
            shown = f"{1e3 * total:8.2f} ms" if plain else f"{self.metric.format(total):>12}"
            lines.append(f"    {shown}  {name}{f' ({detail})' if detail else ''}")
        lines += ["  Codecs:"] * bool(self.codecs) + [f"    {line}" for line in self.codecs]
        if self.binding:
            lines.append(f"  What limits it: {', '.join(map(str, self.binding))}")
        if self.alternatives:
            lines.append("  Other plans, compared with this one:")
        for other in self.alternatives:
            sign = "+" if other.dearer >= 0 else "−"
            worse = f"{sign + self.goal.format(abs(other.dearer)):>12} {self.goal.name}  "
            dearer = "" if self.goal == latency else worse
            lines.append(
                f"    {dearer}{signed(1e3 * other.slower_s, 2):>8} ms  "
                f"{signed(-100 * other.less_accurate, 2):>6} points  {other.name}: "
                f"{other.plan.describe(tier_names)}"
            )
        return [*lines, *(f"  {warning}" for warning in (self.advice, self.caution) if warning)]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: latencies in ms, another cost in the unit of its metric."""
        plain = self.metric == latency
        return {
            "metric": self.metric.name,
            "goal": self.goal.name,
            "steps": [
                {
                    "name": name,
                    "ms" if plain else "value": {part: (1e3 if plain else 1.0) * x for part, x in parts.items()},
                }
                for name, parts in self.steps
            ],
            "binding": [str(constraint) for constraint in self.binding],
            "alternatives": [
                {
                    "name": other.name,
                    "plan": other.plan.to_dict(),
                    "slower_ms": 1e3 * other.slower_s,
                    "less_accurate": other.less_accurate,
                }
                | ({} if self.goal == latency else {"dearer": other.dearer})
                for other in self.alternatives
            ],
            "advice": self.advice,
            "caution": self.caution,
            "codecs": list(self.codecs),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class NewSamples:
    """What accuracy a chosen plan has on new samples, judged by samples that did not choose it (``planner.promise``).

    Attributes:
        accuracy: 0–1, the estimate; interval: of the true accuracy, two-sided; at_least: its lower bound, one-sided.
        confidence: of both; optimism: by how much the samples that chose the plan flatter it.
    """

    accuracy: float
    interval: tuple[float, float]
    at_least: float
    optimism: float
    confidence: float = 0.95

    def __str__(self) -> str:
        low, high = (100 * end for end in self.interval)
        return (
            f"at least {100 * self.at_least:.2f} % right on new samples ({100 * self.confidence:g} %): "
            f"{100 * self.accuracy:.2f} % expected, {low:.2f} to {high:.2f} %"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "at_least": self.at_least,
            "optimism": self.optimism,
            "confidence": self.confidence,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Solution:
    """The answer to a problem.

    Attributes:
        status: ``optimal`` (proven over every plan of the space), ``feasible`` (it meets the constraints, but a better
            plan is not ruled out), ``infeasible`` (proven: no plan meets them), or ``unknown`` (none was found that
            meets them, and that there is one is not ruled out).
        estimate: the best plan's estimate; when infeasible, that of the plan that comes nearest; when unknown, that of
            the nearest that was found.
        front: Pareto front of the cost (``Problem.cost``) and accuracy over the whole space, by cost. Where there are
            several objectives, or no cost: of the objectives, over the plans that meet the constraints, by the first.
        baselines: restricted spaces solved under the same constraints, by name.
        values: the plan's metrics by name, where others than latency and accuracy occur.
        bound: no plan beats it in the (first) objective, in its unit; None if not known. gap: how far the plan is from
            the bound, as a share of the plan's value; 0 if proven, None if not known.
        front_complete: whether the front, where there is one, is the whole one; a limit may have ended it.
        why: what the plan's cost is made of, what binds it, and what it was preferred to.
        new_samples: what accuracy the plan has on new samples, the choice accounted for; None where it was not asked
            for, or would have taken long (``solve``).
        remedy: where no plan keeps a promise, why, and what to do.
        tiers: names of the topology's tiers, for ``describe``.
    """

    problem: Problem
    status: Status
    estimate: Estimate
    front: tuple[FrontPoint, ...]
    stats: SearchStats
    baselines: Mapping[str, Solution] = field(default_factory=dict)
    bound: float | None = None
    gap: float | None = None
    front_complete: bool = True
    values: Mapping[str, float] = field(default_factory=dict)
    why: Why | None = None
    new_samples: NewSamples | None = None
    remedy: str = ""
    tiers: tuple[str, ...] = ()

    @property
    def plan(self) -> Plan:
        return self.estimate.plan

    @property
    def met(self) -> bool:
        """Whether the plan meets the constraints."""
        return self.status in ("optimal", "feasible")

    @property
    def cost(self) -> float:
        """The plan's value of the problem's cost, in its unit; NaN where the problem has none."""
        metric = self.problem.cost
        if metric is None:
            return math.nan
        return self.estimate.mean_s if metric == latency else self.values[metric.name]

    @property
    def metrics(self) -> dict[str, float]:
        """The plan's values of the metrics that occur in the problem, in their units."""
        known = {latency.name: self.estimate.mean_s, accuracy.name: self.estimate.accuracy, **self.values}
        return {m.name: known[m.name] for m in self.problem.metrics}

    def to_dict(self) -> dict[str, Any]:
        """Return the solution as JSON values."""
        return {
            "status": self.status,
            "problem": str(self.problem),
            "plan": self.plan.to_dict(),
            "estimate": self.estimate.to_dict()
            | ({"accuracy_interval": list(self.new_samples.interval)} if self.new_samples else {}),
            "metrics": self.metrics,
            "bound": self.bound,
            "gap": self.gap,
            "front_complete": self.front_complete,
            "new_samples": self.new_samples.to_dict() if self.new_samples else None,
            "remedy": self.remedy,
            "why": self.why.to_dict() if self.why else None,
            "baselines": {
                name: {
                    "status": s.status,
                    "plan": s.plan.to_dict(),
                    "estimate": s.estimate.to_dict(),
                    "metrics": s.metrics,
                }
                | ({"new_samples": s.new_samples.to_dict()} if s.new_samples else {})
                for name, s in self.baselines.items()
            },
            "front": [
                {"latency_ms": 1e3 * point.latency_s, "accuracy": point.accuracy, "plan": point.plan.to_dict()}
                | ({"metrics": dict(point.values)} if point.values else {})
                for point in self.front
            ],
            "stats": asdict(self.stats),
        }

    def __str__(self) -> str:
        return self.describe()

    def _better(self, other: Solution) -> bool:
        """Whether another feasible plan beats this one, which only a plan outside the space can."""
        goal, sense = self.problem.objectives[0]
        mine, its = sense * self.metrics[goal.name], sense * other.metrics[goal.name]
        return its < mine - 1e-9 * (1.0 if goal == accuracy else abs(mine))

    def _others(self) -> str:
        """The values of metrics that the table has no column for."""
        named = ((m, self.metrics[m.name]) for m in self.problem.metrics if m not in (latency, accuracy))
        return "".join(f"{m.name} {m.format(value)}  " for m, value in named)

    def _outcome(self) -> str:
        """The answer in one sentence."""
        is_so = (
            f"{1e3 * self.estimate.mean_s:.2f} ms a sample on average, {100 * self.estimate.accuracy:.2f} % accurate"
        )
        if self.status == "optimal":
            return f"The best of {self.stats.plans:,} plans: {is_so}."
        if self.met:
            return f"A plan that meets the constraints: {is_so}; a better one is not ruled out."
        why = "No plan meets the constraints" if self.status == "infeasible" else "No plan was found in time"
        return f"{why}; the one that comes nearest: {is_so}."

    def describe(self, tier_names: Sequence[str] | None = None) -> str:
        """Return the answer as a small table: the plan, what it is measured against, and how it was found."""
        tier_names = tier_names or self.tiers or None
        lines = [self._outcome(), f"{self.problem}: {self.status}"]
        if not self.met:
            lines[1] += "; the nearest plan is"
        if self.status == "unknown":
            lines[1] += " (none was found that meets the constraints; that there is one is not ruled out)"
        promise = "constraint" if self.problem.robust is None else "promise"
        rows = {"plan": self, **self.baselines}
        width = max(map(len, rows))
        lines.append(f"  {'':<{width}}   latency  accuracy   tier [its blocks] → next tier")
        for name, solution in rows.items():
            estimate = solution.estimate
            note = "" if solution.met else f"  (misses the {promise})"
            if solution.status == self.status == "optimal" and self._better(solution):
                note = "  (better, but outside the hints: allow it, such as more exits per tier)"
            lines.append(
                f"  {name:<{width}}  {1e3 * estimate.mean_s:8.2f} ms  {100 * estimate.accuracy:6.2f} %  "
                f"{solution._others()}{solution.plan.describe(tier_names)}{note}"
            )
        lines += [f"  {text}" for text in (self.new_samples and str(self.new_samples), self.remedy) if text]
        if self.why is not None:
            lines += self.why.describe(tier_names)
        proof = ""
        if self.status == "feasible":
            proof = ", no bound is known" if self.gap is None else f", at most {100 * self.gap:.2g} % from the best"
        ended = f"; ended by {_ENDED[self.stats.ended]}" if self.stats.ended else ""
        lines.append(
            f"  {self.stats.plans:,} plans in {1e3 * self.stats.seconds:.1f} ms ({self.stats.solver}{proof}{ended})"
        )
        return "\n".join(lines)


def choose(problem: Problem, front: Sequence[FrontPoint]) -> tuple[FrontPoint, bool]:
    """Return the point of a front that answers the problem, and whether it meets the constraints.

    The front of cost and accuracy, by cost, holds an optimum of every problem in the two. Where no point meets the
    constraints the nearest is returned: accuracy is given up last.
    """
    enough = problem.min_accuracy - ACCURACY_SLACK
    accurate = [point for point in front if point.accuracy >= enough]
    if not accurate:
        return front[-1], False
    feasible = affordable(problem, accurate)
    if not feasible:
        return accurate[0], False
    return (feasible[0] if problem.minimize else feasible[-1]), True


def affordable(problem: Problem, front: Sequence[FrontPoint]) -> list[FrontPoint]:
    """Return the points of a front of cost and accuracy that meet the problem's bound on the cost."""
    cost, bound = problem.cost, problem.max_cost
    assert cost is not None
    most = bound + cost.slack(bound)
    return [point for point in front if point.cost(cost) <= most]
