"""CSV lists of image files as datasets."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from regraft.data.dataset import Dataset
from regraft.data.listing import LabelledFile, dataset_from_files
from regraft.data.names import PART_NAMES, natural_order
from regraft.errors import UserError, close_matches, join_truncated

_REQUIRED = ("path", "label")


def load_csv(path: Path) -> Dataset:
    """Return the images that a CSV lists: columns `path`, `label`, optionally `split`, `group`.

    Paths are relative to the CSV's folder, and stay within it. Classes are in the order of their
    names; numbers in the order of their values.

    Raises:
        UserError: When columns, labels or files are missing, or a split has an unknown name.
    """
    rows = _read_rows(path)
    _check_filled(path, rows)
    listed_paths = [row["path"].strip() for row in rows]
    _check_inside(path, listed_paths)
    folder = str(path.parent.absolute())
    full_paths = [os.path.join(folder, name) for name in listed_paths]  # noqa: PTH118  many
    _check_existing(path, listed_paths, full_paths)
    files = []
    for row, key, file in zip(rows, listed_paths, full_paths, strict=True):
        part = _to_part(_get(row, "split"), path)
        files.append(LabelledFile(file, _get(row, "label"), key, part, _get(row, "group")))
    return dataset_from_files(path.name, files, natural_order(file.label for file in files))


def _read_rows(path: Path) -> list[dict[str, str]]:
    """Return the lines that are not empty, by the names of columns in lower case."""
    with io.StringIO(_read_text(path), newline="") as file:
        reader = csv.DictReader(file)
        try:
            columns = [column.strip().lower() for column in reader.fieldnames or []]
            reader.fieldnames = columns
            rows = list(reader)
        except csv.Error as error:
            raise UserError(
                f"{path} is no readable CSV ({error} in line {reader.line_num:,}). "
                "Expected path,label and one image a line. Save it again."
            ) from error
    _check_columns(path, columns)
    return [row for row in rows if _is_filled(row)]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start:,}). "
            "Expected a CSV in UTF-8. Save it again in that encoding."
        ) from error


def _is_filled(row: dict[str, str]) -> bool:
    """Return whether a line has any text; what lies beyond the header's columns does not count."""
    return any(value.strip() for value in row.values() if isinstance(value, str))


def _get(row: dict[str, str], column: str) -> str:
    """Return a cell without spaces around it; "" where a line or the table lacks it."""
    return (row.get(column) or "").strip()


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    missing = [column for column in _REQUIRED if column not in columns]
    if not missing:
        return
    hints = []
    for column in missing:
        for match in close_matches(column, columns, 1):
            hints.append(f"{column!r} looks like {match!r}")
    hint = f" {'; '.join(hints)}." if hints else ""
    plural = "s" if len(missing) > 1 else ""
    raise UserError(
        f"{path} lacks the column{plural} {join_truncated(map(repr, missing))}; "
        f"it has {join_truncated(map(repr, columns))}. Expected a header line with path,label and "
        f"optionally split and group.{hint} Rename the columns."
    )


def _check_filled(path: Path, rows: Sequence[dict[str, str]]) -> None:
    incomplete = []
    for line, row in enumerate(rows, 2):
        if not _get(row, "path") or not _get(row, "label"):
            incomplete.append(line)
    if incomplete:
        raise UserError(
            f"{path} has no path or label in line {join_truncated(incomplete)}. "
            "Expected both in every line. Fill them in or remove the lines."
        )


def _check_inside(path: Path, names: Sequence[str]) -> None:
    base = os.path.normpath(path.parent.absolute())
    outside = [name for name in names if not _is_within(base, name)]
    if outside:
        raise UserError(
            f"{path} lists {len(outside):,} files outside of {path.parent}: "
            f"{join_truncated(outside)}. Expected images below the folder of the CSV. "
            "Put the CSV into a folder that holds them all."
        )


def _is_within(base: str, name: str) -> bool:
    """Return whether a path leads below a normalised one, whether or not it exists."""
    joined = os.path.join(base, name)  # noqa: PTH118  a million of them
    return os.path.normpath(joined).startswith(base.rstrip(os.sep) + os.sep)


def _check_existing(path: Path, names: Sequence[str], files: Sequence[str]) -> None:
    missing = []
    for name, file in zip(names, files, strict=True):
        if not os.path.isfile(file):  # noqa: PTH113  a million of them
            missing.append(name)
    if missing:
        raise UserError(
            f"{path} lists {len(missing):,} files that do not exist: {join_truncated(missing)}. "
            f"Expected paths relative to {path.parent}. Correct or remove them."
        )


def _to_part(name: str, path: Path) -> str:
    if not name:
        return ""
    if name.lower() not in PART_NAMES:
        raise UserError(
            f"{path} has the split {name!r}. Expected train, val, test, or nothing. "
            "Correct the column."
        )
    return PART_NAMES[name.lower()]
