"""Folders, archives and CSV lists of image files as datasets."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from regraft import data
from regraft.errors import NoRoom, UserError, listed, nearest
from regraft.files import abandoned, is_full, scratch_folder
from regraft.sources.decode import EncodedImages

SUFFIXES = frozenset([".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".jp2", ".avif"])
PART_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test",
}  # fmt: skip
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def folder(root: Path, name: str | None = None) -> data.Dataset:
    """Return the images under `{train,val,test}/<class>/` or `<class>/`, classes in the order of their names.

    Raises:
        UserError: When there are no class folders with images.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    if len(folders) == 1 and not any(_is_image(path) for path in root.iterdir()):
        only = folders[0]
        if only.name.lower() not in PART_NAMES and any(path.is_dir() for path in only.iterdir()):
            return folder(only, name or root.name)  # an archive often holds one folder with everything in it
    split = {path: PART_NAMES[path.name.lower()] for path in folders if path.name.lower() in PART_NAMES}
    if split and len(split) < len(folders):
        others = listed(path.name for path in folders if path not in split)
        raise UserError(
            f"{root} mixes part folders ({listed(path.name for path in split)}) with others ({others}). "
            "Expected train, val and test folders only, or class folders only. Move the others away."
        )
    found: list[tuple[Path, str, str]] = []
    classes: set[str] = set()
    for top, part in split.items() if split else [(root, "")]:
        for one in sorted(path for path in top.iterdir() if path.is_dir() and not path.name.startswith(".")):
            classes.add(one.name)
            found += [(path, one.name, part) for path in _images(one)]
    if not found:
        loose = sum(_is_image(path) for path in root.iterdir())
        what = f"holds {loose:,} images but no class folders" if loose else "holds no images"
        raise UserError(f"{root} {what}. Expected one folder a class, as in {root.name}/cat/1.jpg, or train, val and test folders of such.")
    keys = [path.relative_to(root).as_posix() for path, _, _ in found]
    parts = [part for _, _, part in found] if split else None
    return _of_paths(name or root.name, [path for path, _, _ in found], [label for _, label, _ in found], sorted(classes), keys, parts)


def archive(path: Path, home: Path) -> data.Dataset:
    """Return the images in a zip or tar of a folder, unpacked once into `home`."""
    stat = path.stat()
    digest = hashlib.blake2b(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode(), digest_size=8).hexdigest()
    target = home / "archives" / digest
    if not target.is_dir():
        scratch = target
        try:
            scratch = scratch_folder(target)
            for left in abandoned(target.parent):
                shutil.rmtree(left, ignore_errors=True)
            _unpack(path, scratch)
            _named(scratch, target)
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, RuntimeError, NotImplementedError) as error:  # RuntimeError: encrypted
            if is_full(error):
                raise NoRoom(
                    f"{path} cannot be unpacked into {target.parent}: no space left on its disk. Make room, or set REGRAFT_CACHE to another."
                ) from error
            raise UserError(f"{path} cannot be unpacked ({error}). Expected a whole zip or tar of class folders. Fetch or pack it again.") from error
        finally:
            if scratch != target:
                shutil.rmtree(scratch, ignore_errors=True)
    return folder(target, path.name)


def _named(scratch: Path, target: Path) -> None:
    """Give an unpacked folder its name, unless another process was faster."""
    try:
        os.replace(scratch, target)
    except OSError:
        if not target.is_dir():
            raise


def table(path: Path) -> data.Dataset:
    """Return the images that a CSV lists: columns `path`, `label`, and optionally `split` and `group`.

    Paths are relative to the CSV. Classes are in the order of their names; numbers in the order of their values.

    Raises:
        UserError: When columns, labels or files are missing, or a split has an unknown name.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start:,}). Expected a CSV in UTF-8. Save it again in that encoding."
        ) from error
    with io.StringIO(content, newline="") as file:
        reader = csv.DictReader(file)
        columns = [column.strip().lower() for column in reader.fieldnames or []]
        reader.fieldnames = columns
        lacking = [column for column in ("path", "label") if column not in columns]
        if lacking:
            near = [f"{column!r} looks like {found[0]!r}" for column in lacking if (found := nearest(column, columns, 1))]
            raise UserError(
                f"{path} lacks the column{'s' if len(lacking) > 1 else ''} {listed(map(repr, lacking))}; it has {listed(map(repr, columns))}. "
                f"Expected a header line with path,label and optionally split and group.{' ' + '; '.join(near) + '.' if near else ''} Rename the columns."
            )
        rows = [row for row in reader if any((value or "").strip() for value in row.values() if isinstance(value, str))]
    unlabelled = [str(number) for number, row in enumerate(rows, 2) if not (row["label"] or "").strip() or not (row["path"] or "").strip()]
    if unlabelled:
        raise UserError(f"{path} has no path or label in line {listed(unlabelled)}. Expected both in every line. Fill them in or remove the lines.")
    files = [(path.parent / row["path"].strip()).absolute() for row in rows]
    missing = [row["path"] for row, file in zip(rows, files, strict=True) if not file.is_file()]
    if missing:
        raise UserError(
            f"{path} lists {len(missing):,} files that do not exist: {listed(missing)}. Expected paths relative to {path.parent}. Correct or remove them."
        )
    labels = [row["label"].strip() for row in rows]
    parts = [_part((row.get("split") or "").strip(), path) for row in rows] if "split" in columns else None
    groups = [(row.get("group") or "").strip() for row in rows] if "group" in columns else None
    return _of_paths(path.name, files, labels, ordered(set(labels)), [row["path"].strip() for row in rows], parts, groups)


def ordered(labels: Iterable[str]) -> list[str]:
    """Return class names in their order: by value where all are numbers, else by name."""
    names = set(labels)
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


def _of_paths(
    name: str, paths: Sequence[Path], labels: Sequence[str], classes: Sequence[str], keys: Sequence[str],
    parts: Sequence[str] | None, groups: Sequence[str] | None = None,
) -> data.Dataset:  # fmt: skip
    number = {label: place for place, label in enumerate(classes)}
    images = EncodedImages([str(path) for path in paths], lambda row: paths[row].read_bytes(), np.arange(len(paths)))
    return data.table(name, [number[label] for label in labels], classes, images, keys, parts, groups)


def _part(given: str, path: Path) -> str:
    if given and given.lower() not in PART_NAMES:
        raise UserError(f"{path} has the split {given!r}. Expected train, val, test, or nothing. Correct the column.")
    return PART_NAMES[given.lower()] if given else ""


def _images(top: Path) -> list[Path]:
    return sorted(path for path in top.rglob("*") if _is_image(path))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and (path.is_file() or path.is_symlink())


def _unpack(path: Path, target: Path) -> None:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            _check_room(sum(member.file_size for member in packed.infolist()), path, target)
            packed.extractall(target)  # noqa: S202  zipfile drops absolute paths and '..' itself
    else:
        with tarfile.open(path) as packed_tar:
            _check_room(sum(member.size for member in packed_tar.getmembers()), path, target)
            packed_tar.extractall(target, filter="data")


def _check_room(needed: int, path: Path, target: Path) -> None:
    free = shutil.disk_usage(target).free
    if needed > free:
        raise UserError(
            f"{path} unpacks to {needed / 1e6:,.0f} MB, but {target.parent} has {free / 1e6:,.0f} MB free. Make room, or set REGRAFT_CACHE to another disk."
        )
