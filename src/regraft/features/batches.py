"""Batches for training: rows in a seeded order, turned into tensors by a reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Reader = Callable[[NDArray[np.int64], int], tuple[Tensor, ...]]
"""From rows and an epoch number to what the trained part takes, on its device."""


class Batches:
    """An iterable of `(tensors, targets)`; each epoch has an order of its own.

    Args:
        read: Turns rows into tensors.
        labels: Class of each row.
        size: Images a batch. A last batch of a single image is dropped when shuffling, since
            BatchNorm cannot take it.
        seed: Of the order; None keeps the order of the rows.
    """

    def __init__(
        self, read: Reader, labels: NDArray[np.int64], size: int, seed: int | None
    ) -> None:
        self.read = read
        self.labels = labels
        self.size = size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        whole, rest = divmod(len(self.labels), self.size)
        drops_single = self.seed is not None and whole > 0
        fewest = 2 if drops_single else 1
        return whole + 1 if rest >= fewest else whole

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        order = self._order()
        for number in range(len(self)):
            start = number * self.size
            rows = order[start : start + self.size]
            tensors = self.read(rows, self.epoch)
            targets = torch.from_numpy(self.labels[rows])
            yield tensors, targets.to(tensors[0].device)

    def _order(self) -> NDArray[np.int64]:
        rows = np.arange(len(self.labels))
        if self.seed is None:
            return rows
        rng = np.random.default_rng([self.seed, self.epoch])
        return rng.permutation(rows)
