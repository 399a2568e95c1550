"""Runs the same fit again with other numbers of arithmetic threads, and prints how far the answers are apart; what is not reproducible, with its size.

    OMP_NUM_THREADS=1 python benchmarks/repeat.py [--data digits] [--technique fine-tune] [--threads 1,1,2] [--out repeat.json]

The first is what the others are held beside. A run's probabilities and its accuracy on validation are compared; weights bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


def fitted(options: argparse.Namespace, threads: str, out: Path) -> Path:
    """Fit in a process of its own with a cache of its own; returns the run's folder."""
    words = [
        options.data,
        "--technique",
        options.technique,
        "--train-images",
        str(options.train_images),
        "--out",
        str(out),
        "--cache",
        f"{out}-cache",
        "-q",
    ]
    words += [word for change in options.set for word in ("--set", change)]
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    subprocess.run(
        [sys.executable, "-m", "regraft", "fit", *words],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    return out


def beside(first: Path, other: Path) -> dict[str, Any]:
    """Return how two runs differ."""
    from regraft.evaluation.scores import log_softmax
    from regraft.runs.folder import load_run

    runs = [load_run(path) for path in (first, other)]
    weights = [one.weights() for one in runs]
    chances = [np.exp(log_softmax(one.predictions()["logits"])) for one in runs]
    return {
        "same_bits": all(
            bool((value == weights[1][name]).all()) for name, value in weights[0].items()
        ),
        "probability": float(np.abs(chances[0] - chances[1]).max()),
        "other_class": int((chances[0].argmax(1) != chances[1].argmax(1)).sum()),
        "n": len(chances[0]),
        "accuracy": [one.scores["val"]["accuracy"] for one in runs],
    }


def main() -> None:
    """Fit, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="digits")
    parser.add_argument("--technique", default="fine-tune")
    parser.add_argument("--train-images", type=int, default=300)
    parser.add_argument("--set", action="append", default=[], help="a change to the plan")
    parser.add_argument(
        "--threads",
        default="1,1,2",
        help="arithmetic threads of each run; the first is what the others are held beside",
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    counts, told = options.threads.split(","), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory(prefix="regraft-repeat-") as top:
        made = [
            fitted(options, threads, Path(top) / f"run-{number}")
            for number, threads in enumerate(counts)
        ]
        print(
            f"{options.technique} on {options.train_images} images of {options.data}, beside {counts[0]} thread(s)\n"
        )
        print(
            "| threads | same bits | largest difference of a probability | other class | accuracy on validation |\n|---|---|---|---|---|"
        )
        for threads, one in zip(counts[1:], made[1:], strict=True):
            found = beside(made[0], one)
            told.append({"threads": threads, **found})
            both = " and ".join(f"{value:.4f}" for value in found["accuracy"])
            print(
                f"| {threads} | {'yes' if found['same_bits'] else 'no'} | {found['probability']:.2g} | {found['other_class']} of {found['n']} | {both} |",
                flush=True,
            )
    if options.out:
        options.out.write_text(
            json.dumps(
                {"technique": options.technique, "data": options.data, "runs": told}, indent=2
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
