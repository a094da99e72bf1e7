"""Tables for a terminal: as wide as it is, and no word broken. Imported late, for it imports rich."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

__all__ = ["FittedTable"]


class FittedTable(Table):
    """A table that fits: columns of words fold between words, the others never; where that is still too wide, each row
    becomes a list of headings and values.

    A heading has a line break where it may be broken. A cell is plain text; square brackets in it are no markup.

    Example:
        >>> table = FittedTable("Plans")
        >>> table.numbers("mean\\nms")
        >>> table.words("plan")
        >>> table.add_row("12.5", "edge [1–5]")
    """

    def __init__(self, title: str = "") -> None:
        super().__init__(
            title=Text(title) if title else None,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            padding=(0, 0, 0, 1),
        )

    def words(self, *headings: str, fold: bool = True) -> None:
        """Add columns of text, which folds unless ``fold`` is False."""
        for heading in headings:
            self.add_column(Text(heading), no_wrap=not fold)

    def numbers(self, *headings: str) -> None:
        """Add columns that line up at the right and never fold."""
        for heading in headings:
            self.add_column(Text(heading), justify="right", no_wrap=True)

    def add_row(self, *cells: object, end_section: bool = False) -> None:  # type: ignore[override]
        """Add a row of text (str, or Text with a style)."""
        plain = (cell if isinstance(cell, Text) else Text(str(cell)) for cell in cells)
        super().add_row(*plain, end_section=end_section)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = options.max_width - 2 * len(self.columns) + 1
        widths = _widths([_span(console, options, column) for column in self.columns], room)
        if widths is None:
            yield from self._rows_as_lists()
            return
        for column, width in zip(self.columns, widths, strict=True):
            column.width = width
        yield from super().__rich_console__(console, options)
        yield Text()

    def _rows_as_lists(self) -> RenderResult:
        if self.title:
            yield self.title
        headings = [_joined(str(column.header)) for column in self.columns]
        for row in zip(*(column.cells for column in self.columns), strict=True):
            for heading, cell in zip(headings, row, strict=True):
                value = ", ".join(line.strip() for line in str(cell).split("\n"))
                yield Text.assemble((heading.ljust(2 + max(map(len, headings))), "bold"), value)
            yield Text()
        if self.caption:
            yield Text(str(self.caption))


def _joined(heading: str) -> str:
    """A heading in one line."""
    return heading.replace(".\n", ".").replace("_\n", "_").replace("\n", " ")


def _span(console: Console, options: ConsoleOptions, column: Column) -> tuple[int, int]:
    """How narrow and how wide a column may be."""
    wide = options.update(width=10_000)
    spans = [Measurement.get(console, wide, cell) for cell in (column.header, *column.cells)]
    most = max(span.maximum for span in spans)
    return (most if column.no_wrap else max(span.minimum for span in spans)), most


def _widths(spans: Sequence[tuple[int, int]], room: int) -> list[int] | None:
    """Widths within ``spans`` that fill ``room`` at most, the narrowest needs first; None: there are none."""
    left = room - sum(least for least, _ in spans)
    if left < 0:
        return None
    widths = [least for least, _ in spans]
    needy = sorted(range(len(spans)), key=lambda index: spans[index][1] - spans[index][0])
    for place, index in enumerate(needy):
        more = min(spans[index][1] - spans[index][0], left // (len(needy) - place))
        widths[index] += more
        left -= more
    return widths
