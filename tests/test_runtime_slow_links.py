"""A run waits as long as its messages take over their links, and no longer where an agent is silent."""

from __future__ import annotations

import pytest

from portend.errors import DeploymentError
from portend.testbed.deployment import Deployment
from portend.values.execution import Execution
from portend.values.plan import Plan
from portend.values.topology import Link, Tier, Topology
from service_hosts import Workload


def test_a_run_waits_for_messages_that_take_longer_than_its_patience(
    work: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture's 1 kB takes 1.2 s over 8 kbit/s, each way there and back is counted; patience is 0.5 s."""
    topology = Topology(
        name="slow", tiers=(Tier(name="edge", device="d"), Tier(name="cloud", device="d")),
        links=(Link(bandwidth_bps=8e3, propagation_delay_s=0.01),),
    )  # fmt: skip
    plan = Plan(cuts=(4,), placement=(1,), codecs=("float32",))
    running = Deployment(
        topology, work.network, work.decoder, executions=(Execution(executor="onnxruntime"),) * 2, patience_s=30
    )
    with running:
        running.load_samples(work.samples[:1], [0])
        running.deploy(plan)
        running._patience_s = 0.5
        found = running.run(warmup=0)
        assert found.latency_s[0] > 1.0
        monkeypatch.setattr(running, "_way_s", lambda plan: 0.0)  # as if they took no time: then it is a silence
        with pytest.raises(DeploymentError, match=r"no word from tier 'edge' for .* under way takes .* s over these"):
            running.run(warmup=0)
