"""What the options of several commands have in common: types of values, and files that are told by their content."""

from __future__ import annotations

import re
import shutil
import textwrap
from typing import TYPE_CHECKING, Any, Final

import click

from portend.errors import ConfigError, InvalidValue
from portend.io.files import KINDS, kind_of, what_is, wrong_file
from portend.units import Dimension, parse, parse_share

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Command", "FileOf", "Quantity", "Share", "allow_code", "as_json", "columns", "folded", "say", "terminal"]


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
