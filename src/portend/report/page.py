"""A report on one planning problem: a single HTML file that opens anywhere, offline.

Everything is inside the file, plotly.js included once; its content security policy forbids the
browser to load anything else. This file says what stands on the page; ``templates/report.html.j2`` draws it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from numpy.typing import ArrayLike

from portend.analysis.compare import TERMS, Comparison, agreement, exit_drifts
from portend.analysis.console import format_share
from portend.errors import InvalidValue
from portend.io.storage import write_text
from portend.perfmodel.estimate import PARTS, Estimate
from portend.report import figures as plots
from portend.report.render import render
from portend.values.exits import SampleExits
from portend.values.plan import CRITERIA, blocks
from portend.values.profile import Profile
from portend.values.topology import Topology

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["ReportData", "render_report", "write_report"]


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
    estimate, checks = data.plans[data.chosen], exit_drifts(data.comparisons)
    said = {"new samples": data.new_samples[data.chosen]} if data.chosen in data.new_samples else {}
    return render(
        "report.html.j2",
        title=data.title,
        data=data,
        plans=data.plans,
        estimate=estimate,
        case=data.measured.get(data.chosen),
        in_words=_in_words(data),
        speedups=_speedups(data),
        facts=said | dict(data.summary),
        tiers=[_tier(data, index) for index in range(len(data.topology.tiers))],
        blocks=data.profile.num_blocks,
        notes=_notes(data),
        drifts={name: "; ".join(check.describe()) for name, check in checks.items() if check.found},
        checked_for_drift=len(checks),
        figures=_figures(data),
        terms=list(TERMS),
        parts_of_latency=list(PARTS),
        provenance=_provenance(data),
        score=CRITERIA[estimate.plan.criterion],
    )


# --- headline ------------------------------------------------------------------------------


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


def _speedups(data: ReportData) -> list[tuple[str, str]]:
    """Say how many times faster the chosen plan is than staying at the source and than the best baseline."""
    edge_only, best = _edge_only(data), _best_baseline(data)
    lines = []
    if edge_only is not None:
        name = f"running the whole network on {data.tier_names[data.topology.source]}"
        lines.append(_speedup(data, edge_only, f"{name} ({edge_only})"))
    if best is not None and best != edge_only:
        role = "the fastest baseline that is at least as accurate" if _accurate(data, best) else "the fastest baseline"
        lines.append(_speedup(data, best, f"{role} ({best})"))
    return lines


def _speedup(data: ReportData, other: str, words: str) -> tuple[str, str]:
    """Return how many times faster the chosen plan is than another, and what is said of it."""
    chosen, measured = data.chosen, data.measured
    predicted = data.plans[other].mean_s / data.plans[chosen].mean_s
    accuracy = f"its accuracy is {format_share(data.plans[other].accuracy)} predicted"
    if chosen not in measured or other not in measured:
        return f"{predicted:.2f}", f"{words}, predicted; {accuracy}."
    ratio = measured[other].measurement.mean_s / measured[chosen].measurement.mean_s
    accuracy += f", {format_share(measured[other].measurement.accuracy)} measured"
    return f"{ratio:.2f}", f"{words}, measured ({predicted:.2f}× predicted); {accuracy}."


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


# --- topology ------------------------------------------------------------------------------


def _tier(data: ReportData, index: int) -> dict[str, Any]:
    """What is drawn of a tier: its name and device, and the partitions that it runs."""
    topology, estimate = data.topology, data.plans[data.chosen]
    tier, plan = topology.tiers[index], estimate.plan
    roles = [role for role, at in (("samples", topology.source), ("results", topology.destination)) if at == index]
    slow = f" · {tier.slowdown:g}× slower" if tier.slowdown != 1 else ""
    work = [
        {"label": blocks(start, end), "start": start, "end": end, "leaving": _leaving(estimate, k)}
        for k, (start, end) in enumerate(plan.partitions)
        if plan.placement[k] == index
    ]
    return {"name": tier.name, "device": f"{tier.device}{slow}", "roles": " + ".join(roles), "work": work}


def _leaving(estimate: Estimate, k: int) -> str:
    """Say how many samples leave at partition ``k``, predicted."""
    plan = estimate.plan
    share = format_share(float(estimate.share[k]))
    if k == len(plan) - 1:
        return f"{share} of the samples end here"
    asked = f"{CRITERIA[plan.criterion]} < {plan.thresholds[k]:g}"
    return f"{share} leave at {asked}" if plan.thresholds[k] > 0 else "no exit"


# --- plans ---------------------------------------------------------------------------------


def _notes(data: ReportData) -> list[str]:
    """What is said above the table of plans, in lines."""
    if not data.comparisons:
        return ["Predicted only: none of these plans has run yet.", *_warnings(data)]
    note = (
        f"✓ the measured value lies inside the interval that the prediction gives for a test of this size "
        f"({_level(data)}), ✗ it does not. {_agreement(data)}"
    )
    return [note, *_warnings(data)]


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


# --- figures -------------------------------------------------------------------------------


def _figures(data: ReportData) -> list[dict[str, Any]]:
    """Return what is drawn, each figure with a sentence on what to see."""
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


def _figure(name: str, title: str, figure: Figure) -> dict[str, Any]:
    return {"name": name, "title": title, "figure": figure, "note": _CAPTIONS[name]}


# --- provenance ----------------------------------------------------------------------------


def _provenance(data: ReportData) -> dict[str, Mapping[str, str]]:
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
    return groups
