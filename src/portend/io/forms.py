"""YAML files to values. Every error names the file and the place in it.

Quantities carry their unit (``bandwidth: 10 Mbit/s``); unknown keys are refused with a suggestion.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import yaml

from portend.errors import ConfigError, InvalidValue, nearest
from portend.io.files import check_yaml, encoding_of
from portend.units import Dimension, parse, parse_share
from portend.values.topology import Link, SlowStart, Tier, Topology, TransferCurve

__all__ = [
    "LINK", "SLOW_START", "TIER", "TOPOLOGY", "TRANSFER", "Form", "Key", "Section", "amount", "amounts", "each",
    "listed", "load_topology", "nested", "plain", "read_text", "read_yaml", "share", "topology_yaml",
]  # fmt: skip

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """One key of a mapping in a YAML file: how it is read, and what docs/yaml.md says about it.

    Attributes:
        name: of the key; words: what is written there; read: gives its value, or raises ConfigError.
        says: what it means; field: of the value that the mapping stands for, where it has another name.
        required: whether it has to be there; default: in words, where that value's own default does not tell it.
        unit: in which the value's default counts; form: of a mapping, or of each of several.
    """

    name: str
    words: str
    read: Callable[[Section, str], Any]
    says: str
    field: str = ""
    required: bool = False
    default: str = ""
    unit: str = ""
    form: Form | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """The keys of a mapping; ``makes``: the type whose fields they give, ``title`` and ``says``: for docs/yaml.md."""

    title: str
    says: str
    keys: tuple[Key, ...]
    makes: Any = None

    def read(self, section: Section, *, without: Collection[str] = ()) -> dict[str, Any]:
        """Return the fields that a section gives; keys ``without`` which it is read are unknown, as all others."""
        keys = [key for key in self.keys if key.name not in without]
        found = {
            key.field or key.name: key.read(section, key.name) for key in keys if key.required or section.has(key.name)
        }
        section.done()
        return found

    def value(self, section: Section) -> Any:
        """Return the value that a section stands for."""
        values = self.read(section)
        return _made(section, lambda: self.makes(**values))

    def default(self, key: Key) -> str:
        """Return in words what holds where a key is left out."""
        if key.required:
            return "required"
        own = {field.name: field.default for field in fields(self.makes)} if is_dataclass(self.makes) else {}
        value = own.get(key.field or key.name, MISSING)
        if key.default or value is MISSING or value is None or value == ():
            return key.default or "none"
        if isinstance(value, bool):
            return "true" if value else "false"
        return f"{value:g} {key.unit}".strip() if isinstance(value, int | float) else str(value)


_BASE_UNITS: Final = {"time": "s", "bandwidth": "bit/s", "size": "B", "power": "W", "price": "USD/h"}


def plain(name: str, kind: type, says: str, **more: Any) -> Key:
    """Return a key for a text, a number, a whole number, true or false, or a mapping."""
    return Key(name=name, words=_KIND_NAMES[kind], read=lambda at, key: at.get(key, kind), says=says, **more)


def amount(name: str, dimension: Dimension, says: str, *, whole: bool = False, **more: Any) -> Key:
    """Return a key for a quantity with its unit."""

    def read(section: Section, key: str) -> float:
        found = section.quantity(key, dimension)
        return int(found) if whole else found

    return Key(name=name, words=dimension, read=read, says=says, unit=_BASE_UNITS[dimension], **more)


def share(name: str, says: str, **more: Any) -> Key:
    """Return a key for a share, such as 0.25 or 25%."""

    def read(section: Section, key: str) -> float:
        value = section.get(key, object)
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ConfigError(f"{section.at(key)}: a number is needed here, but got {_shown(value)}")
        if isinstance(value, int | float):
            return float(value)  # its bounds are those of the value that it is for
        try:
            return parse_share(value)
        except InvalidValue as error:
            raise ConfigError(f"{section.at(key)}: {error}") from None

    return Key(name=name, words="share", read=read, says=says, **more)


def listed(name: str, kind: type, says: str, **more: Any) -> Key:
    """Return a key for a list of texts, numbers or whole numbers."""
    words = {int: "whole numbers", float: "numbers", str: "names"}[kind]

    def read(section: Section, key: str) -> tuple[Any, ...]:
        items = section.get(key, list)
        if not all(type(item) in (kind, int) if kind is float else type(item) is kind for item in items):
            raise ConfigError(f"{section.at(key)}: a list of {words} is needed here, but got {items!r:.60}")
        return tuple(kind(item) for item in items)

    return Key(name=name, words=f"list of {words}", read=read, says=says, **more)


def amounts(name: str, dimension: Dimension, says: str, **more: Any) -> Key:
    """Return a key for a list of quantities."""

    def read(section: Section, key: str) -> tuple[float, ...]:
        try:
            return tuple(parse(item, dimension) for item in section.get(key, list))
        except InvalidValue as error:
            raise ConfigError(f"{section.at(key)}: {error}") from None

    return Key(name=name, words=f"list of {dimension}s", read=read, says=says, **more)


def nested(name: str, form: Form, says: str, **more: Any) -> Key:
    """Return a key for a mapping of its own."""
    return Key(
        name=name, words="mapping", read=lambda at, key: form.value(at.section(key)), says=says, form=form, **more
    )


def each(name: str, form: Form, says: str, **more: Any) -> Key:
    """Return a key for a list of mappings."""

    def read(section: Section, key: str) -> tuple[Any, ...]:
        return tuple(form.value(item) for item in section.sections(key))

    return Key(name=name, words="list of mappings", read=read, says=says, form=form, **more)


TIER: Final = Form(
    title="tiers[]",
    says="One machine of the chain.",
    makes=Tier,
    keys=(
        plain("name", str, "unique in the topology; what plans and options call it", required=True),
        plain("device", str, "whose measurements in the profile hold for it"),
        plain("slowdown", float, "how many times slower than that device it is"),
        plain("host", str, "where its agent is reached; also an IPv6 address"),
        plain("port", int, "where its agent is reached"),
        amount("memory", "size", "for weights and activations; no plan needs more", field="memory_bytes",
               default="no limit"),
        amount("power", "power", "while it computes, for the metric energy", field="power_w", default="not known"),
        amount("price", "price", "while it computes, for the metric price", field="price_usd_per_hour",
               default="not known"),
        listed("cores", int, "numbers of the processor cores that its process may use", default="all"),
        plain("cpu_quota", float, "most of a core's time that its process gets, such as 1.5", default="no limit"),
    ),
)  # fmt: skip
TRANSFER: Final = Form(
    title="links[].transfer",
    says="How long messages took over a link, as `portend links --out` writes it. It takes the formula's place.",
    makes=TransferCurve,
    keys=(
        amounts("sizes", "size", "of the messages, increasing", field="sizes_bytes", required=True),
        amounts("warm", "time", "for each size, on a connection that was used before", field="warm_s", required=True),
        amounts("cold", "time", "for each size, as the first message of a connection", field="cold_s"),
    ),
)
LINK: Final = Form(
    title="links[]",
    says="What joins two neighboring tiers, the same in both directions; the first link joins the first two tiers.",
    makes=Link,
    keys=(
        amount("bandwidth", "bandwidth", "on the wire, headers included", field="bandwidth_bps", required=True),
        amount("propagation_delay", "time", "one way, of the first bit", field="propagation_delay_s", required=True),
        amount("mtu", "size", "the largest packet", field="mtu_bytes", whole=True),
        amount("headers", "size", "of each packet; 52 B are IPv4 and TCP with timestamps", field="header_bytes",
               whole=True),
        nested("transfer", TRANSFER, "measured times"),
    ),
)  # fmt: skip
SLOW_START: Final = Form(
    title="slow_start",
    says="Charges every message what a new TCP connection costs. `slow_start: {}` takes the defaults.",
    makes=SlowStart,
    keys=(
        plain("initial_window", int, "packets that a connection begins with"),
        amount("receive_window", "size", "most that the receiver lets in before its first acknowledgment",
               field="receive_window_bytes", whole=True),
    ),
)  # fmt: skip
TOPOLOGY: Final = Form(
    title="Topology",
    says="Tiers and links: `--topology` of all commands, `portend links`, `portend testbed`. Examples: "
    "`configs/topologies/`.",
    makes=Topology,
    keys=(
        each("tiers", TIER, "the machines, in the order of the chain", required=True),
        each("links", LINK, "one between each two neighbors", default="none, for one tier"),
        plain("name", str, "of the topology", default="the file's name"),
        plain("source", str, "tier where samples appear", default="the first tier"),
        plain("destination", str, "tier where results are wanted", default="the first tier"),
        plain("ingest", str, "`in_process`: a partition on the source gets samples for free; `message`: even there "
              "they are encoded and decoded"),
        nested("slow_start", SLOW_START, "how every message's connection begins", default="connections are warm"),
    ),
)  # fmt: skip


def load_topology(path: str | Path) -> Topology:
    """Return the topology in a YAML file (see ``configs/topologies``).

    Raises:
        ConfigError: the file, the place in it, what is wrong there, and the remedy.

    Example:
        >>> topology = pt.load_topology("configs/topologies/three_tier.yaml")
    """
    root = read_yaml(path, "topology")
    values = {"name": Path(path).stem, "links": ()} | TOPOLOGY.read(root)
    names = [tier.name for tier in values["tiers"]]
    for role in ("source", "destination"):
        name = values.setdefault(role, names[0] if names else "")
        if names and name not in names:
            raise ConfigError(f"{root.at(role)}: no tier is called {name!r}; the tiers are {', '.join(names)}")
        values[role] = names.index(name) if names else 0
    return _made(root, lambda: Topology(**values))


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


def _made(section: Section, make: Callable[[], _T]) -> _T:
    try:
        return make()
    except InvalidValue as error:
        raise ConfigError(f"{section.place}: {error}") from None
