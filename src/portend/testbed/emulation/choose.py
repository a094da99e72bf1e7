"""The emulations of links by name.

======================  ==================================================================================
``relay`` (default)     links in user space between sockets of the loopback interface; no root needed
``namespaces``          a network namespace per tier, the kernel's own TCP/IP on links with rate and delay
``none``                nothing: processes connect directly
======================  ==================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import Final

from portend.errors import InvalidValue, choice
from portend.testbed.emulation import EMULATIONS
from portend.testbed.emulation.base import Emulation, pairs
from portend.testbed.emulation.relay import Relay, Route
from portend.testbed.emulation.traces import BandwidthTrace
from portend.values.topology import Topology

__all__ = ["Direct", "Relayed", "make_emulation"]

_NO_TRACES: Final[Mapping[int, BandwidthTrace]] = MappingProxyType({})


class Direct(Emulation):
    """No links: processes connect to each other on the loopback interface."""

    label = "direct"

    def __exit__(self, *_: object) -> None: ...


class Relayed(Emulation):
    """Links in user space between sockets of the loopback interface (`portend.testbed.emulation.relay`)."""

    label = "emulated by relay"

    def __init__(self, topology: Topology) -> None:
        super().__init__(topology)
        self._relay: Relay | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._relay is not None:
            self._relay.__exit__(kind, error, trace)

    @property
    def pids(self) -> tuple[int, ...]:
        return () if self._relay is None or self._relay.pid is None else (self._relay.pid,)

    def reach(self, endpoints: Mapping[int, str]) -> dict[tuple[int, int], str]:
        ways = pairs(endpoints)
        self._relay = Relay(self.topology, [Route(a, b, endpoints[b]) for a, b in ways]).__enter__()
        return {way: f"127.0.0.1:{port}" for way, port in zip(ways, self._relay.ports, strict=True)}

    def check(self) -> None:
        if self._relay is not None:
            self._relay.check()


def make_emulation(name: str, topology: Topology, traces: Mapping[int, BandwidthTrace] = _NO_TRACES) -> Emulation:
    """Return an emulation by its name; ``traces`` by link, for namespaces only.

    Raises:
        InvalidValue: no emulation has this name, or it knows constant bandwidths only.
        DeploymentError: this machine does not allow it; says why and what to do instead.
    """
    choice("an emulation", name, EMULATIONS)
    if name == "namespaces":
        from portend.testbed.emulation.namespaces import Namespaces

        return Namespaces(topology, traces=traces)
    if topology.slow_start is not None:
        raise InvalidValue(
            f"slow start needs the emulation 'namespaces', but got {name!r}, whose links have no TCP; choose that "
            "emulation, or leave slow_start out of the topology"
        )
    if traces:
        raise InvalidValue(
            f"bandwidth over time needs the emulation 'namespaces', but got {name!r} with traces for the links "
            f"{sorted(traces)}"
        )
    return Relayed(topology) if name == "relay" and topology.links else Direct(topology)
