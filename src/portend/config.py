"""YAML files to values. Every error names the file and the place in it.

Quantities carry their unit (``bandwidth: 10 Mbit/s``); unknown keys are refused with a suggestion.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml

from portend.errors import ConfigError, InvalidValue, nearest
from portend.files import check_yaml, encoding_of
from portend.topology import Link, SlowStart, Tier, Topology, TransferCurve
from portend.units import Dimension, parse

__all__ = ["Section", "load_topology", "read_text", "read_yaml", "topology_yaml"]

_T = TypeVar("_T")
_REQUIRED: Any = object()


def read_text(path: str | Path) -> str:
    """Return the text in a file: UTF-8, or what its byte order mark says, as Windows' programs write it.

    Raises:
        ConfigError: there is no such file, it cannot be read, or it is not text.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}; check the name") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error})") from None
    try:
        text = data.decode(encoding_of(data))
        at = text.find("\0")
        line = 0 if at < 0 else text.count("\n", 0, at) + 1
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
    if line:
        raise ConfigError(f"{path}, line {line}: this is not text in UTF-8; save the file as UTF-8")
    return text


def read_yaml(path: str | Path, kind: str | None = None) -> Section:
    """Return the mapping in a YAML file of a kind (``files.KINDS``); ConfigError if there is none."""
    if kind is not None and (wrong := check_yaml(path, kind)):
        raise ConfigError(wrong)
    try:
        document = yaml.load(read_text(path), _Loader)
    except _WrittenTwiceError as error:
        raise ConfigError(f"{path}, {error}") from None
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ConfigError(f"{path}{line}: this is not YAML ({error.problem})") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    return Section(document, str(path))


class _WrittenTwiceError(Exception):
    """A mapping has a key twice."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which takes the last of equal keys; this one refuses them, as YAML 1.2 does (3.2.1.3).

    And 5e-4 is a number, as in YAML 1.2 (in 1.1 it lacks a dot and is a string).
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                name = "<<" if key.tag.endswith(":merge") else self.construct_object(key)
                line = key.start_mark.line + 1
                if name in lines:
                    raise _WrittenTwiceError(
                        f"line {line}: the key {key.value!r} is there already, in line {lines[name]}; keep one of them"
                    )
                lines[name] = line
        return node


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
            near = nearest(key, map(str, self._values))
            hint = f"; did you mean {key!r} where it says {near!r}?" if near else ""
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
                near = nearest(key, self._asked)
                hint = f"did you mean {near!r}?" if near else f"the keys here are {', '.join(sorted(self._asked))}"
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
    root = read_yaml(path, "topology")
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
    slow_start = _slow_start(root.section("slow_start")) if root.has("slow_start") else None
    name = root.get("name", str, Path(path).stem)
    root.done()
    return _made(
        root,
        lambda: Topology(name=name, tiers=tiers, links=links, ingest=cast(Any, ingest), slow_start=slow_start, **ends),
    )


def _tier(section: Section) -> Tier:
    values: dict[str, Any] = {
        "name": section.get("name", str),
        "device": section.get("device", str, "local"),
        "slowdown": section.get("slowdown", float, 1.0),
        "host": section.get("host", str, "127.0.0.1"),
        "port": section.get("port", int, 7100),
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
        "transfer": _transfer(section.section("transfer")) if section.has("transfer") else None,
    }
    section.done()
    return _made(section, lambda: Link(**values))


def _transfer(section: Section) -> TransferCurve:
    def column(key: str, dimension: Dimension) -> tuple[float, ...]:
        try:
            return tuple(parse(item, dimension) for item in section.get(key, list))
        except InvalidValue as error:
            raise ConfigError(f"{section.at(key)}: {error}") from None

    sizes, warm = column("sizes", "size"), column("warm", "time")
    cold = column("cold", "time") if section.has("cold") else ()
    section.done()
    return _made(section, lambda: TransferCurve(sizes_bytes=sizes, warm_s=warm, cold_s=cold))


def topology_yaml(topology: Topology) -> str:
    """Return a topology as YAML, of which ``load_topology`` makes an equal one."""
    names = [tier.name for tier in topology.tiers]
    document: dict[str, Any] = {
        "name": topology.name,
        "tiers": [_of_tier(tier) for tier in topology.tiers],
        "links": [_of_link(link) for link in topology.links],
        "source": names[topology.source],
        "destination": names[topology.destination],
        "ingest": topology.ingest,
    }
    if (start := topology.slow_start) is not None:
        receive = f"{start.receive_window_bytes} B"
        document["slow_start"] = {"initial_window": start.initial_window, "receive_window": receive}
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)


def _of_tier(tier: Tier) -> dict[str, Any]:
    optional = {
        "memory": None if tier.memory_bytes is None else f"{tier.memory_bytes!r} B",
        "power": None if tier.power_w is None else f"{tier.power_w!r} W",
        "price": None if tier.price_usd_per_hour is None else f"{tier.price_usd_per_hour!r} USD/h",
        "cores": list(tier.cores) or None,
        "cpu_quota": tier.cpu_quota,
    }
    fixed = {"name": tier.name, "device": tier.device, "slowdown": tier.slowdown, "host": tier.host, "port": tier.port}
    return fixed | {key: value for key, value in optional.items() if value is not None}


def _of_link(link: Link) -> dict[str, Any]:
    values: dict[str, Any] = {
        "bandwidth": f"{link.bandwidth_bps!r} bit/s",
        "propagation_delay": f"{link.propagation_delay_s!r} s",
        "mtu": f"{link.mtu_bytes} B",
        "headers": f"{link.header_bytes} B",
    }
    if link.transfer is not None:
        values["transfer"] = {
            "sizes": [f"{size!r} B" for size in link.transfer.sizes_bytes],
            "warm": [f"{seconds!r} s" for seconds in link.transfer.warm_s],
        }
        if link.transfer.cold_s:
            values["transfer"]["cold"] = [f"{seconds!r} s" for seconds in link.transfer.cold_s]
    return values


def _slow_start(section: Section) -> SlowStart:
    values: dict[str, int] = {}
    if section.has("initial_window"):
        values["initial_window"] = section.get("initial_window", int)
    if section.has("receive_window"):
        values["receive_window_bytes"] = int(section.quantity("receive_window", "size"))
    section.done()
    return _made(section, lambda: SlowStart(**values))


def _made(section: Section, make: Callable[[], _T]) -> _T:
    try:
        return make()
    except InvalidValue as error:
        raise ConfigError(f"{section.place}: {error}") from None
