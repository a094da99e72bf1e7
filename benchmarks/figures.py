"""Draw the figures of docs/benchmarks.md from recorded profiles and from what other benchmarks measured.

python benchmarks/figures.py exits profiles/resnet20-cifar10.zip docs/figures/resnet20-cifar10-exits.svg
python benchmarks/figures.py estimators runs/bench-estimators.json docs/figures/estimators.svg
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from portend.analysis.exit_table import exit_rows
from portend.io.storage import atomic_path, load_profile
from portend.report.figures import GRID, INK, PART_COLORS, QUIET

__all__ = ["draw_estimators", "draw_exits", "dress", "main", "write"]

THRESHOLDS: Final = (0.1, 0.3, 0.5, 0.7)
_SHADES: Final = ("#08306B", "#2171B5", "#6BAED6", "#BDD7E7")
_LOOKS: Final = {
    "layer-wise": ("D", "#CC79A7"),
    "block-wise": ("s", PART_COLORS["transmission"]),
    "partition-wise": ("o", PART_COLORS["compute"]),
}


def draw_exits(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy of every exit with its interval, and the share of samples that it would let go, by threshold."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    exits = [row["exit"] for row in rows]
    left.fill_between(
        exits, [100 * row["accuracy_low"] for row in rows], [100 * row["accuracy_high"] for row in rows],
        color=PART_COLORS["compute"], alpha=0.35, linewidth=0,
    )  # fmt: skip
    left.plot(exits, [100 * row["accuracy"] for row in rows], color=INK, marker="o", markersize=3, linewidth=1.2)
    dress(left, "accuracy of all samples at the exit, %")
    for threshold, shade in zip(rows[0]["leaves"], _SHADES, strict=True):
        shares = [100 * row["leaves"][threshold] for row in rows]
        right.plot(exits, shares, color=shade, linewidth=1.4, marker="o", markersize=3, label=f"η < {threshold}")
    dress(right, "samples that would leave there, %")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.set_xlabel("exit (after block)", color=INK)
        axes.set_ylim(0, 102)
    return figure


def draw_estimators(cases: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Estimated over measured compute time of partitions, a panel for each network (the paper's Fig. 5)."""
    figure = Figure(figsize=(3.4 * len(cases), 3.6), layout="constrained")
    panels: Any = np.atleast_1d(figure.subplots(1, len(cases)))
    for axes, (case, found) in zip(panels, cases.items(), strict=True):
        measured = [row["measured_ms"] for row in found["rows"]]
        most = 1.05 * max(max(measured), *(row[name] for row in found["rows"] for name in _LOOKS))
        axes.plot([0, most], [0, most], color=QUIET, linewidth=0.8)
        for name, (marker, color) in _LOOKS.items():
            estimated = [row[name] for row in found["rows"]]
            axes.scatter(measured, estimated, s=12, marker=marker, facecolors="none", edgecolors=color, label=name)
        axes.set_title(case.partition("=")[0], fontsize=10, color=INK)
        axes.set_xlabel("measured, ms", color=INK)
        dress(axes, "estimated, ms")
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def dress(axes: Axes, label: str) -> None:
    """Give axes the look of all figures, and the y axis its label."""
    axes.set_ylabel(label, color=INK, fontsize=9)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8)


def _exits(path: Path) -> Figure:
    profile = load_profile(path)
    return draw_exits(exit_rows(profile.exits, profile.backbone, THRESHOLDS))


def _estimators(path: Path) -> Figure:
    return draw_estimators(json.loads(path.read_text(encoding="utf-8"))["cases"])


FIGURES: Final[Mapping[str, Callable[[Path], Figure]]] = {"exits": _exits, "estimators": _estimators}


def main(arguments: list[str] | None = None, known: Mapping[str, Callable[[Path], Figure]] = FIGURES) -> None:
    """Draw one figure; the same numbers give the same bytes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=known)
    parser.add_argument("source", type=Path, help="a profile, or JSON of another benchmark")
    parser.add_argument("out", type=Path, help="SVG, PNG or PDF")
    chosen = parser.parse_args(arguments)
    with atomic_path(chosen.out) as temporary:
        write(known[chosen.figure](chosen.source), temporary, chosen.out.suffix.removeprefix("."))


def write(figure: Figure, out: Path | IO[bytes], kind: str) -> None:
    """Write a figure as svg, png or pdf; the same figure gives the same bytes."""
    with mpl.rc_context({"svg.hashsalt": "portend", "svg.fonttype": "none"}):
        figure.savefig(out, format=kind, metadata={"Date": None} if kind == "svg" else {}, dpi=150)


if __name__ == "__main__":
    main()
