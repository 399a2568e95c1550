"""Stratified assignment by hashes: the part of each image, and the classes' shares of a subset.

Nothing here is random: the same names always get the same parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

_SLACK = 0.15  # by which a class may miss its share of a part before images are moved
_TRAIN_END = 1e-6  # width of the interval at the upper end of [0, 1), which is always train's


def unit_hash(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def assign_parts(
    unit: NDArray[np.float64],
    test: float,
    val: float,
    copies: NDArray[np.int64] | None = None,
) -> NDArray[np.str_]:
    """Return the part of each image of one class, `(n,)` of "train", "val" and "test".

    Each image's own number decides, compared with the shares as thresholds. Only where a count
    misses its share by more than 15 % do the images nearest to the threshold change sides, so an
    added image hardly ever moves another one.

    Args:
        unit: The numbers in [0, 1), `(n,)`, all different.
        test: Share of the test part, 0 for none.
        val: Share of the val part, 0 for none.
        copies: How many identical copies each image has, `(n,)`. An image with so many copies
            that it would fill a whole part goes to train.
    """
    if copies is not None:
        unit = _move_frequent_to_train(unit, copies, (test, val))
    n_test = _count_of_part(unit, 0.0, test)
    n_val = _count_of_part(unit, test, val)
    while n_test + n_val >= max(1, len(unit)):
        if n_test >= n_val:
            n_test -= 1
        else:
            n_val -= 1
    order = np.argsort(unit, kind="stable")
    test_rows = order[:n_test]
    val_rows = order[n_test : n_test + n_val]
    parts = np.full(len(unit), "train", dtype="<U5")
    parts[test_rows] = "test"
    parts[val_rows] = "val"
    return parts


def _move_frequent_to_train(
    unit: NDArray[np.float64], copies: NDArray[np.int64], shares: tuple[float, float]
) -> NDArray[np.float64]:
    """Return the numbers, with those of images that would fill a part alone moved to the end."""
    room = np.inf
    for share in shares:
        if share:
            expected = share * copies.sum()
            room = min(room, expected + _slack(expected))
    return np.where(copies > room, 1 - (1 - unit) * _TRAIN_END, unit)


def _count_of_part(unit: NDArray[np.float64], low: float, share: float) -> int:
    """Return how many images a part gets whose numbers are `low` to `low + share`."""
    if not share:
        return 0
    is_inside = (unit >= low) & (unit < low + share)
    count = int(is_inside.sum())
    wanted = share * len(unit)
    slack = _slack(wanted)
    fewest = max(1, wanted - slack)
    most = max(1, wanted + slack)
    return int(np.clip(count, fewest, most))


def _slack(wanted: float) -> float:
    return max(1.0, float(np.ceil(_SLACK * wanted)))


def allocate(counts: Mapping[int, int], wanted: int) -> dict[int, int]:
    """Return how many images of each class a subset takes: in proportion, at least one of each.

    What proportions leave over goes by the largest remainder.

    Args:
        counts: Images of each class; at least `wanted` in all, at most `wanted` classes.
        wanted: Images in the subset.
    """
    total = sum(counts.values())
    exact = {label: wanted * count / total for label, count in counts.items()}
    quota = {label: max(1, int(share)) for label, share in exact.items()}
    by_rest = sorted(exact, key=lambda label: quota[label] - exact[label])
    taken = sum(quota.values())
    while taken != wanted:
        if taken < wanted:
            label = next(label for label in by_rest if quota[label] < counts[label])
            change = 1
        else:
            label = max(quota, key=lambda label: quota[label])
            change = -1
        quota[label] += change
        taken += change
        by_rest.remove(label)
        by_rest.append(label)
    return quota
