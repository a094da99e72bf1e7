"""The paper's evaluation, reproduced from its authors' public measurements (``examples/paper``)."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from pathlib import Path

import pytest

from portend.errors import DataError
from portend.perfmodel.model import PerformanceModel
from portend.planner.problem import Problem, accuracy, latency
from portend.planner.solve import solve
from portend.values.plan import Plan

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples" / "paper"))

import authors  # noqa: E402
import reproduce  # noqa: E402

from reference import Reference, brute_force  # noqa: E402


@pytest.fixture(scope="module")
def data() -> Path:
    """Return the folder of the authors' measurements, or skip the test."""
    folder = Path(os.environ.get("PORTEND_DATA", ROOT.parent / "shared" / "data")) / "portend_aws"
    if not folder.exists():
        pytest.skip(f"{folder} is absent; set PORTEND_DATA to the folder with the shared data")
    return folder


def model_of(data: Path, network: str) -> PerformanceModel:
    topology = authors.read_topology(data)
    return PerformanceModel(authors.read_profile(data, network, topology), topology)


@pytest.mark.parametrize(
    ("network", "drop", "cuts", "placement", "thresholds", "latency_ms"),
    [
        ("ResNet110", 0.02, (25,), (0,), (), 45.55),
        ("EfficientNetB0", 0.03, (4, 8), (0, 1), (0.3,), 426.85),
    ],
)
def test_optimum_is_that_of_the_authors_program(
    data: Path,
    network: str,
    drop: float,
    cuts: tuple[int, ...],
    placement: tuple[int, ...],
    thresholds: tuple[float, ...],
    latency_ms: float,
) -> None:
    topology = authors.read_topology(data)
    result = reproduce.reproduce_network(
        authors.read_profile(data, network, topology), topology, authors.read_thresholds(data)
    )
    found = result.bound(drop, "paper")
    assert found.solution.status == "optimal"
    assert (found.solution.plan.cuts, found.solution.plan.placement) == (cuts, placement)
    assert found.solution.plan.thresholds == thresholds
    assert 1e3 * found.estimate.mean_s == pytest.approx(latency_ms, rel=1e-3)
    assert found.estimate.accuracy >= result.full_accuracy - drop - 1e-12


@pytest.mark.parametrize("network", ["ResNet20", "VGGish"])
def test_search_equals_brute_force_in_the_papers_space(data: Path, network: str) -> None:
    model = model_of(data, network)
    space = reproduce.paper_space(authors.read_thresholds(data))
    everything = brute_force(Reference(model.profile, model.topology, "marginal"), space)
    for drop in reproduce.DROPS:
        least = model.profile.full_accuracy - drop
        problem = Problem(minimize=latency, subject_to=(accuracy >= least,), space=space)
        solution = solve(problem, model, baselines=False)
        best = min(c for c in everything if c.accuracy >= least - 1e-12)
        assert solution.stats.plans == len(everything)
        assert solution.estimate.mean_s == pytest.approx(best.latency, rel=1e-9)
        assert solution.estimate.accuracy == pytest.approx(best.accuracy, abs=1e-9)
        assert (solution.plan.cuts, solution.plan.placement) == (best.cuts, best.placement)


def test_a_truncated_network_beats_the_published_row_of_resnet110(data: Path) -> None:
    model = model_of(data, "ResNet110")
    row = model.estimate(reproduce.PUBLISHED["ResNet110"].plan)
    rival = model.estimate(Plan(cuts=(27,), placement=(0,)))
    assert 1e3 * row.mean_s == pytest.approx(58.9, abs=0.05)
    assert 1e3 * rival.mean_s == pytest.approx(48.8, abs=0.05)
    assert rival.accuracy == pytest.approx(0.8788, abs=5e-5)
    assert rival.accuracy > row.accuracy


def test_program_writes_the_stated_json_and_a_page(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "out.json", tmp_path / "page.html"
    assert reproduce.main(["--data", str(data), "--json", str(out), "--html", str(page)]) == 0
    values = json.loads(out.read_text(encoding="utf-8"))
    assert set(values) == {*authors.NETWORKS, "fig9a", "fig9b"}
    for name in authors.NETWORKS:
        network = values[name]
        assert [(b["drop"], b["space"]) for b in network["bounds"]] == [
            (drop, space) for drop in (0.0, 0.02, 0.03, 0.04) for space in ("paper", "portend")
        ]
        for bound in network["bounds"]:
            assert len(bound["cuts"]) == len(bound["placement"]) == len(bound["thresholds"]) + 1
            assert bound["accuracy"] >= network["full_accuracy"] - bound["drop"] - 1e-12
            assert bound["latency_ms"] <= network["baselines"]["edge-only"] * (1 + 1e-9)
        paper, ours = ([b["latency_ms"] for b in network["bounds"] if b["space"] == s] for s in ("paper", "portend"))
        assert all(a <= b * (1 + 1e-9) for a, b in zip(ours, paper, strict=True))  # the wider space
        assert {"edge-only", "cloud-only", "Neurosurgeon"} <= set(network["baselines"])
        assert network["search_s"] > 0
        assert network["table3"]["optimal"] is (not name.startswith("ResNet"))
    assert values["ResNet110"]["table3"]["beaten_by"]["cuts"] == [27]
    assert values["fig9a"]["crossover_mbps"] == pytest.approx(2.3, abs=0.1)
    assert values["fig9b"]["crossover_factor"] == pytest.approx(5, abs=0.3)
    shown = capsys.readouterr().out
    assert all(words in shown for words in ("45.55", "426.82", "not optimal", "Fig. 9b"))
    html = page.read_text(encoding="utf-8")
    assert all(f'id="{figure}"' in html for figure in ("fig6", "fig9a", "fig9b"))
    assert "<script src" not in html


def test_another_device_on_tier_0(data: Path) -> None:
    topology = authors.read_topology(data, "m4.large")
    assert [tier.device for tier in topology.tiers][:2] == ["m4.large", "m4.large"]
    results = reproduce.reproduce(data, "m4.large")
    assert results.notes == ("tier 0 is m4.large; what is published is for a1.medium",)
    edge = results.networks[0].baselines
    assert edge["edge-only"].estimate.mean_s < edge["base station-only"].estimate.mean_s


def test_networks_that_a_device_lacks_are_left_out(data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "data", copy_function=shutil.copyfile))
    _writable(copy)
    for kind in ("computation", "serialization"):
        values = json.loads((copy / kind / "a1.medium.json").read_text(encoding="utf-8"))
        values["models"] = {"VGGish": values["models"]["VGGish"]}
        (copy / kind / "small.json").write_text(json.dumps(values), encoding="utf-8")
    results = reproduce.reproduce(copy, "small")
    assert [network.name for network in results.networks] == ["VGGish"]
    assert results.fig9a is None
    assert reproduce.to_json(results)["fig9a"] == {}
    assert any("ResNet20 is left out: not measured on small" in note for note in results.notes)
    assert "Table III" in reproduce.render_page(results)


def test_broken_data_is_one_line_that_names_the_file(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "data", copy_function=shutil.copyfile))
    _writable(copy)
    topology = copy / "topology.json"
    computation = copy / "computation" / "a1.medium.json"
    whole = {path: path.read_text(encoding="utf-8") for path in (topology, computation)}

    def complaint(*more: str) -> str:
        status = reproduce.main(["--data", str(copy), "--json", str(tmp_path / "out.json"), *more])
        message = capsys.readouterr().err
        assert status == 1
        assert message.startswith("error: ")
        assert message.count("\n") == 1
        return message

    assert "a1.medium, g4dn.xlarge, m4.large" in complaint("--device0", "nothing")
    computation.write_text(whole[computation][:5000], encoding="utf-8")
    assert "a1.medium.json cannot be read as JSON" in complaint()
    values = json.loads(whole[computation])
    values["models"]["ResNet20"][3]["ms"] = [math.nan]
    computation.write_text(json.dumps(values), encoding="utf-8")
    assert "nan is not a finite number" in complaint()
    del values["models"]["ResNet20"][3]
    computation.write_text(json.dumps(values), encoding="utf-8")
    assert "ResNet20 lacks 1 partitions, such as 1–4" in complaint()
    topology.write_text(json.dumps({"tiers": []}), encoding="utf-8")
    assert "topology.json" in complaint()
    topology.unlink()
    assert "topology.json is missing" in complaint()


def test_a_missing_folder_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"topology\.json is missing"):
        reproduce.reproduce(tmp_path / "absent", None)


def test_crossover_is_found_by_bisection_or_absent() -> None:
    assert reproduce.crossover(lambda x: x - 3, 1, 10) == pytest.approx(3)
    assert reproduce.crossover(lambda x: x + 3, 1, 10) is None
    assert reproduce.crossover(lambda x: x - 1, 1, 10) == 1


def _writable(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
