"""Agents as real processes, as `portend agent` starts them, for tests and benchmarks of the service."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np
import onnx

from portend.data.decoding import ImageDecoder, InputDecoder
from portend.data.encodings import png
from portend.networks.onnxfile import OnnxNetwork
from portend.runtime.executor import Outcome
from portend.runtime.executors import make_executor
from portend.service.intake import Answer
from portend.service.operator import Agents, Submitter
from portend.service.release import MOST_PLANS, Limits, Release
from portend.values.backbone import BackboneSpec
from portend.values.execution import Execution
from portend.values.plan import CRITERIA, Plan, takes_exit
from portend.values.topology import Link, Tier, Topology

NAMES = ("edge", "base", "cloud")


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class Hosts:
    """One agent process for each tier, with ports and state folders of their own; a context manager.

    Attributes:
        topology: says where the agents are reached; ``through`` may put something before one of them.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str] = NAMES,
        *,
        keys: Path | None = None,
        through: dict[str, int] | None = None,
    ) -> None:
        self.folder, self.names, self.keys = folder, tuple(names), keys
        ports = free_ports(2 * len(names))
        self.listen = dict(zip(names, ports, strict=False))
        self.http = dict(zip(names, ports[len(names) :], strict=True))
        reached = self.listen | (through or {})
        self.topology = Topology(
            name="hosts",
            tiers=tuple(Tier(name=name, device="local", port=reached[name]) for name in names),
            links=(Link(bandwidth_bps=1e9, propagation_delay_s=0.0),) * (len(names) - 1),
        )
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.within: list[str] = []
        self.environment: dict[str, str] = {}

    def __enter__(self) -> Self:
        for name in self.names:
            self.start(name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()

    def keys_of(self, name: str) -> Path:
        """The folder of an agent's keys: its own, if there is one."""
        assert self.keys is not None
        own = self.keys / f"keys-{name}"
        return own if own.is_dir() else self.keys

    def command(self, name: str, *more: str) -> list[str]:
        secured = ["--plain"] if self.keys is None else ["--keys", str(self.keys_of(name))]
        return [
            sys.executable, "-m", "portend.cli.app", "agent", "--name", name, "--listen",
            f"tcp://127.0.0.1:{self.listen[name]}", "--state", str(self.folder / name), "--http",
            f"127.0.0.1:{self.http[name]}", *secured, *more,
        ]  # fmt: skip

    def start(self, name: str, *more: str) -> None:
        """Start the agent; ``within`` and ``environment`` say by which command, and with which variables."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*self.within, *self.command(name, *more)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1", **self.environment},
            )  # fmt: skip

    @contextlib.contextmanager
    def limited(self, name: str, what: int, most: int) -> Iterator[None]:
        """Give a running agent less of a resource (``resource.RLIMIT_*``) within the context."""
        pid = self.processes[name].pid
        soft, hard = resource.prlimit(pid, what)
        resource.prlimit(pid, what, (most, hard))
        try:
            yield
        finally:
            resource.prlimit(pid, what, (soft, hard))

    def descriptors(self, name: str, free: int) -> int:
        """The limit of file descriptors that leaves an agent so many."""
        folder, looks = Path(f"/proc/{self.processes[name].pid}/fd"), []
        for _ in range(10):
            looks.append({int(each.name) for each in folder.iterdir()})
            time.sleep(0.05)
        used = set.intersection(*looks)  # without those that were open for a moment
        return next(most for most in range(4096) if most - len([fd for fd in used if fd < most]) >= free)

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        """Send a signal that ends the agent; return its exit code."""
        self.processes[name].send_signal(number)
        return self.processes[name].wait(60)

    def send(self, name: str, number: int) -> None:
        self.processes[name].send_signal(number)

    def metric(self, name: str, sample: str) -> float:
        """What an agent's metrics say now, by the whole name of a sample; 0 where they lack it."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http[name]}/metrics", timeout=60) as page:
            lines = page.read().decode().splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(f"{sample} ")), 0.0)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()


@dataclass(frozen=True)
class Workload:
    """A small network of ten classes whose samples leave at all exits, samples for it, and plans over three tiers.

    Attributes:
        plans: over all three tiers, then without the cloud, without the base, and on the edge alone.
    """

    network: Path
    decoder: InputDecoder
    samples: tuple[bytes, ...]
    plans: tuple[Plan, ...]

    def release(
        self,
        agents: Agents,
        plans: Sequence[Plan] | None = None,
        batches: Sequence[int] = (),
        exit_counts: Sequence[Any] = (),
        **limits: Any,
    ) -> Release:
        execution = Execution(executor="onnxruntime")
        count = len(agents.topology.tiers)
        return agents.deploy(
            self.plans if plans is None else plans, [self.network] * count, self.decoder,
            executions=[execution] * count, batches=batches, exit_counts=exit_counts, limits=Limits(**limits),
        )  # fmt: skip

    @functools.cached_property
    def exits(self) -> dict[int, list[Outcome]]:
        """What an exit after each cut says of each sample: the network from its start to there, in this process."""
        executor = make_executor(self.network, Execution(executor="onnxruntime"))
        tensors = [self.decoder.decode(sample) for sample in self.samples]
        cuts = {cut for plan in self.plans for cut in plan.cuts}
        return {cut: list(map(executor.partition(0, cut, branch=True), tensors)) for cut in cuts}

    def expected(self, plan: Plan, index: int) -> tuple[int, int]:
        """Label and exit of a sample by a plan, without a service."""
        for place, cut in enumerate(plan.cuts):
            found = self.exits[cut][index]
            if place == len(plan.thresholds) or takes_exit(found.score, plan.thresholds[place]):
                return found.label, place
        raise AssertionError("the last exit takes every sample")


CLASSES, CHANNELS, SIDE, BLOCKS, WIDE = 10, 8, 16, 4, 128


def make_workload(folder: Path, samples: int = 40, *, heavy: int = 0) -> Workload:
    """Write the network's file to a folder; return it with what it needs.

    ``heavy``: convolutions of 128 channels in the last block, each of about 80 million multiplications and additions.
    """
    decoder = ImageDecoder(channels=1, size=SIDE, mean=(0.5,), std=(0.5,))
    path = folder / "net.onnx"
    rng = np.random.default_rng(7)
    _network(rng, {"decoder": json.dumps(decoder.to_dict())}, heavy).save(path)
    pictures = tuple(_picture(rng) for _ in range(samples))
    executor = make_executor(path, Execution(executor="onnxruntime"))

    def threshold(cut: int) -> float:
        """About half of the samples leave there."""
        partition = executor.partition(0, cut, branch=True)
        return float(np.median([partition(decoder.decode(picture)).score for picture in pictures]))

    first, second = threshold(1), threshold(2)
    return Workload(
        network=path,
        decoder=decoder,
        samples=pictures,
        plans=(
            Plan(cuts=(1, 2, 4), placement=(0, 1, 2), thresholds=(first, second), codecs=(None, "float32", "float32")),
            Plan(cuts=(1, 4), placement=(0, 1), thresholds=(first,), codecs=(None, "float32")),
            Plan(cuts=(1, 4), placement=(0, 2), thresholds=(first,), codecs=(None, "float32")),
            Plan(cuts=(4,), placement=(0,), codecs=(None,)),
        ),
    )


def _picture(rng: np.random.Generator) -> bytes:
    waves = np.outer(*(np.sin(rng.uniform(0.1, 2) * np.arange(SIDE) + rng.uniform(0, 6)) for _ in range(2)))
    return png(np.uint8(127 + 120 * waves))


def _network(rng: np.random.Generator, provenance: dict[str, str], heavy: int) -> OnnxNetwork:
    """Convolutions with an exit branch after each, with random weights: made in milliseconds, without PyTorch."""
    nodes, outputs, weights = [], [], {}
    for cut in range(1, BLOCKS + 1):
        inputs, before = 1 if cut == 1 else CHANNELS, f"cut_{cut - 1}"
        if cut == BLOCKS and heavy:
            for name, ends in (("in", (WIDE, CHANNELS)), ("on", (WIDE, WIDE)), ("out", (CHANNELS, WIDE))):
                weights[f"w_{name}"] = rng.normal(0, 1 / np.sqrt(9 * ends[1]), (*ends, 3, 3))
            for number, name in enumerate(["in", *["on"] * heavy, "out"]):
                nodes.append(f"x{number} = Conv<pads = [1, 1, 1, 1]>({before}, w_{name}) t{number} = Tanh(x{number})")
                before = f"t{number}"
        weights[f"w{cut}"] = rng.normal(0, 1 / np.sqrt(9 * inputs), (CHANNELS, inputs, 3, 3))
        weights[f"b{cut}"] = rng.normal(0, 0.2, CHANNELS)
        weights[f"h{cut}"] = rng.normal(0, 6, (CHANNELS, CLASSES))
        nodes.append(f"""
            c{cut} = Conv<pads = [1, 1, 1, 1]>({before}, w{cut}, b{cut})
            cut_{cut} = Tanh(c{cut})
            g{cut} = GlobalAveragePool(cut_{cut})
            f{cut} = Flatten(g{cut})
            l{cut} = MatMul(f{cut}, h{cut})
            p{cut} = Softmax(l{cut})
            label_{cut} = ArgMax<axis = 1, keepdims = 0>(p{cut})
            q{cut} = Log(p{cut})
            e{cut} = Mul(p{cut}, q{cut})
            s{cut} = ReduceSum<keepdims = 0>(e{cut}, axis)
            entropy_{cut} = Mul(s{cut}, per_class)
            m{cut} = ReduceMax<keepdims = 0>(p{cut}, axis)
            max_probability_{cut} = Sub(one, m{cut})
            margin_{cut} = Sub(one, m{cut})""")
        outputs.append(f"float[batch, {CHANNELS}, {SIDE}, {SIDE}] cut_{cut}, int64[batch] label_{cut}")
        outputs += [f"float[batch] {criterion}_{cut}" for criterion in CRITERIA]
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 20]> net (float[batch, 1, {SIDE}, {SIDE}] cut_0) => '
        f"({', '.join(outputs)}) {{ {''.join(nodes)} }}"
    )
    weights |= {"per_class": np.array(-1 / np.log(CLASSES)), "one": np.array(1.0)}
    tensors = {name: values.astype(np.float32) for name, values in weights.items()}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(values, name) for name, values in tensors.items())
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1], np.int64), "axis"))
    shape = (CHANNELS, SIDE, SIDE)
    spec = BackboneSpec(
        name="convolutions", block_names=tuple(f"conv{cut}" for cut in range(1, BLOCKS + 1)), num_classes=CLASSES,
        cut_shapes=((1, SIDE, SIDE), *(shape,) * BLOCKS), weights_sha256="0" * 64,
        block_bytes=(4.0 * 9 * CHANNELS**2,) * BLOCKS, branch_bytes=(4.0 * CHANNELS * CLASSES,) * BLOCKS,
    )  # fmt: skip
    return OnnxNetwork(model, spec, provenance)


class Cable:
    """A TCP forwarder before a port that can be cut: bytes then stop, connections stay, until it is mended.

    Args:
        rate_bps: bytes of each direction pass one after the other at this rate; 0: at once. delay_s: on top of it.
    """

    def __init__(self, to: int, *, rate_bps: float = 0.0, delay_s: float = 0.0) -> None:
        self.to, self._rate_bps, self._delay_s = to, rate_bps, delay_s
        self._whole = {"there": threading.Event(), "back": threading.Event()}
        self._free_at = dict.fromkeys(self._whole, 0.0)
        self._turn = {way: threading.Lock() for way in self._whole}
        self.passed = dict.fromkeys(self._whole, 0)
        self.mend()
        self._server = socket.create_server(("127.0.0.1", 0))
        if rate_bps:
            self._server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # what waits, waits at the sender
        self.port: int = self._server.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._kept: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, *ways: str) -> None:
        """Stop the bytes ``there``, ``back`` or (no word) both ways."""
        for way in ways or self._whole:
            self._whole[way].clear()

    def mend(self) -> None:
        for way in self._whole.values():
            way.set()

    def hang_up_near(self) -> None:
        """Close the connections of who called, as a host does that forgot them; the other side hears nothing of it."""
        pairs, self._pairs = self._pairs, []
        for near, far in pairs:
            self._kept.add(far)
            with contextlib.suppress(OSError):
                near.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.mend()
        for one in (self._server, *(each for pair in self._pairs for each in pair), *self._kept):
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
                for whole in self._whole.values():
                    whole.wait()
                far = socket.create_connection(("127.0.0.1", self.to))
            except ConnectionRefusedError:
                near.close()
                continue
            except OSError:
                return
            self._pairs.append((near, far))
            for way, a, b in (("there", near, far), ("back", far, near)):
                threading.Thread(target=self._forward, args=(way, a, b), daemon=True).start()

    def _forward(self, way: str, a: socket.socket, b: socket.socket) -> None:
        try:
            while data := a.recv(1448 if self._rate_bps else 65536):
                self._whole[way].wait()
                self._pass(way, len(data))
                b.sendall(data)
                self.passed[way] += len(data)
        except OSError:
            pass
        finally:
            for one in {a, b} - self._kept:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)  # closing alone would not wake who reads from it
                one.close()

    def _pass(self, way: str, size: int) -> None:
        """Wait until so many bytes have passed, after those of all connections before them."""
        if not self._rate_bps:
            return
        with self._turn[way]:
            now = time.monotonic()
            self._free_at[way] = max(now, self._free_at[way]) + 8 * size / self._rate_bps
            wait_s = self._free_at[way] - now + self._delay_s
        time.sleep(wait_s)


class Cabled(Hosts):
    """Hosts of which each but the first is reached through a cable of its own; ``how``: of all cables."""

    def __init__(
        self, folder: Path, names: Sequence[str] = ("edge", "cloud"), *, keys: Path | None = None, **how: float
    ) -> None:
        ports = zip(names[1:], free_ports(len(names) - 1), strict=True)
        self.cables = {name: Cable(port, **how) for name, port in ports}
        super().__init__(folder, names, keys=keys, through={name: cable.port for name, cable in self.cables.items()})
        self.listen |= {name: cable.to for name, cable in self.cables.items()}

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for cable in self.cables.values():
            cable.close()


def until(condition: Callable[[], object], within_s: float = 60.0) -> float:
    """Wait until it holds; return after how many seconds."""
    began = time.monotonic()
    while time.monotonic() - began < within_s:
        if condition():
            return time.monotonic() - began
        time.sleep(0.02)
    raise AssertionError(f"it did not come to be within {within_s} s")


def whole(agents: Agents) -> float:
    """Wait until the wanted plan can be used; return after how many seconds."""
    return until(lambda: agents.ask(0, "status")["plan"] == 0, 60)


class Stream:
    """Samples that flow in the background from entering to leaving; then ``got`` has what came of each.

    Attributes:
        got: answers as they came; moments: when, by the monotonic clock. given: samples given out.
    """

    def __init__(
        self,
        agents: Agents,
        work: Workload,
        name: str,
        *,
        pending: int = 12,
        most: float = float("inf"),
        pace_s: float = 0.0,
    ) -> None:
        self._agents, self._work, self._name, self._pending = agents, work, name, pending
        self._most, self._pace_s = most, pace_s
        self._stop = threading.Event()
        self.given = 0
        self.got: list[Answer] = []
        self.moments: list[float] = []
        self.submitter: Submitter | None = None
        self._thread = threading.Thread(target=self._run)

    def _samples(self) -> Iterator[tuple[str, bytes] | None]:
        began = time.monotonic()
        while not self._stop.is_set() and self.given < self._most:
            if time.monotonic() - began < self.given * self._pace_s:
                yield None
                continue
            yield f"{self._name}-{self.given}", self._work.samples[self.given % len(self._work.samples)]
            self.given += 1

    def _run(self) -> None:
        with Agents(self._agents.topology, self._agents.keys) as agents:
            self.submitter = agents.submitter(self._pending)
            for answer in self.submitter.answers(self._samples(), patience_s=60):
                self.moments.append(time.monotonic())
                self.got.append(answer)

    def flows(self, more: int = 20) -> None:
        """Wait until so many more answers came."""
        due = len(self.got) + more
        until(lambda: len(self.got) >= due, 60)

    def __enter__(self) -> Stream:
        self._thread.start()
        self.flows()
        return self

    @property
    def alive(self) -> bool:
        """Whether answers may still come."""
        return self._thread.is_alive()

    def finish(self) -> None:
        """Wait until all samples that may be given out have their answer."""
        self._thread.join()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(120)
        assert not self._thread.is_alive()

    def counts(self) -> Counter[str]:
        """How many answers each sample has that has any."""
        return Counter(answer.id for answer in self.got)

    def check(self, releases: Mapping[int, Sequence[Plan]] = MappingProxyType({})) -> None:
        """Every sample has one answer, none failed, and each answer is the one of a single process by its plan.

        ``releases``: plans by the number of their release, where they are not the workload's in its order.
        """
        counts = self.counts()
        assert set(counts) == {f"{self._name}-{number}" for number in range(self.given)}  # none lost
        assert set(counts.values()) == {1}  # none doubled
        assert not [answer.reason for answer in self.got if answer.failed]
        wrong = [answer for answer in self.got if (answer.label, answer.exit_index) != self._expected(answer, releases)]
        assert not wrong

    def _expected(self, answer: Answer, releases: Mapping[int, Sequence[Plan]]) -> tuple[int, int]:
        number = int(answer.id.rpartition("-")[2]) % len(self._work.samples)
        release, plan = divmod(answer.plan, MOST_PLANS)
        return self._work.expected(releases.get(release, self._work.plans)[plan], number)
