"""Accuracy and log-loss of logits, each with the number of images and an interval."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.system.json_object import JsonObject

Logits = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Scores(JsonObject):
    """How right a network is on the images of one part.

    Args:
        accuracy: Share of the images that are right, 0 … 1.
        loss: Mean log-loss, in nats.
        n: Number of images.
        ci95: The 95 % interval of the accuracy.
    """

    accuracy: float
    loss: float
    n: int
    ci95: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """Return the scores as they are written to JSON."""
        return asdict(self)


def compute_scores(logits: Logits, targets: Labels) -> Scores:
    """Return accuracy with its Wilson interval, and mean log-loss.

    Args:
        logits: `(n, classes)`.
        targets: Class numbers `(n,)`.
    """
    n = len(targets)
    correct = logits.argmax(axis=1) == targets
    log_probabilities = log_softmax(logits)
    loss = -log_probabilities[np.arange(n), targets].mean()
    interval = wilson_interval(int(correct.sum()), n)
    return Scores(float(correct.mean()), float(loss), n, interval)


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Return log-probabilities `(n, classes)` in double precision."""
    from scipy import special

    log_probabilities: NDArray[np.float64] = special.log_softmax(logits.astype(np.float64), axis=1)
    return log_probabilities


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of the share `correct / n` (Wilson 1927); it contains the share."""
    from scipy.stats import binomtest

    interval = binomtest(correct, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)
