"""The arithmetic of successive halving: what is affordable, how many rounds, how many images.

Needs no clock: costs and the time that is left are arguments.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from regraft.errors import UserError

Key = TypeVar("Key", bound=Hashable)
_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h|)\s*")


def parse_duration(budget: str) -> float:
    """Return the seconds that "90", "90s", "5m" or "1.5h" mean.

    Raises:
        UserError: For anything else, and for zero.
    """
    match = _DURATION.fullmatch(budget)
    if not match or float(match[1]) <= 0:
        raise UserError(
            f"--budget {budget!r} is no time. Expected seconds, or a number with s, m or h. "
            "Write for example 90s or 5m."
        )
    number, unit = match.groups()
    return float(number) * _UNITS[unit]


def affordable_candidates(costs: Mapping[Key, float], left: float, least: int) -> list[Key]:
    """Return the candidates, the cheapest first, that can all see `least` images in a first round.

    None of them where not even the cheapest can.

    Args:
        costs: Seconds that one training image costs in each candidate.
        left: Seconds of the budget that are left.
        least: Fewest useful training images.
    """
    cheapest_first = sorted(costs, key=costs.__getitem__)
    count = 0
    while count < len(cheapest_first):
        tried = cheapest_first[: count + 1]
        needed = sum(costs[candidate] for candidate in tried) * least
        if needed > left / count_rounds(len(tried)):
            break
        count += 1
    return cheapest_first[:count]


def count_rounds(candidates: int) -> int:
    """Return the number of rounds until one candidate is left, halving their number each time."""
    return 1 + math.ceil(math.log2(max(1, candidates)))


def images_per_round(costs: Sequence[float], left: float, candidates: int, most: int) -> int:
    """Return the number of training images of the next round, at most `most`.

    Args:
        costs: Seconds that one image costs in each candidate that is left.
        left: Seconds of the budget; the round gets its share of them.
        candidates: Their number.
        most: Number of all training images.
    """
    share = left / count_rounds(candidates)
    return min(most, int(share / sum(costs)))


def better_half(scores: Mapping[Key, float]) -> list[Key]:
    """Return the better half of the candidates, the best first; the larger half where odd."""
    best_first = sorted(scores, key=lambda candidate: -scores[candidate])
    return best_first[: math.ceil(len(scores) / 2)]
