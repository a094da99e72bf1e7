"""Training of exits: reproducible, resumable, and honest about failures."""

from __future__ import annotations

import csv
import json
import math
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from commands import killed
from portend.data.augment import augmented
from portend.data.dataset import Dataset, Splits, make_splits
from portend.data.sources import load_dataset
from portend.errors import DataError, InvalidValue, MismatchError, StorageError, TrainingError
from portend.networks import zoo
from portend.networks.backbone import Backbone
from portend.networks.checkpoint import load_checkpoint, read_provenance
from portend.networks.evaluators import TorchEvaluator
from portend.networks.scores import score
from portend.networks.scoring import score_samples
from portend.training.batches import Batches
from portend.training.config import Distillation, EarlyStopping, Progress, TrainingConfig, TrainingResult
from portend.training.losses import exit_losses
from portend.training.schedules import peak_share
from portend.training.training import train
from portend.values.plan import CRITERIA, Plan

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


def outcome(result: TrainingResult) -> list[tuple[Any, ...]]:
    """Return all of a history that does not depend on the clock."""
    return [(r.epoch, r.loss, r.accuracies, r.validation_loss, r.validation_accuracies) for r in result.history]


CHILD = """
import sys
from portend.networks import zoo
from portend.data.dataset import make_splits
from portend.data.sources import load_dataset
from portend.training.config import TrainingConfig
from portend.training.training import train
digits = load_dataset("digits:size=8")
config = TrainingConfig(epochs=10, batch_size=64, learning_rate=0.1, threads=1, checkpoint_minutes=0.001)
backbone = zoo.build("resnet8", in_channels=1, input_size=8)
splits = make_splits(digits, profiling=720, test=720)
train(backbone, digits, splits, config, sys.argv[1], on_progress=lambda at: print(at.step, flush=True))
"""


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
    _, correct = score_samples(TorchEvaluator(loaded), digits, splits.profiling)
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


@pytest.mark.parametrize(
    "changes",
    [
        {"augment": "crop", "epochs": 2},
        {"epochs": 2, "precision": "bfloat16", "optimizer": "adamw", "schedule": "cosine", "learning_rate": 0.01},
        {"early_stopping": EarlyStopping(patience=1, share=0.3), "augment": "crop+flip"},
    ],
)
def test_a_run_interrupted_at_every_step_ends_with_the_same_bits(
    digits: Dataset, splits: Splits, tmp_path: Path, changes: Any
) -> None:
    """Each part does one step, and the state is kept after each."""
    config = replace(CONFIG, **changes)
    whole = train(network(), digits, splits, config, tmp_path / "whole")
    often = replace(config, checkpoint_minutes=0)
    parts = 0
    while True:
        try:
            resumed = train(network(), digits, splits, often, tmp_path / "parts", on_progress=interrupt_after(parts))
            break
        except KeyboardInterrupt:
            parts += 1
            assert parts < 30
    assert parts >= 12
    assert digest(resumed.checkpoint) == digest(whole.checkpoint)
    assert outcome(resumed) == outcome(whole)


@pytest.mark.parametrize("step", [1, 6, 8])
def test_an_interrupted_run_loses_the_begun_epoch_at_most(
    digits: Dataset, splits: Splits, tmp_path: Path, step: int
) -> None:
    config = replace(CONFIG, augment="crop")
    whole = train(network(), digits, splits, config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(network(), digits, splits, config, tmp_path / "parts", on_progress=interrupt_after(step))
    resumed = train(network(), digits, splits, config, tmp_path / "parts")
    assert digest(resumed.checkpoint) == digest(whole.checkpoint)
    assert outcome(resumed) == outcome(whole)


@pytest.mark.parametrize(("minutes", "first"), [(0.0, 10), (2.0, 7)])
def test_a_killed_run_ends_with_the_same_bits(
    digits: Dataset, splits: Splits, tmp_path: Path, minutes: float, first: int
) -> None:
    """Killed after step 9: it goes on from the state of that step, or from that of the first epoch."""
    config = replace(CONFIG, checkpoint_minutes=minutes, augment="crop")
    whole = train(network(), digits, splits, config, tmp_path / "whole")
    with killed(tmp_path / "parts") as kill:

        def stop(event: Progress) -> None:
            if event.step == 9:
                kill()

        train(network(), digits, splits, config, tmp_path / "parts", on_progress=stop)
    assert not (tmp_path / "parts/checkpoint.safetensors").exists()
    events: list[Progress] = []
    resumed = train(network(), digits, splits, config, tmp_path / "parts", on_progress=events.append)
    assert events[0].step == first
    assert digest(resumed.checkpoint) == digest(whole.checkpoint)
    assert outcome(resumed) == outcome(whole)


@pytest.mark.slow
def test_a_killed_process_ends_with_the_same_bits(digits: Dataset, splits: Splits, tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=10, checkpoint_minutes=0.001, early_stopping=None)
    whole = train(network(), digits, splits, config, tmp_path / "whole")
    with subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "killed")], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for line in child.stdout:  # one per step
            if int(line) >= 25:
                child.kill()
                break
        assert child.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "checkpoint.safetensors").exists()
    events: list[Progress] = []
    resumed = train(network(), digits, splits, config, tmp_path / "killed", on_progress=events.append)
    assert 1 < events[0].step < 60
    assert digest(resumed.checkpoint) == digest(whole.checkpoint)
    assert outcome(resumed) == outcome(whole)


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
    backbone, when = network(), 8

    def poison(event: Progress) -> None:
        if event.step == when:
            backbone.branches[0].linear.bias.data.fill_(np.nan)  # type: ignore[union-attr, operator]

    with pytest.raises(TrainingError, match=r"nan at step 9 of 18.*last good state is .*state\.safetensors"):
        train(backbone, digits, splits, CONFIG, tmp_path, on_progress=poison)
    with pytest.raises(TrainingError, match="would begin with are not finite in 1 tensors"):
        train(backbone, digits, splits, CONFIG, tmp_path / "new")
    backbone, when = network(), 2
    with pytest.raises(TrainingError, match=r"nan at step 3 of 18.*no state yet"):
        train(backbone, digits, splits, CONFIG, tmp_path / "new", on_progress=poison)
    assert len(train(network(), digits, splits, CONFIG, tmp_path).history) == 3


def test_network_and_data_must_fit(digits: Dataset, splits: Splits, tmp_path: Path) -> None:
    for backbone in (network(input_size=16), network(num_classes=5), network(in_channels=3)):
        with pytest.raises(MismatchError, match="digits has"):
            train(backbone, digits, splits, CONFIG, tmp_path)
        with pytest.raises(MismatchError, match="digits has"):
            score_samples(TorchEvaluator(backbone), digits, splits.test)


def test_a_folder_that_cannot_be_made_is_named(digits: Dataset, splits: Splits, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot make the folder"):
        train(network(), digits, splits, CONFIG, tmp_path / "file" / "run")


def test_training_leaves_torchs_threads_alone(digits: Dataset, splits: Splits, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        train(network(), digits, splits, replace(CONFIG, threads=1), tmp_path, on_progress=interrupt_after(1))
    assert torch.get_num_threads() == before


def test_every_branch_is_scored(digits: Dataset, splits: Splits) -> None:
    backbone = network().train()
    done: list[tuple[int, int]] = []
    chosen = splits.test[:50]
    found, correct = score_samples(
        TorchEvaluator(backbone), digits, chosen, batch_size=20, on_progress=lambda *at: done.append(at)
    )
    assert list(found) == list(CRITERIA)
    for scores in found.values():
        assert scores.shape == correct.shape == (50, 4)
        assert scores.dtype == np.float32
    assert correct.dtype == np.bool_
    assert done == [(20, 50), (40, 50), (50, 50)]
    assert backbone.training
    backbone.eval()
    with torch.inference_mode():
        logits = backbone(torch.from_numpy(digits.tensors(chosen)))[2]
    for name, scores in found.items():
        assert scores[:, 2] == pytest.approx(score(logits, name).numpy(), abs=1e-6)
    assert np.array_equal(correct[:, 2], logits.argmax(1).numpy() == digits.labels[chosen])


def tensors(backbone: Backbone, part: str) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in backbone.state_dict().items() if name.startswith(part)}


def unchanged(backbone: Backbone, before: dict[str, torch.Tensor]) -> bool:
    """Whether all of these tensors, batch-norm statistics and counters included, have the bits they had."""
    after = backbone.state_dict()
    return all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_frozen_backbone_keeps_its_weights_and_statistics(digits: Dataset, splits: Splits, tmp_path: Path) -> None:
    backbone = network()
    blocks, branches = tensors(backbone, "blocks."), [tensors(backbone, f"branches.{i}.") for i in range(4)]
    train(backbone, digits, splits, replace(CONFIG, freeze_backbone=True), tmp_path)
    assert unchanged(backbone, blocks)
    assert not any(unchanged(backbone, branch) for branch in branches)
    assert all(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("frozen", [False, True])
def test_only_a_plans_exits_are_trained(digits: Dataset, splits: Splits, tmp_path: Path, frozen: bool) -> None:
    plan = Plan(cuts=(1, 2, 3), placement=(0, 0, 1), thresholds=(0.0, 0.3))  # nobody leaves at cut 1
    assert plan.exits == (2, 3)
    backbone = network()
    unused = [tensors(backbone, part) for part in ("branches.0.", "branches.3.", "blocks.3.")]
    used = [tensors(backbone, part) for part in ("branches.1.", "branches.2.")]
    blocks = [tensors(backbone, f"blocks.{index}.") for index in range(3)]
    config = replace(CONFIG, exits=plan.exits, freeze_backbone=frozen)
    result = train(backbone, digits, splits, config, tmp_path)
    assert all(unchanged(backbone, part) for part in unused)
    assert not any(unchanged(backbone, part) for part in used)
    assert [unchanged(backbone, block) for block in blocks] == [frozen] * 3
    header = (tmp_path / "history.csv").read_text().splitlines()[0]
    assert header == "epoch,loss,seconds,accuracy_2,accuracy_3"
    assert len(result.history[-1].accuracies) == 2


def first_loss(digits: Dataset, splits: Splits, folder: Path, **changes: Any) -> float:
    events: list[Progress] = []

    def stop(event: Progress) -> None:
        events.append(event)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(network(), digits, splits, replace(CONFIG, **changes), folder, on_progress=stop)
    return events[0].loss


def test_the_loss_is_the_weighted_sum_of_the_exits(digits: Dataset, splits: Splits, tmp_path: Path) -> None:
    alone = [first_loss(digits, splits, tmp_path / str(cut), exits=(cut,)) for cut in (1, 2, 3, 4)]
    assert first_loss(digits, splits, tmp_path / "all") == pytest.approx(sum(alone))
    weighted = first_loss(digits, splits, tmp_path / "weighted", exit_weights=(1.0, 2.0, 3.0, 4.0))
    assert weighted == pytest.approx(sum(w * loss for w, loss in enumerate(alone, start=1)))


def test_weights_count_for_the_blocks_and_not_for_the_branches(digits: Dataset, splits: Splits, tmp_path: Path) -> None:
    """After one step of SGD the branches are where they would be without weights, the blocks are not."""
    step = replace(CONFIG, epochs=1, batch_size=len(splits.train), schedule="constant", weight_decay=0.0)
    trained = []
    for name, weights in (("equal", ()), ("weighted", (0.02, 0.5, 1.0, 4.0))):
        trained.append(network())
        train(trained[-1], digits, splits, replace(step, exit_weights=weights), tmp_path / name)
    equal, weighted = trained
    for own, other in zip(equal.branches.parameters(), weighted.branches.parameters(), strict=True):
        assert torch.allclose(own, other, rtol=1e-4, atol=1e-6)
    pairs = zip(equal.blocks.parameters(), weighted.blocks.parameters(), strict=True)
    assert not any(torch.allclose(own, other, rtol=1e-4, atol=1e-6) for own, other in pairs if own.ndim > 1)


def test_losses_by_hand() -> None:
    """Two exits, two samples, two classes: -log p of the label, and KL between soft answers at temperature 2."""
    logits = torch.tensor([[[0.0, 0.0], [math.log(3.0), 0.0]], [[math.log(9.0), 0.0], [0.0, math.log(4.0)]]])
    logits.requires_grad_()
    labels = torch.tensor([0, 1])
    hard = exit_losses(logits, labels).tolist()
    assert hard == pytest.approx([(math.log(2) + math.log(4)) / 2, (math.log(10 / 9) + math.log(5 / 4)) / 2])
    # at temperature 2, the teacher says (3/4, 1/4) and (1/3, 2/3), the first exit (1/2, 1/2) and q = √3 : 1
    q = math.sqrt(3) / (math.sqrt(3) + 1)
    divergences = [
        3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2),
        1 / 3 * math.log(1 / 3 / q) + 2 / 3 * math.log(2 / 3 / (1 - q)),
    ]
    soft = 4 * sum(divergences) / 2
    losses = exit_losses(logits, labels, distillation=0.25, temperature=2.0)
    assert losses.tolist() == pytest.approx([0.75 * hard[0] + 0.25 * soft, hard[1]])
    losses[0].backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert not logits.grad[1].any(), "the last exit does not learn from the first"
    assert logits.grad[0].any()


def test_distillation_acts_on_training(digits: Dataset, splits: Splits, tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=1)
    runs = {"plain": config, "distilled": replace(config, distillation=Distillation(weight=0.5, temperature=3.0))}
    found = {name: train(network(), digits, splits, run, tmp_path / name) for name, run in runs.items()}
    assert digest(found["plain"].checkpoint) != digest(found["distilled"].checkpoint)


def test_schedules_by_hand() -> None:
    """Of 11 steps, the one-cycle schedule rises for 3.3 and falls for 6.7; a cosine falls for all 10 between them."""
    one_cycle = [peak_share("one-cycle", step, 11) for step in range(11)]
    assert one_cycle[0] == 1 / 25
    assert one_cycle[2] == pytest.approx(1 / 25 + 24 / 25 * 2 / 3.3)
    assert one_cycle[4] == pytest.approx(1e-4 + (1 - 1e-4) * (1 + math.cos(math.pi * 0.7 / 6.7)) / 2)
    assert one_cycle[10] == pytest.approx(1e-4)
    cosine = [peak_share("cosine", step, 11) for step in range(11)]
    assert cosine[0] == 1
    assert cosine[5] == pytest.approx((1 + 1e-4) / 2)
    assert cosine[10] == pytest.approx(1e-4)
    assert {peak_share("constant", step, 11) for step in range(11)} == {1.0}
    assert peak_share("one-cycle", 0, 1) == 1 / 25


def test_early_stopping_keeps_the_weights_of_the_best_epoch(digits: Dataset, tmp_path: Path) -> None:
    config = TrainingConfig(
        epochs=40, batch_size=64, learning_rate=0.05, schedule="constant", threads=1,
        early_stopping=EarlyStopping(patience=2, share=0.2),
    )  # fmt: skip
    splits = make_splits(digits, profiling=720, test=720)
    stopped = train(network(), digits, splits, config, tmp_path / "stopped")
    losses = [record.validation_loss for record in stopped.history]
    best = int(np.argmin(np.array(losses, dtype=float))) + 1
    assert len(losses) == best + 2 < 40
    short = replace(config, epochs=best)
    assert digest(train(network(), digits, splits, short, tmp_path / "short").checkpoint) == digest(stopped.checkpoint)
    rows = list(csv.DictReader((tmp_path / "stopped" / "history.csv").read_text().splitlines()))
    assert [float(row["validation_loss"]) for row in rows] == losses
    assert [float(row["validation_accuracy_4"]) for row in rows] == [
        (record.validation_accuracies or ())[3] for record in stopped.history
    ]


def test_a_validation_part_needs_samples(digits: Dataset, splits: Splits, tmp_path: Path) -> None:
    config = replace(CONFIG, early_stopping=EarlyStopping(patience=1, share=0.001))
    with pytest.raises(InvalidValue, match=r"a share of 0\.001 of 357 samples leaves none"):
        train(network(), digits, splits, config, tmp_path)


def test_weights_that_are_not_finite_are_never_kept(digits: Dataset, splits: Splits, tmp_path: Path) -> None:
    backbone = network()

    def poison(event: Progress) -> None:
        if event.step == 12:
            backbone.branches[0].linear.bias.data.fill_(np.inf)  # type: ignore[union-attr, operator]

    with pytest.raises(TrainingError, match=r"finite weights, but after step 12 .*branches\.0.*last good state"):
        train(backbone, digits, splits, CONFIG, tmp_path, on_progress=poison)
    assert len(train(network(), digits, splits, CONFIG, tmp_path).history) == 3


def test_a_full_disk_is_named_and_spoils_nothing(digits: Dataset, splits: Splits, tmp_path: Path) -> None:
    """A limit on the size of files stands for it: the write fails in the middle."""
    whole = train(network(), digits, splits, CONFIG, tmp_path / "whole")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(event: Progress) -> None:
        if event.step == 8:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))

    try:
        with pytest.raises(StorageError, match=r"cannot write .*state\.safetensors .*room"):
            train(network(), digits, splits, CONFIG, tmp_path / "full", on_progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name for path in (tmp_path / "full").iterdir()} == {"state.safetensors", "history.csv"}
    resumed = train(network(), digits, splits, CONFIG, tmp_path / "full")
    assert digest(resumed.checkpoint) == digest(whole.checkpoint)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exits": (2, 5)}, r"exits at the cuts 1, 2, 3, 4, but \[5\] shall be trained"),
        ({"exit_weights": (1.0,)}, "each of the 4 trained exits needs one weight"),
        ({"exits": (2, 4), "exit_weights": (1.0, 1.0, 1.0)}, "each of the 2 trained exits needs one weight"),
    ],
)
def test_exits_that_the_network_lacks(
    digits: Dataset, splits: Splits, tmp_path: Path, changes: Any, message: str
) -> None:
    with pytest.raises(MismatchError, match=message):
        train(network(), digits, splits, replace(CONFIG, **changes), tmp_path)


def test_devices_that_do_not_exist(digits: Dataset, splits: Splits, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="Lightning cannot train with accelerator 'tpus'"):
        train(network(), digits, splits, replace(CONFIG, accelerator="tpus"), tmp_path)


def test_curves_for_tensorboard(digits: Dataset, splits: Splits, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = replace(CONFIG, epochs=4, tensorboard=True)
    with pytest.raises(KeyboardInterrupt):
        train(network(), digits, splits, config, tmp_path, on_progress=interrupt_after(20))
    result = train(network(), digits, splits, config, tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (6 * record.epoch, pytest.approx(record.loss)) for record in result.history
    ]
    assert len(events.Scalars("accuracy/exit_4")) == 4
    assert [event.step for event in events.Scalars("learning_rate")] == [20]


def test_batches_from_workers_are_those_from_memory(digits: Dataset, splits: Splits) -> None:
    config = replace(CONFIG, workers=1)
    memory, lazy = (Batches(digits, splits.train, config, largest_in_memory=size) for size in (1 << 30, 0))
    for loader in (memory, lazy):
        loader.order.set_epoch(3)
    assert (memory.num_workers, lazy.num_workers) == (0, 1)
    pairs = list(zip(memory, lazy, strict=True))
    assert len(pairs) == len(memory) == len(lazy) == 6
    assert all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))
    lazy.load_state_dict({"given": 4})
    assert torch.equal(next(iter(lazy))[1], pairs[4][0][1])
    # two processes share the samples of a batch
    halves = [Batches(digits, splits.train, config, (rank, 2)) for rank in (0, 1)]
    for loader in halves:
        loader.order.set_epoch(3)
    first, second = (next(iter(loader))[1] for loader in halves)
    assert torch.equal(torch.sort(torch.cat([first, second])).values, torch.sort(pairs[0][0][1]).values)


def test_a_sample_that_a_worker_cannot_decode_is_named(digits: Dataset, splits: Splits) -> None:
    broken = [b"no image" if index == splits.train[0] else data for index, data in enumerate(digits.encoded)]
    spoilt = replace(digits, encoded=broken)
    with pytest.raises(DataError, match=f"^sample {splits.train[0]} of digits") as caught:
        list(Batches(spoilt, splits.train, replace(CONFIG, workers=1), largest_in_memory=0))
    assert "Traceback" not in str(caught.value)


def test_crops_are_shifts() -> None:
    images = torch.arange(1.0, 1 + 3 * 8 * 8).reshape(3, 1, 8, 8)
    rng = np.random.default_rng(0)
    changed = augmented(images, "crop", np.random.default_rng(0))
    shifts = rng.integers(0, 3, size=(2, 3, 1))[..., 0]
    for image, was, down, right in zip(changed, images, *shifts, strict=True):
        padded = np.pad(was[0].numpy(), 1)
        assert np.array_equal(image[0].numpy(), padded[down : down + 8, right : right + 8])


def test_spectrograms_are_shifted_and_masked() -> None:
    sound = torch.rand(64, 1, 96, 64)
    changed = augmented(sound, "spectrogram", np.random.default_rng(1))
    assert changed.shape == sound.shape
    hidden = changed == sound.mean(dim=(1, 2, 3), keepdim=True)
    times, bands = hidden.all(dim=3).sum(dim=2), hidden.all(dim=2).sum(dim=2)
    assert (int(times.min()), int(times.max())) == (0, 12)
    assert (int(bands.min()), int(bands.max())) == (0, 8)
    for was, now, masked in zip(sound[:, 0], changed[:, 0], hidden[:, 0], strict=True):
        fits = [shift for shift in range(-12, 13) if torch.equal(torch.roll(was, -shift, 0)[~masked], now[~masked])]
        assert len(fits) == 1


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
        {"schedule": "steps"},
        {"optimizer": "lion"},
        {"label_smoothing": 1.0},
        {"exits": (3, 2)},
        {"exits": (0, 2)},
        {"exit_weights": (1.0, 0.0)},
        {"checkpoint_minutes": -1.0},
    ],
)
def test_a_wrong_config_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue, match=next(iter(changes))):
        replace(CONFIG, **changes)


def test_training_and_validation_share_no_group(digits: Dataset, splits: Splits, tmp_path: Path) -> None:
    """Groups of a hundred samples in a row: with a share of a quarter, whole groups change sides."""
    grouped = replace(digits, groups=np.arange(len(digits)) // 100)
    config = replace(CONFIG, epochs=1, early_stopping=EarlyStopping(patience=1, share=0.25))
    seen: dict[int, list[int]] = {}

    class Watched(Batches):
        def __init__(self, dataset: Dataset, chosen: Any, *arguments: Any, **options: Any) -> None:
            seen[len(seen)] = chosen.tolist()
            super().__init__(dataset, chosen, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("portend.training.fitting.Batches", Watched)
        train(network(), grouped, splits, config, tmp_path)
    fitting, validation = seen.values()
    assert sorted(fitting + validation) == splits.train.tolist()
    groups = [{index // 100 for index in part} for part in (fitting, validation)]
    assert not groups[0] & groups[1]
    assert len(groups[1]) == 4  # of 18


@pytest.mark.slow
def test_two_processes_train_one_network(tmp_path: Path) -> None:
    """Lightning's own strategy starts the second process; both see half of each batch, one writes and tells."""
    (tmp_path / "c.yaml").write_text(
        "network: resnet8\noptions: {in_channels: 1, num_classes: 10, input_size: 8}\ndata: digits:size=8\n"
        "training: {epochs: 4, batch_size: 64, learning_rate: 0.1, threads: 1, devices: 2, strategy: ddp,"
        " early_stopping: {patience: 3, share: 0.2}, checkpoint_minutes: 0}\n"
    )
    command = [sys.executable, "-m", "portend.cli.app", "train", "c.yaml", "--out", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("accuracy of each branch") == 1
    rows = list(csv.DictReader((tmp_path / "run" / "history.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[-1]["validation_accuracy_4"]) > 0.9
