"""What an agent keeps on disk: networks by what is in them, and the releases that it runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Final

from portend.errors import DeploymentError, MessageError, StorageError
from portend.io.storage import write_json
from portend.service.release import NetworkFile, Release, read_release

__all__ = ["CHUNK", "Store", "file_sha256"]

CHUNK: Final = 1 << 20
"""Bytes of a network in one message."""

_UNUSED_S: Final = 24 * 3600.0


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file; StorageError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while block := file.read(CHUNK):
                digest.update(block)
    except OSError as error:
        raise StorageError(f"cannot read {path} ({error})") from None
    return digest.hexdigest()


class Store:
    """The state folder of one agent; only one process may use it at a time.

    Raises:
        StorageError: it cannot be written. DeploymentError: another agent uses it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._networks = self.folder / "networks"
        self._lock = self._claim()

    def _claim(self) -> IO[str]:
        """Make the folder and take its lock."""
        try:
            self._networks.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = (self.folder / "lock").open("w")
        except OSError as error:
            raise StorageError(f"cannot write {self.folder} ({error}); choose another --state") from None
        try:
            import fcntl
        except ModuleNotFoundError:  # no such locks on this system
            return lock
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise DeploymentError(f"another agent uses {self.folder}; give each its own --state") from None
        return lock

    def _hold(self) -> None:
        """Before anything is written: make the folder anew, and lock it, if it was taken away meanwhile."""
        try:
            ours, here = os.fstat(self._lock.fileno()), (self.folder / "lock").stat()
            if self._networks.is_dir() and (ours.st_dev, ours.st_ino) == (here.st_dev, here.st_ino):
                return
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StorageError(f"cannot use {self.folder} ({error})") from None
        before, self._lock = self._lock, self._claim()
        before.close()

    def close(self) -> None:
        """Let another process use the folder."""
        self._lock.close()

    # -- networks ------------------------------------------------------------------------------

    def path(self, network: NetworkFile) -> Path:
        """Return where a complete network lies."""
        return self._networks / f"{network.sha256}{network.suffix}"

    def _partial(self, network: NetworkFile) -> Path:
        return self._networks / f"{network.sha256}.partial"

    def held(self, network: NetworkFile) -> int:
        """Return how many of its bytes are here, from the first on."""
        for path in (self.path(network), self._partial(network)):
            with contextlib.suppress(OSError):
                return path.stat().st_size
        return 0

    def append(self, network: NetworkFile, offset: int, data: bytes) -> int:
        """Add bytes that follow those that are here; return how many are here then.

        The last ones make it complete, once the digest of all is right.

        Raises:
            MessageError: they do not follow, are too many, or the digest of all is another. StorageError: no room.
        """
        self._hold()
        held = self.held(network)
        if offset != held or held + len(data) > network.size or not data:
            raise MessageError(
                f"{held} of {network.size} bytes of the network are here, but got {len(data)} from byte {offset} on"
            )
        partial = self._partial(network)
        try:
            free = shutil.disk_usage(self._networks).free
            if free < network.size - held:
                raise StorageError(
                    f"{self.folder} has room for {free} bytes, but the network needs {network.size - held}"
                )
            with partial.open("ab") as file:
                file.write(data)
                if held + len(data) == network.size:
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(f"cannot write {partial} ({error}); make room there, and deploy again") from None
        if held + len(data) == network.size:
            if file_sha256(partial) != network.sha256:
                partial.unlink()
                raise MessageError("the network that came has another digest than the one announced; send it again")
            partial.replace(self.path(network))
        return held + len(data)

    def verified(self, network: NetworkFile) -> Path:
        """Return the file of a network after comparing its digest; one that differs is removed.

        Raises:
            StorageError: it is not here, or not what it was.
        """
        path = self.path(network)
        if not path.is_file():
            raise StorageError(f"the network {network.sha256[:12]} is not here; push it first")
        if file_sha256(path) != network.sha256:
            path.unlink()
            raise StorageError(f"{path} is not what was pushed (its digest differs); it was removed, deploy again")
        return path

    # -- releases ------------------------------------------------------------------------------

    def save(self, releases: Iterable[Release], active: int) -> None:
        """Remember the releases that run, and which one new samples take; old networks of no release are removed.

        Raises:
            StorageError: they cannot be written; then those that were saved before still are.
        """
        self._hold()
        kept = list(releases)
        write_json(
            {"active": active, "releases": [release.to_dict() for release in kept]}, self.folder / "releases.json"
        )
        names = {self.path(network) for release in kept for network in release.networks}
        with contextlib.suppress(OSError):  # the next time will do
            for path in self._networks.iterdir():
                if path not in names and time.time() - path.stat().st_mtime > _UNUSED_S:
                    path.unlink(missing_ok=True)

    def restore(self) -> tuple[list[Release], int]:
        """Return the releases that were saved last, and the active version; nothing and 0 if there are none.

        Raises:
            StorageError: the file is damaged.
        """
        path = self.folder / "releases.json"
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            return list(_releases(document["releases"])), int(document["active"])
        except FileNotFoundError:
            return [], 0
        except (OSError, ValueError, LookupError, TypeError, MessageError) as error:
            raise StorageError(f"{path} is damaged ({error}); remove it and deploy again") from None


def _releases(values: list[object]) -> Iterator[Release]:
    for value in values:
        yield read_release(value)
