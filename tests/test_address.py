"""Addresses are read in one way by options, topologies, orders and links."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from portend.address import Address, is_loopback, read_address, read_host
from portend.cli import top
from portend.errors import InvalidValue, PortendError
from portend.io.forms import load_topology
from portend.service.agent import ServiceAgent
from portend.service.probes import Probes
from portend.testbed.emulation.relay import _resolve
from portend.values.topology import Tier


@pytest.mark.parametrize(
    ("text", "host", "port", "written"),
    [
        ("10.0.0.5:7100", "10.0.0.5", 7100, "10.0.0.5:7100"),
        ("tcp://10.0.0.5:7100", "10.0.0.5", 7100, "10.0.0.5:7100"),
        ("edge-1.example:80", "edge-1.example", 80, "edge-1.example:80"),
        ("[::1]:8399", "::1", 8399, "[::1]:8399"),
        ("tcp://[fe80::1%eth0]:1", "fe80::1%eth0", 1, "[fe80::1%eth0]:1"),
    ],
)
def test_an_address_is_read_and_written_back(text: str, host: str, port: int, written: str) -> None:
    found = read_address(text)
    assert (found, str(found)) == (Address(host, port), written)
    assert read_address(written) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("http://10.0.0.5:80/", "the URL .* write '10.0.0.5:80'"),
        ("::1:8399", r"brackets.* write \[::1\]:8399"),
        ("10.0.0.5", "HOST:PORT"),
        ("edge:http", "HOST:PORT"),
        ("edge:65536", "HOST:PORT"),
        (":7100", "a host is a name"),
        ("a b:1", "a host is a name"),
        ("[edge]:1", "a host is a name"),
        ("[::zz]:1", "a host is a name"),
    ],
)
def test_what_is_no_address_is_refused_with_the_remedy(text: str, said: str) -> None:
    with pytest.raises(InvalidValue, match=said):
        read_address(text)


@pytest.mark.parametrize("text", ["http://edge", "tcp://edge:7100", "edge:7100", "10.0.0.5:7100", "", "edge/", "-x"])
def test_a_host_of_a_topology_is_neither_a_url_nor_has_it_a_port(text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidValue):
        read_host(text)
    path = tmp_path / "t.yaml"
    path.write_text(f"tiers: [{{name: a, host: '{text}'}}]\nlinks: []\n")
    with pytest.raises(PortendError, match="host"):
        load_topology(path)


def test_brackets_are_the_same_everywhere(tmp_path: Path) -> None:
    assert Tier(name="a", device="d", host="[::1]") == Tier(name="a", device="d", host="::1")
    ServiceAgent("a", "[::1]:1", keys=None, state=tmp_path, http="[::1]:2").store.close()
    assert top.address("a=[::1]:9100") == ("a", "http://[::1]:9100/metrics")
    assert _resolve("[::1]:9")[1][:2] == ("::1", 9)


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        *[(host, True) for host in ("127.0.0.1", "localhost", "::1", "[::1]", "127.9.9.9")],
        *[(host, False) for host in ("0.0.0.0", "edge", "127.0.0.1.example", "::", "")],
    ],
)
def test_which_hosts_are_this_machine_alone(host: str, inside: bool) -> None:
    assert is_loopback(host) is inside


@pytest.mark.parametrize("host", ["[::1]", "::1"])
def test_links_are_measured_over_ipv6(host: str) -> None:
    """As an agent does it: a peer that listens there, and a measurement of the way to it."""

    async def measured() -> dict[str, object]:
        probes, secret = Probes(), "ab" * 16
        try:
            port = await probes.serve("::1", {"secret": secret, "seconds": 0.5, "port": 0})
            order = {"secret": secret, "host": host, "port": port, "seconds": 0.5, "bytes": 1e6}
            return await probes.measure(order)
        finally:
            probes.close()

    assert asyncio.run(measured())["clock_error_s"] == 0.0
