"""Where images fall by a number that each has of its own, class by class, and how many of each class a subset takes.

Refuses chance: the same names always fall alike, whatever else is in the table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

_SLACK = 0.15  # by which a class may miss its share of a part before images are moved
_LAST = 1e-6  # of the numbers, at the end that is always train's


def unit_hash(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone."""
    return (
        int.from_bytes(
            hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        )
        / 2**64
    )


def assign_parts(
    unit: NDArray[np.float64], test: float, val: float, copies: NDArray[np.int64] | None = None
) -> NDArray[np.str_]:
    """Return the parts of one class: by thresholds on each image's own number, the counts held within 15 % of their shares.

    Only where chance strays further do the images nearest to a border change sides; so an added image hardly ever moves another.

    Args:
        unit: The numbers, all different.
        test: Share of the test part.
        val: Share of the val part.
        copies: How often each image is there. One that is there so often that it would fill a part alone goes to train.
    """
    if copies is not None:
        room = min(
            (share * copies.sum() + _slack(share * copies.sum()) for share in (test, val) if share),
            default=np.inf,
        )
        unit = np.where(copies > room, 1 - (1 - unit) * _LAST, unit)
    order = np.argsort(unit, kind="stable")
    ends, low = [], 0.0
    for share in (test, val):
        count, wanted = int(((unit >= low) & (unit < low + share)).sum()), share * len(unit)
        least = 1 if share else 0
        ends.append(
            int(
                np.clip(
                    count, max(least, wanted - _slack(wanted)), max(least, wanted + _slack(wanted))
                )
            )
            if share
            else 0
        )
        low += share
    while sum(ends) >= max(1, len(unit)):
        ends[ends.index(max(ends))] -= 1
    parts = np.full(len(unit), "train", dtype="<U5")
    parts[order[: ends[0]]] = "test"
    parts[order[ends[0] : sum(ends)]] = "val"
    return parts


def _slack(wanted: float) -> float:
    return max(1.0, float(np.ceil(_SLACK * wanted)))


def allocate(counts: Mapping[int, int], wanted: int) -> dict[int, int]:
    """Return how many of each class are taken so that `wanted` are: in proportion (largest remainder), at least one of each.

    Args:
        counts: Images of each class; no fewer than `wanted` in all, no more classes than that.
        wanted: How many images.
    """
    total = sum(counts.values())
    exact = {label: wanted * count / total for label, count in counts.items()}
    quota = {label: max(1, int(share)) for label, share in exact.items()}
    by_rest = sorted(exact, key=lambda label: quota[label] - exact[label])
    while sum(quota.values()) != wanted:
        if sum(quota.values()) < wanted:
            label = next(one for one in by_rest if quota[one] < counts[one])
            quota[label] += 1
        else:
            label = max(quota, key=lambda one: quota[one])
            quota[label] -= 1
        by_rest.remove(label)
        by_rest.append(label)
    return quota
