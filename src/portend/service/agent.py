"""The agent of one tier as a service on its host: one process that stays, and takes up where it was.

One thread runs an event loop that moves messages; another runs partitions, one at a time; a third loads networks. So an
agent goes on telling others that it lives while a partition runs.

Here its parts are made, joined and ended, and nothing else: ``inbox`` reads messages, ``dispatcher`` runs samples,
``source`` keeps the book of those that enter here, ``orders`` obeys the operator, ``releases`` holds what runs, and
``peer_table`` the connections to others. No part knows the agent; each gets the parts below it, and functions to call.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final

import zmq

from portend.address import is_loopback, read_address
from portend.errors import ConfigError
from portend.runtime.protocol import Header
from portend.service.dispatcher import Dispatcher
from portend.service.drops import Drops
from portend.service.inbox import Inbox, Received
from portend.service.intake import Intake
from portend.service.keys import OPERATOR, Keys, Who, authenticate
from portend.service.metrics import Metrics
from portend.service.orders import Orders
from portend.service.peer_table import PeerTable
from portend.service.peers import Beat, read_beat
from portend.service.release import Limits
from portend.service.releases import Releases
from portend.service.source import Sending, Source
from portend.service.store import Store

__all__ = ["ServiceAgent"]

_LOG: Final = logging.getLogger("portend.service")
_TICK_S: Final = 0.05


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
        self.incarnation = secrets.randbits(62) + 1
        self.stopping = asyncio.Event()
        self._drop = Drops(self.metrics)

    # -- life ----------------------------------------------------------------------------------

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until ``stopping`` is set; then fail or finish what is under way, and end.

        Raises:
            DeploymentError: an address is in use.
        """
        self._loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as ends:
            ends.callback(self.store.close)
            who = self._make_parts(ends)
            if version := await self._releases.restore():
                self._activate(version, keep=False)
            async with contextlib.AsyncExitStack() as web:
                if self._http:
                    from portend.service.http import serve_http

                    await web.enter_async_context(serve_http(self._source, self.status, *self._http))
                self._inbox.open()
                watch = asyncio.create_task(self._tick(who))
                _LOG.info("listening on %s", self._listen)
                ready()
                await self.stopping.wait()
                await self._source.stop()
                self._inbox.close()
                watch.cancel()
                self._orders.close()

    def _make_parts(self, ends: contextlib.ExitStack) -> Who | None:
        """Make the parts, each from those before it; they end in the opposite order. Return who lets keys in."""
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        ends.callback(context.destroy, linger=0)
        self._peers = PeerTable(context, self.name, self._keys, self._changed)
        self._intake = Intake(Limits(), time.time_ns())
        self._releases = Releases(self.name, self.store, self._peers, self._allow_code, self._limit)
        ends.callback(self._releases.close)
        self._source = Source(self.name, self._releases, self._intake, self.metrics, self._begin)
        self._dispatcher = Dispatcher(
            self.name, self._releases, self._peers, self.metrics, self._drop,
            answered=self._source.answered, handed_over=self._source.handed_over,
        )  # fmt: skip
        ends.callback(self._dispatcher.close)
        ends.callback(self._peers.close)
        who: Who | None = None
        if self._keys is not None:
            who = authenticate(context, self._keys)
            ends.callback(who.stop)
        self._inbox = Inbox(
            context, self._listen, keys=self._keys, incarnation=self.incarnation, metrics=self.metrics,
            drop=self._drop, received=self._received,
        )  # fmt: skip
        self._orders = Orders(
            self.name, self._listen.host, self._releases, self._source, self._peers,
            reply=self._inbox.reply, status=self.status, activate=self._activate, beat=self._beat,
        )  # fmt: skip
        return who

    # -- what joins the parts ------------------------------------------------------------------

    def _received(self, message: Received) -> None:
        """Do what a message asks for, as far as its sender may."""
        content, peers = message.content, self._peers.named(message.sender)
        if isinstance(content, Header):
            if not peers:
                self._drop("not_allowed", f"{message.sender!r} is no tier of a release and may not send data")
                return
            self._dispatcher.take(content, message.payload, peers, message.received_ns)
        elif content["command"] == "beat":
            if peers:
                self._heard(message.sender, read_beat(content), 1e-9 * message.received_ns)
        elif message.sender != OPERATOR:
            self._drop("not_allowed", f"{message.sender!r} may not give orders")
        else:
            self._orders.obey(message.routing, content, message.payload)

    def _begin(self, sending: Sending, encoded: bytes) -> None:
        self._dispatcher.begin(sending, encoded)

    def _limit(self, limits: Limits) -> None:
        self._intake.limits = limits

    def _activate(self, version: int, *, keep: bool = True) -> None:
        self._releases.activate(version, keep=keep)
        self._source.activated()
        self._judge(time.monotonic())

    def _heard(self, name: str, beat: Beat, now: float) -> None:
        restarted = [peer.hear(beat) for peer in self._peers.named(name)]
        if any(restarted):
            _LOG.info("%s was started again", name)
        was_source = self._releases.as_source is not None
        self._releases.follow(name, beat)
        if was_source and self._releases.as_source is None:
            self._source.fail_all()
        self._judge(now)

    def _changed(self) -> None:
        """A connection began to work, or broke: tell the others, and use it or not, at once."""
        self._loop.call_soon(self._after_change)

    def _after_change(self) -> None:
        self._peers.hurry()
        self._beat()
        self._judge(time.monotonic())

    def _judge(self, now: float) -> None:
        """Let releases go that nobody uses, and use the plans that can be used now."""
        is_source = self._releases.as_source is not None
        self._releases.let_go(self._source.oldest_used if is_source else self._releases.oldest_used)
        self._source.route(self._peers.view(), now)

    # -- what others hear of it ----------------------------------------------------------------

    async def _tick(self, who: Who | None) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            try:
                now = time.monotonic()
                self._peers.watch(now, self._intake.limits.silence_s)
                self._beat()
                self._judge(now)
                self._gauge(who)
            except Exception:
                _LOG.exception("the watch over the others stumbled")

    def _beat(self) -> None:
        self._peers.tell(self._says, time.monotonic(), self._intake.limits.beat_s)

    def _says(self) -> Beat:
        view, is_source = self._peers.view(), self._releases.as_source is not None
        return Beat(
            incarnation=self.incarnation,
            sent_ns=time.monotonic_ns(),
            versions=tuple(self._releases.versions),
            reaches=tuple(map(view.reached, self._releases.all)),
            active=self._releases.active if is_source else 0,
            oldest=self._source.oldest_used if is_source else 0,
        )

    def _gauge(self, who: Who | None) -> None:
        self._source.exits.look()
        metrics, intake = self.metrics, self._intake
        metrics.waiting.set(intake.waiting)
        metrics.under_way.set(intake.under_way)
        metrics.credits.set(intake.limits.window - intake.under_way if self._releases.as_source else 0)
        metrics.jobs.set(self._dispatcher.waiting)
        metrics.version.set(self._releases.active)
        if who is not None and who.refused:
            metrics.strangers.inc(who.refused)
            _LOG.warning("refused %d connections with unknown keys", who.refused)
            who.refused = 0
        for peer in self._peers:
            metrics.peer_up.labels(peer.name).set(peer.works)
            if peer.round_trip_s is not None:
                metrics.round_trip.labels(peer.name).set(peer.round_trip_s)

    def status(self) -> dict[str, Any]:
        """Return how this agent does, as JSON values."""
        releases, source, intake = self._releases, self._source, self._intake
        release = releases.as_source.release if releases.as_source else None
        return {
            "name": self.name,
            "incarnation": self.incarnation,
            "active": releases.active,
            "versions": releases.versions,
            "source": release is not None,
            "plan": source.choose(release) if release else None,
            "lacks": self._peers.view().missing(release, 0) if release else [],
            "in_use": source.versions_used(),
            "waiting": intake.waiting,
            "under_way": intake.under_way,
            "window": intake.limits.window,
            "full": intake.full,
            "drift": source.exits.describe(),
            "peers": {
                peer.name: {"up": peer.works, "round_trip_s": peer.round_trip_s, "rate_bps": peer.outbox.rate_bps}
                for peer in self._peers
            },
        }
