"""Everything that is said of one run on one part: by class, confusion, top-5, calibration, coverage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.evaluation.calibration import calibration_error, coverage_curve, reliability_bins
from regraft.evaluation.scores import compute_scores, log_softmax

_TOP = 5


def class_metrics(
    logits: NDArray[np.floating[Any]],
    targets: NDArray[np.int64],
    classes: Sequence[str],
    temperature: float | None = None,
) -> dict[str, Any]:
    """Return what the logits are worth, as plain data.

    Args:
        logits: `(n, classes)`.
        targets: `(n,)`.
        classes: Their names.
        temperature: Fitted on validation; what it does to calibration and log-loss is said too.

    Returns:
        `accuracy`, `ci95`, `loss`, `n` as `scores` has them; `balanced_accuracy` and `macro_f1` over the classes that occur; `top5` (None with five
        classes or fewer); `per_class` (rows `name`, `n`, `precision`, `recall`, `f1`; 0 where nothing was said or asked); `confusion` (true class by
        said class); `calibration` (`error`, `bins`, and with a temperature `temperature`, `error_after`, `loss_after`); `coverage`.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    said, numbers = logits.argmax(axis=1), np.arange(len(classes))
    table = confusion_matrix(targets, said, labels=numbers)
    columns = precision_recall_fscore_support(targets, said, labels=numbers, zero_division=0)
    rows = [
        {
            "name": name,
            "n": int(n),
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
        }
        for name, precision, recall, f1, n in zip(classes, *columns, strict=True)
    ]
    there = [row for row in rows if row["n"]]
    top5 = None
    if len(classes) > _TOP:
        first = np.argpartition(-logits, _TOP - 1, axis=1)[:, :_TOP]
        top5 = float((first == targets[:, None]).any(axis=1).mean())
    return {
        **compute_scores(logits, targets).plain(),
        "balanced_accuracy": float(np.mean([row["recall"] for row in there])),
        "macro_f1": float(np.mean([row["f1"] for row in there])),
        "top5": top5,
        "per_class": rows,
        "confusion": table.tolist(),
        "calibration": _calibration(logits, targets, temperature),
        "coverage": coverage_curve(logits, targets),
    }


def hardest_examples(
    logits: NDArray[np.floating[Any]], targets: NDArray[np.int64], most: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of the worst mistakes (the surest of a wrong class first) and of the least certain images, at most `most` of each."""
    chances = np.exp(log_softmax(logits))
    wrong = np.flatnonzero(chances.argmax(axis=1) != targets)
    worst = wrong[np.argsort(-chances[wrong].max(axis=1), kind="stable")][:most]
    return worst, np.argsort(chances.max(axis=1), kind="stable")[:most]


def _calibration(
    logits: NDArray[np.floating[Any]], targets: NDArray[np.int64], temperature: float | None
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "error": calibration_error(logits, targets),
        "bins": [asdict(one) for one in reliability_bins(logits, targets)],
    }
    if temperature is not None:
        cooled = logits / temperature
        found |= {
            "temperature": temperature,
            "error_after": calibration_error(cooled, targets),
            "loss_after": compute_scores(cooled, targets).loss,
        }
    return found
