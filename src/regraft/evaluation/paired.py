"""Runs on the same images: whether one is better by more than chance, by how much, how many images it would take to tell, and which are worth their cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DRAWS = 10_000
_Z_POWER = 0.8416212335729143  # a power of 80 %
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class PairedDifference:
    """How much more often A is right than B on the same images.

    Args:
        points: Accuracy of A minus accuracy of B, -1 … 1.
        ci95: Its paired bootstrap interval.
        p: McNemar's exact p.
        n: Images.
        needed: About how many images would tell such a difference from chance four times in five; None where both are equally often right.
    """

    points: float
    ci95: tuple[float, float]
    p: float
    n: int
    needed: int | None

    @property
    def real(self) -> bool:
        """Whether chance alone would rarely (under 5 %) give such a difference."""
        return self.p < 0.05

    def plain(self) -> dict[str, Any]:
        """Return the difference as it is written to JSON."""
        return {**asdict(self), "real": self.real}

    def sentence(self, a: str, b: str) -> str:
        """Return what can be said of runs called `a` and `b`."""
        if not self.real:
            more = (
                f"; about {self.needed:,} would be needed"
                if self.needed is not None and self.needed > self.n
                else ""
            )
            return f"No difference between {a} and {b} can be told with {self.n:,} images{more}."
        better, worse, sign = (a, b, 1) if self.points > 0 else (b, a, -1)
        low, high = sorted(sign * end * 100 for end in self.ci95)
        return f"{better} is better than {worse} by {abs(self.points) * 100:.1f} points, 95 % interval {low:.1f} to {high:.1f}."


def compare_paired(a: NDArray[np.bool_], b: NDArray[np.bool_], seed: int = 0) -> PairedDifference:
    """Return how A and B differ, from whether each was right on each of the same images.

    p is McNemar's (1947), exact; the interval is the percentile bootstrap over images (Efron 1979), drawn from the counts of the four outcomes,
    which is the same as drawing images; the number needed is Connor's (1987) for a power of 80 % at 5 %.

    Raises:
        ValueError: When the arrays differ in length.
    """
    from scipy.stats import binomtest

    if a.shape != b.shape:
        raise ValueError(f"{a.shape} and {b.shape} are not the same images")
    only_a, only_b, n = int((a & ~b).sum()), int((~a & b).sum()), len(a)
    p = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    drawn = np.random.default_rng(seed).multinomial(
        n, [only_a / n, only_b / n, 1 - (only_a + only_b) / n], _DRAWS
    )
    low, high = np.percentile((drawn[:, 0] - drawn[:, 1]) / n, [2.5, 97.5])
    return PairedDifference(
        (only_a - only_b) / n,
        (float(low), float(high)),
        p,
        n,
        _needed((only_a - only_b) / n, (only_a + only_b) / n),
    )


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return which of some (cost, accuracy) no other beats in accuracy at the same or a lower cost, the cheapest first (Pareto)."""
    kept: list[int] = []
    for number in sorted(
        range(len(points)), key=lambda number: (points[number][0], -points[number][1])
    ):
        if not kept or points[number][1] > points[kept[-1]][1]:
            kept.append(number)
    return kept


def _needed(points: float, discordant: float) -> int | None:
    """Return the images that McNemar's test needs to find a difference in accuracy at a share of images on which only one is right."""
    if points == 0:
        return None
    root = _Z95 * discordant**0.5 + _Z_POWER * max(discordant - points**2, 0.0) ** 0.5
    return int(np.ceil((root / points) ** 2))
