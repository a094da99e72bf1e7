"""The command line, as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from commands import ROOT, portend
from portend.cli.app import cli
from portend.errors import ConfigError
from portend.io.storage import load_profile
from portend.planner.planfile import load_plan

PROFILE = str(ROOT / "profiles/resnet20-digits.zip")
TOPOLOGY = str(ROOT / "configs/topologies/three_tier.yaml")


def test_the_first_help_has_every_command() -> None:
    shown = CliRunner().invoke(cli, ["--help"]).output.partition("Options:")[0]
    assert [name for name in cli.commands if f"portend {name} " not in shown] == []


def test_the_shell_completes_commands() -> None:
    words = {"_PORTEND_COMPLETE": "bash_complete", "COMP_WORDS": "portend wh", "COMP_CWORD": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", "from portend.cli.app import cli; cli(prog_name='portend')"], capture_output=True,
        text=True, check=False, env={**os.environ, **words},
    )  # fmt: skip
    assert ran.stdout == "plain,whatif\n"


def test_plan_prints_the_promised_json() -> None:
    done = portend("plan", PROFILE, "--topology", TOPOLOGY, "--min-accuracy", "0.9", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["status"] == "optimal"
    assert set(answer["plan"]) == {"cuts", "placement", "thresholds", "codecs", "criterion"}
    estimate = answer["estimate"]
    assert {"mean", "p50", "p95", "p99", "parts"} <= set(estimate["latency_ms"])
    assert sum(estimate["latency_ms"]["parts"].values()) == pytest.approx(estimate["latency_ms"]["mean"])
    assert estimate["accuracy"] >= 0.9
    assert sum(estimate["exit_rates"]) == pytest.approx(1)
    assert {"edge-only", "base-only", "cloud-only", "Neurosurgeon", "BranchyNet", "best truncated tier"} <= set(
        answer["baselines"]
    )
    assert answer["stats"]["plans"] > 1000


def test_slow_start_is_charged_where_the_topology_asks_for_it_and_said(tmp_path: Path) -> None:
    cold = tmp_path / "cold.yaml"
    cold.write_text(Path(TOPOLOGY).read_text() + "slow_start: {initial_window: 1}\n")
    asked = ["plan", PROFILE, "--min-accuracy", "0.9", "--topology"]
    slow = portend(*asked, str(cold))
    assert "every message is charged slow start (initial window: 1)" in slow.stdout, slow.stderr
    assert "slow start" not in portend(*asked, TOPOLOGY).stdout
    means = [
        json.loads(portend(*asked, each, "--json").stdout)["baselines"]["cloud-only"]["estimate"]["latency_ms"]["mean"]
        for each in (str(cold), TOPOLOGY)
    ]
    assert means[0] > means[1] + 100, "the raw input takes more than one window"


def test_exits_are_shown_as_the_profile_has_them() -> None:
    done = portend("exits", PROFILE, "--thresholds", "0.2,0.4", "--json")
    assert done.returncode == 0, done.stderr
    answer, exits = json.loads(done.stdout), load_profile(PROFILE).exits
    assert [row["exit"] for row in answer["exits"]] == list(range(1, 11))
    assert [row["accuracy"] for row in answer["exits"]] == pytest.approx(exits.accuracies().tolist())
    assert [row["leaves"]["0.4"] for row in answer["exits"]] == pytest.approx(exits.rates([0.4])[0].tolist())
    table = portend("exits", PROFILE)
    assert "stage3.3" in table.stdout
    assert len(portend("exits", PROFILE, "--markdown").stdout.splitlines()) == 12
    refused = portend("exits", PROFILE, "--split", "test")
    assert refused.returncode == 1
    assert "give a network" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_planning_loads_no_torch_and_no_sockets() -> None:
    code = (
        "import sys; from portend.cli.app import cli; "
        f"cli.main(['plan', {PROFILE!r}, '--topology', {TOPOLOGY!r}, '--min-accuracy', '0.9'], standalone_mode=False); "
        "assert not {'torch', 'lightning', 'zmq', 'msgpack', 'plotly', 'sklearn'} & set(sys.modules), 'too much'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_hints_and_the_front_reach_the_planner(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    done = portend(
        "plan", PROFILE, "--topology", TOPOLOGY, "--max-latency", "45 ms", "--exits-per-tier", "2", "--tiers", "0,1",
        "--keep-input-on", "0", "--thresholds", "0,0.3", "--tier-order", "increasing", "--front", "--out", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "edge [" in done.stdout
    answer = json.loads(out.read_text())
    assert answer["estimate"]["latency_ms"]["mean"] <= 45
    for point in answer["front"]:
        assert set(point["plan"]["placement"]) <= {0, 1}
        assert point["plan"]["placement"][0] == 0
        assert set(point["plan"]["thresholds"]) <= {0, 0.3}


def test_an_infeasible_problem_is_an_answer() -> None:
    done = portend("plan", PROFILE, "--topology", TOPOLOGY, "--min-accuracy", "1", "--json")
    assert done.returncode == 3
    answer = json.loads(done.stdout)
    assert answer["status"] == "infeasible"
    assert 0.9 < answer["estimate"]["accuracy"] < 1


def test_an_infeasible_plan_is_written_only_where_it_is_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    out.write_text("a plan of before")
    asked = ("plan", PROFILE, "--topology", TOPOLOGY, "--min-accuracy", "1", "--out", out)
    done = portend(*asked)
    assert done.returncode == 3
    assert f"no plan meets the constraints: minimize latency subject to accuracy ≥ 1; {out} was not wr" in done.stderr
    assert out.read_text() == "a plan of before"
    done = portend(*asked, "--allow-infeasible")
    assert done.returncode == 0, done.stderr
    assert load_plan(out).status == "infeasible"
    assert portend("plan", PROFILE, "--topology", TOPOLOGY, "--min-accuracy", "0.9", "--out", out).returncode == 0
    assert load_plan(out).status == "optimal"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", PROFILE, "--topology", TOPOLOGY), "--min-accuracy, --max-latency, or both"),
        (("plan", PROFILE, "--topology", TOPOLOGY, "--min-accuracy", "90"), "90"),
        (("plan", PROFILE, "--topology", TOPOLOGY, "--max-latency", "60"), "no unit"),
        (
            ("plan", PROFILE, "--topology", TOPOLOGY, "--min-accuracy", "0.9", "--cuts", "11"),
            "within 1–10 here, but got [11]",
        ),
        (("plan", PROFILE, "--topology", TOPOLOGY, "--min-accuracy", "0.9", "--thresholds", "0,2"), "within 0–1"),
        (("plan", PROFILE, "--topology", "none.yaml", "--min-accuracy", "0.9"), "there is no file none.yaml"),
        (("plan", "none.zip", "--topology", TOPOLOGY, "--min-accuracy", "0.9"), "there is no file none.zip"),
        (
            ("plan", TOPOLOGY, "--topology", TOPOLOGY, "--min-accuracy", "0.9"),
            "three_tier.yaml is a topology, but `portend plan` takes",
        ),
        (("compare", PROFILE, PROFILE), "is a profile, but `portend compare` takes what a run measured"),
        (("run", "none.json", "--network", "c", "--topology", TOPOLOGY, "--out", "x"), "there is no file none.json"),
        (("train", "none.yaml", "--out", "x"), "there is no file none.yaml"),
        (("profile", "none.safetensors", "--out", "x.zip"), "none.safetensors"),
        (
            ("refine", PROFILE, "--checkpoint", "c", "--topology", TOPOLOGY, "--out", "x"),
            "--min-accuracy, --max-latency",
        ),
        (
            ("refine", PROFILE, "--checkpoint", "none", "--topology", TOPOLOGY, "--out", "x", "--min-accuracy", "0.9"),
            "there is no file none",
        ),
        (("nonsense",), "No such command"),
    ],
)
def test_bad_input_gets_one_clear_error(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = portend(*arguments, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir()), "nothing is left half-written"


def test_a_profile_and_a_topology_that_do_not_fit(tmp_path: Path) -> None:
    topology = tmp_path / "t.yaml"
    topology.write_text(
        Path(TOPOLOGY).read_text(encoding="utf-8").replace("device: local", "device: pi", 1), encoding="utf-8"
    )
    done = portend("plan", PROFILE, "--topology", str(topology), "--min-accuracy", "0.9")
    assert done.returncode == 1
    assert "tier 'edge' names the device 'pi', but the profile has ['local']" in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a plan in JSON"),
        ("[]", "a plan is a mapping"),
        ('{"cuts": [3, 2], "placement": [0, 1], "thresholds": [0.1]}', "cuts must increase"),
        ('{"cuts": [2, 3], "placement": [0, 1], "thresholds": [1.1]}', "thresholds lie within 0–1"),
        ('{"cuts": ["2"], "placement": [0]}', "a plan's cuts is a list"),
    ],
)
def test_a_plan_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    done = portend("run", str(path), "--network", "c", "--topology", TOPOLOGY, "--out", str(tmp_path / "x.zip"))
    assert done.returncode == 1
    assert message in done.stderr


def test_help_names_every_command() -> None:
    done = portend("--help")
    for command in ("demo", "train", "calibrate", "profile", "plan", "refine", "run", "compare", "validate", "report"):
        assert f"portend {command}" in done.stdout
        assert portend(command, "--help").returncode == 0


def test_the_example_plans_from_the_recorded_profile() -> None:
    done = subprocess.run(
        [sys.executable, "examples/plan_from_profile.py"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "optimal" in done.stdout


def test_by_default_no_baseline_beats_the_plan() -> None:
    done = portend("plan", PROFILE, "--topology", TOPOLOGY, "--min-accuracy", "0.97", "--json")
    answer = json.loads(done.stdout)
    best = answer["estimate"]["latency_ms"]["mean"]
    for name, baseline in answer["baselines"].items():
        if baseline["status"] == "optimal":
            assert best <= baseline["estimate"]["latency_ms"]["mean"] + 1e-9, name
    narrow = portend("plan", PROFILE, "--topology", TOPOLOGY, "--min-accuracy", "0.97", "--exits-per-tier", "1")
    assert "better, but outside the hints" in narrow.stdout


RUN = "epochs: 1, batch_size: 32, learning_rate: 0.1"


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (
            "{epochs: 1.5, batch_size: 32, learning_rate: 0.1}",
            "training.epochs: a whole number is needed here, but got 1.5",
        ),
        ("{epochs: 1, batch_size: 32, learning_rate: true}", "training.learning_rate: a number is needed"),
        ("{epochs: 1, batch_size: 32}", "learning_rate is missing"),
        (
            "{epoch: 1, batch_size: 32, learning_rate: 0.1}",
            "epochs is missing; did you mean 'epochs' where it says 'epoch'?",
        ),
        ("{epochs: 0, batch_size: 32, learning_rate: 0.1}", "epochs is at least 1, but got 0"),
        ("3", "training: a mapping of keys to values is needed"),
        (f"{{{RUN}, mode: frozen}}", "training.mode is one of joint, exits, plan, but got 'frozen'"),
        (f"{{{RUN}, mode: plan}}", "plan is missing"),
        (f"{{{RUN}, mode: plan, plan: none.json}}", "there is no file none.json"),
        (f"{{{RUN}, freeze_backbone: true}}", "training.freeze_backbone: this key is unknown"),
        (f"{{{RUN}, exits: [1, 2.5]}}", "training.exits: a list of whole numbers is needed here"),
        (f"{{{RUN}, exit_weights: [1, x]}}", "training.exit_weights: a list of numbers is needed here"),
        (f"{{{RUN}, exit_weights: [1, 0]}}", "exit_weights are positive, but got (1.0, 0.0)"),
        (f"{{{RUN}, schedule: step}}", "schedule is one of one-cycle, cosine, constant, but got 'step'"),
        (
            f"{{{RUN}, distillation: {{weights: 1}}}}",
            "distillation.weights: this key is unknown; did you mean 'weight'?",
        ),
        (f"{{{RUN}, distillation: {{weight: 2}}}}", "the weight of distillation lies within 0–1"),
        (f"{{{RUN}, early_stopping: {{}}}}", "patience is missing"),
        (f"{{{RUN}, devices: true}}", "training.devices: a count or a text such as auto is needed here"),
        (f"{{{RUN}, init: none.safetensors}}", "there is no file none.safetensors"),
    ],
)
def test_a_training_section_that_is_wrong(tmp_path: Path, training: str, message: str) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"network: resnet8\ndata: digits\ntraining: {training}\n", encoding="utf-8")
    done = portend("train", str(config), "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_search_that_is_cut_short_says_so() -> None:
    command = ["plan", PROFILE, "--topology", TOPOLOGY, "--min-accuracy", "0.97", "--json"]
    command += ["--per-exit-thresholds", "--exits-per-tier", "3"]
    whole, cut_short = (json.loads(portend(*command, *more).stdout) for more in ((), ("--seconds", "0")))
    assert (whole["status"], whole["gap"], cut_short["status"]) == ("optimal", 0, "feasible")
    mean_ms = {name: answer["estimate"]["latency_ms"]["mean"] for name, answer in (("w", whole), ("c", cut_short))}
    assert mean_ms["c"] * (1 - cut_short["gap"]) <= mean_ms["w"] + 1e-9 <= mean_ms["c"] + 2e-9


def test_exits_per_tier_and_robust_are_heeded() -> None:
    command = ["plan", PROFILE, "--topology", TOPOLOGY, "--min-accuracy", "0.96", "--json"]
    one, two, sure = (
        json.loads(portend(*command, *more).stdout)
        for more in (("--exits-per-tier", "1"), ("--exits-per-tier", "2"), ("--robust", "0.95"))
    )
    assert one["stats"]["plans"] < two["stats"]["plans"]
    assert len(set(one["plan"]["placement"])) == len(one["plan"]["placement"])
    assert sure["estimate"]["accuracy"] > two["estimate"]["accuracy"] >= 0.96
    assert "95 % confidence" in sure["problem"]


DIGITS = "options: {in_channels: 1, num_classes: 10, input_size: 8}\ndata: digits:size=8\n"


def test_ctrl_c_ends_training_with_a_state_to_go_on_from(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        f"network: resnet8\n{DIGITS}training: {{epochs: 500, batch_size: 32, learning_rate: 0.1, threads: 1}}\n"
    )

    def press() -> None:
        while not (tmp_path / "run" / "state.safetensors").exists():
            if ended.wait(0.05):
                return
        os.kill(os.getpid(), signal.SIGINT)

    ended = threading.Event()
    presses = threading.Thread(target=press)
    presses.start()
    try:
        done = portend("train", config, "--out", tmp_path / "run")
    finally:
        ended.set()
        presses.join()
    assert done.returncode == 130
    assert "interrupted; the same command goes on from the last state" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"state.safetensors", "history.csv"}


def test_a_checkpoint_is_trained_further_for_a_plan(tmp_path: Path) -> None:
    from portend.networks import zoo
    from portend.networks.checkpoint import load_checkpoint, save_checkpoint

    start = zoo.build("resnet8", in_channels=1, num_classes=10, input_size=8)
    save_checkpoint(start, tmp_path / "first.safetensors")
    (tmp_path / "plan.json").write_text('{"cuts": [2, 3], "placement": [0, 1], "thresholds": [0.3]}')
    training = f"training: {{{RUN}, init: first.safetensors, mode: plan, plan: plan.json, freeze_backbone: true}}\n"
    (tmp_path / "c.yaml").write_text(f"data: digits:size=8\n{training}")
    done = portend("train", "c.yaml", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = start.state_dict(), load_checkpoint(tmp_path / "run/checkpoint.safetensors").state_dict()
    changed = {".".join(name.split(".")[:2]) for name, value in before.items() if not value.equal(after[name])}
    assert changed == {"branches.1", "branches.2"}
    (tmp_path / "c.yaml").write_text(f"network: resnet8\noptions: {{num_classes: 5}}\ndata: digits:size=8\n{training}")
    done = portend("train", "c.yaml", "--out", "run", cwd=tmp_path)
    assert done.returncode == 1
    assert "(options.num_classes: 10, now 5); leave them out, or begin with a checkpoint of that network" in done.stderr


def test_a_checkpoint_is_trained_further_at_another_size_on_some_of_the_samples(tmp_path: Path) -> None:
    from portend.networks import zoo
    from portend.networks.checkpoint import load_checkpoint, save_checkpoint

    save_checkpoint(zoo.build("resnet8", in_channels=1, num_classes=10, input_size=8), tmp_path / "first.safetensors")
    body = f"options: {{input_size: 12}}\ndata: digits:size=12\ntraining: {{{RUN}, init: first.safetensors}}\n"
    (tmp_path / "c.yaml").write_text(f"samples: 40\n{body}")
    done = portend("train", "c.yaml", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert load_checkpoint(tmp_path / "run/checkpoint.safetensors").architecture["input_size"] == 12
    (tmp_path / "c.yaml").write_text(f"samples: 41\n{body}")
    other = portend("train", "c.yaml", "--out", "run", cwd=tmp_path)
    assert other.returncode == 1
    assert "belongs to another training run (training samples:" in other.stderr
    (tmp_path / "c.yaml").write_text(f"samples: 0\n{body}")
    assert "at least one sample" in portend("train", "c.yaml", "--out", "run", cwd=tmp_path).stderr


def test_tiers_go_by_name_or_number(tmp_path: Path) -> None:
    base = ["plan", PROFILE, "--topology", TOPOLOGY, "--min-accuracy", "0.97", "--json"]
    stated = tmp_path / "problem.yaml"
    stated.write_text("hints: {tiers: [edge, 2], block_tiers: {1: edge}, truncation: false}\n", encoding="utf-8")
    by_number, by_name, by_file = (
        json.loads(portend(*base, *more).stdout)
        for more in (
            ("--tiers", "0,2", "--keep-input-on", "0", "--no-truncation"),
            ("--tiers", "edge, cloud", "--keep-input-on", "edge", "--no-truncation"),
            ("--problem", str(stated)),
        )
    )
    assert by_number["plan"] == by_name["plan"] == by_file["plan"]
    assert by_number["plan"]["placement"][0] == 0
    assert set(by_number["plan"]["placement"]) <= {0, 2}
    assert by_number["plan"]["cuts"][-1] == 10
    both = json.loads(portend(*base, "--problem", str(stated), "--tiers", "base", "--keep-input-on", "base").stdout)
    assert set(both["plan"]["placement"]) == {1}, "options take precedence"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--tiers=edeg", "no tier is called 'edeg'; the tiers are edge, base, cloud; did you mean 'edge'?"),
        ("--keep-input-on=3", "no tier is called '3'; the tiers are edge, base, cloud"),
        (
            "{tiers: [edge, clod]}",
            "hints.tiers: no tier is called 'clod'; the tiers are edge, base, cloud; did you mean",
        ),
        ("{block_tiers: {1: moon}}", "hints.block_tiers.1: no tier is called 'moon'; the tiers are edge, base, cloud"),
        ("{block_tiers: {one: edge}}", "hints.block_tiers: blocks are numbered from 1, but got ['one']"),
        ("{cuts: [1, two]}", "hints.cuts: a list of whole numbers is needed here, but got [1, 'two']"),
        ("{exits_per_teir: 2}", "hints.exits_per_teir: this key is unknown; did you mean 'exits_per_tier'?"),
        ("{tier_order: downward}", "tier_order is one of any, increasing, but got 'downward'"),
    ],
)
def test_hints_that_are_wrong_are_named(tmp_path: Path, given: str, message: str) -> None:
    if not given.startswith("--"):
        (tmp_path / "p.yaml").write_text(f"hints: {given}\n", encoding="utf-8")
        given = f"--problem={tmp_path / 'p.yaml'}"
    done = portend(
        "plan", PROFILE, "--topology", TOPOLOGY, "--min-accuracy", "0.97", given,
    )  # fmt: skip
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", PROFILE, "--topology", TOPOLOGY, "--min-accuracy", "0.97", "--front", "--fallbacks"),
        ("exits", str(ROOT / "profiles/resnet110-cifar10.zip")),
        ("codecs", str(ROOT / "profiles/resnet20-cifar10.zip"), "--cuts", "3,6"),
        ("whatif", PROFILE, "--topology", TOPOLOGY, "--min-accuracy", "0.97", "--crossovers",
         "--sweep", "links[0].bandwidth=1,5 Mbit/s"),
    ],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
@pytest.mark.parametrize("columns", ["80", ""])
def test_no_line_is_longer_than_80_columns(
    arguments: tuple[str, ...], columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    done = CliRunner().invoke(cli, list(arguments))
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert len(lines) > 5
    assert not [line for line in lines if len(line) > 80]
    assert "…" not in done.stdout


def test_plan_refuses_an_unwritable_out_before_the_search(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("portend.planner.solve.solve", lambda *_, **__: pytest.fail("searched"))
        out = str(tmp_path / "file" / "plan.json")
        done = CliRunner().invoke(
            cli, ["plan", PROFILE, "--topology", TOPOLOGY, "--min-accuracy", "0.97", "--out", out]
        )
    assert isinstance(done.exception, ConfigError)
    assert "choose another --out" in str(done.exception)
