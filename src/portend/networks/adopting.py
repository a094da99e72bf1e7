"""Networks that have exits of their own (BranchyNet, MSDNet, ...) as backbones, as they are.

Axes: B batch, E exits, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn

from portend.errors import SplitError
from portend.networks.backbone import Backbone
from portend.networks.dataflow import Block, Flow
from portend.networks.inplace import writes_into_input
from portend.networks.split import are_probabilities
from portend.networks.tracing import REMEDY_CHECKED, copied, evaluating, seeded, trace

__all__ = ["adopt", "has_exits"]


def adopt(
    module: nn.Module,
    example: Tensor,
    *,
    name: str = "network",
    architecture: Mapping[str, Any] = MappingProxyType({}),
) -> Backbone:
    """Return a network whose ``forward`` gives the logits [B, K] of E exits as a backbone of E blocks.

    Each exit but the deepest ends a block, and what leads to it alone is its branch. Where an exit and later blocks
    need several tensors (the scales of an MSDNet), these cross the cut as one, [B, numbers]. Weights are the network's
    own; the backbone has given the same logits, bit for bit, on the example and on a larger batch.

    Args:
        example: a batch of samples [B, ...]; name, architecture: how the zoo builds the network again.

    Raises:
        SplitError: the network gives no list, tuple or mapping of logits, cannot be traced, or two exits leave at
            the same place.

    Example:
        >>> backbone = pt.adopt(branchynet, torch.zeros(1, 3, 32, 32))
    """
    expected = []
    larger = torch.cat([example, example[:1]]).roll(1, -1)
    network = copied(module)
    with evaluating(network):
        for x in (example, larger):
            with seeded():
                expected.append((x, _logits(network(x.clone()))))
    if any(are_probabilities(logits) for logits in expected[1][1]):
        raise SplitError("an exit of the network gives probabilities, but exits give logits; take the softmax out")
    with seeded():
        flow = Flow(trace(module, example, take=_several), [x for x, _ in expected], "flops")
    blocks, branches = _parts(flow)
    backbone = Backbone(
        name=name,
        blocks={f"block{number}": block for number, block in enumerate(blocks, start=1)},
        branches=branches,
        num_classes=expected[0][1][0].shape[1],
        input_shape=tuple(example.shape[1:]),
        input_dtype=example.dtype,
        architecture=architecture,
        tidy=True,
    )
    for each in (backbone, backbone.blocks, backbone.branches):
        each.training = module.training
    again = copied(backbone)
    with evaluating(again):
        for x, outputs in expected:
            with seeded():
                got = again(x.clone())
            if sorted(map(_key, got)) != sorted(map(_key, outputs)):
                raise SplitError(
                    f"the exits must compute what {type(module).__name__} gives, but do not for a batch of {len(x)}; "
                    f"{REMEDY_CHECKED}"
                )
    return backbone


def has_exits(module: nn.Module, example: Tensor) -> bool:
    """Return whether a network gives several logits for an example."""
    try:
        with seeded(), evaluating(network := copied(module)):
            _logits(network(example.clone()))
    except Exception:  # whatever it raises
        return False
    return True


def _key(logits: Tensor) -> bytes:
    return logits.detach().numpy().tobytes()


def _several(output: Any) -> tuple[Any, ...]:
    """The tensors of a list, tuple or mapping."""
    values = output.values() if isinstance(output, Mapping) else output
    if not isinstance(output, Mapping | list | tuple):
        raise SplitError(f"a network with exits gives a list of logits, but `forward` gives {type(output).__name__}")
    return tuple(value for value in values if value is not None)


def _logits(output: Any) -> list[Tensor]:
    found = list(_several(output))
    shapes = {tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__ for each in found}
    if len(found) < 2 or len(shapes) > 1 or len(next(iter(shapes))) != 2 or next(iter(shapes))[1] == 1:
        told = ", ".join(map(str, shapes)) or "nothing"
        raise SplitError(
            f"the exits of a network give at least two logits of one shape [batch, classes], but got {told}"
        )
    return found


def _parts(flow: Flow) -> tuple[list[Block], list[nn.Module]]:
    """The blocks between the exits, and the exits' branches, from the first exit to the deepest."""
    ancestors = {result: _ancestors(flow, result) for result in flow.results}
    deepest = max(flow.results, key=lambda result: len(ancestors[result]))
    uses = {n: sum(n in found for found in ancestors.values()) for n in flow.steps}
    trunk = [n for n in flow.steps if n in ancestors[deepest] or uses[n] > 1]
    place = {flow.input: -1} | {n: index for index, n in enumerate(trunk)}
    exits: list[tuple[int, fx.Node, list[fx.Node], set[fx.Node]]] = []
    for result in flow.results:
        if result is not deepest:
            own = [n for n in flow.steps if n in ancestors[result] and n not in place]
            needs = {a for n in own for a in flow.behind(n) if a in place} or {result}
            exits.append((max(place[n] for n in needs), result, own, needs))
    exits.sort(key=lambda exit: exit[0])
    ends = [end for end, *_ in exits]
    if len(set(ends)) < len(ends) or min(ends) < 0 or max(ends) >= len(trunk) - 1:
        raise SplitError(
            "each exit leaves at another place, after the first operation and before the last, but some leave at one: "
            f"{', '.join('the input' if end < 0 else flow.name(trunk[end]) for end in ends)}"
        )
    blocks: list[Block] = []
    branches: list[nn.Module] = []
    entries, start = [flow.input], -1
    for number, (end, result, own, _) in enumerate(exits):
        later = {a for n in trunk[end + 1 :] for a in flow.behind(n)}
        later |= {a for _, _, _, others in exits[number:] for a in others}
        crossing = [n for n in (flow.input, *trunk[: end + 1]) if n in later]
        _check_crossing(flow, crossing)
        blocks.append(_tidy(flow, entries, trunk[start + 1 : end + 1], crossing))
        branches.append(_tidy(flow, crossing, own, [result]))
        entries, start = crossing, end
    blocks.append(_tidy(flow, entries, trunk[start + 1 :], [deepest]))
    return blocks, [*branches, nn.Identity()]


def _ancestors(flow: Flow, result: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    todo = [result]
    while todo:
        n = todo.pop()
        if n not in found and n is not flow.input:
            found.add(n)
            todo.extend(flow.behind(n))
    return found


def _check_crossing(flow: Flow, crossing: list[fx.Node]) -> None:
    for n in crossing:
        value = flow.values[n]
        sizes = [record[n].shape[:1] for record in flow.records]
        if not value.is_tensor or value.dtype != torch.float32 or sizes != [(batch,) for batch in flow.batches]:
            raise SplitError(
                f"float32 tensors with the batch in front can cross between blocks, but {flow.name(n)} is not one"
            )


def _tidy(flow: Flow, entries: list[fx.Node], steps: list[fx.Node], results: list[fx.Node]) -> Block:
    block, first = flow.module(entries, steps, results), flow.values[entries[0]]
    shape = first.shape[1:] if len(entries) == 1 else (sum(flow.values[n].numbers for n in entries),)
    writes = writes_into_input(block, shape, first.dtype or torch.float32)
    return flow.module(entries, steps, results, copying=True) if writes else block
