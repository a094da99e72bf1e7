"""Seeded random profiles, topologies and plans that several test modules share.

``exact=True`` draws times, sizes, rates and shares as multiples of powers of two, so that every
sum and product of the model is exact in float64, whatever its order: ties are then real ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from portend.perfmodel.model import Estimator, PerformanceModel
from portend.planner.problem import Metric, Problem, SearchSpace, accuracy
from portend.values.backbone import BackboneSpec
from portend.values.codecs import CodecLoss, CodecProfile, ResultProfile
from portend.values.device_profile import DeviceProfile
from portend.values.exits import SampleExits, TabulatedExits
from portend.values.plan import Plan
from portend.values.profile import Profile
from portend.values.topology import Link, SlowStart, Tier, Topology

Floats = NDArray[np.float64]
THRESHOLDS = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)


def draws(count: int, fast: int) -> list[Any]:
    """Return 0 ... count − 1 as parameters of a test; all but the first ``fast`` are run with the slow tests only."""
    return [pytest.param(each, marks=() if each < fast else pytest.mark.slow) for each in range(count)]


@dataclass(frozen=True)
class Case:
    """One network on one chain of tiers."""

    profile: Profile
    topology: Topology
    estimator: Estimator

    def model(self) -> PerformanceModel:
        return PerformanceModel(self.profile, self.topology, estimator=self.estimator)


def backbone(blocks: int) -> BackboneSpec:
    return BackboneSpec(
        name="chain",
        block_names=tuple(f"block{i}" for i in range(1, blocks + 1)),
        num_classes=10,
        cut_shapes=tuple((3, 8, 8) for _ in range(blocks + 1)),
    )


def upper(values: Any) -> Floats:
    """Keep start < end, NaN elsewhere (a compute table)."""
    array = np.array(values, dtype=np.float64)
    start, end = np.indices(array.shape[-2:])
    array[..., start >= end] = np.nan
    return array


def result_profile(seconds: Any = (0.0,), message_bytes: float = 64.0) -> ResultProfile:
    return ResultProfile(
        message_bytes=message_bytes,
        encode_repeats_s=np.array(seconds, dtype=np.float64),
        decode_repeats_s=2 * np.array(seconds, dtype=np.float64),
        decode_busy_repeats_s=1.5 * np.array(seconds, dtype=np.float64),
        dispatch_repeats_s=4 * np.array(seconds, dtype=np.float64),
    )


def device(
    name: str,
    compute: Any,
    *,
    idle: Any = None,
    branch: Any = None,
    codecs: dict[str, CodecProfile],
    result: ResultProfile | None = None,
) -> DeviceProfile:
    """A device from given times: one repeat of everything."""
    table = upper(compute)
    size = table.shape[0]
    return DeviceProfile(
        device=name,
        compute_repeats_s=table[None],
        idle_repeats_s=np.empty((0, 1, size, size)) if idle is None else upper(idle)[None, None],
        branch_repeats_s=np.zeros((1, size)) if branch is None else np.array([branch], dtype=np.float64),
        codecs=codecs,
        result=result or result_profile(),
    )


def codec(sizes: Any, encode: Any = 0.0, decode: Any = 0.0, dispatch: Any = 0.0) -> CodecProfile:
    """A codec from medians: one repeat, scalars spread over the cuts; warm encoding takes 80 %, decoding 60 %."""
    size = np.array(sizes, dtype=np.float64)
    rows = [np.where(np.isnan(size), np.nan, np.broadcast_to(x, size.shape))[None] for x in (encode, decode, dispatch)]
    return CodecProfile(
        message_bytes=size,
        encode_repeats_s=rows[0],
        encode_busy_repeats_s=0.8 * rows[0],
        decode_repeats_s=rows[1],
        decode_busy_repeats_s=0.6 * rows[1],
        dispatch_repeats_s=rows[2],
    )


def _seconds(rng: np.random.Generator, shape: tuple[int, ...], exact: bool, scale: float = 1.0) -> Floats:
    if exact:  # few values, so that equal latencies are common
        return np.asarray(rng.integers(0, 5, shape) * 2.0**-10)
    return np.asarray(scale * rng.lognormal(-6.0, 0.8, shape))


def random_exits(
    rng: np.random.Generator, blocks: int, samples: int, *, tables: bool = False
) -> SampleExits | TabulatedExits:
    """Exits with tied and NaN scores, and rates that need not grow with depth."""
    hardness = rng.random((samples, 1))
    confident = np.linspace(0.2, 0.9, blocks) if rng.random() < 0.6 else rng.random(blocks)
    score = np.clip(hardness + rng.normal(0, 0.25, (samples, blocks)) - 0.5 * confident + 0.2, 0.0, 1.0)
    score = np.round(score * 8) / 8 if rng.random() < 0.5 else score
    score[rng.random(score.shape) < 0.03] = np.nan
    score = score.astype(np.float32) if samples % 2 else score
    correct = rng.random((samples, blocks)) < 0.3 + 0.6 * np.sort(rng.random(blocks))
    if not tables:
        return SampleExits(scores={"entropy": score}, correct=correct)
    theta = np.array(THRESHOLDS)
    exited = np.stack([(score < t).sum(axis=0) for t in theta])
    return TabulatedExits(thresholds=theta, exited=exited, correct=correct.sum(axis=0), samples=samples)


def codec_loss(drops: Any, samples: int = 1000) -> CodecLoss:
    """A loss of so many answers of the next branch at the cuts 0 … N−1; NaN: not known."""
    lost = np.full((len(drops) + 1, len(drops)), np.nan)
    np.fill_diagonal(lost, drops)
    return CodecLoss(lost=lost, gained=np.where(np.isnan(lost), np.nan, 0.0), samples=samples)


def random_loss(rng: np.random.Generator, blocks: int) -> CodecLoss:
    """Answers that int8 loses and gains at each cut, around the default tolerance; some are not known."""
    cut, branch = np.indices((blocks + 1, blocks))
    after = (branch >= cut) & (rng.random((blocks + 1, 1)) < 0.9)
    lost, gained = (np.where(after, rng.integers(0, 3, after.shape), np.nan) for _ in range(2))
    return CodecLoss(lost=lost, gained=gained, samples=500)


def random_device(
    rng: np.random.Generator, name: str, blocks: int, *, exact: bool, idle: Literal["none", "some", "all"]
) -> DeviceProfile:
    size, repeats = blocks + 1, int(rng.choice([1, 4 if exact else 3]))
    start, end = np.indices((size, size))
    per_block = np.concatenate(([0.0], np.cumsum(_seconds(rng, (blocks,), exact))))
    speed = float(rng.choice([0.5, 1.0, 2.0])) if exact else rng.uniform(0.2, 3.0)
    compute = upper(speed * (per_block[end] - per_block[start]) + _seconds(rng, (repeats, size, size), exact, 0.3))
    woken = upper(np.asarray(compute[:1]) + _seconds(rng, (1, size, size), exact, 0.5) - 2.0**-10)
    if idle == "none":
        woken = woken[:0]
    elif idle == "some":
        woken[:, rng.random((size, size)) < 0.5] = np.nan
        woken[0, 0, size - 1] = float(compute[0, 0, size - 1]) + 0.001
    branch = _seconds(rng, (repeats, size), exact, 0.5)
    # Given, not measured: of noisy repeats planning would use an estimate (tests/test_compute_fit.py).
    compute, branch = compute.mean(axis=0, keepdims=True), branch.mean(axis=0, keepdims=True)

    def one(offered: NDArray[np.bool_], largest: int) -> CodecProfile:
        def times() -> Floats:
            return np.where(offered, _seconds(rng, (repeats, size), exact, 0.2), np.nan)

        return CodecProfile(
            message_bytes=np.where(offered, rng.integers(1, largest, size).astype(np.float64), np.nan),
            encode_repeats_s=times(),
            encode_busy_repeats_s=times(),
            decode_repeats_s=times(),
            decode_busy_repeats_s=times(),
            dispatch_repeats_s=times(),
        )

    everywhere = np.ones(size, dtype=np.bool_)
    codecs = {"float32": one(everywhere, 20_000), "encoded": one(np.arange(size) == 0, 6_000)}
    if rng.random() < 0.7:
        codecs["int8"] = one(rng.random(size) < 0.8, 5_000)
    return DeviceProfile(
        device=name,
        compute_repeats_s=compute,
        idle_repeats_s=np.stack([woken, (woken + compute[:1][: len(woken)]) / 2], axis=1),
        following_repeats_s=np.stack([(woken + compute[:1][: len(woken)]) / 2] * 2, axis=1) if exact else None,
        branch_repeats_s=branch,
        codecs=codecs,
        result=ResultProfile(
            message_bytes=float(rng.integers(1, 3_000)),
            encode_repeats_s=_seconds(rng, (repeats,), exact, 0.1),
            decode_repeats_s=_seconds(rng, (repeats,), exact, 0.1),
            decode_busy_repeats_s=_seconds(rng, (repeats,), exact, 0.1),
            dispatch_repeats_s=_seconds(rng, (repeats,), exact, 0.1),
        ),
    )


def random_topology(rng: np.random.Generator, tiers: int, devices: list[str], *, exact: bool) -> Topology:
    def link() -> Link:
        header = int(rng.choice([0, 40, 52]))
        if exact:
            return Link(
                bandwidth_bps=2.0 ** int(rng.integers(20, 28)),
                propagation_delay_s=float(rng.integers(0, 12)) * 2.0**-10,
                mtu_bytes=1500,
                header_bytes=header,
            )
        return Link(
            bandwidth_bps=float(10 ** rng.uniform(5.5, 9)),
            propagation_delay_s=float(rng.uniform(0, 0.05)),
            mtu_bytes=int(rng.integers(300, 9000)),
            header_bytes=header,
        )

    slow = (1.0, 1.0, 0.5, 2.0, 1.5) if exact else (1.0, 1.3, 0.7, 4.1)
    return Topology(
        name="random",
        tiers=tuple(
            Tier(name=f"tier{i}", device=str(rng.choice(devices)), slowdown=float(rng.choice(slow)))
            for i in range(tiers)
        ),
        links=tuple(link() for _ in range(tiers - 1)),
        source=int(rng.integers(tiers)),
        destination=int(rng.integers(tiers)),
        ingest="message" if rng.random() < 0.4 else "in_process",
    )


def random_case(
    seed: int,
    *,
    exact: bool = False,
    blocks: int | None = None,
    tiers: int | None = None,
    estimator: Estimator | None = None,
) -> Case:
    """A case drawn from ``seed``: 2–12 blocks, 1–4 tiers, 20–300 samples (a power of two if exact)."""
    rng = np.random.default_rng([seed, 2026])
    blocks = blocks or int(rng.integers(2, 13))
    tiers = tiers or int(rng.integers(1, 5))
    tables = estimator != "sample" and rng.random() < 0.3
    samples = int(rng.choice([32, 64, 128])) if exact else int(rng.integers(20, 301))
    names = [f"device{i}" for i in range(int(rng.integers(1, 4)))]
    idle: Literal["none", "some", "all"] = "all" if rng.random() < 0.6 else ("none" if exact else "some")
    if exact and idle == "all" and rng.random() < 0.3:
        idle = "none"
    profile = Profile(
        backbone=backbone(blocks),
        exits=random_exits(rng, blocks, samples, tables=tables),
        devices={name: random_device(rng, name, blocks, exact=exact, idle=idle) for name in names},
        losses={"int8": random_loss(np.random.default_rng([seed, 500]), blocks)},
    )
    chosen: Estimator = estimator or ("marginal" if tables or rng.random() < 0.4 else "sample")
    topology = random_topology(rng, tiers, names, exact=exact)
    if seed % 3 == 0:  # connections that begin every message anew
        topology = replace(topology, slow_start=SlowStart(initial_window=1 + seed % 5, receive_window_bytes=4000))
    return Case(profile, topology, chosen)


def without_branches(case: Case, exits: tuple[int, ...]) -> Case:
    """The same case whose other cuts have no branch."""
    table = case.profile.exits
    assert isinstance(table, SampleExits)
    absent = [cut - 1 for cut in range(1, case.profile.num_blocks + 1) if cut not in exits]
    score, correct = np.array(table.score), np.array(table.correct)
    score[:, absent], correct[:, absent] = np.nan, False
    profile = replace(
        case.profile,
        backbone=replace(case.profile.backbone, exits=exits),
        exits=replace(table, scores={"entropy": score}, correct=correct),
    )
    return replace(case, profile=profile)


def some_exits(rng: np.random.Generator, blocks: int) -> tuple[int, ...]:
    return (*(cut for cut in range(1, blocks) if rng.random() < 0.5), blocks)


def random_space(rng: np.random.Generator, blocks: int, tiers: int) -> SearchSpace:
    """Any mixture of hints: every field is drawn, and has its default or what binds nothing about as often as not."""

    def maybe(value: Any, default: Any = None) -> Any:
        return value if rng.random() < 0.4 else default

    def some(low: int, high: int) -> tuple[int, ...]:
        values = np.arange(low, high + 1)
        chosen = rng.choice(values, int(rng.integers(1, values.size + 1)), replace=False)
        return tuple(int(v) for v in chosen)  # in any order

    per_exit = rng.random() < 0.4
    thetas = (0.0, 0.25, 0.5, 0.75, 1.0)  # at 1 all leave but those whose score is 1 or none
    count = int(rng.integers(1, 3 if per_exit else 5))
    exits, least = maybe(some(1, blocks)), int(rng.choice([1, 1, 1, 2, 3]))
    return SearchSpace(
        thresholds=tuple(float(t) for t in rng.choice(thetas, count, replace=False)),
        per_exit_thresholds=per_exit,
        cuts=maybe((*some(1, blocks), blocks) if rng.random() < 0.5 else some(1, blocks)),
        exits=() if exits and rng.random() < 0.3 else exits,
        tiers=maybe(some(0, tiers - 1)),
        block_tiers={b: some(0, tiers - 1) for b in maybe(some(1, blocks), ())},
        min_partitions=least,
        max_partitions=maybe(least + int(rng.integers(0, 3))),
        exits_per_tier=int(rng.choice([1, 2, 2, 3, 4])),
        tier_order=maybe("increasing", "any"),
        truncation=bool(rng.random() < 0.5),
        codecs=maybe([("float32",), ("float32", "encoded"), ("encoded",)][int(rng.integers(3))]),
    )


def random_problem(
    rng: np.random.Generator, space: SearchSpace, cost: Metric, costs: Sequence[float], accuracies: Sequence[float]
) -> Problem:
    """A problem in a cost and accuracy whose bounds lie at, between and beyond the values of some plans."""

    def about(values: Sequence[float], low: float, high: float) -> float:
        one, other = rng.choice(values, 2)
        return float(np.clip(rng.choice([one, (one + other) / 2, one * 1.01, one * 0.99]), low, high))

    bounds = (accuracy >= about(accuracies, 0, 1), cost <= about(costs, 0, np.inf), accuracy >= about(accuracies, 0, 1))
    goals: dict[str, Any] = [{"minimize": cost}, {"maximize": accuracy}, {"minimize": cost, "maximize": accuracy}][
        int(rng.integers(3))
    ]
    return Problem(
        **goals,
        subject_to=tuple(bound for bound in bounds if rng.random() < 0.5),
        space=space,
        robust=float(rng.choice([0.5, 0.8])) if rng.random() < 0.3 else None,
    )


def random_plan(
    rng: np.random.Generator,
    blocks: int,
    tiers: int,
    *,
    length: int | None = None,
    thresholds: tuple[float, ...] = THRESHOLDS,
) -> Plan:
    """A lawful plan; several partitions may share a tier."""
    count = length or int(rng.integers(1, min(blocks, 6) + 1))
    cuts = tuple(sorted(int(c) for c in rng.choice(np.arange(1, blocks + 1), count, replace=False)))
    used = int(rng.integers(1, min(tiers, count) + 1))
    order = rng.permutation(tiers)[:used]
    breaks = np.sort(rng.choice(np.arange(1, count), used - 1, replace=False)) if used > 1 else np.empty(0, dtype=int)
    owner = np.searchsorted(breaks, np.arange(count), side="right")
    return Plan(
        cuts=cuts,
        placement=tuple(int(order[o]) for o in owner),
        thresholds=tuple(float(rng.choice(thresholds)) for _ in range(count - 1)),
    )
