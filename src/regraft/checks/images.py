"""The images that a check looks at: those that can be decoded, with their pixels and features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regraft.checks.outliers import Outlier, find_single_colour, find_unreadable
from regraft.data.dataset import Dataset
from regraft.data.images import Rows, Unreadable
from regraft.features.parts import PartImages
from regraft.models.network import Cut
from regraft.options import Options
from regraft.system.hardware import free_memory

Features = NDArray[np.float16]

_COPIES = 5  # of the features, in float32, while a linear probe is fitted on them


@dataclass(frozen=True)
class CheckedImages:
    """Decoded images.

    Args:
        rows: Their rows in the dataset, `(n,)`.
        pixels: All of them in order, in arrays `(n, h, w, 3)` that may differ in size.
        end: Features of the end of the network, `(n, d)`.
        several: Features of several layers, `(n, d)`.
    """

    rows: Rows
    pixels: Sequence[NDArray[np.uint8]]
    end: Features
    several: Features


class CheckReader:
    """Reads the images of a dataset for a check; those that are odd are noted.

    Args:
        dataset: The images.
        end_cut: A network up to its end.
        several_cut: The same network up to several layers.
        options: Cache and machine.
        memory: Returns the free bytes.
    """

    def __init__(
        self,
        dataset: Dataset,
        end_cut: Cut,
        several_cut: Cut,
        options: Options,
        *,
        memory: Callable[[], float] = free_memory,
    ) -> None:
        self.dataset = dataset
        self.cuts = (end_cut, several_cut)
        self.options = options
        self.memory = memory
        self.outliers: list[Outlier] = []

    def read(self, rows_by_part: Mapping[str, Rows]) -> CheckedImages | None:
        """Return the images of several parts that can be decoded; None where there are none."""
        parts = []
        for name, rows in rows_by_part.items():
            part = self._read_part(name, rows)
            if part is not None:
                parts.append(part)
        return self._join(parts) if parts else None

    def _read_part(self, name: str, rows: Rows) -> CheckedImages | None:
        images = self._open(name, rows)
        preprocess = self.cuts[0].preprocess
        try:
            if len(rows):
                images.pixels(preprocess)
        except Unreadable as error:
            self.outliers += find_unreadable(error, rows)
            rows = np.delete(rows, error.rows)
            images = self._open(name, rows)
        if not len(rows):
            return None
        pixels = images.pixels(preprocess).entry.arrays[0]
        self.outliers += find_single_colour(pixels, rows)
        end, several = images.extract(self.cuts)
        return CheckedImages(rows, [pixels], end.arrays[0], several.arrays[0])

    def _open(self, name: str, rows: Rows) -> PartImages:
        taken = self.dataset.take(rows)
        return PartImages(name, taken, self.options.cache, self.options.runtime)

    def _join(self, parts: Sequence[CheckedImages]) -> CheckedImages:
        """Return all parts as one; where memory is short, with the features of the end alone."""
        rows = np.concatenate([part.rows for part in parts])
        pixels = [images for part in parts for images in part.pixels]
        end = np.concatenate([part.end for part in parts])
        several = end
        if fits_memory(len(rows), parts[0].several.shape[1], self.memory()):
            several = np.concatenate([part.several for part in parts])
        return CheckedImages(rows, pixels, end, several)


def fits_memory(images: int, width: int, memory: float) -> bool:
    """Return whether a linear probe can be fitted on so many features.

    Args:
        images: Number of images.
        width: Features of an image.
        memory: Free bytes.
    """
    return _COPIES * 4 * images * width < memory
