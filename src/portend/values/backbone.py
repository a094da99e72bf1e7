"""The network as planning sees it: a chain of blocks, the tensors at its cuts, and where exits are.

Axes: N blocks, N+1 cuts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from portend.errors import MismatchError, law
from portend.values.arrays import Floats
from portend.values.compute_fit import Features

__all__ = ["BackboneSpec", "channel_axis"]

_FLOAT_BYTES: Final = 4  # activations are float32


def _numbered(values: Sequence[object]) -> tuple[int, ...]:
    """Values by numbers from 0 on, in the order in which they first come."""
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return tuple(numbers[value] for value in values)


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneSpec:
    """The network: a chain of N blocks.

    Attributes:
        name: such as ``resnet20``.
        block_names: N names; cut c lies after ``block_names[c-1]``.
        num_classes: number of labels.
        cut_shapes: N+1 tensor shapes of one sample, without the batch axis.
        weights_sha256: digest of the weights that were profiled.
        block_bytes, branch_bytes: N sizes each of the weights of the blocks and of the exit branches; empty: unknown.
        exits: cuts that have an exit branch, increasing; the last cut is one of them. None: all of 1–N.
    """

    name: str
    block_names: tuple[str, ...]
    num_classes: int
    cut_shapes: tuple[tuple[int, ...], ...]
    weights_sha256: str = ""
    block_bytes: tuple[float, ...] = ()
    branch_bytes: tuple[float, ...] = ()
    exits: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        law(len(self.block_names) >= 1, "a backbone has at least one block, but got none")
        law(self.num_classes >= 2, f"a classifier has at least two classes, but got {self.num_classes}")
        law(
            len(self.cut_shapes) == len(self.block_names) + 1,
            f"{len(self.block_names)} blocks have {len(self.block_names) + 1} cuts, "
            f"but got {len(self.cut_shapes)} cut shapes",
        )
        for name, sizes in (("block_bytes", self.block_bytes), ("branch_bytes", self.branch_bytes)):
            law(
                len(sizes) in (0, len(self.block_names)) and all(0 <= size < np.inf for size in sizes),
                f"{name} are {len(self.block_names)} sizes of at least 0, or none where they are not known, "
                f"but got {sizes}",
            )
        cuts = (0, *self.exit_cuts)
        law(
            all(a < b for a, b in pairwise(cuts)) and cuts[-1] == self.num_blocks,
            f"cuts with an exit branch increase within 1–{self.num_blocks} and end with {self.num_blocks}, "
            f"but got {self.exits}; the last block always has one",
        )

    @property
    def num_blocks(self) -> int:
        return len(self.block_names)

    def partition_bytes(self) -> Floats:
        """Bytes of memory that blocks start:end need, [N+1, N+1] (``docs/model.md``, Memory); NaN elsewhere.

        Their weights, those of the branch at ``end``, and the largest input and output of one of the blocks together.

        Raises:
            MismatchError: the sizes of the weights are not known.
        """
        if not (self.block_bytes and self.branch_bytes):
            raise MismatchError(
                f"the memory that {self.name} needs is not known, for the profile has no sizes of its weights; profile "
                "it again, or leave the memory of tiers out of the topology and of the problem"
            )
        count = self.num_blocks
        tensors = _FLOAT_BYTES * np.array([math.prod(shape) for shape in self.cut_shapes], dtype=np.float64)
        weights = np.concatenate(([0.0], np.cumsum(self.block_bytes)))
        table = np.full((count + 1, count + 1), np.nan)
        for start in range(count):
            held = np.maximum.accumulate(tensors[start:-1] + tensors[start + 1 :])
            table[start, start + 1 :] = weights[start + 1 :] - weights[start] + self.branch_bytes[start:] + held
        return table

    def features(self) -> Features:
        """What partitions have in common: blocks of equal shapes before and after, and branches of equal shape."""
        shapes, exits = self.cut_shapes, set(self.exit_cuts)
        ends = [(shape, cut in exits) for cut, shape in enumerate(shapes[1:], start=1)]
        return Features(_numbered(list(pairwise(shapes))), _numbered(ends))

    @property
    def exit_cuts(self) -> tuple[int, ...]:
        """The cuts that have an exit branch."""
        return tuple(range(1, self.num_blocks + 1)) if self.exits is None else self.exits


def channel_axis(shape: tuple[int, ...]) -> int:
    """Axis of a sample's channels: the last of a sequence [T, D], else the first ([C, H, W], [D])."""
    return 1 if len(shape) == 2 else 0
