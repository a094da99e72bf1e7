"""Compute times that planning uses: estimates of the truth from noisy repeats, with their uncertainty."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from portend.io.forms import load_topology
from portend.io.storage import load_profile
from portend.perfmodel.model import PerformanceModel
from portend.values.backbone import BackboneSpec
from portend.values.compute_fit import fit_compute, fit_starts
from portend.values.device_profile import DeviceProfile
from portend.values.plan import Plan
from problems import codec, device

Floats = NDArray[np.float64]
ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "profiles").glob("*.zip"))
SHAPES = ((3, 32, 32), *((16, 32, 32),) * 4, *((32, 16, 16),) * 3, *((64, 8, 8),) * 3)
BLOCKS = len(SHAPES) - 1
SPEC = BackboneSpec(name="chain", block_names=tuple(f"b{i}" for i in range(BLOCKS)), num_classes=10, cut_shapes=SHAPES)


def truth(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Times of partitions and branches that add up: what starting costs, blocks, a branch."""
    block, branch = 1e-3 * rng.normal(1, 0.1, BLOCKS), 1e-4 * rng.normal(1, 0.1, BLOCKS + 1)
    ends = np.concatenate(([0.0], np.cumsum(block)))
    table = 5e-5 + ends - ends[:, None] + branch
    table[np.tril_indices(BLOCKS + 1)] = branch[0] = np.nan
    return table, branch


def measured(rng: np.random.Generator, table: Floats, *, repeats: int = 20, noise: float = 0.15) -> Floats:
    """Repeats with skewed noise, some of them far too long; their mean is the truth."""
    times = table / 1.014 * rng.lognormal(-(noise**2) / 2, noise, (repeats, *table.shape))
    return np.where(rng.random(times.shape) < 0.002, 8 * times, times)


def splits() -> list[tuple[int, int, int]]:
    return [(s, m, e) for s in range(BLOCKS) for m in range(s + 1, BLOCKS) for e in range(m + 1, BLOCKS + 1)]


def test_what_is_chosen_as_the_fastest_of_many_is_as_fast_as_stated() -> None:
    rng = np.random.default_rng(0)
    raw_off: list[float] = []
    fit_off: list[float] = []
    raw_error, fit_error, inside = [], [], []
    for _ in range(12):
        table, branch = truth(rng)
        repeats, branches = measured(rng, table), measured(rng, branch)
        d = replace(
            device("d", np.nan_to_num(table), codecs={"float32": codec([8.0] * BLOCKS + [np.nan])}),
            compute_repeats_s=repeats, branch_repeats_s=branches, network=SPEC,
        )  # fmt: skip
        for times, off in ((d.measured_s, raw_off), (d.compute_s, fit_off)):
            gains = [(times[s, m] + times[m, e] - times[s, e]) / times[s, e] for s, m, e in splits()]
            s, m, e = splits()[int(np.argmin(gains))]
            true = (table[s, m] + table[m, e] - table[s, e]) / table[s, e]
            off.append(min(gains) - true)
        raw_error.append(np.nanmean((d.measured_s / table - 1) ** 2))
        fit_error.append(np.nanmean((d.compute_s / table - 1) ** 2))
        inside.append(
            np.nanmean(np.abs(d.compute_s - table)[np.isfinite(table)] < 2 * d.compute_fit.sd_s[np.isfinite(table)])
        )
    assert np.mean(raw_off) < -0.05, "the raw means promise what is not there"
    assert abs(np.mean(fit_off)) < 0.02
    assert np.mean(fit_error) < 0.5 * np.mean(raw_error)
    assert np.mean(inside) > 0.93


def test_times_of_a_single_repeat_are_given_and_stay_as_they_are() -> None:
    rng = np.random.default_rng(1)
    table = truth(rng)[0] * rng.lognormal(0, 0.3, (BLOCKS + 1, BLOCKS + 1))
    fit = fit_compute(table[None], np.zeros((1, BLOCKS + 1)), SPEC.features())
    assert np.array_equal(fit.seconds, table, equal_nan=True)
    assert np.nanmax(fit.sd_s) == 0
    partitions = np.where(np.isfinite(table), 1.0, 0.0)
    assert fit.variance_s2(partitions, np.zeros(BLOCKS + 1)) == 0


def test_a_block_that_takes_longer_alone_is_believed_and_a_lucky_one_is_not() -> None:
    rng = np.random.default_rng(2)
    table, branch = truth(rng)
    odd = table.copy()
    odd[0, 1] *= 3
    odd[4, 8] *= 0.7
    fit = fit_compute(measured(rng, odd), measured(rng, branch), SPEC.features())
    assert fit.seconds[0, 1] > 2 * table[0, 1]
    assert fit.seconds[4, 8] == pytest.approx(table[4, 8], rel=0.05)
    assert fit.off[4, 8] > 0.3, "by so much it lies off what all others say"


def test_the_uncertainty_of_sums_and_differences_is_that_of_the_estimate() -> None:
    rng = np.random.default_rng(3)
    table, branch = truth(rng)
    fit = fit_compute(measured(rng, table), measured(rng, branch), SPEC.features())
    one, none = np.zeros(table.shape), np.zeros(BLOCKS + 1)
    one[2, 7] = 1.0
    assert fit.variance_s2(one, none) == pytest.approx(fit.sd_s[2, 7] ** 2)
    assert fit.variance_s2(-3 * one, none) == pytest.approx(9 * fit.sd_s[2, 7] ** 2)
    other = one.copy()
    other[2, 8] = -1.0
    apart = fit.sd_s[2, 7] ** 2 + fit.sd_s[2, 8] ** 2
    assert fit.variance_s2(other, none) < apart, "they share their blocks"


@pytest.mark.parametrize("path", [p for p in SHIPPED if "resnet20" in p.name], ids=lambda p: p.stem)
def test_no_whole_is_slower_than_its_parts_by_more_than_the_uncertainty(path: Path) -> None:
    for found in load_profile(path).devices.values():
        assert_consistent(found)


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in SHIPPED if "resnet110" in p.name], ids=lambda p: p.stem)
def test_no_whole_of_a_long_network_is_slower_than_its_parts(path: Path) -> None:
    for found in load_profile(path).devices.values():
        assert_consistent(found)


def assert_consistent(found: DeviceProfile) -> None:
    """Busy, woken and following, on this device and slower ones; starting costs more on a slower device, if it does."""
    fit, size = found.compute_fit, found.num_blocks + 1
    branch = np.nan_to_num(found.branch_s)
    starts = {slow: found.starts(slow) for slow in (1.0, 2.5, 20.0)}
    unknown = np.isnan(found.idle_repeats_s).all(axis=(0, 1)) & np.isfinite(found.compute_s)
    for less, more in pairwise(starts.values()):
        assert (more.woken_s[unknown] >= less.woken_s[unknown]).all()
    for slow, first in starts.items():
        for end in range(2, size):
            for cut in range(1, end):
                busy, woken, following = np.zeros((3, size, size))
                busy[0, cut], busy[cut, end], busy[0, end] = slow, slow, -slow
                woken[0, cut], woken[0, end], following[cut, end] = 1.0, -1.0, 1.0
                saved = np.zeros(size)
                saved[cut] = -slow
                sd = np.sqrt(fit.variance_s2(busy, saved))
                assert np.nansum(busy * found.compute_s) - slow * branch[cut] >= -1.01 * sd, (slow, cut, end)
                sd = np.hypot(sd, np.sqrt(first.variance_s2(woken, following)))
                gain = np.nansum(busy * found.compute_s) - slow * branch[cut]
                gain += np.nansum(woken * first.woken_s) + np.nansum(following * first.following_s)
                assert gain >= -2 * sd, (slow, cut, end)


def test_a_partition_that_follows_another_pays_for_cold_caches_where_only_waking_was_measured() -> None:
    busy = truth(np.random.default_rng(4))[0]
    woken = np.stack([busy + 2e-3 + 0.5 * busy, 1.25 * busy])[None]  # first run, second run
    first = fit_starts(woken, None, busy, 1.0)
    assert np.allclose(first.woken_s, 2e-3 + 0.5 * busy, equal_nan=True)
    assert np.allclose(first.following_s, 0.5 * busy, equal_nan=True), "all that grows with the work"
    assert np.allclose(fit_starts(woken, None, busy, 1.5).following_s, 0.625 * busy, equal_nan=True)
    assert np.allclose(fit_starts(woken[:0], None, busy, 3.0).woken_s, 0 * busy, equal_nan=True), "nothing was measured"


def test_one_lucky_burst_does_not_make_a_partition_quick_to_wake() -> None:
    rng = np.random.default_rng(5)
    busy = truth(rng)[0]
    woken = busy + 3e-3 * rng.lognormal(0, 0.3, (5, 2, *busy.shape))
    off = np.nanmin(fit_starts(woken, None, busy, 1.0).woken_s) / 3.14e-3 - 1
    assert off > -0.15
    raw = woken[:, 0].mean(axis=0) - busy
    assert np.nanmin(raw) / 3.14e-3 - 1 < -0.2, "as the lowest mean is"


def test_an_estimate_states_what_uncertain_times_leave_open() -> None:
    profile = load_profile(ROOT / "profiles/resnet20-cifar10.zip")
    model = PerformanceModel(profile, load_topology(ROOT / "configs/topologies/paper.yaml"))
    whole = model.estimate(Plan(cuts=(10,), placement=(0,)))
    parts = model.estimate(Plan(cuts=(5, 10), placement=(0, 0), thresholds=(0.0,)))
    assert 0.005 < whole.time_sd_s / whole.mean_s < 0.05
    assert whole.to_dict()["latency_ms"]["time_sd"] == pytest.approx(1e3 * whole.time_sd_s)
    assert model.time_sd_s(whole, whole) == 0
    assert model.time_sd_s(whole, parts) > 0
    assert whole.mean_s - parts.mean_s < model.time_sd_s(whole, parts), "no gain that is not there"
