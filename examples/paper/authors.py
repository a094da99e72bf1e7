"""The public measurements of the paper's authors as Portend's values.

Source: github.com/MaryamEbr/PORTEND_Performance_Model, rewritten as plain JSON: ``topology.json``,
``intermediate_shapes.json``, ``exits/NETWORK.json``, ``computation/DEVICE.json`` and
``serialization/DEVICE.json``. The files hold ms, Mbit/s and bytes; Portend's values hold s, bit/s and bytes.

The values follow the conventions of the authors' program: the longest of the repeats counts, a message
is the profiled one and an allowance for its headers, packets have no headers of their own, results are
neither encoded nor decoded, and an unused exit saves no time.

Every function raises DataError, which names the file, where a file is missing, unreadable or incomplete.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from portend.errors import DataError
from portend.values.backbone import BackboneSpec
from portend.values.codecs import CodecProfile, ResultProfile
from portend.values.device_profile import DeviceProfile
from portend.values.exits import TabulatedExits
from portend.values.profile import Profile
from portend.values.topology import Link, Tier, Topology

__all__ = [
    "NETWORKS",
    "device_networks",
    "read_device",
    "read_exits",
    "read_profile",
    "read_thresholds",
    "read_topology",
]

Floats = NDArray[np.float64]

NETWORKS: Final = ("ResNet20", "ResNet110", "EfficientNetB0", "VGGish")
"""The networks of the paper's evaluation, as the files call them."""

HEADER_ALLOWANCE_BYTES: Final = 100
"""What the authors add to every profiled message for its headers."""
RESULT_BYTES: Final = 250
"""The message that returns a label (about 250 to 350 bytes in the authors' program)."""
SENT_BYTES: Final[Mapping[tuple[str, int], int]] = {("VGGish", 0): 1_764_860}
"""Messages, by network and cut, that are not the profiled ones, allowance included: VGGish was profiled
with a float32 array as its input, but what is sent is the int16 clip (README of the data)."""
CLASSES: Final[Mapping[str, int]] = {"CIFAR10": 10, "ImageNet": 1000, "AudioSet": 527}
"""Labels of each data set; the files do not tell."""


def read_topology(folder: Path, device0: str | None = None) -> Topology:
    """Return the testbed's tiers and links; ``device0`` replaces the device of tier 0.

    Tiers are called by their role. A sample is handed over as a message even on its own tier.
    """
    path = folder / "topology.json"
    values = _read(path)
    with _explained(path):
        tiers = sorted(values["tiers"], key=lambda tier: int(tier["tier"]))
        if len(tiers) != 3:
            raise ValueError(f"the paper's testbed has three tiers, but here are {len(tiers)}")
        devices = [str(tier["device"]) for tier in tiers]
        links = {(int(a), int(b)): link for link in values["links"] for a, b in [sorted(link["between"])]}
        return Topology(
            name="the paper's testbed",
            tiers=tuple(
                Tier(name=str(tier["role"]), device=device)
                for tier, device in zip(tiers, [device0 or devices[0], *devices[1:]], strict=True)
            ),
            links=tuple(
                Link(
                    bandwidth_bps=1e6 * _number(links[j, j + 1]["bandwidth_mbps"]),
                    propagation_delay_s=1e-3 * _number(links[j, j + 1]["propagation_delay_ms"]),
                    mtu_bytes=int(values["mtu_bytes"]),
                    header_bytes=0,
                )
                for j in range(len(tiers) - 1)
            ),
            source=int(values["source_tier"]),
            destination=int(values["destination_tier"]),
            ingest="message",
        )


def read_thresholds(folder: Path) -> tuple[float, ...]:
    """Return the exit thresholds that the authors' search tries."""
    path = folder / "topology.json"
    values = _read(path)
    with _explained(path):
        return tuple(_number(threshold) for threshold in values["thresholds"])


def device_networks(folder: Path, device: str) -> tuple[str, ...]:
    """Return the networks that were measured on a device, computation and serialization."""
    found = []
    for kind in ("computation", "serialization"):
        path = folder / kind / f"{device}.json"
        values = _read(path)
        with _explained(path):
            found.append(tuple(values["models"].keys()))
    return tuple(name for name in found[0] if name in found[1])


def read_profile(folder: Path, network: str, topology: Topology) -> Profile:
    """Return one network's exits and its times on every device of the topology."""
    exits, dataset = read_exits(folder, network)
    blocks = exits.num_branches
    path = folder / "intermediate_shapes.json"
    values = _read(path)
    with _explained(path):
        shapes = values["models"][network]["shapes"]
        inner = [tuple(int(n) for n in shapes[str(cut)]) for cut in range(blocks)]
    return Profile(
        backbone=BackboneSpec(
            name=network,
            block_names=tuple(f"block{i}" for i in range(1, blocks + 1)),
            num_classes=CLASSES.get(dataset, 2),
            cut_shapes=(*(shape[1:] if shape[:1] == (1,) else shape for shape in inner), ()),  # the last is never sent
        ),
        exits=exits,
        devices={
            name: read_device(folder, network, name, blocks) for name in sorted({t.device for t in topology.tiers})
        },
        provenance={"dataset": dataset, "source": "measurements published with the paper (PORTEND_Performance_Model)"},
    )


def read_exits(folder: Path, network: str) -> tuple[TabulatedExits, str]:
    """Return a network's exit table on the validation samples, and the name of its data set.

    A_i = correct / exited at threshold 1, as in the authors' program: its denominator is the samples
    that *did* leave there. It is the accuracy on all samples but where a score is NaN.
    """
    path = folder / "exits" / f"{network}.json"
    values = _read(path)
    with _explained(path):
        samples = int(values["samples"])
        thresholds = [_number(threshold) for threshold in values["thresholds"]]
        branches = sorted(values["branches"], key=lambda branch: int(branch["branch"]))
        if [int(branch["branch"]) for branch in branches] != list(range(1, len(branches) + 1)):
            raise ValueError("branches count from 1 without a gap")
        if 1.0 not in thresholds:
            raise ValueError(f"the accuracies stand at threshold 1, but the thresholds are {thresholds}")
        everyone = thresholds.index(1.0)
        accuracy = [branch["correct"][everyone] / max(branch["exited"][everyone], 1e-9) for branch in branches]
        exits = TabulatedExits(
            thresholds=np.array(thresholds),
            exited=np.array([branch["exited"] for branch in branches], dtype=np.int64).T,
            correct=np.array([round(a * samples) for a in accuracy], dtype=np.int64),
            samples=samples,
        )
        return exits, str(values["dataset"])


def read_device(folder: Path, network: str, device: str, blocks: int) -> DeviceProfile:
    """Return what one network needs on one device, in seconds and bytes."""
    return DeviceProfile(
        device=device,
        compute_repeats_s=_compute_s(folder / "computation" / f"{device}.json", network, blocks)[None],
        idle_repeats_s=np.zeros((0, 1, blocks + 1, blocks + 1)),
        branch_repeats_s=np.zeros((1, blocks + 1)),
        codecs={"float32": _messages(folder / "serialization" / f"{device}.json", network, blocks)},
        result=ResultProfile(
            message_bytes=RESULT_BYTES,
            encode_repeats_s=np.zeros(1),
            decode_repeats_s=np.zeros(1),
            decode_busy_repeats_s=np.zeros(1),
            dispatch_repeats_s=np.zeros(1),
        ),
    )


def _compute_s(path: Path, network: str, blocks: int) -> Floats:
    """Longest repeat of every partition, [N+1, N+1] seconds for blocks start:end; the files count from 1, inclusive."""
    table = np.full((blocks + 1, blocks + 1), np.nan)
    rows = _rows(path, network)
    with _explained(path):
        for row in rows:
            start, end = int(row["start"]), int(row["end"])
            if not 1 <= start <= end <= blocks:
                raise ValueError(f"{network} has no partition {start}–{end}")
            table[start - 1, end] = 1e-3 * max(_number(ms) for ms in row["ms"])
        missing = np.argwhere(np.isnan(table) & np.triu(np.ones(table.shape, dtype=bool), k=1))
        if missing.size:
            raise ValueError(f"{network} lacks {len(missing)} partitions, such as {missing[0][0] + 1}–{missing[0][1]}")
    return table


def _messages(path: Path, network: str, blocks: int) -> CodecProfile:
    """Pickled messages at the cuts 0 to N-1."""
    size, dump, load = np.full((3, blocks + 1), np.nan)
    rows = _rows(path, network)
    with _explained(path):
        for row in rows:
            cut = int(row["cut"])
            if not 0 <= cut < blocks:
                raise ValueError(f"{network} has no cut {cut}")
            size[cut] = SENT_BYTES.get((network, cut), _number(row["bytes"]) + HEADER_ALLOWANCE_BYTES)
            dump[cut], load[cut] = 1e-3 * _number(row["dump_ms"]), 1e-3 * _number(row["load_ms"])
        if np.isnan(size[:blocks]).any():
            raise ValueError(f"{network} lacks cut {int(np.argmax(np.isnan(size)))}")
    return CodecProfile(
        message_bytes=size,
        encode_repeats_s=dump[None],
        encode_busy_repeats_s=dump[None],
        decode_repeats_s=load[None],
        decode_busy_repeats_s=load[None],
        dispatch_repeats_s=np.zeros((1, blocks + 1)),
    )


def _rows(path: Path, network: str) -> list[Any]:
    models = _read(path).get("models")
    if not isinstance(models, dict) or not isinstance(models.get(network), list):
        raise DataError(f"{path} holds no measurements of {network}")
    return list(models[network])


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        here = ", ".join(sorted(p.stem for p in path.parent.glob("*.json"))) or "no JSON files"
        raise DataError(f"{path} is missing; {path.parent} holds {here}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise DataError(f"{path} holds a {type(values).__name__}, not an object with named fields")
    return values


def _number(value: Any) -> float:
    """A finite number that is not negative."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r} is not a finite number from 0 on")
    return float(value)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what goes wrong while taking a file apart into one DataError that names the file."""
    try:
        yield
    except KeyError as error:
        raise DataError(f"{path} lacks {error.args[0]!r}") from None
    except (AttributeError, IndexError, TypeError) as error:
        raise DataError(f"{path} is not in the form that the data's README describes: {error}") from None
    except (ArithmeticError, ValueError) as error:
        raise DataError(f"{path}: {error}") from None
