"""What this computer has and can do: its device, arithmetic, memory and allocator."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from regraft.errors import UserError

# Options of glibc's mallopt. Without them it returns every large tensor to the system, and the
# next step pays for its page faults again. What they gain: docs/measured.md.
_MMAP_THRESHOLD = -3
_TRIM_THRESHOLD = -1
_TOP_PAD = -2
_MALLOC_OPTIONS = {_MMAP_THRESHOLD: 2**30, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**26}
_OUT_OF_MEMORY = ("not enough memory", "out of memory", "can't allocate memory")
_PACKAGES = (
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


def tune_allocator() -> bool:
    """Let glibc keep freed memory instead of returning it; returns whether it was done.

    `REGRAFT_MALLOC=off` leaves the allocator alone, and so does any other C library.
    """
    choice = os.environ.get("REGRAFT_MALLOC", "").lower()
    if choice in ("off", "0", "no") or not _has_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    results = [mallopt(option, value) for option, value in _MALLOC_OPTIONS.items()]
    return all(result == 1 for result in results)


def trim_allocator() -> None:
    """Return freed memory to the system, after something large that is not needed again soon."""
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _has_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


def resolve_device(wanted: str = "auto") -> str:
    """Return "cuda" or "cpu": the device that was asked for, or the best there is.

    Raises:
        UserError: For any other name, or where there is no GPU.
    """
    import torch

    has_gpu = torch.cuda.is_available()
    if wanted not in ("auto", "cpu", "cuda"):
        raise _no_device(wanted, "which is no device")
    if wanted == "cuda" and not has_gpu:
        raise _no_device(wanted, "but PyTorch finds no CUDA GPU")
    return "cuda" if has_gpu and wanted != "cpu" else "cpu"


def _no_device(wanted: str, reason: str) -> UserError:
    return UserError(
        f"--device {wanted} was given, {reason}. Expected auto, cpu or cuda. "
        "Leave it out to take the best there is."
    )


def has_bfloat16(device: str = "cpu") -> bool:
    """Return whether the device has instructions for bfloat16, so that using it gains time."""
    import torch

    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    flags = _cpu_info("flags").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def fits_on_gpu(needed: int) -> bool:
    """Return whether this many bytes take at most a third of the GPU's memory."""
    import torch

    return needed * 3 <= torch.cuda.mem_get_info()[1]


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on a GPU or in main memory."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(words in str(error) for words in _OUT_OF_MEMORY)


def peak_memory_mb() -> int:
    """Return the most memory that this process has held so far, in MB of 2**20 bytes."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows, where psutil knows
        memory = psutil.Process().memory_info()
        return int(getattr(memory, "peak_wset", memory.rss) / 2**20)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak / 2**20 if sys.platform == "darwin" else peak / 1024)


def free_memory() -> float:
    """Return the bytes of main memory that are free or can be made so."""
    return float(psutil.virtual_memory().available)


def count_cores() -> int:
    """Return how many processor cores this process may use."""
    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):  # not on macOS
        return len(process.cpu_affinity())
    return os.cpu_count() or 1


def describe_environment() -> dict[str, Any]:
    """Return what a reader needs to repeat a run: versions, processor, threads."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _cpu_info("model name") or platform.processor(),
        "cores": count_cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu_info(field: str) -> str:
    """Return what Linux says of the processor, or nothing elsewhere; psutil knows neither."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        if line.startswith(field):
            return line.partition(":")[2].strip()
    return ""


def silence_loggers(*names: str) -> None:
    """Let these loggers of libraries report errors only."""
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
