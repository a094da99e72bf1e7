"""Networks by name: timm's, torchvision's and the user's own, their checkpoints, and what a file may not do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from click.testing import CliRunner
from torch import nn

from portend.cli.app import cli
from portend.data.decoding import ImageDecoder
from portend.errors import DeploymentError, InvalidValue, StorageError
from portend.networks import zoo
from portend.networks.backbone import Backbone
from portend.networks.checkpoint import load_checkpoint, save_checkpoint
from portend.networks.tensorfile import write_tensors
from portend.testbed.deployment import Deployment
from portend.values.topology import Tier, Topology
from test_models import rewrite
from test_networks import same_outputs

SMALL = {"num_classes": 10, "input_shape": [3, 32, 32]}
TINY = {"num_classes": 2, "input_shape": [3, 32, 32]}
MODULE = '''
"""A module that leaves a witness when it is imported."""
import pathlib
from torch import nn

pathlib.Path(__file__).with_name("imported").touch()

def network(width=4):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )

class Head(nn.Module):
    def __init__(self, shape, num_classes):
        super().__init__()
        self.linear = nn.Linear(shape[0], num_classes)

    def forward(self, x):
        return self.linear(x.amax(dim=(2, 3)))

def backbone():
    from portend.networks.zoo import build
    return build("resnet8", in_channels=1, input_size=8, num_classes=3)

ready = network()
number = 3
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """A module of the user's, importable here and by agents: its name and the file that importing it leaves."""
    name = f"own_{tmp_path.name}"
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    return name, folder / "imported"


def restored(backbone: Backbone, path: Path, **options: Any) -> Backbone:
    """Save and load; check that nothing but the file's content decides what the network computes."""
    x = torch.randn(2, *backbone.input_shape, generator=torch.Generator().manual_seed(1))
    save_checkpoint(backbone.eval(), path)
    again = load_checkpoint(path, **options)
    assert again.spec() == backbone.spec()
    assert again.architecture == backbone.architecture
    assert same_outputs(again, backbone, x)
    return again


# --- libraries --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "blocks"),
    [
        ("timm:mobilenetv3_small_100", {}, None),
        ("timm:mobilenetv3_small_100", {"blocks": 4, "exits": [2]}, 4),
        ("timm:vit_tiny_patch16_224", {"arguments": {"patch_size": 8, "depth": 2}, "heads": "token"}, None),
        ("timm:resnet18", {"num_classes": 10, "input_shape": [1, 32, 32], "seed": 4}, None),
        ("torchvision:mobilenet_v2", {"at": {"late": "features.3", "early": "features.10"}}, 3),
        ("torchvision:resnet18", {"leaves": ["layer1"]}, None),
    ],
)
def test_a_checkpoint_restores_a_librarys_network(
    name: str, options: dict[str, Any], blocks: int | None, tmp_path: Path
) -> None:
    backbone = zoo.build(name, **{**SMALL, **options})
    if blocks is not None:
        assert len(backbone.blocks) == blocks
    again = restored(backbone, tmp_path / "net.safetensors")
    assert again.block_names == backbone.block_names
    rebuilt = zoo.build(name, **json.loads(json.dumps(backbone.architecture)))
    assert rebuilt.spec() == backbone.spec()


def test_named_blocks_keep_their_order(tmp_path: Path) -> None:
    backbone = zoo.build("torchvision:mobilenet_v2", **SMALL, at={"late": "features.3", "early": "features.10"})
    assert backbone.block_names[:2] == ("late", "early")
    assert restored(backbone, tmp_path / "net.safetensors").block_names[:2] == ("late", "early")


def test_the_last_exit_is_the_librarys_network_bit_for_bit() -> None:
    """The seed draws the library's weights, before the branches."""
    for name, make in (
        ("timm:mobilenetv3_small_100", lambda: timm.create_model("mobilenetv3_small_100", num_classes=10)),
        ("torchvision:resnet18", lambda: torchvision.models.resnet18(num_classes=10)),
    ):
        ours = zoo.build(name, **SMALL, seed=7).eval()
        torch.manual_seed(7)
        theirs = make().eval()
        x = torch.randn(2, 3, 32, 32)
        with torch.inference_mode():
            assert torch.equal(ours(x)[-1], theirs(x))


def test_libraries_know_their_networks_samples_and_classes() -> None:
    backbone = zoo.build("timm:mobilenetv3_small_050", blocks=2)
    assert backbone.input_shape == (3, 224, 224)
    assert backbone.num_classes == 1000


def test_the_callers_random_state_is_left_alone() -> None:
    state = torch.random.get_rng_state()
    first, again, other = (
        zoo.build("timm:mobilenetv3_small_050", **SMALL, seed=seed).spec().weights_sha256 for seed in (1, 1, 2)
    )
    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("timm:resnet19", {}, r"timm has no network 'resnet19'; there are.*resnet1"),
        ("timm:hf-hub:someone/network", {}, "timm has no network"),
        ("timm:local-dir:/tmp", {}, "timm has no network"),
        ("torchvision:fasterrcnn_resnet50_fpn", {}, "torchvision has no network"),
        ("timm:resnet18", {"arguments": {"checkpoint_path": "x"}}, "passes on no argument checkpoint_path to timm"),
        ("timm:resnet18", {"arguments": {"pretrained": True}}, "passes on no argument pretrained"),
        ("torchvision:resnet18", {"arguments": {"weights": "DEFAULT"}}, "passes on no argument weights"),
        ("timm:vit_tiny_patch16_224", {"arguments": {"embed_dim": 10**9}}, "embed_dim is a word or a number"),
        ("timm:resnet18", {"arguments": {"img_size": 32}}, "timm cannot build resnet18.*img_size"),
        ("timm:resnet18", {"input_shape": [3, 0, 32]}, "positive integers"),
        ("timm:resnet18", {"input_shape": [3, 10**5, 10**5]}, "at most 16777216 numbers"),
        ("timm:resnet18", {"colour": 1}, "no option colour; its options are num_classes"),
        ("timm:resnet18", {"heads": "none"}, "a head is 'pooled', 'token'"),
    ],
)
def test_what_a_library_does_not_have_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        zoo.build(name, **{**SMALL, **options})


# --- weights ----------------------------------------------------------------------------------


def test_weights_of_a_file_fit_any_number_of_classes(tmp_path: Path) -> None:
    cases: list[tuple[str, Callable[[], nn.Module]]] = [
        ("timm:mobilenetv3_small_050", lambda: timm.create_model("mobilenetv3_small_050")),
        ("torchvision:mobilenet_v3_small", lambda: torchvision.models.mobilenet_v3_small()),
    ]
    for name, make in cases:
        theirs = make().eval()
        path = str(tmp_path / "theirs.pth")
        torch.save(theirs.state_dict(), path)
        same = zoo.build(name, input_shape=[3, 32, 32], weights=path).eval()
        other = zoo.build(name, **SMALL, weights=path)
        x = torch.randn(2, 3, 32, 32)
        with torch.inference_mode():
            assert torch.equal(same(x)[-1], theirs(x))
        assert "weights" not in other.architecture
        assert torch.equal(next(other.blocks.parameters()), next(theirs.parameters()))
        assert other.num_classes == 10


def test_a_vision_transformers_positions_are_resized(tmp_path: Path) -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", depth=1)
    path = str(tmp_path / "theirs.pth")
    torch.save(theirs.state_dict(), path)
    ours = zoo.build("timm:vit_tiny_patch16_224", **SMALL, arguments={"depth": 1}, weights=path)
    assert ours.spec().cut_shapes[1] == (1 + 4, 192)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "theirs.pth")
    torch.save(timm.create_model("mobilenetv3_small_050").state_dict(), path)
    with pytest.raises(StorageError, match=r"theirs\.pth does not hold the weights of timm:mobilenetv3_small_100"):
        zoo.build("timm:mobilenetv3_small_100", **SMALL, weights=path)


def test_without_network_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_args: object, **_options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", offline)
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(StorageError, match=r"no route.*download model.safetensors from https.*path as weights"):
        zoo.build("timm:mobilenetv3_small_100", **SMALL, weights="pretrained")
    with pytest.raises(StorageError, match=r"cannot download https://download.pytorch.org.*resnet18"):
        zoo.build("torchvision:resnet18", **SMALL, weights="pretrained")


# --- the user's own ---------------------------------------------------------------------------


def test_the_users_network_by_name(own: tuple[str, Path], tmp_path: Path) -> None:
    module, _ = own
    network = zoo.build(f"{module}:network", input_shape=[1, 8, 8], arguments={"width": 5})
    assert [shape[0] for shape in network.spec().cut_shapes] == [1, 5, 8]
    assert network.num_classes == 3
    names = [f"{module}:network", f"{module}:Head"]
    restored(network, tmp_path / "a.safetensors", allow_code=names[:1])
    headed = zoo.build(f"{module}:network", input_shape=[1, 8, 8], num_classes=4, heads=f"{module}:Head")
    restored(headed, tmp_path / "b.safetensors", allow_code=names)
    with pytest.raises(StorageError, match=f"names code that would be imported and run: {module}:Head"):
        load_checkpoint(tmp_path / "b.safetensors", allow_code=names[:1])


def test_a_module_is_copied_and_a_backbone_taken_as_it_is(own: tuple[str, Path], tmp_path: Path) -> None:
    module, _ = own
    first, second = (zoo.build(f"{module}:ready", input_shape=[1, 8, 8]) for _ in range(2))
    assert next(first.parameters()).data_ptr() != next(second.parameters()).data_ptr()
    whole = zoo.build(f"{module}:backbone")
    assert (len(whole.blocks), whole.input_shape) == (4, (1, 8, 8))
    restored(whole, tmp_path / "net.safetensors", allow_code=[f"{module}:backbone"])
    with pytest.raises(InvalidValue, match="is a Backbone with blocks and exits of its own; leave out blocks"):
        zoo.build(f"{module}:backbone", blocks=2)


@pytest.mark.parametrize(
    ("attribute", "options", "message"),
    [
        ("absent", {}, "does not exist"),
        ("network", {}, "give input_shape"),
        ("number", {"input_shape": [1, 8, 8]}, "it gave int"),
        ("network", {"input_shape": [1, 8, 8], "weights": "pretrained"}, "has no published weights"),
    ],
)
def test_an_own_network_that_cannot_be_used_is_refused(
    attribute: str, options: dict[str, Any], message: str, own: tuple[str, Path]
) -> None:
    with pytest.raises(InvalidValue, match=message):
        zoo.build(f"{own[0]}:{attribute}", **options)
    with pytest.raises(InvalidValue, match="there is no module 'no'"):
        zoo.build("no.such.module:network", input_shape=[1, 8, 8])


# --- what a file may not do -------------------------------------------------------------------


@pytest.fixture
def crafted(own: tuple[str, Path], tmp_path: Path) -> tuple[str, Path, Path]:
    """A sound checkpoint that names the user's module: the code, the file, and the witness of an import."""
    name, witness = own
    path = tmp_path / "crafted.safetensors"
    code = f"{name}:network"
    save_checkpoint(zoo.build(code, input_shape=[1, 8, 8]), path, provenance={"dataset": "digits:size=8"})
    witness.unlink()
    return code, path, witness


def forget(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(__import__("sys").modules, code.partition(":")[0])


def test_opening_a_checkpoint_imports_nothing_that_was_not_allowed(
    crafted: tuple[str, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, path, witness = crafted
    forget(code, monkeypatch)
    for allowed in ((), [f"{code}2"], ["os:system"]):
        with pytest.raises(StorageError, match=rf"names code.*{code}; if you trust it.*--allow-code {code}"):
            load_checkpoint(path, allow_code=allowed)
    assert not witness.exists()
    assert load_checkpoint(path, allow_code=[code]).num_classes == 3
    assert witness.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "os:system", "architecture": {"arguments": {"command": "touch hacked"}}}, "names code.*os:system"),
        ({"name": "timm:resnet18", "architecture": {**SMALL, "heads": "os:system"}}, "names code.*os:system"),
        ({"name": "timm:resnet18", "architecture": {**SMALL, "weights": "pretrained"}}, "where weights come from"),
        ({"name": "timm:resnet18", "architecture": {"arguments": {"checkpoint_path": "x"}}}, "no argument"),
        ({"name": "timm:vit_giant_patch14_224", "architecture": {"num_classes": 10}}, "weights, but the file has"),
        ({"name": "timm:resnet18", "architecture": {"num_classes": "many"}}, "cannot build"),
        ({"name": "timm:resnet18", "architecture": {"input_shape": [3, 1, 10**9]}}, "at most"),
        ({"name": "timm:resnet18", "architecture": {"arguments": "abc"}}, "cannot build"),
        ({"name": "timm:mobilenetv3_small_050", "architecture": {**TINY, "colour": 1}}, "no option colour"),
        ({"name": "timm:mobilenetv3_small_050", "architecture": {**TINY, "at": 3}}, "cannot build"),
        ({"name": "timm:mobilenetv3_small_050", "architecture": {**TINY, "at": [["a", "b", "c"]]}}, "at holds"),
        ({"name": "timm:mobilenetv3_small_050", "architecture": {**TINY, "exits": [99]}}, "cuts"),
        ({"name": "timm:mobilenetv3_small_050", "architecture": {**TINY, "leaves": ["x"]}}, "leaves"),
    ],
)
def test_a_crafted_checkpoint_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    tensors = {"w": torch.zeros(1_000_000)}
    write_tensors(path, tensors, {"kind": "checkpoint", "version": 1, "provenance": {}, **changes})
    with pytest.raises(StorageError, match=message):
        load_checkpoint(path)


def one_tier() -> Topology:
    return Topology(name="one", tiers=(Tier(name="a", device="x"),), links=())


def test_agents_import_only_what_they_were_started_with(crafted: tuple[str, Path, Path]) -> None:
    code, path, witness = crafted
    decoder = ImageDecoder(channels=1, size=8, mean=(0.5,), std=(0.5,))
    with (
        pytest.raises(DeploymentError, match="names code that would be imported"),
        Deployment(one_tier(), path, decoder, emulation="none"),
    ):
        pass
    assert not witness.exists()
    with Deployment(one_tier(), path, decoder, emulation="none", allow_code=[code]):
        assert witness.exists()


def test_the_command_line_imports_only_what_it_was_told(
    crafted: tuple[str, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, path, witness = crafted
    forget(code, monkeypatch)
    command = ["profile", str(path), "--out", str(tmp_path / "p.zip")]
    result = CliRunner().invoke(cli, command)
    assert isinstance(result.exception, StorageError)
    assert f"--allow-code {code}" in str(result.exception)
    rewrite(path, name="resnet8", provenance={"dataset": code})
    result = CliRunner().invoke(cli, command)
    assert f"names {code} as its data" in str(result.exception)
    assert not witness.exists()
    assert not list(tmp_path.glob("*.zip"))
