"""Portend: plan, run and prove partitioned early-exit inference over a chain of machines.

What needs no torch is imported here::

    import portend as pt

    profile = pt.load_profile("profiles/resnet20-digits.zip")
    topology = pt.load_topology("configs/topologies/three_tier.yaml")
    problem = pt.Problem(minimize=pt.latency, subject_to=[pt.accuracy >= 0.97])
    print(pt.solve(problem, pt.PerformanceModel(profile, topology)))

Training, profiling and running live in ``portend.models``, ``portend.profiling`` and ``portend.runtime``; of these
``split``, ``multi_exit``, ``adopt`` and ``Chain`` have their names here too, and are loaded, with torch, when they are
first used.
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
from portend.values.measurement import Measurement
from portend.values.plan import Plan, PlanBatch, takes_exit
from portend.values.profile import (
    BackboneSpec,
    CodecLoss,
    CodecProfile,
    DeviceProfile,
    Profile,
    ResultProfile,
    SampleExits,
    TabulatedExits,
    ValueRange,
)
from portend.values.topology import Link, SlowStart, Tier, Topology

if TYPE_CHECKING:
    from portend.networks.adopting import adopt
    from portend.networks.heads import multi_exit
    from portend.networks.split import Chain, split

__version__ = "0.1.0"

_WITH_TORCH = {
    "Chain": "networks.split",
    "adopt": "networks.adopting",
    "multi_exit": "networks.heads",
    "split": "networks.split",
}


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module 'portend' has no attribute {name!r}")
    return getattr(import_module(f"portend.{_WITH_TORCH[name]}"), name)


__all__ = [
    "BackboneSpec",
    "Batch",
    "Block",
    "Chain",
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
    "PortendError",
    "Problem",
    "Profile",
    "ResultProfile",
    "SampleExits",
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
    "deadline_misses",
    "energy",
    "latency",
    "latency_quantile",
    "link_bytes",
    "load_measurement",
    "load_metric",
    "load_profile",
    "load_topology",
    "memory",
    "metric",
    "multi_exit",
    "price",
    "save",
    "solve",
    "split",
    "takes_exit",
    "throughput",
    "utilization",
]
