"""What every peer is told and what it tells: its command line, the body's weights, one line of JSON an epoch.

Loads no torch by itself: the Keras peer on JAX must not pay for it.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

MODEL = "tf_efficientnet_lite0"
MEAN = STD = (0.5, 0.5, 0.5)
FROZEN_BLOCKS = 6  # blocks.0 to blocks.5 stay frozen when the last stages are trained
TRAINED = {
    "frozen": ("classifier.",),
    "last": ("blocks.6.", "conv_head.", "bn2.", "classifier."),
    "all": ("",),
}


def options(**more: dict[str, Any]) -> argparse.Namespace:
    """Return what the orchestrator asks for; `more` are flags that only one peer knows."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder with train/<class>/*.png and val/<class>/*.png",
    )
    parser.add_argument("--weights", type=Path, required=True, help="state dict of the body")
    parser.add_argument("--task", choices=TRAINED, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--resolution", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, required=True)
    for name, settings in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **settings)
    return parser.parse_args()


def network(classes: int, weights: Path) -> Any:
    """Return timm's network with the ImageNet weights and a new linear layer in the place of its classifier, as tutorials do.

    The classifier that timm itself makes for these networks starts with large weights, which costs a frozen network several epochs.
    """
    import timm
    from torch import nn

    model = timm.create_model(MODEL, pretrained=False, num_classes=classes)
    fill(model, weights)
    model.classifier = nn.Linear(model.num_features, classes)
    return model


def fill(model: Any, weights: Path) -> None:
    """Load the ImageNet weights into a timm model's body; only its classifier may stay as it was made."""
    import torch

    fault = model.load_state_dict(
        torch.load(weights, map_location="cpu", weights_only=True), strict=False
    )
    assert not fault.unexpected_keys, fault.unexpected_keys
    assert all(key.startswith("classifier.") for key in fault.missing_keys), fault.missing_keys


def freeze(model: Any, task: str) -> None:
    """Leave gradients only to what a task trains."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(TRAINED[task])


class Teller:
    """Prints when training began, each finished epoch and the end, as lines of JSON."""

    def __init__(self) -> None:
        self.number = 0
        self.begun = 0.0
        self.train_seconds: float | None = None

    def begin(self) -> None:
        """Say that the first epoch begins now."""
        say({"begin": time.time()})

    def epoch_begins(self) -> None:
        """Start the clock of an epoch's training."""
        self.begun, self.train_seconds = time.perf_counter(), None

    def trained(self) -> None:
        """Stop it; what follows in this epoch is validation."""
        if self.train_seconds is None:
            self.train_seconds = time.perf_counter() - self.begun

    def epoch_ends(self, val_accuracy: float) -> None:
        """Say that an epoch is finished and validated."""
        say(
            {
                "epoch": self.number,
                "val_accuracy": val_accuracy,
                "at": time.time(),
                "train_seconds": self.train_seconds,
            }
        )
        self.number += 1

    def done(self, settings: dict[str, Any]) -> None:
        """Say that all is done, how it was set, and the most memory that one process of it has held."""
        most = max(
            resource.getrusage(who).ru_maxrss
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        say(
            {
                "done": True,
                "settings": settings,
                "peak_memory_mb": most / (2**20 if sys.platform == "darwin" else 1024),
            }
        )


def say(values: dict[str, Any]) -> None:
    """Print one line of JSON at once."""
    print(json.dumps(values), flush=True)
