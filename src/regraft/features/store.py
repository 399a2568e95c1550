"""Entries on disk: arrays written whole or not at all, checked when they are opened, the longest unused removed first.

Refuses to know what the arrays mean; `features` does.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.errors import DiskFull, UserError
from regraft.system.disk import is_disk_full
from regraft.system.files import make_scratch_dir, stale_dirs
from regraft.system.progress import SILENT, ProgressReporter

_RESERVE = 200e6  # bytes that stay free on the disk
_VERSION = 3  # of the layout of an entry
_LARGEST_HALF = 65504.0

Array = NDArray[Any]
Chunk = tuple[Array, ...]


@dataclass(frozen=True)
class Entry:
    """Arrays kept on disk and mapped into memory, each of shape `(n, …)`."""

    name: str
    arrays: tuple[Array, ...]
    hit: bool  # whether it was there already
    bytes: int
    seconds: float  # that computing it took, now or when it was made

    def __getitem__(self, rows: NDArray[np.int64]) -> tuple[Array, ...]:
        return tuple(np.asarray(array[rows]) for array in self.arrays)


def has_room(needed: int, folder: Path) -> bool:
    """Return whether the disk has room for this many bytes; always for none. Raises `UserError` when `folder` cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return not needed or needed + _RESERVE <= shutil.disk_usage(folder).free
    except OSError as error:
        raise _unwritable(folder, error) from error


def list_entries(folder: Path) -> list[dict[str, Any]]:
    """Return name, kind, bytes, age in seconds of every entry, the one used last first."""
    found = []
    for path in folder.glob("[!.]*/meta.json"):  # not what is being written
        try:
            meta = json.loads(path.read_text())
            found.append(
                {
                    "name": path.parent.name,
                    "bytes": int(meta["bytes"]),
                    "age": time.time() - path.stat().st_mtime,
                    "shapes": [a["shape"] for a in meta["arrays"]],
                }
            )
        except (OSError, ValueError, KeyError):
            continue
    return sorted(found, key=lambda entry: float(entry["age"]))


def cache_limit(folder: Path) -> int:
    """Return the most bytes that entries may take together: `REGRAFT_CACHE_LIMIT` in GB, else half of what they take and what is free.

    Raises:
        UserError: When the variable is no positive number.
    """
    given = os.environ.get("REGRAFT_CACHE_LIMIT", "")
    if not given:
        return (
            shutil.disk_usage(folder).free
            + sum(int(entry["bytes"]) for entry in list_entries(folder))
        ) // 2
    try:
        gigabytes = float(given)
    except ValueError:
        gigabytes = -1.0
    if not 0 < gigabytes < 1e9:
        raise UserError(
            f"REGRAFT_CACHE_LIMIT is {given!r}. Expected gigabytes, for example 20. Correct or unset it."
        )
    return int(gigabytes * 1e9)


def evict_entries(
    folder: Path, keep: Collection[str], reporter: ProgressReporter = SILENT
) -> list[str]:
    """Remove the entries used longest ago until the rest is within the bound; returns their names.

    The entries called as in `keep` stay. What another process has open stays readable for it: its mapping outlives the name.
    """
    entries, most = list_entries(folder), cache_limit(folder)
    total, gone = sum(int(entry["bytes"]) for entry in entries), []
    for entry in reversed(entries):
        if total <= most:
            break
        if entry["name"] not in keep:
            _drop(folder / str(entry["name"]))
            total -= int(entry["bytes"])
            gone.append(str(entry["name"]))
    if gone:
        reporter.log(
            f"Removed {len(gone)} cache entries used longest ago, to stay under {most / 1e9:,.1f} GB."
        )
    return gone


def clear_cache(folder: Path) -> int:
    """Remove every entry and everything unfinished; returns the bytes that were freed."""
    freed = sum(int(entry["bytes"]) for entry in list_entries(folder))
    for path in [
        *(meta.parent for meta in folder.glob("*/meta.json")),
        *folder.glob(".scratch-*"),
        *folder.glob("archives/.scratch-*"),
        folder / "paces",
    ]:
        shutil.rmtree(path, ignore_errors=True)
    return freed


@dataclass(frozen=True)
class EntrySpec:
    """An entry that shall be there: its name, and shape and type of each array."""

    name: str
    arrays: tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]

    @property
    def bytes(self) -> int:
        """What its arrays take on the disk."""
        return sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in self.arrays)


class Float16Overflow(Exception):
    """Numbers too large for float16 in the entry of this name."""


def digest_parts(*parts: object) -> str:
    """Return a name for everything that an entry depends on."""
    state = hashlib.blake2b(digest_size=16)
    for part in (_VERSION, *parts):
        state.update(f"{part}\x1e".encode())
    return state.hexdigest()


def get_or_create(
    folder: Path,
    wanted: Sequence[EntrySpec],
    chunks: Callable[[list[int]], Iterable[Sequence[Chunk]]],
    reporter: ProgressReporter,
) -> list[Entry]:
    """Return the wanted entries; those that are not there or not whole are written first, all in one go.

    Args:
        folder: Where entries are kept.
        wanted: What shall be there.
        chunks: Given the numbers of those that are missing, yields the next rows of each of them.
        reporter: Hears of damage and of what had to be removed.

    Raises:
        Overflow: When numbers are too large for float16.
        UserError: When `folder` lacks the room or cannot be written.
    """
    found = [_opened(folder / one.name, reporter) for one in wanted]
    made: list[Entry | None] = []
    missing = [number for number, entry in enumerate(found) if entry is None]
    if missing:
        needed = sum(wanted[number].bytes for number in missing)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
            if needed + _RESERVE > free:
                raise _no_room(folder, needed, free)
            for path in stale_dirs(folder):
                shutil.rmtree(path, ignore_errors=True)
            made = _write(folder, [wanted[number] for number in missing], chunks(missing))
        except OSError as error:
            if is_disk_full(error):
                raise DiskFull(
                    str(_no_room(folder, needed, shutil.disk_usage(folder).free))
                ) from error
            raise _unwritable(folder, error) from error
        evict_entries(folder, [one.name for one in wanted], reporter)
    for number, one in zip(missing, made, strict=True):
        if one is None:
            path = folder / wanted[number].name
            raise UserError(
                f"The entry just written to {path} does not read back as it was written. Check the disk, or set REGRAFT_CACHE to another one."
            )
        found[number] = replace(one, name=wanted[number].name, hit=False)
    return [entry for entry in found if entry is not None]


def _write(
    folder: Path, wanted: Sequence[EntrySpec], chunks: Iterable[Sequence[Chunk]]
) -> list[Entry | None]:
    """Write entries and return them as they read back: open before they have their names, so that nobody can remove them in between."""
    started = time.perf_counter()
    with ExitStack() as stack:
        scratches = [stack.enter_context(_Scratch(folder / one.name, one)) for one in wanted]
        for step in chunks:
            for scratch, chunk in zip(scratches, step, strict=True):
                scratch.add(chunk)
        return [
            scratch.commit((time.perf_counter() - started) / len(scratches))
            for scratch in scratches
        ]


class _Scratch:
    """A folder being filled; it takes its name when it is whole, and disappears otherwise."""

    def __init__(self, path: Path, wanted: EntrySpec) -> None:
        self.path, self.wanted = path, wanted
        self.files: list[Any] = []
        self.sums = [0] * len(wanted.arrays)

    def __enter__(self) -> _Scratch:
        self.folder = make_scratch_dir(self.path)
        try:
            for number, (shape, dtype) in enumerate(self.wanted.arrays):
                self.files.append((self.folder / f"{number}.npy").open("wb"))
                header = {
                    "descr": np.lib.format.dtype_to_descr(dtype),
                    "fortran_order": False,
                    "shape": shape,
                }
                np.lib.format.write_array_header_1_0(self.files[-1], header)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files:
            file.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, chunk: Chunk) -> None:
        """Write the next rows of each array; raises `Overflow` where float16 is too small for them."""
        for number, (values, (_, dtype)) in enumerate(zip(chunk, self.wanted.arrays, strict=True)):
            if dtype == np.float16 and np.abs(values).max(initial=0) > _LARGEST_HALF:
                raise Float16Overflow(self.wanted.name)
            content = np.ascontiguousarray(values, dtype=dtype).data.cast("B")
            self.sums[number] = zlib.crc32(content, self.sums[number])
            self.files[number].write(content)

    def commit(self, seconds: float) -> Entry | None:
        """Give the folder its name, unless another process was faster with the same content; returns what reads back, None where it does not."""
        for file in self.files:
            file.close()
        described = [
            {"shape": shape, "dtype": dtype.str, "crc32": crc}
            for (shape, dtype), crc in zip(self.wanted.arrays, self.sums, strict=True)
        ]
        (self.folder / "meta.json").write_text(
            json.dumps({"bytes": self.wanted.bytes, "seconds": seconds, "arrays": described})
        )
        made = _opened(self.folder, SILENT)
        if self.path.exists() and _opened(self.path, SILENT) is None:  # broken
            _drop(self.path)
        try:
            os.replace(self.folder, self.path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        return made


def _drop(path: Path) -> None:
    """Remove an entry; it loses its name first, so that nobody finds half of it."""
    gone = make_scratch_dir(path)
    with contextlib.suppress(OSError):  # another process was faster
        os.replace(path, gone)
    shutil.rmtree(gone, ignore_errors=True)


def _opened(path: Path, reporter: ProgressReporter) -> Entry | None:
    """Return the entry if it is there and whole; says so and returns None when it was altered."""
    meta_path = path / "meta.json"
    if not meta_path.is_file():
        return None
    try:
        meta = json.loads(meta_path.read_text())
        arrays = []
        for number, described in enumerate(meta["arrays"]):
            array = np.load(path / f"{number}.npy", mmap_mode="r", allow_pickle=False)
            if (
                list(array.shape) != described["shape"]
                or array.dtype.str != described["dtype"]
                or _crc32(array) != described["crc32"]
            ):
                raise ValueError("its content was altered")
            arrays.append(array)
        with contextlib.suppress(OSError):  # a cache that is only read from cannot note that it was
            os.utime(meta_path)
    except FileNotFoundError:  # removed meanwhile, to stay within the bound
        if not meta_path.exists():
            return None
        reporter.log(
            f"The cache entry {path.name} is damaged (a file is missing); it is computed again."
        )
        return None
    except (OSError, EOFError, ValueError, KeyError) as error:
        reporter.log(f"The cache entry {path.name} is damaged ({error}); it is computed again.")
        return None
    return Entry(path.name, tuple(arrays), True, int(meta["bytes"]), float(meta["seconds"]))


def _crc32(array: Array) -> int:
    value = 0
    step = max(1, (1 << 24) // max(1, array[:1].nbytes))
    for start in range(0, len(array), step):
        value = zlib.crc32(np.ascontiguousarray(array[start : start + step]).data.cast("B"), value)
    return value


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"The cache folder {folder} cannot be written ({error.strerror}). Set REGRAFT_CACHE, or pass --cache, to a folder that can."
    )


def _no_room(folder: Path, needed: float, free: float) -> UserError:
    return UserError(
        f"The cache entry needs {needed / 1e6:,.0f} MB, but {folder} has {free / 1e6:,.0f} MB free. "
        "Make room, run `regraft cache clear`, or set REGRAFT_CACHE to a folder on another disk."
    )
