"""A file is told by its content, and a wrong one is named for what it is, with the remedy, in one line."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from commands import ROOT, portend
from portend.errors import PortendError
from portend.io.files import BINARY, kind_of, what_is, wrong_file
from portend.io.forms import load_topology
from portend.io.storage import load_measurement, load_profile
from portend.planner.planfile import load_plan
from portend.testbed.emulation.traces import load_trace
from portend.units import parse_share

PROFILE = ROOT / "profiles/resnet20-digits.zip"
TOPOLOGY = ROOT / "configs/topologies/three_tier.yaml"


def _zip(members: dict[str, str]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return data.getvalue()


FILES = {
    "empty": (b"", "empty"),
    "blank.yaml": (b"\n \n", "empty"),
    "garbage": (bytes(range(256)) * 40, "binary data of no kind that Portend knows"),
    "torch.pt": (_zip({"archive/data.pkl": "x"}), "a file of torch.save (a Python pickle), which Portend never reads"),
    "other.zip": (_zip({"a": "b"}), "a zip file of another program"),
    "p.pkl": (b"\x80\x04\x95rest", "a Python pickle, which Portend never reads"),
    "x.png": (b"\x89PNG\r\n\x1a\n" + bytes(20), "a picture"),
    "other.safetensors": (b"\x02\0\0\0\0\0\0\0{}", "weights of another program (safetensors)"),
    "run.zip": (_zip({"value.json": '{"format": "portend",\n "kind": "Measurement"}'}), "run"),
    "device.zip": (_zip({"value.json": '{"format": "portend",\n "kind": "DeviceProfile"}'}), "device"),
    "t.yaml": (b"tiers: []\n", "topology"),
    "e.yaml": (b"network: resnet20\ndata: digits\ntraining: {epochs: 1}\n", "experiment"),
    "r.yaml": (b"training: {epochs: 1}\n", "training"),
    "c.yaml": (b"plans: 60\nsamples: 10\n", "campaign"),
    "q.yaml": (b"\xef\xbb\xbfminimize: energy\n", "problem"),
    "w.txt": (b"# Mbit/s\n0 1.5\n1 2\n", "trace"),
    "plan.json": (b'{"cuts": [1], "placement": [0]}', "plan"),
    "answers.jsonl": (b'{"sample": "a", "label": 3}\n{"sample": "b", "label": 4}\n', "a journal of answers"),
    "notes.txt": (b"hello", None),
    "list.yaml": (b"- a\n", None),
    "broken.yaml": (b"a: [", None),
    "cut.zip": (PROFILE.read_bytes()[:5000], None),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for name, (data, _) in FILES.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_told_by_its_content(folder: Path, name: str) -> None:
    assert kind_of(folder / name) == FILES[name][1]


def test_what_the_repository_ships_is_told() -> None:
    for path in (ROOT / "configs").rglob("*.yaml"):
        kind = {"topologies": "topology", "experiments": "experiment", "campaigns": "campaign"}
        assert kind_of(path) == kind.get(path.parent.name, "training"), path
    assert kind_of(PROFILE) == "profile"
    assert kind_of(ROOT / "profiles/resnet20-cifar10.safetensors") == "checkpoint"
    assert kind_of(ROOT / "profiles") == "a folder"
    assert kind_of("/dev/null") is None
    assert kind_of("none") is None


def test_networks_are_told(checkpoint: Path, network: Path) -> None:
    assert (kind_of(checkpoint), kind_of(network)) == ("checkpoint", "exported")


@pytest.mark.parametrize("read", [load_profile, load_measurement, load_plan, load_topology, load_trace])
def test_every_reader_names_what_it_got_instead(folder: Path, read: object) -> None:
    wanted = {load_profile: "profile", load_measurement: "run", load_plan: "plan", load_topology: "topology"}
    mine = wanted.get(read, "trace")  # type: ignore[call-overload]
    for name, (_, kind) in FILES.items():
        if kind == mine:
            continue
        with pytest.raises(PortendError) as caught:
            read(folder / name)  # type: ignore[operator]
        said = str(caught.value)
        assert str(folder / name) in said
        assert "\n" not in said
        if kind == BINARY and read is load_trace:  # nearly a text: the line is told
            assert "this is not text in UTF-8" in said
        elif kind is not None:
            assert said == wrong_file(folder / name, mine)
            assert what_is(folder / name) in said


def test_the_remedy_names_the_file_that_is_there(folder: Path) -> None:
    net = ROOT / "profiles/resnet20-cifar10.safetensors"
    assert wrong_file(net, "profile").endswith(f"is needed here: portend profile {net} --out PROFILE.zip")
    assert wrong_file(PROFILE, "plan").endswith(f"portend plan {PROFILE} --topology TOPOLOGY --out PLAN.json")


ASKED = ("--min-accuracy", "0.9")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", TOPOLOGY, "--topology", PROFILE, *ASKED), "PROFILE and --topology are swapped: "),
        (("whatif", TOPOLOGY, "--topology", PROFILE, *ASKED, "--sweep", "x=1"), "PROFILE and --topology are swapped"),
        (
            ("plan", "run.zip", "--topology", TOPOLOGY, *ASKED),
            "is what a run measured, but `portend plan` takes a profile",
        ),
        (("plan", PROFILE, "--topology", "e.yaml", *ASKED), "is an experiment, but `portend plan` takes a topology"),
        (
            ("plan", PROFILE, "--topology", TOPOLOGY, "--problem", "c.yaml"),
            "is a campaign, but `portend plan` takes a pla",
        ),
        (("compare", "run.zip", PROFILE), "PROFILE and MEASUREMENTS are swapped"),
        (("report", PROFILE, PROFILE), "is a profile, but `portend report` takes what a run measured as MEASUREMENTS"),
        (
            ("run", PROFILE, "--network", "plan.json", "--topology", TOPOLOGY, "--out", "x"),
            "is a profile, but `portend run`",
        ),
        (("train", TOPOLOGY, "--out", "x"), "is a topology, but `portend train` takes an experiment as CONFIG"),
        (("profile", PROFILE, "--out", "x"), "is a profile, but `portend profile` takes a checkpoint"),
        (("exits", TOPOLOGY), "is a topology, but `portend exits` takes a profile or a checkpoint"),
        (("trace", "plan.json", "--chrome", "x"), "is a plan, but `portend trace` takes what a run measured"),
        (("links", PROFILE), "is a profile, but `portend links` takes a topology as TOPOLOGY"),
        (("deploy", "t.yaml", "--network", "plan.json", "--topology", "t.yaml", "--plain"), "`portend deploy` takes"),
        (
            ("merge", "run.zip", "--out", "x"),
            "is what a run measured, but `portend merge` takes a profile or a profile of",
        ),
        (("plan", ROOT, "--topology", TOPOLOGY, *ASKED), "is a folder, but `portend plan` takes a profile"),
        (("plan", "garbage", "--topology", TOPOLOGY, *ASKED), "is binary data of no kind that Portend knows, but "),
        (("testbed", "show", "plan.json"), "is a plan, but `portend testbed show` takes a topology"),
    ],
)
def test_every_command_names_a_wrong_file(folder: Path, arguments: tuple[object, ...], message: str) -> None:
    done = portend(*arguments, cwd=folder)
    assert done.returncode == 1, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (folder / "x").exists()


@pytest.mark.parametrize(
    ("text", "share"),
    [("0.95", 0.95), ("95%", 0.95), (" 95 % ", 0.95), ("1", 1.0), ("0", 0.0), ("9.5e1%", 0.95), (0.3, 0.3)],
)
def test_a_share_is_a_number_or_a_percentage(text: str | float, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["95", "-1%", "101%", "nan", "x", "", "5 %%", "95 percent", "inf"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(PortendError, match=r"such as 1 or 100%|is needed here"):
        parse_share(text)


def test_shares_are_read_alike_by_every_option_and_bound() -> None:
    plain, percent = (
        portend("plan", PROFILE, "--topology", TOPOLOGY, "--json", *asked).stdout
        for asked in (("--min-accuracy", "0.96"), ("--min-accuracy", "96%", "--codec-tolerance", "0.2%"))
    )
    stated = portend("plan", PROFILE, "--topology", TOPOLOGY, "--json", "--minimize", "latency",
                     "--subject-to", "accuracy>=96 %").stdout  # fmt: skip
    plans = [text[text.index('"plan"') : text.index('"gap"')] for text in (plain, percent, stated)]
    assert plans[0] == plans[1] == plans[2]
    done = portend("plan", PROFILE, "--topology", TOPOLOGY, "--min-accuracy", "96")
    assert done.returncode == 2
    assert "96 % is written 96%" in done.stderr
