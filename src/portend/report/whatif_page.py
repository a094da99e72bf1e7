"""A sweep as tables for a terminal, as figures, and as one HTML file in the manner of the report.

Plans are lettered in the order in which they appear; one plan has one letter and one tint everywhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from portend.analysis.console import format_ms, format_share
from portend.analysis.whatif import Crossover, Field, Sweep, SweepPoint
from portend.errors import law
from portend.io.storage import write_text
from portend.planner.problem import Metric, Solution, accuracy, latency
from portend.report import figures as plots
from portend.report.render import render
from portend.values.plan import Plan

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from portend.analysis.fitted import FittedTable

__all__ = ["crossover_table", "plot_grid", "plot_sweep", "render_page", "sweep_table", "write_page"]

_TINTS: Final = ("#FBE3CF", "#D6E8F5", "#D5EEE5", "#F5DFEC", "#FBF6CC", "#DDF0FA", "#E8E3F4", "#ECE7DC")
_MISSED: Final = "#ECEEF0"
_LINES: Final = ("#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#5B6B7C", "#8C5A2B", "#A3AFBB")


# --- plans and their letters -----------------------------------------------------------------


class _Names:
    """The different plans of a sweep and its crossovers, lettered along the points."""

    def __init__(self, found: Sweep, crossovers: Sequence[Crossover]) -> None:
        seen = _with_crossovers(found.points, crossovers)
        self.plans: list[Plan] = list(dict.fromkeys(p.plan for p in _in_order(found, seen) if p.plan is not None))
        self.members = [[p for p in seen if p.plan == plan] for plan in self.plans]
        words = [plan.describe(found.tier_names) for plan in self.plans]
        self.texts = [
            found.describe_plan(points[0], codecs=words.count(word) > 1)
            for word, points in zip(words, self.members, strict=True)
        ]

    def letter(self, point: SweepPoint) -> str:
        return "–" if point.plan is None else _letters(self.plans.index(point.plan))

    def tint(self, point: SweepPoint) -> str:
        if point.plan is None or not _met(point):
            return _MISSED
        return _TINTS[self.plans.index(point.plan) % len(_TINTS)]

    def text(self, point: SweepPoint) -> str:
        return f"none: {point.reason}" if point.plan is None else self.texts[self.plans.index(point.plan)]


def _letters(index: int) -> str:
    return (_letters(index // 26 - 1) if index >= 26 else "") + chr(ord("A") + index % 26)


def _with_crossovers(points: Sequence[SweepPoint], crossovers: Sequence[Crossover]) -> list[SweepPoint]:
    return [*points, *(side for crossover in crossovers for side in (crossover.below, crossover.above))]


def _in_order(found: Sweep, points: Sequence[SweepPoint]) -> list[SweepPoint]:
    """Points along the first axis where it has an order, otherwise as they are."""
    if len(found.axes) > 1 or not _numeric(found, 0):
        return list(points)
    return sorted(points, key=lambda point: point.values[0])


def _numeric(found: Sweep, axis: int) -> bool:
    return found.field(axis).ordered and None not in found.axes[axis].values


def _met(one: SweepPoint | Solution) -> bool:
    """Whether the constraints are met."""
    return one.status in ("optimal", "feasible")


def _best_baseline(point: SweepPoint) -> tuple[str, Solution] | None:
    """The baseline that meets the constraints and does best in the first objective."""
    if point.solution is None:
        return None
    met = [(name, s) for name, s in point.solution.baselines.items() if _met(s)]
    metric, sense = point.solution.problem.objectives[0]
    return min(met, key=lambda item: sense * item[1].metrics[metric.name], default=None)


# --- what is drawn and listed ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Goal:
    """The metric that figures draw: the first objective, or mean latency where that is accuracy.

    ``unit``: as shown, so many (``per_unit``) in one of the metric's own.
    """

    metric: Metric
    unit: str
    per_unit: float

    @classmethod
    def of(cls, found: Sweep) -> _Goal:
        first = found.scenario.problem.objectives[0][0]
        metric = latency if first == accuracy else first
        if metric.unit == "s":
            return cls(metric, "ms", 1e3)
        values = [p.solution.metrics[metric.name] for p in found.points if p.solution]
        most = max(map(abs, values), default=1.0)
        prefix, per_unit = next((item for item in _PREFIXES if most * item[1] >= 1), _PREFIXES[-1])
        return cls(metric, prefix + metric.unit, per_unit) if metric.unit in ("J", "USD", "B") else cls(metric, "", 1.0)

    @property
    def name(self) -> str:
        return "mean latency" if self.metric == latency else self.metric.name

    def value(self, solution: Solution) -> float:
        seconds = solution.estimate.mean_s
        return self.per_unit * (seconds if self.metric == latency else solution.metrics[self.metric.name])

    def title(self) -> str:
        shown = self.unit or self.metric.unit
        return self.name + (f" [{shown}]" if shown else "")

    def text(self, solution: Solution) -> str:
        """A value of the objective's column, without its unit where that is ms."""
        if self.unit == "ms":
            return format_ms(self.value(solution) / 1e3)
        return f"{self.value(solution):.4g}"


_PREFIXES: Final = (("M", 1e-6), ("k", 1e-3), ("", 1.0), ("m", 1e3), ("µ", 1e6), ("n", 1e9))


def _others(found: Sweep) -> list[Metric]:
    """The problem's metrics that tables have no column for: all but mean latency, p95 and accuracy."""
    known = {latency.name, accuracy.name, "p95"}
    return [metric for metric in found.scenario.problem.metrics if metric.name not in known]


# --- tables for a terminal -------------------------------------------------------------------


def sweep_table(found: Sweep, crossovers: Sequence[Crossover] = ()) -> FittedTable:
    """Return one row per point: values, the plan, mean and 95th percentile in ms, accuracy, the best baseline."""
    from portend.analysis.fitted import FittedTable

    names = _Names(found, crossovers)
    table = FittedTable(found.asked)
    table.numbers(*(_broken(axis.path) for axis in found.axes))
    table.words("", "plan")
    table.numbers("mean\nms", "p95\nms", "accuracy", *(m.name for m in _others(found)))
    table.words("best\nbaseline")
    for point in found.points:
        values = [found.field(i).format(v) for i, v in enumerate(point.values)]
        note = "  (misses the constraint)" if point.missed else ""
        table.add_row(*values, names.letter(point), names.text(point) + note, *_cells(found, point))
    return table


def _cells(found: Sweep, point: SweepPoint) -> list[str]:
    others = _others(found)
    if point.solution is None:
        return ["–"] * (4 + len(others))
    estimate, best, goal = point.solution.estimate, _best_baseline(point), _Goal.of(found)
    other = f"{goal.text(best[1])} {goal.unit}".rstrip() + f"  {best[0]}" if best else "–"
    own = [
        f"{goal.text(point.solution)} {goal.unit}".rstrip()
        if metric == goal.metric
        else metric.format(point.solution.metrics[metric.name])
        for metric in others
    ]
    times = [format_ms(estimate.mean_s), format_ms(estimate.quantile_s(0.95))]
    return [*times, format_share(estimate.accuracy), *own, other]


def crossover_table(found: Sweep, crossovers: Sequence[Crossover]) -> FittedTable:
    """Return one row per crossover: along which field, where, the plans on both sides, and what each of them gives."""
    from portend.analysis.fitted import FittedTable

    names = _Names(found, crossovers)
    table = FittedTable("Crossovers: where the plan flips")
    table.numbers(*map(_broken, _places_head(found, crossovers)))
    goal = _Goal.of(found)
    table.words("±", "", "kind", fold=False)
    table.numbers(f"{goal.unit or goal.name}\nbelow | above", "accuracy\nbelow | above")
    for crossover in crossovers:
        places = map(_broken, _places(found, crossovers, crossover))
        sides = _sides(goal, crossover)
        table.add_row(*places, _width(crossover), _change(names, crossover), crossover.kind, *sides)
    if not crossovers:
        table.caption = "none: the plan is the same from end to end"
    return table


def _broken(path: str) -> str:
    """A field's path in lines, a part in each."""
    return re.sub(r"([\]a-z]\.)", r"\1\n", path)


def _change(names: _Names, crossover: Crossover) -> str:
    sides = (crossover.below, crossover.above)
    marks = [names.letter(p) + (" ✗" if p.missed else "") for p in sides]
    return f"{marks[0]} → {marks[1]}"


def _several(crossovers: Sequence[Crossover]) -> bool:
    return len({crossover.axis for crossover in crossovers}) > 1


def _places_head(found: Sweep, crossovers: Sequence[Crossover]) -> list[str]:
    """The field along which the plan flips, where there are several, and all fields."""
    return [*(["along"] if _several(crossovers) else []), *(axis.path for axis in found.axes)]


def _places(found: Sweep, crossovers: Sequence[Crossover], crossover: Crossover) -> list[str]:
    """As ``_places_head``: the crossover's own value with more digits, those of the other fields."""
    values = [found.field(i).format(v) for i, v in enumerate(crossover.below.values)]
    values[crossover.axis] = found.field(crossover.axis).format(crossover.value, 10)
    return [*([crossover.path] if _several(crossovers) else []), *values]


def _width(crossover: Crossover) -> str:
    """How far the flip may be from the crossover's value, relatively."""
    low, high = crossover.below.values[crossover.axis], crossover.above.values[crossover.axis]
    return "exact" if isinstance(high, int) else f"{(high - low) / 2 / max(abs(high), 1e-300):.0e}"


def _sides(goal: _Goal, crossover: Crossover) -> list[str]:
    pair = [side.solution for side in (crossover.below, crossover.above)]
    return [
        " | ".join(f"{goal.value(s):.6g}" if s else "–" for s in pair),
        " | ".join(f"{100 * s.estimate.accuracy:.2f} %" if s else "–" for s in pair),
    ]


# --- one field -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Scale:
    """Where values lie on an axis of a figure: in one unit, or, without an order, one after the other."""

    field: Field
    unit: str
    size: float
    logarithmic: bool
    places: tuple[Any, ...]  # the values, where the axis has no order

    @classmethod
    def of(cls, found: Sweep, axis: int) -> _Scale:
        field, values = found.field(axis), found.axes[axis].values
        if found.zipped and len(found.axes) > 1:
            return cls(field, "", 1.0, False, tuple(range(len(found.points))))
        if not _numeric(found, axis):
            return cls(field, "", 1.0, False, values)
        unit, size = field.unit(max(values))
        positive = min(values) > 0 and len(values) > 1
        return cls(field, unit, size, positive and max(values) / min(values) > 6, ())

    def at(self, value: Any) -> float:
        return float(self.places.index(value)) if self.places else value / self.size

    def stretched(self, place: float) -> float:
        """A place as annotations and ranges need it: its logarithm where the axis is logarithmic."""
        return math.log10(place) if self.logarithmic else place

    def title(self) -> str:
        return escape(self.field.path, quote=False) + (f" [{self.unit}]" if self.unit else "")


def plot_sweep(found: Sweep, crossovers: Sequence[Crossover] = ()) -> Figure:
    """Draw the first objective of the plan and of the baselines over one field, above the plan's accuracy.

    Each plan has its band. With ``crossovers`` bands end where the plans flip; without, halfway between points.
    """
    from plotly.subplots import make_subplots

    law(len(found.axes) == 1 or found.zipped, "plot_sweep draws one field; plot_grid draws two")
    names, scale, goal = _Names(found, crossovers), _Scale.of(found, 0), _Goal.of(found)
    points = _ordered(found, scale, crossovers)
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.76, 0.24], vertical_spacing=0.05)
    ends = _limits(found, scale)
    bands = _bands(found, scale, points, crossovers, ends)
    for low, high, point in bands:
        shape: dict[str, Any] = {"type": "rect", "x0": low, "x1": high, "y0": 0, "y1": 1, "xref": "x", "layer": "below"}
        line = {"width": 0}
        for y in ("y domain", "y2 domain"):
            figure.add_shape(**shape, yref=y, fillcolor=names.tint(point), line=line)
    for index, (label, values) in enumerate(_baseline_lines(found, goal).items()):
        style: dict[str, Any] = {
            "color": _LINES[index % len(_LINES)],
            "width": 1.6,
            "dash": "solid" if index < len(_LINES) else "dot",
        }
        xs = [_x(found, scale, point) for point in found.points]
        pairs = sorted(zip(xs, values, strict=True))
        figure.add_scatter(
            x=[x for x, _ in pairs], y=[y for _, y in pairs], mode="lines+markers", line=style, marker={"size": 4},
            legendrank=1001 + index,
            name=escape(label, quote=False), row=1, col=1,
        )  # fmt: skip
    _plan_lines(figure, found, scale, points, names, goal)
    y_values = [y for trace in figure.data if trace.yaxis in (None, "y") for y in trace.y if y is not None]
    limits, logarithmic = plots.axis_range(y_values or [1.0], ratio=2.5)
    plots.apply_style(figure, height=640)
    figure.update_layout(
        margin={"t": 56 if crossovers else 20, "b": 140, "l": 70, "r": 28}, hovermode="closest",
        legend={"y": 0.0, "yanchor": "bottom", "x": 0.5, "xanchor": "center"},
    )  # fmt: skip
    figure.update_yaxes(
        **plots.log_axis(logarithmic, limits),
        title_text="latency [ms]" if goal.metric == latency else escape(goal.title(), quote=False),
        row=1,
        col=1,
    )
    shares = [p.solution.estimate.accuracy for p in points if p.solution] or [1.0]
    spare = max(0.15 * (max(shares) - min(shares)), 0.004)
    range_ = [min(shares) - spare, max(shares) + spare]
    form = ".0%" if range_[1] - range_[0] > 0.05 else ".1%"
    figure.update_yaxes(tickformat=form, title_text="accuracy", nticks=4, range=range_, row=2, col=1)
    _x_axis(figure, found, scale, ends)
    figure.update_xaxes(title_text=_x_title(found, scale), row=2, col=1)
    _letters_on(figure, scale, bands, names, ends)
    _crossover_marks(figure, found, scale, crossovers, ends)
    _given_mark(figure, found, scale, ends)
    return figure


def _x(found: Sweep, scale: _Scale, point: SweepPoint) -> float:
    return float(found.points.index(point)) if found.zipped and len(found.axes) > 1 else scale.at(point.values[0])


def _x_title(found: Sweep, scale: _Scale) -> str:
    return " | ".join(axis.path for axis in found.axes) if found.zipped else scale.title()


def _ordered(found: Sweep, scale: _Scale, crossovers: Sequence[Crossover]) -> list[SweepPoint]:
    points = _with_crossovers(found.points, crossovers)
    return points if scale.places else sorted(points, key=lambda point: scale.at(point.values[0]))


def _limits(found: Sweep, scale: _Scale) -> tuple[float, float]:
    """Ends of the x axis, as places."""
    if scale.places:
        return -0.5, len(found.points) - 0.5
    places = [scale.at(v) for v in found.axes[0].values]
    low, high = min(places), max(places)
    return (low, high) if high > low else (low - (abs(low) or 1.0) / 10, high + (abs(high) or 1.0) / 10)


def _bands(
    found: Sweep,
    scale: _Scale,
    points: Sequence[SweepPoint],
    crossovers: Sequence[Crossover],
    ends: tuple[float, float],
) -> list[tuple[float, float, SweepPoint]]:
    """Stretches of the axis with one plan: from, to, a point inside."""
    flips = {id(c.below): c for c in crossovers}
    edges, inside = [ends[0]], [points[0]]
    for a, b in pairwise(points):
        if a.decides_like(b):
            continue
        if id(a) in flips:
            edges.append(scale.at(flips[id(a)].value))
        elif scale.logarithmic:
            edges.append(math.sqrt(_x(found, scale, a) * _x(found, scale, b)))
        else:
            edges.append((_x(found, scale, a) + _x(found, scale, b)) / 2)
        inside.append(b)
    return [(low, high, point) for (low, high), point in zip(pairwise([*edges, ends[1]]), inside, strict=True)]


def _baseline_lines(found: Sweep, goal: _Goal) -> dict[str, list[float | None]]:
    """Each baseline's first objective at every point, None where it misses the constraints; equal ones as one."""
    names = dict.fromkeys(n for p in found.points if p.solution for n in p.solution.baselines)
    lines: dict[tuple[float | None, ...], list[str]] = {}
    for name in names:
        solutions = [p.solution.baselines.get(name) if p.solution else None for p in found.points]
        values = tuple(goal.value(s) if s and _met(s) else None for s in solutions)
        if any(value is not None for value in values):
            lines.setdefault(values, []).append(name)
    return {", ".join(same): list(values) for values, same in lines.items()}


def _plan_lines(
    figure: Figure, found: Sweep, scale: _Scale, points: Sequence[SweepPoint], names: _Names, goal: _Goal
) -> None:
    """The plan's first objective and accuracy, of latency also p95; hollow markers where it misses the constraints."""
    xs = [_x(found, scale, p) if p in found.points else scale.at(p.values[0]) for p in points]
    estimates = [p.solution.estimate if p.solution else None for p in points]
    hover = [f"{names.letter(p)}: {escape(names.text(p), quote=False)}" for p in points]
    color, swept = plots.CHOSEN, set(map(id, found.points))
    sizes = [7 if id(p) in swept else 0.1 for p in points]
    fills = [color if _met(p) else "#FFFFFF" for p in points]
    marker = {"size": sizes, "color": fills, "line": {"color": color, "width": 1.5}, "opacity": 1}
    mean = [goal.value(p.solution) if p.solution else None for p in points]
    tail = [1e3 * e.quantile_s(0.95) if e else None for e in estimates]
    share = [e.accuracy if e else None for e in estimates]
    text = {"text": hover, "hovertemplate": "%{y:.4g}<br>%{text}<extra></extra>"}
    dashed = {"color": color, "width": 1.3, "dash": "dot"}
    if goal.metric == latency:
        figure.add_scatter(
            x=xs, y=tail, mode="lines", line=dashed, name="plan, 95th percentile", legendrank=2, row=1, col=1
        )
    figure.add_scatter(
        x=xs, y=mean, mode="lines+markers", line={"color": color, "width": 3}, marker=marker,
        name="<b>plan, mean</b>" if goal.metric == latency else "<b>plan</b>",
        legendrank=1,
        row=1, col=1, **text,
    )  # fmt: skip
    figure.add_scatter(
        x=xs, y=share, mode="lines+markers", line={"color": color, "width": 2}, marker=marker | {"line": {"width": 1}},
        showlegend=False, name="accuracy", row=2, col=1, **text,
    )  # fmt: skip


def _x_axis(figure: Figure, found: Sweep, scale: _Scale, ends: tuple[float, float]) -> None:
    if scale.places:
        labels = [" | ".join(found.field(i).format(v) for i, v in enumerate(point.values)) for point in found.points]
        figure.update_xaxes(tickvals=list(range(len(labels))), ticktext=labels, range=list(ends), showgrid=False)
        return
    figure.update_xaxes(**plots.log_axis(scale.logarithmic, [scale.stretched(x) for x in ends]))


def _letters_on(
    figure: Figure,
    scale: _Scale,
    bands: Sequence[tuple[float, float, SweepPoint]],
    names: _Names,
    ends: tuple[float, float],
) -> None:
    """Write each band's letter into it, at the top, where it has room."""
    left, right = map(scale.stretched, ends)
    for band in bands:
        low, high = map(scale.stretched, band[:2])
        point = band[2]
        missed = " ✗" if point.missed else ""
        letter = "no plan" if point.plan is None else f"{names.letter(point)}{missed}"
        if (high - low) / (right - left) < 0.012 * (1 + len(letter)):
            continue
        figure.add_annotation(
            x=(low + high) / 2, y=1, xref="x", yref="y domain", text=f"<b>{letter}</b>", showarrow=False,
            yanchor="top", yshift=-3, font={"size": 15, "color": plots.INK},
        )  # fmt: skip


def _crossover_marks(
    figure: Figure, found: Sweep, scale: _Scale, crossovers: Sequence[Crossover], ends: tuple[float, float]
) -> None:
    """A line at each crossover through both panels, its value above where there is room on one of three levels."""
    low, high = map(scale.stretched, ends)
    free = [-math.inf] * 3
    for crossover in sorted(crossovers, key=lambda c: c.value):
        x = scale.at(crossover.value)
        line = {"color": plots.INK, "width": 1.2 if len(crossovers) <= 12 else 0.6, "dash": "dash"}
        figure.add_shape(type="line", x0=x, x1=x, y0=0, y1=1, xref="x", yref="paper", line=line)
        share = (scale.stretched(x) - low) / (high - low)
        level = next((i for i, end in enumerate(free) if share > end), None)
        if level is not None:
            free[level] = share + 0.11
            figure.add_annotation(
                x=scale.stretched(x), y=1, xref="x", yref="paper", text=found.field(0).format(crossover.value, 5),
                showarrow=False, yanchor="bottom", yshift=2 + 15 * level, font={"size": 12, "color": plots.INK},
            )  # fmt: skip


def _given_mark(figure: Figure, found: Sweep, scale: _Scale, ends: tuple[float, float]) -> None:
    """A thin line where the scenario's own value lies."""
    if scale.places:
        return
    own = found.field(0).read(found.scenario)
    if own is None or not math.isfinite(own) or not ends[0] <= own / scale.size <= ends[1]:
        return
    if scale.logarithmic and own <= 0:
        return
    x = scale.at(own)
    line = {"color": plots.QUIET, "width": 1, "dash": "dot"}
    figure.add_shape(type="line", x0=x, x1=x, y0=0, y1=1, xref="x", yref="y domain", line=line)
    figure.add_annotation(
        x=scale.stretched(x), y=0, xref="x", yref="y domain", text="as given", showarrow=False, yanchor="bottom",
        xanchor="left" if x < ends[1] else "right", xshift=3, font={"size": 11, "color": plots.QUIET},
    )  # fmt: skip


# --- two fields --------------------------------------------------------------------------------


def plot_grid(found: Sweep, crossovers: Sequence[Crossover] = ()) -> Figure:
    """Draw two fields twice: the plan of each point, with crossovers as bars, above its first objective."""
    from plotly.subplots import make_subplots

    law(len(found.axes) == 2 and not found.zipped, "plot_grid draws two fields; plot_sweep draws one")
    names, columns, rows = _Names(found, crossovers), found.axes[0].values, found.axes[1].values
    goal = _Goal.of(found)
    cell = {point.values: point for point in found.points}
    grid = [[cell[x, y] for x in columns] for y in rows]
    shared: dict[str, Any] = {
        "customdata": [[_hover(found, names, p) for p in line] for line in grid],
        "hovertemplate": "%{customdata}<extra></extra>", "texttemplate": "%{text}", "xgap": 1, "ygap": 1,
        "textfont": {"size": 13, "color": plots.INK},
    }  # fmt: skip
    titles = ["<b>best plan</b>", f"<b>its {escape(goal.title(), quote=False)}</b>"]
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.09, subplot_titles=titles)
    tints = list(dict.fromkeys(names.tint(p) for line in grid for p in line))
    steps = [(k + end) / len(tints) for k in range(len(tints)) for end in (0, 1)]
    figure.add_heatmap(
        z=[[tints.index(names.tint(p)) for p in line] for line in grid], zmin=-0.5, zmax=len(tints) - 0.5,
        colorscale=[[step, tints[k // 2]] for k, step in enumerate(steps)], showscale=False,
        text=[[names.letter(p) + (" ✗" if p.missed else "") for p in line] for line in grid],
        row=1, col=1, **shared,
    )  # fmt: skip
    means = [[goal.value(p.solution) if p.solution else None for p in line] for line in grid]
    flat = [mean for line in means for mean in line if mean]
    logarithmic = bool(flat) and min(flat) > 0 and max(flat) / min(flat) > 6
    shades = [[math.log10(mean) if logarithmic and mean else mean for mean in line] for line in means]
    readable = len(columns) <= 16
    figure.add_heatmap(
        z=shades, colorscale=[[0, "#F7FBFF"], [1, "#74B3DB"]], showscale=False,
        text=[[goal.text(p.solution) if p.solution and readable else "" for p in line] for line in grid],
        row=2, col=1, **shared,
    )  # fmt: skip
    places = [_place(found, crossover) for crossover in crossovers]
    line = {"color": plots.CHOSEN, "width": 3}
    for (x, y), crossover in zip(places, crossovers, strict=True):
        dx, dy = (0.0, 0.48) if crossover.axis == 0 else (0.48, 0.0)
        figure.add_shape(type="line", x0=x - dx, x1=x + dx, y0=y - dy, y1=y + dy, line=line, row=1, col=1)
    if places:
        figure.add_scatter(
            x=[x for x, _ in places], y=[y for _, y in places], mode="markers", showlegend=False,
            marker={"color": plots.CHOSEN, "size": 5},
            text=[", ".join(_places(found, crossovers, c)) for c in crossovers],
            hovertemplate="%{text}<extra></extra>", row=1, col=1,
        )  # fmt: skip
    plots.apply_style(figure, height=150 + 2 * max(32 * len(rows), 130))
    figure.update_layout(margin={"t": 34, "r": 16})
    figure.update_annotations(x=0, xanchor="left", font={"size": 13, "color": plots.INK})
    for index, update in enumerate((figure.update_xaxes, figure.update_yaxes)):
        own, values = found.field(index), found.axes[index].values
        every = math.ceil(len(values) / 16)
        labels = [own.format(value, 3) for value in values][::every]
        update(tickvals=list(range(len(values)))[::every], ticktext=labels, showgrid=False)
    figure.update_xaxes(title_text=escape(found.axes[0].path, quote=False), row=2, col=1)
    figure.update_yaxes(title_text=escape(found.axes[1].path, quote=False))
    return figure


def _place(found: Sweep, crossover: Crossover) -> tuple[float, float]:
    """Column and row of a crossover between the cells' centers."""
    place = []
    for index, axis in enumerate(found.axes):
        if index != crossover.axis:
            place.append(float(axis.values.index(crossover.below.values[index])))
            continue
        order = sorted(range(len(axis.values)), key=axis.values.__getitem__)
        a, b = next((a, b) for a, b in pairwise(order) if axis.values[a] <= crossover.value <= axis.values[b])
        low, high = axis.values[a], axis.values[b]
        if low > 0 and high / low > 1.5:
            share = math.log(crossover.value / low) / math.log(high / low)
        else:
            share = (crossover.value - low) / (high - low)
        place.append(a + share * (b - a))
    return place[0], place[1]


def _hover(found: Sweep, names: _Names, point: SweepPoint) -> str:
    lines = [f"{axis.path} = {found.field(i).format(point.values[i])}" for i, axis in enumerate(found.axes)]
    lines.append(f"{names.letter(point)}: {names.text(point)}")
    if point.solution:
        e = point.solution.estimate
        metrics = {m.name: m.format(point.solution.metrics[m.name]) for m in found.scenario.problem.metrics}
        known = (latency.name, accuracy.name)
        own = "".join(f", {name} {value}" for name, value in metrics.items() if name not in known)
        lines.append(f"mean {format_ms(e.mean_s)} ms, accuracy {format_share(e.accuracy)}{own}, {point.status}")
    return "<br>".join(escape(line, quote=False) for line in lines)


# --- the page ----------------------------------------------------------------------------------


def write_page(path: str | Path, found: Sweep, crossovers: Sequence[Crossover] | None = None) -> Path:
    """Write the sweep to ``path`` as one HTML file, whole or not at all, and return the path."""
    write_text(render_page(found, crossovers), path)
    return Path(path)


def render_page(found: Sweep, crossovers: Sequence[Crossover] | None = None) -> str:
    """Return the sweep as HTML text; ``crossovers`` None: they were not looked for."""
    law(found.zipped or len(found.axes) <= 2, f"a figure shows one or two fields, but {len(found.axes)} were swept")
    flips = crossovers or ()
    names, goal = _Names(found, flips), _Goal.of(found)
    two = len(found.axes) == 2 and not found.zipped
    paths = [axis.path for axis in found.axes]
    return render(
        "whatif.html.j2",
        title=f"What if: {', '.join(paths)}",
        found=found,
        paths=paths,
        two=two,
        searched=crossovers is not None,
        goal=goal,
        figure=plot_grid(found, flips) if two else plot_sweep(found, flips),
        plans=_plans(found, names, flips),
        plan_metrics=[metric.name for metric in _shown(found)],
        crossovers=[_crossover(found, names, goal, flips, one) for one in flips],
        crossovers_head=_places_head(found, flips),
        points=[_point(found, names, point) for point in found.points],
        point_metrics=[metric.name for metric in _others(found)],
    )


def _chip(names: _Names, point: SweepPoint) -> dict[str, str]:
    return {"letter": names.letter(point), "tint": names.tint(point)}


def _shown(found: Sweep) -> list[Metric]:
    """The problem's metrics that the table of plans has no column for: all but mean latency and accuracy."""
    return [metric for metric in found.scenario.problem.metrics if metric.name not in (latency.name, accuracy.name)]


def _plans(found: Sweep, names: _Names, crossovers: Sequence[Crossover]) -> list[dict[str, Any]]:
    """Each plan with the values for which it is chosen, and what it gives there."""

    def span(texts: Iterable[str]) -> str:
        return "–".join(dict.fromkeys(texts))

    rows: list[dict[str, Any]] = []
    for plan, text, members in zip(names.plans, names.texts, names.members, strict=True):
        solutions = [p.solution for p in members if p.solution]
        means = [s.estimate.mean_s for s in solutions]
        values = {metric: [s.metrics[metric.name] for s in solutions] for metric in _shown(found)}
        rows.append(
            {
                "chip": _chip(names, next((p for p in members if _met(p)), members[0])),
                "text": text,
                "best_for": _spans(found, plan, crossovers),
                "mean_ms": span(map(format_ms, (min(means), max(means)))),
                "accuracy": " to ".join(sorted({format_share(s.estimate.accuracy) for s in solutions})),
                "values": [span(map(metric.format, (min(some), max(some)))) for metric, some in values.items()],
            }
        )
    return rows


def _spans(found: Sweep, plan: Plan, crossovers: Sequence[Crossover]) -> list[str]:
    """Between which values a plan is chosen; where several fields are swept, at how many points."""
    if len(found.axes) > 1 or not _numeric(found, 0):
        return [f"{sum(p.plan == plan for p in found.points)} of {len(found.points)} points"]
    field, points = found.field(0), _in_order(found, _with_crossovers(found.points, crossovers))
    spans = []
    for same, stretch in groupby(points, key=lambda point: point.plan == plan):
        values = [point.values[0] for point in stretch]
        if same:
            spans.append("–".join(dict.fromkeys((field.format(values[0]), field.format(values[-1])))))
    return spans


def _crossover(
    found: Sweep, names: _Names, goal: _Goal, crossovers: Sequence[Crossover], one: Crossover
) -> dict[str, Any]:
    return {
        "places": _places(found, crossovers, one),
        "width": _width(one),
        "sides": [_chip(names, point) | {"missed": point.missed} for point in (one.below, one.above)],
        "kind": one.kind,
        "values": _sides(goal, one),
    }


def _point(found: Sweep, names: _Names, point: SweepPoint) -> dict[str, Any]:
    return {
        "at": " | ".join(found.field(i).format(v) for i, v in enumerate(point.values)),
        "chip": _chip(names, point),
        "cells": _cells(found, point),
        "status": point.status,
    }
