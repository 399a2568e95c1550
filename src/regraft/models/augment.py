"""Augmented views of images: pure functions of a seed, a view number and the image."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from regraft.data.dataset import Dataset

# of splitmix64, as signed numbers
_INCREMENT = -7046029254386353131
_FIRST_FACTOR = -4658895280553007687
_SECOND_FACTOR = -7723592293110705685
_MANTISSA_BITS = 53  # of a double


@dataclass(frozen=True)
class AugmentedView:
    """One augmented view of every image; a pure function of seed, number and image.

    Args:
        augment: A preset of the plan; with "none", seed and number do not matter.
        seed: Seed of all views.
        number: Which of them.
    """

    augment: str = "none"
    seed: int = 0
    number: int = 0


NO_AUGMENTATION = AugmentedView()


@dataclass(frozen=True)
class _Preset:
    """How strongly images are changed.

    Args:
        flip: Whether half of the images are mirrored.
        shift: Share of the side by which an image may move.
        zoom: Share of the side that is seen, smallest and largest.
        colour: Spread of brightness, contrast and saturation.
    """

    flip: bool
    shift: float
    zoom: tuple[float, float]
    colour: float


PRESETS = {
    "flip": _Preset(True, 0.0, (1.0, 1.0), 0.0),
    "shift": _Preset(False, 0.08, (0.9, 1.1), 0.0),
    "light": _Preset(True, 0.08, (0.9, 1.1), 0.0),
    "standard": _Preset(True, 0.0, (0.6, 1.0), 0.2),
}


def sample_ids(dataset: Dataset) -> NDArray[np.int64]:
    """Return a number for each image that depends on its key alone: the seed of its views."""
    digests = bytearray()
    for key in dataset.keys:
        content = str(key).encode("utf-8", "surrogateescape")
        digests += hashlib.blake2b(content, digest_size=8).digest()
    return np.frombuffer(digests, dtype=np.int64)


def augment_batch(batch: Tensor, ids: Tensor, view: AugmentedView) -> Tensor:
    """Return randomly shifted, zoomed, flipped and tinted images, float32 in 0 … 255.

    The images are in the network's resolution already, resized as plain images are: a network must
    not be trained on blurrier images than it is judged on.

    Args:
        batch: Images `(n, 3, h, w)`.
        ids: Number of each image, see `sample_ids`, int64 `(n,)`.
        view: Which view.
    """
    preset = PRESETS[view.augment]
    chance = hashed_uniform(ids, view, 8)
    theta = _draw_transforms(chance, preset)
    grid = functional.affine_grid(theta, list(batch.shape), align_corners=False)
    moved = functional.grid_sample(
        batch.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    if not preset.colour:
        return moved
    return _tint(moved, chance[:, 4:7], preset.colour)


def _draw_transforms(chance: Tensor, preset: _Preset) -> Tensor:
    """Return an affine transform for each image, `(n, 2, 3)`, from numbers in [0, 1)."""
    low, high = preset.zoom
    smallest = low**2
    area = chance[:, 0] * (high**2 - smallest) + smallest
    scale = area.sqrt()
    hidden = 1 - scale
    room = hidden.clamp(min=0) + 2 * preset.shift
    flipped = preset.flip & (chance[:, 1] < 0.5)
    direction = chance[:, 2:4] * 2 - 1
    offset = direction * room.unsqueeze(1)
    theta = torch.zeros(len(chance), 2, 3, device=chance.device)
    theta[:, 0, 0] = torch.where(flipped, -scale, scale)
    theta[:, 1, 1] = scale
    theta[:, :, 2] = offset
    return theta


def _tint(batch: Tensor, chance: Tensor, spread: float) -> Tensor:
    """Return images with another brightness, contrast and saturation."""
    factors = 1 + spread * (chance * 2 - 1)
    columns = factors.view(-1, 3, 1, 1, 1)
    brightness, contrast, saturation = columns.unbind(1)
    batch = batch * brightness
    mean = batch.mean(dim=(1, 2, 3), keepdim=True)
    contrasted = (batch - mean) * contrast + mean
    grey = contrasted.mean(dim=1, keepdim=True)
    tinted = (contrasted - grey) * saturation + grey
    return tinted.clamp_(0, 255)


def hashed_uniform(ids: Tensor, view: AugmentedView, count: int) -> Tensor:
    """Return `count` numbers in [0, 1) for each image, by hashing its id (splitmix64, Steele 2014).

    No generator has a state, so a view is the same in any order and on any device.
    """
    salt = _salt(view)
    counter = torch.arange(1, count + 1, device=ids.device)
    salted = (ids ^ salt).unsqueeze(1)
    state = salted + counter * _INCREMENT
    state = _scramble(state, 30) * _FIRST_FACTOR
    state = _scramble(state, 27) * _SECOND_FACTOR
    state = _scramble(state, 31)
    mantissa = (state >> 11) & (2**_MANTISSA_BITS - 1)
    uniform = mantissa.double().div_(2**_MANTISSA_BITS)
    below_one: Tensor = uniform.float().clamp_(max=1 - 2**-24)
    return below_one


def _salt(view: AugmentedView) -> int:
    text = f"{view.seed}:{view.number}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)


def _scramble(state: Tensor, shift: int) -> Tensor:
    """Return int64 numbers, exclusive-or with themselves shifted as if they had no sign."""
    kept_bits = 64 - shift
    mask = (1 << kept_bits) - 1
    shifted = (state >> shift) & mask
    return state ^ shifted
