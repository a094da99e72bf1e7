"""What faster executors and smaller messages do to the best plan: the optimum for each of them, predicted.

Every device of every profile is put on all tiers of the topology, which keep their slowdowns, and the fastest plan is
searched with more and more codecs, at several accuracies below that of the first profile's whole network. Ratios are to
the first device with float32 alone, at the same accuracy.

    portend profile CHECKPOINT --device torch --executor torch --codecs all --out torch.zip
    portend profile CHECKPOINT --device onnxruntime --executor onnxruntime --device-only --codecs all --out ort.zip
    portend merge torch.zip ort.zip --out both.zip
    python benchmarks/optimum.py both.zip --topology configs/topologies/three_tier.yaml --json runs/bench-optimum.json
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from portend.io.forms import load_topology
from portend.io.storage import load_profile, write_json
from portend.perfmodel.model import PerformanceModel
from portend.planner.problem import Problem, SearchSpace, accuracy, latency
from portend.planner.solve import solve
from portend.values.profile import Profile
from portend.values.topology import Topology

__all__ = ["Row", "main", "rows_of"]

CODECS: Final = {
    "float32": ("float32",),
    "+ encoded": ("float32", "encoded"),
    "+ float16, int8": ("float32", "encoded", "float16", "int8", "int8-channel"),
    "+ lz4, zstd": None,
}
DROPS: Final = (0.0, 0.01, 0.02)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The fastest plan of one device with some codecs, at most ``drop`` (0–1) below the whole network's accuracy."""

    device: str
    executor: str
    codecs: str
    drop: float
    accuracy: float
    mean_s: float
    plan: str
    sent_as: tuple[str, ...]


def rows_of(profile: Profile, topology: Topology, full_accuracy: float, exits_per_tier: int) -> list[Row]:
    """Return a row for each device, set of codecs and drop for which there is a plan."""
    rows = []
    for name, device in profile.devices.items():
        tiers = tuple(replace(tier, device=name) for tier in topology.tiers)
        model = PerformanceModel(profile, replace(topology, tiers=tiers))
        for label, codecs in CODECS.items():
            space = SearchSpace(exits_per_tier=exits_per_tier, codecs=codecs)
            for drop in DROPS:
                problem = Problem(minimize=latency, subject_to=(accuracy >= full_accuracy - drop,), space=space)
                found = solve(problem, model, baselines=False, new_samples=False)
                if found.status == "infeasible":
                    continue
                sent = tuple(codec for codec in found.plan.codecs if codec is not None)
                rows.append(
                    Row(
                        device=name, executor=str(device.execution), codecs=label, drop=drop,
                        accuracy=found.estimate.accuracy, mean_s=found.estimate.mean_s,
                        plan=found.plan.describe([tier.name for tier in tiers]), sent_as=sent,
                    )
                )  # fmt: skip
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Print a Markdown table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", type=Path, nargs="+")
    parser.add_argument("--topology", type=Path, required=True)
    parser.add_argument("--exits-per-tier", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="OUT")
    chosen = parser.parse_args(arguments)
    profiles = [load_profile(path) for path in chosen.profile]
    topology = load_topology(chosen.topology)
    full = profiles[0].full_accuracy
    rows = [row for profile in profiles for row in rows_of(profile, topology, full, chosen.exits_per_tier)]
    first = {row.drop: row.mean_s for row in reversed(rows) if row.codecs == "float32" and row.device == rows[0].device}
    print("| points given up | device | codecs | mean latency, ms | ratio | accuracy, % | plan | sent as |")
    print("|--:|---|---|--:|--:|--:|---|---|")
    for row in sorted(rows, key=lambda row: row.drop):
        ratio = f"{row.mean_s / first[row.drop]:.2f}" if row.drop in first else "–"
        print(
            f"| {100 * row.drop:g} | {row.device}: {row.executor} | {row.codecs} | {1e3 * row.mean_s:.1f} | {ratio} "
            f"| {100 * row.accuracy:.1f} | {row.plan} | {', '.join(row.sent_as) or '–'} |"
        )
    if chosen.json:
        write_json({"full_accuracy": full, "rows": [asdict(row) for row in rows]}, chosen.json)


if __name__ == "__main__":
    main()
