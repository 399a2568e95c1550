"""The learning curve: accuracy on growing subsets of the training images, and what twice the images would bring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regraft.plans.schema import Phase
from regraft.training.linear import fit_linear_probe

_REPEATS = 3  # subsets of each size
_HALVINGS = 4
_FEWEST = 3  # images a class, on average
_DRAWS = 2000


def learning_curve(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    classes: int,
    phase: Phase,
    whole: tuple[float, float],
    draw: Callable[[int, int], NDArray[np.int64]],
) -> dict[str, Any]:
    """Return the accuracy on `val` for growing subsets of `train`, and a forecast for twice the images.

    The error is taken to fall as a power of the number of images (Hestness and others, 2017); the forecast's interval comes from fitting that law to
    accuracies drawn from the spread over subsets.

    Args:
        train: Features `(n, d)` and labels `(n,)`.
        val: The same of the validation part.
        classes: Number of classes.
        phase: How the probe is solved.
        whole: Accuracy with all of `train`, and the L2 value that was chosen there; fewer images are given that much or more.
        draw: From a number of images and the number of the repeat to rows of `train`.

    Returns:
        `points` (`images`, `accuracy`, `spread`, `repeats` of each size, the smallest first) and `forecast` (`images`, `accuracy`, `ci95`, `gain`), None
        where there are too few images for two sizes.
    """
    x, y = train
    path = tuple(value for value in phase.l2 if value >= whole[1])
    points: list[dict[str, Any]] = []
    for size in (len(y) >> halving for halving in range(_HALVINGS, 0, -1)):
        if size < _FEWEST * classes:
            continue
        reached = []
        for number in range(_REPEATS):
            rows = torch.from_numpy(draw(size, number))
            solved = fit_linear_probe((x[rows], y[rows]), val, classes, path, phase.monitor)
            reached.append(
                next(row["val_accuracy"] for row in solved.history if row["l2"] == solved.l2)
            )
        points.append(
            {
                "images": size,
                "accuracy": float(np.mean(reached)),
                "spread": float(np.std(reached, ddof=1)),
                "repeats": _REPEATS,
            }
        )
    points.append({"images": len(y), "accuracy": whole[0], "spread": None, "repeats": 1})
    return {"points": points, "forecast": forecast(points, 2 * len(y), len(val[1]))}


def forecast(points: Sequence[dict[str, Any]], images: int, judged: int) -> dict[str, Any] | None:
    """Return the accuracy that a power law through the points promises at `images`; None with fewer than two points.

    Args:
        points: As `learning_curve` returns them.
        images: How many there would be.
        judged: Validation images; an error below half of one of them cannot be seen.
    """
    if len(points) < 2:
        return None
    sizes = np.log([point["images"] for point in points])
    means = np.array([point["accuracy"] for point in points])
    spreads = [point["spread"] for point in points if point["spread"] is not None]
    noise = np.array(
        [point["spread"] if point["spread"] is not None else spreads[-1] for point in points]
    )
    noise = noise / np.sqrt([point["repeats"] for point in points])
    drawn = np.vstack(
        [means, means + noise * np.random.default_rng(0).standard_normal((_DRAWS, len(means)))]
    )
    errors = np.log((1 - drawn).clip(0.5 / judged, 1))
    weights = np.sqrt(
        [point["images"] for point in points]
    )  # the law holds best where images are many
    slope, offset = np.polyfit(sizes, errors.T, 1, w=weights)
    there = 1 - np.exp(offset + slope * np.log(images)).clip(0, 1)
    low, high = np.quantile(there[1:], [0.025, 0.975])
    return {
        "images": images,
        "accuracy": float(there[0]),
        "ci95": (float(low), float(high)),
        "gain": float(there[0] - means[-1]),
    }
