"""A network as a graph of operations that still switches between training and evaluation.

Symbolic tracing (``torch.fx``) runs ``forward`` once with placeholders. Modules of ``torch.nn`` stay
whole, so dropout and batch norm keep their own mode. What a network's own code decides from
``self.training`` would be frozen; a trace in each mode shows where: a flag that is passed on becomes a
node that is looked up at run time, a module that takes another path stays whole.

What runs or traces a network does so on a copy: the network itself stays as it was.
"""

from __future__ import annotations

import contextlib
import copy
import math
import operator
import random
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, fx, nn

from portend.errors import SplitError

__all__ = [
    "REMEDY_CHECKED",
    "Mode",
    "Surroundings",
    "Trace",
    "copied",
    "equal",
    "evaluating",
    "only_tensor",
    "scopes",
    "seeded",
    "surroundings_of",
    "trace",
]

_TRACED_THROUGH = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.TransformerEncoder)  # torch.nn's own containers
_READS_DATA = ("item", "tolist", "nonzero", "unique", "numpy")
_ROUNDS = 24
REMEDY_CHECKED = (
    "keep the part that decides by shapes or data, keeps something from one call to the next, or enters a context "
    "whole with leaves=[...]"
)
_REMEDY = "keep the module whole with leaves=[...], or take the decision out of `forward`"
_DEVICES: Final = ("cpu", "cuda")  # whose autocast is followed
_QUESTIONS: Final = ("size", "dim", "numel", "ndimension", "is_floating_point", "stride", "is_contiguous")
_HOOKS_OF_GRADIENTS: Final = ("_backward_hooks", "_backward_pre_hooks")


class Mode(nn.Module):
    """Gives whether it is in training mode (the opposite, if inverted) to an operation that asks for a flag."""

    def __init__(self, *, inverted: bool) -> None:
        super().__init__()
        self.inverted = inverted

    def forward(self) -> bool:
        return self.training != self.inverted


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """The contexts of PyTorch in which an operation ran: without gradients, in inference mode, under autocast.

    ``autocast``: kinds of devices and their dtype; None: it was switched off there, as code does that is too imprecise
    under the autocast of its caller.
    """

    grad: bool
    inference: bool
    autocast: tuple[tuple[str, torch.dtype | None], ...]

    @classmethod
    def now(cls, switched_off: Iterable[str] = ()) -> Surroundings:
        """Return the contexts of this place; PyTorch itself cannot tell autocast that is switched off from none."""
        kinds: tuple[tuple[str, torch.dtype | None], ...] = tuple(
            (kind, torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None)
            for kind in _DEVICES
            if torch.is_autocast_enabled(kind) or kind in switched_off
        )
        return cls(grad=torch.is_grad_enabled(), inference=torch.is_inference_mode_enabled(), autocast=kinds)

    @contextmanager
    def entered(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if self.inference:
                stack.enter_context(torch.inference_mode())
            if not self.grad:
                stack.enter_context(torch.no_grad())
            for kind, dtype in self.autocast:
                stack.enter_context(torch.autocast(kind, dtype, enabled=dtype is not None))
            yield


@contextmanager
def _autocasts() -> Iterator[list[torch.autocast]]:
    """Give a list of the autocast contexts that are entered, the innermost last."""
    entered: list[torch.autocast] = []
    enter, leave = torch.autocast.__enter__, torch.autocast.__exit__

    def entering(self: torch.autocast) -> Any:
        entered.append(self)
        return enter(self)  # type: ignore[no-untyped-call]

    def leaving(self: torch.autocast, *raised: Any) -> Any:
        entered.remove(self)
        return leave(self, *raised)

    torch.autocast.__enter__, torch.autocast.__exit__ = entering, leaving  # type: ignore[method-assign]
    try:
        yield entered
    finally:
        torch.autocast.__enter__, torch.autocast.__exit__ = enter, leave  # type: ignore[method-assign]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trace:
    """What is known of a network's operations.

    Attributes:
        graph: the operations, on the modules and weights of a copy of the network.
        root: the network's own modules and weights by the same names, and the constants of the trace.
        fixed: modules that keep their mode whatever the network's is, and that mode.
        leaves: modules that had to stay whole; notes: what a user should know, as sentences.
    """

    graph: fx.GraphModule
    root: nn.Module
    fixed: Mapping[str, bool]
    leaves: frozenset[str]
    notes: tuple[str, ...]


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
            f"{', '.join(map(str, found)) or type(output).__name__}; wrap the network in a module that gives the "
            "logits, or take `portend.adopt` where these are the logits of its exits"
        )
    return only_tensor(next(iter(found.values())))


def trace(
    module: nn.Module,
    example: Tensor,
    leaves: Iterable[str | type[nn.Module]] = (),
    *,
    output: Tensor | None = None,
    inference_only: bool = False,
    take: Callable[[Any], Any] = only_tensor,
) -> Trace:
    """Return the graph of ``module`` for inputs such as ``example`` [B, ...].

    Args:
        leaves: names or classes of modules to keep whole, beyond those of ``torch.nn``.
        output: what the network makes of the example under ``seeded``; a module whose trace computes anything else
            stays whole.
        inference_only: do not ask what the network does in training mode.
        take: what of the network's output the graph ends with.

    Raises:
        SplitError: the network cannot be copied, its own ``forward`` decides by data, or it cannot be traced for
            another reason.
    """
    own = list(leaves)
    names = {leaf for leaf in own if isinstance(leaf, str)}
    unknown = sorted(names - dict(module.named_modules()).keys())
    if unknown:
        raise SplitError(f"leaves name modules of the network, but it has no {', '.join(unknown)}")
    kinds = tuple(leaf for leaf in own if isinstance(leaf, type))
    notes = _known_beforehand(module)
    names |= {name for name, each in module.named_modules() if name and _precompiled(each)}
    fixed = _fixed_modes(module)

    sets: set[str] = set()

    def traced(training: bool) -> tuple[fx.Graph, nn.Module]:
        twin = copied(module)
        _set_mode(twin, training=training, fixed=fixed)
        tracer = _Tracer(names, kinds, example, take)
        graph = tracer.run(twin)
        sets.update(tracer.sets)
        return graph, twin

    for _ in range(_ROUNDS):
        try:
            frozen, constants = traced(training=False)
            graph = fx.GraphModule(_root(copied(module), frozen, constants), frozen, type(module).__name__)
            if output is not None:
                _check_computes(graph, module, example, output)
        except _Untraceable as error:
            if not error.module or error.module in names:
                raise SplitError(f"{type(module).__name__} cannot be traced: {error}; {error.remedy}") from None
            names |= _alike(module, error.module)
            notes[error.module] = f"{error.module} and its like stay whole: {error}"
            continue
        if inference_only:
            notes[""] = "cut for inference alone; in training mode the chain does what evaluation does"
            learning, differing = frozen, set()
            break
        try:
            learning, _ = traced(training=True)
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
        _follow_mode(graph, learning)
    else:
        notes[""] = "in training mode `forward` itself takes another path; the chain does what evaluation does"
    if fixed:
        kept = [name for name in fixed if name.rpartition(".")[0] not in fixed]
        notes["fixed"] = f"{_listed(kept)} keep their mode, whether the network trains or not"
    if told := _listed(sorted(sets)):
        notes["sets"] = f"`forward` sets {told}; the chain does not"
    return Trace(
        graph=graph,
        root=_root(module, graph.graph, graph),
        fixed=fixed,
        leaves=frozenset(names),
        notes=tuple(notes.values()),
    )


def copied(module: nn.Module, *, device: torch.device | None = None) -> nn.Module:
    """Return a copy of a network that shares nothing with it; on the device ``meta`` without its weights.

    Raises:
        SplitError: something in it cannot be copied.
    """
    moved: dict[int, Any] = {}
    if device is not None and device.type == "meta":
        moved |= {id(p): nn.Parameter(p.to(device), requires_grad=p.requires_grad) for p in module.parameters()}
        moved |= {id(buffer): buffer.to(device) for buffer in module.buffers()}
    try:
        with torch.no_grad():  # copies of a script's weights would be results
            twin: nn.Module = _deepcopy(module, moved)
        return twin
    except Exception as error:
        raise SplitError(
            f"{type(module).__name__} is run and traced on a copy, so that it stays as it is, but {_uncopied(module)} "
            f"cannot be copied ({_first_line(error)}); set it after `split`, or give its class a __deepcopy__"
        ) from error


def _deepcopy(value: Any, known: Mapping[int, Any] = MappingProxyType({})) -> Any:
    modules = value.modules() if isinstance(value, nn.Module) else ()
    results = (t for each in modules for t in vars(each).values() if isinstance(t, Tensor) and not t.is_leaf)
    return copy.deepcopy(value, {id(t): t.detach().clone() for t in results} | dict(known))  # weight_norm keeps results


def _uncopied(module: nn.Module) -> str:
    """Name the attribute that cannot be copied."""
    for name, each in module.named_modules():
        for key, value in vars(each).items():
            if key.startswith("_") and isinstance(value, dict):
                continue  # of nn.Module: parameters, buffers, modules, hooks
            try:
                _deepcopy(value)
            except Exception:
                return f"its attribute {f'{name}.{key}'.removeprefix('.')}"
    return "it"


@contextmanager
def seeded() -> Iterator[None]:
    """Seed what is random, for runs that shall agree; give the caller's random state back afterwards."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _known_beforehand(module: nn.Module) -> dict[str, str]:
    """Return notes on what can be told without a trace.

    Raises:
        SplitError: a network that has no Python code to trace, or no weights yet.
    """
    name, notes = type(module).__name__, {}
    if isinstance(module, torch.jit.ScriptModule):
        raise SplitError(f"{name} is a script without operations to trace; give the network that was scripted")
    if _precompiled(module):
        raise SplitError(f"{name} is compiled and has no operations to trace; give the network itself, `._orig_mod`")
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise SplitError(f"{name} only distributes a network; give the network itself, `.module`")
    lazy = [key for key, value in module.named_parameters() if isinstance(value, nn.parameter.UninitializedParameter)]
    if lazy:
        raise SplitError(f"{name} has no weights yet at {_listed(lazy)}; run it once on a sample before `split`")
    for key, each in module.named_modules():
        if key and _precompiled(each):
            notes[key] = f"{key} stays whole: it is compiled or a script"
    hooked = [key or name for key, each in module.named_modules() if any(vars(each)[h] for h in _HOOKS_OF_GRADIENTS)]
    if hooked:
        notes["gradients"] = f"hooks on the gradients of {_listed(hooked)} run only where a module stays whole"
    return notes


def _precompiled(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod")


def _alike(module: nn.Module, name: str) -> set[str]:
    """The names of all modules of one's class: what happens in one happens in its like."""
    kind = type(module.get_submodule(name))
    return {other for other, each in module.named_modules() if type(each) is kind and other}


def _fixed_modes(module: nn.Module) -> dict[str, bool]:
    """Modules that keep one mode: their network's ``train()`` says so, or they are frozen while it trains."""
    fixed = {name: False for name, each in module.named_modules() if module.training and not each.training}
    twin = copied(module)
    for training in (True, False):
        twin.train(training)
        fixed |= {name: not training for name, each in twin.named_modules() if each.training != training}
    return fixed


def _set_mode(module: nn.Module, *, training: bool, fixed: Mapping[str, bool]) -> None:
    module.train(training)
    for name, mode in fixed.items():
        module.get_submodule(name).training = mode


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode without gradients; give every module its own mode back afterwards."""
    before = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for each, mode in before:
            each.training = mode


def _root(module: nn.Module, graph: fx.Graph, constants: nn.Module) -> nn.Module:
    """Return what has a network's own modules and weights by name, and beside them what the graph needs of others."""
    root = nn.Module()
    vars(root).update(vars(module))
    for key in ("_parameters", "_buffers", "_modules"):
        vars(root)[key] = dict(vars(module)[key])
    for node in graph.nodes:
        if node.op in ("get_attr", "call_module"):
            name = str(node.target).partition(".")[0]
            if not hasattr(root, name):
                setattr(root, name, getattr(constants, name))
    return root


def _check_computes(graph: fx.GraphModule, module: nn.Module, example: Tensor, output: Tensor) -> None:
    """Run a trace once, and find the module whose operations fail or give something else than its ``forward``.

    Raises:
        _Untraceable: there is one.
    """
    values: dict[str, Tensor] = {}
    watched = False

    class Watching(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            inside = [name for name, _ in scopes(n)]
            try:
                with surroundings_of(n):
                    result = super().run_node(n)
            except Exception as error:
                where = inside[-1] if inside else ""
                why = f"{_first_line(error)}; its own code avoids or catches that"
                raise _Untraceable(where, f"{_place(module, where)}{n.meta.get('line', '')}: {why}") from error
            if watched and isinstance(result, Tensor):
                keys = n.meta.get("nn_module_stack") or ()
                values.update((name, result.clone()) for name in inside if name in keys)  # keys: of the first call
            return result

    def run() -> Any:
        with evaluating(graph), seeded():
            running = Watching(graph)
            running.extra_traceback = False
            return running.run(example.clone())

    if equal(run(), output):
        return
    watched = True
    run()
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def kept(each: nn.Module, given: Any, result: Any) -> None:
            if isinstance(result, Tensor) and not any(result is value for value in given):
                found.setdefault(name, result.clone())

        return kept

    twin = copied(module)
    for name, each in twin.named_modules():
        each.register_forward_hook(keep(name))
    with evaluating(twin), seeded():
        twin(example.clone())
    whole = {str(n.target) for n in graph.graph.nodes if n.op == "call_module"}
    suspect = ""
    for name, value in found.items():  # in the order in which modules end, so the innermost first
        if any(name.startswith(f"{leaf}.") for leaf in whole):
            continue
        if name not in values:
            suspect = name  # it left nothing in the trace
        elif not equal(values[name], value):
            suspect = suspect or (name.rpartition(".")[0] if name in whole else name)
            break
    raise _Untraceable(suspect, f"{_place(module, suspect)} computes something else than its trace", REMEDY_CHECKED)


def _place(module: nn.Module, name: str) -> str:
    return f"`forward` of {name or 'the network'} ({type(module.get_submodule(name)).__name__})"


def equal(one: Any, other: Tensor) -> bool:
    """Whether two tensors agree bit for bit, NaN being like NaN."""
    if not isinstance(one, Tensor) or one.shape != other.shape:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def surroundings_of(node: fx.Node) -> contextlib.AbstractContextManager[None]:
    """Return the contexts in which a node was recorded."""
    within: Surroundings | None = node.meta.get("within")
    return contextlib.nullcontext() if within is None else within.entered()


def _listed(names: Iterable[str]) -> str:
    told = list(names)
    return ", ".join(told[:4]) + (f" and {len(told) - 4} more" if len(told) > 4 else "")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def scopes(node: fx.Node) -> tuple[tuple[str, type[nn.Module]], ...]:
    """Return the modules in which a node was recorded, (name, class) from the outermost on; not the network itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return tuple((str(name), kind) for name, kind in stack.values() if name)


class _Untraceable(Exception):
    """Tracing failed within ``module`` ('' is the network itself)."""

    def __init__(self, module: str, why: str, remedy: str = _REMEDY) -> None:
        super().__init__(why)
        self.module, self.remedy = module, remedy


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


def _in_place(name: str) -> Callable[[Any, Any], Any]:
    return lambda own, other: own.tracer.create_proxy("call_function", getattr(operator, name), (own, other), {})


_IN_PLACE: Final = tuple(
    f"i{name}" for name in ("add", "sub", "mul", "truediv", "floordiv", "pow", "mod", "and", "or", "xor")
)
for _name in _IN_PLACE:  # torch.fx records `x += y` as `x = x + y`, which leaves other names of x as they were
    setattr(_Concrete, f"__{_name}__", _in_place(_name))


class _Proxy(_Concrete, fx.Proxy):
    def __getattr__(self, name: str) -> Any:
        return _Attribute(self, name)


class _Attribute(_Concrete, fx.proxy.Attribute):
    def __getattr__(self, name: str) -> Any:
        return _Attribute(self, name)


class _Tracer(fx.Tracer):
    """Records a network; where its code decides by a shape, the example's shape decides.

    What timm lists as not to be traced stays whole here too. Buffers are recorded, so that what writes into them is.

    Attributes:
        sets: attributes that ``forward`` sets, by name.
    """

    proxy_buffer_attributes = True

    def __init__(
        self, names: set[str], kinds: tuple[type[nn.Module], ...], example: Tensor, take: Callable[[Any], Any]
    ) -> None:
        listed = sys.modules.get("timm.layers")
        functions: list[Callable[..., Any]] = listed.get_notrace_functions() if listed else []
        super().__init__(autowrap_modules=(math,), autowrap_functions=tuple(f for f in functions if callable(f)))
        self.names = names
        self.kinds = kinds + tuple(listed.get_notrace_modules() if listed else ())
        self.example, self.take = example, take
        self._values: dict[fx.Node, Any] = {}
        self._failed_in: str | None = None
        self._recording = True
        self._own: set[nn.Module] = set()
        self._around = Surroundings.now()  # of the whole trace
        self._entered: list[torch.autocast] = []
        self.sets: set[str] = set()

    def run(self, module: nn.Module) -> fx.Graph:
        """Return the operations of a network, which is spent afterwards: its attributes may hold placeholders."""
        self._own = set(module.modules())
        for each in self._own:
            vars(each).pop("_compiled_call_impl", None)  # what `compile()` made of it
            for hooks in _HOOKS_OF_GRADIENTS:
                vars(each)[hooks].clear()
        try:
            with torch.enable_grad(), _autocasts() as self._entered:
                self._around = Surroundings.now()
                graph = self.trace(module)
        except SplitError as error:
            raise _Untraceable("", str(error)) from error
        except Exception as error:
            where = self._failed_in or ""
            raise _Untraceable(where, _told(error, module, where)) from error
        self._check_state(module)
        return graph

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """Give the network its first argument alone; the others keep their defaults. Its own hooks run too."""
        tensor = self.create_proxy("placeholder", "x", (), {})
        return (lambda root, x: self.take(root._call_impl(x))), [self.root, tensor]

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Note the contexts around a node, and the line of code that it comes from."""
        node = super().create_node(*args, **kwargs)
        around = Surroundings.now({each.device for each in self._entered if not each._enabled})
        if around != self._around:
            node.meta["within"] = around
        frame = sys._getframe(1)
        while "/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__:
            if frame.f_back is None or frame.f_code is _Tracer.run.__code__:
                return node
            frame = frame.f_back
        node.meta["line"] = f" at {Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        return node

    def _check_state(self, module: nn.Module) -> None:
        """Find what ``forward`` assigns anew: a buffer is state that blocks would not keep, an attribute is a note.

        Raises:
            _Untraceable: a module assigns a buffer.
        """
        for name, each in module.named_modules():
            for key, value in each._buffers.items():
                if isinstance(value, fx.Proxy) and not _written_in_place(value.node, f"{name}.{key}".lstrip(".")):
                    raise _Untraceable(
                        name,
                        f"{_place(module, name)} assigns its buffer {key} anew",
                        f"write into it ({key}.copy_(...)), or do that in a module of its own, which then stays whole",
                    )
            own = [key for key, value in vars(each).items() if isinstance(value, fx.Proxy)]
            self.sets |= {f"{name}.{key}".lstrip(".") for key in own}

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
        with seeded(), evaluating(self.root):
            value = self._evaluate(node)
        if (isinstance(value, Tensor) or self._reads_data(node)) and self._follows_input(node):
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

    def _follows_input(self, node: fx.Node) -> bool:
        seen, todo = set(), [node]
        while todo:
            each = todo.pop()
            if each.op == "placeholder":
                return True
            if each not in seen:
                seen.add(each)
                todo.extend(each.all_input_nodes)
        return False

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
    return f"{_place(module, where)}{line}: {_first_line(error)}"


def _written_in_place(node: fx.Node, buffer: str) -> bool:
    """Whether a node is a buffer after operations that wrote into it."""
    while node.op != "get_attr":
        name = str(getattr(node.target, "__name__", node.target))
        writes = name.endswith("_") if node.op == "call_method" else name in _IN_PLACE
        if not writes or not node.args or not isinstance(node.args[0], fx.Node):
            return False
        node = node.args[0]
    return node.target == buffer


def _signature(node: fx.Node) -> tuple[Any, ...]:
    """What a node does, whatever its arguments' names; truth values are left out."""

    def plain(value: Any) -> Any:
        if isinstance(value, bool):
            return "flag"
        return "node" if isinstance(value, fx.Node) else repr(value)

    arguments = fx.node.map_aggregate((node.args, dict(node.kwargs)), plain)
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__qualname__", repr(node.target))
    within: Surroundings | None = node.meta.get("within")  # whether there are gradients matters in training alone
    return node.op, target, repr(arguments), (within.inference, within.autocast) if within else (False, ())


def _is_idle(node: fx.Node) -> bool:
    """Whether a node only asks what nobody uses, as code does on its way to a decision."""
    asks = node.op == "call_method" and node.target in _QUESTIONS
    return not node.users and (asks or node.op == "get_attr" or node.target in _PURE)


_PURE: Final = (getattr, len, operator.getitem, operator.eq, operator.ne, operator.lt, operator.le, operator.gt)


def _differing(frozen: fx.Graph, learning: fx.Graph) -> set[str]:
    """Names of the innermost modules whose own operations differ between the traces; '' is the network."""

    def by_scope(graph: fx.Graph) -> dict[str, list[tuple[Any, ...]]]:
        found: dict[str, list[tuple[Any, ...]]] = {}
        for node in reversed(graph.nodes):
            if _is_idle(node):
                graph.erase_node(node)
        for node in graph.nodes:
            inside = [name for name, _ in scopes(node) if not (node.op == "call_module" and name == node.target)]
            signature = _signature(node) if node.op not in ("get_attr", "output") else (node.op,)
            found.setdefault(inside[-1] if inside else "", []).append(signature)
        return found

    first, second = by_scope(frozen), by_scope(learning)
    differing = {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}
    outer = {name for name in differing if any(other != name and other.startswith(f"{name}.") for other in differing)}
    return differing - outer


def _follow_mode(frozen: fx.GraphModule, learning: fx.Graph) -> None:
    """Replace each flag that differs between the traces by a node that looks the mode up."""
    graph = frozen.graph
    for node, other in zip(list(graph.nodes), list(learning.nodes), strict=True):

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

        if (within := other.meta.get("within")) is not None:
            node.meta["within"] = within
        else:
            node.meta.pop("within", None)
        node.args = tuple(map(looked_up, node.args, other.args))
        node.kwargs = {key: looked_up(value, other.kwargs[key]) for key, value in node.kwargs.items()}
    frozen.recompile()
