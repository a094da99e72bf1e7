"""What the runtime costs a sample beside computing, per hop, against other ways to send a tensor to another process.

Everything crosses the loopback interface, without emulated links. All ways take turns in one run, so that a disturbance
hits all alike; one message is under way at a time. A hop begins when the sender has the tensor and ends when the
receiver has it, in memory of its own that may be written to (in the floor: when it has the bytes). Before it sends and
after it has received, each process runs the same partition by the same executor, so that all find caches alike.

- ``portend``: what a sample's latency is beside its ``compute`` spans, with two agents, of which the second answers:
  encode, transfer, decode, and all that no span covers. The network passes its input on.
- ``pickle``: a dict with a torch tensor by pyzmq's ``send_pyobj`` and ``recv_pyobj``, PUSH to PULL.
- ``grpc``: a protobuf message with the bytes, one unary call per message on a warm channel.
- ``pyzmq``: a header of Portend's size and the tensor's memory as one multipart message, not copied: the floor.

Then the throughput of three processes in a row, of which the one in the middle only passes on, with a window of
messages under way, and the processor time of that one. In ``portend`` all three run a block that returns its input,
which is computing as any other; how long it takes in the middle is told beside.

    python benchmarks/runtime.py --json runtime.json
"""

# ruff: noqa: E402 (threads are pinned before NumPy is imported)
from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import contextlib
import gc
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Protocol

import grpc
import numpy as np
import psutil
import torch
import zmq
from google.protobuf.wrappers_pb2 import BytesValue, Int64Value
from numpy.typing import NDArray
from torch import nn

from portend.data.decoding import TensorDecoder
from portend.io.storage import write_json
from portend.networks.backbone import Backbone
from portend.networks.checkpoint import save_checkpoint
from portend.runtime.executor import Partition
from portend.runtime.protocol import Header, pack_header
from portend.runtime.torch_executor import TorchExecutor
from portend.testbed.deployment import Deployment
from portend.values.measurement import SPAN_KINDS
from portend.values.plan import Plan
from portend.values.topology import Link, Tier, Topology

SIZES: Final = (1_024, 65_536, 1_048_576)
LOOPBACK: Final = "tcp://127.0.0.1"
NETWORK: Final = "runtime:passing"
HEADER: Final = pack_header(Header("tensor", 1, 200, 1, time.monotonic_ns()))
_CALL: Final = "/hop/take"


def passing(values: int) -> Backbone:
    """A network of three blocks that pass ``values`` numbers on; its one exit looks at the first two."""

    class First(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :2]

    return Backbone(
        name=NETWORK,
        blocks={f"pass{i}": nn.Identity() for i in range(3)},
        branches=[None, None, First()],
        num_classes=2,
        input_shape=(values,),
        architecture={"arguments": {"values": values}},
    )


def partition(values: int, start: int, end: int) -> Partition:
    """Blocks of that network as an agent runs them."""
    return TorchExecutor(passing(values)).partition(start, end, branch=end == 3)


# -- the ways to send ------------------------------------------------------------------------------


class Way(Protocol):
    """Two processes, of which the first sends to the second."""

    def hops(self, count: int) -> list[float]:
        """Seconds of ``count`` hops, one after another."""

    def parts(self) -> dict[str, list[float]]:
        """Seconds of the parts of all hops so far, where they are known."""


class Portend:
    """Two agents; the second is the destination, so that a sample's way is one hop."""

    def __init__(self, deployment: Deployment, samples: int) -> None:
        self._deployment, self._samples = deployment, samples
        self._parts: dict[str, list[float]] = {}

    def hops(self, count: int) -> list[float]:
        measured = self._deployment.run([i % self._samples for i in range(count)], warmup=5)
        spans = measured.span_end_s - measured.span_start_s
        left = measured.latency_s.copy()
        for index, kind in enumerate(SPAN_KINDS):
            of_kind = measured.span_kind == index
            per_sample = np.bincount(measured.span_request[of_kind], weights=spans[of_kind], minlength=count)
            self._parts.setdefault(kind, []).extend(per_sample.tolist())
            left -= per_sample
        self._parts.setdefault("other", []).extend(left.tolist())
        compute = np.array(self._parts["compute"][-count:])
        overhead: list[float] = (measured.latency_s - compute).tolist()
        return overhead

    def parts(self) -> dict[str, list[float]]:
        return self._parts


class _Peer:
    """The receiver, a process of this program; it answers each message with the moment at which it had it."""

    def __init__(self, kind: str, values: int, cleanup: contextlib.ExitStack) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--receive", kind, "--values", str(values)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        cleanup.callback(self._stop)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def _stop(self) -> None:
        self.process.kill()
        self.process.communicate()


class Zmq:
    """PUSH to PULL and back: ``pickle`` or ``pyzmq``."""

    def __init__(self, kind: str, tensor: NDArray[np.float32], cleanup: contextlib.ExitStack) -> None:
        self._pickled = kind == "pickle"
        self._tensor, self._first = tensor, partition(tensor.size, 0, 1)
        context = zmq.Context()
        cleanup.callback(context.destroy, linger=0)
        self._back: zmq.Socket[bytes] = context.socket(zmq.PULL)
        port = self._back.bind_to_random_port(LOOPBACK)
        peer = _Peer(kind, tensor.size, cleanup)
        self._out: zmq.Socket[bytes] = context.socket(zmq.PUSH)
        self._out.connect(f"{LOOPBACK}:{peer.port}")
        self._out.send(str(port).encode())

    def hops(self, count: int) -> list[float]:
        found = []
        for request in range(-5, count):
            features = self._first(self._tensor).features
            value = torch.from_numpy(features)
            began = time.monotonic_ns()
            if self._pickled:
                self._out.send_pyobj({"request": request, "step": 1, "tensor": value})
            else:
                self._out.send_multipart([HEADER, features.data], copy=False)
            ended = int(self._back.recv())
            if request >= 0:
                found.append((ended - began) * 1e-9)
        return found

    def parts(self) -> dict[str, list[float]]:
        return {}


class Grpc:
    """A unary call per message."""

    def __init__(self, tensor: NDArray[np.float32], cleanup: contextlib.ExitStack) -> None:
        self._tensor, self._first = tensor, partition(tensor.size, 0, 1)
        peer = _Peer("grpc", tensor.size, cleanup)
        channel = cleanup.enter_context(grpc.insecure_channel(f"127.0.0.1:{peer.port}"))
        self._call = channel.unary_unary(
            _CALL, request_serializer=BytesValue.SerializeToString, response_deserializer=Int64Value.FromString
        )

    def hops(self, count: int) -> list[float]:
        found = []
        for request in range(-5, count):
            features = self._first(self._tensor).features
            began = time.monotonic_ns()
            ended = self._call(BytesValue(value=features.tobytes())).value
            if request >= 0:
                found.append((ended - began) * 1e-9)
        return found

    def parts(self) -> dict[str, list[float]]:
        return {}


def _end_with_stdin() -> None:
    """Let this process end when the one that started it does."""

    def wait() -> None:
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def receive(kind: str, values: int) -> None:
    """Be the receiver until standard input ends; the port goes to standard output."""
    gc.disable()
    _end_with_stdin()
    last = partition(values, 1, 3)
    if kind == "grpc":

        def taken(request: Any, _: Any) -> Any:
            tensor = np.frombuffer(request.value, np.float32).copy()
            now = time.monotonic_ns()
            last(tensor)
            return Int64Value(value=now)

        server = grpc.server(futures.ThreadPoolExecutor(1))
        handler = grpc.unary_unary_rpc_method_handler(
            taken, request_deserializer=BytesValue.FromString, response_serializer=Int64Value.SerializeToString
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("hop", {"take": handler}),))
        print(server.add_insecure_port("127.0.0.1:0"), flush=True)
        server.start()
        server.wait_for_termination()
    context = zmq.Context()
    inbox: zmq.Socket[bytes] = context.socket(zmq.PULL)
    print(inbox.bind_to_random_port(LOOPBACK), flush=True)
    back: zmq.Socket[bytes] = context.socket(zmq.PUSH)
    back.connect(f"{LOOPBACK}:{int(inbox.recv())}")
    while True:
        if kind == "pickle":
            message = inbox.recv_pyobj()  # of this program's own other half; the runtime never does this
            now = time.monotonic_ns()
            last(message["tensor"].numpy())
        else:
            frames = inbox.recv_multipart(copy=False)
            now = time.monotonic_ns()
            last(np.frombuffer(frames[1].buffer, np.float32).copy())
        back.send(str(now).encode())


# -- hops ------------------------------------------------------------------------------------------


def chain(tiers: int, destination: int) -> Topology:
    """Tiers of one speed; the links are not emulated."""
    link = Link(bandwidth_bps=1e9, propagation_delay_s=0.0)
    return Topology(
        name="loopback",
        tiers=tuple(Tier(name=f"tier{i}", device="local") for i in range(tiers)),
        links=(link,) * (tiers - 1),
        destination=destination,
    )


@contextlib.contextmanager
def deployed(topology: Topology, size: int, samples: int) -> Iterator[Deployment]:
    """Agents of the passing network on each tier, with a plan of one block for each."""
    values, tiers = size // 4, len(topology.tiers)
    here = str(Path(__file__).resolve().parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))  # for the agents
    tensor = np.random.default_rng(0).standard_normal(values, dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        network = Path(folder) / "passing.safetensors"
        save_checkpoint(passing(values), network)
        decoder = TensorDecoder(shape=(values,))
        with Deployment(topology, network, decoder, emulation="none", allow_code=[NETWORK]) as deployment:
            deployment.load_samples([tensor.tobytes()] * samples, [0] * samples)
            deployment.deploy(
                Plan(
                    cuts=(*range(1, tiers), 3),
                    placement=tuple(range(tiers)),
                    thresholds=(0.0,) * (tiers - 1),
                    codecs=(None, *("float32",) * (tiers - 1)),
                )
            )
            yield deployment


def measure_hops(size: int, turns: int, messages: int, seed: int = 0) -> list[dict[str, Any]]:
    """Median and quarters of the seconds of a hop of ``size`` bytes by each way, in ``turns`` turns of all."""
    tensor = np.random.default_rng(0).standard_normal(size // 4, dtype=np.float32)
    with contextlib.ExitStack() as cleanup:
        samples = 4
        deployment = cleanup.enter_context(deployed(chain(2, destination=1), size, samples))
        ways: dict[str, Way] = {
            "portend": Portend(deployment, samples),
            "pickle": Zmq("pickle", tensor, cleanup),
            "grpc": Grpc(tensor, cleanup),
            "pyzmq": Zmq("pyzmq", tensor, cleanup),
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        rng = random.Random(seed)
        for _ in range(turns):
            for name in rng.sample(list(ways), len(ways)):
                found[name] += ways[name].hops(messages)
        parts = ways["portend"].parts()
    own = statistics.median(found["portend"])
    rows = []
    for name, seconds in found.items():
        quarters = statistics.quantiles(seconds, n=4)
        rows.append(
            {
                "way": name,
                "bytes": size,
                "hops": len(seconds),
                "median_s": statistics.median(seconds),
                "quarters_s": [quarters[0], quarters[2]],
                "times_portend": statistics.median(seconds) / own,
                "parts_s": {key: statistics.median(each) for key, each in parts.items()} if name == "portend" else {},
            }
        )
    return rows


# -- passing on ------------------------------------------------------------------------------------


def pass_on(kind: str) -> None:
    """Be a relay or, at the end, the sink, until standard input ends; first its line says where to send to."""
    gc.disable()
    context = zmq.Context()
    inbox: zmq.Socket[bytes] = context.socket(zmq.PULL)
    inbox.set_hwm(0)
    print(inbox.bind_to_random_port(LOOPBACK), flush=True)
    onwards: zmq.Socket[bytes] = context.socket(zmq.PUSH)
    onwards.set_hwm(0)
    onwards.connect(f"{LOOPBACK}:{int(sys.stdin.readline())}")
    _end_with_stdin()
    while True:
        if kind == "relay pickle":
            onwards.send_pyobj(inbox.recv_pyobj())
        elif kind == "relay pyzmq":
            onwards.send_multipart(inbox.recv_multipart(copy=False), copy=False)
        elif kind == "sink pickle":
            inbox.recv_pyobj()
            onwards.send(b"")
        else:
            inbox.recv_multipart(copy=False)
            onwards.send(b"")


class Row:
    """Source (this process), relay and sink in a row; the sink gives credits back."""

    def __init__(self, kind: str, tensor: NDArray[np.float32], cleanup: contextlib.ExitStack) -> None:
        self._pickled = kind == "pickle"
        self._tensor, self._torch = tensor, torch.from_numpy(tensor)
        context = zmq.Context()
        cleanup.callback(context.destroy, linger=0)
        self._credits: zmq.Socket[bytes] = context.socket(zmq.PULL)
        self._credits.set_hwm(0)
        port = self._credits.bind_to_random_port(LOOPBACK)
        for role in ("sink", "relay"):
            peer = _Peer(f"{role} {kind}", tensor.size, cleanup)
            assert peer.process.stdin is not None
            peer.process.stdin.write(f"{port}\n")
            peer.process.stdin.flush()
            port = peer.port
            self.relay = psutil.Process(peer.process.pid)
        self._out: zmq.Socket[bytes] = context.socket(zmq.PUSH)
        self._out.set_hwm(0)
        self._out.connect(f"{LOOPBACK}:{port}")

    def rate(self, messages: int, window: int) -> float:
        """Messages per second."""
        began = time.monotonic()
        for request in range(messages):
            if request >= window:
                self._credits.recv()
            if self._pickled:
                self._out.send_pyobj({"request": request, "step": 1, "tensor": self._torch})
            else:
                self._out.send_multipart([HEADER, self._tensor.data], copy=False)
        for _ in range(window):
            self._credits.recv()
        return messages / (time.monotonic() - began)


class PortendRow:
    """Three agents; the one in the middle runs a block that passes its input on."""

    def __init__(self, deployment: Deployment, samples: int) -> None:
        self._deployment, self._samples = deployment, samples
        self.relay = psutil.Process(deployment.agent_pids[1])
        self.compute_s: list[float] = []

    def rate(self, messages: int, window: int) -> float:
        measured = self._deployment.run([i % self._samples for i in range(messages)], window=window, warmup=0)
        in_relay = (measured.span_tier == 1) & (measured.span_kind == SPAN_KINDS.index("compute"))
        self.compute_s += (measured.span_end_s - measured.span_start_s)[in_relay].tolist()
        ended = measured.start_s + measured.latency_s
        return messages / float(ended.max())


def measure_relays(size: int, turns: int, messages: int, window: int, seed: int = 0) -> list[dict[str, Any]]:
    """Median rate through a relay, and processor seconds of the relay per message, by each way in turns."""
    tensor = np.random.default_rng(0).standard_normal(size // 4, dtype=np.float32)
    samples = 4
    with contextlib.ExitStack() as cleanup:
        deployment = cleanup.enter_context(deployed(chain(3, destination=2), size, samples))
        own = PortendRow(deployment, samples)
        rows: dict[str, Row | PortendRow] = {
            "portend": own,
            "pickle": Row("pickle", tensor, cleanup),
            "pyzmq": Row("pyzmq", tensor, cleanup),
        }
        rates: dict[str, list[float]] = {name: [] for name in rows}
        busy: dict[str, float] = dict.fromkeys(rows, 0.0)
        rng = random.Random(seed)
        for row in rows.values():
            row.rate(4 * window, window)  # warm
        for _ in range(turns):
            for name in rng.sample(list(rows), len(rows)):
                before = sum(rows[name].relay.cpu_times()[:2])
                rates[name].append(rows[name].rate(messages, window))
                busy[name] += sum(rows[name].relay.cpu_times()[:2]) - before
    reference = statistics.median(rates["portend"])
    return [
        {
            "way": name,
            "bytes": size,
            "window": window,
            "messages_per_s": statistics.median(found),
            "quarters_per_s": statistics.quantiles(found, n=4)[::2],
            "times_portend": statistics.median(found) / reference,
            "relay_cpu_s": busy[name] / (turns * messages),
            "relay_compute_s": statistics.median(own.compute_s) if name == "portend" else 0.0,
        }
        for name, found in rates.items()
    ]


def main(arguments: list[str] | None = None) -> None:
    """Measure all and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", help="also write the results to this file")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="bytes of the tensor")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--messages", type=int, default=50, help="per turn")
    parser.add_argument("--window", type=int, default=8, help="messages under way through the relay")
    parser.add_argument("--receive", help=argparse.SUPPRESS)
    parser.add_argument("--values", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.receive:
        (pass_on if " " in options.receive else lambda kind: receive(kind, options.values))(options.receive)
        return
    torch.set_num_threads(1)
    gc.disable()
    sizes = [int(size) for size in options.sizes.split(",")]
    hops = []
    for size in sizes:
        own = measure_hops(size, options.turns, options.messages)
        hops += own
        print(f"\na hop of {size:,} bytes, {own[0]['hops']} each, µs")
        print(f"  {'':<10} {'median':>9} {'quarters':>19} {'× portend':>10}")
        for row in own:
            low, high = row["quarters_s"]
            print(
                f"  {row['way']:<10} {1e6 * row['median_s']:>9.1f} {1e6 * low:>9.1f}–{1e6 * high:<9.1f} "
                f"{row['times_portend']:>10.2f}"
            )
        print("  of portend's: " + ", ".join(f"{k} {1e6 * s:.1f}" for k, s in own[0]["parts_s"].items()))
    relays = []
    for size in sizes:
        own = measure_relays(size, max(2, options.turns // 2), 8 * options.messages, options.window)
        relays += own
        print(f"\nthrough a relay, {size:,} bytes, {options.window} under way")
        print(f"  {'':<10} {'messages/s':>11} {'quarters':>19} {'× portend':>10} {'relay CPU, µs':>14}")
        for row in own:
            low, high = row["quarters_per_s"]
            print(
                f"  {row['way']:<10} {row['messages_per_s']:>11.0f} {low:>9.0f}–{high:<9.0f} "
                f"{row['times_portend']:>10.2f} {1e6 * row['relay_cpu_s']:>14.1f}"
            )
        print(f"  of portend's, the block that passes on: {1e6 * own[0]['relay_compute_s']:.1f}")
    if options.json:
        packages = {name: version(name) for name in ("numpy", "torch", "pyzmq", "grpcio", "protobuf")}
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        machine = {"platform": platform.platform(), "python": platform.python_version(), "cores": cores, **packages}
        write_json({"machine": machine, "turns": options.turns, "hops": hops, "relays": relays}, options.json)


if __name__ == "__main__":
    main()
