"""Any network as a chain of blocks: where it is cut, that it stays the network, and why it is not cut."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import portend as pt
from portend.errors import InvalidValue, MismatchError, SplitError
from portend.networks.checkpoint import save_checkpoint
from portend.networks.heads import PooledLinear, TokenLinear
from portend.networks.split import Chain
from portend.networks.tensorfile import read_tensors, tensors_sha256

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from split_zoo import TEXT, TIMM, row_of


def same(chain: Chain, module: nn.Module, x: Tensor) -> bool:
    """Whether chain and network agree bit for bit, in evaluation and under one seed in training."""
    outputs = []
    again = chain.sequential()
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for network in (module, again):
        module.load_state_dict(state)
        with torch.no_grad():
            torch.manual_seed(0)
            outputs.append((network.eval()(x.clone()), network.train()(x.clone()), network.eval()(x.clone())))
    module.load_state_dict(state)
    return all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


def images(size: int = 8, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.relu(self.norm(self.conv1(x))))
        return self.relu(y + x)  # type: ignore[no-any-return]


class Inception(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(channels, channels // 2, 1)
        self.wide = nn.Conv2d(channels, channels // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.narrow(x), self.wide(x)], dim=1)


class Dense(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(channels + 2 * i, 2, 3, padding=1) for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        found = [x]
        for layer in self.layers:
            found.append(torch.relu(layer(torch.cat(found, dim=1))))
        return torch.cat(found, dim=1)


class Classifier(nn.Module):
    """A stem, the given body, and pooling, dropout and a linear layer."""

    def __init__(self, *body: nn.Module, features: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.body = nn.Sequential(*body)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(features, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x))
        return self.fc(self.dropout(functional.adaptive_avg_pool2d(x, 1).flatten(1)))  # type: ignore[no-any-return]


def test_residual_blocks_are_cut_between_and_never_within() -> None:
    module = Classifier(Residual(4), Residual(4))
    chain = pt.split(module, images())
    assert chain.names == ("stem", "body.0", "body.1")
    assert chain.cut_shapes == ((3, 8, 8), (4, 8, 8), (4, 8, 8), (4, 8, 8))
    assert [refusal.module for refusal in chain.refusals] == ["body.0", "body.1"]
    assert chain.refusals[0].why.startswith("2 tensors cross after body.0.conv1")
    assert chain.refusals[0].tensors == ("stem.2 4×8×8", "body.0.conv1 4×8×8")
    assert same(chain, module, images())


def test_parallel_branches_join_before_a_cut() -> None:
    module = Classifier(Inception(4), Inception(4))
    chain = pt.split(module, images())
    assert chain.names == ("stem", "body.0", "body.1")
    assert same(chain, module, images())


def test_dense_connections_are_cut_where_they_are_one_tensor() -> None:
    module = Classifier(Dense(4), features=10)
    chain = pt.split(module, images())
    assert chain.names == ("stem", "body")
    assert same(chain, module, images())


def test_the_head_is_pooling_dropout_and_linear() -> None:
    chain = pt.split(Classifier(Residual(4)), images())
    assert {type(m) for m in chain.head.modules()} >= {nn.Dropout, nn.Linear}
    assert chain.num_outputs == 5
    assert tuple(chain.head(torch.zeros(3, 4, 8, 8)).shape) == (3, 5)


def test_weights_are_the_networks_own() -> None:
    module = Classifier(Residual(4), Inception(4))
    chain = pt.split(module, images())
    assert {id(p) for p in chain.sequential().parameters()} == {id(p) for p in module.parameters()}
    assert {b.data_ptr() for b in chain.sequential().buffers()} == {b.data_ptr() for b in module.buffers()}


def test_the_mode_of_the_network_is_left_alone() -> None:
    module = Classifier(Residual(4)).train()
    module.stem.eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.random.get_rng_state()
    chain = pt.split(module, images())
    assert module.training
    assert not module.stem.training
    assert chain.sequential()[0].training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


class SkipsEverything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 3, 3, padding=1)
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(torch.relu(self.conv1(x)))  # type: ignore[no-any-return]


def test_a_skip_over_everything_leaves_one_block_and_says_why() -> None:
    module = SkipsEverything()
    chain = pt.split(module, images())
    assert len(chain) == 1
    assert isinstance(chain.head, nn.Identity)
    assert chain.refusals[0].tensors == ("input 3×8×8", "conv1 3×8×8")
    assert same(chain, module, images())


class TwoStreams(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
        self.right = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
        self.last = nn.Conv2d(8, 4, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = self.last(torch.cat([self.left(x), self.right(x)], dim=1))
        return self.fc(both.mean(dim=(2, 3)))  # type: ignore[no-any-return]


def test_two_streams_are_one_block_until_they_join() -> None:
    chain = pt.split(TwoStreams(), images())
    assert chain.names == ("left..right", "last")
    assert "2 tensors cross" in chain.refusals[0].why
    with pytest.raises(SplitError, match=r"cannot cut after left: 2 tensors cross .*input 3×8×8, left\.2 4×4×4"):
        pt.split(TwoStreams(), images(), at=["left"])


class OwnMode(nn.Module):
    """Dropout by the network's own flag, a module with two paths, sizes, a constant, a view, and in-place steps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2)
        self.noisy = Noisy()
        self.proj = nn.Linear(6, 6)
        self.register_buffer("scale", torch.tensor(0.5))
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        batch, channels = x.shape[:2]
        x = self.noisy(x)
        x += 1.0
        x.relu_()
        x = x.reshape(batch, channels, -1).transpose(1, 2)
        x = self.proj(x) * self.scale
        x = functional.dropout(x, p=0.5, training=self.training)
        x[:, 0] = 0.0
        return self.fc(x.reshape(batch, -1, channels).mean(dim=1))  # type: ignore[no-any-return]


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x + torch.rand_like(x)


def test_what_the_networks_own_code_decides_by_mode_still_switches() -> None:
    module = OwnMode()
    chain = pt.split(module, images())
    assert chain.names == ("conv", "proj")
    assert chain.notes == ("noisy and its like (Noisy) stay whole: they take another path in training",)
    assert same(chain, module, images())
    assert same(chain, module, images(batch=5))


def test_a_block_that_writes_into_its_input_leaves_the_exits_tensor_alone() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.Unflatten(2, (6, 6)), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.ReLU()
    )
    chain = pt.split(module, images(), at=["2"])
    x = chain.blocks[0](images())
    before = x.detach().clone()
    chain.blocks[1](x.detach())
    assert torch.equal(x, before)
    backbone = pt.multi_exit(chain, num_classes=3).train()
    sum(logits.sum() for logits in backbone(images())).backward()


class Shared(nn.Module):
    """One convolution used three times."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(3):
            x = torch.relu(self.again(x))
        return self.fc(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


def test_blocks_may_share_weights() -> None:
    module = Shared()
    chain = pt.split(module, images())
    assert chain.names == ("first", "again", "again#2", "again#3")
    assert same(chain, module, images())
    assert len(list(chain.sequential().parameters())) == len(list(module.parameters()))


def test_shared_weights_are_stored_once_for_each_block(tmp_path: Path) -> None:
    backbone = pt.multi_exit(pt.split(Shared(), images()))
    save_checkpoint(backbone, tmp_path / "shared.safetensors")
    stored, _ = read_tensors(tmp_path / "shared.safetensors")
    assert tensors_sha256(stored) == backbone.spec().weights_sha256


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([Residual, Inception]), min_size=1, max_size=5), st.integers(1, 6))
def test_a_chain_is_its_network_whatever_it_is_made_of(kinds: list[Any], count: int) -> None:
    module = Classifier(*(kind(4) for kind in kinds))
    assert len(pt.split(module, images())) == 1 + len(kinds)
    chain = pt.split(module, images(), blocks=count)
    assert len(chain) == min(count, 1 + len(kinds))
    assert same(chain, module, images())


def test_blocks_are_balanced_by_cost() -> None:
    module = Classifier(*(Residual(4) for _ in range(6)))
    fine = pt.split(module, images())
    coarse = pt.split(module, images(), blocks=3)
    assert coarse.names == ("stem..body.1", "body.2..body.3", "body.4..body.5")
    assert sum(coarse.costs) == sum(fine.costs)
    best = min(
        max(sum(fine.costs[a:b]) for a, b in pairwise((0, i, j, 7))) for i in range(1, 6) for j in range(i + 1, 7)
    )
    assert max(coarse.costs) == best


def test_costs_are_floating_point_operations_of_one_sample() -> None:
    chain = pt.split(Classifier(), images())
    assert list(chain.costs) == [2 * 3 * 9 * 4 * 64]
    assert chain.head_cost == 2 * 4 * 5


def test_cuts_only_where_asked() -> None:
    module = Classifier(Residual(4), Residual(4), Residual(4))
    assert pt.split(module, images(), at=["body.1"]).names == ("stem..body.1", "body.2")
    named = pt.split(module, images(), at={"early": "body.0", "late": "body.2"})
    assert named.names == ("early", "late")
    assert same(named, module, images())
    with pytest.raises(SplitError, match=r"no operation belongs to a module 'nowhere'"):
        pt.split(module, images(), at=["nowhere"])
    with pytest.raises(SplitError, match=r"cannot cut after body\.1\.conv1: 2 tensors"):
        pt.split(module, images(), at=["body.1.conv1"])
    with pytest.raises(SplitError, match="cuts must increase"):
        pt.split(module, images(), at=["body.1", "body.0"])


def test_a_named_module_stays_whole() -> None:
    module = Classifier(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    assert len(pt.split(module, images())) == 3
    assert pt.split(module, images(), leaves=["body"]).names == ("stem", "body")
    assert pt.split(module, images(), leaves=[nn.Sequential]).names == ("stem", "body")
    with pytest.raises(SplitError, match="no trunk"):
        pt.split(module, images(), leaves=["trunk"])


class ByData(nn.Module):
    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.inner = nn.Conv2d(size, size, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.inner(x)  # type: ignore[no-any-return]
        return x


class ByShape(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2 or len(x.shape) != 4 or int(x.size(2)) < 2:
            x = functional.pad(x, (0, 1))
        return self.inner(x)  # type: ignore[no-any-return]


def test_a_module_that_decides_by_data_stays_whole() -> None:
    chain = pt.split(Classifier(ByData(), Residual(4)), images())
    assert chain.names == ("stem", "body.0", "body.1")
    assert "body.0 and its like stay whole" in chain.notes[0]
    assert "decides by the values of a tensor" in chain.notes[0]
    assert "if x.sum() > 0" in chain.notes[0]


def test_a_module_that_decides_by_shapes_is_traced_as_for_the_example() -> None:
    module = Classifier(ByShape(), Residual(4))
    chain = pt.split(module, images())
    assert chain.notes == ()
    assert same(chain, module, images(batch=4))


def test_a_network_that_itself_decides_by_data_is_refused_with_the_line() -> None:
    with pytest.raises(SplitError, match=r"ByData cannot be traced.*test_split\.py:\d+ \(if x\.sum\(\) > 0:\).*leaves"):
        pt.split(ByData(3), images())


class Outputs(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(3, 4, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        x = self.conv(x).mean(dim=(2, 3))
        if mask is not None:
            x = x * mask
        logits = self.fc(x)
        return {"dict": {"logits": logits}, "pair": (x, logits), "none": 3.0}[self.kind]


def test_one_output_in_a_mapping_is_taken_several_are_refused() -> None:
    assert len(pt.split(Outputs("dict"), images())) == 1
    with pytest.raises(SplitError, match="ends with one tensor, but `forward` gives 0, 1"):
        pt.split(Outputs("pair"), images())
    with pytest.raises(SplitError, match="ends with one tensor, but `forward` gives float"):
        pt.split(Outputs("none"), images())


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ((images(), images()), "one input tensor, but the example is tuple"),
        (torch.zeros(1, 5, 8, 8), r"does not run on the example of shape \(1, 5, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8), "at least one sample"),
        ("image", "the example is str"),
    ],
)
def test_wrong_examples_are_refused(example: Any, message: str) -> None:
    with pytest.raises(SplitError, match=message):
        pt.split(Classifier(), example)


def test_a_network_that_draws_random_numbers_is_compared_under_one_seed() -> None:
    class Random(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    chain = pt.split(Random(), images())
    outputs = []
    for network in (Random(), chain.sequential()):
        torch.manual_seed(3)
        outputs.append(network(images()))
    assert torch.equal(*outputs)


# --- exit branches ----------------------------------------------------------------------------


def test_the_last_exit_is_the_networks_own_classifier() -> None:
    module = Classifier(Residual(4), Inception(4)).eval()
    backbone = pt.multi_exit(pt.split(module, images()))
    assert backbone.num_classes == 5
    assert len(backbone(images())) == 3
    assert torch.equal(backbone(images())[-1], module(images()))
    x = images()
    for start, end in ((0, 2), (2, 3)):
        x, logits = backbone.segment(start, end)(x)
        assert torch.equal(logits, backbone(images())[end - 1])


def test_other_classes_get_a_new_last_classifier() -> None:
    module = Classifier(Residual(4)).eval()
    backbone = pt.multi_exit(pt.split(module, images()), num_classes=7)
    assert [tuple(logits.shape) for logits in backbone(images())] == [(2, 7)] * 2


def test_a_network_without_logits_gets_a_classifier() -> None:
    chain = pt.split(SkipsEverything(), images())
    assert chain.num_outputs == 0
    with pytest.raises(InvalidValue, match="give num_classes"):
        pt.multi_exit(chain)
    assert [tuple(logits.shape) for logits in pt.multi_exit(chain, num_classes=4)(images())] == [(2, 4)]


def test_exits_only_where_asked() -> None:
    chain = pt.split(Classifier(Residual(4), Residual(4)), images())
    backbone = pt.multi_exit(chain, exits=["body.0"])
    assert backbone.exits == (2, 3)
    assert backbone.spec().exits == (2, 3)
    assert len(backbone(images())) == 2
    features, logits = backbone.segment(0, 1)(images())
    assert logits is None
    assert tuple(features.shape) == (2, 4, 8, 8)
    assert pt.multi_exit(chain).spec().exits is None
    for wrong in (0, 4, "nowhere"):
        with pytest.raises(InvalidValue, match=str(wrong)):
            pt.multi_exit(chain, exits=[wrong])


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        layer = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.fc = nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(self.encoder(self.embedding(ids))[:, 0])  # type: ignore[no-any-return]


def test_sequences_of_tokens_have_pooled_or_token_branches() -> None:
    ids = torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(0))
    module = Sequence().eval()
    chain = pt.split(module, ids)
    assert chain.names == ("embedding", "encoder.layers.0", "encoder.layers.1")
    assert chain.cut_dtypes[0] == torch.int64
    for heads, kind in (("pooled", PooledLinear), ("token", TokenLinear)):
        backbone = pt.multi_exit(chain, heads=heads).eval()
        assert isinstance(backbone.branches[0], kind)
        assert backbone.spec().cut_shapes == ((5,), (5, 6), (5, 6), (5, 6))
        assert torch.equal(backbone(ids)[-1], module(ids))


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.norm = nn.LayerNorm(8)
        self.mix = nn.Linear(8, 8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x).permute(0, 2, 3, 1))
        return self.fc(torch.relu(self.mix(x)).mean(dim=(1, 2)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("size", [8, 6])
def test_pooling_keeps_the_channels_wherever_they_are(size: int) -> None:
    chain = pt.split(ChannelsLast(), images(size), at=["mix"])
    backbone = pt.multi_exit(chain, num_classes=4)
    linear = backbone.branches[0].linear
    assert isinstance(linear, nn.Linear)
    x = chain.blocks[0](images(size))
    assert x.shape[-1] == 8
    assert torch.equal(backbone(images(size))[0], linear(x.mean(dim=(1, 2))))


def test_flat_features_need_no_pooling() -> None:
    module = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    chain = pt.split(module, torch.randn(2, 6))
    assert chain.names == ("0", "2")
    assert [tuple(logits.shape) for logits in pt.multi_exit(chain)(torch.randn(2, 6))] == [(2, 3)] * 2


def own_head(shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))


def test_heads_can_be_the_users_own() -> None:
    chain = pt.split(Classifier(Residual(4)), images())
    for heads in (own_head, "test_split:own_head"):
        assert len(pt.multi_exit(chain, heads=heads)(images())) == 2
    with pytest.raises(InvalidValue, match="test_split has no 'nothing'"):
        pt.multi_exit(chain, heads="test_split:nothing")
    with pytest.raises(InvalidValue, match="'pooled', 'token'"):
        pt.multi_exit(chain, heads="polled")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (lambda shape, classes: nn.Linear(99, classes), r"after stem does not fit the shape \(4, 8, 8\)"),
        (lambda shape, classes: nn.Flatten(), r"after stem gives logits \[batch, 5\], but .* \(2, 256\)"),
        (lambda shape, classes: None, "it gives NoneType"),
        ("token", "first token is that of a sequence"),
    ],
)
def test_heads_that_do_not_fit_are_refused(head: Any, message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        pt.multi_exit(pt.split(Classifier(Residual(4)), images()), heads=head)


def test_the_seed_fixes_new_branches() -> None:
    chain = pt.split(Classifier(Residual(4)), images())
    first, again, other = (pt.multi_exit(chain, seed=seed).spec().weights_sha256 for seed in (1, 1, 2))
    assert first == again != other


def test_importing_portend_loads_no_torch() -> None:
    code = "import sys, portend; sys.exit('torch' in sys.modules or not hasattr(portend, '__all__'))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'splits'"):
        getattr(pt, "splits")  # noqa: B009


# --- networks that others wrote ---------------------------------------------------------------


def agrees(name: str) -> dict[str, Any]:
    """Split a model as ``examples/split_zoo.py`` does and check what must hold for every model."""
    row = row_of(name)
    assert row["equal"], row
    assert row["equal_in_training"] is not False, row
    return row


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("resnet18", 9),
        ("squeezenet1_1", 9),
        ("mobilenet_v3_small", 14),
        ("shufflenet_v2_x0_5", 18),
        ("timm:convnext_atto", 16),
        ("timm:vit_tiny_patch16_224", 25),
        ("timm:swin_tiny_patch4_window7_224", 28),
        ("text:bert", 6),
    ],
)
def test_networks_of_the_libraries(name: str, blocks: int) -> None:
    pytest.importorskip("timm" if ":" in name else "torchvision")
    pytest.importorskip("transformers" if name.startswith("text") else "torchvision")
    assert agrees(name)["blocks"] == blocks


@pytest.mark.slow
def test_nearly_every_classifier_of_torchvision_has_four_blocks() -> None:
    models = pytest.importorskip("torchvision").models
    names = [n for n in models.list_models(module=models) if "128gf" not in n and "_h_14" not in n]
    rows = [agrees(name) for name in names]
    assert sum(row["blocks"] >= 4 for row in rows) >= 0.95 * len(rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(f"timm:{name}" for name in TIMM), *(f"text:{name}" for name in TEXT)])
def test_families_of_timm_and_text_encoders(name: str) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("transformers")
    agrees(name)
