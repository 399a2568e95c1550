"""What this computer can do: its device, its arithmetic, its memory, its allocator.

Refuses to know about images or networks.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import resource
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from regraft.errors import UserError

# glibc gives every large tensor back to the system and takes its page faults again at the next step. What it is worth: docs/measured.md.
_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = -3, -1, -2
_CPU_BATCH = 100  # images of 96 px; measured in docs/measured.md
_BYTES_A_PIXEL = 400  # of the widest moment of a network in 16 bit
_KEEP = {_MMAP_THRESHOLD: 2**30, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**26}


def tune_allocator() -> bool:
    """Let glibc keep freed memory instead of returning it; returns whether it was done.

    `REGRAFT_MALLOC=off` leaves the allocator alone, and so does any other C library.
    """
    if (
        os.environ.get("REGRAFT_MALLOC", "").lower() in ("off", "0", "no")
        or platform.libc_ver()[0] != "glibc"
    ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(option, value) == 1 for option, value in _KEEP.items()])


def trim_allocator() -> None:
    """Return to the system what glibc kept of freed memory, after something so large that its room is not soon needed again."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def resolve_device(wanted: str = "auto") -> str:
    """Return "cuda" or "cpu": what was asked for, or the best there is; raises `UserError` for anything else, or a GPU that is not there."""
    import torch

    there = torch.cuda.is_available()
    if wanted not in ("auto", "cpu", "cuda") or (wanted == "cuda" and not there):
        given = "but PyTorch finds no CUDA GPU" if wanted == "cuda" else "which is no device"
        raise UserError(
            f"--device {wanted} was given, {given}. Expected auto, cpu or cuda. Leave it out to take the best there is."
        )
    return "cuda" if there and wanted != "cpu" else "cpu"


def has_bfloat16(device: str = "cpu") -> bool:
    """Return whether the device has instructions for bfloat16, so that using it gains time."""
    import torch

    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    flags = _cpu_flags()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def extraction_batch_size(device: str, resolution: int) -> int:
    """Return how many images of this side go through a frozen part at once: few enough for the processor's cache, or for a quarter of the GPU's memory."""
    if device != "cuda":
        return max(16, min(_CPU_BATCH, _CPU_BATCH * 96**2 // resolution**2))
    import torch

    free = torch.cuda.mem_get_info()[0]
    return int(max(16, min(1024, free // 4 // (resolution**2 * _BYTES_A_PIXEL))))


def fits_on_gpu(needed: int) -> bool:
    """Return whether this many bytes take at most a third of the GPU's memory."""
    import torch

    return needed * 3 <= torch.cuda.mem_get_info()[1]


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on a GPU or in main memory."""
    import torch

    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        word in str(error)
        for word in ("not enough memory", "out of memory", "can't allocate memory")
    )


def peak_memory_mb() -> int:
    """Return the most memory that this process has held so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak / 1024 if sys.platform != "darwin" else peak / 2**20)


def free_memory() -> float:
    """Return the bytes of main memory that are free or can be made so; 4 GB where the system does not say."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return float(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 4e9


def count_cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_environment() -> dict[str, Any]:
    """Return what a reader needs to repeat a run: versions, processor, threads."""
    import torch

    packages = (
        "regraft",
        "torch",
        "torchvision",
        "timm",
        "lightning",
        "numpy",
        "scikit-learn",
        "safetensors",
        "pillow",
        "pyarrow",
    )
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _cpu_name(),
        "cores": count_cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: _version(name) for name in packages},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(
        next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split()
    )


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


def silence_loggers(*names: str) -> None:
    """Let these loggers of libraries report errors only."""
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
