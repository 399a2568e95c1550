"""Door 1: functions from a string to a dataset.

Refuses to train, split or download behind anyone's back: only a name that stands for an online set opens a connection.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from regraft import data
from regraft.errors import UserError, nearest
from regraft.files import expanded
from regraft.sources import files, named, tables
from regraft.sources.decode import POINTER

SOURCES: dict[str, tuple[Callable[[Path], data.Dataset], str]] = {
    "digits": (named.digits, "scikit-learn's 1,797 handwritten digits, 8 px, offline"),
    **{
        name: (partial(named.torchvision_set, name), f"torchvision's {kind}, downloaded once")
        for name, kind in named.TORCHVISION.items()
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


def load(given: str | Path | data.Dataset, home: Path) -> data.Dataset:
    """Return the dataset that a string names: a known name, a file, a folder, `hf:name` or `module:function`.

    Args:
        given: As the user wrote it; a dataset is returned as it is.
        home: Where downloads and unpacked archives are kept.

    Raises:
        UserError: When nothing is called so, or what is found cannot be read as labelled images.
    """
    if isinstance(given, data.Dataset):
        return given
    text = str(given)
    path = expanded(text)
    if text in SOURCES and not path.exists():
        return SOURCES[text][0](home)
    if text.startswith("hf:"):
        return named.hub(text.removeprefix("hf:"), home)
    if path.is_dir():
        packed = tables.in_folder(path)
        return tables.parquet(packed, path.resolve().name) if packed else files.folder(path)
    if path.is_file():
        return _of_file(path, home)
    module, colon, function = text.partition(":")
    if colon and function.isidentifier() and all(part.isidentifier() for part in module.split(".")):
        return _of_code(module, function)
    near = nearest(text, SOURCES)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(
        f"{text!r} is neither a known dataset nor an existing file or folder.{hint} "
        "Expected a name (`regraft sources` lists them), a folder of class folders, or a zip, tar, CSV, Parquet or .npz file."
    )


def _of_file(path: Path, home: Path) -> data.Dataset:
    name = path.name.lower()
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise UserError(
                f"{path} is a Git-LFS pointer and not the file itself. Expected the file. Fetch it with `git lfs pull`."
            )
    if name.endswith(files.ARCHIVES):
        return files.archive(path, home)
    if name.endswith(".csv"):
        return files.table(path)
    if name.endswith(".parquet"):
        return tables.parquet([path], path.name)
    if name.endswith(".npz"):
        return tables.npz(path)
    raise UserError(
        f"{path} is a file of an unknown kind. Expected a zip, tar, CSV, Parquet or .npz file, or a folder of class folders."
    )


def _of_code(module: str, function: str) -> data.Dataset:
    """Return what somebody's function gives: a dataset, or images `(n, h, w, 3)`, labels and optionally class names."""
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        made: Any = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{module}:{function} cannot be imported ({error}). Expected a function in a module that Python finds from here."
        ) from error
    if isinstance(made, data.Dataset):
        return made
    if isinstance(made, tuple) and len(made) in (2, 3):
        pixels, labels, *names = made
        return tables.of_arrays(
            f"{module}:{function}", tables.as_pixels(np.asarray(pixels), "images"), labels, *names
        )
    raise UserError(
        f"{module}:{function} returned {type(made).__name__}. Expected a regraft Dataset, or a tuple of images, labels and optionally class names."
    )
