"""Training images that are like an image, by the network's own features, and a few validation images to try.

Refuses to fetch anything: the images of a run are taken where they lie on this machine, and otherwise left out with a sentence.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import Event

import numpy as np
import torch
from numpy.typing import NDArray

from regraft.data.dataset import Dataset, Unreadable
from regraft.data.load import load_dataset
from regraft.errors import UserError
from regraft.inference.classifier import Classifier
from regraft.models.cut import Prefix
from regraft.models.layers import cut_backbone
from regraft.models.transforms import resize_center_crop, storage_size, transform
from regraft.runs.folder import Run
from regraft.system.progress import ProgressReporter
from regraft.workflow.embedding import features_of
from regraft.workflow.parts import Part
from regraft.workflow.settings import Settings

_BYTES = 256e6  # of features held in memory
_EXAMPLES = 6
_NEAR = 6


@dataclass
class SimilarImages:
    """The training images of a run as far as they can be had."""

    classifier: Classifier
    train: Dataset | None = None
    examples: list[NDArray[np.uint8]] = field(default_factory=list)
    note: str = ""  # why there are no similar images (yet)
    features: NDArray[np.float32] | None = None  # of unit length

    @cached_property
    def prefix(self) -> Prefix:
        """The whole network but for the head."""
        plan = self.classifier.run.plan
        return cut_backbone(self.classifier.network[0], "head", plan.stages_taken, plan.flattens)[0]

    @property
    def state(self) -> str:
        """ "ready", "preparing" or "none"."""
        return (
            "ready"
            if self.features is not None
            else "preparing"
            if self.train is not None
            else "none"
        )

    def prepare(self, settings: Settings) -> None:
        """Take the features of the training images, through the cache; takes a while where they were not taken before."""
        if self.train is None:
            return
        plan, (model, _), prefix = self.classifier.run.plan, self.classifier.network, self.prefix
        train, most = self.train, int(_BYTES // (4 * prefix.shapes[0].numel()))
        if len(train) > most:
            train = train.take(
                train.subset(
                    np.arange(len(train)), max(most, len(train.classes)), settings.split_seed
                )
            )
        try:
            found = features_of(Part("train", train, settings), model, prefix, plan).reshape(
                len(train), -1
            )
        except (UserError, Stopped) as error:
            self.train, self.note = None, f"No similar training images: {error}"
            return
        self.train, self.features, self.note = train, _unit(found), ""

    def near(
        self, image: NDArray[np.uint8], count: int = _NEAR
    ) -> list[tuple[NDArray[np.uint8], str]]:
        """Return the training images most like one, the most similar first, each with its class and the cosine of the features."""
        if self.features is None or self.train is None:
            return []
        cosines = self.features @ _unit(self._features(image))[0]
        rows = np.argsort(-cosines, kind="stable")[:count]
        try:
            pixels = [self.train.images.read(np.array([row]))[0] for row in rows]
        except Unreadable:  # moved away since
            return []
        names = [self.train.classes[label] for label in self.train.labels[rows]]
        return [
            (shown, f"{name} {cosines[row]:.2f}")
            for shown, name, row in zip(pixels, names, rows, strict=True)
        ]

    def _features(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return what the head gets of one decoded image of any size, `(1, d)`."""
        model, device = self.classifier.network[0], self.classifier.device
        ready = resize_center_crop(
            image, storage_size(image.shape[:2], model.resolution), model.rules.interpolation
        )
        seen = transform(
            torch.from_numpy(ready[None]).to(device),
            torch.zeros(1, dtype=torch.int64, device=device),
            model.rules,
            model.resolution,
        )
        found: NDArray[np.float32] = self.prefix(seen)[0].float().cpu().numpy().reshape(1, -1)
        return found


class Stopped(Exception):
    """The server ends before the features were taken."""


class Stopping(ProgressReporter):
    """Ends a piece of work between two steps once the event is set."""

    def __init__(self, ended: Event) -> None:
        self.ended = ended

    def step(self, what: str, done: int, total: int) -> None:
        if self.ended.is_set():
            raise Stopped("the server is ending")


def find_similar_images(
    classifier: Classifier, given: str | Path | Dataset | None, settings: Settings
) -> SimilarImages:
    """Return the gallery of a run, its features not taken yet.

    Args:
        classifier: The run.
        given: Its images; where None, those that the run was fitted on are taken if they are files of this machine or scikit-learn's digits.
        settings: `home` counts.

    Raises:
        UserError: When images were given that cannot be had, or are not those of the run.
    """
    origin = classifier.run.scores.get("origin", {}).get("data")
    if given is None and not (
        isinstance(origin, str) and (origin == "digits" or Path(origin).exists())
    ):
        where = (
            f"{origin!r} is not on this machine"
            if origin
            else "the run does not know where its images came from"
        )
        return SimilarImages(
            classifier, note=f"No similar training images: {where}. Name the images with --data."
        )
    try:
        images = load_dataset(given if given is not None else str(origin), settings.home)
        return _of_images(classifier, images)
    except UserError as error:
        if given is not None:
            raise
        return SimilarImages(classifier, note=f"No similar training images: {error}")


def _of_images(classifier: Classifier, images: Dataset) -> SimilarImages:
    """Return the gallery with the training images of a run's own split, and a validation image of each of the first classes."""
    parts = _split(classifier.run)
    part_of = np.array([parts.get(str(key), "") for key in images.keys])
    train, val = np.flatnonzero(part_of == "train"), np.flatnonzero(part_of == "val")
    if not len(train) or images.classes != classifier.classes:
        raise UserError(
            f"{images.name} holds none of the training images of {classifier.run.path}. Expected the images that it was fitted on. Name those."
        )
    shown = {int(images.labels[row]): row for row in val[::-1]}
    rows = np.array(sorted(shown.values())[:_EXAMPLES], dtype=np.int64)
    try:
        examples = [images.images.read(rows[[place]])[0] for place in range(len(rows))]
    except Unreadable:
        examples = []
    return SimilarImages(
        classifier,
        images.take(train),
        examples,
        "Similar training images are still being looked up; try again in a while.",
    )


def _split(finished: Run) -> dict[str, str]:
    """Return the part of each image of a run by its key; nothing where the run does not say."""
    try:
        with (finished.path / "split.csv").open(newline="", encoding="utf-8") as file:
            return {row["key"]: row["part"] for row in csv.DictReader(file)}
    except (OSError, KeyError):
        return {}


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    made: NDArray[np.float32] = vectors / np.maximum(
        np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12
    )
    return made


def stoppable(settings: Settings, ended: Event) -> Settings:
    """Return the settings with a watcher that ends the work when the event is set."""
    return replace(settings, watcher=Stopping(ended))
