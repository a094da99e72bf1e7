"""The batches of a training run, as a loader that Lightning can stop and start again anywhere.

Axes: n samples of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from portend.data.dataset import Dataset
from portend.errors import PortendError
from portend.values.execution import available_cores

if TYPE_CHECKING:
    from portend.training.config import TrainingConfig

__all__ = ["Batches"]

Indices = NDArray[np.int64]
Batch = tuple[Tensor, Tensor]

_LARGEST_IN_MEMORY = 2 << 30  # bytes of decoded samples


class Batches(DataLoader[Any]):
    """Batches (samples [n, ...] of the decoder's type, labels int64 [n]) of some samples of a data set.

    Decoded samples that need at most 2 GiB are kept in memory; others are decoded for each batch, by
    ``config.workers`` processes, one a core at most. The order follows from the seed and the epoch. With several
    processes (rank, count), each gets every count-th sample of each batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        chosen: Indices,
        config: TrainingConfig,
        ranks: tuple[int, int] = (0, 1),
        *,
        shuffle: bool = True,
        largest_in_memory: int = _LARGEST_IN_MEMORY,
    ) -> None:
        self.order = _Order(chosen.size, config.batch_size, config.seed if shuffle else None, ranks)
        self.given = 0
        size = np.dtype(dataset.decoder.dtype).itemsize * math.prod(dataset.decoder.shape)
        in_memory = chosen.size * size <= largest_in_memory
        samples: TorchDataset[Any] = _Decoded(dataset, chosen) if in_memory else _Encoded(dataset, chosen)
        workers = 0 if in_memory else min(config.workers, len(available_cores()))
        super().__init__(samples, batch_size=None, sampler=self.order, num_workers=workers)

    def __len__(self) -> int:
        return self.order.steps

    def __iter__(self) -> Any:
        """Begin an epoch; nothing is read before the first batch is asked for, when the epoch's number is known."""
        self.given = self.order.first
        for batch in super().__iter__():
            if isinstance(batch, PortendError):
                raise batch
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return where in the epoch the reader is."""
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration begin there."""
        self.order.first = state["given"] % self.order.steps


class _Order(Sampler[Indices]):
    """The rows of each batch of an epoch: batches of equal size, in a random order or (seed None) as they come."""

    def __init__(self, count: int, batch_size: int, seed: int | None, ranks: tuple[int, int]) -> None:
        self.count, self.seed, self.ranks = count, seed, ranks
        self.steps = math.ceil(count / batch_size)
        self.epoch, self.first = 0, 0

    def __len__(self) -> int:
        return self.steps

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Indices]:
        first, self.first = self.first, 0
        rows = np.arange(self.count)
        if self.seed is not None:
            rows = np.random.default_rng((self.seed, self.epoch)).permutation(self.count)
        rank, count = self.ranks
        for batch in np.array_split(rows, self.steps)[first:]:
            yield batch[rank::count]


class _Decoded(TorchDataset[Any]):
    """All samples, decoded in memory."""

    def __init__(self, dataset: Dataset, chosen: Indices) -> None:
        self.samples = torch.from_numpy(dataset.tensors(chosen))
        self.labels = torch.from_numpy(dataset.labels[chosen])

    def __getitem__(self, rows: Indices) -> Batch:
        at = torch.from_numpy(rows)
        return self.samples[at], self.labels[at]


class _Encoded(TorchDataset[Any]):
    """Samples decoded when asked for; an error comes as the batch, because workers put a trace into its text."""

    def __init__(self, dataset: Dataset, chosen: Indices) -> None:
        self.dataset, self.chosen = dataset, chosen

    def __getitem__(self, rows: Indices) -> Batch | PortendError:
        indices = self.chosen[rows]
        try:
            return torch.from_numpy(self.dataset.tensors(indices)), torch.from_numpy(self.dataset.labels[indices])
        except PortendError as error:
            return error
