"""What a disk refuses, as one sentence for the user."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from regraft.errors import DiskFull, UserError

# What to do where a disk is full.
ADVICE_RESUME = "Make room, and go on with the same command and --resume."
ADVICE_REPEAT = "Make room, and give the same command again."
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_WORDS = (  # of torch and safetensors, which have no error number
    "no space left",
    "os error 28",
    "disk quota exceeded",
    "pytorchstreamwriter failed writing",
    "unexpected pos",
)


@contextmanager
def disk_errors(path: Path, advice: str = ADVICE_RESUME, elsewhere: bool = True) -> Iterator[None]:
    """Turn what a disk refuses in the block into one sentence.

    Args:
        path: What is written to.
        advice: What to do where the disk is full.
        elsewhere: Whether the user may give another place with --out.

    Raises:
        NoRoom: When the disk is full.
        UserError: When `path`, or something in it, cannot be written.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise DiskFull(
                f"{path} cannot be written further: no space left on its disk. "
                f"What was finished is kept. {advice}"
            ) from error
        if isinstance(error, OSError) and _concerns(error, path):
            raise unwritable_error(path, error, elsewhere) from error
        raise


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an error, or one that caused it, says that a disk is full."""
    while error is not None:
        if getattr(error, "errno", None) in _FULL:
            return True
        text = str(error).lower()
        if any(words in text for words in _FULL_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def unwritable_error(path: Path, error: BaseException, elsewhere: bool = True) -> UserError:
    """Return the error for a path that cannot be written.

    Args:
        path: The path.
        error: What the system said.
        elsewhere: Whether the user may give another place with --out.
    """
    reason = getattr(error, "strerror", None) or error
    if elsewhere:
        advice = "Give another one with --out."
    else:
        advice = "Make it writable, and give the same command again."
    return UserError(
        f"{path} cannot be written ({reason}). Expected a writable place with room. {advice}"
    )


def check_writable(folder: Path, given: Path, flag: str = "--out") -> None:
    """Raise `UserError` before any work where a folder could not be written.

    Args:
        folder: The folder; of one that does not exist yet, the nearest existing parent counts.
        given: The path as the user wrote it.
        flag: The option with which another place is given.
    """
    candidates = (folder.absolute(), *folder.absolute().parents)
    nearest = next(path for path in candidates if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(
            f"{given} cannot be written: {nearest} allows no writing. "
            f"Expected a writable folder. Give one with {flag}."
        )


def _concerns(error: OSError, path: Path) -> bool:
    """Return whether an error is about a path or something in it."""
    if error.filename is None:
        return False
    return Path(os.fsdecode(error.filename)).absolute().is_relative_to(path.absolute())
