"""The paper's networks: shapes at the cuts, sizes, exits, published weights and checkpoints."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from portend.data.sources import load_dataset
from portend.errors import InvalidValue, StorageError
from portend.networks import pretrained, zoo
from portend.networks.backbone import Backbone
from portend.networks.checkpoint import load_checkpoint, save_checkpoint
from test_models import rewrite, shared_data

Shapes = list[tuple[int, ...]]


def sketch(name: str, **options: Any) -> Backbone:
    """Build a network without memory for its weights, in evaluation mode."""
    with torch.device("meta"):
        return zoo.build(name, **options).eval()


def cut_shapes(backbone: Backbone) -> Shapes:
    """Return the shape at cuts 0 to N of one sample, for a network without memory."""
    x = torch.empty(1, *backbone.input_shape, device="meta")
    shapes = [tuple(x.shape[1:])]
    for block in backbone.blocks:
        x = block(x)
        shapes.append(tuple(x.shape[1:]))
    return shapes


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def same_outputs(first: nn.Module, second: nn.Module, x: Tensor) -> bool:
    with torch.inference_mode():
        return all(torch.equal(a, b) for a, b in zip(first(x), second(x), strict=True))


# --- blocks -----------------------------------------------------------------------------------

# cuts 0 to N-1: the authors' public measurements (MaryamEbr/PORTEND_Performance_Model); the last: the papers
SHAPES: dict[str, Shapes] = {
    "resnet20": [(3, 32, 32), *[(16, 32, 32)] * 4, *[(32, 16, 16)] * 3, *[(64, 8, 8)] * 3],
    "resnet110": [(3, 32, 32), *[(16, 32, 32)] * 19, *[(32, 16, 16)] * 18, *[(64, 8, 8)] * 18],
    "efficientnet_b0": [
        *[(3, 224, 224), (32, 112, 112), (16, 112, 112), (24, 56, 56), (40, 28, 28)],
        *[(80, 14, 14), (112, 14, 14), (192, 7, 7), (1280, 7, 7)],
    ],
    "efficientnet_b7": [
        *[(3, 600, 600), (64, 300, 300), (32, 300, 300), (48, 150, 150), (80, 75, 75)],
        *[(160, 38, 38), (224, 38, 38), (384, 19, 19), (2560, 19, 19)],
    ],
    "vggish": [(1, 96, 64), (64, 48, 32), (128, 24, 16), (256, 12, 8), (512, 6, 4)],
}


@pytest.mark.parametrize("name", SHAPES)
def test_blocks_end_where_the_papers_do(name: str) -> None:
    assert cut_shapes(sketch(name)) == SHAPES[name]


@pytest.mark.parametrize(
    ("theirs", "name", "first"),
    [
        ("ResNet20", "resnet20", 0),
        ("ResNet110", "resnet110", 0),
        ("EfficientNetB0", "efficientnet_b0", 0),
        ("EfficientNetB7", "efficientnet_b7", 0),
        ("VGGish", "vggish", 1),  # their cut 0 is the raw clip, which their block 1 makes into ten patches
    ],
)
def test_shapes_are_those_of_the_authors_measurements(theirs: str, name: str, first: int) -> None:
    measured = json.loads(shared_data("portend_aws/intermediate_shapes.json").read_text())["models"][theirs]
    backbone = sketch(name)
    shapes = cut_shapes(backbone)
    assert len(backbone.blocks) == measured["blocks"]
    for cut in range(first, measured["blocks"]):
        assert list(shapes[cut]) == measured["shapes"][str(cut)][1:]


@pytest.mark.parametrize("number", range(8))
def test_every_efficientnet_has_eight_blocks(number: int) -> None:
    backbone = sketch(f"efficientnet_b{number}")
    assert len(backbone.blocks) == 8
    assert backbone.input_shape[1] == (224, 240, 260, 300, 380, 456, 528, 600)[number]


# --- sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "millions"),  # He et al. 2016, Table 6; with option A shortcuts, which have no weights
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85), ("resnet110", 1.7)],
)
def test_resnets_have_the_published_size(name: str, millions: float) -> None:
    backbone = sketch(name, shortcut="pad")
    count = size(backbone.blocks) + size(backbone.branches[-1])
    assert count / 1e6 == pytest.approx(millions, abs=0.05 if millions > 1 else 0.006)


@pytest.mark.parametrize(
    ("number", "count"),  # `num_params` in torchvision's documentation of the weights; Tan and Le 2019, Table 2
    list(enumerate((5_288_548, 7_794_184, 9_109_994, 12_233_232, 19_341_616, 30_389_784, 43_040_704, 66_347_960))),
)
def test_efficientnets_have_the_published_size(number: int, count: int) -> None:
    backbone = sketch(f"efficientnet_b{number}")
    assert size(backbone.blocks) + size(backbone.branches[-1]) == count


def test_vggish_has_the_published_size() -> None:
    assert size(sketch("vggish").blocks) == 4_499_712
    assert size(sketch("vggish", embedding=True).blocks) == 72_141_184  # harritaylor/torchvggish; "62M" in the paper


# --- exits ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet32", {"num_classes": 7, "in_channels": 1, "input_size": 12}),
        ("efficientnet_b0", {"num_classes": 7, "input_size": 32}),
        ("efficientnet_b1", {"num_classes": 7, "in_channels": 2, "input_size": 40}),
        ("vggish", {"num_classes": 7}),
        ("vggish", {"num_classes": 7, "frames": 40, "bands": 20, "batch_norm": True}),
    ],
)
def test_a_checkpoint_restores_the_network(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    backbone = zoo.build(name, seed=3, **options).eval()
    x = torch.randn(2, *backbone.input_shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        outputs = backbone(x)
    assert [tuple(logits.shape) for logits in outputs] == [(2, 7)] * len(backbone.blocks)
    save_checkpoint(backbone, tmp_path / "net.safetensors")
    again = load_checkpoint(tmp_path / "net.safetensors")
    assert again.spec() == backbone.spec()
    assert same_outputs(again, backbone, x)
    assert again.architecture == backbone.architecture


def test_all_exits_learn() -> None:
    for name in ("efficientnet_b0", "vggish"):
        options = {"input_size": 32} if name == "efficientnet_b0" else {"frames": 16, "bands": 16}
        backbone = zoo.build(name, num_classes=3, **options).train()
        outputs = backbone(torch.randn(4, *backbone.input_shape, generator=torch.Generator().manual_seed(0)))
        sum((logits.square().sum() for logits in outputs), torch.zeros(())).backward()
        assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_the_last_exit_is_torchvisions_network_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(5)
    theirs = torchvision.models.efficientnet_b0(weights=None).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours = zoo.build("efficientnet_b0", input_size=64, weights=str(tmp_path / "theirs.pth")).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(ours(x)[-1], theirs(x))


def test_blocks_are_the_same_for_any_number_of_classes(tmp_path: Path) -> None:
    theirs = torchvision.models.efficientnet_b0(weights=None)
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    ours = zoo.build("efficientnet_b0", input_size=32, num_classes=10, weights=str(tmp_path / "theirs.safetensors"))
    new = zoo.build("efficientnet_b0", input_size=32, num_classes=10)
    assert torch.equal(next(ours.blocks.parameters()), next(theirs.features.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(ours.branches.parameters(), new.branches.parameters(), strict=True))


class Published(nn.Module):
    """VGGish in the layout of harritaylor/torchvggish, for one patch; written from its description."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        previous = 1
        for width in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0):
            if width:
                layers += [nn.Conv2d(previous, width, 3, padding=1), nn.ReLU()]
                previous = width
            else:
                layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(512 * 4 * 6, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 128), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.embeddings(self.features(x).movedim(1, -1).reshape(len(x), -1))
        return result


def test_vggish_takes_the_published_layout(tmp_path: Path) -> None:
    torch.manual_seed(2)
    theirs = Published().eval()
    assert {"features.13.bias", "embeddings.4.weight"} <= theirs.state_dict().keys()
    path = str(tmp_path / "vggish.pth")
    torch.save({**theirs.state_dict(), "pproc.pca_means": torch.zeros(128, 1)}, path)
    x = torch.randn(2, 1, 96, 64)
    for embedding, expected in ((True, theirs), (False, theirs.features)):
        ours = zoo.build("vggish", embedding=embedding, weights=path).eval()
        with torch.inference_mode():
            assert torch.equal(ours.segment(0, 4, branch=False)(x)[0], expected(x))


def test_the_authors_file_makes_a_network_by_name() -> None:
    path = str(shared_data("weights/portend_resnet20_full_notfrozen.safetensors"))
    backbone = zoo.build("resnet20", weights=path)
    assert backbone.spec().weights_sha256 != zoo.build("resnet20").spec().weights_sha256
    path = str(shared_data("weights/akamaster_resnet56.safetensors"))
    assert zoo.build("resnet56", shortcut="pad", weights=path).num_classes == 10
    with pytest.raises(StorageError, match="tensors differ"):
        zoo.build("resnet20", weights=path)


# --- published weights ------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Path]:
    """An empty folder in the place of PyTorch's cache of downloads."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    yield tmp_path / "hub"
    torch.hub.set_dir(before)


@pytest.mark.parametrize(
    ("name", "file"),
    [("efficientnet_b0", "efficientnet_b0_rwightman-7f5810bc.pth"), ("vggish", "vggish-10086976.pth")],
)
def test_without_network_the_error_says_where_the_file_goes(
    name: str, file: str, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_args: object, **_options: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setattr(torch.hub, "urlopen", offline)
    with pytest.raises(StorageError, match=rf"cannot download https://.*{file}.*no route.*put it at {hub}.*{file}"):
        zoo.build(name, weights="pretrained")
    assert not list(hub.rglob("*.pth"))


def test_a_file_in_the_cache_is_used_when_its_digest_is_right(hub: Path) -> None:
    path = hub / "checkpoints" / "net-deadbeef.pth"
    path.parent.mkdir(parents=True)
    torch.save({"w": torch.ones(2)}, path)
    with pytest.raises(StorageError, match=r"net-deadbeef\.pth is not the published file.*not deadbeef.*remove it"):
        pretrained.fetch("https://example.org/net-deadbeef.pth")
    plain = path.rename(path.with_name("net.pth"))
    assert pretrained.fetch("https://example.org/net.pth") == plain
    assert torch.equal(pretrained.read_weights(plain)["w"], torch.ones(2))


class Harmful:
    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (setattr, (Harmful, "ran", True))


def test_a_file_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "harmful.pth"
    torch.save({"w": torch.ones(1), "x": Harmful()}, path)
    with pytest.raises(StorageError, match=r"harmful\.pth is not a file of tensors alone"):
        zoo.build("efficientnet_b0", weights=str(path))
    assert not Harmful.ran


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut off"])
def test_a_damaged_file_of_weights_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"net\.pth"):
        zoo.build("vggish", weights=str(path))


def test_weights_that_do_not_fit_or_are_missing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"there is no file .*absent\.pth"):
        zoo.build("vggish", weights=str(tmp_path / "absent.pth"))
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(StorageError, match="not a state dict"):
        zoo.build("vggish", weights=str(tmp_path / "list.pth"))
    torch.save(torchvision.models.efficientnet_b1(weights=None).state_dict(), tmp_path / "b1.pth")
    with pytest.raises(StorageError, match=r"b1\.pth does not hold the weights of this network"):
        zoo.build("efficientnet_b0", weights=str(tmp_path / "b1.pth"))


def test_a_checkpoint_cannot_ask_for_weights(tmp_path: Path) -> None:
    backbone = zoo.build("resnet8", input_size=8)
    save_checkpoint(backbone, tmp_path / "net.safetensors")
    rewrite(tmp_path / "net.safetensors", architecture={**backbone.architecture, "weights": "/etc/passwd"})
    with pytest.raises(StorageError, match="does not say where weights come from"):
        load_checkpoint(tmp_path / "net.safetensors")


# --- experiments ------------------------------------------------------------------------------

EXPERIMENTS = sorted((Path(__file__).parents[1] / "configs" / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiments_network_takes_its_data(path: Path) -> None:
    config = yaml.safe_load(re.sub(r"\bdata/(\S+?)(?=[:\s])", lambda at: str(shared_data(at[1])), path.read_text()))
    backbone = zoo.build(config["network"], **config.get("options", {}))
    dataset = load_dataset(config["data"])
    assert dataset.decoder.shape == backbone.input_shape
    assert dataset.num_classes == backbone.num_classes


# --- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("efficientnet_b0", {"input_size": 31}, "input_size is an integer of at least 32, but got 31"),
        ("efficientnet_b0", {"num_classes": 1}, "num_classes"),
        ("efficientnet_b0", {"shortcut": "pad"}, "no option shortcut; its options are num_classes"),
        ("vggish", {"frames": 15}, "frames is an integer of at least 16"),
        ("vggish", {"embedding": 1}, "embedding is true or false"),
        ("vggish", {"embedding": True, "frames": 48}, "96 frames and 64 bands, but got 48 and 64"),
        ("vggish", {"batch_norm": True, "weights": "pretrained"}, "no batch norm"),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        zoo.build(name, **options)


@pytest.mark.parametrize("name", ["efficientnet_b0", "vggish"])
def test_the_seed_fixes_the_weights(name: str) -> None:
    state = torch.random.get_rng_state()
    small = {"input_size": 32} if name == "efficientnet_b0" else {"frames": 16, "bands": 16}
    first, again, other = (zoo.build(name, seed=seed, **small).spec().weights_sha256 for seed in (3, 3, 4))
    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), state)
