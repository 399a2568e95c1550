"""Training-free scores: what features promise for a set of labels before anything is trained on them.

Refuses networks: arrays in, one number out; all of them say "larger is better".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 50  # of LogME's fixed point, at most; it settles within ten
_SETTLED = 1e-4

Floats = NDArray[np.floating[Any]]


def logme_score(features: Floats, labels: NDArray[np.int64]) -> float:
    """Return the logarithm of the maximum evidence of a Bayesian linear model from features to one-hot labels, per image, averaged over the classes.

    LogME (You, Liu, Wang and Long, ICML 2021), by the fixed point of MacKay on the eigenvalues of `FᵀF`.

    Args:
        features: `(n, d)`.
        labels: Class numbers `(n,)`.
    """
    f = features.astype(np.float64)
    n, d = f.shape
    targets = _one_hot(labels)
    eigenvalues, vectors = np.linalg.eigh(f.T @ f)
    eigenvalues = eigenvalues.clip(min=0)
    reached = eigenvalues > eigenvalues[-1] * 1e-12  # directions that the features have
    projected = (vectors.T @ (f.T @ targets)) ** 2
    inside = np.where(
        reached[:, None], projected / np.where(reached, eigenvalues, 1)[:, None], 0.0
    )  # (d, classes): the targets along each direction, squared
    outside = ((targets**2).sum(axis=0) - inside.sum(axis=0)).clip(min=0)
    return float(
        np.mean(
            [
                _evidence(eigenvalues, inside[:, c], outside[c], n, d)
                for c in range(targets.shape[1])
            ]
        )
    )


def _evidence(eigenvalues: Floats, inside: Floats, outside: float, n: int, d: int) -> float:
    """Return the maximum over alpha (precision of the weights) and beta (of the noise) of the log evidence, per image."""
    alpha = beta = 1.0
    for _ in range(_ROUNDS):
        ratio = alpha / beta
        known = float(
            (eigenvalues / (eigenvalues + ratio)).sum()
        )  # directions that the data determine
        weights = float((eigenvalues * inside / (eigenvalues + ratio) ** 2).sum())
        residual = float((inside * (ratio / (eigenvalues + ratio)) ** 2).sum()) + outside
        alpha, beta = known / (weights + 1e-12), (n - known) / (residual + 1e-12)
        if abs(alpha / beta - ratio) <= _SETTLED * ratio:
            break
    ratio = alpha / beta
    weights = float((eigenvalues * inside / (eigenvalues + ratio) ** 2).sum())
    residual = float((inside * (ratio / (eigenvalues + ratio)) ** 2).sum()) + outside
    found = (
        d * np.log(alpha)
        + n * np.log(beta)
        - np.log(alpha + beta * eigenvalues).sum()
        - beta * residual
        - alpha * weights
        - n * np.log(2 * np.pi)
    )
    return float(found / 2 / n)


def h_score(features: Floats, labels: NDArray[np.int64]) -> float:
    """Return how much of the features' variance lies between the classes, `tr(cov(f)⁻¹ cov(E[f | y]))`.

    H-score (Bao and others, ICIP 2019) with Ledoit and Wolf's shrunk covariance (Ibrahim, Ponomareva and Mazumder, ECML 2022), since the plain
    inverse is noise where images are few.

    Args:
        features: `(n, d)`.
        labels: Class numbers `(n,)`.
    """
    from sklearn.covariance import ledoit_wolf

    f = features.astype(np.float64)
    f -= f.mean(axis=0)
    covariance, shrinkage = ledoit_wolf(f, assume_centered=True)
    targets = _one_hot(labels)
    shares = targets.mean(axis=0)
    means = (targets.T @ f)[shares > 0] / targets.sum(axis=0)[shares > 0, None]
    between = np.linalg.solve(covariance + 1e-12 * np.eye(len(covariance)), means.T)
    return float((1 - shrinkage) * (shares[shares > 0] * (means.T * between).sum(axis=0)).sum())


def leep_score(source: Floats, labels: NDArray[np.int64]) -> float:
    """Return the mean log-likelihood of the labels under what the source classes say of them; at most 0.

    LEEP (Nguyen, Hassner, Seeger and Archambeau, ICML 2020).

    Args:
        source: Probabilities of the source classes by the source head, `(n, z)`.
        labels: Class numbers `(n,)`.
    """
    p = source.astype(np.float64)
    joint = _one_hot(labels).T @ p / len(p)
    given = joint / joint.sum(axis=0).clip(min=1e-300)
    return float(np.log((p * given[labels]).sum(axis=1).clip(min=1e-300)).mean())


def knn_accuracy(
    train: tuple[Floats, NDArray[np.int64]], val: tuple[Floats, NDArray[np.int64]], k: int
) -> float:
    """Return the share of `val` whose class is that of most of the `k` nearest images of `train` by cosine.

    Args:
        train: Features `(n, d)` and class numbers `(n,)`.
        val: The same of the images that are judged.
        k: How many neighbours vote, with equal votes.
    """
    from sklearn.neighbors import KNeighborsClassifier

    def unit(features: Floats) -> Any:
        return features / np.linalg.norm(features, axis=1, keepdims=True).clip(min=1e-12)

    model = KNeighborsClassifier(k, algorithm="brute").fit(
        unit(train[0]), train[1]
    )  # of unit vectors the nearest are those at the smallest angle
    return float(model.score(unit(val[0]), val[1]))


def _one_hot(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.eye(int(labels.max()) + 1)[labels]
