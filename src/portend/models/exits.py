"""How confident an exit branch is: scores within 0–1, lower where it is more confident.

Axes: B batch, K classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from portend.errors import InvalidValue
from portend.plan import CRITERIA

__all__ = ["normalized_entropy", "score"]

_EXP_UNDERFLOW = -750.0  # exp of this is exactly 0 in float64


def score(logits: Tensor, criterion: str = "entropy") -> Tensor:
    """Return each sample's score, float64 [...] in 0–1, for logits [..., K]; low means confident.

    With p = softmax(logits), p₁ the largest and p₂ the second largest:

    * ``entropy``: -Σ p log p / log K, with 0·log 0 = 0 (paper, Sec. II-A).
    * ``max_probability``: 1 - p₁, at most 1 - 1/K.
    * ``margin``: 1 - (p₁ - p₂).

    In float64 whatever the dtype of the logits. A sample with a NaN or infinite logit scores NaN, so that
    ``plan.takes_exit`` never lets it leave early.

    Raises:
        InvalidValue: another criterion, or fewer than two classes.
    """
    classes = logits.shape[-1] if logits.ndim else 0
    if classes < 2:
        raise InvalidValue(
            f"a score needs logits of at least two classes on the last axis, but got {tuple(logits.shape)}"
        )
    log_p = torch.log_softmax(logits.double(), dim=-1)
    if criterion == "entropy":
        value = -(log_p.exp() * log_p.clamp_min(_EXP_UNDERFLOW)).sum(dim=-1) / math.log(classes)
    elif criterion == "max_probability":
        value = -torch.expm1(log_p.amax(dim=-1))
    elif criterion == "margin":
        first, second = log_p.topk(2, dim=-1).values.unbind(dim=-1)
        value = second.exp() - torch.expm1(first)
    else:
        raise InvalidValue(f"a criterion is one of {', '.join(CRITERIA)}, but got {criterion!r}")
    return value.clamp(0.0, 1.0).masked_fill(~logits.isfinite().all(dim=-1), math.nan)


def normalized_entropy(logits: Tensor) -> Tensor:
    """Return ``score`` with the paper's criterion, float64 [...] in 0–1, for logits [..., K]."""
    return score(logits, "entropy")
