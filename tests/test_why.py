"""Promises that hold on new samples, and what an answer says of itself."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from commands import portend
from portend.errors import InvalidValue
from portend.io.forms import load_topology
from portend.io.storage import load_profile
from portend.perfmodel.model import PerformanceModel
from portend.planner.metrics import latency_quantile, throughput
from portend.planner.problem import Alternative, Problem, SearchSpace, Why, accuracy, latency
from portend.planner.search import search
from portend.planner.solve import solve
from portend.values.exits import SampleExits
from portend.values.plan import Plan
from portend.values.profile import Profile
from problems import Case, random_case

SPACE = SearchSpace(thresholds=(0.0, 0.125, 0.25, 0.5))


def a_case(seed: int) -> Case:
    return random_case(seed, blocks=5, tiers=3, estimator="sample" if seed % 2 else "marginal")


# -- robust ----------------------------------------------------------------------------------------


def test_a_promise_asks_for_more_by_hand() -> None:
    problem = Problem(minimize=latency, subject_to=(accuracy >= 0.9, latency <= 1.0), robust=0.95)
    asked = problem.promised(100)
    assert asked.min_accuracy == pytest.approx(0.9 + 1.6448536 * math.sqrt(0.9 * 0.1 / 100))
    assert (asked.max_latency_s, asked.robust) == (1.0, None)
    assert problem.promised(10).min_accuracy == math.inf, "ten right answers of ten prove less than 90 %"
    assert replace(problem, robust=0.5).promised(100).min_accuracy == 0.9
    assert replace(problem, robust=None).promised(100).min_accuracy == 0.9
    assert str(problem).endswith("with 95 % confidence")
    for wrong in (0.2, 1.0):
        with pytest.raises(InvalidValue, match="confidence"):
            Problem(minimize=latency, robust=wrong)


def test_promises_are_kept_about_as_often_as_they_say() -> None:
    """One fixed plan on new samples: what 90 % confidence allows to promise is kept about 90 times in 100."""
    rng = np.random.default_rng(1)
    samples, truth, kept = 400, 0.8, []
    promises = np.linspace(0.5, 0.95, 451)
    needed = np.array([
        Problem(minimize=latency, subject_to=(accuracy >= float(e),), robust=0.9).promised(samples).min_accuracy
        for e in promises
    ])  # fmt: skip
    for _ in range(400):
        measured = rng.binomial(samples, truth) / samples
        kept.append(truth >= max(promises[needed <= measured], default=0.0))
    assert 0.86 <= np.mean(kept) <= 0.94


# -- why -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(16))
def test_the_waterfall_adds_up_and_alternatives_are_what_they_say(seed: int) -> None:
    case = a_case(seed)
    model = case.model()
    front = search(Problem(minimize=latency, space=SPACE), model).front
    middle = front[len(front) // 2]
    problem = Problem(minimize=latency, subject_to=(accuracy >= middle.accuracy,), space=SPACE)
    solution = solve(problem, model)
    assert solution.why is not None
    total = sum(seconds for _, parts in solution.why.steps for seconds in parts.values())
    assert total == pytest.approx(solution.estimate.mean_s)
    for other in solution.why.alternatives:
        estimate = model.estimate(other.plan)
        assert estimate.mean_s - solution.estimate.mean_s == pytest.approx(other.slower_s, abs=1e-9)
        assert solution.estimate.accuracy - estimate.accuracy == pytest.approx(other.less_accurate, abs=1e-9)
        assert (other.slower_s < 0) == (other.name == "next faster")
    faster = front[0].latency_s < solution.estimate.mean_s * (1 - 1e-9)
    assert solution.why.binding == (problem.subject_to if faster else ())
    assert solution.to_dict()["why"]["steps"]
    assert "Where the time goes" in solution.describe()


@pytest.mark.parametrize("seed", range(6))
def test_a_problem_in_other_metrics_has_its_reasons_too(seed: int) -> None:
    model, p90 = a_case(seed).model(), latency_quantile(0.9)
    free = solve(Problem(minimize=p90, space=SPACE), model, baselines=False)
    bound = (free.estimate.accuracy + model.profile.full_accuracy) / 2
    problem = Problem(minimize=p90, subject_to=(accuracy >= bound, throughput >= 1e-6), space=SPACE)
    solution = solve(problem, model)
    why = solution.why
    assert why is not None
    assert why.metric == latency
    assert why.goal == p90
    assert sum(s for _, parts in why.steps for s in parts.values()) == pytest.approx(solution.estimate.mean_s)
    assert why.alternatives
    for other in why.alternatives:
        estimate = model.estimate(other.plan)
        assert other.dearer == pytest.approx(estimate.quantile_s(0.9) - solution.estimate.quantile_s(0.9), abs=1e-9)
        assert other.dearer >= -1e-9
    worse = solution.estimate.quantile_s(0.9) > free.estimate.quantile_s(0.9) * (1 + 1e-9)
    assert why.binding == (problem.subject_to[:1] if worse else ())
    front = solve(Problem(minimize=(p90, latency), subject_to=(accuracy >= bound,), space=SPACE), model)
    named = [other for other in front.why.alternatives if other.name == "next on the front"]  # type: ignore[union-attr]
    assert [other.plan for other in named] == [point.plan for point in front.front[1:2]]


def test_distributing_that_hardly_pays_is_said_to() -> None:
    """Two tiers, the same device, a link that costs next to nothing: the second tier changes nothing."""
    case = random_case(4, blocks=4, tiers=2, estimator="sample")
    device = next(iter(case.profile.devices.values()))
    quick = np.full_like(device.compute_repeats_s, np.nan)
    start, end = np.triu_indices(5, k=1)
    quick[:, start, end] = 0.010 * (end - start) + np.where((start == 0) & (end == 4), 1e-4, 0.0)
    profile = Profile(
        backbone=case.profile.backbone,
        exits=SampleExits(scores={"entropy": np.ones((10, 4))}, correct=np.array([[0, 0, 0, 1]] * 10, dtype=bool)),
        devices={
            "d": replace(device, compute_repeats_s=quick, idle_repeats_s=np.empty((0, 1, 5, 5)),
                         branch_repeats_s=np.zeros((1, 5)))
        },
    )  # fmt: skip
    codec = {k: replace(v, encode_repeats_s=v.encode_repeats_s * 0, encode_busy_repeats_s=v.encode_busy_repeats_s * 0,
                        decode_repeats_s=v.decode_repeats_s * 0, decode_busy_repeats_s=v.decode_busy_repeats_s * 0,
                        dispatch_repeats_s=v.dispatch_repeats_s * 0) for k, v in device.codecs.items()}  # fmt: skip
    result = replace(device.result, encode_repeats_s=np.zeros(1), decode_repeats_s=np.zeros(1),
                     decode_busy_repeats_s=np.zeros(1), dispatch_repeats_s=np.zeros(1))  # fmt: skip
    profile = replace(profile, devices={"d": replace(profile.devices["d"], codecs=codec, result=result)})
    tiers = tuple(replace(tier, device="d", slowdown=1.0) for tier in case.topology.tiers)
    links = tuple(replace(link, bandwidth_bps=1e12, propagation_delay_s=0.0) for link in case.topology.links)
    topology = replace(case.topology, tiers=tiers, links=links, source=0, destination=0, ingest="in_process")
    model = PerformanceModel(profile, topology)
    problem = Problem(minimize=latency, subject_to=(accuracy >= 1.0,), space=SearchSpace(thresholds=(0.0,)))
    solution = solve(problem, model)
    assert len(set(solution.plan.placement)) == 2
    assert solution.why is not None
    assert "hardly pays" in solution.why.advice
    slow = topology.with_tier(0, slowdown=10.0)
    assert solve(problem, PerformanceModel(profile, slow)).why.advice == ""  # type: ignore[union-attr]


# -- uncertain and disturbed times -----------------------------------------------------------------

ROOT = Path(__file__).parent.parent
PAPER = ROOT / "configs/topologies/paper.yaml"
DISTURBED, QUIET = ROOT / "profiles/resnet20-cifar10-testbed.zip", ROOT / "profiles/resnet20-cifar10.zip"
TOLD = "device local was profiled, the machine's speed changed by 16 %"
REMEDY = "measure it again on a quiet machine: portend profile CHECKPOINT --device local --out PROFILE"


def test_a_gain_that_uncertain_times_leave_open_is_said_to_be_so() -> None:
    model = PerformanceModel(load_profile(DISTURBED), load_topology(PAPER))
    space = SearchSpace(thresholds=(0.0, 0.1, 0.2, 0.3), exits_per_tier=2)
    solution = solve(Problem(minimize=latency, subject_to=(accuracy >= 0.88,), space=space), model)
    assert solution.why is not None
    other = {each.name: each for each in solution.why.alternatives}
    gain, clear = other["without early exits"].slower_s, other["base alone"].slower_s
    doubt, less = (
        1.96 * model.time_sd_s(solution.estimate, model.estimate(other[name].plan))
        for name in ("without early exits", "base alone")
    )
    assert gain < doubt
    assert clear > less
    assert (
        f"The {1e3 * gain:.2f} ms that the plan gains over the one without early exits are within"
        in solution.why.advice
    )
    assert f"leave open (± {1e3 * doubt:.2f} ms, 95 %)" in solution.why.advice
    assert "base alone" not in solution.why.advice


def test_a_plan_on_a_disturbed_profile_says_so_and_what_to_do(tmp_path: Path) -> None:
    for profile, disturbed in ((DISTURBED, True), (QUIET, False)):
        done = portend("plan", profile, "--topology", PAPER, "--min-accuracy", "0.8")
        said = " ".join(done.stdout.split())
        assert (TOLD in said, REMEDY in said) == (disturbed, disturbed)
        swept = (
            "whatif",
            profile,
            "--topology",
            PAPER,
            "--min-accuracy",
            "0.8",
            "--sweep",
            "links[0].bandwidth=5,9Mbit/s",
        )
        page = tmp_path / f"{disturbed}.html"
        done = portend(*swept, "--no-baselines", "--out", page)
        assert (TOLD in done.stdout + done.stderr, REMEDY in done.stdout + done.stderr) == (disturbed, disturbed)
        assert (REMEDY in page.read_text(encoding="utf-8")) == disturbed
        answer = json.loads(portend(*swept, "--no-baselines", "--json").stdout)
        assert [TOLD in told and REMEDY in told for told in answer["disturbed"]] == [True] * disturbed


def test_a_minus_is_a_minus_sign() -> None:
    plan = Plan(cuts=(3,), placement=(0,), thresholds=())
    for slower_s, less, said in ((-8e-5, 0.01, "−0.08 ms   −1.00 points"), (-1e-9, -0.002, "+0.00 ms   +0.20 points")):
        other = Alternative(name="other", plan=plan, slower_s=slower_s, less_accurate=less, dearer=slower_s)
        why = Why(metric=latency, goal=latency, steps=(), binding=(), alternatives=(other,))
        assert said in why.describe()[-1]
