"""Predictions written as they come: CSV, JSON lines or Parquet, with a note of the job beside them.

Refuses to append to a file that another run, or the same run with other options, has started.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.errors import UserError, unknown_name_error
from regraft.inference.storage import Row, get_parts_folder, open_storage
from regraft.system.disk import is_disk_full, unwritable_error
from regraft.system.output import write_json

PREDICTION_FORMATS = ("table", "csv", "json", "parquet")
_FORMAT_OF_SUFFIX = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
_PART = 5_000  # rows of Parquet that a crash may lose


def output_format(given: str | None, out: Path | None) -> str:
    """Return the format to write: the one asked for, else by the file's suffix, else a table.

    Args:
        given: What the user asked for, one of `PREDICTION_FORMATS`, or None.
        out: The file, or None to print.

    Raises:
        UserError: For an unknown format, or one that cannot be written there.
    """
    if given is not None and given not in PREDICTION_FORMATS:
        raise unknown_name_error("format", given, PREDICTION_FORMATS)
    if out is None:
        if given == "parquet":
            raise UserError(
                "--format parquet was given without a file. Expected --out FILE.parquet. "
                "Name one, or take csv or json, which can be printed."
            )
        return given or "table"
    kind = given or _FORMAT_OF_SUFFIX.get(out.suffix.lower())
    if kind is None or kind == "table":
        raise UserError(
            f"--out {out} does not say in which format to write. Expected csv, json or parquet. "
            "Add --format, or end the name in one of them."
        )
    return kind


@dataclass(frozen=True)
class PredictionJob:
    """What decides the rows of a file: a file is resumed only by the very same job.

    Args:
        run: Name of the run folder.
        plan_digest: Digest of its plan.
        weights_digest: Digest of its weight file.
        format: "csv", "json" or "parquet".
        top: Classes of a row.
        min_confidence: Probability below which the classifier abstains, or None.
    """

    run: str
    plan_digest: str
    weights_digest: str
    format: str
    top: int = 1
    min_confidence: float | None = None


class ResultWriter:
    """A file of predictions being written, crash-safe: every added row can be resumed from.

    `add` writes rows, `close` leaves the file so that it can be resumed, `finish` makes it whole.

    Args:
        path: The file.
        job: What decides its rows.
        resume: Continue what is there.
        overwrite: Replace what is there.
        part_rows: Rows of Parquet that are held in memory until they are written.

    Raises:
        UserError: When the file exists and is neither resumed nor replaced, when it belongs to
            another job, or when it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        job: PredictionJob,
        resume: bool = False,
        overwrite: bool = False,
        *,
        part_rows: int = _PART,
    ) -> None:
        self.path = path
        self.job = asdict(job)
        self.note = path.with_name(f"{path.name}.job.json")
        self.storage = open_storage(path, job.format, job.top, part_rows, json.dumps(self.job))
        self.rows = 0
        self._check_target(resume or overwrite)
        with self._explained_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._remove_scratch()
            note = self._read_note() if resume and self._is_started() else None
            if note is None:
                self.discard()
            self.storage.start(note)
            paths = self.storage.read_paths() if note else ()
            self._stored = _sorted_digests(paths)
            self.rows = len(self._stored)
            self._write_note()
        self.before = self.rows

    def __contains__(self, path: object) -> bool:
        """Whether the row of this image was written before the job was resumed."""
        digest = _digest(str(path))
        place = int(np.searchsorted(self._stored, digest))
        return place < len(self._stored) and bool(self._stored[place] == digest)

    def add(self, rows: Sequence[Row]) -> None:
        """Write whole rows."""
        self.storage.append(rows)
        self.rows += len(rows)
        self._write_note()

    def close(self) -> None:
        """Write what is still held in memory, and let go of the file; it can be resumed."""
        self.storage.close()

    def finish(self) -> None:
        """Make the file whole."""
        self.close()
        self.storage.finish()
        self._write_note(finished=True)

    def discard(self) -> None:
        """Remove everything that was written."""
        for path in (self.path, self.note):
            path.unlink(missing_ok=True)
        folder = get_parts_folder(self.path)
        if folder.is_dir():
            shutil.rmtree(folder)

    def _check_target(self, may_exist: bool) -> None:
        """Raise `UserError` where the file's name is taken."""
        if self.path.is_dir():
            raise UserError(
                f"{self.path} is a folder. Expected a file for the predictions. Give another --out."
            )
        exists = self.path.exists() or self.note.exists()
        if exists and not may_exist:
            raise UserError(
                f"{self.path} exists already. Expected a new file. Pass --resume to continue it, "
                "--overwrite to replace it, or another --out."
            )

    def _remove_scratch(self) -> None:
        """Remove the unfinished files of a killed process."""
        folder = self.path.parent
        scratch = list(folder.glob(f".{self.path.name}.part"))
        scratch += folder.glob(f".{self.note.name}.*.part")
        for path in scratch:
            path.unlink()

    def _is_started(self) -> bool:
        """Whether an earlier process got as far as a note, or wrote anything but the header."""
        if self.note.exists():
            return True
        if not self.path.is_file():
            return self.path.exists()
        header = self.storage.header
        is_short = self.path.stat().st_size <= len(header)
        return not (is_short and header.startswith(self.path.read_bytes()))

    def _read_note(self) -> dict[str, Any]:
        """Return the note of the earlier job; raises `UserError` unless that is the same job."""
        try:
            note = dict(json.loads(self.note.read_text()))
        except (OSError, ValueError):
            raise UserError(
                f"{self.path} has no {self.note.name} beside it, so it cannot be resumed. "
                "Expected a file that `regraft predict` started. Pass --overwrite."
            ) from None
        earlier = note.get("job", {})
        different = sorted(key for key in self.job if earlier.get(key) != self.job[key])
        if different:
            raise UserError(
                f"{self.path} was started by another job: {', '.join(different)} differ. "
                "Expected the same run and the same flags. Give those, or pass --overwrite."
            )
        return note

    def _write_note(self, finished: bool = False) -> None:
        """Note how far the file is whole."""
        position = self.storage.position()
        note = {"job": self.job, **position, "rows": self.rows, "finished": finished}
        write_json(self.note, note)

    @contextmanager
    def _explained_errors(self) -> Iterator[None]:
        """Turn what may go wrong while a file is opened into a `UserError`."""
        try:
            yield
        except OSError as error:
            if is_disk_full(error):
                raise
            raise unwritable_error(self.path, error) from error
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{self.path} was changed after `regraft predict` wrote it ({error}), so it "
                "cannot be resumed. Expected it as it was. Pass --overwrite."
            ) from error


def _digest(path: str) -> np.uint64:
    content = path.encode("utf-8", "surrogateescape")
    return np.uint64(int.from_bytes(blake2b(content, digest_size=8).digest()))


def _sorted_digests(paths: Iterable[str]) -> NDArray[np.uint64]:
    """Return sorted digests, eight bytes for each path, so that millions fit into memory."""
    return np.sort(np.fromiter(map(_digest, paths), np.uint64))
