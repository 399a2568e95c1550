"""Prints how the cost grows with the number of images, of epochs, and of techniques compared, and draws it on logarithmic axes.

    python benchmarks/growth.py --cifar FOLDER [--images 1000,2000,…,50000] [--trials 1] [--techniques-only] [--out growth.json] [--plot growth.png]

Every point is a process of its own, from start to result. Images: linear-probe with an empty cache, and a second run on the same frozen
part. Epochs: a head trained by batches on kept features. Techniques: k frozen plans in one comparison against the dearest of them alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from frozen_plans import EIGHT
from measure import spread, timed, write

_RESOLUTION = "96"


def fit(cifar: Path, home: Path, images: int, technique: str, *more: str) -> dict[str, float]:
    """Return wall seconds, seconds of work, accuracy and memory of one `fit`."""
    shutil.rmtree(home / "run", ignore_errors=True)
    words = [
        "fit",
        str(cifar),
        "--technique",
        technique,
        "--resolution",
        _RESOLUTION,
        "--train-images",
        str(images),
        "--out",
        "run",
        "-q",
        "--json",
        *more,
    ]
    wall, out, memory = timed(words, home)
    scores = json.loads(out)
    return {
        "wall": wall,
        "work": scores["seconds"]["total"],
        "val_accuracy": scores["val"]["accuracy"],
        "memory_mb": memory,
    }


def compare(cifar: Path, home: Path, images: int, ways: tuple[str, ...]) -> float:
    """Return wall seconds of one comparison with an empty cache."""
    for folder in ("cache", "compare"):
        shutil.rmtree(home / folder, ignore_errors=True)
    words = [
        "compare",
        str(cifar),
        "--techniques",
        ",".join(ways),
        "--resolution",
        _RESOLUTION,
        "--train-images",
        str(images),
        "--out",
        "compare",
        "-q",
    ]
    return timed(words, home)[0]


def by_images(cifar: Path, home: Path, counts: list[int]) -> list[dict[str, Any]]:
    """Return a row for each number of images: an empty cache, then another head on the same frozen part."""
    rows = []
    for count in counts:
        shutil.rmtree(home / "cache", ignore_errors=True)
        first = fit(cifar, home, count, "linear-probe")
        second = fit(cifar, home, count, "linear-probe", "--set", "phases.0.l2=[0.02]")
        rows.append(
            {"images": count, **first, "second_work": second["work"], "second_wall": second["wall"]}
        )
        print(
            f"{count:8,} images  {first['wall']:7.1f} s  second run {second['wall']:5.1f} s, {second['work']:5.1f} s of work"
            f"  val {first['val_accuracy']:.4f}  {first['memory_mb']:,} MB"
        )
    return rows


def by_epochs(cifar: Path, home: Path, images: int, counts: list[int]) -> list[dict[str, Any]]:
    """Return a row for each number of epochs; the frozen part is computed anew each time."""
    rows = []
    for count in counts:
        shutil.rmtree(home / "cache", ignore_errors=True)
        changes = [
            f"phases.0.epochs={count}",
            "phases.0.patience=0",
            "head=''",
            "phases.0.batch_size=64",
        ]
        row = fit(
            cifar,
            home,
            images,
            "feature-extraction",
            *(word for change in changes for word in ("--set", change)),
        )
        rows.append({"epochs": count, **row})
        print(f"{count:8,} epochs  {row['wall']:7.1f} s  val {row['val_accuracy']:.4f}")
    return rows


def by_techniques(cifar: Path, home: Path, images: int, trials: int) -> dict[str, Any]:
    """Return wall seconds for one, two, four and eight frozen plans, and for the dearest alone, measured in turns."""
    times: dict[str, list[float]] = {
        "dearest alone": [],
        **{str(count): [] for count in (1, 2, 4, 8)},
    }
    for _ in range(trials):
        for name, seen in times.items():
            ways = ("multi-layer-probe",) if name == "dearest alone" else EIGHT[: int(name)]
            seen.append(compare(cifar, home, images, ways))
    found = {name: spread(values) for name, values in times.items()}
    for name, one in found.items():
        print(
            f"{name:>14} plans  {one['median']:7.1f} s ({one['smallest']:.1f} – {one['largest']:.1f})"
        )
    print(
        f"eight plans cost {found['8']['median'] / found['dearest alone']['median']:.2f} times the dearest alone"
    )
    return found


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the three courses side by side on logarithmic axes."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), sharey=True, layout="constrained")
    rows = found["images"]
    axes[0].loglog(
        [row["images"] for row in rows], [row["wall"] for row in rows], "o-", label="empty cache"
    )
    axes[0].loglog(
        [row["images"] for row in rows],
        [row["second_wall"] for row in rows],
        "s--",
        label="second run",
    )
    axes[0].legend()
    axes[1].loglog(
        [row["epochs"] for row in found["epochs"]], [row["wall"] for row in found["epochs"]], "o-"
    )
    plans = {
        int(name): one["median"] for name, one in found["techniques"].items() if name.isdigit()
    }
    axes[2].loglog(list(plans), list(plans.values()), "o-")
    for axis, label in zip(
        axes, ("training images", "epochs of the head", "frozen plans compared"), strict=True
    ):
        axis.set_xlabel(label)
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("seconds, process from start to end")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cifar", type=Path, required=True, help="a folder with CIFAR-10 as Parquet"
    )
    parser.add_argument("--images", default="1000,2000,5000,10000,20000,44000")
    parser.add_argument("--epochs", default="1,3,10,30")
    parser.add_argument(
        "--at", type=int, default=5000, help="training images while epochs and techniques grow"
    )
    parser.add_argument("--trials", type=int, default=1, help="of the comparison")
    parser.add_argument("--techniques-only", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    cifar = options.cifar.resolve()
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        found: dict[str, Any] = {}
        if not options.techniques_only:
            found["images"] = by_images(
                cifar, home, [int(count) for count in options.images.split(",")]
            )
            found["epochs"] = by_epochs(
                cifar, home, options.at, [int(count) for count in options.epochs.split(",")]
            )
        found["techniques"] = by_techniques(cifar, home, options.at, options.trials)
    if options.plot and not options.techniques_only:
        draw(found, options.plot)
    write(options.out, **found, resolution=int(_RESOLUTION))


if __name__ == "__main__":
    main()
