"""Exit drift: exact tests against references, false alarms and power by simulation, and on a real network."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.stats import hypergeom

from portend.analysis.compare import compare, exit_drifts
from portend.cli.app import cli
from portend.data.dataset import make_splits
from portend.data.sources import load_dataset
from portend.errors import InvalidValue, MismatchError
from portend.io import storage
from portend.networks.checkpoint import load_checkpoint
from portend.networks.evaluators import TorchEvaluator
from portend.networks.scoring import score_samples
from portend.networks.zoo import build
from portend.perfmodel.exits import exit_counts
from portend.perfmodel.model import PerformanceModel
from portend.profiling.network import profile_exits
from portend.report.page import render_report
from portend.stats.exit_drift import ExitWatch, exit_drift, fisher_exact, watch_exits
from portend.training.config import TrainingConfig
from portend.training.training import train
from portend.values.exits import SampleExits, TabulatedExits
from portend.values.plan import Plan
from problems import random_case
from test_analysis import estimate, measurement, report_data

Floats = NDArray[np.float64]

PLAN = Plan(cuts=(1, 2, 4), placement=(0, 0, 1), thresholds=(0.3, 0.5))
ONE_EXIT = Plan(cuts=(2, 4), placement=(0, 1), thresholds=(0.3,))


# -- one run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "of_a", "b", "of_b"),
    [(31, 100, 220, 1000), (0, 5, 0, 7), (0, 50, 40, 450), (5, 5, 3, 9), (1, 1, 0, 1), (700, 1000, 480, 1000)],
)
def test_fishers_test_is_twice_the_smaller_tail(a: int, of_a: int, b: int, of_b: int) -> None:
    tails = hypergeom(of_a + of_b, a + b, of_a)
    expected = min(1.0, 2 * min(tails.cdf(a), tails.sf(a - 1)))
    assert fisher_exact(a, of_a, b, of_b) == pytest.approx(expected, rel=1e-9)
    assert fisher_exact(of_a - a, of_a, of_b - b, of_b) == pytest.approx(expected, rel=1e-9)
    assert fisher_exact(b, of_b, a, of_a) == pytest.approx(expected, rel=1e-9)


def test_fishers_test_by_hand() -> None:
    """All 3 of one, none of the other 3: one of the 20 ways to choose 3 of 6; and the same the other way."""
    assert fisher_exact(3, 3, 0, 3) == pytest.approx(2 / 20)
    assert fisher_exact(10_000, 20_000, 60_000, 100_000) < 1e-130, "far beyond what drawing could tell"


def test_what_drifted_is_said_in_words_and_numbers() -> None:
    found = exit_drift(PLAN, [[110, 300, 90]], [310, 510, 180])
    assert found.found
    assert found.predicted == pytest.approx([0.22, 0.6, 0.18])
    assert found.measured == pytest.approx([0.31, 0.51, 0.18])
    assert found.drifted.tolist() == [True, True, False]
    first, second, last = found.describe()
    begin = "exit 1 (after block 1) let 31.0 % go, the profile says 22.0 % ± 3.6: more than chance (p = 0.0"
    assert first.startswith(begin)
    assert second.startswith("exit 2 (after block 2) let 51.0 % go, the profile says 60.0 %")
    assert second.endswith("points")
    assert last == "9.0 % of the samples leave elsewhere than predicted"
    low, high = found.difference_interval()[:, 0]
    assert 0 < low < 0.09 < high
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values["found"] is True
    assert [exit["cut"] for exit in values["exits"]] == [1, 2, 4]


def test_holms_correction_by_hand() -> None:
    found = exit_drift(PLAN, [[110, 300, 90]], [310, 510, 180])
    alone = [fisher_exact(x, 1000, y, 500) for x, y in ((310, 110), (510, 300), (180, 90))]
    order = np.argsort(alone)
    expected = np.minimum(np.maximum.accumulate([3 * alone[order[0]], 2 * alone[order[1]], alone[order[2]]]), 1)
    assert found.p_values[order] == pytest.approx(expected)
    two = exit_drift(ONE_EXIT, [[110, 390]], [310, 690])
    assert two.p_values == pytest.approx([alone[0]] * 2), "what one exit takes, the other leaves: one test"


def test_newcombes_interval_of_a_difference() -> None:
    """Newcombe 1998, Table II, (a): 56/70 - 48/80 has the interval 0.0524 to 0.3339 (method 10)."""
    found = exit_drift(ONE_EXIT, [[48, 32]], [56, 14])
    assert found.difference_interval()[:, 0] == pytest.approx([0.0524, 0.3339], abs=5e-5)


def test_no_drift_says_what_would_have_shown() -> None:
    found = exit_drift(PLAN, [[110, 300, 90]], [22, 60, 18])
    assert not found.found
    (line,) = found.describe()
    assert line.startswith("no exit drift beyond chance: 100 samples leave as 500 of the profile do (least p = 1;")
    only = exit_drift(Plan(cuts=(4,), placement=(0,)), [[500]], [100])
    assert not only.found
    assert only.describe() == ["the plan has one way out, so there is nothing that could drift"]


def test_a_difference_that_is_visible_is_seen_four_times_in_five() -> None:
    rng = np.random.default_rng(0)
    rate = 0.4
    visible = float(exit_drift(ONE_EXIT, [[400, 600]], [200, 300]).visible[0])
    hits = [
        exit_drift(ONE_EXIT, [[left := rng.binomial(1000, rate), 1000 - left]], [more, 500 - more]).found
        for more in rng.binomial(500, rate + visible, 400)
    ]
    assert np.mean(hits) == pytest.approx(0.8, abs=0.08)


@pytest.mark.parametrize("rates", [(0.5, 0.3, 0.2), (0.95, 0.04, 0.01), (0.02, 0.5, 0.48)])
@pytest.mark.parametrize(("profiled", "ran"), [(450, 60), (450, 3000), (5000, 400)])
def test_false_alarms_stay_within_the_level(rates: tuple[float, ...], profiled: int, ran: int) -> None:
    rng = np.random.default_rng(0)
    alarms = [
        exit_drift(PLAN, rng.multinomial(profiled, rates)[None], rng.multinomial(ran, rates), 0.95).found
        for _ in range(250)
    ]
    assert np.mean(alarms) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 250)


def test_false_alarms_of_profiles_drawn_class_by_class_stay_within_the_level() -> None:
    rng = np.random.default_rng(0)
    first = np.linspace(0.05, 0.95, 10)
    rates = np.stack([first, (1 - first) * 0.7, (1 - first) * 0.3], axis=1)
    alarms = 0
    for _ in range(250):
        profile = np.stack([rng.multinomial(45, own) for own in rates])
        run = rng.multinomial(1500, rates.mean(axis=0))
        alarms += exit_drift(PLAN, profile, run, 0.95).found
    assert alarms / 250 <= 0.05


def test_counts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidValue, match="3 partitions"):
        exit_drift(PLAN, [[1, 2, 3]], [1, 2])
    with pytest.raises(InvalidValue, match="at least one sample"):
        exit_drift(PLAN, [[1, 2, 3]], [0, 0, 0])
    with pytest.raises(InvalidValue, match="not negative"):
        exit_drift(PLAN, [[1, 2, 3]], [1, -1, 3])
    with pytest.raises(InvalidValue, match="level"):
        exit_drift(PLAN, [[1, 2, 3]], [1, 1, 3], level=1.0)
    with pytest.raises(MismatchError, match=r"threshold 0, but 4 samples"):
        exit_drift(replace(PLAN, thresholds=(0.0, 0.5)), [[0, 2, 3]], [4, 1, 1])


# -- a running system -------------------------------------------------------------------------------


def test_the_e_value_is_the_ratio_of_likelihoods() -> None:
    """Against an interval of one point, nearly: a profile of 10¹³ samples. By numerical integration."""
    watch = watch_exits(ONE_EXIT, [[3e12, 7e12]]).seen([45, 55])

    def likelihood(p: float) -> float:
        return float(p**44.5 * (1 - p) ** 54.5 / math.pi)

    mixed = quad(likelihood, 0, 1, points=[0.45], epsabs=0)[0]
    assert watch.evidence[0] == pytest.approx(math.log(mixed / (0.3**45 * 0.7**55)), rel=1e-3)


def test_a_watch_counts_and_never_forgets_an_alarm() -> None:
    watch = watch_exits(ONE_EXIT, [[3000, 7000]])
    seen = watch.seen([90, 10])
    assert (watch.samples, seen.samples, watch.alarm) == (0, 100, False), "a watch is a value"
    assert seen.alarm
    assert "exit 1 (after block 2) has let 90.0 % of 100 samples go, the profile says 30.0 %" in seen.describe()
    later = seen.seen([3000, 8000])
    assert later.alarm
    assert later.evidence[0] == seen.evidence[0]
    assert not later.restarted().alarm
    assert later.restarted().samples == 0
    assert watch.seen([0, 0]).samples == 0
    assert watch.seen([1, 0]).describe() == "no exit drift so far, in 1 samples"
    only = watch_exits(Plan(cuts=(4,), placement=(0,)), [[500]]).seen([10])
    assert (only.alarm, only.samples) == (False, 10)


def first_alarm(watch: ExitWatch, exits: NDArray[np.int64], step: int) -> int | None:
    """After how many samples there was an alarm, looking after every ``step``."""
    for end in range(step, len(exits) + 1, step):
        watch = watch.seen(np.bincount(exits[end - step : end], minlength=len(watch.plan)))
        if watch.alarm:
            return end
    return None


@pytest.mark.parametrize(
    ("watches", "profiled", "rates"),
    [
        (30, 200, (0.5, 0.3, 0.2)),
        pytest.param(60, 200, (0.5, 0.3, 0.2), marks=pytest.mark.slow),
        pytest.param(60, 5000, (0.5, 0.3, 0.2), marks=pytest.mark.slow),
        pytest.param(60, 500, (0.9, 0.07, 0.03), marks=pytest.mark.slow),
    ],
)
def test_looking_all_the_time_raises_no_more_false_alarms(
    watches: int, profiled: int, rates: tuple[float, ...]
) -> None:
    """80 % watches of 1,000 samples, looked at 50 times: a test repeated so often would alarm most of them."""
    rng = np.random.default_rng(0)
    alarms, naive = 0, 0
    for _ in range(watches):
        profile = rng.multinomial(profiled, rates)[None]
        exits = rng.choice(3, 1000, p=rates)
        alarms += first_alarm(watch_exits(PLAN, profile, 0.8), exits, 20) is not None
        counts = [np.bincount(exits[:end], minlength=3) for end in range(100, 1001, 100)]
        naive += any(exit_drift(PLAN, profile, so_far, 0.8).found for so_far in counts)
    assert alarms / watches <= 0.2
    assert naive / watches > 0.2


def test_a_shift_is_seen_soon() -> None:
    """From 40 to 55 %, with a profile of 5,000: half of the watches know within 250 samples, all within 800."""
    rng = np.random.default_rng(1)
    when = []
    for _ in range(40):
        left = rng.binomial(5000, 0.4)
        found = first_alarm(watch_exits(ONE_EXIT, [[left, 5000 - left]]), rng.choice(2, 1000, p=(0.55, 0.45)), 10)
        when.append(np.inf if found is None else found)
    assert np.median(when) <= 250
    assert max(when) <= 800


# -- profiles, reports and the command line ------------------------------------------------------------


def test_counts_of_a_profile_are_those_of_its_estimates() -> None:
    case = random_case(3, blocks=4, tiers=2, estimator="sample")
    model = PerformanceModel(case.profile, case.topology)
    plan = model.complete(Plan(cuts=(1, 3, 4), placement=(0, 0, 1), thresholds=(0.35, 0.6)))
    found = model.estimate(plan)
    assert exit_counts(case.profile.exits, plan)[0] / found.samples == pytest.approx(found.share)
    assert found.exit_counts[0] / found.samples == pytest.approx(found.share)
    table = TabulatedExits(
        thresholds=np.array([0.3, 0.5]), exited=np.array([[10, 30, 40, 60], [20, 30, 50, 80]]),
        correct=np.array([50, 60, 70, 80]), samples=100,
    )  # fmt: skip
    assert exit_counts(table, PLAN).tolist() == [[10, 20, 70]]
    with pytest.raises(MismatchError, match="by entropy, but margin"):
        exit_counts(table, replace(PLAN, criterion="margin"))
    with pytest.raises(MismatchError, match="the cuts 1–4"):
        exit_counts(table, replace(PLAN, cuts=(1, 2, 5)))


def test_comparisons_and_the_report_tell_of_drift() -> None:
    calm = compare({"calm": (estimate(), measurement(early=60, late=40))})
    assert not exit_drifts(calm)["calm"].found
    odd = compare(
        {"calm": (estimate(), measurement(early=60, late=40)), "odd": (estimate(), measurement(early=20, late=80))}
    )
    checks = exit_drifts(odd)
    assert [name for name, check in checks.items() if check.found] == ["odd"]
    assert checks["calm"].level == pytest.approx(0.995), "two plans share what the level leaves"
    assert odd[1].to_dict()["exit_drift"]["found"] is True
    page = render_report(replace(report_data(), comparisons=odd, chosen="odd", baselines=(), new_samples={}))
    assert "let 20.0&nbsp;% go, the profile says 60.0&nbsp;%" in page
    assert "60.0&nbsp;% leave at η &lt; 0.5" in page
    page = render_report(replace(report_data(), comparisons=calm, chosen="calm", baselines=(), new_samples={}))
    assert "Exit drift: none beyond chance" in page


def portend(*arguments: str) -> Any:
    return CliRunner().invoke(cli, arguments)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    case = random_case(3, blocks=2, tiers=2, estimator="sample")
    score = np.tile(np.where(np.arange(500) < 300, 0.1, 0.9)[:, None], (1, 2))
    exits = SampleExits(scores={"entropy": score}, correct=np.ones((500, 2), dtype=np.bool_))
    storage.save(replace(case.profile, exits=exits), tmp_path / "p.zip")
    plan = Plan(cuts=(1, 2), placement=(0, 1), thresholds=(0.5,), codecs=(None, "float32"))
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_dict()))
    for name, early in (("calm", 60), ("odd", 20)):
        storage.save(measurement(early=early, late=100 - early), tmp_path / f"{name}.zip")
    return tmp_path


def test_the_command_ends_with_3_where_there_is_drift(files: Path) -> None:
    calm, odd, profile = (str(files / f"{name}.zip") for name in ("calm", "odd", "p"))
    assert exit_drift(ONE_EXIT, [[300, 200]], [20, 80]).found
    result = portend("drift", profile, calm)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "no exit drift beyond chance: 100 samples" in result.stdout
    result = portend("drift", profile, calm, odd)
    assert result.exit_code == 3
    assert "let 20.0 % go, the profile says 60.0 %" in result.stdout
    result = portend("drift", profile, odd, "--json")
    assert result.exit_code == 3
    answer = json.loads(result.stdout)
    assert answer["found"] is True
    assert answer["runs"][odd]["exits"][0]["p_value"] < 1e-9
    by_hand = portend("drift", profile, "--plan", str(files / "plan.json"), "--counts", "58,42")
    assert by_hand.exit_code == 0
    for wrong in ((), (calm, "--plan", str(files / "plan.json"), "--counts", "1,2"), ("--counts", "1,2")):
        assert portend("drift", profile, *wrong).exit_code == 2


# -- a real network ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, SampleExits, Any]:
    """A small network trained on digits, and its exits on the profiling split."""
    dataset = load_dataset("digits:size=8")
    splits = make_splits(dataset)
    backbone = build("resnet8", in_channels=1, num_classes=10, input_size=8)
    config = TrainingConfig(epochs=6, batch_size=32, learning_rate=0.1)
    done = train(backbone, dataset, splits, config, tmp_path_factory.mktemp("run"))
    trained = load_checkpoint(done.checkpoint)
    return trained.eval(), dataset, profile_exits(TorchEvaluator(trained), dataset, splits.profiling), splits


CHANGES = {
    "none": lambda x: x,
    "darkened": lambda x: 0.5 * x,
    "blurred": lambda x: sum(np.roll(np.roll(x, i, -1), j, -2) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("criterion", ["entropy", "margin"])
def test_changed_digits_drift_and_others_do_not(
    digits_run: tuple[Any, Any, SampleExits, Any], change: str, criterion: str
) -> None:
    backbone, dataset, exits, splits = digits_run
    profile = exits.by(criterion)
    thresholds = tuple(float(np.quantile(profile.score[:, branch], 0.5)) for branch in (0, 2))
    plan = Plan(cuts=(1, 3, 4), placement=(0, 0, 1), thresholds=thresholds, criterion=criterion)

    class Changed(TorchEvaluator):
        def exits(self, samples: NDArray[np.float32]) -> Any:
            return super().exits(np.asarray(CHANGES[change](samples), dtype=np.float32))

    scores, correct = score_samples(Changed(backbone), dataset, splits.test)
    live = SampleExits(scores=scores, correct=correct, criterion=criterion)
    known, counts = exit_counts(profile, plan), exit_counts(live, plan)[0].astype(np.int64)
    found = exit_drift(plan, known, counts)
    assert found.found == (change != "none"), found.describe()
    left = np.full(len(splits.test), 2)
    for k in (1, 0):
        left[live.score[:, plan.cuts[k] - 1] < thresholds[k]] = k
    alarm = first_alarm(watch_exits(plan, known), np.random.default_rng(0).permutation(left), 10)
    assert (alarm is not None) == (change != "none")
