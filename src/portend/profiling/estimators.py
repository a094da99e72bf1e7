"""Three ways to estimate the compute time of a partition, against partitions that were measured (paper, Fig. 5).

Layer-wise: the sum of its layers, each a module without modules of its own, run alone on the input that it gets in
the network. Block-wise: the sum of its blocks and its exit branch, each run alone. Partition-wise: the partition
itself, run as a whole with soft-max and score. All of that on one sample; what it is held against are the same
partitions, on other samples. Everything is timed in turns, in a new random order each time, so that a drift of
the machine's speed hits all alike.

Axes: P partitions, N blocks.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from portend.errors import law
from portend.networks.backbone import Backbone
from portend.networks.scores import score

__all__ = ["Estimates", "compare_estimators"]

Floats = NDArray[np.float64]
Work = Callable[[], object]
_Key = tuple[str, int, int]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Estimates:
    """Estimated and measured seconds of partitions.

    Attributes:
        partitions: int64 [P, 2], start and end; measured_s: float64 [P], on other samples than the estimates.
        estimated_s: float64 [P] by estimator: ``layer-wise``, ``block-wise``, ``partition-wise``.
    """

    partitions: NDArray[np.int64]
    measured_s: Floats
    estimated_s: Mapping[str, Floats]

    def errors(self) -> dict[str, dict[str, float]]:
        """Return by estimator: ``rmse_ms``, ``bias_ms`` (mean of estimated - measured), ``bias`` (of the same,
        relative), and ``slope`` of the line through the origin from measured to estimated."""
        found = {}
        for name, estimated in self.estimated_s.items():
            off = estimated - self.measured_s
            found[name] = {
                "rmse_ms": 1e3 * float(np.sqrt(np.mean(off**2))),
                "bias_ms": 1e3 * float(off.mean()),
                "bias": float((off / self.measured_s).mean()),
                "slope": float(estimated @ self.measured_s / (self.measured_s @ self.measured_s)),
            }
        return found


def compare_estimators(
    backbone: Backbone,
    samples: Sequence[ArrayLike],
    *,
    partitions: int = 300,
    rounds: int = 20,
    criterion: str = "entropy",
    seed: int = 0,
    clock: Callable[[], int] = time.perf_counter_ns,
    on_progress: Callable[[int, int], None] | None = None,
) -> Estimates:
    """Time a network's layers, blocks and partitions in this process, eagerly, and return what they estimate.

    Args:
        samples: tensors of the network's input shape; estimates are taken on the first, truth on the others.
        partitions: so many, drawn at random where there are more. rounds: how often everything is timed; the
            median counts.
        clock: gives ns. on_progress: called with (done, total) rounds.

    Raises:
        InvalidValue: fewer than two samples, no round, or no partition.
    """
    law(
        len(samples) >= 2 and rounds >= 1 and partitions >= 1,
        "a comparison needs two samples, a round and a partition, but got "
        f"{len(samples)} samples, {rounds} rounds, {partitions} partitions",
    )
    rng = random.Random(seed)
    pairs = _drawn(len(backbone.blocks), partitions, rng)
    backbone.eval()
    with torch.inference_mode():
        inputs = _inputs(backbone, samples[0])
        alone = {
            **_layers(backbone, inputs),
            **_blocks(backbone, inputs),
            **{("whole", *pair): _whole(backbone, pair, inputs, criterion) for pair in pairs},
        }
        times: dict[_Key, list[float]] = defaultdict(list)
        for number in range(rounds):
            others = _inputs(backbone, samples[1 + number % (len(samples) - 1)])
            truth = {("truth", *pair): _whole(backbone, pair, others, criterion) for pair in pairs}
            _time_all(list((alone | truth).items()), times, rng, clock)
            if on_progress:
                on_progress(number + 1, rounds)
    return _summed(pairs, {key: float(np.median(seconds)) for key, seconds in times.items()})


def _drawn(blocks: int, most: int, rng: random.Random) -> list[tuple[int, int]]:
    pairs = [(start, end) for start in range(blocks) for end in range(start + 1, blocks + 1)]
    return sorted(rng.sample(pairs, min(most, len(pairs))))


def _inputs(backbone: Backbone, sample: ArrayLike) -> list[torch.Tensor]:
    """The tensor at each cut, N+1 of them, with a batch axis."""
    tensors = [torch.from_numpy(np.ascontiguousarray(sample))[None]]
    for block in backbone.blocks:
        tensors.append(block(tensors[-1]))
    return tensors


def _layers(backbone: Backbone, inputs: Sequence[torch.Tensor]) -> dict[_Key, Work]:
    """Each call of a module without modules, by block (counted from 0) and number, blocks before branches."""
    found: dict[_Key, Work] = {}
    for kind, modules, tensors in (
        ("layer", backbone.blocks, inputs[:-1]),
        ("branch layer", backbone.branches, inputs[1:]),
    ):
        for index, (module, tensor) in enumerate(zip(modules, tensors, strict=True)):
            if isinstance(module, nn.Module):
                calls = _calls(module, tensor)
                found |= {(kind, index, number): call for number, call in enumerate(calls)}
    return found


def _calls(module: nn.Module, tensor: torch.Tensor) -> list[Work]:
    """What the layers inside a module do when it runs on a tensor, each with its own input."""
    calls: list[Work] = []

    def note(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        kept = tuple(each.clone() if isinstance(each, torch.Tensor) else each for each in arguments)
        calls.append(partial(layer.forward, *kept))

    hooks = [
        layer.register_forward_pre_hook(note)
        for layer in module.modules()
        if not list(layer.children()) and not isinstance(layer, nn.Identity)
    ]
    module(tensor)
    for hook in hooks:
        hook.remove()
    return calls


def _blocks(backbone: Backbone, inputs: Sequence[torch.Tensor]) -> dict[_Key, Work]:
    found: dict[_Key, Work] = {}
    for index, (block, branch) in enumerate(zip(backbone.blocks, backbone.branches, strict=True)):
        found["block", index, 0] = partial(block, inputs[index])
        if isinstance(branch, nn.Module):
            found["branch", index, 0] = partial(branch, inputs[index + 1])
    return found


def _whole(backbone: Backbone, pair: tuple[int, int], inputs: Sequence[torch.Tensor], criterion: str) -> Work:
    segment = backbone.segment(*pair)

    def run() -> None:
        _, logits = segment(inputs[pair[0]])
        if logits is not None:
            float(score(logits, criterion)[0])
            int(logits[0].argmax())

    return run


def _time_all(
    work: list[tuple[_Key, Work]], times: dict[_Key, list[float]], rng: random.Random, clock: Callable[[], int]
) -> None:
    """Run each piece of work twice in random order; the second time, on warm caches, counts."""
    for key, run in rng.sample(work, len(work)):
        run()
        began = clock()
        run()
        times[key].append(1e-9 * (clock() - began))


def _summed(pairs: Sequence[tuple[int, int]], seconds: Mapping[_Key, float]) -> Estimates:
    """What layers and blocks add up to, for each partition with the branch at its end."""
    parts: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for (kind, index, _), each in seconds.items():
        if kind not in ("whole", "truth"):
            parts[kind][index] += each

    def summed(inside: str, at_end: str) -> Floats:
        return np.array([sum(parts[inside][i] for i in range(a, b)) + parts[at_end][b - 1] for a, b in pairs])

    return Estimates(
        partitions=np.array(pairs, dtype=np.int64),
        measured_s=np.array([seconds["truth", a, b] for a, b in pairs]),
        estimated_s={
            "layer-wise": summed("layer", "branch layer"),
            "block-wise": summed("block", "branch"),
            "partition-wise": np.array([seconds["whole", a, b] for a, b in pairs]),
        },
    )
