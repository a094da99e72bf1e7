"""Comparisons as plain tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from portend.analysis.compare import TERMS, Comparison
from portend.units import signed

if TYPE_CHECKING:
    from rich.text import Text

    from portend.analysis.fitted import FittedTable

__all__ = ["comparison_table", "format_error", "format_ms", "format_rates", "format_share", "terms_table"]


def format_ms(seconds: float) -> str:
    """Return seconds as a number of ms that lines up in a column: ``8.42``, ``57.1``, ``1350``."""
    ms = 1e3 * seconds
    return f"{ms:.{2 if abs(ms) < 10 else 1 if abs(ms) < 1000 else 0}f}"


def format_share(share: float) -> str:
    """Return a fraction of 1 as percent with one decimal, such as ``91.3 %``."""
    return f"{100 * share:.1f} %"


def format_error(error: float) -> str:
    """Return a relative error as signed percent, such as ``−1.8 %``."""
    return f"{signed(100 * error, 1)} %"


def format_rates(rates: Sequence[float]) -> str:
    """Return the shares of all exits as whole percent, such as ``62 / 38 %``."""
    return f"{_rates(rates)} %"


def _rates(rates: Sequence[float]) -> str:
    return " / ".join(f"{100 * float(rate):.0f}" for rate in rates)


def comparison_table(comparisons: Sequence[Comparison], tier_names: Sequence[str] | None = None) -> FittedTable:
    """Return three lines per plan: latencies in ms, accuracy and exit rates, ✓ where a measured value lies inside its
    interval and ✗ where it does not. Without ``tier_names`` those of each measurement's topology are used."""
    from portend.analysis.fitted import FittedTable

    table = FittedTable("Predicted and measured")
    table.words("plan")
    table.words("", fold=False)
    table.numbers("mean ms", "p95 ms", "accuracy")
    table.words("exits, %")
    for case in comparisons:
        table.add_row(*_row(case, tier_names))
    return table


def _row(case: Comparison, tier_names: Sequence[str] | None) -> list[str | Text]:
    estimate, measurement = case.estimate, case.measurement
    names = tier_names or [tier.name for tier in measurement.topology.tiers]
    rates_mark = f" {_mark(bool(case.exit_rates_inside().all()))}" if case.undecided().any() else ""
    return [
        _name(case.name, case.plan.describe(names)),
        "predicted\nmeasured\nerror",
        f"{format_ms(estimate.mean_s)}\n{format_ms(measurement.mean_s)}\n{format_error(case.error)}",
        f"{format_ms(estimate.quantile_s(0.95))}\n{format_ms(measurement.quantile_s(0.95))}",
        f"{format_share(estimate.accuracy)}  \n{format_share(measurement.accuracy)} {_mark(case.accuracy_inside())}",
        f"{_rates(list(estimate.share))}\n{_rates(list(measurement.exit_rates()))}{rates_mark}",
    ]


def terms_table(comparisons: Sequence[Comparison]) -> FittedTable:
    """Return two lines per plan, predicted and measured, and one column per latency term, in ms.

    The term with the largest absolute error of each plan is marked with *.
    """
    from portend.analysis.fitted import FittedTable

    table = FittedTable("Latency terms in ms (* largest error)")
    table.words("plan")
    table.words("", fold=False)
    table.numbers(*TERMS, "sum")
    for case in comparisons:
        largest = case.largest_error.name
        cells = [
            f"{format_ms(term.predicted_s)} \n{format_ms(term.measured_s)}{'*' if term.name == largest else ' '}"
            for term in case.terms
        ]
        total = f"{format_ms(case.estimate.mean_s)}\n{format_ms(case.measurement.mean_s)}"
        table.add_row(_name(case.name), "predicted\nmeasured", *cells, total)
    return table


def _name(name: str, description: str = "") -> Text:
    """Return text in which square brackets are themselves, not markup."""
    from rich.text import Text

    text = Text(name, style="bold")
    return text.append(f"\n{description}", style="not bold dim") if description else text


def _mark(inside: bool) -> str:
    return "✓" if inside else "✗"
