"""The head: the layers that a plan's line names, and the class layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regraft.plans.schema import parse_head

_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


def make_head(line: str, features: int, classes: int, seed: int) -> nn.Sequential:
    """Return a head from `(n, features)` to logits `(n, classes)`; `flatten` and `pool` are done before it, by the cut."""
    layers: list[nn.Module] = []
    width = features
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in parse_head(line):
            if layer.kind == "bn":
                layers.append(nn.BatchNorm1d(width))
            elif layer.kind == "ln":
                layers.append(nn.LayerNorm(width))
            elif layer.kind == "dense":
                layers.append(nn.Linear(width, int(layer.value or 0)))
                width = int(layer.value or 0)
            elif layer.kind == "dropout":
                layers.append(nn.Dropout(layer.value or 0.0))
            elif layer.kind in _ACTIVATIONS:
                layers.append(_ACTIVATIONS[layer.kind]())
        layers.append(nn.Linear(width, classes))
        _zero_last(layers[-1])
    return nn.Sequential(*layers)


def _zero_last(layer: nn.Module) -> None:
    """Start from equal probabilities, so that the first steps do not push noise into pretrained weights."""
    assert isinstance(layer, nn.Linear)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def class_weights(given: object, labels: Tensor, classes: tuple[str, ...]) -> Tensor | None:
    """Return a weight for each class, `(classes,)` with mean 1 over the images, or None where all weigh the same."""
    if given == "none":
        return None
    counts = torch.bincount(labels, minlength=len(classes)).float()
    if given == "auto":
        weights = counts.sum() / (len(classes) * counts.clamp(min=1))
    else:
        assert isinstance(given, dict)
        weights = torch.tensor([float(given.get(name, 1.0)) for name in classes])
    return weights / ((weights * counts).sum() / counts.sum())
