"""A network as a graph of operations that still switches between training and evaluation.

Symbolic tracing (``torch.fx``) runs ``forward`` once with placeholders. Modules of ``torch.nn`` stay
whole, so dropout and batch norm keep their own mode. What a network's own code decides from
``self.training`` would be frozen; a trace in each mode shows where: a flag that is passed on becomes a
node that is looked up at run time, a module that takes another path stays whole.
"""

from __future__ import annotations

import math
import operator
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from portend.errors import SplitError

__all__ = ["Mode", "Trace", "evaluating", "only_tensor", "scopes", "trace"]

_TRACED_THROUGH = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.TransformerEncoder)  # torch.nn's own containers
_READS_DATA = ("item", "tolist", "nonzero", "unique", "numpy")
_ROUNDS = 24
_REMEDY = "keep the module whole with leaves=[...], or take the decision out of `forward`"


class Mode(nn.Module):
    """Gives whether it is in training mode (the opposite, if inverted) to an operation that asks for a flag."""

    def __init__(self, *, inverted: bool) -> None:
        super().__init__()
        self.inverted = inverted

    def forward(self) -> bool:
        return self.training != self.inverted


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trace:
    """The graph of a network, the modules that had to stay whole, and what a user should know, as sentences."""

    graph: fx.GraphModule
    leaves: frozenset[str]
    notes: tuple[str, ...]


def trace(module: nn.Module, example: Tensor, leaves: Iterable[str | type[nn.Module]] = ()) -> Trace:
    """Return the graph of ``module`` for inputs such as ``example`` [B, ...].

    Args:
        leaves: names or classes of modules to keep whole, beyond those of ``torch.nn``.

    Raises:
        SplitError: the network's own ``forward`` decides by data, or cannot be traced for another reason.
    """
    own = list(leaves)
    names = {leaf for leaf in own if isinstance(leaf, str)}
    unknown = sorted(names - dict(module.named_modules()).keys())
    if unknown:
        raise SplitError(f"leaves name modules of the network, but it has no {', '.join(unknown)}")
    kinds = tuple(leaf for leaf in own if isinstance(leaf, type))
    notes: dict[str, str] = {}
    for _ in range(_ROUNDS):
        try:
            with _mode(module, training=False):
                frozen = _Tracer(names, kinds, example).run(module)
        except _Untraceable as error:
            if not error.module or error.module in names:
                raise SplitError(f"{type(module).__name__} cannot be traced: {error}; {_REMEDY}") from None
            names |= _alike(module, error.module)
            notes[error.module] = f"{error.module} and its like stay whole: {error}"
            continue
        try:
            with _mode(module, training=True):
                learning = _Tracer(names, kinds, example).run(module)
        except _Untraceable as error:
            if error.module and error.module not in names:
                names |= _alike(module, error.module)
                notes[error.module] = f"{error.module} and its like stay whole: in training, {error}"
                continue
            notes[""] = f"in training mode `forward` cannot be traced ({error}); the chain does what evaluation does"
            learning = frozen
        differing = _differing(frozen, learning)
        if not differing - {""}:
            break
        for name in sorted(differing - {""}):
            kind = type(module.get_submodule(name))
            names |= _alike(module, name)
            notes[str(kind)] = f"{name} and its like ({kind.__name__}) stay whole: they take another path in training"
    if not differing:
        _follow_mode(frozen, learning)
    else:
        notes[""] = "in training mode `forward` itself takes another path; the chain does what evaluation does"
    return Trace(graph=frozen, leaves=frozenset(names), notes=tuple(notes.values()))


def _alike(module: nn.Module, name: str) -> set[str]:
    """The names of all modules of one's class: what happens in one happens in its like."""
    kind = type(module.get_submodule(name))
    return {other for other, each in module.named_modules() if type(each) is kind and other}


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode without gradients; give every module its own mode back afterwards."""
    with _mode(module, training=False), torch.no_grad():
        yield


@contextmanager
def _mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    before = [(each, each.training) for each in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for each, mode in before:
            each.training = mode


def only_tensor(output: Any) -> Any:
    """Return the one tensor of a network's output, also from a tuple or mapping that holds nothing else.

    Raises:
        SplitError: there are several tensors, or none.
    """
    if isinstance(output, Tensor | fx.Proxy):
        return output
    items: dict[Any, Any] = {}
    if isinstance(output, Mapping):
        items = dict(output)
    elif isinstance(output, tuple | list):
        items = dict(enumerate(output))
    found = {key: value for key, value in items.items() if value is not None}
    if len(found) != 1:
        raise SplitError(
            "a chain ends with one tensor, but `forward` gives "
            f"{', '.join(map(str, found)) or type(output).__name__}; wrap the network in a module that gives the logits"
        )
    return only_tensor(next(iter(found.values())))


def scopes(node: fx.Node) -> tuple[tuple[str, type[nn.Module]], ...]:
    """Return the modules in which a node was recorded, (name, class) from the outermost on; not the network itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return tuple((str(name), kind) for name, kind in stack.values() if name)


class _Untraceable(Exception):
    """Tracing failed within ``module`` ('' is the network itself)."""

    def __init__(self, module: str, why: str) -> None:
        super().__init__(why)
        self.module = module


class _Concrete:
    """What a placeholder needs to be counted, indexed with, and asked for its length, from the example's shapes."""

    tracer: Any
    node: fx.Node

    def __len__(self) -> int:
        return len(self.tracer.concrete(self.node))

    def __index__(self) -> int:
        return int(self.tracer.concrete(self.node))

    def __int__(self) -> int:
        return int(self.tracer.concrete(self.node))

    def __float__(self) -> float:
        return float(self.tracer.concrete(self.node))

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


class _Proxy(_Concrete, fx.Proxy):
    def __getattr__(self, name: str) -> Any:
        return _Attribute(self, name)


class _Attribute(_Concrete, fx.proxy.Attribute):
    def __getattr__(self, name: str) -> Any:
        return _Attribute(self, name)


class _Tracer(fx.Tracer):
    """Records a network; where its code decides by a shape, the example's shape decides.

    What timm lists as not to be traced stays whole here too.
    """

    def __init__(self, names: set[str], kinds: tuple[type[nn.Module], ...], example: Tensor) -> None:
        listed = sys.modules.get("timm.layers")
        functions: list[Callable[..., Any]] = listed.get_notrace_functions() if listed else []
        super().__init__(autowrap_modules=(math,), autowrap_functions=tuple(f for f in functions if callable(f)))
        self.names = names
        self.kinds = kinds + tuple(listed.get_notrace_modules() if listed else ())
        self.example = example
        self._values: dict[fx.Node, Any] = {}
        self._failed_in: str | None = None
        self._recording = True
        self._own: set[nn.Module] = set()

    def run(self, module: nn.Module) -> fx.GraphModule:
        self._own = set(module.modules())
        try:
            graph = self.trace(module)
        except SplitError as error:
            raise _Untraceable("", str(error)) from error
        except Exception as error:
            where = self._failed_in or ""
            raise _Untraceable(where, _told(error, module, where)) from error
        return fx.GraphModule(self.root, graph, type(module).__name__)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """Give ``forward`` its first argument alone; the others keep their defaults."""
        tensor = self.create_proxy("placeholder", "x", (), {})
        return (lambda root, x: only_tensor(root_fn(root, x))), [self.root, tensor]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.names or isinstance(m, self.kinds):
            return True
        return super().is_leaf_module(m, module_qualified_name) and not isinstance(m, _TRACED_THROUGH)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return super().getattr(attr, attr_val, parameter_proxy_cache) if self._recording else attr_val

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if not self._recording or m not in self._own:
            return forward(*args, **kwargs)  # such as `nn.ReLU()(x)`, made on the spot: its operations are recorded
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self._failed_in is None:
                self._failed_in = self.path_of_module(m)
            raise

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self.concrete(obj.node))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        try:
            return super().iter(obj)
        except fx.proxy.TraceError:
            return iter([operator.getitem(obj, index) for index in range(len(self._evaluate(obj.node)))])

    def concrete(self, node: fx.Node) -> Any:
        """Return what a node that follows from shapes alone is for the example."""
        with torch.random.fork_rng(devices=[]), evaluating(self.root):
            value = self._evaluate(node)
        if isinstance(value, Tensor) or self._reads_data(node):
            raise fx.proxy.TraceError("it decides by the values of a tensor")
        return value

    def _evaluate(self, node: fx.Node) -> Any:
        if node not in self._values:
            interpreter = fx.Interpreter(self.root, graph=self.graph)
            earlier = [each for each in self.graph.nodes if each in self._needed(node) and each not in self._values]
            interpreter.env = self._values
            self._recording = False  # modules called here compute, though tracing is under way
            try:
                with torch.no_grad():
                    for each in earlier:
                        is_input = each.op == "placeholder"
                        self._values[each] = self.example if is_input else interpreter.run_node(each)
            finally:
                self._recording = True
        return self._values[node]

    def _needed(self, node: fx.Node) -> set[fx.Node]:
        needed, todo = set(), [node]
        while todo:
            each = todo.pop()
            if each not in needed and each not in self._values:
                needed.add(each)
                todo.extend(each.all_input_nodes)
        return needed

    def _reads_data(self, node: fx.Node) -> bool:
        seen, todo = set(), [node]
        while todo:
            each = todo.pop()
            if each in seen or isinstance(self._values.get(each), Tensor):
                continue
            if each.op == "call_method" and each.target in _READS_DATA:
                return True
            seen.add(each)
            todo.extend(each.all_input_nodes)
        return False


def _told(error: Exception, module: nn.Module, where: str) -> str:
    """Say in one line what failed, in which module, and in which line of its code."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename and f.filename != __file__
    ]
    line = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno} ({frames[-1].line})" if frames else ""
    kind = type(module.get_submodule(where)).__name__
    what = "\n".join(str(error).splitlines()[:1])
    return f"`forward` of {where or 'the network'} ({kind}){line}: {what or type(error).__name__}"


def _signature(node: fx.Node) -> tuple[Any, ...]:
    """What a node does, whatever its arguments' names; truth values are left out."""

    def plain(value: Any) -> Any:
        if isinstance(value, bool):
            return "flag"
        return "node" if isinstance(value, fx.Node) else repr(value)

    arguments = fx.node.map_aggregate((node.args, dict(node.kwargs)), plain)
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__qualname__", repr(node.target))
    return node.op, target, repr(arguments)


def _differing(frozen: fx.GraphModule, learning: fx.GraphModule) -> set[str]:
    """Names of the innermost modules whose own operations differ between the traces; '' is the network."""

    def by_scope(graph: fx.GraphModule) -> dict[str, list[tuple[Any, ...]]]:
        found: dict[str, list[tuple[Any, ...]]] = {}
        for node in graph.graph.nodes:
            inside = [name for name, _ in scopes(node) if not (node.op == "call_module" and name == node.target)]
            signature = _signature(node) if node.op not in ("get_attr", "output") else (node.op,)
            found.setdefault(inside[-1] if inside else "", []).append(signature)
        return found

    first, second = by_scope(frozen), by_scope(learning)
    differing = {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}
    outer = {name for name in differing if any(other != name and other.startswith(f"{name}.") for other in differing)}
    return differing - outer


def _follow_mode(frozen: fx.GraphModule, learning: fx.GraphModule) -> None:
    """Replace each flag that differs between the traces by a node that looks the mode up."""
    graph = frozen.graph
    for node, other in zip(list(graph.nodes), list(learning.graph.nodes), strict=True):

        def looked_up(value: Any, in_training: Any, node: fx.Node = node) -> Any:
            if isinstance(value, tuple | list):
                return type(value)(map(looked_up, value, in_training))
            if not isinstance(value, bool) or value == in_training:
                return value
            name = "mode_inverted" if value else "mode"
            if not hasattr(frozen, name):
                frozen.add_submodule(name, Mode(inverted=value))
            with graph.inserting_before(node):
                return graph.call_module(name)

        node.args = tuple(map(looked_up, node.args, other.args))
        node.kwargs = {key: looked_up(value, other.kwargs[key]) for key, value in node.kwargs.items()}
    frozen.recompile()
