"""Folders to write results to: new, empty, resumed or overwritten, and written by one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from regraft.data.names import is_own_output
from regraft.errors import UserError
from regraft.options import RunDir
from regraft.runs.layout import SUBFOLDERS, UNFINISHED
from regraft.system.files import clear_dir, expand_user, is_internal
from regraft.system.locks import LOCK_NAME, lock_path


def choose_dir(run_dir: RunDir, kind: str, name: str) -> Path:
    """Return the folder asked for, or `kind/name` with the next free number.

    To resume, it is the last number that is taken.
    """
    if run_dir.out is not None:
        return expand_user(run_dir.out)
    letters = [letter if letter.isalnum() or letter in "._-" else "-" for letter in name]
    base = Path(kind) / "".join(letters)[:100].strip(".-")
    number = 1
    path = base
    taken = None
    while path.exists() and (not path.is_dir() or any(path.iterdir())):
        number += 1
        taken = path
        path = base.with_name(f"{base.name}-{number}")
    return taken if run_dir.resume and taken is not None else path


@contextmanager
def lock_dir(path: Path, kind: str, run_dir: RunDir) -> Iterator[None]:
    """Keep a folder to this process while the block runs.

    Refuses before anything is touched what `require_free_dir` refuses.

    Raises:
        UserError: When the folder is taken, another process writes to it, or the disk is full.
    """
    if not (path / LOCK_NAME).is_file():
        require_free_dir(path, kind, run_dir)
    with lock_path(path):
        require_free_dir(path, kind, run_dir)
        yield


def prepare_dir(path: Path, kind: str, run_dir: RunDir, can_resume: bool = True) -> None:
    """Empty a folder where that was asked for.

    Raises:
        UserError: As `require_free_dir`.
    """
    require_free_dir(path, kind, run_dir, can_resume)
    if run_dir.overwrite and path.is_dir():
        clear_dir(path)


def require_free_dir(path: Path, kind: str, run_dir: RunDir, can_resume: bool = True) -> None:
    """Raise `UserError` where a folder may not be written to; removes nothing.

    Args:
        path: The folder.
        kind: What it is for: "run", "comparison" or "probe".
        run_dir: Whether what is in it is resumed or overwritten.
        can_resume: Whether resuming is on offer.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file. Expected a folder for the {kind}. Give another --out.")
    if not _content(path):
        return
    if run_dir.overwrite:
        _require_ours(path)
    elif not (can_resume and run_dir.resume):
        ways = "--resume to go on with it, " if can_resume else ""
        raise UserError(
            f"{path} is not empty. Expected a new or empty folder. Pass {ways}--overwrite to "
            "replace it, or another --out."
        )


def _require_ours(path: Path) -> None:
    """Raise `UserError` where a folder holds something that is no result of this program."""
    foreign = []
    for entry in _content(path):
        is_own_folder = entry.name in SUBFOLDERS or is_begun(entry)
        if entry.is_dir() and not is_own_folder:
            foreign.append(entry.name)
    if foreign or not is_begun(path):
        named = f" ({', '.join(sorted(foreign)[:3])})" if foreign else ""
        raise UserError(
            f"{path} holds something other than a run{named}, so --overwrite does not touch it. "
            "Expected a run folder. Give another --out, or empty it yourself."
        )


def is_begun(path: Path) -> bool:
    """Return whether a folder is a run, a comparison or a probe, finished or not; or is empty."""
    if not path.is_dir():
        return False
    names = {entry.name for entry in _content(path)}
    return is_own_output(path) or not names - UNFINISHED


def _content(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return [entry for entry in path.iterdir() if not is_internal(entry)]
