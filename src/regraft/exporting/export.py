"""Writing an artefact: out of sight first, asked the same as the run, and put in its place only when it answers the same."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.errors import UserError, unknown_name_error
from regraft.evaluation.scores import log_softmax
from regraft.exporting.onnx import onnx_answers, require_onnx, write_onnx
from regraft.exporting.onnx_int8 import measure_drop, write_int8
from regraft.exporting.parity import Answers, Pixels, check_parity, compare_answers, run_answers
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
from regraft.system.files import ADVICE_REPEAT, check_writable, disk_errors, expand_user
from regraft.system.hardware import has_bfloat16
from regraft.system.progress import SILENT, ProgressReporter

EXPORT_FORMATS = {
    "onnx": ".onnx",
    "safetensors": ".safetensors",
    "timm": "-timm",
    "torchscript": ".pt",
    "hub-folder": "-hub",
}


@dataclass(frozen=True)
class ParitySamples:
    """Images to compare and to calibrate on, all decoded, `(h, w, 3)` uint8 of any sizes.

    Args:
        check: What the artefact is asked, beside the run.
        made_up: Whether these are no real images.
        train: Training images, for int8.
        val: Validation images, for int8, with their classes in `targets`.
    """

    check: Sequence[Pixels]
    made_up: bool = False
    train: Sequence[Pixels] = ()
    val: Sequence[Pixels] = ()
    targets: NDArray[np.int64] | None = None


def export_path(finished: Run, kind: str, out: Path | None, int8: bool) -> Path:
    """Return where an artefact goes: where it was asked for, or `exports/` under the run's name.

    Raises:
        UserError: For an unknown format, or int8 where there is none.
    """
    if kind not in EXPORT_FORMATS:
        raise unknown_name_error("export format", kind, EXPORT_FORMATS)
    if int8 and kind != "onnx":
        raise UserError(
            f"--int8 was given with --to {kind}. Expected --to onnx, the one format that has it. Leave one of them out."
        )
    return (
        expand_user(out)
        if out is not None
        else Path("exports")
        / f"{finished.path.resolve().name}{'.int8' if int8 else ''}{EXPORT_FORMATS[kind]}"
    )


def check_export_target(finished: Run, kind: str, out: Path, overwrite: bool) -> None:
    """Raise `UserError` where this run cannot be exported so, or not to this place; nothing is computed yet."""
    if kind == "onnx":
        require_onnx()
    if kind in ("timm", "hub-folder"):
        check_timm_folder(finished)
    check_writable(out.parent, out)
    if not out.exists():
        return
    if not overwrite:
        raise UserError(
            f"{out} exists already. Expected a new name. Pass --overwrite to replace it, or another --out."
        )
    strange = sorted({one.name for one in out.iterdir()} - TIMM_FILES) if out.is_dir() else []
    if out.is_dir() != (kind in ("timm", "hub-folder")) or strange:
        what = (
            f"holds {strange[0]}, which no export wrote"
            if strange
            else f"is a {'folder' if out.is_dir() else 'file'}, which --to {kind} does not write"
        )
        raise UserError(
            f"{out} {what}, so --overwrite does not touch it. Expected an export of the same kind. Give another --out."
        )


def export_run(
    finished: Run,
    kind: str,
    out: Path,
    samples: ParitySamples,
    int8: bool = False,
    overwrite: bool = False,
    watcher: ProgressReporter = SILENT,
) -> dict[str, Any]:
    """Write a run in another format, and return what was found out about it.

    Args:
        finished: The run.
        kind: One of `FORMATS`.
        out: The file, or the folder for "timm" and "hub-folder".
        samples: Images.
        int8: Write the ONNX graph in int8.
        overwrite: Replace what is there.
        watcher: Hears what is going on.

    Returns:
        `to`, `out`, `bytes`, `parity` (`difference` of probabilities, `other_class`, `n`, `images`): beside the run in float32; `as_fitted`, the same
        beside the run in its own arithmetic where that is bfloat16; and with int8 `quantised`.

    Raises:
        UserError: When the artefact does not say what the run says; it is removed.
    """
    check_export_target(finished, kind, out, overwrite)
    if int8 and not (len(samples.train) and len(samples.val)):
        raise UserError(
            "--int8 needs training images to find ranges on, and there are none. Name the run's images with --data, or leave out --int8."
        )
    write, answers = _ways(finished, kind)
    told: dict[str, Any] = {"to": kind, "out": str(out)}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror}). Give a place that can with --out."
        ) from error
    try:
        made = scratch / "artefact"
        with disk_errors(out, ADVICE_REPEAT):
            write(made)
        theirs = run_answers(answers(made), samples.check)
        found = compare_answers(theirs, _chances(finished, "float32", samples.check))
        check_parity(found, kind)
        told["parity"] = {**vars(found), "images": "made-up" if samples.made_up else "validation"}
        if finished.plan.precision != "float32" and has_bfloat16("cpu"):
            told["as_fitted"] = {
                **vars(compare_answers(theirs, _chances(finished, None, samples.check))),
                "arithmetic": finished.plan.precision,
            }
        if int8:
            watcher.say(f"Finding the ranges of int8 on {len(samples.train):,} training images.")
            write_int8(made, scratch / "int8", samples.train)
            assert samples.targets is not None
            told["quantised"] = measure_drop(
                made, scratch / "int8", samples.val, samples.targets
            ).plain()
            made = scratch / "int8"
        for file in [made, *made.glob("*")]:
            file.chmod(0o755 if file.is_dir() else 0o644)  # safetensors writes for the owner alone
        if out.is_dir():
            shutil.rmtree(out)
        os.replace(made, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return {
        **told,
        "bytes": sum(
            file.stat().st_size for file in ([out] if out.is_file() else list(out.iterdir()))
        ),
    }


def _ways(finished: Run, kind: str) -> tuple[Callable[[Path], None], Callable[[Path], Answers]]:
    """Return how a format is written, and how it is read back."""
    name = finished.path.resolve().name
    ways: dict[str, tuple[Callable[[Path], None], Callable[[Path], Answers]]] = {
        "onnx": (lambda path: write_onnx(finished, path), onnx_answers),
        "torchscript": (lambda path: write_torchscript(finished, path), torchscript_answers),
        "safetensors": (lambda path: write_safetensors(finished, path), safetensors_answers),
        "timm": (lambda path: write_timm_folder(finished, path, name), timm_folder_answers),
        "hub-folder": (
            lambda path: write_timm_folder(finished, path, name, for_hub=True),
            timm_folder_answers,
        ),
    }
    return ways[kind]


def _chances(finished: Run, precision: str | None, images: Sequence[Pixels]) -> NDArray[np.float64]:
    """Return what the run itself says, on the processor."""
    return np.exp(log_softmax(Classifier(finished, "cpu", precision).logits(images)))
