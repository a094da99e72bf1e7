"""What a plan has to beat: restricted spaces, solved on the same model under the same constraints."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from portend.errors import SearchError
from portend.perfmodel.model import PerformanceModel
from portend.planner.limits import Limits
from portend.planner.problem import NewSamples, Problem, SearchSpace, Solution, Status
from portend.planner.promise import on_new_samples
from portend.planner.search import search
from portend.values.exits import SampleExits

__all__ = ["baseline_spaces", "judged", "solve_baselines"]


def baseline_spaces(model: PerformanceModel, space: SearchSpace) -> dict[str, SearchSpace]:
    """Return the baselines of ``docs/planner.md`` as spaces, by name.

    Fixed deployments ignore the problem's hints on purpose: they say what doing without the
    planner gives. Their input is the raw tensor unless the name says ``encoded``.
    """
    tiers = len(model.topology.tiers)
    source, cloud = model.topology.source, tiers - 1
    raw = _raw(model)
    whole = SearchSpace(thresholds=(0.0,), exits=(), truncation=False, codecs=raw, max_partitions=1, exits_per_tier=1)
    spaces = {"edge-only": replace(whole, tiers=(source,))}
    for tier, name in enumerate(t.name for t in model.topology.tiers):
        if tier not in (source, cloud) and f"{name}-only" not in ("edge-only", "cloud-only"):
            spaces[f"{name}-only"] = replace(whole, tiers=(tier,))
    if cloud != source:
        spaces["cloud-only"] = replace(whole, tiers=(cloud,))
        if "encoded" in model.tables.codecs:
            spaces["cloud-only encoded"] = replace(whole, tiers=(cloud,), codecs=("encoded",))
        ends = tuple(sorted({source, cloud}))
        spaces["Neurosurgeon"] = replace(whole, tiers=ends, max_partitions=2, tier_order="increasing")
        spaces["best split"] = replace(whole, max_partitions=None)
    spaces["BranchyNet"] = SearchSpace(
        thresholds=space.thresholds,
        tiers=(source,),
        exits_per_tier=max(space.exits_per_tier, 2),
        truncation=False,
        codecs=raw,
    )
    spaces["best truncated tier"] = SearchSpace(
        thresholds=(0.0,), exits=(), max_partitions=1, codecs=raw, exits_per_tier=1
    )
    return spaces


def judged(solution: Solution, model: PerformanceModel, limits: Limits) -> NewSamples | None:
    """Return what accuracy an answer has on new samples; None without samples, or where a half took too long."""
    try:
        return on_new_samples(solution, model, lambda on, at, most: search(on, at, limits=limits.within_pieces(most)))
    except SearchError:
        return None


def solve_baselines(
    problem: Problem, model: PerformanceModel, *, limits: Limits | None = None, new_samples: bool = False
) -> dict[str, Solution]:
    """Return each baseline's best plan under the problem's constraints; those without time for them are left out.

    ``the paper`` searches the paper's space (one exit per tier, one global threshold) with the
    paper's marginal estimator; its choice is then judged by the model's own estimator. ``new_samples``: also say what
    accuracy each has on new samples.
    """
    limits = limits or Limits()
    solutions: dict[str, Solution] = {}
    spaces = baseline_spaces(model, problem.space)
    for left, (name, space) in zip(range(len(spaces), 0, -1), spaces.items(), strict=True):
        if limits.over():
            return solutions
        try:
            found = search(replace(problem, space=space), model, limits=limits.part(1 / (left + 1)))
            solutions[name] = replace(found, new_samples=judged(found, model, limits)) if new_samples else found
        except SearchError:
            continue  # such as cloud-only where the encoded input was not profiled
    if isinstance(model.profile.exits, SampleExits) and model.estimator == "sample" and not limits.over():
        with contextlib.suppress(SearchError):  # the paper's space can be too large where the problem's is not
            solutions["the paper"] = _paper(problem, model, limits, new_samples)
    return solutions


def _paper(problem: Problem, model: PerformanceModel, limits: Limits, new_samples: bool) -> Solution:
    space = SearchSpace(thresholds=problem.space.thresholds, codecs=_raw(model), exits_per_tier=1)
    marginal = PerformanceModel(
        model.profile, model.topology, estimator="marginal", codec_tolerance=model.codec_tolerance
    )
    chosen = search(replace(problem, space=space), marginal, limits=limits)
    values, met = replace(problem, robust=None).judge(chosen.plan, model)
    estimate = model.estimate(chosen.plan)
    # What is proven is proven of the paper's space by its estimator; a promise was tested by replay already.
    whole = chosen.status in ("optimal", "infeasible")
    status: Status = chosen.status if problem.robust else "optimal" if whole else "feasible"
    status = status if met else "infeasible" if whole else "unknown"
    found = replace(chosen, estimate=estimate, values=values, status=status, bound=None, gap=None)
    return replace(found, new_samples=judged(found, marginal, limits)) if new_samples else found


def _raw(model: PerformanceModel) -> tuple[str, ...] | None:
    names = tuple(name for name in model.tables.codecs if name != "encoded")
    return ("float32",) if "float32" in names else names[:1] or None
