"""What layers and blocks add up to, and how far that is from a partition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from portend.errors import InvalidValue
from portend.networks.backbone import Backbone
from portend.networks.zoo import build
from portend.profiling.estimators import Estimates, compare_estimators

NOW = [0]
"""A clock that only moves when a layer runs, in ns."""


class Slow(nn.Module):
    """Takes a known time, in ms, of that clock."""

    def __init__(self, ms: int) -> None:
        super().__init__()
        self.ms = ms

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        NOW[0] += 1_000_000 * self.ms
        return x


class Overhead(nn.Module):
    """A layer, and 4 ms that are in no layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Slow(4).forward(self.layer(x))


def test_layers_leave_out_what_is_between_them_and_blocks_do_not() -> None:
    backbone = Backbone(
        name="known", num_classes=2, input_shape=(2,), architecture={},
        blocks={"a": Overhead(Slow(3)), "b": nn.Sequential(Slow(1), Slow(2))},
        branches=[Slow(1), Slow(2)],
    )  # fmt: skip
    samples = [np.zeros(2, np.float32), np.ones(2, np.float32)]
    found = compare_estimators(backbone, samples, rounds=2, clock=lambda: NOW[0])
    assert found.partitions.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert 1e3 * found.estimated_s["layer-wise"] == pytest.approx([4, 8, 5])
    assert 1e3 * found.estimated_s["block-wise"] == pytest.approx([8, 12, 5])
    assert 1e3 * found.estimated_s["partition-wise"] == pytest.approx([8, 12, 5])
    assert 1e3 * found.measured_s == pytest.approx([8, 12, 5])


def test_errors_by_hand() -> None:
    found = Estimates(
        partitions=np.array([[0, 1], [0, 2]]),
        measured_s=np.array([0.001, 0.002]),
        estimated_s={"layer-wise": np.array([0.0005, 0.0015]), "partition-wise": np.array([0.001, 0.002])},
    )
    errors = found.errors()
    assert errors["layer-wise"] == pytest.approx({"rmse_ms": 0.5, "bias_ms": -0.5, "bias": -0.375, "slope": 0.7})
    assert errors["partition-wise"] == pytest.approx({"rmse_ms": 0, "bias_ms": 0, "bias": 0, "slope": 1})


def test_every_layer_of_a_network_is_timed_on_its_own_input() -> None:
    backbone = build("resnet8", in_channels=1, num_classes=10, input_size=16)
    samples = np.random.default_rng(0).normal(size=(3, 1, 16, 16)).astype(np.float32)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    found = compare_estimators(backbone, list(samples), partitions=4, rounds=2)
    assert found.partitions.shape == (4, 2)
    assert all((seconds > 0).all() for seconds in found.estimated_s.values())
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
    with pytest.raises(InvalidValue, match="two samples"):
        compare_estimators(backbone, list(samples[:1]))
