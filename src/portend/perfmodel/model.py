"""The performance model: a profile on a topology, asked about plans.

Axes: C plans, L partitions, P latency parts.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from portend.errors import MismatchError, choice, law
from portend.perfmodel.estimate import PARTS, Estimate, EstimateBatch
from portend.perfmodel.exits import marginal_outcomes, outcomes_by_class, sample_outcomes
from portend.perfmodel.latency import LatencyTables
from portend.values.exits import SampleExits
from portend.values.plan import Plan, PlanBatch
from portend.values.profile import Profile
from portend.values.topology import Topology

__all__ = ["CODEC_TOLERANCE", "Estimator", "PerformanceModel"]

CODEC_TOLERANCE: Final = 0.002
"""Accuracy that a codec may cost at a cut, as a share: 0.2 points."""

Estimator = Literal["sample", "marginal"]


class PerformanceModel:
    """Predicts accuracy and latency of any plan, term by term.

    Args:
        estimator: ``sample`` replays plans on per-sample scores (default where they exist),
            ``marginal`` uses only exit rates and accuracies, as the paper does.
        codec_tolerance: a codec is offered at a cut where the most that an exit after it loses is no more than this
            share of accuracy. Estimates of accuracy do not contain the losses.

    Raises:
        InvalidValue: the tolerance is negative.
        MismatchError: a tier names a device that the profile lacks, or the sample estimator is
            asked for where there are only tables.
    """

    def __init__(
        self,
        profile: Profile,
        topology: Topology,
        *,
        estimator: Estimator | None = None,
        codec_tolerance: float = CODEC_TOLERANCE,
    ) -> None:
        law(codec_tolerance >= 0, f"the accuracy that a codec may cost is at least 0, but got {codec_tolerance}")
        if estimator is not None:
            choice("an estimator", estimator, get_args(Estimator))
        has_samples = isinstance(profile.exits, SampleExits)
        if estimator == "sample" and not has_samples:
            raise MismatchError(
                "the sample estimator needs per-sample scores, but this profile has only exit tables; "
                "use estimator='marginal', or profile the exits again"
            )
        self.profile = profile
        self.topology = topology
        self.estimator: Estimator = estimator if estimator is not None else ("sample" if has_samples else "marginal")
        self.codec_tolerance = codec_tolerance
        self.tables = LatencyTables(profile, topology, codec_tolerance)

    def with_topology(self, topology: Topology) -> PerformanceModel:
        """Return the model of the same profile on another topology: at once where only links differ, else made anew."""
        tables = self.tables.with_links(topology)
        if tables is None:
            return PerformanceModel(
                self.profile, topology, estimator=self.estimator, codec_tolerance=self.codec_tolerance
            )
        other = copy.copy(self)
        other.topology, other.tables = topology, tables
        return other

    @property
    def samples(self) -> int:
        """Profiling samples behind the exit shares."""
        return self.profile.exits.samples

    def outcomes(
        self, cuts: NDArray[np.intp], thresholds: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Shares [C, L] that leave at each partition, and that leave there and are right."""
        exits = self.profile.exits
        if self.estimator == "sample" and isinstance(exits, SampleExits):
            return sample_outcomes(exits, cuts, thresholds)
        return marginal_outcomes(exits, cuts, thresholds)

    def check(self, plan: Plan) -> None:
        """Raise MismatchError unless the plan's cuts, exit branches, tiers and codecs exist here."""
        blocks, tiers = self.profile.num_blocks, len(self.topology.tiers)
        if plan.cuts[-1] > blocks:
            raise MismatchError(f"{self.profile.backbone.name} has the cuts 1–{blocks}, but the plan has {plan.cuts}")
        exits = self.profile.backbone.exit_cuts
        asked = [cut for cut, threshold in zip(plan.cuts, (*plan.thresholds, 1.0), strict=True) if threshold > 0]
        missing = [cut for cut in asked if cut not in exits]
        if missing:
            raise MismatchError(
                f"{self.profile.backbone.name} has exit branches at the cuts {', '.join(map(str, exits))}, but the "
                f"plan asks one at {missing}; end with one of them, and set the threshold at other cuts to 0"
            )
        if max(plan.placement) >= tiers:
            names = ", ".join(tier.name for tier in self.topology.tiers)
            raise MismatchError(
                f"the plan places on {max(plan.placement) + 1} tiers, but the topology has {tiers}: {names}; "
                "plan for this topology"
            )
        unknown = {codec for codec in plan.codecs if codec is not None} - set(self.tables.codecs)
        if unknown:
            raise MismatchError(
                f"the profile has the codecs {list(self.tables.codecs)}, but the plan uses {sorted(unknown)}"
            )
        if plan.asks and plan.codecs and plan.criterion != self.profile.exits.criterion:
            raise MismatchError(
                f"the profile is viewed by {self.profile.exits.criterion}, but the plan's thresholds are for "
                f"{plan.criterion}; make the model of profile.by({plan.criterion!r}), or plan with this one"
            )

    def complete(self, plan: Plan, codecs: tuple[str, ...] | None = None) -> Plan:
        """Return the plan with the cheapest admitted codec on each hop and the profile's criterion."""
        plan = replace(plan, codecs=(), criterion=self.profile.exits.criterion)
        self.check(plan)
        _, best = self.tables.hop_s(codecs)
        senders = (self.topology.source, *plan.placement[:-1])
        chosen = [
            int(best[start, sender, tier])
            for (start, _), sender, tier in zip(plan.partitions, senders, plan.placement, strict=True)
        ]
        return replace(plan, codecs=tuple(self.tables.codecs[k] if k >= 0 else None for k in chosen))

    def estimate(self, plan: Plan) -> Estimate:
        """Return the estimate of one plan; codecs are chosen where the plan leaves them open."""
        complete = plan if plan.codecs else self.complete(plan)
        self.check(complete)
        index = {name: k for k, name in enumerate(self.tables.codecs)}
        batch = PlanBatch(
            cuts=np.array([complete.cuts], dtype=np.intp),
            placement=np.array([complete.placement], dtype=np.intp),
            thresholds=np.array([complete.thresholds], dtype=np.float64).reshape(1, len(complete) - 1),
            codecs=np.array([[-1 if codec is None else index[codec] for codec in complete.codecs]], dtype=np.intp),
        )
        result = self.estimate_batch(batch)
        if not np.all(np.isfinite(result.step_parts_s)):
            raise MismatchError(
                f"a hop of the plan uses a codec that is not offered at its cut: cuts {complete.cuts}, "
                f"codecs {complete.codecs}, or loses more accuracy there than {100 * self.codec_tolerance:g} points; "
                "leave the codecs out to have them chosen"
            )
        estimate = Estimate(
            plan=complete,
            estimator=self.estimator,
            share=result.share[0],
            correct=result.correct[0],
            step_parts_s=result.step_parts_s[0],
            result_parts_s=result.result_parts_s[0],
            samples=self.samples,
            class_counts=self._class_counts(complete),
        )
        return replace(estimate, time_sd_s=self.time_sd_s(estimate))

    def time_sd_s(self, estimate: Estimate, other: Estimate | None = None) -> float:
        """Standard deviation, s, of the mean latency (less that of another plan) that uncertain compute times leave."""
        runs = [(reach, *run) for reach, run in _runs(estimate)]
        runs += [] if other is None else [(-reach, *run) for reach, run in _runs(other)]
        return self.tables.compute_sd_s(runs)

    def _class_counts(self, plan: Plan) -> NDArray[np.float64] | None:
        exits = self.profile.exits
        if self.estimator == "marginal" or not isinstance(exits, SampleExits) or exits.labels is None:
            return None
        return outcomes_by_class(exits, plan)

    def estimate_batch(self, plans: PlanBatch) -> EstimateBatch:
        """Return the estimates of C plans at once.

        ℓ_k = hop(source → t_1, cut 0) + Σ_{a<=k} compute(t_a, c_{a-1}:c_a) + Σ_{a<k} hop(t_a → t_{a+1}, cut c_a)
        + result hop(t_k → destination); the first hop is missing from the paper's sums, yet cloud-only needs it.
        """
        start = np.concatenate([np.zeros_like(plans.cuts[:, :1]), plans.cuts[:, :-1]], axis=1)
        sender = np.concatenate(
            [np.full_like(plans.placement[:, :1], self.topology.source), plans.placement[:, :-1]], axis=1
        )
        sends = (plans.codecs >= 0)[..., None]
        hop = self.tables.hop_parts_s[np.maximum(plans.codecs, 0), start, sender, plans.placement]
        step = np.where(sends, hop, 0.0)
        needs = sender != plans.placement
        needs[:, 0] |= self.topology.ingest == "message"
        step[(plans.codecs < 0) & needs, PARTS.index("encode")] = np.inf
        used = np.concatenate([plans.thresholds > 0, np.ones((len(plans), 1), dtype=np.bool_)], axis=1)
        woken = np.concatenate(
            [np.ones((len(plans), 1), dtype=np.bool_), sender[:, 1:] != plans.placement[:, 1:]], axis=1
        )
        compute = self.tables.compute_s[woken.astype(np.intp), used.astype(np.intp), plans.placement, start, plans.cuts]
        step[..., PARTS.index("compute")] = compute
        share, correct = self.outcomes(plans.cuts, plans.thresholds)
        return EstimateBatch(
            share=share,
            correct=correct,
            step_parts_s=step,
            result_parts_s=self.tables.result_parts_s[plans.placement],
        )


def _runs(estimate: Estimate) -> list[tuple[float, tuple[int, int, int, bool, bool]]]:
    """Of each partition, the share of samples that reach it, and (tier, start, end, woken, with the branch)."""
    plan = estimate.plan
    reach = 1.0 - np.concatenate(([0.0], np.cumsum(estimate.share)[:-1]))
    ahead = (None, *plan.placement[:-1])
    return [
        (float(share), (tier, start, end, tier != before, threshold > 0))
        for share, (start, end), tier, before, threshold in zip(
            reach, plan.partitions, plan.placement, ahead, (*plan.thresholds, 1.0), strict=True
        )
    ]
