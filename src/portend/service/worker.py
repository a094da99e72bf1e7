"""The one thread of an agent that runs partitions, and what waits for it."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from portend.service.turns import Turns

__all__ = ["Job", "Worker"]

_LOG: Final = logging.getLogger("portend.service")
_STOP: Final = None


@dataclass(frozen=True, slots=True)
class Job:
    """A sample that waits.

    Attributes:
        kind: jobs of one kind can run in one batch. run: gives, of their payloads, what came of each.
        then: gets what came of this one, or the exception. sender: who gave it.
    """

    kind: Hashable
    run: Callable[[Sequence[Any]], Sequence[Any]]
    payload: Any
    then: Callable[[Any], None]
    sender: str = ""


class Worker:
    """Runs the jobs of each sender in the order in which they came, senders in turns; those of one kind go together.

    Nobody waits for a batch to fill: it is what is there when the thread is free.

    Args:
        deliver: called in the thread with what to do now where the jobs came from.
        ran: called there with the size of each batch.
    """

    def __init__(
        self, deliver: Callable[[Callable[[], None]], None], ran: Callable[[int], object] = lambda _: None
    ) -> None:
        self._deliver, self._ran = deliver, ran
        self._queue: queue.SimpleQueue[tuple[Job, int] | None] = queue.SimpleQueue()
        self.waiting = 0
        """Jobs that were added and have not been delivered; used where they come from alone."""
        self._thread = threading.Thread(target=self._serve, name="compute", daemon=True)
        self._thread.start()

    def add(self, job: Job, most: int = 1) -> None:
        """Let a job run, in a batch of at most ``most``."""
        self.waiting += 1
        self._queue.put((job, most))

    def close(self) -> None:
        """Finish what runs just now; forget what waits."""
        self._queue.put(_STOP)
        self._thread.join()

    def _serve(self) -> None:
        here: Turns[tuple[Job, int]] = Turns()
        while True:
            while not here or not self._queue.empty():
                item = self._queue.get()
                if item is _STOP:
                    return
                here.add(item[0].sender, item)
            batch = _together(here)
            results = run_together(batch)
            self._deliver(partial(self._hand_back, batch, results))

    def _hand_back(self, batch: Sequence[Job], results: Sequence[Any]) -> None:
        self.waiting -= len(batch)
        self._ran(len(batch))
        for job, result in zip(batch, results, strict=True):
            try:
                job.then(result)
            except Exception:  # the others of the batch are not to blame
                _LOG.exception("what came of a sample could not be passed on")


def _together(waiting: Turns[tuple[Job, int]]) -> list[Job]:
    """Take the job whose turn it is, and others of its kind."""
    taken = waiting.next()
    assert taken is not None
    first, most = taken
    batch = [first]
    while len(batch) < most and (another := waiting.next(lambda item: item[0].kind == first.kind)) is not None:
        batch.append(another[0])
    return batch


def run_together(batch: Sequence[Job]) -> Sequence[Any]:
    """Return what came of each job, or its exception; where a batch cannot run, each runs alone."""
    try:
        return batch[0].run([job.payload for job in batch])
    except Exception as error:
        return [error] if len(batch) == 1 else [run_together([job])[0] for job in batch]
