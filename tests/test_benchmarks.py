"""The benchmark scripts are never timed here, only shown to start, and to say what they cannot measure."""

from __future__ import annotations

import json
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch

HERE = Path(__file__).parents[1] / "benchmarks"
PARTS = {  # what scripts share
    "frozen_plans.py",
    "measure.py",
    "parity_cases.py",
    "parity_data.py",
    "parity_results.py",
    "parity_runner.py",
    "parity_sides.py",
}


def run(script: str, *words: str) -> str:
    return subprocess.run(
        [sys.executable, str(HERE / script), *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout


@pytest.mark.slow
def test_every_script_says_what_it_prints() -> None:
    scripts = {path.name for path in HERE.glob("*.py")} - PARTS
    assert scripts == {
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
        "speed.py",
        "standardise.py",
        "targets.py",
        "using.py",
    }
    for script in sorted(scripts):
        assert "usage:" in run(script, "--help"), script


def test_without_a_gpu_its_benchmark_says_so_and_ends_well() -> None:
    if not torch.cuda.is_available():
        assert "PyTorch finds no CUDA GPU here" in run("gpu.py")


def test_the_eight_frozen_plans_are_eight_different_ones_and_freeze_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from regraft.data.dataset import DatasetInfo
    from regraft.models.backbone import model_info
    from regraft.options import DEFAULT_BACKBONE
    from regraft.plans.techniques import make_technique_plan

    monkeypatch.syspath_prepend(str(HERE))
    from frozen_plans import EIGHT

    facts = model_info(DEFAULT_BACKBONE)
    plans = [
        make_technique_plan(way, facts, DatasetInfo("cifar", 5000, ("a", "b"), (32, 32)))
        for way in EIGHT
    ]
    assert len({plan.digest for plan in plans}) == len(plans) == 8
    assert all(phase.train == "head" for plan in plans for phase in plan.phases)


def test_parity_names_what_differs_and_leaves_times_and_sentences_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    from safetensors.numpy import save_file

    from parity_results import find_differences, read_result

    sides = []
    for name, bias, seconds in (("old", 0.5, 1), ("same", 0.5, 2), ("new", 0.5000001, 1)):
        run = tmp_path / name / "run"
        run.mkdir(parents=True)
        save_file({"head.bias": np.full(3, bias, np.float32)}, run / "model.safetensors")
        np.savez(run / "predictions.npz", logits=np.full(2, float("nan")))
        scores = {"val": {"accuracy": 0.25, "ci95": [0.1, bias]}, "seconds": seconds}
        (run / "scores.json").write_text(json.dumps(scores))
        (run / "history.csv").write_text(f"epoch,loss,seconds\n0,1.5,{seconds}\n")
        told = tmp_path / name / "told"
        told.mkdir()
        (told / "case.exit").write_text("0")
        (told / "case.out").write_text(json.dumps({**scores, "verdict": f"{seconds} s"}))
        sides.append(read_result(tmp_path / name, "case", "run"))
    old, same, new = sides
    assert find_differences(old, same) == {}
    assert set(find_differences(old, new)) == {
        "model.safetensors/head.bias",
        "scores.json/val.ci95.1",
        "stdout/val.ci95.1",
    }
    assert find_differences(old, {**old, "scores.json/format": "1"}) == {}
    gone = {name: value for name, value in old.items() if name != "history.csv/loss"}
    assert list(find_differences(old, gone)) == ["history.csv/loss"]


def test_parity_lets_nothing_differ_but_what_it_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    import parity_cases

    techniques = ["linear-probe", "fine-tune"]
    cases = parity_cases.make_fits(techniques) + parity_cases.make_uses()
    cases += parity_cases.make_comparisons() + parity_cases.make_broken()
    names = ["techniques", *[case.name for case in cases]]
    assert len(set(names)) == len(names) > 50
    assert set(techniques) < set(names)
    for intended in parity_cases.INTENDED:
        assert intended.reason
        assert any(fnmatch(name, intended.case) for name in names)
    assert not parity_cases.get_reason("linear-probe", "split.csv/part")
    assert not parity_cases.get_reason("broken-fit", "exit")
    assert parity_cases.get_reason("broken-fit", "split.csv/part")
