"""Random changes of training samples, each sample its own, a whole batch at once.

Axes: B batch, C channels, H height (of a spectrogram: time), W width (of a spectrogram: frequency).
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from portend.errors import choice

__all__ = ["Augment", "augmented"]

Augment = Literal["none", "crop", "crop+flip", "spectrogram"]


def augmented(samples: Tensor, augment: Augment, rng: np.random.Generator) -> Tensor:
    """Return randomly changed samples [B, C, H, W].

    ``crop``: shifted by up to an eighth of the width both ways, zeros come in; ``crop+flip``: every second one also
    mirrored; ``spectrogram``: shifted by up to an eighth of the time, and up to an eighth of the time and
    of the frequencies replaced by the sample's mean (Park et al. 2019, SpecAugment, without warping).
    """
    choice("augment", augment, get_args(Augment))
    if augment == "none":
        return samples
    return _masked(samples, rng) if augment == "spectrogram" else _shifted(samples, augment == "crop+flip", rng)


def _shifted(images: Tensor, flip: bool, rng: np.random.Generator) -> Tensor:
    count, _, height, width = images.shape
    margin = max(1, width // 8)
    shift = torch.from_numpy(rng.integers(0, 2 * margin + 1, size=(2, count, 1)))
    rows, columns = torch.arange(height) + shift[0], torch.arange(width) + shift[1]
    if flip:
        mirrored = torch.from_numpy(rng.random((count, 1)) < 0.5)
        columns = torch.where(mirrored, columns.flip(1), columns)
    rows, columns = rows.to(images.device), columns.to(images.device)
    padded = functional.pad(images, (margin,) * 4).permute(0, 2, 3, 1)
    each = torch.arange(count, device=images.device)[:, None, None]
    return padded[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _masked(spectrograms: Tensor, rng: np.random.Generator) -> Tensor:
    count, _, times, bands = spectrograms.shape
    most = max(1, times // 8)
    rows = (torch.arange(times) + torch.from_numpy(rng.integers(-most, most + 1, size=(count, 1)))) % times
    each = torch.arange(count, device=spectrograms.device)[:, None]
    shifted = spectrograms.permute(0, 2, 1, 3)[each, rows.to(spectrograms.device)].permute(0, 2, 1, 3)
    hidden = _span(count, times, rng)[:, :, None] | _span(count, bands, rng)[:, None, :]
    mean = spectrograms.mean(dim=(1, 2, 3), keepdim=True)
    return torch.where(hidden[:, None].to(spectrograms.device), mean, shifted)


def _span(count: int, length: int, rng: np.random.Generator) -> Tensor:
    """Return one random span of up to an eighth of the length for each sample, bool [count, length]."""
    size = rng.integers(0, max(1, length // 8) + 1, size=(count, 1))
    first = rng.integers(0, length - size + 1)
    at = np.arange(length)
    return torch.from_numpy((at >= first) & (at < first + size))
