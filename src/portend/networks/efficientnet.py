"""EfficientNet-B0 to B7 (Tan and Le 2019), torchvision's implementation cut the paper's way.

Eight blocks: the stem, the six stages of inverted residuals up to 192 channels (in B0), and the last stage
together with the 1x1 convolution before the classifier. Each exit branch copies the layers of the final
classifier: global average pooling, dropout, linear.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from portend.errors import InvalidValue
from portend.networks.backbone import Backbone
from portend.networks.pretrained import copy_weights, fetch, read_weights

__all__ = ["INPUT_SIZES", "efficientnet"]

INPUT_SIZES = {  # pixels per side (Tan and Le 2019; keras-team/keras `efficientnet.py`)
    "efficientnet_b0": 224,
    "efficientnet_b1": 240,
    "efficientnet_b2": 260,
    "efficientnet_b3": 300,
    "efficientnet_b4": 380,
    "efficientnet_b5": 456,
    "efficientnet_b6": 528,
    "efficientnet_b7": 600,
}
_BLOCKS = 8
_LEAST_SIZE = 32  # five halvings


def efficientnet(
    name: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: int | None = None,
    seed: int = 0,
    weights: str = "none",
) -> Backbone:
    """Return an EfficientNet for samples [in_channels, input_size, input_size].

    In evaluation mode the last branch answers bit for bit what torchvision's network with the same weights does.

    Args:
        name: ``efficientnet_b0`` to ``efficientnet_b7``; num_classes: at least 2.
        input_size: pixels per side, at least 32; by default the network's own (224 for B0, 600 for B7).
        seed: of the initial weights; the caller's random state is left alone.
        weights: ``none``, ``pretrained`` (torchvision's ImageNet weights, downloaded on first use) or the path of
            a state dict of torchvision's network. The branches before the last are new, and with another
            number of classes the last is too. These weights take RGB normalized with ImageNet's mean and deviation.

    Raises:
        InvalidValue: an argument is out of its range; StorageError: the weights cannot be had or do not fit.
    """
    size = INPUT_SIZES[name] if input_size is None else input_size
    architecture = {"num_classes": num_classes, "in_channels": in_channels, "input_size": size, "seed": seed}
    _check(architecture)
    from torchvision.models import get_model, get_model_weights

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = get_model(name, weights=None, num_classes=num_classes)
        if in_channels != 3:
            network.features[0][0] = _first_convolution(network.features[0][0], in_channels)
        blocks = _blocks(network.features)
        branches = [_branch(block, network.classifier[0].p, num_classes) for block in list(blocks.values())[:-1]]
    if weights != "none":
        path = fetch(get_model_weights(name).DEFAULT.url) if weights == "pretrained" else weights
        copy_weights(network, read_weights(path), path=path, num_classes=num_classes)
    last = nn.Sequential(network.avgpool, nn.Flatten(1), *network.classifier)
    return Backbone(
        name=name,
        blocks=blocks,
        branches=[*branches, last],
        num_classes=num_classes,
        input_shape=(in_channels, size, size),
        architecture=architecture,
        tidy=True,
    )


def _blocks(features: nn.Sequential) -> dict[str, nn.Module]:
    """Group torchvision's nine features: the last stage and the convolution after it are one block."""
    blocks = {"stem": features[0], **{f"stage{stage}": features[stage] for stage in range(1, _BLOCKS - 1)}}
    return {**blocks, "stage7+head": nn.Sequential(*features[_BLOCKS - 1 :])}


def _branch(block: nn.Module, dropout: float, num_classes: int) -> nn.Module:
    """Return the final classifier's layers for the channels that a block gives."""
    channels = [module.num_features for module in block.modules() if isinstance(module, nn.BatchNorm2d)][-1]
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Dropout(dropout), nn.Linear(channels, num_classes))


def _first_convolution(old: nn.Conv2d, in_channels: int) -> nn.Conv2d:
    new = nn.Conv2d(in_channels, old.out_channels, 3, stride=2, padding=1, bias=False)
    nn.init.kaiming_normal_(new.weight, mode="fan_out")
    return new


def _check(architecture: dict[str, Any]) -> None:
    for key, least in (("num_classes", 2), ("in_channels", 1), ("input_size", _LEAST_SIZE), ("seed", 0)):
        value = architecture[key]
        if not isinstance(value, int) or value < least:
            raise InvalidValue(f"{key} is an integer of at least {least}, but got {value!r}")
