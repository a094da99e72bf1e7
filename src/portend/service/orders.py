"""The operator's orders: a table of what an agent can do for who has that key, and the answers that go back.

An order is done at once, or in a task if it takes its time; then who gave it hears every second that it is being worked
on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import platform
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version as package_version
from typing import Any, Final, Protocol

import msgpack

from portend.controlgroups import memory_bytes
from portend.errors import DataError, DeploymentError, MessageError, PortendError
from portend.io.storage import from_plain
from portend.runtime.protocol import PROTOCOL_VERSION
from portend.service.intake import Answer
from portend.service.peer_table import PeerTable
from portend.service.probes import Probes
from portend.service.release import NetworkFile, read_release
from portend.service.releases import Releases
from portend.service.source import Source

__all__ = ["Order", "Orders"]

_LOG: Final = logging.getLogger("portend.service")
_MOST_ORDERS: Final = 16  # that take their time, at once
_SETTLE_S: Final = 3.0  # how long an activation waits for the wanted plan when another one can be used
_WORKING_S: Final = 1.0  # how often an order's sender hears that it is being worked on
_PACKAGE: Final = package_version("portend")

Values = dict[str, Any]


class Reply(Protocol):
    """Sends a control message to who sent one."""

    def __call__(self, routing: bytes, command: str, **values: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class Order:
    """What the operator wants.

    Attributes:
        routing: where answers go. number: the operator's own, said in each answer.
        values: of the control message. payload: bytes or memory; None if there is none.
    """

    routing: bytes
    command: str
    number: int
    values: Values
    payload: Any


class Orders:
    """The orders that the agent ``name`` knows, and those that it works on.

    Args:
        host: where peers for measuring links listen. status: what ``status`` answers.
        activate: lets new samples take a release. beat: tells all other agents at once what runs here.
    """

    def __init__(
        self,
        name: str,
        host: str,
        releases: Releases,
        source: Source,
        peers: PeerTable,
        *,
        reply: Reply,
        status: Callable[[], Values],
        activate: Callable[[int], None],
        beat: Callable[[], None],
    ) -> None:
        self._name, self._host, self._releases = name, host, releases
        self._source, self._peers, self._probes = source, peers, Probes()
        self._reply, self._activate, self._beat = reply, activate, beat
        self._running: dict[asyncio.Task[None], Order] = {}
        self._at_once: dict[str, Callable[[Order], Values | None]] = {
            "hello": self._hello,
            "status": lambda _: status(),
            "network": lambda order: {"held": releases.held(_network(order))},
            "submit": self._submit,
            "known": self._known,
        }
        self._in_time: dict[str, Callable[[Order], Coroutine[Any, Any, Values]]] = {
            "chunk": self._chunk,
            "load": self._load,
            "activate": self._activate_soon,
            "peer": self._peer,
            "measure": self._measure,
        }

    def obey(self, routing: bytes, values: Values, payload: Any) -> None:
        """Do as the operator says: at once, or in a task what takes its time."""
        command, number = values["command"], values.get("number")
        with self._reporting(routing, number):
            if type(number) is not int or (command not in self._at_once and command not in self._in_time):
                raise MessageError(f"an agent does not know the order {command!r:.40}")
            order = Order(routing, command, number, values, payload)
            if command in self._at_once:
                answer = self._at_once[command](order)
                if answer is not None:
                    self._answer(order, answer)
            elif len(self._running) >= _MOST_ORDERS:
                raise DeploymentError("too many orders at once; wait for the answers")
            else:
                task = asyncio.create_task(self._work(order))
                self._running[task] = order
                task.add_done_callback(self._running.pop)

    async def _work(self, order: Order) -> None:
        task = asyncio.create_task(self._in_time[order.command](order))
        try:
            while not (await asyncio.wait({task}, timeout=_WORKING_S))[0]:
                self._reply(order.routing, "working", number=order.number)
            with self._reporting(order.routing, order.number):
                self._answer(order, task.result())
        finally:
            task.cancel()

    def _answer(self, order: Order, answer: Values) -> None:
        self._reply(order.routing, order.command, number=order.number, **answer)

    @contextlib.contextmanager
    def _reporting(self, routing: bytes, number: Any) -> Iterator[None]:
        """Tell the operator what goes wrong with an order."""
        try:
            yield
        except PortendError as error:
            self._reply(routing, "error", number=number, message=str(error))
        except Exception as error:  # what libraries raise is an open set, and silence would keep the operator waiting
            _LOG.exception("an order failed")
            self._reply(routing, "error", number=number, message=f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """Give up what is being worked on."""
        for task in self._running:
            task.cancel()
        self._probes.close()

    # -- networks and releases -----------------------------------------------------------------

    def _hello(self, order: Order) -> Values:
        return {
            "name": self._name,
            "orders": [each.number for each in self._running.values() if each.routing == order.routing],
            "package": _PACKAGE,
            "protocol": PROTOCOL_VERSION,
            "python": platform.python_version(),
            "machine": platform.platform(),
            "memory_bytes": memory_bytes(),
            "time_ns": time.time_ns(),
            "versions": self._releases.versions,
            "active": self._releases.active,
        }

    async def _chunk(self, order: Order) -> Values:
        if order.payload is None:
            raise MessageError("a chunk has bytes, but got none")
        offset, data = int(order.values["offset"]), bytes(order.payload)
        return {"held": await self._releases.append(_network(order), offset, data)}

    async def _load(self, order: Order) -> Values:
        loaded = await self._releases.load(read_release(order.values.get("release")))
        self._beat()
        return {"network": loaded.spec.name, "weights_sha256": loaded.spec.weights_sha256}

    async def _activate_soon(self, order: Order) -> Values:
        """Let new samples take a release, once one of its plans can be used; the wanted one, if that is soon."""
        version, began = int(order.values["release"]), time.monotonic()
        wait_s = float(order.values["wait_s"])
        while (loaded := self._releases.get(version)) is not None:
            first, waited_s = self._source.routes.first_usable(loaded.release), time.monotonic() - began
            if first == 0 or (first is not None and waited_s > _SETTLE_S):
                break
            if not waited_s < wait_s:
                missing = "; ".join(self._peers.view().missing(loaded.release, 0))
                raise DeploymentError(
                    f"release {version} was not activated, for no sample could be answered: {missing}; correct the "
                    "addresses in the topology, or what lies between the hosts, and deploy again"
                )
            await asyncio.sleep(0.005)
        self._activate(version)
        return {}

    # -- links ---------------------------------------------------------------------------------

    async def _peer(self, order: Order) -> Values:
        return {"port": await self._probes.serve(self._host, order.values)}

    async def _measure(self, order: Order) -> Values:
        return {"measured": await self._probes.measure(order.values)}

    # -- samples -------------------------------------------------------------------------------

    def _submit(self, order: Order) -> Values | None:
        """Take a sample; its answer says that it was, or what is wrong with it. A refusal has a word of its own."""
        sample, deliver = str(order.values["sample"]), partial(self._deliver, order.routing)
        if self._source.stopped:
            return {"sample": sample, "found": "full"}
        encoded = b"" if order.payload is None else bytes(order.payload)
        try:
            reception = self._source.offer(sample, encoded, order.routing, deliver)
        except DataError as error:
            deliver(Answer(id=sample, failed="sample", reason=str(error)))
            return None
        return {"sample": sample, "found": reception} if reception in ("full", "other") else None

    def _known(self, order: Order) -> Values:
        """Which samples (id and digest of each) are not known here; the answers of the others go to who asks."""
        samples = order.values["samples"]
        if not isinstance(samples, dict) or len(samples) > 1 << 16:
            raise MessageError("the samples' ids and digests are needed")
        intake, deliver = self._source.intake, partial(self._deliver, order.routing)
        return {"unknown": [s for s, of in samples.items() if not intake.wants(s, of, order.routing, deliver)]}

    def _deliver(self, routing: bytes, answer: Answer) -> None:
        self._reply(routing, "answer", answer={name: getattr(answer, name) for name in Answer.__slots__})


def _network(order: Order) -> NetworkFile:
    try:
        return from_plain(NetworkFile, order.values.get("network"))
    except (PortendError, TypeError, ValueError, LookupError, msgpack.UnpackException) as error:
        raise MessageError(f"this names no network ({error})") from None
