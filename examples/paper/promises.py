"""How often a promise of accuracy breaks on new samples, for one plan and for the best of millions.

    python examples/paper/promises.py --data DIR --json OUT [--weights NAME] [--trials N]

The 10,000 CIFAR-10 test images with the scores of the authors' ResNet-20 are taken as all that there is, so the truth
about every plan is known. In each trial some are drawn at random (with replacement) as profiling samples, and a plan
is asked for that keeps an accuracy with 95 % confidence: by the margin of one fixed plan (``Problem.promised``), or
tested on samples apart (``search``). A promise is broken where the truth about the plan is below it. DIR as in
``held_out.py``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from authors import read_topology
from held_out import WEIGHTS, score_table

from portend.errors import PortendError
from portend.io.storage import load_profile, write_json
from portend.perfmodel.model import PerformanceModel
from portend.planner.exhaustive import count_plans
from portend.planner.problem import Problem, SearchSpace, accuracy, latency
from portend.planner.search import search
from portend.values.exits import SampleExits
from portend.values.profile import Profile
from portend.values.topology import Topology

__all__ = ["Row", "main", "study"]

CONFIDENCE: Final = 0.95
SAMPLES: Final = (1000, 5000)
DROPS: Final = (0.02, 0.04)
"""Accuracy given up against the whole network."""
THRESHOLDS: Final = tuple(round(0.1 * step, 1) for step in range(10))
OWN: Final = SearchSpace(thresholds=THRESHOLDS, per_exit_thresholds=True, exits_per_tier=4, max_partitions=4)
MANY: Final = {
    "the paper's space": SearchSpace(thresholds=THRESHOLDS, tier_order="increasing", exits_per_tier=1),
    "own thresholds, up to 4 partitions": OWN,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What one way of promising gave over all trials.

    Attributes:
        made, broken: share of the trials in which a plan was promised, and in which it was and the truth is below.
        latency_ms: mean of the plans that were promised, None if there are none.
    """

    space: str
    plans: int
    samples: int
    bound: float
    way: str
    trials: int
    made: float
    broken: float
    latency_ms: float | None


def study(profile: Profile, topology: Topology, *, trials: int) -> list[Row]:
    """Return how often promises were made and broken, for one plan and for spaces of many."""
    exits = profile.exits
    assert isinstance(exits, SampleExits)
    truth = PerformanceModel(profile, topology)
    whole = float(exits.accuracies()[-1])
    rows = []
    for drop in DROPS:
        bound = whole - drop
        one = _one_plan(truth, bound)
        just_above = search(Problem(minimize=latency, space=one), truth).estimate.accuracy + 1e-9
        for samples in SAMPLES:
            rows += _rows(truth, "one plan, right below the bound", one, 1, samples, just_above, trials)
            for name, space in MANY.items():
                rows += _rows(truth, name, space, count_plans(space, truth), samples, bound, trials)
    return rows


def _one_plan(truth: PerformanceModel, bound: float) -> SearchSpace:
    """A space of one plan: the fastest that truly reaches the bound, with one threshold for all its exits."""
    plan = search(Problem(minimize=latency, subject_to=(accuracy >= bound,), space=OWN), truth).plan
    blocks = {b: (t,) for (s, e), t in zip(plan.partitions, plan.placement, strict=True) for b in range(s + 1, e + 1)}
    used = max(plan.thresholds, default=0.0)
    return SearchSpace(
        thresholds=(used,),
        exits=tuple(c for c, t in zip(plan.cuts, plan.thresholds, strict=False) if t == used and used > 0),
        cuts=plan.cuts,
        block_tiers=blocks,
        min_partitions=len(plan),
        max_partitions=len(plan),
        exits_per_tier=len(plan),
    )


def _rows(
    truth: PerformanceModel, name: str, space: SearchSpace, plans: int, samples: int, bound: float, trials: int
) -> list[Row]:
    problem = Problem(minimize=latency, subject_to=(accuracy >= bound,), space=space, robust=CONFIDENCE)
    ways = {
        "no margin": replace(problem, robust=None),
        "margin of one plan": problem.promised(samples),
        "tested apart": problem,
    }
    found: dict[str, list[tuple[bool, float]]] = {way: [] for way in ways}
    for seed in range(trials):
        model = _drawn(truth, samples, seed)
        for way, asked in ways.items():
            solution = search(asked, model)
            if solution.status != "infeasible":
                true = truth.estimate(solution.plan)
                found[way].append((true.accuracy < bound, 1e3 * true.mean_s))
    return [
        Row(
            space=name,
            plans=plans,
            samples=samples,
            bound=bound,
            way=way,
            trials=trials,
            made=len(one) / trials,
            broken=sum(broken for broken, _ in one) / trials,
            latency_ms=float(np.mean([ms for _, ms in one])) if one else None,
        )
        for way, one in found.items()
    ]


def _drawn(truth: PerformanceModel, samples: int, seed: int) -> PerformanceModel:
    exits = truth.profile.exits
    assert isinstance(exits, SampleExits)
    chosen = np.sort(np.random.default_rng(seed).integers(exits.samples, size=samples))
    return PerformanceModel(replace(truth.profile, exits=exits.part(chosen)), truth.topology)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; returns the exit code."""
    parser = argparse.ArgumentParser(description="How often promises of accuracy break on new samples.")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="holds weights/ cifar10/ portend_aws/")
    parser.add_argument("--weights", default=WEIGHTS[0], metavar="NAME", help="file of weights/ (default: %(default)s)")
    parser.add_argument("--trials", type=int, default=200, metavar="N", help="drawings (default: %(default)s)")
    parser.add_argument("--images", type=int, metavar="N", help="only the first N test images (default: all)")
    parser.add_argument("--json", type=Path, required=True, metavar="OUT", help="write all numbers here")
    options = parser.parse_args(arguments)
    from rich.console import Console
    from rich.table import Table

    scores = options.json.with_name(f"{options.json.stem}-{options.weights}.zip")
    try:
        score_table(options.data, options.weights, scores, images=options.images)
        rows = study(load_profile(scores), read_topology(options.data / "portend_aws"), trials=options.trials)
        write_json({"confidence": CONFIDENCE, "rows": [asdict(row) for row in rows]}, options.json)
    except PortendError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    table = Table(
        title=f"Promises of {options.weights} with {100 * CONFIDENCE:g} % confidence, {options.trials} trials"
    )
    for column in ("space", "plans", "samples", "bound", "way", "made", "broken", "ms"):
        table.add_column(column, justify="left" if column in ("space", "way") else "right")
    for row in rows:
        shares = (f"{100 * row.bound:.2f} %", row.way, f"{100 * row.made:.0f} %", f"{100 * row.broken:.1f} %")
        table.add_row(
            row.space,
            f"{row.plans:,}",
            f"{row.samples:,}",
            *shares,
            "–" if row.latency_ms is None else f"{row.latency_ms:.2f}",
        )
    console = Console()
    (console if console.is_terminal else Console(width=150)).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
