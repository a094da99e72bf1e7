"""The commands that measure: profile, merge, codecs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from portend.cli.inputs import bars, check_writable
from portend.cli.options import (
    Budget,
    Codecs,
    Command,
    FileOf,
    Numbers,
    Quantity,
    allow_code,
    as_json,
    codec_tolerance_option,
    data_option,
    execution_options,
    say,
    seed_option,
    terminal,
)
from portend.errors import (
    DeploymentError,
    ExportError,
)
from portend.values.execution import Execution
from portend.values.plan import CODECS, CRITERIA

if TYPE_CHECKING:
    from portend.data.dataset import Dataset

__all__ = ["codecs", "merge", "profile"]


@click.command(cls=Command)
@click.argument("network", type=FileOf("checkpoint", "exported"), required=False)
@data_option
@seed_option
@click.option("--from-csv", "blocks", type=click.Path(dir_okay=False), help="Blocks measured elsewhere, as a table.")
@click.option("--exits", type=click.Path(dir_okay=False), help="With --from-csv: what samples do at its exits.")
@click.option("--device", default="local", show_default=True, help="Name that topologies give to this machine.")
@execution_options
@click.option("--device-only", is_flag=True, help="Measure this machine only, not the exits; for `portend merge`.")
@click.option(
    "--budget",
    type=Budget(),
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
    "--codecs", type=Codecs(), default="float32,encoded,float16,int8", show_default=True,
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
    from portend.verbs.network import samples_of
    from portend.verbs.profile import profile as measure
    from portend.verbs.profile import profile_machine

    check_writable(out)
    dataset, _ = samples_of(network, data, seed, allow_code=allow_code)
    begun = Path(f"{out}.begun")
    if restart:
        begun.unlink(missing_ok=True)
    try:
        with bars() as tell:
            options: dict[str, Any] = {
                "data": data, "seed": seed, "device": device, "criterion": criterion, "codec_samples": codec_samples,
                "execution": _chosen_execution(network, dataset, allow_code, tell, begun, **asked),
                "allow_code": allow_code, "out": out, "on_progress": tell, "gap_s": gap, "repeats": repeats,
                "codecs": codecs, **budget,
            }  # fmt: skip
            if device_only:
                measured, samples = profile_machine(network, **options), ""
            else:
                found = measure(network, **options)
                measured, samples = found.devices[device], f"{found.exits.samples} samples, "
    except KeyboardInterrupt:
        click.echo(f"interrupted; the same command goes on with what was measured so far, in {begun}", err=True)
        sys.exit(130)
    name = measured.network.name if measured.network else network
    say(f"{out}: {name}, {samples}device {device!r}, {measured.execution}")
    if measured.predicted:
        say(f"{device}: {measured.predicted}")
    if measured.disturbed:
        click.echo(f"warning: {measured.disturbed}", err=True)


def _profile_from_csv(blocks: str, exits: str | None, name: str, device: str, device_only: bool, out: str) -> None:
    from portend.io.storage import save
    from portend.profiling.given import device_from_csv, profile_from_csv

    check_writable(out)
    if device_only:
        measured = device_from_csv(blocks, name=name, device=device)
        save(measured, out)
    else:
        found = profile_from_csv(blocks, exits, name=name, device=device)
        measured = found.devices[device]
        save(found, out)
    say(f"{out}: {name or Path(blocks).stem}, {measured.num_blocks} blocks, device {device!r}")
    say(f"assumed: {measured.environment['assumed']}")


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


@click.command(cls=Command)
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

    check_writable(out)
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


@click.command(cls=Command)
@click.argument("profile", type=FileOf("profile"))
@click.option("--device", default="", help="Whose times to show. Default: the first.")
@click.option("--cuts", type=Numbers(int), help="Cuts to show, such as 0,3,5. Default: all.")
@codec_tolerance_option
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
