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

from regraft.data.dataset import Dataset
from regraft.data.decode import POINTER
from regraft.data.folders import ARCHIVES, load_archive, load_csv, load_folder
from regraft.data.hub import TORCHVISION, load_digits, load_hub, load_torchvision
from regraft.data.tables import (
    as_pixels,
    dataset_from_arrays,
    load_npz,
    load_parquet,
    load_parquet_folder,
)
from regraft.errors import UserError, close_matches
from regraft.system.files import expand_user

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
    """Return the dataset that a string names: a known name, a file, a folder, `hf:name` or `module:function`.

    Args:
        given: As the user wrote it; a dataset is returned as it is.
        home: Where downloads and unpacked archives are kept.

    Raises:
        UserError: When nothing is called so, or what is found cannot be read as labelled images.
    """
    if isinstance(given, Dataset):
        return given
    text = str(given)
    path = expand_user(text)
    if text in SOURCES and not path.exists():
        return SOURCES[text][0](home)
    if text.startswith("hf:"):
        return load_hub(text.removeprefix("hf:"), home)
    if path.is_dir():
        packed = load_parquet_folder(path)
        return load_parquet(packed, path.resolve().name) if packed else load_folder(path)
    if path.is_file():
        return _of_file(path, home)
    module, colon, function = text.partition(":")
    if colon and function.isidentifier() and all(part.isidentifier() for part in module.split(".")):
        return _of_code(module, function)
    near = close_matches(text, SOURCES)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(
        f"{text!r} is neither a known dataset nor an existing file or folder.{hint} "
        "Expected a name (`regraft sources` lists them), a folder of class folders, or a zip, tar, CSV, Parquet or .npz file."
    )


def _of_file(path: Path, home: Path) -> Dataset:
    name = path.name.lower()
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise UserError(
                f"{path} is a Git-LFS pointer and not the file itself. Expected the file. Fetch it with `git lfs pull`."
            )
    if name.endswith(ARCHIVES):
        return load_archive(path, home)
    if name.endswith(".csv"):
        return load_csv(path)
    if name.endswith(".parquet"):
        return load_parquet([path], path.name)
    if name.endswith(".npz"):
        return load_npz(path)
    raise UserError(
        f"{path} is a file of an unknown kind. Expected a zip, tar, CSV, Parquet or .npz file, or a folder of class folders."
    )


def _of_code(module: str, function: str) -> Dataset:
    """Return what somebody's function gives: a dataset, or images `(n, h, w, 3)`, labels and optionally class names."""
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        made: Any = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{module}:{function} cannot be imported ({error}). Expected a function in a module that Python finds from here."
        ) from error
    if isinstance(made, Dataset):
        return made
    if isinstance(made, tuple) and len(made) in (2, 3):
        pixels, labels, *names = made
        return dataset_from_arrays(
            f"{module}:{function}", as_pixels(np.asarray(pixels), "images"), labels, *names
        )
    raise UserError(
        f"{module}:{function} returned {type(made).__name__}. Expected a regraft Dataset, or a tuple of images, labels and optionally class names."
    )
