"""The live view, against real Prometheus exporters."""

from __future__ import annotations

import contextlib
import math
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from click.testing import CliRunner
from rich.console import Console

from portend.cli import top
from portend.cli.app import cli
from portend.errors import DeploymentError
from portend.service.metrics import Metrics


def works(agent: Metrics, samples: int) -> None:
    agent.answers.labels("1").inc(3 * samples)
    agent.answers.labels("2").inc(samples)
    agent.sent_bytes.labels("cloud").inc(1000 * samples)
    agent.received_bytes.inc(10 * samples)
    agent.dropped.labels("malformed").inc()
    agent.waiting.set(4)
    agent.jobs.set(1)
    agent.credits.set(2)
    for _ in range(samples):
        agent.terms.labels("compute").observe(0.004)


@contextmanager
def exporting(agent: Metrics) -> Iterator[str]:
    def page(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(agent.page())

    with answering(page) as url:
        yield url


@contextmanager
def answering(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A server that says whatever it likes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/metrics"
        server.shutdown()
        thread.join()


def shown(*pairs: tuple[top.Reading | str, top.Reading | str]) -> str:
    console = Console(width=140)
    before, after = zip(*pairs, strict=True)
    with console.capture() as captured:
        console.print(top.tables(before, after, [f"agent {i}" for i in range(len(pairs))]))
    return captured.get()


def row(text: str, *starts: str) -> list[str]:
    """Cells of the row that begins with these."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    (found,) = [cells for cells in rows if cells[: len(starts)] == list(starts)]
    return found


def test_rates_and_times_are_those_between_two_looks() -> None:
    agent = Metrics()
    works(agent, 100)
    agent.terms.labels("compute").observe(50.0)  # before the first look: does not count
    with exporting(agent) as url:
        before = top.read(top.fetch(url), "edge", 10.0)
        works(agent, 40)
        after = top.read(top.fetch(url), "edge", 12.0)
    text = shown((before, after))
    assert row(text, "edge", "up") == ["edge", "up", "5", "2", "2", "–", "–", "–", "4.00 / 4.88"]
    assert row(text, "edge", "sent") == ["edge", "sent", "cloud", "160 kbit/s", "140 kB"]
    assert row(text, "1") == ["1", "420", "75.0 %", "60.0"]
    assert row(text, "2") == ["2", "140", "25.0 %", "20.0"]


def test_an_agent_that_began_anew_counts_from_zero() -> None:
    old, new = Metrics(), Metrics()
    works(old, 100)
    works(new, 10)
    readings = []
    for at_s, agent in ((1.0, old), (2.0, new)):
        with exporting(agent) as url:
            readings.append(top.read(top.fetch(url), "edge", at_s))
    text = shown((readings[0], readings[1]))
    assert row(text, "2")[-1] == "10.0"
    assert row(text, "edge", "sent")[3] == "80 kbit/s"
    assert row(text, "edge", "up")[-1] == "4.00 / 4.88"


def test_a_page_as_text() -> None:
    page = (
        "# TYPE portend_answers counter\nportend_answers_total{exit=\"2\"} 7\n"
        "# TYPE portend_sent_bytes counter\nportend_sent_bytes_total{to=\"base\"} 5000\n"
        "# TYPE portend_received_bytes counter\nportend_received_bytes_total 300\n"
        "# TYPE portend_dropped_messages counter\nportend_dropped_messages_total{why=\"size\"} 3\n"
        "# TYPE portend_waiting_samples gauge\nportend_waiting_samples 4\n"
        "# TYPE portend_compute_queue gauge\nportend_compute_queue 1\n"
    )  # fmt: skip
    found = top.read(page, "cloud", 0.0)
    assert (found.tier, found.exits, found.queue, found.credits) == ("cloud", {"2": 7.0}, 5.0, None)
    assert found.bytes == {("sent", "base"): 5000.0, ("received", ""): 300.0}
    assert found.dropped == {"size": 3.0}


def test_quantiles_lie_on_lines_within_buckets() -> None:
    found = top.Histogram(10.0, 3.0, {0.1: 4.0, 0.2: 8.0, math.inf: 10.0})
    assert found.mean == 0.3
    assert found.quantile(0.2) == pytest.approx(0.05)
    assert found.quantile(0.6) == pytest.approx(0.15)
    assert found.quantile(0.95) == 0.2  # somewhere above
    assert math.isnan(top.Histogram().quantile(0.5))


def test_the_command_shows_who_answers_and_who_does_not() -> None:
    agent = Metrics()
    works(agent, 10)
    with exporting(agent) as url:
        done = CliRunner().invoke(
            cli, ["top", f"edge={url}", "cloud=127.0.0.1:1", "--once", "--interval", "50 ms"], env={"COLUMNS": "140"}
        )
    assert done.exit_code == 0, done.output
    assert row(done.output, "edge", "up", "5")
    assert "no answer" in row(done.output, "cloud")[1]
    nobody = CliRunner().invoke(cli, ["top", "127.0.0.1:1", "--once", "--interval", "50 ms"])
    assert isinstance(nobody.exception, DeploymentError)


def test_the_live_view_ends_by_ctrl_c() -> None:
    agent = Metrics()
    works(agent, 10)
    control, terminal = pty.openpty()
    with exporting(agent) as url:
        words = [sys.executable, "-m", "portend.cli.app", "top", url, "--interval", "50 ms"]
        with subprocess.Popen(words, stdin=terminal, stdout=terminal, stderr=terminal) as process:
            os.close(terminal)
            shown = b""
            while b"Exits" not in shown:
                shown += os.read(control, 65536)
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(OSError):  # the terminal's end
                while more := os.read(control, 65536):
                    shown += more
        os.close(control)
    assert process.returncode == 130
    assert b"Tiers" in shown
    assert b"Traceback" not in shown


def test_pages_of_strangers_do_no_harm() -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b"#" * (5 << 20))

    def other(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b"<html>{hello} 1 2 3</html>\n\xff{")

    with answering(endless) as url, pytest.raises(DeploymentError, match="at most"):
        top.fetch(url)
    with answering(other) as url, pytest.raises(DeploymentError, match="not a Prometheus page"):
        top.read(top.fetch(url), "", 0.0)
    with pytest.raises(DeploymentError, match="not of an agent"):
        top.read("# TYPE up gauge\nup 1\n", "", 0.0)
    hostile = top.read('# TYPE portend_answers counter\nportend_answers_total{exit="\x1b[2J[red]x"} 1\n', "", 0.0)
    text = shown((hostile, hostile))
    assert "\x1b[2J" not in text
    assert "[red]x" in text


@pytest.mark.parametrize("text", ["file:///etc/passwd", "edge=ftp://host/metrics"])
def test_only_http_is_read(text: str) -> None:
    with pytest.raises(DeploymentError, match="http"):
        top.address(text)
    assert top.address("edge=10.0.0.5:9100") == ("edge", "http://10.0.0.5:9100/metrics")
    assert top.address("http://h:1/m?a=b") == ("", "http://h:1/m?a=b")
