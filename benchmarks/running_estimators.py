"""Layer-wise, block-wise and partition-wise estimates against plans that run (the paper's Fig. 5, on the testbed).

First layers, blocks and partitions are timed in turns in this process, by eager PyTorch: what layers and blocks add up
to, as a share of the partition. Then different plans run on the testbed, by the same executor, and their partitions are
timed again in between. A plan's compute time is predicted from these partitions, and from the shares of them that
layers and blocks make up; exit rates are those that were measured, and what waking costs is the same for all three.

    python benchmarks/running_estimators.py profiles/resnet20-cifar10.zip --device torch \
        --network profiles/resnet20-cifar10.safetensors --topology configs/topologies/paper.yaml --json OUT
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from plans import Network, Running, Tell, available, open_network, print_table, run_plans

from portend.analysis.compare import fit
from portend.errors import MismatchError
from portend.io.forms import load_topology
from portend.io.storage import load_profile, write_json
from portend.networks.checkpoint import load_checkpoint
from portend.perfmodel.estimate import PARTS
from portend.perfmodel.model import PerformanceModel
from portend.planner.mix import mixed_plans
from portend.profiling.environment import describe_machine
from portend.profiling.estimators import compare_estimators
from portend.progress import progress
from portend.testbed.emulation import EMULATIONS
from portend.values.device_profile import DeviceProfile
from portend.values.profile import Profile
from portend.values.topology import Topology

__all__ = ["ESTIMATORS", "main", "measure", "on_device", "table"]

Floats = NDArray[np.float64]

ESTIMATORS: Final = ("layer-wise", "block-wise", "partition-wise")
_SAMPLES: Final = 11
_ALL: Final = 1_000_000


def measure(
    network: Network, topology: Topology, count: int, rounds: int, running: Running, tell: Tell
) -> dict[str, Any]:
    """Run ``count`` different plans, and return compute times in ms, measured and by estimator, as JSON values.

    Raises:
        MismatchError: a tier's device was not profiled with eager PyTorch, whose layers these are.
    """
    profile = network.profile
    others = sorted({t.device for t in topology.tiers if profile.devices[t.device].execution.executor != "torch"})
    if others:
        raise MismatchError(f"layers are timed with eager PyTorch, but {others} ran something else; profile with it")
    decode = network.dataset.decoder.decode
    samples = [decode(network.dataset.encoded[i]) for i in network.test[:_SAMPLES]]
    torch.set_num_threads(1)
    found = compare_estimators(
        load_checkpoint(network.file), samples, partitions=_ALL, rounds=rounds,
        on_progress=lambda *at: tell("time layers", *at),
    )  # fmt: skip
    shares = {
        name: _table(found.partitions, found.estimated_s[name] / found.estimated_s["partition-wise"])
        for name in ESTIMATORS
    }
    chosen = mixed_plans(PerformanceModel(profile, topology), count, seed=running.seed)
    plans = {f"{number}": pick.plan for number, pick in enumerate(chosen, start=1)}
    turns = run_plans(network, topology, plans, running, tell)
    then, places = turns.then(profile)
    rows: list[dict[str, Any]] = []
    for name, plan in plans.items():
        measured = turns.measurements[plan]
        row = {
            "plan": plan.describe([tier.name for tier in topology.tiers]),
            "samples": len(measured),
            "measured_ms": 1e3 * measured.parts_s()["compute"],
            "latency_ms": 1e3 * measured.mean_s,
        }
        for estimator in ESTIMATORS:
            model = PerformanceModel(_by_share(then, shares[estimator]), places, codec_tolerance=math.inf)
            parts = measured.exit_rates() @ model.estimate(plan).latency_parts_s
            row[estimator] = 1e3 * float(parts[PARTS.index("compute")])
            row[f"latency, {estimator}"] = 1e3 * float(parts.sum())
        rows.append({"name": name, **row})
    first = next(iter(turns.measurements.values()))
    return {
        "machine": describe_machine(),
        "network": profile.backbone.name,
        "links": first.provenance.get("links", ""),
        "disturbed": first.provenance.get("disturbed", ""),
        "speed_drift": turns.speed_drift(profile),
        "rows": rows,
        "errors": {name: errors(rows, name) for name in ESTIMATORS},
    }


def errors(rows: list[dict[str, Any]], estimator: str) -> dict[str, float | None]:
    """Return the estimator's errors of the compute time over the plans, and β and R² of the whole latency."""
    measured = np.array([row["measured_ms"] for row in rows])
    off = np.array([row[estimator] for row in rows]) - measured
    line = fit([row["latency_ms"] for row in rows], [row[f"latency, {estimator}"] for row in rows])
    return {
        "rmse_ms": float(np.sqrt(np.mean(off**2))),
        "bias": float((off / measured).mean()),
        "latency_beta": line.beta,
        "latency_r2": line.r2,
        "latency_mape": line.mape,
    }


def _table(pairs: NDArray[np.int64], values: Floats) -> Floats:
    size = int(pairs.max()) + 1
    table = np.ones((size, size))
    table[tuple(pairs.T)] = values
    return table


def _by_share(profile: Profile, share: Floats) -> Profile:
    """The profile whose devices compute every partition in so much of its time; first runs take as much more as before.

    Args:
        share: [N+1, N+1], by start and end.
    """

    def changed(device: DeviceProfile) -> DeviceProfile:
        less = device.compute_s * (share - 1)
        tables = {item.name: getattr(device, item.name) for item in fields(device)}
        of_partitions: dict[str, Any] = {
            name: table + less for name, table in tables.items() if isinstance(table, np.ndarray) and table.ndim > 2
        }
        return replace(device, **of_partitions)

    return replace(profile, devices={name: changed(device) for name, device in profile.devices.items()})


def main(arguments: list[str] | None = None) -> None:
    """Print each estimator's errors, and write everything as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", type=Path)
    parser.add_argument("--network", type=Path, required=True, help="a checkpoint")
    parser.add_argument("--data", default="", help="default: what the network was trained on")
    parser.add_argument("--topology", type=Path, required=True)
    parser.add_argument("--device", default="local", help="of the profile, for all tiers: one profiled with PyTorch")
    parser.add_argument("--plans", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20, help="layers are timed so often; the median counts")
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--emulation", choices=EMULATIONS, default="namespaces")
    parser.add_argument("--json", type=Path, metavar="OUT")
    chosen = parser.parse_args(arguments)
    topology = on_device(load_topology(chosen.topology), chosen.device)
    network = open_network(chosen.network, load_profile(chosen.profile), chosen.data)
    running = Running(
        samples=chosen.samples, plain_samples=chosen.samples, turns=chosen.turns, emulation=available(chosen.emulation)
    )
    with progress() as tell:
        found = measure(network, topology, chosen.plans, chosen.rounds, running, tell)
    if chosen.json:
        write_json(found, chosen.json)
    print_table(table(found))
    if found["disturbed"]:
        print(f"warning: {found['disturbed']}")


def on_device(topology: Topology, device: str) -> Topology:
    """Return the topology with all tiers on one device of the profile; slowdowns stay."""
    return replace(topology, tiers=tuple(replace(tier, device=device) for tier in topology.tiers))


def table(found: Mapping[str, Any]) -> list[list[str]]:
    """Return head and rows: each estimator's errors over the plans."""
    rows = [["estimator", "compute: RMSE, ms", "systematic, %", "latency: β", "R²", "MAPE, %"]]
    for name, one in found["errors"].items():
        rows.append(
            [
                name, f"{one['rmse_ms']:.2f}", f"{100 * one['bias']:+.1f}".replace("-", "−"),
                f"{one['latency_beta']:.3f}", f"{one['latency_r2']:.4f}", f"{100 * one['latency_mape']:.1f}",
            ]
        )  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
