"""The commands that run plans on this machine: run, testbed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click

from portend.cli.inputs import bars, check_writable, emulated, executions, load_traces, planned_for
from portend.cli.options import (
    Command,
    FileOf,
    Quantity,
    allow_code,
    as_json,
    data_option,
    emulation_option,
    execution_options,
    say,
    seed_option,
    topology_option,
    traces_option,
)
from portend.errors import DeploymentError

__all__ = ["run", "testbed"]


@click.command(cls=Command)
@click.argument("plan", type=FileOf("plan"))
@click.option(
    "--network",
    required=True,
    type=FileOf("checkpoint", "exported"),
    help="Its checkpoint, or what `portend export` wrote.",
)
@topology_option
@data_option
@seed_option
@click.option("--samples", type=click.IntRange(1), default=100, show_default=True, help="Test samples to run.")
@click.option("--window", type=click.IntRange(1), default=1, show_default=True, help="Samples under way at once.")
@click.option(
    "--gap", type=Quantity("time"), help="Idle time before each sample; default 50 ms, or 0 with a larger window."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, show_default=True, help="Control port; 0: any free one."
)
@emulation_option
@traces_option
@execution_options
@allow_code
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="Measurement file to write (.zip).")
@as_json
def run(
    plan: str, network: str, topology: str, data: str | None, seed: int | None, samples: int, window: int,
    gap: float | None, port: int, emulation: str | None, traces: dict[str, str], allow_code: tuple[str, ...], out: str,
    as_json: bool, **asked: Any,
) -> None:  # fmt: skip
    """Run PLAN (JSON) over agents on this machine and emulated links; write the raw traces.

    Each tier runs partitions as its device was profiled for PLAN, unless the options say otherwise.
    """
    planned, places = planned_for(plan, topology)
    chosen = planned.plan

    from portend.data.dataset import draw, make_splits
    from portend.io.storage import save
    from portend.networks.networkfile import read_spec
    from portend.testbed.deployment import Deployment
    from portend.verbs.network import samples_of

    check_writable(out)
    planned.check_network(read_spec(network, allow_code=allow_code), plan, network)
    tier_executions = executions(planned, network, places, **asked)
    links = emulated(emulation or "relay", places, traces)
    dataset, trained = samples_of(network, data, seed, allow_code=allow_code)
    test = draw(make_splits(dataset, seed=trained).test, samples, seed=trained)
    with (
        bars(quiet=as_json) as tell,
        Deployment(
            places,
            network,
            dataset.decoder,
            executions=tier_executions,
            criterion=chosen.criterion,
            emulation=links,
            port=port,
            allow_code=allow_code,
            ranges=planned.ranges,
        ) as deployment,
    ):
        deployment.load_samples([dataset.encoded[i] for i in test], dataset.labels[test])
        deployment.deploy(chosen)
        idle_s = gap if gap is not None else 0.05 if window == 1 else 0.0
        measured = deployment.run(window=window, gap_s=idle_s, on_progress=lambda *at: tell("run", *at))
    if planned.search is not None:  # for `portend report`
        found = {"search": planned.search.to_text(), "new samples": planned.on_new_samples}
        measured = replace(measured, provenance={**measured.provenance, **found})
    save(measured, out)
    answer = {
        "samples": len(measured),
        "latency_ms": {
            "mean": 1e3 * measured.mean_s,
            "p50": 1e3 * measured.quantile_s(0.5),
            "p95": 1e3 * measured.quantile_s(0.95),
        },
        "accuracy": measured.accuracy,
        "exit_rates": measured.exit_rates().tolist(),
        "parts_ms": {kind: 1e3 * seconds for kind, seconds in measured.parts_s().items()},
        "disturbed": measured.provenance.get("disturbed", ""),
    }
    if answer["disturbed"]:
        click.echo(f"warning: {answer['disturbed']}; run again when it is quiet", err=True)
    if as_json:
        click.echo(json.dumps(answer))
    else:
        say(
            f"{chosen.describe(places.names)}\n{len(measured)} samples: "
            f"mean {1e3 * measured.mean_s:.2f} ms, p95 {1e3 * measured.quantile_s(0.95):.2f} ms, "
            f"accuracy {100 * measured.accuracy:.2f} %, "
            f"exit rates {', '.join(f'{100 * rate:.1f} %' for rate in measured.exit_rates())}\n{out}"
        )


@click.group()
def testbed() -> None:
    """Network namespaces, one per tier of a TOPOLOGY, with its links between them (docs/testbed.md).

    Programs of your own run in them by `ip netns exec NAMESPACE COMMAND`; `portend run --emulation namespaces` makes
    its own and does not need this.
    """


testbed.command_class = Command


@testbed.command()
@click.argument("topology", type=FileOf("topology"))
@traces_option
@as_json
def up(topology: str, traces: dict[str, str], as_json: bool) -> None:
    """Set up the namespaces of TOPOLOGY, verify every link, and keep them until Ctrl-C or `portend testbed down`."""
    import time

    from portend.io.forms import load_topology
    from portend.testbed.emulation.namespaces import Namespaces, unavailable

    places = load_topology(topology)
    if reason := unavailable():
        raise DeploymentError(f"{reason}; without that, `portend run` emulates the links by its relay")

    standing = Namespaces(places, traces=load_traces(traces, places), purpose="testbed")
    try:
        with standing:
            if as_json:
                click.echo(json.dumps(standing.record()))
            else:
                _show_testbed(standing.record())
                say("ready; Ctrl-C takes it down")
            while True:
                time.sleep(0.5)
                standing.check()
    except KeyboardInterrupt:
        click.echo("the testbed is down", err=True)


@testbed.command()
@click.argument("topology", required=False, type=FileOf("topology"))
@as_json
def down(topology: str | None, as_json: bool) -> None:
    """Take down what `up` set up and what killed processes left, of all topologies or of TOPOLOGY only.

    A run that goes on is left alone.
    """
    from portend.testbed.emulation.remains import take_down

    gone, left = take_down(_of_topology(topology))
    if as_json:
        click.echo(json.dumps({"removed": [each.testbed for each in gone], "in use": [each.testbed for each in left]}))
        return
    for each in gone:
        say(f"{each.testbed}: removed {', '.join(each.namespaces) or 'its record'}")
    for each in left:
        say(f"{each.testbed}: in use by process {each.pid}, left alone; stop that to remove it")
    if not (gone or left):
        say("nothing was there")


@testbed.command()
@click.argument("topology", required=False, type=FileOf("topology"))
@as_json
def show(topology: str | None, as_json: bool) -> None:
    """Show the testbeds that stand, with what was measured on their links, of all topologies or of TOPOLOGY only."""
    from portend.testbed.emulation.remains import standing

    found = [each for each in standing() if _of_topology(topology)(each)]
    if as_json:
        facts = [
            {"id": s.testbed, "pid": s.pid, "alive": s.alive, "namespaces": s.namespaces, **s.record} for s in found
        ]
        click.echo(json.dumps(facts))
        return
    for each in found:
        state = f"process {each.pid}" if each.alive else "left by a killed process; `portend testbed down` removes it"
        say(f"{each.testbed}: {each.record.get('purpose', 'unfinished')}, {state}")
        if "tiers" in each.record:
            _show_testbed(each.record)
    if not found:
        say("nothing stands")


def _of_topology(topology: str | None) -> Callable[[Any], bool]:
    """Whether a testbed is of the topology in this file; all are, where none is named."""
    from portend.io.forms import load_topology

    if topology is None:
        return lambda each: True
    name = load_topology(topology).name
    return lambda each: bool(each.record.get("topology") == name)


def _show_testbed(record: dict[str, Any]) -> None:
    say(f"{record['topology']} ({record['links']})")
    names = [tier["name"] for tier in record["tiers"]]
    for tier in record["tiers"]:
        say(f"  {tier['name']:<12} {tier['address']:<14} {tier['namespace']}")
    for check in record["checks"]:
        line = (
            f"  {names[check['start']]}–{names[check['end']]}: round trip {1e3 * check['round_trip_s']:.2f} ms "
            f"({1e3 * check['due_round_trip_s']:.2f} due)"
        )
        for way, rate, due in zip(("there", "back"), check["rates_bps"], check["due_rates_bps"], strict=False):
            line += f", {way} {rate / 1e6:.4g} Mbit/s ({due / 1e6:.4g})"
        say(line)
