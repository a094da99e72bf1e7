"""Which executor runs a network: PyTorch, eager or compiled, or onnxruntime."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from portend.errors import InvalidValue
from portend.runtime.executor import Executor
from portend.values.execution import Execution

__all__ = ["make_executor"]


def make_executor(
    network: str | Path,
    execution: Execution,
    *,
    criterion: str = "entropy",
    allow_code: Collection[str] = (),
) -> Executor:
    """Return the executor that ``execution`` names, with the network of a file.

    Args:
        network: a checkpoint (``.safetensors``) for the torch executors, a network of ``portend export`` (``.onnx``)
            for onnxruntime.
        criterion: of the scores. allow_code: ``module:object`` that a checkpoint may name.

    Raises:
        InvalidValue: the file is not of the kind that the executor takes, or its library is not installed.
        StorageError: the file is missing or damaged; DeploymentError: there is no such processor here.
    """
    wanted = ".onnx" if execution.executor == "onnxruntime" else ".safetensors"
    if Path(network).suffix != wanted:
        raise InvalidValue(
            f"the executor {execution.executor} runs a network in a file *{wanted}, but got {network}; "
            "`portend export` makes an .onnx file of a checkpoint"
        )
    try:
        if execution.executor == "onnxruntime":
            from portend.runtime.onnx_executor import OnnxExecutor

            return OnnxExecutor(network, execution, criterion=criterion)
        from portend.runtime.torch_executor import TorchExecutor

        return TorchExecutor(network, execution, criterion=criterion, allow_code=allow_code)
    except ModuleNotFoundError as error:
        extra = "runtime" if execution.executor == "onnxruntime" else "torch"
        raise InvalidValue(
            f"the executor {execution.executor} needs the package {error.name}, which is not installed; "
            f"`pip install 'portend[{extra}]'`"
        ) from None
