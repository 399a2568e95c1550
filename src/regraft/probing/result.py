"""What a probe says: the judged layers, recommendations, learning curve, and its verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from regraft.probing.candidates import ProbeRow
from regraft.probing.learning_curve import LearningCurve
from regraft.probing.rank_correlation import RankCorrelation
from regraft.probing.recommend import Recommendation
from regraft.system.json_object import JsonObject


@dataclass(frozen=True)
class SplitChoice:
    """The options that decide which images are in which part.

    Args:
        train_images: Size of the subset of the training images; None for all.
        val_images: The same of the validation images.
        split_seed: Seed of the split.
    """

    train_images: int | None
    val_images: int | None
    split_seed: int


@dataclass(frozen=True)
class SkippedCandidate:
    """A backbone, or a backbone at a resolution, that cannot be probed.

    Args:
        name: Which one.
        error: Why.
    """

    name: str
    error: str


@dataclass(frozen=True)
class DroppedCandidate:
    """A backbone at a resolution that successive halving did not take into its last round.

    Args:
        name: Which one.
        why: Why.
    """

    name: str
    why: str


@dataclass(frozen=True)
class ProbeResult(JsonObject):
    """What a probe says.

    Args:
        data: Name of the dataset.
        classes: Number of classes.
        images: Number of images by part, as many as the last round used.
        asked: The options that decide the parts.
        split_digest: Digest of the split.
        places: Every judged layer, or several layers concatenated.
        front: Names of the rows on the Pareto front, the cheapest first.
        recommendations: A row for each budget.
        curve_of: Name of the row that the learning curve is of.
        learning_curve: Accuracy on subsets of the training images, with a forecast.
        hit_rate: How well each score ranks what finished runs reached.
        runs: Number of finished runs that could be compared.
        neighbours: Number of neighbours that vote in `knn`.
        skipped: Candidates that cannot be probed.
        dropped: Candidates that successive halving dropped.
        verdict: Which row is best, and whether a cheaper one is as good, in a sentence.
        seconds: How long the probe took.
    """

    data: str
    classes: int
    images: dict[str, int]
    asked: SplitChoice
    split_digest: str
    places: tuple[ProbeRow, ...]
    front: tuple[str, ...]
    recommendations: tuple[Recommendation, ...]
    curve_of: str
    learning_curve: LearningCurve
    hit_rate: tuple[RankCorrelation, ...]
    runs: int
    neighbours: int
    skipped: tuple[SkippedCandidate, ...]
    dropped: tuple[DroppedCandidate, ...]
    verdict: str
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the result as it is written to `probe.json`."""
        return {
            "data": self.data,
            "classes": self.classes,
            "images": self.images,
            "asked": asdict(self.asked),
            "split_digest": self.split_digest,
            "places": [row.to_json() for row in self.places],
            "front": list(self.front),
            "recommendations": [choice.to_json() for choice in self.recommendations],
            "learning_curve": {"of": self.curve_of, **self.learning_curve.to_json()},
            "hit_rate": [correlation.to_json() for correlation in self.hit_rate],
            "runs": self.runs,
            "neighbours": self.neighbours,
            "skipped": [asdict(candidate) for candidate in self.skipped],
            "dropped": [asdict(candidate) for candidate in self.dropped],
            "verdict": self.verdict,
            "seconds": self.seconds,
        }
