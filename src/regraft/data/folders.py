"""Folders, archives and CSV lists of image files as datasets."""

from __future__ import annotations

import csv
import hashlib
import io
import lzma
import os
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from regraft.data.dataset import Dataset, make_dataset
from regraft.data.decode import EncodedImages, read_bytes
from regraft.errors import DiskFull, UserError, close_matches, join_truncated
from regraft.system.files import holds_results, is_full, make_scratch_dir, stale_dirs

SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".tif",
        ".tiff",
        ".gif",
        ".ppm",
        ".pgm",
        ".pbm",
        ".jp2",
        ".avif",
    ]
)
PART_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "eval": "test",
}
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_DIGITS = 100  # of a class name that is taken for a number
_FREELY, _GROWTH = (
    2**28,
    200,
)  # bytes that anything may unpack to, and times its own size from there on; images hardly shrink
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    RuntimeError,
)  # RuntimeError: encrypted


def load_folder(root: Path, name: str | None = None) -> Dataset:
    """Return the images under `{train,val,test}/<class>/` or `<class>/`, classes in the order of their names.

    Raises:
        UserError: When there are no class folders with images.
    """
    name = name or (
        root.name if root.name.strip(".") else root.resolve().name
    )  # "." and ".." are no names
    folders = _folders(root)
    if len(folders) == 1 and not any(_is_image(path) for path in root.iterdir()):
        only = folders[0]
        if only.name.lower() not in PART_NAMES and any(path.is_dir() for path in only.iterdir()):
            return load_folder(
                only, name
            )  # an archive often holds one folder with everything in it
    split = {
        path: PART_NAMES[path.name.lower()] for path in folders if path.name.lower() in PART_NAMES
    }
    if split and len(split) < len(folders):
        others = join_truncated(path.name for path in folders if path not in split)
        raise UserError(
            f"{root} mixes part folders ({join_truncated(path.name for path in split)}) with others ({others}). "
            "Expected train, val and test folders only, or class folders only. Move the others away."
        )
    found: list[tuple[Path, str, str]] = []
    classes: set[str] = set()
    for top, part in split.items() if split else [(root, "")]:
        for one in _folders(top):
            _check_link(one, root)
            classes.add(printable_name(one.name))
            found += [(path, printable_name(one.name), part) for path in _images(one)]
    if not found:
        loose = sum(_is_image(path) for path in root.iterdir())
        what = f"holds {loose:,} images but no class folders" if loose else "holds no images"
        raise UserError(
            f"{root} {what}. Expected one folder a class, as in {root / 'cat/1.jpg'}, or train, val and test folders of such."
        )
    keys = [printable_name(path.relative_to(root).as_posix()) for path, _, _ in found]
    parts = [part for _, _, part in found] if split else None
    return _of_paths(
        name,
        [str(path) for path, _, _ in found],
        [label for _, label, _ in found],
        sorted(classes),
        keys,
        parts,
    )


def load_archive(path: Path, home: Path) -> Dataset:
    """Return the images in a zip or tar of a folder, unpacked once into `home`."""
    stat = path.stat()
    digest = hashlib.blake2b(
        f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode(), digest_size=8
    ).hexdigest()
    target = home / "archives" / digest
    if not target.is_dir():
        scratch = target
        try:
            scratch = make_scratch_dir(target)
            for left in stale_dirs(target.parent):
                shutil.rmtree(left, ignore_errors=True)
            _unpack(path, scratch)
            _named(scratch, target)
        except _DAMAGED as error:
            if is_full(error):
                raise DiskFull(
                    f"{path} cannot be unpacked into {target.parent}: no space left on its disk. Make room, or set REGRAFT_CACHE to another."
                ) from error
            raise UserError(
                f"{path} cannot be unpacked ({error}). Expected a whole zip or tar of class folders. Fetch or pack it again."
            ) from error
        finally:
            if scratch != target:
                shutil.rmtree(scratch, ignore_errors=True)
    return load_folder(target, path.name)


def _named(scratch: Path, target: Path) -> None:
    """Give an unpacked folder its name, unless another process was faster."""
    try:
        os.replace(scratch, target)
    except OSError:
        if not target.is_dir():
            raise


def load_csv(path: Path) -> Dataset:
    """Return the images that a CSV lists: columns `path`, `label`, and optionally `split` and `group`.

    Paths are relative to the CSV, and stay within its folder. Classes are in the order of their names; numbers in the order of their values.

    Raises:
        UserError: When columns, labels or files are missing, or a split has an unknown name.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start:,}). Expected a CSV in UTF-8. Save it again in that encoding."
        ) from error
    rows = _rows(content, path)
    unlabelled = [
        str(number)
        for number, row in enumerate(rows, 2)
        if not (row["label"] or "").strip() or not (row["path"] or "").strip()
    ]
    if unlabelled:
        raise UserError(
            f"{path} has no path or label in line {join_truncated(unlabelled)}. Expected both in every line. Fill them in or remove the lines."
        )
    given = [row["path"].strip() for row in rows]
    base = os.path.normpath(path.parent.absolute())
    outside = [one for one in given if not _is_within(base, one)]
    if outside:
        raise UserError(
            f"{path} lists {len(outside):,} files outside of {path.parent}: {join_truncated(outside)}. Expected images below the folder of the CSV. "
            "Put the CSV into a folder that holds them all."
        )
    top = str(path.parent.absolute())
    files = [os.path.join(top, one) for one in given]  # noqa: PTH118  a million of them
    missing = [one for one, file in zip(given, files, strict=True) if not os.path.isfile(file)]  # noqa: PTH113
    if missing:
        raise UserError(
            f"{path} lists {len(missing):,} files that do not exist: {join_truncated(missing)}. Expected paths relative to {path.parent}. Correct or remove them."
        )
    labels = [row["label"].strip() for row in rows]
    parts = (
        [_part((row.get("split") or "").strip(), path) for row in rows]
        if any("split" in row for row in rows[:1])
        else None
    )
    groups = (
        [(row.get("group") or "").strip() for row in rows]
        if any("group" in row for row in rows[:1])
        else None
    )
    return _of_paths(path.name, files, labels, natural_order(set(labels)), given, parts, groups)


def check_growth(path: Path, unpacked: int) -> None:
    """Raise `UserError` where a file unpacks to what no images would: beyond 268 MB and 200 times its own size."""
    if unpacked > max(_FREELY, _GROWTH * path.stat().st_size):
        raise UserError(
            f"{path} has {path.stat().st_size / 1e6:,.1f} MB and unpacks to {unpacked / 1e6:,.0f} MB or more. Expected images, which hardly shrink "
            "when they are packed; files that grow so are made to fill a disk. Unpack it yourself where you trust it, and give the folder."
        )


def printable_name(name: str) -> str:
    """Return a name that can be written as UTF-8, whatever bytes the file system has for it."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _rows(content: str, path: Path) -> list[dict[str, str]]:
    with io.StringIO(content, newline="") as file:
        reader = csv.DictReader(file)
        try:
            columns = [column.strip().lower() for column in reader.fieldnames or []]
            reader.fieldnames = columns
            read = list(reader)
        except csv.Error as error:
            raise UserError(
                f"{path} is no readable CSV ({error} in line {reader.line_num:,}). Expected path,label and one image a line. Save it again."
            ) from error
    lacking = [column for column in ("path", "label") if column not in columns]
    if lacking:
        near = [
            f"{column!r} looks like {found[0]!r}"
            for column in lacking
            if (found := close_matches(column, columns, 1))
        ]
        raise UserError(
            f"{path} lacks the column{'s' if len(lacking) > 1 else ''} {join_truncated(map(repr, lacking))}; it has {join_truncated(map(repr, columns))}. "
            f"Expected a header line with path,label and optionally split and group.{' ' + '; '.join(near) + '.' if near else ''} Rename the columns."
        )
    return [
        row
        for row in read
        if any((value or "").strip() for value in row.values() if isinstance(value, str))
    ]


def natural_order(labels: Iterable[str]) -> list[str]:
    """Return class names in their order: by value where all are numbers, else by name."""
    names = set(labels)
    return (
        sorted(names, key=int)
        if all(name.isdecimal() and len(name) < _DIGITS for name in names)
        else sorted(names)
    )


def _of_paths(
    name: str,
    paths: Sequence[str],
    labels: Sequence[str],
    classes: Sequence[str],
    keys: Sequence[str],
    parts: Sequence[str] | None,
    groups: Sequence[str] | None = None,
) -> Dataset:
    number = {label: place for place, label in enumerate(classes)}
    images = EncodedImages(
        [printable_name(path) for path in paths],
        lambda row: read_bytes(paths[row]),
        np.arange(len(paths)),
    )
    return make_dataset(
        name, [number[label] for label in labels], classes, images, keys, parts, groups
    )


def _part(given: str, path: Path) -> str:
    if given and given.lower() not in PART_NAMES:
        raise UserError(
            f"{path} has the split {given!r}. Expected train, val, test, or nothing. Correct the column."
        )
    return PART_NAMES[given.lower()] if given else ""


def _folders(top: Path) -> list[Path]:
    """Return the folders in one that may hold images, sorted: none that is hidden, and none that regraft wrote its results to."""
    inside = (
        path for path in top.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))
    )
    return sorted(
        path
        for path in inside
        if not holds_results(path) and not any(holds_results(one) for one in path.glob("*/"))
    )


def _images(top: Path) -> list[Path]:
    return sorted(path for path in top.rglob("*") if _is_image(path))


def _is_image(path: Path) -> bool:
    return (
        path.suffix.lower() in SUFFIXES
        and not path.name.startswith(".")
        and (path.is_file() or path.is_symlink())
    )


def _is_within(base: str, given: str) -> bool:
    """Whether a path leads below a normalised one, whatever is or is not there."""
    return os.path.normpath(os.path.join(base, given)).startswith(base.rstrip(os.sep) + os.sep)  # noqa: PTH118


def _check_link(one: Path, root: Path) -> None:
    """Raise `UserError` for a class folder that is a link to what is around it or beside it: its images would be met twice."""
    if one.is_symlink() and (
        one.resolve().is_relative_to(root.resolve()) or root.resolve().is_relative_to(one.resolve())
    ):
        raise UserError(
            f"{one} is a link to {one.resolve()}, which is around or within {root}. Expected every image in one class only. Remove the link."
        )


def _unpack(path: Path, target: Path) -> None:
    """Unpack folders and images; whatever else an archive holds, archives in it among them, stays packed."""
    if path.name.lower().endswith(".zip"):  # a tar that holds a zip looks like one
        with zipfile.ZipFile(path) as packed:
            wanted = [
                member
                for member in packed.infolist()
                if member.filename.endswith("/") or _named_as_image(member.filename)
            ]
            _check_members(
                [member.filename for member in wanted],
                sum(member.file_size for member in wanted),
                path,
                target,
            )
            packed.extractall(target, wanted)  # noqa: S202  zipfile drops absolute paths and '..' itself
    else:
        with tarfile.open(path) as packed_tar:
            kept, read = [], 0
            for member in packed_tar:
                read += 512 + member.size
                check_growth(
                    path, read
                )  # before what comes next is looked for, which means unpacking this
                if member.isdir() or _named_as_image(member.name):
                    kept.append(member)
            _check_members(
                [member.name for member in kept], sum(member.size for member in kept), path, target
            )
            packed_tar.extractall(target, kept, filter="data")


def _check_members(names: Sequence[str], needed: int, path: Path, target: Path) -> None:
    out = [
        printable_name(name)
        for name in names
        if ".." in PurePosixPath(name.replace("\\", "/")).parts
    ]
    if out:
        raise UserError(
            f"{path} cannot be unpacked: {join_truncated(out)} would lie outside of it. Expected class folders of images. Pack the folder itself."
        )
    check_growth(path, needed)
    free = shutil.disk_usage(target).free
    if needed > free:
        raise UserError(
            f"{path} unpacks to {needed / 1e6:,.0f} MB, but {target.parent} has {free / 1e6:,.0f} MB free. Make room, or set REGRAFT_CACHE to another disk."
        )


def _named_as_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES
