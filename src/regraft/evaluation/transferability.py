"""Training-free scores of features for a set of labels: the larger, the better they transfer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAX_ITERATIONS = 50  # of LogME's fixed point; it converges within ten
_TOLERANCE = 1e-4
_RANK_TOLERANCE = 1e-12  # eigenvalues below this share of the largest count as zero
_EPSILON = 1e-12
_SMALLEST = 1e-300

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]


def logme_score(features: Floats, labels: Labels) -> float:
    """Return the log of the maximum evidence of a Bayesian linear model, per image.

    The model maps features to one-hot labels; the evidence is averaged over the classes. LogME
    (You, Liu, Wang and Long, ICML 2021), by MacKay's fixed point on the eigenvalues of `FᵀF`.

    Args:
        features: `(n, d)`.
        labels: Class numbers `(n,)`.
    """
    f = features.astype(np.float64)
    targets = _one_hot(labels)
    eigenvalues, vectors = np.linalg.eigh(f.T @ f)
    eigenvalues = eigenvalues.clip(min=0)
    nonzero = eigenvalues > eigenvalues[-1] * _RANK_TOLERANCE
    divisors = np.where(nonzero, eigenvalues, 1)
    projected = (vectors.T @ (f.T @ targets)) ** 2
    projected = projected / divisors[:, None]
    inside = np.where(nonzero[:, None], projected, 0.0)
    total = (targets**2).sum(axis=0)
    outside = (total - inside.sum(axis=0)).clip(min=0)
    evidences = []
    for along, rest in zip(inside.T, outside, strict=True):
        model = _BayesianRegression(eigenvalues, along, rest, len(f))
        evidences.append(model.log_evidence())
    return float(np.mean(evidences))


@dataclass(frozen=True)
class _BayesianRegression:
    """Bayesian linear regression of one target, along the directions of the features.

    Args:
        eigenvalues: Of `FᵀF`, `(d,)`.
        inside: Squared length of the target along each direction, `(d,)`.
        outside: Squared length of the rest of the target.
        n: Number of images.
    """

    eigenvalues: Floats
    inside: Floats
    outside: float
    n: int

    def log_evidence(self) -> float:
        """Return the maximum over alpha (of the weights) and beta (of the noise), per image."""
        alpha, beta = self._maximise()
        weights, residual = self._squared_norms(alpha / beta)
        precisions = alpha + beta * self.eigenvalues
        log_determinant = np.log(precisions).sum()
        log_two_pi = np.log(2 * np.pi)
        log_evidence = (
            len(self.eigenvalues) * np.log(alpha)
            + self.n * np.log(beta)
            - log_determinant
            - beta * residual
            - alpha * weights
            - self.n * log_two_pi
        )
        return float(log_evidence / 2 / self.n)

    def _maximise(self) -> tuple[float, float]:
        alpha = beta = 1.0
        for _ in range(_MAX_ITERATIONS):
            ratio = alpha / beta
            weights, residual = self._squared_norms(ratio)
            shares = self.eigenvalues / (self.eigenvalues + ratio)
            effective_parameters = float(shares.sum())
            alpha = effective_parameters / (weights + _EPSILON)
            beta = (self.n - effective_parameters) / (residual + _EPSILON)
            change = abs(alpha / beta - ratio)
            if change <= _TOLERANCE * ratio:
                break
        return alpha, beta

    def _squared_norms(self, ratio: float) -> tuple[float, float]:
        """Return the squared norms of the posterior weights and of the residual."""
        shrunk = self.eigenvalues + ratio
        weights = self.eigenvalues * self.inside / shrunk**2
        residual = self.inside * (ratio / shrunk) ** 2
        return float(weights.sum()), float(residual.sum()) + self.outside


def compute_h_score(features: Floats, labels: Labels) -> float:
    """Return the share of the features' variance between classes, `tr(cov(f)⁻¹ cov(E[f | y]))`.

    H-score (Bao and others, ICIP 2019) with Ledoit and Wolf's shrunk covariance (Ibrahim,
    Ponomareva and Mazumder, ECML 2022), since the plain inverse is noisy where images are few.

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
    occurs = shares > 0
    counts = targets.sum(axis=0)
    sums = targets.T @ f
    means = sums[occurs] / counts[occurs, None]
    regularised = covariance + _EPSILON * np.eye(len(covariance))
    whitened = np.linalg.solve(regularised, means.T)
    by_class = (means.T * whitened).sum(axis=0)
    between = (shares[occurs] * by_class).sum()
    return float((1 - shrinkage) * between)


def leep_score(source: Floats, labels: Labels) -> float:
    """Return the mean log-likelihood of the labels given the source classes; at most 0.

    LEEP (Nguyen, Hassner, Seeger and Archambeau, ICML 2020).

    Args:
        source: Probabilities of the source classes by the source head, `(n, z)`.
        labels: Class numbers `(n,)`.
    """
    p = source.astype(np.float64)
    targets = _one_hot(labels)
    joint = targets.T @ p / len(p)
    marginal = joint.sum(axis=0).clip(min=_SMALLEST)
    conditional = joint / marginal  # of the label, given the source class
    weighted = p * conditional[labels]
    likelihoods = weighted.sum(axis=1)
    log_likelihoods = np.log(likelihoods.clip(min=_SMALLEST))
    return float(log_likelihoods.mean())


def knn_accuracy(train: tuple[Floats, Labels], val: tuple[Floats, Labels], k: int) -> float:
    """Return the accuracy on `val` of k nearest neighbours in `train` by cosine.

    Args:
        train: Features `(n, d)` and class numbers `(n,)`.
        val: The same of the images to classify.
        k: Number of neighbours; their votes count equally.
    """
    from sklearn.neighbors import KNeighborsClassifier

    features, labels = train
    val_features, val_labels = val
    # among unit vectors the nearest are those at the smallest angle
    classifier = KNeighborsClassifier(k, algorithm="brute")
    classifier.fit(_normalize(features), labels)
    accuracy = classifier.score(_normalize(val_features), val_labels)
    return float(accuracy)


def _normalize(features: Floats) -> Any:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / norms.clip(min=_EPSILON)


def _one_hot(labels: Labels) -> NDArray[np.float64]:
    classes = int(labels.max()) + 1
    return np.eye(classes)[labels]
