"""What each exit branch does, as a table: how accurate it is, and how many samples leave there.

Axes: N branches, T thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from portend.errors import MismatchError
from portend.stats.strata import class_counts, rate_interval
from portend.values.backbone import BackboneSpec
from portend.values.exits import SampleExits, TabulatedExits
from portend.values.plan import CRITERIA, takes_exit

if TYPE_CHECKING:
    from portend.analysis.fitted import FittedTable

__all__ = ["accuracy_interval", "exit_rows", "exits_markdown", "exits_table"]

Floats = NDArray[np.float64]
Row = Mapping[str, Any]


def accuracy_interval(exits: SampleExits | TabulatedExits, level: float) -> tuple[Floats, Floats]:
    """Return the ends [N], in 0–1, of the interval of each branch's accuracy (``strata.rate_interval``)."""
    return rate_interval(*_right_counts(exits), level)


def _right_counts(exits: SampleExits | TabulatedExits) -> tuple[Floats, Floats]:
    if isinstance(exits, TabulatedExits):
        return np.asarray(exits.correct[None], dtype=np.float64), np.array([float(exits.samples)])
    return class_counts(exits.correct, exits.labels)


def _leaving_counts(exits: SampleExits | TabulatedExits, threshold: float) -> tuple[Floats, Floats]:
    if isinstance(exits, TabulatedExits):
        return exits.rates(threshold) * exits.samples, np.array([float(exits.samples)])
    return class_counts(exits.leaving(threshold), exits.labels)


def exit_rows(
    exits: SampleExits | TabulatedExits,
    spec: BackboneSpec,
    thresholds: Sequence[float],
    *,
    level: float = 0.95,
    by_class: bool = False,
) -> list[Row]:
    """Return one row for each exit branch: number, block, accuracy and what leaves there, with intervals.

    ``leaves`` is the share of all samples that would leave there if no branch came before it, for each threshold;
    ``right`` the share of right answers among those (None where nobody leaves, or where only tables are known).
    Intervals respect that every class has its fixed share of the samples. ``by_class``: one row for each exit
    and ``class`` (None in the other rows), of its samples alone.

    Raises:
        MismatchError: a threshold that a table does not have, or classes that are not known.
    """
    if not by_class:
        return _rows(exits, spec, thresholds, level, None)
    if isinstance(exits, TabulatedExits) or exits.labels is None:
        raise MismatchError(
            "rates of each class need the samples' labels, which this profile does not hold; profile again"
        )
    parts = {int(label): exits.part(np.flatnonzero(exits.labels == label)) for label in np.unique(exits.labels)}
    rows = [row for label, part in parts.items() for row in _rows(part, spec, thresholds, level, label)]
    return sorted(rows, key=lambda row: (row["exit"], row["class"]))


def _rows(
    exits: SampleExits | TabulatedExits,
    spec: BackboneSpec,
    thresholds: Sequence[float],
    level: float,
    label: int | None,
) -> list[Row]:
    accuracy, rates = exits.accuracies(), exits.rates(thresholds)
    low, high = accuracy_interval(exits, level)
    ends = [np.stack(rate_interval(*_leaving_counts(exits, t), level)) for t in thresholds]
    return [
        {
            "exit": cut,
            "block": spec.block_names[cut - 1],
            "class": label,
            "samples": exits.samples,
            "accuracy": float(accuracy[cut - 1]),
            "accuracy_low": float(low[cut - 1]),
            "accuracy_high": float(high[cut - 1]),
            "leaves": {f"{t:g}": float(rate) for t, rate in zip(thresholds, rates[:, cut - 1], strict=True)},
            "leaves_interval": {f"{t:g}": end[:, cut - 1].tolist() for t, end in zip(thresholds, ends, strict=True)},
            "right": {f"{t:g}": _right(exits, cut - 1, t) for t in thresholds},
        }
        for cut in spec.exit_cuts
    ]


def _right(exits: SampleExits | TabulatedExits, branch: int, threshold: float) -> float | None:
    if isinstance(exits, TabulatedExits):
        return None
    gone = takes_exit(exits.score[:, branch], threshold)
    return float(exits.correct[gone, branch].mean()) if gone.any() else None


def exits_table(rows: Sequence[Row], title: str, criterion: str = "entropy") -> FittedTable:
    """Return the rows for a terminal: per threshold the share that leaves, and how many of those are right."""
    from portend.analysis.fitted import FittedTable

    table = FittedTable(f"{title}; leave / right in %")
    for name in _first(rows):
        add = table.words if name in ("block", "class") else table.numbers
        add(name.replace(", ", ",\n"))
    table.numbers(*(f"{CRITERIA[criterion]}<{threshold}" for threshold in rows[0]["leaves"]))
    for row in rows:
        table.add_row(*(cell.replace(" ± ", "±") for cell in (*_first(rows, row), *_cells(row))))
    return table


def exits_markdown(rows: Sequence[Row], criterion: str = "entropy") -> str:
    """Return the rows as a Markdown table."""
    names = [*_first(rows), *(f"{CRITERIA[criterion]}<{t}: leave / right, %" for t in rows[0]["leaves"])]
    lines = [names, ["---" if name == "block" else "--:" for name in names]]
    for row in rows:
        first = [f"`{text}`" if name == "block" else text for name, text in zip(names, _first(rows, row), strict=False)]
        lines.append([*first, *_cells(row)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _first(rows: Sequence[Row], row: Row | None = None) -> list[str]:
    """The first columns of a row, or their names."""
    by_class = rows[0]["class"] is not None
    if row is None:
        return ["exit", "block", *(["class", "samples"] if by_class else []), "accuracy, %"]
    classes = [str(row["class"]), str(row["samples"])] if by_class else []
    return [
        str(row["exit"]),
        row["block"],
        *classes,
        _between(row["accuracy"], row["accuracy_low"], row["accuracy_high"]),
    ]


def _between(share: float, low: float, high: float) -> str:
    return f"{100 * share:.1f} ± {100 * (high - low) / 2:.1f}"


def _cells(row: Row) -> list[str]:
    cells = []
    for threshold, share in row["leaves"].items():
        right = row["right"][threshold]
        cell = _between(share, *row["leaves_interval"][threshold])
        cells.append(cell if right is None else f"{cell} / {100 * right:.1f}")
    return cells
