"""A page of sections, each of words, tables and figures one after the other: for what has no page of its own kind.

Example:
    >>> table = Table(head=("network", "ms"), rows=(("resnet20", "8.1"),))
    >>> page = render_document(Document(title="Times", sections=(Section(title="Here", pieces=(table,)),)))
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from portend.report.render import render

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["Card", "Chart", "Document", "Facts", "Image", "Piece", "Section", "Table", "Words", "render_document"]


@dataclass(frozen=True, slots=True)
class Words:
    """A paragraph; ``style``: ``note``, ``bad`` for a warning, or ``lead``."""

    kind: ClassVar[str] = "words"
    text: str
    style: str = "note"


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Texts in rows; the first column names the row. ``words``: further columns that hold words; ``good``: rows that
    stand out."""

    kind: ClassVar[str] = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[int] = ()
    good: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """Short texts by name."""

    kind: ClassVar[str] = "facts"
    facts: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Chart:
    """A plotly figure; ``name`` is its id, unique on the page."""

    kind: ClassVar[str] = "chart"
    name: str
    figure: Figure


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """A figure that is drawn already, as SVG; ``text`` says what it shows; ``narrow``: at most 760 pixels wide."""

    kind: ClassVar[str] = "image"
    svg: bytes
    text: str
    narrow: bool = False

    @property
    def data(self) -> str:
        return base64.b64encode(self.svg).decode("ascii")


Piece = Words | Table | Facts | Chart | Image


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Section:
    title: str
    pieces: Sequence[Piece]


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A number that matters, with what it is and a detail."""

    label: str
    value: str
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Document:
    """A page.

    Attributes:
        title, intro: the title and the paragraphs below it.
        cards, lead, reading: what comes first: numbers, paragraphs, and a list of what a reader should know.
        sections: the rest.
    """

    title: str
    intro: Sequence[str] = ()
    cards: Sequence[Card] = ()
    lead: Sequence[Words] = ()
    reading: Sequence[str] = ()
    sections: Sequence[Section] = ()


def render_document(document: Document) -> str:
    """Return the page as HTML text; Plotly is inside where a chart is."""
    scripts = any(isinstance(piece, Chart) for section in document.sections for piece in section.pieces)
    return render("document.html.j2", title=document.title, document=document, scripts=scripts)
