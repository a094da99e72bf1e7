"""Profiling a machine: what is kept when it is interrupted, what is said when it is disturbed, and merging."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from clocks import EXACTLY
from portend.cli.app import cli
from portend.errors import InvalidValue, MismatchError, StorageError
from portend.io.journal import Journal
from portend.io.storage import load, load_profile, load_profile_or_device, save
from portend.networks.checkpoint import save_checkpoint
from portend.networks.exporting import export
from portend.networks.zoo import build
from portend.profiling.compute import ComputeProfiling, describe_spread
from portend.profiling.environment import describe_machine
from portend.profiling.merge import merge
from portend.testbed.watch import Counters, Disturbance, count
from portend.values.device_profile import DeviceProfile
from portend.values.profile import Profile
from problems import random_case

DIGITS = {"dataset": "digits:size=16", "split_seed": "0"}
COMMAND = [sys.executable, "-m", "portend.cli.app"]


def portend(*arguments: object) -> Result:
    """The command line, in this process; agents are processes of their own in any case."""
    return CliRunner().invoke(cli, list(map(str, arguments)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported networks, whose agents start without PyTorch, and the checkpoint of one."""
    path = tmp_path_factory.mktemp("profiles")
    for name, network in (("net", "resnet20"), ("small", "resnet8")):
        backbone = build(network, in_channels=1, num_classes=10, input_size=16)
        export(backbone, provenance=DIGITS).save(path / f"{name}.onnx")
    save_checkpoint(backbone, path / "small.safetensors", provenance=DIGITS)
    return path


# -- what is kept ----------------------------------------------------------------------------------


def test_a_journal_gives_back_every_number_and_forgets_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "p.begun"
    first = Journal(path, {"network": "a", "repeats": 3})
    first.open()
    assert not first.resumed
    first.add("x", [0.1, 1e-300, float("nan")])
    first.add("x", [2.0 / 3.0])
    first.add("y", [])
    with path.open("ab") as file:
        file.write(b'{"name": "x", "numb')
    again = Journal(path, {"repeats": 3, "network": "a"})
    again.open()
    assert again.resumed
    assert np.array_equal(again.recall("x"), [0.1, 1e-300, np.nan, 2 / 3], equal_nan=True)
    assert again.recall("z") == []
    again.add("x", [5.0])
    third = Journal(path, {"network": "a", "repeats": 3})
    third.open()
    assert third.recall("x")[-1] == 5.0, "the torn line is gone, what came after it is there"
    third.remove()
    assert not path.exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"PK\x03\x04 not this\n", "is not a begun profile or is damaged"),
        (b"[]\n", "is not a begun profile or is damaged"),
        (b'{"format": "portend-begun-profile", "version": 2, "identity": {}}\n', "is not a begun profile"),
        (b'{"format": "portend-begun-profile", "version": 1, "identity": {"network": "b"}}\n', 'network: "b", now "a"'),
    ],
)
def test_a_journal_of_something_else_is_refused_and_left_alone(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "p.begun"
    path.write_bytes(content)
    with pytest.raises(StorageError, match="--restart") as caught:
        Journal(path, {"network": "a"}).open()
    assert told in str(caught.value)
    assert path.read_bytes() == content


def numbers(path: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for line in path.read_bytes().split(b"\n")[1:-1]:
        entry = json.loads(line)
        found.setdefault(entry["name"], []).extend(entry["numbers"])
    return found


def wait_for(path: Path, enough: Callable[[dict[str, list[float]]], bool], child: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and child.poll() is None:
        if path.exists() and enough(numbers(path)):
            return
        time.sleep(0.05)
    raise AssertionError(f"nothing was kept in time: {child.communicate()[1]}")


@pytest.mark.parametrize("kill", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_killed_profile_goes_on_where_it_was(folder: Path, tmp_path: Path, kill: signal.Signals) -> None:
    out, begun = tmp_path / "pi.zip", tmp_path / "pi.zip.begun"
    words = ["profile", folder / "small.onnx", "--device", "pi", "--device-only", "--gap", "50ms", "--out", out]
    words += ["--repeats", "10"]
    child = subprocess.Popen([*COMMAND, *map(str, words)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    wait_for(begun, lambda found: any("after idling" in name for name in found), child)
    child.send_signal(kill)
    told = child.communicate(timeout=120)[1]
    assert not out.exists()
    if kill == signal.SIGINT:
        assert child.returncode == 130
        assert f"the same command goes on with what was measured so far, in {begun}" in told.replace("\n", " ")
    kept = numbers(begun)
    busy = next(values for name, values in kept.items() if "compute, busy" in name)
    assert len(busy) == 5 * 10, "half of the busy repeats of 10 partitions"

    other = portend(*words, "--threads", "2")
    assert isinstance(other.exception, StorageError)
    assert "execution.threads: 1, now 2" in str(other.exception)
    assert numbers(begun).keys() == kept.keys(), "refusing changes nothing"

    done = portend(*words)
    assert done.exit_code == 0, done.output
    assert not begun.exists()
    found = load(out, DeviceProfile)
    table = found.compute_repeats_s[:5]
    assert sorted(table[np.isfinite(table)].tolist()) == sorted(busy), "not measured again"
    assert "resumed" in found.environment["sittings"]
    assert found.network is not None
    assert found.network.name == "resnet8"


# -- some measured, the others predicted -----------------------------------------------------------


@EXACTLY
def test_a_budget_leaves_partitions_to_be_predicted(folder: Path, tmp_path: Path, exactly: bool) -> None:
    out = tmp_path / "pi.zip"
    words = ["profile", folder / "net.onnx", "--device-only", "--gap", "2ms", "--repeats", "2", "--out", out]
    done = portend(*words, "--budget", "60%")
    assert done.exit_code == 0, done.output
    found = load(out, DeviceProfile)
    measured = np.isfinite(found.compute_repeats_s).any(axis=0)
    assert measured.sum() == 33
    assert found.prediction is not None
    assert found.predicted.startswith("22 of its partitions' times are predicted")
    assert np.isfinite(found.compute_s[np.triu_indices(11, 1)]).all()
    assert 0 < found.prediction.mean_error <= found.prediction.worst_error
    assert not exactly or found.prediction.mean_error < 0.5
    assert "22 of its partitions' times are predicted" in done.output
    assert np.isfinite(found.woken_s()[np.triu_indices(11, 1)]).all()
    for wrong in ("0", "1.5", "120%", "-3 s", "soon"):
        refused = portend(*words, "--budget", wrong)
        assert refused.exit_code == 2, wrong
    for values in ({"budget": 0.0}, {"budget": 2.0}, {"budget_s": 0.0}, {"repeats": 0}):
        with pytest.raises(InvalidValue, match=r"budget|repeats"):
            ComputeProfiling(**values)


@pytest.mark.slow
def test_a_budget_of_time_measures_what_it_can(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "pi.zip"
    words = ["profile", folder / "net.onnx", "--device-only", "--gap", "2ms", "--out", out, "--budget"]
    assert portend(*words, "10 ms").exit_code == 0
    assert np.isfinite(load(out, DeviceProfile).compute_repeats_s).any(axis=0).sum() == 30, "2 N + 10 at least"
    assert portend(*words, "5 min").exit_code == 0
    assert load(out, DeviceProfile).prediction is None


def test_more_than_256_partitions_are_timed_less_often() -> None:
    assert [ComputeProfiling().repeats_of(count) for count in (1, 256, 257, 1540)] == [30, 30, 20, 20]
    assert ComputeProfiling(repeats=40).repeats_of(1540) == 40


# -- what disturbs ---------------------------------------------------------------------------------


def counters(at_s: float, busy_s: float, own_s: float, stolen_s: float = 0.0, waited_s: float = 0.0) -> Counters:
    return Counters(at_s=at_s, busy_s=busy_s, stolen_s=stolen_s, own_s=own_s, waited_s=waited_s, switches=3)


def test_what_others_did_by_hand() -> None:
    quiet = Disturbance.between(counters(10, 5, 1), counters(20, 9.4, 5))
    assert quiet is not None
    assert quiet.others_s == pytest.approx(0.4)
    assert quiet.warning == ""
    assert "disturbed" not in quiet.facts()
    loud = Disturbance.between(counters(10, 5, 1), counters(20, 15, 5, 0.2, 0.6))
    assert loud is not None
    assert loud.warning == (
        "the machine was disturbed: other processes took 60 % of a core, the hypervisor took 2 % of a core, "
        "what was measured waited for a core for 6 % of the time"
    )
    assert loud.facts()["disturbed"] == loud.warning
    both = quiet + loud
    assert both.seconds == pytest.approx(20)
    assert both.others_s == pytest.approx(6.4)
    short = Disturbance.between(counters(10, 5, 1), counters(10.1, 5.1, 1))
    assert short is not None
    assert short.warning == "", "a tenth of a second has ten ticks"
    assert Disturbance.between(None, counters(1, 1, 1)) is None


@pytest.fixture
def busy_neighbor() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield child
    child.kill()
    child.wait()


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux's /proc")
def test_a_busy_neighbor_is_seen(busy_neighbor: subprocess.Popen[bytes]) -> None:
    mine = (os.getpid(),)
    before = count(mine, mine, time.monotonic())
    time.sleep(1.0)
    after = count(mine, mine, time.monotonic())
    found = Disturbance.between(before, after)
    assert found is not None
    assert "other processes took" in found.warning
    together = (*mine, busy_neighbor.pid)
    own = count(together, mine, time.monotonic())
    assert own is not None
    assert after is not None
    assert own.own_s > after.own_s, "what takes part does not disturb"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux's /proc")
def test_a_disturbed_profile_says_so(folder: Path, tmp_path: Path, busy_neighbor: subprocess.Popen[bytes]) -> None:
    done = portend(
        "profile", folder / "small.safetensors", "--device-only", "--gap", "20ms", "--repeats", "10",
        "--out", tmp_path / "p.zip",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "warning: the machine was disturbed: other processes took" in done.output
    found = load(tmp_path / "p.zip", DeviceProfile)
    assert "other processes took" in found.environment["disturbed"]
    assert {"cpu", "clock", "warm-up", "outliers", "spread", "load average", "torch"} <= set(found.environment)


def test_spread_and_outliers_are_told_by_hand() -> None:
    repeats = np.full((4, 2, 2), np.nan)
    repeats[:, 0, 1] = [1.0, 1.0, 1.0, 4.0]
    facts, warning = describe_spread(repeats, np.array([1.0, 1.02]))
    assert facts["outliers"].startswith("1 of 4 repeats took more than 1.5 times the median, the longest 4.0 times")
    assert warning == ""
    assert describe_spread(repeats, np.linspace(1, 1.3, 14))[1] == "the machine's speed changed by 21 %"


def test_the_machine_is_described() -> None:
    found = describe_machine()
    assert "resolution" in found["clock"]
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert all(found.values())


# -- several machines ------------------------------------------------------------------------------


def test_a_second_machine_joins_the_first_ones_profile(folder: Path, tmp_path: Path) -> None:
    quick = ("profile", folder / "small.onnx", "--gap", "2ms", "--repeats", "2", "--out")
    for words in ((tmp_path / "whole.zip",), (tmp_path / "pi.zip", "--device-only")):
        done = portend(*quick, *words)
        assert done.exit_code == 0, done.output
    second = load(tmp_path / "pi.zip", DeviceProfile)
    assert second.network is not None
    save(
        replace(second, device="nano", network=replace(second.network, weights_sha256="0" * 64)), tmp_path / "other.zip"
    )
    bundle = tmp_path / "bundle.zip"
    for files, told in (
        (("pi.zip", "whole.zip"), "both have 'local'"),
        (("whole.zip", "other.zip"), "differ in weights (SHA-256): "),
        (("pi.zip",), "needs exits"),
    ):
        refused = portend("merge", *(tmp_path / file for file in files), "--out", bundle)
        assert isinstance(refused.exception, MismatchError)
        assert told in str(refused.exception)
    wrong = portend("merge", tmp_path / "whole.zip", tmp_path / "pi.zip", "--out", bundle, "--rename", "x=y")
    assert wrong.exit_code == 2
    assert not bundle.exists()

    rename = f"{tmp_path / 'pi.zip'}=pi"
    done = portend("merge", tmp_path / "pi.zip", tmp_path / "whole.zip", "--out", bundle, "--rename", rename)
    assert done.exit_code == 0, done.output
    profile = load_profile(bundle)
    assert set(profile.devices) == {"pi", "local"}
    assert profile.devices["pi"].device == "pi"
    assert np.array_equal(profile.devices["pi"].compute_s, second.compute_s, equal_nan=True)

    topology = tmp_path / "t.yaml"
    topology.write_text(
        "name: two\ntiers:\n  - {name: edge, device: pi}\n  - {name: cloud, device: local}\n"
        "links:\n  - {bandwidth: 10 Mbit/s, propagation_delay: 5 ms}\n"
    )
    planned = portend("plan", bundle, "--topology", topology, "--min-accuracy", "0")
    assert planned.exit_code == 0, planned.output


def test_a_machine_without_torch_is_profiled(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "pi.zip"
    words = ["profile", folder / "small.onnx", "--device-only", "--gap", "2ms", "--repeats", "2", "--out", out]
    code = (
        "import sys\nfrom portend.cli.app import cli\n"
        f"cli.main({list(map(str, words))!r}, standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=180)
    assert run.returncode == 0, run.stderr
    assert load(out, DeviceProfile).execution.executor == "onnxruntime"


def test_what_differs_between_profiles_is_named() -> None:
    base = random_case(1, blocks=4, tiers=2).profile
    name, device = next(iter(base.devices.items()))
    other = random_case(2, blocks=5, tiers=2).profile
    with pytest.raises(MismatchError, match=r"a\.zip and b\.zip differ in blocks: 4 against 5; shapes of"):
        merge({"a.zip": base, "b.zip": other})
    with pytest.raises(MismatchError, match="does not say which network"):
        merge({"a.zip": base, "b.zip": device})
    with pytest.raises(MismatchError, match="differ in seed: None against 1"):
        merge({"a.zip": base, "b.zip": replace(base, provenance={"seed": "1"})})
    with pytest.raises(MismatchError, match=r"no device b\.zip:x to rename; there are"):
        merge({"a.zip": base}, {("b.zip", "x"): "y"})
    with pytest.raises(InvalidValue, match="other tensors"):
        Profile(
            backbone=base.backbone, exits=base.exits,
            devices={name: replace(device, network=replace(base.backbone, cut_shapes=((9,),) * 5))},
        )  # fmt: skip
    renamed = merge({"a.zip": base}, {("a.zip", name): "new"})
    assert renamed.devices["new"].device == "new"


def test_a_device_saved_alone_comes_back_whole(tmp_path: Path) -> None:
    profile = random_case(1, blocks=4, tiers=2).profile
    device = replace(next(iter(profile.devices.values())), network=profile.backbone)
    save(device, tmp_path / "d.zip")
    found = load_profile_or_device(tmp_path / "d.zip")
    assert isinstance(found, DeviceProfile)
    assert found.network == profile.backbone
    with pytest.raises(StorageError, match="there is no file"):
        load_profile_or_device(tmp_path / "none.zip")
