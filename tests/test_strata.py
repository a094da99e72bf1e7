"""Intervals of rates that were counted class by class: by hand, and how often they hold the truth."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from portend.analysis.exit_table import exit_rows
from portend.cli.app import cli
from portend.errors import InvalidValue, MismatchError
from portend.io import storage
from portend.perfmodel.exits import outcomes_by_class
from portend.perfmodel.model import PerformanceModel
from portend.stats.strata import class_counts, draw_rates, rate_interval
from portend.values.exits import SampleExits
from portend.values.plan import Plan
from problems import random_case

Floats = NDArray[np.float64]
HOLDS = pytest.approx(0.95, abs=0.02)


def test_counts_by_class_by_hand() -> None:
    flags = np.array([[1, 0], [1, 1], [0, 1], [1, 1]], dtype=np.bool_)
    counts, samples = class_counts(flags, np.array([7, 2, 7, 7]))
    assert counts.tolist() == [[1, 1], [2, 2]]
    assert samples.tolist() == [1, 3]
    counts, samples = class_counts(flags, None)
    assert (counts.tolist(), samples.tolist()) == ([[3, 3]], [4])


@pytest.mark.parametrize(
    ("yes", "samples", "low", "high"),
    [(3, 4, 0.300642, 0.954414), (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (81, 263, 0.255289, 0.366210)],
)
def test_one_class_has_wilsons_interval(yes: float, samples: float, low: float, high: float) -> None:
    """From the closed form; Newcombe 1998 has 0.2553 and 0.3662 for 81 of 263 (his Table I)."""
    found = [float(end) for end in rate_interval([yes], [samples], 0.95)]
    assert found == pytest.approx([low, high], abs=1e-5)


def test_classes_that_differ_make_rates_surer_and_classes_alike_do_not() -> None:
    samples = np.full(4, 50.0)
    one = np.stack(rate_interval([100], [200], 0.95))
    alike = np.stack(rate_interval([25, 25, 25, 25], samples, 0.95))
    differ = np.stack(rate_interval([5, 20, 30, 45], samples, 0.95))
    assert alike == pytest.approx(one, abs=2e-3)
    # the standard deviations' ratio: mean of p(1-p) over classes, to that of one half
    assert np.ptp(differ) / np.ptp(one) == pytest.approx(np.sqrt((0.09 + 0.24 + 0.24 + 0.09) / 4 / 0.25), abs=0.02)


def test_classes_of_one_or_two_samples_are_one_class() -> None:
    singles = np.stack(rate_interval(np.r_[np.ones(30), np.zeros(70)], np.ones(100), 0.95))
    assert singles == pytest.approx(np.stack(rate_interval([30], [100], 0.95)), abs=1e-12)
    some = np.stack(rate_interval([30, 1, 1], [60, 1, 2], 0.95))
    assert some == pytest.approx(np.stack(rate_interval([30, 2], [60, 3], 0.95)), abs=1e-12)
    lonely = np.stack(rate_interval([30, 1], [60, 1], 0.95))
    assert lonely == pytest.approx(np.stack(rate_interval([31], [61], 0.95)), abs=1e-12), "one is too few for a class"
    empty = np.stack(rate_interval([30, 0], [60, 0], 0.95))
    assert empty == pytest.approx(np.stack(rate_interval([30], [60], 0.95)), abs=1e-12)


def test_a_level_of_one_is_refused() -> None:
    with pytest.raises(InvalidValue, match="between 0 and 1"):
        rate_interval([1], [2], 1.0)


def families() -> list[tuple[str, Floats, float, float]]:
    """Classes' sizes, and the Beta distribution that their rates are from: mean, and how far they are apart."""
    return [
        ("digits", np.full(10, 45.0), 0.4, 6.0),
        ("far apart", np.full(10, 45.0), 0.5, 1.0),
        ("accuracies", np.full(10, 50.0), 0.9, 20.0),
        ("small classes", np.full(100, 5.0), 0.6, 2.0),
        ("very small classes", np.full(40, 3.0), 0.4, 4.0),
        ("few small classes", np.full(6, 10.0), 0.3, 3.0),
        ("uneven classes", np.array([200.0, 50, 20, 8, 3, 2, 1]), 0.4, 3.0),
        ("one class", np.full(1, 60.0), 0.4, 5.0),
    ]


def drawn(sizes: Floats, mean: float, apart: float, repeats: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Counts [C, repeats] and true rates [repeats]: the classes' rates are new in each repetition."""
    rates = rng.beta(mean * apart, (1 - mean) * apart, (len(sizes), repeats))
    return rng.binomial(sizes.astype(int)[:, None], rates).astype(np.float64), sizes @ rates / sizes.sum()


@pytest.mark.parametrize(("name", "sizes", "mean", "apart"), families())
def test_intervals_hold_the_truth_as_often_as_they_say(name: str, sizes: Floats, mean: float, apart: float) -> None:
    rng = np.random.default_rng(1)
    yes, truth = drawn(sizes, mean, apart, 1500, rng)
    low, high = rate_interval(yes, sizes, 0.95)
    assert np.mean((low <= truth) & (truth <= high)) == HOLDS, name
    low, high = rate_interval(yes, sizes, 0.8)
    assert np.mean((low <= truth) & (truth <= high)) == pytest.approx(0.8, abs=0.03), name


def test_intervals_of_each_class_hold_its_truth() -> None:
    rng = np.random.default_rng(2)
    for samples in (3, 5, 10, 45, 500):
        truth = rng.beta(2, 3, 20_000)
        low, high = rate_interval(rng.binomial(samples, truth)[None], [samples], 0.95)
        assert np.mean((low <= truth) & (truth <= high)) == HOLDS, samples


@pytest.mark.parametrize(("name", "sizes", "mean", "apart"), families())
def test_draws_hold_the_truth_as_often_as_they_say(name: str, sizes: Floats, mean: float, apart: float) -> None:
    """The truth is one more draw: of 199, it lies from the 5th to the 195th in 190 cases of 200."""
    rng = np.random.default_rng(3)
    repeats, count = 600, 199
    yes, truth = drawn(sizes, mean, apart, repeats, rng)
    inside = 0
    for i in range(repeats):
        rates = draw_rates(
            np.stack([yes[:, i], sizes - yes[:, i]], axis=1), possible=np.ones(2, np.bool_), count=count, rng=rng
        )
        assert np.allclose(rates.sum(axis=1), 1)
        inside += 5 <= np.sum(rates[:, 0] < truth[i]) < 195
    assert inside / repeats == pytest.approx(0.95, abs=0.03), name  # 600 repetitions: a standard error of 0.9 %


def test_what_is_impossible_is_never_drawn_and_what_is_rare_is_drawn_as_if_there_were_one_class() -> None:
    rng = np.random.default_rng(0)
    counts = np.zeros((100, 3))
    counts[:, 0] = 10
    counts[:4, :2] += (-1, 1)
    rates = draw_rates(counts, possible=np.array([True, True, False]), count=20_000, rng=rng)
    assert rates[:, 2].max() == 0
    one = draw_rates(counts.sum(axis=0)[None], possible=np.array([True, True, False]), count=20_000, rng=rng)
    for q in (0.025, 0.5, 0.975):
        assert np.quantile(rates[:, 1], q) == pytest.approx(np.quantile(one[:, 1], q), rel=0.12)


# -- plans and profiles -----------------------------------------------------------------------------


def labeled(seed: int = 5, samples: int = 400, classes: int = 8) -> tuple[PerformanceModel, Plan]:
    case = random_case(seed, blocks=4, tiers=2, estimator="sample")
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), samples // classes)
    hard = np.linspace(0.1, 0.9, classes)[labels][:, None]
    score = np.clip(hard + rng.normal(0, 0.1, (samples, 4)), 0, 1).astype(np.float32)
    exits = SampleExits(scores={"entropy": score}, correct=rng.random((samples, 4)) > 0.6 * hard, labels=labels)
    model = PerformanceModel(replace(case.profile, exits=exits), case.topology)
    return model, model.complete(Plan(cuts=(1, 3, 4), placement=(0, 0, 1), thresholds=(0.35, 0.6)))


def test_outcomes_by_class_add_up_to_the_estimate_and_narrow_its_intervals() -> None:
    model, plan = labeled()
    exits = model.profile.exits
    assert isinstance(exits, SampleExits)
    estimate = model.estimate(plan)
    counts = estimate.class_counts
    assert counts is not None
    assert counts.shape == (8, 2, 3)
    assert counts.sum(axis=(1, 2)).tolist() == [50] * 8
    assert counts.sum(axis=(0, 1)) / 400 == pytest.approx(estimate.share)
    assert counts[:, 0].sum(axis=0) / 400 == pytest.approx(estimate.correct)
    for label in range(8):
        own = exits.part(np.flatnonzero(exits.labels == label))
        assert outcomes_by_class(own, plan)[0].tolist() == counts[label].tolist()
    stratified, pooled = estimate.draws(), replace(estimate, class_counts=None).draws()
    quantities: tuple[tuple[Literal["exit_rates", "accuracy"], float], ...] = (("exit_rates", 0.9), ("accuracy", 0.99))
    for quantity, at_most in quantities:
        width, wide = np.ptp(stratified.interval(quantity), axis=0), np.ptp(pooled.interval(quantity), axis=0)
        assert np.all(width < at_most * wide)
    assert stratified.exit_rates.mean(axis=0) == pytest.approx(pooled.exit_rates.mean(axis=0), abs=2e-3)


def test_intervals_of_a_plan_hold_the_truth_of_many_more_samples() -> None:
    """Profiles drawn class by class from 40,000 samples; the truth is the plan's outcome on all of them."""
    model, plan = labeled(samples=40_000)
    exits = model.profile.exits
    assert isinstance(exits, SampleExits)
    truth = model.estimate(plan)
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(250):
        chosen = np.concatenate([5000 * label + rng.integers(0, 5000, 30) for label in range(8)])
        few = PerformanceModel(replace(model.profile, exits=exits.part(chosen)), model.topology)
        draws = few.estimate(plan).draws(count=500, seed=int(rng.integers(1 << 30)))
        rates, accuracy = draws.interval("exit_rates"), draws.interval("accuracy")
        inside.append(
            [*(rates[0] <= truth.share) & (truth.share <= rates[1]), accuracy[0] <= truth.accuracy <= accuracy[1]]
        )
    assert np.mean(inside) == HOLDS


def test_rows_of_exits_have_intervals_and_rows_of_each_class(tmp_path: Path) -> None:
    model, _ = labeled()
    exits = model.profile.exits
    assert isinstance(exits, SampleExits)
    spec = model.profile.backbone
    (first, *_), theta = exit_rows(exits, spec, (0.35,)), "0.35"
    pooled = exit_rows(replace(exits, labels=None), spec, (0.35,))[0]
    assert first["leaves"] == pooled["leaves"]
    low, high = first["leaves_interval"][theta]
    assert low < first["leaves"][theta] < high
    assert high - low < 0.8 * np.ptp(pooled["leaves_interval"][theta])
    rows = exit_rows(exits, spec, (0.35,), by_class=True)
    assert [(row["exit"], row["class"]) for row in rows] == [(e, c) for e in (1, 2, 3, 4) for c in range(8)]
    own = exits.leaving(0.35)[exits.labels == 2, 0]
    assert rows[2]["leaves"][theta] == own.mean()
    assert rows[2]["leaves_interval"][theta] == pytest.approx(
        [float(end) for end in rate_interval([own.sum()], [50], 0.95)]
    )
    with pytest.raises(MismatchError, match="labels"):
        exit_rows(replace(exits, labels=None), spec, (0.35,), by_class=True)

    storage.save(model.profile, tmp_path / "p.zip")
    answer = CliRunner().invoke(
        cli, ["exits", str(tmp_path / "p.zip"), "--by-class", "--thresholds", "0.35", "--json"], catch_exceptions=False
    )
    assert json.loads(answer.stdout)["exits"] == rows
    shown = CliRunner().invoke(cli, ["exits", str(tmp_path / "p.zip"), "--by-class", "--markdown"]).stdout.splitlines()
    assert shown[0].startswith("| exit | block | class | samples | accuracy, % | η<0.1: leave / right, % |")
    assert len(shown) == 2 + 32
