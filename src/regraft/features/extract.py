"""What is kept: decoded pixels, and the frozen part's output for every image, as many frozen parts in one pass as are wanted.

Refuses gradients: everything here runs in inference mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regraft.data.dataset import Dataset
from regraft.features.store import (
    Chunk,
    Entry,
    EntrySpec,
    Float16Overflow,
    digest_parts,
    get_or_create,
)
from regraft.models.compile import COMPILE_PAYS_FROM, compile_prefix, count_multiply_adds
from regraft.models.cut import Prefix
from regraft.models.joint import merge_prefixes
from regraft.models.optimize import cast_bfloat16, fuse_conv_bn
from regraft.models.transforms import (
    NO_AUGMENTATION,
    AugmentedView,
    dataset_storage_size,
    decode_pixels,
    transform,
)
from regraft.plans.schema import InputRules
from regraft.system.hardware import extraction_batch_size, fits_on_gpu, is_out_of_memory
from regraft.system.progress import SILENT, ProgressReporter

_RESIDENT: dict[tuple[str, str], Tensor] = {}  # whole sets of pixels on a GPU; the last few
_MOST_RESIDENT = 3
_DRAWN = 2  # version of how augmented views are drawn: with another, their entries are other ones


@dataclass(frozen=True)
class ModelInputs:
    """Images as a network will see them.

    Args:
        images: The stored pixels.
        identities: A number for each image, see `views.identities`.
        hashes: A content hash of each image.
        rules: Input rules of the weights.
        resolution: Side in pixels of what the network sees.
        view: Which augmentation of each image; plain is the image itself.
        precision: "float32", or "bfloat16" for autocast.
    """

    images: Entry
    identities: NDArray[np.int64]
    hashes: NDArray[np.str_]
    rules: InputRules
    resolution: int
    view: AugmentedView = NO_AUGMENTATION
    precision: str = "float32"

    def __len__(self) -> int:
        return len(self.identities)

    def batch(self, rows: NDArray[np.int64], device: torch.device) -> Tensor:
        """Return what the network sees of some rows, `(n, 3, resolution, resolution)`."""
        pixels, ids = (
            pixel_batch(self.images, rows, device),
            torch.from_numpy(self.identities[rows]).to(device),
        )
        return transform(pixels, ids, self.rules, self.resolution, self.view)


def cached_pixels(
    data: Dataset,
    resolution: int,
    interpolation: str,
    folder: Path,
    watcher: ProgressReporter = SILENT,
) -> Entry:
    """Return the decoded images in the order of `data`, uint8 `(n, h, w, 3)`, decoded and resized at most once.

    Images of one small size keep it and are resized on the device later.

    Raises:
        Unreadable: When files cannot be decoded; all of them are named.
        UserError: When `folder` lacks the room.
    """
    size = dataset_storage_size(data, resolution)
    wanted = EntrySpec(
        digest_parts("pixels", *size, interpolation, "\n".join(map(str, data.hashes))),
        (((len(data), *size, 3), np.dtype(np.uint8)),),
    )
    return get_or_create(
        folder,
        [wanted],
        lambda _: ([(chunk,)] for chunk in decode_pixels(data, size, interpolation, watcher)),
        watcher,
    )[0]


def extract_one(
    prefix: Prefix,
    digest: str,
    look: ModelInputs,
    folder: Path,
    watcher: ProgressReporter = SILENT,
    what: str = "extract",
    compiling: str = "auto",
) -> Entry:
    """Return the output of one frozen part for every image; see `together`."""
    return extract_features([(prefix, digest)], look, folder, watcher, what, compiling)[0]


def extract_features(
    prefixes: Sequence[tuple[Prefix, str]],
    look: ModelInputs,
    folder: Path,
    watcher: ProgressReporter = SILENT,
    what: str = "extract",
    compiling: str = "auto",
) -> list[Entry]:
    """Return the outputs of several frozen parts of one network for every image, in the order of `look.images`.

    What is not kept yet is computed in one pass through the network, whatever the number of parts.

    Args:
        prefixes: Frozen parts, as cut by `backbone.cut`, each with its name from `prefix.digest()`.
        look: The images, and how the network sees them.
        folder: Where entries are kept.
        watcher: Hears how far it is.
        what: What the piece of work is called there.
        compiling: "auto" compiles where the work is large enough to repay it; "on", "off".

    Returns:
        An entry for each part: memory-mapped arrays, shape `(n, …)` for each tensor that crosses the cut, float16 (float32 where that overflows).
        Against a live float32 pass the error is under 1e-3 of its norm with float32, and under 5e-2 with bfloat16 (EfficientNet-Lite0: 4e-2,
        ResNet50: 4e-3).

    Raises:
        UserError: When `folder` lacks the room; says both sizes in MB, and how to move the cache.
    """
    names = [entry_name(digest, look) for _, digest in prefixes]
    wide = {name for name in names if (folder / f"{name}-32").is_dir()}
    while True:
        wanted = [
            _wanted(name, prefix, len(look), name in wide)
            for name, (prefix, _) in zip(names, prefixes, strict=True)
        ]
        try:
            return get_or_create(
                folder,
                wanted,
                lambda missing: _chunks(
                    [prefixes[n][0] for n in missing], look, watcher, what, compiling
                ),
                watcher,
            )
        except Float16Overflow as error:
            watcher.say(
                "The frozen part gives numbers too large for float16; they are kept as float32."
            )
            wide.add(str(error))


def _wanted(name: str, prefix: Prefix, images: int, wide: bool) -> EntrySpec:
    dtype = np.dtype(np.float32 if wide else np.float16)
    return EntrySpec(
        f"{name}-32" if wide else name, tuple(((images, *shape), dtype) for shape in prefix.shapes)
    )


def _chunks(
    prefixes: Sequence[Prefix],
    look: ModelInputs,
    watcher: ProgressReporter,
    what: str,
    compiling: str,
) -> Iterable[list[Chunk]]:
    """Yield the outputs of each part, batch by batch; a batch that does not fit into memory is halved from then on."""
    quick = fuse_conv_bn(merge_prefixes(prefixes))
    if look.precision == "bfloat16":
        quick = cast_bfloat16(quick)
    ends = np.cumsum([len(prefix.shapes) for prefix in prefixes])
    starts = [0, *map(int, ends[:-1])]
    size = extraction_batch_size(str(quick.device.type), look.resolution)
    runner = _runner(quick, look, size, watcher, compiling)
    done, total = 0, len(look)
    while done < total:
        rows = np.arange(done, min(done + size, total))
        try:
            outs = [
                out.float().cpu().numpy()
                for out in run_prefix(
                    runner if len(rows) == size else quick, quick.device, look, rows
                )
            ]
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            size, runner = size // 2, quick
            watcher.say(f"Memory is short; going on with batches of {size}.")
            continue
        yield [tuple(outs[start:end]) for start, end in zip(starts, ends, strict=True)]
        done += len(rows)
        watcher.step(what, done, total)


def _runner(
    quick: Prefix, look: ModelInputs, size: int, watcher: ProgressReporter, compiling: str
) -> Callable[[Tensor], Any]:
    """Return the frozen part compiled where that is asked for or repays, else as it is."""
    if compiling == "off" or len(look) < size:
        return quick
    seen = look.batch(np.arange(size), quick.device)
    with torch.autocast(seen.device.type, torch.bfloat16, enabled=look.precision == "bfloat16"):
        if compiling == "auto" and (
            quick.device.type != "cpu"
            or len(look) * count_multiply_adds(quick, seen[:1]) < COMPILE_PAYS_FROM
        ):
            return quick
        return compile_prefix(quick, seen, watcher) or quick


def entry_name(digest: str, look: ModelInputs) -> str:
    """Return the name of the entry that `activations` of the same arguments reads or writes."""
    augmented = look.view.augment != "none"
    drawn = digest_parts(_DRAWN, look.identities.tobytes().hex()) if augmented else "plain"
    seen = repr(
        (
            look.rules,
            look.resolution,
            look.view if augmented else "plain",
            drawn,
            look.precision,
            look.images.arrays[0].shape[1:],
        )
    )
    return digest_parts("activations", digest, seen, "\n".join(map(str, look.hashes)))


def run_prefix(
    prefix: Callable[[Tensor], Any],
    device: torch.device,
    look: ModelInputs,
    rows: NDArray[np.int64],
) -> tuple[Tensor, ...]:
    """Return what a frozen part says of some rows, computed now, on the device that holds it."""
    seen = look.batch(rows, device)
    with (
        torch.inference_mode(),
        torch.autocast(device.type, torch.bfloat16, enabled=look.precision == "bfloat16"),
    ):
        out: tuple[Tensor, ...] = prefix(seen)
    return out


def pixel_batch(images: Entry, rows: NDArray[np.int64], device: torch.device) -> Tensor:
    """Return the stored pixels of some rows on a device, uint8 `(n, h, w, 3)`; a GPU holds all of them where it has the room."""
    if device.type == "cuda" and fits_on_gpu(images.bytes):
        return resident_pixels(images, device)[torch.from_numpy(rows).to(device)]
    return torch.from_numpy(np.ascontiguousarray(images.arrays[0][rows])).to(
        device, non_blocking=True
    )


def resident_pixels(images: Entry, device: torch.device) -> Tensor:
    """Return all stored pixels on a device, moved there once; the last three sets stay."""
    key = (images.name, str(device))
    if key not in _RESIDENT:
        while len(_RESIDENT) >= _MOST_RESIDENT:
            _RESIDENT.pop(next(iter(_RESIDENT)))
        _RESIDENT[key] = torch.from_numpy(np.array(images.arrays[0])).to(device)
    return _RESIDENT[key]


def entry_bytes(prefix: Prefix, images: int, looks: int = 1) -> int:
    """Return the bytes that an entry for this many images and views takes."""
    return 2 * images * looks * sum(shape.numel() for shape in prefix.shapes)
