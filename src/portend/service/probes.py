"""What measures links between agents: processes beside an agent, so that it goes on serving meanwhile.

One is a peer, which takes and gives zeros to whoever knows a secret of this one measurement, and ends after a while;
the other measures the way to a peer (``runtime.links``). The secret comes by encrypted orders.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import sys
from asyncio.subprocess import PIPE, Process
from typing import Any, Final

from portend.address import Address, read_host
from portend.errors import DeploymentError, InvalidValue, MessageError

__all__ = ["MOST_PROBE_S", "Probes"]

MOST_PROBE_S: Final = 600.0
_MOST_BYTES: Final = 1e10
_MARGIN_S: Final = 60.0
_MOST: Final = 4
_SECRET: Final = re.compile(r"[0-9a-f]{32}")


class Probes:
    """The processes of one agent."""

    def __init__(self) -> None:
        self._running: set[Process] = set()
        self._reaping: set[asyncio.Task[None]] = set()

    async def serve(self, host: str, order: dict[str, Any]) -> int:
        """Start a peer that listens on ``host`` for ``seconds`` and a little more; return its port.

        Raises:
            MessageError: the order says no secret, port or time. DeploymentError: it cannot listen there.
        """
        secret, seconds = _secret(order), _seconds(order)
        port = order.get("port")
        if type(port) is not int or not 0 <= port < 1 << 16:
            raise MessageError(f"a peer listens on a port from 0 to 65535, but got {port!r:.40}")
        process = await self._start(secret, "peer", host, str(port))
        assert process.stdout is not None
        said = (await process.stdout.readline()).decode().strip()
        if not said:
            raise DeploymentError(f"no peer can listen on {Address(host, port)} ({await self._end(process)})")
        task = asyncio.create_task(self._end_after(process, seconds + _MARGIN_S))
        self._reaping.add(task)
        task.add_done_callback(self._reaping.discard)
        return int(said)

    async def measure(self, order: dict[str, Any]) -> dict[str, Any]:
        """Measure the way to a peer; return the fields of a ``LinkMeasurement``.

        Raises:
            MessageError: the order says no peer, time or bytes. DeploymentError: the peer is not there.
        """
        secret, seconds = _secret(order), _seconds(order)
        host, port, most = order.get("host"), order.get("port"), order.get("bytes")
        try:
            if not isinstance(host, str) or type(port) is not int or not 0 < port < 1 << 16:
                raise InvalidValue(f"a peer is at a host and a port, but got {host!r:.80} and {port!r:.40}")
            target = Address(read_host(host), port)
        except InvalidValue as error:
            raise MessageError(str(error)) from None
        if type(most) is not float or not 0 < most <= _MOST_BYTES:
            raise MessageError(f"measuring takes at most {_MOST_BYTES:g} bytes, but got {most!r:.40}")
        process = await self._start(secret, "measure", str(target), str(seconds), str(most))
        try:
            async with asyncio.timeout(2 * seconds + _MARGIN_S):
                out, _ = await process.communicate()
        except TimeoutError:
            raise DeploymentError(f"measuring the way to {target} took too long") from None
        finally:
            said = await self._end(process)
        if process.returncode:
            raise DeploymentError(f"the way to {target} could not be measured ({said})")
        found: dict[str, Any] = json.loads(out)
        return found

    async def _start(self, secret: str, *words: str) -> Process:
        if len(self._running) >= _MOST:
            raise DeploymentError("links are being measured here already; wait until that is over")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "portend.runtime.link_probe", *words, stdin=PIPE, stdout=PIPE, stderr=PIPE
        )  # fmt: skip
        self._running.add(process)
        assert process.stdin is not None
        process.stdin.write(f"{secret}\n".encode())
        return process

    async def _end_after(self, process: Process, seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        finally:
            await self._end(process)

    async def _end(self, process: Process) -> str:
        """End a process if it runs still; return what it had to say."""
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        self._running.discard(process)
        assert process.stderr is not None
        said = await process.stderr.read()
        await process.wait()
        return " ".join(said.decode(errors="replace").split()) or "no reason was given"

    def close(self) -> None:
        """End all of them, at once."""
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


def _secret(order: dict[str, Any]) -> str:
    secret = order.get("secret")
    if not isinstance(secret, str) or not _SECRET.fullmatch(secret):
        raise MessageError("a measurement has a secret of 32 hexadecimal digits")
    return secret


def _seconds(order: dict[str, Any]) -> float:
    seconds = order.get("seconds")
    if type(seconds) is not float or not math.isfinite(seconds) or not 0 < seconds <= MOST_PROBE_S:
        raise MessageError(f"measuring takes at most {MOST_PROBE_S:g} s, but got {seconds!r:.40}")
    return seconds
