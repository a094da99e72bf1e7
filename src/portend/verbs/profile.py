"""The verbs profile and profile_machine: how a network's samples exit, and what this machine needs for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from portend.data.dataset import Dataset, draw, make_splits
from portend.io.storage import save
from portend.networks.evaluators import Evaluator, load_evaluator
from portend.networks.networkfile import is_exported, read_spec
from portend.profiling.device import DeviceProfiling, profile_device
from portend.profiling.losses import lossy, profile_losses, profile_ranges
from portend.profiling.network import profile_exits
from portend.values.codecs import ValueRange
from portend.values.device_profile import DeviceProfile
from portend.values.execution import Execution
from portend.values.profile import Profile
from portend.verbs.network import Network, network_file, samples_of

__all__ = ["profile", "profile_machine"]

Progress = Callable[[str, int, int], None]


def profile(
    network: Network,
    *,
    data: str | None = None,
    seed: int | None = None,
    device: str = "local",
    execution: Execution | None = None,
    config: DeviceProfiling | None = None,
    criterion: str = "entropy",
    codec_samples: int = 500,
    allow_code: Collection[str] = (),
    out: str | Path | None = None,
    on_progress: Progress = lambda *_: None,
    **changes: Any,
) -> Profile:
    """Measure how samples exit and what this machine needs for the network, and return both as a profile.

    Args:
        network: what ``train`` returned, or a file: a checkpoint or an exported network.
        data: the data set, if not the one of its training (docs/data.md). seed: of its splits.
        device: the name that topologies give to this machine.
        execution: what runs partitions; by default ONNX Runtime for an exported network, PyTorch for a checkpoint.
        config: how to measure (`DeviceProfiling`); its fields can also be given by name, such as
            ``codecs=("float32", "int8")`` or ``budget=0.1``.
        criterion: by which exits decide. codec_samples: profiling samples on which lossy codecs are judged.
        allow_code: ``module:object`` that the file may import and run.
        out: also save it in this file. Then an interrupted profile goes on when the same call is made again.
        on_progress: called with (what, done, total).

    Raises:
        ConfigError: the file names no data set. DataError: the data cannot be loaded.
        DeploymentError: the agents that measure do not start. StorageError: a file cannot be read or written, or what
            was begun is of another network.

    Example:
        >>> profile = pt.profile("runs/digits/checkpoint.safetensors", out="runs/digits/profile.zip")
    """
    asked = _asked(network, data, seed, execution, config, codec_samples, allow_code, changes)
    with _begun(out) as begun:
        measured, ranges = _measured(asked, device, criterion, begun, on_progress)
        exits = profile_exits(
            asked.evaluator(), asked.dataset, asked.indices, on_progress=lambda *at: on_progress("exits", *at)
        ).by(criterion)
        losses = profile_losses(
            asked.evaluator(), asked.dataset, asked.some, ranges, numbers=lossy(asked.config.codecs),
            on_progress=lambda *at: on_progress("losses of codecs", *at),
        )  # fmt: skip
        split = f"profiling, {exits.samples} samples"
        found = Profile(
            backbone=read_spec(asked.path, allow_code=allow_code), exits=exits, devices={device: measured},
            provenance={"data": asked.dataset.name, "seed": str(asked.seed), "split": split},
            ranges=ranges, losses=losses,
        )  # fmt: skip
        if out is not None:
            save(found, out)
    return found


def profile_machine(
    network: Network,
    *,
    data: str | None = None,
    seed: int | None = None,
    device: str = "local",
    execution: Execution | None = None,
    config: DeviceProfiling | None = None,
    criterion: str = "entropy",
    codec_samples: int = 500,
    allow_code: Collection[str] = (),
    out: str | Path | None = None,
    on_progress: Progress = lambda *_: None,
    **changes: Any,
) -> DeviceProfile:
    """Measure what this machine needs for the network, without its exits: for `portend merge` with other machines.

    All as in ``profile``.

    Example:
        >>> pi = pt.profile_machine("network.onnx", device="pi", out="pi.zip")
    """
    asked = _asked(network, data, seed, execution, config, codec_samples, allow_code, changes)
    with _begun(out) as begun:
        measured, _ = _measured(asked, device, criterion, begun, on_progress)
        if out is not None:
            save(measured, out)
    return measured


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """What is measured and how.

    ``indices`` are the profiling split, ``some`` of them judge codecs; ``evaluator`` loads the network once.
    """

    path: Path
    dataset: Dataset
    seed: int
    config: DeviceProfiling
    indices: Any
    some: Any
    allow_code: tuple[str, ...]
    evaluator: Callable[[], Evaluator]


def _asked(
    network: Network, data: str | None, seed: int | None, execution: Execution | None, config: DeviceProfiling | None,
    codec_samples: int, allow_code: Collection[str], changes: dict[str, Any],
) -> _Asked:  # fmt: skip
    path = network_file(network)
    dataset, chosen = samples_of(network, data, seed, allow_code=allow_code)
    if execution is not None or config is None:
        usual = Execution(executor="onnxruntime" if is_exported(path) else "torch")
        changes = {"execution": execution or usual, **changes}
    indices = make_splits(dataset, seed=chosen).profiling
    return _Asked(
        path=path, dataset=dataset, seed=chosen, config=replace(config or DeviceProfiling(), **changes),
        indices=indices, some=draw(indices, min(codec_samples, len(indices)), seed=chosen),
        allow_code=tuple(allow_code), evaluator=cache(partial(load_evaluator, path, allow_code=allow_code)),
    )  # fmt: skip


def _measured(
    asked: _Asked, device: str, criterion: str, begun: Path, on_progress: Progress
) -> tuple[DeviceProfile, tuple[ValueRange, ...]]:
    ranges: tuple[ValueRange, ...] = ()
    if any(name.startswith("int8") for name in asked.config.codecs):
        ranges = profile_ranges(
            asked.evaluator(), asked.dataset, asked.some, on_progress=lambda *at: on_progress("ranges of values", *at)
        )
    measured = profile_device(
        device, asked.path, asked.dataset, asked.config, indices=asked.indices, ranges=ranges, criterion=criterion,
        on_progress=on_progress, allow_code=asked.allow_code, keep=begun,
    )  # fmt: skip
    return measured, ranges


@contextmanager
def _begun(out: str | Path | None) -> Iterator[Path]:
    """A file for what was measured so far: beside ``out``, and gone when the profile is there."""
    if out is None:
        with TemporaryDirectory(prefix="portend-") as folder:
            yield Path(folder) / "begun"
        return
    begun = Path(f"{out}.begun")
    yield begun
    begun.unlink(missing_ok=True)
