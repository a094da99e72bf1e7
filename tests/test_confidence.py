"""Scores of exits, their temperatures, and that profile, plan and agents use the same ones."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch import nn

from portend.cli.app import cli
from portend.data.dataset import Dataset, make_splits
from portend.data.sources import load_dataset
from portend.errors import ConfigError, InvalidValue, MismatchError
from portend.networks.checkpoint import load_checkpoint, read_provenance, save_checkpoint
from portend.networks.evaluators import TorchEvaluator
from portend.networks.scores import score, scores
from portend.networks.scoring import score_samples
from portend.perfmodel.model import PerformanceModel
from portend.planner.metrics import accuracy, latency
from portend.planner.problem import Problem
from portend.planner.solve import solve
from portend.profiling.network import profile_exits
from portend.testbed.deployment import Deployment
from portend.training.calibration import calibrate, calibration_error, fit_temperature
from portend.values.execution import Execution
from portend.values.exits import SampleExits
from portend.values.plan import CRITERIA, Plan, takes_exit
from problems import Case, random_case
from test_runtime import chain

# --- scores -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "entropy", "max_probability", "margin"),
    [
        ((0.5, 0.25, 0.25), 1.5 * math.log(2) / math.log(3), 0.5, 0.75),
        ((0.1, 0.7, 0.2), 0.8018185525 / math.log(3), 0.3, 0.5),
        ((0.25,) * 4, 1.0, 0.75, 1.0),
        ((0.2, 0.8), 0.5004024235 / math.log(2), 0.2, 0.4),
    ],
)
def test_scores_worked_by_hand(p: tuple[float, ...], entropy: float, max_probability: float, margin: float) -> None:
    logits = torch.tensor(p, dtype=torch.float64).log() + 3.7
    expected = {"entropy": entropy, "max_probability": max_probability, "margin": margin}
    assert {name: float(score(logits, name)) for name in CRITERIA} == pytest.approx(expected, abs=1e-7)
    assert {name: float(value) for name, value in scores(logits).items()} == {
        name: float(score(logits, name)) for name in CRITERIA
    }


def test_great_confidence_does_not_round_to_zero() -> None:
    logits = torch.tensor([60.0, 0.0])
    assert float(score(logits, "max_probability")) == pytest.approx(math.exp(-60), rel=1e-7)
    assert float(score(logits, "margin")) == pytest.approx(2 * math.exp(-60), rel=1e-7)


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=12), st.floats(0.05, 20), st.floats(1, 20))
def test_scores_lie_within_0_and_1_and_fall_as_logits_grow(z: list[float], scale: float, by: float) -> None:
    logits = torch.tensor(z, dtype=torch.float64) * scale
    values = {name: float(score(logits, name)) for name in CRITERIA}
    assert all(0 <= value <= 1 for value in values.values())
    assert values["max_probability"] <= min(values["margin"], 1 - 1 / len(z)) + 1e-7  # of float32
    for name, value in values.items():
        assert float(score(logits * by, name)) <= value + 1e-7


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_not_finite_never_leaves(bad: float, criterion: str) -> None:
    values = score(torch.tensor([[9.0, bad, 0.0], [9.0, 0.0, 0.0]]), criterion).numpy()
    assert takes_exit(values, 1.0).tolist() == [False, True]


def test_wrong_criteria_are_refused() -> None:
    with pytest.raises(InvalidValue, match="entropy, max_probability, margin"):
        score(torch.zeros(3), "energy")
    with pytest.raises(InvalidValue, match="two classes"):
        score(torch.zeros(3, 1), "margin")
    for make in (
        lambda: Plan(cuts=(1,), placement=(0,), criterion="energy"),
        lambda: Plan.from_dict({"cuts": [1], "placement": [0], "criterion": 3}),
        lambda: SampleExits(
            scores={"entropy": np.zeros((2, 1))}, correct=np.ones((2, 1), dtype=np.bool_), criterion="energy"
        ),
        lambda: SampleExits(
            scores={"energy": np.zeros((2, 1))}, correct=np.ones((2, 1), dtype=np.bool_), criterion="energy"
        ),
        lambda: SampleExits(
            scores={"entropy": np.zeros((2, 1))}, correct=np.ones((2, 1), dtype=np.bool_), criterion="margin"
        ),
    ):
        with pytest.raises(InvalidValue, match="criteri"):
            make()


# --- from profile to agents ---------------------------------------------------------------------


def sampled() -> Case:
    return random_case(3, blocks=4, tiers=2, estimator="sample")


def test_a_plan_has_the_criterion_of_its_profile() -> None:
    case = sampled()
    exits = case.profile.exits
    assert isinstance(exits, SampleExits)
    scores = {"entropy": exits.score, "margin": np.sqrt(exits.score)}
    profile = replace(case.profile, exits=replace(exits, scores=scores))
    model = PerformanceModel(profile.by("margin"), case.topology)
    solution = solve(Problem(minimize=latency, subject_to=(accuracy >= 0.0,)), model)
    assert solution.plan.criterion == "margin"
    assert {point.plan.criterion for point in solution.front} <= {"margin"}
    assert Plan.from_dict(json.loads(json.dumps(solution.plan.to_dict()))) == solution.plan


def test_thresholds_for_another_criterion_are_not_estimated() -> None:
    case = sampled()
    model = PerformanceModel(case.profile, case.topology)
    plan = model.complete(Plan(cuts=(1, 2), placement=(0, 0), thresholds=(0.3,)))
    model.estimate(plan)
    with pytest.raises(MismatchError, match=r"by entropy, but .* for margin"):
        model.estimate(replace(plan, criterion="margin"))
    with pytest.raises(MismatchError, match="scores of entropy, but margin"):
        case.profile.by("margin")
    model.estimate(replace(plan, thresholds=(0.0,), criterion="margin"))  # nobody is asked


def test_a_plan_says_what_its_thresholds_mean() -> None:
    plan = Plan(cuts=(1, 2), placement=(0, 1), thresholds=(0.3,), criterion="margin")
    assert plan.describe() == "tier 0 [1] 1−(p₁−p₂)<0.3 → tier 1 [2]"
    assert Plan.from_dict({"cuts": [1], "placement": [0]}).criterion == "entropy"  # of files before there was a choice


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits:size=16")


@pytest.mark.parametrize("criterion", CRITERIA)
def test_agents_leave_where_the_profiles_scores_say(
    checkpoint: Path, network: Path, digits: Dataset, criterion: str
) -> None:
    samples = np.arange(24)
    exits = profile_exits(TorchEvaluator(load_checkpoint(checkpoint)), digits, samples).by(criterion)
    thresholds = tuple(float(np.quantile(exits.score[:, branch], 0.4)) + 1e-6 for branch in (0, 1))
    plan = Plan(
        cuts=(1, 2, 4),
        placement=(0, 1, 1),
        thresholds=thresholds,
        codecs=(None, "float32", None),
        criterion=criterion,
    )
    leaves = [exits.score[:, cut - 1] < t for cut, t in zip(plan.cuts, (*thresholds, np.inf), strict=True)]
    expected = np.argmax(leaves, axis=0)
    assert len(set(expected.tolist())) == 3
    onnx = (Execution(executor="onnxruntime"),) * 2
    places = chain(1.0, 1.0, delay_s=0.0)
    with Deployment(places, network, digits.decoder, executions=onnx, criterion=criterion) as running:
        running.load_samples(list(digits.encoded[:24]), digits.labels[samples])
        running.deploy(plan)
        measured = running.run(window=4)
        others = [name for name in CRITERIA if name != criterion]
        with pytest.raises(InvalidValue, match=f"agents score by {criterion}"):
            running.deploy(replace(plan, criterion=others[0]))
    assert measured.exit_index.tolist() == expected.tolist()
    assert measured.plan.criterion == criterion
    branch = np.array(plan.cuts)[expected] - 1
    assert measured.correct.tolist() == exits.correct[samples, branch].tolist()


# --- temperatures -------------------------------------------------------------------------------


def drawn(samples: int = 20_000, classes: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn with just their probabilities."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(samples, classes, generator=generator)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("temperature", [0.25, 0.8, 1.0, 3.0, 12.0])
def test_a_known_temperature_is_found(temperature: float) -> None:
    logits, labels = drawn()
    found = fit_temperature(logits * temperature, labels)
    assert found == pytest.approx(temperature, rel=0.04)
    assert calibration_error(logits * temperature / found, labels) < 0.01
    if temperature > 2:
        assert calibration_error(logits * temperature, labels) > 0.1


def test_the_temperature_is_that_of_another_optimizer() -> None:
    logits, labels = drawn(300, seed=4)
    z, y = 2.5 * logits.double().numpy(), labels.numpy()

    def nll(t: float) -> float:
        log_p = z / t - np.log(np.exp(z / t).sum(axis=1, keepdims=True))
        return float(-log_p[np.arange(len(y)), y].mean())

    best = minimize_scalar(nll, bounds=(0.05, 50), method="bounded", options={"xatol": 1e-9})
    assert fit_temperature(2.5 * logits, labels) == pytest.approx(best.x, rel=1e-4)


def test_calibration_error_worked_by_hand() -> None:
    """Two samples at 0.9, one of them right (gap 0.4); two at 0.6, both right (gap 0.4); one at 0.75, wrong."""
    p = torch.tensor([0.9, 0.9, 0.6, 0.6, 0.75], dtype=torch.float64)
    logits = torch.stack([p.log(), (1 - p).log()], dim=1)
    labels = torch.tensor([0, 1, 0, 0, 1])
    assert calibration_error(logits, labels) == pytest.approx((2 * 0.4 + 2 * 0.4 + 0.75) / 5)


def test_extreme_samples_have_a_bounded_temperature() -> None:
    logits = torch.eye(3)
    assert 0.02 <= fit_temperature(logits, torch.arange(3)) < 0.1
    assert fit_temperature(logits, (torch.arange(3) + 1) % 3) == pytest.approx(50.0)
    labels = torch.tensor([0, 0])
    one_left = torch.tensor([[1.0, 0.0], [math.nan, 0.0]])
    assert fit_temperature(one_left, labels) == fit_temperature(one_left[:1], labels[:1])
    with pytest.raises(InvalidValue, match="finite logits"):
        fit_temperature(one_left[1:], labels[:1])
    with pytest.raises(InvalidValue, match="one label"):
        fit_temperature(logits, labels)


def test_calibration_divides_each_branchs_logits(checkpoint: Path, digits: Dataset, tmp_path: Path) -> None:
    backbone = load_checkpoint(checkpoint)
    before, digest = backbone.spec(), backbone.spec().weights_sha256
    x = torch.from_numpy(digits.tensors(np.arange(40)))
    with torch.no_grad():
        plain = backbone(x)
    splits = make_splits(digits, calibration=300)
    assert splits.calibration is not None
    told: list[tuple[int, int]] = []
    found = calibrate(
        backbone, digits, splits.calibration, judge_on=splits.profiling, on_progress=lambda *at: told.append(at)
    )
    assert told[-1] == (750, 750)
    with torch.no_grad():
        calibrated = backbone(x)
    for old, new, one in zip(plain, calibrated, found, strict=True):
        assert one is not None
        assert torch.allclose(new * one.temperature, old, rtol=1e-4, atol=1e-4)
        assert torch.equal(new.argmax(1), old.argmax(1))
        assert one.temperature > 1  # ten times too sure
        assert one.nll[1] < one.nll[0]
        assert one.ece[1] < one.ece[0]
    assert backbone.spec().weights_sha256 != digest
    save_checkpoint(backbone, tmp_path / "new.safetensors")
    assert load_checkpoint(tmp_path / "new.safetensors").spec() == backbone.spec()
    assert replace(backbone.spec(), weights_sha256="") == replace(before, weights_sha256="")


@pytest.mark.parametrize("wrong", ["no linear layer", "does not end", "shares"])
def test_a_branch_that_takes_no_temperature_is_refused(checkpoint: Path, digits: Dataset, wrong: str) -> None:
    backbone = load_checkpoint(checkpoint)
    branch: Any = backbone.branches[1]
    if wrong == "no linear layer":
        backbone.branches[1] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.ConstantPad1d((0, -6), 0.0))
    elif wrong == "does not end":
        backbone.branches[1] = nn.Sequential(branch, nn.Tanh())
    else:
        backbone.branches[0].linear = branch.linear = nn.Linear(16, 10)
    weights = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with pytest.raises(InvalidValue, match=wrong):
        calibrate(backbone, digits, np.arange(100), judge_on=np.arange(100, 200))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in backbone.state_dict().items())


def portend(*arguments: str) -> str:
    """Run a command in this process and return its output; errors pass."""
    return CliRunner().invoke(cli, arguments, standalone_mode=False, catch_exceptions=False).stdout


TRAINING = """
network: resnet8
options: {in_channels: 1, num_classes: 10, input_size: 8}
data: digits:size=8
calibration: 200
training: {epochs: 2, batch_size: 32, learning_rate: 0.1}
"""


def test_train_and_calibrate_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(TRAINING)
    portend("train", "c.yaml", "--out", "run")
    old, new = "run/checkpoint.safetensors", "calibrated.safetensors"
    assert read_provenance(old)["split_calibration"] == "200"

    answer = json.loads(portend("calibrate", old, "--out", new, "--json"))
    assert answer["samples"] == 200
    assert len(answer["exits"]) == 4
    assert json.loads(read_provenance(new)["temperatures"]) == [one["temperature"] for one in answer["exits"]]

    dataset = load_dataset("digits:size=8")
    splits = make_splits(dataset, calibration=200)
    found = calibrate(load_checkpoint(old), dataset, np.asarray(splits.calibration), judge_on=splits.profiling)
    assert [one["temperature"] for one in answer["exits"]] == [one.temperature for one in found if one]
    both = [score_samples(TorchEvaluator(load_checkpoint(name)), dataset, splits.test)[1] for name in (old, new)]
    assert np.array_equal(both[0], both[1])

    with pytest.raises(ConfigError, match="calibrated already"):
        portend("calibrate", new, "--out", "x.safetensors")
    with pytest.raises(ConfigError, match="trained on the samples"):
        portend("calibrate", old, "--samples", "9", "--out", "x.safetensors")
    assert not Path("x.safetensors").exists()
    Path("c.yaml").write_text(TRAINING.replace("200", "many"))
    with pytest.raises(ConfigError, match="calibration: a count or a share"):
        portend("train", "c.yaml", "--out", "run")


def test_a_network_from_elsewhere_is_calibrated_on_samples_that_it_was_not_trained_on(
    checkpoint: Path, tmp_path: Path
) -> None:
    common = ("calibrate", str(checkpoint), "--data", "digits:size=16", "--out", str(tmp_path / "x.safetensors"))
    with pytest.raises(ConfigError, match="no calibration split"):
        portend(*common)
    assert "judged on 450 others" in portend(*common, "--samples", "100")
    assert (tmp_path / "x.safetensors").exists()
