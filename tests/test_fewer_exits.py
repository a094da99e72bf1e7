"""Cuts without an exit branch: scored, planned, estimated, run and stored as such."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from portend import save
from portend.data.sources import load_dataset
from portend.errors import InvalidValue, MismatchError
from portend.io.storage import load_profile
from portend.networks.backbone import Backbone
from portend.networks.evaluators import TorchEvaluator
from portend.networks.scoring import score_samples
from portend.perfmodel.model import PerformanceModel
from portend.planner.exhaustive import solve_exhaustive
from portend.planner.problem import Problem, SearchSpace, accuracy, latency
from portend.report.figures import branch_rows
from portend.runtime.codecs import FLOAT32
from portend.runtime.deployed import Deployed
from portend.runtime.torch_executor import TorchExecutor
from portend.values.backbone import BackboneSpec
from portend.values.plan import Plan
from problems import random_case, some_exits, without_branches
from reference import Reference, brute_force, pareto

FAST = Problem(minimize=latency, subject_to=(accuracy >= 0.0,))


def branch(classes: int = 10) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))


def three_blocks(*, exits: tuple[int, ...] = (2, 3)) -> Backbone:
    torch.manual_seed(0)
    return Backbone(
        name="three",
        blocks={name: nn.Conv2d(1, 1, 3, padding=1) for name in "abc"},
        branches=[branch() if cut in exits else None for cut in (1, 2, 3)],
        num_classes=10,
        input_shape=(1, 8, 8),
        architecture={},
    ).eval()


def test_the_last_block_has_a_branch() -> None:
    with pytest.raises(InvalidValue, match="the last block has an exit branch"):
        three_blocks(exits=(1, 2))


@pytest.mark.parametrize("exits", [(), (1, 2), (2, 1, 3), (0, 3), (3, 4)])
def test_a_spec_refuses_cuts_that_cannot_be_exits(exits: tuple[int, ...]) -> None:
    spec = three_blocks().spec()
    assert spec.exits == spec.exit_cuts == (2, 3)
    with pytest.raises(InvalidValue, match="cuts with an exit branch increase within 1–3 and end with 3"):
        replace(spec, exits=exits)


def test_no_exits_named_means_all() -> None:
    spec = BackboneSpec(name="x", block_names=("a", "b"), num_classes=2, cut_shapes=((1,), (1,), (1,)))
    assert spec.exit_cuts == (1, 2)


def test_scores_where_there_is_no_branch_are_no_numbers() -> None:
    digits = load_dataset("digits:size=8")
    backbone = three_blocks()
    found, correct = score_samples(TorchEvaluator(backbone), digits, np.arange(20))
    assert all(np.isnan(scores[:, 0]).all() for scores in found.values())
    assert not correct[:, 0].any()
    full = three_blocks(exits=(1, 2, 3))
    full.load_state_dict(backbone.state_dict(), strict=False)
    expected, right = score_samples(TorchEvaluator(full), digits, np.arange(20))
    for name, scores in found.items():
        assert np.array_equal(scores[:, 1:], expected[name][:, 1:])
    assert np.array_equal(correct[:, 1:], right[:, 1:])


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("estimator", ["sample", "marginal"])
def test_plans_end_and_exit_only_where_there_is_a_branch(seed: int, estimator: str) -> None:
    rng = np.random.default_rng(seed)
    whole = random_case(seed, exact=True, blocks=int(rng.integers(2, 6)), estimator="sample")
    if estimator == "marginal":
        whole = replace(whole, estimator="marginal")
    exits = some_exits(rng, whole.profile.num_blocks)
    space = SearchSpace(
        thresholds=(0.0, 0.4, 0.7),
        per_exit_thresholds=bool(rng.random() < 0.5),
        exits_per_tier=int(rng.integers(1, 3)),
    )
    plain = Reference(whole.profile, whole.topology, whole.estimator)
    allowed = brute_force(plain, replace(space, exits=exits))
    expected = pareto([plan for plan in allowed if plan.cuts[-1] in exits])
    found = solve_exhaustive(replace(FAST, space=space), without_branches(whole, exits).model()).front
    assert [(p.latency_s, p.accuracy, p.plan.cuts, p.plan.placement, p.plan.thresholds) for p in found] == [
        (c.latency, c.accuracy, c.cuts, c.placement, c.thresholds) for c in expected
    ]


def test_a_plan_that_asks_an_exit_without_a_branch_is_refused() -> None:
    case = without_branches(random_case(3, blocks=4, tiers=2, estimator="sample"), (2, 4))
    model = PerformanceModel(case.profile, case.topology)
    model.estimate(Plan(cuts=(1, 2, 4), placement=(0, 0, 1), thresholds=(0.0, 0.5)))
    for plan, cut in (
        (Plan(cuts=(1, 4), placement=(0, 1), thresholds=(0.5,)), 1),
        (Plan(cuts=(2, 3), placement=(0, 1), thresholds=(0.5,)), 3),
    ):
        with pytest.raises(MismatchError, match=rf"exit branches at the cuts 2, 4, but .* asks one at \[{cut}\]"):
            model.estimate(plan)
    with pytest.raises(InvalidValue, match=r"here 2, 4, but got \[3\]"):
        solve_exhaustive(replace(FAST, space=SearchSpace(exits=(2, 3))), model)


def test_an_agent_refuses_such_a_plan_and_runs_the_others() -> None:
    executor = TorchExecutor(three_blocks())

    def deployed(*cuts: int, threshold: float) -> Deployed:
        plan = Plan(cuts=cuts, placement=(0, 0), thresholds=(threshold,), codecs=("float32", None))
        return Deployed(plan.to_dict(), 0, executor, lambda _name, _cut: FLOAT32)

    outcome = deployed(1, 3, threshold=0.0).partitions[0](np.ones((1, 8, 8), dtype=np.float32))
    assert np.isnan(outcome.score)
    assert outcome.features.shape == (1, 8, 8)
    with pytest.raises(InvalidValue, match=r"asks exits at the cuts \[1\], but three has exit branches at 2, 3"):
        deployed(1, 3, threshold=0.5)


def test_profiles_keep_which_cuts_have_a_branch(tmp_path: Path) -> None:
    case = without_branches(random_case(5, blocks=4, estimator="sample"), (1, 4))
    save(case.profile, tmp_path / "profile.zip")
    assert load_profile(tmp_path / "profile.zip").backbone.exits == (1, 4)
    old = Path(__file__).parents[1] / "profiles" / "resnet20-digits.zip"
    assert load_profile(old).backbone.exit_cuts == tuple(range(1, 11))


def test_figures_show_the_branches_there_are() -> None:
    case = without_branches(random_case(5, blocks=4, estimator="sample"), (2, 4))
    rows = branch_rows(case.profile, Plan(cuts=(2, 4), placement=(0, 1), thresholds=(0.5,)))
    assert [row["branch"] for row in rows] == [2, 4]
