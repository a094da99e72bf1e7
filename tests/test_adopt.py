"""Networks with exits of their own, adopted as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import portend as pt
from portend.data.dataset import make_splits
from portend.data.sources import load_dataset
from portend.errors import SplitError
from portend.networks.checkpoint import load_checkpoint
from portend.networks.zoo import build
from portend.training.config import TrainingConfig
from portend.training.training import train


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 1, 32, 32, generator=torch.Generator().manual_seed(1))


def conv(i: int, o: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1), nn.BatchNorm2d(o), nn.ReLU(inplace=True))


class BranchyNet(nn.Module):
    """A trunk of convolutions with side branches, as BranchyNet's AlexNet has (Teerapittayanon et al. 2016)."""

    def __init__(self, *, late: bool = False) -> None:
        super().__init__()
        self.late = late
        self.stem, self.body, self.tail = conv(1, 8, 2), nn.Sequential(conv(8, 8, 2), conv(8, 8)), conv(8, 8, 2)
        self.first = nn.Sequential(nn.ReLU(inplace=True), conv(8, 4, 4), nn.Flatten(), nn.Linear(64, 10))
        self.second = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
        self.last = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 10))

    def forward(self, x: Tensor) -> list[Tensor]:
        a = self.stem(x)
        if not self.late:
            first = self.first(a.clone())
        b = self.body(a)
        c = self.tail(b)
        if self.late:
            first = self.first(a.clone())
        return [first, self.second(b), self.last(c)]


class Scales(nn.Module):
    """A layer of an MSDNet: each scale from itself and from the finer one, with dense connections."""

    def __init__(self, channels: list[int], grow: int = 4) -> None:
        super().__init__()
        self.same = nn.ModuleList(conv(c, grow) for c in channels)
        self.down = nn.ModuleList(conv(c, grow, 2) for c in channels[:-1])

    def forward(self, scales: list[Tensor]) -> list[Tensor]:
        found = [torch.cat([scales[0], self.same[0](scales[0])], 1)]
        for i in range(1, len(scales)):
            found.append(torch.cat([scales[i], self.same[i](scales[i]), self.down[i - 1](scales[i - 1])], 1))
        return found


class MSDNet(nn.Module):
    """Several scales all the way, a classifier on the coarsest after each part (Huang et al. 2018)."""

    def __init__(self, parts: int = 3) -> None:
        super().__init__()
        self.stem = nn.ModuleList([conv(1, 4, 2), conv(4, 4, 2), conv(4, 4, 2)])
        channels, self.parts, self.heads = [4, 4, 4], nn.ModuleList(), nn.ModuleList()
        for _ in range(parts):
            self.parts.append(Scales(channels))
            channels = [channels[0] + 4, *(c + 8 for c in channels[1:])]
            self.heads.append(
                nn.Sequential(conv(channels[-1], 8, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
            )

    def forward(self, x: Tensor) -> list[Tensor]:
        scales, exits = [], []
        for layer in self.stem:
            x = layer(x)
            scales.append(x)
        for part, head in zip(self.parts, self.heads, strict=True):
            scales = part(scales)
            exits.append(head(scales[-1]))
        return exits


class Named(BranchyNet):
    def forward(self, x: Tensor) -> Any:
        first, second, last = super().forward(x)
        return {"early": first, "middle": second, "final": last}


@pytest.mark.parametrize("make", [BranchyNet, lambda: BranchyNet(late=True), MSDNet, Named])
@pytest.mark.parametrize("training", [False, True])
def test_a_network_with_exits_is_adopted_bit_for_bit(make: Any, training: bool) -> None:
    torch.manual_seed(0)
    network = make().train(training)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    backbone = pt.adopt(network, images())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert backbone.exits == (1, 2, 3)
    assert {id(p) for p in backbone.parameters()} <= {id(p) for p in network.parameters()}  # an MSDNet has idle ones
    outputs = []
    for each in (network, backbone):
        network.load_state_dict(before)
        torch.manual_seed(0)
        found = each(images(4))
        outputs.append(list(found.values()) if isinstance(found, dict) else found)
    assert all(map(torch.equal, *outputs))
    if not training:
        x = images(3)
        for start in range(3):
            x, logits = backbone.segment(start, start + 1)(x)
            assert torch.equal(logits, backbone(images(3))[start])


def test_the_scales_of_an_msdnet_cross_as_one_tensor() -> None:
    backbone = pt.adopt(MSDNet().eval(), images())
    crossing = (8 * 256 + 12 * 64 + 12 * 16,), (20 * 64 + 20 * 16,)  # nobody needs the finest scale any more
    assert backbone.spec().cut_shapes == ((1, 32, 32), *crossing, (10,))
    branchy = pt.adopt(BranchyNet().eval(), images())
    assert branchy.spec().cut_shapes == ((1, 32, 32), (8, 16, 16), (8, 8, 8), (10,))


class SamePlace(BranchyNet):
    def forward(self, x: Tensor) -> list[Tensor]:
        a = self.body(self.stem(x))
        return [self.second(a), self.second(a) + 1, self.last(self.tail(a))]


class Features(BranchyNet):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.stem(x), self.last(self.tail(self.body(self.stem(x))))]


class Shares(BranchyNet):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [torch.softmax(logits, 1) for logits in super().forward(x)]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (SamePlace(), "each exit leaves at another place"),
        (Features(), "at least two logits of one shape"),
        (Shares(), "gives probabilities"),
        (nn.Sequential(nn.Flatten(), nn.Linear(1024, 3)), "gives a list of logits, but `forward` gives Tensor"),
    ],
)
def test_what_is_no_network_with_exits_is_refused(network: nn.Module, message: str) -> None:
    with pytest.raises(SplitError, match=message):
        pt.adopt(network, images())


def test_split_says_what_to_do_with_several_logits() -> None:
    with pytest.raises(SplitError, match=r"portend\.adopt"):
        pt.split(BranchyNet(), images())


def test_a_network_with_exits_by_name_is_trained_and_kept(tmp_path: Path) -> None:
    name = f"{__name__}:MSDNet"
    backbone = build(name, input_shape=[1, 32, 32], arguments={"parts": 2})
    assert backbone.exits == (1, 2)
    dataset = load_dataset("digits")
    config = TrainingConfig(epochs=1, batch_size=256, learning_rate=0.05)
    train(backbone, dataset, make_splits(dataset, seed=0), config, tmp_path)
    again = load_checkpoint(tmp_path / "checkpoint.safetensors", allow_code=[name])
    with torch.no_grad():
        assert all(map(torch.equal, backbone(images()), again(images())))


@pytest.mark.slow
@pytest.mark.parametrize("make", [BranchyNet, MSDNet])
def test_adopted_networks_are_exported(make: Any) -> None:
    from portend.networks.exporting import export

    assert export(pt.adopt(make().eval(), images())).spec.num_blocks == 3
