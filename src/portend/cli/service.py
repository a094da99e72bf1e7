"""The commands of a service on real machines: keys, agent, deploy, feed, status."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import click

from portend.cli.options import Command, FileOf, Quantity, allow_code, as_json, say
from portend.errors import InvalidValue, PortendError

if TYPE_CHECKING:
    from portend.service.keys import Keys
    from portend.service.operator import Agents

__all__ = ["COMMANDS"]

_SECONDS = Quantity("time", bare="s")
SOME_FAILED = 4
"""How `portend feed` ends where samples were reported failed."""


def _secured(command: Any) -> Any:
    """Give a command the options that say how connections are secured."""
    plain = "Plain text, without keys; on the loopback interface only."
    command = click.option("--plain", is_flag=True, help=plain)(command)
    return click.option("--keys", type=click.Path(file_okay=False), help="Folder of `portend keys`.")(command)


def _keys_of(name: str, folder: str | None, plain: bool) -> Keys | None:
    from portend.service.keys import load_keys

    if plain == (folder is not None):
        raise click.UsageError("give --keys DIR; or --plain, on one machine")
    return None if folder is None else load_keys(folder, name)


_topology = click.option(
    "--topology", required=True, type=FileOf("topology"), help="YAML file with tiers, their hosts and ports."
)


@click.command(cls=Command)
@click.argument("folder", type=click.Path(file_okay=False))
@click.argument("names", nargs=-1)
@as_json
def keys(folder: str, names: tuple[str, ...], as_json: bool) -> None:
    """Make key pairs in FOLDER for agents (NAMES, as their tiers are called) and for the coordinator.

    A pair that is there already stays. Give each host all the *.key files, and of the *.key_secret only its own.
    """
    from portend.service.keys import OPERATOR, make_keys

    made = make_keys(folder, dict.fromkeys((*names, OPERATOR)))
    if as_json:
        click.echo(json.dumps(made))
        return
    for name, new in made.items():
        say(f"{folder}/{name}.key, {name}.key_secret: {'made' if new else 'was there'}")


@click.command(cls=Command)
@click.option("--name", required=True, help="Name of the tier that this host is.")
@click.option("--listen", default="tcp://127.0.0.1:7100", show_default=True, help="Address for agents and coordinator.")
@_secured
@click.option("--state", required=True, type=click.Path(file_okay=False), help="Folder that survives restarts.")
@click.option("--http", help="Loopback address of the HTTP interface, such as 127.0.0.1:8080. Default: none.")
@click.option(
    "--log", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Format of the log."
)
@click.option("--verbose", is_flag=True, help="Log more.")
@allow_code
def agent(
    name: str, listen: str, keys: str | None, plain: bool, state: str, http: str | None, log: str, verbose: bool,
    allow_code: tuple[str, ...],
) -> None:  # fmt: skip
    """Run one tier's agent on this host until SIGTERM or SIGINT.

    It ends with 0 when it was told to, with 1 when it cannot run (an address in use, no keys), with 2 on a wrong
    option. What it ran last it runs again after a restart.
    """
    import asyncio

    from portend.service.agent import ServiceAgent
    from portend.service.keys import check_name
    from portend.service.logs import log_to_stderr

    log_to_stderr(as_json=log == "json", verbose=verbose)
    with contextlib.suppress(ImportError, ValueError, OSError):  # no such limits on this system
        import resource

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each connection takes a descriptor
    one = ServiceAgent(
        check_name(name), listen, keys=_keys_of(name, keys, plain), state=state, http=http, allow_code=allow_code
    )

    async def until_told() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, one.stopping.set)
        await one.run()

    asyncio.run(until_told())


def _agents(topology: str, keys: str | None, plain: bool) -> AbstractContextManager[Agents]:
    from portend.io.forms import load_topology
    from portend.service.keys import OPERATOR
    from portend.service.operator import Agents

    return Agents(load_topology(topology), _keys_of(OPERATOR, keys, plain))


@click.command(cls=Command)
@click.argument("plan", type=FileOf("plan"))
@click.option(
    "--network",
    required=True,
    type=FileOf("checkpoint", "exported"),
    help="Its checkpoint, or what `portend export` wrote.",
)
@_topology
@_secured
@click.option("--window", type=click.IntRange(1), default=8, show_default=True, help="Samples under way at once.")
@click.option("--waiting", type=click.IntRange(0), default=64, show_default=True, help="Samples that may wait.")
@click.option(
    "--deadline", type=_SECONDS, default="30 s", show_default=True, help="After so long a sample is reported failed."
)
@click.option(
    "--retry", type=_SECONDS, default="5 s", show_default=True,
    help="Time until a sample without an answer is sent again.",
)  # fmt: skip
@click.option("--attempts", type=click.IntRange(1), default=5, show_default=True, help="Most times a sample is sent.")
@click.option(
    "--silence", type=Quantity("time", bare="s", least=0.3), default="1 s", show_default=True,
    help="Silence after which an agent counts as dead.",
)  # fmt: skip
@click.option(
    "--profile", type=FileOf("profile"),
    help="Profile that the plan was made for: the source then watches whether exits do what it says.",
)  # fmt: skip
@click.option(
    "--largest-sample", type=Quantity("size"), default="8 MiB", show_default=True, help="Larger samples are refused."
)
@click.option(
    "--batch", "batches", multiple=True, metavar="TIER=COUNT",
    help="Let a tier run up to COUNT of the samples that wait for it at once. Default: one at a time.",
)  # fmt: skip
@allow_code
@as_json
def deploy(
    plan: str, network: str, topology: str, keys: str | None, plain: bool, window: int, waiting: int, deadline: float,
    retry: float, attempts: int, silence: float, profile: str | None, largest_sample: float, batches: tuple[str, ...],
    allow_code: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Let the agents of a topology run PLAN (JSON), and its fallbacks where a tier is away.

    The networks go to the agents that do not have them yet. What ran before goes on until the new plans are loaded
    everywhere, and samples under way finish by the plan they began with. `portend plan --fallbacks` makes fallbacks.
    """
    from portend.cli.inputs import planned_for
    from portend.io.storage import load_profile
    from portend.progress import progress
    from portend.service.keys import OPERATOR
    from portend.service.release import Limits
    from portend.units import signed
    from portend.verbs.deploy import deploy as deploy_plan

    try:
        limits = Limits(
            window=window, waiting=waiting, deadline_s=deadline, retry_s=retry, attempts=attempts, silence_s=silence,
            beat_s=min(0.2, silence / 5), sample_bytes=int(largest_sample),
        )  # fmt: skip
    except InvalidValue as error:
        raise click.UsageError(str(error)) from None
    planned, hosts = planned_for(plan, topology)
    with progress(quiet=as_json) as tell:
        deployed = deploy_plan(
            planned, network, hosts, keys=_keys_of(OPERATOR, keys, plain), limits=limits,
            profile=None if profile is None else load_profile(profile),
            batches=_batches(batches, [tier.name for tier in hosts.tiers]), allow_code=allow_code, on_progress=tell,
        )  # fmt: skip
    estimate = planned.answer.get("estimate") or {}
    if tight := limits.too_tight(1e-3 * float(estimate.get("latency_ms", {}).get("mean", 0.0))):
        click.echo(f"warning: {tight}", err=True)
    if as_json:
        answer = {
            "release": deployed.release,
            "plans": [each.to_dict() for each in deployed.plans],
            "clock_offset_s": {agent.name: agent.offset_s for agent in deployed.agents},
            "settled": deployed.settled,
            "lacks": deployed.lacks,
        }
        click.echo(json.dumps(answer))
        return
    say(str(deployed))
    for agent in deployed.agents:
        offset = signed(1e3 * agent.offset_s, 2)
        say(f"  clock of {agent.name}: {offset} ms, give or take {1e3 * agent.within_s:.2f} ms")
    if deployed.lacks:
        click.echo(f"  note: the wanted plan cannot be used now: {'; '.join(deployed.lacks)}", err=True)
    if not deployed.settled:
        click.echo("  note: samples of the release before are still under way", err=True)


def _batches(words: tuple[str, ...], names: list[str]) -> dict[str, int]:
    """Return the largest batch of each tier."""
    batches: dict[str, int] = {}
    for word in words:
        name, _, count = word.rpartition("=")
        if name not in names or not count.isdecimal() or int(count) < 1:
            raise click.UsageError(f"--batch is TIER=COUNT with a tier of {', '.join(names)}, but got {word!r}")
        if name in batches:
            raise click.UsageError(f"--batch names {name} twice, with {batches[name]} and {count}; give one of them")
        batches[name] = int(count)
    return batches


@click.command(cls=Command)
@_topology
@_secured
@click.option("--journal", required=True, type=click.Path(dir_okay=False), help="File of answers, one line each.")
@click.option("--data", help="A data set's test samples, such as digits or parquet:FOLDER (docs/data.md).")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the data set's splits.")
@click.option("--samples", type=click.IntRange(1), help="How many of the data set. Default: all test samples.")
@click.option("--folder", type=click.Path(file_okay=False), help="Or the pictures and sounds in a folder.")
@click.option("--watch", is_flag=True, help="Go on with new files of the folder, until SIGTERM or Ctrl-C.")
@click.option("--pending", type=click.IntRange(1), default=64, show_default=True, help="Most samples without answer.")
@click.option(
    "--patience", type=Quantity("time", bare="s", least=1), default="60 s", show_default=True,
    help="Time without a word of the source after which to give up.",
)  # fmt: skip
@as_json
def feed(
    topology: str, keys: str | None, plain: bool, journal: str, data: str | None, seed: int, samples: int | None,
    folder: str | None, watch: bool, pending: int, patience: float, as_json: bool,
) -> int:  # fmt: skip
    """Give samples to the service and write each one's answer to a journal.

    Started again it goes on where it was: samples with a line in the journal are not sent again. It ends with 0, or
    with 4 if the journal has samples that were reported failed.
    """
    from portend.service.drivers import Journal, from_dataset, from_folder

    if (data is None) == (folder is None) or (watch and folder is None):
        raise click.UsageError("give --data or --folder; --watch goes with --folder")
    stopped: list[int] = []
    with Journal(journal) as answers, _agents(topology, keys, plain) as agents:
        labels: dict[str, int] = {}
        if data is not None:
            from portend.data.dataset import draw, make_splits
            from portend.data.sources import load_dataset

            dataset = load_dataset(data)
            test = make_splits(dataset, seed=seed).test
            chosen = draw(test, samples, seed=seed) if samples else test
            labels = {str(index): int(dataset.labels[index]) for index in chosen}
            coming: Any = from_dataset(dataset, chosen, f"{data}|{seed}", answers)
        else:
            coming = from_folder(str(folder), answers, watch=watch, stop=lambda: bool(stopped))
        if watch:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda got, _: stopped.append(got))
        before, right, began = len(answers.answered), 0, time.monotonic()
        for answer in agents.submitter(pending).answers(coming, patience):
            line = answers.write(answer)
            right += not answer.failed and labels.get(line.get("sample", "")) == answer.label
            if watch and not as_json:
                click.echo(json.dumps(line))
        now, seconds = len(answers.answered) - before, time.monotonic() - began
        told = {"answered": now, "before": before, "failed": answers.failed, "seconds": seconds}
        if labels and now:
            told["right"] = right
        if as_json:
            click.echo(json.dumps(told))
        else:
            accuracy = f", {100 * right / now:.2f} % right" if labels and now else ""
            counts = f"{before} answered before; {answers.failed} reported failed"
            say(f"{now} answers in {seconds:.1f} s{accuracy}, {counts}; {journal}")
        return SOME_FAILED if answers.failed else 0


@click.command(cls=Command)
@_topology
@_secured
@as_json
def status(topology: str, keys: str | None, plain: bool, as_json: bool) -> int:
    """Say how the agents of a topology do; ends with 1 if one does not answer."""
    found: dict[str, dict[str, Any]] = {}
    with _agents(topology, keys, plain) as agents:
        for index, tier in enumerate(agents.topology.tiers):
            try:
                found[tier.name] = agents.ask(index, "status", patience_s=3.0)
            except PortendError as error:
                found[tier.name] = {"error": str(error)}
    if as_json:
        click.echo(json.dumps(found))
    else:
        for name, told in found.items():
            say(f"{name:<12} {_state(told)}")
            for line in told.get("drift", ()):
                say(f"{'':<12} {line}")
    return int(any("error" in told for told in found.values()))


def _state(told: dict[str, Any]) -> str:
    from portend.service.release import plan_name

    if "error" in told:
        return str(told["error"])
    peers = ", ".join(
        f"{name} {'up' if peer['up'] else 'away'}"
        + (f" ({1e3 * peer['round_trip_s']:.1f} ms)" if peer["round_trip_s"] is not None else "")
        for name, peer in told["peers"].items()
    )
    line = f"release {told['active'] or 'none'}; {peers or 'no peers'}"
    if told["source"]:
        plan = "no plan can be used" if told["plan"] is None else plan_name(told["plan"])
        plan += f" ({'; '.join(told['lacks'])})" if told["lacks"] else ""
        line += f"; source: {plan}, {told['under_way']} of {told['window']} under way, {told['waiting']} waiting"
    return line


COMMANDS = (keys, agent, deploy, feed, status)
