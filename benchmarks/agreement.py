"""How well predictions agree with what ran, over whole campaigns: the paper's Fig. 4 a–c, and its numbers beside ours.

    python benchmarks/agreement.py docs/campaigns/*.json --figure docs/figures/agreement.png

Each file is the ``summary.json`` that ``portend validate`` left for one network. Prints tables in Markdown: agreement
by both estimators beside the paper's figures, the latency terms, and regret.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from figures import dress, write
from matplotlib.figure import Figure

from portend.analysis.validation import PAPER
from portend.io.storage import atomic_path
from portend.report.figures import INK, PART_COLORS, QUIET

__all__ = ["agreement_table", "draw_agreement", "main", "regret_table", "terms_table"]

_TITLES: Final = {
    "resnet20": "ResNet-20",
    "resnet110": "ResNet-110",
    "vggish": "VGGish",
    "efficientnet_b0": "EfficientNet-B0",
}
_QUANTITIES: Final = {"latency": "mean latency, ms", "exit_rate": "exit rate", "accuracy": "accuracy, %"}
_LOOKS: Final = {"predicted": ("o", PART_COLORS["compute"]), "marginal": ("x", "#CC79A7")}
_NAMES: Final = {"predicted": "sample estimator", "marginal": "marginal estimator (the paper's)"}


def _points(found: Mapping[str, Any], quantity: str, kind: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Measured and predicted values [n] of one quantity."""
    if quantity == "exit_rate":
        pairs = [(each["exit_rates"]["measured"], each["exit_rates"][kind]) for each in found["each"]]
        return np.concatenate([m for m, _ in pairs]), np.concatenate([p for _, p in pairs])
    name, scale = ("latency_ms", 1.0) if quantity == "latency" else ("accuracy", 100.0)
    values = scale * np.array([(each[name]["measured"], each[name][kind]) for each in found["each"]])
    return values[:, 0], values[:, 1]


def draw_agreement(campaigns: Sequence[Mapping[str, Any]]) -> Figure:
    """Predicted over measured: a column for each network, rows of latency, exit rates and accuracy."""
    figure = Figure(figsize=(3.1 * len(campaigns), 8.4), layout="constrained")
    panels: Any = np.reshape(figure.subplots(len(_QUANTITIES), len(campaigns)), (len(_QUANTITIES), -1))
    for column, found in enumerate(campaigns):
        for row, (quantity, label) in enumerate(_QUANTITIES.items()):
            axes = panels[row, column]
            low, high = np.inf, -np.inf
            for kind in ("marginal", "predicted"):
                measured, predicted = _points(found, quantity, kind)
                marker, color = _LOOKS[kind]
                own = {"facecolors": "none", "edgecolors": color} if marker == "o" else {"color": color}
                axes.scatter(measured, predicted, s=11, marker=marker, linewidths=0.8, label=_NAMES[kind], **own)
                low, high = min(low, measured.min(), predicted.min()), max(high, measured.max(), predicted.max())
            axes.plot([low, high], [low, high], color=QUIET, linewidth=0.8, zorder=0)
            fit = found[quantity]
            axes.text(
                0.04, 0.96, f"β {_number(fit['beta'])}\nR² {_number(fit['r2'], 4)}", transform=axes.transAxes, va="top",
                fontsize=8, color=INK,
            )  # fmt: skip
            dress(axes, f"predicted {label}" if column == 0 else "")
            if row == len(_QUANTITIES) - 1:
                axes.set_xlabel("measured", color=INK, fontsize=9)
        panels[0, column].set_title(f"{_title(found)}, {found['plans']} plans", fontsize=10, color=INK)
    panels[0, 0].legend(frameon=False, fontsize=7, loc="lower right")
    return figure


def agreement_table(campaigns: Sequence[Mapping[str, Any]]) -> list[str]:
    """Slope, R² and size of the errors by both estimators, beside the paper's slope and R²."""
    lines = [
        "| network | plans x samples | | sample estimator: β, R², error | marginal estimator | the paper's β, R² |",
        "|---|--:|---|---|---|---|",
    ]
    for found in campaigns:
        size = f"{found['plans']} x {', '.join(map(str, found['samples']))}"
        for quantity in _QUANTITIES:
            name = quantity.replace("_", " ")
            paper = PAPER[quantity].get(_title(found))
            theirs = "" if paper is None else f"{paper[0]:.2f}, {paper[1]:.2f}"
            ours, marginal = found[quantity], found["marginal"][quantity]
            lines.append(
                f"| {_title(found) if quantity == 'latency' else ''} | {size if quantity == 'latency' else ''} "
                f"| {name} | {_cell(ours, quantity)} | {_cell(marginal, quantity)} | {theirs} |"
            )
            quiet = found["latency_undisturbed"]
            if quantity == "latency" and 0 < quiet["n"] < found["plans"]:
                lines.append(f"| | | of the {quiet['n']} that nothing disturbed | {_cell(quiet, quantity)} | | |")
    return lines


def terms_table(campaigns: Sequence[Mapping[str, Any]]) -> list[str]:
    """Slope, bias and error of every latency term, and what remains with exit rates as measured."""
    names = [name for name in campaigns[0]["terms"] if name not in {"total", "other"}]
    lines = [
        "| network | " + " | ".join(names) + " | total | at the measured exit rates | by the profile alone |",
        "|---|" + "---|" * (len(names) + 3),
    ]
    for found in campaigns:
        fits = [*(found["terms"][name] for name in (*names, "total"))]
        fits += [found["latency_at_measured_exits"], found["latency_before"]]
        cells = [f"β {_number(fit['beta'])}, {fit['bias_ms']:+.2f} ± {fit['rmse_ms']:.2f} ms" for fit in fits]
        lines.append(f"| {_title(found)} | " + " | ".join(cells) + " |")
    return [line.replace("-", "−") if line.startswith("| ") and "---" not in line else line for line in lines]


def regret_table(campaigns: Sequence[Mapping[str, Any]]) -> list[str]:
    """What it costs to take the plan predicted best instead of the one measured best, by bound on accuracy."""
    lines = [
        "| network | accuracy ≥ | plans | predicted best, measured | measured best | regret | its error |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for found in campaigns:
        for place, one in enumerate(found["regret"]):
            lines.append(
                f"| {_title(found) if place == 0 else ''} | {100 * one['min_accuracy']:.1f} % | {one['plans']} "
                f"| {one['chosen_ms']:.2f} ms | {one['best_ms']:.2f} ms | {one['regret_ms']:.2f} ms, "
                f"{100 * one['regret']:.1f} % | ± {one['standard_error_ms']:.2f} ms |"
            )
    return lines


def _title(found: Mapping[str, Any]) -> str:
    name = str(found["network"])
    return _TITLES.get(name, name)


def _cell(fit: Mapping[str, Any], quantity: str) -> str:
    size = f"MAPE {100 * fit['mape']:.1f} %" if quantity == "latency" else f"RMSE {100 * fit['rmse']:.2f} points"
    return f"{_number(fit['beta'])}, {_number(fit['r2'], 4)}, {size}"


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def main(arguments: list[str] | None = None) -> None:
    """Print the tables, and draw the figure if one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaigns", nargs="+", type=Path, help="summary.json of each campaign")
    parser.add_argument("--figure", type=Path, help="SVG, PNG or PDF to draw")
    chosen = parser.parse_args(arguments)
    campaigns = [json.loads(path.read_text(encoding="utf-8")) for path in chosen.campaigns]
    campaigns.sort(key=lambda found: list(_TITLES).index(found["network"]) if found["network"] in _TITLES else 99)
    for table in (agreement_table, terms_table, regret_table):
        print("\n".join(table(campaigns)), end="\n\n")
    if chosen.figure:
        with atomic_path(chosen.figure) as temporary:
            write(draw_agreement(campaigns), temporary, chosen.figure.suffix.removeprefix("."))


if __name__ == "__main__":
    main()
