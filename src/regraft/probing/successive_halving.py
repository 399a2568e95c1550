"""Successive halving within a budget of seconds: the rounds, and what is dropped after each.

Few images for every candidate first, more for the better half (Jamieson and Talwalkar, 2016).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from regraft.probing import halving
from regraft.probing.halving import affordable_candidates, images_per_round

Key = TypeVar("Key", bound=Hashable)
ROUNDS_SHARE = 0.7  # of the budget; the rest is for what follows the rounds


@dataclass(frozen=True)
class TimeBudget:
    """Seconds that may pass since `began`, by a clock.

    Args:
        seconds: How many.
        began: What the clock showed at the start.
        clock: Returns the time in seconds.
    """

    seconds: float
    began: float
    clock: Callable[[], float] = time.perf_counter

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.began

    @property
    def left(self) -> float:
        """Seconds that are left for rounds."""
        return self.seconds * ROUNDS_SHARE - self.spent


class BudgetTooShortError(Exception):
    """Not even the cheapest candidate can see the fewest useful images.

    Args:
        candidate: The cheapest one.
        images: The fewest useful number of training images.
        spent: Seconds that had passed.
        needed: A budget, in whole seconds, that is long enough.
    """

    def __init__(self, candidate: Hashable, images: int, spent: float, needed: int) -> None:
        super().__init__(f"{candidate!r} with {images} images needs {needed} s")
        self.candidate = candidate
        self.images = images
        self.spent = spent
        self.needed = needed


@dataclass(frozen=True)
class Round(Generic[Key]):
    """Candidates that are judged on a number of training images."""

    candidates: tuple[Key, ...]
    images: int


@dataclass(frozen=True)
class Dropped(Generic[Key]):
    """A candidate that is judged no more, and why."""

    candidate: Key
    why: str


@dataclass(frozen=True)
class _Result:
    score: float
    seconds: float


class SuccessiveHalving(Generic[Key]):
    """Which candidates are judged on how many images, until a budget is used.

    ::

        halving = SuccessiveHalving(costs, budget, images=50_000, least=100)
        for round in halving.rounds():
            for candidate in round.candidates:
                score, seconds = judge(candidate, round.images)
                halving.record(candidate, score, seconds)
        halving.candidates, halving.dropped

    The first round is a trial: the cheapest candidate alone on the fewest images. It measures
    what judging costs beside the given costs.

    Args:
        costs: Estimated seconds that one training image costs in each candidate.
        budget: The time that there is.
        images: Number of all training images.
        least: Fewest training images of a useful round.
        on_drop: Is told what is dropped, at once.
    """

    def __init__(
        self,
        costs: Mapping[Key, float],
        budget: TimeBudget,
        images: int,
        least: int,
        *,
        on_drop: Callable[[Dropped[Key]], None] = lambda dropped: None,
    ) -> None:
        self.candidates = list(costs)  # those that are still in it, in their given order
        self.dropped: list[Dropped[Key]] = []
        self._costs = dict(costs)
        self._cheapest = min(costs, key=costs.__getitem__)
        self._budget = budget
        self._images = images
        self._least = least
        self._on_drop = on_drop
        self._results: dict[Key, _Result] = {}

    def rounds(self) -> Iterator[Round[Key]]:
        """Yield the rounds; before the next one, `record` each candidate of the last.

        Raises:
            BudgetTooShortError: When there is no time for the first useful round.
        """
        yield from self._trial()
        self._drop_unaffordable()
        last_images = 0
        while True:
            images = self._next_images()
            if images <= last_images:
                return
            images = max(images, self._least)
            last_images = images
            yield self._start(self.candidates, images)
            for candidate in self.candidates:
                self._costs[candidate] = self._results[candidate].seconds / images
            if images == self._images or len(self.candidates) == 1:
                return
            self._drop_worse_half(images)

    def record(self, candidate: Key, score: float, seconds: float) -> None:
        """Take the result of a candidate in the current round.

        Args:
            candidate: Which one.
            score: The higher, the better.
            seconds: That judging it took.
        """
        self._results[candidate] = _Result(score, seconds)

    def _start(self, candidates: Sequence[Key], images: int) -> Round[Key]:
        self._results = {}
        return Round(tuple(candidates), images)

    def _trial(self) -> Iterator[Round[Key]]:
        cost = self._costs[self._cheapest]
        if cost * self._least >= self._budget.left:
            return
        yield self._start([self._cheapest], self._least)
        measured = self._results[self._cheapest].seconds / self._least
        judging = max(0.0, measured - cost)
        for candidate in self._costs:
            self._costs[candidate] += judging

    def _drop_unaffordable(self) -> None:
        affordable = affordable_candidates(self._costs, self._budget.left, self._least)
        if not affordable:
            raise self._too_short()
        why = "the budget has no room for it, even with the fewest images"
        for candidate in self.candidates:
            if candidate not in affordable:
                self._drop(candidate, why)
        self.candidates = [key for key in self.candidates if key in affordable]

    def _too_short(self) -> BudgetTooShortError:
        seconds = self._costs[self._cheapest] * self._least
        spent = self._budget.spent
        needed = math.ceil((spent + seconds) / ROUNDS_SHARE + 1)
        return BudgetTooShortError(self._cheapest, self._least, spent, needed)

    def _next_images(self) -> int:
        costs = [self._costs[candidate] for candidate in self.candidates]
        return images_per_round(costs, self._budget.left, len(costs), self._images)

    def _drop_worse_half(self, images: int) -> None:
        scores = {candidate: self._results[candidate].score for candidate in self.candidates}
        better_half = halving.better_half(scores)
        bar = scores[better_half[-1]]
        for candidate in self.candidates:
            if candidate not in better_half:
                why = (
                    f"after {images:,} training images its best layer reached "
                    f"{scores[candidate]:.3f}, the last one kept {bar:.3f}"
                )
                self._drop(candidate, why)
        self.candidates = [key for key in self.candidates if key in better_half]

    def _drop(self, candidate: Key, why: str) -> None:
        dropped = Dropped(candidate, why)
        self.dropped.append(dropped)
        self._on_drop(dropped)
