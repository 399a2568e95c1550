"""Prints what each ingredient of fine-tuning is worth: the technique's own plan, and the same with one thing changed.

    python benchmarks/ablation.py DATA [DATA …] [--train-images 1000] [--val-images N] [--resolution 64] [--seeds 2] [--variants a,b] [--out ablation.json]

Judged on validation, as the defaults are; the test part stays shut. Every row is `regraft fit` in a process of its own, the split is the
same for all, the seeds decide order, augmentation and head.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from measure import timed, write

VARIANTS: dict[str, list[str]] = {
    "as it is": [],
    "no label smoothing": ["phases.0.label_smoothing=0"],
    "cosine, no warm-up": ["phases.0.schedule=cosine"],
    "constant rate": ["phases.0.schedule=constant"],
    "one rate for all layers": ["phases.0.layer_decay=1.0"],
    "half the rate": ["phases.0.lr=1e-3"],
    "twice the rate": ["phases.0.lr=4e-3"],
    "mixup 0.2": ["phases.0.mixup=0.2"],
    "cutmix 1.0": ["phases.0.cutmix=1.0"],
    "EMA 0.98": ["phases.0.ema=0.98"],
    "augment light": ["phases.0.augment=light"],
    "augment standard": ["phases.0.augment=standard"],
    "BatchNorm adapts": ["phases.0.batch_norm=adapt"],
}


def row(data: str, changes: list[str], options: argparse.Namespace, home: Path) -> dict[str, Any]:
    """Return validation accuracy and loss of each seed, and the seconds of training."""
    found: dict[str, Any] = {"accuracy": [], "loss": [], "seconds": []}
    for seed in range(options.seeds):
        shutil.rmtree(home / "run", ignore_errors=True)
        words = [
            "fit",
            data,
            "--technique",
            "fine-tune",
            "--train-images",
            str(options.train_images),
            "--resolution",
            str(options.resolution),
        ]
        words += ["--val-images", str(options.val_images)] if options.val_images else []
        words += [
            "--seed",
            str(seed),
            "--compile",
            "off",
            "--out",
            "run",
            "-q",
            "--json",
            *(word for change in changes for word in ("--set", change)),
        ]
        scores = json.loads(timed(words, home)[1])
        for name, value in (
            ("accuracy", scores["val"]["accuracy"]),
            ("loss", scores["val"]["loss"]),
            ("seconds", scores["seconds"]["train"]),
        ):
            found[name].append(value)
        found["images"] = scores["val"]["n"]
    return found


def main() -> None:
    """Measure every variant on every dataset and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+")
    parser.add_argument("--train-images", type=int, default=1000)
    parser.add_argument("--val-images", type=int)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = dict[str, Any]()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        for data in options.data:
            where = str(Path(data).resolve()) if Path(data).exists() else data
            for name in options.variants.split(","):
                one = found.setdefault(Path(data).name, {})[name] = row(
                    where, VARIANTS[name], options, home
                )
                mean, loss = sum(one["accuracy"]) / options.seeds, sum(one["loss"]) / options.seeds
                each = ", ".join(f"{value:.4f}" for value in one["accuracy"])
                print(
                    f"{Path(data).name:16} {name:26} val {mean:.4f} ({each})  loss {loss:.4f}  {sum(one['seconds']) / options.seeds:6.1f} s",
                    flush=True,
                )
    write(
        options.out,
        train_images=options.train_images,
        resolution=options.resolution,
        seeds=options.seeds,
        found=found,
    )


if __name__ == "__main__":
    main()
