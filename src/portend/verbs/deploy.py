"""The verb deploy: a plan and its fallbacks to the agents on their hosts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from portend.errors import InvalidValue, nearest
from portend.io.forms import load_topology
from portend.networks.networkfile import read_spec
from portend.perfmodel.exits import exit_counts
from portend.planner.planfile import PlanFile
from portend.service.keys import OPERATOR, Keys, load_keys
from portend.service.operator import Agents, Found
from portend.service.release import Limits, plan_name
from portend.values.execution import Execution
from portend.values.plan import Plan
from portend.values.profile import Profile
from portend.values.topology import Topology
from portend.verbs.network import Network, check_profile, decoder_of, network_file
from portend.verbs.run import executions_of

__all__ = ["Deployed", "deploy"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployed:
    """What came of a deployment.

    Attributes:
        release: its number. plans: the wanted one first, then the fallbacks.
        agents: their versions and clocks, by tier. lacks: why the wanted plan cannot be used now; empty if it is.
        settled: whether no sample of the release before is under way any more.
    """

    release: int
    plans: tuple[Plan, ...]
    tiers: tuple[str, ...]
    agents: tuple[Found, ...]
    lacks: tuple[str, ...]
    settled: bool

    def __str__(self) -> str:
        plans = (f"{plan_name(number)}: {plan.describe(self.tiers)}" for number, plan in enumerate(self.plans))
        return "\n  ".join([f"release {self.release} runs on {', '.join(self.tiers)}", *plans])


def deploy(
    plan: Plan | PlanFile,
    network: Network,
    hosts: Topology | str | Path,
    *,
    keys: Keys | str | Path | None,
    profile: Profile | None = None,
    fallbacks: Sequence[Plan] = (),
    limits: Limits | None = None,
    batches: Mapping[str, int] | None = None,
    allow_code: Collection[str] = (),
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Deployed:
    """Let the agents of a topology run a plan, and its fallbacks where a tier is away.

    Networks go to the agents that do not have them yet. What ran before goes on until the new plans are loaded
    everywhere.

    Args:
        plan: complete with codecs, as `Solution.plan` is; or a plan's file, with its fallbacks.
        network: what ``train`` returned, or a file: a checkpoint or an exported network.
        hosts: the topology, or its YAML file, whose tiers say ``host`` and ``port``.
        keys: folder of `portend keys`, with the operator's secret, or its content (`service.keys.load_keys`); None:
            plain text, on the loopback interface only.
        profile: tells what runs partitions on each tier and the ranges for int8, and lets the source watch the exits.
        fallbacks: plans for when a tier is away, best first. limits: window, waiting, deadlines of a sample.
        batches: the largest batch by tier name; by default one sample.
        allow_code: ``module:object`` that a checkpoint may name while it is exported.
        on_progress: called with (what, done, total).

    Raises:
        MismatchError: the plan's file was made for another topology or network.
        DeploymentError: an agent is not there or cannot run the plan; then all go on as before.

    Example:
        >>> print(pt.deploy(solution.plan, trained, "hosts.yaml", keys="keys", profile=profile))
    """
    path = network_file(network)
    places = hosts if isinstance(hosts, Topology) else load_topology(hosts)
    spec = read_spec(path, allow_code=allow_code)
    check_profile(profile, spec)
    planned = plan if isinstance(plan, PlanFile) else None
    if isinstance(plan, PlanFile):
        plan.checked(places)
        plan.check_network(spec, "the plan", str(path))
        plans = tuple(dict.fromkeys((*plan.plans, *fallbacks)))
    else:
        plans = tuple(dict.fromkeys((plan, *fallbacks)))
    executions = executions_of(path, places, profile, planned)
    ranges = (dict(enumerate(profile.ranges)) if profile else {}) | dict(planned.ranges if planned else {})
    names = [tier.name for tier in places.tiers]
    with Agents(places, load_keys(keys, OPERATOR) if isinstance(keys, str | Path) else keys) as agents:
        found = agents.hello()
        release = agents.deploy(
            plans, [_file_for(each, path, allow_code) for each in executions], decoder_of(path),
            executions=executions, ranges={str(cut): limit.to_dict() for cut, limit in ranges.items()},
            batches=_batches(batches or {}, names),
            exit_counts=[exit_counts(profile.exits, each) for each in plans] if profile else [],
            limits=limits, on_progress=on_progress,
        )  # fmt: skip
        return Deployed(
            release=release.version, plans=plans, tiers=tuple(names), agents=tuple(found),
            settled=agents.settled(release.version), lacks=tuple(agents.ask(places.source, "status")["lacks"]),
        )  # fmt: skip


def _batches(asked: Mapping[str, int], names: Sequence[str]) -> list[int]:
    for name, count in asked.items():
        if name not in names:
            near = nearest(name, names)
            raise InvalidValue(
                f"batches are of the tiers {', '.join(names)}, but got {name!r}"
                + (f"; did you mean {near!r}?" if near else "")
            )
        if count < 1:
            raise InvalidValue(f"a batch has at least one sample, but got {count} for {name}")
    return [asked.get(name, 1) for name in names]


def _file_for(execution: Execution, network: Path, allow_code: Collection[str]) -> Path:
    if execution.executor != "onnxruntime" or network.suffix == ".onnx":
        return network
    from portend.networks.exporting import exported  # imports PyTorch

    return exported(network, allow_code=allow_code)
