"""From logits and targets to numbers with intervals: scores, differences of two runs, calibration.

Refuses to load torch.
"""

from regraft.evaluate.calibration import Bin, calibration_error, coverage, reliability, temperature
from regraft.evaluate.scores import Difference, Scores, difference, log_softmax, scores, wilson

__all__ = ["Bin", "Difference", "Scores", "calibration_error", "coverage", "difference", "log_softmax", "reliability", "scores", "temperature", "wilson"]
