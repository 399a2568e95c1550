"""Which epoch, or which L2 value, is better on validation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def rank_validation(accuracy: float, loss: float, monitor: str) -> tuple[float, float]:
    """Return a sort key, larger for better: the monitored score first, then the other one.

    Args:
        accuracy: 0 … 1.
        loss: Cross-entropy in nats; NaN ranks last.
        monitor: "val_accuracy" or "val_loss".
    """
    quality = -loss if math.isfinite(loss) else -math.inf
    return (accuracy, quality) if monitor == "val_accuracy" else (quality, accuracy)


def count_improvements(
    history: Sequence[Mapping[str, Any]], monitor: str, min_delta: float = 0.0
) -> int:
    """Return how many epochs were better than all before them; the first is one.

    Where the monitored score ties, the other one decides. An epoch has to be better by more than
    `min_delta`.
    """
    best = (-math.inf, -math.inf)
    improvements = 0
    for row in history:
        rank = rank_validation(row["val_accuracy"], row["val_loss"], monitor)
        if not improvements or _is_better(rank, best, min_delta):
            best = rank
            improvements += 1
    return improvements


def _is_better(rank: tuple[float, float], best: tuple[float, float], min_delta: float) -> bool:
    if rank[0] == best[0]:
        return rank[1] > best[1] + min_delta
    return rank[0] > best[0] + min_delta
