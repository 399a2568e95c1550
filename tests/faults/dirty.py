"""Bad and odd files of more than sixty kinds, and what regraft makes of each: decoded as documented, or named in a sentence.

`python tests/faults/dirty.py` tries every variant and prints a table: kind, variants, decoded, named, tracebacks, slowest seconds, peak MB.
`--short` tries one of each kind; words after it choose kinds by their names. Each kind has a process of its own, for time and memory.
"""

from __future__ import annotations

import argparse
import bz2
import csv
import gzip
import hashlib
import html.parser
import io
import json
import lzma
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SECONDS, MEGABYTES = 30, 2048  # that one variant may take
VERBOSE = bool(os.environ.get("DIRTY_VERBOSE"))  # print tracebacks
Variants = Iterator[tuple[str, Any]]
DECODED, NAMED, EITHER = "decoded", "named", "either"


@dataclass
class Kind:
    """A kind of bad or odd input: what is documented to become of it, who reads it, and its variants."""

    name: str
    becomes: str
    reads: Callable[[Path, Any], None]
    variants: Callable[[Path], Variants]
    seconds: int = SECONDS


@dataclass
class Found:
    """What became of the variants of a kind."""

    kind: str
    variants: int = 0
    decoded: int = 0
    named: int = 0
    tracebacks: int = 0
    faults: list[str] = field(default_factory=list)
    slowest: float = 0.0
    peak: int = 0


class Wrong(Exception):
    """Something was taken in, or said, otherwise than documented."""


KINDS: dict[str, Kind] = {}


def kind(
    becomes: str, reads: Callable[[Path, Any], None], seconds: int = SECONDS
) -> Callable[[Callable[[Path], Variants]], Callable[[Path], Variants]]:
    def keep(variants: Callable[[Path], Variants]) -> Callable[[Path], Variants]:
        KINDS[variants.__name__] = Kind(variants.__name__, becomes, reads, variants, seconds)
        return variants

    return keep


# --- who reads: each raises what it raises; UserError and an unreadable image's reason are what "named" means


def image(
    folder: Path, given: tuple[str, bytes] | tuple[str, bytes, Callable[[np.ndarray], bool]]
) -> None:
    """An image among good ones: by a folder's table, by its size alone, and by the stream that `predict` reads."""
    from regraft.data.decode import decode_image, image_size
    from regraft.data.images import Unreadable
    from regraft.data.load import load_dataset
    from regraft.data.stream import iterate_images
    from regraft.models.transforms import resize_center_crop

    suffix, content, *checks = given
    top = good(folder / "photos")
    (top / "a" / f"bad{suffix}").write_bytes(content)
    table = load_dataset(top, folder / "home")
    row = next(number for number, key in enumerate(table.keys) if "bad" in key)
    try:
        table.images.read(np.arange(len(table)))
    except Unreadable as error:
        if error.rows != [row] or "\n" in str(error):
            raise Wrong(f"names {error.rows} instead of {row}: {error}") from error
        found = list(iterate_images([top / "a" / f"bad{suffix}"]))
        try:
            decode_image(found[0].read())
        except (OSError, ValueError, SyntaxError, EOFError):
            raise error from None
        raise Wrong("predict reads what fit does not") from error
    pixels = decode_image(content)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise Wrong(f"decoded to {pixels.shape} {pixels.dtype}")
    if image_size(content) != pixels.shape[:2]:
        raise Wrong(f"is said to be {image_size(content)} and is {pixels.shape[:2]}")
    if resize_center_crop(pixels, (32, 32), "bicubic").shape != (32, 32, 3):
        raise Wrong("does not come out at the size asked for")
    for check in checks:
        if not check(pixels):
            raise Wrong("decoded to other pixels than documented")


def place(folder: Path, path: Path) -> None:
    """Something that DATA names: read whole, hashed, split."""
    from regraft.data.load import load_dataset

    before = set(outside(folder))
    try:
        table = load_dataset(path, folder / "home")
        _ = table.fingerprint, table.facts, table.split()
        rows = np.arange(len(table))
        table.images.sizes(rows[:5000])
        table.images.read(rows[:5000])
        "".join([*table.classes, *table.keys.tolist()]).encode()
    finally:
        if set(outside(folder)) != before:
            raise Wrong(f"wrote outside: {set(outside(folder)) - before}")


def streamed(folder: Path, path: Path) -> None:
    """What `predict` is given: some of it may be unreadable, each with its reason; nothing is raised."""
    from regraft.data.decode import decode_image, explain_failure
    from regraft.data.stream import iterate_images

    failed = []
    for one in iterate_images([path]):
        one.name.encode()
        try:
            decode_image(one.read())
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            failed.append(f"{one.name}: {explain_failure(error)}")
    if failed:
        raise ValueError(failed[0])


def both(folder: Path, path: Path) -> None:
    """What both `fit` and `predict` take."""
    from regraft.errors import UserError

    named: Exception | None = None
    for reader in (streamed, place):
        try:
            reader(folder, path)
        except (UserError, OSError, ValueError, SyntaxError, EOFError) as error:
            if isinstance(error, UnicodeError) or (
                reader is place and not isinstance(error, UserError)
            ):
                raise Wrong(f"{type(error).__name__}: {error}") from error
            named = error
    if named:
        raise UserError(str(named))


def plan(folder: Path, text: str | bytes) -> None:
    from regraft.plans.toml import read_plan, write_plan

    path = folder / "plan.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    made = read_plan(path)
    write_plan(made, path)
    if read_plan(path).digest != made.digest:
        raise Wrong("a plan written and read is another plan")


def change(folder: Path, text: str) -> None:
    from regraft.plans.toml import override_plan

    override_plan({"backbone": "test_resnet", "resolution": 32, "phases": [{}]}, [text])


def official_cifar(root: Path, put: Callable[[object, str, object], None] = setattr) -> Path:
    """Write a tiny CIFAR-10 in its official layout, whose checksums torchvision takes for its own.

    Nothing can be downloaded from then on. `put` replaces an attribute; returns the folder.
    """
    from torchvision.datasets import CIFAR10, utils

    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0)

    def write(name: str, entry: object) -> list[str]:
        content = pickle.dumps(entry)
        (folder / name).write_bytes(content)
        return [name, hashlib.md5(content).hexdigest()]

    def batch(name: str) -> list[str]:
        data = pixels.integers(0, 255, (20, 3072), dtype=np.uint8)
        return write(name, {"data": data, "labels": [number % 10 for number in range(20)]})

    names = [f"data_batch_{number}" for number in range(1, 6)]
    put(CIFAR10, "train_list", [batch(name) for name in names])
    put(CIFAR10, "test_list", [batch("test_batch")])
    meta, checksum = write("batches.meta", {"label_names": [f"c{n}" for n in range(10)]})
    put(CIFAR10, "meta", {"filename": meta, "key": "label_names", "md5": checksum})
    put(utils, "_urlretrieve", _offline)
    return folder


def _offline(*_: object, **__: object) -> None:
    raise OSError("no connection in this test")


def cifar(folder: Path, content: bytes) -> None:
    """A pickle in the place of each kind of CIFAR's official files."""
    from regraft.data.load import load_dataset
    from regraft.errors import UserError

    top = official_cifar(folder / "home" / "datasets")
    if len(load_dataset("cifar10", folder / "home")) != 120:
        raise Wrong("the official files are not read")
    refused: UserError | None = None
    for name in ("data_batch_3", "test_batch", "batches.meta"):
        official = (top / name).read_bytes()
        (top / name).write_bytes(content)
        try:
            load_dataset("cifar10", folder / "home")
        except UserError as error:
            refused = error
        else:
            raise Wrong(f"another file was taken for {name}")
        (top / name).write_bytes(official)
    if (folder / "pwned").exists():
        raise Wrong("code in a pickle was run")
    if refused is not None:
        raise refused


def weights(folder: Path, given: tuple[str, bytes]) -> None:
    from regraft.models.backbone import load_backbone

    path = folder / f"w{given[0]}"
    path.write_bytes(given[1])
    try:
        load_backbone("test_resnet", str(path))
    finally:
        if (folder / "pwned").exists():
            raise Wrong("code in a weight file was run")


def finished(folder: Path, path: Path) -> None:
    from regraft.inference.classifier import load_classifier
    from regraft.runs.folder import load_run

    found = load_run(path)
    _ = found.warnings, found.history(), found.predictions(), found.test
    load_classifier(path).predict([np.zeros((32, 32, 3), np.uint8)])


def names(folder: Path, classes: list[str]) -> None:
    """Class names through a folder of class folders, to every place that shows them."""
    from regraft.data.load import load_dataset
    from regraft.errors import escape_control
    from regraft.inference.storage import row_cells

    top = folder / "photos"
    for number, name in enumerate(classes):
        (top / name).mkdir(parents=True)
        for place in range(3):
            (top / name / f"{place}.png").write_bytes(
                png(np.full((4, 4, 3), number % 256, np.uint8))
            )
    table = load_dataset(top, folder / "home")
    if len(table.classes) != len(classes):
        raise Wrong("classes were lost or joined")
    shown(folder, list(table.classes))
    for name in table.classes:
        row = {
            "path": name,
            "label": name,
            "probability": 1.0,
            "ranked": [],
            "abstained": False,
            "error": None,
        }
        cells = row_cells(row, 1)
        if str(cells[1])[:1] in ("=", "+", "-", "@"):
            raise Wrong(f"a spreadsheet takes {cells[1]!r} for a formula")
        if set(escape_control(name)) & UNSEEN:
            raise Wrong(f"a terminal would be told {name!r}")


def shown(folder: Path, classes: list[str]) -> None:
    """Names in a table for spreadsheets, on the page of a check and in its terminal form: no row, element or control character more than there should be."""
    from regraft.reporting.html import render_check_html
    from regraft.system.output import write_csv

    write_csv(folder / "t.csv", [{"name": name} for name in classes])
    with (folder / "t.csv").open(newline="", encoding="utf-8") as file:
        if len(list(csv.reader(file))) != len(classes) + 1:
            raise Wrong("a name broke a row of the CSV")

    def made(called: list[str]) -> Tags:
        group = {
            "keys": called,
            "parts": ["train"] * len(called),
            "labels": called,
            "rows": list(range(len(called))),
        }
        told = {
            "data": called[0],
            "classes": len(called),
            "images": {"train": 3, "val": 1, "test": 1},
            "backbone": called[0],
            "resolution": 8,
            "weights": called[0],
            "counts": {"exact": 1, "near": 1, "suspects": 1, "odd": 1},
            "across": {"exact": 0, "near": 0},
            "exact": [group],
            "near": [{**group, "cosine": 1.0, "by": "x"}],
            "suspects": [
                {
                    "row": 0,
                    "key": called[0],
                    "part": "val",
                    "label": called[0],
                    "said": called[1],
                    "chance_label": 0.1,
                    "chance_said": 0.9,
                }
            ],
            "balance": {
                "classes": [{"name": one, "train": 1, "val": 1, "test": 1} for one in called],
                "ratio": 1.0,
                "few": called,
            },
            "odd": [{"key": called[0], "row": 0, "why": called[1]}],
            "verdict": called[0],
            "split_digest": "0",
        }
        tags = Tags()
        tags.feed(render_check_html(told, [], "0"))
        return tags

    if made(classes).seen != made([f"class{number}" for number in range(len(classes))]).seen:
        raise Wrong("a name became an element or an attribute of a page")


class Tags(html.parser.HTMLParser):
    """Counts the elements of a page with the names of their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[str, ...]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, tuple(name for name, _ in attrs)))


UNSEEN = {
    chr(code)
    for code in (
        *range(10),
        *range(11, 32),
        *range(127, 160),
        0x61C,
        0x200E,
        0x200F,
        *range(0x2028, 0x202F),
        *range(0x2066, 0x206A),
    )
}


# --- what is good


def png(pixels: np.ndarray, form: str = "PNG", **more: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **more)
    return buffer.getvalue()


def saved(one: Image.Image, form: str, **more: Any) -> bytes:
    buffer = io.BytesIO()
    one.save(buffer, form, **more)
    return buffer.getvalue()


def picture(height: int = 24, width: int = 32) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(
        np.stack(
            [x * 255 // max(1, width - 1), y * 255 // max(1, height - 1), (x + y) % 256], 2
        ).astype(np.uint8)
    )


def good(top: Path) -> Path:
    """Return a folder of six images in two classes."""
    for label in "ab":
        (top / label).mkdir(parents=True, exist_ok=True)
        for number in range(4):
            (top / label / f"{number}.png").write_bytes(
                png(np.full((8, 8, 3), 20 * number + ord(label), np.uint8))
            )
    return top


def outside(folder: Path) -> list[str]:
    """Return what lies beside the folder that a variant may use, and in the root of the file system, by a telling name."""
    return [
        str(path)
        for top in (folder.parent, Path("/"), Path("/tmp"), Path.cwd())
        for path in top.glob("*escaped*")
    ]


def rng() -> random.Random:
    return random.Random(0)


FORMS = (
    ("PNG", ".png"),
    ("JPEG", ".jpg"),
    ("GIF", ".gif"),
    ("BMP", ".bmp"),
    ("TIFF", ".tif"),
    ("WEBP", ".webp"),
    ("PPM", ".ppm"),
    ("JPEG2000", ".jp2"),
    ("AVIF", ".avif"),
)


# --- images


@kind(NAMED, image)
def empty_file(folder: Path) -> Variants:
    for _, suffix in FORMS:
        yield suffix, (suffix, b"")


@kind(EITHER, image)
def truncated_file(folder: Path) -> Variants:
    for form, suffix in FORMS:
        whole = saved(picture(), form)
        for share in (0.1, 0.5, 0.9):
            yield f"{form} {share}", (suffix, whole[: int(len(whole) * share)])


@kind(EITHER, image)
def flipped_bytes(folder: Path) -> Variants:
    dice = rng()
    for form, suffix in FORMS:
        for number in range(6):
            whole = bytearray(saved(picture(), form))
            for _ in range(1 + 4 * number):
                whole[dice.randrange(len(whole))] = dice.randrange(256)
            yield f"{form} {number}", (suffix, bytes(whole))


@kind(NAMED, image)
def random_bytes(folder: Path) -> Variants:
    dice = rng()
    for _, suffix in FORMS:
        yield suffix, (suffix, dice.randbytes(5000))


@kind(EITHER, image)
def signature_and_noise(folder: Path) -> Variants:
    dice = rng()
    for form, suffix in FORMS:
        yield form, (suffix, saved(picture(), form)[:40] + dice.randbytes(3000))


@kind(DECODED, image)
def colour_modes(folder: Path) -> Variants:
    forms = {
        "1": "PNG",
        "L": "PNG",
        "LA": "PNG",
        "P": "PNG",
        "RGB": "PNG",
        "RGBA": "PNG",
        "I;16": "PNG",
        "CMYK": "TIFF",
        "YCbCr": "JPEG",
        "LAB": "TIFF",
    }
    forms |= {"I": "TIFF", "F": "TIFF", "RGBX": "TIFF"}
    for mode, form in forms.items():
        source = (
            picture().convert("L").convert("I").point(lambda value: value * 256)
            if mode == "I;16"
            else picture()
        )
        yield (
            mode,
            (
                ".png" if form == "PNG" else ".tif",
                saved(
                    source.convert(mode)
                    if mode not in ("LAB", "I;16")
                    else source
                    if mode == "I;16"
                    else from_lab(),
                    form,
                ),
            ),
        )


def from_lab() -> Image.Image:
    return Image.merge("LAB", picture().split())


@kind(DECODED, image)
def sixteen_bit(folder: Path) -> Variants:
    for form, suffix in (("PNG", ".png"), ("TIFF", ".tif"), ("PPM", ".pgm")):
        for top in (255, 4095, 65535):
            values = np.linspace(0, top, 24 * 32).reshape(24, 32).astype(np.uint16)
            yield (
                f"{form} {top}",
                (
                    suffix,
                    saved(Image.fromarray(values), form),
                    lambda pixels, top=top: int(pixels.max()) == (255 if top != 4095 else 16),
                ),
            )


@kind(DECODED, image)
def float_tiff(folder: Path) -> Variants:
    base = np.linspace(0, 1, 24 * 32, dtype=np.float32).reshape(24, 32)
    odd = base.copy()
    odd[0, :4] = [np.nan, np.inf, -np.inf, -5]
    for name, values in {
        "0 to 1": base,
        "0 to 255": base * 255,
        "0 to 1e9": base * 1e9,
        "negative": base - 2,
        "nan and inf": odd,
        "nan": base * np.nan,
    }.items():
        yield name, (".tif", saved(Image.fromarray(values.astype(np.float32)), "TIFF"))


@kind(DECODED, image)
def transparency(folder: Path) -> Variants:
    clear = picture().convert("RGBA")
    clear.putalpha(0)
    for form, suffix in (("PNG", ".png"), ("WEBP", ".webp"), ("TIFF", ".tif")):
        yield (
            form,
            (
                suffix,
                saved(clear, form, **({"lossless": True} if form == "WEBP" else {})),
                lambda pixels: bool((pixels == 255).all()),
            ),
        )
    palette = picture().convert("P")
    yield "palette index", (".png", saved(palette, "PNG", transparency=0))
    yield "palette bytes", (".png", saved(palette, "PNG", transparency=bytes(range(256))))
    yield "grey", (".png", saved(picture().convert("L"), "PNG", transparency=0))
    yield "colour", (".png", saved(picture(), "PNG", transparency=(0, 0, 0)))


@kind(DECODED, image)
def animated(folder: Path) -> Variants:
    frames = [Image.new("RGB", (16, 12), colour) for colour in ("red", "green", "blue")]
    red = lambda pixels: bool(pixels[5, 5, 0] > 200 > 60 > pixels[5, 5, 1])  # noqa: E731
    for form, suffix in (
        ("GIF", ".gif"),
        ("PNG", ".png"),
        ("WEBP", ".webp"),
        ("TIFF", ".tif"),
        ("MPO", ".jpg"),
        ("AVIF", ".avif"),
    ):
        for count in (1, 2, 50):
            many = (frames * 20)[1:count]
            yield (
                f"{form} {count}",
                (suffix, saved(frames[0], form, save_all=True, append_images=many), red),
            )


@kind(EITHER, image)
def broken_animation(folder: Path) -> Variants:
    frames = [Image.new("RGB", (16, 12), colour) for colour in ("red", "green", "blue")]
    for form, suffix in (("GIF", ".gif"), ("PNG", ".png"), ("WEBP", ".webp"), ("MPO", ".jpg")):
        whole = saved(frames[0], form, save_all=True, append_images=frames[1:])
        for share in (0.4, 0.7, 0.95):
            yield f"{form} {share}", (suffix, whole[: int(len(whole) * share)])


@kind(DECODED, image)
def wrong_extension(folder: Path) -> Variants:
    for form, suffix in FORMS:
        for other in (".png", ".jpg"):
            if other != suffix:
                yield f"{form} as {other}", (other, saved(picture(), form))


@kind(NAMED, image)
def other_formats(folder: Path) -> Variants:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/tmp/escaped) (w) file\nshowpage\n"
    yield "EPS, which runs a program", (".png", eps)
    for form in ("ICO", "TGA", "PCX", "SGI", "ICNS", "PDF", "DDS", "IM"):
        yield form, (".png", saved(picture(32, 32), form))
    yield (
        "SVG",
        (
            ".png",
            b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        ),
    )
    yield "HTML", (".jpg", b"<!DOCTYPE html><html><script>alert(1)</script></html>")
    yield "zip", (".png", zipped({"a.png": b"x"}))
    yield "ELF", (".png", b"\x7fELF" + bytes(200))
    yield "WMF", (".png", b"\xd7\xcd\xc6\x9a" + bytes(100))


@kind(NAMED, image)
def lfs_pointer(folder: Path) -> Variants:
    text = (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12345\n"
    )
    for _, suffix in FORMS[:3]:
        yield suffix, (suffix, text)


@kind(DECODED, image)
def exif_rotation(folder: Path) -> Variants:
    for form, suffix in (("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp"), ("TIFF", ".tif")):
        for turn in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = turn
            shape = (32, 24) if turn >= 5 else (24, 32)
            yield (
                f"{form} {turn}",
                (
                    suffix,
                    saved(picture(), form, exif=exif),
                    lambda pixels, shape=shape: pixels.shape[:2] == shape,
                ),
            )


@kind(DECODED, image)
def broken_exif(folder: Path) -> Variants:
    dice = rng()
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = exif.tobytes()
    for name, content in {
        "cut": whole[:12],
        "noise": b"Exif\0\0" + dice.randbytes(80),
        "empty": b"Exif\0\0",
        "endless": whole[:-4] + b"\x08\0\0\0",
    }.items():
        yield name, (".jpg", saved(picture(), "JPEG", exif=content))
    for value in (0, 9, 65535):
        exif[0x0112] = value
        yield f"orientation {value}", (".jpg", saved(picture(), "JPEG", exif=exif))
    for number in range(8):
        mixed = bytearray(whole)
        for _ in range(3):
            mixed[dice.randrange(6, len(mixed))] = dice.randrange(256)
        yield f"flipped {number}", (".jpg", saved(picture(), "JPEG", exif=bytes(mixed)))


@kind(DECODED, image)
def tiny_images(folder: Path) -> Variants:
    for form, suffix in FORMS:
        for height, width in ((1, 1), (1, 2), (2, 1)):
            yield (
                f"{form} {height}×{width}",
                (suffix, saved(Image.new("RGB", (width, height), "red"), form)),
            )


@kind(DECODED, image)
def extreme_ratios(folder: Path) -> Variants:
    for height, width in ((1, 30_000), (30_000, 1), (2, 16_000), (3, 60_000), (100, 30_000)):
        yield f"{height}×{width}", (".png", saved(Image.new("RGB", (width, height), "red"), "PNG"))


@kind(DECODED, image)
def large_images(folder: Path) -> Variants:
    for mode, size, form, suffix in (
        ("L", (30_000, 2_000), "PNG", ".png"),
        ("RGB", (2_000, 30_000), "JPEG", ".jpg"),
        ("RGBA", (10_000, 10_000), "PNG", ".png"),
        ("L", (13_000, 13_000), "JPEG", ".jpg"),
    ):
        path = folder / "large"
        apart(lambda: path.write_bytes(saved(Image.new(mode, size), form)))  # noqa: B023
        yield f"{mode} {size} {form}", (suffix, path.read_bytes())


def apart(work: Callable[[], object]) -> None:
    """Do something in a process of its own, so that the memory that it takes to make a file is not counted."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()


def bomb_png(width: int, height: int, depth: int = 8, colour: int = 0, data: bytes = b"") -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", data or zlib.compress(bytes(10_000_000), 9))
        + chunk(b"IEND", b"")
    )


@kind(NAMED, image)
def decompression_bomb(folder: Path) -> Variants:
    yield "PNG 30,000²", (".png", bomb_png(30_000, 30_000))
    yield "PNG 2³¹", (".png", bomb_png(2**31 - 1, 2**31 - 1))
    yield "PNG 0", (".png", bomb_png(0, 0))
    whole = bytearray(saved(picture(), "GIF"))
    whole[6:10] = b"\xff\xff\xff\xff"
    yield "GIF 65,535²", (".gif", bytes(whole))
    whole = bytearray(saved(picture(), "BMP"))
    whole[18:26] = struct.pack("<ii", 200_000, 200_000)
    yield "BMP 200,000²", (".bmp", bytes(whole))
    yield "PPM", (".ppm", b"P6 100000 100000 255\n" + bytes(100))
    yield "PPM digits", (".ppm", b"P6 " + b"9" * 5000 + b" 1 255\n")


@kind(EITHER, image)
def promised_but_absent(folder: Path) -> Variants:
    for side in (100, 1_000, 13_000):
        yield f"PNG {side}", (".png", bomb_png(side, side, data=zlib.compress(b"\0" * 50)))
        yield f"PPM {side}", (".ppm", f"P6 {side} {side} 255\n".encode() + bytes(30))


@kind(EITHER, image)
def png_chunks(folder: Path) -> Variants:
    def chunk(name: bytes, body: bytes, sum_off: int = 0) -> bytes:
        return (
            struct.pack(">I", len(body))
            + name
            + body
            + struct.pack(">I", zlib.crc32(name + body) + sum_off & 0xFFFFFFFF)
        )

    whole = saved(picture(), "PNG")
    head, rest = whole[:33], whole[33:]
    yield (
        "text bomb",
        (".png", head + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000), 9)) + rest),
    )
    yield (
        "profile bomb",
        (".png", head + chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(200_000_000), 9)) + rest),
    )
    yield "broken profile", (".png", head + chunk(b"iCCP", b"a\0\0xyz") + rest)
    yield "wrong sum", (".png", head + chunk(b"tEXt", b"a\0b", 1) + rest)
    yield "no IDAT", (".png", head + chunk(b"IEND", b""))
    yield "endless length", (".png", head + b"\x7f\xff\xff\xffIDAT" + rest)
    yield (
        "frame control first",
        (".png", head + chunk(b"acTL", struct.pack(">II", 2**31, 0)) + rest),
    )
    yield "bytes after", (".png", whole + bytes(1000))


@kind(EITHER, image)
def tiff_directories(folder: Path) -> Variants:
    whole = saved(picture(), "TIFF")
    at = struct.unpack("<I", whole[4:8])[0]
    yield "loop", (".tif", whole[:-4] + struct.pack("<I", at))
    yield "directory beyond", (".tif", whole[:4] + struct.pack("<I", 2**31) + whole[8:])
    yield "no tags", (".tif", b"II*\0\x08\0\0\0\0\0\0\0\0\0")
    yield "65,535 tags", (".tif", b"II*\0\x08\0\0\0\xff\xff" + bytes(4000))
    count = struct.unpack("<H", whole[at : at + 2])[0]
    for number in range(count):
        mixed = bytearray(whole)
        mixed[at + 2 + 12 * number + 4 : at + 2 + 12 * number + 12] = b"\xff" * 8
        yield f"tag {number} is huge", (".tif", bytes(mixed))
    for compression in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits"):
        whole = bytearray(saved(picture(), "TIFF", compression=compression))
        whole[20:40] = b"\xff" * 20
        yield f"{compression} damaged", (".tif", bytes(whole))


# --- folders


def folder_of(folder: Path, change: Callable[[Path], object]) -> Path:
    top = good(folder / "photos")
    change(top)
    return top


@kind(NAMED, place)
def broken_links(folder: Path) -> Variants:
    yield "nowhere", folder_of(folder, lambda top: (top / "a" / "x.png").symlink_to("gone.png"))
    yield "to itself", folder_of(folder, lambda top: (top / "a" / "x.png").symlink_to("x.png"))
    yield (
        "in a circle",
        folder_of(
            folder,
            lambda top: (
                (top / "a" / "x.png").symlink_to("y.png"),
                (top / "a" / "y.png").symlink_to("x.png"),
            ),
        ),
    )
    yield (
        "to a device",
        folder_of(folder, lambda top: (top / "a" / "x.png").symlink_to("/dev/zero")),
    )
    yield "to a folder", folder_of(folder, lambda top: (top / "a" / "x.png").symlink_to("/"))

    def pipe(top: Path) -> None:
        os.mkfifo(top / "pipe")
        (top / "a" / "x.png").symlink_to(top / "pipe")

    yield "to a pipe", folder_of(folder, pipe)


@kind(NAMED, place)
def link_loops(folder: Path) -> Variants:
    yield "class is the folder", folder_of(folder, lambda top: (top / "c").symlink_to("."))
    yield "class is above", folder_of(folder, lambda top: (top / "c").symlink_to("/"))
    yield "class is another", folder_of(folder, lambda top: (top / "c").symlink_to("a"))


@kind(DECODED, place)
def loops_inside(folder: Path) -> Variants:
    yield "folder in a class", folder_of(folder, lambda top: (top / "a" / "loop").symlink_to(".."))
    yield "class that leads nowhere", folder_of(folder, lambda top: (top / "c").symlink_to("c"))
    yield "pipe as an image", folder_of(folder, lambda top: os.mkfifo(top / "a" / "x.png"))
    yield "hidden", folder_of(folder, lambda top: (top / "a" / "._x.png").write_bytes(b"mac"))


@kind(DECODED, place)
def file_names(folder: Path) -> Variants:
    for name in (
        b"caf\xe9.png",
        b"\xff\xfe.png",
        "é🙂.png".encode(),
        b"a\nb.png",
        b"\x1b[31mred.png",
        "\u202egnp.exe.png".encode(),
        b"-rf.png",
        b"=1+1.png",
        b" .png",
        b"x" * 250 + b".png",
    ):
        yield (
            repr(name[:20]),
            folder_of(
                folder,
                lambda top, name=name: Path(
                    os.fsdecode(os.fsencode(top / "a") + b"/" + name)
                ).write_bytes(png(np.zeros((4, 4, 3), np.uint8))),
            ),
        )


@kind(DECODED, place)
def class_folder_names(folder: Path) -> Variants:
    for name in (
        b"caf\xe9",
        b"\xff",
        b"A",
        "١".encode(),
        b"9" * 200,
        b"01",
        b"c d",
        b"%s%n",
        b"$(reboot)",
    ):
        yield (
            repr(name[:20]),
            folder_of(
                folder,
                lambda top, name=name: shutil.copytree(
                    top / "b", os.fsdecode(os.fsencode(top) + b"/" + name)
                ),
            ),
        )


@kind(NAMED, place)
def folders_of_nothing(folder: Path) -> Variants:
    yield (
        "empty",
        folder_of(folder, lambda top: (shutil.rmtree(top / "a"), shutil.rmtree(top / "b"))),
    )
    yield "one class", folder_of(folder, lambda top: shutil.rmtree(top / "a"))
    yield "an empty class", folder_of(folder, lambda top: (top / "c").mkdir())
    yield (
        "a class of one",
        folder_of(
            folder, lambda top: ((top / "c").mkdir(), shutil.copy(top / "a" / "0.png", top / "c"))
        ),
    )
    yield "parts and classes", folder_of(folder, lambda top: (top / "train").mkdir())
    yield (
        "a folder called .csv",
        folder_of(
            folder,
            lambda top: ((top / "x.csv").mkdir(), [shutil.rmtree(top / one) for one in "ab"]),
        ),
    )


@kind(NAMED, place)
def unknown_files(folder: Path) -> Variants:
    for name, content in {
        "x.txt": b"hello",
        "x.pkl": pickle.dumps([1]),
        "x.onnx": b"\x08\x07",
        "x.exe": b"MZ",
        "x.json": b"{}",
        "x": b"",
        "x.pt": b"PK",
    }.items():
        (folder / name).write_bytes(content)
        yield name, folder / name
    for name in ("x.zip", "x.csv", "x.npz", "x.parquet", "x.tar.gz"):
        (folder / name).write_bytes(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 1\n"
        )
        yield f"LFS {name}", folder / name


# --- archives


def zipped(members: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return buffer.getvalue()


def tarred(members: dict[str, bytes | tuple[bytes, str]], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as packed:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                info.type, info.linkname = content
                packed.addfile(info)
            else:
                info.size = len(content)
                packed.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def photos(more: dict[str, Any] | None = None) -> dict[str, Any]:
    each = {
        f"{label}/{number}.png": png(np.full((8, 8, 3), 20 * number + ord(label), np.uint8))
        for label in "ab"
        for number in range(4)
    }
    return {**each, **(more or {})}


def file(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


PNG = png(np.zeros((4, 4, 3), np.uint8))
PATHS = ("../escaped.png", "../../../../escaped.png", "a/../../escaped.png", "..\\escaped.png")
ROOTED = ("/escaped.png", "//escaped.png", "/tmp/escaped.png", "/a/../tmp/escaped.png")


@kind(NAMED, place)
def zip_paths_that_lead_out(folder: Path) -> Variants:
    for name in PATHS:
        yield name, file(folder, "x.zip", zipped(photos({name: PNG})))


@kind(NAMED, place)
def tar_paths_that_lead_out(folder: Path) -> Variants:
    for name in PATHS:
        yield name, file(folder, "x.tar", tarred(photos({name: PNG})))


@kind(EITHER, both)
def rooted_paths(folder: Path) -> Variants:
    for name in ROOTED:
        yield f"zip {name}", file(folder, "x.zip", zipped(photos({name: PNG})))
        yield f"tar {name}", file(folder, "x.tar", tarred(photos({name: PNG})))


@kind(NAMED, both)
def tar_links(folder: Path) -> Variants:
    for what, to in (
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.SYMTYPE, "../../x"),
        (tarfile.LNKTYPE, "/etc/passwd"),
        (tarfile.LNKTYPE, "../../x"),
        (tarfile.CHRTYPE, ""),
        (tarfile.FIFOTYPE, ""),
    ):
        yield f"{what!r} {to}", file(folder, "x.tar", tarred(photos({"a/link.png": (what, to)})))


@kind(EITHER, both)
def zip_links(folder: Path) -> Variants:
    for to in ("/etc/passwd", "../../../x", "0.png"):
        buffer = io.BytesIO(zipped(photos()))
        with zipfile.ZipFile(buffer, "a") as packed:
            info = zipfile.ZipInfo("a/link.png")
            info.external_attr = 0o120777 << 16
            packed.writestr(info, to)
        yield to, file(folder, "x.zip", buffer.getvalue())


@kind(NAMED, both)
def zip_bombs(folder: Path) -> Variants:
    zeros = bytes(300_000_000)
    yield "one member", file(folder, "x.zip", zipped(photos({"a/x.png": zeros})))
    flat = io.BytesIO()
    with zipfile.ZipFile(flat, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in photos().items():
            packed.writestr(name, content)
        for number in range(8):
            packed.writestr(f"a/x{number}.png", zeros[:100_000_000])
    yield "many members", file(folder, "x.zip", flat.getvalue())


@kind(NAMED, both)
def tar_bombs(folder: Path) -> Variants:
    block = bytes(1 << 20)
    for name, opened in (("x.tar.gz", gzip.open), ("x.tar.bz2", bz2.open), ("x.tar.xz", lzma.open)):
        path = folder / name
        with opened(path, "wb") as out:  # type: ignore[operator]
            out.write(
                tarred(photos())[:-10240]
                .rstrip(b"\0")
                .ljust(-(-len(tarred(photos())[:-10240]) // 512) * 512, b"\0")
            )
            info = tarfile.TarInfo("a/x.png")
            info.size = 400 << 20
            out.write(info.tobuf())
            for _ in range(400):
                out.write(block)
            out.write(bytes(10240))
        yield name, path


@kind(DECODED, place)
def nested_archives(folder: Path) -> Variants:
    inner = zipped({"a.png": bytes(50_000_000)})
    for _ in range(5):
        inner = zipped({"inner.zip": inner})
    yield "zip in zip", file(folder, "x.zip", zipped(photos({"a/inner.zip": inner})))
    yield "zip in tar", file(folder, "x.tar", tarred(photos({"a/inner.zip": inner})))
    yield (
        "things that are no images",
        file(
            folder,
            "x.zip",
            zipped(photos({"a/x.py": b"import os", "evil.exe": b"MZ", "a/.hidden.png": b"x"})),
        ),
    )


@kind(NAMED, place)
def damaged_zips(folder: Path) -> Variants:
    whole, dice = zipped(photos()), rng()
    for share in (0.1, 0.5, 0.9, 0.99):
        yield f"cut {share}", file(folder, "x.zip", whole[: int(len(whole) * share)])
    yield "empty", file(folder, "x.zip", b"")
    yield "no members", file(folder, "x.zip", zipped({}))
    yield "noise", file(folder, "x.zip", dice.randbytes(2000))
    locked = bytearray(whole)
    locked[6] |= 1
    at = locked.find(b"PK\x01\x02")
    locked[at + 8] |= 1
    yield "encrypted", file(folder, "x.zip", bytes(locked))
    odd = bytearray(whole)
    odd[at + 10] = 99
    yield "unknown packing", file(folder, "x.zip", bytes(odd))


@kind(EITHER, both)
def flipped_zips(folder: Path) -> Variants:
    dice = rng()
    for number in range(30):
        whole = bytearray(zipped(photos()))
        for _ in range(3):
            whole[dice.randrange(len(whole))] = dice.randrange(256)
        yield str(number), file(folder, "x.zip", bytes(whole))


@kind(EITHER, both)
def flipped_tars(folder: Path) -> Variants:
    dice = rng()
    for suffix, mode in (
        (".tar", "w"),
        (".tar.gz", "w:gz"),
        (".tar.bz2", "w:bz2"),
        (".tar.xz", "w:xz"),
    ):
        for number in range(8):
            whole = bytearray(tarred(photos(), mode))
            for _ in range(3):
                whole[dice.randrange(len(whole))] = dice.randrange(256)
            yield f"{suffix} {number}", file(folder, f"x{suffix}", bytes(whole))


@kind(EITHER, both)
def truncated_tars(folder: Path) -> Variants:
    for suffix, mode in (
        (".tar", "w"),
        (".tar.gz", "w:gz"),
        (".tar.bz2", "w:bz2"),
        (".tar.xz", "w:xz"),
    ):
        whole = tarred(photos(), mode)
        for share in (0, 0.01, 0.3, 0.6, 0.9):
            yield f"{suffix} {share}", file(folder, f"x{suffix}", whole[: int(len(whole) * share)])


@kind(EITHER, both)
def odd_members(folder: Path) -> Variants:
    yield "long name", file(folder, "x.zip", zipped(photos({"a/" + "x" * 300 + ".png": PNG})))
    yield "deep", file(folder, "x.zip", zipped(photos({"a/" * 300 + "x.png": PNG})))
    yield (
        "NUL",
        file(folder, "x.zip", zipped(photos({"a/x.png": PNG})).replace(b"a/x.png", b"a/\0.png")),
    )
    yield (
        "no name",
        file(folder, "x.zip", zipped(photos({"x_.png": PNG})).replace(b"x_.png", b"\0_.png")),
    )  # an atheris run found it
    yield "twice", file(folder, "x.tar", tarred(photos())[:-10240] + tarred(photos()))
    yield (
        "a file that is a folder",
        file(folder, "x.zip", zipped(photos({"a": b"x", "a/5.png": PNG}))),
    )
    yield (
        "an image that is a folder",
        file(folder, "x.zip", zipped(photos({"a/7.png": b"x", "a/7.png/5.png": PNG}))),
    )
    yield "terminal", file(folder, "x.zip", zipped(photos({"a/\x1b]0;pwned\x07.png": PNG})))
    yield "bytes", file(folder, "x.tar", tarred(photos({"a/caf\udce9.png": PNG})))
    yield "sparse of 1 TB", file(folder, "x.tar", sparse())


def sparse() -> bytes:
    info = tarfile.TarInfo("a/x.png")
    info.size = 2**40
    return tarred(photos())[:-10240] + info.tobuf() + bytes(10240)


# --- CSV


def listing(folder: Path, content: str | bytes) -> Path:
    good(folder)
    (folder.parent / "beside.png").write_bytes(PNG)
    return file(folder, "x.csv", content if isinstance(content, bytes) else content.encode())


ROWS = "".join(f"{label}/{number}.png,{label}\n" for label in "ab" for number in range(4))


@kind(NAMED, place)
def csv_rows_outside(folder: Path) -> Variants:
    for path in (
        "../beside.png",
        "/etc/passwd",
        "a/../../beside.png",
        "//etc/passwd",
        "/dev/zero",
        "a/../../../../../etc/hostname",
        "..",
        ".",
    ):
        yield path, listing(folder, f"path,label\n{ROWS}{path},a\n")


@kind(NAMED, place)
def csv_rows_that_are_wrong(folder: Path) -> Variants:
    for name, row in {
        "missing": "gone.png,a",
        "a folder": "a,a",
        "NUL": "a/\0.png,a",
        "too long": "x" * 5000 + ",a",
        "no label": "a/0.png,",
        "no path": ",a",
        "one cell": "a/0.png",
        "twice": "a/0.png,a",
        "address": "http://example.org/a.png,a",
        "home": "~/a.png,a",
        "tabs": "a/0.png\ta",
        "label too long": "./a/0.png," + "x" * 2000,
    }.items():
        yield name, listing(folder, f"path,label\n{ROWS}{row}\n")


@kind(DECODED, place)
def csv_that_is_odd(folder: Path) -> Variants:
    yield "BOM", listing(folder, b"\xef\xbb\xbf" + f"path,label\n{ROWS}".encode())
    yield "Windows", listing(folder, f"path,label\n{ROWS}".replace("\n", "\r\n"))
    yield "old Mac", listing(folder, f"path,label\n{ROWS}".replace("\n", "\r"))
    yield "quoted", listing(folder, '"path","label"\n' + ROWS)
    yield "spaces", listing(folder, f" Path , LABEL \n{ROWS}")
    yield "more cells", listing(folder, "path,label\n" + ROWS.replace("\n", ",x,y,z\n"))
    yield "blank lines", listing(folder, "path,label\n\n\n" + ROWS + "\n\n")
    yield "NUL in a label", listing(folder, "path,label\n" + ROWS.replace(",a", ",a\0"))
    yield "formula", listing(folder, "path,label\n" + ROWS.replace(",a", ",=cmd|'/c calc'!A1"))
    yield "HTML", listing(folder, "path,label\n" + ROWS.replace(",a", ",<script>alert(1)</script>"))
    yield (
        "digits",
        listing(folder, "path,label\n" + ROWS.replace(",a", "," + "1" * 900).replace(",b", ",2")),
    )


@kind(NAMED, place)
def csv_in_another_form(folder: Path) -> Variants:
    for name, encoding in (
        ("UTF-16", "utf-16"),
        ("UTF-16 without BOM", "utf-16-le"),
        ("UTF-32", "utf-32"),
        ("Latin-1", "latin-1"),
        ("Shift JIS", "shift-jis"),
    ):
        text = f"path,label\n{ROWS}" + ("あ.png,a\n" if "jis" in encoding else "é.png,é\n")
        yield name, listing(folder, text.encode(encoding))
    yield "empty", listing(folder, "")
    yield "head only", listing(folder, "path,label\n")
    yield "NUL only", listing(folder, bytes(100))
    yield "noise", listing(folder, rng().randbytes(3000))
    yield "semicolons", listing(folder, f"path,label\n{ROWS}".replace(",", ";"))
    yield "no head", listing(folder, ROWS)
    yield "open quote", listing(folder, f'path,label\n"{ROWS * 3000}')
    yield "a cell of 1 MB", listing(folder, f"path,label\n{'x' * 1_000_000},a\n")


@kind(DECODED, place, seconds=180)  # a million files are hashed
def a_million_rows(folder: Path) -> Variants:
    for label in range(1000):
        (folder / f"d{label}").mkdir()
    for number in range(1000):
        (folder / f"{number}.png").write_bytes(png(np.full((2, 2, 3), number % 251, np.uint8)))
    text = "".join(
        f"d{one}/../{number}.png,c{number % 10}\n" for one in range(1000) for number in range(1000)
    )
    yield "10 classes", file(folder, "x.csv", f"path,label\n{text}".encode())


@kind(DECODED, place)
def ten_thousand_classes(folder: Path) -> Variants:
    (folder / "d").mkdir()
    for number in range(100):
        (folder / f"{number}.png").write_bytes(png(np.full((2, 2, 3), number, np.uint8)))
        (folder / f"d{number}").mkdir()
    for spellings in (3,):
        text = "".join(
            f"{'d/../' * one}d{label % 100}/../{label // 100}.png,class {label}\n"
            for label in range(10_000)
            for one in range(spellings)
        )
        yield f"{spellings} images each", file(folder, "x.csv", f"path,label\n{text}".encode())


# --- tables


def parquet_of(folder: Path, columns: dict[str, Any], meta: Any = None, **more: Any) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(columns)
    if meta is not None:
        table = table.replace_schema_metadata(
            {"huggingface": meta if isinstance(meta, (str, bytes)) else json.dumps(meta)}
        )
    pq.write_table(table, folder / "x.parquet", **more)
    return folder / "x.parquet"


def shots(count: int = 8, content: bytes | None = None) -> list[dict[str, Any]]:
    return [
        {"bytes": content or png(np.full((4, 4, 3), number, np.uint8)), "path": f"{number}.png"}
        for number in range(count)
    ]


EIGHT = [0, 1] * 4


@kind(NAMED, place)
def damaged_parquet(folder: Path) -> Variants:
    whole = parquet_of(folder, {"image": shots(), "label": EIGHT}).read_bytes()
    for share in (0, 0.3, 0.7, 0.99):
        yield f"cut {share}", file(folder, "x.parquet", whole[: int(len(whole) * share)])
    yield "noise", file(folder, "x.parquet", b"PAR1" + rng().randbytes(500) + b"PAR1")
    yield (
        "foot beyond",
        file(folder, "x.parquet", whole[:-8] + struct.pack("<I", 2**31 - 1) + b"PAR1"),
    )


@kind(EITHER, both)
def flipped_parquet(folder: Path) -> Variants:
    dice = rng()
    source = parquet_of(folder, {"image": shots(), "label": EIGHT}).read_bytes()
    for number in range(30):
        whole = bytearray(source)
        for _ in range(3):
            whole[dice.randrange(len(whole))] = dice.randrange(256)
        yield str(number), file(folder, "x.parquet", bytes(whole))


@kind(NAMED, place)
def parquet_of_other_things(folder: Path) -> Variants:
    yield "no image", parquet_of(folder, {"a": [1], "label": [1]})
    yield "bytes are numbers", parquet_of(folder, {"image": [{"bytes": 1}] * 8, "label": EIGHT})
    yield "bytes are text", parquet_of(folder, {"image": [{"bytes": "x"}] * 8, "label": EIGHT})
    yield (
        "bytes are nothing",
        parquet_of(
            folder, {"image": [{"bytes": None, "path": "/etc/passwd"}, *shots(7)], "label": EIGHT}
        ),
    )
    yield "rows are nothing", parquet_of(folder, {"image": [None, *shots(7)], "label": EIGHT})
    yield "no rows", parquet_of(folder, {"image": shots(8)[:0] or shots(1), "label": [0]})
    yield "labels are nothing", parquet_of(folder, {"image": shots(), "label": [0, None] * 4})
    yield "labels are lists", parquet_of(folder, {"image": shots(), "label": [[1]] * 8})
    yield (
        "labels outside",
        parquet_of(
            folder,
            {"image": shots(), "label": [0, 99] * 4},
            {"info": {"features": {"label": {"names": ["a", "b"]}}}},
        ),
    )
    yield (
        "labels huge",
        parquet_of(
            folder,
            {"image": shots(), "label": [0, 2**63 - 1] * 4},
            {"info": {"features": {"label": {"names": ["a", "b"]}}}},
        ),
    )
    yield (
        "long paths",
        parquet_of(
            folder,
            {
                "image": [{**one, "path": f"{n}" + "x" * 100_000} for n, one in enumerate(shots())],
                "label": EIGHT,
            },
        ),
    )
    yield "not images", parquet_of(folder, {"image": shots(content=b"x"), "label": EIGHT})


@kind(DECODED, place)
def odd_parquet(folder: Path) -> Variants:
    for name, meta in {
        "nested": "[" * 100_000,
        "list": [],
        "names": {"info": {"features": {"label": {"names": "ab"}}}},
        "none": {"info": None},
        "noise": b"\xff\xfe",
    }.items():
        yield f"metadata {name}", parquet_of(folder, {"image": shots(), "label": EIGHT}, meta)
    yield (
        "paths that lead out",
        parquet_of(
            folder,
            {
                "image": [{**one, "path": f"../../{n}"} for n, one in enumerate(shots())],
                "label": EIGHT,
            },
        ),
    )
    yield "text labels", parquet_of(folder, {"image": shots(), "label": ["<b>", "\x1b[31m"] * 4})


@kind(NAMED, both)
def parquet_bombs(folder: Path) -> Variants:
    apart(
        lambda: parquet_of(
            folder,
            {"image": shots(8, bytes(60_000_000)), "label": EIGHT},
            compression="zstd",
            use_dictionary=False,
        )
    )
    yield "zeros", folder / "x.parquet"
    apart(
        lambda: parquet_of(
            folder,
            {"image": shots(1000, bytes(1_000_000)), "label": [0, 1] * 500},
            compression="zstd",
            dictionary_pagesize_limit=2**24,
        )
    )
    yield "one value many times", folder / "x.parquet"


@kind(NAMED, place)
def damaged_npz(folder: Path) -> Variants:
    np.savez(folder / "x.npz", images=np.zeros((8, 4, 4), np.uint8), labels=np.array(EIGHT))
    whole = (folder / "x.npz").read_bytes()
    for share in (0, 0.2, 0.6, 0.95):
        yield f"cut {share}", file(folder, "x.npz", whole[: int(len(whole) * share)])
    yield "noise", file(folder, "x.npz", rng().randbytes(500))
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    yield "npy", file(folder, "x.npz", buffer.getvalue())
    yield "pickle", file(folder, "x.npz", pickle.dumps(np.zeros(3)))
    yield (
        "not npy inside",
        file(folder, "x.npz", zipped({"images.npy": b"hello", "labels.npy": b""})),
    )
    for name, head in {
        "shape": "{'descr': '|u1', 'fortran_order': False, 'shape': (100000000000, 4, 4)}",
        "code": "__import__('os').system('id')",
        "open": "{" * 5000,
        "type": "{'descr': '|O', 'fortran_order': False, 'shape': (8,)}",
        "negative": "{'descr': '|u1', 'fortran_order': False, 'shape': (-8, 4, 4)}",
    }.items():
        body = (
            b"\x93NUMPY\x01\x00"
            + struct.pack("<H", len(head) + 1)
            + head.encode()
            + b"\n"
            + bytes(100)
        )
        yield (
            f"head {name}",
            file(folder, "x.npz", zipped({"images.npy": body, "labels.npy": body})),
        )


@kind(EITHER, place)
def flipped_npz(folder: Path) -> Variants:
    dice = rng()
    np.savez_compressed(
        folder / "x.npz", images=np.zeros((8, 4, 4), np.uint8), labels=np.array(EIGHT)
    )
    source = (folder / "x.npz").read_bytes()
    for number in range(20):
        whole = bytearray(source)
        for _ in range(3):
            whole[dice.randrange(len(whole))] = dice.randrange(256)
        yield str(number), file(folder, "x.npz", bytes(whole))


@kind(NAMED, place)
def npz_of_other_things(folder: Path) -> Variants:
    images, labels = np.zeros((8, 4, 4), np.uint8), np.array(EIGHT)
    for name, arrays in {
        "objects": {"images": np.array([Evil(folder)] * 8, dtype=object), "labels": labels},
        "object labels": {"images": images, "labels": np.array([{}] * 8)},
        "single numbers": {"images": np.array(3), "labels": np.array(3)},
        "nothing": {"images": images[:0], "labels": labels[:0]},
        "other lengths": {"images": images, "labels": labels[:5]},
        "text": {"images": np.array([["a"] * 4] * 8), "labels": labels},
        "text images": {"images": np.full((8, 4, 4), "a"), "labels": labels},
        "complex": {"images": np.zeros((8, 4, 4), complex), "labels": labels},
        "dates": {"images": np.zeros((8, 4, 4), "M8[s]"), "labels": labels},
        "records": {"images": np.zeros((8, 4, 4), [("a", "u1")]), "labels": labels},
        "nan": {"images": np.full((8, 4, 4), np.nan), "labels": labels},
        "inf": {"images": np.full((8, 4, 4), np.inf), "labels": labels},
        "no height": {"images": np.zeros((8, 0, 4), np.uint8), "labels": labels},
        "five axes": {"images": np.zeros((8, 1, 1, 1, 1), np.uint8), "labels": labels},
        "one class": {"images": images, "labels": labels * 0},
        "nameless": {"": images},
    }.items():
        np.savez(folder / "x.npz", **arrays)
        yield name, folder / "x.npz"


@kind(NAMED, place)
def npz_bombs(folder: Path) -> Variants:
    np.savez_compressed(
        folder / "x.npz", images=np.zeros((300, 1000, 1000), np.uint8), labels=np.arange(300) % 2
    )
    yield "zeros", folder / "x.npz"


# --- code in data


class Evil:
    """Pickled, it runs a command when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.folder / 'pwned'}",)


@kind(NAMED, cifar)
def pickles_with_code(folder: Path) -> Variants:
    for protocol in range(6):
        yield f"protocol {protocol}", pickle.dumps({"data": Evil(folder)}, protocol)
    for module, name in (
        ("builtins", "eval"),
        ("os", "popen"),
        ("subprocess", "Popen"),
        ("numpy", "load"),
        ("numpy", "fromfile"),
        ("_codecs", "decode"),
        ("builtins", "getattr"),
        ("numpy.f2py", "run_main"),
    ):
        yield f"{module}.{name}", f"c{module}\n{name}\n(S'x'\ntR.".encode()
    whole = pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]})
    for share in (0, 0.3, 0.9):
        yield f"cut {share}", whole[: int(len(whole) * share)]
    yield "noise", rng().randbytes(300)
    yield "memo", b"g99999\n."
    yield "nested", b"(" * 10_000 + b"."


@kind(NAMED, weights)
def hostile_weights(folder: Path) -> Variants:
    import torch

    buffer = io.BytesIO()
    torch.save({"a": Evil(folder)}, buffer)
    yield "torch with code", (".pth", buffer.getvalue())
    yield "bare pickle", (".pth", pickle.dumps(Evil(folder)))
    yield "noise", (".pth", rng().randbytes(500))
    yield "a list", (".pth", torch_saved([1, 2]))
    yield "other names", (".pth", torch_saved({"x": torch.zeros(1)}))
    yield "ONNX", (".onnx", b"\x08\x07\x12\x07pytorch" + bytes(50))


def torch_saved(what: Any) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(what, buffer)
    return buffer.getvalue()


@kind(NAMED, weights)
def damaged_safetensors(folder: Path) -> Variants:
    def made(head: str | bytes, body: bytes = b"") -> bytes:
        text = head if isinstance(head, bytes) else head.encode()
        return struct.pack("<Q", len(text)) + text + body

    tensor = '{"a":{"dtype":"F32","shape":[%s],"data_offsets":[%s]}}'
    yield "empty", (".safetensors", b"")
    yield "endless head", (".safetensors", struct.pack("<Q", 2**63) + b"{}")
    yield "no tensors", (".safetensors", made("{}"))
    yield "not JSON", (".safetensors", made("{"))
    yield "nested", (".safetensors", made("[" * 100_000))
    yield "beyond", (".safetensors", made(tensor % ("4", "0,16")))
    yield "backwards", (".safetensors", made(tensor % ("4", "16,0"), bytes(16)))
    yield "overflow", (".safetensors", made(tensor % (f"{2**62},{2**62}", "0,16"), bytes(16)))
    yield (
        "unknown type",
        (".safetensors", made((tensor % ("4", "0,16")).replace("F32", "X99"), bytes(16))),
    )
    yield "bytes", (".safetensors", made(b"\xff\xfe"))
    yield "other names", (".safetensors", made(tensor % ("4", "0,16"), bytes(16)))


# --- plans


HEAD = 'backbone = "test_resnet"\nresolution = 32\n'


@kind(NAMED, plan)
def plans_with_hostile_values(folder: Path) -> Variants:
    for text in (
        "seed = 99999999999999999999",
        "seed = -1",
        "seed = " + "9" * 10_000,
        "seed = nan",
        'seed = "x"',
        "resolution = 1e9",
        "resolution = 0x7fffffffffffffff",
        'head = "dense 99999999999"',
        'head = "dense nan"',
        'head = "dropout nan"',
        'head = "dropout 1e999"',
        'head = "dense ' + "9" * 5000 + '"',
        'head = "' + "relu," * 1000 + '"',
        'head = "../../etc/passwd"',
        "head = 3",
        'backbone = ""',
        "technique = []",
        'precision = "float8"',
        "class_weights = {a = -1.0}",
        "class_weights = {a = nan}",
        "class_weights = {a = inf}",
        'backbone = "' + "x" * 5000 + '"',
        'technique = "' + "x" * 5000 + '"',
        "until = [[]]",
        'until = "' + "x" * 3 + '\\u0000"\nseed = -1',
    ):
        base = "".join(
            line + "\n" for line in HEAD.splitlines() if line.split(" ")[0] != text.split(" ")[0]
        )
        yield text[:40], f"{base}{text}\n[[phases]]\n"
    for text in (
        "lr = nan",
        "lr = inf",
        "lr = -1",
        "lr = 1e400",
        "epochs = 99999999999",
        "batch_size = 0",
        "l2 = []",
        "l2 = [nan]",
        "l2 = [0.0]",
        "momentum = 2",
        "mixup = inf",
        "patience = 10000000000000",
        "views = 1000000",
        'optimizer = "os.system"',
        "l2 = [" + "1.0," * 5000 + "]",
    ):
        yield text[:40], f"{HEAD}[[phases]]\n{text}\n"


@kind(NAMED, plan)
def plans_of_other_forms(folder: Path) -> Variants:
    yield "empty", ""
    yield "nested", "a = " + "[" * 100_000
    yield "nested tables", "a = " + "{a = " * 5_000
    yield "dotted", HEAD + "a" + ".a" * 5_000 + " = 1\n[[phases]]\n"
    yield "bytes", b"\xff\xfe\x00"
    yield "NUL", HEAD + "a = '\0'"
    yield (
        "unknown keys",
        HEAD + "".join(f"key{number} = 1\n" for number in range(3000)) + "[[phases]]\n",
    )
    yield "unknown key of a phase", HEAD + "[[phases]]\nlearning_rate = 1\n"
    yield "JSON", '{"backbone": "x"}'
    yield "YAML", "backbone: x\n"
    yield "no phases", HEAD
    yield "phases of another kind", HEAD + "phases = 3\n"
    yield "a thousand phases", HEAD + "[[phases]]\n" * 1000
    yield "key twice", HEAD + HEAD
    yield "dunder", HEAD + "__class__ = 1\n[[phases]]\n"
    yield "digits", HEAD + "x = " + "1" * 5000
    yield "noise", rng().randbytes(500)


@kind(EITHER, plan)
def plans_with_odd_names(folder: Path) -> Variants:
    for name in (
        "../../etc/passwd",
        "/etc/passwd",
        "hf-hub:evil/model",
        "local-dir:/tmp",
        "a\\u0000b",
        "\\u202e",
        "<script>",
        "'; drop table",
        "$(reboot)",
        "\\u001b[31m",
    ):
        for key in ("backbone", "technique", "weights", "until"):
            base = HEAD if key != "backbone" else "resolution = 32\n"
            yield f"{key} {name}", f'{base}{key} = "{name}"\n[[phases]]\n'


@kind(EITHER, change)
def changes_on_the_command_line(folder: Path) -> Variants:
    for text in (
        "",
        "=",
        "a",
        "phases.0.lr=nan",
        "phases.99.lr=1",
        "phases.-1.lr=1",
        "phases.0=" + "[" * 50_000,
        "seed=" + "9" * 5000,
        "seed.x.y=1",
        "phases.x=1",
        "..=1",
        "a" + ".a" * 5000 + "=1",
        "\0=\0",
        "head=dense 1e9",
        "technique=\x1b[31m",
    ):
        yield text[:30], text


# --- runs


def run_of(folder: Path, name: str, content: bytes | str, sealed: bool = False) -> Path:
    """Return a copy of a finished run with one file replaced; without its seal, so that what is behind it is reached."""
    top = folder / "run"
    shutil.copytree(TEMPLATE, top)
    scores = json.loads((top / "scores.json").read_text())
    if not sealed:
        scores.pop("files")
        (top / "scores.json").write_text(json.dumps(scores))
    (top / name).unlink(missing_ok=True)
    (top / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return top


TEMPLATE: Path | None = None  # made before the processes are


def template(folder: Path) -> Path:
    """Return a small finished run, made once."""
    from regraft.commands.fit import fit
    from regraft.options import Options, PlanOverrides, RunDir

    top = folder / "runs" / "small"
    images = np.random.default_rng(0).integers(0, 255, (30, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "t.npz", images=images, labels=np.arange(30) % 2)
    overrides = PlanOverrides(backbone="test_resnet", weights="random", resolution=32)
    fit(folder / "t.npz", "linear-probe", overrides, Options(run_dir=RunDir(top)))
    return top


@kind(NAMED, finished)
def altered_runs(folder: Path) -> Variants:
    for name in (
        "plan.toml",
        "classes.json",
        "model.safetensors",
        "predictions.npz",
        "history.csv",
        "split.csv",
        "freeze.json",
    ):
        yield name, run_of(folder, name, b"altered", sealed=True)


@kind(NAMED, finished)
def hostile_runs(folder: Path) -> Variants:
    for name, contents in {
        "scores.json": ("", "[]", "3", "null", "{", "[" * 100_000, "\xff"),
        "classes.json": ("", "{}", "3", '"ab"', "[1, 2]", "[]", "[" * 100_000),
        "plan.toml": ("", "seed = nan", "\0"),
        "test.json": ("", "[]", "3"),
        "history.csv": ("a,b\nx,y\n", "a\n" + "1" * 200_000 + "x\n"),
        "predictions.npz": ("", "PK", "\x80\x04N."),
        "model.safetensors": ("", "\xff" * 100, "\x02" + "\0" * 7 + "{}"),
    }.items():
        for content in contents:
            yield f"{name} {content[:10]!r}", run_of(folder, name, content)


# --- names


@kind(DECODED, names)
def class_names(folder: Path) -> Variants:
    for pair in (
        ("a\nb", "c"),
        ("🙂", "👩‍👩‍👧"),
        ("\u202ecat", "\u200fdog"),
        ("<script>alert(1)</script>", "<img src=x onerror=alert(1)>"),
        ("=1+1", "@SUM(A1)"),
        ("+1", "-1"),
        ("\x1b[31mred", "\x07bell"),
        ("Cat", "cat"),
        ("CAT", "Cat"),
        ('a"b', "a'b"),
        ("a,b", "a;b"),
        ("{{ 7*7 }}", "{% raw %}"),
        ("$x_$", "\\alpha"),
        ("a&amp;b", "a&b"),
        ("\x9b31m", "\x85"),
        ("\u2028", "\u2066x"),
        (" a", "a "),
        ("con", "nul"),
        ("é", "e\u0301"),
        ("x" * 200, "y" * 200),
    ):
        yield repr(pair[0][:20]), list(pair)


@kind(DECODED, names)
def many_class_names(folder: Path) -> Variants:
    yield "1,000", [f"class <{number}>" for number in range(1000)]


# --- trying


def tried(of: Kind, short: bool, root: Path) -> Found:
    """Return what becomes of the variants of a kind: every one, or the first two."""
    from regraft.errors import UserError

    found, folder = Found(of.name), root / "there" / "inner"
    known = (
        (UserError, OSError, ValueError, SyntaxError, EOFError)
        if of.reads is streamed
        else (UserError,)
    )
    folder.mkdir(parents=True)
    signal.signal(signal.SIGALRM, _hung)
    for name, given in of.variants(folder):
        begun, became, said = time.perf_counter(), DECODED, ""
        signal.alarm(of.seconds)
        try:
            of.reads(folder, given)
        except known as error:
            became, said = NAMED, str(error)
        except BaseException as error:
            became, said = "traceback", f"{type(error).__name__}: {error}"
            if VERBOSE:
                traceback.print_exc()
        signal.alarm(0)
        took = time.perf_counter() - begun
        found.variants += 1
        found.slowest = max(found.slowest, took)
        found.decoded += became == DECODED
        found.named += became == NAMED
        found.tracebacks += became == "traceback"
        if (
            became == "traceback"
            or (of.becomes != EITHER and became != of.becomes)
            or len(said) > 5000
        ):
            found.faults.append(
                f"{of.name}, {name}: {became}, expected {of.becomes}, in {took:.1f} s: {said[:400]}"
            )
        shutil.rmtree(root / "there")
        folder.mkdir(parents=True)
        if short and found.variants == 2:
            break
    found.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    if found.peak > MEGABYTES:
        found.faults.append(f"{of.name}: {found.peak:,} MB")
    return found


class Hung(BaseException):
    """A variant took longer than it may."""


def _hung(number: int, frame: object) -> None:
    raise Hung("longer than it may take")


def _child(name: str, short: bool, pipe: Connection) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        pipe.send(tried(KINDS[name], short, Path(scratch)))


def every(short: bool = False, chosen: Sequence[str] = ()) -> Iterator[Found]:
    """Yield what becomes of each kind, tried in a process of its own; one that dies is a fault."""
    global TEMPLATE
    here = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)  # nothing is written into the checkout
        os.environ["REGRAFT_CACHE"] = str(Path(scratch) / "home")
        TEMPLATE = (
            template(Path(scratch))
            if not chosen or any(KINDS[name].reads is finished for name in chosen)
            else None
        )
        for name in chosen or KINDS:
            mine, other = here.Pipe(duplex=False)
            child = here.Process(target=_child, args=(name, short, other))
            child.start()
            other.close()
            try:
                found = mine.recv()
            except EOFError:
                found = Found(name, faults=[f"{name}: the process died"])
            child.join()
            yield found


def main() -> int:
    """Print the table; return 1 where something became of a variant that is not documented."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", choices=[[], *KINDS], help="only these")
    parser.add_argument("--short", action="store_true", help="two variants of each kind")
    given = parser.parse_args()
    row = "{:34} {:>8} {:>8} {:>6} {:>10} {:>9} {:>8}"
    print(row.format("kind", "variants", "decoded", "named", "tracebacks", "slowest s", "peak MB"))
    total, faults = Found("all"), []
    for found in every(given.short, given.kinds):
        print(
            row.format(
                found.kind,
                found.variants,
                found.decoded,
                found.named,
                found.tracebacks,
                f"{found.slowest:.2f}",
                f"{found.peak:,}",
            ),
            flush=True,
        )
        for name in ("variants", "decoded", "named", "tracebacks"):
            setattr(total, name, getattr(total, name) + getattr(found, name))
        total.slowest, total.peak = max(total.slowest, found.slowest), max(total.peak, found.peak)
        faults += found.faults
    print(
        row.format(
            f"{len(given.kinds or KINDS)} kinds",
            total.variants,
            total.decoded,
            total.named,
            total.tracebacks,
            f"{total.slowest:.2f}",
            f"{total.peak:,}",
        )
    )
    print(*faults, f"{len(faults)} otherwise than documented", sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
