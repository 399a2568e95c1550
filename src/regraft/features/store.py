"""The cache folder: entries that are there or get written, within a limit of bytes.

Those used longest ago are removed first. What the arrays mean is not known here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from regraft.errors import DiskFull, UserError
from regraft.features.entry import Chunk, Entry, EntrySpec, EntryWriter, open_entry, remove_entry
from regraft.system.disk import is_disk_full
from regraft.system.files import stale_dirs
from regraft.system.progress import SILENT, ProgressReporter

_RESERVE = 200e6  # bytes that stay free on the disk
_VERSION = 3  # of the layout of an entry
_MOST_GIGABYTES = 1e9


def has_room(needed: int, folder: Path) -> bool:
    """Return whether the disk has room for this many bytes; always for none.

    Raises:
        UserError: When `folder` cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return not needed or needed + _RESERVE <= shutil.disk_usage(folder).free
    except OSError as error:
        raise _unwritable(folder, error) from error


def list_entries(folder: Path) -> list[dict[str, Any]]:
    """Return name, bytes, age in seconds and shapes of every entry, the one used last first."""
    entries = []
    for path in folder.glob("[!.]*/meta.json"):  # not what is being written
        try:
            entries.append(_describe(path))
        except (OSError, ValueError, KeyError):
            continue
    return sorted(entries, key=lambda entry: float(entry["age"]))


def _describe(path: Path) -> dict[str, Any]:
    meta = json.loads(path.read_text())
    return {
        "name": path.parent.name,
        "bytes": int(meta["bytes"]),
        "age": time.time() - path.stat().st_mtime,
        "shapes": [array["shape"] for array in meta["arrays"]],
    }


def cache_limit(folder: Path) -> int:
    """Return the most bytes that entries may take together.

    `REGRAFT_CACHE_LIMIT` in GB, else half of what they take and what is free.

    Raises:
        UserError: When the variable is no positive number.
    """
    text = os.environ.get("REGRAFT_CACHE_LIMIT", "")
    if not text:
        return (shutil.disk_usage(folder).free + _total_bytes(list_entries(folder))) // 2
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = -1.0
    if not 0 < gigabytes < _MOST_GIGABYTES:
        raise UserError(
            f"REGRAFT_CACHE_LIMIT is {text!r}. Expected gigabytes, for example 20. Correct or "
            "unset it."
        )
    return int(gigabytes * 1e9)


def _total_bytes(entries: Iterable[dict[str, Any]]) -> int:
    return sum(int(entry["bytes"]) for entry in entries)


def evict_entries(
    folder: Path, keep: Collection[str], reporter: ProgressReporter = SILENT
) -> list[str]:
    """Remove the entries used longest ago until the rest is within the limit; returns their names.

    The entries named in `keep` stay. What another process has open stays readable for it: its
    mapping outlives the name.
    """
    entries = list_entries(folder)
    limit = cache_limit(folder)
    total = _total_bytes(entries)
    removed: list[str] = []
    for entry in reversed(entries):
        if total <= limit:
            break
        name = str(entry["name"])
        if name not in keep:
            remove_entry(folder / name)
            total -= int(entry["bytes"])
            removed.append(name)
    if removed:
        reporter.log(
            f"Removed {len(removed)} cache entries used longest ago, to stay under "
            f"{limit / 1e9:,.1f} GB."
        )
    return removed


def clear_cache(folder: Path) -> int:
    """Remove every entry and everything unfinished; returns the bytes that were freed."""
    freed = _total_bytes(list_entries(folder))
    paths = [meta.parent for meta in folder.glob("*/meta.json")]
    paths += folder.glob(".scratch-*")
    paths += folder.glob("archives/.scratch-*")
    paths.append(folder / "paces")
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
    return freed


def digest_parts(*parts: object) -> str:
    """Return a name for everything that an entry depends on."""
    state = hashlib.blake2b(digest_size=16)
    for part in (_VERSION, *parts):
        state.update(f"{part}\x1e".encode())
    return state.hexdigest()


def get_or_create(
    folder: Path,
    specs: Sequence[EntrySpec],
    chunks: Callable[[list[int]], Iterable[Sequence[Chunk]]],
    reporter: ProgressReporter,
) -> list[Entry]:
    """Return entries; those that are missing or damaged are written first, all in one pass.

    Args:
        folder: Where entries are kept.
        specs: What shall be there.
        chunks: Given the numbers of those that are missing, yields the next rows of each of them.
        reporter: Hears of damage and of what had to be removed.

    Raises:
        Float16Overflow: When numbers are too large for float16.
        UserError: When `folder` lacks the room or cannot be written.
    """
    opened = [open_entry(folder / spec.name, reporter) for spec in specs]
    missing = [number for number, entry in enumerate(opened) if entry is None]
    if missing:
        written = _create(folder, [specs[number] for number in missing], chunks(missing))
        evict_entries(folder, [spec.name for spec in specs], reporter)
        for number, entry in zip(missing, written, strict=True):
            if entry is None:
                raise _unreadable(folder / specs[number].name)
            opened[number] = replace(entry, name=specs[number].name, hit=False)
    return [entry for entry in opened if entry is not None]


def _create(
    folder: Path, specs: Sequence[EntrySpec], chunks: Iterable[Sequence[Chunk]]
) -> list[Entry | None]:
    """Write entries where there is room for them; see `_write`."""
    needed = sum(spec.bytes for spec in specs)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if needed + _RESERVE > free:
            raise _no_room(folder, needed, free)
        for path in stale_dirs(folder):
            shutil.rmtree(path, ignore_errors=True)
        return _write(folder, specs, chunks)
    except OSError as error:
        if is_disk_full(error):
            free = shutil.disk_usage(folder).free
            raise DiskFull(str(_no_room(folder, needed, free))) from error
        raise _unwritable(folder, error) from error


def _write(
    folder: Path, specs: Sequence[EntrySpec], chunks: Iterable[Sequence[Chunk]]
) -> list[Entry | None]:
    """Write entries and return them as they read back, None for those that do not.

    They are opened before they have their names, so that nobody can remove them in between.
    """
    started = time.perf_counter()
    with ExitStack() as stack:
        writers = []
        for spec in specs:
            writers.append(stack.enter_context(EntryWriter(folder / spec.name, spec)))
        for step in chunks:
            for writer, chunk in zip(writers, step, strict=True):
                writer.add(chunk)
        written = []
        for writer in writers:
            seconds = time.perf_counter() - started
            written.append(writer.commit(seconds / len(writers)))
        return written


def _unreadable(path: Path) -> UserError:
    return UserError(
        f"The entry just written to {path} does not read back as it was written. Check the disk, "
        "or set REGRAFT_CACHE to another one."
    )


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"The cache folder {folder} cannot be written ({error.strerror}). Set REGRAFT_CACHE, or "
        "pass --cache, to a folder that can."
    )


def _no_room(folder: Path, needed: float, free: float) -> UserError:
    return UserError(
        f"The cache entry needs {needed / 1e6:,.0f} MB, but {folder} has {free / 1e6:,.0f} MB "
        "free. Make room, run `regraft cache clear`, or set REGRAFT_CACHE to a folder on another "
        "disk."
    )
