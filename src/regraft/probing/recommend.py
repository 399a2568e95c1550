"""The recommendation: the Pareto front of accuracy against cost, and one row for each budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regraft.evaluation.paired import compare_paired, pareto_front
from regraft.probing.candidates import ProbeRow

_SHARE = 0.9  # of the best row's gain over guessing, that "fastest" must reach


@dataclass(frozen=True)
class Recommendation:
    """A recommended row for a budget, "fastest", "balanced" or "best", and the reason."""

    budget: str
    row: ProbeRow
    why: str


def probe_front(rows: Sequence[ProbeRow]) -> list[ProbeRow]:
    """Return the rows on the Pareto front, the cheapest first.

    No other row is as accurate at the same or a lower cost, which is the multiply-adds for one
    image; ties: fewer features first.
    """
    ordered = sorted(rows, key=lambda row: row.features)
    points = [(row.multiply_adds, row.accuracy) for row in ordered]
    return [ordered[number] for number in pareto_front(points)]


def recommend(rows: Sequence[ProbeRow], guessing: float) -> list[Recommendation]:
    """Return the choices "fastest", "balanced" and "best", which may be the same row.

    Args:
        rows: All of them judged on the same validation images.
        guessing: Accuracy of always predicting the most frequent class.
    """
    best = max(rows, key=lambda row: (row.accuracy, -row.multiply_adds, -row.features))
    by_cost = sorted(rows, key=lambda row: (row.multiply_adds, -row.accuracy, row.features))
    fastest = _choose_fastest(by_cost, best, guessing)
    balanced = _choose_balanced(by_cost, best)
    why = f"the highest validation accuracy of {len(rows)} ways; being picked flatters it a little"
    return [fastest, balanced, Recommendation("best", best, why)]


def _choose_fastest(by_cost: Sequence[ProbeRow], best: ProbeRow, guessing: float) -> Recommendation:
    enough = guessing + _SHARE * (best.accuracy - guessing)
    bar = min(best.accuracy, enough)  # the best may do worse than guessing
    row = next(row for row in by_cost if row.accuracy >= bar)
    why = (
        "the cheapest that keeps nine tenths of what the best gains over guessing "
        f"({bar:.3f} or more)"
    )
    return Recommendation("fastest", row, why)


def _choose_balanced(by_cost: Sequence[ProbeRow], best: ProbeRow) -> Recommendation:
    row = next(row for row in by_cost if row is best or not _is_worse(row, best))
    test = f"on {len(best.right):,} images (McNemar, 5 %)"
    if row is best:
        why = f"the best itself: everything cheaper is worse by more than chance {test}"
        return Recommendation("balanced", row, why)
    times = best.multiply_adds / max(1, row.multiply_adds)
    why = (
        f"the cheapest that is not significantly different from the best {test}; {times:.1f} "
        "times less work"
    )
    return Recommendation("balanced", row, why)


def _is_worse(row: ProbeRow, best: ProbeRow) -> bool:
    return compare_paired(best.right, row.right).significant
