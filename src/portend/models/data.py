"""Labeled samples, each kept as its own encoded bytes: the first hop may send them as they are.

Axes: n samples, C channels, H height, W width.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from portend.errors import DataError, InvalidValue
from portend.models.decoding import InputDecoder

if TYPE_CHECKING:
    import pyarrow

__all__ = ["Dataset", "Splits", "draw", "load_dataset", "make_splits"]

Indices = NDArray[np.int64]

_MOST_BY_DEFAULT = 5_000  # of a source's own test set, for profiling and for test each


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dataset:
    """Labeled samples in their own encoding.

    Attributes:
        name: where they come from; encoded: n image files as bytes; labels: int64 [n], index into class_names.
        decoder: turns the bytes into network inputs.
        own_test: int64 indices of the test set that the source itself defines; None if it defines none.
    """

    name: str
    encoded: Sequence[bytes]
    labels: Indices
    class_names: tuple[str, ...]
    decoder: InputDecoder
    own_test: Indices | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", _frozen(self.labels))
        if self.own_test is not None:
            object.__setattr__(self, "own_test", _frozen(self.own_test))
        count, classes = len(self.encoded), len(self.class_names)
        _require(count > 0, f"dataset {self.name} has no samples; check its files")
        _require(
            self.labels.shape == (count,),
            f"each sample of {self.name} has one label, but got {count} samples and labels {self.labels.shape}",
        )
        low, high = int(self.labels.min()), int(self.labels.max())
        _require(
            low >= 0 and high < classes,
            f"labels of {self.name} lie within 0–{classes - 1} ({classes} class names), but got {low} to {high}; "
            "give a name for every class",
        )

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def tensors(self, indices: ArrayLike) -> NDArray[np.float32]:
        """Return decoded samples, float32 [len(indices), C, H, W]; bit for bit ``decoder.decode`` of each.

        Raises:
            InvalidValue: an index is out of range; DataError: a sample cannot be decoded, the message names it.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        outside = chosen[(chosen < 0) | (chosen >= len(self))]
        if outside.size:
            raise InvalidValue(f"indices of {self.name} lie within 0–{len(self) - 1}, but got {outside[0]}")
        pixels = np.empty((chosen.size, *self.decoder.shape), dtype=np.uint8)
        for row, index in enumerate(chosen.tolist()):
            try:
                pixels[row] = self.decoder.pixels(self.encoded[index])
            except DataError as error:
                raise DataError(f"sample {index} of {self.name}: {error}") from error
        return self.decoder.normalize(pixels)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Splits:
    """Disjoint, sorted, non-empty int64 indices of the samples for training, exit profiling and final test.

    ``seed``: of the draw; kept with a checkpoint, so that nobody tests on its training samples.
    """

    train: Indices
    profiling: Indices
    test: Indices
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("train", "profiling", "test"):
            object.__setattr__(self, name, _frozen(np.sort(getattr(self, name))))
            if not getattr(self, name).size:
                raise InvalidValue(f"each split needs at least one sample, but {name} has none")
        everything = np.concatenate([self.train, self.profiling, self.test])
        twice = everything.size - np.unique(everything).size
        if twice:
            raise InvalidValue(f"splits are disjoint, but {twice} indices occur twice; draw them with `make_splits`")


def draw(indices: Indices, count: int, *, seed: int = 0) -> Indices:
    """Return ``count`` of the indices (all, if there are fewer) in a seeded random order.

    The first samples of a data set are seldom like the rest (the digits come writer by writer).
    """
    return np.asarray(np.random.default_rng(seed).permutation(indices)[:count])


def make_splits(
    dataset: Dataset, *, seed: int = 0, profiling: float | None = None, test: float | None = None
) -> Splits:
    """Draw disjoint splits with the class proportions of the dataset; the same seed draws the same splits.

    Where the dataset has a test set of its own, ``profiling`` and ``test`` are drawn from it, by default half
    of it each but no more than 5,000, and all samples outside it train (paper, Sec. III-A). Elsewhere they are
    drawn from all samples, by default a quarter each, and the rest trains.

    Args:
        profiling, test: an integer counts samples, a float within 0–1 is a share of the samples drawn from.

    Raises:
        InvalidValue: a size is not positive, or the two leave nothing to draw from or to train on.
    """
    if seed < 0:
        raise InvalidValue(f"a seed is not negative, but got {seed}")
    everything = np.arange(len(dataset), dtype=np.int64)
    pool, to_spare, default = everything, 1, -(-everything.size // 4)
    if dataset.own_test is not None:
        pool, to_spare, default = dataset.own_test, 0, min(dataset.own_test.size // 2, _MOST_BY_DEFAULT)
    counts = [_count(size, pool.size, default) for size in (profiling, test)]
    if min(counts) < 1 or sum(counts) > pool.size - to_spare:
        raise InvalidValue(
            f"profiling and test need at least one sample each and together at most {pool.size - to_spare} "
            f"of {dataset.name}, but got {counts[0]} and {counts[1]}; ask for less"
        )
    rng = np.random.default_rng(seed)
    chosen = _stratified(dataset.labels, pool, counts[0], rng)
    tested = _stratified(dataset.labels, np.setdiff1d(pool, chosen), counts[1], rng)
    drawn = np.concatenate([chosen, tested]) if dataset.own_test is None else pool
    return Splits(train=np.setdiff1d(everything, drawn), profiling=chosen, test=tested, seed=seed)


def _count(size: float | None, total: int, default: int) -> int:
    if size is None:
        return default
    if isinstance(size, int | np.integer):
        return int(size)
    if not 0 < size < 1:
        raise InvalidValue(f"the size of a split is an integer count or a share between 0 and 1, but got {size}")
    return round(size * total)


def _stratified(labels: Indices, pool: Indices, count: int, rng: np.random.Generator) -> Indices:
    """Draw ``count`` of ``pool``, each class in proportion (largest remainders get the odd ones)."""
    classes, sizes = np.unique(labels[pool], return_counts=True)
    exact = sizes * (count / pool.size)
    quota = np.floor(exact).astype(np.int64)
    quota[np.argsort(quota - exact, kind="stable")[: count - quota.sum()]] += 1
    parts = [
        rng.choice(pool[labels[pool] == label], size=take, replace=False)
        for label, take in zip(classes, quota, strict=True)
    ]
    return np.asarray(np.concatenate(parts))


def load_dataset(spec: str) -> Dataset:
    """Load the dataset named by ``KIND[:FOLDER][:size=PIXELS]``.

    * ``digits``: 1,797 scans of handwritten digits (scikit-learn's own, 8x8, gray), resized to 32x32.
    * ``parquet:FOLDER``: ``train.parquet`` and ``test.parquet`` in the Hugging Face image schema, RGB.
    * ``cifar10:FOLDER``: the folder that ``torchvision.datasets.CIFAR10`` keeps, RGB.

    The two RGB kinds are 32x32 and in 0–1, not normalized further; ``dataclasses.replace`` the decoder to change it.

    Raises:
        DataError: an unknown kind, a missing folder, file or column, or labels without a class name.
    """
    kind, _, rest = spec.partition(":")
    folder, size = _size_option(spec, rest)
    if kind not in _LOADERS:
        raise DataError(f"{kind!r} is not a kind of dataset; choose one of {', '.join(_LOADERS)}")
    return _LOADERS[kind](folder, size)


def _size_option(spec: str, rest: str) -> tuple[str, int]:
    folder, _, option = rest.rpartition(":")
    if "=" not in option:
        return rest, 32
    key, _, value = option.partition("=")
    _require(
        key == "size" and value.isdecimal() and int(value) > 0,
        f"the only option of a dataset is size=PIXELS, but got {option!r} in {spec!r}",
    )
    return folder, int(value)


def _load_digits(folder: str, size: int) -> Dataset:
    _require(folder == "", f"the digits come with scikit-learn, but got the folder {folder!r}; write just `digits`")
    from sklearn.datasets import load_digits

    scans = load_digits()
    pixels = np.rint(scans.images * (255 / 16)).astype(np.uint8)
    return Dataset(
        name="digits",
        encoded=tuple(_png(image) for image in pixels),
        labels=scans.target,
        class_names=tuple(str(name) for name in scans.target_names),
        decoder=InputDecoder(channels=1, size=size, mean=(0.305,), std=(0.376,)),
    )


def _load_parquet(folder: str, size: int) -> Dataset:
    path = Path(folder)
    tables = [_read_parquet(path / f"{part}.parquet") for part in ("train", "test")]
    encoded = [bytes_ for table in tables for bytes_ in _image_bytes(table, folder)]
    labels = np.concatenate([table.column("label").to_numpy() for table in tables])
    _require(labels.dtype.kind == "i", f"labels of {folder} are integers without gaps, but got {labels.dtype}")
    return Dataset(
        name=f"parquet:{path.name}",
        encoded=encoded,
        labels=labels,
        class_names=_class_names(tables[0], folder),
        decoder=_rgb(size),
        own_test=np.arange(len(tables[0]), len(labels)),
    )


def _read_parquet(path: Path) -> pyarrow.Table:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {path} ({error}); give a folder with train.parquet and test.parquet") from error
    for column in ("image", "label"):
        _require(
            column in table.column_names,
            f"{path} needs the columns image (struct of bytes, path) and label, but has {table.column_names}",
        )
    return table


def _image_bytes(table: pyarrow.Table, folder: str) -> list[bytes]:
    column = table.column("image")
    fields = [field.name for field in column.type] if str(column.type).startswith("struct") else []
    _require("bytes" in fields, f"column image of {folder} is a struct with the field bytes, but it is {column.type}")
    rows: list[bytes | None] = [row for chunk in column.chunks for row in chunk.field("bytes").to_pylist()]
    missing = sum(row is None for row in rows)
    _require(missing == 0, f"{missing} images of {folder} have no bytes; store the images in the file, not as paths")
    return [row for row in rows if row is not None]


def _class_names(table: pyarrow.Table, folder: str) -> tuple[str, ...]:
    metadata = table.schema.metadata or {}
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder}/train.parquet has no class names; write them as a Hugging Face ClassLabel "
            "(schema metadata, key `huggingface`)"
        ) from error
    return tuple(str(name) for name in names)


def _load_cifar10(folder: str, size: int) -> Dataset:
    from torchvision.datasets import CIFAR10

    try:
        parts = [CIFAR10(folder, train=train, download=False) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"{folder!r} does not hold CIFAR-10 as torchvision keeps it ({error}); "
            f"run torchvision.datasets.CIFAR10({folder!r}, download=True) once"
        ) from error
    labels = np.concatenate([part.targets for part in parts])
    return Dataset(
        name="cifar10",
        encoded=_LazyPng(np.concatenate([part.data for part in parts])),
        labels=labels,
        class_names=tuple(parts[0].classes),
        decoder=_rgb(size),
        own_test=np.arange(len(parts[0].targets), labels.size),
    )


class _LazyPng(Sequence[bytes]):
    """Pixels uint8 [n, H, W, C], encoded as PNG when asked for."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(index, slice):
            return _LazyPng(self._images[index])
        return _png(self._images[index])


_LOADERS: dict[str, Callable[[str, int], Dataset]] = {
    "digits": _load_digits,
    "parquet": _load_parquet,
    "cifar10": _load_cifar10,
}


def _rgb(size: int) -> InputDecoder:
    return InputDecoder(channels=3, size=size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode pixels [H, W] or [H, W, 3] as PNG, without loss."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _frozen(values: Any) -> Indices:
    array = np.array(values, dtype=np.int64)
    array.setflags(write=False)
    return array


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise DataError(message)
