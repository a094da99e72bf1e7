"""What links and addresses do to a running service: broken and half-open connections, other addresses, slow links.

Real agents. No sample is lost, doubled or failed, and each label is the one of a single process.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from portend.errors import DeploymentError
from portend.service.coordinator import Agents
from portend.service.keys import OPERATOR, load_keys
from service_hosts import Cable, Hosts, Stream, Workload, free_ports, until, whole

NAMES = ("edge", "cloud")
LIMITS: dict[str, Any] = {"retry_s": 2.0, "deadline_s": 60.0, "attempts": 20, "silence_s": 1.0}


@pytest.fixture(scope="module")
def cable() -> Iterator[Cable]:
    made = Cable(*free_ports(1))
    yield made
    made.close()


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory, keys: Path, cable: Cable) -> Iterator[Hosts]:
    hosts = Hosts(tmp_path_factory.mktemp("hosts"), NAMES, keys=keys, through={"cloud": cable.port})
    hosts.listen |= {"cloud": cable.to}
    with hosts:
        yield hosts


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
    slow = Cable(*free_ports(1), rate_bps=25e3, delay_s=0.03)
    hosts = Hosts(tmp_path, NAMES, keys=keys, through={"cloud": slow.port})
    hosts.listen |= {"cloud": slow.to}
    plan = replace(pair.plans[0], thresholds=(0.0,))  # nobody leaves on the edge
    try:
        with hosts, Agents(hosts.topology, load_keys(keys, OPERATOR), patience_s=60) as far:
            pair.release(far, [plan, pair.plans[1]], retry_s=1.0)
            whole(far)
            answers = list(far.submitter().answers((f"slow-{i}", pair.samples[i]) for i in range(2)))
        assert [(answer.failed, answer.attempts, answer.plan % 256) for answer in answers] == [("", 1, 0)] * 2
        expected = {f"slow-{i}": pair.expected(plan, i) for i in range(2)}
        assert {answer.id: (answer.label, answer.exit_index) for answer in answers} == expected
        assert min(answer.latency_s for answer in answers) > 2.0
    finally:
        slow.close()


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
