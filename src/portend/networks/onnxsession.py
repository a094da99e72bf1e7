"""onnxruntime with Portend's settings. Imports no torch."""

from __future__ import annotations

import onnx
import onnxruntime as ort

from portend.errors import DeploymentError
from portend.networks.onnxfile import BATCH

__all__ = ["session"]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def session(
    model: onnx.ModelProto, *, processor: str = "cpu", threads: int = 1, one_by_one: bool = False
) -> ort.InferenceSession:
    """Return a session of a graph on ``processor`` (``cpu``, ``cuda``, ``cuda:1``).

    Idle threads sleep instead of spinning: on a machine with several agents they would take the others' cores.

    Args:
        one_by_one: prepare for one sample at a time.

    Raises:
        DeploymentError: onnxruntime has no such processor here.
    """
    kind, _, index = processor.partition(":")
    provider = _PROVIDERS.get(kind)
    if provider not in ort.get_available_providers() or not (index or "0").isdecimal():
        here = ", ".join(name for name, provider in _PROVIDERS.items() if provider in ort.get_available_providers())
        raise DeploymentError(
            f"onnxruntime has no processor {processor!r} here, but {here}; choose one of these, or install the build "
            "of onnxruntime that has it (onnxruntime-gpu for cuda)"
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if one_by_one:
        options.add_free_dimension_override_by_name(BATCH, 1)
    chosen = [(provider, {"device_id": index or "0"} if kind == "cuda" else {})]
    if kind != "cpu":
        chosen.append((_PROVIDERS["cpu"], {}))  # for what the other one does not know
    return ort.InferenceSession(model.SerializeToString(), options, providers=chosen)
