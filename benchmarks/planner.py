"""How long the planner takes, and how that compares with the paper's method on the same machine.

The paper's method is the plain brute force of ``tests/reference.py``: every plan by itself, term by term. It is
timed in the same run on plans spread evenly over the space and extrapolated to all of them.

    python benchmarks/planner.py --json planner.json
    python benchmarks/planner.py --large              # the gap where no proof comes in 10 s
"""

# ruff: noqa: E402 (threads are pinned before NumPy is imported)
from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from portend.io.forms import load_topology
from portend.io.storage import load_profile, save
from portend.perfmodel.model import PerformanceModel
from portend.planner import dynamic, replay
from portend.planner.exhaustive import solve_exhaustive
from portend.planner.limits import Limits
from portend.planner.problem import Problem, SearchSpace, accuracy, latency
from portend.planner.search import search
from portend.planner.space import PlanSpace
from portend.values.backbone import BackboneSpec
from portend.values.codecs import CodecProfile, ResultProfile
from portend.values.device_profile import DeviceProfile
from portend.values.exits import SampleExits, TabulatedExits
from portend.values.plan import Plan
from portend.values.profile import Profile
from portend.values.topology import Link, Tier, Topology
from reference import Reference, enumerate_plans  # type: ignore[import-not-found, unused-ignore]

SAMPLES = 5000
Floats = NDArray[np.float64]


# -- instances -----------------------------------------------------------------------------------------


def make_device(
    name: str, block_s: Floats, *, overhead_s: float, message_bytes: Floats, handling_s: Floats
) -> DeviceProfile:
    """A device from the seconds of its blocks [N]; each partition costs ``overhead_s`` more."""
    cuts = np.concatenate(([0.0], np.cumsum(block_s)))
    compute = cuts[None, :] - cuts[:, None] + overhead_s
    compute[np.tril_indices(cuts.size)] = np.nan
    handling = handling_s[None]
    return DeviceProfile(
        device=name,
        compute_repeats_s=compute[None],
        idle_repeats_s=1.15 * compute[None, None],
        branch_repeats_s=np.full((1, cuts.size), overhead_s / 2),
        codecs={
            "float32": CodecProfile(
                message_bytes=message_bytes,
                encode_repeats_s=handling,
                encode_busy_repeats_s=0.8 * handling,
                decode_repeats_s=handling,
                decode_busy_repeats_s=0.6 * handling,
                dispatch_repeats_s=np.full_like(handling, 3e-4),
            )
        },
        result=ResultProfile(
            message_bytes=120.0,
            encode_repeats_s=np.array([2e-5]),
            decode_repeats_s=np.array([3e-5]),
            decode_busy_repeats_s=np.array([2e-5]),
            dispatch_repeats_s=np.array([3e-4]),
        ),
    )


def backbone(blocks: int) -> BackboneSpec:
    return BackboneSpec(
        name=f"chain of {blocks}",
        block_names=tuple(f"block{i}" for i in range(1, blocks + 1)),
        num_classes=10,
        cut_shapes=((1,),) * (blocks + 1),
    )


def resnet_like(blocks: int, *, block_s: float = 4e-3, seed: int = 0) -> Profile:
    """A residual network in numbers: random, but with the trends of the real ones; scores of one sample go together."""
    rng = np.random.default_rng(seed)
    depth = np.arange(1, blocks + 1) / blocks
    hard = rng.beta(0.7, 1.6, (SAMPLES, 1))
    noise = rng.normal(0, 0.12, (SAMPLES, blocks))
    score = np.clip(hard + 0.6 * (1 - depth) ** 1.5 + noise - 0.15, 0.0, 1.0)
    right = rng.random((SAMPLES, blocks)) < np.clip(1.02 - 0.75 * score**1.5, 0.05, 0.995)
    thirds = np.array_split(np.arange(blocks), 3)
    values = np.concatenate(([3072], *(np.full(part.size, 16384 >> i) for i, part in enumerate(thirds))))
    size = 4.0 * values + 200
    devices = {}
    for name, speed in (("edge", 1.0), ("fog", 0.25), ("cloud", 0.075)):
        own_s = block_s * speed
        devices[name] = make_device(
            name,
            own_s * rng.uniform(0.8, 1.3, blocks),
            overhead_s=0.4 * own_s,
            message_bytes=size,
            handling_s=own_s * 2e-6 * size + 2e-5,
        )
    return Profile(
        backbone=backbone(blocks), exits=SampleExits(scores={"entropy": score}, correct=right), devices=devices
    )


def three_tiers() -> Topology:
    return Topology(
        name="three tiers",
        tiers=tuple(Tier(name=name, device=name) for name in ("edge", "fog", "cloud")),
        links=(
            Link(bandwidth_bps=10e6, propagation_delay_s=0.020),
            Link(bandwidth_bps=400e6, propagation_delay_s=0.040),
        ),
    )


def hard(blocks: int, tiers: int, thresholds: int, seed: int = 0) -> tuple[PerformanceModel, SearchSpace]:
    """Cheap links, and blocks each of which a quarter of the tiers run five times as fast: many tiers pay."""
    rng = np.random.default_rng(seed)
    depth = np.arange(1, blocks + 1) / blocks
    theta = np.linspace(0, 0.9, thresholds)
    rates = theta[:, None] ** 0.8 * (0.15 + 0.85 * depth**1.2) + rng.normal(0, 0.004, (thresholds, blocks))
    rates = np.maximum.accumulate(rates, axis=1).clip(0, 1)
    rates[0] = 0
    right = 0.3 + 0.6 * (1 - np.exp(-4 * depth)) + rng.normal(0, 0.004, blocks)
    exits = TabulatedExits(
        thresholds=theta,
        exited=np.rint(rates * SAMPLES).astype(np.int64),
        correct=np.rint(right * SAMPLES).astype(np.int64),
        samples=SAMPLES,
    )
    devices = {}
    for tier in range(tiers):
        block_s = rng.uniform(0.8e-3, 1.2e-3, blocks) * np.where(rng.random(blocks) < 0.25, 0.2, 1.0)
        devices[f"device {tier}"] = make_device(
            f"device {tier}",
            block_s,
            overhead_s=2e-4,
            message_bytes=np.full(blocks + 1, 2000.0),
            handling_s=np.full(blocks + 1, 2e-5),
        )
    topology = Topology(
        name="hard",
        tiers=tuple(Tier(name=f"tier {tier}", device=f"device {tier}") for tier in range(tiers)),
        links=(Link(bandwidth_bps=1e9, propagation_delay_s=1e-4),) * (tiers - 1),
    )
    profile = Profile(backbone=backbone(blocks), exits=exits, devices=devices)
    return PerformanceModel(profile, topology), SearchSpace(thresholds=tuple(theta.tolist()), exits_per_tier=1)


# -- measuring -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    plans: float
    seconds: tuple[float, ...]
    target_s: float
    peak_mib: float | None = None
    target_mib: float | None = None
    brute_force_s: float | None = None
    facts: str = ""

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def ratio(self) -> float | None:
        return None if self.brute_force_s is None else self.brute_force_s / self.median_s

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "plans": self.plans,
            "seconds_median": self.median_s,
            "seconds_best": min(self.seconds),
            "runs": len(self.seconds),
            "target_seconds": self.target_s,
            "peak_mib": self.peak_mib,
            "target_mib": self.target_mib,
            "brute_force_seconds_extrapolated": self.brute_force_s,
            "ratio": self.ratio,
            "facts": self.facts,
        }

    def __str__(self) -> str:
        memory = "" if self.peak_mib is None else f"{self.peak_mib:.0f} MiB"
        ratio = "" if self.ratio is None else f"{self.ratio:,.0f}x"
        return (
            f"{self.name:<58}{self.plans:>9.2g}{_time(self.median_s):>10}{_time(self.target_s):>9}"
            f"{memory:>9}{ratio:>11}  {self.facts}"
        )


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms"


def timed(work: Callable[[], Any], runs: int) -> tuple[float, ...]:
    """Seconds of each run, after one that is not counted."""
    work()
    seconds = []
    for _ in range(runs):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return tuple(seconds)


def peak(work: Callable[[], Any]) -> float:
    """Most memory in MiB that the work held beyond what was there."""
    tracemalloc.start()
    work()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most / 2**20


def spread(space: SearchSpace, model: PerformanceModel, plans: int, some: int) -> list[Plan]:
    """About ``some`` plans of a space, evenly spread over it."""
    tiers = len(model.topology.tiers)
    every = enumerate_plans(replace(space, max_partitions=tiers), model.profile.num_blocks, tiers)
    return [
        Plan(cuts=cuts, placement=placement, thresholds=thresholds)
        for _, thresholds, cuts, placement in islice(every, 0, None, max(plans // some, 1))
    ]


def brute_force_s(model: PerformanceModel, plans: int, some: list[Plan]) -> float:
    """Seconds in which the brute force would evaluate every plan; its tables of hops are filled before."""
    plain = Reference(model.profile, model.topology, model.estimator)
    for plan in some:
        plain.latency_parts(plan)
    begin = time.perf_counter()
    for plan in some:
        outcome = plain.estimate(plan)
        assert outcome is not None
        assert outcome.mean > 0
    return (time.perf_counter() - begin) / len(some) * plans


def tabulated(profile: Profile, thresholds: tuple[float, ...]) -> Profile:
    """The profile with exit rates and accuracies only, which is all that the paper's method looks at."""
    exits = profile.exits
    assert isinstance(exits, SampleExits)
    tables = TabulatedExits(
        thresholds=np.array(thresholds),
        exited=np.rint(exits.rates(thresholds) * exits.samples).astype(np.int64),
        correct=np.rint(exits.accuracies() * exits.samples).astype(np.int64),
        samples=exits.samples,
    )
    return replace(profile, exits=tables)


def resnet110_rows(some: int) -> list[Row]:
    """The paper's largest space: 55 blocks, 3 tiers, 10 thresholds, one exit per tier."""
    profile, space = resnet_like(55), SearchSpace(exits_per_tier=1)
    marginal = PerformanceModel(tabulated(profile, space.thresholds), three_tiers())
    sample = PerformanceModel(profile, three_tiers())
    plans = PlanSpace(space, marginal).count()
    chosen = spread(space, marginal, plans, some)
    slow = brute_force_s(marginal, plans, chosen)

    def every() -> Any:
        return solve_exhaustive(Problem(minimize=latency, space=space), marginal)

    rows = [
        _front_row("marginal", dynamic.front, marginal, space, slow, target_s=2e-3),
        Row(
            name="same, every plan's latency and accuracy (exhaustive)",
            plans=plans,
            seconds=timed(every, 7),
            target_s=25e-3,
            peak_mib=peak(every),
            target_mib=32,
            brute_force_s=slow,
        ),
    ]
    slow = brute_force_s(sample, plans, chosen[:: max(len(chosen) // 100, 1)])
    return [*rows, _front_row("sample", replay.front, sample, space, slow, target_s=60e-3)]


def _front_row(
    name: str,
    front: Callable[[PlanSpace], Any],
    model: PerformanceModel,
    space: SearchSpace,
    slow: float,
    *,
    target_s: float,
) -> Row:
    tables = PlanSpace(space, model)
    expected = solve_exhaustive(Problem(minimize=latency, space=space), model).front
    found, whole = front(tables)
    assert whole
    assert [one.plan for one in found] == [point.plan for point in expected]
    return Row(
        name=f"ResNet-110, 3 tiers, 10 thresholds: whole front, {name}",
        plans=tables.count(),
        seconds=timed(lambda: front(tables), 20),
        target_s=target_s,
        brute_force_s=slow,
        facts=f"{len(expected)} plans on the front",
    )


def hard_rows(
    blocks: int, tiers: int, thresholds: int, target_s: float, target_mib: float | None, runs: int
) -> list[Row]:
    model, space = hard(blocks, tiers, thresholds)
    tables = PlanSpace(space, model)
    rows = []
    for drop in (0.02, 0.05, 0.10):
        need = tables.counts(model.profile.full_accuracy - drop)

        def solve(need: float = need) -> Any:
            return dynamic.best(tables, need=need, budget=np.inf, fastest=True)

        found, bound = solve()
        assert found is not None
        assert bound == found.latency
        rows.append(
            Row(
                name=f"N={blocks}, M={tiers}, {thresholds} thresholds, hard: fastest at -{100 * drop:.0f} points",
                plans=float(tables.count()),
                seconds=timed(solve, runs),
                target_s=target_s,
                peak_mib=peak(solve) if target_mib else None,
                target_mib=target_mib,
                facts=f"{len(found.plan)} partitions, {1e3 * float(tables.value(found.latency)):.2f} ms, proven",
            )
        )

        def solve_back(budget: float = 1.05 * found.latency) -> Any:
            return dynamic.best(tables, need=-np.inf, budget=budget, fastest=False)

        back, bound = solve_back()
        assert back is not None
        assert bound == back.right
        assert back.right >= found.right
        points = 100 * (model.profile.full_accuracy - float(tables.accuracy(back.right)))
        rows.append(
            Row(
                name="  most accurate within 5 % more latency",
                plans=float(tables.count()),
                seconds=timed(solve_back, runs),
                target_s=target_s,
                facts=f"{len(back.plan)} partitions, {-points:+.2f} points, proven",
            )
        )
    return rows


def per_exit_rows() -> list[Row]:
    """A network of ResNet-20's size with up to four early exits, each with its own threshold."""
    rows = []
    for heaviness, block_s in (("light", 2e-3), ("heavy for the edge", 20e-3)):
        model = PerformanceModel(resnet_like(10, block_s=block_s), three_tiers())
        space = SearchSpace(per_exit_thresholds=True, exits_per_tier=4, max_partitions=5)
        tables = PlanSpace(space, model)
        need = tables.counts(model.profile.full_accuracy - 0.01)

        def solve(tables: PlanSpace = tables, need: float = need) -> Any:
            return replay.best(tables, need=need, budget=np.inf, fastest=True)

        found, bound = solve()
        assert found is not None
        assert bound == found.latency
        rows.append(
            Row(
                name=f"10 blocks, up to 4 exits, own thresholds, {heaviness}: fastest",
                plans=float(tables.count()),
                seconds=timed(solve, 5),
                target_s=2.0,
                peak_mib=peak(solve),
                facts=f"{len(found.plan)} partitions, {1e3 * float(tables.value(found.latency)):.2f} ms, proven",
            )
        )
    return rows


# -- instances too large for a proof -------------------------------------------------------------------


def deep() -> Profile:
    """ResNet-110 on CIFAR-10 as it ships: 55 blocks, 5,000 samples."""
    return load_profile(ROOT / "profiles" / "resnet110-cifar10.zip")


def with_samples(blocks: int, tiers: int) -> PerformanceModel:
    """Cheap links and many tiers that pay (``hard``), with the scores of exits of ResNet-110."""
    model, _ = hard(blocks, tiers, 10)
    exits = deep().exits
    assert isinstance(exits, SampleExits)
    some = np.linspace(0, exits.num_branches - 1, blocks).round().astype(int)
    own = SampleExits(scores={"entropy": exits.score[:, some]}, correct=exits.correct[:, some])
    return PerformanceModel(replace(model.profile, exits=own), model.topology)


def large_cases() -> dict[str, Callable[[], tuple[PerformanceModel, SearchSpace, float]]]:
    """Models, spaces and how much accuracy may be lost, by name; those "promised" ask for it with 95 % confidence."""
    three = load_topology(ROOT / "configs" / "topologies" / "three_tier.yaml")
    hundred = tuple((np.arange(100) / 100).tolist())
    own = SearchSpace(per_exit_thresholds=True, exits_per_tier=2)
    return {
        "55 blocks, 3 tiers, 4 exits per tier": lambda: (
            PerformanceModel(deep(), three), SearchSpace(exits_per_tier=4), 0.01
        ),
        "55 blocks, 3 tiers, 2 exits per tier, own thresholds": lambda: (PerformanceModel(deep(), three), own, 0.01),
        "55 blocks, 3 tiers, 2 exits per tier, promised": lambda: (
            PerformanceModel(deep(), three), SearchSpace(exits_per_tier=2), 0.02
        ),
        "30 blocks, 8 tiers, cheap links": lambda: (with_samples(30, 8), SearchSpace(exits_per_tier=1), 0.02),
        "55 blocks, 8 tiers, cheap links": lambda: (with_samples(55, 8), SearchSpace(exits_per_tier=1), 0.02),
        "10 blocks, 3 tiers, 2 exits per tier, 100 own thresholds": lambda: (
            PerformanceModel(resnet_like(10), three_tiers()), replace(own, thresholds=hundred), 0.01
        ),
    }  # fmt: skip


def large(name: str, seconds: float) -> dict[str, Any]:
    """One of the large cases in so many seconds of this process: what is known then, and what it took."""
    model, space, drop = large_cases()[name]()
    bound = accuracy >= model.profile.full_accuracy - drop
    begin = time.process_time()
    robust = 0.95 if name.endswith("promised") else None
    problem = Problem(minimize=latency, subject_to=(bound,), space=space, robust=robust)
    found = search(problem, model, limits=Limits(seconds=seconds))
    return {
        "name": name,
        "plans": float(found.stats.plans),
        "status": found.status,
        "gap": found.gap,
        "latency_ms": 1e3 * found.estimate.mean_s,
        "wall_s": found.stats.seconds,
        "cpu_s": time.process_time() - begin,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def large_rows(seconds: float) -> Iterator[dict[str, Any]]:
    """Each large case in a process of its own, so that its memory is its own."""
    for name in large_cases():
        command = [sys.executable, __file__, "--large", name, "--seconds", str(seconds)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        yield json.loads(done.stdout)


def process_row() -> Row:
    """``portend plan`` from the shell: imports, reading, planning, baselines, printing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile.zip"
        save(replace(resnet_like(10), devices={"local": resnet_like(10).devices["edge"]}), path)
        topology = ROOT / "configs" / "topologies" / "three_tier.yaml"
        command = [sys.executable, "-m", "portend.cli.app", "plan", str(path), "--topology", str(topology)]
        command += ["--min-accuracy", "0.8", "--json"]
        seconds = timed(lambda: subprocess.run(command, check=True, capture_output=True), 5)
    return Row(name="portend plan from the shell, whole process", plans=np.nan, seconds=seconds, target_s=0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the numbers to this file")
    parser.add_argument("--plans", type=int, default=2_000, help="plans that the brute force evaluates")
    parser.add_argument("--large", nargs="?", const="", metavar="CASE", help="only cases too large for a proof, or one")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each of the large cases")
    parser.add_argument("--quick", action="store_true", help="leave out the largest instance")
    arguments = parser.parse_args()
    if arguments.large:
        print(json.dumps(large(arguments.large, arguments.seconds)))
        return
    if arguments.large is not None:
        for case in large_rows(arguments.seconds):
            known = "gap not known" if case["gap"] is None else f"gap {100 * case['gap']:.1f} %"
            print(
                f"{case['name']:<58}{case['plans']:>9.2g}  {case['status']}, {known}, {case['latency_ms']:.2f} ms; "
                f"{case['cpu_s']:.1f} s of CPU in {case['wall_s']:.1f} s, {case['peak_mib']:.0f} MiB",
                flush=True,
            )
        return
    print(f"{'':<58}{'plans':>9}{'median':>10}{'target':>9}{'peak':>9}{'ratio*':>11}")
    rows: list[Row] = []
    parts: list[Callable[[], list[Row]]] = [
        lambda: resnet110_rows(arguments.plans),
        lambda: hard_rows(55, 8, 10, 0.1, None, 5),
        per_exit_rows,
        lambda: [process_row()],
    ]
    if not arguments.quick:
        parts.append(lambda: hard_rows(200, 8, 100, 8.0, 256, 1))
    for part in parts:
        for row in part():
            rows.append(row)
            print(row, flush=True)
    print("* the brute force of tests/reference.py, extrapolated from plans spread over the space; to the median")
    if arguments.json:
        document = {
            "samples": SAMPLES,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "results": [row.to_dict() for row in rows],
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
