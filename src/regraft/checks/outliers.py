"""Outliers and imbalance: files unlike the rest in form, and classes much rarer than others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.data.dataset import Dataset
from regraft.data.images import Rows, Unreadable
from regraft.data.split import PARTS, Split

Pixels = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]

UNEVEN_RATIO = 3.0  # largest over smallest class, from which on it is reported
_FEW = 10  # images of a class in train below which it is reported
_LONG = 4.0  # longer side over shorter side
_FLAT = 4  # range of brightness within which an image counts as one colour
_SMALL = 4.0  # median side over shorter side


@dataclass(frozen=True)
class ClassBalance:
    """How many images each class has.

    Args:
        classes: Names of the classes.
        counts: Images of each class by part.
        ratio: Largest over smallest class in train.
        few: Names of the classes with fewer than ten images in train.
    """

    classes: list[str]
    counts: dict[str, list[int]]
    ratio: float
    few: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the balance as it is written to JSON."""
        rows = []
        for label, name in enumerate(self.classes):
            by_part = {part: counts[label] for part, counts in self.counts.items()}
            rows.append({"name": name, **by_part})
        return {"classes": rows, "ratio": self.ratio, "few": self.few}


@dataclass(frozen=True)
class Outlier:
    """The row of an image and the reason why it is odd."""

    row: int
    why: str

    def to_json(self) -> dict[str, Any]:
        """Return the outlier as it is written to JSON."""
        return asdict(self)


def count_classes(data: Dataset, split: Split) -> ClassBalance:
    """Return how many images of each class there are in each part."""
    counts: dict[str, list[int]] = {}
    for part in PARTS:
        labels = data.labels[split[part]]
        in_part = np.bincount(labels, minlength=len(data.classes))
        counts[part] = in_part.tolist()
    train = counts["train"]
    smallest = max(1, min(train))
    ratio = max(train) / smallest
    few = [data.classes[label] for label, count in enumerate(train) if count < _FEW]
    return ClassBalance(list(data.classes), counts, ratio, few)


def find_odd_files(data: Dataset, rows: Rows) -> tuple[list[Outlier], Rows]:
    """Return the files that cannot be read, are very long or very small, and the readable rows.

    Opens every file, to read its size.

    Args:
        data: Labelled images.
        rows: Those to check.
    """
    outliers: list[Outlier] = []
    try:
        sizes = data.images.sizes(rows)
    except Unreadable as error:
        outliers += find_unreadable(error)
        rows = rows[~np.isin(rows, error.rows)]
        sizes = data.images.sizes(rows)
    outliers += _odd_sizes(rows, sizes)
    return outliers, rows


def find_unreadable(error: Unreadable, rows: Rows | None = None) -> list[Outlier]:
    """Return the images that an error names.

    Args:
        error: What reading them raised.
        rows: The rows that were read, where the error's rows are positions among them.
    """
    outliers = []
    for number, reason in zip(error.rows, error.reasons, strict=True):
        row = number if rows is None else rows[number]
        outliers.append(Outlier(int(row), f"cannot be read: {reason}"))
    return outliers


def find_single_colour(images: Pixels, rows: Rows) -> list[Outlier]:
    """Return the images that are one colour throughout.

    Args:
        images: Pixels `(h, w, 3)` of each of `rows`.
        rows: Their rows in the table.
    """
    outliers = []
    for row, image in zip(rows.tolist(), images, strict=True):
        pixels = image.reshape(-1, 3)
        brightness_range = np.ptp(pixels, axis=0).max()
        if int(brightness_range) < _FLAT:
            outliers.append(Outlier(row, "one colour throughout"))
    return outliers


def _odd_sizes(rows: Rows, sizes: NDArray[np.int64]) -> Iterator[Outlier]:
    """Yield the images that are very long, then those that are very small.

    Args:
        rows: Of the images, `(n,)`.
        sizes: Their height and width, `(n, 2)`.
    """
    short = sizes.min(axis=1)
    long = sizes.max(axis=1)
    very_long = long > _LONG * short
    for number in np.flatnonzero(very_long):
        row = int(rows[number])
        height, width = sizes[number].tolist()
        yield Outlier(row, f"{width} × {height} pixels: only the centre is seen")
    median = float(np.median(short)) if len(short) else 0.0
    very_small = short * _SMALL < median
    for number in np.flatnonzero(very_small):
        row = int(rows[number])
        height, width = sizes[number].tolist()
        usual = f"most are {median:.0f} on the shorter side"
        yield Outlier(row, f"{width} × {height} pixels, {usual}")
