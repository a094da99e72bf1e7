"""A network as the planner sees it: a chain of N blocks with an exit branch after each.

Axes: B batch, N blocks (N+1 cuts), K classes, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from portend.errors import InvalidValue
from portend.models.tensorfile import tensors_sha256
from portend.profile import BackboneSpec

__all__ = ["Backbone", "Segment"]


class Segment(nn.Module):
    """Blocks ``start:end`` of a backbone and, optionally, the exit branch at cut ``end``.

    The weights are the backbone's own, not copies: ``train()``, ``eval()`` and ``to()`` act on both.
    """

    def __init__(self, blocks: Sequence[nn.Module], branch: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.branch = branch

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the features at cut ``end`` [B, ...] and the branch's logits [B, K], or None without a branch."""
        for block in self.blocks:
            x = block(x)
        return x, None if self.branch is None else self.branch(x)


class Backbone(nn.Module):
    """A chain of N blocks, each followed by an exit branch (paper, Sec. II-A).

    Attributes:
        name: zoo name; architecture: JSON-able arguments with which ``zoo.build(name, **architecture)`` rebuilds it.
        block_names: N names; blocks, branches: N modules each.
        num_classes: K; input_shape: (C, H, W) of one sample.
    """

    def __init__(
        self,
        *,
        name: str,
        blocks: Mapping[str, nn.Module],
        branches: Sequence[nn.Module],
        num_classes: int,
        input_shape: tuple[int, int, int],
        architecture: Mapping[str, Any],
    ) -> None:
        super().__init__()
        if len(blocks) != len(branches) or not blocks:
            raise InvalidValue(
                f"each block has one exit branch, but got {len(blocks)} blocks and {len(branches)} branches; "
                "give as many branches as blocks, at least one"
            )
        self.name = name
        self.block_names = tuple(blocks)
        self.blocks = nn.ModuleList(blocks.values())
        self.branches = nn.ModuleList(branches)
        self.num_classes = num_classes
        self.input_shape = input_shape
        self.architecture = dict(architecture)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the logits of all N branches, [B, K] each, for samples [B, C, H, W]."""
        logits = []
        for block, branch in zip(self.blocks, self.branches, strict=True):
            x = block(x)
            logits.append(branch(x))
        return logits

    def segment(self, start: int, end: int, *, branch: bool = True) -> Segment:
        """Return blocks ``start:end`` (cuts, half-open), with the exit branch at ``end`` unless ``branch`` is False.

        Chained segments compute bit for bit what the whole backbone computes.

        Raises:
            InvalidValue: not 0 <= start < end <= N.
        """
        count = len(self.blocks)
        if not 0 <= start < end <= count:
            raise InvalidValue(
                f"a segment lies between two cuts with 0 <= start < end <= {count}, but got {start}:{end}; "
                "each segment needs at least one block"
            )
        segment = Segment(list(self.blocks[start:end]), self.branches[end - 1] if branch else None)
        segment.training = self.training
        return segment

    def spec(self) -> BackboneSpec:
        """Return names, cut shapes (one sample, no batch axis), sizes in bytes and the digest of the weights.

        The shapes are those that a zero sample takes on in evaluation mode.
        """
        return BackboneSpec(
            name=self.name,
            block_names=self.block_names,
            num_classes=self.num_classes,
            cut_shapes=self._cut_shapes(),
            weights_sha256=tensors_sha256(self.state_dict()),
            block_bytes=tuple(map(_weight_bytes, self.blocks)),
            branch_bytes=tuple(map(_weight_bytes, self.branches)),
        )

    @torch.no_grad()
    def _cut_shapes(self) -> tuple[tuple[int, ...], ...]:
        was_training = self.training
        self.eval()
        x = torch.zeros(1, *self.input_shape)
        shapes = [tuple(x.shape[1:])]
        for block in self.blocks:
            x = block(x)
            shapes.append(tuple(x.shape[1:]))
        self.train(was_training)
        return tuple(shapes)


def _weight_bytes(module: nn.Module) -> float:
    """Bytes of the parameters and buffers of a module."""
    return float(sum(tensor.nbytes for tensor in module.state_dict().values()))
