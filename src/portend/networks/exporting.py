"""A network written as one ONNX file with all its exits, and checked against PyTorch.

Axes: B batch, K classes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import onnx
import onnx.inliner
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from portend.errors import ExportError, StorageError
from portend.networks.backbone import Backbone
from portend.networks.checkpoint import load_checkpoint, read_provenance
from portend.networks.onnxfile import BATCH, OnnxNetwork, cut_value, exit_values, load_onnx
from portend.networks.scores import score
from portend.values.plan import CRITERIA

__all__ = ["deviation", "export", "exported", "is_of"]

_OPSET: Final = 20
_OWN: Final = "portend"  # domain of the function that is exported once and put in at every exit
_EXIT_VALUES: Final = ("label", *CRITERIA)
_TOLERANCE: Final = 1e-3
_LOGGERS: Final = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


def export(backbone: Backbone, *, provenance: Mapping[str, str] = MappingProxyType({})) -> OnnxNetwork:
    """Return the network as an ONNX graph that computes what ``backbone`` computes.

    It takes any number of samples at once where the exporter can keep the blocks apart with a free batch size, and
    one sample elsewhere. Whole numbers come as float32, which holds them exactly up to 16,777,216.

    Raises:
        ExportError: the network takes neither float32 nor whole numbers, PyTorch's exporter refuses it, or the graph
            computes something else: at a cut it is off by more than 0.1 % of the largest value there, or at an exit by
            more than 0.001.
    """
    if backbone.input_dtype not in (torch.float32, torch.int64):
        raise ExportError(
            "a network for onnxruntime takes float32 or whole numbers, but "
            f"{backbone.name} takes {backbone.input_dtype}"
        )
    was_training = backbone.training
    backbone.eval()
    try:
        network = _exported(backbone, provenance)
        found = deviation(backbone, network, _probes(backbone))
    finally:
        backbone.train(was_training)
    if not found <= _TOLERANCE:
        raise ExportError(
            f"the ONNX graph of {backbone.name} must compute what PyTorch does within {_TOLERANCE:g}, but it is off by "
            f"{found:.3g}; run it by the torch executor"
        )
    return network


def exported(checkpoint: str | Path, *, allow_code: Collection[str] = ()) -> Path:
    """Return the ONNX file of a checkpoint, written anew if it is of other weights.

    It lies beside the checkpoint (its name and ``.onnx``), or, where nothing can be written there, in the user's cache
    folder, by the checkpoint's digest.

    Raises:
        ExportError, StorageError: as ``export`` and ``load_checkpoint``; or it can be written nowhere.
    """
    backbone = load_checkpoint(checkpoint, allow_code=allow_code)
    places = (Path(f"{checkpoint}.onnx"), _in_cache(Path(checkpoint)))
    for path in places:
        if is_of(path, backbone):
            return path
    network = export(backbone, provenance=read_provenance(checkpoint))
    for path in places[:-1]:
        with contextlib.suppress(StorageError):
            network.save(path)
            return path
    network.save(places[-1])
    return places[-1]


def is_of(path: str | Path, backbone: Backbone) -> bool:
    """Whether the file is an exported network with the weights of ``backbone``."""
    try:
        return load_onnx(path).spec.weights_sha256 == backbone.spec().weights_sha256
    except StorageError:
        return False


def _in_cache(checkpoint: Path) -> Path:
    """Where the user's caches lie (XDG Base Directory Specification), a name by what is in the checkpoint."""
    stated = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(stated) if Path(stated).is_absolute() else Path("~/.cache").expanduser()
    with checkpoint.open("rb") as file:
        return folder / "portend" / f"{hashlib.file_digest(file, 'sha256').hexdigest()}.onnx"


def deviation(backbone: Backbone, network: OnnxNetwork, samples: NDArray[Any]) -> float:
    """Return how far the graph is off PyTorch on samples [B, ...], the most over all cuts and exits.

    At a cut it is the largest difference as a share of the largest value there, at an exit the largest difference of a
    score.
    """
    from portend.networks.onnxsession import session

    expected = _expected(backbone, samples)
    names = list(expected)
    running = session(network.model)
    samples = np.asarray(samples, dtype=np.float32)
    batches = [samples] if network.batches else np.split(samples, len(samples))
    parts = [running.run(names, {cut_value(0): batch}) for batch in batches]
    got = [np.concatenate(values) for values in zip(*parts, strict=True)]
    worst = 0.0
    for name, value in zip(names, got, strict=True):
        scale = max(float(np.abs(expected[name]).max()), 1e-6) if name.startswith("cut_") else 1.0
        off = float(np.abs(value - expected[name]).max() / scale)
        worst = max(worst, off) if np.isfinite(off) else float("inf")
    return worst


@torch.inference_mode()
def _expected(backbone: Backbone, samples: NDArray[np.float32]) -> dict[str, NDArray[np.floating]]:
    """Return what PyTorch gives at every cut, and the scores of every exit; a label may be a tie."""
    found = {}
    x = torch.from_numpy(samples)
    for cut, (block, branch) in enumerate(zip(backbone.blocks, backbone.branches, strict=True), start=1):
        x = block(x)
        found[cut_value(cut)] = x.numpy()
        if branch is not None:
            scores = (score(branch(x), criterion).numpy() for criterion in CRITERIA)
            found |= zip(exit_values(cut)[1:], scores, strict=True)
    return found


class _Whole(nn.Module):
    """The tensor at every cut and the logits of every exit branch, in the order of the cuts."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = []
        for block, branch in zip(self.backbone.blocks, self.backbone.branches, strict=True):
            x = block(x)
            found += [x] if branch is None else [x, branch(x)]
        return tuple(found)


class _Exit(nn.Module):
    """The values that an exit gives (``_EXIT_VALUES``), of its logits."""

    def forward(self, logits: Tensor) -> tuple[Tensor, ...]:
        return logits.argmax(dim=-1), *(score(logits, criterion) for criterion in CRITERIA)


def _graph(backbone: Backbone, batch: Any) -> onnx.ModelProto:
    """Return the graph of all cuts and exits, for any number of samples or (``batch`` None) for one."""
    names = [cut_value(0)]
    for cut in range(1, len(backbone.blocks) + 1):
        names += [cut_value(cut), f"logits_{cut}"] if cut in backbone.exits else [cut_value(cut)]
    example = torch.zeros(1 if batch is None else 2, *backbone.input_shape)
    graph = _model(_Whole(backbone), example, names, batch)
    function = _exit_function(backbone.num_classes, batch is not None)
    outputs = []
    for value in graph.graph.output:
        kind, _, cut = value.name.rpartition("_")
        if kind == "cut":
            outputs.append(value)
            continue
        dims, values = [value.type.tensor_type.shape.dim[0].dim_param or 1], exit_values(int(cut))
        graph.graph.node.append(
            onnx.helper.make_node(function.name, [value.name], values, name=f"exit_{cut}", domain=_OWN)
        )
        for what, name in zip(_EXIT_VALUES, values, strict=True):
            number = onnx.TensorProto.INT64 if what == "label" else onnx.TensorProto.FLOAT
            outputs.append(onnx.helper.make_tensor_value_info(name, number, dims))
    del graph.graph.output[:]
    graph.graph.output.extend(outputs)
    graph.functions.append(function)
    graph.opset_import.append(onnx.helper.make_opsetid(_OWN, 1))
    inlined = onnx.inliner.inline_local_functions(graph)
    kept = [opset for opset in inlined.opset_import if opset.domain != _OWN]
    del inlined.opset_import[:]
    inlined.opset_import.extend(kept)
    return inlined


def _model(module: nn.Module, example: Tensor, names: list[str], batch: Any) -> onnx.ModelProto:
    """Export a module of one input; ``names``: of its input and its outputs."""
    with _quiet():
        program: Any = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            input_names=names[:1],
            output_names=names[1:],
            dynamic_shapes=None if batch is None else ({0: batch},),
            opset_version=_OPSET,
            verbose=False,
        )
    model: onnx.ModelProto = program.model_proto
    return model


@functools.lru_cache(maxsize=16)
def _exit_function(classes: int, batches: bool) -> onnx.FunctionProto:
    """What every exit does with its logits [B, classes]: PyTorch's exporter takes as long for it as for a network."""
    example, batch = torch.zeros(2 if batches else 1, classes), torch.export.Dim(BATCH) if batches else None
    return _function(_model(_Exit(), example, ["logits", *_EXIT_VALUES], batch))


def _function(model: onnx.ModelProto) -> onnx.FunctionProto:
    """Return the graph of a small model as a function, which has no weights of its own but constants."""
    graph = model.graph
    constants = [
        onnx.helper.make_node("Constant", [], [tensor.name], name=tensor.name, value=tensor)
        for tensor in graph.initializer
    ]
    inputs, outputs = ([value.name for value in values] for values in (graph.input, graph.output))
    return onnx.helper.make_function(_OWN, "exit", inputs, outputs, [*constants, *graph.node], model.opset_import)


def _exported(backbone: Backbone, provenance: Mapping[str, str]) -> OnnxNetwork:
    """Export with a free batch size, or else, where blocks share what they know of the batch, for one sample."""
    spec, refused = backbone.spec(), ""
    for batch in (torch.export.Dim(BATCH), None):
        try:
            return OnnxNetwork(_graph(backbone, batch), spec, provenance)
        except Exception as error:  # the exporter raises whatever its parts raise
            refused = " ".join(str(error).split())[:300]
    raise ExportError(f"{backbone.name} cannot be written as ONNX ({refused}); run it by the torch executor")


def _probes(backbone: Backbone) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    if not backbone.input_dtype.is_floating_point:  # every vocabulary has 0 and 1
        return rng.integers(0, 2, (3, *backbone.input_shape)).astype(np.float32)
    return rng.standard_normal((3, *backbone.input_shape)).astype(np.float32)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from telling the user about its own versions and decompositions."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
