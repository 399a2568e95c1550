"""The learning curve: accuracy on subsets of the training images, and a forecast for twice them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import from_numpy

from regraft.plans.schema import Phase
from regraft.training.linear import CrossEntropy, LabelledFeatures, fit_logistic

_REPEATS = 3  # subsets of each size
_HALVINGS = 4
_FEWEST = 3  # images a class, on average
_DRAWS = 2000

Draw = Callable[[int, int], NDArray[np.int64]]


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy with so many training images.

    Args:
        images: Number of training images.
        accuracy: Mean validation accuracy over several subsets.
        spread: Its standard deviation; None for one subset.
        repeats: Number of subsets.
    """

    images: int
    accuracy: float
    spread: float | None
    repeats: int


@dataclass(frozen=True)
class Forecast:
    """The accuracy that is expected with more images.

    Args:
        images: Number of training images.
        accuracy: The expected accuracy.
        ci95: Its 95 % interval.
        gain: How much more that is than today.
    """

    images: int
    accuracy: float
    ci95: tuple[float, float]
    gain: float


@dataclass(frozen=True)
class LearningCurve:
    """Accuracy on subsets of the training images.

    Args:
        points: One for each size, the smallest first.
        forecast: For twice the images; None where there are fewer than two points.
    """

    points: list[CurvePoint]
    forecast: Forecast | None

    def to_json(self) -> dict[str, Any]:
        """Return the curve as it is written to JSON."""
        return asdict(self)


def measure_learning_curve(
    train: LabelledFeatures,
    val: LabelledFeatures,
    classes: int,
    phase: Phase,
    whole: tuple[float, float],
    draw: Draw,
) -> LearningCurve:
    """Return the accuracy on `val` for growing subsets of `train`, with a forecast.

    Args:
        train: Training features and labels.
        val: The same of the validation part.
        classes: Number of classes.
        phase: How the linear probe is fitted.
        whole: Accuracy with all of `train`, and the L2 value that was chosen there; subsets are
            fitted with that much or more.
        draw: From a number of images and the number of the repeat to rows of `train`.
    """
    accuracy, l2 = whole
    l2_path = [value for value in phase.l2 if value >= l2]
    n = len(train.labels)
    points = []
    for size in _sizes(n, classes):
        accuracies = []
        for repeat in range(_REPEATS):
            rows = from_numpy(draw(size, repeat))
            subset = LabelledFeatures(train.features[rows], train.labels[rows])
            probe = fit_logistic(subset, val, CrossEntropy(classes), l2_path, phase.monitor)
            accuracies.append(probe.chosen.val_accuracy)
        mean = float(np.mean(accuracies))
        spread = float(np.std(accuracies, ddof=1))
        points.append(CurvePoint(size, mean, spread, _REPEATS))
    points.append(CurvePoint(n, accuracy, None, 1))
    return LearningCurve(points, forecast_accuracy(points, 2 * n, len(val.labels)))


def forecast_accuracy(points: Sequence[CurvePoint], images: int, judged: int) -> Forecast | None:
    """Return the accuracy that a power law promises at `images`; None with fewer than two points.

    The error is taken to fall as a power of the number of images (Hestness and others, 2017). The
    interval comes from fitting that law to accuracies drawn from the spread over subsets.

    Args:
        points: Measured, the smallest size first.
        images: How many there would be.
        judged: Number of validation images; an error below half of one of them cannot be seen.
    """
    if len(points) < 2:
        return None
    accuracies = np.array([point.accuracy for point in points])
    drawn = _draw_around(accuracies, _standard_errors(points))
    errors = np.log((1 - drawn).clip(0.5 / judged, 1))
    sizes = [point.images for point in points]
    weights = np.sqrt(sizes)  # the law holds best where images are many
    slope, offset = np.polyfit(np.log(sizes), errors.T, 1, w=weights)
    log_error = offset + slope * np.log(images)
    expected = 1 - np.exp(log_error).clip(0, 1)
    low, high = np.quantile(expected[1:], [0.025, 0.975])
    return Forecast(
        images=images,
        accuracy=float(expected[0]),
        ci95=(float(low), float(high)),
        gain=float(expected[0] - accuracies[-1]),
    )


def _sizes(n: int, classes: int) -> Iterator[int]:
    """Yield a sixteenth, an eighth … half of the images, where that is enough for the classes."""
    for halvings in range(_HALVINGS, 0, -1):
        size = n >> halvings
        if size >= _FEWEST * classes:
            yield size


def _standard_errors(points: Sequence[CurvePoint]) -> NDArray[np.float64]:
    """Return the standard error of each point.

    A size with a single subset has the spread of the largest size with several.
    """
    known = [point.spread for point in points if point.spread is not None]
    spreads = []
    for point in points:
        spreads.append(known[-1] if point.spread is None else point.spread)
    repeats = [point.repeats for point in points]
    errors: NDArray[np.float64] = np.array(spreads) / np.sqrt(repeats)
    return errors


def _draw_around(means: NDArray[np.float64], errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means in the first row, and below them accuracies drawn around them."""
    noise = np.random.default_rng(0).standard_normal((_DRAWS, len(means)))
    return np.vstack([means, means + errors * noise])
