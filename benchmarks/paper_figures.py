"""Draw the paper's figures from what the benchmarks measured, as ``figures.py`` does.

python benchmarks/paper_figures.py speedups runs/bench-baselines.json docs/figures/speedups.svg
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from figures import dress, main
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from plans import speedup

from portend.report.figures import CHOSEN, GRID, INK, PART_COLORS, QUIET

__all__ = [
    "FIGURES",
    "draw_agreement",
    "draw_distributions",
    "draw_fine_tuning",
    "draw_running",
    "draw_scenario",
    "draw_speedups",
]

BLUE: Final = PART_COLORS["transmission"]
_PLANNERS: Final = {
    "cloud-only": "#BFC8D1",
    "cloud-only encoded": "#93A1AF",
    "base-only": "#66727F",
    "Neurosurgeon": "#56B4E9",
    "best truncated tier": "#009E73",
    "the paper": BLUE,
    "Portend": CHOSEN,
}
_CONTENDERS: Final = (QUIET, BLUE, "#56B4E9", "#009E73")
_ESTIMATORS: Final = {
    "layer-wise": ("D", "#CC79A7"),
    "block-wise": ("s", BLUE),
    "partition-wise": ("o", PART_COLORS["compute"]),
}
_QUANTITIES: Final = {"exit_rate": "exit rate, %", "latency": "mean latency, ms", "accuracy": "accuracy, %"}


def draw_agreement(found: Mapping[str, Any]) -> Figure:
    """Predicted over measured exit rates, latencies and accuracies, by both estimators (the paper's Fig. 4)."""
    figure = Figure(figsize=(10.2, 3.6), layout="constrained")
    panels: Any = figure.subplots(1, 3)
    for axes, (quantity, label) in zip(panels, _QUANTITIES.items(), strict=True):
        rows = [row for row in found["rows"] if row["quantity"] == quantity]
        scale = 1 if quantity == "latency" else 100
        ends = _ends([scale * row[key] for row in rows for key in ("measured", "predicted")])
        axes.plot(ends, ends, color=QUIET, linewidth=0.8)
        for estimator, name, marker, color, filled in (
            ("marginal", "the paper's marginal estimator", "o", BLUE, False),
            ("sample", "Portend: samples replayed", "o", CHOSEN, True),
        ):
            some = [row for row in rows if row["estimator"] == estimator]
            axes.scatter(
                [scale * row["measured"] for row in some], [scale * row["predicted"] for row in some], s=16,
                marker=marker, facecolors=color if filled else "none", edgecolors=color, linewidths=0.9, label=name,
            )  # fmt: skip
        fit = found["fits"][quantity]
        axes.set_title(f"β {_digits(fit['beta'])}, R² {_digits(fit['r2'])}, n = {fit['n']}", fontsize=9, color=INK)
        axes.set_xlim(ends)
        axes.set_ylim(ends)
        axes.set_xlabel(f"{label}, measured", color=INK, fontsize=9)
        dress(axes, f"{label}, predicted")
    panels[0].legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    spare = 0.06 * (high - low) or 1.0
    return low - spare, high + spare


def _digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def draw_running(found: Mapping[str, Any]) -> Figure:
    """Compute time of running plans over what was measured, by estimator (the paper's Fig. 5)."""
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes: Axes = figure.subplots()
    rows = found["rows"]
    most = 1.06 * max(max(row["measured_ms"], *(row[name] for name in _ESTIMATORS)) for row in rows)
    axes.plot([0, most], [0, most], color=QUIET, linewidth=0.8)
    for name, (marker, color) in _ESTIMATORS.items():
        error = found["errors"][name]
        bias = f"{100 * error['bias']:+.1f} %".replace("-", "−")
        label = f"{name}: RMSE {error['rmse_ms']:.2f} ms, {bias}"
        axes.scatter(
            [row["measured_ms"] for row in rows], [row[name] for row in rows], s=24, marker=marker, facecolors="none",
            edgecolors=color, linewidths=1.2, label=label,
        )  # fmt: skip
    axes.set_xlim(0, most)
    axes.set_ylim(0, most)
    axes.set_xlabel("compute time of a sample, ms, measured", color=INK, fontsize=9)
    dress(axes, "estimated, ms")
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def draw_speedups(found: Mapping[str, Any]) -> Figure:
    """Speed-ups over edge-only as measured, with 95 % intervals, and as predicted (the paper's Fig. 6)."""
    targets = found["targets"]
    planners = [name for name in _PLANNERS if any(name in target["planners"] for target in targets)]
    figure = Figure(figsize=(2.2 + 2.7 * len(targets), 3.7), layout="constrained")
    axes: Axes = figure.subplots()
    width = 0.84 / len(planners)
    highest = 1.0
    for column, name in enumerate(planners):
        for number, target in enumerate(targets):
            if name not in target["planners"]:
                continue
            base = found["plans"][target["planners"]["edge-only"]["plan"]]
            plan = found["plans"][target["planners"][name]["plan"]]
            times, low, high = speedup(base, plan)
            predicted = base["latency_ms"]["predicted"]["mean"] / plan["latency_ms"]["predicted"]["mean"]
            at = number + (column - (len(planners) - 1) / 2) * width
            axes.bar(
                at, times, width=0.9 * width, color=_PLANNERS[name], label=name if number == 0 else None,
                yerr=[[times - low], [high - times]], error_kw={"ecolor": INK, "elinewidth": 0.9},
            )  # fmt: skip
            axes.scatter(at, predicted, s=26, marker="_", color=INK, zorder=3)
            axes.annotate(
                f"{times:.2f}", (at, max(high, predicted)), xytext=(0, 3), textcoords="offset points", ha="center",
                fontsize=7.5, color=INK,
            )  # fmt: skip
            highest = max(highest, high, predicted)
    axes.axhline(1, color=INK, linewidth=0.9)
    axes.scatter([], [], s=26, marker="_", color=INK, label="predicted")
    axes.set_ylim(0, 1.12 * highest)
    axes.set_xlim(-0.5, len(targets) - 0.5)
    axes.set_xticks(range(len(targets)), [_given_up(target["give_up"]) for target in targets])
    dress(axes, "speed-up over edge-only")
    axes.grid(visible=False, axis="x")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _given_up(share: float) -> str:
    points = 100 * share
    return "full accuracy" if points == 0 else f"{points:g} point{'s' if points != 1 else ''} given up"


def draw_distributions(found: Mapping[str, Any]) -> Figure:
    """Latency distributions of the plans of one planner, a panel for each target (the paper's Fig. 7, middle)."""
    shown = dict.fromkeys(target["planners"]["Portend"]["plan"] for target in found["targets"])
    others = found["targets"][0]["planners"]
    names = [*shown, *(others[name]["plan"] for name in ("Neurosurgeon", "cloud-only encoded") if name in others)]
    names = list(dict.fromkeys(names))
    figure = Figure(figsize=(10.2, 1.15 + 1.55 * math.ceil(len(names) / 2)), layout="constrained")
    panels: Any = np.atleast_1d(figure.subplots(math.ceil(len(names) / 2), 2, squeeze=False)).ravel()
    for axes, name in zip(panels, names, strict=False):
        plan = found["plans"][name]
        color = CHOSEN if name in shown else INK
        measured = plan["measured_ms"]
        shares = np.arange(len(measured) + 1) / len(measured)
        axes.step([measured[0], *measured], shares, where="post", color=color, linewidth=1.6)
        steps = sorted((seconds, share) for seconds, share in plan["steps_ms"] if share > 0)
        most = max(measured[-1], steps[-1][0])
        xs = [0.0, *(x for x, _ in steps), 1.05 * most]
        ys = np.concatenate([[0.0], np.cumsum([share for _, share in steps]), [1.0]])
        axes.step(xs, ys, where="post", color=color, linewidth=1.3, linestyle=(0, (1, 1.4)))
        title = textwrap.fill(f"{name}: {plan['described']}", 68)
        axes.set_title(title, fontsize=8, color=color, loc="left")
        axes.set_xlim(0, 1.03 * most)
        axes.set_ylim(0, 1.04)
        dress(axes, "share of samples")
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    for axes in panels[max(0, len(names) - 2) : len(names)]:
        axes.set_xlabel("latency, ms (measured; dotted: predicted)", color=INK, fontsize=9)
    return figure


def draw_fine_tuning(found: Mapping[str, Any]) -> Figure:
    """Test accuracy of the most accurate plan within each latency, as trained and fine-tuned (the paper's Fig. 8)."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes: Axes = figure.subplots()
    rounds = found["rounds"]
    most = 1.25 * rounds[0]["front"][-1]["mean_ms"]
    for one, label, color in ((rounds[0], "as trained", INK), (rounds[-1], "fine-tuned for the starred plan", CHOSEN)):
        xs = [point["mean_ms"] for point in one["front"]]
        ys = [100 * point["test"] for point in one["front"]]
        axes.step([*xs, most], [*ys, ys[-1]], where="post", color=color, linewidth=1.5, label=label)
        star = one["first_plan"]
        axes.scatter(
            star["mean_ms"], 100 * star["test"], marker="*", s=150, color=color, edgecolors="white", linewidths=0.8,
            zorder=4,
        )  # fmt: skip
    for (name, point), marker in zip(found["baselines"].items(), ("s", "D", "^"), strict=False):
        inside = point["mean_ms"] <= most
        x = point["mean_ms"] if inside else most
        axes.scatter(x, 100 * point["test"], marker=marker, s=30, facecolors="white", edgecolors=QUIET, zorder=3,
                     label=name if inside else f"{name}: {point['mean_ms']:.0f} ms", clip_on=False)  # fmt: skip
    axes.set_xlim(0, most)
    axes.set_xlabel("mean latency within, ms (predicted)", color=INK, fontsize=9)
    dress(axes, "accuracy on the test split, %")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def draw_scenario(found: Mapping[str, Any]) -> Figure:
    """Mean latency of the contenders over bandwidth or compute power, and measured points (the paper's Fig. 9)."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes: Axes = figure.subplots()
    over_bandwidth = found["scenario"] == "bandwidth"
    scale = 1e-6 if over_bandwidth else 1.0
    others = [name for name in found["curves"] if name != "best of all"]
    colors = {**dict(zip(others, _CONTENDERS, strict=False)), "best of all": CHOSEN}
    for name, curve in found["curves"].items():
        xs = [scale * value for value in found["values"]]
        axes.plot(xs, curve, color=colors[name], linewidth=1.5, label=name)
        for point in found["points"]:
            if name in point["plans"]:
                measured = point["plans"][name]["latency_ms"]["measured"]
                axes.errorbar(
                    scale * point["value"], measured["mean"], yerr=1.96 * (measured["standard_error"] or 0.0), fmt="o",
                    markersize=5, color=colors[name], markerfacecolor="white", elinewidth=0.9, capsize=2,
                )  # fmt: skip
    for crossing in found["crossings"]:
        axes.scatter(scale * crossing["value"], crossing["mean_ms"], marker="x", s=36, color=INK, zorder=4)
    if not over_bandwidth:
        axes.axvline(found["cloud"], color=INK, linewidth=0.9)
        axes.annotate(
            "as fast as the cloud", (found["cloud"], 0.98), xycoords=("data", "axes fraction"), xytext=(-4, 0),
            textcoords="offset points", rotation=90, ha="right", va="top", fontsize=7.5, color=QUIET,
        )  # fmt: skip
    if found["points"]:
        axes.errorbar([], [], fmt="o", color=INK, markerfacecolor="white", markersize=5, label="measured")
    axes.scatter([], [], marker="x", s=36, color=INK, label="equally fast")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    xlabel = "bandwidth of the first link, Mbit/s" if over_bandwidth else "compute power of the middle tier, times"
    axes.set_xlabel(xlabel, color=INK, fontsize=9)
    axes.set_ylim(bottom=0)
    dress(axes, "mean latency, ms")
    axes.grid(visible=True, which="minor", axis="x", color=GRID, linewidth=0.5)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _read(draw: Callable[[Mapping[str, Any]], Figure]) -> Callable[[Path], Figure]:
    return lambda path: draw(json.loads(path.read_text(encoding="utf-8")))


FIGURES: Final[Mapping[str, Callable[[Path], Figure]]] = {
    "agreement": _read(draw_agreement),
    "running": _read(draw_running),
    "speedups": _read(draw_speedups),
    "distributions": _read(draw_distributions),
    "fine-tuning": _read(draw_fine_tuning),
    "scenario": _read(draw_scenario),
}


if __name__ == "__main__":
    main(known=FIGURES)
