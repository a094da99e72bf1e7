"""A plan's file: it says what it was made for, and nothing else runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands import ROOT, portend
from portend.errors import InvalidValue, MismatchError, StorageError
from portend.io.forms import load_topology, topology_yaml
from portend.io.storage import load_profile, save
from portend.perfmodel.model import PerformanceModel
from portend.planner.fallbacks import find_fallbacks
from portend.planner.planfile import PlanFile, Search, load_plan
from portend.planner.problem import Problem, SearchSpace, accuracy, latency
from portend.planner.solve import solve
from portend.values.measurement import SPAN_KINDS, Measurement
from portend.values.plan import Plan
from portend.values.topology import Topology

PROFILE = ROOT / "profiles/resnet20-cifar10.zip"
TOPOLOGY = load_topology(ROOT / "configs/topologies/three_tier.yaml")


@pytest.fixture(scope="module")
def planned() -> PlanFile:
    """A plan that keeps raw input on the edge, with fallbacks and codecs of int8."""
    model = PerformanceModel(load_profile(PROFILE), TOPOLOGY)
    space = SearchSpace(block_tiers={1: (0,), 8: (1,)}, codecs=("int8", "float32"), thresholds=(0.0, 0.3))
    problem = Problem(minimize=latency, subject_to=(accuracy >= 0.87,), space=space)
    solution = solve(problem, model, baselines=False)
    return PlanFile.of(solution, model, find_fallbacks(solution, model))


def test_a_file_holds_the_whole_value(planned: PlanFile, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    planned.save(path)
    found = load_plan(path)
    assert replace(found, ranges={}, answer={}) == replace(planned, ranges={}, answer={})
    assert found.to_dict() == json.loads(path.read_text()) == json.loads(json.dumps(planned.to_dict()))
    assert found.topology == TOPOLOGY
    assert found.search is not None
    assert found.search.space.block_tiers == {1: (0,), 8: (1,)}
    assert found.tiers == ("edge", "base", "cloud")
    assert len(found.fallbacks) == 1
    assert "int8" in found.plan.codecs
    assert found.ranges
    assert found.checked(TOPOLOGY) == []


def _moved(topology: Topology, *order: int) -> Topology:
    return replace(topology, tiers=tuple(topology.tiers[index] for index in order))


def _renamed(topology: Topology) -> Topology:
    return topology.with_tier(2, name="server")


def _shorter(topology: Topology) -> Topology:
    return replace(topology, tiers=topology.tiers[:2], links=topology.links[:1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: _moved(t, 2, 1, 0), "tiers edge, base, cloud, in this order, but hosts.yaml has cloud, base, edge"),
        (lambda t: _moved(t, 1, 0, 2), "in this order, but hosts.yaml has base, edge, cloud"),
        (_renamed, "it lacks cloud and new are server; plan with this topology"),
        (_shorter, "hosts.yaml has edge, base: it lacks cloud"),
        (lambda t: replace(t, source=1), "made for the source edge, but in hosts.yaml it is base"),
        (lambda t: replace(t, destination=2), "made for the destination edge, but in hosts.yaml it is cloud"),
        (lambda t: replace(t, ingest="message"), "made for ingest in_process, but hosts.yaml has message"),
    ],
)
def test_other_tiers_are_refused_by_run_and_by_deploy(
    planned: PlanFile, tmp_path: Path, change: Callable[[Topology], Topology], message: str
) -> None:
    planned.save(tmp_path / "plan.json")
    (tmp_path / "hosts.yaml").write_text(topology_yaml(change(TOPOLOGY)))
    given = ("plan.json", "--network", "none.onnx", "--topology", "hosts.yaml")
    for command in (("run", *given, "--out", "run.zip"), ("deploy", *given, "--plain")):
        done = portend(*command, cwd=tmp_path)
        assert done.returncode == 1
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not (tmp_path / "run.zip").exists()


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (lambda t: t.with_link(0, bandwidth_bps=4.9e6), "made for 10 Mbit/s between edge–base, but it is 4.9 Mbit/s"),
        (lambda t: t.with_link(1, propagation_delay_s=0.1), "a delay of 40 ms between base–cloud, but it is 100 ms"),
        (lambda t: t.with_tier(0, slowdown=1.0), "edge with slowdown 27.15, but it has 1"),
        (lambda t: t.with_tier(1, device="pi"), "base as device local, but it is pi"),
        (lambda t: t.with_tier(2, memory_bytes=1e6), "cloud with any memory, but it has 1000000 B"),
    ],
)
def test_what_costs_much_more_or_less_is_warned_about(
    planned: PlanFile, change: Callable[[Topology], Topology], warning: str
) -> None:
    (told,) = planned.checked(change(TOPOLOGY), "plan.json", "hosts.yaml")
    assert warning in told
    assert "plan with hosts.yaml" in told


def test_what_costs_about_the_same_is_not(planned: PlanFile) -> None:
    near = TOPOLOGY.with_link(0, bandwidth_bps=6e6, propagation_delay_s=0.03).with_tier(0, host="10.0.0.7", port=7200)
    assert planned.checked(near) == []
    at_once = TOPOLOGY.with_link(0, propagation_delay_s=1e-5)
    quick = replace(planned, topology=TOPOLOGY.with_link(0, propagation_delay_s=1e-4))
    assert quick.checked(at_once) == []


def _old(planned: PlanFile) -> dict[str, Any]:
    """What the first version wrote: no version, no topology, tiers by the names of their executions."""
    document: dict[str, Any] = json.loads(json.dumps(planned.to_dict()))
    for key in ("format", "version", "tiers", "topology", "search"):
        del document[key]
    del document["profiled"]["samples"]
    return document


def test_an_older_file_is_read_and_its_tiers_are_known(planned: PlanFile, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(_old(planned)))
    found = load_plan(path)
    assert (found.plan, found.fallbacks, found.tiers) == (planned.plan, planned.fallbacks, planned.tiers)
    assert set(found.ranges) == set(planned.ranges)
    assert found.checked(TOPOLOGY) == []
    with pytest.raises(MismatchError, match="in this order"):
        found.checked(_moved(TOPOLOGY, 2, 1, 0))


def test_a_plan_by_hand_has_to_name_its_tiers(planned: PlanFile, tmp_path: Path) -> None:
    path, plan = tmp_path / "plan.json", planned.plan.to_dict()
    path.write_text(json.dumps(plan))
    with pytest.raises(MismatchError, match="does not say which tiers it was made for; plan with"):
        load_plan(path).checked(TOPOLOGY)
    path.write_text(json.dumps(plan | {"tiers": ["edge", "base", "cloud"]}))
    assert load_plan(path).checked(TOPOLOGY) == []
    path.write_text(json.dumps(plan | {"tiers": ["edge"]}))
    with pytest.raises(StorageError, match="by their index from 0, but got"):
        load_plan(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "reads plans up to version 2, but got 3; upgrade Portend"),
        ({"version": "x"}, "reads plans up to version 2, but got 'x'"),
        ({"tiers": ["a", "b", "c"]}, "the tiers of a plan are those of its topology"),
        ({"tiers": 7}, "a plan's tiers are a list of names"),
        ({"topology": {"tiers": []}}, "damaged"),
        ({"profiled": [1]}, "damaged"),
        ({"profiled": {"executions": {"moon": {}}}}, "executions are of the tiers edge, base, cloud, but got moon"),
        ({"profiled": {"ranges": {"x": {}}}}, "damaged|ranges"),
        ({"search": {"space": {"thresholds": [2.0]}}}, "damaged|thresholds lie within 0–1"),
        ({"fallbacks": [{}]}, "damaged"),
        ({"gap": "small"}, "damaged"),
        ({"plan": {"cuts": []}}, "a plan's placement is a list"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(
    planned: PlanFile, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(planned.to_dict() | change))
    with pytest.raises(StorageError, match=message) as caught:
        load_plan(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_plan_of_other_weights_or_too_many_blocks_is_refused(planned: PlanFile) -> None:
    spec = load_profile(PROFILE).backbone
    planned.check_network(spec)
    with pytest.raises(MismatchError, match="with other weights than those in net"):
        planned.check_network(replace(spec, weights_sha256="0" * 64), "plan.json", "net.onnx")
    longer = PlanFile(plan=Plan(cuts=(11,), placement=(0,)))
    with pytest.raises(MismatchError, match="has 10 blocks, but the plan runs 11"):
        longer.check_network(spec)


def test_the_tiers_of_a_plan_exist() -> None:
    with pytest.raises(InvalidValue, match="places on the tiers a, b by their index from 0, but got the index 2"):
        PlanFile(plan=Plan(cuts=(4,), placement=(2,)), tiers=("a", "b"))


def test_a_key_that_is_written_twice_is_refused(planned: PlanFile, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"cuts": [4], "placement": [0], "placement": [1], "tiers": ["a", "b"]}')
    with pytest.raises(StorageError, match="the key 'placement' is there twice; keep one"):
        load_plan(path)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("run", "--trace names 0 twice, with a.txt and b.txt; give one of them"),
        ("deploy", "--batch names edge twice, with 2 and 3; give one of them"),
    ],
)
def test_an_option_that_names_one_thing_twice_is_refused(
    tmp_path: Path, command: str, words: str, network: Path
) -> None:
    tiers = tuple(tier.name for tier in TOPOLOGY.tiers)
    PlanFile(plan=Plan(cuts=(4,), placement=(0,), codecs=(None,)), tiers=tiers).save(tmp_path / "plan.json")
    (tmp_path / "t.yaml").write_text(topology_yaml(TOPOLOGY))
    more = {
        "run": ("--trace", "0=a.txt", "--trace", "0=b.txt", "--out", "x.zip"),
        "deploy": ("--batch", "edge=2", "--batch", "edge=3", "--plain"),
    }
    given = ("plan.json", "--network", network, "--topology", "t.yaml", *more[command])
    done = portend(command, *given, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr


def test_python_and_the_command_line_answer_alike() -> None:
    model = PerformanceModel(load_profile(PROFILE), TOPOLOGY)
    here = solve(Problem(minimize=latency, subject_to=(accuracy >= 0.88,)), model, baselines=False)
    topology = ROOT / "configs/topologies/three_tier.yaml"
    done = portend("plan", PROFILE, "--topology", topology, "--min-accuracy", "0.88", "--json")
    answer = json.loads(done.stdout)
    assert answer["plan"] == here.plan.to_dict()
    assert answer["estimate"]["latency_ms"]["mean"] == pytest.approx(1e3 * here.estimate.mean_s, rel=1e-12)
    assert answer["search"]["space"]["exits_per_tier"] == here.problem.space.exits_per_tier == 2


def test_the_report_draws_the_plans_among_which_the_plan_was_searched(
    planned: PlanFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert planned.search is not None
    asked = replace(planned.search, space=replace(planned.search.space, tiers=(0,), block_tiers={}))
    assert Search.from_text(asked.to_text()) == asked
    assert Search.from_text("{}") is None
    found: list[Any] = []
    monkeypatch.setattr("portend.report.page.write_report", lambda out, data: found.append(data))
    model = asked.model(load_profile(PROFILE), TOPOLOGY)
    for text in ("", asked.to_text()):
        save(_measured(planned, {"search": text}), tmp_path / "run.zip")
        done = portend("report", PROFILE, tmp_path / "run.zip", "--out", tmp_path / "r.html")
        assert done.returncode == 0, done.stderr
    assert found[0].problem == "measured plans"
    assert found[1].problem == planned.problem
    front = solve(Problem(minimize=latency, space=asked.space), model, baselines=False).front
    assert list(found[1].cloud["front_latency_s"]) == pytest.approx([point.latency_s for point in front])
    assert set(found[1].cloud["partitions"]) <= {1.0, 2.0}
    assert max(found[0].cloud["partitions"]) > 2


def _measured(planned: PlanFile, provenance: dict[str, str]) -> Measurement:
    """Ten samples that a plan's last partition answered after 30 ms."""
    count, last = np.zeros(10, dtype=np.int64), len(planned.plan) - 1
    tier = planned.plan.placement[-1]
    return Measurement(
        plan=planned.plan,
        topology=TOPOLOGY,
        sample=np.arange(10),
        exit_index=count + last,
        label=count,
        correct=np.ones(10, dtype=np.bool_),
        start_s=np.arange(10.0),
        latency_s=np.full(10, 0.03),
        span_request=np.arange(10),
        span_kind=count + SPAN_KINDS.index("compute"),
        span_step=count + last,
        span_tier=count + tier,
        span_start_s=np.zeros(10),
        span_end_s=np.full(10, 0.03),
        provenance=provenance,
    )


def test_an_answer_says_its_outcome_first_and_names_tiers_in_python_too() -> None:
    model = PerformanceModel(load_profile(PROFILE), TOPOLOGY)
    bound = (accuracy >= 0.88,)
    found = solve(Problem(minimize=latency, subject_to=bound, space=SearchSpace(tiers=(1,))), model, baselines=False)
    first, *rest = str(found).splitlines()
    assert first.startswith(f"The best of {found.stats.plans:,} plans: {1e3 * found.estimate.mean_s:.2f} ms a sample")
    assert "base [1–" in rest[2]
    assert "tier 1" not in str(found)
    missed = solve(Problem(minimize=latency, subject_to=(accuracy >= 1.0,)), model, baselines=False)
    assert str(missed).startswith("No plan meets the constraints; the one that comes nearest: ")


def test_a_profile_is_shown_in_ten_lines() -> None:
    profile = load_profile(PROFILE)
    lines = str(profile).splitlines()
    assert len(lines) <= 10
    assert all(len(line) <= 200 for line in lines)
    assert lines[0] == "Profile of resnet20: 10 blocks, 10 exits, 10 classes"
    assert f"{100 * profile.full_accuracy:.2f} % without early exits" in lines[3]
    assert repr(profile) == f"<{lines[0]}>"
    assert profile._repr_html_().startswith("<pre>Profile of resnet20")


def test_what_is_said_of_new_samples_is_read_back_from_the_file(tmp_path: Path) -> None:
    model = PerformanceModel(load_profile(PROFILE), TOPOLOGY)
    problem = Problem(minimize=latency, subject_to=(accuracy >= 0.88,), space=SearchSpace(tiers=(1,)))
    found = solve(problem, model, baselines=False, new_samples=True)
    PlanFile.of(found, model).save(tmp_path / "plan.json")
    planned = load_plan(tmp_path / "plan.json")
    assert planned.on_new_samples == str(found.new_samples)
    assert "right on new samples" in planned.on_new_samples
    for other in ({}, {"new_samples": None}, {"new_samples": {"accuracy": "x"}}):
        assert replace(planned, answer=other).on_new_samples == ""
