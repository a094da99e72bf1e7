"""Sweeps and crossovers against values worked out by hand; paths, units, backends, tables, the page, the command."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands import ROOT, portend
from portend.analysis.whatif import (
    Axis,
    Scenario,
    connected,
    fields_of,
    find_crossovers,
    find_field,
    parse_axis,
    sweep,
)
from portend.errors import InvalidValue, MismatchError
from portend.planner.metrics import energy, latency_quantile
from portend.planner.problem import Problem, SearchSpace, accuracy, latency
from portend.report import whatif_page
from portend.values.exits import SampleExits, TabulatedExits
from portend.values.profile import Profile
from portend.values.topology import Link, Tier, Topology
from problems import backbone, codec, device, draws, random_case, result_profile

PROFILE = str(ROOT / "profiles/resnet20-digits.zip")
TOPOLOGY = str(ROOT / "configs/topologies/three_tier.yaml")


def tiny(**space: Any) -> Scenario:
    """Two blocks on an edge (40 + 60 ms) and a cloud (1 + 1 ms), 10 ms apart, without packet headers.

    The input has 1000 B, the tensor in between 100 B, a result 64 B; nothing else takes time. At B bit/s:
    all on the edge 100 ms; one block on each 61 ms + 164 B; all in the cloud 22 ms + 1064 B. So the plan
    flips at 8 · 164 / 39 ms and at 8 · 900 / 39 ms.
    """
    codecs = {"float32": codec([1000, 100, 50])}
    result = result_profile(message_bytes=64)
    edge = device("edge", [[0, 0.04, 0.1], [0, 0, 0.06], [0, 0, 0]], codecs=codecs, result=result)
    cloud = device("cloud", [[0, 0.001, 0.002], [0, 0, 0.001], [0, 0, 0]], codecs=codecs, result=result)
    exits = SampleExits(
        scores={"entropy": np.zeros((4, 2))}, correct=np.array([[1, 1], [1, 1], [0, 1], [0, 0]], dtype=np.bool_)
    )
    link = Link(bandwidth_bps=1e5, propagation_delay_s=0.01, header_bytes=0)
    tiers = (Tier(name="edge", device="edge"), Tier(name="cloud", device="cloud"))
    restricted: dict[str, Any] = {"thresholds": (0.0,), "truncation": False} | space
    return Scenario(
        profile=Profile(backbone=backbone(2), exits=exits, devices={"edge": edge, "cloud": cloud}),
        topology=Topology(name="two", tiers=tiers, links=(link,)),
        problem=Problem(minimize=latency, space=SearchSpace(**restricted)),
    )


p95 = latency_quantile(0.95)
FIRST, SECOND = 8 * 164 / 0.039, 8 * 900 / 0.039


# --- paths, units, values ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path", "values"),
    [
        ("links[0].bandwidth=1,2,5 Mbit/s", "links[0].bandwidth", (1e6, 2e6, 5e6)),
        ("links.0.bandwidth = 500 kbit/s, 1, 2 Mbit/s", "links[0].bandwidth", (5e5, 1e6, 2e6)),
        ("links[0].propagation_delay=0..40 ms 5", "links[0].propagation_delay", (0, 0.01, 0.02, 0.03, 0.04)),
        ("links[0].bandwidth=100 kbit/s..10 Mbit/s log 3", "links[0].bandwidth", (1e5, 1e6, 1e7)),
        ("links[0].mtu=576, 1500 B", "links[0].mtu", (576, 1500)),
        ("tiers[1].slowdown=1,2.5", "tiers[cloud].slowdown", (1.0, 2.5)),
        ("tiers[edge].device=edge,cloud", "tiers[edge].device", ("edge", "cloud")),
        ("topology.destination=edge,1", "topology.destination", ("edge", "cloud")),
        ("problem.min_accuracy=0.5..0.7 lin 3", "problem.min_accuracy", (0.5, 0.6, 0.7)),
        ("problem.max_latency=60 ms", "problem.max_latency", (0.06,)),
        ("model.estimator=sample,marginal", "model.estimator", ("sample", "marginal")),
        ("space.exits_per_tier=1..3", "space.exits_per_tier", (1, 2, 3)),
        ("space.max_partitions=1,all", "space.max_partitions", (1, None)),
        ("space.tiers=edge,edge+cloud,all", "space.tiers", (("edge",), ("edge", "cloud"), None)),
        ("space.exits=none,1,1+2", "space.exits", ((), (1,), (1, 2))),
        ("space.thresholds=0,0+0.5", "space.thresholds", ((0.0,), (0.0, 0.5))),
        ("space.truncation=yes,no", "space.truncation", (True, False)),
        ("space.block_tiers[1]=edge,all", "space.block_tiers[1]", (("edge",), None)),
        ("profile.devices[edge].compute=x0.5,x2", "profile.devices[edge].compute", (0.5, 2.0)),
        ("profile.exits.score=1..2 3", "profile.exits.score", (1.0, 1.5, 2.0)),
    ],
)
def test_axes_are_read_as_written(text: str, path: str, values: tuple[Any, ...]) -> None:
    axis = parse_axis(tiny(), text)
    assert axis.path == path
    assert axis.values == pytest.approx(values) if isinstance(values[0], float) else axis.values == values
    field = find_field(tiny(), path)
    for value in axis.values:  # what is shown can be read again, and what is written is read back
        assert field.parse(field.format(value, 12)) == value
        written = field.read(tiny().changed({path: value}))
        assert written == (1.0 if field.kind == "factor" else value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("links[1].bandwidth=1 Mbit/s", "no field 'links[1].bandwidth'; did you mean 'links[0].bandwidth'?"),
        ("nonsense=1", "the fields here are links[0].{bandwidth, propagation_delay, mtu, headers}; tiers[edge]."),
        ("links[0].bandwidth=1,2", "links[0].bandwidth: a bandwidth needs one of its units, but '1' has no unit"),
        ("links[0].bandwidth=1,2 ms", "unknown unit 'ms'"),
        ("links[0].bandwidth=", "written like"),
        ("links[0].bandwidth=1,,2 Mbit/s", "a value is missing"),
        ("links[0].bandwidth=1..2 Mbit/s", "say how many values"),
        ("links[0].propagation_delay=0..1 ms log 3", "starts above 0"),
        ("links[0].bandwidth=1..2 Mbit/s 1", "at least two values"),
        ("links[0].mtu=1.5 B", "links[0].mtu: a whole number is needed here, but got 1.5"),
        ("tiers[edge].device=pi", "tiers[edge].device: what is needed here is one of edge, cloud, but got 'pi'"),
        ("tiers[edge].slowdown=fast", "tiers[edge].slowdown: a number is needed here, but got 'fast'"),
        ("space.truncation=maybe", "yes or no, but got 'maybe'"),
        ("space.tier_order=any..increasing", "a range needs numbers"),
        ("space.exits_per_tier=all", "a number is needed here, but got 'all'"),
    ],
)
def test_what_cannot_be_swept_is_named(text: str, message: str) -> None:
    with pytest.raises(InvalidValue, match=re.escape(message)) as caught:
        parse_axis(tiny(), text)
    assert "\n" not in str(caught.value)


def test_values_that_break_a_law_end_the_sweep_before_it_starts() -> None:
    for text, message in (
        ("links[0].bandwidth=1,0 Mbit/s", "links[0].bandwidth = 0 bit/s: a link's bandwidth is positive"),
        ("space.exits_per_tier=0,1", "space.exits_per_tier = 0: a tier holds at least one"),
        ("problem.min_accuracy=90", "problem.min_accuracy = 90: accuracy is a share"),
        ("profile.devices[edge].compute=0", "profile.devices[edge].compute = x0: a factor"),
    ):
        with pytest.raises(InvalidValue, match=re.escape(message)):
            sweep(tiny(), [parse_axis(tiny(), text)])


def test_every_field_can_be_written_and_changes_only_itself() -> None:
    scenario = tiny()
    fields = fields_of(scenario)
    assert list(fields) == [field.path for field in fields.values()]
    for path, field in fields.items():
        other: Any = {"switch": not field.read(scenario), "choice": field.choices[-1:] and field.choices[-1]}.get(
            field.kind, 2 if field.whole else 0.5
        )
        if field.kind == "list":
            other = field.choices[:1] or (1,)
        changed = scenario.changed({path: other})
        for each in fields.values():
            if each.path == path and field.kind != "factor":
                assert each.read(changed) == other
            else:
                assert each.read(changed) == each.read(scenario), (path, each.path)


def test_factors_scale_what_was_measured() -> None:
    found = sweep(
        tiny(tiers=(0,)), [Axis(path="profile.devices[edge].compute", values=(0.5, 1.0, 3.0))], baselines=False
    )
    assert [p.solution and p.solution.estimate.mean_s for p in found.points] == pytest.approx([0.05, 0.1, 0.3])
    larger = tiny().changed({"profile.devices[edge].codecs[float32].message": 2.0})
    assert larger.profile.devices["edge"].codecs["float32"].message_bytes.tolist() == [2000, 200, 100]


def test_tables_of_exits_have_no_scores_to_scale() -> None:
    exits = TabulatedExits(
        thresholds=np.array([0.0]), exited=np.zeros((1, 2), dtype=np.int64), correct=np.array([2, 3]), samples=4
    )
    scenario = replace(tiny(), profile=replace(tiny().profile, exits=exits))
    assert "profile.exits.score" not in fields_of(scenario)
    with pytest.raises(MismatchError, match="sample estimator needs per-sample scores"):
        sweep(scenario, [Axis(path="model.estimator", values=("sample",))])


# --- sweeps ------------------------------------------------------------------------------------


def test_a_grid_is_the_product_with_the_last_axis_fastest() -> None:
    scenario = tiny()
    axes = [
        parse_axis(scenario, text) for text in ("links[0].bandwidth=10,100,1000 kbit/s", "tiers[edge].slowdown=1,2")
    ]
    progress: list[tuple[int, int]] = []
    found = sweep(scenario, axes, on_progress=lambda done, total: progress.append((done, total)))
    assert [p.values for p in found.points] == [(1e4, 1), (1e4, 2), (1e5, 1), (1e5, 2), (1e6, 1), (1e6, 2)]
    assert progress == [(k, 6) for k in range(1, 7)]
    expected = [0.1, 0.2, 0.061 + 1312e-5, 0.022 + 8512e-5, 0.022 + 8512e-6, 0.022 + 8512e-6]
    assert [p.solution and p.solution.estimate.mean_s for p in found.points] == pytest.approx(expected)
    assert [p.plan and p.plan.placement for p in found.points] == [(0,), (0,), (0, 1), (1,), (1,), (1,)]
    baselines = [p.solution.baselines["cloud-only"].estimate.mean_s for p in found.points if p.solution]
    assert baselines == pytest.approx([0.022 + 8512 / b for b in (1e4, 1e4, 1e5, 1e5, 1e6, 1e6)])


def test_a_list_pairs_the_values() -> None:
    scenario = tiny()
    axes = [parse_axis(scenario, text) for text in ("links[0].bandwidth=10,100 kbit/s", "tiers[edge].slowdown=1,2")]
    assert [p.values for p in sweep(scenario, axes, zipped=True).points] == [(1e4, 1), (1e5, 2)]
    with pytest.raises(InvalidValue, match="equally many values"):
        sweep(scenario, [axes[0], Axis(path="tiers[edge].slowdown", values=(1,))], zipped=True)
    with pytest.raises(InvalidValue, match="each field is swept once"):
        sweep(scenario, [axes[0], Axis(path="links.0.bandwidth", values=(1e6,))])


def test_infeasible_points_and_empty_spaces_are_answers() -> None:
    found = sweep(tiny(), [Axis(path="problem.min_accuracy", values=(0.5, 0.75, 0.9))])
    assert [p.status for p in found.points] == ["optimal", "optimal", "infeasible"]
    assert found.points[2].plan is not None
    empty = sweep(tiny(), [Axis(path="space.min_partitions", values=(1, 5))])
    assert [p.status for p in empty.points] == ["optimal", "no plan"]
    assert "min_partitions=5" in empty.points[1].reason
    assert empty.points[1].to_dict() == {"status": "no plan", "reason": empty.points[1].reason}
    for one in (found, empty):
        assert "misses" in whatif_page.render_page(one, find_crossovers(one))


def test_the_swept_bound_is_not_stated_as_fixed() -> None:
    scenario = tiny()
    bounded = replace(scenario, problem=replace(scenario.problem, subject_to=(accuracy >= 0.5, latency <= 1)))
    assert sweep(bounded, [Axis(path="problem.min_accuracy", values=(0.5,))]).asked == (
        "minimize latency subject to latency ≤ 1 s"
    )


# --- crossovers --------------------------------------------------------------------------------


def test_crossovers_are_where_the_latencies_worked_out_by_hand_meet() -> None:
    found = sweep(tiny(), [parse_axis(tiny(), "links[0].bandwidth=10,1000 kbit/s")])
    first, second = find_crossovers(found, pieces=1)  # both in one gap
    assert first.value == pytest.approx(FIRST, rel=1e-9)
    assert second.value == pytest.approx(SECOND, rel=1e-9)
    for flip, before, after in ((first, (0,), (0, 1)), (second, (0, 1), (1,))):
        assert flip.below.plan is not None
        assert flip.above.plan is not None
        assert (flip.below.plan.placement, flip.above.plan.placement) == (before, after)
        assert flip.kind == "tie"
        low, high = flip.below.values[0], flip.above.values[0]
        assert low < flip.value < high <= low * (1 + 1e-9)
        for value, point in ((low * (1 - 1e-8), flip.below), (high * (1 + 1e-8), flip.above)):
            again = sweep(tiny(), [Axis(path="links[0].bandwidth", values=(value,))]).points[0]
            assert again.decides_like(point)
        for side in (flip.below, flip.above):  # both plans, judged on both sides, are equally good
            model = tiny().changed({"links[0].bandwidth": side.values[0]}).model()
            one, two = model.estimate(flip.below.plan), model.estimate(flip.above.plan)
            assert one.mean_s == pytest.approx(two.mean_s, rel=1e-8)


def test_more_pieces_find_the_same_crossovers() -> None:
    found = sweep(tiny(), [parse_axis(tiny(), "links[0].bandwidth=1000,100,10 kbit/s")])  # in any order
    for pieces in (1, 2, 8, 13):
        values = [flip.value for flip in find_crossovers(found, pieces=pieces)]
        assert values == pytest.approx([FIRST, SECOND], rel=1e-9)


def test_a_tolerance_of_nothing_ends_with_neighboring_floats() -> None:
    found = sweep(tiny(), [Axis(path="links[0].bandwidth", values=(1e4, 1e5))])
    (flip,) = find_crossovers(found, tolerance=1e-300, pieces=1)
    assert math.nextafter(flip.below.values[0], math.inf) == flip.above.values[0]
    assert flip.value == pytest.approx(FIRST, rel=1e-10)


def test_whole_numbers_flip_between_neighbors_and_bounds_make_jumps() -> None:
    scenario = tiny().changed({"links[0].bandwidth": 1e5})
    (flip,) = find_crossovers(sweep(scenario, [Axis(path="space.max_partitions", values=(1, 9))]))
    assert (flip.below.values, flip.above.values, flip.value, flip.kind) == ((1,), (2,), 2, "jump")
    found = sweep(tiny(truncation=True), [Axis(path="problem.min_accuracy", values=(0.0, 1.0))], baselines=False)
    flips = find_crossovers(found)
    assert [f.value for f in flips] == pytest.approx([0.5, 0.75], rel=1e-8)
    assert [f.kind for f in flips] == ["jump", "jump"]
    assert [f.above.status for f in flips] == ["optimal", "infeasible"]


def test_crossovers_of_a_grid_follow_each_row() -> None:
    axes = [Axis(path="tiers[cloud].slowdown", values=(1.0, 2.0)), Axis(path="links[0].bandwidth", values=(1e4, 1e6))]
    found = sweep(tiny(), axes)
    flips = find_crossovers(found, axis=1)
    assert [flip.below.values[0] for flip in flips] == [1, 1, 2, 2]
    expected = [FIRST, SECOND, 8 * 164 / 0.038, 8 * 900 / 0.038]
    assert [flip.value for flip in flips] == pytest.approx(expected, rel=1e-9)
    assert flips[2].to_dict()["fixed"] == [2.0]
    assert "best plan" in whatif_page.render_page(found, flips)
    with pytest.raises(InvalidValue, match="need a field of numbers"):
        find_crossovers(sweep(tiny(), [Axis(path="space.truncation", values=(True, False))]))
    with pytest.raises(InvalidValue, match="need a grid"):
        find_crossovers(sweep(tiny(), axes, zipped=True))


@pytest.mark.parametrize("seed", draws(8, 4))
def test_random_problems_flip_only_at_the_crossovers(seed: int) -> None:
    case = random_case(seed, blocks=4, tiers=3, estimator="sample")
    problem = Problem(minimize=latency, subject_to=(accuracy >= 0.4,))
    scenario = Scenario(profile=case.profile, topology=case.topology, problem=problem)
    found = sweep(scenario, [parse_axis(scenario, "links[0].bandwidth=0.1..1000 Mbit/s log 5")], baselines=False)
    flips = find_crossovers(found)
    probes = np.geomspace(1.01e5, 0.99e9, 60).tolist()
    checked = sweep(scenario, [Axis(path="links[0].bandwidth", values=tuple(probes))], baselines=False)
    for point in checked.points:
        passed = [flip for flip in flips if flip.value <= point.values[0]]
        expected = passed[-1].above if passed else found.points[0]
        assert point.decides_like(expected)


def test_crossovers_are_found_along_every_field() -> None:
    """At B bit/s the edge alone takes 100·s ms, one block on each 21 + 40·s ms + 8·164/B: they meet at both fields."""
    axes = [Axis(path="links[0].bandwidth", values=(1e4, 5e4)), Axis(path="tiers[edge].slowdown", values=(0.3, 1.0))]
    found = sweep(tiny(), axes)
    flips = find_crossovers(found)
    slower = [flip for flip in flips if flip.axis == 1]
    assert [flip.value for flip in flips if flip.axis == 0] == pytest.approx([FIRST], rel=1e-9), "only at slowdown 1"
    assert [flip.below.values[0] for flip in slower] == [5e4]
    assert [flip.value for flip in slower] == pytest.approx([(0.021 + 8 * 164 / 5e4) / 0.06], rel=1e-8)
    page = whatif_page.render_page(found, flips)
    assert "along" in page
    table = whatif_page.crossover_table(found, flips)
    heads = [str(column.header).replace("\n", "") for column in table.columns]
    assert heads[:3] == ["along", *(axis.path for axis in axes)]
    assert [flip.value for flip in find_crossovers(found, axis=0)] == [flips[0].value]


def with_power() -> Scenario:
    """The edge draws 2 W, the cloud 100 W: all on the edge 0.2 J, one block each 0.08 + 0.1 J, in the cloud 0.2 J."""
    scenario = tiny(truncation=True)
    tiers = tuple(replace(t, power_w=w) for t, w in zip(scenario.topology.tiers, (2.0, 100.0), strict=True))
    return replace(scenario, topology=replace(scenario.topology, tiers=tiers))


def test_any_metric_may_be_swept_drawn_and_bounded() -> None:
    scenario = with_power()
    whole = replace(scenario.problem.space, truncation=False)
    least = replace(scenario, problem=Problem(minimize=energy, subject_to=(p95 <= 1.0,), space=whole))
    found = sweep(least, [Axis(path="tiers[cloud].power", values=(50.0, 150.0))])
    assert [p.solution and p.solution.values["energy"] for p in found.points] == pytest.approx([0.1, 0.2])
    flips = find_crossovers(found, pieces=1)
    # all in the cloud 2 ms · P, one block each 80 mJ + 1 ms · P, all on the edge 200 mJ: from 80 to 120 W the second
    assert [flip.value for flip in flips] == pytest.approx([80.0, 120.0], rel=1e-6)
    assert [flip.kind for flip in flips] == ["tie", "tie"]
    assert found.points[0].to_dict()["metrics"] == pytest.approx({"energy": 0.1, "p95": 0.022 + 0.08512})
    page = whatif_page.render_page(found, flips)
    assert "energy [mJ]" in page
    assert "mean latency [ms]" not in page.lower().split("<h2>plans")[0]
    bounded = sweep(least, [parse_axis(least, "problem.max_p95=50, 80, 300 ms")], baselines=False)
    assert [p.status for p in bounded.points] == ["infeasible", "optimal", "optimal"]
    assert bounded.asked == "minimize energy"


def test_several_objectives_show_the_plan_and_all_their_values() -> None:
    scenario = with_power()
    both = replace(scenario, problem=replace(scenario.problem, minimize=(energy, p95)))
    found = sweep(both, [Axis(path="tiers[cloud].power", values=(10.0, 150.0))])
    flips = find_crossovers(found)
    table = whatif_page.sweep_table(found, flips)
    headers = [str(column.header) for column in table.columns]
    assert headers[-2:] == ["energy", "best\nbaseline"]
    assert "p95" in whatif_page.render_page(found, flips)
    for point in found.points:
        assert point.solution is not None
        assert set(point.to_dict()["metrics"]) == {"energy", "p95"}


def test_other_metrics_go_through_the_command(tmp_path: Path) -> None:
    done = whatif(
        "--minimize", "p95", "--subject-to", "accuracy>=0.97", "--subject-to", "link_bytes<=5 kB",
        "--exits-per-tier", "1", "--sweep", "problem.max_link_bytes=0, 5, 20 kB", "--tiers", "edge,base",
        "--crossovers", "--json", "--out", str(tmp_path / "page.html"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["problem"] == "minimize p95 subject to accuracy ≥ 0.97"
    values = [point["metrics"]["p95"] for point in answer["points"]]
    assert values == sorted(values, reverse=True)
    for point, bound in zip(answer["points"], (0, 5e3, 2e4), strict=True):
        assert point["metrics"]["link_bytes"] <= bound
        assert 2 not in point["plan"]["placement"]
    assert "p95 [ms]" in (tmp_path / "page.html").read_text(encoding="utf-8")


# --- backends ----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_workers_give_what_one_after_the_other_gives(backend: str) -> None:
    pytest.importorskip("joblib")
    texts = ("links[0].bandwidth=10..1000 kbit/s log 9", "model.estimator=sample,marginal")
    axes = [parse_axis(tiny(), text) for text in texts]
    progress: list[tuple[int, int]] = []
    alone = sweep(tiny(), axes)
    shared = sweep(tiny(), axes, n_jobs=2, backend=backend, on_progress=lambda *at: progress.append(at))
    assert shared.to_dict() == alone.to_dict()
    assert progress[-1] == (18, 18)
    flips = [flip.to_dict() for flip in find_crossovers(alone)]
    assert [flip.to_dict() for flip in find_crossovers(alone, n_jobs=2, backend=backend)] == flips
    assert len(flips) == 4


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(InvalidValue, match="the backends are loky, threading, dask, ray"):
        sweep(tiny(), [Axis(path="links[0].bandwidth", values=(1e6,))], backend="slurm")
    with pytest.raises(InvalidValue, match="at least one worker"):
        sweep(tiny(), [Axis(path="links[0].bandwidth", values=(1e6,))], n_jobs=0)


def test_a_dask_client_of_the_caller_is_used() -> None:
    pytest.importorskip("joblib")
    distributed = pytest.importorskip("distributed")
    axis = parse_axis(tiny(), "links[0].bandwidth=10..1000 kbit/s log 9")
    alone = sweep(tiny(), [axis])
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster),
    ):
        shared = sweep(tiny(), [axis], backend="dask")
        flips = find_crossovers(shared, backend="dask")
    assert shared.to_dict() == alone.to_dict()
    assert [flip.value for flip in flips] == pytest.approx([FIRST, SECOND], rel=1e-9)


@pytest.mark.slow
def test_a_dask_cluster_of_processes_gives_the_same(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    arguments = ("--sweep", "links[0].bandwidth=1..100 Mbit/s log 8", "--min-accuracy", "0.97", "--crossovers")
    alone = whatif(*arguments, "--json")
    shared = whatif(*arguments, "--json", "--backend", "dask", "--jobs", "2")
    assert shared.returncode == alone.returncode == 0, shared.stderr
    assert json.loads(shared.stdout) == json.loads(alone.stdout)
    example = subprocess.run(
        [sys.executable, "examples/whatif_dask.py"], capture_output=True, text=True, cwd=ROOT, check=False, timeout=120
    )
    assert example.returncode == 0, example.stderr
    assert "the same as one after the other: True" in example.stdout


def test_without_a_backend_nothing_is_connected() -> None:
    with connected(None), connected("loky", 2):
        assert "distributed" not in vars(sys.modules["portend.analysis.whatif"])


# --- tables, the page, the command ---------------------------------------------------------------


def whatif(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return portend("whatif", PROFILE, "--topology", TOPOLOGY, *arguments, cwd=cwd)


def test_the_command_prints_json_only_and_writes_the_page(tmp_path: Path) -> None:
    done = whatif(
        "--min-accuracy", "0.97", "--exits-per-tier", "1", "--sweep", "links[0].bandwidth=1,10 Mbit/s", "--crossovers",
        "--json", "--out", str(tmp_path / "page.html"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    assert set(answer) == {"problem", "zipped", "axes", "points", "crossovers", "disturbed"}
    assert answer["axes"] == [
        {"path": "links[0].bandwidth", "kind": "bandwidth", "values": [1e6, 1e7], "text": ["1 Mbit/s", "10 Mbit/s"]}
    ]
    first = answer["points"][0]
    assert first["values"] == {"links[0].bandwidth": 1e6}
    assert set(first) == {
        "values", "status", "bound", "gap", "plan", "latency_ms", "accuracy", "metrics", "baselines",
    }  # fmt: skip
    assert set(first["baselines"]["edge-only"]) == {"status", "plan", "latency_ms", "accuracy", "metrics"}
    for flip in answer["crossovers"]:
        assert 1e6 < flip["below"]["value"] < flip["above"]["value"] < 1e7
        assert flip["below"]["plan"] != flip["above"]["plan"]
        if flip["kind"] == "tie":
            means = [flip[side]["latency_ms"]["mean"] for side in ("below", "above")]
            assert means[0] == pytest.approx(means[1], rel=1e-6)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "What if: links[0].bandwidth" in page
    assert "default-src 'none'" in page


def test_the_command_prints_tables() -> None:
    done = whatif("--sweep", "problem.min_accuracy=0.9,0.999", "--crossovers", "--tiers", "0", "--no-baselines")
    assert done.returncode == 0, done.stderr
    assert "(misses" in done.stdout  # the cell may fold
    assert "Crossovers" in done.stdout
    assert "jump" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--min-accuracy", "0.9"), "--sweep"),
        (("--sweep", "links[0].mtu=1500 B"), "say what is asked for"),
        (("--sweep", "links[7].mtu=1500 B", "--min-accuracy", "0.9"), "there is no field 'links[7].mtu'"),
        (("--sweep", "links[0].mtu=1500", "--min-accuracy", "0.9"), "has no unit"),
        (("--sweep", "links[0].mtu=40 B", "--min-accuracy", "0.9"), "links[0].mtu = 40 B: a packet holds its headers"),
        (("--sweep", "links[0].mtu=1500 B", "--min-accuracy", "0.9", "--backend", "slurm"), "slurm"),
        (("--sweep", "links[0].mtu=1500 B", "--min-accuracy", "0.9", "--jobs", "0"), "at least one worker"),
        (("--sweep", "space.truncation=yes,no", "--min-accuracy", "0.9", "--crossovers"), "needs a --sweep of numbers"),
        (
            ("--sweep", "links[0].mtu=1500 B", "--min-accuracy", "0.9", "--out", f"{TOPOLOGY}/x.html"),
            "cannot be written",
        ),
    ],
)
def test_bad_input_gets_one_clear_error(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = whatif(*arguments, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_names_are_escaped_and_lists_of_points_are_drawn() -> None:
    scenario = replace(tiny(), topology=replace(tiny().topology, name="<script>two"))
    axes = [Axis(path="links[0].bandwidth", values=(1e4, 1e5)), Axis(path="tiers[edge].slowdown", values=(1.0, 2.0))]
    page = whatif_page.render_page(sweep(scenario, axes, zipped=True))
    assert "&lt;script&gt;two" in page
    assert "<script>two" not in page
    three = [*axes, Axis(path="links[0].mtu", values=(1500,))]
    with pytest.raises(InvalidValue, match="a figure shows one or two fields, but 3 were swept"):
        whatif_page.render_page(sweep(scenario, three))
