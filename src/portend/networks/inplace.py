"""Modules that write into their input, at a cut that others read too.

Axes: B batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from portend.networks.tracing import copied, seeded

__all__ = ["leave_input_alone", "writes_into_input"]


def leave_input_alone(module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Let a module that writes into its input [B, *shape] work on a copy; others stay as they are."""
    if writes_into_input(module, shape, dtype):
        module.register_forward_pre_hook(_copy_input)


def writes_into_input(module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, *, small: bool = False) -> bool:
    """Return whether a module writes into its input [B, *shape], in evaluation or in training.

    It is tried on a copy without weights, or with them where that fails (the other way round for a ``small`` one, which
    computes faster than PyTorch infers its shapes); True where both fail.
    """
    for device in ("cpu", "meta") if small else ("meta", "cpu"):
        try:
            return _writes(module, torch.zeros(2, *shape, dtype=dtype, device=device))
        except Exception:  # whatever a module raises that needs values, or other ones
            continue
    return True


def _writes(module: nn.Module, x: Tensor) -> bool:
    twin = copied(module, device=x.device)
    for training in (False, True):
        twin.train(training)
        given = x.clone()
        version = given._version  # of the memory, so it counts what is written into views
        with torch.no_grad(), seeded():
            twin(given)
        if given._version != version or (x.device.type == "cpu" and not torch.equal(given, x)):
            return True
    return False


def _copy_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0].clone(), *args[1:])
