"""Runs every benchmark, one after the other, and leaves a folder with what each printed (.txt) and measured (.json).

    python benchmarks/everything.py --cifar FOLDER [--out results] [--quick]

Takes hours on two cores; --quick takes about a quarter of an hour and shows that everything works, its figures mean nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
_ABLATION = ["--train-images", "2000", "--val-images", "2000"]


def commands(cifar: str, quick: bool) -> dict[str, list[str]]:
    """Return the words of each benchmark by the name of its files."""
    few = (
        [
            "--train-images",
            "200",
            "--val-images",
            "100",
            "--epochs",
            "2",
            "--measured",
            "2",
            "--peers",
            "plain-eval-malloc",
        ]
        if quick
        else []
    )
    all_few = few or ["--train-images", "2000", "--epochs", "5"]
    return {
        "targets": ["targets.py", "--cifar", cifar, "--trials", "1" if quick else "3"],
        "limits": [
            "limits.py",
            "--compile",
            *(["--trials", "1", "--resolution", "32"] if quick else []),
        ],
        "growth": [
            "growth.py",
            "--cifar",
            cifar,
            *(
                ["--images", "500,1000", "--epochs", "1,2", "--at", "500"]
                if quick
                else ["--trials", "3"]
            ),
        ],
        "gpu": ["gpu.py", "--cifar", cifar, *(["--small-on-cpu"] if quick else [])],
        "ablation": [
            "ablation.py",
            cifar,
            *(
                ["--train-images", "200", "--seeds", "1", "--variants", "as it is"]
                if quick
                else _ABLATION
            ),
        ],
        "probe": [
            "probe.py",
            "--cifar",
            cifar,
            *(["--images", "300,200", "--solver-images", "1000", "--trials", "1"] if quick else []),
        ],
        "hit-rate": [
            "hit_rate.py",
            "digits",
            f"{cifar}={200 if quick else 1000}",
            *(["--resolutions", "32,48", "--until", "blocks.5.3,end"] if quick else []),
        ],
        "recipes": [
            "recipes.py",
            "--cifar",
            cifar,
            *(["--parts", "small", "--only", "densenet121-transfer"] if quick else []),
        ],
        "checks": [
            "checks.py",
            "--cifar",
            cifar,
            *(["--images", "600", "--resolution", "64", "--seeds", "1"] if quick else []),
        ],
        "report": ["report.py", "--cifar", cifar, *(["--trials", "1"] if quick else [])],
        "using": [
            "using.py",
            "--cifar",
            cifar,
            *(["--images", "300", "--trials", "1"] if quick else ["--int8"]),
        ],
        "serving": ["serving.py", *(["--seconds", "5", "--clients", "20"] if quick else [])],
        "peers-frozen": ["peers.py", "--cifar", cifar, "--task", "frozen", *few],
        "peers-last": ["peers.py", "--cifar", cifar, "--task", "last", *few],
        "peers-all": ["peers.py", "--cifar", cifar, "--task", "all", *all_few],
    }


def main() -> None:
    """Run them all; say at the end which failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cifar", type=Path, required=True, help="a folder with CIFAR-10 as Parquet"
    )
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for name, (script, *words) in commands(str(options.cifar.resolve()), options.quick).items():
        print(f"── {name}", flush=True)
        written = ["--out", str((options.out / f"{name}.json").resolve())]
        done = subprocess.run(
            [sys.executable, str(HERE / script), *words, *written],
            stdout=subprocess.PIPE,
            text=True,
        )
        (options.out / f"{name}.txt").write_text(done.stdout)
        print(done.stdout)
        failed += [name] if done.returncode else []
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
