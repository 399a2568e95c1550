"""Where the pixels of a dataset come from: the protocol, and images held in memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from regraft.errors import UserError, join_truncated

Rows = NDArray[np.int64]
Names = NDArray[np.str_]


class Images(Protocol):
    """Where the pixels of a dataset come from; row numbers are those of the table."""

    def __len__(self) -> int: ...

    def hashes(self) -> Names:
        """Return a content hash of each image as stored, shape `(n,)`."""
        ...

    def sizes(self, rows: Rows) -> NDArray[np.int64]:
        """Return height and width of each of `rows` as they will be decoded, `(len(rows), 2)`."""
        ...

    def read(self, rows: Rows) -> list[NDArray[np.uint8]]:
        """Return the decoded images, each `(h, w, 3)` uint8 RGB.

        Raises:
            Unreadable: When some cannot be decoded; names every one of them.
        """
        ...

    def take(self, rows: Rows) -> Images:
        """Return the same images restricted to and ordered by `rows`."""
        ...


class Unreadable(UserError):
    """Some files cannot be decoded; says which and why.

    Args:
        rows: Their positions.
        reasons: What is wrong with each.
    """

    def __init__(self, rows: list[int], reasons: list[str]) -> None:
        self.rows = rows
        self.reasons = reasons
        count = f"{len(rows):,} image{'s' if len(rows) > 1 else ''}"
        super().__init__(
            f"{count} cannot be decoded: {join_truncated(reasons)}. Expected whole JPEG, PNG, "
            "WebP, BMP, TIFF or GIF files. Repair or remove them; --skip-bad goes on without them."
        )


@dataclass(frozen=True)
class ArrayImages:
    """Images of one size, held in memory as uint8 `(n, h, w, 3)`."""

    array: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.array)

    def hashes(self) -> Names:
        # the same bytes in another shape are another image; square ones keep the hashes of 0.1
        height, width = self.array.shape[1:3]
        form = b"" if height == width else f"{height} x {width} ".encode()
        hashes = [hash_content(form + image.tobytes()) for image in self.array]
        return np.array(hashes, dtype=np.str_)

    def sizes(self, rows: Rows) -> NDArray[np.int64]:
        return np.tile(np.array(self.array.shape[1:3], dtype=np.int64), (len(rows), 1))

    def read(self, rows: Rows) -> list[NDArray[np.uint8]]:
        return list(self.array[rows])

    def take(self, rows: Rows) -> ArrayImages:
        return ArrayImages(self.array[rows])


def hash_content(content: bytes) -> str:
    """Return the hash by which equal bytes are recognised: 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()
