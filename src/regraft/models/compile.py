"""The frozen part compiled by inductor with its weights frozen into the code, where that repays.

Without a compiler, or where the compiled code is slower or gives other values, nothing is compiled.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from regraft.models.parts import Features, Prefix
from regraft.system.progress import SILENT, ProgressReporter
from regraft.system.timer import format_duration

# Multiply-adds of a whole extraction from which on compiling (20 to 40 s) repays on a processor;
# see docs/measured.md.
COMPILE_PAYS_FROM = 40e12
_MAX_DIFFERENCE = 5e-2  # from the eager outputs, as a share of their norm: what bfloat16 allows
_TRIALS = 3

Run = Callable[[Tensor], Features]


def count_multiply_adds(prefix: Prefix, images: Tensor) -> float:
    """Return the multiply-adds of the frozen part for one image.

    Args:
        prefix: The frozen part.
        images: A batch to count on, `(n, 3, h, w)`.
    """
    with FlopCounterMode(display=False) as counter:
        prefix(images)
    return float(counter.get_total_flops()) / 2 / len(images)


def has_compiler() -> bool:
    """Return whether there is a C++ compiler that inductor would use."""
    candidates = (os.environ.get("CXX", ""), "g++", "clang++")
    return any(shutil.which(name) for name in candidates)


def compile_prefix(
    prefix: Prefix, images: Tensor, reporter: ProgressReporter = SILENT
) -> Run | None:
    """Return the compiled frozen part for batches of exactly this shape, or None without a gain.

    Args:
        prefix: The frozen part; call this under the autocast in which it will run.
        images: A batch as the network sees it, `(n, 3, h, w)`.
        reporter: Is told what came of it, and why.
    """
    on_cpu = images.device.type == "cpu"
    if on_cpu and not has_compiler():
        reporter.log(
            "There is no C++ compiler, so the frozen part runs uncompiled. "
            "Install g++ to have large extractions compiled."
        )
        return None
    started = time.perf_counter()
    quick: Run = torch.compile(prefix.body, dynamic=False, options={"freezing": on_cpu})
    try:
        with torch.inference_mode(), _quiet_cpp_extension():
            trial = _try(quick, prefix, images, started)
    except Exception as error:  # inductor fails in as many ways as there are compilers
        reason = str(error).strip().splitlines()[0][:200]
        reporter.log(f"Compiling the frozen part failed ({reason}); it runs uncompiled.")
        return None
    if trial.difference > _MAX_DIFFERENCE or trial.time_share > 1:
        reporter.log(
            f"Compiled, the frozen part would take {trial.time_share:.2f} of the time "
            f"and differ by {trial.difference:.1e}; it runs uncompiled."
        )
        return None
    reporter.log(
        f"Compiled the frozen part in {format_duration(trial.seconds)}: "
        f"a batch takes {trial.time_share:.2f} of the time."
    )
    return quick


@dataclass(frozen=True)
class _Trial:
    """What compiling gave."""

    seconds: float  # that compiling took
    difference: float  # from the eager outputs, as a share of their norm
    time_share: float  # of a compiled batch in the time of an eager one


def _try(quick: Run, prefix: Prefix, images: Tensor, started: float) -> _Trial:
    new_outputs = quick(images)
    old_outputs = prefix(images)
    seconds = time.perf_counter() - started
    differences = []
    for new, old in zip(new_outputs, old_outputs, strict=True):
        distance = (new.float() - old.float()).norm()
        differences.append(float(distance / old.float().norm().clamp(min=1e-12)))
    time_share = _measure_seconds(quick, images) / _measure_seconds(prefix, images)
    return _Trial(seconds, max(differences), time_share)


@contextmanager
def _quiet_cpp_extension() -> Iterator[None]:
    """Keep torch from warning that a CUDA compiler is missing where there is no GPU."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _measure_seconds(run: Run, images: Tensor) -> float:
    """Return the shortest time that a batch took."""
    times = []
    for _ in range(_TRIALS):
        started = time.perf_counter()
        run(images)[0].sum().item()  # waits for a GPU
        times.append(time.perf_counter() - started)
    return min(times)
