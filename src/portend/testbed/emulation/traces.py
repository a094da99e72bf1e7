"""Bandwidth over time, for links whose rate is not constant."""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

from portend.errors import ConfigError, InvalidValue, choice, law
from portend.io.csv_tables import RATES, TIMES, Lines, Table, rate_unit, table_of, text_lines, time_unit
from portend.io.files import BINARY, kind_of, wrong_file

__all__ = ["BandwidthTrace", "load_trace", "trace_from"]

_PACKET_BITS: Final = 8 * 1500  # of Mahimahi's traces (mm-link(1): an MTU-sized packet, 1,500 bytes)
_UNITS: Final = {"time": TIMES, "bandwidth": RATES}

_TIME_NAME: Final = re.compile(r"time|timestamp|elapsed|epoch|seconds|^t(?![a-z])", re.I)
_RATE_NAME: Final = re.compile(r"bandwidth|throughput|goodput|rate|speed|down|(?<![a-z])bw(?![a-z])", re.I)


@dataclass(frozen=True, kw_only=True, slots=True)
class BandwidthTrace:
    """A rate that changes in steps and begins anew after ``period_s``.

    Attributes:
        name: what reports call it.
        times_s: when each step begins, from 0 on; the last one ends at the period's end.
        bandwidths_bps: bit/s on the wire in each step; 0 is an outage.
        period_s: length of the whole trace.
    """

    name: str
    times_s: tuple[float, ...]
    bandwidths_bps: tuple[float, ...]
    period_s: float
    _bits: tuple[float, ...] = field(init=False, repr=False, compare=False)  # that have passed when each step begins

    def __post_init__(self) -> None:
        law(
            len(self.times_s) == len(self.bandwidths_bps) > 0,
            f"each step of a trace has a time and a bandwidth, but got {len(self.times_s)} and "
            f"{len(self.bandwidths_bps)}",
        )
        ends = (*self.times_s, self.period_s)
        law(self.times_s[0] == 0, f"a trace begins at 0 s, but got {self.times_s[0]} s")
        for before, after in pairwise(ends):
            law(
                before < after < math.inf,
                f"the times of a trace increase and its period ends them, but {after} s follows {before} s",
            )
        for bandwidth in self.bandwidths_bps:
            law(
                0 <= bandwidth < math.inf,
                f"a trace's bandwidths are not negative and finite, but got {bandwidth} bit/s",
            )
        law(max(self.bandwidths_bps) > 0, "something must get through in a trace, but all of its bandwidths are 0")
        bits = [0.0]
        for bandwidth, (begin, end) in zip(self.bandwidths_bps, pairwise(ends), strict=True):
            bits.append(bits[-1] + bandwidth * (end - begin))
        object.__setattr__(self, "_bits", tuple(bits))

    @property
    def mean_bps(self) -> float:
        """Bit/s over the whole period."""
        return self._bits[-1] / self.period_s

    def finish_s(self, start_s: float, n_bytes: float) -> float:
        """Return when the last of ``n_bytes`` has passed of which the first begins at ``start_s`` >= 0.

        The least t with the integral of the bandwidth from start to t equal to 8 ``n_bytes``.
        """
        if n_bytes <= 0:
            return start_s
        before, inside = divmod(start_s, self.period_s)
        step = bisect_right(self.times_s, inside) - 1
        bits = self._bits[step] + self.bandwidths_bps[step] * (inside - self.times_s[step]) + 8 * n_bytes
        rounds, rest = divmod(bits, self._bits[-1])
        if rest == 0:
            rounds, rest = rounds - 1, self._bits[-1]
        step = bisect_left(self._bits, rest) - 1
        return (
            (before + rounds) * self.period_s
            + self.times_s[step]
            + (rest - self._bits[step]) / self.bandwidths_bps[step]
        )


def load_trace(path: str | Path, *, time: str = "", bandwidth: str = "") -> BandwidthTrace:
    """Return the trace in a text file, in one of the three forms of docs/testbed.md; its content tells which.

    * In each line a time in seconds and a throughput in Mbit/s. Time counts from the first line; the last throughput
      holds as long as that of the line before it.
    * The same as a table (CSV), whose header names the columns and their units.
    * Mahimahi's: in each line the millisecond at which a packet of 1,500 bytes gets through, from 0 on.

    Then the trace begins anew. Empty lines and what follows a ``#`` do not count.

    Args:
        time, bandwidth: units of a table whose header has none, such as ``ms`` and ``kbit/s``.

    Raises:
        ConfigError: the file, the line, and what is wrong there.
    """
    if kind_of(path) not in (None, "trace", BINARY):  # of what is nearly a text, the line is told
        raise ConfigError(wrong_file(path, "trace"))
    lines = text_lines(path)
    first = lines[0][1] if lines else ""
    if not re.match(r"[-+.\d]|(nan|inf)\b", first, re.I) and first:
        times_s, bandwidths_bps, period_s = _spans(path, _table(lines, time, bandwidth))
    elif time or bandwidth:
        raise ConfigError(f"{path} has no header, so its units are given: s and Mbit/s, or Mahimahi's milliseconds")
    elif lines and all(line.isascii() and line.isdecimal() for _, line in lines):
        times_s, bandwidths_bps, period_s = _deliveries(lines)
    else:
        times_s, bandwidths_bps, period_s = _spans(path, _pairs(lines))
    try:
        return BandwidthTrace(
            name=Path(path).stem, times_s=tuple(times_s), bandwidths_bps=tuple(bandwidths_bps), period_s=period_s
        )
    except InvalidValue as error:
        raise ConfigError(f"{path}: {error}") from None


def trace_from(text: str) -> BandwidthTrace:
    """Return the trace of ``FILE[:time=UNIT][:bandwidth=UNIT]``, as ``load_trace``."""
    path, units = text, {}
    while match := re.fullmatch(r"(.+):(time|bandwidth)=([^:]*)", path):
        path, name, unit = match.groups()
        choice(f"{text}: the unit of {name}", unit, _UNITS[name], error=ConfigError)
        units[name] = unit
    return load_trace(path, **units)


_Rows = list[tuple[str, float, float]]
"""Where a row is, its time in seconds and its bandwidth in bit/s."""


def _pairs(lines: Lines) -> _Rows:
    rows = []
    for place, line in lines:
        try:
            time_s, mbit_per_s = map(float, re.split(r"\s*[,;\s]\s*", line))
        except ValueError:
            raise ConfigError(
                f"{place}: a line is a time in seconds and a throughput in Mbit/s, but got {line[:60]!r}"
            ) from None
        rows.append((place, time_s, 1e6 * mbit_per_s))
    return rows


def _table(lines: Lines, time: str, bandwidth: str) -> _Rows:
    table = table_of(lines)
    (times, time_s), (rates, rate_bps) = (
        _column(table, "time", _TIME_NAME, time_unit, time),
        _column(table, "bandwidth", _RATE_NAME, rate_unit, bandwidth),
    )
    return [(row.place, time_s * row.number(times), rate_bps * row.number(rates)) for row in table.rows]


def _column(
    table: Table, what: str, known: re.Pattern[str], unit: Callable[[str], str], asked: str
) -> tuple[str, float]:
    """The column of times, or of bandwidths, and what its unit is worth."""
    found = [name for name in table.columns if known.search(name)] or [name for name in table.columns if unit(name)]
    if len(found) != 1:
        raise ConfigError(
            f"{table.place}: a table has one column of {what}, called so, but of {', '.join(table.columns)} these are: "
            f"{' and '.join(map(repr, found)) or 'none'}"
        )
    name, stated = found[0], unit(found[0])
    if stated and asked and _UNITS[what][stated] != _UNITS[what][asked]:
        raise ConfigError(f"{table.place}: the unit of {name!r} is {stated}, but {what}={asked} was asked for")
    if not (stated or asked):
        raise ConfigError(
            f"{table.place}: the unit of {name!r} is not said; write it into the header, such as "
            f"'{what} ({'ms' if what == 'time' else 'kbit/s'})', or say {what}=UNIT after the file's name "
            f"({', '.join(_UNITS[what])})"
        )
    return name, _UNITS[what][stated or asked]


def _spans(path: str | Path, rows: _Rows) -> tuple[list[float], list[float], float]:
    """Begins (from 0 on), bandwidths, and the period, of which the last step is as long as the one before it."""
    if len(rows) < 2:
        raise ConfigError(f"{path}: a trace has two lines or more, but got {len(rows)}")
    before = -math.inf
    for place, time_s, bandwidth_bps in rows:
        if not before < time_s < math.inf:
            raise ConfigError(f"{place}: times increase and are finite, but {time_s:.10g} s follows {before:.10g} s")
        if not 0 <= bandwidth_bps < math.inf:
            raise ConfigError(f"{place}: a bandwidth is not negative and finite, but got {bandwidth_bps:.10g} bit/s")
        before = time_s
    times_s = [time_s - rows[0][1] for _, time_s, _ in rows]
    return times_s, [bandwidth_bps for *_, bandwidth_bps in rows], 2 * times_s[-1] - times_s[-2]


def _deliveries(lines: Lines) -> tuple[list[float], list[float], float]:
    """Packets by millisecond as steps: between two of them the rate at which the second gets through just then.

    The packets of the 0th millisecond come at the end of the period, where it begins anew. Steps of one rate are one.
    """
    stamps = [(place, int(line)) for place, line in lines]
    for (_, before), (place, after) in pairwise(stamps):
        if after < before:
            raise ConfigError(f"{place}: the milliseconds of packets do not decrease, but {after} follows {before}")
    last = stamps[-1][1]
    if not 0 < last < 1 << 53:
        raise ConfigError(
            f"{stamps[-1][0]}: the last packet ends the trace, at a millisecond from 1 on, but got {last}"
        )
    packets = sorted(Counter(at or last for _, at in stamps).items())
    steps: list[tuple[float, float]] = []
    for (before, _), (at, count) in pairwise([(0, 0), *packets]):
        rate = 1e3 * _PACKET_BITS * count / (at - before)
        if not steps or steps[-1][1] != rate:
            steps.append((1e-3 * before, rate))
    return [begin for begin, _ in steps], [rate for _, rate in steps], 1e-3 * last
