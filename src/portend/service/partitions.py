"""A release's plans as one tier runs them: what happens to a sample here, and where it goes next."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from portend.errors import DeploymentError, MessageError
from portend.models.decoding import InputDecoder, decoder_from_dict
from portend.profile import BackboneSpec
from portend.runtime.codecs import Codec, Payload, Sample, make_codec
from portend.runtime.deployed import Deployed
from portend.runtime.executors import Executor, Partition
from portend.service.release import Release

__all__ = ["Loaded", "Outcome", "Shared", "host_memory_bytes"]

Tensor = NDArray[np.float32]

_NO_TENSOR: Final[Tensor] = np.zeros(0, dtype=np.float32)


@dataclass(slots=True)
class Outcome:
    """What a tier did with a sample.

    Attributes:
        payload: the tensor for partition ``step`` on another tier; None if the sample left at partition ``step``, with
            ``label`` and ``score``.
        terms: seconds of each (``encode``, ``decode``, ``compute``) that was done here.
    """

    step: int
    payload: Payload | None = None
    label: int = -1
    score: float = float("nan")
    terms: list[tuple[str, float]] = field(default_factory=list)


class Shared:
    """An executor that makes each partition once; plans and releases share it."""

    def __init__(self, executor: Executor) -> None:
        self.spec: BackboneSpec = executor.spec
        self._executor = executor
        self._made: dict[tuple[int, int, bool], Partition] = {}

    def partition(self, start: int, end: int, *, branch: bool) -> Partition:
        """Return blocks start:end, with the branch at ``end`` or without."""
        key = (start, end, branch)
        if key not in self._made:
            self._made[key] = self._executor.partition(start, end, branch=branch)
        return self._made[key]


class Loaded:
    """All plans of a release on one tier, ready to run; used by one thread at a time.

    Raises:
        DeploymentError: the tier has less memory than its partitions need.
        InvalidValue: the network does not have what a plan asks for.
    """

    def __init__(self, release: Release, tier: int, executor: Shared) -> None:
        self.release, self.tier = release, tier
        self.spec = executor.spec
        self.decoder: InputDecoder = decoder_from_dict(release.decoder)
        self._ranges = release.value_ranges()
        self._check_memory()
        self.plans = [Deployed(plan.to_dict(), tier, executor, self._codec) for plan in release.plans]
        for plan in self.plans:
            for step, partition in plan.partitions.items():
                partition(np.zeros(self.spec.cut_shapes[plan.cuts[step]], np.float32))

    def _codec(self, name: str, cut: int) -> Codec:
        return make_codec(name, self.decoder, self.spec.cut_shapes[cut], self._ranges.get(cut))

    def _check_memory(self) -> None:
        plans = self.release.plans
        deepest = max(plan.cuts[-1] for plan in plans)
        if deepest > self.spec.num_blocks:
            raise DeploymentError(f"{self.spec.name} has cuts 1–{self.spec.num_blocks}, but a plan cuts at {deepest}")
        stated = self.release.memory_bytes[self.tier]
        room = host_memory_bytes() if stated is None else stated
        ours = {
            part
            for plan in plans
            for part, tier in zip(plan.partitions, plan.placement, strict=True)
            if tier == self.tier
        }
        if room is None or not self.spec.block_bytes:
            return
        needed = float(sum(self.spec.partition_bytes()[start, end] for start, end in ours))
        if needed > room:
            raise DeploymentError(
                f"tier {self.release.tiers[self.tier]!r} has {room:.0f} B of memory, but its partitions of all plans "
                f"need {needed:.0f} B; leave plans out, or plan with its `memory` stated"
            )

    def begin(self, index: int, encoded: bytes) -> Outcome:
        """Take a sample into the plan at ``index``; only on the source.

        Raises:
            DataError: it is no sample of a known format.
        """
        plan, outcome = self.plans[index], Outcome(0)
        codec = plan.codecs[0]
        first_here = plan.placement[0] == self.tier
        if not first_here and codec is not None and codec.name == "encoded":
            return self._pass_on(plan, 0, Sample(encoded, _NO_TENSOR), outcome)
        began = time.perf_counter()
        sample = Sample(encoded, self.decoder.decode(encoded))
        outcome.terms.append(("decode", time.perf_counter() - began))
        if not first_here:
            return self._pass_on(plan, 0, sample, outcome)
        return self._walk(plan, 0, sample.tensor, outcome)

    def carry_on(self, index: int, step: int, payload: Payload) -> Outcome:
        """Run partition ``step`` on a tensor that came by message, and those that follow on this tier.

        Raises:
            MessageError: this tier takes no such message, or the payload is no such tensor.
            DataError: the payload is a sample's own encoding, and no such sample.
        """
        plan, outcome = self.plans[index], Outcome(step)
        codec = plan.codecs[step] if step in plan.partitions else None
        if codec is None:
            raise MessageError(f"tier {self.tier} takes no message for partition {step} of plan {index}")
        began = time.perf_counter()
        tensor = codec.decode(payload, self.spec.cut_shapes[plan.cuts[step]])
        outcome.terms.append(("decode", time.perf_counter() - began))
        return self._walk(plan, step, tensor, outcome)

    def _walk(self, plan: Deployed, step: int, tensor: Tensor, outcome: Outcome) -> Outcome:
        while True:
            began = time.perf_counter()
            found = plan.partitions[step](tensor)
            outcome.terms.append(("compute", time.perf_counter() - began))
            if plan.leaves(step, found.score):
                outcome.step, outcome.label, outcome.score = step, found.label, found.score
                return outcome
            step, tensor = step + 1, found.features
            if plan.placement[step] != self.tier:
                return self._pass_on(plan, step, tensor, outcome)

    def _pass_on(self, plan: Deployed, step: int, value: Tensor | Sample, outcome: Outcome) -> Outcome:
        codec = plan.codecs[step]
        assert codec is not None  # a release is checked for it
        began = time.perf_counter()
        outcome.payload = codec.encode(value)
        outcome.terms.append(("encode", time.perf_counter() - began))
        outcome.step = step
        return outcome


def host_memory_bytes(limits: Sequence[str] = ("/sys/fs/cgroup/memory.max",)) -> float | None:
    """Return what this machine, or the container, has of memory; None where the system does not say."""
    try:
        found = [float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    except (AttributeError, ValueError, OSError):
        found = []
    for path in limits:
        try:
            found.append(float(Path(path).read_text()))
        except (OSError, ValueError):  # "max": no limit
            continue
    return min(found, default=None)
