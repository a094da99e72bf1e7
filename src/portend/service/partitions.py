"""A release's plans as one tier runs them: what happens to a sample here, and where it goes next."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from portend.controlgroups import memory_bytes
from portend.data.decoding import InputDecoder, TensorDecoder, decoder_from_dict
from portend.data.headers import values
from portend.errors import DeploymentError, MessageError, PortendError
from portend.runtime.codecs import Codec, Payload, Sample, make_codec
from portend.runtime.deployed import Deployed
from portend.runtime.executor import Executor, Partition
from portend.service.release import Release, plan_name
from portend.values.backbone import BackboneSpec

__all__ = ["Loaded", "Outcome", "Shared"]

Tensor = NDArray[np.float32]
_T = TypeVar("_T")

_LARGE: Final = 1 << 21  # pixels or samples, as of 1920 x 1080: some 20 ms of decoding
_OVERHEAD: Final = 1 << 16  # by which a compressed tensor may be longer than a plain one
_NO_TENSOR: Final[Tensor] = np.zeros(0, dtype=np.float32)


@dataclass(slots=True)
class Outcome:
    """What a tier did with a sample.

    Attributes:
        payload: the tensor for partition ``step`` on another tier; None if the sample left at partition ``step``, with
            ``label`` and ``score``.
        terms: seconds of each (``encode``, ``decode``, ``compute``) that was done here; of a batch, those of all of it.
        tensor: what goes into partition ``step`` on this tier; None once it is done here.
    """

    step: int
    tensor: Tensor | None = None
    payload: Payload | None = None
    label: int = -1
    score: float = float("nan")
    terms: list[tuple[str, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A sample in its own encoding, and the network's input that was made of it beforehand."""

    encoded: Payload
    tensor: Tensor


Found = Outcome | PortendError
"""What came of a sample, or why nothing did."""


class Shared:
    """An executor that makes each partition once, for batches of ``most``; plans and releases share it."""

    def __init__(self, executor: Executor, most: int = 1) -> None:
        self.spec: BackboneSpec = executor.spec
        self._executor, self._most = executor, most
        self._made: dict[tuple[int, int, bool], Partition] = {}

    def partition(self, start: int, end: int, *, branch: bool, most: int = 1) -> Partition:
        """Return blocks start:end, with the branch at ``end`` or without; for as large batches as all."""
        key = (start, end, branch)
        if key not in self._made:
            self._made[key] = self._executor.partition(start, end, branch=branch, most=self._most)
        return self._made[key]


class Loaded:
    """All plans of a release on one tier, ready to run; used by one thread at a time.

    Raises:
        DeploymentError: the tier has less memory than its partitions need.
        InvalidValue: the network does not have what a plan asks for.
    """

    def __init__(self, release: Release, tier: int, executor: Shared) -> None:
        self.release, self.tier, self.batch = release, tier, release.batches[tier]
        self.spec = executor.spec
        self.decoder: InputDecoder = decoder_from_dict(release.decoder)
        self._ranges = release.value_ranges()
        self._check_memory()
        self.plans = [Deployed(plan.to_dict(), tier, executor, self._codec) for plan in release.plans]
        for plan in self.plans:
            for step, partition in plan.partitions.items():
                zeros = np.zeros(self.spec.cut_shapes[plan.cuts[step]], np.float32)
                partition(zeros)
                if self.batch > 1:
                    partition.many([zeros] * self.batch)

    def _codec(self, name: str, cut: int) -> Codec:
        return make_codec(name, self.decoder, self.spec.cut_shapes[cut], self._ranges.get(cut))

    def _check_memory(self) -> None:
        plans = self.release.plans
        deepest = max(plan.cuts[-1] for plan in plans)
        if deepest > self.spec.num_blocks:
            raise DeploymentError(f"{self.spec.name} has cuts 1–{self.spec.num_blocks}, but a plan cuts at {deepest}")
        stated = self.release.memory_bytes[self.tier]
        room = memory_bytes() if stated is None else stated
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

    def is_large(self, encoded: Payload) -> bool:
        """Whether a sample takes long to decode, by its header; one whose header says nothing may."""
        if isinstance(self.decoder, TensorDecoder):
            return False
        found = values(encoded)
        return found is None or found > _LARGE

    def passes_on(self, index: int) -> bool:
        """Whether samples leave the source in their own encoding."""
        plan = self.plans[index]
        return plan.placement[0] != self.tier and (first := plan.codecs[0]) is not None and first.name == "encoded"

    def takes_encoded(self, index: int, step: int) -> bool:
        """Whether samples come to partition ``step`` on this tier in their own encoding."""
        codec = self.plans[index].codecs[step] if step in self.plans[index].partitions else None
        return codec is not None and codec.name == "encoded"

    def most_bytes(self, index: int, step: int) -> int:
        """Return how many bytes a message for partition ``step`` has at most."""
        if self.takes_encoded(index, step):
            return self.release.limits.sample_bytes
        return 4 * math.prod(self.spec.cut_shapes[self.plans[index].cuts[step]]) + _OVERHEAD

    def decode(self, samples: Sequence[Payload]) -> list[Decoded | PortendError]:
        """Decode samples, in any thread; those that ``begin`` and ``carry_on`` take then."""
        return [_tried(lambda each: Decoded(each, self.decoder.decode(bytes(each))), sample) for sample in samples]

    def begin(self, index: int, samples: Sequence[bytes | Decoded]) -> list[Found]:
        """Take samples into the plan at ``index``; only on the source.

        A sample of no known format is a DataError among what is found.
        """
        plan = self.plans[index]
        return self._walk(plan, 0, [_tried(self._enter, plan, encoded) for encoded in samples])

    def _enter(self, plan: Deployed, sample: bytes | Decoded) -> Outcome:
        encoded = bytes(sample.encoded) if isinstance(sample, Decoded) else sample
        outcome, codec = Outcome(0), plan.codecs[0]
        first_here = plan.placement[0] == self.tier
        if not first_here and codec is not None and codec.name == "encoded":
            self._pass_on(plan, Sample(encoded, _NO_TENSOR), outcome)
            return outcome
        began = time.perf_counter()
        tensor = sample.tensor if isinstance(sample, Decoded) else self.decoder.decode(encoded)
        outcome.terms.append(("decode", time.perf_counter() - began))
        if first_here:
            outcome.tensor = tensor
        else:
            self._pass_on(plan, Sample(encoded, tensor), outcome)
        return outcome

    def carry_on(self, index: int, step: int, payloads: Sequence[Payload | Decoded]) -> list[Found]:
        """Run partition ``step`` on tensors that came by message, and those that follow on this tier.

        What is no such tensor is a MessageError among what is found; a DataError, if it is a sample's own encoding, and
        no such sample.

        Raises:
            MessageError: this tier takes no such message.
        """
        plan = self.plans[index]
        codec = plan.codecs[step] if step in plan.partitions else None
        if codec is None:
            raise MessageError(
                f"{self.release.tiers[self.tier]!r} takes no message for partition {step + 1} of {plan_name(index)}"
            )
        shape = self.spec.cut_shapes[plan.cuts[step]]
        return self._walk(plan, step, [_tried(_received, codec, payload, shape, step) for payload in payloads])

    def _walk(self, plan: Deployed, step: int, found: list[Found]) -> list[Found]:
        """Run partitions, from ``step`` on, on those that have a tensor, until none is left on this tier."""
        while going := [(each, each.tensor) for each in found if isinstance(each, Outcome) and each.tensor is not None]:
            if plan.placement[step] != self.tier:
                for each, tensor in going:
                    each.step, each.tensor = step, None
                    self._pass_on(plan, tensor, each)
                break
            began = time.perf_counter()
            partition = plan.partitions[step]
            results = [partition(going[0][1])] if len(going) == 1 else partition.many([tensor for _, tensor in going])
            seconds = time.perf_counter() - began
            for (each, _), result in zip(going, results, strict=True):
                each.terms.append(("compute", seconds))
                each.tensor = result.features
                if plan.leaves(step, result.score):
                    each.step, each.label, each.score, each.tensor = step, result.label, result.score, None
            step += 1
        return found

    def _pass_on(self, plan: Deployed, value: Tensor | Sample, outcome: Outcome) -> None:
        codec = plan.codecs[outcome.step]
        assert codec is not None  # a release is checked for it
        began = time.perf_counter()
        outcome.payload = codec.encode(value)
        outcome.terms.append(("encode", time.perf_counter() - began))


def _tried(work: Callable[..., _T], *arguments: Any) -> _T | PortendError:
    """Return what it gives, or the reason why not, which is this sample's alone."""
    try:
        return work(*arguments)
    except PortendError as error:
        return error


def _received(codec: Codec, payload: Payload | Decoded, shape: tuple[int, ...], step: int) -> Outcome:
    outcome, began = Outcome(step), time.perf_counter()
    outcome.tensor = payload.tensor if isinstance(payload, Decoded) else codec.decode(payload, shape)
    outcome.terms.append(("decode", time.perf_counter() - began))
    return outcome
