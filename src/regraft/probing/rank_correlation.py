"""The probe's own hit rate: how its scores rank what was then really fine-tuned on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.probing.candidates import ProbeRow
from regraft.runs.folder import Run

RANKED_SCORES = ("accuracy", "knn", "logme", "h_score", "leep")
_FEWEST = 3  # cells, so that there is something to rank


def hit_rate(rows: Sequence[ProbeRow], runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return for each technique and score how well the score ranks the validation accuracies that were reached.

    Args:
        rows: Of the probe.
        runs: Finished runs on the same validation images; those that train the head only are left out, several seeds are averaged.

    Returns:
        `technique`, `score`, `runs` (how many cells were ranked), `kendall` with its p, and `spearman`; nothing for techniques that ran in fewer than
        three cells of the probe.
    """
    from scipy.stats import kendalltau, spearmanr

    at = {
        (row.backbone, row.resolution, row.places[0]): row for row in rows if row.kind == "single"
    }
    reached: dict[str, dict[tuple[str, int, str], list[float]]] = {}
    for one in runs:
        taken = one.plan.stages_taken or ("end",)
        cell = (one.plan.backbone, one.plan.resolution, taken[0])
        if (
            len(taken) == 1
            and cell in at
            and any(phase.train != "head" for phase in one.plan.phases)
        ):
            reached.setdefault(one.plan.technique, {}).setdefault(cell, []).append(
                float(one.scores["val"]["accuracy"])
            )
    found = []
    for technique, cells in reached.items():
        for score in RANKED_SCORES:
            pairs = [
                (getattr(at[cell], score), sum(values) / len(values))
                for cell, values in cells.items()
                if getattr(at[cell], score) is not None
            ]
            said, came = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            if len(pairs) >= _FEWEST and len(set(said)) > 1 and len(set(came)) > 1:
                tau = kendalltau(said, came)
                row = {
                    "technique": technique,
                    "score": score,
                    "runs": len(pairs),
                    "kendall": float(tau.statistic),
                    "p": float(tau.pvalue),
                }
                found.append(row | {"spearman": float(spearmanr(said, came).statistic)})
    return found
