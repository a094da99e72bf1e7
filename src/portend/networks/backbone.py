"""A network as the planner sees it: a chain of N blocks with exit branches after some or all.

Axes: B batch, N blocks (N+1 cuts), K classes, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from portend.errors import InvalidValue
from portend.networks.inplace import leave_input_alone
from portend.networks.tensorfile import tensors_sha256
from portend.networks.tracing import evaluating
from portend.values.backbone import BackboneSpec

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
    """A chain of N blocks, each followed by an exit branch (paper, Sec. II-A) or by none; the last has one.

    A block or branch that writes into its input works on a copy, for others read the tensor at the cut too.

    Attributes:
        name: zoo name; architecture: JSON-able arguments with which ``zoo.build(name, **architecture)`` rebuilds it.
        block_names: N names; blocks: N modules; branches: N modules, None where there is no branch.
        exits: the cuts that have a branch, increasing.
        num_classes: K; input_shape: of one sample, such as (C, H, W); input_dtype: of its tensor. Whole numbers
            (tokens) may also come as float32, which holds them exactly up to 16,777,216.
        inference_only: whether the blocks do what evaluation does also in training mode, so that only exits can be
            trained.
    """

    def __init__(
        self,
        *,
        name: str,
        blocks: Mapping[str, nn.Module],
        branches: Sequence[nn.Module | None],
        num_classes: int,
        input_shape: tuple[int, ...],
        architecture: Mapping[str, Any],
        input_dtype: torch.dtype = torch.float32,
        inference_only: bool = False,
        tidy: bool = False,
    ) -> None:
        """With ``tidy`` no block or branch writes into its input; else each is tried, which takes some milliseconds."""
        super().__init__()
        if len(blocks) != len(branches) or not blocks:
            raise InvalidValue(
                f"each block has one exit branch or None, but got {len(blocks)} blocks and {len(branches)} branches; "
                "give as many branches as blocks, at least one"
            )
        if branches[-1] is None:
            raise InvalidValue("the last block has an exit branch, for samples that left nowhere, but it is None")
        self.name = name
        self.block_names = tuple(blocks)
        self.blocks = nn.ModuleList(blocks.values())
        self.branches = nn.ModuleList(branches)  # type: ignore[arg-type]  # None is kept as None
        self.exits = tuple(cut for cut, branch in enumerate(branches, start=1) if branch is not None)
        self.num_classes = num_classes
        self.input_shape = tuple(input_shape)
        self.input_dtype = input_dtype
        self.inference_only = inference_only
        self.architecture = dict(architecture)
        if not input_dtype.is_floating_point and not isinstance(self.blocks[0], fx.GraphModule):
            self.blocks[0].register_forward_pre_hook(partial(_take_as, input_dtype))
        if not tidy:
            self._leave_cuts_alone()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the logits [B, K] of each branch there is, in the order of ``exits``, for samples [B, ...]."""
        logits = []
        for block, branch in zip(self.blocks, self.branches, strict=True):
            x = block(x)
            if branch is not None:
                logits.append(branch(x))
        return logits

    def segment(self, start: int, end: int, *, branch: bool = True) -> Segment:
        """Return blocks ``start:end`` (cuts, half-open), with the exit branch at ``end`` unless ``branch`` is False.

        Where the cut ``end`` has no exit branch, the segment has none. Chained segments compute bit for bit what
        the whole backbone computes.

        Raises:
            InvalidValue: not 0 <= start < end <= N.
        """
        count = len(self.blocks)
        if not 0 <= start < end <= count:
            raise InvalidValue(
                f"a segment lies between two cuts with 0 <= start < end <= {count}, but got {start}:{end}; "
                "each segment needs at least one block"
            )
        asked = branch and end in self.exits
        segment = Segment(list(self.blocks[start:end]), self.branches[end - 1] if asked else None)
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
            exits=None if len(self.exits) == len(self.blocks) else self.exits,
        )

    def _leave_cuts_alone(self) -> None:
        """Let whatever writes into the tensor at its cut work on a copy."""
        device = next((weights.device for weights in self.state_dict().values()), None)
        x = torch.zeros(1, *self.input_shape, dtype=self.input_dtype, device=device)
        with evaluating(self):
            for block, branch in zip(self.blocks, self.branches, strict=True):
                leave_input_alone(block, tuple(x.shape[1:]), x.dtype)
                x = block(x)
                if branch is not None:
                    leave_input_alone(branch, tuple(x.shape[1:]), x.dtype)

    @torch.no_grad()
    def _cut_shapes(self) -> tuple[tuple[int, ...], ...]:
        was_training = self.training
        self.eval()
        x = torch.zeros(1, *self.input_shape, dtype=self.input_dtype)
        shapes = [tuple(x.shape[1:])]
        for block in self.blocks:
            x = block(x)
            shapes.append(tuple(x.shape[1:]))
        self.train(was_training)
        return tuple(shapes)


def _take_as(dtype: torch.dtype, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0].to(dtype), *args[1:])


def _weight_bytes(module: nn.Module | None) -> float:
    """Bytes of the parameters and buffers of a module; none where there is no module."""
    return 0.0 if module is None else float(sum(tensor.nbytes for tensor in module.state_dict().values()))
