"""A finished run, read from its folder."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from regraft.errors import UserError, join_truncated
from regraft.plans.schema import Plan
from regraft.plans.toml import read_plan
from regraft.runs.layout import (
    CLASSES,
    ENVIRONMENT,
    FORMAT,
    FREEZE,
    HISTORY,
    PLAN,
    SCORES,
    SEALED,
    SKIPPED,
    SPLIT,
    TEST,
    TEST_PREDICTIONS,
    WEIGHTS,
    prediction_file,
)
from regraft.runs.scores import OpenedTest, RunScores, parse_record
from regraft.system.notebook import draw_intervals, render_result

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SplitRow:
    """One image of a run's split.

    Args:
        key: Its key.
        label: Its class.
        part: "train", "val" or "test".
        skipped: Why it was left out; empty where it was not.
    """

    key: str
    label: str
    part: str
    skipped: str = ""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        path: Its folder.
        plan: The plan that was carried out.
        classes: Class names in the order of the outputs.
        scores: What `scores.json` says.
        label: What it is called beside other runs; its folder's name when empty.
    """

    path: Path
    plan: Plan
    classes: tuple[str, ...]
    scores: RunScores
    label: str = ""

    @property
    def name(self) -> str:
        """What the run is called: its folder's name, where nothing else tells it from others."""
        return self.label or self.path.name

    @cached_property
    def test(self) -> OpenedTest | None:
        """What `test.json` says; None while the test part is held out."""
        path = self.path / TEST
        if not path.is_file():
            return None
        values = _read_object(path)
        try:
            return parse_record(OpenedTest, values)
        except ValueError as error:
            raise damaged_error(self.path, error) from error

    @property
    def warnings(self) -> list[str]:
        """What must be read before any number.

        Images that are in two parts, a broken freeze check, a test part opened more than once.
        """
        warnings = []
        leaks = self.scores.leaks
        if leaks:
            warnings.append(
                f"{leaks:,} val or test images are exact copies of images in an earlier part; "
                "scores on them are inflated."
            )
        if self.scores.contract == "broken":
            warnings.append(
                f"Frozen tensors of {self.name} changed during training. Do not trust this run."
            )
        if self.test and len(self.test.opened) > 1:
            count = len(self.test.opened)
            warnings.append(f"The test part was opened {count} times for {self.name}.")
        return warnings

    def history(self) -> list[dict[str, float]]:
        """Return a row for each epoch, or for each L2 value of a linear probe."""
        rows = []
        with (self.path / HISTORY).open(newline="") as file:
            try:
                for row in csv.DictReader(file):
                    rows.append({key: float(value) for key, value in row.items() if value})
            except (ValueError, TypeError, csv.Error) as error:
                raise damaged_error(self.path, error) from error
        return rows

    def predictions(self, part: str = "val") -> dict[str, NDArray[Any]]:
        """Return `keys`, `targets` and `logits` of a part that was scored."""
        path = self.path / prediction_file(part)
        try:
            with np.load(path, allow_pickle=False) as file:
                return {key: file[key] for key in ("keys", "targets", "logits")}
        except Exception as error:  # numpy's reader of damaged headers raises whatever it meets
            raise damaged_error(self.path, error) from error

    def split(self) -> list[SplitRow]:
        """Return the part and the class of every image, with those that were left out."""
        rows = self._split_rows(SPLIT)
        if (self.path / SKIPPED).is_file():
            rows += self._split_rows(SKIPPED)
        return rows

    def _split_rows(self, name: str) -> list[SplitRow]:
        rows = []
        try:
            with (self.path / name).open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    reason = row.get("reason", "")
                    rows.append(SplitRow(row["key"], row["label"], row["part"], reason))
        except (OSError, KeyError, csv.Error) as error:
            raise damaged_error(self.path, error) from error
        return rows

    def environment(self) -> Mapping[str, object]:
        """Return versions, processor and threads; empty where they cannot be read."""
        return _read_or_empty(self.path / ENVIRONMENT)

    def freeze_checks(self) -> list[Mapping[str, object]]:
        """Return the freeze check of every phase."""
        try:
            checks: list[Mapping[str, object]] = json.loads((self.path / FREEZE).read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise damaged_error(self.path, error) from error
        return checks

    def weights(self) -> dict[str, Tensor]:
        """Return the tensors of backbone and head by name."""
        import safetensors.torch

        tensors: dict[str, Tensor] = safetensors.torch.load_file(self.path / WEIGHTS)
        return tensors

    def weights_digest(self) -> str:
        """Return a digest of the weight file."""
        return file_digest(self.path / WEIGHTS)

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints: the scores, the folder, and warnings."""
        return {**self.scores, "path": str(self.path), "warnings": self.warnings}

    def __repr__(self) -> str:
        val = self.scores.val
        way = f"{self.plan.technique} of {self.plan.backbone}"
        accuracy = f"val accuracy {val.accuracy:.3f} on {val.n:,}"
        return f"Run({str(self.path)!r}, {way}, {accuracy})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the scores by part, and their intervals."""
        scored = {"train": self.scores.train, "val": self.scores.val}
        if self.test:
            scored["test"] = self.test.test
        rows: list[tuple[str, ...]] = [("part", "images", "accuracy", "95 % interval", "loss")]
        for part, scores in scored.items():
            low, high = scores.ci95
            accuracy = f"{scores.accuracy:.4f}"
            rows.append(
                (part, f"{scores.n:,}", accuracy, f"{low:.3f}–{high:.3f}", f"{scores.loss:.4f}")
            )
        marks = [(part, scores.accuracy, scores.ci95) for part, scores in scored.items()]
        way = f"{self.name}: {self.plan.technique} of {self.plan.backbone}."
        sentence = " ".join([way, *self.warnings])
        return render_result("Run", sentence, rows, draw_intervals(marks))


def load_run(path: str | Path) -> Run:
    """Return a finished run.

    Raises:
        UserError: When there is none, it is unfinished or damaged, or of a newer format.
    """
    path = Path(path)
    if not (path / PLAN).is_file():
        raise _no_run(path)
    if not (path / SCORES).is_file():
        raise UserError(
            f"The run in {path} is not finished. Resume it with the same `regraft fit` command "
            "and --resume."
        )
    values = _read_object(path / SCORES)
    require_format(path, values)
    try:
        scores = parse_record(RunScores, values)
        classes = json.loads((path / CLASSES).read_text())
        is_names = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
        if not is_names or len(classes) < 2:
            raise ValueError(f"{CLASSES} is no list of names")
    except (OSError, ValueError, RecursionError) as error:
        raise damaged_error(path, error) from error
    return Run(path, read_plan(path / PLAN), tuple(classes), scores)


def _no_run(path: Path) -> UserError:
    names = [run.name for run in list_runs(path)]
    if names:
        return UserError(
            f"{path} holds {len(names):,} runs and is none itself: {join_truncated(names)}. "
            f"Expected one run. Name {path / names[0]}, for example."
        )
    return UserError(
        f"{path} is no run. Expected a folder that `regraft fit` or `regraft compare` wrote."
    )


def require_format(path: Path, values: dict[str, Any]) -> None:
    """Raise `UserError` when a folder was written in a format that is newer than this version's.

    Folders of 0.1 carry no format, and are read.
    """
    version = values.get("format", 0)
    if not isinstance(version, int) or version > FORMAT:
        raise UserError(
            f"The run in {path} has format {version}, and this version of regraft reads formats up "
            f"to {FORMAT}. Expected a run of this version or an older one. Upgrade regraft."
        )


def list_runs(root: Path) -> list[Path]:
    """Return the run folders in a folder, finished or not, in the order of their names."""
    return sorted(path.parent for path in root.glob(f"*/{PLAN}"))


def sealed_digests(path: Path) -> dict[str, str]:
    """Return a digest of every file of a run that must not change once it is finished."""
    names = [name for name in SEALED if (path / name).is_file()]
    return {name: file_digest(path / name) for name in names}


def file_digest(path: Path) -> str:
    """Return a digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def verify_run(run: Run) -> None:
    """Raise `UserError` when a file of a finished run is missing or has changed; names them."""
    expected = dict(run.scores.files)
    if run.test and run.test.predictions:
        expected[TEST_PREDICTIONS] = run.test.predictions
    changed = [name for name in expected if not _is_unchanged(run.path / name, expected[name])]
    if changed:
        raise UserError(
            f"The run in {run.path} was altered after it was finished ({', '.join(changed)}). "
            "Expected the files that regraft wrote. Fit it again with --overwrite, or restore the "
            "folder."
        )


def find_finished(folders: Iterable[Path]) -> list[Path]:
    """Return the folders of finished runs in some folders, or up to two levels below."""
    found = set()
    for folder in folders:
        for pattern in ("", "*/", "*/*/"):
            for path in folder.glob(f"{pattern}{SCORES}"):
                found.add(path.parent.resolve())
    return sorted(found)


def _is_unchanged(path: Path, digest: str) -> bool:
    return path.is_file() and file_digest(path) == digest


def _read_or_empty(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a run; raises `UserError` when there is none."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise damaged_error(path.parent, error) from error
    if not isinstance(values, dict):
        raise damaged_error(path.parent, ValueError(f"{path.name} is no object"))
    return values


def damaged_error(path: Path, error: Exception) -> UserError:
    """Return the error for a run folder that cannot be read."""
    lines = str(error).splitlines() or [type(error).__name__]
    return UserError(f"The run in {path} is damaged ({lines[0]}). Fit it again with --overwrite.")
