"""Prints what a server bears: many clients at once sending images over HTTP for a while, from the same machine.

    python benchmarks/serving.py [--seconds 60] [--clients 200] [--run RUN] [--side 224] [--out serving.json]

Without --run a linear probe of the embedded backbone on digits is fitted and served at 224 px. Every client sends one image after the other and
waits for each answer; a refused one (503) waits as long as it was told. The server is a process of its own; the clients share one more, which takes
processor time from it. Printed: answers a second, median and 99th percentile of the time to an answer, answers by status, the server's memory.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
from PIL import Image

from measure import write
from regraft.commands.fit import fit
from regraft.options import CacheOptions, DataOptions, Options, PlanOverrides, RunDir

_PICTURES = 32  # different ones


def pictures(side: int) -> list[bytes]:
    """Return JPEG files that look a little like photographs: smooth colours with some grain."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(_PICTURES):
        smooth = np.asarray(
            Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(
                (side, side), Image.Resampling.BICUBIC
            ),
            dtype=np.int16,
        )
        grain = rng.integers(-12, 13, (side, side, 3), dtype=np.int16)
        buffer = io.BytesIO()
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(
            buffer, "JPEG", quality=90
        )
        found.append(buffer.getvalue())
    return found


def memory_mb(process: int) -> float:
    """Return the memory that a process holds, in MB; not a number where the system does not say."""
    try:
        lines = dict(
            line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines()
        )
        return int(lines["VmRSS"].split()[0]) / 1024
    except (OSError, KeyError):
        return float("nan")


async def client(
    session: httpx.AsyncClient,
    number: int,
    files: list[bytes],
    until: float,
    seen: list[tuple[int, float]],
) -> None:
    """Send images until the time is over; notes the status and the seconds of each."""
    while time.perf_counter() < until:
        started = time.perf_counter()
        try:
            answer = await session.post(
                "/predict?top=1",
                files={"image": ("a.jpg", files[(number + len(seen)) % len(files)])},
            )
            status, wait = answer.status_code, float(answer.headers.get("retry-after", 0))
        except httpx.TransportError:
            status, wait = 0, 0.1
        seen.append((status, time.perf_counter() - started))
        await asyncio.sleep(wait)


async def press(
    address: str, clients: int, seconds: float, files: list[bytes], process: int
) -> dict[str, Any]:
    """Return what was seen of all clients together, and the server's memory at the start, in the middle, at the end."""
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=120) as session:
        for content in files[:4]:
            (await session.post("/predict", files={"image": ("a.jpg", content)})).raise_for_status()
        memory, seen = [memory_mb(process)], list[tuple[int, float]]()
        began = time.perf_counter()
        work = asyncio.gather(
            *[client(session, number, files, began + seconds, seen) for number in range(clients)]
        )
        await asyncio.sleep(seconds / 2)
        memory.append(memory_mb(process))
        await work
        took = time.perf_counter() - began
        memory.append(memory_mb(process))
    right = sorted(time_ for status, time_ in seen if status == 200)
    return {
        "clients": clients,
        "seconds": took,
        "answers_a_second": len(right) / took,
        "statuses": dict(Counter(status for status, _ in seen)),
        "median_ms": 1000 * median(right),
        "p99_ms": 1000 * right[int(0.99 * (len(right) - 1))],
        "memory_mb": memory,
    }


def fit_digits(run: Path, cache: Path) -> None:
    """Fit a linear probe of the embedded backbone on digits at 224 px."""
    options = Options(
        data=DataOptions(train_images=300),
        cache=CacheOptions(cache),
        run_dir=RunDir(out=run),
    )
    fit("digits", overrides=PlanOverrides(resolution=224), options=options)


def served(run: Path, home: Path) -> tuple[subprocess.Popen[str], str]:
    """Return the process of a server that answers, and its address."""
    words = [sys.executable, "-m", "regraft", "serve", str(run), "--port", "0", "--no-similar"]
    child = subprocess.Popen(
        words,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "REGRAFT_CACHE": str(home / "cache")},
    )
    assert child.stderr is not None
    line = child.stderr.readline()
    if " at " not in line:
        raise SystemExit(f"the server did not start: {line}{child.stderr.read()}")
    address = line.split(" at ")[1].split(";")[0]
    while True:
        try:
            httpx.get(address + "/health", timeout=60).raise_for_status()
            return child, address
        except httpx.TransportError:
            if child.poll() is not None:
                raise SystemExit("the server ended") from None
            time.sleep(0.1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument(
        "--run", type=Path, help="a finished run; a linear probe on digits at 224 px when left out"
    )
    parser.add_argument("--side", type=int, default=224, help="of the images sent, in pixels")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        run = options.run or Path(home) / "run"
        if options.run is None:
            fit_digits(run, Path(home) / "cache")
        child, address = served(run, Path(home))
        try:
            files = pictures(options.side)
            found = asyncio.run(press(address, options.clients, options.seconds, files, child.pid))
        finally:
            child.terminate()
            code = child.wait(30)
    size = sum(map(len, files)) / len(files) / 1000
    print(
        f"{options.clients} clients for {found['seconds']:.1f} s, JPEG of {options.side} px, {size:.0f} kB each"
    )
    print(
        f"{found['answers_a_second']:,.1f} answers a second, median {found['median_ms']:,.0f} ms, 99th percentile {found['p99_ms']:,.0f} ms"
    )
    counts = [
        f"{status or 'no answer'}: {count:,}" for status, count in sorted(found["statuses"].items())
    ]
    print(f"by status: {', '.join(counts)}")
    print(
        f"server's memory: {' → '.join(f'{mb:,.0f}' for mb in found['memory_mb'])} MB (start, middle, end); ended with status {code}"
    )
    write(options.out, **found)


if __name__ == "__main__":
    main()
