"""A run as TorchScript: one file that `torch.jit.load` runs, in Python or C++, without regraft."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch

from regraft.export import about
from regraft.export.parity import Answered, Answers, Pixels
from regraft.export.whole import Whole, core
from regraft.run import Run


def write(finished: Run, path: Path) -> None:
    """Write the whole network, from decoded pixels to probabilities, with `regraft.json` in it."""
    model, network = core(finished)
    facts = json.dumps(about.facts(finished))
    example = torch.zeros(2, 3, model.resolution, model.resolution)
    with warnings.catch_warnings(), torch.no_grad():
        # torch prefers torch.export, which needs Python to run
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network, example)  # type: ignore[no-untyped-call]
        scripted = torch.jit.script(Whole(traced, model).eval())
        torch.jit.save(scripted, path, _extra_files={"regraft.json": facts})


def answers(path: Path) -> Answers:
    """Return the file as a function from images of one size to probabilities."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.load(path)  # type: ignore[no-untyped-call]

    def answer(images: Pixels) -> Answered:
        with torch.inference_mode():
            probabilities: Answered = scripted(torch.from_numpy(images)).numpy()
        return probabilities

    return answer
