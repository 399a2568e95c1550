"""A run's network from decoded pixels to probabilities, as plain PyTorch modules that can be traced.

Refuses what cannot leave the package: the modules hold tensors and torch's own operations only.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from regraft.inference.classifier import Classifier
from regraft.inference.network import InferenceNetwork
from regraft.models.backbone import Backbone
from regraft.runs.folder import Run


class ModelCore(nn.Module):
    """What the network sees in, logits out; float32."""

    def __init__(self, network: InferenceNetwork) -> None:
        super().__init__()
        self.frozen, self.rest, self.top = network.frozen.body, network.rest.body, network.top

    def forward(self, seen: Tensor) -> Tensor:
        logits: Tensor = self.top(self.rest(*self.frozen(seen))[0])
        return logits


class WholeModel(nn.Module):
    """Decoded images of one size in, uint8 `(n, h, w, 3)`; probabilities out, `(n, classes)`. What it does with pixels is what `views` does."""

    def __init__(self, core: nn.Module, model: Backbone) -> None:
        super().__init__()
        self.core, self.side, self.mode = core, model.resolution, model.rules.interpolation
        self.register_buffer("mean", torch.tensor(model.rules.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(model.rules.std).view(1, 3, 1, 1) * 255)

    def forward(self, images: Tensor) -> Tensor:
        maps = images.permute(0, 3, 1, 2)
        height, width = int(maps.shape[2]), int(maps.shape[3])
        if height != self.side or width != self.side:
            factor = max(self.side / height, self.side / width)
            # TorchScript rounds to floats
            tall = max(self.side, int(round(height * factor)))  # noqa: RUF046
            wide = max(self.side, int(round(width * factor)))  # noqa: RUF046
            larger = [tall, wide]
            maps = functional.interpolate(maps, size=larger, mode=self.mode, antialias=True)
            top, left = (larger[0] - self.side) // 2, (larger[1] - self.side) // 2
            maps = maps[:, :, top : top + self.side, left : left + self.side]
        logits: Tensor = self.core(maps.float().sub(self.mean).div(self.std))  # type: ignore[arg-type]
        return logits.softmax(dim=1)


def model_core(finished: Run) -> tuple[Backbone, ModelCore]:
    """Return a run's backbone with its rules, and its network in eval mode on the processor; BatchNorm is folded into the convolutions."""
    model, network = Classifier(finished, "cpu", "float32").network
    made = ModelCore(network).eval()
    return model, made.requires_grad_(False)
