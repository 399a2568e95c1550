"""Where the seconds went."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


class Timer:
    """Seconds by name, and in all.

    Args:
        names: What is timed.
        clock: Gives seconds; `time.perf_counter` by default.
    """

    def __init__(
        self, names: Sequence[str], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.seconds = dict.fromkeys(names, 0.0)
        self.earlier = 0.0  # seconds of the phases that an earlier process finished
        self._clock = clock
        self._started = clock()

    @property
    def total(self) -> float:
        """All seconds so far, with those of an interrupted process up to its last whole phase."""
        return self.earlier + self._clock() - self._started

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to `name`."""
        started = self._clock()
        try:
            yield
        finally:
            self.seconds[name] += self._clock() - started

    def resume(self, seconds: dict[str, float], total: float) -> None:
        """Take over the seconds of an earlier process."""
        for name in self.seconds:
            self.seconds[name] = max(self.seconds[name], seconds[name])
        self.earlier = total

    def to_json(self) -> dict[str, float]:
        """Return the seconds, with their total."""
        rounded = {name: round(value, 3) for name, value in self.seconds.items()}
        return {**rounded, "total": round(self.total, 3)}
