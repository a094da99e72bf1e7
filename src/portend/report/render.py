"""Pages from Jinja2 templates: one HTML file each, with the style and the figures inside, that loads nothing else.

Whatever a template prints is escaped, an undefined name is an error, and a number stays on one line with its ``%``.
The templates are in ``templates``: ``page.html.j2`` is around all of them, ``parts.html.j2`` has what they share, and
``style.css`` is the style of all.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from portend.analysis import console
from portend.units import format_bandwidth, format_time, signed

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup
    from plotly.graph_objects import Figure

__all__ = ["number", "percent", "render"]


def render(template: str, **values: Any) -> str:
    """Return the page that a template makes of ``values``, as HTML text.

    Args:
        template: name of a file in ``templates``, such as ``"report.html.j2"``.
        values: what the template uses; ``title`` is the page's, and ``scripts=False`` leaves Plotly out.

    Example:
        ``render("document.html.j2", title="Times", ...)``
    """
    return _environment().get_template(template).render({"scripts": True} | values)


def number(value: float | None) -> str:
    """Return a number with four decimals, such as ``0.9871``; ``–`` where there is none."""
    return "–" if value is None else f"{value:.4f}".replace("-", "−")


def percent(share: float | None) -> str:
    """Return a fraction of 1 as percent with two decimals, such as ``4.76 %``; ``–`` where there is none."""
    return "–" if share is None else f"{100 * share:.2f} %"


def _exact_ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:.3f}".replace("-", "−")


def _interval(ends: tuple[float, float]) -> str:
    return f"{100 * ends[0]:.1f}–{100 * ends[1]:.1f} %"


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("portend.report"), autoescape=True, undefined=StrictUndefined, finalize=_unbroken,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.globals.update(draw=_draw, plotly=_plotly)
    environment.filters.update(
        bandwidth=format_bandwidth,
        capitalized=_capitalized,
        error=console.format_error,
        exact_ms=_exact_ms,
        interval=_interval,
        ms=console.format_ms,
        number=number,
        percent=percent,
        rates=console.format_rates,
        share=console.format_share,
        signed=signed,
        time=format_time,
    )
    return environment


def _unbroken(value: Any) -> Any:
    """Escape a text and keep its numbers and their ``%`` on one line; HTML stays as it is."""
    from markupsafe import Markup

    if isinstance(value, str) and not isinstance(value, Markup):
        return Markup("&nbsp;%").join(value.split(" %"))  # join escapes
    return value


def _draw(figure: Figure, name: str) -> Markup:
    """Return a figure as HTML; ``name`` is its id, unique on the page. Plotly escapes what stands in its texts."""
    from markupsafe import Markup
    from plotly.io import to_html

    return Markup(
        to_html(
            figure, include_plotlyjs=False, full_html=False, div_id=name, default_height=f"{figure.layout.height}px",
            config={"responsive": True, "displayModeBar": False},
        )
    )  # fmt: skip


def _plotly() -> Markup:
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs())
