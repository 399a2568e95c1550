"""How a long piece of work reports to whoever started it: messages, progress and metrics."""

from __future__ import annotations

from collections.abc import Mapping


class ProgressReporter:
    """Receives what long work reports and ignores it; a subclass shows or stores it."""

    def log(self, text: str) -> None:
        """Receive a sentence for people."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Receive how far one piece of work is.

        Args:
            what: The name of the piece of work.
            done: Steps that are done; the work is over when they equal `total`.
            total: All its steps, or 0 where that is not known.
        """

    def metrics(self, values: Mapping[str, float]) -> None:
        """Receive a row of the history, once an epoch or an L2 value of a linear probe is done."""


SILENT = ProgressReporter()
