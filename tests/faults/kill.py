"""Kills real regraft commands with SIGKILL at moments spread over all their stages, goes on with --resume, and holds them beside runs that were never stopped.

    python tests/faults/kill.py --kills 200 [--seed 0] [--minutes 8] [--fresh 10]

A moment is a file opened for writing, renamed or removed, a folder made, or a training step, and up to some milliseconds after it. Most commands are forked
from a process that has imported torch already; every tenth (--fresh) is a process of its own that starts from nothing. Prints a table by stage.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))

NET = ("--backbone", "test_resnet", "--weights", "random", "--resolution", "32", "-q")
TIMES = {
    "seconds",
    "shared_seconds",
    "peak_memory_mb",
    "cache",
    "paces",
    "files",
    "opened",
    "train_seconds",
}
TRAIN = "train phase"
STAGES = {  # file and function, and what is under way while it runs
    ("extract.py", "extract_features"): "extract",
    ("extract.py", "store_pixels"): "decode",
    ("phase.py", "train_phase"): TRAIN,
    ("writer.py", "save_phase"): TRAIN,
    ("writer.py", "finish"): "write the run",
    ("evaluate.py", "open_test"): "compare",
    ("leaderboard.py", "write_leaderboard"): "compare",
    ("writers.py", "__init__"): "predict",
    ("writers.py", "add"): "predict",
    ("writers.py", "finish"): "predict",
}
SLACK = 0.004  # seconds after a moment within which the kill comes


def few(phases: int, first: int = 1) -> list[str]:
    """Return the flags that give phases two epochs of a few batches."""
    return [
        word
        for n in range(first, phases)
        for word in ("--set", f"phases.{n}.epochs=2", "--set", f"phases.{n}.batch_size=16")
    ]


STOPPING = [
    "epochs=6",
    "patience=1",
    "min_delta=0.2",
    "ema=0.9",
    "mixup=0.2",
    "batch_size=16",
    "augment=light",
]
JOBS: dict[str, list[str]] = {
    "gradual-unfreezing": [
        "fit",
        "PHOTOS",
        "--technique",
        "gradual-unfreezing",
        *NET,
        *few(4),
        "--out",
        "out",
    ],
    "probe-then-fine-tune": [
        "fit",
        "PHOTOS",
        "--technique",
        "probe-then-fine-tune",
        *NET,
        *few(2),
        "--set",
        "phases.1.augment=light",
        "--out",
        "out",
    ],
    "stopped early": [
        "fit",
        "PHOTOS",
        "--technique",
        "feature-extraction",
        *NET,
        *[w for s in STOPPING for w in ("--set", f"phases.0.{s}")],
        "--out",
        "out",
    ],
    "compare": [
        "compare",
        "PHOTOS",
        "--techniques",
        "linear-probe,fine-tune-top",
        "--backbones",
        "test_resnet",
        *NET[2:],
        *few(1, 0),
        "--out",
        "out",
    ],
    "predict csv": ["predict", "RUN", "PHOTOS", "--out", "out.csv", "--batch-size", "16", "-q"],
    "predict parquet": [
        "predict",
        "RUN",
        "PHOTOS",
        "--out",
        "out.parquet",
        "--batch-size",
        "16",
        "-q",
    ],
}


@dataclass
class Moments:
    """Counts the moments of a command as it runs, notes each with its stage, and kills the process at one of them."""

    log: Path
    kill_at: int = -1
    slack: float = 0.0
    count: int = 0

    def __post_init__(self) -> None:
        self.file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.home = f"{Path.cwd()}{os.sep}"

    def note(self, *words: object) -> None:
        os.write(self.file, f"{json.dumps(words)}\n".encode())

    def here(self, what: str) -> None:
        self.count += 1
        self.note("moment", self.stage(), what)
        if self.count == self.kill_at:
            if not self.slack:
                os.kill(os.getpid(), signal.SIGKILL)
            threading.Thread(
                target=lambda: (time.sleep(self.slack), os.kill(os.getpid(), signal.SIGKILL)),
                daemon=True,
            ).start()

    def audit(self, event: str, values: tuple[Any, ...]) -> None:
        """Hear of every file that is about to be opened for writing, renamed or removed in the current folder."""
        if event == "open" and not (
            (isinstance(values[1], str) and set(values[1]) & set("wax+"))
            or (values[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        ):
            return
        if event in (
            "open",
            "os.rename",
            "os.remove",
            "os.mkdir",
            "os.rmdir",
            "os.truncate",
        ) and isinstance(values[0], (str, bytes, os.PathLike)):
            path = str(Path(os.fsdecode(values[0])).absolute())
            if path.startswith(self.home) and path != str(self.log):
                self.here(f"{event} {path.removeprefix(self.home)}")

    def stage(self) -> str:
        """Return what is under way: the innermost function on the stack that is a stage."""
        frame = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            label = STAGES.get((Path(code.co_filename).name, code.co_name))
            if label is not None and "regraft" in code.co_filename:
                number = getattr(
                    frame.f_locals.get("files"), "number", frame.f_locals.get("number")
                )
                return label if label != TRAIN else f"{TRAIN} {int(number) + 1}"
            frame = frame.f_back  # type: ignore[assignment]
        return "load"

    def watch(self) -> None:
        """Take up the post in this process: steps and epochs by Lightning, files by audit events."""
        import torch
        from lightning.pytorch.callbacks import ModelCheckpoint

        backward, begin = torch.Tensor.backward, ModelCheckpoint.on_train_epoch_start

        def stepping(*args: Any, **options: Any) -> Any:
            self.here("step")
            return backward(*args, **options)

        def beginning(callback: Any, trainer: Any, module: Any) -> None:
            if callback is trainer.checkpoint_callbacks[0]:
                self.note("epoch", callback.dirpath, module.seed, trainer.current_epoch)
            begin(callback, trainer, module)

        torch.Tensor.backward = stepping  # type: ignore[method-assign,assignment]
        ModelCheckpoint.on_train_epoch_start = beginning  # type: ignore[method-assign]
        sys.addaudithook(self.audit)


def command(words: list[str], log: Path, kill_at: int, slack: float) -> int:
    """Run the command line in this process under watch; returns its exit status."""
    os.environ["REGRAFT_CACHE"] = "cache"
    Moments(log, kill_at, slack).watch()
    sys.argv = ["regraft", *words]
    from regraft.cli import main

    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def run(
    place: Path,
    words: list[str],
    log: Path,
    kill_at: int = -1,
    slack: float = 0.0,
    fresh: bool = False,
) -> int:
    """Run a command in a folder, in a process of its own or one forked from this; returns its exit status, -9 where it was killed."""
    if fresh:
        given = [
            sys.executable,
            str(HERE),
            "--child",
            json.dumps([words, str(log), kill_at, slack]),
        ]
        return subprocess.run(given, cwd=place, check=False, stdout=subprocess.DEVNULL).returncode
    sys.stdout.flush()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.chdir(place)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            code = command(words, log, kill_at, slack)
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def noted(log: Path, kind: str) -> list[tuple[str, ...]]:
    """Return what a log has of a kind; a last line cut by the kill is left out."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("]")]
    return [tuple(line[1:]) for line in lines if line[0] == kind]


# ── what is there


def faults(place: Path) -> list[str]:
    """Return what in a folder looks whole and is not: entries, checkpoints, weights, tables, predictions, finished runs."""
    import safetensors.torch
    import torch

    from regraft.features.store import list_entries
    from regraft.runs.folder import load_run, verify_run

    found = []
    for entry in list_entries(place / "cache"):
        found += entry_faults(place / "cache" / entry["name"])
    readers: dict[str, Callable[[Path], Any]] = {
        ".json": lambda path: json.loads(path.read_text()),
        ".safetensors": safetensors.torch.load_file,
        ".ckpt": lambda path: torch.load(path, weights_only=True, map_location="cpu"),
        ".npz": lambda path: {**np.load(path)},
        ".toml": lambda path: __import__("tomllib").loads(path.read_text()),
        ".parquet": lambda path: __import__("pyarrow.parquet").parquet.read_table(path),
        ".png": lambda path: __import__("PIL.Image").Image.open(path).load(),
    }
    for path in (one for top in place.glob("out*") for one in [top, *top.rglob("*")]):
        if path.suffix in readers and path.is_file() and not path.name.startswith("."):
            try:
                readers[path.suffix](path)
            except Exception as error:
                found.append(f"{path.relative_to(place)}: {error}")
    for path in place.rglob("scores.json"):
        try:
            verify_run(load_run(path.parent))
        except Exception as error:
            found.append(str(error))
    return found


def entry_faults(path: Path) -> list[str]:
    """Return what is wrong with a cache entry, read as its description says."""
    meta = json.loads((path / "meta.json").read_text())
    found = []
    for number, described in enumerate(meta["arrays"]):
        array = np.load(path / f"{number}.npy")
        sums = zlib.crc32(array.tobytes())
        if [*array.shape] != described["shape"] or sums != described["crc32"]:
            found.append(f"entry {path.name}, array {number}")
    return found


def timeless(value: Any) -> Any:
    """Return plain data without what a clock or a cache says."""
    if isinstance(value, dict):
        return {key: timeless(one) for key, one in value.items() if key not in TIMES}
    return [timeless(one) for one in value] if isinstance(value, list) else value


def content(path: Path) -> Any:
    """Return what a file says, without times."""
    if path.suffix == ".json":
        return timeless(json.loads(path.read_text()))
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [
                {key: value for key, value in row.items() if "seconds" not in key}
                for row in csv.DictReader(file)
            ]
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {name: (file[name].dtype.str, file[name].tobytes()) for name in file.files}
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return pq.read_table(path).to_pylist()
    return path.read_bytes()


def said(place: Path) -> dict[str, Any]:
    """Return everything that a finished command left and that must not depend on how often it was stopped."""
    skipped = {"environment.json", "log.txt", ".lock"}
    files = [
        path
        for top in place.glob("out*")
        for path in ([top] if top.is_file() else sorted(top.rglob("*")))
    ]
    chosen = [
        path
        for path in files
        if path.is_file() and path.name not in skipped and path.suffix not in (".png", ".ckpt")
    ]
    found = {str(path.relative_to(place)): content(path) for path in chosen}
    for path in files:
        if path.name == "test.json":
            found[f"{path} opened"] = len(json.loads(path.read_text())["opened"])
    return {name.replace(str(place), ""): value for name, value in found.items()}


def leftovers(place: Path) -> list[str]:
    """Return what no finished command leaves."""
    return [
        str(path.relative_to(place))
        for path in place.rglob(".*")
        if ".part" in path.name
        or path.name.startswith(".scratch")
        or path.name.endswith((".lock", ".lock.json"))
    ]


# ── killing


@dataclass
class Job:
    """A command with what it gives when nobody kills it."""

    name: str
    words: list[str]
    stages: dict[str, list[int]]  # numbers of the moments of each
    whole: dict[str, Any]
    epochs: int


@contextmanager
def bench(run_needed: bool = True) -> Iterator[tuple[Path, dict[str, str]]]:
    """Give a folder with photos and a finished run."""
    from conftest import toy, write_folder

    top = Path(tempfile.mkdtemp(prefix="regraft-kill-"))
    try:
        write_folder(top / "photos", toy(72))
        (top / "made").mkdir()
        if run_needed:
            words = [
                "fit",
                str(top / "photos"),
                "--technique",
                "linear-probe",
                *NET,
                "--out",
                "out",
            ]
            assert run(top / "made", words, top / "made.log") == 0
        yield top, {"PHOTOS": str(top / "photos"), "RUN": str(top / "made" / "out")}
    finally:
        shutil.rmtree(top, ignore_errors=True)


def measured(name: str, top: Path, names: dict[str, str]) -> Job:
    """Run a command whole once and note its moments."""
    words = [names.get(word, word) for word in JOBS[name]]
    place, log = top / f"whole {name}", top / f"whole {name}.log"
    place.mkdir()
    code = run(place, words, log)
    assert code == 0, (name, code)
    assert not faults(place), faults(place)
    stages: dict[str, list[int]] = {}
    for number, (stage, _) in enumerate(noted(log, "moment"), 1):
        stages.setdefault(stage, []).append(number)
    return Job(name, words, stages, said(place), len(noted(log, "epoch")))


def killed(job: Job, place: Path, chance: random.Random, fresh: bool, stage: str) -> dict[str, Any]:
    """Kill a command once or twice, go on with it, and return what was found."""
    place.mkdir()
    log, words = place.with_suffix(".log"), list(job.words)
    found: dict[str, Any] = {
        "kills": 0,
        "corrupted": [],
        "repeated": 0,
        "unequal": [],
        "job": job.name,
    }
    moment, slack = chance.choice(job.stages[stage]), chance.choice([0.0, chance.uniform(0, SLACK)])
    code = run(place, words, log, moment, slack, fresh)
    if code == -signal.SIGKILL:
        found["kills"] += 1
        found["corrupted"] += faults(place)
        if chance.random() < 0.25:  # and once more on the way, sooner
            again = run(
                place,
                [*words, "--resume"],
                log,
                chance.randint(1, max(1, moment)),
                chance.uniform(0, SLACK),
                fresh,
            )
            found["kills"] += again == -signal.SIGKILL
            found["corrupted"] += faults(place)
    code = run(place, [*words, "--resume"], log, fresh=fresh)
    found["corrupted"] += faults(place)
    found["unequal"] += [f"exit status {code}"] if code else []
    mine = said(place)
    found["unequal"] += sorted(
        name for name in {*mine, *job.whole} if mine.get(name) != job.whole.get(name)
    )
    found["unequal"] += [f"left over: {name}" for name in leftovers(place)]
    started = Counter(noted(log, "epoch"))
    found["repeated"] = sum(times - 1 for times in started.values())
    found["unequal"] += (
        [f"{len(started)} epochs, not {job.epochs}"] if len(started) != job.epochs else []
    )
    found["what"] = (
        noted(log, "moment")[moment - 1][1] if len(noted(log, "moment")) >= moment else "?"
    )
    shutil.rmtree(place)
    return found


def main() -> None:  # noqa: PLR0915  flags, one after the other
    """Kill, go on, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--minutes",
        type=float,
        default=60.0,
        help="stop after so many, however many kills there were",
    )
    parser.add_argument(
        "--fresh",
        type=int,
        default=10,
        help="every so manieth command starts in a process of its own",
    )
    parser.add_argument("--jobs", default=",".join(JOBS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        words, log, kill_at, slack = json.loads(options.child)
        sys.exit(command(words, Path(log), kill_at, slack))
    # What children shall not import again.
    import regraft.commands.compare
    import regraft.commands.predict
    import regraft.training.trainer  # noqa: F401

    began, chance = time.monotonic(), random.Random(options.seed)
    rows: dict[str, Counter[str]] = {}
    kills, fresh_kills, tried, told = 0, 0, 0, list[str]()
    chosen = options.jobs.split(",")
    with bench(any("RUN" in JOBS[name] for name in chosen)) as (top, names):
        jobs = [measured(name, top, names) for name in chosen]
        pairs = [(job, stage) for job in jobs for stage in job.stages]
        while kills < options.kills and time.monotonic() - began < options.minutes * 60:
            if tried % len(pairs) == 0:
                chance.shuffle(pairs)
            job, stage = pairs[tried % len(pairs)]
            fresh = tried % options.fresh == options.fresh - 1
            found = killed(job, top / f"killed {tried}", chance, fresh, stage)
            row = rows.setdefault(stage, Counter())
            row["kills"] += found["kills"]
            row["corrupted"] += bool(found["corrupted"])
            row["unequal"] += bool(found["unequal"])
            row["repeated"] = max(row["repeated"], -(-found["repeated"] // max(1, found["kills"])))
            kills, fresh_kills, tried = (
                kills + found["kills"],
                fresh_kills + found["kills"] * fresh,
                tried + 1,
            )
            if found["corrupted"] or found["unequal"] or found["repeated"] > max(1, found["kills"]):
                told.append(
                    f"{found['job']}, {stage}, at {found['what']}: {found['corrupted']} {found['unequal']} repeated {found['repeated']}"
                )
                print(told[-1], flush=True)
    print(
        "| stage | kills | corrupted | epochs repeated at most, a kill | unequal |\n|---|---|---|---|---|"
    )
    for stage, row in sorted(rows.items()):
        print(
            f"| {stage} | {row['kills']} | {row['corrupted']} | {row['repeated']} | {row['unequal']} |"
        )
    print(
        f"{kills} kills in {tried} commands, {fresh_kills} of them in processes started from nothing; {time.monotonic() - began:.0f} s; {len(told)} faults"
    )
    sys.exit(bool(told))


if __name__ == "__main__":
    main()
