"""Messages that an agent does not use: counted all, logged in part."""

from __future__ import annotations

import logging
import time
from typing import Final

from portend.service.metrics import Metrics

__all__ = ["Drops"]

_LOG: Final = logging.getLogger("portend.service")
_LOGGED_PER_S: Final = 10


class Drops:
    """Call it with why a message is dropped (a label of the metric) and what is wrong with it."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._since_s = time.monotonic()
        self._logged = 0

    def __call__(self, why: str, error: object) -> None:
        """Count a message that is not used, and log it, but not more than a few a second."""
        self._metrics.dropped.labels(why).inc()
        now = time.monotonic()
        if now - self._since_s > 1:
            self._since_s, self._logged = now, 0
        self._logged += 1
        if self._logged <= _LOGGED_PER_S:
            _LOG.warning("dropped a message (%s): %s", why, error)
