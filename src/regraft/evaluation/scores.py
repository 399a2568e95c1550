"""From logits and targets to numbers with intervals.

Refuses accuracy without its n: every number that comes from images says how many.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Scores:
    """Accuracy in 0 … 1 with its 95 % interval, mean log-loss in nats, and the number of images."""

    accuracy: float
    loss: float
    n: int
    ci95: tuple[float, float]

    def plain(self) -> dict[str, Any]:
        """Return the scores as they are written to JSON."""
        return asdict(self)


def compute_scores(logits: NDArray[np.floating[Any]], targets: NDArray[np.int64]) -> Scores:
    """Return accuracy and log-loss of `logits` `(n, classes)` for `targets` `(n,)`; the interval is Wilson's (1927)."""
    right = logits.argmax(axis=1) == targets
    log_p = log_softmax(logits)
    loss = float(-log_p[np.arange(len(targets)), targets].mean())
    return Scores(
        float(right.mean()), loss, len(targets), wilson_interval(int(right.sum()), len(targets))
    )


def log_softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return log-probabilities `(n, classes)`."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    out: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return out


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of `right` in `n` (Wilson 1927)."""
    share = right / n
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 * np.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2)) / (1 + Z95**2 / n)
    return float(np.clip(centre - half, 0.0, share)), float(np.clip(centre + half, share, 1.0))
