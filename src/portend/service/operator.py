"""Gives agents on their hosts a release to run, and samples to the source; they go on without it."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final

import numpy as np
import zmq
from numpy.typing import ArrayLike

from portend.address import Address, is_loopback
from portend.data.decoding import InputDecoder
from portend.errors import ConfigError, DeploymentError, MessageError
from portend.io.storage import from_plain, to_plain
from portend.runtime.link_probe import Budget, LinkMeasurement
from portend.runtime.protocol import PROTOCOL_VERSION, pack_control, unpack_control
from portend.service.intake import Answer, digest
from portend.service.keys import OPERATOR, Keys
from portend.service.peers import call
from portend.service.release import Limits, NetworkFile, Release
from portend.service.store import CHUNK, file_sha256
from portend.units import format_bandwidth
from portend.values.execution import Execution
from portend.values.plan import Plan
from portend.values.topology import Topology

__all__ = ["Agents", "Found", "Submitter"]

_PATIENCE_S: Final = 10.0
_LEAST_BPS: Final = 4e3  # what a connection is taken to carry before anything is known of it
_FIRST_CHUNK: Final = 4 << 10
_CHUNK_S: Final = 0.5  # what a chunk of a network may take
_JOIN_S: Final = 10.0  # how long the agents may take to reach each other
_ASK_S: Final = 0.5  # how often a submitter asks whether its samples are known
_POLL_MS: Final = 20
_PING_S: Final = 2.0  # of silence, after which an agent is asked whether it still works on the order

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What an agent says of itself: how its clock differs from ours (give or take ``within_s``), and the rest."""

    name: str
    package: str
    machine: str
    memory_bytes: float | None
    offset_s: float
    within_s: float
    versions: tuple[int, ...]
    active: int


class Agents:
    """A connection to the agents of a topology, by its tiers' hosts and ports; a context manager.

    Args:
        keys: the operator's; None for plain text, only on loopback.

    Raises:
        ConfigError: plain text was asked for, but a tier is on another host; or a public key is missing.
    """

    def __init__(self, topology: Topology, keys: Keys | None, *, patience_s: float = _PATIENCE_S) -> None:
        self.topology, self.keys = topology, keys
        self._patience_s = patience_s
        if keys is not None and keys.name != OPERATOR:
            raise ConfigError(f"orders are signed by the key {OPERATOR!r}, but got the one of {keys.name!r}")
        far = sorted({tier.host for tier in topology.tiers if not is_loopback(tier.host)})
        if keys is None and far:
            raise ConfigError(f"plain text stays on this machine, but tiers are on {', '.join(far)}; give --keys")
        self._number = 0
        self._rates: dict[int, float] = {}
        with contextlib.ExitStack() as made:
            self._context = zmq.Context()
            made.callback(self._context.destroy, linger=0)
            self.sockets = [
                call(self._context, tier.name, str(Address(tier.host, tier.port)), keys, OPERATOR)
                for tier in topology.tiers
            ]
            self._cleanup = made.pop_all()

    def __enter__(self) -> Agents:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    def ask(
        self, tier: int, command: str, payload: bytes | None = None, patience_s: float | None = None, **values: Any
    ) -> dict[str, Any]:
        """Give one agent an order and return what it answers.

        It waits ``patience_s``, and twice as long as the order takes at the rate that was measured, without a word. An
        agent that works on an order says so once a second. While it is silent it is asked for the orders of this
        connection that it works on. The question comes after the order and the answer after the order's, so an order
        that is not among them got lost: the agent was started again, or the connection broke.

        Raises:
            DeploymentError: it cannot be reached, does not answer in time, lost the order, or reports an error.
        """
        self._number += 1
        socket, name = self.sockets[tier], self._name(tier)
        frames = [pack_control(command, number=self._number, **values)] + ([] if payload is None else [payload])
        size, rate_bps = sum(map(len, frames)), self._rates.get(tier, _LEAST_BPS)
        patience_s = (patience_s or self._patience_s) + 2 * 8 * size / rate_bps
        post(socket, frames, time.monotonic() + self._patience_s, name)
        deadline = time.monotonic() + patience_s
        while (left := deadline - time.monotonic()) > 0:
            if not socket.poll(max(1, int(1e3 * min(left, _PING_S)))):
                with contextlib.suppress(zmq.Again):  # it is not connected just now
                    socket.send_multipart([pack_control("hello", number=-self._number)], zmq.NOBLOCK)
                continue
            told = unpack_control(socket.recv_multipart()[0])
            if told.get("number") == -self._number and self._number not in told["orders"]:
                raise DeploymentError(
                    f"the agent of {name} was started again, or the connection to it broke, so it does not do what it "
                    f"was asked for ({command}); see its log (did it run out of memory?), and run this again"
                )
            if told.get("number", self._number) != self._number:
                continue
            if told["command"] == "error":
                raise DeploymentError(f"the agent of {name} reports: {told.get('message')}")
            if told["command"] == command:
                return told
            if told["command"] == "working":
                deadline = time.monotonic() + patience_s
        raise DeploymentError(
            f"the agent of {name} did not answer for {patience_s:.0f} s ({command} was asked, {size} B over a way of "
            f"{format_bandwidth(rate_bps)} or more); see its log"
        )

    def _name(self, tier: int) -> str:
        place = self.topology.tiers[tier]
        return f"tier {place.name!r} at {Address(place.host, place.port)}"

    def hello(self) -> list[Found]:
        """Meet all agents, by tier.

        Raises:
            DeploymentError: one does not answer, has another name than its tier, or another version of Portend.
        """
        return [self._meet(tier) for tier in range(len(self.topology.tiers))]

    def _meet(self, tier: int) -> Found:
        name, best = self.topology.tiers[tier].name, float("inf")
        for _ in range(5):
            before = time.time_ns()
            told = self.ask(tier, "hello")
            after = time.time_ns()
            if (within := 0.5e-9 * (after - before)) < best:
                best, offset = within, 1e-9 * (int(told["time_ns"]) - (before + after) / 2)
        if told["name"] != name:
            raise DeploymentError(
                f"the agent of {self._name(tier)} is called {told['name']!r}; start it with --name {name}, or correct "
                "host and port in the topology"
            )
        ours = package_version("portend")
        if (told["protocol"], told["package"]) != (PROTOCOL_VERSION, ours):
            raise DeploymentError(
                f"the agent of {self._name(tier)} is Portend {told['package']} with protocol {told['protocol']}, but "
                f"this is {ours} with protocol {PROTOCOL_VERSION}; install one version everywhere"
            )
        return Found(
            name=name,
            package=told["package"],
            machine=str(told["machine"]),
            memory_bytes=told["memory_bytes"],
            offset_s=offset,
            within_s=best,
            versions=tuple(told["versions"]),
            active=int(told["active"]),
        )

    def push(self, tier: int, network: NetworkFile, path: Path, on_progress: Progress = lambda *_: None) -> None:
        """Give an agent the bytes of a network that it does not have yet, in chunks that take half a second each.

        Raises:
            DeploymentError: it has no room, or the connection is gone for too long; then the next push goes on there.
        """
        what = to_plain(network)
        held, most = int(self.ask(tier, "network", network=what)["held"]), _FIRST_CHUNK
        with path.open("rb") as file:
            while held < network.size:
                file.seek(held)
                chunk, began = file.read(most), time.monotonic()
                held = int(self.ask(tier, "chunk", chunk, network=what, offset=held)["held"])
                rate = len(chunk) / (time.monotonic() - began)
                self._rates[tier] = 8 * rate
                most = min(max(int(rate * _CHUNK_S), _FIRST_CHUNK), 8 * most, CHUNK)
                on_progress(f"network to {self.topology.tiers[tier].name}", held, network.size)

    def deploy(
        self,
        plans: Sequence[Plan],
        files: Sequence[Path],
        decoder: InputDecoder,
        *,
        executions: Sequence[Execution],
        ranges: Mapping[str, dict[str, Any]] = MappingProxyType({}),
        batches: Sequence[int] = (),
        exit_counts: Sequence[ArrayLike] = (),
        limits: Limits | None = None,
        on_progress: Progress = lambda *_: None,
    ) -> Release:
        """Load plans beside those that run, and let the source take new samples by them; return the release.

        Samples under way finish by their old plans; agents let go of these by themselves when none is left.

        Args:
            plans: complete, the wanted one first. files: of the network, by tier. executions: by tier.
            ranges: of values at cuts, as JSON values by cut. batches: largest ones, by tier; empty: of one sample.
            exit_counts: by plan, profiling samples [C, L] of each class that leave at each partition
                (``perfmodel.exits.exit_counts``), for the source to watch its exits; empty: it does not.

        Raises:
            InvalidValue: a plan does not fit the topology. DeploymentError: an agent cannot run it, or the agents
                of no plan reach each other; then all go on as before.
        """
        found = self.hello()
        made: dict[Path, NetworkFile] = {
            path: NetworkFile(sha256=file_sha256(path), size=path.stat().st_size, suffix=path.suffix)
            for path in set(files)
        }
        places = self.topology
        release = Release(
            version=1 + max(version for agent in found for version in (*agent.versions, agent.active, 0)),
            plans=tuple(plans),
            tiers=tuple(tier.name for tier in places.tiers),
            endpoints=tuple(str(Address(tier.host, tier.port)) for tier in places.tiers),
            networks=tuple(made[path] for path in files),
            executions=tuple(executions),
            memory_bytes=tuple(tier.memory_bytes for tier in places.tiers),
            source=places.source,
            destination=places.destination,
            ingest=places.ingest,
            decoder=decoder.to_dict(),
            criterion=next((plan.criterion for plan in plans if plan.asks), plans[0].criterion),
            ranges=dict(ranges),
            batches=tuple(batches),
            exit_counts=tuple(
                tuple(tuple(row) for row in np.asarray(counts, dtype=np.float64).tolist()) for counts in exit_counts
            ),
            limits=limits or Limits(),
        )
        for tier, path in enumerate(files):
            self.push(tier, made[path], path, on_progress)
        for tier in range(len(files)):
            on_progress("loading", tier, len(files))
            self.ask(tier, "load", patience_s=60 + self._patience_s, release=release.to_dict())
        on_progress("loading", len(files), len(files))
        wait_s = max(_JOIN_S, 60 * max(agent.within_s for agent in found))  # some ten round trips open a connection
        try:
            self.ask(places.source, "activate", release=release.version, wait_s=wait_s)
        except DeploymentError:  # it may have done it before it was lost
            if self._meet(places.source).active != release.version:
                raise
        return release

    def measure_links(self, budget: Budget, *, port: int = 0) -> tuple[LinkMeasurement, ...]:
        """Measure each link between neighbors, from the agent that is nearer to the source, one after the other.

        Args:
            budget: for each link. port: on which the farther agent's host takes the connections; 0: a free one.

        Raises:
            DeploymentError: an agent does not answer, or no message comes through.
        """
        found = []
        for near, far in map(self.topology.outward, range(len(self.topology.links))):
            secret = secrets.token_hex(16)
            peer = self.ask(far, "peer", secret=secret, seconds=float(budget.seconds), port=port)
            told = self.ask(
                near, "measure", secret=secret, host=self.topology.tiers[far].host,
                port=int(peer["port"]), seconds=float(budget.seconds), bytes=float(budget.bytes),
            )  # fmt: skip
            found.append(from_plain(LinkMeasurement, told["measured"]))
        return tuple(found)

    def settled(self, version: int, patience_s: float = 60.0) -> bool:
        """Wait until no agent runs anything older than the release; whether that came to be."""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            if all(min(self.ask(tier, "status")["versions"]) >= version for tier in range(len(self.sockets))):
                return True
            time.sleep(0.05)
        return False

    def submitter(self, most: int = 64) -> Submitter:
        """Return what gives samples to the source; at most ``most`` of them without an answer at once."""
        return Submitter(self.sockets[self.topology.source], self._name(self.topology.source), most)


class Submitter:
    """Gives samples to the source and collects the answers, one for each, whatever happens to the source meanwhile.

    It keeps each sample until its answer is here. Twice a second it asks which of them the source knows, and gives it
    those again that it does not, by the same id.
    """

    def __init__(self, socket: zmq.Socket[bytes], source: str, most: int) -> None:
        self._socket, self._source, self._most = socket, source, most
        self._pending: dict[str, tuple[bytes, bytes]] = {}  # each sample's bytes, and their digest
        self._to_send: dict[str, None] = {}
        self._held_back_s = self._asked_s = 0.0
        self._number = 0
        self.given_again = self.refused = 0

    def answers(
        self, samples: Iterable[tuple[str, bytes] | Answer | None], patience_s: float = 60.0
    ) -> Iterator[Answer]:
        """Yield the answer of each sample (id, bytes), as they come.

        Among the samples None stands for no more for now, and an answer for a sample that cannot be given.

        Raises:
            DeploymentError: nothing was heard of the source for ``patience_s`` while answers were due.
        """
        coming, done, heard = iter(samples), False, time.monotonic()
        while not done or self._pending:
            while not done and len(self._pending) < self._most:
                try:
                    sample = next(coming)
                except StopIteration:
                    done = True
                    break
                if sample is None:
                    break
                if isinstance(sample, Answer):
                    yield sample
                    continue
                self._pending[sample[0]] = sample[1], digest(sample[1])
                self._to_send[sample[0]] = None
            self._send()
            self._ask()
            if self._socket.poll(_POLL_MS):
                heard = time.monotonic()
                yield from self._read()
            if not self._pending:
                heard = time.monotonic()
            elif time.monotonic() - heard > patience_s:
                raise DeploymentError(
                    f"the source, {self._source}, was not heard for {patience_s:g} s while {len(self._pending)} "
                    "samples wait for their answers; start it, and run this again: it goes on"
                )

    def _order(self, command: str, payload: bytes | None = None, **values: Any) -> bool:
        self._number += 1
        frames = [pack_control(command, number=self._number, **values)] + ([] if payload is None else [payload])
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _send(self) -> None:
        if time.monotonic() < self._held_back_s:
            return
        for sample in list(self._to_send):
            if not self._order("submit", self._pending[sample][0], sample=sample):
                return
            del self._to_send[sample]

    def _ask(self) -> None:
        now = time.monotonic()
        sent = {sample: of for sample, (_, of) in self._pending.items() if sample not in self._to_send}
        if sent and now - self._asked_s > _ASK_S and self._order("known", samples=sent):
            self._asked_s = now

    def _read(self) -> Iterator[Answer]:
        while self._socket.poll(0):
            told = unpack_control(self._socket.recv_multipart()[0])
            command = told["command"]
            if command == "submit" and told["found"] == "full" and told["sample"] in self._pending:
                self.refused += 1
                self._to_send[told["sample"]] = None
                self._held_back_s = time.monotonic() + 0.02
            elif (
                command == "submit" and told["found"] == "other" and self._pending.pop(told["sample"], None) is not None
            ):
                reason = "another sample has this id already; give this one its own"
                yield Answer(id=told["sample"], failed="sample", reason=reason)
            elif command == "known":
                for sample in told["unknown"]:
                    if sample in self._pending and sample not in self._to_send:
                        self.given_again += 1
                        self._to_send[sample] = None
            elif command == "error":
                raise DeploymentError(f"the source, {self._source}, reports: {told.get('message')}")
            elif command == "answer":
                answer = _answer(told)
                if answer.failed == "stopped":
                    self._to_send.update({answer.id: None} if answer.id in self._pending else {})
                elif self._pending.pop(answer.id, None) is not None:
                    self._to_send.pop(answer.id, None)
                    yield answer


def _answer(told: dict[str, Any]) -> Answer:
    try:
        return from_plain(Answer, told["answer"])
    except (LookupError, TypeError, ValueError) as error:
        raise MessageError(f"the source sent an answer that is none ({error})") from None


def post(socket: zmq.Socket[bytes], frames: list[bytes], deadline: float, name: str) -> None:
    """Send to an agent as soon as it is connected.

    Raises:
        DeploymentError: it is not, until the deadline.
    """
    while True:
        try:
            socket.send_multipart(frames, zmq.NOBLOCK)
            return
        except zmq.Again:
            if time.monotonic() > deadline:
                raise DeploymentError(
                    f"the agent of {name} cannot be reached; start it there (`portend agent`), and check that both "
                    "sides have each other's public keys"
                ) from None
            time.sleep(0.02)
