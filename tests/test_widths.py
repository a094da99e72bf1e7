"""What commands answer in words fits 80 columns, and no word is cut or broken for it."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from click.testing import CliRunner

from commands import ROOT, too_wide
from portend.analysis.fitted import FittedTable
from portend.cli.app import cli
from portend.cli.options import folded, terminal
from portend.io.forms import load_topology, topology_yaml
from portend.io.storage import save
from portend.values.measurement import SPAN_KINDS, Measurement
from portend.values.plan import Plan

PROFILE = str(ROOT / "profiles/resnet20-digits.zip")
TOPOLOGY = load_topology(ROOT / "configs/topologies/three_tier.yaml")
NAMES = ("gateway-of-the-second-floor", "base", "cloud-of-another-continent")


def ran(plan: Plan, names: tuple[str, ...]) -> Measurement:
    """Forty samples that leave by turns at the plan's exits, after 30 ms of computing."""
    tiers = tuple(replace(tier, name=name) for tier, name in zip(TOPOLOGY.tiers, names, strict=True))
    count, exits = np.zeros(40, dtype=np.int64), np.arange(40) % len(plan)
    return Measurement(
        plan=plan,
        topology=replace(TOPOLOGY, tiers=tiers),
        sample=np.arange(40),
        exit_index=exits,
        label=count,
        correct=np.ones(40, dtype=np.bool_),
        start_s=np.arange(40.0),
        latency_s=np.full(40, 0.03),
        span_request=np.arange(40),
        span_kind=count + SPAN_KINDS.index("compute"),
        span_step=exits,
        span_tier=np.asarray(plan.placement)[exits],
        span_start_s=np.zeros(40),
        span_end_s=np.full(40, 0.03),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("widths")
    five = Plan(
        cuts=(1, 2, 3, 6, 8, 10),
        placement=(0, 0, 1, 1, 2, 2),
        thresholds=(0.1, 0.2, 0.3, 0.4, 0.5),
        codecs=("float32", None, "float32", None, "float32", None),
    )
    save(ran(five, NAMES), made / "run.zip")
    (made / "t.yaml").write_text(topology_yaml(ran(five, NAMES).topology), encoding="utf-8")
    return made


SWEEP = ("whatif", PROFILE, "--topology", "t.yaml", "--no-baselines", "--jobs", "1")
FEW = ("--exits-per-tier", "1", "--thresholds", "0,0.3")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("plan", PROFILE, "--topology", "t.yaml", "--min-accuracy", "0.97", "--fallbacks"), 0),
        (("exits", PROFILE, "--thresholds", "0.1,0.3,0.5"), 0),
        (("exits", PROFILE, "--thresholds", "0.05,0.1,0.15,0.2,0.25,0.3,0.35,0.4"), 0),
        (("codecs", PROFILE), 0),
        (("compare", PROFILE, "run.zip"), 0),
        (("drift", PROFILE, "run.zip"), 3),
        ((*SWEEP, "--sweep", "links[0].bandwidth=1,30 Mbit/s", "--min-accuracy", "0.97", "--crossovers", *FEW), 0),
        (
            (*SWEEP, "--sweep", "links[0].bandwidth=1,30 Mbit/s", "--sweep", "problem.min_accuracy=0.9,0.97",
             "--sweep", "tiers[base].slowdown=2,4", "--minimize", "p95", "--subject-to", "throughput>=1 /s", *FEW),
            0,
        ),
    ],
)  # fmt: skip
def test_an_answer_fits_and_every_word_is_whole(
    words: tuple[str, ...], status: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    told = {}
    for columns in (400, 80):
        done = CliRunner(env={"COLUMNS": str(columns)}).invoke(cli, words, catch_exceptions=False)
        assert done.exit_code == status, done.output
        told[columns] = re.sub(r"in [\d.]+ ms|─+", "", done.stdout)
        assert too_wide(done.stdout, columns) == [], columns
    assert [word for word in told[400].split() if word not in told[80]] == []


def test_a_table_becomes_lists_where_its_words_do_not_fit() -> None:
    table = FittedTable("[title]")
    table.numbers("mean\nms", "links[0].\nbandwidth")
    table.words("plan")
    table.add_row("12.5", "10 Mbit/s", "edge [1–5] η<0.3 → base [6–10]")
    shown = {}
    for columns in (80, 40, 20):
        with mock.patch.dict(os.environ, COLUMNS=str(columns)):
            console = terminal()
            with console.capture() as found:
                console.print(table)
        shown[columns] = [line.strip() for line in found.get().splitlines()]
    assert "12.5  10 Mbit/s  edge [1–5] η<0.3 → base [6–10]" in shown[80]
    assert "12.5  10 Mbit/s  edge [1–5] η<0.3 →" in shown[40]
    assert shown[20][0] == "[title]"
    assert [" ".join(line.split()) for line in shown[20][1:4]] == ["mean ms", "12.5", "links[0].bandwidth"]


def test_a_number_and_its_unit_stay_in_one_line() -> None:
    for columns in range(10, 60):
        with mock.patch.dict(os.environ, COLUMNS=str(columns)):
            lines = folded("95.45 % expected, 92.36 to 98.19 % in 12.5 ms over 10 Mbit/s").splitlines()
        assert all(re.match(r"(?!\s*(%|ms|Mbit/s))", line) for line in lines), columns
