"""How samples exit: by scores of each sample, or by counts at each threshold.

Axes: S samples, N blocks, T thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from portend.errors import MismatchError, choice, law
from portend.values.arrays import Floats, freeze, frozen
from portend.values.plan import CRITERIA, takes_exit

__all__ = ["Exits", "SampleExits", "TabulatedExits"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SampleExits:
    """Every branch's scores and correctness for every profiling sample, viewed by one criterion.

    Attributes:
        scores: by criterion (``plan.CRITERIA``), float32 or float64 [S, N]; low means confident; a sample leaves
            where score < threshold. Profiling gives float32, as do the agents (``models.exits.score``).
        correct: bool [S, N].
        labels: int64 [S], the samples' classes; None: not known, as in files from before they were kept.
        criterion: that of ``score``, ``rates`` and ``leaving``; one of ``scores``.
    """

    scores: Mapping[str, NDArray[np.floating[Any]]]
    correct: NDArray[np.bool_]
    labels: NDArray[np.int64] | None = None
    criterion: str = "entropy"

    def __post_init__(self) -> None:
        freeze(self, correct=(self.correct, np.bool_))
        given = {name: np.asarray(table) for name, table in self.scores.items()}
        kinds = {name: np.float32 if table.dtype == np.float32 else np.float64 for name, table in given.items()}
        scores = {name: frozen(table, kinds[name]) for name, table in given.items()}
        object.__setattr__(self, "scores", scores)
        for name in (*scores, self.criterion):
            choice("a criterion", name, CRITERIA)
        law(
            self.criterion in scores,
            f"exits are viewed by one of the criteria that they have scores of, which are {', '.join(scores)}, "
            f"but got {self.criterion}",
        )
        for name, table in scores.items():
            law(
                table.ndim == 2 and table.shape == self.correct.shape and table.size > 0,
                f"scores and correct are [samples, branches] alike and not empty, but got {table.shape} ({name}) "
                f"and {self.correct.shape}",
            )
        if self.labels is not None:
            freeze(self, labels=(self.labels, np.int64))
            law(
                self.labels.shape == (self.samples,),
                f"labels are one class for each of the {self.samples} samples, but got {self.labels.shape}",
            )

    @property
    def score(self) -> NDArray[np.floating[Any]]:
        """The scores of ``criterion``, [S, N]."""
        return self.scores[self.criterion]

    @property
    def samples(self) -> int:
        return int(self.correct.shape[0])

    @property
    def num_branches(self) -> int:
        return int(self.correct.shape[1])

    def by(self, criterion: str) -> SampleExits:
        """Return the same exits viewed by another criterion; nothing is copied.

        Raises:
            MismatchError: there are no scores of it.
        """
        if criterion not in self.scores:
            raise MismatchError(
                f"these exits have scores of {', '.join(self.scores)}, but {criterion} was asked for; "
                "profile the network again to have all"
            )
        return self if criterion == self.criterion else replace(self, criterion=criterion)

    def part(self, indices: ArrayLike) -> SampleExits:
        """Return the exits of some of the samples, in the order of ``indices``; a sample may be there twice."""
        rows = np.asarray(indices)
        return replace(
            self,
            scores={name: table[rows] for name, table in self.scores.items()},
            correct=self.correct[rows],
            labels=None if self.labels is None else self.labels[rows],
        )

    def rates(self, thresholds: ArrayLike) -> Floats:
        """Exit rates ER_i^T, [T, N] in 0–1: each branch on all samples, no branch before it."""
        theta = np.atleast_1d(np.asarray(thresholds, dtype=np.float64))
        return np.stack([self.leaving(t).mean(axis=0) for t in theta])

    def leaving(self, threshold: float) -> NDArray[np.bool_]:
        """Which samples a branch would let go, bool [S, N]."""
        return takes_exit(self.score, threshold)

    def accuracies(self) -> Floats:
        """Accuracy A_i of each branch on all samples, [N] in 0–1."""
        return np.asarray(self.correct.mean(axis=0))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TabulatedExits:
    """Exit counts at fixed thresholds, for data that comes only as tables.

    Attributes:
        thresholds: float64 [T], increasing; exited: int64 [T, N] counts; correct: int64 [N] counts
            over all samples; samples: S.
    """

    thresholds: Floats
    exited: NDArray[np.int64]
    correct: NDArray[np.int64]
    samples: int

    def __post_init__(self) -> None:
        freeze(
            self,
            thresholds=(self.thresholds, np.float64),
            exited=(self.exited, np.int64),
            correct=(self.correct, np.int64),
        )
        law(self.samples > 0, f"a table counts at least one sample, but got {self.samples}")
        law(
            self.exited.shape == (self.thresholds.size, self.correct.size),
            f"exited is [thresholds, branches] = {(self.thresholds.size, self.correct.size)}, "
            f"but got {self.exited.shape}",
        )
        for name, counts in (("exited", self.exited), ("correct", self.correct)):
            law(
                bool(np.all((counts >= 0) & (counts <= self.samples))),
                f"{name} counts lie within 0–{self.samples}, but got {counts.min()} to {counts.max()}",
            )

    @property
    def num_branches(self) -> int:
        return int(self.correct.size)

    @property
    def criterion(self) -> str:
        """What the thresholds are compared with: tables count by normalized entropy."""
        return "entropy"

    def by(self, criterion: str) -> TabulatedExits:
        """Return the table itself; MismatchError for another criterion than entropy."""
        if criterion != self.criterion:
            raise MismatchError(
                f"an exit table counts by entropy, but {criterion} was asked for; profile per-sample scores"
            )
        return self

    def rates(self, thresholds: ArrayLike) -> Floats:
        """Exit rates ER_i^T, [T, N]; MismatchError for a threshold that is not in the table."""
        theta = np.atleast_1d(np.asarray(thresholds, dtype=np.float64))
        row = np.abs(self.thresholds[None, :] - theta[:, None]).argmin(axis=1)
        missing = theta[~np.isclose(self.thresholds[row], theta, rtol=0, atol=1e-9)]
        if missing.size:
            raise MismatchError(
                f"this exit table has the thresholds {self.thresholds.tolist()}, but {missing.tolist()} was asked "
                f"for; choose from the table (--thresholds {','.join(f'{t:g}' for t in self.thresholds)}), or profile "
                "per-sample scores"
            )
        return np.asarray(self.exited[row] / self.samples, dtype=np.float64)

    def accuracies(self) -> Floats:
        """Accuracy A_i of each branch on all samples, [N] in 0–1."""
        return self.correct / self.samples


Exits = SampleExits | TabulatedExits
