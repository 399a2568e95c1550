"""Prints how long the report on eight runs with 10,000 test images takes, whole process, and how large the page is.

python benchmarks/report.py --cifar FOLDER [--trials 3] [--out report.json]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median

from measure import timed, write

WORDS = [
    "--techniques",
    "linear-probe,feature-extraction",
    "--seeds",
    "4",
    "--train-images",
    "2000",
    "--resolution",
    "64",
    "--out",
    "runs",
    "-q",
]


def main() -> None:
    """Make eight runs, then report on them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", required=True, help="a folder with CIFAR-10 as Parquet")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        timed(["compare", str(Path(options.cifar).resolve()), *WORDS], home)
        seconds = [
            timed(["report", "runs", "--out", f"report-{trial}.html", "-q"], home)[0]
            for trial in range(options.trials)
        ]
        size = (home / "report-0.html").stat().st_size
    print("\n| runs | test images | seconds, median (from–to) | MB |\n|---|---|---|---|")
    print(
        f"| 8 | 10,000 | {median(seconds):.1f} ({min(seconds):.1f}–{max(seconds):.1f}) | {size / 1e6:.2f} |"
    )
    write(options.out, seconds=seconds, bytes=size)


if __name__ == "__main__":
    main()
