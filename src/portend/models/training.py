"""Train the exits of a backbone: all together, on a frozen backbone, or only those that a plan uses.

The loss is the weighted sum of the trained exits' losses (paper, Sec. II-B: all exits, each with weight 1).
Everything random is a function of the seed and the step, so a resumed run ends with the same bits as an
uninterrupted one on the same machine. Training itself runs on Lightning (``fitting.py``).

Axes: E trained exits, N branches.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from portend.errors import InvalidValue, MismatchError, StorageError, TrainingError, choice, law
from portend.models.augment import Augment
from portend.models.backbone import Backbone
from portend.models.checkpoint import save_checkpoint
from portend.models.data import Dataset, Splits
from portend.models.evaluators import TorchEvaluator
from portend.models.schedules import Schedule
from portend.models.scoring import check_fit, score_samples
from portend.models.split import are_probabilities
from portend.models.state import read_state
from portend.models.tensorfile import tensors_sha256
from portend.models.tracing import evaluating
from portend.storage import atomic_path

__all__ = [
    "DIGITS_TRAINING",
    "Distillation",
    "EarlyStopping",
    "EpochRecord",
    "Parts",
    "Progress",
    "TrainingConfig",
    "TrainingResult",
    "train",
    "write_history",
]

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Optimizer = Literal["sgd", "adamw"]

_IDLE = ("tensorboard", "workers", "checkpoint_minutes")  # settings that do not change the weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Distillation:
    """Earlier exits also learn from the last trained one: ``weight`` of that loss in 0–1, ``temperature`` > 0."""

    weight: float = 0.5
    temperature: float = 3.0

    def __post_init__(self) -> None:
        law(0 < self.weight <= 1, f"the weight of distillation lies within 0–1 and is not 0, but got {self.weight}")
        law(0 < self.temperature < math.inf, f"temperature is positive, but got {self.temperature}")


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyStopping:
    """Stop when the loss on a validation part stands still, and keep the weights of the best epoch.

    Attributes:
        patience: epochs without improvement by more than ``min_delta`` until training stops.
        share: of the training split, in 0–1, that validates instead of training: drawn by the seed, each class in
            proportion, or whole groups where the data set has groups. The profiling and the test split never
            steer training.
    """

    patience: int
    min_delta: float = 0.0
    share: float = 0.1

    def __post_init__(self) -> None:
        law(self.patience >= 1, f"patience is at least 1 epoch, but got {self.patience}")
        law(0 <= self.min_delta < math.inf, f"min_delta is not negative, but got {self.min_delta}")
        law(0 < self.share < 1, f"share lies between 0 and 1, but got {self.share}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """How to train; together with network and data it fixes the resulting weights on one machine.

    Attributes:
        epochs, batch_size: counts; batch_size is an upper limit, the batches of an epoch are of equal size.
        learning_rate: peak of the schedule; weight_decay: L2 for ``sgd`` (Nesterov, 0.9), decoupled for ``adamw``.
        label_smoothing: in 0–1; seed: of order, augmentation, dropout and the validation part.
        schedule: see ``schedules.peak_share``; augment: see ``augment.augmented``.
        precision: ``bfloat16`` is autocast, faster where the CPU has AVX512-BF16 or AMX; ``auto`` chooses it there,
            and float32 elsewhere; ``float16`` is for GPUs.
        exits: cuts, counted from 1, whose branches are trained, in increasing order; none: all that exist.
        exit_weights: what the loss of each trained exit counts for the blocks; none: 1 each. A branch of its own
            learns by its loss alone, whatever the weight.
        freeze_backbone: train the exits alone; blocks keep weights and batch-norm statistics.
        compile: let ``torch.compile`` make kernels first; threads: of torch while training; None leaves its setting.
        accelerator, devices, strategy, num_nodes: as Lightning's Trainer takes them; ``batch_size`` counts the samples
            of all devices.
        workers: processes that decode samples that do not fit into memory.
        tensorboard: also write curves to the folder ``tensorboard``.
        checkpoint_minutes: time between two states within an epoch.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 5e-4
    optimizer: Optimizer = "sgd"
    schedule: Schedule = "one-cycle"
    label_smoothing: float = 0.0
    seed: int = 0
    augment: Augment = "none"
    precision: Precision = "float32"
    exits: tuple[int, ...] = ()
    exit_weights: tuple[float, ...] = ()
    freeze_backbone: bool = False
    distillation: Distillation | None = None
    early_stopping: EarlyStopping | None = None
    compile: bool = False
    threads: int | None = None
    accelerator: str = "cpu"
    devices: int | str = 1
    strategy: str = "auto"
    num_nodes: int = 1
    workers: int = 2
    tensorboard: bool = False
    checkpoint_minutes: float = 2.0

    def __post_init__(self) -> None:
        least = {"epochs": 1, "batch_size": 1, "seed": 0, "threads": 1, "workers": 0, "num_nodes": 1}
        for name, lowest in least.items():
            value = getattr(self, name)
            law(value is None or value >= lowest, f"{name} is at least {lowest}, but got {value}")
        law(0 < self.learning_rate < math.inf, f"learning_rate is positive, but got {self.learning_rate}")
        for name in ("weight_decay", "checkpoint_minutes"):
            law(0 <= getattr(self, name) < math.inf, f"{name} is not negative, but got {getattr(self, name)}")
        law(0 <= self.label_smoothing < 1, f"label_smoothing lies within 0–1, but got {self.label_smoothing}")
        choices = {"augment": Augment, "precision": Precision, "optimizer": Optimizer, "schedule": Schedule}
        for name, kind in choices.items():
            choice(name, getattr(self, name), get_args(kind))
        law(
            list(self.exits) == sorted(set(self.exits)) and all(cut >= 1 for cut in self.exits),
            f"exits are cuts from 1 on in increasing order, but got {self.exits}",
        )
        law(
            all(0 < weight < math.inf for weight in self.exit_weights),
            f"exit_weights are positive, but got {self.exit_weights}; leave an exit out of exits to not train it",
        )


DIGITS_TRAINING = TrainingConfig(epochs=12, batch_size=32, learning_rate=0.05)


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a training run is, after each step and at the end of each epoch.

    Attributes:
        epoch, step: completed ones, of ``epochs`` and ``steps`` (all epochs together).
        loss: mean over the epoch so far, summed over the exits.
        accuracies: training accuracy of each trained exit in 0–1, at the end of an epoch only.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracies: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochRecord:
    """One row of ``history.csv``: mean loss (summed over exits), accuracy per trained exit, wall seconds.

    The validation values are None without early stopping.
    """

    epoch: int
    loss: float
    accuracies: tuple[float, ...]
    seconds: float
    validation_loss: float | None = None
    validation_accuracies: tuple[float, ...] | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EpochRecord:
        """Return the record that ``dataclasses.asdict`` made these values of."""
        own: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in values.items()}
        return cls(**own)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingResult:
    """What a training run leaves behind.

    Attributes:
        checkpoint: the file with the final weights.
        history: one record per epoch, earlier (resumed) ones included.
        accuracies: of each branch on the profiling split, in 0–1.
    """

    checkpoint: Path
    history: tuple[EpochRecord, ...]
    accuracies: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Parts:
    """Indices of the samples that train and validate (possibly none), and the cuts of the exits that are trained."""

    fitting: NDArray[np.int64]
    validation: NDArray[np.int64]
    exits: tuple[int, ...]


def train(
    backbone: Backbone,
    dataset: Dataset,
    splits: Splits,
    config: TrainingConfig,
    directory: str | Path,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    resume: bool = True,
) -> TrainingResult:
    """Train exits of ``backbone`` in place and write the result to ``directory``.

    Writes ``state.safetensors`` every few minutes and after each epoch, ``history.csv`` after each epoch, and
    ``checkpoint.safetensors`` at the end. With ``resume``, a state in the directory is continued; an interrupted
    run loses ``checkpoint_minutes`` at most. Afterwards the backbone is on the CPU, in evaluation mode.

    Raises:
        MismatchError: the network does not take this dataset's samples, has another number of classes, lacks
            an exit that is to be trained, or was cut for inference alone.
        DataError: a sample cannot be decoded.
        TrainingError: the loss is not finite, the state belongs to another config, network or split, memory is short,
            or Lightning refuses the devices.
        StorageError: the directory cannot be written, or the state in it is damaged.
    """
    check_fit(backbone.spec(), dataset)
    if backbone.inference_only and not config.freeze_backbone:
        raise MismatchError(
            f"the blocks of {backbone.name} were cut for inference alone and cannot be trained; train the exits "
            "(mode: exits, or freeze_backbone), or build the network without inference_only"
        )
    _check_samples(backbone, dataset, splits)
    config = replace(config, precision=_precision(config))
    parts = _parts(backbone, dataset, splits, config)
    identity = _identity(backbone, dataset, parts, config)
    folder = Path(directory)
    state = folder / "state.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not resume:
            state.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {folder} ({error}); choose another") from error
    first = True
    with _threads(config.threads):
        if not (state.exists() and read_state(state, identity)["portend"]["finished"]):
            from portend.models.fitting import fit

            first = fit(backbone, dataset, parts, config, state, identity, on_progress)
        kept = read_state(state, identity)
        weights = kept["portend"]["best"] or kept["state_dict"]
        backbone.load_state_dict({name.removeprefix("backbone."): value for name, value in weights.items()})
        backbone.eval()
        _, correct = score_samples(TorchEvaluator(backbone), dataset, splits.profiling)
    result = TrainingResult(
        checkpoint=folder / "checkpoint.safetensors",
        history=tuple(EpochRecord.from_dict(record) for record in kept["portend"]["history"]),
        accuracies=tuple(correct.mean(axis=0).tolist()),
    )
    if first:
        write_history(folder / "history.csv", result.history, parts.exits)
        save_checkpoint(backbone, result.checkpoint, provenance=_provenance(dataset, splits, config))
    return result


def _check_samples(backbone: Backbone, dataset: Dataset, splits: Splits) -> None:
    """Look at the weights and run the network once, so that what does not fit is told before training."""
    weights = backbone.state_dict()
    learned = {name for name, _ in backbone.named_parameters()}
    spoilt = [
        name
        for name, value in weights.items()
        if bool(value.isnan().any()) or (name in learned and not bool(value.isfinite().all()))
    ]
    if spoilt:
        raise TrainingError(
            f"the weights that training would begin with are not finite in {len(spoilt)} tensors, such as {spoilt[0]}; "
            "give others, for no learning rate mends them"
        )
    samples = torch.from_numpy(dataset.tensors(splits.train[:2]))
    if not backbone.input_dtype.is_floating_point and not bool((samples == samples.round()).all()):
        raise MismatchError(f"{backbone.name} takes whole numbers, but the samples of {dataset.name} have fractions")
    try:
        with evaluating(backbone):
            outputs = backbone(samples)
    except Exception as error:
        raise MismatchError(
            f"{backbone.name} takes {backbone.input_dtype} and does not run on the samples of {dataset.name}, "
            f"{samples.dtype} ({str(error).partition(chr(10))[0]}); for tokens build it with vocabulary=..., or split "
            "it on an int64 example"
        ) from error
    for cut, logits in zip(backbone.exits, outputs, strict=True):
        if are_probabilities(logits):
            raise MismatchError(
                f"the exit at cut {cut} of {backbone.name} gives probabilities (not negative, with the sum 1), but "
                "exits give logits; take the softmax out"
            )


def write_history(path: str | Path, history: Sequence[EpochRecord], exits: Sequence[int]) -> None:
    """Write one row per epoch; the accuracies are named after the cuts of the trained exits."""
    validated = history[0].validation_accuracies is not None
    names = ["epoch", "loss", "seconds", *(f"accuracy_{cut}" for cut in exits)]
    names += ["validation_loss", *(f"validation_accuracy_{cut}" for cut in exits)] if validated else []
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for record in history:
            row: list[float | None] = [record.epoch, record.loss, round(record.seconds, 3), *record.accuracies]
            row += [record.validation_loss, *(record.validation_accuracies or ())] if validated else []
            writer.writerow(row)


def _provenance(dataset: Dataset, splits: Splits, config: TrainingConfig) -> dict[str, str]:
    provenance = {
        "dataset": dataset.name,
        "decoder": json.dumps(dataset.decoder.to_dict()),
        "training": json.dumps(asdict(config)),
        "torch": str(torch.__version__),
    }
    if splits.seed is not None:
        provenance["split_seed"] = str(splits.seed)
    if splits.calibration is not None:
        provenance["split_calibration"] = str(splits.calibration.size)
    return provenance


def _precision(config: TrainingConfig) -> Precision:
    """Return the precision, with ``auto`` decided for this machine."""
    if config.precision != "auto":
        return config.precision
    if config.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    able: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.9 and later
    return "bfloat16" if able.get("amx_bf16") or able.get("avx512_bf16") else "float32"


def _parts(backbone: Backbone, dataset: Dataset, splits: Splits, config: TrainingConfig) -> Parts:
    """Divide the training split and find the exits to train."""
    existing = tuple(cut for cut, branch in enumerate(backbone.branches, start=1) if branch is not None)
    exits = config.exits or existing
    missing = sorted(set(exits) - set(existing))
    if missing:
        raise MismatchError(
            f"{backbone.name} has exits at the cuts {', '.join(map(str, existing))}, but {missing} shall be trained; "
            "take a plan or exits of this network"
        )
    if len(config.exit_weights) not in (0, len(exits)):
        raise MismatchError(
            f"each of the {len(exits)} trained exits needs one weight, but exit_weights has "
            f"{len(config.exit_weights)}; the trained exits are those at the cuts {', '.join(map(str, exits))}"
        )
    chosen = np.zeros(splits.train.size, dtype=np.bool_)
    if config.early_stopping is not None:
        chosen = _drawn(dataset, splits.train, config.early_stopping.share, config.seed)
        if not chosen.any() or chosen.all():
            raise InvalidValue(
                f"early stopping needs samples to validate on and to train on, but a share of "
                f"{config.early_stopping.share} of {splits.train.size} samples leaves none; change share"
            )
    return Parts(fitting=splits.train[~chosen], validation=splits.train[chosen], exits=exits)


def _drawn(dataset: Dataset, indices: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """Whether each of the samples is drawn: a share of each class, or, where there are groups, of whole groups."""
    rng = np.random.default_rng((seed, 1))
    drawn = np.zeros(indices.size, dtype=np.bool_)
    if dataset.groups is not None:
        groups = rng.permutation(np.unique(dataset.groups[indices]))
        return np.isin(dataset.groups[indices], groups[: round(share * groups.size)])
    labels = dataset.labels[indices]
    for label in np.unique(labels):
        of_class = rng.permutation(np.flatnonzero(labels == label))
        drawn[of_class[: round(share * of_class.size)]] = True
    return drawn


def _identity(backbone: Backbone, dataset: Dataset, parts: Parts, config: TrainingConfig) -> dict[str, Any]:
    """Return, as JSON values, what must not change between the parts of one training run."""
    samples = np.concatenate([parts.fitting, parts.validation])
    digest = hashlib.sha256(samples.tobytes() + dataset.labels[samples].tobytes()).hexdigest()
    identity = {
        "network": backbone.name,
        "architecture": backbone.architecture,
        "first weights": tensors_sha256(backbone.state_dict())[:16],
        "dataset": dataset.name,
        "decoder": dataset.decoder.to_dict(),
        "training samples": digest[:16],
        "config": {key: value for key, value in asdict(config).items() if key not in _IDLE},
    }
    return dict(json.loads(json.dumps(identity)))


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
