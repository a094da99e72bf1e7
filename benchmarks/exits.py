"""How large score tables of many samples are, and what it takes to load and to use them.

    python benchmarks/exits.py [--samples 50000] [--exits 55] [--json OUT]

Each figure is from a process of its own; memory is what the process alone holds (RssAnon), mapped pages aside.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from portend.io.storage import save
from portend.values.backbone import BackboneSpec
from portend.values.codecs import CodecProfile, ResultProfile
from portend.values.device_profile import DeviceProfile
from portend.values.exits import SampleExits
from portend.values.plan import CRITERIA
from portend.values.profile import Profile

STEPS = """
import json, sys, time
import numpy as np
import portend.io.storage
from portend.perfmodel.exits import BitTables
from portend.stats.strata import class_counts, rate_interval

def own_mb():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["RssAnon"].split()[0]) / 1024

found = {}
def step(name, action):
    before, start = own_mb(), time.perf_counter()
    result = action()
    found[name] = {"seconds": time.perf_counter() - start, "own_mb": own_mb() - before}
    return result

exits = step("load", lambda: portend.io.storage.load_profile(sys.argv[1]).exits)
step("view by another criterion", lambda: exits.by("margin"))
theta = np.linspace(0.1, 0.9, 9)
step("exit rates, 9 thresholds", lambda: exits.rates(theta))
step("bit sets for planning, 9 thresholds", lambda: BitTables(exits, theta))
step("intervals of all exits, by class", lambda: rate_interval(*class_counts(exits.correct, exits.labels), 0.95))
print(json.dumps(found))
"""


def large_profile(samples: int, exits: int, seed: int = 0) -> Profile:
    """A profile with random scores: contents do not matter here."""
    rng = np.random.default_rng(seed)
    scores = {name: rng.random((exits, samples), dtype=np.float32).T for name in CRITERIA}
    table = SampleExits(
        scores=scores, correct=rng.random((exits, samples)).T < 0.8, labels=rng.integers(0, 10, samples)
    )
    ones = np.ones((1, exits + 1))
    codec = CodecProfile(
        message_bytes=ones[0], encode_repeats_s=ones, encode_busy_repeats_s=ones,
        decode_repeats_s=ones, decode_busy_repeats_s=ones, dispatch_repeats_s=ones,
    )  # fmt: skip
    result = ResultProfile(
        message_bytes=1.0, encode_repeats_s=ones[0, :1], decode_repeats_s=ones[0, :1],
        decode_busy_repeats_s=ones[0, :1], dispatch_repeats_s=ones[0, :1],
    )  # fmt: skip
    square = np.ones((1, exits + 1, exits + 1))
    device = DeviceProfile(
        device="any", compute_repeats_s=square, idle_repeats_s=square[None][:0],
        branch_repeats_s=ones, codecs={"float32": codec}, result=result, environment={},
    )  # fmt: skip
    spec = BackboneSpec(
        name="any",
        block_names=tuple(f"block{i}" for i in range(exits)),
        num_classes=10,
        cut_shapes=((1,),) * (exits + 1),
    )
    return Profile(backbone=spec, exits=table, devices={"any": device})


def measure(samples: int, exits: int) -> dict[str, Any]:
    """Return file size in bytes and, for each step, seconds and MB."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile.zip"
        save(large_profile(samples, exits), path)
        done = subprocess.run([sys.executable, "-c", STEPS, str(path)], capture_output=True, text=True, check=True)
        return {"samples": samples, "exits": exits, "file_bytes": path.stat().st_size, "steps": json.loads(done.stdout)}


def main() -> int:
    parser = argparse.ArgumentParser(description="What large score tables cost.")
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--exits", type=int, default=55)
    parser.add_argument("--json", type=Path, metavar="OUT")
    given = parser.parse_args()
    found = measure(given.samples, given.exits)
    size = f"{found['file_bytes'] / 1e6:.1f} MB"
    print(f"{given.samples:,} samples x {given.exits} exits x {len(CRITERIA)} criteria: {size}")
    for name, step in found["steps"].items():
        print(f"  {name:40s} {1e3 * step['seconds']:8.1f} ms  {step['own_mb']:6.1f} MB")
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
