"""What a search may take, and how far it is: every search asks its limits as it goes, and tells them what it knows.

A search that meets a limit returns the best plan so far and a true bound. So each piece of work between two questions
is short (some 50 ms) and small (some 10 MB).
"""

from __future__ import annotations

import copy
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final, Literal, Self

from portend.errors import law

__all__ = ["Ended", "Limits", "Over", "Progress", "gap", "half_of_what_is_free"]

Ended = Literal["", "time", "memory", "interrupt"]
_TELL_S: Final = 0.2
_LOOK_S: Final = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a search is: seconds so far, the best value so far, what no plan can beat (each None where not known).

    ``step``: where it is, such as "generation 12"; empty where that says nothing.
    """

    seconds: float
    value: float | None
    bound: float | None
    step: str = ""

    @property
    def gap(self) -> float | None:
        """How far the best plan is from the bound, as a share of its value; None where not known."""
        return gap(self.value, self.bound)


def gap(value: float | None, bound: float | None) -> float | None:
    """Return how far a value is from a bound, as a share of the value; None where either is not known or infinite."""
    if value is None or bound is None or not (math.isfinite(value) and math.isfinite(bound)):
        return None
    return 0.0 if value == bound else abs(value - bound) / abs(value) if value else None


class Over(Exception):
    """A limit is met."""


@dataclass(slots=True)
class _Shared:
    """What limits and their parts have in common."""

    begin: float
    most_bytes: float
    progress: Callable[[Progress], None] | None
    interrupted: bool = False
    ended: Ended = ""
    looked: float = 0.0
    told: float = 0.0
    full: bool = False
    pieces: int = 0


class Limits:
    """Limits of a search, and where it reports.

    Args:
        seconds: of all that is done with it; memory: bytes that may be taken beyond what the process has now, default
            half of what is free; progress: called about five times a second with what is known so far.
        pieces: of work, each of some 50 ms at most, as often as a search asks: a limit that is the same on any machine.
    """

    def __init__(
        self,
        *,
        seconds: float = math.inf,
        memory: float | None = None,
        progress: Callable[[Progress], None] | None = None,
        pieces: float = math.inf,
    ) -> None:
        law(seconds >= 0, f"a limit of time is not negative, but got {seconds} s")
        law(memory is None or memory >= 0, f"a limit of memory is not negative, but got {memory} bytes")
        now = time.perf_counter()
        most = half_of_what_is_free() if memory is None else memory
        self._deadline = now + seconds
        self._last = pieces
        self._shared = _Shared(now, _resident_bytes() + most, progress)
        self._scale: Callable[[float], float] = float
        self._quiet = False

    def part(self, share: float) -> Self:
        """Return limits with this share of the time and of the pieces that are left."""
        part = copy.copy(self)
        done = self._shared.pieces
        part._last = done + share * max(self._last - done, 0.0)
        now = time.perf_counter()
        part._deadline = now + share * max(self._deadline - now, 0.0) if math.isfinite(self._deadline) else math.inf
        return part

    def shared(self, share: float, workers: int) -> dict[str, Any]:
        """Return the arguments of limits with this share of the time that is left, for one of many workers."""
        return {
            "seconds": share * max(self._deadline - time.perf_counter(), 0.0),
            "memory": max(self._shared.most_bytes - _resident_bytes(), 0.0) / workers,
        }

    def silent(self) -> Self:
        """Return the same limits, which report nothing."""
        same = copy.copy(self)
        same._quiet = True
        return same

    def within(self, seconds: float) -> Self:
        """Return limits with at most so many seconds left."""
        part = copy.copy(self)
        part._deadline = min(self._deadline, time.perf_counter() + seconds)
        return part

    def within_pieces(self, pieces: float) -> Self:
        """Return limits with at most so many pieces of work left."""
        part = copy.copy(self)
        part._last = min(self._last, self._shared.pieces + pieces)
        return part

    def told_in(self, scale: Callable[[float], float]) -> Self:
        """Return the same limits for a search whose own counts ``scale`` turns into values."""
        same = copy.copy(self)
        same._scale = scale
        return same

    @property
    def pieces(self) -> int:
        """Pieces of work so far: how often a search asked these limits, or others that are parts of the same."""
        return self._shared.pieces

    @property
    def reason(self) -> Ended:
        """The limit that was met last; empty: none was."""
        if self._shared.interrupted:
            return "interrupt"
        over = time.perf_counter() >= self._deadline or self._shared.pieces > self._last
        return "time" if over else self._shared.ended

    def over(self) -> bool:
        """Whether the search must end now."""
        now, shared = time.perf_counter(), self._shared
        shared.pieces += 1
        if now - shared.looked > _LOOK_S:
            shared.looked, shared.full = now, _resident_bytes() > shared.most_bytes
        met = now >= self._deadline or shared.interrupted or shared.full or shared.pieces > self._last
        if met:
            shared.ended = "interrupt" if shared.interrupted else "memory" if shared.full else "time"
        return met

    def check(self) -> None:
        """Raise ``Over`` if the search must end now."""
        if self.over():
            raise Over

    @contextmanager
    def until_met(self) -> Iterator[None]:
        """Go on after the block where a limit ended it, or where the system refused it memory."""
        try:
            yield
        except Over:
            pass
        except MemoryError:
            self._shared.ended = "memory"

    def due(self) -> bool:
        """Whether it is time to tell how far the search is."""
        return (
            self._shared.progress is not None and not self._quiet and time.perf_counter() - self._shared.told >= _TELL_S
        )

    def tell(self, value: float | None, bound: float | None, step: str = "") -> None:
        """Report the best value so far and the bound, in the counts of the search; None or infinite: not known."""
        now, shared = time.perf_counter(), self._shared
        if shared.progress is None or not self.due():
            return
        shared.told = now
        known = [None if x is None or not math.isfinite(x) else self._scale(x) for x in (value, bound)]
        shared.progress(Progress(seconds=now - shared.begin, value=known[0], bound=known[1], step=step))

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Take a first Ctrl-C meanwhile as a limit that is met; a second one raises KeyboardInterrupt as ever."""
        ours = threading.current_thread() is threading.main_thread()
        if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            self._shared.interrupted = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def half_of_what_is_free() -> float:
    """Return half of the bytes that this process may still take; +inf where the system does not say."""
    free = math.inf
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = 1024.0 * int(line.split()[1])
        group = Path("/sys/fs/cgroup")
        free = min(free, float((group / "memory.max").read_text()) - float((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no such file, or no limit ("max")
        pass
    return max(free, 0.0) / 2


def _resident_bytes() -> float:
    try:
        return float(int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError):
        return 0.0
