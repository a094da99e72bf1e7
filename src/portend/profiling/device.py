"""What this machine needs for one network, measured by the runtime's own code.

Two agents run without links between them. One times partitions; messages between the two give
the cost of encoding, decoding, and what the runtime itself spends. So every figure is taken in
the process, on the path and with the pauses of a real deployment: after tens of milliseconds of
idling a small network can take half as long again as in a tight loop, because caches are cold.

Axes: R repeats, N+1 cuts.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portend.data.dataset import Dataset, draw
from portend.errors import InvalidValue
from portend.io.journal import Journal
from portend.networks.networkfile import read_spec
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
from portend.profiling.messages import count_messages, profile_messages, profile_result
from portend.profiling.prediction import checked
from portend.testbed.deployment import Deployment
from portend.values.backbone import BackboneSpec
from portend.values.codecs import ValueRange
from portend.values.compute_fit import fit_compute
from portend.values.device_profile import DeviceProfile
from portend.values.execution import Execution
from portend.values.plan import codec_parts
from portend.values.topology import Link, Tier, Topology

__all__ = ["DeviceProfiling", "profile_device"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceProfiling(ComputeProfiling):
    """How a device is profiled: its partitions (see ComputeProfiling) and its messages.

    Attributes:
        execution: what runs the partitions, as it will in the agents.
        codecs: that are measured (``plan.CODECS``); int8 needs the ranges of the values.
        message_samples: whose tensors are encoded and decoded at every cut; message_cuts: of the cuts after a block,
            those at which messages are sent; message_repeats: messages per cut and codec, each after a pause of
            ``gap_s``.
    """

    execution: Execution = field(default_factory=Execution)
    codecs: tuple[str, ...] = ("float32", "encoded")
    message_samples: int = 32
    message_cuts: int = 4
    message_repeats: int = 12

    def __post_init__(self) -> None:
        ComputeProfiling.__post_init__(self)
        for name in ("message_samples", "message_cuts", "message_repeats"):
            if getattr(self, name) < 1:
                raise InvalidValue(f"{name} is at least 1, but got {getattr(self, name)}")
        if "float32" not in self.codecs:
            raise InvalidValue(f"float32 is always measured, for all that is compared with it, but got {self.codecs}")
        for codec in set(self.codecs) - {"encoded"}:
            codec_parts(codec)


def profile_device(
    name: str,
    network: str | Path,
    dataset: Dataset,
    config: DeviceProfiling | None = None,
    *,
    indices: NDArray[np.int64] | None = None,
    ranges: Sequence[ValueRange] = (),
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

    Args:
        indices: samples whose tensors are sent, such as the profiling split; None: all of the data set.
        ranges: of the values at the cuts (``profiling.losses.profile_ranges``), for int8.

    Raises:
        InvalidValue: int8 without ranges.
        DeploymentError: the agents do not start or die.
        StorageError: ``keep`` cannot be used, or was begun for another network or in another way.
    """
    config = config or DeviceProfiling()
    spec = read_spec(network, allow_code=allow_code)
    if not ranges and any(codec.startswith("int8") for codec in config.codecs):
        raise InvalidValue("int8 needs the ranges of the values; give profile_device those of profile_ranges")
    chosen = draw(np.arange(len(dataset)) if indices is None else indices, config.message_samples, seed=config.seed)
    samples = [dataset.encoded[i] for i in chosen]
    identity = _identity(name, spec, samples, ranges, config, criterion)
    journal = Journal(None if keep is None else Path(keep), identity)
    journal.open()
    load = load_average()
    deployment = Deployment(
        _bench(), network, dataset.decoder, executions=(config.execution,) * 2, emulation="none", criterion=criterion,
        allow_code=allow_code, ranges=dict(enumerate(ranges)),
    )  # fmt: skip
    with deployment:
        deployment.load_samples(samples, dataset.labels[chosen])
        bench = Bench(deployment, journal, spec.num_blocks, on_progress)
        warm = bench.warm_up()
        messages = count_messages(spec, config.codecs, config.message_cuts) + 1
        bench.expect(
            expected_s(bench, spec, config) + messages * bench.probe_s(config.message_repeats + 1, config.gap_s)
        )
        compute = measure_compute(bench, spec, config)
        branch = measure_branches(bench, spec, config.repeats_of(spec.num_blocks))
        codecs = profile_messages(
            bench, spec, dataset, config.codecs, samples=len(samples), cuts=config.message_cuts,
            repeats=config.message_repeats, gap_s=config.gap_s,
        )  # fmt: skip
        result = profile_result(bench, repeats=config.message_repeats, gap_s=config.gap_s)
    drawn = compute.drawn
    return DeviceProfile(
        device=name,
        compute_repeats_s=compute.repeats_s,
        idle_repeats_s=compute.idle_s,
        following_repeats_s=compute.following_s,
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
        prediction=None if drawn is None else checked(fit_compute(compute.repeats_s, branch, spec.features()), drawn),
        network=spec,
    )


def _identity(
    name: str,
    spec: BackboneSpec,
    samples: Sequence[bytes],
    ranges: Sequence[ValueRange],
    config: DeviceProfiling,
    criterion: str,
) -> dict[str, Any]:
    """What a profile that was begun must have been begun with, to go on."""
    return {
        "device": name,
        "network": spec.name,
        "weights": spec.weights_sha256,
        "samples": hashlib.sha256(b"".join(samples)).hexdigest(),
        "ranges": hashlib.sha256(json.dumps([each.to_dict() for each in ranges]).encode()).hexdigest(),
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
