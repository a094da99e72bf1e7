"""The verb train: the exits of a network, on a data set, in one call."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from portend.data.dataset import Dataset, draw, make_splits
from portend.data.sources import load_dataset
from portend.errors import ExportError
from portend.networks.backbone import Backbone
from portend.networks.checkpoint import read_provenance
from portend.networks.exporting import export, is_of
from portend.training.config import Progress, TrainingConfig
from portend.training.training import train as fit
from portend.verbs.network import Trained

__all__ = ["train"]

_USUAL = TrainingConfig(epochs=10, batch_size=64, learning_rate=0.02)


def train(
    network: Backbone,
    data: str | Dataset,
    *,
    out: str | Path,
    config: TrainingConfig | None = None,
    seed: int = 0,
    samples: int | None = None,
    restart: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    **changes: Any,
) -> Trained:
    """Train the exits of a network and leave its weights, history and ONNX file in the folder ``out``.

    An interrupted training goes on where it was when the call is made again with the same network as it was before
    training; one that is finished is not repeated.

    Args:
        network: of ``multi_exit``, ``adopt`` or the zoo; its weights are trained in place.
        data: as ``folder:pictures`` or ``digits`` (docs/data.md), or a data set.
        config: how to train; by default 10 epochs. Its fields can also be given by name, such as ``epochs=30`` or
            ``freeze_backbone=True``.
        seed: of the splits into training, profiling and test. samples: most that train; None: the whole split.
        restart: begin anew.
        on_progress: called after each step.

    Raises:
        MismatchError: network and data do not fit each other. DataError: the data cannot be loaded.
        TrainingError: the loss is not finite, or the folder holds another training. StorageError: it cannot be written.

    Example:
        >>> net = pt.multi_exit(pt.split(model, example), num_classes=10)
        >>> trained = pt.train(net, "folder:pictures", out="runs/a", epochs=20)
    """
    folder = Path(out)
    dataset = load_dataset(data) if isinstance(data, str) else data
    splits = make_splits(dataset, seed=seed)
    if samples is not None:
        splits = replace(splits, train=draw(splits.train, samples, seed=seed))
    result = fit(
        network, dataset, splits, replace(config or _USUAL, **changes), folder, on_progress=on_progress,
        resume=not restart,
    )  # fmt: skip
    path = folder / "network.onnx"
    try:
        if not is_of(path, network):
            export(network, provenance=read_provenance(result.checkpoint)).save(path)
    except ExportError as error:
        warnings.warn(f"the network stays with PyTorch: {error}", stacklevel=2)
        path = result.checkpoint
    return Trained(network=path, checkpoint=result.checkpoint, accuracies=result.accuracies)
