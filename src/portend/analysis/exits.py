"""What each exit branch does, as a table: how accurate it is, and how many samples leave there.

Axes: N branches, T thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from portend.profile import BackboneSpec, SampleExits, TabulatedExits

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["exit_rows", "exits_markdown", "exits_table", "wilson"]

Floats = NDArray[np.float64]
Row = Mapping[str, Any]


def wilson(share: ArrayLike, samples: int, level: float) -> tuple[Floats, Floats]:
    """Return the ends, in 0–1, of the interval of a share of so many samples (Wilson 1927)."""
    share = np.asarray(share, dtype=np.float64)
    z = NormalDist().inv_cdf((1 + level) / 2)
    center = (share + z**2 / (2 * samples)) / (1 + z**2 / samples)
    half = z * np.sqrt(share * (1 - share) / samples + (z / (2 * samples)) ** 2) / (1 + z**2 / samples)
    return center - half, center + half


def exit_rows(
    exits: SampleExits | TabulatedExits, spec: BackboneSpec, thresholds: Sequence[float], *, level: float = 0.95
) -> list[Row]:
    """Return one row for each exit branch: number, block, accuracy with its interval, and what leaves there.

    ``leaves`` is the share of all samples that would leave there if no branch came before it, for each threshold;
    ``right`` the share of right answers among those (None where nobody leaves, or where only tables are known).

    Raises:
        MismatchError: a threshold that a table does not have.
    """
    accuracy, rates = exits.accuracies(), exits.rates(thresholds)
    low, high = wilson(accuracy, exits.samples, level)
    rows: list[Row] = []
    for cut in spec.exit_cuts:
        branch = cut - 1
        rows.append(
            {
                "exit": cut,
                "block": spec.block_names[branch],
                "accuracy": float(accuracy[branch]),
                "accuracy_low": float(low[branch]),
                "accuracy_high": float(high[branch]),
                "leaves": {f"{t:g}": float(rate) for t, rate in zip(thresholds, rates[:, branch], strict=True)},
                "right": {f"{t:g}": _right(exits, branch, t) for t in thresholds},
            }
        )
    return rows


def _right(exits: SampleExits | TabulatedExits, branch: int, threshold: float) -> float | None:
    if isinstance(exits, TabulatedExits):
        return None
    gone = exits.leaving(threshold)[:, branch]
    return float(exits.correct[gone, branch].mean()) if gone.any() else None


def exits_table(rows: Sequence[Row], title: str) -> Table:
    """Return the rows for a terminal: per threshold the share that leaves, and how many of those are right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{title}; leave / right in %", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("exit", justify="right", no_wrap=True)
    table.add_column("block", overflow="fold", min_width=10)
    table.add_column("accuracy, %", justify="right", no_wrap=True)
    for threshold in rows[0]["leaves"]:
        table.add_column(f"η<{threshold}", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(str(row["exit"]), Text(row["block"]), _accuracy(row), *_cells(row))
    return table


def exits_markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    names = ["exit", "block", "accuracy, %", *(f"η<{t}: leave / right, %" for t in rows[0]["leaves"])]
    lines = [names, ["--:", "---", *["--:"] * (len(names) - 2)]]
    lines += [[str(row["exit"]), f"`{row['block']}`", _accuracy(row), *_cells(row)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _accuracy(row: Row) -> str:
    half = 100 * (row["accuracy_high"] - row["accuracy_low"]) / 2
    return f"{100 * row['accuracy']:.1f} ± {half:.1f}"


def _cells(row: Row) -> list[str]:
    cells = []
    for threshold, share in row["leaves"].items():
        right = row["right"][threshold]
        cells.append(f"{100 * share:.1f}" if right is None else f"{100 * share:.1f} / {100 * right:.1f}")
    return cells
