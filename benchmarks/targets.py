"""Prints the figures that the main job must reach: digits with the defaults, CIFAR-10 probes, start-up, memory on all of CIFAR-10.

    python benchmarks/targets.py [--cifar FOLDER] [--trials 3] [--out targets.json]

Every command runs in a process of its own with an empty cache; the spread is smallest to largest over the trials.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from regraft.system.hardware import describe_environment

REGRAFT = str(Path(sys.executable).with_name("regraft"))


def timed(words: list[str], home: Path) -> tuple[float, str, int]:
    """Return wall seconds, stdout and peak memory in MB of one command in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    started = time.perf_counter()
    done = subprocess.run(
        [REGRAFT, *words],
        capture_output=True,
        text=True,
        check=True,
        cwd=home,
        env={**os.environ, "REGRAFT_CACHE": str(home / "cache")},
    )
    seconds = time.perf_counter() - started
    return (
        seconds,
        done.stdout,
        max(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) // 1024,
    )


def trial(cifar: Path | None, whole: bool) -> dict[str, Any]:
    """Return the figures of one trial."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        for name, words in (("regraft --help", ["--help"]), ("regraft techniques", ["techniques"])):
            found[f"{name}, s"] = timed(words, home)[0]
        seconds, out, _ = timed(["compare", "digits", "-q", "--json"], home)
        found["compare digits, s"] = seconds
        for row in json.loads(out)["rows"]:
            found[f"digits {row['technique']}, test accuracy"] = row["test"]["accuracy"]
        if cifar:
            for technique in ("linear-probe", "multi-layer-probe"):
                shutil.rmtree(home / "cache")
                words = [
                    "compare",
                    str(cifar),
                    "--train-images",
                    "5000",
                    "--resolution",
                    "96",
                    "--techniques",
                    technique,
                    "--out",
                    technique,
                    "-q",
                    "--json",
                ]
                seconds, out, _ = timed(words, home)
                found[f"cifar10 5,000 images, 96 px, {technique}, s"] = seconds
                found[f"cifar10 5,000 images, 96 px, {technique}, test accuracy"] = json.loads(out)[
                    "rows"
                ][0]["test"]["accuracy"]
        if cifar and whole:
            seconds, out, memory = timed(
                [
                    "compare",
                    str(cifar),
                    "--resolution",
                    "96",
                    "--techniques",
                    "linear-probe",
                    "--out",
                    "all",
                    "-q",
                    "--json",
                ],
                home,
            )
            found["cifar10 all images, 96 px, linear-probe, s"] = seconds
            found["cifar10 all images, 96 px, linear-probe, test accuracy"] = json.loads(out)[
                "rows"
            ][0]["test"]["accuracy"]
            found["cifar10 all images, 96 px, linear-probe, peak memory MB"] = memory
    return found


def main() -> None:
    """Run the trials and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", type=Path, help="a folder with CIFAR-10 as Parquet")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    trials = [
        trial(options.cifar and options.cifar.resolve(), whole=number == 0)
        for number in range(options.trials)
    ]
    rows = {}
    for name in trials[0]:
        values = [one[name] for one in trials if name in one]
        rows[name] = {
            "median": median(values),
            "smallest": min(values),
            "largest": max(values),
            "trials": len(values),
        }
        print(
            f"{name:62} {median(values):10.4f}   {min(values):.4f} – {max(values):.4f}   ({len(values)})"
        )
    where = describe_environment()
    print(
        f"{where['processor']}, {where['cores']} cores, Python {where['python']}, {where['packages']}"
    )
    if options.out:
        options.out.write_text(json.dumps({"environment": where, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
