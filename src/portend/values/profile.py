"""What was measured before planning: how samples exit, and what each device needs.

Its parts are in ``backbone``, ``exits``, ``codecs`` and ``device_profile``.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from portend.errors import MismatchError, choice, law
from portend.values.arrays import Floats
from portend.values.backbone import BackboneSpec, channel_axis
from portend.values.codecs import CodecLoss, ValueRange
from portend.values.device_profile import DeviceProfile
from portend.values.exits import SampleExits, TabulatedExits
from portend.values.plan import CODECS, LOSSY, Plan

__all__ = ["Profile"]


def _listed(provenance: Mapping[str, str]) -> str:
    """Which samples, of what data, as far as it is known."""
    return f" of {provenance['data']}" if "data" in provenance else ""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class Profile:
    """All that planning needs to know of one network: its exits and its cost on each device.

    Attributes:
        backbone: the network; exits: per-sample scores, or tables.
        devices: by the name that tiers refer to.
        provenance: where the samples and weights come from.
        ranges: of the values at the cuts 0 … N−1, for int8; empty: not known.
        losses: what lossy codecs cost, by how they write numbers (``plan.LOSSY``; compressing costs nothing).
    """

    backbone: BackboneSpec
    exits: SampleExits | TabulatedExits
    devices: Mapping[str, DeviceProfile]
    provenance: Mapping[str, str] = field(default_factory=dict)
    ranges: tuple[ValueRange, ...] = ()
    losses: Mapping[str, CodecLoss] = field(default_factory=dict)

    def __post_init__(self) -> None:
        blocks = self.backbone.num_blocks
        law(
            self.exits.num_branches == blocks,
            f"a backbone of {blocks} blocks has {blocks} branches, but the exits have {self.exits.num_branches}",
        )
        law(bool(self.devices), "a profile needs at least one device, but got none")
        for name, device in self.devices.items():
            law(
                device.num_blocks == blocks,
                f"device {name!r} was profiled with {device.num_blocks} blocks, the backbone has {blocks}",
            )
            law(
                device.network is None or device.network.cut_shapes == self.backbone.cut_shapes,
                f"device {name!r} was profiled with a network of other tensors than {self.backbone.name}",
            )
        law(
            len(self.ranges) in (0, blocks),
            f"there are ranges for the cuts 0–{blocks - 1}, or none, but got {len(self.ranges)}",
        )
        for shape, limits in zip(self.backbone.cut_shapes, self.ranges, strict=False):
            law(
                limits.channels.shape[1] == shape[channel_axis(shape)],
                f"a tensor of shape {shape} has {shape[channel_axis(shape)]} channels, but got ranges of "
                f"{limits.channels.shape[1]}",
            )
        for name, loss in self.losses.items():
            law(
                name in LOSSY and loss.lost.shape[1] == blocks,
                f"the losses are of {', '.join(LOSSY)} for {blocks} branches, but got {name!r} for "
                f"{loss.lost.shape[1]}",
            )

    def __repr__(self) -> str:
        return f"<{str(self).partition(chr(10))[0]}>"

    def __str__(self) -> str:
        """Return the profile in about ten lines."""
        net, accuracies = self.backbone, self.exits.accuracies()
        used = [cut for cut in net.exit_cuts if cut < net.num_blocks]
        shape = " × ".join(map(str, net.cut_shapes[0]))
        lines = [
            f"Profile of {net.name}: {net.num_blocks} blocks, {len(net.exit_cuts)} exits, {net.num_classes} classes",
            f"  one sample: {shape}; weights {net.weights_sha256[:12] or 'not known'}",
            f"  exits: {self.exits.samples} samples{_listed(self.provenance)}, viewed by {self.exits.criterion}",
            f"  accuracy: {100 * accuracies[-1]:.2f} % without early exits"
            + (f", {100 * accuracies[used[0] - 1]:.2f} % at exit {used[0]}" if used else ""),
        ]
        for name, device in list(self.devices.items())[:4]:
            disturbed = "; disturbed" if "disturbed" in device.environment else ""
            whole = 1e3 * device.compute_s[0, net.num_blocks]
            lines.append(f"  device {name}: {whole:.2f} ms for all blocks, by {device.execution}{disturbed}")
        if len(self.devices) > 4:
            lines.append(f"  and {len(self.devices) - 4} more devices: {', '.join(list(self.devices)[4:])}")
        codecs = dict.fromkeys(codec for device in self.devices.values() for codec in device.codecs)
        return "\n".join([*lines, f"  codecs: {', '.join(codecs)}"])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    @property
    def num_blocks(self) -> int:
        return self.backbone.num_blocks

    def ranges_for(self, plan: Plan) -> dict[int, ValueRange]:
        """Return the ranges that the plan's int8 codecs need, by cut; MismatchError if they are not known."""
        used = [
            cut for (cut, _), name in zip(plan.partitions, plan.codecs, strict=False) if name and name[:4] == "int8"
        ]
        if used and not self.ranges:
            raise MismatchError("the plan uses int8, but the profile has no ranges of values; profile with this codec")
        return {cut: self.ranges[cut] for cut in used}

    def loss(self, codec: str) -> Floats:
        """Largest accuracy that the codec costs an exit after each cut, [N+1] in 0–1; NaN where not measured.

        0 for a codec that loses nothing.
        """
        choice("a codec", codec, CODECS)
        numbers = codec.partition("+")[0]
        if numbers not in LOSSY:
            return np.zeros(self.num_blocks + 1)
        known = self.losses.get(numbers)
        return np.full(self.num_blocks + 1, np.nan) if known is None else known.loss

    def disturbed(self, devices: Iterable[str] | None = None) -> tuple[str, ...]:
        """What disturbed the machines that were profiled (``DeviceProfile.disturbed``), of some devices or of all."""
        names = dict.fromkeys(self.devices if devices is None else devices)
        return tuple(told for name in names if (told := self.devices[name].disturbed))

    def by(self, criterion: str) -> Profile:
        """Return the profile whose exits are viewed by another criterion; MismatchError without scores of it."""
        return replace(self, exits=self.exits.by(criterion))

    def viewed_for(self, plan: Plan) -> Profile:
        """Return the profile by the criterion of a plan's thresholds, whichever it is where the plan has no exits."""
        return self.by(plan.criterion) if plan.asks else self

    @property
    def full_accuracy(self) -> float:
        """Accuracy of the last branch on all profiling samples: the network without early exits."""
        return float(self.exits.accuracies()[-1])
