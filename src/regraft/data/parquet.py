"""Parquet files as the Hugging Face hub lays them out, as datasets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from regraft.data.dataset import Dataset, make_dataset
from regraft.data.decode import EncodedImages, explain_failure
from regraft.data.names import PART_NAMES, natural_order
from regraft.data.packed import check_growth
from regraft.errors import UserError, join_truncated

ROWS_AT_ONCE = 16  # a file of a few bytes may have the same large image in every row
_LABELS = ("label", "labels", "fine_label", "class", "target", "y")
_IMAGES = ("image", "img", "bytes")


class _Batch(NamedTuple):
    """Some rows of a file; `classes` are the names in its metadata, if there are any."""

    classes: list[str] | None
    contents: list[bytes | None]
    names: list[str | None]
    labels: list[Any]


@dataclass
class _Rows:
    """The rows of several files."""

    contents: list[Any] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    classes: list[str] | None = None

    def add(self, batch: _Batch, part: str) -> None:
        self.classes = self.classes or batch.classes
        self.contents += batch.contents
        self.names += batch.names
        self.labels += batch.labels
        self.parts += [part] * len(batch.contents)


def load_parquet(paths: Sequence[Path], name: str) -> Dataset:
    """Return the images in Parquet files: an image column and a label column.

    The image column is a struct of `bytes` and `path`. The part is read from a file's name
    (`train-00000-of-00001.parquet`), class names from the schema's metadata.

    Args:
        paths: The files.
        name: What the dataset is called.

    Raises:
        UserError: When the files are no Parquet or lack such columns.
    """
    rows = _read_files(paths)
    _check_complete(rows, name)
    classes = rows.classes or natural_order({str(label) for label in rows.labels})
    numbers = _to_numbers(rows, classes)
    own_keys = [str(path) for path in rows.names if path]
    are_unique = len(set(own_keys)) == len(rows.contents)
    keys = own_keys if are_unique else None
    shown = keys or [f"{part}/{row}" for row, part in enumerate(rows.parts)]
    images = EncodedImages(shown, rows.contents.__getitem__, np.arange(len(rows.contents)))
    parts = rows.parts if any(rows.parts) else None
    return make_dataset(name, numbers, classes, images, keys, parts=parts)


def load_parquet_folder(folder: Path) -> list[Path]:
    """Return the Parquet files with images in a folder as the hub lays them out, sorted.

    One that cannot be read is among them, and says why when it is read.
    """
    candidates = [*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]
    return sorted(path for path in candidates if _may_hold_images(path))


def find_image_column(schema: Any) -> str | None:
    """Return the name of the column that holds encoded images, alone or in a struct, or None."""
    candidates = _find_structs(schema)
    if not candidates:
        candidates = [column.name for column in schema if _is_binary(column.type)]
    for name in _IMAGES:
        if name in candidates:
            return name
    return candidates[0] if candidates else None


def _read_files(paths: Sequence[Path]) -> _Rows:
    import pyarrow as pa

    rows = _Rows()
    for path in paths:
        part = _part_of(path)
        try:
            for batch in _read_batches(path):
                rows.add(batch, part)
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            raise UserError(
                f"{path} is no readable Parquet file ({explain_failure(error)}). "
                "Expected the files as the hub lays them out. Fetch it again."
            ) from error
    return rows


def _check_complete(rows: _Rows, name: str) -> None:
    without_image = rows.contents.count(None)
    if without_image:
        raise UserError(
            f"{name} has {without_image:,} rows without image bytes. "
            "Expected the bytes inside the Parquet files. Embed the images, or use a folder."
        )
    without_label = rows.labels.count(None)
    if without_label:
        raise UserError(
            f"{name} has {without_label:,} rows without a label. "
            "Expected one for every image. Fill them in or remove the rows."
        )


def _to_numbers(rows: _Rows, classes: Sequence[str]) -> list[int]:
    """Return class numbers, -1 for a label that is no class.

    Where the metadata names the classes, whole numbers are class numbers, whatever the names are.
    """
    number = {label: place for place, label in enumerate(classes)}
    numbers = []
    for label in rows.labels:
        if rows.classes is not None and isinstance(label, int):
            numbers.append(label)
        else:
            numbers.append(number.get(str(label), -1))
    return numbers


def _read_batches(path: Path) -> Iterator[_Batch]:
    """Yield the rows of a file, a few at a time; never more than it may grow to."""
    import pyarrow.parquet as pq

    n_bytes = 0
    with pq.ParquetFile(path, memory_map=True) as file:
        schema = file.schema_arrow
        image, label = _find_columns(schema, path)
        classes = _class_names(schema, label)
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=[image, label]):
            n_bytes += batch.nbytes
            check_growth(path, n_bytes)
            images = _get_column(batch, image)
            contents = images.field("bytes").to_pylist()
            names: list[str | None] = [None] * len(images)
            if images.type.get_field_index("path") >= 0:
                names = images.field("path").to_pylist()
            yield _Batch(classes, contents, names, _get_column(batch, label).to_pylist())


def _get_column(batch: Any, name: str) -> Any:
    return batch.column(batch.schema.get_field_index(name))


def _find_columns(schema: Any, path: Path) -> tuple[str, str]:
    """Return the names of the image column and the label column."""
    images = _find_structs(schema)
    labels = _find_labels(schema)
    if len(images) != 1 or len(labels) != 1:
        several = ""
        if len(labels) > 1:
            several = f" {join_truncated(labels)} could each be the label."
        raise UserError(
            f"{path} has the columns {join_truncated(schema.names)}.{several} Expected one image "
            "column (a struct with bytes) and a label column. Rename the label column to 'label'."
        )
    return images[0], labels[0]


def _find_labels(schema: Any) -> list[str]:
    """Return the columns that may hold the labels: one by its name or metadata, else all."""
    candidates = [column.name for column in schema if _may_be_label(column.type)]
    for name in _LABELS:
        if name in candidates:
            return [name]
    for name in candidates:
        if _class_names(schema, name):
            return [name]
    return candidates


def _may_be_label(kind: Any) -> bool:
    import pyarrow as pa

    checks = (
        pa.types.is_integer,
        pa.types.is_boolean,
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_dictionary,
    )
    return any(check(kind) for check in checks)


def _find_structs(schema: Any) -> list[str]:
    """Return the columns in which images lie as the hub has them: a struct with `bytes`."""
    return [column.name for column in schema if _has_bytes(column.type)]


def _has_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if not pa.types.is_struct(kind):
        return False
    return any(inner.name == "bytes" and _is_binary(inner.type) for inner in kind)


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _may_hold_images(path: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return find_image_column(pq.read_schema(path)) is not None
    except (pa.ArrowException, OSError, ValueError):
        return True


def _class_names(schema: Any, label: str) -> list[str] | None:
    """Return the class names that the hub's metadata has for a column."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return None
    if not isinstance(names, list):
        return None
    return [str(name) for name in names]


def _part_of(path: Path) -> str:
    """Return the part that a file's name says, or that of its folder, or ""."""
    words = path.stem.lower().replace("_", "-").split("-")
    for word in words:
        if word in PART_NAMES:
            return PART_NAMES[word]
    return PART_NAMES.get(path.parent.name.lower(), "")
