"""What this machine needs for one network, measured by the runtime's own code.

Two agents run without links between them. One times partitions; messages between the two give
the cost of encoding, decoding, and what the runtime itself spends. So every figure is taken in
the process, on the path and with the pauses of a real deployment: after tens of milliseconds of
idling a small network can take half as long again as in a tight loop, because caches are cold.

Axes: R repeats, N+1 cuts.
"""

from __future__ import annotations

import os
import platform
import random
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from portend.errors import InvalidValue
from portend.execution import Execution
from portend.models.data import Dataset
from portend.models.networkfile import read_spec
from portend.profile import BackboneSpec, CodecProfile, DeviceProfile, ResultProfile
from portend.runtime.codecs import CODECS, Sample, make_codec
from portend.runtime.coordinator import Deployment
from portend.runtime.messages import Header, pack_header, wire_bytes
from portend.topology import Link, Tier, Topology

__all__ = ["DeviceProfiling", "profile_device"]

_LIBRARY: Final = {"torch": "torch", "torch-compiled": "torch", "onnxruntime": "onnxruntime"}

Floats = NDArray[np.float64]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceProfiling:
    """How a device is profiled.

    Attributes:
        execution: what runs the partitions, as it will in the agents.
        repeats: of every busy partition; idle_repeats: after a pause of ``gap_s``, each a burst of
            ``idle_burst`` runs, over which caches warm up, and twice as many more, which are busy.
        max_idle: partitions timed after a pause; where there are more, a spread subset is
            measured and the rest follow from a line (``DeviceProfile.woken_s``).
        message_repeats: probes per cut and codec.
        gap_s: pause before each idle repeat and each probe; that of the traffic to predict.
        seed: of the order, which interleaves partitions so that a disturbance hits all alike.
    """

    execution: Execution = field(default_factory=Execution)
    repeats: int = 30
    idle_repeats: int = 5
    idle_burst: int = 4
    max_idle: int = 66
    message_repeats: int = 12
    gap_s: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("repeats", "idle_repeats", "idle_burst", "max_idle", "message_repeats"):
            if getattr(self, name) < 1:
                raise InvalidValue(f"{name} is at least 1, but got {getattr(self, name)}")


def profile_device(
    name: str,
    network: str | Path,
    dataset: Dataset,
    config: DeviceProfiling | None = None,
    *,
    criterion: str = "entropy",
    on_progress: Progress | None = None,
    allow_code: Collection[str] = (),
) -> DeviceProfile:
    """Measure this machine as the device ``name`` and return its profile.

    ``network`` is a checkpoint or what ``portend export`` made of one (see ``Deployment``). Branches score by
    ``criterion``. ``on_progress`` is called with (what, done, total). ``allow_code``: ``module:object`` that the
    checkpoint may name.

    Raises:
        DeploymentError: the agents do not start or die.
    """
    config = config or DeviceProfiling()
    spec = read_spec(network, allow_code=allow_code)
    bench = Deployment(
        _bench(), network, dataset.decoder, executions=(config.execution,) * 2, emulate=False, criterion=criterion,
        allow_code=allow_code,
    )  # fmt: skip
    with bench:
        bench.load_samples([dataset.encoded[0]], dataset.labels[:1])
        compute, idle = _compute(bench, spec, config, on_progress)
        branch = _branches(bench, spec, config)
        codecs = {codec: _codec(bench, codec, spec, dataset, config, on_progress) for codec in CODECS}
        result = _result(bench, config)
    return DeviceProfile(
        device=name,
        compute_repeats_s=compute,
        idle_repeats_s=idle,
        branch_repeats_s=branch,
        codecs=codecs,
        result=result,
        environment=_environment(config),
        execution=config.execution,
    )


def _bench() -> Topology:
    link = Link(bandwidth_bps=1e12, propagation_delay_s=0.0)  # never emulated: the agents connect directly
    return Topology(name="bench", tiers=(Tier(name="a", device="x"), Tier(name="b", device="x")), links=(link,))


def _rounds(pairs: list[tuple[int, int]], repeats: int, seed: int) -> list[tuple[int, int]]:
    """Each pair once a round, in a new random order each round."""
    rng = random.Random(seed)
    return [pair for _ in range(repeats) for pair in rng.sample(pairs, len(pairs))]


def _compute(
    bench: Deployment, spec: BackboneSpec, config: DeviceProfiling, on_progress: Progress | None
) -> tuple[Floats, Floats]:
    """Busy [R, N+1, N+1] and idle [R', B, N+1, N+1] seconds of every partition with its branch.

    A shared machine's speed drifts, so busy times are taken before and after the bursts that follow
    idling, and at the end of each burst, when the caches are warm: spread over the whole profile.
    """
    size = spec.num_blocks + 1
    pairs = list(combinations(range(size), 2))
    sparse = pairs[:: -(-len(pairs) // config.max_idle)]

    def timed(what: str, chosen: list[tuple[int, int]], repeats: int, burst: int, gap_s: float, seed: int) -> Floats:
        order = _rounds(chosen, repeats, seed)
        told = None if on_progress is None else _named(on_progress, what)
        jobs = [(start, end, True) for start, end in order]
        seconds = bench.time_partitions(0, jobs, burst=burst, gap_s=gap_s, on_progress=told)
        table = np.full((repeats, burst, size, size), np.nan)
        start, end = np.array(order).T
        table[np.repeat(np.arange(repeats), len(chosen)), :, start, end] = seconds
        return table

    half = -(-config.repeats // 2)
    before = timed("compute, busy", pairs, half, 1, 0.0, config.seed)
    burst = 3 * config.idle_burst
    woken = timed("compute, after idling", sparse, config.idle_repeats, burst, config.gap_s, config.seed + 1)
    after = timed("compute, busy again", pairs, half, 1, 0.0, config.seed + 2)
    warm = woken[:, config.idle_burst :].reshape(-1, size, size)
    return np.concatenate([before[:, 0], warm, after[:, 0]]), woken[:, : config.idle_burst]


def _named(on_progress: Progress, what: str) -> Callable[[int, int], None]:
    return lambda done, total: on_progress(what, done, total)


def _branches(bench: Deployment, spec: BackboneSpec, config: DeviceProfiling) -> Floats:
    """Seconds [R, N+1] that the exit branch adds at each cut, 0 where there is none.

    One block with it less the same without.
    """
    exits = spec.exit_cuts
    jobs = [(end - 1, end, branch) for end in exits for branch in (True, False)]
    seconds = bench.time_partitions(0, jobs * config.repeats)[:, 0].reshape(config.repeats, len(exits), 2)
    added = np.zeros((config.repeats, spec.num_blocks + 1))
    added[:, 0] = np.nan
    added[:, exits] = np.maximum(seconds[..., 0] - seconds[..., 1], 0.0)
    return added


def _codec(
    bench: Deployment,
    name: str,
    spec: BackboneSpec,
    dataset: Dataset,
    config: DeviceProfiling,
    on_progress: Progress | None,
) -> CodecProfile:
    """Costs of one codec at each cut: ``encoded`` only at the input; the last cut is never sent."""
    cuts = range(1) if name == "encoded" else range(spec.num_blocks)
    shape = (config.message_repeats, spec.num_blocks + 1)
    tables = {kind: np.full(shape, np.nan) for kind in ("encode", "encode busy", "transfer", "decode", "decode busy")}
    message_bytes = np.full(spec.num_blocks + 1, np.nan)
    for done, cut in enumerate(cuts):
        if on_progress:
            on_progress(f"messages, {name}", done, len(cuts))
        spans = bench.probe(0, 1, cut, name, count=config.message_repeats + 1, gap_s=config.gap_s)
        for kind, table in tables.items():
            table[:, cut] = spans[kind][1:]
        message_bytes[cut] = wire_bytes([_header_bytes(), _payload_bytes(name, spec.cut_shapes[cut], dataset)])
    return CodecProfile(
        message_bytes=message_bytes,
        encode_repeats_s=tables["encode"],
        encode_busy_repeats_s=tables["encode busy"],
        decode_repeats_s=tables["decode"],
        decode_busy_repeats_s=tables["decode busy"],
        dispatch_repeats_s=tables["transfer"],
    )


def _payload_bytes(name: str, shape: tuple[int, ...], dataset: Dataset) -> int:
    """Bytes of one payload; for the samples' own encodings, which differ, the mean of a thousand."""
    if name == "encoded":
        some = range(0, len(dataset), max(1, len(dataset) // 1000))
        return round(np.mean([len(dataset.encoded[i]) for i in some]))
    zeros = np.zeros(shape, dtype=np.float32)
    return len(make_codec(name, dataset.decoder).encode(Sample(b"", zeros)))


def _header_bytes() -> int:
    return len(pack_header(Header("tensor", 1, 200, 1, time.monotonic_ns())))


def _result(bench: Deployment, config: DeviceProfiling) -> ResultProfile:
    """Costs of a result; its header is packed inside the transfer, so that encoding it costs nothing of its own."""
    spans = bench.probe(0, 1, -1, "float32", count=config.message_repeats + 1, gap_s=config.gap_s)
    header = pack_header(Header("result", 1, 200, 2, time.monotonic_ns(), exit_index=1, label=1, score=0.5))
    return ResultProfile(
        message_bytes=wire_bytes([len(header)]),
        encode_repeats_s=np.zeros(1),
        decode_repeats_s=spans["decode"][1:],
        decode_busy_repeats_s=spans["decode busy"][1:],
        dispatch_repeats_s=spans["transfer"][1:],
    )


def _environment(config: DeviceProfiling) -> dict[str, str]:
    return {
        "cpu": _cpu_model(),
        "cores": str(os.cpu_count()),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in (_LIBRARY[config.execution.executor], "numpy", "pyzmq", "msgpack")},
        "clock": f"monotonic, {1e9 * time.get_clock_info('monotonic').resolution:g} ns",
        "gap_s": str(config.gap_s),
        "measured": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
