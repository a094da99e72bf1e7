"""Where samples of a running service come from, and the journal that lets a driver go on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from portend.data.dataset import Dataset
from portend.errors import DataError, StorageError
from portend.service.http import answer_json
from portend.service.intake import Answer

__all__ = ["Journal", "from_dataset", "from_folder"]

_ENDINGS: Final = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".wav", ".flac", ".ogg", ".bin"))
_POLL_S: Final = 0.5
_LARGEST: Final = 64 << 20
"""Bytes of a file that are read at most; what the source takes is less (``Limits.sample_bytes``), and it says so."""


class Journal:
    """A file with one line of JSON for each answer, written as it comes; a context manager.

    Attributes:
        answered: ids of the samples that have their line. failed: how many of those were reported failed.

    Raises:
        StorageError: the file cannot be read or written.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self.answered: set[str] = set()
        self.failed = 0
        self.names: dict[str, str] = {}
        """File, or number in the data set, of the samples that were given out, by id."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+b")
            self._file.seek(0)
            whole = True
            for line in self._file:
                whole = line.endswith(b"\n")
                self._note(line)
            if not whole:  # a line that was cut off when the driver was killed
                self._file.write(b"\n")
        except OSError as error:
            raise StorageError(f"cannot use the journal {path} ({error}); choose another one") from None

    def _note(self, line: bytes) -> None:
        try:
            values = json.loads(line)
            self.answered.add(values["id"])
            self.failed += "failed" in values
        except (ValueError, LookupError, TypeError):
            return

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, answer: Answer) -> dict[str, Any]:
        """Add an answer, at once, and return its line; power loss may take the last ones."""
        line = answer_json(answer)
        if name := self.names.pop(answer.id, ""):
            line["sample"] = name
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        self.answered.add(answer.id)
        self.failed += bool(answer.failed)
        return line


def from_dataset(
    dataset: Dataset, indices: Collection[int], name: str, journal: Journal
) -> Iterator[tuple[str, bytes]]:
    """Yield (id, bytes) of a data set's samples that the journal has no answer for; ``name`` says which data it is."""
    prefix = hashlib.sha256(name.encode()).hexdigest()[:12]
    for index in indices:
        sample = f"{prefix}:{index}"
        if sample not in journal.answered:
            journal.names[sample] = str(index)
            yield sample, dataset.encoded[int(index)]


def from_folder(
    folder: str | Path, journal: Journal, *, watch: bool = False, stop: Callable[[], bool] = lambda: False
) -> Iterator[tuple[str, bytes] | Answer | None]:
    """Yield (id, bytes) of the pictures and sounds in a folder and those below it, but not those with an answer.

    A file that cannot be given is reported failed: its answer is yielded instead, and the others go on. A file that is
    written anew is a new sample. With ``watch`` new files are looked for twice a second until ``stop`` says so, None
    stands for a look without a new one, and a file is taken once it has not changed between two looks.

    Raises:
        DataError: there is no such folder.
    """
    place = Path(folder)
    if not place.is_dir():
        raise DataError(f"there is no folder {folder}")
    given: set[str] = set()
    before: dict[Path, str] = {}
    looked = 0.0
    while not stop():
        if watch and time.monotonic() - looked < _POLL_S:
            yield None
            continue
        looked, now = time.monotonic(), {}
        for path in _files(place):
            sample = _id(place, path)
            if sample is None:  # it was taken away just now
                continue
            now[path] = sample
            if sample in given or sample in journal.answered or (watch and before.get(path) != sample):
                continue
            given.add(sample)
            journal.names[sample] = path.relative_to(place).as_posix()
            yield _read(sample, path)
            if stop():
                return
        if not watch:
            return
        before = now
        yield None


def _files(place: Path) -> Iterator[Path]:
    """What has a name like a picture or a sound, in order; folders that cannot be listed have none."""
    for folder, folders, names in os.walk(place):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(names) if Path(name).suffix.lower() in _ENDINGS)


def _id(place: Path, path: Path) -> str | None:
    """What names this file as it is now; None if there is none."""
    try:
        status = path.stat() if path.exists() else path.lstat()  # of a link that leads nowhere
    except OSError:
        return None
    text = os.fsencode(f"{path.relative_to(place).as_posix()}|{status.st_size}|{status.st_mtime_ns}")
    return hashlib.sha256(text).hexdigest()[:32]


def _read(sample: str, path: Path) -> tuple[str, bytes] | Answer:
    """The bytes of a file; if there are none to give, its answer that says why."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError("it is no file")  # a pipe would keep the others waiting
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
        if not 0 < len(data) <= _LARGEST:
            raise OSError(f"a sample has 1–{_LARGEST} bytes, but this file has {'more' if data else 'none'}")
    except OSError as error:
        return Answer(id=sample, failed="sample", reason=f"{path.name} cannot be given: {error.strerror or error}")
    return sample, data
