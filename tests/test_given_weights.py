"""Weights and outputs as others left them: nested checkpoints, NaN, masks, probabilities, samples seen before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import portend as pt
from commands import portend
from portend.data.dataset import make_splits
from portend.data.sources import load_dataset
from portend.errors import InvalidValue, MismatchError, StorageError, TrainingError
from portend.networks.backbone import Backbone
from portend.networks.pretrained import copy_weights, read_weights
from portend.networks.zoo import build
from portend.training.config import TrainingConfig
from portend.training.training import train

CONFIG = TrainingConfig(epochs=1, batch_size=512, learning_rate=0.01)


def plain() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(1024, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10))


def drawn(network: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(t.shape, generator=generator) for name, t in network.state_dict().items()}


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Any]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: t,
        lambda t: {"state_dict": t, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda t: {"epoch": 3, "state_dict": prefixed(t, "model.") | {"loss.weight": torch.ones(3)}, "callbacks": {}},
        lambda t: {"model_state_dict": prefixed(t, "module._orig_mod.")},
        lambda t: {"model": prefixed(t, "_orig_mod.module.")},
        lambda t: prefixed(t, "net._orig_mod."),
    ],
)
def test_checkpoints_of_other_training_code_are_read(wrap: Any, tmp_path: Path) -> None:
    path, network = tmp_path / "there.ckpt", plain()
    tensors = drawn(network)
    torch.save(wrap(tensors), path)
    copy_weights(network, read_weights(path), path=path, num_classes=10)
    assert all(torch.equal(value, tensors[name]) for name, value in network.state_dict().items())
    backbone = build(f"{__name__}:plain", input_shape=[1, 32, 32], weights=str(path))
    assert torch.equal(backbone.blocks[0].get_submodule("1").get_parameter("weight"), tensors["1.weight"])


@pytest.mark.parametrize("name", ["resnet8", "vggish", "timm:mobilenetv3_small_050"])
def test_every_loader_takes_a_wrapped_network(name: str, tmp_path: Path) -> None:
    known: dict[str, dict[str, Any]] = {"resnet8": {"shortcut": "pad"}, "vggish": {"num_classes": 3}}
    options = known.get(name, {})
    if name == "resnet8":
        own = build(name, **options)
        found = {_akamaster(key): value for key, value in own.state_dict().items() if _akamaster(key)}
    elif name == "vggish":
        own = build(name)
        numbers = [0, 3, 6, 8, 11, 13]
        weights = [v for k, v in own.state_dict().items() if k.startswith("blocks.")]
        found = {
            f"features.{n}.{kind}": weights[2 * i + j]
            for i, n in enumerate(numbers)
            for j, kind in enumerate(("weight", "bias"))
        }
    else:
        timm = pytest.importorskip("timm")
        options = {"input_shape": [3, 32, 32], "num_classes": 5}
        found = timm.create_model(name[5:], num_classes=5).state_dict()
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": prefixed(found, "model._orig_mod.")}, path)
    backbone = build(name, weights=str(path), **options)
    first = next(iter(found.values()))
    assert any(torch.equal(first, value) for value in backbone.state_dict().values() if value.shape == first.shape)


def _akamaster(key: str) -> str:
    kind, _, rest = key.partition(".")
    index, _, rest = rest.partition(".")
    if kind == "branches":
        return rest if index == "3" else ""
    if index == "0":
        return rest.replace("conv.", "conv1.").replace("bn.", "bn1.")
    return f"layer{index}.0.{rest}"


def test_nan_is_told_before_training_and_masks_are_not_nan(tmp_path: Path) -> None:
    network = plain()
    tensors = drawn(network)
    tensors["3.bias"][2] = torch.nan
    torch.save({"state_dict": tensors}, tmp_path / "w.pth")
    with pytest.raises(StorageError, match=r"holds NaN in 1 tensors, such as 3\.bias"):
        read_weights(tmp_path / "w.pth")
    dataset = load_dataset("digits")
    splits = make_splits(dataset, seed=0)
    with torch.no_grad():
        network[3].weight[0, 0] = torch.inf  # type: ignore[index]
    backbone = pt.multi_exit(pt.split(network, torch.randn(1, 1, 32, 32)))
    with pytest.raises(TrainingError, match=r"would begin with are not finite in 1 tensors.*no learning rate mends"):
        train(backbone, dataset, splits, CONFIG, tmp_path / "run")

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = plain()
            self.register_buffer("mask", torch.full((1,), -torch.inf))

        def forward(self, x: Tensor) -> Tensor:
            return torch.maximum(self.inner(x), self.mask)  # type: ignore[arg-type]

    masked = pt.multi_exit(pt.split(Masked(), torch.randn(1, 1, 32, 32)))
    train(masked, dataset, splits, CONFIG, tmp_path / "masked")


@pytest.mark.parametrize(
    "last", [nn.Softmax(dim=1), nn.Sigmoid(), lambda x: torch.softmax(x, -1), lambda x: x.sigmoid()]
)
def test_a_last_softmax_is_no_part_of_an_exit(last: Any) -> None:
    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = plain(), last

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.inner(x))  # type: ignore[no-any-return]

    network, x = Ends().eval(), torch.randn(3, 1, 32, 32)
    chain = pt.split(network, x[:1])
    assert torch.equal(chain.sequential()(x), network(x))
    assert "exits give logits, without" in " ".join(chain.notes)
    backbone = pt.multi_exit(chain).eval()
    assert torch.equal(backbone(x)[-1], network.inner(x))
    assert len(chain) == len(pt.split(network.inner, x[:1]))


def test_probabilities_that_cannot_be_unwrapped_are_refused(tmp_path: Path) -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = plain()

        def forward(self, x: Tensor) -> Tensor:
            found = torch.exp(self.inner(x))
            return found / found.sum(1, keepdim=True)

    chain = pt.split(Hidden(), torch.randn(1, 1, 32, 32))
    with pytest.raises(InvalidValue, match="the network gives probabilities"):
        pt.multi_exit(chain)
    assert len(pt.multi_exit(chain, num_classes=4).exits) == len(chain)
    logs = nn.Sequential(plain(), nn.LogSoftmax(1))  # as good as logits: softmax of them is the same
    assert torch.allclose(
        pt.multi_exit(pt.split(logs, torch.randn(1, 1, 32, 32))).eval()(torch.ones(1, 1, 32, 32))[-1].exp().sum(),
        torch.ones(()),
    )
    dataset = load_dataset("digits")
    ends = [nn.Sequential(nn.Linear(8, 10), nn.Softmax(1))]
    blocks = {"all": nn.Sequential(nn.Flatten(), nn.Linear(1024, 8))}
    own = Backbone(name="own", blocks=blocks, branches=ends, num_classes=10, input_shape=(1, 32, 32), architecture={})
    with pytest.raises(MismatchError, match="exit at cut 1 of own gives probabilities"):
        train(own, dataset, make_splits(dataset, seed=0), CONFIG, tmp_path)


def test_training_warns_where_given_weights_may_know_the_samples(tmp_path: Path) -> None:
    torch.save(drawn(plain()), tmp_path / "w.pth")
    config = tmp_path / "c.yaml"
    lines = [
        f"network: {__name__}:plain", "data: digits", "training: {epochs: 1, batch_size: 512, learning_rate: 0.01}",
        "options: {input_shape: [1, 32, 32]%s}",
    ]  # fmt: skip
    for extra, warned in (("", False), (f", weights: {tmp_path / 'w.pth'}", True)):
        config.write_text("\n".join(lines) % extra)
        result = portend("train", config, "--out", tmp_path / f"run{warned}")
        assert result.returncode == 0, result.stderr
        assert ("digits has no test set of its own" in result.stderr) is warned


def test_classes_without_samples_are_classes() -> None:
    samples = [(torch.zeros(3), label) for label in (0, 2, 5, 0, 2, 5)]
    import sys
    from types import ModuleType

    module = ModuleType("with_gaps")
    module.samples = samples  # type: ignore[attr-defined]
    sys.modules["with_gaps"] = module
    assert load_dataset("with_gaps:samples").num_classes == 6
