"""The agent of one tier as a service on its host: one process that stays, and takes up where it was.

One thread runs an event loop that moves messages; another runs partitions, one at a time; a third loads networks. So an
agent goes on telling others that it lives while a partition runs. On the source it also keeps the book of accepted
samples (``intake``).

What comes from the network is trusted as far as its key goes: tiers' keys may send data and beats, the operator's key
orders and samples; in each message sizes and fields are checked before they are used, and what is wrong is counted,
logged and dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import platform
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Coroutine, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, Final

import msgpack
import zmq

from portend.address import is_loopback, read_address
from portend.controlgroups import memory_bytes
from portend.errors import ConfigError, DataError, DeploymentError, MessageError, PortendError
from portend.io.storage import from_plain
from portend.runtime.executors import make_executor
from portend.runtime.protocol import (
    PROTOCOL_VERSION,
    Header,
    pack_header,
)
from portend.service.drops import Drops
from portend.service.exit_watch import Exits
from portend.service.inbox import Inbox, Received
from portend.service.intake import SAMPLE_ID, Answer, Intake
from portend.service.keys import OPERATOR, Keys, Who, authenticate
from portend.service.metrics import Metrics
from portend.service.partitions import Loaded, Outcome, Shared
from portend.service.peer_table import PeerTable
from portend.service.peers import Beat, Peer, read_beat
from portend.service.probes import Probes
from portend.service.release import MOST_PLANS, Limits, NetworkFile, Release, plan_name, read_release
from portend.service.routes import Routes, View
from portend.service.store import Store
from portend.service.worker import Job, Worker

__all__ = ["ServiceAgent"]

_LOG: Final = logging.getLogger("portend.service")
_TICK_S: Final = 0.05
_MOST_JOBS: Final = 1024  # partitions that wait for the processor; the source's window is far below
_SEEN: Final = 8192  # messages that are remembered, so that none is run twice
_MOST_ORDERS: Final = 16  # that take their time, at once
_STOP_S: Final = 5.0
_SETTLE_S: Final = 3.0  # how long an activation waits for the wanted plan when another one can be used
_WORKING_S: Final = 1.0  # how often an order's sender hears that it is being worked on
_PACKAGE: Final = package_version("portend")
_UNUSED_S: Final = 900.0  # a release that was loaded and not activated is kept so long: its deploy was killed

_FAILURES: Final = ("sample", "error")


class ServiceAgent:
    """The agent ``name``.

    Args:
        listen: host:port for other agents and operators. keys: None for plain text, only on loopback.
        state: folder that survives a restart. http: host:port of the local HTTP interface; None for none.
        allow_code: ``module:object`` that a checkpoint may name; no message adds to it.
    """

    def __init__(
        self,
        name: str,
        listen: str,
        *,
        keys: Keys | None,
        state: str | Path,
        http: str | None = None,
        allow_code: Collection[str] = (),
    ) -> None:
        self.name, self._keys, self._allow_code = name, keys, allow_code
        self._listen = read_address(listen)
        if keys is None and not is_loopback(self._listen.host):
            raise ConfigError(f"plain text stays on this machine, but --listen is {listen}; give --keys, or 127.0.0.1")
        self._http = None if http is None else read_address(http)
        if self._http and not is_loopback(self._http.host):
            raise ConfigError(
                f"the HTTP interface asks nobody who they are, so it stays on this machine, but got {http}; use "
                "127.0.0.1 and put a proxy that does before it"
            )
        self.store = Store(state)
        self.metrics = Metrics()
        self._drop = Drops(self.metrics)
        self.incarnation = secrets.randbits(62) + 1
        self.releases: dict[int, Loaded] = {}
        self._taken_s: dict[int, float] = {}
        self.active = 0
        self.intake = Intake(Limits(), time.time_ns())
        self._probes = Probes()
        self._exits = Exits(self.metrics)
        self._shared: dict[Hashable, Shared] = {}
        self._routes = Routes()
        self._seen: OrderedDict[tuple[int, int], None] = OrderedDict()
        self._loader = ThreadPoolExecutor(1, "load")
        self._jobs: Counter[str] = Counter()  # partitions that wait or run here, by who sent them
        self._large: set[str] = set()  # samples in the book that take long to decode
        self._orders: dict[asyncio.Task[None], tuple[bytes, int]] = {}  # who gave them, and their numbers
        self._loading = asyncio.Lock()
        self._source_oldest = 0
        self.stopping = asyncio.Event()
        self.stopped = False

    # -- life ----------------------------------------------------------------------------------

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until ``stopping`` is set; then fail or finish what is under way, and end.

        Raises:
            DeploymentError: an address is in use.
        """
        self._loop = asyncio.get_running_loop()
        self._worker = Worker(self._from_worker, self.metrics.batch.observe)
        self._decoder = Worker(self._from_worker)
        self._loader.submit(int)  # starts its thread now: without memory it could not, and would run the order later
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._peers = PeerTable(self._context, self.name, self._keys, self._changed)
        who: Who | None = None
        with contextlib.ExitStack() as ends:
            ends.callback(self.store.close)
            ends.callback(self._context.destroy, linger=0)
            ends.callback(self._worker.close)
            ends.callback(self._decoder.close)
            ends.callback(self._loader.shutdown, wait=False, cancel_futures=True)
            ends.callback(self._peers.close)
            if self._keys is not None:
                who = authenticate(self._context, self._keys)
                ends.callback(who.stop)
            self._inbox = Inbox(
                self._context, self._listen, keys=self._keys, incarnation=self.incarnation, metrics=self.metrics,
                drop=self._drop, received=self._received,
            )  # fmt: skip
            await self._restore()
            async with contextlib.AsyncExitStack() as web:
                if self._http:
                    from portend.service.http import serve_http

                    await web.enter_async_context(serve_http(self, *self._http))
                self._inbox.open()
                watch = asyncio.create_task(self._tick(who))
                _LOG.info("listening on %s", self._listen)
                ready()
                await self.stopping.wait()
                await self._finish()
                self._inbox.close()
                for task in (watch, *self._orders):
                    task.cancel()
                self._probes.close()

    async def _restore(self) -> None:
        """Load what ran before this process began."""
        try:
            releases, active = self.store.restore()
        except PortendError as error:
            _LOG.error("%s", error)
            return
        for release in releases:
            try:
                self._take(await self._loop.run_in_executor(self._loader, self._load, release))
            except Exception as error:  # whatever one release does, the agent lives on
                _LOG.error("release %d cannot be restored: %s: %s", release.version, type(error).__name__, error)
        if active in self.releases:
            self._activate(active)

    async def _finish(self) -> None:
        """Let in no more; give what is under way a moment, then fail it."""
        self.stopped = True
        deadline = time.monotonic() + _STOP_S
        while self.intake.under_way and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for answer in self.intake.stop(time.monotonic()):
            self._closed(answer)
        await asyncio.sleep(0)

    # -- messages ------------------------------------------------------------------------------

    def _received(self, message: Received) -> None:
        """Do what a message asks for, as far as its sender may."""
        content, peers = message.content, self._peers.named(message.sender)
        if isinstance(content, Header):
            if not peers:
                self._drop("not_allowed", f"{message.sender!r} is no tier of a release and may not send data")
                return
            self._data(content, message.payload, peers, message.received_ns)
        elif content["command"] == "beat":
            if peers:
                self._heard(peers, read_beat(content), message.received_ns)
        elif message.sender != OPERATOR:
            self._drop("not_allowed", f"{message.sender!r} may not give orders")
        else:
            self._obey(message.routing, content, message.payload)

    # -- samples -------------------------------------------------------------------------------

    def offer(self, sample_id: str, encoded: bytes, to: Hashable, deliver: Callable[[Answer], None]) -> str:
        """Take a sample in: ``accepted``, ``known``, or refused: ``full``, or ``other`` bytes than came by this id.

        Raises:
            DeploymentError: this agent is no source, or ends. InvalidValue, DataError: such a sample cannot be taken.
        """
        self.check_source()
        if not SAMPLE_ID.fullmatch(sample_id):
            raise DataError(f"a sample's id has 1–128 letters, digits or any of . _ : / -, but got {sample_id!r:.80}")
        most = self.intake.limits.sample_bytes
        if not 0 < len(encoded) <= most:
            raise DataError(f"a sample has 1–{most} bytes, but got {len(encoded)}")
        found = self.intake.offer(sample_id, encoded, time.monotonic(), to, deliver)
        if found == "accepted" and self.releases[self.active].is_large(encoded):
            self._large.add(sample_id)
        if found == "full":
            self.metrics.refused.inc()
        self._pump()
        return found

    def is_crowded(self, encoded: bytes) -> bool:
        """Whether a sample is large, and half of the window's samples are already; only on the source."""
        most = max(1, self.intake.limits.window // 2)
        return len(self._large) >= most and self.releases[self.active].is_large(encoded)

    def check_source(self) -> None:
        """Raise DeploymentError unless samples can be taken here."""
        if self.stopped:
            raise DeploymentError(f"agent {self.name} is being stopped; try again later")
        if not self.is_source:
            raise DeploymentError(f"agent {self.name} is no source: no release that takes samples here is active")

    @property
    def is_source(self) -> bool:
        """Whether samples enter here."""
        loaded = self.releases.get(self.active)
        return loaded is not None and loaded.tier == loaded.release.source

    def _pump(self) -> None:
        """Source: send samples as long as there are credits."""
        if not self.is_source:
            return
        loaded = self.releases[self.active]
        while (entry := self.intake.next()) is not None:
            index = self._chosen(loaded.release)
            if index is None:
                return
            number = loaded.release.number(index)
            again = entry.attempts > 0
            ticket = self.intake.sent(entry, number, self._routes.ways[number])
            if again:
                self.metrics.sent_again.inc()
            work = partial(loaded.begin, index)
            then = partial(self._moved, loaded, index, ticket)
            here = not loaded.passes_on(index)
            self._run(loaded, Job((number, -1), work, entry.encoded, then), decodes=here)

    def _run(self, loaded: Loaded, job: Job, *, decodes: bool) -> None:
        """Let a job run; a large sample is decoded by another thread first, so that others need not wait for it."""
        if not decodes or not loaded.is_large(job.payload):
            self._worker.add(job, loaded.batch)
            return

        def decoded(found: Any) -> None:
            if isinstance(found, Exception):
                job.then(found)
            else:
                self._worker.add(replace(job, payload=found), loaded.batch)

        self._decoder.add(Job("decode", loaded.decode, job.payload, decoded, job.sender))

    def _ran(self, sender: str, then: Callable[[Any], None], found: Any) -> None:
        self._jobs[sender] -= 1
        then(found)

    def _chosen(self, release: Release) -> int | None:
        """Place of the plan that a new sample takes: the first that can be used, and not only since just now."""
        return self._routes.choose(release, time.monotonic() - self.intake.limits.silence_s / 4)

    def _from_worker(self, what: Callable[[], None]) -> None:
        """In the compute thread: let the event loop do something."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(what)

    def _moved(self, loaded: Loaded, index: int, ticket: int, outcome: Outcome | Exception) -> None:
        """A sample was run here: pass it on, or on its way back."""
        if isinstance(outcome, MessageError):
            self._drop("malformed", outcome)
        elif isinstance(outcome, Exception):
            why = "sample" if isinstance(outcome, DataError) else "error"
            _LOG.warning("a sample failed on tier %s: %s: %s", self.name, type(outcome).__name__, outcome)
            self._finished(loaded, index, ticket, -1, -1, float("nan"), f"{why}:{outcome}"[:400])
        else:
            for term, seconds in outcome.terms:
                self.metrics.terms.labels(term).observe(seconds)
            if outcome.payload is None:
                self._finished(loaded, index, ticket, outcome.step, outcome.label, outcome.score, "")
            else:
                to = loaded.release.plans[index].placement[outcome.step]
                header = Header("tensor", loaded.release.number(index), ticket, outcome.step, time.monotonic_ns())
                self._post(loaded, to, header, outcome.payload)

    def _finished(
        self, loaded: Loaded, index: int, ticket: int, step: int, label: int, score: float, failure: str
    ) -> None:
        """The sample left here: tell the destination; it tells the source."""
        release = loaded.release
        if loaded.tier == release.destination:
            self._answered(loaded, index, ticket, step, label, score, failure)
            return
        header = Header(
            "result", release.number(index), ticket, len(release.plans[index]), time.monotonic_ns(),
            exit_index=step, label=label, score=score,
        )  # fmt: skip
        self._post(loaded, release.destination, header, failure.encode() or None)

    def _answered(
        self, loaded: Loaded, index: int, ticket: int, step: int, label: int, score: float, failure: str
    ) -> None:
        """Destination: the answer is here; the source's book is closed by it."""
        release = loaded.release
        if loaded.tier == release.source:
            self._close(ticket, release.number(index), step, label, score, failure)
            return
        header = Header(
            "credit", release.number(index), ticket, 0, time.monotonic_ns(), exit_index=step, label=label, score=score
        )
        self._post(loaded, release.source, header, failure.encode() or None)

    def _close(self, ticket: int, plan: int, step: int, label: int, score: float, failure: str) -> None:
        """Source: the answer of a sample is here."""
        failed, _, reason = failure.partition(":")
        answer = self.intake.answered(
            ticket, plan, time.monotonic(), label=label, exit_index=step, score=score, failed=failed, reason=reason
        )
        if answer is None:
            self.metrics.late.inc()
        else:
            self._closed(answer)
        self._pump()

    def _closed(self, answer: Answer) -> None:
        self._large.discard(answer.id)
        if answer.failed:
            self.metrics.failed.labels(answer.failed).inc()
            _LOG.warning("sample %s failed (%s): %s", answer.id, answer.failed, answer.reason)
        else:
            self.metrics.answers.labels(str(answer.exit_index + 1)).inc()
            self._exits.count(answer.plan, answer.exit_index)
            self.metrics.latency.observe(answer.latency_s)

    def _post(self, loaded: Loaded, to: int, header: Header, payload: Any) -> None:
        name, at = loaded.release.tiers[to], loaded.release.endpoints[to]
        peer, head = self._peers.get(loaded.release, to), pack_header(header)
        done = partial(self._handed_over, header.request) if loaded.tier == loaded.release.source else None
        if peer is None or not peer.post(head, payload, done):
            self._drop("unsent", f"the connection to {name} at {at} does not work; the source sends the sample again")
        else:
            self.metrics.sent_bytes.labels(name).inc(len(head) + len(payload or b""))

    def _handed_over(self, ticket: int) -> None:
        self.intake.handed_over(ticket, time.monotonic())

    def _data(self, header: Header, payload: Any, peers: Sequence[Peer], received_ns: int) -> None:
        version, index = divmod(header.run, MOST_PLANS)
        loaded = self.releases.get(version)
        if loaded is None or index >= len(loaded.plans):
            self._drop("unknown_plan", f"{plan_name(index)} of release {version} is not loaded here")
            return
        plan, release = loaded.release.plans[index], loaded.release
        sender = peers[0].name
        if sender not in {release.tiers[tier] for tier in release.senders(index, header.kind, header.step)}:
            self._drop("not_allowed", f"{sender} has no {header.kind} to send by this plan")
            return
        seconds = next((s for peer in peers if (s := peer.transfer_s(header.sent_ns, received_ns)) is not None), None)
        if seconds is not None and seconds >= 0:
            self.metrics.terms.labels("transfer").observe(seconds)
        if header.kind == "tensor":
            if payload is None or not 0 <= header.step < len(plan) or plan.placement[header.step] != loaded.tier:
                raise MessageError(f"{self.name} runs no partition {header.step + 1} of this plan, or got no tensor")
            if self._is_replayed(header):
                return
            if self._worker.waiting + self._decoder.waiting >= _MOST_JOBS:
                self._drop("queue_full", f"{_MOST_JOBS} partitions wait already")
                return
            if len(payload) > loaded.most_bytes(index, header.step):
                raise MessageError(f"partition {header.step + 1} takes no tensor of {len(payload)} bytes")
            if self._jobs[sender] >= 2 * release.limits.window:  # what is under way, and was sent once more
                self._drop("queue_full", f"{self._jobs[sender]} partitions wait already that {sender} sent")
                return
            self._jobs[sender] += 1
            work = partial(loaded.carry_on, index, header.step)
            then = partial(self._ran, sender, partial(self._moved, loaded, index, header.request))
            job = Job((header.run, header.step), work, payload, then, sender)
            self._run(loaded, job, decodes=loaded.takes_encoded(index, header.step))
            return
        failure = self._checked_answer(header, payload, len(plan), loaded.spec.num_classes)
        answer = (header.request, header.exit_index, header.label, header.score, failure)
        if header.kind == "result" and loaded.tier == release.destination:
            self._answered(loaded, index, *answer)
        elif header.kind == "credit" and loaded.tier == release.source:
            self._close(header.request, header.run, *answer[1:])
        else:
            raise MessageError(f"{self.name} is neither where results go nor where credits do")

    def _is_replayed(self, header: Header) -> bool:
        """Whether the same message came before; each sending of a sample has a ticket of its own."""
        key = (header.request, header.step)
        if key in self._seen:
            self._drop("replayed", f"partition {header.step + 1} ran already for ticket {header.request}")
            return True
        self._seen[key] = None
        if len(self._seen) > _SEEN:
            self._seen.popitem(last=False)
        return False

    def _checked_answer(self, header: Header, payload: Any, length: int, classes: int) -> str:
        """Return why the sample failed, as ``kind:reason``; empty if it did not."""
        if payload is None:
            if not (0 <= header.exit_index < length and 0 <= header.label < classes):
                raise MessageError(f"there is no exit {header.exit_index + 1} with a label {header.label}")
            return ""
        failure = bytes(payload[:2000]).decode(errors="replace")
        if failure.partition(":")[0] not in _FAILURES:
            raise MessageError("an answer says why a sample failed, but this one says something else")
        return failure

    # -- who lives -----------------------------------------------------------------------------

    async def _tick(self, who: Who | None) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            try:
                self._watch(who, time.monotonic())
            except Exception:
                _LOG.exception("the watch over the others stumbled")

    def _watch(self, who: Who | None, now: float) -> None:
        self._peers.watch(now, self.intake.limits.silence_s)
        self._beat(now)
        self._judge(now)
        self._gauge(who, now)

    def _changed(self) -> None:
        """A connection began to work, or broke: tell the others, and use it or not, at once."""
        self._loop.call_soon(self._after_change)

    def _after_change(self) -> None:
        now = time.monotonic()
        self._peers.hurry()
        self._beat(now)
        self._judge(now)

    def _beat(self, now: float) -> None:
        self._peers.tell(self._says, now, self.intake.limits.beat_s)

    def _says(self) -> Beat:
        view = self._peers.view()
        return Beat(
            incarnation=self.incarnation,
            sent_ns=time.monotonic_ns(),
            versions=tuple(self.releases),
            reaches=tuple(view.reached(loaded.release) for loaded in self.releases.values()),
            active=self.active if self.is_source else 0,
            oldest=self._oldest() if self.is_source else 0,
        )

    def _oldest(self) -> int:
        return min([self.active, *(number // MOST_PLANS for number in self.intake.plans_in_use())])

    def _heard(self, peers: Sequence[Peer], beat: Beat, now_ns: int) -> None:
        reborn, name = [peer.hear(beat) for peer in peers], peers[0].name
        if any(reborn):
            _LOG.info("%s was started again", name)
        loaded = self.releases.get(beat.active)
        if loaded is not None and beat.active >= self.active and loaded.release.told_by(name, beat.oldest):
            self._source_oldest, was_source = beat.oldest, self.is_source
            if beat.active != self.active:
                self.active, self.intake.limits = beat.active, loaded.release.limits
            if was_source and not self.is_source:
                for answer in self.intake.stop(time.monotonic()):
                    self._closed(answer)
        self._judge(1e-9 * now_ns)

    def _judge(self, now: float) -> None:
        """Which plans can be used now; the source sends again what went by one that cannot."""
        self._unload(self._oldest() if self.is_source else self._source_oldest)
        loaded = self.releases.values()
        if not any(each.tier == each.release.source for each in loaded):
            return
        view, before = self._peers.view(), self._routes
        self._routes = before.updated([each.release for each in loaded], view, now)
        if not self.is_source:
            return
        release = self.releases[self.active].release
        if self._routes.ways != before.ways:
            used = self._routes.first_usable(release)
            _LOG.info("plans that can be used: %s", "none" if used is None else f"from number {used} on")
        for answer in self.intake.broken(lambda entry: self._routes.is_broken(entry.plan, entry.way), now):
            self._closed(answer)
        for answer in self.intake.expire(now, self._why_not(release, view)):
            self._closed(answer)
        self._pump()

    def _why_not(self, release: Release, view: View) -> str:
        if self._routes.first_usable(release) is not None:
            return ""
        return f"no plan can be used: {'; '.join(view.missing(release, 0)) or 'a connection broke just now'}"

    def _gauge(self, who: Who | None, now: float) -> None:
        self._exits.look()
        metrics, limits = self.metrics, self.intake.limits
        metrics.waiting.set(self.intake.waiting)
        metrics.under_way.set(self.intake.under_way)
        metrics.credits.set(limits.window - self.intake.under_way if self.is_source else 0)
        metrics.jobs.set(self._worker.waiting)
        metrics.version.set(self.active)
        if who is not None and who.refused:
            metrics.strangers.inc(who.refused)
            _LOG.warning("refused %d connections with unknown keys", who.refused)
            who.refused = 0
        for peer in self._peers:
            metrics.peer_up.labels(peer.name).set(peer.works)
            if peer.round_trip_s is not None:
                metrics.round_trip.labels(peer.name).set(peer.round_trip_s)

    # -- releases ------------------------------------------------------------------------------

    def _load(self, release: Release) -> Loaded:
        """Load a release's partitions; in the loader's thread.

        Raises:
            PortendError: it does not fit this agent, or its network is not here.
        """
        if self.name not in release.tiers:
            raise DeploymentError(f"agent {self.name} is none of the tiers {', '.join(release.tiers)}")
        tier = release.tiers.index(self.name)
        execution = release.executions[tier]
        path = self.store.verified(release.networks[tier])
        most = release.batches[tier]
        key = (release.networks[tier].sha256, execution, release.criterion, most)
        shared = self._shared.get(key)
        if shared is None:
            made = make_executor(path, execution, criterion=release.criterion, allow_code=self._allow_code)
            shared = self._shared[key] = Shared(made, most)
        return Loaded(release, tier, shared)

    def _take(self, loaded: Loaded) -> None:
        """Run a release from now on, beside those that run.

        Raises:
            ConfigError: there is no public key of one of its agents.
        """
        release = loaded.release
        self._peers.add(release)
        self.releases[release.version] = loaded
        self._taken_s[release.version] = time.monotonic()
        if not self.active:
            self.intake.limits = release.limits  # beats and silence count before it is active

    def _check_active(self, version: int) -> None:
        if version not in self.releases:
            raise DeploymentError(f"release {version} is not loaded on {self.name}; load it first")
        if version < self.active:
            raise DeploymentError(f"release {self.active} is active on {self.name}, which is newer than {version}")

    def _activate(self, version: int) -> None:
        loaded = self.releases[version]
        self.active, self.intake.limits = version, loaded.release.limits
        if self.is_source:
            self._exits.follow(loaded.release)
        _LOG.info("release %d is active", version)
        self._judge(time.monotonic())

    def _is_abandoned(self, loaded: Loaded) -> bool:
        """Whether a release was loaded long ago and its source, asked now, has not activated it."""
        release = loaded.release
        if time.monotonic() - self._taken_s[release.version] < _UNUSED_S:
            return False
        source = self._peers.get(release, release.source)
        active = self.active if source is None else source.says.active if source.says else math.inf
        return active < release.version

    def _unload(self, oldest: int) -> None:
        """Let releases go that nobody uses any more."""
        gone = [version for version, each in self.releases.items() if version < oldest or self._is_abandoned(each)]
        if not gone:
            return
        for version in gone:
            del self.releases[version], self._taken_s[version]
        kept = [loaded.release for loaded in self.releases.values()]
        places = [(each, each.tiers.index(self.name)) for each in kept]
        used = {(r.networks[t].sha256, r.executions[t], r.criterion, r.batches[t]) for r, t in places}
        for key in self._shared.keys() - used:
            del self._shared[key]
        self._peers.keep(kept)
        try:
            self._save()
        except PortendError as error:  # after a restart they are loaded once more, and let go again
            _LOG.warning("%s", error)
        _LOG.info("unloaded release %s", ", ".join(map(str, gone)))

    # -- orders --------------------------------------------------------------------------------

    def _obey(self, routing: bytes, values: dict[str, Any], payload: Any) -> None:
        """Do as the operator says: at once, or in a task what takes its time."""
        number = values.get("number")
        with self._reporting(routing, number):
            handler = getattr(self, f"_on_{values['command']}", None)
            if handler is None or type(number) is not int:
                raise MessageError(f"an agent does not know the order {values['command']!r:.40}")
            told = handler(routing, values, payload)
            if not asyncio.iscoroutine(told):
                self._tell(routing, values, told)
            elif len(self._orders) >= _MOST_ORDERS:
                told.close()
                raise DeploymentError("too many orders at once; wait for the answers")
            else:
                task = asyncio.create_task(self._finish_order(routing, values, told))
                self._orders[task] = routing, number
                task.add_done_callback(self._orders.pop)

    async def _finish_order(
        self, routing: bytes, values: dict[str, Any], coming: Coroutine[Any, Any, dict[str, Any]]
    ) -> None:
        task = asyncio.create_task(coming)
        try:
            while not (await asyncio.wait({task}, timeout=_WORKING_S))[0]:
                self._inbox.reply(routing, "working", number=values["number"])
            with self._reporting(routing, values["number"]):
                self._tell(routing, values, task.result())
        finally:
            task.cancel()

    def _tell(self, routing: bytes, values: dict[str, Any], told: dict[str, Any] | None) -> None:
        if told is not None:
            self._inbox.reply(routing, values["command"], number=values["number"], **told)

    @contextlib.contextmanager
    def _reporting(self, routing: bytes, number: Any) -> Iterator[None]:
        """Tell the operator what goes wrong with an order."""
        try:
            yield
        except PortendError as error:
            self._inbox.reply(routing, "error", number=number, message=str(error))
        except Exception as error:  # what libraries raise is an open set, and silence would keep the operator waiting
            _LOG.exception("an order failed")
            self._inbox.reply(routing, "error", number=number, message=f"{type(error).__name__}: {error}")

    def _on_hello(self, routing: bytes, _: dict[str, Any], __: Any) -> dict[str, Any]:
        return {
            "name": self.name,
            "orders": [number for sender, number in self._orders.values() if sender == routing],
            "package": _PACKAGE,
            "protocol": PROTOCOL_VERSION,
            "python": platform.python_version(),
            "machine": platform.platform(),
            "memory_bytes": memory_bytes(),
            "time_ns": time.time_ns(),
            "versions": list(self.releases),
            "active": self.active,
        }

    def _on_network(self, _: bytes, values: dict[str, Any], __: Any) -> dict[str, Any]:
        return {"held": self.store.held(_network(values))}

    async def _on_chunk(self, _: bytes, values: dict[str, Any], payload: Any) -> dict[str, Any]:
        if payload is None:
            raise MessageError("a chunk has bytes, but got none")
        append = partial(self.store.append, _network(values), int(values["offset"]), bytes(payload))
        return {"held": await self._loop.run_in_executor(self._loader, append)}

    async def _on_load(self, _: bytes, values: dict[str, Any], __: Any) -> dict[str, Any]:
        release = read_release(values.get("release"))
        async with self._loading:
            newest = max([*self.releases, self.active], default=0)
            if release.version <= newest:
                raise DeploymentError(f"release {newest} is here already; give the next one a higher version")
            loaded = await self._loop.run_in_executor(self._loader, self._load, release)
            self._save(release)
            try:
                self._take(loaded)
            except PortendError:
                self._save()
                raise
            self._beat(time.monotonic())
        return {"network": loaded.spec.name, "weights_sha256": loaded.spec.weights_sha256}

    async def _on_activate(self, _: bytes, values: dict[str, Any], __: Any) -> dict[str, Any]:
        """Let new samples take a release, once one of its plans can be used; the wanted one, if that is soon."""
        version, began = int(values["release"]), time.monotonic()
        wait_s = float(values["wait_s"])
        while (loaded := self.releases.get(version)) is not None:
            usable, waited = self._routes.first_usable(loaded.release), time.monotonic() - began
            if usable == 0 or (usable is not None and waited > _SETTLE_S):
                break
            if not waited < wait_s:
                missing = "; ".join(self._peers.view().missing(loaded.release, 0))
                raise DeploymentError(
                    f"release {version} was not activated, for no sample could be answered: {missing}; correct the "
                    "addresses in the topology, or what lies between the hosts, and deploy again"
                )
            await asyncio.sleep(0.005)
        self._check_active(version)
        self._save(active=version)  # first: where it cannot be kept, nothing changes
        self._activate(version)
        return {}

    def _save(self, *more: Release, active: int | None = None) -> None:
        """Keep the releases that run, and those that are about to.

        Raises:
            StorageError: they cannot be written; then the file is as before.
        """
        kept = (*(loaded.release for loaded in self.releases.values()), *more)
        self.store.save(kept, self.active if active is None else active)

    def _on_status(self, _: bytes, __: dict[str, Any], ___: Any) -> dict[str, Any]:
        return self.status()

    def status(self) -> dict[str, Any]:
        """Return how this agent does, as JSON values."""
        release = self.releases[self.active].release if self.is_source else None
        usable = self._chosen(release) if release else None
        return {
            "name": self.name,
            "incarnation": self.incarnation,
            "active": self.active,
            "versions": list(self.releases),
            "source": self.is_source,
            "plan": usable,
            "lacks": self._peers.view().missing(release, 0) if release else [],
            "in_use": sorted({number // MOST_PLANS for number in self.intake.plans_in_use()}),
            "waiting": self.intake.waiting,
            "under_way": self.intake.under_way,
            "window": self.intake.limits.window,
            "full": self.intake.full,
            "drift": self._exits.describe(),
            "peers": {
                peer.name: {"up": peer.works, "round_trip_s": peer.round_trip_s, "rate_bps": peer.outbox.rate_bps}
                for peer in self._peers
            },
        }

    async def _on_peer(self, _: bytes, values: dict[str, Any], __: Any) -> dict[str, Any]:
        return {"port": await self._probes.serve(self._listen.host, values)}

    async def _on_measure(self, _: bytes, values: dict[str, Any], __: Any) -> dict[str, Any]:
        return {"measured": await self._probes.measure(values)}

    def _on_submit(self, routing: bytes, values: dict[str, Any], payload: Any) -> dict[str, Any] | None:
        """Take a sample; its answer says that it was, or what is wrong with it. A refusal has a word of its own."""
        sample, deliver = str(values["sample"]), partial(self._deliver, routing)
        if self.stopped:
            return {"sample": sample, "found": "full"}
        try:
            found = self.offer(sample, b"" if payload is None else bytes(payload), routing, deliver)
        except DataError as error:
            deliver(Answer(id=sample, failed="sample", reason=str(error)))
            return None
        return {"sample": sample, "found": found} if found in ("full", "other") else None

    def _on_known(self, routing: bytes, values: dict[str, Any], _: Any) -> dict[str, Any]:
        """Which samples (id and digest of each) are not known here; the answers of the others go to who asks."""
        samples = values["samples"]
        if not isinstance(samples, dict) or len(samples) > 1 << 16:
            raise MessageError("the samples' ids and digests are needed")
        deliver = partial(self._deliver, routing)
        return {"unknown": [s for s, of in samples.items() if not self.intake.wants(s, of, routing, deliver)]}

    def _deliver(self, routing: bytes, answer: Answer) -> None:
        self._inbox.reply(routing, "answer", answer={name: getattr(answer, name) for name in Answer.__slots__})


def _network(values: dict[str, Any]) -> NetworkFile:
    try:
        return from_plain(NetworkFile, values.get("network"))
    except (PortendError, TypeError, ValueError, LookupError, msgpack.UnpackException) as error:
        raise MessageError(f"this names no network ({error})") from None
