"""Images that occur twice: byte for byte, or so alike that a network cannot tell them apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from regraft.data.dataset import PARTS, Dataset, Split
from regraft.system.progress import SILENT, ProgressReporter

SAME = 0.975  # cosine of thumbnails from which on two images are called near duplicates
ALIKE = 0.9  # the same of centred features
_SIDE = 16  # pixels of a thumbnail
_BLOCK = 2000  # images compared at once
_SIEVE = 0.02  # by which bfloat16 may be off


def exact_duplicates(hashes: NDArray[np.str_]) -> list[list[int]]:
    """Return the groups of rows, two or more, whose images are the same byte for byte, in the order of their first rows."""
    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    groups: dict[int, list[int]] = {}
    for row in np.flatnonzero(counts[inverse] > 1).tolist():
        groups.setdefault(int(inverse[row]), []).append(row)
    return sorted(groups.values())


def count_leaks(data: Dataset, split: Split) -> int:
    """Return how many images of val and test are, byte for byte, also in a part in front of theirs (train, val)."""
    known: set[str] = set()
    found = 0
    for part in PARTS:
        mine = data.hashes[split[part]].tolist()
        found += sum(one in known for one in mine)
        known.update(mine)
    return found


def near_duplicates(
    pixels: Sequence[NDArray[np.uint8]],
    features: NDArray[np.floating[Any]],
    hashes: NDArray[np.str_],
    watcher: ProgressReporter = SILENT,
) -> list[dict[str, Any]]:
    """Return the pairs of images that are not the same but look the same, the most alike first.

    They look the same where their thumbnails agree (saved again, resized, brightened), where one's agrees with the other's mirror image, or where a
    network cannot tell them apart (cropped a little, tinted). The thresholds are those at which `benchmarks/checks.py` finds what was planted and
    little else.

    Args:
        pixels: All images in their order, in arrays `(n, h, w, 3)` that may differ in size.
        features: Of the end of a network, `(n, d)`; they are centred, and compared by their cosine.
        hashes: Content hash of each image; pairs of equal ones are left to `exact`.
        watcher: Hears how far it is.

    Returns:
        Rows `rows` (two, the smaller first), `cosine` and `by`: "pixels", "mirrored" or "features".
    """
    small = _thumbnails(pixels)
    deep = torch.from_numpy(np.asarray(features, dtype=np.float32))
    deep = functional.normalize(deep - deep.mean(dim=0), dim=1)
    looks = {
        "pixels": (_vectors(small), _vectors(small), SAME),
        "mirrored": (_vectors(small), _vectors(small.flip(3)), SAME),
        "features": (deep, deep, ALIKE),
    }
    found: dict[tuple[int, int], tuple[float, str]] = {}
    for by, (mine, theirs, alike) in looks.items():
        for a, b, cosine in _pairs(mine, theirs, alike, by, watcher):
            if hashes[a] != hashes[b]:
                found.setdefault((a, b), (cosine, by))
    ordered = sorted(found.items(), key=lambda one: (-one[1][0], one[0]))
    return [{"rows": list(rows), "cosine": cosine, "by": by} for rows, (cosine, by) in ordered]


def _thumbnails(pixels: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Return every image as `(3, 16, 16)`."""
    blocks = [
        np.array(part[start : start + _BLOCK])
        for part in pixels
        for start in range(0, len(part), _BLOCK)
    ]
    return torch.cat(
        [
            functional.adaptive_avg_pool2d(
                torch.from_numpy(block).permute(0, 3, 1, 2).float(), _SIDE
            )
            for block in blocks
        ]
    )


def _vectors(small: Tensor) -> Tensor:
    """Return thumbnails as vectors of length 1, brightness and contrast taken out; what is one colour throughout is like nothing."""
    flat = small.flatten(1)
    flat = flat - flat.mean(dim=1, keepdim=True)
    return torch.where(flat.norm(dim=1, keepdim=True) > 1, functional.normalize(flat, dim=1), 0)


def _pairs(
    mine: Tensor, theirs: Tensor, alike: float, what: str, watcher: ProgressReporter
) -> Iterator[tuple[int, int, float]]:
    """Yield pairs of rows, the smaller first, whose cosine is at least `alike`."""
    rough = (
        (mine.to(torch.bfloat16), theirs.to(torch.bfloat16))
        if len(mine) > _BLOCK
        else (mine, theirs)
    )  # a sieve; what passes is looked at again
    for start in range(0, len(mine), _BLOCK):
        close = (rough[0][start : start + _BLOCK] @ rough[1][start:].T).float().triu(
            1
        ) > alike - _SIEVE
        first, second = torch.nonzero(close, as_tuple=True)
        cosine = (mine[start + first] * theirs[start + second]).sum(dim=1)
        yield from (
            (start + int(a), start + int(b), float(c))
            for a, b, c in zip(first, second, cosine, strict=True)
            if c >= alike
        )
        watcher.step(f"compare {what}", min(start + _BLOCK, len(mine)), len(mine))
