"""All other agents of one agent's releases: a connection to each, kept and watched together."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from portend.service.keys import Keys
from portend.service.peers import Beat, Peer
from portend.service.release import Release
from portend.service.routes import PeerAddress, PeerView, View

__all__ = ["PeerTable"]

_LOG: Final = logging.getLogger("portend.service")
_KEYS_S: Final = 1.0  # how often the folder of keys is looked at


class PeerTable:
    """The peers of the agent ``name``; used in an event loop.

    Args:
        changed: called when a connection begins to work, or when it broke.
    """

    def __init__(self, context: Any, name: str, keys: Keys | None, changed: Callable[[], None]) -> None:
        self._context, self._name, self._keys, self._changed = context, name, keys, changed
        self._peers: dict[PeerAddress, Peer] = {}
        self._watched_s = self._keys_read_s = time.monotonic()

    def __iter__(self) -> Iterator[Peer]:
        return iter(list(self._peers.values()))

    def get(self, release: Release, tier: int) -> Peer | None:
        """Return the connection to a tier's agent; None for our own tier, or if there is none."""
        return self._peers.get((release.tiers[tier], release.endpoints[tier]))

    def named(self, name: str) -> list[Peer]:
        """Return the connections to an agent: one for each of its addresses."""
        return [peer for peer in self._peers.values() if peer.name == name]

    def view(self) -> View:
        """Return what is known of all of them just now."""
        peers = {
            address: PeerView(peer.works, peer.life, peer.incarnation, peer.says)
            for address, peer in self._peers.items()
        }
        return View(self._name, peers)

    def add(self, release: Release) -> None:
        """Call the agents of a release that are not called yet: all, or none.

        Raises:
            ConfigError: there is no public key of one of them. DeploymentError: one has no endpoint.
        """
        made: dict[PeerAddress, Peer] = {}
        try:
            for address in self._addresses(release):
                if address not in self._peers:
                    made[address] = Peer(self._context, *address, self._keys, self._name, self._changed)
        except Exception:
            for peer in made.values():
                peer.close()
            raise
        self._peers |= made

    def keep(self, releases: Iterable[Release]) -> None:
        """Hang up on all but the agents of these releases."""
        kept = {address for release in releases for address in self._addresses(release)}
        for address in self._peers.keys() - kept:
            self._peers.pop(address).close()

    def _addresses(self, release: Release) -> list[PeerAddress]:
        addresses = zip(release.tiers, release.endpoints, strict=True)
        return [address for address in addresses if address[0] != self._name]

    def watch(self, now: float, silence_s: float) -> None:
        """Notice connections that broke, and keys that changed; to be called many times in ``silence_s``."""
        if now - self._watched_s > silence_s / 2:  # we were frozen: let the others speak first
            for peer in self:
                peer.outbox.excuse(now)
        self._watched_s = now
        if now - self._keys_read_s >= _KEYS_S:
            self._keys_read_s = now
            self._read_keys()
        for peer in self:
            peer.watch(now, silence_s)

    def _read_keys(self) -> None:
        """Call again, by its new key, whoever has one now; messages by the old one are nobody's from now on."""
        if self._keys is None:
            return
        trust = self._keys.trust
        trust.look()
        renewed = [peer for peer in self if trust.key_of(peer.name) not in (None, peer.key)]
        if renewed:
            _LOG.info("other keys than before: %s", ", ".join(sorted({peer.name for peer in renewed})))
        for peer in renewed:
            peer.dial()

    def tell(self, beat: Callable[[], Beat], now: float, beat_s: float) -> None:
        """Send a beat to each whose turn it is."""
        for peer in self:
            peer.tell(beat, now, beat_s)

    def hurry(self) -> None:
        """Let the next beats go as soon as they can: there is news."""
        for peer in self:
            peer.hurry()

    def close(self) -> None:
        """Hang up on all for good."""
        for peer in self:
            peer.close()
        self._peers.clear()
