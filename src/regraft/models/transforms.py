"""What the network sees of each image: stored pixels made ready, resized, augmented and normalised in batches on the device.

Refuses randomness of its own: an augmented view is a pure function of seed, view number and image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from regraft.data.dataset import Dataset, Unreadable
from regraft.plans.schema import InputRules
from regraft.system.progress import SILENT, ProgressReporter

_KEEP_SIZE_UP_TO = 1.5  # images of one size stay as they are up to this multiple of the resolution
_CHUNK = 512  # images decoded at once
_AREA = 2**26  # pixels of images held decoded at once
_LONG = 16  # times the shorter side that is left of an image whose ends are cut off because it would be larger than that once resized


@dataclass(frozen=True)
class AugmentedView:
    """Which look at each image: `augment` is a preset of the plan; with "none" seed and number do not matter."""

    augment: str = "none"
    seed: int = 0
    number: int = 0


NO_AUGMENTATION = AugmentedView()


@dataclass(frozen=True)
class _Preset:
    flip: bool
    shift: float  # share of the side by which the image may move
    zoom: tuple[float, float]  # share of the side that is seen, smallest and largest
    colour: float  # spread of brightness, contrast and saturation


PRESETS = {
    "flip": _Preset(True, 0.0, (1.0, 1.0), 0.0),
    "shift": _Preset(False, 0.08, (0.9, 1.1), 0.0),
    "light": _Preset(True, 0.08, (0.9, 1.1), 0.0),
    "standard": _Preset(True, 0.0, (0.6, 1.0), 0.2),
}


def dataset_storage_size(data: Dataset, resolution: int) -> tuple[int, int]:
    """Return height and width in which the pixels of a dataset are kept for this resolution."""
    try:
        sizes = data.images.sizes(np.arange(len(data)))
    except Unreadable:
        return resolution, resolution  # decoding will name them all
    first = storage_size((int(sizes[0][0]), int(sizes[0][1])), resolution)
    return first if bool((sizes == sizes[0]).all()) else (resolution, resolution)


def storage_size(size: tuple[int, int], resolution: int) -> tuple[int, int]:
    """Return the height and width in which one image is kept: its own where it is square and not much larger than the resolution."""
    own = size[0] == size[1] and size[0] <= resolution * _KEEP_SIZE_UP_TO
    return size if own else (resolution, resolution)


def decode_pixels(
    data: Dataset, size: tuple[int, int], interpolation: str, watcher: ProgressReporter = SILENT
) -> Iterable[NDArray[np.uint8]]:
    """Yield the decoded images in the order of the table, in chunks of shape `(≤512, h, w, 3)` uint8.

    An image of another size has its shorter side resized (antialiased) and its centre cut out.

    Raises:
        Unreadable: When files cannot be decoded; all of them are named, at the end.
    """
    total = len(data)
    bad: list[tuple[int, str]] = []
    for rows in _chunks(data, _CHUNK):
        try:
            images = data.images.read(rows)
        except Unreadable as error:
            bad += zip(error.rows, error.reasons, strict=True)
        if bad:
            continue
        yield np.stack([resize_center_crop(image, size, interpolation) for image in images])
        watcher.step("decode", int(rows[-1]) + 1, total)
    if bad:
        raise Unreadable([row for row, _ in bad], [reason for _, reason in bad])


def _chunks(data: Dataset, most: int) -> Iterator[NDArray[np.int64]]:
    """Yield rows in order, `most` at a time, fewer where the images are so large that their pixels would fill memory."""
    rows = np.arange(len(data))
    try:
        area = data.images.sizes(rows).prod(axis=1)
    except Unreadable:  # they are named when they are decoded
        area = np.full(len(data), _AREA // 16)
    start, held = 0, 0
    for row in rows.tolist():
        if row > start and (row - start == most or held + area[row] > _AREA):
            yield rows[start:row]
            start, held = row, 0
        held += int(area[row])
    if start < len(rows):
        yield rows[start:]


def resize_center_crop(
    image: NDArray[np.uint8], size: tuple[int, int], interpolation: str
) -> NDArray[np.uint8]:
    """Return an image `(h, w, 3)` in another size: the shorter side resized, the centre cut out."""
    height, width = image.shape[:2]
    if (height, width) == size:
        return image
    if (
        height * width * max(size[0] / height, size[1] / width) ** 2 > _AREA
    ):  # a line of a pixel's width would become one of millions of pixels
        image = _centre(image, (min(height, _LONG * width), min(width, _LONG * height)))
        height, width = image.shape[:2]
    factor = max(size[0] / height, size[1] / width)
    larger = (max(size[0], round(height * factor)), max(size[1], round(width * factor)))
    batch = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).unsqueeze(0)
    resized = (
        functional.interpolate(batch, size=larger, mode=interpolation, antialias=True)[0]
        .permute(1, 2, 0)
        .numpy()
    )
    return np.ascontiguousarray(_centre(resized, size))


def _centre(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    top, left = (image.shape[0] - size[0]) // 2, (image.shape[1] - size[1]) // 2
    return image[top : top + size[0], left : left + size[1]]


def sample_ids(data: Dataset) -> NDArray[np.int64]:
    """Return a number for each image that depends on its key alone; the seed of its augmentation."""
    digests = [
        hashlib.blake2b(str(key).encode("utf-8", "surrogateescape"), digest_size=8).digest()
        for key in data.keys
    ]
    return np.frombuffer(bytearray(b"".join(digests)), dtype=np.int64)


def transform(
    images: Tensor,
    ids: Tensor,
    rules: InputRules,
    resolution: int,
    view: AugmentedView = NO_AUGMENTATION,
) -> Tensor:
    """Return what the network sees, float32 `(n, 3, resolution, resolution)` in channels-last memory.

    Args:
        images: Stored pixels, uint8 `(n, h, w, 3)`, on any device.
        ids: Identity of each image, int64 `(n,)`, on the same device.
        rules: Mean, standard deviation and interpolation of the weights.
        resolution: Side of the output in pixels.
        view: Plain, or which augmentation.
    """
    batch = images.permute(0, 3, 1, 2)  # channels-last already
    if view.augment == "none":
        batch = _resized(batch, resolution, rules.interpolation).float()
    else:
        batch = _augmented(_resized(batch, resolution, rules.interpolation), ids, view)
    mean = torch.tensor(rules.mean, device=batch.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(rules.std, device=batch.device).view(1, 3, 1, 1) * 255
    return batch.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


def _resized(batch: Tensor, resolution: int, interpolation: str) -> Tensor:
    if batch.shape[-2:] == (resolution, resolution):
        return batch
    if batch.device.type == "cpu":  # uint8 has a fast path there
        return functional.interpolate(
            batch, size=(resolution, resolution), mode=interpolation, antialias=True
        )
    return _two_passes(batch, resolution, interpolation)


def _two_passes(batch: Tensor, resolution: int, interpolation: str) -> Tensor:
    """Resize as Pillow and the uint8 path do: rows first, rounded to whole numbers, then columns."""
    wide = (
        functional.interpolate(
            batch.float(), size=(batch.shape[2], resolution), mode=interpolation, antialias=True
        )
        .clamp_(0, 255)
        .round_()
    )
    return (
        functional.interpolate(
            wide, size=(resolution, resolution), mode=interpolation, antialias=True
        )
        .clamp_(0, 255)
        .round_()
    )


def _augmented(batch: Tensor, ids: Tensor, view: AugmentedView) -> Tensor:
    """Return randomly moved, zoomed, mirrored and tinted images, float32 in 0 … 255.

    They come in the network's resolution already, resized as plain ones are: else a network would be trained on blurrier images than it is judged on.
    """
    preset = PRESETS[view.augment]
    chance = _uniform(ids, view.seed, view.number, 8)
    low, high = preset.zoom
    area = chance[:, 0] * (high**2 - low**2) + low**2
    scale = area.sqrt()
    room = (1 - scale).clamp(min=0) + 2 * preset.shift
    theta = torch.zeros(len(batch), 2, 3, device=batch.device)
    mirrored = preset.flip & (chance[:, 1] < 0.5)
    theta[:, 0, 0] = torch.where(mirrored, -scale, scale)
    theta[:, 1, 1] = scale
    theta[:, 0, 2] = (chance[:, 2] * 2 - 1) * room
    theta[:, 1, 2] = (chance[:, 3] * 2 - 1) * room
    grid = functional.affine_grid(theta, list(batch.shape), align_corners=False)
    moved = functional.grid_sample(
        batch.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    return _tinted(moved, chance[:, 4:7], preset.colour) if preset.colour else moved


def _tinted(batch: Tensor, chance: Tensor, spread: float) -> Tensor:
    brightness, contrast, saturation = (
        (1 + spread * (chance * 2 - 1)).view(-1, 3, 1, 1, 1).unbind(1)
    )
    batch = batch * brightness
    batch = (batch - batch.mean(dim=(1, 2, 3), keepdim=True)) * contrast + batch.mean(
        dim=(1, 2, 3), keepdim=True
    )
    grey = batch.mean(dim=1, keepdim=True)
    return ((batch - grey) * saturation + grey).clamp_(0, 255)


def _uniform(ids: Tensor, seed: int, number: int, count: int) -> Tensor:
    """Return `count` numbers in [0, 1) for each image by hashing (splitmix64, Steele 2014), so that no generator has a state."""
    salt = int.from_bytes(
        hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=8).digest(), signed=True
    )
    state = (ids ^ salt).unsqueeze(1) + torch.arange(
        1, count + 1, device=ids.device
    ) * -7046029254386353131
    state = (state ^ ((state >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    state = (state ^ ((state >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    state = state ^ ((state >> 31) & 0x1FFFFFFFF)
    return ((state >> 11) & 0x1FFFFFFFFFFFFF).double().div_(2**53).float().clamp_(max=1 - 2**-24)
