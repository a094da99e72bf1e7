"""What links and addresses do to a running service: broken and half-open connections, other addresses, slow links.

Real agents. No sample is lost, doubled or failed, and each label is the one of a single process.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from portend.errors import DeploymentError
from portend.service.keys import OPERATOR, load_keys
from portend.service.operator import Agents
from service_hosts import Cable, Cabled, Hosts, Stream, Workload, free_ports, until, whole

NAMES = ("edge", "cloud")
LIMITS: dict[str, Any] = {"retry_s": 2.0, "deadline_s": 60.0, "attempts": 20, "silence_s": 1.0}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Iterator[Cabled]:
    with Cabled(tmp_path_factory.mktemp("hosts"), keys=keys) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def cable(hosts: Cabled) -> Cable:
    return hosts.cables["cloud"]


@pytest.fixture(scope="module")
def pair(work: Workload) -> Workload:
    """The network over an edge and a cloud, then on the edge alone."""
    plan = work.plans[1]
    return replace(work, plans=(plan, work.plans[3]))


@pytest.fixture(scope="module")
def agents(hosts: Hosts, keys: Path, pair: Workload) -> Iterator[Agents]:
    with Agents(hosts.topology, load_keys(keys, OPERATOR), patience_s=60) as connected:
        pair.release(connected, **LIMITS)
        whole(connected)
        yield connected


def elsewhere(agents: Agents, **places: Any) -> Agents:
    """The same agents, with the cloud at another address."""
    edge, cloud = agents.topology.tiers
    return Agents(replace(agents.topology, tiers=(edge, replace(cloud, **places))), agents.keys, patience_s=30)


def test_a_connection_whose_far_side_stays_open_is_taken_over(agents: Agents, pair: Workload, cable: Cable) -> None:
    with Stream(agents, pair, "half") as stream:
        for _ in range(3):
            cable.hang_up_near()
            until(lambda: agents.ask(0, "status")["plan"] == 0, 20)
            stream.flows()
    stream.check()


def test_a_release_with_another_address_for_a_running_agent_is_used(
    hosts: Hosts, agents: Agents, pair: Workload
) -> None:
    with Stream(agents, pair, "moved") as stream:
        for port in (hosts.listen["cloud"], agents.topology.tiers[1].port):
            with elsewhere(agents, port=port) as moved:
                release = pair.release(moved, **LIMITS)
                assert moved.ask(0, "status")["plan"] == 0
                assert moved.settled(release.version)
            stream.flows()
    stream.check()


def test_a_deploy_fails_where_no_sample_could_be_answered_and_says_who_does_not_reach_whom(
    hosts: Hosts, agents: Agents, pair: Workload
) -> None:
    """The operator reaches the cloud, but the edge, at the address of the release, does not."""
    before = agents.ask(0, "status")["active"]
    (unused,) = free_ports(1)
    with elsewhere(agents, port=unused) as wrong:
        wrong.sockets[1].close()
        wrong.sockets[1] = agents.sockets[1]
        with pytest.raises(DeploymentError, match=rf"cloud .*127\.0\.0\.1:{unused}"):
            pair.release(wrong, pair.plans[:1], **LIMITS)
    assert agents.ask(0, "status")["active"] == before
    pair.release(agents, **LIMITS)
    whole(agents)


def test_a_tensor_that_takes_longer_than_the_silence_is_answered_once(
    tmp_path: Path, keys: Path, pair: Workload
) -> None:
    """8 kB over 25 kbit/s take 2.7 s; so does most of the network's way there. Nothing of the link is broken."""
    plan = replace(pair.plans[0], thresholds=(0.0,))  # nobody leaves on the edge
    with (
        Cabled(tmp_path, keys=keys, rate_bps=25e3, delay_s=0.03) as hosts,
        Agents(hosts.topology, load_keys(keys, OPERATOR), patience_s=60) as far,
    ):
        pair.release(far, [plan, pair.plans[1]], retry_s=1.0)
        whole(far)
        answers = list(far.submitter().answers((f"slow-{i}", pair.samples[i]) for i in range(2)))
    assert [(answer.failed, answer.attempts, answer.plan % 256) for answer in answers] == [("", 1, 0)] * 2
    expected = {f"slow-{i}": pair.expected(plan, i) for i in range(2)}
    assert {answer.id: (answer.label, answer.exit_index) for answer in answers} == expected
    assert min(answer.latency_s for answer in answers) > 2.0


@pytest.mark.parametrize("ways", [(), ("there",), ("back",)])
def test_a_cut_is_got_over_whichever_way_it_is(
    agents: Agents, pair: Workload, cable: Cable, ways: tuple[str, ...]
) -> None:
    with Stream(agents, pair, f"cut-{'-'.join(ways)}") as stream:
        cable.cut(*ways)
        until(lambda: agents.ask(0, "status")["plan"] == 1, 20)
        stream.flows()
        cable.mend()
        until(lambda: agents.ask(0, "status")["plan"] == 0, 20)
        stream.flows()
    stream.check()


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [2, 10, 60])
@pytest.mark.parametrize("ways", [(), ("there",), ("back",)])
def test_the_wanted_plan_is_back_within_twice_the_silence_however_long_the_cut(
    agents: Agents, pair: Workload, cable: Cable, ways: tuple[str, ...], seconds: float
) -> None:
    with Stream(agents, pair, f"long-{seconds}-{'-'.join(ways)}", pace_s=0.02) as stream:
        cable.cut(*ways)
        time.sleep(seconds)
        cable.mend()
        took_s = until(lambda: agents.ask(0, "status")["plan"] == 0, 20)
        stream.flows()
    stream.check()
    assert took_s < 2 * LIMITS["silence_s"]


@pytest.mark.slow
def test_a_link_that_comes_and_goes_loses_nothing(agents: Agents, pair: Workload, cable: Cable) -> None:
    with Stream(agents, pair, "flaps", pace_s=0.02) as stream:
        for _ in range(20):
            cable.cut()
            time.sleep(1.0)
            cable.mend()
            time.sleep(1.0)
        whole(agents)
        stream.flows()
    stream.check()


@pytest.mark.slow
@pytest.mark.parametrize("order", [("edge", "cloud"), ("cloud", "edge")])
def test_all_agents_killed_and_started_in_any_order_lose_nothing(
    hosts: Hosts, agents: Agents, pair: Workload, order: tuple[str, ...]
) -> None:
    with Stream(agents, pair, f"all-{order[0]}", pace_s=0.02) as stream:
        for name in order:
            hosts.kill(name)
        for name in order:
            hosts.start(name)
            time.sleep(1.0)
        whole(agents)
        stream.flows()
    stream.check()


# -- names and clocks that change ------------------------------------------------------------------


def apart(hosts: Hosts) -> contextlib.ExitStack:
    """Start the hosts' agents by hand within the context."""
    ends = contextlib.ExitStack()
    ends.push(hosts)
    return ends


@pytest.mark.slow
def test_a_host_that_moves_to_another_address_is_found_by_its_name(tmp_path: Path, keys: Path, pair: Workload) -> None:
    """What the cloud's name means is in a file of names that only the agents see."""
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:
        pytest.skip("mounts of its own take root (unshare --mount)")
    hosts, names = Hosts(tmp_path, NAMES, keys=keys), tmp_path / "names"
    hosts.within = ["unshare", "--mount", "sh", "-c", f'mount --bind {names} /etc/hosts && exec "$@"', "sh"]

    def cloud_at(address: str) -> None:
        names.write_text(f"127.0.0.1 localhost\n{address} cloud.portend.test\n")
        hosts.start("cloud", "--listen", f"tcp://{address}:{hosts.listen['cloud']}")

    with apart(hosts):
        cloud_at("127.0.0.2")
        hosts.start("edge")
        with (
            Agents(hosts.topology, load_keys(keys, OPERATOR), patience_s=60) as known,
            elsewhere(known, host="127.0.0.2") as there,
            elsewhere(known, host="cloud.portend.test") as agents,
        ):
            agents.sockets[1], there.sockets[1] = there.sockets[1], agents.sockets[1]  # this process lacks the name
            pair.release(agents, **LIMITS)
            whole(agents)
            with Stream(agents, pair, "name") as stream:
                for address in ("127.0.0.3", "127.0.0.2"):
                    hosts.kill("cloud")
                    until(lambda: agents.ask(0, "status")["plan"] == 1)
                    cloud_at(address)
                    whole(agents)
                    stream.flows()
            stream.check()


STEPPED = """
import pathlib, time
real, real_ns, hours = time.time, time.time_ns, pathlib.Path(__file__).parent / "hours"
time.time = lambda: real() + 3600 * int(hours.read_text())
time.time_ns = lambda: real_ns() + 3600 * 10**9 * int(hours.read_text())
"""


@pytest.mark.slow
@pytest.mark.parametrize("limits", [{}, LIMITS | {"retry_s": 10.0, "silence_s": 3.0}], ids=["usual", "patient"])
def test_wall_clocks_that_are_stepped_by_an_hour_change_nothing(
    tmp_path: Path, keys: Path, pair: Workload, limits: dict[str, Any]
) -> None:
    """Python's wall clock of each agent: the libraries below it are not stepped."""
    hosts = Hosts(tmp_path, NAMES, keys=keys)

    def step(name: str, hours: int) -> None:
        (tmp_path / f"clock-{name}/new").write_text(str(hours))
        (tmp_path / f"clock-{name}/new").replace(tmp_path / f"clock-{name}/hours")

    with apart(hosts):
        for name in NAMES:
            (tmp_path / f"clock-{name}").mkdir()
            (tmp_path / f"clock-{name}/sitecustomize.py").write_text(STEPPED)
            step(name, 0)
            hosts.environment = {"PYTHONPATH": str(tmp_path / f"clock-{name}")}
            hosts.start(name)
        with Agents(hosts.topology, load_keys(keys, OPERATOR), patience_s=60) as agents:
            pair.release(agents, **limits)
            whole(agents)
            with Stream(agents, pair, "stepped", pace_s=0.02) as stream:
                for edge, cloud in ((1, 0), (1, -1), (-1, 1), (0, 0)):
                    step("edge", edge)
                    step("cloud", cloud)
                    stream.flows(40)
                    assert [round(agent.offset_s / 3600) for agent in agents.hello()] == [edge, cloud]
            stream.check()
        assert {(answer.attempts, answer.plan % 256) for answer in stream.got} == {(1, 0)}
        assert all(0 <= answer.latency_s < 60 for answer in stream.got)
