"""What the frozen part of a network gives for the images of one part: cached, or live."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regraft.features.batches import Batches, Reader
from regraft.features.extract import (
    Rows,
    entry_bytes,
    entry_name,
    has_entry,
    run_prefix,
    to_tensors,
)
from regraft.features.parts import PartImages
from regraft.models.augment import NO_AUGMENTATION, AugmentedView
from regraft.models.network import Cut
from regraft.plans.schema import Phase

_BATCH = 250  # images read at a time where nothing else says how many


@dataclass(frozen=True)
class Augmentation:
    """How many augmented views of each image are seen; one plain view by default."""

    preset: str = "none"
    seed: int = 0
    n_views: int = 1

    @classmethod
    def of(cls, phase: Phase, seed: int) -> Augmentation:
        """Return the augmentation of the training images in a phase."""
        return cls(phase.augment, seed, phase.looks)

    def view(self, number: int) -> AugmentedView:
        """Return one of the views."""
        if self.preset == "none":
            return NO_AUGMENTATION
        return AugmentedView(self.preset, self.seed, number)

    def views(self) -> list[AugmentedView]:
        """Return all views."""
        return [self.view(number) for number in range(self.n_views)]


PLAIN = Augmentation()


class FrozenFeatures:
    """What the frozen part of a network gives for the images of one part.

    Read from the cache, or computed batch by batch; both ways give float32 tensors on the
    network's device.

    Args:
        images: The images of the part.
        cut: The network in two parts.
        augmentation: Which views of each image.
    """

    def __init__(self, images: PartImages, cut: Cut, augmentation: Augmentation = PLAIN) -> None:
        self.images = images
        self.cut = cut
        self.augmentation = augmentation

    def missing_bytes(self) -> int:
        """Return the bytes that `cached` would have to write."""
        if self.cut.is_empty:
            return 0
        inputs = self.images.inputs(self.cut.preprocess)
        size = entry_bytes(self.cut, len(self.images))
        missing = 0
        for view in self.augmentation.views():
            name = entry_name(self.cut, inputs.augmented(view))
            if not has_entry(name, self.images.cache):
                missing += size
        return missing

    def cached(self) -> Reader:
        """Return a reader of stored features; epochs take turns with the views."""
        views = self.augmentation.views()
        entries = [self.images.extract([self.cut], view)[0] for view in views]

        def read(rows: Rows, epoch: int) -> tuple[Tensor, ...]:
            return to_tensors(entries[epoch % len(entries)][rows], self.cut.device)

        return read

    def live(self) -> Reader:
        """Return a reader that computes the frozen part anew for every batch.

        Where nothing is frozen every epoch sees another view, else epochs take turns with them.
        """
        fast = self.cut.optimized()
        inputs = self.images.inputs(self.cut.preprocess)

        def read(rows: Rows, epoch: int) -> tuple[Tensor, ...]:
            number = epoch if self.cut.is_empty else epoch % self.augmentation.n_views
            batch = inputs.augmented(self.augmentation.view(number)).batch(rows, self.cut.device)
            outputs = run_prefix(fast, batch, self.cut.precision)
            # out of inference mode, so that autograd may keep them
            return tuple(output.float().clone() for output in outputs)

        return read

    def batches(self, reader: Reader) -> Iterator[tuple[Tensor, ...]]:
        """Yield the features of all images in order, 250 at a time."""
        for features, _ in Batches(reader, self.images.labels, _BATCH, seed=None):
            yield features

    @torch.inference_mode()
    def array(self, use_cache: bool) -> NDArray[np.float32]:
        """Return the features of all images `(n, …)`, of a network frozen throughout."""
        if use_cache:
            entry = self.images.extract([self.cut])[0]
            return entry.arrays[0].astype(np.float32)
        chunks = [features[0].float().cpu().numpy() for features in self.batches(self.live())]
        return np.concatenate(chunks)
