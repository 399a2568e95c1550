"""The frozen part compiled by inductor with its weights frozen into the code, where that repays.

Refuses to be relied on: without a compiler, or where the compiled code is slower or says something else, the eager one goes on.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from regraft.models.cut import Features, Prefix
from regraft.system.progress import SILENT, ProgressReporter

# Multiply-adds of a whole extraction from which on compiling (20 to 40 s) repays on a processor; see docs/measured.md.
COMPILE_PAYS_FROM = 40e12
_AGREES = 5e-2  # largest difference from the eager outputs, as a share of their norm: what bfloat16 allows
_TRIES = 3

logging.getLogger("torch.utils.cpp_extension").setLevel(
    logging.ERROR
)  # it misses a CUDA compiler where no GPU is


def count_multiply_adds(prefix: Prefix, images: Tensor) -> float:
    """Return the multiply-adds of the frozen part for one image, counted on these `(n, 3, h, w)`."""
    with FlopCounterMode(display=False) as counter:
        prefix(images)
    return float(counter.get_total_flops()) / 2 / len(images)


def has_compiler() -> bool:
    """Return whether there is a C++ compiler that inductor would use."""
    return shutil.which(os.environ.get("CXX", "")) is not None or any(
        shutil.which(name) for name in ("g++", "clang++")
    )


def compile_prefix(
    prefix: Prefix, images: Tensor, watcher: ProgressReporter = SILENT
) -> Callable[[Tensor], Features] | None:
    """Return the compiled frozen part for batches of exactly this shape, or None where there is no gain; says why.

    Args:
        prefix: The frozen part; call this under the autocast in which it will run.
        images: A batch as the network sees it, `(n, 3, h, w)`.
        watcher: Hears what came of it.
    """
    if images.device.type == "cpu" and not has_compiler():
        watcher.say(
            "There is no C++ compiler, so the frozen part runs uncompiled. Install g++ to have large extractions compiled."
        )
        return None
    started = time.perf_counter()
    quick: Callable[[Tensor], Features] = torch.compile(
        prefix.body, dynamic=False, options={"freezing": images.device.type == "cpu"}
    )
    try:
        with torch.inference_mode():
            new, old = quick(images), prefix(images)
            took = time.perf_counter() - started
            worst = max(
                float((a.float() - b.float()).norm() / b.float().norm().clamp(min=1e-12))
                for a, b in zip(new, old, strict=True)
            )
            after, before = _seconds(quick, images), _seconds(prefix, images)
    except Exception as error:  # inductor fails in as many ways as there are compilers
        watcher.say(
            f"Compiling the frozen part failed ({str(error).strip().splitlines()[0][:200]}); it runs uncompiled."
        )
        return None
    if worst > _AGREES or after > before:
        watcher.say(
            f"Compiled, the frozen part would take {after / before:.2f} of the time and differ by {worst:.1e}; it runs uncompiled."
        )
        return None
    watcher.say(
        f"Compiled the frozen part in {took:.0f} s: a batch takes {after / before:.2f} of the time."
    )
    return quick


def _seconds(run: Callable[[Tensor], Features], images: Tensor) -> float:
    times = []
    for _ in range(_TRIES):
        started = time.perf_counter()
        run(images)[0].sum().item()  # waits for a GPU
        times.append(time.perf_counter() - started)
    return min(times)
