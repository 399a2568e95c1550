"""Images whose label is probably wrong: a probe that never saw them says something else, and is sure of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from regraft.system.progress import SILENT, ProgressReporter
from regraft.training.linear import fit_linear_probe

FOLDS = 5
_L2 = (1.0, 0.3, 0.1, 0.03)


@dataclass(frozen=True)
class SuspectLabels:
    """Every image ranked by how little its label is believed, and how many of them stand out.

    Args:
        ranking: All rows, the most suspicious first.
        count: How many images stand out: another class is at least as sure of them as it is of its own images on average. About as many at the top
            of the ranking are worth a look.
        said: The class that the probe says, for each image.
        chances: Out-of-sample probabilities `(n, classes)`.
    """

    ranking: NDArray[np.int64]
    count: int
    said: NDArray[np.int64]
    chances: NDArray[np.float32]


def find_suspect_labels(
    features: NDArray[np.floating],
    labels: NDArray[np.int64],
    classes: int,
    seed: int = 0,
    watcher: ProgressReporter = SILENT,
) -> SuspectLabels:
    """Return which labels are probably wrong.

    Each fifth of the images is judged by a linear probe solved on the other four. An image stands out where some other class is at least as sure of
    it as of the images that carry that class's label on average (confident learning, Northcutt 2021); ranked by the label's probability as a share of
    what images with that label have on average, so that a class which is hard on the whole does not fill the top.

    Args:
        features: Of the end of a network, `(n, d)`.
        labels: `(n,)`.
        classes: Number of classes.
        seed: Of the folds.
        watcher: Hears how far it is.
    """
    x, y = torch.from_numpy(np.asarray(features, dtype=np.float32)), torch.from_numpy(labels)
    folds = _folds(labels, seed)
    chances = np.zeros((len(labels), classes), dtype=np.float32)
    path: tuple[float, ...] = _L2
    for number in range(FOLDS):
        away = torch.from_numpy(folds == number)
        solved = fit_linear_probe(
            (x[~away], y[~away]), (x[away], y[away]), classes, path, "val_loss"
        )
        path = (solved.l2,)  # chosen on the first fold
        with torch.inference_mode():
            chances[away.numpy()] = solved.layer(x[away]).softmax(dim=1).numpy()
        watcher.step("doubt", number + 1, FOLDS)
    return _ranked(chances, labels)


def _folds(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return the fold of each image, every class spread evenly."""
    rng = np.random.default_rng(seed)
    folds = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        folds[rows] = (np.arange(len(rows)) + rng.integers(FOLDS)) % FOLDS
    return folds


def _ranked(chances: NDArray[np.float32], labels: NDArray[np.int64]) -> SuspectLabels:
    rows = np.arange(len(labels))
    own = chances[rows, labels]
    usual = np.array(
        [
            chances[labels == label, label].mean() if (labels == label).any() else np.inf
            for label in range(chances.shape[1])
        ]
    )
    stands_out = ((chances >= usual) & (chances > own[:, None])).any(axis=1)
    return SuspectLabels(
        np.argsort(own / usual[labels], kind="stable"),
        int(stands_out.sum()),
        chances.argmax(axis=1),
        chances,
    )
