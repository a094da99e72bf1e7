"""Additive metrics: their costs step by step, and the exact searches for them against the exhaustive one."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from portend.errors import InvalidValue, MismatchError, SearchError
from portend.perfmodel.model import Estimator, PerformanceModel
from portend.planner import search as search_module
from portend.planner.exhaustive import solve_exhaustive
from portend.planner.metrics import Batch, Metric, accuracy, additive, energy, latency, link_bytes, load_metric, price
from portend.planner.problem import FrontPoint, Problem, SearchSpace
from portend.planner.search import search
from portend.planner.solve import solve
from portend.planner.space import PlanSpace
from portend.planner.terms import Additive, Runs
from portend.values.plan import Plan
from problems import Case, Floats, draws, random_case, random_plan, random_space
from test_metrics import hand_model, powered, value
from test_search import the_best, the_front

WEIGHTS = np.array([4.0, 0.5, 2.0, 0.25])


def grams(run: Runs) -> Floats:
    """Costs that depend on everything, and less with the branch than without on tier 0."""
    extra = 2.0**-8 * ((run.tier == 0) & (run.branch == 0)) + 2.0**-10 * run.woken + 2.0**-9 * (run.end - run.start > 1)
    return np.asarray(WEIGHTS[run.tier] * run.seconds + extra)


carbon = additive(
    "carbon",
    "g",
    compute=grams,
    hop=lambda hop: 2.0**-20 * hop.bytes * hop.links + hop.encode_s,
    result=lambda result: 2.0**-9 * (result.tier == 1) + 2.0**-20 * result.bytes,
)
"""An own additive metric."""
hops = additive("hops", hop=lambda hop: hop.links)
toll = additive("toll", hop=lambda hop: hop.links, result=lambda result: 2 * result.links)
"""A hop toward the destination costs less than it saves of the way back."""
METRICS = (energy, price, link_bytes(), carbon, hops, toll, latency)


def a_case(seed: int, estimator: Estimator | None = None) -> tuple[Case, SearchSpace]:
    rng = np.random.default_rng([seed, 19])
    blocks, tiers = int(rng.integers(2, 7)), int(rng.integers(1, 5))
    case = powered(random_case(seed, exact=seed % 2 == 0, blocks=blocks, tiers=tiers, estimator=estimator))
    return case, random_space(rng, blocks, tiers)


# -- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_what_the_costs_add_up_to_is_the_value_of_the_metric(seed: int) -> None:
    """The built-in metrics are computed twice: from all of a plan, and by their costs."""
    case = powered(random_case(seed))
    model, rng = case.model(), np.random.default_rng(seed)
    links = [link_bytes(j) for j in range(len(case.topology.links))]
    for asked in (latency, energy, price, link_bytes(), *links):
        assert asked.additive is not None
        for _ in range(5):
            batch = Batch.of(random_plan(rng, case.profile.num_blocks, len(case.topology.tiers)), model)
            by_costs = Additive.__call__(asked.additive, batch)
            assert by_costs[0] == pytest.approx(float(asked.of(batch)[0]), rel=1e-9, abs=1e-300), asked.name


def test_own_costs_by_hand() -> None:
    """Blocks of 4 s on tier a and 1 s on tier b, 500 bytes at cut 1, a result of 150; a quarter goes on to b."""
    model = hand_model()
    split = Batch.of(Plan(cuts=(1, 2), placement=(0, 1), thresholds=(0.5,)), model)
    for asked, expected in (
        (additive("seconds", compute=lambda run: run.seconds), 4 + 0.25 * 1),
        (additive("woken on b", compute=lambda run: (run.tier == 1) * run.woken * run.start), 0.25 * 1),
        (additive("bytes", hop=lambda hop: hop.bytes, result=lambda result: result.bytes), 0.25 * (500 + 150)),
        (additive("work", hop=lambda hop: hop.encode_s + 10 * hop.decode_s), 0.25 * (0.5 + 2.5)),
        (additive("exits", result=lambda result: np.array([1.0, 2.0, 9.0])[result.tier]), 0.75 * 1 + 0.25 * 2),
        (additive("free"), 0),
        (additive("way", hop=lambda hop: hop.seconds, result=lambda result: result.seconds), 0.25 * (2.425 + 1.9)),
    ):
        assert float(asked.of(split)[0]) == pytest.approx(expected, rel=1e-12), asked.name
    skipped = Batch.of(Plan(cuts=(1, 2), placement=(0, 1), thresholds=(0.0,)), model)
    asks = additive("asked", compute=lambda run: run.branch)
    assert (float(asks.of(split)[0]), float(asks.of(skipped)[0])) == (1.25, 1.0)


def test_bytes_over_all_links() -> None:
    far = Batch.of(Plan(cuts=(2,), placement=(2,)), hand_model())
    assert float(link_bytes().of(far)[0]) == 2 * 2150  # both links carry the input and the result
    assert load_metric("link_bytes") == link_bytes()


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        (
            {"compute": lambda run: -run.seconds},
            r"costs are 0 to 1e\+100, .* gives -4.0 to the compute of block 1 on a",
        ),
        ({"hop": lambda hop: hop.bytes * 1e200}, r"0 to 1e\+100, .* gives 2e\+203 to the hop by float32 at cut 0 from"),
        ({"result": lambda result: result.tier * math.nan}, "gives nan to the result from a"),
        ({"result": lambda result: [1.0, 2.0]}, r"broadcast to \(3,\), but got \(2,\)"),
        ({"compute": lambda run: np.ones((2, 1, 1, 1, 1, 1))}, "the compute costs of the metric 'own' broadcast"),
    ],
)
def test_costs_that_no_search_could_add_up_are_refused(costs: Any, message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        search(Problem(minimize=additive("own", **costs)), hand_model())


def test_a_tier_without_power_is_refused_where_it_may_work() -> None:
    model = hand_model()  # tier c has none
    with pytest.raises(MismatchError, match="tier 'c' has none"):
        search(Problem(minimize=energy), model)
    assert search(Problem(minimize=energy, space=SearchSpace(tiers=(0, 1))), model).status == "optimal"
    to_c = PerformanceModel(model.profile, replace(model.topology, destination=2))
    with pytest.raises(MismatchError, match="tier 'c' has none"):  # it decodes the results
        search(Problem(minimize=energy, space=SearchSpace(tiers=(0, 1))), to_c)


# -- what is asked ---------------------------------------------------------------------------------


def test_the_cost_of_a_problem() -> None:
    for problem, cost in (
        (Problem(minimize=latency), latency),
        (Problem(maximize=accuracy), latency),
        (Problem(maximize=accuracy, subject_to=(accuracy >= 0.5,)), latency),
        (Problem(minimize=energy, subject_to=(accuracy >= 0.5, energy <= 2)), energy),
        (Problem(maximize=accuracy, subject_to=(carbon <= 2,)), carbon),
        (Problem(minimize=price, maximize=accuracy), price),
        (Problem(minimize=energy, subject_to=(latency <= 1,)), None),
        (Problem(minimize=(energy, latency)), None),
        (Problem(maximize=energy), None),
        (Problem(minimize=energy, subject_to=(energy >= 1,)), None),
        (Problem(minimize=accuracy), None),
        (Problem(minimize=energy, subject_to=(accuracy <= 0.5,)), None),
        (Problem(minimize=load_metric("p95")), None),
    ):
        assert problem.cost == cost, str(problem)


# -- the searches ----------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["marginal", "sample"])
@pytest.mark.parametrize("block", draws(12, 5))
def test_the_front_and_every_optimum_equal_the_exhaustive_search_to_the_last_bit(
    block: int, estimator: Estimator
) -> None:
    """480 random instances with any hints, ties (every other case is exact) and each of the metrics;
    200 of them fast."""
    for seed in range(20 * block, 20 * block + 20):
        case, hints = a_case(seed, estimator)
        model, asked = case.model(), METRICS[seed % len(METRICS)]
        space = PlanSpace(hints, model, asked)
        try:
            expected = solve_exhaustive(Problem(minimize=asked, space=hints), model).front
        except SearchError:
            expected = ()
        front = [(float(space.value(f.latency)), float(space.accuracy(f.right)), f.plan) for f in the_front(space)]
        named = [(p.cost(asked), p.accuracy, replace(p.plan, codecs=())) for p in expected]
        assert front == named, (seed, asked.name)
        for found in the_front(space):
            for fastest, need, budget in ((True, found.right, math.inf), (False, -math.inf, found.latency)):
                assert the_best(space, need=need, budget=budget, fastest=fastest) == found, seed


def plain_front(asked: Metric, hints: SearchSpace, model: PerformanceModel) -> list[tuple[float, float]]:
    """Every plan's values, from the metrics' own functions."""
    search_ = solve_exhaustive(
        Problem(minimize=Metric("asked", asked.unit, lambda batch: asked.of(batch)), maximize=accuracy, space=hints),
        model,
    )
    return [(p.values["asked"], p.accuracy) for p in search_.front]


@pytest.mark.parametrize("seed", range(40))
def test_the_front_equals_that_of_the_values_of_every_plan(seed: int) -> None:
    case, hints = a_case(seed + 700)
    hints = replace(hints, codecs=("float32",))  # other codecs are searched by latency there
    model, asked = case.model(), METRICS[seed % len(METRICS)]
    problem = Problem(minimize=asked, maximize=accuracy, space=hints)
    try:
        expected = plain_front(asked, hints, model)
    except SearchError:
        with pytest.raises(SearchError, match="no plan satisfies the hints"):
            search(problem, model)
        return
    found = search(problem, model)
    assert found.stats.solver in ("dynamic programming", "tree search")
    got = [(p.values[asked.name], p.values["accuracy"]) for p in found.front]
    covers(expected, got)
    covers(got, expected)
    for point in found.front:
        estimate = model.estimate(point.plan if point.plan.codecs else model.complete(point.plan, hints.codecs))
        assert point.latency_s == pytest.approx(estimate.mean_s, rel=1e-9)
        values, _ = problem.judge(estimate.plan, model)
        assert values[asked.name] == pytest.approx(point.values[asked.name], rel=1e-8, abs=1e-15)


def covers(front: list[tuple[float, float]], other: list[tuple[float, float]]) -> None:
    """No point of the other front is better, but by rounding."""
    for cost, share in other:
        assert any(c <= cost * (1 + 1e-8) + 1e-15 and a >= share - 1e-9 for c, a in front)


@pytest.mark.parametrize("estimator", ["marginal", "sample"])
@pytest.mark.parametrize("seed", range(24))
def test_answers_equal_those_of_the_exhaustive_search(
    seed: int, estimator: Estimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, hints = a_case(seed + 300, estimator)
    model, asked = case.model(), METRICS[seed % len(METRICS)]
    try:
        front = solve_exhaustive(Problem(minimize=asked, space=hints), model).front
    except SearchError:
        return
    best, least, middle = front[-1].accuracy, front[0].cost(asked), front[len(front) // 2]
    problems = [
        Problem(minimize=asked),
        Problem(minimize=asked, subject_to=(accuracy >= middle.accuracy,)),
        Problem(minimize=asked, subject_to=(accuracy >= (best + 1) / 2,)),
        Problem(minimize=asked, subject_to=(accuracy >= middle.accuracy, asked <= least / 2)),
        Problem(maximize=accuracy, subject_to=(asked <= middle.cost(asked),)),
        Problem(maximize=accuracy, subject_to=(asked <= least / 2,)),
        Problem(minimize=asked, maximize=accuracy, subject_to=(asked <= middle.cost(asked),)),
        Problem(minimize=asked, maximize=accuracy, subject_to=(asked <= least / 2 - 1e-9,)),
    ]
    for problem in (replace(problem, space=hints) for problem in problems):
        expected = solve_exhaustive(problem, model)
        for limit in (search_module.FRONT_LIMIT, 0):  # with the front, and by one search
            monkeypatch.setattr(search_module, "FRONT_LIMIT", limit)
            found = search(problem, model)
            assert (found.status, found.plan) == (expected.status, expected.plan), (str(problem), limit)
            assert dict(found.values) == dict(expected.values)
            several = len(problem.objectives) > 1
            assert found.front == (expected.front if limit or several else ())
            assert not several or all(p.cost(asked) <= problem.max_cost * (1 + 1e-9) for p in found.front)


def test_more_plans_than_anyone_could_enumerate() -> None:
    case = powered(random_case(7, blocks=30, tiers=4, estimator="marginal"))
    wide = SearchSpace(thresholds=(0.0, 0.25, 0.5), exits_per_tier=3, per_exit_thresholds=True)
    narrow = SearchSpace(thresholds=(0.0, 0.25, 0.5))
    for asked in (energy, carbon, link_bytes(0)):
        problem = Problem(minimize=asked, subject_to=(accuracy >= 0.4,), space=wide)
        solution = search(problem, case.model())
        assert solution.stats.plans > 1e12
        assert solution.status == "optimal"
        assert solution.cost <= search(replace(problem, space=narrow), case.model()).cost * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_each_hop_takes_the_codec_that_costs_least(seed: int) -> None:
    """No plan with any codecs costs less than the answer, at its accuracy."""
    case = powered(random_case(seed, blocks=4, tiers=3))
    model, asked = case.model(), METRICS[seed % 4]
    space = SearchSpace(thresholds=(0.0, 0.5))
    solution = search(Problem(minimize=asked, subject_to=(accuracy >= 0.4,), space=space), model)
    for codec in model.tables.codecs:
        try:
            other = search(replace(solution.problem, space=replace(space, codecs=(codec,))), model)
        except SearchError:
            continue
        assert other.status != "optimal" or other.cost >= solution.cost * (1 - 1e-9)
    assert asked.additive is not None
    costs = asked.additive.terms(model).hop
    starts, senders = (0, *solution.plan.cuts), (case.topology.source, *solution.plan.placement)
    for hop in zip(starts, senders, solution.plan.placement, solution.plan.codecs, strict=False):
        start, sender, tier, name = hop
        if name is not None:
            offered = np.isfinite(model.tables.hop_parts_s[:, start, sender, tier].sum(axis=-1))
            chosen = model.tables.codecs.index(name)
            assert costs[chosen, start, sender, tier] == costs[offered, start, sender, tier].min()


# -- what the answer says --------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["marginal", "sample"])
@pytest.mark.parametrize("asked", [energy, carbon, link_bytes(0)])
def test_an_answer_explains_itself_in_the_units_of_its_cost(asked: Metric, estimator: Estimator) -> None:
    case = powered(random_case(11, blocks=5, tiers=3, estimator=estimator))
    model, space = case.model(), SearchSpace(thresholds=(0.0, 0.25, 0.5))
    front = search(Problem(minimize=asked, space=space), model).front
    middle: FrontPoint = front[len(front) // 2]
    for problem in (
        Problem(minimize=asked, subject_to=(accuracy >= middle.accuracy,), space=space),
        Problem(maximize=accuracy, subject_to=(asked <= middle.cost(asked),), space=space),
        Problem(minimize=asked, maximize=accuracy, subject_to=(accuracy >= middle.accuracy,), space=space),
    ):
        solution = solve(problem, model)
        assert solution.plan.cuts == middle.plan.cuts
        assert solution.why is not None
        total = math.fsum(x for _, parts in solution.why.steps for x in parts.values())
        assert total == pytest.approx(solution.cost, rel=1e-9, abs=1e-12)
        assert solution.metrics[asked.name] == solution.cost
        for other in solution.why.alternatives:
            assert other.dearer == pytest.approx(value(asked, other.plan, model) - solution.cost, rel=1e-6, abs=1e-6)
        assert solution.why.binding == (problem.subject_to if len(front) > 1 and middle != front[0] else ())
        for baseline in solution.baselines.values():
            assert baseline.metrics[asked.name] >= 0
            if baseline.status == "optimal" and problem.minimize is not None and len(problem.objectives) == 1:
                assert baseline.cost >= solution.cost * (1 - 1e-9) or baseline.plan.placement.count(0) > 1
        answer = solution.to_dict()
        assert f"Where the {asked.name} goes" in str(solution)
        assert answer["why"]["metric"] == asked.name
        assert answer["metrics"][asked.name] == solution.cost
