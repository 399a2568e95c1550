"""Makes the peers' own environment, and says of each step of `requirements.txt` whether it is there, or why it cannot be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
IMPORTS = {
    "base": "torch, torchvision, timm",
    "fastai": "fastai.vision.all",
    "autotimm": "autotimm",
    "transformers": "transformers, accelerate",
    "keras": "keras",
    "jax": "jax",
}
_VERSIONS = """
import json, platform, sys
from importlib import metadata
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def python(venv: Path) -> Path:
    """Return the interpreter of an environment."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def default_folder() -> Path:
    """Return where the environment is kept when nobody says: in the platform's cache folder."""
    import platformdirs

    return platformdirs.user_cache_path("regraft") / "peers-venv"


def steps() -> dict[str, list[str]]:
    """Return the requirements of each step, in order."""
    found: dict[str, list[str]] = {}
    for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines():
        if line.startswith("# step:"):
            name = line.partition(":")[2].strip()
        elif line.strip() and not line.startswith("#"):
            found.setdefault(name, []).append(line.strip())
    return found


def versions(venv: Path) -> dict[str, str]:
    """Return the versions of what is installed of the requirements, and of Python."""
    names = [one.partition("==")[0] for group in steps().values() for one in group]
    done = subprocess.run(
        [python(venv), "-c", _VERSIONS, *names], capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout))


def install(venv: Path) -> dict[str, str]:
    """Return why a step cannot be used, by step; empty when all can. Makes the environment and installs what is missing.

    Every step is also imported once, which brings its files into the system's memory before anything is timed.
    """
    if not python(venv).exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    faults: dict[str, str] = {}
    there = versions(venv)
    for step, wanted in steps().items():
        if "base" in faults:
            faults[step] = faults["base"]
            continue
        if not all(
            there.get(name) == pin if pin else name in there
            for name, _, pin in (one.partition("==") for one in wanted)
        ):
            print(f"installing {', '.join(wanted)}", file=sys.stderr, flush=True)
            pip = [
                python(venv),
                "-m",
                "pip",
                "install",
                "--disable-pip-version-check",
                "--quiet",
                "--constraint",
                REQUIREMENTS,
                *wanted,
            ]
            done = subprocess.run(pip, capture_output=True, text=True, check=False)
            if done.returncode:
                faults[step] = f"not installable: {last_line(done.stderr, 'ERROR')}"
                continue
        environment = {**os.environ, "KERAS_BACKEND": "torch"}
        done = subprocess.run(
            [python(venv), "-c", f"import {IMPORTS[step]}"],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        if done.returncode:
            faults[step] = f"not importable: {last_line(done.stderr)}"
    return faults


def last_line(text: str, start: str = "") -> str:
    """Return the last line that says something, and begins with `start` where one does."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return ([line for line in lines if line.startswith(start)] or lines or ["no message"])[-1][:300]
