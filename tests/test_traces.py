"""Traces of a measurement in the formats of other programs."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from google.protobuf import json_format
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from portend.analysis.traces import chrome_trace, otlp_trace
from portend.cli.app import cli
from portend.errors import ConfigError
from portend.io.storage import save
from portend.values.measurement import SPAN_KINDS, Measurement
from portend.values.plan import Plan
from portend.values.topology import Link, Tier, Topology

MS = 1e-3


def measurement(*, apart_s: float = 0.1) -> Measurement:
    """Two samples: the first leaves on the edge; the second goes on to the cloud, whose answer comes back."""
    rows = [  # request, kind, step, tier, start, end
        (0, "compute", 0, 0, 0.0, 5.0),
        (1, "compute", 0, 0, 0.0, 5.0),
        (1, "encode", 1, 0, 5.0, 5.5),
        (1, "transfer", 1, 1, 5.5, 30.0),
        (1, "decode", 1, 1, 30.0, 30.5),
        (1, "compute", 1, 1, 30.5, 32.5),
        (1, "transfer", 2, 0, 32.5, 53.0),
        (1, "decode", 2, 0, 53.0, 53.25),
    ]
    request, kind, step, tier, start, end = zip(*rows, strict=True)
    link = Link(bandwidth_bps=1e7, propagation_delay_s=0.02)
    return Measurement(
        plan=Plan(cuts=(4, 8), placement=(0, 1), thresholds=(0.5,), codecs=(None, "float32")),
        topology=Topology(
            name="t", tiers=(Tier(name="edge", device="d"), Tier(name="cloud", device="d")), links=(link,)
        ),
        sample=np.array([7, 3]),
        exit_index=np.array([0, 1]),
        label=np.array([2, 9]),
        correct=np.array([True, False]),
        start_s=np.array([0.0, apart_s]),
        latency_s=np.array([5.0, 53.5]) * MS,
        span_request=np.array(request),
        span_kind=np.array([SPAN_KINDS.index(each) for each in kind]),
        span_step=np.array(step),
        span_tier=np.array(tier),
        span_start_s=np.array(start) * MS,
        span_end_s=np.array(end) * MS,
        provenance={"finished": "2026-01-02T03:04:05+0100"},
    )


def joined(copies: int) -> Measurement:
    """Several such runs at once, so that messages overlap on the links."""
    one = measurement()
    repeated: dict[str, Any] = {
        name: np.tile(getattr(one, name), copies)
        for name in (
            "sample", "exit_index", "label", "correct", "latency_s", "span_kind", "span_step", "span_tier",
            "span_start_s", "span_end_s",
        )
    }  # fmt: skip
    repeated["start_s"] = np.repeat(np.arange(copies) * 5e-3, 2)
    repeated["span_request"] = np.concatenate([one.span_request + 2 * i for i in range(copies)])
    return replace(one, **repeated)


def test_each_tier_and_each_pair_of_tiers_has_its_track() -> None:
    events = chrome_trace(measurement())["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "process_name"}
    assert list(names.values()) == ["samples", "edge", "cloud", "edge → cloud", "cloud → edge"]
    slices = [(names[e["pid"]], e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
    assert slices == [
        ("samples", "sample 7", 0.0, 5000.0),
        ("edge", "compute 1–4", 0.0, 5000.0),
        ("edge", "compute 1–4", 100_000.0, 5000.0),
        ("samples", "sample 3", 100_000.0, 53_500.0),
        ("edge", "encode cut 4", 105_000.0, 500.0),
        ("edge → cloud", "transfer cut 4", 105_500.0, 24_500.0),
        ("cloud", "decode cut 4", 130_000.0, 500.0),
        ("cloud", "compute 5–8", 130_500.0, 2000.0),
        ("cloud → edge", "transfer result", 132_500.0, 20_500.0),
        ("edge", "decode result", 153_000.0, 250.0),
    ]


def test_arrows_follow_a_sample_from_its_first_slice_to_its_last() -> None:
    events = chrome_trace(measurement())["traceEvents"]
    arrows = [e for e in events if e["ph"] in "stf"]
    assert [(e["id"], e["ph"]) for e in arrows] == [(1, phase) for phase in "stttttf"]  # the first sample has one slice
    begins = {(e["pid"], e["tid"], e["ts"]) for e in events if e["ph"] == "X"}
    assert all((e["pid"], e["tid"], e["ts"]) in begins for e in arrows)


def test_slices_that_overlap_get_threads_of_their_own() -> None:
    events = [e for e in chrome_trace(joined(6))["traceEvents"] if e["ph"] == "X"]
    assert len(events) == 6 * 10
    threads: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in events:
        threads.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
    for found in threads.values():
        found.sort()
        assert all(before <= after for (_, before), (after, _) in pairwise(found))
    assert any(tid > 1 for _, tid in threads)


def test_opentelemetry_reads_the_spans() -> None:
    (resources, trace_ids) = _read(otlp_trace(measurement()))
    assert {name: len(spans) for name, spans in resources.items()} == {
        "edge": 2 + 4,  # two samples; three times work on the second's way, one on the first's
        "cloud": 2,
        "edge → cloud": 1,
        "cloud → edge": 1,
    }
    assert len(trace_ids) == 2
    roots = {span.span_id: span for spans in resources.values() for span in spans if not span.parent_span_id}
    assert sorted(span.name for span in roots.values()) == ["sample 3", "sample 7"]
    for span in (span for spans in resources.values() for span in spans if span.parent_span_id):
        root = roots[span.parent_span_id]
        assert span.trace_id == root.trace_id
        assert root.start_time_unix_nano <= span.start_time_unix_nano
        assert span.start_time_unix_nano < span.end_time_unix_nano <= root.end_time_unix_nano
    last = max(root.end_time_unix_nano for root in roots.values())
    assert last == 1_767_319_445 * 10**9  # 2026-01-02T03:04:05+0100
    (compute,) = (span for span in resources["cloud"] if span.name == "compute 5–8")
    assert compute.end_time_unix_nano - compute.start_time_unix_nano == pytest.approx(2e6, abs=2)
    facts = {item.key: item.value for item in compute.attributes}
    assert (facts["portend.sample"].int_value, facts["portend.kind"].string_value) == (3, "compute")


def _read(document: dict[str, Any]) -> tuple[dict[str, list[Any]], set[bytes]]:
    """The spans by service, read by OpenTelemetry's own schema; its JSON has ids in hex where protobuf's has base64."""
    text = json.loads(json.dumps(document))
    spans = [s for r in text["resourceSpans"] for scope in r["scopeSpans"] for s in scope["spans"]]
    for span in spans:
        for key, size in (("traceId", 16), ("spanId", 8), ("parentSpanId", 8)):
            data = bytes.fromhex(span[key])
            assert len(data) == size or (key == "parentSpanId" and not data)
            span[key] = base64.b64encode(data).decode()
    data = json_format.ParseDict(text, TracesData())  # refuses unknown fields
    found = {
        resource.resource.attributes[0].value.string_value: list(resource.scope_spans[0].spans)
        for resource in data.resource_spans
    }
    return found, {span.trace_id for spans in found.values() for span in spans}


def test_the_same_measurement_gives_the_same_ids() -> None:
    assert otlp_trace(measurement()) == otlp_trace(measurement())
    assert _read(otlp_trace(measurement()))[1].isdisjoint(_read(otlp_trace(measurement(apart_s=0.2)))[1])


def test_the_command_writes_what_it_is_asked_for(tmp_path: Path) -> None:
    save(measurement(), tmp_path / "run.zip")
    asked = ["trace", str(tmp_path / "run.zip")]
    refused = CliRunner().invoke(cli, asked)
    assert isinstance(refused.exception, ConfigError)
    done = CliRunner().invoke(cli, [*asked, "--chrome", str(tmp_path / "c.json"), "--otlp", str(tmp_path / "o.json")])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "c.json").read_text()) == chrome_trace(measurement())
    (line,) = (tmp_path / "o.json").read_text().splitlines()
    assert json.loads(line) == otlp_trace(measurement())
