"""The service over links of the kernel, between network namespaces: slow links, and links that are cut.

Real agents. No sample is lost, doubled or failed, and each label is the one of a single process.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from portend.networks.onnxfile import OnnxNetwork, load_onnx
from portend.service.keys import OPERATOR, load_keys
from portend.service.operator import Agents
from portend.testbed.deployment import Deployment
from portend.testbed.emulation.namespaces import Namespaces, unavailable
from portend.values.execution import Execution
from portend.values.topology import Link, Tier, Topology
from service_hosts import Hosts, Stream, Workload, make_workload, until, whole

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(unavailable()), reason=f"no namespaces here: {unavailable()}"),
]

NAMES = ("edge", "cloud")
PORT = 7100
LIMITS: dict[str, Any] = {"retry_s": 2.0, "deadline_s": 120.0, "attempts": 50}


def pair_of_tiers(rate_bps: float, delay_s: float, **places: str) -> Topology:
    return Topology(
        name="pair",
        tiers=tuple(Tier(name=name, device="local", port=PORT, host=places.get(name, "127.0.0.1")) for name in NAMES),
        links=(Link(bandwidth_bps=rate_bps, propagation_delay_s=delay_s),),
    )


class Apart(Hosts):
    """Agents in the namespaces of a testbed."""

    def __init__(self, folder: Path, testbed: Namespaces, keys: Path) -> None:
        super().__init__(folder, NAMES, keys=keys)
        self._testbed = testbed
        link = testbed.topology.links[0]
        places = dict(zip(NAMES, testbed.addresses, strict=True))
        self.topology = pair_of_tiers(link.bandwidth_bps, link.propagation_delay_s, **places)

    def start(self, name: str, *more: str) -> None:
        tier = NAMES.index(name)
        with self._testbed.inside(tier):
            super().start(name, "--listen", f"tcp://{self._testbed.addresses[tier]}:{PORT}", *more)


@contextlib.contextmanager
def apart(folder: Path, keys: Path, rate_bps: float, delay_s: float) -> Iterator[tuple[Namespaces, Agents]]:
    """Two agents with a link between them, and the operator on the edge; so is this thread."""
    with (
        Namespaces(pair_of_tiers(rate_bps, delay_s), verify=False) as testbed,
        Apart(folder, testbed, keys) as hosts,
        testbed.inside(0),
        Agents(hosts.topology, load_keys(keys, OPERATOR), patience_s=60) as agents,
    ):
        yield testbed, agents


def on_the_cloud(work: Workload) -> Workload:
    """Nobody leaves on the edge; where the cloud is away, the edge does all."""
    return replace(work, plans=(replace(work.plans[1], thresholds=(0.0,)), work.plans[3]))


# -- slow links ------------------------------------------------------------------------------------


def test_a_tensor_over_a_slow_link_takes_little_more_than_its_bytes(tmp_path: Path, keys: Path, work: Workload) -> None:
    """8 kB over 25 kbit/s take 2.62 s."""
    work = on_the_cloud(work)
    with apart(tmp_path, keys, 25e3, 0.05) as (_, agents):
        work.release(agents)
        whole(agents)
        took = []
        for number in range(4):
            time.sleep(5.0)
            (answer,) = agents.submitter().answers([(f"slow-{number}", work.samples[number])])
            assert (answer.failed, answer.attempts, answer.plan % 256) == ("", 1, 0)
            assert (answer.label, answer.exit_index) == work.expected(work.plans[0], number)
            took.append(answer.latency_s)
    print("seconds:", took)
    assert min(took) > 8 * 4 * 8 * 16 * 16 / 25e3
    assert max(took[1:]) < 1.4 * 8 * 4 * 8 * 16 * 16 / 25e3, took  # with framing, life signs, and the answer


def test_a_large_network_is_deployed_over_a_slow_link(tmp_path: Path, keys: Path) -> None:
    """2.1 MB over 1 Mbit/s take 17 s."""
    work = on_the_cloud(make_workload(tmp_path, 4))
    network = load_onnx(work.network)
    more = {"noise": secrets.token_hex(1 << 20)}
    OnnxNetwork(network.model, network.spec, network.provenance | more).save(work.network)
    size = work.network.stat().st_size
    assert size > 2e6
    with apart(tmp_path, keys, 1e6, 0.02) as (_, agents):
        began = time.monotonic()
        work.release(agents)
        took_s = time.monotonic() - began
        whole(agents)
        answers = list(agents.submitter().answers(enumerate_named(work)))
    print("seconds:", took_s, "of", 8e-6 * size)
    assert sorted((answer.id, answer.label) for answer in answers) == [
        (name, work.expected(work.plans[0], number)[0]) for number, (name, _) in enumerate(enumerate_named(work))
    ]
    assert took_s < 1.3 * 8e-6 * size + 5


def enumerate_named(work: Workload) -> list[tuple[str, bytes]]:
    return [(f"sample-{number}", sample) for number, sample in enumerate(work.samples)]


@pytest.mark.parametrize("emulation", ["relay", "namespaces"])
def test_a_run_waits_longer_than_its_patience_for_what_is_under_way(work: Workload, emulation: str) -> None:
    """8 kB over 1 kbit/s take 66 s; the usual patience is 60 s."""
    topology = pair_of_tiers(1e3, 0.05)
    made: Any = Namespaces(topology, verify=False) if emulation == "namespaces" else emulation
    plan = replace(work.plans[1], thresholds=(0.0,))
    with Deployment(
        topology, work.network, work.decoder, executions=(Execution(executor="onnxruntime"),) * 2, emulation=made
    ) as running:
        running.load_samples(work.samples[:1], [0])
        running.deploy(plan)
        found = running.run(warmup=0)
    print("seconds:", found.latency_s)
    assert 65 < found.latency_s[0] < 100


# -- cuts ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(
    tmp_path_factory: pytest.TempPathFactory, keys: Path, work: Workload
) -> Iterator[tuple[Namespaces, Agents, Workload]]:
    work = on_the_cloud(work)
    with apart(tmp_path_factory.mktemp("apart"), keys, 50e6, 0.002) as (testbed, agents):
        work.release(agents, **LIMITS)
        whole(agents)
        yield testbed, agents, work


def set_link(testbed: Namespaces, way: str, *, whole: bool) -> None:
    """Cut or mend the link: its device on the edge ``down``, or packets from the edge (``there``) or to it dropped."""
    from pyroute2 import IPRoute

    tier, device = (1, "left") if way == "back" else (0, "right")
    with testbed.inside(tier), IPRoute() as kernel:
        index = kernel.link_lookup(ifname=device)[0]
        if way == "down":
            kernel.link("set", index=index, state="up" if whole else "down")
            if whole:  # its routes went with it
                testbed._route(tier, "cubic", None)
        else:
            kernel.tc("replace", "pfifo", index=index, handle="1:", limit=1000 if whole else 0)


@pytest.mark.parametrize("seconds", [2, 10, 60])
@pytest.mark.parametrize("ways", [("down",), ("there", "back"), ("there",), ("back",)], ids="-".join)
def test_the_wanted_plan_is_back_within_twice_the_silence_of_a_cut(
    quick: tuple[Namespaces, Agents, Workload], ways: tuple[str, ...], seconds: float
) -> None:
    testbed, agents, work = quick
    with Stream(agents, work, f"cut-{'-'.join(ways)}-{seconds}", pace_s=0.02) as stream:
        for way in ways:
            set_link(testbed, way, whole=False)
        time.sleep(seconds)
        assert agents.ask(0, "status")["plan"] == 1
        for way in ways:
            set_link(testbed, way, whole=True)
        took_s = until(lambda: agents.ask(0, "status")["plan"] == 0, 20)
        stream.flows()
    stream.check()
    print("back after", took_s, "s, sent again", sum(answer.attempts > 1 for answer in stream.got))
    assert took_s < 2.0


def test_a_link_that_is_made_anew_is_used(quick: tuple[Namespaces, Agents, Workload]) -> None:
    """1 s up, 1 s down, for 20 s."""
    testbed, agents, work = quick
    with Stream(agents, work, "flaps", pace_s=0.02) as stream:
        for _ in range(10):
            set_link(testbed, "down", whole=False)
            time.sleep(1.0)
            set_link(testbed, "down", whole=True)
            time.sleep(1.0)
        whole(agents)
        stream.flows()
    stream.check()
