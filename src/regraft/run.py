"""A run is a folder: its layout, writing it whole, reading it back.

Refuses objects: what made a run is not needed to use it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from numpy.typing import NDArray
from torch import Tensor

from regraft import plan as plans
from regraft.data import PARTS, Dataset, Split
from regraft.errors import UserError
from regraft.plan import Plan
from regraft.watch import Watcher

_BEGUN = frozenset({"state.json", "checkpoints", ".state.json.part", ".plan.toml.part"})  # all there is before the plan is written


@dataclass(frozen=True)
class Run:
    """A finished run, read from its folder."""

    path: Path
    plan: Plan
    classes: tuple[str, ...]
    scores: dict[str, Any]

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.name

    @cached_property
    def test(self) -> dict[str, Any] | None:
        """What `test.json` says; None while the test part is shut."""
        path = self.path / "test.json"
        return dict(json.loads(path.read_text())) if path.is_file() else None

    def history(self) -> list[dict[str, float]]:
        """Return a row for each epoch, or for each L2 value of a solved head."""
        with (self.path / "history.csv").open(newline="") as file:
            return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]

    def predictions(self, part: str = "val") -> dict[str, NDArray[Any]]:
        """Return keys, targets and logits of a part that was scored."""
        with np.load(self.path / ("predictions.npz" if part == "val" else f"predictions-{part}.npz"), allow_pickle=False) as file:
            return {key: file[key] for key in file.files}

    def weights(self) -> dict[str, Tensor]:
        """Return the tensors of backbone and head by name; raises `ValueError` when the file is not the one that the run wrote."""
        path, known = self.path / "model.safetensors", self.scores.get("weights_digest")
        if known is not None and digest(path) != known:
            raise ValueError("model.safetensors was altered since it was written")
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
        return tensors

    def __repr__(self) -> str:
        val = self.scores["val"]
        return f"Run({str(self.path)!r}, {self.plan.technique} of {self.plan.backbone}, val accuracy {val['accuracy']:.3f} on {val['n']:,})"


class Log(Watcher):
    """Keeps what is said in `log.txt` and passes it on."""

    def __init__(self, path: Path, inner: Watcher) -> None:
        self.path, self.inner = path, inner

    def say(self, text: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {text}\n")
        self.inner.say(text)

    def step(self, what: str, done: int, total: int) -> None:
        self.inner.step(what, done, total)


def start(path: Path, plan: Plan, split_digest: str, resume: bool = False, overwrite: bool = False) -> bool:
    """Make the folder ready; returns whether a finished run of this very plan is there already.

    Raises:
        UserError: When the folder is not empty and neither `resume` nor `overwrite` was asked, or holds another plan or split.
    """
    vacate(path, "run", resume, overwrite)
    if path.is_dir() and not (path / "plan.toml").is_file() and any(one.name not in _BEGUN for one in path.iterdir()):
        raise UserError(f"{path} holds no run to go on with. Expected a folder that `regraft fit` or `regraft compare` began. Give another --out.")
    if resume and (path / "plan.toml").is_file():
        there = plans.read(path / "plan.toml")
        if there.digest != plan.digest:
            raise UserError(
                f"{path} holds another plan ({there.digest}, not {plan.digest}). Expected the same plan to go on. Pass --overwrite, or another --out."
            )
        state = _state(path)
        if state.get("split_digest") != split_digest:
            raise UserError(f"{path} was begun with other images or another split. Expected the same to go on. Pass --overwrite, or another --out.")
        return (path / "scores.json").is_file()
    try:
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        write_text(path / "state.json", json.dumps({"split_digest": split_digest}))
        write_text(path / "plan.toml", plans.text(plan))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}). Give a folder that can with --out.") from error
    return False


def vacate(path: Path, kind: str, resume: bool | None, overwrite: bool) -> None:
    """Make sure that a folder may be written to: new, empty, emptied on request, or to be gone on with.

    Args:
        path: The folder.
        kind: What it is for, "run" or "comparison" or "probe".
        resume: Whether what is in it is gone on with; None where that is not on offer.
        overwrite: Whether what is in it may be removed.

    Raises:
        UserError: When it is a file, or not empty and neither was asked, or holds something that is not ours.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file. Expected a folder for the {kind}. Give another --out.")
    if not path.is_dir() or not any(path.iterdir()):
        return
    if overwrite:
        remove(path)
    elif not resume:
        ways = "" if resume is None else "--resume to go on with it, "
        raise UserError(f"{path} is not empty. Expected a new or empty folder. Pass {ways}--overwrite to replace it, or another --out.")


def load(path: Path) -> Run:
    """Return a finished run.

    Raises:
        UserError: When there is none, or it is unfinished or damaged.
    """
    path = Path(path)
    if not (path / "plan.toml").is_file():
        raise UserError(f"{path} is no run. Expected a folder that `regraft fit` or `regraft compare` wrote.")
    if not (path / "scores.json").is_file():
        raise UserError(f"The run in {path} is not finished. Go on with the same `regraft fit` command and --resume.")
    try:
        scores = json.loads((path / "scores.json").read_text())
        classes = json.loads((path / "classes.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"The run in {path} is damaged ({error}). Fit it again with --overwrite.") from error
    return Run(path, plans.read(path / "plan.toml"), tuple(classes), scores)


def remove(path: Path) -> None:
    """Remove a run, a comparison or a probe; raises `UserError` for a folder that is none of them."""
    known = ("plan.toml", "leaderboard.json", "state.json", "comparison.json", "probe.json")
    if not any((path / name).exists() for name in known):
        raise UserError(
            f"{path} holds something other than a run, so --overwrite does not touch it. Expected a run folder. Give another --out, or empty it yourself."
        )
    shutil.rmtree(path)


def listing(root: Path) -> list[Path]:
    """Return the run folders under `root`, finished or not, in the order of their names."""
    return sorted(path.parent for path in root.glob("*/plan.toml"))


def digest(path: Path) -> str:
    """Return a digest of a file's content: 32 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    scratch = path.with_name(f".{path.name}.part")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def write_json(path: Path, values: Any) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV, the columns in the order in which they first occur."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def write_split(path: Path, data: Dataset, split: Split) -> None:
    """Write which image is in which part."""
    rows = [{"key": str(data.keys[row]), "label": data.classes[data.labels[row]], "part": part} for part in PARTS for row in split[part]]
    write_table(path, rows)


def write_predictions(path: Path, keys: NDArray[np.str_], targets: NDArray[np.int64], logits: NDArray[np.floating[Any]]) -> None:
    """Write keys, targets and logits of a part."""
    scratch = path.with_name(f".{path.name}.part.npz")
    np.savez_compressed(scratch, keys=keys, targets=targets, logits=logits.astype(np.float32))
    os.replace(scratch, path)


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, whole or not at all."""
    scratch = path.with_name(f".{path.name}.part")
    safetensors.torch.save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, scratch)
    os.replace(scratch, path)


def _state(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((path / "state.json").read_text()))
    except (OSError, ValueError):
        return {}
