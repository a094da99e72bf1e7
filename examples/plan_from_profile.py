"""Plan from a recorded profile: no torch, no measuring, a fraction of a second.

Run from the repository's root: ``python examples/plan_from_profile.py``
"""

import portend as pt

profile = pt.load_profile("profiles/resnet20-digits.zip")
topology = pt.load_topology("configs/topologies/three_tier.yaml")
space = pt.SearchSpace(block_tiers={1: (0,)})  # raw input stays on the edge
problem = pt.Problem(minimize=pt.latency, subject_to=(pt.accuracy >= 0.97,), space=space)

model = pt.PerformanceModel(profile, topology)
print(pt.solve(problem, model))

slower = pt.PerformanceModel(profile, topology.with_link(0, bandwidth_bps=1e6))
print(pt.solve(problem, slower, baselines=False))
