"""How well a few measured partitions predict the others: error of the prediction where the truth is known.

    python benchmarks/budget.py runs/resnet110/profile.zip --json runs/bench-budget.json
    python benchmarks/budget.py --data data/portend_aws --network ResNet110

Takes complete tables of compute times (profiles in which everything was measured, or the measurements published
with the paper), hides all but a share of the partitions, and predicts them. Errors are relative to the hidden
times, whose own noise is part of them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portend.io.storage import load_profile_or_device, write_json
from portend.profiling.prediction import checked, measuring_order
from portend.values.backbone import BackboneSpec
from portend.values.compute_fit import fit_compute
from portend.values.profile import Profile

__all__ = ["main", "rows"]

Floats = NDArray[np.float64]


def main(arguments: list[str] | None = None) -> None:
    """Print one row per table and share; write them as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profiles", nargs="*", type=Path)
    parser.add_argument("--data", type=Path, help="the published measurements, as in examples/paper")
    parser.add_argument("--network", default="ResNet110", help="of the published measurements")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    tables = [table for path in chosen.profiles for table in _measured(path)]
    if chosen.data:
        tables += _published(chosen.data, chosen.network)
    found = [row for name, spec, table in tables for row in rows(name, spec, table, chosen.shares, chosen.seeds)]
    for row in found:
        print(
            f"{row['table']:<24} {row['measured']:>4} of {row['partitions']:<5} error {100 * row['mean']:.2f} % in the "
            f"mean, {100 * row['p95']:.1f} % for 95 in 100, {100 * row['worst']:.1f} % at worst; "
            f"systematic {100 * row['bias']:+.2f} %; stated {100 * row['stated']:.2f} %"
        )
    if chosen.json:
        write_json(found, chosen.json)


def rows(name: str, spec: BackboneSpec, table: Floats, shares: list[float], seeds: int) -> list[dict[str, Any]]:
    """Return for each share the errors over all hidden partitions, and the stated one, in the mean over seeds."""
    total = int(np.isfinite(table).sum())
    found = []
    for share in shares:
        each = []
        for seed in range(seeds):
            order = measuring_order(spec, most=round(share * total), seed=seed)
            known = np.full(table.shape, np.nan)
            known[order[:, 0], order[:, 1]] = table[order[:, 0], order[:, 1]]
            fit = fit_compute(known[None], np.zeros((1, len(table))), spec.features())
            told = checked(fit, order[1::2])
            off = (fit.seconds / table - 1)[np.isnan(known) & np.isfinite(table)]
            size = np.abs(off)
            each.append((size.mean(), np.quantile(size, 0.95), size.max(), off.mean(), told.mean_error))
        mean, p95, _, bias, stated = np.mean(each, axis=0).tolist()
        found.append({
            "table": name, "partitions": total, "measured": round(share * total), "mean": mean, "p95": p95,
            "worst": float(np.max(each, axis=0)[2]), "bias": bias, "stated": stated,
        })  # fmt: skip
    return found


def _measured(path: Path) -> Iterator[tuple[str, BackboneSpec, Floats]]:
    loaded = load_profile_or_device(path)
    devices = loaded.devices if isinstance(loaded, Profile) else {loaded.device: loaded}
    for name, device in devices.items():
        spec = loaded.backbone if isinstance(loaded, Profile) else device.network
        if spec is None or device.prediction is not None:
            raise SystemExit(f"{path}: device {name!r} has no complete table of a known network")
        yield f"{spec.name}, {name}", spec, device.measured_s


def _published(folder: Path, network: str) -> list[tuple[str, BackboneSpec, Floats]]:
    """The mean of the repeats for each partition, on each device."""
    shapes = json.loads((folder / "intermediate_shapes.json").read_text(encoding="utf-8"))["models"][network]["shapes"]
    inner = [tuple(int(n) for n in shapes[key]) for key in sorted(shapes, key=int)]
    tables = []
    for path in sorted((folder / "computation").glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))["models"][network]
        blocks = max(row["end"] for row in found)
        table = np.full((blocks + 1, blocks + 1), np.nan)
        for row in found:
            table[row["start"] - 1, row["end"]] = 1e-3 * np.mean(row["ms"])
        spec = BackboneSpec(
            name=network,
            block_names=tuple(f"block{i}" for i in range(1, blocks + 1)),
            num_classes=2,
            cut_shapes=(*inner[:blocks], inner[blocks - 1]),  # what the last block gives is never sent, nor known
        )
        tables.append((f"{network}, {path.stem}", spec, table))
    return tables


if __name__ == "__main__":
    main()
