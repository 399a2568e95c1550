"""Class-activation maps: which places of an image speak for a class.

Refuses module names: the cut hands over the map, and the part behind it is what the gradient goes
through, in any network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from regraft.errors import UserError
from regraft.inference.classifier import Classifier
from regraft.models.network import Cut, TransferNetwork

_BATCH = 16

Pixels = NDArray[np.uint8]
Heat = NDArray[np.float32]


def activation_maps(
    classifier: Classifier, images: Sequence[Pixels], classes: Sequence[int]
) -> list[Heat]:
    """Return a map for each image, `(h, w)` of that image, 0 … 1: what speaks for a class.

    It is 0 outside the centre square that the network sees.

    HiResCAM (Draelos and Carin 2020): the last feature map times the gradient of the class's logit
    along it, summed over channels, with negative sums left out. Grad-CAM (Selvaraju 2017) averages
    the gradient over all places, which is the same only where the network averages, too: in
    transformers with a class token it misses the place.

    Args:
        classifier: A finished run.
        images: Decoded, `(h, w, 3)` uint8, of any sizes.
        classes: Number of a class for each image.

    Raises:
        UserError: When no layer of the network hands over a feature map.
    """
    heats: list[Heat] = []
    for start in range(0, len(images), _BATCH):
        stop = start + _BATCH
        batch = images[start:stop]
        squares = _square_maps(classifier, batch, classes[start:stop])
        for square, image in zip(squares, batch, strict=True):
            heat = _paste_centre(square, image.shape[:2])
            heats.append(heat)
    return heats


def _square_maps(
    classifier: Classifier, images: Sequence[Pixels], classes: Sequence[int]
) -> NDArray[np.float32]:
    """Return the maps of a batch in the resolution `s` of the network, `(n, s, s)`."""
    side = classifier.preprocess.resolution
    inputs = _preprocess(classifier, images)
    targets = torch.as_tensor(list(classes), device=inputs.device)
    values, gradient = _last_map(classifier, inputs, targets)
    small = _hirescam(values, gradient).unsqueeze(1)
    large = functional.interpolate(small, size=(side, side), mode="bilinear")
    squares: NDArray[np.float32] = large[:, 0].float().cpu().numpy()
    return squares


def _preprocess(classifier: Classifier, images: Sequence[Pixels]) -> Tensor:
    """Return what the network sees of decoded images of any sizes, float32 `(n, 3, s, s)`."""
    inputs = []
    for image in images:
        stored = classifier.preprocess.store(image)
        batch = torch.from_numpy(stored).unsqueeze(0)
        inputs.append(classifier.preprocess(batch.to(classifier.device)))
    return torch.cat(inputs)


def _last_map(classifier: Classifier, inputs: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last feature map that the logits depend on, and their gradient along it.

    Behind the last attention of a transformer with a class token, the other tokens count no more:
    their gradient is zero, and an earlier map is taken.

    Args:
        classifier: A finished run.
        inputs: What the network sees, float32 `(n, 3, s, s)`.
        classes: Number of a class for each image, `(n,)`.

    Returns:
        Both `(n, h, w, c)`.

    Raises:
        UserError: When there is no such map.
    """
    network = classifier.network
    prefix_tokens = int(getattr(network.backbone.model, "num_prefix_tokens", 0))
    for cut in _cuts_with_map(network):
        cut.trained.eval()
        crossing = []
        for value in cut.frozen(inputs):
            copy = value.clone()  # out of inference mode
            crossing.append(copy.requires_grad_())
        feature_maps = [value for value in crossing if _is_map(value.shape[1:])]
        feature_map = feature_maps[-1]
        with torch.enable_grad():
            logits = network.logits(cut.trained, crossing)
            total = logits.gather(1, classes.unsqueeze(1)).sum()
            (slope,) = torch.autograd.grad(total, feature_map)
        gradient = _channels_last(slope, prefix_tokens)
        if bool(gradient.any()):
            return _channels_last(feature_map.detach(), prefix_tokens), gradient
    raise UserError(
        f"{network.plan.backbone} has no feature map before its features are taken. "
        "Expected a convolutional network or a transformer over patches. "
        "Take a run of one of those."
    )


def _cuts_with_map(network: TransferNetwork) -> Iterator[Cut]:
    """Yield the cut at every block before which a feature map crosses, the deepest first."""
    for block in reversed(list(network.backbone.blocks)):
        try:
            cut = network.cut_at(block)
        except UserError:  # behind the layer where features are taken
            continue
        has_map = any(map(_is_map, cut.frozen.shapes))
        if has_map and not cut.is_empty:
            yield cut


def _is_map(shape: Sequence[int]) -> bool:
    """Return whether one image's value has places: `(c, h, w)`, `(h, w, c)` or tokens `(t, d)`."""
    if len(shape) == 2:
        return shape[0] > 3
    if len(shape) == 3:
        return sorted(shape)[1] > 1
    return False


def _channels_last(value: Tensor, prefix_tokens: int) -> Tensor:
    """Return a feature map as `(n, h, w, c)`; tokens that stand for no patch are left out.

    Args:
        value: `(n, c, h, w)`, `(n, h, w, c)` with `h == w != c`, or tokens `(n, t, d)`.
        prefix_tokens: Tokens before those of the patches.
    """
    if value.ndim == 3:
        patches = value[:, prefix_tokens:]
        side = math.isqrt(patches.shape[1])
        square = patches[:, : side * side]
        return square.reshape(len(value), side, side, -1)
    _, first, second, third = value.shape
    is_channels_last = first == second != third
    return value if is_channels_last else value.permute(0, 2, 3, 1)


def _hirescam(values: Tensor, gradient: Tensor) -> Tensor:
    """Return HiResCAM `(n, h, w)`, 0 … 1, from feature maps and gradients `(n, h, w, c)`."""
    positive = (values * gradient).sum(dim=3).clamp(min=0)
    largest = positive.amax(dim=(1, 2), keepdim=True)
    return positive / largest.clamp(min=1e-12)


def _paste_centre(square: Heat, size: tuple[int, int]) -> Heat:
    """Return the map of the centre square as a map of the whole image.

    Args:
        square: `(s, s)`, for the centre of the image.
        size: Height and width of the image.
    """
    height, width = size
    side = min(size)
    small = torch.from_numpy(square)[None, None]
    resized = functional.interpolate(small, size=(side, side), mode="bilinear")
    clipped = np.clip(resized[0, 0].numpy(), 0, 1)
    heat = np.zeros(size, dtype=np.float32)
    top = (height - side) // 2
    left = (width - side) // 2
    heat[top : top + side, left : left + side] = clipped
    return heat
