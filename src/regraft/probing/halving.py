"""Successive halving (Jamieson and Talwalkar, 2016): few images for every cell first, more for those that promise most, within a budget of seconds.

Refuses clocks: what things cost and how much is left comes in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from regraft.errors import UserError

Key = TypeVar("Key", bound=Hashable)
_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}


def parse_duration(budget: str) -> float:
    """Return the seconds that "90", "90s", "5m" or "1.5h" mean; raises `UserError` for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h|)\s*", budget)
    if not found or float(found[1]) <= 0:
        raise UserError(
            f"--budget {budget!r} is no time. Expected seconds, or a number with s, m or h. Write for example 90s or 5m."
        )
    return float(found[1]) * _UNITS[found[2]]


def affordable_candidates(costs: Mapping[Key, float], left: float, least: int) -> list[Key]:
    """Return the cells, the cheapest first, that can all see the fewest useful images in their first round.

    Args:
        costs: Seconds that one training image costs in each cell.
        left: Seconds of the budget that are left.
        least: Fewest useful training images.

    Returns:
        None of the cells where not even the cheapest fits.
    """
    kept: list[Key] = []
    for cell in sorted(costs, key=costs.__getitem__):
        tried = [*kept, cell]
        if sum(costs[one] for one in tried) * least > left / count_rounds(len(tried)):
            break
        kept = tried
    return kept


def count_rounds(cells: int) -> int:
    """Return how many rounds there are until one cell is left, each keeping the better half."""
    return 1 + math.ceil(math.log2(max(1, cells)))


def images_per_round(costs: Sequence[float], left: float, cells: int, most: int) -> int:
    """Return the training images of the next round: its share of what is left, over what one image costs in all cells that are still in it."""
    return min(most, int(left / count_rounds(cells) / sum(costs)))


def better_half(reached: Mapping[Key, float]) -> list[Key]:
    """Return the better half of the cells, the best first; an odd one stays."""
    return sorted(reached, key=lambda cell: -reached[cell])[: math.ceil(len(reached) / 2)]
