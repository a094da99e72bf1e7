"""The source's part of an agent: samples are taken in, sent by a plan that can be used, and answered once.

The book of samples is ``Intake``; which plans can be used says ``Routes``. Here the two meet, and are counted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Final

from portend.errors import DataError, DeploymentError
from portend.service.exit_watch import Exits
from portend.service.intake import SAMPLE_ID, Answer, Intake
from portend.service.metrics import Metrics
from portend.service.partitions import Loaded
from portend.service.release import MOST_PLANS, Release
from portend.service.releases import Releases
from portend.service.routes import Routes, View

__all__ = ["Result", "Sending", "Source"]

_LOG: Final = logging.getLogger("portend.service")
_STOP_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Sending:
    """One sending of a sample: under which ticket, by which plan (its place) of which release."""

    loaded: Loaded
    index: int
    ticket: int

    @property
    def release(self) -> Release:
        """The release that is loaded."""
        return self.loaded.release

    @property
    def plan(self) -> int:
        """Number of the plan, as messages call it."""
        return self.release.number(self.index)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a sending: where the sample left and what the network said, or ``kind:reason`` why it failed."""

    exit_index: int = -1
    label: int = -1
    score: float = float("nan")
    failure: str = ""


class Source:
    """The source's part of the agent ``name``; idle as long as its release is no source's.

    Args:
        begin: runs a sample on this tier and sends it on.
    """

    def __init__(
        self,
        name: str,
        releases: Releases,
        intake: Intake,
        metrics: Metrics,
        begin: Callable[[Sending, bytes], None],
    ) -> None:
        self._name, self._releases, self._begin = name, releases, begin
        self.intake, self.metrics = intake, metrics
        self.exits = Exits(metrics)
        self.routes = Routes()
        self.stopped = False
        """Whether no more samples are taken, for the agent ends."""
        self._large: set[str] = set()  # samples in the book that take long to decode

    # -- samples in ----------------------------------------------------------------------------

    def check(self) -> Loaded:
        """Return the release whose samples enter here.

        Raises:
            DeploymentError: there is none, or the agent ends.
        """
        if self.stopped:
            raise DeploymentError(f"agent {self._name} is being stopped; try again later")
        loaded = self._releases.as_source
        if loaded is None:
            raise DeploymentError(f"agent {self._name} is no source: no release that takes samples here is active")
        return loaded

    def is_crowded(self, encoded: bytes) -> bool:
        """Whether a sample is large, and half of the window's samples are already.

        Raises:
            DeploymentError: samples cannot be taken here.
        """
        loaded, most = self.check(), max(1, self.intake.limits.window // 2)
        return len(self._large) >= most and loaded.is_large(encoded)

    def offer(self, sample_id: str, encoded: bytes, to: Hashable, deliver: Callable[[Answer], None]) -> str:
        """Take a sample in: ``accepted``, ``known``, or refused: ``full``, or ``other`` bytes than came by this id.

        Raises:
            DeploymentError: this agent is no source, or ends. DataError: such a sample cannot be taken.
        """
        loaded = self.check()
        if not SAMPLE_ID.fullmatch(sample_id):
            raise DataError(f"a sample's id has 1–128 letters, digits or any of . _ : / -, but got {sample_id!r:.80}")
        most = self.intake.limits.sample_bytes
        if not 0 < len(encoded) <= most:
            raise DataError(f"a sample has 1–{most} bytes, but got {len(encoded)}")
        reception = self.intake.offer(sample_id, encoded, time.monotonic(), to, deliver)
        if reception == "accepted" and loaded.is_large(encoded):
            self._large.add(sample_id)
        if reception == "full":
            self.metrics.refused.inc()
        self._send()
        return reception

    def _send(self) -> None:
        """Send samples as long as there are credits."""
        loaded = self._releases.as_source
        if loaded is None:
            return
        while (entry := self.intake.next()) is not None:
            index = self.choose(loaded.release)
            if index is None:
                return
            number = loaded.release.number(index)
            again = entry.attempts > 0
            ticket = self.intake.sent(entry, number, self.routes.ways[number])
            if again:
                self.metrics.sent_again.inc()
            self._begin(Sending(loaded, index, ticket), entry.encoded)

    def choose(self, release: Release) -> int | None:
        """Return the place of the plan that a new sample takes; None if none can be used."""
        return self.routes.choose(release, time.monotonic() - self.intake.limits.silence_s / 4)

    # -- answers out ---------------------------------------------------------------------------

    def handed_over(self, ticket: int) -> None:
        """All of a sending that others need arrived there."""
        self.intake.handed_over(ticket, time.monotonic())

    def answered(self, ticket: int, plan: int, result: Result) -> None:
        """The answer of a sample is here."""
        failed, _, reason = result.failure.partition(":")
        answer = self.intake.answered(
            ticket, plan, time.monotonic(), label=result.label, exit_index=result.exit_index, score=result.score,
            failed=failed, reason=reason,
        )  # fmt: skip
        if answer is None:
            self.metrics.late.inc()
        else:
            self._count([answer])
        self._send()

    def _count(self, answers: Iterable[Answer]) -> None:
        for answer in answers:
            self._large.discard(answer.id)
            if answer.failed:
                self.metrics.failed.labels(answer.failed).inc()
                _LOG.warning("sample %s failed (%s): %s", answer.id, answer.failed, answer.reason)
            else:
                self.metrics.answers.labels(str(answer.exit_index + 1)).inc()
                self.exits.count(answer.plan, answer.exit_index)
                self.metrics.latency.observe(answer.latency_s)

    # -- what changes --------------------------------------------------------------------------

    def route(self, view: View, now: float) -> None:
        """Use the plans that can be used now; send again what went by one that cannot, or is late."""
        if not self._releases.is_source_of_any:
            return
        before = self.routes
        self.routes = before.updated(self._releases.all, view, now)
        loaded = self._releases.as_source
        if loaded is None:
            return
        first = self.routes.first_usable(loaded.release)
        if self.routes.ways != before.ways:
            _LOG.info("plans that can be used: %s", "none" if first is None else f"from number {first} on")
        self._count(self.intake.broken(lambda entry: self.routes.is_broken(entry.plan, entry.way), now))
        why_waiting = ""
        if first is None:
            missing = "; ".join(view.missing(loaded.release, 0)) or "a connection broke just now"
            why_waiting = f"no plan can be used: {missing}"
        self._count(self.intake.expire(now, why_waiting))
        self._send()

    def activated(self) -> None:
        """Watch the exits of the release that was activated."""
        if (loaded := self._releases.as_source) is not None:
            self.exits.follow(loaded.release)

    @property
    def oldest_used(self) -> int:
        """Version of the oldest release whose plans are in use."""
        return min([self._releases.active, *self.versions_used()])

    def versions_used(self) -> list[int]:
        """Return the versions of the releases under which samples are under way."""
        return sorted({number // MOST_PLANS for number in self.intake.plans_in_use()})

    def fail_all(self) -> None:
        """Fail all that has no answer: this agent is no source any more."""
        self._count(self.intake.stop(time.monotonic()))

    async def stop(self) -> None:
        """Let in no more; give what is under way a moment, then fail it."""
        self.stopped = True
        deadline = time.monotonic() + _STOP_S
        while self.intake.under_way and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        self.fail_all()
        await asyncio.sleep(0)
