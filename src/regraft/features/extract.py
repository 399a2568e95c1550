"""Decoded pixels and the frozen part's output, computed once for every image and stored.

Everything here runs in inference mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regraft.data.dataset import Dataset
from regraft.features.entry import Chunk, Entry, EntrySpec, Float16Overflow
from regraft.features.store import digest_parts, get_or_create
from regraft.models.augment import NO_AUGMENTATION, AugmentedView
from regraft.models.compile import COMPILE_PAYS_FROM, compile_prefix, count_multiply_adds
from regraft.models.joint import merge_prefixes
from regraft.models.network import Cut
from regraft.models.optimize import cast_bfloat16, fuse_conv_bn
from regraft.models.parts import Prefix
from regraft.models.transforms import Preprocess
from regraft.options import CacheOptions, Runtime
from regraft.system.hardware import fits_on_gpu, is_out_of_memory
from regraft.system.progress import ProgressReporter

Rows = NDArray[np.int64]

_AUGMENTATION_VERSION = 2  # of how augmented views are drawn; part of the names of their entries
_CPU_BATCH = 100  # images of 96 px; measured in docs/measured.md
_CPU_SIDE = 96  # px
_FEWEST = 16  # images at once
_MOST = 1024
_BYTES_PER_PIXEL = 400  # of the widest moment of a network, in 16 bit


class StoredPixels:
    """Decoded images at their storage size: on disk, and on a GPU once where it has the room."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self._on_gpu: Tensor | None = None

    def batch(self, rows: Rows, device: torch.device) -> Tensor:
        """Return the pixels of some rows on a device, uint8 `(n, h, w, 3)`."""
        pixels = self.entry.arrays[0]
        if device.type == "cuda" and fits_on_gpu(self.entry.bytes):
            if self._on_gpu is None:
                self._on_gpu = torch.from_numpy(np.array(pixels)).to(device)
            return self._on_gpu[torch.from_numpy(rows).to(device)]
        selected = np.ascontiguousarray(pixels[rows])
        return torch.from_numpy(selected).to(device, non_blocking=True)


@dataclass(frozen=True)
class ModelInputs:
    """Images as a network takes them.

    Args:
        pixels: The stored pixels of n images.
        ids: A number for each image, see `sample_ids`.
        hashes: A content hash of each image.
        preprocess: Resolution and input rules of the weights.
        view: Which augmentation of each image; none by default.
    """

    pixels: StoredPixels
    ids: Rows
    hashes: NDArray[np.str_]
    preprocess: Preprocess
    view: AugmentedView = NO_AUGMENTATION

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: Rows, device: torch.device) -> Tensor:
        """Return the network's input for some rows, `(n, 3, resolution, resolution)`."""
        pixels = self.pixels.batch(rows, device)
        ids = torch.from_numpy(self.ids[rows]).to(device)
        return self.preprocess(pixels, ids, self.view)

    def augmented(self, view: AugmentedView) -> ModelInputs:
        """Return the same images in another view."""
        return replace(self, view=view)


Forward = Callable[[Tensor], Any]
"""From network inputs to what a frozen part hands over: the part itself, or compiled."""


def run_prefix(prefix: Forward, batch: Tensor, precision: str) -> tuple[Tensor, ...]:
    """Return what a frozen part gives for a batch of network inputs, on their device."""
    enabled = precision == "bfloat16"
    with torch.inference_mode(), torch.autocast(batch.device.type, torch.bfloat16, enabled=enabled):
        out: tuple[Tensor, ...] = prefix(batch)
    return out


def extraction_batch_size(device: str, resolution: int) -> int:
    """Return how many images of this side go through a frozen part at once.

    Few enough for the processor's cache, or for a quarter of the GPU's free memory.
    """
    if device != "cuda":
        images = _CPU_BATCH * _CPU_SIDE**2 // resolution**2
        return max(_FEWEST, min(_CPU_BATCH, images))
    free = torch.cuda.mem_get_info()[0]
    images = free // 4 // (resolution**2 * _BYTES_PER_PIXEL)
    return int(max(_FEWEST, min(_MOST, images)))


@dataclass(frozen=True)
class Extractor:
    """How batches go through a frozen part.

    Args:
        batch_size: Images at once, by kind of device and resolution.
        run: Runs one batch, see `run_prefix`.
        compile: Compiles a frozen part, see `compile_prefix`.
        compile_pays_from: Multiply-adds of a whole extraction from which on that is tried.
    """

    batch_size: Callable[[str, int], int] = extraction_batch_size
    run: Callable[[Forward, Tensor, str], tuple[Tensor, ...]] = run_prefix
    compile: Callable[[Prefix, Tensor, ProgressReporter], Forward | None] = compile_prefix
    compile_pays_from: float = COMPILE_PAYS_FROM


EXTRACTOR = Extractor()


def store_pixels(
    dataset: Dataset, preprocess: Preprocess, cache: CacheOptions, runtime: Runtime
) -> StoredPixels:
    """Return the decoded images in the order of a dataset, decoded and resized at most once.

    Images of one small size keep it, and are resized on the device later.

    Raises:
        Unreadable: When files cannot be decoded; names all of them.
        UserError: When the cache folder lacks the room.
    """
    size = preprocess.storage_size(dataset)
    reporter = runtime.reporter
    hashes = "\n".join(map(str, dataset.hashes))
    name = digest_parts("pixels", *size, preprocess.rules.interpolation, hashes)
    spec = EntrySpec(name, (((len(dataset), *size, 3), np.dtype(np.uint8)),))

    def chunks(_: list[int]) -> Iterator[Sequence[Chunk]]:
        for chunk in preprocess.decode(dataset, size, reporter):
            yield [(chunk,)]

    return StoredPixels(get_or_create(cache.dir, [spec], chunks, reporter)[0])


def extract_features(
    cuts: Sequence[Cut],
    inputs: ModelInputs,
    cache: CacheOptions,
    runtime: Runtime,
    label: str = "extract",
    extractor: Extractor = EXTRACTOR,
) -> list[Entry]:
    """Return what several frozen parts of one network give for every image.

    What is not in the cache is computed in one pass through the network, whatever the number of
    parts.

    Args:
        cuts: Cuts of one network, alike in precision.
        inputs: The images.
        cache: Where entries are kept.
        runtime: `compile` and `reporter` count.
        label: What the progress is called.
        extractor: How batches go through the network.

    Returns:
        An entry for each part: memory-mapped arrays `(n, …)`, one for each tensor that crosses
        the cut, float16 (float32 where that overflows). Against a live float32 pass the error is
        under 1e-3 of its norm with float32, and under 5e-2 with bfloat16 (EfficientNet-Lite0:
        4e-2, ResNet50: 4e-3).

    Raises:
        UserError: When the cache folder lacks the room; says both sizes in MB, and how to move it.
    """
    folder = cache.dir
    names = [entry_name(cut, inputs) for cut in cuts]
    wide = {name for name in names if (folder / f"{name}-32").is_dir()}

    def chunks(missing: list[int]) -> Iterator[Sequence[Chunk]]:
        chosen = [cuts[number] for number in missing]
        return _Extraction(chosen, inputs, runtime, label, extractor).chunks()

    while True:
        specs = [
            _spec(name, cut, len(inputs), name in wide)
            for name, cut in zip(names, cuts, strict=True)
        ]
        try:
            return get_or_create(folder, specs, chunks, runtime.reporter)
        except Float16Overflow as error:
            runtime.reporter.log(
                "The frozen part gives numbers too large for float16; they are stored as float32."
            )
            wide.add(str(error))


def _spec(name: str, cut: Cut, images: int, wide: bool) -> EntrySpec:
    dtype = np.dtype(np.float32 if wide else np.float16)
    arrays = tuple(((images, *shape), dtype) for shape in cut.frozen.shapes)
    return EntrySpec(f"{name}-32" if wide else name, arrays)


@dataclass(frozen=True)
class _Extraction:
    """One pass over all images for several frozen parts."""

    cuts: Sequence[Cut]
    inputs: ModelInputs
    runtime: Runtime
    label: str
    extractor: Extractor

    def chunks(self) -> Iterator[Sequence[Chunk]]:
        """Yield the outputs of each part, batch by batch; out of memory halves the batch."""
        fast = self._merged()
        resolution = self.inputs.preprocess.resolution
        size = self.extractor.batch_size(str(fast.device.type), resolution)
        whole_batch = self._compiled(fast, size)
        total = len(self.inputs)
        done = 0
        while done < total:
            rows = np.arange(done, min(done + size, total))
            forward = whole_batch if len(rows) == size else fast
            try:
                arrays = self._run(forward, rows, fast.device)
            except (RuntimeError, MemoryError) as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
                size = size // 2
                whole_batch = fast
                self._log(f"Memory is short; going on with batches of {size}.")
                continue
            yield _by_cut(arrays, self.cuts)
            done += len(rows)
            self.runtime.reporter.progress(self.label, done, total)

    @property
    def _precision(self) -> str:
        return self.cuts[0].precision

    def _log(self, text: str) -> None:
        self.runtime.reporter.log(text)

    def _merged(self) -> Prefix:
        """Return one frozen part for all, made fast."""
        fast = fuse_conv_bn(merge_prefixes([cut.frozen for cut in self.cuts]))
        return cast_bfloat16(fast) if self._precision == "bfloat16" else fast

    def _run(self, forward: Forward, rows: Rows, device: torch.device) -> list[NDArray[Any]]:
        batch = self.inputs.batch(rows, device)
        tensors = self.extractor.run(forward, batch, self._precision)
        return [tensor.float().cpu().numpy() for tensor in tensors]

    def _compiled(self, fast: Prefix, size: int) -> Forward:
        """Return the frozen part compiled, where that is asked for or pays; else as it is."""
        if self.runtime.compile == "off" or len(self.inputs) < size:
            return fast
        batch = self.inputs.batch(np.arange(size), fast.device)
        enabled = self._precision == "bfloat16"
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=enabled):
            if self.runtime.compile == "auto" and not self._compiling_pays(fast, batch):
                return fast
            return self.extractor.compile(fast, batch, self.runtime.reporter) or fast

    def _compiling_pays(self, fast: Prefix, batch: Tensor) -> bool:
        if fast.device.type != "cpu":
            return False
        work = len(self.inputs) * count_multiply_adds(fast, batch[:1])
        return work >= self.extractor.compile_pays_from


def _by_cut(arrays: list[NDArray[Any]], cuts: Sequence[Cut]) -> list[Chunk]:
    chunks = []
    start = 0
    for cut in cuts:
        end = start + len(cut.frozen.shapes)
        chunks.append(tuple(arrays[start:end]))
        start = end
    return chunks


def entry_name(cut: Cut, inputs: ModelInputs) -> str:
    """Return the name of the entry for a frozen part and images: a digest of all it depends on."""
    view = inputs.view
    view_text = "'plain'"
    drawn = "plain"
    if view.augment != "none":
        view_text = f"View(augment={view.augment!r}, seed={view.seed}, number={view.number})"
        drawn = digest_parts(_AUGMENTATION_VERSION, inputs.ids.tobytes().hex())
    rules = inputs.preprocess.rules
    resolution = inputs.preprocess.resolution
    stored_shape = inputs.pixels.entry.arrays[0].shape[1:]
    settings = (
        f"({rules!r}, {resolution!r}, {view_text}, {drawn!r}, {cut.precision!r}, {stored_shape!r})"
    )
    hashes = "\n".join(map(str, inputs.hashes))
    return digest_parts("activations", cut.digest, settings, hashes)


def entry_bytes(cut: Cut, images: int, views: int = 1) -> int:
    """Return the bytes that an entry takes for this many images and views."""
    features = sum(shape.numel() for shape in cut.frozen.shapes)
    return 2 * images * views * features


def has_entry(name: str, cache: CacheOptions) -> bool:
    """Return whether an entry is in the cache, in either precision."""
    return any((cache.dir / each).is_dir() for each in (name, f"{name}-32"))


def to_tensors(arrays: Iterable[NDArray[Any]], device: torch.device) -> tuple[Tensor, ...]:
    """Return stored arrays as float32 tensors on a device."""
    return tuple(torch.from_numpy(array).to(device).float() for array in arrays)
