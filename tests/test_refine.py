"""Planning, fine-tuning for the plan and planning again, on the digits."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands import killed, portend
from portend.data.dataset import Dataset, Splits, make_splits
from portend.data.sources import load_dataset
from portend.errors import InvalidValue, MismatchError
from portend.io.storage import load_profile, save
from portend.networks import zoo
from portend.networks.checkpoint import load_checkpoint, save_checkpoint
from portend.networks.evaluators import TorchEvaluator
from portend.networks.scoring import score_samples
from portend.planner.problem import Problem, SearchSpace, accuracy, latency
from portend.profiling.network import profile_exits
from portend.training.config import TrainingConfig
from portend.training.training import train
from portend.values.exits import SampleExits
from portend.values.plan import takes_exit
from portend.values.profile import Profile
from portend.values.topology import Link, Tier, Topology
from portend.workflows.refine import Refinement, refine, refinement_table
from problems import codec, device

TUNING = TrainingConfig(epochs=2, batch_size=64, learning_rate=0.02, threads=1)
TUNING_YAML = "training: {epochs: 2, batch_size: 64, learning_rate: 0.02, threads: 1}\n"
TOPOLOGY_YAML = """
name: two
tiers:
  - {name: near, device: here, slowdown: 4}
  - {name: far, device: here}
links:
  - {bandwidth: 10 Mbit/s, propagation_delay: 5 ms}
"""
TOPOLOGY = Topology(
    name="two",
    tiers=(Tier(name="near", device="here", slowdown=4.0), Tier(name="far", device="here")),
    links=(Link(bandwidth_bps=10e6, propagation_delay_s=0.005),),
)
PROBLEM = Problem(minimize=latency, subject_to=(accuracy >= 0.8,), space=SearchSpace(exits_per_tier=2))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits:size=8")


@pytest.fixture(scope="module")
def splits(digits: Dataset) -> Splits:
    return make_splits(digits)


@pytest.fixture(scope="module")
def checkpoint(digits: Dataset, splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    backbone = zoo.build("resnet8", in_channels=1, input_size=8)
    config = TrainingConfig(epochs=3, batch_size=64, learning_rate=0.1, threads=1)
    return train(backbone, digits, splits, config, tmp_path_factory.mktemp("first")).checkpoint


@pytest.fixture(scope="module")
def profile(digits: Dataset, splits: Splits, checkpoint: Path) -> Profile:
    """Return exits as they are, and a device that needs 2 ms for each block."""
    backbone = load_checkpoint(checkpoint)
    compute = [[2e-3 * (end - start) for end in range(5)] for start in range(5)]
    here = device("here", compute, codecs={"float32": codec([256.0, 4096.0, 4096.0, 2048.0, 1024.0])})
    exits = profile_exits(TorchEvaluator(backbone), digits, splits.profiling)
    return Profile(backbone=backbone.spec(), exits=exits, devices={"here": here})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("refined")


@pytest.fixture(scope="module")
def refined(digits: Dataset, splits: Splits, checkpoint: Path, profile: Profile, folder: Path) -> Refinement:
    return refine(profile, checkpoint, digits, splits, TOPOLOGY, PROBLEM, folder, training=TUNING, rounds=3)


def test_each_round_tunes_what_the_last_plan_uses(refined: Refinement, checkpoint: Path) -> None:
    assert refined.rounds[0].checkpoint == checkpoint
    assert len(refined.rounds) >= 2
    for before, after in pairwise(refined.rounds):
        exits = before.solution.plan.exits
        old, new = (load_checkpoint(each.checkpoint).state_dict() for each in (before, after))
        changed = {".".join(name.split(".")[:2]) for name, value in old.items() if not value.equal(new[name])}
        blocks = {f"blocks.{index}" for index in range(exits[-1])}
        assert changed == blocks | {f"branches.{cut - 1}" for cut in exits}


def test_the_devices_stay_and_the_exits_are_profiled_anew(
    refined: Refinement, profile: Profile, digits: Dataset, splits: Splits
) -> None:
    for each in refined.rounds:
        kept = load_profile(each.profile)
        backbone = load_checkpoint(each.checkpoint)
        assert kept.backbone == backbone.spec()
        assert np.array_equal(
            kept.devices["here"].compute_repeats_s, profile.devices["here"].compute_repeats_s, equal_nan=True
        )
        scores, correct = score_samples(TorchEvaluator(backbone), digits, splits.profiling)
        assert isinstance(kept.exits, SampleExits)
        assert kept.exits.scores.keys() == scores.keys()
        assert all(np.array_equal(kept.exits.scores[name], table) for name, table in scores.items())
        assert kept.exits.labels is not None
        assert np.array_equal(kept.exits.labels, digits.labels[splits.profiling])
        assert np.array_equal(kept.exits.correct, correct)


def test_the_test_splits_accuracy_is_that_of_a_replay(refined: Refinement, digits: Dataset, splits: Splits) -> None:
    for each in refined.rounds:
        plan = each.solution.plan
        scores, correct = score_samples(TorchEvaluator(load_checkpoint(each.checkpoint)), digits, splits.test)
        score = scores[plan.criterion]
        right = 0
        for row in range(len(score)):
            for cut, threshold in zip(plan.cuts, (*plan.thresholds, np.inf), strict=True):
                if takes_exit(score[row, cut - 1], threshold) or cut == plan.cuts[-1]:
                    right += bool(correct[row, cut - 1])
                    break
        assert each.test.accuracy == pytest.approx(right / len(score))


def test_gains_are_against_the_first_plan(refined: Refinement) -> None:
    first = refined.rounds[0]
    assert first.same_plan is None
    assert first.same_accuracy_s is not None
    assert first.same_accuracy_s <= first.solution.estimate.mean_s * (1 + 1e-9)
    assert first.same_latency >= first.solution.estimate.accuracy - 1e-12
    for before, after in pairwise(refined.rounds):
        assert after.same_plan is not None
        assert after.same_plan.plan == before.solution.plan
        assert after.same_latency >= after.same_plan.accuracy or after.same_plan.mean_s > first.solution.estimate.mean_s
    last = refined.rounds[-1]
    assert last.same_latency > first.same_latency, "fine-tuning for the plan helps a network trained for three epochs"


def test_rounds_end_when_the_plan_stands_still(refined: Refinement) -> None:
    plans = [each.solution.plan for each in refined.rounds]
    assert all(a != b for a, b in pairwise(plans[:-1]))
    assert refined.stands_still == (plans[-1] == plans[-2])
    assert refined.stands_still or len(plans) == 4
    seconds = [r.solution.estimate.mean_s for r in refined.rounds if r.solution.status == "optimal"]
    assert refined.rounds[refined.best].solution.estimate.mean_s == min(seconds)


def test_everything_is_left_in_the_folder(refined: Refinement, folder: Path) -> None:
    answer = json.loads((folder / "refinement.json").read_text(encoding="utf-8"))
    assert answer == refined.to_dict()
    assert len(answer["rounds"]) == len(refined.rounds)
    for each in refined.rounds:
        assert each.plan is not None
        assert json.loads(each.plan.read_text(encoding="utf-8"))["plan"] == each.solution.plan.to_dict()
    table = refinement_table(refined, ["near", "far"])
    assert table.row_count == len(refined.rounds)


def test_a_killed_refinement_goes_on_to_the_same_end(
    digits: Dataset, splits: Splits, refined: Refinement, checkpoint: Path, profile: Profile, tmp_path: Path
) -> None:
    save(profile, tmp_path / "profile.zip")
    (tmp_path / "t.yaml").write_text(TOPOLOGY_YAML)
    (tmp_path / "tuning.yaml").write_text(TUNING_YAML)
    command = ["refine", "profile.zip", "--checkpoint", str(checkpoint), "--topology", "t.yaml"]
    command += ["--min-accuracy", "0.8", "--exits-per-tier", "2", "--rounds", "3"]
    command += ["--training", "tuning.yaml", "--out", "out"]
    with killed(tmp_path / "out") as kill:

        def stop(*at: object) -> None:
            if (tmp_path / "out/round-1/training/state.safetensors").exists():
                kill()

        refine(profile, checkpoint, digits, splits, TOPOLOGY, PROBLEM, tmp_path / "out", training=TUNING, tell=stop)
    left = json.loads((tmp_path / "out/refinement.json").read_text(encoding="utf-8"))
    assert len(left["rounds"]) < len(refined.rounds)
    done = portend(*command, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer, whole = json.loads(done.stdout), refined.to_dict()
    for one, other in zip(answer["rounds"], whole["rounds"], strict=True):
        assert one | {"checkpoint": ""} == other | {"checkpoint": ""}
    ends = [load_checkpoint(tmp_path / "out" / Path(answer["rounds"][-1]["checkpoint"]).relative_to("out")).spec()]
    assert ends == [load_checkpoint(refined.rounds[-1].checkpoint).spec()]


def test_a_round_whose_plan_misses_the_constraints_leaves_no_plan(
    checkpoint: Path, profile: Profile, tmp_path: Path
) -> None:
    save(profile, tmp_path / "profile.zip")
    (tmp_path / "t.yaml").write_text(TOPOLOGY_YAML)
    (tmp_path / "tuning.yaml").write_text(TUNING_YAML)
    command = ["refine", "profile.zip", "--checkpoint", str(checkpoint), "--topology", "t.yaml", "--rounds", "1"]
    command += ["--max-latency", "1 us", "--training", "tuning.yaml", "--out", "out"]
    done = portend(*command, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "/plan.json was not written" in done.stderr
    assert not list((tmp_path / "out").glob("*/plan.json"))
    assert portend(*command, "--allow-infeasible", cwd=tmp_path).returncode == 0
    assert (tmp_path / "out/round-0/plan.json").exists()


def test_a_frozen_backbone_stays(
    digits: Dataset, splits: Splits, checkpoint: Path, profile: Profile, tmp_path: Path
) -> None:
    tuning = replace(TUNING, epochs=1, freeze_backbone=True)
    found = refine(profile, checkpoint, digits, splits, TOPOLOGY, PROBLEM, tmp_path, training=tuning, rounds=1)
    before, after = (load_checkpoint(each.checkpoint).blocks.state_dict() for each in found.rounds)
    assert all(value.equal(after[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "rounds is at least 1"),
        ({"training": replace(TUNING, exits=(1,))}, "the plans say which exits are trained"),
        ({"training": replace(TUNING, exit_weights=(1.0,))}, "leave exit_weights out"),
    ],
)
def test_what_refining_cannot_do(
    digits: Dataset, splits: Splits, checkpoint: Path, profile: Profile, tmp_path: Path, changes: Any, message: str
) -> None:
    with pytest.raises(InvalidValue, match=message):
        refine(profile, checkpoint, digits, splits, TOPOLOGY, PROBLEM, tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_another_network_is_refused(digits: Dataset, splits: Splits, profile: Profile, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_checkpoint(zoo.build("resnet14", in_channels=1, input_size=8), other)
    with pytest.raises(MismatchError, match=r"the profile is of resnet8 with 4 blocks .* holds resnet14 with 7"):
        refine(profile, other, digits, splits, TOPOLOGY, PROBLEM, tmp_path / "out")
    assert not (tmp_path / "out").exists()
