"""A validation as tables for a terminal, as figures, and as one HTML file in the manner of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from portend.analysis.compare import TERMS, Fit
from portend.analysis.console import format_error, format_ms, format_share
from portend.analysis.validation import PAPER, Attribution, Case, Validation, Verdict
from portend.io.storage import write_text
from portend.report import figures as plots
from portend.report import page as report
from portend.units import signed
from portend.values.profile import Profile
from portend.values.topology import Topology

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from portend.analysis.fitted import FittedTable

__all__ = [
    "agreement_rows",
    "front_rows",
    "plot_agreement",
    "plot_fronts",
    "render_page",
    "targets_table",
    "worst_table",
    "write_page",
]

Row = dict[str, Any]

_TITLES: Final = {"exit_rate": "Exit rate", "latency": "Mean latency", "accuracy": "Accuracy"}
_FIGURES: Final = {"beta": "β", "r2": "R²", "mape": "MAPE"}
_SHOWN_CDFS: Final = 6
_STYLE: Final = """
td.words, .verdicts th:last-child { text-align: left; white-space: normal; }
td:first-of-type { color: inherit; }
h3 { margin: 18px 0 4px; }
.scroll + .note { margin-top: 14px; }
"""


# --- for a terminal ------------------------------------------------------------------------


def targets_table(found: Validation) -> FittedTable:
    """Return one row per target: what was reached, and what explains it where it was missed."""
    from portend.analysis.fitted import FittedTable

    table = FittedTable(f"{len(found.cases)} plans")
    table.words("")
    table.numbers("found", "target", "")
    table.words("mostly because of")
    for verdict in found.verdicts():
        table.add_row(*_verdict(verdict))
    return table


def worst_table(found: Validation, tier_names: Sequence[str]) -> FittedTable:
    """Return one row for each of the plans with the largest errors, and the part that explains it."""
    from portend.analysis.fitted import FittedTable

    table = FittedTable("Worst plans")
    table.words("plan")
    table.numbers("mean ms\npred / meas", "error")
    table.words("explained by")
    for case in found.worst(5):
        name, size = _explained(case)
        table.add_row(
            f"{case.name}  {case.comparison.plan.describe(tier_names)}",
            f"{format_ms(case.comparison.estimate.mean_s)} / {format_ms(case.measured_s)}",
            format_error(case.comparison.error),
            f"{name}, {signed(1e3 * size, 2)} ms",
        )
    return table


def _verdict(verdict: Verdict) -> list[str]:
    target = verdict.target
    value = "–" if verdict.value is None else _figure(target.figure, verdict.value)
    name = f"{_TITLES[target.quantity].lower()} {_FIGURES[target.figure]}"
    return [name, value, _target(verdict), "✓" if verdict.met else "✗", verdict.why]


def _figure(name: str, value: float) -> str:
    return f"{100 * value:.2f} %" if name == "mape" else f"{value:.4f}"


def _target(verdict: Verdict) -> str:
    target = verdict.target
    if target.figure == "mape":
        return f"≤ {100 * target.high:g} %"
    if target.figure == "r2":
        return f"≥ {target.low:g}"
    return f"1 ± {(target.high - target.low) / 2:.2g}"


def _explained(case: Case) -> tuple[str, float]:
    parts = case.comparison.contributions_s
    name = max(parts, key=lambda key: abs(parts[key]))
    return name, parts[name]


# --- figures: predicted over measured (paper, Fig. 4) ----------------------------------------


def agreement_rows(found: Validation) -> list[Row]:
    """Return ``measured`` and ``predicted`` of each quantity, estimator and plan (exit rates: and branch).

    Latencies in ms; shares as fractions of 1. Exit rates are of all branches, as in the paper's figure.
    """
    rows: list[Row] = []
    for case in found.cases:
        measured = case.comparison.measurement
        for estimator, estimate in (("sample", case.comparison.estimate), ("marginal", case.marginal)):
            pairs = [("exit_rate", x, y) for x, y in zip(measured.exit_rates(), estimate.share, strict=True)]
            pairs += [("latency", 1e3 * measured.mean_s, 1e3 * estimate.mean_s)]
            pairs += [("accuracy", measured.accuracy, estimate.accuracy)]
            rows += [
                {
                    "plan": case.name,
                    "estimator": estimator,
                    "quantity": quantity,
                    "measured": float(x),
                    "predicted": float(y),
                }
                for quantity, x, y in pairs
            ]
    return rows


def plot_agreement(rows: Sequence[Row]) -> Figure:
    """Draw predicted over measured exit rates, latencies and accuracies, one panel each, both estimators."""
    from plotly.subplots import make_subplots

    titles = [f"<b>({'abc'[i]}) {title}</b>" for i, title in enumerate(_TITLES.values())]
    figure = make_subplots(rows=1, cols=3, subplot_titles=titles, horizontal_spacing=0.085)
    marks: dict[str, dict[str, Any]] = {
        "marginal": {"size": 7, "symbol": "circle-open", "color": "#0072B2", "line": {"width": 1.3}},
        "sample": {"size": 6, "color": plots.CHOSEN, "opacity": 0.85},
    }
    names = {"sample": "Portend: samples replayed", "marginal": "the paper's marginal estimator"}
    for column, quantity in enumerate(_TITLES, start=1):
        shown = [row for row in rows if row["quantity"] == quantity]
        values = [row[key] for row in shown for key in ("measured", "predicted")]
        limits, logarithmic = plots.axis_range(values, ratio=6 if quantity == "latency" else math.inf)
        ends = [10**x for x in limits] if logarithmic else limits
        line = {"color": plots.QUIET, "width": 1}
        figure.add_scatter(
            x=ends, y=ends, mode="lines", line=line, name="predicted = measured", hoverinfo="skip",
            showlegend=column == 1, row=1, col=column,
        )  # fmt: skip
        for estimator, marker in marks.items():
            of_it = [row for row in shown if row["estimator"] == estimator]
            figure.add_scatter(
                x=[row["measured"] for row in of_it], y=[row["predicted"] for row in of_it], mode="markers",
                marker=marker, name=names[estimator], legendgroup=estimator, showlegend=column == 1,
                text=[row["plan"] for row in of_it], row=1, col=column,
                hovertemplate="%{text}: %{x} measured, %{y} predicted<extra></extra>",
            )  # fmt: skip
        unit = " [ms]" if quantity == "latency" else ""
        axis = plots.log_axis(logarithmic, limits) | ({} if unit else {"tickformat": ".0%"})
        figure.update_xaxes(axis, title_text=f"measured{unit}", row=1, col=column)
        figure.update_yaxes(axis, title_text=f"predicted{unit}" if column == 1 or unit else "", row=1, col=column)
    plots.apply_style(figure, height=410)
    figure.update_layout(margin_t=86)
    figure.update_annotations(font={"size": 13, "color": plots.INK}, yshift=4)
    return figure


# --- figure: the front -----------------------------------------------------------------------


def front_rows(found: Validation) -> list[Row]:
    """Return every plan's measured latency in ms and accuracy, and the two fronts as steps.

    ``kind``: ``plan``; ``measured`` and ``predicted``: the plans that no other beats, by the numbers of that name.
    """
    predicted, measured = found.fronts()
    rows = [_point("plan", case, case.measured_s, case.accuracy) for case in found.cases]
    rows += [_point("measured", case, case.measured_s, case.accuracy) for case in measured]
    return rows + [_point("predicted", case, case.before.mean_s, case.before.accuracy) for case in predicted]


def _point(kind: str, case: Case, seconds: float, accuracy: float) -> Row:
    return {"kind": kind, "plan": case.name, "latency_ms": 1e3 * seconds, "accuracy": accuracy}


def plot_fronts(rows: Sequence[Row]) -> Figure:
    """Draw the plans as measured, the front of the measurements, and the front of the predictions."""
    from plotly import graph_objects as go

    figure = go.Figure()
    styles: dict[str, dict[str, Any]] = {
        "plan": {"mode": "markers", "marker": {"size": 6, "color": "#A3AFBB"}, "name": "plans, measured"},
        "measured": {
            "mode": "lines+markers",
            "line": {"color": plots.INK, "width": 2, "shape": "hv"},
            "marker": {"size": 7, "color": plots.INK},
            "name": "front, measured",
        },
        "predicted": {
            "mode": "lines+markers",
            "line": {"color": plots.CHOSEN, "width": 1.8, "dash": "dot", "shape": "hv"},
            "marker": {"size": 9, "symbol": "diamond-open", "color": plots.CHOSEN, "line": {"width": 1.5}},
            "name": "front, predicted",
        },
    }
    for kind, style in styles.items():
        some = [row for row in rows if row["kind"] == kind]
        figure.add_scatter(
            x=[row["latency_ms"] for row in some], y=[row["accuracy"] for row in some],
            text=[row["plan"] for row in some], hovertemplate="%{text}: %{x:.1f} ms, %{y:.1%}<extra></extra>", **style,
        )  # fmt: skip
    limits, logarithmic = plots.axis_range([row["latency_ms"] for row in rows], ratio=6)
    heights, _ = plots.axis_range([row["accuracy"] for row in rows], ratio=math.inf)
    plots.apply_style(figure, height=460)
    figure.update_xaxes(**plots.log_axis(logarithmic, limits), title_text="mean latency [ms]")
    figure.update_yaxes(range=[heights[0], min(heights[1], 1.01)], tickformat=".0%", title_text="accuracy")
    return figure


# --- the page ----------------------------------------------------------------------------------


def write_page(path: str | Path, found: Validation, profile: Profile, topology: Topology) -> Path:
    """Write the validation to ``path`` as one HTML file, whole or not at all, and return the path."""
    write_text(render_page(found, profile, topology), path)
    return Path(path)


def render_page(found: Validation, profile: Profile, topology: Topology) -> str:
    """Return the validation as HTML text."""
    names = [tier.name for tier in topology.tiers]
    title = f"Validation: {profile.backbone.name} on the topology {topology.name}"
    sections = [
        _headline(found, title),
        report.html_section("Targets", _targets(found), _targets_note(found)),
        report.html_figure("agreement", "Predicted and measured", plot_agreement(agreement_rows(found)), _AGREEMENT),
        report.html_section("Beside the paper", _paper(found), _PAPER_NOTE),
        report.html_section("Latency, term by term", _terms(found), _TERMS_NOTE),
        report.html_section("What explains the errors", _attributions(found), _ATTRIBUTION),
        report.html_section("Worst plans", _worst(found, names), _WORST),
        report.html_section("Regret", _regret(found), _REGRET),
        report.html_figure(
            "fronts", "The Pareto front of the campaign", plot_fronts(front_rows(found)), _front_note(found)
        ),
        report.html_figure("cdf", "How latency is distributed", plots.plot_cdf(_cdf_rows(found, names)), _CDF),
        report.html_section(
            "By kind of plan", _factors(found), "Errors of the mean latency: (predicted − measured) / measured."
        ),
        report.html_section("Where the numbers come from", _provenance(found, profile)),
    ]
    body = "\n".join(sections).replace(" %", "&nbsp;%")
    return report.html_page(title, body, report.STYLE + _STYLE)


_AGREEMENT: Final = (
    "The paper's Fig. 4, with both estimators on the same plans: each point is one plan, or one branch of a plan for "
    "exit rates. On the line, predicted and measured are equal."
)
_PAPER_NOTE: Final = (
    "β and R² of the least-squares line, with intercept, of predicted on measured; the paper's values are read off its "
    "Fig. 4 and are of its own testbed, networks and plans. Exit rates: all branches, as the paper counts."
)
_TERMS_NOTE: Final = (
    "Over the plans, mean ms per sample. β₀ is the slope of the line through the origin; bias and RMSE are of "
    "predicted − measured. A message's transmission, propagation and dispatch can only be measured as one transfer; "
    "<b>other</b> is what no span covers, which the model says is zero. MAPE is over plans that have the term."
)
_ATTRIBUTION: Final = (
    "A plan's error is a sum of parts: what wrong exit rates change, then each term at the exit rates that were "
    "measured. Over the plans the parts' slopes add up to β − 1, and their shares of the squared error to 100 %; a "
    "part that makes up for another has a negative share."
)
_WORST: Final = "The largest relative errors of the mean latency, and each error's parts in ms (predicted − measured)."
_REGRET: Final = (
    "Of the plans whose <b>measured</b> accuracy reaches the bound: how much slower, as measured, is the one that was "
    "predicted fastest, by the profile alone, than the one measured fastest. ± is the standard error of that "
    "difference; the measured best is partly best by luck, so noise tends to make the regret larger. The last columns "
    "take the plan as a planner does, by <b>predicted</b> accuracy too, and say what it reached."
)
_CDF: Final = (
    "Some of the plans, evenly along their latency. Each dotted step is one exit: its height is the share that leaves "
    "there, its place the latency; the solid line is measured."
)


def _headline(found: Validation, title: str) -> str:
    latency, exits, accuracy = found.latency(), found.exit_rate(), found.accuracy()
    runs = sum(len(case.comparison.measurement) for case in found.cases)
    tests = max(case.comparison.test_samples for case in found.cases)
    of = "" if len(found.cases) == found.planned else f" of {found.planned} (the campaign is not finished)"
    disturbed, quiet = len(found.disturbed), found.undisturbed
    warning = ""
    if disturbed:
        others = (
            f"; the mean latency of the others has β {_number(quiet.beta)}, R² {_number(quiet.r2)}, "
            f"MAPE {_percent(quiet.mape)} (n = {quiet.n})"
            if quiet.n
            else ""
        )
        which = f"{disturbed} of the plans" if quiet.n else "every plan"
        warning = f"<p class='bad'>The machine was disturbed while {which} ran{others}.</p>"
    cards = "".join(
        report.html_card(f"{name} β", _number(one.beta), f"R² {_number(one.r2)} · {size} · n = {one.n}")
        for name, one, size in (
            ("Mean latency", latency, f"MAPE {_percent(latency.mape)}"),
            ("Exit rate", exits, f"RMSE {_points(exits.rmse)}"),
            ("Accuracy", accuracy, f"RMSE {_points(accuracy.rmse)}"),
        )
    )
    return (
        f"<header><h1>{escape(title)}</h1><p class='problem'>{len(found.cases)} plans{of} predicted, then run: "
        f"{runs:,} samples, which stand for tests of {tests:,}, one at a time on the idle system.</p></header>"
        f"<section class='headline'><div class='cards'>{cards}</div>{warning}</section>"
    )


def _targets(found: Validation) -> str:
    rows = []
    for verdict in found.verdicts():
        name, value, target, _, why = _verdict(verdict)
        mark = "<span class='good'>✓</span>" if verdict.met else "<span class='bad'>✗</span>"
        cells = f"{report.html_cells([f'<b>{value}</b>', target, mark])}<td class='words'>{escape(why)}</td>"
        rows.append(f"<tbody><tr><th scope='row'>{escape(name[0].upper() + name[1:])}</th>{cells}</tr></tbody>")
    table = report.html_table(["", "Found", "Target", "", "Where missed: mostly because of"], rows)
    return f"<div class='verdicts'>{table}</div>"


def _targets_note(found: Validation) -> str:
    before, exact = found.latency(lambda case: case.before), found.latency_at_measured_exits
    drift = found.speed_drift
    return (
        "Latencies are predicted for the speed that the tiers had while each plan ran: its partitions were timed "
        f"between its samples. Meanwhile computing took {100 * abs(drift):.1f} % {'longer' if drift > 0 else 'less'} "
        f"than in the profile. By the profile alone, as written down before anything ran: β {_number(before.beta)}, R² "
        f"{_number(before.r2)}, MAPE {_percent(before.mape)}. With the exit rates that were measured: β "
        f"{_number(exact.beta)}, R² {_number(exact.r2)}, MAPE {_percent(exact.mape)}. Exit rates count where the plan "
        "leaves them open."
    )


def _paper(found: Validation) -> str:
    networks = list(PAPER["latency"])
    ours: Mapping[str, tuple[Fit, Fit]] = {
        "exit_rate": (found.exit_rate(all_=True), found.exit_rate(lambda case: case.marginal, all_=True)),
        "latency": (found.latency(), found.latency(lambda case: case.marginal)),
        "accuracy": (found.accuracy(), found.accuracy(lambda case: case.marginal)),
    }
    rows = []
    for quantity, title in _TITLES.items():
        here = [f"<b>{_number(one.beta)} / {_number(one.r2)}</b>" for one in ours[quantity]]
        there = ["{:.2f} / {:.2f}".format(*PAPER[quantity][network]) for network in networks]
        rows.append(f"<tbody><tr><th scope='row'>{title}</th>{report.html_cells([*here, *there])}</tr></tbody>")
    head = ["β / R²", "Here, samples replayed", "Here, marginal estimator", *(f"Paper, {name}" for name in networks)]
    return report.html_table(head, rows)


def _terms(found: Validation) -> str:
    rows = []
    for name, one in found.terms().items():
        measured = np.array(
            [c.measurement.mean_s if name == "total" else c.measurement.parts_s()[name] for c in found.comparisons]
        )
        cells = [
            format_ms(float(measured.mean())), _number(one.beta), _number(one.beta_origin), _number(one.r2),
            _ms(one.bias), _ms(one.rmse), _percent(one.mape),
        ]  # fmt: skip
        shown = f"<b>{name}</b>" if name == "total" else name
        rows.append(f"<tbody><tr><th scope='row'>{shown}</th>{report.html_cells(cells)}</tr></tbody>")
    head = ["Term", "Measured mean [ms]", "β", "β₀", "R²", "Bias [ms]", "RMSE [ms]", "MAPE"]
    return report.html_table(head, rows)


def _attributions(found: Validation) -> str:
    tables = [_attribution("Mean latency", found.latency_attribution(), 1e3, "ms")]
    for quantity in ("exit_rate", "accuracy"):
        parts = found.exit_attribution(quantity)
        if parts:
            tables.append(_attribution(_TITLES[quantity], parts, 100, "points"))
    note = (
        "<p class='note'><b>Other samples</b>: the test samples leave otherwise than those of the profile, as "
        "replaying the plan on their own scores tells. <b>What ran</b>: what then still differs from the measurement, "
        "such as the loss of a codec.</p>"
    )
    return "".join(tables) + (note if len(tables) > 1 else "")


def _attribution(title: str, parts: Mapping[str, Attribution], scale: float, unit: str) -> str:
    largest = max(parts, key=lambda name: parts[name].share or 0.0)
    rows = []
    for name, part in parts.items():
        shown = f"<mark>{name}</mark>" if name == largest else name
        share = "–" if part.share is None else f"{signed(100 * part.share, 1)} %"
        cells = [
            "–" if part.slope is None else signed(part.slope, 4), share, signed(scale * part.bias, 3),
            f"{scale * part.rms:.3f}",
        ]  # fmt: skip
        rows.append(f"<tbody><tr><th scope='row'>{shown}</th>{report.html_cells(cells)}</tr></tbody>")
    head = ["Part", "of β − 1", "of the squared error", f"Bias [{unit}]", f"RMS [{unit}]"]
    return f"<h3>{title}</h3>{report.html_table(head, rows)}"


def _worst(found: Validation, tier_names: Sequence[str]) -> str:
    rows = []
    for case in found.worst():
        parts, largest = case.comparison.contributions_s, _explained(case)[0]
        cells = [format_ms(case.comparison.estimate.mean_s), f"<b>{format_ms(case.measured_s)}</b>"]
        cells += [format_error(case.comparison.error)]
        cells += [
            f"<mark>{signed(1e3 * seconds, 2)}</mark>" if name == largest else signed(1e3 * seconds, 2)
            for name, seconds in parts.items()
        ]
        disturbed = "<br><small class='bad'>disturbed</small>" if case.comparison.disturbed else ""
        steps = case.comparison.plan.describe(tier_names).split(" → ")
        words = " → ".join(f"<span class='step'>{escape(step)}</span>" for step in steps)
        name = f"<th scope='row'>{case.name}{disturbed}<small>{words}</small></th>"
        rows.append(f"<tbody><tr>{name}{report.html_cells(cells)}</tr></tbody>")
    return report.html_table(["Plan", "Predicted [ms]", "Measured", "Error", "exit rates", *TERMS], rows)


def _regret(found: Validation) -> str:
    rows = []
    for one in found.regrets():
        bound = "any accuracy" if one.bound == 0 else f"accuracy ≥ {format_share(one.bound)}"
        reached = "–"
        if one.planned is not None and one.planned_s is not None and one.planned_accuracy is not None:
            mark = "good'>✓" if one.planned_accuracy >= one.bound - 1e-12 else "bad'>✗"
            reached = f"{format_share(one.planned_accuracy)} <span class='{mark}</span>"
        cells = [
            str(one.plans),
            f"{one.chosen}: {format_ms(one.chosen_s)}",
            f"{one.best}: {format_ms(one.best_s)}",
            f"<b>{1e3 * one.regret_s:.2f}</b> ± {1e3 * one.standard_error_s:.2f}",
            f"{100 * one.regret:.1f} %",
            "–" if one.planned_s is None else f"{one.planned}: {format_ms(one.planned_s)}",
            reached,
        ]
        rows.append(f"<tbody><tr><th scope='row'>{bound}</th>{report.html_cells(cells)}</tr></tbody>")
    head = [
        "Asked for", "Plans", "Predicted fastest [ms]", "Measured fastest [ms]", "Regret [ms]", "",
        "By predicted accuracy [ms]", "Reached",
    ]  # fmt: skip
    return report.html_table(head, rows)


def _front_note(found: Validation) -> str:
    predicted, measured = found.fronts()
    both = len({case.name for case in predicted} & {case.name for case in measured})
    return (
        "Of the campaign's plans, those that no other beats in both latency and accuracy: as predicted by the profile "
        f"alone (dotted, by its own numbers) and as measured. {both} of {len(predicted)} plans on the predicted front "
        f"are on the measured one, which has {len(measured)}."
    )


def _cdf_rows(found: Validation, tier_names: Sequence[str]) -> list[Row]:
    order = sorted(found.cases, key=lambda case: case.measured_s)
    kept = np.unique(np.linspace(0, len(order) - 1, min(_SHOWN_CDFS, len(order))).round().astype(int))
    shown = [order[i].comparison for i in kept]
    return plots.cdf_rows(replace(one, name=f"{one.name}: {one.plan.describe(tier_names)}") for one in shown)


def _factors(found: Validation) -> str:
    rows = []
    for name, levels in found.by_factor().items():
        for index, (level, cases) in enumerate(levels.items()):
            errors = [case.comparison.error for case in cases]
            cells = [
                escape(level),
                str(len(cases)),
                format_error(float(np.mean(errors))),
                _percent(float(np.mean(np.abs(errors)))),
            ]
            head = f"<th rowspan='{len(levels)}' scope='rowgroup'>{name}</th>" if index == 0 else ""
            rows.append(f"<tr>{head}{report.html_cells(cells)}</tr>")
        rows[-len(levels)] = f"<tbody>{rows[-len(levels)]}"
        rows[-1] += "</tbody>"
    return report.html_table(["", "", "Plans", "Mean error", "MAPE"], rows)


def _provenance(found: Validation, profile: Profile) -> str:
    first, last = found.comparisons[0].measurement.provenance, found.comparisons[-1].measurement.provenance
    groups = {
        "The first plan that ran": first,
        "The last": {key: last[key] for key in ("finished", "disturbed") if key in last},
        "Profile": {"profiling samples": str(profile.exits.samples), **profile.provenance},
    }
    for name, device in profile.devices.items():
        groups[f"Device {name}"] = {"execution": str(device.execution), **device.environment}
    body = "".join(
        f"<div><h3>{escape(name)}</h3>{report.html_facts(facts)}</div>" for name, facts in groups.items() if facts
    )
    return f"<div class='groups'>{body}</div>"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}".replace("-", "−")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f} %"


def _points(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f} points"


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:.3f}".replace("-", "−")
