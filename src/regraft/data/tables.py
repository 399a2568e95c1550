"""Parquet files as the Hugging Face hub lays them out, and `.npz` files of arrays, as datasets."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.data.dataset import ArrayImages, Dataset, make_dataset
from regraft.data.decode import EncodedImages, explain_failure
from regraft.data.folders import PART_NAMES, check_growth, natural_order
from regraft.errors import UserError, join_truncated

_ROWS_AT_ONCE = (
    16  # of a Parquet file; a file of a few bytes may say the same large image in every row
)
_LABELS = ("label", "labels", "fine_label", "class", "target", "y")
_PAIRS = (
    ("x", "y"),
    ("images", "labels"),
    ("image", "label"),
    ("data", "target"),
    ("data", "labels"),
    ("X", "Y"),
    ("X", "y"),
)


def load_parquet(paths: Sequence[Path], name: str) -> Dataset:
    """Return the images in Parquet files: an image column (struct of `bytes` and `path`) and a label column.

    The part is read from a file's name (`train-00000-of-00001.parquet`), class names from the schema's metadata.

    Raises:
        UserError: When the files are no Parquet or lack such columns.
    """
    import pyarrow as pa

    contents: list[Any] = []
    labels: list[Any] = []
    keys: list[str | None] = []
    parts: list[str] = []
    classes: list[str] | None = None
    for path in paths:
        try:
            for schema, held, told, given in _batches(path):
                classes = classes or schema
                contents += held
                keys += told
                labels += given
                parts += [_part_of(path)] * len(held)
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            raise UserError(
                f"{path} is no readable Parquet file ({explain_failure(error)}). Expected the files as the hub lays them out. Fetch it again."
            ) from error
    missing = [number for number, content in enumerate(contents) if content is None]
    if missing:
        raise UserError(
            f"{name} has {len(missing):,} rows without image bytes. Expected the bytes inside the Parquet files. Embed the images, or use a folder."
        )
    named = (
        classes is not None
    )  # then whole numbers are class numbers, whatever the names look like
    classes = classes or natural_order({str(label) for label in labels})
    number = {label: place for place, label in enumerate(classes)}
    numbers = [
        label if named and isinstance(label, int) else number.get(str(label), -1)
        for label in labels
    ]
    if None in labels:
        raise UserError(
            f"{name} has {labels.count(None):,} rows without a label. Expected one for every image. Fill them in or remove the rows."
        )
    paths_given = [str(key) for key in keys if key]
    own = paths_given if len(set(paths_given)) == len(contents) else None
    called = own or [f"{part}/{place}" for place, part in enumerate(parts)]
    images = EncodedImages(called, contents.__getitem__, np.arange(len(contents)))
    return make_dataset(name, numbers, classes, images, own, parts if any(parts) else None)


def load_parquet_folder(folder: Path) -> list[Path]:
    """Return the Parquet files with images in a folder as the hub lays them out; one that cannot be read is among them, and says why when it is."""
    return sorted(
        path
        for path in [*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]
        if _may_hold_images(path)
    )


def image_column(schema: Any) -> str | None:
    """Return the name of the column that holds encoded images, alone or in a struct, or None."""
    images = _structs(schema) or [field.name for field in schema if _is_binary(field.type)]
    return next(
        (name for name in ("image", "img", "bytes") if name in images),
        images[0] if images else None,
    )


def load_npz(path: Path) -> Dataset:
    """Return the images in an `.npz`: `x_train, y_train, x_test, y_test`, `train_images, train_labels, …`, or `images, labels`.

    Images are uint8, or numbers in 0 … 1, of shape `(n, h, w)`, `(n, h, w, 1)` or `(n, h, w, 3)`; labels `(n,)`, or one-hot `(n, classes)`.

    Raises:
        UserError: When the arrays are missing or have another shape.
    """
    try:
        with zipfile.ZipFile(path) as packed:
            check_growth(path, sum(member.file_size for member in packed.infolist()))
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: np.asarray(file[key]) for key in file.files if key in file}
    except UserError:
        raise
    except Exception as error:  # numpy's reader of damaged headers raises whatever it meets
        raise UserError(
            f"{path} is no readable .npz of plain arrays ({explain_failure(error)}). Write it with numpy.savez(path, images=…, labels=…)."
        ) from error
    arrays = {key: array for key, array in arrays.items() if array.ndim}
    found = _parts_of(arrays)
    if not found:
        raise UserError(
            f"{path} holds the arrays {join_truncated(arrays)}. Expected images and labels, or x_train, y_train, x_test, y_test. Rename them."
        )
    pixels = np.concatenate([as_pixels(arrays[x], f"{x} in {path}") for x, _, _ in found])
    raw = np.concatenate([one_each(arrays[y], f"{y} in {path}") for _, y, _ in found])
    parts = [part for x, _, part in found for _ in range(len(arrays[x]))]
    return dataset_from_arrays(path.name, pixels, raw, None, parts if any(parts) else None)


def dataset_from_arrays(
    name: str,
    pixels: NDArray[np.uint8],
    labels: Sequence[Any] | NDArray[Any],
    classes: Sequence[str] | None = None,
    parts: Sequence[str] | None = None,
) -> Dataset:
    """Return a dataset of arrays; without class names these are the labels that occur."""
    labels = one_each(np.asarray(labels), f"the labels of {name}")
    if classes is None:
        classes = natural_order({str(label) for label in np.asarray(labels).tolist()})
        number = {label: place for place, label in enumerate(classes)}
        labels = [number[str(label)] for label in np.asarray(labels).tolist()]
    elif np.asarray(labels).dtype.kind not in "iu":
        place = {str(label): row for row, label in enumerate(classes)}
        labels = [place.get(str(label), -1) for label in np.asarray(labels).tolist()]
    return make_dataset(name, labels, classes, ArrayImages(pixels), None, parts)


def one_each(labels: NDArray[Any], what: str) -> NDArray[Any]:
    """Return labels `(n,)`, one an image: as they are, of a single column, or the number of the one that is 1 where they are one-hot."""
    if labels.ndim == 1:
        return labels
    if labels.ndim == 2 and labels.shape[1] == 1:
        return labels[:, 0]
    if (
        labels.ndim == 2
        and labels.dtype.kind in "buif"
        and np.isin(labels, (0, 1)).all()
        and (labels.sum(axis=1) == 1).all()
    ):
        found: NDArray[Any] = labels.argmax(axis=1)
        return found
    raise UserError(
        f"{what} have the shape {labels.shape}. Expected one label an image: (n,), or one-hot (n, classes). Give one column."
    )


def as_pixels(array: NDArray[Any], what: str) -> NDArray[np.uint8]:
    """Return an array of images as uint8 `(n, h, w, 3)`."""
    if array.dtype.kind not in "buif":
        raise UserError(f"{what} holds {array.dtype}. Expected numbers. Convert it.")
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim == 4 and array.shape[1] in (1, 3) and array.shape[-1] not in (1, 3, 4):
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[-1] not in (1, 3) or 0 in array.shape:
        raise UserError(
            f"{what} has the shape {array.shape}. Expected (n, h, w), (n, h, w, 1) or (n, h, w, 3). Reshape it."
        )
    if array.dtype != np.uint8:
        low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        if not (low >= 0 and high <= 255):
            raise UserError(
                f"{what} has values from {low:g} to {high:g}. Expected uint8, or numbers from 0 to 1 or 0 to 255. Rescale it."
            )
        array = (array.astype(np.float32) * (255.0 if high <= 1 else 1.0)).round().astype(np.uint8)
    elif array.max(initial=0) == 1:  # black and white, as numbers
        array = array * np.uint8(255)
    return np.ascontiguousarray(np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array)


def _parts_of(arrays: dict[str, NDArray[Any]]) -> list[tuple[str, str, str]]:
    found = []
    for x, y in _PAIRS:
        for spelling, part in {**PART_NAMES, "": ""}.items():
            for xx, yy in (
                ((f"{x}_{spelling}", f"{y}_{spelling}"), (f"{spelling}_{x}", f"{spelling}_{y}"))
                if spelling
                else ((x, y),)
            ):
                if xx in arrays and yy in arrays and len(arrays[xx]) == len(arrays[yy]):
                    found.append((xx, yy, part))
        if found:
            return found
    return found


def _batches(
    path: Path,
) -> Iterator[tuple[list[str] | None, list[bytes | None], list[str | None], list[Any]]]:
    """Yield class names, images, what they are called, and labels of some rows; never more than the file may grow to."""
    import pyarrow.parquet as pq

    grown = 0
    with pq.ParquetFile(path, memory_map=True) as file:
        image, label = _columns(file.schema_arrow, path)
        names = _class_names(file.schema_arrow, label)
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[image, label]):
            grown += batch.nbytes
            check_growth(path, grown)
            struct = batch.column(batch.schema.get_field_index(image))
            called = (
                struct.field("path").to_pylist()
                if "path" in [field.name for field in struct.type]
                else [None] * len(struct)
            )
            yield (
                names,
                struct.field("bytes").to_pylist(),
                called,
                batch.column(batch.schema.get_field_index(label)).to_pylist(),
            )


def _columns(schema: Any, path: Path) -> tuple[str, str]:
    import pyarrow as pa

    images = _structs(schema)
    kinds = (
        pa.types.is_integer,
        pa.types.is_boolean,
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_dictionary,
    )
    plain = [field.name for field in schema if any(is_kind(field.type) for is_kind in kinds)]
    named = [name for name in _LABELS if name in plain] or [
        name for name in plain if _class_names(schema, name)
    ]
    labels = named[:1] or plain
    if len(images) != 1 or len(labels) != 1:
        several = f" {join_truncated(labels)} could each be the label." if len(labels) > 1 else ""
        raise UserError(
            f"{path} has the columns {join_truncated(schema.names)}.{several} Expected one image column (a struct with bytes) and a label column. "
            "Rename the label column to 'label'."
        )
    return images[0], labels[0]


def _structs(schema: Any) -> list[str]:
    """Return the columns in which images lie as the hub has them: a struct with `bytes`."""
    import pyarrow as pa

    return [
        field.name
        for field in schema
        if pa.types.is_struct(field.type)
        and any(one.name == "bytes" and _is_binary(one.type) for one in field.type)
    ]


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _may_hold_images(path: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return image_column(pq.read_schema(path)) is not None
    except (pa.ArrowException, OSError, ValueError):
        return True


def _class_names(schema: Any, label: str) -> list[str] | None:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _part_of(path: Path) -> str:
    words = path.stem.lower().replace("_", "-").split("-")
    return next(
        (PART_NAMES[word] for word in words if word in PART_NAMES),
        PART_NAMES.get(path.parent.name.lower(), ""),
    )
