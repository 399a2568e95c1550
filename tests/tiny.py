"""Small runs, cuts and inputs that the tests of features, models, training and runs share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from conftest import TINY, toy
from regraft.commands.fit import fit
from regraft.data.dataset import Dataset
from regraft.features.extract import ModelInputs, store_pixels
from regraft.models.augment import sample_ids
from regraft.models.backbone import Backbone
from regraft.models.cut import cut_backbone
from regraft.models.network import Cut
from regraft.models.transforms import Preprocess
from regraft.options import CacheOptions, Options, PlanOverrides, RunDir, Runtime
from regraft.runs.folder import Run
from regraft.system.progress import ProgressReporter

DATA = toy(60)


class Recorder(ProgressReporter):
    """Keeps what is reported."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.steps: list[tuple[str, int, int]] = []

    def log(self, text: str) -> None:
        self.texts.append(text)

    def progress(self, what: str, done: int, total: int) -> None:
        self.steps.append((what, done, total))

    def passes(self, what: str = "extract") -> list[int]:
        """Return the number of images of each pass that ended."""
        return [
            total for name, done, total in self.steps if name.startswith(what) and done == total
        ]


def cut_of(
    source: Backbone, train: str = "head", until: Sequence[str] = (), precision: str = "float32"
) -> Cut:
    """Return a backbone cut as a network of a run cuts it."""
    frozen, trained = cut_backbone(source, train, until)
    preprocess = Preprocess(source.rules, source.resolution)
    return Cut(frozen, trained, preprocess, precision, torch.device("cpu"))


def inputs_of(source: Backbone, folder: Path, dataset: Dataset = DATA) -> ModelInputs:
    """Return images as a backbone takes them, their pixels stored in a folder."""
    preprocess = Preprocess(source.rules, source.resolution)
    pixels = store_pixels(dataset, preprocess, CacheOptions(folder), Runtime())
    return ModelInputs(pixels, sample_ids(dataset), dataset.hashes, preprocess)


def fit_tiny(
    data: Path | Dataset,
    technique: str,
    out: str | Path,
    overrides: Sequence[str] = (),
    cache: CacheOptions | None = None,
    **runtime: Any,
) -> Run:
    """Return a run of a small random network at 32 px."""
    asked = PlanOverrides(
        backbone=TINY, weights="random", resolution=32, overrides=tuple(overrides)
    )
    options = Options(
        cache=cache or CacheOptions(), runtime=Runtime(**runtime), run_dir=RunDir(out=out)
    )
    return fit(data, technique, asked, options)
