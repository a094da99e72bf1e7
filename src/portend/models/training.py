"""Train all exits of a backbone together, and score samples at every branch.

The loss is the sum of the branches' cross-entropies (paper, Sec. II-B). Everything random
is a function of the seed and the epoch, so a resumed run ends with the same bits as an uninterrupted one.

Axes: B batch, N branches, S samples, K classes.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from portend.errors import InvalidValue, MismatchError, StorageError, TrainingError
from portend.models.backbone import Backbone
from portend.models.checkpoint import save_checkpoint
from portend.models.data import Dataset, Splits
from portend.models.exits import normalized_entropy
from portend.models.tensorfile import read_tensors, write_tensors
from portend.storage import atomic_path

__all__ = [
    "CIFAR10_TRAINING",
    "DIGITS_TRAINING",
    "EpochRecord",
    "Progress",
    "TrainingConfig",
    "TrainingResult",
    "evaluate",
    "train",
]

Augment = Literal["none", "crop", "crop+flip"]
Precision = Literal["float32", "bfloat16"]

_MOMENTUM = 0.9
_WARM_UP = 0.3  # share of the steps in which the learning rate rises
_START, _END = 1 / 25, 1 / 10_000  # first and last learning rate, as shares of the peak
_STATE_KIND = "training-state"
_STATE_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """How to train; together with network and data it fixes the resulting weights on one machine.

    Attributes:
        epochs, batch_size: counts; batch_size is an upper limit, the batches of an epoch are of equal size.
        learning_rate: peak of the one-cycle schedule (30 % linear rise, then cosine to almost 0).
        weight_decay: L2, on all parameters; seed: of sample order and augmentation.
        augment: ``none``, ``crop`` (shifted by up to an eighth of the size), or ``crop+flip`` (also mirrored).
        precision: ``bfloat16`` is autocast on the CPU: faster only where the CPU has AVX512-BF16 or AMX.
        threads: of torch while training; None leaves torch's setting.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 5e-4
    seed: int = 0
    augment: Augment = "none"
    precision: Precision = "float32"
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0), ("threads", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InvalidValue(f"{name} is at least {least}, but got {value}")
        if not (0 < self.learning_rate < math.inf and 0 <= self.weight_decay < math.inf):
            raise InvalidValue(
                f"learning_rate is positive and weight_decay not negative, "
                f"but got {self.learning_rate} and {self.weight_decay}"
            )
        for name, choices in (("augment", get_args(Augment)), ("precision", get_args(Precision))):
            if getattr(self, name) not in choices:
                raise InvalidValue(f"{name} is one of {', '.join(choices)}, but got {getattr(self, name)!r}")


DIGITS_TRAINING = TrainingConfig(epochs=12, batch_size=32, learning_rate=0.05)
CIFAR10_TRAINING = TrainingConfig(
    epochs=30, batch_size=128, learning_rate=0.1, augment="crop+flip", precision="bfloat16"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a training run is, after each step and at the end of each epoch.

    Attributes:
        epoch, step: completed ones, of ``epochs`` and ``steps`` (all epochs together).
        loss: mean over the epoch so far, summed over the branches.
        accuracies: training accuracy of each branch in 0–1, at the end of an epoch only.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracies: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochRecord:
    """One row of ``history.csv``: mean loss (summed over branches), training accuracy per branch, wall seconds."""

    epoch: int
    loss: float
    accuracies: tuple[float, ...]
    seconds: float


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
    """Train all exits of ``backbone`` in place and write the result to ``directory``.

    Writes ``state.safetensors`` and ``history.csv`` after each epoch and ``checkpoint.safetensors`` at the end.
    With ``resume``, a state in the directory is continued; an interrupted run loses the begun epoch at most.
    Afterwards the backbone is in evaluation mode.

    Raises:
        MismatchError: the network does not take this dataset's samples or has another number of classes.
        TrainingError: the loss is not finite, or the state belongs to another config, network or split.
        StorageError: the directory cannot be written, or the state in it is damaged.
    """
    _check_fit(backbone, dataset)
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {folder} ({error}); choose another") from error
    with _threads(config.threads):
        run = _Run(backbone, dataset, splits, config, folder)
        if resume:
            run.restore()
        run.fit(on_progress)
        _, correct = evaluate(backbone, dataset, splits.profiling)
    provenance = {
        "dataset": dataset.name,
        "decoder": json.dumps(dataset.decoder.to_dict()),
        "training": json.dumps(asdict(config)),
        "torch": str(torch.__version__),
    }
    checkpoint = folder / "checkpoint.safetensors"
    if splits.seed is not None:
        provenance["split_seed"] = str(splits.seed)
    save_checkpoint(backbone, checkpoint, provenance=provenance)
    return TrainingResult(
        checkpoint=checkpoint, history=tuple(run.history), accuracies=tuple(correct.mean(axis=0).tolist())
    )


def evaluate(
    backbone: Backbone,
    dataset: Dataset,
    indices: ArrayLike,
    batch_size: int = 256,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return (normalized entropy float64 [S, N], correct bool [S, N]) of every branch, in float32 arithmetic.

    Args:
        indices: S samples of the dataset; on_progress: called with (samples done, S) after each batch.

    Raises:
        MismatchError: the network does not take this dataset's samples; DataError: a sample cannot be decoded.
    """
    _check_fit(backbone, dataset)
    if batch_size < 1:
        raise InvalidValue(f"batch_size is at least 1, but got {batch_size}")
    chosen = np.asarray(indices, dtype=np.int64)
    shape = (chosen.size, len(backbone.blocks))
    score, correct = np.empty(shape), np.empty(shape, dtype=np.bool_)
    was_training = backbone.training
    backbone.eval()
    try:
        for first in range(0, chosen.size, batch_size):
            rows = slice(first, first + batch_size)
            logits = _logits(backbone, dataset.tensors(chosen[rows]))
            score[rows] = normalized_entropy(logits).numpy()
            correct[rows] = logits.argmax(dim=2).numpy() == dataset.labels[chosen[rows], None]
            if on_progress:
                on_progress(min(first + batch_size, chosen.size), chosen.size)
    finally:
        backbone.train(was_training)
    return score, correct


@torch.inference_mode()
def _logits(backbone: Backbone, samples: NDArray[np.float32]) -> Tensor:
    return torch.stack(backbone(torch.from_numpy(samples)), dim=1)


class _Run:
    """One training run: network, optimizer, samples in memory, and the epochs done so far."""

    def __init__(
        self, backbone: Backbone, dataset: Dataset, splits: Splits, config: TrainingConfig, folder: Path
    ) -> None:
        self.backbone = backbone.to(memory_format=torch.channels_last)
        self.config = config
        self.folder = folder
        self.state_path = folder / "state.safetensors"
        self.history: list[EpochRecord] = []
        self.images = torch.from_numpy(dataset.tensors(splits.train))
        self.labels = torch.from_numpy(dataset.labels[splits.train])
        self.identity = _identity(backbone, dataset, splits, config)
        self.optimizer = torch.optim.SGD(
            backbone.parameters(),
            lr=config.learning_rate,
            momentum=_MOMENTUM,
            nesterov=True,
            weight_decay=config.weight_decay,
        )
        self.steps_per_epoch = math.ceil(len(self.labels) / config.batch_size)

    def fit(self, on_progress: Callable[[Progress], None] | None) -> None:
        """Run the epochs that are missing, then leave plain memory layout and evaluation mode."""
        for epoch in range(len(self.history), self.config.epochs):
            self.history.append(self._epoch(epoch, on_progress))
            self._save()
            self._report(on_progress, (epoch + 1) * self.steps_per_epoch, self.history[-1].loss)
        _write_history(self.folder / "history.csv", self.history)
        self.backbone.to(memory_format=torch.contiguous_format)
        self.backbone.eval()

    def _epoch(self, epoch: int, on_progress: Callable[[Progress], None] | None) -> EpochRecord:
        began = perf_counter()
        self.backbone.train()
        rng = np.random.default_rng((self.config.seed, epoch))
        order = rng.permutation(len(self.labels))
        loss_sum, correct, seen = 0.0, torch.zeros(len(self.backbone.blocks), dtype=torch.int64), 0
        for index, batch in enumerate(np.array_split(order, self.steps_per_epoch)):
            step = epoch * self.steps_per_epoch + index
            loss, hits = self._step(step, batch, rng)
            loss_sum, correct, seen = loss_sum + loss * batch.size, correct + hits, seen + batch.size
            self._report(on_progress, step + 1, loss_sum / seen)
        return EpochRecord(
            epoch=epoch + 1,
            loss=loss_sum / seen,
            accuracies=tuple((correct / seen).tolist()),
            seconds=perf_counter() - began,
        )

    def _step(self, step: int, batch: NDArray[np.int64], rng: np.random.Generator) -> tuple[float, Tensor]:
        """Take one optimizer step; return the loss and the correct answers of each branch [N]."""
        rows = torch.from_numpy(batch)
        labels = self.labels[rows]
        images = _augmented(self.images[rows], self.config.augment, rng).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            outputs = self.backbone(images)
        logits = torch.stack(outputs).float()
        loss = functional.cross_entropy(logits.flatten(0, 1), labels.repeat(len(outputs)), reduction="sum") / batch.size
        if not math.isfinite(loss.item()):
            raise TrainingError(self._lost(step, loss.item()))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * _one_cycle(step, self.steps_per_epoch * self.config.epochs)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.item(), (logits.argmax(dim=2) == labels).sum(dim=1)

    def _lost(self, step: int, loss: float) -> str:
        good = f"the last good state is {self.state_path} (epoch {len(self.history)})"
        return (
            f"training needs a finite loss, but it is {loss} at step {step + 1} of "
            f"{self.steps_per_epoch * self.config.epochs}; lower learning_rate {self.config.learning_rate:g}; "
            f"{good if self.history else 'no epoch was completed, so there is no state to go back to'}"
        )

    def _report(self, on_progress: Callable[[Progress], None] | None, step: int, loss: float) -> None:
        if on_progress:
            ended = len(self.history) * self.steps_per_epoch == step
            on_progress(
                Progress(
                    epoch=len(self.history),
                    epochs=self.config.epochs,
                    step=step,
                    steps=self.steps_per_epoch * self.config.epochs,
                    loss=loss,
                    accuracies=self.history[-1].accuracies if ended else None,
                )
            )

    def _save(self) -> None:
        tensors = {f"weights.{name}": tensor for name, tensor in self.backbone.state_dict().items()}
        for name, parameter in self.backbone.named_parameters():
            tensors[f"momentum.{name}"] = self.optimizer.state[parameter]["momentum_buffer"]
        document = {
            "kind": _STATE_KIND,
            "version": _STATE_VERSION,
            "identity": self.identity,
            "history": [asdict(record) for record in self.history],
        }
        write_tensors(self.state_path, tensors, document)
        _write_history(self.folder / "history.csv", self.history)

    def restore(self) -> None:
        """Continue from the state in the folder, if there is one."""
        if not self.state_path.exists():
            return
        tensors, document = read_tensors(self.state_path)
        history = self._checked_history(document)
        own = dict(self.backbone.named_parameters())
        self.backbone.load_state_dict(_under("weights.", tensors))
        for name, momentum in _under("momentum.", tensors).items():
            buffer = torch.empty_like(own[name], requires_grad=False).copy_(momentum)
            self.optimizer.state[own[name]]["momentum_buffer"] = buffer
        self.history = [EpochRecord(**{**record, "accuracies": tuple(record["accuracies"])}) for record in history]

    def _checked_history(self, document: Mapping[str, Any] | None) -> list[dict[str, Any]]:
        """Return the epochs of a state; the digest vouches for its contents once kind and version are right."""
        if document is None or (document.get("kind"), document.get("version")) != (_STATE_KIND, _STATE_VERSION):
            raise StorageError(
                f"{self.state_path} is not a training state of this version; "
                "remove it, or start over (resume=False, --restart)"
            )
        there = document["identity"]
        differing = [key for key, value in self.identity.items() if there.get(key) != value]
        if differing:
            pairs = "; ".join(f"{key}: {there.get(key)} there, {self.identity[key]} here" for key in differing)
            raise TrainingError(
                f"{self.state_path} belongs to another training run ({pairs}); "
                "choose another folder, or start over (resume=False, --restart)"
            )
        return list(document["history"])


def _identity(backbone: Backbone, dataset: Dataset, splits: Splits, config: TrainingConfig) -> dict[str, Any]:
    """Return, as JSON values, what must not change between the parts of one training run."""
    digest = hashlib.sha256(splits.train.tobytes() + dataset.labels[splits.train].tobytes()).hexdigest()
    parts = {
        "network": backbone.name,
        "architecture": backbone.architecture,
        "dataset": dataset.name,
        "decoder": dataset.decoder.to_dict(),
        "training samples": digest[:16],
        "config": asdict(config),
    }
    return dict(json.loads(json.dumps(parts)))


def _check_fit(backbone: Backbone, dataset: Dataset) -> None:
    if backbone.input_shape != dataset.decoder.shape or backbone.num_classes != dataset.num_classes:
        raise MismatchError(
            f"{backbone.name} takes samples of shape {backbone.input_shape} in {backbone.num_classes} classes, but "
            f"{dataset.name} has {dataset.decoder.shape} in {dataset.num_classes}; "
            "build the network with the dataset's in_channels, input_size and num_classes"
        )


def _one_cycle(step: int, steps: int) -> float:
    """Return the share of the peak learning rate at a step (Smith and Topin 2017, one cycle)."""
    rise = max(1.0, _WARM_UP * steps)
    if step < rise:
        return _START + (1 - _START) * step / rise
    done = (step - rise) / max(1.0, steps - 1 - rise)
    return _END + (1 - _END) * (1 + math.cos(math.pi * min(done, 1.0))) / 2


def _augmented(images: Tensor, augment: Augment, rng: np.random.Generator) -> Tensor:
    """Return randomly shifted (and mirrored) images [B, C, H, W], each with its own shift."""
    if augment == "none":
        return images
    count, _, height, width = images.shape
    margin = max(1, width // 8)
    shift = torch.from_numpy(rng.integers(0, 2 * margin + 1, size=(2, count, 1)))
    rows, columns = torch.arange(height) + shift[0], torch.arange(width) + shift[1]
    if augment == "crop+flip":
        mirrored = torch.from_numpy(rng.random((count, 1)) < 0.5)
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = functional.pad(images, (margin,) * 4).permute(0, 2, 3, 1)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _write_history(path: Path, history: list[EpochRecord]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "loss", "seconds", *(f"accuracy_{i + 1}" for i in range(len(history[0].accuracies)))])
        for record in history:
            writer.writerow([record.epoch, record.loss, round(record.seconds, 3), *record.accuracies])


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
