"""What runs a network on a machine: library, processor, threads, number format."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final, Literal, get_args

from portend.errors import choice, law

__all__ = ["EXECUTORS", "PRECISIONS", "Execution", "Executor", "Precision", "available_cores"]

Executor = Literal["torch", "torch-compiled", "onnxruntime"]
Precision = Literal["float32", "bfloat16", "float16"]

EXECUTORS: Final[tuple[Executor, ...]] = get_args(Executor)
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """How a device runs partitions, and so what its times are for.

    Attributes:
        executor: ``torch`` (eager PyTorch in inference mode), ``torch-compiled`` (``torch.compile``), or
            ``onnxruntime``, which needs no PyTorch where it runs.
        processor: ``cpu``, ``cuda``, ``cuda:1``, ...: as PyTorch names devices.
        threads: compute threads on the CPU.
        precision: of the arithmetic; tensors cross cuts as float32 in any case. int8 is another network with exits
            of its own (``portend export --int8``), not a precision.
    """

    executor: Executor = "torch"
    processor: str = "cpu"
    threads: int = 1
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        choice("an executor", self.executor, EXECUTORS)
        choice("a precision", self.precision, PRECISIONS)
        law(bool(self.processor), "a processor has a name such as cpu or cuda, but got an empty one")
        law(
            type(self.threads) is int and self.threads >= 1,
            f"an executor has at least one compute thread, but got {self.threads}",
        )
        law(
            self.executor != "onnxruntime" or self.precision == "float32",
            f"onnxruntime computes in the number format of the network's file, but got precision {self.precision!r}; "
            "choose a torch executor, or export the network with --int8",
        )

    def __str__(self) -> str:
        """Return, for people, such as ``onnxruntime on cpu, 2 threads``; float32 goes without saying."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        precision = "" if self.precision == "float32" else f", {self.precision}"
        return f"{self.executor} on {self.processor}, {threads}{precision}"


def available_cores() -> tuple[int, ...]:
    """Return the numbers of the cores that this process may use (affinity; control groups' core sets show there)."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))
