"""The command line as a shell calls it, without the seconds that a new process takes to import everything."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

from portend.cli import main

ROOT = Path(__file__).parent.parent
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def portend(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, from the folder ``cwd``; what it says, and its exit status."""
    words = ["portend", *map(str, arguments)]
    out, err, before, handlers = io.StringIO(), io.StringIO(), Path.cwd(), list(map(signal.getsignal, _SIGNALS))
    os.chdir(cwd)
    try:
        with (
            mock.patch.object(sys, "argv", words),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    finally:
        os.chdir(before)
        for number, handler in zip(_SIGNALS, handlers, strict=True):
            signal.signal(number, handler)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())
