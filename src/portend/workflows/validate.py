"""A validation campaign: many different plans predicted, then run, then held against each other (paper, Sec. III-B).

The plans are drawn by seed (``planner.mix``) and their predictions written down before the first one runs. Each plan
runs alone on the idle system, over samples that stand for the whole test, in turns; in between the partitions that it
runs are timed again, so that the comparison knows how fast the machine was just then (``profiling.turns``). What ran is
kept as it comes: the same call goes on after an interruption, and measures no finished plan twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from portend.analysis.compare import Comparison
from portend.analysis.validation import Case, Validation
from portend.data.dataset import Dataset, draw
from portend.errors import ConfigError, InvalidValue, MismatchError, choice, law
from portend.io.forms import Form, Key, Section, amount, plain, read_yaml, share
from portend.io.journal import Journal
from portend.io.storage import load_measurement, load_profile, save, to_plain, write_json
from portend.networks.networkfile import read_spec
from portend.perfmodel.estimate import Estimate
from portend.perfmodel.exits import replay
from portend.perfmodel.model import CODEC_TOLERANCE, PerformanceModel
from portend.planner.mix import Pick, mixed_plans
from portend.planner.problem import SearchSpace
from portend.planner.stated import HINTS, read_hints
from portend.profiling.turns import Turns, burst_runs, coding_tables, message_ways, run_in_turns, timed_steps
from portend.report.validation_page import write_page
from portend.testbed.deployment import Deployment
from portend.testbed.emulation import EMULATIONS
from portend.values.exits import SampleExits
from portend.values.measurement import Measurement
from portend.values.plan import CRITERIA, Plan
from portend.values.profile import Profile
from portend.values.topology import Topology

__all__ = ["Campaign", "idle_before", "read_campaign", "stratified", "validate"]

Floats = NDArray[np.float64]
Tell = Callable[[str, int, int], None]

_GAP_S: Final = 0.05
_PER_RUN_S: Final = 0.2  # to load a plan's partitions and to collect its spans, about


@dataclass(frozen=True, kw_only=True, slots=True)
class Campaign:
    """What a campaign measures.

    Attributes:
        plans: how many; front: share of them from the predicted Pareto front; space: hints that all follow.
        samples: of the test split, that each plan runs over, drawn stratified by what its exits' scores say that they
            will do (``stratified``); None: all. population: samples of the test split that these are drawn from, and
            stand for; None: all.
        seed: of the plans, the samples and the order of timing.
        turns: in how many shares a plan runs over its samples; repeats: bursts of each of its partitions, before the
            first share and after each.
        least_s: a plan that would take less time than this runs over a multiple of the samples, and its partitions are
            timed as many times as often: short times need more of them to be known as well.
        gap_s: idle time before each sample; None: that of the source's profile.
        criterion: of the exits' scores; None: the profile's.
        codec_tolerance: share of accuracy that a codec may lose at a cut where it is offered.
        emulation: of the links (``portend.testbed.emulation.EMULATIONS``).
    """

    plans: int = 60
    samples: int | None = 200
    population: int | None = None
    seed: int = 0
    front: float = 0.25
    turns: int = 4
    repeats: int = 3
    least_s: float = 0.0
    gap_s: float | None = None
    criterion: str | None = None
    codec_tolerance: float = CODEC_TOLERANCE
    emulation: str = "relay"
    space: SearchSpace = field(default_factory=SearchSpace)

    def __post_init__(self) -> None:
        for name in ("plans", "samples", "population", "turns", "repeats"):
            value = getattr(self, name)
            law(value is None or value >= 1, f"a campaign's {name} are at least 1, but got {value}")
        law(self.seed >= 0, f"a seed is not negative, but got {self.seed}")
        law(0 <= self.front <= 1, f"the share of plans from the front lies within 0–1, but got {self.front}")
        law(0 <= self.least_s < math.inf, f"a plan's least time is finite and not negative, but got {self.least_s} s")
        law(
            self.gap_s is None or 0 <= self.gap_s < math.inf,
            f"the idle time before a sample is finite and not negative, but got {self.gap_s} s",
        )
        if self.criterion is not None:
            choice("a criterion", self.criterion, CRITERIA)
        choice("an emulation", self.emulation, EMULATIONS)


def _count(section: Section, key: str) -> int | None:
    return None if section.get(key, object) == "all" else section.get(key, int)


CAMPAIGN: Final = Form(
    title="Campaign",
    says="`portend validate --config` (docs/validation.md); options of the command line go first. Examples: "
    "`configs/campaigns/`.",
    makes=Campaign,
    keys=(
        plain("plans", int, "how many"),
        Key(name="samples", words="whole number, or all", read=_count, says="test samples that each plan runs over"),
        Key(name="population", words="whole number, or all", read=_count,
            says="test samples that these are drawn from and stand for", default="all"),
        plain("seed", int, "of the plans, the samples and the order of timing"),
        share("front", "share of the plans that come from the predicted Pareto front"),
        plain("turns", int, "in how many shares a plan runs over its samples"),
        plain("repeats", int, "bursts of each of its partitions before, between and after them"),
        amount("least", "time", "a plan that takes less runs over a multiple of the samples", field="least_s"),
        amount("gap", "time", "idle time before each sample", field="gap_s", default="the profile's"),
        plain("criterion", str, f"of the exits' scores: {', '.join(CRITERIA)}", default="the profile's"),
        share("codec_tolerance", "share of accuracy that a codec may lose at a cut"),
        plain("emulation", str, f"of the links: {', '.join(EMULATIONS)}"),
        Key(name="hints", words="mapping", read=lambda at, key: at.section(key), says="which plans there are",
            field="space", default="the defaults of hints", form=HINTS),
    ),
)  # fmt: skip


def read_campaign(path: str | Path, topology: Topology) -> Campaign:
    """Return the campaign that a YAML file states (see ``configs/campaigns``); what it leaves out is the default.

    Raises:
        ConfigError: the file, the place in it, what is wrong there, and the remedy.
    """
    values = CAMPAIGN.read(read_yaml(path, "campaign"))
    try:
        if "space" in values:
            values["space"] = SearchSpace(**read_hints(values["space"], topology))
        return Campaign(**values)
    except InvalidValue as error:
        raise ConfigError(f"{path}: {error}") from None


def validate(
    profile: Profile,
    network: str | Path,
    topology: Topology,
    dataset: Dataset,
    indices: NDArray[np.int64],
    directory: str | Path,
    campaign: Campaign | None = None,
    *,
    budget_s: float = math.inf,
    restart: bool = False,
    tell: Tell = lambda *_: None,
    allow_code: Collection[str] = (),
) -> Validation:
    """Measure a campaign, or what is left of it, and leave everything in ``directory``.

    ``predictions.json``, ``traces/NNNN.zip`` (one raw measurement for each plan), ``campaign.begun`` (the journal, with
    the partitions timed in between), ``summary.json`` and ``report.html``.

    Args:
        network: the file of the network that was profiled; indices: its test split in ``dataset``.
        budget_s: begin no plan that would end later; the same call goes on with the others.
        restart: forget what the directory holds of an earlier campaign.
        tell: called with (stage, done, total); of the runs in seconds that they are expected to take.
        allow_code: ``module:object`` that a checkpoint may name.

    Raises:
        MismatchError: network and profile are of different weights, or the topology names devices not profiled.
        StorageError: the directory holds another campaign; says what differs.
        SearchError: the space has fewer plans. DeploymentError: an agent or link failed; what ran is kept.
    """
    campaign = campaign or Campaign()
    profile = profile.by(campaign.criterion) if campaign.criterion else profile
    _check_weights(profile, network, allow_code)
    model = PerformanceModel(profile, topology, codec_tolerance=campaign.codec_tolerance)
    bench = _Bench(
        model, campaign, draw(indices, campaign.population or len(indices), seed=campaign.seed), Path(directory)
    )
    if restart:
        bench.forget()
    bench.open(dataset)
    bench.score_samples(dataset, network, tell, allow_code)
    bench.measure(dataset, network, time.monotonic() + budget_s, tell, allow_code)
    tell("compare", 0, 1)
    found = Validation(cases=tuple(bench.cases()), planned=len(bench.picks), full_accuracy=profile.full_accuracy)
    about = {"network": profile.backbone.name, "topology": topology.name, "campaign": _plain(campaign)}
    write_json(found.to_dict() | about, bench.folder / "summary.json")
    write_page(bench.folder / "report.html", found, profile, topology)
    tell("compare", 1, 1)
    return found


def stratified(outcome: tuple[NDArray[Any], NDArray[np.bool_]], count: int, *, seed: int) -> tuple[Any, Floats]:
    """Draw ``count`` of S samples so that they stand for all: which, and how many each one stands for, [count] each.

    Samples that leave at one partition and are right, or wrong, there are a stratum: ``outcome`` is ``replay``'s, [S]
    each. Each stratum has at least one sample as far as ``count`` goes, the largest ones first, and the others in
    proportion to its size (largest remainders); within a stratum the draw is random, and each of its samples stands for
    as many. Then means over them are of all S, and only what differs within a stratum is left to chance.
    """
    left, right = outcome
    rng = np.random.default_rng(seed)
    cell = 2 * np.asarray(left) + right
    count = min(count, cell.size)
    names, sizes = np.unique(cell, return_counts=True)
    order = np.lexsort((names, -sizes))[:count]
    names, sizes = names[order], sizes[order]
    quota = (count - sizes.size) * (sizes - 1) / max(int((sizes - 1).sum()), 1)
    taken = 1 + np.floor(quota).astype(np.int64)
    most = np.argsort(-(quota - np.floor(quota)), kind="stable")[: count - int(taken.sum())]
    taken[most] += 1
    chosen, weight = [], []
    for name, size, some in zip(names.tolist(), sizes.tolist(), taken.tolist(), strict=True):
        chosen.append(rng.choice(np.flatnonzero(cell == name), some, replace=False))
        weight.append(np.full(some, size / some))
    mixed = rng.permutation(count)
    return np.concatenate(chosen)[mixed], np.concatenate(weight)[mixed]


def idle_before(model: PerformanceModel, plan: Plan, estimate: Estimate, gap_s: float) -> list[float]:
    """Seconds for which nobody computes before each tier does, about: until a message is there, or the next sample.

    The tiers of a testbed share a core; what a tier finds there depends on that, and on who computed before.

    Args:
        plan: complete; estimate: of it. gap_s: idle time before each sample.
    """
    places, devices = model.topology, model.profile.devices
    propagation_s = places.propagation_s()
    between_s = gap_s + float(estimate.share @ propagation_s[list(plan.placement), places.destination])
    idle = [between_s] * len(places.tiers)
    senders = (places.source, *plan.placement[:-1])
    for (start, _), sender, tier, codec in zip(plan.partitions, senders, plan.placement, plan.codecs, strict=True):
        if sender != tier and codec is not None:
            size = devices[places.tiers[sender].device].codecs[codec].message_bytes[start]
            idle[tier] = float((places.transmission_s(size) + propagation_s)[sender, tier])
    return idle


def _check_weights(profile: Profile, network: str | Path, allow_code: Collection[str]) -> None:
    spec = read_spec(network, allow_code=allow_code)
    ours = profile.backbone
    if ours.weights_sha256 and ours.weights_sha256 != spec.weights_sha256:
        raise MismatchError(
            f"the profile is of {ours.name} with other weights than those in {network} ({spec.name}); validate with "
            "the network that was profiled, or profile this one"
        )


class _Bench:
    """A campaign's plans with their predictions, and what of them ran."""

    def __init__(self, model: PerformanceModel, campaign: Campaign, samples: NDArray[np.int64], folder: Path) -> None:
        self.folder, self._model, self._campaign, self._population = folder, model, campaign, samples
        self._count = min(campaign.samples or len(samples), len(samples))
        self._profile, self._topology = model.profile, model.topology
        self._marginal = PerformanceModel(
            model.profile, model.topology, estimator="marginal", codec_tolerance=campaign.codec_tolerance
        )
        chosen = mixed_plans(model, campaign.plans, seed=campaign.seed, front=campaign.front, space=campaign.space)
        self.picks: dict[str, Pick] = {f"{number:04d}": pick for number, pick in enumerate(chosen, start=1)}
        source = self._profile.devices[self._topology.tiers[self._topology.source].device]
        profiled = float(source.environment.get("gap_s", _GAP_S))
        self._gap_s = profiled if campaign.gap_s is None else campaign.gap_s
        self._before = {name: model.estimate(pick.plan) for name, pick in self.picks.items()}
        self._scored: SampleExits | None = None

    # -- files -----------------------------------------------------------------------------------

    def open(self, dataset: Dataset) -> None:
        """Go on with what the folder holds, or begin: predictions are on disk before anything runs."""
        predictions = [self._prediction(name) for name in self.picks]
        self._journal = Journal(self.folder / "campaign.begun", self._identity(dataset, predictions), "campaign")
        self._journal.open()
        path = self.folder / "predictions.json"
        if not path.exists():
            write_json({"predicted": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "plans": predictions}, path)

    def forget(self) -> None:
        """Remove what an earlier campaign left, and nothing else."""
        names = ("campaign.begun", "predictions.json", "scores.zip", "summary.json", "report.html")
        for path in (*(self.folder / name for name in names), *self.folder.glob("traces/[0-9]*.zip")):
            path.unlink(missing_ok=True)

    def _trace(self, name: str) -> Path:
        return self.folder / "traces" / f"{name}.zip"

    def _identity(self, dataset: Dataset, predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What a campaign that was begun must have been begun with, to go on."""
        places = self._topology
        samples = b"".join(dataset.encoded[i] for i in self._population)
        return {
            "network": self._profile.backbone.name,
            "weights": self._profile.backbone.weights_sha256,
            "tiers": [tier.name for tier in places.tiers],
            **{f"tier {tier.name}": to_plain(tier) for tier in places.tiers},
            **{f"link {name}": to_plain(link) for name, link in zip(places.link_names, places.links, strict=True)},
            "ends": [places.source, places.destination, places.ingest],
            **_plain(self._campaign),
            "gap_s": self._gap_s,
            "timed again": "partitions, encoding, decoding and empty messages, in the order of a sample's way",
            "number of samples": len(self._population),
            "digest of the samples": hashlib.sha256(samples).hexdigest()[:16],
            "digest of the plans and their predictions": hashlib.sha256(json.dumps(predictions).encode()).hexdigest()[
                :16
            ],
        }

    def _prediction(self, name: str) -> dict[str, Any]:
        pick = self.picks[name]
        return {
            "name": name,
            "origin": pick.origin,
            "factors": dict(pick.factors),
            "plan": pick.plan.to_dict(),
            self._model.estimator: _stated(self._before[name]),
            "marginal": _stated(self._marginal.estimate(pick.plan)),
        }

    # -- running -----------------------------------------------------------------------------------

    def score_samples(self, dataset: Dataset, network: str | Path, tell: Tell, allow_code: Collection[str]) -> None:
        """Have every branch's scores of the test: they say which samples run, explain errors, and predict nothing."""
        from portend.networks.evaluators import load_evaluator
        from portend.profiling.network import profile_exits

        path = self.folder / "scores.zip"
        if path.exists():
            exits = load_profile(path).exits
            assert isinstance(exits, SampleExits)
        else:
            evaluator = load_evaluator(network, allow_code=allow_code)
            exits = profile_exits(evaluator, dataset, self._population, on_progress=lambda *at: tell("scores", *at))
            save(replace(self._profile, exits=exits), path)
        self._scored = scored = exits.by(self._profile.exits.criterion)
        self._drawn = {
            name: stratified(replay(scored, pick.plan), self._samples(name), seed=self._campaign.seed + number)
            for number, (name, pick) in enumerate(self.picks.items())
        }

    def measure(
        self, dataset: Dataset, network: str | Path, deadline_s: float, tell: Tell, allow_code: Collection[str]
    ) -> None:
        """Run the plans that have not run yet, until the clock shows ``deadline_s``."""
        expected = {name: self._expected_s(name) for name in self.picks}
        left = [name for name in self.picks if not self._journal.recall(name)]
        total = math.fsum(expected.values())
        done = total - math.fsum(expected[name] for name in left)
        finished = len(self.picks) - len(left)

        def too_late(name: str) -> bool:
            """Whether a plan would end after the deadline; one runs in any case, so that there is something to see."""
            return finished > 0 and time.monotonic() + expected[name] > deadline_s

        if not left or too_late(left[0]):
            return
        tell("run, s", round(done), max(1, round(total)))
        with self._deployed(network, dataset, allow_code) as deployment:
            used = np.unique(np.concatenate([self._drawn[name][0] for name in left]))
            loaded = self._population[used]
            deployment.load_samples([dataset.encoded[i] for i in loaded], dataset.labels[loaded])
            for name in left:
                if too_late(name):
                    break

                def told(answered: int, samples: int, at: float = done, length: float = expected[name]) -> None:
                    tell("run, s", round(at + length * answered / samples), max(1, round(total)))

                self._run(name, deployment, used, told)
                done, finished = done + expected[name], finished + 1
                tell("run, s", round(done), max(1, round(total)))

    def _run(
        self, name: str, deployment: Deployment, loaded: NDArray[np.int64], told: Callable[[int, int], None]
    ) -> None:
        """Run one plan; ``loaded``: the samples of the test that the source has, in order."""
        plan, campaign = self.picks[name].plan, self._campaign
        drawn, weight = self._drawn[name]
        turns = run_in_turns(
            deployment, {plan: np.searchsorted(loaded, drawn).tolist()}, self._profile.num_blocks,
            turns=campaign.turns, repeats=campaign.repeats * self._times(name), gap_s=self._gap_s,
            idle_s=self._idle_s(name), seed=campaign.seed, on_progress=told,
        )  # fmt: skip
        path = self._trace(name)
        save(replace(turns.measurements[plan], sample=drawn, weight=weight), path)
        with path.open("rb") as file:
            os.fsync(file.fileno())  # the journal says that it is there
        self._journal.add(name, _flat(turns, plan))

    def _deployed(
        self, network: str | Path, dataset: Dataset, allow_code: Collection[str]
    ) -> AbstractContextManager[Deployment]:
        """The testbed: the one place that says how agents and links are started."""
        return Deployment(
            self._topology,
            network,
            dataset.decoder,
            executions=[self._profile.devices[tier.device].execution for tier in self._topology.tiers],
            criterion=self._profile.exits.criterion,
            emulation=self._campaign.emulation,
            allow_code=allow_code,
            ranges=dict(enumerate(self._profile.ranges)),
        )

    def _idle_s(self, name: str) -> list[float]:
        return idle_before(self._model, self.picks[name].plan, self._before[name], self._gap_s)

    def _times(self, name: str) -> int:
        """How many times the samples and bursts that the campaign states a plan has, to take long enough."""
        return max(1, round(self._campaign.least_s / self._once_s(name)))

    def _samples(self, name: str) -> int:
        return min(self._times(name) * self._count, len(self._population))

    def _expected_s(self, name: str) -> float:
        """Seconds that a plan will take, with the timing in between, about."""
        return self._times(name) * self._once_s(name)

    def _once_s(self, name: str) -> float:
        campaign, topology = self._campaign, self._topology
        shares = min(campaign.turns, self._count)
        samples = self._count + 2 + shares  # with those that warm up
        bursts, idle_s = 0.0, self._idle_s(name)
        for tier, steps in enumerate(timed_steps([self.picks[name].plan], topology)):
            busy = self._profile.devices[topology.tiers[tier].device].compute_s
            runs = burst_runs(topology.tiers[tier])
            for step in steps:
                ahead_s = 0.0 if step.before is None else float(busy[step.before, step.start])
                bursts += idle_s[tier] + runs * (float(busy[step.start, step.end]) + ahead_s)
        each = self._gap_s + self._before[name].mean_s
        return samples * each + (campaign.turns + 1) * campaign.repeats * bursts + shares * _PER_RUN_S

    # -- afterwards --------------------------------------------------------------------------------

    def cases(self) -> list[Case]:
        """The plans that ran, in the campaign's order."""
        return [self._case(name) for name in self.picks if self._journal.recall(name)]

    def _case(self, name: str) -> Case:
        pick, measured = self.picks[name], load_measurement(self._trace(name))
        then, places = _turns(self._journal.recall(name), pick.plan, measured, self._profile.num_blocks).then(
            self._profile
        )

        def estimated(profile: Profile, estimator: Any = None) -> Estimate:
            model = PerformanceModel(profile, places, estimator=estimator, codec_tolerance=math.inf)
            return model.estimate(pick.plan)

        return Case(
            comparison=Comparison(name=name, estimate=estimated(then), measurement=measured),
            before=self._before[name],
            marginal=estimated(then, "marginal"),
            replayed=None if self._scored is None else estimated(replace(then, exits=self._scored)),
            unlike_scores=0 if self._scored is None else _unlike(measured, self._scored),
            origin=pick.origin,
            factors=pick.factors,
        )


def _unlike(measured: Measurement, scored: SampleExits) -> int:
    """How many samples left elsewhere or were right otherwise than their scores say."""
    left, right = (found[measured.sample] for found in replay(scored, measured.plan))
    return int(((left != measured.exit_index) | (right != measured.correct)).sum())


def _stated(estimate: Estimate) -> dict[str, Any]:
    """An estimate as JSON values of nine digits: what is written down before the plan runs."""

    def digits(values: Any) -> Any:
        return [float(f"{value:.9g}") for value in np.atleast_1d(values).tolist()]

    return {
        "mean_ms": digits(1e3 * estimate.mean_s)[0],
        "parts_ms": {part: digits(1e3 * seconds)[0] for part, seconds in estimate.parts_s.items()},
        "per_exit_ms": digits(1e3 * estimate.latency_s),
        "accuracy": digits(estimate.accuracy)[0],
        "exit_rates": digits(estimate.share),
    }


def _plain(campaign: Campaign) -> dict[str, Any]:
    """The campaign as JSON values, with its hints by name."""
    values = asdict(campaign)
    space = values.pop("space")
    return values | {f"hint {name}": value for name, value in json.loads(json.dumps(space)).items()}


def _flat(turns: Turns, plan: Plan) -> list[float]:
    """The times between the turns as numbers for the journal.

    How many bursts; of each tier its runs in a burst, and of each partition their seconds, and those of coding; then
    the seconds of messages without a tensor.
    """
    numbers = [float(turns.bursts_s[0].shape[1])]
    for table, coding, steps in zip(turns.bursts_s, turns.coding_s, timed_steps([plan], turns.topology), strict=True):
        numbers.append(float(table.shape[2]))
        for step in steps:
            numbers += table[int(step.before is None), :, :, step.start, step.end].ravel().tolist()
            if step.takes:
                numbers += coding[step.takes][:2, :, step.start].ravel().tolist()
            if step.gives:
                numbers += coding[step.gives][2:, :, step.end].ravel().tolist()
    for way in message_ways([plan], turns.topology):
        numbers += turns.empty_s[:, *way].tolist()
    return numbers


def _turns(numbers: Sequence[float], plan: Plan, measured: Measurement, num_blocks: int) -> Turns:
    """Undo ``_flat``."""
    repeats, size = int(numbers[0]), num_blocks + 1
    left = iter(numbers[1:])

    def take(*shape: int) -> Floats:
        return np.array(list(islice(left, math.prod(shape)))).reshape(shape)

    tables, codings = [], []
    for steps in timed_steps([plan], measured.topology):
        runs = int(next(left))
        table, coding = np.full((2, repeats, runs, size, size), np.nan), coding_tables(steps, repeats, size)
        for step in steps:
            table[int(step.before is None), :, :, step.start, step.end] = take(repeats, runs)
            if step.takes:
                coding[step.takes][:2, :, step.start] = take(2, repeats)
            if step.gives:
                coding[step.gives][2:, :, step.end] = take(2, repeats)
        tables.append(table)
        codings.append(coding)
    tiers = len(measured.topology.tiers)
    empty = np.full((repeats, tiers, tiers), np.nan)
    for way in message_ways([plan], measured.topology):
        empty[:, *way] = take(repeats)
    return Turns(
        topology=measured.topology, measurements={plan: measured}, bursts_s=tuple(tables), coding_s=tuple(codings),
        empty_s=empty,
    )  # fmt: skip
