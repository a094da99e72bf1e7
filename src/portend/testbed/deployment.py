"""Starts the agents of a topology, deploys plans on them, and measures.

The coordinator alone knows the labels. It gives each agent its orders over one ZeroMQ socket and
collects raw spans after a run; during a run it only listens. Between agents the messages cross
emulated links (``portend.testbed.emulation``), which orders never do.
"""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final

import numpy as np
import zmq
from numpy.typing import ArrayLike, NDArray

from portend.address import is_loopback
from portend.data.decoding import InputDecoder
from portend.errors import DeploymentError, InvalidValue, MismatchError, choice
from portend.runtime.protocol import pack_control, unpack_control
from portend.testbed.emulation.base import Emulation
from portend.testbed.emulation.choose import make_emulation
from portend.testbed.watch import Counters, Disturbance, count
from portend.values.codecs import ValueRange
from portend.values.execution import Execution
from portend.values.measurement import SPAN_KINDS, Measurement
from portend.values.plan import CODECS, CRITERIA, Plan
from portend.values.topology import Topology

__all__ = ["Deployment"]

Progress = Callable[[int, int], None]

_STEP_MS: Final = 200
_STOP_S: Final = 2.0
_SMALL_BYTES: Final = 200
"""A message without a tensor, or what one has besides it."""


class Deployment:
    """Agents of a topology, started as processes of this machine; a context manager.

    Args:
        network: its file, a checkpoint or what ``portend export`` made of one; for tiers whose executor is
            onnxruntime a checkpoint is exported first, to a file beside it.
        decoder: how a sample's own bytes become its tensor.
        executions: what runs the partitions, by tier; empty: eager PyTorch on one thread everywhere.
        criterion: of the scores that the agents compute; a plan whose exits need another is refused.
        emulation: what messages cross: ``relay``, ``namespaces``, ``none``, or one of your own making that was not
            entered yet (``portend.testbed.emulation.base``).
        port: of the control socket on the loopback interface (0: any free one); agents in namespaces have none.
        patience_s: longest silence that is not a failure, besides twice what messages take over the links.
        allow_code: ``module:object`` that the checkpoint may name; the agents import and run them.
        ranges: of the values at cuts, for int8; ``dict(enumerate(profile.ranges))``.

    Raises:
        DeploymentError: a port is in use, an agent does not start, dies, or falls silent.
    """

    def __init__(
        self,
        topology: Topology,
        network: str | Path,
        decoder: InputDecoder,
        *,
        executions: Sequence[Execution] = (),
        criterion: str = "entropy",
        emulation: str | Emulation = "relay",
        port: int = 0,
        patience_s: float = 60.0,
        allow_code: Collection[str] = (),
        ranges: Mapping[int, ValueRange] = MappingProxyType({}),
    ) -> None:
        remote = sorted({tier.host for tier in topology.tiers if not is_loopback(tier.host)})
        choice("a criterion", criterion, CRITERIA)
        if remote:
            raise DeploymentError(
                f"agents run as processes of this machine, but the topology names the hosts {remote}; "
                "leave `host` out, or set it to 127.0.0.1"
            )
        fast = [tier.name for tier in topology.tiers if tier.slowdown < 1]
        if fast:
            raise DeploymentError(
                f"this machine cannot run tiers faster than itself, but {fast} have a slowdown below 1; "
                "raise all slowdowns by one factor"
            )
        count = len(topology.tiers)
        if len(executions) not in (0, count):
            raise InvalidValue(f"each of the {count} tiers has its execution, or none has, but got {len(executions)}")
        self.topology = topology
        self._file = Path(network)
        self._executions = tuple(executions) or (Execution(),) * count
        self._decoder, self._criterion = decoder, criterion
        if isinstance(emulation, str):
            emulation = make_emulation(emulation, topology)
        elif emulation.topology != topology:
            raise MismatchError(
                f"the emulation is of {emulation.topology.name!r}, but the deployment of {topology.name!r}; "
                "make both from one topology"
            )
        if port and emulation.isolated:
            raise InvalidValue(
                f"agents in namespaces take orders from a socket in the file system, but got port {port}; leave it out"
            )
        self._emulation = emulation
        self._port = port
        compiles = any(execution.executor == "torch-compiled" for execution in self._executions)
        self._patience_s = 10 * patience_s if compiles else patience_s
        self._allow_code = tuple(allow_code)
        self._ranges = dict(ranges)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._cleanup = contextlib.ExitStack()
        self._labels: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._plan: Plan | None = None
        self._runs = 0
        self._largest_sample = 0
        self.endpoints: dict[int, str] = {}
        """Where each agent takes data messages, host:port by tier."""

    # -- life ----------------------------------------------------------------------------------

    def __enter__(self) -> Deployment:
        if not self._file.is_file():
            raise DeploymentError(f"there is no network file {self._file}; make one with `portend train`")
        try:
            self._start()
        except BaseException:
            self._cleanup.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.__exit__(kind, error, trace)

    def _start(self) -> None:
        files = [self._file_for(execution) for execution in self._executions]
        context = zmq.Context()
        self._cleanup.callback(context.destroy, linger=0)
        self._socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.set_hwm(0)
        self._logs = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="portend-")))
        own = f"ipc://{self._logs}/control" if self._emulation.isolated else f"tcp://127.0.0.1:{self._port or '*'}"
        try:
            self._socket.bind(own)
        except zmq.ZMQError as error:
            raise DeploymentError(
                f"port {self._port} of 127.0.0.1 cannot be used ({error}); choose another one, or 0 for any free one"
                if own.startswith("tcp")
                else f"{own} cannot be used ({error}); set TMPDIR to a folder with a shorter name"
            ) from None
        self._cleanup.enter_context(self._emulation)
        self._cleanup.callback(self._stop_agents)
        control = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        for index in range(len(self.topology.tiers)):
            self._processes[index] = self._spawn(index, control)
        self.endpoints = {tier: str(values["endpoint"]) for tier, (values, _) in self._await("hello").items()}
        reach = self._emulation.reach(self.endpoints)
        for index, tier in enumerate(self.topology.tiers):
            self._tell(
                index,
                "setup",
                slowdown=tier.slowdown,
                source=self.topology.source,
                destination=self.topology.destination,
                ingest=self.topology.ingest,
                network=str(files[index].resolve()),
                execution=asdict(self._executions[index]),
                decoder=self._decoder.to_dict(),
                criterion=self._criterion,
                ranges={str(cut): limits.to_dict() for cut, limits in self._ranges.items()},
                peers={str(peer): reach[index, peer] for peer in self.endpoints if peer != index},
            )
        ready, _ = self._await("ready")[self.topology.source]
        self._cut_bytes = [int(size) for size in ready["cut_bytes"]]
        self._network = {key: str(ready[key]) for key in ("network", "weights_sha256")}

    def _file_for(self, execution: Execution) -> Path:
        """Return the file that an executor reads the network from."""
        if execution.executor != "onnxruntime" or self._file.suffix == ".onnx":
            return self._file
        from portend.networks.exporting import exported  # imports PyTorch

        return exported(self._file, allow_code=self._allow_code)

    def _spawn(self, tier: int, control: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "portend.testbed.agent", "--tier", str(tier), "--control", control]
        command += ["--listen", self._emulation.host(tier)]
        command += [word for name in self._allow_code for word in ("--allow-code", name)]
        threads = str(self._executions[tier].threads)
        with (self._logs / f"{tier}.log").open("wb") as log:
            return self._emulation.start(
                tier,
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches the coordinator alone, which then stops its agents
                env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            )

    def _stop_agents(self) -> None:
        for tier, process in self._processes.items():
            if process.poll() is None:
                self._tell(tier, "stop")
        deadline = time.monotonic() + _STOP_S
        for process in self._processes.values():
            if process.stdin:
                process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            if process.poll() is None:
                process.kill()
                process.wait()

    # -- talk ----------------------------------------------------------------------------------

    def _tell(self, tier: int, command: str, frames: Iterable[bytes] = (), **values: Any) -> None:
        self._socket.send_multipart([str(tier).encode(), pack_control(command, **values), *frames])

    def _await(
        self,
        command: str,
        tiers: Iterable[int] | None = None,
        on_other: Callable[[dict[str, Any]], None] | None = None,
        way_s: float = 0.0,
    ) -> dict[int, tuple[dict[str, Any], list[bytes]]]:
        """Wait until each of the tiers (default: all) has sent ``command``; messages on their way take ``way_s``."""
        patience_s = self._patience_s + 2 * way_s
        waiting = set(self._processes if tiers is None else tiers)
        replies: dict[int, tuple[dict[str, Any], list[bytes]]] = {}
        heard = time.monotonic()
        while waiting - replies.keys():
            if not self._socket.poll(_STEP_MS):
                self._check_alive()
                if time.monotonic() - heard > patience_s:
                    names = [self._name(tier) for tier in sorted(waiting - replies.keys())]
                    raise DeploymentError(
                        f"no word from {', '.join(names)} for {patience_s:.3g} s ({command} was due; what is "
                        f"under way takes {way_s:.3g} s over these links){self._last_words()}"
                    )
                continue
            heard = time.monotonic()
            sender, header, *frames = self._socket.recv_multipart()
            values = unpack_control(header)
            tier = int(sender)
            if values["command"] == "error":
                raise DeploymentError(f"the agent of {self._name(tier)} reports: {values.get('message')}")
            if values["command"] == command:
                replies[tier] = (values, frames)
            elif on_other:
                on_other(values)
        return replies

    def _check_alive(self) -> None:
        for tier, process in self._processes.items():
            if process.poll() is not None:
                raise DeploymentError(
                    f"the agent of {self._name(tier)} ended with exit code {process.returncode}{self._last_words(tier)}"
                )
        self._emulation.check()

    def _last_words(self, *tiers: int) -> str:
        """The last line that each of the agents (default: all) logged, as a part of a sentence."""
        said = []
        for tier in tiers or self._processes:
            lines = (self._logs / f"{tier}.log").read_text(errors="replace").strip().splitlines()
            said += [f"; {self._name(tier)} said last: {lines[-1]}"] if lines else []
        return "".join(said)

    def _name(self, tier: int) -> str:
        return f"tier {self.topology.tiers[tier].name!r}"

    # -- work ----------------------------------------------------------------------------------

    @property
    def agent_pids(self) -> tuple[int, ...]:
        """Process ids of the agents, by tier."""
        return tuple(process.pid for process in self._processes.values())

    def count(self) -> Counters | None:
        """Read what this machine's cores did so far, for everything and for this deployment (``runtime.watch``)."""
        taking_part = (os.getpid(), *self.agent_pids, *self._emulation.pids)
        return count(taking_part, self.agent_pids, time.monotonic())

    def load_samples(self, encoded: Sequence[bytes], labels: ArrayLike) -> None:
        """Give the source tier its samples, without their labels, which stay here.

        The other tiers get the first sample, on which they can time partitions.
        """
        self._labels = np.asarray(labels, dtype=np.int64)
        if len(encoded) != len(self._labels) or not len(encoded):
            raise InvalidValue(
                f"each sample has one label, but got {len(encoded)} samples and {len(self._labels)} labels"
            )
        self._largest_sample = max(map(len, encoded))
        for tier in self._processes:
            self._tell(tier, "samples", encoded if tier == self.topology.source else encoded[:1])
        self._await("ready")

    def deploy(self, plan: Plan) -> None:
        """Load the plan's partitions on their tiers and run each once.

        Raises:
            InvalidValue: the plan names a tier that does not exist, not the codec that a hop needs, int8 at a cut
                whose range is not known, or thresholds for another criterion than the deployment's.
            DeploymentError: an agent cannot load its partitions.
        """
        if max(plan.placement) >= len(self.topology.tiers):
            raise InvalidValue(
                f"the topology has {len(self.topology.tiers)} tiers, but the plan places on {plan.placement}"
            )
        if not plan.codecs:
            raise InvalidValue(
                "a plan that runs names a codec for each hop; complete it with PerformanceModel.complete"
            )
        if plan.asks and plan.criterion != self._criterion:
            raise InvalidValue(
                f"the agents score by {self._criterion}, but the plan's thresholds are for {plan.criterion}; "
                "start the deployment with the plan's criterion"
            )
        senders = (self.topology.source, *plan.placement[:-1])
        for step, (sender, tier, codec) in enumerate(zip(senders, plan.placement, plan.codecs, strict=True)):
            by_message = sender != tier or (step == 0 and self.topology.ingest == "message")
            usable = tuple(name for name in CODECS if step == 0 or name != "encoded")
            if by_message and codec not in usable:
                raise InvalidValue(
                    f"partition {step + 1} takes its tensor by one of the codecs {', '.join(usable)}, "
                    f"but the plan says {codec!r}"
                )
            cut = (0, *plan.cuts)[step]
            if codec is not None and codec.startswith("int8") and cut not in self._ranges:
                raise InvalidValue(
                    f"partition {step + 1} takes its tensor by {codec}, but the deployment has no range of the values "
                    f"at cut {cut}; give it the ranges of the profile that the plan was made with"
                )
        for tier in self._processes:
            self._tell(tier, "deploy", plan=plan.to_dict())
        self._await("ready")
        self._plan = plan

    def run(
        self,
        samples: Sequence[int] | None = None,
        *,
        window: int = 1,
        gap_s: float = 0.0,
        warmup: int = 3,
        on_progress: Progress | None = None,
    ) -> Measurement:
        """Run the deployed plan over samples (default: all that were loaded) and return the raw traces.

        Args:
            window: samples under way at once. 1 measures latency on an idle system; more measure
                throughput under backpressure.
            gap_s: idle time before each sample enters, as between the frames of a sparse source.
            warmup: requests before those that count, to warm connections and caches.
            on_progress: called with (answered, total) a few times a second.
        """
        if self._plan is None or not len(self._labels):
            raise DeploymentError("nothing to run yet; call load_samples and deploy first")
        if window < 1:
            raise InvalidValue(f"at least one sample is under way, but got window {window}")
        if window > 1 and gap_s > 0:
            raise InvalidValue(
                f"idle time between samples needs one sample under way at a time, but got window {window} and "
                f"gap {gap_s} s; set one of them to its least"
            )
        chosen = np.arange(len(self._labels)) if samples is None else np.asarray(samples, dtype=np.int64)
        if chosen.size == 0 or chosen.min() < 0 or chosen.max() >= len(self._labels):
            raise InvalidValue(f"samples are numbered 0–{len(self._labels) - 1} and there is at least one")
        if warmup:
            self._round(np.resize(chosen, warmup), window, gap_s, None)
        self._emulation.rewind()
        before = self.count()
        reports = self._round(chosen, window, gap_s, on_progress)
        found = Disturbance.between(before, self.count())
        circumstances = self._emulation.facts() | ({} if found is None else found.facts())
        return self._measurement(self._plan, reports, window, gap_s, circumstances)

    def _round(
        self, chosen: NDArray[np.int64], window: int, gap_s: float, on_progress: Progress | None
    ) -> dict[int, dict[str, NDArray[np.int64]]]:
        total = int(chosen.size)
        self._begin(expected=total, window=window)
        self._tell(self.topology.source, "feed", samples=chosen.tolist(), window=window, gap_s=gap_s)

        def tell(values: dict[str, Any]) -> None:
            if on_progress and values["command"] == "progress":
                on_progress(int(values["answered"]), total)

        assert self._plan is not None  # run checks it
        way_s = window * self._way_s(self._plan)
        self._await("done", [self.topology.destination], tell, way_s)
        if on_progress:
            on_progress(total, total)
        return {tier: self._collect(tier) for tier in self._processes}

    def _way_s(self, plan: Plan) -> float:
        """Seconds that a sample's messages take over the links at most: its tensors uncompressed, and its result."""
        senders, tier = (self.topology.source, *plan.placement[:-1]), plan.placement[-1]
        hops = [(a, b, start) for a, b, (start, _) in zip(senders, plan.placement, plan.partitions, strict=True)]
        seconds = sum(self._hop_s(a, b, self._message_bytes(cut)) for a, b, cut in hops)
        back = ((tier, self.topology.destination), (self.topology.destination, self.topology.source))
        return seconds + sum(self._hop_s(a, b, _SMALL_BYTES) for a, b in back)

    def _hop_s(self, sender: int, receiver: int, size: int) -> float:
        topology = self.topology
        return float(topology.transmission_s(size)[sender, receiver] + topology.propagation_s()[sender, receiver])

    def _message_bytes(self, cut: int) -> int:
        """Bytes of a message at a cut at most; -1: of a result."""
        if cut < 0:
            return _SMALL_BYTES
        return _SMALL_BYTES + max(self._cut_bytes[cut], 0 if cut else self._largest_sample)

    def _measurement(
        self,
        plan: Plan,
        reports: dict[int, dict[str, NDArray[np.int64]]],
        window: int,
        gap_s: float,
        circumstances: dict[str, str],
    ) -> Measurement:
        starts = reports[self.topology.source]["starts"]
        results = reports[self.topology.destination]["results"]
        results = results[np.argsort(results[:, 0], kind="stable")]
        if not np.array_equal(results[:, 0], np.arange(len(starts))):
            raise DeploymentError(
                f"{len(starts)} samples were sent, but the answers are for {len(np.unique(results[:, 0]))}"
            )
        spans = np.concatenate([report["spans"] for report in reports.values()])
        spans = spans[np.lexsort((spans[:, 4], spans[:, 0]))]
        begin = starts[spans[:, 0], 1]
        return Measurement(
            plan=plan,
            topology=self.topology,
            sample=starts[:, 0],
            exit_index=results[:, 1],
            label=results[:, 2],
            correct=results[:, 2] == self._labels[starts[:, 0]],
            start_s=np.asarray((starts[:, 1] - starts[0, 1]) * 1e-9),
            latency_s=np.asarray((results[:, 3] - starts[:, 1]) * 1e-9),
            span_request=spans[:, 0],
            span_kind=spans[:, 1],
            span_step=spans[:, 2],
            span_tier=spans[:, 3],
            span_start_s=(spans[:, 4] - begin) * 1e-9,
            span_end_s=(spans[:, 5] - begin) * 1e-9,
            provenance={
                **self._network,
                "links": self._emulation.label,
                "window": str(window),
                "gap_s": str(gap_s),
                **{f"tier {t.name}": str(e) for t, e in zip(self.topology.tiers, self._executions, strict=True)},
                "machine": platform.platform(),
                **circumstances,
                "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            },
        )

    def time_partitions(
        self,
        tier: int,
        jobs: Sequence[tuple[int, int, bool]],
        *,
        before: Sequence[tuple[int, int] | None] = (),
        burst: int = 1,
        gap_s: float = 0.0,
        fresh: bool = True,
        on_progress: Progress | None = None,
    ) -> NDArray[np.float64]:
        """Seconds of each job (start, end, branch) in the given order, run ``burst`` times, [jobs, burst].

        With ``gap_s`` the agent idles that long before each job; without, it runs each once more
        before it is timed, so that it finds its caches as a busy device does. ``before``: for each job
        the partition (start, end) that runs untimed, as often, between the pause and it, or None. It forgets
        the partitions that it made for an earlier call unless ``fresh`` is False.
        """
        self._begin(expected=0)
        ahead = [None if pair is None else list(pair) for pair in before or (None,) * len(jobs)]
        self._tell(tier, "time", jobs=[list(job) for job in jobs], before=ahead, burst=burst, gap_s=gap_s, fresh=fresh)

        def tell(values: dict[str, Any]) -> None:
            if on_progress:
                on_progress(int(values["answered"]), len(jobs))

        _, frames = self._await("timed", [tier], tell)[tier]
        return 1e-9 * np.frombuffer(frames[0], dtype="<i8").reshape(len(jobs), -1)

    def arm(
        self, jobs: Mapping[int, Sequence[tuple[int, int, int | None, str | None, str | None]]], bursts: Sequence[int]
    ) -> None:
        """Have each tier make what ``time_armed`` will time there, in bursts of as many runs, by tier.

        Args:
            jobs: by tier, (start, end, before, takes, gives): the partition between two cuts, with its branch; the cut
                where the one begins that runs as often ahead of it; the codecs by which its input comes and its output
                goes. None where there is none.
        """
        self._begin(expected=0)
        for tier, mine in jobs.items():
            listed = [[start, end, None if at is None else [at, start], *codecs] for start, end, at, *codecs in mine]
            self._tell(tier, "arm", jobs=listed, burst=bursts[tier])
        self._await("ready", jobs)

    def time_armed(
        self, tier: int, job: int, *, sender: int | None = None, cut: int = 0, codec: str = "", gap_s: float = 0.0
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Seconds of a job's burst, and [4] to decode its input and to encode its output, once and right after; else 0.

        Where there is a ``sender``, it sends the tensor of the ``cut`` by the ``codec`` at once, and that wakes the
        tier; otherwise it idles ``gap_s`` before.
        """
        if sender is None:
            self._tell(tier, "go", job=job, gap_s=gap_s)
        else:
            self._tell(sender, "send", to=tier, job=job, cut=cut, codec=codec)
        way_s = 0.0 if sender is None else self._hop_s(sender, tier, self._message_bytes(cut))
        _, frames = self._await("timed", [tier], way_s=way_s)[tier]
        seconds, coding = (1e-9 * np.frombuffer(frame, dtype="<i8") for frame in frames[:2])
        return seconds, coding

    def time_empty(self, sender: int, receiver: int) -> float:
        """Seconds from the sending to the receipt of a message without a tensor, after ``arm``."""
        self._tell(sender, "send", to=receiver, job=0, cut=-1, codec="")
        way_s = self._hop_s(sender, receiver, _SMALL_BYTES)
        _, frames = self._await("timed", [receiver], way_s=way_s)[receiver]
        return float(1e-9 * np.frombuffer(frames[0], dtype="<i8")[0])

    def time_codecs(
        self, tier: int, codecs: Sequence[Sequence[str]], *, samples: int, on_progress: Progress | None = None
    ) -> NDArray[np.int64]:
        """Bytes, ns to encode and ns to decode of each sample's tensor, [codecs of all cuts, samples, 3].

        Args:
            codecs: names for each cut from 0 on; samples: how many the tier has loaded.
        """
        self._begin(expected=0)
        self._tell(tier, "codecs", codecs=[list(names) for names in codecs])

        def tell(values: dict[str, Any]) -> None:
            if on_progress:
                on_progress(int(values["answered"]), len(codecs))

        _, frames = self._await("coded", [tier], tell)[tier]
        return np.frombuffer(frames[0], dtype="<i8").reshape(-1, samples, 3).astype(np.int64)

    def probe(
        self, sender: int, receiver: int, cut: int, codec: str, *, count: int, gap_s: float
    ) -> dict[str, NDArray[np.float64]]:
        """Send ``count`` messages of a cut (-1: results), ``gap_s`` apart.

        Returns seconds [count] of ``encode``, ``transfer``, ``decode``, and of ``encode busy`` and
        ``decode busy``: the same work right after, the mean of up to 20 times.
        """
        self._begin(expected=count + 1)
        self._tell(receiver, "expect", cut=max(cut, 0), codec=codec)
        self._await("ready", [receiver])
        self._tell(sender, "probe", to=receiver, cut=cut, codec=codec, count=count, gap_s=gap_s)
        self._await("ready", [sender])
        way_s = count * self._hop_s(sender, receiver, self._message_bytes(cut))
        deadline = time.monotonic() + self._patience_s + 2 * way_s
        while True:
            spans = np.concatenate([self._collect(tier)["spans"] for tier in (sender, receiver)])
            seconds = (spans[:, 5] - spans[:, 4]) * 1e-9
            found = {
                kind + (" busy" if busy else ""): seconds[(spans[:, 1] == index) & (spans[:, 2] == busy)]
                for index, kind in enumerate(SPAN_KINDS)
                for busy in (0, 1)
            }
            if len(found["decode busy"]) >= count:
                return found
            if time.monotonic() > deadline:
                raise DeploymentError(f"{count} probes were sent, but {len(found['decode busy'])} arrived")
            time.sleep(0.02)

    def _begin(self, *, expected: int, window: int = 1) -> None:
        self._runs += 1
        for tier in self._processes:
            self._tell(tier, "begin", run=self._runs, expected=expected, window=window)
        self._await("ready")

    def _collect(self, tier: int) -> dict[str, NDArray[np.int64]]:
        self._tell(tier, "collect")
        return _tables(self._await("report", [tier])[tier][1])


def _tables(frames: list[bytes]) -> dict[str, NDArray[np.int64]]:
    widths = {"spans": 6, "starts": 2, "results": 4}
    return {
        name: np.frombuffer(frame, dtype="<i8").reshape(-1, width).astype(np.int64)
        for (name, width), frame in zip(widths.items(), frames, strict=True)
    }
