"""Where the seconds went, and how durations are written for people."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

_MINUTE = 60
_HOUR = 3600
_EXACT = 10  # below so many seconds, a tenth counts; below so many minutes, a second


def format_duration(seconds: float) -> str:
    """Return a duration for people: "0.4 s", "12 s", "3 min 20 s", "58 min", "1 h 3 min"."""
    if round(seconds, 1) < _EXACT:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _EXACT * _MINUTE:
        return _join(whole // _MINUTE, "min", whole % _MINUTE, "s")
    minutes = round(seconds / _MINUTE)
    if minutes < _HOUR // _MINUTE:
        return f"{minutes} min"
    return _join(minutes // 60, "h", minutes % 60, "min")


def _join(large: int, unit: str, small: int, small_unit: str) -> str:
    if small == 0:
        return f"{large:,} {unit}"
    return f"{large:,} {unit} {small} {small_unit}"


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
