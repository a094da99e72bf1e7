"""Limits of searches: whatever ends a search, what it says is true, and it says what it does not know."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from commands import ROOT, portend
from portend.analysis import whatif
from portend.analysis.whatif import Axis, Scenario, find_crossovers, sweep
from portend.errors import InvalidValue, SearchError
from portend.perfmodel.model import Estimator, PerformanceModel
from portend.planner import dynamic, exhaustive, limits, promise, replay
from portend.planner import search as search_module
from portend.planner import solve as solve_module
from portend.planner.baselines import judged, solve_baselines
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
    p90 = latency_quantile(0.9)
    slow = solve_exhaustive(Problem(minimize=latency, space=space), model).estimate.mean_s * 3
    asked = [
        Problem(minimize=latency, subject_to=(accuracy >= middle,), space=space),
        Problem(minimize=latency, subject_to=(accuracy >= middle, p90 <= slow), space=space),
        Problem(maximize=accuracy, subject_to=(p90 <= slow,), space=space),
        Problem(minimize=p90, subject_to=(accuracy >= middle,), space=space),
    ]
    for problem in asked:
        expected = solve_exhaustive(problem, model)
        for steps in (0, 1, 5):
            found = solve_exhaustive(problem, model, limits=Limits(pieces=steps))
            true(found, expected, model)
            assert not found.front_complete
            assert found.status in ("feasible", "unknown")
            assert (found.bound is None) == (problem.minimize == p90)
            assert found.status == "unknown" or ("no bound is known" in str(found)) == (found.bound is None)
    monkeypatch.setattr(search_module, "METRIC_LIMIT", 0)
    for constrained in asked[1:3]:
        found = search(constrained, model, limits=Limits(pieces=3))
        true(found, solve_exhaustive(constrained, model), model)
        assert found.bound is not None
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


def test_the_searches_by_metrics_tell_how_far_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_TELL_S", 0.0)
    model = random_case(11, blocks=5, tiers=3, estimator="sample").model()
    p90, space = latency_quantile(0.9), SearchSpace(thresholds=(0.0, 0.25))
    for goal, most in ((p90, 0), (p90, 10**9), (latency, 0), (latency, 10**9)):
        monkeypatch.setattr(search_module, "METRIC_LIMIT", most)
        told: list[Progress] = []
        problem = Problem(minimize=goal, subject_to=(p90 <= 1e9,), space=space)
        found = search(problem, model, limits=Limits(progress=told.append))
        values = [one.value for one in told if one.value is not None]
        assert values == sorted(values, reverse=True), "the best so far gets better only"
        assert values[-1] == pytest.approx(found.metrics[goal.name])
        generations = [one.step for one in told]
        assert most != 0 or generations[-1] == f"generation {len(set(generations)) - 1}" != "generation 0"
        assert most or all((one.bound is None) == (goal == p90) for one in told)


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


# -- in time: no wall clock is judged, but what is done between two questions to the limits ----------


class Meter:
    """Counts what is done between two questions to any limits: calls of functions, and bytes taken."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.bytes: list[int] = []
        self._calls = 0

    @contextmanager
    def running(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        asked = Limits.over

        def over(these: Limits) -> bool:
            self._note()
            return asked(these)

        def count(*_: Any) -> None:
            self._calls += 1

        with monkeypatch.context() as patch:
            patch.setattr(Limits, "over", over)
            patch.setattr(limits, "time", SimpleNamespace(perf_counter=lambda: 0.05 * len(self.calls)))
            tracemalloc.start()
            sys.setprofile(count)
            try:
                yield
            finally:
                sys.setprofile(None)
                self._note()
                tracemalloc.stop()

    def _note(self) -> None:
        now, most = tracemalloc.get_traced_memory()
        self.calls.append(self._calls)
        self.bytes.append(most - now)
        tracemalloc.reset_peak()
        self._calls = 0


def a_large_one(estimator: Estimator) -> PerformanceModel:
    case = random_case(4, blocks=14, tiers=5, estimator="sample")
    return PerformanceModel(case.profile, case.topology, estimator=estimator)


OWN = SearchSpace(
    thresholds=tuple(i / 40 for i in range(40)), exits_per_tier=2, per_exit_thresholds=True, max_partitions=5
)
FEW = replace(OWN, thresholds=(0.0, 0.25, 0.5), max_partitions=4)
P90 = latency_quantile(0.9)
ASKED = Problem(minimize=latency, subject_to=(accuracy >= 0.5,), space=OWN)
QUANTILE = Problem(minimize=P90, space=OWN)


def a_sweep(model: PerformanceModel, given: Limits) -> None:
    scenario = Scenario(profile=model.profile, topology=model.topology, problem=ASKED)
    sweep(scenario, [Axis(path="links[0].bandwidth", values=(1e4, 1e6, 1e8))], limits=given)


SEARCHES: dict[str, Any] = {
    "marginal": lambda model, given: search(ASKED, model, limits=given),
    "sample": lambda model, given: search(ASKED, model, limits=given),
    "exhaustive": lambda model, given: solve_exhaustive(replace(ASKED, space=FEW), model, limits=given),
    "metrics": lambda model, given: solve_exhaustive(replace(QUANTILE, space=FEW), model, limits=given),
    "nsga-ii": lambda model, given: search(QUANTILE, model, limits=given),
    "promise": lambda model, given: search(replace(ASKED, robust=0.9), model, limits=given),
    "baselines": lambda model, given: solve_baselines(ASKED, model, limits=given),
    "what-if": a_sweep,
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_stops_in_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """These 0.4 s are 8 questions. Soon after them it ends; between two it makes few calls and takes few bytes."""
    model, meter = a_large_one("marginal" if name == "marginal" else "sample"), Meter()
    with meter.running(monkeypatch):
        SEARCHES[name](model, Limits(seconds=0.4))
    print(name, len(meter.calls), max(meter.calls), max(meter.bytes) / 1e6)
    assert 8 < len(meter.calls) <= 8 + 12
    assert max(meter.calls) <= 50_000
    assert max(meter.bytes) <= 30e6


def test_time_that_points_do_not_use_goes_to_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "time", SimpleNamespace(perf_counter=lambda: 100.0))  # no point takes any

    def left(_: int, these: Limits) -> float:
        return these._deadline - 100.0

    how: Any = {"on_progress": None, "limits": Limits(seconds=64.0)}
    one = whatif._each(left, range(64), n_jobs=None, backend=None, **how)
    two = whatif._each(left, range(64), n_jobs=2, backend="threading", **how)
    assert one == sorted(one)
    assert (one[0], one[-1]) == (1.0, 64.0)
    assert two[0] <= 2.0
    assert two[-1] >= 64.0 / 2


def test_points_that_use_all_their_time_end_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks as joblib takes them: for all workers at once, when the first of them has none left."""
    now = [0.0]
    monkeypatch.setattr(limits, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    for workers, points in ((2, 64), (3, 10), (4, 4), (2, 1)):
        now[0] = 0.0
        chunks, free = whatif._chunks(range(points), workers, Limits(seconds=60.0)), [0.0] * workers
        done: list[int] = []
        waiting: list[Any] = []
        while True:
            now[0] = min(free)
            waiting = waiting or list(islice(chunks, workers))
            if not waiting:
                break
            some, given = waiting.pop(0)
            done += some
            free[free.index(min(free))] += given["seconds"]
        assert done == list(range(points))
        assert 0.6 * 60 <= max(free) <= 60 * (1 + 1e-9)


def test_what_is_said_of_new_samples_is_the_same_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_case(8, blocks=6, tiers=3, estimator="sample").model()
    need = 0.8 * float(max(model.profile.exits.accuracies()))
    problem = Problem(minimize=latency, subject_to=(accuracy >= need,), space=SearchSpace(thresholds=(0.0, 0.25)))
    quiet = solve(problem, model, baselines=False)
    ticks = iter(range(0, 10**9, 10))
    clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    with monkeypatch.context() as patch:  # ten seconds pass between any two looks at the clock
        patch.setattr(limits, "time", clock)
        patch.setattr(search_module, "time", clock)
        busy = solve(problem, model, baselines=False)
    assert quiet.new_samples is not None
    assert busy.new_samples == quiet.new_samples
    hard = Problem(minimize=latency, subject_to=(accuracy >= need,), space=OWN)
    monkeypatch.setattr(solve_module, "NEW_SAMPLES", 0)
    assert solve(hard, model, baselines=False, new_samples=None).new_samples is None


def test_choices_on_halves_of_the_samples_end_by_what_they_have_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    monkeypatch.setattr(search_module, "FRONT_LIMIT", 0)
    monkeypatch.setattr(replay, "_FEW", 0)
    model = random_case(11, blocks=7, tiers=3, estimator="sample").model()
    hints = SearchSpace(thresholds=(0.0, 0.125, 0.25, 0.5), exits_per_tier=3, per_exit_thresholds=True)
    found = search(Problem(minimize=latency, subject_to=(accuracy >= 0.4,), space=hints), model)
    taken = []
    for each in (1, 1000):
        monkeypatch.setattr(promise, "_EACH", each)
        these = Limits()
        assert judged(found, model, these) is not None
        taken.append(these.pieces)
    assert taken[0] < taken[1]
