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
    first = features[0]
    itself = torch.arange(len(first), device=first.device)
    return Mixed(features, itself, 1.0)


def _mixup(features: Features, alpha: float) -> Mixed:
    partners = _draw_partners(features)
    share = _draw_share(alpha)
    blended = []
    for tensor in features:
        blended.append(share * tensor + (1 - share) * tensor[partners])
    return Mixed(tuple(blended), partners, share)


def _cutmix(features: Features, alpha: float) -> Mixed:
    partners = _draw_partners(features)
    side = math.sqrt(1 - _draw_share(alpha))
    centre_row, centre_column = torch.rand(2)
    share = 1.0
    pasted = []
    for tensor in features:
        height, width = tensor.shape[-2:]
        rows = _span(centre_row, side, height)
        columns = _span(centre_column, side, width)
        mixed = tensor.clone()
        mixed[..., rows, columns] = tensor[partners][..., rows, columns]
        pasted.append(mixed)
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        share = 1 - area / (height * width)
    return Mixed(tuple(pasted), partners, share)


def _draw_partners(features: Features) -> Tensor:
    """Return for each image the row of the one that is mixed in."""
    first = features[0]
    return torch.randperm(len(first), device=first.device)


def _span(centre: Tensor, side: float, length: int) -> slice:
    """Return the part of a map's side that is pasted, cut off at both ends.

    `centre` and `side` are shares of the map's side.
    """
    pasted = side * length
    start = float(centre) * length - pasted / 2
    return slice(max(0, round(start)), min(length, round(start + pasted)))


def _draw_share(alpha: float) -> float:
    """Return the share of the image itself."""
    beta = torch.distributions.Beta(alpha, alpha)
    return float(beta.sample())
