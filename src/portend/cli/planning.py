"""The commands that plan: plan, refine, whatif."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from portend.cli.inputs import bars, check_writable, limited
from portend.cli.options import (
    Command,
    FileOf,
    allow_code,
    allow_infeasible_option,
    as_json,
    data_option,
    folded,
    limit_options,
    planning_options,
    say,
    seed_option,
    terminal,
    topology_option,
)

if TYPE_CHECKING:
    from portend.planner.problem import Solution
    from portend.values.topology import Topology

__all__ = ["INFEASIBLE", "missed", "plan", "refine", "whatif"]


INFEASIBLE = 3
"""How `plan`, `refine` and `demo` end where no plan that meets the constraints was found."""


def missed(solution: Solution, out: str | None) -> None:
    """Say that the constraints are missed, and end with a status of its own."""
    why = "no plan meets the constraints" if solution.status == "infeasible" else "no plan was found in time"
    kept = f"; {out} was not written" if out else ""
    click.echo(
        f"{why}: {solution.problem}{kept}; ask for less, allow more (hints), or take the plan that comes nearest with "
        "--allow-infeasible",
        err=True,
    )
    sys.exit(INFEASIBLE)


@click.command(cls=Command)
@click.argument("profile", type=FileOf("profile"))
@topology_option
@planning_options
@limit_options
@click.option("--front", "with_front", is_flag=True, help="Also give the whole Pareto front.")
@click.option("--out", type=click.Path(dir_okay=False), help="Also write the answer as JSON, for `portend run`.")
@click.option("--fallbacks", is_flag=True, help="Also the best plans without a tier, for `portend deploy`.")
@allow_infeasible_option
@as_json
def plan(
    profile: str, topology: str, estimator: Any, criterion: str | None, seconds: float | None, memory: float | None,
    with_front: bool, out: str | None, fallbacks: bool, allow_infeasible: bool, as_json: bool, **asked: Any,
) -> None:  # fmt: skip
    """Find the proven best plan for PROFILE on a topology, and what it beats.

    In the answer, [1–4] are blocks counted from 1, and η<0.3 means that samples with a normalized entropy
    below 0.3 leave there. The baselines are fixed ways of deployment; they do not follow the hints.

    It ends with 0 where the plan meets the constraints. Where none does, it shows the plan that comes nearest, writes
    no --out and ends with 3, unless --allow-infeasible is given.
    """
    from portend.io.forms import load_topology
    from portend.io.storage import load_profile
    from portend.planner.fallbacks import find_fallbacks
    from portend.planner.planfile import PlanFile
    from portend.planner.solve import solve

    if out:
        check_writable(out)
    places = load_topology(topology)
    model, problem = _asked(load_profile(profile), places, estimator, criterion, **asked)
    with limited(seconds, memory, None if as_json else problem.objectives[0][0].format) as limits:
        solution = solve(problem, model, limits=limits.part(0.8) if fallbacks else limits)
        others = find_fallbacks(solution, model, limits=limits) if fallbacks else ()
    names = places.names
    planned = PlanFile.of(solution, model, others, front=with_front)
    usable = solution.met or allow_infeasible
    if out and usable:
        planned.save(out)
    click.echo(json.dumps(planned.to_dict()) if as_json else folded(solution.describe(names)))
    if places.slow_start is not None and not as_json:
        say(f"  every message is charged slow start (initial window: {places.slow_start.initial_window})")
    for other in () if as_json else others:
        say(f"  {other.describe(names)}")
    if with_front and not as_json:
        say("  Pareto front:" if solution.front_complete else "  Pareto front, as far as it was searched:")
        for point in solution.front:
            name = point.plan.describe(names)
            values = "".join(
                f"{m.name} {m.format(point.values[m.name])}  " for m in problem.metrics if m.name in point.values
            )
            say(f"  {1e3 * point.latency_s:8.2f} ms  {100 * point.accuracy:6.2f} %  {values}{name}")
    if not usable:
        missed(solution, out)
    if out and usable and not as_json:
        click.echo(out)


def _asked(
    profile: Any, topology: Any, estimator: Any, criterion: str | None, *, min_accuracy: float | None,
    max_latency: float | None, robust: float | None, stated: str | None, minimize: tuple[str, ...],
    maximize: tuple[str, ...], subject_to: tuple[str, ...], arrival_rate: float | None, codec_tolerance: float | None,
    swept: frozenset[str] = frozenset(), **hints: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """The model and the problem that the planning options state.

    Without objectives: least latency where an accuracy is asked for, else most accuracy.
    """
    from portend.perfmodel.model import CODEC_TOLERANCE, PerformanceModel
    from portend.planner.problem import Problem, accuracy, latency
    from portend.planner.stated import read_problem

    told = read_problem(
        stated, topology, minimize=minimize, maximize=maximize, subject_to=subject_to, arrival_rate=arrival_rate,
        codec_tolerance=codec_tolerance, criterion=criterion,
    )  # fmt: skip
    profile = profile.by(told.criterion) if told.criterion else profile
    tolerance = CODEC_TOLERANCE if told.codec_tolerance is None else told.codec_tolerance
    model = PerformanceModel(profile, topology, estimator=estimator, codec_tolerance=tolerance)
    bounds = [] if min_accuracy is None else [accuracy >= min_accuracy]
    bounds += [] if max_latency is None else [latency <= max_latency]
    goals: dict[str, Any] = {"minimize": told.minimize, "maximize": told.maximize}
    if not (told.minimize or told.maximize):
        accurate = min_accuracy is not None or "problem.min_accuracy" in swept
        if not accurate and max_latency is None and "problem.max_latency" not in swept:
            raise click.UsageError(
                "say what is asked for: --min-accuracy, --max-latency, or both; or --minimize a metric"
                + (", or sweep one of the bounds" if swept else "")
            )
        goals = {"minimize": latency} if accurate else {"maximize": accuracy}
    space = _space(model, told.hints, **hints)
    return model, Problem(**goals, subject_to=(*bounds, *told.subject_to), space=space, robust=robust)


def _space(
    model: Any, told: Mapping[str, Any], *, no_exits: bool, keep_input_on: str | None, no_truncation: bool,
    per_exit_thresholds: bool, tiers: str | None, **given: Any,
) -> Any:  # fmt: skip
    """The space of the hints in a file, with those of the options in their place."""
    from portend.planner.problem import SearchSpace

    if no_exits and (given["exits"] or given["thresholds"]):
        raise click.UsageError("--no-exits goes with neither --exits nor --thresholds")
    hints = {**told, **{name: value for name, value in given.items() if value is not None}}
    if no_exits:
        hints |= {"thresholds": (0.0,), "exits": ()}
    if per_exit_thresholds:
        hints["per_exit_thresholds"] = True
    if no_truncation:
        hints["truncation"] = False
    if tiers is not None:
        hints["tiers"] = tuple(model.topology.tier_index(name.strip()) for name in tiers.split(",") if name.strip())
    if keep_input_on is not None:
        first = model.topology.tier_index(keep_input_on.strip())
        hints["block_tiers"] = {**hints.get("block_tiers", {}), 1: (first,)}
    return SearchSpace(**hints)


@click.command(cls=Command)
@click.argument("profile", type=FileOf("profile"))
@click.option("--checkpoint", required=True, type=FileOf("checkpoint"), help="The network's weights.")
@topology_option
@data_option
@seed_option
@planning_options
@click.option(
    "--training", "tuning", type=FileOf("training"),
    help="YAML with a section `training`, as for `portend train` but without mode; default: 4 epochs.",
)  # fmt: skip
@allow_code
@limit_options
@click.option("--rounds", type=click.IntRange(1), default=4, show_default=True, help="Most rounds of fine-tuning.")
@allow_infeasible_option
@click.option("--out", required=True, type=click.Path(file_okay=False), help="Folder for every round's files.")
@as_json
def refine(
    profile: str, checkpoint: str, topology: str, data: str | None, seed: int | None, estimator: Any,
    criterion: str | None, tuning: str | None, allow_code: tuple[str, ...], seconds: float | None,
    memory: float | None, rounds: int, allow_infeasible: bool, out: str, as_json: bool, **asked: Any,
) -> None:  # fmt: skip
    """Plan for PROFILE, fine-tune the network for the plan, and plan again, until the plan stands still.

    Each round trains the exits that the plan uses (and the blocks before them, unless freeze_backbone is set)
    and profiles the exits anew; the devices' times are PROFILE's. An interrupted call goes on where it was.

    A round whose plan misses the constraints leaves no plan.json. If that is the best round, it ends with 3, unless
    --allow-infeasible is given.
    """
    from portend.io.forms import load_topology
    from portend.io.storage import load_profile
    from portend.verbs.network import samples_of

    places = load_topology(topology)
    model, problem = _asked(load_profile(profile), places, estimator, criterion, **asked)

    from portend.data.dataset import make_splits
    from portend.networks.checkpoint import read_provenance
    from portend.workflows.experiments import read_training
    from portend.workflows.refine import FINE_TUNING
    from portend.workflows.refine import refine as run_rounds

    training = FINE_TUNING if tuning is None else read_training(tuning)
    dataset, trained = samples_of(checkpoint, data, seed, allow_code=allow_code)
    kept = read_provenance(checkpoint).get("split_calibration")
    splits = make_splits(dataset, seed=trained, calibration=None if kept is None else int(kept))
    try:
        with bars(quiet=as_json) as tell:
            found = run_rounds(
                model.profile, checkpoint, dataset, splits, places, problem, out,
                training=training, rounds=rounds, estimator=estimator, codec_tolerance=model.codec_tolerance,
                tell=tell, allow_code=allow_code, allow_infeasible=allow_infeasible,
                seconds=math.inf if seconds is None else seconds, memory=memory,
            )  # fmt: skip
    except KeyboardInterrupt:
        click.echo(f"interrupted; the same command goes on from the last state in {out}", err=True)
        sys.exit(130)
    best = found.rounds[found.best]
    if as_json:
        click.echo(json.dumps(found.to_dict()))
    else:
        _show_rounds(found, places, rounds)
    if best.plan is None:
        missed(best.solution, f"{out}/round-{found.best}/plan.json")


def _show_rounds(found: Any, places: Topology, rounds: int) -> None:
    from portend.workflows.refine import refinement_table

    terminal().print(refinement_table(found, places.names))
    best = found.rounds[found.best]
    still = "the plan stands still" if found.stands_still else f"the plan still moves after {rounds} rounds"
    files = "".join(f"\n  {path}" for path in (best.plan, best.checkpoint) if path)
    say(f"{best.solution.problem}: {still}; the best is round {found.best}:{files}")


@click.command(cls=Command)
@click.argument("profile", type=FileOf("profile"))
@topology_option
@click.option(
    "--sweep", "sweeps", multiple=True, required=True, metavar="PATH=VALUES",
    help="Field and its values: 'links[0].bandwidth=1,2,5 Mbit/s', 'links[0].bandwidth=1..100 Mbit/s log 20' or "
    "'space.exits_per_tier=1..4'. Again for a grid. An unknown path gets the list of all.",
)  # fmt: skip
@planning_options
@limit_options
@click.option("--zip", "zipped", is_flag=True, help="Swept fields advance together instead of making a grid.")
@click.option("--crossovers", is_flag=True, help="Also find where the plan flips along each field of numbers.")
@click.option("--no-baselines", is_flag=True, help="Plan without the baselines, which is about twice as fast.")
@click.option("--jobs", type=int, help="Workers; default: 1, or with --backend as many as it has.")
@click.option(
    "--backend", type=click.Choice(["loky", "threading", "dask", "ray"]),
    help="Of joblib. dask and ray start workers here, or join DASK_SCHEDULER_ADDRESS or RAY_ADDRESS.",
)  # fmt: skip
@click.option("--out", type=click.Path(dir_okay=False), help="HTML page to write, with a figure of one or two fields.")
@as_json
def whatif(
    profile: str, topology: str, sweeps: tuple[str, ...], estimator: Any, criterion: str | None, zipped: bool,
    crossovers: bool, no_baselines: bool, jobs: int | None, backend: str | None, seconds: float | None,
    memory: float | None, out: str | None, as_json: bool, **asked: Any,
) -> None:  # fmt: skip
    """Plan PROFILE anew for each value of swept fields of the topology, the profile or the problem.

    Tells which plan is best where, and with --crossovers exactly where it changes.
    """
    from portend.analysis import whatif as lib
    from portend.io.forms import load_topology
    from portend.io.storage import load_profile

    if out:
        check_writable(out)
    places = load_topology(topology)
    swept = frozenset(text.partition("=")[0].strip() for text in sweeps)
    model, problem = _asked(load_profile(profile), places, estimator, criterion, swept=swept, **asked)
    scenario = lib.Scenario(
        profile=model.profile, topology=places, problem=problem, estimator=estimator,
        codec_tolerance=model.codec_tolerance,
    )  # fmt: skip
    axes = [lib.parse_axis(scenario, text) for text in sweeps]
    ordered = any(lib.find_field(scenario, axis.path).ordered and None not in axis.values for axis in axes)
    if crossovers and (not ordered or (zipped and len(axes) > 1)):
        raise click.UsageError("--crossovers needs a --sweep of numbers, and a grid (no --zip)")
    if out and len(axes) > 2 and not zipped:
        raise click.UsageError(f"--out draws one or two fields, but {len(axes)} are swept; use --json for more")
    workers: dict[str, Any] = {"n_jobs": jobs, "backend": backend}
    flips = None
    with lib.connected(backend, jobs), bars(quiet=as_json) as tell, limited(seconds, memory) as limits:
        found = lib.sweep(
            scenario, axes, zipped=zipped, baselines=not no_baselines, **workers,
            on_progress=lambda *at: tell("sweep", *at), limits=limits.part(0.5) if crossovers else limits,
        )  # fmt: skip
        if crossovers:
            flips = lib.find_crossovers(
                found, **workers, on_progress=lambda *at: tell("crossovers", *at), limits=limits
            )
    if as_json:
        answer = found.to_dict() | ({} if flips is None else {"crossovers": [flip.to_dict() for flip in flips]})
        click.echo(json.dumps(answer))
    else:
        _show_sweep(found, flips)
    if out:
        from portend.report.whatif_page import write_page

        path = write_page(out, found, flips)
        if not as_json:
            click.echo(str(path))


def _show_sweep(found: Any, flips: Any) -> None:

    from portend.report.whatif_page import crossover_table, sweep_table

    terminal().print(sweep_table(found, flips or ()), *([] if flips is None else [crossover_table(found, flips)]))
    for told in found.scenario.disturbed:
        click.echo(f"warning: {told}", err=True)
