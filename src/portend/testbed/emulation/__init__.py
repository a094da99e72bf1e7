"""Links with a rate and a delay where there are none."""

from __future__ import annotations

from typing import Final

__all__ = ["EMULATIONS"]

EMULATIONS: Final = ("relay", "namespaces", "none")
"""What may stand between tiers that are processes of one machine (``portend.testbed.emulation.base``)."""
