"""What lossy codecs do to the answers: the values at every cut, and the accuracy of all exits after it.

The tensor at one cut goes through the codec's own numbers and back (``runtime.codecs``; compressing loses nothing),
and the blocks after it run on what comes out. Running them from every cut costs about N/2 times what running the whole
network does, for each way to write numbers.

Axes: S samples, B batch, N blocks (N+1 cuts), C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from portend.data.dataset import Dataset
from portend.errors import InvalidValue
from portend.networks.evaluators import Evaluator
from portend.networks.scoring import check_fit
from portend.runtime.codecs import make_numbers
from portend.values.backbone import BackboneSpec, channel_axis
from portend.values.codecs import CodecLoss, ValueRange
from portend.values.plan import LOSSY

__all__ = ["lossy", "profile_codecs", "profile_losses", "profile_ranges"]

Indices = NDArray[np.int64]
Progress = Callable[[int, int], None]

_BATCH_VALUES = 1 << 22  # of the largest tensor of a batch: 16 MiB


def lossy(codecs: Sequence[str]) -> list[str]:
    """Return the lossy ways to write numbers (``plan.LOSSY``) that the codecs use."""
    used = {codec.partition("+")[0] for codec in codecs}
    return [name for name in LOSSY if name in used]


def profile_codecs(
    evaluator: Evaluator,
    dataset: Dataset,
    indices: Indices,
    codecs: Sequence[str],
    *,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> tuple[tuple[ValueRange, ...], dict[str, CodecLoss]]:
    """Return the ranges that int8 needs and the losses of the lossy ones among the codecs; empty if there are none.

    ``on_progress`` is called with (what, done, total); the rest as in ``profile_ranges`` and ``profile_losses``.
    """
    numbers = lossy(codecs)

    def told(what: str) -> Progress | None:
        return None if on_progress is None else partial(on_progress, what)

    ranges: tuple[ValueRange, ...] = ()
    if any(name.startswith("int8") for name in numbers):
        ranges = profile_ranges(evaluator, dataset, indices, on_progress=told("codecs, ranges"))
    return ranges, profile_losses(
        evaluator, dataset, indices, ranges, numbers=numbers, on_progress=told("codecs, losses")
    )


def profile_ranges(
    evaluator: Evaluator, dataset: Dataset, indices: Indices, *, on_progress: Progress | None = None
) -> tuple[ValueRange, ...]:
    """Return least and largest value of the tensor and of each channel at the cuts 0 … N−1, over the samples.

    Raises:
        MismatchError: the network does not take this dataset's samples.
        InvalidValue: a value is not finite, or too large for int8.
    """
    check_fit(evaluator.spec, dataset)
    shapes = evaluator.spec.cut_shapes[:-1]
    ends = [np.array([np.full(s[channel_axis(s)], x) for x in (np.inf, -np.inf)]) for s in shapes]
    rows = 0
    for x in _batches(evaluator.spec, dataset, indices):
        for cut in range(len(shapes)):
            axis = 1 + channel_axis(shapes[cut])
            others = tuple(place for place in range(x.ndim) if place != axis)
            ends[cut][0] = np.minimum(ends[cut][0], x.min(axis=others))
            ends[cut][1] = np.maximum(ends[cut][1], x.max(axis=others))
            if cut + 1 < len(shapes):
                x = evaluator.block(cut, x)
        rows += len(x)
        if on_progress:
            on_progress(rows, len(indices))
    return tuple(
        ValueRange(tensor=np.array([low.min(), high.max()]), channels=np.array([low, high])) for low, high in ends
    )


def profile_losses(
    evaluator: Evaluator,
    dataset: Dataset,
    indices: Indices,
    ranges: Sequence[ValueRange],
    *,
    numbers: Sequence[str] = LOSSY,
    on_progress: Progress | None = None,
) -> dict[str, CodecLoss]:
    """Return, for each lossy way to write numbers, the answers that the exits after each cut lose and gain by it.

    Whole numbers (tokens at cut 0) are not rounded: there every right answer counts as lost.

    Args:
        indices: S samples; ranges: of the values at the cuts 0 … N−1 (``profile_ranges``), for int8.
        on_progress: called with (done, S · N) after each cut of a batch; the first cuts take longest.

    Raises:
        MismatchError: the network does not take this dataset's samples.
    """
    check_fit(evaluator.spec, dataset)
    unknown = set(numbers) - set(LOSSY)
    if unknown:
        raise InvalidValue(f"what loses accuracy is {', '.join(LOSSY)}, but got {sorted(unknown)}")
    if not numbers:
        return {}
    spec = evaluator.spec
    blocks, shapes = spec.num_blocks, spec.cut_shapes
    limits = ranges or (None,) * blocks
    ways = {name: [make_numbers(name, shapes[cut], limits[cut]) for cut in range(blocks)] for name in numbers}
    counts = {name: np.full((2, blocks + 1, blocks), np.nan) for name in numbers}
    exits = np.array(spec.exit_cuts)
    for table in counts.values():
        for cut in range(blocks):
            table[:, cut, exits[exits > cut] - 1] = 0.0
    rows = 0
    for x in _batches(spec, dataset, indices):
        labels = dataset.labels[indices[rows : rows + len(x)], None]
        plain = evaluator.answers(0, x) == labels
        for cut in range(blocks):
            after = exits > cut
            for name, way in ways.items():
                if cut == 0 and np.issubdtype(x.dtype, np.integer):  # another token is another sample
                    counts[name][0, cut, exits - 1] += plain.sum(axis=0)
                    continue
                right = evaluator.answers(cut, way[cut].unpack(way[cut].pack(x))) == labels
                counts[name][0, cut, exits[after] - 1] += (plain[:, after] & ~right).sum(axis=0)
                counts[name][1, cut, exits[after] - 1] += (right & ~plain[:, after]).sum(axis=0)
            if cut + 1 < blocks:
                x = evaluator.block(cut, x)
            if on_progress:
                on_progress(rows * blocks + (cut + 1) * len(x), len(indices) * blocks)
        rows += len(x)
    return {name: CodecLoss(lost=table[0], gained=table[1], samples=len(indices)) for name, table in counts.items()}


def _batches(spec: BackboneSpec, dataset: Dataset, indices: Indices) -> Iterator[NDArray[np.float32]]:
    """The samples' tensors [B, ...], so many at once that the largest tensor at a cut stays small."""
    size = max(1, min(256, _BATCH_VALUES // max(int(np.prod(shape)) for shape in spec.cut_shapes)))
    for first in range(0, len(indices), size):
        yield dataset.tensors(indices[first : first + size])
