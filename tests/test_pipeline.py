"""The whole path: train, profile, plan, run over real sockets, compare, report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from commands import ROOT, portend
from portend.data.dataset import draw, make_splits
from portend.data.sources import load_dataset
from portend.errors import MismatchError
from portend.io.storage import load_measurement, load_profile, save
from portend.networks.checkpoint import load_checkpoint
from portend.networks.evaluators import TorchEvaluator
from portend.perfmodel.model import PerformanceModel
from portend.planner.problem import SearchSpace
from portend.profiling.device import DeviceProfiling
from portend.profiling.network import profile_exits
from portend.training.config import TrainingConfig
from portend.values.execution import Execution
from portend.values.plan import Plan
from portend.workflows.demo import DemoConfig, DemoResult, run_demo, samples_of, three_tier


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def result(folder: Path) -> DemoResult:
    topology = three_tier()
    for tier, slowdown in enumerate((3.0, 2.0, 1.0)):
        topology = topology.with_tier(tier, slowdown=slowdown)
    config = DemoConfig(
        network="resnet8",
        input_size=16,
        samples=40,
        exit_samples=10,
        plain_samples=6,
        gap_s=0.01,
        turns=4,
        executions=(Execution(executor="onnxruntime"),),
        training=TrainingConfig(epochs=4, batch_size=32, learning_rate=0.1),
        profiling=DeviceProfiling(repeats=4, idle_repeats=2, message_repeats=3),
        topology=replace(topology),
        space=SearchSpace(exits_per_tier=2),
    )
    return run_demo(folder, config)


def test_a_plan_that_is_all_computing_runs_as_long_as_one_whose_samples_differ() -> None:
    """Its mean follows the machine's speed in full; 40 samples of it were off by up to 9 %, when no other plan was."""
    config = DemoConfig()
    model = PerformanceModel(load_profile(ROOT / "profiles/resnet20-digits.zip"), config.topology)
    counts = [
        samples_of(model.estimate(Plan(cuts=(10,), placement=(tier,))), config) for tier in range(3)
    ]  # edge-only, base-only, cloud-only
    assert counts[0] == config.exit_samples
    assert counts[0] > counts[1] >= counts[2] == config.plain_samples
    early = Plan(cuts=(1, 10), placement=(0, 2), thresholds=(0.3,))
    assert samples_of(model.estimate(early), config) == config.exit_samples


def test_everything_is_left_in_the_folder(result: DemoResult, folder: Path) -> None:
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    expected = {"training/checkpoint.safetensors", "profile.zip", "plan.json", "summary.json", "report.html"}
    assert expected <= names
    assert "measurements/portend.zip" in names
    assert not [name for name in names if name.endswith(".tmp")]
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["plan"] == result.solution.plan.to_dict()
    assert summary["verdict"]


def test_the_plan_meets_its_bound_and_no_baseline_beats_it(result: DemoResult) -> None:
    solution = result.solution
    assert solution.status == "optimal"
    assert solution.estimate.accuracy >= result.profile.full_accuracy - 0.01 - 1e-12
    for name, baseline in solution.baselines.items():
        if baseline.status == "optimal" and name != "BranchyNet":  # its space has other thresholds' exits per tier
            assert solution.estimate.mean_s <= baseline.estimate.mean_s + 1e-12, name


def test_the_run_exits_as_the_scores_of_the_test_split_say(result: DemoResult, folder: Path) -> None:
    measured = load_measurement(folder / "measurements/portend.zip")
    dataset = load_dataset("digits:size=16")
    test = draw(make_splits(dataset, seed=0).test, len(measured))
    backbone = load_checkpoint(folder / "training/checkpoint.safetensors")
    on_test = replace(result.profile, exits=profile_exits(TorchEvaluator(backbone), dataset, test))
    replayed = PerformanceModel(on_test, measured.topology)
    estimate = replayed.estimate(result.solution.plan)
    assert np.allclose(measured.exit_rates(), estimate.share)
    assert measured.accuracy == pytest.approx(estimate.accuracy)


def test_predicted_and_measured_have_the_same_terms_which_add_up(result: DemoResult) -> None:
    for case in result.comparisons:
        assert sum(term.predicted_s for term in case.terms) == pytest.approx(case.estimate.mean_s), case.name
        assert sum(term.measured_s for term in case.terms) == pytest.approx(case.measurement.mean_s), case.name
        assert all(term.predicted_s > 0 for term in case.terms if term.name == "compute"), case.name


@pytest.mark.slow
def test_predicted_and_measured_are_of_the_same_kind(result: DemoResult) -> None:
    """Not a benchmark: a missing or doubled term would show."""
    for case in result.comparisons:
        assert 0.5 < case.estimate.mean_s / case.measurement.mean_s < 1.5, case.name
        transfer = next(term for term in case.terms if term.name == "transfer")
        assert transfer.predicted_s == pytest.approx(transfer.measured_s, rel=0.25, abs=0.004), case.name


def test_what_was_saved_loads_and_compares_again(result: DemoResult, folder: Path) -> None:
    profile = load_profile(folder / "profile.zip")
    assert profile.backbone == result.profile.backbone
    measured = folder / "measurements/portend.zip"
    done = portend("compare", folder / "profile.zip", measured, "--json")
    assert done.returncode == 0, done.stderr
    comparison = json.loads(done.stdout)["comparisons"][0]
    assert comparison["plan"] == result.solution.plan.to_dict()
    page = folder / "again.html"
    done = portend("report", folder / "profile.zip", measured, "--out", page)
    assert done.returncode == 0, done.stderr
    assert page.stat().st_size > 100_000


def test_data_that_does_not_fit_the_network_is_refused(result: DemoResult, folder: Path) -> None:
    backbone = load_checkpoint(folder / "training/checkpoint.safetensors")
    with pytest.raises(MismatchError, match="takes samples of shape"):
        profile_exits(TorchEvaluator(backbone), load_dataset("digits:size=32"), np.arange(4))


def test_runs_and_profiles_of_different_weights_or_conditions_are_not_compared(
    result: DemoResult, folder: Path, tmp_path: Path
) -> None:
    measured = load_measurement(folder / "measurements/portend.zip")
    cases = {
        "other weights": dict(measured.provenance) | {"weights_sha256": "0" * 64},
        "4 samples under way": dict(measured.provenance) | {"window": "4"},
    }
    for message, provenance in cases.items():
        save(replace(measured, provenance=provenance), tmp_path / "m.zip")
        done = portend("compare", folder / "profile.zip", tmp_path / "m.zip")
        assert done.returncode == 1
        assert message in done.stderr


def test_a_checkpoint_keeps_the_seed_of_its_splits(result: DemoResult, folder: Path, tmp_path: Path) -> None:
    done = portend("profile", folder / "training/checkpoint.safetensors", "--seed", "7", "--out", tmp_path / "p.zip")
    assert done.returncode == 1
    assert "splits of seed 0" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_plan_of_a_larger_network_is_refused_before_anything_starts(
    result: DemoResult, folder: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(
        '{"cuts": [9], "placement": [0], "codecs": [null], "tiers": ["edge", "base", "cloud"]}', encoding="utf-8"
    )
    done = portend(
        "run", plan, "--out", tmp_path / "m.zip", "--network", folder / "training/checkpoint.safetensors",
        "--topology", ROOT / "configs/topologies/three_tier.yaml",
    )  # fmt: skip
    assert done.returncode == 1
    assert "has 4 blocks, but" in done.stderr
