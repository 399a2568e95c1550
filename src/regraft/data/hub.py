"""Datasets that have a name: scikit-learn's digits, torchvision's sets, the Hugging Face hub's."""

from __future__ import annotations

import inspect
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from regraft.data.arrays import to_pixels
from regraft.data.dataset import Dataset, make_dataset
from regraft.data.decode import EncodedImages, explain_failure
from regraft.data.images import ArrayImages
from regraft.data.parquet import load_parquet
from regraft.errors import UserError

TORCHVISION = {
    "caltech101": "Caltech101",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "country211": "Country211",
    "dtd": "DTD",
    "emnist": "EMNIST",
    "eurosat": "EuroSAT",
    "fashion-mnist": "FashionMNIST",
    "fgvc-aircraft": "FGVCAircraft",
    "flowers102": "Flowers102",
    "food101": "Food101",
    "gtsrb": "GTSRB",
    "imagenette": "Imagenette",
    "kmnist": "KMNIST",
    "mnist": "MNIST",
    "oxford-iiit-pet": "OxfordIIITPet",
    "pcam": "PCAM",
    "qmnist": "QMNIST",
    "rendered-sst2": "RenderedSST2",
    "semeion": "SEMEION",
    "stl10": "STL10",
    "sun397": "SUN397",
    "svhn": "SVHN",
    "usps": "USPS",
}
_IN_MEMORY = ("cifar10", "cifar100")  # identified by their content, as arrays are
_PART_OF_SPLIT = {  # "trainval" counts only where there is no "train"
    "train": "train",
    "val": "val",
    "valid": "val",
    "test": "test",
    "trainval": "train",
}
_DIGITS_WHITE = 16  # the largest value in scikit-learn's digits


class _Item(NamedTuple):
    """An image of a torchvision set: its part, the set of that part, and its place there."""

    part: str
    images: Any
    row: int

    @property
    def key(self) -> str:
        return f"{self.part}/{self.row}"


def load_digits(home: Path) -> Dataset:
    """Return scikit-learn's 1,797 handwritten digits, 8 × 8 px, 10 classes; needs no network.

    Args:
        home: The cache folder; not used.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    scaled = (bunch.images * (255 / _DIGITS_WHITE)).round().astype(np.uint8)
    images = ArrayImages(to_pixels(scaled, "digits"))
    return make_dataset("digits", bunch.target, [str(name) for name in bunch.target_names], images)


def load_torchvision(name: str, home: Path) -> Dataset:
    """Return a dataset of torchvision, downloaded once and checked against its checksum.

    Args:
        name: One of `TORCHVISION`.
        home: The cache folder, below which downloads are kept.

    Raises:
        UserError: When it cannot be downloaded; says what can be used instead.
    """
    from torchvision import datasets

    kind = getattr(datasets, TORCHVISION[name])
    try:
        parts = load_torchvision_parts(kind, home / "datasets")
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{name} cannot be downloaded ({type(error).__name__}: {explain_failure(error)}). "
            "Expected a connection to its official server. Give a local copy instead (a folder, "
            "zip, CSV, Parquet folder or .npz), or try 'digits', which needs no network."
        ) from error
    if name in _IN_MEMORY:
        return _of_memory(name, parts)
    return _of_torchvision(name, parts)


def load_hub(name: str, home: Path) -> Dataset:
    """Return a dataset of the Hugging Face hub from its Parquet files, downloaded once.

    Args:
        name: As the hub calls it, `owner/name`.
        home: The cache folder, below which downloads are kept.

    Raises:
        UserError: When it cannot be downloaded or has no Parquet files.
    """
    from huggingface_hub import snapshot_download

    try:
        local = snapshot_download(
            name,
            repo_type="dataset",
            allow_patterns=["*.parquet", "**/*.parquet"],
            cache_dir=home / "hub",
        )
    except Exception as error:  # the hub's client has many kinds of its own
        raise UserError(
            f"hf:{name} cannot be downloaded ({type(error).__name__}). "
            "Expected a dataset of the hub and a connection to it. "
            "Check the name, or give a local copy of its Parquet folder."
        ) from error
    files = sorted(Path(local).rglob("*.parquet"))
    if not files:
        raise UserError(
            f"hf:{name} holds no Parquet files. Expected images in Parquet as the hub converts "
            "them. Download it and give a folder."
        )
    return load_parquet(files, f"hf:{name}")


def load_torchvision_parts(kind: Any, root: Path) -> dict[str, Any]:
    """Return the parts of a torchvision dataset; "" for one without parts.

    Args:
        kind: The class in torchvision.
        root: Where downloads are kept.
    """
    accepted = inspect.signature(kind.__init__).parameters
    if kind.__name__ == "EMNIST":
        return _load_train_and_test(kind, root, split="balanced")
    if "train" in accepted:
        return _load_train_and_test(kind, root)
    if "split" not in accepted:
        return {"": kind(root, download=True)}
    parts: dict[str, Any] = {}
    for split, part in _PART_OF_SPLIT.items():
        if part not in parts:
            try:
                parts[part] = kind(root, split=split, download=True)
            except ValueError:  # how torchvision says that the set has no such split
                continue
    return parts


def _load_train_and_test(kind: Any, root: Path, **options: str) -> dict[str, Any]:
    train = kind(root, train=True, download=True, **options)
    test = kind(root, train=False, download=True, **options)
    return {"train": train, "test": test}


def _of_memory(name: str, parts: dict[str, Any]) -> Dataset:
    """Return a set that torchvision holds as an array `(n, h, w, 3)`, without keys of its own."""
    pixels = np.concatenate([members.data for members in parts.values()])
    labels: list[int] = []
    names: list[str] = []
    for part, members in parts.items():
        labels += members.targets
        names += [part] * len(members)
    classes = parts["train"].classes
    images = ArrayImages(np.ascontiguousarray(pixels))
    return make_dataset(name, labels, classes, images, parts=names)


def _of_torchvision(name: str, parts: dict[str, Any]) -> Dataset:
    """Return a set whose images torchvision gives one by one."""
    items = []
    for part, members in parts.items():
        items += [_Item(part, members, row) for row in range(len(members))]
    labels = [int(item.images[item.row][1]) for item in items]
    first = next(iter(parts.values()))
    classes = getattr(first, "classes", None) or sorted(set(labels))
    keys = [item.key for item in items]

    def load(number: int) -> bytes:
        item = items[number]
        image, _ = item.images[item.row]
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "BMP")
        return buffer.getvalue()

    class_names = [str(label) for label in classes]
    images = EncodedImages(keys, load, np.arange(len(items)))
    part_of = [item.part for item in items] if len(parts) > 1 else None
    return make_dataset(name, labels, class_names, images, keys, parts=part_of)
