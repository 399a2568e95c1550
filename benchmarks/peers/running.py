"""Runs one participant in a process of its own and gives back what happened: seconds, accuracy by epoch, rate, memory, or the error."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from peers import installing

REGRAFT = Path(sys.executable).with_name("regraft")
_NOT_PASSED_ON = ("MALLOC_", "REGRAFT_", "PYTHONPATH", "KERAS_", "OMP_", "MKL_", "TORCHINDUCTOR_")


@dataclass(frozen=True)
class Place:
    """What all participants of one comparison share."""

    images: Path
    weights: Path
    scratch: Path
    venv: Path
    compiled: (
        Path | None
    )  # keeps inductor's cache from run to run; None: every process starts without
    train_images: int
    val_images: int
    resolution: int
    batch_size: int
    timeout: float


@dataclass(frozen=True)
class Process:
    """How a process went."""

    started: float  # seconds of the wall clock, to compare with what the process prints
    wall: float
    out: str
    error: str | None
    memory: float  # MB, of the largest process of its tree


def process(command: list[str], place: Place, home: Path, variables: dict[str, str]) -> Process:
    """Run a command in the folder `home` and wait for it, at most for the timeout."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(_NOT_PASSED_ON)
    }
    compiled = place.compiled or home / "inductor"
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "KERAS_HOME": str(home / "keras"),
        "TORCHINDUCTOR_CACHE_DIR": str(compiled),
        **variables,
    }
    late = threading.Event()

    def kill() -> None:
        late.set()
        os.killpg(child.pid, signal.SIGKILL)

    with (home / "out.txt").open("w+") as out, (home / "err.txt").open("w+") as err:
        started, clock = time.time(), time.perf_counter()
        child = subprocess.Popen(
            command, cwd=home, env=environment, stdout=out, stderr=err, start_new_session=True
        )
        timer = threading.Timer(place.timeout, kill)
        timer.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
            wall = time.perf_counter() - clock
            child.returncode = os.waitstatus_to_exitcode(status)
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
        finally:
            timer.cancel()
    error = None
    if child.returncode:
        said = installing.last_line((home / "err.txt").read_text(errors="replace"))
        error = (
            f"took longer than {place.timeout:.0f} s"
            if late.is_set()
            else f"exit {child.returncode}: {said}"
        )
    return Process(
        started,
        wall,
        (home / "out.txt").read_text(errors="replace"),
        error,
        usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 1024),
    )


def peer(  # noqa: PLR0913  one argument a column
    script: str,
    flags: tuple[str, ...],
    variables: dict[str, str],
    task: str,
    lr: float,
    epochs: int,
    measured: int,
    place: Place,
) -> dict[str, Any]:
    """Return the figures of a peer; with fewer epochs measured than asked for, its wall is projected and marked as such."""
    home = _fresh(place.scratch / "peer")
    words = {
        "data": place.images,
        "weights": place.weights,
        "task": task,
        "epochs": measured,
        "resolution": place.resolution,
    }
    words |= {"batch-size": place.batch_size, "lr": lr}
    command = [str(installing.python(place.venv)), str(Path(__file__).with_name(script))]
    command += [str(part) for name, value in words.items() for part in (f"--{name}", value)] + list(
        flags
    )
    done = process(command, place, home, variables)
    lines = _json_lines(done.out)
    last = next((line for line in lines if "done" in line), None)
    if done.error or last is None:
        return {"error": done.error or "ended without a last line"}
    begin = next(line["begin"] for line in lines if "begin" in line)
    rows = [{**line, "seconds": line["at"] - done.started} for line in lines if "epoch" in line]
    steady = rows[1:] or rows
    each = (
        (rows[-1]["at"] - rows[0]["at"]) / (len(rows) - 1)
        if len(rows) > 1
        else rows[0]["at"] - begin
    )
    return {
        "error": None,
        "wall": done.wall + (epochs - measured) * each,
        "projected": measured < epochs,
        "measured": {"epochs": measured, "wall": done.wall},
        "start_up": begin - done.started,
        "seconds_an_epoch": each,
        "epochs": rows,
        "best": max(row["val_accuracy"] for row in rows),
        "rate": place.train_images / mean(row["train_seconds"] for row in steady),
        "memory": done.memory,
        "settings": last["settings"],
    }


def regraft(
    words: tuple[str, ...], task: str, epochs: int, place: Place, warm: bool = False
) -> dict[str, Any]:
    """Return the figures of `regraft fit` with an empty cache, or with the cache that the run before left."""
    home = _fresh(place.scratch / ("regraft-warm" if warm else "regraft"))
    cache = place.scratch / "regraft-cache"
    if not warm:
        shutil.rmtree(cache, ignore_errors=True)
    command = [
        str(REGRAFT),
        "fit",
        str(place.images),
        *words,
        "--resolution",
        str(place.resolution),
        "--out",
        "run",
        "--quiet",
        "--json",
    ]
    done = process(command, place, home, {"REGRAFT_CACHE": str(cache)})
    if done.error:
        return {"error": done.error}
    scores = json.loads((home / "run" / "scores.json").read_text())
    seconds = scores["seconds"]
    rows = reached(home / "run" / "history.csv", done.wall, seconds["train"])
    rows.append({"val_accuracy": scores["val"]["accuracy"], "seconds": done.wall})
    if task == "frozen":
        rate = (
            (place.train_images + place.val_images) / seconds["extract"]
            if seconds["extract"] and not warm
            else None
        )
    else:
        rate = place.train_images * epochs / seconds["train"] if seconds["train"] else None
    return {
        "error": None,
        "wall": done.wall,
        "projected": False,
        "measured": {"epochs": epochs, "wall": done.wall},
        "epochs": rows,
        "best": scores["val"]["accuracy"],
        "rate": rate,
        "memory": done.memory,
        "settings": {"command": ["regraft", *command[1:2], "DATA", *command[3:]]},
        "work": seconds,
        "cache": scores.get("cache"),
    }


def reached(history: Path, wall: float, trained: float) -> list[dict[str, float]]:
    """Return validation accuracies with the seconds since the start at which they were known, never too early.

    A column `at` says so itself, and so does `seconds` where it counts from the start. Where `seconds` is an epoch's own duration, everything
    that is not an epoch (loading, extraction, scoring, writing) is taken to have come before the first.
    """
    with history.open(newline="") as file:
        rows = [
            {key: float(value) for key, value in row.items() if value}
            for row in csv.DictReader(file)
        ]
    durations = [row.get("seconds", 0.0) for row in rows]
    own = sum(durations) <= 1.02 * trained + 0.1
    found = []
    for number, row in enumerate(rows):
        if "val_accuracy" not in row:
            continue
        at = row.get("at") or (
            wall - sum(durations[number + 1 :]) if own else row.get("seconds", wall)
        )
        found.append({"val_accuracy": row["val_accuracy"], "seconds": at})
    return found


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _json_lines(text: str) -> list[dict[str, Any]]:
    found = []
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                found.append(json.loads(line))
            except ValueError:
                continue  # a tool's own print
    return found
