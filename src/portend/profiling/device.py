"""What this machine needs for one network, measured by the runtime's own code.

Two agents run without links between them. One times partitions; messages between the two give
the cost of encoding, decoding, and what the runtime itself spends. So every figure is taken in
the process, on the path and with the pauses of a real deployment: after tens of milliseconds of
idling a small network can take half as long again as in a tight loop, because caches are cold.

Axes: R repeats, N+1 cuts.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from portend.errors import InvalidValue
from portend.execution import Execution
from portend.models.data import Dataset
from portend.models.networkfile import read_spec
from portend.profile import BackboneSpec, CodecProfile, DeviceProfile, ResultProfile
from portend.profiling.bench import Bench, Progress
from portend.profiling.compute import (
    Busy,
    ComputeProfiling,
    describe_spread,
    expected_s,
    measure_branches,
    measure_compute,
)
from portend.profiling.environment import cpu_model, describe_machine, load_average
from portend.profiling.journal import Journal
from portend.runtime.codecs import CODECS, Sample, make_codec
from portend.runtime.coordinator import Deployment
from portend.runtime.messages import Header, pack_header, wire_bytes
from portend.topology import Link, Tier, Topology

__all__ = ["DeviceProfiling", "profile_device"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceProfiling(ComputeProfiling):
    """How a device is profiled: its partitions (see ComputeProfiling) and its messages.

    Attributes:
        execution: what runs the partitions, as it will in the agents.
        message_repeats: probes per cut and codec, each after a pause of ``gap_s``.
    """

    execution: Execution = field(default_factory=Execution)
    message_repeats: int = 12

    def __post_init__(self) -> None:
        ComputeProfiling.__post_init__(self)
        if self.message_repeats < 1:
            raise InvalidValue(f"message_repeats is at least 1, but got {self.message_repeats}")


def profile_device(
    name: str,
    network: str | Path,
    dataset: Dataset,
    config: DeviceProfiling | None = None,
    *,
    criterion: str = "entropy",
    on_progress: Progress | None = None,
    allow_code: Collection[str] = (),
    keep: str | Path | None = None,
) -> DeviceProfile:
    """Measure this machine as the device ``name`` and return its profile.

    ``network`` is a checkpoint or what ``portend export`` made of one (see ``Deployment``). Branches score by
    ``criterion``. ``on_progress`` is called with (what, done, total). ``allow_code``: ``module:object`` that the
    checkpoint may name. ``keep``: a file for what was measured so far; where it is there already, the profile goes
    on with it. Remove it when the profile is saved.

    Raises:
        DeploymentError: the agents do not start or die.
        StorageError: ``keep`` cannot be used, or was begun for another network or in another way.
    """
    config = config or DeviceProfiling()
    spec = read_spec(network, allow_code=allow_code)
    journal = Journal(None if keep is None else Path(keep), _identity(name, spec, dataset, config, criterion))
    journal.open()
    load = load_average()
    deployment = Deployment(
        _bench(), network, dataset.decoder, executions=(config.execution,) * 2, emulate=False, criterion=criterion,
        allow_code=allow_code,
    )  # fmt: skip
    with deployment:
        deployment.load_samples([dataset.encoded[0]], dataset.labels[:1])
        bench = Bench(deployment, journal, spec.num_blocks, on_progress)
        warm = bench.warm_up()
        messages = spec.num_blocks * (len(CODECS) - 1) + 2
        bench.expect(
            expected_s(bench, spec, config) + messages * bench.probe_s(config.message_repeats + 1, config.gap_s)
        )
        compute = measure_compute(bench, spec, config)
        branch = measure_branches(bench, spec, config.repeats_of(spec.num_blocks))
        codecs = {codec: _codec(bench, codec, spec, dataset, config) for codec in CODECS}
        result = _result(bench, config)
    return DeviceProfile(
        device=name,
        compute_repeats_s=compute.repeats_s,
        idle_repeats_s=compute.idle_s,
        branch_repeats_s=branch,
        codecs=codecs,
        result=result,
        environment={
            **describe_machine(),
            "gap_s": str(config.gap_s),
            "load average": f"{load} before, {load_average()} after",
            "warm-up": warm,
            **_circumstances(bench, compute, warm),
            "measured": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        },
        execution=config.execution,
        prediction=compute.prediction,
        network=spec,
    )


def _identity(
    name: str, spec: BackboneSpec, dataset: Dataset, config: DeviceProfiling, criterion: str
) -> dict[str, Any]:
    """What a profile that was begun must have been begun with, to go on."""
    return {
        "device": name,
        "network": spec.name,
        "weights": spec.weights_sha256,
        "sample": hashlib.sha256(dataset.encoded[0]).hexdigest(),
        "processor": cpu_model(),
        "criterion": criterion,
        **asdict(config),
    }


def _circumstances(bench: Bench, compute: Busy, warm: str) -> dict[str, str]:
    """How the repeats spread, what others did meanwhile, and under ``disturbed`` a warning, if there is one."""
    facts, drift = describe_spread(compute.repeats_s, bench.references_s())
    found = bench.disturbance()
    facts |= {} if found is None else found.facts()
    changing = "" if warm.endswith("steady") else "the warm-up did not end steady"
    warnings = [text for text in (facts.get("disturbed", ""), drift, changing) if text]
    facts |= {"disturbed": "; ".join(warnings)} if warnings else {}
    return facts | ({"sittings": "interrupted and resumed"} if bench.journal.resumed else {})


def _bench() -> Topology:
    link = Link(bandwidth_bps=1e12, propagation_delay_s=0.0)  # never emulated: the agents connect directly
    return Topology(name="bench", tiers=(Tier(name="a", device="x"), Tier(name="b", device="x")), links=(link,))


def _codec(
    bench: Bench,
    name: str,
    spec: BackboneSpec,
    dataset: Dataset,
    config: DeviceProfiling,
) -> CodecProfile:
    """Costs of one codec at each cut: ``encoded`` only at the input; the last cut is never sent."""
    cuts = range(1) if name == "encoded" else range(spec.num_blocks)
    shape = (config.message_repeats, spec.num_blocks + 1)
    tables = {kind: np.full(shape, np.nan) for kind in ("encode", "encode busy", "transfer", "decode", "decode busy")}
    message_bytes = np.full(spec.num_blocks + 1, np.nan)
    for cut in cuts:
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


def _result(bench: Bench, config: DeviceProfiling) -> ResultProfile:
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
