"""Writing an export: to a scratch folder first, put in place once it answers as the run does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.errors import UserError, unknown_name_error
from regraft.evaluation.scores import log_softmax
from regraft.exporting.onnx import onnx_answers, require_onnx, write_onnx
from regraft.exporting.onnx_int8 import AccuracyDrop, check_drop, measure_drop, write_int8
from regraft.exporting.parity import (
    Answers,
    Parity,
    Pixels,
    check_parity,
    compare_answers,
    run_answers,
)
from regraft.exporting.safetensors_file import safetensors_answers, write_safetensors
from regraft.exporting.timm_folder import (
    TIMM_FILES,
    check_timm_folder,
    timm_folder_answers,
    write_timm_folder,
)
from regraft.exporting.torchscript import torchscript_answers, write_torchscript
from regraft.inference.classifier import Classifier
from regraft.runs.folder import Run
from regraft.system.disk import ADVICE_REPEAT, check_writable, disk_errors
from regraft.system.files import expand_user
from regraft.system.hardware import has_bfloat16
from regraft.system.progress import SILENT, ProgressReporter


@dataclass(frozen=True)
class ExportFormat:
    """How a run is written in one format, and read back.

    Args:
        suffix: What the default name ends in.
        write: Writes a run to a path.
        answers: Returns what is at a path as a function from images to probabilities.
        is_folder: Whether the artefact is a folder.
    """

    suffix: str
    write: Callable[[Run, Path], None]
    answers: Callable[[Path], Answers]
    is_folder: bool = False


EXPORT_FORMATS = {
    "onnx": ExportFormat(".onnx", write_onnx, onnx_answers),
    "safetensors": ExportFormat(".safetensors", write_safetensors, safetensors_answers),
    "timm": ExportFormat("-timm", write_timm_folder, timm_folder_answers, is_folder=True),
    "torchscript": ExportFormat(".pt", write_torchscript, torchscript_answers),
    "hub-folder": ExportFormat(
        "-hub", partial(write_timm_folder, for_hub=True), timm_folder_answers, is_folder=True
    ),
}


@dataclass(frozen=True)
class ParitySamples:
    """Images to compare and to calibrate on, all decoded, `(h, w, 3)` uint8 of any sizes.

    Args:
        check: Images on which the export and the run are compared.
        is_synthetic: Whether these are synthetic.
        train: Training images, for int8.
        val: Validation images, for int8.
        targets: Their classes, `(len(val),)`.
    """

    check: Sequence[Pixels]
    is_synthetic: bool = False
    train: Sequence[Pixels] = ()
    val: Sequence[Pixels] = ()
    targets: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class ExportTarget:
    """What to write, and where.

    Args:
        kind: One of `EXPORT_FORMATS`.
        path: A file, or a folder for "timm" and "hub-folder".
        int8_drop: Write the ONNX graph in int8, which may cost so many percentage points of
            validation accuracy; in float32 when None.
        overwrite: Replace what is there.
    """

    kind: str
    path: Path
    int8_drop: float | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how near its answers are to those of the run.

    Args:
        kind: One of `EXPORT_FORMATS`.
        path: The file or folder.
        bytes: Its size.
        parity: Compared with the run in float32.
        images: What both were asked: "validation" or "made-up" images.
        as_fitted: Compared with the run in its own arithmetic, where that is not float32.
        arithmetic: The run's own arithmetic.
        quantised: What int8 costs, where it was asked for.
    """

    kind: str
    path: Path
    bytes: int
    parity: Parity
    images: str
    as_fitted: Parity | None
    arithmetic: str
    quantised: AccuracyDrop | None

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data; what was not measured is left out."""
        values: dict[str, Any] = {
            "to": self.kind,
            "out": str(self.path),
            "parity": {**asdict(self.parity), "images": self.images},
        }
        if self.as_fitted is not None:
            values["as_fitted"] = {**asdict(self.as_fitted), "arithmetic": self.arithmetic}
        if self.quantised is not None:
            values["quantised"] = self.quantised.to_json()
        values["bytes"] = self.bytes
        return values


def export_path(finished: Run, kind: str, out: Path | None, int8: bool) -> Path:
    """Return where an export goes: to `out`, else to `exports/` under the run's name.

    Raises:
        UserError: For an unknown format, or int8 in a format that does not have it.
    """
    if kind not in EXPORT_FORMATS:
        raise unknown_name_error("export format", kind, EXPORT_FORMATS)
    if int8 and kind != "onnx":
        raise UserError(
            f"--int8 was given with --to {kind}. Expected --to onnx, the one format that has it. "
            "Leave one of them out."
        )
    if out is not None:
        return expand_user(out)
    name = finished.path.resolve().name
    precision = ".int8" if int8 else ""
    return Path("exports") / f"{name}{precision}{EXPORT_FORMATS[kind].suffix}"


def check_export_target(finished: Run, kind: str, out: Path, overwrite: bool) -> None:
    """Raise `UserError` where this run cannot be exported so, or not there; computes nothing."""
    if kind == "onnx":
        require_onnx()
    is_folder = EXPORT_FORMATS[kind].is_folder
    if is_folder:
        check_timm_folder(finished)
    check_writable(out.parent, out)
    if not out.exists():
        return
    if not overwrite:
        raise UserError(
            f"{out} exists already. Expected a new name. "
            "Pass --overwrite to replace it, or another --out."
        )
    foreign: list[str] = []
    if out.is_dir():
        foreign = sorted({path.name for path in out.iterdir()} - TIMM_FILES)
    if out.is_dir() == is_folder and not foreign:
        return
    if foreign:
        reason = f"holds {foreign[0]}, which no export wrote"
    else:
        reason = f"is a {'folder' if out.is_dir() else 'file'}, which --to {kind} does not write"
    raise UserError(
        f"{out} {reason}, so --overwrite does not touch it. "
        "Expected an export of the same kind. Give another --out."
    )


def write_export(
    finished: Run, target: ExportTarget, samples: ParitySamples, reporter: ProgressReporter = SILENT
) -> ExportReport:
    """Write a run in another format, and return what was written and how it answers.

    Args:
        finished: The run.
        target: What to write, and where.
        samples: Images to compare on, and for int8 to calibrate and to measure on.
        reporter: Hears what is going on.

    Raises:
        UserError: When the run cannot be exported so, or the export answers differently from the
            run; nothing is left of it, and an older one stays.
    """
    check_export_target(finished, target.kind, target.path, target.overwrite)
    if target.int8_drop is not None and not (len(samples.train) and len(samples.val)):
        raise UserError(
            "--int8 needs training images to find ranges on, and there are none. "
            "Name the run's images with --data, or leave out --int8."
        )
    with _scratch_folder(target.path) as scratch:
        artefact = scratch / "artefact"
        with disk_errors(target.path, ADVICE_REPEAT):
            EXPORT_FORMATS[target.kind].write(finished, artefact)
        answers = run_answers(EXPORT_FORMATS[target.kind].answers(artefact), samples.check)
        exact = compare_answers(answers, _run_answers(finished, "float32", samples.check))
        check_parity(exact, target.kind)
        as_fitted = _compare_as_fitted(finished, answers, samples.check)
        drop = None
        if target.int8_drop is not None:
            reporter.log(f"Finding the ranges of int8 on {len(samples.train):,} training images.")
            artefact, drop = _quantise(artefact, samples)
            check_drop(drop, target.int8_drop)
        _put_in_place(artefact, target.path)
    return ExportReport(
        kind=target.kind,
        path=target.path,
        bytes=_count_bytes(target.path),
        parity=exact,
        images="made-up" if samples.is_synthetic else "validation",
        as_fitted=as_fitted,
        arithmetic=finished.plan.precision,
        quantised=drop,
    )


@contextmanager
def _scratch_folder(out: Path) -> Iterator[Path]:
    """Give a folder beside the export; it is removed when the block ends."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror}). Give a place that can with --out."
        ) from error
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _run_answers(
    finished: Run, precision: str | None, images: Sequence[Pixels]
) -> NDArray[np.float64]:
    """Return the run's own probabilities `(n, classes)`, computed on the CPU."""
    logits = Classifier(finished, "cpu", precision).logits(images)
    return np.exp(log_softmax(logits))


def _compare_as_fitted(
    finished: Run, answers: NDArray[np.float64], images: Sequence[Pixels]
) -> Parity | None:
    """Compare with the run in its own arithmetic; None where that is float32 on this CPU."""
    if finished.plan.precision == "float32" or not has_bfloat16("cpu"):
        return None
    return compare_answers(answers, _run_answers(finished, None, images))


def _quantise(artefact: Path, samples: ParitySamples) -> tuple[Path, AccuracyDrop]:
    """Write an int8 copy beside an ONNX graph; returns its path and what it costs."""
    assert samples.targets is not None
    small = artefact.with_name("int8")
    write_int8(artefact, small, samples.train)
    return small, measure_drop(artefact, small, samples.val, samples.targets)


def _put_in_place(artefact: Path, out: Path) -> None:
    """Move a finished artefact to its place, readable for everybody."""
    for path in [artefact, *artefact.glob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors writes for the owner alone
    if out.is_dir():
        shutil.rmtree(out)
    os.replace(artefact, out)


def _count_bytes(out: Path) -> int:
    paths = list(out.iterdir()) if out.is_dir() else [out]
    return sum(path.stat().st_size for path in paths)
