"""What plans lose while a link's bandwidth changes, against planning again at each change: replayed, and measured.

The trace is the bandwidth of link 0. A sample's latency is the model's at the bandwidth of the moment at which it
appears, held until it is answered; samples appear evenly over time. In an outage who must cross the link waits for its
end and then crosses it at the bandwidth that follows; others go on. Changing plans costs nothing here. Contenders:

    at the mean       the best plan at the trace's mean bandwidth, kept
    at first          the best plan at its first bandwidth, kept
    in hindsight      of all plans seen here, and the best at the harmonic mean, that with the least mean latency, kept
    edge alone        the best plan of the first tier alone at the mean bandwidth; cloud alone: of the last, whatever
                      hints say of raw input
    again             the best plan at each step
    a step late       the best plan of the step before

    python benchmarks/trace_replay.py replay PROFILE TRACE... --topology configs/topologies/commute.yaml --json OUT
    python benchmarks/trace_replay.py table OUT
    python benchmarks/trace_replay.py figure OUT TRACE_NAME docs/figures/trace.svg
    python benchmarks/trace_replay.py measure PROFILE TRACE --network NETWORK --topology ... --json MEASURED   # root
    python benchmarks/trace_replay.py measured MEASURED

PROFILE is a file, or the folder of the paper's authors' measurements, whose ResNet-110 then runs on their testbed with
an edge 3.2 times as slow.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from bisect import bisect, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

import portend as pt
from portend.io.storage import atomic_path, write_json
from portend.perfmodel.estimate import quantile_s
from portend.report.figures import CHOSEN, GRID, INK, PART_COLORS, QUIET
from portend.testbed.emulation.traces import BandwidthTrace, load_trace

__all__ = ["Replay", "Step", "draw", "main", "steps_of"]

AUTHORS_SLOWER: Final = 3.2
"""Of the authors' edge: 60 / 18.7, as configs/topologies/commute.yaml is slower than paper.yaml."""
_SAME: Final = 1 + 1e-9
_LOOKS: Final = {
    "edge alone": (PART_COLORS["other"], "--", 1.2),
    "cloud alone": (PART_COLORS["propagation"], "--", 1.2),
    "at first": (PART_COLORS["decode"], "-", 1.2),
    "at the mean": (PART_COLORS["transmission"], "-", 1.4),
    "in hindsight": (PART_COLORS["dispatch"], "-", 1.4),
    "a step late": (PART_COLORS["compute"], "-", 1.0),
    "again": (CHOSEN, "-", 1.8),
}

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Step:
    """What samples find that appear while a step of a trace lasts.

    Attributes:
        begin_s, seconds: of the step.
        bandwidth_bps: of the link, in an outage the first that follows it.
        wait_s: mean time until the outage ends, 0 where there is none.
    """

    begin_s: float
    seconds: float
    bandwidth_bps: float
    wait_s: float = 0.0


def steps_of(trace: BandwidthTrace) -> list[Step]:
    """Return the steps of a trace, which begins anew at its end."""
    ends = (*trace.times_s[1:], trace.period_s)
    count = len(ends)
    found = []
    for number, (begin, end) in enumerate(zip(trace.times_s, ends, strict=True)):
        after, over = number, end
        while trace.bandwidths_bps[after % count] == 0:
            after += 1
            over = trace.times_s[after % count] + after // count * trace.period_s
        wait_s = over - (begin + end) / 2 if after > number else 0.0
        found.append(Step(begin, end - begin, trace.bandwidths_bps[after % count], wait_s))
    return found


class Replay:
    """Plans and their latencies at any step, each computed once.

    The mean latency of every plan is a straight line over 1 / bandwidth of link 0, as long as no other link is slower
    and connections are warm. So the plan that is best at two bandwidths is best at all in between, without a search.

    Args:
        model: of a topology whose source and destination are tier 0, so that who leaves it crosses link 0 twice.
    """

    def __init__(self, model: pt.PerformanceModel, bound: float, space: pt.SearchSpace) -> None:
        if (model.topology.source, model.topology.destination) != (0, 0):
            raise ValueError("samples appear on the first tier and their results are wanted there")
        self._model, self._bound, self._space = model, bound, space
        self._models: dict[tuple[float, float], pt.PerformanceModel] = {}
        self._plans: dict[tuple[float, float], pt.Plan] = {}
        others = [link.bandwidth_bps for link in model.topology.links[1:]]
        self._straight_bps = min(others, default=math.inf) if model.topology.slow_start is None else 0.0
        self._searched_bps: list[float] = []
        self._outcomes: dict[tuple[pt.Plan, float, float], tuple[Floats, Floats]] = {}
        self.planning_s: list[tuple[float, float]] = []
        """Wall and processor seconds of each search, with making the model that it is asked on."""

    @property
    def keeps_raw(self) -> bool:
        """Whether plans may not send raw input, which the last tier alone would need."""
        return bool(self._space.block_tiers)

    def model(self, step: Step) -> pt.PerformanceModel:
        """The model at a step. Of a wait each of the two crossings gets half as delay."""
        key = (step.bandwidth_bps, step.wait_s)
        if key not in self._models:
            delay = self._model.topology.links[0].propagation_delay_s + step.wait_s / 2
            places = self._model.topology.with_link(0, bandwidth_bps=step.bandwidth_bps, propagation_delay_s=delay)
            self._models[key] = self._model.with_topology(places)
        return self._models[key]

    def plan(self, step: Step) -> pt.Plan:
        """The best plan at a step."""
        key = (step.bandwidth_bps, step.wait_s)
        if key not in self._plans and (known := self._between(step)) is not None:
            self._plans[key] = known
        elif key not in self._plans:
            begin, begin_cpu = time.perf_counter(), time.process_time()
            self._plans[key] = self._best(self.model(step), self._space)
            self.planning_s.append((time.perf_counter() - begin, time.process_time() - begin_cpu))
            if step.wait_s == 0 and step.bandwidth_bps <= self._straight_bps:
                insort(self._searched_bps, step.bandwidth_bps)
        return self._plans[key]

    def _between(self, step: Step) -> pt.Plan | None:
        """The plan that is the best at the next bandwidths below and above, if it is one."""
        at = bisect(self._searched_bps, step.bandwidth_bps)
        if step.wait_s > 0 or not 0 < at < len(self._searched_bps):
            return None
        below, above = (self._plans[self._searched_bps[k], 0.0] for k in (at - 1, at))
        return below if below == above else None

    def explore(self, steps: Sequence[Step]) -> None:
        """Plan for steps by halving their bandwidths, which takes few searches."""
        ordered = sorted((step for step in steps if step.wait_s == 0), key=lambda step: step.bandwidth_bps)
        ends = [(0, len(ordered) - 1)]
        while ends:
            low, high = ends.pop()
            if self.plan(ordered[low]) != self.plan(ordered[high]) and high - low > 1:
                middle = (low + high) // 2
                ends += [(low, middle), (middle, high)]

    def alone(self, step: Step, tier: int) -> pt.Plan:
        """The best plan at a step that uses one tier only."""
        return self._best(self.model(step), replace(self._space, tiers=(tier,), block_tiers={}))

    def _best(self, model: pt.PerformanceModel, space: pt.SearchSpace) -> pt.Plan:
        problem = pt.Problem(minimize=pt.latency, subject_to=(pt.accuracy >= self._bound,), space=space)
        return pt.solve(problem, model, baselines=False, new_samples=False).plan

    def outcomes(self, plan: pt.Plan, step: Step) -> tuple[Floats, Floats]:
        """Shares and latencies in seconds [L] of the samples that leave at each partition."""
        key = (plan, step.bandwidth_bps, step.wait_s)
        if key not in self._outcomes:
            estimate = self.model(step).estimate(plan)
            self._outcomes[key] = (estimate.share, estimate.latency_s)
        return self._outcomes[key]

    def mean_s(self, plan: pt.Plan, step: Step) -> float:
        """Mean latency of samples that appear in a step."""
        share, latency_s = self.outcomes(plan, step)
        return float(share @ latency_s)

    def ride_s(self, plans: Sequence[pt.Plan], steps: Sequence[Step]) -> float:
        """Mean latency over the whole trace, of one plan for each step."""
        whole = sum(step.seconds for step in steps)
        return sum(step.seconds * self.mean_s(p, step) for p, step in zip(plans, steps, strict=True)) / whole


def replay(one: Replay, trace: BandwidthTrace) -> dict[str, Any]:
    """Return what each contender does over a trace, as JSON values."""
    steps = steps_of(trace)
    seconds = np.array([step.seconds for step in steps])
    awake = np.array([step.seconds if step.wait_s == 0 else 0.0 for step in steps])
    rates = np.array([step.bandwidth_bps for step in steps])
    mean = Step(0.0, trace.period_s, trace.mean_bps)
    harmonic = Step(0.0, trace.period_s, float(awake.sum() / (awake / rates).sum()))
    begun = len(one.planning_s)
    one.explore(steps)
    again = [one.plan(step) for step in steps]
    planning = one.planning_s[begun:]
    last = len(one.model(mean).topology.tiers) - 1
    kept = {
        "at the mean": one.plan(mean),
        "at first": one.plan(steps[0]),
        "edge alone": one.alone(mean, 0),
        "cloud alone": one.alone(mean, last),
    }
    allowed = dict.fromkeys([*again, one.plan(harmonic), *kept.values()])
    if one.keeps_raw:
        allowed.pop(kept["cloud alone"], None)
    kept["in hindsight"] = min(allowed, key=lambda plan: one.ride_s([plan] * len(steps), steps))
    courses = {name: [plan] * len(steps) for name, plan in kept.items()}
    courses |= {"again": again, "a step late": [again[0], *again[:-1]]}
    at_best = np.array([one.mean_s(plan, step) for plan, step in zip(again, steps, strict=True)])
    contenders = {}
    for name, plans in courses.items():
        pairs = [one.outcomes(plan, step) for plan, step in zip(plans, steps, strict=True)]
        means = np.array([float(share @ latency_s) for share, latency_s in pairs])
        weights = np.concatenate([s * share for s, (share, _) in zip(seconds, pairs, strict=True)])
        contenders[name] = {
            "mean_s": float(seconds @ means / seconds.sum()),
            "p95_s": float(quantile_s(weights, np.concatenate([latency_s for _, latency_s in pairs]), 0.95)),
            "best": float(seconds @ (means <= at_best * _SAME) / seconds.sum()) if plans[0] in allowed else None,
            "longer_than_step": float(seconds @ (means > seconds) / seconds.sum()),
            "switches": sum(a != b for a, b in pairwise(plans)),
            "plan": plans[0].describe([tier.name for tier in one.model(mean).topology.tiers]),
            "latency_s": means.tolist(),
        }
    used = {
        plan: float(seconds @ np.array([p == plan for p in again]) / seconds.sum()) for plan in dict.fromkeys(again)
    }
    return {
        "trace": trace.name,
        "seconds": trace.period_s,
        "mean_bps": trace.mean_bps,
        "outage": float(1 - awake.sum() / seconds.sum()),
        "times_s": [step.begin_s for step in steps],
        "bandwidths_bps": list(trace.bandwidths_bps),
        "contenders": contenders,
        "plans": {
            f"{plan.describe([tier.name for tier in one.model(mean).topology.tiers])} ({_codecs(plan)})": share
            for plan, share in used.items()
        },
        "planning_s": planning,
    }


def _codecs(plan: pt.Plan) -> str:
    return ", ".join(codec for codec in plan.codecs if codec is not None) or "nothing sent"


def _model(
    profile: str, topology: str | None, exits_per_tier: int, keep_input_on: str | None
) -> tuple[pt.PerformanceModel, pt.SearchSpace]:
    """The model of a profile's file on a topology's file, or of the authors' folder; and the space of plans."""
    if not Path(profile).is_dir():
        places = pt.load_topology(topology or "")
        model = pt.PerformanceModel(pt.load_profile(profile), places)
        space = pt.SearchSpace(exits_per_tier=exits_per_tier)
    else:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "paper"))
        from authors import read_profile, read_thresholds, read_topology

        folder = Path(profile)
        places = read_topology(folder).with_tier(0, slowdown=AUTHORS_SLOWER)
        model = pt.PerformanceModel(read_profile(folder, "ResNet110", places), places, estimator="marginal")
        space = pt.SearchSpace(exits_per_tier=exits_per_tier, thresholds=read_thresholds(folder))
    if keep_input_on is not None:
        space = replace(space, block_tiers={1: (places.tier_index(keep_input_on),)})
    return model, space


# -- measuring ---------------------------------------------------------------------------------------


def spread_steps(trace: BandwidthTrace, count: int) -> list[Step]:
    """Return steps without outage with bandwidths spread over the trace: the middle of equal parts of its time."""
    steps = sorted((step for step in steps_of(trace) if step.wait_s == 0), key=lambda step: step.bandwidth_bps)
    until = np.cumsum([step.seconds for step in steps])
    return [steps[int(np.searchsorted(until, until[-1] * (k + 0.5) / count))] for k in range(count)]


def measure_steps(
    one: Replay, trace: BandwidthTrace, network: Path, data: str | None, *, count: int, samples: int, turns: int
) -> list[dict[str, Any]]:
    """Run the plan for the mean bandwidth and the best one, in turns, on links as they are at some steps."""
    from portend.data.dataset import draw as drawn
    from portend.data.dataset import make_splits
    from portend.data.decoding import decoder_from_dict
    from portend.data.sources import load_dataset
    from portend.networks.networkfile import read_provenance
    from portend.profiling.turns import run_in_turns
    from portend.testbed.deployment import Deployment

    made = read_provenance(network)
    dataset = load_dataset(data or made["dataset"])
    if "decoder" in made:
        dataset = replace(dataset, decoder=decoder_from_dict(json.loads(made["decoder"])))
    seed = int(made["split_seed"])
    chosen = drawn(make_splits(dataset, seed=seed).test, samples, seed=seed)
    kept = one.plan(Step(0.0, trace.period_s, trace.mean_bps))
    rows = []
    for step in spread_steps(trace, count):
        model = one.model(step)
        profile, places = model.profile, model.topology
        plans = {"at the mean": kept, "again": one.plan(step)}
        with Deployment(
            places,
            network,
            dataset.decoder,
            executions=[profile.devices[tier.device].execution for tier in places.tiers],
            criterion=profile.exits.criterion,
            emulation="namespaces",
            ranges=dict(enumerate(profile.ranges)),
        ) as deployment:
            deployment.load_samples([dataset.encoded[i] for i in chosen], dataset.labels[chosen])
            ran = run_in_turns(
                deployment, dict.fromkeys(plans.values(), samples), profile.num_blocks, turns=turns, seed=seed
            )
        then = pt.PerformanceModel(*ran.then(profile))
        for name, plan in plans.items():
            measured = ran.measurements[plan]
            rows.append({
                "bandwidth_bps": step.bandwidth_bps,
                "at_s": step.begin_s,
                "name": name,
                "plan": plan.describe([tier.name for tier in places.tiers]),
                "sent_as": _codecs(plan),
                "samples": len(measured),
                "predicted_s": one.mean_s(plan, step),
                "predicted_then_s": then.estimate(plan).mean_s,
                "as_they_left_s": float(measured.exit_rates() @ then.estimate(plan).latency_s),
                "measured_s": measured.mean_s,
                "accuracy": measured.accuracy,
                "speed_drift": ran.speed_drift(profile),
            })  # fmt: skip
    return rows


# -- showing -----------------------------------------------------------------------------------------


def _print_replays(found: Sequence[Mapping[str, Any]]) -> None:
    names = list(_LOOKS)
    print(f"| trace | Mbit/s | {' | '.join(names)} | switches | plans |\n|---|--:|{'--:|' * len(names)}--:|--:|")
    for one in found:
        of = one["contenders"]
        cells = [f"{1e3 * of[name]['mean_s']:.1f}, {1e3 * of[name]['p95_s']:.0f}" for name in names]
        print(
            f"| {one['trace']} | {one['mean_bps'] / 1e6:.2f} | {' | '.join(cells)} | {of['again']['switches']} "
            f"| {len(one['plans'])} |"
        )
    print(f"\n| share of time best | {' | '.join(names)} |\n|---|{'--:|' * len(names)}")
    for one in found:
        shares = [one["contenders"][name]["best"] for name in names]
        print(f"| {one['trace']} | {' | '.join('' if s is None else f'{100 * s:.0f} %' for s in shares)} |")
    wall, cpu = (1e3 * np.array(times) for times in zip(*(t for one in found for t in one["planning_s"]), strict=True))
    steps = sum(len(one["times_s"]) for one in found)
    print(
        f"\n{steps} steps, {wall.size} searches: processor time median {np.median(cpu):.0f} ms, largest "
        f"{cpu.max():.0f} ms; wall clock median {np.median(wall):.0f} ms, largest {wall.max():.0f} ms"
    )
    longest = max(one["contenders"][name]["longer_than_step"] for one in found for name in names)
    print(f"latency longer than the step: at most {100 * longest:.1f} % of a trace's time")
    used: dict[str, list[float]] = {}
    for one in found:
        for plan, share in one["plans"].items():
            used.setdefault(plan, []).append(share)
    for plan, some in sorted(used.items(), key=lambda item: -sum(item[1])):
        print(f"  {100 * sum(some) / len(found):5.1f} % of the time: {plan}")


def _print_measured(rows: Sequence[Mapping[str, Any]]) -> None:
    print("| Mbit/s | plan | predicted | at the speed then | measured | error |\n|--:|---|--:|--:|--:|--:|")
    for row in rows:
        error = row["as_they_left_s"] / row["measured_s"] - 1
        ms = [f"{1e3 * row[key]:.1f}" for key in ("predicted_s", "as_they_left_s", "measured_s")]
        name = f"{row['name']}: {row['plan']} ({row['sent_as']})"
        print(f"| {row['bandwidth_bps'] / 1e6:.2f} | {name} | {' | '.join(ms)} | {100 * error:+.1f} % |")
    drift = statistics.median(row["speed_drift"] for row in rows)
    print(f"\n{rows[0]['samples']} samples each; speed drift {100 * drift:+.1f} % (median)")


def draw(one: Mapping[str, Any]) -> Figure:
    """Bandwidth over time above, mean latency of the contenders below."""
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2.2))
    times = [*one["times_s"], one["seconds"]]
    above.stairs([bps / 1e6 for bps in one["bandwidths_bps"]], times, color=INK, linewidth=1.2, baseline=None)
    above.set_ylim(bottom=0)
    above.set_ylabel("Mbit/s", color=INK, fontsize=9)
    above.set_title(f"{one['trace']}: bandwidth of the first link", fontsize=9, color=INK, loc="left")
    for name, (color, dash, width) in _LOOKS.items():
        of = one["contenders"][name]
        below.stairs(
            [1e3 * seconds for seconds in of["latency_s"]], times, color=color, linestyle=dash, linewidth=width,
            baseline=None,
            label=f"{name}{'' if of['best'] is not None else ' (sends raw input)'}: {1e3 * of['mean_s']:.0f} ms",
        )  # fmt: skip
    below.set_ylabel("mean latency of a sample, ms", color=INK, fontsize=9)
    below.set_xlabel("s", color=INK, fontsize=9)
    below.set_yscale("log")
    low, high = (axis(below.get_ylim()) for axis in (min, max))
    below.set_yticks([tick for power in (1, 10, 100, 1000) for tick in (power, 2 * power, 5 * power) if tick >= low])
    below.set_ylim(low, high)
    below.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    below.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    figure.legend(*below.get_legend_handles_labels(), frameon=False, fontsize=8, ncols=4, loc="outside lower center")
    for axes in (above, below):
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=QUIET, labelsize=8)
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("replay", "measure"):
        command = commands.add_parser(name)
        command.add_argument("profile")
        command.add_argument("traces" if name == "replay" else "trace", nargs="+" if name == "replay" else None)
        command.add_argument("--topology")
        command.add_argument("--drop", type=float, default=0.01, help="accuracy given up, as a share (default 0.01)")
        command.add_argument("--exits-per-tier", type=int, default=1)
        command.add_argument("--keep-input-on", metavar="TIER", help="tier that raw input must not leave")
        command.add_argument("--json", type=Path, required=True)
        if name == "measure":
            command.add_argument("--network", type=Path, required=True)
            command.add_argument("--data", help="as of `portend run`; default: what the network was trained on")
            command.add_argument("--steps", type=int, default=4)
            command.add_argument("--samples", type=int, default=60)
            command.add_argument("--turns", type=int, default=4)
    for name in ("table", "measured"):
        commands.add_parser(name).add_argument("source", type=Path)
    drawing = commands.add_parser("figure", help="draw one trace; the same numbers give the same bytes")
    drawing.add_argument("source", type=Path)
    drawing.add_argument("trace")
    drawing.add_argument("out", type=Path, help="SVG, PNG or PDF")
    asked = parser.parse_args(arguments)
    if asked.command in ("replay", "measure"):
        model, space = _model(asked.profile, asked.topology, asked.exits_per_tier, asked.keep_input_on)
        bound = model.profile.full_accuracy - asked.drop
        about = {"network": model.profile.backbone.name, "topology": model.topology.name, "accuracy": bound}
        one = Replay(model, bound, space)
        if asked.command == "replay":
            found = [replay(one, load_trace(path)) for path in asked.traces]
            write_json(about | {"keep_input_on": asked.keep_input_on, "replays": found}, asked.json)
            _print_replays(found)
            return
        trace = load_trace(asked.trace)
        rows = measure_steps(
            one, trace, asked.network, asked.data, count=asked.steps, samples=asked.samples, turns=asked.turns
        )
        write_json(about | {"trace": trace.name, "rows": rows}, asked.json)
        _print_measured(rows)
        return
    document = json.loads(asked.source.read_text(encoding="utf-8"))
    if asked.command == "table":
        _print_replays(document["replays"])
    elif asked.command == "measured":
        _print_measured(document["rows"])
    else:
        (chosen,) = (one for one in document["replays"] if one["trace"] == asked.trace)
        with mpl.rc_context({"svg.hashsalt": "portend", "svg.fonttype": "none"}), atomic_path(asked.out) as temporary:
            kind = asked.out.suffix.removeprefix(".")
            draw(chosen).savefig(temporary, format=kind, metadata={"Date": None} if kind == "svg" else {}, dpi=150)


if __name__ == "__main__":
    main()
