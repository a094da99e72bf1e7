"""YAML in, values out; every error names the file, the place and the remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from portend.errors import ConfigError
from portend.io.forms import load_topology, read_yaml
from portend.planner.planfile import load_plan
from portend.values.plan import Plan
from portend.values.topology import SlowStart
from portend.workflows.demo import three_tier

ROOT = Path(__file__).parent.parent
GOOD = """
tiers:
  - {name: edge, device: pi, slowdown: 2, memory: 1 GiB, power: 5 W, price: 0.1 USD/h}
  - {name: cloud}
links:
  - {bandwidth: 10 Mbit/s, propagation_delay: 20 ms, mtu: 9000 B, headers: 0}
destination: cloud
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "t.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_topology_is_read_in_si_units(tmp_path: Path) -> None:
    topology = load_topology(written(tmp_path, GOOD))
    edge, cloud = topology.tiers
    assert (edge.device, edge.slowdown, edge.memory_bytes, edge.power_w, edge.price_usd_per_hour) == (
        "pi",
        2.0,
        2**30,
        5.0,
        0.1,
    )
    assert (cloud.device, cloud.slowdown) == ("local", 1.0)
    link = topology.links[0]
    assert (link.bandwidth_bps, link.propagation_delay_s, link.mtu_bytes, link.header_bytes) == (1e7, 0.02, 9000, 0)
    assert (topology.source, topology.destination, topology.name) == (0, 1, "t")


def test_slow_start_is_off_unless_a_topology_asks_for_it(tmp_path: Path) -> None:
    assert load_topology(written(tmp_path, GOOD)).slow_start is None
    assert load_topology(written(tmp_path, GOOD + "slow_start: {}\n")).slow_start == SlowStart()
    asked = load_topology(written(tmp_path, GOOD + "slow_start: {initial_window: 4, receive_window: 32 KiB}\n"))
    assert asked.slow_start == SlowStart(initial_window=4, receive_window_bytes=32_768)


def test_the_demo_runs_on_the_topology_that_is_shipped() -> None:
    assert load_topology(ROOT / "configs/topologies/three_tier.yaml") == three_tier()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("10 Mbit/s", "10 Mbps", r"t\.yaml: links\[0\]\.bandwidth: .*unknown unit 'Mbps'.*Mbit/s"),
        ("10 Mbit/s", "10", r"links\[0\]\.bandwidth: .*no unit.*10 Mbit/s"),
        ("20 ms", "-20 ms", r"links\[0\]\.propagation_delay: .*not negative"),
        ("bandwidth: 10 Mbit/s", "bandwith: 10 Mbit/s", r"links\[0\]: bandwidth is missing; did you mean.*bandwith"),
        ("slowdown: 2", "slow_down: 2", r"tiers\[0\]\.slow_down: this key is unknown; did you mean 'slowdown'"),
        ("slowdown: 2", "slowdown: fast", r"tiers\[0\]\.slowdown: a number is needed here, but got 'fast'"),
        ("slowdown: 2", "slowdown: 0", r"tiers\[0\]: a tier's slowdown is a positive factor"),
        (
            "destination: cloud",
            "destination: moon",
            r"destination: no tier is called 'moon'; the tiers are edge, cloud",
        ),
        ("  - {name: cloud}\n", "", r"a chain of 1 tiers has 0 links, but got 1"),
        ("  - {name: cloud}\n", "  - {name: edge}\n", r"tier names are unique"),
        ("headers: 0", "headers: 9000 B", r"links\[0\]: a packet holds its headers"),
        ("tiers:", "tiers: 3\nx:", r"tiers: a list is needed here, but got 3"),
        ("{name: cloud}", "cloud", r"tiers\[1\]: a mapping .* but got 'cloud'"),
        ("destination: cloud", "slow_start: 10", r"slow_start: a mapping of keys"),
        ("destination: cloud", "slow_start: {initial_window: 0}", r"slow_start: a connection's initial window"),
        ("destination: cloud", "slow_start: {receive_window: 0 B}", r"slow_start: a receiver lets in at least one"),
        ("destination: cloud", "slow_start: {window: 10}", r"slow_start\.window: this key is unknown"),
        ("destination: cloud", "ingest: post", r"ingest is one of in_process, message"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    text = GOOD.replace(old, new)
    if "destination" not in old and "name: cloud" in old:
        text = text.replace("destination: cloud\n", "")
    with pytest.raises(ConfigError, match=message):
        load_topology(written(tmp_path, text))


def test_files_that_are_no_yaml_mapping(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        load_topology(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_topology(written(tmp_path, "tiers: [a"))
    with pytest.raises(ConfigError, match="a mapping of keys"):
        load_topology(written(tmp_path, "- a"))
    with pytest.raises(ConfigError, match="is not YAML"):  # nothing in a file is executed
        load_topology(written(tmp_path, "tiers: !!python/object/apply:os.system [id]"))


def test_a_number_may_be_written_as_scientists_do(tmp_path: Path) -> None:
    found = read_yaml(written(tmp_path, "a: 5e-4\nb: -1.5E+3\nc: 2e3\nd: 5e-4x\ne: e5\n"))
    assert [found.get(key, float) for key in "abc"] == [5e-4, -1500.0, 2000.0]
    assert [found.get(key, str) for key in "de"] == ["5e-4x", "e5"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "links: []\n", "t.yaml, line 8: the key 'links' is there already, in line 5; keep one of them"),
        ("tiers:\n  - {name: a, name: b}\n", "line 2: the key 'name' is there already, in line 2"),
        ("a: 1\n'a': 2\n", "line 2: the key 'a' is there already, in line 1"),
        ("hints:\n  block_tiers:\n    1: a\n    0x1: b\n", "line 4: the key '0x1' is there already, in line 3"),
        ("base: &base {x: 1, x: 2}\nother: *base\n", "line 1: the key 'x' is there already"),
        ("<<: {a: 1}\n<<: {b: 1}\n", "line 2: the key '<<' is there already, in line 1"),
    ],
)
def test_a_key_that_is_written_twice_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_yaml(written(tmp_path, text))
    assert message in str(caught.value)


def test_a_merged_key_may_be_overridden(tmp_path: Path) -> None:
    text = "base: &base {x: 1, y: 1}\nmore: &more {<<: *base, y: 2}\nlast: {<<: *more, x: 3}\n"
    found = read_yaml(written(tmp_path, text))
    assert [found.get(key, dict) for key in ("more", "last")] == [{"x": 1, "y": 2}, {"x": 3, "y": 2}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2\n", "t.yaml, line 2: this is not YAML (expected ',' or ']'"),
        ("a: 1\n---\nb: 2\n", "t.yaml, line 2: this is not YAML (but found another document)"),
        ("\x00", "t.yaml, line 1: this is not text in UTF-8"),
        ("a: !!python/object:os.system {}\n", "line 1: this is not YAML (could not determine a constructor"),
        ("? [a]\n: 1\n", "line 1: this is not YAML (found unhashable key)"),
        ("[" * 5000, "t.yaml is not YAML"),
    ],
)
def test_what_is_no_yaml_is_named_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_yaml(written(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_of_windows_programs_are_read(tmp_path: Path, encoding: str) -> None:
    source = Path(__file__).parents[1] / "configs/topologies/three_tier.yaml"
    (tmp_path / "three_tier.yaml").write_bytes(source.read_text().replace("\n", "\r\n").encode(encoding))
    assert load_topology(tmp_path / "three_tier.yaml") == load_topology(source)
    plan = Plan(cuts=(2, 4), placement=(0, 1), thresholds=(0.5,))
    (tmp_path / "plan.json").write_bytes(json.dumps(plan.to_dict()).encode(encoding))
    assert load_plan(tmp_path / "plan.json").plan == plan
