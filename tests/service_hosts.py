"""Agents as real processes, as `portend agent` starts them, for tests and benchmarks of the service."""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from portend.execution import Execution
from portend.models.data import load_dataset
from portend.models.decoding import InputDecoder
from portend.models.exporting import export
from portend.models.zoo import build
from portend.plan import Plan, takes_exit
from portend.runtime.executors import make_executor
from portend.service.coordinator import Agents
from portend.service.release import Limits, Release
from portend.topology import Link, Tier, Topology

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

    def __enter__(self) -> Hosts:
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

    def command(self, name: str, *more: str) -> list[str]:
        secured = ["--plain"] if self.keys is None else ["--keys", str(self.keys)]
        return [
            sys.executable, "-m", "portend.cli", "agent", "--name", name, "--listen",
            f"tcp://127.0.0.1:{self.listen[name]}", "--state", str(self.folder / name), "--http",
            f"127.0.0.1:{self.http[name]}", *secured, *more,
        ]  # fmt: skip

    def start(self, name: str, *more: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self.command(name, *more), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        """Send a signal that ends the agent; return its exit code."""
        self.processes[name].send_signal(number)
        return self.processes[name].wait(30)

    def send(self, name: str, number: int) -> None:
        self.processes[name].send_signal(number)

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

    def release(self, agents: Agents, plans: Sequence[Plan] | None = None, **limits: Any) -> Release:
        execution = Execution(executor="onnxruntime")
        count = len(agents.topology.tiers)
        return agents.deploy(
            self.plans if plans is None else plans, [self.network] * count, self.decoder,
            executions=[execution] * count, limits=Limits(**limits),
        )  # fmt: skip

    def expected(self, plan: Plan, index: int) -> tuple[int, int]:
        """Label and exit of a sample, by running the network from its start to each exit."""
        executor = make_executor(self.network, Execution(executor="onnxruntime"))
        tensor = self.decoder.decode(self.samples[index])
        for place, cut in enumerate(plan.cuts):
            found = executor.partition(0, cut, branch=True)(tensor)
            if place == len(plan.thresholds) or takes_exit(found.score, plan.thresholds[place]):
                return found.label, place
        raise AssertionError("the last exit takes every sample")


def make_workload(folder: Path, samples: int = 40) -> Workload:
    """Write the network's file to a folder; return it with what it needs."""
    dataset = load_dataset("digits:size=16")
    backbone = build("resnet8", in_channels=1, num_classes=10, input_size=16)
    with torch.no_grad():
        for branch in backbone.branches:
            for parameter in branch.parameters():
                parameter.mul_(10)  # untrained scores lie close to 1; spread them, so that some samples leave early
    path = folder / "net.onnx"
    export(backbone, provenance={"decoder": json.dumps(dataset.decoder.to_dict())}).save(path)
    score = statistics.median(
        make_executor(path, Execution(executor="onnxruntime"))
        .partition(0, 1, branch=True)(dataset.decoder.decode(encoded))
        .score
        for encoded in dataset.encoded[:samples]
    )  # half of the samples leave at the first exit
    last = backbone.spec().num_blocks
    return Workload(
        network=path,
        decoder=dataset.decoder,
        samples=tuple(dataset.encoded[:samples]),
        plans=(
            Plan(cuts=(1, 2, last), placement=(0, 1, 2), thresholds=(score, 0.3), codecs=(None, "float32", "float32")),
            Plan(cuts=(1, last), placement=(0, 1), thresholds=(score,), codecs=(None, "float32")),
            Plan(cuts=(1, last), placement=(0, 2), thresholds=(score,), codecs=(None, "float32")),
            Plan(cuts=(last,), placement=(0,), codecs=(None,)),
        ),
    )


class Cable:
    """A TCP forwarder before a port that can be cut: bytes then stop, connections stay, until it is mended."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._whole = threading.Event()
        self._whole.set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._whole.clear()

    def mend(self) -> None:
        self._whole.set()

    def close(self) -> None:
        self._whole.set()
        for one in (self._server, *self._open):
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
                self._whole.wait()
                far = socket.create_connection(("127.0.0.1", self._to))
            except ConnectionRefusedError:
                near.close()
                continue
            except OSError:
                return
            self._open += [near, far]
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self._forward, args=(a, b), daemon=True).start()

    def _forward(self, a: socket.socket, b: socket.socket) -> None:
        try:
            while data := a.recv(65536):
                self._whole.wait()
                b.sendall(data)
        except OSError:
            pass
        finally:
            for one in (a, b):
                one.close()


def until(condition: Callable[[], object], within_s: float = 30.0) -> float:
    """Wait until it holds; return after how many seconds."""
    began = time.monotonic()
    while time.monotonic() - began < within_s:
        if condition():
            return time.monotonic() - began
        time.sleep(0.02)
    raise AssertionError(f"it did not come to be within {within_s} s")
