"""One process per tier: receives tensors, runs its partitions, decides exits, passes on.

The agent obeys a coordinator over a control socket and exchanges data messages with the other
agents. It is one thread; ZeroMQ's own threads move the bytes. It ends when told to, or when its
standard input closes, which happens when the process that started it ends in any way.

Every sample leaves spans behind (``portend.values.measurement.SPAN_KINDS``), all on the monotonic clock
that the processes of one machine share.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import click
import numpy as np
import zmq
from numpy.typing import NDArray

from portend.data.decoding import decoder_from_dict
from portend.errors import DeploymentError, MessageError, PortendError
from portend.runtime.codecs import FLOAT32, Codec, Payload, Sample, make_codec
from portend.runtime.deployed import Deployed
from portend.runtime.executor import Partition
from portend.runtime.executors import make_executor
from portend.runtime.protocol import (
    Header,
    pack_control,
    pack_header,
    unpack_control,
    unpack_header,
)
from portend.values.codecs import ValueRange
from portend.values.execution import Execution
from portend.values.measurement import SPAN_KINDS

__all__ = ["Agent", "main"]

_ENCODE, _TRANSFER, _DECODE, _COMPUTE = (SPAN_KINDS.index(k) for k in ("encode", "transfer", "decode", "compute"))
_PROGRESS_EVERY_NS: Final = 200_000_000
_SPIN_NS: Final = 200_000
_LARGEST_MESSAGE: Final = 256 << 20
_NOT_CODED: Final = (0, 0)
_COPIED: Final = 512 << 10
"""Bytes below which copying a payload is quicker than lending its memory to ZeroMQ, which has to give it back."""

_CORES: Final = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
"""The cores that this process may use."""

_TIMED: Final = _CORES[:-1] or _CORES
"""Those where it is timed: the last of several is left to the links, whose process must not interrupt what is timed."""

Tensor = NDArray[np.float32]


def wait_until(moment_ns: int) -> int:
    """Sleep, and at the end spin, until the monotonic clock reads ``moment_ns``; return the clock in ns."""
    while (now := time.monotonic_ns()) < moment_ns:
        if moment_ns - now > _SPIN_NS:
            time.sleep((moment_ns - now - _SPIN_NS) * 1e-9)
    return now


def _stay_on_core(number: int | None) -> None:
    """Keep this thread on one core (counted round), so that its caches stay; None lets it move again.

    Only while one sample is under way, otherwise tiers would wait for a core while another is idle, and only with one
    compute thread, for threads that are started later stay where this one is.
    """
    if _TIMED:
        with contextlib.suppress(OSError):  # a container may lose a core
            os.sched_setaffinity(0, set(_CORES) if number is None else {_TIMED[number % len(_TIMED)]})


def _busy_ns(work: Callable[[], object], times: int = 20, limit_ns: int = 5_000_000) -> int:
    """Nanoseconds that work takes which has just been done.

    The mean over some times, for it may take microseconds; fewer times where it takes long.
    """
    began = now = time.monotonic_ns()
    done = 0
    while done < times and now - began < limit_ns:
        work()
        done, now = done + 1, time.monotonic_ns()
    return (now - began) // done


class _Job(NamedTuple):
    """A partition to be timed: between two cuts, its input, what runs ``ahead`` of it, the codecs of its messages."""

    start: int
    end: int
    partition: Partition
    tensor: Tensor
    ahead: Callable[[], object] | None
    takes: Codec | None = None
    gives: Codec | None = None


class Agent:
    """The agent of one tier.

    Args:
        tier: index in the topology; control: endpoint of the coordinator; listen: host to bind.
        allow_code: ``module:object`` that a checkpoint may name; no message adds to it.
    """

    def __init__(self, tier: int, control: str, listen: str = "127.0.0.1", allow_code: Collection[str] = ()) -> None:
        self.tier = tier
        self._allow_code = allow_code
        self._context = zmq.Context()
        for core in _TIMED:  # its threads wait for a core as little as the one that computes
            self._context.set(zmq.THREAD_AFFINITY_CPU_ADD, core)
        self._control = self._socket(zmq.DEALER)
        self._control.setsockopt(zmq.IDENTITY, str(tier).encode())
        self._control.connect(control)
        self._inbox = self._socket(zmq.PULL)
        self._inbox.setsockopt(zmq.MAXMSGSIZE, _LARGEST_MESSAGE)
        port = self._inbox.bind_to_random_port(f"tcp://{listen}")
        self._endpoint = f"{listen}:{port}"
        self._peers: dict[int, zmq.Socket[bytes]] = {}
        self._samples: list[Sample] = []
        self._tensors: dict[int, Tensor] = {}
        self._timed: dict[tuple[int, int, bool], Partition] = {}
        self._probe: tuple[int, Codec] = (0, FLOAT32)
        self._packed = pack_header(Header("result", 0, 0, 0, time.monotonic_ns()))
        self._plan: Deployed | None = None
        self.dropped = 0
        self._alone, self._threads = True, 1
        self._slowdown = 1.0
        self._source = self._destination = 0
        self._ingest_by_message = False
        self._shapes: tuple[tuple[int, ...], ...] = ()
        self._reset(0, 0)

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.set_hwm(0)  # credits bound what is under way; a high-water mark would block or drop instead
        return socket

    def _reset(self, run: int, expected: int) -> None:
        self._run = run
        self._expected = expected
        self._spans: list[tuple[int, int, int, int, int, int]] = []
        self._starts: list[tuple[int, int]] = []
        self._results: list[tuple[int, int, int, int]] = []
        self._pending: deque[int] = deque()
        self._credits = 0
        self._gap_ns = 0
        self._told_ns = 0
        self._armed: list[_Job] = []
        self._armed_burst = 1

    # -- control -------------------------------------------------------------------------------

    def serve(self) -> None:
        """Say hello and obey until told to stop or until standard input closes."""
        self._tell("hello", tier=self.tier, pid=os.getpid(), endpoint=self._endpoint)
        poller = zmq.Poller()
        for source in (self._control, self._inbox, sys.stdin.fileno()):
            poller.register(source, zmq.POLLIN)
        try:
            while True:
                ready = dict(poller.poll(0 if self._may_feed() else None))
                if self._inbox in ready:
                    self._receive()
                if self._control in ready and not self._obey():
                    return
                if sys.stdin.fileno() in ready and not os.read(sys.stdin.fileno(), 4096):
                    return
                if self._may_feed():
                    self._feed()
        finally:
            self._context.destroy(linger=0)

    def _tell(self, command: str, frames: Sequence[Any] = (), **values: Any) -> None:
        self._control.send_multipart([pack_control(command, **values), *frames], copy=False)

    def _obey(self) -> bool:
        frames = self._control.recv_multipart()
        try:
            values = unpack_control(frames[0])
            command = values["command"]
            if command == "stop":
                return False
            handler: Callable[..., None] | None = getattr(self, f"_on_{command}", None)
            if handler is None:
                raise MessageError(f"an agent does not know the command {command!r}")
            handler(values, frames[1:])
        except PortendError as error:
            self._tell("error", message=str(error))
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            self._tell("error", message=f"{type(error).__name__}: {error}")
        return True

    def _on_setup(self, values: dict[str, Any], _: list[bytes]) -> None:
        self._slowdown = float(values["slowdown"])
        self._source, self._destination = int(values["source"]), int(values["destination"])
        self._ingest_by_message = values["ingest"] == "message"
        execution = Execution(**values["execution"])
        self._threads = execution.threads
        self._executor = make_executor(
            values["network"],
            execution,
            criterion=str(values["criterion"]),
            allow_code=self._allow_code,
        )
        self._decoder = decoder_from_dict(values["decoder"])
        for peer, endpoint in values["peers"].items():
            socket = self._socket(zmq.PUSH)
            socket.copy_threshold = _COPIED
            socket.connect(f"tcp://{endpoint}")
            self._peers[int(peer)] = socket
        spec = self._executor.spec
        self._shapes = spec.cut_shapes
        self._ranges = {int(cut): ValueRange.from_dict(data) for cut, data in values["ranges"].items()}
        cut_bytes = [4 * int(np.prod(shape)) for shape in self._shapes]
        self._tell("ready", network=spec.name, weights_sha256=spec.weights_sha256, cut_bytes=cut_bytes)

    def _codec(self, name: str, cut: int) -> Codec:
        return make_codec(name, self._decoder, self._shapes[cut], self._ranges.get(cut))

    def _on_samples(self, _: dict[str, Any], frames: list[bytes]) -> None:
        self._samples = [Sample(data, self._decoder.decode(data)) for data in frames]
        self._tensors.clear()
        self._timed.clear()
        self._tell("ready")

    def _on_deploy(self, values: dict[str, Any], _: list[bytes]) -> None:
        self._plan = Deployed(values["plan"], self.tier, self._executor, self._codec)
        zeros = {step: np.zeros(self._shapes[self._plan.cuts[step]], np.float32) for step in self._plan.partitions}
        for step, partition in self._plan.partitions.items():
            partition(zeros[step])
        self._tell("ready")

    def _on_begin(self, values: dict[str, Any], _: list[bytes]) -> None:
        self._reset(int(values["run"]), int(values["expected"]))
        self._alone = int(values["window"]) == 1
        _stay_on_core(self.tier if self._alone and self._threads == 1 else None)
        gc.collect()
        gc.freeze()
        gc.disable()
        self._tell("ready")

    def _on_feed(self, values: dict[str, Any], _: list[bytes]) -> None:
        """Source only: let the samples in, never more under way than there are credits."""
        self._pending.extend(values["samples"])
        self._credits = int(values["window"])
        self._gap_ns = int(1e9 * values["gap_s"])
        self._told_ns = time.monotonic_ns()

    def _on_expect(self, values: dict[str, Any], _: list[bytes]) -> None:
        """Receiver of probes: cut and codec of the next ones.

        What runs after each is made now: it would take longer than the time between two, and the next ones would wait.
        """
        cut = int(values["cut"])
        self._probe = (cut, self._codec(values["codec"], cut))
        if self._executor.spec.num_blocks > cut:
            self._timeable(cut, cut + 1, False)
        self._tell("ready")

    def _on_probe(self, values: dict[str, Any], _: list[bytes]) -> None:
        """Send ``count`` messages, ``gap_s`` apart: the tensor of a cut by a codec, or (cut -1) a result.

        After a block the encoder follows a computation: that block runs before it is timed.
        """
        cut = int(values["cut"])
        codec = self._codec(values["codec"], max(cut, 0))
        tensor = None if cut < 0 else self._inputs(cut)
        block = self._timeable(cut - 1, cut, False) if cut > 0 else None
        for request in range(int(values["count"])):
            wait_until(time.monotonic_ns() + int(1e9 * values["gap_s"]))
            self._tell("progress", answered=request)
            if tensor is None:
                self._post(int(values["to"]), "probe", request, 0, None)
                continue
            if block is not None:
                block(self._inputs(cut - 1))
            began = time.monotonic_ns()
            payload = codec.encode(tensor if cut else self._samples[0])
            once = time.monotonic_ns()
            busy = _busy_ns(partial(codec.encode, tensor if cut else self._samples[0]))
            self._span(request, _ENCODE, 0, began, once)
            self._span(request, _ENCODE, 1, once, once + busy)
            self._post(int(values["to"]), "probe", request, 0, payload)
        self._tell("ready")

    def _on_codecs(self, values: dict[str, Any], _: list[bytes]) -> None:
        """Encode and decode each sample's own tensors at each cut by the codecs named for it: bytes, ns, ns.

        Each is timed right after it was done once, as the mean of two times.
        """
        tensors = [sample.tensor for sample in self._samples]
        rows: list[tuple[int, int, int]] = []
        for cut, names in enumerate(values["codecs"]):
            if cut:
                block = self._executor.partition(cut - 1, cut, branch=False)
                tensors = [np.array(block(tensor).features) for tensor in tensors]
            for name in names:
                codec = self._codec(name, cut)
                for sample, tensor in zip(self._samples, tensors, strict=True):
                    encode = partial(codec.encode, tensor if cut else sample)
                    payload = encode()
                    encode_ns = _busy_ns(encode, times=2)
                    decode = partial(codec.decode, payload, self._shapes[cut])
                    decode()
                    rows.append((len(payload), encode_ns, _busy_ns(decode, times=2)))
            self._tell("progress", answered=cut + 1)
        self._tell("coded", [np.asarray(rows, dtype="<i8").tobytes()])

    def _on_time(self, values: dict[str, Any], _: list[bytes]) -> None:
        """Time partitions on the first sample's own tensors: each job (start, end, branch) in order, in bursts.

        Where a job has a partition ``before`` it, that one runs as often, untimed, after the pause.
        """
        gap_ns = int(1e9 * values["gap_s"])
        if values["fresh"]:
            self._timed.clear()
        times: list[int] = []
        for done, ((start, end, branch), before) in enumerate(zip(values["jobs"], values["before"], strict=True)):
            job = self._job(start, end, branch, before)
            if gap_ns:
                wait_until(time.monotonic_ns() + gap_ns)
            else:
                job.partition(job.tensor)
            times += self._burst_ns(job, int(values["burst"]))[0]
            if time.monotonic_ns() - self._told_ns > _PROGRESS_EVERY_NS:
                self._told_ns = time.monotonic_ns()
                self._tell("progress", answered=done)
        self._tell("timed", [np.asarray(times, dtype="<i8").tobytes()])

    def _job(self, start: int, end: int, branch: bool, before: Sequence[int] | None) -> _Job:
        """A partition to be timed, on the first sample's tensor, after the one before it if there is one."""
        ahead = None if before is None else partial(self._timeable(before[0], before[1], True), self._inputs(before[0]))
        return _Job(start, end, self._timeable(start, end, branch), self._inputs(start), ahead)

    def _burst_ns(self, job: _Job, burst: int) -> tuple[list[int], Tensor]:
        """Nanoseconds of each run of a burst, and what the last one gave."""
        if job.ahead is not None:
            for _ in range(burst):
                job.ahead()
        times = []
        for _ in range(burst):
            began = time.monotonic_ns()
            outcome = job.partition(job.tensor)
            times.append(time.monotonic_ns() - began)
        return times, outcome.features

    def _on_arm(self, values: dict[str, Any], _: list[bytes]) -> None:
        """Make what ``go``, or a probe with a job's number, will time: (start, end, before, takes, gives) each.

        Made beforehand, for that brings all that a job needs into the caches. A job that takes a codec decodes its
        input by it before the burst, one that gives by a codec encodes its output after it, as in a run, and again.
        """
        self._timed.clear()
        self._armed = [
            self._job(start, end, True, before)._replace(
                takes=self._codec(takes, start) if takes else None, gives=self._codec(gives, end) if gives else None
            )
            for start, end, before, takes, gives in values["jobs"]
        ]
        self._armed_burst = int(values["burst"])
        self._tell("ready")

    def _on_go(self, values: dict[str, Any], _: list[bytes]) -> None:
        """Time an armed job that no message wakes, after idling; what it takes by a codec comes from this tier."""
        job = self._armed[values["job"]]
        payload = b"" if job.takes is None else job.takes.encode(job.tensor if job.start else self._samples[0])
        began = wait_until(time.monotonic_ns() + int(1e9 * values["gap_s"]))
        if job.takes is not None:
            unpack_header(self._packed)  # as from its receipt
        self._time_armed(job, payload, began)

    def _on_send(self, values: dict[str, Any], _: list[bytes]) -> None:
        """Send the tensor of a cut, or (cut -1) nothing, to where a job is armed for it; that tier answers."""
        cut = int(values["cut"])
        payload = None
        if cut >= 0:
            codec = self._codec(values["codec"], cut)
            payload = codec.encode(self._inputs(cut) if cut else self._samples[0])
        self._post(int(values["to"]), "probe", 0, int(values["job"]), payload)

    def _time_armed(self, job: _Job, payload: Payload, began: int) -> None:
        """Decode, run and encode as in a run, and tell what it took: decoding began ``began``."""
        coding = [*_NOT_CODED, *_NOT_CODED]
        if job.takes is not None:
            took = self._decoded(job.takes, payload, job.start, began)[1] - began
            coding[:2] = self._first_and_busy_ns(took, partial(job.takes.decode, payload, self._shapes[job.start]))
        times, features = self._burst_ns(job, self._armed_burst)
        if job.gives is not None:
            began = time.monotonic_ns()
            took = self._encoded(job.gives, features, began)[1] - began
            coding[2:] = self._first_and_busy_ns(took, partial(job.gives.encode, features))
        self._tell("timed", [np.asarray(numbers, dtype="<i8").tobytes() for numbers in (times, coding)])

    def _timeable(self, start: int, end: int, branch: bool) -> Partition:
        """A partition to be timed, which ran once; kept for the next order."""
        partition = self._timed.get((start, end, branch))
        if partition is None:
            partition = self._timed[start, end, branch] = self._executor.partition(start, end, branch=branch)
            partition(self._inputs(start))
        return partition

    def _inputs(self, cut: int) -> Tensor:
        """Tensor of the first sample at a cut."""
        if cut not in self._tensors:
            whole = self._executor.partition(0, cut, branch=False) if cut else None
            tensor = self._samples[0].tensor
            self._tensors[cut] = tensor if whole is None else np.array(whole(tensor).features)
        return self._tensors[cut]

    def _on_collect(self, _: dict[str, Any], __: list[bytes]) -> None:
        gc.enable()
        tables: list[tuple[Sequence[Any], int]] = [(self._spans, 6), (self._starts, 2), (self._results, 4)]
        frames = [np.asarray(rows, dtype="<i8").reshape(-1, width).tobytes() for rows, width in tables]
        self._tell("report", frames, dropped=self.dropped)

    # -- data ----------------------------------------------------------------------------------

    def _receive(self) -> None:
        frames = [self._inbox.recv(copy=False)]
        while frames[-1].more:
            frames.append(self._inbox.recv(copy=False))
        received = time.monotonic_ns()
        try:
            header = unpack_header(bytes(frames[0].buffer))
            if header.run != self._run:
                raise MessageError(f"this is run {self._run}, but the message belongs to run {header.run}")
            self._dispatch(header, [frame.buffer for frame in frames[1:]], received)
        except (MessageError, PortendError) as error:
            self.dropped += 1
            print(f"dropped a message: {error}", file=sys.stderr, flush=True)

    def _dispatch(self, header: Header, payload: list[memoryview], received: int) -> None:
        if header.kind == "credit":
            self._credits += 1
            return
        if header.kind == "tensor":
            tensor = self._decode(header, payload, received)
            self._walk(header.request, header.step, tensor)
            return
        self._span(header.request, _TRANSFER, header.step, header.sent_ns, received)
        if header.kind == "probe":
            if not self._armed:
                self._probed(header.request, payload, received)
            elif not payload:
                self._tell("timed", [np.asarray([received - header.sent_ns], dtype="<i8").tobytes()])
            elif 0 <= header.step < len(self._armed):
                self._time_armed(self._armed[header.step], payload[0], received)
            else:
                raise MessageError(f"{len(self._armed)} jobs are armed, but got a message for number {header.step}")
            return
        end = self._slowed(received, partial(unpack_header, pack_header(header)))
        self._span(header.request, _DECODE, header.step, received, end)
        self._answer(header.request, header.exit_index, header.label)

    def _probed(self, request: int, payload: list[memoryview], received: int) -> None:
        """Decode a probe as it comes (step 0 of its spans) and again right after (step 1); then run the next block.

        So the next one finds caches as a receiver's that has computed since it last decoded.
        """
        cut, codec = self._probe
        work = partial(codec.decode, payload[0], self._shapes[cut]) if payload else partial(unpack_header, self._packed)
        if payload:
            work()
        once = time.monotonic_ns()
        self._span(request, _DECODE, 0, received, once)
        self._span(request, _DECODE, 1, once, once + _busy_ns(work))
        if self._executor.spec.num_blocks > cut:
            self._timeable(cut, cut + 1, False)(self._inputs(cut))

    def _decode(self, header: Header, payload: list[memoryview], received: int) -> Tensor:
        plan = self._deployed()
        if header.step not in plan.partitions or len(payload) != 1:
            here = ", ".join(str(step + 1) for step in plan.partitions) or "none"
            raise MessageError(f"of the plan's partitions {here} run here, but a tensor came for {header.step + 1}")
        codec = plan.codecs[header.step]
        if codec is None:
            raise MessageError(f"partition {header.step + 1} takes its tensor in process, but got a message")
        tensor, end = self._decoded(codec, payload[0], plan.cuts[header.step], received)
        self._span(header.request, _TRANSFER, header.step, header.sent_ns, received)
        self._span(header.request, _DECODE, header.step, received, end)
        return tensor

    def _decoded(self, codec: Codec, payload: Payload, cut: int, began: int) -> tuple[Tensor, int]:
        """The tensor of a message that came at ``began``, and when it is there on a device as slow as this tier."""
        shape = self._shapes[cut]
        tensor = codec.decode(payload, shape)
        return tensor, self._slowed(began, partial(codec.decode, payload, shape))

    def _encoded(self, codec: Codec, value: Tensor | Sample, began: int) -> tuple[Payload, int]:
        """What a message carries, and when it is there on a device as slow as this tier."""
        payload = codec.encode(value)
        return payload, self._slowed(began, partial(codec.encode, value))

    def _first_and_busy_ns(self, took_ns: int, work: Callable[[], object]) -> tuple[int, int]:
        """Nanoseconds of work on this machine, done once and right after, of which a slower device took ``took_ns``."""
        busy_ns = _busy_ns(work, times=3)
        return max(busy_ns, round(took_ns - (max(self._slowdown, 1.0) - 1) * busy_ns)), busy_ns

    def _walk(self, request: int, step: int, tensor: Tensor) -> None:
        """Run the partitions that follow each other on this tier, until the sample leaves or moves on."""
        plan = self._deployed()
        while True:
            began = time.monotonic_ns()
            outcome = plan.partitions[step](tensor)
            leaves = plan.leaves(step, outcome.score)
            ended = self._slowed(began, partial(plan.partitions[step], tensor))
            self._span(request, _COMPUTE, step, began, ended)
            if leaves:
                self._finish(request, step, outcome.label, outcome.score)
                return
            step, tensor = step + 1, outcome.features
            if plan.placement[step] != self.tier:
                self._pass_on(request, step, tensor)
                return

    def _pass_on(self, request: int, step: int, value: Tensor | Sample) -> None:
        codec = self._deployed().codecs[step]
        if codec is None:
            raise DeploymentError(f"partition {step + 1} is on another tier, but the plan names no codec for it")
        began = time.monotonic_ns()
        payload, ended = self._encoded(codec, value, began)
        self._span(request, _ENCODE, step, began, ended)
        self._post(self._deployed().placement[step], "tensor", request, step, payload)

    def _finish(self, request: int, exit_index: int, label: int, score: float) -> None:
        if self.tier == self._destination:
            self._answer(request, exit_index, label)
            return
        step = self._deployed().length
        self._post(self._destination, "result", request, step, None, exit_index=exit_index, label=label, score=score)

    def _post(self, to: int, kind: Any, request: int, step: int, payload: Any, **fields: Any) -> None:
        header = pack_header(Header(kind, self._run, request, step, time.monotonic_ns(), **fields))
        peer = self._peers[to]
        if payload is None:
            peer.send(header)
        else:
            peer.send(header, zmq.SNDMORE)
            peer.send(payload, copy=False)  # unless it is short

    def _answer(self, request: int, exit_index: int, label: int) -> None:
        """Destination only: the sample is answered; give its credit back to the source."""
        now = time.monotonic_ns()
        self._results.append((request, exit_index, label, now))
        done = len(self._results)
        if done == self._expected:
            self._tell("done", answered=done)
        elif now - self._told_ns > _PROGRESS_EVERY_NS:
            self._told_ns = now
            self._tell("progress", answered=done)
        if self.tier == self._source:
            self._credits += 1
        else:
            self._post(self._source, "credit", request, 0, None)

    def _may_feed(self) -> bool:
        return bool(self._credits and self._pending)

    def _feed(self) -> None:
        """Source only: spend a credit on one sample."""
        self._credits -= 1
        if self._gap_ns:
            wait_until(time.monotonic_ns() + self._gap_ns)
        index = self._pending.popleft()
        request = len(self._starts)
        sample = self._samples[index]
        self._starts.append((index, time.monotonic_ns()))
        if self._deployed().placement[0] != self.tier:
            self._pass_on(request, 0, sample)
        else:
            self._walk(request, 0, self._take_in(request, sample))

    def _take_in(self, request: int, sample: Sample) -> Tensor:
        """Hand a sample to the source's own tier: in process, or encoded and decoded as by message."""
        codec = self._deployed().codecs[0]
        if not self._ingest_by_message or codec is None:
            return sample.tensor
        began = time.monotonic_ns()
        payload = codec.encode(sample)
        encoded = self._slowed(began, partial(codec.encode, sample))
        tensor = codec.decode(payload, self._shapes[0])
        self._span(request, _ENCODE, 0, began, encoded)
        self._span(request, _DECODE, 0, encoded, self._slowed(encoded, partial(codec.decode, payload, self._shapes[0])))
        return tensor

    def _deployed(self) -> Deployed:
        if self._plan is None:
            raise MessageError("no plan is deployed here yet")
        return self._plan

    def _slowed(self, began: int, work: Callable[[], object]) -> int:
        """Make the work that began then, and has just been done once, take as long as on a slower device.

        A device that is ``slowdown`` times slower does the same work that many times: so it is
        repeated, and what is left of a fraction is waited for. While several samples are under way
        the tiers would take this machine's cores from each other, so then it is only waited for.
        Returns the clock in ns.
        """
        now = time.monotonic_ns()
        if not self._alone:
            return wait_until(began + int((now - began) * self._slowdown))
        took = now - began
        for _ in range(int(self._slowdown) - 1):
            before, _, now = now, work(), time.monotonic_ns()
            took = now - before
        return wait_until(now + int((self._slowdown % 1) * took)) if self._slowdown > 1 else now

    def _span(self, request: int, kind: int, step: int, start: int, end: int) -> None:
        self._spans.append((request, kind, step, self.tier, start, end))


@click.command()
@click.option("--tier", type=int, required=True, help="Index of the tier that this agent runs.")
@click.option("--control", required=True, help="Endpoint of the coordinator, such as tcp://127.0.0.1:7000.")
@click.option("--listen", default="127.0.0.1", show_default=True, help="Address to take data messages on.")
@click.option(
    "--allow-code", multiple=True, metavar="MODULE:OBJECT", help="Code that a checkpoint may name; imported and run."
)
def main(tier: int, control: str, listen: str, allow_code: tuple[str, ...]) -> None:
    """Run the agent of one tier until the coordinator stops it."""
    Agent(tier, control, listen, allow_code).serve()


if __name__ == "__main__":
    main()
