"""What a regraft command left on disk, as named texts that can be compared one by one."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Items = dict[str, str]
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")

# Fields of JSON and CSV that tell times, memory, versions, cache hits or paths, or are sentences.
NOT_COMPARED = frozenset(
    {
        "seconds",
        "seconds_extract",
        "seconds_shared",
        "seconds_train",
        "seconds_total",
        "seconds_without_cache",
        "shared_seconds",
        "opened",
        "peak_memory_mb",
        "environment",
        "cache",
        "kept_bytes",
        "path",
        "out",
        "paths",
        "files",
        "warnings",
        "why",
        "verdict",
        "decision",
        "log",
    }
)
# Keys of JSON that were renamed on purpose: old -> new. The changelog lists them.
RENAMED: dict[str, str] = {}


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of JSON as (dotted path, text); numbers keep all their digits."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in NOT_COMPARED:
                yield from flatten(inner, f"{prefix}.{RENAMED.get(key, key)}")
    elif isinstance(value, list):
        yield f"{prefix}.length", str(len(value))
        for number, inner in enumerate(value):
            yield from flatten(inner, f"{prefix}.{number}")
    else:
        yield prefix.removeprefix("."), json.dumps(value)


def digest_array(array: np.ndarray[Any, Any]) -> str:
    """Return a text that is equal for arrays of equal type, shape and bits."""
    bits = hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).hexdigest()
    return f"{array.dtype} {array.shape} {bits}"


def read_json(path: Path) -> Items:
    """Return the leaves of a JSON file, or of a file with an object a line."""
    text = path.read_text()
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in text.splitlines()]
        return dict(flatten([{**line, "image": Path(line["path"]).name} for line in lines]))
    return dict(flatten(json.loads(text)))


def read_csv(path: Path) -> Items:
    """Return the columns of a CSV file; of paths only the file's name."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns: dict[str, list[str]] = {}
    for row in rows:
        for key, value in row.items():
            columns.setdefault(key, []).append(Path(value).name if key == "path" else value)
    compared = {key for key in columns if key == "path" or key not in NOT_COMPARED}
    return {key: "\n".join(columns[key]) for key in sorted(compared)}


def read_parquet(path: Path) -> Items:
    """Return the digests of a Parquet file's columns."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    items = {}
    for name in table.column_names:
        values = table[name].to_pylist()
        if name == "path":
            values = [Path(value).name for value in values]
        text = json.dumps(values).encode()
        items[name] = f"{len(values)} values {hashlib.blake2b(text, digest_size=16).hexdigest()}"
    return items


def read_npz(path: Path) -> Items:
    """Return the digests of a `.npz` file's arrays."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: digest_array(arrays[name]) for name in sorted(arrays.files)}


def read_safetensors(path: Path) -> Items:
    """Return the digest of every tensor by name."""
    from safetensors.numpy import load_file

    tensors = load_file(path)
    return {name: digest_array(tensor) for name, tensor in sorted(tensors.items())}


def read_onnx(path: Path) -> Items:
    """Return a digest of a graph's constants, whatever their names, and of what it answers."""
    import onnx
    import onnxruntime
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    constants = [digest_array(numpy_helper.to_array(one)) for one in graph.initializer]
    joined = "\n".join(sorted(constants)).encode()
    items = {"constants": f"{len(constants)} {hashlib.blake2b(joined).hexdigest()}"}
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).integers(0, 256, (4, 40, 48, 3), dtype=np.uint8)
    answers = session.run(None, {session.get_inputs()[0].name: images})
    for output, answer in zip(session.get_outputs(), answers, strict=True):
        items[f"answer.{output.name}"] = digest_array(np.asarray(answer))
    return items


def read_run(folder: Path) -> Items:
    """Return everything of a run folder that has to stay: split, weights, predictions, scores."""
    items = {}
    for file in sorted(folder.iterdir()):
        if file.suffix in READERS and file.name not in ("environment.json", "state.json"):
            items |= prefixed(file.name, READERS[file.suffix](file))
    return items


def read_folder(folder: Path) -> Items:
    """Return what a folder of a comparison, of a probe or of an export holds, with its runs."""
    items = read_run(folder)
    for inner in sorted(folder.iterdir()):
        if (inner / "scores.json").is_file():
            items |= prefixed(inner.name, read_run(inner))
    return items


def read_plan(path: Path) -> Items:
    """Return the fields of a plan file."""
    import tomllib

    return dict(flatten(tomllib.loads(path.read_text())))


def prefixed(prefix: str, items: Items) -> Items:
    """Return the items, their names behind a prefix."""
    return {f"{prefix}/{name}": value for name, value in items.items()}


READERS: dict[str, Callable[[Path], Items]] = {
    ".json": read_json,
    ".jsonl": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".npz": read_npz,
    ".safetensors": read_safetensors,
    ".onnx": read_onnx,
    ".toml": read_plan,
}


def read_result(home: Path, name: str, left: str) -> Items:
    """Return exit status, JSON on stdout and all that a command left, as named texts.

    Args:
        home: The folder in which the command ran.
        name: The case's name, under which `parity_runner.py` wrote what the command said.
        left: File or folder, relative to `home`, that the command wrote; empty for none.
    """
    items = {"exit": (home / "told" / f"{name}.exit").read_text()}
    out = (home / "told" / f"{name}.out").read_text()
    if out.strip():
        items |= prefixed("stdout", dict(flatten(json.loads(out))))
    path = home / left
    if left and path.is_dir():
        items |= read_folder(path)
    elif left and path.is_file():
        items |= prefixed(path.name, READERS[path.suffix](path))
    elif left:
        items[left] = "absent"
    return items


def find_differences(old: Items, new: Items) -> dict[str, str]:
    """Return name -> sentence for every item of the old side that the new side has otherwise."""
    differences = {}
    for name, value in old.items():
        other = new.get(name)
        if other is None:
            differences[name] = f"{name} is missing, was {shorten(value)}"
        elif other != value and not is_same_interval(name, value, other):
            differences[name] = f"{name} is {shorten(other)}, was {shorten(value)}"
    return differences


def is_same_interval(name: str, value: str, other: str) -> bool:
    """Return whether the ends of Wilson intervals agree but for the last binary digits.

    Scipy computes them now, in another order than 0.1 did.
    """
    if not name.endswith(("_low", "_high")) and "ci95" not in name:
        return False
    before = NUMBER.findall(value)
    after = NUMBER.findall(other)
    if NUMBER.sub("", value) != NUMBER.sub("", other) or len(before) != len(after):
        return False
    pairs = zip(before, after, strict=True)
    return all(abs(float(old) - float(new)) < 1e-12 for old, new in pairs)


def shorten(text: str, length: int = 60) -> str:
    """Return a text in one line of at most `length` characters."""
    line = text.replace("\n", " ")
    return line if len(line) <= length else line[: length - 1] + "…"
