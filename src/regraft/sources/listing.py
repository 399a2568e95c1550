"""Image files that a source has listed with their labels, as a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from regraft import data
from regraft.sources.decode import EncodedImages, bytes_of
from regraft.sources.names import printable


class LabelledFile(NamedTuple):
    """An image file, and what its source says of it; `part` and `group` may be empty."""

    path: str
    label: str
    key: str
    part: str = ""
    group: str = ""


def of_files(name: str, files: Sequence[LabelledFile], classes: Sequence[str]) -> data.Dataset:
    """Return the dataset of these files, which are read when their images are.

    Args:
        name: What the dataset is called.
        files: The files; their labels are among the classes.
        classes: Class names in order.
    """
    paths = [file.path for file in files]
    number = {label: place for place, label in enumerate(classes)}
    shown = [printable(path) for path in paths]
    images = EncodedImages(shown, lambda row: bytes_of(paths[row]), np.arange(len(paths)))
    numbers = [number[file.label] for file in files]
    keys = [file.key for file in files]
    parts = [file.part for file in files]
    groups = [file.group for file in files]
    part_of = parts if any(parts) else None
    return data.table(name, numbers, classes, images, keys, parts=part_of, groups=groups)
