"""Which few layers to concatenate: one after the other, each time the one that helps most.

Layers are judged on a fifth of the training images, never on validation images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_MOST = 4  # layers
_JUDGES = 5  # one training image in five judges
_FEWEST = 2  # images to fit to
_RIDGES = (0.01, 0.1, 1.0)


def select_greedily(layers: Sequence[Tensor], labels: Tensor, classes: int) -> list[int]:
    """Return the numbers of up to four layers, in the order in which they were chosen.

    It ends when no further one helps by more than one standard error of the difference on the
    same images. With too few training images it is the last layer alone.

    Args:
        layers: Features of each layer, `(n, d)` each.
        labels: Class numbers `(n,)`.
        classes: Number of classes.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    judging = shuffled % _JUDGES == 0
    if int((~judging).sum()) < _FEWEST:
        return [len(layers) - 1]
    regression = _Ridge.fit(layers, labels, judging, classes)
    number, ridge, correct = _best_single(regression, len(layers))
    selected = [number]
    while len(selected) < min(_MOST, len(layers)):
        number, tried = _best_addition(regression, selected, len(layers), ridge)
        if not _is_better(tried, correct):
            break
        selected.append(number)
        correct = tried
    return selected


@dataclass(frozen=True)
class _Ridge:
    """Ridge regression from any subset of layers to one-hot labels.

    All subsets share one Gram matrix, so each costs one small solve.

    Args:
        gram: `fᵀf / n` of the standardised features of all layers, `(d, d)`.
        cross: `fᵀt / n` with the centred targets, `(d, classes)`.
        shares: Share of each class, `(classes,)`.
        judges: Features of the images that judge, `(m, d)`.
        labels: Their class numbers, `(m,)`.
        columns: Those of each layer.
    """

    gram: Tensor
    cross: Tensor
    shares: Tensor
    judges: Tensor
    labels: Tensor
    columns: list[Tensor]

    @classmethod
    def fit(cls, layers: Sequence[Tensor], labels: Tensor, judging: Tensor, classes: int) -> _Ridge:
        """Return the regression fitted to the images that do not judge."""
        x = torch.cat(list(layers), dim=1)
        mean = x[~judging].mean(dim=0)
        std = x[~judging].std(dim=0).clamp(min=1e-6)
        x = (x - mean) / std
        fitted = x[~judging]
        n = len(fitted)
        targets = functional.one_hot(labels[~judging], classes).float()
        shares = targets.mean(dim=0)
        return cls(
            gram=fitted.T @ fitted / n,
            cross=fitted.T @ (targets - shares) / n,
            shares=shares,
            judges=x[judging],
            labels=labels[judging],
            columns=_columns(layers),
        )

    def correct(self, layers: Sequence[int], ridge: float) -> Tensor:
        """Return which of the judging images the layers get right, `(m,)`."""
        columns = torch.cat([self.columns[number] for number in layers])
        gram = self.gram[columns][:, columns]
        factor = torch.linalg.cholesky(gram + ridge * torch.eye(len(columns)))
        weight = torch.cholesky_solve(self.cross[columns], factor)
        logits = self.judges[:, columns] @ weight + self.shares
        return logits.argmax(dim=1) == self.labels


def _best_single(regression: _Ridge, layers: int) -> tuple[int, float, Tensor]:
    """Return the best layer, the best ridge for it, and which images they get right."""
    best_count = -1
    for number in range(layers):
        for ridge in _RIDGES:
            correct = regression.correct([number], ridge)
            count = int(correct.sum())
            if count > best_count:
                best_count = count
                best = (number, ridge, correct)
    return best


def _best_addition(
    regression: _Ridge, selected: list[int], layers: int, ridge: float
) -> tuple[int, Tensor]:
    """Return the layer that helps most beside those selected, and which images are right."""
    best_count = -1
    for number in range(layers):
        if number in selected:
            continue
        correct = regression.correct([*selected, number], ridge)
        count = int(correct.sum())
        if count > best_count:
            best_count = count
            best = (number, correct)
    return best


def _columns(layers: Sequence[Tensor]) -> list[Tensor]:
    """Return the columns of each layer in their concatenated features."""
    columns = []
    start = 0
    for layer in layers:
        end = start + layer.shape[1]
        columns.append(torch.arange(start, end))
        start = end
    return columns


def _is_better(correct: Tensor, before: Tensor) -> bool:
    """Whether more images are right by more than one standard error of the difference."""
    won = int((correct & ~before).sum())
    lost = int((before & ~correct).sum())
    standard_error = math.sqrt(won + lost)
    return won - lost > standard_error
