"""The network of a run for inference, in the arithmetic of the run's own scores."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from regraft.models.network import TransferNetwork
from regraft.models.optimize import fuse_conv_bn
from regraft.models.parts import Prefix
from regraft.system.hardware import has_bfloat16


class InferenceNetwork(nn.Module):
    """The whole network for inference: network inputs in, logits out, float32.

    The frozen part computes in the arithmetic of the plan, the rest in float32, as when the run
    was scored. BatchNorm is folded into the convolutions.

    Args:
        frozen: The part that the run never trained.
        rest: The part behind it.
        head: From features to logits.
        precision: Arithmetic of the frozen part, "float32" or "bfloat16".
    """

    def __init__(self, frozen: Prefix, rest: Prefix, head: nn.Module, precision: str) -> None:
        super().__init__()
        self.frozen = frozen
        self.rest = rest
        self.head = head
        self.precision = precision
        self.eval()

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        is_half = self.precision == "bfloat16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=is_half):
            crossing = self.frozen(images)
        features = self.rest.body(*(value.float() for value in crossing))[0]
        logits: Tensor = self.head(features)
        return logits


def make_inference_network(
    network: TransferNetwork, precision: str | None = None
) -> InferenceNetwork:
    """Return a network of a finished run for inference; its own modules stay as they are.

    Args:
        network: The network, in eval mode.
        precision: Arithmetic of the frozen part: "float32", "bfloat16", or None for the plan's,
            which is float32 where the device has no bfloat16.
    """
    if precision is None:
        has_half = has_bfloat16(network.device.type)
        precision = network.plan.precision if has_half else "float32"
    cut = replace(network.final_cut(), precision=precision)
    rest = fuse_conv_bn(Prefix(cut.trained.evaluating, ()))
    return InferenceNetwork(cut.optimized(), rest, network.head, precision)
