"""What planning on samples gains over the paper's way, at equal accuracy on samples that planning never saw.

    python examples/paper/held_out.py --data DIR --json OUT [--weights NAME ...] [--seeds N] [--html OUT]

Every branch of the authors' ResNet-20 is scored on the CIFAR-10 test images, and each device takes the times that
the authors measured. For every seed the images are halved at random: four approaches plan on one half, and all
their plans are judged on the other by replaying its samples. DIR holds ``weights/``, ``cifar10/``, ``portend_aws/``.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from authors import read_profile, read_thresholds, read_topology
from numpy.typing import NDArray
from reproduce import Table, paper_space, plain, split_gain_s

from portend.errors import DataError, InvalidValue, PortendError, StorageError
from portend.io.storage import load_profile, save, write_json, write_text
from portend.perfmodel.model import Estimator, PerformanceModel
from portend.planner.problem import FrontPoint, Problem, SearchSpace, latency
from portend.planner.search import search
from portend.report import figures as plots
from portend.report.document import Chart, Document, Words, render_document
from portend.values.device_profile import DeviceProfile
from portend.values.exits import SampleExits
from portend.values.plan import Plan
from portend.values.profile import Profile
from portend.values.topology import Topology

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from rich.console import Console

__all__ = [
    "Approach",
    "Curve",
    "Halving",
    "Judged",
    "NetworkResult",
    "Spread",
    "approaches",
    "gain",
    "halves",
    "held_out",
    "joined",
    "main",
    "read_mean_curve",
    "score_table",
    "smoothed",
    "spread",
    "study",
    "to_json",
]

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

NETWORK: Final = "ResNet20"
WEIGHTS: Final = ("portend_resnet20_full_notfrozen", "portend_resnet20_full_frozen")
"""The paper's network (all branches trained together), and the same on a frozen single-exit backbone."""
DROPS: Final = (0.0, 0.01, 0.02, 0.04)
"""Accuracy given up against the whole network."""
FINE_DROPS: Final = tuple(round(0.001 * step, 3) for step in range(-10, 81))
"""Bounds of the curves."""
OWN_PARTITIONS: Final = 4
"""Most partitions of plans whose exits have a threshold each: with the authors' ten, that makes 8.9 million plans."""
PAPER: Final = "paper"
"""The approach that the others are held against."""


# --- scores --------------------------------------------------------------------------------


def score_table(
    data: Path,
    name: str,
    cache: Path,
    *,
    images: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> SampleExits:
    """Return every branch's score and correctness on the (first so many) CIFAR-10 test images, [S, 10].

    Kept in the file ``cache``; scored anew where the weights or the images are not those of the file.

    Raises:
        DataError: the weights or the images are missing or not what they should be.
    """
    weights, tests = data / "weights" / f"{name}.safetensors", data / "cifar10" / "test.parquet"
    origin = {
        "weights_sha256": _digest(weights),
        "images_sha256": _digest(tests),
        "images": "all" if images is None else str(images),
    }
    known = _cached(cache, origin)
    if known is not None:
        return known
    from portend.data.sources import load_dataset
    from portend.networks.evaluators import TorchEvaluator
    from portend.networks.resnet import load_portend_weights
    from portend.networks.zoo import build
    from portend.profiling.network import profile_exits

    backbone = build("resnet20")
    try:
        load_portend_weights(backbone, weights)
    except StorageError as error:
        raise DataError(str(error)) from None
    dataset = load_dataset(f"parquet:{data / 'cifar10'}")
    assert dataset.own_test is not None
    exits = profile_exits(
        TorchEvaluator(backbone),
        dataset,
        dataset.own_test[:images],
        on_progress=lambda done, total: progress(f"{name}: {done:,} of {total:,} images scored"),
    )
    topology = read_topology(data / "portend_aws")
    save(replace(read_profile(data / "portend_aws", NETWORK, topology), exits=exits, provenance=origin), cache)
    return exits


def _cached(cache: Path, origin: Mapping[str, str]) -> SampleExits | None:
    try:
        profile = load_profile(cache)
    except PortendError:
        return None
    exits = profile.exits
    return exits if isinstance(exits, SampleExits) and dict(profile.provenance) == dict(origin) else None


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        here = ", ".join(sorted(p.stem for p in path.parent.glob(f"*{path.suffix}"))) or f"no {path.suffix} files"
        raise DataError(f"{path} is missing; {path.parent} holds {here}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def halves(samples: int, seed: int) -> tuple[Indices, Indices]:
    """Return two disjoint random halves of the samples 0, 1, ..., sorted: to plan on, and held out."""
    if samples < 2:
        raise InvalidValue(f"two halves need at least two samples, but there are {samples}")
    order = np.random.default_rng(seed).permutation(samples)
    return np.sort(order[: samples // 2]), np.sort(order[samples // 2 :])


# --- times ---------------------------------------------------------------------------------


def joined(compute_s: Floats) -> Floats:
    """Return a table [N+1, N+1] in which no partition takes longer than its parts together.

    Parts that were measured to take less than the whole are noise, for they do the same and one branch more. Here
    the whole has what its parts gained, so that splitting a partition on one tier never pays by itself.
    """
    table = np.array(compute_s, dtype=np.float64)
    size = len(table)
    for length in range(2, size):
        for start in range(size - length):
            end = start + length
            inner = [table[start, cut] + table[cut, end] for cut in range(start + 1, end)]
            table[start, end] = min(table[start, end], *inner)
    return table


def smoothed(compute_s: Floats) -> Floats:
    """Return the table [N+1, N+1] that is nearest to additive: the sum of its blocks, and what its end costs.

    Least squares of relative errors over all partitions with no cost below zero, so that every split on one tier
    costs its exit branch.
    """
    from scipy.optimize import nnls

    blocks = len(compute_s) - 1
    starts, ends = np.triu_indices(blocks + 1, k=1)
    cut = np.arange(1, blocks + 1)
    terms = np.hstack(
        [(cut > starts[:, None]) & (cut <= ends[:, None]), cut == ends[:, None]], dtype=np.float64, casting="unsafe"
    )
    times = compute_s[starts, ends]
    cost, _ = nnls(terms / times[:, None], np.ones(times.size))
    table = np.full(compute_s.shape, np.nan)
    table[starts, ends] = terms @ cost
    return table


TABLES: Final[Mapping[str, Callable[[Floats], Floats]]] = {
    "measured": lambda table: table,
    "joined": joined,
    "smoothed": smoothed,
}


@dataclass(frozen=True, slots=True)
class Timing:
    """The compute times that plans are chosen on, and those that they are judged on (of ``TABLES``)."""

    name: str
    planned: str
    judged: str


TIMINGS: Final = (
    Timing("measured", "measured", "measured"),
    Timing("joined", "joined", "joined"),
    Timing("smoothed", "smoothed", "smoothed"),
    Timing("measured → smoothed", "measured", "smoothed"),
)
HEADLINE: Final = "smoothed"
"""The timing without what the noise of the measurements gives to plans that split a tier."""


def _retimed(profile: Profile, table: str) -> Profile:
    def again(device: DeviceProfile) -> DeviceProfile:
        return replace(device, compute_repeats_s=TABLES[table](device.compute_s)[None])

    return replace(profile, devices={name: again(device) for name, device in profile.devices.items()})


# --- planning on one half, judging on the other --------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Approach:
    """A way to plan: the spaces whose best plan counts, and the estimator that says which that is."""

    name: str
    words: str
    estimator: Estimator
    spaces: tuple[SearchSpace, ...]


def approaches(thresholds: tuple[float, ...], blocks: int, partitions: int = OWN_PARTITIONS) -> tuple[Approach, ...]:
    """Return the four approaches, and Portend's space with the paper's estimator.

    ``partitions``: at most so many where each exit has its own threshold.
    """
    paper = paper_space(thresholds)
    ours = SearchSpace(thresholds=thresholds, exits_per_tier=blocks)
    own = replace(ours, per_exit_thresholds=True, exits_per_tier=partitions, max_partitions=partitions)
    return (
        Approach(name=PAPER, words="its space and estimator", estimator="marginal", spaces=(paper,)),
        Approach(name="paper + samples", words="its space, sample estimator", estimator="sample", spaces=(paper,)),
        Approach(
            name="portend + rates",
            words="Portend's space, the paper's estimator",
            estimator="marginal",
            spaces=(ours,),
        ),
        Approach(
            name="portend",
            words="any tier order, any number of exits per tier, one threshold; sample estimator",
            estimator="sample",
            spaces=(ours,),
        ),
        Approach(
            name="portend, own thresholds",
            words=f"that, and one threshold per exit in up to {partitions} partitions",
            estimator="sample",
            spaces=(ours, own),
        ),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A plan: what its approach promised from the planning half, and what the held-out half gives.

    ``split_s``: seconds that it gains at most because measured parts take less than their whole.
    """

    plan: Plan
    promised: float
    accuracy: float
    latency_s: float
    split_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """The plans that one approach chooses over all bounds, by increasing promised accuracy and latency.

    Attributes:
        plans: the front of the planning half; whole: the whole network without exits, which is always to be had.
    """

    plans: tuple[Judged, ...]
    whole: Judged

    def chosen(self, bound: float) -> Judged:
        """Return the plan for an accuracy bound on the planning half; the most accurate where none promises it."""
        return next((p for p in self.plans if p.promised >= bound - 1e-12), self.plans[-1])

    def reaching(self, accuracy: float) -> Judged:
        """Return the fastest of the plans that reach an accuracy on the held-out half, else the whole network."""
        enough = [p for p in (*self.plans, self.whole) if p.accuracy >= accuracy - 1e-12]
        return min(enough, key=lambda p: p.latency_s) if enough else self.whole


@dataclass(frozen=True, kw_only=True, slots=True)
class Halving:
    """One seed: accuracies of the whole network on both halves, and a curve by timing and approach."""

    seed: int
    full_planning: float
    full_held_out: float
    curves: Mapping[tuple[str, str], Curve]


def held_out(profile: Profile, topology: Topology, ways: Sequence[Approach], seed: int) -> Halving:
    """Return what every approach chooses on one half of the profile's samples, judged on the other."""
    assert isinstance(profile.exits, SampleExits)
    planning, judging = (profile.exits.part(part) for part in halves(profile.exits.samples, seed))
    timed = {name: _retimed(profile, name) for name in TABLES}
    judges = {name: PerformanceModel(replace(p, exits=judging), topology) for name, p in timed.items()}
    fronts = {}
    for name in {timing.planned for timing in TIMINGS}:
        for way in ways:
            model = PerformanceModel(replace(timed[name], exits=planning), topology, estimator=way.estimator)
            fronts[name, way.name] = _front(model, way.spaces)
    alone = SearchSpace(thresholds=(0.0,), max_partitions=1, truncation=False)
    curves = {}
    for timing in TIMINGS:
        judge = judges[timing.judged]
        whole = _judged(judge, search(Problem(minimize=latency, space=alone), judge).plan, math.nan)
        for way in ways:
            plans = tuple(_judged(judge, point.plan, point.accuracy) for point in fronts[timing.planned, way.name])
            curves[timing.name, way.name] = Curve(plans=plans, whole=whole)
    return Halving(
        seed=seed,
        full_planning=float(planning.accuracies()[-1]),
        full_held_out=float(judging.accuracies()[-1]),
        curves=curves,
    )


def _front(model: PerformanceModel, spaces: Sequence[SearchSpace]) -> tuple[FrontPoint, ...]:
    """Points of all spaces that none of them beats."""
    found = [p for space in spaces for p in search(Problem(minimize=latency, space=space), model).front]
    found.sort(key=lambda p: (p.latency_s, -p.accuracy))
    best = np.maximum.accumulate([-1.0, *(p.accuracy for p in found)])
    return tuple(p for p, before in zip(found, best, strict=False) if p.accuracy > before)


def _judged(judge: PerformanceModel, plan: Plan, promised: float) -> Judged:
    estimate = judge.estimate(plan)
    return Judged(
        plan=plan,
        promised=promised,
        accuracy=estimate.accuracy,
        latency_s=estimate.mean_s,
        split_s=split_gain_s(judge, plan),
    )


# --- gains ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, standard deviation, least and greatest of a number over the halvings."""

    mean: float
    deviation: float
    least: float
    greatest: float


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of some values; the deviation of a single one is 0."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else 0.0, min(values), max(values))


def gain(latency_s: float, reference_s: float) -> float:
    """Return the share of the reference's latency that is saved; negative where it takes longer."""
    return 1 - latency_s / reference_s


def read_mean_curve(accuracy: Sequence[float], latency_s: Sequence[float], target: float) -> float:
    """Return the least latency at which the line through the points reaches an accuracy; NaN if it does not."""
    points = list(zip(accuracy, latency_s, strict=True))
    found = [t for a, t in points if a >= target]
    for (a, s), (b, t) in pairwise(points):
        if min(a, b) < target <= max(a, b):
            found.append(s + (t - s) * (target - a) / (b - a))
    return min(found, default=math.nan)


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkResult:
    """All halvings of one network's score table."""

    name: str
    samples: int
    accuracies: tuple[float, ...]
    ways: tuple[Approach, ...]
    halvings: tuple[Halving, ...]

    @property
    def title(self) -> str:
        return self.name.removeprefix("portend_")

    def reached(self, timing: str, way: str, drop: float) -> list[Judged]:
        """By halving, the fastest plan of the curve that gives up at most ``drop`` on the held-out half."""
        return [h.curves[timing, way].reaching(h.full_held_out - drop) for h in self.halvings]

    def chosen(self, timing: str, way: str, drop: float) -> list[Judged]:
        """By halving, the plan for the whole network's accuracy on the planning half less ``drop``."""
        return [h.curves[timing, way].chosen(h.full_planning - drop) for h in self.halvings]

    def gains(self, timing: str, way: str, drop: float, reference: str = PAPER) -> list[float]:
        """By halving, the share of latency saved at equal held-out accuracy."""
        pairs = zip(self.reached(timing, way, drop), self.reached(timing, reference, drop), strict=True)
        return [gain(own.latency_s, other.latency_s) for own, other in pairs]

    def mean_curve(self, timing: str, way: str) -> tuple[list[float], list[float]]:
        """Held-out accuracy less that of the whole network, and latency in s, for each of ``FINE_DROPS``.

        Means over the halvings of what each bound gives, so nothing in them was chosen by held-out samples.
        """
        accuracies, latencies = [], []
        for drop in reversed(FINE_DROPS):
            plans = self.chosen(timing, way, drop)
            accuracies.append(fmean(p.accuracy - h.full_held_out for p, h in zip(plans, self.halvings, strict=True)))
            latencies.append(fmean(p.latency_s for p in plans))
        return accuracies, latencies

    def mean_curve_gain(self, timing: str, way: str, drop: float) -> float:
        """Share of latency saved between the mean curves; the whole network where a curve does not reach."""
        whole = fmean(h.curves[timing, way].whole.latency_s for h in self.halvings)
        own, other = (read_mean_curve(*self.mean_curve(timing, name), -drop) for name in (way, PAPER))
        return gain(*(whole if math.isnan(t) else min(t, whole) for t in (own, other)))

    def misses(self, way: str, drop: float, timing: str = HEADLINE) -> tuple[list[float], list[float]]:
        """By halving, held-out accuracy less the bound, and less the same drop from the held-out whole network."""
        plans = list(zip(self.chosen(timing, way, drop), self.halvings, strict=True))
        return (
            [p.accuracy - (h.full_planning - drop) for p, h in plans],
            [p.accuracy - (h.full_held_out - drop) for p, h in plans],
        )


def study(
    data: Path,
    names: Sequence[str],
    seeds: int,
    cache: Path,
    *,
    partitions: int = OWN_PARTITIONS,
    images: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[NetworkResult, ...]:
    """Return the halvings of every network.

    Args:
        data: folder with weights/, cifar10/ and portend_aws/; names: of weights; seeds: 0 to seeds - 1.
        cache: folder for the score tables; partitions: see ``approaches``; images: only the first so many.

    Raises:
        DataError: a file is missing or not what it should be.
    """
    if seeds < 1:
        raise InvalidValue(f"at least one halving is needed, but got {seeds} seeds")
    folder = data / "portend_aws"
    topology = read_topology(folder)
    thresholds = read_thresholds(folder)
    results = []
    for name in names:
        progress(f"{name}: score table")
        exits = score_table(data, name, cache / f"scores-{name}.zip", images=images, progress=progress)
        profile = replace(read_profile(folder, NETWORK, topology), exits=exits)
        ways = approaches(thresholds, profile.num_blocks, partitions)
        halvings = []
        for seed in range(seeds):
            progress(f"{name}: halving {seed + 1} of {seeds}")
            halvings.append(held_out(profile, topology, ways, seed))
        results.append(
            NetworkResult(
                name=name,
                samples=exits.samples,
                accuracies=tuple(float(a) for a in exits.accuracies()),
                ways=ways,
                halvings=tuple(halvings),
            )
        )
    return tuple(results)


# --- JSON ----------------------------------------------------------------------------------


def to_json(results: Sequence[NetworkResult]) -> dict[str, Any]:
    """Return the results as JSON values, an object per network."""
    return {result.name: _network_json(result) for result in results}


def _spread_json(values: Sequence[float]) -> dict[str, Any]:
    s = spread(values)
    return {"mean": s.mean, "sd": s.deviation, "min": s.least, "max": s.greatest, "each": list(values)}


def _network_json(result: NetworkResult) -> dict[str, Any]:
    names = [way.name for way in result.ways]
    gains, promises = [], []
    for timing in TIMINGS:
        for drop in DROPS:
            for way in names:
                plans = result.reached(timing.name, way, drop)
                gains.append(
                    {
                        "timing": timing.name,
                        "drop": drop,
                        "approach": way,
                        "latency_ms": _spread_json([1e3 * p.latency_s for p in plans]),
                        "gain": _spread_json(result.gains(timing.name, way, drop)),
                        "gain_mean_curve": result.mean_curve_gain(timing.name, way, drop),
                        "split_ms": 1e3 * fmean(p.split_s for p in plans),
                        "whole_network": sum(math.isnan(p.promised) for p in plans),
                        "plans": [p.plan.describe() for p in plans],
                    }
                )
    for drop in DROPS:
        for way in names:
            bound, same = result.misses(way, drop)
            chosen = result.chosen(HEADLINE, way, drop)
            promises.append(
                {
                    "drop": drop,
                    "approach": way,
                    "kept": sum(m >= -1e-12 for m in bound),
                    "over_bound": _spread_json(bound),
                    "kept_same_half": sum(m >= -1e-12 for m in same),
                    "over_bound_same_half": _spread_json(same),
                    "latency_ms": _spread_json([1e3 * p.latency_s for p in chosen]),
                    "plans": [p.plan.describe() for p in chosen],
                }
            )
    return {
        "samples": result.samples,
        "accuracies": list(result.accuracies),
        "halvings": len(result.halvings),
        "full_planning": [h.full_planning for h in result.halvings],
        "full_held_out": [h.full_held_out for h in result.halvings],
        "gains": gains,
        "promises": promises,
    }


# --- tables --------------------------------------------------------------------------------


def _points(drop: float) -> str:
    return f"−{100 * drop:g}" if drop else "0"


def _spread_text(values: Sequence[float], scale: float, digits: int) -> str:
    s = spread([scale * v for v in values])
    return f"{s.mean:.{digits}f} ± {s.deviation:.{digits}f}"


def _range_text(values: Sequence[float]) -> str:
    s = spread([100 * v for v in values])
    return f"{s.mean:.1f} ± {s.deviation:.1f} ({s.least:.0f} to {s.greatest:.0f})"


def gain_table(result: NetworkResult) -> Table:
    """Return the gains over the paper at equal held-out accuracy, by timing and accuracy given up."""
    others = [way.name for way in result.ways if way.name != PAPER]
    rows: list[tuple[str, ...]] = []
    marked: list[int] = []
    for timing in TIMINGS:
        for drop in DROPS:
            if timing.name == HEADLINE:
                marked.append(len(rows))
            reference = [p.latency_s for p in result.reached(timing.name, PAPER, drop)]
            rows.append(
                (
                    timing.name if drop == DROPS[0] else "",
                    _points(drop),
                    _spread_text(reference, 1e3, 2),
                    *(_range_text(result.gains(timing.name, way, drop)) for way in others),
                    f"{100 * result.mean_curve_gain(timing.name, others[-1], drop):.1f}",
                )
            )
    return Table(
        f"{result.title}: latency saved at equal held-out accuracy, %",
        f"Against the paper's approach (ms): mean ± standard deviation (least to greatest) over {len(result.halvings)} "
        "halving(s), each approach with the fastest of its plans that is as accurate on the held-out half as the whole "
        "network less so many points. Last column: Portend with own thresholds between the means over the halvings of "
        "what each bound gives, where nothing was chosen by held-out samples.",
        ("compute times", "points", "paper, ms", *others, "mean curves"),
        tuple(rows),
        left=2,
        marked=tuple(marked),
    )


def promise_table(result: NetworkResult) -> Table:
    """Return how often the plan for a bound on the planning half keeps it on the held-out half."""
    rows = []
    for drop in DROPS:
        for way in result.ways:
            bound, same = result.misses(way.name, drop)
            plans = result.chosen(HEADLINE, way.name, drop)
            rows.append(
                (
                    way.name,
                    _points(drop),
                    _spread_text([p.latency_s for p in plans], 1e3, 2),
                    f"{sum(m >= -1e-12 for m in bound)} of {len(bound)}",
                    f"{_spread_text(bound, 100, 2)} ({100 * min(bound):.2f})",
                    f"{sum(m >= -1e-12 for m in same)} of {len(same)}",
                    f"{_spread_text(same, 100, 2)} ({100 * min(same):.2f})",
                )
            )
    return Table(
        f"{result.title}: promises kept ({HEADLINE} times)",
        "The plan for the accuracy of the whole network on the planning half less so many points. Bound: against that "
        "number, which the held-out half may miss because it is harder. Drop: against the whole network on the "
        "held-out half less the same points. In points: mean ± standard deviation (worst).",
        ("approach", "points", "ms", "kept bound", "over bound", "kept drop", "over drop"),
        tuple(rows),
    )


def plan_table(result: NetworkResult) -> Table:
    """Return the plans of the first halving."""
    first = result.halvings[0]
    rows = []
    for drop in DROPS:
        for way in result.ways:
            found = first.curves[HEADLINE, way.name].reaching(first.full_held_out - drop)
            rows.append(
                (
                    way.name,
                    _points(drop),
                    f"{1e3 * found.latency_s:.2f}",
                    f"{100 * found.accuracy:.2f} %",
                    found.plan.describe(),
                )
            )
    return Table(
        f"{result.title}: plans compared in the first halving ({HEADLINE} times)",
        f"The whole network has {100 * first.full_held_out:.2f} % on its held-out half.",
        ("approach", "points", "ms", "held-out", "plan"),
        tuple(rows),
    )


def all_tables(result: NetworkResult) -> tuple[Table, ...]:
    """Return every table of one network, in the order of reading."""
    return gain_table(result), promise_table(result), plan_table(result)


def headline(result: NetworkResult) -> str:
    """Return the gain of the last approach in one sentence."""
    way = result.ways[-1].name
    gains = [spread([100 * g for g in result.gains(HEADLINE, way, drop)]) for drop in DROPS]
    firm = " / ".join(f"{100 * result.mean_curve_gain(HEADLINE, way, drop):.1f}" for drop in DROPS)
    return (
        f"{result.title}: at {' / '.join(_points(d) for d in DROPS)} points Portend's plans take "
        f"{' / '.join(f'{g.mean:.1f} ± {g.deviation:.1f}' for g in gains)} % less than the paper's at the same "
        f"held-out accuracy ({firm} % between mean curves), with {HEADLINE} compute times."
    )


def print_tables(results: Sequence[NetworkResult], console: Console) -> None:
    """Print every table to a terminal."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    for result in results:
        for table in all_tables(result):
            shown = RichTable(
                title=table.title, caption=table.note, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left"
            )
            for index, column in enumerate(table.columns):
                shown.add_column(column, justify="left" if table.words(index) else "right", overflow="fold")
            for index, row in enumerate(table.rows):
                shown.add_row(*(Text(cell) for cell in row), style="bold" if index in table.marked else None)
            console.print(shown)
        console.print(headline(result), markup=False)


# --- the page ------------------------------------------------------------------------------

_COLORS: Final = ("#A3AFBB", "#56B4E9", "#0072B2", plots.CHOSEN, "#009E73")


def plot_curves(result: NetworkResult) -> Figure:
    """Return held-out latency over held-out accuracy, a band of all halvings around the mean."""
    import plotly.graph_objects as go

    figure = go.Figure()
    drops = [d for d in FINE_DROPS if 0 <= d <= 0.06]
    x = [-100 * d for d in drops]
    for way, color in zip(result.ways, _COLORS, strict=True):
        each = [[1e3 * p.latency_s for p in result.reached(HEADLINE, way.name, d)] for d in drops]
        red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
        figure.add_scatter(
            x=[*x, *reversed(x)],
            y=[*map(max, each), *reversed([*map(min, each)])],
            fill="toself",
            fillcolor=f"rgba({red},{green},{blue},0.16)",
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
            legendgroup=way.name,
        )
        figure.add_scatter(
            x=x,
            y=[fmean(values) for values in each],
            name=way.name,
            legendgroup=way.name,
            mode="lines",
            line={"color": color, "width": 2.5, "dash": "dot" if "+" in way.name else "solid"},
            hovertemplate="%{x:.1f} points: %{y:.2f} ms<extra>" + escape(way.name) + "</extra>",
        )
    plain(figure, 440)
    figure.update_layout(margin_t=72)
    figure.update_xaxes(title_text="held-out accuracy less that of the whole network, points")
    figure.update_yaxes(title_text="held-out mean latency, ms")
    return figure


def plot_gains(result: NetworkResult) -> Figure:
    """Return the last approach's gains as bars, one color per timing, least and greatest as brackets."""
    import plotly.graph_objects as go

    figure = go.Figure()
    way = result.ways[-1].name
    for timing, color in zip(TIMINGS, ("#A3AFBB", "#56B4E9", "#009E73", plots.CHOSEN), strict=True):
        spreads = [spread([100 * g for g in result.gains(timing.name, way, d)]) for d in DROPS]
        figure.add_bar(
            x=[f"{_points(d)} points" for d in DROPS],
            y=[s.mean for s in spreads],
            name=f"{timing.name} times",
            marker_color=color,
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [s.greatest - s.mean for s in spreads],
                "arrayminus": [s.mean - s.least for s in spreads],
                "color": plots.INK,
                "thickness": 1.2,
                "width": 3,
            },
            hovertemplate="%{x}: %{y:.1f} %<extra>" + escape(timing.name) + "</extra>",
        )
    plain(figure, 380)
    figure.update_layout(barmode="group", margin_t=72)
    figure.update_yaxes(title_text="latency saved against the paper, %", rangemode="tozero")
    return figure


_READING: Final = (
    "Accuracy and latency are those of the held-out half, by replaying its samples; latency is the mean over "
    "samples, from the sample at tier 0 to its label at tier 0.",
    "An approach none of whose plans is accurate enough runs the whole network on the best single tier.",
    "Lines: mean over the halvings; bands: least to greatest. The halves of different seeds overlap, so the spread "
    "says how much a halving matters, not how far other images would differ.",
    "joined: no partition takes longer than its measured parts. smoothed: each partition takes what its blocks and "
    "its end cost in a least-squares fit, so that no split on one tier gains by noise. Without "
    "an arrow, plans are chosen and judged on the same times.",
    "The images are JPEG copies of CIFAR-10’s test images, on which these weights lose about ten points.",
    "As in the authors’ program, soft-max and entropy of an exit take no time, and an unused exit saves none.",
)


def render_page(results: Sequence[NetworkResult]) -> str:
    """Return one HTML page with every table and figure; it loads nothing else."""
    sections = []
    for index, result in enumerate(results):
        first, *others = all_tables(result)
        curves = Chart(name=f"curves{index}", figure=plot_curves(result))
        gains = Chart(name=f"gains{index}", figure=plot_gains(result))
        sections += [first.section(curves, gains), *(table.section() for table in others)]
    ways = "; ".join(f"{way.name}: {way.words}" for way in results[0].ways)
    words = (
        f"The authors’ ResNet-20 weights scored on {results[0].samples:,} CIFAR-10 images, with the authors’ measured "
        "times; planned on one random half and judged on the other, in "
        f"{len(results[0].halvings)} halving(s). {ways}."
    )
    return render_document(
        Document(
            title="Planning on samples, judged on held-out samples",
            intro=(words,),
            lead=[Words(headline(result), "lead") for result in results],
            reading=_READING,
            sections=sections,
        )
    )


# --- command line --------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    from rich.console import Console

    parser = argparse.ArgumentParser(description="Planning on samples against the paper's, on held-out samples.")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="holds weights/ cifar10/ portend_aws/")
    parser.add_argument("--weights", nargs="+", default=list(WEIGHTS), metavar="NAME", help="files of weights/")
    parser.add_argument("--seeds", type=int, default=10, metavar="N", help="random halvings (default: 10)")
    parser.add_argument("--images", type=int, metavar="N", help="only the first N test images (default: all)")
    parser.add_argument("--json", type=Path, required=True, metavar="OUT", help="write all numbers here")
    parser.add_argument("--html", type=Path, metavar="OUT", help="write one page with tables and figures here")
    options = parser.parse_args(arguments)
    errors = Console(stderr=True)
    try:
        with errors.status("reading") as status:
            results = study(
                options.data,
                options.weights,
                options.seeds,
                options.json.parent,
                images=options.images,
                progress=status.update,
            )
        width = None if sys.stdout.isatty() else 190
        print_tables(results, Console(width=width, highlight=False))
        write_json(to_json(results), options.json)
        if options.html is not None:
            write_text(render_page(results), options.html)
    except PortendError as error:
        errors.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
