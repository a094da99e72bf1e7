"""Figures: ``rows = x_rows(...)`` makes a table that can be saved, ``plot_x(rows)`` draws it.

A table is a list of JSON-able rows with units in their names. The figures are plotly figures;
plotly is imported when the first one is drawn. One latency part has one color in all of them
(PART_COLORS, after Okabe and Ito, told apart by color-blind readers); predicted values are
dashed or hollow, measured ones solid.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, pairwise, product
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from portend.analysis.compare import TERMS, Comparison
from portend.analysis.exit_table import accuracy_interval
from portend.errors import InvalidValue
from portend.perfmodel.estimate import PARTS, Estimate
from portend.values.measurement import Measurement, RequestTrace
from portend.values.plan import Plan
from portend.values.profile import Profile
from portend.values.topology import Topology

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = [
    "PART_COLORS",
    "apply_style",
    "axis_range",
    "branch_rows",
    "cdf_rows",
    "log_axis",
    "mean_rows",
    "part_rows",
    "plot_branches",
    "plot_cdf",
    "plot_means",
    "plot_parts",
    "plot_timeline",
    "plot_tradeoff",
    "timeline_rows",
    "tradeoff_rows",
    "typical_trace",
]

Row = dict[str, Any]
Floats = NDArray[np.float64]
_Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

PART_COLORS: Final = {
    "compute": "#E69F00",
    "encode": "#F0E442",
    "decode": "#CC79A7",
    "transmission": "#0072B2",
    "propagation": "#56B4E9",
    "dispatch": "#009E73",
    "transfer": "#0072B2",
    "other": "#8A939C",
}
"""Color of each latency part. A measured ``transfer`` is transmission, propagation and dispatch
in one and carries the first two colors, hatched."""

INK: Final = "#1F2933"
QUIET: Final = "#66727F"
GRID: Final = "#E6EAEE"
CHOSEN: Final = "#D55E00"
_GRAYS: Final = ("#5B6B7C", "#7F8E9D", "#A3AFBB", "#BFC8D1", "#D3DAE1")
_STAR: Final = {"symbol": "star", "size": 16, "color": CHOSEN, "line": {"color": "#FFFFFF", "width": 1.5}}
_DIAMOND: Final = {"symbol": "diamond", "size": 10, "color": "#FFFFFF", "line": {"color": INK, "width": 1.5}}
_LINES: Final = {"measured": {"width": 2, "dash": "solid"}, "predicted": {"width": 1.8, "dash": "dot"}}
_HOP: Final = ("encode", "transmission", "propagation", "dispatch", "decode", "compute")
_STACK: Final = ("compute", "encode", "transmission", "propagation", "dispatch", "transfer", "decode", "other")
_FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_FRAME_PX: Final = (640.0, 380.0)  # narrowest plot area for which labels must not overlap


# --- (a) trade-off -------------------------------------------------------------------------


def tradeoff_rows(
    cloud: Mapping[str, ArrayLike], estimates: Mapping[str, Estimate], chosen: str, *, limit: int = 4000
) -> list[Row]:
    """Return evaluated plans, the Pareto front and the named plans as rows of ``latency_ms`` and ``accuracy``.

    ``cloud`` holds arrays ``latency_s``, ``accuracy`` and ``partitions`` [P] and, if wanted, ``front_latency_s`` and
    ``front_accuracy`` [F]. Of more than ``limit`` evaluated plans, every so-many-th in order of latency is kept.
    """
    latency, accuracy, partitions = _columns(cloud, "latency_s", "accuracy", "partitions")
    order = np.argsort(latency, kind="stable")
    kept = order[np.unique(np.linspace(0, max(order.size - 1, 0), min(limit, order.size)).astype(int))]
    rows: list[Row] = [
        {
            "kind": "evaluated",
            "latency_ms": 1e3 * float(latency[i]),
            "accuracy": float(accuracy[i]),
            "partitions": int(partitions[i]),
            "name": "",
        }
        for i in kept
    ]
    if "front_latency_s" in cloud:
        rows += [
            {"kind": "front", "latency_ms": 1e3 * float(x), "accuracy": float(y), "partitions": None, "name": ""}
            for x, y in sorted(zip(*_columns(cloud, "front_latency_s", "front_accuracy"), strict=True))
        ]
    return rows + [
        {
            "kind": "chosen" if name == chosen else "plan",
            "latency_ms": 1e3 * estimate.mean_s,
            "accuracy": estimate.accuracy,
            "partitions": len(estimate.plan),
            "name": name,
        }
        for name, estimate in estimates.items()
    ]


def plot_tradeoff(rows: Sequence[Row]) -> Figure:
    """Draw accuracy over mean latency of evaluated plans, the Pareto front as steps, and the named plans."""
    from plotly import graph_objects as go

    figure = go.Figure()
    evaluated = sorted((row for row in rows if row["kind"] == "evaluated"), key=lambda row: -row["partitions"])
    for partitions, group in groupby(evaluated, key=lambda row: row["partitions"]):
        marks: Mapping[str, object] = {"size": 4, "color": _GRAYS[min(partitions, len(_GRAYS)) - 1]}
        name = f"{partitions} partition{'s' if partitions > 1 else ''}"
        points = _xy(group, "latency_ms", "accuracy")
        figure.add_scatter(**points, mode="markers", marker=marks, name=name, legendrank=partitions)
    front = [row for row in rows if row["kind"] == "front"]
    if front:
        line = {"color": INK, "width": 2, "shape": "hv"}
        figure.add_scatter(**_xy(front, "latency_ms", "accuracy"), mode="lines", line=line, name="Pareto front")
    named = [row for row in rows if row["kind"] in ("plan", "chosen")]
    for row in named:
        marks = _STAR if row["kind"] == "chosen" else _DIAMOND
        point = _xy([row], "latency_ms", "accuracy")
        figure.add_scatter(**point, mode="markers", marker=marks, name=_text(row["name"]), showlegend=False)
    view = named + front or evaluated
    x, logarithmic = axis_range([row["latency_ms"] for row in view], ratio=6)
    y, _ = axis_range([row["accuracy"] for row in view], ratio=math.inf)
    y[1] = min(y[1], 1.0)
    apply_style(figure, height=520)
    figure.update_layout(legend_itemsizing="constant")
    figure.update_xaxes(**log_axis(logarithmic, x), title_text="mean latency [ms], predicted")
    figure.update_yaxes(range=y, tickformat=".0%", title_text="accuracy, predicted")
    _label(figure, named, ("latency_ms", "accuracy"), (x, y), logarithmic=(logarithmic, False), avoid=front)
    return figure


# --- (b) distribution of the latency -------------------------------------------------------


def cdf_rows(cases: Iterable[Comparison] | Mapping[str, Estimate], *, limit: int = 500) -> list[Row]:
    """Return the steps of each plan's latency distribution: ``share`` of samples answered within ``latency_ms``.

    ``source`` is ``predicted`` or ``measured``. Of more than ``limit`` measured latencies, some evenly spread remain.
    """
    rows: list[Row] = []
    for name, estimate, measurement in _cases(cases):
        order = np.argsort(estimate.latency_s, kind="stable")
        order = order[estimate.share[order] > 0]
        rows += _steps(name, "predicted", estimate.latency_s[order], np.cumsum(estimate.share[order]))
        if measurement is not None:
            count = len(measurement)
            rank = np.unique(np.linspace(1, count, min(count, limit)).astype(int))
            rows += _steps(name, "measured", np.sort(measurement.latency_s)[rank - 1], rank / count)
    return rows


def _steps(name: str, source: str, latency_s: Floats, share: Floats) -> list[Row]:
    start = {"plan": name, "source": source, "latency_ms": 1e3 * float(latency_s[0]), "share": 0.0}
    return [start] + [
        {"plan": name, "source": source, "latency_ms": 1e3 * float(x), "share": float(y)}
        for x, y in zip(latency_s, share, strict=True)
    ]


def plot_cdf(rows: Sequence[Row], chosen: str = "") -> Figure:
    """Draw one panel per plan on one latency axis: predicted distribution dashed, measured solid."""
    from plotly.subplots import make_subplots

    plans = list(dict.fromkeys(row["plan"] for row in rows))
    count = len(plans)
    figure = make_subplots(rows=count, cols=1, shared_xaxes=True, vertical_spacing=min(0.2, 0.28 / count))
    highest = max(row["latency_ms"] for row in rows)
    for source in dict.fromkeys(row["source"] for row in rows):  # the legend, in no plan's color
        figure.add_scatter(x=[None], y=[None], mode="lines", line={"color": INK} | _LINES[source], name=source)
    for index, plan in enumerate(plans, start=1):
        color = CHOSEN if plan == chosen else INK
        for source in ("measured", "predicted"):
            part = [row for row in rows if row["plan"] == plan and row["source"] == source]
            if part:
                end = {"latency_ms": 1.05 * highest, "share": 1.0}
                points = _xy([*part, end], "latency_ms", "share")
                line = {"shape": "hv", "color": color} | _LINES[source]
                figure.add_scatter(**points, mode="lines", line=line, name=source, showlegend=False, row=index, col=1)
        title = {"text": f"<b>{_text(plan)}</b>", "font": {"color": color, "size": 13}, "showarrow": False}
        place = {"xref": "paper", "yref": f"y{index if index > 1 else ''} domain", "x": 0, "y": 1}
        figure.add_annotation(**title, **place, xanchor="left", yanchor="bottom")
    apply_style(figure, height=90 + 112 * count)
    figure.update_yaxes(range=[-0.04, 1.06], tickvals=[0, 0.5, 1], tickformat=".0%")
    figure.update_xaxes(range=[0, 1.02 * highest])
    figure.update_xaxes(title_text="latency [ms]", row=count, col=1)
    return figure


# --- (c) exit branches ---------------------------------------------------------------------


def branch_rows(profile: Profile, plan: Plan, *, level: float = 0.95) -> list[Row]:
    """Return each branch's accuracy on all profiling samples, with its interval, and exit rate.

    The exit rate is that of the branch alone, no branch before it, at the plan's threshold there; at a branch that the
    plan does not use, at the threshold of the next exit, or of the last that has one. None at the plan's last exit,
    which takes everyone, and everywhere if no sample may leave early.
    """
    exits = profile.viewed_for(plan).exits
    accuracy = exits.accuracies()
    low, high = accuracy_interval(exits, level)
    thresholds = _thresholds(plan, profile.num_blocks)
    return [
        {
            "branch": branch + 1,
            "block": profile.backbone.block_names[branch],
            "accuracy": float(accuracy[branch]),
            "accuracy_low": float(low[branch]),
            "accuracy_high": float(high[branch]),
            "chosen": branch + 1 in plan.cuts,
            "threshold": threshold,
            "exit_rate": None if threshold is None else float(exits.rates(threshold)[0, branch]),
        }
        for branch, threshold in enumerate(thresholds)
        if branch + 1 in profile.backbone.exit_cuts
    ]


def _thresholds(plan: Plan, blocks: int) -> list[float | None]:
    """Return the threshold that stands for each branch: the next exit's, or the last one's; None at the last exit."""
    exits = [(cut, theta) for cut, theta in zip(plan.cuts, plan.thresholds, strict=False) if theta > 0]
    last = exits[-1][1] if exits else None
    return [
        None if branch == plan.cuts[-1] else next((theta for cut, theta in exits if cut >= branch), last)
        for branch in range(1, blocks + 1)
    ]


def plot_branches(rows: Sequence[Row]) -> Figure:
    """Draw each branch's accuracy with its interval above its exit rate; the plan's own exits in color."""
    from plotly.subplots import make_subplots

    with_rates = any(row["exit_rate"] is not None for row in rows)
    heights = [0.62, 0.38] if with_rates else None
    count = 2 if with_rates else 1
    figure = make_subplots(rows=count, cols=1, shared_xaxes=True, row_heights=heights, vertical_spacing=0.08)
    for chosen, name, color in ((False, "not used", _GRAYS[2]), (True, "exits of the chosen plan", CHOSEN)):
        part = [row for row in rows if row["chosen"] == chosen]
        bars = {
            "array": [row["accuracy_high"] - row["accuracy"] for row in part],
            "arrayminus": [row["accuracy"] - row["accuracy_low"] for row in part],
            "thickness": 1.5,
            "width": 5,
        }
        figure.add_scatter(
            **_xy(part, "branch", "accuracy"), mode="markers", marker={"color": color, "size": 10}, error_y=bars,
            name=name, legendgroup=name, row=1, col=1,
        )  # fmt: skip
        left = [row for row in part if row["exit_rate"] is not None]
        if left:
            label = [f"{row['exit_rate']:.0%}" for row in left]
            figure.add_bar(
                **_xy(left, "branch", "exit_rate"), marker={"color": color}, width=0.55, name=name, legendgroup=name,
                showlegend=False, text=label, textposition="outside", cliponaxis=False, row=2, col=1,
            )  # fmt: skip
    apply_style(figure, height=480 if with_rates else 340)
    figure.update_yaxes(tickformat=".0%", title_text="accuracy alone", row=1, col=1)
    if with_rates:
        top = max(row["exit_rate"] for row in rows if row["exit_rate"] is not None)
        figure.update_yaxes(
            tickformat=".0%", title_text="exit rate alone", range=[0, 1.2 * max(top, 0.05)], row=2, col=1
        )
    figure.update_xaxes(tickvals=[row["branch"] for row in rows], showgrid=False)
    ticks = [f"{row['branch']}<br><span style='color:{QUIET}'>{_text(row['block'])}</span>" for row in rows]
    figure.update_xaxes(ticktext=ticks, title_text="exit branch after block", row=count, col=1)
    return figure


# --- (d) one sample's way ------------------------------------------------------------------


def typical_trace(measurement: Measurement) -> RequestTrace:
    """Return, of the requests that left at the last exit that any of them reached, the one of median latency."""
    deepest = np.flatnonzero(measurement.exit_index == measurement.exit_index.max())
    order = deepest[np.argsort(measurement.latency_s[deepest], kind="stable")]
    middle = int(order[(order.size - 1) // 2])
    return next(trace for index, trace in enumerate(measurement.traces()) if index == middle)


def timeline_rows(estimate: Estimate, topology: Topology, trace: RequestTrace | None = None) -> list[Row]:
    """Return what happens to one sample, span by span: ``lane`` (tier or link), ``part``, ``start_ms``, ``end_ms``.

    Predicted: the exit of ``trace`` (without one, the last exit that anyone takes), each hop in the order encode,
    transmission, propagation, dispatch, decode, then compute. Measured: the spans of ``trace``.
    """
    reached = np.flatnonzero(estimate.share > 0)
    leaves = trace.exit_index if trace is not None else int(reached[-1]) if reached.size else len(estimate.plan) - 1
    stops = _stops(estimate.plan, topology, leaves)
    steps = [*estimate.step_parts_s[: leaves + 1], estimate.result_parts_s[leaves]]
    rows: list[Row] = []
    clock = 0.0
    for (sender, receiver), parts in zip(pairwise(stops), steps, strict=True):
        seconds = dict(zip(PARTS, parts, strict=True))
        for part in _HOP:
            if seconds[part] > 0:
                lane = _lane(topology, part, sender, receiver)
                rows.append(_span_row("predicted", lane, part, clock, clock + float(seconds[part])))
                clock += float(seconds[part])
    for span in trace.spans if trace is not None else ():
        step = min(span.step, leaves + 1)
        lane = _lane(topology, span.kind, *stops[step : step + 2])
        rows.append(_span_row("measured", lane, span.kind, span.start_s, span.end_s))
    return sorted(rows, key=lambda row: (row["source"] == "predicted", row["start_ms"]))


def _stops(plan: Plan, topology: Topology, leaves: int) -> list[int]:
    """Return the tiers a sample passes: source, the partitions' tiers up to its exit, destination."""
    return [topology.source, *plan.placement[: leaves + 1], topology.destination]


def _lane(topology: Topology, part: str, sender: int, receiver: int) -> str:
    names = [tier.name for tier in topology.tiers]
    if part == "encode":
        return names[sender]
    if part in ("decode", "compute"):
        return names[receiver]
    low, high = sorted((sender, receiver))
    return f"{names[low]} ↔ {names[high]}" if low != high else names[low]


def _span_row(source: str, lane: str, part: str, start_s: float, end_s: float) -> Row:
    return {"source": source, "lane": lane, "part": part, "start_ms": 1e3 * start_s, "end_ms": 1e3 * end_s}


def plot_timeline(rows: Sequence[Row], topology: Topology) -> Figure:
    """Draw one sample's way over tiers and links: measured above predicted, on one time axis."""
    from plotly.subplots import make_subplots

    sources = [source for source in ("measured", "predicted") if any(row["source"] == source for row in rows)]
    lanes = _lanes(topology, {row["lane"] for row in rows})
    figure = make_subplots(
        rows=len(sources), cols=1, shared_xaxes=True, vertical_spacing=0.1,
        subplot_titles=[f"<b>{source}</b>" for source in sources],
    )  # fmt: skip
    shown: set[str] = set()
    for (index, source), (rank, part) in product(enumerate(sources, start=1), enumerate(_STACK)):
        spans = [row for row in rows if row["source"] == source and row["part"] == part]
        if not spans:
            continue
        figure.add_bar(
            orientation="h", y=[_text(row["lane"]) for row in spans], base=[row["start_ms"] for row in spans],
            x=[row["end_ms"] - row["start_ms"] for row in spans], marker=_fill(part), width=0.62, name=_part_name(part),
            hovertemplate=f"{part} %{{x:.3f}} ms from %{{base:.2f}} ms<extra></extra>",
            legendgroup=part, legendrank=rank, showlegend=part not in shown, row=index, col=1,
        )  # fmt: skip
        shown.add(part)
    apply_style(figure, height=110 + len(sources) * (50 + 34 * len(lanes)))
    figure.update_layout(barmode="overlay", margin_t=66)
    figure.update_annotations(x=0, xanchor="left", font={"size": 13, "color": INK})
    lane_order = [_text(lane) for lane in reversed(lanes)]
    figure.update_yaxes(categoryorder="array", categoryarray=lane_order, range=[-0.5, len(lanes) - 0.5])
    figure.update_xaxes(range=[0, 1.02 * max(row["end_ms"] for row in rows)])
    figure.update_xaxes(title_text="time since the sample was available [ms]", row=len(sources), col=1)
    return figure


def _lanes(topology: Topology, used: set[str]) -> list[str]:
    """Return all tiers with the links in use between neighbors, then the paths in use over several links."""
    names = [tier.name for tier in topology.tiers]
    lanes = [names[0]]
    for a, b in pairwise(names):
        lanes += [lane for lane in (f"{a} ↔ {b}",) if lane in used] + [b]
    return lanes + sorted(used - set(lanes))


# --- (e) predicted against measured --------------------------------------------------------


def mean_rows(comparisons: Iterable[Comparison]) -> list[Row]:
    """Return each plan's mean latency, predicted and measured, and the measured mean's standard error, in ms."""
    return [
        {
            "plan": case.name,
            "measured_ms": 1e3 * case.measurement.mean_s,
            "standard_error_ms": 1e3 * (case.standard_error_s or 0.0),
            "predicted_ms": 1e3 * case.estimate.mean_s,
            "error": case.error,
        }
        for case in comparisons
    ]


def plot_means(rows: Sequence[Row], chosen: str = "") -> Figure:
    """Draw predicted over measured mean latency, with the line of equality and a band of ±5 %."""
    from plotly import graph_objects as go

    spreads = [1.96 * row["standard_error_ms"] for row in rows]
    values = [row["predicted_ms"] for row in rows]
    for row, spread in zip(rows, spreads, strict=True):
        values += [max(row["measured_ms"] - spread, 0.1 * row["measured_ms"]), row["measured_ms"] + spread]
    limits, logarithmic = axis_range(values, ratio=6)
    ends = [10**x for x in limits] if logarithmic else [max(x, 0.0) for x in limits]
    figure = go.Figure()
    band = {"x": [*ends, *ends[::-1]], "y": [*(1.05 * x for x in ends), *(0.95 * x for x in ends[::-1])]}
    figure.add_scatter(**band, fill="toself", fillcolor=GRID, mode="none", name="±5 %", hoverinfo="skip")
    line = {"color": QUIET, "width": 1}
    figure.add_scatter(x=ends, y=ends, mode="lines", line=line, name="predicted = measured", hoverinfo="skip")
    for row, spread in zip(rows, spreads, strict=True):
        color = CHOSEN if row["plan"] == chosen else INK
        figure.add_scatter(
            **_xy([row], "measured_ms", "predicted_ms"), mode="markers", marker={"color": color, "size": 9},
            error_x={"array": [spread], "thickness": 1.2, "width": 4}, name=_text(row["plan"]), showlegend=False,
        )  # fmt: skip
    apply_style(figure, height=520)
    figure.update_xaxes(**log_axis(logarithmic, limits), title_text="mean latency [ms], measured")
    figure.update_yaxes(**log_axis(logarithmic, limits), title_text="mean latency [ms], predicted")
    points = [row | {"name": row["plan"], "kind": "chosen" if row["plan"] == chosen else "plan"} for row in rows]
    both = (logarithmic, logarithmic)
    _label(figure, points, ("measured_ms", "predicted_ms"), (limits, limits), logarithmic=both, avoid=_diagonal(ends))
    return figure


def _diagonal(ends: Sequence[float]) -> list[Row]:
    return [{"measured_ms": float(x), "predicted_ms": float(x)} for x in np.linspace(ends[0], ends[-1], 60)]


# --- (f) latency terms ---------------------------------------------------------------------


def part_rows(cases: Iterable[Comparison] | Mapping[str, Estimate]) -> list[Row]:
    """Return each plan's mean ms per latency part: predicted in the model's parts, measured in the spans' terms."""
    rows: list[Row] = []
    for name, estimate, measurement in _cases(cases):
        rows += [
            {"plan": name, "source": "predicted", "part": part, "mean_ms": 1e3 * estimate.parts_s[part]}
            for part in _HOP
        ]
        if measurement is not None:
            measured = measurement.parts_s()
            rows += [
                {"plan": name, "source": "measured", "part": part, "mean_ms": 1e3 * measured[part]} for part in TERMS
            ]
    return rows


def plot_parts(rows: Sequence[Row]) -> Figure:
    """Draw each plan's latency as two stacked bars, predicted above measured, one color per part."""
    from plotly import graph_objects as go

    bars = list(dict.fromkeys((row["plan"], row["source"]) for row in rows))
    plans = list(dict.fromkeys(plan for plan, _ in bars))
    paired = len(bars) > len(plans)
    place = {
        bar: -plans.index(bar[0]) + (0.0 if not paired else 0.19 if bar[1] == "predicted" else -0.19) for bar in bars
    }
    figure = go.Figure()
    for part in _STACK:
        of_part = [row for row in rows if row["part"] == part and row["mean_ms"] > 0]
        if of_part:
            figure.add_bar(
                orientation="h", y=[place[row["plan"], row["source"]] for row in of_part],
                x=[row["mean_ms"] for row in of_part], width=0.34 if paired else 0.6, marker=_fill(part),
                name=_part_name(part), hovertemplate=f"{part} %{{x:.3f}} ms<extra></extra>",
            )  # fmt: skip
    for (plan, source), y in place.items():
        total = math.fsum(row["mean_ms"] for row in rows if (row["plan"], row["source"]) == (plan, source))
        text = f"{total:.1f}" + (f" <span style='color:{QUIET}'>{source}</span>" if paired else "")
        place_text = {"x": total, "y": y, "xshift": 6, "xanchor": "left", "yanchor": "middle"}
        figure.add_annotation(text=text, showarrow=False, font={"size": 11.5, "color": INK}, **place_text)
    apply_style(figure, height=110 + (58 if paired else 34) * len(plans))
    figure.update_layout(barmode="stack", margin_t=62)
    figure.update_yaxes(tickvals=[-i for i in range(len(plans))], ticktext=[_text(plan) for plan in plans])
    figure.update_yaxes(showgrid=False, range=[-len(plans) + 0.5, 0.5])
    top = max(math.fsum(row["mean_ms"] for row in rows if (row["plan"], row["source"]) == bar) for bar in bars)
    figure.update_xaxes(range=[0, 1.17 * top], title_text="mean latency [ms]")
    return figure


# --- shared --------------------------------------------------------------------------------


def _cases(
    cases: Iterable[Comparison] | Mapping[str, Estimate],
) -> list[tuple[str, Estimate, Measurement | None]]:
    if isinstance(cases, Mapping):
        return [(name, estimate, None) for name, estimate in cases.items()]
    return [(case.name, case.estimate, case.measurement) for case in cases]


def _columns(table: Mapping[str, ArrayLike], *names: str) -> list[Floats]:
    missing = [name for name in names if name not in table]
    if missing:
        raise InvalidValue(f"a cloud of evaluated plans needs the arrays {list(names)}, but {missing} are missing")
    columns = [np.asarray(table[name], dtype=np.float64) for name in names]
    if len({column.shape for column in columns}) > 1:
        raise InvalidValue(f"the arrays {list(names)} have one entry per plan, but got {[c.shape for c in columns]}")
    return columns


def _xy(rows: Iterable[Row], x: str, y: str) -> dict[str, list[float]]:
    pairs = [(row[x], row[y]) for row in rows]
    return {"x": [pair[0] for pair in pairs], "y": [pair[1] for pair in pairs]}


def _text(name: str) -> str:
    """Return a name that plotly shows as it is; plotly reads some HTML in texts."""
    return html.escape(name, quote=False)


def _fill(part: str) -> dict[str, Any]:
    """Return the bar style of a latency part; a thin outline keeps spans of microseconds visible."""
    marker: dict[str, Any] = {"color": PART_COLORS[part], "line": {"width": 0.6, "color": PART_COLORS[part]}}
    if part == "transfer":
        lines = {"shape": "/", "fgcolor": PART_COLORS["propagation"], "size": 7, "solidity": 0.45}
        marker |= {"pattern": {"bgcolor": PART_COLORS["transmission"], **lines}}
    return marker


def _part_name(part: str) -> str:
    return "transfer (measured)" if part == "transfer" else part


def apply_style(figure: Figure, height: int) -> None:
    figure.update_layout(
        template="none", height=height, font={"family": _FONT, "size": 13, "color": INK},
        margin={"l": 70, "r": 24, "t": 48, "b": 56}, paper_bgcolor="#FFFFFF", plot_bgcolor="#FFFFFF",
        legend={
            "orientation": "h", "y": 1.0, "yref": "container", "yanchor": "top", "x": 0.005, "xref": "container",
            "xanchor": "left", "traceorder": "normal",
        },
        hoverlabel={"font": {"family": _FONT}},
    )  # fmt: skip
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": "#B4BFCA", "automargin": True, "ticks": ""}
    figure.update_xaxes(**axis, showline=True, title_font={"color": QUIET, "size": 13}, title_standoff=12)
    figure.update_yaxes(**axis, title_font={"color": QUIET, "size": 13}, title_standoff=12)


def axis_range(values: Sequence[float], ratio: float) -> tuple[list[float], bool]:
    """Return axis limits with 10 % to spare, and whether the values span a factor beyond ``ratio`` (then in log10)."""
    low, high = min(values), max(values)
    logarithmic = low > 0 and high / low > ratio
    if logarithmic:
        low, high = math.log10(low), math.log10(high)
    spare = 0.10 * (high - low) or 0.05 * abs(high) or 1.0
    return [low - spare, high + spare], logarithmic


def log_axis(logarithmic: bool, limits: Sequence[float]) -> dict[str, Any]:
    """Return the axis settings; plotly alone would write the 2 of 20 ms and of 200 ms alike."""
    if not logarithmic:
        return {"type": "linear", "range": list(limits)}
    steps = (1, 1.5, 2, 3, 5, 7) if limits[1] - limits[0] < 1.2 else (1, 2, 5) if limits[1] - limits[0] < 3 else (1,)
    ticks = [step * 10.0**exponent for exponent in range(-6, 9) for step in steps]
    shown = [tick for tick in ticks if limits[0] <= math.log10(tick) <= limits[1]]
    return {"type": "log", "range": list(limits), "tickvals": shown, "ticktext": [f"{tick:g}" for tick in shown]}


def _label(
    figure: Figure,
    rows: Sequence[Row],
    keys: tuple[str, str],
    limits: tuple[Sequence[float], Sequence[float]],
    *,
    logarithmic: tuple[bool, bool],
    avoid: Sequence[Row],
) -> None:
    """Write each row's ``name`` beside its point, where it covers no other label, point or line."""

    def pixels(row: Row) -> tuple[float, float]:
        x, y = (math.log10(row[key]) if log else row[key] for key, log in zip(keys, logarithmic, strict=True))
        (x0, x1), (y0, y1) = limits
        return (x - x0) / (x1 - x0) * _FRAME_PX[0], (y1 - y) / (y1 - y0) * _FRAME_PX[1]

    points = [pixels(row) for row in rows]
    marks = [*points, *(pixels(row) for row in avoid)]
    offsets = _offsets(points, [row["name"] for row in rows], marks)
    for row, (dx, dy) in zip(rows, offsets, strict=True):
        chosen = row["kind"] == "chosen"
        name = f"<b>{_text(row['name'])}</b>" if chosen else _text(row["name"])
        x, y = (math.log10(row[key]) if log else row[key] for key, log in zip(keys, logarithmic, strict=True))
        figure.add_annotation(
            x=x, y=y, text=name, ax=dx, ay=dy, xanchor="center", yanchor="middle", showarrow=True, arrowhead=0,
            arrowwidth=1, arrowcolor=QUIET, standoff=7, font={"color": CHOSEN if chosen else INK, "size": 12.5},
            bgcolor="rgba(255,255,255,0.8)", borderpad=1,
        )  # fmt: skip


def _offsets(
    points: Sequence[tuple[float, float]], names: Sequence[str], marks: Sequence[tuple[float, float]]
) -> list[tuple[float, float]]:
    """Return for each point the pixels from it to the center of its label, chosen greedily."""
    boxes: list[_Box] = []
    offsets: list[tuple[float, float]] = []
    for point, name in zip(points, names, strict=True):
        half_width = 3.6 * len(name) + 5
        candidates = [
            (side * (half_width + out) if side else 0.0, float(dy))
            for out, side, dy in product((12, 30, 60), (1, -1, 0), (0, -20, 20, -40, 40, -65, 65, -95, 95))
            if side or dy
        ]
        costs = [_cost(_box(point, offset, half_width), offset, boxes, marks) for offset in candidates]
        offsets.append(candidates[costs.index(min(costs))])
        boxes.append(_box(point, offsets[-1], half_width))
    return offsets


def _box(point: tuple[float, float], offset: tuple[float, float], half_width: float) -> _Box:
    x, y = point[0] + offset[0], point[1] + offset[1]
    return x - half_width, y - 10, x + half_width, y + 10


def _cost(box: _Box, offset: tuple[float, float], boxes: Sequence[_Box], marks: Sequence[tuple[float, float]]) -> float:
    x0, y0, x1, y1 = box
    outside = max(0.0, -x0, -y0, x1 - _FRAME_PX[0], y1 - _FRAME_PX[1])
    overlaps = sum(x0 < b[2] and b[0] < x1 and y0 < b[3] and b[1] < y1 for b in boxes)
    covered = sum(x0 - 4 < x < x1 + 4 and y0 - 4 < y < y1 + 4 for x, y in marks)
    return 1000 * overlaps + 60 * covered + 20 * outside + math.hypot(*offset) / 4
