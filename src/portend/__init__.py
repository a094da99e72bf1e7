"""Portend: plan, run and prove partitioned early-exit inference over a chain of machines.

What needs no torch is imported here::

    import portend as pt

    profile = pt.load_profile("profiles/resnet20-digits.zip")
    topology = pt.load_topology("configs/topologies/three_tier.yaml")
    problem = pt.Problem(minimize=pt.latency, subject_to=[pt.accuracy >= 0.97])
    print(pt.solve(problem, pt.PerformanceModel(profile, topology)))

The verbs ``split, multi_exit, adopt, train, profile, run, compare, sweep, refine, deploy`` and ``Client`` are loaded,
with what they need, when they are first used::

    net = pt.multi_exit(pt.split(model, example), num_classes=10)
    trained = pt.train(net, "folder:pictures", out="runs/a")
    profile = pt.profile(trained)
    ...
    measured = pt.run(solution.plan, trained, topology, profile=profile)
    print(pt.compare(profile, measured))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from portend.errors import PortendError
from portend.io.forms import load_topology
from portend.io.storage import load_measurement, load_profile, save
from portend.perfmodel.estimate import Estimate, EstimateBatch
from portend.perfmodel.model import PerformanceModel
from portend.planner.metrics import (
    Batch,
    Block,
    Metric,
    accuracy,
    additive,
    deadline_misses,
    energy,
    latency,
    latency_quantile,
    link_bytes,
    load_metric,
    memory,
    metric,
    price,
    throughput,
    utilization,
)
from portend.planner.problem import Problem, SearchSpace, Solution
from portend.planner.solve import solve
from portend.values.backbone import BackboneSpec
from portend.values.codecs import CodecLoss, CodecProfile, ResultProfile, ValueRange
from portend.values.device_profile import DeviceProfile
from portend.values.exits import SampleExits, TabulatedExits
from portend.values.measurement import Measurement
from portend.values.plan import Plan, PlanBatch, takes_exit
from portend.values.profile import Profile
from portend.values.topology import Link, SlowStart, Tier, Topology

if TYPE_CHECKING:
    from portend.analysis.whatif import Scenario, parse_axis, sweep
    from portend.networks.adopting import adopt
    from portend.networks.heads import multi_exit
    from portend.networks.split import Chain, split
    from portend.planner.planfile import PlanFile, load_plan
    from portend.service.client import Client
    from portend.verbs.compare import compare
    from portend.verbs.deploy import deploy
    from portend.verbs.profile import profile, profile_machine
    from portend.verbs.run import run
    from portend.verbs.train import train
    from portend.workflows.refine import refine

__version__ = "0.1.0"

_LATE = {
    "Chain": "networks.split",
    "Client": "service.client",
    "PlanFile": "planner.planfile",
    "Scenario": "analysis.whatif",
    "adopt": "networks.adopting",
    "compare": "verbs.compare",
    "deploy": "verbs.deploy",
    "load_plan": "planner.planfile",
    "multi_exit": "networks.heads",
    "parse_axis": "analysis.whatif",
    "profile": "verbs.profile",
    "profile_machine": "verbs.profile",
    "refine": "workflows.refine",
    "run": "verbs.run",
    "split": "networks.split",
    "sweep": "analysis.whatif",
    "train": "verbs.train",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'portend' has no attribute {name!r}")
    return getattr(import_module(f"portend.{_LATE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})


__all__ = [
    "BackboneSpec",
    "Batch",
    "Block",
    "Chain",
    "Client",
    "CodecLoss",
    "CodecProfile",
    "DeviceProfile",
    "Estimate",
    "EstimateBatch",
    "Link",
    "Measurement",
    "Metric",
    "PerformanceModel",
    "Plan",
    "PlanBatch",
    "PlanFile",
    "PortendError",
    "Problem",
    "Profile",
    "ResultProfile",
    "SampleExits",
    "Scenario",
    "SearchSpace",
    "SlowStart",
    "Solution",
    "TabulatedExits",
    "Tier",
    "Topology",
    "ValueRange",
    "accuracy",
    "additive",
    "adopt",
    "compare",
    "deadline_misses",
    "deploy",
    "energy",
    "latency",
    "latency_quantile",
    "link_bytes",
    "load_measurement",
    "load_metric",
    "load_plan",
    "load_profile",
    "load_topology",
    "memory",
    "metric",
    "multi_exit",
    "parse_axis",
    "price",
    "profile",
    "profile_machine",
    "refine",
    "run",
    "save",
    "solve",
    "split",
    "sweep",
    "takes_exit",
    "throughput",
    "train",
    "utilization",
]
