"""Text, JSON and CSV files that appear whole or not at all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regraft.system.files import atomic_write

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    with atomic_write(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], exact: bool = False) -> None:
    """Write rows as CSV, the columns in the order in which they first occur.

    Args:
        path: The file.
        rows: Values by column.
        exact: Write names as they are, for programs; else a spreadsheet takes none for a formula.
    """
    if not exact:
        rows = [_escape_row(row) for row in rows]
    columns: dict[str, None] = {}
    for row in rows:
        columns |= dict.fromkeys(row)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def escape_formula(cell: Any) -> Any:
    """Return a CSV cell that a spreadsheet takes for text: a quote before what starts a formula."""
    if isinstance(cell, str) and cell.startswith(_FORMULA_STARTS):
        return f"'{cell}"
    return cell


def _escape_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: escape_formula(value) for key, value in row.items()}
