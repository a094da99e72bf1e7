"""What stands between tiers that are processes of one machine, behind one interface."""

from __future__ import annotations

import contextlib
import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from portend.errors import DeploymentError
from portend.values.topology import Topology

__all__ = ["Emulation", "pairs"]


class Emulation(ABC):
    """A place for the processes of a topology's tiers, and the links between them; a context manager.

    Start processes by ``start``, let them take messages on ``host``, then ask ``reach`` where each finds the others.
    Processes must have ended before the ``with`` block is left.
    """

    label: str
    """What measurements say of their links."""

    isolated = False
    """Whether tiers cannot reach this process's own network, so that control needs another way, such as ``ipc://``."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def pids(self) -> tuple[int, ...]:
        """Processes that carry the links."""
        return ()

    def host(self, tier: int) -> str:
        """Address on which a tier's process takes messages."""
        return "127.0.0.1"

    def start(self, tier: int, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a process of a tier, on the tier's own cores; ``options`` are those of ``Popen``."""
        if self.topology.tiers[tier].cpu_quota is not None:
            raise DeploymentError(
                f"tier {self.topology.tiers[tier].name!r} has a cpu_quota, which is kept in network namespaces only; "
                "choose that emulation, or leave the quota out"
            )
        with self._on_cores(tier):
            return subprocess.Popen(command, **options)

    def reach(self, endpoints: Mapping[int, str]) -> dict[tuple[int, int], str]:
        """Return at which host:port each tier (first) reaches each other, which takes messages at ``endpoints``."""
        return {(a, b): endpoints[b] for a, b in pairs(endpoints)}

    def rewind(self) -> None:  # noqa: B027  (nothing changes over time)
        """Let bandwidths over time begin anew."""

    def facts(self) -> dict[str, str]:
        """What happened on the links since ``rewind``, as far as it is known."""
        return {}

    def check(self) -> None:  # noqa: B027  (nothing can fall)
        """Raise DeploymentError unless the links stand."""

    @contextlib.contextmanager
    def _on_cores(self, tier: int) -> Iterator[None]:
        """Keep this thread, and so what it starts, on the cores of a tier."""
        asked = set(self.topology.tiers[tier].cores)
        if not asked:
            yield
            return
        here = os.sched_getaffinity(0)
        if not asked <= here:
            raise DeploymentError(
                f"tier {self.topology.tiers[tier].name!r} wants the cores {sorted(asked)}, but this process may use "
                f"{sorted(here)}; change the tier's cores"
            )
        os.sched_setaffinity(0, asked)
        try:
            yield
        finally:
            os.sched_setaffinity(0, here)


def pairs(endpoints: Mapping[int, str]) -> list[tuple[int, int]]:
    return [(a, b) for a in endpoints for b in endpoints if a != b]
