"""The commands that make networks: train, calibrate, export, exits."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from portend.cli.inputs import bars, check_writable
from portend.cli.options import (
    Command,
    FileOf,
    Numbers,
    Share,
    allow_code,
    as_json,
    criterion_option,
    data_option,
    say,
    seed_option,
    terminal,
)
from portend.errors import (
    ConfigError,
    InvalidValue,
    first_difference,
)
from portend.io.files import kind_of

if TYPE_CHECKING:
    from portend.networks.backbone import Backbone

__all__ = ["calibrate", "exits", "export", "train"]


@click.command(cls=Command)
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
        with bars(quiet=helper) as tell:

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


@click.command(cls=Command)
@click.argument("checkpoint", type=FileOf("checkpoint"))
@click.option("--int8", is_flag=True, help="Quantize weights and activations; exits and accuracy will be others.")
@click.option(
    "--samples",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    help="Of the profiling split: to check the graph on, and to give int8 its ranges.",
)
@data_option
@seed_option
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
    from portend.verbs.network import samples_of

    check_writable(out)
    if not is_exported(out):
        raise ConfigError(f"an exported network is a file *.onnx, but --out is {out}")
    backbone = load_checkpoint(checkpoint, allow_code=allow_code)
    dataset, chosen = samples_of(checkpoint, data, seed, allow_code=allow_code)
    some = draw(make_splits(dataset, seed=chosen).profiling, samples, seed=chosen)
    inputs = dataset.tensors(some)
    with bars() as tell:
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


@click.command(cls=Command)
@click.argument("checkpoint", type=FileOf("checkpoint"))
@data_option
@seed_option
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
    from portend.verbs.network import samples_of

    check_writable(out)
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
    dataset, chosen = samples_of(checkpoint, data, seed, allow_code=allow_code)
    splits = make_splits(dataset, seed=chosen, calibration=int(kept) if samples is None and kept else samples)
    assert splits.calibration is not None
    with bars(quiet=as_json) as tell:
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


@click.command(cls=Command)
@click.argument("file", type=FileOf("profile", "checkpoint", "exported"))
@data_option
@seed_option
@click.option(
    "--split", type=click.Choice(["profiling", "test"]), help="Samples to score, of a network. Default: profiling."
)
@criterion_option
@click.option("--thresholds", type=Numbers(float), default="0.1,0.3,0.5", show_default=True, help="To show exits for.")
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
    from portend.verbs.network import samples_of

    if kind_of(file) in ("checkpoint", "exported"):
        from portend.data.dataset import make_splits
        from portend.networks.evaluators import load_evaluator
        from portend.profiling.network import profile_exits

        dataset, chosen = samples_of(file, data, seed, allow_code=allow_code)
        evaluator = load_evaluator(file, allow_code=allow_code)
        part = split or "profiling"
        with bars(quiet=as_json or markdown) as tell:
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
