"""Problems stated in words: by options of the command line, by YAML files.

Metrics and bounds are texts (``docs/metrics.md``), tiers are named or numbered from 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from portend.config import Section, read_yaml
from portend.errors import ConfigError, InvalidValue, choice
from portend.plan import CRITERIA
from portend.planner.metrics import Constraint, Metric, load_metric, parse_constraint, utilization
from portend.topology import Topology

__all__ = ["Stated", "read_hints", "read_problem"]

_LISTS: Final[Mapping[str, tuple[type, str]]] = {
    "thresholds": (float, "numbers"),
    "cuts": (int, "whole numbers"),
    "exits": (int, "whole numbers"),
    "codecs": (str, "names"),
}
_SINGLES: Final[Mapping[str, type]] = {
    "min_partitions": int,
    "max_partitions": int,
    "exits_per_tier": int,
    "tier_order": str,
    "truncation": bool,
    "per_exit_thresholds": bool,
}


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
    texts = {"minimize": minimize, "maximize": maximize, "subject_to": subject_to}
    hints: dict[str, Any] = {}
    if path is not None:
        root = read_yaml(path, "problem")
        for key, given in texts.items():
            value = root.get(key, object, [])
            items = value if isinstance(value, list) else [value]
            if not all(isinstance(item, str) for item in items):
                raise ConfigError(f"{root.at(key)}: a text or a list of texts is needed here, but got {value!r:.60}")
            texts[key] = (*items, *given)
        if root.has("arrival_rate") and arrival_rate is None:
            arrival_rate = root.get("arrival_rate", float)
        if root.has("codec_tolerance"):
            told = root.get("codec_tolerance", float)
            codec_tolerance = told if codec_tolerance is None else codec_tolerance
        if root.has("hints"):
            hints = read_hints(root.section("hints"), topology)
        if root.has("criterion"):
            named = root.get("criterion", str)
            choice(f"{root.at('criterion')}: a criterion", named, CRITERIA, error=ConfigError)
            criterion = criterion or named
        root.done()
    bounds = [parse_constraint(text) for text in texts["subject_to"]]
    bounds += [] if arrival_rate is None else [utilization(arrival_rate) <= 1]
    return Stated(
        minimize=tuple(map(load_metric, texts["minimize"])),
        maximize=tuple(map(load_metric, texts["maximize"])),
        subject_to=tuple(bounds),
        hints=hints,
        codec_tolerance=codec_tolerance,
        criterion=criterion,
    )


def read_hints(section: Section, topology: Topology) -> dict[str, Any]:
    """Return the hints of a section as fields of ``SearchSpace``; ConfigError names the place of what is wrong."""
    hints: dict[str, Any] = {key: section.get(key, kind) for key, kind in _SINGLES.items() if section.has(key)}
    for key, (kind, words) in _LISTS.items():
        if section.has(key):
            items = section.get(key, list)
            if not all(type(item) in (kind, int) if kind is float else type(item) is kind for item in items):
                raise ConfigError(f"{section.at(key)}: a list of {words} is needed here, but got {items!r:.60}")
            hints[key] = tuple(kind(item) for item in items)
    if section.has("tiers"):
        hints["tiers"] = _tiers(section, "tiers", section.get("tiers", object), topology)
    if section.has("block_tiers"):
        blocks = section.get("block_tiers", dict)
        if not all(type(block) is int for block in blocks):
            raise ConfigError(f"{section.at('block_tiers')}: blocks are numbered from 1, but got {list(blocks)!r:.50}")
        hints["block_tiers"] = {b: _tiers(section, f"block_tiers.{b}", t, topology) for b, t in blocks.items()}
    section.done()
    return hints


def _tiers(section: Section, key: str, value: object, topology: Topology) -> tuple[int, ...]:
    """The indices of one or several tiers."""
    items = value if isinstance(value, list) else [value]
    try:
        return tuple(topology.tier_index(str(item)) for item in items)
    except InvalidValue as error:
        raise ConfigError(f"{section.at(key)}: {error}") from None
