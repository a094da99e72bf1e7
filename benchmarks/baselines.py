"""What the planner gains over the usual deployments, measured (the paper's Fig. 6 and 7, Table III).

Each planner gets the same target, the whole network's accuracy on the profiling samples less so many points, and gives
its fastest plan. All plans then run on the testbed in turns, over the same test samples. Fixed deployments are the same
at every target. Accuracies are compared as measured: over the whole test split.

    python benchmarks/baselines.py profiles/resnet20-cifar10.zip --network profiles/resnet20-cifar10.safetensors \
        --topology configs/topologies/paper.yaml --json runs/bench-baselines.json
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from plans import Network, Running, Tell, available, compared, open_network, print_table, scores_of, speedup

from portend.io.forms import load_topology
from portend.io.storage import load_profile, write_json
from portend.perfmodel.model import PerformanceModel
from portend.planner.problem import Problem, SearchSpace, accuracy, latency
from portend.planner.solve import solve
from portend.profiling.environment import describe_machine
from portend.progress import progress
from portend.testbed.emulation import EMULATIONS
from portend.units import format_bandwidth, parse
from portend.values.exits import SampleExits
from portend.values.topology import Topology

__all__ = ["PLANNERS", "main", "measure", "plans_table", "table"]

PLANNERS: Final = (
    *("edge-only", "base-only", "cloud-only", "cloud-only encoded", "Neurosurgeon", "best truncated tier"),
    *("the paper", "Portend"),
)
"""Baselines of ``planner/baselines.py``, and the planner itself."""

_SPACE: Final = SearchSpace(exits_per_tier=2)
"""Of Portend's plans; the thresholds are the paper's."""


def measure(
    network: Network,
    topology: Topology,
    give_up: Iterable[float],
    running: Running,
    scores: SampleExits,
    tell: Tell,
) -> dict[str, Any]:
    """Plan for every target, run every plan once, and return targets and plans as JSON values.

    Args:
        give_up: shares of accuracy below the whole network's; scores: of the whole test split.
    """
    model = PerformanceModel(network.profile, topology)
    full = network.profile.full_accuracy
    names: dict[Any, str] = {}
    targets = []
    for drop in give_up:
        problem = Problem(minimize=latency, subject_to=(accuracy >= full - drop,), space=_SPACE)
        found = solve(problem, model)
        answers = {**found.baselines, "Portend": found}
        rows = {}
        for planner in PLANNERS:
            if planner in answers:
                answer = answers[planner]
                name = names.setdefault(answer.plan, f"{planner}, −{100 * drop:g}" if names else planner)
                rows[planner] = {"plan": name, "met": answer.status != "infeasible"}
        targets.append({"give_up": drop, "bound": full - drop, "planners": rows})
    ran = compared(network, topology, {name: plan for plan, name in names.items()}, running, scores, tell)
    return {"machine": describe_machine(), "bandwidth_bps": topology.links[0].bandwidth_bps, "targets": targets, **ran}


def table(found: Mapping[str, Any]) -> list[list[str]]:
    """Return head and rows: planner by planner, target by target; ± and brackets are 95 % intervals."""
    rows = [
        [
            *("given up", "planner", "plan", "mean, ms: planned", "predicted", "measured", "p95, ms: predicted"),
            *("measured", "speed-up: predicted", "measured", "accuracy, %: profiling", "test, as measured"),
        ]
    ]
    for target in found["targets"]:
        base = found["plans"][target["planners"]["edge-only"]["plan"]]
        for planner, one in target["planners"].items():
            plan = found["plans"][one["plan"]]
            predicted, measured = plan["latency_ms"]["predicted"], plan["latency_ms"]["measured"]
            times, low, high = speedup(base, plan)
            rows.append(
                [
                    f"{100 * target['give_up']:g}",
                    planner,
                    plan["described"],
                    f"{plan['planned']['mean']:.1f}",
                    f"{predicted['mean']:.1f}",
                    f"{measured['mean']:.1f} ± {1.96 * (measured['standard_error'] or 0):.1f}",
                    f"{predicted['p95']:.1f}",
                    f"{measured['p95']:.1f}",
                    f"{base['latency_ms']['predicted']['mean'] / predicted['mean']:.2f}",
                    "1" if planner == "edge-only" else f"{times:.2f} ({low:.2f}–{high:.2f})",
                    f"{100 * plan['accuracy']['predicted']:.1f}" + ("" if one["met"] else " (misses the target)"),
                    f"{100 * plan['test_accuracy']:.1f}",
                ]
            )
    return rows


def plans_table(found: Mapping[str, Any]) -> list[list[str]]:
    """Return head and rows: Portend's plan for every target, with its exit rates (the paper's Table III)."""
    rows = [
        ["given up, points", "tiers [blocks], thresholds", "exit rates, %: predicted", "measured", "all test samples"]
    ]
    for target in found["targets"]:
        plan = found["plans"][target["planners"]["Portend"]["plan"]]
        rates = plan["exit_rates"]
        rows.append(
            [
                f"{100 * target['give_up']:g}",
                plan["described"],
                *(_rates(each) for each in (rates["predicted"], rates["measured"], plan["test_exit_rates"])),
            ]
        )
    return rows


def _rates(rates: Iterable[float]) -> str:
    return " / ".join(f"{100 * rate:.1f}" for rate in rates)


def main(arguments: list[str] | None = None) -> None:
    """Print a Markdown table, and write everything as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", type=Path)
    parser.add_argument("--network", type=Path, required=True)
    parser.add_argument("--data", default="", help="default: what the network was trained on")
    parser.add_argument("--topology", type=Path, required=True)
    parser.add_argument("--bandwidth", help="of link 0, instead of the topology's, such as '30 Mbit/s'")
    parser.add_argument("--give-up", type=float, nargs="+", default=[0, 1, 2], metavar="POINTS")
    parser.add_argument("--samples", type=int, default=Running().samples)
    parser.add_argument("--plain-samples", type=int, default=Running().plain_samples)
    parser.add_argument("--turns", type=int, default=Running().turns)
    parser.add_argument("--emulation", choices=EMULATIONS, default="namespaces")
    parser.add_argument("--json", type=Path, metavar="OUT")
    chosen = parser.parse_args(arguments)
    topology = load_topology(chosen.topology)
    if chosen.bandwidth:
        topology = topology.with_link(0, bandwidth_bps=parse(chosen.bandwidth, "bandwidth"))
    network = open_network(chosen.network, load_profile(chosen.profile), chosen.data)
    running = Running(
        samples=chosen.samples, plain_samples=chosen.plain_samples, turns=chosen.turns,
        emulation=available(chosen.emulation),
    )  # fmt: skip
    keep = Path("runs") / f"scores-{network.profile.backbone.weights_sha256[:12]}.zip"
    with progress() as tell:
        scores = scores_of(network, keep, tell)
        found = measure(network, topology, [points / 100 for points in chosen.give_up], running, scores, tell)
    if chosen.json:
        write_json(found, chosen.json)
    print(f"{found['network']}, link 0 at {format_bandwidth(found['bandwidth_bps'])}, links {found['links']}")
    print_table(table(found))
    print_table(plans_table(found))
    agreeing = sum(plan["as_replayed"] for plan in found["plans"].values())
    ran = sum(plan["test_samples"] for plan in found["plans"].values())
    print(f"\n{agreeing} of {ran} answers are those of the replay; speed drift {100 * found['speed_drift']:+.1f} %")
    if found["disturbed"]:
        print(f"warning: {found['disturbed']}")


if __name__ == "__main__":
    main()
