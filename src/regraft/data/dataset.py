"""Labelled images as an immutable table with a fingerprint, and its stratified, stable split.

Refuses to decode, to download and to guess: `sources` fills the table, this room only keeps it consistent.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from regraft.data.split import allocate, assign_parts, unit_hash
from regraft.errors import UserError, join_truncated

MAX_NAME_LENGTH = 1_000  # characters of a name; an array of names is as wide as its longest one
PARTS = ("train", "val", "test")
TEST_SHARE = 0.20  # of all images, when the data brings no test part
VAL_SHARE = 0.10  # of all images then, and of the training images when a test part is given

Rows = NDArray[np.int64]


class Images(Protocol):
    """Where the pixels of a dataset come from; row numbers are those of the table."""

    def __len__(self) -> int: ...

    def hashes(self) -> NDArray[np.str_]:
        """Return a content hash of each image as stored, shape `(n,)`."""
        ...

    def sizes(self, rows: Rows) -> NDArray[np.int64]:
        """Return height and width of each of `rows` as they will be decoded, shape `(len(rows), 2)`."""
        ...

    def read(self, rows: Rows) -> list[NDArray[np.uint8]]:
        """Return the decoded images, each `(h, w, 3)` uint8 RGB; raises `Unreadable` naming every bad one."""
        ...

    def take(self, rows: Rows) -> Images:
        """Return the same images restricted to and ordered by `rows`."""
        ...


class Unreadable(UserError):
    """Some files cannot be decoded; `rows` are their positions, `reasons` what was wrong with each."""

    def __init__(self, rows: list[int], reasons: list[str]) -> None:
        self.rows, self.reasons = rows, reasons
        count = f"{len(rows):,} image{'s' if len(rows) > 1 else ''}"
        super().__init__(
            f"{count} cannot be decoded: {join_truncated(reasons)}. Expected whole JPEG, PNG, WebP, BMP, TIFF or GIF files. "
            "Repair or remove them; --skip-bad goes on without them."
        )


@dataclass(frozen=True)
class ArrayImages:
    """Images of one size, held in memory as uint8 `(n, h, w, 3)`."""

    array: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.array)

    def hashes(self) -> NDArray[np.str_]:
        return np.array(
            [content_hash(np.ascontiguousarray(image).tobytes()) for image in self.array],
            dtype=np.str_,
        )

    def sizes(self, rows: Rows) -> NDArray[np.int64]:
        return np.tile(np.array(self.array.shape[1:3], dtype=np.int64), (len(rows), 1))

    def read(self, rows: Rows) -> list[NDArray[np.uint8]]:
        return list(self.array[rows])

    def take(self, rows: Rows) -> ArrayImages:
        return ArrayImages(self.array[rows])


@dataclass(frozen=True)
class DatasetInfo:
    """What a technique may know of a dataset."""

    name: str
    images: int  # for training, once split
    classes: tuple[str, ...]
    size: tuple[int, int]  # median height and width in pixels


@dataclass(frozen=True)
class Split:
    """Rows of the three parts, each sorted; `digest` names this very division of these very images."""

    train: Rows
    val: Rows
    test: Rows
    digest: str

    def __getitem__(self, part: str) -> Rows:
        return {"train": self.train, "val": self.val, "test": self.test}[part]


@dataclass(frozen=True)
class Dataset:
    """Labelled images in the order of their keys; make one with `data.table`."""

    name: str
    keys: NDArray[np.str_]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    images: Images
    parts: NDArray[np.str_] | None = (
        None  # "train", "val", "test" or "" where the source did not say
    )
    groups: NDArray[np.str_] | None = None  # images of one group never part
    tested: bool = True  # False where whoever gives the images keeps the test part himself, as cross-validation does

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, {len(self):,} images, {len(self.classes)} classes)"

    @cached_property
    def hashes(self) -> NDArray[np.str_]:
        """Content hash of each image, shape `(n,)`."""
        return self.images.hashes()

    @cached_property
    def fingerprint(self) -> str:
        """Digest of pixels, keys, labels and class names; the order in which a source lists its rows does not matter."""
        state = hashlib.blake2b(digest_size=16)
        state.update("\x1f".join(self.classes).encode())
        rows = zip(self.keys.tolist(), self.labels.tolist(), self.hashes.tolist(), strict=True)
        state.update(
            "".join([f"{key}\x1f{label}\x1f{pixels}\n" for key, label, pixels in rows]).encode()
        )
        return state.hexdigest()

    @cached_property
    def facts(self) -> DatasetInfo:
        """What techniques may know; the size is the median of at most 256 images."""
        rows = np.linspace(0, len(self) - 1, num=min(256, len(self))).astype(np.int64)
        try:
            sizes = self.images.sizes(rows)
        except Unreadable as error:  # they are named when everything is decoded
            whole = np.setdiff1d(rows, error.rows)
            sizes = self.images.sizes(whole) if len(whole) else np.array([[224, 224]])
        height, width = np.median(sizes, axis=0).astype(int)
        return DatasetInfo(self.name, len(self), self.classes, (int(height), int(width)))

    def take(self, rows: Rows) -> Dataset:
        """Return the table restricted to `rows`, which must be sorted to keep the order of keys."""
        taken = replace(
            self,
            keys=self.keys[rows],
            labels=self.labels[rows],
            images=self.images.take(rows),
            parts=None if self.parts is None else self.parts[rows],
            groups=None if self.groups is None else self.groups[rows],
        )
        if "hashes" in self.__dict__:  # what was hashed once stays hashed
            taken.__dict__["hashes"] = self.hashes[rows]
        return taken

    def split(
        self, seed: int = 0, train_images: int | None = None, val_images: int | None = None
    ) -> Split:
        """Return train, val and test rows: disjoint, stratified by class, decided by each image's key alone.

        A part that the source names is kept. Where it names no test part, a fifth of the images is set aside, unless the table
        has none (`tested`); where it names no val part, val is cut from train. Each image falls by a hash of the seed and its key (of its group's name,
        where there are groups), so neither row order nor added images move it, except near a border where a class would
        otherwise miss its share by more than 15 %, or stay without an image.

        Args:
            seed: Another seed, another split.
            train_images: Keep a stratified subset of this many training images; val and test stay whole.
            val_images: The same for validation images.

        Raises:
            UserError: When a class has too few images for the parts, or so many images cannot be kept.
        """
        known: dict[tuple[int | None, ...], Split] = self.__dict__.setdefault(
            "_splits", {}
        )  # a comparison asks for the same one many times
        asked = (seed, train_images, val_images)
        if asked not in known:
            known[asked] = self._split(*asked)
        return known[asked]

    def _split(self, seed: int, train_images: int | None, val_images: int | None) -> Split:
        part = (
            np.full(len(self), "", dtype="<U5") if self.parts is None else self.parts.astype("<U5")
        )
        names = self._contents() if self.groups is None else self.groups
        unit = np.array([unit_hash(f"split:{seed}:{name}") for name in names])
        open_rows = np.flatnonzero((part == "") | (part == "train"))
        has_val, has_test = bool((part == "val").any()), bool((part == "test").any())
        test, val = (
            0.0 if has_test or not self.tested else TEST_SHARE,
            0.0 if has_val else VAL_SHARE,
        )
        if self.groups is not None:  # whole groups fall, whatever classes they hold
            open_rows = self._follow_given(part, open_rows)
            _, first, group_of = np.unique(names[open_rows], return_index=True, return_inverse=True)
            part[open_rows] = assign_parts(unit[open_rows][first], test, val)[group_of]
        else:
            first, copy_of, copies = self._different(names, open_rows)
            once = open_rows[first]
            for label in range(len(self.classes)):
                mine = np.flatnonzero(self.labels[once] == label)
                part[once[mine]] = assign_parts(unit[once[mine]], test, val, copies[mine])
            part[open_rows] = part[once][copy_of]
        rows = {name: np.flatnonzero(part == name).astype(np.int64) for name in PARTS}
        for name, wanted in (("train", train_images), ("val", val_images)):
            if wanted is not None:
                rows[name] = self.subset(rows[name], wanted, seed, name)
        self._check_parts(rows)
        return make_split(self, rows)

    def _contents(self) -> NDArray[np.str_]:
        """Return the keys; where images are called by their content, the same for images that are identical, so that they fall together.

        A class with fewer different images than there are parts keeps its keys, or some part would have none of it.
        """
        if not len(self) or str(self.keys[0]).partition("#")[0] != str(self.hashes[0]):
            return self.keys
        different = Counter(
            label for label, _ in set(zip(self.labels.tolist(), self.hashes.tolist(), strict=True))
        )
        return np.where(
            [different[label] < len(PARTS) for label in self.labels.tolist()],
            self.keys,
            self.hashes,
        )

    def _different(self, names: NDArray[np.str_], rows: Rows) -> tuple[Rows, Rows, Rows]:
        """Return positions in `rows` of one of each name, for each row the position of its own there, and how many rows have it."""
        if names is self.keys:  # all different
            every = np.arange(len(rows))
            return every, every, np.ones_like(every)
        _, first, which, counts = np.unique(
            names[rows], return_index=True, return_inverse=True, return_counts=True
        )
        return first, which, counts

    def _follow_given(self, part: NDArray[np.str_], open_rows: Rows) -> Rows:
        """Give the open rows of each group the part that the source gave to others of it; returns the rows still open."""
        assert self.groups is not None
        for group in np.unique(self.groups[part != ""]):
            mine = np.flatnonzero(self.groups == group)
            given = sorted(set(part[mine].tolist()) - {""})
            if len(given) > 1:
                raise UserError(
                    f"The group {str(group)!r} of {self.name} spans the parts {' and '.join(given)}. "
                    "Expected every group within one part. Correct the split or the groups."
                )
            part[mine] = given[0]
        return np.flatnonzero(part == "") if set(np.unique(part)) & {"val", "test"} else open_rows

    def subset(self, rows: Rows, wanted: int, seed: int = 0, part: str = "train") -> Rows:
        """Return `wanted` of the rows, sorted, decided by each image's key: each class in proportion (largest remainder), at least one of each.

        Raises:
            UserError: When there are fewer rows than that, or more classes.
        """
        present = np.unique(self.labels[rows])
        if not len(present) <= wanted <= len(rows):
            raise UserError(
                f"--{part}-images {wanted:,} was given, but the {part} part has {len(rows):,} images of {len(present)} classes. "
                f"Give a number from {len(present)} to {len(rows):,}."
            )
        unit = np.array([unit_hash(f"subset:{seed}:{key}") for key in self.keys[rows]])
        of_class = {label: rows[self.labels[rows] == label] for label in present}
        quota = allocate({int(label): len(mine) for label, mine in of_class.items()}, wanted)
        place = {int(row): value for row, value in zip(rows, unit, strict=True)}
        kept = [
            row
            for label, mine in of_class.items()
            for row in sorted(map(int, mine), key=place.__getitem__)[: quota[label]]
        ]
        return np.sort(np.array(kept, dtype=np.int64))

    def _check_parts(self, rows: dict[str, Rows]) -> None:
        for name in PARTS:
            if not len(rows[name]) and (name != "test" or self.tested):
                raise UserError(
                    f"The {name} part of {self.name} is empty. Expected images in train, val and test. Add images, or fewer groups that span everything."
                )
        lacking = sorted(set(range(len(self.classes))) - set(self.labels[rows["train"]].tolist()))
        if lacking:
            names = join_truncated(repr(self.classes[label]) for label in lacking)
            raise UserError(
                f"No training image is left of class {names} in {self.name}. Every class needs at least one image in train; add images, or remove the class."
            )


def make_split(dataset: Dataset, rows: Mapping[str, Rows]) -> Split:
    """Return a split with its digest: of pixels, keys and labels, part by part."""
    state = hashlib.blake2b(digest_size=16)
    arrays = {name: np.asarray(rows[name], dtype=np.int64) for name in PARTS}
    for name in PARTS:
        state.update(f"{name}\n{dataset.take(arrays[name]).fingerprint}\n".encode())
    return Split(arrays["train"], arrays["val"], arrays["test"], state.hexdigest())


def make_dataset(
    name: str,
    labels: Sequence[int] | NDArray[np.int64],
    classes: Sequence[str],
    images: Images,
    keys: Sequence[str] | None = None,
    parts: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    tested: bool = True,
) -> Dataset:
    """Return a checked dataset, its rows sorted by key.

    Args:
        name: What people call it; appears in reports only.
        labels: Class number of each image, `0 … len(classes) - 1`.
        classes: Class names in the order of their numbers.
        images: The pixels, in the same order as `labels`.
        keys: What an image is called, unique. Without keys an image is called by its content.
        parts: "train", "val", "test" or "" for each image, where the source says so.
        groups: Images of the same non-empty group stay in one part (one patient, one video).
        tested: False leaves the test part empty; whoever gives the images keeps one elsewhere.

    Raises:
        UserError: When there is no image, one class only, a class with one image, a label outside the
            classes, or a key that occurs twice.
    """
    for what, names in (("an image", keys), ("a class", classes), ("a group", groups)):
        longest = max(map(str, names if names is not None else ()), key=len, default="")
        if len(longest) > MAX_NAME_LENGTH:
            raise UserError(
                f"{name} has {what} called by {len(longest):,} characters, {longest[:40]!r}…. Expected {MAX_NAME_LENGTH:,} at most. Shorten it."
            )
    try:
        numbers = np.asarray(labels, dtype=np.int64)
        if np.asarray(labels).dtype.kind == "f" and (np.asarray(labels) != numbers).any():
            raise ValueError("fractions are among them")
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{name} has labels that are no whole numbers ({error}). Expected the number of a class for each image. Correct them."
        ) from error
    _check(name, numbers, classes, images, tested and (parts is None or "test" not in parts))
    hashed = None if keys is not None else images.hashes()
    called = _content_keys(hashed) if hashed is not None else np.asarray(keys, dtype=np.str_)
    unique, counts = np.unique(called, return_counts=True)
    if len(unique) < len(called):
        twice = unique[counts > 1]
        raise UserError(
            f"{name} lists {join_truncated(map(repr, map(str, twice)))} more than once. Expected every image under a key of its own. Remove the repeated rows or files."
        )
    order = np.argsort(called, kind="stable").astype(np.int64)
    kept_groups = None
    if groups is not None and any(groups):
        named = [group or f"\x00{key}" for group, key in zip(groups, called, strict=True)]
        kept_groups = np.asarray(named, dtype=np.str_)[order]
    made = Dataset(
        name=name,
        keys=called[order],
        labels=numbers[order],
        classes=tuple(map(str, classes)),
        images=images.take(order),
        parts=None if parts is None else np.asarray(parts, dtype=np.str_)[order],
        groups=kept_groups,
        tested=tested,
    )
    if hashed is not None:
        made.__dict__["hashes"] = hashed[order]
    return made


def content_hash(content: bytes) -> str:
    """Return the hash by which equal bytes are recognised: 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _check(
    name: str, labels: NDArray[np.int64], classes: Sequence[str], images: Images, cuts_test: bool
) -> None:
    if not len(labels):
        raise UserError(
            f"{name} holds no images. Expected labelled images of at least two classes."
        )
    if len(labels) != len(images):
        raise UserError(
            f"{name} holds {len(images):,} images but {len(labels):,} labels. Give one label an image."
        )
    outside = sorted({int(label) for label in labels if not 0 <= label < len(classes)})
    if outside:
        raise UserError(
            f"{name} has the label {join_truncated(outside)}, which is outside its {len(classes)} classes "
            f"(0 … {len(classes) - 1}). Correct the labels or add the class names."
        )
    counts = np.bincount(labels, minlength=len(classes))
    present = [str(classes[int(label)]) for label in np.flatnonzero(counts)]
    if len(present) < 2:
        raise UserError(
            f"{name} has one class only, {present[0]!r}. Expected at least two. "
            "Put the images of each class into a folder of its own, or add the other classes."
        )
    needed = 3 if cuts_test else 2
    small = [
        f"{classes[int(label)]!r} ({counts[label]})" for label in np.flatnonzero(counts < needed)
    ]
    if small:
        raise UserError(
            f"{name} has too few images of class {join_truncated(small)}. Expected at least {needed} a class, so that "
            f"{'train, val and test' if cuts_test else 'every part'} can each have one. Add images or remove the class."
        )


def _content_keys(hashes: NDArray[np.str_]) -> NDArray[np.str_]:
    """Return the hashes themselves, numbered where several images are identical."""
    seen: dict[str, int] = {}
    keys = []
    for value in map(str, hashes):
        seen[value] = seen.get(value, 0) + 1
        keys.append(value if seen[value] == 1 else f"{value}#{seen[value]}")
    return np.array(keys, dtype=np.str_)
