"""Bandwidth over time, for links whose rate is not constant."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from portend.errors import ConfigError, InvalidValue, law

__all__ = ["BandwidthTrace", "load_trace"]


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


def load_trace(path: str | Path) -> BandwidthTrace:
    """Return the trace in a text file: in each line a time in seconds and a throughput in Mbit/s.

    Time counts from the first line. The last line's throughput holds as long as that of the line before it; then the
    trace begins anew. Empty lines and what follows a ``#`` do not count.

    Raises:
        ConfigError: the file, the line, and what is wrong there.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}; check the name") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error})") from None
    times_s, bandwidths_bps = [], []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            time_s, mbit_per_s = map(float, words)
        except ValueError:
            raise ConfigError(
                f"{path}:{number}: a line is a time in seconds and a throughput in Mbit/s, but got {line[:60]!r}"
            ) from None
        times_s.append(time_s)
        bandwidths_bps.append(1e6 * mbit_per_s)
    if len(times_s) < 2:
        raise ConfigError(f"{path}: a trace has two lines or more, but got {len(times_s)}")
    times_s = [time_s - times_s[0] for time_s in times_s]
    try:
        return BandwidthTrace(
            name=path.stem,
            times_s=tuple(times_s),
            bandwidths_bps=tuple(bandwidths_bps),
            period_s=2 * times_s[-1] - times_s[-2],
        )
    except InvalidValue as error:
        raise ConfigError(f"{path}: {error}") from None
