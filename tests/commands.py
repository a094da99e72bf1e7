"""The command line as a shell calls it, without the seconds that a new process takes to import everything."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn
from unittest import mock

import pytest
from rich.cells import cell_len

from portend.cli.app import main

ROOT = Path(__file__).parent.parent
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def portend(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, from the folder ``cwd``; what it says, and its exit status.

    Whatever command it is: what it answers in words fits a terminal of 80 columns, longer words (paths) alone.
    """
    words = ["portend", *map(str, arguments)]
    out, err, handlers = io.StringIO(), io.StringIO(), list(map(signal.getsignal, _SIGNALS))
    try:
        with (
            contextlib.chdir(cwd),
            mock.patch.object(sys, "argv", words),
            mock.patch.dict(os.environ, COLUMNS="80"),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as end,
        ):
            main()
    finally:
        for number, handler in zip(_SIGNALS, handlers, strict=True):
            signal.signal(number, handler)
    if not {"--json", "--markdown", "reference"} & set(words):
        assert too_wide(out.getvalue()) == []
    return subprocess.CompletedProcess(words, int(end.value.code or 0), out.getvalue(), err.getvalue())


def too_wide(text: str, columns: int = 80) -> list[str]:
    """The lines of more than so many columns, unless it is one word that is."""
    return [line for line in text.splitlines() if cell_len(line.rstrip()) > columns and len(line.split()) > 1]


@contextlib.contextmanager
def killed(folder: Path) -> Iterator[Callable[[], NoReturn]]:
    """A way to end a run within the context that leaves what SIGKILL would leave of ``folder``.

    That is what is in it when the run is ended, and nothing that it does to end well.
    """
    left = folder.with_name(f"{folder.name}.left")

    def kill() -> NoReturn:
        shutil.copytree(folder, left)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        yield kill
    shutil.rmtree(folder)
    left.rename(folder)
