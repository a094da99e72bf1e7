"""Every kind of page as it was (``tests/golden``, without figures), and what holds for all of them.

A page that changed on purpose: ``PORTEND_GOLDEN=renew python -m pytest tests/test_pages.py``, then read
``git diff tests/golden`` before it is committed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final

import pytest
from plotly.graph_objects import Figure

import portend.report
from portend.analysis.validation import Validation
from portend.analysis.whatif import Axis, find_crossovers, sweep
from portend.report import validation_page, whatif_page
from portend.report.document import (
    Card,
    Chart,
    Document,
    Facts,
    Image,
    Piece,
    Section,
    Table,
    Words,
    render_document,
)
from portend.report.estimators_page import estimators_page
from portend.report.page import render_report
from portend.report.render import render
from test_analysis import TOPOLOGY, report_data
from test_analysis import profile as small_profile
from test_validate import FOUR
from test_whatif import tiny

GOLDEN: Final = Path(__file__).with_name("golden")
ROOM: Final = Path(portend.report.__file__).parent
EVIL: Final = "</script><script>alert(1)</script> & <b>bold</b>"


def report(name: str = "split", *, measured: bool = True) -> str:
    data = report_data(measured=measured, name=name)
    if name == "split":
        return render_report(replace(data, title="A small network", summary={"plans": "20"}))
    tiers = tuple(replace(tier, name=f"{name} {i}") for i, tier in enumerate(data.topology.tiers))
    everywhere = {name: name}
    return render_report(
        replace(
            data, title=name, problem=name, summary=everywhere, provenance=everywhere,
            topology=replace(data.topology, name=name, tiers=tiers), new_samples={name: name},
        )
    )  # fmt: skip


def validation(name: str = "") -> str:
    def named(case: Any) -> Any:
        return replace(case, comparison=replace(case.comparison, name=f"{case.name}{name}"))

    found = Validation(cases=tuple(map(named, FOUR)), planned=5, full_accuracy=0.95)
    profile = replace(small_profile(), provenance={"data": f"digits{name}"})
    return validation_page.render_page(found, profile, replace(TOPOLOGY, name=f"two tiers{name}"))


def whatif(name: str = "", *, grid: bool = False) -> str:
    scenario = tiny()
    topology = replace(scenario.topology, name=f"two{name}")
    if name:
        topology = replace(topology, tiers=tuple(replace(tier, name=f"{tier.name}{name}") for tier in topology.tiers))
    axes = [Axis(path="links[0].bandwidth", values=(1e4, 1e5, 1e6))]
    if grid:
        axes = [Axis(path="links[0].mtu", values=(600, 1500)), *axes]
    found = sweep(replace(scenario, topology=topology), axes)
    return whatif_page.render_page(found, None if name else find_crossovers(found, axis=len(axes) - 1))


def estimators(name: str = "") -> str:
    names = ("layer-wise", "block-wise", "partition-wise")
    row = {"start": 0, "end": 2, "measured_ms": 1.0} | dict(zip(names, (1.3, 1.2, 1.01), strict=True))
    error = {"rmse_ms": 0.3, "bias_ms": 0.25, "bias": 0.2, "slope": 1.25}
    case = {"rows": [row], "errors": {f"{key}{name}": error for key in names}, "disturbed": f"busy{name}"}
    return estimators_page({f"resnet8=digits{name}": case})


def document(name: str = "") -> str:
    table = Table(head=("plan", f"why{name}", "ms"), rows=[(f"a{name}", f"short{name}", "1"), ("b", "", "2 %")],
                  words=(1,), good=(0,))  # fmt: skip
    pieces: list[Piece] = [
        Words(f"Below 5 % of {name}"), Words(f"Failed{name}", "bad"), table, Facts({f"seed{name}": f"0{name}"}),
        Image(svg=b'<svg xmlns="http://www.w3.org/2000/svg"/>', text=f"a line{name}", narrow=True),
    ]  # fmt: skip
    return render_document(
        Document(
            title=f"Sections{name}", intro=(f"One.{name}", "Two."), lead=(Words(f"Most.{name}", "lead"),),
            cards=(Card(label=f"Error{name}", value=f"5 %{name}", detail=f"of 3{name}"),), reading=(f"Read{name}",),
            sections=(Section(title=f"First{name}", pieces=pieces), Section(title="Second", pieces=())),
        )
    )  # fmt: skip


PAGES: Final[dict[str, Callable[[], str]]] = {
    "report": report,
    "report-predicted": lambda: report(measured=False),
    "validation": validation,
    "whatif": whatif,
    "whatif-grid": lambda: whatif(grid=True),
    "estimators": estimators,
    "document": document,
}


def without_figures(page: str) -> str:
    """A page with its style, plotly and figures cut out; a figure leaves its id."""
    page = re.sub(r"<style>.*?</style>", "<style>…</style>", page, flags=re.S)
    plot = r'<div class="plot"><div[^>]*>\s*<div id="([^"]*)" class="plotly-graph-div".*?</script>\s*</div></div>'
    page = re.sub(plot, r'<div class="plot">\1</div>', page, flags=re.S)
    return re.sub(r"<script>.*?</script>", "<script>…</script>", page, flags=re.S)


@pytest.mark.parametrize("kind", PAGES)
def test_a_page_is_as_it_was(kind: str) -> None:
    page, file = without_figures(PAGES[kind]()), GOLDEN / f"{kind}.html"
    if os.environ.get("PORTEND_GOLDEN") == "renew":
        file.parent.mkdir(exist_ok=True)
        file.write_text(page, encoding="utf-8")
    assert page.splitlines() == file.read_text(encoding="utf-8").splitlines(), f"on purpose? Then: {__doc__}"


class Elements(HTMLParser):
    """Collects the elements of a page, and its text outside scripts and style."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append(tag)
        if tag not in ("meta", "br", "img", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "rect":
            assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


def elements(page: str) -> Elements:
    found = Elements()
    found.feed(page)
    assert found.open == []
    return found


@pytest.mark.parametrize("make", [report, validation, whatif, estimators, document])
def test_names_are_text_and_nothing_else(make: Callable[..., str]) -> None:
    plain, evil = elements(make()), elements(make(EVIL))
    assert evil.opened.count("script") == plain.opened.count("script")
    assert "alert(1)" in evil.text
    assert "<script>alert(1)" not in make(EVIL)


@pytest.mark.parametrize("kind", PAGES)
def test_a_page_loads_nothing_and_has_the_one_style(kind: str) -> None:
    page = PAGES[kind]()
    style = (ROOM / "templates" / "style.css").read_text(encoding="utf-8")
    assert style in page
    assert page.count("<style>") == 1
    assert "prefers-color-scheme: dark" in style
    assert re.search(r"<(link|iframe|object|base)\b|\ssrc=\"(?!data:)|\shref=", without_figures(page)) is None
    assert "default-src 'none'" in page
    assert (" src=" in without_figures(page)) == (kind == "document")


def test_every_color_of_the_style_has_its_color_in_the_dark() -> None:
    style = (ROOM / "templates" / "style.css").read_text(encoding="utf-8")
    light, dark = (set(re.findall(r"(--\w+): #", part)) for part in style.split("prefers-color-scheme: dark"))
    assert light == dark


def test_python_draws_no_html_and_templates_escape_all() -> None:
    for file in ROOM.rglob("*.py"):
        assert not re.search(r"</?(div|section|table|tr|td|th|p|li|ul)\b", file.read_text(encoding="utf-8")), file
    for file in ROOM.rglob("*.j2"):
        assert not re.search(r"\|\s*safe|autoescape", file.read_text(encoding="utf-8")), file


def test_a_chart_brings_plotly_and_a_page_without_one_has_no_script() -> None:
    assert "<script" not in document()
    chart = Chart(name="line", figure=Figure())
    page = render_document(Document(title="t", sections=(Section(title="s", pieces=(chart,)),)))
    assert 'id="line"' in page
    assert page.count("plotly.js v") == 1


def test_a_name_that_a_template_needs_is_not_forgotten() -> None:
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError, match="document"):
        render("document.html.j2", title="t")
