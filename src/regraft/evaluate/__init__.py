"""Numbers from logits: scores, metrics by class, calibration, and paired comparison of runs.

Loads no torch.
"""

from regraft.evaluate.calibration import (
    Bin,
    CoveragePoint,
    calibration_error,
    coverage,
    reliability,
    temperature,
)
from regraft.evaluate.measures import (
    Calibration,
    ClassMetrics,
    Measures,
    compute_measures,
    measures,
    uncertain,
)
from regraft.evaluate.paired import Difference, difference, front
from regraft.evaluate.scores import Scores, log_softmax, scores, wilson

__all__ = [
    "Bin",
    "Calibration",
    "ClassMetrics",
    "CoveragePoint",
    "Difference",
    "Measures",
    "Scores",
    "calibration_error",
    "compute_measures",
    "coverage",
    "difference",
    "front",
    "log_softmax",
    "measures",
    "reliability",
    "scores",
    "temperature",
    "uncertain",
    "wilson",
]
