"""A run as one safetensors file: weights by name; plan, classes and input rules as metadata."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from regraft.exporting.model_card import model_facts
from regraft.exporting.parity import Answered, Answers, Pixels
from regraft.inference.classifier import Classifier
from regraft.inference.restore import restore_network
from regraft.plans.toml import parse_plan, plan_to_toml
from regraft.runs.folder import Run
from regraft.runs.scores import RunScores, parse_record


class PackedTensors(Run):
    """A run that lies in one safetensors file."""

    def weights(self) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = safetensors.torch.load_file(self.path)
        return weights


def write_safetensors(finished: Run, path: Path) -> None:
    """Write the weights, with all that is needed to restore the network."""
    rules = restore_network(finished, "cpu").preprocess.rules
    facts = {**model_facts(finished), "input": asdict(rules)}
    metadata = {"format": "pt", "regraft": json.dumps(facts), "plan": plan_to_toml(finished.plan)}
    weights = {name: value.contiguous() for name, value in finished.weights().items()}
    safetensors.torch.save_file(weights, path, metadata)


def safetensors_answers(path: Path) -> Answers:
    """Return the file, and nothing but it, as a function from images to probabilities."""
    with safetensors.safe_open(path, "pt") as file:
        metadata: dict[str, str] = file.metadata()
    facts = json.loads(metadata["regraft"])
    plan = parse_plan(tomllib.loads(metadata["plan"]))
    scores = parse_record(RunScores, facts)
    packed = PackedTensors(path, plan, tuple(facts["classes"]), scores)
    classifier = Classifier(packed, "cpu", "float32")

    def answer(images: Pixels) -> Answered:
        return classifier.predict_proba(images)

    return answer
