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

from regraft import evaluate, files, machine
from regraft.errors import UserError, unknown
from regraft.export import folder, graph, parity, quantised, script, tensors
from regraft.export.parity import Answers, Pixels
from regraft.predict import Classifier
from regraft.run import Run
from regraft.watch import SILENT, Watcher

FORMATS = {
    "onnx": ".onnx",
    "safetensors": ".safetensors",
    "timm": "-timm",
    "torchscript": ".pt",
    "hub-folder": "-hub",
}


@dataclass(frozen=True)
class Samples:
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


def place_of(finished: Run, kind: str, out: Path | None, int8: bool) -> Path:
    """Return where an artefact goes: where it was asked for, or `exports/` under the run's name.

    Raises:
        UserError: For an unknown format, or int8 where there is none.
    """
    if kind not in FORMATS:
        raise unknown("export format", kind, FORMATS)
    if int8 and kind != "onnx":
        raise UserError(
            f"--int8 was given with --to {kind}. Expected --to onnx, the one format that has it. Leave one of them out."
        )
    return (
        files.expanded(out)
        if out is not None
        else Path("exports")
        / f"{finished.path.resolve().name}{'.int8' if int8 else ''}{FORMATS[kind]}"
    )


def ready(finished: Run, kind: str, out: Path, overwrite: bool) -> None:
    """Raise `UserError` where this run cannot be exported so, or not to this place; nothing is computed yet."""
    if kind == "onnx":
        graph.needed()
    if kind in ("timm", "hub-folder"):
        folder.check(finished)
    files.check_writable(out.parent, out)
    if not out.exists():
        return
    if not overwrite:
        raise UserError(
            f"{out} exists already. Expected a new name. Pass --overwrite to replace it, or another --out."
        )
    strange = sorted({one.name for one in out.iterdir()} - folder.FILES) if out.is_dir() else []
    if out.is_dir() != (kind in ("timm", "hub-folder")) or strange:
        what = (
            f"holds {strange[0]}, which no export wrote"
            if strange
            else f"is a {'folder' if out.is_dir() else 'file'}, which --to {kind} does not write"
        )
        raise UserError(
            f"{out} {what}, so --overwrite does not touch it. Expected an export of the same kind. Give another --out."
        )


def export(
    finished: Run,
    kind: str,
    out: Path,
    samples: Samples,
    int8: bool = False,
    overwrite: bool = False,
    watcher: Watcher = SILENT,
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
    ready(finished, kind, out, overwrite)
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
        with files.writing(out, files.AGAIN):
            write(made)
        theirs = parity.said(answers(made), samples.check)
        found = parity.compare(theirs, _chances(finished, "float32", samples.check))
        parity.check(found, kind)
        told["parity"] = {**vars(found), "images": "made-up" if samples.made_up else "validation"}
        if finished.plan.precision != "float32" and machine.has_bfloat16("cpu"):
            told["as_fitted"] = {
                **vars(parity.compare(theirs, _chances(finished, None, samples.check))),
                "arithmetic": finished.plan.precision,
            }
        if int8:
            watcher.say(f"Finding the ranges of int8 on {len(samples.train):,} training images.")
            quantised.write(made, scratch / "int8", samples.train)
            assert samples.targets is not None
            told["quantised"] = quantised.drop(
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
        "onnx": (lambda path: graph.write(finished, path), graph.answers),
        "torchscript": (lambda path: script.write(finished, path), script.answers),
        "safetensors": (lambda path: tensors.write(finished, path), tensors.answers),
        "timm": (lambda path: folder.write(finished, path, name), folder.answers),
        "hub-folder": (
            lambda path: folder.write(finished, path, name, for_hub=True),
            folder.answers,
        ),
    }
    return ways[kind]


def _chances(finished: Run, precision: str | None, images: Sequence[Pixels]) -> NDArray[np.float64]:
    """Return what the run itself says, on the processor."""
    return np.exp(evaluate.log_softmax(Classifier(finished, "cpu", precision).logits(images)))
