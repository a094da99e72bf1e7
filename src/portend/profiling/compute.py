"""Seconds of every partition, busy and after idling; all of them measured, or some and the others predicted.

Axes: R repeats, B runs of a burst, N+1 cuts, P partitions.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from portend.errors import InvalidValue
from portend.profiling.bench import Bench, Job
from portend.profiling.prediction import measuring_order
from portend.values.backbone import BackboneSpec

__all__ = ["Busy", "ComputeProfiling", "describe_spread", "expected_s", "measure_branches", "measure_compute"]

Floats = NDArray[np.float64]
Pairs = NDArray[np.int64]

_GROUP: Final = 256
_GROUP_BYTES: Final = 1 << 30
_LONG: Final = 1.5
_DRIFT: Final = 0.10
_FOR_IDLE: Final = 1 / 3


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeProfiling:
    """How partitions are timed.

    Attributes:
        repeats: of every busy partition; None: 30, or 20 where there are more than 256.
        idle_repeats: after a pause of ``gap_s``, each a burst of ``idle_burst`` runs, over which caches warm up, and
            twice as many more, which are busy.
        max_idle: partitions timed after a pause; where there are more, a spread subset is measured and the rest
            follow from a line (``DeviceProfile.woken_s``).
        gap_s: pause before each idle repeat; that of the traffic to predict.
        budget: share of the partitions to measure, at most 1; the others are predicted. At least 2 N + 10 are
            measured, or all there are.
        budget_s: if given, measure as many as take about so many seconds instead.
        seed: of the order, which interleaves partitions so that a disturbance hits all alike.
    """

    repeats: int | None = None
    idle_repeats: int = 5
    idle_burst: int = 4
    max_idle: int = 66
    gap_s: float = 0.05
    budget: float = 1.0
    budget_s: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("repeats", "idle_repeats", "idle_burst", "max_idle"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidValue(f"{name} is at least 1, but got {value}")
        if not 0 < self.budget <= 1:
            raise InvalidValue(f"a budget is a share of the partitions above 0 and at most 1, but got {self.budget}")
        if self.budget_s is not None and not 0 < self.budget_s < float("inf"):
            raise InvalidValue(f"a budget of time is above 0 s, but got {self.budget_s} s")

    def repeats_of(self, partitions: int) -> int:
        """How often each of so many partitions is timed busy."""
        return self.repeats or (30 if partitions <= _GROUP else 20)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Busy:
    """Measured seconds: busy [R, N+1, N+1], after idling and following another one [R, B, N+1, N+1].

    Also which of the partitions were drawn at random, [P, 2]; None: all were measured.
    """

    repeats_s: Floats
    idle_s: Floats
    following_s: Floats
    drawn: Pairs | None


def measure_compute(bench: Bench, spec: BackboneSpec, config: ComputeProfiling) -> Busy:
    """Time the partitions that the budget allows, each with its branch, and predict the others.

    A shared machine's speed drifts, so busy times are taken before and after the bursts that follow
    idling, and at the end of each burst, when the caches are warm: spread over the whole profile. What a
    partition costs that follows another one is measured with the block before it in that place.
    """
    pairs, drawn = _chosen(bench, spec, config)
    sparse = _sparse(bench, pairs, config)
    size, half = spec.num_blocks + 1, -(-config.repeats_of(len(pairs)) // 2)
    burst = 3 * config.idle_burst

    def timed(
        what: str, some: Pairs, repeats: int, burst: int, gap_s: float, seed: int, *, follows: bool = False
    ) -> Floats:
        table = np.full((repeats, burst, size, size), np.nan)
        for group in _groups(spec, some, seed):
            order = _rounds(group, repeats, seed)
            start, end, _ = np.array(order).T
            ahead = [(job[0] - 1, job[0]) for job in order] if follows else ()
            seconds = bench.time_partitions(what, order, before=ahead, burst=burst, gap_s=gap_s)
            table[np.repeat(np.arange(repeats), len(group)), :, start, end] = seconds
        return table

    before = timed("compute, busy", pairs, half, 1, 0.0, config.seed)
    woken = timed("compute, after idling", sparse, config.idle_repeats, burst, config.gap_s, config.seed + 1)
    later = sparse[sparse[:, 0] > 0]
    following = timed(
        "compute, following", later, config.idle_repeats, burst, config.gap_s, config.seed + 3, follows=True
    )
    after = timed("compute, busy again", pairs, half, 1, 0.0, config.seed + 2)
    warm = [table[:, config.idle_burst :].reshape(-1, size, size) for table in (woken, following)]
    repeats = np.concatenate([before[:, 0], *warm, after[:, 0]])
    return Busy(
        repeats_s=repeats,
        idle_s=woken[:, : config.idle_burst],
        following_s=following[:, : config.idle_burst],
        drawn=drawn,
    )


def expected_s(bench: Bench, spec: BackboneSpec, config: ComputeProfiling) -> float:
    """Seconds that ``measure_compute`` and ``measure_branches`` will take, about."""
    pairs, _ = _chosen(bench, spec, config)
    busy, sparse = _jobs(pairs), _jobs(_sparse(bench, pairs, config))
    busy_s = config.repeats_of(len(pairs)) * (bench.time_s(busy) + bench.time_s(_branch_jobs(spec)))
    burst = 3 * config.idle_burst
    ahead = [(start - 1, start, True) for start, _, _ in sparse if start]
    later = [job for job in sparse if job[0]]
    idle_s = bench.time_s([*sparse, *later], burst, config.gap_s) + bench.time_s(ahead, burst)
    return busy_s + config.idle_repeats * idle_s


def measure_branches(bench: Bench, spec: BackboneSpec, repeats: int) -> Floats:
    """Seconds [R, N+1] that the exit branch adds at each cut, 0 where there is none.

    One block with it less the same without.
    """
    exits = spec.exit_cuts
    seconds = bench.time_partitions("exit branches", _branch_jobs(spec) * repeats)[:, 0]
    pairs = seconds.reshape(repeats, len(exits), 2)
    added = np.zeros((repeats, spec.num_blocks + 1))
    added[:, 0] = np.nan
    added[:, exits] = np.maximum(pairs[..., 0] - pairs[..., 1], 0.0)
    return added


def describe_spread(repeats_s: Floats, references_s: Floats) -> tuple[dict[str, str], str]:
    """Return facts on how repeats [R, N+1, N+1] spread, and a warning where the speed drifted, else empty.

    ``references_s``: the whole network, timed again and again in between.
    """
    known = np.isfinite(repeats_s).any(axis=0)
    repeats = repeats_s[:, known]
    median = np.nanmedian(repeats, axis=0)
    low, high = np.nanquantile(repeats, [0.25, 0.75], axis=0)
    ratio = repeats / median
    outliers, count = int(np.nansum(ratio > _LONG)), int(np.isfinite(repeats).sum())
    facts = {
        "spread": f"half of a partition's repeats lie within {100 * float(np.median((high - low) / median)):.1f} % of "
        "its median",
        "outliers": f"{outliers} of {count} repeats took more than {_LONG:g} times the median, the longest "
        f"{float(np.nanmax(ratio)):.1f} times; none was dropped",
    }
    if references_s.size < 2:
        return facts, ""
    low_ref, middle, high_ref = np.quantile(references_s, [0.1, 0.5, 0.9]).tolist()
    drift = (high_ref - low_ref) / middle
    facts["whole network"] = (
        f"{1e3 * middle:.2f} ms, {1e3 * low_ref:.2f} to {1e3 * high_ref:.2f} ms in eight tenths of "
        f"{references_s.size} times"
    )
    return facts, f"the machine's speed changed by {100 * drift:.0f} %" if drift > _DRIFT else ""


def _chosen(bench: Bench, spec: BackboneSpec, config: ComputeProfiling) -> tuple[Pairs, Pairs | None]:
    """The partitions to measure, in order, and those of them that were drawn; None: all are measured."""
    count = spec.num_blocks
    everything = np.argwhere(np.triu(np.ones((count + 1, count + 1), dtype=bool), k=1))
    least = 2 * count + 10
    if config.budget_s is None:
        most = round(config.budget * len(everything))
    else:
        kept = bench.journal.recall("partitions")
        most = int(kept[0]) if kept else _affordable(bench, spec, everything, config)
        if not kept:
            bench.journal.add("partitions", [most])
    most = max(most, least)
    if most >= len(everything):
        return everything, None
    order = measuring_order(spec, most=most, seed=config.seed)
    return order[np.lexsort(order.T[::-1])], order[1::2]


def _affordable(bench: Bench, spec: BackboneSpec, everything: Pairs, config: ComputeProfiling) -> int:
    """How many partitions, in the order of what they tell, take the seconds that idling leaves."""
    assert config.budget_s is not None
    seconds = (1 - _FOR_IDLE) * config.budget_s
    repeats = config.repeats_of(0)
    each = repeats * bench.time_s(_jobs(everything)) / len(everything)
    order = measuring_order(spec, most=min(len(everything), 2 * int(seconds / each) + 1), seed=config.seed)
    spent = np.cumsum([repeats * bench.time_s([job]) for job in _jobs(order)])
    return int(np.searchsorted(spent, seconds))


def _sparse(bench: Bench, pairs: Pairs, config: ComputeProfiling) -> Pairs:
    """Those of the partitions that are timed after idling."""
    most = config.max_idle
    if config.budget_s is not None:
        each = 2 * config.idle_repeats * bench.time_s(_jobs(pairs), 3 * config.idle_burst, config.gap_s) / len(pairs)
        kept = bench.journal.recall("partitions after idling")
        most = int(kept[0]) if kept else max(3, min(most, int(_FOR_IDLE * config.budget_s / each)))
        if not kept:
            bench.journal.add("partitions after idling", [most])
    return pairs[:: -(-len(pairs) // most)]


def _groups(spec: BackboneSpec, pairs: Pairs, seed: int) -> list[Pairs]:
    """The partitions in random groups that fit into memory together: each is loaded, timed, and forgotten."""
    mixed = np.random.default_rng(seed).permutation(pairs)
    weights = np.concatenate(([0.0], np.cumsum(spec.block_bytes or (0.0,) * spec.num_blocks)))
    filled = np.cumsum(np.maximum(weights[mixed[:, 1]] - weights[mixed[:, 0]], _GROUP_BYTES / _GROUP)) // _GROUP_BYTES
    return [mixed[filled == number] for number in np.unique(filled)]


def _jobs(pairs: Pairs) -> list[Job]:
    return [(int(start), int(end), True) for start, end in pairs]


def _branch_jobs(spec: BackboneSpec) -> list[Job]:
    return [(end - 1, end, branch) for end in spec.exit_cuts for branch in (True, False)]


def _rounds(pairs: Pairs, repeats: int, seed: int) -> list[Job]:
    """Each partition once a round, in a new random order each round."""
    rng = random.Random(seed)
    jobs = _jobs(pairs)
    return [job for _ in range(repeats) for job in rng.sample(jobs, len(jobs))]
