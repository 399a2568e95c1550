"""Threads that read and decode images while the network works on the ones before them.

Refuses to hold more than a few batches, and to stop at an image that cannot be read.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regraft.data.decode import decode_image, explain_failure
from regraft.data.stream import StreamItem
from regraft.system.hardware import count_cores

Pixels = NDArray[np.uint8]

_CHUNK = 16  # images that a thread takes at once
_BATCHES_AHEAD = 2
_MAX_THREADS = 16


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image in the size in which it is stored, or why it cannot be read.

    Args:
        name: What the image is called.
        pixels: `(h, w, 3)` uint8, or None.
        error: Why there are no pixels, or None.
    """

    name: str
    pixels: Pixels | None
    error: str | None = None


def decode_batches(
    images: Iterable[StreamItem], size: int, store: Callable[[Pixels], Pixels]
) -> Iterator[list[DecodedImage]]:
    """Yield the images in their order, `size` at a time, also those that cannot be read.

    Args:
        images: Names, and functions that read the bytes.
        size: Images of a batch; the last one may be smaller.
        store: Resizes a decoded image `(h, w, 3)` uint8 to the size in which it is stored.
    """
    ready: list[DecodedImage] = []
    with closing(_decode_chunks(images, size, store)) as chunks:
        for chunk in chunks:
            ready += chunk
            while len(ready) >= size:
                yield ready[:size]
                ready = ready[size:]
    if ready:
        yield ready


def decode_one(image: StreamItem, store: Callable[[Pixels], Pixels]) -> DecodedImage:
    """Return one image decoded and resized by `store`, or why it cannot be read."""
    try:
        return DecodedImage(image.name, store(decode_image(image.read())))
    except Exception as error:  # decoders raise anything, and one file must not end a long job
        return DecodedImage(image.name, None, explain_failure(error))


def _decode_chunks(
    images: Iterable[StreamItem], size: int, store: Callable[[Pixels], Pixels]
) -> Generator[list[DecodedImage]]:
    """Yield decoded chunks in order, while threads work on those after them."""

    def decode_chunk(chunk: list[StreamItem]) -> list[DecodedImage]:
        return [decode_one(image, store) for image in chunk]

    threads = max(2, min(_MAX_THREADS, count_cores()))
    max_waiting = threads + _BATCHES_AHEAD * size // _CHUNK
    rest = iter(images)
    waiting: deque[Future[list[DecodedImage]]] = deque()
    pool = ThreadPoolExecutor(threads, "decode")
    try:
        while True:
            while len(waiting) < max_waiting:
                chunk = list(itertools.islice(rest, _CHUNK))
                if not chunk:
                    break
                waiting.append(pool.submit(decode_chunk, chunk))
            if not waiting:
                break
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
