"""What else happened on this machine while something was measured, from Linux's ``/proc``.

Other programs take cores and caches, a hypervisor takes cores altogether; both make measured times longer
than they are. The counters of the kernel tell: what all processes computed on the cores that this one may use
and what of it was its own, what was stolen, and how long the processes that measure waited for a core.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Counters", "Disturbance", "count"]

_PROC: Final = Path("/proc")
_LEAST_S: Final = 0.5  # the kernel counts in steps of 10 ms
_OTHERS: Final = 0.05
_STOLEN: Final = 0.01
_WAITED: Final = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Counters:
    """Readings of the kernel's counters, in seconds since some moment.

    Attributes:
        at_s: the clock; busy_s: CPU time of all processes on the cores where timed work runs: those that this process
            may use, without the last of several, which is the links' (``agent._stay_on_core``); stolen_s: what the
            hypervisor took of those cores; own_s: CPU time of the processes that take part.
        waited_s: how long those that measure stood ready and had no core; switches: how often one was taken from them.
    """

    at_s: float
    busy_s: float
    stolen_s: float
    own_s: float
    waited_s: float
    switches: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Disturbance:
    """What others did while something was measured: seconds of the clock, of CPU time, and counts (see Counters)."""

    seconds: float = 0.0
    others_s: float = 0.0
    stolen_s: float = 0.0
    waited_s: float = 0.0
    switches: int = 0

    @classmethod
    def between(cls, before: Counters | None, after: Counters | None) -> Disturbance | None:
        """Return what happened between two readings; None where the kernel does not tell."""
        if before is None or after is None:
            return None
        own = after.own_s - before.own_s
        return cls(
            seconds=after.at_s - before.at_s,
            others_s=max(after.busy_s - before.busy_s - own, 0.0),
            stolen_s=max(after.stolen_s - before.stolen_s, 0.0),
            waited_s=max(after.waited_s - before.waited_s, 0.0),
            switches=max(after.switches - before.switches, 0),
        )

    def __add__(self, other: Disturbance) -> Disturbance:
        return Disturbance(
            seconds=self.seconds + other.seconds,
            others_s=self.others_s + other.others_s,
            stolen_s=self.stolen_s + other.stolen_s,
            waited_s=self.waited_s + other.waited_s,
            switches=self.switches + other.switches,
        )

    @property
    def warning(self) -> str:
        """What disturbed the measurement, as one sentence; empty where nothing did.

        Others that took more than 5 % of a core, 1 % stolen, or waiting for 5 % of the time.
        """
        if self.seconds < _LEAST_S:
            return ""
        found = [
            f"{what} {100 * share / self.seconds:.0f} % of {of}"
            for share, limit, what, of in (
                (self.others_s, _OTHERS, "other processes took", "a core"),
                (self.stolen_s, _STOLEN, "the hypervisor took", "a core"),
                (self.waited_s, _WAITED, "what was measured waited for a core for", "the time"),
            )
            if share > limit * self.seconds
        ]
        return f"the machine was disturbed: {', '.join(found)}" if found else ""

    def facts(self) -> dict[str, str]:
        """Return the figures, and the warning under ``disturbed`` if there is one, as text for a provenance."""
        seconds = max(self.seconds, 1e-9)
        facts = {
            "other processes": f"{100 * self.others_s / seconds:.1f} % of a core",
            "stolen by the hypervisor": f"{100 * self.stolen_s / seconds:.1f} % of a core",
            "waited for a core": f"{100 * self.waited_s / seconds:.1f} % of the time, "
            f"{self.switches} involuntary switches",
        }
        return facts | ({"disturbed": self.warning} if self.warning else {})


def count(taking_part: Collection[int], measuring: Collection[int], at_s: float) -> Counters | None:
    """Read the counters at ``at_s`` for processes by their ids; None where there is no Linux ``/proc``."""
    if not (_PROC / "stat").is_file() or not hasattr(os, "sched_getaffinity"):
        return None
    tick = os.sysconf("SC_CLK_TCK")
    cores = sorted(os.sched_getaffinity(0))
    names = {f"cpu{core}" for core in cores[:-1] or cores}
    rows = [line.split() for line in (_PROC / "stat").read_text().splitlines() if line.partition(" ")[0] in names]
    busy = sum(int(row[1]) + int(row[2]) + int(row[3]) for row in rows)
    stolen = sum(int(row[8]) for row in rows if len(row) > 8)
    own = waited = switches = 0
    for pid in taking_part:
        fields = _read(f"{pid}/stat").rpartition(")")[2].split()
        own += int(fields[11]) + int(fields[12]) if len(fields) > 12 else 0
    for pid in measuring:
        told = _read(f"{pid}/schedstat").split()
        waited += int(told[1]) if len(told) > 1 else 0
        for line in _read(f"{pid}/status").splitlines():
            if line.startswith("nonvoluntary_ctxt_switches"):
                switches += int(line.partition(":")[2])
    return Counters(
        at_s=at_s,
        busy_s=busy / tick,
        stolen_s=stolen / tick,
        own_s=own / tick,
        waited_s=1e-9 * waited,
        switches=switches,
    )


def _read(name: str) -> str:
    try:
        return (_PROC / name).read_text()
    except OSError:  # it has ended
        return ""
