"""Control groups of this process: the limits of its group and of all groups above it, by either version.

A limit counts wherever it is set on the way up, as in nested groups of systemd units, containers and pods. Which group
it is says ``/proc/self/cgroup``, and where the kernel shows it ``/proc/self/mountinfo`` (proc(5), cgroups(7)).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

__all__ = ["Mount", "cpu_quota", "groups", "memory_bytes", "mounts"]

_PROC: Final = Path("/proc/self")
_UNLIMITED: Final = 1 << 60  # version 1 says so by a number near 2^63


@dataclass(frozen=True, slots=True)
class Mount:
    """Where a hierarchy of control groups is shown.

    Attributes:
        place: its folder. root: the group that this folder is. version: 1 or 2. controllers: of version 1, by name.
    """

    place: Path
    root: PurePosixPath
    version: int
    controllers: frozenset[str]


def mounts(proc: Path = _PROC) -> list[Mount]:
    """Return all mounted hierarchies; none where the system has no control groups."""
    found = []
    for line in _lines(proc / "mountinfo"):
        words, _, rest = line.partition(" - ")
        fields, kind = words.split(), rest.split()
        if len(fields) >= 5 and len(kind) >= 3 and kind[0] in ("cgroup", "cgroup2"):
            version = 2 if kind[0] == "cgroup2" else 1
            options = frozenset(kind[2].split(",")) if version == 1 else frozenset[str]()
            found.append(Mount(Path(_plain(fields[4])), PurePosixPath(_plain(fields[3])), version, options))
    return found


def groups(controller: str, proc: Path = _PROC) -> Iterator[Path]:
    """Yield the folders of this process's group and of those above it that are shown, for a controller.

    Of version 2 all controllers share the groups; a folder without the controller has no files of it.
    """
    ours: dict[str, str] = {}
    for line in _lines(proc / "cgroup"):
        _, names, path = (*line.split(":", 2), "", "")[:3]
        ours |= dict.fromkeys(names.split(","), path)
    for mount in mounts(proc):
        group = ours.get("" if mount.version == 2 else controller)
        if group is None or (mount.version == 1 and controller not in mount.controllers):
            continue
        try:
            inside = PurePosixPath(group).relative_to(mount.root)
        except ValueError:  # the group lies outside of what is shown here; what is shown holds it all the same
            inside = PurePosixPath()
        parts = [part for part in inside.parts if part != ".."]
        for depth in range(len(parts), -1, -1):
            yield mount.place.joinpath(*parts[:depth])


def memory_bytes(proc: Path = _PROC) -> float | None:
    """Return the memory of this machine, or of the group that leaves least; None where the system does not say."""
    found: list[float] = []
    with contextlib.suppress(AttributeError, ValueError, OSError):
        found = [float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    for folder in groups("memory", proc):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = "".join(_lines(folder / name))
            if text.isdecimal() and int(text) < _UNLIMITED:
                found.append(float(text))
    return min(found, default=None)


def cpu_quota(proc: Path = _PROC) -> float | None:
    """Return how many cores' time this process's groups may take together; None: no limit."""
    found = []
    for folder in groups("cpu", proc):
        both = "".join(_lines(folder / "cpu.max")).split() or [
            "".join(_lines(folder / f"cpu.cfs_{name}_us")) for name in ("quota", "period")
        ]
        if len(both) == 2 and all(part.isdecimal() and int(part) for part in both):
            found.append(int(both[0]) / int(both[1]))
    return min(found, default=None)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []


def _plain(text: str) -> str:
    """A path of mountinfo, in which spaces and the like are written as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
