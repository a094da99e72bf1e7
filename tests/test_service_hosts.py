"""Agents on hosts that run out of things, and whose keys change: real processes, real limits, real keys."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from portend.errors import DeploymentError
from portend.service.coordinator import Agents
from portend.service.keys import OPERATOR, load_keys, make_keys
from service_hosts import NAMES, Hosts, Stream, Workload, until, whole


@pytest.fixture
def own_keys(tmp_path: Path) -> Path:
    """Keys that a test may change: a folder for each host, as an operator would give them out, and the operator's."""
    make_keys(tmp_path / "made", [*NAMES, OPERATOR])
    for name in (*NAMES, OPERATOR):
        give_out(tmp_path, name)
    return tmp_path


def give_out(place: Path, name: str) -> None:
    """Copy all public keys and its own secret one to a host."""
    host = place / f"keys-{name}"
    host.mkdir(exist_ok=True)
    for path in (place / "made").glob("*.key"):
        shutil.copy(path, host)
    shutil.copy(place / f"made/{name}.key_secret", host)


@pytest.fixture
def hosts(own_keys: Path) -> Iterator[Hosts]:
    with Hosts(own_keys, keys=own_keys) as running:
        yield running


@pytest.fixture
def edge(own_keys: Path) -> Iterator[Hosts]:
    """One agent alone."""
    with Hosts(own_keys, ["edge"], keys=own_keys) as running:
        yield running


def operator(hosts: Hosts, place: Path) -> Agents:
    return Agents(hosts.topology, load_keys(place / f"keys-{OPERATOR}", OPERATOR), patience_s=30)


def test_keys_are_still_judged_without_file_descriptors_and_afterwards(edge: Hosts, own_keys: Path) -> None:
    until(lambda: "listening" in edge.log("edge"))
    make_keys(own_keys / "strange", [OPERATOR, *NAMES])
    for name in NAMES:
        shutil.copy(own_keys / f"made/{name}.key", own_keys / "strange")
    with edge.limited("edge", resource.RLIMIT_NOFILE, edge.descriptors("edge", 1)):
        strange = load_keys(own_keys / "strange", OPERATOR)
        with Agents(edge.topology, strange, patience_s=1) as stranger, pytest.raises(DeploymentError, match="keys"):
            stranger.ask(0, "hello")
        with operator(edge, own_keys) as agents:
            agents.ask(0, "hello")
    with operator(edge, own_keys) as agents:
        agents.hello()
    assert 0 < edge.log("edge").count("cannot be listed") < 5  # once each time, not with each connection


def test_a_damaged_key_file_is_named_and_locks_nobody_out(edge: Hosts, own_keys: Path) -> None:
    folder = own_keys / "keys-edge"
    (folder / "empty.key").touch()
    (folder / "cloud.key").write_text('public-key = "short"')
    (folder / "folder.key").mkdir()
    with operator(edge, own_keys) as agents:
        agents.ask(0, "hello")
    for name in ("empty", "cloud", "folder"):
        assert f"keys-edge/{name}.key" in edge.log("edge")
    assert edge.log("edge").count("empty.key cannot be read") == 1


def test_keys_are_rotated_one_after_the_other_while_samples_flow(hosts: Hosts, own_keys: Path, work: Workload) -> None:
    with operator(hosts, own_keys) as agents:
        work.release(agents, attempts=20, deadline_s=60.0)
        whole(agents)
        with Stream(agents, work, "rotate") as stream:
            for name in ("cloud", "base"):
                stream.flows()
                for kind in ("key", "key_secret"):
                    (own_keys / f"made/{name}.{kind}").unlink()
                make_keys(own_keys / "made", [name])
                for host in NAMES:
                    give_out(own_keys, host)
                hosts.kill(name)
                hosts.start(name)
        stream.check()
    for host in (OPERATOR, *NAMES):
        give_out(own_keys, host)
    with operator(hosts, own_keys) as agents:
        whole(agents)
        old = load_keys(own_keys / f"keys-{OPERATOR}", OPERATOR)
        for kind in ("key", "key_secret"):
            (own_keys / f"made/{OPERATOR}.{kind}").unlink()
        make_keys(own_keys / "made", [OPERATOR])
        for host in (OPERATOR, *NAMES):
            give_out(own_keys, host)
        until(lambda: refused(agents, 0))  # the connection stands, but its key is nobody's now
    with Agents(hosts.topology, old, patience_s=1) as revoked, pytest.raises(DeploymentError, match="reached"):
        revoked.ask(0, "hello")
    with operator(hosts, own_keys) as agents:
        agents.hello()


def refused(agents: Agents, tier: int) -> bool:
    try:
        agents.ask(tier, "status", patience_s=0.5)
    except DeploymentError:
        return True
    return False
