"""The images of a run part by part, decoded once; broken images leave their part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from regraft.data.dataset import Dataset
from regraft.data.images import Unreadable
from regraft.data.split import Split
from regraft.errors import UserError, join_truncated
from regraft.features.entry import Entry
from regraft.features.extract import ModelInputs, Rows, StoredPixels, extract_features, store_pixels
from regraft.models.augment import NO_AUGMENTATION, AugmentedView, sample_ids
from regraft.models.network import Cut
from regraft.models.transforms import Preprocess
from regraft.options import CacheOptions, Options, Runtime


@dataclass
class PartImages:
    """The images of train, val or test, decoded once for each storage size.

    Args:
        name: What the part is called.
        dataset: Its images alone.
        cache: Where pixels and features are kept.
        runtime: How the machine is used.
        entries: The features that were read so far, by name, as they were first met.
    """

    name: str
    dataset: Dataset
    cache: CacheOptions
    runtime: Runtime
    entries: dict[str, Entry] = field(default_factory=dict)
    _pixels: dict[tuple[int, str], StoredPixels] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of each image."""
        return self.dataset.labels

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """Seed of each image's augmentation."""
        return sample_ids(self.dataset)

    def for_run(self, runtime: Runtime) -> PartImages:
        """Return the same images for another run; decoded pixels are shared."""
        return replace(self, runtime=runtime, entries={})

    def pixels(self, preprocess: Preprocess) -> StoredPixels:
        """Return the decoded images.

        Raises:
            Unreadable: When files cannot be decoded; names all of them.
        """
        key = (preprocess.resolution, preprocess.rules.interpolation)
        if key not in self._pixels:
            pixels = store_pixels(self.dataset, preprocess, self.cache, self.runtime)
            self._pixels[key] = pixels
        return self._pixels[key]

    def inputs(self, preprocess: Preprocess) -> ModelInputs:
        """Return the images as a network takes them."""
        return ModelInputs(self.pixels(preprocess), self.ids, self.dataset.hashes, preprocess)

    def extract(self, cuts: Sequence[Cut], view: AugmentedView = NO_AUGMENTATION) -> list[Entry]:
        """Return the features of several cuts of one network, from the cache or by one pass."""
        label = f"extract {self.name}"
        if view.augment != "none":
            label += f", view {view.number + 1}"
        inputs = self.inputs(cuts[0].preprocess).augmented(view)
        entries = extract_features(cuts, inputs, self.cache, self.runtime, label)
        for entry in entries:
            self.entries.setdefault(entry.name, entry)
        return entries


@dataclass(frozen=True)
class OpenedParts:
    """Parts of a split whose images can all be decoded.

    Args:
        dataset: All images.
        split: The split, by keys alone.
        parts: The opened parts by name, without the images that cannot be decoded.
        rows: Rows of the dataset that are left in every part, opened or not.
        skipped: Reason by key of each image that was left out.
    """

    dataset: Dataset
    split: Split
    parts: Mapping[str, PartImages]
    rows: Mapping[str, Rows]
    skipped: Mapping[str, str]

    def __getitem__(self, name: str) -> PartImages:
        return self.parts[name]

    def skipped_in(self, name: str) -> dict[str, str]:
        """Return reason by key of the images of one part that were left out."""
        keys = set(self.dataset.keys[self.split[name]].tolist())
        return {key: reason for key, reason in self.skipped.items() if key in keys}

    def for_run(self, runtime: Runtime) -> OpenedParts:
        """Return the same parts for another run; decoded pixels are shared."""
        parts = {name: part.for_run(runtime) for name, part in self.parts.items()}
        return replace(self, parts=parts)


def open_parts(
    dataset: Dataset,
    split: Split,
    preprocess: Preprocess,
    options: Options,
    names: Sequence[str] = ("train", "val"),
) -> OpenedParts:
    """Return some parts of a split after decoding their images.

    The split is decided by keys alone. An image that cannot be decoded leaves its part, where
    `options.data.skip_bad` allows that; no other image moves.

    Raises:
        Unreadable: When images cannot be decoded, and none may be skipped; names all of them.
        UserError: When too few images are left.
    """
    rows = {name: split[name] for name in ("train", "val", "test")}
    parts: dict[str, PartImages] = {}
    bad: dict[int, str] = {}
    for name in names:
        part = _part(dataset, name, rows[name], options)
        try:
            part.pixels(preprocess)
        except Unreadable as error:
            positions = np.array(error.rows, dtype=np.int64)
            bad_rows = rows[name][positions].tolist()
            bad |= dict(zip(bad_rows, error.reasons, strict=True))
            rows[name] = np.delete(rows[name], positions)
            part = _part(dataset, name, rows[name], options)
        parts[name] = part
    if bad:
        _accept(bad, dataset, rows, names, options)
    skipped = {str(dataset.keys[row]): reason for row, reason in bad.items()}
    return OpenedParts(dataset, split, parts, rows, skipped)


def open_part(dataset: Dataset, name: str, preprocess: Preprocess, options: Options) -> PartImages:
    """Return all images of a dataset as one part, after decoding them.

    Raises:
        Unreadable: When images cannot be decoded, and none may be skipped; names all of them.
        UserError: When none is left.
    """
    every = np.arange(len(dataset))
    part = _part(dataset, name, every, options)
    try:
        part.pixels(preprocess)
    except Unreadable as error:
        left = np.delete(every, error.rows)
        bad = dict(zip(error.rows, error.reasons, strict=True))
        _accept(bad, dataset, {name: left}, (name,), options)
        part = _part(dataset, name, left, options)
    return part


def _part(dataset: Dataset, name: str, rows: Rows, options: Options) -> PartImages:
    return PartImages(name, dataset.take(rows), options.cache, options.runtime)


def _accept(
    bad: Mapping[int, str],
    dataset: Dataset,
    rows: Mapping[str, Rows],
    names: Sequence[str],
    options: Options,
) -> None:
    """Raise where broken images may not be skipped, or too few others are left."""
    reasons = list(bad.values())
    if not options.data.skip_bad:
        raise Unreadable(list(bad), reasons)
    listed = join_truncated(reasons)
    count = len(bad)
    options.runtime.reporter.log(f"Skipping {count:,} images that cannot be decoded: {listed}.")
    left_out = f"{count:,} images were left out because they cannot be decoded: {listed}."
    for name in names:
        if not len(rows[name]):
            raise UserError(
                f"No image is left in the {name} part of {dataset.name}. Expected at least one. "
                f"Repair or add images. {left_out}"
            )
    if "train" not in names:
        return
    present = set(dataset.labels[rows["train"]].tolist())
    missing = [name for label, name in enumerate(dataset.classes) if label not in present]
    if missing:
        raise UserError(
            f"No training image is left of class {join_truncated(map(repr, missing))} in "
            f"{dataset.name}. Expected at least one a class. Repair or add images, or remove the "
            f"class. {left_out}"
        )
