"""The paper's evaluation on this machine, from nothing, as one page: what ``make paper`` runs.

    python benchmarks/paper.py --out runs/paper            # some ten minutes
    python benchmarks/paper.py --out runs/paper-long --long

With CIFAR-10 in ``data/cifar10`` (or in the folder that PORTEND_DATA names) the network is the recorded ResNet-20 of
``profiles/``; without it, one is trained on scikit-learn's handwritten digits, as in ``portend demo``. The machine is
profiled first. Each part leaves its numbers in OUT/NAME.json; after an interruption the same command goes on with the
parts that are left, and OUT/report.html shows those that there are.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import baselines
import fine_tuning
import paper_figures
import running_estimators
import scenarios
from figures import write
from matplotlib.figure import Figure
from plans import Network, Running, Tell, available, open_network, scores_of, speedup

from portend.analysis.compare import Fit
from portend.analysis.validation import PAPER, Validation
from portend.analysis.validation import Case as ValidatedPlan
from portend.data.dataset import Dataset, Splits, draw, make_splits
from portend.data.sources import load_dataset
from portend.errors import PortendError
from portend.io.forms import load_topology
from portend.io.storage import load_profile, save, write_json, write_text
from portend.networks.checkpoint import load_checkpoint
from portend.networks.evaluators import TorchEvaluator
from portend.networks.networkfile import read_spec
from portend.networks.zoo import build
from portend.perfmodel.estimate import Estimate
from portend.planner.problem import Problem, SearchSpace, accuracy, latency
from portend.profiling.device import DeviceProfiling, profile_device
from portend.profiling.environment import describe_machine
from portend.profiling.losses import profile_codecs
from portend.profiling.network import profile_exits
from portend.progress import progress
from portend.report.document import Card, Document, Facts, Image, Piece, Section, Table, Words, render_document
from portend.report.validation_page import agreement_rows
from portend.testbed.emulation import EMULATIONS
from portend.training.config import DIGITS_TRAINING, Progress, TrainingConfig
from portend.training.training import train
from portend.units import format_bandwidth, format_time
from portend.values.execution import Execution
from portend.values.exits import SampleExits
from portend.values.profile import Profile
from portend.values.topology import Topology
from portend.workflows.refine import refine
from portend.workflows.validate import Campaign, read_campaign, validate

__all__ = ["PARTS", "Case", "Part", "go_on", "known", "main", "measure_part", "page"]

_FORMAT: Final = 2
"""Of the parts' values: another number where one of them changes, so that older files are measured anew."""

ROOT: Final = Path(__file__).resolve().parents[1]
_RECORDED: Final = (ROOT / "profiles/resnet20-cifar10.zip", ROOT / "profiles/resnet20-cifar10.safetensors")
_CAMPAIGN: Final = ROOT / "configs/campaigns/resnet20_cifar10.yaml"
"""What the long version validates by."""
_CODECS: Final = ("float32", "encoded", "float16", "int8")
_DEVICES: Final = {
    "local": (Execution(executor="onnxruntime"), _CODECS),
    "torch": (Execution(), ("float32", "encoded")),
}
"""What this machine is profiled as: by the faster executor, and by the one whose layers can be timed."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Case:
    """What all parts share; ``scores``: of the whole test split; ``long``: the long version of every part."""

    folder: Path
    network: Network
    topology: Topology
    scores: SampleExits
    running: Running
    long: bool

    def choose(self, short: Any, long: Any) -> Any:
        return long if self.long else short

    @property
    def identity(self) -> dict[str, Any]:
        """What a part's numbers must have been measured with, to be shown."""
        return {
            "network": self.network.profile.backbone.name,
            "weights": self.network.profile.backbone.weights_sha256,
            "topology": self.topology.name,
            "emulation": self.running.emulation,
            "long": self.long,
            "format": _FORMAT,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part of the page: ``measure`` gives JSON values, ``show`` says what stands below the title."""

    name: str
    title: str
    measure: Callable[[Case, Tell], dict[str, Any]]
    show: Callable[[Mapping[str, Any]], list[Piece]]


# --- the network and this machine's profile ------------------------------------------------


def _data() -> Path:
    return Path(os.environ.get("PORTEND_DATA", "data"))


def prepare(folder: Path, topology: Topology, emulation: str, long: bool, tell: Tell) -> Case:
    """Return the network, trained or recorded, profiled on this machine; what is there already is kept."""
    data, kept = _data() / "cifar10", folder / "profile.zip"
    recorded = data.is_dir()
    name = f"parquet:{data}" if recorded else "digits:size=32"
    dataset = load_dataset(name)
    splits = make_splits(dataset, seed=0)
    file = _RECORDED[1] if recorded else _trained(dataset, splits, folder / "training", tell)
    known = load_profile(kept) if kept.exists() else None
    if known is None or known.backbone.weights_sha256 != read_spec(file).weights_sha256:
        known = _profiled(file, name, splits, load_profile(_RECORDED[0]) if recorded else None, folder, tell)
        save(known, kept)
    network = open_network(file, known, name if recorded else "")
    running = Running(
        samples=300 if long else 80, plain_samples=100 if long else 24, turns=8 if long else 3,
        repeats=3 if long else 2, emulation=emulation,
    )  # fmt: skip
    scores = scores_of(network, folder / "test.zip", tell)
    return Case(folder=folder, network=network, topology=topology, scores=scores, running=running, long=long)


def _trained(dataset: Dataset, splits: Splits, folder: Path, tell: Tell) -> Path:
    """The checkpoint of a ResNet-20 with ten exits; training goes on where it was."""
    backbone = build("resnet20", in_channels=1, num_classes=dataset.num_classes, input_size=32)

    def told(at: Progress) -> None:
        tell("train", at.step, at.steps)

    return train(backbone, dataset, splits, DIGITS_TRAINING, folder, on_progress=told).checkpoint


def _profiled(file: Path, data: str, splits: Splits, recorded: Profile | None, folder: Path, tell: Tell) -> Profile:
    """The exits as recorded, or counted here; the device as it is here, by both executors."""
    dataset = load_dataset(data)
    evaluator = TorchEvaluator(load_checkpoint(file))
    if recorded is None:
        exits = profile_exits(evaluator, dataset, splits.profiling, on_progress=partial(tell, "profile exits"))
        ranges, losses = profile_codecs(evaluator, dataset, splits.profiling, _CODECS, on_progress=_staged(tell))
    else:
        assert isinstance(recorded.exits, SampleExits)
        exits, ranges, losses = recorded.exits, recorded.ranges, dict(recorded.losses)
    devices = {
        name: profile_device(
            name, file, dataset, DeviceProfiling(execution=execution, codecs=codecs, idle_repeats=3),
            indices=splits.profiling, ranges=ranges, on_progress=_staged(tell), keep=folder / f"{name}.begun",
        )
        for name, (execution, codecs) in _DEVICES.items()
    }  # fmt: skip
    provenance = {"data": data, "split": f"profiling, {exits.samples} samples"}
    return Profile(
        backbone=evaluator.spec, exits=exits, devices=devices, provenance=provenance, ranges=ranges, losses=losses
    )


def _staged(tell: Tell) -> Callable[[str, int, int], None]:
    return lambda what, *at: tell(f"profile {what}", *at)


# --- parts: measured -----------------------------------------------------------------------


def _measure_validation(case: Case, tell: Tell) -> dict[str, Any]:
    if case.long:
        campaign = replace(read_campaign(_CAMPAIGN, case.topology), emulation=case.running.emulation)
    else:
        campaign = Campaign(plans=12, samples=48, turns=2, repeats=2, emulation=case.running.emulation)
    network, folder = case.network, case.folder / f"validation-{case.running.emulation}"
    found = validate(
        network.profile, network.file, case.topology, network.dataset, network.test, folder,
        campaign, tell=tell,
    )  # fmt: skip
    return {
        "rows": agreement_rows(found),
        "samples": sorted({len(one.measurement) for one in found.comparisons}),
        "fits": {name: asdict(one) for name, one in _fits(found, "sample").items()},
        "marginal": {name: asdict(one) for name, one in _fits(found, "marginal").items()},
        "before": asdict(found.latency(lambda one: one.before)),
        "speed_drift": found.speed_drift,
        "disturbed": next((each.disturbed for each in found.comparisons if each.disturbed), ""),
        "disturbed_plans": len(found.disturbed),
        "plans": len(found.cases),
        "regrets": [asdict(one) | {"regret_s": one.regret_s, "regret": one.regret} for one in found.regrets()],
    }


def _fits(found: Validation, estimator: str) -> dict[str, Fit]:
    def estimate(one: ValidatedPlan) -> Estimate:
        return one.comparison.estimate if estimator == "sample" else one.marginal

    return {
        "exit_rate": found.exit_rate(estimate, all_=True),
        "latency": found.latency(estimate),
        "accuracy": found.accuracy(estimate),
    }


def _measure_running(case: Case, tell: Tell) -> dict[str, Any]:
    samples = case.choose(20, 60)
    return running_estimators.measure(
        case.network, running_estimators.on_device(case.topology, "torch"), case.choose(10, 24), case.choose(10, 20),
        replace(case.running, samples=samples, plain_samples=samples, turns=case.choose(2, 4)), tell,
    )  # fmt: skip


def _measure_baselines(case: Case, tell: Tell) -> dict[str, Any]:
    give_up = case.choose((0.0, 0.02), (0.0, 0.01, 0.02, 0.04))
    return baselines.measure(case.network, case.topology, give_up, case.running, case.scores, tell)


def _measure_fine_tuning(case: Case, tell: Tell) -> dict[str, Any]:
    network, folder = case.network, case.folder / "refined"
    digits = len(network.dataset) < 10_000
    splits = make_splits(network.dataset, seed=0)
    if not digits and not case.long:
        splits = replace(splits, train=draw(splits.train, 10_000))
    bound = network.profile.full_accuracy - 0.01
    refine(
        network.profile, network.file, network.dataset, splits, case.topology,
        Problem(minimize=latency, subject_to=(accuracy >= bound,), space=SearchSpace(exits_per_tier=2)), folder,
        training=TrainingConfig(epochs=case.choose(2, 4) if digits else case.choose(1, 2), batch_size=64,
                                learning_rate=0.01, threads=1),
        rounds=1, tell=tell,
    )  # fmt: skip
    return fine_tuning.measure(folder, network.file, case.topology, network.profile.provenance["data"], tell)


def _measure_scenario(scenario: str, case: Case, tell: Tell) -> dict[str, Any]:
    samples = case.choose(16, 80)
    values, points = scenarios.ranges(scenario, case.topology)
    return scenarios.measure(
        case.network, case.topology, scenario, values, points, 0.01,
        replace(case.running, samples=samples, plain_samples=samples, turns=case.choose(2, 4)), case.scores, tell,
    )  # fmt: skip


# --- parts: shown --------------------------------------------------------------------------


def _show_validation(found: Mapping[str, Any]) -> list[Piece]:
    names = {"exit_rate": "Exit rate", "latency": "Mean latency", "accuracy": "Accuracy"}
    rows = [["β / R²", "here, samples replayed", "here, marginal", *(f"paper, {name}" for name in PAPER["latency"])]]
    for quantity, name in names.items():
        ours = [_beta(found["fits"][quantity]), _beta(found["marginal"][quantity])]
        rows.append([name, *ours, *("{:.2f} / {:.2f}".format(*pair) for pair in PAPER[quantity].values())])
    fits = found["fits"]
    before = 100 * found["before"]["mape"]
    words = (
        f"{found['plans']} plans of every kind, {_between(found['samples'])} samples each. The mean latency is off by "
        f"{100 * fits['latency']['mape']:.1f} % on average, by the profile alone {before:.1f} %: computing took "
        f"{_change(found['speed_drift'])} than when it was profiled. {found['disturbed_plans']} of the plans were "
        f"disturbed. Accuracies are off by {_points(fits['accuracy'])} (RMSE), by the paper's estimator, which counts "
        f"each branch over all samples, by {_points(found['marginal']['accuracy'])}."
    )
    return [Words(words), _image(paper_figures.draw_agreement(found), "predicted over measured"), _table(rows)]


def _show_regret(found: Mapping[str, Any]) -> list[Piece]:
    rows = [["asked for", "plans", "predicted fastest, ms", "measured fastest, ms", "regret, ms", "of the latency"]]
    for one in found["regrets"]:
        rows.append(
            [
                "any accuracy" if one["bound"] == 0 else f"accuracy ≥ {100 * one['bound']:.1f} %", str(one["plans"]),
                f"{1e3 * one['chosen_s']:.1f}", f"{1e3 * one['best_s']:.1f}",
                f"{1e3 * one['regret_s']:.1f} ± {1e3 * one['standard_error_s']:.1f}",
                f"{100 * one['regret']:.1f} %",
            ]
        )  # fmt: skip
    words = (
        "Among the plans above whose measured accuracy reaches a bound: how much slower the plan predicted fastest was "
        "than the plan measured fastest. ± is the standard error of the difference."
    )
    return [Words(words), _table(rows)]


def _show_running(found: Mapping[str, Any]) -> list[Piece]:
    words = (
        f"{len(found['rows'])} plans run by PyTorch. What layers or blocks take alone, added up, leaves out what lies "
        "between them; partitions measured whole do not. The paper: RMSE 0.997, 0.76 and 0.114 ms (0–6 ms)."
    )
    figure = _image(paper_figures.draw_running(found), "estimated over measured compute times", narrow=True)
    return [Words(words), figure, _table(running_estimators.table(found))]


def _show_baselines(found: Mapping[str, Any]) -> list[Piece]:
    words = (
        "Every planner gets the same least accuracy on the profiling samples and gives its fastest plan; all plans run "
        "in turns over the same test samples. Bars: measured, with 95 % intervals; dashes: predicted. The paper, "
        "ResNet-20: cloud-only 0.1, Neurosurgeon 1, Portend 1.07; ResNet-110: 0.6, 1, 1.49."
    )
    ran = sum(plan["test_samples"] for plan in found["plans"].values())
    same = sum(plan["as_replayed"] for plan in found["plans"].values())
    note = (
        f"Accuracy as measured is over all {found['test_samples']:,} test samples: every branch's answers, replayed. "
        f"Of the {ran:,} answers on the testbed, {same:,} are those of the replay."
    )
    return [
        Words(words), _image(paper_figures.draw_speedups(found), "speed-ups over edge-only"),
        _table(_joined(baselines.table(found))), Words(note),
    ]  # fmt: skip


def _joined(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """The rows with planner, points given up and plan in one cell, which wraps; a planner's plan comes once."""
    (_, _, _, *head), *others = rows
    points: dict[tuple[str, ...], list[str]] = {}
    for given_up, *row in others:
        points.setdefault(tuple(row), []).append(given_up)
    return [["planner, points given up: plan", *head]] + [
        [f"{planner}, {', '.join(given_up)}: {plan}", *rest] for (planner, plan, *rest), given_up in points.items()
    ]


def _show_distributions(found: Mapping[str, Any]) -> list[Piece]:
    words = "Each step of a dotted line is an exit: its height the share that leaves there, its place the latency."
    figure = _image(paper_figures.draw_distributions(found), "latency distributions")
    return [Words(words), figure, _table(baselines.plans_table(found))]


def _show_fine_tuning(found: Mapping[str, Any]) -> list[Piece]:
    before, after = found["rounds"][0]["first_plan"], found["rounds"][-1]["first_plan"]
    words = (
        f"The plan for “{found['problem']}”, {found['rounds'][0]['described']}, has {100 * before['test']:.1f} % on "
        f"the test split as trained, and {100 * after['test']:.1f} % after fine-tuning its exits, in "
        f"{before['mean_ms']:.1f} and {after['mean_ms']:.1f} ms. The lines are the most accurate plans within each "
        "latency, found on the profiling samples."
    )
    figure = _image(paper_figures.draw_fine_tuning(found), "accuracy within a latency", narrow=True)
    return [Words(words), figure, _table(fine_tuning.table(found))]


def _show_scenario(found: Mapping[str, Any]) -> list[Piece]:
    crossings = [
        f"{' and '.join(one['contenders'])} at {_at(found['scenario'], one['value'])} ({one['mean_ms']:.1f} ms)"
        for one in found["crossings"]
    ]
    words = f"Accuracy at least {100 * found['bound']:.1f} %. " + (
        f"Equally fast: {'; '.join(crossings)}." if crossings else "No two contenders cross in this range."
    )
    figure = _image(paper_figures.draw_scenario(found), f"mean latency over {found['scenario']}", narrow=True)
    return [Words(words), figure, _table(scenarios.table(found))]


def _at(scenario: str, value: float) -> str:
    return format_bandwidth(round(value)) if scenario == "bandwidth" else f"{value:.3g} times"


def _beta(fit: Mapping[str, Any]) -> str:
    return "–" if fit["beta"] is None or fit["r2"] is None else f"{fit['beta']:.3f} / {fit['r2']:.3f}"


def _between(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _points(fit: Mapping[str, Any]) -> str:
    return f"{100 * fit['rmse']:.2f} points"


def _change(drift: float) -> str:
    return f"{100 * abs(drift):.1f} % {'longer' if drift > 0 else 'less'}"


def _table(rows: Sequence[Sequence[str]]) -> Table:
    """The rows, the first of which is the head."""
    return Table(head=rows[0], rows=rows[1:])


def _image(figure: Figure, text: str, *, narrow: bool = False) -> Image:
    buffer = io.BytesIO()
    write(figure, buffer, "svg")
    return Image(svg=buffer.getvalue(), text=text, narrow=narrow)


# --- parts: other scripts ------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Script:
    """A benchmark of its own: words of its command line, in which {json}, {svg}, {topology}, {root} and {data} stand.

    Attributes:
        short, long: measure, and write {json}. figure: draw {svg} from {json}. words: what the figure shows.
        absent: why it cannot be measured here; empty where it can.
    """

    short: tuple[str, ...]
    long: tuple[str, ...]
    figure: tuple[str, ...]
    words: str
    absent: Callable[[Case], str]


def script_part(name: str, title: str, script: Script) -> Part:
    """Return a part that runs a script, and shows the figure that it draws."""

    def measure(case: Case, tell: Tell) -> dict[str, Any]:
        if reason := script.absent(case):
            return {"absent": reason}
        tell(name, 0, 1)
        places = {
            "json": str(case.folder / f"{name}-raw.json"), "svg": str(case.folder / f"{name}.svg"),
            "topology": str(ROOT / "configs/topologies/paper.yaml"), "root": str(ROOT), "data": str(_data()),
        }  # fmt: skip
        for words in (case.choose(script.short, script.long), script.figure):
            file, *options = (word.format(**places) for word in words)
            command = [sys.executable, str(ROOT / "benchmarks" / file), *options]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no word"])[-1]
                raise PortendError(f"{' '.join(words)} ended with {done.returncode}: {last}")
        tell(name, 1, 1)
        return {"svg": Path(places["svg"]).read_text(encoding="utf-8")}

    def show(found: Mapping[str, Any]) -> list[Piece]:
        if "absent" in found:
            return [Words(f"Not measured: {found['absent']}.")]
        return [Words(script.words), Image(svg=found["svg"].encode("utf-8"), text=title)]

    return Part(name=name, title=title, measure=measure, show=show)


def _without_tcp(case: Case) -> str:
    there = case.running.emulation == "namespaces"
    return "" if there else f"the links are of the emulation {case.running.emulation}, which has no TCP"


def _without_traces(_: Case) -> str:
    traces = _data() / "bandwidth_traces"
    return "" if traces.is_dir() else f"there are no bandwidth traces in {traces}"


_RIDE: Final = "hsdpa_bus_ljansbakken_1"
_RIDES: Final = ("replay", "{root}/profiles/resnet110-cifar10.zip", "{data}/bandwidth_traces/" + _RIDE + ".txt")
_COMMUTE: Final = (
    "--topology",
    "{root}/configs/topologies/commute.yaml",
    "--keep-input-on",
    "edge",
    "--json",
    "{json}",
)

SCRIPTS: Final = (
    script_part(
        "tcp", "Messages over TCP, with and without the slow-start term",
        Script(
            short=("tcp.py", "measure", "{topology}", "--controls", "cubic", "--sizes", "300,12000,65000,400000",
                   "--repeats", "2", "--json", "{json}"),
            long=("tcp.py", "measure", "{topology}", "--repeats", "2", "--json", "{json}"),
            figure=("tcp.py", "figure", "{json}", "{svg}"),
            words="One way on new and warm connections, and after a second of idling: measured, and by the model with "
            "its slow-start term off and on.",
            absent=_without_tcp,
        ),
    ),
    script_part(
        "trace", "A ride: plans that are kept, and planning again at each change of the bandwidth",
        Script(
            short=("trace_replay.py", *_RIDES, *_COMMUTE),
            long=("trace_replay.py", *_RIDES, *("{data}/bandwidth_traces/" + name + ".txt" for name in (
                "hsdpa_bus_ljansbakken_2", "3g_norway_bus_1", "3g_norway_car_2", "3g_norway_train_1", "oboe_trace_0",
            )), *_COMMUTE),
            figure=("trace_replay.py", "figure", "{json}", _RIDE, "{svg}"),
            words="ResNet-110 as recorded in profiles/, one point of accuracy given up, raw input kept on the edge; a "
            "replay by the model of a ride on a bus.",
            absent=_without_traces,
        ),
    ),
)  # fmt: skip
"""Scripts that the page shows; one entry adds another."""

PARTS: Final = (
    Part(name="validation", title="Predicted and measured (Fig. 4)", measure=_measure_validation,
         show=_show_validation),
    Part(name="running", title="Layers, blocks and partitions (Fig. 5)", measure=_measure_running, show=_show_running),
    Part(name="baselines", title="Speed-up over edge-only (Fig. 6)", measure=_measure_baselines, show=_show_baselines),
    Part(name="fine-tuning", title="Accuracy within a latency, with and without fine-tuning (Fig. 8)",
         measure=_measure_fine_tuning, show=_show_fine_tuning),
    Part(name="bandwidth", title="What if the bandwidth were another one? (Fig. 9a)",
         measure=partial(_measure_scenario, "bandwidth"), show=_show_scenario),
    Part(name="compute", title="What if the base station computed faster? (Fig. 9b)",
         measure=partial(_measure_scenario, "compute"), show=_show_scenario),
    *SCRIPTS,
)  # fmt: skip

FURTHER: Final[Mapping[str, tuple[tuple[str, Callable[[Mapping[str, Any]], list[Piece]]], ...]]] = {
    "validation": (("Regret", _show_regret),),
    "baselines": (("Latency distributions and the plans (Fig. 7, Table III)", _show_distributions),),
}
"""More sections of the same numbers, by part."""


# --- all of it -----------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Measure what is left, write the page after every part, and return 0 if no part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/paper"))
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--topology", type=Path, default=ROOT / "configs/topologies/paper.yaml")
    parser.add_argument("--emulation", choices=EMULATIONS, default="namespaces")
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS], help="default: all")
    chosen = parser.parse_args(arguments)
    try:
        with progress() as tell:
            topology = load_topology(chosen.topology)
            case = prepare(chosen.out, topology, available(chosen.emulation), chosen.long, tell)
        failed = go_on(case, [part for part in PARTS if not chosen.parts or part.name in chosen.parts])
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on with the parts that are left, in {chosen.out}", file=sys.stderr)
        return 130
    except (PortendError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"open {chosen.out / 'report.html'}")
    return 1 if failed else 0


def go_on(case: Case, parts: Sequence[Part]) -> dict[str, str]:
    """Measure the parts that are left, write the page after each, and return why parts failed, by name."""
    failed: dict[str, str] = {}
    for part in parts:
        if known(case, part) is None:
            try:
                measure_part(case, part)
            except (PortendError, OSError) as error:
                failed[part.name] = str(error)
                print(f"{part.name}: {error}", file=sys.stderr)
        write_text(page(case, failed), case.folder / "report.html")
    return failed


def measure_part(case: Case, part: Part) -> None:
    """Measure a part, and keep its numbers with what they are of."""
    began = time.monotonic()
    with progress() as tell:
        found = part.measure(case, tell)
    kept = {"of": case.identity, "seconds": time.monotonic() - began, "finished": time.strftime("%Y-%m-%d %H:%M")}
    write_json(kept | {"found": found}, case.folder / f"{part.name}.json")


def known(case: Case, part: Part) -> dict[str, Any] | None:
    """Return what a part measured, if it was measured with this network and topology."""
    path = case.folder / f"{part.name}.json"
    if not path.exists():
        return None
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return kept if kept["of"] == case.identity else None


def page(case: Case, failed: Mapping[str, str], parts: Sequence[Part] = PARTS) -> str:
    """Return the page of all parts that there are; ``failed``: why one is missing, by name."""
    there = {part.name: kept for part in parts if (kept := known(case, part)) is not None}
    sections = []
    for part in parts:
        if part.name not in there:
            why = failed.get(part.name, "not measured yet; the same command goes on with it")
            sections.append(Section(title=part.title, pieces=[Words(why, "bad")]))
            continue
        found = there[part.name]["found"]
        pieces: list[Piece] = [*part.show(found), *_warning(found.get("disturbed", ""))]
        sections.append(Section(title=part.title, pieces=pieces))
        sections += [Section(title=title, pieces=show(found)) for title, show in FURTHER.get(part.name, ())]
    took = {name: f"{kept['seconds']:.0f} s, {kept['finished']}" for name, kept in there.items()}
    facts = {**case.network.profile.provenance, **describe_machine(), **took}
    sections.append(Section(title="Where the numbers come from", pieces=[Facts(facts)]))
    disturbed = [name for name, kept in there.items() if kept["found"].get("disturbed")]
    again = f"other work disturbed the machine during {', '.join(disturbed)}: measure again when it is quiet"
    return render_document(
        Document(
            title="The paper's evaluation, on this machine",
            intro=(_intro(case),),
            cards=_cards(there),
            lead=_warning(again if disturbed else ""),
            sections=sections,
        )
    )


def _warning(disturbed: str) -> list[Words]:
    return [Words(f"{disturbed[0].upper()}{disturbed[1:]}.", "bad")] if disturbed else []


def _intro(case: Case) -> str:
    profile = case.network.profile
    links = ", ".join(
        f"{format_bandwidth(link.bandwidth_bps)}, {format_time(link.propagation_delay_s)}"
        for link in case.topology.links
    )
    tiers = ", ".join(f"{tier.name} ({tier.slowdown:g} times slower)" for tier in case.topology.tiers)
    return (
        f"{profile.backbone.name} with {profile.num_blocks} exits on {case.network.dataset.name}, "
        f"{100 * profile.full_accuracy:.1f} % as a whole. Tiers of this machine: {tiers}; links: {links}. "
        f"The {'long' if case.long else 'short'} version."
    )


def _cards(there: Mapping[str, Mapping[str, Any]]) -> list[Card]:
    cards = []
    validation, speedups, running = (there.get(name) for name in ("validation", "baselines", "running"))
    if validation:
        fit = validation["found"]["fits"]["latency"]
        cards.append(
            Card(
                label="Mean latency is off by",
                value=f"{100 * fit['mape']:.1f} %",
                detail=f"over {fit['n']} plans · β, R² {_beta(fit)}",
            )
        )
    if speedups:
        found = speedups["found"]
        target = found["targets"][-1]
        base = found["plans"][target["planners"]["edge-only"]["plan"]]
        times, low, high = speedup(base, found["plans"][target["planners"]["Portend"]["plan"]])
        cards.append(
            Card(
                label="Speed-up over edge-only", value=f"{times:.2f}",
                detail=f"measured, {low:.2f}–{high:.2f} · {100 * target['give_up']:g} points of accuracy given up",
            )
        )  # fmt: skip
    if running:
        errors = running["found"]["errors"]
        cards.append(
            Card(
                label="Compute time, RMSE", value=f"{errors['partition-wise']['rmse_ms']:.2f} ms",
                detail=f"by partitions · {errors['layer-wise']['rmse_ms']:.2f} ms by layers",
            )
        )  # fmt: skip
    return cards


if __name__ == "__main__":
    sys.exit(main())
