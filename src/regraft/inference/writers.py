"""Predictions written as they come: CSV, JSON lines, or Parquet, with a note beside them of what job they belong to and how far it is.

Refuses to mix jobs: what another run, or another way of asking, has begun is not gone on with.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from regraft.errors import UserError, unknown_name_error
from regraft.inference.classifier import Prediction
from regraft.runs.folder import escape_formula, write_json
from regraft.system.files import atomic_write, is_full, unwritable_error

PREDICTION_FORMATS = ("table", "csv", "json", "parquet")
_OF_SUFFIX = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
_PART, _GROUP = (
    5_000,
    100_000,
)  # rows of a part while the job runs, and of a row group of the finished file


def output_format(given: str | None, out: Path | None) -> str:
    """Return the format to write: what was asked for, or what the file's name says; a table where there is no file.

    Raises:
        UserError: For an unknown format, or one that does not go with where it is to be written.
    """
    if given is not None and given not in PREDICTION_FORMATS:
        raise unknown_name_error("format", given, PREDICTION_FORMATS)
    if out is None:
        if given == "parquet":
            raise UserError(
                "--format parquet was given without a file. Expected --out FILE.parquet. Name one, or take csv or json, which can be printed."
            )
        return given or "table"
    found = given or _OF_SUFFIX.get(out.suffix.lower())
    if found is None or found == "table":
        raise UserError(
            f"--out {out} does not say in which format to write. Expected csv, json or parquet. Add --format, or end the name in one of them."
        )
    return found


def row_columns(top: int) -> list[str]:
    """Return the columns of a CSV of predictions."""
    more = [
        name for place in range(1, top + 1) for name in (f"label_{place}", f"probability_{place}")
    ]
    return ["path", "label", "probability", "abstained", "error", *(more if top > 1 else [])]


def row_cells(one: dict[str, Any], top: int) -> list[Any]:
    """Return a row of such a CSV; what there is not is empty."""
    ranked = [escape_formula(cell) for pair in one["ranked"] for cell in pair] if top > 1 else []
    plain = [
        "" if one[name] is None else escape_formula(one[name])
        for name in ("path", "label", "probability")
    ]
    return [
        *plain,
        "true" if one["abstained"] else "false",
        escape_formula(one["error"] or ""),
        *ranked,
        *[""] * (len(row_columns(top)) - 5 - len(ranked)),
    ]


def prediction_row(said: Prediction, top: int) -> dict[str, Any]:
    """Return a prediction as plain data, with the first `top` classes."""
    ranked = [[name, chance] for name, chance in said.ranked[:top]]
    return {
        "path": said.path,
        "label": said.label,
        "probability": said.probability,
        "ranked": ranked,
        "abstained": said.abstained,
        "error": said.error,
    }


class ResultWriter(ABC):
    """A file of predictions under way; `add` writes, `close` leaves it so that `resume` can go on, `finish` makes it whole.

    Args:
        path: The file.
        job: What the job is: everything that decides its answers, as plain data.
        top: Classes a row.
        resume: Go on with what is there.
        overwrite: Replace it.

    Raises:
        UserError: When there is a file and neither was asked, or what is there belongs to another job, or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        job: dict[str, Any],
        top: int,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.path, self.job, self.top = path, job, top
        self.note = path.with_name(f"{path.name}.job.json")
        self.parts = path.with_name(f"{path.name}.parts")
        self.rows = self.before = 0
        there = path.exists() or self.note.exists()
        if path.is_dir():
            raise UserError(
                f"{path} is a folder. Expected a file for the predictions. Give another --out."
            )
        if there and not resume and not overwrite:
            raise UserError(
                f"{path} exists already. Expected a new file. Pass --resume to go on with it, --overwrite to replace it, or another --out."
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for scratch in [
                *path.parent.glob(f".{path.name}.part"),
                *path.parent.glob(f".{self.note.name}.*.part"),
            ]:  # of a killed process
                scratch.unlink()
            known = self._known() if there and resume and not self._untouched() else None
            if known is None:
                self.discard()
            self._start(known)
            self._written = _digests(self.names()) if known else np.zeros(0, np.uint64)
            self.rows = self.before = len(self._written)
            self.mark()
        except OSError as error:
            if is_full(error):
                raise
            raise unwritable_error(path, error) from error
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{path} is not as `regraft predict` left it ({error}), so it cannot be gone on with. Pass --overwrite."
            ) from error

    @staticmethod
    def of(kind: str) -> type[ResultWriter]:
        """Return the class for a format."""
        return {"csv": _Csv, "json": _JsonLines, "parquet": _Parquet}[kind]

    def __contains__(self, name: object) -> bool:
        """Whether an image of this name was written before the job went on."""
        found = _digest(str(name))
        place = int(np.searchsorted(self._written, found))
        return place < len(self._written) and bool(self._written[place] == found)

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write some rows whole."""
        self._add(rows)
        self.rows += len(rows)
        self.mark()

    def mark(self, finished: bool = False) -> None:
        """Note how far the file is written whole."""
        write_json(
            self.note, {"job": self.job, **self._reached(), "rows": self.rows, "finished": finished}
        )

    def finish(self) -> None:
        """Make the file whole."""
        self.close()
        self._finish()
        self.mark(finished=True)

    def discard(self) -> None:
        """Remove everything: of a job that came to nothing."""
        for path in (self.path, self.note):
            path.unlink(missing_ok=True)
        if self.parts.is_dir():
            shutil.rmtree(self.parts)

    def _untouched(self) -> bool:
        """Whether what is there holds no row and no note yet: its process was killed at the very beginning."""
        head = self._head()
        return (
            not self.note.exists()
            and self.path.is_file()
            and self.path.stat().st_size <= len(head)
            and head.startswith(self.path.read_bytes())
        )

    def _head(self) -> bytes:
        """Return what the file begins with."""
        return b""

    @abstractmethod
    def names(self) -> Iterator[str]:
        """Yield the path of every row that is written."""

    @abstractmethod
    def close(self) -> None:
        """Write what is still held, and let go of the file."""

    @abstractmethod
    def _start(self, known: dict[str, Any] | None) -> None: ...

    @abstractmethod
    def _add(self, rows: Sequence[dict[str, Any]]) -> None: ...

    def _reached(self) -> dict[str, Any]:
        return {}

    @abstractmethod
    def _finish(self) -> None: ...

    def _known(self) -> dict[str, Any]:
        try:
            known = dict(json.loads(self.note.read_text()))
        except (OSError, ValueError):
            raise UserError(
                f"{self.path} has no {self.note.name} beside it, so it cannot be gone on with. Expected a file that `regraft predict` began. Pass --overwrite."
            ) from None
        other = sorted(key for key in self.job if known.get("job", {}).get(key) != self.job[key])
        if other:
            raise UserError(
                f"{self.path} was begun by another job: {', '.join(other)} differ. Expected the same run and the same flags. Give those, or pass --overwrite."
            )
        return known


class _Lines(ResultWriter):
    """A text file that grows by whole rows; what was written after the last mark is cut off before it goes on."""

    file: BinaryIO

    def _start(self, known: dict[str, Any] | None) -> None:
        if known is not None and self.path.is_file():
            os.truncate(self.path, min(known["bytes"], self.path.stat().st_size))
        self.file = self.path.open("ab")
        if not self.file.tell():
            self.file.write(self._head())

    def _reached(self) -> dict[str, Any]:
        self.file.flush()
        return {"bytes": self.file.tell()}

    def mark(self, finished: bool = False) -> None:
        if self.file.closed:
            self.file = self.path.open("ab")
        super().mark(finished)
        if finished:
            self.file.close()

    def close(self) -> None:
        self.file.close()

    def _finish(self) -> None:
        """A text file is whole after every row."""


class _Csv(_Lines):
    def names(self) -> Iterator[str]:
        with self.path.open(newline="", encoding="utf-8") as file:
            for one in csv.DictReader(file):
                path = one["path"]
                yield path[1:] if path[:1] == "'" and escape_formula(path[1:]) == path else path

    def _head(self) -> bytes:
        return _csv_lines([row_columns(self.top)])

    def _add(self, rows: Sequence[dict[str, Any]]) -> None:
        self.file.write(_csv_lines(row_cells(one, self.top) for one in rows))


class _JsonLines(_Lines):
    def names(self) -> Iterator[str]:
        with self.path.open(encoding="utf-8") as file:
            yield from (json.loads(line)["path"] for line in file)

    def _add(self, rows: Sequence[dict[str, Any]]) -> None:
        self.file.write(
            "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows).encode()
        )


class _Parquet(ResultWriter):
    """Parts of whole files while the job runs, for a Parquet file without its end cannot be read; one file of row groups when it is finished."""

    def _start(self, known: dict[str, Any] | None) -> None:
        self.held: list[dict[str, Any]] = []
        if (
            known is not None and self.path.is_file()
        ):  # a finished job, gone on with; its parts are in it, where they were not all removed
            shutil.rmtree(self.parts, ignore_errors=True)
        self.parts.mkdir(exist_ok=True)
        if known is not None and self.path.is_file():
            os.replace(self.path, self._part())
        for scratch in self.parts.glob(".*"):
            scratch.unlink()

    def names(self) -> Iterator[str]:
        import pyarrow.parquet as pq

        for part in sorted(self.parts.glob("*.parquet")):
            for batch in pq.ParquetFile(part).iter_batches(columns=["path"]):
                yield from batch.column(0).to_pylist()

    def _add(self, rows: Sequence[dict[str, Any]]) -> None:
        self.held += rows
        if len(self.held) >= _PART:
            self.close()

    def close(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self.held:
            part = self._part()
            with atomic_write(part) as scratch:
                pq.write_table(
                    pa.Table.from_pylist([_nested(one) for one in self.held], _schema()), scratch
                )
            self.held = []

    def _part(self) -> Path:
        return self.parts / f"part-{len(list(self.parts.glob('*.parquet'))):06}.parquet"

    def _finish(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        scratch = self.path.with_name(f".{self.path.name}.part")
        with pq.ParquetWriter(
            scratch, _schema().with_metadata({"regraft": json.dumps(self.job)})
        ) as writer:
            waiting: list[Any] = []
            for part in sorted(self.parts.glob("*.parquet")):
                waiting += list(pq.ParquetFile(part).iter_batches(_GROUP))
                if sum(map(len, waiting)) >= _GROUP:
                    writer.write_table(pa.Table.from_batches(waiting).cast(writer.schema))
                    waiting = []
            writer.write_table(pa.Table.from_batches(waiting, _schema()).cast(writer.schema))
        os.replace(scratch, self.path)
        shutil.rmtree(self.parts)


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


def _nested(one: dict[str, Any]) -> dict[str, Any]:
    return {
        **one,
        "ranked": [{"label": name, "probability": chance} for name, chance in one["ranked"]],
    }


def _csv_lines(rows: Iterable[Sequence[Any]]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()


def _digest(name: str) -> np.uint64:
    return np.uint64(
        int.from_bytes(blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest())
    )


def _digests(names: Iterable[str]) -> NDArray[np.uint64]:
    """Return the sorted digests of some names: eight bytes each, so that millions fit."""
    return np.sort(np.fromiter((_digest(name) for name in names), np.uint64))
