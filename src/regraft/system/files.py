"""Files that appear whole or not at all, and scratch folders that are removed when left over."""

from __future__ import annotations

import glob
import hashlib
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from regraft.system.locks import HOLDER_NAME, LOCK_NAME, lock_path

_STALE = 86_400  # seconds without a change, after which another machine's scratch is left over


@contextmanager
def atomic_write(path: Path, suffix: str = "") -> Iterator[Path]:
    """Give a name to write to; the file takes its own name when the block ends well.

    Otherwise it disappears. What a killed process of this machine left of the same file is
    removed.

    Args:
        path: The file.
        suffix: What the other name must end in, for writers that would add it.
    """
    machine = hashlib.blake2b(socket.gethostname().encode(), digest_size=3).hexdigest()
    scratch = path.with_name(f".{path.name}.{machine}-{os.getpid()}.part{suffix}")
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.{machine}-*.part{suffix}"):
        owner = leftover.name.removesuffix(f".part{suffix}").rpartition("-")[2]
        if owner.isdecimal() and not _is_running(int(owner)):
            leftover.unlink(missing_ok=True)
    try:
        yield scratch
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def remove_partials(folder: Path) -> None:
    """Remove the files that a killed process had not finished; only for who holds the folder."""
    for pattern in (".*.part*", "*.part", ".tmp??????"):  # the last are safetensors'
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def is_internal(path: Path) -> bool:
    """Return whether a file is no content: a lock, or something unfinished."""
    if not path.name.startswith("."):
        return False
    return path.name.endswith((LOCK_NAME, HOLDER_NAME)) or ".part" in path.name


def clear_dir(folder: Path) -> None:
    """Remove everything in a folder but its lock.

    Raises:
        UserError: When another process writes to something in it; nothing is removed then.
    """
    for lock in sorted(folder.rglob(f".*{LOCK_NAME}")) + sorted(folder.rglob(f"?*/{LOCK_NAME}")):
        file = lock.name.removesuffix(LOCK_NAME).removeprefix(".")
        with lock_path(lock.parent, file):
            pass
    for path in folder.iterdir():
        if path.name in (LOCK_NAME, HOLDER_NAME):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def expand_user(path: str | Path) -> Path:
    """Return a path with `~` as the home it stands for; as it is where it stands for none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def make_scratch_dir(beside: Path) -> Path:
    """Return a new folder beside a path, named after it, this machine and this process.

    By that name `abandoned` tells when nobody fills it any more.
    """
    owner = f"{_host()}-{os.getpid()}"
    folder = beside.with_name(f".scratch-{beside.name}-{owner}-{secrets.token_hex(4)}")
    folder.mkdir(parents=True)
    return folder


def stale_dirs(folder: Path, now: Callable[[], float] = time.time) -> list[Path]:
    """Return the scratch folders in a folder whose process ended without removing them.

    Those of other machines count as left over after a day without a change.

    Args:
        folder: The folder.
        now: Returns the seconds since the epoch.
    """
    stale = []
    for path in folder.glob(".scratch-*"):
        try:
            if _is_abandoned(path, now()):
                stale.append(path)
        except OSError:  # removed meanwhile
            continue
    return stale


def _is_abandoned(path: Path, now: float) -> bool:
    words = path.name.split("-")
    if len(words) > 3 and words[-3] == _host() and words[-2].isdecimal():
        return not _is_running(int(words[-2]))
    changed = [entry.stat().st_mtime for entry in (path, *path.iterdir())]
    return now - max(changed) >= _STALE


def _host() -> str:
    """Return this machine's name with nothing but letters, digits and underscores."""
    return "".join(letter if letter.isalnum() else "_" for letter in socket.gethostname())


def _is_running(process: int) -> bool:
    """Return whether a process exists; on Windows `os.kill` with 0 would end it."""
    try:
        return bool(psutil.pid_exists(process))
    except OverflowError:  # no system has such numbers
        return False
