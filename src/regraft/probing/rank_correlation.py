"""How well the probe's scores rank what fine-tuning then reached on the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from regraft.errors import UserError
from regraft.features.parts import PartImages
from regraft.probing.candidates import ProbeRow
from regraft.runs.folder import Run

RANKED_SCORES = ("accuracy", "knn", "logme", "h_score", "leep")
_FEWEST = 3  # candidates, so that there is something to rank

_LayerKey = tuple[str, int, str]  # backbone, resolution and layer


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
    singles: dict[_LayerKey, ProbeRow] = {}
    for row in rows:
        if row.kind == "single":
            singles[row.backbone, row.resolution, row.layers[0]] = row
    correlations = []
    for technique, reached in _mean_accuracies(runs, singles).items():
        for score in RANKED_SCORES:
            pairs = []
            for key, accuracy in reached.items():
                value = getattr(singles[key], score)
                if value is not None:
                    pairs.append((value, accuracy))
            if _can_be_ranked(pairs):
                correlations.append(_correlate(technique, score, pairs))
    return correlations


def select_comparable(runs: Sequence[Run], val: PartImages, weights: str) -> list[Run]:
    """Return the runs that began with the same weights and used the same validation images.

    Args:
        runs: Finished runs; those whose predictions are damaged are left out.
        val: The validation images.
        weights: "pretrained", "random" or a file.
    """
    own = dict(zip(val.dataset.keys.tolist(), val.labels.tolist(), strict=True))
    comparable = []
    for run in runs:
        if run.plan.weights == weights and _read_targets(run) == own:
            comparable.append(run)
    return comparable


def _read_targets(run: Run) -> dict[str, int] | None:
    """Return the class of each validation image of a run by key; None where it is damaged."""
    try:
        predictions = run.predictions("val")
    except UserError:
        return None
    return dict(zip(predictions["keys"].tolist(), predictions["targets"].tolist(), strict=True))


def _mean_accuracies(
    runs: Sequence[Run], singles: Mapping[_LayerKey, ProbeRow]
) -> dict[str, dict[_LayerKey, float]]:
    """Return the mean validation accuracy of each technique at each layer of the probe."""
    accuracies: dict[str, dict[_LayerKey, list[float]]] = {}
    for run in runs:
        plan = run.plan
        layers = plan.stages_taken or ("end",)
        key = (plan.backbone, plan.resolution, layers[0])
        fine_tunes = any(phase.train != "head" for phase in plan.phases)
        if len(layers) == 1 and key in singles and fine_tunes:
            of_technique = accuracies.setdefault(plan.technique, {})
            accuracy = float(run.scores["val"]["accuracy"])
            of_technique.setdefault(key, []).append(accuracy)
    means: dict[str, dict[_LayerKey, float]] = {}
    for technique, by_layer in accuracies.items():
        means[technique] = {key: sum(some) / len(some) for key, some in by_layer.items()}
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
