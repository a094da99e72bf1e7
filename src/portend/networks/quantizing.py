"""A network quantized to int8 by onnxruntime: another network, with exits and digest of its own. Imports no torch."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from portend.errors import ExportError, law
from portend.networks.onnxfile import OnnxNetwork, cut_value, graph_sha256

__all__ = ["quantized"]

_OPERATORS: Final = ("Conv", "Gemm", "MatMul")  # where the time goes; what lies between them stays as exact as it was


def quantized(
    network: OnnxNetwork,
    samples: NDArray[np.float32],
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> OnnxNetwork:
    """Return the network with int8 weights (per channel) and int8 activations in its convolutions and matrix products.

    Ranges of activations are their extremes over ``samples`` [S, ...] (static quantization). Scores stay as they are.
    The digest is that of the new graph, so that neither exits nor times of the two networks are mixed up.

    Raises:
        ExportError: onnxruntime cannot quantize the graph.
    """
    law(len(samples) >= 1, "quantization needs samples to find the ranges of activations, but got none")
    reader = _Reader(samples, on_progress)
    with tempfile.TemporaryDirectory(prefix="portend-") as folder, _quiet():
        target = Path(folder) / "int8.onnx"
        try:
            own = onnx.ModelProto()
            own.CopyFrom(network.model)  # the quantizer changes what it is given
            quantize_static(
                own,
                target,
                reader,
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(_OPERATORS),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            model = onnx.load(target)
        except Exception as error:  # the quantizer raises whatever its parts raise
            reason = " ".join(str(error).split())[:300]
            raise ExportError(f"onnxruntime cannot quantize {network.spec.name} ({reason}); use it as it is") from error
    del model.metadata_props[:]
    blocks, branches = _weight_bytes(network, model)
    spec = replace(network.spec, weights_sha256=graph_sha256(model), block_bytes=blocks, branch_bytes=branches)
    return OnnxNetwork(model, spec, {**network.provenance, "quantized": f"int8, ranges of {len(samples)} samples"})


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Hands out one sample at a time."""

    def __init__(self, samples: NDArray[np.float32], on_progress: Callable[[int, int], None] | None) -> None:
        self._samples, self._on_progress, self._next = samples, on_progress, 0

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        if self._next == len(self._samples):
            return None
        sample = np.asarray(self._samples[self._next : self._next + 1], dtype=np.float32)
        self._next += 1
        if self._on_progress:
            self._on_progress(self._next, len(self._samples))
        return {cut_value(0): sample}


def _weight_bytes(network: OnnxNetwork, model: onnx.ModelProto) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the bytes of the weights of each block and of each exit branch in the quantized graph."""
    whole = OnnxNetwork(model, network.spec)
    last = network.spec.num_blocks
    blocks, branches = [], []
    for cut in range(1, last + 1):
        block = _initializer_bytes(whole.partition(cut - 1, cut, branch=False))
        both = _initializer_bytes(whole.partition(cut - 1, cut, branch=True))
        if cut == last:
            both = max(both, block)
        blocks.append(block)
        branches.append(both - block if cut in network.spec.exit_cuts else 0.0)
    return tuple(blocks), tuple(branches)


def _initializer_bytes(model: onnx.ModelProto) -> float:
    return float(sum(len(tensor.raw_data) for tensor in model.graph.initializer))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantizer from telling the user how to prepare a graph."""
    root: Any = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
