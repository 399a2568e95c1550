"""The error that lists every fault of a plan at once."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.errors import UserError

_MAX_LISTED = 20  # faults that are spelled out
_MAX_TEXT = 200  # characters of a value that is quoted


def plan_error(subject: str, problem: str, faults: Sequence[str]) -> UserError:
    """Return the error that names all faults of a plan; it lists at most 20 and counts the rest.

    Args:
        subject: What is faulty, as the sentence begins ("The plan", the path of a file).
        problem: What is wrong with it ("is not valid").
        faults: One line for each fault, with the place in the plan first.
    """
    if len(faults) == 1:
        return UserError(f"{subject} {problem}: {faults[0]}. Correct it and try again.")
    lines = [f"\n  - {fault}" for fault in faults[:_MAX_LISTED]]
    if len(faults) > _MAX_LISTED:
        lines.append(f"\n  - and {len(faults) - _MAX_LISTED:,} more")
    listing = "".join(lines)
    return UserError(
        f"{subject} {problem}, {len(faults)} faults:{listing}\nCorrect them and try again."
    )


def shorten(value: object) -> str:
    """Return a value as text of at most 200 characters."""
    text = str(value)
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"
