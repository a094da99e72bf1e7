"""Samples as their own bytes, read when they are asked for: a data set on disk is never whole in memory."""

from __future__ import annotations

import io
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, overload

import numpy as np
from numpy.typing import NDArray

from portend.data.decoding import check_depth, upright
from portend.errors import DataError

if TYPE_CHECKING:
    import pyarrow

__all__ = ["Chosen", "Encodings", "Files", "Joined", "ParquetColumn", "png"]

_LARGEST: Final = 256 << 20  # bytes of a sample; no larger message is sent either
_CACHE: Final = 512 << 20  # bytes of row groups that are kept


class Encodings(Sequence[bytes]):
    """n samples' own bytes; an index reads one, a slice chooses without reading."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> bytes:
        """Return the bytes of a sample, 0 <= index < n; DataError if they cannot be read."""

    def where(self, index: int) -> str:
        """Say where the sample is kept, for messages; empty if its index says it all."""
        return ""

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(index, slice):
            return Chosen(self, range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} samples, but number {index} was asked for")
        return self.read(index % len(self))


class Chosen(Encodings):
    """Some samples of others, in the order of ``indices``."""

    def __init__(self, encoded: Sequence[bytes], indices: Sequence[int] | NDArray[np.int64]) -> None:
        self._encoded, self._indices = encoded, indices

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int) -> bytes:
        return self._encoded[int(self._indices[index])]

    def where(self, index: int) -> str:
        return self._encoded.where(int(self._indices[index])) if isinstance(self._encoded, Encodings) else ""


class Joined(Encodings):
    """The samples of several parts, one part after the other."""

    def __init__(self, parts: Sequence[Encodings]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _part(self, index: int) -> tuple[Encodings, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[number], index - int(self._ends[number]) + len(self._parts[number])

    def read(self, index: int) -> bytes:
        part, local = self._part(index)
        return part.read(local)

    def where(self, index: int) -> str:
        part, local = self._part(index)
        return part.where(local)


class Files(Encodings):
    """One file for each sample."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int) -> bytes:
        path = self._paths[index]
        try:
            with path.open("rb") as file:
                encoded = file.read(_LARGEST + 1)
        except OSError as error:
            raise DataError(f"cannot read {path} ({error}); restore the file, or load the data set again") from error
        if len(encoded) > _LARGEST:
            raise DataError(f"a sample has at most {_LARGEST} bytes, but {path} has more; shorten it")
        return encoded

    def where(self, index: int) -> str:
        return str(self._paths[index])


class ParquetColumn(Encodings):
    """A column of parquet files: bytes, the field ``bytes`` of a struct, or what ``encode`` makes bytes of.

    The row groups last used stay in memory: reading in order is fast whatever the size; random order is where all row
    groups fit (512 MiB).
    """

    def __init__(
        self,
        files: Sequence[Path],
        rows: Sequence[Sequence[int]],
        column: str,
        encode: Callable[[Any], bytes] = bytes,
    ) -> None:
        """Files, the numbers of rows of each one's row groups, and the column (``image.bytes`` for a field)."""
        self._column, self._encode = column, encode
        self._groups = [
            (file, number) for file, counts in zip(files, rows, strict=True) for number in range(len(counts))
        ]
        self._ends = np.cumsum([count for counts in rows for count in counts])
        self._cache: OrderedDict[int, pyarrow.Table] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._ends.size else 0

    def read(self, index: int) -> bytes:
        value = self.value(index)
        if value is None:
            raise DataError(f"{self.where(index)} has no bytes; store the samples in the file, not as paths")
        return self._encode(value)

    def value(self, index: int) -> Any:
        """Return what stands in the column, or in its field; None if nothing does."""
        group = int(np.searchsorted(self._ends, index, side="right"))
        table = self._table(group)
        value = table.column(0)[index - int(self._ends[group]) + len(table)].as_py()
        return value["bytes"] if isinstance(value, dict) else value

    def where(self, index: int) -> str:
        file, number = self._groups[int(np.searchsorted(self._ends, index, side="right"))]
        return f"{file}, row group {number}"

    def _table(self, group: int) -> pyarrow.Table:
        import pyarrow
        from pyarrow import parquet

        if group not in self._cache:
            file, number = self._groups[group]
            try:
                with parquet.ParquetFile(file) as opened:
                    table = opened.read_row_group(number, columns=[self._column], use_threads=False)
            except (OSError, IndexError, pyarrow.ArrowException) as error:
                raise DataError(f"cannot read {file} ({error}); restore the file, or load it again") from error
            self._cache[group] = table
            while len(self._cache) > 1 and sum(kept.nbytes for kept in self._cache.values()) > _CACHE:
                self._cache.popitem(last=False)
        self._cache.move_to_end(group)
        return self._cache[group]


def png(picture: Any) -> bytes:
    """Encode a PIL image or uint8 pixels [H, W], [H, W, 1 or 3] or [1 or 3, H, W] as PNG, without loss.

    Raises:
        DataError: it is neither, or 8 bits per channel would change it.
    """
    from PIL import Image

    if not isinstance(picture, Image.Image):
        pixels = np.asarray(picture)
        if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[2] not in (1, 3):
            pixels = pixels.transpose(1, 2, 0)
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[:, :, 0]
        if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
            raise DataError(f"a picture is uint8 [H, W], [H, W, 3] or [3, H, W], but got {pixels.dtype} {pixels.shape}")
        picture = Image.fromarray(np.ascontiguousarray(pixels))
    buffer = io.BytesIO()
    try:
        check_depth(picture.mode)
        picture = upright(picture, picture)
        if picture.mode not in ("1", "L", "P", "RGB", "RGBA"):
            picture = picture.convert("RGB")
        picture.save(buffer, format="PNG", exif=b"")
    except (OSError, ValueError) as error:  # a file that is read only now, or a mode without a way to RGB
        raise DataError(f"a picture of mode {picture.mode} cannot be taken ({error})") from error
    return buffer.getvalue()
