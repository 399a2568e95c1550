"""Whether an artefact says what the run says, on the same images.

Refuses to round in its own favour: the largest difference counts, and every image's class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.errors import UserError
from regraft.models.transforms import resize_center_crop

TOLERANCE = 1e-3  # largest difference of a probability, in float32
PARITY_IMAGES = 64
_AT_ONCE = 32

Pixels = NDArray[np.uint8]
Answered = NDArray[np.floating[Any]]
Answers = Callable[[Pixels], Answered]  # from images of one size, `(n, h, w, 3)`, to probabilities


@dataclass(frozen=True)
class Parity:
    """How far an artefact is from the run: the largest difference of a probability, and how many images of `n` get another class."""

    difference: float
    other_class: int
    n: int


def synthetic_images(side: int, count: int = PARITY_IMAGES) -> list[Pixels]:
    """Return images of soft blots, always the same: square ones of the network's side, smaller ones, and larger ones of another shape."""
    chance = np.random.default_rng(0)
    shapes = ((side, side), (max(8, side // 2), max(8, side // 2)), (2 * side, side + side // 2))
    return [
        resize_center_crop(
            chance.integers(0, 256, (6, 6, 3), dtype=np.uint8), shapes[number % 3], "bicubic"
        )
        for number in range(count)
    ]


def run_answers(answers: Answers, images: Sequence[Pixels]) -> NDArray[np.float64]:
    """Return the probabilities `(n, classes)` of images of any sizes; the first one is asked alone, the others in batches of one size."""
    found: dict[int, NDArray[np.float64]] = {}
    for rows in [[0], *_groups(images, range(1, len(images)))]:
        for row, chances in zip(
            rows, answers(np.stack([images[row] for row in rows])), strict=True
        ):
            found[row] = chances.astype(np.float64)
    return np.stack([found[row] for row in range(len(images))])


def compare_answers(theirs: NDArray[np.float64], ours: NDArray[np.float64]) -> Parity:
    """Return how far two tables of probabilities `(n, classes)` are apart; classes that are equally likely within the tolerance are one."""
    rows, first = np.arange(len(ours)), theirs.argmax(axis=1)
    other = ours.max(axis=1) - ours[rows, first] > TOLERANCE
    return Parity(float(np.abs(theirs - ours).max()), int(other.sum()), len(ours))


def check_parity(found: Parity, kind: str) -> None:
    """Raise `UserError` where an artefact says something else than the run."""
    if not found.difference <= TOLERANCE or found.other_class:  # not <=: what is no number fails
        apart = f"probabilities differ by up to {found.difference:.1e}, and {found.other_class} of {found.n} images"
        raise UserError(
            f"The {kind} export does not say what the run says: {apart} "
            f"get another class. Expected at most {TOLERANCE:g} and none, so nothing was written. Export to another format, such as safetensors."
        )


def _groups(images: Sequence[Pixels], rows: Sequence[int]) -> Iterator[list[int]]:
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for row in rows:
        by_shape.setdefault(images[row].shape, []).append(row)
    for mine in by_shape.values():
        for start in range(0, len(mine), _AT_ONCE):
            yield mine[start : start + _AT_ONCE]
