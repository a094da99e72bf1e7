"""Profiles of times, sizes and exits that were measured elsewhere, from tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import portend as pt
from portend.cli.app import cli
from portend.errors import ConfigError
from portend.io.storage import load
from portend.profiling.given import FRAMING_BYTES, RESULT_BYTES, device_from_csv, profile_from_csv
from portend.values.device_profile import DeviceProfile
from portend.values.exits import SampleExits, TabulatedExits
from portend.values.profile import Profile

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples/measured_elsewhere"

BLOCKS = """\
block,compute_ms,branch_ms,bytes,accuracy,samples
input,,,3000,,
stem,2,0.5,8000,0.5,200
body,4,,2000,,
head,1,,40,0.9,200
"""
RATES = "block,threshold,exit_rate\nstem,0.2,0.25\nstem,0.5,0.75\n"
SAMPLES = """\
label,entropy_1,correct_1,correct_3
0,0.1,1,1
1,0.4,0,1
2,0.9,0,0
0,0.3,true,True
"""


def written(folder: Path, blocks: str = BLOCKS, exits: str = RATES) -> tuple[Path, Path]:
    (folder / "net.csv").write_text(blocks)
    (folder / "exits.csv").write_text(exits)
    return folder / "net.csv", folder / "exits.csv"


def link(profile: Profile, **values: float) -> pt.PerformanceModel:
    tiers = (pt.Tier(name="a", device="local"), pt.Tier(name="b", device="local"))
    path = pt.Link(bandwidth_bps=1e6, propagation_delay_s=0.01, header_bytes=0, mtu_bytes=60_000)
    return pt.PerformanceModel(profile, pt.Topology(name="t", tiers=tiers, links=(path,)))


def test_a_plan_takes_the_times_of_the_tables(tmp_path: Path) -> None:
    profile = profile_from_csv(*written(tmp_path))
    assert (profile.backbone.name, profile.backbone.block_names) == ("net", ("stem", "body", "head"))
    assert profile.backbone.exit_cuts == (1, 3)
    assert isinstance(profile.exits, TabulatedExits)
    model = link(profile)
    found = model.estimate(pt.Plan(cuts=(1, 3), placement=(0, 1), thresholds=(0.5,), codecs=(None, "float32")))
    message, result = (8 * (size + FRAMING_BYTES) / 1e6 + 0.01 for size in (8000, 0))
    result = 8 * RESULT_BYTES / 1e6 + 0.01
    assert found.mean_s == pytest.approx(0.0025 + 0.25 * (message + 0.005 + result))
    assert found.accuracy == pytest.approx(0.75 * 0.5 + 0.25 * 0.9)
    whole = model.estimate(pt.Plan(cuts=(3,), placement=(0,)))
    assert (whole.mean_s, whole.accuracy) == pytest.approx((0.007, 0.9))


def test_per_sample_scores_are_taken_as_they_are(tmp_path: Path) -> None:
    blocks = BLOCKS.replace("0.5,200", ",").replace("0.9,200", ",")
    exits = profile_from_csv(*written(tmp_path, blocks, SAMPLES)).exits
    assert isinstance(exits, SampleExits)
    assert exits.labels is not None
    assert exits.labels.tolist() == [0, 1, 2, 0]
    assert exits.correct[:, [0, 2]].tolist() == [[True, True], [False, True], [False, False], [True, True]]
    assert exits.score[:, 0].tolist() == [0.1, 0.4, 0.9, 0.3]
    assert np.isnan(exits.score[:, 1]).all()
    confident = SAMPLES.replace("entropy_1", "confidence_stem")
    exits = profile_from_csv(*written(tmp_path, blocks, confident)).exits
    assert (exits.criterion, exits.rates(0.65).tolist()) == ("max_probability", [[0.5, 0.0, 1.0]])


def test_units_of_the_header_are_honored(tmp_path: Path) -> None:
    blocks = "block;time (us);encode_s;decode_ms;bytes\ninput;;0.001;2;12\none;3000;0.004;5;8\ntwo;500;;;4\n"
    device = device_from_csv(written(tmp_path, blocks)[0], device="pi")
    assert np.nan_to_num(device.compute_s).tolist() == pytest.approx(
        np.array([[0, 0.003, 0.0035], [0, 0, 0.0005], [0, 0, 0]])
    )
    codec = device.codecs["float32"]
    assert codec.encode_s() == pytest.approx([0.001, 0.004, 0.0])
    assert codec.decode_s() == pytest.approx([0.002, 0.005, 0.0])
    assert "dispatch of messages cost no time" in device.environment["assumed"]
    assert "encoding" not in device.environment["assumed"]


def test_framing_is_that_of_recorded_profiles() -> None:
    recorded = pt.load_profile(ROOT / "profiles/resnet20-cifar10.zip")
    sizes = [4 * np.prod(shape) for shape in recorded.backbone.cut_shapes[:-1]]
    device = recorded.devices["local"]
    assert set(device.codecs["float32"].message_bytes[:-1] - sizes) == {FRAMING_BYTES}
    assert device.result.message_bytes == RESULT_BYTES


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ("", "a header and rows, but got 0 lines"),
        ("block,compute_ms,bytes\n", "a header and rows, but got 1 lines"),
        (BLOCKS.replace("compute_ms", "compute"), r"net\.csv:1: the columns are .* but got 'compute'"),
        (BLOCKS.replace("bytes", "kilo"), r"net\.csv:1: the columns are .* but got 'kilo'"),
        (
            BLOCKS.replace("branch_ms", "time_s"),
            r"net\.csv:1: there is one column of compute, .*'compute_ms' and 'time_s'",
        ),
        (BLOCKS.replace("branch_ms", "compute_ms"), r"net\.csv:1: each column has a name of its own"),
        ("block,bytes\ninput,3\na,2\n", r"net\.csv:1: a column with a time such as compute_ms is missing"),
        (BLOCKS.replace("input", "image"), r"net\.csv:2: the first row is called input"),
        (BLOCKS.replace("input,,", "input,1,"), r"net\.csv:2: the input takes no time"),
        (BLOCKS.replace("body,4", "body,fast"), r"net\.csv:4: compute_ms is a number, but got 'fast'"),
        (BLOCKS.replace("body,4", "body,-4"), r"net\.csv:4: compute_ms is at least 0 and finite, but got -4"),
        (BLOCKS.replace("body,4", "body,nan"), r"net\.csv:4: compute_ms is at least 0 and finite, but got nan"),
        (BLOCKS.replace(",2000", ","), r"net\.csv:4: bytes is a number, but got ''"),
        (BLOCKS.replace("body", "stem"), r"net\.csv:4: each block has a name of its own, but got 'stem'"),
        (BLOCKS.replace("40,0.9,200", "40"), r"net\.csv:5: a row has 6 values, .* has 4"),
        (BLOCKS.replace("0.9", "90"), r"net\.csv:5: accuracy is a share of samples, 0–1, but got 90"),
        (BLOCKS.replace("0.9,", ","), "accuracy of the exit after head, on all samples, is missing"),
        (BLOCKS.replace("0.9,200", "0.9,300"), r"net\.csv:1: the column samples .* but got 200 \(.*3\), 300 \(.*5\)"),
        (
            BLOCKS.replace("body,4,,2000,", "body,4,,2000,0.7"),
            "has an exit after body, but .*exits.csv says what leaves",
        ),
    ],
)
def test_what_is_wrong_in_blocks_is_said_with_its_line(tmp_path: Path, blocks: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        profile_from_csv(*written(tmp_path, blocks))


@pytest.mark.parametrize(
    ("exits", "message"),
    [
        (RATES.replace("exit_rate", "leaving"), r"exits\.csv:1: the columns are block, threshold and exit_rate"),
        (RATES.replace("stem,0.5", "stom,0.5"), r"exits\.csv:3: no block is called 'stom'; the blocks are stem, body"),
        (RATES.replace("0.75", "75"), r"exits\.csv:3: exit_rate is a share of samples, 0–1, but got 75"),
        (RATES.replace("0.5,", "0.2,"), r"exits\.csv:3: an exit has each threshold once"),
        (RATES.replace("0.75", "0.1"), r"exits\.csv:1: more samples leave at a higher threshold, .* 0\.25, 0\.1"),
        (RATES + "body,0.2,0.3\n", "every exit has a rate at every threshold, but body has none at 0.5"),
        (RATES + "body,0.2,0.3\nbody,0.5,0.4\n", "accuracy of the exit after body, on all samples, is missing"),
        (SAMPLES.replace("entropy_1", "score_1"), r"exits\.csv:1: the columns are .* got 'score_1'"),
        (SAMPLES.replace("correct_3", "correct_2"), r"exits\.csv:1: every exit has a column correct .* correct_3"),
        (SAMPLES.replace("entropy_1", "entropy_4"), r"exits\.csv:1: no block is called '4'"),
        (SAMPLES.replace("0.9,0,0", "1.9,0,0"), r"exits\.csv:4: entropy_1 is a share of samples, 0–1, but got 1\.9"),
        (SAMPLES.replace("true", "maybe"), r"exits\.csv:5: correct_1 is 0 or 1 .* but got 'maybe'"),
        (
            SAMPLES.replace("2,0.9,0,0", "2.5,0.9,0,1").replace("1,0.4", "1.0,0.4"),
            r"exits\.csv:4: a label is a whole number",
        ),
        (SAMPLES, "accuracy after head is 0.9 in the blocks, but 0.7500 over the samples"),
    ],
)
def test_what_is_wrong_in_exits_is_said_with_its_line(tmp_path: Path, exits: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        profile_from_csv(*written(tmp_path, exits=exits))


def test_a_network_without_early_exits_needs_one_table(tmp_path: Path) -> None:
    plain = BLOCKS.replace("0.5,8000,0.5,200", ",8000,,")
    profile = profile_from_csv(written(tmp_path, plain)[0])
    assert profile.backbone.exit_cuts == (3,)
    assert profile.full_accuracy == 0.9
    with pytest.raises(ConfigError, match="has an exit after stem, but no other file says what leaves"):
        profile_from_csv(written(tmp_path)[0])


def test_the_example_is_planned_from_end_to_end(tmp_path: Path) -> None:
    run = CliRunner().invoke
    out, second, both = (str(tmp_path / name) for name in ("a.zip", "b.zip", "c.zip"))
    blocks, exits = str(EXAMPLE / "blocks.csv"), str(EXAMPLE / "exits.csv")
    made = run(cli, ["profile", "alexnet", "--from-csv", blocks, "--exits", exits, "--device", "pi", "--out", out])
    assert made.exit_code == 0, made.output
    assert "a partition takes the sum of its blocks" in " ".join(made.output.split())
    assert load(out, Profile).backbone.name == "alexnet"
    topology = str(EXAMPLE / "topology.yaml")
    plan = ["plan", out, "--topology", topology, "--min-accuracy", "0.8", "--thresholds", "0,0.1,0.3,0.5"]
    planned = run(cli, plan)
    assert planned.exit_code == 0, planned.output
    assert "Assumed: times of pi were given, not measured by Portend" in " ".join(planned.output.split())
    refused = run(cli, plan[:-2])
    assert refused.exit_code == 1
    assert "--thresholds 0.1,0.3,0.5" in refused.output + str(refused.exception)

    made = run(
        cli, ["profile", "alexnet", "--from-csv", blocks, "--device", "server", "--device-only", "--out", second]
    )
    assert made.exit_code == 0, made.output
    assert load(second, DeviceProfile).device == "server"
    merged = run(cli, ["merge", out, second, "--out", both])
    assert merged.exit_code == 0, merged.output
    measuring = ["profile", "--from-csv", blocks, "--criterion", "margin", "--out", out]
    assert "--criterion says how to measure" in run(cli, measuring).output
    for wrong in (["profile", "--out", out], measuring, ["profile", "net", "--exits", exits, "--out", out]):
        assert run(cli, wrong).exit_code == 2
