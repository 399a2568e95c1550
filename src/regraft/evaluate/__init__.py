"""From logits and targets to numbers with intervals: scores, measures by class, calibration, and the difference of two runs.

Refuses to load torch.
"""

from regraft.evaluate.calibration import Bin, calibration_error, coverage, reliability, temperature
from regraft.evaluate.measures import measures, uncertain
from regraft.evaluate.paired import Difference, difference, front
from regraft.evaluate.scores import Scores, log_softmax, scores, wilson

__all__ = [
    "Bin",
    "Difference",
    "Scores",
    "calibration_error",
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
