"""The user's own objects by name: where they are found, and what is said where they are not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from portend.errors import ConfigError, InvalidValue
from portend.importing import import_object


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    return tmp_path


def test_modules_of_the_current_folder_are_found_last(folder: Path) -> None:
    (folder / "own_things.py").write_text("class sets:\n    train = [1, 2]\n")
    (folder / "fractions.py").write_text("hidden = True\n")
    assert import_object("own_things:sets.train", "the dataset") == [1, 2]
    assert import_object("fractions:Fraction", "the metric").__module__ == "fractions"
    assert sys.path[-1] == str(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no_such_thing:f", "the network 'no_such_thing:f' cannot be imported: there is no module 'no_such_thing', "
         "neither installed nor in the current folder .*; run this where the module is, or add its folder"),
        ("no_such_thing.inner:f", "there is no module 'no_such_thing'"),
        ("needy:f", r"cannot be imported: ModuleNotFoundError: No module named 'not_there' \(needy.py, line 1\)"),
        ("broken:f", r"cannot be imported: ZeroDivisionError: division by zero \(broken.py, line 2\)"),
        ("whole:g", "does not exist: whole has no 'g'"),
        ("whole:", "write package.module:object"),
        (":f", "write package.module:object"),
        ("whole", "write package.module:object"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_explained(folder: Path, text: str, message: str) -> None:
    (folder / "needy.py").write_text("import not_there\n")
    (folder / "broken.py").write_text("f = 1\nf / 0\n")
    (folder / "whole.py").write_text("f = 1\n")
    for error in (InvalidValue, ConfigError):
        with pytest.raises(error, match=message):
            import_object(text, "the network", error=error)


def test_the_command_finds_a_metric_beside_it(folder: Path) -> None:
    (folder / "mine.py").write_text("def twice(estimate):\n    return 2 * estimate.mean_s\n")
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "portend.cli.app", "plan", str(root / "profiles" / "resnet20-digits.zip"),
         *("--topology", str(root / "configs" / "topologies" / "three_tier.yaml"), "--exits-per-tier", "1"),
         *("--minimize", "mine:twice")],
        capture_output=True, text=True, env={"PATH": "", "PYTHONPATH": str(root / "src"), "PYTHONSAFEPATH": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "minimize twice" in done.stdout
