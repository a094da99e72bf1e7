"""The whole path on the handwritten digits: train, profile, plan, run, compare, report.

Everything is measured on this machine; nothing is downloaded. The tiers are processes, the links
are emulated, the tiers' speeds are in the proportion of the paper's devices.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from portend.analysis.compare import Comparison, agreement, compare
from portend.data.dataset import draw, make_splits
from portend.data.sources import load_dataset
from portend.io.storage import save, write_json
from portend.networks.zoo import build
from portend.perfmodel.estimate import Estimate
from portend.perfmodel.model import PerformanceModel
from portend.planner.exhaustive import sample_space
from portend.planner.planfile import PlanFile
from portend.planner.problem import Problem, SearchSpace, Solution, accuracy, latency
from portend.planner.solve import solve
from portend.profiling.device import DeviceProfiling
from portend.profiling.fastest import time_executions
from portend.profiling.turns import Turns, run_in_turns
from portend.report.page import ReportData, write_report
from portend.testbed.deployment import Deployment
from portend.training.config import DIGITS_TRAINING, Progress, TrainingConfig
from portend.training.training import train
from portend.values.execution import Execution
from portend.values.plan import Plan
from portend.values.profile import Profile
from portend.values.topology import Link, Tier, Topology
from portend.verbs.profile import profile as measure_profile

__all__ = ["DemoConfig", "DemoResult", "run_demo", "samples_of", "three_tier"]

Tell = Callable[[str, int, int], None]


def three_tier() -> Topology:
    """Return ``configs/topologies/three_tier.yaml``: the paper's Fig. 3 on one machine."""
    tiers = (("edge", 27.15), ("base", 8.70), ("cloud", 5.0))
    return Topology(
        name="three-tier",
        tiers=tuple(Tier(name=name, device="local", slowdown=slowdown) for name, slowdown in tiers),
        links=(
            Link(bandwidth_bps=10e6, propagation_delay_s=0.020),
            Link(bandwidth_bps=400e6, propagation_delay_s=0.040),
        ),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoConfig:
    """How large the demo is; the defaults take about two and a half minutes on two cores.

    Attributes:
        drop: accuracy that may be given up against the whole network, as a share.
        samples, exit_samples, plain_samples: test samples for the chosen plan, for each other plan
            with early exits, and at least for plans without (``samples_of``).
        gap_s: idle time before each sample, in the profile and in the runs.
        turns: how often each plan has its turn; the device is timed again in between.
        executions: the fastest of them, measured on the trained network, is profiled and runs it.
        training, profiling, topology, space: see their types; ``profiling.execution`` is set by ``executions``.
    """

    network: str = "resnet20"
    input_size: int = 32
    seed: int = 0
    drop: float = 0.01
    samples: int = 320
    exit_samples: int = 160
    plain_samples: int = 40
    gap_s: float = 0.05
    turns: int = 10
    executions: tuple[Execution, ...] = (Execution(), Execution(executor="onnxruntime"))
    training: TrainingConfig = DIGITS_TRAINING
    profiling: DeviceProfiling = field(
        default_factory=lambda: DeviceProfiling(
            idle_repeats=3,  # more in the turns
            codecs=("float32", "encoded", "float16", "int8"),
        )
    )
    topology: Topology = field(default_factory=three_tier)
    space: SearchSpace = field(
        default_factory=lambda: SearchSpace(thresholds=(0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9))
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """What the demo found; everything is also in the folder."""

    profile: Profile
    solution: Solution
    comparisons: tuple[Comparison, ...]
    summary: Mapping[str, Any]


def run_demo(directory: str | Path, config: DemoConfig | None = None, *, tell: Tell = lambda *_: None) -> DemoResult:
    """Do all of it and leave checkpoint, profile, plan, measurements, report and summary in ``directory``.

    ``tell`` is called with (stage, done, total). An interrupted training goes on where it was.
    """
    config = config or DemoConfig()
    folder = Path(directory)
    clock = _Stopwatch()

    dataset = load_dataset(f"digits:size={config.input_size}")
    splits = make_splits(dataset, seed=config.seed)
    backbone = build(config.network, in_channels=1, num_classes=dataset.num_classes, input_size=config.input_size)

    def told(progress: Progress) -> None:
        tell("train", progress.step, progress.steps)

    trained = train(backbone, dataset, splits, config.training, folder / "training", on_progress=told)
    clock.lap("train")

    execution = config.executions[0]
    if len(config.executions) > 1:
        tell("compare executors", 0, 1)
        execution = time_executions(trained.checkpoint, dataset, config.executions)[0].execution
        tell("compare executors", 1, 1)
    profile = measure_profile(
        trained.checkpoint, config=config.profiling, gap_s=config.gap_s, execution=execution,
        codec_samples=len(splits.profiling), out=folder / "profile.zip",
        on_progress=lambda what, *at: tell(f"profile {what}", *at),
    )  # fmt: skip
    clock.lap("profile")

    model = PerformanceModel(profile, config.topology)
    bound = accuracy >= profile.full_accuracy - config.drop
    problem = Problem(minimize=latency, subject_to=(bound,), space=config.space)
    solution = solve(problem, model, new_samples=True)
    if solution.met:
        PlanFile.of(solution, model).save(folder / "plan.json")
    clock.lap("plan")

    plans = {"Portend": solution.plan}
    plans |= {name: baseline.plan for name, baseline in solution.baselines.items()}
    turns = _measure(plans.values(), trained.checkpoint, profile, config, tell)
    measurements = {name: turns.measurements[plan] for name, plan in plans.items()}
    for name, measurement in measurements.items():
        save(measurement, folder / "measurements" / f"{name.lower().replace(' ', '-')}.zip")
    profile_then, topology_then = turns.then(profile)
    save(profile_then, folder / "profile-of-the-runs.zip")
    clock.lap("run")

    then = PerformanceModel(profile_then, topology_then)
    comparisons = compare({name: (then.estimate(plans[name]), m) for name, m in measurements.items()})
    summary = _summary(config, profile, solution, comparisons, turns.speed_drift(profile), clock)
    write_json(summary, folder / "summary.json")
    cloud = sample_space(config.space, model) | {
        "front_latency_s": [point.latency_s for point in solution.front],
        "front_accuracy": [point.accuracy for point in solution.front],
    }
    write_report(
        folder / "report.html",
        ReportData(
            title="Portend demo: handwritten digits over three tiers",
            profile=profile,
            topology=config.topology,
            problem=f"{problem} (the whole network: {100 * profile.full_accuracy:.1f} %)",
            chosen="Portend",
            comparisons=comparisons,
            cloud=cloud,
            new_samples={
                name: str(found.new_samples)
                for name, found in {"Portend": solution, **solution.baselines}.items()
                if found.new_samples
            },
            summary={
                "plans evaluated": f"{solution.stats.plans:,} in {1e3 * solution.stats.seconds:.0f} ms",
                "verdict": summary["verdict"],
                "speed drift": describe_speed_drift(summary["speed_drift"]),
                "duration": ", ".join(f"{name} {seconds:.0f} s" for name, seconds in clock.laps.items()),
            },
            provenance={
                **profile.provenance,
                **profile.devices["local"].environment,
                **measurements["Portend"].provenance,
            },
        ),
    )
    return DemoResult(profile=profile, solution=solution, comparisons=comparisons, summary=summary)


def samples_of(estimate: Estimate, config: DemoConfig) -> int:
    """Return how many samples a plan that was not chosen runs over.

    Without early exits its latency changes only as the machine's speed does, and so with what computing is of it.
    """
    if any(threshold > 0 for threshold in estimate.plan.thresholds):
        return config.exit_samples
    computing = estimate.parts_s["compute"] / estimate.mean_s
    return max(config.plain_samples, round(computing * config.exit_samples))


def _measure(plans: Iterable[Plan], checkpoint: Path, profile: Profile, config: DemoConfig, tell: Tell) -> Turns:
    """Run each plan, the first of which is the chosen one, over the first test samples, in turns."""
    dataset = load_dataset(f"digits:size={config.input_size}")
    test = draw(make_splits(dataset, seed=config.seed).test, config.samples, seed=config.seed)
    model = PerformanceModel(profile, config.topology)
    counts: dict[Plan, int] = {}
    for plan in plans:
        wanted = samples_of(model.estimate(plan), config) if counts else config.samples
        counts.setdefault(plan, min(wanted, len(test)))
    executions = [profile.devices[tier.device].execution for tier in config.topology.tiers]
    ranges = dict(enumerate(profile.ranges))
    with Deployment(config.topology, checkpoint, dataset.decoder, executions=executions, ranges=ranges) as deployment:
        deployment.load_samples([dataset.encoded[i] for i in test], dataset.labels[test])
        return run_in_turns(
            deployment,
            counts,
            profile.num_blocks,
            turns=config.turns,
            gap_s=config.gap_s,
            seed=config.seed,
            on_progress=lambda *at: tell("run the plans in turns", *at),
        )


class _Stopwatch:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now


def _summary(
    config: DemoConfig,
    profile: Profile,
    solution: Solution,
    comparisons: tuple[Comparison, ...],
    speed_drift: float,
    clock: _Stopwatch,
) -> dict[str, Any]:
    return {
        "network": profile.backbone.name,
        "full_accuracy": profile.full_accuracy,
        **{key: value for key, value in solution.to_dict().items() if key != "front"},
        "verdict": verdict(solution),
        "comparisons": [case.to_dict() for case in comparisons],
        "agreement": agreement(comparisons),
        "speed_drift": speed_drift,
        "seconds": clock.laps,
        "seed": config.seed,
    }


def describe_speed_drift(drift: float) -> str:
    """Return in one sentence how the machine's speed changed between the profile and the runs."""
    return (
        f"While the plans ran, this machine computed {100 * abs(drift):.1f} % {'slower' if drift > 0 else 'faster'} "
        "than when it was profiled for planning; predictions compared with measurements are for its speed then."
    )


def verdict(solution: Solution) -> str:
    """Return in one sentence whether the plan beats every baseline that meets the constraints."""
    if not solution.met:
        return "No plan meets the constraints; this one comes nearest."
    best = solution.estimate.mean_s
    rivals = {n: s.estimate.mean_s for n, s in solution.baselines.items() if s.met}
    if not rivals:
        return "No baseline meets the constraints; the plan does."
    equal = [name for name, mean_s in rivals.items() if mean_s <= best * (1 + 1e-9)]
    if equal:
        return f"As good as the plan: {', '.join(equal)}."
    nearest = min(rivals, key=lambda name: rivals[name])
    gain = 100 * (1 - best / rivals[nearest])
    return (
        f"The plan beats every baseline; the nearest, {nearest}, takes {1e3 * rivals[nearest]:.1f} ms, "
        f"and the plan saves {gain:.1f} % of it."
    )
