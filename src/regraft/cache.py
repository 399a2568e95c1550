"""What the frozen part says of every image, computed once and kept.

Refuses to trust: an entry's name is a digest of everything that it depends on, and its bytes are checked when it is opened.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch
from numpy.typing import NDArray
from torch import Tensor

from regraft import views
from regraft.backbone import Prefix, folded
from regraft.data import Dataset
from regraft.errors import UserError
from regraft.plan import InputRules
from regraft.watch import SILENT, Watcher

BATCH = 100  # images of one pass through the frozen part
_RESERVE = 200e6  # bytes that stay free on the disk
_VERSION = 2  # of the layout of an entry
_LARGEST_HALF = 65504.0

Array = NDArray[Any]


@dataclass(frozen=True)
class Entry:
    """Arrays kept on disk and mapped into memory, each of shape `(n, …)`."""

    name: str
    arrays: tuple[Array, ...]
    hit: bool  # whether it was there already
    bytes: int
    seconds: float  # that computing it took, now or when it was made

    def __getitem__(self, rows: NDArray[np.int64]) -> tuple[Array, ...]:
        return tuple(np.asarray(array[rows]) for array in self.arrays)


def home(given: str | Path | None = None) -> Path:
    """Return the cache folder: the one given, `REGRAFT_CACHE`, or the platform's."""
    return Path(given or os.environ.get("REGRAFT_CACHE") or platformdirs.user_cache_path("regraft")).expanduser()


def pixels(data: Dataset, resolution: int, interpolation: str, folder: Path, watcher: Watcher = SILENT) -> Entry:
    """Return the decoded images in the order of `data`, uint8 `(n, h, w, 3)`, decoded and resized at most once.

    Images of one small size keep it and are resized on the device later.

    Raises:
        Unreadable: When files cannot be decoded; all of them are named.
        UserError: When `folder` lacks the room.
    """
    size = views.stored_size(data, resolution)
    name = _digest("pixels", *size, interpolation, "\n".join(map(str, data.hashes)))
    return _kept(
        folder / name,
        [((len(data), *size, 3), np.dtype(np.uint8))],
        lambda: ((chunk,) for chunk in views.pixels(data, size, interpolation, watcher)),
        watcher,
    )


def activations(
    prefix: Prefix, digest: str, images: Entry, identities: NDArray[np.int64], hashes: Iterable[str], rules: InputRules, resolution: int,
    view: views.View, folder: Path, precision: str = "float32", watcher: Watcher = SILENT, what: str = "extract",
) -> Entry:  # fmt: skip
    """Return the output of the frozen part for every image, in the order of `images`, computed at most once.

    Args:
        prefix: The frozen part, as cut by `backbone.cut`.
        digest: Its name, from `prefix.digest()`.
        images: The stored pixels.
        identities: A number for each image, see `views.identities`.
        hashes: A content hash of each image.
        rules: Input rules of the weights.
        resolution: Side in pixels of what the network sees.
        view: Which augmentation of each image; plain is the image itself.
        folder: Where entries are kept.
        precision: "float32", or "bfloat16" for autocast.
        watcher: Hears how far it is.
        what: What the piece of work is called there.

    Returns:
        Memory-mapped arrays, shape `(n, …)` for each tensor that crosses the cut, float16 (float32 where that overflows). Against a live float32
        pass the error is under 1e-3 of its norm with float32, and under 5e-2 with bfloat16 (EfficientNet-Lite0: 4e-2, ResNet50: 4e-3).

    Raises:
        UserError: When `folder` lacks the room; says both sizes in MB, and how to move the cache.
    """
    name = name_of(digest, images, identities, hashes, rules, resolution, view, precision)
    shapes = [(len(identities), *shape) for shape in prefix.shapes]
    quick = folded(prefix)

    def chunks() -> Iterable[tuple[Array, ...]]:
        total = len(identities)
        for start in range(0, total, BATCH):
            rows = np.arange(start, min(start + BATCH, total))
            outs = run(quick, images, rows, identities, rules, resolution, view, precision)
            yield tuple(out.float().cpu().numpy() for out in outs)
            watcher.step(what, int(rows[-1]) + 1, total)

    try:
        return _kept(folder / name, [(shape, np.dtype(np.float16)) for shape in shapes], chunks, watcher)
    except _Overflow:
        watcher.say("The frozen part gives numbers too large for float16; they are kept as float32.")
        return _kept(folder / f"{name}-32", [(shape, np.dtype(np.float32)) for shape in shapes], chunks, watcher)


def name_of(
    digest: str, images: Entry, identities: NDArray[np.int64], hashes: Iterable[str], rules: InputRules, resolution: int, view: views.View, precision: str
) -> str:  # fmt: skip
    """Return the name of the entry that `activations` of the same arguments reads or writes."""
    drawn = hashlib.blake2b(identities.tobytes()).hexdigest() if view.augment != "none" else "plain"
    seen = repr((rules, resolution, view if view.augment != "none" else "plain", drawn, precision, images.arrays[0].shape[1:]))
    return _digest("activations", digest, seen, "\n".join(hashes))


def run(
    prefix: Prefix, images: Entry, rows: NDArray[np.int64], identities: NDArray[np.int64], rules: InputRules, resolution: int,
    view: views.View, precision: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return what the frozen part says of some rows, computed now, on the device that holds it."""
    device = next((tensor.device for tensor in (*prefix.parameters(), *prefix.buffers())), torch.device("cpu"))
    batch = torch.from_numpy(np.ascontiguousarray(images.arrays[0][rows])).to(device, non_blocking=True)
    ids = torch.from_numpy(identities[rows]).to(device)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        out: tuple[Tensor, ...] = prefix(views.see(batch, ids, rules, resolution, view))
    return out


def size_of(prefix: Prefix, images: int, looks: int = 1) -> int:
    """Return the bytes that an entry for this many images and views takes."""
    return 2 * images * looks * sum(shape.numel() for shape in prefix.shapes)


def fits(needed: int, folder: Path) -> bool:
    """Return whether the disk has room for this many bytes; always for none. Raises `UserError` when `folder` cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return not needed or needed + _RESERVE <= shutil.disk_usage(folder).free
    except OSError as error:
        raise _unwritable(folder, error) from error


def listing(folder: Path) -> list[dict[str, Any]]:
    """Return name, kind, bytes, age in seconds of every entry, the one used last first."""
    found = []
    for path in folder.glob("*/meta.json"):
        try:
            meta = json.loads(path.read_text())
            found.append(
                {
                    "name": path.parent.name,
                    "bytes": int(meta["bytes"]),
                    "age": time.time() - path.stat().st_mtime,
                    "shapes": [a["shape"] for a in meta["arrays"]],
                }
            )
        except (OSError, ValueError, KeyError):
            continue
    return sorted(found, key=lambda entry: float(entry["age"]))


def bound(folder: Path) -> int:
    """Return the most bytes that entries may take together: `REGRAFT_CACHE_LIMIT` in GB, else half of what they take and what is free.

    Raises:
        UserError: When the variable is no positive number.
    """
    given = os.environ.get("REGRAFT_CACHE_LIMIT", "")
    if not given:
        return (shutil.disk_usage(folder).free + sum(int(entry["bytes"]) for entry in listing(folder))) // 2
    try:
        gigabytes = float(given)
    except ValueError:
        gigabytes = -1.0
    if not 0 < gigabytes < 1e9:
        raise UserError(f"REGRAFT_CACHE_LIMIT is {given!r}. Expected gigabytes, for example 20. Correct or unset it.")
    return int(gigabytes * 1e9)


def evict(folder: Path, keep: str, watcher: Watcher = SILENT) -> list[str]:
    """Remove the entries used longest ago until the rest is within the bound; returns their names.

    The entry called `keep` stays. What another process has open stays readable for it: its mapping outlives the name.
    """
    entries, most = listing(folder), bound(folder)
    total, gone = sum(int(entry["bytes"]) for entry in entries), []
    for entry in reversed(entries):
        if total <= most:
            break
        if entry["name"] != keep:
            shutil.rmtree(folder / entry["name"], ignore_errors=True)
            total -= int(entry["bytes"])
            gone.append(str(entry["name"]))
    if gone:
        watcher.say(f"Removed {len(gone)} cache entries used longest ago, to stay under {most / 1e9:,.1f} GB.")
    return gone


def clear(folder: Path) -> int:
    """Remove every entry and everything unfinished; returns the bytes that were freed."""
    freed = sum(int(entry["bytes"]) for entry in listing(folder))
    for path in [*(meta.parent for meta in folder.glob("*/meta.json")), *folder.glob(".scratch-*")]:
        shutil.rmtree(path, ignore_errors=True)
    return freed


class _Overflow(Exception):
    """Numbers too large for float16."""


def _digest(*parts: object) -> str:
    state = hashlib.blake2b(digest_size=16)
    for part in (_VERSION, *parts):
        state.update(f"{part}\x1e".encode())
    return state.hexdigest()


def _kept(path: Path, arrays: list[tuple[tuple[int, ...], np.dtype[Any]]], chunks: Callable[[], Iterable[tuple[Array, ...]]], watcher: Watcher) -> Entry:
    """Return the entry at `path`, written first if it is not there or not whole."""
    found = _opened(path, watcher)
    if found is not None:
        return found
    needed = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in arrays)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if needed + _RESERVE > free:
            raise _no_room(path, needed, free)
        _write(path, arrays, chunks, needed)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_room(path, needed, shutil.disk_usage(path.parent).free) from error
        raise _unwritable(path.parent, error) from error
    evict(path.parent, path.name, watcher)
    made = _opened(path, watcher)
    if made is None:
        raise UserError(f"The entry just written to {path} does not read back as it was written. Check the disk, or set REGRAFT_CACHE to another one.")
    return Entry(path.name, made.arrays, False, made.bytes, made.seconds)


def _write(path: Path, arrays: list[tuple[tuple[int, ...], np.dtype[Any]]], chunks: Callable[[], Iterable[tuple[Array, ...]]], needed: int) -> None:
    started = time.perf_counter()
    scratch = path.with_name(f".scratch-{path.name}-{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        files = [(scratch / f"{number}.npy").open("wb") for number in range(len(arrays))]
        sums = [0] * len(arrays)
        try:
            for file, (shape, dtype) in zip(files, arrays, strict=True):
                np.lib.format.write_array_header_1_0(file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
            for chunk in chunks():
                for number, (values, (_, dtype)) in enumerate(zip(chunk, arrays, strict=True)):
                    if dtype == np.float16 and np.abs(values).max(initial=0) > _LARGEST_HALF:
                        raise _Overflow
                    content = np.ascontiguousarray(values, dtype=dtype).data.cast("B")
                    sums[number] = zlib.crc32(content, sums[number])
                    files[number].write(content)
        finally:
            for file in files:
                file.close()
        described = [{"shape": shape, "dtype": dtype.str, "crc32": crc} for (shape, dtype), crc in zip(arrays, sums, strict=True)]
        meta = {"bytes": needed, "seconds": time.perf_counter() - started, "arrays": described}
        (scratch / "meta.json").write_text(json.dumps(meta))
        if path.exists() and _opened(path, SILENT) is None:  # broken
            shutil.rmtree(path, ignore_errors=True)
        try:
            os.replace(scratch, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise  # otherwise another process was faster with the same content
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _opened(path: Path, watcher: Watcher) -> Entry | None:
    """Return the entry if it is there and whole; says so and returns None when it was altered."""
    meta_path = path / "meta.json"
    if not meta_path.is_file():
        return None
    try:
        meta = json.loads(meta_path.read_text())
        arrays = []
        for number, described in enumerate(meta["arrays"]):
            array = np.load(path / f"{number}.npy", mmap_mode="r", allow_pickle=False)
            if list(array.shape) != described["shape"] or array.dtype.str != described["dtype"] or _crc32(array) != described["crc32"]:
                raise ValueError("its content was altered")
            arrays.append(array)
        os.utime(meta_path)
    except (OSError, EOFError, ValueError, KeyError) as error:
        watcher.say(f"The cache entry {path.name} is damaged ({error}); it is computed again.")
        return None
    return Entry(path.name, tuple(arrays), True, int(meta["bytes"]), float(meta["seconds"]))


def _crc32(array: Array) -> int:
    value = 0
    step = max(1, (1 << 24) // max(1, array[:1].nbytes))
    for start in range(0, len(array), step):
        value = zlib.crc32(np.ascontiguousarray(array[start : start + step]).data.cast("B"), value)
    return value


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"The cache folder {folder} cannot be written ({error.strerror}). Set REGRAFT_CACHE, or pass --cache, to a folder that can.")


def _no_room(path: Path, needed: float, free: float) -> UserError:
    return UserError(
        f"The cache entry needs {needed / 1e6:,.0f} MB, but {path.parent} has {free / 1e6:,.0f} MB free. "
        "Make room, run `regraft cache clear`, or set REGRAFT_CACHE to a folder on another disk."
    )
