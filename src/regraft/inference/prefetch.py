"""Images read, decoded and made ready by threads while the network works on those before them.

Refuses to hold more than a few batches, and to stop at an image that cannot be read.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regraft.data.decode import decode_image, explain_failure
from regraft.data.stream import StreamItem
from regraft.models.transforms import resize_center_crop, storage_size
from regraft.system.hardware import count_cores

_PIECE = 16  # images that a thread takes at once
_BATCHES_AHEAD = 2
_MOST_THREADS = 16


@dataclass(frozen=True)
class DecodedImage:
    """An image as `views.see` takes it, `(h, w, 3)` uint8, or why there is none."""

    name: str
    pixels: NDArray[np.uint8] | None
    error: str | None = None


def decode_batches(
    found: Iterable[StreamItem], size: int, resolution: int, interpolation: str
) -> Iterator[list[DecodedImage]]:
    """Yield the images in their order, `size` at a time, those that cannot be read among them.

    Args:
        found: Names and readers.
        size: Images a batch; the last one may be smaller.
        resolution: Side in pixels of what the network sees.
        interpolation: "bilinear" or "bicubic".
    """
    threads = max(2, min(_MOST_THREADS, count_cores()))
    most = threads + _BATCHES_AHEAD * size // _PIECE
    rest = iter(found)
    waiting: deque[Future[list[DecodedImage]]] = deque()
    ready: list[DecodedImage] = []
    pool = ThreadPoolExecutor(threads, "decode")
    try:
        while True:
            while len(waiting) < most and (piece := list(itertools.islice(rest, _PIECE))):
                waiting.append(
                    pool.submit(
                        lambda piece: [
                            decode_one(each, resolution, interpolation) for each in piece
                        ],
                        piece,
                    )
                )
            if not waiting:
                break
            ready += waiting.popleft().result()
            while len(ready) >= size:
                yield ready[:size]
                ready = ready[size:]
        if ready:
            yield ready
    finally:
        pool.shutdown(cancel_futures=True)


def decode_one(found: StreamItem, resolution: int, interpolation: str) -> DecodedImage:
    """Return one image ready for `views.see`, or why it cannot be read."""
    try:
        pixels = decode_image(found.read())
        return DecodedImage(
            found.name,
            resize_center_crop(pixels, storage_size(pixels.shape[:2], resolution), interpolation),
        )
    except Exception as error:  # decoders of broken files raise whatever they meet, and one file must not end a long job
        return DecodedImage(found.name, None, explain_failure(error))
