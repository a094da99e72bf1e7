"""Accuracy within a latency, with and without fine-tuning for a plan (the paper's Fig. 8), from ``portend refine``.

Both sets of weights have their front: the most accurate plan within each mean latency, found on the profiling samples.
Its accuracy is that of the test split, which neither trained nor planned. Latencies are predicted: fine-tuning changes
how samples leave, not what the network costs.

    portend refine PROFILE --checkpoint CHECKPOINT --topology T.yaml --min-accuracy 0.87 --out runs/refined
    python benchmarks/fine_tuning.py runs/refined --checkpoint CHECKPOINT --topology T.yaml --json OUT
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from plans import Tell, open_network, print_table, scores_of

from portend.io.forms import load_topology
from portend.io.storage import load_profile, write_json
from portend.perfmodel.model import PerformanceModel
from portend.planner.problem import Problem, SearchSpace, accuracy, latency
from portend.planner.search import search
from portend.planner.solve import solve
from portend.progress import progress
from portend.values.plan import Plan
from portend.values.profile import Profile
from portend.values.topology import Topology

__all__ = ["main", "measure", "table"]

_BASELINES: Final = ("edge-only", "cloud-only", "Neurosurgeon")
_SHOWN: Final = 80
_SPACE: Final = SearchSpace(exits_per_tier=2)


def measure(folder: Path, checkpoint: Path, topology: Topology, data: str, tell: Tell) -> dict[str, Any]:
    """Return the rounds of a refinement, their fronts, and baselines, as JSON values; latencies in ms.

    Args:
        folder: what ``portend refine`` left; checkpoint: of the weights before.
    """
    refined = json.loads((folder / "refinement.json").read_text(encoding="utf-8"))
    rounds = []
    first: Plan | None = None
    for number, told in enumerate(refined["rounds"]):
        here = folder / f"round-{number}"
        weights = checkpoint if number == 0 else here / "training" / "checkpoint.safetensors"
        network = open_network(weights, load_profile(here / "profile.zip"), data)
        tested = replace(network.profile, exits=scores_of(network, here / "test.zip", tell))
        plan = Plan.from_dict(told["plan"])
        first = first or plan
        rounds.append(
            {
                "described": plan.describe([tier.name for tier in topology.tiers]),
                "first_plan": _point(first, network.profile, tested, topology),
                "plan": _point(plan, network.profile, tested, topology),
                "full_accuracy": {"profiling": network.profile.full_accuracy, "test": tested.full_accuracy},
                "front": _front(network.profile, tested, topology),
            }
        )
        if number == 0:
            solved = solve(Problem(minimize=latency, space=_SPACE), PerformanceModel(network.profile, topology))
            baselines = {
                name: _point(solved.baselines[name].plan, network.profile, tested, topology)
                for name in _BASELINES
                if name in solved.baselines
            }
    return {
        "network": network.profile.backbone.name,
        "topology": topology.name,
        "problem": refined["problem"],
        "test_samples": int(network.test.size),
        "rounds": rounds,
        "baselines": baselines,
    }


def _front(profile: Profile, tested: Profile, topology: Topology) -> list[dict[str, float]]:
    """The non-dominated plans by the profiling samples, at most ``_SHOWN``, evenly along their order."""
    problem = Problem(minimize=latency, maximize=accuracy, space=_SPACE)
    front = search(problem, PerformanceModel(profile, topology)).front
    kept = np.unique(np.linspace(0, len(front) - 1, min(_SHOWN, len(front))).round().astype(int))
    return [_point(front[i].plan, profile, tested, topology) for i in kept]


def _point(plan: Plan, profile: Profile, tested: Profile, topology: Topology) -> dict[str, float]:
    here, there = (PerformanceModel(one, topology, codec_tolerance=math.inf) for one in (profile, tested))
    plan = plan if plan.codecs else here.complete(plan)
    return {
        "mean_ms": 1e3 * here.estimate(plan).mean_s,
        "profiling": here.estimate(plan).accuracy,
        "test": there.estimate(plan).accuracy,
        "test_mean_ms": 1e3 * there.estimate(plan).mean_s,
    }


def within(front: Sequence[Mapping[str, float]], bound_ms: float) -> Mapping[str, float] | None:
    """The front's plan within a mean latency, None if there is none."""
    able = [point for point in front if point["mean_ms"] <= bound_ms * (1 + 1e-9)]
    return max(able, key=lambda point: point["profiling"], default=None)


def table(found: Mapping[str, Any]) -> list[list[str]]:
    """Return head and rows: accuracies within some latencies, as trained and tuned in the last round."""
    before, after = found["rounds"][0]["front"], found["rounds"][-1]["front"]
    rows = [["within, ms", "as trained, %: profiling", "test", "tuned, %: profiling", "test", "gain on test, points"]]
    slowest = max(before[-1]["mean_ms"], after[-1]["mean_ms"])
    quickest = max(before[0]["mean_ms"], after[0]["mean_ms"])
    for bound in np.linspace(quickest, slowest, 6):
        one, two = within(before, float(bound)), within(after, float(bound))
        if one is None or two is None:
            continue
        cells = [f"{100 * point[name]:.1f}" for point in (one, two) for name in ("profiling", "test")]
        gain = f"{100 * (two['test'] - one['test']):+.1f}".replace("-", "−")
        rows.append([f"{bound:.1f}", *cells, gain])
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Print a Markdown table, and write everything as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what portend refine left")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the weights before")
    parser.add_argument("--data", default="", help="default: what the network was trained on")
    parser.add_argument("--topology", type=Path, required=True)
    parser.add_argument("--json", type=Path, metavar="OUT")
    chosen = parser.parse_args(arguments)
    with progress() as tell:
        found = measure(chosen.folder, chosen.checkpoint, load_topology(chosen.topology), chosen.data, tell)
    if chosen.json:
        write_json(found, chosen.json)
    for number, one in enumerate(found["rounds"]):
        at = one["first_plan"]
        print(
            f"round {number}: the first plan takes {at['mean_ms']:.1f} ms, "
            f"{100 * at['profiling']:.1f} % (profiling), {100 * at['test']:.1f} % (test)"
        )
    print_table(table(found))


if __name__ == "__main__":
    main()
