"""One entry of the cache: arrays written whole or not at all, and checked when they are opened."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from regraft.system.files import make_scratch_dir
from regraft.system.progress import SILENT, ProgressReporter

_LARGEST_HALF = 65504.0
_STEP = 1 << 24  # bytes that are summed up at a time

Array = NDArray[Any]
Chunk = tuple[Array, ...]


@dataclass(frozen=True)
class Entry:
    """Arrays kept on disk and mapped into memory.

    Args:
        name: Its name in the cache folder.
        arrays: Each of shape `(n, …)`.
        hit: Whether it was there already.
        bytes: What the arrays take.
        seconds: That computing it took, now or when it was written.
    """

    name: str
    arrays: tuple[Array, ...]
    hit: bool
    bytes: int
    seconds: float

    def __getitem__(self, rows: NDArray[np.int64]) -> tuple[Array, ...]:
        """Return some rows of each array."""
        return tuple(np.asarray(array[rows]) for array in self.arrays)


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


class EntryWriter:
    """A folder being filled; it takes its name when it is whole, and disappears otherwise."""

    def __init__(self, path: Path, spec: EntrySpec) -> None:
        self.path = path
        self.spec = spec
        self.files: list[IO[bytes]] = []
        self.sums = [0] * len(spec.arrays)

    def __enter__(self) -> EntryWriter:
        self.folder = make_scratch_dir(self.path)
        try:
            for number, (shape, dtype) in enumerate(self.spec.arrays):
                file = (self.folder / f"{number}.npy").open("wb")
                self.files.append(file)
                header = {
                    "descr": np.lib.format.dtype_to_descr(dtype),
                    "fortran_order": False,
                    "shape": shape,
                }
                np.lib.format.write_array_header_1_0(file, header)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files:
            file.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, chunk: Chunk) -> None:
        """Write the next rows of each array.

        Raises:
            Float16Overflow: Where float16 is too small for them.
        """
        for number, (values, (_, dtype)) in enumerate(zip(chunk, self.spec.arrays, strict=True)):
            if dtype == np.float16 and np.abs(values).max(initial=0) > _LARGEST_HALF:
                raise Float16Overflow(self.spec.name)
            content = np.ascontiguousarray(values, dtype=dtype).data.cast("B")
            self.sums[number] = zlib.crc32(content, self.sums[number])
            self.files[number].write(content)

    def commit(self, seconds: float) -> Entry | None:
        """Give the folder its name, unless another process was faster with the same content.

        Returns:
            What reads back, None where it does not.
        """
        for file in self.files:
            file.close()
        (self.folder / "meta.json").write_text(json.dumps(self._meta(seconds)))
        entry = open_entry(self.folder, SILENT)
        if self.path.exists() and open_entry(self.path, SILENT) is None:  # broken
            remove_entry(self.path)
        try:
            os.replace(self.folder, self.path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        return entry

    def _meta(self, seconds: float) -> dict[str, Any]:
        arrays = []
        for (shape, dtype), crc in zip(self.spec.arrays, self.sums, strict=True):
            arrays.append({"shape": shape, "dtype": dtype.str, "crc32": crc})
        return {"bytes": self.spec.bytes, "seconds": seconds, "arrays": arrays}


def remove_entry(path: Path) -> None:
    """Remove an entry; it loses its name first, so that nobody finds half of it."""
    renamed = make_scratch_dir(path)
    with contextlib.suppress(OSError):  # another process was faster
        os.replace(path, renamed)
    shutil.rmtree(renamed, ignore_errors=True)


def open_entry(path: Path, reporter: ProgressReporter) -> Entry | None:
    """Return the entry if it is there and whole; says so and returns None when it was altered."""
    meta_path = path / "meta.json"
    if not meta_path.is_file():
        return None
    try:
        meta = json.loads(meta_path.read_text())
        arrays = []
        for number, described in enumerate(meta["arrays"]):
            arrays.append(_open_array(path / f"{number}.npy", described))
        entry = Entry(path.name, tuple(arrays), True, int(meta["bytes"]), float(meta["seconds"]))
    except FileNotFoundError:
        if not meta_path.exists():  # removed meanwhile, to stay within the limit
            return None
        reporter.log(_damaged(path, "a file is missing"))
        return None
    except (OSError, EOFError, ValueError, KeyError) as error:
        reporter.log(_damaged(path, str(error)))
        return None
    with contextlib.suppress(OSError):  # a cache that is only read from cannot note that it was
        os.utime(meta_path)
    return entry


def _open_array(path: Path, described: dict[str, Any]) -> Array:
    """Return an array mapped into memory; raises `ValueError` where it was altered."""
    array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    actual = (list(array.shape), array.dtype.str)
    if actual != (described["shape"], described["dtype"]) or _crc32(array) != described["crc32"]:
        raise ValueError("its content was altered")
    return array


def _crc32(array: Array) -> int:
    value = 0
    row_bytes = max(1, array[:1].nbytes)
    step = max(1, _STEP // row_bytes)
    for start in range(0, len(array), step):
        rows = np.ascontiguousarray(array[start : start + step])
        value = zlib.crc32(rows.data.cast("B"), value)
    return value


def _damaged(path: Path, reason: str) -> str:
    return f"The cache entry {path.name} is damaged ({reason}); it is computed again."
