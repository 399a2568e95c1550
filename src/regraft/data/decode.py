"""Encoded image files as RGB arrays, upright and on white where they are transparent.

Honoured are EXIF rotation, palettes, transparency, greyscale, CMYK and 16 bit. What cannot be
decoded whole is named with its reason.
"""

from __future__ import annotations

import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from regraft.data.images import Rows, Unreadable, hash_content
from regraft.system.hardware import trim_allocator

FORMATS = (  # none that runs a program or fetches a file
    "JPEG",
    "PNG",
    "WEBP",
    "BMP",
    "TIFF",
    "GIF",
    "PPM",
    "JPEG2000",
    "AVIF",
)
LARGEST_FILE = 2**30  # bytes of one encoded image; beyond that it is taken for an attack
POINTER = b"version https://git-lfs"
_MOST_PIXELS = 178_956_970  # where Pillow itself refuses, and takes a file for an attack
_LARGE = 2**24  # pixels from which on images are decoded one after the other, to save memory
_STRIP = 2**22  # pixels that are converted at a time
_WORKERS = 4  # threads that decode
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
_SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange height and width
_KNOWN_STARTS = {  # of files that often carry an image's name
    b"<svg": "an SVG drawing",
    b"<html": "a web page",
    b"<!doctype html": "a web page",
    b"%pdf": "a PDF",
    POINTER: "a Git-LFS pointer; `git lfs pull` fetches the file",
}
_PILLOW = r"PIL\."
_one_large = threading.Lock()
Result = TypeVar("Result")


@dataclass(frozen=True)
class EncodedImages:
    """Images as the bytes of their files, decoded when they are read.

    Args:
        names: What each is called in messages.
        load: Returns the bytes of one.
        rows: Which of them, in which order.
        workers: Threads that decode.
        known: Height and width of images whose header was read, by their number.
        hashed: Content hashes that were computed, by their number.
    """

    names: Sequence[str]
    load: Callable[[int], bytes]
    rows: Rows
    # `take` hands these on, so that nothing is read twice
    known: dict[int, tuple[int, int]] = field(default_factory=dict, repr=False, compare=False)
    hashed: dict[int, str] = field(default_factory=dict, repr=False, compare=False)
    workers: int = _WORKERS

    def __len__(self) -> int:
        return len(self.rows)

    def hashes(self) -> NDArray[np.str_]:
        """Return a content hash of each file, `(n,)`.

        A file that cannot be read has the hash of its name; it is reported when it is decoded.
        """
        every = np.arange(len(self))
        try:
            hashes = self._compute_once(every, hash_content, self.hashed)
        except Unreadable as error:
            for number in map(int, self.rows[error.rows]):
                self.hashed[number] = hash_content(self.names[number].encode())
            hashes = self._compute_once(every, hash_content, self.hashed)
        return np.array(hashes, dtype=np.str_)

    def sizes(self, rows: Rows) -> NDArray[np.int64]:
        sizes = self._compute_once(rows, image_size, self.known)
        return np.array(sizes, dtype=np.int64).reshape(-1, 2)

    def read(self, rows: Rows) -> list[NDArray[np.uint8]]:
        return self._compute(rows, decode_image)

    def take(self, rows: Rows) -> EncodedImages:
        return replace(self, rows=self.rows[rows])

    def _compute_once(
        self, rows: Rows, work: Callable[[bytes], Result], known: dict[int, Result]
    ) -> list[Result]:
        """Return `work` of each row, computed for those only that are not known yet."""
        numbers = self.rows[rows].tolist()
        new = rows[[number not in known for number in numbers]]
        results = self._compute(new, work)
        known.update(zip(self.rows[new].tolist(), results, strict=True))
        return [known[number] for number in numbers]

    def _compute(self, rows: Rows, work: Callable[[bytes], Result]) -> list[Result]:
        """Return `work` of the bytes of each row, in order.

        Raises:
            Unreadable: With all rows that failed.
        """
        faults: dict[int, str] = {}
        rows = np.asarray(rows, dtype=np.int64)
        pieces = [rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE)]
        results: list[Result] = []
        with ThreadPoolExecutor(self.workers) as pool:
            for piece in pool.map(lambda piece: self._try_all(piece, work, faults), pieces):
                results += piece
        if faults:
            failed = sorted(faults)
            raise Unreadable(failed, [faults[row] for row in failed])
        return results

    def _try_all(
        self, rows: Rows, work: Callable[[bytes], Result], faults: dict[int, str]
    ) -> list[Result]:
        """Return `work` of the rows where it does not fail; adds the others to `faults`."""
        results = []
        for row in rows.tolist():
            number = int(self.rows[row])
            try:
                results.append(work(self.load(number)))
            except FileNotFoundError:
                faults[row] = f"{self.names[number]} (the file does not exist any more)"
            except (OSError, ValueError, SyntaxError, EOFError) as error:
                faults[row] = f"{self.names[number]} ({explain_failure(error)})"
        return results


def read_bytes(path: str | Path) -> bytes:
    """Return a file's bytes.

    Raises:
        OSError: When it cannot be read.
        ValueError: When it is no regular file (a pipe or a device never ends), or larger than 1 GB.
    """
    status = os.stat(path)  # noqa: PTH116  a million of them
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    if status.st_size > LARGEST_FILE:
        raise ValueError(f"the file is larger than the {LARGEST_FILE / 1e6:,.0f} MB allowed")
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        return file.read()


def decode_image(content: bytes, *, strip: int = _STRIP) -> NDArray[np.uint8]:
    """Return an image file's pixels, `(h, w, 3)` uint8 RGB.

    It is the first frame, upright, on white where it is transparent.

    Args:
        content: The bytes of the file.
        strip: Pixels that are converted at a time.

    Raises:
        OSError, ValueError, SyntaxError: When the bytes are no whole image; says why.
    """
    height, width = image_size(content)
    if height * width <= _LARGE:
        return _decode(content, strip)
    with _one_large:
        try:
            return _decode(content, strip)
        finally:
            trim_allocator()


def image_size(content: bytes) -> tuple[int, int]:
    """Return height and width of an image as it will be decoded, reading its header only."""
    with _explaining(), _open(content) as image:
        width, height = image.size
        is_tiff = image.format == "TIFF"  # of which Pillow gives the size as it will be
        if not is_tiff and _orientation(image, content) in _SIDEWAYS:
            return width, height
        return height, width


def explain_failure(error: BaseException) -> str:
    """Return the first line of an error's text, or its kind where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _decode(content: bytes, strip: int) -> NDArray[np.uint8]:
    with _explaining(), _open(content) as image:
        image.load()
        turn = _TURNS.get(_orientation(image, content))
        if turn is not None:
            return _to_rgb(image.transpose(turn), strip)
        return _to_rgb(image, strip)


@contextmanager
def _explaining() -> Iterator[None]:
    """Turn whatever a decoder raises for a broken file into a `ValueError` with the reason."""
    try:
        yield
    except (OSError, ValueError, SyntaxError, EOFError):
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise ValueError(
            f"more pixels than the {_MOST_PIXELS:,} allowed, or than there is memory for"
        ) from error
    except Exception as error:  # decoders raise many kinds for broken files
        raise ValueError(f"damaged ({type(error).__name__}: {explain_failure(error)})") from error


def _ignore_pillow_warnings() -> None:
    """Hide what Pillow thinks of a file: our messages say what matters.

    Filters are the process's, and a context for each image would not be safe among threads.
    """
    has_filter = any(_is_pillow_filter(entry[3]) for entry in warnings.filters)
    if not has_filter:
        warnings.filterwarnings("ignore", module=_PILLOW)


def _is_pillow_filter(module: re.Pattern[str] | str | None) -> bool:
    return isinstance(module, re.Pattern) and module.pattern == _PILLOW


def _orientation(image: Image.Image, content: bytes) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where EXIF is missing or broken."""
    if image.format == "PNG" and b"eXIf" not in content and b"exif" not in content:
        return 1  # Pillow would decode everything to find out
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # broken EXIF does not make an image unreadable
        return 1


def _open(content: bytes) -> Image.Image:
    if not content:
        raise ValueError("the file is empty")
    _ignore_pillow_warnings()
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"not an image{_describe(content)}") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"more pixels than the {_MOST_PIXELS:,} allowed") from error
    width, height = image.size
    if width * height > _MOST_PIXELS:
        raise ValueError(
            f"{width:,} × {height:,} pixels are more than the {_MOST_PIXELS:,} allowed"
        )
    return image


def _describe(content: bytes) -> str:
    """Return what a file that is no image seems to be, as in "not an image but a PDF"."""
    start = content[:1024].lower()
    for sign, kind in _KNOWN_STARTS.items():
        if sign in start:
            return f" but {kind}"
    return ""


def _to_rgb(image: Image.Image, strip: int) -> NDArray[np.uint8]:
    """Return pixels `(h, w, 3)`, converted strip by strip.

    Otherwise a large image would be held several times.
    """
    width, height = image.size
    rows = max(1, strip // max(1, width))
    tops = range(0, height, rows)
    peak = 0.0
    if image.mode.startswith("I") or image.mode == "F":
        peak = _find_peak(image, rows)
    if len(tops) == 1:
        pieces: Iterator[Image.Image] = iter([image])
    else:
        pieces = _cut_strips(image, rows)
    pixels = np.empty((height, width, 3), np.uint8)
    for top, piece in zip(tops, pieces, strict=True):
        pixels[top : top + rows] = _convert(piece, peak)
    return pixels


def _cut_strips(image: Image.Image, rows: int) -> Iterator[Image.Image]:
    """Yield strips of an image, so many rows each, from the top."""
    width, height = image.size
    for top in range(0, height, rows):
        yield image.crop((0, top, width, min(height, top + rows)))


def _find_peak(image: Image.Image, rows: int) -> float:
    """Return the value that becomes white.

    That is 65,535 or 255 of whole numbers, 255 or 1 of floats, whichever the image stays below.
    """
    largest = max(_largest(piece) for piece in _cut_strips(image, rows))
    if image.mode == "F":
        return 1.0 if largest <= 1 else 255.0
    return 65535.0 if largest > 255 else 255.0


def _largest(image: Image.Image) -> float:
    return float(_to_numbers(image).max(initial=0))


def _to_numbers(image: Image.Image) -> NDArray[np.float32]:
    values = np.asarray(image).astype(np.float32)
    return np.nan_to_num(values, nan=0.0, posinf=np.inf, neginf=0.0)


def _convert(image: Image.Image, peak: float) -> NDArray[np.uint8]:
    """Return the pixels of a strip; `peak` is the value that becomes white, or 0."""
    if peak:
        scaled = np.clip(_to_numbers(image) / peak * 255, 0, 255)
        grey = scaled.round().astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        clear = image.convert("RGBA")
        canvas = Image.new("RGBA", clear.size, (255, 255, 255, 255))
        image = Image.alpha_composite(canvas, clear)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
