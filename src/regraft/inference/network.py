"""The network of a run restored from its folder, in the arithmetic of the run's own scores.

Refuses weights that are not those of the plan, whatever the folder says.
"""

from __future__ import annotations

import numpy as np
import safetensors
import torch
from torch import Tensor, nn

from regraft.errors import UserError
from regraft.models.backbone import Backbone, load_backbone, restore_weights
from regraft.models.cut import cut_backbone
from regraft.models.layers import earliest_layer
from regraft.models.optimize import cast_bfloat16, fuse_conv_bn
from regraft.models.parts import Prefix
from regraft.runs.folder import Run, verify_run
from regraft.system.hardware import has_bfloat16
from regraft.train import head


class InferenceNetwork(nn.Module):
    """The whole network for inference: what `views.see` returns in, logits out, float32.

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


def restore_network(
    finished: Run, device: str, body: Backbone | None = None
) -> tuple[Backbone, nn.Sequential]:
    """Return backbone and head of a run with their trained weights, in eval mode on a device.

    Args:
        finished: The run.
        device: "cpu" or "cuda".
        body: A backbone of the run's name and resolution that may be given the run's weights;
            a new one is built when None.

    Raises:
        UserError: When the run was altered, or the weights do not belong to the plan.
    """
    verify_run(finished)
    plan = finished.plan
    model = body or load_backbone(plan.backbone, "random", plan.resolution)
    whole, _ = cut_backbone(model, "head", plan.stages_taken, plan.flattens)
    top = head.make(plan.head, int(np.prod(whole.shapes[0])), len(finished.classes), plan.seed)
    try:
        tensors = finished.weights()
        _restore_backbone(model, whole, _with_prefix(tensors, "backbone."))
        top.load_state_dict(_with_prefix(tensors, "head."))
    except (RuntimeError, ValueError, OSError, safetensors.SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"The weights in {finished.path} do not belong to its plan ({reason}). "
            "Fit it again with --overwrite."
        ) from error
    model.model.to(device).eval()
    return model, top.to(device).eval()


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
    plan = finished.plan
    model, top = restore_network(finished, device)
    if precision is None:
        precision = plan.precision if has_bfloat16(device) else "float32"
    border = earliest_layer(model, [phase.train for phase in plan.phases])
    frozen, rest = cut_backbone(model, border, plan.stages_taken, plan.flattens)
    fused = fuse_conv_bn(frozen)
    if precision == "bfloat16":
        fused = cast_bfloat16(fused)
    fused_rest = fuse_conv_bn(Prefix(rest.evaluating, ()))
    return model, InferenceNetwork(fused, fused_rest, top, precision)


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose name starts with a prefix, without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _restore_backbone(model: Backbone, whole: Prefix, tensors: dict[str, Tensor]) -> None:
    """Fill a backbone; raises `ValueError` when a tensor that its features need is missing."""
    missing = [name for name in _needed_names(model, whole) if name not in tensors]
    if missing:
        raise ValueError(f"no weights {', '.join(missing[:3])}")
    restore_weights(model, tensors)


def _needed_names(model: Backbone, whole: Prefix) -> list[str]:
    """Return the names of the weights that the features are computed with."""
    used = {id(tensor) for tensor in (*whole.parameters(), *whole.buffers())}
    tensors: dict[str, Tensor] = dict(model.model.named_parameters())
    tensors.update(model.model.named_buffers())
    return [name for name in model.model.state_dict() if id(tensors[name]) in used]
