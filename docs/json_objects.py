"""Which objects `--json` prints, and how their keys differ from the attributes of the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import NamedTuple


class Written(NamedTuple):
    """A key that no attribute of the same type stands for.

    Args:
        type: What it holds, in words.
        meaning: What it means; empty where the attribute says it.
        attribute: The attribute that says what it means.
    """

    type: str
    meaning: str = ""
    attribute: str = ""


@dataclass(frozen=True)
class Table:
    """How an object is written.

    Args:
        path: `module:Class`, whose docstring and annotations say types and meanings.
        renamed: Keys that are called otherwise than their attribute: key to attribute.
        written: Keys whose type or meaning the class does not say.
        more: Properties that are keys, too.
        without: Attributes that are not written.
    """

    path: str
    renamed: Mapping[str, str] = field(default_factory=dict)
    written: Mapping[str, Written] = field(default_factory=dict)
    more: Sequence[str] = ()
    without: Sequence[str] = ()

    @property
    def kind(self) -> type:
        """The class."""
        module, _, name = self.path.partition(":")
        found: type = getattr(import_module(module), name)
        return found


_RUN = {
    "path": Written("text", "Folder of the run."),
    "warnings": Written("list of text", "What must be read before any number."),
}
_IMAGES = {
    "keys": Written("list of text", "Key of each image."),
    "parts": Written("list of text", "Part of each image."),
    "labels": Written("list of text", "Class of each image."),
    "rows": Written("list of whole number", "Row of each image in the dataset."),
}
_PAIR = {
    "points": Written("number", attribute="delta"),
    "needed": Written("whole number or null", attribute="required_n"),
    "real": Written("true or false", attribute="significant"),
}

# The object that each verb prints.
VERBS = {
    "fit": "Fit",
    "compare": "Leaderboard",
    "probe": "Probe",
    "plan": "PlanForecast",
    "check": "Findings",
    "evaluate": "Evaluation",
    "report": "Report",
    "predict": "PredictionSummary",
    "export": "ExportReport",
    "embed": "Embedding",
}

TABLES = {
    "Fit": Table("regraft.runs.scores:RunScores", written=_RUN, without=["written"]),
    "Leaderboard": Table(
        "regraft.reporting.leaderboard:Leaderboard",
        written={
            "rows": Written(
                "list of [LeaderboardRow](#leaderboardrow), then of [FailedRow](#failedrow)",
                attribute="rows",
            )
        },
        more=["selected", "verdict"],
        without=["failed"],
    ),
    "Probe": Table(
        "regraft.probing.result:ProbeResult",
        renamed={
            "places": "rows",
            "hit_rate": "correlations",
        },
        written={
            "images": Written("object of whole number", "Number of images by part."),
            "asked": Written("object", attribute="data_options"),
            "front": Written(
                "list of text",
                "Names of the rows on the Pareto front of accuracy "
                "against cost, the cheapest first.",
            ),
            "path": Written("text", "Folder of the probe."),
        },
        more=["verdict"],
        without=["last", "data_options"],
    ),
    "PlanForecast": Table(
        "regraft.commands.plan:PlanForecast",
        written={"plan_digest": Written("text", "Digest of the plan.")},
        more=["seconds"],
    ),
    "Findings": Table(
        "regraft.checks.findings:Findings",
        written={
            "classes": Written("whole number", "Number of classes."),
            "backbone": Written("text", "The network whose features were used."),
            "resolution": Written("whole number", "Side of its images in pixels."),
            "weights": Written("text", "Its weights."),
            "counts": Written("object of whole number", "Number of findings of each kind."),
            "across": Written(
                "object of whole number",
                "Exact and near duplicates that lie in more than one part.",
            ),
        },
        more=["verdict"],
        without=["network", "suspect_count"],
    ),
    "Evaluation": Table(
        "regraft.commands.evaluate:Evaluation",
        renamed={"measures": "metrics"},
        written={
            "test": Written("[Scores](#scores)", "Scores on the test part, with `--split test`."),
            "all": Written("[Scores](#scores)", "Scores on DATA, with `--split all`."),
            "opened": Written("list of text", "When the test part was opened, each time."),
            "warnings": _RUN["warnings"],
            "every other key": Written("as in [fit](#fit)", "What `scores.json` of the run says."),
        },
        without=["run", "scores"],
    ),
    "Report": Table(
        "regraft.reporting.evidence:Evidence",
        written={
            "split_digest": Written("text", "Digest of the split."),
            "warnings": _RUN["warnings"],
            "runs": Written("object of [RunEvidence](#runevidence)", "Each run, by its name."),
            "path": Written("text", "The page."),
        },
        more=["verdict"],
    ),
    "PredictionSummary": Table("regraft.commands.predict:PredictionSummary"),
    "ExportReport": Table(
        "regraft.exporting.export:ExportReport",
        renamed={"to": "kind", "out": "path"},
        without=["images", "arithmetic"],
    ),
    "Embedding": Table(
        "regraft.commands.embed:Embedding",
        written={
            "images": Written("whole number", "Number of images."),
            "features": Written("whole number", "Features of each image."),
            "backbone": Written("text", "timm name of the network."),
            "resolution": Written("whole number", "Side in pixels."),
            "until": Written("text or list of text", "Where features were taken."),
        },
        without=["keys", "labels", "parts", "plan", "skipped"],
    ),
    "Scores": Table("regraft.evaluation.scores:Scores"),
    "Origin": Table("regraft.runs.scores:Origin"),
    "Seconds": Table("regraft.runs.scores:Seconds"),
    "ParameterCounts": Table("regraft.runs.scores:ParameterCounts"),
    "PhaseExecution": Table("regraft.runs.scores:PhaseExecution"),
    "CacheUse": Table("regraft.runs.scores:CacheUse"),
    "LeaderboardRow": Table(
        "regraft.reporting.leaderboard:LeaderboardRow",
        written={"every other key": Written("as in [fit](#fit)", attribute="scores")},
        without=["scores"],
    ),
    "FailedRow": Table("regraft.reporting.leaderboard:FailedRow"),
    "SeedSummary": Table("regraft.reporting.leaderboard:SeedSummary"),
    "PairedDifference": Table(
        "regraft.evaluation.paired:PairedDifference",
        written=_PAIR,
        without=["delta", "required_n"],
    ),
    "ProbeRow": Table(
        "regraft.probing.candidates:ProbeRow",
        renamed={"places": "layers"},
        more=["name"],
        without=["correct"],
    ),
    "Recommendation": Table(
        "regraft.probing.recommend:Recommendation",
        written={
            "plan": Written("text", attribute="plan_file"),
            "every other key": Written("as in [ProbeRow](#proberow)", "The recommended row."),
        },
        without=["row"],
    ),
    "LearningCurve": Table(
        "regraft.probing.learning_curve:LearningCurve",
        written={"of": Written("text", "Name of the row that it is of.")},
    ),
    "CurvePoint": Table("regraft.probing.learning_curve:CurvePoint"),
    "Forecast": Table("regraft.probing.learning_curve:Forecast"),
    "RankCorrelation": Table("regraft.probing.rank_correlation:RankCorrelation"),
    "Skipped": Table(
        "regraft.probing.grid:Skipped",
        written={
            "name": Written("text", "A backbone, or a backbone at a resolution."),
            "error": Written("text", "Why it cannot be probed."),
        },
    ),
    "Dropped": Table(
        "regraft.probing.successive_halving:Dropped",
        written={
            "name": Written("text", "A backbone at a resolution."),
            "why": Written("text", "Why it was judged no more."),
        },
        without=["candidate"],
    ),
    "PhaseForecast": Table("regraft.commands.plan:PhaseForecast"),
    "DuplicateGroup": Table(
        "regraft.checks.findings:DuplicateGroup", written=_IMAGES, without=["images"]
    ),
    "NearPair": Table(
        "regraft.checks.findings:NearPair",
        written={
            **_IMAGES,
            "cosine": Written("number", "Cosine of their features."),
            "by": Written("text", '"pixels", "mirrored" or "features": how they are alike.'),
        },
        without=["images"],
    ),
    "Suspect": Table(
        "regraft.checks.findings:Suspect",
        renamed={
            "said": "predicted",
            "chance_label": "label_probability",
            "chance_said": "predicted_probability",
        },
        written={
            "row": Written("whole number", "Row of the image in the dataset."),
            "key": Written("text", "Key of the image."),
            "part": Written("text", "Its part."),
            "label": Written("text", "Its label."),
        },
        without=["image"],
    ),
    "OddFile": Table(
        "regraft.checks.findings:OddFile",
        written={
            "row": Written("whole number", "Row of the image in the dataset."),
            "key": Written("text", "Key of the image."),
            "why": Written("text", "Why it is odd."),
        },
        without=["image"],
    ),
    "ClassBalance": Table(
        "regraft.checks.outliers:ClassBalance",
        written={"classes": Written("list of object", "`name` and the images in each part.")},
        without=["counts"],
    ),
    "Metrics": Table(
        "regraft.evaluation.metrics:Metrics",
        written={"every other key": Written("as in [Scores](#scores)", attribute="scores")},
        without=["scores"],
    ),
    "ClassMetrics": Table(
        "regraft.evaluation.metrics:ClassMetrics",
        written={
            "name": Written("text", "The class."),
            "n": Written("whole number", "Number of its images."),
            "precision": Written("number", "Precision; 0 where undefined."),
            "recall": Written("number", "Recall; 0 where undefined."),
            "f1": Written("number", "F1; 0 where undefined."),
        },
    ),
    "Calibration": Table(
        "regraft.evaluation.metrics:Calibration",
        written={
            "error": Written("number", "Expected calibration error."),
            "bins": Written("list of [ReliabilityBin](#reliabilitybin)", "The bins behind it."),
            "temperature": Written("number", "The temperature fitted on val, on other parts."),
            "error_after": Written("number", "The error of the logits divided by it."),
            "loss_after": Written("number", "Their log-loss."),
        },
        without=["rescaled"],
    ),
    "ReliabilityBin": Table(
        "regraft.evaluation.calibration:ReliabilityBin",
        written={
            "low": Written("number", "Lower end of the confidence."),
            "high": Written("number", "Upper end, which belongs to the bin."),
            "n": Written("whole number", "Number of images."),
            "confidence": Written("number", "Their mean confidence."),
            "accuracy": Written("number", "Their accuracy."),
        },
    ),
    "CoveragePoint": Table(
        "regraft.evaluation.calibration:CoveragePoint",
        written={
            "coverage": Written("number", "Share of the images, the most confident ones."),
            "accuracy": Written("number", "Their accuracy."),
            "confidence": Written("number", "The lowest confidence among them."),
        },
    ),
    "RunEvidence": Table("regraft.reporting.evidence:RunEvidence"),
    "RunPair": Table(
        "regraft.reporting.evidence:PairedDifference",
        written={
            "every other key": Written(
                "as in [PairedDifference](#paireddifference)", attribute="difference"
            )
        },
        without=["difference"],
    ),
    "Parity": Table(
        "regraft.exporting.parity:Parity",
        written={
            "images": Written("text", 'What both were asked: "validation" or "made-up" images.'),
            "arithmetic": Written("text", "The run's own arithmetic, in `as_fitted`."),
        },
    ),
    "AccuracyDrop": Table(
        "regraft.exporting.onnx_int8:AccuracyDrop",
        renamed={"float32": "before", "int8": "after"},
        written={
            "drop": Written("number", "Difference of the accuracies."),
            "n": Written("whole number", "Number of validation images."),
        },
    ),
}
