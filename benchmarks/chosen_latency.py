"""How true the latency of chosen plans is: measured minus predicted of the plans that planning picks as the fastest.

    python benchmarks/chosen_latency.py profiles/resnet20-cifar10.zip profiles/resnet110-cifar10.zip --json OUT
    python benchmarks/chosen_latency.py --campaign runs/campaigns/NAME

*Drawn profiles.* The truth is the estimate that a recorded profile gives, with a smooth part that is not in it.
Profiles of it are drawn: in each, every partition has a deviation of its own (luck of one process), and its repeats
have the noise and the disturbances of the recorded ones. Plans are chosen on what was drawn and judged by the truth.

*Halves.* The repeats of a recorded profile are halved at random; plans are chosen on one half and judged by the means
of the other. Halves of one profile share its process and its machine, so their intervals are too narrow.

Plans are chosen by the raw means, as planning did before it estimated, and by the estimate: the fastest of each front
with at least some accuracies below that of the whole network. The whole network on the source, which nobody chose, is
judged beside them. Intervals are of the mean over profiles (Student's t, 95 %).

*Campaigns.* Of what ``portend validate`` measured (``summary.json``): the plans of the front, which are chosen ones,
and those that were drawn from the whole space.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from portend.io.forms import load_topology
from portend.io.storage import load_profile, write_json
from portend.perfmodel.model import PerformanceModel
from portend.planner.problem import Problem, SearchSpace, accuracy, latency
from portend.planner.search import search
from portend.values.compute_fit import mean_repeats
from portend.values.device_profile import DeviceProfile
from portend.values.plan import Plan
from portend.values.profile import Profile
from portend.values.topology import Topology

__all__ = ["campaign_rows", "chosen_on", "drawn", "halves", "main", "raw", "rows_of", "truth_of"]

Floats = NDArray[np.float64]

DROPS: Final = (0.0, 0.01, 0.02, 0.04, 0.08)
"""Accuracy given up against the whole network."""
SPACE: Final = SearchSpace(thresholds=(0.0, 0.1, 0.3, 0.5, 0.7), exits_per_tier=2)
SMOOTH: Final = 0.02
OWN: Final = 0.02
"""Standard deviations of the truth's smooth part and of a partition's luck, relative (docs/model.md, 7a)."""


def main(arguments: list[str] | None = None) -> None:
    """Print a table of biases; write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profiles", nargs="*", type=Path)
    parser.add_argument("--topology", type=Path, default=Path("configs/topologies/paper.yaml"))
    parser.add_argument("--device", help="of all tiers; default: as in the topology")
    parser.add_argument("--draws", type=int, default=20, help="of profiles, and of halves")
    parser.add_argument("--campaign", type=Path, action="append", default=[], help="folder or JSON of portend validate")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    found = [row for path in chosen.campaign for row in campaign_rows(path)]
    for path in chosen.profiles:
        topology = load_topology(chosen.topology)
        if chosen.device:
            topology = replace(topology, tiers=tuple(replace(tier, device=chosen.device) for tier in topology.tiers))
        found += rows_of(path.stem, load_profile(path), topology, chosen.draws)
    for row in found:
        print(
            f"{row['data']:<28} {row['study']:<8} {row['plans']:<9} {row['by']:<9} measured − predicted "
            f"{100 * row['bias']:+.2f} % ({100 * row['low']:+.2f} to {100 * row['high']:+.2f}), {row['n']} "
            + ("plans" if row["study"] == "campaign" else "profiles")
            + (f"; {100 * row['lost']:.2f} % slower than the best" if "lost" in row else "")
        )
    if chosen.json:
        write_json(found, chosen.json)


# -- profiles --------------------------------------------------------------------------------------


def raw(profile: Profile) -> Profile:
    """Return the profile with the raw means as given times: what planning believed before it estimated."""

    def means(device: DeviceProfile) -> DeviceProfile:
        busy = mean_repeats(device.compute_repeats_s)
        woken, following = (_raw_firsts(each, busy) for each in (device.idle_repeats_s, device.following_repeats_s))
        return replace(
            device,
            compute_repeats_s=busy[None],
            branch_repeats_s=mean_repeats(device.branch_repeats_s)[None],
            idle_repeats_s=woken,
            following_repeats_s=following,
        )

    return _with(profile, means)


def _raw_firsts(repeats: Floats | None, busy: Floats) -> Floats:
    """Means of the first runs [1, B, N+1, N+1], those that were not measured on a least-squares line; none: as busy."""
    if repeats is None or not len(repeats):
        return np.stack([busy] * 4)[None]
    means = mean_repeats(repeats)
    for table in means:
        known = np.isfinite(table)
        slope, constant = np.polyfit(busy[known], (table - busy)[known], 1) if known.sum() > 1 else (0.0, 0.0)
        table[~known] = (busy + constant + slope * busy)[~known]
    return means[None]


def truth_of(profile: Profile, rng: np.random.Generator) -> Profile:
    """Return the profile with given times that are its estimate and a smooth part."""

    def given(device: DeviceProfile) -> DeviceProfile:
        size = device.num_blocks + 1
        at = np.arange(size) / size
        knots = rng.normal(0, SMOOTH, (3, 3))
        waves = np.cos(np.pi * np.outer(np.arange(3), at))
        smooth = 1 + np.einsum("ij,is,je->se", knots, waves, waves)
        starts = [device.starts(slowdown) for slowdown in range(1, device.idle_repeats_s.shape[1] + 1)]
        firsts = []
        for kind in ("woken_s", "following_s"):
            total = np.stack([np.zeros((size, size)), *(getattr(each, kind) for each in starts)])
            firsts.append(smooth * (device.compute_s + np.diff(total, axis=0)))
        return replace(
            device,
            compute_repeats_s=(smooth * device.compute_s)[None],
            branch_repeats_s=device.branch_s[None],
            idle_repeats_s=firsts[0][None],
            following_repeats_s=firsts[1][None],
        )

    return _with(profile, given)


def drawn(truth: Profile, recorded: Profile, rng: np.random.Generator) -> Profile:
    """Return a profile of the truth as the recorded one would have measured it, in another process."""

    def measured(device: DeviceProfile) -> DeviceProfile:
        like = recorded.devices[device.device]
        luck = rng.normal(1, OWN, device.compute_repeats_s.shape[1:])
        following = device.following_repeats_s
        assert following is not None
        return replace(
            device,
            compute_repeats_s=_repeated(luck * device.compute_repeats_s[0], like.compute_repeats_s, rng),
            branch_repeats_s=_repeated(device.branch_repeats_s[0], like.branch_repeats_s, rng),
            idle_repeats_s=_repeated(luck * device.idle_repeats_s[0], like.idle_repeats_s, rng),
            following_repeats_s=None
            if like.following_repeats_s is None
            else _repeated(luck * following[0], like.following_repeats_s, rng),
        )

    return _with(truth, measured)


def _repeated(true: Floats, recorded: Floats, rng: np.random.Generator) -> Floats:
    """Repeats [R, ...] about ``true`` [...], with the noise of recorded ones, drawn with replacement."""
    known = np.isfinite(recorded)
    mean = np.where(known, recorded, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    noise = recorded / np.where(mean > 0, mean, 1.0)
    return np.asarray(true * np.take_along_axis(noise, rng.integers(0, len(noise), noise.shape), axis=0))


def halves(profile: Profile, rng: np.random.Generator) -> tuple[Profile, Profile]:
    """Return the profile with one random half of its repeats, and with the other."""

    def half(number: int, seed: int) -> Profile:
        def part(repeats: Floats) -> Floats:
            order = np.random.default_rng([seed, len(repeats)]).permutation(len(repeats))
            return repeats[np.sort(order[number::2])]

        def of(device: DeviceProfile) -> DeviceProfile:
            following = device.following_repeats_s
            return replace(
                device,
                compute_repeats_s=part(device.compute_repeats_s),
                branch_repeats_s=part(device.branch_repeats_s),
                idle_repeats_s=part(device.idle_repeats_s),
                following_repeats_s=None if following is None else part(following),
            )

        return _with(profile, of)

    seed = int(rng.integers(1 << 30))
    return half(0, seed), half(1, seed)


def _with(profile: Profile, change: Any) -> Profile:
    return replace(profile, devices={name: change(device) for name, device in profile.devices.items()})


def rows_of(name: str, profile: Profile, topology: Topology, draws: int) -> list[dict[str, Any]]:
    """Return a row for each study, way of planning, and kind of plan."""
    used = {tier.device for tier in topology.tiers}
    profile = replace(profile, devices={key: device for key, device in profile.devices.items() if key in used})
    biases: dict[tuple[str, str, str], list[float]] = {}
    lost: dict[tuple[str, str], list[float]] = {}
    for study, known, judge in _pairs(profile, draws):
        judged = PerformanceModel(judge, topology)
        best = {drop: judged.estimate(plan).mean_s for drop, plan in chosen_on(judged).items()}
        for by, planned in (("means", raw(known)), ("estimate", known)):
            model = PerformanceModel(planned, topology)
            chosen = chosen_on(model)
            for kind, plans in (("chosen", list(chosen.values())), ("edge-only", [_whole(model)])):
                off = [judged.estimate(plan).mean_s / model.estimate(plan).mean_s - 1 for plan in plans]
                biases.setdefault((study, by, kind), []).append(fmean(off))
            extra = [judged.estimate(plan).mean_s / best[drop] - 1 for drop, plan in chosen.items()]
            lost.setdefault((study, by), []).append(fmean(extra))
    return [
        {"data": name, "study": study, "by": by, "plans": kind, **_interval(values)}
        | ({"lost": fmean(lost[study, by])} if (study, kind) == ("drawn", "chosen") else {})
        for (study, by, kind), values in biases.items()
    ]


def _pairs(profile: Profile, draws: int) -> Iterator[tuple[str, Profile, Profile]]:
    """A study, the profile that plans are chosen on, and the one that they are judged by."""
    for draw in range(draws):
        rng = np.random.default_rng([17, draw])
        truth = truth_of(profile, rng)
        yield "drawn", drawn(truth, profile, rng), truth
        one, other = halves(profile, rng)
        yield "halves", one, raw(other)


def chosen_on(model: PerformanceModel) -> dict[float, Plan]:
    """Return the fastest plan at each of ``DROPS``."""
    full = model.profile.full_accuracy
    found = search(Problem(minimize=latency, subject_to=(accuracy >= full - max(DROPS),), space=SPACE), model)
    points = [(point.latency_s, point.accuracy, point.plan) for point in found.front]
    points.append((found.estimate.mean_s, found.estimate.accuracy, found.plan))
    whole = _whole(model)
    points.append((model.estimate(whole).mean_s, full, whole))
    return {
        drop: min((p for p in points if p[1] >= full - drop - 1e-12), key=lambda point: point[0])[2] for drop in DROPS
    }


def _whole(model: PerformanceModel) -> Plan:
    return model.complete(Plan(cuts=(model.profile.num_blocks,), placement=(model.topology.source,)))


def _interval(values: Sequence[float]) -> dict[str, float | int]:
    count = len(values)
    # Student's t, 97.5 %; Cornish-Fisher from the normal one, off by less than 0.01 from 9 values on
    z, f = 1.959964, max(count - 1, 1)
    t = z + (z**3 + z) / (4 * f) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * f**2)
    wide = t * stdev(values) / count**0.5 if count > 1 else float("inf")
    return {"bias": fmean(values), "low": fmean(values) - wide, "high": fmean(values) + wide, "n": count}


# -- campaigns -------------------------------------------------------------------------------------


def campaign_rows(folder: Path) -> list[dict[str, Any]]:
    """Return rows of a campaign's plans: of the front, and of the others; by the profile, and as timed again.

    The second prediction is for the speed that the machine had when the plan ran, so the first less the second is what
    the profile's times were off, with the drift of the machine since.
    """
    path = folder / "summary.json" if folder.is_dir() else folder
    cases: Sequence[Mapping[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["each"]
    rows = []
    for kind, which in (("chosen", "front"), ("others", "mix")):
        some = [case["latency_ms"] for case in cases if case["origin"] == which]
        for by, key in (("profile", "before"), ("again", "predicted")):
            if len(some) > 1:
                off = [each["measured"] / each[key] - 1 for each in some]
                rows.append({"data": folder.stem, "study": "campaign", "by": by, "plans": kind, **_interval(off)})
    return rows


if __name__ == "__main__":
    main()
