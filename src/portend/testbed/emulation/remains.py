"""What a testbed puts into the kernel, under names of ours, and how all of it is found and removed again.

Everything of a testbed carries its id, ``<process>-<number>``: its namespaces ``/run/netns/portend-<id>-<tier>``, its
CPU groups of the same names, and its record ``/run/portend/<id>.json``, which the owner keeps locked as long as it
lives. So whoever finds an unlocked record, or names without one, finds what a killed process left behind. Devices,
addresses and routes live in the namespaces and go with them.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from portend.errors import DeploymentError
from portend.testbed.emulation import quota

__all__ = ["NAMESPACES", "Claim", "Standing", "erase", "namespace", "standing", "take_down"]

NAMESPACES: Final = Path("/run/netns")
"""Where named namespaces are mounted, for iproute2 too."""

_RECORDS: Final = Path("/run/portend")
_PREFIX: Final = "portend-"
_DETACH: Final = 2  # MNT_DETACH
_STOP_S: Final = 10.0
_GROUPS_S: Final = 3.0  # for agents to end, which leave their CPU group only then


def namespace(testbed: str, tier: str) -> str:
    """Return the name of a tier's namespace; what may not be in a file's name becomes ``_``."""
    return f"{_PREFIX}{testbed}-{re.sub(r'[^A-Za-z0-9_.-]', '_', tier)}"


class Claim:
    """An id of this process's own, from when it is made until ``release``, or until this process ends."""

    def __init__(self) -> None:
        _RECORDS.mkdir(mode=0o755, exist_ok=True)
        number = 0
        while True:
            self.testbed = f"{os.getpid()}-{number}"
            try:
                self._file = os.open(_record(self.testbed), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
                break
            except FileExistsError:
                number += 1
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def write(self, record: dict[str, Any]) -> None:
        """Put down what others may know of the testbed."""
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(record).encode(), 0)

    def release(self) -> None:
        """Erase everything of this id and give it up."""
        erase(self.testbed)
        os.close(self._file)


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """A testbed that is there, or what is left of one.

    Attributes:
        testbed: its id; namespaces: their names.
        pid: of the process that made it; alive: whether that still lives.
        record: what it put down; empty if it was killed before.
    """

    testbed: str
    pid: int
    alive: bool
    namespaces: tuple[str, ...]
    record: dict[str, Any]


def standing() -> list[Standing]:
    """Return all testbeds on this machine, dead ones too."""
    names = _names()
    ids = {path.stem for path in _RECORDS.glob("*.json")} | {match[1] for name in names if (match := _ID.match(name))}
    found = []
    for testbed in sorted(ids):
        if not re.fullmatch(r"\d+-\d+", testbed):
            continue
        alive, record = _read(testbed)
        own = tuple(name for name in names if name.startswith(f"{_PREFIX}{testbed}-"))
        found.append(
            Standing(testbed=testbed, pid=int(testbed.split("-")[0]), alive=alive, namespaces=own, record=record)
        )
    return found


def take_down(chosen: Callable[[Standing], bool]) -> tuple[list[Standing], list[Standing]]:
    """Remove the chosen testbeds: end those that ``portend testbed up`` keeps, and erase what dead processes left.

    Returns:
        those that are gone, and those that a living run uses, which stay.
    """
    gone, left = [], []
    for each in standing():
        if not chosen(each):
            continue
        if each.alive and each.record.get("purpose") != "testbed":
            left.append(each)
            continue
        if each.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGTERM)
            deadline = time.monotonic() + _STOP_S
            while _read(each.testbed)[0]:
                if time.monotonic() > deadline:
                    raise DeploymentError(f"process {each.pid}, which keeps a testbed, does not end; end it by hand")
                time.sleep(0.05)
        erase(each.testbed)
        gone.append(each)
    return gone, left


_ID: Final = re.compile(rf"{_PREFIX}(\d+-\d+)-")


def erase(testbed: str) -> None:
    """Remove everything of a testbed; what is gone already is no error.

    Raises:
        DeploymentError: something cannot be removed; names it.
    """
    prefix = f"{_PREFIX}{testbed}-"
    libc = ctypes.CDLL(None, use_errno=True)
    for name in _names():
        if name.startswith(prefix):
            path = NAMESPACES / name
            libc.umount2(os.fsencode(path), _DETACH)
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise DeploymentError(
                    f"the namespace {name} cannot be removed ({error.strerror}); are you root?"
                ) from None
    deadline = time.monotonic() + _GROUPS_S
    while busy := quota.remove(prefix):
        if time.monotonic() > deadline:
            raise DeploymentError(f"the CPU group {busy} cannot be removed; processes are still in it")
        time.sleep(0.05)
    with contextlib.suppress(PermissionError):
        _record(testbed).unlink(missing_ok=True)


def _names() -> list[str]:
    """Names of ours: of namespaces and of CPU groups."""
    spaces = [path.name for path in NAMESPACES.iterdir()] if NAMESPACES.is_dir() else []
    return sorted({name for name in (*spaces, *quota.names()) if name.startswith(_PREFIX)})


def _record(testbed: str) -> Path:
    return _RECORDS / f"{testbed}.json"


def _read(testbed: str) -> tuple[bool, dict[str, Any]]:
    """Whether the owner lives, and what it put down."""
    try:
        with _record(testbed).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                alive = False
            except BlockingIOError:
                alive = True
            record = json.loads(file.read() or b"{}")
            return alive, record if isinstance(record, dict) else {}
    except (OSError, ValueError):
        return False, {}
