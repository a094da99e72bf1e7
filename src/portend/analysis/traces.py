"""A measurement as traces that other programs open.

`chrome_trace` gives Chrome's trace events, for Perfetto: a track for the samples, for each tier, and for each pair of
tiers between which messages went; a slice per span; arrows along each sample's way. `otlp_trace` gives OpenTelemetry's
spans in the JSON encoding of OTLP 1: a trace per sample, a resource per tier and per pair of tiers.

Axes: n requests, K spans.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from portend.values.measurement import Measurement, Span

__all__ = ["chrome_trace", "otlp_trace"]

_INTERNAL: Final = 1
"""SpanKind of OpenTelemetry: within one application."""


@dataclass(frozen=True, slots=True)
class _Slice:
    """What happened on a track, in seconds since the first sample became available."""

    name: str
    start_s: float
    end_s: float
    facts: dict[str, str | int | bool]


@dataclass(frozen=True, slots=True)
class _Way:
    """A sample: the whole of it, and what happened to it in order, each with its track."""

    whole: _Slice
    parts: tuple[tuple[str, _Slice], ...]


def _ways(measurement: Measurement) -> Iterator[_Way]:
    for request, trace in enumerate(measurement.traces()):
        begin = float(measurement.start_s[request])
        same: dict[str, str | int | bool] = {"request": request, "sample": trace.sample}
        answer: dict[str, str | int | bool] = {
            "exit": trace.exit_index,
            "label": trace.label,
            "correct": bool(measurement.correct[request]),
        }
        yield _Way(
            _Slice(f"sample {trace.sample}", begin, begin + trace.latency_s, same | answer),
            tuple(
                (
                    _track(measurement, span, trace.exit_index),
                    _Slice(
                        _name(measurement, span),
                        begin + span.start_s,
                        begin + span.end_s,
                        same | {"kind": span.kind, "step": span.step},
                    ),
                )
                for span in trace.spans
            ),
        )


def _track(measurement: Measurement, span: Span, exit_index: int) -> str:
    """A tier's name, or for a transfer those of both tiers."""
    names = [tier.name for tier in measurement.topology.tiers]
    if span.kind != "transfer":
        return names[span.tier]
    plan = measurement.plan
    if span.step == len(plan):
        sender = plan.placement[exit_index]
    else:
        sender = measurement.topology.source if span.step == 0 else plan.placement[span.step - 1]
    return f"{names[sender]} → {names[span.tier]}"


def _name(measurement: Measurement, span: Span) -> str:
    plan = measurement.plan
    if span.step == len(plan):
        return f"{span.kind} result"
    if span.kind == "compute":
        start, end = plan.partitions[span.step]
        return f"compute {start + 1}–{end}"
    return f"{span.kind} cut {(0, *plan.cuts)[span.step]}"


def _tracks(measurement: Measurement, ways: Iterable[_Way]) -> list[str]:
    """All tiers in their order, then pairs of tiers in the order of their first message."""
    tiers = [tier.name for tier in measurement.topology.tiers]
    used = (track for way in ways for track, _ in way.parts)
    return list(dict.fromkeys([*tiers, *used]))


def chrome_trace(measurement: Measurement) -> dict[str, Any]:
    """Return JSON values in the format of Chrome's trace events; times in µs since the first sample became available.

    Each track is a process; where slices of it overlap (several messages under way), it has several threads.
    """
    ways = list(_ways(measurement))
    tracks = {name: number for number, name in enumerate(["samples", *_tracks(measurement, ways)], start=1)}
    placed = [("samples", way.whole, request, "") for request, way in enumerate(ways)]
    for request, way in enumerate(ways):
        arrows = ["s", *"t" * (len(way.parts) - 2), "f"] if len(way.parts) > 1 else [""]
        placed += [(*part, request, arrow) for part, arrow in zip(way.parts, arrows, strict=False)]
    lanes: dict[str, list[float]] = {name: [] for name in tracks}
    events: list[dict[str, Any]] = []
    for track, part, request, arrow in sorted(placed, key=lambda each: (each[1].start_s, each[1].end_s)):
        begin = {"pid": tracks[track], "tid": _lane(lanes[track], part), "ts": _us(part.start_s)}
        duration = round(_us(part.end_s) - begin["ts"], 3)
        kind = str(part.facts.get("kind", "sample"))
        events.append({"ph": "X", "name": part.name, "cat": kind, "dur": duration, **begin, "args": part.facts})
        if arrow:
            events.append({"ph": arrow, "name": "way", "cat": "sample", "id": request, "bp": "e", **begin})
    told = [
        {"ph": "M", "name": "process_name", "pid": number, "tid": 0, "args": {"name": name}}
        for name, number in tracks.items()
    ]
    told += [
        {"ph": "M", "name": "process_sort_index", "pid": number, "tid": 0, "args": {"sort_index": number}}
        for number in tracks.values()
    ]
    return {"displayTimeUnit": "ms", "traceEvents": told + events, "otherData": dict(measurement.provenance)}


def _lane(ends_s: list[float], part: _Slice) -> int:
    """Number of the first lane that is free when a slice begins, which it now takes; from 1 on."""
    for lane, end_s in enumerate(ends_s):
        if end_s <= part.start_s:
            ends_s[lane] = part.end_s
            return lane + 1
    ends_s.append(part.end_s)
    return len(ends_s)


def _us(seconds: float) -> float:
    return round(1e6 * seconds, 3)


def otlp_trace(measurement: Measurement) -> dict[str, Any]:
    """Return JSON values of OpenTelemetry's ``TracesData``, as the OTLP file format has them on a line.

    The run ends when the measurement says that it finished; without that it begins at Unix time 0. Ids follow from
    the measurement alone.
    """
    ways = list(_ways(measurement))
    source = measurement.topology.tiers[measurement.topology.source].name
    spans: dict[str, list[dict[str, Any]]] = {name: [] for name in _tracks(measurement, ways)}
    begin_ns = _begin_ns(measurement)
    origin = hashlib.blake2b(digest_size=16)
    for column in (measurement.sample, measurement.start_s, measurement.latency_s):
        origin.update(column.tobytes())
    for request, way in enumerate(ways):
        trace = hashlib.blake2b(origin.digest() + request.to_bytes(8, "big"), digest_size=16)
        ids = [_span_id(trace.digest(), number) for number in range(len(way.parts) + 1)]
        spans[source].append(_otlp_span(trace.hexdigest(), ids[0], "", way.whole, begin_ns))
        for (track, part), own in zip(way.parts, ids[1:], strict=True):
            spans[track].append(_otlp_span(trace.hexdigest(), own, ids[0], part, begin_ns))
    return {
        "resourceSpans": [
            {
                "resource": {
                    "attributes": [_attribute("service.name", name), _attribute("service.namespace", "portend")]
                },
                "scopeSpans": [{"scope": {"name": "portend"}, "spans": found}],
            }
            for name, found in spans.items()
            if found
        ]
    }


def _begin_ns(measurement: Measurement) -> int:
    """Unix time in ns at which the first sample became available, as far as it is known."""
    try:
        finished = datetime.strptime(measurement.provenance.get("finished", ""), "%Y-%m-%dT%H:%M:%S%z")
    except ValueError:
        return 0
    whole_s = float((measurement.start_s + measurement.latency_s).max())
    return round(1e9 * finished.timestamp()) - round(1e9 * whole_s)


def _span_id(trace: bytes, number: int) -> str:
    return hashlib.blake2b(trace + number.to_bytes(8, "big"), digest_size=8).hexdigest()


def _otlp_span(trace: str, own: str, parent: str, part: _Slice, begin_ns: int) -> dict[str, Any]:
    return {
        "traceId": trace,
        "spanId": own,
        "parentSpanId": parent,
        "name": part.name,
        "kind": _INTERNAL,
        "startTimeUnixNano": str(begin_ns + round(1e9 * part.start_s)),
        "endTimeUnixNano": str(begin_ns + round(1e9 * part.end_s)),
        "attributes": [_attribute(f"portend.{key}", value) for key, value in part.facts.items()],
    }


def _attribute(key: str, value: str | int | bool) -> dict[str, Any]:
    kind = {bool: "boolValue", int: "intValue", str: "stringValue"}[type(value)]
    return {"key": key, "value": {kind: str(value) if kind == "intValue" else value}}  # 64-bit numbers are text there
