"""Campaigns: statistics by hand, plans by seed, and a real one that is killed and goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from portend.analysis.compare import Comparison, fit
from portend.analysis.validation import TARGETS, Case, Validation, attribute, regret
from portend.cli.app import cli
from portend.data.dataset import make_splits
from portend.data.sources import load_dataset
from portend.errors import ConfigError, InvalidValue, MismatchError, SearchError, StorageError
from portend.io.forms import load_topology
from portend.io.storage import load_measurement, load_profile, save
from portend.networks.checkpoint import load_checkpoint, save_checkpoint
from portend.networks.evaluators import TorchEvaluator
from portend.networks.zoo import build
from portend.perfmodel.exits import replay
from portend.perfmodel.model import PerformanceModel
from portend.planner.mix import FACTORS, factors, mixed_plans
from portend.planner.problem import SearchSpace
from portend.profiling.device import DeviceProfiling, profile_device
from portend.profiling.losses import profile_codecs
from portend.profiling.network import profile_exits
from portend.report.validation_page import agreement_rows, front_rows, render_page
from portend.testbed.emulation.namespaces import unavailable
from portend.training.config import TrainingConfig
from portend.training.training import train
from portend.values.execution import Execution
from portend.values.exits import SampleExits
from portend.values.plan import Plan
from portend.values.profile import Profile
from portend.workflows.validate import Campaign, idle_before, read_campaign, stratified
from problems import random_case
from test_analysis import TOPOLOGY, estimate, measurement
from test_analysis import profile as small_profile

ROOT = Path(__file__).parent.parent


# -- statistics by hand ----------------------------------------------------------------------------


def test_a_fit_by_hand() -> None:
    found = fit([1, 2, 3, 4], [1.1, 2.1, 3.3, 4.5])
    assert found.n == 4
    assert found.beta == pytest.approx(5.7 / 5)
    assert found.intercept == pytest.approx(2.75 - 1.14 * 2.5)
    assert found.beta_origin == pytest.approx(33.2 / 30)
    assert found.r2 == pytest.approx(5.7**2 / (5 * 6.51))
    assert found.r2_identity == pytest.approx(1 - 0.36 / 5)
    assert (found.rmse, found.bias) == pytest.approx((0.3, 0.25))
    assert found.mape == pytest.approx((0.1 + 0.05 + 0.1 + 0.125) / 4)


def test_a_fit_of_too_little_says_so() -> None:
    nothing, flat, two = fit([], []), fit([2, 2, 2], [1, 2, 3]), fit([0, 1], [0.5, 1.5])
    assert (nothing.n, nothing.beta, nothing.rmse, nothing.mape) == (0, None, None, None)
    assert (flat.beta, flat.r2, flat.r2_identity) == (None, None, None)
    assert flat.bias == 0
    assert two.beta == pytest.approx(1)
    assert two.r2 is None
    assert two.mape == pytest.approx(0.5), "what was measured as 0 has no relative error"
    with pytest.raises(InvalidValue, match="each measurement has one prediction"):
        fit([1, 2], [1])


def test_errors_are_attributed_to_parts_that_add_up() -> None:
    """Error = slope part 0.1 x, and a constant 0.5: all of the slope is the first one's."""
    measured = np.array([1.0, 2.0, 3.0])
    found = attribute(measured, {"rising": 0.1 * measured, "constant": [0.5, 0.5, 0.5]})
    assert found["rising"].slope == pytest.approx(0.1)
    assert found["constant"].slope == pytest.approx(0)
    squares = 0.6**2 + 0.7**2 + 0.8**2
    assert found["rising"].share == pytest.approx((0.1 * 0.6 + 0.2 * 0.7 + 0.3 * 0.8) / squares)
    assert sum(part.share or 0 for part in found.values()) == pytest.approx(1)
    assert (found["constant"].bias, found["constant"].rms) == pytest.approx((0.5, 0.5))
    exact = attribute(measured, {"nothing": [0.0, 0.0, 0.0]})["nothing"]
    assert (exact.slope, exact.share) == (0, None)


def test_contributions_by_hand() -> None:
    """60 : 40 predicted, 50 : 50 measured; a late sample takes 40 ms more and 52 instead of 50 ms."""
    both = Comparison(name="split", estimate=estimate(), measurement=measurement(early=50, late=50))
    parts = both.contributions_s
    assert parts["exit rates"] == pytest.approx(-0.1 * 0.040)
    assert parts["compute"] == pytest.approx(0)
    assert parts["transfer"] == pytest.approx(0.5 * (0.034 - 0.036))
    assert parts["other"] == pytest.approx(-0.5 * 0.001)
    assert sum(parts.values()) == pytest.approx(both.estimate.mean_s - both.measurement.mean_s)


def ran(name: str, *, predicted: float, measured: float, hoped: float, right: float) -> Case:
    """A plan of which 100 samples take 31.5 ms times ``measured``, and ``right`` of them are right."""
    then = estimate(share=(0.5, 0.5), scale=measured)
    before = estimate(share=(0.5, 0.5), scale=predicted)
    before = replace(before, correct=before.share * hoped)
    run = measurement(early=50, late=50, right=round(100 * right), scale=measured)
    run = replace(run, span_start_s=measured * run.span_start_s, span_end_s=measured * run.span_end_s)
    comparison = Comparison(name=name, estimate=then, measurement=run)
    return Case(comparison=comparison, before=before, marginal=then, replayed=then)


FOUR = (
    ran("a", predicted=1.0, measured=1.2, hoped=0.80, right=0.80),
    ran("b", predicted=1.1, measured=1.1, hoped=0.90, right=0.92),
    ran("c", predicted=1.5, measured=1.6, hoped=0.96, right=0.94),
    ran("d", predicted=1.4, measured=2.0, hoped=0.95, right=0.95),
)


def test_regret_by_hand() -> None:
    free, ninety, most = regret(FOUR, (0.0, 0.93, 0.95))
    assert (free.plans, free.chosen, free.best) == (4, "a", "b")
    assert free.regret_s == pytest.approx(0.1 * 0.0315)
    assert free.regret == pytest.approx(0.1 / 1.1)
    deviation = 0.0205 * np.sqrt(100 / 99) / 10
    assert free.standard_error_s == pytest.approx(deviation * np.hypot(1.1, 1.2))
    assert (ninety.plans, ninety.chosen, ninety.best) == (2, "d", "c"), "by measured accuracy, b misses the bound"
    assert ninety.regret == pytest.approx(0.4 / 1.6)
    assert ninety.planned == "d"
    assert ninety.planned_accuracy == pytest.approx(0.95)
    assert (most.chosen, most.best, most.regret_s, most.standard_error_s) == ("d", "d", 0, 0)
    assert regret(FOUR, (0.99,)) == ()
    hopeful = replace(FOUR[0], before=replace(FOUR[0].before, correct=FOUR[0].before.share))
    (misled,) = regret((hopeful, *FOUR[1:]), (0.93,))
    assert (misled.chosen, misled.planned) == ("d", "a")
    assert misled.planned_accuracy == pytest.approx(0.80)


def test_a_validation_by_hand() -> None:
    found = Validation(cases=FOUR, planned=5, full_accuracy=0.95)
    answer = found.to_dict()
    means = 31.5 * np.array([1.2, 1.1, 1.6, 2.0])
    predicted = 30.0 * np.array([1.2, 1.1, 1.6, 2.0])
    assert answer["latency"]["beta"] == pytest.approx(30 / 31.5)
    assert answer["latency"]["mape"] == pytest.approx(1.5 / 31.5)
    assert answer["latency"]["rmse_ms"] == pytest.approx(np.sqrt(np.mean((means - predicted) ** 2)))
    assert (answer["plans"], answer["planned"], answer["samples"]) == (4, 5, [100])
    assert answer["exit_rate"]["n"] == 8
    assert answer["exit_rate"]["rmse"] == 0
    assert set(answer["terms"]) == {"compute", "encode", "decode", "transfer", "other", "total"}
    assert answer["terms"]["total"] == answer["latency"]
    assert answer["terms"]["other"]["bias_ms"] == pytest.approx(-0.5 * np.mean([1.2, 1.1, 1.6, 2.0]))
    shares = answer["attribution"]["latency"]
    assert sum(part["slope"] for part in shares.values()) == pytest.approx(answer["latency"]["beta"] - 1)
    assert sum(part["share"] for part in shares.values()) == pytest.approx(1)
    assert answer["front"] == {"predicted": ["a", "b", "d", "c"], "measured": ["b", "c", "d"], "both": 3}
    assert answer["worst"][0]["explained_by"] == "transfer"
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    third = answer["each"][2]
    assert (third["name"], third["exit_rates"]["measured"]) == ("c", [0.5, 0.5])
    assert third["latency_ms"] == pytest.approx(
        {
            "measured": 31.5 * 1.6,
            "at_measured_exits": 30 * 1.6,
            "predicted": 30 * 1.6,
            "before": 30 * 1.5,
            "marginal": 48,
        }
    )
    assert third["accuracy"] == pytest.approx(
        {"measured": 0.94, "predicted": answer["each"][0]["accuracy"]["predicted"], "before": 0.96}
        | {"marginal": third["accuracy"]["predicted"]}
    )
    verdicts = {(verdict.target.quantity, verdict.target.figure): verdict for verdict in found.verdicts()}
    assert len(verdicts) == len(TARGETS)
    missed = verdicts["latency", "beta"]
    assert not missed.met
    assert missed.why.startswith("transfer: −")
    assert verdicts["latency", "r2"].met
    assert verdicts["accuracy", "beta"].why.startswith("what ran: "), "replayed is as predicted here"
    with pytest.raises(InvalidValue, match="at least one plan that ran"):
        Validation(cases=(), planned=5, full_accuracy=0.95)


def test_the_page_shows_every_plan_and_loads_nothing() -> None:
    found = Validation(cases=FOUR, planned=4, full_accuracy=0.95)
    page = render_page(found, small_profile(), TOPOLOGY)
    body = page[page.rindex("<main>") :]
    assert "http" not in body.replace("http://www.w3.org", "").split("<script")[0]
    for text in ("Targets", "Beside the paper", "Regret", "Worst plans", "transfer", "MAPE"):
        assert text in body
    assert len(agreement_rows(found)) == 4 * 2 * 4, "two exits, a latency and an accuracy, by two estimators"
    assert Counter(row["kind"] for row in front_rows(found)) == {"plan": 4, "measured": 3, "predicted": 4}


# -- plans by seed ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> PerformanceModel:
    return PerformanceModel(
        load_profile(ROOT / "profiles/resnet20-digits.zip"), load_topology(ROOT / "configs/topologies/three_tier.yaml")
    )


def test_a_mix_has_plans_of_every_kind(model: PerformanceModel) -> None:
    picks = mixed_plans(model, 60, seed=3)
    assert len({pick.plan for pick in picks}) == 60
    assert 10 <= sum(pick.origin == "front" for pick in picks) <= 15
    levels = {name: Counter(pick.factors[name] for pick in picks) for name in FACTORS}
    assert set(levels["tiers"]) == {"1", "2", "3"}
    assert set(levels["order"]) == {"one tier", "increasing", "other"}
    assert set(levels["exits per tier"]) == {"1", "2"}
    assert set(levels["thresholds"]) == {"none", "one", "several"}
    assert set(levels["end"]) == {"whole", "truncated"}
    assert {codec for pick in picks for codec in pick.plan.codecs} == {None, "float32", "encoded"}
    assert all(min(levels[name].values()) >= 8 for name in FACTORS if name != "codecs")
    assert sum("encoded" in pick.plan.codecs for pick in picks) >= 8
    first = [pick for pick in picks[:20] if pick.origin == "mix"]
    assert {pick.factors["tiers"] for pick in first} == {"1", "2", "3"}, "its beginning is balanced, too"
    for pick in picks:
        assert np.isfinite(model.estimate(pick.plan).mean_s)
        assert factors(pick.plan, 10) == pick.factors


def test_a_mix_is_a_function_of_the_seed_and_follows_hints(model: PerformanceModel) -> None:
    assert mixed_plans(model, 12, seed=1) == mixed_plans(model, 12, seed=1)
    assert mixed_plans(model, 12, seed=1) != mixed_plans(model, 12, seed=2)
    space = SearchSpace(
        exits_per_tier=1, tiers=(0, 2), block_tiers={1: (0,)}, tier_order="increasing", truncation=False,
        thresholds=(0.0, 0.3), codecs=("float32",),
    )  # fmt: skip
    for pick in mixed_plans(model, 8, seed=0, space=space):
        assert pick.plan.placement in ((0,), (0, 2))
        assert pick.plan.cuts[-1] == 10
        assert set(pick.plan.thresholds) <= {0.0, 0.3}
        assert set(pick.plan.codecs) <= {None, "float32"}
    assert {pick.origin for pick in mixed_plans(model, 5, front=1.0)} == {"front"}
    assert {pick.origin for pick in mixed_plans(model, 5, front=0.0)} == {"mix"}
    with pytest.raises(SearchError, match="after 1 no other was found"):
        mixed_plans(model, 2, space=SearchSpace(tiers=(0,), exits=(), truncation=False))
    for count, front in ((0, 0.0), (1, 1.5)):
        with pytest.raises(InvalidValue):
            mixed_plans(model, count, front=front)


@pytest.mark.parametrize("seed", range(6))
def test_a_mix_of_any_network_can_be_estimated(seed: int) -> None:
    case = random_case(seed)
    model = case.model()
    space = SearchSpace(thresholds=(0.0, 0.25, 0.5), exits_per_tier=2)
    try:
        picks = mixed_plans(model, 6, seed=seed, space=space)
    except SearchError:
        pytest.skip("the space is too small")
    for pick in picks:
        assert np.isfinite(model.estimate(pick.plan).mean_s)


def test_a_tier_idles_until_its_message_is_there_or_the_next_sample(model: PerformanceModel) -> None:
    plan = model.complete(Plan(cuts=(2, 5), placement=(0, 2), thresholds=(0.0,)))
    size = model.profile.devices["local"].codecs[str(plan.codecs[1])].message_bytes[2]
    sent_s = model.topology.transmission_s(size)[0, 2]
    # 50 ms and the way back from the cloud, of 40 and 20 ms; for the cloud the way there
    assert idle_before(model, plan, model.estimate(plan), 0.05) == pytest.approx([0.11, 0.11, 0.06 + sent_s])
    alone = model.complete(Plan(cuts=(5,), placement=(0,)))
    assert idle_before(model, alone, model.estimate(alone), 0.05) == pytest.approx([0.05] * 3)


# -- campaigns in YAML -----------------------------------------------------------------------------


def test_a_campaign_in_yaml(tmp_path: Path) -> None:
    topology = load_topology(ROOT / "configs/topologies/three_tier.yaml")
    stated = read_campaign(ROOT / "configs/campaigns/digits.yaml", topology)
    assert (stated.plans, stated.gap_s, stated.space.exits_per_tier) == (60, 0.05, 2)
    path = tmp_path / "c.yaml"
    path.write_text("samples: all\nleast: 500 ms\nhints: {tiers: [edge, 2]}\n")
    assert read_campaign(path, topology) == Campaign(
        samples=None, least_s=0.5, space=SearchSpace(exits_per_tier=2, tiers=(0, 2))
    )
    for text, told in (
        ("plan: 3", "plan: this key is unknown; did you mean 'plans'?"),
        ("plans: 0", "a campaign's plans are at least 1, but got 0"),
        ("front: 2", "the share of plans from the front lies within 0–1"),
        ("gap: 5", "no unit"),
        ("least: -1 s", "least"),
        ("criterion: luck", "a criterion is one of"),
        ("hints: {tiers: [moon]}", "hints.tiers: no tier is called 'moon'"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"c\.yaml") as error:
            read_campaign(path, topology)
        assert told in str(error.value)


# -- a real one ------------------------------------------------------------------------------------

SMALL = """
name: small
tiers:
  - {name: edge, device: local, slowdown: 2}
  - {name: cloud, device: local}
links:
  - {bandwidth: 20 Mbit/s, propagation_delay: 3 ms}
"""
PLANS, SAMPLES = 5, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small trained network with its profile, and a topology."""
    path = tmp_path_factory.mktemp("campaign")
    dataset = load_dataset("digits:size=8")
    splits = make_splits(dataset, seed=0)
    network = build("resnet8", in_channels=1, num_classes=10, input_size=8)
    config = TrainingConfig(epochs=3, batch_size=32, learning_rate=0.1)
    trained = train(network, dataset, splits, config, path / "training").checkpoint
    backbone = load_checkpoint(trained)
    evaluator, codecs = TorchEvaluator(backbone), ("float32", "encoded", "int8")
    ranges, losses = profile_codecs(evaluator, dataset, splits.profiling, codecs)
    quick = DeviceProfiling(
        repeats=3, idle_repeats=1, message_repeats=2, message_samples=8, gap_s=0.002, codecs=codecs,
        execution=Execution(executor="onnxruntime"),
    )  # fmt: skip
    device = profile_device("local", trained, dataset, quick, indices=splits.profiling, ranges=ranges)
    exits = profile_exits(evaluator, dataset, splits.profiling)
    save(
        Profile(backbone=backbone.spec(), exits=exits, devices={"local": device}, ranges=ranges, losses=losses),
        path / "profile.zip",
    )
    (path / "small.yaml").write_text(SMALL)
    return path


def words(folder: Path, out: Path, *more: object) -> list[str]:
    given = [
        "validate", folder / "profile.zip", "--network", folder / "training/checkpoint.safetensors",
        "--topology", folder / "small.yaml", "--out", out, "--plans", PLANS, "--samples", SAMPLES, "--turns", 2,
        "--repeats", 1, *more,
    ]  # fmt: skip
    return list(map(str, given))


def portend(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def entries(out: Path) -> list[str]:
    """Names in the journal, in order, as often as they stand there; a torn last line does not count."""
    path = out / "campaign.begun"
    return [json.loads(line)["name"] for line in path.read_bytes().split(b"\n")[1:-1]] if path.exists() else []


def killed(command: list[str], when: Callable[[], bool], how: signal.Signals) -> tuple[int, str]:
    """Start the command, end it as soon as something is so, and return its code and what it said."""
    child = subprocess.Popen(
        [sys.executable, "-m", "portend.cli.app", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 90
    while not when():
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < deadline, "nothing was kept in time"
        time.sleep(0.02)
    child.send_signal(how)
    told = child.communicate(timeout=60)[1]
    return child.returncode, told


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign that was killed after its second plan, and then went on to its end."""
    out = tmp_path_factory.mktemp("validation") / "out"
    killed(words(folder, out), lambda: len(entries(out)) >= 2, signal.SIGKILL)
    before = entries(out)
    assert 2 <= len(before) < PLANS
    traces = {name: (out / f"traces/{name}.zip").read_bytes() for name in before}
    predictions = (out / "predictions.json").read_bytes()
    late = portend(*words(folder, out, "--budget", "0 s"))
    assert late.exit_code == 0, late.output
    assert f"note: {len(before)} of {PLANS} plans ran; the same command goes on with the others" in late.stderr
    assert entries(out) == before
    done = portend(*words(folder, out, "--json"))
    assert done.exit_code == 0, done.output
    assert entries(out)[: len(before)] == before
    assert {name: (out / f"traces/{name}.zip").read_bytes() for name in before} == traces, "not measured again"
    assert (out / "predictions.json").read_bytes() == predictions
    assert json.loads(done.stdout) == json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return out


def test_a_killed_campaign_goes_on_and_measures_nothing_twice(finished: Path) -> None:
    names = [f"{number:04d}" for number in range(1, PLANS + 1)]
    assert entries(finished) == names
    assert sorted(path.name for path in finished.iterdir()) == [
        "campaign.begun", "predictions.json", "report.html", "scores.zip", "summary.json", "traces",
    ]  # fmt: skip
    assert sorted(path.name for path in (finished / "traces").iterdir()) == [f"{name}.zip" for name in names]


def test_what_was_predicted_is_what_ran(finished: Path) -> None:
    told = json.loads((finished / "predictions.json").read_text(encoding="utf-8"))
    for one in told["plans"]:
        measured = load_measurement(finished / f"traces/{one['name']}.zip")
        assert measured.plan.to_dict() == one["plan"]
        assert told["predicted"] <= measured.provenance["finished"]
        assert (measured.provenance["window"], len(measured)) == ("1", SAMPLES)
        assert set(one) >= {"origin", "factors", "sample", "marginal"}
        assert sum(one["sample"]["parts_ms"].values()) == pytest.approx(one["sample"]["mean_ms"])
        assert len(set(measured.sample.tolist())) == SAMPLES, "each sample ran once"
        scored = load_profile(finished / "scores.zip").exits
        assert isinstance(scored, SampleExits)
        assert measured.stands_for == scored.samples > SAMPLES
        left, right = replay(scored, measured.plan)
        kept = int(
            ((left[measured.sample] == measured.exit_index) & (right[measured.sample] == measured.correct)).sum()
        )
        assert kept >= SAMPLES - 1, "samples leave as their scores say; int8 may move one of them"
        if kept == SAMPLES:
            rates = np.bincount(left, minlength=len(measured.plan)) / scored.samples
            assert measured.exit_rates() == pytest.approx(rates), "weighted, they are those of the whole test"
            assert measured.accuracy == pytest.approx(right.mean())


def test_a_stratified_draw_stands_for_all() -> None:
    # 6 leave first and are right, 3 leave first and are wrong, 1 stays and is right: of 5 drawn each stratum has one,
    # and of the other two (5·2/7, 2·2/7, 0) = (1.43, 0.57, 0) the first gets one, and the second by its remainder.
    left, right = np.array([0] * 9 + [1]), np.array([True] * 6 + [False] * 3 + [True])
    for seed in range(5):
        chosen, weight = stratified((left, right), 5, seed=seed)
        assert len(set(chosen.tolist())) == 5
        cells = [(int(left[i]), bool(right[i]), float(w)) for i, w in zip(chosen, weight, strict=True)]
        assert sorted(cells) == [(0, False, 1.5)] * 2 + [(0, True, 3.0)] * 2 + [(1, True, 1.0)]
    assert len({tuple(stratified((left, right), 5, seed=seed)[0].tolist()) for seed in range(5)}) > 1
    everyone, ones = stratified((left, right), 10, seed=0)
    assert (sorted(everyone.tolist()), set(ones.tolist())) == (list(range(10)), {1.0})
    few, weight = stratified((left, right), 2, seed=0)
    assert sorted(zip(left[few].tolist(), weight.tolist(), strict=True)) == [(0, 3.0), (0, 6.0)], "the largest first"


def test_the_summary_has_what_was_promised(finished: Path) -> None:
    found = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    assert found["plans"] == found["planned"] == PLANS
    for quantity in ("latency", "exit_rate", "accuracy"):
        assert {"beta", "r2", "mape"} <= set(found[quantity])
        assert {"beta", "r2"} <= set(found["marginal"][quantity])
    assert "rmse_ms" in found["latency"]
    assert {"compute", "encode", "decode", "transfer", "total"} <= set(found["terms"])
    assert len(found["targets"]) == len(TARGETS)
    assert found["regret"][0]["plans"] == PLANS
    assert found["campaign"]["plans"] == PLANS
    for name, part in found["attribution"]["exit_rate"].items():
        if name == "what ran":
            assert part["rms"] <= 0.1, "samples leave as their scores say; int8 may move one of them"
    assert (finished / "report.html").stat().st_size > 1_000_000


@pytest.mark.slow
def test_predicted_latencies_are_near_measured_ones(finished: Path) -> None:
    found = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    assert 0.3 < found["latency"]["beta_origin"] < 2, "a doubled term would show"


def test_short_plans_run_over_more_samples_and_are_timed_more_often(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("plans: 3\nsamples: 4\nturns: 1\nrepeats: 1\nleast: 1500 ms\n")
    done = portend(*words(folder, tmp_path / "out")[:8], "--config", str(tmp_path / "c.yaml"))
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in (tmp_path / "out/campaign.begun").read_text().splitlines()[1:]]
    for line in lines:
        ran = len(load_measurement(tmp_path / f"out/traces/{line['name']}.zip"))
        bursts = line["numbers"][0]
        assert ran % 4 == 0
        assert ran >= 8, "a plan of milliseconds takes less than 1 s over 4 samples"
        assert bursts == 2 * ran / 4, "before the only turn and after it"


def test_a_finished_campaign_is_only_looked_at_again(folder: Path, finished: Path) -> None:
    before = (finished / "campaign.begun").read_bytes()
    done = portend(*words(folder, finished))
    assert done.exit_code == 0, done.output
    assert "mean latency β" in done.stdout
    assert "Worst plans" in done.stdout
    assert (finished / "campaign.begun").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--plans", "4"), "plans: 5, now 4"),
        (("--samples", "11"), "samples: 12, now 11"),
        (("--seed", "1"), "seed: 0, now 1"),
        (("--gap", "7 ms"), "gap_s: 0.002, now 0.007"),
        (("--topology", "TOPOLOGY"), "link edge–cloud.bandwidth_bps: 20000000.0, now 30000000.0"),
    ],
)
def test_another_campaign_is_refused_with_what_differs(
    folder: Path, finished: Path, tmp_path: Path, more: tuple[str, ...], told: str
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(SMALL.replace("20 Mbit/s", "30 Mbit/s"))
    kept = (finished / "campaign.begun").read_bytes()
    done = portend(*words(folder, finished, *(str(other) if word == "TOPOLOGY" else word for word in more)))
    assert isinstance(done.exception, StorageError)
    assert "holds a campaign that was begun otherwise" in str(done.exception)
    assert told in str(done.exception)
    assert "--restart" in str(done.exception)
    assert (finished / "campaign.begun").read_bytes() == kept


def test_a_network_with_other_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    provenance = {"dataset": "digits:size=8", "split_seed": "0"}
    other = build("resnet8", in_channels=1, num_classes=10, input_size=8, seed=9)
    save_checkpoint(other, tmp_path / "other.safetensors", provenance=provenance)
    done = portend(*words(folder, tmp_path / "out", "--network", tmp_path / "other.safetensors"))
    assert isinstance(done.exception, MismatchError)
    assert "other weights" in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_a_budget_lets_one_plan_run_and_restart_begins_anew(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = portend(*words(folder, out, "--budget", "0 s"))
    assert done.exit_code == 0, done.output
    assert "note: 1 of 5 plans ran; the same command goes on with the others" in done.stderr
    assert entries(out) == ["0001"]
    (out / "mine.txt").write_text("kept")
    again = portend(*words(folder, out, "--seed", "1", "--restart", "--budget", "0 s"))
    assert again.exit_code == 0, again.output
    assert entries(out) == ["0001"]
    assert json.loads((out / "summary.json").read_text(encoding="utf-8"))["campaign"]["seed"] == 1
    assert (out / "mine.txt").read_text() == "kept"


@pytest.mark.slow
@pytest.mark.skipif(bool(unavailable()), reason=f"no namespaces here: {unavailable()}")
def test_a_campaign_runs_in_namespaces_and_does_not_go_on_elsewhere(folder: Path, tmp_path: Path) -> None:
    asked = words(folder, tmp_path / "out", "--plans", 2, "--emulation", "namespaces", "--json")
    found = portend(*asked)
    assert found.exit_code == 0, found.output
    for trace in sorted((tmp_path / "out" / "traces").iterdir()):
        assert load_measurement(trace).provenance["links"].startswith("network namespaces")
    other = portend(*words(folder, tmp_path / "out", "--plans", 2))
    assert isinstance(other.exception, StorageError)
    assert 'emulation: "namespaces", now "relay"' in str(other.exception)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_keeps_what_ran_and_leaves_nothing_else(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    """As do SIGTERM and a terminal that is gone."""
    out, temporary = tmp_path / "out", tmp_path / "t"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    code, told = killed(words(folder, out, "--samples", 40), lambda: len(entries(out)) >= 1, how)
    assert code == 130
    assert "the same command goes on with the plans that are left" in told.replace("\n", " ")
    assert "Traceback" not in told
    assert entries(out)
    assert not list(temporary.glob("portend*"))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--config", "none.yaml"), "there is no file none.yaml"),
        (("--topology", "none.yaml"), "there is no file none.yaml"),
        (("--network", "none.safetensors"), "none.safetensors"),
        (("--plans", "0"), "0 is not in the range"),
        (("--gap", "5"), "no unit"),
        (("--criterion", "luck"), "'luck' is not one of"),
    ],
)
def test_wrong_input_is_told_before_anything_starts(
    folder: Path, tmp_path: Path, more: tuple[str, ...], told: str
) -> None:
    done = portend(*words(folder, tmp_path / "out", *more))
    assert done.exit_code != 0
    assert told in str(done.exception) + done.output
    assert not (tmp_path / "out").exists()
