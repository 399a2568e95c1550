"""Times an old version of regraft and this checkout in turns, and prints the median of the ratios.

    python benchmarks/speed.py --old-python ~/old/bin/python --rounds 5
    python benchmarks/speed.py --old-path ../regraft-0.1 --smoke

Three commands, with their defaults: `compare digits`, `probe digits`, and `embed` of 2,000 CIFAR-10
images at 96 px (noise of the same size where `--data` has no CIFAR-10). Each is a process of its
own in a fresh folder with an empty cache; old and new take turns within a round, so that a slow
minute of the machine meets both. Have nothing else running. A ratio is new over old.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from statistics import median

import numpy as np

from parity_data import CLASSES, read_cifar_pixels
from parity_sides import Side, make_parser, make_sides

IMAGES = 2000
LIMIT = 1.03
END = ("--json", "-q")
EMBED = ("embed", "../images.npz", "--resolution", "96", "--out", "features.parquet")
TASKS = {
    "compare digits": ("compare", "digits", "--out", "compare", *END),
    "probe digits": ("probe", "digits", "--out", "probe", *END),
    "embed": (*EMBED, *END),
}
TINY = ("--backbones", "test_resnet.r160_in1k", "--weights", "random", "--train-images", "60")
SMOKE = {
    "compare digits": (*TASKS["compare digits"], *TINY, "--techniques", "linear-probe"),
    "probe digits": (*TASKS["probe digits"], *TINY, "--resolutions", "32"),
    "embed": (*TASKS["embed"], "--backbone", "test_resnet.r160_in1k", "--weights", "random"),
}


def write_images(source: Path, target: Path, count: int) -> str:
    """Write `count` images as `.npz`, CIFAR-10 or else noise; returns which."""
    parquet = source / "cifar10" / "train-00000-of-00001.parquet"
    if parquet.is_file():
        pixels, labels = read_cifar_pixels(parquet, count // len(CLASSES))
        kind = "CIFAR-10"
    else:
        pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        labels = np.arange(count) % len(CLASSES)
        kind = "noise"
    np.savez(target, images=pixels, labels=labels)
    return f"{len(labels):,} images of {kind}"


def time_command(side: Side, words: tuple[str, ...]) -> float:
    """Return the wall-clock seconds of one command in a fresh folder with an empty cache."""
    shutil.rmtree(side.home)
    side.home.mkdir()
    seconds = side.run({"timed": words})
    if side.read_status("timed"):
        raise SystemExit(f"The {side.name} side failed: {side.read_error('timed')}")
    return seconds


def describe_machine() -> str:
    """Return processor, cores and versions in a line."""
    lines = []
    information = Path("/proc/cpuinfo")
    if information.is_file():
        lines = information.read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor()
    packages = ("torch", "timm", "lightning", "numpy")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    threads = os.environ.get("OMP_NUM_THREADS", "by default")
    python = platform.python_version()
    return f"{processor}, {os.cpu_count()} cores, threads {threads}, Python {python}, {versions}"


def time_task(name: str, words: tuple[str, ...], sides: tuple[Side, Side], rounds: int) -> float:
    """Time a command in turns, print every round, and return the median ratio."""
    ratios = []
    for number in range(rounds):
        seconds = [time_command(side, words) for side in sides]
        ratio = seconds[1] / seconds[0]
        ratios.append(ratio)
        line = f"round {number + 1}: old {seconds[0]:.1f} s, new {seconds[1]:.1f} s, {ratio:.3f}"
        print(f"{name}, {line}", flush=True)
    return median(ratios)


def main() -> None:
    """Time every task, and print a table."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each command is timed")
    parser.add_argument("--smoke", action="store_true", help="one round of tiny commands")
    options = parser.parse_args()
    tasks = SMOKE if options.smoke else TASKS
    rounds = 1 if options.smoke else options.rounds
    with tempfile.TemporaryDirectory(prefix="regraft-speed-") as temporary:
        top = Path(temporary)
        count = 100 if options.smoke else IMAGES
        print(write_images(options.data, top / "images.npz", count))
        sides = make_sides(options, top)
        ratios = {name: time_task(name, words, sides, rounds) for name, words in tasks.items()}
    print(f"\n{describe_machine()}\n\n| command | new / old, median of {rounds} | within 3 % |")
    print("|---|---|---|")
    for name, ratio in ratios.items():
        print(f"| {name} | {ratio:.3f} | {'yes' if ratio <= LIMIT else 'no'} |")


if __name__ == "__main__":
    main()
