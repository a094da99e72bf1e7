"""The fastest plan as a mixed-integer program over the arcs of a graph: it shares no search with the planner.

Nodes are (cut, samples that stay, tier), an arc runs one partition, a path is a plan of one global threshold
with at most one partition on a tier. HiGHS solves it, through SciPy.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from reference import Reference

Node = tuple[int, int, int]
SOURCE: Node = (0, -1, -1)
SINK: Node = (-1, -1, -1)


def fastest(
    reference: Reference, threshold: float, min_accuracy: float, *, increasing: bool, slack: float = 1e-9
) -> float | None:
    """Least mean latency in seconds of a plan with one threshold and an accuracy; None if there is none."""
    topology, blocks = reference.topology, reference.blocks
    tiers, samples = len(topology.tiers), reference.profile.exits.samples
    right = [0.0] + [round(a * samples) / samples for a in reference.profile.exits.accuracies().tolist()]
    back = [sum(reference.result(t).values()) for t in range(tiers)]
    stays = [samples] + [samples - round(reference.rate(c, threshold) * samples) for c in range(1, blocks + 1)]

    arcs: list[tuple[Node, Node, float, float, int]] = []  # from, to, latency, accuracy, tier that it uses
    open_nodes: list[Node] = [SOURCE]
    known = {SOURCE}
    while open_nodes:
        node = open_nodes.pop()
        start, stay, here = (0, samples, -1) if node == SOURCE else node
        for end, tier in product(range(start + 1, blocks + 1), range(tiers)):
            if tier == here or (increasing and tier < here):
                continue
            sender = topology.source if here < 0 else here
            best = reference.best_hop(start, sender, tier)
            if best is None:
                continue
            paid = 0.0 if here < 0 else back[here]
            move = sum(best[1].values()) + back[tier] - paid
            gain = stay * (right[end] - right[start]) / samples
            last = move + reference.compute(tier, start, end, woken=True, exit_run=True)
            arcs.append((node, SINK, stay * last / samples, gain, tier))
            then = (end, min(stay, stays[end]), tier)
            if end == blocks or then[1] == 0:
                continue
            onward = move + reference.compute(tier, start, end, woken=True, exit_run=threshold > 0)
            arcs.append((node, then, stay * onward / samples, gain, tier))
            if then not in known:
                known.add(then)
                open_nodes.append(then)

    index = {node: i for i, node in enumerate([*known, SINK])}
    columns = np.arange(len(arcs))
    leaves = np.array([index[arc[0]] for arc in arcs])
    enters = np.array([index[arc[1]] for arc in arcs])
    ones, both = np.ones(len(arcs)), np.concatenate([leaves, enters])
    flow = csr_array((np.concatenate([ones, -ones]), (both, np.tile(columns, 2))), shape=(len(index), len(arcs)))
    demand = np.zeros(len(index))
    demand[index[SOURCE]], demand[index[SINK]] = 1.0, -1.0
    uses = csr_array((np.ones(len(arcs)), ([arc[4] for arc in arcs], columns)), shape=(tiers, len(arcs)))
    answer = milp(
        np.array([arc[2] for arc in arcs]),
        integrality=np.ones(len(arcs)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(flow, demand, demand),
            LinearConstraint(uses, -np.inf, 1.0),
            LinearConstraint(np.array([[arc[3] for arc in arcs]]), min_accuracy - slack, np.inf),
        ],
        options={"mip_rel_gap": 1e-9},
    )
    if answer.status == 2:
        return None
    assert answer.status == 0, answer.message
    chosen = [arc for arc, x in zip(arcs, answer.x, strict=True) if x > 0.5]
    return math.fsum(arc[2] for arc in chosen)
