"""How near layers, blocks and whole partitions come to a partition's compute time (the paper's Fig. 5), here.

    python benchmarks/estimators.py --json runs/bench-estimators.json --page runs/bench-estimators.html
    python benchmarks/estimators.py --case resnet110=parquet:data/cifar10 --case vggish=wav:data/sounds --json ...

Each case is a network (with new weights: they do not change its times) and data whose samples it runs on. What
a --json file has already is not measured again. Estimates are taken on one sample, truth on ten others.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, Final

import torch

from portend.data.dataset import Dataset
from portend.data.sources import load_dataset
from portend.io.storage import write_json, write_text
from portend.networks import zoo
from portend.networks.backbone import Backbone
from portend.profiling.environment import describe_machine
from portend.profiling.estimators import compare_estimators
from portend.report.estimators_page import estimators_page
from portend.testbed.watch import Counters, Disturbance, count

__all__ = ["main"]

CASES: Final = ("resnet20=digits:size=32", "resnet110=digits:size=32")
_SAMPLES: Final = 11


def main(arguments: list[str] | None = None) -> None:
    """Print RMSE and systematic error of each estimator for each case; write rows and a page if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", metavar="NETWORK=DATA", help=f"default: {', '.join(CASES)}")
    parser.add_argument("--partitions", type=int, default=300, help="at most so many, drawn at random")
    parser.add_argument("--rounds", type=int, default=20, help="everything is timed so often; the median counts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    known: dict[str, Any] = {}
    if chosen.json and chosen.json.exists():
        known = json.loads(chosen.json.read_text(encoding="utf-8"))["cases"]
    for case in chosen.case or CASES:
        if case not in known:
            known[case] = measure(case, chosen.partitions, chosen.rounds)
            if chosen.json:
                write_json({"machine": describe_machine(), "threads": chosen.threads, "cases": known}, chosen.json)
        show(case, known[case]["errors"])
        if known[case]["disturbed"]:
            print(f"warning: {known[case]['disturbed']}; measure again when it is quiet")
    if chosen.page:
        write_text(estimators_page(known), chosen.page)


def measure(case: str, partitions: int, rounds: int) -> dict[str, Any]:
    """Return errors by estimator, and one row per partition with its times in ms."""
    network, _, data = case.partition("=")
    dataset = load_dataset(data)
    samples = [dataset.decoder.decode(encoded) for encoded in dataset.encoded[:_SAMPLES]]
    before = _count()
    found = compare_estimators(
        network_for(network, dataset), samples, partitions=partitions, rounds=rounds,
        on_progress=lambda done, total: print(f"\r{case}: {done} of {total} rounds", end="", flush=True),
    )  # fmt: skip
    print()
    meanwhile = Disturbance.between(before, _count())
    rows = [
        {"start": int(start), "end": int(end), "measured_ms": 1e3 * float(found.measured_s[index])}
        | {name: 1e3 * float(seconds[index]) for name, seconds in found.estimated_s.items()}
        for index, (start, end) in enumerate(found.partitions)
    ]
    return {"errors": found.errors(), "disturbed": "" if meanwhile is None else meanwhile.warning, "rows": rows}


def _count() -> Counters | None:
    return count((os.getpid(),), (os.getpid(),), time.monotonic())


def network_for(name: str, dataset: Dataset) -> Backbone:
    """The network with new weights for samples of the data set."""
    shape = dataset.decoder.shape
    if name == "vggish":
        return zoo.build(name, num_classes=dataset.num_classes, frames=shape[-2], bands=shape[-1])
    return zoo.build(name, num_classes=dataset.num_classes, in_channels=shape[0], input_size=shape[-1])


def show(case: str, errors: dict[str, dict[str, float]]) -> None:
    for name, error in errors.items():
        print(
            f"{case:<28} {name:<15} RMSE {error['rmse_ms']:.3f} ms, systematic {error['bias_ms']:+.3f} ms "
            f"({100 * error['bias']:+.1f} % in the mean), slope {error['slope']:.3f}"
        )


if __name__ == "__main__":
    main()
