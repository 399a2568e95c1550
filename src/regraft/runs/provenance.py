"""Where the images of a finished run are, and what its split depended on."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.data.dataset import Dataset
from regraft.data.load import load_dataset
from regraft.data.split import PARTS, Split
from regraft.errors import UserError, join_truncated
from regraft.options import DataOptions
from regraft.runs.folder import Run

SPLIT_OPTIONS = ("train_images", "val_images", "split_seed")  # they decide the parts


def describe_origin(data: str | Path | Dataset, options: DataOptions) -> dict[str, Any]:
    """Return what a run notes of its images: `data` in the user's words, and the data options."""
    name = None
    if not isinstance(data, Dataset):
        name = str(data)
        if Path(name).exists():
            name = str(Path(name).resolve())
    return {"data": name, **asdict(options)}


def data_options(run: Run, options: DataOptions) -> DataOptions:
    """Return options under which the images fall into the same parts as in a finished run."""
    origin = run.scores.get("origin", {})
    recorded = {name: origin[name] for name in SPLIT_OPTIONS if name in origin}
    skip_bad = options.skip_bad or bool(origin.get("skip_bad"))
    return replace(options, **recorded, skip_bad=skip_bad)


def load_images(run: Run, data: str | Path | None, cache_dir: Path) -> Dataset:
    """Return the images that are named, else those that a run remembers.

    Raises:
        UserError: When neither is known, or they cannot be had.
    """
    name = data or run.scores.origin.data
    if name is None:
        raise UserError(
            f"The run in {run.path} does not know where its images came from. Expected DATA, or "
            "--data. Name the same images."
        )
    return load_dataset(name, cache_dir)


def recorded_split(run: Run, dataset: Dataset) -> Split:
    """Return the split that a run recorded, as rows of the same images.

    Raises:
        UserError: When these are other images than those of the run.
    """
    row_of = {str(key): row for row, key in enumerate(dataset.keys)}
    rows: dict[str, list[int]] = {part: [] for part in PARTS}
    for image in run.split():
        row = row_of.get(image.key)
        if row is not None:
            rows[image.part].append(row)
    arrays = {part: np.array(sorted(rows[part]), dtype=np.int64) for part in PARTS}
    split = dataset.split_of(arrays)
    expected = run.scores.split_digest
    if split.digest != expected:
        raise UserError(
            f"{dataset.name} splits into {split.digest}, but the run in {run.path} was fitted on "
            f"{expected}. Expected the same images, which then fall into the same parts. Name "
            "those that the run was fitted on."
        )
    return split


def rows_by_part(run: Run, dataset: Dataset) -> dict[str, NDArray[np.int64]]:
    """Return the rows of a dataset that are the training and validation images of a run.

    Raises:
        UserError: When the dataset lacks images of the run, or has them under other classes.
    """
    row_of = {str(key): row for row, key in enumerate(dataset.keys)}
    lost = []
    rows: dict[str, list[int]] = {"train": [], "val": []}
    for image in run.split():
        if image.part not in rows or image.skipped:
            continue
        row = row_of.get(image.key)
        if row is None or dataset.classes[dataset.labels[row]] != image.label:
            lost.append(image.key)
        else:
            rows[image.part].append(row)
    if lost:
        raise UserError(
            f"{dataset.name} lacks {len(lost):,} of the images that the run in {run.path} was "
            f"fitted on, or has them under other classes: {join_truncated(lost)}. Expected the "
            "same images. Name them with --data."
        )
    return {part: np.array(numbers, dtype=np.int64) for part, numbers in rows.items()}
