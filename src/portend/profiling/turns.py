"""Several plans run in turns, and the partitions that they run timed again between the turns.

The speed of a machine drifts by some percent within seconds to minutes, more where it is shared.
Plans that run one after the other each meet another machine, and none meets the one that was
profiled. In turns they share its moods, and what is timed in between says what the machine was
like while they ran: the difference to the profile is speed drift, not an error of the model.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from portend.errors import InvalidValue
from portend.measurement import Measurement
from portend.plan import Plan
from portend.profile import Profile
from portend.runtime.coordinator import Deployment
from portend.runtime.watch import Disturbance
from portend.topology import Tier, Topology

__all__ = ["Turns", "burst_runs", "run_in_turns", "timed_pairs"]

Floats = NDArray[np.float64]

_LEAST_BURST = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Turns:
    """What running plans in turns gave.

    Attributes:
        topology: on which they ran.
        measurements: one per plan, over all its turns; by plan.
        bursts_s: by tier, float64 [R, B, N+1, N+1]: seconds of the partitions that the plans run there, each
            with the branch at its end, B times after idling, taken between the turns; NaN elsewhere.
    """

    topology: Topology
    measurements: Mapping[Plan, Measurement]
    bursts_s: tuple[Floats, ...]

    def then(self, planned: Profile) -> tuple[Profile, Topology]:
        """Return the tiers as fast as they were while the plans ran, each a device by its own name."""
        tiers = self.topology.tiers
        devices = {
            tier.name: planned.devices[tier.device].timed_again(bursts)
            for tier, bursts in zip(tiers, self.bursts_s, strict=True)
        }
        own = tuple(replace(tier, device=tier.name) for tier in tiers)
        return replace(planned, devices=devices), replace(self.topology, tiers=own)

    def speed_drift(self, planned: Profile) -> float:
        """How much slower the tiers were than in ``planned``: mean relative difference over the timed partitions."""
        then = self.then(planned)[0].devices
        ratios = []
        for tier, bursts in zip(self.topology.tiers, self.bursts_s, strict=True):
            at = np.isfinite(bursts).any(axis=(0, 1))
            ratios.append(then[tier.name].compute_s[at] / planned.devices[tier.device].compute_s[at])
        return float(np.mean(np.concatenate(ratios)) - 1)


def run_in_turns(
    deployment: Deployment,
    plans: Mapping[Plan, int],
    num_blocks: int,
    *,
    turns: int = 10,
    repeats: int = 3,
    gap_s: float = 0.05,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Turns:
    """Run each plan over the first so many of the loaded samples, a share of them in each turn.

    Args:
        plans: samples of each plan.
        turns: how often each plan has its turn; repeats: bursts of every partition, after each turn and
            before the first.
        gap_s: idle time before each sample and each burst. seed: of the order of the plans in a turn.
        on_progress: called with (answered, total) samples of all plans.
    """
    if min(turns, repeats, *plans.values()) < 1 or not plans:
        raise InvalidValue(
            f"turns, repeats and each plan's samples are at least 1, but got {turns}, {repeats} "
            f"and {list(plans.values())}"
        )
    shares = {plan: np.array_split(np.arange(count), min(turns, count)) for plan, count in plans.items()}
    parts: dict[Plan, list[Measurement]] = {plan: [] for plan in plans}
    rng = random.Random(seed)
    total, answered = sum(plans.values()), 0
    again = partial(_time_again, deployment, plans, num_blocks, repeats, gap_s, rng)
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
        bursts_s=tuple(np.concatenate(found) for found in zip(*times, strict=True)),
    )


def _under(measurement: Measurement, meanwhile: Disturbance | None) -> Measurement:
    """The measurement with what others did during all turns: a single one is too short to tell."""
    if meanwhile is None:
        return measurement
    kept = {key: value for key, value in measurement.provenance.items() if key != "disturbed"}
    return replace(measurement, provenance=kept | meanwhile.facts())


def _from(on_progress: Callable[[int, int], None], done: int, total: int) -> Callable[[int, int], None]:
    return lambda answered, _: on_progress(done + answered, total)


def _time_again(
    deployment: Deployment, plans: Iterable[Plan], num_blocks: int, repeats: int, gap_s: float, rng: random.Random
) -> list[Floats]:
    """Bursts of every partition on the tiers that run it, [repeats, burst, N+1, N+1] for each tier."""
    size, tiers = num_blocks + 1, deployment.topology.tiers
    tables = []
    for index, (tier, mine) in enumerate(zip(tiers, timed_pairs(plans, len(tiers)), strict=True)):
        burst = burst_runs(tier)
        table = np.full((repeats, burst, size, size), np.nan)
        if mine:
            order = [pair for _ in range(repeats) for pair in rng.sample(mine, len(mine))]
            jobs = [(start, end, True) for start, end in order]
            start, end = np.array(order).T
            table[np.repeat(np.arange(repeats), len(mine)), :, start, end] = deployment.time_partitions(
                index, jobs, burst=burst, gap_s=gap_s
            )
        tables.append(table)
    return tables


def timed_pairs(plans: Iterable[Plan], tiers: int) -> list[list[tuple[int, int]]]:
    """Return, for each tier, the partitions (start cut, end cut) that the plans run there, in order."""
    everything = list(plans)
    return [
        sorted({
            pair
            for plan in everything
            for pair, where in zip(plan.partitions, plan.placement, strict=True)
            if where == index
        })
        for index in range(tiers)
    ]  # fmt: skip


def burst_runs(tier: Tier) -> int:
    """Return how many runs a burst has: as many as the tier repeats its work, which emulates a slower device."""
    return max(math.ceil(tier.slowdown), _LEAST_BURST)
