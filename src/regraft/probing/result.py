"""What a probe found: rows, recommendations, the learning curve, and a verdict in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from regraft.options import DataOptions
from regraft.probing.candidates import ProbeRow
from regraft.probing.grid import Key, Skipped, candidate_name
from regraft.probing.learning_curve import LearningCurve
from regraft.probing.rank_correlation import RankCorrelation
from regraft.probing.recommend import Recommendation, probe_front
from regraft.probing.successive_halving import Dropped
from regraft.runs.provenance import SPLIT_OPTIONS

_SAME_WORK = 1.05  # times less work that is not worth naming


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found.

    Args:
        data: Name of the dataset.
        classes: Number of classes.
        data_options: The options that decided the split.
        split_digest: Of the split.
        rows: Of every candidate, as it was judged last.
        last: Those of the candidates that reached the last round.
        recommendations: "fastest", "balanced" and "best", in this order.
        learning_curve: Of the best row.
        correlations: How well the scores rank finished runs.
        runs: Number of finished runs that could be compared.
        neighbours: Number of nearest neighbours that voted.
        skipped: What could not be probed.
        dropped: Candidates that successive halving dropped.
        seconds: That it took.
    """

    data: str
    classes: int
    data_options: DataOptions
    split_digest: str
    rows: Sequence[ProbeRow]
    last: Sequence[ProbeRow]
    recommendations: Sequence[Recommendation]
    learning_curve: LearningCurve
    correlations: Sequence[RankCorrelation]
    runs: int
    neighbours: int
    skipped: Sequence[Skipped]
    dropped: Sequence[Dropped[Key]]
    seconds: float = 0.0

    @property
    def best(self) -> ProbeRow:
        """The row with the highest validation accuracy."""
        return self.recommendations[-1].row

    @property
    def front(self) -> list[ProbeRow]:
        """The Pareto front of accuracy against cost, the cheapest first."""
        return probe_front(self.last)

    @property
    def verdict(self) -> str:
        """Which row is best, and whether a cheaper one is as good, in a sentence."""
        return describe_probe(self.recommendations)

    def to_json(self) -> dict[str, Any]:
        """Return the result as it is written to `probe.json`."""
        best = self.best
        asked = {name: getattr(self.data_options, name) for name in SPLIT_OPTIONS}
        rows = [row.to_json() for row in self.rows]
        front = [row.name for row in self.front]
        recommendations = [choice.to_json() for choice in self.recommendations]
        correlations = [correlation.to_json() for correlation in self.correlations]
        skipped = [skipped.to_json() for skipped in self.skipped]
        dropped = [_dropped_json(dropped) for dropped in self.dropped]
        return {
            "data": self.data,
            "classes": self.classes,
            "images": {"train": best.images, "val": len(best.correct)},
            "asked": asked,
            "split_digest": self.split_digest,
            "places": rows,
            "front": front,
            "recommendations": recommendations,
            "learning_curve": {"of": best.name, **self.learning_curve.to_json()},
            "hit_rate": correlations,
            "runs": self.runs,
            "neighbours": self.neighbours,
            "skipped": skipped,
            "dropped": dropped,
            "verdict": self.verdict,
            "seconds": self.seconds,
        }


def describe_probe(recommendations: Sequence[Recommendation]) -> str:
    """Return which row is best, and whether a cheaper one is as good, in a sentence.

    Args:
        recommendations: "fastest", "balanced" and "best", in this order.
    """
    _, balanced_choice, best_choice = recommendations
    balanced = balanced_choice.row
    best = best_choice.row
    low, high = best.ci95
    text = (
        f"{best.name} reaches {best.accuracy:.1%} of {len(best.correct):,} validation images with "
        f"a linear probe (95 % interval {low:.1%} to {high:.1%})"
    )
    if balanced is best:
        return f"{text}; everything cheaper is worse by more than chance."
    times = best.multiply_adds / max(1, balanced.multiply_adds)
    if times < _SAME_WORK:
        return f"{text}."
    return (
        f"{text}; {balanced.name} cannot be told apart from it at {balanced.accuracy:.1%}, with "
        f"{times:.1f} times less work."
    )


def _dropped_json(dropped: Dropped[Key]) -> dict[str, Any]:
    return {"name": candidate_name(dropped.candidate), "why": dropped.why}
