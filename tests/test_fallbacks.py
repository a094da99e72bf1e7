"""Plans for when a tier is away."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from commands import ROOT, portend
from portend.io.forms import load_topology
from portend.io.storage import load_profile
from portend.perfmodel.model import PerformanceModel
from portend.planner.fallbacks import find_fallbacks
from portend.planner.problem import Problem, SearchSpace, accuracy, latency
from portend.planner.solve import solve
from portend.values.topology import Topology

PROFILE, TOPOLOGY = ROOT / "profiles/resnet20-digits.zip", ROOT / "configs/topologies/three_tier.yaml"


def slow_edge() -> Topology:
    """A topology on which the best plan uses all three tiers."""
    topology = load_topology(TOPOLOGY).with_tier(0, slowdown=400.0).with_tier(1, slowdown=60.0)
    return replace(topology, links=tuple(replace(link, propagation_delay_s=0.001) for link in topology.links))


@pytest.fixture(scope="module")
def model() -> PerformanceModel:
    return PerformanceModel(load_profile(PROFILE), slow_edge())


def problem(**hints: object) -> Problem:
    space = SearchSpace(block_tiers={1: (0,)}, **hints)  # type: ignore[arg-type]
    return Problem(minimize=latency, subject_to=(accuracy >= 0.96,), space=space)


def test_a_fallback_is_the_best_plan_without_its_tiers(model: PerformanceModel) -> None:
    wanted = solve(problem(), model, baselines=False)
    away = set(wanted.plan.placement) - {0}
    assert away, "the wanted plan uses more than the edge"
    found = find_fallbacks(wanted, model)
    assert {tier for other in found for tier in other.without} >= away
    for other in found:
        tiers = tuple(tier for tier in range(3) if tier not in other.without)
        best = solve(problem(tiers=tiers), model, baselines=False)
        assert other.solution.estimate.mean_s == pytest.approx(best.estimate.mean_s)
        assert not set(other.solution.plan.placement) & set(other.without)
    assert set(found[-1].solution.plan.placement) == {0} or len(found) == 1
    assert len({other.solution.plan for other in found} | {wanted.plan}) == len(found) + 1


def test_a_plan_on_the_source_alone_needs_no_fallback(model: PerformanceModel) -> None:
    wanted = solve(problem(tiers=(0,)), model, baselines=False)
    assert find_fallbacks(wanted, model) == ()


def test_a_tier_that_the_hints_need_has_no_fallback(model: PerformanceModel) -> None:
    bound = replace(problem(), space=SearchSpace(block_tiers={1: (2,)}))
    found = find_fallbacks(solve(bound, model, baselines=False), model)
    assert all(2 not in other.without for other in found)


def test_the_command_writes_fallbacks_for_deploy(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    done = portend(
        "plan", PROFILE, "--topology", TOPOLOGY, "--tiers", "base,cloud", "--min-accuracy", "0.96", "--fallbacks",
        "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (fallback,) = json.loads(out.read_text())["fallbacks"]
    assert fallback["without"] == ["base"]
    assert set(fallback["plan"]["placement"]) == {2}
    assert "without base: " in done.stdout
