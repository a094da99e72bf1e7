"""Bandwidth over time, for links whose rate is not constant."""

from __future__ import annotations

import csv
import math
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

from portend.config import read_text
from portend.errors import ConfigError, InvalidValue, choice, law

__all__ = ["BandwidthTrace", "load_trace", "trace_from"]

_PACKET_BITS: Final = 8 * 1500  # of Mahimahi's traces (mm-link(1): an MTU-sized packet, 1,500 bytes)
_TIMES: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
_PREFIXES: Final = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_RATES: Final = {
    **{f"{prefix}bit/s": scale for prefix, scale in _PREFIXES.items()},
    **{f"{prefix}B/s": 8 * scale for prefix, scale in _PREFIXES.items()},
}
_UNITS: Final = {"time": _TIMES, "bandwidth": _RATES}

_TIME_UNIT: Final = re.compile(
    r"(?<![a-z])(?:(ns)|(us|µs)|(ms|msecs?|millis|milliseconds?)|(s|secs?|seconds?)|(min|minutes?))(?![a-z])", re.I
)
_RATE_UNIT: Final = re.compile(
    r"(?<![A-Za-z])([kKmMgG]?)(?:(bits?(?:/s|ps|[ _]per[ _]s(?:ec(?:ond)?)?)|bps|b/s)"
    r"|(Bps|B/s|[Bb]ytes?(?:/s|[ _]per[ _]s(?:ec(?:ond)?)?)))(?![A-Za-z])"
)
_TIME_NAME: Final = re.compile(r"time|timestamp|elapsed|epoch|seconds|^t(?![a-z])", re.I)
_RATE_NAME: Final = re.compile(r"bandwidth|throughput|goodput|rate|speed|down|(?<![a-z])bw(?![a-z])", re.I)

_Lines = list[tuple[str, str]]
"""Where a line is, and what it says."""


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
    lines = [
        (f"{path}:{number}", line)
        for number, text in enumerate(read_text(path).splitlines(), 1)
        if (line := text.partition("#")[0].strip())
    ]
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


def _pairs(lines: _Lines) -> _Rows:
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


def _table(lines: _Lines, time: str, bandwidth: str) -> _Rows:
    """The rows of a table with a header, separated by commas, semicolons, tabs or spaces."""
    place, header = lines[0]
    mark = max(",;\t", key=header.count)
    try:
        cells = [next(csv.reader([line], delimiter=mark)) if mark in header else line.split() for _, line in lines]
    except csv.Error as error:
        raise ConfigError(f"{place}: this is no table of times and bandwidths ({error})") from None
    names = [name.strip() for name in cells[0]]
    at, scale = zip(
        *(
            _column(place, names, what, name, unit, asked)
            for what, name, unit, asked in (
                ("time", _TIME_NAME, _time_unit, time),
                ("bandwidth", _RATE_NAME, _rate_unit, bandwidth),
            )
        ),
        strict=True,
    )
    rows = []
    for (where, line), row in zip(lines[1:], cells[1:], strict=True):
        try:
            if len(row) != len(names):
                raise ValueError
            first, second = (float(row[column]) for column in at)
        except ValueError:
            raise ConfigError(
                f"{where}: a row has {len(names)} values, numbers for {names[at[0]]!r} and {names[at[1]]!r}, but got "
                f"{line[:60]!r}"
            ) from None
        rows.append((where, first * scale[0], second * scale[1]))
    return rows


def _column(
    place: str, names: list[str], what: str, known: re.Pattern[str], unit: Callable[[str], str], asked: str
) -> tuple[int, float]:
    """The number of the column of times, or of bandwidths, and what its unit is worth."""
    found = [number for number, name in enumerate(names) if known.search(name)] or [
        number for number, name in enumerate(names) if unit(name)
    ]
    if len(found) != 1:
        has = " and ".join(repr(names[number]) for number in found) or "none"
        raise ConfigError(
            f"{place}: a table has one column of {what}, called so, but of {', '.join(names)} these are: {has}"
        )
    stated = unit(names[found[0]])
    if stated and asked and _UNITS[what][stated] != _UNITS[what][asked]:
        raise ConfigError(f"{place}: the unit of {names[found[0]]!r} is {stated}, but {what}={asked} was asked for")
    if not (stated or asked):
        raise ConfigError(
            f"{place}: the unit of {names[found[0]]!r} is not said; write it into the header, such as "
            f"'{what} ({'ms' if what == 'time' else 'kbit/s'})', or say {what}=UNIT after the file's name "
            f"({', '.join(_UNITS[what])})"
        )
    return found[0], _UNITS[what][stated or asked]


def _time_unit(name: str) -> str:
    match = _TIME_UNIT.search(name)
    return "" if match is None or match.lastindex is None else ("ns", "us", "ms", "s", "min")[match.lastindex - 1]


def _rate_unit(name: str) -> str:
    match = _RATE_UNIT.search(name)
    if match is None:
        return ""
    prefix = {"K": "k", "m": "M", "g": "G"}.get(match[1], match[1])
    return f"{prefix}{'bit/s' if match[2] else 'B/s'}"


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


def _deliveries(lines: _Lines) -> tuple[list[float], list[float], float]:
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
