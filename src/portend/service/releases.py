"""The releases that an agent runs: loaded, activated, kept over a restart, and let go."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection, Hashable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from portend.errors import DeploymentError, PortendError
from portend.runtime.executors import make_executor
from portend.service.partitions import Loaded, Shared
from portend.service.peer_table import PeerTable
from portend.service.peers import Beat
from portend.service.release import Limits, NetworkFile, Release
from portend.service.store import Store

__all__ = ["Releases"]

_LOG: Final = logging.getLogger("portend.service")
_UNUSED_S: Final = 900.0  # a release that was loaded and not activated is kept so long: its deploy was killed


class Releases:
    """The releases of the agent ``name``, and which of them new samples take; used in an event loop.

    A thread of its own loads networks and writes them to disk, one after the other.

    Args:
        peers: the agents of all releases are called, and hung up on when no release needs them.
        allow_code: ``module:object`` that a checkpoint may name.
        limited: called with the limits that count from now on.
    """

    def __init__(
        self, name: str, store: Store, peers: PeerTable, allow_code: Collection[str], limited: Callable[[Limits], None]
    ) -> None:
        self._name, self._store, self._peers, self._allow_code = name, store, peers, allow_code
        self._limited = limited
        self._loop = asyncio.get_running_loop()
        self._loaded: dict[int, Loaded] = {}
        self._loaded_s: dict[int, float] = {}
        self._shared: dict[Hashable, Shared] = {}
        self.active = 0
        """Version of the release that new samples take; 0 for none."""
        self.oldest_used = 0
        """Version of the oldest release in use, as the source said last."""
        self._loading = asyncio.Lock()
        self._loader = ThreadPoolExecutor(1, "load")
        self._loader.submit(int)  # starts its thread now: without memory it could not, and would run the order later

    @property
    def versions(self) -> list[int]:
        """Versions of those that are loaded."""
        return list(self._loaded)

    @property
    def all(self) -> list[Release]:
        """Those that are loaded."""
        return [loaded.release for loaded in self._loaded.values()]

    def get(self, version: int) -> Loaded | None:
        """Return a release that is loaded; None if it is not."""
        return self._loaded.get(version)

    @property
    def as_source(self) -> Loaded | None:
        """The active release, if this agent is its source; else None."""
        loaded = self._loaded.get(self.active)
        return loaded if loaded is not None and loaded.tier == loaded.release.source else None

    @property
    def is_source_of_any(self) -> bool:
        """Whether this agent is the source of any release that is loaded."""
        return any(loaded.tier == loaded.release.source for loaded in self._loaded.values())

    # -- networks, and what was here before ----------------------------------------------------

    def held(self, network: NetworkFile) -> int:
        """Return how many bytes of a network are here, from the first on."""
        return self._store.held(network)

    async def append(self, network: NetworkFile, offset: int, data: bytes) -> int:
        """Add bytes of a network; return how many are here then.

        Raises:
            MessageError: they do not follow those that are here. StorageError: no room.
        """
        return await self._loop.run_in_executor(self._loader, partial(self._store.append, network, offset, data))

    async def restore(self) -> int:
        """Load what ran before this process began; return the version to activate, 0 for none."""
        try:
            releases, active = self._store.restore()
        except PortendError as error:
            _LOG.error("%s", error)
            return 0
        for release in releases:
            try:
                self._add(await self._loop.run_in_executor(self._loader, self._load, release))
            except Exception as error:  # whatever one release does, the agent lives on
                _LOG.error("release %d cannot be restored: %s: %s", release.version, type(error).__name__, error)
        return active if active in self._loaded else 0

    # -- load, activate, let go ----------------------------------------------------------------

    async def load(self, release: Release) -> Loaded:
        """Run a release from now on, beside those that run, and keep it.

        Raises:
            PortendError: it is no newer one, does not fit this agent, its network or a key is not here, or it cannot be
                kept.
        """
        async with self._loading:
            newest = max([*self._loaded, self.active], default=0)
            if release.version <= newest:
                raise DeploymentError(f"release {newest} is here already; give the next one a higher version")
            loaded = await self._loop.run_in_executor(self._loader, self._load, release)
            self._save(release)
            try:
                self._add(loaded)
            except PortendError:
                self._save()
                raise
            return loaded

    def _load(self, release: Release) -> Loaded:
        """Load a release's partitions; in the loader's thread.

        Raises:
            PortendError: it does not fit this agent, or its network is not here.
        """
        if self._name not in release.tiers:
            raise DeploymentError(f"agent {self._name} is none of the tiers {', '.join(release.tiers)}")
        tier = release.tiers.index(self._name)
        path = self._store.verified(release.networks[tier])
        key = _executor_of(release, tier)
        shared = self._shared.get(key)
        if shared is None:
            execution = release.executions[tier]
            made = make_executor(path, execution, criterion=release.criterion, allow_code=self._allow_code)
            shared = self._shared[key] = Shared(made, release.batches[tier])
        return Loaded(release, tier, shared)

    def _add(self, loaded: Loaded) -> None:
        """Run a release from now on, beside those that run.

        Raises:
            ConfigError: there is no public key of one of its agents.
        """
        release = loaded.release
        self._peers.add(release)
        self._loaded[release.version] = loaded
        self._loaded_s[release.version] = time.monotonic()
        if not self.active:
            self._limited(release.limits)  # beats and silence count before it is active

    def activate(self, version: int, *, keep: bool = True) -> None:
        """Let new samples take a release from now on.

        Args:
            keep: also after a restart.

        Raises:
            DeploymentError: it is not loaded, or a newer one is active. StorageError: it cannot be kept; then nothing
                changes.
        """
        if version not in self._loaded:
            raise DeploymentError(f"release {version} is not loaded on {self._name}; load it first")
        if version < self.active:
            raise DeploymentError(f"release {self.active} is active on {self._name}, which is newer than {version}")
        if keep:
            self._save(active=version)
        self._set_active(version)
        _LOG.info("release %d is active", version)

    def follow(self, name: str, beat: Beat) -> None:
        """Use what a beat of the agent ``name`` says is active, if that is the source and ours is no newer one."""
        loaded = self._loaded.get(beat.active)
        if loaded is not None and beat.active >= self.active and loaded.release.told_by(name, beat.oldest):
            self.oldest_used = beat.oldest
            if beat.active != self.active:
                self._set_active(beat.active)

    def _set_active(self, version: int) -> None:
        self.active = version
        self._limited(self._loaded[version].release.limits)

    def let_go(self, oldest: int) -> None:
        """Let releases before ``oldest`` go, and those that nobody activated."""
        gone = [version for version, each in self._loaded.items() if version < oldest or self._is_abandoned(each)]
        if not gone:
            return
        for version in gone:
            del self._loaded[version], self._loaded_s[version]
        used = {_executor_of(loaded.release, loaded.tier) for loaded in self._loaded.values()}
        for key in self._shared.keys() - used:
            del self._shared[key]
        self._peers.keep(self.all)
        try:
            self._save()
        except PortendError as error:  # after a restart they are loaded once more, and let go again
            _LOG.warning("%s", error)
        _LOG.info("unloaded release %s", ", ".join(map(str, gone)))

    def _is_abandoned(self, loaded: Loaded) -> bool:
        """Whether a release was loaded long ago and its source, asked now, has not activated it."""
        release = loaded.release
        if time.monotonic() - self._loaded_s[release.version] < _UNUSED_S:
            return False
        source = self._peers.get(release, release.source)
        active = self.active if source is None else source.says.active if source.says else math.inf
        return active < release.version

    def _save(self, *more: Release, active: int | None = None) -> None:
        """Keep the releases that run, and those that are about to.

        Raises:
            StorageError: they cannot be written; then the file is as before.
        """
        self._store.save((*self.all, *more), self.active if active is None else active)

    def close(self) -> None:
        """End the thread that loads."""
        self._loader.shutdown(wait=False, cancel_futures=True)


def _executor_of(release: Release, tier: int) -> Hashable:
    """What tells the executor of a tier from others; releases share it."""
    return (release.networks[tier].sha256, release.executions[tier], release.criterion, release.batches[tier])
