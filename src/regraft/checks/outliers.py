"""Classes that are much rarer than others, and images that are much unlike the rest in form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.data.dataset import PARTS, Dataset, Split, Unreadable

UNEVEN_RATIO = 3.0  # times by which the largest class may outnumber the smallest before it is said
_FEW = 10  # images of a class in train below which it is said
_LONG = 4.0  # longer side over shorter side
_FLAT = 4  # steps of brightness in which an image is called one colour
_SMALL = 4.0  # median side over shorter side


def class_balance(data: Dataset, split: Split) -> dict[str, Any]:
    """Return `classes` (rows `name` and a count for each part), `ratio` of the largest to the smallest in train, and `few`, the names of rare ones."""
    counts = {
        part: np.bincount(data.labels[split[part]], minlength=len(data.classes)) for part in PARTS
    }
    rows: list[dict[str, Any]] = [
        {"name": name, **{part: int(counts[part][label]) for part in PARTS}}
        for label, name in enumerate(data.classes)
    ]
    train = counts["train"]
    return {
        "classes": rows,
        "ratio": float(train.max() / max(1, train.min())),
        "few": [row["name"] for row in rows if row["train"] < _FEW],
    }


def find_odd_files(
    data: Dataset, rows: NDArray[np.int64]
) -> tuple[list[dict[str, Any]], NDArray[np.int64]]:
    """Return what is odd about files, and the rows that can be decoded at all.

    Args:
        data: Labelled images.
        rows: Those to look at.

    Returns:
        Rows `row` and `why`: unreadable, very long, very small; and the readable ones of `rows`.
    """
    found: list[dict[str, Any]] = []
    try:
        sizes = data.images.sizes(rows)
    except Unreadable as error:
        bad = set(error.rows)
        found += [
            {"row": int(row), "why": f"cannot be read: {reason}"}
            for row, reason in zip(error.rows, error.reasons, strict=True)
        ]
        rows = np.array([row for row in rows.tolist() if row not in bad], dtype=np.int64)
        sizes = data.images.sizes(rows)
    short, long = sizes.min(axis=1), sizes.max(axis=1)
    usual = float(np.median(short)) if len(short) else 0.0
    for row, height, width in zip(
        rows[long > _LONG * short].tolist(), *sizes[long > _LONG * short].T.tolist(), strict=True
    ):
        found.append({"row": row, "why": f"{width} × {height} pixels: only the centre is seen"})
    for row, height, width in zip(
        rows[short * _SMALL < usual].tolist(),
        *sizes[short * _SMALL < usual].T.tolist(),
        strict=True,
    ):
        found.append(
            {
                "row": row,
                "why": f"{width} × {height} pixels, most are {usual:.0f} on the shorter side",
            }
        )
    return found, rows


def find_flat_images(
    stored: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], rows: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """Return `row` and `why` of the images that are one colour throughout.

    Args:
        stored: Pixels `(h, w, 3)` of each of `rows`.
        rows: Where they are in the table.
    """
    plain = [
        row
        for row, image in zip(rows.tolist(), stored, strict=True)
        if int(np.ptp(image.reshape(-1, 3), axis=0).max()) < _FLAT
    ]
    return [{"row": row, "why": "one colour throughout"} for row in plain]
