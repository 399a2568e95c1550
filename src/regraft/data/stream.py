"""Images without labels, one after another: files, folders, patterns, lists, archives and Parquet files, in memory that does not grow with them.

Refuses to stop at a bad one: what cannot be read says why when it is read. A link that leads out of the folder that was given is not followed.
"""

from __future__ import annotations

import glob
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from regraft.data.decode import LARGEST_FILE, explain_failure, read_bytes
from regraft.data.folders import ARCHIVES, SUFFIXES, check_growth, printable_name
from regraft.data.tables import image_column, load_parquet_folder
from regraft.errors import UserError, join_truncated
from regraft.system.files import expand_user, holds_results

LIST = "-"  # stands for a list of paths, one a line
_SMALL, _GROWTH = (
    2**26,
    200,
)  # bytes that a member of a zip may always unpack to, and times its packed size from there on
_ROWS_AT_ONCE = 16  # of a Parquet file
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    RuntimeError,
    UserError,
)


@dataclass(frozen=True)
class StreamItem:
    """One image: what it is called, and a function that gives its bytes, or raises and says why it cannot."""

    name: str
    read: Callable[[], bytes]


def check_inputs(given: Sequence[str | Path]) -> None:
    """Raise one `UserError` where something that was given does not exist, or a pattern matches nothing."""
    missing = [
        str(one)
        for one in given
        if str(one) != LIST and not expand_user(one).exists() and not _matches(_home(one))
    ]
    if missing:
        raise UserError(
            f"There is nothing at {join_truncated(missing)}. Expected image files, folders, patterns, zip or tar archives, Parquet files, "
            f"or {LIST} for a list of paths on standard input. Check the path."
        )


def iterate_images(given: Iterable[str | Path], lines: Iterable[str] = ()) -> Iterator[StreamItem]:
    """Yield the images in what was given, in order: the names in a folder sorted, an archive's and a table's as they lie there.

    Args:
        given: Paths of images, folders (searched through), archives, Parquet files or folders of them, patterns with `*`, or "-" for `lines`.
        lines: Such paths, one each, where "-" is given; one that does not exist is an image that cannot be read.
    """
    for one in given:
        if str(one) == LIST:
            for line in lines:
                if line.strip():
                    yield from _of(line.rstrip("\r\n"))
        else:
            yield from _of(_home(one))


def count_images(given: Sequence[str | Path]) -> int:
    """Return how many images `found` will yield, or 0 where nobody can say without reading them: of a list, or in a tar."""
    total = 0
    for one in given:
        path = expand_user(one)
        if str(one) == LIST or (
            path.is_file()
            and path.name.lower().endswith(ARCHIVES)
            and not path.name.lower().endswith(".zip")
        ):
            return 0
        if path.is_dir():
            total += sum(map(_rows, load_parquet_folder(path))) + sum(1 for _ in _of_folder(path))
        else:
            total += (
                _rows(path)
                if path.name.lower().endswith(".parquet")
                else sum(1 for _ in _of(_home(one)))
            )
    return total


def _of(text: str) -> Iterator[StreamItem]:
    """Yield the images at one path or pattern."""
    path = Path(text)
    if path.is_dir() or path.is_file():
        yield from _at(path)
        return
    matches = _matches(text)
    top = _before_pattern(text)
    for match in map(Path, matches):
        yield from (
            [_refused(match, f"a link that leads out of {top}, not followed")]
            if _leads_out(match, top)
            else _at(match)
        )
    if not matches:
        yield _refused(path, "there is nothing at this path")


def _at(path: Path) -> Iterator[StreamItem]:
    if path.is_dir():
        for file in load_parquet_folder(path):
            yield from _of_parquet(file)
        yield from _of_folder(path)
    elif path.name.lower().endswith(".parquet"):
        yield from _of_parquet(path)
    elif path.name.lower().endswith(".zip"):
        yield from _of_zip(path)
    elif path.name.lower().endswith(ARCHIVES):
        yield from _of_tar(path)
    else:
        yield _file(path)


def _of_folder(top: Path) -> Iterator[StreamItem]:
    waiting: list[Path | StreamItem] = [top]
    while waiting:
        one = waiting.pop()
        if isinstance(one, StreamItem):
            yield one
            continue
        try:
            with os.scandir(one) as entries:
                inside = sorted(
                    entries, key=lambda entry: entry.name, reverse=True
                )  # the last one in is the first one out
        except OSError as error:
            yield _refused(one, f"the folder cannot be read ({error.strerror})")
            continue
        for entry in inside:
            path = Path(entry.path)
            if entry.name.startswith((".", "__")):
                continue
            if entry.is_symlink():
                is_folder = path.is_dir()
                if _leads_out(path, top) and (is_folder or _is_image(entry.name)):
                    waiting.append(_refused(path, f"a link that leads out of {top}, not followed"))
                elif not is_folder and _is_image(entry.name):
                    waiting.append(_file(path))  # a folder inside is met where it is
            elif entry.is_dir():
                waiting += [] if holds_results(path) else [path]
            elif entry.is_file() and _is_image(entry.name):
                waiting.append(_file(path))


def _of_zip(path: Path) -> Iterator[StreamItem]:
    try:
        packed = zipfile.ZipFile(path)  # closed when the last reader lets go of it
    except _DAMAGED as error:
        yield _refused(path, f"the archive cannot be unpacked ({error})")
        return
    for member in packed.infolist():
        if _is_image(member.filename):
            name = f"{_shown(path)}/{printable_name(member.filename)}"
            if member.file_size > min(LARGEST_FILE, max(_SMALL, _GROWTH * member.compress_size)):
                yield StreamItem(name, _too_large)
            else:
                yield StreamItem(name, partial(_member, packed, member))


def _member(packed: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    try:
        return packed.read(member)
    except _DAMAGED as error:
        raise ValueError(f"damaged in the archive ({explain_failure(error)})") from error


def _of_tar(path: Path) -> Iterator[StreamItem]:
    read = 0
    try:
        with tarfile.open(path, "r|*") as packed:  # front to back, as a tar can only be read
            for member in packed:
                packed.members = []  # type: ignore[attr-defined]  # or it remembers every one
                read += 512 + member.size
                check_growth(path, read)
                if not _is_image(member.name):
                    continue
                name = f"{_shown(path)}/{printable_name(member.name)}"
                file = (
                    packed.extractfile(member)
                    if member.isfile() and member.size <= LARGEST_FILE
                    else None
                )
                if file is not None:
                    yield StreamItem(name, partial(bytes, file.read()))
                elif member.isfile():
                    yield StreamItem(name, _too_large)
                else:
                    yield StreamItem(
                        name, _raising("a link or a device in an archive, not followed")
                    )
    except _DAMAGED as error:
        yield _refused(path, f"the archive cannot be unpacked any further ({error})")


def _of_parquet(path: Path) -> Iterator[StreamItem]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        with pq.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
            column = image_column(file.schema_arrow)
            if column is None:
                yield _refused(
                    path,
                    f"no column of images: expected a struct with bytes, or bytes; it has {join_truncated(file.schema_arrow.names)}",
                )
                return
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[column]):
                values = batch.column(0)
                for content in (
                    values.field("bytes") if pa.types.is_struct(values.type) else values
                ).to_pylist():
                    name = f"{_shown(path)}#{row}"
                    row += 1
                    yield StreamItem(
                        name,
                        _raising("no bytes in this row")
                        if content is None
                        else partial(bytes, content),
                    )
    except (pa.ArrowException, OSError, ValueError) as error:
        yield _refused(
            path, f"no readable Parquet file from row {row} on ({explain_failure(error)})"
        )


def _rows(path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError, ValueError):
        return 1  # the row that says why


def _file(path: Path) -> StreamItem:
    return StreamItem(_shown(path), partial(read_bytes, path))


def _refused(path: Path, why: str) -> StreamItem:
    return StreamItem(_shown(path), _raising(why))


def _raising(why: str) -> Callable[[], bytes]:
    def read() -> bytes:
        raise ValueError(why)

    return read


def _too_large() -> bytes:
    raise ValueError(
        f"the file unpacks to more than the {LARGEST_FILE / 1e6:,.0f} MB, or the {_GROWTH} times its packed size, that are allowed"
    )


def _leads_out(path: Path, top: Path) -> bool:
    try:
        return not path.resolve().is_relative_to(top.resolve())
    except (OSError, RuntimeError):  # links in a circle
        return True


def _matches(text: str) -> list[str]:
    return sorted(glob.glob(text, recursive=True))  # noqa: PTH207  Path.glob takes no absolute patterns


def _before_pattern(text: str) -> Path:
    """Return the folder that a pattern starts from: what stands before the first `*`, `?` or `[`."""
    fixed = []
    for part in Path(text).parts:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return Path(*fixed)


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES and not Path(name).name.startswith(".")


def _home(one: str | Path) -> str:
    return str(expand_user(one))


def _shown(path: Path) -> str:
    return printable_name(str(path))
