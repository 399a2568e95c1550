"""What a run says of itself while it works: a word now and then, and how far it is.

Refuses to print; the front door does, and a run folder keeps a copy.
"""

from __future__ import annotations

from typing import Any


class ProgressReporter:
    """Hears everything and says nothing; subclass it to show or to keep what is said."""

    def say(self, text: str) -> None:
        """A sentence for people."""

    def step(self, what: str, done: int, total: int) -> None:
        """`done` of `total` of one piece of work, named by `what`; the piece is over when they are equal. A `total` of 0 is not known."""

    def row(self, values: dict[str, Any]) -> None:
        """A row of the history, as soon as an epoch, or an L2 value of a solved head, is done."""


SILENT = ProgressReporter()
