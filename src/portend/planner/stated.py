"""Problems stated in words: by options of the command line, by YAML files.

Metrics and bounds are texts (``docs/metrics.md``), tiers are named or numbered from 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from portend.errors import ConfigError, InvalidValue, choice
from portend.io.forms import Form, Key, Section, listed, plain, read_yaml, share
from portend.planner.metrics import Constraint, Metric, load_metric, parse_constraint, utilization
from portend.planner.problem import SearchSpace
from portend.values.plan import CRITERIA
from portend.values.topology import Topology

__all__ = ["HINTS", "PROBLEM", "Stated", "read_hints", "read_problem"]

HINTS: Final = Form(
    title="hints",
    says="Which plans are searched; what is left out restricts nothing.",
    makes=SearchSpace,
    keys=(
        listed("thresholds", float, "of the exits, within 0–1, that are tried", default="0, 0.1, ..., 0.9"),
        plain("per_exit_thresholds", bool, "one threshold for each exit, not one for all"),
        listed("cuts", int, "cuts at which a partition may end, from 1 on", default="all"),
        listed("exits", int, "branches that may be early exits, from 1 on; `[]`: none", default="all"),
        listed("codecs", str, "codecs that hops may use", default="all that were profiled"),
        plain("min_partitions", int, "fewest partitions"),
        plain("max_partitions", int, "most partitions", default="as many as fit"),
        plain("exits_per_tier", int, "most partitions, each with its exit, on one tier"),
        plain("tier_order", str, "`any`, or `increasing`: never back towards the first tier"),
        plain("truncation", bool, "whether the last blocks may be left out"),
        Key(name="tiers", words="list of names", read=lambda at, key: at.get(key, object),
            says="tiers that may be used", default="all"),
        Key(name="block_tiers", words="mapping", read=lambda at, key: at.get(key, dict),
            says="tiers for single blocks, such as `1: edge` for raw input that stays there", default="any"),
    ),
)  # fmt: skip


def _texts(section: Section, key: str) -> tuple[str, ...]:
    value = section.get(key, object)
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in items):
        raise ConfigError(f"{section.at(key)}: a text or a list of texts is needed here, but got {value!r:.60}")
    return tuple(items)


def _criterion(section: Section, key: str) -> str:
    named = section.get(key, str)
    choice(section.at(key), named, CRITERIA, error=ConfigError)
    return named


PROBLEM: Final = Form(
    title="Planning problem",
    says="`--problem` of `portend plan`, `refine` and `whatif`; options of the command line go first or add to it. "
    "Metrics: docs/metrics.md.",
    keys=(
        Key(name="minimize", words="metric, or list", read=_texts, says="such as `energy`; several: their front"),
        Key(name="maximize", words="metric, or list", read=_texts, says="such as `throughput`"),
        Key(name="subject_to", words="bound, or list", read=_texts, says="such as `p95<=80 ms` or `accuracy>=95%`"),
        plain("arrival_rate", float, "samples per second that no tier or link may be too slow for"),
        Key(name="criterion", words="text", read=_criterion, says="what thresholds are compared with: "
            f"{', '.join(CRITERIA)}", default="the profile's"),
        share("codec_tolerance", "share of accuracy that a codec may lose at a cut", default="0.002"),
        Key(name="hints", words="mapping", read=lambda at, key: at.section(key), says="which plans are searched",
            form=HINTS),
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Stated:
    """What was stated: objectives, bounds, hints as the fields of ``SearchSpace``, what a codec may lose (a share),
    and the criterion of the scores."""

    minimize: tuple[Metric, ...]
    maximize: tuple[Metric, ...]
    subject_to: tuple[Constraint, ...]
    hints: Mapping[str, Any]
    codec_tolerance: float | None = None
    criterion: str | None = None


def read_problem(
    path: str | Path | None,
    topology: Topology,
    *,
    minimize: tuple[str, ...] = (),
    maximize: tuple[str, ...] = (),
    subject_to: tuple[str, ...] = (),
    arrival_rate: float | None = None,
    codec_tolerance: float | None = None,
    criterion: str | None = None,
) -> Stated:
    """Return what a YAML file states, if any, and the texts add to it.

    ``arrival_rate`` (samples/s), ``codec_tolerance`` (a share of accuracy) and ``criterion`` (by which the profile
    is to be viewed) take precedence over the file's.

    Raises:
        ConfigError: the place, what is wrong there, and the remedy.
    """
    told = {} if path is None else PROBLEM.read(read_yaml(path, "problem"))
    minimize, maximize, subject_to = (
        (*told.get(key, ()), *given)
        for key, given in (("minimize", minimize), ("maximize", maximize), ("subject_to", subject_to))
    )
    hints = read_hints(told["hints"], topology) if "hints" in told else {}
    arrival_rate = told.get("arrival_rate") if arrival_rate is None else arrival_rate
    bounds = [parse_constraint(text) for text in subject_to]
    bounds += [] if arrival_rate is None else [utilization(arrival_rate) <= 1]
    return Stated(
        minimize=tuple(map(load_metric, minimize)),
        maximize=tuple(map(load_metric, maximize)),
        subject_to=tuple(bounds),
        hints=hints,
        codec_tolerance=told.get("codec_tolerance") if codec_tolerance is None else codec_tolerance,
        criterion=criterion or told.get("criterion"),
    )


def read_hints(section: Section, topology: Topology) -> dict[str, Any]:
    """Return the hints of a section as fields of ``SearchSpace``; ConfigError names the place of what is wrong."""
    hints = HINTS.read(section)
    if "tiers" in hints:
        hints["tiers"] = _tiers(section, "tiers", hints["tiers"], topology)
    if "block_tiers" in hints:
        blocks = hints["block_tiers"]
        if not all(type(block) is int for block in blocks):
            raise ConfigError(f"{section.at('block_tiers')}: blocks are numbered from 1, but got {list(blocks)!r:.50}")
        hints["block_tiers"] = {b: _tiers(section, f"block_tiers.{b}", t, topology) for b, t in blocks.items()}
    return hints


def _tiers(section: Section, key: str, value: object, topology: Topology) -> tuple[int, ...]:
    """The indices of one or several tiers."""
    items = value if isinstance(value, list) else [value]
    try:
        return tuple(topology.tier_index(str(item)) for item in items)
    except InvalidValue as error:
        raise ConfigError(f"{section.at(key)}: {error}") from None
