"""Training images that are similar to an image, and a few validation images to try.

Nothing is fetched: the images of a run are read where they are on this machine, and are otherwise
left out with a sentence.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import Event

import numpy as np
import torch
from numpy.typing import NDArray

from regraft.data.dataset import Dataset
from regraft.data.images import Unreadable
from regraft.data.load import load_dataset
from regraft.errors import UserError
from regraft.features.parts import PartImages
from regraft.features.policy import CachePolicy
from regraft.features.reader import FrozenFeatures
from regraft.inference.classifier import Classifier
from regraft.models.network import Cut
from regraft.options import Options
from regraft.runs.folder import Run
from regraft.system.progress import ProgressReporter

MAX_FEATURE_BYTES = 256e6  # held in memory
_EXAMPLES = 6
_NEIGHBOURS = 6
_PREPARING = "Similar training images are being prepared; try again in a while."


@dataclass
class SimilarImages:
    """The training images of a run, searched by the features of its network.

    Args:
        classifier: The run.
        train: Its training images; None where they cannot be had.
        examples: Decoded validation images to try.
        note: Why there are no similar images (yet).
        features: Of the training images, `(n, d)`, rows of unit length; None until `prepare`.
    """

    classifier: Classifier
    train: Dataset | None = None
    examples: list[NDArray[np.uint8]] = field(default_factory=list)
    note: str = ""
    features: NDArray[np.float32] | None = None

    @cached_property
    def cut(self) -> Cut:
        """The whole network without the head, frozen."""
        return self.classifier.network.features_cut()

    @property
    def state(self) -> str:
        """ "ready", "preparing" or "none"."""
        if self.features is not None:
            return "ready"
        return "preparing" if self.train is not None else "none"

    def prepare(self, options: Options, max_bytes: float = MAX_FEATURE_BYTES) -> None:
        """Compute the features of the training images, or read them from the cache.

        Args:
            options: Where the cache is, and how the machine is used.
            max_bytes: Of features; of more images, a stratified subset is searched.
        """
        if self.train is None:
            return
        max_images = int(max_bytes // (4 * self.cut.frozen.shapes[0].numel()))
        train = _take_subset(self.train, max_images, options)
        try:
            features = self._compute_features(train, options)
        except (UserError, PreparationStopped) as error:
            self.train = None
            self.note = f"No similar training images: {error}"
            return
        self.train = train
        self.features = _normalize(features)
        self.note = ""

    def find_similar(
        self, image: NDArray[np.uint8], count: int = _NEIGHBOURS
    ) -> list[tuple[NDArray[np.uint8], str]]:
        """Return the training images most similar to an image, the most similar first.

        Args:
            image: Decoded, of any size.
            count: How many.

        Returns:
            Each with a caption: its class and the cosine similarity of the features. Nothing
            until the features are ready, or where the images are gone.
        """
        if self.features is None or self.train is None:
            return []
        query = _normalize(self._compute_query(image))[0]
        cosines = self.features @ query
        rows = np.argsort(-cosines, kind="stable")[:count]
        neighbours = []
        for row in rows:
            try:
                pixels = self.train.images.read(np.array([row]))[0]
            except Unreadable:  # moved away since
                return []
            name = self.train.classes[self.train.labels[row]]
            neighbours.append((pixels, f"{name} {cosines[row]:.2f}"))
        return neighbours

    def _compute_features(self, train: Dataset, options: Options) -> NDArray[np.float32]:
        """Return what the head gets of each training image, `(n, d)`, through the cache."""
        images = PartImages("train", train, options.cache, options.runtime)
        features = FrozenFeatures(images, self.cut)
        array = features.array(CachePolicy(options.cache).for_scoring(features))
        return array.reshape(len(train), -1)

    def _compute_query(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return what the head gets of one decoded image of any size, `(1, d)`."""
        preprocess = self.cut.preprocess
        stored = torch.from_numpy(preprocess.store(image)[None])
        inputs = preprocess(stored.to(self.classifier.device))
        features = self.cut.frozen(inputs)[0]
        query: NDArray[np.float32] = features.float().cpu().numpy().reshape(1, -1)
        return query


class PreparationStopped(Exception):
    """The server stops before the features are complete."""


class StopOnEvent(ProgressReporter):
    """Stops a piece of work between two steps once an event is set."""

    def __init__(self, event: Event) -> None:
        self.event = event

    def progress(self, what: str, done: int, total: int) -> None:
        if self.event.is_set():
            raise PreparationStopped("the server is stopping")


def with_stop_event(options: Options, event: Event) -> Options:
    """Return silent options whose work stops when the event is set."""
    return replace(options, runtime=replace(options.runtime, reporter=StopOnEvent(event)))


def find_images(
    classifier: Classifier, data: str | Path | Dataset | None, options: Options
) -> SimilarImages:
    """Return the images of a run, without their features.

    Args:
        classifier: The run.
        data: Its images. If None, those that the run was fitted on are used where they are files
            of this machine or scikit-learn's digits.
        options: Only the cache folder is used.

    Raises:
        UserError: When `data` cannot be read, or holds other images than those of the run.
    """
    origin = classifier.run.scores.get("origin", {}).get("data")
    if data is None and not _is_on_this_machine(origin):
        reason = "the run does not know where its images came from"
        if origin:
            reason = f"{origin!r} is not on this machine"
        note = f"No similar training images: {reason}. Name the images with --data."
        return SimilarImages(classifier, note=note)
    try:
        images = load_dataset(data if data is not None else str(origin), options.cache.dir)
        return _select_images(classifier, images)
    except UserError as error:
        if data is not None:
            raise
        return SimilarImages(classifier, note=f"No similar training images: {error}")


def _is_on_this_machine(origin: object) -> bool:
    return isinstance(origin, str) and (origin == "digits" or Path(origin).exists())


def _select_images(classifier: Classifier, images: Dataset) -> SimilarImages:
    """Return the training images of a run's split, and validation images to try."""
    part_by_key = _load_split_parts(classifier.run)
    parts = np.array([part_by_key.get(str(key), "") for key in images.keys])
    train = np.flatnonzero(parts == "train")
    if not len(train) or images.classes != classifier.classes:
        raise UserError(
            f"{images.name} holds none of the training images of {classifier.run.path}. "
            "Expected the images that it was fitted on. Name those."
        )
    examples = _read_examples(images, np.flatnonzero(parts == "val"))
    return SimilarImages(classifier, images.take(train), examples, _PREPARING)


def _read_examples(images: Dataset, val: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
    """Return the first validation image of each of the first classes; none if one is damaged."""
    first_of_class: dict[int, int] = {}
    for row in val:
        first_of_class.setdefault(int(images.labels[row]), int(row))
    examples = []
    for row in sorted(first_of_class.values())[:_EXAMPLES]:
        try:
            examples.append(images.images.read(np.array([row], dtype=np.int64))[0])
        except Unreadable:
            return []
    return examples


def _take_subset(train: Dataset, max_images: int, options: Options) -> Dataset:
    """Return at most so many images, stratified, but at least one of each class."""
    if len(train) <= max_images:
        return train
    count = max(max_images, len(train.classes))
    return train.take(train.subset(np.arange(len(train)), count, options.data.split_seed))


def _normalize(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rows of unit length; rows of zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float32] = vectors / np.maximum(lengths, 1e-12)
    return unit


def _load_split_parts(run: Run) -> dict[str, str]:
    """Return the part of each image of a run by its key; nothing where the run does not say."""
    try:
        return {image.key: image.part for image in run.split() if not image.skipped}
    except UserError:
        return {}
