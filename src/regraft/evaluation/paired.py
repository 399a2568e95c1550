"""Runs on the same images: whether one is better, by how much, and which are worth their cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DRAWS = 10_000
_SIGNIFICANCE = 0.05
_Z_POWER = 0.8416212335729143  # a power of 80 %
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class PairedDifference:
    """How much more often A is right than B on the same images.

    Args:
        delta: Accuracy of A minus accuracy of B, -1 … 1.
        ci95: Its paired bootstrap interval.
        p: McNemar's exact p.
        n: Number of images.
        required_n: Images needed to detect such a difference with a power of 80 %; None where
            both are equally often right.
    """

    delta: float
    ci95: tuple[float, float]
    p: float
    n: int
    required_n: int | None

    @property
    def significant(self) -> bool:
        """Whether p is below 5 %."""
        return self.p < _SIGNIFICANCE

    def to_json(self) -> dict[str, Any]:
        """Return the difference as it is written to JSON."""
        return {
            "points": self.delta,
            "ci95": self.ci95,
            "p": self.p,
            "n": self.n,
            "needed": self.required_n,
            "real": self.significant,
        }

    def sentence(self, a: str, b: str) -> str:
        """Return the conclusion about the runs named `a` and `b` in one sentence."""
        if not self.significant:
            conclusion = f"No significant difference between {a} and {b} on {self.n:,} images"
            if self.required_n is None or self.required_n <= self.n:
                return f"{conclusion}."
            return f"{conclusion}; about {self.required_n:,} would be needed."
        better, worse = (a, b) if self.delta > 0 else (b, a)
        sign = 1 if self.delta > 0 else -1
        low, high = sorted(sign * end * 100 for end in self.ci95)
        return (
            f"{better} is better than {worse} by {abs(self.delta) * 100:.1f} points, "
            f"95 % interval {low:.1f} to {high:.1f}."
        )


def compare_paired(a: NDArray[np.bool_], b: NDArray[np.bool_], seed: int = 0) -> PairedDifference:
    """Return how A and B differ.

    p is McNemar's (1947), exact. The interval is the percentile bootstrap over images (Efron
    1979); drawing the counts of the three outcomes is the same as drawing images. The number of
    images needed is Connor's (1987) for a power of 80 % at 5 %.

    Args:
        a: Whether A was right on each image, `(n,)`.
        b: The same of B, for the same images.
        seed: Of the bootstrap.

    Raises:
        ValueError: When the arrays differ in length.
    """
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} and {b.shape} are not the same images")
    n = len(a)
    only_a = int((a & ~b).sum())
    only_b = int((~a & b).sum())
    delta = (only_a - only_b) / n
    return PairedDifference(
        delta=delta,
        ci95=_bootstrap_interval(only_a, only_b, n, seed),
        p=_mcnemar(only_a, only_b),
        n=n,
        required_n=_required_images(delta, (only_a + only_b) / n),
    )


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the numbers of the points on the Pareto front, the cheapest first.

    Args:
        points: Pairs of cost and accuracy. A point is on the front when no other has at least
            its accuracy at the same or a lower cost; the first of equal points stands for all.
    """

    def cheapest_then_best(number: int) -> tuple[float, float]:
        cost, accuracy = points[number]
        return cost, -accuracy

    on_front: list[int] = []
    best = -np.inf
    for number in sorted(range(len(points)), key=cheapest_then_best):
        accuracy = points[number][1]
        if not on_front or accuracy > best:
            on_front.append(number)
            best = accuracy
    return on_front


def _mcnemar(only_a: int, only_b: int) -> float:
    """Return McNemar's exact p from the images on which only one of both is right."""
    from scipy.stats import binomtest

    discordant = only_a + only_b
    return float(binomtest(only_a, discordant).pvalue) if discordant else 1.0


def _bootstrap_interval(only_a: int, only_b: int, n: int, seed: int) -> tuple[float, float]:
    shares = [only_a / n, only_b / n, 1 - (only_a + only_b) / n]
    counts = np.random.default_rng(seed).multinomial(n, shares, _DRAWS)
    deltas = (counts[:, 0] - counts[:, 1]) / n
    low, high = np.percentile(deltas, [2.5, 97.5])
    return float(low), float(high)


def _required_images(delta: float, discordant: float) -> int | None:
    """Return the images that McNemar's test needs to detect a difference in accuracy.

    Args:
        delta: The difference, -1 … 1.
        discordant: Share of images on which only one of both is right.
    """
    if delta == 0:
        return None
    variance = max(discordant - delta**2, 0.0)
    root = _Z95 * discordant**0.5 + _Z_POWER * variance**0.5
    return int(np.ceil((root / delta) ** 2))
