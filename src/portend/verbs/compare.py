"""The verb compare: what the model says of plans that ran, beside what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from portend.analysis.compare import Comparison, agreement
from portend.analysis.compare import compare as compared
from portend.analysis.console import comparison_table, terms_table
from portend.errors import MismatchError
from portend.perfmodel.model import PerformanceModel
from portend.profiling.turns import Turns
from portend.values.measurement import Measurement
from portend.values.profile import Profile

__all__ = ["Comparisons", "check_weights", "compare"]


@dataclass(frozen=True, slots=True)
class Comparisons(Sequence[Comparison]):
    """Comparisons of one profile with runs, in order; printed, they are two tables."""

    cases: tuple[Comparison, ...]

    def __getitem__(self, index: Any) -> Any:
        return self.cases[index]

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[Comparison]:
        return iter(self.cases)

    @property
    def agreement(self) -> dict[str, Any]:
        """How well prediction and measurement agree over all cases (``analysis.compare.agreement``)."""
        return agreement(self.cases)

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=100, no_color=True)
        with console.capture() as text:
            console.print(comparison_table(self.cases), terms_table(self.cases))
        return text.get().rstrip()


def compare(
    profile: Profile,
    measured: Turns | Measurement | Mapping[str, Measurement],
    *,
    level: float = 0.95,
) -> Comparisons:
    """Predict the plans that ran and hold the predictions against what was measured.

    Args:
        profile: of the network that ran. For plans that ran in turns (``run``) the machine is taken as fast as it was
            then, since it was timed in between; else as it was profiled.
        measured: what ``run`` returned, a measurement, or several by name.
        level: probability that the stated intervals hold, 0.5 to 1.

    Raises:
        MismatchError: the run was of other weights, of another executor than the profile, or with several samples
            under way at once, which the model does not predict.

    Example:
        >>> print(pt.compare(profile, pt.run(solution.plan, trained, topology, profile=profile)))
    """
    if isinstance(measured, Turns):
        runs = {f"run {number}": each for number, each in enumerate(measured.measurements.values(), 1)}
    else:
        runs = {"plan": measured} if isinstance(measured, Measurement) else dict(measured)
    for name, each in runs.items():
        _check(profile, name, each)
    then, topology = measured.then(profile) if isinstance(measured, Turns) else (profile, None)
    return Comparisons(
        compared(
            {
                name: (
                    PerformanceModel(
                        then.viewed_for(each.plan), topology or each.topology, codec_tolerance=math.inf
                    ).estimate(each.plan),
                    each,
                )
                for name, each in runs.items()
            },
            level,
        )
    )


def check_weights(profile: Profile, name: str, measured: Measurement) -> None:
    """Raise MismatchError if a run was of other weights than the profile."""
    told, ours = measured.provenance, profile.backbone
    if told.get("weights_sha256") and ours.weights_sha256 and told["weights_sha256"] != ours.weights_sha256:
        raise MismatchError(
            f"{name} was run with other weights of {told.get('network')} than those of the profile ({ours.name}); "
            "compare runs and profiles of one checkpoint"
        )


def _check(profile: Profile, name: str, measured: Measurement) -> None:
    check_weights(profile, name, measured)
    told = measured.provenance
    if told.get("window", "1") != "1":
        raise MismatchError(
            f"{name} was measured with {told['window']} samples under way, but the model predicts one at a time; run "
            "it with a window of 1"
        )
    for tier in measured.topology.tiers:
        device = profile.devices.get(tier.device)
        ran = told.get(f"tier {tier.name}")
        if device and ran and ran != str(device.execution):
            raise MismatchError(
                f"{name} ran on {tier.name} by {ran}, but the profile is of {device.execution}; run it as it was "
                "profiled (in Python: give run the profile)"
            )
