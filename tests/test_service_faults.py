"""Nothing is lost or doubled while samples flow and processes are killed, frozen and started again, and cables cut.

Real processes, real kills, real sockets. Each test leaves the agents as it found them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from portend.service.drivers import Journal, from_folder
from portend.service.intake import Answer
from portend.service.keys import OPERATOR, load_keys
from portend.service.operator import Agents
from service_hosts import NAMES, Cable, Cabled, Hosts, Stream, Workload, until, whole

LIMITS: dict[str, Any] = {"retry_s": 2.0, "deadline_s": 60.0, "attempts": 20, "silence_s": 1.0}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Iterator[Cabled]:
    with Cabled(tmp_path_factory.mktemp("hosts"), NAMES, keys=keys) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def cables(hosts: Cabled) -> dict[str, Cable]:
    return hosts.cables


@pytest.fixture(scope="module")
def agents(hosts: Hosts, keys: Path, work: Workload) -> Iterator[Agents]:
    with Agents(hosts.topology, load_keys(keys, OPERATOR), patience_s=60) as connected:
        work.release(connected, **LIMITS)
        whole(connected)
        yield connected


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_lost_or_doubled_when_an_agent_is_killed(
    hosts: Hosts, agents: Agents, work: Workload, name: str
) -> None:
    with Stream(agents, work, f"kill-{name}") as stream:
        assert hosts.kill(name) == -signal.SIGKILL
        if name != "edge":
            stream.flows()  # by the plans without it
        hosts.start(name)
        stream.flows()
        whole(agents)
        stream.flows()
    stream.check()
    used = {answer.plan % 256 for answer in stream.got}
    assert 0 in used
    assert name == "edge" or {"base": 2, "cloud": 1}[name] in used


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_lost_or_doubled_when_an_agent_freezes(
    hosts: Hosts, agents: Agents, work: Workload, name: str
) -> None:
    with Stream(agents, work, f"freeze-{name}") as stream:
        hosts.send(name, signal.SIGSTOP)
        time.sleep(2.5)
        if name != "edge":
            stream.flows()
        hosts.send(name, signal.SIGCONT)
        whole(agents)
        stream.flows()
    stream.check()


def test_nothing_is_lost_or_doubled_when_a_cable_is_cut(
    agents: Agents, work: Workload, cables: dict[str, Cable]
) -> None:
    with Stream(agents, work, "cable") as stream:
        cables["cloud"].cut()
        time.sleep(3)
        stream.flows()
        cables["cloud"].mend()
        whole(agents)
        stream.flows()
    stream.check()
    assert 1 in {answer.plan % 256 for answer in stream.got}


def test_agents_take_up_their_work_without_a_coordinator(hosts: Hosts, agents: Agents, work: Workload) -> None:
    for name in NAMES:
        hosts.kill(name)
    for name in NAMES:
        hosts.start(name)
    url = f"http://127.0.0.1:{hosts.http['edge']}"

    def healthy() -> bool:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=60) as response:
                return bool(json.loads(response.read())["plan"] == 0)
        except OSError:
            return False

    until(healthy, 60)
    with urllib.request.urlopen(f"{url}/v1/samples", data=work.samples[0], timeout=30) as response:
        answer = json.loads(response.read())
    assert (answer["label"], answer["exit"] - 1) == work.expected(work.plans[0], 0)


def test_a_sample_that_no_tier_can_take_is_reported_failed_with_its_reason(
    hosts: Hosts, agents: Agents, work: Workload
) -> None:
    work.release(agents, work.plans[:1], **(LIMITS | {"deadline_s": 2.0}))
    try:
        whole(agents)
        hosts.kill("cloud")
        until(lambda: agents.ask(0, "status")["plan"] is None)
        (answer,) = agents.submitter().answers([("nowhere", work.samples[0])])
        assert answer.failed == "deadline"
        assert "cloud is away" in answer.reason
    finally:
        hosts.start("cloud")
        work.release(agents, **LIMITS)
        whole(agents)


def folder_of(work: Workload, place: Path, count: int) -> set[str]:
    place.mkdir()
    for number in range(count):
        (place / f"{number}.png").write_bytes(work.samples[number % len(work.samples)])
    return {f"{number}.png" for number in range(count)}


def feed(hosts: Hosts, journal: Path, *more: str) -> list[str]:
    topology = journal.with_suffix(".yaml")
    tiers = [{"name": tier.name, "port": tier.port} for tier in hosts.topology.tiers]
    link = {"bandwidth": "1 Gbit/s", "propagation_delay": "0 ms"}
    topology.write_text(yaml.safe_dump({"tiers": tiers, "links": [link] * (len(tiers) - 1)}))
    return [
        sys.executable, "-m", "portend.cli.app", "feed", "--topology", str(topology), "--keys", str(hosts.keys),
        "--journal", str(journal), *more,
    ]  # fmt: skip


def lines(journal: Path) -> list[dict[str, object]]:
    found = []
    for line in journal.read_text().splitlines() if journal.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def test_a_driver_that_is_killed_goes_on_where_it_was(
    hosts: Hosts, agents: Agents, work: Workload, tmp_path: Path
) -> None:
    names, journal = folder_of(work, tmp_path / "in", 1500), tmp_path / "answers.jsonl"
    command = feed(hosts, journal, "--folder", str(tmp_path / "in"))
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    until(lambda: len(lines(journal)) > 20, 60)
    first.kill()
    first.wait()
    before = len(lines(journal))
    assert before < len(names)
    with journal.open("ab") as file:
        file.write(b'{"id": "cut o')  # as if it had been killed while it wrote
    second = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert second.returncode == 0, second.stderr
    assert f"{len(names) - before} answers" in second.stdout
    assert Counter(line["sample"] for line in lines(journal)) == Counter(names)


@pytest.mark.parametrize("watch", [False, True])
def test_a_bad_file_is_reported_failed_and_the_others_are_answered(
    hosts: Hosts, agents: Agents, work: Workload, tmp_path: Path, watch: bool
) -> None:
    place, journal = tmp_path / "in", tmp_path / "answers.jsonl"
    names = folder_of(work, place, 3)
    (place / "0-empty.png").touch()
    (place / "0-large.png").write_bytes(bytes((8 << 20) + 1))  # more than the source takes
    with (place / "0-huge.png").open("wb") as file:
        file.truncate(65 << 20)  # more than a message may have
    (place / "0-nowhere.png").symlink_to(tmp_path / "none")
    (place / "0-unreadable.png").symlink_to("/proc/self/mem")
    os.mkfifo(place / "0-pipe.png")
    bad = {path.name for path in place.iterdir()} - names
    (place / "0-folder.png").mkdir()
    odd = "0-n\udcffme.png"  # no UTF-8
    (place / odd).write_bytes(work.samples[0])
    command = feed(hosts, journal, "--folder", str(place), *(["--watch"] if watch else []))
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if watch:
        until(lambda: len(lines(journal)) == len(names | bad) + 1, 60)
        (place / "later.png").write_bytes(work.samples[0])
        names.add("later.png")
        until(lambda: len(lines(journal)) == len(names | bad) + 1, 60)
        driver.send_signal(signal.SIGTERM)
    assert driver.communicate(timeout=60)[1].count("Traceback") == 0
    assert driver.returncode == 4
    found = {str(line["sample"]): line for line in lines(journal)}
    assert set(found) == names | bad | {odd}
    assert {name for name, line in found.items() if "failed" in line} == bad
    assert all(line["reason"] for line in found.values() if "failed" in line)
    for number in range(3):
        assert found[f"{number}.png"]["label"] == work.expected(work.plans[0], number)[0]


def test_a_file_that_vanishes_is_no_sample_or_a_failed_one(work: Workload, tmp_path: Path) -> None:
    folder_of(work, tmp_path / "in", 3)
    (tmp_path / "in/2.png").unlink()
    (tmp_path / "in/2.png").symlink_to(tmp_path / "in/1.png")
    with Journal(tmp_path / "answers.jsonl") as journal:
        coming = from_folder(tmp_path / "in", journal)
        assert next(coming) is not None
        (tmp_path / "in/1.png").unlink()  # after the folder was listed
        (lost,) = coming
    assert isinstance(lost, Answer)  # the link is there, but leads nowhere now
    assert lost.failed == "sample"


def test_a_watched_folder_is_served_until_it_is_told_to_stop(
    hosts: Hosts, agents: Agents, work: Workload, tmp_path: Path
) -> None:
    names, journal = folder_of(work, tmp_path / "in", 3), tmp_path / "answers.jsonl"
    (tmp_path / "in/broken.png").write_bytes(b"no picture")
    driver = subprocess.Popen(
        feed(hosts, journal, "--folder", str(tmp_path / "in"), "--watch", "--json"), stdout=subprocess.PIPE
    )
    until(lambda: len(lines(journal)) == 4, 60)
    (tmp_path / "in/later.png").write_bytes(work.samples[5])
    until(lambda: len(lines(journal)) == 5, 60)
    driver.send_signal(signal.SIGTERM)
    told, _ = driver.communicate(timeout=60)
    assert driver.returncode == 4  # one sample was reported failed
    assert json.loads(told)["answered"] == 5
    found = {line["sample"]: line for line in lines(journal)}
    assert set(found) == {*names, "later.png", "broken.png"}
    assert found["broken.png"]["failed"] == "sample"
