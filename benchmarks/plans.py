"""Named plans predicted, run in turns on the testbed, and held against each other: what the comparisons share."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from portend.analysis.compare import Comparison
from portend.data.dataset import Dataset, draw, make_splits
from portend.data.decoding import decoder_from_dict
from portend.data.sources import code_in, load_dataset
from portend.errors import ConfigError, MismatchError
from portend.io.storage import load_profile, save
from portend.networks.evaluators import load_evaluator
from portend.networks.networkfile import read_provenance, read_spec
from portend.perfmodel.model import PerformanceModel
from portend.profiling.network import profile_exits
from portend.profiling.turns import Turns, run_in_turns
from portend.testbed.deployment import Deployment
from portend.testbed.emulation.namespaces import unavailable
from portend.values.exits import SampleExits
from portend.values.measurement import Measurement
from portend.values.plan import Plan, takes_exit
from portend.values.profile import Profile
from portend.values.topology import Topology

__all__ = [
    "Network",
    "Running",
    "available",
    "compared",
    "open_network",
    "print_table",
    "run_plans",
    "scores_of",
    "speedup",
]

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Network:
    """A network's file, its profile, and its samples; ``test``: int64 [n], indices of its test split in ``dataset``."""

    file: Path
    profile: Profile
    dataset: Dataset
    test: NDArray[np.int64]


def open_network(file: Path, profile: Profile, data: str = "") -> Network:
    """Return a network with the data that it was trained on, or with ``data``, and its own test split.

    Raises:
        MismatchError: profile and file are of different weights. ConfigError: the file does not say what it was trained
            on, or names code. DataError: there are no such data here.
    """
    if read_spec(file).weights_sha256 != profile.backbone.weights_sha256:
        raise MismatchError(f"the profile of {profile.backbone.name} is of other weights than those in {file}")
    provenance = read_provenance(file)
    name = data or provenance.get("dataset", "")
    if not name or (not data and code_in(name)):
        raise ConfigError(f"{file} was trained on {name or 'data that it does not name'}; give --data")
    dataset = load_dataset(name)
    if "decoder" in provenance:
        dataset = replace(dataset, decoder=decoder_from_dict(json.loads(provenance["decoder"])))
    splits = make_splits(dataset, seed=int(provenance.get("split_seed", 0)))
    return Network(file=file, profile=profile, dataset=dataset, test=splits.test)


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """How plans are run.

    Attributes:
        samples: of the test split, for plans with early exits; plain_samples: the first of them, for plans without,
            whose samples all take the same way.
        turns, repeats, gap_s, seed: as in ``run_in_turns``. emulation: of the links.
    """

    samples: int = 200
    plain_samples: int = 80
    turns: int = 8
    repeats: int = 3
    gap_s: float = 0.05
    seed: int = 0
    emulation: str = "namespaces"


def available(emulation: str) -> str:
    """Return the emulation, or the relay with a word on it where namespaces cannot be had."""
    if emulation == "namespaces" and (reason := unavailable()):
        print(f"note: {reason}; the relay emulates the links instead")
        return "relay"
    return emulation


def run_plans(network: Network, topology: Topology, plans: Mapping[str, Plan], running: Running, tell: Tell) -> Turns:
    """Run each different plan over the same test samples, a share of them in each turn."""
    profile = network.profile
    chosen = draw(network.test, running.samples, seed=running.seed)
    counts = {
        plan: min(len(chosen), running.samples if any(plan.thresholds) else running.plain_samples)
        for plan in plans.values()
    }
    executions = [profile.devices[tier.device].execution for tier in topology.tiers]
    with Deployment(
        topology, network.file, network.dataset.decoder, executions=executions, criterion=profile.exits.criterion,
        emulation=running.emulation, ranges=dict(enumerate(profile.ranges)),
    ) as deployment:  # fmt: skip
        deployment.load_samples([network.dataset.encoded[i] for i in chosen], network.dataset.labels[chosen])
        return run_in_turns(
            deployment, counts, profile.num_blocks, turns=running.turns, repeats=running.repeats, gap_s=running.gap_s,
            seed=running.seed, on_progress=lambda *at: tell(f"run on {topology.name}", *at),
        )  # fmt: skip


def compared(
    network: Network, topology: Topology, plans: Mapping[str, Plan], running: Running, scores: SampleExits, tell: Tell
) -> dict[str, Any]:
    """Run the plans, and return as JSON values what was predicted and measured for each, latencies in ms.

    ``predicted`` is for the speed that the tiers had meanwhile (``profiling.turns``), ``planned`` by the profile alone.
    ``test_accuracy`` is the plan's over the whole test split, replayed on the ``scores`` [n, N] of its samples;
    ``as_replayed`` says of how many samples that ran exit and answer are those of the replay.
    """
    turns = run_plans(network, topology, plans, running, tell)
    profile_then, topology_then = turns.then(network.profile)
    then = PerformanceModel(profile_then, topology_then, codec_tolerance=math.inf)
    before = PerformanceModel(network.profile, topology, codec_tolerance=math.inf)
    tested = PerformanceModel(replace(network.profile, exits=scores), topology, codec_tolerance=math.inf)
    order = {int(index): row for row, index in enumerate(network.test)}
    ran = np.array([order[int(index)] for index in draw(network.test, running.samples, seed=running.seed)])
    found = {}
    for name, plan in plans.items():
        measured = turns.measurements[plan]
        case = Comparison(name=name, estimate=then.estimate(plan), measurement=measured)
        planned = before.estimate(plan)
        found[name] = case.to_dict() | {
            "described": plan.describe([tier.name for tier in topology.tiers]),
            "planned": {
                "mean": 1e3 * planned.mean_s,
                "p50": 1e3 * planned.quantile_s(0.5),
                "p95": 1e3 * planned.quantile_s(0.95),
            },
            "steps_ms": [
                [1e3 * float(seconds), float(share)]
                for seconds, share in zip(case.estimate.latency_s, case.estimate.share, strict=True)
            ],
            "measured_ms": np.sort(1e3 * measured.latency_s).round(4).tolist(),
            "test_accuracy": tested.estimate(plan).accuracy,
            "test_exit_rates": tested.estimate(plan).share.tolist(),
            "as_replayed": as_replayed(plan, measured, scores, ran),
        }
    first = next(iter(turns.measurements.values()))
    return {
        "network": network.profile.backbone.name,
        "topology": topology.name,
        "links": first.provenance.get("links", ""),
        "disturbed": first.provenance.get("disturbed", ""),
        "finished": first.provenance.get("finished", ""),
        "speed_drift": turns.speed_drift(network.profile),
        "test_samples": int(network.test.size),
        "full_accuracy": {
            "profiling": network.profile.full_accuracy,
            "test": float(scores.correct[:, -1].mean()),
        },
        "plans": found,
    }


def as_replayed(plan: Plan, measured: Measurement, scores: SampleExits, rows: NDArray[np.int64]) -> int:
    """Count the samples that left where their scores say, and as right or wrong; ``rows``: theirs in ``scores``."""
    ends = np.array(plan.cuts) - 1
    leaves = np.ones((len(scores.correct), len(plan)), dtype=bool)
    for k, threshold in enumerate(plan.thresholds):
        leaves[:, k] = takes_exit(scores.score[:, ends[k]], threshold)
    at = leaves.argmax(axis=1)
    right = scores.correct[np.arange(len(at)), ends[at]]
    mine = rows[measured.sample]
    return int(((at[mine] == measured.exit_index) & (right[mine] == measured.correct)).sum())


def scores_of(network: Network, keep: Path, tell: Tell) -> SampleExits:
    """Return every branch's scores of the whole test split, from the file ``keep`` where they are there already."""
    if keep.exists():
        kept = load_profile(keep)
        same = kept.backbone.weights_sha256 == network.profile.backbone.weights_sha256
        if same and isinstance(kept.exits, SampleExits) and kept.exits.samples == network.test.size:
            return kept.exits.by(network.profile.exits.criterion)
    evaluator = load_evaluator(network.file)
    exits = profile_exits(evaluator, network.dataset, network.test, on_progress=lambda *at: tell("score", *at))
    save(replace(network.profile, exits=exits), keep)
    return exits.by(network.profile.exits.criterion)


_Z: Final = 1.96  # 95 %


def speedup(base: Mapping[str, Any], plan: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return how many times as fast as ``base`` a plan ran, and the ends of its 95 % interval (delta method)."""
    one, two = (row["latency_ms"]["measured"] for row in (base, plan))
    ratio = one["mean"] / two["mean"]
    if base["plan"] == plan["plan"]:
        return ratio, ratio, ratio
    spread = _Z * math.hypot(*((each["standard_error"] or 0.0) / each["mean"] for each in (one, two)))
    return ratio, ratio * (1 - spread), ratio * (1 + spread)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print head and rows as a Markdown table."""
    head, *others = rows
    print(f"\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in others:
        print(f"| {' | '.join(row)} |")
