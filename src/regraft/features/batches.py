"""Batches for training: rows in a seeded order, turned into tensors by a reader that the caller gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Reader = Callable[[NDArray[np.int64], int], tuple[Tensor, ...]]
"""From rows and an epoch number to what the trained part takes, on its device."""


class Batches:
    """An iterable of `(tensors, targets)`; epoch after epoch another order, the same for the same seed.

    Args:
        read: Turns rows into tensors.
        labels: Class of each row.
        size: Images a batch; a last one with a single image is dropped when shuffling, since BatchNorm cannot take it.
        seed: Of the order; None keeps the order of the rows.
    """

    def __init__(
        self, read: Reader, labels: NDArray[np.int64], size: int, seed: int | None
    ) -> None:
        self.read, self.labels, self.size, self.seed = read, labels, size, seed
        self.epoch = 0

    def __len__(self) -> int:
        whole, rest = divmod(len(self.labels), self.size)
        return whole + (rest > (1 if self.seed is not None and whole else 0))

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        rows = np.arange(len(self.labels))
        if self.seed is not None:
            rows = np.random.default_rng([self.seed, self.epoch]).permutation(rows)
        for number in range(len(self)):
            chosen = rows[number * self.size : (number + 1) * self.size]
            tensors = self.read(chosen, self.epoch)
            yield tensors, torch.from_numpy(self.labels[chosen]).to(tensors[0].device)
