"""Finished runs at work: many images through one of them, one after another or into a file; and one of them for other programs."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.data.dataset import Dataset
from regraft.data.stream import check_inputs, count_images, iterate_images
from regraft.errors import UserError, join_truncated
from regraft.exporting.export import ParitySamples, check_export_target, export_path, export_run
from regraft.exporting.parity import PARITY_IMAGES, synthetic_images
from regraft.features.store import default_cache_dir
from regraft.inference.classifier import Classifier
from regraft.inference.network import restore_network
from regraft.inference.writers import ResultWriter, output_format, prediction_row
from regraft.models.backbone import Backbone
from regraft.models.transforms import resize_center_crop, storage_size
from regraft.runs.folder import Run, file_digest, load_run
from regraft.system.files import check_writable, lock_path
from regraft.system.hardware import tune_allocator
from regraft.system.progress import SILENT, ProgressReporter
from regraft.workflow.origin import images_of
from regraft.workflow.settings import Settings

_CALIBRATION, _MOST_JUDGED = 256, 5_000  # training and validation images that int8 takes at most
_MOST_PIXELS = 1_000_000  # of an image that answers are compared on
_READ_AT_ONCE = 256


def predict_named(
    path: Path,
    given: Sequence[str | Path],
    top: int = 1,
    device: str = "auto",
    batch_size: int = 0,
    min_confidence: float | None = None,
    watcher: ProgressReporter = SILENT,
) -> Iterator[dict[str, Any]]:
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
    path: Path,
    given: Sequence[str | Path],
    out: Path,
    kind: str | None = None,
    top: int = 1,
    device: str = "auto",
    batch_size: int = 0,
    min_confidence: float | None = None,
    resume: bool = False,
    overwrite: bool = False,
    watcher: ProgressReporter = SILENT,
) -> dict[str, Any]:
    """Write a row for each image to a file as they come; returns what was written.

    Args:
        path, given, top, device, batch_size, min_confidence, watcher: As for `predict_named`.
        out: The file; `kind` is "csv", "json" (a line each) or "parquet", by its name when None.
        resume: Go on with what is in it: images that were written are not read again.
        overwrite: Replace it.

    Returns:
        `out`, `format`, `rows` (all in the file), `new` (of this call), `unreadable`, `abstained`, `seconds`.
    """
    kind = output_format(kind, out)
    check_writable(out.parent, out)
    classifier = _classifier(path, given, device, batch_size, min_confidence, watcher)
    job = {**_named(classifier.run), "format": kind, "top": top, "min_confidence": min_confidence}
    unreadable, abstained, started = 0, 0, time.perf_counter()
    with lock_path(out.parent, out.name):
        results = ResultWriter.of(kind)(out, job, top, resume, overwrite)
        try:
            rows = _rows(
                classifier,
                given,
                top,
                min_confidence,
                watcher,
                results.__contains__,
                results.before,
            )
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
        "out": str(out),
        "format": kind,
        "rows": results.rows,
        "new": results.rows - results.before,
        "unreadable": unreadable,
        "abstained": abstained,
        "seconds": round(time.perf_counter() - started, 3),
    }


def _classifier(
    path: Path,
    given: Sequence[str | Path],
    device: str,
    batch_size: int,
    least: float | None,
    watcher: ProgressReporter,
) -> Classifier:
    if least is not None and not 0 < least <= 1:
        raise UserError(
            f"--min-confidence {least:g} was given. Expected a probability above 0, at most 1. Leave it out to have every image answered."
        )
    if batch_size < 0:
        raise UserError(
            f"--batch-size {batch_size} was given. Expected 1 or more. Leave it out to take what suits the machine."
        )
    finished = load_run(path)
    check_inputs(given)
    tune_allocator()
    classifier = Classifier(finished, device, batch_size=batch_size)
    if least is not None:
        watcher.say(
            f"Probabilities are calibrated: logits divided by {classifier.temperature:.3f}, which suits {finished.scores['val']['n']:,} validation images best."
        )
    _ = classifier.network  # weights that do not fit are found before anything is written
    return classifier


def _rows(
    classifier: Classifier,
    given: Sequence[str | Path],
    top: int,
    least: float | None,
    watcher: ProgressReporter,
    known: Callable[[str], bool],
    before: int = 0,
) -> Iterator[dict[str, Any]]:
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # names of files are bytes
    total, done = max(count_images(given), 0), before
    fresh = (one for one in iterate_images(given, sys.stdin) if not known(one.name))
    for said in classifier.stream(fresh, least):
        done += 1
        if done % classifier.batch_size == 0 or done == total:
            watcher.step("predict", done, total)
        yield prediction_row(said, top)
    if not done:
        raise UserError(
            f"No image was found in {', '.join(map(str, given))}. Expected image files, or folders, archives or tables of them. Check the path."
        )


def _named(finished: Run) -> dict[str, Any]:
    """Return what tells this very run from any other."""
    return {
        "run": finished.name,
        "plan_digest": finished.plan.digest,
        "weights_digest": file_digest(finished.path / "model.safetensors"),
    }


def export_named(
    path: Path,
    kind: str,
    out: Path | None = None,
    int8: bool = False,
    data: str | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Write a run in another format, compare its answers with the run's on validation images, and return what was found.

    Args:
        path: A run folder.
        kind: One of `export.FORMATS`.
        out: A file or folder; `exports/` under the run's name when None.
        int8: ONNX in whole numbers, its ranges found on training images, its accuracy measured on validation.
        data: The run's images, where the run does not know where they are; without any, made-up ones are compared.
        overwrite: Replace an export that is there.
        **settings: `home` and `watcher` of `Settings`.

    Raises:
        UserError: When the run cannot be exported so, or the artefact says something else than the run; it is removed then.
    """
    finished = load_run(path)
    place = export_path(finished, kind, out, int8)
    check_export_target(finished, kind, place, overwrite)
    tune_allocator()
    where = Settings(
        home=default_cache_dir(settings.get("home")), watcher=settings.get("watcher", SILENT)
    )
    return export_run(
        finished, kind, place, _samples(finished, data, int8, where), int8, overwrite, where.watcher
    )


def _samples(finished: Run, data: str | None, int8: bool, where: Settings) -> ParitySamples:
    """Return the run's own images, or made-up ones where they cannot be had and nothing was promised of them."""
    try:
        images, rows, targets = _images_of(finished, data, where)
    except UserError as error:
        if data is not None or int8:
            raise
        where.watcher.say(f"Made-up images are compared: {error}")
        return ParitySamples(synthetic_images(finished.plan.resolution), made_up=True)
    spread = np.linspace(0, len(rows["val"]) - 1, min(PARITY_IMAGES, len(rows["val"]))).astype(
        np.int64
    )
    check = [_thinned(image) for image in images.images.read(rows["val"][spread])]
    if not int8:
        return ParitySamples(check)
    known = np.linspace(0, len(rows["val"]) - 1, min(_MOST_JUDGED, len(rows["val"]))).astype(
        np.int64
    )
    train = np.linspace(0, len(rows["train"]) - 1, min(_CALIBRATION, len(rows["train"]))).astype(
        np.int64
    )
    model, _ = restore_network(finished, "cpu")
    kept = {
        part: _kept(images, rows[part][mine], model)
        for part, mine in (("train", train), ("val", known))
    }
    return ParitySamples(check, train=kept["train"], val=kept["val"], targets=targets[known])


def _images_of(
    finished: Run, data: str | None, where: Settings
) -> tuple[Dataset, dict[str, NDArray[np.int64]], NDArray[np.int64]]:
    """Return the images that a run was fitted on, the rows of its training and validation images, and the classes of the latter."""
    images = images_of(finished, data, where)
    place = {str(key): row for row, key in enumerate(images.keys)}
    with (finished.path / "split.csv").open(newline="", encoding="utf-8") as file:
        parts = [
            (one["key"], one["part"], one["label"])
            for one in csv.DictReader(file)
            if one["part"] != "test"
        ]
    lost = [
        key
        for key, _, label in parts
        if key not in place or images.classes[images.labels[place[key]]] != label
    ]
    if lost:
        raise UserError(
            f"{images.name} lacks {len(lost):,} of the images that the run in {finished.path} was fitted on, or has them under other classes: {join_truncated(lost)}. "
            "Expected the same images. Name them with --data."
        )
    rows = {
        part: np.array([place[key] for key, mine, _ in parts if mine == part], dtype=np.int64)
        for part in ("train", "val")
    }
    number = {name: row for row, name in enumerate(finished.classes)}
    return (
        images,
        rows,
        np.array(
            [number[images.classes[images.labels[row]]] for row in rows["val"]], dtype=np.int64
        ),
    )


def _thinned(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image of a few million pixels at most; to compare answers any pixels will do."""
    step = max(1, int(np.ceil(np.sqrt(image.shape[0] * image.shape[1] / _MOST_PIXELS))))
    return np.ascontiguousarray(image[::step, ::step])


def _kept(images: Dataset, rows: NDArray[np.int64], model: Backbone) -> list[NDArray[np.uint8]]:
    """Return decoded images in the size in which they are kept for a network."""
    found: list[NDArray[np.uint8]] = []
    for start in range(0, len(rows), _READ_AT_ONCE):
        read = images.images.read(rows[start : start + _READ_AT_ONCE])
        found += [
            resize_center_crop(
                image, storage_size(image.shape[:2], model.resolution), model.rules.interpolation
            )
            for image in read
        ]
    return found
