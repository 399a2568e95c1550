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
    """Write the whole network, from decoded pixels to probabilities, with `regraft.json` in it."""
    preprocess, network = model_core(finished)
    facts = json.dumps(model_facts(finished))
    example = torch.zeros(2, 3, preprocess.resolution, preprocess.resolution)
    with warnings.catch_warnings(), torch.no_grad():
        # torch prefers torch.export, which needs Python to run
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network, example)  # type: ignore[no-untyped-call]
        scripted = torch.jit.script(WholeModel(traced, preprocess).eval())
        torch.jit.save(scripted, path, _extra_files={"regraft.json": facts})


def torchscript_answers(path: Path) -> Answers:
    """Return the file as a function from images of one size to probabilities."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.load(path)  # type: ignore[no-untyped-call]

    def answer(images: Pixels) -> Answered:
        with torch.inference_mode():
            probabilities: Answered = scripted(torch.from_numpy(images)).numpy()
        return probabilities

    return answer
