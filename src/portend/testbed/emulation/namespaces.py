"""A network namespace per tier, with the kernel's own TCP/IP between them on links with a rate and a delay.

::

    namespace edge             namespace base             namespace cloud
    lo 198.18.0.1              lo 198.18.0.2              lo 198.18.0.3
           right ===== link 0 ===== left   right ===== link 1 ===== left

A tier's address is on its loopback device; routes lead to the others hop by hop, through the tiers in between. Each
link is made of either

- two TUN devices with a user-space forwarder between them (`portend.testbed.emulation.forwarder`), or
- a veth pair with the kernel's netem on both ends, where that is asked for (``driver="netem"``).

So that what is on the wire is what the model counts: no segmentation offload, packets of the path's smallest MTU, TCP
timestamps, no IPv6; CUBIC, which does not pace after idling; no slow start, neither at first (`_WINDOW_PACKETS`) nor
after idling, unless the topology says so (`Topology.slow_start`). Links are always verified with open windows. Needs
root: CAP_NET_ADMIN and CAP_SYS_ADMIN.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.util
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, Literal, Self, get_args

from portend.errors import DeploymentError, InvalidValue, choice, law
from portend.testbed.emulation import quota
from portend.testbed.emulation.base import Emulation
from portend.testbed.emulation.forwarder import IP_TCP_BYTES, Forwarder, WireEnds, device_mtu
from portend.testbed.emulation.remains import NAMESPACES, Claim, namespace
from portend.testbed.emulation.traces import BandwidthTrace
from portend.testbed.emulation.verify import Check, check_links
from portend.values.topology import Link, SlowStart, Topology

__all__ = ["Driver", "Namespaces", "unavailable"]

Driver = Literal["netem", "forwarder"]

_CLONE_NEWNET: Final = 0x40000000
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN_NO_PI: Final = 0x1001
_ONLINK: Final = 4  # RTNH_F_ONLINK: the neighbor is on that device, whatever the addresses say
_PERMANENT: Final = 0x80  # NUD_PERMANENT
_ETHERNET_BYTES: Final = 14
_MOST_TIERS: Final = 254
_QUEUE_PACKETS: Final = 20_000  # of a device; a message's packets may come all at once
_WINDOW_PACKETS: Final = 10_000  # of a connection at its start: more than any message has, so no slow start
_NETEM_PACKETS: Final = 100_000
_CONGESTION_CONTROL: Final = "cubic"
_TIMESTAMPS_BYTES: Final = 12  # of TCP's header, which an announced MSS does not count
_SYSCTL: Final = Path("/proc/sys/net")
_CAPABILITIES: Final = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}

_SYSCTLS: Final = MappingProxyType(
    {
        "ipv4/ip_forward": "1",
        "ipv4/conf/all/rp_filter": "0",
        "ipv4/conf/default/rp_filter": "0",
        "ipv4/tcp_timestamps": "1",
        "ipv4/tcp_no_metrics_save": "1",
        "ipv6/conf/all/disable_ipv6": "1",
        "ipv6/conf/default/disable_ipv6": "1",
    }
)

_OPEN_WINDOWS: Final = MappingProxyType(
    {
        "ipv4/tcp_slow_start_after_idle": "0",
        "ipv4/tcp_rmem": "4096 67108864 134217728",
        "ipv4/tcp_wmem": "4096 67108864 134217728",
    }
)


def unavailable() -> str:
    """Return why this process cannot make namespaces with links, or nothing if it can."""
    if sys.platform != "linux":
        return "network namespaces are a feature of Linux"
    if importlib.util.find_spec("pyroute2") is None:
        return "the package pyroute2 is not installed (pip install 'portend[testbed]')"
    lacks = _lacking()
    if lacks:
        return f"making network namespaces needs root ({' and '.join(lacks)})"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun; load the kernel module tun, or give the container that device"
    return ""


def _lacking() -> list[str]:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("CapEff:"):
            held = int(line.split()[1], 16)
            return [name for name, bit in _CAPABILITIES.items() if not held >> bit & 1]
    return list(_CAPABILITIES)


class Namespaces(Emulation):
    """Network namespaces for a topology's tiers, set up and verified; undone on leaving the ``with`` block.

    If this process is killed, the forwarder undoes it; if both are, ``portend testbed down``.

    Args:
        traces: bandwidth over time, by link, in both directions.
        purpose: what ``portend testbed show`` says of it.
        driver: of the links; netem needs a kernel that has it, and knows constant bandwidths only.
        congestion_control: of all TCP connections between tiers, as the kernel calls it.
        verify: measure every link first, and refuse one that is off.

    Raises:
        DeploymentError: on entering, where this is not possible or a link is not what the topology says.
    """

    isolated = True

    def __init__(
        self,
        topology: Topology,
        *,
        traces: Mapping[int, BandwidthTrace] = MappingProxyType({}),
        purpose: str = "run",
        driver: Driver = "forwarder",
        congestion_control: str = _CONGESTION_CONTROL,
        verify: bool = True,
    ) -> None:
        super().__init__(topology)
        law(
            len(topology.tiers) <= _MOST_TIERS,
            f"a testbed has at most {_MOST_TIERS} tiers, but the topology has {len(topology.tiers)}",
        )
        for index in traces:
            if not 0 <= index < len(topology.links):
                raise InvalidValue(
                    f"a trace is for one of the links {topology.numbered_links()}, but got one for {index}"
                )
        for link in topology.links:
            device_mtu(link)
        choice("a driver", driver, get_args(Driver))
        if driver == "netem" and traces:
            raise InvalidValue("bandwidth over time needs the driver 'forwarder', but got 'netem'")
        self._traces = dict(traces)
        self._purpose, self._driver, self._verify = purpose, driver, verify
        self._congestion_control = congestion_control
        self._kernels_windows: dict[str, str] = {}
        self._cleanup = contextlib.ExitStack()
        self._forwarder: Forwarder | None = None
        self._groups: dict[int, Path] = {}
        self._open: list[int] = []
        self.names: tuple[str, ...] = ()
        """Names of the tiers' namespaces, as ``ip netns`` takes them."""
        self.addresses = tuple(f"198.18.0.{index + 1}" for index in range(len(topology.tiers)))
        """The tiers' addresses; 198.18.0.0/15 is for tests of networks (RFC 2544)."""
        self.checks: tuple[Check, ...] = ()
        """What was measured after setting up."""

    @property
    def label(self) -> str:  # type: ignore[override]
        """What measurements say of their links."""
        names = self.topology.link_names
        traced = "".join(f"; link {names[index]} follows {trace.name}" for index, trace in sorted(self._traces.items()))
        start = self.topology.slow_start
        slow = "" if start is None else f", slow start from {start.initial_window} packets"
        other = "" if self._congestion_control == _CONGESTION_CONTROL else f", {self._congestion_control}"
        return f"network namespaces, {self._driver}{other}{slow}{traced}"

    # -- life ----------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        reason = unavailable()
        if reason:
            raise DeploymentError(f"{reason}; the emulation 'relay' needs none of that")
        with contextlib.ExitStack() as cleanup:
            try:
                self._set_up(cleanup)
            except OSError as error:
                raise DeploymentError(f"the testbed cannot be set up: {error}") from error
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.__exit__(kind, error, trace)

    def _set_up(self, cleanup: contextlib.ExitStack) -> None:
        known = (_SYSCTL / "ipv4/tcp_available_congestion_control").read_text(encoding="ascii").split()
        if self._congestion_control not in known:
            raise DeploymentError(
                f"this kernel has the congestion controls {', '.join(known)}, but {self._congestion_control!r} is "
                "asked for; choose one of these, or load its module"
            )
        self._kernels_windows = {name: (_SYSCTL / name).read_text(encoding="ascii").strip() for name in _OPEN_WINDOWS}
        claim = Claim()
        cleanup.callback(claim.release)
        self.names = tuple(namespace(claim.testbed, f"{i}-{tier.name}") for i, tier in enumerate(self.topology.tiers))
        claim.write(self.record())
        cleanup.callback(self._close_devices)
        for tier, name in enumerate(self.names):
            _create(name)
            with self.inside(tier):
                self._configure(tier)
        wires = []
        for index, link in enumerate(self.topology.links):
            if self._driver == "netem":
                self._join_by_netem(index, link)
            else:
                wires += self._join_by_tun(index, link)
        self._set_tcp(self._congestion_control, self.topology.slow_start)
        for tier, asked in enumerate(self.topology.tiers):
            if asked.cpu_quota is not None:
                self._groups[tier] = quota.limit(self.names[tier], asked.cpu_quota)
        self._forwarder = cleanup.enter_context(Forwarder(claim.testbed, wires))
        self._close_devices()  # they live as long as the forwarder
        if self._verify:
            self.checks = self.measure()
        claim.write(self.record())

    def measure(self) -> tuple[Check, ...]:
        """Measure every link, by connections with open windows; DeploymentError if one is off."""
        rewind = self._running().rewind
        self._set_tcp(_CONGESTION_CONTROL, None)
        try:
            return check_links(self.topology, self.addresses, self.inside, traces=self._traces, rewind=rewind)
        finally:
            self._set_tcp(self._congestion_control, self.topology.slow_start)

    def record(self) -> dict[str, Any]:
        """What others may know of the testbed: ``portend testbed show`` shows it."""
        return {
            "topology": self.topology.name,
            "purpose": self._purpose,
            "links": self.label,
            "tiers": [
                {"name": tier.name, "namespace": name, "address": address}
                for tier, name, address in zip(self.topology.tiers, self.names, self.addresses, strict=True)
            ],
            "checks": [asdict(check) for check in self.checks],
        }

    def _close_devices(self) -> None:
        while self._open:
            os.close(self._open.pop())

    # -- the interface -------------------------------------------------------------------------

    @property
    def pids(self) -> tuple[int, ...]:
        return () if self._forwarder is None or self._forwarder.pid is None else (self._forwarder.pid,)

    def host(self, tier: int) -> str:
        return self.addresses[tier]

    def start(self, tier: int, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        with self._on_cores(tier), self.inside(tier):
            process = subprocess.Popen(command, **options)
        if tier in self._groups:
            quota.join(self._groups[tier], process.pid)
        return process

    def rewind(self) -> None:
        self._running().rewind()

    def facts(self) -> dict[str, str]:
        """Packets that the forwarder delivered, dropped, or delivered more than 0.5 ms late, since ``rewind``."""
        if self._driver != "forwarder":
            return {}
        counted = self._running().report()
        sums = {what: sum(wire[what] for wire in counted) for what in ("sent", "dropped", "late")}
        latest_ms = 1e3 * max((wire["latest_s"] for wire in counted), default=0.0)
        lost = f"{sums['dropped']} dropped, {sums['late']} late, at most {latest_ms:.2f} ms"
        return {"link packets": f"{sums['sent']}, {lost}"}

    def check(self) -> None:
        self._running().check()

    def _running(self) -> Forwarder:
        if self._forwarder is None:
            raise DeploymentError("the testbed was not set up; use it in a 'with' statement")
        return self._forwarder

    @contextlib.contextmanager
    def inside(self, tier: int) -> Iterator[None]:
        """Put this thread into a tier's namespace for a while: sockets and processes that it makes stay there."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            there = os.open(NAMESPACES / self.names[tier], os.O_RDONLY | os.O_CLOEXEC)
            try:
                _enter(there)
            finally:
                os.close(there)
            try:
                yield
            finally:
                _enter(home)
        finally:
            os.close(home)

    # -- the kernel ----------------------------------------------------------------------------

    def _configure(self, tier: int) -> None:
        """Inside a tier's namespace: its address, and what all packets have in common."""
        for name, value in _SYSCTLS.items():
            path = _SYSCTL / name
            if name.startswith("ipv6") and not path.exists():
                continue  # a kernel without it
            path.write_text(value, encoding="ascii")
        with _kernel() as kernel:
            loopback = _index(kernel, "lo")
            kernel.addr("add", index=loopback, address=self.addresses[tier], prefixlen=32)
            kernel.link("set", index=loopback, state="up")

    def _join_by_tun(self, index: int, link: Link) -> list[WireEnds]:
        """Make a link's two TUN devices and return what the forwarder has to know."""
        ends = []
        for tier, device in ((index, "right"), (index + 1, "left")):
            with self.inside(tier):
                file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                self._open.append(file)
                fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TUN_NO_PI))
                with _kernel() as kernel:
                    _bring_up(kernel, device, link)
            ends.append(file)
        right, left = ends
        trace = self._traces.get(index)
        return [
            WireEnds(source=right, sink=left, link=link, trace=trace),
            WireEnds(source=left, sink=right, link=link, trace=trace),
        ]

    def _join_by_netem(self, index: int, link: Link) -> None:
        """Make a link's veth pair, with netem on both ends, and tell each the other's hardware address."""
        with self.inside(index), _kernel() as kernel:
            peer = {"ifname": "left", "net_ns_fd": str(NAMESPACES / self.names[index + 1])}
            kernel.link("add", ifname="right", kind="veth", peer=peer)
        hardware = {}
        for tier, device in ((index, "right"), (index + 1, "left")):
            with self.inside(tier), _kernel() as kernel:
                # One packet is one segment: TCP so never builds larger ones for this device.
                kernel.link("set", index=_index(kernel, device), gso_max_segs=1)
                hardware[tier] = _bring_up(kernel, device, link)
                _shape(_index(kernel, device), link)
        for tier, other, device in ((index, index + 1, "right"), (index + 1, index, "left")):
            with self.inside(tier), _kernel() as kernel:
                kernel.neigh(
                    "add",
                    dst=self.addresses[other],
                    lladdr=hardware[other],
                    ifindex=_index(kernel, device),
                    state=_PERMANENT,
                )

    def _set_tcp(self, congestion_control: str, slow_start: SlowStart | None) -> None:
        """Make the routes between all tiers, and what TCP connections that begin from now on do on them."""
        windows = (
            _OPEN_WINDOWS if slow_start is None else self._kernels_windows | {"ipv4/tcp_slow_start_after_idle": "1"}
        )
        for tier in range(len(self.names)):
            with self.inside(tier):
                for name, value in windows.items():
                    (_SYSCTL / name).write_text(value, encoding="ascii")
                self._route(tier, congestion_control, slow_start)

    def _route(self, tier: int, congestion_control: str, slow_start: SlowStart | None) -> None:
        """Inside a tier's namespace: the routes to all others, over the neighbor on their side."""
        with _kernel() as kernel:
            for other, address in enumerate(self.addresses):
                if other == tier:
                    continue
                step, device = (1, "right") if other > tier else (-1, "left")
                mtu = min(device_mtu(link) for link in self.topology.path(tier, other))
                segment = mtu - IP_TCP_BYTES
                sent = let_in = _WINDOW_PACKETS
                if slow_start is not None:
                    sent, let_in = slow_start.initial_window, max(slow_start.receive_window_bytes // segment, 1)
                kernel.route(
                    "replace",
                    dst=f"{address}/32",
                    gateway=self.addresses[tier + step],
                    oif=_index(kernel, device),
                    flags=_ONLINK,
                    prefsrc=self.addresses[tier],
                    metrics={
                        "mtu": mtu,
                        "advmss": segment + _TIMESTAMPS_BYTES,
                        "cc_algo": congestion_control,
                        "initcwnd": sent,
                        "initrwnd": let_in,
                    },
                )


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _enter(file: int) -> None:
    if _libc().setns(file, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"a network namespace cannot be entered: {os.strerror(ctypes.get_errno())}")


@contextlib.contextmanager
def _kernel() -> Iterator[Any]:
    """Netlink to the network namespace that this thread is in."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with IPRoute() as kernel:
        try:
            yield kernel
        except NetlinkError as error:
            raise OSError(error.code, str(error)) from error


def _create(name: str) -> None:
    from pyroute2 import netns

    netns.create(name)


def _index(kernel: Any, device: str) -> int:
    return int(kernel.link_lookup(ifname=device)[0])


def _bring_up(kernel: Any, device: str, link: Link) -> str:
    """Give a device its MTU and queue, and start it; return its hardware address, if it has one."""
    index = _index(kernel, device)
    kernel.link("set", index=index, mtu=device_mtu(link), txqlen=_QUEUE_PACKETS)
    kernel.link("set", index=index, state="up")
    return str(kernel.get_links(index)[0].get_attr("IFLA_ADDRESS"))


def _shape(index: int, link: Link) -> None:
    """Put netem on a device: the link's rate, counting what `wire_bytes` counts, and its delay.

    A message of its own, for pyroute2 0.9 sends netem's rate a second time as the device's, which the kernel refuses.
    """
    from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST
    from pyroute2.netlink.rtnl import RTM_NEWQDISC, TC_H_ROOT
    from pyroute2.netlink.rtnl.tcmsg import sched_netem, tcmsg

    law(
        link.bandwidth_bps < 8 * (1 << 32),
        f"netem knows rates below 34 Gbit/s, but a link has {link.bandwidth_bps:g} bit/s; use the driver 'forwarder'",
    )
    options = sched_netem.get_parameters(
        {
            "delay": round(1e6 * link.propagation_delay_s),
            "limit": _NETEM_PACKETS,
            "rate": round(link.bandwidth_bps / 8),
            "packet_overhead": link.header_bytes - IP_TCP_BYTES - _ETHERNET_BYTES,
        }
    )
    message = tcmsg()
    message["index"], message["parent"], message["handle"] = index, TC_H_ROOT, 1 << 16
    message["attrs"] = [("TCA_KIND", "netem"), ("TCA_OPTIONS", options)]
    message["header"]["type"] = RTM_NEWQDISC
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
    message.encode()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.send(message.data)
        (error,) = struct.unpack_from("=i", kernel.recv(1 << 16), 16)  # the answer to what asks for one
    if error:
        raise OSError(-error, f"netem cannot be set up: {os.strerror(-error)}")
