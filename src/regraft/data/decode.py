"""Encoded image files as RGB arrays: EXIF rotation, palettes, transparency, greyscale, CMYK and 16 bit are honoured.

Refuses to guess: what cannot be decoded whole is named with its reason.
"""

from __future__ import annotations

import io
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from regraft.data.dataset import Rows, Unreadable, content_hash
from regraft.system.hardware import trim_allocator

_LARGEST = (
    178_956_970  # pixels; where Pillow itself refuses, beyond which a file is taken for an attack
)
_WORKERS = 4
_AT_ONCE = 64  # images of one piece of work
_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STRIP = 2**22  # pixels that are converted at a time
_LARGE = (
    2**24
)  # pixels of an image from which on one is decoded after the other, so that four threads do not hold four of them
FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "BMP",
    "TIFF",
    "GIF",
    "PPM",
    "JPEG2000",
    "AVIF",
)  # none that runs a program or fetches a file
LARGEST_FILE = 2**30  # bytes of one encoded image; beyond that it is taken for an attack
POINTER = b"version https://git-lfs"
_one_large = threading.Lock()
warnings.filterwarnings(
    "ignore", module=r"PIL\."
)  # what it thinks of a file is said in our sentence, or is no matter
Result = TypeVar("Result")


@dataclass(frozen=True)
class EncodedImages:
    """Images as the bytes of their files, decoded when they are read.

    Args:
        names: What each is called in messages.
        load: Returns the bytes of one.
        rows: Which of them, in which order.
    """

    names: Sequence[str]
    load: Callable[[int], bytes]
    rows: Rows
    # what was read once is known to all that is taken from it
    known: dict[int, tuple[int, int]] = field(
        default_factory=dict, repr=False, compare=False
    )  # sizes
    hashed: dict[int, str] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.rows)

    def hashes(self) -> NDArray[np.str_]:
        """Return a content hash of each file; one that cannot be read has the hash of its name, and is named when it is decoded."""
        try:
            found = self._once(np.arange(len(self)), content_hash, self.hashed)
        except Unreadable as error:
            self.hashed.update(
                {
                    number: content_hash(self.names[number].encode())
                    for number in map(int, self.rows[error.rows])
                }
            )
            found = self._once(np.arange(len(self)), content_hash, self.hashed)
        return np.array(found, dtype=np.str_)

    def sizes(self, rows: Rows) -> NDArray[np.int64]:
        return np.array(self._once(rows, image_size, self.known), dtype=np.int64).reshape(-1, 2)

    def read(self, rows: Rows) -> list[NDArray[np.uint8]]:
        return self._each(rows, decode_image)

    def take(self, rows: Rows) -> EncodedImages:
        return EncodedImages(self.names, self.load, self.rows[rows], self.known, self.hashed)

    def _once(
        self, rows: Rows, work: Callable[[bytes], Result], known: dict[int, Result]
    ) -> list[Result]:
        """Return `work` of each row, done for those only whose answer is not known yet."""
        numbers = list(map(int, self.rows[rows]))
        new = rows[[number not in known for number in numbers]]
        known.update(zip(map(int, self.rows[new]), self._each(new, work), strict=True))
        return [known[number] for number in numbers]

    def _each(self, rows: Rows, work: Callable[[bytes], Result]) -> list[Result]:
        """Return `work` of the bytes of each row, in order; raises `Unreadable` with all that failed."""
        faults: dict[int, str] = {}

        def one(row: int) -> Result | None:
            number = int(self.rows[row])
            try:
                return work(self.load(number))
            except FileNotFoundError:
                faults[row] = f"{self.names[number]} (it is not there any more)"
                return None
            except (OSError, ValueError, SyntaxError, EOFError) as error:
                faults[row] = f"{self.names[number]} ({explain_failure(error)})"
                return None

        pieces = [rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE)]
        with ThreadPoolExecutor(_WORKERS) as pool:
            done = [
                result
                for piece in pool.map(lambda piece: [one(int(row)) for row in piece], pieces)
                for result in piece
            ]
        if faults:
            bad = sorted(faults)
            raise Unreadable(bad, [faults[row] for row in bad])
        return done  # type: ignore[return-value]


def read_bytes(path: str | Path) -> bytes:
    """Return a file's bytes; raises `OSError` or `ValueError` for what is no regular file (a pipe or a device never ends) or larger than 1 GB."""
    found = os.stat(path)  # noqa: PTH116  a million of them
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("not a regular file")
    if found.st_size > LARGEST_FILE:
        raise ValueError(f"the file is larger than the {LARGEST_FILE / 1e6:,.0f} MB allowed")
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        return file.read()


def decode_image(content: bytes) -> NDArray[np.uint8]:
    """Return an image file's pixels, `(h, w, 3)` uint8 RGB: the first frame, upright, on white where it is transparent.

    Raises:
        OSError, ValueError, SyntaxError: When the bytes are no whole image; says why.
    """
    height, width = image_size(content)
    if height * width <= _LARGE:
        return _decoded(content)
    with _one_large:
        try:
            return _decoded(content)
        finally:
            trim_allocator()


def image_size(content: bytes) -> tuple[int, int]:
    """Return height and width of an image file as it will be decoded, reading its header only."""
    with _told(), _opened(content) as image:
        width, height = image.size
        if image.format != "TIFF" and _orientation(image, content) in (
            5,
            6,
            7,
            8,
        ):  # Pillow says a TIFF's as it will be
            width, height = height, width
        return height, width


def _decoded(content: bytes) -> NDArray[np.uint8]:
    with _told(), _opened(content) as image:
        image.load()
        turn = _TURNS.get(_orientation(image, content))
        return _rgb(image if turn is None else image.transpose(turn))


@contextmanager
def _told() -> Iterator[None]:
    """Turn whatever a decoder meets in a broken file into a `ValueError` that says so."""
    try:
        yield
    except (OSError, ValueError, SyntaxError, EOFError):
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise ValueError(
            f"more pixels than the {_LARGEST:,} allowed, or than there is memory for"
        ) from error
    except Exception as error:  # decoders of broken files raise whatever they meet
        raise ValueError(f"damaged ({type(error).__name__}: {explain_failure(error)})") from error


def _orientation(image: Image.Image, content: bytes) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where EXIF is missing or broken."""
    if image.format == "PNG" and b"eXIf" not in content and b"exif" not in content:
        return 1  # Pillow would decode everything to find out
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # broken EXIF does not make an image unreadable
        return 1


def _opened(content: bytes) -> Image.Image:
    if not content:
        raise ValueError("the file is empty")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"not an image{_but(content)}") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"more pixels than the {_LARGEST:,} allowed") from error
    if image.size[0] * image.size[1] > _LARGEST:
        raise ValueError(
            f"{image.size[0]:,} × {image.size[1]:,} pixels are more than the {_LARGEST:,} allowed"
        )
    return image


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Return pixels `(h, w, 3)`, converted strip by strip, so that a large image is not held several times."""
    width, height = image.size
    rows = max(1, _STRIP // max(1, width))
    strips = [(top, min(height, top + rows)) for top in range(0, height, rows)]
    pieces = (
        [image] if len(strips) == 1 else (image.crop((0, top, width, end)) for top, end in strips)
    )
    peak = _peak(image, strips) if image.mode.startswith("I") or image.mode == "F" else 0.0
    out = np.empty((height, width, 3), np.uint8)
    for (top, end), piece in zip(strips, pieces, strict=True):
        out[top:end] = _coloured(piece, peak)
    return out


def _peak(image: Image.Image, strips: Sequence[tuple[int, int]]) -> float:
    """Return the value that becomes white: 65,535 or 255 of whole numbers, 255 or 1 of floats, whichever the image stays below."""
    largest = max(
        float(_numbers(image.crop((0, top, image.size[0], end))).max(initial=0))
        for top, end in strips
    )
    if image.mode == "F":
        return 1.0 if largest <= 1 else 255.0
    return 65535.0 if largest > 255 else 255.0


def _numbers(image: Image.Image) -> NDArray[np.float32]:
    return np.nan_to_num(np.asarray(image).astype(np.float32), nan=0.0, posinf=np.inf, neginf=0.0)


def _coloured(image: Image.Image, peak: float) -> NDArray[np.uint8]:
    if peak:
        grey = np.clip(_numbers(image) / peak * 255, 0, 255).round().astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        clear = image.convert("RGBA")
        canvas = Image.new("RGBA", clear.size, (255, 255, 255, 255))
        image = Image.alpha_composite(canvas, clear)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def explain_failure(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def _but(content: bytes) -> str:
    """Return what a file that is no image seems to be; drawings and web pages often carry an image's name."""
    start = content[:1024].lower()
    known = {
        b"<svg": "an SVG drawing",
        b"<html": "a web page",
        b"<!doctype html": "a web page",
        b"%pdf": "a PDF",
        POINTER: "a Git-LFS pointer; `git lfs pull` fetches the file",
    }
    return next((f" but {what}" for sign, what in known.items() if sign in start), "")
