"""How much longer a partition takes after a pause: once, and right after, by the pause before it.

    python benchmarks/waking.py profiles/resnet20-cifar10.safetensors --cuts 1 10

So what is timed has to come after a pause as long as the one under the traffic to predict.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from portend.networks.exporting import exported
from portend.runtime.executor import Partition
from portend.runtime.executors import make_executor
from portend.values.execution import Execution

PAUSES_S: Final = (0.0, 0.002, 0.01, 0.05, 0.2)


def woken(partition: Partition, tensor: Any, pause_s: float, repeats: int) -> tuple[float, float]:
    """Median seconds of the first run after a pause, and of the one right after it."""
    rows = []
    for _ in range(repeats):
        time.sleep(pause_s)
        began = time.perf_counter()
        partition(tensor)
        once = time.perf_counter()
        partition(tensor)
        rows.append((once - began, time.perf_counter() - once))
    first, second = np.median(rows, axis=0).tolist()
    return first, second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", type=Path, help="a checkpoint, or a file of `portend export`")
    parser.add_argument("--cuts", type=int, nargs="+", default=[1], help="ends of the partitions, which begin at 0")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    file = exported(asked.network) if asked.network.suffix == ".safetensors" else asked.network
    executor = make_executor(file, Execution(executor="onnxruntime"))
    partitions = {cut: executor.partition(0, cut, branch=True) for cut in asked.cuts}
    tensor = np.zeros(executor.spec.cut_shapes[0], np.float32)
    for partition in partitions.values():
        woken(partition, tensor, 0.0, 30)
    found: list[dict[str, Any]] = [
        {"blocks": f"0:{cut}", "pause_s": pause_s, "first_s": first, "next_s": second}
        for pause_s in PAUSES_S
        for cut, partition in partitions.items()
        for first, second in [woken(partition, tensor, pause_s, asked.repeats)]
    ]
    print(f"{'blocks':>8} {'after, ms':>10} {'first, ms':>10} {'next, ms':>10}")
    for row in found:
        times = (1e3 * row[name] for name in ("pause_s", "first_s", "next_s"))
        print(f"{row['blocks']:>8} " + " ".join(f"{ms:>10.3f}" for ms in times))
    if asked.json:
        asked.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
