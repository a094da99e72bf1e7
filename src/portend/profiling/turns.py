"""Several plans run in turns, and the partitions that they run timed again between the turns.

The speed of a machine drifts by some percent within seconds to minutes, more where it is shared.
Plans that run one after the other each meet another machine, and none meets the one that was
profiled. In turns they share its moods, and what is timed in between says what the machine was
like while they ran: the difference to the profile is speed drift, not an error of the model.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from portend.errors import InvalidValue
from portend.testbed.deployment import Deployment
from portend.testbed.watch import Disturbance
from portend.values.measurement import Measurement
from portend.values.plan import Plan
from portend.values.profile import Profile
from portend.values.topology import Tier, Topology

__all__ = ["TimedStep", "Turns", "burst_runs", "coding_tables", "run_in_turns", "timed_steps"]

Floats = NDArray[np.float64]

_LEAST_BURST = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Turns:
    """What running plans in turns gave.

    Attributes:
        topology: on which they ran.
        measurements: one per plan, over all its turns; by plan.
        bursts_s: by tier, float64 [2, R, B, N+1, N+1]: seconds of the partitions that the plans run there, each
            with the branch at its end, B times, following the one before it on this tier, and after idling, taken
            between the turns; NaN elsewhere.
        coding_s: by tier and codec, float64 [4, R, N+1]: seconds to decode what such a partition takes by message,
            before it, and to encode what it sends, after it, each once and again (``DeviceProfile.coded_again``).
        empty_s: float64 [R, M, M]: seconds from sending to receipt of a message without a tensor, from tier to tier,
            where the plans send any; NaN elsewhere.
    """

    topology: Topology
    measurements: Mapping[Plan, Measurement]
    bursts_s: tuple[Floats, ...]
    coding_s: tuple[Mapping[str, Floats], ...]
    empty_s: Floats

    def then(self, planned: Profile) -> tuple[Profile, Topology]:
        """Return the tiers as fast as they were while the plans ran, each a device by its own name."""
        tiers = self.topology.tiers
        devices = {
            tier.name: planned.devices[tier.device]
            .timed_again(bursts)
            .coded_again(coding)
            .dispatched_again(empty - self._links_s(planned.devices[tier.device].result.message_bytes)[:, number])
            for number, (tier, bursts, coding, empty) in enumerate(
                zip(tiers, self.bursts_s, self.coding_s, np.moveaxis(self.empty_s, -1, 0), strict=True)
            )
        }
        own = tuple(replace(tier, device=tier.name) for tier in tiers)
        return replace(planned, devices=devices), replace(self.topology, tiers=own)

    def _links_s(self, message_bytes: float) -> Floats:
        """Seconds that the links take for a message, [M, M]."""
        return self.topology.transmission_s(message_bytes) + self.topology.propagation_s()

    def speed_drift(self, planned: Profile) -> float:
        """How much slower the tiers were than in ``planned``: mean relative difference over the timed partitions."""
        then = self.then(planned)[0].devices
        ratios = []
        for tier, bursts in zip(self.topology.tiers, self.bursts_s, strict=True):
            at = np.isfinite(bursts).any(axis=(0, 1, 2))
            ratios.append(then[tier.name].compute_s[at] / planned.devices[tier.device].compute_s[at])
        return float(np.mean(np.concatenate(ratios)) - 1)


def run_in_turns(
    deployment: Deployment,
    plans: Mapping[Plan, int | Sequence[int]],
    num_blocks: int,
    *,
    turns: int = 10,
    repeats: int = 3,
    gap_s: float = 0.05,
    idle_s: Sequence[float] = (),
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Turns:
    """Run each plan over its samples, a share of them in each turn.

    Args:
        plans: of each plan, how many of the loaded samples from the first on, or their numbers in order.
        turns: how often each plan has its turn; repeats: bursts of every partition, after each turn and
            before the first.
        gap_s: idle time before each sample. idle_s: before each burst, by tier: as long as nobody computes before it
            does; empty: ``gap_s``. seed: of the order of the plans in a turn.
        on_progress: called with (answered, total) samples of all plans.
    """
    samples = {plan: np.arange(some) if isinstance(some, int) else np.asarray(some) for plan, some in plans.items()}
    counts = [some.size for some in samples.values()]
    if min(turns, repeats, *counts) < 1 or not plans:
        raise InvalidValue(
            f"turns, repeats and each plan's samples are at least 1, but got {turns}, {repeats} and {counts}"
        )
    shares = {plan: np.array_split(some, min(turns, some.size)) for plan, some in samples.items()}
    parts: dict[Plan, list[Measurement]] = {plan: [] for plan in plans}
    rng = random.Random(seed)
    total, answered = sum(counts), 0
    idle = idle_s or (gap_s,) * len(deployment.topology.tiers)
    again = partial(_time_again, deployment, plans, num_blocks, repeats, idle)
    before = deployment.count()
    times = [again()]
    for turn in range(turns):
        for plan in rng.sample(list(plans), len(plans)):
            if turn >= len(shares[plan]):
                continue
            told = None if on_progress is None else _from(on_progress, answered, total)
            chosen = shares[plan][turn]
            deployment.deploy(plan)
            parts[plan].append(
                deployment.run(chosen.tolist(), gap_s=gap_s, warmup=3 if turn == 0 else 1, on_progress=told)
            )
            answered += chosen.size
        times.append(again())
    meanwhile = Disturbance.between(before, deployment.count())
    return Turns(
        topology=deployment.topology,
        measurements={plan: _under(Measurement.joined(measured), meanwhile) for plan, measured in parts.items()},
        bursts_s=tuple(np.concatenate(found, axis=1) for found in zip(*(each[0] for each in times), strict=True)),
        coding_s=tuple(
            {name: np.concatenate([each[name] for each in found], axis=1) for name in found[0]}
            for found in zip(*(each[1] for each in times), strict=True)
        ),
        empty_s=np.concatenate([each[2] for each in times]),
    )


def _under(measurement: Measurement, meanwhile: Disturbance | None) -> Measurement:
    """The measurement with what others did during all turns: a single one is too short to tell."""
    if meanwhile is None:
        return measurement
    kept = {key: value for key, value in measurement.provenance.items() if key != "disturbed"}
    return replace(measurement, provenance=kept | meanwhile.facts())


def _from(on_progress: Callable[[int, int], None], done: int, total: int) -> Callable[[int, int], None]:
    return lambda answered, _: on_progress(done + answered, total)


class TimedStep(NamedTuple):
    """A partition as a tier runs it.

    Attributes:
        before: the cut where the partition begins that it follows on this tier; None: none, it is woken.
        start, end: its cuts. takes, gives: the codecs by which its input comes and its output goes, if by message.
        sender: the tier that its input comes from over links; None: from this one.
    """

    before: int | None
    start: int
    end: int
    takes: str | None = None
    gives: str | None = None
    sender: int | None = None


def _time_again(
    deployment: Deployment, plans: Collection[Plan], num_blocks: int, repeats: int, idle_s: Sequence[float]
) -> tuple[list[Floats], list[dict[str, Floats]], Floats]:
    """``Turns.bursts_s``, ``coding_s`` and ``empty_s`` of all that the plans run and send, ``repeats`` times.

    In the order of a sample's way, woken by messages as in a run: when a tier's turn comes, others have computed since,
    and what it needs is no longer in the caches.
    """
    size, topology = num_blocks + 1, deployment.topology
    tiers, mine, ways = topology.tiers, timed_steps(plans, topology), message_ways(plans, topology)
    tables = [np.full((2, repeats, burst_runs(tier), size, size), np.nan) for tier in tiers]
    coding: list[dict[str, Floats]] = [coding_tables(steps, repeats, size) for steps in mine]
    empty = np.full((repeats, len(tiers), len(tiers)), np.nan)
    deployment.arm(
        {
            tier: [(step.start, step.end, step.before, step.takes, step.gives) for step in steps]
            for tier, steps in enumerate(mine)
        },
        [burst_runs(tier) for tier in tiers],
    )
    jobs = [(tier, job, step) for tier, steps in enumerate(mine) for job, step in enumerate(steps)]
    jobs.sort(key=lambda at: (at[2].start, at[2].end))
    for repeat in range(repeats):
        for tier, job, step in jobs:
            seconds, codes = deployment.time_armed(
                tier, job, sender=step.sender, cut=step.start, codec=step.takes or "", gap_s=idle_s[tier]
            )
            tables[tier][int(step.before is None), repeat, :, step.start, step.end] = seconds
            if step.takes:
                coding[tier][step.takes][:2, repeat, step.start] = codes[:2]
            if step.gives:
                coding[tier][step.gives][2:, repeat, step.end] = codes[2:]
        for sender, receiver in ways:
            empty[repeat, sender, receiver] = deployment.time_empty(sender, receiver)
    return tables, coding, empty


def message_ways(plans: Iterable[Plan], topology: Topology) -> list[tuple[int, int]]:
    """Return (sender, receiver) of the messages that cross links under the plans: tensors, and the results."""
    ways = set()
    for plan in plans:
        at = (topology.source, *plan.placement)
        leaves = {tier for tier, threshold in zip(plan.placement, plan.thresholds, strict=False) if threshold}
        ways |= {*pairwise(at), *((tier, topology.destination) for tier in leaves | {plan.placement[-1]})}
    return sorted((sender, receiver) for sender, receiver in ways if sender != receiver)


def coding_tables(steps: Iterable[TimedStep], repeats: int, size: int) -> dict[str, Floats]:
    """Return ``Turns.coding_s`` of one tier before anything is known."""
    names = sorted({name for step in steps for name in (step.takes, step.gives) if name})
    return {name: np.full((4, repeats, size), np.nan) for name in names}


def timed_steps(plans: Iterable[Plan], topology: Topology) -> list[list[TimedStep]]:
    """Return, for each tier, the partitions that the plans run there, in order.

    Of several that a partition follows in different plans the longest is taken, of several codecs the first. Source and
    destination encode and decode even where they run none: then the first block tells how fast they are.
    """
    found: list[dict[tuple[bool, int, int], TimedStep]] = [{} for _ in topology.tiers]
    for plan in plans:
        codecs = plan.codecs or (None,) * len(plan)
        for step, (start, end) in enumerate(plan.partitions):
            where = plan.placement[step]
            follows = step > 0 and plan.placement[step - 1] == where
            before = plan.partitions[step - 1][0] if follows else None
            ahead = plan.placement[step - 1] if step else topology.source
            known = found[where].get((follows, start, end))
            if known is None:
                known = TimedStep(before, start, end, codecs[step], None, None if ahead == where else ahead)
            sends = step + 1 < len(plan) and plan.placement[step + 1] != where
            found[where][follows, start, end] = TimedStep(
                before if before is None or known.before is None else min(before, known.before), start, end,
                known.takes, known.gives or (codecs[step + 1] if sends else None), known.sender,
            )  # fmt: skip
    for end in (topology.source, topology.destination):
        if not found[end]:
            found[end][False, 0, 1] = TimedStep(None, 0, 1)
    return [[mine[key] for key in sorted(mine)] for mine in found]


def burst_runs(tier: Tier) -> int:
    """Return how many runs a burst has: as many as the tier repeats its work, which emulates a slower device."""
    return max(math.ceil(tier.slowdown), _LEAST_BURST)
