"""How the learning rate runs over the steps of a training run."""

from __future__ import annotations

import math
from typing import Literal, get_args

from portend.errors import choice

__all__ = ["Schedule", "peak_share"]

Schedule = Literal["one-cycle", "cosine", "constant"]

_WARM_UP = 0.3  # share of the steps in which the one-cycle schedule rises
_START, _END = 1 / 25, 1 / 10_000  # first and last learning rate, as shares of the peak


def peak_share(schedule: Schedule, step: int, steps: int) -> float:
    """Return the share of the peak learning rate, in 0–1, at step 0, 1, ... of ``steps``.

    ``one-cycle``: 30 % linear rise from 1/25, then half a cosine to 1/10,000 (Smith and Topin 2017);
    ``cosine``: half a cosine from 1 to 1/10,000 (Loshchilov and Hutter 2017, without restarts).
    """
    choice("schedule", schedule, get_args(Schedule))
    if schedule == "constant":
        return 1.0
    rise = max(1.0, _WARM_UP * steps) if schedule == "one-cycle" else 0.0
    if step < rise:
        return _START + (1 - _START) * step / rise
    done = (step - rise) / max(1.0, steps - 1 - rise)
    return _END + (1 - _END) * (1 + math.cos(math.pi * min(done, 1.0))) / 2
