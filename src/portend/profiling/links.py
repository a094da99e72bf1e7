"""The links of a topology, measured between processes of its tiers, and what the model makes of that.

Each pair of neighbors is measured from the tier that is nearer to the source: *there* is the way of the tensors.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from portend.errors import DeploymentError
from portend.io.storage import from_plain
from portend.runtime.link_probe import Budget, LinkMeasurement
from portend.testbed.emulation.base import Emulation
from portend.values.topology import Link, Topology, TransferCurve

__all__ = ["measure_links", "measured_link", "measured_topology"]

_MODULE = (sys.executable, "-m", "portend.runtime.link_probe")


def measure_links(emulation: Emulation, budget: Budget) -> tuple[LinkMeasurement, ...]:
    """Measure each link of an emulation, which was entered, one after the other; ``budget`` is for each.

    Raises:
        DeploymentError: a process does not start, or no message comes through.
    """
    tiers = range(len(emulation.topology.tiers))
    secret = secrets.token_hex(16)
    with contextlib.ExitStack() as cleanup:
        endpoints = {tier: cleanup.enter_context(_peer(emulation, tier, secret)) for tier in tiers}
        reach = emulation.reach(endpoints)
        return tuple(
            _measure(emulation, near, reach[near, far], secret, budget)
            for near, far in map(emulation.topology.outward, range(len(emulation.topology.links)))
        )


def _start(emulation: Emulation, tier: int, words: list[str], secret: str) -> subprocess.Popen[bytes]:
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = emulation.start(tier, [*_MODULE, *words], start_new_session=True, **pipes)
    assert process.stdin is not None
    process.stdin.write(f"{secret}\n".encode())
    process.stdin.flush()
    return process


@contextlib.contextmanager
def _peer(emulation: Emulation, tier: int, secret: str) -> Iterator[str]:
    """A peer on a tier; gives where it listens, host:port."""
    host = emulation.host(tier)
    with _start(emulation, tier, ["peer", host], secret) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline().strip().decode()
            if not port:
                raise DeploymentError(f"the peer on {emulation.topology.tiers[tier].name} did not start")
            yield f"{host}:{port}"
        finally:
            process.terminate()


def _measure(emulation: Emulation, near: int, target: str, secret: str, budget: Budget) -> LinkMeasurement:
    words = ["measure", target, str(budget.seconds), str(budget.bytes)]
    with _start(emulation, near, words, secret) as process:
        try:
            out, said = process.communicate(timeout=60 + 2 * budget.seconds)
        except subprocess.TimeoutExpired:
            raise DeploymentError(f"measuring a link took longer than {60 + 2 * budget.seconds:g} s") from None
        finally:
            process.kill()
    emulation.check()
    if process.returncode:
        raise DeploymentError(said.decode(errors="replace").strip() or f"exit code {process.returncode}")
    return from_plain(LinkMeasurement, json.loads(out))


def measured_link(link: Link, found: LinkMeasurement) -> Link:
    """Return a link as it was measured; packets and their headers are the given one's.

    The rate is that of the wire, headers included, there. The delay is half of the least round trip, less what the
    packets of a probe and its answer take at that rate.
    """
    room = link.mtu_bytes - link.header_bytes
    bandwidth_bps = found.rates_bps[0] * link.mtu_bytes / room
    packets = found.probe_bytes + found.answer_bytes + 2 * link.header_bytes
    return replace(
        link,
        bandwidth_bps=bandwidth_bps,
        propagation_delay_s=max(0.0, (found.least_round_trip_s - 8 * packets / bandwidth_bps) / 2),
        transfer=TransferCurve(sizes_bytes=found.sizes_bytes, warm_s=found.warm_s, cold_s=found.cold_s),
    )


def measured_topology(topology: Topology, found: tuple[LinkMeasurement, ...]) -> Topology:
    """Return the topology with its links as they were measured."""
    return replace(topology, links=tuple(map(measured_link, topology.links, found)))
