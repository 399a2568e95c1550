"""Images that occur twice: byte for byte, or nearly the same to look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from regraft.data.dataset import Dataset
from regraft.data.split import PARTS, Split
from regraft.system.progress import SILENT, ProgressReporter

# cosine of thumbnails from which on two images are called near duplicates
THUMBNAIL_THRESHOLD = 0.975
FEATURE_THRESHOLD = 0.9  # the same of centred features
_SIDE = 16  # pixels of a thumbnail
_BLOCK = 2000  # images compared at once
_ROUNDING = 0.02  # the largest error of a cosine in bfloat16


@dataclass(frozen=True)
class NearDuplicate:
    """Two images that look the same.

    Args:
        rows: Of both, the smaller first.
        cosine: How similar they are, at most 1.
        by: What is similar: "pixels", "mirrored" (pixels, one mirrored) or "features".
    """

    rows: tuple[int, int]
    cosine: float
    by: str


def exact_duplicates(hashes: NDArray[np.str_]) -> list[list[int]]:
    """Return the groups of two or more rows with equal hashes, in the order of their first rows.

    Args:
        hashes: Content hash of each image, `(n,)`.
    """
    _, group_of, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(counts[group_of] > 1)
    groups: dict[int, list[int]] = {}
    for row in repeated.tolist():
        groups.setdefault(int(group_of[row]), []).append(row)
    return sorted(groups.values())


def count_leaks(data: Dataset, split: Split) -> int:
    """Return how many val images are also in train, and test images in train or val.

    Images are the same when they are equal byte for byte.
    """
    known: set[str] = set()
    count = 0
    for part in PARTS:
        hashes = data.hashes[split[part]].tolist()
        count += sum(content in known for content in hashes)
        known.update(hashes)
    return count


def find_near_duplicates(
    pixels: Sequence[NDArray[np.uint8]],
    features: NDArray[np.floating[Any]],
    hashes: NDArray[np.str_],
    reporter: ProgressReporter = SILENT,
    *,
    block: int = _BLOCK,
) -> list[NearDuplicate]:
    """Return the pairs of images that look the same but are not equal, the most similar first.

    They look the same where their thumbnails agree (saved again, resized, brightened), where a
    thumbnail agrees with the other's mirror image, or where the features of a network agree
    (cropped a little, tinted). `benchmarks/checks.py` measures what the thresholds find.

    Args:
        pixels: All images in their order, in arrays `(n, h, w, 3)` that may differ in size.
        features: Of the end of a network, `(n, d)`. They are centred and compared by cosine.
        hashes: Content hash of each image; pairs of equal ones are left to `exact`.
        reporter: Is told the progress.
        block: Images that are compared with all others at once.
    """
    matches: dict[tuple[int, int], NearDuplicate] = {}
    for comparison in _comparisons(pixels, features):
        for a, b, cosine in comparison.pairs(block, reporter):
            if hashes[a] != hashes[b]:
                matches.setdefault((a, b), NearDuplicate((a, b), cosine, comparison.name))
    return sorted(matches.values(), key=lambda match: (-match.cosine, match.rows))


@dataclass(frozen=True)
class _Comparison:
    """Unit vectors `(n, d)` to compare with others, and the cosine from which on they match."""

    name: str
    vectors: Tensor
    others: Tensor
    threshold: float

    def pairs(self, block: int, reporter: ProgressReporter) -> Iterator[tuple[int, int, float]]:
        """Yield the pairs of rows that match, the smaller first, with their cosine."""
        n = len(self.vectors)
        for start in range(0, n, block):
            first, second = self._candidates(start, block)
            cosines = (self.vectors[first] * self.others[second]).sum(dim=1)
            matches = cosines >= self.threshold
            yield from zip(
                first[matches].tolist(),
                second[matches].tolist(),
                cosines[matches].tolist(),
                strict=True,
            )
            reporter.progress(f"compare {self.name}", min(start + block, n), n)

    def _candidates(self, start: int, block: int) -> tuple[Tensor, Tensor]:
        """Return the rows of pairs in a block that may match: a fast and coarse filter."""
        vectors = self.vectors[start : start + block]
        others = self.others[start:]
        if len(self.vectors) > block:
            vectors = vectors.to(torch.bfloat16)
            others = others.to(torch.bfloat16)
        cosines = (vectors @ others.T).float()
        may_match = cosines.triu(1) > self.threshold - _ROUNDING
        first, second = torch.nonzero(may_match, as_tuple=True)
        return start + first, start + second


def _comparisons(
    pixels: Sequence[NDArray[np.uint8]], features: NDArray[np.floating[Any]]
) -> list[_Comparison]:
    thumbnails = _thumbnails(pixels)
    images = _unit_vectors(thumbnails)
    mirrored = _unit_vectors(thumbnails.flip(3))
    deep = torch.from_numpy(np.asarray(features, dtype=np.float32))
    deep = functional.normalize(deep - deep.mean(dim=0), dim=1)
    return [
        _Comparison("pixels", images, images, THUMBNAIL_THRESHOLD),
        _Comparison("mirrored", images, mirrored, THUMBNAIL_THRESHOLD),
        _Comparison("features", deep, deep, FEATURE_THRESHOLD),
    ]


def _thumbnails(pixels: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Return every image as `(3, 16, 16)`."""
    thumbnails = []
    for images in pixels:
        for start in range(0, len(images), _BLOCK):
            block = torch.from_numpy(np.array(images[start : start + _BLOCK]))
            block = block.permute(0, 3, 1, 2).float()
            thumbnails.append(functional.adaptive_avg_pool2d(block, _SIDE))
    return torch.cat(thumbnails)


def _unit_vectors(thumbnails: Tensor) -> Tensor:
    """Return thumbnails as vectors of length 1, without brightness and contrast.

    Single-colour images become the zero vector and match nothing.
    """
    vectors = thumbnails.flatten(1)
    vectors = vectors - vectors.mean(dim=1, keepdim=True)
    has_contrast = vectors.norm(dim=1, keepdim=True) > 1
    return torch.where(has_contrast, functional.normalize(vectors, dim=1), 0)
