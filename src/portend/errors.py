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

import difflib
import json
from collections.abc import Iterable, Mapping

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
    "choice",
    "first_difference",
    "law",
    "nearest",
]


class PortendError(Exception):
    """Base of every error raised on purpose; the CLI prints it without a stack trace."""


class InvalidValue(PortendError, ValueError):
    """A value breaks a law of its type."""


def law(holds: bool, message: str) -> None:
    """Raise InvalidValue with ``message`` unless the law holds."""
    if not holds:
        raise InvalidValue(message)


def nearest(word: object, words: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the one of the words that a mistyped one was meant to be, if any comes near (case does not count)."""
    known = {each.casefold(): each for each in words}
    near = difflib.get_close_matches(str(word).casefold(), known, n=1, cutoff=cutoff)
    return known[near[0]] if near else None


def choice(what: str, value: object, words: Iterable[str], *, error: type[PortendError] | None = None) -> None:
    """Raise InvalidValue, or another error, unless ``value`` is one of the words; the message names them.

    ``what`` begins the message, such as "an executor".
    """
    known = tuple(words)
    if value not in known:
        near = nearest(value, known)
        hint = f"; did you mean {near!r}?" if near else ""
        raise (error or InvalidValue)(f"{what} is one of {', '.join(known)}, but got {value!r}{hint}")


def first_difference(there: object, here: object, at: str = "") -> str:
    """Return where two JSON values first differ, as ``options.depth: 3, now 5``; empty where nowhere.

    ``at`` is where they stand themselves.
    """
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        pairs = [(f"{at}.{key}" if at else str(key), there.get(key), here.get(key)) for key in {**there, **here}]
        return next(filter(None, (first_difference(old, new, where) for where, old, new in pairs)), "")
    if there == here or (isinstance(there, list | tuple) and isinstance(here, list | tuple) and [*there] == [*here]):
        return ""
    texts = (json.dumps(value, ensure_ascii=False, default=str) for value in (there, here))
    old, new = (text if len(text) <= 120 else f"{text[:117]}..." for text in texts)
    return f"{at}: {old}, now {new}"


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
