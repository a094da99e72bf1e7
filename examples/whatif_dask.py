"""A sweep of 200 bandwidths and edge speeds on a Dask cluster, here one of two worker processes on this machine.

Needs ``pip install 'portend[cluster]'``. For a cluster elsewhere, give its address:
``Client("tcp://scheduler:8786")``; its workers need portend too. Run from the repository's root:
``python examples/whatif_dask.py``
"""

import time
from typing import Any

from distributed import Client, LocalCluster

import portend as pt
from portend.analysis.whatif import Scenario, find_crossovers, parse_axis, sweep


def main() -> None:
    scenario = Scenario(
        profile=pt.load_profile("profiles/resnet20-digits.zip"),
        topology=pt.load_topology("configs/topologies/three_tier.yaml"),
        problem=pt.Problem(minimize=pt.latency, subject_to=(pt.accuracy >= 0.97,)),
    )
    axes = [
        parse_axis(scenario, "links[0].bandwidth=1..100 Mbit/s log 20"),
        parse_axis(scenario, "tiers[edge].slowdown=5..50 10"),
    ]
    begin = time.perf_counter()
    alone = sweep(scenario, axes)
    print(f"one after the other: {len(alone.points)} points in {time.perf_counter() - begin:.1f} s")

    cluster: Any = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)  # type: ignore[no-untyped-call]
    with cluster, Client(cluster) as client:  # type: ignore[no-untyped-call]
        print(f"{len(client.scheduler_info()['workers'])} Dask workers")
        begin = time.perf_counter()
        shared = sweep(scenario, axes, backend="dask")
        print(f"on Dask: {len(shared.points)} points in {time.perf_counter() - begin:.1f} s")
        flips = find_crossovers(shared, backend="dask")
    print(f"the same as one after the other: {shared.to_dict() == alone.to_dict()}")
    for flip in flips[:5]:
        print(f"edge {flip.below.values[1]:g} times slower: the plan flips at {flip.value / 1e6:.6f} Mbit/s")


if __name__ == "__main__":  # worker processes import this file
    main()
