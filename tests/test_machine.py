from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from regraft.system.files import stale_dirs
from regraft.system.hardware import count_cores, free_memory, peak_memory_mb

HIDE = """
import os, sys
import psutil  # which needs on each system what is there
for name in ("resource", "fcntl"):
    sys.modules[name] = None
for name in ("sched_getaffinity", "sched_setaffinity", "symlink", "posix_fadvise"):
    if hasattr(os, name):
        delattr(os, name)
def kill(*given):
    raise AssertionError("on Windows this ends a process")
os.kill = kill
"""


def run_without_posix(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that lacks what Windows and macOS lack."""
    words = [sys.executable, "-c", HIDE + code]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_help_is_there_without_what_only_linux_has() -> None:
    done = run_without_posix(
        "import regraft\nsys.argv = ['regraft', '--help']\nfrom regraft.cli import main\nmain()\n"
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_the_machine_is_described_and_folders_are_locked_without_what_only_linux_has() -> None:
    done = run_without_posix(
        "from pathlib import Path\n"
        "import psutil\n"
        "psutil.pid_exists = lambda process: process == 1\n"
        "from regraft.system import files, hardware, locks\n"
        "assert hardware.count_cores() >= 1\n"
        "assert hardware.free_memory() > 0\n"
        "assert hardware.peak_memory_mb() > 0\n"
        "hardware.tune_allocator()\n"
        "with locks.lock_path(Path('out')), files.atomic_write(Path('out/a')) as scratch:\n"
        "    scratch.write_text('a')\n"
        "files.make_scratch_dir(Path('out/b'))\n"
        "assert len(files.stale_dirs(Path('out'))) == 1\n"
        "print(Path('out/a').read_text())\n"
    )
    assert (done.returncode, done.stdout) == (0, "a\n"), done.stderr


def test_without_affinity_every_core_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= count_cores() <= (os.cpu_count() or 1)
    monkeypatch.delattr(psutil.Process, "cpu_affinity", raising=False)
    assert count_cores() == os.cpu_count()


def test_memory_is_what_the_system_says() -> None:
    total = psutil.virtual_memory().total
    assert 0 < free_memory() <= total
    assert 0 < peak_memory_mb() <= total / 2**20


def test_scratch_of_other_machines_is_stale_after_a_day(tmp_path: Path) -> None:
    folder = tmp_path / ".scratch-abc-elsewhere-1-0"
    folder.mkdir()
    changed = folder.stat().st_mtime
    assert stale_dirs(tmp_path, now=lambda: changed + 86_399) == []
    assert stale_dirs(tmp_path, now=lambda: changed + 86_400) == [folder]
