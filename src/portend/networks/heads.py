"""Exit branches that fit the tensor at a cut, and a chain of blocks with them as a backbone.

Axes: B batch, K classes; a sample's features lie on one *channel axis*, its other axes are places or time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from portend.errors import InvalidValue, MismatchError
from portend.importing import import_object
from portend.networks.backbone import Backbone
from portend.networks.inplace import leave_input_alone
from portend.networks.split import Chain

__all__ = ["Head", "PooledLinear", "TokenLinear", "load_head", "multi_exit"]

Head = Callable[[tuple[int, ...], int], nn.Module]
"""Makes an exit branch for a tensor of the given shape (one sample, no batch axis) and number of classes."""


class PooledLinear(nn.Module):
    """Mean over all axes but the channels', then a linear layer: [B, ...] to logits [B, K].

    ``axis`` counts the axes of one sample: 0 for [C, H, W], 2 for [H, W, C], 1 for a sequence [T, D], 0 for [D].
    """

    def __init__(self, shape: tuple[int, ...], num_classes: int, *, axis: int = 0) -> None:
        super().__init__()
        self.pooled = tuple(1 + place for place in range(len(shape)) if place != axis)
        self.linear = nn.Linear(shape[axis], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.mean(dim=self.pooled) if self.pooled else x)
        return logits


class TokenLinear(nn.Module):
    """A linear layer on the first token of a sequence: [B, T, D] to logits [B, K]."""

    def __init__(self, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        if len(shape) != 2:
            raise InvalidValue(f"the first token is that of a sequence (tokens, features), but got the shape {shape}")
        self.linear = nn.Linear(shape[1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x[:, 0])
        return logits


def load_head(text: str) -> Head:
    """Return the head that ``text`` names: ``pooled``, ``token`` or ``module:object``, a callable (shape, classes).

    Raises:
        InvalidValue: there is no such module or callable.
    """
    if text == "token":
        return TokenLinear
    if text == "pooled":
        return PooledLinear
    found = import_object(text, "the head") if ":" in text else None
    if not callable(found):
        raise InvalidValue(f"a head is 'pooled', 'token' or a callable 'module:object', but got {text!r}")
    head: Head = found
    return head


def multi_exit(
    chain: Chain,
    *,
    num_classes: int | None = None,
    exits: Iterable[int | str] | None = None,
    heads: str | Head = "pooled",
    name: str = "network",
    architecture: Mapping[str, Any] = MappingProxyType({}),
    seed: int = 0,
) -> Backbone:
    """Return the blocks of ``chain`` with exit branches as a backbone on the same weights.

    The last exit is the network's own classifier, so its output is the network's bit for bit, unless
    ``num_classes`` differs from it: then it is a new one.

    Args:
        exits: cuts (1–N) or names of blocks after which there is a branch; the last always has one. None: all.
        heads: what makes the branches (see ``load_head``); ``pooled`` fits maps, sequences and flat features.
        name, architecture: how the zoo builds the network again.
        seed: of the new weights; the caller's random state is left alone.

    Raises:
        InvalidValue: a cut or block that does not exist, or fewer than two classes.
        MismatchError: a head does not fit the tensor at its cut.

    Example:
        >>> net = pt.multi_exit(pt.split(model, example), num_classes=10, exits=[2, 4])
    """
    classes = chain.num_outputs if num_classes is None else num_classes
    if classes < 2:
        raise InvalidValue(
            f"a classifier has at least two classes, but got {classes}; give num_classes, and where the network itself "
            "gives no logits [batch, classes] its last exit will be a new one"
        )
    count = len(chain)
    chosen = set(range(1, count + 1)) if exits is None else {_cut(chain, exit) for exit in exits} | {count}
    make = load_head(heads) if isinstance(heads, str) else heads
    branches: list[nn.Module | None] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for cut in range(1, count + 1):
            if cut not in chosen:
                branches.append(None)
            elif cut == count and classes == chain.num_outputs:
                if chain.gives_probabilities:
                    raise InvalidValue(
                        "the network gives probabilities (not negative, with the sum 1), but exits give logits, and "
                        "its softmax is not its last operation; take it out"
                    )
                branches.append(chain.head)
            else:
                branches.append(_branch(chain, cut, classes, make, heads))
    backbone = Backbone(
        name=name,
        blocks=dict(zip(chain.names, chain.blocks, strict=True)),
        branches=branches,
        num_classes=classes,
        input_shape=chain.cut_shapes[0],
        input_dtype=chain.cut_dtypes[0],
        inference_only=chain.inference_only,
        architecture=architecture,
        tidy=True,
    )
    training = chain.blocks[0].training
    for each in (backbone, backbone.blocks, backbone.branches):  # the network's own modules keep their modes
        each.training = training
    for branch in branches:
        if branch is not None and branch is not chain.head:
            branch.train(training)
    return backbone


def _cut(chain: Chain, exit: int | str) -> int:
    if isinstance(exit, str):
        if exit not in chain.names:
            raise InvalidValue(f"there is no block {exit!r}; the blocks are {', '.join(chain.names)}")
        return 1 + chain.names.index(exit)
    if not 1 <= exit <= len(chain):
        raise InvalidValue(f"exit branches lie at the cuts 1–{len(chain)}, but got {exit}")
    return exit


def _branch(chain: Chain, cut: int, classes: int, make: Head, told: object) -> nn.Module:
    """Make the branch at a cut and try it on a batch of two."""
    shape, dtype = chain.cut_shapes[cut], chain.cut_dtypes[cut]
    where = f"the exit branch after {chain.names[cut - 1]}"
    if not dtype.is_floating_point:
        raise MismatchError(f"{where} needs real numbers, but {dtype} crosses there; leave it out with exits=[...]")
    try:
        if make is PooledLinear:
            branch: nn.Module = PooledLinear(shape, classes, axis=chain.channel_axes[cut])
        else:
            branch = make(shape, classes)
        if not isinstance(branch, nn.Module):
            raise TypeError(f"it gives {type(branch).__name__}, not a module")
        branch = branch.to(dtype).eval()
        with torch.no_grad():
            logits = branch(torch.zeros(2, *shape, dtype=dtype))
        leave_input_alone(branch, shape, dtype)
    except Exception as error:
        raise MismatchError(f"{where} does not fit the shape {shape}: the head {told} fails ({error})") from error
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (2, classes):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise MismatchError(
            f"{where} gives logits [batch, {classes}], but the head {told} gives {got} for a batch of 2"
        )
    return branch
