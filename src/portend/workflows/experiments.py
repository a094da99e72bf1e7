"""What to train, as YAML files state it: experiments for `portend train`, and how `portend refine` fine-tunes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from portend.errors import ConfigError, InvalidValue, choice
from portend.io.forms import Form, Key, Section, listed, nested, plain, read_yaml, share
from portend.planner.planfile import load_plan
from portend.training.config import Distillation, EarlyStopping, TrainingConfig

__all__ = ["EXPERIMENT", "REFINEMENT", "TRAINING", "Experiment", "read_experiment", "read_training"]


def _devices(section: Section, key: str) -> int | str:
    value = section.get(key, object)
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise ConfigError(f"{section.at(key)}: a count or a text such as auto is needed here, but got {value!r}")
    return value


def _split(section: Section, key: str) -> float:
    value = section.get(key, object)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{section.at(key)}: a count or a share of samples is needed, but got {value!r}")
    return value


DISTILLATION: Final = Form(
    title="training.distillation",
    says="Exits before the last trained one also learn from it. `distillation: {}` takes the defaults.",
    makes=Distillation,
    keys=(
        share("weight", "of that loss, above 0"),
        plain("temperature", float, "by which the last exit's logits are divided"),
    ),
)
EARLY_STOPPING: Final = Form(
    title="training.early_stopping",
    says="Training stops when the loss on a part of the training split stands still.",
    makes=EarlyStopping,
    keys=(
        plain("patience", int, "epochs without improvement until it stops", required=True),
        plain("min_delta", float, "what counts as an improvement"),
        share("share", "of the training split that validates instead"),
    ),
)
TRAINING: Final = Form(
    title="training",
    says="How to train. `init`, `mode` and `plan` are for `portend train` alone, `exits` is not for `mode: plan`, "
    "`freeze_backbone` for `mode: plan` and `portend refine`.",
    makes=TrainingConfig,
    keys=(
        plain("epochs", int, "passes over the training split", required=True),
        plain("batch_size", int, "most samples of a batch; those of an epoch are of equal size", required=True),
        plain("learning_rate", float, "the schedule's peak", required=True),
        plain("init", str, "checkpoint whose weights training begins with", default="new weights"),
        plain("mode", str, "`joint`: blocks and exits are trained; `exits`: exits on frozen blocks; `plan`: those of a "
              "plan", default="joint"),
        plain("plan", str, "file of `portend plan --out`, with `mode: plan`, where it is required", default="none"),
        listed("exits", int, "cuts whose exits are trained, from 1 on", default="all"),
        listed("exit_weights", float, "what the loss of each trained exit counts", default="1 each"),
        plain("freeze_backbone", bool, "blocks keep their weights"),
        plain("schedule", str, "of the learning rate: `one-cycle` (30 % rise, then cosine), `cosine`, `constant`"),
        plain("optimizer", str, "`sgd` (Nesterov momentum 0.9) or `adamw`"),
        plain("weight_decay", float, "L2 for sgd, decoupled for adamw"),
        plain("label_smoothing", float, "within 0–1"),
        plain("augment", str, "random changes: `none`; `crop`, `crop+flip` for images; `spectrogram` for sounds"),
        plain("precision", str, "`float32`, `bfloat16`, `auto` (bfloat16 where a processor has it), `float16` (GPUs)"),
        nested("distillation", DISTILLATION, "earlier exits also learn from the last", default="off"),
        nested("early_stopping", EARLY_STOPPING, "stops when nothing improves", default="off"),
        plain("seed", int, "of order, augmentation, dropout and the validation part"),
        plain("compile", bool, "let torch.compile make kernels first"),
        plain("threads", int, "compute threads", default="torch's own"),
        plain("workers", int, "processes that decode samples that do not fit into memory"),
        plain("tensorboard", bool, "also write curves"),
        plain("checkpoint_minutes", float, "time between two states within an epoch"),
        plain("accelerator", str, "of Lightning's Trainer"),
        Key(name="devices", words="whole number, or text", read=_devices, says="of Lightning's Trainer"),
        plain("strategy", str, "of Lightning's Trainer"),
        plain("num_nodes", int, "of Lightning's Trainer"),
    ),
)  # fmt: skip
EXPERIMENT: Final = Form(
    title="Experiment",
    says="`portend train CONFIG` (docs/training.md). Examples: `configs/experiments/`.",
    keys=(
        plain("network", str, "of the zoo, `timm:NAME`, `torchvision:NAME` or `module:object` (docs/networks.md)",
              default="that of training.init"),
        plain("options", dict, "of the network, such as `num_classes` (docs/networks.md)", default="none"),
        plain("data", str, "such as `digits` or `parquet:FOLDER` (docs/data.md)", required=True),
        plain("seed", int, "of the splits", default="0"),
        Key(name="calibration", words="count, or share", read=_split,
            says="samples kept for `portend calibrate`", default="none"),
        plain("samples", int, "train on so many of the training split", default="all"),
        Key(name="training", words="mapping", read=lambda at, key: at.section(key), says="how to train",
            required=True, form=TRAINING),
    ),
)  # fmt: skip
REFINEMENT: Final = Form(
    title="Refinement",
    says="`portend refine --training`: how the network is fine-tuned for each plan. Example: `configs/refinements/`.",
    keys=(
        Key(name="training", words="mapping", read=lambda at, key: at.section(key),
            says="as for an experiment, without init, mode, plan, exits and exit_weights", required=True),
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """What an experiment's file states.

    Attributes:
        network, options: what is built; init: checkpoint to begin with; "": none.
        data, seed, calibration, samples: data set and splits; None: no calibration split, all samples.
    """

    data: str
    training: TrainingConfig
    network: str = ""
    options: dict[str, Any]
    init: str = ""
    seed: int = 0
    calibration: float | None = None
    samples: int | None = None


def read_experiment(path: str | Path) -> Experiment:
    """Return the experiment that a YAML file states.

    Raises:
        ConfigError: the file, the place in it, what is wrong there, and the remedy.
    """
    root = read_yaml(path, "experiment")
    values = EXPERIMENT.read(root)
    section = values.pop("training")
    mode = section.get("mode", str, "joint")
    choice(section.at("mode"), mode, ("joint", "exits", "plan"), error=ConfigError)
    if mode == "plan":
        section.get("plan", str)
    told = TRAINING.read(section, without=("exits",) if mode == "plan" else ("plan", "freeze_backbone"))
    told.pop("mode", None)
    init = told.pop("init", "")
    if mode == "plan":
        told["exits"] = load_plan(told.pop("plan")).plan.exits
    elif mode == "exits":
        told["freeze_backbone"] = True
    if not (values.get("network") or init):
        raise ConfigError(f"{path}: network is missing; name one, or begin with a checkpoint (training.init)")
    if (samples := values.get("samples")) is not None and samples < 1:
        raise ConfigError(f"{root.at('samples')}: at least one sample is needed to train, but got {samples}")
    values["options"] = {str(name): value for name, value in values.get("options", {}).items()}
    return Experiment(training=_config(path, told), init=init, **values)


def read_training(path: str | Path) -> TrainingConfig:
    """Return how `portend refine` fine-tunes, as a YAML file states it; errors as ``read_experiment``."""
    section = REFINEMENT.read(read_yaml(path, "training"))["training"]
    return _config(path, TRAINING.read(section, without=("init", "mode", "plan", "exits", "exit_weights")))


def _config(path: str | Path, values: dict[str, Any]) -> TrainingConfig:
    try:
        return TrainingConfig(**values)
    except InvalidValue as error:
        raise ConfigError(f"{path}: {error}") from None
