"""Any network as a chain of blocks with exactly one tensor across each cut.

A network is traced to a graph of operations. A cut may lie after an operation where one tensor alone is
still needed (an articulation point of the data flow); of the many such places the useful ones are kept,
and the operations in between become blocks. Weights and modules stay the network's own.

Axes: B batch, N blocks (N+1 cuts).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final, get_args

import torch
from torch import Tensor, nn

from portend.errors import SplitError, choice
from portend.networks.dataflow import Cost, Flow, path_of
from portend.networks.inplace import writes_into_input
from portend.networks.tracing import REMEDY_CHECKED, copied, equal, evaluating, only_tensor, seeded, trace

__all__ = ["Chain", "Cost", "Refusal", "are_probabilities", "split", "takes"]


_MOST_TOLD: Final = 3
_SMALL: Final = 1 << 23  # numbers that a block makes of a sample


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """Where a network is not cut: the module, why not, and the tensors that would cross at the best place."""

    module: str
    why: str
    tensors: tuple[str, ...] = ()

    def __str__(self) -> str:
        crossing = f" ({', '.join(self.tensors)})" if self.tensors else ""
        return f"{self.module}: {self.why}{crossing}"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Chain:
    """A network as N blocks and its own classifier; ``sequential()`` computes bit for bit what it computes.

    Attributes:
        names: N names, after the modules in them; blocks: N modules, each from one tensor to one tensor.
        head: what follows the last block (pooling and linear layer); an identity where that is not separable.
        cut_shapes: N+1 shapes of one sample, without the batch axis; cut_dtypes: N+1 types.
        channel_axes: N+1 axes of one sample that hold its features; the others are places or time.
        costs: N costs, in floating-point operations of one sample or seconds of the example; head_cost: of the head.
        num_outputs: number of classes that the network tells apart; 0 where its output is not [B, K].
        refusals: modules that are not cut; notes: what else a user should know.
        inference_only: whether the blocks do in training mode what evaluation does, as was asked for.
        activation: the network's last softmax or sigmoid, which no exit has: exits give logits; None if there is none.
        gives_probabilities: whether head's output is probabilities nevertheless.
    """

    names: tuple[str, ...]
    blocks: tuple[nn.Module, ...]
    head: nn.Module
    cut_shapes: tuple[tuple[int, ...], ...]
    cut_dtypes: tuple[torch.dtype, ...]
    channel_axes: tuple[int, ...]
    costs: tuple[float, ...]
    head_cost: float
    num_outputs: int
    refusals: tuple[Refusal, ...]
    notes: tuple[str, ...]
    inference_only: bool = False
    activation: nn.Module | None = None
    gives_probabilities: bool = False

    def __len__(self) -> int:
        return len(self.blocks)

    def sequential(self) -> nn.Sequential:
        """Return the blocks and the head in a row: a network that computes what the original does."""
        return nn.Sequential(*self.blocks, self.head, *([] if self.activation is None else [self.activation]))

    def describe(self) -> str:
        """Return a table of the blocks, then what is not cut and why, as text."""
        width = max(len(name) for name in (*self.names, "block"))
        whole = (sum(self.costs) + self.head_cost) or 1.0
        rows = [f"{'block':<{width}}  {'output':<16} {'cost':>6}"]
        shapes = ["×".join(map(str, shape)) for shape in self.cut_shapes[1:]]
        for name, shape, cost in zip(self.names, shapes, self.costs, strict=True):
            rows.append(f"{name:<{width}}  {shape:<16} {100 * cost / whole:5.1f} %")
        if not isinstance(self.head, nn.Identity):
            rows.append(f"{'(head)':<{width}}  {self.num_outputs:<16} {100 * self.head_cost / whole:5.1f} %")
        rows += [f"not cut: {refusal}" for refusal in self.refusals[:_MOST_TOLD]]
        if len(self.refusals) > _MOST_TOLD:
            rows.append(f"not cut: {len(self.refusals) - _MOST_TOLD} more, see `refusals`")
        return "\n".join([*rows, *(f"note: {note}" for note in self.notes)])


def split(
    module: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    *,
    blocks: int | None = None,
    at: Sequence[str] | Mapping[str, str] | None = None,
    leaves: Iterable[str | type[nn.Module]] = (),
    cost: Cost = "flops",
    inference_only: bool = False,
) -> Chain:
    """Return ``module`` as the longest useful chain of blocks for inputs such as ``example`` [B, ...].

    The chain shares the network's weights and follows ``train()`` and ``eval()``. Before it is returned it
    has computed the same output as the network, bit for bit, on the example and on a larger batch. All runs are of
    copies: the network stays as it was.

    Args:
        blocks: about so many blocks of balanced cost; fewer where the network has fewer.
        at: names of modules after which alone to cut, in order; a mapping also names the blocks that end there.
        leaves: names or classes of modules to keep whole.
        cost: floating-point operations, or seconds measured here.
        inference_only: cut as inference allows; training mode is not asked, and the blocks cannot be trained.

    Raises:
        SplitError: the network cannot be copied or traced, does not run on the example, has several inputs or
            outputs, or cannot be cut where ``at`` says.

    Example:
        >>> chain = pt.split(torchvision.models.resnet18(), torch.zeros(1, 3, 224, 224), blocks=8)
    """
    choice("the cost of a block", cost, get_args(Cost))
    sample = _one_input(example)
    if blocks is not None and (at is not None or blocks < 1):
        raise SplitError(f"give blocks (at least 1) or at, but got blocks={blocks} and at={at}")
    expected = _outputs(module, sample)
    with seeded():
        traced = trace(module, sample, leaves, output=expected[0][1], inference_only=inference_only)
        flow = Flow(traced, [x for x, _ in expected], cost)
    if at is None:
        ends, names = flow.useful_cuts(), None
    else:
        ends, names = flow.cuts_at(list(at.values() if isinstance(at, Mapping) else at)), at
    head_start = flow.head(ends)
    inner = [cut for cut in ends if cut < head_start]
    bounds = [-1, *inner, head_start]
    if blocks is not None:
        costs = [flow.cost(start, end) for start, end in pairwise(bounds)]
        bounds = [bounds[i] for i in _balanced(costs, blocks)]
    chain = _chain(flow, bounds, list(names) if isinstance(names, Mapping) else None, traced.notes, inference_only)
    if chain.activation is None and all(are_probabilities(output) for _, output in expected):
        chain = replace(chain, gives_probabilities=True)
    _check_equal(module, chain, expected)
    return chain


def _one_input(example: Any) -> Tensor:
    if isinstance(example, tuple | list) and len(example) == 1:
        example = example[0]
    if not isinstance(example, Tensor):
        raise SplitError(
            f"a chain has one input tensor, but the example is {type(example).__name__}; "
            "give one tensor, and wrap a network of several inputs in a module that takes one"
        )
    if example.ndim < 1 or not example.shape[0]:
        raise SplitError(f"the example has a batch axis with at least one sample, but got {tuple(example.shape)}")
    return example


def takes(module: nn.Module, sample: Tensor) -> bool:
    """Return whether a network runs on a sample [B, ...]; it stays as it is."""
    try:
        with seeded(), evaluating(network := copied(module)):
            network(sample.clone())
    except Exception:  # whatever it raises
        return False
    return True


def _outputs(module: nn.Module, sample: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Inputs of two batch sizes with what the network itself makes of them; one where it takes no other size."""
    found: list[tuple[Tensor, Tensor]] = []
    larger = torch.cat([sample, sample[:1]])
    network = copied(module)
    with evaluating(network):
        for x in (sample, larger.roll(1, -1)):  # other values too: what is the same for both follows from shapes
            try:
                with seeded():
                    output = only_tensor(network(x.clone()))
            except SplitError:
                raise
            except Exception as error:
                if found:
                    break
                raise SplitError(
                    f"{type(module).__name__} does not run on the example of shape {tuple(sample.shape)} and type "
                    f"{sample.dtype}: {str(error).splitlines()[0] if str(error) else type(error).__name__}; "
                    "give an example that the network takes"
                ) from error
            found.append((x, output.clone()))
    return found


def _check_equal(module: nn.Module, chain: Chain, expected: list[tuple[Tensor, Tensor]]) -> None:
    again = copied(chain.sequential())
    with evaluating(again):
        for x, output in expected:
            with seeded():
                got = again(x.clone())
            if not equal(got, output):
                raise SplitError(
                    f"the chain must compute what {type(module).__name__} does, but not for a batch of {len(x)}: "
                    f"its trace differs from it; {REMEDY_CHECKED}"
                )


def _balanced(costs: Sequence[float], count: int) -> list[int]:
    """Bounds 0..n of at most ``count`` runs of ``costs`` whose dearest is as cheap as can be."""
    count = min(count, len(costs))
    sums = [0.0]
    for each in costs:
        sums.append(sums[-1] + each)
    best = [[sums[end]] + [float("inf")] * (count - 1) for end in range(len(sums))]
    come = [[0] * count for _ in sums]
    for runs in range(1, count):
        for end in range(runs + 1, len(sums)):
            options = [(max(best[start][runs - 1], sums[end] - sums[start]), start) for start in range(runs, end)]
            best[end][runs], come[end][runs] = min(options)
    bounds = [len(costs)]
    for runs in reversed(range(count)):
        bounds.append(come[bounds[-1]][runs])
    return bounds[::-1]


def _chain(
    flow: Flow, bounds: Sequence[int], names: Sequence[str] | None, notes: tuple[str, ...], inference_only: bool
) -> Chain:
    pairs = list(pairwise(bounds))
    end, last = flow.end, len(flow.steps) - 1
    if end != last:
        notes = (*notes, f"exits give logits, without {flow.name(flow.steps[last])}, with which the network ends")
    head: nn.Module = nn.Identity() if bounds[-1] == end else _block(flow, bounds[-1], end)
    crossing = [flow.values[flow.crosses(cut)] for cut in bounds]
    logits = flow.values[flow.result].shape[1:]
    found = _names(flow, pairs)
    if names is not None:
        found = [*names[: len(found)], *found[len(names) :]]
    return Chain(
        names=tuple(found),
        blocks=tuple(_block(flow, start, stop) for start, stop in pairs),
        head=head,
        cut_shapes=tuple(value.shape[1:] for value in crossing),
        cut_dtypes=tuple(value.dtype or torch.float32 for value in crossing),
        channel_axes=tuple(flow.channel_axis(cut) for cut in bounds),
        costs=tuple(flow.cost(start, stop) for start, stop in pairs),
        head_cost=flow.cost(bounds[-1], end),
        num_outputs=logits[0] if len(logits) == 1 else 0,
        refusals=tuple(_refusals(flow, pairs, found)),
        notes=notes,
        inference_only=inference_only,
        activation=None if end == last else flow.block(end, last),
    )


def are_probabilities(output: Tensor) -> bool:
    """Whether an output is [B, K] with rows that are not negative and have the sum 1."""
    if output.ndim != 2 or output.shape[1] < 2 or not output.is_floating_point():
        return False
    return bool((output >= 0).all()) and bool(((output.float().sum(1) - 1).abs() < 1e-3).all())


def _block(flow: Flow, start: int, end: int) -> nn.Module:
    """A block that leaves its input alone, for whatever else lies at the cut reads the same tensor."""
    block, entry = flow.block(start, end), flow.values[flow.crosses(start)]
    small = sum(flow.values[n].numbers for n in flow.steps[start + 1 : end + 1]) < _SMALL
    writes = writes_into_input(block, entry.shape[1:], entry.dtype or torch.float32, small=small)
    return flow.block(start, end, copying=True) if writes else block


def _names(flow: Flow, pairs: Sequence[tuple[int, int]]) -> list[str]:
    """Name each block after the outermost modules that hold its first and last work, and none of another block."""
    paths = [[path_of(flow.steps[i]) for i in flow.works if start < i <= end] for start, end in pairs]
    found: list[str] = []
    for index, (_, end) in enumerate(pairs):
        others = {
            path[:k] for j, group in enumerate(paths) if j != index for path in group for k in range(len(path) + 1)
        }
        own = paths[index] or [path_of(flow.steps[end])]
        ends = [_outermost(path, others) for path in (own[0], own[-1])]
        name = base = "..".join(dict.fromkeys(ends))
        number = 1
        while name in found:
            number += 1
            name = f"{base}#{number}"
        found.append(name)
    return found


def _outermost(path: tuple[str, ...], others: set[tuple[str, ...]]) -> str:
    """The outermost module on a path that is on no other path."""
    return ".".join(next((path[:k] for k in range(1, len(path)) if path[:k] not in others), path))


def _refusals(flow: Flow, pairs: Sequence[tuple[int, int]], names: Sequence[str]) -> list[Refusal]:
    """For each block with more than one piece of work, why it is not cut further at its best place."""
    found = []
    for (start, end), name in zip(pairs, names, strict=True):
        work = [i for i in flow.works if start < i <= end]
        if len(work) < 2:
            continue
        places = [step for step in range(work[0], work[-1]) if flow.refused(step)]
        if len(places) < work[-1] - work[0] or not places:
            continue
        step = min(places, key=lambda s: len(flow.crossing[s]))
        found.append(Refusal(module=name, why=flow.refused(step), tensors=flow.describe(flow.crossing[step])))
    return found
