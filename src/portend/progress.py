"""How far long work is, on standard error: bars on a terminal, a line a minute in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["Log", "Tell", "progress", "searching"]

Tell = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""

_EVERY_S: Final = 60.0


class Log:
    """A line for each minute that a stage takes, with the time left; for where nobody sees a bar move.

    Args:
        write: takes a line; clock: gives seconds.
    """

    def __init__(self, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._stage, self._first, self._done = "", 0, 0
        self._began_s = self._said_s = 0.0

    def tell(self, stage: str, done: int, total: int) -> None:
        """Write the line if it is due; a stage that comes once more, with less done, begins anew."""
        now = self._clock()
        if stage != self._stage or done < self._done:
            self._stage, self._first, self._began_s, self._said_s = stage, done, now, now
        self._done = done
        if now - self._said_s < _EVERY_S or not self._first < done < total:
            return
        left_s = (now - self._began_s) * (total - done) / (done - self._first)
        self._write(f"{stage}: {done:,} of {total:,}, {_minutes(left_s)} left")
        self._said_s = now


def _minutes(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


@contextmanager
def searching(shown: Callable[[float], str]) -> Iterator[Callable[[Any], None]]:
    """Give a function that shows on a terminal how far a search is (``planner.limits.Progress``).

    ``shown`` writes a value.
    """
    with ExitStack() as stack:
        status: Any = None

        def tell(known: Any) -> None:
            nonlocal status
            if status is None:
                status = stack.enter_context(Console(stderr=True).status("searching"))
            step = f"{known.step}: " if known.step else ""
            best = "no plan yet" if known.value is None else f"best {shown(known.value)}"
            bound = "" if known.bound is None else f", none beats {shown(known.bound)}"
            gap = "" if known.gap is None else f", gap {100 * known.gap:.2g} %"
            said = f"{known.seconds:.0f} s: {step}{best}{bound}{gap}"
            status.update(f"{said} (Ctrl-C ends the search with the best so far)")

        yield tell


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Tell]:
    """Give a function that draws one bar per stage on standard error, or writes lines where that is no terminal."""
    if quiet:
        yield lambda stage, done, total: None
        return
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}
        log = None if console.is_terminal else Log(lambda line: console.print(line, highlight=False, soft_wrap=True))

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                for earlier in tasks.values():
                    bars.update(earlier, completed=bars.tasks[earlier].total)
                tasks[stage] = bars.add_task(stage, total=total)
            elif done < bars.tasks[tasks[stage]].completed:
                bars.reset(tasks[stage])
            bars.update(tasks[stage], completed=done, total=total)
            if log is not None:
                log.tell(stage, done, total)

        yield tell
        for task in tasks.values():
            bars.update(task, completed=bars.tasks[task].total)
