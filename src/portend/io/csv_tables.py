"""Tables in text files (CSV) whose header names the columns and their units. Errors name file and line."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from portend.errors import ConfigError
from portend.io.forms import read_text

__all__ = ["RATES", "TIMES", "Lines", "Row", "Table", "rate_unit", "table_of", "text_lines", "time_unit"]

TIMES: Final[Mapping[str, float]] = MappingProxyType(
    {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
)
"""Seconds by unit."""
_PREFIXES: Final = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
RATES: Final[Mapping[str, float]] = MappingProxyType(
    {f"{prefix}bit/s": scale for prefix, scale in _PREFIXES.items()}
    | {f"{prefix}B/s": 8 * scale for prefix, scale in _PREFIXES.items()}
)
"""bit/s by unit."""

_TIME_UNIT: Final = re.compile(
    r"(?<![a-z])(?:(ns)|(us|µs)|(ms|msecs?|millis|milliseconds?)|(s|secs?|seconds?)|(min|minutes?))(?![a-z])", re.I
)
_RATE_UNIT: Final = re.compile(
    r"(?<![A-Za-z])([kKmMgG]?)(?:(bits?(?:/s|ps|[ _]per[ _]s(?:ec(?:ond)?)?)|bps|b/s)"
    r"|(Bps|B/s|[Bb]ytes?(?:/s|[ _]per[ _]s(?:ec(?:ond)?)?)))(?![A-Za-z])"
)

Lines = list[tuple[str, str]]
"""Where a line is (``FILE:NUMBER``), and what it says."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table: where it is, and its cells by column; a cell may be empty."""

    place: str
    cells: Mapping[str, str]

    def number(self, column: str) -> float:
        """Return the number in a cell; ConfigError if there is none."""
        try:
            return float(self.cells[column])
        except ValueError:
            raise ConfigError(f"{self.place}: {column} is a number, but got {self.cells[column][:60]!r}") from None


@dataclass(frozen=True, slots=True)
class Table:
    """A header and rows.

    Attributes:
        place: where the header is; columns: their names, each once.
    """

    place: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def text_lines(path: str | Path) -> Lines:
    """Return the lines of a text file that say something: none that are empty, nothing after a ``#``.

    Raises:
        ConfigError: the file cannot be read, or is no text.
    """
    return [
        (f"{path}:{number}", line)
        for number, text in enumerate(read_text(path).splitlines(), 1)
        if (line := text.partition("#")[0].strip())
    ]


def table_of(lines: Lines) -> Table:
    """Return the table that lines hold, separated by commas, semicolons, tabs or spaces, whichever the header has.

    Raises:
        ConfigError: there is no header, a column is there twice, or a row has another number of cells.
    """
    place, header = lines[0]
    mark = max(",;\t", key=header.count)
    names, *cells = [_cells(where, line, mark if mark in header else "") for where, line in lines]
    if len(set(names)) < len(names) or not all(names):
        raise ConfigError(f"{place}: each column has a name of its own, but the header is {header[:80]!r}")
    for (where, line), row in zip(lines[1:], cells, strict=True):
        if len(row) != len(names):
            raise ConfigError(
                f"{where}: a row has {len(names)} values, as the header has columns, but {line[:60]!r} has {len(row)}"
            )
    rows = tuple(
        Row(where, dict(zip(names, row, strict=True))) for (where, _), row in zip(lines[1:], cells, strict=True)
    )
    return Table(place, tuple(names), rows)


def _cells(place: str, line: str, mark: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=mark))] if mark else line.split()
    except csv.Error as error:
        raise ConfigError(f"{place}: this is no row of a table ({error})") from None


def time_unit(name: str) -> str:
    """Return the unit of time (of ``TIMES``) in a column's name, such as ``time (ms)`` or ``t_s``; empty if none."""
    match = _TIME_UNIT.search(name)
    return "" if match is None or match.lastindex is None else ("ns", "us", "ms", "s", "min")[match.lastindex - 1]


def rate_unit(name: str) -> str:
    """Return the unit of a rate (of ``RATES``) in a column's name, such as ``MB/s`` or ``[kbit/s]``; empty if none."""
    match = _RATE_UNIT.search(name)
    if match is None:
        return ""
    prefix = {"K": "k", "m": "M", "g": "G"}.get(match[1], match[1])
    return f"{prefix}{'bit/s' if match[2] else 'B/s'}"
