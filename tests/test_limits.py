"""Limits of searches: whatever ends a search, what it says is true, and it says what it does not know."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from commands import ROOT, portend
from portend.analysis.whatif import Axis, Scenario, find_crossovers, sweep
from portend.errors import InvalidValue, SearchError
from portend.perfmodel.model import Estimator, PerformanceModel
from portend.planner import dynamic, exhaustive, limits, replay
from portend.planner import search as search_module
from portend.planner.baselines import solve_baselines
from portend.planner.exhaustive import solve_exhaustive
from portend.planner.fallbacks import find_fallbacks
from portend.planner.limits import Limits, Progress
from portend.planner.metrics import latency_quantile
from portend.planner.problem import Problem, SearchSpace, Solution, accuracy, latency
from portend.planner.search import search
from portend.planner.solve import solve
from portend.values.topology import Link
from problems import draws, random_case
from test_search import a_problem

PROFILE, TOPOLOGY = ROOT / "profiles/resnet20-digits.zip", ROOT / "configs/topologies/three_tier.yaml"


def true(found: Solution, expected: Solution, model: PerformanceModel) -> None:
    """Nothing that is said contradicts the exhaustive search."""
    goal, sense = found.problem.objectives[0]
    value, best = found.metrics[goal.name], expected.metrics[goal.name]
    tolerance = 1e-9 * abs(best) + 1e-12
    if found.status in ("optimal", "infeasible"):
        assert found.status == expected.status
        assert found.status == "infeasible" or value == pytest.approx(best, abs=tolerance)
    if found.met:
        assert expected.status == "optimal"
        assert found.problem.judge(found.plan, model)[1]
        assert found.gap is None or found.gap == pytest.approx(abs(value - (found.bound or 0.0)) / abs(value), abs=1e-9)
    else:
        assert found.gap is None
    if found.bound is not None and expected.status == "optimal":
        assert sense * found.bound <= sense * best + tolerance, "the bound is no bound"
    if found.status in ("feasible", "unknown"):
        assert found.stats.ended


_MODELS: dict[int, PerformanceModel] = {}


@pytest.mark.parametrize("estimator", ["marginal", "sample"])
@pytest.mark.parametrize("front", [True, False])
@pytest.mark.parametrize("block", draws(6, 1))
def test_what_a_search_that_is_cut_short_says_is_true(
    block: int, estimator: Estimator, front: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exact searches, cut short at any step, with the whole front asked for and without."""
    monkeypatch.setattr(search_module, "FRONT_LIMIT", search_module.FRONT_LIMIT if front else 0)
    monkeypatch.setattr(dynamic, "_CELLS", 64)
    monkeypatch.setattr(replay, "_BYTES", 1)
    monkeypatch.setattr(replay, "_BEAM", 1)
    monkeypatch.setattr(replay, "_FEW", 0)
    statuses, refused = set(), set()
    for seed in range(16 * block, 16 * block + 16):
        drawn = a_problem(seed, estimator)
        if drawn is None:
            continue
        model, problem = drawn[0].model(), replace(drawn[1], robust=None)
        expected = solve_exhaustive(problem, model)
        for steps in (0, 1, 3, 10, 40):
            try:
                found = search(problem, model, limits=Limits(pieces=steps))
            except SearchError as error:
                refused.add(str(error).partition(" was met")[0])
                continue
            statuses.add(found.status)
            true(found, expected, model)
            if found.front_complete:
                assert found.front == (expected.front if found.front or front else ())
    assert statuses == {"optimal", "feasible", "infeasible", "unknown"}
    assert refused <= {"no plan was found before the limit of time"}


@pytest.mark.parametrize("seed", range(6))
def test_the_exhaustive_search_and_nsga_ii_cut_short_claim_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exhaustive, "_BLOCK_CELLS", 16)
    monkeypatch.setattr(exhaustive, "_BATCH_CELLS", 16)
    model = random_case(seed, blocks=5, tiers=3, estimator="sample").model()
    space = SearchSpace(thresholds=(0.0, 0.25, 0.5), exits_per_tier=2)
    middle = float(np.median(model.profile.exits.accuracies()))
    for goal in (latency, latency_quantile(0.9)):
        problem = Problem(minimize=goal, subject_to=(accuracy >= middle,), space=space)
        expected = solve_exhaustive(problem, model)
        for steps in (0, 1, 5):
            found = solve_exhaustive(problem, model, limits=Limits(pieces=steps))
            true(found, expected, model)
            assert not found.front_complete
            assert found.status in ("feasible", "unknown")
    monkeypatch.setattr(search_module, "METRIC_LIMIT", 0)
    pytest.importorskip("pymoo", reason="needs the extra pareto")
    beyond = replace(problem, subject_to=(accuracy >= 1.0, latency_quantile(0.9) <= 1e-9))
    assert search(problem, model, limits=Limits(pieces=3)).status == "feasible"
    assert search(beyond, model, limits=Limits(pieces=3)).status == "unknown"


def test_a_bound_says_what_a_better_plan_may_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fastest and most accurate plans alike."""
    monkeypatch.setattr(search_module, "FRONT_LIMIT", 0)
    monkeypatch.setattr(replay, "_BYTES", 1)
    case = random_case(11, blocks=7, tiers=3, estimator="sample")
    links = tuple(Link(bandwidth_bps=1e6, propagation_delay_s=0.001) for _ in range(2))
    model = replace(case, topology=replace(case.topology, source=0, destination=0, links=links)).model()
    hints = SearchSpace(thresholds=(0.0, 0.125, 0.25, 0.5), exits_per_tier=3, per_exit_thresholds=True)
    bound = 0.9 * float(max(case.profile.exits.accuracies()))
    fast = Problem(minimize=latency, subject_to=(accuracy >= bound,), space=hints)
    whole, short = search(fast, model), search(fast, model, limits=Limits(pieces=2))
    assert (whole.status, whole.gap, whole.bound, short.status) == ("optimal", 0.0, whole.estimate.mean_s, "feasible")
    assert short.bound is not None
    assert short.gap is not None
    assert 0 < short.gap < 1
    assert short.bound == pytest.approx(short.estimate.mean_s * (1 - short.gap))
    assert short.bound <= whole.estimate.mean_s * (1 + 1e-9) <= short.estimate.mean_s * (1 + 2e-9)
    assert "ended by the time limit" in str(short)
    close = Problem(maximize=accuracy, subject_to=(latency <= 1.2 * whole.estimate.mean_s,), space=hints)
    best, short = search(close, model), search(close, model, limits=Limits(pieces=2))
    assert short.bound is not None
    assert short.status == "feasible"
    assert short.estimate.accuracy <= best.estimate.accuracy <= short.bound + 1e-12
    assert short.to_dict()["bound"] == short.bound


def test_progress_tells_the_best_plan_and_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_TELL_S", 0.0)
    monkeypatch.setattr(search_module, "FRONT_LIMIT", 0)
    monkeypatch.setattr(replay, "_BYTES", 1)
    for estimator in ("sample", "marginal"):
        kind: Any = estimator
        model = random_case(11, blocks=7, tiers=3, estimator=kind).model()
        need = 0.9 * float(max(model.profile.exits.accuracies()))
        problem = Problem(minimize=latency, subject_to=(accuracy >= need,), space=SearchSpace(thresholds=(0.0, 0.25)))
        told: list[Progress] = []
        found = solve(problem, model, progress=told.append)
        known = [one for one in told if one.value is not None and one.bound is not None]
        assert known
        for one in known:
            assert one.value is not None
            assert one.bound is not None
            assert one.bound <= found.estimate.mean_s * (1 + 1e-9)
            assert one.value >= found.estimate.mean_s * (1 - 1e-9)
            assert one.gap == pytest.approx((one.value - one.bound) / one.value)


@contextmanager
def interrupting(monkeypatch: pytest.MonkeyPatch, times: int = 1) -> Iterator[None]:
    """Press Ctrl-C when a search asks its limits."""
    asked, left = Limits.over, [times]

    def over(self: Limits) -> bool:
        if left[0]:
            left[0] -= 1
            os.kill(os.getpid(), signal.SIGINT)
        return asked(self)

    with monkeypatch.context() as patch:
        patch.setattr(Limits, "over", over)
        yield


def test_a_first_ctrl_c_gives_the_best_so_far_and_a_second_one_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_case(11, blocks=9, tiers=3, estimator="sample").model()
    hints = SearchSpace(thresholds=(0.0, 0.125, 0.25, 0.5), exits_per_tier=3, per_exit_thresholds=True)
    problem = Problem(minimize=latency, subject_to=(accuracy >= 0.4,), space=hints)
    before = signal.getsignal(signal.SIGINT)
    with interrupting(monkeypatch):
        found = solve(problem, model)
    assert (found.stats.ended, found.why, dict(found.baselines)) == ("interrupt", None, {})
    assert found.status in ("feasible", "unknown")
    assert "ended by Ctrl-C" in str(found)
    with interrupting(monkeypatch, times=2), pytest.raises(KeyboardInterrupt):
        solve(problem, model)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("estimator", ["marginal", "sample"])
def test_short_memory_is_a_limit_and_no_error(estimator: Estimator, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_case(11, blocks=9, tiers=3, estimator=estimator).model()
    hints = SearchSpace(thresholds=(0.0, 0.125, 0.25, 0.5), exits_per_tier=3, per_exit_thresholds=True)
    problem = Problem(minimize=latency, subject_to=(accuracy >= 0.4,), space=hints)
    with monkeypatch.context() as patch:  # the process grows from here on
        patch.setattr(limits, "_LOOK_S", 0.0)
        patch.setattr(limits, "_resident_bytes", iter(range(0, 10**9, 10**6)).__next__)
        found = solve(problem, model, memory=3e6)
    assert found.status in ("feasible", "unknown")
    assert found.stats.ended == "memory"

    def refused(*_: Any, **__: Any) -> Any:
        raise MemoryError

    module = dynamic if estimator == "marginal" else replay
    looked = module._Search.look

    def look_then_refuse(self: Any, goal: Any, *some: Any) -> None:
        looked(self, goal, *some)
        patch.setattr(module._Search, "_grown", refused)

    with monkeypatch.context() as patch:
        patch.setattr(search_module, "FRONT_LIMIT", 0)
        patch.setattr(module._Search, "look", look_then_refuse)
        found = search(problem, model)
    assert (found.status, found.stats.ended) == ("feasible", "memory")


def test_limits_are_for_all_of_a_call_together() -> None:
    whole = Limits(seconds=1000.0)
    half = whole.part(0.5)
    assert 490 < half._deadline - time.perf_counter() <= 500
    assert half.part(0.5)._deadline < half._deadline < whole._deadline
    assert whole.within(3.0)._deadline < half._deadline
    assert not whole.over()
    assert Limits(seconds=0.0).over()
    assert Limits().part(0.5)._deadline == math.inf
    with pytest.raises(InvalidValue, match="time is not negative"):
        Limits(seconds=-1.0)
    with pytest.raises(InvalidValue, match="memory is not negative"):
        Limits(memory=-1.0)


def test_without_time_there_is_an_answer_but_nothing_to_compare_it_with() -> None:
    model = random_case(3, blocks=6, tiers=3, estimator="sample").model()
    problem = Problem(minimize=latency, subject_to=(accuracy >= 0.4,), space=SearchSpace(thresholds=(0.0, 0.25)))
    found = solve(problem, model, seconds=0.0)
    assert (found.why, dict(found.baselines), found.stats.ended) == (None, {}, "time")
    assert solve_baselines(problem, model, limits=Limits(seconds=0.0)) == {}
    assert find_fallbacks(solve(problem, model), model, limits=Limits(seconds=0.0)) == ()


def test_a_sweep_says_which_points_it_had_no_time_for() -> None:
    case = random_case(3, blocks=4, tiers=2, estimator="sample")
    problem = Problem(minimize=latency, subject_to=(accuracy >= 0.4,), space=SearchSpace(thresholds=(0.0, 0.25)))
    scenario = Scenario(profile=case.profile, topology=case.topology, problem=problem)
    axes = [Axis(path="links[0].bandwidth", values=(1e4, 1e6, 1e8))]
    found = sweep(scenario, axes, limits=Limits(seconds=0.0))
    assert [(p.status, p.planned, p.solution) for p in found.points] == [("unknown", False, None)] * 3
    assert "no time left" in found.describe_plan(found.points[0])
    whole = sweep(scenario, axes, limits=Limits(seconds=1000.0))
    assert {p.status for p in whole.points} == {"optimal"}
    assert all(point.to_dict()["gap"] == 0.0 for point in whole.points)
    find_crossovers(whole, limits=Limits(seconds=0.0))  # ends at once


def test_the_command_says_what_is_known() -> None:
    arguments = ["plan", PROFILE, "--topology", TOPOLOGY, "--max-latency", "33 ms", "--per-exit-thresholds"]
    arguments += ["--exits-per-tier", "4", "--seconds", "0", "--memory", "1 GB"]
    done = portend(*arguments)
    assert "feasible" in done.stdout
    assert "from the best; ended by the time limit" in " ".join(done.stdout.split())
    answer = json.loads(portend(*arguments, "--json").stdout)
    assert answer["status"] == "feasible"
    assert answer["bound"] >= 0.98 > answer["metrics"]["accuracy"]
    assert answer["gap"] == pytest.approx(answer["bound"] / answer["metrics"]["accuracy"] - 1)
    assert answer["stats"]["ended"] == "time"


def test_a_promise_is_the_same_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The searches for plans to test end by what they have done, not by the clock."""
    monkeypatch.setattr(search_module, "FRONT_LIMIT", 0)
    monkeypatch.setattr(replay, "_BEAM", 1)
    model = random_case(8, blocks=6, tiers=3, estimator="sample").model()
    hints = SearchSpace(thresholds=(0.0, 0.125, 0.25, 0.5), exits_per_tier=2, per_exit_thresholds=True)
    need = 0.8 * float(max(model.profile.exits.accuracies()))
    problem = Problem(minimize=latency, subject_to=(accuracy >= need,), space=hints, robust=0.8)
    quiet = search(problem, model)
    ticks = iter(range(0, 10**9, 10))
    with monkeypatch.context() as patch:  # ten seconds pass between any two looks at the clock
        patch.setattr(limits, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
        busy = search(problem, model)
    assert (quiet.status, quiet.plan, quiet.stats.solver) == (busy.status, busy.plan, busy.stats.solver)
    assert quiet.status == "feasible"


def test_pieces_of_work_are_shared_as_time_is() -> None:
    whole = Limits(pieces=10)
    half, few = whole.part(0.5), whole.within_pieces(3)
    assert [few.over() for _ in range(4)] == [False, False, False, True]
    assert [half.over() for _ in range(2)] == [False, True]
    assert not whole.over()
    assert half.reason == few.reason == "time"
