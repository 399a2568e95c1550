"""Features of images: what a frozen network says of each of them, taken anywhere in it, through the same cache as every run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from regraft.data.dataset import PARTS, Dataset, Split
from regraft.data.load import load_dataset
from regraft.errors import UserError
from regraft.features.batches import Batches
from regraft.features.store import has_room
from regraft.models.backbone import Backbone
from regraft.models.cut import Prefix
from regraft.models.layers import cut_backbone
from regraft.plans.schema import Plan
from regraft.system.files import atomic_write, check_writable, expand_user
from regraft.workflow.named import asked
from regraft.workflow.parts import Part
from regraft.workflow.planning import Wish, make
from regraft.workflow.settings import Settings
from regraft.workflow.story import loaded, readable

_AT_ONCE = 250


def embed_named(
    data: str | Path | Dataset,
    until: str | Sequence[str] = "end",
    wish: Wish | None = None,
    out: str | Path | None = None,
    **settings: Any,
) -> tuple[Dataset, NDArray[np.str_], NDArray[np.float32], Plan]:
    """Return the images, the part of each, features `(n, d)` float32 in the order of the images' keys, and the plan that says how they were taken.

    Args:
        data: The images; see `regraft.embed`.
        until: A stage or module, the end of the network, or several of them, pooled and side by side.
        wish: Backbone, weights, resolution, precision.
        out: A Parquet file to write; see `table`.
        **settings: Fields of `Settings`.

    Raises:
        UserError: For unknown names, an image that cannot be decoded, or a file that exists already.
    """
    where = replace(
        asked(settings, data), train_images=None, val_images=None
    )  # all images have features
    target = None if out is None else _free(expand_user(out), where.overwrite)
    images = load_dataset(data, where.home)
    places = [until] if isinstance(until, str) else list(until)
    wish = wish or Wish()
    plan = make(
        images,
        where.split(images),
        Wish(
            "linear-probe",
            None,
            wish.backbone,
            wish.weights,
            wish.resolution,
            wish.seed,
            [f"until={json.dumps(places if len(places) > 1 else places[0])}"],
            wish.precision,
        ),
        where.device,
    )
    model = loaded(plan, where)
    images, split = readable(images, model, PARTS, where)
    features, parts = _features(images, split, model, plan, where)
    if target is not None:
        _write(table(images, parts, features, plan), target)
    return images, parts, features, plan


def table(
    images: Dataset, parts: NDArray[np.str_], features: NDArray[np.float32], plan: Plan
) -> Any:
    """Return a pyarrow table with the columns key, label, part and features (lists of a fixed length, float32).

    Its schema's metadata says, as JSON under `regraft`, how the features were taken.
    """
    import pyarrow as pa

    labels = pa.array([images.classes[label] for label in images.labels], pa.string())
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1])
    how = {
        name: getattr(plan, name)
        for name in ("backbone", "weights", "until", "resolution", "precision")
    }
    made = pa.table(
        {
            "key": pa.array(images.keys.tolist(), pa.string()),
            "label": labels,
            "part": pa.array(parts.tolist(), pa.string()),
            "features": vectors,
        }
    )
    return made.replace_schema_metadata({"regraft": json.dumps(how)})


def features_of(part: Part, model: Backbone, prefix: Prefix, plan: Plan) -> NDArray[np.float32]:
    """Return what a network frozen throughout says of the images of a part, `(n, d)`: from the cache, or in one pass (into it, where there is room)."""
    settings = part.settings
    missing = part.lacks(model, prefix, prefix.digest(), plan)
    if settings.keep != "never" and (not missing or has_room(missing, settings.home)):
        return part.kept(model, [(prefix, prefix.digest())], plan)[0].arrays[0].astype(np.float32)
    read = part.live(model, prefix, plan, "none", plan.seed)
    with torch.inference_mode():
        return np.concatenate(
            [
                values.float().cpu().numpy()
                for (values,), _ in Batches(read, part.labels, _AT_ONCE, seed=None)
            ]
        )


def _features(
    images: Dataset, split: Split, model: Backbone, plan: Plan, settings: Settings
) -> tuple[NDArray[np.float32], NDArray[np.str_]]:
    """Return features and parts, taken part by part, so that runs on the same images share the entries."""
    prefix, _ = cut_backbone(model, "head", plan.stages_taken)
    features, parts = (
        np.zeros((len(images), prefix.shapes[0].numel()), np.float32),
        np.full(len(images), "", dtype="<U5"),
    )
    for name in PARTS:
        if len(rows := split[name]):
            features[rows] = features_of(
                Part(name, images.take(rows), settings), model, prefix, plan
            ).reshape(len(rows), -1)
            parts[rows] = name
    return features, parts


def _free(path: Path, overwrite: bool) -> Path:
    if path.suffix.lower() != ".parquet":
        raise UserError(
            f"--out {path} was given. Expected the name of a Parquet file for the features. Write for example features.parquet."
        )
    if path.exists() and not overwrite:
        raise UserError(
            f"{path} exists already. Expected a new file for the features. Give another name with --out, or pass --overwrite."
        )
    check_writable(path.parent, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def _write(features: Any, path: Path) -> None:
    import pyarrow.parquet as pq

    try:
        with atomic_write(path) as scratch:
            pq.write_table(features, scratch)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path} cannot be written ({error.strerror or error}). Expected a file in a folder with room. Give another one with --out."
    )
