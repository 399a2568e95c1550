"""From rows to a recommendation: the Pareto front of accuracy against cost, and one row for each budget, with the rule that led there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regraft import evaluate
from regraft.probing.cells import Row

_SHARE = 0.9  # of what the best gains over guessing, that "fastest" must keep


@dataclass(frozen=True)
class Choice:
    """A recommended row and the sentence that says why."""

    budget: str  # "fastest", "balanced" or "best"
    row: Row
    why: str


def front(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that no other beats in accuracy at the same or a lower cost, the cheapest first; cost is multiply-adds for one image."""
    ordered = sorted(rows, key=lambda one: one.features)  # of equals the one with fewer features
    return [
        ordered[number]
        for number in evaluate.front([(one.multiply_adds, one.accuracy) for one in ordered])
    ]


def recommended(rows: Sequence[Row], guessing: float) -> list[Choice]:
    """Return a choice for each budget: "fastest", "balanced" and "best", which may be the same row.

    Args:
        rows: All of them judged on the same validation images.
        guessing: Accuracy of always naming the most frequent class.
    """
    best = max(rows, key=lambda one: (one.accuracy, -one.multiply_adds, -one.features))
    cheapest = sorted(rows, key=lambda one: (one.multiply_adds, -one.accuracy, one.features))
    n = len(best.right)
    alike = next(
        row
        for row in cheapest
        if row is best or not evaluate.difference(best.right, row.right).significant
    )
    bar = min(
        best.accuracy, guessing + _SHARE * (best.accuracy - guessing)
    )  # the best may do worse than guessing
    quick = next(row for row in cheapest if row.accuracy >= bar)
    times = best.multiply_adds / max(1, alike.multiply_adds)
    why = f"the cheapest that cannot be told apart from the best on {n:,} images (McNemar, 5 %); {times:.1f} times less work"
    if alike is best:
        why = f"the best itself: everything cheaper is worse by more than chance on {n:,} images (McNemar, 5 %)"
    return [
        Choice(
            "fastest",
            quick,
            f"the cheapest that keeps nine tenths of what the best gains over guessing ({bar:.3f} or more)",
        ),
        Choice("balanced", alike, why),
        Choice(
            "best",
            best,
            f"the highest validation accuracy of {len(rows)} ways; being picked flatters it a little",
        ),
    ]
