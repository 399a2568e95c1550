"""The division of a dataset into train, val and test, decided by the images' names alone."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from regraft.data.images import Names, Rows
from regraft.data.stratify import allocate, assign_parts, unit_hash
from regraft.errors import UserError, join_truncated

PARTS = ("train", "val", "test")
TEST_SHARE = 0.20  # of all images, when the data brings no test part
VAL_SHARE = 0.10  # of all images then, and of the training images when a test part is given


@dataclass(frozen=True)
class Split:
    """Rows of the three parts, each sorted; `digest` identifies this division of these images."""

    train: Rows
    val: Rows
    test: Rows
    digest: str

    def __getitem__(self, part: str) -> Rows:
        return {"train": self.train, "val": self.val, "test": self.test}[part]


class Shares(NamedTuple):
    """Which share of the open images the test and the val part get; 0 where the data has them."""

    test: float
    val: float


def choose_shares(parts: Names | None, has_test: bool) -> Shares:
    """Return the shares of the parts that the source did not name.

    Args:
        parts: What the source said of each image: "train", "val", "test" or "".
        has_test: Whether there should be a test part at all.
    """
    named = set() if parts is None else set(np.unique(parts).tolist())
    test = 0.0 if "test" in named or not has_test else TEST_SHARE
    val = 0.0 if "val" in named else VAL_SHARE
    return Shares(test, val)


def initial_parts(parts: Names | None, images: int) -> Names:
    """Return a new array of the parts that the source named, "" where it did not."""
    if parts is None:
        return np.full(images, "", dtype="<U5")
    return parts.astype("<U5")


def name_by_content(keys: Names, labels: NDArray[np.int64], hashes: Names) -> Names | None:
    """Return names that identical images share, so that they get the same part.

    Only for images that are identified by their content; returns None for those with keys of
    their own. A class with fewer different images than there are parts keeps its keys, or some
    part would have none of it.

    Args:
        keys: Keys of the images, `(n,)`.
        labels: Their class numbers, `(n,)`.
        hashes: Their content hashes, `(n,)`.
    """
    if not len(keys):
        return None
    content, _, _ = str(keys[0]).partition("#")
    if content != str(hashes[0]):
        return None
    pairs = set(zip(labels.tolist(), hashes.tolist(), strict=True))
    different = Counter(label for label, _ in pairs)
    has_few = [different[label] < len(PARTS) for label in labels.tolist()]
    return np.where(has_few, keys, hashes)


def assign_images(
    names: Names, labels: NDArray[np.int64], parts: Names, shares: Shares, seed: int
) -> Names:
    """Return the part of each image, `(n,)`; images of the same name get the same part.

    Args:
        names: What decides, `(n,)`: keys, or the names of `name_by_content`.
        labels: Class numbers, `(n,)`.
        parts: As `start_parts` returns them; only "" and "train" are open.
        shares: Shares of the test and val part among the open images.
        seed: Another seed, another split.
    """
    assigned = parts.copy()
    unit = _hash_names(names, seed)
    open_rows = _find_open(parts)
    _, first, copy_of, copies = np.unique(
        names[open_rows], return_index=True, return_inverse=True, return_counts=True
    )
    distinct = open_rows[first]
    for label in np.unique(labels[distinct]):
        members = np.flatnonzero(labels[distinct] == label)
        rows = distinct[members]
        assigned[rows] = assign_parts(
            unit[rows],
            shares.test,
            shares.val,
            copies[members],
        )
    assigned[open_rows] = assigned[distinct][copy_of]
    return assigned


def assign_groups(dataset: str, groups: Names, parts: Names, shares: Shares, seed: int) -> Names:
    """Return the part of each image, `(n,)`; a group is never divided, whatever its classes are.

    Args:
        dataset: What the dataset is called in messages.
        groups: The group of each image, `(n,)`.
        parts: As `start_parts` returns them; a group follows what the source said of its images.
        shares: Shares of the test and val part among the open groups.
        seed: Another seed, another split.

    Raises:
        UserError: When the source puts one group into several parts.
    """
    assigned = _follow_source(dataset, groups, parts)
    unit = _hash_names(groups, seed)
    if np.isin(assigned, ("val", "test")).any():
        open_rows = np.flatnonzero(assigned == "")
    else:
        open_rows = _find_open(parts)
    _, first, group_of = np.unique(groups[open_rows], return_index=True, return_inverse=True)
    unit_of_group = unit[open_rows][first]
    by_group = assign_parts(unit_of_group, shares.test, shares.val)
    assigned[open_rows] = by_group[group_of]
    return assigned


def _find_open(parts: Names) -> Rows:
    """Return the rows that may still go to any part, as far as the source has not used them."""
    return np.flatnonzero((parts == "") | (parts == "train"))


def _follow_source(dataset: str, groups: Names, parts: Names) -> Names:
    """Return parts in which all images of a group have what the source said of some of them."""
    assigned = parts.copy()
    for group in np.unique(groups[parts != ""]):
        members = np.flatnonzero(groups == group)
        named = sorted(set(parts[members].tolist()) - {""})
        if len(named) > 1:
            raise UserError(
                f"The group {str(group)!r} of {dataset} spans the parts {' and '.join(named)}. "
                "Expected every group within one part. Correct the split or the groups."
            )
        assigned[members] = named[0]
    return assigned


def _hash_names(names: Names, seed: int) -> NDArray[np.float64]:
    return np.array([unit_hash(f"split:{seed}:{name}") for name in names])


def rows_of_parts(parts: Names) -> dict[str, Rows]:
    """Return the sorted rows of each part."""
    return {part: np.flatnonzero(parts == part).astype(np.int64) for part in PARTS}


class Subset(NamedTuple):
    """How many images of which part are kept, and the seed that selects them."""

    wanted: int
    seed: int = 0
    part: str = "train"


def select_subset(keys: Names, labels: NDArray[np.int64], rows: Rows, subset: Subset) -> Rows:
    """Return some of the rows, sorted: each class in proportion, at least one image of each.

    Args:
        keys: Keys of the whole dataset, `(n,)`; hashes of them select.
        labels: Class numbers of the whole dataset, `(n,)`.
        rows: The rows to select from.
        subset: How many, and by which seed.

    Raises:
        UserError: When there are fewer rows than wanted, or more classes.
    """
    present = np.unique(labels[rows])
    if not len(present) <= subset.wanted <= len(rows):
        raise UserError(
            f"--{subset.part}-images {subset.wanted:,} was given, but the {subset.part} part has "
            f"{len(rows):,} images of {len(present)} classes. "
            f"Give a number from {len(present)} to {len(rows):,}."
        )
    unit = np.array([unit_hash(f"subset:{subset.seed}:{key}") for key in keys[rows]])
    of_class = {int(label): np.flatnonzero(labels[rows] == label) for label in present}
    counts = {label: len(members) for label, members in of_class.items()}
    quota = allocate(counts, subset.wanted)
    selected = []
    for label, members in of_class.items():
        order = np.argsort(unit[members], kind="stable")
        chosen = order[: quota[label]]
        selected.append(rows[members[chosen]])
    return np.sort(np.concatenate(selected)).astype(np.int64)


def check_parts(
    dataset: str, rows: Mapping[str, Rows], labels: NDArray[np.int64], classes: Sequence[str]
) -> None:
    """Raise `UserError` where one of `rows` is empty, or a class has no training image.

    Args:
        dataset: What the dataset is called in messages.
        rows: The rows of each part that must not be empty.
        labels: Class numbers of the whole dataset, `(n,)`.
        classes: Class names.
    """
    for part in rows:
        if not len(rows[part]):
            raise UserError(
                f"The {part} part of {dataset} is empty. Expected images in train, val and test. "
                "Add images, or divide them into more and smaller groups."
            )
    trained = set(labels[rows["train"]].tolist())
    missing = [name for label, name in enumerate(classes) if label not in trained]
    if missing:
        names = join_truncated(map(repr, missing))
        raise UserError(
            f"No training image is left of class {names} in {dataset}. Every class needs at least "
            "one image in train. Add images, or remove the class."
        )


def digest_table(
    classes: Sequence[str], keys: Names, labels: NDArray[np.int64], hashes: Names
) -> str:
    """Return the digest of class names and of the key, label and content of each image."""
    state = hashlib.blake2b(digest_size=16)
    state.update("\x1f".join(classes).encode())
    rows = zip(keys.tolist(), labels.tolist(), hashes.tolist(), strict=True)
    lines = [f"{key}\x1f{label}\x1f{content}\n" for key, label, content in rows]
    state.update("".join(lines).encode())
    return state.hexdigest()


def digest_parts(digests: Mapping[str, str]) -> str:
    """Return the digest of a split from the table digests of its parts."""
    state = hashlib.blake2b(digest_size=16)
    for part in PARTS:
        state.update(f"{part}\n{digests[part]}\n".encode())
    return state.hexdigest()
