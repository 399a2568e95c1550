"""Folders and files that one process at a time writes to."""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.errors import UserError
from regraft.system.disk import ADVICE_RESUME, disk_errors, unwritable_error

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK_NAME = (
    ".lock"  # locked by whoever writes into a folder; the system frees it when a process ends
)
HOLDER_NAME = f"{LOCK_NAME}.json"  # says who that is
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_RETRY = 0.2  # seconds; a lock that is removed while it is being acquired is tried again
_LONGEST_COMMAND = 300  # characters


@contextmanager
def lock_path(
    folder: Path,
    file: str = "",
    wait: float = 0.0,
    advice: str = ADVICE_RESUME,
    elsewhere: bool = True,
) -> Iterator[None]:
    """Lock a folder, or one file in it, while the block runs; creates the folder.

    The lock is the operating system's, so a killed process holds none. Where the file system has
    no locks, the block runs without one.

    Args:
        folder: The folder.
        file: Name of the file in it; the whole folder without one.
        wait: Seconds to wait for another process.
        advice: What to do where the disk is full.
        elsewhere: Whether the user may give another place with --out.

    Raises:
        UserError: When another process has the lock (says which), or the folder cannot be made.
    """
    holder = folder / (f".{file}{HOLDER_NAME}" if file else HOLDER_NAME)
    path = holder.with_suffix("")
    is_new = not folder.exists()
    lock = _acquire(folder, file, holder, wait, elsewhere)
    inode = _inode(path)
    try:
        with suppress(OSError):  # it only explains the lock to others
            holder.write_text(_describe_holder(datetime.now(UTC)))
        with disk_errors(folder / file, advice, elsewhere):
            yield
    finally:
        # A different inode means that somebody removed the folder and another process locked it.
        if _inode(path) == inode:
            _remove(holder)
            _remove(path)  # who waits for it notices, and tries again
        lock.release()
        if is_new:
            with suppress(OSError):  # a folder that stayed empty is removed
                folder.rmdir()


def _acquire(folder: Path, file: str, holder: Path, wait: float, elsewhere: bool) -> BaseFileLock:
    """Return the acquired lock, or one that is not acquired where the system has no locks."""
    import filelock

    timeout = max(wait, _RETRY)
    lock = filelock.FileLock(holder.with_suffix(""), timeout=timeout, fallback_to_soft=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        kind = "file" if file else "folder"
        advice = "Wait until that is done"
        if elsewhere:
            advice += ", or give another --out"
        raise UserError(
            f"{folder / file} is being written by {_read_holder(holder)}. "
            f"Expected a {kind} that no other process writes to. {advice}."
        ) from None
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", errno.ENOSYS) not in _NO_LOCKS:
            raise unwritable_error(folder, error, elsewhere) from error
    return lock


def _describe_holder(now: datetime) -> str:
    """Return JSON that tells other processes who has the lock."""
    command = shlex.join([Path(sys.argv[0] or "python").name, *sys.argv[1:]])
    description = {
        "pid": os.getpid(),
        "command": command[:_LONGEST_COMMAND],
        "since": f"{now:%Y-%m-%d %H:%M:%S} UTC",
    }
    return json.dumps(description)


def _read_holder(path: Path) -> str:
    try:
        holder: dict[str, Any] = json.loads(path.read_text())
        return f"process {holder['pid']} ({holder['command']}, since {holder['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None
