"""How long a training step of all exits takes in float32 and in bfloat16 on this machine, network by network.

Each case trains some steps of a network on scikit-learn's digits, enlarged to its input; both precisions take turns.
Which one is faster depends on the network: bfloat16 pays for plain convolutions, and not for depthwise ones.

    python benchmarks/training.py --json training.json --threads 1
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from portend.data.dataset import Dataset, Splits
from portend.data.decoding import ImageDecoder
from portend.data.sources import load_dataset
from portend.io.storage import write_json
from portend.networks import zoo
from portend.training.config import Progress, TrainingConfig
from portend.training.training import train

__all__ = ["Row", "main", "measure"]

CASES: Final[dict[str, dict[str, Any]]] = {
    "resnet20": {"input_size": 32},
    "efficientnet_b0": {"input_size": 64, "num_classes": 10},
    "timm:mobilenetv3_small_100": {"input_shape": [3, 64, 64], "blocks": 8, "num_classes": 10},
}
PRECISIONS: Final = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Median seconds of a step of ``batch`` samples, by precision."""

    network: str
    batch: int
    step_s: dict[str, float]


def measure(name: str, options: dict[str, Any], *, batch: int, steps: int, turns: int, threads: int | None) -> Row:
    """Return the median over ``turns`` short trainings of ``steps`` steps in each precision."""
    side = zoo.build(name, **options).input_shape[-1]
    color = ImageDecoder(channels=3, size=side, mean=(0.5,) * 3, std=(0.25,) * 3)
    dataset = replace(load_dataset(f"digits:size={side}"), decoder=color)
    every = np.arange(len(dataset))
    few = Splits(train=every[: batch * steps], profiling=every[-16:-8], test=every[-8:])
    found: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    for _ in range(turns):
        for precision in PRECISIONS:
            config = TrainingConfig(
                epochs=1, batch_size=batch, learning_rate=1e-3, precision=precision, threads=threads,
                checkpoint_minutes=60,
            )  # fmt: skip
            found[precision] += _steps(name, options, dataset, few, config)
    return Row(network=name, batch=batch, step_s={key: statistics.median(times) for key, times in found.items()})


def _steps(name: str, options: dict[str, Any], dataset: Dataset, splits: Splits, config: TrainingConfig) -> list[float]:
    """Seconds of each step but the first and the last one, which begin and end the epoch."""
    ended: list[float] = []

    def note(progress: Progress) -> None:
        if progress.accuracies is None:
            ended.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        train(zoo.build(name, **options), dataset, splits, config, Path(folder), on_progress=note)
    return np.diff(ended).tolist()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a Markdown table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(CASES))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, metavar="OUT")
    chosen = parser.parse_args(arguments)
    rows = []
    print(f"| network | step of {chosen.batch} in float32, s | in bfloat16, s | times as fast |")
    print("|---|--:|--:|--:|")
    for name in chosen.networks.split(","):
        row = measure(
            name, CASES.get(name, {}), batch=chosen.batch, steps=chosen.steps, turns=chosen.turns,
            threads=chosen.threads,
        )  # fmt: skip
        rows.append(row)
        plain, reduced = (row.step_s[precision] for precision in PRECISIONS)
        print(f"| `{name}` | {plain:.3f} | {reduced:.3f} | {plain / reduced:.2f} |", flush=True)
    if chosen.json:
        write_json({"threads": chosen.threads, "rows": [asdict(row) for row in rows]}, chosen.json)


if __name__ == "__main__":
    main()
