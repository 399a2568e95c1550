"""Finished runs at work: many images through one of them, one after another or into a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from hashlib import file_digest
from itertools import islice
from pathlib import Path
from typing import Any

from regraft import machine, predict
from regraft.errors import UserError
from regraft.run import Run
from regraft.sources import streams
from regraft.watch import SILENT, Watcher


def predict_named(
    path: Path, given: Sequence[str | Path], top: int = 1, device: str = "auto", batch_size: int = 0, min_confidence: float | None = None,
    watcher: Watcher = SILENT,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Return an iterator over a row for each image; nothing is read before the arguments are known to be good.

    Args:
        path: A run folder.
        given: What `sources.streams.found` takes; "-" reads paths from standard input.
        top: Classes in `ranked`.
        device: "auto", "cpu" or "cuda".
        batch_size: Images at once; 0 for what suits the machine.
        min_confidence: Abstain below this calibrated probability.
        watcher: Hears how far it is.

    Raises:
        UserError: For a run, a path or a number that cannot be used, and where there is no image at all.
    """
    classifier = _classifier(path, given, device, batch_size, min_confidence, watcher)
    return _rows(classifier, given, top, min_confidence, watcher, lambda name: False)


def predict_to(
    path: Path, given: Sequence[str | Path], out: Path, kind: str | None = None, top: int = 1, device: str = "auto", batch_size: int = 0,
    min_confidence: float | None = None, resume: bool = False, overwrite: bool = False, watcher: Watcher = SILENT,
) -> dict[str, Any]:  # fmt: skip
    """Write a row for each image to a file as they come; returns what was written.

    Args:
        path, given, top, device, batch_size, min_confidence, watcher: As for `predict_named`.
        out: The file; `kind` is "csv", "json" (a line each) or "parquet", by its name when None.
        resume: Go on with what is in it: images that were written are not read again.
        overwrite: Replace it.

    Returns:
        `out`, `format`, `rows` (all in the file), `new` (of this call), `unreadable`, `abstained`, `seconds`.
    """
    kind = predict.format_of(kind, out)
    classifier = _classifier(path, given, device, batch_size, min_confidence, watcher)
    job = {**_named(classifier.run), "format": kind, "top": top, "min_confidence": min_confidence}
    results = predict.Results.of(kind)(out, job, top, resume, overwrite)
    unreadable, abstained, started = 0, 0, time.perf_counter()
    try:
        rows = _rows(classifier, given, top, min_confidence, watcher, results.__contains__, results.before)
        while batch := list(islice(rows, classifier.batch_size)):
            results.add(batch)
            unreadable += sum(one["error"] is not None for one in batch)
            abstained += sum(one["abstained"] for one in batch)
    except BaseException:
        results.close()
        if not results.rows:
            results.discard()
        raise
    results.finish()
    return {
        "out": str(out), "format": kind, "rows": results.rows, "new": results.rows - results.before, "unreadable": unreadable, "abstained": abstained,
        "seconds": round(time.perf_counter() - started, 3),
    }  # fmt: skip


def _classifier(path: Path, given: Sequence[str | Path], device: str, batch_size: int, least: float | None, watcher: Watcher) -> predict.Classifier:
    from regraft import run

    if least is not None and not 0 < least <= 1:
        raise UserError(f"--min-confidence {least:g} was given. Expected a probability above 0, at most 1. Leave it out to have every image answered.")
    if batch_size < 0:
        raise UserError(f"--batch-size {batch_size} was given. Expected 1 or more. Leave it out to take what suits the machine.")
    finished = run.load(path)
    streams.check(given)
    machine.keep_memory()
    classifier = predict.Classifier(finished, device, batch_size=batch_size)
    if least is not None:
        watcher.say(
            f"Probabilities are calibrated: logits divided by {classifier.temperature:.3f}, which suits {finished.scores['val']['n']:,} validation images best."
        )
    _ = classifier.network  # weights that do not fit are found before anything is written
    return classifier


def _rows(
    classifier: predict.Classifier, given: Sequence[str | Path], top: int, least: float | None, watcher: Watcher, known: Callable[[str], bool], before: int = 0
) -> Iterator[dict[str, Any]]:
    total, done = max(streams.count(given), 0), before
    fresh = (one for one in streams.found(given, sys.stdin) if not known(one.name))
    for said in classifier.stream(fresh, least):
        done += 1
        if done % classifier.batch_size == 0 or done == total:
            watcher.step("predict", done, total)
        yield predict.row(said, top)
    if not done:
        raise UserError(f"No image was found in {', '.join(map(str, given))}. Expected image files, or folders, archives or tables of them. Check the path.")


def _named(finished: Run) -> dict[str, Any]:
    """Return what tells this very run from any other."""
    with (finished.path / "model.safetensors").open("rb") as file:
        weights = file_digest(file, "blake2b").hexdigest()[:32]
    return {"run": finished.name, "plan_digest": finished.plan.digest, "weights_digest": weights}
