"""Files that appear whole or not at all, folders and files that one process at a time writes to, and what a disk answers in a sentence.

Refuses to know what is written.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import secrets
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from regraft.errors import DiskFull, UserError

LOCK_NAME = ".lock"  # held by whoever writes into a folder; the system lets go of it when the process ends, however it ends
_RESULTS = (
    "leaderboard.json",
    "state.json",
    "comparison.json",
    "probe.json",
)  # a plan alone may be anybody's
_HOLDER = f"{LOCK_NAME}.json"  # who that is
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_RETRIED = 0.2  # seconds; a lock that is removed while it is asked for is asked for again
ADVICE_RESUME, ADVICE_REPEAT = (
    "Make room, and go on with the same command and --resume.",
    "Make room, and give the same command again.",
)  # where a disk is full
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_WORDS = (
    "no space left",
    "os error 28",
    "disk quota exceeded",
    "pytorchstreamwriter failed writing",
    "unexpected pos",
)
_ABANDONED = 86_400  # seconds without a change, after which a scratch folder of another machine counts as left over


@contextmanager
def atomic_write(path: Path, suffix: str = "") -> Iterator[Path]:
    """Give a name beside `path` to write to; the file takes its own name when the block ends well, and disappears otherwise.

    What a killed process of this machine left of the same file is removed.

    Args:
        path: The file.
        suffix: What the name must end in, for writers that would add it.
    """
    machine = hashlib.blake2b(socket.gethostname().encode(), digest_size=3).hexdigest()
    scratch = path.with_name(f".{path.name}.{machine}-{os.getpid()}.part{suffix}")
    for left in path.parent.glob(f".{glob.escape(path.name)}.{machine}-*.part{suffix}"):
        owner = left.name.removesuffix(f".part{suffix}").rpartition("-")[2]
        if owner.isdecimal() and not _alive(int(owner)):
            left.unlink(missing_ok=True)
    try:
        yield scratch
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def remove_partials(folder: Path) -> None:
    """Remove the files that a killed process had not finished; only for who holds the folder."""
    for path in [
        *folder.glob(".*.part*"),
        *folder.glob("*.part"),
        *folder.glob(".tmp??????"),
    ]:  # the last are safetensors'
        path.unlink(missing_ok=True)


def is_internal(path: Path) -> bool:
    """Return whether a file is no content: a lock, or something unfinished."""
    return path.name.startswith(".") and (
        path.name.endswith((LOCK_NAME, _HOLDER)) or ".part" in path.name
    )


def holds_results(folder: Path) -> bool:
    """Return whether a folder is a run, a comparison or a probe, finished or not."""
    return any((folder / name).exists() for name in _RESULTS)


def clear_dir(folder: Path) -> None:
    """Remove everything in a folder but its lock.

    Raises:
        UserError: When another process writes to something in it; nothing is removed then.
    """
    for lock in sorted(folder.rglob(f".*{LOCK_NAME}")) + sorted(folder.rglob(f"?*/{LOCK_NAME}")):
        with lock_path(lock.parent, lock.name.removesuffix(LOCK_NAME).removeprefix(".")):
            pass
    for path in folder.iterdir():
        if path.name in (LOCK_NAME, _HOLDER):
            continue
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@contextmanager
def lock_path(
    folder: Path,
    file: str = "",
    wait: float = 0.0,
    advice: str = ADVICE_RESUME,
    elsewhere: bool = True,
) -> Iterator[None]:
    """Keep a folder, or one file in it, to this process while the block runs; the folder is made if it is not there.

    The lock is the operating system's: a killed process holds none. Where the file system knows no locks the block runs without one.

    Args:
        folder: The folder.
        file: Name of the file in it.
        wait: Seconds to wait for another process.
        advice: What to do where the disk is full.
        elsewhere: Whether the user may give another place with --out.

    Raises:
        UserError: When another process writes to it, which is named; or it cannot be made.
    """
    import filelock

    what, holder = folder / file, folder / (f".{file}{_HOLDER}" if file else _HOLDER)
    lock = filelock.FileLock(
        holder.with_suffix(""), timeout=max(wait, _RETRIED), fallback_to_soft=False
    )
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        way = (
            "Wait until that is done, or give another --out."
            if elsewhere
            else "Wait until that is done."
        )
        raise UserError(
            f"{what} is being written by {_told(holder)}. Expected a {'file' if file else 'folder'} to itself. {way}"
        ) from None
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", errno.ENOSYS) not in _NO_LOCKS:
            raise unwritable_error(folder, error, elsewhere) from error
    mine = _inode(holder.with_suffix(""))
    try:
        with suppress(OSError):  # only words for whoever is refused
            holder.write_text(
                json.dumps(
                    {
                        "pid": os.getpid(),
                        "command": _command(),
                        "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
                    }
                )
            )
        with disk_errors(what, advice, elsewhere):
            yield
    finally:
        if (
            _inode(holder.with_suffix("")) == mine
        ):  # or the folder was removed meanwhile, and made again by somebody else
            for left in (
                holder,
                holder.with_suffix(""),
            ):  # who opened the lock meanwhile sees that it is gone, and tries again
                with suppress(OSError):
                    left.unlink()
        lock.release()
        if made:
            with suppress(OSError):  # what came to nothing leaves nothing
                folder.rmdir()


@contextmanager
def disk_errors(path: Path, advice: str = ADVICE_RESUME, elsewhere: bool = True) -> Iterator[None]:
    """Turn what a disk refuses in the block into one sentence.

    Args:
        path: What is written to.
        advice: What to do where it is full.
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
        if is_full(error):
            raise DiskFull(
                f"{path} cannot be written further: no space left on its disk. What was finished is kept. {advice}"
            ) from error
        if (
            isinstance(error, OSError)
            and error.filename is not None
            and Path(os.fsdecode(error.filename)).absolute().is_relative_to(path.absolute())
        ):
            raise unwritable_error(path, error, elsewhere) from error
        raise


def is_full(error: BaseException | None) -> bool:
    """Return whether an error, or what it came from, says that a disk is full; torch and safetensors say it in words of their own."""
    while error is not None:
        if getattr(error, "errno", None) in _FULL or any(
            words in str(error).lower() for words in _FULL_WORDS
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def unwritable_error(path: Path, error: BaseException, elsewhere: bool = True) -> UserError:
    """Return the sentence for something that cannot be written; `elsewhere` is whether the user may give another place with --out."""
    way = (
        "Give another one with --out."
        if elsewhere
        else "Let it be written to, and give the same command again."
    )
    return UserError(
        f"{path} cannot be written ({getattr(error, 'strerror', None) or error}). Expected a place that can, with room. {way}"
    )


def check_writable(folder: Path, given: Path, flag: str = "--out") -> None:
    """Raise `UserError` before any work where the nearest folder that exists allows no writing."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f"{given} cannot be written: {there} allows no writing. Give a place that does with {flag}."
        )


def expand_user(path: str | Path) -> Path:
    """Return a path with `~` as the home it stands for; as it is where it stands for none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def make_scratch_dir(beside: Path) -> Path:
    """Return a new folder beside a path, named after it, this machine and this process, so that `abandoned` can tell when nobody fills it any more."""
    made = beside.with_name(
        f".scratch-{beside.name}-{_host()}-{os.getpid()}-{secrets.token_hex(4)}"
    )
    made.mkdir(parents=True)
    return made


def stale_dirs(folder: Path) -> list[Path]:
    """Return the scratch folders in a folder whose process ended without removing them; those of other machines after a day without a change."""
    found = []
    for path in folder.glob(".scratch-*"):
        words = path.name.split("-")
        mine = len(words) > 3 and words[-3] == _host() and words[-2].isdecimal()
        try:
            if not (
                _alive(int(words[-2]))
                if mine
                else time.time() - max(one.stat().st_mtime for one in (path, *path.iterdir()))
                < _ABANDONED
            ):
                found.append(path)
        except OSError:  # gone meanwhile
            continue
    return found


def _host() -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in socket.gethostname())


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _command() -> str:
    return shlex.join([Path(sys.argv[0] or "python").name, *sys.argv[1:]])[:300]


def _told(holder: Path) -> str:
    try:
        told = json.loads(holder.read_text())
        return f"process {told['pid']} ({told['command']}, since {told['since']})"
    except (OSError, ValueError, KeyError):
        return "another process"
