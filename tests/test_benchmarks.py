"""The benchmark scripts are never timed here, only shown to start, and to say what they cannot measure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parents[1] / "benchmarks"


def run(script: str, *words: str) -> str:
    return subprocess.run(
        [sys.executable, str(HERE / script), *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout


def test_every_script_says_what_it_prints() -> None:
    scripts = sorted(
        path.name
        for path in HERE.glob("*.py")
        if path.name not in ("measure.py", "frozen_plans.py")
    )
    assert set(scripts) == {
        "ablation.py",
        "everything.py",
        "gpu.py",
        "growth.py",
        "hit_rate.py",
        "limits.py",
        "parity.py",
        "peers.py",
        "probe.py",
        "recipes.py",
        "repeat.py",
        "checks.py",
        "report.py",
        "serving.py",
        "targets.py",
        "using.py",
    }
    for script in scripts:
        assert "usage:" in run(script, "--help"), script


def test_without_a_gpu_its_benchmark_says_so_and_ends_well() -> None:
    if not torch.cuda.is_available():
        assert "PyTorch finds no CUDA GPU here" in run("gpu.py")


def test_the_eight_frozen_plans_are_eight_different_ones_and_freeze_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from regraft import backbone, techniques
    from regraft.data import DataFacts

    monkeypatch.syspath_prepend(str(HERE))
    from frozen_plans import EIGHT

    facts = backbone.facts(backbone.EMBEDDED)
    plans = [
        techniques.make(way, facts, DataFacts("cifar", 5000, ("a", "b"), (32, 32))) for way in EIGHT
    ]
    assert len({plan.digest for plan in plans}) == len(plans) == 8
    assert all(phase.train == "head" for plan in plans for phase in plan.phases)
