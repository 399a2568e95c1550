"""The sentences a user may see, and the base class that the front door catches.

Refuses everything else: a bug of ours is an ordinary exception and keeps its traceback.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# control characters but the end of a line, marks that turn the direction of text, and halves of characters that no encoding knows
_UNSEEN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


_LONGEST = 200  # characters of one thing in a list


class UserError(Exception):
    """A mistake that the user can mend; its text says what was given, what was expected, what to do."""


class DiskFull(UserError):
    """A disk is full: whatever comes next would meet the same, so a comparison stops and does not go on to its next row."""


def unknown_name_error(kind: str, given: str, known: Iterable[str], more: str = "") -> UserError:
    """Return the error for a name that does not exist, with the nearest names offered.

    Args:
        kind: What the name should have named, in the singular ("technique").
        given: The name as the user wrote it.
        known: Every name that exists.
        more: A sentence to add, with the way to see all names.
    """
    names = sorted(known)
    near = close_matches(given, names)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    listed = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    tail = more or f"Known: {listed or 'none'}."
    return UserError(f"No {kind} is called {given!r}.{hint} {tail}")


def close_matches(given: str, names: Iterable[str], n: int = 2) -> list[str]:
    """Return up to `n` of `names` that look like `given`, the best first."""
    names = list(names)
    near = difflib.get_close_matches(given, names, n=n, cutoff=0.6)
    return near or [name for name in names if given and name.startswith(given)][:n]


def escape_control(text: str) -> str:
    """Return text that does nothing to a terminal: control characters and marks that turn the direction of text are spelled out."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def join_truncated(things: Iterable[object], limit: int = 5) -> str:
    """Return the first few things as a comma-separated line, with a count of the rest."""
    texts = [text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…" for text in map(str, things)]
    rest = len(texts) - limit
    return ", ".join(texts[:limit]) + (f" and {rest:,} more" if rest > 0 else "")
