"""A process that works for this one and ends with it: started, asked, checked and stopped.

It reads its configuration as the first line of JSON on stdin and answers it with a line of JSON on stdout; the end
of stdin, which comes when its parent ends in any way, ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import IO, Any, Final

from portend.errors import DeploymentError

__all__ = ["Child"]

_STOP_TIMEOUT_S: Final = 2.0


class Child:
    """A Python module run as such a process, which ends with a ``with`` block; ``name`` is what messages call it.

    A class of its own starts it in ``__enter__``.
    """

    def __init__(self, name: str, module: str, *, start_timeout_s: float = 10.0) -> None:
        self._name = name
        self._module = module
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Its process id; None when it is not running."""
        return None if self._process is None else self._process.pid

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it; DeploymentError if it had died before, unless another error is on its way."""
        try:
            if kind is None:
                self.check()
        finally:
            self._stop()

    def check(self) -> None:
        """Raise DeploymentError unless it runs."""
        if self._process is None:
            raise DeploymentError(f"the {self._name} was not started; use it in a 'with' statement")
        status = self._process.poll()
        if status is not None:
            raise DeploymentError(f"the {self._name} ended with status {status}: {self._last_line()}")

    def _start(self, config: dict[str, Any], files: Sequence[int] = ()) -> Any:
        """Start it with open ``files`` to inherit, and return its answer to ``config``.

        Raises:
            DeploymentError: with its last words, if it cannot do what it is told or says nothing in time.
        """
        if self._process is not None:
            raise DeploymentError(f"the {self._name} runs already; make another one")
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (until it is stopped)
        self._process = process = subprocess.Popen(
            [sys.executable, "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            pass_fds=files,
            start_new_session=True,  # Ctrl-C is for the parent, which then stops it
        )
        if hasattr(os, "sched_setaffinity"):  # the last core: timed work keeps off it (runtime.agent)
            with contextlib.suppress(OSError):
                os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
        too_long = threading.Timer(self._start_timeout_s, process.kill)
        too_long.start()
        try:
            answer = self._ask(json.dumps(config))
            if answer is None:
                status = process.wait()
                raise DeploymentError(
                    f"the {self._name} did not start within {self._start_timeout_s:g} s (status {status}): "
                    f"{self._last_line()}"
                )
        except BaseException:
            self._stop()
            raise
        finally:
            too_long.cancel()
        return answer

    def _ask(self, line: str) -> Any:
        """Send a line and return the answer; None if there is none, for it ended."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            return None
        with contextlib.suppress(BrokenPipeError):  # its stderr says why
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
        answer = process.stdout.readline()
        return json.loads(answer) if answer else None

    def _last_line(self) -> str:
        if self._stderr is None:
            return "it said nothing"
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None or process.stdin is None or process.stdout is None or self._stderr is None:
            return
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        for more in (process.terminate, process.kill, None):  # a fork of this process may hold its stdin open
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_TIMEOUT_S)
                break
            if more is not None:
                more()
        process.stdout.close()
        self._stderr.close()
