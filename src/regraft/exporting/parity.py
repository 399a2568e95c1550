"""Whether an export answers as the run does, on the same images.

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

PARITY_TOLERANCE = 1e-3  # largest difference of a probability, in float32
PARITY_IMAGES = 64
_BATCH = 32

Pixels = NDArray[np.uint8]
Answered = NDArray[np.floating[Any]]
Answers = Callable[[Pixels], Answered]  # from images of one size, `(n, h, w, 3)`, to probabilities


@dataclass(frozen=True)
class Parity:
    """How far an export is from the run.

    Args:
        difference: The largest difference of a probability.
        other_class: Images that get another class.
        n: Images that were compared.
    """

    difference: float
    other_class: int
    n: int


def synthetic_images(side: int, count: int = PARITY_IMAGES) -> list[Pixels]:
    """Return synthetic images of soft blots, always the same ones.

    Args:
        side: The network's resolution; the images are squares of this side, smaller squares, and
            larger rectangles, in turn.
        count: How many.
    """
    generator = np.random.default_rng(0)
    half = side // 2
    small = max(8, half)
    shapes = ((side, side), (small, small), (2 * side, side + half))
    images = []
    for number in range(count):
        blots = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        images.append(resize_center_crop(blots, shapes[number % 3], "bicubic"))
    return images


def run_answers(answers: Answers, images: Sequence[Pixels]) -> NDArray[np.float64]:
    """Return the probabilities `(n, classes)` that an export answers for images of any sizes.

    The first image is asked alone, the others in batches of one size.
    """
    answered: dict[int, NDArray[np.float64]] = {}
    others = range(1, len(images))
    for rows in [[0], *_batches(images, others)]:
        batch = np.stack([images[row] for row in rows])
        answer = answers(batch)
        for row, probabilities in zip(rows, answer, strict=True):
            answered[row] = probabilities.astype(np.float64)
    return np.stack([answered[row] for row in range(len(images))])


def compare_answers(theirs: NDArray[np.float64], ours: NDArray[np.float64]) -> Parity:
    """Return how far two tables of probabilities are apart.

    Args:
        theirs: The export's, `(n, classes)`.
        ours: The run's. Classes that it gives the same probability within `PARITY_TOLERANCE` count
            as the same class.
    """
    rows = np.arange(len(ours))
    chosen = theirs.argmax(axis=1)
    is_other = ours.max(axis=1) - ours[rows, chosen] > PARITY_TOLERANCE
    difference = np.abs(theirs - ours).max()
    return Parity(float(difference), int(is_other.sum()), len(ours))


def check_parity(measured: Parity, kind: str) -> None:
    """Raise `UserError` where an export answers differently from the run."""
    is_near = measured.difference <= PARITY_TOLERANCE  # false for a difference that is no number
    if is_near and not measured.other_class:
        return
    raise UserError(
        f"The {kind} export answers differently from the run: probabilities differ by up to "
        f"{measured.difference:.1e}, and {measured.other_class} of {measured.n} images get "
        f"another class. Expected at most {PARITY_TOLERANCE:g} and none, so nothing was written. "
        "Export to another format, such as safetensors."
    )


def _batches(images: Sequence[Pixels], rows: Sequence[int]) -> Iterator[list[int]]:
    """Yield rows of images of one size, a batch at a time."""
    rows_of_shape: dict[tuple[int, ...], list[int]] = {}
    for row in rows:
        shape = images[row].shape
        rows_of_shape.setdefault(shape, []).append(row)
    for same in rows_of_shape.values():
        for start in range(0, len(same), _BATCH):
            yield same[start : start + _BATCH]
