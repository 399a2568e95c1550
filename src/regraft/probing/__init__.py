"""Where to cut, at what resolution, which backbone: what features are worth before training.

Takes features of train and val, never of test.
"""

from regraft.probing.cells import (
    NEIGHBOURS,
    Cell,
    Row,
    Taken,
    neighbours_for,
    side_by_side,
    singles,
)
from regraft.probing.choose import Choice, front, recommended
from regraft.probing.curve import LearningCurve, learning_curve, measure_learning_curve
from regraft.probing.successive_halving import BudgetTooShortError, SuccessiveHalving, TimeBudget
from regraft.probing.trust import RankCorrelation, correlate_ranks, hit_rate

__all__ = [
    "NEIGHBOURS",
    "BudgetTooShortError",
    "Cell",
    "Choice",
    "LearningCurve",
    "RankCorrelation",
    "Row",
    "SuccessiveHalving",
    "Taken",
    "TimeBudget",
    "correlate_ranks",
    "front",
    "hit_rate",
    "learning_curve",
    "measure_learning_curve",
    "neighbours_for",
    "recommended",
    "side_by_side",
    "singles",
]
