"""Arrays of images and labels, and `.npz` files of them, as datasets."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from regraft.data.dataset import Dataset, make_dataset
from regraft.data.decode import explain_failure
from regraft.data.images import ArrayImages
from regraft.data.names import PART_NAMES, natural_order
from regraft.data.packed import check_growth
from regraft.errors import UserError, join_truncated

_PAIRS = (
    ("x", "y"),
    ("images", "labels"),
    ("image", "label"),
    ("data", "target"),
    ("data", "labels"),
    ("X", "Y"),
    ("X", "y"),
)


class _NamedPart(NamedTuple):
    """The names of two arrays that belong together, and the part they are."""

    images: str
    labels: str
    part: str


def load_npz(path: Path) -> Dataset:
    """Return the images in an `.npz` file.

    Its arrays are `x_train, y_train, x_test, y_test`, or `train_images, train_labels, …`, or
    `images, labels`. Images are uint8, or numbers in 0 … 1, of shape `(n, h, w)`, `(n, h, w, 1)`
    or `(n, h, w, 3)`; labels `(n,)`, or one-hot `(n, classes)`.

    Raises:
        UserError: When the arrays are missing or have another shape.
    """
    arrays = _read_npz(path)
    named_parts = _find_parts(arrays)
    if not named_parts:
        raise UserError(
            f"{path} holds the arrays {join_truncated(arrays)}. Expected images and labels, or "
            "x_train, y_train, x_test, y_test. Rename them."
        )
    pixels = []
    labels = []
    parts: list[str] = []
    for named in named_parts:
        pixels.append(to_pixels(arrays[named.images], f"{named.images} in {path}"))
        labels.append(to_label_column(arrays[named.labels], f"{named.labels} in {path}"))
        parts += [named.part] * len(arrays[named.images])
    has_parts = any(parts)
    return dataset_from_arrays(
        path.name,
        np.concatenate(pixels),
        np.concatenate(labels),
        None,
        parts if has_parts else None,
    )


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file that have dimensions."""
    arrays = {}
    try:
        with zipfile.ZipFile(path) as packed:
            check_growth(path, sum(member.file_size for member in packed.infolist()))
        with np.load(path, allow_pickle=False) as file:
            for key in file.files:
                if key in file:
                    arrays[key] = np.asarray(file[key])
    except UserError:
        raise
    except Exception as error:  # numpy raises many kinds for damaged headers
        raise UserError(
            f"{path} is no readable .npz of plain arrays ({explain_failure(error)}). "
            "Expected a file of numpy.savez. "
            "Write it with numpy.savez(path, images=…, labels=…)."
        ) from error
    return {key: array for key, array in arrays.items() if array.ndim}


def _find_parts(arrays: dict[str, NDArray[Any]]) -> list[_NamedPart]:
    """Return the arrays that belong together, by the first pair of names that occurs."""
    for images, labels in _PAIRS:
        matches = []
        for candidate in _spell(images, labels):
            if _has_pair(arrays, candidate):
                matches.append(candidate)
        if matches:
            return matches
    return []


def _spell(images: str, labels: str) -> Iterator[_NamedPart]:
    """Yield the names that a pair of arrays may have, part by part."""
    for spelling, part in PART_NAMES.items():
        yield _NamedPart(f"{images}_{spelling}", f"{labels}_{spelling}", part)
        yield _NamedPart(f"{spelling}_{images}", f"{spelling}_{labels}", part)
    yield _NamedPart(images, labels, "")


def _has_pair(arrays: dict[str, NDArray[Any]], names: _NamedPart) -> bool:
    images = arrays.get(names.images)
    labels = arrays.get(names.labels)
    return images is not None and labels is not None and len(images) == len(labels)


def dataset_from_arrays(
    name: str,
    pixels: NDArray[np.uint8],
    labels: Sequence[Any] | NDArray[Any],
    classes: Sequence[str] | None = None,
    parts: Sequence[str] | None = None,
) -> Dataset:
    """Return a dataset of arrays.

    Args:
        name: What the dataset is called.
        pixels: Images, `(n, h, w, 3)`.
        labels: Labels, `(n,)` or one-hot `(n, classes)`.
        classes: Class names in order; without them, those of the labels that occur.
        parts: "train", "val", "test" or "" for each image, where they are known.
    """
    values = to_label_column(np.asarray(labels), f"the labels of {name}")
    images = ArrayImages(pixels)
    if classes is not None and values.dtype.kind in "iu":
        return make_dataset(name, values, classes, images, parts=parts)
    texts = [str(value) for value in values.tolist()]
    if classes is None:
        classes = natural_order(texts)
    number = {str(label): place for place, label in enumerate(classes)}
    numbers = [number.get(text, -1) for text in texts]
    return make_dataset(name, numbers, classes, images, parts=parts)


def to_label_column(labels: NDArray[Any], what: str) -> NDArray[Any]:
    """Return one label an image, `(n,)`, from labels `(n,)`, `(n, 1)` or one-hot `(n, classes)`.

    Args:
        labels: The labels.
        what: What they are called in the message of an error.

    Raises:
        UserError: For any other shape.
    """
    if labels.ndim == 1:
        return labels
    if labels.ndim == 2 and labels.shape[1] == 1:
        return labels[:, 0]
    if _is_one_hot(labels):
        numbers: NDArray[Any] = labels.argmax(axis=1)
        return numbers
    raise UserError(
        f"{what} have the shape {labels.shape}. Expected one label an image: (n,), or one-hot "
        "(n, classes). Give one column."
    )


def _is_one_hot(labels: NDArray[Any]) -> bool:
    if labels.ndim != 2 or labels.dtype.kind not in "buif":
        return False
    is_binary = np.isin(labels, (0, 1)).all()
    return bool(is_binary and (labels.sum(axis=1) == 1).all())


def to_pixels(array: NDArray[Any], what: str) -> NDArray[np.uint8]:
    """Return an array of images as uint8 `(n, h, w, 3)`.

    Args:
        array: Numbers of shape `(n, h, w)`, `(n, h, w, c)` or `(n, c, h, w)`, c being 1 or 3.
        what: What it is called in the message of an error.

    Raises:
        UserError: For other shapes, kinds or ranges of numbers.
    """
    if array.dtype.kind not in "buif":
        raise UserError(f"{what} holds {array.dtype}. Expected numbers. Convert it.")
    array = _to_channels_last(array, what)
    if array.dtype != np.uint8:
        array = _to_bytes(array, what)
    elif array.max(initial=0) == 1:  # black and white, as numbers
        array = array * np.uint8(255)
    if array.shape[-1] == 1:
        array = np.repeat(array, 3, axis=-1)
    return np.ascontiguousarray(array)


def _to_channels_last(array: NDArray[Any], what: str) -> NDArray[Any]:
    shape = array.shape
    if array.ndim == 3:
        array = array[..., None]
    is_channels_first = array.ndim == 4 and array.shape[1] in (1, 3)
    if is_channels_first and array.shape[-1] not in (1, 3, 4):
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[-1] not in (1, 3) or 0 in array.shape:
        raise UserError(
            f"{what} has the shape {shape}. Expected (n, h, w), (n, h, w, 1) or (n, h, w, 3). "
            "Reshape it."
        )
    return array


def _to_bytes(array: NDArray[Any], what: str) -> NDArray[np.uint8]:
    """Return numbers from 0 to 1 or from 0 to 255 as uint8."""
    low = float(array.min())
    high = float(array.max())
    if not (low >= 0 and high <= 255):
        raise UserError(
            f"{what} has values from {low:g} to {high:g}. Expected uint8, or numbers from 0 to 1 "
            "or 0 to 255. Rescale it."
        )
    scale = 255.0 if high <= 1 else 1.0
    return (array.astype(np.float32) * scale).round().astype(np.uint8)
