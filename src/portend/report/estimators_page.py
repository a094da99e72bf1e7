"""A page with the paper's Fig. 5: estimated over measured compute time, by estimator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from portend.analysis.console import format_error
from portend.report.document import Chart, Document, Section, Table, Words, render_document
from portend.report.figures import GRID, INK, PART_COLORS, QUIET, apply_style
from portend.units import signed

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["estimators_page", "plot_estimators"]

_LOOKS: Final = {
    "layer-wise": ("diamond-open", "#CC79A7"),
    "block-wise": ("square-open", PART_COLORS["transmission"]),
    "partition-wise": ("circle-open", PART_COLORS["compute"]),
}


def plot_estimators(rows: Sequence[Mapping[str, float]]) -> Figure:
    """Draw estimated over measured ms; ``rows`` hold ``measured_ms`` and ms by the estimator's name."""
    from plotly import graph_objects as go

    most = 1.05 * max(max(row["measured_ms"], *(row[name] for name in _LOOKS)) for row in rows)
    figure = go.Figure()
    line = {"color": QUIET, "width": 1}
    figure.add_scatter(x=[0, most], y=[0, most], mode="lines", line=line, name="estimated = measured")
    for name, (symbol, color) in _LOOKS.items():
        figure.add_scatter(
            x=[row["measured_ms"] for row in rows], y=[row[name] for row in rows], mode="markers", name=name,
            marker={"symbol": symbol, "color": color, "size": 6},
            customdata=[[row["start"], row["end"]] for row in rows],
            hovertemplate="blocks %{customdata[0]}:%{customdata[1]}: measured %{x:.3f} ms, estimated %{y:.3f} ms",
        )  # fmt: skip
    apply_style(figure, height=560)
    square = {"range": [0, most], "constrain": "domain", "gridcolor": GRID, "color": INK}
    figure.update_xaxes(**square, title_text="compute time [ms], measured")
    figure.update_yaxes(**square, title_text="compute time [ms], estimated", scaleanchor="x")
    return figure


def estimators_page(cases: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a page of its own: for each case its figure, RMSE and systematic errors, as ``benchmarks/estimators.py``
    measures them (``rows``, ``errors``)."""
    sections = []
    for number, (case, found) in enumerate(cases.items()):
        warning = [Words(found["disturbed"])] if found["disturbed"] else []
        table = Table(
            head=("Estimator", "RMSE [ms]", "Mean error [ms]", "Mean relative error", "Slope"),
            rows=[_row(name, error) for name, error in found["errors"].items()],
        )
        chart = Chart(name=f"figure-{number}", figure=plot_estimators(found["rows"]))
        sections.append(Section(title=case, pieces=[*warning, table, chart]))
    words = (
        "Each mark is a partition of the network with the exit branch at its end. Layer-wise and block-wise add up "
        "what layers or blocks take alone; partition-wise is the partition itself on one sample, measured on others."
    )
    return render_document(Document(title="Estimated and measured compute time", intro=(words,), sections=sections))


def _row(name: str, error: Mapping[str, float]) -> list[str]:
    return [
        name, f"{error['rmse_ms']:.3f}", signed(error["bias_ms"], 3), format_error(error["bias"]),
        f"{error['slope']:.3f}",
    ]  # fmt: skip
