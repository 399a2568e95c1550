"""`regraft export`: a finished run for other programs, compared with the run before it is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regraft.commands.options import ExportRequest as ExportRequest
from regraft.data.dataset import Dataset
from regraft.errors import UserError
from regraft.exporting.export import (
    ExportReport,
    ExportTarget,
    ParitySamples,
    check_export_target,
    export_path,
    write_export,
)
from regraft.exporting.parity import PARITY_IMAGES, synthetic_images
from regraft.inference.restore import restore_network
from regraft.models.transforms import Preprocess
from regraft.options import Options
from regraft.runs.folder import Run, load_run
from regraft.runs.provenance import load_images, rows_by_part
from regraft.system.hardware import tune_allocator

Pixels = NDArray[np.uint8]
Rows = NDArray[np.int64]

_CALIBRATION = 256  # training images for int8
_MOST_SCORED = 5_000  # validation images for int8, at most
_MOST_PIXELS = 1_000_000  # of an image that answers are compared on
_READ_AT_ONCE = 256


def export(
    run: str | Path | Run, request: ExportRequest, options: Options = Options()
) -> ExportReport:
    """Write a run in another format, compare its answers with the run's, and return what was found.

    Args:
        run: A run, or its folder.
        request: What is exported.
        options: `cache` and `runtime` count, and `run_dir.overwrite`.

    Raises:
        UserError: When the run cannot be exported so, or the export answers differently from the
            run; it is removed then.
    """
    finished = run if isinstance(run, Run) else load_run(run)
    out = None if request.out is None else Path(request.out)
    path = export_path(finished, request.to, out, request.int8)
    overwrite = options.run_dir.overwrite
    check_export_target(finished, request.to, path, overwrite)
    tune_allocator()
    samples = _samples(finished, request, options)
    int8_drop = request.max_drop if request.int8 else None
    target = ExportTarget(request.to, path, int8_drop, overwrite)
    return write_export(finished, target, samples, options.runtime.reporter)


def _samples(run: Run, request: ExportRequest, options: Options) -> ParitySamples:
    """Return the run's own images, or synthetic ones where they cannot be had and need not be."""
    try:
        dataset = load_images(run, request.data, options.cache.dir)
        rows = rows_by_part(run, dataset)
    except UserError as error:
        if request.data is not None or request.int8:
            raise
        options.runtime.reporter.log(f"Synthetic images are compared: {error}")
        return ParitySamples(synthetic_images(run.plan.resolution), is_synthetic=True)
    val = rows["val"]
    compared = dataset.images.read(_spread(val, PARITY_IMAGES))
    check = [_thin_out(image) for image in compared]
    if not request.int8:
        return ParitySamples(check)
    preprocess = restore_network(run, "cpu").preprocess
    scored = _spread(val, _MOST_SCORED)
    return ParitySamples(
        check,
        train=_read_stored(dataset, _spread(rows["train"], _CALIBRATION), preprocess),
        val=_read_stored(dataset, scored, preprocess),
        targets=_targets(run, dataset, scored),
    )


def _spread(rows: Rows, most: int) -> Rows:
    """Return at most so many rows, evenly spread."""
    numbers = np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)
    selected: Rows = rows[numbers]
    return selected


def _targets(run: Run, dataset: Dataset, rows: Rows) -> Rows:
    """Return the classes of some rows by the run's own numbers."""
    number_of = {name: number for number, name in enumerate(run.classes)}
    names = [dataset.classes[label] for label in dataset.labels[rows]]
    return np.array([number_of[name] for name in names], dtype=np.int64)


def _thin_out(image: Pixels) -> Pixels:
    """Return an image of a million pixels at most; to compare answers any pixels will do."""
    area = image.shape[0] * image.shape[1]
    step = max(1, int(np.ceil(np.sqrt(area / _MOST_PIXELS))))
    return np.ascontiguousarray(image[::step, ::step])


def _read_stored(dataset: Dataset, rows: Rows, preprocess: Preprocess) -> list[Pixels]:
    """Return decoded images in the size in which they are stored for a network."""
    images: list[Pixels] = []
    for start in range(0, len(rows), _READ_AT_ONCE):
        read = dataset.images.read(rows[start : start + _READ_AT_ONCE])
        images += [preprocess.store(image) for image in read]
    return images
