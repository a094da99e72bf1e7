"""What messages cost between two agents without links: encoding, decoding, and what the runtime spends on each.

Each codec encodes and decodes the tensors of several samples at every cut, one right after the other. By real
messages, with the pauses of a deployment, it is measured at cut 0 and at a few more cuts, of tensors from the
smallest to the largest; elsewhere ``CodecProfile`` draws a line through those.

Axes: R repeats, S samples, N+1 cuts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from portend.data.dataset import Dataset
from portend.profiling.bench import Bench
from portend.runtime.protocol import Header, pack_header, wire_bytes
from portend.values.backbone import BackboneSpec
from portend.values.codecs import CodecProfile, ResultProfile

__all__ = ["count_messages", "profile_messages", "profile_result"]

_SENDER, _RECEIVER = 0, 1


def profile_messages(
    bench: Bench,
    spec: BackboneSpec,
    dataset: Dataset,
    codecs: Sequence[str],
    *,
    samples: int,
    cuts: int,
    repeats: int,
    gap_s: float,
) -> dict[str, CodecProfile]:
    """Return what each codec costs at each cut but the last, which is never sent; ``encoded`` at cut 0 alone.

    Args:
        bench: its first agent has loaded ``samples`` samples.
        cuts: how many cuts after a block are measured by messages, ``repeats`` of each, ``gap_s`` apart.
    """
    names = [[name for name in codecs if cut == 0 or name != "encoded"] for cut in range(spec.num_blocks)]
    rows = iter(bench.time_codecs(names, samples=samples))
    busy = {(name, cut): next(rows) for cut, at_cut in enumerate(names) for name in at_cut}
    probed = _probed(spec, cuts)
    profiles: dict[str, CodecProfile] = {}
    for name in codecs:
        tables: dict[str, NDArray[np.float64]] = {
            kind: np.full((count, spec.num_blocks + 1), np.nan)
            for kind, count in (
                ("bytes", samples), ("encode busy", samples), ("decode busy", samples),
                ("encode", repeats), ("decode", repeats), ("transfer", repeats),
            )
        }  # fmt: skip
        for cut, at_cut in enumerate(names):
            if name in at_cut:
                seen = busy[name, cut]
                tables["bytes"][:, cut] = [wire_bytes([_header_bytes(), int(size)]) for size in seen[:, 0]]
                tables["encode busy"][:, cut], tables["decode busy"][:, cut] = seen[:, 1:].T * 1e-9
        for cut in (cut for cut in probed if name in names[cut]):
            spans = bench.probe(_SENDER, _RECEIVER, cut, name, count=repeats + 1, gap_s=gap_s)
            for kind in ("encode", "decode", "transfer"):
                tables[kind][:, cut] = spans[kind][1:]
        message_bytes, spread_bytes = tables["bytes"].mean(axis=0), tables["bytes"].std(axis=0)
        if name == "encoded":
            message_bytes[0], spread_bytes[0] = _encoded_bytes(dataset)
        profiles[name] = CodecProfile(
            message_bytes=message_bytes,
            spread_bytes=spread_bytes,
            encode_repeats_s=tables["encode"],
            encode_busy_repeats_s=tables["encode busy"],
            decode_repeats_s=tables["decode"],
            decode_busy_repeats_s=tables["decode busy"],
            dispatch_repeats_s=tables["transfer"],
        )
    return profiles


def count_messages(spec: BackboneSpec, codecs: Sequence[str], cuts: int) -> int:
    """How often ``profile_messages`` sends a codec's messages of one cut."""
    return sum(name != "encoded" or cut == 0 for name in codecs for cut in _probed(spec, cuts))


def profile_result(bench: Bench, *, repeats: int, gap_s: float) -> ResultProfile:
    """Return what a result costs; its header is packed inside the transfer, so that encoding it costs nothing."""
    spans = bench.probe(_SENDER, _RECEIVER, -1, "float32", count=repeats + 1, gap_s=gap_s)
    header = pack_header(Header("result", 1, 200, 2, time.monotonic_ns(), exit_index=1, label=1, score=0.5))
    return ResultProfile(
        message_bytes=wire_bytes([len(header)]),
        encode_repeats_s=np.zeros(1),
        decode_repeats_s=spans["decode"][1:],
        decode_busy_repeats_s=spans["decode busy"][1:],
        dispatch_repeats_s=spans["transfer"][1:],
    )


def _probed(spec: BackboneSpec, most: int) -> list[int]:
    """Cut 0, and at most so many of the cuts 1 … N−1: of sizes spread from the smallest to the largest tensor."""
    sizes: dict[int, list[int]] = {}
    for cut in range(1, spec.num_blocks):
        sizes.setdefault(math.prod(spec.cut_shapes[cut]), []).append(cut)
    ordered = sorted(sizes)
    chosen = {ordered[round(place)] for place in np.linspace(0, len(ordered) - 1, most)} if ordered else set()
    return [0, *sorted(sizes[size][len(sizes[size]) // 2] for size in chosen)]


def _encoded_bytes(dataset: Dataset) -> tuple[float, float]:
    """Mean and spread of a message with a sample's own encoding, over a thousand samples or more; all, if fewer."""
    some = range(0, len(dataset), max(1, len(dataset) // 1000))
    sizes = [wire_bytes([_header_bytes(), len(dataset.encoded[i])]) for i in some]
    return float(np.mean(sizes)), float(np.std(sizes))


def _header_bytes() -> int:
    return len(pack_header(Header("tensor", 1, 200, 1, time.monotonic_ns())))
