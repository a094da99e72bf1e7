"""The demo at full size: what it promises must hold on an otherwise idle machine. Run by ``make test-slow``."""

from __future__ import annotations

from pathlib import Path

import pytest

from portend.workflows.demo import run_demo


@pytest.mark.slow
def test_prediction_and_measurement_agree_for_the_plan_and_every_baseline(tmp_path: Path) -> None:
    result = run_demo(tmp_path)
    assert result.solution.status == "optimal"
    assert sum(result.summary["seconds"].values()) < 180
    for case in result.comparisons:
        assert abs(case.error) <= 0.05, f"{case.name}: mean latency is off by {case.error:+.1%}"
        assert case.accuracy_inside(), f"{case.name}: accuracy lies outside its interval"
        assert all(case.exit_rates_inside()), f"{case.name}: exit rates lie outside their intervals"
