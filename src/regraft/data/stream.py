"""Images without labels, one after another, in memory that does not grow with their number.

They come from files, folders, patterns, lists, archives and Parquet files. One that cannot be
read says why when it is read, and the others follow. Links out of a given folder are not followed.
"""

from __future__ import annotations

import glob
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from regraft.data.decode import LARGEST_FILE, explain_failure, read_bytes
from regraft.data.names import (
    ARCHIVE_SUFFIXES,
    is_helper_folder,
    is_image_member,
    is_image_name,
    is_own_output,
    printable_name,
)
from regraft.data.packed import MOST_GROWTH, UNPACK_ERRORS, check_growth
from regraft.data.parquet import ROWS_AT_ONCE, find_image_column, load_parquet_folder
from regraft.errors import UserError, join_truncated
from regraft.system.files import expand_user

STDIN_LIST = "-"  # stands for a list of paths, one a line
_ALWAYS_ALLOWED = 2**26  # bytes that a member of a zip may unpack to
_TAR_HEADER = 512  # bytes of each member's header
_UNREADABLE = (*UNPACK_ERRORS, UserError)


@dataclass(frozen=True)
class StreamItem:
    """One image.

    Args:
        name: What it is called.
        read: Returns its bytes, or raises and says why it cannot.
    """

    name: str
    read: Callable[[], bytes]


def check_inputs(given: Sequence[str | Path]) -> None:
    """Raise one `UserError` where paths do not exist, or patterns match nothing."""
    missing = [str(path) for path in given if not _exists(path)]
    if missing:
        raise UserError(
            f"There is nothing at {join_truncated(missing)}. Expected image files, folders, "
            f"patterns, zip or tar archives, Parquet files, or {STDIN_LIST} for a list of paths on "
            "standard input. Check the path."
        )


def iterate_images(given: Iterable[str | Path], lines: Iterable[str] = ()) -> Iterator[StreamItem]:
    """Yield the images at some paths, in order.

    Those of a folder are sorted by name, those of an archive or a table come as they lie there.

    Args:
        given: Paths of images, folders (searched through), archives, Parquet files or folders of
            them, patterns with `*`, or "-" for `lines`.
        lines: Such paths, one each, where "-" is given; one that does not exist is an image that
            cannot be read.
    """
    for path in given:
        if str(path) != STDIN_LIST:
            yield from _at_pattern(str(expand_user(path)))
            continue
        for line in lines:
            if line.strip():
                yield from _at_pattern(line.rstrip("\r\n"))


def count_images(given: Sequence[str | Path]) -> int:
    """Return how many images `found` will yield.

    0 where that is not known without reading them: for a list, or in a tar.
    """
    total = 0
    for path in map(expand_user, given):
        if str(path) == STDIN_LIST or (path.is_file() and _is_tar(path)):
            return 0
        total += _count_at(path)
    return total


def _exists(path: str | Path) -> bool:
    if str(path) == STDIN_LIST:
        return True
    place = expand_user(path)
    return place.exists() or bool(_match(str(place)))


def _count_at(path: Path) -> int:
    if path.is_dir():
        in_files = sum(1 for _ in _in_folder(path))
        return in_files + sum(map(_count_rows, load_parquet_folder(path)))
    if _is_parquet(path):
        return _count_rows(path)
    return sum(1 for _ in _at_pattern(str(path)))


def _count_rows(path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError, ValueError):
        return 1  # the row that says why


def _at_pattern(text: str) -> Iterator[StreamItem]:
    """Yield the images at one path or pattern."""
    path = Path(text)
    if path.is_dir() or path.is_file():
        yield from _at_path(path)
        return
    matches = _match(text)
    top = _before_pattern(text)
    for match in map(Path, matches):
        if _leads_out(match, top):
            yield _outside(match, top)
        else:
            yield from _at_path(match)
    if not matches:
        yield _refused(path, "there is nothing at this path")


def _at_path(path: Path) -> Iterator[StreamItem]:
    if path.is_dir():
        for file in load_parquet_folder(path):
            yield from _in_parquet(file)
        yield from _in_folder(path)
    elif _is_parquet(path):
        yield from _in_parquet(path)
    elif _is_zip(path):
        yield from _in_zip(path)
    elif _is_tar(path):
        yield from _in_tar(path)
    else:
        yield _file(path)


def _in_folder(top: Path) -> Iterator[StreamItem]:
    waiting: list[Path | StreamItem] = [top]  # a stack: the last one in is the first one out
    while waiting:
        item = waiting.pop()
        if isinstance(item, StreamItem):
            yield item
            continue
        try:
            with os.scandir(item) as entries:
                inside = sorted(entries, key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            yield _refused(item, f"the folder cannot be read ({error.strerror})")
            continue
        for entry in inside:
            if is_helper_folder(entry.name):
                continue
            next_item = _look_at(entry, top)
            if next_item is not None:
                waiting.append(next_item)


def _look_at(entry: os.DirEntry[str], top: Path) -> Path | StreamItem | None:
    """Return the image at an entry of a folder, the folder that it is, or None for other things."""
    path = Path(entry.path)
    if entry.is_symlink():
        return _look_at_link(path, top)
    if entry.is_dir():
        return None if is_own_output(path) else path
    if entry.is_file() and is_image_name(entry.name):
        return _file(path)
    return None


def _look_at_link(path: Path, top: Path) -> StreamItem | None:
    is_folder = path.is_dir()
    is_image = is_image_name(path)
    if (is_folder or is_image) and _leads_out(path, top):
        return _outside(path, top)
    if is_image and not is_folder:
        return _file(path)
    return None  # a folder inside is met where it is


def _in_zip(path: Path) -> Iterator[StreamItem]:
    try:
        packed = zipfile.ZipFile(path)  # closed when the last reader lets go of it
    except _UNREADABLE as error:
        yield _refused(path, f"the archive cannot be unpacked ({error})")
        return
    for member in packed.infolist():
        if not is_image_member(member.filename):
            continue
        name = f"{_shown(path)}/{printable_name(member.filename)}"
        allowed = max(_ALWAYS_ALLOWED, MOST_GROWTH * member.compress_size)
        if member.file_size > min(LARGEST_FILE, allowed):
            yield StreamItem(name, _too_large)
        else:
            yield StreamItem(name, partial(_read_member, packed, member))


def _read_member(packed: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    try:
        return packed.read(member)
    except _UNREADABLE as error:
        raise ValueError(f"damaged in the archive ({explain_failure(error)})") from error


def _in_tar(path: Path) -> Iterator[StreamItem]:
    n_bytes = 0
    try:
        with tarfile.open(path, "r|*") as packed:  # front to back, as a tar can only be read
            for member in packed:
                packed.members = []  # type: ignore[attr-defined]  # or it remembers every one
                n_bytes += _TAR_HEADER + member.size
                check_growth(path, n_bytes)
                if is_image_member(member.name):
                    name = f"{_shown(path)}/{printable_name(member.name)}"
                    yield StreamItem(name, _read_from_tar(packed, member))
    except _UNREADABLE as error:
        yield _refused(path, f"the archive cannot be unpacked any further ({error})")


def _read_from_tar(packed: tarfile.TarFile, member: tarfile.TarInfo) -> Callable[[], bytes]:
    """Return what gives a member's bytes; they are read now, since a tar has no way back."""
    if not member.isfile():
        return _raising("a link or a device in an archive, not followed")
    if member.size > LARGEST_FILE:
        return _too_large
    file = packed.extractfile(member)
    assert file is not None  # as it is for every file
    return partial(bytes, file.read())


def _in_parquet(path: Path) -> Iterator[StreamItem]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        with pq.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
            column = find_image_column(file.schema_arrow)
            if column is None:
                names = join_truncated(file.schema_arrow.names)
                yield _refused(
                    path,
                    f"no column of images: expected a struct with bytes, or bytes; it has {names}",
                )
                return
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=[column]):
                for content in _get_bytes(batch.column(0)):
                    yield _of_row(f"{_shown(path)}#{row}", content)
                    row += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        yield _refused(
            path, f"no readable Parquet file from row {row} on ({explain_failure(error)})"
        )


def _get_bytes(column: Any) -> list[bytes | None]:
    """Return the bytes in a column of structs, or of bytes alone."""
    import pyarrow as pa

    values = column.field("bytes") if pa.types.is_struct(column.type) else column
    contents: list[bytes | None] = values.to_pylist()
    return contents


def _of_row(name: str, content: bytes | None) -> StreamItem:
    if content is None:
        return StreamItem(name, _raising("no bytes in this row"))
    return StreamItem(name, partial(bytes, content))


def _file(path: Path) -> StreamItem:
    return StreamItem(_shown(path), partial(read_bytes, path))


def _outside(path: Path, top: Path) -> StreamItem:
    return _refused(path, f"a link that leads out of {top}, not followed")


def _refused(path: Path, reason: str) -> StreamItem:
    return StreamItem(_shown(path), _raising(reason))


def _raising(reason: str) -> Callable[[], bytes]:
    def read() -> bytes:
        raise ValueError(reason)

    return read


def _too_large() -> bytes:
    raise ValueError(
        f"the file unpacks to more than the {LARGEST_FILE / 1e6:,.0f} MB, "
        f"or the {MOST_GROWTH} times its packed size, that are allowed"
    )


def _leads_out(path: Path, top: Path) -> bool:
    try:
        return not path.resolve().is_relative_to(top.resolve())
    except (OSError, RuntimeError):  # links in a circle
        return True


def _match(text: str) -> list[str]:
    return sorted(glob.glob(text, recursive=True))  # noqa: PTH207  Path.glob takes no absolute ones


def _before_pattern(text: str) -> Path:
    """Return the folder that a pattern starts from: what is before the first `*`, `?` or `[`."""
    fixed = []
    for part in Path(text).parts:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return Path(*fixed)


def _is_parquet(path: Path) -> bool:
    return path.name.lower().endswith(".parquet")


def _is_zip(path: Path) -> bool:
    return path.name.lower().endswith(".zip")


def _is_tar(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVE_SUFFIXES) and not _is_zip(path)


def _shown(path: Path) -> str:
    return printable_name(str(path))
