"""The network of a run put together again, in the arithmetic in which the run's own scores were made.

Refuses weights that are not those of the plan, whatever the folder says.
"""

from __future__ import annotations

import numpy as np
import safetensors
import torch
from torch import Tensor, nn

from regraft.errors import UserError
from regraft.models.backbone import Backbone, load_backbone, restore_weights
from regraft.models.cut import Prefix
from regraft.models.head import make_head
from regraft.models.layers import cut_backbone, earliest_layer
from regraft.models.optimize import cast_bfloat16, fuse_conv_bn
from regraft.runs.folder import Run, verify_run
from regraft.system.hardware import has_bfloat16


class InferenceNetwork(nn.Module):
    """The whole network for answering: what `views.see` gives in, logits out, float32.

    What the run froze computes in the arithmetic of the plan, the rest in float32, as when the run was scored; BatchNorm is folded into the convolutions.
    """

    def __init__(self, frozen: Prefix, rest: Prefix, top: nn.Module, precision: str) -> None:
        super().__init__()
        self.frozen, self.rest, self.top, self.precision = frozen, rest, top, precision
        self.eval()

    @torch.inference_mode()
    def forward(self, seen: Tensor) -> Tensor:
        with torch.autocast(seen.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            features = self.frozen(seen)
        out: Tensor = self.top(self.rest.body(*(feature.float() for feature in features))[0])
        return out


def restore_network(
    finished: Run, device: str, body: Backbone | None = None
) -> tuple[Backbone, nn.Sequential]:
    """Return backbone and head of a run with their trained weights, in eval mode on a device.

    Args:
        finished: The run.
        device: "cpu" or "cuda".
        body: A backbone of the run's name and resolution that is at hand and may be given the run's weights; else one is made.

    Raises:
        UserError: When the run was altered, or the weights do not belong to the plan.
    """
    verify_run(finished)
    plan = finished.plan
    model = body or load_backbone(plan.backbone, "random", plan.resolution)
    whole, _ = cut_backbone(model, "head", plan.stages_taken, plan.flattens)
    top = make_head(plan.head, int(np.prod(whole.shapes[0])), len(finished.classes), plan.seed)
    try:
        tensors = finished.weights()
        own = {
            name.removeprefix("backbone."): value
            for name, value in tensors.items()
            if name.startswith("backbone.")
        }
        lacking = [name for name in _needed(model, whole) if name not in own]
        if lacking:
            raise ValueError(f"no weights {', '.join(lacking[:3])}")
        restore_weights(model, own)
        top.load_state_dict(
            {
                name.removeprefix("head."): value
                for name, value in tensors.items()
                if name.startswith("head.")
            }
        )
    except (RuntimeError, ValueError, OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f"The weights in {finished.path} do not belong to its plan ({str(error).splitlines()[0]}). Fit it again with --overwrite."
        ) from error
    model.model.to(device).eval()
    return model, top.to(device).eval()


def load_network(
    finished: Run, device: str, precision: str | None = None
) -> tuple[Backbone, InferenceNetwork]:
    """Return a run's backbone, and its network for answering.

    Args:
        finished: The run.
        device: "cpu" or "cuda".
        precision: Arithmetic of the frozen part: "float32", "bfloat16", or None for the plan's, which is float32 where the device has no bfloat16.

    Raises:
        UserError: When the weights do not belong to the plan.
    """
    plan = finished.plan
    model, top = restore_network(finished, device)
    arithmetic = precision or (plan.precision if has_bfloat16(device) else "float32")
    frozen, rest = cut_backbone(
        model,
        earliest_layer(model, [phase.train for phase in plan.phases]),
        plan.stages_taken,
        plan.flattens,
    )
    quick = fuse_conv_bn(frozen)
    if arithmetic == "bfloat16":
        quick = cast_bfloat16(quick)
    return model, InferenceNetwork(
        quick, fuse_conv_bn(Prefix(rest.evaluating, ())), top, arithmetic
    )


def _needed(model: Backbone, whole: Prefix) -> list[str]:
    """Return the names of the weights that the features are made with."""
    used = {id(tensor) for tensor in (*whole.parameters(), *whole.buffers())}
    named = {**dict(model.model.named_parameters()), **dict(model.model.named_buffers())}
    return [name for name in model.model.state_dict() if id(named[name]) in used]
