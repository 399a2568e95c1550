"""What a run says of itself while it works: a word now and then, and how far it is.

Refuses to print; the front door does, and a run folder keeps a copy.
"""

from __future__ import annotations


class Watcher:
    """Hears everything and says nothing; subclass it to show or to keep what is said."""

    def say(self, text: str) -> None:
        """A sentence for people."""

    def step(self, what: str, done: int, total: int) -> None:
        """`done` of `total` of one piece of work, named by `what`; the piece is over when they are equal. A `total` of 0 is not known."""


SILENT = Watcher()
