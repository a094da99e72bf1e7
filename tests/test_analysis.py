"""Comparisons by hand, and a report of a small but complete case."""

from __future__ import annotations

import html
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from portend.analysis.compare import Comparison, agreement, compare
from portend.analysis.console import comparison_table, format_error, format_ms, terms_table
from portend.analysis.exit_table import exit_rows, exits_markdown
from portend.errors import InvalidValue, MismatchError, StorageError
from portend.perfmodel.estimate import PARTS, Estimate
from portend.report import figures as plots
from portend.report.page import ReportData, render_report, write_report
from portend.values.backbone import BackboneSpec
from portend.values.codecs import CodecProfile, ResultProfile
from portend.values.device_profile import DeviceProfile
from portend.values.exits import SampleExits, TabulatedExits
from portend.values.measurement import SPAN_KINDS, Measurement
from portend.values.plan import Plan
from portend.values.profile import Profile
from portend.values.topology import Link, Tier, Topology

TOPOLOGY = Topology(
    name="pair",
    tiers=(Tier(name="edge", device="pi"), Tier(name="cloud", device="server", slowdown=2.0)),
    links=(Link(bandwidth_bps=1e7, propagation_delay_s=0.02),),
)
PLAN = Plan(cuts=(1, 2), placement=(0, 1), thresholds=(0.5,), codecs=(None, "float32"))


def parts(**seconds: float) -> list[float]:
    return [seconds.get(part, 0.0) for part in PARTS]


def estimate(*, share: tuple[float, float] = (0.6, 0.4), plan: Plan = PLAN, scale: float = 1.0) -> Estimate:
    """Leave after 10 ms, or after 10 + 1 + 20 + 5 + 2 + 1 + 4 ms and a result's 7 ms: 50 ms."""
    cloud = parts(encode=0.001, transmission=0.020, propagation=0.005, dispatch=0.002, decode=0.001, compute=0.004)
    back = parts(propagation=0.005, dispatch=0.002)
    return Estimate(
        plan=plan,
        estimator="sample",
        share=np.array(share),
        correct=np.array(share) * 0.9,
        step_parts_s=scale * np.array([parts(compute=0.010), cloud]),
        result_parts_s=scale * np.array([parts(), back]),
        samples=1000,
    )


def measurement(
    *, early: int, late: int, plan: Plan = PLAN, right: int | None = None, scale: float = 1.0
) -> Measurement:
    """``early`` requests that take 11 ms, 1 ms of it in no span, then ``late`` ones that take 52 ms."""
    first = [("compute", 0, 0, 0.000, 0.010)]
    second = [
        *first,
        ("encode", 1, 0, 0.010, 0.011),
        ("transfer", 1, 1, 0.011, 0.039),
        ("decode", 1, 1, 0.039, 0.040),
        ("compute", 1, 1, 0.040, 0.044),
        ("transfer", 2, 0, 0.044, 0.052),
    ]
    total = early + late
    spans = [(request, *span) for request in range(total) for span in (first if request < early else second)]
    columns = list(zip(*spans, strict=True))
    return Measurement(
        plan=plan,
        topology=TOPOLOGY,
        sample=np.arange(total),
        exit_index=np.repeat([0, 1], [early, late]),
        label=np.zeros(total, dtype=np.int64),
        correct=np.arange(total) < (right if right is not None else round(0.9 * total)),
        start_s=np.zeros(total),
        latency_s=scale * np.repeat([0.011, 0.052], [early, late]),
        span_request=np.array(columns[0]),
        span_kind=np.array([SPAN_KINDS.index(kind) for kind in columns[1]]),
        span_step=np.array(columns[2]),
        span_tier=np.array(columns[3]),
        span_start_s=np.array(columns[4]),
        span_end_s=np.array(columns[5]),
        provenance={"machine": "test <bench>"},
    )


def profile(*, blocks: int = 2, samples: int = 1000) -> Profile:
    rng = np.random.default_rng(0)

    def repeats(*shape: int) -> NDArray[np.float64]:
        return np.asarray(rng.uniform(1e-3, 2e-3, shape))

    codec = CodecProfile(
        message_bytes=np.full(blocks + 1, 1e4),
        encode_repeats_s=repeats(3, blocks + 1),
        encode_busy_repeats_s=repeats(3, blocks + 1),
        decode_repeats_s=repeats(3, blocks + 1),
        decode_busy_repeats_s=repeats(3, blocks + 1),
        dispatch_repeats_s=repeats(3, blocks + 1),
    )
    result = ResultProfile(
        message_bytes=60.0,
        encode_repeats_s=repeats(3),
        decode_repeats_s=repeats(3),
        decode_busy_repeats_s=repeats(3),
        dispatch_repeats_s=repeats(3),
    )
    devices = {
        name: DeviceProfile(
            device=name,
            compute_repeats_s=repeats(3, blocks + 1, blocks + 1),
            idle_repeats_s=np.zeros((0, 1, blocks + 1, blocks + 1)),
            branch_repeats_s=repeats(3, blocks + 1),
            codecs={"float32": codec},
            result=result,
            environment={"cpu": f"{name} <cpu>"},
        )
        for name in ("pi", "server")
    }
    backbone = BackboneSpec(
        name="tiny",
        block_names=tuple(f"block{i}" for i in range(1, blocks + 1)),
        num_classes=10,
        cut_shapes=((3, 8, 8),) * (blocks + 1),
    )
    score = rng.uniform(size=(samples, blocks))
    return Profile(
        backbone=backbone,
        exits=SampleExits(scores={"entropy": score}, correct=rng.uniform(size=score.shape) < 0.9),
        devices=devices,
    )


def case(name: str = "split", **changes: Any) -> Comparison:
    return Comparison(name=name, estimate=estimate(), measurement=measurement(**{"early": 50, "late": 50} | changes))


class TestComparison:
    def test_means_by_hand(self) -> None:
        both = case()
        assert both.estimate.mean_s == pytest.approx(0.6 * 0.010 + 0.4 * 0.050)
        assert both.measurement.mean_s == pytest.approx((0.011 + 0.052) / 2)
        assert both.error == pytest.approx(0.026 / 0.0315 - 1)
        assert both.reweighted_mean_s == pytest.approx(0.5 * 0.010 + 0.5 * 0.050)
        deviation = 0.0205 * np.sqrt(100 / 99)
        assert both.standard_error_s == pytest.approx(deviation / 10)

    def test_one_request_has_no_standard_error(self) -> None:
        assert case(early=0, late=1).standard_error_s is None
        assert case(early=0, late=1).to_dict()["latency_ms"]["measured"]["standard_error"] is None

    def test_terms_add_up_and_the_largest_error_is_named(self) -> None:
        both = case()
        terms = {term.name: (term.predicted_s, term.measured_s) for term in both.terms}
        assert terms["compute"] == pytest.approx((0.010 + 0.4 * 0.004, 0.010 + 0.5 * 0.004))
        assert terms["encode"] == pytest.approx((0.4 * 0.001, 0.5 * 0.001))
        assert terms["transfer"] == pytest.approx((0.4 * 0.034, 0.5 * 0.036))
        assert terms["other"] == pytest.approx((0.0, 0.5 * 0.001))
        assert sum(term.predicted_s for term in both.terms) == pytest.approx(both.estimate.mean_s)
        assert sum(term.measured_s for term in both.terms) == pytest.approx(both.measurement.mean_s)
        assert both.largest_error.name == "transfer"
        assert both.largest_error.error_s == pytest.approx(0.0136 - 0.018)

    def test_intervals_follow_the_test_size(self) -> None:
        assert case(early=60, late=40).exit_rates_inside().all()
        assert case(early=53, late=47).exit_rates_inside().all()  # 7 of 100 away: 1.4 standard deviations
        assert not case(early=530, late=470).exit_rates_inside().any()  # 70 of 1000 away: 3.2
        assert case(right=90).accuracy_inside()
        assert not case(right=70).accuracy_inside()

    def test_another_plan_is_refused(self) -> None:
        other = Plan(cuts=(1, 2), placement=(0, 1), thresholds=(0.4,), codecs=(None, "float32"))
        with pytest.raises(MismatchError, match="same plan"):
            compare({"mixed": (estimate(), measurement(early=1, late=1, plan=other))})

    def test_an_exit_that_the_plan_does_not_have_is_refused(self) -> None:
        plan = Plan(cuts=(2,), placement=(0,), codecs=(None,))
        with pytest.raises(MismatchError, match="left at 1"):
            compare({"x": (single(plan), measurement(early=1, late=1, plan=plan))})

    def test_level_is_a_probability(self) -> None:
        with pytest.raises(InvalidValue, match="between 0 and 1"):
            compare({"x": (estimate(), measurement(early=1, late=1))}, level=1.0)

    def test_to_dict_is_json(self) -> None:
        values = json.loads(json.dumps(case().to_dict(), allow_nan=False))
        assert values["latency_ms"]["predicted"]["mean"] == pytest.approx(26.0)
        assert values["latency_ms"]["measured"]["p95"] == pytest.approx(52.0)
        assert values["latency_ms"]["terms"]["decode"] == pytest.approx({"predicted": 0.4, "measured": 0.5})
        assert len(values["exit_rates"]["interval"]) == 2
        assert values["largest_error_term"] == "transfer"


def single(plan: Plan, *, mean_s: float = 0.010) -> Estimate:
    return Estimate(
        plan=plan,
        estimator="sample",
        share=np.ones(1),
        correct=np.full(1, 0.9),
        step_parts_s=np.array([parts(compute=mean_s)]),
        result_parts_s=np.zeros((1, len(PARTS))),
        samples=1000,
    )


class TestAgreement:
    def test_latency_line_through_known_points(self) -> None:
        cases = [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]
        comparisons = [
            Comparison(
                name=str(index),
                estimate=estimate(share=(0.5, 0.5), scale=scale),
                measurement=measurement(early=1, late=1, scale=measured),
            )
            for index, (scale, measured) in enumerate(cases)
        ]
        latency = agreement(comparisons)["latency"]
        assert latency["n"] == 3
        assert latency["beta"] == pytest.approx(0.030 / 0.0315)  # predicted is this much of measured, each time
        assert latency["r2"] == pytest.approx(1.0)
        assert latency["mape"] == pytest.approx(1 - 0.030 / 0.0315)
        assert latency["rmse_ms"] == pytest.approx(1.5 * np.sqrt((1 + 4 + 9) / 3))

    def test_line_against_polyfit(self) -> None:
        rng = np.random.default_rng(1)
        comparisons = [
            Comparison(name="", estimate=estimate(scale=s), measurement=measurement(early=1, late=1, scale=m))
            for s, m in zip(rng.uniform(1, 3, 6), rng.uniform(1, 3, 6), strict=True)
        ]
        x = [c.measurement.mean_s for c in comparisons]
        y = [c.estimate.mean_s for c in comparisons]
        latency = agreement(comparisons)["latency"]
        assert latency["beta"] == pytest.approx(np.polyfit(x, y, 1)[0])
        assert latency["r2"] == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)

    def test_settled_exits_prove_nothing(self) -> None:
        whole = Plan(cuts=(2,), placement=(0,), codecs=(None,))
        alone = Comparison(name="x", estimate=single(whole), measurement=measurement(early=3, late=0, plan=whole))
        found = agreement([alone])
        assert found["exit_rate"] == {"n": 0, "inside": 0, "beta": None, "r2": None}
        assert found["latency"]["beta"] is None
        assert agreement([alone, case()])["exit_rate"]["n"] == 2

    def test_nothing_to_agree_on(self) -> None:
        with pytest.raises(InvalidValue, match="at least one"):
            agreement([])


class TestTables:
    def test_numbers(self) -> None:
        assert [format_ms(x) for x in (0.008423, 0.0571, 1.3507)] == ["8.42", "57.1", "1351"]
        assert format_error(-0.0175) == "−1.8 %"

    def test_tables_show_names_as_they_are(self) -> None:
        from rich.console import Console

        console = Console(width=200, file=io.StringIO(), record=True)
        console.print(comparison_table([case("[red]x")]), terms_table([case("[red]x")]))
        text = console.export_text()
        assert "[red]x" in text
        assert "edge [1] η<0.5 → cloud [2]" in text
        assert "18.0*" in text
        assert re.search(r"predicted +26\.0 .* 90\.0 %", text)
        assert re.search(r"measured +31\.5 .* 90\.0 % ✓", text)


class TestRows:
    def test_timeline_of_a_sample(self) -> None:
        trace = plots.typical_trace(measurement(early=2, late=3))
        rows = plots.timeline_rows(estimate(), TOPOLOGY, trace)
        predicted = [(r["lane"], r["part"], round(r["end_ms"], 6)) for r in rows if r["source"] == "predicted"]
        assert predicted == [
            ("edge", "compute", 10),
            ("edge", "encode", 11),
            ("edge ↔ cloud", "transmission", 31),
            ("edge ↔ cloud", "propagation", 36),
            ("edge ↔ cloud", "dispatch", 38),
            ("cloud", "decode", 39),
            ("cloud", "compute", 43),
            ("edge ↔ cloud", "propagation", 48),
            ("edge ↔ cloud", "dispatch", 50),
        ]
        measured = [(r["lane"], r["part"]) for r in rows if r["source"] == "measured"]
        assert measured[2:] == [
            ("edge ↔ cloud", "transfer"),
            ("cloud", "decode"),
            ("cloud", "compute"),
            ("edge ↔ cloud", "transfer"),
        ]

    def test_cdf_ends_at_one(self) -> None:
        rows = plots.cdf_rows([case()], limit=10)
        for source in ("predicted", "measured"):
            share = [row["share"] for row in rows if row["source"] == source]
            assert share[0] == 0
            assert share[-1] == pytest.approx(1)
            assert share == sorted(share)

    def test_branches_around_the_exit(self) -> None:
        plan = Plan(cuts=(2, 4), placement=(0, 1), thresholds=(0.3,))
        rows = plots.branch_rows(profile(blocks=4), plan)
        assert [row["chosen"] for row in rows] == [False, True, False, True]
        assert [row["threshold"] for row in rows] == [0.3, 0.3, 0.3, None]
        assert rows[1]["exit_rate"] == pytest.approx(0.3, abs=0.05)
        assert all(row["accuracy_low"] < row["accuracy"] < row["accuracy_high"] for row in rows)

    def test_tradeoff_thins_what_it_cannot_show(self) -> None:
        rng = np.random.default_rng(0)
        cloud = {"latency_s": rng.uniform(size=500), "accuracy": rng.uniform(size=500), "partitions": np.ones(500)}
        rows = plots.tradeoff_rows(cloud, {"split": estimate()}, "split", limit=100)
        assert [row["kind"] for row in rows].count("evaluated") == 100
        assert rows[-1]["kind"] == "chosen"
        with pytest.raises(InvalidValue, match="partitions"):
            plots.tradeoff_rows({"latency_s": [1], "accuracy": [1]}, {}, "")

    def test_labels_do_not_overlap(self) -> None:
        rng = np.random.default_rng(3)
        points = [(float(x), float(y)) for x, y in rng.uniform((100, 100), (540, 280), (8, 2))]
        names = ["a plan of some name"] * 8
        offsets = plots._offsets(points, names, points)
        boxes = [plots._box(at, by, 3.6 * len(names[0]) + 5) for at, by in zip(points, offsets, strict=True)]
        for i, a in enumerate(boxes):
            for b in boxes[i + 1 :]:
                assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


class Tags(HTMLParser):
    """Collect the tags that could load something, and the visible text."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.opened: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append(tag)
        self.loads += [f"{tag} {key}={value}" for key, value in attrs if key in ("src", "href", "srcset", "data")]


EVIL = "</script><script>alert(1)</script> & <b>bold</b>"


def report_data(*, measured: bool = True, name: str = "split") -> ReportData:
    whole = Plan(cuts=(2,), placement=(0,), codecs=(None,))
    cases = compare(
        {
            name: (estimate(), measurement(early=55, late=45)),
            "edge-only": (single(whole, mean_s=0.09), measurement(early=100, late=0, plan=whole, scale=8)),
        }
    )
    return ReportData(
        title=f"Report {EVIL}",
        profile=profile(),
        topology=TOPOLOGY,
        problem="Minimize latency.",
        chosen=name,
        comparisons=cases if measured else (),
        estimates={} if measured else {case.name: case.estimate for case in cases},
        cloud={
            "latency_s": np.linspace(0.01, 0.1, 20),
            "accuracy": np.linspace(0.5, 0.9, 20),
            "partitions": np.arange(20) % 3 + 1,
            "front_latency_s": np.array([0.01, 0.05]),
            "front_accuracy": np.array([0.5, 0.9]),
        },
        new_samples={name: "at least 71.00 % right", "edge-only": "at least 93.00 % right"},
        summary={"plans": "20 <i>"},
        provenance={"seed": "0"},
    )


@pytest.mark.parametrize("measured", [True, False])
def test_report_is_one_file_that_loads_nothing(tmp_path: Path, measured: bool) -> None:
    path = write_report(tmp_path / "new" / "report.html", report_data(measured=measured, name=EVIL))
    text = path.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert tags.loads == []
    for told, times in (("71.00", 2), ("93.00", 1)):
        assert text.count(f"at least {told}&nbsp;% right") == times, "in the table; of the chosen plan also at the top"
    assert {"link", "img", "iframe", "object", "base"}.isdisjoint(tags.opened)
    assert "default-src 'none'" in text
    assert text.count("plotly.js v") == 1
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    visible = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert "alert(1)" in visible
    assert "<script>" not in visible
    assert "<b>bold" not in text
    assert "20 &lt;i&gt;" in text


def test_report_states_speed_and_accuracy() -> None:
    text = render_report(report_data())
    assert "runs block 1 on edge (leaving early: 60.0&nbsp;% after block 1), then block 2 on cloud." in text
    assert f"<b>{0.088 / 0.02945:.2f}×</b> as fast as running the whole network on edge (edge-only)" in text
    assert "measured · predicted 90.0&nbsp;%, inside" in text
    assert "10 Mbit/s<br>20 ms one way" in text


def test_report_on_a_disturbed_profile_says_what_to_do() -> None:
    data = report_data()
    assert "measure it again" not in render_report(data)
    devices = {
        name: replace(device, environment={"disturbed": "the machine's speed changed by 30 %"})
        for name, device in data.profile.devices.items()
    }
    text = html.unescape(render_report(replace(data, profile=replace(data.profile, devices=devices))))
    for name in devices:
        assert f"When device {name} was profiled, the machine's speed changed by 30" in text
        assert f"measure it again on a quiet machine: portend profile CHECKPOINT --device {name} --out" in text


def test_prediction_only_report_does_not_speak_of_measurements() -> None:
    text = re.sub(r"<script>.*?</script>", "", render_report(report_data(measured=False)), flags=re.S)
    assert "measured ·" not in text
    assert "none of these plans has run yet" in text
    assert "figure-timeline-predicted" in text


def test_comparing_needs_no_plotly_rich_or_torch() -> None:
    modules = "portend.analysis.compare, portend.analysis.console, portend.report.figures, portend.report.page"
    code = f"import sys, {modules}; assert not {{'plotly', 'jinja2', 'rich', 'torch', 'zmq'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_report_needs_its_chosen_plan() -> None:
    with pytest.raises(InvalidValue, match="chosen plan"):
        ReportData(title="", profile=profile(), topology=TOPOLOGY, problem="", chosen="x", estimates={"y": estimate()})


def test_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")

    def refuse(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(StorageError, match="disk full"):
        write_report(target, report_data(measured=False))
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


# -- exits -----------------------------------------------------------------------------------------


def test_exits_are_tabulated_by_hand() -> None:
    spec = BackboneSpec(name="two", block_names=("a", "b"), num_classes=2, cut_shapes=((1,),) * 3, exits=(2,))
    score = np.array([[np.nan, 0.1], [np.nan, 0.2], [np.nan, 0.3], [np.nan, np.nan]])
    right = np.array([[False, True], [False, False], [False, True], [False, True]])
    (row,) = exit_rows(SampleExits(scores={"entropy": score}, correct=right), spec, (0.0, 0.3, 1.0))
    assert (row["exit"], row["block"], row["accuracy"]) == (2, "b", 0.75)
    assert row["leaves"] == {"0": 0.0, "0.3": 0.5, "1": 0.75}, "a score that equals the threshold, or is NaN, stays"
    assert row["right"] == {"0": None, "0.3": 0.5, "1": pytest.approx(2 / 3)}
    # Wilson, 3 of 4, 95 %: (0.75 + 1.9208 / 4) / (1 + 3.8415 / 4) -+ ...
    assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx((0.300642, 0.954414), abs=1e-5)
    lines = exits_markdown([row]).splitlines()
    assert lines[2].split(" | ")[1:4] == ["`b`", "75.0 ± 32.7", "0.0 ± 24.5"]
    tables = TabulatedExits(thresholds=np.array([0.3]), exited=np.array([[0, 2]]), correct=np.array([0, 3]), samples=4)
    (row,) = exit_rows(tables, spec, (0.3,))
    assert (row["accuracy"], row["leaves"], row["right"]) == (0.75, {"0.3": 0.5}, {"0.3": None})


def test_the_axes_of_means_show_the_whole_intervals() -> None:
    row = {"plan": "run", "measured_ms": 27.2, "standard_error_ms": 1.1, "predicted_ms": 30.5, "error": 0.12}
    low, high = plots.plot_means([row]).layout.xaxis.range
    assert low < 27.2 - 1.96 * 1.1
    assert high > 30.5
