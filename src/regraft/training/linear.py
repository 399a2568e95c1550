"""A linear head on frozen features, solved and not iterated: L-BFGS over a path of L2 values, the best chosen on validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from regraft.system.progress import SILENT, ProgressReporter

_PATIENCE = 2
_ROUGHLY, _FINELY = (
    1e-5,
    1e-9,
)  # change of the loss at which solving ends: along the path, and for the chosen value
_ITERATIONS = 150  # at most, for each L2 value, from the solution of the one before


@dataclass(frozen=True)
class LinearProbe:
    """The chosen layer and what each L2 value gave."""

    layer: nn.Linear
    l2: float
    history: list[dict[str, Any]]


def fit_linear_probe(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    classes: int,
    path: tuple[float, ...],
    monitor: str = "val_accuracy",
    weights: Tensor | None = None,
    smoothing: float = 0.0,
    watcher: ProgressReporter = SILENT,
) -> LinearProbe:
    """Return the linear layer that minimises mean cross-entropy plus `l2 / 2 · ‖W‖²`, for the L2 value that does best on `val`.

    Along the path it is solved roughly; the chosen value is solved finely.
    Features are standardised by the training part while solving, and the layer is folded back, so it takes them raw. The bias is not penalised.
    scikit-learn's `C` is `1 / (n · l2)`.

    Args:
        train: Features `(n, d)` float32 and labels `(n,)`.
        val: The same of the validation part.
        classes: Number of classes.
        path: L2 values to try, the largest first; ends early when two in a row do worse in accuracy and in loss.
        monitor: "val_accuracy" (ties by loss) or "val_loss".
        weights: A weight for each class.
        smoothing: Label smoothing.
        watcher: Hears how far it is.
    """
    features, labels = train
    mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    x, x_val = (features - mean) / std, (val[0] - mean) / std
    targets = _targets(labels, classes, weights, smoothing)
    values, axes = _axes(x)
    spanned = (
        axes if len(x) < x.shape[1] else None
    )  # the images span fewer directions than there are features: only those count
    if spanned is not None:
        x, x_val, axes = x @ spanned, x_val @ spanned, None
    weight = torch.zeros(classes, x.shape[1], device=x.device)
    bias = torch.zeros(classes, device=x.device)

    def row(l2: float) -> dict[str, Any]:
        said = (
            (functional.linear(one, weight, bias), labels, part)
            for one, labels, part in ((x, train[1], "train"), (x_val, val[1], "val"))
        )
        return {"l2": l2} | {key: value for one in said for key, value in _row(*one).items()}

    def rank(row: dict[str, Any]) -> tuple[float, float]:
        return (
            (row["val_accuracy"], -row["val_loss"])
            if monitor == "val_accuracy"
            else (-row["val_loss"], row["val_accuracy"])
        )

    history: list[dict[str, Any]] = []
    best: tuple[int, Tensor, Tensor] = (0, weight, bias)
    for number, l2 in enumerate(sorted(path, reverse=True)):
        weight, bias = _minimise(x, targets, (values, axes), (weight, bias), l2, _ROUGHLY)
        history.append(row(l2))
        if number == 0 or rank(history[-1]) > rank(history[best[0]]):
            best = (number, weight, bias)
        watcher.step("solve", number + 1, len(path))
        if _worsens(history):
            break
    number, l2 = best[0], history[best[0]]["l2"]
    weight, bias = _minimise(x, targets, (values, axes), best[1:], l2, _FINELY)
    history[number] = row(l2)
    layer = nn.Linear(features.shape[1], classes)
    with torch.no_grad():
        weight = weight if spanned is None else weight @ spanned.T
        layer.weight.copy_(weight / std)
        layer.bias.copy_(bias - (weight * (mean / std)).sum(dim=1))
    return LinearProbe(layer, l2, history)


def _targets(labels: Tensor, classes: int, weights: Tensor | None, smoothing: float) -> Tensor:
    """Return by how much each log-probability counts, `(n, classes)`, so that minus their sum is PyTorch's cross-entropy."""
    weights = torch.ones(classes, device=labels.device) if weights is None else weights
    exactly = functional.one_hot(labels, classes) * weights
    return ((1 - smoothing) * exactly + smoothing / classes * weights) / exactly.sum()


def _axes(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the eigenvalues of `xᵀx / n` and its eigenvectors `(d, r)`; those that matter, where there are fewer rows than columns."""
    if len(x) >= x.shape[1]:
        return _eigen(x.T @ x / len(x))
    values, vectors = _eigen(x @ x.T / len(x))
    kept = values > values[-1] * 1e-6
    return values[kept], x.T @ (vectors[:, kept] / (values[kept] * len(x)).sqrt())


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, the smallest first, and eigenvectors; in double precision where single precision does not converge."""
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        values, vectors = (found.to(matrix.dtype) for found in torch.linalg.eigh(matrix.double()))
    return values, vectors


def _minimise(
    x: Tensor,
    targets: Tensor,
    axes: tuple[Tensor, Tensor | None],
    start: tuple[Tensor, Tensor],
    l2: float,
    until: float,
) -> tuple[Tensor, Tensor]:
    """Return weight and bias at the minimum, by L-BFGS in coordinates in which the curvature is about the same in every direction.

    The Hessian of the loss is close to `c · xᵀx / n + l2`, with `c` the mean of p (1 - p) over images and classes: along its axes the coordinates are
    stretched by the root of that (preconditioning as in Nocedal and Wright, 2006, chapter 5). An eighth of the steps are needed that raw coordinates take.
    Axes of None are the coordinates of `x` themselves.
    """
    weight, bias = start
    values, vectors = axes
    mass = targets.sum(dim=1, keepdim=True)
    chance = functional.linear(x, weight, bias).softmax(dim=1)
    curvature = float((chance * (1 - chance)).mean())
    stretch = (curvature * values.clamp(min=0) + l2).sqrt()
    moved, shift = (
        (weight if vectors is None else weight @ vectors) * stretch,
        bias * curvature**0.5,
    )
    optimizer = torch.optim.LBFGS(
        [moved, shift],
        max_iter=_ITERATIONS,
        history_size=10,
        tolerance_grad=until,
        tolerance_change=until,
        line_search_fn="strong_wolfe",
    )

    def placed() -> tuple[Tensor, Tensor]:
        along = moved / stretch
        return along if vectors is None else along @ vectors.T, shift / curvature**0.5

    @torch.no_grad()
    def closure() -> Tensor:
        weight, bias = placed()
        chances = functional.log_softmax(functional.linear(x, weight, bias), dim=1)
        fine = torch.float64  # or the line search is blind near the end
        loss = l2 / 2 * weight.square().sum(dtype=fine) - (targets * chances).sum(dtype=fine)
        slope = chances.exp_().mul_(mass).sub_(targets)  # of the loss along the logits
        along = slope.T @ x + l2 * weight
        moved.grad = (along if vectors is None else along @ vectors) / stretch
        shift.grad = slope.sum(dim=0) / curvature**0.5
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return placed()


def _worsens(history: list[dict[str, Any]]) -> bool:
    """Whether the two weakest L2 values so far did worse on validation than one before them, in accuracy and in loss."""
    accuracies, losses = (
        [row["val_accuracy"] for row in history],
        [row["val_loss"] for row in history],
    )
    return (
        len(history) > _PATIENCE
        and max(accuracies[-_PATIENCE:]) < max(accuracies[:-_PATIENCE])
        and min(losses[-_PATIENCE:]) > min(losses[:-_PATIENCE])
    )


def _row(logits: Tensor, labels: Tensor, part: str) -> dict[str, float]:
    accuracy = (logits.argmax(dim=1) == labels).float().mean()
    return {
        f"{part}_loss": float(functional.cross_entropy(logits, labels)),
        f"{part}_accuracy": float(accuracy),
    }
