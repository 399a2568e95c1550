"""Prints that every recipe runs end to end, and what the source experiments reach with the network whose weights are installed.

    python benchmarks/recipes.py --cifar FOLDER [--parts small,lite] [--train-images 5000] [--only a,b] [--out recipes.json]

small: every recipe on 500 training images, one epoch, random weights (the installed ones where there are some).
lite: the experiments on EfficientNet-Lite0, on so many training images (0 is all of them), with the test part opened once at the end of each.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from measure import timed, write
from regraft.options import DEFAULT_BACKBONE
from regraft.plans.recipes import all_recipes, find_recipe

LITE = ["--backbone", DEFAULT_BACKBONE]
LATE = [
    "--set",
    'until=["blocks.2.1", "blocks.3.2", "blocks.4.2", "blocks.5.0", "blocks.5.1", "blocks.5.2", "blocks.5.3", "blocks.6", "end"]',
]
WIDE = [
    word
    for change in (
        "head=bn, dropout 0.3, dense 1024 relu, dropout 0.5",
        "phases.0.augment=light",
        "phases.0.views=4",
        "phases.0.schedule=warmup-cosine",
        "phases.0.lr=0.002",
        "phases.0.label_smoothing=0.1",
        "phases.0.monitor=val_accuracy",
    )
    for word in ("--set", change)
]
EXPERIMENTS: dict[str, list[str]] = {
    "frozen (A1)": ["vgg16-frozen", *LITE, "--set", "until=end", "--resolution", "224"],
    "frozen, late blocks side by side": [
        "vgg16-frozen",
        *LITE,
        *LATE,
        "--resolution",
        "160",
        *WIDE,
    ],
    "cut off (A2)": ["vgg16-three-blocks", *LITE, "--set", "until=blocks.2"],
    "last stage (C)": [
        "resnet50-last-stage",
        *LITE,
        "--set",
        "phases.0.train=blocks.5",
        "--resolution",
        "128",
    ],
    "everything, today": ["tf_efficientnet_lite0-today"],
    "everything, small rate": ["vgg16-fine-tune", *LITE, "--set", "until=end"],
    "from scratch": ["vgg16-from-scratch", *LITE, "--set", "until=end"],
}
EPOCHS_OF_ALL = {  # on all images, two cores
    "frozen, late blocks side by side": "16",
    "last stage (C)": "3",
    "everything, today": "2",
    "everything, small rate": "1",
    "from scratch": "1",
}


def small(cifar: str, home: Path, only: list[str]) -> list[dict[str, Any]]:
    """Every recipe at reduced size, each in a process of its own with an empty cache."""
    found = []
    print(
        "\n| recipe | wall, s | val accuracy of 500 images | parameters trained | of |\n|---|---|---|---|---|"
    )
    for name in only or all_recipes():
        weights = (
            [] if find_recipe(name).plan.backbone == DEFAULT_BACKBONE else ["--weights", "random"]
        )
        words = [
            "recipes",
            "run",
            name,
            cifar,
            "--train-images",
            "500",
            "--epochs",
            "1",
            *weights,
            "--out",
            f"small-{name}",
            "-q",
            "--json",
        ]
        seconds, printed, _ = timed(words, home, f"cache-{name}")
        told = json.loads(printed)["measured"]
        shutil.rmtree(home / f"cache-{name}")
        found.append({"name": name, "seconds": seconds, **told})
        counts = told["parameters"]
        print(
            f"| {name} | {seconds:.0f} | {told['val_accuracy']:.3f} | {counts['trainable']:,} | {counts['total']:,} |",
            flush=True,
        )
    return found


def lite(cifar: str, home: Path, train_images: int, only: list[str]) -> list[dict[str, Any]]:
    """The experiments with EfficientNet-Lite0; the test part is opened at the end of each."""
    found = []
    print(f"\n{train_images or 'all'} training images\n")
    print(
        "| experiment | reported val | train | val | gap | test | 95 % interval | epochs | minutes | frozen part once, s | every epoch, s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for number, (name, words) in enumerate(EXPERIMENTS.items()):
        if only and name not in only:
            continue
        count = (
            ["--train-images", str(train_images), "--val-images", "2000"]
            if train_images
            else ["--epochs", EPOCHS_OF_ALL.get(name, "10")]
        )
        started = [
            "recipes",
            "run",
            words[0],
            cifar,
            *words[1:],
            *count,
            "--out",
            f"lite-{number}",
            "-q",
            "--json",
        ]
        told = json.loads(timed(started, home)[1])
        test = json.loads(
            timed(["evaluate", f"lite-{number}", "--split", "test", "-q", "--json"], home)[1]
        )["test"]
        got, (low, high) = told["measured"], test["ci95"]
        reported = told["reported"].get("val_accuracy")
        found.append(
            {
                "experiment": name,
                "words": words,
                "reported": reported,
                "measured": got,
                "test": test,
            }
        )
        print(
            f"| {name} | {f'{reported:.4f}' if reported else '–'} | {got['train_accuracy']:.4f} | {got['val_accuracy']:.4f} | {got['gap']:+.4f} | "
            f"{test['accuracy']:.4f} | {low:.3f}–{high:.3f} | {got['epochs']} | {got['minutes']:.1f} | {_seconds(got['frozen_seconds'])} | "
            f"{_seconds(got['frozen_every_epoch_seconds'])} |",
            flush=True,
        )
    return found


def _seconds(given: float | None) -> str:
    return "–" if given is None else f"{given:.0f}"  # nothing is frozen


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", required=True, help="a folder with CIFAR-10 as Parquet")
    parser.add_argument("--parts", default="small,lite")
    parser.add_argument("--train-images", type=int, default=5000)
    parser.add_argument(
        "--only",
        default="",
        help="recipes of small, or experiments of lite, separated by commas (semicolons for lite)",
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = dict[str, Any]()
    cifar = str(Path(options.cifar).resolve())
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        if "small" in options.parts.split(","):
            found["small"] = small(cifar, home, [name for name in options.only.split(",") if name])
        if "lite" in options.parts.split(","):
            found["lite"] = lite(
                cifar,
                home,
                options.train_images,
                [name for name in options.only.split(";") if name],
            )
    write(options.out, **found)


if __name__ == "__main__":
    main()
