"""Whether probabilities mean what they say: calibration, temperature, and selective accuracy."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from regraft.evaluation.scores import Labels, Logits, log_softmax

BINS = 15
_TEMPERATURES = (0.05, 20.0)  # the range that is searched
_COVERAGE_STEPS = 20


@dataclass(frozen=True)
class ReliabilityBin:
    """The images whose confidence lies in `(low, high]`: number, mean confidence, accuracy."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float

    def to_json(self) -> dict[str, float]:
        """Return the bin as it is written to JSON."""
        return asdict(self)


@dataclass(frozen=True)
class CoveragePoint:
    """Accuracy on the most confident share of the images, and the lowest confidence in it."""

    coverage: float
    accuracy: float
    confidence: float

    def to_json(self) -> dict[str, float]:
        """Return the point as it is written to JSON."""
        return asdict(self)


def reliability_bins(logits: Logits, targets: Labels, bins: int = BINS) -> list[ReliabilityBin]:
    """Return the bins of a reliability diagram that are not empty (DeGroot and Fienberg 1983).

    Args:
        logits: `(n, classes)`.
        targets: Class numbers `(n,)`.
        bins: Number of equal bins of the confidence, 0 … 1; each includes its upper end.
    """
    confidence, correct = _confidence(logits, targets)
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    filled = []
    for number in np.unique(bin_of).tolist():
        inside = bin_of == number
        filled.append(
            ReliabilityBin(
                low=number / bins,
                high=(number + 1) / bins,
                n=int(inside.sum()),
                confidence=float(confidence[inside].mean()),
                accuracy=float(correct[inside].mean()),
            )
        )
    return filled


def expected_calibration_error(logits: Logits, targets: Labels, bins: int = BINS) -> float:
    """Return the expected calibration error, 0 … 1 (Naeini 2015).

    It is the mean distance between confidence and accuracy over the bins of `reliability`,
    weighted by their images.
    """
    gaps = [
        filled.n * abs(filled.confidence - filled.accuracy)
        for filled in reliability_bins(logits, targets, bins)
    ]
    return sum(gaps) / len(targets)


def fit_temperature(logits: Logits, targets: Labels) -> float:
    """Return the temperature, 0.05 … 20, that gives `logits / temperature` the smallest log-loss.

    Fit it on validation images (Guo 2017). Predicted classes do not change. It is 1 where every
    image is right: overconfidence cannot be estimated without errors.
    """
    if (logits.argmax(axis=1) == targets).all():
        return 1.0
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(targets))
    double = logits.astype(np.float64)

    def loss_at(log_temperature: float) -> float:
        log_probabilities = log_softmax(double / np.exp(log_temperature))
        return -log_probabilities[rows, targets].mean()  # type: ignore[no-any-return]

    minimum = minimize_scalar(loss_at, bounds=np.log(_TEMPERATURES), method="bounded")
    return float(np.exp(minimum.x))


def coverage_curve(logits: Logits, targets: Labels) -> list[CoveragePoint]:
    """Return accuracy on the most confident images only (El-Yaniv and Wiener 2010).

    Returns:
        A point for each share 1.0, 0.95 … 0.05 of the images; ties keep the images' order.
    """
    confidence, correct = _confidence(logits, targets)
    most_confident_first = np.argsort(-confidence, kind="stable")
    points = []
    for step in range(_COVERAGE_STEPS, 0, -1):
        count = max(1, round(len(targets) * step / _COVERAGE_STEPS))
        rows = most_confident_first[:count]
        accuracy = float(correct[rows].mean())
        lowest = float(confidence[rows].min())
        points.append(CoveragePoint(step / _COVERAGE_STEPS, accuracy, lowest))
    return points


def _confidence(logits: Logits, targets: Labels) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the probability of the predicted class and whether it is right, `(n,)` each."""
    probabilities = np.exp(log_softmax(logits))
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
