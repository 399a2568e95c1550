"""From stored pixels to a network's input: resize, crop, augment, normalise, in batches on the device."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from regraft.data.dataset import Dataset
from regraft.data.images import Unreadable
from regraft.plans.schema import InputRules
from regraft.system.progress import SILENT, ProgressReporter

Pixels = NDArray[np.uint8]

_STORE_UP_TO = 1.5  # square images keep their size up to this multiple of the resolution
_CHUNK = 512  # images decoded at once
_AREA = 2**26  # pixels of images held decoded at once
_LONGEST_SHAPE = 16  # times the shorter side that is left of an image too long to be resized whole


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


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the input of a network: resized, cropped and normalised.

    Args:
        rules: Mean, standard deviation and interpolation of the weights.
        resolution: Side of the input in pixels.
    """

    rules: InputRules
    resolution: int

    def store(self, image: Pixels) -> Pixels:
        """Return a decoded image `(h, w, 3)` in the size in which it is stored."""
        size = storage_size(image.shape[:2], self.resolution)
        return resize_center_crop(image, size, self.rules.interpolation)

    def storage_size(self, dataset: Dataset) -> tuple[int, int]:
        """Return height and width in which the pixels of a dataset are stored."""
        return dataset_storage_size(dataset, self.resolution)

    def decode(
        self, dataset: Dataset, size: tuple[int, int], reporter: ProgressReporter = SILENT
    ) -> Iterable[Pixels]:
        """Yield the images of a dataset in their storage size; see `decode_pixels`."""
        return decode_pixels(dataset, size, self.rules.interpolation, reporter)

    def __call__(
        self, images: Tensor, ids: Tensor | None = None, view: AugmentedView = NO_AUGMENTATION
    ) -> Tensor:
        """Return the network's input of stored pixels; see `transform`."""
        if ids is None:
            ids = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        return transform(images, ids, self.rules, self.resolution, view)


def dataset_storage_size(dataset: Dataset, resolution: int) -> tuple[int, int]:
    """Return height and width in which the pixels of a dataset are stored for a resolution."""
    try:
        sizes = dataset.images.sizes(np.arange(len(dataset)))
    except Unreadable:
        return resolution, resolution  # decoding will name them all
    all_equal = bool((sizes == sizes[0]).all())
    if not all_equal:
        return resolution, resolution
    return storage_size((int(sizes[0][0]), int(sizes[0][1])), resolution)


def storage_size(size: tuple[int, ...], resolution: int) -> tuple[int, int]:
    """Return height and width in which one image is stored.

    A square image that is not much larger than the resolution keeps its own size.
    """
    height, width = size
    if height == width and height <= resolution * _STORE_UP_TO:
        return height, width
    return resolution, resolution


def decode_pixels(
    dataset: Dataset,
    size: tuple[int, int],
    interpolation: str,
    reporter: ProgressReporter = SILENT,
    area: int = _AREA,
) -> Iterable[Pixels]:
    """Yield the decoded images in the order of the dataset, in chunks `(n, h, w, 3)` uint8.

    A chunk has at most 512 images, and `area` pixels as they are in the files. An image of another
    size has its shorter side resized (antialiased) and its centre cropped.

    Raises:
        Unreadable: When files cannot be decoded; names all of them, at the end.
    """
    total = len(dataset)
    bad_rows: list[int] = []
    reasons: list[str] = []
    for rows in _chunks(dataset, _CHUNK, area):
        try:
            images = dataset.images.read(rows)
        except Unreadable as error:
            bad_rows += error.rows
            reasons += error.reasons
        if bad_rows:
            continue
        yield np.stack([resize_center_crop(image, size, interpolation) for image in images])
        reporter.progress("decode", int(rows[-1]) + 1, total)
    if bad_rows:
        raise Unreadable(bad_rows, reasons)


def _chunks(dataset: Dataset, most: int, area: int) -> Iterator[NDArray[np.int64]]:
    """Yield rows in order, `most` at a time, fewer where images are so large as to fill memory."""
    rows = np.arange(len(dataset))
    try:
        areas = dataset.images.sizes(rows).prod(axis=1)
    except Unreadable:  # they are named when they are decoded
        areas = np.full(len(dataset), area // 16)
    start = 0
    held = 0
    for row in rows.tolist():
        is_full = row - start == most or held + areas[row] > area
        if row > start and is_full:
            yield rows[start:row]
            start = row
            held = 0
        held += int(areas[row])
    if start < len(rows):
        yield rows[start:]


def resize_center_crop(image: Pixels, size: tuple[int, int], interpolation: str) -> Pixels:
    """Return an image `(h, w, 3)` in another size: shorter side resized, centre cropped."""
    height, width = image.shape[:2]
    if (height, width) == size:
        return image
    factor = max(size[0] / height, size[1] / width)
    if height * width * factor**2 > _AREA:  # a line one pixel wide would become millions
        longest = (min(height, _LONGEST_SHAPE * width), min(width, _LONGEST_SHAPE * height))
        image = _center_crop(image, longest)
        height, width = image.shape[:2]
        factor = max(size[0] / height, size[1] / width)
    new_height = max(size[0], round(height * factor))
    new_width = max(size[1], round(width * factor))
    batch = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).unsqueeze(0)
    resized = _interpolate(batch, (new_height, new_width), interpolation)
    pixels = resized[0].permute(1, 2, 0).numpy()
    return np.ascontiguousarray(_center_crop(pixels, size))


def _center_crop(image: Pixels, size: tuple[int, int]) -> Pixels:
    top = (image.shape[0] - size[0]) // 2
    left = (image.shape[1] - size[1]) // 2
    return image[top : top + size[0], left : left + size[1]]


def _interpolate(batch: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    return functional.interpolate(batch, size=size, mode=mode, antialias=True)


def sample_ids(dataset: Dataset) -> NDArray[np.int64]:
    """Return a number for each image that depends on its key alone: the seed of its augmentation."""
    digests = bytearray()
    for key in dataset.keys:
        content = str(key).encode("utf-8", "surrogateescape")
        digests += hashlib.blake2b(content, digest_size=8).digest()
    return np.frombuffer(digests, dtype=np.int64)


def transform(
    images: Tensor,
    ids: Tensor,
    rules: InputRules,
    resolution: int,
    view: AugmentedView = NO_AUGMENTATION,
) -> Tensor:
    """Return a network's input, float32 `(n, 3, resolution, resolution)`, channels last in memory.

    Args:
        images: Stored pixels, uint8 `(n, h, w, 3)`, on any device.
        ids: Number of each image (`sample_ids`), int64 `(n,)`, on the same device.
        rules: Mean, standard deviation and interpolation of the weights.
        resolution: Side of the output in pixels.
        view: Which augmentation; none by default.
    """
    batch = images.permute(0, 3, 1, 2)  # channels last already
    batch = resize_batch(batch, resolution, rules.interpolation)
    if view.augment == "none":
        batch = batch.float()
    else:
        batch = _augment(batch, ids, view)
    mean = _per_channel(rules.mean, batch)
    std = _per_channel(rules.std, batch)
    return batch.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


def _per_channel(values: tuple[float, float, float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device).view(1, 3, 1, 1) * 255


def resize_batch(batch: Tensor, resolution: int, interpolation: str) -> Tensor:
    """Return a batch `(n, 3, h, w)` resized to a square, as the uint8 path of the CPU does it."""
    if batch.shape[-2:] == (resolution, resolution):
        return batch
    if batch.device.type == "cpu":  # uint8 has a fast path there
        return _interpolate(batch, (resolution, resolution), interpolation)
    return resize_in_two_passes(batch, resolution, interpolation)


def resize_in_two_passes(batch: Tensor, resolution: int, interpolation: str) -> Tensor:
    """Resize as Pillow and the uint8 path do: rows first, rounded to whole numbers, then columns."""
    wide = _interpolate(batch.float(), (batch.shape[2], resolution), interpolation)
    wide = wide.clamp_(0, 255).round_()
    square = _interpolate(wide, (resolution, resolution), interpolation)
    return square.clamp_(0, 255).round_()


def _augment(batch: Tensor, ids: Tensor, view: AugmentedView) -> Tensor:
    """Return randomly shifted, zoomed, flipped and tinted images, float32 in 0 … 255.

    They are in the network's resolution already, resized as plain images are: a network must not
    be trained on blurrier images than it is judged on.
    """
    preset = PRESETS[view.augment]
    chance = hashed_uniform(ids, view, 8)
    low, high = preset.zoom
    area = chance[:, 0] * (high**2 - low**2) + low**2
    scale = area.sqrt()
    room = (1 - scale).clamp(min=0) + 2 * preset.shift
    flipped = preset.flip & (chance[:, 1] < 0.5)
    theta = torch.zeros(len(batch), 2, 3, device=batch.device)
    theta[:, 0, 0] = torch.where(flipped, -scale, scale)
    theta[:, 1, 1] = scale
    offset = (chance[:, 2:4] * 2 - 1) * room.unsqueeze(1)
    theta[:, :, 2] = offset
    grid = functional.affine_grid(theta, list(batch.shape), align_corners=False)
    moved = functional.grid_sample(
        batch.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    if not preset.colour:
        return moved
    return _tint(moved, chance[:, 4:7], preset.colour)


def _tint(batch: Tensor, chance: Tensor, spread: float) -> Tensor:
    factors = (1 + spread * (chance * 2 - 1)).view(-1, 3, 1, 1, 1)
    brightness, contrast, saturation = factors.unbind(1)
    batch = batch * brightness
    mean = batch.mean(dim=(1, 2, 3), keepdim=True)
    batch = (batch - mean) * contrast + mean
    grey = batch.mean(dim=1, keepdim=True)
    return ((batch - grey) * saturation + grey).clamp_(0, 255)


def hashed_uniform(ids: Tensor, view: AugmentedView, count: int) -> Tensor:
    """Return `count` numbers in [0, 1) for each image, by hashing its id (splitmix64, Steele 2014).

    No generator has a state, so a view is the same in any order and on any device.
    """
    salt_bytes = hashlib.blake2b(f"{view.seed}:{view.number}".encode(), digest_size=8).digest()
    salt = int.from_bytes(salt_bytes, signed=True)
    counter = torch.arange(1, count + 1, device=ids.device)
    state = (ids ^ salt).unsqueeze(1) + counter * -7046029254386353131
    state = _scramble(state, 30) * -4658895280553007687
    state = _scramble(state, 27) * -7723592293110705685
    state = _scramble(state, 31)
    mantissa = (state >> 11) & 0x1FFFFFFFFFFFFF
    return mantissa.double().div_(2**53).float().clamp_(max=1 - 2**-24)


def _scramble(state: Tensor, shift: int) -> Tensor:
    """Return int64 numbers, exclusive-or with themselves shifted as if they had no sign."""
    mask = (1 << (64 - shift)) - 1
    shifted = (state >> shift) & mask
    return state ^ shifted
