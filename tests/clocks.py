"""Times that a machine takes: other work on it only ever adds to them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

EXACTLY = pytest.mark.parametrize("exactly", [False, pytest.param(True, marks=pytest.mark.slow)])
"""A default test bounds times from below; that they are not much more is for the slow tests, on a quiet machine."""


def check_times(taken_s: Sequence[float], due_s: float, more_s: float, *, exactly: bool) -> None:
    """None of the times is less than ``due_s``, and the best, if ``exactly``, not much more."""
    assert min(taken_s) >= due_s
    assert not exactly or min(taken_s) <= due_s + more_s, taken_s
