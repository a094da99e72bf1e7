"""The command line. Every command imports what it needs when it runs, so that ``plan`` needs no torch."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from click.core import ParameterSource

from portend.cli import observe as cli_observe
from portend.cli.inputs import executions, planned_for
from portend.cli.options import Command, FileOf, Quantity, Share, allow_code, as_json, folded, say, terminal
from portend.cli.service import COMMANDS
from portend.errors import (
    ConfigError,
    DeploymentError,
    ExportError,
    InvalidValue,
    MismatchError,
    PortendError,
    first_difference,
)
from portend.io.files import kind_of
from portend.testbed.emulation import EMULATIONS
from portend.units import parse, parse_share
from portend.values.execution import EXECUTORS, PRECISIONS, Execution
from portend.values.plan import CODECS, CRITERIA, codec_parts

if TYPE_CHECKING:
    from portend.data.dataset import Dataset
    from portend.networks.backbone import Backbone
    from portend.planner.limits import Limits
    from portend.planner.problem import Solution
    from portend.testbed.emulation.base import Emulation
    from portend.testbed.emulation.traces import BandwidthTrace
    from portend.values.plan import Plan
    from portend.values.topology import Topology

__all__ = ["cli", "main"]

Tell = Callable[[str, int, int], None]
_K = TypeVar("_K")
_V = TypeVar("_V")

_INFEASIBLE = 3
"""How `plan`, `refine` and `demo` end where no plan that meets the constraints was found."""
_DRIFTED = 3
"""How `portend drift` ends where exits have drifted; 1 and 2 are errors."""


class _Numbers(click.ParamType[Any]):
    """Numbers separated by commas."""

    name = "numbers"

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.kind(item) for item in str(value).split(",") if item.strip())
        except ValueError:
            self.fail(f"{value!r} is not a list like 1,2,3", param, ctx)


class _Codecs(click.ParamType[Any]):
    """Names of codecs separated by commas, or ``all``."""

    name = "codecs"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = CODECS if value == "all" else tuple(item.strip() for item in str(value).split(",") if item.strip())
        try:
            for name in names:
                if name != "encoded":
                    codec_parts(name)
        except InvalidValue as error:
            self.fail(str(error), param, ctx)
        return tuple(dict.fromkeys(("float32", *names)))  # what the others are compared with


class _Budget(click.ParamType[Any]):
    """A share of the partitions or a duration, as the fields of DeviceProfiling."""

    name = "share or time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        text = str(value).strip()
        for name, read in (("budget", parse_share), ("budget_s", partial(parse, dimension="time"))):
            with suppress(InvalidValue):
                found = read(text)
                if found > 0:
                    return {name: found}
        return self.fail(
            f"{value!r} is neither a share above 0, such as 0.1 or 10%, nor a time such as '5 min'", param, ctx
        )


@contextmanager
def _progress(quiet: bool = False) -> Iterator[Tell]:
    """Give a function (stage, done, total) that shows on standard error how far a stage is; rich is imported late."""
    from portend.progress import progress

    with progress(quiet=quiet) as tell:
        yield tell


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="portend")
def cli() -> None:
    """Plan, run and prove partitioned early-exit inference over a chain of machines.

    \b
    portend demo      the whole path on handwritten digits, in about three minutes
    portend train     a multi-exit network
    portend calibrate its exits' probabilities, on a split of their own
    portend profile   how its samples exit, and what this machine needs for it
    portend merge     profiles of several machines
    portend codecs    what each way to send a tensor costs
    portend plan      the proven best cuts, exits, thresholds and tiers
    portend refine    a plan and the network's weights for it, in turns
    portend run       a plan, across agents and emulated links
    portend testbed   namespaces with a topology's links, for any program
    portend links     what links do: delay, rate, and how long messages take
    portend compare   predictions with measurements
    portend validate  the model itself, over a campaign of many plans
    portend drift     whether exits still do what the profile says
    portend report    one HTML page with everything
    portend whatif    the best plan as fields vary, and where it flips
    portend top       running agents, live
    portend trace     what a run recorded, for Perfetto and OpenTelemetry
    portend reference every key of every YAML file

    \b
    portend keys      for agents on real machines, and who may talk to them
    portend agent     one tier, on its own host, until it is stopped
    portend deploy    a plan and its fallbacks to the agents
    portend feed      samples to the service, answers to a journal
    portend status    of the agents
    """


cli.command_class = Command


_data = click.option(
    "--data",
    default=None,
    help="Such as digits or parquet:FOLDER (docs/data.md); default: what the checkpoint was trained on.",
)
_seed = click.option(
    "--seed", type=click.IntRange(0), help="Seed of the splits; default: the one that the checkpoint was trained with."
)
_EXECUTION = (
    click.option(
        "--executor",
        type=click.Choice(["auto", *EXECUTORS]),
        help="What runs partitions; auto: the faster of torch and onnxruntime, measured here.",
    ),
    click.option("--processor", help="Such as cpu, cuda or cuda:1.  [default: cpu]"),
    click.option("--threads", type=click.IntRange(1), help="Compute threads.  [default: 1]"),
    click.option("--precision", type=click.Choice(PRECISIONS), help="Of the arithmetic.  [default: float32]"),
)


def _execution(command: Any) -> Any:
    """Give a command the options that say what runs partitions."""
    for option in reversed(_EXECUTION):
        command = option(command)
    return command


_codec_tolerance = click.option(
    "--codec-tolerance",
    type=Share(),
    help="Share of accuracy that a codec may cost at a cut where it is offered. Default: 0.002, 0.2 points.",
)
_criterion = click.option(
    "--criterion",
    type=click.Choice(list(CRITERIA)),
    help="What thresholds are compared with: normalized entropy, 1 - largest probability, 1 - its lead. "
    "Default: the profile's, entropy unless it was made otherwise.",
)


class _Trace(click.ParamType[Any]):
    """LINK=FILE."""

    name = "LINK=FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        link, equals, path = str(value).partition("=")
        if not equals:
            self.fail(f"{value!r} is not a link's number and a file, such as 0=trace.txt", param, ctx)
        return link, path


def _once(pairs: Iterable[tuple[_K, _V]], option: str) -> dict[_K, _V]:
    """The pairs of an option that is given several times, as a mapping; a key that comes twice is refused."""
    found: dict[_K, _V] = {}
    for key, value in pairs:
        if key in found:
            raise click.UsageError(f"{option} names {key} twice, with {found[key]} and {value}; give one of them")
        found[key] = value
    return found


_emulation = click.option(
    "--emulation",
    type=click.Choice(EMULATIONS),
    help="Of the links: a relay, network namespaces with real TCP/IP (root; docs/testbed.md), or none.  "
    "[default: relay]",
)
_traces = click.option(
    "--trace",
    "traces",
    type=_Trace(),
    multiple=True,
    callback=lambda ctx, param, value: _once(value, "--trace"),
    help="Bandwidth over time of a link, numbered from 0: pairs, CSV or Mahimahi (docs/testbed.md).",
)
_allow_infeasible = click.option(
    "--allow-infeasible", is_flag=True, help="Take the plan that comes nearest where none meets the constraints."
)


def _missed(solution: Solution, out: str | None) -> None:
    """Say that the constraints are missed, and end with a status of its own."""
    why = "no plan meets the constraints" if solution.status == "infeasible" else "no plan was found in time"
    kept = f"; {out} was not written" if out else ""
    click.echo(
        f"{why}: {solution.problem}{kept}; ask for less, allow more (hints), or take the plan that comes nearest with "
        "--allow-infeasible",
        err=True,
    )
    sys.exit(_INFEASIBLE)


_topology = click.option("--topology", required=True, type=FileOf("topology"), help="YAML file with tiers and links.")


@cli.command()
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

    with _progress(quiet=as_json) as tell:
        result = run_demo(out, tell=tell)
    if as_json:
        click.echo(json.dumps(result.summary))
        sys.exit(0 if result.solution.met else _INFEASIBLE)
    _show_comparisons(result.comparisons)
    say(f"{result.solution.problem}: {result.solution.plan.describe(['edge', 'base', 'cloud'])}")
    say(result.summary["verdict"])
    say(describe_speed_drift(result.summary["speed_drift"]))
    say(f"Everything is in {out}; open {Path(out) / 'report.html'}")
    if not result.solution.met:
        _missed(result.solution, str(Path(out) / "plan.json"))


def _show_comparisons(cases: Any) -> None:
    from portend.analysis.console import comparison_table, terms_table

    terminal().print(comparison_table(cases), terms_table(cases))
    for told, name in {case.disturbed: case.name for case in cases if case.disturbed}.items():
        click.echo(f"warning: when {name} ran, {told}", err=True)


@cli.command()
@click.argument("config", type=FileOf("experiment"))
@click.option(
    "--out", required=True, type=click.Path(file_okay=False), help="Folder for checkpoint, state and history."
)
@click.option("--restart", is_flag=True, help="Begin anew instead of resuming.")
def train(config: str, out: str, restart: bool) -> None:
    """Train the exits of a network as CONFIG (YAML) says; an interrupted run resumes.

    All exits together, on a frozen backbone, or those that a plan uses: see docs/training.md.
    """
    from portend.workflows.experiments import read_experiment

    asked = read_experiment(config)
    training, network, data = asked.training, asked.network, asked.data

    from portend.data.dataset import draw, make_splits
    from portend.data.sources import load_dataset
    from portend.training.config import Progress
    from portend.training.training import train as run_training

    try:
        backbone = _first_weights(config, network, asked.options, asked.init)
    except (TypeError, InvalidValue) as error:
        raise ConfigError(f"{config}: {error}") from None
    dataset = load_dataset(data)
    given = str(asked.options.get("weights", "none")) not in ("none", "pretrained")
    own = ":" in network and network.partition(":")[0] not in ("timm", "torchvision") and training.freeze_backbone
    if dataset.own_test is None and not asked.init and (given or own):
        click.echo(
            f"warning: {data} has no test set of its own, and {network} begins with weights that may know its samples: "
            "then exits and accuracies look better than they are; see docs/training.md#weights-from-elsewhere",
            err=True,
        )
    helper = os.environ.get("LOCAL_RANK", "0") != "0"  # started by Lightning for a further device
    try:
        with _progress(quiet=helper) as tell:

            def told(progress: Progress) -> None:
                tell("train", progress.step, progress.steps)

            splits = make_splits(dataset, seed=asked.seed, calibration=asked.calibration)
            if asked.samples is not None:
                splits = replace(splits, train=draw(splits.train, asked.samples, seed=asked.seed))
            result = run_training(backbone, dataset, splits, training, out, on_progress=told, resume=not restart)
    except KeyboardInterrupt:
        click.echo(f"interrupted; the same command goes on from the last state in {out}", err=True)
        sys.exit(130)
    if helper:
        return
    shown = " ".join(f"{100 * a:.1f}" for a in result.accuracies)
    say(f"{result.checkpoint}\naccuracy of each branch on the profiling split, %: {shown}")


def _first_weights(config: str, network: str, options: dict[str, Any], init: str) -> Backbone:
    """A new network, or that of a checkpoint; options may build it otherwise (another input) if its weights fit."""
    from portend.networks.checkpoint import load_checkpoint
    from portend.networks.zoo import build

    if not init:
        return build(network, **options)
    backbone = load_checkpoint(init, allow_code=(network, str(options.get("heads", ""))))
    asked = {**backbone.architecture, **options}
    if network in ("", backbone.name) and asked == backbone.architecture:
        return backbone
    if network in ("", backbone.name):
        other = build(backbone.name, **asked)
        with suppress(RuntimeError):  # PyTorch's word for names or shapes that differ
            other.load_state_dict(backbone.state_dict())
            return other
    named = {"network": network or backbone.name, "options": asked}
    told = first_difference({"network": backbone.name, "options": backbone.architecture}, named)
    raise ConfigError(
        f"{config}: the weights in {init} do not fit what network and options say ({told}); leave them out, or "
        "begin with a checkpoint of that network"
    )


@cli.command()
@click.argument("checkpoint", type=FileOf("checkpoint"))
@click.option("--int8", is_flag=True, help="Quantize weights and activations; exits and accuracy will be others.")
@click.option(
    "--samples",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    help="Of the profiling split: to check the graph on, and to give int8 its ranges.",
)
@_data
@_seed
@allow_code
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="Network file to write (.onnx).")
def export(
    checkpoint: str, int8: bool, samples: int, data: str | None, seed: int | None, allow_code: tuple[str, ...],
    out: str,
) -> None:  # fmt: skip
    """Write CHECKPOINT as an ONNX network with all its exits, for the executor onnxruntime.

    Where it runs, no PyTorch is needed. What it computes is checked against PyTorch first, before any quantization.
    """
    from portend.data.dataset import draw, make_splits
    from portend.networks.checkpoint import load_checkpoint, read_provenance
    from portend.networks.exporting import deviation
    from portend.networks.exporting import export as write_onnx
    from portend.networks.networkfile import is_exported
    from portend.networks.quantizing import quantized

    _check_writable(out)
    if not is_exported(out):
        raise ConfigError(f"an exported network is a file *.onnx, but --out is {out}")
    backbone = load_checkpoint(checkpoint, allow_code=allow_code)
    dataset, chosen = _dataset(checkpoint, data, seed, allow_code)
    some = draw(make_splits(dataset, seed=chosen).profiling, samples, seed=chosen)
    inputs = dataset.tensors(some)
    with _progress() as tell:
        tell("export", 0, 1)
        network = write_onnx(backbone, provenance=read_provenance(checkpoint))
        tell("export", 1, 1)
        off = deviation(backbone, network, inputs)
        if int8:
            network = quantized(network, inputs, on_progress=lambda *at: tell("quantize", *at))
    network.save(out)
    say(
        f"{out}: {backbone.name}{' in int8' if int8 else ''}, {len(backbone.blocks)} blocks, "
        f"{Path(out).stat().st_size / 1e6:.2f} MB; {'before that ' if int8 else ''}off PyTorch by at most {off:.1g} "
        f"on {len(some)} samples"
    )


@cli.command()
@click.argument("network", type=FileOf("checkpoint", "exported"), required=False)
@_data
@_seed
@click.option("--from-csv", "blocks", type=click.Path(dir_okay=False), help="Blocks measured elsewhere, as a table.")
@click.option("--exits", type=click.Path(dir_okay=False), help="With --from-csv: what samples do at its exits.")
@click.option("--device", default="local", show_default=True, help="Name that topologies give to this machine.")
@_execution
@click.option("--device-only", is_flag=True, help="Measure this machine only, not the exits; for `portend merge`.")
@click.option(
    "--budget",
    type=_Budget(),
    default="1",
    show_default=True,
    help="Partitions to measure, such as 0.1 or 10%, or for how long, such as '5 min'; the others are predicted.",
)
@click.option("--repeats", type=click.IntRange(2), help="Of every busy partition; default: 30, or 20 of more than 256.")
@click.option("--restart", is_flag=True, help="Begin anew instead of going on with an interrupted profile.")
@click.option(
    "--gap", type=Quantity("time"), default="50 ms", show_default=True, help="Idle time of the traffic to predict."
)
@click.option(
    "--criterion",
    type=click.Choice(list(CRITERIA)),
    default="entropy",
    show_default=True,
    help="What branches are timed with, and planned by unless another is chosen then; scores of all are stored.",
)
@click.option(
    "--codecs", type=_Codecs(), default="float32,encoded,float16,int8", show_default=True,
    help=f"That hops may use, or all: {', '.join(CODECS)}.",
)  # fmt: skip
@click.option(
    "--codec-samples", type=click.IntRange(1), default=1000, show_default=True,
    help="Profiling samples on which the loss of lossy codecs is measured, at most; takes long for deep networks.",
)  # fmt: skip
@allow_code
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="Profile file to write (.zip).")
def profile(
    network: str | None, blocks: str | None, exits: str | None, data: str | None, seed: int | None, device: str,
    device_only: bool, budget: dict[str, Any],
    repeats: int | None, restart: bool, gap: float, criterion: str, codecs: tuple[str, ...], codec_samples: int,
    allow_code: tuple[str, ...], out: str, **asked: Any,
) -> None:  # fmt: skip
    """Measure what this machine needs for NETWORK, a checkpoint or an exported network, and how samples exit.

    Stores every exit's entropy, largest probability and margin of each profiling sample. What was measured is kept
    beside OUT while it goes on: after an interruption the same command resumes. With --from-csv nothing is measured:
    times, sizes and exits come from tables (docs/profiling.md), and NETWORK is only its name.
    """
    if blocks is not None:
        context, taken = click.get_current_context(), ("network", "blocks", "exits", "device", "device_only", "out")
        for param in context.command.params:
            if context.get_parameter_source(str(param.name)) is not ParameterSource.DEFAULT and param.name not in taken:
                raise click.UsageError(f"{param.opts[0]} says how to measure, but --from-csv takes what was measured")
        _profile_from_csv(blocks, exits, network or "", device, device_only, out)
        return
    if network is None or exits is not None:
        raise click.UsageError("give NETWORK to measure it, or --from-csv (and --exits) to take what was measured")
    from portend.data.dataset import draw, make_splits
    from portend.io.storage import save
    from portend.networks.networkfile import read_spec
    from portend.profiling.device import DeviceProfiling, profile_device
    from portend.values.profile import Profile

    _check_writable(out)
    dataset, chosen = _dataset(network, data, seed, allow_code)
    spec = read_spec(network, allow_code=allow_code)
    begun = Path(f"{out}.begun")
    if restart:
        begun.unlink(missing_ok=True)
    indices = make_splits(dataset, seed=chosen).profiling
    some = draw(indices, codec_samples, seed=chosen)
    needed = any(codec.startswith("int8") for codec in codecs)
    try:
        with _progress() as tell:
            ranges = _value_ranges(network, dataset, some, allow_code, tell) if needed else ()
            execution = _chosen_execution(network, dataset, allow_code, tell, begun, **asked)
            config = DeviceProfiling(execution=execution, gap_s=gap, repeats=repeats, codecs=codecs, **budget)
            measured = profile_device(
                device, network, dataset, config, indices=indices, ranges=ranges, criterion=criterion,
                on_progress=tell, allow_code=allow_code, keep=begun,
            )  # fmt: skip
            if device_only:
                save(measured, out)
            else:
                from portend.networks.evaluators import load_evaluator
                from portend.profiling.losses import lossy, profile_losses
                from portend.profiling.network import profile_exits

                evaluator = load_evaluator(network, allow_code=allow_code)
                found_exits = profile_exits(evaluator, dataset, indices, on_progress=lambda *at: tell("exits", *at))
                seen = found_exits.by(criterion)
                losses = profile_losses(
                    evaluator, dataset, some, ranges, numbers=lossy(codecs),
                    on_progress=lambda *at: tell("losses of codecs", *at),
                )  # fmt: skip
                told = {"data": dataset.name, "seed": str(chosen), "split": f"profiling, {seen.samples} samples"}
                found = Profile(
                    backbone=spec, exits=seen, devices={device: measured}, provenance=told, ranges=ranges,
                    losses=losses,
                )  # fmt: skip
                save(found, out)
    except KeyboardInterrupt:
        click.echo(f"interrupted; the same command goes on with what was measured so far, in {begun}", err=True)
        sys.exit(130)
    begun.unlink(missing_ok=True)
    samples = "" if device_only else f"{seen.samples} samples, "
    say(f"{out}: {spec.name}, {samples}device {device!r}, {execution}")
    if measured.predicted:
        say(f"{device}: {measured.predicted}")
    if measured.disturbed:
        click.echo(f"warning: {measured.disturbed}", err=True)


def _profile_from_csv(blocks: str, exits: str | None, name: str, device: str, device_only: bool, out: str) -> None:
    from portend.io.storage import save
    from portend.profiling.given import device_from_csv, profile_from_csv

    _check_writable(out)
    if device_only:
        measured = device_from_csv(blocks, name=name, device=device)
        save(measured, out)
    else:
        found = profile_from_csv(blocks, exits, name=name, device=device)
        measured = found.devices[device]
        save(found, out)
    say(f"{out}: {name or Path(blocks).stem}, {measured.num_blocks} blocks, device {device!r}")
    say(f"assumed: {measured.environment['assumed']}")


def _value_ranges(network: str, dataset: Dataset, indices: Any, allow_code: tuple[str, ...], tell: Tell) -> Any:
    """The ranges of values at the network's cuts."""
    from portend.networks.evaluators import load_evaluator
    from portend.profiling.losses import profile_ranges

    evaluator = load_evaluator(network, allow_code=allow_code)
    return profile_ranges(evaluator, dataset, indices, on_progress=lambda *at: tell("ranges of values", *at))


def _chosen_execution(
    network: str, dataset: Dataset, allow_code: tuple[str, ...], tell: Any, begun: Path, **asked: Any
) -> Execution:
    """What was asked for; where the executor was left open, that of a begun profile, or the fastest here."""
    from portend.io.journal import begun_with
    from portend.networks.networkfile import is_exported
    from portend.profiling.fastest import time_executions

    given = {name: value for name, value in asked.items() if value is not None and name != "executor"}
    executor: Any = asked["executor"] or "auto"
    if executor != "auto":
        return Execution(executor=executor, **given)
    before: Any = begun_with(begun).get("execution")
    if before:
        return Execution(**{**before, **given})
    if is_exported(network):
        return Execution(executor="onnxruntime", **given)
    if given.get("precision", "float32") != "float32":
        return Execution(executor="torch", **given)
    candidates = [Execution(executor="torch", **given), Execution(executor="onnxruntime", **given)]
    tell("compare executors", 0, 1)
    try:
        first, second = time_executions(network, dataset, candidates, allow_code=allow_code)
    except (ExportError, DeploymentError) as error:
        click.echo(f"note: torch it is, for onnxruntime does not run here: {error}", err=True)
        return candidates[0]
    tell("compare executors", 1, 1)
    click.echo(
        f"{first.execution} takes {1e3 * first.median_s:.2f} ms, {second.execution} {1e3 * second.median_s:.2f} ms",
        err=True,
    )
    return first.execution


@cli.command()
@click.argument("files", nargs=-1, required=True, type=FileOf("profile", "device"))
@click.option(
    "--rename",
    multiple=True,
    metavar="FILE:OLD=NEW",
    help="Give a device of FILE another name; FILE=NEW if it has one.",
)
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="Profile file to write (.zip).")
def merge(files: tuple[str, ...], rename: tuple[str, ...], out: str) -> None:
    """Put the profiles of several machines, FILES, into one; the exits are the first one's.

    One of the FILES has exits, from `portend profile`; the others may be of `portend profile --device-only`. All
    are of the same network with the same weights.
    """
    from portend.io.storage import load_profile_or_device, save
    from portend.profiling.merge import merge as merge_profiles
    from portend.values.profile import Profile

    _check_writable(out)
    if len(set(files)) < len(files):
        raise click.UsageError("a file is named twice")
    loaded = {file: load_profile_or_device(file) for file in files}
    devices = {
        file: tuple(found.devices) if isinstance(found, Profile) else (found.device,) for file, found in loaded.items()
    }
    names: dict[tuple[str, str], str] = {}
    for text in rename:
        left, _, new = text.rpartition("=")
        file, old = (left, "") if left in devices else left.rpartition(":")[::2]
        if file not in devices or not new or (not old and len(devices[file]) > 1):
            raise click.UsageError(f"--rename {text} is not FILE:OLD=NEW with one of the files {', '.join(files)}")
        renamed = (file, old or devices[file][0])
        if renamed in names:
            raise click.UsageError(f"--rename names {':'.join(renamed)} twice, with {names[renamed]} and {new}")
        names[renamed] = new
    bundle = merge_profiles(loaded, names)
    save(bundle, out)
    say(f"{out}: {bundle.backbone.name}, {bundle.exits.samples} samples, devices {', '.join(bundle.devices)}")


@cli.command()
@click.argument("checkpoint", type=FileOf("checkpoint"))
@_data
@_seed
@click.option(
    "--samples", type=click.IntRange(1), help="Of the training samples, for a network that was not trained on them."
)
@allow_code
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="Checkpoint file to write.")
@as_json
def calibrate(
    checkpoint: str, data: str | None, seed: int | None, samples: int | None, allow_code: tuple[str, ...], out: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Fit one temperature for each exit of CHECKPOINT, so that its probabilities mean what they say.

    Uses the calibration split that CHECKPOINT was trained without (`calibration:` in the training's
    configuration) and reports on the profiling split. Profile and plan anew with the new checkpoint.
    """
    from portend.data.dataset import make_splits
    from portend.networks.checkpoint import load_checkpoint, read_provenance, save_checkpoint
    from portend.training.calibration import calibrate as run_calibration

    _check_writable(out)
    backbone, provenance = load_checkpoint(checkpoint, allow_code=allow_code), read_provenance(checkpoint)
    if "temperatures" in provenance:
        raise ConfigError(f"{checkpoint} is calibrated already; calibrate the one that it was made of")
    kept = provenance.get("split_calibration")
    if kept is None and samples is None:
        raise ConfigError(
            f"{checkpoint} has no calibration split; train it with `calibration: 500` in the configuration, "
            "or, where it was trained elsewhere on other samples, give --samples"
        )
    if samples is not None and "split_seed" in provenance:
        raise ConfigError(
            f"{checkpoint} was trained on the samples that --samples would take; train it with "
            f"`calibration: {samples}` in the configuration instead"
        )
    dataset, chosen = _dataset(checkpoint, data, seed, allow_code)
    splits = make_splits(dataset, seed=chosen, calibration=int(kept) if samples is None and kept else samples)
    assert splits.calibration is not None
    with _progress(quiet=as_json) as tell:
        found = run_calibration(
            backbone,
            dataset,
            splits.calibration,
            judge_on=splits.profiling,
            on_progress=lambda *at: tell("calibrate", *at),
        )
    exits = [
        None if one is None else {"temperature": one.temperature, "nll": list(one.nll), "ece": list(one.ece)}
        for one in found
    ]
    temperatures = json.dumps([None if one is None else one.temperature for one in found])
    save_checkpoint(backbone, out, provenance={**provenance, "temperatures": temperatures})
    if as_json:
        click.echo(json.dumps({"checkpoint": out, "samples": int(splits.calibration.size), "exits": exits}))
        return
    from portend.analysis.fitted import FittedTable

    table = FittedTable(f"Calibrated on {splits.calibration.size} samples, judged on {splits.profiling.size} others")
    table.numbers("exit", "temperature", "NLL before", "after", "ECE before, %", "after, %")
    for number, one in enumerate(found, start=1):
        if one is not None:
            errors = (f"{one.nll[0]:.4f}", f"{one.nll[1]:.4f}", f"{100 * one.ece[0]:.2f}", f"{100 * one.ece[1]:.2f}")
            table.add_row(str(number), f"{one.temperature:.3f}", *errors)
    terminal().print(table)
    click.echo(out)


@cli.command()
@click.argument("file", type=FileOf("profile", "checkpoint", "exported"))
@_data
@_seed
@click.option(
    "--split", type=click.Choice(["profiling", "test"]), help="Samples to score, of a network. Default: profiling."
)
@_criterion
@click.option("--thresholds", type=_Numbers(float), default="0.1,0.3,0.5", show_default=True, help="To show exits for.")
@click.option("--by-class", is_flag=True, help="One row for each exit and class.")
@click.option("--level", type=Share(0.5, 0.999), default=0.95, show_default=True, help="Of the intervals.")
@click.option("--markdown", is_flag=True, help="Print a Markdown table.")
@allow_code
@as_json
def exits(
    file: str, data: str | None, seed: int | None, split: str | None, criterion: str | None,
    thresholds: tuple[float, ...], by_class: bool, level: float, markdown: bool, allow_code: tuple[str, ...],
    as_json: bool,
) -> None:  # fmt: skip
    """Show how accurate each exit is, and how many samples leave there, of FILE: a profile or a network.

    Each exit sees every sample, whether or not an earlier one would have let it go. ± is half the width of an
    interval in which the true value lies with 95 % (--level).
    """
    from portend.analysis.exit_table import exit_rows, exits_markdown, exits_table
    from portend.io.storage import load_profile

    if kind_of(file) in ("checkpoint", "exported"):
        from portend.data.dataset import make_splits
        from portend.networks.evaluators import load_evaluator
        from portend.profiling.network import profile_exits

        dataset, chosen = _dataset(file, data, seed, allow_code)
        evaluator = load_evaluator(file, allow_code=allow_code)
        part = split or "profiling"
        with _progress(quiet=as_json or markdown) as tell:
            found: Any = profile_exits(
                evaluator,
                dataset,
                getattr(make_splits(dataset, seed=chosen), part),
                on_progress=lambda *at: tell("exits", *at),
            )
        spec, source = evaluator.spec, f"{found.samples} {part} samples of {dataset.name}"
    else:
        if data or seed is not None or split:
            raise ConfigError(
                f"{file} is a profile, whose samples are fixed; give a network (.safetensors, .onnx) with "
                "--data, --seed or --split"
            )
        known = load_profile(file)
        found, spec, source = known.exits, known.backbone, f"{known.exits.samples} profiling samples"
    found = found.by(criterion or found.criterion)
    rows = exit_rows(found, spec, thresholds, level=level, by_class=by_class)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "network": spec.name,
                    "samples": found.samples,
                    "criterion": found.criterion,
                    "level": level,
                    "exits": rows,
                }
            )
        )
    elif markdown:
        click.echo(exits_markdown(rows, found.criterion))
    else:
        terminal().print(exits_table(rows, f"{spec.name}, {source}, by {found.criterion}", found.criterion))


@cli.command()
@click.argument("profile", type=FileOf("profile"))
@click.option("--device", default="", help="Whose times to show. Default: the first.")
@click.option("--cuts", type=_Numbers(int), help="Cuts to show, such as 0,3,5. Default: all.")
@_codec_tolerance
@click.option("--markdown", is_flag=True, help="Print a Markdown table.")
@as_json
def codecs(
    profile: str, device: str, cuts: tuple[int, ...] | None, codec_tolerance: float | None, markdown: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Show what each codec costs at each cut of PROFILE: bytes, time, accuracy; and where it is offered.

    What a codec loses at a cut is the most accuracy that any exit after the cut loses, on the profiling samples.
    """
    from portend.analysis.codecs import codec_rows, codecs_markdown, codecs_table
    from portend.io.storage import load_profile
    from portend.perfmodel.model import CODEC_TOLERANCE

    known = load_profile(profile)
    tolerance = CODEC_TOLERANCE if codec_tolerance is None else codec_tolerance
    rows = codec_rows(known, device, tolerance=tolerance, cuts=cuts)
    if as_json:
        click.echo(json.dumps({"network": known.backbone.name, "tolerance": tolerance, "codecs": rows}))
        return
    if markdown:
        click.echo(codecs_markdown(rows))
        return
    samples = next((loss.samples for loss in known.losses.values()), 0)
    counted = f"; losses on {samples} samples, of which one is {100 / samples:.2g} points" if samples else ""
    title = f"{known.backbone.name} on {device or next(iter(known.devices))}"
    terminal().print(codecs_table(rows, f"{title}, tolerance {100 * tolerance:g} points{counted}"))


def _check_writable(out: str) -> None:
    """Refuse an output path now that could not be written after minutes of work."""
    folder = Path(out).resolve().parent
    while not folder.exists():
        folder = folder.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ConfigError(
            f"{out} cannot be written: {folder} is not a folder that may be written; choose another --out"
        )


def _dataset(checkpoint: str, data: str | None, seed: int | None, allow_code: tuple[str, ...]) -> tuple[Dataset, int]:
    """The data set named, or the one that the checkpoint was trained on, with its decoder; and the splits' seed."""
    from portend.data.decoding import decoder_from_dict
    from portend.data.sources import code_in, load_dataset
    from portend.networks.networkfile import read_provenance

    provenance = read_provenance(checkpoint)
    name = data or provenance.get("dataset")
    if not name:
        raise ConfigError(f"{checkpoint} does not say what it was trained on; give --data")
    code = None if data else code_in(name)
    if code is not None and code not in allow_code:
        raise ConfigError(
            f"{checkpoint} names {code} as its data, which would be imported and run; if you trust it, "
            f"give --data {name}, or --allow-code {code}"
        )
    trained = int(provenance.get("split_seed", seed or 0))
    if seed not in (None, trained):
        raise ConfigError(
            f"{checkpoint} was trained on the splits of seed {trained}; with seed {seed} it would be tested on its own "
            "training samples; leave --seed out"
        )
    dataset = load_dataset(name)
    if "decoder" in provenance:
        dataset = replace(dataset, decoder=decoder_from_dict(json.loads(provenance["decoder"])))
    return dataset, trained


_PLANNING = (
    click.option("--min-accuracy", type=Share(), help="Least accuracy, such as 0.95 or 95%; minimizes latency."),
    click.option(
        "--robust",
        type=Share(0.5, 0.999999),
        help="Confidence, such as 0.95, with which new samples shall reach --min-accuracy.",
    ),
    click.option("--max-latency", type=Quantity("time"), help="Most mean latency, such as '9 ms'; maximizes accuracy."),
    click.option("--estimator", type=click.Choice(["sample", "marginal"]), help="Default: sample where scores exist."),
    _criterion,
    click.option("--thresholds", type=_Numbers(float), help="Exit thresholds to try, such as 0,0.2,0.4."),
    click.option("--per-exit-thresholds", is_flag=True, help="One threshold for each exit instead of a global one."),
    click.option("--cuts", type=_Numbers(int), help="Cuts at which a partition may end."),
    click.option("--exits", type=_Numbers(int), help="Branches that may be early exits."),
    click.option("--no-exits", is_flag=True, help="No early exits."),
    click.option("--tiers", metavar="NAMES", help="Tiers that may be used, such as edge,cloud, or numbers from 0."),
    click.option("--keep-input-on", metavar="TIER", help="Tier that raw input must not leave (block 1 runs there)."),
    click.option("--max-partitions", type=click.IntRange(1), help="Most partitions."),
    click.option(
        "--exits-per-tier",
        type=click.IntRange(1),
        help="Most partitions, each with its exit, on one tier. Default: 2.",
    ),
    click.option("--tier-order", type=click.Choice(["any", "increasing"]), help="Default: any."),
    click.option("--no-truncation", is_flag=True, help="Always keep the last blocks."),
    click.option(
        "--minimize", multiple=True, metavar="METRIC", help="Such as p95, energy or module:function; again: front."
    ),
    click.option("--maximize", multiple=True, metavar="METRIC", help="Such as throughput."),
    click.option("--subject-to", multiple=True, metavar="BOUND", help="Such as 'p95<=80 ms' or 'energy<=0.5 J'."),
    _codec_tolerance,
    click.option("--arrival-rate", type=float, help="Samples per second that no tier or link may be too slow for."),
    click.option(
        "--problem", "stated", type=FileOf("problem"),
        help="YAML: minimize, maximize, subject_to, arrival_rate, criterion, codec_tolerance, hints (docs/metrics.md). "
        "Other options add to it.",
    ),
)  # fmt: skip


def _planning(command: Any) -> Any:
    """Give a command the options that state what to plan."""
    for option in reversed(_PLANNING):
        command = option(command)
    return command


def _limits(command: Any) -> Any:
    """Give a command the options that limit its searches."""
    for option in (
        click.option(
            "--memory", type=Quantity("size"), metavar="SIZE",
            help="For all searches, such as '2 GB'; default: half of what is free.",
        ),
        click.option(
            "--seconds", type=click.FloatRange(0),
            help="For all searches together; then (as at a first Ctrl-C) the best plan so far is given, with its gap.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


@contextmanager
def _limited(
    seconds: float | None, memory: float | None, shown: Callable[[float], str] | None = None
) -> Iterator[Limits]:
    """Limits of searches, which show on a terminal how far they are, with values as ``shown`` writes them."""
    from portend.planner.limits import Limits

    with ExitStack() as stack:
        tell = None
        if shown is not None and sys.stderr.isatty():
            from portend.progress import searching

            tell = stack.enter_context(searching(shown))
        yield Limits(seconds=math.inf if seconds is None else seconds, memory=memory, progress=tell)


@cli.command()
@click.argument("profile", type=FileOf("profile"))
@_topology
@_planning
@_limits
@click.option("--front", "with_front", is_flag=True, help="Also give the whole Pareto front.")
@click.option("--out", type=click.Path(dir_okay=False), help="Also write the answer as JSON, for `portend run`.")
@click.option("--fallbacks", is_flag=True, help="Also the best plans without a tier, for `portend deploy`.")
@_allow_infeasible
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
        _check_writable(out)
    places = load_topology(topology)
    model, problem = _asked(load_profile(profile), places, estimator, criterion, **asked)
    with _limited(seconds, memory, None if as_json else problem.objectives[0][0].format) as limits:
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
        _missed(solution, out)
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


@cli.command()
@click.argument("profile", type=FileOf("profile"))
@click.option("--checkpoint", required=True, type=FileOf("checkpoint"), help="The network's weights.")
@_topology
@_data
@_seed
@_planning
@click.option(
    "--training", "tuning", type=FileOf("training"),
    help="YAML with a section `training`, as for `portend train` but without mode; default: 4 epochs.",
)  # fmt: skip
@allow_code
@_limits
@click.option("--rounds", type=click.IntRange(1), default=4, show_default=True, help="Most rounds of fine-tuning.")
@_allow_infeasible
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

    places = load_topology(topology)
    model, problem = _asked(load_profile(profile), places, estimator, criterion, **asked)

    from portend.data.dataset import make_splits
    from portend.networks.checkpoint import read_provenance
    from portend.workflows.experiments import read_training
    from portend.workflows.refine import FINE_TUNING
    from portend.workflows.refine import refine as run_rounds

    training = FINE_TUNING if tuning is None else read_training(tuning)
    dataset, trained = _dataset(checkpoint, data, seed, allow_code)
    kept = read_provenance(checkpoint).get("split_calibration")
    splits = make_splits(dataset, seed=trained, calibration=None if kept is None else int(kept))
    try:
        with _progress(quiet=as_json) as tell:
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
        _missed(best.solution, f"{out}/round-{found.best}/plan.json")


def _show_rounds(found: Any, places: Topology, rounds: int) -> None:
    from portend.workflows.refine import refinement_table

    terminal().print(refinement_table(found, places.names))
    best = found.rounds[found.best]
    still = "the plan stands still" if found.stands_still else f"the plan still moves after {rounds} rounds"
    files = "".join(f"\n  {path}" for path in (best.plan, best.checkpoint) if path)
    say(f"{best.solution.problem}: {still}; the best is round {found.best}:{files}")


@cli.command()
@click.argument("plan", type=FileOf("plan"))
@click.option(
    "--network",
    required=True,
    type=FileOf("checkpoint", "exported"),
    help="Its checkpoint, or what `portend export` wrote.",
)
@_topology
@_data
@_seed
@click.option("--samples", type=click.IntRange(1), default=100, show_default=True, help="Test samples to run.")
@click.option("--window", type=click.IntRange(1), default=1, show_default=True, help="Samples under way at once.")
@click.option(
    "--gap", type=Quantity("time"), help="Idle time before each sample; default 50 ms, or 0 with a larger window."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, show_default=True, help="Control port; 0: any free one."
)
@_emulation
@_traces
@_execution
@allow_code
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="Measurement file to write (.zip).")
@as_json
def run(
    plan: str, network: str, topology: str, data: str | None, seed: int | None, samples: int, window: int,
    gap: float | None, port: int, emulation: str | None, traces: dict[str, str], allow_code: tuple[str, ...], out: str,
    as_json: bool, **asked: Any,
) -> None:  # fmt: skip
    """Run PLAN (JSON) over agents on this machine and emulated links; write the raw traces.

    Each tier runs partitions as its device was profiled for PLAN, unless the options say otherwise.
    """
    planned, places = planned_for(plan, topology)
    chosen = planned.plan

    from portend.data.dataset import draw, make_splits
    from portend.io.storage import save
    from portend.networks.networkfile import read_spec
    from portend.testbed.deployment import Deployment

    _check_writable(out)
    planned.check_network(read_spec(network, allow_code=allow_code), plan, network)
    tier_executions = executions(planned, network, places, **asked)
    links = _emulated(emulation or "relay", places, traces)
    dataset, trained = _dataset(network, data, seed, allow_code)
    test = draw(make_splits(dataset, seed=trained).test, samples, seed=trained)
    with (
        _progress(quiet=as_json) as tell,
        Deployment(
            places,
            network,
            dataset.decoder,
            executions=tier_executions,
            criterion=chosen.criterion,
            emulation=links,
            port=port,
            allow_code=allow_code,
            ranges=planned.ranges,
        ) as deployment,
    ):
        deployment.load_samples([dataset.encoded[i] for i in test], dataset.labels[test])
        deployment.deploy(chosen)
        idle_s = gap if gap is not None else 0.05 if window == 1 else 0.0
        measured = deployment.run(window=window, gap_s=idle_s, on_progress=lambda *at: tell("run", *at))
    if planned.search is not None:  # for `portend report`
        found = {"search": planned.search.to_text(), "new samples": planned.on_new_samples}
        measured = replace(measured, provenance={**measured.provenance, **found})
    save(measured, out)
    answer = {
        "samples": len(measured),
        "latency_ms": {
            "mean": 1e3 * measured.mean_s,
            "p50": 1e3 * measured.quantile_s(0.5),
            "p95": 1e3 * measured.quantile_s(0.95),
        },
        "accuracy": measured.accuracy,
        "exit_rates": measured.exit_rates().tolist(),
        "parts_ms": {kind: 1e3 * seconds for kind, seconds in measured.parts_s().items()},
        "disturbed": measured.provenance.get("disturbed", ""),
    }
    if answer["disturbed"]:
        click.echo(f"warning: {answer['disturbed']}; run again when it is quiet", err=True)
    if as_json:
        click.echo(json.dumps(answer))
    else:
        say(
            f"{chosen.describe(places.names)}\n{len(measured)} samples: "
            f"mean {1e3 * measured.mean_s:.2f} ms, p95 {1e3 * measured.quantile_s(0.95):.2f} ms, "
            f"accuracy {100 * measured.accuracy:.2f} %, "
            f"exit rates {', '.join(f'{100 * rate:.1f} %' for rate in measured.exit_rates())}\n{out}"
        )


def _emulated(name: str, places: Topology, traces: dict[str, str]) -> Emulation:
    """The emulation of this name; the relay, with a word on it, where namespaces were asked for but cannot be had."""
    from portend.testbed.emulation.choose import make_emulation
    from portend.testbed.emulation.namespaces import unavailable

    if name == "namespaces" and not traces and (reason := unavailable()):
        click.echo(f"note: {reason}; the relay emulates the links instead", err=True)
        name = "relay"
    return make_emulation(name, places, _load_traces(traces, places))


def _load_traces(traces: dict[str, str], places: Topology) -> dict[int, BandwidthTrace]:
    from portend.testbed.emulation.traces import trace_from

    for link in traces:
        if not (link.isdecimal() and int(link) < len(places.links)):
            raise ConfigError(f"--trace {link}=...: the links of the topology are {places.numbered_links()}")
    return {int(link): trace_from(text) for link, text in traces.items()}


@cli.group()
def testbed() -> None:
    """Network namespaces, one per tier of a TOPOLOGY, with its links between them (docs/testbed.md).

    Programs of your own run in them by `ip netns exec NAMESPACE COMMAND`; `portend run --emulation namespaces` makes
    its own and does not need this.
    """


testbed.command_class = Command


@testbed.command()
@click.argument("topology", type=FileOf("topology"))
@_traces
@as_json
def up(topology: str, traces: dict[str, str], as_json: bool) -> None:
    """Set up the namespaces of TOPOLOGY, verify every link, and keep them until Ctrl-C or `portend testbed down`."""
    import time

    from portend.io.forms import load_topology
    from portend.testbed.emulation.namespaces import Namespaces, unavailable

    places = load_topology(topology)
    if reason := unavailable():
        raise DeploymentError(f"{reason}; without that, `portend run` emulates the links by its relay")

    standing = Namespaces(places, traces=_load_traces(traces, places), purpose="testbed")
    try:
        with standing:
            if as_json:
                click.echo(json.dumps(standing.record()))
            else:
                _show_testbed(standing.record())
                say("ready; Ctrl-C takes it down")
            while True:
                time.sleep(0.5)
                standing.check()
    except KeyboardInterrupt:
        click.echo("the testbed is down", err=True)


@testbed.command()
@click.argument("topology", required=False, type=FileOf("topology"))
@as_json
def down(topology: str | None, as_json: bool) -> None:
    """Take down what `up` set up and what killed processes left, of all topologies or of TOPOLOGY only.

    A run that goes on is left alone.
    """
    from portend.testbed.emulation.remains import take_down

    gone, left = take_down(_of_topology(topology))
    if as_json:
        click.echo(json.dumps({"removed": [each.testbed for each in gone], "in use": [each.testbed for each in left]}))
        return
    for each in gone:
        say(f"{each.testbed}: removed {', '.join(each.namespaces) or 'its record'}")
    for each in left:
        say(f"{each.testbed}: in use by process {each.pid}, left alone; stop that to remove it")
    if not (gone or left):
        say("nothing was there")


@testbed.command()
@click.argument("topology", required=False, type=FileOf("topology"))
@as_json
def show(topology: str | None, as_json: bool) -> None:
    """Show the testbeds that stand, with what was measured on their links, of all topologies or of TOPOLOGY only."""
    from portend.testbed.emulation.remains import standing

    found = [each for each in standing() if _of_topology(topology)(each)]
    if as_json:
        facts = [
            {"id": s.testbed, "pid": s.pid, "alive": s.alive, "namespaces": s.namespaces, **s.record} for s in found
        ]
        click.echo(json.dumps(facts))
        return
    for each in found:
        state = f"process {each.pid}" if each.alive else "left by a killed process; `portend testbed down` removes it"
        say(f"{each.testbed}: {each.record.get('purpose', 'unfinished')}, {state}")
        if "tiers" in each.record:
            _show_testbed(each.record)
    if not found:
        say("nothing stands")


def _of_topology(topology: str | None) -> Callable[[Any], bool]:
    """Whether a testbed is of the topology in this file; all are, where none is named."""
    from portend.io.forms import load_topology

    if topology is None:
        return lambda each: True
    name = load_topology(topology).name
    return lambda each: bool(each.record.get("topology") == name)


def _show_testbed(record: dict[str, Any]) -> None:
    say(f"{record['topology']} ({record['links']})")
    names = [tier["name"] for tier in record["tiers"]]
    for tier in record["tiers"]:
        say(f"  {tier['name']:<12} {tier['address']:<14} {tier['namespace']}")
    for check in record["checks"]:
        line = (
            f"  {names[check['start']]}–{names[check['end']]}: round trip {1e3 * check['round_trip_s']:.2f} ms "
            f"({1e3 * check['due_round_trip_s']:.2f} due)"
        )
        for way, rate, due in zip(("there", "back"), check["rates_bps"], check["due_rates_bps"], strict=False):
            line += f", {way} {rate / 1e6:.4g} Mbit/s ({due / 1e6:.4g})"
        say(line)


def _check_weights(path: str, measured: Any, profile: str, loaded: Any) -> None:
    weights, ours = measured.provenance.get("weights_sha256"), loaded.backbone.weights_sha256
    if weights and ours and weights != ours:
        raise MismatchError(
            f"{path} measures {measured.provenance.get('network')} with other weights than {profile} was made of "
            f"({loaded.backbone.name}); compare runs and profiles of one checkpoint"
        )


def _compared(profile: str, measurements: tuple[str, ...], level: float) -> Any:
    from portend.analysis.compare import compare as compare_cases
    from portend.io.storage import load_measurement, load_profile
    from portend.perfmodel.model import PerformanceModel

    loaded, cases = load_profile(profile), {}
    for path in measurements:
        measured = load_measurement(path)
        _check_weights(path, measured, profile, loaded)
        if measured.provenance.get("window", "1") != "1":
            raise MismatchError(
                f"{path} was measured with {measured.provenance['window']} samples under way, but the model predicts "
                "one at a time; run it with --window 1"
            )
        stem = Path(path).stem
        cases[path if stem in cases else stem] = (
            PerformanceModel(loaded.viewed_for(measured.plan), measured.topology, codec_tolerance=math.inf).estimate(
                measured.plan
            ),
            measured,
        )
    return loaded, compare_cases(cases, level)


@cli.command()
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
    _show_comparisons(cases)
    for name, check in exit_drifts(cases).items():
        if check.found:
            say(f"exit drift in {name}: {'; '.join(check.describe())}")


@cli.command()
@click.argument("profile", type=FileOf("profile"))
@click.option(
    "--network",
    required=True,
    type=FileOf("checkpoint", "exported"),
    help="Its checkpoint, or what `portend export` wrote.",
)
@_topology
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
@_criterion
@_codec_tolerance
@_emulation
@click.option(
    "--budget",
    type=Quantity("time"),
    help="Begin no plan that would end later, such as '30 min'; the same command goes on.",
)
@click.option("--restart", is_flag=True, help="Begin anew instead of going on with what ran.")
@_data
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

    places, loaded = load_topology(topology), load_profile(profile)
    given = {name: value for name, value in (*asked.items(), ("gap_s", gap)) if value is not None}

    from portend.data.dataset import make_splits
    from portend.workflows.validate import Campaign, read_campaign
    from portend.workflows.validate import validate as run_campaign

    campaign = replace(Campaign() if config is None else read_campaign(config, places), **given)
    _check_writable(str(Path(out) / "summary.json"))
    dataset, trained = _dataset(network, data, None, allow_code)
    test = make_splits(dataset, seed=trained).test
    try:
        with _progress(quiet=as_json) as tell:
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


@cli.command()
@click.argument("profile", type=FileOf("profile"))
@click.argument("measurements", nargs=-1, type=FileOf("run"))
@click.option("--plan", type=FileOf("plan"), help="Plan (JSON) that --counts are of.")
@click.option(
    "--counts", type=_Numbers(int), help="Instead of MEASUREMENTS: samples that left at each of the plan's partitions."
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
        _check_weights(path, measured, profile, loaded)
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


@cli.command()
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


@cli.command()
@click.argument("profile", type=FileOf("profile"))
@_topology
@click.option(
    "--sweep", "sweeps", multiple=True, required=True, metavar="PATH=VALUES",
    help="Field and its values: 'links[0].bandwidth=1,2,5 Mbit/s', 'links[0].bandwidth=1..100 Mbit/s log 20' or "
    "'space.exits_per_tier=1..4'. Again for a grid. An unknown path gets the list of all.",
)  # fmt: skip
@_planning
@_limits
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
        _check_writable(out)
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
    with lib.connected(backend, jobs), _progress(quiet=as_json) as tell, _limited(seconds, memory) as limits:
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


@cli.command()
@click.option("--out", type=click.Path(dir_okay=False), help="File to write; default: print it.")
def reference(out: str | None) -> None:
    """Print every key of every YAML file as Markdown (docs/yaml.md)."""
    from portend.cli.reference import yaml_reference
    from portend.io.storage import write_text

    if out:
        write_text(yaml_reference(), out)
    click.echo(out or yaml_reference())


for _command in (cli_observe.links, cli_observe.top, cli_observe.trace, *COMMANDS):
    cli.add_command(_command)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


_PACKAGES: Final = {"sklearn": "scikit-learn", "PIL": "pillow", "google": "protobuf", "zmq": "pyzmq"}
"""Where a package is installed by another name than it is imported."""


def main() -> None:
    """Run the command line; errors are one line, without a stack trace.

    SIGTERM and a lost terminal (unless it runs by nohup) end a command as Ctrl-C does, so that it leaves nothing.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _interrupt)
    try:
        code = cli.main(prog_name="portend", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; nothing was left running", err=True)
        sys.exit(130)
    except PortendError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("portend"):
            raise
        name = _PACKAGES.get(error.name or "", error.name)
        click.echo(
            f"Error: this command needs the package {name}, which is not installed; install it with: pip install "
            f"{name}, or all extras, PyTorch too, with: pip install 'portend[all]'",
            err=True,
        )
        sys.exit(1)
    except OSError as error:
        click.echo(f"Error: {error.strerror or error}: {error.filename or ''}".rstrip(": "), err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
