"""Which codec a hop takes: costs measured at some cuts, losses within the tolerance, and what is said about it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from portend.analysis.codecs import codec_rows, codecs_markdown
from portend.analysis.whatif import Scenario
from portend.cli.app import cli
from portend.errors import InvalidValue, MismatchError, StorageError
from portend.io.storage import load_profile, save
from portend.perfmodel.model import PerformanceModel
from portend.planner.problem import Problem, SearchSpace, accuracy, latency
from portend.planner.solve import solve
from portend.values.codecs import CodecProfile, ValueRange
from portend.values.exits import SampleExits
from portend.values.plan import Plan
from portend.values.profile import Profile
from portend.values.topology import Link, Tier, Topology
from problems import backbone, codec, codec_loss, device

NAN = float("nan")

# One sample, three blocks; the edge takes 10 ms for each, the cloud nothing. A link of 8 kbit/ms without headers: each
# byte takes 1 µs. float32 sends 4 kB, float16 2 kB, int8 1 kB and int8+zstd 0.5 kB at every cut.
SIZES = {"float32": 4000.0, "float16": 2000.0, "int8": 1000.0, "int8+zstd": 500.0, "encoded": 100.0}


def profile(**losses: list[float]) -> Profile:
    codecs = {name: codec([size] + [NAN if name == "encoded" else size] * 3, 0.0) for name, size in SIZES.items()}
    start, end = np.indices((4, 4))
    edge = device("edge", 0.010 * (end - start), codecs=codecs)
    cloud = device("cloud", 0.0 * (end - start), codecs=codecs)
    exits = SampleExits(scores={"entropy": np.ones((1, 3))}, correct=np.ones((1, 3), dtype=np.bool_))
    limits = ValueRange(tensor=np.array([0.0, 1.0]), channels=np.array([[0.0] * 3, [1.0] * 3]))
    return Profile(
        backbone=backbone(3),
        exits=exits,
        devices={"edge": edge, "cloud": cloud},
        losses={name: codec_loss(drops) for name, drops in losses.items()},
        ranges=(limits,) * 3,
    )


TOPOLOGY = Topology(
    name="two",
    tiers=(Tier(name="edge", device="edge"), Tier(name="cloud", device="cloud")),
    links=(Link(bandwidth_bps=8e6, propagation_delay_s=0.0, mtu_bytes=1500, header_bytes=0),),
)


def chosen(model: PerformanceModel, cut: int) -> str | None:
    return model.complete(Plan(cuts=(cut, 3), placement=(0, 1), thresholds=(0.0,))).codecs[1]


def test_a_lossy_codec_is_taken_only_within_the_tolerance() -> None:
    """Of 1,000 samples float16 loses 2, int8 2 at cut 1 and 3 at cut 2; 0.2 points are 2 samples."""
    known = profile(float16=[2, 2, 2], int8=[0, 2, 3])
    model = PerformanceModel(known, TOPOLOGY)
    assert (chosen(model, 1), chosen(model, 2)) == ("int8+zstd", "float16")
    assert chosen(PerformanceModel(known, TOPOLOGY, codec_tolerance=0.003), 2) == "int8+zstd"
    assert chosen(PerformanceModel(known, TOPOLOGY, codec_tolerance=0.0), 1) == "float32"
    with pytest.raises(MismatchError, match=r"loses more accuracy there than 0.2 points"):
        model.estimate(Plan(cuts=(2, 3), placement=(0, 1), thresholds=(0.0,), codecs=(None, "int8")))
    with pytest.raises(InvalidValue, match="at least 0, but got -1"):
        PerformanceModel(known, TOPOLOGY, codec_tolerance=-1)


def test_a_loss_that_was_not_measured_is_none_that_is_tolerated() -> None:
    model = PerformanceModel(profile(int8=[0, NAN, 0]), TOPOLOGY)
    assert (chosen(model, 1), chosen(model, 2)) == ("float32", "int8+zstd")
    assert chosen(PerformanceModel(profile(), TOPOLOGY, codec_tolerance=float("inf")), 1) == "int8+zstd"


def test_the_answer_says_what_a_codec_may_cost_and_which_lost_too_much() -> None:
    space = SearchSpace(thresholds=(0.0,), cuts=(2, 3), block_tiers={1: (0,)}, codecs=("float32", "float16", "int8"))
    problem = Problem(minimize=latency, subject_to=(accuracy >= 1.0,), space=replace(space, truncation=False))
    known = profile(float16=[0, 0, 1], int8=[0, 0, 3])
    solution = solve(problem, PerformanceModel(known, TOPOLOGY))
    assert solution.why is not None
    assert solution.why.codecs == (
        "cut 2 to cloud: float16, which may cost 0.10 points more than the accuracy above; "
        "int8 would save 1.00 ms, but loses 0.30 points there (tolerance 0.2)",
    )
    assert f"    {solution.why.codecs[0]}" in solution.describe().splitlines()
    assert solution.to_dict()["why"]["codecs"] == list(solution.why.codecs)
    unmeasured = solve(problem, PerformanceModel(profile(), TOPOLOGY))
    assert unmeasured.why is not None
    assert "int8 would save 3.00 ms, but what it loses was not measured there" in unmeasured.why.codecs[0]


def test_baselines_send_float32_whatever_else_there_is() -> None:
    known = profile(int8=[0, 0, 0])
    swapped = {name: replace(d, codecs=dict(reversed(list(d.codecs.items())))) for name, d in known.devices.items()}
    solution = solve(Problem(minimize=latency), PerformanceModel(replace(known, devices=swapped), TOPOLOGY))
    assert {name: plan.plan.codecs for name, plan in solution.baselines.items() if "cloud" in name} == {
        "cloud-only": ("float32",),
        "cloud-only encoded": ("encoded",),
    }


def test_the_tolerance_is_a_field_of_a_what_if() -> None:
    problem = Problem(minimize=latency, space=SearchSpace(thresholds=(0.0,), cuts=(2, 3), block_tiers={1: (0,)}))
    scenario = Scenario(profile=profile(int8=[0, 0, 3]), topology=TOPOLOGY, problem=problem)
    assert chosen(scenario.model(), 2) == "float32"
    assert chosen(scenario.changed({"model.codec_tolerance": 0.003}).model(), 2) == "int8+zstd"


def test_where_no_message_was_sent_the_costs_follow_from_lines() -> None:
    """First less busy time is 1 + busy at the cuts 1 and 3, dispatch 2 bytes + 1; so it is at cut 2; cut 0 is apart."""
    first = np.array([[9.0, 3.0, NAN, 7.0, NAN]])
    measured = CodecProfile(
        message_bytes=np.array([5.0, 10.0, 20.0, 30.0, NAN]),
        encode_repeats_s=first,
        encode_busy_repeats_s=np.array([[1.0, 1.0, 2.0, 3.0, NAN]] * 2),
        decode_repeats_s=np.array([[NAN, NAN, 8.0, NAN, NAN]]),
        decode_busy_repeats_s=np.array([[1.0, 2.0, 3.0, 4.0, NAN]]),
        dispatch_repeats_s=np.array([[50.0, 21.0, NAN, 61.0, NAN]]),
    )
    assert measured.encode_s()[:4].tolist() == [9.0, 3.0, 5.0, 7.0]
    assert measured.encode_s(3.0)[:4].tolist() == [11.0, 5.0, 9.0, 13.0]
    assert measured.decode_s()[:4].tolist() == [6.0, 7.0, 8.0, 9.0]  # one difference alone: 5 everywhere
    assert measured.dispatch_s[:4].tolist() == [50.0, 21.0, 41.0, 61.0]
    assert measured.offered.tolist() == [True] * 4 + [False]
    assert np.isnan(measured.encode_s()[4])


def test_a_profile_keeps_ranges_and_losses(tmp_path: Path) -> None:
    known = profile(int8=[1, 2, NAN])
    save(known, tmp_path / "p.zip")
    again = load_profile(tmp_path / "p.zip")
    assert again.losses["int8"].samples == 1000
    assert np.array_equal(again.loss("int8+lz4"), known.loss("int8"), equal_nan=True)
    assert len(again.ranges) == 3
    for ours, theirs in zip(again.ranges, known.ranges, strict=True):
        assert np.array_equal(ours.tensor, theirs.tensor)
        assert np.array_equal(ours.channels, theirs.channels)
    old = load_profile("profiles/resnet20-digits.zip")
    assert (old.ranges, dict(old.losses)) == ((), {})
    assert old.loss("float32").tolist() == [0.0] * 11


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ranges": (ValueRange(tensor=np.zeros(2), channels=np.zeros((2, 3))),)}, "cuts 0–2, or none, but got 1"),
        ({"ranges": (ValueRange(tensor=np.zeros(2), channels=np.zeros((2, 4))),) * 3}, "3 channels, but got .* 4"),
        ({"losses": {"int4": codec_loss([0, 0, 0])}}, "'int4'"),
        ({"losses": {"int8": codec_loss([0, 0])}}, "for 2"),
    ],
)
def test_what_does_not_fit_a_profile_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        replace(profile(), **wrong)  # type: ignore[arg-type]


def test_damaged_ranges_in_a_file_are_refused(tmp_path: Path) -> None:
    class Bent:
        tensor, channels = np.array([1.0, 0.0]), np.zeros((2, 3))

    bent = profile()
    limits = object.__new__(ValueRange)
    for name in ("tensor", "channels"):
        object.__setattr__(limits, name, getattr(Bent, name))
    object.__setattr__(bent, "ranges", (limits,) * 3)
    save(bent, tmp_path / "p.zip")
    with pytest.raises(StorageError, match="from its low to its high end"):
        load_profile(tmp_path / "p.zip")


# -- the commands ----------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(profile(float16=[0, 0, 1], int8=[0, 0, 3]), tmp_path / "p.zip")
    (tmp_path / "two.yaml").write_text(
        "name: two\ntiers:\n  - {name: edge, device: edge}\n  - {name: cloud, device: cloud}\n"
        "links:\n  - {bandwidth: 8 Mbit/s, propagation_delay: 0 ms}\n",
        encoding="utf-8",
    )
    return tmp_path


def test_the_table_of_codecs_shows_where_each_is_offered(saved: Path) -> None:
    rows = codec_rows(load_profile(saved / "p.zip"))
    assert len(rows) == 3 * 4 + 1
    lossy = {(row["cut"], row["codec"]): row for row in rows}
    assert lossy[2, "int8+zstd"]["loss"] == 0.003
    assert (lossy[2, "int8"]["exit"], lossy[2, "int8"]["lost"], lossy[2, "int8"]["offered"]) == (3, 3, False)
    assert lossy[1, "int8"]["offered"]
    assert lossy[0, "encoded"]["bytes"] == 100
    assert len(codecs_markdown(rows).splitlines()) == len(rows) + 2
    run = CliRunner().invoke(cli, ["codecs", str(saved / "p.zip"), "--cuts", "2", "--json"])
    assert [row["codec"] for row in json.loads(run.output)["codecs"]] == ["float32", "float16", "int8", "int8+zstd"]
    table = CliRunner().invoke(cli, ["codecs", str(saved / "p.zip"), "--codec-tolerance", "0.005"]).output
    assert "tolerance 0.5 points" in table
    assert " no" not in table
    for wrong, message in ((["--cuts", "3"], "cuts 0–2"), (["--device", "x"], "but not 'x'")):
        with pytest.raises(MismatchError, match=message):
            CliRunner().invoke(cli, ["codecs", str(saved / "p.zip"), *wrong], catch_exceptions=False)


def test_a_plan_is_written_with_the_ranges_that_it_needs(saved: Path) -> None:
    """The tolerance comes from the problem's file, and from the option before it."""
    (saved / "problem.yaml").write_text(
        "minimize: latency\ncodec_tolerance: 0.003\nhints: {cuts: [2, 3], block_tiers: {1: edge}, truncation: false}\n",
        encoding="utf-8",
    )
    command = ["plan", str(saved / "p.zip"), "--topology", str(saved / "two.yaml"), "--min-accuracy", "1"]
    command += ["--problem", str(saved / "problem.yaml"), "--json"]
    answer = json.loads(CliRunner().invoke(cli, command).output)
    assert answer["plan"]["codecs"] == [None, "int8+zstd"]
    assert list(answer["profiled"]["ranges"]) == ["2"]
    assert ValueRange.from_dict(answer["profiled"]["ranges"]["2"]).channels.shape == (2, 3)
    stricter = json.loads(CliRunner().invoke(cli, [*command, "--codec-tolerance", "0.002"]).output)
    assert stricter["plan"]["codecs"] == [None, "float16"]
    assert stricter["profiled"]["ranges"] == {}


def test_codecs_that_do_not_exist_are_refused_by_the_command() -> None:
    run = CliRunner().invoke(cli, ["profile", "net.safetensors", "--codecs", "int8,gzip", "--out", "p.zip"])
    assert run.exit_code == 2
    assert "but got 'gzip'" in run.output
