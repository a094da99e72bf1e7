"""A report on one planning problem: a single HTML file that opens anywhere, offline.

Everything is inside the file, plotly.js included once; its content security policy forbids the
browser to load anything else. All texts are escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final

from numpy.typing import ArrayLike

from portend.analysis.compare import TERMS, Comparison, agreement, exit_drifts
from portend.analysis.console import format_error, format_ms, format_rates, format_share
from portend.errors import InvalidValue
from portend.io.storage import write_text
from portend.perfmodel.estimate import PARTS, Estimate
from portend.report import figures as plots
from portend.units import format_bandwidth, format_time
from portend.values.exits import SampleExits
from portend.values.plan import CRITERIA, blocks
from portend.values.profile import Profile
from portend.values.topology import Topology

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = [
    "STYLE",
    "ReportData",
    "html_card",
    "html_cells",
    "html_facts",
    "html_figure",
    "html_page",
    "html_section",
    "html_table",
    "render_report",
    "write_report",
]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ReportData:
    """What a report is made of.

    Attributes:
        title, problem: text; problem says what was asked for, in one or two sentences.
        profile, topology: what was planned for.
        chosen: name of the chosen plan, among ``comparisons`` or ``estimates``.
        comparisons: plans that ran, in the order of the tables.
        estimates: plans that did not run; with no comparisons at all, the report is of predictions only.
        baselines: names of the plans that the chosen one is judged by; empty: all the others.
        cloud: arrays of all evaluated plans (see ``plots.tradeoff_rows``); None: no trade-off figure.
        new_samples: what is said of plans' accuracy on new samples, by name (``str(Solution.new_samples)``).
        summary: facts on the search and the test, such as how many plans were evaluated.
        provenance: environment, versions, seeds.
    """

    title: str
    profile: Profile
    topology: Topology
    problem: str
    chosen: str
    comparisons: Sequence[Comparison] = ()
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    baselines: Sequence[str] = ()
    cloud: Mapping[str, ArrayLike] | None = None
    new_samples: Mapping[str, str] = field(default_factory=dict)
    summary: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = [name for name in self.new_samples if name not in self.plans]
        if unknown:
            raise InvalidValue(f"new samples are judged of the report's plans, but got {unknown}")
        names = [*(case.name for case in self.comparisons), *self.estimates]
        if len(set(names)) != len(names):
            raise InvalidValue(f"the plans of a report have different names, but got {names}")
        for role, name in (("chosen plan", self.chosen), *(("baseline", name) for name in self.baselines)):
            if name not in names:
                raise InvalidValue(f"the {role} is one of the report's plans {names}, but got {name!r}")

    @property
    def plans(self) -> dict[str, Estimate]:
        """Every plan's estimate by name, those that ran first."""
        return {case.name: case.estimate for case in self.comparisons} | dict(self.estimates)

    @property
    def measured(self) -> dict[str, Comparison]:
        """The plans that ran, by name."""
        return {case.name: case for case in self.comparisons}

    @property
    def tier_names(self) -> list[str]:
        return [tier.name for tier in self.topology.tiers]


def write_report(path: str | Path, data: ReportData) -> Path:
    """Write the report to ``path``, whole or not at all, and return the path."""
    write_text(render_report(data), path)
    return Path(path)


def render_report(data: ReportData) -> str:
    """Return the report as HTML text."""
    sections = [
        _headline(data),
        html_section(
            "Where it runs", _topology(data), "The tiers and links, and what the chosen plan does on each (predicted)."
        ),
        _plans_section(data),
        *_figures(data),
        _terms_section(data),
        _provenance(data),
        html_section("How to read this", _reading(data)),
    ]
    body = "\n".join(sections).replace(" %", "&nbsp;%")
    return html_page(data.title, body, STYLE)


def html_page(title: str, body: str, style: str, *, scripts: bool = True) -> str:
    """Return a whole page of its own, which loads nothing else; with Plotly inside, or without any script."""
    if not scripts:
        return _PAGE.format(title=escape(title), style=style, policy=_STILL, scripts="", body=body)
    from plotly.offline import get_plotlyjs

    plotly = f"<script>{get_plotlyjs()}</script>"
    return _PAGE.format(title=escape(title), style=style, policy=_POLICY, scripts=plotly, body=body)


# --- headline ------------------------------------------------------------------------------


def _headline(data: ReportData) -> str:
    words = escape(_in_words(data))
    speed = "".join(f"<p>{line}</p>" for line in _speedups(data))
    said = {"new samples": data.new_samples[data.chosen]} if data.chosen in data.new_samples else {}
    return (
        f"<header><h1>{escape(data.title)}</h1><p class='problem'>{escape(data.problem)}</p></header>"
        f"<section class='headline'><p class='lead'><b class='chosen'>{escape(data.chosen)}</b> {words}</p>"
        f"<div class='cards'>{_cards(data)}</div>{speed}{html_facts(said | dict(data.summary))}</section>"
    )


def _in_words(data: ReportData) -> str:
    """Say what the chosen plan does, such as ``runs blocks 1–3 on edge, where 62.0 % of the samples leave; …``."""
    estimate = data.plans[data.chosen]
    plan = estimate.plan
    phrases = []
    for tier in dict.fromkeys(plan.placement):
        own = [k for k, placed in enumerate(plan.placement) if placed == tier]
        phrase = f"{blocks(plan.partitions[own[0]][0], plan.cuts[own[-1]])} on {data.tier_names[tier]}"
        leaves = [
            f"{format_share(float(estimate.share[k]))} after block {plan.cuts[k]}"
            for k in own
            if k < len(plan.thresholds) and plan.thresholds[k] > 0
        ]
        phrases.append(phrase + (f" (leaving early: {', '.join(leaves)})" if leaves else ""))
    cut_off = data.profile.num_blocks - plan.cuts[-1]
    rest = f"; the last {cut_off} of {data.profile.num_blocks} blocks are not used" if cut_off else ""
    return f"runs {', then '.join(phrases)}{rest}."


def _cards(data: ReportData) -> str:
    estimate, case = data.plans[data.chosen], data.measured.get(data.chosen)
    if case is None:
        return (
            html_card("Mean latency", f"{format_ms(estimate.mean_s)} ms", "predicted")
            + html_card("95th percentile", f"{format_ms(estimate.quantile_s(0.95))} ms", "predicted")
            + html_card("Accuracy", format_share(estimate.accuracy), f"predicted · {_full(data)}")
        )
    measurement, low_high = case.measurement, _interval(case.intervals().accuracy)
    spread = f" ± {format_ms(1.96 * case.standard_error_s)} (95 %)" if case.standard_error_s is not None else ""
    inside = "inside" if case.accuracy_inside() else "<b class='bad'>outside</b>"
    return (
        html_card(
            "Mean latency",
            f"{format_ms(measurement.mean_s)} ms",
            f"measured{spread} · predicted {format_ms(estimate.mean_s)} ({format_error(case.error)})",
        )
        + html_card(
            "95th percentile",
            f"{format_ms(measurement.quantile_s(0.95))} ms",
            f"measured · predicted {format_ms(estimate.quantile_s(0.95))}",
        )
        + html_card(
            "Accuracy",
            format_share(measurement.accuracy),
            f"measured · predicted {format_share(estimate.accuracy)}, {inside} {low_high} · {_full(data)}",
        )
    )


def _full(data: ReportData) -> str:
    return f"full network {format_share(data.profile.full_accuracy)}"


def html_card(label: str, value: str, detail: str) -> str:
    return (
        f"<div class='card'><div class='label'>{label}</div><div class='value'>{value}</div><div>{detail}</div></div>"
    )


def _speedups(data: ReportData) -> list[str]:
    """Say how many times faster the chosen plan is than staying at the source and than the best baseline."""
    edge_only, best = _edge_only(data), _best_baseline(data)
    lines = []
    if edge_only is not None:
        name = f"running the whole network on {escape(data.tier_names[data.topology.source])}"
        lines.append(_speedup(data, edge_only, f"{name} ({escape(edge_only)})"))
    if best is not None and best != edge_only:
        role = "the fastest baseline that is at least as accurate" if _accurate(data, best) else "the fastest baseline"
        lines.append(_speedup(data, best, f"{role} ({escape(best)})"))
    return lines


def _speedup(data: ReportData, other: str, words: str) -> str:
    chosen, measured = data.chosen, data.measured
    predicted = data.plans[other].mean_s / data.plans[chosen].mean_s
    accuracy = f"its accuracy is {format_share(data.plans[other].accuracy)} predicted"
    if chosen not in measured or other not in measured:
        return f"<b>{predicted:.2f}×</b> as fast as {words}, predicted; {accuracy}."
    ratio = measured[other].measurement.mean_s / measured[chosen].measurement.mean_s
    accuracy += f", {format_share(measured[other].measurement.accuracy)} measured"
    return f"<b>{ratio:.2f}×</b> as fast as {words}, measured ({predicted:.2f}× predicted); {accuracy}."


def _baselines(data: ReportData) -> list[str]:
    return [name for name in (data.baselines or data.plans) if name != data.chosen]


def _edge_only(data: ReportData) -> str | None:
    """Return the first baseline that runs all blocks on the source's tier and lets no sample leave early."""
    for name in _baselines(data):
        plan = data.plans[name].plan
        whole = plan.cuts[-1] == data.profile.num_blocks and not any(plan.thresholds)
        if whole and set(plan.placement) == {data.topology.source}:
            return name
    return None


def _best_baseline(data: ReportData) -> str | None:
    """Return the baseline of lowest predicted mean latency, if possible one at least as accurate as the chosen plan."""
    names = _baselines(data)
    fair = [name for name in names if _accurate(data, name)]
    return min(fair or names, key=lambda name: data.plans[name].mean_s, default=None)


def _accurate(data: ReportData, name: str) -> bool:
    return data.plans[name].accuracy >= data.plans[data.chosen].accuracy - 1e-12


def html_facts(facts: Mapping[str, str]) -> str:
    rows = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in facts.items())
    return f"<dl class='facts'>{rows}</dl>" if rows else ""


# --- topology ------------------------------------------------------------------------------


def _topology(data: ReportData) -> str:
    pieces = [_tier(data, 0)]
    for index, link in enumerate(data.topology.links):
        facts = f"{format_bandwidth(link.bandwidth_bps)}<br>{format_time(link.propagation_delay_s)} one way"
        if data.topology.slow_start is not None:
            facts += f"<br>slow start from {data.topology.slow_start.initial_window} packets"
        pieces.append(f"<div class='link'><div class='wire'></div>{facts}</div>{_tier(data, index + 1)}")
    return f"<div class='topology'>{''.join(pieces)}</div>"


def _tier(data: ReportData, index: int) -> str:
    topology, estimate = data.topology, data.plans[data.chosen]
    tier, plan = topology.tiers[index], estimate.plan
    roles = [role for role, at in (("samples", topology.source), ("results", topology.destination)) if at == index]
    slow = f" · {tier.slowdown:g}× slower" if tier.slowdown != 1 else ""
    work = []
    for k, (start, end) in enumerate(plan.partitions):
        if plan.placement[k] == index:
            note = _leaving(estimate, k)
            work.append(f"<div class='work'>{_blocks(start, end, data.profile.num_blocks)}<span>{note}</span></div>")
    idle = "<div class='idle'>not used by the chosen plan</div>"
    badge = f"<div class='badge'>{' + '.join(roles)}</div>" if roles else ""
    return (
        f"<div class='tier'>{badge}<h3>{escape(tier.name)}</h3>"
        f"<div class='device'>{escape(tier.device)}{slow}</div>{''.join(work) or idle}</div>"
    )


def _leaving(estimate: Estimate, k: int) -> str:
    """Say how many samples leave at partition ``k``, predicted."""
    plan = estimate.plan
    share = format_share(float(estimate.share[k]))
    if k == len(plan) - 1:
        return f"{share} of the samples end here"
    asked = f"{CRITERIA[plan.criterion]} &lt; {plan.thresholds[k]:g}"
    return f"{share} leave at {asked}" if plan.thresholds[k] > 0 else "no exit"


def _blocks(start: int, end: int, count: int) -> str:
    """Draw the network as a row of blocks, those from cut ``start`` to cut ``end`` filled."""
    width = 150 / count
    boxes = "".join(
        f"<rect x='{i * width + 0.5:.2f}' y='1' width='{width - 1.5:.2f}' height='12' rx='1.5' "
        f"class='{'on' if start <= i < end else 'off'}'/>"
        for i in range(count)
    )
    label = blocks(start, end)
    return f"<b>{label}</b><svg viewBox='0 0 150 14' role='img' aria-label='{label} of {count}'>{boxes}</svg>"


# --- tables --------------------------------------------------------------------------------


def _plans_section(data: ReportData) -> str:
    head = ["Plan", "Mean latency [ms]", "95th percentile [ms]", "Accuracy", "Exit rates"]
    if data.comparisons:
        head = ["Plan", "", "Mean latency [ms]", "Error", "95th percentile [ms]", "Accuracy", "Exit rates"]
    rows = [_compared(data, case) for case in data.comparisons]
    rows += [_estimated(data, name) for name in data.estimates]
    note = "Predicted only: none of these plans has run yet."
    if data.comparisons:
        note = (
            f"✓ the measured value lies inside the interval that the prediction gives for a test of this size "
            f"({_level(data)}), ✗ it does not. {_agreement(data)}"
        )
    note += "".join(f"<br>{escape(line)}" for line in _warnings(data))
    return html_section("Plans", html_table(head, rows) + _drift(data), note)


def _drift(data: ReportData) -> str:
    """Say of which plans the exits drifted; the level is divided among the plans."""
    checks = exit_drifts(data.comparisons)
    if not checks:
        return ""
    found = {name: check for name, check in checks.items() if check.found}
    if not found:
        runs = f"{len(checks)} runs" if len(checks) > 1 else "run"
        return f"<p class='note'>Exit drift: none beyond chance in the {runs} with early exits.</p>"
    lines = "".join(
        f"<li><b>{escape(name)}</b>: {escape('; '.join(check.describe()))}</li>" for name, check in found.items()
    )
    return f"<p class='bad'>Exit drift: samples leave otherwise than the profile says.</p><ul>{lines}</ul>"


def _warnings(data: ReportData) -> list[str]:
    """What makes the numbers less trustworthy: a disturbed machine, compute times that were not measured."""
    lines = [f"{told[0].upper()}{told[1:]}." for told in data.profile.disturbed()]
    runs = {case.disturbed: case.name for case in data.comparisons if case.disturbed}
    lines += [f"When {name} ran, {told}." for told, name in runs.items()]
    for name, device in data.profile.devices.items():
        lines += [f"Of {name}, {device.predicted}."] if device.predicted else []
    return lines


def _level(data: ReportData) -> str:
    return ", ".join(f"{100 * level:g} %" for level in sorted({case.level for case in data.comparisons}))


def _compared(data: ReportData, case: Comparison) -> str:
    estimate, measurement, intervals = case.estimate, case.measurement, case.intervals()
    rates_mark = _mark(bool(case.exit_rates_inside().all())) if case.undecided().any() else ""
    predicted = [
        "predicted",
        format_ms(estimate.mean_s),
        "",
        format_ms(estimate.quantile_s(0.95)),
        f"{format_share(estimate.accuracy)} <small>{_interval(intervals.accuracy)}</small>",
        format_rates(list(estimate.share)),
    ]
    measured = [
        "measured",
        f"<b>{format_ms(measurement.mean_s)}</b>",
        format_error(case.error),
        f"<b>{format_ms(measurement.quantile_s(0.95))}</b>",
        f"<b>{format_share(measurement.accuracy)}</b> {_mark(case.accuracy_inside())}",
        f"<b>{format_rates(list(measurement.exit_rates()))}</b> {rates_mark}",
    ]
    name = f"<th rowspan='2' scope='rowgroup'>{_plan_name(data, case.name)}</th>"
    return f"<tbody><tr class='pred'>{name}{html_cells(predicted)}</tr><tr>{html_cells(measured)}</tr></tbody>"


def _estimated(data: ReportData, name: str) -> str:
    estimate = data.estimates[name]
    cells = [
        format_ms(estimate.mean_s),
        format_ms(estimate.quantile_s(0.95)),
        format_share(estimate.accuracy),
        format_rates(list(estimate.share)),
    ]
    if data.comparisons:
        cells = ["predicted", cells[0], "", *cells[1:]]
    return f"<tbody><tr><th scope='row'>{_plan_name(data, name)}</th>{html_cells(cells)}</tr></tbody>"


def _plan_name(data: ReportData, name: str) -> str:
    kind = " class='chosen'" if name == data.chosen else ""
    steps = data.plans[name].plan.describe(data.tier_names).split(" → ")
    description = " → ".join(f"<span class='step'>{escape(step)}</span>" for step in steps)
    told = f"<small>{escape(data.new_samples[name])}</small>" if name in data.new_samples else ""
    return f"<span{kind}>{escape(name)}</span><small>{description}</small>{told}"


def _agreement(data: ReportData) -> str:
    found = agreement(data.comparisons)
    latency, rates, accuracy = found["latency"], found["exit_rate"], found["accuracy"]
    plans = "one plan" if len(data.comparisons) == 1 else f"{len(data.comparisons)} plans"
    text = f"Over {plans} the mean latency is off by {format_share(latency['mape'] or 0.0)} on average"
    if latency["beta"] is not None and latency["r2"] is not None:
        text += f" (slope {latency['beta']:.3f}, R² {latency['r2']:.4f})"
    text += f"; {accuracy['inside']} of {accuracy['n']} accuracies"
    if rates["n"]:
        text += f" and {rates['inside']} of {rates['n']} exit rates"
    return f"{text} fell inside their intervals."


def _terms_section(data: ReportData) -> str:
    if not data.comparisons:
        rows = [
            f"<tbody><tr><th scope='row'>{escape(name)}</th>{html_cells(_part_cells(estimate))}</tr></tbody>"
            for name, estimate in data.plans.items()
        ]
        return html_section(
            "Latency terms", html_table(["Plan", *PARTS, "sum"], rows), "Mean ms per sample, predicted."
        )
    rows = [_term_rows(data, case) for case in data.comparisons]
    note = (
        "Mean ms per sample. The largest error of each plan is marked. The last column predicts the mean latency with "
        "the exit rates that were measured: what is then left to the measured sum is the latency model's own error."
    )
    head = ["Plan", "", *TERMS, "sum", "at measured exit rates"]
    return html_section("Latency terms", html_table(head, rows), note)


def _part_cells(estimate: Estimate) -> list[str]:
    return [*(format_ms(estimate.parts_s[part]) for part in PARTS), format_ms(estimate.mean_s)]


def _term_rows(data: ReportData, case: Comparison) -> str:
    largest = case.largest_error.name
    predicted = [format_ms(term.predicted_s) for term in case.terms]
    measured = [
        f"<mark>{format_ms(term.measured_s)}</mark>" if term.name == largest else format_ms(term.measured_s)
        for term in case.terms
    ]
    first = ["predicted", *predicted, format_ms(case.estimate.mean_s), format_ms(case.reweighted_mean_s)]
    second = ["measured", *measured, f"<b>{format_ms(case.measurement.mean_s)}</b>", ""]
    kind = " class='chosen'" if case.name == data.chosen else ""
    name = f"<th rowspan='2' scope='rowgroup'><span{kind}>{escape(case.name)}</span></th>"
    return f"<tbody><tr class='pred'>{name}{html_cells(first)}</tr><tr>{html_cells(second)}</tr></tbody>"


def html_cells(cells: Iterable[str]) -> str:
    return "".join(f"<td>{cell}</td>" for cell in cells)


def html_table(head: Sequence[str], bodies: Sequence[str]) -> str:
    columns = "".join(f"<th scope='col'>{escape(name)}</th>" for name in head)
    return f"<div class='scroll'><table><thead><tr>{columns}</tr></thead>{''.join(bodies)}</table></div>"


def _interval(ends: Iterable[float]) -> str:
    low, high = ends
    return f"{100 * low:.1f}–{100 * high:.1f} %"


def _mark(inside: bool) -> str:
    return "<span class='good' title='inside'>✓</span>" if inside else "<span class='bad' title='outside'>✗</span>"


# --- figures -------------------------------------------------------------------------------


def _figures(data: ReportData) -> list[str]:
    """Return one section per figure, each with a sentence on what to see."""
    kind = "measured" if data.comparisons else "predicted"
    chosen, estimate = data.measured.get(data.chosen), data.plans[data.chosen]
    trace = plots.typical_trace(chosen.measurement) if chosen else None
    sections = []
    if data.cloud is not None:
        tradeoff = plots.plot_tradeoff(plots.tradeoff_rows(data.cloud, data.plans, data.chosen))
        sections.append(_figure("tradeoff", "Latency against accuracy", tradeoff))
    if data.comparisons:
        means = plots.plot_means(plots.mean_rows(data.comparisons), data.chosen)
        sections.append(_figure("means", "Predicted against measured latency", means))
    parts = plots.plot_parts(plots.part_rows(data.comparisons) + plots.part_rows(data.estimates))
    sections.append(_figure(f"parts-{kind}", "Where the time goes", parts))
    cdf = plots.plot_cdf(plots.cdf_rows(data.comparisons) + plots.cdf_rows(data.estimates), data.chosen)
    sections.append(_figure(f"cdf-{kind}", "How latency is distributed", cdf))
    way = plots.plot_timeline(plots.timeline_rows(estimate, data.topology, trace), data.topology)
    sections.append(_figure(f"timeline-{'measured' if trace else 'predicted'}", "The way of one sample", way))
    branches = plots.plot_branches(plots.branch_rows(data.profile, estimate.plan))
    sections.append(_figure("branches", "Exit branches", branches))
    return sections


_CAPTIONS: Final = {
    "tradeoff": "Every gray dot is an evaluated plan; the line is the best accuracy within a latency, so a plan on it "
    "can only be made faster by giving up accuracy. Double-click shows the plans outside the view.",
    "means": "The closer to the line, the better the prediction; the band is ±5 %, the horizontal bars are 95 % "
    "intervals of the measured means.",
    "parts-measured": "Where each plan spends its time, and which term the model gets wrong: equal colors should have "
    "equal lengths. The three predicted parts of a transfer can only be measured as one.",
    "parts-predicted": "Where each plan spends its time: computing, or moving tensors.",
    "cdf-measured": "Each dotted step is one exit: its height is the share that leaves there, its place the latency. "
    "Where the measured curve leans away from the step, it shows the jitter that a mean hides.",
    "cdf-predicted": "Each step is one exit: its height is the share that leaves there, its place the latency.",
    "timeline-measured": "One measured sample, of median latency among those that went furthest, above its prediction.",
    "timeline-predicted": "A sample that goes all the way: what waits for what, and for how long.",
    "branches": "What every exit could do on the profiling samples if all of them came to it: accuracy with 95 % "
    "intervals, and the share that is confident enough to leave at the plan's threshold.",
}


def _figure(name: str, title: str, figure: Figure) -> str:
    return html_figure(name, title, figure, _CAPTIONS[name])


def html_figure(name: str, title: str, figure: Figure, note: str) -> str:
    """Return a section with a figure; ``name`` is unique on the page."""
    from plotly.io import to_html

    drawn = to_html(
        figure,
        include_plotlyjs=False,
        full_html=False,
        div_id=f"figure-{name}",
        default_height=f"{figure.layout.height}px",
        config={"responsive": True, "displayModeBar": False},
    )
    return html_section(title, f"<div class='scroll'><div class='plot'>{drawn}</div></div>", note)


# --- provenance and reading ----------------------------------------------------------------


def _provenance(data: ReportData) -> str:
    exits, backbone = data.profile.exits, data.profile.backbone
    network = {
        "network": f"{backbone.name}, {backbone.num_blocks} blocks, {backbone.num_classes} classes",
        "profiling samples": str(exits.samples),
        "exit criterion": data.plans[data.chosen].plan.criterion if isinstance(exits, SampleExits) else "tabulated",
        "weights sha256": backbone.weights_sha256,
    }
    groups: dict[str, Mapping[str, str]] = {
        "This report": data.provenance,
        "Network": {key: value for key, value in network.items() if value} | dict(data.profile.provenance),
    }
    for name, device in data.profile.devices.items():
        predicted = {"predicted": device.predicted} if device.predicted else {}
        groups[f"Device {name}"] = {"execution": str(device.execution), **device.environment, **predicted}
    chosen = data.measured.get(data.chosen)
    if chosen is not None and chosen.measurement.provenance:
        groups["Measurement of the chosen plan"] = chosen.measurement.provenance
    body = "".join(
        f"<div><h3>{escape(title)}</h3>{html_facts(facts)}</div>" for title, facts in groups.items() if facts
    )
    return html_section("Where the numbers come from", f"<div class='groups'>{body}</div>")


def _reading(data: ReportData) -> str:
    lines = [
        "A <b>plan</b> cuts the network into partitions, places each on a tier, and sets at each exit the threshold "
        f"{CRITERIA[data.plans[data.chosen].plan.criterion]} below which a sample is confident enough to leave. Blocks "
        "count from 1.",
        "<b>Latency</b> is the time from a sample being available at the source to its label being at the destination; "
        "the 95th percentile is the latency that 95 % of the samples do not exceed.",
        "<b>Predicted</b> values come from the profile (measured before planning, each device alone) and the topology "
        "only; no measured run of a plan went into them.",
    ]
    if data.comparisons:
        lines += [
            "An <b>interval</b> says where the measured value should fall, given that the profile and the test are "
            "both finite samples. At 95 %, one value in twenty falls outside by chance.",
            "<b>Exit drift</b> means that an exit's share of the samples differs from the profile's by more than "
            "chance explains; where there is none, at most 1 % of such reports say so. Then the data are others than "
            "those of the profile, or the network is: profile again, and plan anew.",
            "<b>Error</b> is predicted minus measured, relative to measured. <b>Other</b> is measured time "
            "that no span covers; the model says it is zero.",
        ]
    return "<ul>" + "".join(f"<li>{line}</li>" for line in lines) + "</ul>"


def html_section(title: str, body: str, note: str = "") -> str:
    words = f"<p class='note'>{note}</p>" if note else ""
    return f"<section><h2>{escape(title)}</h2>{words}{body}</section>"


_POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
)
_STILL: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

STYLE: Final = """
:root { color-scheme: only light; --ink: #1f2933; --quiet: #5b6773; --line: #e1e6eb; --chosen: #c2500a; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f9; color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 8px; letter-spacing: -0.01em; }
h2 { font-size: 1.2rem; margin: 0 0 4px; }
h3 { font-size: 1rem; margin: 0; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 22px 24px; margin: 20px 0; }
.problem, .note { color: var(--quiet); margin: 0 0 14px; max-width: 46em; }
.lead { font-size: 1.15rem; margin: 0 0 16px; max-width: 42em; }
.headline p { margin: 6px 0; }
.chosen { color: var(--chosen); font-weight: 650; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: 14px; margin: 16px 0; }
.card { border-left: 3px solid var(--chosen); padding: 2px 0 2px 14px; font-size: 0.88rem; color: var(--quiet); }
.card .label { font-weight: 600; }
.card .value { font-size: 1.8rem; line-height: 1.25; font-weight: 650; color: var(--ink); }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 8px 24px; margin: 14px 0 0; }
.facts dt { color: var(--quiet); font-size: 0.8rem; }
.facts dd { margin: 0; overflow-wrap: anywhere; font-size: 0.92rem; }
.groups { display: grid; gap: 20px; margin-top: 12px; }
.groups .facts { margin-top: 4px; }
.topology { display: flex; align-items: stretch; }
.tier { position: relative; flex: 3 1 0; min-width: 0; border: 1.5px solid #b4bfca; border-radius: 8px; padding: 14px; }
.tier .device, .idle, .work span { color: var(--quiet); font-size: 0.85rem; }
.work { margin-top: 10px; font-size: 0.92rem; }
.work svg { display: block; width: 100%; max-width: 260px; height: auto; margin: 4px 0; }
.work .on { fill: var(--chosen); }
.work .off { fill: #e1e6eb; }
.idle { margin-top: 10px; font-style: italic; }
.badge { position: absolute; top: -11px; right: 10px; background: var(--ink); color: #fff; font-size: 0.72rem;
  border-radius: 10px; padding: 1px 9px; }
.link { flex: 1.3 1 0; align-self: center; text-align: center; font-size: 0.8rem; color: var(--quiet); padding: 0 4px; }
.wire { border-top: 2px solid #748494; margin: 0 -4px 6px; }
.scroll { overflow-x: auto; }
.plot { min-width: 700px; }
table { border-collapse: collapse; width: 100%; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px; text-align: right; white-space: nowrap; vertical-align: top; }
thead th { color: var(--quiet); font-weight: 600; border-bottom: 1.5px solid #b4bfca; vertical-align: bottom;
  white-space: normal; }
tbody th { font-weight: 600; text-align: left; white-space: normal; min-width: 190px; }
thead th:first-child { text-align: left; }
.step { white-space: nowrap; }
tbody th small { display: block; font-weight: 400; color: var(--quiet); }
tbody tr:last-child > * , tbody th[rowspan] { border-bottom: 1px solid var(--line); }
tr.pred td, td:first-of-type { color: var(--quiet); }
td small { color: var(--quiet); }
.good { color: #00765a; font-weight: 700; } .bad { color: #b3261e; font-weight: 700; }
mark { background: #fde9d5; color: inherit; padding: 0 4px; border-radius: 3px; }
ul { margin: 8px 0 0; padding-left: 1.2em; max-width: 46em; } li { margin: 6px 0; }
@media (max-width: 720px) {
  main { padding: 20px 12px; } section { padding: 18px 14px; }
  .topology { flex-direction: column; }
  .link { padding: 10px 0; }
  .wire { border-top: 0; border-left: 2px solid #748494; height: 18px; width: 0; margin: 0 auto 4px; }
}
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""

_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{style}</style>
{scripts}
</head>
<body><main>
{body}
</main></body>
</html>
"""
