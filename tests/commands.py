"""The command line as a shell calls it, without the seconds that a new process takes to import everything."""

from __future__ import annotations

import contextlib
import io
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from portend.cli import main

ROOT = Path(__file__).parent.parent
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def portend(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, from the folder ``cwd``; what it says, and its exit status."""
    words = ["portend", *map(str, arguments)]
    out, err, handlers = io.StringIO(), io.StringIO(), list(map(signal.getsignal, _SIGNALS))
    try:
        with (
            contextlib.chdir(cwd),
            mock.patch.object(sys, "argv", words),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as end,
        ):
            main()
    finally:
        for number, handler in zip(_SIGNALS, handlers, strict=True):
            signal.signal(number, handler)
    return subprocess.CompletedProcess(words, int(end.value.code or 0), out.getvalue(), err.getvalue())
