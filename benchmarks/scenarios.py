"""Two hypothetical scenarios (the paper's Fig. 9): predicted over a range, and measured at some of its points.

*bandwidth*: link 0 from slow to fast. *compute*: the middle tier from slow to fast, as multiples of its speed. The
contenders are each tier alone with the raw input and the whole network, the best split between edge and cloud, and the
best plan of all, at the same least accuracy. Where two of them are equally fast is found by bisection.

    python benchmarks/scenarios.py profiles/resnet110-cifar10.zip --network CHECKPOINT \
        --topology configs/topologies/paper.yaml --json runs/bench-scenarios.json
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np
from plans import Network, Running, Tell, available, compared, open_network, print_table, scores_of
from scipy.optimize import brentq

from portend.errors import SearchError
from portend.io.forms import load_topology
from portend.io.storage import load_profile, write_json
from portend.perfmodel.model import PerformanceModel
from portend.planner.problem import Problem, SearchSpace, Solution, accuracy, latency
from portend.planner.solve import solve
from portend.profiling.environment import describe_machine
from portend.progress import progress
from portend.testbed.emulation import EMULATIONS
from portend.values.exits import SampleExits
from portend.values.profile import Profile
from portend.values.topology import Topology

__all__ = ["BEST", "main", "measure", "ranges", "table"]

BEST: Final = "best of all"

_RAW: Final = ("float32",)


def contenders(topology: Topology) -> dict[str, SearchSpace]:
    """Return what competes, by name."""
    source, cloud = topology.source, len(topology.tiers) - 1
    alone = {
        f"{tier.name}-only": SearchSpace(
            thresholds=(0.0,), exits=(), truncation=False, max_partitions=1, tiers=(index,), codecs=_RAW
        )
        for index, tier in enumerate(topology.tiers)
    }
    split = SearchSpace(
        tiers=(source, cloud), min_partitions=2, max_partitions=2, tier_order="increasing", block_tiers={1: (source,)},
        codecs=_RAW, exits_per_tier=1,
    )  # fmt: skip
    return alone | {"edge and cloud": split, BEST: SearchSpace(exits_per_tier=2)}


def placed(scenario: str, topology: Topology, value: float) -> Topology:
    """Return the topology at a point: ``value`` in bit/s of link 0, or times the middle tier's speed."""
    if scenario == "bandwidth":
        return topology.with_link(0, bandwidth_bps=value)
    return topology.with_tier(1, slowdown=topology.tiers[1].slowdown / value)


def best(profile: Profile, topology: Topology, space: SearchSpace, bound: float) -> Solution | None:
    """Return the fastest plan of a space that reaches ``bound``; None if none does."""
    try:
        problem = Problem(minimize=latency, subject_to=(accuracy >= bound,), space=space)
        found = solve(problem, PerformanceModel(profile, topology), baselines=False, new_samples=False)
    except SearchError:
        return None
    return None if found.status == "infeasible" else found


def measure(
    network: Network,
    topology: Topology,
    scenario: str,
    values: Iterable[float],
    points: Iterable[float],
    give_up: float,
    running: Running,
    scores: SampleExits,
    tell: Tell,
) -> dict[str, Any]:
    """Return curves over ``values``, crossings of their neighbors, and what ran at ``points``, as JSON values."""
    profile = network.profile
    bound = profile.full_accuracy - give_up
    spaces = contenders(topology)
    values = list(values)

    def mean_ms(name: str, value: float) -> float | None:
        found = best(profile, placed(scenario, topology, value), spaces[name], bound)
        return None if found is None else 1e3 * found.estimate.mean_s

    curves = {}
    for number, name in enumerate(spaces):
        tell(f"predict {scenario}", number, len(spaces))
        curves[name] = [mean_ms(name, value) for value in values]
    tell(f"predict {scenario}", len(spaces), len(spaces))
    crossings = []
    for one, two in combinations([name for name in spaces if name != BEST], 2):
        difference = np.subtract(*(np.array(curves[name], dtype=float) for name in (one, two)))
        for step in np.flatnonzero(difference[:-1] * difference[1:] < 0):

            def gap(value: float, one: str = one, two: str = two) -> float:
                return (mean_ms(one, value) or 0.0) - (mean_ms(two, value) or 0.0)

            root = float(brentq(gap, values[step], values[step + 1], rtol=1e-9))
            crossings.append({"contenders": [one, two], "value": root, "mean_ms": mean_ms(one, root)})
    ran = []
    for value in points:
        there = placed(scenario, topology, value)
        plans = {name: best(profile, there, space, bound) for name, space in spaces.items()}
        known = {name: found.plan for name, found in plans.items() if found is not None}
        ran.append({"value": value, **compared(network, there, known, running, scores, tell)})
    return {
        "machine": describe_machine(),
        "scenario": scenario,
        "bound": bound,
        "values": values,
        "curves": curves,
        "crossings": crossings,
        "cloud": topology.tiers[1].slowdown / topology.tiers[-1].slowdown,
        "disturbed": next((point["disturbed"] for point in ran if point["disturbed"]), ""),
        "points": ran,
    }


def main(arguments: list[str] | None = None) -> None:
    """Print crossings and measured points, and write everything as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", type=Path)
    parser.add_argument("--network", type=Path, required=True)
    parser.add_argument("--data", default="")
    parser.add_argument("--topology", type=Path, required=True)
    parser.add_argument("--scenario", choices=("bandwidth", "compute"), default="bandwidth")
    parser.add_argument("--give-up", type=float, default=1, metavar="POINTS")
    parser.add_argument("--points", type=int, choices=range(4), default=3, help="so many of them are measured")
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--emulation", choices=EMULATIONS, default="namespaces")
    parser.add_argument("--json", type=Path, metavar="OUT")
    chosen = parser.parse_args(arguments)
    topology = load_topology(chosen.topology)
    network = open_network(chosen.network, load_profile(chosen.profile), chosen.data)
    running = Running(
        samples=chosen.samples, plain_samples=chosen.samples, turns=chosen.turns, emulation=available(chosen.emulation)
    )
    values, points = ranges(chosen.scenario, topology)
    keep = Path("runs") / f"scores-{network.profile.backbone.weights_sha256[:12]}.zip"
    with progress() as tell:
        scores = scores_of(network, keep, tell)
        found = measure(
            network, topology, chosen.scenario, values, points[: chosen.points], chosen.give_up / 100, running, scores,
            tell,
        )  # fmt: skip
    if chosen.json:
        write_json(found, chosen.json)
    for crossing in found["crossings"]:
        print(f"{' = '.join(crossing['contenders'])} at {crossing['value']:.4g}: {crossing['mean_ms']:.1f} ms")
    print_table(table(found))


def ranges(scenario: str, topology: Topology) -> tuple[list[float], list[float]]:
    """Return the values of the curves, and the three that are measured.

    Bandwidths from 1 to 30 Mbit/s; speeds of the middle tier from a twentieth to as fast as this machine.
    """
    if scenario == "bandwidth":
        values = np.geomspace(1e6, 30e6, 21).tolist()
        return values, [values[0], values[10], values[20]]
    most = topology.tiers[1].slowdown
    return np.geomspace(0.05, most, 21).tolist(), [0.25, 1.0, min(4.0, most)]


def table(found: Mapping[str, Any]) -> list[list[str]]:
    """Return head and rows of the measured points; ± is a 95 % interval."""
    rows = [["at", "contender", "plan", "planned, ms", "predicted, ms", "measured, ms", "error, %"]]
    for point in found["points"]:
        value = point["value"]
        at = f"{value / 1e6:.3g} Mbit/s" if found["scenario"] == "bandwidth" else f"{value:.3g} times"
        for name, plan in point["plans"].items():
            measured = plan["latency_ms"]["measured"]
            rows.append(
                [
                    at, name, plan["described"], f"{plan['planned']['mean']:.1f}",
                    f"{plan['latency_ms']['predicted']['mean']:.1f}",
                    f"{measured['mean']:.1f} ± {1.96 * (measured['standard_error'] or 0):.1f}",
                    f"{100 * plan['latency_error']:+.1f}".replace("-", "−"),
                ]
            )  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
