"""Image files that a source has listed with their labels, as a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from regraft.data.dataset import Dataset, make_dataset
from regraft.data.decode import EncodedImages, read_bytes
from regraft.data.names import printable_name


class LabelledFile(NamedTuple):
    """An image file, and what its source says of it; `part` and `group` may be empty."""

    path: str
    label: str
    key: str
    part: str = ""
    group: str = ""


def dataset_from_files(name: str, files: Sequence[LabelledFile], classes: Sequence[str]) -> Dataset:
    """Return the dataset of these files, which are read when their images are.

    Args:
        name: What the dataset is called.
        files: The files; their labels are among the classes.
        classes: Class names in order.
    """
    paths = [file.path for file in files]
    number = {label: place for place, label in enumerate(classes)}
    shown = [printable_name(path) for path in paths]
    images = EncodedImages(shown, lambda row: read_bytes(paths[row]), np.arange(len(paths)))
    numbers = [number[file.label] for file in files]
    keys = [file.key for file in files]
    parts = [file.part for file in files]
    groups = [file.group for file in files]
    part_of = parts if any(parts) else None
    return make_dataset(name, numbers, classes, images, keys, parts=part_of, groups=groups)
