"""The file of a plan: the plan, the topology that it was made for, and all that it takes to run it there.

A plan counts tiers from 0; what these numbers mean, only the topology says. So the file holds it, and ``checked``
compares it by names with the topology on which the plan is to run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from portend.errors import InvalidValue, MismatchError, PortendError, StorageError, law
from portend.io.files import kind_of, wrong_file
from portend.io.storage import from_plain, to_plain, write_json
from portend.perfmodel.model import Estimator, PerformanceModel
from portend.planner.fallbacks import Fallback
from portend.planner.problem import NewSamples, SearchSpace, Solution
from portend.units import format_bandwidth, format_time
from portend.values.backbone import BackboneSpec
from portend.values.codecs import ValueRange
from portend.values.execution import Execution
from portend.values.plan import Plan
from portend.values.profile import Profile
from portend.values.topology import Link, Tier, Topology

__all__ = ["PLAN_VERSION", "PlanFile", "Search", "load_plan"]

PLAN_VERSION: Final = 2
"""2: with the topology, the space and the version; files without a version are read as 1."""

FACTOR: Final = 2.0
"""Links and slowdowns that differ from those of the plan by more than this factor are warned about."""
_SMALL_S: Final = 1e-3
"""Delays that differ by less than this, in seconds, are taken as equal."""
_MADE: Final = "make it again with `portend plan --out`"


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """Among which plans one was searched, and what judged them.

    Attributes:
        problem: what was asked, in words; space: the plans.
        estimator, codec_tolerance: of the model (``PerformanceModel``); criterion: by which it viewed the exits.
    """

    problem: str
    space: SearchSpace
    estimator: Estimator
    codec_tolerance: float
    criterion: str

    def model(self, profile: Profile, topology: Topology) -> PerformanceModel:
        """Return the model that judged the plans, of the profile on the topology."""
        return PerformanceModel(
            profile.by(self.criterion), topology, estimator=self.estimator, codec_tolerance=self.codec_tolerance
        )

    def to_text(self) -> str:
        """Return it as text, for the provenance of a measurement; ``from_text`` reads it."""
        return json.dumps(to_plain(self))

    @classmethod
    def from_text(cls, text: str) -> Search | None:
        """Return what ``to_text`` gave; None where there is nothing that this version can read."""
        try:
            return from_plain(Search, json.loads(text))
        except (PortendError, ValueError, TypeError, LookupError, AttributeError):
            return None


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanFile:
    """A plan and all that it takes to run it where it was made for.

    Attributes:
        plan: with its codecs; fallbacks: plans for when a tier is away, best first.
        tiers: names of the tiers, by the numbers that the plans use; empty: not known (a plan written by hand).
        topology: what the plan was made for; None in files of version 1.
        network, weights_sha256: name of the network and digest of its weights; "": not known.
        executions: what runs partitions, by tier name; ranges: of values, for int8 codecs, by cut.
        problem: what was asked, in words; search: among which plans this one was found; None: not known.
        status: of the answer (``Solution.status``); gap: share of the cost that a better plan might save.
        samples: where the profile's exits come from (``Profile.provenance``).
        answer: the rest of what ``portend plan --json`` prints, for readers: estimate, why, baselines, front.
    """

    plan: Plan
    fallbacks: tuple[Plan, ...] = ()
    tiers: tuple[str, ...] = ()
    topology: Topology | None = None
    network: str = ""
    weights_sha256: str = ""
    executions: Mapping[str, Execution] = field(default_factory=dict)
    ranges: Mapping[int, ValueRange] = field(default_factory=dict)
    problem: str = ""
    search: Search | None = None
    status: str = ""
    gap: float | None = None
    samples: Mapping[str, str] = field(default_factory=dict)
    answer: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = () if self.topology is None else tuple(tier.name for tier in self.topology.tiers)
        law(
            names in ((), self.tiers),
            f"the tiers of a plan are those of its topology, {', '.join(names)}, but got {', '.join(self.tiers)}",
        )
        law(len(set(self.tiers)) == len(self.tiers), f"tier names are unique, but got {', '.join(self.tiers)}")
        highest = max(tier for plan in self.plans for tier in plan.placement)
        law(
            not self.tiers or highest < len(self.tiers),
            f"a plan places on the tiers {', '.join(self.tiers)} by their index from 0, but got the index {highest}",
        )
        unknown = sorted(set(self.executions) - set(self.tiers))
        law(not unknown, f"executions are of the tiers {', '.join(self.tiers)}, but got {', '.join(unknown)}")

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plan and its fallbacks, each once."""
        return tuple(dict.fromkeys((self.plan, *self.fallbacks)))

    @classmethod
    def of(
        cls, solution: Solution, model: PerformanceModel, fallbacks: Sequence[Fallback] = (), *, front: bool = True
    ) -> PlanFile:
        """Return the answer of a search on ``model`` as a file; without its ``front`` the file is shorter.

        Raises:
            MismatchError: a plan uses int8, but the profile has no ranges of values.
        """
        profile, topology = model.profile, model.topology
        names = tuple(tier.name for tier in topology.tiers)
        plans = (solution.plan, *(other.solution.plan for other in fallbacks))
        ranges = {cut: limits for plan in plans for cut, limits in profile.ranges_for(plan).items()}
        answer = solution.to_dict()
        for key in ("status", "problem", "plan", "gap", *(() if front else ("front",))):
            del answer[key]
        if fallbacks:
            answer["fallbacks"] = [other.to_dict(names) for other in fallbacks]
        return cls(
            plan=solution.plan,
            fallbacks=plans[1:],
            tiers=names,
            topology=topology,
            network=profile.backbone.name,
            weights_sha256=profile.backbone.weights_sha256,
            executions={tier.name: profile.devices[tier.device].execution for tier in topology.tiers},
            ranges=ranges,
            problem=str(solution.problem),
            search=Search(
                problem=str(solution.problem),
                space=solution.problem.space,
                estimator=model.estimator,
                codec_tolerance=model.codec_tolerance,
                criterion=profile.exits.criterion,
            ),
            status=solution.status,
            gap=solution.gap,
            samples=dict(profile.provenance),
            answer=answer,
        )

    @property
    def on_new_samples(self) -> str:
        """What is said of the plan's accuracy on new samples (``NewSamples``); empty where nothing is."""
        try:
            return str(from_plain(NewSamples, self.answer["new_samples"]))
        except (PortendError, ValueError, TypeError, LookupError, AttributeError):
            return ""

    def to_dict(self) -> dict[str, Any]:
        """Return the document: what was found, then what it was made for."""
        return {
            "status": self.status,
            "problem": self.problem,
            "plan": self.plan.to_dict(),
            "gap": self.gap,
            **self.answer,
            "format": "portend plan",
            "version": PLAN_VERSION,
            "tiers": list(self.tiers),
            "topology": None if self.topology is None else to_plain(self.topology),
            "search": None if self.search is None else to_plain(self.search),
            "profiled": {
                "network": self.network,
                "weights_sha256": self.weights_sha256,
                "executions": {name: to_plain(execution) for name, execution in self.executions.items()},
                "ranges": {str(cut): limits.to_dict() for cut, limits in self.ranges.items()},
                "samples": dict(self.samples),
            },
        }

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all."""
        write_json(self.to_dict(), path)

    @classmethod
    def from_dict(cls, document: Any) -> PlanFile:
        """Return what ``to_dict`` gave, of this version or an older one, or a plan alone as ``Plan.to_dict`` gives it.

        Raises:
            InvalidValue: what is wrong.
        """
        if isinstance(document, dict) and "plan" not in document:
            document = {"plan": document, "tiers": document.get("tiers", [])}
        if not isinstance(document, dict):
            Plan.from_dict(document)  # says what a plan is
        version = document.get("version", 1)
        law(
            type(version) is int and 1 <= version <= PLAN_VERSION,
            f"this Portend reads plans up to version {PLAN_VERSION}, but got {version!r:.40}; upgrade Portend, or "
            f"{_MADE}",
        )
        plan = Plan.from_dict(document["plan"])
        try:
            return cls(plan=plan, **_fields(document))
        except InvalidValue:
            raise
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise InvalidValue(f"what goes with a plan is damaged ({type(error).__name__}: {error}); {_MADE}") from None

    def checked(self, topology: Topology, mine: str = "the plan", its: str = "the topology") -> list[str]:
        """Return in what ``topology`` differs from the one that the plan was made for, as warnings.

        Args:
            mine, its: what messages call the two, such as their files.

        Raises:
            MismatchError: tiers have other names, another order or another number, or samples appear or results are
                wanted elsewhere: the plan would run on other machines than those that it was made for.
        """
        given = [tier.name for tier in topology.tiers]
        if not self.tiers:
            raise MismatchError(
                f"{mine} does not say which tiers it was made for; plan with `portend plan --topology {its} --out`, or "
                'add their names to it in order, such as "tiers": ["edge", "cloud"]'
            )
        if list(self.tiers) != given:
            raise MismatchError(_other_tiers(self.tiers, given, mine, its))
        made = self.topology
        if made is None:
            return []
        for role in ("source", "destination"):
            was, now = given[getattr(made, role)], given[getattr(topology, role)]
            if was != now:
                raise MismatchError(
                    f"{mine} was made for the {role} {was}, but in {its} it is {now}; plan with this topology"
                )
        if made.ingest != topology.ingest:
            raise MismatchError(
                f"{mine} was made for ingest {made.ingest}, but {its} has {topology.ingest}; plan with this topology"
            )
        return [
            f"{mine} was made for {what}; predictions do not hold, and another plan may be better: plan with {its}"
            for what in _differences(made, topology)
        ]

    def check_network(self, spec: BackboneSpec, mine: str = "the plan", its: str = "the network") -> None:
        """Raise MismatchError unless the plan is for this network and these weights, as far as that is known."""
        if self.weights_sha256 and spec.weights_sha256 and self.weights_sha256 != spec.weights_sha256:
            raise MismatchError(
                f"{mine} was made for {self.network} with other weights than those in {its} ({spec.name}); profile "
                "and plan with this network, or use the one that was profiled"
            )
        last = max(plan.cuts[-1] for plan in self.plans)
        if last > spec.num_blocks:
            raise MismatchError(
                f"{spec.name} in {its} has {spec.num_blocks} blocks, but {mine} runs {last}; plan with this network's "
                "profile"
            )

    def describe(self, plan: Plan | None = None) -> str:
        """Return the plan, or one of its fallbacks, in one line."""
        return (plan or self.plan).describe(self.tiers or None)


def load_plan(path: str | Path) -> PlanFile:
    """Load what ``portend plan --out`` wrote, in this version or an older one, or a plan alone.

    Raises:
        StorageError: there is no such file, or it holds no plan; says what is wrong.

    Example:
        >>> planned = pt.load_plan("plan.json")
        >>> measured = pt.run(planned, "runs/digits/checkpoint.safetensors", topology)
    """
    try:
        document = json.loads(Path(path).read_bytes(), object_pairs_hook=_each_once)
    except FileNotFoundError:
        raise StorageError(f"there is no file {path}; make one with `portend plan --out`") from None
    except (OSError, ValueError, RecursionError) as error:
        if kind_of(path) not in (None, "plan"):
            raise StorageError(wrong_file(path, "plan")) from None
        raise StorageError(f"{path} is not a plan in JSON ({error}); {_MADE}") from None
    try:
        return PlanFile.from_dict(document)
    except InvalidValue as error:
        raise StorageError(f"{path}: {error}") from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The mapping of a JSON object, in which a key that is there twice would silently win by its last."""
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"the key {twice[0]!r} is there twice; keep one of them")
    return dict(pairs)


def _fields(document: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a plan's file besides the plan; whatever does not fit raises one of Python's errors."""
    profiled = document.get("profiled") or {}
    executions = {name: from_plain(Execution, item) for name, item in profiled.get("executions", {}).items()}
    topology = document.get("topology")
    tiers = document.get("tiers") or list(executions)  # version 1 names them there, in order
    law(
        isinstance(tiers, list) and all(isinstance(name, str) for name in tiers),
        f"a plan's tiers are a list of names, but got {tiers!r:.60}",
    )
    own = ("status", "problem", "plan", "gap", "format", "version", "tiers", "topology", "search", "profiled")
    return {
        "fallbacks": tuple(Plan.from_dict(other["plan"]) for other in document.get("fallbacks") or ()),
        "tiers": tuple(tiers),
        "topology": None if topology is None else from_plain(Topology, topology),
        "network": from_plain(str, profiled.get("network", "")),
        "weights_sha256": from_plain(str, profiled.get("weights_sha256", "")),
        "executions": executions,
        "ranges": {int(cut): ValueRange.from_dict(item) for cut, item in profiled.get("ranges", {}).items()},
        "problem": from_plain(str, document.get("problem", "")),
        "search": None if document.get("search") is None else from_plain(Search, document["search"]),
        "status": from_plain(str, document.get("status", "")),
        "gap": from_plain(float | None, document.get("gap")),  # type: ignore[arg-type]
        "samples": from_plain(dict[str, str], profiled.get("samples", {})),
        "answer": {key: item for key, item in document.items() if key not in own},
    }


def _other_tiers(made: Sequence[str], given: Sequence[str], mine: str, its: str) -> str:
    """Why tiers of these names are not those of the plan."""
    told = f"{mine} was made for the tiers {', '.join(made)}, in this order, but {its} has {', '.join(given)}"
    missing, new = (sorted((Counter(a) - Counter(b)).elements()) for a, b in ((made, given), (given, made)))
    if missing or new:
        facts = [f"{what} {', '.join(names)}" for what, names in (("it lacks", missing), ("new are", new)) if names]
        return f"{told}: {' and '.join(facts)}; plan with this topology"
    return f"{told}; a chain in another order has other links: plan with this topology, or put its tiers in this order"


def _differences(made: Topology, given: Topology) -> list[str]:
    """What the plan was made for and what is there instead, for all that changes its predictions a lot."""
    found = []
    for was, now in zip(made.tiers, given.tiers, strict=True):
        found += _of_tier(was, now)
    names = [tier.name for tier in made.tiers]
    for was_link, now_link, ends in zip(made.links, given.links, pairwise(names), strict=True):
        found += _of_link(was_link, now_link, "–".join(ends))
    return found


def _of_tier(was: Tier, now: Tier) -> list[str]:
    found = []
    if was.device != now.device:
        found.append(f"{was.name} as device {was.device}, but it is {now.device}")
    if not 1 / FACTOR <= now.slowdown / was.slowdown <= FACTOR:
        found.append(f"{was.name} with slowdown {was.slowdown:g}, but it has {now.slowdown:g}")
    if now.memory_bytes is not None and (was.memory_bytes is None or now.memory_bytes < was.memory_bytes):
        known = "any memory" if was.memory_bytes is None else f"{was.memory_bytes:.0f} B of memory"
        found.append(f"{was.name} with {known}, but it has {now.memory_bytes:.0f} B")
    return found


def _of_link(was: Link, now: Link, name: str) -> list[str]:
    found = []
    if not 1 / FACTOR <= now.bandwidth_bps / was.bandwidth_bps <= FACTOR:
        rates = format_bandwidth(was.bandwidth_bps), format_bandwidth(now.bandwidth_bps)
        found.append(f"{rates[0]} between {name}, but it is {rates[1]}")
    low, high = sorted((was.propagation_delay_s, now.propagation_delay_s))
    if high > FACTOR * low and high - low > _SMALL_S:
        delays = format_time(was.propagation_delay_s), format_time(now.propagation_delay_s)
        found.append(f"a delay of {delays[0]} between {name}, but it is {delays[1]}")
    return found
