"""Joint training of all exits: reproducible, resumable, and honest about failures."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from portend.errors import InvalidValue, MismatchError, StorageError, TrainingError
from portend.models import zoo
from portend.models.backbone import Backbone
from portend.models.checkpoint import load_checkpoint, read_provenance
from portend.models.data import Dataset, Splits, load_dataset, make_splits
from portend.models.exits import normalized_entropy
from portend.models.training import Progress, TrainingConfig, evaluate, train

CONFIG = TrainingConfig(epochs=3, batch_size=64, learning_rate=0.1, threads=1)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits:size=8")


@pytest.fixture(scope="module")
def splits(digits: Dataset) -> Splits:
    """Return 357 training samples: six steps in an epoch."""
    return make_splits(digits, profiling=720, test=720)


def network(**options: Any) -> Backbone:
    return zoo.build("resnet8", **{"in_channels": 1, "input_size": 8, **options})


def digest(path: Path) -> str:
    return load_checkpoint(path).spec().weights_sha256


def interrupt_after(step: int) -> Callable[[Progress], None]:
    def stop(event: Progress) -> None:
        if event.step >= step:
            raise KeyboardInterrupt

    return stop


def test_training_learns_and_leaves_everything_behind(digits: Dataset, tmp_path: Path) -> None:
    splits = make_splits(digits)
    events: list[Progress] = []
    backbone = network()
    result = train(backbone, digits, splits, replace(CONFIG, epochs=6), tmp_path, on_progress=events.append)
    assert result.accuracies[-1] > 0.93
    assert [record.epoch for record in result.history] == [1, 2, 3, 4, 5, 6]
    assert result.history[-1].loss < result.history[0].loss / 3

    loaded = load_checkpoint(result.checkpoint)
    assert loaded.spec() == backbone.spec()
    assert not backbone.training
    _, correct = evaluate(loaded, digits, splits.profiling)
    assert tuple(correct.mean(axis=0)) == result.accuracies
    provenance = read_provenance(result.checkpoint)
    assert json.loads(provenance["training"])["epochs"] == 6
    assert json.loads(provenance["decoder"]) == digits.decoder.to_dict()

    rows = list(csv.DictReader((tmp_path / "history.csv").read_text().splitlines()))
    assert [float(row["loss"]) for row in rows] == [record.loss for record in result.history]
    assert float(rows[-1]["accuracy_4"]) == result.history[-1].accuracies[3]

    assert [event.step for event in events if event.accuracies is None] == list(range(1, 91))
    ends = [event for event in events if event.accuracies is not None]
    assert [(event.epoch, event.step) for event in ends] == [(k, 15 * k) for k in range(1, 7)]
    assert {(event.epochs, event.steps) for event in events} == {(6, 90)}


@pytest.mark.parametrize("augment", ["none", "crop", "crop+flip"])
def test_the_seed_fixes_the_weights(digits: Dataset, splits: Splits, tmp_path: Path, augment: Any) -> None:
    config = replace(CONFIG, epochs=1, augment=augment)
    runs = {"a": config, "b": config, "c": replace(config, seed=1)}
    digests = {
        name: digest(train(network(), digits, splits, run, tmp_path / name).checkpoint) for name, run in runs.items()
    }
    assert digests["a"] == digests["b"] != digests["c"]


@pytest.mark.parametrize(("precision", "step"), [("float32", 6), ("float32", 8), ("bfloat16", 8), ("float32", 18)])
def test_an_interrupted_run_ends_with_the_same_bits(
    digits: Dataset, splits: Splits, tmp_path: Path, precision: Any, step: int
) -> None:
    config = replace(CONFIG, precision=precision, augment="crop")
    whole = train(network(), digits, splits, config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(network(), digits, splits, config, tmp_path / "parts", on_progress=interrupt_after(step))
    resumed = train(network(), digits, splits, config, tmp_path / "parts")
    assert digest(resumed.checkpoint) == digest(whole.checkpoint)
    assert [record.loss for record in resumed.history] == [record.loss for record in whole.history]


def test_a_finished_run_is_not_repeated(digits: Dataset, splits: Splits, tmp_path: Path) -> None:
    first = train(network(), digits, splits, CONFIG, tmp_path)
    events: list[Progress] = []
    again = train(network(), digits, splits, CONFIG, tmp_path, on_progress=events.append)
    assert again == first
    assert events == []


@pytest.mark.parametrize("change", ["config", "seed of the network", "splits"])
def test_the_state_of_another_run_is_refused(digits: Dataset, splits: Splits, tmp_path: Path, change: str) -> None:
    config = replace(CONFIG, epochs=1)
    train(network(), digits, splits, config, tmp_path)
    other = {
        "config": (network(), splits, replace(config, learning_rate=0.2)),
        "seed of the network": (network(seed=1), splits, config),
        "splits": (network(), make_splits(digits, seed=9), config),
    }
    backbone, other_splits, other_config = other[change]
    with pytest.raises(TrainingError, match=r"state\.safetensors belongs to another .* --restart"):
        train(backbone, digits, other_splits, other_config, tmp_path)
    train(backbone, digits, other_splits, other_config, tmp_path, resume=False)


def test_a_damaged_state_is_refused(digits: Dataset, splits: Splits, tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=1)
    result = train(network(), digits, splits, config, tmp_path)
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-7])
    with pytest.raises(StorageError, match=r"state\.safetensors"):
        train(network(), digits, splits, config, tmp_path)
    state.write_bytes(result.checkpoint.read_bytes())
    with pytest.raises(StorageError, match="not a training state"):
        train(network(), digits, splits, config, tmp_path)


def test_a_lost_run_names_the_step_and_the_last_good_state(digits: Dataset, splits: Splits, tmp_path: Path) -> None:
    backbone = network()

    def poison(event: Progress) -> None:
        if event.step == 8:
            backbone.branches[0].linear.bias.data.fill_(np.nan)  # type: ignore[union-attr, operator]

    with pytest.raises(TrainingError, match=r"nan at step 9 of 18.*state\.safetensors \(epoch 1\)"):
        train(backbone, digits, splits, CONFIG, tmp_path, on_progress=poison)
    with pytest.raises(TrainingError, match="no epoch was completed"):
        train(backbone, digits, splits, CONFIG, tmp_path / "new")
    assert len(train(network(), digits, splits, CONFIG, tmp_path).history) == 3


def test_network_and_data_must_fit(digits: Dataset, splits: Splits, tmp_path: Path) -> None:
    for backbone in (network(input_size=16), network(num_classes=5), network(in_channels=3)):
        with pytest.raises(MismatchError, match="digits has"):
            train(backbone, digits, splits, CONFIG, tmp_path)
        with pytest.raises(MismatchError, match="digits has"):
            evaluate(backbone, digits, splits.test)


def test_a_folder_that_cannot_be_made_is_named(digits: Dataset, splits: Splits, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot make the folder"):
        train(network(), digits, splits, CONFIG, tmp_path / "file" / "run")


def test_training_leaves_torchs_threads_alone(digits: Dataset, splits: Splits, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        train(network(), digits, splits, replace(CONFIG, threads=1), tmp_path, on_progress=interrupt_after(1))
    assert torch.get_num_threads() == before


def test_evaluate_scores_every_branch(digits: Dataset, splits: Splits) -> None:
    backbone = network().train()
    done: list[tuple[int, int]] = []
    chosen = splits.test[:50]
    score, correct = evaluate(backbone, digits, chosen, 20, lambda *counts: done.append(counts))
    assert score.shape == correct.shape == (50, 4)
    assert score.dtype == np.float64
    assert correct.dtype == np.bool_
    assert done == [(20, 50), (40, 50), (50, 50)]
    assert backbone.training
    backbone.eval()
    with torch.inference_mode():
        logits = backbone(torch.from_numpy(digits.tensors(chosen)))[2]
    assert score[:, 2] == pytest.approx(normalized_entropy(logits).numpy(), abs=1e-6)
    assert np.array_equal(correct[:, 2], logits.argmax(1).numpy() == digits.labels[chosen])


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"weight_decay": -1.0},
        {"threads": 0},
        {"augment": "rotate"},
        {"precision": "float8"},
    ],
)
def test_a_wrong_config_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue, match=next(iter(changes))):
        replace(CONFIG, **changes)
