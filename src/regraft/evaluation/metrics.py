"""All metrics of one run on one part: by class, confusion, top-5, calibration, coverage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.evaluation.calibration import (
    CoveragePoint,
    ReliabilityBin,
    coverage_curve,
    expected_calibration_error,
    reliability_bins,
)
from regraft.evaluation.scores import Labels, Logits, Scores, compute_scores, log_softmax
from regraft.system.json_object import JsonObject

_TOP = 5


@dataclass(frozen=True)
class ClassMetrics:
    """Precision, recall and F1 of one class, 0 where undefined, and its number of images."""

    name: str
    n: int
    precision: float
    recall: float
    f1: float

    def to_json(self) -> dict[str, Any]:
        """Return the metrics as they are written to JSON."""
        return asdict(self)


@dataclass(frozen=True)
class TemperatureEffect:
    """What a temperature changes: expected calibration error and log-loss of the scaled logits."""

    temperature: float
    error: float
    loss: float

    def to_json(self) -> dict[str, float]:
        """Return what changed as it is written to JSON."""
        return {
            "temperature": self.temperature,
            "error_after": self.error,
            "loss_after": self.loss,
        }


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error, the bins behind it, and the effect of a temperature if any."""

    error: float
    bins: list[ReliabilityBin]
    rescaled: TemperatureEffect | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the calibration as it is written to JSON."""
        after = self.rescaled.to_json() if self.rescaled else {}
        return {"error": self.error, "bins": [filled.to_json() for filled in self.bins], **after}


@dataclass(frozen=True)
class Metrics(JsonObject):
    """The metrics of one run on one part.

    Args:
        scores: Accuracy, log-loss and the number of images.
        balanced_accuracy: Mean recall over the classes that occur.
        macro_f1: Mean F1 over the classes that occur.
        top5: Top-5 accuracy; None with five classes or fewer.
        per_class: Metrics of each class, also of those that do not occur.
        confusion: Number of images by true class (rows) and predicted class (columns).
        calibration: Expected calibration error and reliability bins.
        coverage: Accuracy on the most confident images only.
    """

    scores: Scores
    balanced_accuracy: float
    macro_f1: float
    top5: float | None
    per_class: list[ClassMetrics]
    confusion: list[list[int]]
    calibration: Calibration
    coverage: list[CoveragePoint]

    def to_json(self) -> dict[str, Any]:
        """Return the metrics as they are written to JSON."""
        per_class = [row.to_json() for row in self.per_class]
        coverage = [point.to_json() for point in self.coverage]
        return {
            **self.scores.to_json(),
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
            "top5": self.top5,
            "per_class": per_class,
            "confusion": self.confusion,
            "calibration": self.calibration.to_json(),
            "coverage": coverage,
        }


def compute_metrics(
    logits: Logits, targets: Labels, classes: Sequence[str], temperature: float | None = None
) -> Metrics:
    """Return the metrics of logits.

    Args:
        logits: `(n, classes)`.
        targets: Class numbers `(n,)`.
        classes: Names of the classes.
        temperature: One fitted on validation; its effect on calibration and log-loss is measured.
    """
    from sklearn.metrics import confusion_matrix

    predicted = logits.argmax(axis=1)
    confusion = confusion_matrix(targets, predicted, labels=np.arange(len(classes)))
    per_class = _class_metrics(predicted, targets, classes)
    recalls = [row.recall for row in per_class if row.n]
    f1s = [row.f1 for row in per_class if row.n]
    return Metrics(
        scores=compute_scores(logits, targets),
        balanced_accuracy=float(np.mean(recalls)),
        macro_f1=float(np.mean(f1s)),
        top5=_top5(logits, targets),
        per_class=per_class,
        confusion=confusion.tolist(),
        calibration=_calibration(logits, targets, temperature),
        coverage=coverage_curve(logits, targets),
    )


def hardest_examples(
    logits: Logits, targets: Labels, most: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of the most confident errors and of the least confident images.

    Args:
        logits: `(n, classes)`.
        targets: Class numbers `(n,)`.
        most: Maximum number of rows of each.
    """
    probabilities = np.exp(log_softmax(logits))
    confidence = probabilities.max(axis=1)
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != targets)
    confident_errors = wrong[np.argsort(-confidence[wrong], kind="stable")]
    least_confident = np.argsort(confidence, kind="stable")
    return confident_errors[:most], least_confident[:most]


def _class_metrics(
    predicted: Labels, targets: Labels, classes: Sequence[str]
) -> list[ClassMetrics]:
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, counts = precision_recall_fscore_support(
        targets, predicted, labels=np.arange(len(classes)), zero_division=0
    )
    rows = []
    for label, name in enumerate(classes):
        rows.append(
            ClassMetrics(
                name=name,
                n=int(counts[label]),
                precision=float(precision[label]),
                recall=float(recall[label]),
                f1=float(f1[label]),
            )
        )
    return rows


def _top5(logits: Logits, targets: Labels) -> float | None:
    """Return top-5 accuracy, None with five classes or fewer."""
    if logits.shape[1] <= _TOP:
        return None
    top = np.argpartition(-logits, _TOP - 1, axis=1)[:, :_TOP]
    return float((top == targets[:, None]).any(axis=1).mean())


def _calibration(logits: Logits, targets: Labels, temperature: float | None) -> Calibration:
    error = expected_calibration_error(logits, targets)
    bins = reliability_bins(logits, targets)
    if temperature is None:
        return Calibration(error, bins)
    scaled = logits / temperature
    error_after = expected_calibration_error(scaled, targets)
    loss_after = compute_scores(scaled, targets).loss
    return Calibration(error, bins, TemperatureEffect(temperature, error_after, loss_after))
