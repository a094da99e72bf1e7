"""VGGish (Hershey et al. 2017, "CNN architectures for large-scale audio classification") cut the paper's way.

Four blocks of 3x3 convolutions with ReLU (64; 128; 256 twice; 512 twice), each ended by a 2x2 max pool that halves
both axes. Samples are log-mel patches [1, frames, bands]; the published network takes 96 frames of 10 ms and
64 bands. Each exit branch averages over time alone, for in a sound it matters at which frequency something is, and
ends in a linear layer; so all exits of the published size have 2,048 features.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn

from portend.errors import InvalidValue
from portend.networks.backbone import Backbone
from portend.networks.pretrained import copy_weights, fetch, read_weights, without_prefix

__all__ = ["vggish"]

_CHANNELS: Final = ((64,), (128,), (256, 256), (512, 512))
_FRAMES, _BANDS, _EMBEDDING = 96, 64, 128
_URL: Final = "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth"
_UNUSED: Final = "pproc."  # the principal components of the published embeddings


def vggish(
    name: str = "vggish",
    *,
    num_classes: int = 10,
    frames: int = _FRAMES,
    bands: int = _BANDS,
    embedding: bool = False,
    batch_norm: bool = False,
    seed: int = 0,
    weights: str = "none",
) -> Backbone:
    """Return VGGish for log-mel patches [1, frames, bands].

    Args:
        num_classes: at least 2; frames, bands: at least 16 each.
        embedding: the last block goes on to the published embedding [128] through linear layers of 4096, 4096 and
            128 units (67.6 million parameters, beside 4.5 million in the convolutions), and the last branch is one
            linear layer on it. Needs 96 frames and 64 bands. Otherwise the last branch is like the others.
        batch_norm: after each convolution, as in the training of the original; the published weights have none.
        seed: of the initial weights; the caller's random state is left alone.
        weights: ``none``, ``pretrained`` (the AudioSet weights that harritaylor/torchvggish converted, downloaded
            on first use) or the path of a state dict in that layout (``features.N.*``, ``embeddings.N.*``).
            All branches are new.

    Raises:
        InvalidValue: an argument is out of its range; StorageError: the weights cannot be had or do not fit.
    """
    architecture = {
        "num_classes": num_classes,
        "frames": frames,
        "bands": bands,
        "embedding": embedding,
        "batch_norm": batch_norm,
        "seed": seed,
    }
    _check(architecture, weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _Network(embedding, batch_norm)
        branches = [_branch(channels[-1] * (bands >> n), num_classes) for n, channels in enumerate(_CHANNELS, start=1)]
    if embedding:
        branches[-1] = nn.Linear(_EMBEDDING, num_classes)
    if weights != "none":
        path = fetch(_URL) if weights == "pretrained" else weights
        unused = _UNUSED if embedding else (_UNUSED, "embeddings.")
        found = {
            key: tensor
            for key, tensor in without_prefix(read_weights(path), network.state_dict()).items()
            if not key.startswith(unused)
        }
        copy_weights(network, found, path=path, num_classes=num_classes)
    return Backbone(
        name=name,
        blocks=network.blocks(),
        branches=branches,
        num_classes=num_classes,
        input_shape=(1, frames, bands),
        architecture=architecture,
        tidy=True,
    )


class _Network(nn.Module):
    """All layers in the order, and under the names, of the published state dict."""

    def __init__(self, embedding: bool, batch_norm: bool) -> None:
        super().__init__()
        self.features = nn.Sequential()
        previous = 1
        for stack in _CHANNELS:
            for channels in stack:
                convolution = nn.Conv2d(previous, channels, 3, padding=1, bias=not batch_norm)
                nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
                if convolution.bias is not None:
                    nn.init.zeros_(convolution.bias)
                self.features.append(convolution)
                if batch_norm:
                    self.features.append(nn.BatchNorm2d(channels))
                self.features.append(nn.ReLU())
                previous = channels
            self.features.append(nn.MaxPool2d(2))
        units = (previous * (_FRAMES // 16) * (_BANDS // 16), 4096, 4096, _EMBEDDING) if embedding else ()
        self.embeddings = nn.Sequential()
        for wide, narrow in pairwise(units):
            self.embeddings.extend([nn.Linear(wide, narrow), nn.ReLU()])

    def blocks(self) -> dict[str, nn.Module]:
        """Return the four stacks, each from after a pool to the next pool, the last with the embedding if any."""
        blocks: dict[str, nn.Module] = {}
        layers: list[nn.Module] = []
        for layer in self.features:
            layers.append(layer)
            if isinstance(layer, nn.MaxPool2d):
                blocks[f"conv{len(blocks) + 1}"] = nn.Sequential(*layers)
                layers = []
        if len(self.embeddings):
            blocks["conv4+embedding"] = nn.Sequential(blocks.pop("conv4"), _ChannelsLast(), self.embeddings)
        return blocks


class _ChannelsLast(nn.Module):
    """Flatten [B, C, H, W] in the order H, W, C, which the published linear layers expect."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)


class _MeanOverTime(nn.Module):
    """Average [B, C, time, frequency] over time: [B, C * frequency]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=2).flatten(1)


def _branch(features: int, num_classes: int) -> nn.Module:
    return nn.Sequential(_MeanOverTime(), nn.Linear(features, num_classes))


def _check(architecture: dict[str, Any], weights: str) -> None:
    for key, least in (("num_classes", 2), ("frames", 16), ("bands", 16), ("seed", 0)):
        value = architecture[key]
        if not isinstance(value, int) or value < least:
            raise InvalidValue(f"{key} is an integer of at least {least}, but got {value!r}")
    for key in ("embedding", "batch_norm"):
        if not isinstance(architecture[key], bool):
            raise InvalidValue(f"{key} is true or false, but got {architecture[key]!r}")
    size = (architecture["frames"], architecture["bands"])
    if architecture["embedding"] and size != (_FRAMES, _BANDS):
        raise InvalidValue(
            f"the embedding takes {_FRAMES} frames and {_BANDS} bands, but got {size[0]} and {size[1]}; "
            "leave embedding out"
        )
    if architecture["batch_norm"] and weights != "none":
        raise InvalidValue("the published weights have no batch norm, but got batch_norm and weights; leave one out")
