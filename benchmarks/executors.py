"""How long a whole network takes, one sample at a time, by each executor on this machine.

All executors of a network take turns, in a new random order each round: busy (one run right after another) and after a
pause, when caches are cold. Ratios are against eager PyTorch in the same run. Weights are random: times do not depend
on them, but for int8, whose ranges come from random samples here.

    python benchmarks/executors.py --json executors.json --networks resnet20,vggish --threads 1
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portend.networks.checkpoint import save_checkpoint
from portend.networks.exporting import deviation, export
from portend.networks.quantizing import quantized
from portend.networks.zoo import build
from portend.runtime.executor import Partition
from portend.runtime.executors import make_executor
from portend.values.execution import Execution

__all__ = ["Row", "main", "measure"]

NETWORKS = {
    "resnet20": {"num_classes": 10},
    "resnet110": {"num_classes": 10},
    "efficientnet_b0": {},
    "vggish": {},
}
EXECUTORS = ("torch", "torch-compiled", "onnxruntime", "onnxruntime int8")
_PAUSE_S = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One executor on one network: seconds of each run when busy and after a pause; how far it is off PyTorch."""

    network: str
    executor: str
    busy_s: tuple[float, ...]
    paused_s: tuple[float, ...]
    deviation: float

    def to_dict(self, base: Row) -> dict[str, Any]:
        """Return medians, quartiles and ratios to ``base`` as JSON values."""
        busy, paused = (statistics.median(times) for times in (self.busy_s, self.paused_s))
        return {
            "network": self.network,
            "executor": self.executor,
            "busy_ms": 1e3 * busy,
            "busy_quartiles_ms": [1e3 * float(q) for q in np.quantile(self.busy_s, (0.25, 0.75))],
            "paused_ms": 1e3 * paused,
            "speedup_busy": statistics.median(base.busy_s) / busy,
            "speedup_paused": statistics.median(base.paused_s) / paused,
            "deviation": self.deviation,
        }


def measure(
    name: str, options: dict[str, Any], executors: tuple[str, ...], threads: int, rounds: int, paused: int
) -> list[Row]:
    """Return a row per executor for the whole network ``name`` on one random sample."""
    backbone = build(name, **options).eval()
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((20, *backbone.input_shape)).astype(np.float32)
    partitions: dict[str, Partition] = {}
    off = dict.fromkeys(executors, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "net.safetensors"
        save_checkpoint(backbone, checkpoint)
        network = export(backbone)
        for each in executors:
            file = checkpoint
            if each.startswith("onnxruntime"):
                chosen = quantized(network, samples) if each.endswith("int8") else network
                off[each] = deviation(backbone, chosen, samples)
                file = Path(folder) / f"{each}.onnx"
                chosen.save(file)
            execution = Execution(executor=each.split()[0], threads=threads)  # type: ignore[arg-type]
            last = len(backbone.blocks)
            partitions[each] = make_executor(file, execution).partition(0, last, branch=True)
        times = _times(partitions, samples[0], rounds, paused)
    return [
        Row(network=name, executor=each, busy_s=times[each][0], paused_s=times[each][1], deviation=off[each])
        for each in executors
    ]


def _times(
    partitions: dict[str, Partition], sample: NDArray[np.float32], rounds: int, paused: int
) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    order = random.Random(0)
    busy: dict[str, list[float]] = {name: [] for name in partitions}
    after: dict[str, list[float]] = {name: [] for name in partitions}
    for partition in partitions.values():
        for _ in range(5):
            partition(sample)
    for turn in range(rounds):
        for name in order.sample(list(partitions), len(partitions)):
            if turn < paused:
                time.sleep(_PAUSE_S)
                after[name].append(_seconds(partitions[name], sample))
            partitions[name](sample)
            busy[name].append(_seconds(partitions[name], sample))
    return {name: (tuple(busy[name]), tuple(after[name])) for name in partitions}


def _seconds(work: Callable[[NDArray[np.float32]], object], sample: NDArray[np.float32]) -> float:
    began = time.perf_counter()
    work(sample)
    return time.perf_counter() - began


def main(arguments: list[str] | None = None) -> None:
    """Print a table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the numbers to this file")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--executors", default=",".join(EXECUTORS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--paused", type=int, default=20, help="rounds with a pause of 50 ms before a run")
    chosen = parser.parse_args(arguments)
    executors = tuple(chosen.executors.split(","))
    print(f"{'network':<17}{'executor':<18}{'busy, ms':>9}{'':>7}{'after 50 ms':>13}{'':>7}{'off PyTorch':>13}")
    answers = []
    for name in chosen.networks.split(","):
        rows = measure(name, NETWORKS.get(name, {}), executors, chosen.threads, chosen.rounds, chosen.paused)
        for row in rows:
            found = row.to_dict(rows[0])
            answers.append(found)
            print(
                f"{row.network:<17}{row.executor:<18}{found['busy_ms']:>9.3f}{found['speedup_busy']:>6.2f}x"
                f"{found['paused_ms']:>13.3f}{found['speedup_paused']:>6.2f}x{row.deviation:>13.1e}",
                flush=True,
            )
    if chosen.json:
        chosen.json.write_text(json.dumps({"threads": chosen.threads, "rows": answers}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
