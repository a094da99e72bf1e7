"""Key pairs, and who may talk to an agent: real sockets, real keys."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from portend.errors import ConfigError, InvalidValue
from portend.service.keys import OPERATOR, Keys, load_keys, make_keys


def test_keys_are_made_once_and_only_their_owner_reads_the_secret_ones(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    assert make_keys(folder, ["edge", OPERATOR]) == {"edge": True, OPERATOR: True}
    before = load_keys(folder, "edge")
    assert make_keys(folder, ["edge"]) == {"edge": False}
    assert load_keys(folder, "edge") == before
    assert stat.S_IMODE((folder / "edge.key_secret").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert before.trust.name_of(before.public) == "edge"
    assert before.trust.name_of(load_keys(folder, OPERATOR).public) == OPERATOR
    assert before.trust.name_of(b"x" * 40) == ""


def test_a_secret_key_stays_out_of_public_files_and_of_logs(tmp_path: Path) -> None:
    make_keys(tmp_path, ["edge"])
    keys = load_keys(tmp_path, "edge")
    assert keys.secret.decode() not in (tmp_path / "edge.key").read_text()
    assert keys.secret.decode() not in repr(keys)


@pytest.mark.skipif(os.name != "posix", reason="permissions of files")
def test_a_secret_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    make_keys(tmp_path, ["edge"])
    (tmp_path / "edge.key_secret").chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_keys(tmp_path, "edge")


@pytest.mark.parametrize("name", ["", "../edge", "a/b", ".key", "x" * 65, "e dge"])
def test_a_name_never_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidValue, match="letters, digits"):
        make_keys(tmp_path, [name])


def test_a_missing_or_broken_key_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="portend keys"):
        load_keys(tmp_path, "edge")
    make_keys(tmp_path, ["edge"])
    (tmp_path / "edge.key_secret").write_text("nothing")
    with pytest.raises(ConfigError, match="copy it again"):
        load_keys(tmp_path, "edge")


def test_the_command_makes_the_coordinator_s_keys_too(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    command = [sys.executable, "-m", "portend.cli.app", "keys", str(folder), "edge", "cloud"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "made" in done.stdout
    assert {path.name for path in folder.glob("*.key")} == {"edge.key", "cloud.key", f"{OPERATOR}.key"}
    assert isinstance(load_keys(folder, OPERATOR), Keys)
