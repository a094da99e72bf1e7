"""YAML files to values. Every error names the file and the place in it.

Quantities carry their unit (``bandwidth: 10 Mbit/s``); unknown keys are refused with a suggestion.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml

from portend.errors import ConfigError, InvalidValue
from portend.topology import Link, Tier, Topology
from portend.units import Dimension, parse

__all__ = ["Section", "load_topology", "read_yaml"]

_T = TypeVar("_T")
_REQUIRED: Any = object()


def read_yaml(path: str | Path) -> Section:
    """Return the mapping in a YAML file; ConfigError if there is none."""
    try:
        document = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}; check the name") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    return Section(document, str(path))


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, for which 5e-4 is a number, as in YAML 1.2 (in 1.1 it lacks a dot and is a string)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


class Section:
    """A mapping of a YAML file that knows its place; ``done`` refuses keys that nobody asked for."""

    def __init__(self, values: Any, place: str) -> None:
        if not isinstance(values, Mapping):
            raise ConfigError(f"{place}: a mapping of keys to values is needed here, but got {_shown(values)}")
        self.place = place
        self._values = values
        self._asked: set[str] = set()

    def at(self, key: str) -> str:
        return f"{self.place}: {key}" if ": " not in self.place else f"{self.place}.{key}"

    def has(self, key: str) -> bool:
        self._asked.add(key)
        return key in self._values

    def get(self, key: str, kind: type[_T], default: _T | None = _REQUIRED) -> _T:
        """Return the value of ``key``, which must be of ``kind`` (a whole number counts as a float)."""
        self._asked.add(key)
        value = self._values.get(key, default)
        if value is _REQUIRED:
            near = difflib.get_close_matches(key, map(str, self._values), n=1)
            hint = f"; did you mean {key!r} where it says {near[0]!r}?" if near else ""
            raise ConfigError(f"{self.place}: {key} is missing{hint}")
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        wrong_bool = isinstance(value, bool) and kind not in (bool, object)
        if value is not default and (not isinstance(value, kind) or wrong_bool):
            raise ConfigError(f"{self.at(key)}: a {_KIND_NAMES[kind]} is needed here, but got {_shown(value)}")
        return cast(_T, value)

    def quantity(self, key: str, dimension: Dimension, default: float = _REQUIRED) -> float:
        """Return a quantity with unit, in the SI unit of its dimension."""
        if default is not _REQUIRED and not self.has(key):
            return default
        value = self.get(key, object)
        try:
            return parse(cast(str, value), dimension)
        except InvalidValue as error:
            raise ConfigError(f"{self.at(key)}: {error}") from None

    def section(self, key: str) -> Section:
        return Section(self.get(key, object), self.at(key))

    def sections(self, key: str) -> Iterator[Section]:
        for index, item in enumerate(self.get(key, list)):
            yield Section(item, f"{self.at(key)}[{index}]")

    def done(self) -> None:
        """Refuse the keys that were not asked for."""
        for key in self._values:
            if key not in self._asked:
                near = difflib.get_close_matches(str(key), self._asked, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"the keys here are {', '.join(sorted(self._asked))}"
                raise ConfigError(f"{self.at(str(key))}: this key is unknown; {hint}")


_KIND_NAMES: dict[type, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    list: "list",
    dict: "mapping",
}


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:60]


def load_topology(path: str | Path) -> Topology:
    """Return the topology in a YAML file (see ``configs/topologies``).

    Raises:
        ConfigError: the file, the place in it, what is wrong there, and the remedy.
    """
    root = read_yaml(path)
    tiers = tuple(_tier(section) for section in root.sections("tiers"))
    links = tuple(_link(section) for section in root.sections("links")) if root.has("links") else ()
    names = [tier.name for tier in tiers]
    ends = {}
    for role in ("source", "destination"):
        name = root.get(role, str, names[0] if names else "")
        if names and name not in names:
            raise ConfigError(f"{root.at(role)}: no tier is called {name!r}; the tiers are {', '.join(names)}")
        ends[role] = names.index(name) if names else 0
    ingest = root.get("ingest", str, "in_process")
    name = root.get("name", str, Path(path).stem)
    root.done()
    return _made(root, lambda: Topology(name=name, tiers=tiers, links=links, ingest=cast(Any, ingest), **ends))


def _tier(section: Section) -> Tier:
    values: dict[str, Any] = {
        "name": section.get("name", str),
        "device": section.get("device", str, "local"),
        "slowdown": section.get("slowdown", float, 1.0),
        "host": section.get("host", str, "127.0.0.1"),
    }
    if section.has("memory"):
        values["memory_bytes"] = section.quantity("memory", "size")
    if section.has("power"):
        values["power_w"] = section.quantity("power", "power")
    if section.has("price"):
        values["price_usd_per_hour"] = section.quantity("price", "price")
    if section.has("cores"):
        values["cores"] = tuple(section.get("cores", list))
        if not all(type(core) is int for core in values["cores"]):
            raise ConfigError(f"{section.at('cores')}: a list of whole numbers is needed here")
    if section.has("cpu_quota"):
        values["cpu_quota"] = section.get("cpu_quota", float)
    section.done()
    return _made(section, lambda: Tier(**values))


def _link(section: Section) -> Link:
    values: dict[str, Any] = {
        "bandwidth_bps": section.quantity("bandwidth", "bandwidth"),
        "propagation_delay_s": section.quantity("propagation_delay", "time"),
        "mtu_bytes": int(section.quantity("mtu", "size", 1500)),
        "header_bytes": int(section.quantity("headers", "size", 52)),
    }
    section.done()
    return _made(section, lambda: Link(**values))


def _made(section: Section, make: Callable[[], _T]) -> _T:
    try:
        return make()
    except InvalidValue as error:
        raise ConfigError(f"{section.place}: {error}") from None
