"""What several commands read: plans with their topology, and what is to run them."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from portend.errors import ConfigError

if TYPE_CHECKING:
    from portend.planner.limits import Limits
    from portend.planner.planfile import PlanFile
    from portend.testbed.emulation.base import Emulation
    from portend.testbed.emulation.traces import BandwidthTrace
    from portend.values.execution import Execution
    from portend.values.topology import Topology


__all__ = [
    "Tell",
    "bars",
    "check_writable",
    "emulated",
    "executions",
    "limited",
    "load_traces",
    "planned_for",
    "told",
]


def told(warnings: list[str]) -> None:
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)


def planned_for(plan: str, topology: str) -> tuple[PlanFile, Topology]:
    """The plan in a file and the topology that it is to run on, which has to be the one that it was made for."""
    from portend.io.forms import load_topology
    from portend.planner.planfile import load_plan

    planned, places = load_plan(plan), load_topology(topology)
    told(planned.checked(places, plan, topology))
    if planned.status in ("infeasible", "unknown"):
        click.echo(f"note: {plan} misses its constraints: {planned.problem}", err=True)
    return planned, places


def executions(planned: PlanFile, network: str, places: Topology, **asked: Any) -> list[Execution]:
    """What runs partitions on each tier: what the options say, then what was profiled for the plan."""
    from portend.verbs.run import executions_of

    given = {name: value for name, value in asked.items() if value is not None}
    if given.get("executor") == "auto":
        raise ConfigError("a run takes the executor that was profiled for the plan; leave --executor out, or name one")
    return [replace(usual, **given) for usual in executions_of(network, places, None, planned)]


Tell = Callable[[str, int, int], None]


@contextmanager
def bars(quiet: bool = False) -> Iterator[Tell]:
    """Give a function (stage, done, total) that shows on standard error how far a stage is; rich is imported late."""
    from portend.progress import progress

    with progress(quiet=quiet) as tell:
        yield tell


def check_writable(out: str) -> None:
    """Refuse an output path now that could not be written after minutes of work."""
    folder = Path(out).resolve().parent
    while not folder.exists():
        folder = folder.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ConfigError(
            f"{out} cannot be written: {folder} is not a folder that may be written; choose another --out"
        )


@contextmanager
def limited(
    seconds: float | None, memory: float | None, shown: Callable[[float], str] | None = None
) -> Iterator[Limits]:
    """Limits of searches, which show on a terminal how far they are, with values as ``shown`` writes them."""
    from portend.planner.limits import Limits

    with ExitStack() as stack:
        tell = None
        if shown is not None and sys.stderr.isatty():
            from portend.progress import searching

            tell = stack.enter_context(searching(shown))
        yield Limits(seconds=math.inf if seconds is None else seconds, memory=memory, progress=tell)


def emulated(name: str, places: Topology, traces: dict[str, str]) -> Emulation:
    """The emulation of this name; the relay, with a word on it, where namespaces were asked for but cannot be had."""
    from portend.testbed.emulation.choose import make_emulation
    from portend.testbed.emulation.namespaces import unavailable

    if name == "namespaces" and not traces and (reason := unavailable()):
        click.echo(f"note: {reason}; the relay emulates the links instead", err=True)
        name = "relay"
    return make_emulation(name, places, load_traces(traces, places))


def load_traces(traces: dict[str, str], places: Topology) -> dict[int, BandwidthTrace]:
    from portend.testbed.emulation.traces import trace_from

    for link in traces:
        if not (link.isdecimal() and int(link) < len(places.links)):
            raise ConfigError(f"--trace {link}=...: the links of the topology are {places.numbered_links()}")
    return {int(link): trace_from(text) for link, text in traces.items()}
