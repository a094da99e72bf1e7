"""The commands that hold predictions against measurements: compare, validate, drift, report, demo."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from portend.cli.inputs import bars, check_writable
from portend.cli.options import (
    Command,
    FileOf,
    Numbers,
    Quantity,
    Share,
    allow_code,
    as_json,
    codec_tolerance_option,
    criterion_option,
    data_option,
    emulation_option,
    say,
    terminal,
    topology_option,
)
from portend.cli.planning import INFEASIBLE, missed

if TYPE_CHECKING:
    from portend.values.plan import Plan
    from portend.values.profile import Profile
    from portend.verbs.compare import Comparisons

__all__ = ["compare", "demo", "drift", "report", "show_comparisons", "validate"]


_DRIFTED = 3
"""How `portend drift` ends where exits have drifted; 1 and 2 are errors."""


@click.command(cls=Command)
@click.option(
    "--out", default="runs/demo", show_default=True, type=click.Path(file_okay=False), help="Folder for everything."
)
@as_json
def demo(out: str, as_json: bool) -> None:
    """Train, profile, plan, run, compare and report on handwritten digits.

    A small ResNet is spread over three tiers with emulated links (10 Mbit/s, 20 ms; 400 Mbit/s, 40 ms).
    Leaves summary.json, report.html, the profile, the plan and all raw measurements in the folder. It ends with 3
    where no plan is accurate enough.
    """
    from portend.workflows.demo import describe_speed_drift, run_demo

    with bars(quiet=as_json) as tell:
        result = run_demo(out, tell=tell)
    if as_json:
        click.echo(json.dumps(result.summary))
        sys.exit(0 if result.solution.met else INFEASIBLE)
    show_comparisons(result.comparisons)
    say(f"{result.solution.problem}: {result.solution.plan.describe(['edge', 'base', 'cloud'])}")
    say(result.summary["verdict"])
    say(describe_speed_drift(result.summary["speed_drift"]))
    say(f"Everything is in {out}; open {Path(out) / 'report.html'}")
    if not result.solution.met:
        missed(result.solution, str(Path(out) / "plan.json"))


def show_comparisons(cases: Any) -> None:
    from portend.analysis.console import comparison_table, terms_table

    terminal().print(comparison_table(cases), terms_table(cases))
    for told, name in {case.disturbed: case.name for case in cases if case.disturbed}.items():
        click.echo(f"warning: when {name} ran, {told}", err=True)


def _compared(profile: str, measurements: tuple[str, ...], level: float) -> tuple[Profile, Comparisons]:
    from portend.io.storage import load_measurement, load_profile
    from portend.verbs.compare import compare as compare_runs

    stems = [Path(path).stem for path in measurements]
    names = [path if stems.count(stem) > 1 else stem for path, stem in zip(measurements, stems, strict=True)]
    loaded = load_profile(profile)
    return loaded, compare_runs(
        loaded, {name: load_measurement(path) for name, path in zip(names, measurements, strict=True)}, level=level
    )


@click.command(cls=Command)
@click.argument("profile", type=FileOf("profile"))
@click.argument("measurements", nargs=-1, required=True, type=FileOf("run"))
@click.option("--level", type=Share(0.5, 0.999), default=0.95, show_default=True, help="Of the intervals.")
@as_json
def compare(profile: str, measurements: tuple[str, ...], level: float, as_json: bool) -> None:
    """Hold MEASUREMENTS (from `portend run`) against what PROFILE predicts."""
    from portend.analysis.compare import agreement, exit_drifts

    _, cases = _compared(profile, measurements, level)
    if as_json:
        click.echo(json.dumps({"comparisons": [c.to_dict() for c in cases], "agreement": agreement(cases)}))
        return
    show_comparisons(cases)
    for name, check in exit_drifts(cases).items():
        if check.found:
            say(f"exit drift in {name}: {'; '.join(check.describe())}")


@click.command(cls=Command)
@click.argument("profile", type=FileOf("profile"))
@click.option(
    "--network",
    required=True,
    type=FileOf("checkpoint", "exported"),
    help="Its checkpoint, or what `portend export` wrote.",
)
@topology_option
@click.option(
    "--config",
    type=FileOf("campaign"),
    help="YAML that states a campaign (docs/validation.md); options go first.",
)
@click.option("--plans", type=click.IntRange(1), help="How many.  [default: 60]")
@click.option("--samples", type=click.IntRange(1), help="Test samples that each plan runs over.  [default: 200]")
@click.option("--seed", type=click.IntRange(0), help="Of the plans and the samples.  [default: 0]")
@click.option("--front", type=Share(), help="Share of plans of the Pareto front.  [default: 0.25]")
@click.option("--turns", type=click.IntRange(1), help="Shares in which a plan runs over its samples.  [default: 4]")
@click.option("--repeats", type=click.IntRange(1), help="Bursts of each partition between them.  [default: 3]")
@click.option("--gap", type=Quantity("time"), help="Idle time before each sample; default: the profile's.")
@criterion_option
@codec_tolerance_option
@emulation_option
@click.option(
    "--budget",
    type=Quantity("time"),
    help="Begin no plan that would end later, such as '30 min'; the same command goes on.",
)
@click.option("--restart", is_flag=True, help="Begin anew instead of going on with what ran.")
@data_option
@allow_code
@click.option("--out", required=True, type=click.Path(file_okay=False), help="Folder for traces, summary and report.")
@as_json
def validate(
    profile: str, network: str, topology: str, config: str | None, gap: float | None, budget: float | None,
    restart: bool, data: str | None, allow_code: tuple[str, ...], out: str, as_json: bool, **asked: Any,
) -> None:  # fmt: skip
    """Run a campaign of many different plans, and hold what PROFILE predicts against what they do.

    The plans are a seeded mix from the Pareto front and from all of the space; all predictions are written down
    before the first plan runs. What ran is kept in OUT: after an interruption the same command goes on, and
    measures no plan twice.
    """
    from portend.io.forms import load_topology
    from portend.io.storage import load_profile
    from portend.verbs.network import samples_of

    places, loaded = load_topology(topology), load_profile(profile)
    given = {name: value for name, value in (*asked.items(), ("gap_s", gap)) if value is not None}

    from portend.data.dataset import make_splits
    from portend.workflows.validate import Campaign, read_campaign
    from portend.workflows.validate import validate as run_campaign

    campaign = replace(Campaign() if config is None else read_campaign(config, places), **given)
    check_writable(str(Path(out) / "summary.json"))
    dataset, trained = samples_of(network, data, None, allow_code=allow_code)
    test = make_splits(dataset, seed=trained).test
    try:
        with bars(quiet=as_json) as tell:
            found = run_campaign(
                loaded, network, places, dataset, test, out, campaign,
                budget_s=math.inf if budget is None else budget, restart=restart, tell=tell, allow_code=allow_code,
            )  # fmt: skip
    except KeyboardInterrupt:
        click.echo(f"interrupted; the same command goes on with the plans that are left, in {out}", err=True)
        sys.exit(130)
    if found.disturbed:
        click.echo(f"warning: the machine was disturbed while {len(found.disturbed)} of the plans ran", err=True)
    if len(found.cases) < found.planned:
        click.echo(
            f"note: {len(found.cases)} of {found.planned} plans ran; the same command goes on with the others", err=True
        )
    if as_json:
        click.echo(json.dumps(json.loads((Path(out) / "summary.json").read_text(encoding="utf-8"))))
        return

    from portend.report.validation_page import targets_table, worst_table

    terminal().print(targets_table(found), worst_table(found, places.names))
    say(f"Everything is in {out}; open {Path(out) / 'report.html'}")


@click.command(cls=Command)
@click.argument("profile", type=FileOf("profile"))
@click.argument("measurements", nargs=-1, type=FileOf("run"))
@click.option("--plan", type=FileOf("plan"), help="Plan (JSON) that --counts are of.")
@click.option(
    "--counts", type=Numbers(int), help="Instead of MEASUREMENTS: samples that left at each of the plan's partitions."
)
@click.option(
    "--level", type=Share(0.5, 0.999999), default=0.99, show_default=True,
    help="Probability that no drift is found in any of the runs where there is none.",
)  # fmt: skip
@as_json
def drift(
    profile: str, measurements: tuple[str, ...], plan: str | None, counts: tuple[int, ...] | None, level: float,
    as_json: bool,
) -> None:  # fmt: skip
    """Tell whether exits let go other shares of the samples than PROFILE says, beyond chance.

    Of MEASUREMENTS (from `portend run`), or of counts: --plan plan.json --counts 31,40,29. Ends with 3 where
    there is drift, with 0 where there is none.
    """
    import numpy as np

    from portend.io.storage import load_measurement, load_profile
    from portend.perfmodel.exits import exit_counts
    from portend.planner.planfile import load_plan
    from portend.stats.exit_drift import exit_drift
    from portend.verbs.compare import check_weights

    if (plan is None) != (counts is None) or bool(measurements) == bool(plan):
        raise click.UsageError("give MEASUREMENTS, or --plan together with --counts")
    loaded = load_profile(profile)
    runs: dict[str, tuple[Plan, Any]] = {}
    names: dict[str, Any] = {}
    if plan is not None:
        planned = load_plan(plan)
        planned.check_network(loaded.backbone, plan, profile)
        runs[plan], names[plan] = (planned.plan, counts), planned.tiers or None
    for path in measurements:
        measured = load_measurement(path)
        check_weights(loaded, path, measured)
        runs[path] = (measured.plan, np.bincount(measured.exit_index, minlength=len(measured.plan)))
        names[path] = measured.topology.names
    each = 1 - (1 - level) / len(runs)
    found = {name: exit_drift(ran, exit_counts(loaded.exits, ran), left, each) for name, (ran, left) in runs.items()}
    drifted = any(check.found for check in found.values())
    if as_json:
        answer = {"found": drifted, "level": level, "runs": {name: check.to_dict() for name, check in found.items()}}
        click.echo(json.dumps(answer))
    else:
        for name, check in found.items():
            say(f"{name}: {check.plan.describe(names[name])}")
            for line in check.describe():
                say(f"  {line}")
    if drifted:
        sys.exit(_DRIFTED)


@click.command(cls=Command)
@click.argument("profile", type=FileOf("profile"))
@click.argument("measurements", nargs=-1, required=True, type=FileOf("run"))
@click.option("--out", default="report.html", show_default=True, type=click.Path(dir_okay=False), help="Page to write.")
@click.option("--title", default="Portend report", show_default=True)
def report(profile: str, measurements: tuple[str, ...], out: str, title: str) -> None:
    """Write one self-contained HTML page; the first of the MEASUREMENTS is the plan of interest.

    It shows that plan among the plans among which it was searched, as `portend run` recorded them, and their front.
    """
    from portend.perfmodel.model import PerformanceModel
    from portend.planner.exhaustive import count_plans, sample_space, solve_exhaustive
    from portend.planner.planfile import Search
    from portend.planner.problem import Problem, SearchSpace, latency
    from portend.planner.search import FRONT_LIMIT
    from portend.report.page import ReportData, write_report

    loaded, cases = _compared(profile, measurements, 0.95)
    first = cases[0].measurement
    asked = Search.from_text(first.provenance.get("search", ""))
    if asked is None:
        model, space = PerformanceModel(loaded.viewed_for(first.plan), first.topology), SearchSpace()
    else:
        model, space = asked.model(loaded, first.topology), asked.space
    judged = {case.name: case.measurement.provenance.get("new samples", "") for case in cases}
    told, plans = {}, count_plans(space, model)
    if plans > FRONT_LIMIT:
        space = replace(space, exits_per_tier=1)
        told["plans"] = f"the plan was searched among {plans:,}; drawn are those with one exit for each tier"
    front = solve_exhaustive(Problem(minimize=latency, space=space), model).front
    cloud = sample_space(space, model) | {
        "front_latency_s": [p.latency_s for p in front],
        "front_accuracy": [p.accuracy for p in front],
    }
    data = ReportData(
        title=title,
        profile=loaded,
        topology=first.topology,
        problem="measured plans" if asked is None else asked.problem,
        chosen=cases[0].name,
        comparisons=cases,
        cloud=cloud,
        new_samples={name: said for name, said in judged.items() if said},
        summary=told,
        provenance={
            key: text
            for key, text in {**loaded.provenance, **first.provenance}.items()
            if key not in ("search", "new samples")
        },
    )
    click.echo(str(write_report(out, data)))
