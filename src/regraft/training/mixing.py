"""Mixup and CutMix: features blended or pasted between the images of a batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from regraft.plans.schema import Phase

Features = tuple[Tensor, ...]


@dataclass(frozen=True)
class Mixed:
    """A mixed batch.

    Args:
        features: The features.
        partners: For each image, the row of the one that was mixed in.
        share: Share of the image itself, 0 … 1.
    """

    features: Features
    partners: Tensor
    share: float


def mix(features: Features, phase: Phase) -> Mixed:
    """Return a batch mixed as a phase says: mixup (Zhang 2018), CutMix (Yun 2019), or as it is.

    With both, one of them is drawn for each batch. CutMix needs maps `(n, c, h, w)`.
    """
    has_maps = features[0].ndim == 4
    use_cutmix = bool(phase.cutmix) and has_maps
    if use_cutmix and phase.mixup:
        use_cutmix = bool(torch.rand(()) < 0.5)
    if use_cutmix:
        return _cutmix(features, phase.cutmix)
    if phase.mixup:
        return _mixup(features, phase.mixup)
    itself = torch.arange(len(features[0]), device=features[0].device)
    return Mixed(features, itself, 1.0)


def _mixup(features: Features, alpha: float) -> Mixed:
    partners = torch.randperm(len(features[0]), device=features[0].device)
    share = _draw_share(alpha)
    blended = tuple(share * tensor + (1 - share) * tensor[partners] for tensor in features)
    return Mixed(blended, partners, share)


def _cutmix(features: Features, alpha: float) -> Mixed:
    partners = torch.randperm(len(features[0]), device=features[0].device)
    side = math.sqrt(1 - _draw_share(alpha))
    corner = torch.rand(2)
    share = 1.0
    pasted = []
    for tensor in features:
        height, width = tensor.shape[-2:]
        top, bottom = _span(corner[0], side, height)
        left, right = _span(corner[1], side, width)
        mixed = tensor.clone()
        mixed[..., top:bottom, left:right] = tensor[partners][..., top:bottom, left:right]
        pasted.append(mixed)
        share = 1 - (bottom - top) * (right - left) / (height * width)
    return Mixed(tuple(pasted), partners, share)


def _span(start: Tensor, side: float, length: int) -> tuple[int, int]:
    first = int(start * (length - 1))
    last = min(length, first + max(1, round(side * length)))
    return first, last


def _draw_share(alpha: float) -> float:
    return float(torch.distributions.Beta(alpha, alpha).sample())
