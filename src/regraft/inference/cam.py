"""Where a network looks: class-activation maps, taken at the last cut at which a map crosses that the answer depends on.

Refuses module names: the cut hands over the map, and the trained half behind it is what the gradient goes through, in any network.
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
from regraft.models.backbone import Backbone
from regraft.models.cut import Prefix, Suffix
from regraft.models.layers import cut_backbone
from regraft.models.transforms import resize_center_crop, transform
from regraft.plans.schema import Plan

_BATCH = 16


def activation_maps(
    classifier: Classifier, images: Sequence[NDArray[np.uint8]], classes: Sequence[int]
) -> list[NDArray[np.float32]]:
    """Return what speaks for a class in each image, `(h, w)` of that image, 0 … 1; 0 outside the centre that the network sees.

    HiResCAM (Draelos and Carin 2020): the last map times how much the class's logit rises with each value of it, summed over channels, what speaks
    against the class left out. Grad-CAM (Selvaraju 2017) takes the mean of that rise over all places, which is the same only where the network does too:
    in transformers with a class token it misses the place.

    Args:
        classifier: A finished run.
        images: Decoded, `(h, w, 3)` uint8, of any sizes.
        classes: Number of a class for each image.

    Raises:
        UserError: When no place of the network has a map.
    """
    model, _ = classifier.network
    found: list[NDArray[np.float32]] = []
    for start in range(0, len(images), _BATCH):
        chosen = images[start : start + _BATCH]
        kept = [
            resize_center_crop(
                image, (model.resolution, model.resolution), model.rules.interpolation
            )
            for image in chosen
        ]
        batch = torch.from_numpy(np.stack(kept)).to(classifier.device)
        seen = transform(
            batch,
            torch.zeros(len(kept), dtype=torch.int64, device=batch.device),
            model.rules,
            model.resolution,
        )
        values, slope = _last_map(
            classifier,
            seen,
            torch.as_tensor(list(classes[start : start + _BATCH]), device=batch.device),
        )
        small = _weighted(values, slope)
        large = (
            functional.interpolate(
                small.unsqueeze(1), size=(model.resolution, model.resolution), mode="bilinear"
            )[:, 0]
            .float()
            .cpu()
            .numpy()
        )
        found += [_placed(one, image.shape[:2]) for one, image in zip(large, chosen, strict=True)]
    return found


def _last_map(classifier: Classifier, seen: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last map that the classes depend on, and their logits' gradient along it, both `(n, h, w, c)`.

    Behind the last attention of a transformer with a class token, the other tokens no longer count: their gradient is zero, and an earlier map is taken.
    """
    model, whole = classifier.network
    plan, prefixed = classifier.run.plan, int(getattr(model.model, "num_prefix_tokens", 0))
    for prefix, suffix in _halves(model, plan):
        suffix.eval()
        crossing = [
            value.clone().requires_grad_() for value in prefix(seen)
        ]  # clones, out of inference mode
        number = next(
            place for place in reversed(range(len(crossing))) if _is_map(crossing[place].shape[1:])
        )
        with torch.enable_grad():
            asked = whole.top(suffix(*crossing)).gather(1, classes.unsqueeze(1)).sum()
            slope = _channels_last(torch.autograd.grad(asked, crossing[number])[0], prefixed)
        if bool(slope.any()):
            return _channels_last(crossing[number].detach(), prefixed), slope
    raise UserError(
        f"{plan.backbone} has no map to look at before its features are taken. Expected a convolutional network or a transformer over patches."
    )


def _halves(model: Backbone, plan: Plan) -> Iterator[tuple[Prefix, Suffix]]:
    """Yield the halves at every block before which a map crosses, the deepest first."""
    for block in reversed(list(model.blocks)):
        try:
            prefix, suffix = cut_backbone(model, block, plan.stages_taken, plan.flattens)
        except UserError:  # behind the place where features are taken
            continue
        if not prefix.is_empty and any(_is_map(shape) for shape in prefix.shapes):
            yield prefix, suffix


def _is_map(shape: Sequence[int]) -> bool:
    """Whether one image's value has places in it: `(c, h, w)`, `(h, w, c)` or tokens `(t, d)`."""
    return (len(shape) == 2 and shape[0] > 3) or (len(shape) == 3 and sorted(shape)[1] > 1)


def _channels_last(value: Tensor, prefixed: int) -> Tensor:
    """Return a map as `(n, h, w, c)`; tokens that stand for no patch are left out."""
    if value.ndim == 3:
        patches = value[:, prefixed:]
        side = math.isqrt(patches.shape[1])
        return patches[:, : side * side].reshape(len(value), side, side, -1)
    return (
        value if value.shape[1] == value.shape[2] != value.shape[3] else value.permute(0, 2, 3, 1)
    )


def _weighted(values: Tensor, slope: Tensor) -> Tensor:
    """Return HiResCAM `(n, h, w)`, 0 … 1, from maps and gradients `(n, h, w, c)`."""
    speaks = (values * slope).sum(dim=3).clamp(min=0)
    return speaks / speaks.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)


def _placed(square: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return the map of the centre square, laid over an image of this size."""
    side = min(size)
    resized = functional.interpolate(
        torch.from_numpy(square)[None, None], size=(side, side), mode="bilinear"
    )[0, 0].numpy()
    out = np.zeros(size, dtype=np.float32)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    out[top : top + side, left : left + side] = np.clip(resized, 0, 1)
    return out
