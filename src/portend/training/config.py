"""How to train, and what a training run says of itself: values only.

Axes: E trained exits.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from portend.data.augment import Augment
from portend.errors import choice, law
from portend.io.storage import atomic_path
from portend.training.schedules import Schedule

__all__ = [
    "DIGITS_TRAINING",
    "Distillation",
    "EarlyStopping",
    "EpochRecord",
    "Parts",
    "Precision",
    "Progress",
    "TrainingConfig",
    "TrainingResult",
    "write_history",
]

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Optimizer = Literal["sgd", "adamw"]


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
