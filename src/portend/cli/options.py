"""What the options of several commands have in common: types of values, and files that are told by their content."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from portend.errors import (
    ConfigError,
    InvalidValue,
)
from portend.io.files import KINDS, kind_of, what_is, wrong_file
from portend.testbed.emulation import EMULATIONS
from portend.units import Dimension, parse, parse_share
from portend.values.execution import EXECUTORS, PRECISIONS
from portend.values.plan import CODECS, CRITERIA, codec_parts

if TYPE_CHECKING:
    from rich.console import Console


__all__ = [
    "Budget",
    "Codecs",
    "Command",
    "FileOf",
    "Numbers",
    "Quantity",
    "Share",
    "allow_code",
    "allow_infeasible_option",
    "as_json",
    "codec_tolerance_option",
    "columns",
    "criterion_option",
    "data_option",
    "emulation_option",
    "execution_options",
    "folded",
    "limit_options",
    "once",
    "planning_options",
    "say",
    "seed_option",
    "terminal",
    "topology_option",
    "traces_option",
]


_QUANTITY: Final = re.compile(r"(\d) (%|[num]?s\b|[kMG]?i?B\b|[kMG]?bit/s|points?\b)")


def columns() -> int:
    """Return how wide output may be: ``COLUMNS``, else as the terminal, else 80."""
    return shutil.get_terminal_size((80, 24)).columns


def terminal() -> Console:
    """Return where tables are printed, ``columns()`` wide."""
    from rich.console import Console

    return Console(width=columns())


def folded(text: str) -> str:
    """Return text whose lines are at most ``columns()`` long; what goes on in the next line is set in further.

    A number and its unit stay together.
    """
    lines = (
        textwrap.fill(
            line,
            columns(),
            subsequent_indent=" " * (len(line) - len(line.lstrip()) + 4),
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in _QUANTITY.sub("\\1\N{NO-BREAK SPACE}\\2", text).split("\n")
    )
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def say(text: str) -> None:
    """Print an answer in words, folded; words of more than a line, such as paths, stay whole."""
    click.echo(folded(text))


class FileOf(click.ParamType[Any]):
    """A file that has to be of one of some kinds (``files.KINDS``), the usual one first."""

    name = "file"

    def __init__(self, *kinds: str) -> None:
        self.kinds = kinds

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)


class Command(click.Command):
    """A command that looks at what its files are before it begins."""

    def invoke(self, ctx: click.Context) -> Any:
        check_files(ctx)
        return super().invoke(ctx)


def check_files(ctx: click.Context) -> None:
    """Raise ConfigError if a file is not what its place takes, and notice where two of them are swapped."""
    wrong: list[tuple[str, FileOf, str, str]] = []
    for param in ctx.command.params:
        if not isinstance(param.type, FileOf) or not (value := ctx.params.get(param.name or "")):
            continue
        place = (param.name or "").upper() if isinstance(param, click.Argument) else param.opts[0]
        for path in (value,) if isinstance(value, str) else value:
            kind = kind_of(path)
            if kind is not None and kind not in param.type.kinds:
                wrong.append((place, param.type, path, kind))
    for place, takes, path, kind in wrong:
        for other, its, where, what in wrong:
            if kind in its.kinds and what in takes.kinds:
                raise ConfigError(
                    f"{place} and {other} are swapped: {path} is {KINDS[kind][0]}, {where} is {what_is(where)}; "
                    "exchange them"
                )
    for place, takes, path, _ in wrong:
        raise ConfigError(wrong_file(path, *takes.kinds, taker=ctx.command_path, place=place))


class Quantity(click.ParamType[Any]):
    """A number with its unit, in the SI unit of its dimension; a bare number is of ``bare``, where that is given."""

    def __init__(self, dimension: Dimension, *, bare: str = "", least: float = 0.0) -> None:
        self.name, self.dimension, self.bare, self.least = dimension, dimension, bare, least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text = str(value).strip()
        bare = self.bare if text.replace(".", "", 1).isdecimal() else ""
        try:
            found = parse(f"{text} {bare}", self.dimension)
        except InvalidValue as error:
            self.fail(str(error), param, ctx)
        if found < self.least:
            self.fail(f"at least {self.least:g} {bare or 's'} is needed here, but got {value!r}", param, ctx)
        return found


class Share(click.ParamType[Any]):
    """A share such as 0.95 or 95%, within bounds."""

    name = "share"

    def __init__(self, least: float = 0.0, most: float = 1.0) -> None:
        self.least, self.most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return parse_share(value, self.least, self.most)
        except InvalidValue as error:
            self.fail(str(error), param, ctx)


def allow_code(command: Any) -> Any:
    """Give a command the option that names the code that a file may run."""
    return click.option(
        "--allow-code",
        multiple=True,
        metavar="MODULE:OBJECT",
        envvar="PORTEND_ALLOW_CODE",
        show_envvar=True,
        help="Code that the network's file names (a network, heads or data of your own) and that may be imported and "
        "run; again for more.",
    )(command)


def as_json(command: Any) -> Any:
    """Give a command the option ``--json``."""
    text = "Print JSON for machines; nothing else goes to standard output."
    return click.option("--json", "as_json", is_flag=True, help=text)(command)


_K = TypeVar("_K")


_V = TypeVar("_V")


class Numbers(click.ParamType[Any]):
    """Numbers separated by commas."""

    name = "numbers"

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.kind(item) for item in str(value).split(",") if item.strip())
        except ValueError:
            self.fail(f"{value!r} is not a list like 1,2,3", param, ctx)


class Codecs(click.ParamType[Any]):
    """Names of codecs separated by commas, or ``all``."""

    name = "codecs"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = CODECS if value == "all" else tuple(item.strip() for item in str(value).split(",") if item.strip())
        try:
            for name in names:
                if name != "encoded":
                    codec_parts(name)
        except InvalidValue as error:
            self.fail(str(error), param, ctx)
        return tuple(dict.fromkeys(("float32", *names)))  # what the others are compared with


class Budget(click.ParamType[Any]):
    """A share of the partitions or a duration, as the fields of DeviceProfiling."""

    name = "share or time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        text = str(value).strip()
        for name, read in (("budget", parse_share), ("budget_s", partial(parse, dimension="time"))):
            with suppress(InvalidValue):
                found = read(text)
                if found > 0:
                    return {name: found}
        return self.fail(
            f"{value!r} is neither a share above 0, such as 0.1 or 10%, nor a time such as '5 min'", param, ctx
        )


data_option = click.option(
    "--data",
    default=None,
    help="Such as digits or parquet:FOLDER (docs/data.md); default: what the checkpoint was trained on.",
)


seed_option = click.option(
    "--seed", type=click.IntRange(0), help="Seed of the splits; default: the one that the checkpoint was trained with."
)


_EXECUTION = (
    click.option(
        "--executor",
        type=click.Choice(["auto", *EXECUTORS]),
        help="What runs partitions; auto: the faster of torch and onnxruntime, measured here.",
    ),
    click.option("--processor", help="Such as cpu, cuda or cuda:1.  [default: cpu]"),
    click.option("--threads", type=click.IntRange(1), help="Compute threads.  [default: 1]"),
    click.option("--precision", type=click.Choice(PRECISIONS), help="Of the arithmetic.  [default: float32]"),
)


def execution_options(command: Any) -> Any:
    """Give a command the options that say what runs partitions."""
    for option in reversed(_EXECUTION):
        command = option(command)
    return command


codec_tolerance_option = click.option(
    "--codec-tolerance",
    type=Share(),
    help="Share of accuracy that a codec may cost at a cut where it is offered. Default: 0.002, 0.2 points.",
)


criterion_option = click.option(
    "--criterion",
    type=click.Choice(list(CRITERIA)),
    help="What thresholds are compared with: normalized entropy, 1 - largest probability, 1 - its lead. "
    "Default: the profile's, entropy unless it was made otherwise.",
)


class _Trace(click.ParamType[Any]):
    """LINK=FILE."""

    name = "LINK=FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        link, equals, path = str(value).partition("=")
        if not equals:
            self.fail(f"{value!r} is not a link's number and a file, such as 0=trace.txt", param, ctx)
        return link, path


def once(pairs: Iterable[tuple[_K, _V]], option: str) -> dict[_K, _V]:
    """The pairs of an option that is given several times, as a mapping; a key that comes twice is refused."""
    found: dict[_K, _V] = {}
    for key, value in pairs:
        if key in found:
            raise click.UsageError(f"{option} names {key} twice, with {found[key]} and {value}; give one of them")
        found[key] = value
    return found


emulation_option = click.option(
    "--emulation",
    type=click.Choice(EMULATIONS),
    help="Of the links: a relay, network namespaces with real TCP/IP (root; docs/testbed.md), or none.  "
    "[default: relay]",
)


traces_option = click.option(
    "--trace",
    "traces",
    type=_Trace(),
    multiple=True,
    callback=lambda ctx, param, value: once(value, "--trace"),
    help="Bandwidth over time of a link, numbered from 0: pairs, CSV or Mahimahi (docs/testbed.md).",
)


allow_infeasible_option = click.option(
    "--allow-infeasible", is_flag=True, help="Take the plan that comes nearest where none meets the constraints."
)


topology_option = click.option(
    "--topology", required=True, type=FileOf("topology"), help="YAML file with tiers and links."
)


_PLANNING = (
    click.option("--min-accuracy", type=Share(), help="Least accuracy, such as 0.95 or 95%; minimizes latency."),
    click.option(
        "--robust",
        type=Share(0.5, 0.999999),
        help="Confidence, such as 0.95, with which new samples shall reach --min-accuracy.",
    ),
    click.option("--max-latency", type=Quantity("time"), help="Most mean latency, such as '9 ms'; maximizes accuracy."),
    click.option("--estimator", type=click.Choice(["sample", "marginal"]), help="Default: sample where scores exist."),
    criterion_option,
    click.option("--thresholds", type=Numbers(float), help="Exit thresholds to try, such as 0,0.2,0.4."),
    click.option("--per-exit-thresholds", is_flag=True, help="One threshold for each exit instead of a global one."),
    click.option("--cuts", type=Numbers(int), help="Cuts at which a partition may end."),
    click.option("--exits", type=Numbers(int), help="Branches that may be early exits."),
    click.option("--no-exits", is_flag=True, help="No early exits."),
    click.option("--tiers", metavar="NAMES", help="Tiers that may be used, such as edge,cloud, or numbers from 0."),
    click.option("--keep-input-on", metavar="TIER", help="Tier that raw input must not leave (block 1 runs there)."),
    click.option("--max-partitions", type=click.IntRange(1), help="Most partitions."),
    click.option(
        "--exits-per-tier",
        type=click.IntRange(1),
        help="Most partitions, each with its exit, on one tier. Default: 2.",
    ),
    click.option("--tier-order", type=click.Choice(["any", "increasing"]), help="Default: any."),
    click.option("--no-truncation", is_flag=True, help="Always keep the last blocks."),
    click.option(
        "--minimize", multiple=True, metavar="METRIC", help="Such as p95, energy or module:function; again: front."
    ),
    click.option("--maximize", multiple=True, metavar="METRIC", help="Such as throughput."),
    click.option("--subject-to", multiple=True, metavar="BOUND", help="Such as 'p95<=80 ms' or 'energy<=0.5 J'."),
    codec_tolerance_option,
    click.option("--arrival-rate", type=float, help="Samples per second that no tier or link may be too slow for."),
    click.option(
        "--problem", "stated", type=FileOf("problem"),
        help="YAML: minimize, maximize, subject_to, arrival_rate, criterion, codec_tolerance, hints (docs/metrics.md). "
        "Other options add to it.",
    ),
)  # fmt: skip


def planning_options(command: Any) -> Any:
    """Give a command the options that state what to plan."""
    for option in reversed(_PLANNING):
        command = option(command)
    return command


def limit_options(command: Any) -> Any:
    """Give a command the options that limit its searches."""
    for option in (
        click.option(
            "--memory", type=Quantity("size"), metavar="SIZE",
            help="For all searches, such as '2 GB'; default: half of what is free.",
        ),
        click.option(
            "--seconds", type=click.FloatRange(0),
            help="For all searches together; then (as at a first Ctrl-C) the best plan so far is given, with its gap.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command
