"""A run's network from decoded pixels to probabilities, as PyTorch modules that can be traced.

Refuses what cannot leave the package: the modules hold tensors and torch's own operations only.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from regraft.inference.classifier import Classifier
from regraft.inference.network import InferenceNetwork
from regraft.models.transforms import Preprocess
from regraft.runs.folder import Run


class ModelCore(nn.Module):
    """The network behind preprocessing: float32 `(n, 3, side, side)` in, logits out."""

    def __init__(self, network: InferenceNetwork) -> None:
        super().__init__()
        self.frozen = network.frozen.body
        self.rest = network.rest.body
        self.head = network.head

    def forward(self, images: Tensor) -> Tensor:
        crossing = self.frozen(images)
        features = self.rest(*crossing)[0]
        logits: Tensor = self.head(features)
        return logits


class WholeModel(nn.Module):
    """The network with preprocessing and softmax, written in what TorchScript compiles.

    In: decoded images of one size, uint8 `(n, h, w, 3)`. Out: probabilities `(n, classes)`.
    It preprocesses as `Preprocess` does.
    """

    def __init__(self, core: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.core = core
        self.side = preprocess.resolution
        self.mode = preprocess.rules.interpolation
        self.register_buffer("mean", _per_channel(preprocess.rules.mean))
        self.register_buffer("std", _per_channel(preprocess.rules.std))

    def forward(self, images: Tensor) -> Tensor:
        pixels = self.resize_and_crop(images.permute(0, 3, 1, 2))
        normalised = pixels.float().sub(self.mean).div(self.std)  # type: ignore[arg-type]
        logits: Tensor = self.core(normalised)
        return logits.softmax(dim=1)

    def resize_and_crop(self, images: Tensor) -> Tensor:
        """Return images `(n, 3, h, w)` with the shorter side resized, and the centre cut out."""
        side = self.side
        height = int(images.shape[2])
        width = int(images.shape[3])
        if height == side and width == side:
            return images
        factor = max(side / height, side / width)
        # TorchScript rounds to floats
        tall = max(side, int(round(height * factor)))  # noqa: RUF046
        wide = max(side, int(round(width * factor)))  # noqa: RUF046
        size = [tall, wide]
        resized = functional.interpolate(images, size=size, mode=self.mode, antialias=True)
        top = (tall - side) // 2
        left = (wide - side) // 2
        return resized[:, :, top : top + side, left : left + side]


def model_core(finished: Run) -> tuple[Preprocess, ModelCore]:
    """Return how images enter a run's network, and the network in eval mode on the CPU.

    BatchNorm is folded into the convolutions, and nothing has a gradient.
    """
    classifier = Classifier(finished, "cpu", "float32")
    module = ModelCore(classifier.inference).eval()
    return classifier.preprocess, module.requires_grad_(False)


def _per_channel(values: tuple[float, float, float]) -> Tensor:
    """Return numbers for pixels of 0 … 1 as `(1, 3, 1, 1)` for pixels of 0 … 255."""
    return torch.tensor(values).view(1, 3, 1, 1) * 255
