"""Images whose label is probably wrong: a linear probe that never saw them predicts another one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from regraft.system.progress import SILENT, ProgressReporter
from regraft.training.linear import CrossEntropy, LabelledFeatures, fit_logistic

FOLDS = 5
_L2 = (1.0, 0.3, 0.1, 0.03)


@dataclass(frozen=True)
class SuspectLabels:
    """Every image ranked by how doubtful its label is.

    Args:
        ranking: All rows, the most suspicious first.
        count: How many labels are doubtful: about as many at the top are worth a look.
        predicted: The class that the probe predicts, `(n,)`.
        probabilities: Out-of-sample, `(n, classes)`.
    """

    ranking: NDArray[np.int64]
    count: int
    predicted: NDArray[np.int64]
    probabilities: NDArray[np.float32]


def find_suspect_labels(
    features: NDArray[np.floating],
    labels: NDArray[np.int64],
    classes: int,
    seed: int = 0,
    reporter: ProgressReporter = SILENT,
) -> SuspectLabels:
    """Return which labels are probably wrong, by confident learning (Northcutt 2021).

    Each fifth of the images is judged by a linear probe fitted to the other four. A label is
    doubtful where another class is at least as probable as that class is, on average, on the
    images that carry its label. The ranking is by the probability of an image's label, divided by
    its average on the images with that label, so that one difficult class does not fill the top.

    Args:
        features: Of the end of a network, `(n, d)`.
        labels: Class numbers `(n,)`.
        classes: Number of classes.
        seed: Of the folds.
        reporter: Is told the progress.
    """
    data = LabelledFeatures(
        torch.from_numpy(np.asarray(features, dtype=np.float32)), torch.from_numpy(labels)
    )
    folds = _assign_folds(labels, seed)
    probabilities = np.zeros((len(labels), classes), dtype=np.float32)
    l2_path: tuple[float, ...] = _L2
    for fold in range(FOLDS):
        held_out = torch.from_numpy(folds == fold)
        train = LabelledFeatures(data.features[~held_out], data.labels[~held_out])
        val = LabelledFeatures(data.features[held_out], data.labels[held_out])
        probe = fit_logistic(train, val, CrossEntropy(classes), l2_path, "val_loss")
        l2_path = (probe.l2,)  # chosen on the first fold
        with torch.inference_mode():
            predictions = probe.layer(val.features).softmax(dim=1)
        probabilities[held_out.numpy()] = predictions.numpy()
        reporter.progress("doubt", fold + 1, FOLDS)
    return _rank(probabilities, labels)


def _assign_folds(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return the fold of each image, every class spread evenly."""
    rng = np.random.default_rng(seed)
    folds = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        first_fold = rng.integers(FOLDS)
        folds[rows] = (np.arange(len(rows)) + first_fold) % FOLDS
    return folds


def _rank(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> SuspectLabels:
    own = probabilities[np.arange(len(labels)), labels]
    typical = _typical(probabilities, labels)
    confident = probabilities >= typical
    likelier = probabilities > own[:, None]
    doubtful = (confident & likelier).any(axis=1)
    return SuspectLabels(
        ranking=np.argsort(own / typical[labels], kind="stable"),
        count=int(doubtful.sum()),
        predicted=probabilities.argmax(axis=1),
        probabilities=probabilities,
    )


def _typical(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.floating]:
    """Return each class's mean probability on the images that carry its label, `(classes,)`.

    Infinite for a class without images.
    """
    means = []
    for label in range(probabilities.shape[1]):
        of_label = labels == label
        means.append(probabilities[of_label, label].mean() if of_label.any() else np.inf)
    return np.array(means)
