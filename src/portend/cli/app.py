"""The command line. Every command imports what it needs when it runs, so that ``plan`` needs no torch."""

from __future__ import annotations

import signal
import sys
from typing import Final

import click

from portend.cli import comparing, observe, planning, profiling, running, service, training
from portend.cli.options import Command
from portend.errors import PortendError

__all__ = ["cli", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="portend")
def cli() -> None:
    """Plan, run and prove partitioned early-exit inference over a chain of machines.

    \b
    portend demo      the whole path on handwritten digits, in about four minutes
    portend train     a multi-exit network
    portend calibrate its exits' probabilities, on a split of their own
    portend exits     what each exit of a network does
    portend export    a network for machines without PyTorch
    portend profile   how its samples exit, and what this machine needs for it
    portend merge     profiles of several machines
    portend codecs    what each way to send a tensor costs
    portend plan      the proven best cuts, exits, thresholds and tiers
    portend refine    a plan and the network's weights for it, in turns
    portend run       a plan, across agents and emulated links
    portend testbed   namespaces with a topology's links, for any program
    portend links     what links do: delay, rate, and how long messages take
    portend compare   predictions with measurements
    portend validate  the model itself, over a campaign of many plans
    portend drift     whether exits still do what the profile says
    portend report    one HTML page with everything
    portend whatif    the best plan as fields vary, and where it flips
    portend top       running agents, live
    portend trace     what a run recorded, for Perfetto and OpenTelemetry
    portend reference every key of every YAML file

    \b
    portend keys      for agents on real machines, and who may talk to them
    portend agent     one tier, on its own host, until it is stopped
    portend deploy    a plan and its fallbacks to the agents
    portend feed      samples to the service, answers to a journal
    portend status    of the agents
    """


cli.command_class = Command


@cli.command()
@click.option("--out", type=click.Path(dir_okay=False), help="File to write; default: print it.")
def reference(out: str | None) -> None:
    """Print every key of every YAML file as Markdown (docs/yaml.md)."""
    from portend.cli.reference import yaml_reference
    from portend.io.storage import write_text

    if out:
        write_text(yaml_reference(), out)
    click.echo(out or yaml_reference())


_COMMANDS: Final = (
    training.train, training.export, training.calibrate, training.exits,
    profiling.profile, profiling.merge, profiling.codecs,
    planning.plan, planning.refine, planning.whatif,
    running.run, running.testbed,
    comparing.demo, comparing.compare, comparing.validate, comparing.drift, comparing.report,
    observe.links, observe.top, observe.trace, *service.COMMANDS,
)  # fmt: skip

for _command in _COMMANDS:
    cli.add_command(_command)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


_PACKAGES: Final = {"sklearn": "scikit-learn", "PIL": "pillow", "google": "protobuf", "zmq": "pyzmq"}
"""Where a package is installed by another name than it is imported."""


def main() -> None:
    """Run the command line; errors are one line, without a stack trace.

    SIGTERM and a lost terminal (unless it runs by nohup) end a command as Ctrl-C does, so that it leaves nothing.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _interrupt)
    try:
        code = cli.main(prog_name="portend", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; nothing was left running", err=True)
        sys.exit(130)
    except PortendError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("portend"):
            raise
        name = _PACKAGES.get(error.name or "", error.name)
        click.echo(
            f"Error: this command needs the package {name}, which is not installed; install it with: pip install "
            f"{name}, or all extras, PyTorch too, with: pip install 'portend[all]'",
            err=True,
        )
        sys.exit(1)
    except OSError as error:
        click.echo(f"Error: {error.strerror or error}: {error.filename or ''}".rstrip(": "), err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
