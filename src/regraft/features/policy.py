"""Cache the frozen part's output, or compute it again every epoch: decided here, once.

The decision compares what both ways cost on this machine, and the free space on the disk.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch

from regraft.features.batches import Reader
from regraft.features.extract import entry_bytes
from regraft.features.reader import FrozenFeatures
from regraft.features.store import has_room
from regraft.models.network import Cut
from regraft.options import CacheOptions
from regraft.plans.schema import Phase
from regraft.system.disk import unwritable_error
from regraft.system.files import make_scratch_dir
from regraft.system.hardware import free_memory
from regraft.system.progress import ProgressReporter
from regraft.system.timer import format_duration

ALWAYS_WORTH = 256e6  # bytes up to which caching needs no measuring
_BLANK_IMAGES = 16  # of the pass that is timed
_SAMPLE_BYTES = 32_000_000  # written and read to learn the disk's speed


@dataclass(frozen=True)
class DiskSpeed:
    """Bytes a second that a disk writes, and that come back from it as float32 batches."""

    write: float
    read: float


@dataclass(frozen=True)
class Costs:
    """Seconds that the frozen part costs when it is cached, and when it is computed every time."""

    cached: float
    live: float


@dataclass(frozen=True)
class Decision:
    """Whether the frozen part's output is cached, with what both ways would cost.

    Args:
        cached: Whether it is.
        bytes: What would have to be written.
        costs: Seconds of both ways; None where they were not measured.
        reason: For people.
    """

    cached: bool
    bytes: int
    costs: Costs | None
    reason: str


@dataclass(frozen=True)
class FrozenWork:
    """What a phase asks of a frozen part.

    Args:
        cut: The network in two parts.
        phase: The phase.
        train: Number of training images.
        val: Number of validation images.
        missing: Bytes that are not in the cache yet.
    """

    cut: Cut
    phase: Phase
    train: int
    val: int
    missing: int


class CachePolicy:
    """Decides what is cached.

    Args:
        options: The cache folder; `keep` may force either answer.
        time_forward: Measures the seconds of one image through a frozen part.
        measure_disk: Measures the speed of the cache folder's disk, for so many bytes.
    """

    def __init__(
        self,
        options: CacheOptions,
        *,
        time_forward: Callable[[Cut], float] | None = None,
        measure_disk: Callable[[Path, int], DiskSpeed] | None = None,
    ) -> None:
        self.options = options
        self.time_forward = time_forward or time_forward_pass
        self.measure_disk = measure_disk or measure_disk_speed

    def for_phase(self, work: FrozenWork) -> Decision:
        """Return whether the output of a frozen part is cached in a phase.

        Raises:
            UserError: When the cache folder cannot be made.
        """
        missing = work.missing
        size = f"{missing / 1e6:,.0f} MB"
        if self.options.keep == "never":
            reason = "--keep never: the frozen part is computed again every epoch."
            return Decision(False, missing, None, reason)
        if self.options.keep == "always":
            return Decision(True, missing, None, f"--keep always: {size} are cached.")
        if not has_room(missing, self.options.dir):
            reason = (
                f"Caching the frozen part's output would take {size}, more than "
                f"{self.options.dir} has; it is computed again every epoch."
            )
            return Decision(False, missing, None, reason)
        if missing <= ALWAYS_WORTH:
            reason = f"The frozen part's output is cached: {size} to write."
            return Decision(True, missing, None, reason)
        costs = self.costs(work)
        cached = format_duration(costs.cached)
        live = format_duration(costs.live)
        if costs.cached <= costs.live:
            reason = (
                f"The frozen part's output is cached ({size}), computing once and reading costs "
                f"about {cached}; computing it every epoch about {live}."
            )
            return Decision(True, missing, costs, reason)
        reason = (
            f"The frozen part's output is computed again every epoch, at about {live}; caching "
            f"its {size} about {cached}."
        )
        return Decision(False, missing, costs, reason)

    def costs(self, work: FrozenWork) -> Costs:
        """Return what the frozen part of a phase costs in both ways, measured on this machine."""
        forward = self.time_forward(work.cut)
        return estimate_costs(work, forward, self.measure_disk(self.options.dir, work.missing))

    def for_scoring(self, features: FrozenFeatures) -> bool:
        """Return whether features that are needed once go into the cache: where there is room."""
        if features.cut.is_empty or self.options.keep == "never":
            return False
        return has_room(features.missing_bytes(), self.options.dir)

    def surely(self, missing: int) -> bool:
        """Return whether an entry is so small that it is worth caching without measuring."""
        return 0 < missing <= ALWAYS_WORTH and self.options.keep != "never"


def estimate_costs(work: FrozenWork, forward: float, disk: DiskSpeed) -> Costs:
    """Return the seconds that both ways cost.

    Every image is needed once an epoch, and once more for the scores where it is not augmented.

    Args:
        work: The frozen part and the phase.
        forward: Seconds of one image through the frozen part.
        disk: Speed of the disk.
    """
    phase = work.phase
    epochs = 1 if phase.optimizer == "lbfgs" else phase.epochs
    scored = phase.augment == "none"
    reads = (work.train + work.val) * (epochs + scored)
    written = work.train * phase.looks + work.val
    image_bytes = entry_bytes(work.cut, 1)
    writing = written * (forward + image_bytes / disk.write)
    reading = reads * image_bytes / disk.read
    return Costs(writing + reading, reads * forward)


def open_readers(
    train: FrozenFeatures,
    val: FrozenFeatures,
    phase: Phase,
    policy: CachePolicy,
    reporter: ProgressReporter,
) -> tuple[Reader, Reader]:
    """Return how training and validation features are read in a phase."""
    cut = train.cut
    if cut.is_empty:
        return train.live(), val.live()
    missing = train.missing_bytes() + val.missing_bytes()
    if missing or policy.options.keep == "never":
        work = FrozenWork(cut, phase, len(train.images), len(val.images), missing)
        decision = policy.for_phase(work)
        reporter.log(decision.reason)
        if not decision.cached:
            return train.live(), val.live()
    if phase.augment != "none" and phase.views == 1 < phase.epochs:
        reporter.log(
            "Each image is seen in one augmented view, since the frozen part computes it once; "
            "views = 4 in a phase gives it four."
        )
    return train.cached(), val.cached()


def time_forward_pass(cut: Cut) -> float:
    """Return the seconds of one image through a frozen part, timed on a few blank ones."""
    fast = cut.optimized()
    device = cut.frozen.device
    blank = torch.zeros(_BLANK_IMAGES, 32, 32, 3, dtype=torch.uint8, device=device)
    enabled = cut.precision == "bfloat16"
    seconds = 0.0
    for _ in range(2):  # the first pass warms up
        started = time.perf_counter()
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            outputs = fast(cut.preprocess(blank))
            outputs[0].sum().item()  # waits for a GPU
        seconds = time.perf_counter() - started
    return seconds / _BLANK_IMAGES


def measure_disk_speed(folder: Path, needed: int) -> DiskSpeed:
    """Return the speed of a folder's disk, measured on 32 MB.

    What fits into half of the free memory is read back from there; more has to come from the disk.

    Raises:
        UserError: When the folder cannot be made or written.
    """
    has_room(0, folder)  # makes the folder, or says why it cannot
    scratch = make_scratch_dir(folder / "pace")
    try:
        with (scratch / "sample").open("w+b") as file:
            return _measure(file, needed)
    except OSError as error:
        raise unwritable_error(folder, error, elsewhere=False) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _measure(file: IO[bytes], needed: int) -> DiskSpeed:
    rng = np.random.default_rng(0)
    sample = rng.random(_SAMPLE_BYTES // 4, dtype=np.float32).view(np.float16)
    started = time.perf_counter()
    file.write(sample.data.cast("B"))
    file.flush()
    os.fsync(file.fileno())
    write = _SAMPLE_BYTES / (time.perf_counter() - started)
    if needed > free_memory() / 2 and hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    rows = np.memmap(file.name, np.float16, "r").reshape(-1, 2000)
    order = np.random.default_rng(0).permutation(len(rows))
    started = time.perf_counter()
    for start in range(0, len(order), 64):
        torch.from_numpy(rows[order[start : start + 64]]).float()
    return DiskSpeed(write, _SAMPLE_BYTES / (time.perf_counter() - started))
