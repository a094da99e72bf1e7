"""Samples on one tier: a message becomes a job of the compute thread, and what comes of it the next message.

What is wrong with a message costs that message alone: it is counted, logged and dropped, and the source sends the
sample again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, Literal

from portend.errors import DataError, MessageError
from portend.runtime.protocol import Header, pack_header
from portend.service.drops import Drops
from portend.service.metrics import Metrics
from portend.service.partitions import Loaded, Outcome
from portend.service.peer_table import PeerTable
from portend.service.peers import Peer
from portend.service.release import MOST_PLANS, plan_name
from portend.service.releases import Releases
from portend.service.source import Result, Sending
from portend.service.worker import Job, Worker

__all__ = ["Dispatcher", "read_result"]

_LOG: Final = logging.getLogger("portend.service")
_MOST_JOBS: Final = 1024  # partitions that wait for the processor; the source's window is far below
_SEEN: Final = 8192  # messages that are remembered, so that none is run twice
_FAILURES: Final = ("sample", "error")


def read_result(header: Header, payload: Any, *, exits: int, classes: int) -> Result:
    """Return what a message says came of a sample.

    Args:
        payload: bytes or memory that say why it failed; None if it did not.

    Raises:
        MessageError: there is no such exit, label or kind of failure.
    """
    if payload is None:
        if not (0 <= header.exit_index < exits and 0 <= header.label < classes):
            raise MessageError(f"there is no exit {header.exit_index + 1} with a label {header.label}")
        failure = ""
    else:
        failure = bytes(payload[:2000]).decode(errors="replace")
        if failure.partition(":")[0] not in _FAILURES:
            raise MessageError("an answer says why a sample failed, but this one says something else")
    return Result(header.exit_index, header.label, header.score, failure)


class Dispatcher:
    """Runs samples on the tier ``name``, and sends them on; used in an event loop.

    Args:
        answered: called on the source with ticket, plan and result of a sample that is done.
        handed_over: called on the source with the ticket of a sample all of which arrived at the next tier.
    """

    def __init__(
        self,
        name: str,
        releases: Releases,
        peers: PeerTable,
        metrics: Metrics,
        drop: Drops,
        *,
        answered: Callable[[int, int, Result], None],
        handed_over: Callable[[int], None],
    ) -> None:
        self._name, self._releases, self._peers, self._metrics, self._drop = name, releases, peers, metrics, drop
        self._answered, self._handed_over = answered, handed_over
        self._loop = asyncio.get_running_loop()
        self._worker = Worker(self._from_worker, metrics.batch.observe)
        self._decoder = Worker(self._from_worker)
        self._jobs: Counter[str] = Counter()  # partitions that wait or run here, by who sent them
        self._seen: OrderedDict[tuple[int, int], None] = OrderedDict()

    @property
    def waiting(self) -> int:
        """Partitions that wait for the processor, or run."""
        return self._worker.waiting

    def close(self) -> None:
        """Finish what runs just now; forget what waits."""
        self._decoder.close()
        self._worker.close()

    def _from_worker(self, what: Callable[[], None]) -> None:
        """In the compute thread: let the event loop do something."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(what)

    # -- in ------------------------------------------------------------------------------------

    def begin(self, sending: Sending, encoded: bytes) -> None:
        """Run a sample that enters here."""
        loaded, index = sending.loaded, sending.index
        job = Job((sending.plan, -1), partial(loaded.begin, index), encoded, partial(self._moved, sending))
        self._run(loaded, job, decodes=not loaded.passes_on(index))

    def take(self, header: Header, payload: Any, peers: Sequence[Peer], received_ns: int) -> None:
        """Take a message of a tier, to which ``peers`` are our connections.

        Raises:
            MessageError: it does not fit the plan that it names.
        """
        version, index = divmod(header.run, MOST_PLANS)
        loaded = self._releases.get(version)
        if loaded is None or index >= len(loaded.plans):
            self._drop("unknown_plan", f"{plan_name(index)} of release {version} is not loaded here")
            return
        release, sender = loaded.release, peers[0].name
        if sender not in {release.tiers[tier] for tier in release.senders(index, header.kind, header.step)}:
            self._drop("not_allowed", f"{sender} has no {header.kind} to send by this plan")
            return
        seconds = next((s for peer in peers if (s := peer.transfer_s(header.sent_ns, received_ns)) is not None), None)
        if seconds is not None and seconds >= 0:
            self._metrics.terms.labels("transfer").observe(seconds)
        sending = Sending(loaded, index, header.request)
        if header.kind == "tensor":
            self._take_tensor(sending, header, payload, sender)
            return
        result = read_result(header, payload, exits=len(release.plans[index]), classes=loaded.spec.num_classes)
        if header.kind == "result" and loaded.tier == release.destination:
            self._arrived(sending, result)
        elif header.kind == "credit" and loaded.tier == release.source:
            self._answered(sending.ticket, sending.plan, result)
        else:
            raise MessageError(f"{self._name} is neither where results go nor where credits do")

    def _take_tensor(self, sending: Sending, header: Header, payload: Any, sender: str) -> None:
        loaded, index, step = sending.loaded, sending.index, header.step
        plan = loaded.release.plans[index]
        if payload is None or not 0 <= step < len(plan) or plan.placement[step] != loaded.tier:
            raise MessageError(f"{self._name} runs no partition {step + 1} of this plan, or got no tensor")
        if self._is_replayed(sending.ticket, step):
            self._drop("replayed", f"partition {step + 1} ran already for ticket {sending.ticket}")
            return
        if self._worker.waiting + self._decoder.waiting >= _MOST_JOBS:
            self._drop("queue_full", f"{_MOST_JOBS} partitions wait already")
            return
        if len(payload) > loaded.most_bytes(index, step):
            raise MessageError(f"partition {step + 1} takes no tensor of {len(payload)} bytes")
        if self._jobs[sender] >= 2 * loaded.release.limits.window:  # what is under way, and was sent once more
            self._drop("queue_full", f"{self._jobs[sender]} partitions wait already that {sender} sent")
            return
        self._jobs[sender] += 1

        def ran(outcome: Outcome | Exception) -> None:
            self._jobs[sender] -= 1
            self._moved(sending, outcome)

        job = Job((header.run, step), partial(loaded.carry_on, index, step), payload, ran, sender)
        self._run(loaded, job, decodes=loaded.takes_encoded(index, step))

    def _is_replayed(self, ticket: int, step: int) -> bool:
        """Whether the same message came before; each sending of a sample has a ticket of its own."""
        key = (ticket, step)
        if key in self._seen:
            return True
        self._seen[key] = None
        if len(self._seen) > _SEEN:
            self._seen.popitem(last=False)
        return False

    def _run(self, loaded: Loaded, job: Job, *, decodes: bool) -> None:
        """Let a job run; a large sample is decoded by another thread first, so that others need not wait for it."""
        if not decodes or not loaded.is_large(job.payload):
            self._worker.add(job, loaded.batch)
            return

        def decoded(payload: Any) -> None:
            if isinstance(payload, Exception):
                job.then(payload)
            else:
                self._worker.add(replace(job, payload=payload), loaded.batch)

        self._decoder.add(Job("decode", loaded.decode, job.payload, decoded, job.sender))

    # -- out -----------------------------------------------------------------------------------

    def _moved(self, sending: Sending, outcome: Outcome | Exception) -> None:
        """A sample was run here: pass it on, or on its way back."""
        if isinstance(outcome, MessageError):
            self._drop("malformed", outcome)
        elif isinstance(outcome, Exception):
            why = "sample" if isinstance(outcome, DataError) else "error"
            _LOG.warning("a sample failed on tier %s: %s: %s", self._name, type(outcome).__name__, outcome)
            self._left(sending, Result(failure=f"{why}:{outcome}"[:400]))
        else:
            for term, seconds in outcome.terms:
                self._metrics.terms.labels(term).observe(seconds)
            if outcome.payload is None:
                self._left(sending, Result(outcome.step, outcome.label, outcome.score))
            else:
                to = sending.release.plans[sending.index].placement[outcome.step]
                header = Header("tensor", sending.plan, sending.ticket, outcome.step, time.monotonic_ns())
                self._post(sending, to, header, outcome.payload)

    def _left(self, sending: Sending, result: Result) -> None:
        """The sample left here: tell the destination; it tells the source."""
        release = sending.release
        if sending.loaded.tier == release.destination:
            self._arrived(sending, result)
        else:
            steps = len(release.plans[sending.index])
            self._post_result("result", sending, steps, release.destination, result)

    def _arrived(self, sending: Sending, result: Result) -> None:
        """Destination: the answer is here; the source's book is closed by it."""
        release = sending.release
        if sending.loaded.tier == release.source:
            self._answered(sending.ticket, sending.plan, result)
        else:
            self._post_result("credit", sending, 0, release.source, result)

    def _post_result(
        self, kind: Literal["result", "credit"], sending: Sending, step: int, to: int, result: Result
    ) -> None:
        header = Header(
            kind, sending.plan, sending.ticket, step, time.monotonic_ns(),
            exit_index=result.exit_index, label=result.label, score=result.score,
        )  # fmt: skip
        self._post(sending, to, header, result.failure.encode() or None)

    def _post(self, sending: Sending, to: int, header: Header, payload: Any) -> None:
        release = sending.release
        name, peer, head = release.tiers[to], self._peers.get(release, to), pack_header(header)
        done = partial(self._handed_over, sending.ticket) if sending.loaded.tier == release.source else None
        if peer is None or not peer.post(head, payload, done):
            self._drop(
                "unsent",
                f"the connection to {name} at {release.endpoints[to]} does not work; the source sends the sample again",
            )
        else:
            self._metrics.sent_bytes.labels(name).inc(len(head) + len(payload or b""))
