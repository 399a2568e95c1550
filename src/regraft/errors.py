"""Errors that a user can mend, and the sentences they are made of."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# Control characters except the newline, marks that change the direction of text, and halves of
# surrogate pairs, which no encoding can write.
_UNSAFE = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_LONGEST = 200  # characters of one item in a list
_MOST_NAMES = 12  # names that a message lists


class UserError(Exception):
    """A mistake that the user can mend; says what was given, what was expected and what to do."""


class DiskFull(UserError):
    """A disk is full: whatever is written next would fail too, so a comparison stops."""


def unknown_name_error(kind: str, given: str, known: Iterable[str], more: str = "") -> UserError:
    """Return the error for a name that does not exist, with the nearest names as suggestions.

    Args:
        kind: What the name should have named, in the singular ("technique").
        given: The name as the user wrote it.
        known: Every name that exists.
        more: A sentence instead of the known names, for instance with the way to see them all.
    """
    names = sorted(known)
    matches = close_matches(given, names)
    hint = ""
    if matches:
        suggestions = " or ".join(map(repr, matches))
        hint = f" Did you mean {suggestions}?"
    shown = ", ".join(names[:_MOST_NAMES])
    if len(names) > _MOST_NAMES:
        shown += ", …"
    tail = more or f"Known: {shown or 'none'}."
    return UserError(f"No {kind} is called {given!r}.{hint} {tail}")


def close_matches(given: str, names: Iterable[str], n: int = 2) -> list[str]:
    """Return up to `n` of `names` that look like `given`, the best first."""
    names = list(names)
    matches = difflib.get_close_matches(given, names, n=n, cutoff=0.6)
    if matches or not given:
        return matches
    return [name for name in names if name.startswith(given)][:n]


def escape_control(text: str) -> str:
    """Return text that does nothing to a terminal.

    Control characters and marks that change the direction of text are spelled out, as `\\x1b`.
    """
    return _UNSAFE.sub(_spell_out, text)


def _spell_out(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def join_truncated(items: Iterable[object], limit: int = 5) -> str:
    """Return the first few items, separated by commas, and how many more there are."""
    texts = [_shorten(str(item)) for item in items]
    shown = ", ".join(texts[:limit])
    rest = len(texts) - limit
    if rest > 0:
        return f"{shown} and {rest:,} more"
    return shown


def _shorten(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    return text[:_LONGEST] + "…"
