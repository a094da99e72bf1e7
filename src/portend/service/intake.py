"""The source's book of samples: each one that was accepted is answered once, or reported failed with its reason.

It holds every accepted sample until then, and sends it again when the way it went is broken or silent. Answers find
their sample by ticket, a number that each sending has of its own. Nothing here touches sockets or clocks; the caller
says what time it is. There are no acknowledgments from hop to hop: only the answer itself says that a sample arrived
(Saltzer, Reed, Clark 1984, "End-to-end arguments in system design").
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Final, Literal

from portend.service.release import Limits

__all__ = ["SAMPLE_ID", "Answer", "Entry", "Intake", "digest"]

SAMPLE_ID: Final = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
"""What may name a sample."""

_REMEMBERED: Final = 10_000
_MEASURED: Final = 64

Deliver = Callable[["Answer"], None]


def digest(encoded: bytes) -> bytes:
    """Return what tells a sample's bytes from others: 16 bytes of BLAKE2b."""
    return hashlib.blake2b(encoded, digest_size=16).digest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What became of one sample.

    Attributes:
        label, score, exit_index: what the network said, by which score, at which partition; -1 and NaN if it failed.
        plan: number of the plan that gave the answer, or was tried last. attempts: how often it was sent.
        latency_s: since it was accepted.
        failed: why there is no answer: ``sample`` (it cannot be used), ``timeout`` (tried too often), ``deadline`` (no
            time left), ``error`` (a tier could not run it) or ``stopped``; empty if there is one.
        reason: the same in a sentence.
    """

    id: str
    label: int = -1
    exit_index: int = -1
    score: float = float("nan")
    plan: int = -1
    attempts: int = 0
    latency_s: float = 0.0
    failed: str = ""
    reason: str = ""


@dataclass(eq=False, slots=True)
class _Ticket:
    """By which plan a sample was sent, and when all of it had left the source; infinity as long as it is here."""

    plan: int
    left_s: float = math.inf


@dataclass(eq=False, slots=True)
class Entry:
    """An accepted sample that has no answer yet."""

    id: str
    encoded: bytes
    digest: bytes
    accepted_s: float
    deliver: dict[Hashable, Deliver]
    attempts: int = 0
    tickets: dict[int, _Ticket] = field(default_factory=dict)
    plan: int = -1
    way: Hashable = None
    """By which plan it is under way, and through which lives of its tiers."""

    @property
    def left_s(self) -> float:
        """When the last sending left the source for good; infinity as long as it is here."""
        return list(self.tickets.values())[-1].left_s


class Intake:
    """Samples that wait, and samples under way.

    Args:
        first_ticket: larger than any that was given out before, even before a restart.
    """

    def __init__(self, limits: Limits, first_ticket: int) -> None:
        self.limits = limits
        self._ticket = first_ticket
        self._entries: dict[str, Entry] = {}
        self._waiting: deque[Entry] = deque()
        self._tickets: dict[int, Entry] = {}
        self._under_way: dict[str, Entry] = {}
        self._answered: OrderedDict[str, tuple[bytes, Answer]] = OrderedDict()
        self._took_s: deque[float] = deque(maxlen=_MEASURED)
        self.sent_again = self.late = self.refused = 0
        """Samples sent again; answers to samples that had one already; samples refused because all places are taken."""

    @property
    def waiting(self) -> int:
        """Samples that wait for their turn."""
        return len(self._waiting)

    @property
    def under_way(self) -> int:
        """Samples that were sent and have no answer."""
        return len(self._under_way)

    @property
    def full(self) -> bool:
        """Whether a new sample would be refused."""
        return len(self._entries) >= self.limits.window + self.limits.waiting

    def plans_in_use(self) -> set[int]:
        """Return the numbers of the plans under which samples are under way."""
        return {entry.plan for entry in self._under_way.values()}

    def offer(
        self, sample_id: str, encoded: bytes, now: float, to: Hashable, deliver: Deliver
    ) -> Literal["accepted", "known", "full", "other"]:
        """Take a sample in, or remember who else wants its answer if it is known already.

        An answer that was given before is delivered again, at once; a sample that failed is tried again. An id stands
        for the bytes that came with it first: with others it is refused (``other``), until a try of it failed.
        """
        fingerprint = digest(encoded)
        _, answer = self._answered.get(sample_id, (b"", None))
        if sample_id in self._entries or (answer is not None and not answer.failed):
            return "known" if self.wants(sample_id, fingerprint, to, deliver) else "other"
        if self.full:
            self.refused += 1
            return "full"
        self._answered.pop(sample_id, None)
        entry = self._entries[sample_id] = Entry(sample_id, encoded, fingerprint, now, {to: deliver})
        self._waiting.append(entry)
        return "accepted"

    def wants(self, sample_id: str, of: bytes, to: Hashable, deliver: Deliver) -> bool:
        """Whether the sample of this digest is known; then its answer, or the one it got, goes to ``to`` too."""
        if (entry := self._entries.get(sample_id)) is not None:
            if entry.digest == of:
                entry.deliver[to] = deliver
            return entry.digest == of
        before, answer = self._answered.get(sample_id, (b"", None))
        if answer is not None and before == of:
            deliver(answer)
        return before == of

    def forget(self, sample_id: str, to: Hashable) -> None:
        """Nobody waits at ``to`` any more."""
        if (entry := self._entries.get(sample_id)) is not None:
            entry.deliver.pop(to, None)

    def next(self) -> Entry | None:
        """Return the sample whose turn it is, if a credit is left; ``sent`` has to follow, or ``put_back``."""
        if not self._waiting or len(self._under_way) >= self.limits.window:
            return None
        return self._waiting[0]

    def sent(self, entry: Entry, plan: int, way: Hashable) -> int:
        """Spend a credit on the first sample that waits; return the ticket under which it goes.

        It counts as here, where it cannot be lost, until it was ``handed_over``.
        """
        self._waiting.remove(entry)
        ticket, self._ticket = self._ticket, self._ticket + 1
        entry.attempts += 1
        entry.plan, entry.way = plan, way
        entry.tickets[ticket] = _Ticket(plan)
        self._tickets[ticket] = self._under_way[entry.id] = entry
        return ticket

    def handed_over(self, ticket: int, now: float) -> None:
        """All of what a sending has for others arrived there: from now on it may be lost without a word."""
        if (entry := self._tickets.get(ticket)) is not None:
            entry.tickets[ticket].left_s = now

    def patience_s(self, attempts: int) -> float:
        """Seconds after which a sample that was handed over is taken for lost; after each attempt twice as many.

        ``retry_s`` at least, and twice what the slowest of the last 64 answers took.
        """
        return max(self.limits.retry_s, 2 * max(self._took_s, default=0.0)) * 2.0 ** (attempts - 1)

    def broken(self, is_broken: Callable[[Entry], bool], now: float) -> list[Answer]:
        """Send again, before all others, the samples whose way leads nowhere; return those that fail for good."""
        failed = [
            self._again(entry, now, "the way of the last was broken too")
            for entry in list(self._under_way.values())
            if is_broken(entry)
        ]
        return [answer for answer in failed if answer]

    def _again(self, entry: Entry, now: float, why: str) -> Answer | None:
        """Put a sample before all others that wait; or fail it, if it was tried too often."""
        del self._under_way[entry.id]
        self._waiting.appendleft(entry)
        if entry.attempts >= self.limits.attempts:
            reason = f"sent {entry.attempts} times, and {why}"
            return self._close(entry, now, failed="timeout", reason=reason)
        self.sent_again += 1
        return None

    def answered(
        self, ticket: int, plan: int, now: float, *, label: int, exit_index: int, score: float, failed: str = "",
        reason: str = "",
    ) -> Answer | None:  # fmt: skip
        """Give a sample its answer; None if it had one, or was never sent under such a ticket by this plan."""
        entry = self._tickets.get(ticket)
        if entry is None or entry.tickets[ticket].plan != plan:
            self.late += 1
            return None
        if (took_s := now - entry.tickets[ticket].left_s) >= 0:
            self._took_s.append(took_s)
        entry.plan = plan
        values = {"label": label, "exit_index": exit_index, "score": score}
        return self._close(entry, now, failed=failed, reason=reason, **({} if failed else values))

    def _close(self, entry: Entry, now: float, *, failed: str = "", reason: str = "", **values: float) -> Answer:
        del self._entries[entry.id]
        if self._under_way.pop(entry.id, None) is None:
            self._waiting.remove(entry)
        for ticket in entry.tickets:
            del self._tickets[ticket]
        answer = Answer(
            id=entry.id,
            plan=entry.plan,
            attempts=entry.attempts,
            latency_s=now - entry.accepted_s,
            failed=failed,
            reason=reason,
            **values,  # type: ignore[arg-type]
        )
        self._answered[entry.id] = entry.digest, answer
        if len(self._answered) > _REMEMBERED:
            self._answered.popitem(last=False)
        for deliver in list(entry.deliver.values()):
            deliver(answer)
        return answer

    def expire(self, now: float, why_waiting: str) -> list[Answer]:
        """Send again what is not answered for too long; return what failed: tried too often, or no time left."""
        limits, failed = self.limits, []
        for entry in list(self._entries.values()):
            under_way = entry.id in self._under_way
            if now - entry.accepted_s >= limits.deadline_s:
                what = self._where(entry) if under_way else why_waiting or "its turn did not come"
                reason = f"not answered within {limits.deadline_s:g} s, sent {entry.attempts} times; {what}"
                failed.append(self._close(entry, now, failed="deadline", reason=reason))
            elif under_way and now - entry.left_s >= (patience := self.patience_s(entry.attempts)):
                why = f"no answer came within {patience:.3g} s after the last had left"
                if answer := self._again(entry, now, why):
                    failed.append(answer)
        return failed

    def _where(self, entry: Entry) -> str:
        """Where a sample is that was sent, and how long others took."""
        here = math.isinf(entry.left_s)
        what = f"it is {'still at the source or on its way' if here else 'with the tiers after it'}"
        if self._took_s:
            what += f"; the slowest of the last {len(self._took_s)} answers took {max(self._took_s):.3g} s"
        return what

    def stop(self, now: float) -> list[Answer]:
        """Fail everything that has no answer: the source ends."""
        reason = "the source was stopped; send it again"
        return [self._close(entry, now, failed="stopped", reason=reason) for entry in list(self._entries.values())]
