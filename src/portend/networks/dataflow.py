"""The data flow of a traced network: its steps in order, what crosses after each, and blocks made of them.

A *step* is an operation that depends on the input's values. Sizes follow from shapes, constants and weights from
nothing: every block computes or keeps its own. A *cut* is the number of the step it lies after, -1 is the input.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from portend.errors import SplitError
from portend.networks.tracing import Surroundings, Trace, evaluating, scopes, surroundings_of

__all__ = ["Block", "Cost", "Flow", "path_of"]

Cost = Literal["flops", "time"]

_SHAPE_METHODS: Final = ("size", "dim", "numel", "ndimension", "is_floating_point", "get_device", "element_size")
_SHAPE_ATTRIBUTES: Final = ("shape", "ndim", "dtype", "device", "is_cuda", "requires_grad", "layout")
_CONTAINERS: Final = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_RANDOM: Final = ("rand", "bernoulli", "dropout", "normal", "multinomial")


@dataclass(slots=True)
class _Value:
    """What is known of one node's value: its shape, and what it holds if no tensor, for each batch size."""

    is_tensor: bool
    shape: tuple[int, ...] = ()
    dtype: torch.dtype | None = None
    plain: Any = None
    flops: float = 0.0
    seconds: float = 0.0
    mutates: list[fx.Node] = field(default_factory=list)
    same_as: fx.Node | None = None

    @property
    def numbers(self) -> int:
        """How many numbers a sample has."""
        return int(_product(self.shape[1:]))


class _Recorder(fx.Interpreter):
    """Runs a graph and notes each value's shape, cost, and which operations write into their arguments."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.extra_traceback = False  # it would go into our messages
        self.values: dict[fx.Node, _Value] = {}
        self.counter = FlopCounterMode(display=False)

    def record(self, x: Tensor) -> dict[fx.Node, _Value]:
        with evaluating(self.module), self.counter:
            self.run(x.clone())
        return self.values

    def _run(self, n: fx.Node) -> Any:
        try:
            with surroundings_of(n):
                return super().run_node(n)
        except Exception as error:
            inside = scopes(n)
            raise SplitError(
                f"the operations of {inside[-1][0] if inside else 'the network'}{n.meta.get('line', '')} do not take "
                f"the example, or not a batch of one sample more ({str(error).partition(chr(10))[0]}); keep that "
                "module whole with leaves=[...]"
            ) from error

    def run_node(self, n: fx.Node) -> Any:
        given = {a: self.env[a] for a in n.all_input_nodes if isinstance(self.env[a], Tensor)}
        versions = {a: value._version for a, value in given.items()}
        flops, began = self.counter.get_total_flops(), time.perf_counter()
        result = self._run(n)
        value = _Value(is_tensor=isinstance(result, Tensor), seconds=time.perf_counter() - began)
        value.flops = float(self.counter.get_total_flops() - flops)
        if isinstance(result, Tensor):
            value.shape, value.dtype = tuple(result.shape), result.dtype
        else:
            value.plain = None if _holds_tensor(result) else result
            value.shape = () if value.plain is not None or result is None else (-1,)
        value.mutates = [a for a, before in versions.items() if given[a]._version != before]
        value.same_as = next((a for a in value.mutates if given[a] is result), None)
        self.values[n] = value
        return result


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return isinstance(value, Tensor) or (isinstance(value, tuple | list) and any(map(_holds_tensor, value)))


class Flow:
    """The data flow of a traced network: its steps in order, and what is still needed after each.

    A *step* is an operation that depends on the input's values. Sizes follow from shapes, constants and
    weights from nothing: every block computes or keeps its own.
    """

    def __init__(self, trace: Trace, inputs: Sequence[Tensor], cost: Cost) -> None:
        self.graph = graph = trace.graph.requires_grad_(False)  # a copy; the counter of operations wants no gradients
        self.root, self.fixed = trace.root, trace.fixed
        self.modules = set(self.root.modules())
        self.batches = tuple(len(x) for x in inputs)
        first = _Recorder(graph).record(inputs[0])
        self._use_results_of_in_place_operations(first)
        records = [first, *(_Recorder(graph).record(x) for x in inputs[1:])]
        self.records = records
        self.values = first
        self.output: fx.Node = next(n for n in graph.graph.nodes if n.op == "output")
        nodes = [n for n in graph.graph.nodes if n.op != "output"]
        self.input: fx.Node = next(n for n in nodes if n.op == "placeholder")
        self._sort(nodes)
        self.steps = [n for n in nodes if n in self.hard and n is not self.input]
        if not self.steps:
            raise SplitError("the network's output does not depend on its input; there is nothing to cut")
        self.position = {n: i for i, n in enumerate(self.steps)} | {self.input: -1}
        last_use = {n: self.position[n] for n in (self.input, *self.steps)}
        for i, n in enumerate(self.steps):
            for a in self.behind(n):
                last_use[a] = max(last_use[a], i)
        given = self.output.args[0]
        self.results: tuple[fx.Node, ...] = tuple(given) if isinstance(given, tuple | list) else (given,)
        if not all(isinstance(each, fx.Node) and each in self.position for each in self.results):
            raise SplitError("a chain ends with one tensor that depends on the input, but the output is a constant")
        result = self.result = self.results[-1]
        last_use[result] = len(self.steps)
        self.last_use = last_use
        self.crossing = self._crossing()
        self.costs = [self._cost(n, cost) for n in self.steps]
        self.works = [i for i, n in enumerate(self.steps) if self._is_work(n)]
        self.scopes = [scopes(n) for n in self.steps]
        self.end = len(self.steps) - 1
        """The step that gives the output, or the logits before a last softmax or sigmoid."""
        if self._gives_shares(result) and self.end and not self.refused(self.end - 1):
            self.end -= 1

    # -- what depends on what ------------------------------------------------------------------

    def _use_results_of_in_place_operations(self, values: Mapping[fx.Node, _Value]) -> None:
        """After ``y = relu_(x)`` both names mean one tensor: let everything later use y."""
        order = {n: i for i, n in enumerate(self.graph.graph.nodes)}
        for n, value in values.items():
            if value.same_as is not None and n.op != "output":
                later = [u for u in value.same_as.users if order[u] > order[n]]
                for user in later:
                    user.replace_input_with(value.same_as, n)
        self.graph.recompile()

    def _sort(self, nodes: Sequence[fx.Node]) -> None:
        """Tell steps (``hard``) from sizes (``soft``: numbers that follow from shapes)."""
        self.hard: set[fx.Node] = {self.input}
        self.soft: set[fx.Node] = set()
        written = {a for value in self.values.values() for a in value.mutates}
        for n in nodes:
            value, inputs = self.values[n], n.all_input_nodes
            is_number = not value.is_tensor and value.shape == ()
            asks_shape = (n.op == "call_method" and n.target in _SHAPE_METHODS) or (
                n.target is getattr and n.args[1] in _SHAPE_ATTRIBUTES
            )
            from_data = any(a in self.hard for a in inputs)
            if (
                is_number
                and (asks_shape or not from_data or n.target is operator.getitem)
                and not value.mutates
                and inputs
            ):
                self.soft.add(n)
            elif from_data or value.mutates or n in written or (inputs and _is_random(n)):
                self.hard.add(n)
        for n in nodes:  # a size that no rule over batch sizes gives is data to whoever needs it later
            if n in self.soft and self._rule(n) is _NO_RULE:
                self.soft.discard(n)
                self.hard.add(n)

    def _rule(self, n: fx.Node) -> Any:
        return _rule(tuple(record[n].plain for record in self.records), self.batches)

    def behind(self, n: fx.Node) -> set[fx.Node]:
        """The steps (and the input) whose values a step needs, through nodes that every block has for itself."""
        return {a for a in n.all_input_nodes if a in self.hard}

    def _crossing(self) -> list[tuple[fx.Node, ...]]:
        """For each step, what is needed after it."""
        starts = [self.input, *self.steps]
        ends: dict[int, list[fx.Node]] = {}
        for n in starts:
            ends.setdefault(self.last_use[n], []).append(n)
        alive: dict[fx.Node, None] = {self.input: None}
        for n in ends.get(-1, []):
            alive.pop(n, None)
        found = []
        for i, n in enumerate(self.steps):
            alive[n] = None
            for gone in ends.get(i, []):
                alive.pop(gone, None)
            found.append(tuple(alive))
        return found

    # -- work ----------------------------------------------------------------------------------

    def _weights(self, n: fx.Node) -> int:
        """Numbers in the weight matrices and kernels of a module that is one step."""
        if n.op != "call_module":
            return 0
        weights = self.graph.get_submodule(str(n.target)).parameters()
        return sum(w.numel() for w in weights if sum(d > 1 for d in w.shape) > 1 or (w.ndim > 1 and w.numel() > 1))

    def _is_work(self, n: fx.Node) -> bool:
        return self.values[n].flops > 0 or self._weights(n) > 0

    def _cost(self, n: fx.Node, cost: Cost) -> float:
        value = self.values[n]
        if cost == "time":
            return value.seconds
        weights = self._weights(n)
        if value.flops or not weights:
            return value.flops / self.batches[0]
        if isinstance(self.graph.get_submodule(str(n.target)), nn.Embedding):
            return 0.0
        places = (value if value.is_tensor else self.values[n.all_input_nodes[0]]).shape[1:-1]
        return 2.0 * weights * _product(places)  # such as fused attention, which no counter opens

    def cost(self, start: int, end: int) -> float:
        """Cost of the steps after cut ``start`` up to and with ``end``."""
        return float(sum(self.costs[start + 1 : end + 1]))

    # -- where to cut --------------------------------------------------------------------------

    def refused(self, step: int) -> str:
        """Why there can be no cut after a step; '' where there can."""
        crossing = self.crossing[step]
        if len(crossing) != 1:
            return f"{len(crossing)} tensors cross after {self.name(self.steps[step])}"
        n = crossing[0]
        if n is self.input:
            return "nothing has been computed"
        if not self.values[n].is_tensor:
            return f"what crosses after {self.name(self.steps[step])} is not one tensor"
        dtype = self.values[n].dtype
        if dtype != torch.float32 and self.values[self.result].dtype == torch.float32:
            return f"{dtype} crosses after {self.name(self.steps[step])}, but between blocks travels float32"
        sizes = [record[n].shape[:1] for record in self.records]
        if sizes != [(batch,) for batch in self.batches]:
            return f"the tensor that crosses after {self.name(self.steps[step])} has no batch axis in front"
        return ""

    def name(self, n: fx.Node) -> str:
        """Name a node for people."""
        if n.op == "call_module":
            return str(n.target)
        inside = scopes(n)
        return f"{inside[-1][0]}.{n.name}" if inside else n.name

    def _gives_shares(self, n: fx.Node) -> bool:
        """Whether a node makes shares of logits [B, K]."""
        if len(self.values[n].shape) != 2:
            return False
        if n.op == "call_module":
            return isinstance(self.graph.get_submodule(str(n.target)), nn.Softmax | nn.Sigmoid)
        return str(getattr(n.target, "__name__", n.target)) in ("softmax", "sigmoid")

    def _depth(self, step: int) -> list[tuple[str, type[nn.Module]]]:
        """The modules that a cut after a step would cut through."""
        after = self.scopes[step + 1] if step + 1 < len(self.steps) else ()
        return _common(self.scopes[step], after)

    def useful_cuts(self) -> list[int]:
        """Steps after which to cut: one cut at most between two pieces of work, where it cuts through fewest modules.

        A class of modules of which one cannot be cut within is cut within nowhere, so that blocks are alike.
        """
        possible = {step for step in range(self.end) if not self.refused(step)}
        whole: set[type[nn.Module]] = set()
        gaps = list(pairwise(self.works))
        for before, after in gaps:
            if not any(step in possible for step in range(before, after)):
                between = _common(self.scopes[before], self.scopes[after])
                own = [kind for _, kind in between if kind not in _CONTAINERS]
                if own:
                    whole.add(own[-1])
        cuts = []
        for index, (before, after) in enumerate(gaps):
            allowed = [s for s in range(before, after) if s in possible and not self._inside(s, whole)]
            if allowed:
                least = min(len(self._depth(s)) for s in allowed)
                of_least = [s for s in allowed if len(self._depth(s)) == least]
                cuts.append(of_least[0] if index == len(gaps) - 1 else of_least[-1])
        return cuts

    def _inside(self, step: int, kinds: set[type[nn.Module]]) -> bool:
        return any(kind in kinds for _, kind in self._depth(step))

    def cuts_at(self, names: Sequence[str]) -> list[int]:
        """Steps after which the named modules end, if one tensor alone crosses there.

        Raises:
            SplitError: a module does not exist, is not used, or ends where more than one tensor crosses.
        """
        cuts: list[int] = []
        for name in names:
            own = [i for i, n in enumerate(self.steps) if self._within(n, name)]
            if not own:
                near = sorted({str(n.target) for n in self.steps if n.op == "call_module"})
                raise SplitError(
                    f"no operation belongs to a module {name!r}; cut after one of the network's modules, such as "
                    f"{', '.join(near[:6])}"
                )
            step = own[-1]
            why = self.refused(step)
            if why:
                raise SplitError(
                    f"cannot cut after {name}: {why} ({', '.join(self.describe(self.crossing[step]))}); "
                    "cut after a module that holds them all"
                )
            if cuts and step <= cuts[-1]:
                raise SplitError(
                    f"cuts must increase, but {name} does not end after the module before it in {list(names)}"
                )
            if step < self.end:
                cuts.append(step)
        last_work = self.works[-1] if self.works else 0
        before = [cut for cut in self.useful_cuts() if cut < last_work]
        if before and (not cuts or before[-1] > cuts[-1]) and self.head([*cuts, before[-1]]) == before[-1]:
            cuts.append(before[-1])
        return cuts

    def _within(self, n: fx.Node, name: str) -> bool:
        return (n.op == "call_module" and n.target == name) or any(inside == name for inside, _ in scopes(n))

    def head(self, cuts: Sequence[int]) -> int:
        """The cut at which the network's own classifier begins; the last step where that is not separable.

        A classifier is what lies behind the last cut, if it ends in logits [B, K] and all its work is linear.
        """
        end = self.end
        if not cuts:
            return end
        work = [self.steps[i] for i in self.works if i > cuts[-1]]
        logits = len(self.values[self.result].shape) == 2
        return cuts[-1] if logits and work and (len(work) == 1 or all(map(self._is_linear, work))) else end

    def _is_linear(self, n: fx.Node) -> bool:
        if n.op == "call_module":
            return isinstance(self.graph.get_submodule(str(n.target)), nn.Linear)
        return n.target is nn.functional.linear

    def describe(self, crossing: Iterable[fx.Node]) -> tuple[str, ...]:
        """Name and shape of one sample of each tensor that crosses."""
        told = []
        for n in crossing:
            shape = "×".join(map(str, self.values[n].shape[1:])) if self.values[n].is_tensor else "no tensor"
            told.append(f"{'input' if n is self.input else self.name(n)} {shape}")
        return tuple(told)

    # -- blocks --------------------------------------------------------------------------------

    def crosses(self, cut: int) -> fx.Node:
        """The tensor that crosses at a cut; -1 is the input, the last step the output."""
        if cut < 0:
            return self.input
        return self.result if cut == len(self.steps) - 1 else self.crossing[cut][0]

    def channel_axis(self, cut: int) -> int:
        """The axis of one sample that holds features, told from its shape or else from the last work before it."""
        shape = self.values[self.crosses(cut)].shape[1:]
        if len(shape) < 2:
            return 0
        first, last = len(set(shape[1:])) == 1 and shape[0] != shape[1], len(set(shape[:-1])) == 1
        if len(shape) > 2 and first != (last and shape[-1] != shape[0]):
            return 0 if first else len(shape) - 1
        before = [self.steps[i] for i in self.works if i <= cut]
        if not before:
            return 0 if len(shape) > 2 else len(shape) - 1
        n = before[-1]
        kernel = n.op == "call_module" and isinstance(self.graph.get_submodule(str(n.target)), nn.modules.conv._ConvNd)
        kept = len(self.values[n].shape) == len(shape) + 1
        return 0 if kernel and kept else len(shape) - 1

    def block(self, start: int, end: int, *, copying: bool = False) -> Block:
        """Return the steps after cut ``start`` up to ``end`` as one module on the network's own weights.

        With ``copying`` it works on a copy of its input.
        """
        steps = self.steps[start + 1 : end + 1]
        return self.module([self.crosses(start)], steps, [self.crosses(end)], copying=copying)

    def module(
        self, entries: Sequence[fx.Node], steps: Sequence[fx.Node], results: Sequence[fx.Node], *, copying: bool = False
    ) -> Block:
        """Return some steps as one module. Several entries come, and several results go, as one tensor [B, numbers]."""
        graph = fx.Graph()
        x = graph.placeholder("x")
        mine = {*steps, *entries}
        dtype = self.values[entries[0]].dtype
        if entries[0] is self.input and dtype is not None and not dtype.is_floating_point:  # samples travel as float32
            x = graph.call_method("to", (x, dtype))
        if copying:
            x = graph.call_method("clone", (x,))
        copies: dict[fx.Node, fx.Node] = {entries[0]: x}
        if len(entries) > 1:
            first = 0
            for entry in entries:
                shape = self.values[entry].shape[1:]
                numbers = self.values[entry].numbers
                part = graph.call_method("narrow", (x, 1, first, numbers))
                copies[entry] = graph.call_method("unflatten", (graph.call_method("contiguous", (part,)), 1, shape))
                first += numbers

        def needed(n: fx.Node) -> Any:
            if n not in copies:
                if n in self.soft and not self._here(n, mine):
                    return _size(graph, x, self._rule(n))
                values = {a: needed(a) for a in n.all_input_nodes}
                copies[n] = self._copied(graph, n, values)
            return copies[n]

        for n in steps:
            needed(n)
        made = [needed(result) for result in results]
        if len(made) > 1:
            flat = tuple(graph.call_method("flatten", (each, 1)) for each in made)
            made = [graph.call_function(torch.cat, (flat, 1))]
        graph.output(made[0])
        block = Block(self.root, graph, "Block")
        names = dict(block.named_modules())
        block.meta["fixed"] = {name: mode for name, mode in self.fixed.items() if name in names}
        for each in set(names.values()) - self.modules:  # what holds the modules; they keep their own mode
            each.training = self.root.training
        return block

    def _copied(self, graph: fx.Graph, n: fx.Node, values: Mapping[fx.Node, fx.Node]) -> fx.Node:
        """Copy a node into a block's graph, with the contexts in which it was recorded."""
        within: Surroundings | None = n.meta.get("within")
        value = self.values[n]
        if within is None or n.op == "get_attr" or (value.plain is not None and not value.mutates):
            return graph.node_copy(n, lambda a: values[a])
        args: Any
        kwargs: Any
        args, kwargs = (fx.node.map_arg(given, lambda a: values[a]) for given in (n.args, n.kwargs))
        if n.op == "call_module":
            args = (graph.get_attr(str(n.target)), *args)
        return graph.call_function(_Within(within, n), args, dict(kwargs))

    def _here(self, n: fx.Node, mine: set[fx.Node]) -> bool:
        """Whether a size follows from shapes of tensors within one block."""
        if n in self.hard:
            return n in mine
        return all(self._here(a, mine) for a in n.all_input_nodes)


class Block(fx.GraphModule):
    """Steps of a network as one module. Modules that keep their mode (``meta["fixed"]``) do so here too."""

    def train(self, mode: bool = True) -> Block:
        super().train(mode)
        for name, own in self.meta.get("fixed", {}).items():
            self.get_submodule(name).training = own
        return self


class _Within:
    """An operation in the contexts in which it was recorded, as a function."""

    def __init__(self, around: Surroundings, n: fx.Node) -> None:
        self.around, self.method = around, str(n.target) if n.op == "call_method" else None
        self.function: Any = n.target if n.op == "call_function" else None
        self.__name__ = self.__qualname__ = f"{getattr(n.target, '__name__', n.target)}_within".replace(".", "_")

    def __call__(self, first: Any, *args: Any, **kwargs: Any) -> Any:
        with self.around.entered():
            if self.method is not None:
                return getattr(first, self.method)(*args, **kwargs)
            if self.function is not None:
                return self.function(first, *args, **kwargs)
            return first(*args, **kwargs)


_NO_RULE: Final = object()


def _rule(found: tuple[Any, ...], batches: tuple[int, ...]) -> Any:
    """What a size is at every batch size: itself, or ``_Batch(k)``: k times the batch; elementwise for several."""
    first = found[0]
    if all(type(value) is type(first) and value == first for value in found):
        return first
    if isinstance(first, tuple | list):
        if len({len(value) for value in found}) != 1:
            return _NO_RULE
        items = [_rule(each, batches) for each in zip(*found, strict=True)]
        return _NO_RULE if any(item is _NO_RULE for item in items) else tuple(items)
    if isinstance(first, int) and all(
        value * batches[0] == first * batch for value, batch in zip(found, batches, strict=True)
    ):
        return _Batch(first, batches[0])
    return _NO_RULE


@dataclass(frozen=True, slots=True)
class _Batch:
    """A size that is the batch size times ``times`` over ``over``."""

    times: int
    over: int


def _size(graph: fx.Graph, x: fx.Node, rule: Any) -> Any:
    if isinstance(rule, tuple):
        return tuple(_size(graph, x, item) for item in rule)
    if isinstance(rule, torch.device):  # wherever the block is by then
        return graph.call_function(getattr, (x, "device"))
    if not isinstance(rule, _Batch):
        return rule
    batch = graph.call_method("size", (x, 0))
    if rule.times == rule.over:
        return batch
    return graph.call_function(operator.floordiv, (graph.call_function(operator.mul, (batch, rule.times)), rule.over))


def _is_random(n: fx.Node) -> bool:
    return any(word in str(getattr(n.target, "__name__", n.target)) for word in _RANDOM)


def _product(sizes: Iterable[int]) -> float:
    total = 1.0
    for size in sizes:
        total *= size
    return total


def _common(
    first: Sequence[tuple[str, type[nn.Module]]], second: Sequence[tuple[str, type[nn.Module]]]
) -> list[tuple[str, type[nn.Module]]]:
    common = []
    for mine, other in zip(first, second, strict=False):
        if mine[0] != other[0]:
            break
        common.append(mine)
    return common


def path_of(n: fx.Node) -> tuple[str, ...]:
    inside = scopes(n)
    path = str(n.target) if n.op == "call_module" else (inside[-1][0] if inside else n.name)
    return tuple(path.split("."))
