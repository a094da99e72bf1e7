"""The CIFAR ResNet family (He et al. 2016, Sec. 4.2) cut the paper's way.

Block 1 is the stem (3x3 convolution, batch norm, ReLU), each residual block is one more: depth 6n+2 has
3n+1 blocks (ResNet-20: 10, ResNet-110: 55). Three stages of 16, 32 and 64 channels, the later two at
half the resolution of the one before. Each exit branch copies the layers of the final classifier.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from portend.errors import InvalidValue, StorageError, choice
from portend.networks.backbone import Backbone
from portend.networks.pretrained import read_weights, without_prefix

__all__ = ["SHORTCUTS", "load_akamaster_weights", "load_portend_weights", "resnet"]

_CHANNELS = (16, 32, 64)
SHORTCUTS = ("conv", "pad")
_MARKS = ("conv1.weight", "linear.weight", "layers_dict.conv1_br1.weight")  # by which files' layouts are known
_PORTEND = "layers_dict."


class _PadShortcut(nn.Module):
    """Every second pixel, the new channels zero, half of them on each side (He et al., option A)."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.each_side = new_channels // 2

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.each_side, self.each_side))


class _Stem(nn.Module):
    def __init__(self, in_channels: int, channels: int, *, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=bias)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


class _Residual(nn.Module):
    def __init__(self, in_channels: int, channels: int, shortcut: str) -> None:
        super().__init__()
        grows = in_channels != channels
        bias = shortcut == "conv"
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=2 if grows else 1, padding=1, bias=bias)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=bias)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if grows and shortcut == "conv":
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride=2)
        elif grows:
            self.shortcut = _PadShortcut(channels - in_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + self.shortcut(x))


class _Branch(nn.Module):
    """The final classifier's layers: global average pooling, flatten, linear."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def resnet(
    name: str,
    depth: int,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    input_size: int = 32,
    shortcut: str = "conv",
    seed: int = 0,
    weights: str = "none",
) -> Backbone:
    """Return a CIFAR ResNet of ``depth`` 6n+2 for samples [in_channels, input_size, input_size].

    Args:
        name: the name it carries; num_classes: at least 2; input_size: pixels per side, at least 4.
        shortcut: where the shape changes, ``conv`` is a strided 1x1 convolution (all convolutions have
            a bias; the authors' weights), ``pad`` is parameter-free (no convolution has a bias; He et al.'s option A).
        seed: of the initial weights; the caller's random state is left alone.
        weights: ``none``, or the path of a file for ``load_portend_weights`` or ``load_akamaster_weights``; of the
            latter, also that of a shallower network.

    Raises:
        InvalidValue: an argument is out of its range; StorageError: the weights cannot be read or do not fit.
    """
    architecture = {
        "num_classes": num_classes,
        "in_channels": in_channels,
        "input_size": input_size,
        "shortcut": shortcut,
        "seed": seed,
    }
    _check(depth, architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        blocks = _blocks((depth - 2) // 6, in_channels, shortcut)
        branches = [_Branch(_out_channels(block), num_classes) for block in blocks.values()]
        backbone = Backbone(
            name=name,
            blocks=blocks,
            branches=branches,
            num_classes=num_classes,
            input_shape=(in_channels, input_size, input_size),
            architecture=architecture,
            tidy=True,
        )
        _initialize(backbone)
    if weights != "none":
        found = without_prefix(read_weights(weights), _MARKS)
        load = _load_portend if any(key.startswith(_PORTEND) for key in found) else _load_akamaster
        load(backbone, weights, found)
    return backbone


def _blocks(per_stage: int, in_channels: int, shortcut: str) -> dict[str, nn.Module]:
    blocks: dict[str, nn.Module] = {"stem": _Stem(in_channels, _CHANNELS[0], bias=shortcut == "conv")}
    previous = _CHANNELS[0]
    for stage, channels in enumerate(_CHANNELS, start=1):
        for index in range(1, per_stage + 1):
            blocks[f"stage{stage}.{index}"] = _Residual(previous, channels, shortcut)
            previous = channels
    return blocks


def _out_channels(block: nn.Module) -> int:
    return [m.num_features for m in block.modules() if isinstance(m, nn.BatchNorm2d)][-1]


def _initialize(backbone: Backbone) -> None:
    """Draw convolution weights as He et al. 2015 do, with zero biases; linear layers keep PyTorch's default."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _check(depth: int, architecture: Mapping[str, Any]) -> None:
    if depth < 8 or (depth - 2) % 6:
        raise InvalidValue(f"a CIFAR ResNet has depth 6n+2 (8, 14, 20, ...), but got {depth}")
    choice("shortcut", architecture["shortcut"], SHORTCUTS)
    for key, least in (("num_classes", 2), ("in_channels", 1), ("input_size", 4), ("seed", 0)):
        value = architecture[key]
        if not isinstance(value, int) or value < least:
            raise InvalidValue(f"{key} is an integer of at least {least}, but got {value!r}")


def load_portend_weights(backbone: Backbone, path: str | Path) -> None:
    """Copy the authors' weights (tensors ``layers_dict.*``, every branch) into ``backbone``.

    Source: MaryamEbr/PORTEND_Performance_Model. These networks take RGB in 0–1, not normalized further.

    Raises:
        StorageError: the file is missing or corrupt, or its tensors are not those of this backbone.
    """
    _load_portend(backbone, path, without_prefix(read_weights(path), _MARKS))


def load_akamaster_weights(backbone: Backbone, path: str | Path) -> None:
    """Copy single-exit weights of akamaster/pytorch_resnet_cifar10 into a backbone with the ``pad`` shortcut.

    The blocks and the last branch are loaded; the other branches keep their weights. Weights of a shallower network
    are spread over each stage, and the blocks in between begin as identities (a last batch norm of scale 0), so that
    the deeper network computes what the shallower one did (Chen et al. 2016, Net2Net). Input: RGB in 0–1, normalized
    with the ImageNet mean and standard deviation.

    Raises:
        StorageError: the file is missing or corrupt, or its tensors are not those of this backbone.
    """
    _load_akamaster(backbone, path, without_prefix(read_weights(path), _MARKS))


def _load_portend(backbone: Backbone, path: str | Path, found: Mapping[str, Tensor]) -> None:
    _load(backbone, path, {_from_portend(name): tensor for name, tensor in found.items()})


def _load_akamaster(backbone: Backbone, path: str | Path, found: Mapping[str, Tensor]) -> None:
    per_stage = (len(backbone.blocks) - 1) // 3
    given = len({name for name in found if re.fullmatch(r"layer1\.\d+\.conv1\.weight", name)})
    given = given if 0 < given < per_stage else per_stage
    places = {
        f"layer{stage + 1}.{i}": 1 + stage * per_stage + i * per_stage // given
        for stage in range(3)
        for i in range(given)
    }
    renamed = {_from_akamaster(name, places, 3 * per_stage): tensor for name, tensor in found.items()}
    between = sorted(set(range(1, 3 * per_stage + 1)) - set(places.values()))
    untrained = [f"branches.{index}." for index in range(len(backbone.branches) - 1)]
    _load(backbone, path, renamed, absent=("num_batches_tracked", *untrained, *(f"blocks.{i}." for i in between)))
    for index in between:
        nn.init.zeros_(backbone.blocks[index].get_submodule("bn2").get_parameter("weight"))


def _load(backbone: Backbone, path: str | Path, found: Mapping[str, Tensor], absent: tuple[str, ...] = ()) -> None:
    """Copy ``found`` into the backbone; only names containing one of ``absent`` may be missing."""
    own = backbone.state_dict()
    expected = {name for name in own if not any(part in name for part in absent)}
    odd = sorted((expected - found.keys()) | (found.keys() - own.keys()))
    odd += sorted(name for name in own.keys() & found.keys() if own[name].shape != found[name].shape)
    if odd:
        raise StorageError(
            f"{path} does not hold the weights of {backbone.name} {backbone.architecture}: "
            f"{len(odd)} tensors differ, the first is {odd[0]!r}; build the network that the file was trained as"
        )
    backbone.load_state_dict({**own, **found})


def _from_portend(name: str) -> str:
    """Translate ``layers_dict.block_br5.downsample.bias`` to ``blocks.4.shortcut.bias``; other names stay."""
    match = re.fullmatch(r"layers_dict\.(conv1|bn1|block|dense)_br(\d+)\.(.+)", name)
    if match is None:
        return name
    kind, index, rest = match[1], int(match[2]) - 1, match[3]
    if kind == "dense":
        return f"branches.{index}.linear.{rest}"
    layer = {"conv1": "conv.", "bn1": "bn."}.get(kind, "")
    return f"blocks.{index}.{layer}{rest.replace('downsample', 'shortcut')}"


def _from_akamaster(name: str, places: Mapping[str, int], last: int) -> str:
    """Translate ``layer2.0.conv1.weight`` to ``blocks.4.conv1.weight`` (for ResNet-20); other names stay.

    ``places`` says which block each residual block of the file is; its classifier is the branch ``last``.
    """
    match = re.fullmatch(r"(layer\d\.\d+)\.(.+)", name)
    if match is not None and match[1] in places:
        return f"blocks.{places[match[1]]}.{match[2]}"
    name = re.sub(r"^(conv|bn)1\.", r"blocks.0.\1.", name)
    return re.sub(r"^linear\.", f"branches.{last}.linear.", name)
