"""regraft: which way should a pretrained network be carried over to my images, and was it worth it?

>>> import regraft
>>> run = regraft.fit("digits", technique="linear-probe")  # doctest: +SKIP
>>> regraft.load(run.path).predict(["five.png"])  # doctest: +SKIP
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from regraft.commands.compare import Comparison
    from regraft.commands.probe import Probe
    from regraft.data.dataset import Dataset
    from regraft.inference.classifier import Classifier
    from regraft.plans.schema import Plan
    from regraft.runs.folder import Run
    from regraft.sklearn import TransferClassifier

os.environ.setdefault(
    "HF_HUB_DISABLE_TELEMETRY", "1"
)  # read when timm loads the hub's client; nothing reports home

__version__ = "0.1.0"
__all__ = ["TransferClassifier", "UserError", "compare", "embed", "fit", "load", "probe"]


def __getattr__(name: str) -> Any:
    if name == "TransferClassifier":  # loads scikit-learn
        from regraft.sklearn import TransferClassifier

        return TransferClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def fit(
    data: str | Path | Dataset,
    technique: str = "linear-probe",
    backbone: str | None = None,
    *,
    plan: str | Path | Plan | None = None,
    out: str | Path | None = None,
    weights: str | None = None,
    resolution: int | None = None,
    seed: int | None = None,
    changes: Sequence[str] = (),
    **settings: Any,
) -> Run:
    """Return the finished run of one technique, or of a plan, on labelled images.

    Args:
        data: A known name, a folder, an archive, a CSV, Parquet or .npz file, or a dataset; see `regraft sources`.
        technique: A name that `regraft techniques` lists, or `module:function`; ignored when a plan is given.
        backbone: Any timm name; EfficientNet-Lite0, whose weights are installed, when None.
        plan: A plan, or the path of its TOML file.
        out: The run's folder, which must be new or empty; `runs/<data>-<technique>` with the next free number by default.
        weights: "pretrained", "random", or a file.
        resolution: Side in pixels.
        seed: Of everything but the split.
        changes: Changes to the plan, such as `"phases.0.lr=3e-4"`.
        **settings: Fields of `regraft.workflow.Settings`: `train_images`, `split_seed`, `resume`, `overwrite`, `skip_bad`, `device`, `home`, `reporter`.

    Raises:
        UserError: For a mistake of the caller, in one sentence.
    """
    from regraft.workflow.named import fit_named
    from regraft.workflow.planning import Wish

    return fit_named(
        data,
        Wish(technique, plan, backbone, weights, resolution, seed, changes),
        out,
        **settings,
    )


def compare(
    data: str | Path | Dataset,
    techniques: Sequence[str] | None = None,
    backbones: Sequence[str] = ("tf_efficientnet_lite0",),
    *,
    seeds: int = 1,
    out: str | Path | None = None,
    weights: str | None = None,
    resolution: int | None = None,
    changes: Sequence[str] = (),
    from_probe: str | Path | None = None,
    **settings: Any,
) -> Comparison:
    """Return the comparison of several techniques and backbones on the same images, or of the plans in a probe's folder; arguments as for `fit`."""
    from regraft.workflow.named import compare_named
    from regraft.workflow.planning import Wish

    wish = Wish(weights=weights, resolution=resolution, changes=changes)
    return compare_named(data, techniques, backbones, seeds, wish, out, from_probe, **settings)


def probe(
    data: str | Path | Dataset,
    backbones: Sequence[str] = ("tf_efficientnet_lite0",),
    resolutions: Sequence[int] = (),
    *,
    budget: str | None = None,
    runs: Sequence[Path] | None = None,
    out: str | Path | None = None,
    weights: str | None = None,
    **settings: Any,
) -> Probe:
    """Return where to cut, at what resolution, which backbone: every place judged by its frozen features, before anything is trained.

    Args:
        data: As for `fit`.
        backbones: timm names.
        resolutions: Sides in pixels; four around what suits the images when empty.
        budget: Time for all of it, such as "90s" or "5m"; None takes every image everywhere.
        runs: Folders of finished runs to check the scores against; `runs` and `compare` here when None.
        out: Folder for tables, pictures and plans; `probe/<data>` with the next free number by default.
        weights: "pretrained", "random", or a file.
        **settings: As for `fit`.

    Returns:
        A probe with `told` (the table, the Pareto front, recommendations, learning curve, hit rates) and `plans` by budget, which `fit` takes.

    Raises:
        UserError: For a mistake of the caller, in one sentence.
    """
    from regraft.workflow.named import probe_named
    from regraft.workflow.planning import Wish

    return probe_named(
        data, backbones, resolutions, budget, runs, Wish(weights=weights), out, **settings
    )


def embed(
    data: str | Path | Dataset,
    backbone: str = "tf_efficientnet_lite0",
    resolution: int | None = None,
    until: str | Sequence[str] = "end",
    *,
    out: str | Path | None = None,
    table: bool = False,
    weights: str | None = None,
    **settings: Any,
) -> NDArray[np.float32] | Any:
    """Return the features `(n, d)` of all images, float32, rows in the order of the images' keys; nothing is trained.

    They come through the cache that `fit`, `compare` and `probe` share. The test part's images are among them.

    Args:
        data: As for `fit`.
        backbone: Any timm name.
        resolution: Side in pixels; what suits the images when None.
        until: Where features are taken: a stage or module, "end", or several of them, pooled and side by side.
        out: A Parquet file to write as well.
        table: Return a pyarrow table with the columns key, label, part, features instead.
        weights: "pretrained", "random", or a file.
        **settings: As for `fit`.

    Raises:
        UserError: For a mistake of the caller, in one sentence.
    """
    from regraft.workflow import embedding
    from regraft.workflow.embedding import embed_named
    from regraft.workflow.planning import Wish

    images, parts, features, plan = embed_named(
        data,
        until,
        Wish(backbone=backbone, weights=weights, resolution=resolution),
        out,
        **settings,
    )
    return embedding.table(images, parts, features, plan) if table else features


def load(path: str | Path, device: str = "auto") -> Classifier:
    """Return a finished run as a classifier with `predict` and `predict_proba`; raises `UserError` when there is none at `path`."""
    from regraft.inference.classifier import load_classifier

    return load_classifier(path, device)
