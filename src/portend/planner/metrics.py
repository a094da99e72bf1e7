"""Quantities of plans that may be minimized, maximized or bounded: the built-in ones, and the user's own.

A metric is computed for a whole ``Batch`` or ``Block`` of plans at once. Definitions and limits: ``docs/metrics.md``.

Axes: C plans of one batch, L partitions, M tiers, N+1 cuts, K codecs, P latency parts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from portend.errors import ConfigError, InvalidValue, MismatchError, choice, law, nearest
from portend.importing import import_object
from portend.perfmodel.estimate import PARTS, Estimate
from portend.perfmodel.model import PerformanceModel
from portend.planner.batch import Batch, Block, OnBlocks, weighted
from portend.planner.terms import Additive, Hops, OwnCosts, Results, Runs, Terms, message_bytes
from portend.units import format_bytes, format_time, parse

__all__ = [
    "ACCURACY_SLACK",
    "LATENCY_SLACK",
    "Batch",
    "Block",
    "Constraint",
    "Metric",
    "accuracy",
    "additive",
    "deadline_misses",
    "energy",
    "latency",
    "latency_quantile",
    "link_bytes",
    "load_metric",
    "memory",
    "metric",
    "parse_constraint",
    "price",
    "throughput",
    "utilization",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Sense = Literal["<=", ">="]

ACCURACY_SLACK: Final = 1e-12
LATENCY_SLACK: Final = 1e-9
"""A bound that a plan meets on paper is not missed by a rounding error: absolute for accuracy and what else has no
unit and is not additive, otherwise a share of the bound (solvers round every term to a quantum, ``PlanSpace``)."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A quantity of a plan; ``metric <= x`` and ``metric >= x`` make constraints.

    Attributes:
        name: unique in a problem; unit: of the values, an SI one without prefix, empty for a plain number.
        compute: gives the values [C] of a ``Batch``.
    """

    name: str
    unit: str
    compute: Callable[[Batch], Any] = field(repr=False)

    @property
    def additive(self) -> Additive | None:
        """The costs that the metric adds up, where it is additive: the exact searches take such metrics."""
        return self.compute if isinstance(self.compute, Additive) else None

    @property
    def by_plan(self) -> bool:
        """Whether the function is asked plan by plan, which is slow."""
        return isinstance(self.compute, _Each)

    def slack(self, bound: float) -> float:
        """By how much a value may miss a bound and count as rounded."""
        return LATENCY_SLACK * abs(bound) if self.unit or self.additive is not None else ACCURACY_SLACK

    def of(self, batch: Batch) -> Floats:
        """Return the values of a batch, [C].

        Raises:
            InvalidValue: the function did not give one number for each plan.
        """
        return self._checked(self.compute(batch), (len(batch),), batch)

    def of_block(self, block: Block) -> Floats:
        """Return the values of a block, row after row, [R x C]; without its flat batch where the metric needs none.

        Raises:
            InvalidValue: the function did not give one number for each plan.
        """
        if isinstance(self.compute, OnBlocks):
            return self._checked(self.compute.on_block(block), block.shape, block).ravel()
        return self.of(block.flat)

    def _checked(self, given: Any, shape: tuple[int, ...], plans: Batch | Block) -> Floats:
        values = np.asarray(given, dtype=np.float64)
        if values.shape != shape:
            raise InvalidValue(
                f"the metric {self.name!r} gives one number a plan, but got {values.shape} for {shape} plans"
            )
        if np.isnan(values).any():
            i = int(np.flatnonzero(np.isnan(values))[0])
            batch = plans.flat if isinstance(plans, Block) else plans
            raise InvalidValue(
                f"the metric {self.name!r} is not a number for {batch.plan(i).describe(batch.model.topology.names)}"
            )
        return values

    def format(self, value: float) -> str:
        """Return a value with its unit as text."""
        if self.unit == "s":
            return format_time(value)
        if self.unit == "B":
            return format_bytes(value)
        return f"{value:.4g} {self.unit}".rstrip()

    def __le__(self, bound: float) -> Constraint:
        return Constraint(self, "<=", float(bound))

    def __ge__(self, bound: float) -> Constraint:
        return Constraint(self, ">=", float(bound))


@dataclass(frozen=True, slots=True)
class Constraint:
    """A bound on a metric, in the metric's unit."""

    metric: Metric
    sense: Sense
    bound: float

    def __post_init__(self) -> None:
        choice("the sense of a bound", self.sense, get_args(Sense))

    def missed_by(self, values: Floats) -> Floats:
        """By how much values miss the bound, as a share of it (0 where met, up to rounding)."""
        slack = self.metric.slack(self.bound)
        with np.errstate(invalid="ignore"):  # inf is within inf
            over = values - self.bound if self.sense == "<=" else self.bound - values
            return np.asarray(np.where(over > slack, over / (abs(self.bound) or 1.0), 0.0))

    def __str__(self) -> str:
        shown = f"{self.bound:g}" if not self.metric.unit else self.metric.format(self.bound)
        return f"{self.metric.name} {'≤' if self.sense == '<=' else '≥'} {shown}"


# -- the built-in metrics --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Latency(Additive):
    def __call__(self, batch: Batch) -> Floats:
        return batch.mean_s

    def on_block(self, block: Block) -> Floats:
        return block.mean_s

    def terms(self, model: PerformanceModel) -> Terms:
        tables = model.tables
        return Terms(
            compute=tables.compute_s,
            hop=tables.hop_parts_s.sum(axis=-1),
            result=tables.result_parts_s.sum(axis=-1),
        )


@dataclass(frozen=True)
class _Accuracy(OnBlocks):
    def on_block(self, block: Block) -> Floats:
        return block.accuracy


latency: Final = Metric("latency", "s", _Latency())
"""Mean latency in seconds."""
accuracy: Final = Metric("accuracy", "", _Accuracy())
"""Share of right answers, 0–1."""


@dataclass(frozen=True, slots=True)
class _Quantile(OnBlocks):
    q: float

    def on_block(self, block: Block) -> Floats:
        """As ``perfmodel.estimate.quantile_s``, without sorting: few partitions, many plans."""
        total = block.reach[0] * self.q - 1e-12
        best = np.full(block.shape, np.inf)
        for at in block.latency_s:
            covered = weighted(block.share, [(other <= at).astype(np.float64) for other in block.latency_s])
            np.minimum(best, at, out=best, where=covered >= total)
        return best


def latency_quantile(q: float) -> Metric:
    """The latency that a share ``q`` of the samples does not exceed, in seconds; ``latency_quantile(0.95)`` is p95."""
    law(0 < q <= 1, f"a quantile lies within 0–1 and above 0, but got {q}")
    return Metric(f"p{100 * q:.10g}", "s", _Quantile(float(q)))


@dataclass(frozen=True, slots=True)
class _Misses(OnBlocks):
    deadline_s: float

    def on_block(self, block: Block) -> Floats:
        latest = self.deadline_s * (1 + ACCURACY_SLACK)
        return weighted(block.share, [(at > latest).astype(np.float64) for at in block.latency_s])


def deadline_misses(deadline_s: float) -> Metric:
    """Share of the samples that take longer than ``deadline_s`` seconds, 0–1."""
    law(deadline_s > 0, f"a deadline is a positive time, but got {deadline_s} s")
    return Metric(f"deadline_misses({1e3 * deadline_s:.10g} ms)", "", _Misses(float(deadline_s)))


@dataclass(frozen=True)
class _Busy(Additive):
    """Busy seconds, weighted by what a tier is worth in ``per`` of them."""

    what: str
    attribute: str
    example: str
    per: float = 1.0

    def __call__(self, batch: Batch) -> Floats:
        weights, unknown = self._weights(batch.model)
        total = np.zeros(len(batch))
        for tier, seconds in batch.busy_s.items():
            if tier in unknown:
                raise MismatchError(unknown[tier])
            total += weights[tier] * seconds
        return total

    def terms(self, model: PerformanceModel) -> Terms:
        weights, unknown = self._weights(model)
        tables, to = model.tables, model.topology.destination
        encode, decode = PARTS.index("encode"), PARTS.index("decode")
        hop = np.where(np.isfinite(tables.hop_parts_s), tables.hop_parts_s, 0.0)
        result = tables.result_parts_s
        return Terms(
            compute=tables.compute_s * weights[:, None, None],
            hop=hop[..., encode] * weights[:, None] + hop[..., decode] * weights,
            result=result[:, encode] * weights + result[:, decode] * weights[to],
            unknown=unknown,
        )

    def _weights(self, model: PerformanceModel) -> tuple[Floats, dict[int, str]]:
        """Worth of a second on each tier [M], and why it is not known where it is not."""
        given = [(tier.name, getattr(tier, self.attribute)) for tier in model.topology.tiers]
        unknown = {
            tier: f"{self.what} needs the {self.attribute} of every tier that works, but tier {name!r} has none; give "
            f"it one (in YAML {self.example!r}), or keep plans off it with the hint tiers"
            for tier, (name, weight) in enumerate(given)
            if weight is None
        }
        return np.array([weight or 0.0 for _, weight in given]) / self.per, unknown


def _throughput(batch: Batch) -> Floats:
    with np.errstate(divide="ignore"):
        return np.asarray(1.0 / batch.busiest_s)


energy: Final = Metric("energy", "J", _Busy("energy", "power_w", "power: 5 W"))
"""Joules per sample: each tier's busy seconds times its power."""
price: Final = Metric("price", "USD", _Busy("price", "price_usd_per_hour", "price: 0.10 USD/h", per=3600.0))
"""US dollars per sample: each tier's busy seconds times its price per hour."""
throughput: Final = Metric("throughput", "/s", _throughput)
"""Samples per second that the busiest tier or link direction can just sustain."""


@dataclass(frozen=True, slots=True)
class _Utilization:
    rate: float

    def __call__(self, batch: Batch) -> Floats:
        return np.asarray(self.rate * batch.busiest_s)


def utilization(rate: float) -> Metric:
    """Share of time that the busiest tier or link direction works at ``rate`` samples/s; overloaded from 1 on."""
    law(math.isfinite(rate) and rate > 0, f"an arrival rate is a positive number of samples/s, but got {rate}")
    return Metric(f"utilization({rate:.10g})", "", _Utilization(float(rate)))


@dataclass(frozen=True)
class _LinkBytes(Additive):
    link: int | None

    def __call__(self, batch: Batch) -> Floats:
        crossings = self._crossings(batch.model)
        total = np.zeros(len(batch))
        for sender, receiver, count, size in batch.messages():
            if crossings[sender, receiver]:
                total += crossings[sender, receiver] * count * size
        return total

    def terms(self, model: PerformanceModel) -> Terms:
        crossings, (hop, result) = self._crossings(model), message_bytes(model)
        return Terms(
            compute=np.zeros_like(model.tables.compute_s),
            hop=hop[..., None] * crossings,
            result=result * crossings[:, model.topology.destination],
        )

    def _crossings(self, model: PerformanceModel) -> Ints:
        """How often a message from tier to tier crosses what is counted, [M, M]."""
        tiers, links = np.arange(len(model.topology.tiers)), len(model.topology.links)
        if self.link is None:
            return np.asarray(np.abs(tiers[:, None] - tiers))
        if self.link >= links:
            known = model.topology.numbered_links()
            raise MismatchError(f"the topology has the links {known}, but link {self.link} is asked for")
        low, high = np.minimum(tiers[:, None], tiers), np.maximum(tiers[:, None], tiers)
        return ((low <= self.link) & (self.link < high)).astype(np.intp)


def link_bytes(link: int | None = None) -> Metric:
    """Mean bytes per sample that cross link j (between tiers j and j+1), both ways, results included.

    Without a link those of all links together: what crosses two counts twice.
    """
    law(link is None or link >= 0, f"links count from 0, but got {link}")
    return Metric("link_bytes" if link is None else f"link_bytes({link})", "B", _LinkBytes(link))


@dataclass(frozen=True, slots=True)
class _Memory:
    tier: int | str | None

    def __call__(self, batch: Batch) -> Floats:
        tiers = range(len(batch.model.topology.tiers))
        if self.tier is not None:
            tiers = range(self._index(batch.model), self._index(batch.model) + 1)
        need = batch.model.profile.backbone.partition_bytes()
        held = [np.zeros(len(batch))]
        for tier in tiers:
            held.append(np.zeros(len(batch)))
            for k in (k for k, place in enumerate(batch.placement) if place == tier):
                held[-1] += need[batch.starts[:, k], batch.cuts[:, k]]
        return np.asarray(np.maximum.reduce(held))

    def _index(self, model: PerformanceModel) -> int:
        if isinstance(self.tier, str):
            return model.topology.tier_index(self.tier)
        names = [tier.name for tier in model.topology.tiers]
        if self.tier is None or self.tier >= len(names):
            raise MismatchError(f"memory({self.tier}) names no tier; the tiers are {', '.join(names)}")
        return self.tier


def memory(tier: int | str | None = None) -> Metric:
    """Bytes that a plan needs on a tier, named or by its number, for weights and activations; without, the most on any.

    ``docs/model.md`` says what counts. What a tier has (``Tier.memory_bytes``) holds without it.
    """
    law(not isinstance(tier, int) or tier >= 0, f"tiers count from 0, but got {tier}")
    return Metric("memory" if tier is None else f"memory({tier})", "B", _Memory(tier))


# -- own metrics, and metrics as text --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Each:
    """A function of one ``Estimate``, asked plan by plan."""

    function: Callable[[Estimate], float]

    def __call__(self, batch: Batch) -> Floats:
        return np.array([self.function(estimate) for estimate in batch], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class _Blocks(OnBlocks):
    """A function of a ``Block``."""

    function: Callable[[Block], Any]

    def on_block(self, block: Block) -> Any:
        return self.function(block)


def metric(
    unit: str = "", *, each: bool = False, block: bool = False, name: str | None = None
) -> Callable[[Callable[..., Any]], Metric]:
    """Make a metric of a function of a ``Batch``, with ``block`` of a ``Block`` (fast), or with ``each`` of one
    ``Estimate`` (slow)::

    @metric("s")
    def slowest(batch):
        return batch.latency_s.max(axis=1)

    Example:
        >>> problem = pt.Problem(minimize=slowest, subject_to=(pt.accuracy >= 0.9,))
    """

    law(not (each and block), "a metric gets estimates one by one or a whole block, not both")

    def made(function: Callable[..., Any]) -> Metric:
        compute = _Each(function) if each else _Blocks(function) if block else function
        return Metric(name or str(getattr(function, "__name__", "metric")), unit, compute)

    return made


def additive(
    name: str,
    unit: str = "",
    *,
    compute: Callable[[Runs], Any] | None = None,
    hop: Callable[[Hops], Any] | None = None,
    result: Callable[[Results], Any] | None = None,
) -> Metric:
    """Make a metric of what each step costs every sample that takes it; the exact searches take it at any size::

    carbon = additive(
        "carbon",
        "g",
        compute=lambda run: np.array([0.2, 3.0])[run.tier] * run.seconds,
        hop=lambda hop: 1e-6 * hop.bytes,
    )

    The functions get all steps at once, as arrays, and return arrays that broadcast to them.

    Example:
        >>> problem = pt.Problem(minimize=carbon, subject_to=(pt.accuracy >= 0.9,))
    """
    return Metric(name, unit, OwnCosts(name=name, compute=compute, hop=hop, result=result))


_PLAIN: Final = {m.name: m for m in (latency, accuracy, energy, price, throughput, link_bytes(), memory())}
_MAKERS: Final[Mapping[str, Callable[[str], Metric]]] = MappingProxyType(
    {
        "deadline_misses": lambda at: deadline_misses(parse(at, "time")),
        "utilization": lambda rate: utilization(float(rate)),
        "link_bytes": lambda link: link_bytes(int(link)),
        "memory": lambda tier: memory(int(tier) if tier.isdecimal() else tier),
    }
)
_CALL: Final = re.compile(r"(\w+)\((.*)\)")
_NAMES: Final = (
    f"{', '.join(_PLAIN)}, p50, p95, p99, deadline_misses(80 ms), utilization(20), link_bytes(0), memory(0), "
    "module:function"
)


def load_metric(text: str) -> Metric:
    """Return the metric that a text names: a built-in one, or ``package.module:function``, which is imported.

    The function is a ``Metric``, or takes one ``Estimate``. Importing runs code: the text has to come from
    the user's own command line or file, never from the network.

    Raises:
        ConfigError: there is no such metric, module or function.

    Example:
        >>> pt.load_metric("energy")
        >>> pt.load_metric("mine.costs:carbon")
    """
    text = text.strip()
    if ":" in text:
        return _imported(text)
    try:
        if text in _PLAIN:
            return _PLAIN[text]
        if match := re.fullmatch(r"p(\d+(?:\.\d+)?)", text):
            return latency_quantile(float(f"{match[1]}e-2"))
        if (match := _CALL.fullmatch(text)) and match[1] in _MAKERS:
            return _MAKERS[match[1]](match[2])
    except ValueError as error:
        raise ConfigError(f"{text!r} is not a metric: {error}") from None
    near = nearest(text, [*_PLAIN, *_MAKERS])
    hint = f"; did you mean {near!r}?" if near else ""
    raise ConfigError(f"{text!r} is not a metric; the metrics are {_NAMES}{hint}")


def _imported(text: str) -> Metric:
    found = import_object(text, "the metric", error=ConfigError)
    if isinstance(found, Metric):
        return found
    if not callable(found):
        raise ConfigError(f"the metric {text!r} is neither a Metric nor a function, but {type(found).__name__}")
    return Metric(text.rpartition(":")[2], "", _Each(found))


_CONSTRAINT: Final = re.compile(r"(.+?)\s*(<=|>=)\s*(.+)")


def parse_constraint(text: str) -> Constraint:
    """Return a constraint such as ``p95<=80 ms``, ``energy<=0.5 J``, ``accuracy>=0.9`` or ``accuracy>=90%``.

    Raises:
        ConfigError: the text is no constraint, or the bound lacks the metric's unit.
    """
    match = _CONSTRAINT.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is not a constraint; write it like 'p95<=80 ms' or 'accuracy>=0.9'")
    asked = load_metric(match[1])
    try:
        bound = _bound(match[3], asked)
    except ValueError as error:
        raise ConfigError(f"{text!r}: {error}") from None
    return asked <= bound if match[2] == "<=" else asked >= bound


def _bound(text: str, asked: Metric) -> float:
    if asked.unit in ("s", "B"):
        return parse(text, "time" if asked.unit == "s" else "size")
    number, unit = text.removesuffix(asked.unit).strip(), asked.unit
    if not text.endswith(unit):
        raise InvalidValue(f"the bound of {asked.name} needs its unit; write it like '0.5 {unit}'")
    try:
        return float(number[:-1]) / 100 if not unit and number.endswith("%") else float(number)
    except ValueError:
        raise InvalidValue(f"a bound is a number{f' and {unit}' if unit else ''}, but got {text!r}") from None
