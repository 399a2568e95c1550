"""What the benchmark scripts share: the median with its spread, commands in processes of their own, and one way of writing results down."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from regraft.system.hardware import describe_environment

REGRAFT = str(Path(sys.executable).with_name("regraft"))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, smallest, largest and number of the values."""
    return {
        "median": median(values),
        "smallest": min(values),
        "largest": max(values),
        "trials": len(values),
    }


def interleaved(ways: dict[str, Callable[[], float]], trials: int) -> dict[str, dict[str, float]]:
    """Return the spread of each way, measured in turns so that a slow minute of the machine meets all of them."""
    for way in ways.values():
        way()  # warms up
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(trials):
        for name, way in ways.items():
            seen[name].append(way())
    return {name: spread(values) for name, values in seen.items()}


def timed(words: Sequence[str], home: Path, cache: str = "cache") -> tuple[float, str, int]:
    """Return wall seconds, stdout and peak memory in MB of one regraft command in a process of its own; memory is the largest so far."""
    started = time.perf_counter()
    done = subprocess.run(
        [REGRAFT, *words],
        capture_output=True,
        text=True,
        cwd=home,
        env={**os.environ, "REGRAFT_CACHE": str(home / cache)},
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"regraft {' '.join(words)} failed:\n{done.stderr}")
    return seconds, done.stdout, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024


def machine_line() -> str:
    """Return processor, cores and versions in a line."""
    where = describe_environment()
    versions = ", ".join(
        f"{name} {where['packages'][name]}" for name in ("torch", "timm", "lightning")
    )
    return f"{where['processor']}, {where['cores']} cores, {where['gpu'] or 'no GPU'}, Python {where['python']}, {versions}"


def write(out: Path | None, **found: Any) -> None:
    """Print the machine, and write everything as JSON where a file is given."""
    print(machine_line())
    if out:
        out.write_text(json.dumps({**found, "environment": describe_environment()}, indent=2))
