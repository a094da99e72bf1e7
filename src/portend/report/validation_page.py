"""A validation as tables for a terminal, as figures, and as one HTML file in the manner of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from portend.analysis.compare import TERMS, Fit
from portend.analysis.console import format_error, format_ms
from portend.analysis.validation import PAPER, Case, Validation, Verdict
from portend.io.storage import write_text
from portend.report import figures as plots
from portend.report.render import number, percent, render
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
    return render(
        "validation.html.j2",
        title=f"Validation: {profile.backbone.name} on the topology {topology.name}",
        found=found,
        unfinished="" if len(found.cases) == found.planned else f" of {found.planned} (the campaign is not finished)",
        runs=sum(len(case.comparison.measurement) for case in found.cases),
        tests=max(case.comparison.test_samples for case in found.cases),
        cards=_cards(found),
        warning=_warning(found),
        targets_note=_targets_note(found),
        verdicts=[(_verdict(one), one.met) for one in found.verdicts()],
        agreement=plot_agreement(agreement_rows(found)),
        published_names=[f"Paper, {name}" for name in PAPER["latency"]],
        beside_paper=_beside_paper(found),
        terms=_terms(found),
        term_names=list(TERMS),
        attributions=_attributions(found),
        worst=[(case, _explained(case)[0]) for case in found.worst()],
        tier_names=names,
        fronts=plot_fronts(front_rows(found)),
        fronts_note=_front_note(found),
        cdf=plots.plot_cdf(_cdf_rows(found, names)),
        factors=_factors(found),
        provenance=_provenance(found, profile),
    )


def _cards(found: Validation) -> list[tuple[str, Fit, str]]:
    latency, exits, accuracy = found.latency(), found.exit_rate(), found.accuracy()
    return [
        ("Mean latency", latency, f"MAPE {percent(latency.mape)}"),
        ("Exit rate", exits, f"RMSE {_points(exits.rmse)}"),
        ("Accuracy", accuracy, f"RMSE {_points(accuracy.rmse)}"),
    ]


def _warning(found: Validation) -> str:
    """What is said of a machine that was disturbed; empty where it was not."""
    disturbed, quiet = len(found.disturbed), found.undisturbed
    if not disturbed:
        return ""
    if not quiet.n:
        return "The machine was disturbed while every plan ran."
    return (
        f"The machine was disturbed while {disturbed} of the plans ran; the mean latency of the others has β "
        f"{number(quiet.beta)}, R² {number(quiet.r2)}, MAPE {percent(quiet.mape)} (n = {quiet.n})."
    )


def _targets_note(found: Validation) -> str:
    before, exact = found.latency(lambda case: case.before), found.latency_at_measured_exits
    drift = found.speed_drift
    return (
        "Latencies are predicted for the speed that the tiers had while each plan ran: its partitions were timed "
        f"between its samples. Meanwhile computing took {100 * abs(drift):.1f} % {'longer' if drift > 0 else 'less'} "
        f"than in the profile. By the profile alone, as written down before anything ran: β {number(before.beta)}, R² "
        f"{number(before.r2)}, MAPE {percent(before.mape)}. With the exit rates that were measured: β "
        f"{number(exact.beta)}, R² {number(exact.r2)}, MAPE {percent(exact.mape)}. Exit rates count where the plan "
        "leaves them open."
    )


def _beside_paper(found: Validation) -> list[dict[str, Any]]:
    """Fits by sample and by marginal estimates, and the paper's β and R² for each of its networks, by quantity."""
    ours: Mapping[str, tuple[Fit, Fit]] = {
        "exit_rate": (found.exit_rate(all_=True), found.exit_rate(lambda case: case.marginal, all_=True)),
        "latency": (found.latency(), found.latency(lambda case: case.marginal)),
        "accuracy": (found.accuracy(), found.accuracy(lambda case: case.marginal)),
    }
    return [
        {"title": title, "ours": ours[quantity], "published": list(PAPER[quantity].values())}
        for quantity, title in _TITLES.items()
    ]


def _terms(found: Validation) -> list[tuple[str, float, Fit]]:
    """Each latency term with its measured mean in seconds and its fit."""

    def mean_s(name: str) -> float:
        runs = [one.measurement for one in found.comparisons]
        return float(np.mean([run.mean_s if name == "total" else run.parts_s()[name] for run in runs]))

    return [(name, mean_s(name), fit) for name, fit in found.terms().items()]


def _attributions(found: Validation) -> list[dict[str, Any]]:
    """What explains the errors of each quantity; ``scale``: units in one of the quantity's own."""
    parts = {"latency": found.latency_attribution()}
    parts |= {quantity: found.exit_attribution(quantity) for quantity in ("exit_rate", "accuracy")}
    return [
        {
            "title": _TITLES[quantity],
            "parts": some,
            "largest": max(some, key=lambda name: some[name].share or 0.0),
            "scale": 1e3 if quantity == "latency" else 100,
            "unit": "ms" if quantity == "latency" else "points",
        }
        for quantity, some in parts.items()
        if some
    ]


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


def _factors(found: Validation) -> dict[str, list[dict[str, Any]]]:
    """Errors of the mean latency by kind of plan, each kind's levels in rows."""

    def row(level: str, cases: Sequence[Case]) -> dict[str, Any]:
        errors = np.array([case.comparison.error for case in cases])
        return {"level": level, "plans": len(cases), "mean": errors.mean(), "mape": np.abs(errors).mean()}

    return {name: [row(*item) for item in levels.items()] for name, levels in found.by_factor().items()}


def _provenance(found: Validation, profile: Profile) -> dict[str, Mapping[str, str]]:
    first, last = found.comparisons[0].measurement.provenance, found.comparisons[-1].measurement.provenance
    groups: dict[str, Mapping[str, str]] = {
        "The first plan that ran": first,
        "The last": {key: last[key] for key in ("finished", "disturbed") if key in last},
        "Profile": {"profiling samples": str(profile.exits.samples), **profile.provenance},
    }
    for name, device in profile.devices.items():
        groups[f"Device {name}"] = {"execution": str(device.execution), **device.environment}
    return groups


def _points(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f} points"
