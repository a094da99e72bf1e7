"""How far the slope of accuracies and exit rates over a campaign's plans varies by which samples fell into which split.

Profiling and test samples are drawn anew, without replacement, from both splits together; each time the plans are
replayed on both halves, as if these had been the splits. A campaign's slope that lies within what this gives says
nothing against the model.

``python benchmarks/draws.py runs/vggish/profile.zip runs/campaigns/vggish``
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from portend.analysis.compare import fit, undecided_exits
from portend.errors import MismatchError, PortendError
from portend.io.storage import load_profile
from portend.perfmodel.exits import replay
from portend.values.exits import Exits, SampleExits
from portend.values.plan import Plan

Floats = NDArray[np.float64]


def outcomes(plans: Sequence[Plan], exits: Exits) -> tuple[Floats, Floats]:
    """Return what each sample does by each plan: right [n, S], and [E, S] leaves at each exit whose rate is open."""
    if not isinstance(exits, SampleExits):
        raise MismatchError("drawing samples anew needs the scores of each; profile a network with its data set")
    runs = [replay(exits, plan) for plan in plans]
    right = np.array([correct for _, correct in runs], dtype=np.float64)
    leaves = [
        (left == at).astype(np.float64)
        for plan, (left, _) in zip(plans, runs, strict=True)
        for at in np.flatnonzero(undecided_exits(plan))
    ]
    return right, np.array(leaves).reshape(-1, right.shape[1])


def slopes(profiled: Floats, tested: Floats, draws: int, seed: int = 0) -> tuple[float, Floats]:
    """Return the slope of means over profiling samples [n, S] against those over test samples, and each draw's."""
    together, rng = np.concatenate([profiled, tested], axis=1), np.random.default_rng(seed)
    size, found = profiled.shape[1], []
    for _ in range(draws):
        order = rng.permutation(together.shape[1])
        found.append(fit(together[:, order[size:]].mean(axis=1), together[:, order[:size]].mean(axis=1)).beta)
    there = fit(tested.mean(axis=1), profiled.mean(axis=1)).beta
    return float("nan" if there is None else there), np.array(found, dtype=np.float64)


def _read(profile: Path, campaign: Path) -> tuple[list[Plan], tuple[Floats, Floats], tuple[Floats, Floats]]:
    """Return a campaign's plans, and what they do with the profiling samples and with the test's."""
    told = json.loads((campaign / "predictions.json").read_text(encoding="utf-8"))
    plans = [Plan.from_dict(one["plan"]) for one in told["plans"]]
    ours, theirs = load_profile(profile), load_profile(campaign / "scores.zip")
    if ours.backbone != theirs.backbone:
        raise MismatchError(f"{campaign} ran another network than that of {profile}; give the profile it was made from")
    return plans, outcomes(plans, ours.exits), outcomes(plans, theirs.exits)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", type=Path, help="what the campaign was predicted from")
    parser.add_argument("campaign", type=Path, help="the folder that `portend validate` wrote")
    parser.add_argument("--draws", type=int, default=2000)
    given = parser.parse_args(argv)
    try:
        plans, profiled, tested = _read(given.profile, given.campaign)
    except (PortendError, OSError) as error:
        parser.error(str(error))
    print(f"{len(plans)} plans, {profiled[0].shape[1]} profiling and {tested[0].shape[1]} test samples")
    print("| | β of these splits | of splits drawn anew: mean ± s.d. | within 1 ± 0.02 | within 1 ± 0.05 |")
    print("|---|--:|--:|--:|--:|")
    for name, one, other in zip(("accuracy", "exit rate"), profiled, tested, strict=True):
        here, drawn = slopes(one, other, given.draws)
        shares = [f"{100 * np.mean(np.abs(drawn - 1) <= margin):.0f} %" for margin in (0.02, 0.05)]
        print(f"| {name} | {here:.3f} | {drawn.mean():.3f} ± {drawn.std():.3f} | {' | '.join(shares)} |")


if __name__ == "__main__":
    main()
