"""How confident an exit branch is. Axes: B batch, K classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from portend.errors import InvalidValue

__all__ = ["normalized_entropy"]

_EXP_UNDERFLOW = -750.0  # exp of this is exactly 0 in float64


def normalized_entropy(logits: Tensor) -> Tensor:
    """Return the normalized entropy of each sample, float64 [...] in 0–1, for logits [..., K].

    η = -Σ p log p / log K with p = softmax(logits) and 0·log 0 = 0 (paper, Sec. II-A), in float64 whatever
    the dtype of the logits. Departure: a sample with a NaN or infinite logit scores NaN, so that
    ``plan.takes_exit`` never lets it leave early.

    Raises:
        InvalidValue: fewer than two classes.
    """
    classes = logits.shape[-1] if logits.ndim else 0
    if classes < 2:
        raise InvalidValue(
            f"entropy needs logits of at least two classes on the last axis, but got {tuple(logits.shape)}"
        )
    log_p = torch.log_softmax(logits.double(), dim=-1)
    entropy = -(log_p.exp() * log_p.clamp_min(_EXP_UNDERFLOW)).sum(dim=-1) / math.log(classes)
    finite = logits.isfinite().all(dim=-1)
    return entropy.clamp(0.0, 1.0).masked_fill(~finite, math.nan)
