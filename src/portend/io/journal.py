"""What was measured so far, in a file beside the result to be: a profile or campaign that is interrupted goes on.

The file is text, one JSON value a line: first what is being measured and how, then each measurement as it was
taken. A line that was cut off is forgotten; everything before it counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from portend.errors import StorageError, first_difference

__all__ = ["Journal", "begun_with"]

_FORMAT: Final = "portend-begun-{}"


class Journal:
    """Measured numbers by name, kept in ``path`` (None: in memory only) as they come.

    Args:
        identity: JSON values that say what is measured and how; what another identity measured is not used.
        what: what is to be, as its name: ``profile`` or ``campaign``.

    Call ``open`` before use.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, Any], what: str = "profile") -> None:
        self.path = path
        self._what = what
        self._identity = json.loads(json.dumps(identity))
        self._numbers: dict[str, list[float]] = {}
        self._resumed = False

    def open(self) -> None:
        """Read what was measured before; begin a file where there is none.

        Raises:
            StorageError: the file cannot be used, or holds what was begun for another network or in another way.
        """
        if self.path is None:
            return
        try:
            lines = self.path.read_bytes().split(b"\n") if self.path.exists() else []
            whole, cut_off = lines[:-1], (lines or [b""])[-1]
            entries = [json.loads(line) for line in whole]
            if entries:
                self._check(entries[0])
            for entry in entries[1:]:
                self._numbers.setdefault(str(entry["name"]), []).extend(map(float, entry["numbers"]))
            self._resumed = bool(self._numbers)
            if cut_off:
                os.truncate(self.path, sum(len(line) + 1 for line in whole))
            if not entries:
                self._append({"format": _FORMAT.format(self._what), "version": 1, "identity": self._identity})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise StorageError(
                f"{self.path} is not a begun {self._what} or is damaged; remove it, or begin anew with --restart"
            ) from None
        except OSError as error:
            raise StorageError(f"{self.path} cannot be used ({error}); choose another --out") from None

    def _check(self, head: Any) -> None:
        if head["format"] != _FORMAT.format(self._what) or head["version"] != 1:
            raise ValueError
        told = first_difference({**head["identity"]}, self._identity)
        if told:
            raise StorageError(
                f"{self.path} holds a {self._what} that was begun otherwise ({told}); finish that one, or begin anew "
                "with --restart"
            )

    @property
    def resumed(self) -> bool:
        """Whether something was there when it was opened."""
        return self._resumed

    def recall(self, name: str) -> list[float]:
        """Return the numbers kept under ``name`` so far, none if there are none."""
        return list(self._numbers.get(name, ()))

    def add(self, name: str, numbers: Sequence[float]) -> None:
        """Keep more numbers under ``name``; they are on disk when this returns."""
        values = [float(number) for number in numbers]
        self._numbers.setdefault(name, []).extend(values)
        self._append({"name": name, "numbers": values})

    def _append(self, entry: Mapping[str, Any]) -> None:
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(json.dumps(entry).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(f"{self.path} cannot be written ({error}); the {self._what} cannot go on") from None

    def remove(self) -> None:
        """Forget everything, also on disk: the profile is complete, or begins anew."""
        self._numbers.clear()
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def begun_with(path: Path) -> dict[str, Any]:
    """Return what the begun profile in ``path`` measures and how; empty where there is none that can be read."""
    try:
        with path.open("rb") as file:
            identity = json.loads(file.readline())["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return identity if isinstance(identity, dict) else {}
