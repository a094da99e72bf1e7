"""The public names: what there is, what their help says, and the way from a network to answers of a service."""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import portend as pt
from portend.data.encodings import png
from portend.networks.backbone import Backbone
from service_hosts import Hosts

NOUNS = {
    "BackboneSpec", "Batch", "Block", "Chain", "Client", "CodecLoss", "CodecProfile", "DeviceProfile", "Estimate",
    "EstimateBatch", "Link", "Measurement", "Metric", "PerformanceModel", "Plan", "PlanBatch", "PlanFile",
    "PortendError", "Problem", "Profile", "ResultProfile", "SampleExits", "Scenario", "SearchSpace", "SlowStart",
    "Solution", "TabulatedExits", "Tier", "Topology", "ValueRange",
}  # fmt: skip
METRICS = {
    "accuracy", "deadline_misses", "energy", "latency", "latency_quantile", "link_bytes", "memory", "price",
    "throughput", "utilization",
}  # fmt: skip
VERBS = {
    "additive", "adopt", "compare", "deploy", "load_measurement", "load_metric", "load_plan", "load_profile",
    "load_topology", "metric", "multi_exit", "parse_axis", "profile", "profile_machine", "refine", "run", "save",
    "solve", "split", "sweep", "takes_exit", "train",
}  # fmt: skip


def test_the_public_names_are_these() -> None:
    assert set(pt.__all__) == NOUNS | METRICS | VERBS
    assert set(dir(pt)) >= set(pt.__all__)


@pytest.mark.parametrize("name", sorted(VERBS | {"Client"}))
def test_the_help_of_a_verb_has_an_example(name: str) -> None:
    said = inspect.getdoc(getattr(pt, name)) or ""
    assert ">>> " in said, f"help(pt.{name}) shows no example"


class Small(nn.Module):
    """Two convolutions and a linear layer, as somebody's own network."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.second(self.first(x)))
        return logits


def own_network() -> Backbone:
    torch.manual_seed(0)
    return pt.multi_exit(pt.split(Small(), torch.zeros(1, 1, 16, 16)), num_classes=10)


def test_from_a_network_to_answers(tmp_path: Path, keys: Path) -> None:
    """The README's second example, on a network of one's own and handwritten digits."""
    with Hosts(tmp_path, ["edge", "cloud"], keys=keys) as hosts:
        topology = pt.Topology(
            name="two tiers",
            tiers=(pt.Tier(name="edge", device="local", slowdown=3), pt.Tier(name="cloud", device="local")),
            links=(pt.Link(bandwidth_bps=20e6, propagation_delay_s=0.005),),
        )

        net = own_network()
        trained = pt.train(net, "digits:size=16", out=tmp_path / "a", epochs=2)
        profile = pt.profile(trained, budget=0.5, repeats=2)
        problem = pt.Problem(minimize=pt.latency, subject_to=(pt.accuracy >= profile.full_accuracy - 0.05,))
        solution = pt.solve(problem, pt.PerformanceModel(profile, topology))
        measured = pt.run(solution.plan, trained, topology, profile=profile, samples=20, turns=2)
        compared = pt.compare(profile, measured)
        deployed = pt.deploy(solution.plan, trained, hosts.topology, keys=keys, profile=profile)
        client = pt.Client(f"http://127.0.0.1:{hosts.http['edge']}")
        picture = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
        answer = client.infer(picture)

        assert trained.network.suffix == ".onnx"
        assert len(trained.accuracies) == profile.num_blocks
        assert (profile.provenance["data"], trained.checkpoint.is_file()) == ("digits", True)
        assert [(len(case.measurement), case.measurement.plan) for case in compared] == [(20, solution.plan)]
        assert "Predicted and measured" in str(compared)
        assert (deployed.tiers, deployed.lacks) == (("edge", "cloud"), ())
        assert answer.label in range(10)
        assert 0 <= answer.confidence <= 1
        assert answer.exit in range(1, len(solution.plan) + 1)
        (tmp_path / "one.png").write_bytes(png(picture))
        for same in (png(picture), tmp_path / "one.png", str(tmp_path / "one.png")):
            assert (client.infer(same).label, client.infer(same).exit) == (answer.label, answer.exit)
        named = asyncio.run(client.infer_async(picture, id="mine"))
        assert (named.id, named.label) == ("mine", answer.label)
        with pytest.raises(pt.PortendError, match="another sample has the id 'mine'"):
            client.infer(png(255 - picture), id="mine")
        with pytest.raises(pt.PortendError, match="cannot decode"):
            client.infer(b"no picture")

        again = pt.train(own_network(), "digits:size=16", out=tmp_path / "a", epochs=2)
        assert again.accuracies == trained.accuracies
        device = profile.devices["local"]
        other = replace(device, execution=replace(device.execution, threads=2))
        with pytest.raises(pt.PortendError, match="give run the profile"):
            pt.compare(replace(profile, devices={"local": other}), measured)


def test_a_service_that_is_not_there_is_told() -> None:
    with pytest.raises(pt.PortendError, match="does not answer"):
        pt.Client("http://127.0.0.1:9", timeout_s=2).infer(b"x")
    for wrong in ("127.0.0.1:8080", "https://127.0.0.1:8080", "http://127.0.0.1:8080/v1/samples"):
        with pytest.raises(pt.PortendError, match="is like http"):
            pt.Client(wrong)


def test_an_array_is_sent_as_what_it_is(tmp_path: Path) -> None:
    from portend.service.client import _body

    assert _body(np.zeros((4, 4), np.uint8)).startswith(b"\x89PNG")
    assert np.frombuffer(_body(np.array([[1.5, -2.0]])), "<f4").tolist() == [1.5, -2.0]
    assert np.frombuffer(_body(np.array([3, 70_000])), "<i8").tolist() == [3, 70_000]
    with pytest.raises(pt.PortendError, match="array of numbers"):
        _body(np.array(["a"]))
    with pytest.raises(pt.PortendError, match="cannot be read"):
        _body(tmp_path / "nothing.png")
