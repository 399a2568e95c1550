"""The two halves of a network that was cut: what is frozen and computed once, and what is trained.

Frozen is a place here, not a flag: no `requires_grad` is set.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

Features = tuple[Tensor, ...]

# The name that `gather` had in generated code of version 0.1. Digests of that code name the entries
# of the cache and stand in run folders, so they must not change with the name of this module.
_GATHER_IN_CODE = "regraft_backbone_halves_gather"


class Prefix(nn.Module):
    """The frozen part: always in eval mode, without gradients, its parameters in no optimizer."""

    def __init__(self, body: fx.GraphModule, shapes: Sequence[torch.Size]) -> None:
        super().__init__()
        self.body = body
        self.shapes = tuple(shapes)  # of what it hands over, for one image
        self.eval()

    def train(self, mode: bool = True) -> Prefix:
        """Stay in eval mode whatever is asked."""
        return super().train(False)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is frozen, so that the trained part takes the images themselves."""
        return all(node.op in ("placeholder", "output") for node in self.body.graph.nodes)

    @property
    def device(self) -> torch.device:
        """Where its weights are; the CPU when it has none."""
        for tensor in (*self.parameters(), *self.buffers()):
            return tensor.device
        return torch.device("cpu")

    @property
    def code(self) -> str:
        """The Python code of its graph, the same whatever the modules of regraft are called."""
        name = f"{gather_features.__module__}.{gather_features.__name__}".replace(".", "_")
        return self.body.code.replace(name, _GATHER_IN_CODE)

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Features:
        features: Features = self.body(images)
        return features

    def digest(self, tensors: dict[str, str] | None = None) -> str:
        """Return a name for exactly this function: its code, settings, weights and buffers.

        Args:
            tensors: Its `digests`, where they are at hand.
        """
        # strides, paddings, epsilons and kinds of activation are in the text of the modules
        settings = re.sub(r" at 0x[0-9a-f]+", "", repr(self.body))
        if tensors is None:
            tensors = self.digests()
        text = f"{self.code}\n{settings}\n{sorted(tensors.items())}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def digests(self) -> dict[str, str]:
        """Return a digest of every parameter and buffer by name, to see which of them changed."""
        digests = {}
        for name, tensor in (*self.named_parameters(), *self.named_buffers()):
            content = _to_bytes(name, tensor)
            digests[name] = hashlib.blake2b(content, digest_size=16).hexdigest()
        return digests


class Suffix(nn.Module):
    """The trained part of the backbone: everything that it owns is trained.

    It has a graph for each mode, because functional dropout is fixed when a graph is traced.
    """

    def __init__(self, train: fx.GraphModule, evaluate: fx.GraphModule) -> None:
        super().__init__()
        self.body = train
        # the same modules again: in a tuple they are not registered, so not in the state dict twice
        self._evaluating = (evaluate,)

    @property
    def evaluating(self) -> fx.GraphModule:
        """The graph of eval mode, from what crosses the cut to a tuple with the features."""
        return self._evaluating[0]

    def forward(self, *features: Tensor) -> Tensor:
        body = self.body if self.training else self.evaluating
        output: Tensor = body(*features)[0]
        return output


def gather_features(values: Sequence[Tensor], layouts: Sequence[str]) -> Tensor:
    """Return the features `(n, d)`: each value as a vector, side by side.

    Args:
        values: Outputs of layers, each for a batch of n images.
        layouts: What each value is: "vector" as it is; "map" `(n, c, h, w)` or "map-last"
            `(n, h, w, c)` averaged over space; "tokens" `(n, t, d)` averaged, "tokens-1" averaged
            without the first one; "class-token" the first one only; "flat" everything in a row.
    """
    vectors = [_to_vector(value, layout) for value, layout in zip(values, layouts, strict=True)]
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=1)


def _to_vector(value: Tensor, layout: str) -> Tensor:
    if layout == "map":
        return value.mean(dim=(2, 3))
    if layout == "map-last":
        return value.mean(dim=(1, 2))
    if layout.startswith("tokens"):
        skipped = int(layout.partition("-")[2] or 0)
        return value[:, skipped:].mean(dim=1)
    if layout == "class-token":
        return value[:, 0]
    return value.flatten(1)


def _to_bytes(name: str, tensor: Tensor) -> bytes:
    """Return a tensor's name, kind and content."""
    header = f"{name} {tensor.dtype} {tuple(tensor.shape)}"
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return header.encode() + content.numpy().tobytes()
