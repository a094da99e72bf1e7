"""Agents on hosts that run out of things, and whose keys change: real processes, real limits, real keys."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml
import zmq

from portend.errors import DeploymentError
from portend.service.keys import OPERATOR, load_keys, make_keys
from portend.service.operator import Agents
from portend.service.store import Store
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


# -- what a host runs out of -----------------------------------------------------------------------


@pytest.fixture
def plain(tmp_path: Path, work: Workload) -> Iterator[tuple[Hosts, Agents]]:
    """One agent alone that runs a release, without keys."""
    with Hosts(tmp_path, ["edge"]) as hosts, Agents(hosts.topology, None, patience_s=30) as agents:
        work.release(agents, work.plans[-1:])
        yield hosts, agents


def answers(agents: Agents, work: Workload, name: str) -> None:
    """Every sample has one answer, and the right one."""
    named = [(f"{name}-{i}", sample) for i, sample in enumerate(work.samples)]
    got = [(a.id, a.failed, a.label) for a in agents.submitter(8).answers(named)]
    assert sorted(got) == sorted((n, "", work.expected(work.plans[-1], i)[0]) for i, (n, _) in enumerate(named))


@pytest.mark.parametrize("free", [0, 8 << 20])
def test_a_load_that_has_no_memory_says_so_at_once(tmp_path: Path, work: Workload, free: int) -> None:
    with Hosts(tmp_path, ["edge"]) as hosts, Agents(hosts.topology, None, patience_s=30) as agents:
        agents.hello()
        used = int(Path(f"/proc/{hosts.processes['edge'].pid}/statm").read_text().split()[0])
        with hosts.limited("edge", resource.RLIMIT_AS, used * os.sysconf("SC_PAGE_SIZE") + free):
            with pytest.raises(DeploymentError, match="reports: "):  # ONNX Runtime cannot even be imported
                work.release(agents, work.plans[-1:])
            assert agents.ask(0, "status")["versions"] == []
        work.release(agents, work.plans[-1:])
        answers(agents, work, "afterwards")


@pytest.mark.parametrize("kind", ["random", "cut off", "changed", "another graph"])
def test_a_network_that_cannot_be_loaded_says_why_and_the_old_one_goes_on(
    plain: tuple[Hosts, Agents], work: Workload, tmp_path: Path, kind: str
) -> None:
    _, agents = plain
    data, path = bytearray(work.network.read_bytes()), tmp_path / "bad.onnx"
    if kind == "random":
        data = bytearray(random.Random(0).randbytes(len(data)))
    elif kind == "cut off":
        del data[len(data) // 2 :]
    elif kind == "changed":
        for at in range(0, len(data), 50):
            data[at] ^= 0xFF
    else:
        data = bytearray(
            onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 20]> g () => () {}').SerializeToString()
        )
    path.write_bytes(data)
    with pytest.raises(DeploymentError, match="reports: "):
        replace(work, network=path).release(agents, work.plans[-1:])
    answers(agents, work, "still")


def test_an_agent_that_is_killed_while_it_works_is_missed_soon(plain: tuple[Hosts, Agents], work: Workload) -> None:
    hosts, agents = plain
    agents.hello()
    hosts.send("edge", signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(agents.ask, 0, "load", patience_s=600.0, release={})
        time.sleep(0.5)
        hosts.kill("edge")
        hosts.start("edge")
        with pytest.raises(DeploymentError, match="was started again"):
            loading.result(60)


def test_an_order_given_after_a_restart_is_waited_for_by_who_met_the_agent_before(
    plain: tuple[Hosts, Agents], work: Workload
) -> None:
    hosts, agents = plain
    agents.hello()
    hosts.kill("edge")
    hosts.start("edge")
    agents.ask(0, "status")  # by a new connection
    hosts.send("edge", signal.SIGSTOP)
    thaw = threading.Timer(3.0, hosts.send, ("edge", signal.SIGCONT))
    thaw.start()
    try:
        for _ in range(2):  # the second one hears what was asked while the first one waited
            assert agents.ask(0, "status")["active"] == 1
    finally:
        thaw.join()


def test_a_full_disk_changes_nothing_and_is_told(plain: tuple[Hosts, Agents], work: Workload) -> None:
    hosts, agents = plain
    before = agents.ask(0, "status")["active"]
    with hosts.limited("edge", resource.RLIMIT_FSIZE, 0):
        with pytest.raises(DeploymentError, match="cannot write"):
            work.release(agents, work.plans[-1:])
        answers(agents, work, "full")
    agents.ask(0, "load", patience_s=60, release={**saved(hosts)[-1], "version": before + 1})
    with hosts.limited("edge", resource.RLIMIT_FSIZE, 0):
        with pytest.raises(DeploymentError, match="cannot write"):
            agents.ask(0, "activate", release=before + 1, wait_s=5.0)
        assert agents.ask(0, "status")["active"] == before
    agents.ask(0, "activate", release=before + 1, wait_s=5.0)
    assert agents.ask(0, "status")["active"] == before + 1
    answers(agents, work, "room")


def saved(hosts: Hosts) -> list[dict[str, Any]]:
    return list(json.loads((hosts.folder / "edge/releases.json").read_text())["releases"])


def test_a_state_folder_that_is_taken_away_is_made_anew(plain: tuple[Hosts, Agents], work: Workload) -> None:
    hosts, agents = plain
    shutil.rmtree(hosts.folder / "edge")
    answers(agents, work, "without")
    release = work.release(agents, work.plans[-1:])
    with pytest.raises(DeploymentError, match="another agent uses"):
        Store(hosts.folder / "edge")
    hosts.kill("edge")
    hosts.start("edge")
    until(lambda: agents.ask(0, "status")["active"] == release.version)
    answers(agents, work, "again")


def test_an_agent_gets_by_with_64_descriptors(own_keys: Path, work: Workload) -> None:
    with contextlib.ExitStack() as few, Hosts(own_keys, keys=own_keys) as hosts, operator(hosts, own_keys) as agents:
        agents.hello()
        for name in NAMES:
            few.enter_context(hosts.limited(name, resource.RLIMIT_NOFILE, 64))
        work.release(agents, attempts=20, deadline_s=60.0)
        whole(agents)
        with Stream(agents, work, "few", most=200) as stream:
            stream.finish()
        stream.check()
        few.close()


def refused(agents: Agents, tier: int) -> bool:
    try:
        agents.ask(tier, "status", patience_s=0.5)
    except DeploymentError:
        return True
    return False


# -- deploys and floods while samples flow ---------------------------------------------------------


def deploying(hosts: Hosts, own_keys: Path, work: Workload) -> list[str]:
    """The command that deploys the workload's plans to the hosts."""
    tiers = [{"name": tier.name, "port": tier.port} for tier in hosts.topology.tiers]
    link = {"bandwidth": "1 Gbit/s", "propagation_delay": "0 ms"}
    places, plan = own_keys / "hosts.yaml", own_keys / "plan.json"
    places.write_text(yaml.safe_dump({"tiers": tiers, "links": [link] * (len(tiers) - 1)}))
    wanted, *others = (each.to_dict() for each in work.plans)
    fallbacks = [{"plan": other} for other in others]
    plan.write_text(json.dumps({"plan": wanted, "tiers": list(NAMES), "fallbacks": fallbacks}))
    return [
        sys.executable, "-m", "portend.cli.app", "deploy", str(plan), "--network", str(work.network), "--topology",
        str(places), "--keys", str(own_keys / f"keys-{OPERATOR}"),
    ]  # fmt: skip


@pytest.mark.slow
def test_deploys_at_once_and_killed_ones_leave_a_service_that_answers(
    hosts: Hosts, own_keys: Path, work: Workload
) -> None:
    command, chance = deploying(hosts, own_keys, work), random.Random(3)
    with operator(hosts, own_keys) as agents:
        work.release(agents, attempts=20, deadline_s=60.0)
        whole(agents)
        with Stream(agents, work, "deploys") as stream:
            two = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
            told = [(one.communicate(timeout=120)[1], one.returncode) for one in two]
            assert 0 in [code for _, code in told], told
            assert all(code == 0 or "higher version" in text for text, code in told), told
            for _ in range(6):
                killed = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
                time.sleep(chance.uniform(1.0, 5.0))
                killed.kill()
                killed.wait()
                stream.flows()
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
            assert done.returncode == 0, done.stderr
            stream.flows()
        stream.check()
        whole(agents)
        active = agents.ask(0, "status")["active"]
        until(lambda: all(agents.ask(tier, "status")["versions"] == [active] for tier in range(3)))


def test_what_a_killed_deploy_loaded_is_let_go(tmp_path: Path, work: Workload) -> None:
    """Agents for which 15 minutes take a second."""
    hurried = (
        "import sys; from portend.service import releases; releases._UNUSED_S = 1.0; "
        "from portend.cli.app import main; main()"
    )
    hosts = Hosts(tmp_path, ["edge", "cloud"])
    command = hosts.command
    hosts.command = lambda *words: [sys.executable, "-c", hurried, *command(*words)[3:]]  # type: ignore[method-assign]
    with hosts, Agents(hosts.topology, None, patience_s=30) as agents:

        def loaded() -> list[list[int]]:
            return [agents.ask(tier, "status")["versions"] for tier in range(2)]

        plans = [work.plans[1]]
        first = work.release(agents, plans)
        later = replace(first, version=first.version + 1).to_dict()
        for tier in range(2):
            agents.ask(tier, "load", release=later)
        until(lambda: loaded() == [[first.version]] * 2)
        time.sleep(1.5)
        assert loaded() == [[first.version]] * 2  # what is active stays
        assert work.release(agents, plans).version == first.version + 1
        assert len(list(agents.submitter().answers([("after", work.samples[0])]))) == 1
    assert "unloaded release 2" in hosts.log("edge")


@pytest.mark.slow
def test_six_releases_one_after_the_other_while_all_places_are_taken(
    hosts: Hosts, own_keys: Path, work: Workload
) -> None:
    with operator(hosts, own_keys) as agents:
        work.release(agents, attempts=20, deadline_s=120.0)
        whole(agents)
        with Stream(agents, work, "six", pending=72) as stream:  # window and queue are full all the time
            for number in range(6):
                work.release(agents, work.plans if number % 2 else work.plans[1:], attempts=20, deadline_s=120.0)
                stream.flows()
        stream.check()


def strangers(hosts: Hosts, seconds: float, rate: float) -> int:
    """Half-open connections, random bytes and connections with unknown keys, to the edge, so many a second."""
    opened: list[Any] = []
    chance, count, began = random.Random(0), 0, time.monotonic()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
    server = load_keys(hosts.keys_of("edge"), "edge").public
    while (now := time.monotonic() - began) < seconds:
        while count < rate * now:
            count += 1
            if count % 20 == 0:
                unknown = context.socket(zmq.DEALER)
                unknown.setsockopt(zmq.LINGER, 0)
                unknown.curve_publickey, unknown.curve_secretkey = zmq.curve_keypair()
                unknown.curve_serverkey = server
                unknown.connect(f"tcp://127.0.0.1:{hosts.listen['edge']}")
                opened.append(unknown)
                continue
            with contextlib.suppress(OSError):
                one = socket.create_connection(("127.0.0.1", hosts.listen["edge"]), timeout=1)
                opened.append(one)
                if count % 2:
                    one.sendall(chance.randbytes(chance.randint(1, 200)))
        while len(opened) > 3 * rate:
            opened.pop(0).close()
        time.sleep(0.01)
    for one in opened:
        one.close()
    context.destroy(linger=0)
    return count


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "few"), [(60, True), (1000, False)])
def test_a_flood_of_strangers_stops_no_sample_and_no_later_connection(
    hosts: Hosts, own_keys: Path, work: Workload, rate: int, few: bool
) -> None:
    with operator(hosts, own_keys) as agents, contextlib.ExitStack() as limits:
        work.release(agents, attempts=20, deadline_s=60.0)
        whole(agents)
        if few:  # so that it runs out of descriptors
            limits.enter_context(hosts.limited("edge", resource.RLIMIT_NOFILE, hosts.descriptors("edge", 8)))
        with Stream(agents, work, "flood", pace_s=0.05) as stream:
            assert strangers(hosts, 4 if few else 20, rate) >= rate
            stream.flows()
        stream.check()
    with operator(hosts, own_keys) as agents:
        agents.hello()


@pytest.mark.slow
def test_a_clone_of_an_agent_with_its_key_loses_and_doubles_nothing(
    hosts: Hosts, own_keys: Path, work: Workload
) -> None:
    with operator(hosts, own_keys) as agents:
        work.release(agents, attempts=50, deadline_s=120.0)
        whole(agents)
        clone = Hosts(own_keys / "clone", ["base"], keys=own_keys)
        shutil.copytree(own_keys / "base", own_keys / "clone/base")
        with Stream(agents, work, "clone") as stream:
            with clone:
                until(lambda: "listening" in clone.log("base"))
                for _ in range(5):
                    stream.flows()
            whole(agents)
            stream.flows()
        stream.check()
