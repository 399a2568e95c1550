"""A linear head on frozen features, solved and not iterated: L-BFGS over a path of L2 values, the best chosen on validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from regraft.watch import SILENT, Watcher

_PATIENCE = 2
_ROUGHLY, _FINELY = 1e-5, 1e-8  # change of the loss at which solving ends: along the path, and for the chosen value
_ITERATIONS = 150  # at most, for each L2 value, from the solution of the one before


@dataclass(frozen=True)
class Solved:
    """The chosen layer and what each L2 value gave."""

    layer: nn.Linear
    l2: float
    history: list[dict[str, Any]]


def solve(
    train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], classes: int, path: tuple[float, ...], monitor: str = "val_accuracy",
    weights: Tensor | None = None, smoothing: float = 0.0, watcher: Watcher = SILENT,
) -> Solved:  # fmt: skip
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
    gram = x.T @ x / len(x)
    weight = torch.zeros(classes, x.shape[1], device=x.device)
    bias = torch.zeros(classes, device=x.device)

    def row(l2: float) -> dict[str, Any]:
        said = ((functional.linear(one, weight, bias), labels, part) for one, labels, part in ((x, train[1], "train"), (x_val, val[1], "val")))
        return {"l2": l2} | {key: value for one in said for key, value in _row(*one).items()}

    def rank(row: dict[str, Any]) -> tuple[float, float]:
        return (row["val_accuracy"], -row["val_loss"]) if monitor == "val_accuracy" else (-row["val_loss"], row["val_accuracy"])

    history: list[dict[str, Any]] = []
    best: tuple[int, Tensor, Tensor] = (0, weight, bias)
    for number, l2 in enumerate(sorted(path, reverse=True)):
        weight, bias = _minimise(x, labels, gram, (weight, bias), l2, weights, smoothing, _ROUGHLY)
        history.append(row(l2))
        if number == 0 or rank(history[-1]) > rank(history[best[0]]):
            best = (number, weight, bias)
        watcher.step("solve", number + 1, len(path))
        if _worsens(history):
            break
    number, l2 = best[0], history[best[0]]["l2"]
    weight, bias = _minimise(x, labels, gram, best[1:], l2, weights, smoothing, _FINELY)
    history[number] = row(l2)
    layer = nn.Linear(x.shape[1], classes)
    with torch.no_grad():
        layer.weight.copy_(weight / std)
        layer.bias.copy_(bias - (weight * (mean / std)).sum(dim=1))
    return Solved(layer, l2, history)


def _minimise(
    x: Tensor, labels: Tensor, gram: Tensor, start: tuple[Tensor, Tensor], l2: float, weights: Tensor | None, smoothing: float, until: float
) -> tuple[Tensor, Tensor]:
    """Return weight and bias at the minimum, by L-BFGS in coordinates in which the curvature is about the same in every direction.

    The Hessian of the loss is close to `c · gram + l2`, with `c` the mean of p (1 - p) over images and classes: its Cholesky factor gives the
    coordinates (preconditioning as in Nocedal and Wright, 2006, chapter 5). An eighth of the steps are needed that raw coordinates take.
    """
    weight, bias = start
    with torch.no_grad():
        chance = functional.linear(x, weight, bias).softmax(dim=1)
        curvature = float((chance * (1 - chance)).mean())
        factor = torch.linalg.cholesky(curvature * gram + l2 * torch.eye(len(gram), device=x.device))
        inverse = torch.linalg.solve_triangular(factor, torch.eye(len(gram), device=x.device), upper=False)
        moved, shift = (weight @ factor).requires_grad_(), (bias * curvature**0.5).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [moved, shift], max_iter=_ITERATIONS, history_size=10, tolerance_grad=until, tolerance_change=until, line_search_fn="strong_wolfe"
    )

    def placed() -> tuple[Tensor, Tensor]:
        return moved @ inverse, shift / curvature**0.5

    def closure() -> Tensor:
        optimizer.zero_grad()
        weight, bias = placed()
        loss = functional.cross_entropy(functional.linear(x, weight, bias), labels, weight=weights, label_smoothing=smoothing)
        loss = loss + l2 / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return placed()


def _worsens(history: list[dict[str, Any]]) -> bool:
    """Whether the two weakest L2 values so far did worse on validation than one before them, in accuracy and in loss."""
    accuracies, losses = [row["val_accuracy"] for row in history], [row["val_loss"] for row in history]
    return len(history) > _PATIENCE and max(accuracies[-_PATIENCE:]) < max(accuracies[:-_PATIENCE]) and min(losses[-_PATIENCE:]) > min(losses[:-_PATIENCE])


def _row(logits: Tensor, labels: Tensor, part: str) -> dict[str, float]:
    accuracy = (logits.argmax(dim=1) == labels).float().mean()
    return {f"{part}_loss": float(functional.cross_entropy(logits, labels)), f"{part}_accuracy": float(accuracy)}
