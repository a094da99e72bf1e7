"""The verb run: plans on agents of this machine, in turns, and the machine timed again in between."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from portend.data.dataset import draw, make_splits
from portend.errors import InvalidValue
from portend.networks.networkfile import is_exported, read_spec
from portend.planner.planfile import PlanFile
from portend.profiling.turns import Turns, run_in_turns
from portend.testbed.deployment import Deployment
from portend.testbed.emulation.base import Emulation
from portend.values.codecs import ValueRange
from portend.values.execution import Execution
from portend.values.plan import Plan
from portend.values.profile import Profile
from portend.values.topology import Topology
from portend.verbs.network import Network, check_profile, network_file, samples_of

__all__ = ["executions_of", "run"]


def run(
    plans: Plan | PlanFile | Iterable[Plan],
    network: Network,
    topology: Topology,
    *,
    profile: Profile | None = None,
    samples: int = 100,
    data: str | None = None,
    seed: int | None = None,
    turns: int = 4,
    gap_s: float = 0.05,
    emulation: str | Emulation = "relay",
    allow_code: Collection[str] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> Turns:
    """Run plans over agents on this machine, with emulated links between them, and return what was measured.

    The plans take turns. Between the turns what they run is timed again, so that ``compare`` can tell the model's error
    from the drift of the machine's speed.

    Args:
        plans: one or several, complete with codecs, as `Solution.plan` is; or a plan's file.
        network: what ``train`` returned, or a file: a checkpoint or an exported network.
        topology: tiers on this machine (a tier with a slowdown repeats its work), and their links.
        profile: tells what runs partitions on each tier, and the ranges for int8; by default ONNX Runtime for an
            exported network and PyTorch for a checkpoint. A plan's file tells it too.
        samples: of the test split that each plan runs over. data: the data set, if not the one of the training;
            seed: of its splits.
        turns: in how many shares each plan runs over its samples. gap_s: idle time before each sample, s.
        emulation: ``relay``, ``namespaces`` (root), ``none``, or one of your own making.
        allow_code: ``module:object`` that the file may import and run. on_progress: called with (answered, total).

    Raises:
        MismatchError: the plan's file was made for another topology or network. InvalidValue: a plan has no codecs or
            names a tier that does not exist. DeploymentError: an agent does not start, or dies.

    Example:
        >>> measured = pt.run(solution.plan, trained, topology, profile=profile)
        >>> print(pt.compare(profile, measured))
    """
    path = network_file(network)
    spec = read_spec(path, allow_code=allow_code)
    planned = plans if isinstance(plans, PlanFile) else None
    if isinstance(plans, PlanFile):
        plans.checked(topology)
        plans.check_network(spec, "the plan", str(path))
        chosen: list[Plan] = [plans.plan]
    else:
        chosen = [plans] if isinstance(plans, Plan) else list(dict.fromkeys(plans))
    asked = {plan.criterion for plan in chosen if plan.asks}
    if len(asked) > 1:
        raise InvalidValue(f"plans that run together ask exits by one criterion, but got {', '.join(sorted(asked))}")
    check_profile(profile, spec)
    dataset, trained = samples_of(network, data, seed, allow_code=allow_code)
    test = draw(make_splits(dataset, seed=trained).test, samples, seed=trained)
    ranges: dict[int, ValueRange] = dict(enumerate(profile.ranges)) if profile else {}
    with Deployment(
        topology, path, dataset.decoder, executions=executions_of(path, topology, profile, planned),
        criterion=next(iter(asked), "entropy"), emulation=emulation, allow_code=allow_code,
        ranges=ranges | dict(planned.ranges if planned else {}),
    ) as deployment:  # fmt: skip
        deployment.load_samples([dataset.encoded[i] for i in test], dataset.labels[test])
        return run_in_turns(
            deployment, {plan: len(test) for plan in chosen}, spec.num_blocks, turns=turns, gap_s=gap_s,
            seed=trained, on_progress=on_progress,
        )  # fmt: skip


def executions_of(
    network: str | Path, topology: Topology, profile: Profile | None, planned: PlanFile | None
) -> list[Execution]:
    """Return what runs partitions on each tier: as the plan's file or the profile says, or what the file is for."""
    usual = Execution(executor="onnxruntime" if is_exported(network) else "torch")
    known: dict[str, Execution] = {}
    if profile is not None:
        devices = profile.devices
        known = {tier.name: devices[tier.device].execution for tier in topology.tiers if tier.device in devices}
    known |= dict(planned.executions) if planned else {}
    return [known.get(tier.name, usual) for tier in topology.tiers]
