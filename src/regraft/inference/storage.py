"""The files that predictions are written to: text that grows by whole rows, or parts of Parquet."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from regraft.system.files import atomic_write
from regraft.system.output import escape_formula

Row = dict[str, Any]  # a prediction as plain data, see `Prediction.to_json`

_ROW_GROUP = 100_000  # rows of a row group of a finished Parquet file


class Storage(Protocol):
    """Where rows go while a job runs, and what is left when it is finished."""

    header: bytes  # what the file begins with

    def start(self, note: dict[str, Any] | None) -> None:
        """Open an empty file, or what an earlier job left together with this note."""

    def read_paths(self) -> Iterator[str]:
        """Yield the path of every image whose row is stored."""

    def append(self, rows: Sequence[Row]) -> None:
        """Store whole rows."""

    def position(self) -> dict[str, int]:
        """Return how far the file is whole, for the note beside it."""

    def close(self) -> None:
        """Write what is still held in memory, and let go of the file."""

    def finish(self) -> None:
        """Make one whole file of what is stored; called after `close`."""


def row_columns(top: int) -> list[str]:
    """Return the columns of a CSV of predictions with the `top` most probable classes."""
    names = ["path", "label", "probability", "abstained", "error"]
    if top > 1:
        for rank in range(1, top + 1):
            names += [f"label_{rank}", f"probability_{rank}"]
    return names


def row_cells(row: Row, top: int) -> list[Any]:
    """Return a prediction as a row of such a CSV; a missing value is an empty cell."""
    values: list[Any] = []
    for name in ("path", "label", "probability"):
        values.append("" if row[name] is None else escape_formula(row[name]))
    values.append("true" if row["abstained"] else "false")
    values.append(escape_formula(row["error"] or ""))
    if top > 1:
        for label, probability in row["ranked"]:
            values += [escape_formula(label), escape_formula(probability)]
    missing = len(row_columns(top)) - len(values)
    return values + [""] * missing


def get_parts_folder(path: Path) -> Path:
    """Return the folder that holds the parts of a Parquet file while its job runs."""
    return path.with_name(f"{path.name}.parts")


def open_storage(path: Path, kind: str, top: int, part_rows: int, metadata: str) -> Storage:
    """Return the storage of a file of predictions; nothing is opened yet.

    Args:
        path: The file.
        kind: "csv", "json" (a line for each row) or "parquet".
        top: Classes of a row.
        part_rows: Rows of Parquet that are held in memory until they are written as a part.
        metadata: Text that goes into the metadata of a finished Parquet file.
    """
    if kind == "csv":
        header = _to_csv([row_columns(top)])
        return GrowingFile(path, header, partial(_rows_to_csv, top=top), _read_csv_paths)
    if kind == "json":
        return GrowingFile(path, b"", _rows_to_json, _read_json_paths)
    return ParquetParts(path, part_rows, metadata)


class GrowingFile:
    """A text file that grows by whole rows; rows written after the last note are cut off.

    Args:
        path: The file.
        header: What the file begins with.
        encode: Turns rows into the bytes that are appended.
        decode_paths: Yields the image paths of the rows of a file.
    """

    def __init__(
        self,
        path: Path,
        header: bytes,
        encode: Callable[[Sequence[Row]], bytes],
        decode_paths: Callable[[Path], Iterator[str]],
    ) -> None:
        self.path = path
        self.header = header
        self.encode = encode
        self.decode_paths = decode_paths

    def start(self, note: dict[str, Any] | None) -> None:
        if note is not None and self.path.is_file():
            os.truncate(self.path, min(note["bytes"], self.path.stat().st_size))
        self.file = self.path.open("ab")
        if not self.file.tell():
            self.file.write(self.header)

    def read_paths(self) -> Iterator[str]:
        return self.decode_paths(self.path)

    def append(self, rows: Sequence[Row]) -> None:
        self.file.write(self.encode(rows))

    def position(self) -> dict[str, int]:
        if not self.file.closed:
            self.file.flush()
            self.size = self.file.tell()
        return {"bytes": self.size}

    def close(self) -> None:
        self.file.close()

    def finish(self) -> None:
        """A text file is whole after every row."""


class ParquetParts:
    """Whole Parquet files in a folder while the job runs, merged into one when it is finished.

    A Parquet file without its end cannot be read, so a growing one would be lost in a crash.

    Args:
        path: The finished file.
        part_rows: Rows that are held in memory until they are written as a part.
        metadata: Text for the metadata of the finished file.
    """

    header = b""

    def __init__(self, path: Path, part_rows: int, metadata: str) -> None:
        self.path = path
        self.folder = get_parts_folder(path)
        self.part_rows = part_rows
        self.metadata = metadata
        self.held: list[Row] = []

    def start(self, note: dict[str, Any] | None) -> None:
        finished = note is not None and self.path.is_file()
        if finished:  # the file holds its parts, even those that a crash left in the folder
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(exist_ok=True)
        if finished:
            os.replace(self.path, self._next_part())
        for scratch in self.folder.glob(".*"):
            scratch.unlink()

    def read_paths(self) -> Iterator[str]:
        import pyarrow.parquet as pq

        for part in self._parts():
            for batch in pq.ParquetFile(part).iter_batches(columns=["path"]):
                yield from batch.column(0).to_pylist()

    def append(self, rows: Sequence[Row]) -> None:
        self.held += rows
        if len(self.held) >= self.part_rows:
            self.close()

    def position(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self.held:
            return
        rows = [_with_named_pairs(row) for row in self.held]
        with atomic_write(self._next_part()) as scratch:
            pq.write_table(pa.Table.from_pylist(rows, _schema()), scratch)
        self.held = []

    def finish(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        scratch = self.path.with_name(f".{self.path.name}.part")
        schema = _schema().with_metadata({"regraft": self.metadata})
        with pq.ParquetWriter(scratch, schema) as writer:
            waiting: list[Any] = []
            for part in self._parts():
                waiting += pq.ParquetFile(part).iter_batches(_ROW_GROUP)
                if sum(map(len, waiting)) >= _ROW_GROUP:
                    writer.write_table(pa.Table.from_batches(waiting).cast(writer.schema))
                    waiting = []
            writer.write_table(pa.Table.from_batches(waiting, _schema()).cast(writer.schema))
        os.replace(scratch, self.path)
        shutil.rmtree(self.folder)

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))

    def _next_part(self) -> Path:
        return self.folder / f"part-{len(self._parts()):06}.parquet"


def _to_csv(rows: Iterable[Sequence[Any]]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()


def _rows_to_csv(rows: Sequence[Row], top: int) -> bytes:
    return _to_csv(row_cells(row, top) for row in rows)


def _read_csv_paths(path: Path) -> Iterator[str]:
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield _without_quote(row["path"])


def _without_quote(cell: str) -> str:
    """Return a path without the quote that keeps spreadsheets from reading it as a formula."""
    path = cell[1:]
    was_quoted = cell[:1] == "'" and escape_formula(path) == cell
    return path if was_quoted else cell


def _rows_to_json(rows: Sequence[Row]) -> bytes:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    return "".join(lines).encode()


def _read_json_paths(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["path"]


def _schema() -> Any:
    import pyarrow as pa

    pair = pa.struct([("label", pa.string()), ("probability", pa.float64())])
    return pa.schema(
        [
            ("path", pa.string()),
            ("label", pa.string()),
            ("probability", pa.float64()),
            ("ranked", pa.list_(pair)),
            ("abstained", pa.bool_()),
            ("error", pa.string()),
        ]
    )


def _with_named_pairs(row: Row) -> Row:
    """Return a row whose ranked classes are structs, as the schema has them."""
    ranked = [{"label": label, "probability": value} for label, value in row["ranked"]]
    return {**row, "ranked": ranked}
