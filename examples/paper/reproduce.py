"""Reproduce the evaluation of the paper PORTEND from its authors' public measurements.

    python examples/paper/reproduce.py --data DIR --json OUT [--device0 NAME] [--html OUT]

Finds the optima of P_lat in the paper's space and in Portend's, the baselines and speedups (Fig. 6), Tables
II and III, and the what-if studies of Fig. 9, and puts them beside what the paper shows.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from authors import NETWORKS, device_networks, read_profile, read_thresholds, read_topology

from portend.errors import DataError, PortendError
from portend.io.storage import write_json, write_text
from portend.perfmodel.estimate import Estimate
from portend.perfmodel.model import PerformanceModel
from portend.planner.problem import Problem, SearchSpace, Solution, accuracy, latency
from portend.planner.solve import solve
from portend.report import document
from portend.report import figures as plots
from portend.report.document import Chart, Document, Section, Words, render_document
from portend.values.plan import Plan
from portend.values.profile import Profile
from portend.values.topology import Topology

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from rich.console import Console

__all__ = [
    "Bound",
    "Comparison9",
    "NetworkResult",
    "Results",
    "crossover",
    "fig9a",
    "fig9b",
    "main",
    "paper_space",
    "portend_space",
    "reproduce",
    "reproduce_network",
    "to_json",
]

DROPS: Final = (0.0, 0.02, 0.03, 0.04)
"""Accuracy given up against the whole network; the paper says 2 to 4 points (Sec. III-C)."""
HYPOTHETICAL: Final = "EfficientNetB7"
HYPOTHETICAL_ACCURACY: Final = 0.84
"""Network and least accuracy of Fig. 9 (Sec. III-D)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What the paper shows for one network.

    Attributes:
        plan, exit_rates: its row of Table III; search_s: Table II; speedup: Fig. 6, over edge-only.
    """

    plan: Plan
    exit_rates: tuple[float, ...]
    search_s: float
    speedup: Mapping[str, float]


PUBLISHED: Final[Mapping[str, Published]] = {
    "ResNet20": Published(
        plan=Plan(cuts=(9, 10), placement=(0, 1), thresholds=(0.7,)),
        exit_rates=(0.99, 0.01),
        search_s=21.2,
        speedup={"edge-only": 1.0, "cloud-only": 0.1, "Neurosurgeon": 1.0, "PORTEND": 1.07},
    ),
    "ResNet110": Published(
        plan=Plan(cuts=(25, 40), placement=(0, 1), thresholds=(0.1,)),
        exit_rates=(0.82, 0.18),
        search_s=30 * 60.0,
        speedup={"edge-only": 1.0, "cloud-only": 0.6, "Neurosurgeon": 1.0, "PORTEND": 1.49},
    ),
    "EfficientNetB0": Published(
        plan=Plan(cuts=(4, 8), placement=(0, 1), thresholds=(0.3,)),
        exit_rates=(0.08, 0.92),
        search_s=16.6,
        speedup={"edge-only": 1.0, "cloud-only": 0.95, "Neurosurgeon": 1.08, "PORTEND": 1.39},
    ),
    "VGGish": Published(
        plan=Plan(cuts=(4,), placement=(2,)),
        exit_rates=(1.0,),
        search_s=12.2,
        speedup={"edge-only": 1.0, "cloud-only": 1.73, "Neurosurgeon": 1.73, "PORTEND": 1.73},
    ),
}

PUBLISHED_9A: Final[Mapping[str, Any]] = {
    "split_ms": {1: 19_000.0, 10: 10_000.0},
    "cloud_only_ms": {1: 35_000.0, 10: 3_600.0},
    "crossover_mbps": "below 2 (text), a little above 2 (figure)",
}
PUBLISHED_9B: Final[Mapping[str, Any]] = {
    "tier1_only_ms": {1: 5_700.0, 100: 3_500.0},
    "cloud_only_ms": {1: 3_950.0, 100: 3_950.0},
    "crossover_factor": "5",
}


# --- results -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """The fastest plan of one space (``paper`` or ``portend``) that gives up at most ``drop`` of accuracy."""

    drop: float
    space: str
    solution: Solution

    @property
    def estimate(self) -> Estimate:
        return self.solution.estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkResult:
    """What was found for one network.

    Attributes:
        bounds: an optimum for each drop and space.
        baselines: what does without the planner, at full accuracy, by name.
        row: the plan of Table III; rival: the fastest plan of the paper's space that is as accurate.
        noise_s: by drop, seconds that the optimum in Portend's space gains only because the measured times
            of its parts add up to less than that of the whole (see ``split_gain_s``).
    """

    name: str
    full_accuracy: float
    bounds: tuple[Bound, ...]
    baselines: Mapping[str, Solution]
    row: Estimate
    rival: Solution
    noise_s: Mapping[float, float]

    @property
    def row_is_beaten(self) -> bool:
        """Whether a plan of the paper's own space is faster than Table III's and no less accurate."""
        return self.rival.estimate.mean_s < self.row.mean_s * (1 - 1e-9)

    @property
    def edge_only_s(self) -> float:
        return self.baselines["edge-only"].estimate.mean_s

    def bound(self, drop: float, space: str) -> Bound:
        return next(b for b in self.bounds if b.drop == drop and b.space == space)

    def search_s(self, space: str) -> float:
        """Median seconds of the searches of one space."""
        return median(b.solution.stats.seconds for b in self.bounds if b.space == space)

    def speedup(self, estimate: Estimate) -> float:
        """How many times faster than edge-only."""
        return self.edge_only_s / estimate.mean_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison9:
    """One half of Fig. 9: the best deployment of one kind against cloud-only, over one quantity.

    Attributes:
        x: Mbit/s of link 0, or factor of tier 1's compute; own, cloud: optimum at each x.
        crossover: x at which both take the same time; None if one is always faster.
        mark: tier 2's compute power relative to tier 1's, for Fig. 9b.
    """

    x: tuple[float, ...]
    own: tuple[Solution, ...]
    cloud: tuple[Solution, ...]
    crossover: float | None
    mark: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """Everything; ``fig9a`` and ``fig9b`` are None where the devices lack that network."""

    topology: Topology
    networks: tuple[NetworkResult, ...]
    fig9a: Comparison9 | None
    fig9b: Comparison9 | None
    notes: tuple[str, ...] = ()


# --- optima --------------------------------------------------------------------------------


def paper_space(thresholds: tuple[float, ...]) -> SearchSpace:
    """Return what the authors search: toward higher tiers, one exit per tier, one global threshold."""
    return SearchSpace(thresholds=thresholds, tier_order="increasing", exits_per_tier=1)


def portend_space(thresholds: tuple[float, ...]) -> SearchSpace:
    """Return the space without the paper's limits: any tier order, two exits per tier."""
    return SearchSpace(thresholds=thresholds, exits_per_tier=2)


def reproduce_network(profile: Profile, topology: Topology, thresholds: tuple[float, ...]) -> NetworkResult:
    """Return the optima, baselines and published plan of one network."""
    model = PerformanceModel(profile, topology, estimator="marginal")
    spaces = {"paper": paper_space(thresholds), "portend": portend_space(thresholds)}
    full = profile.full_accuracy
    bounds = tuple(
        Bound(drop=drop, space=name, solution=_fastest(model, space, full - drop))
        for drop in DROPS
        for name, space in spaces.items()
    )
    row = model.estimate(PUBLISHED[profile.backbone.name].plan)
    whole = Problem(minimize=latency, subject_to=(accuracy >= full,), space=spaces["paper"])
    return NetworkResult(
        name=profile.backbone.name,
        full_accuracy=full,
        bounds=bounds,
        baselines={name: s for name, s in solve(whole, model).baselines.items() if s.status == "optimal"},
        row=row,
        rival=_fastest(model, spaces["paper"], row.accuracy),
        noise_s={b.drop: split_gain_s(model, b.solution.plan) for b in bounds if b.space == "portend"},
    )


def _fastest(model: PerformanceModel, space: SearchSpace, least: float) -> Solution:
    bound = min(max(least, 0.0), 1.0)
    return solve(Problem(minimize=latency, subject_to=(accuracy >= bound,), space=space), model, baselines=False)


def split_gain_s(model: PerformanceModel, plan: Plan) -> float:
    """Seconds that neighbors on one tier take less than the measured partition that joins them.

    The joined partition does the same work with one branch less, so what is gained is noise of the
    measurements (the longest of two or three repeats), for a sample that passes both.
    """
    compute = model.tables.compute_s[0, 1]
    gain = 0.0
    for (first, second), (a, b) in zip(pairwise(plan.partitions), pairwise(plan.placement), strict=True):
        if a == b:
            apart = compute[a, first[0], first[1]] + compute[b, second[0], second[1]]
            gain += max(0.0, float(compute[a, first[0], second[1]] - apart))
    return gain


# --- hypothetical scenarios (Fig. 9) -------------------------------------------------------


def crossover(gap: Callable[[float], float], low: float, high: float, *, tolerance: float = 1e-9) -> float | None:
    """Return where ``gap`` changes its sign between two positive numbers, by bisection; None if it does not."""
    below, above = gap(low), gap(high)
    if below == 0:
        return low
    if above == 0:
        return high
    if (below > 0) == (above > 0):
        return None
    while high / low > 1 + tolerance:
        middle = (low * high) ** 0.5
        if (gap(middle) > 0) == (below > 0):
            low = middle
        else:
            high = middle
    return float((low * high) ** 0.5)


def fig9a(profile: Profile, topology: Topology, thresholds: tuple[float, ...]) -> Comparison9:
    """Return the split between tiers 0 and 2 against tier 2 only, over the bandwidth between tiers 0 and 1.

    Tiers 1 and 2 are joined by 500 Mbit/s; both links take 20 ms.
    """
    both = topology.with_link(0, propagation_delay_s=0.020).with_link(1, bandwidth_bps=500e6, propagation_delay_s=0.020)
    split = SearchSpace(
        thresholds=thresholds, tiers=(0, 2), tier_order="increasing", min_partitions=2, exits_per_tier=1
    )
    alone = SearchSpace(thresholds=thresholds, tiers=(2,), exits_per_tier=1)

    def best(space: SearchSpace, mbps: float) -> Solution:
        model = PerformanceModel(profile, both.with_link(0, bandwidth_bps=1e6 * mbps), estimator="marginal")
        return _fastest(model, space, HYPOTHETICAL_ACCURACY)

    x = tuple(float(v) for v in np.linspace(1, 10, 37))
    return Comparison9(
        x=x,
        own=tuple(best(split, v) for v in x),
        cloud=tuple(best(alone, v) for v in x),
        crossover=crossover(lambda v: best(split, v).estimate.mean_s - best(alone, v).estimate.mean_s, 0.01, 1e4),
    )


def fig9b(profile: Profile, topology: Topology, thresholds: tuple[float, ...]) -> Comparison9:
    """Return tier 1 only against tier 2 only, over the factor by which tier 1 computes faster.

    The links have 10 and 100 Mbit/s and take 10 and 200 ms. A faster tier 1 also decodes faster,
    which hardly matters.
    """
    base = topology.with_link(0, bandwidth_bps=10e6, propagation_delay_s=0.010).with_link(
        1, bandwidth_bps=100e6, propagation_delay_s=0.200
    )

    def best(tier: int, factor: float) -> Solution:
        model = PerformanceModel(profile, base.with_tier(1, slowdown=1 / factor), estimator="marginal")
        return _fastest(
            model, SearchSpace(thresholds=thresholds, tiers=(tier,), exits_per_tier=1), HYPOTHETICAL_ACCURACY
        )

    x = tuple(float(v) for v in np.geomspace(1, 100, 41))
    devices = [profile.devices[tier.device].compute_s[0, -1] for tier in topology.tiers]
    return Comparison9(
        x=x,
        own=tuple(best(1, v) for v in x),
        cloud=tuple(best(2, v) for v in x),
        crossover=crossover(lambda v: best(1, v).estimate.mean_s - best(2, v).estimate.mean_s, 1e-2, 1e6),
        mark=float(devices[1] / devices[2]),
    )


def reproduce(folder: Path, device0: str | None, progress: Callable[[str], None] = lambda _: None) -> Results:
    """Return everything that the devices' files allow; networks that one device lacks are left out and noted."""
    topology, thresholds = read_topology(folder, device0), read_thresholds(folder)
    usual = read_topology(folder).tiers[0].device
    measured = {tier.device: device_networks(folder, tier.device) for tier in topology.tiers}
    lacking = {name: [d for d, known in measured.items() if name not in known] for name in (*NETWORKS, HYPOTHETICAL)}
    notes = [f"{name} is left out: not measured on {', '.join(d)}" for name, d in lacking.items() if d]
    if topology.tiers[0].device != usual:
        notes.append(f"tier 0 is {topology.tiers[0].device}; what is published is for {usual}")
    if all(lacking[name] for name in NETWORKS):
        raise DataError(f"none of {', '.join(NETWORKS)} was measured on all of {', '.join(measured)}")
    networks = []
    for name in NETWORKS:
        if not lacking[name]:
            progress(f"{name}: optima and baselines")
            networks.append(reproduce_network(read_profile(folder, name, topology), topology, thresholds))
    halves: list[Comparison9 | None] = [None, None]
    if not lacking[HYPOTHETICAL]:
        profile = read_profile(folder, HYPOTHETICAL, topology)
        for index, (figure, what) in enumerate(((fig9a, "9a: bandwidth"), (fig9b, "9b: compute"))):
            progress(f"{HYPOTHETICAL}, Fig. {what}")
            halves[index] = figure(profile, topology, thresholds)
    return Results(topology=topology, networks=tuple(networks), fig9a=halves[0], fig9b=halves[1], notes=tuple(notes))


# --- JSON ----------------------------------------------------------------------------------


def to_json(results: Results) -> dict[str, Any]:
    """Return the results as JSON values: an object per network, ``fig9a`` and ``fig9b``."""
    return {
        **{network.name: _network_json(network) for network in results.networks},
        "fig9a": _fig9_json(results.fig9a, "bandwidth_mbps", "split", "crossover_mbps", PUBLISHED_9A),
        "fig9b": _fig9_json(results.fig9b, "factor", "tier1_only", "crossover_factor", PUBLISHED_9B),
    }


def _plan_json(estimate: Estimate) -> dict[str, Any]:
    return {
        "cuts": list(estimate.plan.cuts),
        "placement": list(estimate.plan.placement),
        "thresholds": list(estimate.plan.thresholds),
        "latency_ms": 1e3 * estimate.mean_s,
        "accuracy": estimate.accuracy,
    }


def _network_json(network: NetworkResult) -> dict[str, Any]:
    published = PUBLISHED[network.name]
    return {
        "bounds": [{"drop": b.drop, "space": b.space} | _plan_json(b.estimate) for b in network.bounds],
        "baselines": {name: 1e3 * s.estimate.mean_s for name, s in network.baselines.items()},
        "search_s": network.search_s("paper"),
        "search_portend_s": network.search_s("portend"),
        "plans": network.bound(DROPS[0], "paper").solution.stats.plans,
        "plans_portend": network.bound(DROPS[0], "portend").solution.stats.plans,
        "noise_portend_ms": {f"{drop:g}": 1e3 * seconds for drop, seconds in network.noise_s.items()},
        "full_accuracy": network.full_accuracy,
        "table3": _plan_json(network.row)
        | {
            "optimal": not network.row_is_beaten,
            "beaten_by": _plan_json(network.rival.estimate) if network.row_is_beaten else None,
        },
        "speedup": {name: network.speedup(e) for name, e in _fig6(network).items()},
        "published": {"speedup": dict(published.speedup), "search_s": published.search_s},
    }


def _fig9_json(
    half: Comparison9 | None, x: str, own: str, crossing: str, published: Mapping[str, Any]
) -> dict[str, Any]:
    if half is None:
        return {}
    return {
        "network": HYPOTHETICAL,
        "min_accuracy": HYPOTHETICAL_ACCURACY,
        x: list(half.x),
        f"{own}_ms": [1e3 * s.estimate.mean_s for s in half.own],
        "cloud_only_ms": [1e3 * s.estimate.mean_s for s in half.cloud],
        f"{own}_plans": [s.plan.describe() for s in half.own],
        "accuracy": [s.estimate.accuracy for s in half.own],
        "feasible": all(s.status == "optimal" for s in (*half.own, *half.cloud)),
        crossing: half.crossover,
        **({} if half.mark is None else {"tier2_factor": half.mark}),
        "published": dict(published),
    }


def _fig6(network: NetworkResult) -> dict[str, Estimate]:
    """The bars of Fig. 6, with the published plan as PORTEND."""
    fixed = {name: network.baselines[name].estimate for name in ("edge-only", "cloud-only", "Neurosurgeon")}
    return fixed | {"PORTEND": network.row}


# --- tables --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Table:
    """Text in rows and columns; ``left`` counts the first columns that are words, ``marked`` rows stand out."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    marked: tuple[int, ...] = ()

    def words(self, column: int) -> bool:
        """Whether a column holds words, not numbers."""
        return column < self.left or self.columns[column] in ("plan", "split plan", "verdict")

    def section(self, *charts: Chart | None) -> Section:
        """The table as a section of a page, below its charts."""
        words = [column for column in range(len(self.columns)) if self.words(column)]
        table = document.Table(head=self.columns, rows=self.rows, words=words, good=self.marked)
        return Section(title=self.title, pieces=[Words(self.note), *(chart for chart in charts if chart), table])


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _points(drop: float) -> str:
    return f"−{100 * drop:g}" if drop else "0"


def optima_table(results: Results) -> Table:
    """Return the fastest plan for every network, drop and space."""
    rows = []
    for network in results.networks:
        for b in network.bounds:
            noise = network.noise_s[b.drop] if b.space == "portend" else 0.0
            mark = f" (noise: up to {_ms(noise)})" if noise > 5e-6 else ""
            rows.append(
                (
                    network.name if b is network.bounds[0] else "",
                    _points(b.drop) if b.space == "paper" else "",
                    b.space,
                    b.solution.plan.describe() + mark,
                    _ms(b.estimate.mean_s),
                    _percent(b.estimate.accuracy),
                )
            )
    return Table(
        "Fastest plans (P_lat)",
        "At the accuracy of the whole network minus so many points. paper: toward higher tiers, one exit per tier. "
        "portend: any tier order, two exits per tier. "
        "noise: two measured parts take less than the measured whole, which is a disturbed measurement, not a gain.",
        ("network", "points", "space", "plan", "ms", "accuracy"),
        tuple(rows),
        left=4,
    )


def table3(results: Results) -> Table:
    """Return Table III as published, and the plans that beat its rows."""
    rows, marked = [], []
    for network in results.networks:
        published = PUBLISHED[network.name]
        rates = f"{' / '.join(f'{100 * e:.1f}' for e in network.row.share)}"
        shown = f"{' / '.join(f'{100 * e:.0f}' for e in published.exit_rates)}"
        verdict = "not optimal" if network.row_is_beaten else "optimal at its accuracy"
        rows.append(
            (
                network.name,
                network.row.plan.describe(),
                _ms(network.row.mean_s),
                _percent(network.row.accuracy),
                rates,
                shown,
                verdict,
            )
        )
        if network.row_is_beaten:
            best = network.rival.estimate
            marked.append(len(rows))
            rates = f"{' / '.join(f'{100 * e:.1f}' for e in best.share)}"
            rows.append(
                ("", best.plan.describe(), _ms(best.mean_s), _percent(best.accuracy), rates, "", "beats the row above")
            )
    return Table(
        "Table III: the published plans",
        "Every published plan on the public measurements, and the fastest plan of the paper's own space that is no "
        "less accurate. With networks allowed to be truncated, as Sec. II-A says, a shorter network on tier 0 wins.",
        ("network", "plan", "ms", "accuracy", "exit rates %", "published %", "verdict"),
        tuple(rows),
        left=2,
        marked=tuple(marked),
    )


def fig6_table(results: Results) -> Table:
    """Return the speedups over edge-only, beside those of Fig. 6."""
    rows = []
    for network in results.networks:
        published, bars = PUBLISHED[network.name].speedup, _fig6(network)
        cells = [f"{network.speedup(e):.2f} ({published[name]:g})" for name, e in bars.items()]
        optima = [
            " / ".join(f"{network.speedup(network.bound(d, space).estimate):.2f}" for d in DROPS[1:])
            for space in ("paper", "portend")
        ]
        rows.append((network.name, *cells, *optima))
    drops = " / ".join(_points(d) for d in DROPS[1:])
    return Table(
        "Fig. 6: speedup over edge-only",
        "In brackets: as published. PORTEND: the plan of Table III. The last two columns: the optima at "
        f"{drops} points.",
        ("network", "edge-only", "cloud-only", "Neurosurgeon", "PORTEND", "optima, paper", "optima, portend"),
        tuple(rows),
    )


def baseline_table(results: Results) -> Table:
    """Return the latency of every baseline."""
    names = list(dict.fromkeys(name for network in results.networks for name in network.baselines))
    rows = tuple(
        (network.name, *(_ms(network.baselines[n].estimate.mean_s) if n in network.baselines else "–" for n in names))
        for network in results.networks
    )
    return Table("Baselines, ms", "At the accuracy of the whole network, or better.", ("network", *names), rows)


def table2(results: Results) -> Table:
    """Return the search times, beside those of Table II."""
    rows = []
    for network in results.networks:
        published = PUBLISHED[network.name].search_s
        plans = [network.bound(DROPS[0], space).solution.stats.plans for space in ("paper", "portend")]
        took = network.search_s("paper")
        rows.append(
            (
                network.name,
                f"{published:g} s" if published < 60 else f"{published / 60:g} min",
                f"{_ms(took)} ms",
                f"{published / took:,.0f}×",
                f"{plans[0]:,}",
                f"{_ms(network.search_s('portend'))} ms",
                f"{plans[1]:,}",
            )
        )
    return Table(
        "Table II: time to find the optimum",
        "The published times were taken on a 2021 MacBook M1 Pro, those here on this machine (medians of "
        f"{len(DROPS)} searches).",
        ("network", "published", "paper's space", "faster", "plans", "portend's space", "plans"),
        tuple(rows),
    )


def fig9_tables(results: Results) -> tuple[Table, ...]:
    """Return some points of Fig. 9a and 9b, beside those of the paper."""
    tables = []
    if results.fig9a is not None:
        tables.append(
            _fig9_table(
                results.fig9a,
                f"Fig. 9a: {HYPOTHETICAL}, less bandwidth between tiers 0 and 1",
                ("Mbit/s", "tier 0+2 split, s", "published", "tier 2 only, s", "published", "split plan"),
                (1, 2, 3, 5, 10),
                (PUBLISHED_9A["split_ms"], PUBLISHED_9A["cloud_only_ms"]),
                f"{{}} Mbit/s; published: {PUBLISHED_9A['crossover_mbps']}.",
            )
        )
    if results.fig9b is not None:
        half = results.fig9b
        tables.append(
            _fig9_table(
                half,
                f"Fig. 9b: {HYPOTHETICAL}, more compute power on tier 1",
                ("factor", "tier 1 only, s", "published", "tier 2 only, s", "published", "plan"),
                (1, 10, 100),
                (PUBLISHED_9B["tier1_only_ms"], PUBLISHED_9B["cloud_only_ms"]),
                f"{{}} times the compute power; published: {PUBLISHED_9B['crossover_factor']}. "
                f"Tier 2 has {half.mark:.1f} times that of tier 1.",
            )
        )
    return tuple(tables)


def _fig9_table(
    half: Comparison9,
    title: str,
    columns: tuple[str, ...],
    shown: Sequence[float],
    published: tuple[Mapping[float, float], ...],
    crossing: str,
) -> Table:
    rows = []
    for value in shown:
        i = int(np.argmin(np.abs(np.asarray(half.x) - value)))
        cells = [f"{value:g}"]
        for solutions, known in zip((half.own, half.cloud), published, strict=True):
            cells += [f"{solutions[i].estimate.mean_s:.2f}", f"{1e-3 * known[value]:g}" if value in known else ""]
        rows.append((*cells, half.own[i].plan.describe()))
    equal = "Equal at no number of" if half.crossover is None else f"Equal at {half.crossover:.3f}"
    full = max(s.estimate.accuracy for s in half.cloud)
    reach = (
        f"Accuracy at least {HYPOTHETICAL_ACCURACY:g}; the whole network has {full:.4f}."
        if all(s.status == "optimal" for s in (*half.own, *half.cloud))
        else f"No plan reaches accuracy {HYPOTHETICAL_ACCURACY:g}; these are the most accurate ones ({full:.4f})."
    )
    return Table(title, f"{crossing.format(equal)} {reach}", columns, tuple(rows))


def all_tables(results: Results) -> tuple[Table, ...]:
    """Return every table, in the order of reading."""
    return (
        optima_table(results),
        table3(results),
        fig6_table(results),
        baseline_table(results),
        table2(results),
        *fig9_tables(results),
    )


def print_tables(results: Results, console: Console) -> None:
    """Print every table to a terminal."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    for table in all_tables(results):
        shown = RichTable(
            title=table.title, caption=table.note, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left"
        )
        for index, column in enumerate(table.columns):
            shown.add_column(column, justify="left" if table.words(index) else "right", overflow="fold")
        for index, row in enumerate(table.rows):
            shown.add_row(*(Text(cell) for cell in row), style="bold" if index in table.marked else None)
        console.print(shown)


# --- the page ------------------------------------------------------------------------------

_FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_BARS: Final = {"edge-only": "#A3AFBB", "cloud-only": "#56B4E9", "Neurosurgeon": "#0072B2", "PORTEND": "#E69F00"}


def plain(figure: Figure, height: int) -> Figure:
    figure.update_layout(
        template="none",
        height=height,
        font={"family": _FONT, "size": 13, "color": plots.INK},
        margin={"l": 70, "r": 24, "t": 56, "b": 56},
        legend={"orientation": "h", "y": 1.0, "yref": "container", "yanchor": "top", "x": 0.0, "xref": "container"},
    )
    axis = {"gridcolor": plots.GRID, "zeroline": False, "linecolor": "#B4BFCA", "automargin": True, "showline": True}
    figure.update_xaxes(**axis, title_font={"color": plots.QUIET}, title_standoff=12)
    figure.update_yaxes(**axis, title_font={"color": plots.QUIET}, title_standoff=12)
    return figure


def plot_fig6(results: Results) -> Figure:
    """Return the speedups as bars, the published ones as hollow diamonds on them."""
    import plotly.graph_objects as go

    figure = go.Figure()
    names = [network.name for network in results.networks]
    groups = [*_BARS, "optimum, paper's space", "optimum, Portend's space"]
    colors = [*_BARS.values(), plots.CHOSEN, "#009E73"]
    width = 0.8 / len(groups)
    for index, (group, color) in enumerate(zip(groups, colors, strict=True)):
        x = [i + (index - (len(groups) - 1) / 2) * width for i in range(len(names))]
        if group in _BARS:
            y = [network.speedup(_fig6(network)[group]) for network in results.networks]
            error = None
        else:
            space = "paper" if "paper" in group else "portend"
            each = [[n.speedup(n.bound(d, space).estimate) for d in DROPS[1:]] for n in results.networks]
            y = [values[1] for values in each]
            error = {
                "type": "data",
                "symmetric": False,
                "array": [v[2] - v[1] for v in each],
                "arrayminus": [v[1] - v[0] for v in each],
                "color": plots.INK,
                "thickness": 1.2,
                "width": 3,
            }
        figure.add_bar(
            x=x,
            y=y,
            width=0.92 * width,
            name=group,
            marker_color=color,
            error_y=error,
            customdata=names,
            hovertemplate=f"%{{customdata}}, {group}: %{{y:.2f}}<extra></extra>",
        )
        if group in _BARS:
            figure.add_scatter(
                x=x,
                y=[PUBLISHED[name].speedup[group] for name in names],
                mode="markers",
                marker={"symbol": "diamond", "size": 9, "color": "#FFFFFF", "line": {"color": plots.INK, "width": 1.5}},
                name="published",
                showlegend=index == 0,
                legendrank=2000,
                hovertemplate="published: %{y:g}<extra></extra>",
            )
    plain(figure, 420)
    figure.update_layout(barmode="overlay", margin_t=76)
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=names)
    figure.update_yaxes(title_text="speedup over edge-only", rangemode="tozero")
    return figure


def plot_fig9(half: Comparison9, *, own: str, x: str, logarithmic: bool, published: Mapping[str, Any]) -> Figure:
    """Return both latencies over x, the crossover, and the published points."""
    import plotly.graph_objects as go

    figure = go.Figure()
    named = {own: (half.own, plots.CHOSEN), "tier 2 only": (half.cloud, "#0072B2")}
    for (name, (solutions, color)), key in zip(named.items(), list(published)[:2], strict=True):
        figure.add_scatter(
            x=half.x,
            y=[s.estimate.mean_s for s in solutions],
            name=name,
            mode="lines",
            line={"color": color, "width": 2.5},
            text=[escape(s.plan.describe()) for s in solutions],
            hovertemplate="%{x:.3g}: %{y:.2f} s, %{text}<extra></extra>",
        )
        figure.add_scatter(
            x=list(published[key]),
            y=[1e-3 * v for v in published[key].values()],
            name=f"{name}, published",
            mode="markers",
            marker={"symbol": "diamond", "size": 11, "color": "#FFFFFF", "line": {"color": color, "width": 2}},
            hovertemplate="published: %{y:g} s<extra></extra>",
        )
    lines = {half.crossover: ("equal at {:.2f}", plots.QUIET, "dot"), half.mark: ("tier 2: {:.1f}", plots.INK, "solid")}
    for at, (words, color, dash) in lines.items():
        if at is not None and half.x[0] <= at <= half.x[-1]:
            line = {"color": color, "dash": dash, "width": 1.5}
            figure.add_shape(type="line", x0=at, x1=at, y0=0, y1=1, yref="paper", line=line)
            figure.add_annotation(
                x=math.log10(at) if logarithmic else at,  # annotations, unlike shapes, take the exponent
                y=1,
                yref="paper",
                yanchor="bottom",
                showarrow=False,
                text=words.format(at),
                font={"color": color},
            )
    plain(figure, 400)
    figure.update_layout(margin_t=84)
    figure.update_xaxes(title_text=x, type="log" if logarithmic else "linear")
    if logarithmic:
        figure.update_xaxes(tickvals=[1, 2, 5, 10, 20, 50, 100])
    figure.update_yaxes(title_text="mean latency, s", rangemode="tozero")
    return figure


def render_page(results: Results) -> str:
    """Return one HTML page with every table and figure; it loads nothing else."""
    charts = {2: Chart(name="fig6", figure=plot_fig6(results))}
    halves = [
        (results.fig9a, "fig9a", "tier 0+2 split", "Mbit/s between tiers 0 and 1", False, PUBLISHED_9A),
        (results.fig9b, "fig9b", "tier 1 only", "compute power of tier 1, times", True, PUBLISHED_9B),
    ]
    tables = all_tables(results)
    at = len(tables) - sum(half is not None for half, *_ in halves)
    for half, name, own, x, logarithmic, published in halves:
        if half is not None:
            plot = plot_fig9(half, own=own, x=x, logarithmic=logarithmic, published=published)
            charts[at] = Chart(name=name, figure=plot)
            at += 1
    devices = ", ".join(f"tier {i} {tier.device}" for i, tier in enumerate(results.topology.tiers))
    beaten = [network for network in results.networks if network.row_is_beaten]
    lead = (
        f"{len(beaten)} of {len(results.networks)} published plans are not optimal in the paper's own space"
        + (": " if beaten else "")
        + "; ".join(
            f"{n.name} {_ms(n.row.mean_s)} ms, but {n.rival.plan.describe()} takes "
            f"{_ms(n.rival.estimate.mean_s)} ms and is no less accurate"
            for n in beaten
        )
        + "."
    )
    words = (
        f"From the authors’ public measurements on {devices}, with the authors’ conventions and the marginal "
        "estimator. Diamonds and brackets: as published."
    )
    return render_document(
        Document(
            title="The paper’s evaluation, reproduced",
            intro=(words, *results.notes),
            lead=(Words(lead, "lead"),),
            reading=_READING,
            sections=[table.section(charts.get(index)) for index, table in enumerate(tables)],
        )
    )


_READING: Final = (
    "Latency is the mean over samples, from the sample at tier 0 to its label at tier 0.",
    "All numbers come from the profile. The paper’s tier 0 was a two-core machine held to one core, and the paper "
    "does not say which bars of Fig. 6 were measured.",
    "Exit rates are the profile’s; the published ones may be those of the test samples, which are not public.",
    "Exit rates never fall along a plan (a running maximum); the authors’ differences can turn negative.",
)


# --- command line --------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    from rich.console import Console

    parser = argparse.ArgumentParser(description="Reproduce the PORTEND paper from its authors' measurements.")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with topology.json")
    parser.add_argument("--device0", metavar="NAME", help="device of tier 0 (default: that of topology.json)")
    parser.add_argument("--json", type=Path, required=True, metavar="OUT", help="write all numbers here")
    parser.add_argument("--html", type=Path, metavar="OUT", help="write one page with tables and figures here")
    options = parser.parse_args(arguments)
    errors = Console(stderr=True)
    try:
        with errors.status("reading") as status:
            results = reproduce(options.data, options.device0, progress=status.update)
        for note in results.notes:
            errors.print(f"note: {note}", markup=False, highlight=False)
        width = None if sys.stdout.isatty() else 150
        print_tables(results, Console(width=width, highlight=False))
        write_json(to_json(results), options.json)
        if options.html is not None:
            write_text(render_page(results), options.html)
    except PortendError as error:
        errors.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
