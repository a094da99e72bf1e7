"""How confident an exit branch is: scores within 0–1, lower where it is more confident.

A score is computed in float64 and is then a float32 number, in profiles and in agents alike. So tables of scores
take half the room, and both sides compare the same number with the threshold: rounding cannot come between them.

Axes: B batch, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from portend.errors import InvalidValue, choice
from portend.values.plan import CRITERIA

__all__ = ["normalized_entropy", "score", "scores"]

_EXP_UNDERFLOW = -750.0  # exp of this is exactly 0 in float64


def score(logits: Tensor, criterion: str = "entropy") -> Tensor:
    """Return each sample's score, float32 [...] in 0–1, for logits [..., K]; low means confident.

    With p = softmax(logits), p₁ the largest and p₂ the second largest:

    * ``entropy``: -Σ p log p / log K, with 0·log 0 = 0 (paper, Sec. II-A).
    * ``max_probability``: 1 - p₁, at most 1 - 1/K.
    * ``margin``: 1 - (p₁ - p₂).

    Computed in float64 whatever the dtype of the logits. A sample with a NaN or infinite logit scores NaN, so that
    ``plan.takes_exit`` never lets it leave early.

    Raises:
        InvalidValue: another criterion, or fewer than two classes.
    """
    return scores(logits, (criterion,))[criterion]


def scores(logits: Tensor, criteria: Iterable[str] = tuple(CRITERIA)) -> dict[str, Tensor]:
    """Return the ``score`` by each of the criteria, float32 [...] in 0–1, for logits [..., K]; all share one soft-max.

    Raises:
        InvalidValue: another criterion, or fewer than two classes.
    """
    classes = logits.shape[-1] if logits.ndim else 0
    if classes < 2:
        raise InvalidValue(
            f"a score needs logits of at least two classes on the last axis, but got {tuple(logits.shape)}"
        )
    log_p = torch.log_softmax(logits.double(), dim=-1)
    wrong = ~logits.isfinite().all(dim=-1)
    values = {}
    for criterion in criteria:
        choice("a criterion", criterion, CRITERIA)
        if criterion == "entropy":
            value = -(log_p.exp() * log_p.clamp_min(_EXP_UNDERFLOW)).sum(dim=-1) / math.log(classes)
        elif criterion == "max_probability":
            value = -torch.expm1(log_p.amax(dim=-1))
        else:
            first, second = log_p.topk(2, dim=-1).values.unbind(dim=-1)
            value = second.exp() - torch.expm1(first)
        values[criterion] = value.clamp(0.0, 1.0).masked_fill(wrong, math.nan).float()
    return values


def normalized_entropy(logits: Tensor) -> Tensor:
    """Return ``score`` with the paper's criterion, float32 [...] in 0–1, for logits [..., K]."""
    return score(logits, "entropy")
