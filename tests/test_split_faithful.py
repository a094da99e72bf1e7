"""What `split` must not change: the user's network, what it freezes, what surrounds its operations, and later exits."""

from __future__ import annotations

import random
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import portend as pt
from portend.data.dataset import make_splits
from portend.data.sources import load_dataset
from portend.errors import MismatchError, SplitError, TrainingError
from portend.networks.backbone import Backbone
from portend.networks.evaluators import TorchEvaluator
from portend.networks.inplace import writes_into_input
from portend.networks.zoo import build
from portend.training.config import TrainingConfig
from portend.training.training import train


def images(batch: int = 2, size: int = 8) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


class Small(nn.Module):
    """Two convolutions, each with what a test puts before it, and a classifier."""

    def __init__(self, first: nn.Module | None = None, second: nn.Module | None = None) -> None:
        super().__init__()
        self.a = nn.Sequential(first or nn.Identity(), nn.Conv2d(3, 4, 3))
        self.b = nn.Sequential(second or nn.ReLU(), nn.Conv2d(4, 4, 3))
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(self.a(x)).mean((2, 3)))  # type: ignore[no-any-return]


# --- branches and blocks that write into their input ------------------------------------------


def writing_head(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(shape[0], classes))


def training_writes_head(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Dropout(0.5, inplace=True), nn.Flatten(), nn.LazyLinear(classes))


class ViewWrites(nn.Module):
    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(shape[0], classes)

    def forward(self, x: Tensor) -> Tensor:
        view = x.flatten(2).transpose(1, 2)
        view[:, 0] = 0.0
        return self.linear(view.mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("head", [writing_head, training_writes_head, ViewWrites])
def test_a_branch_that_writes_into_its_input_leaves_later_exits_alone(head: Any) -> None:
    network = Small().eval()
    backbone = pt.multi_exit(pt.split(network, images()), heads=head).eval()
    x = images()
    assert torch.equal(backbone(x)[-1], network(x))
    for training in (False, True):
        at_cut = backbone.train(training).blocks[0](x)
        before = at_cut.clone()
        torch.manual_seed(0)
        backbone.branches[0](at_cut)
        assert torch.equal(at_cut, before)


def test_partitions_and_evaluators_agree_beside_a_branch_that_writes() -> None:
    backbone = pt.multi_exit(pt.split(Small().eval(), images()), heads=writing_head).eval()
    x = images()
    features, logits = backbone.segment(0, 1)(x)
    assert torch.equal(features, backbone.segment(0, 1, branch=False)(x)[0])
    evaluator = TorchEvaluator(backbone)
    assert (evaluator.exits(x.numpy())[1][:, 1] == evaluator.answers(0, x.numpy())[:, 1]).all()
    assert torch.equal(logits, backbone(x)[0])


def test_blocks_and_branches_given_by_hand_leave_the_cut_alone() -> None:
    torch.manual_seed(0)
    blocks = {"a": nn.Conv2d(3, 4, 3), "b": nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3))}
    branches = [writing_head((4,), 3), writing_head((4,), 3)]
    backbone = Backbone(
        name="own", blocks=blocks, branches=branches, num_classes=3, input_shape=(3, 8, 8), architecture={}
    ).eval()
    at_cut = backbone.blocks[0](images())
    before = at_cut.clone()
    backbone.branches[0](at_cut)
    backbone.blocks[1](at_cut)
    assert torch.equal(at_cut, before)
    assert set(backbone.state_dict()) == {
        *("blocks.0.weight", "blocks.0.bias", "blocks.1.1.weight", "blocks.1.1.bias"),
        *(f"branches.{i}.3.{kind}" for i in (0, 1) for kind in ("weight", "bias")),
    }


def test_no_copy_is_made_where_nothing_writes() -> None:
    backbone = pt.multi_exit(pt.split(Small().eval(), images()))
    assert not any(module._forward_pre_hooks for module in backbone.modules())
    clones = [n for block in backbone.blocks for n in block.graph.nodes if n.target == "clone"]  # type: ignore[union-attr]
    assert clones == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet8", "efficientnet_b0", "vggish"])
def test_nothing_writes_in_the_networks_with_blocks_by_hand(name: str) -> None:
    backbone = build(name)
    x = torch.zeros(2, *backbone.input_shape)
    for block, branch in zip(backbone.eval().blocks, backbone.branches, strict=True):
        assert not writes_into_input(block, tuple(x.shape[1:]), x.dtype)
        with torch.no_grad():
            x = block(x)
        assert branch is None or not writes_into_input(branch, tuple(x.shape[1:]), x.dtype)


@pytest.mark.slow
def test_mobilenets_export_is_checked_against_the_network_itself() -> None:
    pytest.importorskip("timm")
    from portend.networks.exporting import export

    backbone = build("timm:mobilenetv3_small_100", num_classes=10, input_shape=[3, 64, 64], blocks=8)
    assert export(backbone).spec.num_blocks == 8


# --- what the network freezes -----------------------------------------------------------------


class NoGrad(Small):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.a(x)
        return self.fc(self.b(x).mean((2, 3)))  # type: ignore[no-any-return]


class Decorated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.scale = nn.Parameter(torch.ones(3, 1, 1))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.scale + functional.relu(x, inplace=False)  # type: ignore[no-any-return]


class OnlyWhereAsked(Small):
    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(not self.training):
            x = self.a(x)
        return self.fc(self.b(x).mean((2, 3)))  # type: ignore[no-any-return]


class Detaches(Small):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(self.a(x).detach()).mean((2, 3)))  # type: ignore[no-any-return]


class ByFlag(Small):
    def __init__(self) -> None:
        super().__init__()
        self.a.requires_grad_(False)


def gradients(network: nn.Module, x: Tensor) -> dict[int, Tensor | None]:
    network.train().zero_grad(set_to_none=True)
    network(x).sum().backward()
    return {id(p): None if p.grad is None else p.grad.clone() for p in network.parameters()}


@pytest.mark.parametrize("kind", [NoGrad, lambda: Small(Decorated()), OnlyWhereAsked, Detaches, ByFlag])
def test_what_the_network_freezes_gets_no_gradient_in_the_chain(kind: Any) -> None:
    network = kind()
    chain = pt.split(network.eval(), images())
    assert len(chain) >= 2
    expected, got = gradients(network, images()), gradients(chain.sequential(), images())
    assert any(gradient is None for gradient in expected.values())
    for key, gradient in expected.items():
        assert (got[key] is None) == (gradient is None)
        assert gradient is None or torch.equal(got[key], gradient)  # type: ignore[arg-type]


class StillNorm(Small):
    """Its batch norm stays in evaluation mode, as is usual for fine-tuning."""

    def __init__(self) -> None:
        super().__init__(second=nn.BatchNorm2d(4))

    def train(self, mode: bool = True) -> StillNorm:
        super().train(mode)
        self.b[0].eval()
        return self


@pytest.mark.parametrize("by_hand", [False, True])
def test_modules_that_stay_in_evaluation_mode_do_so_in_the_chain(by_hand: bool) -> None:
    network: Any = Small(second=nn.BatchNorm2d(4)) if by_hand else StillNorm()
    network.train()
    network.b[0].eval()
    chain = pt.split(network, images())
    assert "b.0 keep their mode" in " ".join(chain.notes)
    backbone = pt.multi_exit(chain)
    assert not network.b[0].training
    for training in (True, False, True):
        backbone.train(training)
        assert network.a[1].training is training
        assert not network.b[0].training
    before = network.b[0].running_mean.clone()
    backbone(images())
    assert torch.equal(network.b[0].running_mean, before)


def frozen_digits() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10)
    )
    network[1].requires_grad_(False)
    return network


def test_training_leaves_frozen_weights_alone(tmp_path: Path) -> None:
    dataset = load_dataset("digits")
    splits = make_splits(dataset, seed=0)
    network = frozen_digits()
    backbone = pt.multi_exit(pt.split(network, torch.randn(1, *dataset.decoder.shape)))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    config = TrainingConfig(epochs=1, batch_size=256, learning_rate=0.05)
    train(backbone, dataset, splits, config, tmp_path / "run")
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"3.weight", "3.bias", "5.weight", "5.bias"}
    assert [p.requires_grad for p in network.parameters()] == [False, False, True, True, True, True]
    backbone.requires_grad_(False)
    with pytest.raises(TrainingError, match="nothing to train: the network freezes all weights"):
        train(backbone, dataset, splits, config, tmp_path / "frozen")


# --- the network stays as it was --------------------------------------------------------------


class Counts(nn.Module):
    steps: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(1))
        self.register_buffer("mean", torch.zeros(3, 1, 1))
        self.seen: list[Any] = []
        self.cache: dict[str, Any] = {}
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        self.mean.mul_(0.9).add_(0.1 * x.mean((0, 2, 3))[:, None, None])
        self.seen.append(x.shape)
        self.cache["last"] = x
        self.last = x - self.mean
        return self.last  # type: ignore[no-any-return]


class Ema(nn.Module):
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.mean((0, 2, 3))[:, None, None].detach()
        return x - self.mean


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        return torch.relu(x)


def state(module: nn.Module) -> dict[str, Any]:
    """Everything a network holds, in a form that can be compared."""
    found: dict[str, Any] = {}
    for name, each in module.named_modules():
        for key, value in vars(each).items():
            plain = key not in ("_parameters", "_buffers", "_modules")
            found[f"{name}.{key}"] = repr(value) if plain else list(value)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        found[name] = (id(tensor), tensor.requires_grad, tensor._version, tensor.detach().clone().tolist())
    return found


@pytest.mark.parametrize(
    ("network", "fails"),
    [
        (Small(Counts()), False),
        (Small(Ema()), False),
        (nn.Sequential(Ema(), nn.Conv2d(3, 4, 1)), False),
        (Ema(), True),
        (Fails(), True),
        (Small(nn.Embedding(3, 3, max_norm=0.1)), True),
    ],
    ids=["counts", "ema", "sequential", "buffer", "fails", "example"],
)
def test_split_leaves_the_network_as_it_was(network: nn.Module, fails: bool) -> None:
    network.train()
    drawn = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]  # noqa: NPY002
    before = state(network)
    if fails:
        with pytest.raises(SplitError):
            pt.split(network, images())
    else:
        pt.split(network, images())
    assert state(network) == before
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]  # noqa: NPY002
    assert after == drawn


def test_a_chain_counts_as_its_network_does() -> None:
    network = Small(Counts()).eval()
    chain = pt.split(network, images())
    counting: Any = network.a[0]
    with torch.no_grad():
        chain.sequential()(images())
        assert counting.steps.item() == 1
        mean = counting.mean.clone()
        network(images())
    assert counting.steps.item() == 2
    assert not torch.equal(counting.mean, mean)
    assert any("`forward` sets a.0.last" in note for note in chain.notes)


def test_a_module_that_assigns_a_buffer_stays_whole_and_a_network_is_refused() -> None:
    network = Small(Ema()).eval()
    chain = pt.split(network, images())
    assert any(note.startswith("a.0 and its like stay whole") and "buffer mean" in note for note in chain.notes)
    with torch.no_grad():
        chain.sequential()(images())
    assert network.a[0].mean.abs().sum() > 0  # type: ignore[operator]
    with pytest.raises(SplitError, match=r"`forward` of the network \(Ema\) assigns its buffer mean anew; write into"):
        pt.split(Ema(), images())


def test_what_cannot_be_copied_is_named() -> None:
    network: Any = Small()
    network.b.lock = threading.Lock()
    with pytest.raises(SplitError, match=r"but its attribute b\.lock cannot be copied"):
        pt.split(network, images())
    result: Any = Small()
    result.b.latest = result.a[1].weight * 2  # a result, which deepcopy itself refuses
    assert len(pt.split(result, images())) == 2


# --- what surrounds forward -------------------------------------------------------------------


def normalize(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return ((args[0] - 0.5) / 0.2,)


def test_hooks_of_the_network_itself_are_part_of_the_chain() -> None:
    network = Small().eval()
    network.register_forward_pre_hook(normalize)
    network.register_forward_hook(lambda module, args, output: output * 2)
    network.b.register_forward_hook(lambda module, args, output: output + 1)
    chain = pt.split(network, images())
    assert len(chain) == 2
    assert torch.equal(chain.sequential()(images(3)), network(images(3)))


def test_hooks_on_gradients_are_told() -> None:
    network = Small()
    network.register_full_backward_hook(lambda module, given, made: None)
    assert any("hooks on the gradients of Small" in note for note in pt.split(network, images()).notes)


class Reduced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = torch.einsum("bchw,cd->bdhw", self.conv(x), torch.eye(3))
        return y.float()


def test_operations_keep_their_autocast() -> None:
    network = Small(nn.Sequential(Reduced(), Reduced())).eval()
    chain = pt.split(network, images())
    assert chain.names == ("a.0.0", "a.0.1", "a.1", "b")
    assert set(chain.cut_dtypes) == {torch.float32}
    assert "torch.bfloat16 crosses after a.0.0.conv, but between blocks travels float32" in str(chain.refusals[0])
    assert torch.equal(chain.sequential()(images(3)), network(images(3)))


class Precise(nn.Module):
    """What must not be computed in bfloat16 whatever the caller asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return torch.einsum("bchw,cd->bdhw", self.conv(x.float()), torch.eye(3))


def test_operations_keep_that_autocast_was_switched_off() -> None:
    network = Small(nn.Sequential(Precise(), Reduced(), Precise())).eval()
    chain, x = pt.split(network, images()).sequential(), images(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(chain(x), network(x))
    assert torch.equal(chain(x), network(x))


class AsksForTensor(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) if isinstance(x, Tensor) and torch.is_tensor(x) else x


class Catches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        try:
            return x.view(-1, 7)
        except RuntimeError:
            return torch.relu(x)


@pytest.mark.parametrize(
    ("inner", "why"),
    [
        (AsksForTensor, "computes something else than its trace"),
        (Catches, r"at test_split_faithful.py:\d+: .*its own code avoids or catches that"),
    ],
)
def test_a_module_whose_trace_is_not_what_it_does_stays_whole(inner: Any, why: str) -> None:

    network = Small(inner()).eval()
    chain = pt.split(network, images())
    assert len(chain) == 2
    assert re.search(why, chain.notes[0])
    assert torch.equal(chain.sequential()(images(3)), network(images(3)))
    with pytest.raises(SplitError, match=r"cannot be traced: `forward` of the network"):
        pt.split(inner(), images())


class Pool(nn.Module):
    """Attention with a learned query."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.randn(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(self.latent.expand(x.shape[0], -1, -1))
        k, v = self.kv(x).chunk(2, -1)
        return (torch.softmax(q @ k.transpose(1, 2), -1) @ v)[:, 0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("cost", ["flops", "time"])
def test_a_learned_query_is_a_weight_like_others(cost: Any) -> None:
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), Pool(), nn.Linear(8, 5))
    x = torch.randn(2, 10, 6)
    chain = pt.split(network, x, cost=cost)
    assert len(chain) >= 3
    assert torch.equal(chain.sequential()(x), network(x))
    assert all(p.requires_grad for p in network.parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (torch.jit.script, "is a script .* give the network that was scripted"),
        pytest.param(torch.compile, r"is compiled .* give the network itself, `\._orig_mod`", marks=pytest.mark.slow),
        (nn.DataParallel, r"only distributes a network; give the network itself, `\.module`"),
        (lambda network: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), "has no weights yet at 1.weight"),
    ],
)
def test_networks_without_operations_to_trace_are_refused_with_a_way_out(wrap: Any, message: str) -> None:
    with pytest.raises(SplitError, match=message):
        pt.split(wrap(Small().eval()), images())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripted_parts_stay_whole() -> None:
    network = Small(torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()))).eval()
    chain = pt.split(network, images())
    assert any("a.0 stays whole: it is compiled or a script" in note for note in chain.notes)
    assert torch.equal(chain.sequential()(images()), network(images()))


# --- cuts for inference -----------------------------------------------------------------------


class Encoder(nn.Module):
    def __init__(self, width: int = 8, layers: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(6, width)
        layer = nn.TransformerEncoderLayer(width, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers)
        self.out = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(self.embed(x)).mean(1))  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_an_encoder_as_pytorch_makes_it_is_cut_between_its_layers() -> None:
    network, x = Encoder(), torch.randn(2, 20, 6)
    chain = pt.split(network, x)
    assert chain.names == ("embed", "encoder.layers.0", "encoder.layers.1", "encoder.layers.2")
    for mode in (False, True):
        outputs = []
        for each in (network, chain.sequential()):
            torch.manual_seed(0)
            outputs.append(each.train(mode)(x))
        assert torch.equal(*outputs)


class TwoPaths(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 3, 1)
        self.two = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.one(x) + self.two(x)  # type: ignore[no-any-return]
        return self.two(torch.relu(self.one(x)))  # type: ignore[no-any-return]


def two_paths() -> nn.Module:
    return nn.Sequential(TwoPaths(), nn.Flatten(), nn.Linear(192, 10))


def test_inference_only_cuts_where_training_forbids_it(tmp_path: Path) -> None:

    network = two_paths()
    assert len(pt.split(network, images())) == 1
    chain = pt.split(network, images(), inference_only=True)
    assert chain.names == ("0.one", "0.two")
    assert "cut for inference alone" in " ".join(chain.notes)
    assert torch.equal(chain.sequential().eval()(images()), network.eval()(images()))
    options: dict[str, Any] = {"input_shape": [3, 8, 8], "inference_only": True}
    backbone = build(f"{__name__}:two_paths", **options)
    assert len(backbone.blocks) == 2
    assert backbone.architecture["inference_only"] is True

    dataset = load_dataset("digits")
    backbone = pt.multi_exit(pt.split(frozen_digits(), torch.randn(1, 1, 32, 32), inference_only=True))
    config = TrainingConfig(epochs=1, batch_size=256, learning_rate=0.05)
    with pytest.raises(MismatchError, match="cut for inference alone and cannot be trained; train the exits"):
        train(backbone, dataset, make_splits(dataset, seed=0), config, tmp_path)


# --- networks of the libraries ----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("vit_tiny_patch16_224", {"global_pool": "map"}, 224),  # SigLIP's attention pooling with a learned query
        ("levit_128s", {}, 224),  # keeps attention biases in a mapping while it evaluates
        ("mobilenetv3_small_050", {}, 64),
        ("efficientformerv2_s0", {}, 224),
    ],
)
def test_networks_of_timm_stay_as_they_were(name: str, options: dict[str, Any], size: int) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network, x = timm.create_model(name, **options).eval(), images(2, size)
    with torch.no_grad():
        expected = network(x)
    before = state(network)
    chain = pt.split(network, x[:1])
    assert len(chain) >= 4
    assert state(network) == before
    with torch.no_grad():
        assert torch.equal(network(x), expected)
        assert torch.equal(chain.sequential()(x), expected)
