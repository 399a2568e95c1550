"""Two processes take different and shared entries from one cache that is too small for them, again and again, and every value is held beside the right one.

python tests/faults/together.py --rounds 50
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from conftest import toy
from regraft.features.extract import store_pixels
from regraft.models.backbone import get_input_rules
from regraft.models.transforms import Preprocess
from regraft.options import CacheOptions, Runtime

SETS, TAKEN = 5, 12  # datasets there are, and entries that a process takes in a round


def take(home: Path, seed: int, wait: Path, told: Path) -> None:
    """Take entries in a random order, each read to its end a moment after it was given, and count those that are not what they should be."""
    sets = [toy(30, seed=number) for number in range(SETS)]
    right = [np.stack(one.images.read(np.arange(30))) for one in sets]
    preprocess = Preprocess(get_input_rules("test_resnet"), 32)
    chance, wrong, taken = random.Random(seed), 0, 0
    wait.with_name(f"{wait.name}-{seed}").touch()
    while not wait.exists():
        time.sleep(0.0005)
    for _ in range(TAKEN):
        number = chance.randrange(SETS)
        entry = store_pixels(sets[number], preprocess, CacheOptions(home), Runtime()).entry
        if chance.random() < 0.3:
            time.sleep(chance.uniform(0, 0.003))
        wrong += not (entry.arrays[0] == right[number]).all()
        taken += 1
    told.write_text(json.dumps({"taken": taken, "wrong": wrong}))


def forked(*given: Any) -> int:
    """Take entries in a process of its own; returns its number."""
    child = os.fork()
    if child:
        return child
    try:
        take(*given)
    except BaseException:
        given[-1].write_text(traceback.format_exc())
    finally:
        os._exit(0)


def main() -> None:
    """Run the rounds; exit status 1 where an entry was wrong or a process failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    began, taken, wrong, failed = time.monotonic(), 0, 0, list[str]()
    top = Path(tempfile.mkdtemp(prefix="regraft-together-"))
    os.environ["REGRAFT_CACHE_LIMIT"] = (
        f"{2.5 * 30 * 16 * 16 * 3 / 1e9:.9f}"  # GB: room for two entries of five
    )
    try:
        for number in range(options.rounds):
            home, wait = top / f"{number}", top / f"go-{number}"
            told = [top / f"told-{number}-{one}" for one in (0, 1)]
            both = [forked(home, 2 * number + one, wait, told[one]) for one in (0, 1)]
            while len(list(top.glob(f"{wait.name}-*"))) < 2:
                time.sleep(0.002)
            wait.touch()
            for process, path in zip(both, told, strict=True):
                os.waitpid(process, 0)
                try:
                    said = json.loads(path.read_text())
                except ValueError:
                    failed.append(path.read_text())
                    continue
                taken, wrong = taken + said["taken"], wrong + said["wrong"]
            failed += [f"left over: {path.name}" for path in home.glob(".scratch-*")]
    finally:
        shutil.rmtree(top, ignore_errors=True)
    print(
        f"{options.rounds} rounds, {taken} entries taken by two processes from one cache with room for two of {SETS}: {wrong} wrong entries, {len(failed)} failures",
        end="",
    )
    print(f"; {time.monotonic() - began:.0f} s")
    for one in failed:
        print(one)
    sys.exit(bool(wrong or failed))


if __name__ == "__main__":
    main()
