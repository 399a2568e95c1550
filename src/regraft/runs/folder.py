"""A run is a folder: its layout, writing it whole, reading it back.

Refuses objects: what made a run is not needed to use it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from numpy.typing import NDArray
from torch import Tensor

from regraft.system.files import LOCK_NAME, atomic_write, clear_dir, holds_results, is_internal, lock_path, remove_partials, unwritable_error
from regraft.plans.schema import plan_to_toml, read_plan
from regraft.data.dataset import Dataset, PARTS, Split
from regraft.errors import UserError, join_truncated
from regraft.plans.schema import Plan
from regraft.system.progress import ProgressReporter

_BEGUN = frozenset({"state.json", "checkpoints"})  # all there is before the plan is written
_FOLDERS = frozenset({"checkpoints", "track"})  # in a run


@dataclass(frozen=True)
class Run:
    """A finished run, read from its folder."""

    path: Path
    plan: Plan
    classes: tuple[str, ...]
    scores: dict[str, Any]

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.name

    @cached_property
    def test(self) -> dict[str, Any] | None:
        """What `test.json` says; None while the test part is shut."""
        path = self.path / "test.json"
        return _object(path) if path.is_file() else None

    @property
    def cautions(self) -> list[str]:
        """What must be read before any number: leaks across parts, a broken freeze contract, a test part opened more than once."""
        said = []
        if self.scores.get("leaks"):
            said.append(
                f"{self.scores['leaks']:,} images of val and test are byte for byte in an earlier part too: what is measured on them is flattered."
            )
        if self.scores.get("contract") == "broken":
            said.append(
                f"The freeze contract of {self.name} is broken: frozen tensors changed. Do not trust this run."
            )
        if self.test and len(self.test["opened"]) > 1:
            said.append(
                f"The test part was opened {len(self.test['opened'])} times for {self.name}."
            )
        return said

    def history(self) -> list[dict[str, float]]:
        """Return a row for each epoch, or for each L2 value of a solved head."""
        with (self.path / "history.csv").open(newline="") as file:
            try:
                return [
                    {key: float(value) for key, value in row.items() if value}
                    for row in csv.DictReader(file)
                ]
            except (ValueError, TypeError, csv.Error) as error:
                raise _damaged(self.path, error) from error

    def predictions(self, part: str = "val") -> dict[str, NDArray[Any]]:
        """Return keys, targets and logits of a part that was scored."""
        path = self.path / ("predictions.npz" if part == "val" else f"predictions-{part}.npz")
        try:
            with np.load(path, allow_pickle=False) as file:
                return {key: file[key] for key in ("keys", "targets", "logits")}
        except Exception as error:  # numpy's reader of damaged headers raises whatever it meets
            raise _damaged(self.path, error) from error

    def weights(self) -> dict[str, Tensor]:
        """Return the tensors of backbone and head by name."""
        tensors: dict[str, Tensor] = safetensors.torch.load_file(self.path / "model.safetensors")
        return tensors

    def __repr__(self) -> str:
        val = self.scores["val"]
        return f"Run({str(self.path)!r}, {self.plan.technique} of {self.plan.backbone}, val accuracy {val['accuracy']:.3f} on {val['n']:,})"


class LogFile(ProgressReporter):
    """Keeps what is said in `log.txt` and passes it on."""

    def __init__(self, path: Path, inner: ProgressReporter) -> None:
        self.path, self.inner = path, inner

    def say(self, text: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {text}\n")
        self.inner.say(text)

    def step(self, what: str, done: int, total: int) -> None:
        self.inner.step(what, done, total)

    def row(self, values: dict[str, Any]) -> None:
        self.inner.row(values)


def start_run(
    path: Path, plan: Plan, split_digest: str, resume: bool = False, overwrite: bool = False
) -> bool:
    """Make the folder ready; returns whether a finished run of this very plan is there already.

    Raises:
        UserError: When the folder is not empty and neither `resume` nor `overwrite` was asked, or holds another plan or split.
    """
    prepare_dir(path, "run", resume, overwrite)
    for folder in (path, path / "checkpoints"):
        remove_partials(folder)
    if (
        path.is_dir()
        and not (path / "plan.toml").is_file()
        and any(one.name not in _BEGUN and not is_internal(one) for one in path.iterdir())
    ):
        raise UserError(
            f"{path} holds no run to go on with. Expected a folder that `regraft fit` or `regraft compare` began. Give another --out."
        )
    if resume and (path / "plan.toml").is_file():
        there = read_plan(path / "plan.toml")
        if there.digest != plan.digest:
            raise UserError(
                f"{path} holds another plan ({there.digest}, not {plan.digest}). Expected the same plan to go on. Pass --overwrite, or another --out."
            )
        state = _state(path)
        if state.get("split_digest") != split_digest:
            raise UserError(
                f"{path} was begun with other images or another split. Expected the same to go on. Pass --overwrite, or another --out."
            )
        if (path / "scores.json").is_file():
            remove_checkpoints(path)
            return True
        return False
    try:
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        write_text(path / "state.json", json.dumps({"split_digest": split_digest}))
        write_text(path / "plan.toml", plan_to_toml(plan))
    except OSError as error:
        raise unwritable_error(path, error) from error
    return False


def remove_checkpoints(path: Path) -> None:
    """Remove what only an unfinished run needs; after `scores.json` is written, for until then it is gone on with."""
    for file in (path / "checkpoints").glob("p*-*.*"):
        file.unlink()


@contextmanager
def lock_run_dir(path: Path, kind: str, resume: bool, overwrite: bool) -> Iterator[None]:
    """Keep a folder to this process while the block runs; arguments as for `vacate`, which refuses first, so that nothing of others is touched.

    Raises:
        UserError: When it is taken, or another process writes to it; a full disk in the block is one sentence too.
    """
    if not (path / LOCK_NAME).is_file():
        require_free_dir(path, kind, resume, overwrite)
    with lock_path(path):
        require_free_dir(path, kind, resume, overwrite)
        yield


def prepare_dir(path: Path, kind: str, resume: bool | None, overwrite: bool) -> None:
    """Make sure that a folder may be written to: new, empty, emptied on request, or to be gone on with.

    Args:
        path: The folder.
        kind: What it is for, "run" or "comparison" or "probe".
        resume: Whether what is in it is gone on with; None where that is not on offer.
        overwrite: Whether what is in it may be removed.

    Raises:
        UserError: When it is a file, or not empty and neither was asked, or holds something that is not ours.
    """
    require_free_dir(path, kind, resume, overwrite)
    if overwrite and path.is_dir():
        clear_dir(path)


def require_free_dir(path: Path, kind: str, resume: bool | None, overwrite: bool) -> None:
    """Raise what `vacate` raises; remove nothing."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file. Expected a folder for the {kind}. Give another --out.")
    there = [one for one in path.iterdir() if not is_internal(one)] if path.is_dir() else []
    if not there:
        return
    if overwrite:
        alien = [
            one.name
            for one in there
            if one.is_dir() and one.name not in _FOLDERS and not _is_begun(one)
        ]
        if alien or not _is_begun(path):
            named = f" ({', '.join(sorted(alien)[:3])})" if alien else ""
            raise UserError(
                f"{path} holds something other than a run{named}, so --overwrite does not touch it. Expected a run folder. "
                "Give another --out, or empty it yourself."
            )
    elif not resume:
        ways = "" if resume is None else "--resume to go on with it, "
        raise UserError(
            f"{path} is not empty. Expected a new or empty folder. Pass {ways}--overwrite to replace it, or another --out."
        )


def _is_begun(path: Path) -> bool:
    """Return whether a folder is a run, a comparison or a probe, finished or not."""
    return (
        holds_results(path)
        or not {one.name for one in path.iterdir() if not is_internal(one)} - _BEGUN
    )


def load_run(path: Path) -> Run:
    """Return a finished run.

    Raises:
        UserError: When there is none, or it is unfinished or damaged.
    """
    path = Path(path)
    if not (path / "plan.toml").is_file():
        rows = [one.name for one in list_runs(path)]
        if rows:
            raise UserError(
                f"{path} holds {len(rows):,} runs and is none itself: {join_truncated(rows)}. Expected one run. Name {path / rows[0]}, for example."
            )
        raise UserError(
            f"{path} is no run. Expected a folder that `regraft fit` or `regraft compare` wrote."
        )
    if not (path / "scores.json").is_file():
        raise UserError(
            f"The run in {path} is not finished. Go on with the same `regraft fit` command and --resume."
        )
    try:
        scores = _object(path / "scores.json")
        classes = json.loads((path / "classes.json").read_text())
        if (
            not isinstance(classes, list)
            or not all(isinstance(one, str) for one in classes)
            or len(classes) < 2
        ):
            raise ValueError("classes.json is no list of names")
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    return Run(path, read_plan(path / "plan.toml"), tuple(classes), scores)


_SEALED = (
    "plan.toml",
    "classes.json",
    "split.csv",
    "history.csv",
    "predictions.npz",
    "freeze.json",
    "model.safetensors",
)


def sealed_digests(path: Path) -> dict[str, str]:
    """Return a digest of every file of a run that must not change once it is finished."""
    return {name: file_digest(path / name) for name in _SEALED if (path / name).is_file()}


def file_digest(path: Path) -> str:
    """Return a digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def verify_run(finished: Run) -> None:
    """Raise `UserError` when a file of a finished run is missing or has changed since it was written; names the files."""
    wanted = dict(finished.scores.get("files", {}))
    if finished.test and "predictions" in finished.test:
        wanted["predictions-test.npz"] = finished.test["predictions"]
    changed = [
        name
        for name, there in wanted.items()
        if not (finished.path / name).is_file() or file_digest(finished.path / name) != there
    ]
    if changed:
        raise UserError(
            f"The run in {finished.path} was altered after it was finished ({', '.join(changed)}). Expected the files that regraft wrote. "
            "Fit it again with --overwrite, or restore the folder."
        )


def list_runs(root: Path) -> list[Path]:
    """Return the run folders under `root`, finished or not, in the order of their names."""
    return sorted(path.parent for path in root.glob("*/plan.toml"))


def write_text(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    with atomic_write(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def escape_formula(cell: Any) -> Any:
    """Return a cell of a CSV that a spreadsheet takes for text: a name that it would take for a formula gets a quote before it."""
    return (
        f"'{cell}"
        if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r")
        else cell
    )


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], exact: bool = False) -> None:
    """Write rows as CSV, the columns in the order in which they first occur; `exact` where programs read it back, or no names can be formulas."""
    if not exact:
        rows = [{key: escape_formula(value) for key, value in row.items()} for row in rows]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def write_split(path: Path, data: Dataset, split: Split) -> None:
    """Write which image is in which part."""
    rows = [
        {"key": str(data.keys[row]), "label": data.classes[data.labels[row]], "part": part}
        for part in PARTS
        for row in split[part]
    ]
    write_table(path, rows, exact=True)


def write_predictions(
    path: Path,
    keys: NDArray[np.str_],
    targets: NDArray[np.int64],
    logits: NDArray[np.floating[Any]],
) -> None:
    """Write keys, targets and logits of a part."""
    with atomic_write(path, ".npz") as scratch:
        np.savez_compressed(scratch, keys=keys, targets=targets, logits=logits.astype(np.float32))


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, whole or not at all."""
    with atomic_write(path) as scratch:
        safetensors.torch.save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, scratch
        )


def _object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a run; raises `UserError` when there is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path.parent, error) from error
    if not isinstance(found, dict):
        raise _damaged(path.parent, ValueError(f"{path.name} is no object"))
    return found


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"The run in {path} is damaged ({(str(error).splitlines() or [type(error).__name__])[0]}). Fit it again with --overwrite."
    )


def _state(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((path / "state.json").read_text()))
    except (OSError, ValueError):
        return {}
