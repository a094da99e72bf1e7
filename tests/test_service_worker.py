"""The thread that runs an agent's partitions: order, batches, failures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from portend.service.worker import Job, Worker


class Bench:
    """A worker that is held up by its first job until ``open``; then what ran, in batches, and what came of each."""

    def __init__(self) -> None:
        self._gate, self._delivered = threading.Event(), threading.Condition()
        self.batches: list[list[int]] = []
        self.found: dict[int, Any] = {}
        self.worker = Worker(self._deliver)
        self.worker.add(Job("gate", self._wait, 0, lambda result: None))

    def _deliver(self, what: Callable[[], None]) -> None:
        with self._delivered:
            what()
            self._delivered.notify()

    def _wait(self, payloads: Sequence[int]) -> Sequence[int]:
        self._gate.wait()
        return payloads

    def _run(self, payloads: Sequence[int]) -> list[int]:
        self.batches.append(list(payloads))
        if 13 in payloads:
            raise RuntimeError("13 cannot run")
        return [10 * value for value in payloads]

    def add(self, kind: str, value: int, most: int = 1, sender: str = "") -> None:
        self.worker.add(Job(kind, self._run, value, lambda result: self.found.update({value: result}), sender), most)

    def open(self, count: int) -> None:
        self._gate.set()
        with self._delivered:
            assert self._delivered.wait_for(lambda: len(self.found) == count, 10)


@pytest.fixture
def bench() -> Iterator[Bench]:
    one = Bench()
    yield one
    one._gate.set()
    one.worker.close()


def test_jobs_run_one_by_one_in_the_order_in_which_they_came(bench: Bench) -> None:
    for value in range(5):
        bench.add("a" if value % 2 else "b", value)
    bench.open(5)
    assert bench.batches == [[0], [1], [2], [3], [4]]
    assert bench.found == {value: 10 * value for value in range(5)}
    assert bench.worker.waiting == 0


def test_jobs_of_one_kind_that_wait_run_together_as_many_as_may(bench: Bench) -> None:
    for value, kind in enumerate("aabaaba"):
        bench.add(kind, value, most=3)
    bench.open(7)
    assert bench.batches == [[0, 1, 3], [2, 5], [4, 6]]
    assert bench.found == {value: 10 * value for value in range(7)}


def test_who_sends_much_keeps_no_other_waiting(bench: Bench) -> None:
    for value in range(20, 26):
        bench.add("a", value, sender="flood")
    for value in range(3):
        bench.add("a", value, sender="honest")
    bench.open(9)
    assert bench.batches == [[20], [0], [21], [1], [22], [2], [23], [24], [25]]


def test_a_batch_has_something_of_each_sender(bench: Bench) -> None:
    for value in range(20, 26):
        bench.add("a", value, 4, sender="flood")
    bench.add("b", 1, 4, sender="honest")
    bench.add("a", 2, 4, sender="honest")
    bench.open(8)
    assert bench.batches == [[20, 2, 21, 22], [1], [23, 24, 25]]


def test_one_that_cannot_run_does_not_take_its_batch_with_it(bench: Bench) -> None:
    for value in (12, 13, 14):
        bench.add("a", value, most=8)
    bench.open(3)
    assert bench.batches == [[12, 13, 14], [12], [13], [14]]
    assert (bench.found[12], bench.found[14]) == (120, 140)
    assert str(bench.found[13]) == "13 cannot run"


def test_what_cannot_be_passed_on_keeps_no_other_back(bench: Bench) -> None:
    def fail(result: Any) -> None:
        raise ValueError(result)

    bench.worker.add(Job("a", bench._run, 1, fail), 2)
    bench.add("a", 2, most=2)
    bench.open(1)
    assert bench.found == {2: 20}


def test_closing_forgets_what_waits_and_ends_the_thread() -> None:
    bench = Bench()
    bench.add("a", 1)
    closing = threading.Thread(target=bench.worker.close)
    closing.start()
    bench._gate.set()
    closing.join(10)
    assert not closing.is_alive()
    assert bench.batches in ([], [[1]])
