"""A space of plans against a model: what may be combined, and the tables that every solver looks up.

Solvers weigh accuracy against one additive metric, such as latency. So what they call latency is the *cost* by
that metric, whichever it is.

All quantities are whole numbers held in float64: costs are multiples of ``quantum``, a power of two,
and shares are counts of profiling samples. A sum of their products is exact in any order. So solvers
that add in different orders agree to the last bit, equal plans tie, and no bound cuts a plan by a
rounding error.

Axes: T thresholds, M tiers, N+1 cuts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from itertools import chain, combinations, islice, permutations, product
from typing import Any, Final, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from portend.errors import InvalidValue, MismatchError, SearchError
from portend.perfmodel.exits import BitTables
from portend.perfmodel.model import PerformanceModel
from portend.planner.metrics import ACCURACY_SLACK, Metric, latency
from portend.planner.problem import SearchSpace
from portend.units import format_bytes
from portend.values.exits import SampleExits
from portend.values.plan import Plan

__all__ = ["NEVER", "PlanSpace"]

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
_Ways = dict[tuple[int, int], Any]

NEVER: Final = 1e17
"""More quanta than any plan takes: forbidden, yet finite."""
_EXACT_BITS = 52
_RESOLVED = 2.0**26
_MARGIN = 1.001


class PlanSpace:
    """The plans that a ``SearchSpace`` admits for a model, with every term looked up once.

    Attributes:
        theta: [T], sorted; used: [T, N+1], whether threshold t is really asked at the branch of cut c: only there may
            the next partition be on the same tier.
        stays: [T, N+1], samples that stay where all come to a branch; right: [N+1], samples that a branch
            classifies correctly. bits: per-sample sets, where the estimator is ``sample``.
        metric: the additive metric whose costs the tables hold.
        hop: [N+1, M, M] to bring the tensor of a cut from tier to tier, compute: [2 woken, 2 branch
            run, M, N+1, N+1], result: [M], in quanta; +inf where a codec or a hint forbids it.
        step: [N+1, M, M], a hop and what it changes in the way back, nothing on the same tier; first: [M],
            the same from the source to the first partition. full, bare: [2 woken, M, N+1, N+1], compute with the
            branch and without, +inf also where no partition may end.
        first_unused: [N+1], the first threshold that is not asked at a cut, -1: there is none.
        codec: [N+1, M, M], index of the cheapest codec of each hop, -1 where nothing is sent.
        quantum: in the unit of the metric; samples: S; certain: what accuracy 1 is in the solvers' counts.
        limit: samples times quanta; plans above it are not looked for, and their sums are rounded (``within``).
        room: [M], bytes of memory of each tier, +inf where it is not stated. held: [M, N+1, N+1], bytes of a partition,
            where those of several partitions on one tier may exceed its room together, else 0; None: that cannot be.
        last: [N+1], whether a plan may end at a cut; inner: [N+1], whether another partition may follow.
    """

    def __init__(
        self,
        space: SearchSpace,
        model: PerformanceModel,
        metric: Metric = latency,
        *,
        most: float = math.inf,
        quantum: float | None = None,
    ) -> None:
        self.space, self.model, self.metric, self.most = space, model, metric, most
        self.blocks = model.profile.num_blocks
        self.tiers = len(model.topology.tiers)
        _check_hints(space, self.blocks, self.tiers)
        _check_exits(space, model.profile.backbone.exit_cuts)
        self.samples = model.samples
        self.last_cuts = self._last_cuts()
        cuts = np.arange(self.blocks + 1)
        self.last = np.isin(cuts, self.last_cuts)
        self.inner = np.isin(cuts, self._inner_cuts())
        self._look_up_exits()
        self._look_up_costs(quantum)
        self._tabulate_steps()

    def _look_up_exits(self) -> None:
        exits, space = self.model.profile.exits, self.space
        allowed = np.isin(np.arange(self.blocks + 1), range(self.blocks + 1) if space.exits is None else space.exits)
        allowed &= np.isin(np.arange(self.blocks + 1), self.model.profile.backbone.exit_cuts)
        theta = np.asarray(sorted(space.thresholds))
        self.theta: Floats = theta if allowed[1:].any() else theta[:1] * 0.0
        self.used: NDArray[np.bool_] = (self.theta[:, None] > 0) & allowed[None, :]
        self.bits: BitTables | None = None
        asked = self.lengths().stop > 2 and self.used[:, self.inner].any()
        if self.model.estimator == "sample" and isinstance(exits, SampleExits) and asked:
            self.bits = BitTables(exits, self.theta, used=self.used)
        self.certain = float(self.samples if self.bits is not None else self.samples**2)
        self.right: Floats = np.rint(np.append(0.0, exits.accuracies()) * self.samples)
        left = np.zeros(self.used.shape)
        if (self.theta > 0).any():
            left[self.theta > 0, 1:] = np.rint(exits.rates(self.theta[self.theta > 0]) * self.samples)
        self.stays: Floats = self.samples - np.where(self.used, left, 0.0)

    def _look_up_costs(self, quantum: float | None) -> None:
        assert self.metric.additive is not None
        tables, terms = self.model.tables, self.metric.additive.terms(self.model)
        hop, self.codec = tables.hop_s(self.space.codecs, None if self.metric == latency else terms.hop)
        self.hop: Floats = np.where(self.codec < 0, 0.0, hop)
        self.compute: Floats = np.where(np.isnan(tables.compute_s), np.inf, terms.compute)
        self.result: Floats = terms.result
        self._forbid_what_hints_exclude()
        self._forbid_what_does_not_fit()
        works: NDArray[np.bool_] = np.asarray(np.isfinite(self.compute).any(axis=(0, 1, 3, 4)))
        ends = (self.model.topology.source, self.model.topology.destination)
        for tier, why in terms.unknown.items():
            if tier in ends or works[tier]:
                raise MismatchError(why)
        self._forbid_hops(works)
        self.compute[:, 1, np.isinf(self.result)] = np.inf  # nobody may leave there; without an exit nobody does
        self.result = np.where(works & np.isfinite(self.result), self.result, 0.0)
        self._round(quantum)

    def _round(self, quantum: float | None) -> None:
        """Make the costs whole numbers of quanta, as small ones as keep the sums of wanted plans exact.

        A step so dear that a plan is above ``most`` though a single sample takes it costs just that much: how much more
        does not matter, and must not make the quantum coarse.
        """
        partitions = max(1, self.lengths().stop - 1)
        of_any = partitions * (_largest(self.hop) + _largest(self.compute) + 2 * _largest(self.result))
        self.limit = math.inf
        if self.most < of_any:
            dear = 2 * self.most * self.samples
            self.hop, self.compute, self.result = (
                np.where(np.isfinite(table), np.minimum(table, dear), table)
                for table in (self.hop, self.compute, self.result)
            )
            of_any = min(of_any, 2 * self.most + 2 * _largest(self.result))
        bits = math.ceil(math.log2(max(of_any, 1e-200))) + math.ceil(math.log2(self.samples)) + 1
        self.quantum = 2.0 ** (bits - _EXACT_BITS) if quantum is None else quantum
        if math.isfinite(self.most):
            self.limit = math.floor(self.most * self.samples / self.quantum)
        self.hop, self.compute, self.result = (
            np.rint(table / self.quantum) for table in (self.hop, self.compute, self.result)
        )

    def resolves(self, cost: float) -> bool:
        """Whether a cost in the metric's unit has so many quanta that rounding does not matter."""
        return cost >= _RESOLVED * self.quantum

    def within(self, most: float) -> Self:
        """Return the same space for plans that cost at most ``most``, in the metric's unit, which it resolves finer."""
        return type(self)(self.space, self.model, self.metric, most=most * _MARGIN)

    def part(self, space: SearchSpace) -> Self:
        """Return a part of the space, by other hints, in the same quanta."""
        return type(self)(space, self.model, self.metric, most=self.most, quantum=self.quantum)

    def _forbid_what_hints_exclude(self) -> None:
        for tier in range(self.tiers):
            banned = [int(tier not in self.space.block_tiers.get(b, (tier,))) for b in range(1, self.blocks + 1)]
            before = np.cumsum([0, *banned])
            self.compute[:, :, tier, before[:, None] < before[None, :]] = np.inf
        if self.space.tiers is not None:
            self.compute[:, :, [t for t in range(self.tiers) if t not in self.space.tiers]] = np.inf

    def _forbid_hops(self, works: NDArray[np.bool_]) -> None:
        """Forbid the hops that no plan makes: then their costs do not count for the quantum."""
        here = np.eye(self.tiers, dtype=np.bool_)
        between = works[:, None] & works[None, :]
        if self.space.tier_order == "increasing":
            between &= ~np.tri(self.tiers, dtype=np.bool_)
        made = self.inner[:, None, None] & between
        made[0] = works & (np.arange(self.tiers) == self.model.topology.source)[:, None]
        self.hop = np.where(made | here, self.hop, np.inf)

    def _forbid_what_does_not_fit(self) -> None:
        given = [tier.memory_bytes for tier in self.model.topology.tiers]
        self.room: Floats = np.array([np.inf if size is None else size for size in given])
        self.held: Floats | None = None
        if np.isinf(self.room).all():
            return
        need = np.nan_to_num(self.model.profile.backbone.partition_bytes())
        self.compute[:, :, need > self.room[:, None, None]] = np.inf
        spec = self.model.profile.backbone
        weights, branch = sum(spec.block_bytes), max(spec.branch_bytes)
        each = branch + need[0, -1] - weights - spec.branch_bytes[-1]  # of any partition, besides the weights of blocks
        crowded = self.room < weights + self.space.exits_per_tier * each
        if self.space.exits_per_tier > 1 and crowded.any():
            self.held = np.where(crowded[:, None, None], need, 0.0)

    def fits(self, cuts: Ints, placement: tuple[int, ...]) -> NDArray[np.bool_]:
        """Whether the partitions of plans with cuts [C, L] have room together on each tier, [C]."""
        fitting = np.ones(len(cuts), dtype=np.bool_)
        for tier in set(placement) if self.held is not None else ():
            assert self.held is not None
            total, start = np.zeros(len(cuts)), np.zeros(len(cuts), dtype=np.intp)
            for k, place in enumerate(placement):
                total += self.held[tier, start, cuts[:, k]] if place == tier else 0.0
                start = cuts[:, k]
            fitting &= total <= self.room[tier]
        return fitting

    def _tabulate_steps(self) -> None:
        source = self.model.topology.source
        self.step: Floats = self.hop + (self.result[None, :] - self.result[:, None])
        self.step[:, range(self.tiers), range(self.tiers)] = 0.0
        self.first: Floats = self.hop[0, source] + self.result
        ends = self.last | self.inner
        self.bare, self.full = (np.where(ends, self.compute[:, run], np.inf) for run in (0, 1))
        self.first_unused: Ints = np.where(self.used.all(axis=0), -1, np.argmin(self.used, axis=0))

    def threshold(self, row: int, cut: int) -> float:
        """The threshold of a row at a cut as a plan states it: 0 where the exit is not used."""
        return float(self.theta[row]) if self.used[row, cut] else 0.0

    def complete(self, plan: Plan) -> Plan:
        """Return the plan with the codec on each hop that costs least, and the profile's criterion."""
        names, senders = self.model.tables.codecs, (self.model.topology.source, *plan.placement[:-1])
        chosen = (
            int(self.codec[start, sender, tier])
            for (start, _), sender, tier in zip(plan.partitions, senders, plan.placement, strict=True)
        )
        codecs = tuple(names[k] if k >= 0 else None for k in chosen)
        return replace(plan, codecs=codecs, criterion=self.model.profile.exits.criterion)

    def value(self, quanta: ArrayLike) -> Floats:
        """The metric's value of a sum of samples times quanta, in its unit."""
        return np.asarray(np.asarray(quanta) * self.quantum / self.samples)

    def quanta(self, bound: float) -> float:
        """The largest sum of samples times quanta that is a value of at most ``bound``, up to rounding."""
        if math.isinf(bound):
            return bound
        return math.floor((bound + self.metric.slack(bound)) * self.samples / self.quantum)

    def counts(self, accuracy: float) -> float:
        """The least count of right answers that is an accuracy of at least ``accuracy``, up to rounding."""
        return accuracy if math.isinf(accuracy) else math.ceil((accuracy - ACCURACY_SLACK) * self.certain)

    def accuracy(self, counts: ArrayLike) -> Floats:
        """Accuracy 0–1 of a count of right answers (times S where the estimator is marginal)."""
        return np.asarray(np.asarray(counts) / self.certain)

    def _last_cuts(self) -> tuple[int, ...]:
        cuts = range(1, self.blocks + 1) if self.space.cuts is None else sorted(set(self.space.cuts))
        ending = self.model.profile.backbone.exit_cuts if self.space.truncation else (self.blocks,)
        return tuple(c for c in cuts if c in ending)

    def _inner_cuts(self) -> tuple[int, ...]:
        return tuple(range(1, self.blocks)) if self.space.cuts is None else tuple(sorted(set(self.space.cuts)))

    def least_cost(self) -> float:
        """A bound on the cost of any plan: everyone takes the cheapest first step and returns a result."""
        first = np.minimum(self.bare, self.full)[1, :, 0].min(axis=1) + self.hop[0, self.model.topology.source]
        return float(min(self.samples * (first.min() + self.result.min()), NEVER * self.samples))

    def most_right(self) -> float:
        """A bound on the right answers of any plan: everyone leaves where it is right, if it can."""
        ends = np.flatnonzero(self.last | self.inner)
        if self.bits is None:
            return float(self.samples * self.right[ends].max(initial=0.0))
        return float(np.bitwise_count(np.bitwise_or.reduce(self.bits.right[ends], axis=0)).sum(dtype=np.int64))

    # -- the space -----------------------------------------------------------------------------

    def lengths(self) -> range:
        tiers = self.tiers if self.space.tiers is None else len(set(self.space.tiers))
        most = min(self.blocks, tiers * self.space.exits_per_tier, self.space.max_partitions or self.blocks)
        return range(self.space.min_partitions, most + 1)

    def placements(self, length: int) -> Iterator[tuple[int, ...]]:
        """Tier sequences in lexicographic order; a tier's partitions are consecutive, with a used exit between them."""
        tiers = sorted(range(self.tiers) if self.space.tiers is None else set(self.space.tiers))
        found = set()
        for used in range(1, min(length, len(tiers)) + 1):
            orders = combinations(tiers, used) if self.space.tier_order == "increasing" else permutations(tiers, used)
            for order in orders:
                for sizes in _compositions(length, used, self.space.exits_per_tier):
                    found.add(tuple(chain.from_iterable([t] * n for t, n in zip(order, sizes, strict=True))))
        return iter(sorted(found))

    def columns(self, length: int, cells: int) -> Iterator[Ints]:
        """Increasing cuts [C, length], in lexicographic order, as many at a time as make ``cells`` with the rows."""
        ends = np.asarray(self.last_cuts, dtype=np.intp)
        chunk = max(1, cells // self._row_count(length))
        before = combinations(self._inner_cuts(), length - 1)
        left = np.empty((0, length), dtype=np.intp)
        while block := list(islice(before, 1 + chunk // max(ends.size, 1))):
            prefix = np.array(block, dtype=np.intp).reshape(len(block), length - 1)
            skipped = np.searchsorted(ends, prefix[:, -1], side="right") if length > 1 else np.zeros(1, dtype=np.intp)
            number = ends.size - skipped
            first = np.repeat(skipped - (np.cumsum(number) - number), number)
            last = ends[np.arange(first.size) + first]
            left = np.concatenate([left, np.column_stack([np.repeat(prefix, number, axis=0), last])])
            while len(left) >= chunk:
                yield left[:chunk]
                left = left[chunk:]
        if len(left):
            yield left

    def rows(self, length: int, cells: int) -> Iterator[list[tuple[int, ...]]]:
        """Threshold indices of rows, in lexicographic order, ``cells`` at a time; one partition asks none: one row."""
        every: Iterator[tuple[int, ...]] = iter([()])
        if length > 1 and self.space.per_exit_thresholds:
            every = product(range(self.theta.size), repeat=length - 1)
        elif length > 1:
            every = ((row,) * (length - 1) for row in range(self.theta.size))
        while some := list(islice(every, cells)):
            yield some

    def _row_count(self, length: int) -> int:
        if length == 1:
            return 1
        count = self.theta.size
        return math.prod([count] * (length - 1)) if self.space.per_exit_thresholds else count

    def count(self) -> int:
        """Number of plans, without enumerating them; a single partition asks no threshold."""
        tiers = self.tiers if self.space.tiers is None else len(set(self.space.tiers))
        orders = math.comb if self.space.tier_order == "increasing" else math.perm
        asked = self.used.astype(int).astype(object)  # whole numbers of any size
        if self.space.per_exit_thresholds:
            kinds = [(1, asked.sum(axis=0), np.full_like(asked[0], self.theta.size))]
        else:  # thresholds that use the same exits count alike
            kinds = [
                (n, np.array(k, dtype=object), np.full_like(asked[0], 1)) for k, n in Counter(map(tuple, asked)).items()
            ]
        total = 0
        for number, (rows, stay, move) in enumerate(kinds):
            first = np.full_like(move, 1)
            first[0] = 0
            ways = {(1, 1): first}  # [N+1] to end at each cut, by tiers used and partitions on the last one
            for length in range(1, self.lengths().stop):
                if length in self.lengths():
                    each = sum(orders(tiers, used) * int(n[self.last].sum()) for (used, _), n in ways.items())
                    total += each * (rows if length > 1 else int(number == 0))
                ways = self._ways_on(ways, stay, move, tiers)
        return total

    def _ways_on(self, ways: _Ways, stay: Any, move: Any, tiers: int) -> _Ways:
        """Ways with one partition more: on the same tier as often as ``stay`` [N+1] says, else ``move``."""
        onward: _Ways = {}
        for (used, held), number in ways.items():
            for weight, key in ((stay, (used, held + 1)), (move, (used + 1, 1))):
                if key[0] <= tiers and key[1] <= self.space.exits_per_tier:
                    before = np.cumsum(np.where(self.inner, number * weight, 0))
                    onward[key] = onward.get(key, 0) + np.append(0, before[:-1])
        return onward

    def hints(self) -> str:
        """Return the hints that differ from the defaults, as text."""
        default = SearchSpace()
        names = [f.name for f in fields(SearchSpace) if getattr(self.space, f.name) != getattr(default, f.name)]
        return ", ".join(f"{name}={getattr(self.space, name)!r}" for name in names) or "none"

    def empty(self, ended: str = "") -> SearchError:
        """Return the error that says that no plan satisfies the hints, or was found before a limit was met."""
        if ended:
            return SearchError(
                f"no plan was found before the limit of {ended} was met, though the hints ({self.hints()}) may leave "
                "one; allow more, or relax a hint"
            )
        limits = []
        for tier, room in zip(self.model.topology.tiers, self.room.tolist(), strict=True):
            if room < math.inf:
                need = self.model.profile.backbone.partition_bytes()
                limits.append(
                    f"tier {tier.name!r} has {format_bytes(room)}, but a partition there needs at least "
                    f"{format_bytes(float(np.nanmin(need)))} and the whole network {format_bytes(float(need[0, -1]))}"
                )
        if limits:
            return SearchError(
                f"no plan satisfies the hints ({self.hints()}) within the memory of the tiers: {'; '.join(limits)}; "
                "allow more tiers or partitions, or a tier with more memory"
            )
        return SearchError(f"no plan satisfies the hints: {self.hints()}; relax one of them")


def _largest(table: Floats) -> float:
    return float(np.max(table, where=np.isfinite(table), initial=0.0))


def _check_hints(space: SearchSpace, blocks: int, tiers: int) -> None:
    hints: Mapping[str, tuple[tuple[int, ...] | None, int, int]] = {
        "cuts": (space.cuts, 1, blocks),
        "exits": (space.exits, 1, blocks),
        "tiers": (space.tiers, 0, tiers - 1),
        "block_tiers (blocks)": (tuple(space.block_tiers), 1, blocks),
        "block_tiers (tiers)": (tuple(chain.from_iterable(space.block_tiers.values())), 0, tiers - 1),
    }
    for name, (values, low, high) in hints.items():
        wrong = [v for v in values or () if not low <= v <= high]
        if wrong:
            raise InvalidValue(f"the hint {name} holds numbers within {low}–{high} here, but got {wrong}")


def _check_exits(space: SearchSpace, existing: tuple[int, ...]) -> None:
    missing = sorted(set(space.exits or ()) - set(existing))
    if missing:
        raise InvalidValue(
            f"the hint exits names cuts that have an exit branch, here {', '.join(map(str, existing))}, "
            f"but got {missing}"
        )


def _compositions(total: int, parts: int, most: int) -> Iterator[tuple[int, ...]]:
    """Ways to write ``total`` as an ordered sum of ``parts`` numbers within 1–most."""
    if parts == 1:
        if 1 <= total <= most:
            yield (total,)
        return
    for first in range(1, min(most, total - parts + 1) + 1):
        for rest in _compositions(total - first, parts - 1, most):
            yield (first, *rest)
