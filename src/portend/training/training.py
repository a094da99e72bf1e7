"""Train the exits of a backbone: all together, on a frozen backbone, or only those that a plan uses.

The loss is the weighted sum of the trained exits' losses (paper, Sec. II-B: all exits, each with weight 1).
Everything random is a function of the seed and the step, so a resumed run ends with the same bits as an
uninterrupted one on the same machine. Training itself runs on Lightning (``fitting.py``).

Axes: E trained exits, N branches.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from portend.data.dataset import Dataset, Splits
from portend.errors import InvalidValue, MismatchError, StorageError, TrainingError
from portend.networks.backbone import Backbone
from portend.networks.checkpoint import save_checkpoint
from portend.networks.evaluators import TorchEvaluator
from portend.networks.scoring import check_fit, score_samples
from portend.networks.split import are_probabilities
from portend.networks.tensorfile import tensors_sha256
from portend.networks.tracing import evaluating
from portend.training.config import (
    EpochRecord,
    Parts,
    Precision,
    Progress,
    TrainingConfig,
    TrainingResult,
    write_history,
)
from portend.training.state import read_state

__all__ = ["train"]

_IDLE = ("tensorboard", "workers", "checkpoint_minutes")  # settings that do not change the weights


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
            from portend.training.fitting import fit

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
