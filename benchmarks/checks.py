"""Prints how many planted faults `regraft check` finds among real images: duplicates across parts, flipped labels.

    python benchmarks/checks.py --cifar FOLDER [--images 5000] [--resolution 96] [--seeds 5] [--out checks.json]

Of so many CIFAR-10 images, a fifth of them test: 50 test images are replaced by training images, byte for byte, 50 more by training images
mirrored or saved again at JPEG quality 50; 2 % of the labels are flipped to another class. Printed are the shares found, for each seed.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from measure import write
from regraft.checks.duplicates import FEATURE_THRESHOLD, THUMBNAIL_THRESHOLD
from regraft.commands.check import check
from regraft.data.dataset import Dataset, make_dataset
from regraft.data.images import ArrayImages
from regraft.data.load import load_dataset
from regraft.options import CacheOptions, Options, PlanOverrides

PLANTED = 50
FLIPPED = 0.02
LOOKED_AT = 0.04  # share of the ranking in which flipped labels are looked for


def planted(
    images: Dataset, count: int, seed: int
) -> tuple[Dataset, np.ndarray, list[tuple[str, str]]]:
    """Return images with planted faults, the rows of flipped labels, and the pairs of keys that are near duplicates."""
    rng = np.random.default_rng(seed)
    taken = images.take(
        np.sort(images.subset(np.flatnonzero(images.parts == "train"), count, seed))
    )
    pixels, labels = np.stack(taken.images.read(np.arange(count))), taken.labels.copy()
    parts = np.where(rng.permutation(count) < count // 5, "test", "train")
    test, train = (
        rng.permutation(np.flatnonzero(parts == "test")),
        rng.permutation(np.flatnonzero(parts == "train")),
    )
    pixels[test[:PLANTED]] = pixels[train[:PLANTED]]
    labels[test[: 2 * PLANTED]] = labels[train[: 2 * PLANTED]]
    near = []
    for number, (victim, donor) in enumerate(
        zip(test[PLANTED : 2 * PLANTED], train[PLANTED : 2 * PLANTED], strict=True)
    ):
        pixels[victim] = pixels[donor][:, ::-1] if number % 2 else _worse(pixels[donor])
        near.append((f"{donor:05}", f"{victim:05}"))
    untouched = np.setdiff1d(
        np.arange(count), np.concatenate([test[: 2 * PLANTED], train[: 2 * PLANTED]])
    )
    flipped = rng.choice(untouched, round(FLIPPED * count), replace=False)
    labels[flipped] = (labels[flipped] + rng.integers(1, len(images.classes), len(flipped))) % len(
        images.classes
    )
    made = make_dataset(
        "planted",
        labels,
        list(images.classes),
        ArrayImages(pixels),
        keys=[f"{row:05}" for row in range(count)],
        parts=parts.tolist(),
    )
    return made, flipped, near


def _worse(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=50)
    return np.array(Image.open(buffer))


def measure(
    images: Dataset, count: int, resolution: int, seed: int, cache_dir: Path
) -> dict[str, Any]:
    """Return the shares of planted faults that a check finds."""
    dataset, flipped, near = planted(images, count, seed)
    options = Options(cache=CacheOptions(cache_dir))
    findings = check(dataset, PlanOverrides(resolution=resolution), options).findings
    first = findings.suspects[: round(LOOKED_AT * count)]
    suspects = {suspect.image.key for suspect in first}
    written = findings.to_json()
    pairs = {tuple(sorted(pair["keys"])) for pair in written["near"]}
    expected = {tuple(sorted(pair)) for pair in near}
    matched = len(pairs & expected)
    return {
        "seed": seed,
        "exact": findings.exact_across,
        "near": matched,
        "near_other": len(findings.near) - matched,
        "flipped": len(flipped),
        "found": sum(f"{row:05}" in suspects for row in flipped),
        "stand_out": findings.suspect_count,
    }


def main() -> None:
    """Plant, check, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", required=True, help="a folder with CIFAR-10 as Parquet")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--resolution", type=int, default=96)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        images = load_dataset(options.cifar, home)
        rows = [
            measure(images, options.images, options.resolution, seed, home)
            for seed in range(options.seeds)
        ]
    print(
        f"\n{options.images:,} images at {options.resolution} px; near: cosine of thumbnails {THUMBNAIL_THRESHOLD}, of features {FEATURE_THRESHOLD}\n"
    )
    print(
        f"| seed | exact, of {PLANTED} | near, of {PLANTED} | other near pairs | flipped labels in the first {LOOKED_AT:.0%} | stand out |"
    )
    print("|---|---|---|---|---|---|")
    for row in rows:
        share = row["found"] / row["flipped"]
        flips = f"{row['found']} of {row['flipped']} ({share:.0%})"
        print(
            f"| {row['seed']} | {row['exact']} | {row['near']} | {row['near_other']} | {flips} | {row['stand_out']} |"
        )
    print(
        f"\nmedian share of flipped labels found: {median(row['found'] / row['flipped'] for row in rows):.0%}"
    )
    write(options.out, rows=rows)


if __name__ == "__main__":
    main()
