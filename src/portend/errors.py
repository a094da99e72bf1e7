"""Every error that Portend raises on purpose.

A message states the law that was broken, the values that broke it, and the remedy::

    PortendError
    ├── InvalidValue      a value breaks a law of its type (also a ValueError)
    ├── ConfigError       a YAML file or a command line is wrong; names the place
    ├── MismatchError     two valid values do not fit together (a profile and a topology, say)
    ├── StorageError      a file is missing, corrupt, or from another version
    ├── DataError         samples or labels cannot be used
    ├── TrainingError     training cannot go on
    ├── SearchError       a problem cannot be searched as it was put
    ├── SplitError        a network cannot be traced, or not be cut where it was asked
    └── DeploymentError   an agent, a port or a link of the running system failed
        └── MessageError  a message from the network is not one of ours
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "DataError",
    "DeploymentError",
    "ExportError",
    "InvalidValue",
    "MessageError",
    "MismatchError",
    "PortendError",
    "SearchError",
    "SplitError",
    "StorageError",
    "TrainingError",
    "law",
]


class PortendError(Exception):
    """Base of every error raised on purpose; the CLI prints it without a stack trace."""


class InvalidValue(PortendError, ValueError):
    """A value breaks a law of its type."""


def law(holds: bool, message: str) -> None:
    """Raise InvalidValue with ``message`` unless the law holds."""
    if not holds:
        raise InvalidValue(message)


class ConfigError(PortendError):
    """A configuration file or a command line is wrong; the message names the place."""


class MismatchError(PortendError):
    """Two values are each valid but do not fit together."""


class StorageError(PortendError):
    """A stored file is missing, corrupt, or written by another version."""


class DataError(PortendError):
    """Samples or labels cannot be used."""


class TrainingError(PortendError):
    """Training cannot go on; the message names the last good checkpoint."""


class SearchError(PortendError):
    """A planning problem cannot be searched as it was put."""


class SplitError(PortendError):
    """A network cannot be traced, or not be cut where it was asked."""


class ExportError(PortendError):
    """A network cannot be written for another executor, or would compute something else there."""


class DeploymentError(PortendError):
    """An agent, a port or a link of the running system failed."""


class MessageError(DeploymentError):
    """A message from the network is malformed, oversized or of another version."""
