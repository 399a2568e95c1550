"""No connection is opened, and no dependency reports home: every verb without sockets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CODE = """
import json, os, socket, sys
asked = []
def refuse(name):
    def no(*given, **more):
        asked.append(f"{name} {given[-1:]}")
        raise OSError("sockets are forbidden in this test")
    return no
for name in ("connect", "connect_ex", "sendto", "bind"):
    setattr(socket.socket, name, refuse(name))
for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "create_connection"):
    setattr(socket, name, refuse(name))
codes = {}
from regraft.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["regraft", *words]
    try:
        main()
    except SystemExit as stop:
        codes[words[0]] = stop.code
reporting = ("gradio", "wandb", "mlflow", "requests.sessions", "sentry_sdk", "posthog", "analytics")
told = [name for name in reporting if name in sys.modules]
hub = sys.modules["huggingface_hub"].constants
flags = [os.environ.get("HF_HUB_DISABLE_TELEMETRY"), hub.HF_HUB_DISABLE_TELEMETRY]
result = {"codes": codes, "asked": asked, "told": told, "flags": flags}
print("\\n" + json.dumps(result), file=sys.stderr)
"""


@pytest.mark.slow
def test_every_verb_works_without_a_socket_and_nothing_reports_home(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "new.png")
    few = ("--train-images", "60", "--val-images", "30")
    verbs = [
        [
            "compare",
            "digits",
            "--techniques",
            "linear-probe,feature-extraction",
            *few,
            "--resolution",
            "32",
            "--set",
            "phases.0.epochs=1",
            "--out",
            "c",
            "-q",
        ],
        ["probe", "digits", *few, "--resolutions", "32", "--out", "p", "-q"],
        ["check", "digits", *few, "--resolution", "32", "--out", "check.html", "-q"],
        ["evaluate", "c/linear-probe", "-q"],
        ["report", "c", "--out", "r.html", "-q"],
        ["predict", "c/linear-probe", "new.png"],
        ["export", "c/linear-probe", "--to", "safetensors", "--out", "e.safetensors", "-q"],
        ["plan", "digits"],
        ["embed", "digits", "--resolution", "32", "--out", "f.parquet", "-q"],
        ["backbones", "list", "resnet*"],
    ]
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(verbs)],
        cwd=tmp_path,
        env={**quiet, "REGRAFT_CACHE": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    told = json.loads(done.stderr.splitlines()[-1])
    assert told["asked"] == []
    assert told["codes"] == {words[0]: 0 for words in verbs}, done.stderr[-3000:]
    assert len(told["codes"]) == 10
    assert told["told"] == []
    assert told["flags"] == ["1", True]


def test_the_test_itself_would_notice(tmp_path: Path) -> None:
    words = json.dumps([["fit", "fashion-mnist", "-q"]])
    done = subprocess.run(
        [sys.executable, "-c", CODE, words],
        cwd=tmp_path,
        env={**os.environ, "REGRAFT_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    told = json.loads(done.stderr.splitlines()[-1])
    assert told["asked"]
    assert told["codes"] == {"fit": 2}
    assert "fashion-mnist cannot be downloaded" in done.stderr
