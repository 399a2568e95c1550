"""`regraft embed`: the features of images, through the cache of every run; nothing is trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.commands.resolve import resolve_plan, split_dataset
from regraft.data.dataset import Dataset
from regraft.data.load import load_dataset
from regraft.data.split import PARTS
from regraft.errors import UserError
from regraft.features.parts import OpenedParts, open_parts
from regraft.features.policy import CachePolicy
from regraft.features.reader import FrozenFeatures
from regraft.models.network import TransferNetwork
from regraft.models.pool import BackbonePool
from regraft.options import DataOptions, Options, PlanOverrides
from regraft.plans.schema import Plan
from regraft.system.disk import check_writable
from regraft.system.files import atomic_write, expand_user
from regraft.system.hardware import tune_allocator

_NOTED = ("backbone", "weights", "until", "resolution", "precision")


@dataclass(frozen=True)
class Embedding:
    """The features of images, rows in the order of their keys.

    Args:
        keys: Key of each image, `(n,)`.
        labels: Class name of each, `(n,)`.
        parts: "train", "val" or "test", `(n,)`.
        features: `(n, d)` float32.
        plan: How they were taken.
        skipped: Reason by key of images that cannot be decoded and were left out.
        path: The Parquet file that was written, or None.
    """

    keys: NDArray[np.str_]
    labels: NDArray[np.str_]
    parts: NDArray[np.str_]
    features: NDArray[np.float32]
    plan: Plan
    skipped: dict[str, str]
    path: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints: how many features of how many images, and their source."""
        images, features = self.features.shape
        return {
            "path": None if self.path is None else str(self.path),
            "images": images,
            "features": features,
            "backbone": self.plan.backbone,
            "resolution": self.plan.resolution,
            "until": self.plan.until,
        }

    def __repr__(self) -> str:
        images, features = self.features.shape
        return f"Embedding({images:,} images, {features:,} features of {self.plan.backbone})"

    def to_table(self) -> Any:
        """Return a pyarrow table with the columns key, label, part and features.

        Features are lists of a fixed length, float32. The schema's metadata says under `regraft`,
        as JSON, how they were taken.
        """
        import pyarrow as pa

        flat = pa.array(self.features.reshape(-1))
        columns = {
            "key": pa.array(self.keys.tolist(), pa.string()),
            "label": pa.array(self.labels.tolist(), pa.string()),
            "part": pa.array(self.parts.tolist(), pa.string()),
            "features": pa.FixedSizeListArray.from_arrays(flat, self.features.shape[1]),
        }
        noted = {name: getattr(self.plan, name) for name in _NOTED}
        return pa.table(columns).replace_schema_metadata({"regraft": json.dumps(noted)})


def embed(
    data: str | Path | Dataset,
    layers: str | Sequence[str] = "end",
    overrides: PlanOverrides = PlanOverrides(),
    options: Options = Options(),
) -> Embedding:
    """Return the features of all images, the held-out test part among them.

    Args:
        data: The images, as for `fit`.
        layers: Where features are taken: a stage or module, "end" for the end of the network, or
            several of them, pooled and concatenated.
        overrides: Backbone, weights, resolution and precision.
        options: Images, cache and machine; `run_dir.out` is a Parquet file to write.

    Raises:
        UserError: For unknown names, an image that cannot be decoded, or a file that exists.
    """
    tune_allocator()
    run_dir = options.run_dir
    target = None
    if run_dir.out is not None:
        target = expand_user(run_dir.out)
        _require_new(target, run_dir.overwrite)
    dataset = load_dataset(data, options.cache.dir)
    # every image has features: no subsets
    whole = DataOptions(split_seed=options.data.split_seed, skip_bad=options.data.skip_bad)
    split = split_dataset(dataset, whole)
    names = [layers] if isinstance(layers, str) else list(layers)
    until = json.dumps(names if len(names) > 1 else names[0])
    asked = replace(overrides, plan=None, overrides=[f"until={until}"])
    pool = BackbonePool(options.runtime.device)
    plan = resolve_plan("linear-probe", dataset, split, asked, pool)
    network = TransferNetwork(pool.load(plan), plan, dataset.classes)
    opened = replace(options, data=whole)
    parts = open_parts(dataset, split, network.preprocess, opened, PARTS)
    embedding = _take_features(parts, network, CachePolicy(options.cache))
    if target is not None:
        _write(embedding, target)
    return replace(embedding, path=target)


def _take_features(parts: OpenedParts, network: TransferNetwork, policy: CachePolicy) -> Embedding:
    """Return the features, taken part by part, so that runs on the same images share them."""
    cut = network.features_cut()
    dataset = parts.dataset
    features = np.zeros((len(dataset), cut.frozen.shapes[0].numel()), np.float32)
    names = np.full(len(dataset), "", dtype="<U5")
    for name in PARTS:
        rows = parts.rows[name]
        if len(rows):
            frozen = FrozenFeatures(parts[name], cut)
            taken = frozen.array(policy.for_scoring(frozen))
            features[rows] = taken.reshape(len(rows), -1)
            names[rows] = name
    left = np.flatnonzero(names != "")
    labels = np.array(dataset.classes)[dataset.labels[left]]
    skipped = dict(parts.skipped)
    keys = dataset.keys[left]
    return Embedding(keys, labels, names[left], features[left], network.plan, skipped)


def _require_new(path: Path, overwrite: bool) -> None:
    if path.suffix.lower() != ".parquet":
        raise UserError(
            f"--out {path} was given. Expected the name of a Parquet file for the features. Write "
            "for example features.parquet."
        )
    if path.exists() and not overwrite:
        raise UserError(
            f"{path} exists already. Expected a new file for the features. Give another name with "
            "--out, or pass --overwrite."
        )
    check_writable(path.parent, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def _write(embedding: Embedding, path: Path) -> None:
    import pyarrow.parquet as pq

    try:
        with atomic_write(path) as scratch:
            pq.write_table(embedding.to_table(), scratch)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path} cannot be written ({error.strerror or error}). Expected a file in a folder with "
        "room. Give another one with --out."
    )
