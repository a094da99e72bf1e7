"""Data sets that are Python objects, the user's own and torchvision's: what an item is, its sample and its label.

Code of the user may raise anything and give anything; what comes out is a ``DataError`` that names the item.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from portend.data.decoding import NumberType, TensorDecoder
from portend.data.encodings import Encodings, png
from portend.errors import DataError
from portend.importing import raised

__all__ = [
    *("LABELS", "SAMPLES", "FileForm", "Form", "Items", "Objects", "PictureForm", "SoundForm", "TensorForm", "form_of"),
    *("named", "numbered", "read_through", "shown"),
]

SAMPLES: Final = (
    *("image", "img", "picture", "photo", "pixel_values", "audio", "sound", "speech"),
    *("input_ids", "tokens", "input", "inputs", "x", "features", "data"),
)
"""Usual names of the sample in an item, or of its column in a file; the first that is there is taken."""
LABELS: Final = ("label", "labels", "fine_label", "target", "targets", "y", "class", "category")
"""Usual names of the label."""

_MOST_KEPT: Final = 2 << 30  # bytes of samples that can be read only one after the other, and so are kept
_MOST_ITEMS: Final = 1_000_000

_TAKEN: Final = (
    "an item is a pair (sample, label), or a mapping, data class or named tuple with one of "
    f"{', '.join(SAMPLES)} and one of {', '.join(LABELS)} (other names: input=NAME, label=NAME)"
)


def named(there: Iterable[str], usual: Sequence[str], asked: str) -> str | None:
    """Return the name that was asked for, or the first of the usual ones (in any case), among those there; or None."""
    names = list(there)
    if asked:
        return asked if asked in names else None
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[name] for name in usual if name in lower), None)


class Items(Sequence[tuple[Any, Any]]):
    """The items of a map-style data set as pairs (sample, label).

    Args:
        part: has ``__len__`` and ``__getitem__``; sample, label: names to take instead of the usual ones.
    """

    def __init__(self, part: Any, sample: str = "", label: str = "") -> None:
        self.part = part
        self._sample, self._label = sample, label
        try:
            self._count = len(part)
        except Exception as error:
            raise DataError(f"the number of samples is not known: {raised(error)}") from error

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        """Return the pair of one item.

        Raises:
            DataError: the user's code raised something, or the item is of no known form.
        """
        try:
            item = self.part[index]
        except DataError:
            raise
        except Exception as error:  # the user's code
            raise DataError(f"item {index} cannot be read: {raised(error)}") from error
        return _pair(item, index, self._sample, self._label)


def _pair(item: Any, index: int, sample: str = "", label: str = "") -> tuple[Any, Any]:
    """Return the sample and the label of an item; DataError if it is of no known form."""
    entries = _entries(item)
    if entries is not None:
        found = [named(entries, usual, asked) for usual, asked in ((SAMPLES, sample), (LABELS, label))]
        if found[0] is not None and found[1] is not None:
            return entries[found[0]], entries[found[1]]
    if isinstance(item, tuple | list) and len(item) == 2 and not (sample or label):
        return item[0], item[1]
    raise DataError(f"item {index} is {shown(item)}; {_TAKEN}")


def _entries(item: Any) -> dict[str, Any] | None:
    if isinstance(item, Mapping):
        return {str(name): value for name, value in item.items()}
    if is_dataclass(item) and not isinstance(item, type):
        return {each.name: getattr(item, each.name) for each in fields(item)}
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        return dict(zip(item._fields, item, strict=True))
    return None


def shown(value: Any) -> str:
    """Return what a value is, in a few words for a message."""
    entries = _entries(value)
    if entries is not None:
        return f"a {type(value).__name__} with {', '.join(entries) or 'nothing in it'}"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return (
        f"{type(value).__name__} {str(value)[:40]!r}" if isinstance(value, str | int | float) else type(value).__name__
    )


# --- samples ------------------------------------------------------------------------------------


class Form(Protocol):
    """How the samples of a data set become bytes of their own."""

    def encode(self, sample: Any) -> bytes:
        """Return the bytes; DataError if the sample is of another form, or would be changed."""


class Objects(Encodings):
    """The samples of items, encoded when asked for."""

    def __init__(self, items: Sequence[tuple[Any, Any]], form: Form) -> None:
        self._items, self._form = items, form

    def __len__(self) -> int:
        return len(self._items)

    def read(self, index: int) -> bytes:
        return self._form.encode(self._items[index][0])


class PictureForm:
    """Pictures (PIL images, uint8 arrays), as PNG without loss."""

    def encode(self, sample: Any) -> bytes:
        return png(sample if hasattr(sample, "getbands") else array_of(sample))


@dataclass(frozen=True, slots=True)
class TensorForm:
    """Tensors, as the little-endian bytes of their numbers in C order; all of one shape and kind."""

    decoder: TensorDecoder

    def encode(self, sample: Any) -> bytes:
        values = array_of(sample)
        kinds = "f" if self.decoder.dtype == "float32" else "iu"
        if values.shape != self.decoder.shape or values.dtype.kind not in kinds:
            raise DataError(
                f"the first sample is {self.decoder.dtype} of shape {self.decoder.shape}, but this one is "
                f"{shown(values)}; give all samples one shape and type"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            stored = values.astype(self.decoder.stored)
        if not np.isfinite(stored).all() or (kinds != "f" and not np.array_equal(stored, values)):
            raise DataError(
                f"a sample has finite values within the range of {self.decoder.dtype}, but this one has others"
            )
        return stored.tobytes()


class FileForm:
    """Bytes that are a complete file already, or a mapping with them under ``bytes``."""

    def encode(self, sample: Any) -> bytes:
        data = sample.get("bytes") if isinstance(sample, Mapping) else sample
        if not isinstance(data, bytes):
            raise DataError(f"the first sample is the bytes of a file, but this one is {shown(sample)}")
        return data


class SoundForm:
    """Mappings of ``array`` (float [n]) and ``sampling_rate``, as WAV with float32 samples."""

    def encode(self, sample: Any) -> bytes:
        try:
            clip, rate = array_of(sample["array"]), operator.index(sample["sampling_rate"])
        except (KeyError, TypeError) as error:
            raise DataError(f"a sound has array and sampling_rate, but this one is {shown(sample)}") from error
        if clip.ndim != 1 or clip.dtype.kind != "f" or not 0 < rate < 1 << 30:
            raise DataError(f"a sound is float [samples] and its rate, but got {shown(clip)} at {rate} per second")
        data = clip.astype("<f4").tobytes()
        form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, rate, 4 * rate, 4, 32)
        return b"RIFF" + struct.pack("<I4s", 12 + len(form) + len(data), b"WAVE") + form + _chunk(data)


def _chunk(data: bytes) -> bytes:
    return b"data" + struct.pack("<I", len(data)) + data


def form_of(sample: Any, asked: str) -> Form:
    """Return the form of a data set's samples by its first one.

    Args:
        asked: ``tensor`` or ``picture`` where it can be both; empty: pictures are what looks like one.

    Raises:
        DataError: it is nothing that a network can take.
    """
    if isinstance(sample, Mapping) and "array" in sample:
        return SoundForm()
    if isinstance(sample, bytes) or (isinstance(sample, Mapping) and "bytes" in sample):
        return FileForm()
    if hasattr(sample, "mode") and hasattr(sample, "getbands") and asked != "tensor":
        return PictureForm()
    if isinstance(sample, str):
        raise DataError("a sample is text; networks take numbers: give the numbers of its tokens, all of one length")
    values = array_of(sample)
    if asked == "picture" or (values.dtype == np.uint8 and _like_a_picture(values.shape) and not asked):
        return PictureForm()
    if values.dtype.kind not in "iuf" or not values.ndim:
        raise DataError(
            f"a sample is a picture (PIL, or uint8 [H, W], [H, W, 3], [3, H, W]), a tensor of numbers, the bytes of a "
            f"file, or a sound (array, sampling_rate), but got {shown(sample)}"
        )
    dtype: NumberType = "float32" if values.dtype.kind == "f" else "int64"
    return TensorForm(TensorDecoder(shape=values.shape, dtype=dtype))


def array_of(sample: Any) -> NDArray[Any]:
    """Return a sample's numbers as an array; DataError if they are none."""
    try:
        if hasattr(
            sample, "detach"
        ):  # torch's, which may ask for gradients, lie elsewhere, or be of a type unknown here
            sample = sample.detach().cpu()
            sample = sample.float() if "bfloat16" in str(sample.dtype) else sample
        values = np.asarray(sample)
    except Exception as error:
        raise DataError(f"a sample's numbers cannot be read: {raised(error)}") from error
    if values.dtype.kind in "OUSV":
        raise DataError(f"a sample is made of numbers, but got {shown(sample)}")
    return values


def _like_a_picture(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 or (len(shape) == 3 and (shape[0] in (1, 3) or shape[2] in (1, 3)))


def read_through(
    stream: Iterable[Any], sample: str, label: str, make_form: Callable[[Any], Form]
) -> list[tuple[bytes, Any]]:
    """Read a data set that can only be gone through, once; its samples are kept as their bytes.

    Args:
        sample, label: names to take instead of the usual ones; make_form: the form, by the first sample.

    Raises:
        DataError: the user's code raised something, an item is of no known form, or there are too many.
    """
    form: Form | None = None
    kept: list[tuple[bytes, Any]] = []
    size = 0
    try:
        for item in stream:
            what, number = _pair(item, len(kept), sample, label)
            form = form or make_form(what)
            encoded = form.encode(what)
            size += len(encoded)
            kept.append((encoded, number))
            if size > _MOST_KEPT or len(kept) > _MOST_ITEMS:
                break
    except Exception as error:
        why = error if isinstance(error, DataError) else raised(error)
        raise DataError(f"item {len(kept)} cannot be read: {why}") from error
    if size > _MOST_KEPT or len(kept) > _MOST_ITEMS:
        raise DataError(
            f"samples that can only be read one after the other are kept in memory, at most {_MOST_ITEMS:,} in "
            f"{_MOST_KEPT >> 30} GiB, but there are more; give a data set with __len__ and __getitem__"
        )
    return kept


# --- labels -------------------------------------------------------------------------------------


def numbered(values: Iterable[Any], names: Sequence[str] = ()) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return labels as numbers of classes, int64 [n], and the names of the classes.

    Whole numbers stay what they are, and so do the names. Texts are names of classes: they are numbered in the order of
    ``names``, or sorted where there are none.

    Raises:
        DataError: a label is neither, or some are numbers and some are texts; the message names the sample.
    """
    found = [_label(value, index) for index, value in enumerate(values)]
    texts = [value for value in found if isinstance(value, str)]
    if not texts:
        return np.asarray(found, dtype=np.int64), tuple(names)
    if len(texts) < len(found):
        raise DataError(f"labels are all whole numbers or all names, but got {texts[0][:40]!r} and numbers")
    known = tuple(names) or tuple(sorted(set(texts)))
    number = {name: place for place, name in enumerate(known)}
    strange = next((text for text in texts if text not in number), None)
    if strange is not None:
        raise DataError(f"{strange[:40]!r} is not one of the class names {', '.join(known[:8])}")
    return np.asarray([number[text] for text in texts], dtype=np.int64), known


def _label(value: Any, index: int) -> int | str:
    if isinstance(value, str):
        return value
    try:
        single = value.item() if hasattr(value, "item") else value  # a number in an array of one
        if isinstance(single, str):
            return single
        number = int(single) if isinstance(single, float) and single.is_integer() else operator.index(single)
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None or not -(1 << 63) <= number < 1 << 63:
        raise DataError(f"a label is a whole number or the name of a class, but sample {index} has {shown(value)}")
    return number
