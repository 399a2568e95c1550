"""Labelled images as an immutable table with a digest, and how such a table is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from regraft.data.images import Images, Names, Rows, Unreadable
from regraft.data.split import (
    PARTS,
    Split,
    Subset,
    assign_groups,
    assign_images,
    check_parts,
    choose_shares,
    digest_parts,
    digest_table,
    initial_parts,
    name_by_content,
    rows_of_parts,
    select_subset,
)
from regraft.errors import UserError, join_truncated

MAX_NAME_LENGTH = 1_000  # characters of a name; an array of names is as wide as its longest one
_SIZES = 256  # images whose sizes are read for the median
_DEFAULT_SIZE = np.array([[224, 224]])  # where none of these can be decoded


@dataclass(frozen=True)
class DatasetInfo:
    """What a technique may know of a dataset."""

    name: str
    images: int  # for training, once split
    classes: tuple[str, ...]
    size: tuple[int, int]  # median height and width in pixels


@dataclass(frozen=True)
class Dataset:
    """Labelled images in the order of their keys; make one with `make_dataset`.

    Args:
        name: What people call it; appears in reports only.
        keys: What each image is called, `(n,)`, sorted, all different.
        labels: Class number of each image, `(n,)`.
        classes: Class names in the order of their numbers.
        images: The pixels.
        parts: "train", "val", "test", or "" where the source did not say, `(n,)`.
        groups: Group of each image, `(n,)`; images of one group stay in one part.
        tested: False where whoever gives the images keeps the test part elsewhere, as
            cross-validation does.
        known_hashes: Content hashes where they are known already, `(n,)`.
    """

    name: str
    keys: Names
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    images: Images
    parts: Names | None = None
    groups: Names | None = None
    tested: bool = True
    known_hashes: Names | None = field(default=None, repr=False, compare=False)
    # a comparison asks for the same split many times
    _splits: dict[tuple[int, int | None, int | None], Split] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, {len(self):,} images, {len(self.classes)} classes)"

    @cached_property
    def hashes(self) -> Names:
        """Content hash of each image, shape `(n,)`."""
        return self.images.hashes() if self.known_hashes is None else self.known_hashes

    @cached_property
    def fingerprint(self) -> str:
        """Digest of pixels, keys, labels and class names; the source's order does not matter."""
        return digest_table(self.classes, self.keys, self.labels, self.hashes)

    @cached_property
    def facts(self) -> DatasetInfo:
        """What techniques may know; the size is the median of at most 256 images."""
        rows = np.linspace(0, len(self) - 1, num=min(_SIZES, len(self))).astype(np.int64)
        try:
            sizes = self.images.sizes(rows)
        except Unreadable as error:  # they are named when everything is decoded
            readable = np.setdiff1d(rows, error.rows)
            sizes = self.images.sizes(readable) if len(readable) else _DEFAULT_SIZE
        height, width = np.median(sizes, axis=0).astype(int)
        return DatasetInfo(self.name, len(self), self.classes, (int(height), int(width)))

    def take(self, rows: Rows) -> Dataset:
        """Return the table restricted to `rows`, which must be sorted to keep the order of keys."""
        is_hashed = "hashes" in vars(self)  # where `cached_property` puts it
        return replace(
            self,
            keys=self.keys[rows],
            labels=self.labels[rows],
            images=self.images.take(rows),
            parts=None if self.parts is None else self.parts[rows],
            groups=None if self.groups is None else self.groups[rows],
            known_hashes=self.hashes[rows] if is_hashed else None,
        )

    def split(
        self, seed: int = 0, train_images: int | None = None, val_images: int | None = None
    ) -> Split:
        """Return train, val and test rows: disjoint, stratified by class, decided by keys alone.

        A part that the source names stays. Where it names no test part, a fifth of the images is
        set aside, unless the table has none (`tested`). Where it names no val part, a tenth of
        the open images becomes one. The part of an image follows from a hash of the seed and its
        key (with groups: of the group's name), so neither row order nor added images move it,
        except near a threshold, where a class would otherwise miss its share by more than 15 %
        or stay without an image.

        Args:
            seed: Another seed, another split.
            train_images: Keep a stratified subset of this many training images; val and test
                stay whole.
            val_images: The same for validation images.

        Raises:
            UserError: When a class has too few images for the parts, or a part has fewer images
                than should be kept.
        """
        request = (seed, train_images, val_images)
        if request not in self._splits:
            self._splits[request] = self._compute_split(*request)
        return self._splits[request]

    def _compute_split(self, seed: int, train_images: int | None, val_images: int | None) -> Split:
        rows = rows_of_parts(self._assign_parts(seed))
        for part, wanted in (("train", train_images), ("val", val_images)):
            if wanted is not None:
                rows[part] = self.subset(rows[part], wanted, seed, part)
        needed = {part: rows[part] for part in PARTS if part != "test" or self.tested}
        check_parts(self.name, needed, self.labels, self.classes)
        return self.split_of(rows)

    def split_of(self, rows: Mapping[str, Rows]) -> Split:
        """Return the split with these sorted rows in its parts."""
        digests = {part: self._digest_rows(rows[part]) for part in PARTS}
        return Split(rows["train"], rows["val"], rows["test"], digest_parts(digests))

    def _assign_parts(self, seed: int) -> Names:
        """Return the part of each image, `(n,)`."""
        parts = initial_parts(self.parts, len(self))
        shares = choose_shares(self.parts, self.tested)
        if self.groups is not None:
            return assign_groups(self.name, self.groups, parts, shares, seed)
        names = name_by_content(self.keys, self.labels, self.hashes)
        if names is None:
            names = self.keys
        return assign_images(names, self.labels, parts, shares, seed)

    def _digest_rows(self, rows: Rows) -> str:
        return digest_table(self.classes, self.keys[rows], self.labels[rows], self.hashes[rows])

    def subset(self, rows: Rows, wanted: int, seed: int = 0, part: str = "train") -> Rows:
        """Return `wanted` of the rows, sorted: each class in proportion, at least one of each.

        What proportions leave over goes by the largest remainder; hashes of keys select.

        Args:
            rows: Rows to select from.
            wanted: How many.
            seed: Another seed, other images.
            part: The part in the message of an error.

        Raises:
            UserError: When there are fewer rows than that, or more classes.
        """
        return select_subset(self.keys, self.labels, rows, Subset(wanted, seed, part))


class Columns(TypedDict, total=False):
    """What else a source may know of its images.

    parts: "train", "val", "test" or "" for each image.
    groups: Images of the same non-empty group stay in one part (one patient, one video).
    tested: False leaves the test part empty; whoever gives the images keeps one elsewhere.
    """

    parts: Sequence[str] | None
    groups: Sequence[str] | None
    tested: bool


def make_dataset(
    name: str,
    labels: Sequence[int] | NDArray[np.int64],
    classes: Sequence[str],
    images: Images,
    keys: Sequence[str] | Names | None = None,
    **columns: Unpack[Columns],
) -> Dataset:
    """Return a checked dataset, its rows sorted by key.

    Args:
        name: What people call it; appears in reports only.
        labels: Class number of each image, `0 … len(classes) - 1`.
        classes: Class names in the order of their numbers.
        images: The pixels, in the same order as `labels`.
        keys: What each image is called, all different. Without keys, images are identified by
            their content.
        **columns: `parts`, `groups` and `tested`, see `Columns`.

    Raises:
        UserError: When there is no image, one class only, a class with one image, a label outside
            the classes, or a key that occurs twice.
    """
    parts = columns.get("parts")
    groups = columns.get("groups")
    tested = columns.get("tested", True)
    _check_lengths(name, "an image", keys)
    _check_lengths(name, "a class", classes)
    _check_lengths(name, "a group", groups)
    numbers = _to_numbers(name, labels)
    _check_labels(name, numbers, classes, images)
    _check_counts(name, numbers, classes, tested and (parts is None or "test" not in parts))
    hashes = images.hashes() if keys is None else None
    names = _number_copies(hashes) if hashes is not None else np.asarray(keys, dtype=np.str_)
    _check_unique(name, names)
    order = np.argsort(names, kind="stable").astype(np.int64)
    return Dataset(
        name=name,
        keys=names[order],
        labels=numbers[order],
        classes=tuple(map(str, classes)),
        images=images.take(order),
        parts=None if parts is None else np.asarray(parts, dtype=np.str_)[order],
        groups=_fill_groups(groups, names, order),
        tested=tested,
        known_hashes=None if hashes is None else hashes[order],
    )


def _fill_groups(groups: Sequence[str] | None, keys: Names, order: Rows) -> Names | None:
    """Return the groups in this order, each image without one in a group of its own."""
    if groups is None or not any(groups):
        return None
    filled = [group or f"\x00{key}" for group, key in zip(groups, keys, strict=True)]
    return np.asarray(filled, dtype=np.str_)[order]


def _check_lengths(dataset: str, what: str, names: Sequence[str] | Names | None) -> None:
    if names is None:
        return
    longest = max(map(str, names), key=len, default="")
    if len(longest) > MAX_NAME_LENGTH:
        raise UserError(
            f"{dataset} has {what} called by {len(longest):,} characters, {longest[:40]!r}…. "
            f"Expected {MAX_NAME_LENGTH:,} at most. Shorten it."
        )


def _to_numbers(dataset: str, labels: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    try:
        numbers = np.asarray(labels, dtype=np.int64)
        is_float = np.asarray(labels).dtype.kind == "f"
        if is_float and (np.asarray(labels) != numbers).any():
            raise ValueError("fractions are among them")
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{dataset} has labels that are no whole numbers ({error}). "
            "Expected the number of a class for each image. Correct them."
        ) from error
    return numbers


def _check_labels(
    dataset: str, labels: NDArray[np.int64], classes: Sequence[str], images: Images
) -> None:
    if not len(labels):
        raise UserError(
            f"{dataset} holds no images. Expected labelled images of at least two classes."
        )
    if len(labels) != len(images):
        raise UserError(
            f"{dataset} holds {len(images):,} images but {len(labels):,} labels. "
            "Expected one label for each image. Add or remove labels."
        )
    outside = sorted({int(label) for label in labels if not 0 <= label < len(classes)})
    if outside:
        raise UserError(
            f"{dataset} has the label {join_truncated(outside)}, which is outside its "
            f"{len(classes)} classes (0 … {len(classes) - 1}). Correct the labels, or add "
            "the class names."
        )


def _check_counts(
    dataset: str, labels: NDArray[np.int64], classes: Sequence[str], cuts_test: bool
) -> None:
    """Raise `UserError` for a class with fewer images than there will be parts."""
    counts = np.bincount(labels, minlength=len(classes))
    present = np.flatnonzero(counts)
    if len(present) < 2:
        raise UserError(
            f"{dataset} has one class only, {str(classes[int(present[0])])!r}. "
            "Expected at least two. Put the images of each class into a folder of its own, "
            "or add the other classes."
        )
    needed = 3 if cuts_test else 2
    rare = np.flatnonzero(counts < needed).tolist()
    if rare:
        names = join_truncated(f"{classes[label]!r} ({counts[label]})" for label in rare)
        parts = "train, val and test" if cuts_test else "every part"
        raise UserError(
            f"{dataset} has too few images of class {names}. Expected at least {needed} a class, "
            f"so that {parts} can each have one. Add images or remove the class."
        )


def _check_unique(dataset: str, keys: Names) -> None:
    unique, counts = np.unique(keys, return_counts=True)
    if len(unique) < len(keys):
        repeated = join_truncated(repr(str(key)) for key in unique[counts > 1])
        raise UserError(
            f"{dataset} lists {repeated} more than once. Expected every image under a key of its "
            "own. Remove the repeated rows or files."
        )


def _number_copies(hashes: Names) -> Names:
    """Return the hashes as keys; copies of an image are numbered from 2 on: `hash#2`."""
    copies: dict[str, int] = {}
    keys = []
    for value in map(str, hashes):
        copies[value] = copies.get(value, 0) + 1
        keys.append(value if copies[value] == 1 else f"{value}#{copies[value]}")
    return np.array(keys, dtype=np.str_)
