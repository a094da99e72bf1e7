"""What running agents do at the moment, read from their Prometheus pages: tiers, links and exits as tables.

A page is text from the network: its size is capped, and what is not Prometheus' format is an error of that agent alone.
Rates and times are those between two readings; a counter that fell began anew.
"""

from __future__ import annotations

import http.client
import math
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from rich.console import Group, RenderableType
from rich.text import Text

from portend.address import read_address
from portend.analysis.fitted import FittedTable
from portend.errors import DeploymentError
from portend.units import format_bandwidth, format_bytes

__all__ = ["Histogram", "Reading", "address", "fetch", "read", "tables"]

_LARGEST_PAGE: Final = 4 << 20
_PATIENCE_S: Final = 2.0
_TERMS: Final = ("encode", "transfer", "decode", "compute")
_QUEUE: Final = ("portend_waiting_samples", "portend_compute_queue")
_CREDITS: Final = ("portend_credits",)
_BYTES: Final = {"portend_sent_bytes_total": "sent", "portend_received_bytes_total": "received"}


@dataclass(frozen=True, slots=True)
class Histogram:
    """Observations so far: how many, their sum, and how many were at most so large, by bound."""

    count: float = 0.0
    total: float = 0.0
    below: Mapping[float, float] = field(default_factory=dict)

    def since(self, before: Histogram) -> Histogram:
        """Those after an earlier reading; all, if it began anew."""
        if self.count < before.count:
            return self
        below = {bound: count - before.below.get(bound, 0.0) for bound, count in self.below.items()}
        return Histogram(self.count - before.count, self.total - before.total, below)

    @property
    def mean(self) -> float:
        """NaN where there is none."""
        return self.total / self.count if self.count else math.nan

    def quantile(self, q: float) -> float:
        """What a share ``q`` lies below, on a line within its bucket (PromQL's histogram_quantile); NaN if unknown."""
        wanted = q * self.count
        bounds = sorted((0.0, *self.below))
        for low, high in pairwise(bounds):
            under, over = self.below.get(low, 0.0), self.below[high]
            if self.count and over >= wanted and over > under:
                return low if math.isinf(high) else low + (high - low) * (wanted - under) / (over - under)
        return math.nan


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """One agent's page, at a moment in seconds.

    Attributes:
        exits, dropped: counts by exit, by reason; bytes: by direction and peer ("" where it is not told).
        terms: seconds of encode, transfer, decode, compute; queue, credits: None where the agent has none.
    """

    tier: str
    at_s: float
    exits: Mapping[str, float]
    dropped: Mapping[str, float]
    bytes: Mapping[tuple[str, str], float]
    terms: Mapping[str, Histogram]
    queue: float | None
    credits: float | None


def address(text: str) -> tuple[str, str]:
    """Return tier and address of ``TIER=URL``, ``URL`` or ``HOST:PORT``; the tier is "" where it is not given."""
    head, equals, rest = text.partition("=")
    tier, where = (head, rest) if equals and "/" not in head else ("", text)
    if "://" not in where:
        where = f"http://{read_address(where, least_port=1)}/metrics"
    if not where.startswith(("http://", "https://")):
        raise DeploymentError(f"an agent's page is at http://HOST:PORT/metrics, but got {text!r}")
    return tier, where


def fetch(url: str) -> str:
    """Return the page at an address.

    Raises:
        DeploymentError: nobody answers in time, or with something else than a page of at most 4 MiB.
    """
    try:
        with urllib.request.urlopen(url, timeout=_PATIENCE_S) as answer:
            page: bytes = answer.read(_LARGEST_PAGE + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        said = reason.strerror if isinstance(reason, OSError) and reason.strerror else reason
        raise DeploymentError(f"no answer ({said})") from None
    if len(page) > _LARGEST_PAGE:
        raise DeploymentError(f"a page has at most {format_bytes(_LARGEST_PAGE)}, but this one is larger")
    return page.decode(errors="replace")


def read(page: str, tier: str, at_s: float) -> Reading:
    """Return what the page of a tier's agent says (``service.metrics``).

    Raises:
        DeploymentError: it is not Prometheus' text format.
    """
    try:
        samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise DeploymentError(f"not a Prometheus page ({error})") from None
    own = [sample for sample in samples if sample.name.startswith("portend_")]
    if not own:
        raise DeploymentError("a Prometheus page, but not of an agent")
    crossed: dict[tuple[str, str], float] = {}
    for sample in own:
        if sample.name in _BYTES:
            key = (_BYTES[sample.name], sample.labels.get("to", ""))
            crossed[key] = crossed.get(key, 0.0) + sample.value
    return Reading(
        tier=tier,
        at_s=at_s,
        exits=_by(own, "portend_answers_total", "exit"),
        dropped=_by(own, "portend_dropped_messages_total", "why"),
        bytes=crossed,
        terms=_terms(own),
        queue=_gauge(own, _QUEUE),
        credits=_gauge(own, _CREDITS),
    )


def _by(samples: Sequence[Sample], name: str, label: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for sample in samples:
        if sample.name == name:
            key = sample.labels.get(label, "")
            found[key] = found.get(key, 0.0) + sample.value
    return found


def _gauge(samples: Sequence[Sample], names: Sequence[str]) -> float | None:
    values = [sample.value for sample in samples if sample.name in names]
    return sum(values) if values else None


def _terms(samples: Sequence[Sample]) -> dict[str, Histogram]:
    parts: dict[str, dict[str, float]] = {}
    below: dict[str, dict[float, float]] = {}
    for sample in samples:
        name, _, part = sample.name.rpartition("_")
        if name != "portend_term_seconds":
            continue
        term = sample.labels.get("term", "")
        if part == "bucket":
            bounds = below.setdefault(term, {})
            bound = float(sample.labels["le"])
            bounds[bound] = bounds.get(bound, 0.0) + sample.value
        elif part in ("count", "sum"):
            found = parts.setdefault(term, {"count": 0.0, "sum": 0.0})
            found[part] += sample.value
    return {term: Histogram(found["count"], found["sum"], below.get(term, {})) for term, found in parts.items()}


# -- what is shown ---------------------------------------------------------------------------------


def tables(before: Sequence[Reading | str], after: Sequence[Reading | str], names: Sequence[str]) -> RenderableType:
    """Return tiers, links and exits as they are now and were between two readings of the same agents.

    Args:
        before, after: a reading of each agent, or why there is none; names: what to call an agent without one.
    """
    pairs = [
        (now, then if isinstance(then, Reading) else None)
        for then, now in zip(before, after, strict=True)
        if isinstance(now, Reading)
    ]
    return Group(_tiers(before, after, names), _links(pairs), _exits(pairs))


def _tiers(before: Sequence[Reading | str], after: Sequence[Reading | str], names: Sequence[str]) -> FittedTable:
    table = FittedTable("Tiers (times in ms: mean / p95 since the last look)")
    table.words("tier", "state")
    table.numbers("queue", "credits", "dropped", *_TERMS)
    for name, then, now in zip(names, before, after, strict=True):
        if isinstance(now, str):
            table.add_row(_text(name), _text(now, style="red"))
            continue
        earlier = then.terms if isinstance(then, Reading) else {}
        terms = [now.terms.get(term, Histogram()).since(earlier.get(term, Histogram())) for term in _TERMS]
        dropped = sum(now.dropped.values())
        table.add_row(
            _text(now.tier),
            "up",
            "–" if now.queue is None else f"{now.queue:.0f}",
            "–" if now.credits is None else f"{now.credits:.0f}",
            Text(f"{dropped:.0f}", style="red" if dropped else ""),
            *(f"{1e3 * t.mean:.2f} / {1e3 * t.quantile(0.95):.2f}" if t.count else "–" for t in terms),
        )
    return table


def _links(pairs: Sequence[tuple[Reading, Reading | None]]) -> FittedTable:
    table = FittedTable("Links")
    table.words("tier", "direction", "peer")
    table.numbers("now", "in all")
    for now, then in pairs:
        for (direction, peer), count in sorted(now.bytes.items()):
            rate = _per_s(now, then, lambda reading, key=(direction, peer): reading.bytes.get(key, 0.0))  # type: ignore[misc]
            told = "–" if math.isnan(rate) else format_bandwidth(8 * rate)
            table.add_row(_text(now.tier), _text(direction), _text(peer or "all"), told, format_bytes(count))
    return table


def _exits(pairs: Sequence[tuple[Reading, Reading | None]]) -> FittedTable:
    table = FittedTable("Exits")
    table.words("exit")
    table.numbers("answers", "share", "per second")
    names = sorted({name for now, _ in pairs for name in now.exits}, key=lambda name: (len(name), name))
    counts = {name: sum(now.exits.get(name, 0.0) for now, _ in pairs) for name in names}
    whole = sum(counts.values())
    for name in names:
        rates = [_per_s(now, then, lambda r, key=name: r.exits.get(key, 0.0)) for now, then in pairs]  # type: ignore[misc]
        rate = sum(each for each in rates if not math.isnan(each))
        share = f"{100 * counts[name] / whole:.1f} %" if whole else "–"
        table.add_row(_text(name), f"{counts[name]:.0f}", share, f"{rate:.1f}")
    return table


def _per_s(now: Reading, then: Reading | None, count: Callable[[Reading], float]) -> float:
    """How much a count grew per second; NaN where there is no earlier reading."""
    if then is None or now.at_s <= then.at_s:
        return math.nan
    grown = count(now) - count(then)
    return (grown if grown >= 0 else count(now)) / (now.at_s - then.at_s)


def _text(said: str, style: str = "") -> Text:
    """What an agent says, without control characters and never as markup."""
    return Text("".join(c if c.isprintable() else "·" for c in said)[:60], style=style)
