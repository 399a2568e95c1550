"""Whether probabilities mean what they say: calibration, temperature, and how accuracy rises when the least certain are left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.evaluation.scores import log_softmax

BINS = 15
_RANGE = (0.05, 20.0)


@dataclass(frozen=True)
class CalibrationBin:
    """The images whose highest probability lies in one stretch: how many, how sure, how often right."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


def reliability_bins(
    logits: NDArray[np.floating[Any]], targets: NDArray[np.int64], bins: int = BINS
) -> list[CalibrationBin]:
    """Return the filled ones of `bins` equal stretches of the highest probability (DeGroot and Fienberg 1983).

    Args:
        logits: `(n, classes)`.
        targets: `(n,)`.
        bins: How many stretches 0 … 1 is cut into; each holds its upper end.
    """
    chances = np.exp(log_softmax(logits))
    sure, right = chances.max(axis=1), chances.argmax(axis=1) == targets
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    return [
        CalibrationBin(
            number / bins,
            (number + 1) / bins,
            int(mine.sum()),
            float(sure[mine].mean()),
            float(right[mine].mean()),
        )
        for number in range(bins)
        if (mine := place == number).any()
    ]


def calibration_error(
    logits: NDArray[np.floating[Any]], targets: NDArray[np.int64], bins: int = BINS
) -> float:
    """Return the expected calibration error, 0 … 1: how far confidence and accuracy lie apart on average (Naeini 2015)."""
    return sum(
        one.n * abs(one.confidence - one.accuracy)
        for one in reliability_bins(logits, targets, bins)
    ) / len(targets)


def fit_temperature(logits: NDArray[np.floating[Any]], targets: NDArray[np.int64]) -> float:
    """Return the number, 0.05 … 20, by which logits are divided for the smallest log-loss (Guo 2017); fit it on validation.

    The class that is said does not change. Where every image is right it is 1: how far to trust such a network cannot be learned from them.
    """
    if (logits.argmax(axis=1) == targets).all():
        return 1.0
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(targets))
    wide = logits.astype(np.float64)
    found = minimize_scalar(
        lambda log: -log_softmax(wide / np.exp(log))[rows, targets].mean(),
        bounds=np.log(_RANGE),
        method="bounded",
    )
    return float(np.exp(found.x))


def coverage_curve(
    logits: NDArray[np.floating[Any]], targets: NDArray[np.int64]
) -> list[dict[str, float]]:
    """Return accuracy when only the surest share of the images is answered, for shares 1.0, 0.95 … 0.05 (El-Yaniv and Wiener 2010).

    Returns:
        Rows `coverage`, `accuracy`, `confidence` (the least that is answered); images of equal confidence keep their order.
    """
    chances = np.exp(log_softmax(logits))
    sure, right = chances.max(axis=1), chances.argmax(axis=1) == targets
    order = np.argsort(-sure, kind="stable")
    rows = []
    for step in range(20, 0, -1):
        kept = order[: max(1, round(len(targets) * step / 20))]
        rows.append(
            {
                "coverage": step / 20,
                "accuracy": float(right[kept].mean()),
                "confidence": float(sure[kept].min()),
            }
        )
    return rows
