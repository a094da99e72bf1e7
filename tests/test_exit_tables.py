"""Score tables of all criteria: kept in files that are mapped, compared without rounding, chosen when planning."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from portend.cli.app import cli
from portend.data.sources import load_dataset
from portend.errors import ConfigError, InvalidValue, MismatchError, StorageError
from portend.io import storage
from portend.networks.evaluators import TorchEvaluator
from portend.networks.scores import score
from portend.networks.scoring import score_samples
from portend.networks.zoo import build
from portend.perfmodel.exits import BitTables
from portend.profiling.network import profile_exits
from portend.runtime.torch_executor import TorchExecutor
from portend.values.execution import Execution
from portend.values.exits import SampleExits
from portend.values.plan import CRITERIA, takes_exit
from portend.values.profile import Profile
from problems import backbone, random_case

SAMPLES, BRANCHES = 50_000, 55


def a_profile(samples: int = 60, branches: int = 4, seed: int = 0) -> Profile:
    """A profile with float32 scores of all criteria, which differ, and labels; the devices are random."""
    rng = np.random.default_rng(seed)
    scores = {name: rng.random((branches, samples), dtype=np.float32).T for name in CRITERIA}
    exits = SampleExits(
        scores=scores, correct=rng.random((branches, samples)).T < 0.7, labels=rng.integers(0, 10, samples)
    )
    case = random_case(seed, blocks=branches)
    return replace(case.profile, backbone=backbone(branches), exits=exits)


def exits_of(profile: Profile) -> SampleExits:
    assert isinstance(profile.exits, SampleExits)
    return profile.exits


def is_mapped(array: NDArray[Any]) -> bool:
    import mmap

    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, mmap.mmap)


# -- views ------------------------------------------------------------------------------------------


def test_exits_are_viewed_by_one_criterion_without_copying() -> None:
    exits = exits_of(a_profile())
    assert exits.criterion == "entropy"
    for name in CRITERIA:
        view = exits.by(name)
        assert view.score is exits.scores[name]
        assert view.rates(0.25)[0, 1] == (exits.scores[name][:, 1] < 0.25).mean()
        assert view.leaving(0.5)[:, 2].tolist() == (exits.scores[name][:, 2] < 0.5).tolist()
    assert exits.by("entropy") is exits
    with pytest.raises(MismatchError, match="max_probability, but margin was asked for"):
        replace(exits, scores={n: exits.scores[n] for n in ("entropy", "max_probability")}).by("margin")


def test_a_part_has_the_samples_asked_for() -> None:
    exits = exits_of(a_profile()).by("margin")
    part = exits.part([5, 3, 5])
    assert (part.samples, part.criterion) == (3, "margin")
    for name in CRITERIA:
        assert np.array_equal(part.scores[name], exits.scores[name][[5, 3, 5]])
    assert exits.labels is not None
    assert part.labels is not None
    assert part.labels.tolist() == exits.labels[[5, 3, 5]].tolist()
    assert np.array_equal(part.correct, exits.correct[[5, 3, 5]])


def test_labels_are_one_for_each_sample() -> None:
    with pytest.raises(InvalidValue, match="each of the 60 samples"):
        replace(exits_of(a_profile()), labels=np.zeros(59, dtype=np.int64))


def test_an_array_that_someone_may_write_to_is_copied() -> None:
    score = np.zeros((2, 1), dtype=np.float32)
    view = score.view()
    view.setflags(write=False)
    exits = SampleExits(scores={"entropy": view}, correct=np.ones((2, 1), dtype=np.bool_))
    score[0, 0] = 9.0
    assert exits.score[0, 0] == 0.0


# -- decisions --------------------------------------------------------------------------------------


@given(st.floats(0, 1, width=32), st.floats(0, 1), st.integers(-2, 2))
def test_a_threshold_is_never_rounded_to_the_scores_dtype(value: float, threshold: float, steps: int) -> None:
    near = value
    for _ in range(abs(steps)):  # float64 neighbors of a float32 score: float32 could not tell them apart
        near = float(np.nextafter(near, np.inf if steps > 0 else -np.inf))
    table = np.array([value], dtype=np.float32)
    for theta in (threshold, near, value):
        assert takes_exit(table, theta).tolist() == [value < theta]
        assert takes_exit(table, np.array([theta])).tolist() == [value < theta]
        assert takes_exit(float(table[0]), theta) == (value < theta)


def test_float32_comparison_would_flip_decisions() -> None:
    """What the test above guards against: 0.7 as float32 is 0.69999999, below 0.7, but equal to 0.7 as float32."""
    table = np.array([0.7], dtype=np.float32)
    assert not np.less(table, 0.7).any()
    assert takes_exit(table, 0.7).tolist() == [True]
    bits = BitTables(
        SampleExits(scores={"entropy": table[:, None]}, correct=np.ones((1, 1), dtype=np.bool_)), np.array([0.7])
    )
    assert bits.outcomes(np.array([[1]]), np.zeros((1, 0), dtype=np.intp))[0].tolist() == [[1]]
    assert bits.leaves[0, 1].tolist() == [1]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_an_agents_executor_gives_the_very_scores_of_the_profile(criterion: str) -> None:
    """Thresholds right at the scores: the profile and the executor agree about every sample at every branch."""
    digits = load_dataset("digits:size=16")
    network = build("resnet8", in_channels=1, num_classes=10, input_size=16).eval()
    chosen = np.arange(12)
    table = score_samples(TorchEvaluator(network), digits, chosen, batch_size=1)[0][criterion]
    executor = TorchExecutor(network, Execution(executor="torch"), criterion=criterion)
    for branch in range(4):
        partition = executor.partition(0, branch + 1, branch=True)
        for sample in chosen:
            got = partition(digits.tensors(chosen[sample : sample + 1])[0]).score
            assert got == float(table[sample, branch])
            for theta in (got, float(np.nextafter(got, 2)), round(got, 3)):
                assert takes_exit(got, theta) == takes_exit(table, theta)[sample, branch]


# -- one pass -----------------------------------------------------------------------------------------


def test_one_pass_gives_all_criteria_and_labels() -> None:
    digits = load_dataset("digits:size=8")
    network = build("resnet8", in_channels=1, num_classes=10, input_size=8).eval()
    told: list[tuple[int, int]] = []
    chosen = np.arange(300)[::-1]
    exits = profile_exits(TorchEvaluator(network), digits, chosen, on_progress=lambda *at: told.append(at))
    assert told == [(256, 300), (300, 300)]
    assert list(exits.scores) == list(CRITERIA)
    assert exits.labels is not None
    assert exits.labels.tolist() == digits.labels[chosen].tolist()
    import torch

    with torch.inference_mode():
        logits = network(torch.from_numpy(digits.tensors(chosen)))
    for name in CRITERIA:
        assert exits.scores[name].flags.f_contiguous
        for branch, own in enumerate(logits):
            assert exits.scores[name][:, branch] == pytest.approx(score(own, name).numpy(), abs=1e-5)
    right = np.stack([own.argmax(1).numpy() == digits.labels[chosen] for own in logits], axis=1)
    assert np.array_equal(exits.correct, right)


def test_an_evaluator_sees_one_batch_at_a_time() -> None:
    """What it answers goes to the rows of its batch."""
    digits = load_dataset("digits:size=8")
    seen: list[int] = []

    class Means(TorchEvaluator):
        def exits(self, samples: NDArray[np.float32]) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int64]]:
            seen.append(len(samples))
            mean = samples.reshape(len(samples), -1).mean(axis=1, keepdims=True)
            return {"margin": np.repeat(mean, 2, axis=1)}, np.tile([[3, -1]], (len(samples), 1))

    means = Means(build("resnet8", in_channels=1, num_classes=10, input_size=8))
    scores, correct = score_samples(means, digits, np.arange(25), batch_size=10)
    assert seen == [10, 10, 5]
    expected = digits.tensors(np.arange(25)).reshape(25, -1).mean(axis=1)
    assert scores["margin"][:, 1] == pytest.approx(expected, rel=1e-6)
    assert correct[:, 0].tolist() == (digits.labels[:25] == 3).tolist()
    assert not correct[:, 1].any()
    with pytest.raises(InvalidValue, match="got 0 in batches"):
        score_samples(means, digits, [])


# -- files --------------------------------------------------------------------------------------------


def test_large_tables_are_mapped_from_the_file(tmp_path: Path) -> None:
    profile = a_profile(samples=20_000, branches=14)
    storage.save(profile, tmp_path / "p.zip")
    loaded = exits_of(storage.load_profile(tmp_path / "p.zip"))
    for name in CRITERIA:
        table = loaded.scores[name]
        assert is_mapped(table)
        assert table.flags.aligned
        assert table.flags.f_contiguous
        assert not table.flags.writeable
        assert np.array_equal(table, exits_of(profile).scores[name])
        assert loaded.by(name).score is table
    assert not is_mapped(loaded.correct), "280,000 bytes are read"
    (tmp_path / "p.zip").unlink()
    assert float(loaded.score.sum()) == float(exits_of(profile).score.sum()), "the file's pages stay"


def test_a_profile_may_be_saved_over_the_file_that_it_is_mapped_from(tmp_path: Path) -> None:
    storage.save(a_profile(samples=20_000, branches=14), tmp_path / "p.zip")
    loaded = storage.load_profile(tmp_path / "p.zip")
    before = exits_of(loaded).score.copy()
    storage.save(replace(loaded, exits=exits_of(loaded).part(np.arange(10, 20_000))), tmp_path / "p.zip")
    assert np.array_equal(exits_of(loaded).score, before)
    assert np.array_equal(exits_of(storage.load_profile(tmp_path / "p.zip")).score, before[10:])


def test_any_zip_tool_reads_and_writes_the_file(tmp_path: Path) -> None:
    profile = a_profile(samples=20_000, branches=14)
    storage.save(profile, tmp_path / "p.zip")
    with zipfile.ZipFile(tmp_path / "p.zip") as archive:
        assert archive.testzip() is None
        content = {name: archive.read(name) for name in archive.namelist()}
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # other tools neither align nor leave things stored
        with zipfile.ZipFile(tmp_path / "other.zip", "w", kind) as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        loaded = exits_of(storage.load_profile(tmp_path / "other.zip"))
        assert np.array_equal(loaded.score, exits_of(profile).score)
        assert is_mapped(loaded.score) == (kind == zipfile.ZIP_STORED)


def test_every_flipped_bit_of_a_mapped_table_is_found(tmp_path: Path) -> None:
    path = tmp_path / "p.zip"
    storage.save(a_profile(samples=20_000, branches=14), path)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("arrays/value.exits.scores.margin.npy").header_offset
    original = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in (start + 200 + rng.integers(0, 1_000_000, 15)).tolist():
        damaged = bytearray(original)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(StorageError, match=r"damaged.*CRC"):
            storage.load_profile(path)


@pytest.mark.parametrize("what", ["objects", "shape"])
def test_a_mapped_table_that_is_no_table_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "p.zip"
    storage.save(a_profile(samples=20_000, branches=14), path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    name = "arrays/value.exits.scores.entropy.npy"
    old, new = (b"'<f4'", b"'|O' ") if what == "objects" else (b"20000", b"20001")
    assert old in content[name][:128]
    content[name] = content[name].replace(old, new, 1)
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in content.items():
            archive.writestr(member, data)
    with pytest.raises(StorageError, match="Object arrays" if what == "objects" else "size"):
        storage.load_profile(path)


def test_a_file_of_one_criterion_still_loads(tmp_path: Path) -> None:
    """profiles/resnet20-digits.zip is one; here its layout is made anew, with scores that float32 cannot hold."""
    path = tmp_path / "old.zip"
    profile = random_case(3, blocks=4, estimator="sample").profile
    exact = np.random.default_rng(0).random((exits_of(profile).samples, 4))
    storage.save(replace(profile, exits=replace(exits_of(profile), scores={"entropy": exact})), path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    document = json.loads(content["value.json"])
    document["version"] = 1
    old = document["value"]["exits"]
    old |= {"score": old.pop("scores")["entropy"]}
    del old["labels"]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (content | {"value.json": json.dumps(document).encode()}).items():
            archive.writestr(name, data)
    exits = exits_of(storage.load_profile(path))
    assert (list(exits.scores), exits.criterion) == (["entropy"], "entropy")
    assert exits.labels is None
    assert np.array_equal(exits.score, exact.astype(np.float32)), "as agents now round"
    real = exits_of(storage.load_profile(Path(__file__).parents[1] / "profiles" / "resnet20-digits.zip"))
    assert (real.samples, real.score.dtype) == (450, np.dtype(np.float32))
    assert real.labels is None


LOAD = """
import resource, sys, time
import numpy as np
import portend.io.storage, portend.planner.solve, portend.io.forms
from portend.perfmodel.exits import BitTables
def now():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, float(
        next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1])
before = now()
start = time.process_time()
exits = portend.io.storage.load_profile(sys.argv[1]).exits.by("margin")
seconds = time.process_time() - start
loaded = now()
tables = BitTables(exits, np.linspace(0.1, 0.9, 9))
print(seconds, loaded[0] - before[0], loaded[1] - before[1], now()[1] - before[1], int(tables.right[1].size))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_50_000_samples_with_55_exits_are_loaded_without_being_copied(tmp_path: Path) -> None:
    """Three criteria: 33 MB of scores. Loading may take 5 MB, and planning one column of them at a time."""
    path = tmp_path / "large.zip"
    storage.save(a_profile(samples=SAMPLES, branches=BRANCHES), path)
    assert path.stat().st_size < 3 * 4 * SAMPLES * BRANCHES + SAMPLES * BRANCHES + 1e6
    done = subprocess.run([sys.executable, "-c", LOAD, str(path)], capture_output=True, text=True, check=True)
    seconds, peak, loaded, planned, words = map(float, done.stdout.split())
    assert seconds < 3
    assert peak < 12_000, "kB in all"
    assert loaded < 5_000, "kB of memory of its own"
    assert planned < 20_000, "kB: bit sets are 9 x 56 x 782 words, 3 MB, and what making them takes"
    assert words == -(-SAMPLES // 64)


# -- planning and the command line --------------------------------------------------------------------


def portend(*arguments: str) -> str:
    return CliRunner().invoke(cli, arguments, standalone_mode=False, catch_exceptions=False).stdout


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    profile = a_profile(samples=200, seed=3)
    device = next(iter(profile.devices))
    storage.save(profile, tmp_path / "p.zip")
    (tmp_path / "t.yaml").write_text(
        f"name: two\ntiers:\n  - {{name: edge, device: {device}}}\n  - {{name: cloud, device: {device}}}\n"
        "links:\n  - {bandwidth: 10 Mbit/s, propagation_delay: 1 ms}\n"
    )
    return str(tmp_path / "p.zip"), str(tmp_path / "t.yaml")


def test_the_criterion_is_chosen_when_planning(files: tuple[str, str], tmp_path: Path) -> None:
    profile, topology = files
    asked = ("plan", profile, "--topology", topology, "--min-accuracy", "0.6", "--thresholds", "0.6", "--json")
    plans = {name: json.loads(portend(*asked, "--criterion", name)) for name in CRITERIA}
    assert {name: answer["plan"]["criterion"] for name, answer in plans.items()} == {name: name for name in CRITERIA}
    assert json.loads(portend(*asked))["plan"] == plans["entropy"]["plan"]
    (tmp_path / "problem.yaml").write_text("criterion: margin\nsubject_to: [accuracy>=0.6]\nminimize: latency\n")
    stated = (*asked[:4], "--thresholds", "0.6", "--json", "--problem", str(tmp_path / "problem.yaml"))
    assert json.loads(portend(*stated))["plan"] == plans["margin"]["plan"]
    assert json.loads(portend(*stated, "--criterion", "entropy"))["plan"] == plans["entropy"]["plan"]
    (tmp_path / "problem.yaml").write_text("criterion: energy\nminimize: latency\n")
    with pytest.raises(ConfigError, match=r"yaml: criterion is one of entropy, max_probability, margin.*'energy'"):
        portend(*stated)


def test_criteria_are_swept(files: tuple[str, str]) -> None:
    profile, topology = files
    found = json.loads(portend(
        "whatif", profile, "--topology", topology, "--min-accuracy", "0.6", "--thresholds", "0.6",
        "--sweep", "profile.exits.criterion=entropy,max_probability,margin", "--json",
    ))  # fmt: skip
    assert [point["plan"]["criterion"] for point in found["points"]] == list(CRITERIA)


def test_exits_of_a_profile_are_shown_by_any_criterion(files: tuple[str, str]) -> None:
    exits = exits_of(storage.load_profile(files[0]))
    for name in CRITERIA:
        rows = json.loads(portend("exits", files[0], "--criterion", name, "--thresholds", "0.3", "--json"))["exits"]
        assert [row["leaves"]["0.3"] for row in rows] == (exits.scores[name] < 0.3).mean(axis=0).tolist()
    assert f"{CRITERIA['margin']}<0.3" in portend("exits", files[0], "--criterion", "margin", "--thresholds", "0.3")
