"""The benchmarks run; how fast they are is not a test's business."""

from __future__ import annotations

import importlib.util
import json
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from portend.analysis.validation import Validation
from portend.io.forms import load_topology
from portend.io.storage import load_profile
from portend.perfmodel.model import PerformanceModel
from portend.planner.problem import SearchSpace
from portend.testbed.emulation.choose import make_emulation
from portend.testbed.emulation.namespaces import unavailable
from portend.testbed.emulation.traces import BandwidthTrace
from portend.values.measurement import SPAN_KINDS
from portend.values.plan import Plan
from portend.values.topology import Link, Tier, Topology
from test_validate import FOUR

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def planner() -> ModuleType:
    return load("planner")


def load(name: str) -> ModuleType:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))  # they import each other
    path = Path(__file__).resolve().parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_rows_of_the_planner_benchmark(planner: ModuleType) -> None:
    rows = planner.hard_rows(10, 4, 4, 1.0, 64.0, 1)
    assert [row.target_s for row in rows] == [1.0] * 6  # fastest, and most accurate, at three bounds
    assert all(row.peak_mib > 0 for row in rows[::2])
    assert all("proven" in str(row) for row in rows)
    assert all(row.to_dict()["seconds_median"] > 0 for row in rows)


def test_the_brute_force_of_the_benchmark_covers_its_space(planner: ModuleType) -> None:
    space = SearchSpace(thresholds=(0.0, 0.3), exits_per_tier=1)
    profile = planner.resnet_like(5)
    model = planner.PerformanceModel(planner.tabulated(profile, space.thresholds), planner.three_tiers())
    plans = planner.PlanSpace(space, model).count()
    chosen = planner.spread(space, model, plans, plans)
    assert len(chosen) == plans
    assert planner.brute_force_s(model, plans, chosen[:20]) > 0


def test_rows_of_the_distillation_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    load("distillation").main(["--network", "resnet8", "--epochs", "1", "--seeds", "1"])
    rows = capsys.readouterr().out.splitlines()
    assert [row[:28].strip() for row in rows] == ["none", "weight 0.5, temperature 3", "weight 0.9, temperature 3"]
    values = [[float(cell.partition("±")[0]) for cell in row[28:].split()] for row in rows]
    assert [len(row) for row in values] == [4, 4, 4]
    assert values[0] != values[1] != values[2]


def test_rows_of_the_executors_benchmark(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = ["--networks=resnet8", "--executors=torch,onnxruntime,onnxruntime int8", "--rounds=2", "--paused=1"]
    load("executors").main([*arguments, f"--json={out}"])
    rows = json.loads(out.read_text())["rows"]
    assert [row["executor"] for row in rows] == ["torch", "onnxruntime", "onnxruntime int8"]
    assert rows[0]["speedup_busy"] == 1.0
    assert rows[0]["deviation"] == 0.0 < rows[1]["deviation"] < 1e-3 < rows[2]["deviation"]


def test_rows_and_page_of_the_estimators_benchmark(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found, page = tmp_path / "e.json", tmp_path / "e.html"
    words = ["--case", "resnet8=digits:size=16", "--rounds", "3", "--json", str(found), "--page", str(page)]
    load("estimators").main(words)
    told = capsys.readouterr().out
    names = ["layer-wise", "block-wise", "partition-wise"]
    assert [line.split()[1] for line in told.splitlines() if "RMSE" in line] == names
    case = json.loads(found.read_text())["cases"]["resnet8=digits:size=16"]
    assert len(case["rows"]) == 10
    assert list(case["errors"]) == names
    assert "layer-wise" in page.read_text()
    load("estimators").main(words)
    assert "of 3 rounds" not in capsys.readouterr().out, "what was measured is not measured again"


def test_rows_of_the_budget_benchmark(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    profile = Path(__file__).resolve().parents[1] / "profiles/resnet20-digits.zip"
    load("budget").main([str(profile), "--shares", "0.6", "--seeds", "2", "--json", str(tmp_path / "b.json")])
    (row,) = json.loads((tmp_path / "b.json").read_text())
    assert (row["partitions"], row["measured"]) == (55, 33)
    assert 0 < row["mean"] < row["p95"] < row["worst"] < 0.5
    assert "33 of 55" in capsys.readouterr().out


def test_rows_of_the_serialization_benchmark() -> None:
    codecs = load("serialization")
    rows = codecs.measure((8, 4, 4), 3)
    named = {row["name"]: row for row in rows}
    assert named["float32"]["times_float32"] == 1
    assert named["float32"]["payload_bytes"] == 512
    assert named["int8"]["payload_bytes"] == 128
    assert {"pickle (torch tensor)", "torch.save", "safetensors", "Arrow"} <= named.keys()
    assert all(row["encode_s"] > 0 < row["decode_s"] for row in rows)


def test_score_tables_are_measured() -> None:
    found = load("exits").measure(500, 3)
    assert found["file_bytes"] > 3 * 4 * 500 * 3
    assert all(step["seconds"] >= 0 for step in found["steps"].values())


def test_rows_of_the_optimum_benchmark(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    words = [str(root / "profiles/resnet20-digits.zip"), "--topology", str(root / "configs/topologies/three_tier.yaml")]
    load("optimum").main([*words, "--json", str(tmp_path / "o.json")])
    found = json.loads((tmp_path / "o.json").read_text())
    best: dict[float, list[float]] = {}
    for row in found["rows"]:
        assert row["accuracy"] >= found["full_accuracy"] - row["drop"] - 1e-9
        assert set(row["sent_as"]) <= set(load("optimum").CODECS[row["codecs"]] or row["sent_as"])
        best.setdefault(row["drop"], []).append(row["mean_s"])
    assert len(best) == 3
    assert all(later <= earlier + 1e-12 for means in best.values() for earlier, later in pairwise(means))
    assert capsys.readouterr().out.count("\n") == 2 + len(found["rows"])


def test_figures_are_drawn_from_a_profile_and_are_the_same_each_time(tmp_path: Path) -> None:
    profile = str(Path(__file__).resolve().parents[1] / "profiles/resnet20-digits.zip")
    figures = load("figures")
    for name in ("a.svg", "b.svg"):
        figures.main(["exits", profile, str(tmp_path / name)])
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn == (tmp_path / "b.svg").read_text()
    assert "accuracy of all samples at the exit" in drawn
    rows = [{"measured_ms": 1.0, "layer-wise": 0.8, "block-wise": 0.9, "partition-wise": 1.0}]
    (tmp_path / "e.json").write_text(json.dumps({"cases": {"resnet8=digits": {"rows": rows}}}))
    figures.main(["estimators", str(tmp_path / "e.json"), str(tmp_path / "e.svg")])
    assert "resnet8" in (tmp_path / "e.svg").read_text()


def test_rows_of_the_training_benchmark(tmp_path: Path) -> None:
    words = [
        "--networks",
        "resnet8",
        "--batch",
        "8",
        "--steps",
        "4",
        "--turns",
        "1",
        "--json",
        str(tmp_path / "t.json"),
    ]
    load("training").main(words)
    (row,) = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert row["network"] == "resnet8"
    assert min(row["step_s"]["float32"], row["step_s"]["bfloat16"]) > 0


def test_messages_of_the_testbed_benchmark() -> None:
    link = Link(bandwidth_bps=50e6, propagation_delay_s=0.01)
    topology = Topology(name="t", tiers=(Tier(name="a", device="x"), Tier(name="b", device="x")), links=(link,))
    with make_emulation("relay", topology) as emulation:
        cold, warm = load("testbed").taken_s(emulation, 10_000, repeats=2, pause_s=0.0)
    assert len(cold) == len(warm) == 2
    assert min(*cold, *warm) >= topology.transmission_s(10_000)[0, 1] + 0.01


@pytest.mark.slow
def test_rows_of_the_runtime_benchmark() -> None:
    hops = {row["way"]: row for row in load("runtime").measure_hops(4096, turns=2, messages=3)}
    assert set(hops) == {"portend", "pickle", "grpc", "pyzmq"}
    assert all(row["hops"] == 6 and row["median_s"] > 0 for row in hops.values())
    assert hops["portend"]["times_portend"] == 1
    assert set(hops["portend"]["parts_s"]) == {*SPAN_KINDS, "other"}


@pytest.mark.slow
def test_rows_of_the_relays_of_the_runtime_benchmark() -> None:
    relays = {row["way"]: row for row in load("runtime").measure_relays(4096, turns=2, messages=40, window=4)}
    assert set(relays) == {"portend", "pickle", "pyzmq"}
    assert all(row["messages_per_s"] > 0 for row in relays.values())
    assert relays["portend"]["relay_compute_s"] > 0


@pytest.mark.skipif(bool(unavailable()), reason=f"no testbed here: {unavailable()}")
def test_rows_and_figure_of_the_tcp_benchmark(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    topology, found = tmp_path / "t.yaml", tmp_path / "tcp.json"
    topology.write_text("tiers: [{name: a}, {name: b}]\nlinks: [{bandwidth: 50 Mbit/s, propagation_delay: 10 ms}]\n")
    tcp = load("tcp")
    words = ["--controls", "open,cubic", "--sizes", "300,60000", "--repeats", "2", "--idle", "0.1"]
    tcp.main(["measure", str(topology), *words, "--json", str(found)])
    rows = json.loads(found.read_text())["rows"]
    assert [(row["control"], row["state"], row["bytes"]) for row in rows] == [
        (control, state, size)
        for control, states in (("open", ("new", "warm")), ("cubic", ("new", "warm", "idle")))
        for size in (300, 60_000)
        for state in states
    ]
    large = {(row["control"], row["state"]): min(row["measured_s"]) for row in rows if row["bytes"] == 60_000}
    (cold,) = (row for row in rows if (row["control"], row["state"], row["bytes"]) == ("cubic", "new", 60_000))
    assert cold["off_s"] + 0.02 < cold["on_s"] == pytest.approx(large["cubic", "new"], rel=0.1)
    assert large["open", "warm"] == pytest.approx(cold["off_s"], rel=0.2)
    tcp.main(["table", str(found)])
    assert capsys.readouterr().out.count("| cubic | new | 2 |") == 1
    for name in ("a.svg", "b.svg"):
        tcp.main(["figure", str(found), str(tmp_path / name)])
    assert (tmp_path / "a.svg").read_text() == (tmp_path / "b.svg").read_text()


def test_steps_of_a_trace_by_hand() -> None:
    replay = load("trace_replay")
    trace = BandwidthTrace(name="t", times_s=(0, 1, 3, 4, 6), bandwidths_bps=(1e6, 0, 0, 2e6, 0), period_s=10)
    # The outage of 1–4 s: who appears within 1–3 s, at 2 s in the mean, waits 2 s; within 3–4 s half a second. That of
    # 6–10 s ends where the trace begins anew.
    assert [(step.seconds, step.bandwidth_bps, step.wait_s) for step in replay.steps_of(trace)] == [
        (1, 1e6, 0), (2, 2e6, 2), (1, 2e6, 0.5), (2, 2e6, 0), (4, 1e6, 2),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> tuple[PerformanceModel, SearchSpace]:
    root = Path(__file__).resolve().parents[1]
    topology = load_topology(root / "configs/topologies/commute.yaml")
    return PerformanceModel(load_profile(root / "profiles/resnet20-digits.zip"), topology), SearchSpace(
        block_tiers={1: (0,)}, exits_per_tier=1
    )


def test_a_plan_that_is_best_at_two_bandwidths_is_best_in_between(digits: tuple[PerformanceModel, SearchSpace]) -> None:
    replay = load("trace_replay")
    model, space = digits
    steps = [replay.Step(0.0, 1.0, float(bps)) for bps in np.geomspace(5e4, 5e7, 60)]
    known = replay.Replay(model, 0.96, space)
    known.explore(steps)
    assert len(known.planning_s) < len(steps) / 2
    found = [known.plan(step) for step in steps]
    assert len(set(found)) >= 3
    for step, plan in zip(steps, found, strict=True):
        alone = replay.Replay(model, 0.96, space)
        assert known.mean_s(plan, step) == pytest.approx(alone.mean_s(alone.plan(step), step), rel=1e-12)


def test_an_outage_delays_those_who_leave_the_edge_by_what_is_left_of_it(
    digits: tuple[PerformanceModel, SearchSpace],
) -> None:
    replay = load("trace_replay")
    model, space = digits
    one = replay.Replay(model, 0.96, space)
    plan = Plan(cuts=(4, 10), placement=(0, 1), thresholds=(0.3,))
    calm, out = replay.Step(0.0, 1.0, 5e6), replay.Step(0.0, 1.0, 5e6, wait_s=3.0)
    share, _ = one.outcomes(plan, calm)
    assert 0.1 < share[1] < 0.9
    assert one.mean_s(plan, out) == pytest.approx(one.mean_s(plan, calm) + 3.0 * share[1], rel=1e-12)
    assert set(one.plan(out).placement) == {0}, "in a long outage nothing is sent"


def test_contenders_of_the_trace_replay(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    trace, found = tmp_path / "ride.txt", tmp_path / "r.json"
    trace.write_text("0 40\n2 0.3\n5 40\n6 0\n7 6\n9 0.3\n12 40\n")
    words = [str(root / "profiles/resnet20-digits.zip"), str(trace), "--keep-input-on", "edge"]
    replay = load("trace_replay")
    replay.main(["replay", *words, "--topology", str(root / "configs/topologies/commute.yaml"), "--json", str(found)])
    (one,) = json.loads(found.read_text())["replays"]
    of = one["contenders"]
    assert one["outage"] == pytest.approx(1 / 15)
    assert all(of["again"]["mean_s"] <= each["mean_s"] for name, each in of.items() if name != "cloud alone")
    assert of["in hindsight"]["mean_s"] <= min(of[name]["mean_s"] for name in ("at first", "at the mean", "edge alone"))
    assert of["again"]["mean_s"] < of["a step late"]["mean_s"], "a change that is learned late costs something"
    assert (of["again"]["best"], of["cloud alone"]["best"], of["at first"]["switches"]) == (1.0, None, 0)
    assert of["again"]["switches"] >= 4
    steps = np.array([2, 3, 1, 1, 2, 3, 3])
    for each in of.values():
        assert each["mean_s"] == pytest.approx(float(steps @ each["latency_s"]) / 15)
    assert "searches" in capsys.readouterr().out
    for name in ("a.svg", "b.svg"):
        replay.main(["figure", str(found), "ride", str(tmp_path / name)])
    assert (tmp_path / "a.svg").read_text() == (tmp_path / "b.svg").read_text()
    replay.main(["table", str(found)])
    assert "| ride |" in capsys.readouterr().out


def test_slopes_over_splits_that_are_drawn_anew(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    draws = load("draws")
    exact, _ = draws.slopes(np.array([[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]), np.eye(2), draws=1)
    assert np.isnan(exact), "two plans that are measured alike have no slope"
    exact, drawn = draws.slopes(np.diag([1.0, 1.0, 0.0]), np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0] * 3]), 8)
    assert exact == pytest.approx(0.5)  # 1/3, 1/3, 0 over 2/3, 1/3, 0
    assert len(drawn) == 8

    profile = Path(__file__).parent.parent / "profiles/resnet20-digits.zip"
    (tmp_path / "scores.zip").write_bytes(profile.read_bytes())
    plans = [Plan(cuts=(3, 10), placement=(0, 0), thresholds=(eta,), codecs=(None, None)) for eta in (0.5, 0.7, 0.9)]
    (tmp_path / "predictions.json").write_text(json.dumps({"plans": [{"plan": plan.to_dict()} for plan in plans]}))
    draws.main([str(profile), str(tmp_path), "--draws", "50"])
    head, _, _, accuracy, rate = capsys.readouterr().out.splitlines()
    assert head.startswith("3 plans, 450 profiling and 450 test samples")
    for row in (accuracy, rate):
        same, anew = (cell.split() for cell in row.split("|")[2:4])
        assert float(same[0]) == pytest.approx(1), "both splits are one here"
        assert float(anew[0]) == pytest.approx(1, abs=0.2)
        assert 0 < float(anew[2]) < 0.5
    (tmp_path / "scores.zip").write_bytes((profile.parent / "resnet20-cifar10.zip").read_bytes())
    for campaign, said in ((tmp_path, "ran another network"), (tmp_path / "none", "predictions.json")):
        with pytest.raises(SystemExit):
            draws.main([str(profile), str(campaign)])
        assert said in capsys.readouterr().err


def test_tables_and_figure_of_campaigns(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = Validation(cases=FOUR, planned=4, full_accuracy=0.95).to_dict() | {"network": "vggish"}
    (tmp_path / "s.json").write_text(json.dumps(found), encoding="utf-8")
    agreement = load("agreement")
    for name in ("a.svg", "b.svg"):
        agreement.main([str(tmp_path / "s.json"), "--figure", str(tmp_path / name)])
    rows = capsys.readouterr().out.splitlines()
    # Measured 31.5 ms times 1.2, 1.1, 1.6 and 2; predicted 30 ms times the same. Of accuracy a line alone is known.
    assert rows[2].startswith(
        "| VGGish | 4 x 100 | latency | 0.952, 1.0000, MAPE 4.8 % | 0.952, 1.0000, MAPE 4.8 % | 0.86,"
    )
    regret = next(row for row in rows if row.startswith("| VGGish | 0.0 % | 4 |"))
    assert "37.80 ms | 34.65 ms | 3.15 ms, 9.1 %" in regret
    assert (tmp_path / "a.svg").read_text() == (tmp_path / "b.svg").read_text()


def test_plans_chosen_on_estimates_are_as_fast_as_predicted_and_those_chosen_on_means_are_not(tmp_path: Path) -> None:
    chosen = load("chosen_latency")
    profile = load_profile(ROOT / "profiles/resnet20-cifar10.zip")
    topology = load_topology(ROOT / "configs/topologies/paper.yaml")
    rows = {(row["study"], row["by"], row["plans"]): row for row in chosen.rows_of("it", profile, topology, 5)}
    lucky, estimated = rows["drawn", "means", "chosen"], rows["drawn", "estimate", "chosen"]
    assert lucky["bias"] > 0.02
    assert abs(estimated["bias"]) < min(0.02, lucky["bias"] / 2)
    assert estimated["lost"] < lucky["lost"], "and nearer to the best"
    assert rows["drawn", "estimate", "edge-only"]["n"] == 5

    each = [
        {"origin": origin, "latency_ms": {"measured": 12.0 + k, "before": 10.0 + k, "predicted": 12.0 + k}}
        for origin, k in (("front", 0), ("front", 2), ("mix", 1), ("mix", 3))
    ]
    (tmp_path / "summary.json").write_text(json.dumps({"each": each}), encoding="utf-8")
    found = {(row["plans"], row["by"]): row for row in chosen.campaign_rows(tmp_path)}
    assert found["chosen", "profile"]["bias"] == pytest.approx((12 / 10 + 14 / 12) / 2 - 1)
    assert found["others", "again"]["bias"] == 0
