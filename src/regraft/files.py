"""Files that appear whole or not at all, folders and files that one process at a time writes to, and what a disk answers in a sentence.

Refuses to know what is written.
"""

from __future__ import annotations

import errno
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

from regraft.errors import NoRoom, UserError

LOCK = ".lock"  # held by whoever writes into a folder; the system lets go of it when the process ends, however it ends
_HOLDER = f"{LOCK}.json"  # who that is
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_WORDS = ("no space left", "os error 28", "disk quota exceeded", "pytorchstreamwriter failed writing", "unexpected pos")
_ABANDONED = 86_400  # seconds without a change, after which a scratch folder of another machine counts as left over


@contextmanager
def whole(path: Path, suffix: str = "") -> Iterator[Path]:
    """Give a name beside `path` to write to; the file takes its own name when the block ends well, and disappears otherwise.

    Args:
        path: The file.
        suffix: What the name must end in, for writers that would add it.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part{suffix}")
    try:
        yield scratch
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def sweep(folder: Path) -> None:
    """Remove the files that a killed process had not finished; only for who holds the folder."""
    for path in [*folder.glob(".*.part*"), *folder.glob("*.part")]:
        path.unlink(missing_ok=True)


def is_ours(path: Path) -> bool:
    """Return whether a file is no content: a lock, or something unfinished."""
    return path.name.startswith(".") and (path.name.endswith((LOCK, _HOLDER)) or ".part" in path.name)


def empty(folder: Path) -> None:
    """Remove everything in a folder but its lock."""
    for path in folder.iterdir():
        if path.name in (LOCK, _HOLDER):
            continue
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@contextmanager
def held(folder: Path, file: str = "") -> Iterator[None]:
    """Keep a folder, or one file in it, to this process while the block runs; the folder is made if it is not there.

    The lock is the operating system's: a killed process holds none. Where the file system knows no locks the block runs without one.

    Raises:
        UserError: When another process writes to it, which is named; or it cannot be made.
    """
    import filelock

    what, holder = folder / file, folder / (f".{file}{_HOLDER}" if file else _HOLDER)
    lock = filelock.FileLock(holder.with_suffix(""), timeout=0)
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        raise UserError(
            f"{what} is being written by {_told(holder)}. Expected a {'file' if file else 'folder'} to itself. Wait until that is done, or give another --out."
        ) from None
    except NotImplementedError:
        yield
        return
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        with writing(what):
            holder.write_text(json.dumps({"pid": os.getpid(), "command": _command(), "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"}))
            yield
    finally:
        holder.unlink(missing_ok=True)
        holder.with_suffix("").unlink(missing_ok=True)  # who opened it meanwhile sees that it is gone, and asks again
        lock.release()
        if made:
            with suppress(OSError):  # what came to nothing leaves nothing
                folder.rmdir()


@contextmanager
def writing(path: Path, advice: str = "Make room, and go on with the same command and --resume.") -> Iterator[None]:
    """Turn what a disk refuses in the block into one sentence.

    Args:
        path: What is written to.
        advice: What to do where it is full.

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
            raise NoRoom(f"{path} cannot be written further: no space left on its disk. What was finished is kept. {advice}") from error
        if isinstance(error, OSError) and error.filename is not None and Path(os.fsdecode(error.filename)).absolute().is_relative_to(path.absolute()):
            raise unwritable(path, error) from error
        raise


def is_full(error: BaseException | None) -> bool:
    """Return whether an error, or what it came from, says that a disk is full; torch and safetensors say it in words of their own."""
    while error is not None:
        if getattr(error, "errno", None) in _FULL or any(words in str(error).lower() for words in _FULL_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def unwritable(path: Path, error: OSError) -> UserError:
    """Return the sentence for something that cannot be written."""
    return UserError(f"{path} cannot be written ({error.strerror or error}). Expected a place that can, with room. Give another one with --out.")


def check_writable(folder: Path, given: Path, flag: str = "--out") -> None:
    """Raise `UserError` before any work where the nearest folder that exists allows no writing."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{given} cannot be written: {there} allows no writing. Give a place that does with {flag}.")


def scratch_folder(beside: Path) -> Path:
    """Return a new folder beside a path, named after it, this machine and this process, so that `abandoned` can tell when nobody fills it any more."""
    made = beside.with_name(f".scratch-{beside.name}-{_host()}-{os.getpid()}-{secrets.token_hex(4)}")
    made.mkdir(parents=True)
    return made


def abandoned(folder: Path) -> list[Path]:
    """Return the scratch folders in a folder whose process ended without removing them; those of other machines after a day without a change."""
    found = []
    for path in folder.glob(".scratch-*"):
        words = path.name.split("-")
        mine = len(words) > 3 and words[-3] == _host() and words[-2].isdecimal()
        try:
            if not (_alive(int(words[-2])) if mine else time.time() - max(one.stat().st_mtime for one in (path, *path.iterdir())) < _ABANDONED):
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


def _command() -> str:
    return shlex.join([Path(sys.argv[0] or "python").name, *sys.argv[1:]])[:300]


def _told(holder: Path) -> str:
    try:
        told = json.loads(holder.read_text())
        return f"process {told['pid']} ({told['command']}, since {told['since']})"
    except (OSError, ValueError, KeyError):
        return "another process"
