"""Plan, fine-tune the network for the plan, profile its exits again, and plan again, until the plan stands still.

Fine-tuning changes the weights and so how samples exit, but not what the network costs: the devices' times are
taken over from the profile (paper, Sec. III-D and Fig. 8: plans with and without fine-tuning).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from portend.analysis.console import format_error, format_ms, format_share
from portend.data.dataset import Dataset, Splits, draw
from portend.errors import MismatchError, law
from portend.io.storage import save, write_json
from portend.networks.backbone import Backbone
from portend.networks.checkpoint import load_checkpoint
from portend.networks.evaluators import TorchEvaluator
from portend.perfmodel.estimate import Estimate
from portend.perfmodel.model import CODEC_TOLERANCE, PerformanceModel
from portend.planner.limits import Limits
from portend.planner.planfile import PlanFile
from portend.planner.problem import Problem, Solution, accuracy, latency
from portend.planner.search import search
from portend.planner.solve import solve
from portend.profiling.losses import profile_codecs
from portend.profiling.network import profile_exits
from portend.training.config import Progress, TrainingConfig
from portend.training.training import train
from portend.units import signed
from portend.values.exits import SampleExits
from portend.values.profile import Profile
from portend.values.topology import Topology

if TYPE_CHECKING:
    from portend.analysis.fitted import FittedTable

__all__ = ["FINE_TUNING", "Refinement", "Round", "refine", "refinement_table"]

Indices = NDArray[np.int64]
Tell = Callable[[str, int, int], None]

FINE_TUNING = TrainingConfig(epochs=4, batch_size=64, learning_rate=0.01)


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """One set of weights and the best plan for it; round 0 has the weights that were there before.

    Attributes:
        checkpoint: the weights, tuned for the plan of the round before; profile, plan: files in the round's folder;
            no plan where it misses the constraints.
        solution: the problem's answer with these weights.
        same_plan: the plan of the round before with these weights: what fine-tuning alone brings; None in round 0.
        same_accuracy_s: least mean latency in seconds of a plan at least as accurate as that of round 0; None: there
            is no such plan.
        same_latency: most accuracy, 0–1, of a plan at most as slow as the plan of round 0.
        test: this round's plan on the test split, which neither trains nor plans.
    """

    checkpoint: Path
    profile: Path
    plan: Path | None
    solution: Solution
    same_plan: Estimate | None
    same_accuracy_s: float | None
    same_latency: float
    test: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Return the round as JSON values."""
        best = self.solution.estimate
        return {
            "checkpoint": str(self.checkpoint),
            "status": self.solution.status,
            "plan": self.solution.plan.to_dict(),
            "mean_latency_s": best.mean_s,
            "accuracy": best.accuracy,
            "test": {"mean_latency_s": self.test.mean_s, "accuracy": self.test.accuracy},
            "plan_of_the_round_before": self.same_plan
            and {"mean_latency_s": self.same_plan.mean_s, "accuracy": self.same_plan.accuracy},
            "latency_at_the_first_accuracy_s": self.same_accuracy_s,
            "accuracy_at_the_first_latency": self.same_latency,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Refinement:
    """All rounds. ``stands_still``: the last round's plan is the one that its weights were tuned for."""

    rounds: tuple[Round, ...]
    stands_still: bool

    @property
    def best(self) -> int:
        """The round whose plan answers the problem best: feasible, best objective, then best other value; the first."""

        def rank(number: int) -> tuple[bool, float, float]:
            solution = self.rounds[number].solution
            seconds, wrong = solution.estimate.mean_s, 1 - solution.estimate.accuracy
            goals = (seconds, wrong) if solution.problem.minimize else (wrong, seconds)
            return not solution.met, *goals

        return min(range(len(self.rounds)), key=rank)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return {
            "problem": str(self.rounds[0].solution.problem),
            "rounds": [each.to_dict() for each in self.rounds],
            "stands_still": self.stands_still,
            "best": self.best,
        }


def refine(
    profile: Profile,
    checkpoint: str | Path,
    dataset: Dataset,
    splits: Splits,
    topology: Topology,
    problem: Problem,
    directory: str | Path,
    *,
    training: TrainingConfig = FINE_TUNING,
    rounds: int = 4,
    estimator: Any = None,
    codec_tolerance: float = CODEC_TOLERANCE,
    tell: Tell = lambda *_: None,
    allow_code: Collection[str] = (),
    allow_infeasible: bool = False,
    seconds: float = math.inf,
    memory: float | None = None,
) -> Refinement:
    """Refine the network of ``checkpoint`` and its plan in turns, for at most ``rounds`` rounds of fine-tuning.

    Each round trains on from the weights of the round before, with the loss over the exits that its plan uses; other
    exits keep their weights. Leaves ``round-N/`` with profile, plan and training, and ``refinement.json``. The
    same call goes on where an interrupted one was.

    Args:
        problem: minimizes mean latency or maximizes accuracy; training: ``exits`` are set by the plans.
        codec_tolerance: as in ``PerformanceModel``; what lossy codecs lose is measured anew with each round's weights.
        tell: called with (stage, done, total); allow_code: ``module:object`` that the checkpoint may name.
        allow_infeasible: also leave plans that miss the constraints.
        seconds, memory: limits of the searches of each round, as in ``solve``.

    Raises:
        MismatchError: profile and checkpoint are of different networks; others as ``train`` and ``solve``.

    Example:
        >>> found = pt.refine(
        ...     profile, "checkpoint.safetensors", dataset, splits, topology, problem, "runs/refined", rounds=3
        ... )
        >>> found.rounds[found.best].solution
    """
    law(rounds >= 1, f"rounds is at least 1, but got {rounds}")
    law(not training.exits, f"the plans say which exits are trained, but training names {training.exits}")
    law(
        not training.exit_weights,
        f"the number of trained exits is the plans', but training weighs {len(training.exit_weights)}; "
        "leave exit_weights out",
    )
    law(
        problem.objectives in (((latency, 1),), ((accuracy, -1),)),
        f"refining asks for least mean latency or most accuracy, but the problem is: {problem}",
    )
    folder = Path(directory)
    found: list[Round] = []
    weights = Path(checkpoint)
    for number in range(rounds + 1):
        here, stage = folder / f"round-{number}", f"round {number}"
        backbone = load_checkpoint(weights, allow_code=allow_code)
        _check_same(profile, backbone, weights)
        if number:
            weights = _tuned(backbone, found[-1].solution.plan.exits, dataset, splits, training, here, stage, tell)
            backbone = load_checkpoint(weights, allow_code=allow_code)
        spec = backbone.spec()
        now, tested = (
            replace(
                profile, backbone=spec, exits=_exits(backbone, dataset, indices, profile.exits.criterion, stage, tell)
            )
            for indices in (splits.profiling, splits.test)
        )
        now = replace(now, **_codecs(profile, backbone, dataset, splits.profiling, stage, tell))
        model = PerformanceModel(now, topology, estimator=estimator, codec_tolerance=codec_tolerance)
        limits = Limits(seconds=seconds, memory=memory)
        solution = solve(problem, model, limits=limits.part(0.6))
        first = found[0].solution.estimate if found else solution.estimate
        fastest, closest = _against(first, problem, model, limits)
        this = Round(
            checkpoint=weights,
            profile=here / "profile.zip",
            plan=here / "plan.json" if solution.met or allow_infeasible else None,
            solution=solution,
            same_plan=model.estimate(replace(found[-1].solution.plan, codecs=())) if found else None,
            same_accuracy_s=fastest.estimate.mean_s if fastest.met else None,
            same_latency=closest.estimate.accuracy,
            test=PerformanceModel(tested, topology, estimator=estimator, codec_tolerance=math.inf).estimate(
                solution.plan
            ),
        )
        save(now, this.profile)
        if this.plan is not None:
            PlanFile.of(solution, model).save(this.plan)
        still = bool(found) and found[-1].solution.plan == solution.plan
        found.append(this)
        result = Refinement(rounds=tuple(found), stands_still=still)
        write_json(result.to_dict(), folder / "refinement.json")
        if still:
            break
    return result


def _against(first: Estimate, problem: Problem, model: PerformanceModel, limits: Limits) -> tuple[Solution, Solution]:
    """The fastest plan that is as accurate as ``first``, and the most accurate one that is as fast."""
    exact = 1e-9  # of rounding
    as_accurate = (accuracy >= max(0.0, first.accuracy - exact),)
    as_fast = (latency <= first.mean_s * (1 + exact),)
    fastest = Problem(minimize=latency, subject_to=as_accurate, space=problem.space)
    closest = Problem(maximize=accuracy, subject_to=as_fast, space=problem.space)
    return (
        search(fastest, model, limits=limits.part(0.5)),
        search(closest, model, limits=limits),
    )


def _tuned(
    backbone: Backbone,
    exits: tuple[int, ...],
    dataset: Dataset,
    splits: Splits,
    training: TrainingConfig,
    folder: Path,
    stage: str,
    tell: Tell,
) -> Path:
    def told(progress: Progress) -> None:
        tell(f"{stage}: train", progress.step, progress.steps)

    config = replace(training, exits=exits)
    return train(backbone, dataset, splits, config, folder / "training", on_progress=told).checkpoint


def _exits(
    backbone: Backbone, dataset: Dataset, indices: Indices, criterion: str, stage: str, tell: Tell
) -> SampleExits:
    told = partial(tell, f"{stage}: exits")
    return profile_exits(TorchEvaluator(backbone), dataset, indices, on_progress=told).by(criterion)


def _codecs(
    profile: Profile, backbone: Backbone, dataset: Dataset, indices: Indices, stage: str, tell: Tell
) -> dict[str, Any]:
    """Ranges and losses of the profile's lossy codecs with other weights, on as many samples as in the profile."""
    samples = max((loss.samples for loss in profile.losses.values()), default=0)

    def told(what: str, done: int, total: int) -> None:
        tell(f"{stage}: {what}", done, total)

    some = draw(indices, samples)
    ranges, losses = profile_codecs(TorchEvaluator(backbone), dataset, some, tuple(profile.losses), on_progress=told)
    return {"ranges": ranges, "losses": losses}


def _check_same(profile: Profile, backbone: Backbone, checkpoint: Path) -> None:
    """The devices' times hold for other weights, but not for another network."""
    ours, theirs = (replace(spec, weights_sha256="") for spec in (profile.backbone, backbone.spec()))
    if ours != theirs:
        raise MismatchError(
            f"the profile is of {ours.name} with {ours.num_blocks} blocks and {ours.num_classes} classes on samples of "
            f"shape {ours.cut_shapes[0]}, but {checkpoint} holds {theirs.name} with {theirs.num_blocks}, "
            f"{theirs.num_classes} and {theirs.cut_shapes[0]}; profile this checkpoint"
        )


def refinement_table(refinement: Refinement, tier_names: Sequence[str]) -> FittedTable:
    """Return one row per round: its plan and what it gains over the plan of round 0."""
    from portend.analysis.fitted import FittedTable

    table = FittedTable("Plan, fine-tune, plan again")
    table.numbers("round")
    table.words("plan")
    table.numbers("mean\nms", "accuracy", "on\ntest", "ms at the\nfirst accuracy", "accuracy at the\nfirst latency")
    first = refinement.rounds[0]
    for number, each in enumerate(refinement.rounds):
        best, fastest = each.solution.estimate, each.same_accuracy_s
        gain, more = "", ""
        if number and fastest is not None and first.same_accuracy_s:
            gain = f" ({format_error(fastest / first.same_accuracy_s - 1)})"
        if number:
            more = f" ({signed(100 * (each.same_latency - first.same_latency), 1)})"
        table.add_row(
            f"{number}{' ◂' if number == refinement.best else ''}",
            each.solution.plan.describe(tier_names),
            format_ms(best.mean_s),
            format_share(best.accuracy) + ("" if each.solution.met else f" ({each.solution.status})"),
            format_share(each.test.accuracy),
            "none" if fastest is None else format_ms(fastest) + gain,
            format_share(each.same_latency) + more,
        )
    return table
