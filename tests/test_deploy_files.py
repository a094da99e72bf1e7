"""The example files under deploy/: what they start exists, and systemd takes them."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from portend.cli.app import cli

DEPLOY = Path(__file__).parent.parent / "deploy"
UNIT = DEPLOY / "portend-agent@.service"


def _words() -> list[str]:
    """The command line of the unit, after the program."""
    text = UNIT.read_text().replace("\\\n", " ")
    (line,) = (line for line in text.splitlines() if line.startswith("ExecStart="))
    return shlex.split(line.removeprefix("ExecStart=").replace("%i", "edge"))[1:]


def test_the_unit_starts_an_agent_with_options_that_there_are() -> None:
    command, *options = _words()
    agent = cli.commands[command]
    found = agent.make_context("agent", options, resilient_parsing=False)
    assert (found.params["name"], found.params["state"]) == ("edge", "/var/lib/portend/edge")


def test_the_container_starts_an_agent() -> None:
    (line,) = (x for x in (DEPLOY / "Containerfile").read_text().splitlines() if x.startswith("ENTRYPOINT"))
    assert line.removeprefix("ENTRYPOINT ") == '["portend", "agent"]'
    assert "agent" in cli.commands


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / "portend-agent@edge.service"
    copy.write_text(UNIT.read_text().replace("/opt/portend/bin/portend", str(Path(sys.executable))))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", copy], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
