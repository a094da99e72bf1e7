"""How often the stated interval of accuracy holds the truth for a plan that was chosen as the best of many.

A synthetic population of samples has a known truth: its own mean. Profiling samples are drawn from it again and again;
each time the fastest plan above a bound on accuracy is chosen, and what is said of its accuracy is compared with
the population's. "Naive" is the interval of a plan that was fixed beforehand (``Estimate.draws``).

    python benchmarks/chosen_intervals.py --draws 400 --rows rows.jsonl
    python benchmarks/chosen_intervals.py --draws 100 --rows latency.jsonl --latency   # of the mean latency instead

Every draw is one line of the file; the command goes on with it, and prints the table of what is there.
"""

# ruff: noqa: E402 (threads are pinned before NumPy is imported)
from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from portend.perfmodel.exits import replay
from portend.perfmodel.model import PerformanceModel
from portend.planner.exhaustive import count_plans
from portend.planner.problem import Problem, SearchSpace, Solution, accuracy, latency
from portend.planner.promise import on_new_samples
from portend.planner.search import search
from portend.values.exits import SampleExits
from problems import random_case  # type: ignore[import-not-found, unused-ignore]

BLOCKS, TIERS, CLASSES, POPULATION = 10, 3, 10, 100_000
SIZES = (500, 1000, 2000, 5000)
SPACES = {
    "one threshold": SearchSpace(),
    "several exits per tier": SearchSpace(exits_per_tier=3, max_partitions=4),
    "own thresholds": SearchSpace(thresholds=tuple(i / 20 for i in range(19)), per_exit_thresholds=True),
}


def population(seed: int = 1) -> SampleExits:
    """Exits of a network whose later branches are better: a sample is as hard as its class and its own luck say."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, size=POPULATION)
    hard = rng.normal(size=POPULATION) + rng.normal(size=CLASSES)[labels] * 0.5
    skill = np.linspace(0.0, 1.6, BLOCKS)
    margin = skill - hard[:, None] + rng.normal(size=(POPULATION, BLOCKS)) * 0.9
    correct = margin + rng.normal(size=margin.shape) * 0.5 > 0
    score = 1 / (1 + np.exp(1.5 * margin + rng.normal(size=margin.shape) * 0.5))
    return SampleExits(scores={"entropy": score}, correct=correct, labels=labels)


def one_draw(exits: SampleExits, truth: PerformanceModel, problem: Problem, size: int, seed: int) -> dict[str, float]:
    """Choose a plan on samples drawn from the population, and compare what is said of it with the population."""
    rng = np.random.default_rng([seed, size])
    drawn = exits.part(rng.choice(exits.samples, size, replace=False))
    model = PerformanceModel(replace(truth.profile, exits=drawn), truth.topology)

    def choose(asked: Problem, on: PerformanceModel, _: float) -> Solution:
        return search(asked, on)

    solution = choose(problem, model, 0.0)
    new = on_new_samples(solution, model, choose)
    assert new is not None
    naive = solution.estimate.draws(count=4000).interval("accuracy")
    return {
        "truth": float(replay(exits, solution.plan)[1].mean()),
        "seen": solution.estimate.accuracy,
        "accuracy": new.accuracy,
        "naive_low": float(naive[0]),
        "naive_high": float(naive[1]),
        "low": new.interval[0],
        "high": new.interval[1],
        "at_least": new.at_least,
    }


def one_latency(
    exits: SampleExits, truth: PerformanceModel, problem: Problem, size: int, seed: int
) -> dict[str, float]:
    """Choose a plan as ``one_draw`` does, and compare the interval of its mean latency with the population."""
    rng = np.random.default_rng([seed, size])
    drawn = exits.part(rng.choice(exits.samples, size, replace=False))
    found = search(problem, PerformanceModel(replace(truth.profile, exits=drawn), truth.topology)).estimate
    low, high = found.draws(count=4000).interval("mean")
    return {"truth": truth.estimate(found.plan).mean_s, "seen": found.mean_s, "low": float(low), "high": float(high)}


def latency_table(known: dict[tuple[str, int], list[dict[str, float]]], plans: dict[str, int]) -> str:
    """The settings of ``--latency`` as a table in Markdown; the optimism is in % of the true mean latency."""
    lines = ["| Plans | Samples | Draws | Optimism | Holds, width |", "|---|---|---|---|---|"]
    for (name, size), rows in sorted(known.items(), key=lambda one: (list(SPACES).index(one[0][0]), one[0][1])):
        truth, seen, low, high = (np.array([row[key] for row in rows]) for key in ("truth", "seen", "low", "high"))
        lines.append(
            f"| {name}, {plans[name]:,} | {size:,} | {len(rows)} | {100 * (1 - seen / truth).mean():.2f} % "
            f"| {100 * ((low <= truth) & (truth <= high)).mean():.1f} %, {100 * ((high - low) / truth).mean():.1f} % |"
        )
    return "\n".join(lines)


def summary(rows: list[dict[str, float]], bound: float) -> dict[str, float]:
    """What happened in one setting: shares of the draws, and means."""
    column = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    truth = column["truth"]
    return {
        "draws": len(rows),
        "bound_missed": float((truth < bound).mean()),
        "optimism": float((column["seen"] - truth).mean()),
        "optimism_stated": float((column["seen"] - column["accuracy"]).mean()),
        "naive_coverage": float(((column["naive_low"] <= truth) & (truth <= column["naive_high"])).mean()),
        "naive_width": float((column["naive_high"] - column["naive_low"]).mean()),
        "coverage": float(((column["low"] <= truth) & (truth <= column["high"])).mean()),
        "width": float((column["high"] - column["low"]).mean()),
        "at_least_holds": float((truth >= column["at_least"]).mean()),
    }


def table(known: dict[tuple[str, int], list[dict[str, float]]], bound: float, plans: dict[str, int]) -> str:
    """The settings as a table in Markdown."""
    lines = [
        "| Plans | Samples | Draws | Bound missed | Optimism (stated) | Naive: holds, width | Stated: holds, width "
        "| At least: holds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (name, size), rows in sorted(known.items(), key=lambda one: (list(SPACES).index(one[0][0]), one[0][1])):
        s = summary(rows, bound)
        lines.append(
            f"| {name}, {plans[name]:,} | {size:,} | {s['draws']:.0f} | {100 * s['bound_missed']:.0f} % "
            f"| {100 * s['optimism']:.2f} ({100 * s['optimism_stated']:.2f}) "
            f"| {100 * s['naive_coverage']:.1f} %, {100 * s['naive_width']:.1f} "
            f"| {100 * s['coverage']:.1f} %, {100 * s['width']:.1f} | {100 * s['at_least_holds']:.1f} % |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--spaces", nargs="+", default=list(SPACES), choices=list(SPACES))
    parser.add_argument("--rows", type=Path, required=True, help="Where every draw is kept.")
    parser.add_argument(
        "--latency", action="store_true", help="The interval of the mean latency instead; another file."
    )
    options = parser.parse_args()
    exits = population()
    case = random_case(0, blocks=BLOCKS, tiers=TIERS, estimator="sample")
    truth = PerformanceModel(replace(case.profile, exits=exits), case.topology)
    bound = round(float(exits.accuracies()[-1]) - 0.02, 3)
    known: dict[tuple[str, int], list[dict[str, float]]] = {}
    done = set()
    for line in options.rows.read_text().splitlines() if options.rows.exists() else ():
        row = json.loads(line)
        known.setdefault((row["space"], row["samples"]), []).append(row["values"])
        done.add((row["space"], row["samples"], row["seed"]))
    with options.rows.open("a") as file:
        for seed in range(options.draws):
            for name in options.spaces:
                for size in (size for size in options.sizes if (name, size, seed) not in done):
                    problem = Problem(minimize=latency, subject_to=(accuracy >= bound,), space=SPACES[name])
                    values = (one_latency if options.latency else one_draw)(exits, truth, problem, size, seed)
                    known.setdefault((name, size), []).append(values)
                    row = {"space": name, "samples": size, "seed": seed, "values": values}
                    file.write(json.dumps(row) + "\n")
                    file.flush()
    plans = {name: count_plans(space, truth) for name, space in SPACES.items()}
    print(latency_table(known, plans) if options.latency else table(known, bound, plans))


if __name__ == "__main__":
    main()
