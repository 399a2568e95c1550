"""Where to cut, at what resolution, which backbone: what features that were computed once are worth, before anything is trained.

Refuses networks and the test part: features of train and val come in, rows, a recommendation and pictures go out.
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
from regraft.probing.curve import learning_curve
from regraft.probing.trust import hit_rate

__all__ = [
    "NEIGHBOURS",
    "Cell",
    "Choice",
    "Row",
    "Taken",
    "front",
    "hit_rate",
    "learning_curve",
    "neighbours_for",
    "recommended",
    "side_by_side",
    "singles",
]
