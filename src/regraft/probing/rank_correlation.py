"""How well the probe's scores rank what fine-tuning then reached on the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from regraft.probing.candidates import ProbeRow
from regraft.runs.folder import Run

RANKED_SCORES = ("accuracy", "knn", "logme", "h_score", "leep")
_FEWEST = 3  # candidates, so that there is something to rank

_Place = tuple[str, int, str]  # backbone, resolution and layer


@dataclass(frozen=True)
class RankCorrelation:
    """How well a score ranks the validation accuracies that a technique reached.

    Args:
        technique: Its name.
        score: Name of the score.
        runs: Number of candidates that were ranked.
        kendall: Kendall's tau, -1 … 1.
        p: Its p.
        spearman: Spearman's rho, -1 … 1.
    """

    technique: str
    score: str
    runs: int
    kendall: float
    p: float
    spearman: float

    def to_json(self) -> dict[str, Any]:
        """Return the correlation as it is written to JSON."""
        return asdict(self)


def correlate_ranks(rows: Sequence[ProbeRow], runs: Sequence[Run]) -> list[RankCorrelation]:
    """Return the rank correlations, for each technique and score.

    Nothing for techniques that ran in fewer than three candidates of the probe.

    Args:
        rows: Of the probe.
        runs: Finished runs on the same validation images. Those that train only the head are left
            out; several seeds are averaged.
    """
    singles: dict[_Place, ProbeRow] = {}
    for row in rows:
        if row.kind == "single":
            singles[row.backbone, row.resolution, row.places[0]] = row
    correlations = []
    for technique, reached in _mean_accuracies(runs, singles).items():
        for score in RANKED_SCORES:
            pairs = []
            for place, accuracy in reached.items():
                value = getattr(singles[place], score)
                if value is not None:
                    pairs.append((value, accuracy))
            if _can_be_ranked(pairs):
                correlations.append(_correlate(technique, score, pairs))
    return correlations


def hit_rate(rows: Sequence[ProbeRow], runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return `correlate_ranks` as dicts: the old name, until its callers use the new one."""
    return [correlation.to_json() for correlation in correlate_ranks(rows, runs)]


def _mean_accuracies(
    runs: Sequence[Run], singles: Mapping[_Place, ProbeRow]
) -> dict[str, dict[_Place, float]]:
    """Return the mean validation accuracy of each technique at each place of the probe."""
    accuracies: dict[str, dict[_Place, list[float]]] = {}
    for run in runs:
        plan = run.plan
        layers = plan.stages_taken or ("end",)
        place = (plan.backbone, plan.resolution, layers[0])
        fine_tunes = any(phase.train != "head" for phase in plan.phases)
        if len(layers) == 1 and place in singles and fine_tunes:
            of_technique = accuracies.setdefault(plan.technique, {})
            accuracy = float(run.scores["val"]["accuracy"])
            of_technique.setdefault(place, []).append(accuracy)
    means: dict[str, dict[_Place, float]] = {}
    for technique, by_place in accuracies.items():
        means[technique] = {place: sum(some) / len(some) for place, some in by_place.items()}
    return means


def _can_be_ranked(pairs: Sequence[tuple[float, float]]) -> bool:
    """Whether there are enough pairs, and neither side is constant."""
    values = {value for value, _ in pairs}
    accuracies = {accuracy for _, accuracy in pairs}
    return len(pairs) >= _FEWEST and len(values) > 1 and len(accuracies) > 1


def _correlate(technique: str, score: str, pairs: Sequence[tuple[float, float]]) -> RankCorrelation:
    from scipy.stats import kendalltau, spearmanr

    values, accuracies = zip(*pairs, strict=True)
    tau = kendalltau(values, accuracies)
    rho = spearmanr(values, accuracies)
    return RankCorrelation(
        technique=technique,
        score=score,
        runs=len(pairs),
        kendall=float(tau.statistic),
        p=float(tau.pvalue),
        spearman=float(rho.statistic),
    )
