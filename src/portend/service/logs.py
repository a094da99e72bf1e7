"""An agent's log: lines for people, or JSON for machines, on standard error."""

from __future__ import annotations

import json
import logging
import time

__all__ = ["log_to_stderr"]


class _Json(logging.Formatter):
    """One JSON object a line: time (UTC), level, text, and a stack trace if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        values = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            values["trace"] = self.formatException(record.exc_info)
        return json.dumps(values)


def log_to_stderr(*, as_json: bool, verbose: bool) -> None:
    """Write the log of this process to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if as_json else logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("portend.service")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.propagate = False
