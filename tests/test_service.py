"""Agents as processes of their own that talk encrypted: releases, answers, and what they refuse."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any

import msgpack
import pytest
import yaml
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from commands import portend
from portend.errors import ConfigError, DeploymentError, MessageError, StorageError
from portend.io.forms import load_topology, topology_yaml
from portend.runtime.protocol import PROTOCOL_VERSION, Header, pack_control, pack_header
from portend.service.agent import ServiceAgent
from portend.service.http import openapi
from portend.service.inbox import read_message
from portend.service.keys import OPERATOR, load_keys, make_keys
from portend.service.operator import Agents
from portend.service.peers import Beat, call, read_beat
from portend.service.release import NetworkFile, Release, read_release
from portend.service.store import Store
from portend.values.execution import Execution
from portend.values.plan import Plan
from service_hosts import NAMES, Hosts, Workload, make_workload, until


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Iterator[Hosts]:
    with Hosts(tmp_path_factory.mktemp("hosts"), keys=keys) as running:
        yield running


@pytest.fixture(scope="module")
def agents(hosts: Hosts, keys: Path, work: Workload) -> Iterator[Agents]:
    with Agents(hosts.topology, load_keys(keys, OPERATOR), patience_s=30) as connected:
        work.release(connected)
        until(lambda: connected.ask(0, "status")["plan"] == 0)
        yield connected


def http(hosts: Hosts, path: str, body: bytes | None = None, name: str = "edge", **headers: str) -> tuple[int, Any]:
    request = urllib.request.Request(f"http://127.0.0.1:{hosts.http[name]}{path}", data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            status, text = response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            status, text = error.code, error.read()
    return status, text.decode() if path == "/metrics" else json.loads(text)


def counter(hosts: Hosts, name: str, line: str) -> float:
    text = str(http(hosts, "/metrics", name=name)[1])
    return sum(float(each.split()[-1]) for each in text.splitlines() if each.startswith(line))


def reached(hosts: Hosts, line: str, due: float) -> bool:
    return counter(hosts, "edge", line) >= due


# -- releases and answers --------------------------------------------------------------------------


def test_every_sample_is_answered_as_the_network_says(agents: Agents, work: Workload) -> None:
    named = [(f"as-{i}", sample) for i, sample in enumerate(work.samples)]
    answers = {answer.id: answer for answer in agents.submitter(16).answers(named)}
    assert len(answers) == len(work.samples)
    found = [(answers[name].label, answers[name].exit_index) for name, _ in named]
    assert found == [work.expected(work.plans[0], i) for i in range(len(work.samples))]
    assert {exit_index for _, exit_index in found} >= {0, 2}
    assert {answer.attempts for answer in answers.values()} == {1}


def test_a_new_release_takes_over_without_a_pause_and_the_old_one_is_let_go(agents: Agents, work: Workload) -> None:
    before = agents.ask(0, "status")["active"]
    plans = [Plan(cuts=(2, work.plans[0].cuts[-1]), placement=(1, 2), thresholds=(0.5,), codecs=("encoded", "float32"))]
    with ThreadPoolExecutor(1) as pool, Agents(agents.topology, agents.keys) as second:
        submitter = second.submitter(4)
        stop: list[bool] = []

        def endless() -> Iterator[tuple[str, bytes]]:
            number = 0
            while not stop:
                yield f"switch-{number}", work.samples[number % len(work.samples)]
                number += 1

        answers = pool.submit(lambda: list(submitter.answers(endless())))
        time.sleep(0.3)
        release = work.release(agents, plans)
        assert agents.settled(release.version)
        time.sleep(0.3)
        stop.append(True)
        got = answers.result(60)
    assert release.version > before
    assert len({answer.id for answer in got}) == len(got) > 20
    assert not [answer.reason for answer in got if answer.failed]
    assert {answer.plan // 256 for answer in got} == {before, release.version}
    assert all(agents.ask(tier, "status")["versions"] == [release.version] for tier in range(3))
    assert release.version == work.release(agents).version - 1  # back to the first plans, for the other tests
    until(lambda: agents.ask(0, "status")["plan"] == 0)


def test_a_release_that_does_not_fit_is_refused_and_all_go_on(agents: Agents, work: Workload) -> None:
    before = agents.ask(0, "status")["active"]
    deep = Plan(cuts=(99,), placement=(1,), codecs=("encoded",))
    with pytest.raises(DeploymentError, match="has cuts 1–"):
        work.release(agents, [deep])
    small = replace(agents.topology, tiers=tuple(replace(t, memory_bytes=1000.0) for t in agents.topology.tiers))
    with Agents(small, agents.keys) as same, pytest.raises(DeploymentError, match="of memory"):
        work.release(same)
    assert agents.ask(0, "status")["active"] == before
    assert len(list(agents.submitter().answers([("still", work.samples[0])]))) == 1


def test_an_agent_says_which_version_it_is_and_how_its_clock_differs(agents: Agents) -> None:
    found = agents.hello()
    assert [agent.name for agent in found] == list(NAMES)
    assert all(abs(agent.offset_s) <= agent.within_s + 0.001 for agent in found)  # it is the same clock
    swapped = replace(agents.topology, tiers=agents.topology.tiers[::-1])
    renamed = replace(
        swapped, tiers=tuple(replace(t, name=n) for t, n in zip(swapped.tiers, NAMES, strict=True))
    )  # an agent proves its key, so a wrong address fails before it could say its name
    with Agents(renamed, agents.keys, patience_s=2) as wrong, pytest.raises(DeploymentError, match="public keys"):
        wrong.hello()


def test_samples_that_wait_for_a_tier_run_together_where_batches_are_allowed(
    agents: Agents, work: Workload, hosts: Hosts
) -> None:
    def run_together() -> float:
        return counter(hosts, "base", "portend_batch_samples_count") - counter(
            hosts, "base", 'portend_batch_samples_bucket{le="1.0"}'
        )

    work.release(agents, batches=(1, 4, 4), window=16, silence_s=20.0, retry_s=30.0)
    until(lambda: agents.ask(0, "status")["plan"] == 0)
    before = run_together()
    for turn in range(20):  # whether one comes while another runs is the machine's choice
        hosts.send("base", signal.SIGSTOP)  # so that several wait for it
        with ThreadPoolExecutor(1) as pool:
            named = ((f"together-{turn}-{number}", sample) for number, sample in enumerate(work.samples))
            coming = pool.submit(lambda given: list(agents.submitter().answers(given, patience_s=60)), named)
            until(lambda: counter(hosts, "edge", "portend_samples_under_way") >= 16)
            hosts.send("base", signal.SIGCONT)
            answers = coming.result(60)
        for answer in answers:
            expected = work.expected(work.plans[0], int(answer.id.rpartition("-")[2]))
            assert (answer.label, answer.exit_index) == expected, answer
        if run_together() > before:
            break
    assert run_together() > before
    work.release(agents)
    until(lambda: agents.ask(0, "status")["plan"] == 0)


def test_the_source_says_when_exits_do_other_than_profiled(hosts: Hosts, agents: Agents, work: Workload) -> None:
    left = Counter(work.expected(work.plans[0], number)[1] for number in range(len(work.samples)))
    right = [[100.0 * left[step] for step in range(3)]]
    wrong = [[100.0 * left[step] for step in (2, 0, 1)]]
    for counts, drifts in ((right, False), (wrong, True)):
        others = [[[1.0] * len(plan)] for plan in work.plans[1:]]
        release = work.release(agents, exit_counts=[counts, *others])
        until(lambda: agents.ask(0, "status")["plan"] == 0)
        named = (
            (f"drift-{release.version}-{number}", work.samples[number % len(work.samples)]) for number in range(400)
        )
        assert len(list(agents.submitter(24).answers(named))) == 400
        until(partial(_is, hosts, 'portend_exit_drift{plan="0"}', drifts))
        told = agents.ask(0, "status")["drift"]
        assert (len(told) == 1 and "exit drift: " in told[0]) if drifts else told == []
    assert "exit drift: " in hosts.log("edge")
    assert "exit drift" in portend("status", "--topology", _written(hosts), "--keys", hosts.keys).stdout
    work.release(agents)
    until(lambda: agents.ask(0, "status")["plan"] == 0)


def _is(hosts: Hosts, line: str, due: float) -> bool:
    return counter(hosts, "edge", line) == due


def _written(hosts: Hosts) -> Path:
    """The topology of the hosts as a file."""
    path = hosts.folder / "hosts.yaml"
    path.write_text(topology_yaml(hosts.topology))
    return path


# -- HTTP ------------------------------------------------------------------------------------------


def test_a_picture_sent_by_http_comes_back_with_label_and_confidence(
    hosts: Hosts, agents: Agents, work: Workload
) -> None:
    status, answer = http(hosts, "/v1/samples?id=one", work.samples[3])
    label, exit_index = work.expected(work.plans[0], 3)
    assert (status, answer["label"], answer["exit"], answer["id"]) == (200, label, exit_index + 1, "one")
    assert 0 <= answer["confidence"] <= 1
    assert answer["latency_ms"] > 0
    assert http(hosts, "/v1/samples?id=one", work.samples[3])[1] == answer  # the same id: the same answer


def test_an_id_with_other_bytes_is_refused_at_once_and_later(hosts: Hosts, agents: Agents, work: Workload) -> None:
    hosts.send("base", signal.SIGSTOP)  # so that the first one is under way still
    staying = next(i for i in range(len(work.samples)) if work.expected(work.plans[0], i)[1] > 0)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(http, hosts, "/v1/samples?id=twice", work.samples[staying])
        until(lambda: agents.ask(0, "status")["under_way"] == 1)
        status, told = http(hosts, "/v1/samples?id=twice", work.samples[staying - 1])
        hosts.send("base", signal.SIGCONT)
        assert first.result(60)[0] == 200
    assert status == 409
    assert "'twice'" in told["error"]
    assert http(hosts, "/v1/samples?id=twice", work.samples[staying - 1])[0] == 409
    (answer,) = agents.submitter().answers([("twice", work.samples[staying - 1])])
    assert (answer.failed, answer.label) == ("sample", -1)
    assert http(hosts, "/v1/samples?id=again", b"no picture")[0] == 422
    assert http(hosts, "/v1/samples?id=again", work.samples[staying])[0] == 200  # what failed is tried again
    until(lambda: agents.ask(0, "status")["plan"] == 0)


def test_http_refuses_what_is_no_sample(hosts: Hosts, agents: Agents, work: Workload) -> None:
    status, told = http(hosts, "/v1/samples", b"no picture")
    assert (status, told["failed"]) == (422, "sample")
    assert http(hosts, "/v1/samples", b"")[0] == 400
    assert http(hosts, "/v1/samples?id=a%20b", work.samples[0])[0] == 400
    assert http(hosts, "/v1/samples", work.samples[0], name="base")[0] == 503
    assert http(hosts, "/v1/samples", work.samples[0], Origin="https://example.org")[0] == 403
    assert http(hosts, "/v1/samples", work.samples[0], Host="example.org")[0] == 403


def test_a_body_that_is_too_large_is_refused_before_it_is_read(hosts: Hosts, agents: Agents) -> None:
    with socket.create_connection(("127.0.0.1", hosts.http["edge"])) as connection:
        connection.sendall(b"POST /v1/samples HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n\r\n")
        assert b" 413 " in connection.recv(200)
    with socket.create_connection(("127.0.0.1", hosts.http["edge"])) as connection:  # one that does not say how long
        connection.sendall(b"POST /v1/samples HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        got = b""
        for _ in range(200):
            try:
                connection.sendall(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
            except OSError:
                break
        connection.settimeout(10)
        got = connection.recv(200)
        assert b" 413 " in got


def test_the_interface_is_described_and_says_how_the_agent_does(hosts: Hosts, agents: Agents) -> None:
    status, described = http(hosts, "/openapi.json")
    assert (status, described) == (200, openapi())
    assert set(described["paths"]) == {"/v1/samples", "/health", "/metrics", "/openapi.json"}
    assert http(hosts, "/health", name="cloud")[0] == 200
    status, health = http(hosts, "/health")
    assert (status, health["plan"], health["peers"]["base"]["up"]) == (200, 0, True)


def test_the_interface_keeps_to_its_description_whatever_comes(hosts: Hosts, agents: Agents) -> None:
    """Schemathesis: methods, headers, queries and bodies, of the description and not.

    Without one check, that bytes are accepted which the description allows: it cannot say what a picture is.
    """
    done = subprocess.run(
        [Path(sys.executable).with_name("schemathesis"), "run", f"http://127.0.0.1:{hosts.http['edge']}/openapi.json",
         "--phases", "examples,coverage,fuzzing", "--max-examples", "40", "--seed", "1", "--no-color",
         "--request-timeout", "30", "--exclude-checks", "positive_data_acceptance"],
        capture_output=True, text=True, check=False, cwd=hosts.folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert http(hosts, "/health")[0] == 200


def test_metrics_count_exits_bytes_terms_and_credits(hosts: Hosts, agents: Agents, work: Workload) -> None:
    before = counter(hosts, "edge", 'portend_answers_total{exit="1"}')
    sent = counter(hosts, "edge", 'portend_sent_bytes_total{to="base"}')
    leaving = next(i for i in range(len(work.samples)) if work.expected(work.plans[0], i)[1] == 0)
    staying = next(i for i in range(len(work.samples)) if work.expected(work.plans[0], i)[1] > 0)
    assert http(hosts, "/v1/samples", work.samples[leaving])[0] == 200
    assert http(hosts, "/v1/samples", work.samples[staying])[0] == 200
    assert counter(hosts, "edge", 'portend_answers_total{exit="1"}') == before + 1
    assert counter(hosts, "edge", 'portend_sent_bytes_total{to="base"}') > sent
    assert counter(hosts, "base", 'portend_term_seconds_count{term="compute"}') > 0
    assert counter(hosts, "base", 'portend_term_seconds_count{term="transfer"}') > 0
    until(partial(_is, hosts, "portend_credits", 8))  # as of the last look at what is under way
    assert counter(hosts, "edge", "portend_peer_up") == 2


def test_what_comes_beyond_window_and_queue_is_refused_and_comes_again(
    tmp_path: Path, work: Workload, keys: Path
) -> None:
    with Hosts(tmp_path, ["edge"]) as hosts, Agents(hosts.topology, None, patience_s=30) as agents:
        work.release(agents, [work.plans[-1]], window=1, waiting=1)
        hosts.send("edge", signal.SIGSTOP)  # so that all are there at once
        with ThreadPoolExecutor(12) as pool:
            posts = [pool.submit(http, hosts, "/v1/samples", sample) for sample in work.samples[:12]]
            time.sleep(0.5)
            hosts.send("edge", signal.SIGCONT)
            told = [post.result()[0] for post in posts]
        assert set(told) <= {200, 503}
        assert 503 in told
        submitter = agents.submitter(20)
        answers = list(submitter.answers((f"{i}", sample) for i, sample in enumerate(work.samples[:20])))
        assert len(answers) == 20
        assert submitter.refused > 0


# -- who may do what -------------------------------------------------------------------------------


def test_an_unknown_key_is_refused_and_counted(hosts: Hosts, agents: Agents, keys: Path, tmp_path: Path) -> None:
    make_keys(tmp_path, [OPERATOR])
    for name in NAMES:
        (tmp_path / f"{name}.key").write_bytes((keys / f"{name}.key").read_bytes())
    before = counter(hosts, "edge", "portend_refused_connections_total")
    with (
        Agents(hosts.topology, load_keys(tmp_path, OPERATOR), patience_s=1) as stranger,
        pytest.raises(DeploymentError, match="public keys"),
    ):
        stranger.hello()
    until(lambda: counter(hosts, "edge", "portend_refused_connections_total") > before)
    with (
        Agents(hosts.topology, None, patience_s=1) as plain,
        pytest.raises(DeploymentError, match="cannot be reached"),
    ):
        plain.hello()


def test_an_agent_with_a_stolen_address_but_another_key_is_not_talked_to(
    hosts: Hosts, agents: Agents, keys: Path, tmp_path: Path
) -> None:
    make_keys(tmp_path, ["edge"])
    for name in (OPERATOR, "base", "cloud"):
        (tmp_path / f"{name}.key").write_bytes((keys / f"{name}.key").read_bytes())
    (tmp_path / f"{OPERATOR}.key_secret").write_bytes((keys / f"{OPERATOR}.key_secret").read_bytes())
    (tmp_path / f"{OPERATOR}.key_secret").chmod(0o600)
    with (
        Agents(hosts.topology, load_keys(tmp_path, OPERATOR), patience_s=1) as misled,
        pytest.raises(DeploymentError, match="cannot be reached"),
    ):
        misled.ask(0, "hello")


def test_a_tier_s_key_gives_no_orders(hosts: Hosts, agents: Agents, keys: Path) -> None:
    before = counter(hosts, "edge", 'portend_dropped_messages_total{why="not_allowed"}')
    with connected(hosts, keys, "base") as wire:
        send(wire, [pack_control("activate", number=1, release=1)])
        until(lambda: counter(hosts, "edge", 'portend_dropped_messages_total{why="not_allowed"}') > before)
        assert not wire.poll(200)


def test_plain_text_and_open_http_stay_on_this_machine(tmp_path: Path, keys: Path, hosts: Hosts) -> None:
    with pytest.raises(ConfigError, match="plain text stays on this machine"):
        ServiceAgent("edge", "tcp://0.0.0.0:7100", keys=None, state=tmp_path)
    with pytest.raises(ConfigError, match="asks nobody"):
        ServiceAgent("edge", "127.0.0.1:7100", keys=None, state=tmp_path, http="0.0.0.0:8080")
    far = replace(hosts.topology, tiers=(replace(hosts.topology.tiers[0], host="192.0.2.1"),), links=())
    with pytest.raises(ConfigError, match="plain text stays on this machine"):
        Agents(far, None)
    with pytest.raises(ConfigError, match="signed by the key"):
        Agents(hosts.topology, load_keys(keys, "edge"))


# -- what comes from the network -------------------------------------------------------------------


class connected:  # noqa: N801  (used as a function)
    """A socket with somebody's key to an agent."""

    def __init__(self, hosts: Hosts, keys: Path, name: str, to: str = "edge") -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        endpoint = f"127.0.0.1:{hosts.listen[to]}"
        self.socket = call(self.context, to, endpoint, load_keys(keys, name), name)

    def __enter__(self) -> zmq.Socket[bytes]:
        return self.socket

    def __exit__(self, *_: object) -> None:
        self.context.destroy(linger=500)


def send(socket: zmq.Socket[bytes], frames: list[bytes]) -> None:
    until(lambda: socket.poll(0, zmq.POLLOUT))
    socket.send_multipart(frames)


def test_hostile_messages_of_a_trusted_key_are_counted_and_dropped(
    hosts: Hosts, agents: Agents, keys: Path, work: Workload
) -> None:
    version = agents.ask(0, "status")["active"]
    now = time.monotonic_ns()
    tensor = pack_header(Header("tensor", version * 256, 5, 2, now))
    wrong_version = msgpack.unpackb(tensor)
    wrong_version[0] = 99
    hostile = {
        "malformed": [
            [b""],
            [b"\xff" * 100],
            [tensor[:-3]],
            [msgpack.packb(wrong_version), b"x"],
            [tensor],
            [tensor, b"short"],
            [tensor, b"a", b"b", b"c"],
            [bytes(300)],
            [pack_control("beat", says="x")],
            [pack_header(Header("result", version * 256, 5, 0, now, exit_index=9, label=1))],
            [pack_header(Header("result", version * 256, 5, 0, now)), b"because"],
            [tensor, bytes(65 << 20)],
        ],
        "not_allowed": [  # what this tier has no part in
            [pack_header(Header("credit", version * 256, 5, 0, now, exit_index=1, label=1))],
            [pack_header(Header("tensor", version * 256, 5, 0, now)), b"x"],
            [pack_header(Header("result", version * 256 + 3, 5, 0, now, exit_index=0, label=1))],
        ],
        "unknown_plan": [[pack_header(Header("tensor", 999 * 256, 5, 1, now)), b"x"]],
    }
    with connected(hosts, keys, "base") as wire:
        for why, messages in hostile.items():
            line = f'portend_dropped_messages_total{{why="{why}"}}'
            due = counter(hosts, "edge", line) + len(messages)
            for frames in messages:
                send(wire, frames)
            until(partial(reached, hosts, line, due))
    late = counter(hosts, "edge", "portend_late_answers_total")
    with connected(hosts, keys, "base") as wire:  # an answer to what was never asked
        send(wire, [pack_header(Header("result", version * 256, 5, 0, now, exit_index=1, label=1, score=0.5))])
        until(lambda: counter(hosts, "edge", "portend_late_answers_total") == late + 1)
    assert len(list(agents.submitter().answers([("alive", work.samples[0])]))) == 1


def test_only_the_source_says_which_releases_are_in_use(
    hosts: Hosts, agents: Agents, keys: Path, work: Workload
) -> None:
    version = agents.ask(1, "status")["active"]
    lie = Beat(incarnation=5, sent_ns=1, versions=(version,), reaches=((1, 1, 1),), active=version, oldest=1 << 62)
    for name in ("cloud", "edge"):  # whoever is no source, and the source's own key with a number that cannot be
        with connected(hosts, keys, name, to="base") as wire:
            for _ in range(20):
                send(wire, [lie.packed()])
            assert agents.ask(1, "status")["versions"] == [version]
    answers = list(agents.submitter().answers((f"lie-{i}", sample) for i, sample in enumerate(work.samples)))
    assert not [answer.reason for answer in answers if answer.failed]


def test_a_flood_of_one_peer_s_tensors_waits_in_no_long_queue(
    hosts: Hosts, agents: Agents, keys: Path, work: Workload
) -> None:
    version = agents.ask(0, "status")["active"]
    large = 'portend_dropped_messages_total{why="malformed"}'
    full = 'portend_dropped_messages_total{why="queue_full"}'
    tensor = bytes(4 * 8 * 16 * 16)
    before = counter(hosts, "cloud", large), counter(hosts, "cloud", full)
    with connected(hosts, keys, "base", to="cloud") as wire:
        send(wire, [pack_header(Header("tensor", version * 256, 1, 2, 0)), bytes(60 << 20)])
        until(lambda: counter(hosts, "cloud", large) > before[0])
        for ticket in range(1 << 30, (1 << 30) + 3000):  # of no sample that will ever be given
            send(wire, [pack_header(Header("tensor", version * 256, ticket, 2, 0)), tensor])
        until(lambda: counter(hosts, "cloud", full) > before[1])
    answers = list(agents.submitter().answers((f"flood-{i}", sample) for i, sample in enumerate(work.samples)))
    assert [(a.failed, a.id, a.label) for a in sorted(answers, key=lambda a: int(a.id[6:]))] == [
        ("", f"flood-{i}", work.expected(work.plans[0], i)[0]) for i in range(len(work.samples))
    ]


def test_samples_of_others_are_answered_before_a_flood_is_worked_off(
    hosts: Hosts, agents: Agents, keys: Path, work: Workload, tmp_path: Path
) -> None:
    """The base sends the cloud all that its key may; samples go from the edge to the cloud, one after the other."""
    heavy = make_workload(tmp_path, 8, heavy=8)
    first = replace(heavy.plans[2], thresholds=(0.0,))
    through_all = replace(heavy.plans[0], thresholds=(0.0, 0.0))
    over = Event()
    line = 'portend_term_seconds_count{term="compute"}'
    full = 'portend_dropped_messages_total{why="queue_full"}'
    release = heavy.release(agents, [first, through_all], deadline_s=120.0, retry_s=60.0)
    until(lambda: agents.ask(0, "status")["plan"] == 0)
    try:
        with ThreadPoolExecutor(1) as pool, connected(hosts, keys, "base", to="cloud") as wire:

            def flood() -> None:
                tickets = iter(range(1 << 40, 1 << 41))
                while not over.wait(0.005):
                    for ticket in islice(tickets, 20):
                        header = Header("tensor", release.number(1), ticket, 2, 0)
                        with suppress(zmq.Again):
                            wire.send_multipart([pack_header(header), bytes(4 * 8 * 16 * 16)], zmq.NOBLOCK)

            flooding = pool.submit(flood)
            try:
                before = counter(hosts, "cloud", full)
                until(lambda: counter(hosts, "cloud", full) > before)
                computed = counter(hosts, "cloud", line)
                named = [(f"turns-{i}", sample) for i, sample in enumerate(heavy.samples)]
                answers = list(agents.submitter(1).answers(named))
                computed = counter(hosts, "cloud", line) - computed
            finally:
                over.set()
            flooding.result()
        assert [(a.failed, a.id, a.label) for a in answers] == [
            ("", name, heavy.expected(first, i)[0]) for i, (name, _) in enumerate(named)
        ]
        assert computed < 8 * len(answers)  # 16 of the base's wait all the time
    finally:
        work.release(agents)
        until(lambda: agents.ask(0, "status")["plan"] == 0)


def test_a_replayed_tensor_is_run_once(tmp_path: Path, work: Workload) -> None:
    with Hosts(tmp_path, ["edge", "base"]) as hosts, Agents(hosts.topology, None, patience_s=30) as agents:
        shape = work.decoder.shape
        release = work.release(agents, [Plan(cuts=(work.plans[0].cuts[-1],), placement=(1,), codecs=("float32",))])
        frames = [pack_header(Header("tensor", release.number(0), 5, 0, time.monotonic_ns())), bytes(4 * shape[1] ** 2)]
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            socket = call(context, "base", f"127.0.0.1:{hosts.listen['base']}", None, "edge")
            for _ in range(3):
                send(socket, frames)
            line = 'portend_dropped_messages_total{why="replayed"}'
            until(lambda: counter(hosts, "base", line) == 2)
            assert counter(hosts, "base", 'portend_term_seconds_count{term="compute"}') == 1
        finally:
            context.destroy(linger=0)


_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault
_WHOLE = st.integers(-(2**63), 2**64 - 1)
_LISTS = st.recursive(_WHOLE, lambda inner: st.lists(inner, max_size=6), max_leaves=12)
_FRAMES = st.one_of(
    st.binary(max_size=400),
    st.recursive(
        st.none() | st.booleans() | _WHOLE | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner, max_size=12) | st.dictionaries(st.text(max_size=12), inner, max_size=6),
        max_leaves=16,
    ).map(msgpack.packb),
    st.builds(  # almost right: every field of a header wrong at times
        lambda values: msgpack.packb(list(values)),
        st.tuples(
            st.sampled_from([*[PROTOCOL_VERSION] * 3, 1, -1]), st.integers(-2, 5), *[st.integers(-2, 2**64 - 1)] * 6,
            st.floats() | st.integers(0, 3),
        ),
    ),
    st.builds(
        lambda command, values: msgpack.packb({"version": PROTOCOL_VERSION, "command": command, **values}),
        st.sampled_from(["beat", "load", "chunk", "submit", "known", "activate"]),
        st.dictionaries(
            st.sampled_from(["says", "release", "offset"]), _LISTS
        ),
    ),
)  # fmt: skip


def read_all(frames: list[bytes]) -> None:
    """Read frames as an agent does; anything but a MessageError is a fault."""
    try:
        message, _ = read_message(frames)
        if not isinstance(message, Header):
            read_beat(message)
            read_release(message.get("release"))
    except MessageError:
        return


@_PATIENT
@given(st.lists(_FRAMES, max_size=3))
def test_no_bytes_break_the_decoder(frames: list[bytes]) -> None:
    read_all(frames)


@pytest.mark.slow
def test_no_bytes_out_of_a_million_break_the_decoder() -> None:
    """Real messages with bytes changed, cut off, put in and exchanged, as hostile ones are made."""
    chance = random.Random(0)
    beat = Beat(incarnation=5, sent_ns=7, versions=(1,), reaches=((0, 3),), active=1, oldest=1)
    corpus = [
        beat.packed(),
        pack_control("load", number=1, release=_RELEASE.to_dict()),
        pack_control("submit", number=1, sample="a"),
        *(pack_header(Header(kind, 256, 5, 1, 10**18, 1, 2, 0.5)) for kind in ("tensor", "result", "credit")),
    ]
    for _ in range(1_000_000):
        data = bytearray(chance.choice(corpus))
        for _ in range(chance.randint(1, 4)):
            at, kind = chance.randrange(len(data) + 1), chance.randrange(4)
            if kind == 0 and at < len(data):
                data[at] = chance.randrange(256)
            elif kind == 1:
                del data[at:]
            elif kind == 2:
                data[at:at] = chance.randbytes(chance.randint(1, 8))
            else:
                data[at : at + 8] = chance.choice(corpus)[at : at + 8]
        read_all([bytes(data)])


@_PATIENT
@given(st.data())
def test_a_release_with_any_field_changed_is_read_or_refused(data: st.DataObject) -> None:
    values = _RELEASE.to_dict()
    key = data.draw(st.sampled_from(sorted(values)))
    junk = st.none() | st.integers() | st.floats() | st.text() | st.lists(st.integers() | st.none()) | st.just({"a": 1})
    values[key] = data.draw(junk)
    try:
        assert isinstance(read_release(values), Release)
    except MessageError:
        return


def test_a_beat_survives_the_wire() -> None:
    beat = Beat(incarnation=5, sent_ns=7, versions=(1, 2), reaches=((0, 1), (2, 0)), active=1, oldest=1)
    message, payload = read_message([beat.packed()])
    assert isinstance(message, dict)
    assert (read_beat(message), payload) == (beat, None)
    assert [beat.reaches_tier(version, tier) for version, tier in [(1, 1), (2, 0), (2, 1), (2, 9), (3, 0)]] == [
        1,
        2,
        0,
        0,
        0,
    ]


# -- what an agent keeps ---------------------------------------------------------------------------


def _network(data: bytes) -> NetworkFile:
    return NetworkFile(sha256=hashlib.sha256(data).hexdigest(), size=len(data), suffix=".onnx")


_RELEASE = Release(
    version=3, plans=(Plan(cuts=(2, 4), placement=(0, 1), thresholds=(0.5,), codecs=(None, "float32")),),
    tiers=("a", "b"), endpoints=("127.0.0.1:1", "127.0.0.1:2"), networks=(_network(b"net"),) * 2,
    executions=(Execution(),) * 2, memory_bytes=(None, 1e9),
    source=0, destination=0, ingest="in_process", decoder={"kind": "tensor", "shape": [1, 4, 4]}, criterion="entropy",
)  # fmt: skip


def test_a_network_is_stored_in_pieces_and_goes_on_where_it_was(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10
    network, store = _network(data), Store(tmp_path)
    assert store.append(network, 0, data[:1000]) == 1000
    store.close()
    store = Store(tmp_path)  # the agent was started again
    assert store.held(network) == 1000
    with pytest.raises(MessageError, match="from byte 0 on"):
        store.append(network, 0, data)
    assert store.append(network, 1000, data[1000:]) == len(data)
    assert store.verified(network).read_bytes() == data
    store.close()


def test_a_network_with_another_digest_is_never_used(tmp_path: Path) -> None:
    network, store = _network(b"right"), Store(tmp_path)
    with pytest.raises(MessageError, match="another digest"):
        store.append(network, 0, b"wrong")
    assert store.held(network) == 0
    store.append(network, 0, b"right")
    store.path(network).write_bytes(b"later")
    with pytest.raises(StorageError, match="digest differs"):
        store.verified(network)
    with pytest.raises(StorageError, match="push it first"):
        store.verified(network)
    store.close()


def test_releases_are_restored_or_the_damage_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.restore() == ([], 0)
    store.save([_RELEASE], 3)
    assert store.restore() == ([_RELEASE], 3)
    (tmp_path / "releases.json").write_text('{"active": 3, "releases": [{}]}')
    with pytest.raises(StorageError, match="damaged"):
        store.restore()
    with pytest.raises(DeploymentError, match="another agent uses"):
        Store(tmp_path)
    store.close()


def test_an_agent_ends_with_the_code_that_says_why(tmp_path: Path, hosts: Hosts, keys: Path) -> None:
    command = [sys.executable, "-m", "portend.cli.app", "agent", "--name", "edge", "--state", str(tmp_path / "s")]
    for more, code, word in (
        (["--keys", str(tmp_path)], 1, "portend keys"),
        (["--plain", "--listen", "0.0.0.0:7100"], 1, "plain text"),
        (["--plain", "--listen", "nonsense"], 1, "HOST:PORT"),
        ([], 2, "--keys"),
        (["--plain", "--listen", f"127.0.0.1:{hosts.listen['edge']}"], 1, "cannot be used"),
    ):
        done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, done.stderr
        assert word in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_agent_that_is_told_to_stop_ends_cleanly(tmp_path: Path, number: int) -> None:
    with Hosts(tmp_path, ["edge"]) as hosts:
        until(lambda: "listening" in hosts.log("edge"))
        assert hosts.kill("edge", number) == 0
        assert "Traceback" not in hosts.log("edge")


def test_a_log_for_machines_is_json(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path, ["edge"])
    hosts.start("edge", "--log", "json")
    try:
        until(lambda: "listening" in hosts.log("edge"))
        first = json.loads(hosts.log("edge").splitlines()[0])
        assert first["level"] == "info"
        assert first["message"].startswith("listening on 127.0.0.1")
    finally:
        assert hosts.kill("edge", signal.SIGTERM) == 0


# -- the command line ------------------------------------------------------------------------------


def test_the_commands_deploy_feed_and_tell(hosts: Hosts, agents: Agents, work: Workload, tmp_path: Path) -> None:
    tiers = [{"name": tier.name, "port": tier.port} for tier in hosts.topology.tiers]
    link = {"bandwidth": "1 Gbit/s", "propagation_delay": "0 ms"}
    places, plan = tmp_path / "hosts.yaml", tmp_path / "plan.json"
    places.write_text(yaml.safe_dump({"tiers": tiers, "links": [link, link]}))
    wanted, *others = (each.to_dict() for each in work.plans)
    spare = [{"plan": other} for other in others]
    plan.write_text(json.dumps({"plan": wanted, "tiers": NAMES, "fallbacks": spare}))
    common = ("--topology", places, "--keys", hosts.keys)

    deployed = portend("deploy", plan, "--network", work.network, *common)
    assert deployed.returncode == 0, deployed.stderr
    assert deployed.stdout.count("fallback ") == 3
    assert "clock of cloud" in deployed.stdout
    until(lambda: agents.ask(0, "status")["plan"] == 0)

    told = portend("status", *common, "--json")
    assert told.returncode == 0, told.stderr
    assert {name: each["active"] for name, each in json.loads(told.stdout).items()} == dict.fromkeys(
        NAMES, agents.ask(0, "status")["active"]
    )
    assert "source: the wanted plan" in " ".join(portend("status", *common).stdout.split())

    (tmp_path / "in").mkdir()
    (tmp_path / "in/one.png").write_bytes(work.samples[1])
    fed = portend("feed", *common, "--folder", tmp_path / "in", "--journal", tmp_path / "answers.jsonl")
    assert fed.returncode == 0, fed.stderr
    (line,) = (json.loads(each) for each in (tmp_path / "answers.jsonl").read_text().splitlines())
    assert (line["sample"], line["label"]) == ("one.png", work.expected(work.plans[0], 1)[0])


def test_agents_measure_the_links_between_them(hosts: Hosts, agents: Agents, tmp_path: Path) -> None:
    tiers = [{"name": tier.name, "port": tier.port} for tier in hosts.topology.tiers]
    link = {"bandwidth": "1 Mbit/s", "propagation_delay": "9 ms"}
    (tmp_path / "hosts.yaml").write_text(yaml.safe_dump({"tiers": tiers, "links": [link, link]}))
    words = ("--keys", hosts.keys, "--time", "1 s", "--bytes", "4 MB", "--out", tmp_path / "m.yaml")
    done = portend("links", tmp_path / "hosts.yaml", *words)
    assert done.returncode == 0, done.stderr
    assert "edge–base: propagation" in done.stdout
    for each in load_topology(tmp_path / "m.yaml").links:
        assert each.bandwidth_bps > 50e6  # the loopback interface
        assert each.propagation_delay_s < 0.005


@pytest.mark.parametrize(
    ("command", "changed", "word"),
    [
        ("peer", {"secret": "not hex"}, "secret"),
        ("peer", {"seconds": 1e9}, "at most 600 s"),
        ("peer", {"seconds": "1"}, "at most 600 s"),
        ("peer", {"port": -1}, "port"),
        ("measure", {"host": "-x"}, "host"),
        ("measure", {"host": "a b"}, "host"),
        ("measure", {"port": 0}, "port"),
        ("measure", {"bytes": float("inf")}, "bytes"),
        ("measure", {}, "could not be measured"),  # nobody listens there
    ],
)
def test_an_order_to_measure_is_checked(agents: Agents, command: str, changed: dict[str, Any], word: str) -> None:
    order: dict[str, Any] = {"secret": 32 * "a", "seconds": 1.0, "bytes": 1e6, "host": "127.0.0.1", "port": 9} | changed
    with pytest.raises(DeploymentError, match=word):
        agents.ask(1, command, patience_s=20, **order)


def test_a_user_is_told_what_is_wrong_in_one_line(hosts: Hosts, work: Workload, tmp_path: Path) -> None:
    places = tmp_path / "one.yaml"
    places.write_text(yaml.safe_dump({"tiers": [{"name": "edge", "port": 1}]}))
    (tmp_path / "plan.json").write_text(json.dumps(work.plans[-1].to_dict() | {"tiers": ["edge"]}))
    feeding = ("feed", "--topology", places, "--plain", "--journal", tmp_path / "j")
    deploying = ("deploy", tmp_path / "plan.json", "--network", work.network, "--topology", places, "--plain")
    for arguments, code, word in (
        (("status", "--topology", places, "--plain"), 1, "cannot be reached"),
        (("status", "--topology", places), 2, "--keys DIR"),
        (feeding, 2, "--data or --folder"),
        ((*feeding, "--folder", tmp_path / "no"), 1, "no folder"),
        (("deploy", tmp_path / "none.json", "--network", work.network, "--topology", places, "--plain"), 1, "no file"),
        (("keys", tmp_path / "k", "../x"), 1, "letters, digits"),
        ((*deploying, "--batch", "moon=2"), 2, "a tier of edge, but got 'moon=2'"),
        ((*deploying, "--batch", "edge=0"), 2, "TIER=COUNT"),
        ((*deploying, "--largest-sample", "8"), 2, "no unit"),
        ((*deploying, "--largest-sample", "8 s"), 2, "unknown unit 's'"),
        ((*deploying, "--largest-sample", "1 GiB"), 2, "at most 256 MiB"),
        ((*deploying, "--window", "100000"), 2, "at most 65,536"),
        ((*deploying, "--profile", tmp_path / "none.zip"), 1, "there is no file"),
    ):
        done = portend(*arguments)
        assert done.returncode == code, (arguments, done.stderr)
        assert word in done.stderr + done.stdout
        assert "Traceback" not in done.stderr


def test_an_agent_without_a_peer_s_public_key_refuses_the_release(tmp_path: Path, work: Workload, keys: Path) -> None:
    for name in ("edge", OPERATOR):
        (tmp_path / f"{name}.key").write_bytes((keys / f"{name}.key").read_bytes())
    (tmp_path / "edge.key_secret").write_bytes((keys / "edge.key_secret").read_bytes())
    (tmp_path / "edge.key_secret").chmod(0o600)
    with Hosts(tmp_path, ["edge", "base"], keys=keys) as hosts:
        hosts.kill("edge")
        hosts.keys = tmp_path
        hosts.start("edge")
        with Agents(hosts.topology, load_keys(keys, OPERATOR), patience_s=30) as agents:
            with pytest.raises(DeploymentError, match="no public key"):
                work.release(agents, [work.plans[-1]])
            assert agents.ask(0, "status")["versions"] == []
