"""The paper's comparisons: plans of all planners, scenarios, estimators and fine-tuning, and their page."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from portend.data.dataset import make_splits
from portend.data.sources import load_dataset
from portend.errors import DeploymentError, MismatchError
from portend.io.forms import load_topology
from portend.io.storage import load_profile, save
from portend.networks.checkpoint import load_checkpoint
from portend.networks.evaluators import TorchEvaluator
from portend.networks.zoo import build
from portend.planner.problem import Problem, SearchSpace, accuracy, latency
from portend.profiling.device import DeviceProfiling, profile_device
from portend.profiling.network import profile_exits
from portend.report.document import Piece, Words
from portend.training.config import TrainingConfig
from portend.training.training import train
from portend.values.execution import Execution
from portend.values.exits import SampleExits
from portend.values.plan import Plan
from portend.values.profile import Profile
from portend.workflows.refine import refine
from test_analysis import measurement

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import baselines  # noqa: E402
import figures  # noqa: E402
import fine_tuning  # noqa: E402
import paper  # noqa: E402
import paper_figures  # noqa: E402
import running_estimators  # noqa: E402
import scenarios  # noqa: E402
from plans import Network, Running, as_replayed, open_network, speedup  # noqa: E402

SMALL = """
name: small
tiers: [{name: edge, device: local, slowdown: 4}, {name: base, device: local, slowdown: 2},
        {name: cloud, device: local}]
links: [{bandwidth: 10 Mbit/s, propagation_delay: 2 ms}, {bandwidth: 100 Mbit/s, propagation_delay: 2 ms}]
"""
FEW = Running(samples=6, plain_samples=3, turns=1, repeats=1, gap_s=0.002, emulation="relay")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small trained network with its profile, and a topology."""
    path = tmp_path_factory.mktemp("paper")
    dataset = load_dataset("digits:size=8")
    splits = make_splits(dataset, seed=0)
    network = build("resnet8", in_channels=1, num_classes=10, input_size=8)
    config = TrainingConfig(epochs=2, batch_size=32, learning_rate=0.1)
    trained = train(network, dataset, splits, config, path / "training").checkpoint
    backbone = load_checkpoint(trained)
    quick = DeviceProfiling(
        repeats=3, idle_repeats=1, message_repeats=2, message_samples=8, gap_s=0.002,
        execution=Execution(executor="onnxruntime"),
    )  # fmt: skip
    device = profile_device("local", trained, dataset, quick, indices=splits.profiling)
    exits = profile_exits(TorchEvaluator(backbone), dataset, splits.profiling)
    save(Profile(backbone=backbone.spec(), exits=exits, devices={"local": device}), path / "profile.zip")
    (path / "small.yaml").write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def network(folder: Path) -> Network:
    return open_network(folder / "training/checkpoint.safetensors", load_profile(folder / "profile.zip"))


def words(folder: Path, *more: object) -> list[str]:
    given = [
        folder / "profile.zip", "--network", folder / "training/checkpoint.safetensors",
        "--topology", folder / "small.yaml", "--emulation", "relay", "--turns", 1, *more,
    ]  # fmt: skip
    return list(map(str, given))


def test_a_network_comes_with_the_samples_that_it_was_not_trained_on(network: Network, folder: Path) -> None:
    assert network.dataset.name == "digits"
    assert np.array_equal(network.test, make_splits(network.dataset, seed=0).test)
    others = load_profile(ROOT / "profiles/resnet20-digits.zip")
    with pytest.raises(MismatchError, match="other weights"):
        open_network(network.file, others)


def test_a_replay_is_held_against_what_ran() -> None:
    """Four samples, exits after blocks 1 and 2; the plan of ``measurement`` leaves at exit 0 below its threshold."""
    run = measurement(early=2, late=2)
    plan = Plan(cuts=(1, 2), placement=(0, 0), thresholds=(0.5,), codecs=(None, None))
    score = np.array([[0.1, 0.0], [0.4, 0.0], [0.6, 0.0], [0.5, 0.0]])  # exits 0, 0, 1, 1
    correct = np.stack([run.correct, run.correct], axis=1)
    exits = SampleExits(scores={"entropy": score}, correct=correct)
    rows = np.arange(4)
    run = replace(run, sample=rows, exit_index=np.array([0, 0, 1, 1]))
    assert as_replayed(plan, run, exits, rows) == 4
    assert as_replayed(plan, replace(run, exit_index=np.array([0, 1, 1, 1])), exits, rows) == 3
    assert as_replayed(plan, run, replace(exits, correct=~correct), rows) == 0


def test_a_speedup_and_its_interval_by_hand() -> None:
    """100 ± 3 ms over 50 ± 2 ms: relative errors of 0.03 and 0.04 are 0.05 together."""

    def ran(name: str, mean: float, error: float) -> dict[str, Any]:
        return {"plan": name, "latency_ms": {"measured": {"mean": mean, "standard_error": error}}}

    base, plan = ran("a", 100.0, 3.0), ran("b", 50.0, 2.0)
    assert speedup(base, plan) == pytest.approx((2.0, 2 * (1 - 1.96 * 0.05), 2 * (1 + 1.96 * 0.05)))
    assert speedup(base, base) == (1.0, 1.0, 1.0)


def test_all_planners_get_the_same_target_and_their_plans_run(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    out = folder / "baselines.json"
    more = ("--samples", 6, "--plain-samples", 3, "--give-up", 0, 5, "--bandwidth", "20 Mbit/s", "--json", out)
    baselines.main(words(folder, *more))
    found = json.loads(out.read_text())
    assert found["bandwidth_bps"] == 20e6
    full = found["full_accuracy"]["profiling"]
    assert [target["bound"] for target in found["targets"]] == pytest.approx([full, full - 0.05])
    for target in found["targets"]:
        assert set(target["planners"]) == set(baselines.PLANNERS)
        ours = found["plans"][target["planners"]["Portend"]["plan"]]
        assert ours["accuracy"]["predicted"] >= target["bound"] - 1e-9
        for one in target["planners"].values():
            plan = found["plans"][one["plan"]]
            if one["met"]:
                assert ours["planned"]["mean"] <= plan["planned"]["mean"] + 1e-9
    for plan in found["plans"].values():
        assert plan["test_samples"] == (6 if any(plan["plan"]["thresholds"]) else 3)
        assert plan["as_replayed"] == plan["test_samples"], "nothing lossy ran, so the replay is the run"
        assert len(plan["measured_ms"]) == plan["test_samples"]
        assert 0 <= plan["test_accuracy"] <= 1
    edge = found["plans"]["edge-only"]
    assert edge["test_accuracy"] == found["full_accuracy"]["test"]
    table = capsys.readouterr().out
    assert table.count("| edge-only |") == 2
    assert "| 5 | Portend |" in table
    assert (folder / "runs").is_dir(), "scores of the test split are kept"


def test_two_contenders_are_equally_fast_where_a_scenario_says_so(network: Network, folder: Path) -> None:
    """The whole network on the slower middle tier against the cloud behind another link, over the tier's speed."""
    topology = load_topology(folder / "small.yaml").with_tier(1, slowdown=60.0)
    values, points = scenarios.ranges("compute", topology)
    assert (values[0], values[-1]) == pytest.approx((0.05, 60.0))
    found = scenarios.measure(network, topology, "compute", values[::5], (), 0.01, FEW, exits_of(network), quiet)
    assert points == [0.25, 1.0, 4.0]
    (crossing,) = [one for one in found["crossings"] if set(one["contenders"]) == {"base-only", "cloud-only"}]
    there = topology.with_tier(1, slowdown=60.0 / crossing["value"])
    means = [
        solution.estimate.mean_s
        for name in ("base-only", "cloud-only")
        if (solution := scenarios.best(network.profile, there, scenarios.contenders(there)[name], 0.0)) is not None
    ]
    assert means[0] == pytest.approx(means[1], rel=1e-6)
    assert 1e3 * means[0] == pytest.approx(crossing["mean_ms"], rel=1e-6)
    fastest = np.min([curve for name, curve in found["curves"].items() if name != scenarios.BEST], axis=0)
    assert np.all(np.array(found["curves"][scenarios.BEST]) <= fastest + 1e-9)
    assert found["curves"]["cloud-only"][0] == found["curves"]["cloud-only"][-1], "the middle tier is not on the way"


def exits_of(network: Network) -> SampleExits:
    exits = network.profile.exits
    assert isinstance(exits, SampleExits)
    return exits


def quiet(*_: object) -> None: ...


@pytest.mark.slow
def test_points_of_a_scenario_run_at_their_bandwidth(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    out = folder / "scenario.json"
    scenarios.main(words(folder, "--samples", 3, "--json", out))
    found = json.loads(out.read_text())
    slow, *_, fast = found["points"]
    assert (slow["value"], fast["value"]) == pytest.approx((1e6, 30e6))
    raw = [point["plans"]["cloud-only"]["latency_ms"]["measured"]["mean"] for point in (slow, fast)]
    assert raw[0] > raw[1], "the raw input takes longer where there is less bandwidth"
    svg = folder / "scenario.svg"
    figures.main(["scenario", str(out), str(svg)], known=paper_figures.FIGURES)
    assert "bandwidth of the first link" in svg.read_text()


@pytest.mark.slow
def test_layers_and_blocks_make_up_less_than_the_partitions_that_run(folder: Path) -> None:
    out = folder / "running.json"
    running_estimators.main(words(folder, "--plans", 4, "--rounds", 3, "--samples", 4, "--json", out))
    found = json.loads(out.read_text())
    assert len(found["rows"]) == 4
    for row in found["rows"]:
        assert row["measured_ms"] < row["latency_ms"]
        assert row["layer-wise"] < row["partition-wise"], "what lies between layers is left out"
        others = row["latency, partition-wise"] - row["partition-wise"]
        assert row["latency, layer-wise"] - row["layer-wise"] == pytest.approx(others), "only computing differs"


def test_layers_are_only_timed_where_pytorch_ran(network: Network, folder: Path) -> None:
    device = network.profile.devices["local"]
    onnx = replace(device, execution=replace(device.execution, executor="onnxruntime"))
    other = replace(network, profile=replace(network.profile, devices={"local": onnx}))
    with pytest.raises(MismatchError, match="eager PyTorch"):
        running_estimators.measure(other, load_topology(folder / "small.yaml"), 2, 1, FEW, quiet)


def test_fronts_with_and_without_fine_tuning(network: Network, folder: Path) -> None:
    topology = load_topology(folder / "small.yaml")
    bound = accuracy >= network.profile.full_accuracy - 0.05
    refine(
        network.profile, network.file, network.dataset, make_splits(network.dataset, seed=0), topology,
        Problem(minimize=latency, subject_to=(bound,), space=SearchSpace(exits_per_tier=2)), folder / "refined",
        training=TrainingConfig(epochs=1, batch_size=64, learning_rate=0.01), rounds=1,
    )  # fmt: skip
    found = fine_tuning.measure(folder / "refined", network.file, topology, "", quiet)
    assert len(found["rounds"]) == 2
    first = found["rounds"][0]
    assert first["first_plan"] == first["plan"]
    assert found["rounds"][1]["first_plan"]["test"] != pytest.approx(first["first_plan"]["test"], abs=1e-12)
    for one in found["rounds"]:
        means = [point["mean_ms"] for point in one["front"]]
        assert means == sorted(means)
        assert [p["profiling"] for p in one["front"]] == sorted(p["profiling"] for p in one["front"])
    assert found["baselines"]["edge-only"]["test"] == first["full_accuracy"]["test"]
    assert fine_tuning.within(first["front"], first["front"][0]["mean_ms"] / 2) is None
    assert len(fine_tuning.table(found)) >= 2


def case_of(network: Network, folder: Path, out: Path) -> paper.Case:
    return paper.Case(
        folder=out, network=network, topology=load_topology(folder / "small.yaml"), scores=exits_of(network),
        running=FEW, long=False,
    )  # fmt: skip


def said(found: Mapping[str, Any]) -> list[Piece]:
    return [Words(str(found))]


def test_the_page_shows_what_there_is_and_says_what_is_left(network: Network, folder: Path, tmp_path: Path) -> None:
    case = case_of(network, folder, tmp_path)
    part = paper.Part(name="one", title="Numbers <of> a part", measure=lambda *_: {"n": 7}, show=said)
    left = replace(part, name="left", title="Another part")
    paper.measure_part(case, part)
    page = paper.page(case, {}, (part, left))
    assert "Numbers &lt;of&gt; a part" in page
    assert "not measured yet" in page
    assert "<script" not in page
    assert "script-src" not in page
    assert "default-src 'none'" in page
    other = replace(case, long=True)
    assert paper.known(case, part) is not None
    assert paper.known(other, part) is None, "what another version measured is not shown"
    assert "no luck" in paper.page(case, {"left": "no luck"}, (part, left))


def test_parts_go_on_where_an_interruption_or_a_failure_left_them(
    network: Network, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = case_of(network, folder, tmp_path)
    measured: list[str] = []
    trouble: dict[str, type[BaseException]] = {"b": DeploymentError, "c": KeyboardInterrupt}

    def part(name: str) -> paper.Part:
        def measure(*_: object) -> dict[str, Any]:
            if name in trouble:
                raise trouble[name]("a link fell")
            measured.append(name)
            return {}

        return paper.Part(name=name, title=name, measure=measure, show=said)

    parts = [part(name) for name in "abc"]
    with pytest.raises(KeyboardInterrupt):
        paper.go_on(case, parts)
    assert measured == ["a"]
    assert "b: a link fell" in capsys.readouterr().err
    trouble.clear()
    assert paper.go_on(case, parts) == {}
    assert measured == ["a", "b", "c"], "what was measured is not measured again"
    assert (tmp_path / "report.html").exists()
