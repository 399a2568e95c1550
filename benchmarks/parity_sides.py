"""The two versions that `parity.py` and `speed.py` hold beside each other."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
RUNNER = Path(__file__).with_name("parity_runner.py")


@dataclass(frozen=True)
class Side:
    """One version: how it is started, and the folder where it works."""

    name: str
    python: str
    source: Path | None  # folder that goes first on PYTHONPATH; None where it is installed
    home: Path

    def get_environment(self) -> dict[str, str]:
        """Return the environment of its processes, with a cache of its own."""
        environment = {**os.environ, "REGRAFT_CACHE": str(self.home / "cache")}
        environment.pop("PYTHONPATH", None)
        if self.source:
            environment["PYTHONPATH"] = str(self.source)
        environment.setdefault("HF_HUB_OFFLINE", "1")
        return environment

    def locate(self) -> str:
        """Return version and folder of the package that it really imports."""
        version = "importlib.metadata.version('regraft')"
        code = f"import importlib.metadata, regraft; print({version}, regraft.__file__)"
        process = subprocess.run(
            [self.python, "-P", "-c", code],
            capture_output=True,
            text=True,
            env=self.get_environment(),
            cwd=self.home,
        )
        if process.returncode:
            last = process.stderr.strip().splitlines()[-1]
            raise SystemExit(f"{self.python} cannot import regraft: {last}")
        return process.stdout.strip()

    def run(self, commands: Mapping[str, tuple[str, ...]]) -> float:
        """Run commands in one process, see `parity_runner.py`; returns the seconds it took."""
        file = self.home / "commands.json"
        file.write_text(json.dumps(dict(commands)))
        started = time.perf_counter()
        process = subprocess.run(
            [self.python, "-P", str(RUNNER), str(file)],
            env=self.get_environment(),
            cwd=self.home,
        )
        if process.returncode:
            status = process.returncode
            raise SystemExit(f"The {self.name} side ended with {status}; see {self.home}/told.")
        return time.perf_counter() - started

    def read_status(self, command: str) -> int:
        """Return the exit status of a command that was run."""
        return int((self.home / "told" / f"{command}.exit").read_text())

    def read_error(self, command: str) -> str:
        """Return the last line that a command wrote to stderr."""
        text = (self.home / "told" / f"{command}.err").read_text().strip()
        return text.splitlines()[-1] if text else "no message"


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that name the two versions and the images."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=form)
    parser.add_argument("--old-python", help="interpreter of an environment with the old version")
    parser.add_argument("--old-path", type=Path, help="checkout of the old version, used by source")
    parser.add_argument("--new-path", type=Path, default=CHECKOUT, help="checkout of the new one")
    shared = CHECKOUT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=shared, help="holds cifar10 and sign-digits")
    return parser


def make_sides(options: argparse.Namespace, top: Path) -> tuple[Side, Side]:
    """Return the old and the new side, each with an empty folder in `top`; prints what they are."""
    if not options.old_python and not options.old_path:
        raise SystemExit("Name the old version: --old-python PYTHON or --old-path CHECKOUT.")
    old_source = options.old_path.resolve() / "src" if options.old_path else None
    new_source = options.new_path.resolve() / "src"
    old = Side("old", options.old_python or sys.executable, old_source, top / "old")
    new = Side("new", sys.executable, new_source, top / "new")
    for side in (old, new):
        side.home.mkdir(parents=True)
        print(f"{side.name}: {side.locate()}", flush=True)
    return old, new
