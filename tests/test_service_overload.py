"""More samples than a processor or a link carries: each is computed once and sent once, and none changes its plan."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from portend.runtime.executors import make_executor
from portend.service.keys import OPERATOR, load_keys
from portend.service.operator import Agents
from portend.values.execution import Execution
from service_hosts import Cable, Cabled, Hosts, Stream, Workload, make_workload, whole


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Iterator[Cabled]:
    with Cabled(tmp_path_factory.mktemp("hosts"), keys=keys, rate_bps=3e6) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def cable(hosts: Cabled) -> Cable:
    return hosts.cables["cloud"]


@pytest.fixture(scope="module")
def agents(hosts: Hosts, keys: Path) -> Iterator[Agents]:
    with Agents(hosts.topology, load_keys(keys, OPERATOR), patience_s=60) as connected:
        yield connected


def all_on_the_cloud(work: Workload) -> Workload:
    """Nobody leaves on the edge; where the cloud is away, the edge does all."""
    return replace(work, plans=(replace(work.plans[1], thresholds=(0.0,)), work.plans[3]))


def taking(folder: Path, seconds: float) -> Workload:
    """A network of so much processor time a sample."""

    def takes(heavy: int) -> tuple[Workload, float]:
        made = make_workload(folder, 8, heavy=heavy)
        last = make_executor(made.network, Execution(executor="onnxruntime")).partition(0, 4, branch=True)
        tensor, began = made.decoder.decode(made.samples[0]), time.process_time()
        last(tensor)
        return made, time.process_time() - began

    _, few_s = takes(10)
    _, more_s = takes(20)
    return takes(max(1, round(10 * seconds / max(more_s - few_s, 1e-3))))[0]


class Counts:
    """What happens to samples from here on, by the agents' metrics and log."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        self._before = self._now()

    def _now(self) -> dict[str, float]:
        return {
            "computed": self._hosts.metric("cloud", "portend_batch_samples_sum"),
            "sent again": self._hosts.metric("edge", "portend_sent_again_total"),
            "switches": self._hosts.log("edge").count("plans that can be used"),
        }

    def since(self) -> dict[str, float]:
        return {name: now - self._before[name] for name, now in self._now().items()}


@pytest.mark.parametrize(
    ("seconds", "samples", "limits"),
    [
        pytest.param(0.3, 20, {"retry_s": 1.5}, id="0.3 s"),
        pytest.param(1.0, 40, {}, id="1 s", marks=pytest.mark.slow),
    ],
)
def test_samples_that_wait_for_a_busy_processor_are_computed_once(
    hosts: Hosts, agents: Agents, tmp_path: Path, seconds: float, samples: int, limits: dict[str, Any]
) -> None:
    """Eight samples of the window take longer than --retry."""
    work = all_on_the_cloud(taking(tmp_path, seconds))
    assert agents.settled(work.release(agents, **limits).version)
    whole(agents)
    counts = Counts(hosts)
    with Stream(agents, work, f"busy-{seconds}", most=samples) as stream:
        stream.finish()
    stream.check()
    assert counts.since() == {"computed": samples, "sent again": 0, "switches": 0}
    assert {(answer.attempts, answer.plan % 256) for answer in stream.got} == {(1, 0)}


def test_a_full_link_carries_each_tensor_once(hosts: Hosts, agents: Agents, work: Workload, cable: Cable) -> None:
    """200 tensors of 8 kB take 4.4 s at 3 Mbit/s, and those of the window 0.7 s, longer than --retry."""
    work, samples = all_on_the_cloud(work), 200
    assert agents.settled(work.release(agents, window=32, retry_s=0.5).version)
    whole(agents)
    counts, before = Counts(hosts), cable.passed["there"]
    with Stream(agents, work, "full", pending=40, most=samples) as stream:
        stream.finish()
    passed = cable.passed["there"] - before
    stream.check()
    assert counts.since() == {"computed": samples, "sent again": 0, "switches": 0}
    assert {(answer.attempts, answer.plan % 256) for answer in stream.got} == {(1, 0)}
    needed = samples * 4 * 8 * 16 * 16
    assert needed < passed < 1.05 * needed, passed / needed
