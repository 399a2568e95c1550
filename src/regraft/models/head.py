"""The head: the layers that a plan's line names and the class layer, and weights of classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regraft.plans.head import parse_head

_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


def make_head(line: str, features: int, classes: int, seed: int) -> nn.Sequential:
    """Return a head from `(n, features)` to logits `(n, classes)`.

    Args:
        line: The plan's head, as "bn, dense 256 relu". The cut has applied `flatten` and `pool`.
        features: Number of features.
        classes: Number of classes.
        seed: Of the initial weights. The class layer starts at zero, so that the first steps do
            not push noise into pretrained weights.
    """
    layers: list[nn.Module] = []
    width = features
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in parse_head(line):
            made = _make_layer(layer.kind, layer.value, width)
            if made is None:
                continue
            layers.append(made)
            if isinstance(made, nn.Linear):
                width = made.out_features
        class_layer = nn.Linear(width, classes)
    nn.init.zeros_(class_layer.weight)
    nn.init.zeros_(class_layer.bias)
    return nn.Sequential(*layers, class_layer)


def compute_class_weights(
    option: object, labels: Tensor, classes: tuple[str, ...]
) -> Tensor | None:
    """Return a weight for each class, `(classes,)`, or None where all weigh the same.

    Their mean over the images is 1. A class without images is no error: it counts as one image.

    Args:
        option: "none", "auto" (the inverse of the frequency) or a weight by name, 1 otherwise.
        labels: Class numbers of the training images, `(n,)`.
        classes: Names of the classes.
    """
    if option == "none":
        return None
    counts = torch.bincount(labels, minlength=len(classes)).float()
    if option == "auto":
        weights = counts.sum() / (len(classes) * counts.clamp(min=1))
    else:
        assert isinstance(option, dict)
        weights = torch.tensor([float(option.get(name, 1.0)) for name in classes])
    mean_weight = (weights * counts).sum() / counts.sum()
    return weights / mean_weight


def _make_layer(kind: str, value: float | None, width: int) -> nn.Module | None:
    """Return the layer of a kind on `width` features; None for what the cut has applied."""
    if kind == "bn":
        return nn.BatchNorm1d(width)
    if kind == "ln":
        return nn.LayerNorm(width)
    if kind == "dense":
        return nn.Linear(width, int(value or 0))
    if kind == "dropout":
        return nn.Dropout(value or 0.0)
    return _ACTIVATIONS[kind]() if kind in _ACTIVATIONS else None
