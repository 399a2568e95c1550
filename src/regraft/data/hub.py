"""Datasets that have a name: scikit-learn's digits, torchvision's classification sets, the Hugging Face hub's."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from regraft.data.dataset import ArrayImages, Dataset, make_dataset
from regraft.data.tables import as_pixels, load_parquet
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
_PARTS = {"train": "train", "val": "val", "valid": "val", "test": "test", "trainval": "train"}


def load_digits(home: Path) -> Dataset:
    """Return scikit-learn's 1,797 handwritten digits, 8 × 8 pixels, 10 classes; needs no network."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = as_pixels((bunch.images * (255 / 16)).round().astype(np.uint8), "digits")
    return make_dataset(
        "digits", bunch.target, [str(name) for name in bunch.target_names], ArrayImages(pixels)
    )


def load_torchvision(name: str, home: Path) -> Dataset:
    """Return a dataset of torchvision, downloaded once into `home` and checked against its official checksum.

    Raises:
        UserError: When it cannot be downloaded; says what can be used instead.
    """
    from torchvision import datasets

    root = home / "datasets"
    kind = getattr(datasets, TORCHVISION[name])
    try:
        if name in ("cifar10", "cifar100"):
            return _cifar(kind, name, root)
        parts = {part: made for part, made in _made(kind, root).items() if made is not None}
    except (OSError, RuntimeError) as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{name} cannot be downloaded ({type(error).__name__}: {text}). Expected a connection to its official server. "
            f"Give a local copy instead (a folder, zip, CSV, Parquet folder or .npz), or try 'digits', which needs no network."
        ) from error
    return _of_torchvision(name, parts)


def load_hub(name: str, home: Path) -> Dataset:
    """Return a dataset of the Hugging Face hub from its Parquet files, downloaded once into `home`.

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
            f"hf:{name} cannot be downloaded ({type(error).__name__}). Expected a dataset of the hub and a connection to it. "
            "Check the name, or give a local copy of its Parquet folder."
        ) from error
    files = sorted(Path(local).rglob("*.parquet"))
    if not files:
        raise UserError(
            f"hf:{name} holds no Parquet files. Expected images in Parquet as the hub converts them. Download it and give a folder."
        )
    return load_parquet(files, f"hf:{name}")


def _cifar(kind: Any, name: str, root: Path) -> Dataset:
    """Return CIFAR from its official archive; the checksum is torchvision's, the pickles are read by an unpickler that knows arrays only."""
    from torchvision.datasets.utils import check_integrity, download_and_extract_archive

    base = root / kind.base_folder
    files = [*kind.train_list, *kind.test_list]
    if not all(check_integrity(str(base / file), md5) for file, md5 in files):
        download_and_extract_archive(kind.url, str(root), filename=kind.filename, md5=kind.tgz_md5)
    pixels, labels, parts = [], [], []
    for file, _ in files:
        entry = unpickled((base / file).read_bytes())
        pixels.append(
            np.asarray(entry["data"], dtype=np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        )
        labels += entry.get("labels", entry.get("fine_labels"))
        parts += ["test" if "test" in file else "train"] * len(pixels[-1])
    names = unpickled((base / kind.meta["filename"]).read_bytes())[kind.meta["key"]]
    return make_dataset(
        name,
        labels,
        names,
        ArrayImages(np.ascontiguousarray(np.concatenate(pixels))),
        None,
        parts,
    )


_OF_PROTOCOL_5 = (
    *pickle.BYTEARRAY8,
    *pickle.NEXT_BUFFER,
    *pickle.READONLY_BUFFER,
)  # the first makes room for as many bytes as a damaged file says


def unpickled(content: bytes) -> Any:
    """Return what a CIFAR pickle holds; anything but plain values and arrays is refused."""
    import io

    class Arrays(
        pickle._Unpickler
    ):  # the one in Python: the one in C makes room for as many memos as a damaged file says
        dispatch: ClassVar = {
            code: does
            for code, does in pickle._Unpickler.dispatch.items()
            if code not in _OF_PROTOCOL_5
        }

        def find_class(self, module: str, name: str) -> Any:
            if (
                module in ("numpy.core.multiarray", "numpy._core.multiarray")
                and name == "_reconstruct"
            ):
                return lambda *_: np.ndarray(
                    (0,), np.int8
                )  # filled by what comes next, which numpy checks against its bytes
            if (module, name) == ("numpy", "ndarray"):
                return "ndarray"  # only ever an argument of the former
            if (module, name) in {("numpy", "dtype"), ("_codecs", "encode")}:
                return super().find_class(module, name)
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")

    try:
        return Arrays(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises whatever it meets
        raise UserError(
            f"A CIFAR file holds more than arrays, or is damaged ({error}). Expected the official files. Delete them and download again."
        ) from error


def _made(kind: Any, root: Path) -> dict[str, Any]:
    signature = inspect.signature(kind.__init__).parameters
    options: dict[str, Any] = {"download": True}
    if kind.__name__ == "EMNIST":
        return {
            part: kind(root, split="balanced", train=part == "train", **options)
            for part in ("train", "test")
        }
    if "train" in signature:
        return {part: kind(root, train=part == "train", **options) for part in ("train", "test")}
    if "split" not in signature:
        return {"": kind(root, **options)}
    made: dict[str, Any] = {}
    for split, part in _PARTS.items():
        if part not in made:  # "trainval" counts only where there is no "train"
            try:
                made[part] = kind(root, split=split, **options)
            except ValueError:  # torchvision's word for a split that the set does not have
                continue
    return made


def _of_torchvision(name: str, parts: dict[str, Any]) -> Dataset:
    from regraft.data.decode import EncodedImages

    items = [(part, made, row) for part, made in parts.items() for row in range(len(made))]
    labels = [int(made[row][1]) for _, made, row in items]
    first = next(iter(parts.values()))
    classes = [str(one) for one in getattr(first, "classes", None) or sorted(set(labels))]

    def load(number: int) -> bytes:
        import io

        _, made, row = items[number]
        buffer = io.BytesIO()
        made[row][0].convert("RGB").save(buffer, "BMP")
        return buffer.getvalue()

    images = EncodedImages([f"{part}/{row}" for part, _, row in items], load, np.arange(len(items)))
    return make_dataset(
        name,
        labels,
        classes,
        images,
        [f"{part}/{row}" for part, _, row in items],
        [part for part, _, _ in items] if len(parts) > 1 else None,
    )
