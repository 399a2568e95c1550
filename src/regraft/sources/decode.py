"""Encoded image files as RGB arrays: EXIF rotation, palettes, transparency, greyscale, CMYK and 16 bit are honoured.

Refuses to guess: what cannot be decoded whole is named with its reason.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from regraft.data import Rows, Unreadable, content_hash

_LARGEST = 178_956_970  # pixels; where Pillow itself refuses, beyond which a file is taken for an attack
_WORKERS = 4
_AT_ONCE = 64  # images of one piece of work
_EXIF_ORIENTATION = 0x0112
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
    known: dict[int, tuple[int, int]] = field(default_factory=dict, repr=False, compare=False)  # sizes
    hashed: dict[int, str] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.rows)

    def hashes(self) -> NDArray[np.str_]:
        return np.array(self._once(np.arange(len(self)), content_hash, self.hashed), dtype=np.str_)

    def sizes(self, rows: Rows) -> NDArray[np.int64]:
        return np.array(self._once(rows, size, self.known), dtype=np.int64).reshape(-1, 2)

    def read(self, rows: Rows) -> list[NDArray[np.uint8]]:
        return self._each(rows, decoded)

    def take(self, rows: Rows) -> EncodedImages:
        return EncodedImages(self.names, self.load, self.rows[rows], self.known, self.hashed)

    def _once(self, rows: Rows, work: Callable[[bytes], Result], known: dict[int, Result]) -> list[Result]:
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
                faults[row] = f"{self.names[number]} ({why(error)})"
                return None

        pieces = [rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE)]
        with ThreadPoolExecutor(_WORKERS) as pool:
            done = [result for piece in pool.map(lambda piece: [one(int(row)) for row in piece], pieces) for result in piece]
        if faults:
            bad = sorted(faults)
            raise Unreadable(bad, [faults[row] for row in bad])
        return done  # type: ignore[return-value]


def decoded(content: bytes) -> NDArray[np.uint8]:
    """Return an image file's pixels, `(h, w, 3)` uint8 RGB: the first frame, upright, on white where it is transparent.

    Raises:
        OSError, ValueError, SyntaxError: When the bytes are no whole image; says why.
    """
    with _opened(content) as image:
        image.load()
        if _may_be_rotated(image, content):
            ImageOps.exif_transpose(image, in_place=True)
        return _rgb(image)


def size(content: bytes) -> tuple[int, int]:
    """Return height and width of an image file as it will be decoded, reading its header only."""
    with _opened(content) as image:
        width, height = image.size
        if _may_be_rotated(image, content) and image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8):
            width, height = height, width
        return height, width


def _may_be_rotated(image: Image.Image, content: bytes) -> bool:
    """Whether Pillow has to be asked; of a PNG it would decode everything to find out."""
    return image.format != "PNG" or b"eXIf" in content or b"exif" in content


def _opened(content: bytes) -> Image.Image:
    if not content:
        raise ValueError("the file is empty")
    try:
        image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        raise ValueError(f"not an image{_but(content)}") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"more pixels than the {_LARGEST:,} allowed") from error
    if image.size[0] * image.size[1] > _LARGEST:
        raise ValueError(f"{image.size[0]:,} × {image.size[1]:,} pixels are more than the {_LARGEST:,} allowed")
    return image


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        peak = 65535.0 if image.mode.startswith("I") and values.max(initial=0) > 255 else 255.0
        if image.mode == "F" and values.max(initial=0) <= 1:
            peak = 1.0
        grey = np.clip(values / peak * 255, 0, 255).round().astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        clear = image.convert("RGBA")
        canvas = Image.new("RGBA", clear.size, (255, 255, 255, 255))
        image = Image.alpha_composite(canvas, clear)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))  # a copy that may be written to, as torch wants it


def why(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def _but(content: bytes) -> str:
    """Return what a file that is no image seems to be; drawings and web pages often carry an image's name."""
    start = content[:1024].lower()
    known = {b"<svg": "an SVG drawing", b"<html": "a web page", b"<!doctype html": "a web page", b"%pdf": "a PDF"}
    return next((f" but {what}" for sign, what in known.items() if sign in start), "")
