"""Images with captions for the pages: mistakes, maps of where a network looks, findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.checks.findings import describe_doubt
from regraft.data.dataset import Dataset
from regraft.errors import UserError
from regraft.evaluation.metrics import hardest_examples
from regraft.evaluation.scores import log_softmax
from regraft.reporting.html import Gallery, Thumbnail
from regraft.runs.folder import Run

Heat = NDArray[np.float32]
Pixels = NDArray[np.uint8]
MapMaker = Callable[[Sequence[Pixels], Sequence[int]], Sequence[Heat]]

_SHOWN = 18  # images of a gallery
_MAPS = 6  # class-activation maps of right and of wrong cases
_RANKED = 3  # classes in a caption
_KEY_LENGTH = 40


@dataclass(frozen=True)
class PredictedImages:
    """The images of one part of a run, with what it predicted.

    Args:
        dataset: The images.
        rows: Row of each image in the dataset.
        targets: Class of each, `(n,)`.
        probabilities: `(n, classes)`.
    """

    dataset: Dataset
    rows: NDArray[np.int64]
    targets: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    def thumbnails(self, numbers: NDArray[np.int64], heats: Sequence[Heat] = ()) -> list[Thumbnail]:
        """Return thumbnails of some images, with maps where they are given."""
        images = self.dataset.images.read(self.rows[numbers])
        thumbnails = []
        for position, (number, image) in enumerate(zip(numbers.tolist(), images, strict=True)):
            heat = heats[position] if heats else None
            thumbnails.append(self._thumbnail(number, image, heat))
        return thumbnails

    def _thumbnail(self, number: int, image: Pixels, heat: Heat | None) -> Thumbnail:
        classes = self.dataset.classes
        probabilities = self.probabilities[number]
        ranked = np.argsort(-probabilities, kind="stable")[:_RANKED]
        lines = [f"{classes[label]} {probabilities[label]:.0%}" for label in ranked]
        target = self.targets[number]
        lines.append(f"true: {classes[target]}")
        return Thumbnail(image, tuple(lines), heat, bool(ranked[0] == target))


def run_galleries(run: Run, part: str, dataset: Dataset, make_maps: MapMaker) -> list[Gallery]:
    """Return mistakes, lowest-confidence predictions and class-activation maps of a run.

    Args:
        run: The run.
        part: A part that it was scored on.
        dataset: The images, those of the part among them.
        make_maps: Gives class-activation maps of images for classes; may raise `UserError`.
    """
    predictions = run.predictions(part)
    logits = predictions["logits"]
    targets = predictions["targets"]
    row_of = {key: row for row, key in enumerate(dataset.keys.tolist())}
    rows = np.array([row_of[key] for key in predictions["keys"].tolist()], dtype=np.int64)
    probabilities = np.exp(log_softmax(logits))
    images = PredictedImages(dataset, rows, targets, probabilities)
    worst, least = hardest_examples(logits, targets, _SHOWN)
    return [
        Gallery(
            "Worst mistakes",
            "Wrong with the highest confidence; a wrong label often shows here.",
            images.thumbnails(worst),
            "There are none.",
        ),
        Gallery("Least certain", "Lowest-confidence predictions.", images.thumbnails(least)),
        _map_gallery(images, worst, make_maps),
    ]


def _map_gallery(images: PredictedImages, worst: NDArray[np.int64], make_maps: MapMaker) -> Gallery:
    title = "Where it looks"
    description = (
        "What speaks for the predicted class (HiResCAM, Draelos and Carin 2020); first the surest "
        "right ones, then the worst mistakes."
    )
    predicted = images.probabilities.argmax(axis=1)
    surest = np.argsort(-images.probabilities.max(axis=1), kind="stable")
    right = surest[predicted[surest] == images.targets[surest]][:_MAPS]
    shown = np.concatenate([right, worst[:_MAPS]])
    try:
        pixels = images.dataset.images.read(images.rows[shown])
        heats = make_maps(pixels, predicted[shown].tolist())
    except UserError as error:
        return Gallery(title, description, reason=str(error))
    return Gallery(title, description, images.thumbnails(shown, heats))


def check_galleries(findings: Mapping[str, Any], dataset: Dataset) -> list[Gallery]:
    """Return thumbnails of what a check found, the first of each kind."""
    galleries = [
        Gallery(
            "Exact duplicates",
            "The same bytes; across parts first.",
            list(_duplicates(findings["exact"], dataset)),
        ),
        Gallery(
            "Near duplicates",
            "Pairs that the network cannot tell apart; across parts first.",
            list(_duplicates(findings["near"], dataset)),
        ),
        Gallery(
            "Doubtful labels",
            "The most doubtful first.",
            list(_suspects(findings["suspects"], dataset)),
        ),
    ]
    return [gallery for gallery in galleries if gallery.thumbnails]


def _duplicates(groups: Sequence[Mapping[str, Any]], dataset: Dataset) -> Iterator[Thumbnail]:
    """Yield the first two images of each group."""
    for group in groups[: _SHOWN // 2]:
        rows = group["rows"][:2]
        images = dataset.images.read(np.array(rows, dtype=np.int64))
        for number, image in enumerate(images):
            lines = [f"{group['labels'][number]}, {group['parts'][number]}"]
            if "by" in group:
                lines.append(f"{group['by']}, {group['cosine']:.3f}")
            yield Thumbnail(image, (*lines, _short_key(dataset, rows[number])))


def _suspects(suspects: Sequence[Mapping[str, Any]], dataset: Dataset) -> Iterator[Thumbnail]:
    for suspect in suspects[:_SHOWN]:
        row = suspect["row"]
        image = dataset.images.read(np.array([row], dtype=np.int64))[0]
        label = suspect["label"]
        doubt = describe_doubt(label, suspect["said"], suspect["chance_said"])
        labelled = f"labelled {label} ({suspect['chance_label']:.0%})"
        yield Thumbnail(image, (labelled, doubt, suspect["part"], _short_key(dataset, row)))


def _short_key(dataset: Dataset, row: int) -> str:
    return str(dataset.keys[row])[-_KEY_LENGTH:]
