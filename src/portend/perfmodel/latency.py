"""Seconds of every step a sample may take, for one profile on one topology.

Axes: M tiers, N+1 cuts, K codecs, P latency parts (``PARTS``).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from portend.errors import MismatchError, choice
from portend.perfmodel.estimate import PARTS
from portend.values.compute_fit import ComputeFit, StartFit
from portend.values.device_profile import DeviceProfile
from portend.values.plan import CODECS
from portend.values.profile import Profile
from portend.values.topology import Topology

__all__ = ["LatencyTables"]

Floats = NDArray[np.float64]

_COMPUTE, _ENCODE, _DECODE, _TRANSMISSION, _PROPAGATION, _DISPATCH = range(len(PARTS))


class LatencyTables:
    """Every latency term of the model, gathered once; plans only look up and add.

    Attributes:
        compute_s: [2, 2, M, N+1, N+1] seconds for blocks start:end on each tier; the first axis tells
            whether the tier was idle before (woken by a message or by a new sample), the second
            whether the branch at ``end`` is run (it is not where the exit is not used).
        codecs: K names; hop_parts_s: [K, N+1, M, M, P] seconds to bring the tensor of a cut from
            one tier to another; +inf in the encode part where a codec is not offered, also because it loses more
            accuracy there than ``codec_tolerance``, or an unknown amount (never at an infinite tolerance).
        result_parts_s: [M, P] seconds to bring a result from a tier to the destination.
        fits, starts: of each tier, the estimates that ``compute_s`` is made of, and their uncertainty.
    """

    def __init__(self, profile: Profile, topology: Topology, codec_tolerance: float) -> None:
        devices = [_device(profile, topology, tier) for tier in range(len(topology.tiers))]
        self.codecs: tuple[str, ...] = tuple(dict.fromkeys(name for device in devices for name in device.codecs))
        slow = [tier.slowdown for tier in topology.tiers]
        self.fits: tuple[ComputeFit, ...] = tuple(device.compute_fit for device in devices)
        self.starts: tuple[StartFit, ...] = tuple(d.starts(s) for d, s in zip(devices, slow, strict=True))
        self.compute_s: Floats = np.stack(
            [_compute_s(*each) for each in zip(self.fits, self.starts, slow, strict=True)], axis=2
        )
        within = {name: np.nan_to_num(profile.loss(name), nan=np.inf) <= codec_tolerance for name in self.codecs}
        self._message_bytes: Floats = np.stack(
            [_message_bytes(name, devices, profile.num_blocks + 1) for name in self.codecs]
        )
        self._result_bytes: Floats = np.array([device.result.message_bytes for device in devices])
        self._topology = topology
        self.hop_parts_s: Floats = np.stack(
            [
                _hop_parts(name, devices, slow, topology, within[name] & np.isfinite(size).T)
                for name, size in zip(self.codecs, self._message_bytes, strict=True)
            ]
        )
        self._ingest_by_message = topology.ingest == "message"
        self.result_parts_s: Floats = _result_parts(devices, slow, topology.destination)
        self._charge_links(topology)

    def with_links(self, topology: Topology) -> LatencyTables | None:
        """Return the tables of a topology that differs in its links alone, or None: it differs in more."""
        ours = self._topology
        if (ours.tiers, ours.destination, ours.ingest) != (topology.tiers, topology.destination, topology.ingest):
            return None
        other = copy.copy(self)
        other._topology = topology
        other.hop_parts_s, other.result_parts_s = self.hop_parts_s.copy(), self.result_parts_s.copy()
        other._charge_links(topology)
        return other

    def compute_sd_s(self, runs: Sequence[tuple[float, int, int, int, bool, bool]]) -> float:
        """Standard deviation, s, of a sum of partitions' times, as far as the times are uncertain.

        Args:
            runs: how often (less than 0: taken off), tier, start, end, whether woken, whether with the branch. Tiers of
                one device are off together.
        """
        size = self.compute_s.shape[-1]
        busy = {id(fit): (fit, np.zeros((size, size)), np.zeros(size)) for fit in self.fits}
        first = [np.zeros((2, size, size)) for _ in self.fits]
        for times, tier, start, end, woken, branch in runs:
            _, partitions, branches = busy[id(self.fits[tier])]
            slow = self._topology.tiers[tier].slowdown
            partitions[start, end] += times * slow
            branches[end] -= 0.0 if branch else times * slow
            first[tier][0 if woken else 1, start, end] += times
        variance = sum(fit.variance_s2(partitions, branches) for fit, partitions, branches in busy.values())
        variance += sum(starts.variance_s2(*each) for starts, each in zip(self.starts, first, strict=True))
        return math.sqrt(max(variance, 0.0))

    def _charge_links(self, topology: Topology) -> None:
        propagation, to = topology.propagation_s(), topology.destination
        tiers = range(len(topology.tiers))
        offered = np.isfinite(self.hop_parts_s[..., _ENCODE])
        on_wire = topology.transmission_s(self._message_bytes)  # [K, N+1, M, M, M], of which the sender's own sizes
        sent = np.stack([on_wire[:, :, tier, tier] for tier in tiers], axis=2)
        self.hop_parts_s[..., _TRANSMISSION] = np.where(offered, sent, 0.0)
        self.hop_parts_s[..., _PROPAGATION] = np.where(offered, propagation, 0.0)
        result = topology.transmission_s(self._result_bytes)
        self.result_parts_s[:, _TRANSMISSION] = [result[tier, tier, to] for tier in tiers]
        self.result_parts_s[:, _PROPAGATION] = propagation[:, to]

    def hop_s(self, codecs: Sequence[str] | None = None, cost: Floats | None = None) -> tuple[Floats, NDArray[np.intp]]:
        """Seconds [N+1, M, M] of the cheapest admitted codec, and its index (-1 on the same tier).

        With another ``cost`` [K, N+1, M, M] than seconds, that of the codec that is cheapest in it (of equals the
        fastest). For fixed cuts and placement the best codec of a hop does not depend on the other hops.
        """
        for name in codecs or ():
            choice("a codec", name, dict.fromkeys((*self.codecs, *CODECS)))
        admitted = [k for k, name in enumerate(self.codecs) if codecs is None or name in codecs]
        if not admitted:
            raise MismatchError(f"none of the codecs {codecs} was profiled; the profile has {list(self.codecs)}")
        total = self.hop_parts_s[admitted].sum(axis=-1)
        best = total.argmin(axis=0)
        if cost is not None:
            seconds, total = total, np.where(np.isfinite(total), cost[admitted], np.inf)
            best = np.where(total == total.min(axis=0), seconds, np.inf).argmin(axis=0)
        index = np.asarray(admitted, dtype=np.intp)[best]
        seconds = np.take_along_axis(total, best[None], axis=0)[0]
        tiers = np.arange(seconds.shape[-1])
        index[1:, tiers, tiers] = -1
        if not self._ingest_by_message:
            index[0, tiers, tiers] = -1
        return seconds, index


def _device(profile: Profile, topology: Topology, tier: int) -> DeviceProfile:
    name = topology.tiers[tier].device
    if name not in profile.devices:
        raise MismatchError(
            f"tier {topology.tiers[tier].name!r} names the device {name!r}, but the profile has "
            f"{sorted(profile.devices)}; profile that device, or name one of these in the topology"
        )
    return profile.devices[name]


def _compute_s(fit: ComputeFit, starts: StartFit, slowdown: float) -> Floats:
    """Seconds [2 woken, 2 branch run, N+1, N+1] of blocks start:end."""
    full = slowdown * fit.seconds + np.stack([starts.following_s, starts.woken_s])
    return np.stack([np.maximum(full - slowdown * fit.branch_s, 0.0), full], axis=1)


def _message_bytes(name: str, devices: list[DeviceProfile], cuts: int) -> Floats:
    """Bytes [N+1, M] that each tier sends with one codec; NaN where it cannot."""
    codecs = [device.codecs.get(name) for device in devices]
    never = np.full(cuts, np.nan)
    return np.stack([never if codec is None else codec.message_bytes for codec in codecs], axis=1)


def _hop_parts(
    name: str, devices: list[DeviceProfile], slow: list[float], topology: Topology, offered: NDArray[np.bool_]
) -> Floats:
    """Parts [N+1, M, M, P] of a hop with one codec, without the links'; sender's axis before the receiver's.

    ``offered`` [M, N+1]: the cuts at which each sender may use it.
    """
    tiers = len(devices)
    never = np.full(offered.shape[1], np.nan)
    codecs = [device.codecs.get(name) for device in devices]
    speeds = list(zip(codecs, slow, strict=True))
    encode = np.stack([never if codec is None else codec.encode_s(factor) for codec, factor in speeds], axis=1)
    decode = np.stack([never if codec is None else codec.decode_s(factor) for codec, factor in speeds], axis=1)
    dispatch = np.stack([never if codec is None else codec.dispatch_s for codec in codecs], axis=1)
    same = np.eye(tiers, dtype=bool)
    parts = np.zeros((offered.shape[1], tiers, tiers, len(PARTS)))
    parts[..., _ENCODE] = encode[:, :, None]
    parts[..., _DECODE] = decode[:, None, :]
    parts[..., _DISPATCH] = dispatch[:, None, :]
    missing = ~(np.isfinite(parts).all(axis=-1) & offered.T[:, :, None])
    parts[missing] = 0.0
    parts[missing, _ENCODE] = np.inf
    parts[1:, same] = 0.0
    if topology.ingest == "in_process":
        parts[0, same] = 0.0
    else:
        parts[0, same, _DISPATCH] = 0.0
    return parts


def _result_parts(devices: list[DeviceProfile], slow: list[float], to: int) -> Floats:
    """Parts [M, P] of bringing a result from each tier to the destination, without the links'; 0 from the latter."""
    parts = np.zeros((len(devices), len(PARTS)))
    for tier, device in enumerate(devices):
        parts[tier, _ENCODE] = device.result.encode_s(slow[tier])
        parts[tier, _DECODE] = devices[to].result.decode_s(slow[to])
        parts[tier, _DISPATCH] = devices[to].result.dispatch_s
    parts[to] = 0.0
    return parts
