"""Datasets from strings: known names, files, folders, the hub, and your own functions.

Only a name that stands for an online set opens a connection.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from regraft.data.archives import load_archive
from regraft.data.arrays import dataset_from_arrays, load_npz, to_pixels
from regraft.data.csv import load_csv
from regraft.data.dataset import Dataset
from regraft.data.decode import POINTER
from regraft.data.folders import load_folder
from regraft.data.hub import TORCHVISION, load_digits, load_hub, load_torchvision
from regraft.data.names import ARCHIVE_SUFFIXES
from regraft.data.parquet import load_parquet, load_parquet_folder
from regraft.errors import UserError, close_matches
from regraft.system.files import expand_user
from regraft.system.imports import current_folder_importable

SOURCES: dict[str, tuple[Callable[[Path], Dataset], str]] = {
    "digits": (load_digits, "scikit-learn's 1,797 handwritten digits, 8 px, offline"),
    **{
        name: (partial(load_torchvision, name), f"torchvision's {kind}, downloaded once")
        for name, kind in TORCHVISION.items()
    },
}
FORMS = {
    "FOLDER": "<class>/*.jpg, or {train,val,test}/<class>/*.jpg",
    "FILE.zip, .tar, .tar.gz": "such a folder, packed",
    "FILE.csv": "columns path,label and optionally split,group",
    "FOLDER or FILE.parquet": "as the Hugging Face hub lays them out",
    "FILE.npz": "arrays: images, labels or x_train, y_train, x_test, y_test",
    "hf:NAME": "a dataset of the Hugging Face hub",
    "MODULE:FUNCTION": "your own function that returns a dataset, or images and labels",
}


def load_dataset(given: str | Path | Dataset, home: Path) -> Dataset:
    """Return the dataset that a string names.

    Args:
        given: A known name, a file, a folder, `hf:name` or `module:function`, as the user wrote
            it; a dataset is returned as it is.
        home: The cache folder, where downloads and unpacked archives are kept.

    Raises:
        UserError: When nothing is called so, or it cannot be read as labelled images.
    """
    if isinstance(given, Dataset):
        return given
    text = str(given)
    path = expand_user(text)
    if text in SOURCES and not path.exists():
        load_source, _ = SOURCES[text]
        return load_source(home)
    if text.startswith("hf:"):
        return load_hub(text.removeprefix("hf:"), home)
    if path.is_dir():
        return _of_folder(path)
    if path.is_file():
        return _of_file(path, home)
    if _is_function(text):
        return _of_function(text)
    matches = close_matches(text, SOURCES)
    hint = f" Did you mean {matches[0]!r}?" if matches else ""
    raise UserError(
        f"{text!r} is neither a known dataset nor an existing file or folder.{hint} "
        "Expected a name (`regraft sources` lists them), a folder of class folders, or a zip, "
        "tar, CSV, Parquet or .npz file. Check the name or path."
    )


def _of_folder(path: Path) -> Dataset:
    parquet_files = load_parquet_folder(path)
    if parquet_files:
        return load_parquet(parquet_files, path.resolve().name)
    return load_folder(path)


def _of_file(path: Path, home: Path) -> Dataset:
    with path.open("rb") as file:
        is_pointer = file.read(len(POINTER)) == POINTER
    if is_pointer:
        raise UserError(
            f"{path} is a Git-LFS pointer and not the file itself. Expected the file. "
            "Fetch it with `git lfs pull`."
        )
    name = path.name.lower()
    if name.endswith(ARCHIVE_SUFFIXES):
        return load_archive(path, home)
    if name.endswith(".csv"):
        return load_csv(path)
    if name.endswith(".parquet"):
        return load_parquet([path], path.name)
    if name.endswith(".npz"):
        return load_npz(path)
    raise UserError(
        f"{path} is a file of an unknown kind. Expected a zip, tar, CSV, Parquet or .npz file, or "
        "a folder of class folders. Convert it, or give such a file."
    )


def _is_function(text: str) -> bool:
    """Return whether a text is a `module:function`."""
    module, colon, function = text.partition(":")
    if not colon or not function.isidentifier():
        return False
    return all(part.isidentifier() for part in module.split("."))


def _of_function(text: str) -> Dataset:
    """Return the dataset of somebody's function, or of the images and labels it returns.

    Images are `(n, h, w, 3)`; a third item may be the class names.
    """
    module, _, function = text.partition(":")
    with current_folder_importable():
        try:
            result: Any = getattr(importlib.import_module(module), function)()
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"{text} cannot be imported ({error}). "
                "Expected a function in a module that Python finds from here. Check the name."
            ) from error
    if isinstance(result, Dataset):
        return result
    if isinstance(result, tuple) and len(result) in (2, 3):
        pixels, labels, *classes = result
        images = to_pixels(np.asarray(pixels), "images")
        return dataset_from_arrays(text, images, labels, *classes)
    raise UserError(
        f"{text} returned {type(result).__name__}. Expected a regraft Dataset, or a tuple of "
        "images, labels and optionally class names. Return one of these."
    )
