"""How long the exact search takes on the paper's largest space: 55 blocks, 3 tiers, 10 thresholds.

The comparison is the paper's method, one plan at a time: a lean plain-Python function with every
table looked up beforehand, measured in the same run on plans spread evenly over the space and
extrapolated to all of them.

    python benchmarks/planner.py --json planner.json
"""

# ruff: noqa: E402 (threads are pinned before NumPy is imported)
from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import json
import math
import platform
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import combinations, islice, permutations
from pathlib import Path
from typing import Any

import numpy as np

from portend.perfmodel.model import Estimator, PerformanceModel
from portend.plan import Plan
from portend.planner.exhaustive import solve_exhaustive
from portend.planner.problem import DEFAULT_THRESHOLDS, Problem, SearchSpace, accuracy, latency
from portend.profile import BackboneSpec, CodecProfile, DeviceProfile, Profile, ResultProfile, SampleExits
from portend.topology import Link, Tier, Topology

BLOCKS, SAMPLES, RUNS = 55, 5000, 7
PLANS = 1_663_365
Values = tuple[float, float]


def make_profile(seed: int = 0) -> Profile:
    """A deep residual network in numbers: random, but with the trends of the real ones."""
    rng = np.random.default_rng(seed)
    depth = np.arange(1, BLOCKS + 1) / BLOCKS
    hard = rng.beta(0.7, 1.6, (SAMPLES, 1))  # how hard each sample is: scores of one sample go together
    score = np.clip(hard + 0.6 * (1 - depth) ** 1.5 + rng.normal(0, 0.12, (SAMPLES, BLOCKS)) - 0.15, 0.0, 1.0)
    right = rng.random((SAMPLES, BLOCKS)) < np.clip(1.02 - 0.75 * score**1.5, 0.05, 0.995)
    shapes = [(3, 32, 32)] + [(16, 32, 32)] * 19 + [(32, 16, 16)] * 18 + [(64, 8, 8)] * 17 + [(10,)]
    size = np.array([4.0 * np.prod(shape) + 200 for shape in shapes])

    def one_device(name: str, block_s: float) -> DeviceProfile:
        blocks = np.concatenate(([0.0], np.cumsum(block_s * rng.uniform(0.8, 1.3, BLOCKS))))
        compute = blocks[None, :] - blocks[:, None] + 0.4 * block_s
        compute[np.tril_indices(BLOCKS + 1)] = np.nan
        per_byte = block_s * 2e-6
        cost = np.stack([per_byte * size + 2e-5] * 3)
        codec = CodecProfile(
            message_bytes=size,
            encode_repeats_s=cost,
            encode_busy_repeats_s=0.8 * cost,
            decode_repeats_s=cost,
            decode_busy_repeats_s=0.6 * cost,
            dispatch_repeats_s=np.full_like(cost, 3e-4),
        )
        return DeviceProfile(
            device=name,
            executor="random",
            compute_repeats_s=compute[None],
            idle_repeats_s=1.15 * compute[None, None],
            branch_repeats_s=np.full((1, BLOCKS + 1), 0.2 * block_s),
            codecs={"float32": codec},
            result=ResultProfile(
                message_bytes=120.0,
                encode_repeats_s=np.array([2e-5]),
                decode_repeats_s=np.array([3e-5]),
                decode_busy_repeats_s=np.array([2e-5]),
                dispatch_repeats_s=np.array([3e-4]),
            ),
        )

    return Profile(
        backbone=BackboneSpec(
            name="random55",
            block_names=tuple(f"block{i}" for i in range(1, BLOCKS + 1)),
            num_classes=10,
            cut_shapes=tuple(shapes),
        ),
        exits=SampleExits(score=score, correct=right),
        devices={"edge": one_device("edge", 4e-3), "fog": one_device("fog", 1e-3), "cloud": one_device("cloud", 3e-4)},
    )


def make_topology() -> Topology:
    return Topology(
        name="three tiers",
        tiers=tuple(Tier(name=name, device=name) for name in ("edge", "fog", "cloud")),
        links=(
            Link(bandwidth_bps=10e6, propagation_delay_s=0.020),
            Link(bandwidth_bps=400e6, propagation_delay_s=0.040),
        ),
    )


def plans() -> Iterator[tuple[float, tuple[int, ...], tuple[int, ...]]]:
    """Every (threshold, cuts, placement) of the space; one partition asks no threshold."""
    for length in (1, 2, 3):
        placements = list(permutations(range(3), length))
        for threshold in DEFAULT_THRESHOLDS if length > 1 else (0.0,):
            for cuts in combinations(range(1, BLOCKS + 1), length):
                for placement in placements:
                    yield threshold, cuts, placement


def evaluator(model: PerformanceModel) -> Callable[[float, tuple[int, ...], tuple[int, ...]], Values]:
    """A plain function of one plan: mean latency and accuracy, from lists and whole-number bit sets."""
    exits = model.profile.exits
    assert isinstance(exits, SampleExits)
    compute: Any = model.tables.compute_s.tolist()
    hop: Any = model.tables.hop_s()[0].tolist()
    result: list[float] = model.tables.result_parts_s.sum(axis=-1).tolist()
    rates = {
        t: [0.0, *row] for t, row in zip(DEFAULT_THRESHOLDS, exits.rates(DEFAULT_THRESHOLDS).tolist(), strict=True)
    }
    share_right = [0.0, *exits.accuracies().tolist()]

    def bits(flags: Any) -> int:
        return int.from_bytes(np.packbits(flags).tobytes(), "big")

    replay = model.estimator == "sample"
    everyone = bits(np.ones(exits.samples, dtype=np.bool_))
    leaves = {t: [0] + [bits(exits.score[:, i] < t) for i in range(BLOCKS)] for t in DEFAULT_THRESHOLDS if replay}
    right = [0] + [bits(exits.correct[:, i]) for i in range(BLOCKS)]
    samples, source = exits.samples, model.topology.source

    def evaluate(threshold: float, cuts: tuple[int, ...], placement: tuple[int, ...]) -> Values:
        so_far, mean, correct = 0.0, 0.0, 0.0
        stay, reach, start, here, last = everyone, 1.0, 0, source, len(cuts) - 1
        for k, end in enumerate(cuts):
            tier = placement[k]
            run = 1 if k == last or threshold > 0 else 0
            so_far += hop[start][here][tier] + compute[1][run][tier][start][end]
            if replay:
                gone = stay if k == last else stay & leaves[threshold][end]
                share = gone.bit_count() / samples
                correct += (gone & right[end]).bit_count() / samples
                stay &= ~gone
            else:
                share = reach if k == last else max(rates[threshold][end] - (1.0 - reach), 0.0)
                correct += share * share_right[end]
                reach -= share
            mean += share * (so_far + result[tier])
            start, here = end, tier
        return mean, correct

    return evaluate


def measure(estimator: Estimator, slice_plans: int) -> dict[str, Any]:
    model = PerformanceModel(make_profile(), make_topology(), estimator=estimator)
    problem = Problem(minimize=latency, subject_to=(accuracy >= 0.85,), space=SearchSpace())
    solution = solve_exhaustive(problem, model)  # warms the caches; not timed
    assert solution.stats.plans == PLANS
    seconds = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        solution = solve_exhaustive(problem, model)
        seconds.append(time.perf_counter() - begin)
    tracemalloc.start()
    solve_exhaustive(problem, model)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    evaluate = evaluator(model)
    stride = max(1, PLANS // slice_plans)
    while math.gcd(stride, 60) > 1:  # or the slice would keep to some placements and thresholds
        stride += 1
    chosen = list(islice(plans(), 0, None, stride))
    begin = time.perf_counter()
    values = [evaluate(*plan) for plan in chosen]
    brute = time.perf_counter() - begin
    front = solution.front
    for (threshold, cuts, placement), (mean, right) in list(zip(chosen, values, strict=True))[:: len(values) // 50]:
        estimate = model.estimate(Plan(cuts=cuts, placement=placement, thresholds=(threshold,) * (len(cuts) - 1)))
        assert abs(estimate.mean_s - mean) < 1e-9 * mean, "the brute force computes something else"
        assert abs(estimate.accuracy - right) < 1e-9, "the brute force computes something else"
    assert all(any(p.latency_s <= m * (1 + 1e-9) and p.accuracy >= a - 1e-9 for p in front) for m, a in values[::97])
    extrapolated = brute / len(values) * PLANS
    return {
        "estimator": estimator,
        "plans": PLANS,
        "status": solution.status,
        "front_points": len(front),
        "seconds_best": min(seconds),
        "seconds_median": statistics.median(seconds),
        "peak_mib": peak / 2**20,
        "brute_force_plans_measured": len(values),
        "brute_force_plans_per_s": len(values) / brute,
        "brute_force_seconds_extrapolated": extrapolated,
        "ratio_to_best": extrapolated / min(seconds),
        "ratio_to_median": extrapolated / statistics.median(seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the numbers to this file")
    parser.add_argument("--slice", type=int, default=60_000, help="plans that the brute force evaluates")
    arguments = parser.parse_args()
    kinds: tuple[Estimator, ...] = ("marginal", "sample")
    rows = [measure(kind, arguments.slice) for kind in kinds]
    print(f"{BLOCKS} blocks, 3 tiers, 10 thresholds, {SAMPLES:,} samples: {PLANS:,} plans, one thread, {RUNS} runs")
    print(f"{'':<10}{'best':>10}{'median':>10}{'peak':>11}{'one by one*':>14}{'ratio':>9}")
    for row in rows:
        print(
            f"{row['estimator']:<10}{1e3 * row['seconds_best']:>7.1f} ms{1e3 * row['seconds_median']:>7.1f} ms"
            f"{row['peak_mib']:>7.1f} MiB{row['brute_force_seconds_extrapolated']:>12.1f} s"
            f"{row['ratio_to_median']:>8.0f}x"
        )
    measured = rows[0]["brute_force_plans_measured"]
    print(f"* the evaluation alone, extrapolated from {measured:,} plans spread over the space; ratio to the median")
    if arguments.json:
        document = {
            "blocks": BLOCKS,
            "tiers": 3,
            "thresholds": len(DEFAULT_THRESHOLDS),
            "samples": SAMPLES,
            "runs": RUNS,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "results": rows,
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
