"""The network of a run for inference, in the arithmetic of the run's own scores."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from regraft.inference.restore import restore_network
from regraft.models.backbone import Backbone
from regraft.models.optimize import fuse_conv_bn
from regraft.models.parts import Prefix
from regraft.runs.folder import Run
from regraft.system.hardware import has_bfloat16


class InferenceNetwork(nn.Module):
    """The whole network for inference: network inputs in, logits out, float32.

    The frozen part computes in the arithmetic of the plan, the rest in float32, as when the run
    was scored. BatchNorm is folded into the convolutions.

    Args:
        frozen: The part that the run never trained.
        rest: The part behind it.
        top: The head, from features to logits.
        precision: Arithmetic of the frozen part, "float32" or "bfloat16".
    """

    def __init__(self, frozen: Prefix, rest: Prefix, top: nn.Module, precision: str) -> None:
        super().__init__()
        self.frozen = frozen
        self.rest = rest
        self.top = top
        self.precision = precision
        self.eval()

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        is_half = self.precision == "bfloat16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=is_half):
            crossing = self.frozen(images)
        features = self.rest.body(*(value.float() for value in crossing))[0]
        logits: Tensor = self.top(features)
        return logits


def load_network(
    finished: Run, device: str, precision: str | None = None
) -> tuple[Backbone, InferenceNetwork]:
    """Return a run's backbone, and its network for inference.

    Args:
        finished: The run.
        device: "cpu" or "cuda".
        precision: Arithmetic of the frozen part: "float32", "bfloat16", or None for the plan's,
            which is float32 where the device has no bfloat16.

    Raises:
        UserError: When the weights do not belong to the plan.
    """
    network = restore_network(finished, device)
    if precision is None:
        precision = finished.plan.precision if has_bfloat16(device) else "float32"
    cut = replace(network.final_cut(), precision=precision)
    rest = fuse_conv_bn(Prefix(cut.trained.evaluating, ()))
    inference = InferenceNetwork(cut.optimized(), rest, network.head, precision)
    return network.backbone, inference
