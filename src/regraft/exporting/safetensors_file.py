"""A run as one safetensors file: weights by name, with the plan, the classes and the input rules in its metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
from torch import Tensor

from regraft.exporting.model_card import model_facts
from regraft.exporting.parity import Answers
from regraft.inference.classifier import Classifier
from regraft.plans.schema import parse_plan, plan_to_toml
from regraft.runs.folder import Run


class PackedTensors(Run):
    """A run that lies in one safetensors file."""

    def weights(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = safetensors.torch.load_file(self.path)
        return found


def write_safetensors(finished: Run, path: Path) -> None:
    """Write the weights, with everything that is needed to put the network together again."""
    model, _ = Classifier(finished, "cpu", "float32").network
    facts = {
        **model_facts(finished),
        "input": {
            "mean": model.rules.mean,
            "std": model.rules.std,
            "interpolation": model.rules.interpolation,
        },
    }
    metadata = {"format": "pt", "regraft": json.dumps(facts), "plan": plan_to_toml(finished.plan)}
    safetensors.torch.save_file(
        {name: value.contiguous() for name, value in finished.weights().items()}, path, metadata
    )


def safetensors_answers(path: Path) -> Answers:
    """Return the file as a function from images of one size to probabilities; nothing but the file is read."""
    import tomllib

    with safetensors.safe_open(path, "pt") as file:
        metadata: dict[str, Any] = dict(file.metadata())
    facts = json.loads(metadata["regraft"])
    packed = PackedTensors(
        path,
        parse_plan(tomllib.loads(metadata["plan"])),
        tuple(facts["classes"]),
        {"val": facts["val"]},
    )
    classifier = Classifier(packed, "cpu", "float32")
    return lambda images: np.asarray(classifier.predict_proba(images))
