"""The images that the parity cases use, written anew and always alike into one folder."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
SIGNS_A_CLASS = 20
CIFAR_A_CLASS = 100
GROUP = 5  # images that share a group in the CSV
LARGE = 200_000  # bytes of a file from which it is one of the three large photographs
DAMAGED = 9  # every ninth image of the folder with broken files is broken


def write_data(source: Path, target: Path) -> dict[str, str]:
    """Write all images; returns what is absent as name -> reason.

    Args:
        source: Folder that holds `cifar10` and `sign-digits`, or one of them, or none.
        target: New folder, which gets `new`, `signs`, `cifar`, `cifar.npz`, `cifar.csv`, `broken`.
    """
    target.mkdir(parents=True)
    write_new_images(target / "new")
    signs = source / "sign-digits"
    cifar = source / "cifar10" / "train-00000-of-00001.parquet"
    absent = {}
    if signs.is_dir():
        write_signs(signs, target / "signs")
    else:
        absent["signs"] = f"{signs} is not there"
    if cifar.is_file():
        write_cifar(cifar, target)
        write_broken(target / "cifar", target / "broken")
    else:
        reason = f"{cifar} is not there"
        absent |= dict.fromkeys(("cifar", "cifar.npz", "cifar.csv", "broken"), reason)
    return absent


def write_new_images(target: Path) -> None:
    """Write 40 digits to predict as PNG files, and two files that are no image."""
    from sklearn.datasets import load_digits

    target.mkdir()
    drawings = load_digits().images[:40]
    for number, drawing in enumerate(drawings):
        pixels = (drawing * 15).astype(np.uint8)
        Image.fromarray(pixels).resize((24, 24)).save(target / f"{number:02}.png")
    (target / "broken.png").write_bytes((target / "00.png").read_bytes()[:60])
    (target / "text.jpg").write_text("not an image")


def write_signs(source: Path, target: Path) -> None:
    """Copy the first images of each class, and one of the photographs that are turned by EXIF."""
    large = []
    for folder in sorted(source.iterdir()):
        if not folder.is_dir():
            continue
        images = sorted(folder.iterdir())
        large += [path for path in images if path.stat().st_size > LARGE]
        small = [path for path in images if path.stat().st_size <= LARGE]
        for path in small[:SIGNS_A_CLASS]:
            copy(path, target / folder.name / path.name)
    for path in large[:1]:
        copy(path, target / path.parent.name / path.name)


def copy(source: Path, target: Path) -> None:
    """Copy a file into a folder that need not be there yet."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def read_cifar(path: Path, a_class: int) -> Iterator[tuple[str, int, bytes]]:
    """Yield class, number and JPEG of the first `a_class` images of each class."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    labels = np.asarray(table["label"])
    for label, name in enumerate(CLASSES):
        rows = np.flatnonzero(labels == label)[:a_class]
        for row in rows:
            yield name, int(row), table["img"][int(row)].as_py()["bytes"]


def read_cifar_pixels(path: Path, a_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels (n, 32, 32, 3) and labels of the first `a_class` images of each class."""
    pixels = []
    labels = []
    for name, _, jpeg in read_cifar(path, a_class):
        pixels.append(np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")))
        labels.append(CLASSES.index(name))
    return np.stack(pixels), np.asarray(labels)


def write_cifar(path: Path, target: Path) -> None:
    """Write 1,000 images as class folders of JPEG files, as `cifar.npz` and as `cifar.csv`."""
    rows = []
    for name, number, jpeg in read_cifar(path, CIFAR_A_CLASS):
        file = target / "cifar" / name / f"{number:05}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg)
        rows.append((file.relative_to(target), name, f"scene-{len(rows) // GROUP}"))
    with (target / "cifar.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "group"))
        writer.writerows(rows)
    pixels, labels = read_cifar_pixels(path, CIFAR_A_CLASS)
    np.savez(target / "cifar.npz", images=pixels, labels=labels)


def write_broken(source: Path, target: Path) -> None:
    """Copy a quarter of each class; some files are cut off, empty, or text."""
    for folder in sorted(source.iterdir()):
        for path in sorted(folder.iterdir())[: CIFAR_A_CLASS // 4]:
            copy(path, target / folder.name / path.name)
    for number, path in enumerate(sorted(target.rglob("*.jpg"))[::DAMAGED]):
        whole = path.read_bytes()
        path.write_bytes((whole[: len(whole) // 2], b"", b"not an image")[number % 3])
