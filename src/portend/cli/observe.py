"""The commands that look at a running system, its traces and its links; ``cli`` registers them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from portend.cli.options import Command, FileOf, Quantity, as_json, say, terminal
from portend.errors import ConfigError, DeploymentError
from portend.testbed.emulation import EMULATIONS
from portend.units import format_bandwidth, format_bytes, format_time

if TYPE_CHECKING:
    from portend.cli.top import Reading
    from portend.runtime.link_probe import LinkMeasurement
    from portend.values.topology import Topology

__all__ = ["links", "top", "trace"]


@click.command(cls=Command)
@click.argument("measurement", type=FileOf("run"))
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
    from portend.io.storage import load_measurement, write_text

    measured = load_measurement(measurement)
    for path, make in ((chrome, chrome_trace), (otlp, otlp_trace)):
        if path:
            write_text(json.dumps(make(measured), ensure_ascii=False) + "\n", path)
            click.echo(path)


@click.command(cls=Command)
@click.argument("topology", type=FileOf("topology"))
@click.option(
    "--emulation", type=click.Choice(EMULATIONS),
    help="Measure between processes on this machine, with this between them; none: the loopback interface itself. "
    "Default, without --keys and --plain: relay.",
)  # fmt: skip
@click.option("--keys", type=click.Path(file_okay=False), help="Measure between the agents of the tiers' hosts.")
@click.option("--plain", is_flag=True, help="The same in plain text, without keys; on the loopback interface only.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, show_default=True,
    help="On which hosts take the connections that are measured; 0: a free one.",
)  # fmt: skip
@click.option("--time", "seconds", type=Quantity("time"), default="20 s", show_default=True, help="Most, per link.")
@click.option("--bytes", "n_bytes", type=Quantity("size"), default="64 MB", show_default=True, help="Most, per link.")
@click.option("--out", type=click.Path(dir_okay=False), help="Topology file to write, its links as measured (YAML).")
@as_json
def links(
    topology: str, emulation: str | None, keys: str | None, plain: bool, port: int, seconds: float, n_bytes: float,
    out: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure the links between the tiers of TOPOLOGY: delay, jitter, rate, and how long messages of a size take.

    Between emulated tiers on this machine, or between hosts on which `portend agent` runs.
    """
    import json
    from dataclasses import asdict

    from portend.io.forms import load_topology, topology_yaml
    from portend.io.storage import write_text
    from portend.profiling.links import measure_links, measured_topology
    from portend.runtime.link_probe import Budget
    from portend.testbed.emulation.choose import make_emulation

    places = load_topology(topology)
    if not places.links:
        raise DeploymentError(f"{topology} has one tier and so no links; there is nothing to measure")
    if emulation and (keys or plain or port):
        raise click.UsageError("--keys, --plain and --port are for agents on hosts, --emulation for this machine")
    budget = Budget(seconds=seconds, bytes=n_bytes)
    if keys or plain:
        from portend.service.keys import OPERATOR, load_keys
        from portend.service.operator import Agents

        if keys and plain:
            raise click.UsageError("give --keys DIR; or --plain, on one machine")
        with Agents(places, load_keys(keys, OPERATOR) if keys else None) as agents:
            agents.hello()
            found = agents.measure_links(budget, port=port)
        how = f"--keys {keys}" if keys else "--plain"
    else:
        emulation = emulation or "relay"
        with make_emulation(emulation, places) as emulated:
            found = measure_links(emulated, budget)
        how = f"--emulation {emulation}"
    measured = measured_topology(places, found)
    if as_json:
        click.echo(json.dumps([asdict(each) for each in found]))
    else:
        for index, each in enumerate(found):
            say(_described(measured, index, each))
    if out:
        said = f"# Links as `portend links {topology} {how}` measured them.\n"
        write_text(said + topology_yaml(measured), out)
        click.echo(out, err=as_json)


def _described(measured: Topology, index: int, found: LinkMeasurement) -> str:
    """What was measured on a link, in lines."""
    ends = [measured.tiers[index].name, measured.tiers[index + 1].name]
    link = measured.links[index]
    wire = link.mtu_bytes / (link.mtu_bytes - link.header_bytes)
    rates = [format_bandwidth(rate * wire) for rate in found.rates_bps]
    delays = [format_time(delay) for delay in found.one_way_s]
    clock = (
        f"the clocks differ by {found.clock_offset_s:.6f} s ± {format_time(found.clock_error_s)}"
        if found.clock_error_s
        else "one clock"
    )
    rows = [f"  {'message':>10} {'warm':>10} {'new':>10}"] + [
        f"  {format_bytes(size):>10} {format_time(warm):>10} {format_time(cold):>10}"
        for size, warm, cold in zip(found.sizes_bytes, found.warm_s, found.cold_s, strict=True)
    ]
    return "\n".join(
        [
            f"{'–'.join(ends if measured.source <= index else ends[::-1])}: propagation "
            f"{format_time(link.propagation_delay_s)}; round trip {format_time(found.round_trip_s)}, one way "
            f"{delays[0]} there and {delays[1]} back ({clock}), jitter {format_time(found.jitter_s[0])} and "
            f"{format_time(found.jitter_s[1])}",
            f"  on the wire {rates[0]} there and {rates[1]} back; congestion control "
            f"{found.congestion_control or 'not known here'}; took {format_time(found.seconds)} and "
            f"{format_bytes(found.bytes)}",
            *rows,
        ]
    )


@click.command(cls=Command)
@click.argument("agents", nargs=-1, required=True, metavar="[TIER=]URL...")
@click.option("--interval", type=Quantity("time"), default="1 s", show_default=True, help="Between two looks.")
@click.option("--once", is_flag=True, help="Look twice, print, and end.")
def top(agents: tuple[str, ...], interval: float, once: bool) -> None:
    """Show tiers, links and exits of running agents live, from their Prometheus pages.

    Each of AGENTS is the address of one, such as edge=http://10.0.0.5:9100/metrics or 10.0.0.5:9100. Ctrl-C ends it.
    """
    import time

    from rich.live import Live

    from portend.cli.top import address, tables

    named = [address(text) for text in agents]
    names = [tier or url for tier, url in named]
    before = _look(named)
    if once:
        time.sleep(interval)
        after = _look(named)
        terminal().print(tables(before, after, names))
        if all(isinstance(each, str) for each in after):
            raise DeploymentError(f"no agent answers: {after[0]}; check the addresses")
        return
    with Live(tables(before, before, names), screen=True, auto_refresh=False) as screen:
        while True:
            time.sleep(interval)
            after = _look(named)
            screen.update(tables(before, after, names), refresh=True)
            before = after


def _look(named: list[tuple[str, str]]) -> list[Reading | str]:
    """A reading of each agent, or why there is none."""
    import time

    from portend.cli.top import fetch, read

    found: list[Reading | str] = []
    for tier, url in named:
        try:
            found.append(read(fetch(url), tier or url, time.monotonic()))
        except DeploymentError as error:
            found.append(str(error))
    return found
