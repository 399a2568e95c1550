"""From images to a network's input: decoded, resized, cropped and normalised, in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from regraft.data.dataset import Dataset
from regraft.data.images import Unreadable
from regraft.models.augment import NO_AUGMENTATION, AugmentedView, augment_batch
from regraft.plans.schema import InputRules
from regraft.system.progress import SILENT, ProgressReporter

Pixels = NDArray[np.uint8]

_STORE_UP_TO = 1.5  # square images keep their size up to this multiple of the resolution
_CHUNK = 512  # images decoded at once
_AREA = 2**26  # pixels of images held decoded at once
_LONGEST_SHAPE = 16  # times the shorter side that is left of an image too long to be resized whole


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
    height, width = sizes[0].tolist()
    all_equal = bool((sizes == sizes[0]).all())
    if not all_equal:
        return resolution, resolution
    return storage_size((height, width), resolution)


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
        resized = [resize_center_crop(image, size, interpolation) for image in images]
        yield np.stack(resized)
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
    factor = _cover_factor(image, size)
    if height * width * factor**2 > _AREA:  # a line one pixel wide would become millions
        image = _crop_longest(image)
        height, width = image.shape[:2]
        factor = _cover_factor(image, size)
    new_height = max(size[0], round(height * factor))
    new_width = max(size[1], round(width * factor))
    contiguous = torch.from_numpy(np.ascontiguousarray(image))
    batch = contiguous.permute(2, 0, 1).unsqueeze(0)
    resized = _interpolate(batch, (new_height, new_width), interpolation)
    pixels = resized[0].permute(1, 2, 0).numpy()
    return np.ascontiguousarray(_center_crop(pixels, size))


def _cover_factor(image: Pixels, size: tuple[int, int]) -> float:
    """Return by how much an image is scaled to cover a size."""
    height, width = image.shape[:2]
    vertical: float = size[0] / height
    horizontal: float = size[1] / width
    return max(vertical, horizontal)


def _crop_longest(image: Pixels) -> Pixels:
    """Return the centre of an image that is too long to be resized whole."""
    height, width = image.shape[:2]
    longest_height = min(height, _LONGEST_SHAPE * width)
    longest_width = min(width, _LONGEST_SHAPE * height)
    return _center_crop(image, (longest_height, longest_width))


def _center_crop(image: Pixels, size: tuple[int, int]) -> Pixels:
    height, width = size
    top = (image.shape[0] - height) // 2
    left = (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def _interpolate(batch: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    return functional.interpolate(batch, size=size, mode=mode, antialias=True)


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
        batch = augment_batch(batch, ids, view)
    mean = _per_channel(rules.mean, batch.device)
    std = _per_channel(rules.std, batch.device)
    normalised = batch.sub_(mean).div_(std)
    return normalised.contiguous(memory_format=torch.channels_last)


def _per_channel(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """Return a number for each channel in units of stored pixels, `(1, 3, 1, 1)`."""
    channels = torch.tensor(values, device=device)
    return channels.view(1, 3, 1, 1) * 255


def resize_batch(batch: Tensor, resolution: int, interpolation: str) -> Tensor:
    """Return a batch `(n, 3, h, w)` resized to a square, as the uint8 path of the CPU does it."""
    if batch.shape[-2:] == (resolution, resolution):
        return batch
    if batch.device.type == "cpu":  # uint8 has a fast path there
        return _interpolate(batch, (resolution, resolution), interpolation)
    return resize_in_two_passes(batch, resolution, interpolation)


def resize_in_two_passes(batch: Tensor, resolution: int, interpolation: str) -> Tensor:
    """Return a batch resized as Pillow does it: rows first, rounded to integers, then columns."""
    wide = _interpolate(batch.float(), (batch.shape[2], resolution), interpolation)
    wide = wide.clamp_(0, 255).round_()
    square = _interpolate(wide, (resolution, resolution), interpolation)
    return square.clamp_(0, 255).round_()
