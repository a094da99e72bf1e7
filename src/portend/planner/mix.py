"""A seeded mix of plans to try a performance model on: some of the Pareto front, the others from all of the space.

A search returns good plans, which are alike. A model is tried on plans that differ in everything it says something
about: tiers, their order, exits on a tier, thresholds, the end of the network, codecs. Each of these is a factor with
levels; a mix goes through the levels of each factor in an order of its own, so that also its beginning is balanced.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final, Literal

import numpy as np

from portend.errors import InvalidValue, SearchError, law
from portend.perfmodel.model import PerformanceModel
from portend.planner.problem import Problem, SearchSpace, accuracy, latency
from portend.planner.search import FRONT_LIMIT, search
from portend.planner.space import PlanSpace
from portend.values.plan import Plan

__all__ = ["FACTORS", "Pick", "factors", "mixed_plans"]

FACTORS: Final = ("tiers", "order", "exits per tier", "thresholds", "end", "codecs")

_TRIES: Final = 60
_CHEAPEST: Final = "cheapest"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pick:
    """One plan of a mix, complete with codecs.

    Attributes:
        origin: ``front``, of the predicted Pareto front; or ``mix``.
        factors: the level of each of ``FACTORS`` that the plan has, as text.
    """

    plan: Plan
    origin: Literal["front", "mix"]
    factors: Mapping[str, str] = field(default_factory=dict)


def factors(plan: Plan, num_blocks: int) -> dict[str, str]:
    """Return the level of each factor that a plan with codecs has; ``num_blocks``: N of the whole network."""
    tiers = list(dict.fromkeys(plan.placement))
    asked = {threshold for threshold in plan.thresholds if threshold > 0}
    sent = {codec for codec in plan.codecs if codec is not None}
    rising = all(a < b for a, b in pairwise(tiers))
    return {
        "tiers": str(len(tiers)),
        "order": "one tier" if len(tiers) == 1 else "increasing" if rising else "other",
        "exits per tier": str(max(plan.placement.count(tier) for tier in tiers)),
        "thresholds": ("none", "one")[len(asked)] if len(asked) < 2 else "several",
        "end": "whole" if plan.cuts[-1] == num_blocks else "truncated",
        "codecs": ", ".join(sorted(sent)) or "none",
    }


def mixed_plans(
    model: PerformanceModel, count: int, *, seed: int = 0, front: float = 0.25, space: SearchSpace | None = None
) -> tuple[Pick, ...]:
    """Return ``count`` different plans, a function of the model, the space and the seed.

    Args:
        front: share of them taken from the predicted Pareto front, evenly along it, fewer where it has fewer.
        space: hints that all plans follow. Exits have one threshold or several, whatever ``per_exit_thresholds`` says.

    Raises:
        SearchError: the space holds no plan, or not so many different ones.
        InvalidValue, MismatchError: a hint names a cut, branch, tier or codec that does not exist.
    """
    law(count >= 1, f"a mix has at least one plan, but {count} were asked for")
    law(0 <= front <= 1, f"the share of plans from the front lies within 0–1, but got {front}")
    space = space or SearchSpace()
    rng = np.random.default_rng(seed)
    taken = _of_front(model, space, round(front * count))
    drawn = _Draw(model, space, rng).plans(count - len(taken), known=set(taken))
    blocks = model.profile.num_blocks
    picks = [Pick(plan=plan, origin="front", factors=factors(plan, blocks)) for plan in taken]
    picks = [picks[i] for i in rng.permutation(len(picks))]
    others = [Pick(plan=plan, origin="mix", factors=factors(plan, blocks)) for plan in drawn]
    place = [(i + 0.5) / len(part) for part in (picks, others) for i in range(len(part))]
    return tuple(pick for _, pick in sorted(zip(place, [*picks, *others], strict=True), key=lambda item: item[0]))


def _of_front(model: PerformanceModel, space: SearchSpace, most: int) -> list[Plan]:
    if not most:
        return []
    searched = replace(space, per_exit_thresholds=False)
    if PlanSpace(searched, model).count() > FRONT_LIMIT:
        searched = replace(searched, exits_per_tier=1)
    front = search(Problem(minimize=latency, maximize=accuracy, space=searched), model).front
    chosen = np.unique(np.linspace(0, len(front) - 1, min(most, len(front))).round().astype(int))
    return list(dict.fromkeys(model.complete(front[i].plan, space.codecs) for i in chosen))


class _Draw:
    """Draws plans of a space at random, level by level."""

    def __init__(self, model: PerformanceModel, space: SearchSpace, rng: np.random.Generator) -> None:
        self._space = PlanSpace(space, model)
        if not self._space.count():
            raise self._space.empty()
        self._model, self._hints, self._rng = model, space, rng
        self._tiers = sorted(range(self._space.tiers) if space.tiers is None else set(space.tiers))
        self._inner = np.flatnonzero(self._space.inner)
        self._theta = [float(value) for value in self._space.theta if value > 0]
        self._codecs = [name for name in model.tables.codecs if space.codecs is None or name in space.codecs]

    def plans(self, count: int, known: set[Plan]) -> list[Plan]:
        """Return ``count`` plans that differ from each other and from those that are ``known``, which grow."""
        found: list[Plan] = []
        levels = {name: self._sequence(values) for name, values in self._levels().items()}
        missed = 0
        while len(found) < count:
            plan = self._nearest({name: next(values) for name, values in levels.items()}, known)
            missed = missed + 1 if plan is None else 0  # there may be few plans of these levels
            if missed == _TRIES:
                raise SearchError(
                    f"a mix has different plans, but after {len(known)} no other was found in {_TRIES**2} tries; ask "
                    "for fewer, or widen the hints"
                )
            if plan is not None:
                known.add(plan)
                found.append(plan)
        return found

    def _levels(self) -> dict[str, list[str]]:
        most = min(len(self._tiers), self._space.lengths()[-1])
        orders = ["increasing"] if self._hints.tier_order == "increasing" else ["increasing", "other"]
        places = ["1 one tier", *(f"{number} {order}" for number in range(2, most + 1) for order in orders)]
        return {
            "places": places,
            "exits per tier": [str(number) for number in range(1, self._hints.exits_per_tier + 1)],
            "thresholds": ["one", "several", "none"] if self._theta else ["none"],
            "end": ["whole", "truncated"] if len(self._space.last_cuts) > 1 else ["whole"],
            "codecs": [_CHEAPEST, *self._codecs],
        }

    def _sequence(self, values: Sequence[str]) -> Iterator[str]:
        """Every value once, in a random order, again and again."""
        while True:
            yield from (values[i] for i in self._rng.permutation(len(values)))

    def _nearest(self, levels: Mapping[str, str], known: set[Plan]) -> Plan | None:
        """A new plan with as many of the levels as one of some tries has; not all go together."""
        best, most = None, -1
        for _ in range(_TRIES):
            plan = self._try(levels)
            if plan is None or plan in known:
                continue
            has = factors(plan, self._space.blocks)
            got = sum(has[name] == levels[name] for name in ("exits per tier", "end"))
            got += 2 * (has["thresholds"] == levels["thresholds"])
            got += 2 * (f"{has['tiers']} {has['order']}" == levels["places"])
            got += 2 * (levels["codecs"] == _CHEAPEST or levels["codecs"] in has["codecs"].split(", "))
            if got > most:
                best, most = plan, got
            if most == 8:
                break
        return best

    def _try(self, levels: Mapping[str, str]) -> Plan | None:
        """A plan drawn at random by the levels; None where it is not in the space."""
        count, order = levels["places"].split(maxsplit=1)
        tiers = self._rng.choice(self._tiers, int(count), replace=False).tolist()
        if order == "increasing":
            tiers.sort()
        most = 1 if levels["thresholds"] == "none" or not self._theta else int(levels["exits per tier"])
        if levels["thresholds"] == "several" and most * len(tiers) < 3:  # it takes two early exits
            most = self._hints.exits_per_tier
        fullest = self._rng.integers(len(tiers))
        held = [most if i == fullest else int(self._rng.integers(1, most + 1)) for i in range(len(tiers))]
        placement = tuple(int(tier) for tier, number in zip(tiers, held, strict=True) for _ in range(number))
        ends = [cut for cut in self._space.last_cuts if (cut == self._space.blocks) == (levels["end"] == "whole")]
        last = int(self._rng.choice(ends or list(self._space.last_cuts)))
        before = self._inner[self._inner < last]
        if before.size < len(placement) - 1 or len(placement) not in self._space.lengths():
            return None
        inner = sorted(self._rng.choice(before, len(placement) - 1, replace=False).tolist())
        cuts = (*map(int, inner), last)
        try:
            plan = Plan(cuts=cuts, placement=placement, thresholds=self._thresholds(levels["thresholds"], cuts))
        except InvalidValue:
            return None
        return self._with_codecs(plan, levels["codecs"]) if self._admitted(plan) else None

    def _thresholds(self, kind: str, cuts: tuple[int, ...]) -> tuple[float, ...]:
        if kind == "none" or not self._theta:
            return (0.0,) * (len(cuts) - 1)
        values = self._theta if kind == "one" else [0.0, *self._theta]
        each = self._rng.choice(values, len(cuts), replace=kind == "one" or len(cuts) > len(values)).tolist()
        each = each[:1] * len(cuts) if kind == "one" else each
        used = self._space.used[-1]
        return tuple(float(theta) if used[cut] else 0.0 for theta, cut in zip(each, cuts[:-1], strict=False))

    def _admitted(self, plan: Plan) -> bool:
        """Whether hints, memory and codecs allow the plan, with a used exit between its parts on a tier."""
        space, places = self._space, pairwise(plan.placement)
        if any(one == then and not asked for (one, then), asked in zip(places, plan.thresholds, strict=True)):
            return False
        senders = (self._model.topology.source, *plan.placement[:-1])
        costs = [
            (space.compute[0, 1, tier, start, end], space.hop[start, sender, tier])
            for (start, end), sender, tier in zip(plan.partitions, senders, plan.placement, strict=True)
        ]
        return bool(np.isfinite(costs).all() and space.fits(np.array([plan.cuts]), plan.placement)[0])

    def _with_codecs(self, plan: Plan, name: str) -> Plan:
        """The plan with one codec wherever it is offered, and the cheapest elsewhere."""
        plan = self._space.complete(plan)
        if name == _CHEAPEST:
            return plan
        tables = self._model.tables
        index = tables.codecs.index(name)
        senders = (self._model.topology.source, *plan.placement[:-1])
        codecs = tuple(
            name if codec is not None and np.isfinite(tables.hop_parts_s[index, start, sender, tier]).all() else codec
            for codec, (start, _), sender, tier in zip(
                plan.codecs, plan.partitions, senders, plan.placement, strict=True
            )
        )
        return replace(plan, codecs=codecs)
