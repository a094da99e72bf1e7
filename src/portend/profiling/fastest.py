"""Which executor runs a network fastest on this machine: measured, not assumed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from portend.data.dataset import Dataset
from portend.errors import law
from portend.networks.networkfile import read_spec
from portend.testbed.deployment import Deployment
from portend.values.execution import Execution
from portend.values.topology import Link, Tier, Topology

__all__ = ["Timing", "time_executions"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Seconds of the whole network, one sample at a time, by one execution: median and quartiles."""

    execution: Execution
    median_s: float
    quartiles_s: tuple[float, float]


def time_executions(
    network: str | Path,
    dataset: Dataset,
    executions: Sequence[Execution],
    *,
    turns: int = 3,
    repeats: int = 10,
    allow_code: Collection[str] = (),
) -> tuple[Timing, ...]:
    """Time the whole network on the first sample by each execution, ``repeats`` times a turn, the fastest first.

    Each runs in an agent of its own, as it would in a deployment, one at a time.

    Raises:
        InvalidValue: there is nothing to compare; DeploymentError, ExportError: one of them does not run here.
    """
    law(min(len(executions), turns, repeats) >= 1, "a comparison needs at least one execution, turn and repeat")
    tiers = tuple(Tier(name=str(index), device="x") for index in range(len(executions)))
    links = (Link(bandwidth_bps=1e12, propagation_delay_s=0.0),) * (len(tiers) - 1)  # nothing crosses them
    places = Topology(name="executions", tiers=tiers, links=links)
    blocks = read_spec(network, allow_code=allow_code).num_blocks
    seconds = np.empty((turns, repeats, len(executions)))
    with Deployment(
        places, network, dataset.decoder, executions=executions, emulation="none", allow_code=allow_code
    ) as bench:
        bench.load_samples([dataset.encoded[0]], dataset.labels[:1])
        for turn in range(turns):
            for index in range(len(executions)):
                seconds[turn, :, index] = bench.time_partitions(index, [(0, blocks, True)] * repeats)[:, 0]
    low, middle, high = np.quantile(seconds, (0.25, 0.5, 0.75), axis=(0, 1))
    found = [
        Timing(execution=e, median_s=float(middle[i]), quartiles_s=(float(low[i]), float(high[i])))
        for i, e in enumerate(executions)
    ]
    return tuple(sorted(found, key=lambda timing: timing.median_s))
