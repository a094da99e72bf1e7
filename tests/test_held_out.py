"""The comparison on held-out samples of real score tables (``examples/paper/held_out.py``)."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from portend.errors import DataError, InvalidValue
from portend.planner.problem import SearchSpace
from portend.values.plan import Plan
from problems import random_case

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples" / "paper"))

import held_out  # noqa: E402
import promises  # noqa: E402
from held_out import Curve, Halving, Judged, NetworkResult  # noqa: E402


def judged(promised: float, accuracy: float, ms: float) -> Judged:
    return Judged(plan=Plan(cuts=(1,), placement=(0,)), promised=promised, accuracy=accuracy, latency_s=1e-3 * ms)


WHOLE = judged(math.nan, 0.80, 20)
PAPER = Curve(plans=(judged(0.70, 0.71, 10), judged(0.80, 0.79, 16)), whole=WHOLE)
OURS = Curve(plans=(judged(0.69, 0.72, 6), judged(0.75, 0.71, 7), judged(0.79, 0.78, 9)), whole=WHOLE)


def result_of(*pairs: tuple[Curve, Curve]) -> NetworkResult:
    """Halvings with the same curves for every timing; the whole network has 0.82 and 0.80."""
    ways = held_out.approaches((0.0, 0.5), blocks=2, partitions=2)
    return NetworkResult(
        name="small",
        samples=10,
        accuracies=(0.7, 0.8),
        ways=ways,
        halvings=tuple(
            Halving(
                seed=seed,
                full_planning=0.82,
                full_held_out=0.80,
                curves={
                    (timing.name, way.name): paper if way.name.startswith("paper") else ours
                    for timing in held_out.TIMINGS
                    for way in ways
                },
            )
            for seed, (paper, ours) in enumerate(pairs)
        ),
    )


def test_halves_are_disjoint_complete_and_seeded() -> None:
    first, second = held_out.halves(11, seed=3)
    assert (first.size, second.size) == (5, 6)
    assert np.array_equal(np.sort(np.concatenate([first, second])), np.arange(11))
    again = held_out.halves(11, seed=3)
    assert np.array_equal(first, again[0])
    assert np.array_equal(second, again[1])
    assert not np.array_equal(first, held_out.halves(11, seed=4)[0])
    with pytest.raises(InvalidValue, match="two halves"):
        held_out.halves(1, seed=0)


def test_a_bound_chooses_by_promise_and_a_target_by_what_was_reached() -> None:
    assert OURS.chosen(0.70).latency_s == pytest.approx(7e-3)  # the first that promises 0.70
    assert OURS.chosen(0.99).latency_s == pytest.approx(9e-3)  # none promises it: the most accurate
    assert OURS.reaching(0.715).latency_s == pytest.approx(6e-3)  # it promised less than it reaches
    assert OURS.reaching(0.75).latency_s == pytest.approx(9e-3)
    assert OURS.reaching(0.79) is WHOLE


def test_gains_at_equal_held_out_accuracy() -> None:
    result = result_of((PAPER, OURS), (PAPER, PAPER))
    assert result.gains("smoothed", "portend", 0.01) == pytest.approx([1 - 20 / 16, 0])  # ours must run it whole
    assert result.gains("smoothed", "portend", 0.02) == pytest.approx([1 - 9 / 16, 0])
    assert result.gains("smoothed", "portend", 0.09) == pytest.approx([0.4, 0])
    assert result.gains("smoothed", "paper + samples", 0.09) == [0, 0]
    spread = held_out.spread(result.gains("smoothed", "portend", 0.09))
    assert (spread.mean, spread.deviation) == pytest.approx((0.2, math.sqrt(0.08)))
    assert (spread.least, spread.greatest) == pytest.approx((0, 0.4))
    assert held_out.spread([0.3]).deviation == 0


def test_misses_are_against_the_bound_and_against_the_same_half() -> None:
    bound, same = result_of((PAPER, OURS)).misses("portend", 0.04)  # bound 0.78: the plan has 0.78
    assert bound == pytest.approx([0])
    assert same == pytest.approx([0.02])


def test_mean_curves_are_read_along_the_line() -> None:
    accuracy, ms = [0.70, 0.74, 0.73, 0.80], [5.0, 9.0, 8.0, 15.0]
    assert held_out.read_mean_curve(accuracy, ms, 0.72) == pytest.approx(7)
    assert held_out.read_mean_curve(accuracy, ms, 0.73) == pytest.approx(8)
    assert held_out.read_mean_curve(accuracy, ms, 0.775) == pytest.approx(8 + 7 * 0.045 / 0.07)
    assert held_out.read_mean_curve(accuracy, ms, 0.60) == pytest.approx(5)
    assert math.isnan(held_out.read_mean_curve(accuracy, ms, 0.81))


def test_joined_wholes_are_no_longer_than_their_parts() -> None:
    nan = math.nan
    table = np.array([[nan, 1, 5, 9], [nan, nan, 2, 4], [nan, nan, nan, 3], [nan, nan, nan, nan]])
    found = held_out.joined(table)
    assert found[0, 2] == 3  # 1 + 2 instead of 5
    assert found[0, 3] == 5  # 1 + 4 instead of 9
    assert found[1, 3] == 4


def test_smoothing_keeps_an_additive_table_and_makes_every_split_cost() -> None:
    block, end = np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.25, 0.0])
    table = np.full((4, 4), math.nan)
    for start in range(3):
        for stop in range(start + 1, 4):
            table[start, stop] = block[start:stop].sum() + end[stop - 1]
    assert np.allclose(held_out.smoothed(table), table, equal_nan=True)
    noisy = table * np.random.default_rng(0).uniform(0.8, 1.2, table.shape)
    found = held_out.smoothed(noisy)
    for start, cut, stop in ((0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)):
        assert found[start, cut] + found[cut, stop] >= found[start, stop] - 1e-12


@pytest.fixture(scope="module")
def data() -> Path:
    """Return the folder of the shared data, or skip the test."""
    folder = Path(os.environ.get("PORTEND_DATA", ROOT.parent / "shared" / "data"))
    for part in ("weights", "cifar10", "portend_aws"):
        if not (folder / part).exists():
            pytest.skip(f"{folder / part} is absent; set PORTEND_DATA to the folder with the shared data")
    for module in ("torch", "pyarrow", "PIL", "scipy"):
        pytest.importorskip(module)
    return folder


def test_a_small_study_of_real_scores(data: Path, tmp_path: Path) -> None:
    name = held_out.WEIGHTS[0]
    shown: list[str] = []
    (result,) = held_out.study(data, (name,), 2, tmp_path, partitions=3, images=400, progress=shown.append)
    assert result.samples == 400
    assert f"{name}: 400 of 400 images scored" in shown
    assert 0.7 < result.accuracies[-1] < 0.85  # JPEG copies; a wrong normalization would give about 0.1
    for halving in result.halvings:
        assert halving.full_planning + halving.full_held_out == pytest.approx(2 * result.accuracies[-1])
        for timing in held_out.TIMINGS:
            curves = [halving.curves[timing.name, way.name] for way in result.ways]
            for curve in curves:
                promised = [p.promised for p in curve.plans]
                assert promised == sorted(set(promised))
                assert curve.whole.accuracy == pytest.approx(halving.full_held_out)
            if timing.name != "measured":
                # wider spaces hold the narrower ones: at least as accurate at the top
                assert curves[4].plans[-1].promised >= curves[3].plans[-1].promised >= curves[1].plans[-1].promised
            if timing.judged != "measured":
                assert all(p.split_s < 1e-12 for curve in curves for p in curve.plans)
    shown.clear()
    again = held_out.study(data, (name,), 1, tmp_path, partitions=3, images=400, progress=shown.append)
    assert not any("scored" in line for line in shown)  # the table was kept
    assert again[0].halvings[0].full_planning == result.halvings[0].full_planning

    values = held_out.to_json((result,))[name]
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert len(values["gains"]) == len(held_out.TIMINGS) * len(held_out.DROPS) * len(result.ways)
    page = held_out.render_page((result,))
    assert all(f'id="{figure}"' in page for figure in ("gains0", "curves0"))
    assert "<title>Planning on samples" in page
    assert "<script src" not in page


def test_what_is_missing_is_one_line(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def complaint(folder: Path, *more: str) -> str:
        status = held_out.main(["--data", str(folder), "--json", str(tmp_path / "out.json"), *more])
        message = capsys.readouterr().err
        assert status == 1
        assert message.startswith("error: ")
        assert message.count("\n") == 1
        return message

    assert "topology.json is missing" in complaint(tmp_path / "absent")
    assert "nothing.safetensors is missing" in complaint(data, "--weights", "nothing")
    assert "tensors differ" in complaint(data, "--weights", "akamaster_resnet20")
    assert "at least one halving" in complaint(data, "--seeds", "0")
    with pytest.raises(DataError, match="is missing"):
        held_out.score_table(tmp_path, "nothing", tmp_path / "scores.zip")


def test_promises_are_counted_against_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small network: every way on every space, and what was promised with a margin takes no less time on average."""
    monkeypatch.setattr(promises, "SAMPLES", (200,))
    monkeypatch.setattr(promises, "DROPS", (0.1,))
    monkeypatch.setattr(promises, "OWN", SearchSpace(thresholds=(0.0, 0.25, 0.5), exits_per_tier=2))
    monkeypatch.setattr(promises, "MANY", {"many": promises.OWN})
    case = random_case(3, blocks=4, tiers=2, estimator="sample")
    rows = promises.study(case.profile, case.topology, trials=8)
    assert [(row.space, row.way) for row in rows] == [
        (space, way)
        for space in ("one plan, right below the bound", "many")
        for way in ("no margin", "margin of one plan", "tested apart")
    ]
    for row in rows:
        assert 0 <= row.broken <= row.made <= 1
        assert (row.latency_ms is None) == (row.made == 0)
        if row.plans == 1:
            assert row.broken == row.made, "the one plan is not as accurate as what is asked"
    assert rows[3].made >= rows[4].made
    assert rows[1].broken <= rows[0].broken
