"""What several commands read: plans with their topology, and what is to run them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from portend.errors import ConfigError
from portend.values.execution import Execution

if TYPE_CHECKING:
    from portend.planner.planfile import PlanFile
    from portend.values.topology import Topology

__all__ = ["executions", "planned_for", "told"]


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
    from portend.networks.networkfile import is_exported

    given = {name: value for name, value in asked.items() if value is not None}
    if given.get("executor") == "auto":
        raise ConfigError("a run takes the executor that was profiled for the plan; leave --executor out, or name one")
    usual = Execution(executor="onnxruntime" if is_exported(network) else "torch")
    return [replace(planned.executions.get(tier.name, usual), **given) for tier in places.tiers]
