"""One training run on Lightning: the module, its batches, and the state that a killed run goes on from.

Whatever is random follows from the seed, the epoch and the batch, so a resumed run ends with the same bits.
This module alone imports Lightning, which takes seconds; ``training.train`` imports it when there is work to do.

Axes: E trained exits, B batch, K classes.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.plugins.io import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.callbacks import EarlyStopping as Stopper
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from portend.data.augment import augmented
from portend.data.dataset import Dataset
from portend.errors import PortendError, TrainingError
from portend.networks.backbone import Backbone
from portend.training.batches import Batches
from portend.training.config import EpochRecord, Parts, Progress, TrainingConfig, write_history
from portend.training.losses import exit_losses
from portend.training.schedules import peak_share
from portend.training.state import read_state, write_state

__all__ = ["fit"]

_MOMENTUM = 0.9
_PRECISIONS: dict[str, Any] = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}
_LOG_EVERY = 20  # steps between two points of the TensorBoard curves


def fit(
    backbone: Backbone,
    dataset: Dataset,
    parts: Parts,
    config: TrainingConfig,
    state: Path,
    identity: Mapping[str, Any],
    on_progress: Callable[[Progress], None] | None,
) -> bool:
    """Train in place until the state file says that the run is finished; return whether this is the first process.

    Raises:
        TrainingError: the loss is not finite, memory is short, or Lightning refuses the devices.
    """
    module = _ExitsModule(backbone, config, parts.exits, state)
    keeper = _Keeper(state, config, on_progress, parts.exits)
    callbacks: list[Callback] = [keeper]
    if config.early_stopping is not None:
        stopping = config.early_stopping
        keeper.stopper = Stopper(
            monitor="validation_loss", patience=stopping.patience, min_delta=stopping.min_delta, check_finite=False
        )
        callbacks.append(keeper.stopper)
    with _quiet(), _own_sigint(), torch.random.fork_rng():
        resumed = read_state(state, identity)["global_step"] if state.exists() else None
        trainer = _trainer(config, state, identity, callbacks, resumed)
        ranks = trainer.global_rank, trainer.world_size
        loader = Batches(dataset, parts.fitting, config, ranks)
        validation = Batches(dataset, parts.validation, config, ranks, shuffle=False) if parts.validation.size else None
        module.steps_per_epoch = len(loader)
        keeper.infinite = {name for name, value in module.named_buffers() if bool(value.isinf().any())}  # masks
        with module.prepared():
            try:
                trainer.fit(module, loader, validation, ckpt_path=None if resumed is None else str(state))
            except SystemExit:  # what Lightning makes of Ctrl-C and SIGTERM
                if trainer.received_sigterm:
                    raise TrainingError(f"training was told to stop (SIGTERM); {_last_good(state)}") from None
                raise KeyboardInterrupt from None
            except (MemoryError, RuntimeError) as error:
                if isinstance(error, PortendError) or not _is_lack_of_memory(error):
                    raise
                raise TrainingError(
                    f"memory is short with batches of {config.batch_size} samples ({str(error).splitlines()[0]:.200}); "
                    f"lower batch_size; {_last_good(state)}"
                ) from None
        return trainer.global_rank == 0


def _trainer(
    config: TrainingConfig, state: Path, identity: Mapping[str, Any], callbacks: list[Callback], resumed: int | None
) -> pl.Trainer:
    curves = None
    if config.tensorboard:
        lost = None if resumed is None else resumed + 1  # steps whose points are drawn anew
        curves = TensorBoardLogger(state.parent, name=None, version="tensorboard", purge_step=lost)
    try:
        return pl.Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            strategy=config.strategy,
            num_nodes=config.num_nodes,
            precision=_PRECISIONS[config.precision],
            max_epochs=config.epochs,
            default_root_dir=state.parent,
            logger=curves or False,
            callbacks=callbacks,
            plugins=[_StateFile(identity)],
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise TrainingError(
            f"Lightning cannot train with accelerator {config.accelerator!r}, devices {config.devices!r}, strategy "
            f"{config.strategy!r} and num_nodes {config.num_nodes} ({' '.join(str(error).split())}); change these"
        ) from None


class _ExitsModule(pl.LightningModule):
    """The trained exits, their loss, and the sums of the epoch under way."""

    weights: Tensor

    def __init__(self, backbone: Backbone, config: TrainingConfig, exits: tuple[int, ...], state: Path) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.exits = exits
        self.state = state
        self.steps_per_epoch = 0
        self.history: list[EpochRecord] = []
        self.best: dict[str, Tensor] = {}
        self.finished = False
        self.sums = _Sums(len(exits))
        self.validation_sums = _Sums(len(exits))
        self.elapsed_s = 0.0
        self.forward_exits: Callable[[Tensor], Tensor] = torch.compile(self._logits) if config.compile else self._logits
        self.register_buffer("weights", torch.tensor(config.exit_weights or [1.0] * len(exits)), persistent=False)

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Let only what is trained have gradients; afterwards leave plain memory layout, evaluation mode, the CPU."""
        wanted = {id(parameter): parameter.requires_grad for parameter in self.backbone.parameters()}
        deepest = self.exits[-1]
        trained = {id(p) for cut in self.exits for p in self.backbone.branches[cut - 1].parameters()}
        if not self.config.freeze_backbone:
            trained |= {id(p) for p in self.backbone.blocks[:deepest].parameters()}
        trained &= {each for each, wants in wanted.items() if wants}  # what the network itself freezes stays frozen
        if not trained:
            raise TrainingError(
                "there is nothing to train: the network freezes all weights of the trained exits and their blocks "
                "(requires_grad is False); unfreeze some where the network is built"
            )
        for parameter in self.backbone.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        self.backbone.to(memory_format=torch.channels_last)
        try:
            yield
        finally:
            self.backbone.to("cpu").to(memory_format=torch.contiguous_format)
            self.backbone.eval()
            self.backbone.zero_grad(set_to_none=True)
            for parameter in self.backbone.parameters():
                parameter.requires_grad_(wanted[id(parameter)])

    def on_train_start(self) -> None:
        self.backbone.train()
        if self.config.freeze_backbone:
            self.backbone.blocks.eval()  # batch norms keep their statistics
        for parameter, values in self.optimizers().optimizer.state.items():  # type: ignore[union-attr]
            for name, value in values.items():  # restored ones come in plain layout, which would be slower
                if value.shape == parameter.shape:
                    values[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)
        self.began = perf_counter() - self.elapsed_s

    def _logits(self, samples: Tensor) -> Tensor:
        """Return the logits of the trained exits, [E, B, K]."""
        found = []
        for cut in range(1, self.exits[-1] + 1):
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_backbone):
                samples = self.backbone.blocks[cut - 1](samples)
            if cut in self.exits:
                found.append(self.backbone.branches[cut - 1](samples))
        return torch.stack(found).float()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        samples, labels = batch
        rng = np.random.default_rng((self.config.seed, len(self.history), batch_idx + 1, self.global_rank))
        torch.manual_seed(int(rng.integers(1 << 62)))  # of dropout
        logits = self.forward_exits(_laid_out(augmented(samples, self.config.augment, rng)))
        loss = self._loss(logits, labels)
        value = float(loss.detach())
        if not math.isfinite(value):
            steps = self.steps_per_epoch * self.config.epochs
            raise TrainingError(
                f"training needs a finite loss, but it is {value} at step {self.global_step + 1} of {steps}; "
                f"lower learning_rate {self.config.learning_rate:g}; {_last_good(self.state)}"
            )
        self.sums.add(value, logits, labels)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let each branch learn by its own loss alone: the weights say what the losses count for the blocks."""
        for cut, weight in zip(self.exits, self.config.exit_weights, strict=False):
            for parameter in self.backbone.branches[cut - 1].parameters():
                if parameter.grad is not None and weight != 1.0:
                    parameter.grad /= weight

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        distilled = self.config.distillation
        losses = exit_losses(
            logits,
            labels,
            label_smoothing=self.config.label_smoothing,
            distillation=distilled.weight if distilled else 0.0,
            temperature=distilled.temperature if distilled else 1.0,
        )
        return (self.weights * losses).sum()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        logits = self._logits(_laid_out(batch[0]))
        self.validation_sums.add(float((self.weights * exit_losses(logits, batch[1])).sum()), logits, batch[1])

    def on_validation_epoch_end(self) -> None:
        self.validation_sums = self.validation_sums.over_all(self.trainer)
        self.log("validation_loss", self.validation_sums.loss)

    def on_train_epoch_end(self) -> None:
        sums, validation = self.sums.over_all(self.trainer), self.validation_sums
        record = EpochRecord(
            epoch=len(self.history) + 1,
            loss=sums.loss,
            accuracies=sums.accuracies,
            seconds=perf_counter() - self.began,
            validation_loss=validation.loss if validation.seen else None,
            validation_accuracies=validation.accuracies if validation.seen else None,
        )
        self.history.append(record)
        self.sums, self.validation_sums = _Sums(len(self.exits)), _Sums(len(self.exits))
        self.began = perf_counter()
        if self.logger:
            curves = {"loss": record.loss}
            curves |= {f"accuracy/exit_{c}": a for c, a in zip(self.exits, record.accuracies, strict=True)}
            if record.validation_loss is not None and record.validation_accuracies is not None:
                curves["validation/loss"] = record.validation_loss
                found = zip(self.exits, record.validation_accuracies, strict=True)
                curves |= {f"validation/accuracy/exit_{c}": a for c, a in found}
            self.logger.log_metrics(curves, self.global_step)

    def configure_optimizers(self) -> Any:
        config, steps = self.config, self.steps_per_epoch * self.config.epochs
        trained = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
        optimizer: torch.optim.Optimizer
        if config.optimizer == "adamw":
            optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
        else:
            optimizer = torch.optim.SGD(
                trained, lr=config.learning_rate, momentum=_MOMENTUM, nesterov=True, weight_decay=config.weight_decay
            )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda at: peak_share(config.schedule, at, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["portend"] = {
            "history": [asdict(record) for record in self.history],
            "sums": self.sums.over_all(self.trainer).to_dict(),
            "elapsed_s": perf_counter() - self.began,
            "best": self.best,
            "finished": self.finished,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        own = checkpoint["portend"]
        self.history = [EpochRecord.from_dict(record) for record in own["history"]]
        if self.global_rank == 0:  # they are sums over all processes
            self.sums = _Sums(len(self.exits), **own["sums"])
        self.elapsed_s, self.best = own["elapsed_s"], own["best"]


class _Sums:
    """Loss and correct answers of the samples seen so far in an epoch."""

    def __init__(self, exits: int, total: float = 0.0, correct: list[int] | None = None, seen: int = 0) -> None:
        self.total, self.seen = total, seen
        self.correct = torch.tensor(correct or [0] * exits)

    def add(self, loss: float, logits: Tensor, labels: Tensor) -> None:
        self.total += loss * len(labels)
        self.seen += len(labels)
        self.correct += (logits.detach().argmax(dim=2) == labels).sum(dim=1).cpu()

    def over_all(self, trainer: pl.Trainer) -> _Sums:
        """Return the sums over all processes."""
        if trainer.world_size == 1:
            return self
        own = torch.tensor([self.total, self.seen, *self.correct.tolist()], dtype=torch.float64)
        every = trainer.strategy.reduce(own.to(trainer.strategy.root_device), reduce_op="sum").tolist()
        return _Sums(len(self.correct), every[0], [int(count) for count in every[2:]], int(every[1]))

    def to_dict(self) -> dict[str, Any]:
        return {"total": self.total, "correct": self.correct.tolist(), "seen": self.seen}

    @property
    def loss(self) -> float:
        return self.total / max(self.seen, 1)

    @property
    def accuracies(self) -> tuple[float, ...]:
        return tuple((self.correct / max(self.seen, 1)).tolist())


class _Keeper(Checkpoint):
    """Keep the state after each epoch and every few minutes, and report progress."""

    def __init__(
        self,
        state: Path,
        config: TrainingConfig,
        on_progress: Callable[[Progress], None] | None,
        exits: tuple[int, ...],
    ) -> None:
        self.state, self.config, self.on_progress, self.exits = state, config, on_progress, exits
        self.stopper: Stopper | None = None
        self.infinite: set[str] = set()
        self.kept_at = monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module = _own(pl_module)
        if module.logger and trainer.global_step % _LOG_EVERY == 0:
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            module.logger.log_metrics({"step_loss": module.sums.loss, "learning_rate": rate}, trainer.global_step)
        due = monotonic() - self.kept_at >= 60 * self.config.checkpoint_minutes
        if batch_idx + 1 < module.steps_per_epoch and (
            trainer.strategy.broadcast(due) if trainer.world_size > 1 else due
        ):
            self._keep(trainer, module)
        self._report(trainer, module, module.sums.loss)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module = _own(pl_module)
        if self.stopper is not None and self.stopper.wait_count == 0:
            module.best = {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
        module.finished = trainer.should_stop or len(module.history) == self.config.epochs
        self._keep(trainer, module)
        if trainer.global_rank == 0:
            write_history(self.state.parent / "history.csv", module.history, self.exits)
        self._report(trainer, module, module.history[-1].loss, module.history[-1].accuracies)

    def _keep(self, trainer: pl.Trainer, module: _ExitsModule) -> None:
        state = module.state_dict()
        spoilt = [
            name for name, value in state.items() if name not in self.infinite and not bool(value.isfinite().all())
        ]
        if spoilt:
            raise TrainingError(
                f"training needs finite weights, but after step {trainer.global_step} {spoilt[0]} and "
                f"{len(spoilt) - 1} others are not; lower learning_rate {self.config.learning_rate:g}; "
                f"{_last_good(self.state)}"
            )
        trainer.save_checkpoint(self.state)
        self.kept_at = monotonic()

    def _report(
        self, trainer: pl.Trainer, module: _ExitsModule, loss: float, accuracies: tuple[float, ...] | None = None
    ) -> None:
        if self.on_progress and trainer.global_rank == 0:
            self.on_progress(
                Progress(
                    epoch=len(module.history),
                    epochs=self.config.epochs,
                    step=trainer.global_step,
                    steps=module.steps_per_epoch * self.config.epochs,
                    loss=loss,
                    accuracies=accuracies,
                )
            )


class _StateFile(CheckpointIO):
    """Lightning's state as safetensors and JSON instead of a pickle."""

    def __init__(self, identity: Mapping[str, Any]) -> None:
        self.identity = identity

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_state(path, checkpoint, self.identity)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_state(path, self.identity)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def _own(module: pl.LightningModule) -> _ExitsModule:
    assert isinstance(module, _ExitsModule)
    return module


def _laid_out(samples: Tensor) -> Tensor:
    """Return images in the memory layout in which convolutions are fastest."""
    return samples.contiguous(memory_format=torch.channels_last) if samples.ndim == 4 else samples


def _last_good(state: Path) -> str:
    return f"the last good state is {state}" if state.exists() else "there is no state yet to go back to"


def _is_lack_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning from printing what it found and what it recommends; errors are raised, not printed."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PossibleUserWarning)
            warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)  # Lightning's use of torch
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _own_sigint() -> Iterator[None]:
    """Give back the handler of Ctrl-C, which Lightning switches off when it is pressed."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)
