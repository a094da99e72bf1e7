"""Quantities with units: text at the edge, SI numbers (s, bytes, bit/s, W, USD) inside.

``parse("10 Mbit/s", "bandwidth")`` gives ``1e7``. A bare number is refused, because nobody can
tell which unit was meant; only 0 needs none.
"""

from __future__ import annotations

import math
import re
from typing import Final, Literal

from portend.errors import InvalidValue, choice

__all__ = ["Dimension", "format_bandwidth", "format_bytes", "format_time", "parse", "parse_share", "signed"]

Dimension = Literal["time", "bandwidth", "size", "power", "price"]

_BITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_UNITS: Final[dict[str, dict[str, float]]] = {
    "time": {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0},
    "bandwidth": {
        **{f"{prefix}bit/s": scale for prefix, scale in _BITS.items()},
        **{f"{prefix}B/s": 8 * scale for prefix, scale in _BITS.items()},
    },
    "size": {
        **{f"{prefix}B": scale for prefix, scale in _BITS.items()},
        "KiB": 1024.0,
        "MiB": 1024.0**2,
        "GiB": 1024.0**3,
    },
    "power": {"mW": 1e-3, "W": 1.0, "kW": 1e3},
    "price": {"USD/h": 1.0},
}
_EXAMPLES: Final = {
    "time": "20 ms",
    "bandwidth": "10 Mbit/s",
    "size": "1500 B",
    "power": "5 W",
    "price": "0.10 USD/h",
}
_SHARE: Final = re.compile(r"\s*\+?((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(%?)\s*")
_QUANTITY: Final = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(\S*)\s*")


def parse(text: str | float, dimension: Dimension) -> float:
    """Return ``text`` in the SI unit of ``dimension`` (s, bit/s, bytes, W, USD/h).

    Raises:
        InvalidValue: unknown or missing unit, or a number that is negative or not finite.
    """
    choice("a dimension", dimension, _UNITS)
    units = _UNITS[dimension]
    hint = f"write it like '{_EXAMPLES[dimension]}' (units: {', '.join(units)})"
    match = _QUANTITY.fullmatch(str(text))
    if match is None:
        raise InvalidValue(f"a {dimension} is a number and a unit, but got {text!r}; {hint}")
    number, unit = float(match[1]), match[2]
    if not math.isfinite(number) or number < 0:
        raise InvalidValue(f"a {dimension} is finite and not negative, but got {text!r}; {hint}")
    if unit == "" and number == 0:
        return 0.0
    if unit not in units:
        problem = f"unknown unit {unit!r}" if unit else "no unit"
        raise InvalidValue(f"a {dimension} needs one of its units, but {text!r} has {problem}; {hint}")
    return number * units[unit]


def parse_share(text: str | float, least: float = 0.0, most: float = 1.0) -> float:
    """Return a share of 1, written as ``0.95``, ``95%`` or ``95 %``.

    Raises:
        InvalidValue: no such text, or a share that is not within ``least`` to ``most``.
    """
    match = _SHARE.fullmatch(str(text))
    share = math.nan if match is None else float(match[1]) / (100 if match[2] else 1)
    if not least <= share <= most:
        hint = f"; {match[1]} % is written {match[1]}%" if match and not match[2] and 1 < float(match[1]) <= 100 else ""
        raise InvalidValue(
            f"a share within {least:g} to {most:g}, such as {0.5 + most / 2:g} or {50 + 50 * most:g}%, is needed here, "
            f"but got {text!r}{hint}"
        )
    return share


def _scaled(value: float, steps: tuple[tuple[float, str], ...]) -> str:
    if not math.isfinite(value):
        return str(value)
    scale, unit = next((step for step in steps if abs(value) >= step[0]), steps[-1])
    return f"{value / scale:.4g} {unit}"


def format_time(seconds: float) -> str:
    """Return seconds as text with three or four digits, such as ``12.5 ms``."""
    return _scaled(seconds, ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")))


def format_bandwidth(bits_per_second: float) -> str:
    """Return bit/s as text, such as ``10 Mbit/s``."""
    return _scaled(bits_per_second, ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s"), (1, "bit/s")))


def format_bytes(count: float) -> str:
    """Return bytes as text in decimal units, such as ``65.5 kB``."""
    return _scaled(count, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")))


def signed(value: float, digits: int) -> str:
    """Return a number with its sign, such as ``−0.012``; ``+0.00`` where nothing is left of it."""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")
