"""Own costs of any size, and forbidden ones, against plans counted one by one in fractions."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import portend as pt
from portend.errors import InvalidValue, SearchError
from portend.perfmodel.model import Estimator, PerformanceModel
from portend.planner import search as search_module
from portend.planner.exhaustive import solve_exhaustive
from portend.planner.metrics import Batch, Metric, accuracy, additive, latency
from portend.planner.problem import Problem, SearchSpace
from portend.planner.search import search
from portend.values.exits import SampleExits
from portend.values.plan import Plan
from problems import Case, draws, random_case, random_space
from reference import enumerate_plans

ROOT = Path(__file__).resolve().parents[1]
CLOSE = 1e-7

Value = Fraction | None
"""What a plan costs; None: a step of it is forbidden."""


class Costs:
    """Costs of every step: small whole numbers (so that there are ties), tiny, huge and forbidden ones."""

    def __init__(self, rng: np.random.Generator, case: Case) -> None:
        tiers, size = len(case.topology.tiers), case.profile.num_blocks + 1
        codecs = len(case.model().tables.codecs)
        kinds = [
            (rng.integers(0, 8, size=1000).astype(float), 1.0),
            (np.array([1e-7, 3e-7]), float(rng.choice([0, 0.3]))),
            (10.0 ** rng.integers(5, 15, size=4), float(rng.choice([0, 0.2, 0.6]))),
            (np.array([1e60]), float(rng.choice([0, 0.1]))),
            (np.array([math.inf]), float(rng.choice([0, 0.15]))),
        ]
        share = np.array([weight for _, weight in kinds]) / sum(weight for _, weight in kinds)

        def drawn(*shape: int) -> Any:
            kind = rng.choice(len(kinds), size=shape, p=share)
            picks = [rng.choice(values, size=shape) for values, _ in kinds]
            return np.choose(kind, picks)

        self.run = drawn(2, 2, tiers, size, size)
        self.hop = drawn(codecs, size, tiers, tiers)
        self.result = drawn(tiers)
        self.case, self.model = case, case.model()

    def metric(self) -> Metric:
        return additive(
            "own",
            compute=lambda run: self.run[run.woken, run.branch, run.tier, run.start, run.end],
            hop=lambda hop: self.hop[hop.codec, hop.cut, hop.sender, hop.receiver],
            result=lambda result: self.result[result.tier],
        )

    def of(self, plan: Plan, reach: list[Fraction], codecs: tuple[str, ...] | None) -> Value:
        """What a plan costs on the codecs that cost least; ``reach`` [L+1]: shares that come to each partition."""
        total, sender, start = Fraction(0), self.case.topology.source, 0
        for k, (end, tier) in enumerate(zip(plan.cuts, plan.placement, strict=True)):
            leaves = k == len(plan) - 1 or plan.thresholds[k] > 0
            costs = [self.run[int(k == 0 or sender != tier), int(leaves), tier, start, end]]
            if sender != tier or (k == 0 and self.case.topology.ingest == "message"):
                costs.append(self.cheapest(start, sender, tier, codecs))
            steps = [(reach[k], costs)]
            if leaves:
                steps.append((reach[k] - reach[k + 1], [self.result[tier]]))
            for share, each in steps:
                if any(math.isinf(cost) for cost in each):
                    return None
                total += sum((share * Fraction(float(cost)) for cost in each), Fraction(0))
            sender, start = tier, end
        return total

    def cheapest(self, cut: int, sender: int, receiver: int, codecs: tuple[str, ...] | None) -> float:
        tables = self.model.tables
        offered = [
            k
            for k, name in enumerate(tables.codecs)
            if (codecs is None or name in codecs) and np.isfinite(tables.hop_parts_s[k, cut, sender, receiver]).all()
        ]
        return min((float(self.hop[k, cut, sender, receiver]) for k in offered), default=math.inf)


def outcomes(case: Case, plan: Plan) -> tuple[list[Fraction], Fraction]:
    """Shares that come to each partition, and the accuracy, counted in fractions."""
    exits = case.profile.exits
    assert isinstance(exits, SampleExits)
    size, right = exits.samples, Fraction(0)
    reach = [Fraction(1)]
    staying = np.ones(size, dtype=bool)
    for k, cut in enumerate(plan.cuts):
        asked = plan.thresholds[k] if k < len(plan) - 1 else math.inf
        if case.estimator == "sample":
            leaves = staying & (exits.score[:, cut - 1] < asked if k < len(plan) - 1 else True)
            staying = staying & ~leaves if asked > 0 else staying
            after = Fraction(int(staying.sum()), size) if k < len(plan) - 1 else Fraction(0)
            right += Fraction(int((leaves & exits.correct[:, cut - 1]).sum()), size) if asked > 0 else 0
        else:
            left = int((exits.score[:, cut - 1] < asked).sum()) if asked > 0 else 0
            after = min(reach[-1], Fraction(size - left, size)) if k < len(plan) - 1 else Fraction(0)
            right += (reach[-1] - after) * Fraction(int(exits.correct[:, cut - 1].sum()), size)
        reach.append(after)
    return reach, right


def every_plan(costs: Costs, hints: SearchSpace) -> list[tuple[Fraction, Fraction]]:
    """Cost and accuracy of every plan that nothing forbids."""
    found = []
    case = costs.case
    for _, thresholds, cuts, placement in enumerate_plans(hints, case.profile.num_blocks, len(case.topology.tiers)):
        starts = (0, *cuts)
        blocks = ((b, tier) for k, tier in enumerate(placement) for b in range(starts[k] + 1, cuts[k] + 1))
        if any(tier not in hints.block_tiers.get(b, (tier,)) for b, tier in blocks):
            continue
        plan = Plan(cuts=cuts, placement=placement, thresholds=thresholds)
        reach, right = outcomes(case, plan)
        cost = costs.of(plan, reach, hints.codecs)
        if cost is not None:
            found.append((cost, right))
    return found


def a_case(seed: int, estimator: Estimator) -> tuple[Costs, SearchSpace, list[tuple[Fraction, Fraction]]]:
    rng = np.random.default_rng([seed, 22])
    blocks, tiers = int(rng.integers(2, 5)), int(rng.integers(2, 4))
    case = random_case(seed, blocks=blocks, tiers=tiers, estimator=estimator)
    assert isinstance(case.profile.exits, SampleExits) or estimator == "marginal"
    if not isinstance(case.profile.exits, SampleExits):
        case = replace(random_case(seed, blocks=blocks, tiers=tiers, estimator="sample"), estimator="marginal")
    costs, hints = Costs(rng, case), random_space(rng, blocks, tiers)
    return costs, hints, every_plan(costs, hints)


def near(cost: float, exact: Fraction) -> bool:
    return abs(Fraction(cost) - exact) <= abs(exact) * Fraction(CLOSE)


@pytest.mark.parametrize("estimator", ["marginal", "sample"])
@pytest.mark.parametrize("block", draws(20, 2))
def test_costs_of_any_size_are_searched_exactly(
    block: int, estimator: Estimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole front, and each of its points by one search, where costs differ by 70 orders of magnitude."""
    for seed in range(10 * block, 10 * block + 10):
        costs, hints, plans = a_case(seed, estimator)
        model, asked = costs.model, costs.metric()
        if not plans:
            with pytest.raises(SearchError):
                search(Problem(minimize=asked, space=hints), model)
            continue
        exact: list[tuple[Fraction, Fraction]] = []
        for cost, right in sorted(plans, key=lambda one: (one[0], -one[1])):
            if not exact or right > exact[-1][1]:
                exact.append((cost, right))
        for solver in (search, solve_exhaustive):
            front = solver(Problem(minimize=asked, space=hints), model).front
            for cost, right in exact:  # each exact point is there, up to plans as good but for rounding
                assert any(
                    p.accuracy >= float(right) - 1e-9 and p.cost(asked) <= float(cost) * (1 + CLOSE) for p in front
                ), (seed, solver.__name__, float(cost), float(right))
            for point in front:  # and each point is a plan that costs what is said
                reach, right = outcomes(costs.case, point.plan)
                true = costs.of(point.plan, reach, hints.codecs)
                assert true is not None, (seed, point.plan)
                assert near(point.cost(asked), true), (seed, point.cost(asked), float(true))
                assert point.accuracy == pytest.approx(float(right), abs=1e-9)
                assert float(asked.of(Batch.of(point.plan, model))[0]) == pytest.approx(float(true), rel=1e-9)
        monkeypatch.setattr(search_module, "FRONT_LIMIT", 0)
        for cost, right in exact:
            bound = float(cost) * (1 + 1e-9)
            least = search(Problem(minimize=asked, subject_to=(accuracy >= float(right),), space=hints), model)
            most = search(Problem(maximize=accuracy, subject_to=(asked <= bound,), space=hints), model)
            assert (least.status, most.status) == ("optimal", "optimal"), seed
            assert near(least.cost, cost), (seed, least.cost, float(cost))
            assert most.estimate.accuracy >= float(right) - 1e-9, seed
            assert most.cost <= bound * (1 + CLOSE)
        monkeypatch.undo()


def digits(estimator: Estimator = "marginal") -> PerformanceModel:
    profile = pt.load_profile(ROOT / "profiles/resnet20-digits.zip")
    topology = pt.load_topology(ROOT / "configs/topologies/three_tier.yaml")
    return PerformanceModel(profile, topology, estimator=estimator)


def with_penalty(penalty: float) -> Metric:
    """Latency, and more on the cloud."""
    return additive(
        "seconds",
        "s",
        compute=lambda run: run.seconds + np.where(run.tier == 2, penalty, 0.0),
        hop=lambda hop: hop.seconds,
        result=lambda result: result.seconds,
    )


@pytest.mark.parametrize("estimator", ["marginal", "sample"])
@pytest.mark.parametrize("penalty", [1e3, 1e9, 1e12, 1e99, math.inf])
def test_a_high_cost_on_one_tier_leaves_the_others_their_precision(penalty: float, estimator: Estimator) -> None:
    """Whatever keeps plans off a tier, the answer is that without the tier."""
    model, bound = digits(estimator), accuracy >= 0.97
    without = search(Problem(minimize=latency, subject_to=(bound,), space=SearchSpace(tiers=(0, 1))), model)
    found = search(Problem(minimize=with_penalty(penalty), subject_to=(bound,)), model)
    assert (found.status, found.plan) == ("optimal", without.plan)
    assert found.cost == pytest.approx(without.estimate.mean_s, rel=1e-9)


@pytest.mark.parametrize("bandwidth", [1e3, 1e-6, 1e-60])
def test_a_dead_link_leaves_the_others_their_precision(bandwidth: float) -> None:
    model = digits("sample")
    dead = PerformanceModel(model.profile, model.topology.with_link(1, bandwidth_bps=bandwidth))
    space = SearchSpace(exits_per_tier=2)
    problem = Problem(minimize=latency, subject_to=(accuracy >= 0.97,), space=replace(space, tiers=(0, 1)))
    expected = search(problem, model)
    found = search(Problem(minimize=latency, subject_to=(accuracy >= 0.97,), space=space), dead)
    assert (found.plan, found.estimate.mean_s) == (expected.plan, expected.estimate.mean_s)
    near_most = search(Problem(maximize=accuracy, subject_to=(latency <= 1.0,), space=space), dead)
    assert near_most.estimate.mean_s <= 1.0
    assert near_most.estimate.accuracy >= found.estimate.accuracy


@pytest.mark.parametrize("seed", [41, 54, 365, 393])
def test_steps_that_save_more_of_the_way_back_than_they_cost(seed: int) -> None:
    """What is forbidden stays forbidden where a hop toward the destination lowers the sum."""
    case = random_case(seed, blocks=3, tiers=2, estimator="sample")
    toll = additive("toll", hop=lambda hop: hop.links, result=lambda result: 2.0 * result.links)
    space = SearchSpace(thresholds=(0.5,), block_tiers={2: (0,), 3: (0,)})
    problem = Problem(minimize=toll, space=space)
    assert search(problem, case.model()).front == solve_exhaustive(problem, case.model()).front


@pytest.mark.parametrize("cost", [-1.0, math.nan, -math.inf])
def test_negative_costs_and_those_that_are_no_number_are_refused(cost: float) -> None:
    asked = additive("own", result=lambda result: np.where(result.tier == 1, cost, 0.0))
    with pytest.raises(InvalidValue, match=r"costs are 0 to 1e\+100, or inf where a step is forbidden"):
        search(Problem(minimize=asked), digits())


def test_what_is_forbidden_is_no_answer_of_a_search_through_every_plan() -> None:
    """Two costs at once are searched plan by plan."""
    model = digits()
    forbidden = additive("forbidden", compute=lambda run: np.where(run.tier == 0, math.inf, 0.0))
    problem = Problem(minimize=latency, subject_to=(forbidden <= math.inf,), space=SearchSpace(max_partitions=2))
    found = search(replace(problem, minimize=(forbidden, latency)), model)
    assert 0 not in found.plan.placement
    assert all(0 not in point.plan.placement for point in found.front)
    everywhere = additive("forbidden", compute=lambda run: np.full(run.seconds.shape, math.inf))
    with pytest.raises(SearchError, match="no plan"):
        search(Problem(minimize=everywhere, space=problem.space), model)
