"""Exit drift: whether the exits of a running plan let go the shares of samples that the profile says.

Two forms. ``exit_drift`` judges one run, once. ``ExitWatch`` follows a running system and may be looked at after every
sample: however often that is done, it raises a false alarm at most once in so many watches as its level says.
Both count that the profile is finite, too. Samples count as independent of each other, given the data.

(The drift of a machine's speed is another matter: ``profiling/turns.py``, speed drift.)

Axes: C classes, L partitions of one plan (its exits).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from portend.errors import MismatchError, law
from portend.stats.strata import rate_interval
from portend.units import signed
from portend.values.plan import Plan

__all__ = ["ExitDrift", "ExitWatch", "exit_drift", "fisher_exact", "watch_exits"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_POWER = 0.8


def fisher_exact(of_first: int, first: int, of_second: int, second: int) -> float:
    """Return the p-value (0–1) of Fisher's exact test that two samples have the same rate: two-sided, by doubling.

    ``of_first`` of ``first`` samples against ``of_second`` of ``second``. Exact for any rate and any counts, also of
    none: where the rates are the same, it is at most α with a probability of at most α (Fisher 1935).
    """
    both, everyone = of_first + of_second, first + second
    least, most = max(0, both - second), min(first, both)
    k = np.arange(least, most)
    # P(k + 1) / P(k) of the hypergeometric distribution of the first sample's count, given that of both
    steps = np.log(both - k) + np.log(first - k) - np.log(k + 1.0) - np.log(everyone - both - first + k + 1.0)
    logs = np.concatenate(([0.0], np.cumsum(steps)))
    at = of_first - least
    whole = _log_sum(logs)
    tail = min(_log_sum(logs[: at + 1]), _log_sum(logs[at:])) - whole
    return min(1.0, 2 * math.exp(tail))


def _log_sum(logs: Floats) -> float:
    largest = float(logs.max())
    return largest + math.log(float(np.exp(logs - largest).sum()))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ExitDrift:
    """A run's exits held against the profile's; everything else is derived.

    Attributes:
        plan: what ran.
        profile_counts: float64 [C, L], profiling samples of each class that leave at each partition.
        run_counts: int64 [L], samples of the run that left there.
        level: probability within 0–1 that no drift is found where there is none.
    """

    plan: Plan
    profile_counts: Floats
    run_counts: Ints
    level: float = 0.99

    def __post_init__(self) -> None:
        _check(self.plan, self.profile_counts, self.run_counts, self.level)
        law(int(self.run_counts.sum()) > 0, "exit drift is judged on at least one sample, but the run has none")

    @property
    def samples(self) -> int:
        """Samples of the run."""
        return int(self.run_counts.sum())

    @property
    def profile_samples(self) -> int:
        return round(float(self.profile_counts.sum()))

    @property
    def predicted(self) -> Floats:
        """Share of the samples that leave at each partition by the profile, [L]."""
        return np.asarray(self.profile_counts.sum(axis=0) / self.profile_counts.sum())

    @property
    def measured(self) -> Floats:
        """Share of the run's samples that left at each partition, [L]."""
        return np.asarray(self.run_counts / self.samples)

    @property
    def p_values(self) -> Floats:
        """How probable a difference as large as each exit's is by chance alone, [L]; 1 where the plan leaves no choice.

        Fisher's exact test of each exit, with Holm's correction (1979) for their number. A profile drawn class by
        class varies less than the test assumes, so that it rather says too little than too much.
        """
        found = np.ones(len(self.plan))
        exits = _open(self.plan)
        for k in exits:
            left = round(float(self.profile_counts[:, k].sum()))
            found[k] = fisher_exact(int(self.run_counts[k]), self.samples, left, self.profile_samples)
        if len(exits) > 2:  # of two, one leaves what the other takes: it is one test
            order = sorted(exits, key=lambda k: found[k])
            scaled = np.maximum.accumulate([(len(order) - i) * found[k] for i, k in enumerate(order)])
            found[order] = np.minimum(scaled, 1.0)
        return found

    @property
    def drifted(self) -> NDArray[np.bool_]:
        """Exits whose rate differs beyond chance, [L]."""
        return np.asarray(self.p_values <= 1 - self.level)

    @property
    def found(self) -> bool:
        """Whether any exit's rate differs beyond chance."""
        return bool(self.drifted.any())

    @property
    def moved(self) -> float:
        """Share of the samples, 0–1, that leave at another exit than predicted: half the sum of all differences.

        By chance alone it is a little above 0.
        """
        return float(np.abs(self.measured - self.predicted).sum() / 2)

    def profile_interval(self, level: float = 0.95) -> Floats:
        """Ends [2, L] of the interval of each predicted share: what the profile, being finite, knows."""
        return np.stack(rate_interval(self.profile_counts, self.profile_counts.sum(axis=1), level))

    def difference_interval(self, level: float = 0.95) -> Floats:
        """Ends [2, L] of the interval of measured less predicted share (Newcombe 1998, method 10)."""
        low, high = self.profile_interval(level)
        run_low, run_high = rate_interval(self.run_counts[None], [self.samples], level)
        difference = self.measured - self.predicted
        down = np.hypot(self.measured - run_low, high - self.predicted)
        up = np.hypot(run_high - self.measured, self.predicted - low)
        return np.stack([difference - down, difference + up])

    @property
    def visible(self) -> Floats:
        """Difference of each share, [L], that a run and a profile of these sizes would show four times in five."""
        exits = _open(self.plan)
        tests = max(1, len(exits)) if len(exits) != 2 else 1
        normal = NormalDist()
        z = normal.inv_cdf(1 - (1 - self.level) / 2 / tests) + normal.inv_cdf(_POWER)
        rate = (self.profile_counts.sum(axis=0) + 0.5) / (self.profile_samples + 1)
        return np.asarray(z * np.sqrt(rate * (1 - rate) * (1 / self.samples + 1 / self.profile_samples)))

    def describe(self) -> list[str]:
        """Return what there is to say, one sentence a line: every exit that drifted, or that none did."""
        if not _open(self.plan):
            return ["the plan has one way out, so there is nothing that could drift"]
        if not self.found:
            visible = max(float(self.visible[k]) for k in _open(self.plan))
            return [
                f"no exit drift beyond chance: {self.samples:,} samples leave as {self.profile_samples:,} of the "
                f"profile do (least p = {_p(float(self.p_values.min()))}; a difference of {100 * visible:.1f} points "
                "would show four times in five)"
            ]
        lines = []
        for k in np.flatnonzero(self.drifted).tolist():
            ends = self.profile_interval()[:, k]
            low, high = 100 * self.difference_interval()[:, k]
            lines.append(
                f"{_exit(self.plan, k)} let {100 * self.measured[k]:.1f} % go, the profile says "
                f"{100 * self.predicted[k]:.1f} % ± {50 * (ends[1] - ends[0]):.1f}: more than chance "
                f"(p = {_p(float(self.p_values[k]))}); {signed(low, 1)} to {signed(high, 1)} points"
            )
        return [*lines, f"{100 * self.moved:.1f} % of the samples leave elsewhere than predicted"]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values; shares are fractions of 1."""
        return {
            "found": self.found,
            "level": self.level,
            "samples": self.samples,
            "profile_samples": self.profile_samples,
            "moved": self.moved,
            "exits": [
                {
                    "cut": self.plan.cuts[k],
                    "predicted": float(self.predicted[k]),
                    "predicted_interval": self.profile_interval()[:, k].tolist(),
                    "measured": float(self.measured[k]),
                    "difference_interval": self.difference_interval()[:, k].tolist(),
                    "p_value": float(self.p_values[k]),
                    "drifted": bool(self.drifted[k]),
                }
                for k in range(len(self.plan))
            ],
            "text": self.describe(),
        }


def exit_drift(plan: Plan, profile_counts: ArrayLike, run_counts: ArrayLike, level: float = 0.99) -> ExitDrift:
    """Return how a run's exits [L] differ from a profile's, [C, L] (``perfmodel.exits.exit_counts``).

    Raises:
        InvalidValue: the counts do not fit the plan, or the run is empty.
        MismatchError: samples left at an exit that the plan does not use.
    """
    return ExitDrift(
        plan=plan,
        profile_counts=np.asarray(profile_counts, dtype=np.float64),
        run_counts=np.asarray(run_counts, dtype=np.int64),
        level=level,
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ExitWatch:
    """Exits of a running plan, followed from its first sample on: a value; ``seen`` gives the next one.

    The evidence against an exit's predicted rate p is an e-value: the likelihood of what was seen, averaged over all
    rates with Jeffreys' prior, over its likelihood at p. As long as p is true it is a martingale, so that it ever
    reaches 1/a with a probability of at most a (Ville 1939; Robbins 1970; for exits' counts Lindon & Malek 2022). As
    the profile is finite, p is the most likely rate within its interval. Half of what the level leaves is spent on
    these intervals, half on the e-values; both are divided among the exits.

    Attributes:
        plan: what runs.
        profile_counts: float64 [C, L], as in ExitDrift.
        run_counts: int64 [L], samples so far.
        evidence: float64 [L], natural logarithm of the largest e-value so far, at least 0.
        level: probability within 0–1 that no alarm is ever raised where there is no drift.
    """

    plan: Plan
    profile_counts: Floats
    run_counts: Ints
    evidence: Floats
    level: float = 0.99

    def __post_init__(self) -> None:
        _check(self.plan, self.profile_counts, self.run_counts, self.level)

    @property
    def samples(self) -> int:
        """Samples so far."""
        return int(self.run_counts.sum())

    @property
    def _watched(self) -> list[int]:
        exits = _open(self.plan)
        return exits[:1] if len(exits) == 2 else exits  # of two, one leaves what the other takes

    def seen(self, counts: ArrayLike) -> ExitWatch:
        """Return the watch after so many more samples [L] that left at each partition: one, or many at once.

        Raises:
            InvalidValue, MismatchError: the counts do not fit the plan.
        """
        more = np.asarray(counts, dtype=np.int64)
        _check(self.plan, self.profile_counts, more, self.level)
        total = self.run_counts + more
        evidence, samples = self.evidence.copy(), int(total.sum())
        watched = self._watched
        if not (watched and samples):
            return replace(self, run_counts=total)
        ends = rate_interval(
            self.profile_counts[:, watched],
            self.profile_counts.sum(axis=1),
            1 - (1 - self.level) / 2 / len(watched),
        )
        for k, low, high in zip(watched, *ends, strict=True):
            evidence[k] = max(evidence[k], _log_e_value(int(total[k]), samples, float(low), float(high)))
        return replace(self, run_counts=total, evidence=evidence)

    @property
    def drifted(self) -> NDArray[np.bool_]:
        """Exits for which there has been evidence enough, [L]; once raised, an alarm stays."""
        watched = self._watched
        flags = np.zeros(len(self.plan), dtype=np.bool_)
        if watched:
            flags[watched] = self.evidence[watched] >= math.log(2 * len(watched) / (1 - self.level))
        return flags

    @property
    def alarm(self) -> bool:
        """Whether any exit has drifted."""
        return bool(self.drifted.any())

    def restarted(self) -> ExitWatch:
        """Return the watch before its first sample.

        What was seen long ago outweighs what changed just now, so a system that runs for long is watched anew every
        so often; each watch has the level for itself.
        """
        return watch_exits(self.plan, self.profile_counts, self.level)

    def describe(self) -> str:
        """Return in one sentence what has been seen."""
        if not self.alarm:
            return f"no exit drift so far, in {self.samples:,} samples"
        rates = self.profile_counts.sum(axis=0) / self.profile_counts.sum()
        parts = [
            f"{_exit(self.plan, k)} has let {100 * self.run_counts[k] / self.samples:.1f} % of {self.samples:,} "
            f"samples go, the profile says {100 * rates[k]:.1f} %"
            for k in np.flatnonzero(self.drifted).tolist()
        ]
        return f"exit drift: {'; '.join(parts)} (of watches without drift, {100 * (1 - self.level):g} % ever say so)"


def watch_exits(plan: Plan, profile_counts: ArrayLike, level: float = 0.99) -> ExitWatch:
    """Return a watch before its first sample; see ``exit_drift`` for the arguments."""
    counts = np.asarray(profile_counts, dtype=np.float64)
    nothing = np.zeros(len(plan))
    return ExitWatch(
        plan=plan, profile_counts=counts, run_counts=nothing.astype(np.int64), evidence=nothing, level=level
    )


def _log_e_value(left: int, samples: int, low: float, high: float) -> float:
    """ln of the e-value that ``left`` of so many samples give against every rate from low to high."""
    nearest = min(max(left / samples, low), high)
    stay = samples - left
    if (left and nearest <= 0) or (stay and nearest >= 1):
        return math.inf
    mixed = math.lgamma(left + 0.5) + math.lgamma(stay + 0.5) - math.lgamma(samples + 1) - math.log(math.pi)
    null = (left * math.log(nearest) if left else 0.0) + (stay * math.log1p(-nearest) if stay else 0.0)
    return mixed - null


def _open(plan: Plan) -> list[int]:
    """The exits whose rate the plan leaves open: those that are asked, and the last, if any is asked."""
    asked = [k for k, threshold in enumerate(plan.thresholds) if threshold > 0]
    return [*asked, len(plan) - 1] if asked else []


def _check(plan: Plan, profile_counts: Floats, run_counts: Ints, level: float) -> None:
    law(0 < level < 1, f"the level of a drift check lies between 0 and 1, but got {level}")
    law(
        run_counts.shape == (len(plan),) and profile_counts.ndim == 2 and profile_counts.shape[1] == len(plan),
        f"a plan of {len(plan)} partitions has as many counts of samples that left, but got {run_counts.shape} of the "
        f"run and {profile_counts.shape} of the profile",
    )
    law(
        bool((run_counts >= 0).all() and (profile_counts >= 0).all() and profile_counts.sum() > 0),
        "counts of samples are not negative, and the profile's not all 0",
    )
    closed = [k for k in range(len(plan) - 1) if plan.thresholds[k] <= 0 and run_counts[k]]
    if closed:
        raise MismatchError(
            f"nobody leaves at an exit with threshold 0, but {run_counts[closed[0]]} samples of the run left at "
            f"{_exit(plan, closed[0])}; check that these are counts of this plan: {plan.describe()}"
        )


def _exit(plan: Plan, k: int) -> str:
    return "the last exit" if k == len(plan) - 1 else f"exit {k + 1} (after block {plan.cuts[k]})"


def _p(value: float) -> str:
    return f"{value:.2g}".replace("-", "−") if value >= 1e-300 else "0"
