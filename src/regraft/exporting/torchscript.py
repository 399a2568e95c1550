"""A run as TorchScript: one file that `torch.jit.load` runs, in Python or C++, without regraft."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch

from regraft.exporting.model_card import model_facts
from regraft.exporting.module import WholeModel, model_core
from regraft.exporting.parity import Answered, Answers, Pixels
from regraft.runs.folder import Run


def write_torchscript(finished: Run, path: Path) -> None:
    """Write the whole network, from decoded pixels to probabilities; what it is lies beside it in the file as `regraft.json`."""
    model, network = model_core(finished)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter(
            "ignore"
        )  # torch says that it prefers torch.export, which needs Python to run
        traced = torch.jit.trace(network, torch.zeros(2, 3, model.resolution, model.resolution))  # type: ignore[no-untyped-call]
        made = torch.jit.script(WholeModel(traced, model).eval())
        torch.jit.save(made, path, _extra_files={"regraft.json": json.dumps(model_facts(finished))})


def torchscript_answers(path: Path) -> Answers:
    """Return the file as a function from images of one size to probabilities."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.load(path)  # type: ignore[no-untyped-call]

    def run(images: Pixels) -> Answered:
        with torch.inference_mode():
            found: Answered = made(torch.from_numpy(images)).numpy()
        return found

    return run
