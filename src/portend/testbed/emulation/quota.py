"""Limits of CPU time for a tier's processes, by control groups of either version."""

from __future__ import annotations

import contextlib
from functools import cache
from pathlib import Path
from typing import Final

from portend.controlgroups import mounts
from portend.errors import DeploymentError

__all__ = ["join", "limit", "names", "remove"]

_PERIOD_US: Final = 10_000  # within each, a group runs for its share and then waits for the next


@cache
def _mount() -> tuple[Path, int] | None:
    """Where the kernel's CPU controller is mounted, and the version of its control groups."""
    for mount in mounts():
        if mount.version == 1 and "cpu" in mount.controllers:
            return mount.place, 1
        if mount.version == 2:
            with contextlib.suppress(OSError):
                if "cpu" in (mount.place / "cgroup.controllers").read_text(encoding="utf-8").split():
                    return mount.place, 2
    return None


def limit(name: str, cores: float) -> Path:
    """Make a group whose processes together get the time of so many ``cores``; return its folder.

    Raises:
        DeploymentError: this kernel, or whoever started this process, does not allow it.
    """
    mount = _mount()
    if mount is None:
        raise DeploymentError(
            "a tier has a cpu_quota, but no control groups with the CPU controller are mounted; leave the quota out"
        )
    folder, quota_us = mount[0] / name, round(cores * _PERIOD_US)
    try:
        if mount[1] == 2:
            (mount[0] / "cgroup.subtree_control").write_text("+cpu", encoding="ascii")
        folder.mkdir()
        if mount[1] == 2:
            (folder / "cpu.max").write_text(f"{quota_us} {_PERIOD_US}", encoding="ascii")
        else:
            (folder / "cpu.cfs_period_us").write_text(str(_PERIOD_US), encoding="ascii")
            (folder / "cpu.cfs_quota_us").write_text(str(quota_us), encoding="ascii")
    except OSError as error:
        raise DeploymentError(
            f"a cpu_quota of {cores:g} cores cannot be set in {folder} ({error.strerror}); use at least 0.1, or leave "
            "the quota out"
        ) from None
    return folder


def join(group: Path, pid: int) -> None:
    """Put a process into a group."""
    (group / "cgroup.procs").write_text(str(pid), encoding="ascii")


def names() -> list[str]:
    """Names of all groups beside each other at the top."""
    mount = _mount()
    return [] if mount is None else [path.name for path in mount[0].iterdir() if path.is_dir()]


def remove(prefix: str) -> str:
    """Remove the groups of this prefix; return the name of one that processes are still in, or nothing."""
    mount = _mount()
    busy = ""
    for name in names():
        if mount is not None and name.startswith(prefix):
            try:
                (mount[0] / name).rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                busy = name
    return busy
