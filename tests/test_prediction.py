"""Compute times of partitions that were not measured: how near they are, and what is said of them."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from portend.analysis.whatif import Scenario, find_field
from portend.errors import InvalidValue
from portend.io.storage import load, load_profile, save
from portend.perfmodel.model import PerformanceModel
from portend.planner.problem import Problem, SearchSpace, accuracy, latency
from portend.planner.solve import solve
from portend.profiling.prediction import checked, measuring_order
from portend.values.backbone import BackboneSpec
from portend.values.compute_fit import ComputeFit, fit_compute
from portend.values.device_profile import DeviceProfile, Prediction
from problems import codec, device, random_case

Floats = NDArray[np.float64]
DATA = Path(os.environ.get("PORTEND_DATA", "data")) / "portend_aws"
SHAPES = {20: ((3, 32, 32), *((16, 32, 32),) * 7, *((32, 16, 16),) * 6, *((64, 8, 8),) * 7)}


def chain(blocks: int = 20) -> BackboneSpec:
    return BackboneSpec(
        name="chain", block_names=tuple(f"b{i}" for i in range(blocks)), num_classes=10, cut_shapes=SHAPES[blocks]
    )


def additive(blocks: int, rng: np.random.Generator) -> Floats:
    """A start, blocks that differ by a tenth, and branches that do."""
    cost, end = 1e-3 * rng.normal(1, 0.1, blocks), 1e-4 * rng.normal(1, 0.1, blocks + 1)
    table = np.full((blocks + 1, blocks + 1), np.nan)
    for start in range(blocks):
        table[start, start + 1 :] = 5e-5 + np.cumsum(cost[start:]) + end[start + 1 :]
    return table


def only(table: Floats, pairs: NDArray[np.int64]) -> Floats:
    known = np.full(table.shape, np.nan)
    known[pairs[:, 0], pairs[:, 1]] = table[pairs[:, 0], pairs[:, 1]]
    return known


def fitted(spec: BackboneSpec, known: Floats) -> ComputeFit:
    return fit_compute(known[None], np.full((1, len(known)), np.nan), spec.features())


def test_every_partition_comes_once_and_a_longer_budget_only_adds() -> None:
    spec = chain()
    whole = measuring_order(spec)
    assert {(int(a), int(b)) for a, b in whole} == {(a, b) for a in range(20) for b in range(a + 1, 21)}
    assert np.array_equal(measuring_order(spec, most=40), whole[:40])
    assert not np.array_equal(measuring_order(spec, most=40, seed=1), whole[:40])


def test_times_that_add_up_are_predicted_from_a_few() -> None:
    table, spec = additive(20, np.random.default_rng(0)), chain()
    order = measuring_order(spec, most=60)
    known = only(table, order)
    found = fitted(spec, known)
    assert np.array_equal(found.seconds[np.isfinite(known)], known[np.isfinite(known)]), "given once, and so as it is"
    error = np.where(np.isnan(known), np.abs(found.seconds / table - 1), np.nan)
    assert np.isfinite(error).sum() == 210 - 60
    assert np.nanmean(error) < 0.01
    assert np.nanmax(error) < 0.05
    assert checked(found, order[1::2]).checks == 30
    length = np.arange(21) - np.arange(21)[:, None]
    naive = np.abs(np.nanmedian(table / length.clip(1)) * length / table - 1)
    assert np.nanmean(error) < np.nanmean(naive) / 5, "better than so much for every block"


def test_what_is_predicted_is_off_by_about_what_is_stated() -> None:
    rng = np.random.default_rng(1)
    spec, stated, true = chain(), [], []
    order = measuring_order(spec, most=60)
    for _ in range(10):
        table = additive(20, rng) * rng.lognormal(0, 0.02, (21, 21))
        known = only(table, order)
        found = fitted(spec, known)
        stated.append(checked(found, order[1::2]).mean_error)
        true.append(float(np.nanmean(np.abs(found.seconds / table - 1)[np.isnan(known)])))
    assert np.mean(true) < 0.03
    assert 0.75 < np.mean(stated) / np.mean(true) < 1.33


def test_one_disturbed_partition_does_not_spoil_the_others() -> None:
    table, spec = additive(20, np.random.default_rng(2)), chain()
    order = measuring_order(spec, most=60)
    known = only(table, order)
    known[tuple(order[20])] *= 3
    error = np.abs(fitted(spec, known).seconds / table - 1)
    assert np.nanmean(error[np.isnan(known)]) < 0.02


def test_too_little_to_predict_from_is_refused() -> None:
    table, spec = additive(20, np.random.default_rng(3)), chain()
    order = measuring_order(spec, most=4)
    with pytest.raises(InvalidValue, match="at least three"):
        checked(fitted(spec, only(table, order[:2])), order[1:2])
    with pytest.raises(InvalidValue, match="drawn at random"):
        checked(fitted(spec, only(table, order)), np.empty((0, 2)))


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the paper's authors' measurements are not at {DATA} (PORTEND_DATA)")
@pytest.mark.parametrize("name", ["a1.medium", "m4.large", "g4dn.xlarge"])
def test_a_tenth_of_resnet110_tells_the_rest_within_two_percent(name: str) -> None:
    shapes = json.loads((DATA / "intermediate_shapes.json").read_text())["models"]["ResNet110"]["shapes"]
    inner = [tuple(shapes[str(cut)]) for cut in range(55)]
    spec = BackboneSpec(
        name="resnet110", block_names=tuple(map(str, range(55))), num_classes=10, cut_shapes=(*inner, inner[-1])
    )
    table = np.full((56, 56), np.nan)
    for row in json.loads((DATA / f"computation/{name}.json").read_text())["models"]["ResNet110"]:
        table[row["start"] - 1, row["end"]] = 1e-3 * np.mean(row["ms"])
    order = measuring_order(spec, most=154)
    known = only(table, order)
    found = fitted(spec, known)
    error = np.where(np.isnan(known), np.abs(found.seconds / table - 1), np.nan)
    assert np.isfinite(error).sum() == 1540 - 154
    assert np.nanmean(error) < 0.015
    assert checked(found, order[1::2]).mean_error == pytest.approx(np.nanmean(error), rel=0.3)


# -- what a profile makes of it --------------------------------------------------------------------


def a_device() -> tuple[DeviceProfile, Floats]:
    table, spec = additive(20, np.random.default_rng(4)), chain()
    order = measuring_order(spec, most=60)
    known = only(table, order)
    full = device("d", np.nan_to_num(table), codecs={"float32": codec([8.0] * 20 + [np.nan])})
    told = checked(fitted(spec, known), order[1::2])
    return replace(full, compute_repeats_s=known[None], prediction=told, network=spec), known


def test_a_device_predicts_what_was_not_measured_and_says_so(tmp_path: Path) -> None:
    found, known = a_device()
    start, end = np.argwhere(np.isfinite(known))[0]
    assert not found.predicts(start, end)
    start, end = np.argwhere(np.isnan(known) & np.isfinite(found.compute_s))[0]
    assert found.predicts(start, end)
    assert found.compute_fit.sd_s[start, end] > 0
    assert found.predicted.startswith("150 of its partitions' times are predicted, with an error of")

    bursts = np.full((2, 1, 2, 21, 21), np.nan)
    bursts[1, 0, :, start, end] = 7.0
    again = replace(found, idle_repeats_s=np.zeros((0, 1, 21, 21))).timed_again(bursts)
    assert (again.predicts(start, end), again.compute_s[start, end]) == (False, 7.0)

    save(found, tmp_path / "d.zip")
    loaded = load(tmp_path / "d.zip", DeviceProfile)
    assert np.array_equal(loaded.compute_s, found.compute_s, equal_nan=True)
    assert str(loaded.prediction) == str(found.prediction)
    with pytest.raises(InvalidValue, match="compute time for every start"):
        replace(found, prediction=None)


def test_a_plan_says_that_it_rests_on_a_predicted_time() -> None:
    case = random_case(1, blocks=4, tiers=2)
    problem = Problem(minimize=latency, subject_to=(accuracy >= 0,))
    plan = solve(problem, case.model()).plan
    problem = replace(problem, space=SearchSpace(cuts=plan.cuts, tiers=plan.placement))
    profile, topology = case.profile, case.topology
    name = topology.tiers[plan.placement[0]].device
    measured = profile.devices[name]
    start, end = plan.partitions[0]
    hole = np.array(measured.compute_repeats_s)
    hole[:, start, end] = np.nan
    told = Prediction(mean_error=0.012, worst_error=0.034, checks=9)
    partly = replace(measured, compute_repeats_s=hole, prediction=told)
    model = PerformanceModel(
        replace(profile, devices=dict(profile.devices) | {name: partly}), topology, estimator=case.estimator
    )
    solution = solve(problem, model)
    assert solution.plan == plan
    assert solution.why is not None
    assert "off by 1.2 % in the mean, 3.4 % at worst" in solution.why.caution
    assert solution.why.caution in solution.describe()
    assert solution.to_dict()["why"]["caution"] == solution.why.caution
    assert solve(problem, case.model()).why.caution == ""  # type: ignore[union-attr]

    scenario = Scenario(profile=model.profile, topology=topology, problem=problem)
    field = find_field(scenario, f"profile.devices[{name}].compute")
    slower = field.write(scenario, 2.0).profile.devices[name]
    assert slower.compute_s[start, end] == pytest.approx(2 * partly.compute_s[start, end])


def test_a_profile_from_before_predictions_is_all_measured() -> None:
    profile = load_profile(Path(__file__).parent.parent / "profiles/resnet20-digits.zip")
    assert all(found.prediction is None and not found.predicts(0, 1) for found in profile.devices.values())
