"""A linear head on frozen features, solved and not iterated: L-BFGS over a path of L2 values, the best chosen on validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from regraft.watch import SILENT, Watcher

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

    Features are standardised by the training part while solving, and the layer is folded back, so it takes them raw. The bias is not penalised.
    scikit-learn's `C` is `1 / (n · l2)`.

    Args:
        train: Features `(n, d)` float32 and labels `(n,)`.
        val: The same of the validation part.
        classes: Number of classes.
        path: L2 values to try, in any order.
        monitor: "val_accuracy" (ties by loss) or "val_loss".
        weights: A weight for each class.
        smoothing: Label smoothing.
        watcher: Hears how far it is.
    """
    features, labels = train
    mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    x, x_val = (features - mean) / std, (val[0] - mean) / std
    weight = torch.zeros(classes, x.shape[1], device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)
    history: list[dict[str, Any]] = []
    best: tuple[tuple[float, float], Tensor, Tensor, float] | None = None
    for number, l2 in enumerate(sorted(path, reverse=True)):
        _minimise(x, labels, weight, bias, l2, weights, smoothing)
        with torch.no_grad():
            row = _row(functional.linear(x, weight, bias), labels, "train") | _row(functional.linear(x_val, weight, bias), val[1], "val")
            history.append({"l2": l2, **row})
            rank = (row["val_accuracy"], -row["val_loss"]) if monitor == "val_accuracy" else (-row["val_loss"], row["val_accuracy"])
            if best is None or rank > best[0]:
                best = (rank, weight.detach().clone(), bias.detach().clone(), l2)
        watcher.step("solve", number + 1, len(path))
    assert best is not None
    layer = nn.Linear(x.shape[1], classes)
    with torch.no_grad():
        layer.weight.copy_(best[1] / std)
        layer.bias.copy_(best[2] - (best[1] * (mean / std)).sum(dim=1))
    return Solved(layer, best[3], history)


def _minimise(x: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, l2: float, weights: Tensor | None, smoothing: float) -> None:
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=_ITERATIONS, history_size=10, tolerance_grad=1e-6, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(functional.linear(x, weight, bias), labels, weight=weights, label_smoothing=smoothing)
        loss = loss + l2 / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]


def _row(logits: Tensor, labels: Tensor, part: str) -> dict[str, float]:
    accuracy = (logits.argmax(dim=1) == labels).float().mean()
    return {f"{part}_loss": float(functional.cross_entropy(logits, labels)), f"{part}_accuracy": float(accuracy)}
