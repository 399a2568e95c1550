"""Keep the frozen part's output or compute it again every epoch: decided from what both cost on this machine, and from free space."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from regraft.features.extract import entry_bytes
from regraft.features.store import has_room
from regraft.models.backbone import Backbone
from regraft.models.cut import Prefix
from regraft.models.optimize import fuse_conv_bn
from regraft.models.transforms import transform
from regraft.plans.schema import Phase, Plan
from regraft.system.files import make_scratch_dir, unwritable_error
from regraft.system.hardware import free_memory
from regraft.workflow.settings import Settings

_BLANK = 16  # images of the pass that is timed
SURELY = 256e6  # bytes up to which keeping needs no measuring
_SAMPLE = 32_000_000  # bytes written and read to learn the disk's pace


@dataclass(frozen=True)
class Decision:
    """Whether the frozen part's output is kept, with what both ways would cost."""

    kept: bool
    bytes: int  # that would have to be written
    once: (
        float | None
    )  # seconds of computing once, writing, and reading every epoch; None where it was not measured
    again: float | None  # seconds of computing it every epoch
    why: str


def decide(
    model: Backbone,
    prefix: Prefix,
    plan: Plan,
    phase: Phase,
    counts: tuple[int, int],
    missing: int,
    settings: Settings,
) -> Decision:
    """Return whether the output of a frozen part is kept in a phase.

    Args:
        model: The backbone.
        prefix: Its frozen part; not empty.
        plan: The plan.
        phase: Of it.
        counts: Images in train and in val.
        missing: Bytes that are not in the cache yet.
        settings: `keep` may force either answer.

    Raises:
        UserError: When keeping is forced and the disk lacks the room, or the cache folder cannot be made.
    """
    size = f"{missing / 1e6:,.0f} MB"
    if settings.keep == "never":
        return Decision(
            False, missing, None, None, "--keep never: it is computed again every epoch."
        )
    room = has_room(missing, settings.home)
    if settings.keep == "always":
        return Decision(True, missing, None, None, f"--keep always: {size} are kept.")
    if not room:
        why = f"Keeping the frozen part's output would take {size}, more than {settings.home} has; it is computed again every epoch."
        return Decision(False, missing, None, None, why)
    if missing <= SURELY:
        return Decision(
            True, missing, None, None, f"The frozen part's output is kept: {size} to write."
        )
    once, again = costs(
        prefix, plan, phase, counts, seconds(model, prefix, plan), pace(settings.home, missing)
    )
    kept = once <= again
    how = (
        f"kept ({size}), computing once and reading costs about {once:,.0f} s"
        if kept
        else f"computed again every epoch, at about {again:,.0f} s"
    )
    other = (
        f"computing it every epoch about {again:,.0f} s"
        if kept
        else f"keeping its {size} about {once:,.0f} s"
    )
    return Decision(kept, missing, once, again, f"The frozen part's output is {how}; {other}.")


def costs(
    prefix: Prefix,
    plan: Plan,
    phase: Phase,
    counts: tuple[int, int],
    pass_seconds: float,
    pace: tuple[float, float],
) -> tuple[float, float]:
    """Return the seconds that the frozen part costs when its output is kept, and when it is computed every time it is needed.

    Args:
        prefix: The frozen part.
        plan: The plan.
        phase: Of it; every image is needed once an epoch, and once more for the scores where it is not augmented.
        counts: Images in train and in val.
        pass_seconds: What one image costs on its way through the frozen part.
        pace: Bytes a second that the disk writes and that come back as batches.
    """
    augmented = phase.augment != "none"
    needed = sum(counts) * ((1 if phase.optimizer == "lbfgs" else phase.epochs) + (not augmented))
    first = counts[0] * phase.looks + counts[1]
    each = entry_bytes(prefix, 1)
    return first * (pass_seconds + each / pace[0]) + needed * each / pace[1], needed * pass_seconds


def seconds(model: Backbone, prefix: Prefix, plan: Plan) -> float:
    """Return what one image costs on its way through the frozen part, timed on a few blank ones."""
    quick, device = fuse_conv_bn(prefix), prefix.device
    blank = torch.zeros(_BLANK, 32, 32, 3, dtype=torch.uint8, device=device)
    ids, took = torch.zeros(_BLANK, dtype=torch.int64, device=device), 0.0
    for _ in range(2):  # the first pass warms up
        started = time.perf_counter()
        with (
            torch.inference_mode(),
            torch.autocast(device.type, torch.bfloat16, enabled=plan.precision == "bfloat16"),
        ):
            quick(transform(blank, ids, model.rules, model.resolution))[0].sum().item()
        took = time.perf_counter() - started
    return took / _BLANK


def pace(folder: Path, needed: int) -> tuple[float, float]:
    """Return bytes a second that the disk of a folder writes, and that come back as float32 batches, measured on 32 MB.

    What fits into half of the free memory comes back from there; more has to be read from the disk again.
    """
    has_room(0, folder)  # makes the folder, or says why it cannot
    scratch = make_scratch_dir(folder / "pace")
    try:
        return _paced(scratch / "sample", needed)
    except OSError as error:
        raise unwritable_error(folder, error, elsewhere=False) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _paced(path: Path, needed: int) -> tuple[float, float]:
    with path.open("w+b") as file:
        sample = np.random.default_rng(0).random(_SAMPLE // 4, dtype=np.float32).view(np.float16)
        started = time.perf_counter()
        file.write(sample.data.cast("B"))
        file.flush()
        os.fsync(file.fileno())
        writing = _SAMPLE / (time.perf_counter() - started)
        if needed > free_memory() / 2 and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        rows = np.memmap(file.name, np.float16, "r").reshape(-1, 2000)
        order = np.random.default_rng(0).permutation(len(rows))
        started = time.perf_counter()
        for start in range(0, len(order), 64):
            torch.from_numpy(rows[order[start : start + 64]]).float()
        return writing, _SAMPLE / (time.perf_counter() - started)
