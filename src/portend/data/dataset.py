"""Labeled samples, each kept as its own encoded bytes: the first hop may send them as they are.

Axes: n samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from portend.data.decoding import InputDecoder
from portend.data.encodings import Chosen, Encodings
from portend.errors import DataError, InvalidValue
from portend.importing import raised

__all__ = ["Dataset", "Splits", "draw", "limited", "make_splits"]

Indices = NDArray[np.int64]

_MOST_BY_DEFAULT = 5_000  # of a source's own test set, for profiling and for test each


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dataset:
    """Labeled samples in their own encoding.

    Attributes:
        name: what ``load_dataset`` takes to load the same samples again (their decoder is kept with a checkpoint).
        encoded: n complete files (PNG, JPEG, WAV, ...) as bytes, possibly read only when asked for.
        labels: int64 [n], index into class_names.
        decoder: turns the bytes into network inputs.
        own_test: int64 indices of the test set that the source itself defines; None if it defines none.
        groups: int64 [n], such as the speaker's number: splits share no group; None: every sample for itself.
    """

    name: str
    encoded: Sequence[bytes]
    labels: Indices
    class_names: tuple[str, ...]
    decoder: InputDecoder
    own_test: Indices | None = None
    groups: Indices | None = None

    def __post_init__(self) -> None:
        for name in ("labels", "own_test", "groups"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _frozen(getattr(self, name)))
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
        _require(
            self.groups is None or self.groups.shape == (count,),
            f"each sample of {self.name} is of one group, but got {count} samples and "
            f"{0 if self.groups is None else self.groups.size} groups",
        )
        _require(
            self.own_test is None or bool(np.all((self.own_test >= 0) & (self.own_test < count))),
            f"the test set of {self.name} is made of its samples 0–{count - 1}, but it has others",
        )

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def tensors(self, indices: ArrayLike) -> NDArray[Any]:
        """Return decoded samples, ``decoder.dtype`` [n, *decoder.shape]; bit for bit ``decoder.decode`` of each.

        Raises:
            InvalidValue: an index is out of range; DataError: a sample cannot be decoded, the message names it.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        outside = chosen[(chosen < 0) | (chosen >= len(self))]
        if outside.size:
            raise InvalidValue(f"indices of {self.name} lie within 0–{len(self) - 1}, but got {outside[0]}")
        tensors = np.empty((chosen.size, *self.decoder.shape), dtype=self.decoder.dtype)
        for row, index in enumerate(chosen.tolist()):
            try:
                tensors[row] = self.decoder.decode(_read(self.encoded, index))
            except DataError as error:
                place = self.encoded.where(index) if isinstance(self.encoded, Encodings) else ""
                raise DataError(f"sample {index} of {self.name}{place and f' ({place})'}: {error}") from error
        return tensors


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Splits:
    """Disjoint, sorted, non-empty int64 indices of the samples for training, exit profiling and final test.

    Attributes:
        calibration: samples of which neither training nor profiling nor test sees one; None if there are none.
        seed: of the draw; kept with a checkpoint, so that nobody tests on its training samples.
    """

    train: Indices
    profiling: Indices
    test: Indices
    calibration: Indices | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        names = ["train", "profiling", "test"] + ["calibration"] * (self.calibration is not None)
        for name in names:
            object.__setattr__(self, name, _frozen(np.sort(getattr(self, name))))
            if not getattr(self, name).size:
                raise InvalidValue(f"each split needs at least one sample, but {name} has none")
        everything = np.concatenate([getattr(self, name) for name in names])
        twice = everything.size - np.unique(everything).size
        if twice:
            raise InvalidValue(f"splits are disjoint, but {twice} indices occur twice; draw them with `make_splits`")


def draw(indices: Indices, count: int, *, seed: int = 0) -> Indices:
    """Return ``count`` of the indices (all, if there are fewer) in a seeded random order.

    The first samples of a data set are seldom like the rest (the digits come writer by writer).
    """
    return np.asarray(np.random.default_rng(seed).permutation(indices)[:count])


def make_splits(
    dataset: Dataset,
    *,
    seed: int = 0,
    profiling: float | None = None,
    test: float | None = None,
    calibration: float | None = None,
) -> Splits:
    """Draw disjoint splits with the class proportions of the dataset; the same seed draws the same splits.

    Where the dataset has a test set of its own, ``profiling`` and ``test`` are drawn from it, by default half
    of it each but no more than 5,000, and all samples outside it train (paper, Sec. III-A). Elsewhere they are
    drawn from all samples, by default a quarter each, and the rest trains. A ``calibration`` split is taken
    from the samples that would train, after the others, which therefore do not depend on it.

    Where the dataset has groups, each split is made of whole groups: the sizes are met as nearly as groups allow.

    Args:
        profiling, test: an integer counts samples, a float within 0–1 is a share of the samples drawn from.
        calibration: the same, of the samples that would train; None: no such split.

    Raises:
        InvalidValue: a size is not positive, the splits leave nothing to draw from or to train on, or the
            dataset's own test set shares a group with the rest.
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
    if dataset.groups is not None:
        _check_groups(dataset, pool)
    rng = np.random.default_rng(seed)
    chosen = _draw(dataset, pool, counts[0], rng, leave=1 + to_spare)
    tested = _draw(dataset, np.setdiff1d(pool, chosen), counts[1], rng, leave=to_spare)
    drawn = np.concatenate([chosen, tested]) if dataset.own_test is None else pool
    train, held_out = np.setdiff1d(everything, drawn), None
    if calibration is not None:
        count = _count(calibration, train.size, 0)
        if not 0 < count < train.size:
            raise InvalidValue(
                f"calibration needs at least one sample and leaves one of {train.size} to train on, but got {count}"
            )
        held_out = _draw(dataset, train, count, rng, leave=1)
        train = np.setdiff1d(train, held_out)
    return Splits(train=train, profiling=chosen, test=tested, calibration=held_out, seed=seed)


def limited(dataset: Dataset, count: int) -> Dataset:
    """Return ``count`` of the samples, classes and the own test set in proportion; always the same ones.

    Raises:
        InvalidValue: there are not so many samples, or none is asked for.
    """
    if not 1 <= count <= len(dataset):
        raise InvalidValue(f"limit is 1–{len(dataset)} samples of {dataset.name}, but got {count}")
    everything = np.arange(len(dataset), dtype=np.int64)
    tested = np.zeros(len(dataset), dtype=np.int64)
    if dataset.own_test is not None:
        tested[dataset.own_test] = 1
    kept = np.sort(_stratified(2 * dataset.labels + tested, everything, count, np.random.default_rng(0)))
    return replace(
        dataset,
        encoded=Chosen(dataset.encoded, kept),
        labels=dataset.labels[kept],
        own_test=None if dataset.own_test is None else np.flatnonzero(tested[kept]),
        groups=None if dataset.groups is None else dataset.groups[kept],
    )


def _check_groups(dataset: Dataset, pool: Indices) -> None:
    groups, everything = np.asarray(dataset.groups), np.arange(len(dataset))
    if dataset.own_test is not None:
        shared = np.intersect1d(groups[pool], groups[np.setdiff1d(everything, pool)]).size
        if shared:
            raise InvalidValue(
                f"splits of {dataset.name} share no group, but its own test set shares {shared} with the rest; "
                "dissolve it by `own_test=no`"
            )


def _draw(dataset: Dataset, pool: Indices, count: int, rng: np.random.Generator, *, leave: int) -> Indices:
    """Draw ``count`` of ``pool``; whole groups, of which at least ``leave`` stay behind, where there are groups."""
    if dataset.groups is None:
        return _stratified(dataset.labels, pool, count, rng)
    there = np.unique(dataset.groups[pool]).size
    if there <= leave:
        raise InvalidValue(
            f"each split of {dataset.name} is made of whole groups, but {there} are left for {leave + 1} splits; "
            "group by something finer"
        )
    return _whole_groups(dataset.labels[pool], dataset.groups[pool], pool, count, rng, most=there - leave)


def _whole_groups(
    labels: Indices, groups: Indices, pool: Indices, count: int, rng: np.random.Generator, *, most: int
) -> Indices:
    """Draw about ``count`` of ``pool`` in 1 to ``most`` whole groups: large ones first, in random order.

    A group is taken if it brings the numbers of all classes closer to their share of ``count``.
    """
    _, row = np.unique(groups, return_inverse=True)
    sizes = np.zeros((row.max() + 1, labels.max() + 1))
    np.add.at(sizes, (row, labels), 1)
    lacking = sizes.sum(axis=0) * (count / pool.size)
    order = rng.permutation(len(sizes))
    taken: list[int] = []
    for group in order[np.argsort(-sizes[order].sum(axis=1), kind="stable")].tolist():
        left = lacking - sizes[group]
        if len(taken) < most and left @ left < lacking @ lacking:
            taken.append(group)
            lacking = left
    if not taken:
        taken = [int(np.argmin(((lacking - sizes) ** 2).sum(axis=1)))]
    return pool[np.isin(row, taken)]


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


def _read(encoded: Sequence[bytes], index: int) -> bytes:
    try:
        return encoded[index]
    except DataError:
        raise
    except Exception as error:  # a sequence of the user's own
        raise DataError(f"it cannot be read: {raised(error)}") from error


def _frozen(values: Any) -> Indices:
    given = np.asarray(values)
    try:
        with np.errstate(invalid="ignore"):
            array = given.astype(np.int64)
    except (TypeError, ValueError, OverflowError):
        array = np.empty(0, dtype=np.int64)
    _require(np.array_equal(array, given), f"labels, groups and indices are whole numbers, but got {given.dtype}")
    array.setflags(write=False)
    return array


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise DataError(message)
