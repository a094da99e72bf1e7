"""What if: fields of the topology, the profile or the problem swept, and the best plan found anew at each point.

A field is named by a path, as in YAML: ``links[0].bandwidth``, ``tiers[edge].slowdown``,
``problem.min_accuracy``, ``space.exits_per_tier``, ``profile.devices[local].compute`` (a factor on
what was measured). Between two points of a sweep whose plans differ, bisection finds where the
plan flips. Sweeps run one after the other, or through joblib on a backend named by the caller.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, pairwise, product
from typing import Any, Final, Literal, TypeVar, get_args

import numpy as np

from portend.errors import ConfigError, InvalidValue, SearchError, choice, law, nearest
from portend.perfmodel.model import CODEC_TOLERANCE, Estimator, PerformanceModel
from portend.planner.limits import Limits
from portend.planner.problem import (
    Constraint,
    Metric,
    Problem,
    SearchSpace,
    Solution,
    Status,
    TierOrder,
    accuracy,
    latency,
)
from portend.planner.solve import solve
from portend.units import Dimension, format_bandwidth, format_bytes, format_time, parse
from portend.values.codecs import CodecProfile, ResultProfile
from portend.values.device_profile import DeviceProfile
from portend.values.exits import Exits, SampleExits
from portend.values.plan import Plan
from portend.values.profile import Profile
from portend.values.topology import Ingest, Topology

__all__ = [
    "BACKENDS",
    "Axis",
    "Crossover",
    "Field",
    "Scenario",
    "Sweep",
    "SweepPoint",
    "connected",
    "fields_of",
    "find_crossovers",
    "find_field",
    "parse_axis",
    "sweep",
]

BACKENDS: Final = ("loky", "threading", "dask", "ray")
"""Names of joblib backends: processes or threads of this machine, a Dask or a Ray cluster."""

Progress = Callable[[int, int], None]
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scenario:
    """All that a plan follows from; ``estimator`` and ``codec_tolerance`` as in ``PerformanceModel``."""

    profile: Profile
    topology: Topology
    problem: Problem
    estimator: Estimator | None = None
    codec_tolerance: float = CODEC_TOLERANCE

    def __post_init__(self) -> None:
        if self.estimator is not None:
            choice("an estimator", self.estimator, get_args(Estimator))

    @property
    def disturbed(self) -> tuple[str, ...]:
        """What disturbed the machines of the tiers when they were profiled."""
        return self.profile.disturbed(tier.device for tier in self.topology.tiers)

    def model(self) -> PerformanceModel:
        return PerformanceModel(
            self.profile, self.topology, estimator=self.estimator, codec_tolerance=self.codec_tolerance
        )

    def changed(self, values: Mapping[str, Any]) -> Scenario:
        """Return the scenario with the fields at the given paths set to ``values``.

        Raises:
            InvalidValue: there is no such field, or its value breaks a law; the message names the path.
        """
        scenario = self
        for path, value in values.items():
            field = find_field(self, path)
            try:
                scenario = field.write(scenario, value)
            except InvalidValue as error:
                raise InvalidValue(f"{field.path} = {field.format(value)}: {error}") from None
        return scenario


# --- fields --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One number, name or hint of a scenario.

    Attributes:
        path: its only name; tiers are named by their names, links and blocks by their numbers.
        kind: a dimension of ``portend.units`` (values in SI units); ``number``; ``factor`` (on measured values);
            ``switch`` (yes or no); ``choice`` of the names in ``choices``; ``list``, whose elements are joined by +,
            ``all`` for no restriction, ``none`` for no element.
        whole: whether only whole numbers make sense; optional: whether ``all`` stands for no limit;
            element: kind of a list's elements.
        read, write: get the value, give a scenario with another one.
    """

    path: str
    kind: Dimension | Literal["number", "factor", "switch", "choice", "list"]
    read: Callable[[Scenario], Any]
    write: Callable[[Scenario, Any], Scenario]
    whole: bool = False
    optional: bool = False
    choices: tuple[str, ...] = ()
    element: Literal["number", "choice"] = "number"

    @property
    def ordered(self) -> bool:
        """Whether there is a value between any two, or at least between 1 and 3."""
        return self.kind not in ("switch", "choice", "list")

    @property
    def quantity(self) -> Dimension | None:
        """The dimension, where values have a unit."""
        return self.kind if self.kind in get_args(Dimension) else None  # type: ignore[return-value]

    def parse(self, text: str) -> Any:
        """Return the value that a text such as ``5 Mbit/s`` stands for; InvalidValue names the path."""
        try:
            return self._parsed(text.strip())
        except InvalidValue as error:
            raise InvalidValue(f"{self.path}: {error}") from None

    def _parsed(self, text: str) -> Any:
        if self.kind == "switch":
            law(text in _SWITCH, f"this is yes or no, but got {text!r}")
            return _SWITCH[text]
        if self.kind == "choice":
            return self._chosen(text)
        if self.kind == "list":
            if text in ("all", "none"):
                return None if text == "all" else ()
            return tuple(self._element(item.strip()) for item in text.split("+"))
        if self.quantity:
            value = parse(text, self.quantity)
        elif text == "all" and self.optional:
            return None
        else:
            value = _number(text.lstrip("x×") if self.kind == "factor" else text)
        return self._whole(value) if self.whole else value

    def _element(self, text: str) -> Any:
        if self.element == "choice":
            return self._chosen(text)
        value = _number(text)
        return self._whole(value) if self.whole else value

    def _chosen(self, text: str) -> str:
        if text.isdecimal() and int(text) < len(self.choices) and text not in self.choices:
            return self.choices[int(text)]
        choice("what is needed here", text, self.choices)
        return text

    def _whole(self, value: float) -> int:
        law(value == int(value), f"a whole number is needed here, but got {value:g}")
        return int(value)

    def format(self, value: Any, digits: int = 4) -> str:
        """Return the value as text that ``parse`` reads, with so many significant digits."""
        if value is None:
            return "all"
        if self.kind == "switch":
            return "yes" if value else "no"
        if self.kind == "choice":
            return str(value)
        if self.kind == "list":
            return "+".join(str(v) if isinstance(v, str) else f"{v:g}" for v in value) or "none"
        if self.kind == "factor":
            return f"x{value:.{digits}g}"
        if self.quantity and math.isfinite(value):
            unit, scale = self.unit(value)
            return f"{value / scale:.{digits}g} {unit}"
        return f"{value:.{digits}g}"

    def unit(self, value: float) -> tuple[str, float]:
        """Return the unit in which a value reads well, and its size in SI units; ``("", 1)`` without a dimension."""
        if not self.quantity:
            return "", 1.0
        unit = _FORMATS[self.quantity](value).split(" ", 1)[1]
        return unit, parse(f"1 {unit}", self.quantity)


_SWITCH: Final = {"yes": True, "true": True, "no": False, "false": False}
_FORMATS: Final[Mapping[str, Callable[[float], str]]] = {
    "time": format_time,
    "bandwidth": format_bandwidth,
    "size": format_bytes,
    "power": lambda value: f"{value:g} W",
    "price": lambda value: f"{value:g} USD/h",
}


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise InvalidValue(f"a number is needed here, but got {text!r}") from None
    law(math.isfinite(value), f"a finite number is needed here, but got {text!r}")
    return value


def fields_of(scenario: Scenario) -> dict[str, Field]:
    """Return every field that can be swept, by path."""
    fields = [*_link_fields(scenario), *_tier_fields(scenario), *_problem_fields(scenario), *_space_fields(scenario)]
    fields += _profile_fields(scenario.profile)
    return {field.path: field for field in fields}


def find_field(scenario: Scenario, path: str) -> Field:
    """Return the field at a path; ``links.0.mtu`` is ``links[0].mtu``, ``tiers[0]`` the first tier.

    Raises:
        InvalidValue: there is none; the message lists what there is.
    """
    known = fields_of(scenario)
    name = re.sub(r"\.(\d+)(?=[.\[]|$)", r"[\1]", path.strip())
    for index, tier in enumerate(scenario.topology.tiers):
        if f"tiers[{index}]" != f"tiers[{tier.name}]" and name.startswith(f"tiers[{index}]"):
            name = f"tiers[{tier.name}]" + name.removeprefix(f"tiers[{index}]")
            break
    if name in known:
        return known[name]
    near = nearest(name, known, cutoff=0.75)
    hint = f"; did you mean {near!r}?" if near else ""
    groups = groupby(known, key=lambda path: path.rpartition(".")[0])
    listed = (f"{group}.{{{', '.join(p.rpartition('.')[2] for p in paths)}}}" for group, paths in groups)
    raise InvalidValue(f"there is no field {path!r}{hint}; the fields here are {'; '.join(listed)}")


def _link_fields(scenario: Scenario) -> Iterator[Field]:
    names: dict[str, tuple[str, Dimension]] = {
        "bandwidth": ("bandwidth_bps", "bandwidth"),
        "propagation_delay": ("propagation_delay_s", "time"),
        "mtu": ("mtu_bytes", "size"),
        "headers": ("header_bytes", "size"),
    }
    for index, (name, (attribute, kind)) in product(range(len(scenario.topology.links)), names.items()):

        def read(s: Scenario, index: int = index, attribute: str = attribute) -> Any:
            return getattr(s.topology.links[index], attribute)

        def write(s: Scenario, value: Any, index: int = index, attribute: str = attribute) -> Scenario:
            return replace(s, topology=s.topology.with_link(index, **{attribute: value}))

        yield Field(path=f"links[{index}].{name}", kind=kind, read=read, write=write, whole=kind == "size")


def _tier_fields(scenario: Scenario) -> Iterator[Field]:
    tiers = tuple(tier.name for tier in scenario.topology.tiers)
    devices = tuple(scenario.profile.devices)
    names: dict[str, tuple[str, Any]] = {
        "slowdown": ("slowdown", "number"),
        "device": ("device", "choice"),
        "memory": ("memory_bytes", "size"),
        "power": ("power_w", "power"),
        "price": ("price_usd_per_hour", "price"),
    }
    for index, (name, (attribute, kind)) in product(range(len(tiers)), names.items()):

        def read(s: Scenario, index: int = index, attribute: str = attribute) -> Any:
            return getattr(s.topology.tiers[index], attribute)

        def write(s: Scenario, value: Any, index: int = index, attribute: str = attribute) -> Scenario:
            return replace(s, topology=s.topology.with_tier(index, **{attribute: value}))

        yield Field(path=f"tiers[{tiers[index]}].{name}", kind=kind, read=read, write=write, choices=devices)
    for role in ("source", "destination"):

        def read_end(s: Scenario, role: str = role) -> Any:
            return tiers[getattr(s.topology, role)]

        def write_end(s: Scenario, value: Any, role: str = role) -> Scenario:
            ends: dict[str, Any] = {role: tiers.index(value)}
            return replace(s, topology=replace(s.topology, **ends))

        yield Field(path=f"topology.{role}", kind="choice", read=read_end, write=write_end, choices=tiers)
    yield Field(
        path="topology.ingest",
        kind="choice",
        read=lambda s: s.topology.ingest,
        write=lambda s, value: replace(s, topology=replace(s.topology, ingest=value)),
        choices=get_args(Ingest),
    )


def _bound_path(metric: Metric, sense: Literal["<=", ">="]) -> str:
    """The path of a bound, such as ``problem.max_p95``."""
    return f"problem.{'max' if sense == '<=' else 'min'}_{metric.name}"


def _problem_fields(scenario: Scenario) -> Iterator[Field]:
    def bound(metric: Metric, sense: Literal["<=", ">="]) -> Callable[[Scenario, Any], Scenario]:
        def write(s: Scenario, value: Any) -> Scenario:
            others = tuple(c for c in s.problem.subject_to if (c.metric, c.sense) != (metric, sense))
            return replace(s, problem=replace(s.problem, subject_to=(*others, Constraint(metric, sense, float(value)))))

        return write

    yield Field(
        path="problem.min_accuracy", kind="number", read=lambda s: s.problem.min_accuracy, write=bound(accuracy, ">=")
    )
    yield Field(
        path="problem.max_latency", kind="time", read=lambda s: s.problem.max_latency_s, write=bound(latency, "<=")
    )
    kinds: dict[str, Dimension] = {"s": "time", "B": "size"}
    for c in dict.fromkeys((c.metric, c.sense) for c in scenario.problem.subject_to):
        if c in ((accuracy, ">="), (latency, "<=")):
            continue  # these have their own names

        def read(s: Scenario, metric: Metric = c[0], sense: Literal["<=", ">="] = c[1]) -> float:
            return next(c.bound for c in s.problem.subject_to if (c.metric, c.sense) == (metric, sense))

        kind: Dimension | Literal["number"] = kinds.get(c[0].unit, "number")
        yield Field(path=_bound_path(*c), kind=kind, read=read, write=bound(*c))
    yield Field(
        path="model.estimator",
        kind="choice",
        read=lambda s: s.model().estimator,
        write=lambda s, value: replace(s, estimator=value),
        choices=get_args(Estimator),
    )
    yield Field(
        path="model.codec_tolerance",
        kind="number",
        read=lambda s: s.codec_tolerance,
        write=lambda s, value: replace(s, codec_tolerance=float(value)),
    )


def _space_fields(scenario: Scenario) -> Iterator[Field]:
    tiers = tuple(tier.name for tier in scenario.topology.tiers)
    codecs = tuple(dict.fromkeys(name for device in scenario.profile.devices.values() for name in device.codecs))
    kinds: dict[str, dict[str, Any]] = {
        "thresholds": {"kind": "list"},
        "per_exit_thresholds": {"kind": "switch"},
        "cuts": {"kind": "list", "whole": True},
        "exits": {"kind": "list", "whole": True},
        "tiers": {"kind": "list", "element": "choice", "choices": tiers},
        "min_partitions": {"kind": "number", "whole": True},
        "max_partitions": {"kind": "number", "whole": True, "optional": True},
        "exits_per_tier": {"kind": "number", "whole": True},
        "tier_order": {"kind": "choice", "choices": get_args(TierOrder)},
        "truncation": {"kind": "switch"},
        "codecs": {"kind": "list", "element": "choice", "choices": codecs},
    }

    def in_space(s: Scenario, **changes: Any) -> Scenario:
        return replace(s, problem=replace(s.problem, space=replace(s.problem.space, **changes)))

    for name, options in kinds.items():

        def read(s: Scenario, name: str = name) -> Any:
            value = getattr(s.problem.space, name)
            return tuple(tiers[t] for t in value) if name == "tiers" and value is not None else value

        def write(s: Scenario, value: Any, name: str = name) -> Scenario:
            if name == "thresholds" and value is None:
                value = SearchSpace().thresholds
            index = name == "tiers" and value is not None
            return in_space(s, **{name: tuple(map(tiers.index, value)) if index else value})

        yield Field(path=f"space.{name}", read=read, write=write, **options)
    for block in range(1, scenario.profile.num_blocks + 1):

        def read_block(s: Scenario, block: int = block) -> Any:
            found = s.problem.space.block_tiers.get(block)
            return None if found is None else tuple(tiers[t] for t in found)

        def write_block(s: Scenario, value: Any, block: int = block) -> Scenario:
            kept = {b: t for b, t in s.problem.space.block_tiers.items() if b != block}
            own = {} if value is None else {block: tuple(map(tiers.index, value))}
            return in_space(s, block_tiers=kept | own)

        yield Field(
            path=f"space.block_tiers[{block}]", kind="list", element="choice", choices=tiers,
            read=read_block, write=write_block,
        )  # fmt: skip


def _profile_fields(profile: Profile) -> Iterator[Field]:
    """Factors on what was measured: times, message sizes, and the scores that exits are taken by."""

    def factor(path: str, scaled: Callable[[Profile, float], Profile]) -> Field:
        def write(s: Scenario, value: Any) -> Scenario:
            law(value > 0, f"a factor on measured values is positive, but got {value:g}")
            return replace(s, profile=scaled(s.profile, value))

        return Field(path=path, kind="factor", read=lambda s: 1.0, write=write)

    def of_device(name: str, scaled: Callable[[DeviceProfile, float], DeviceProfile]) -> Any:
        return lambda p, by: replace(p, devices=dict(p.devices) | {name: scaled(p.devices[name], by)})

    def of_codec(name: str, codec: str, columns: Sequence[str]) -> Any:
        return of_device(
            name, lambda d, by: replace(d, codecs=dict(d.codecs) | {codec: _scaled(d.codecs[codec], columns, by)})
        )

    def of_result(name: str, columns: Sequence[str]) -> Any:
        return of_device(name, lambda d, by: replace(d, result=_scaled(d.result, columns, by)))

    for name, device in profile.devices.items():
        path = f"profile.devices[{name}]"
        yield factor(f"{path}.compute", of_device(name, _slower))
        for codec, (part, columns) in product(device.codecs, _CODEC.items()):
            yield factor(f"{path}.codecs[{codec}].{part}", of_codec(name, codec, columns))
        for part, columns in _RESULT.items():
            yield factor(f"{path}.result.{part}", of_result(name, columns))
    if isinstance(profile.exits, SampleExits):
        yield Field(
            path="profile.exits.criterion",
            kind="choice",
            read=lambda s: s.profile.exits.criterion,
            write=lambda s, value: replace(s, profile=s.profile.by(value)),
            choices=tuple(profile.exits.scores),
        )
        yield factor("profile.exits.score", lambda p, by: replace(p, exits=_surer(p.exits, by)))


_COMPUTE: Final = ("compute_repeats_s", "idle_repeats_s", "branch_repeats_s")
_CODEC: Final = {
    "message": ("message_bytes",),
    "encode": ("encode_repeats_s", "encode_busy_repeats_s"),
    "decode": ("decode_repeats_s", "decode_busy_repeats_s"),
    "dispatch": ("dispatch_repeats_s",),
}
_RESULT: Final = _CODEC | {"encode": ("encode_repeats_s",)}


def _slower(device: DeviceProfile, by: float) -> DeviceProfile:
    slower: DeviceProfile = _scaled(device, _COMPUTE, by)
    following = device.following_repeats_s
    return replace(slower, following_repeats_s=None if following is None else by * following)


def _surer(exits: Exits, by: float) -> SampleExits:
    assert isinstance(exits, SampleExits)
    return replace(exits, scores={name: by * np.asarray(table, np.float64) for name, table in exits.scores.items()})


def _scaled(owner: Any, columns: Sequence[str], by: float) -> Any:
    assert isinstance(owner, DeviceProfile | CodecProfile | ResultProfile)
    return replace(owner, **{name: by * getattr(owner, name) for name in columns})


# --- axes ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """A field and the values that it takes, in SI units."""

    path: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        law(len(self.values) >= 1, f"a sweep needs at least one value, but {self.path} has none")


_RANGE: Final = re.compile(r"(.+?)\.\.(.+?)(?:\s+(?:(lin|log)\s+)?(\d+))?")


def parse_axis(scenario: Scenario, text: str) -> Axis:
    """Return the axis in a text ``PATH=VALUES``.

    Values are a list such as ``1, 2, 500 kbit/s`` (a number without unit takes the next unit to its right) or a
    range: ``1..100 Mbit/s log 20`` for 20 values at equal ratios, ``0..40 ms 9`` at equal distances, ``1..4`` for
    whole numbers.

    Raises:
        InvalidValue: no such field, or a value that is none of its values.

    Example:
        >>> pt.parse_axis(scenario, "links[0].bandwidth=1..100 Mbit/s log 20")
    """
    path, equals, values = text.partition("=")
    law(bool(equals and values.strip()), f"a sweep is written like 'links[0].bandwidth=1,2,5 Mbit/s', but got {text!r}")
    field = find_field(scenario, path)
    found = _RANGE.fullmatch(values.strip())
    if found is None:
        return Axis(path=field.path, values=tuple(map(field.parse, _with_units(field, values.split(",")))))
    law(field.ordered, f"{field.path}: a range needs numbers; list the values, separated by commas")
    low, high = map(field.parse, _with_units(field, [found[1], found[2]]))
    if low is None or high is None:
        raise InvalidValue(f"{field.path}: a range needs two numbers, but got {values.strip()!r}")
    return Axis(path=field.path, values=_spread(field, low, high, found[3] or "lin", found[4]))


def _with_units(field: Field, texts: Sequence[str]) -> list[str]:
    """Give each number without a unit the next unit to its right."""
    complete, unit = [], ""
    for text in (text.strip() for text in reversed(texts)):
        law(bool(text), f"{field.path}: a value is missing between two commas")
        found = re.search(r"[a-zA-Zµ/]+$", text) if field.quantity else None
        unit = found[0] if found else unit
        complete.append(text if found or not unit else f"{text} {unit}")
    return complete[::-1]


def _spread(field: Field, low: float, high: float, spacing: str, count: str | None) -> tuple[Any, ...]:
    if count is None:
        law(field.whole, f"{field.path}: say how many values, as in '{field.format(low)}..{field.format(high)} log 20'")
        return tuple(range(int(low), int(high) + 1)) if low <= high else tuple(range(int(low), int(high) - 1, -1))
    law(int(count) >= 2, f"{field.path}: a range has at least two values, but got {count}")
    law(spacing == "lin" or min(low, high) > 0, f"{field.path}: a range in equal ratios starts above 0, but got {low}")
    between = (np.geomspace if spacing == "log" else np.linspace)(low, high, int(count)).tolist()
    values = [low, *between[1:-1], high]
    return tuple(dict.fromkeys(round(v) for v in values)) if field.whole else tuple(values)


# --- sweeps --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SweepPoint:
    """The best plan at one point.

    Attributes:
        values: one per axis.
        solution: without its front, to stay small; None where no plan satisfies the hints, or too many would have
            to be searched: ``reason`` says which.
        planned: whether there was time for it.
    """

    values: tuple[Any, ...]
    solution: Solution | None
    reason: str = ""
    planned: bool = True

    @property
    def status(self) -> Status | Literal["no plan"]:
        if self.solution is None:
            return "no plan" if self.planned else "unknown"
        return self.solution.status

    @property
    def missed(self) -> bool:
        """Whether there is a plan, which misses the constraints."""
        return self.solution is not None and not self.solution.met

    @property
    def plan(self) -> Plan | None:
        return self.solution.plan if self.solution else None

    def decides_like(self, other: SweepPoint) -> bool:
        """Whether both have the same plan, codecs included, and the same status."""
        return (self.status, self.plan) == (other.status, other.plan)

    def to_dict(self) -> dict[str, Any]:
        """Return status, plan, latencies (ms) and the problem's metrics (in their units) as JSON values."""
        answer: dict[str, Any] = {"status": self.status}
        if self.solution is None:
            return answer | {"reason": self.reason}
        answer |= {"bound": self.solution.bound, "gap": self.solution.gap}
        answer |= {"plan": self.solution.plan.to_dict(), **_outcome(self.solution)}
        answer["baselines"] = {
            name: {"status": s.status, "plan": s.plan.to_dict(), **_outcome(s)}
            for name, s in self.solution.baselines.items()
        }
        return answer


def _outcome(solution: Solution) -> dict[str, Any]:
    estimate = solution.estimate
    return {
        "latency_ms": {"mean": 1e3 * estimate.mean_s, "p95": 1e3 * estimate.quantile_s(0.95)},
        "accuracy": estimate.accuracy,
        "metrics": solution.metrics,
    }


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sweep:
    """What a sweep found.

    Attributes:
        zipped: whether the axes advance together; otherwise points are their product, the last axis fastest.
        points: in that order.
    """

    scenario: Scenario
    axes: tuple[Axis, ...]
    zipped: bool
    points: tuple[SweepPoint, ...]

    def field(self, axis: int) -> Field:
        return find_field(self.scenario, self.axes[axis].path)

    @property
    def tier_names(self) -> list[str]:
        return [tier.name for tier in self.scenario.topology.tiers]

    @property
    def asked(self) -> str:
        """The problem in words, without the bounds that are themselves swept."""
        swept = {axis.path for axis in self.axes}
        problem = self.scenario.problem
        fixed = tuple(c for c in problem.subject_to if _bound_path(c.metric, c.sense) not in swept)
        return str(replace(problem, subject_to=fixed))

    def describe_plan(self, point: SweepPoint, *, codecs: bool = False) -> str:
        """Return the plan in words; with ``codecs``, also how each hop is encoded."""
        if point.plan is None:
            return f"none: {point.reason}"
        used = [codec or "–" for codec in point.plan.codecs] if codecs else []
        return point.plan.describe(self.tier_names) + (f" (codecs {', '.join(used)})" if used else "")

    def to_dict(self) -> dict[str, Any]:
        """Return the sweep as JSON values; axis values are in SI units."""
        fields = [self.field(index) for index in range(len(self.axes))]
        return {
            "problem": self.asked,
            "zipped": self.zipped,
            "axes": [
                {"path": axis.path, "kind": field.kind, "values": [_json(v) for v in axis.values]}
                | {"text": [field.format(v) for v in axis.values]}
                for axis, field in zip(self.axes, fields, strict=True)
            ],
            "points": [{"values": self.named(point)} | point.to_dict() for point in self.points],
            "disturbed": list(self.scenario.disturbed),
        }

    def named(self, point: SweepPoint) -> dict[str, Any]:
        """Return a point's values by path, as JSON values."""
        return {axis.path: _json(value) for axis, value in zip(self.axes, point.values, strict=True)}


def _json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def sweep(
    scenario: Scenario,
    axes: Sequence[Axis | str],
    *,
    zipped: bool = False,
    baselines: bool = True,
    n_jobs: int | None = None,
    backend: str | None = None,
    on_progress: Progress | None = None,
    limits: Limits | None = None,
) -> Sweep:
    """Plan at every point of a grid, or of a list (``zipped``).

    Args:
        axes: fields and their values, also as text (``parse_axis``).
        limits: for all points together; each gets an equal share of the time that is left when it begins. Where a limit
            ended a search, the point's ``status`` and gap say so; points without time are not planned.
        n_jobs, backend: as in ``joblib.Parallel``. By default points are planned one after the other, without
            joblib; with a backend and no ``n_jobs``, by as many workers as it has. ``dask`` uses the current
            ``distributed.Client``, ``ray`` the Ray session (see ``connected``).
        on_progress: called with (points done, points); the order of the results never depends on the backend.

    Raises:
        InvalidValue: no such field, or a value that breaks a law of its field (before anything is planned).

    Example:
        >>> scenario = pt.Scenario(profile=profile, topology=topology, problem=problem)
        >>> pt.sweep(scenario, ["links[0].bandwidth=1..100 Mbit/s log 20"]).points[0].solution
    """
    given = (parse_axis(scenario, axis) if isinstance(axis, str) else axis for axis in axes)
    swept = tuple(replace(axis, path=find_field(scenario, axis.path).path) for axis in given)
    paths = [axis.path for axis in swept]
    law(len(swept) >= 1, "a sweep needs at least one field")
    law(len(set(paths)) == len(paths), f"each field is swept once, but got {paths}")
    lengths = [len(axis.values) for axis in swept]
    law(not zipped or len(set(lengths)) == 1, f"fields swept together have equally many values, but got {lengths}")
    values = list(zip(*(axis.values for axis in swept), strict=True) if zipped else product(*(a.values for a in swept)))
    for point in values:
        scenario.changed(dict(zip(paths, point, strict=True)))
    task = partial(_plan_at, scenario, tuple(paths), baselines)
    points = _each(task, values, limits=limits, n_jobs=n_jobs, backend=backend, on_progress=on_progress)
    return Sweep(scenario=scenario, axes=swept, zipped=zipped, points=tuple(points))


def _plan_at(
    scenario: Scenario, paths: Sequence[str], baselines: bool, values: tuple[Any, ...], limits: Limits
) -> SweepPoint:
    if limits.over():
        reason = f"there was no {limits.reason} left" if limits.reason != "interrupt" else "interrupted before"
        return SweepPoint(values=values, solution=None, reason=reason, planned=False)
    there = scenario.changed(dict(zip(paths, values, strict=True)))
    try:
        found = solve(there.problem, there.model(), baselines=baselines, limits=limits, new_samples=False)
    except SearchError as error:
        return SweepPoint(values=values, solution=None, reason=str(error))
    small = {name: replace(solution, front=()) for name, solution in found.baselines.items()}
    return SweepPoint(values=values, solution=replace(found, front=(), baselines=small))


# --- crossovers ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Crossover:
    """Where the plan flips: planned on both sides of it.

    Attributes:
        path: field; axis: its number.
        below, above: the points next to the flip, whose plans (or statuses) differ. Between their values lies
            the flip; they differ by at most the tolerance, or, in whole numbers, by one.
    """

    path: str
    axis: int
    below: SweepPoint
    above: SweepPoint

    @property
    def value(self) -> float:
        """The middle of the two values; of whole numbers, the upper one."""
        low, high = self.below.values[self.axis], self.above.values[self.axis]
        return high if isinstance(high, int) else low + (high - low) / 2

    @property
    def kind(self) -> Literal["tie", "jump"]:
        """``tie``: both plans are equally good there. ``jump``: a bound admits or excludes one."""
        one, two = self.below.solution, self.above.solution
        if one is None or two is None or one.status != two.status:
            return "jump"
        goals = [[s.metrics[m.name] for m, _ in s.problem.objectives] for s in (one, two)]
        return "tie" if all(math.isclose(*pair, rel_tol=1e-6) for pair in zip(*goals, strict=True)) else "jump"

    def to_dict(self) -> dict[str, Any]:
        """Return the crossover as JSON values; field values in SI units."""
        sides = {"below": self.below, "above": self.above}
        fixed = [_json(v) for axis, v in enumerate(self.below.values) if axis != self.axis]
        return {"path": self.path, "value": self.value, "kind": self.kind, "fixed": fixed} | {
            name: {"value": point.values[self.axis]} | {k: v for k, v in point.to_dict().items() if k != "baselines"}
            for name, point in sides.items()
        }


def find_crossovers(
    found: Sweep,
    *,
    axis: int | None = None,
    tolerance: float = 1e-9,
    pieces: int = 8,
    n_jobs: int | None = None,
    backend: str | None = None,
    on_progress: Progress | None = None,
    limits: Limits | None = None,
) -> tuple[Crossover, ...]:
    """Find where the plan flips along one axis of a grid (None: along each that has an order), for each combination of
    the others' values.

    Each gap between neighboring values is planned at ``pieces - 1`` more values, and wherever two neighbors then
    differ, bisected until their values are relatively closer than ``tolerance`` (or are neighboring floats); a third
    plan met in between splits the search in two. Where each plan is best on one interval at most, no flip is missed
    (but those closer than the tolerance): so it is where every plan's latency is linear in the field or in its
    reciprocal and the admitted plans stay the same. Elsewhere a plan that is best only inside a piece whose ends agree
    is missed. ``limits`` are for all gaps together; what a gap has no time for is not looked at, so that flips may be
    missed or less sharp.

    Raises:
        InvalidValue: the field's values have no order, or the axes advance together.
    """
    if axis is None:
        ordered = [i for i, a in enumerate(found.axes) if found.field(i).ordered and None not in a.values]
        axes = ordered or [0]
    else:
        axes = [axis]
    law(0 < tolerance < 1 and pieces >= 1, f"got the tolerance {tolerance} and {pieces} pieces; 0 < tolerance < 1")
    gaps = [(along, *gap) for along in axes for gap in _gaps(found, along)]
    task = partial(_flips, found.scenario, tuple(a.path for a in found.axes), tolerance, pieces)
    flips = _each(task, gaps, limits=limits, n_jobs=n_jobs, backend=backend, on_progress=on_progress)
    return tuple(
        Crossover(path=found.axes[along].path, axis=along, below=below, above=above)
        for (along, *_), flip in zip(gaps, flips, strict=True)
        for below, above in flip
    )


def _gaps(found: Sweep, axis: int) -> list[tuple[SweepPoint, SweepPoint]]:
    """Neighboring points along an axis."""
    field = found.field(axis)
    law(field.ordered, f"crossovers need a field of numbers, but {field.path} is a {field.kind}")
    law(not found.zipped or len(found.axes) == 1, "crossovers need a grid, but here several fields advance together")
    lines: dict[tuple[Any, ...], list[SweepPoint]] = {}
    for point in found.points:
        lines.setdefault((*point.values[:axis], *point.values[axis + 1 :]), []).append(point)
    gaps: list[tuple[SweepPoint, SweepPoint]] = []
    for line in lines.values():
        law(all(p.values[axis] is not None for p in line), f"crossovers need numbers, but {field.path} holds 'all'")
        gaps += pairwise(point for _, point in sorted({p.values[axis]: p for p in line}.items()))
    return gaps


_MOST_PLANS: Final = 4000  # per gap: ends a search among plans that tie within rounding all the way


def _flips(
    scenario: Scenario,
    paths: Sequence[str],
    tolerance: float,
    pieces: int,
    gap: tuple[int, SweepPoint, SweepPoint],
    limits: Limits,
) -> list[tuple[SweepPoint, SweepPoint]]:
    axis, start, end = gap
    whole = find_field(scenario, paths[axis]).whole
    low, high = start.values[axis], end.values[axis]
    planned = 0

    def plan_at(value: float) -> SweepPoint:
        nonlocal planned
        planned += 1
        values = (*start.values[:axis], value, *start.values[axis + 1 :])
        return _plan_at(scenario, paths, False, values, limits)

    inner = [low + (high - low) * k / pieces for k in range(1, pieces)]
    inner = sorted({round(v) for v in inner} - {low, high}) if whole else inner
    flips = []
    waiting = list(pairwise([start, *(p for p in map(plan_at, inner) if p.planned), end]))[::-1]
    while waiting:
        below, above = waiting.pop()
        if below.decides_like(above):
            continue
        a, b = below.values[axis], above.values[axis]
        middle = (a + b) // 2 if whole else a + (b - a) / 2
        close = b - a <= (1 if whole else tolerance * max(abs(a), abs(b)))
        if close or not a < middle < b or planned >= _MOST_PLANS or limits.over():
            flips.append((below, above))
        else:
            between = plan_at(middle)
            waiting += [(between, above), (below, between)]
    return flips


# --- one after the other, or by many workers --------------------------------------------------


def _each(
    task: Callable[[_T, Limits], _R],
    items: Sequence[_T],
    *,
    limits: Limits | None,
    n_jobs: int | None,
    backend: str | None,
    on_progress: Progress | None,
) -> list[_R]:
    """Return ``task`` of every item and its share of the limits, in order."""
    limits = limits or Limits()
    if backend is None and n_jobs in (None, 1):
        results = []
        with limits.interruptible():
            for done, item in enumerate(items, start=1):
                results.append(task(item, limits.part(1 / (len(items) - done + 1))))
                if on_progress:
                    on_progress(done, len(items))
        return results
    law(n_jobs != 0, "at least one worker is needed, or -1 for all there are, but got 0")
    law(backend is None or backend in BACKENDS, f"the backends are {', '.join(BACKENDS)}, but got {backend!r}")
    from joblib import Parallel, delayed, effective_n_jobs, parallel_config

    with parallel_config(backend=backend or "loky", n_jobs=-1 if n_jobs is None else n_jobs):
        workers = effective_n_jobs(n_jobs or -1)
        collected: list[_R] = []
        delivery = "list" if backend == "ray" else "generator"  # Ray's backend gives results only all at once
        parallel = Parallel(return_as=delivery, batch_size=1, pre_dispatch="n_jobs")
        for part in parallel(delayed(_run)(task, *chunk) for chunk in _chunks(items, workers, limits)):
            collected += part
            if on_progress:
                on_progress(len(collected), len(items))
    return collected


def _chunks(items: Sequence[_T], workers: int, limits: Limits) -> Iterator[tuple[Sequence[_T], dict[str, Any]]]:
    """Items for a worker that asks for some, and what is left of the limits for them; the task travels once with each.

    Time that earlier ones did not use is there for later ones. joblib takes a chunk for each worker ahead, which waits
    until the one before is done.
    """
    size = max(1, math.ceil(len(items) / (8 * workers)))
    for begin in range(0, len(items), size):
        rounds = math.ceil((len(items) - begin) / (size * workers))
        ahead = int(begin > 0)
        yield items[begin : begin + size], limits.shared(1 / (rounds + ahead), workers)


def _run(task: Callable[[_T, Limits], _R], items: Sequence[_T], given: dict[str, Any]) -> list[_R]:
    limits = Limits(**given)
    return [task(item, limits.part(1 / left)) for left, item in zip(range(len(items), 0, -1), items, strict=True)]


@contextlib.contextmanager
def connected(backend: str | None, n_jobs: int | None = None) -> Iterator[None]:
    """Make a backend of clusters ready for ``sweep``: nothing to do for ``loky`` and ``threading``.

    ``dask`` connects to the scheduler that Dask's configuration names (``DASK_SCHEDULER_ADDRESS``), or starts
    ``n_jobs`` worker processes on this machine (default: one per core); ``ray`` does the same with Ray's
    ``RAY_ADDRESS``.
    """
    if backend == "dask":
        import dask.config
        from distributed import Client, LocalCluster

        address = dask.config.get("scheduler-address", None)
        workers = None if n_jobs is None or n_jobs < 1 else n_jobs
        with contextlib.ExitStack() as stack:
            target = address or stack.enter_context(
                LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)  # type: ignore[no-untyped-call]
            )
            stack.enter_context(Client(target))  # type: ignore[no-untyped-call]
            yield
    elif backend == "ray":
        try:
            import ray
            from ray.util.joblib import register_ray
        except ModuleNotFoundError:
            raise ConfigError("the backend ray needs the package ray; install it with: pip install 'ray'") from None
        ray.init(num_cpus=n_jobs if n_jobs and n_jobs > 0 else None, ignore_reinit_error=True)
        try:
            register_ray()
            yield
        finally:
            ray.shutdown()
    else:
        yield
