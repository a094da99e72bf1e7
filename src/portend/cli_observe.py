"""The commands that look at a running system, its traces and its links; ``cli`` registers them."""

from __future__ import annotations

import click

from portend.errors import ConfigError

__all__ = ["trace"]


@click.command()
@click.argument("measurement", type=click.Path(dir_okay=False))
@click.option("--chrome", type=click.Path(dir_okay=False), help="File of Chrome's trace events to write, for Perfetto.")
@click.option("--otlp", type=click.Path(dir_okay=False), help="File of OpenTelemetry's spans to write (OTLP, JSON).")
def trace(measurement: str, chrome: str | None, otlp: str | None) -> None:
    """Write what MEASUREMENT of `portend run` recorded as traces for other programs.

    A track for each tier and for each pair of tiers between which messages went, a slice for each span, and the way of
    each sample over them.
    """
    if not (chrome or otlp):
        raise ConfigError("nothing is to be written; give --chrome FILE, --otlp FILE, or both")
    import json

    from portend.analysis.traces import chrome_trace, otlp_trace
    from portend.storage import load_measurement, write_text

    measured = load_measurement(measurement)
    for path, make in ((chrome, chrome_trace), (otlp, otlp_trace)):
        if path:
            write_text(json.dumps(make(measured), ensure_ascii=False) + "\n", path)
            click.echo(path)
