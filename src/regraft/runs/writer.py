"""Writes a run folder: starts or resumes it, keeps finished phases, finishes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from regraft.data.dataset import Dataset
from regraft.data.split import PARTS, Split
from regraft.errors import UserError
from regraft.options import RunDir
from regraft.plans.schema import Plan
from regraft.plans.toml import plan_to_toml, read_plan
from regraft.runs.directory import lock_dir, prepare_dir
from regraft.runs.folder import Run, file_digest, load_run, require_format, sealed_digests
from regraft.runs.layout import (
    CHECKPOINTS,
    CLASSES,
    ENVIRONMENT,
    FORMAT,
    FREEZE,
    HISTORY,
    LOG,
    PLAN,
    PREDICTIONS,
    SCORES,
    SKIPPED,
    SPLIT,
    STATE,
    TEST,
    TEST_PREDICTIONS,
    TRACK,
    UNFINISHED,
    WEIGHTS,
    PhaseFiles,
)
from regraft.system.disk import unwritable_error
from regraft.system.files import atomic_write, is_internal, remove_partials
from regraft.system.locks import lock_path
from regraft.system.output import write_csv, write_json, write_text
from regraft.system.progress import ProgressReporter

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class PhaseRecord:
    """What the phases so far left besides weights.

    Args:
        history: A row for each epoch, or each L2 value of a linear probe.
        freeze_checks: A check for each phase.
        executions: How each phase ran, where that was measured.
        seconds: Seconds by name.
        total: Seconds in all.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    freeze_checks: list[dict[str, Any]] = field(default_factory=list)
    executions: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    total: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the record under the keys of 0.1."""
        values = asdict(self)
        values["contract"] = values.pop("freeze_checks")
        values["paces"] = values.pop("executions")
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PhaseRecord:
        """Return the record that `to_json` gave."""
        return cls(
            values["history"],
            values["contract"],
            values["paces"],
            values["seconds"],
            values["total"],
        )


@dataclass(frozen=True)
class Judged:
    """The logits of one part, with its keys and targets."""

    keys: NDArray[np.str_]
    targets: NDArray[np.int64]
    logits: NDArray[np.float32]


@dataclass(frozen=True)
class SplitImages:
    """Which images a run used.

    Args:
        dataset: All of them.
        split: Their parts.
        rows: Rows of each part without those that cannot be decoded.
        skipped: Reason by key of those that cannot be decoded.
    """

    dataset: Dataset
    split: Split
    rows: Mapping[str, NDArray[np.int64]]
    skipped: Mapping[str, str]


class RunWriter:
    """The writer of one run folder; a context manager that locks the folder while it is open.

    Args:
        path: The folder.
        plan: What the run does.
        split_digest: Digest of the split.
        run_dir: Whether what is in the folder is resumed or overwritten.
    """

    def __init__(self, path: Path, plan: Plan, split_digest: str, run_dir: RunDir) -> None:
        self.path = path
        self.plan = plan
        self.split_digest = split_digest
        self.run_dir = run_dir
        self.is_finished = False
        self._stack = ExitStack()

    def __enter__(self) -> RunWriter:
        """Lock and start the folder; `is_finished` tells whether this very run is there already.

        Raises:
            UserError: When the folder is taken, or holds another plan, split or format.
        """
        with ExitStack() as stack:
            stack.enter_context(lock_dir(self.path, "run", self.run_dir))
            self._start()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        return self._stack.__exit__(kind, error, trace)

    @property
    def checkpoints(self) -> Path:
        """The folder of what only an unfinished run needs."""
        return self.path / CHECKPOINTS

    @property
    def log_path(self) -> Path:
        """The log file."""
        return self.path / LOG

    @property
    def track_path(self) -> Path:
        """The folder of trackers that write files."""
        return self.path / TRACK

    def phase_files(self, number: int) -> PhaseFiles:
        """Return the files of a phase."""
        return PhaseFiles(self.checkpoints, number)

    def _start(self) -> None:
        prepare_dir(self.path, "run", self.run_dir)
        for folder in (self.path, self.checkpoints):
            remove_partials(folder)
        has_plan = (self.path / PLAN).is_file()
        if not has_plan:
            self._require_nothing_else()
        if self.run_dir.resume and has_plan:
            self._require_same()
            self.is_finished = (self.path / SCORES).is_file()
            if self.is_finished:
                self._remove_checkpoints()
            return
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            state = {"format": FORMAT, "split_digest": self.split_digest}
            write_text(self.path / STATE, json.dumps(state))
            write_text(self.path / PLAN, plan_to_toml(self.plan))
        except OSError as error:
            raise unwritable_error(self.path, error) from error

    def _require_nothing_else(self) -> None:
        if not self.path.is_dir():
            return
        for entry in self.path.iterdir():
            if entry.name not in UNFINISHED and not is_internal(entry):
                raise UserError(
                    f"{self.path} holds no run to go on with. Expected a folder that `regraft fit` "
                    "or `regraft compare` began. Give another --out."
                )

    def _require_same(self) -> None:
        """Raise `UserError` where the folder holds another plan, split or format."""
        state = _read_state(self.path)
        require_format(self.path, state)
        there = read_plan(self.path / PLAN)
        if there.digest != self.plan.digest:
            raise UserError(
                f"{self.path} holds another plan ({there.digest}, not {self.plan.digest}). "
                "Expected the same plan to go on. Pass --overwrite, or another --out."
            )
        if state.get("split_digest") != self.split_digest:
            raise UserError(
                f"{self.path} was begun with other images or another split. Expected the same to "
                "go on. Pass --overwrite, or another --out."
            )

    def load_phase(self, number: int) -> tuple[dict[str, Tensor], PhaseRecord] | None:
        """Return weights and record of a phase that an earlier process finished, else None."""
        files = self.phase_files(number)
        if not self.run_dir.resume or not files.record.is_file():
            return None
        import safetensors.torch

        tensors = safetensors.torch.load_file(files.weights)
        return tensors, PhaseRecord.from_json(json.loads(files.record.read_text()))

    def save_phase(self, number: int, tensors: Mapping[str, Tensor], record: PhaseRecord) -> None:
        """Keep a finished phase, so that a killed run is resumed after it."""
        files = self.phase_files(number)
        write_weights(files.weights, tensors)
        write_json(files.record, record.to_json())

    def finish(
        self,
        tensors: Mapping[str, Tensor],
        images: SplitImages,
        record: PhaseRecord,
        val: Judged,
        scores: Mapping[str, Any],
    ) -> Run:
        """Write the results, `scores.json` last; returns the finished run.

        Args:
            tensors: Weights of backbone and head by name.
            images: Which images were used.
            record: What the phases left.
            val: Logits of the validation part.
            scores: What `scores.json` says, but for `format` and `files`.
        """
        from regraft.system.hardware import describe_environment

        path = self.path
        write_weights(path / WEIGHTS, tensors)
        write_json(path / ENVIRONMENT, describe_environment())
        write_json(path / CLASSES, list(images.dataset.classes))
        _write_split(path, images)
        write_csv(path / HISTORY, record.history, exact=True)
        write_predictions(path / PREDICTIONS, val)
        write_json(path / FREEZE, record.freeze_checks)
        digests = sealed_digests(path)
        write_json(path / SCORES, {"format": FORMAT, **scores, "files": digests})
        self._remove_checkpoints()
        return load_run(path)

    def _remove_checkpoints(self) -> None:
        """Remove what only an unfinished run needs."""
        for file in self.checkpoints.glob("p*-*.*"):
            file.unlink()


def record_test(
    run: Run, judged: Judged, scores: Mapping[str, Any], skipped: Mapping[str, str]
) -> None:
    """Write the scores of the test part, and that it was opened now.

    The folder must be locked, see `lock_run`.
    """
    earlier = run.test.opened if run.test else ()
    opened = [*earlier, datetime.now(UTC).isoformat(timespec="seconds")]
    path = run.path / TEST_PREDICTIONS
    write_predictions(path, judged)
    values = {"test": dict(scores), "opened": opened, "predictions": file_digest(path)}
    if skipped:
        values["skipped"] = dict(skipped)
    write_json(run.path / TEST, values)


def lock_run(run: Run, wait: float, advice: str) -> Any:
    """Return a context manager that keeps a finished run's folder to this process."""
    return lock_path(run.path, wait=wait, advice=advice, elsewhere=False)


def write_predictions(path: Path, judged: Judged) -> None:
    """Write keys, targets and logits of a part."""
    logits = judged.logits.astype(np.float32)
    with atomic_write(path, ".npz") as scratch:
        np.savez_compressed(scratch, keys=judged.keys, targets=judged.targets, logits=logits)


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors."""
    import safetensors.torch

    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as scratch:
        safetensors.torch.save_file(on_cpu, scratch)


def _write_split(path: Path, images: SplitImages) -> None:
    """Write the part of every image, and apart from them those that were left out, with reasons."""
    dataset = images.dataset
    rows: list[dict[str, str]] = []
    for part in PARTS:
        for row in images.rows[part]:
            label = dataset.classes[dataset.labels[row]]
            rows.append({"key": str(dataset.keys[row]), "label": label, "part": part})
    write_csv(path / SPLIT, rows, exact=True)
    if images.skipped:
        write_csv(path / SKIPPED, _skipped_rows(images), exact=True)


def _skipped_rows(images: SplitImages) -> list[dict[str, str]]:
    dataset = images.dataset
    rows = []
    for part in PARTS:
        for row in images.split[part]:
            key = str(dataset.keys[row])
            if key in images.skipped:
                label = dataset.classes[dataset.labels[row]]
                reason = images.skipped[key]
                rows.append({"key": key, "label": label, "part": part, "reason": reason})
    return rows


def _read_state(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((path / STATE).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


class LogFile(ProgressReporter):
    """Keeps messages in the run's log, and passes everything on."""

    def __init__(self, path: Path, inner: ProgressReporter) -> None:
        self.path = path
        self.inner = inner

    def log(self, text: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {text}\n")
        self.inner.log(text)

    def progress(self, what: str, done: int, total: int) -> None:
        self.inner.progress(what, done, total)

    def metrics(self, values: Mapping[str, float]) -> None:
        self.inner.metrics(values)
