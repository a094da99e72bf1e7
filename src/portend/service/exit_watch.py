"""The source's watch over its plans' exits: whether they let go the shares of samples that the profile says."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Final

import numpy as np

from portend.service.metrics import Metrics
from portend.service.release import MOST_PLANS, Release, plan_name
from portend.stats.exit_drift import ExitWatch, watch_exits

__all__ = ["Exits"]

_LOG: Final = logging.getLogger("portend.service")
_WATCHED: Final = 50_000
"""Samples after which a plan is watched anew: what was seen long ago outweighs what changed just now."""


class Exits:
    """Answers are counted as they come and judged when ``look`` is called; by plan, as messages number them."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._watches: dict[int, ExitWatch] = {}
        self._seen: Counter[tuple[int, int]] = Counter()

    def follow(self, release: Release) -> None:
        """Watch the plans of a release from now on, if it says what its exits should do, and no others."""
        self._watches = {
            release.number(index): watch_exits(plan, counts)
            for index, (plan, counts) in enumerate(zip(release.plans, release.exit_counts, strict=False))
        }
        self._metrics.exit_drift.clear()
        self._metrics.drift_evidence.clear()

    def count(self, plan: int, exit_index: int) -> None:
        """A sample left at a partition of a plan."""
        if plan in self._watches:
            self._seen[plan, exit_index] += 1

    def look(self) -> None:
        """Judge what has been counted since the last look."""
        seen, self._seen = self._seen, Counter()
        for plan in {plan for plan, _ in seen}:
            if (watch := self._watches.get(plan)) is None:
                continue
            counts = np.array([seen[plan, step] for step in range(len(watch.plan))])
            before, watch = watch.alarm, watch.seen(counts)
            place = str(plan % MOST_PLANS)
            self._metrics.exit_drift.labels(place).set(watch.alarm)
            self._metrics.drift_evidence.labels(place).set(float(watch.evidence.max()))
            if watch.alarm and not before:
                _LOG.warning("%s: %s", plan_name(plan % MOST_PLANS), watch.describe())
            self._watches[plan] = watch.restarted() if watch.samples >= _WATCHED else watch

    def describe(self) -> list[str]:
        """Return what has drifted, in sentences."""
        alarms = ((plan % MOST_PLANS, watch) for plan, watch in self._watches.items() if watch.alarm)
        return [f"{plan_name(index)}: {watch.describe()}" for index, watch in alarms]
