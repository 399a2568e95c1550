"""`regraft check`: what is wrong with labelled images, before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.checks.duplicates import exact_duplicates, find_near_duplicates
from regraft.checks.findings import (
    CheckedWith,
    Findings,
    ImageIndex,
    describe_findings,
    to_exact_groups,
    to_near_pairs,
    to_odd_files,
    to_suspects,
)
from regraft.checks.labels import find_suspect_labels
from regraft.checks.outliers import (
    Outlier,
    count_classes,
    find_odd_files,
    find_single_colour,
    find_unreadable,
)
from regraft.commands.resolve import resolve_plan, split_dataset
from regraft.data.dataset import Dataset
from regraft.data.images import Unreadable
from regraft.data.load import load_dataset
from regraft.data.split import PARTS, Split
from regraft.errors import UserError, join_truncated
from regraft.features.parts import PartImages
from regraft.models.network import Cut, TransferNetwork
from regraft.models.pool import BackbonePool
from regraft.options import CacheOptions, Options, PlanOverrides
from regraft.reporting.galleries import check_galleries
from regraft.reporting.html import render_check_html
from regraft.reporting.output import require_new_page, write_page
from regraft.system.files import expand_user
from regraft.system.hardware import free_memory, tune_allocator
from regraft.system.output import write_json

Features = NDArray[np.float16]

_COPIES = 5  # of the features, while a linear probe is fitted on them


@dataclass(frozen=True)
class Check:
    """What a check found.

    Args:
        findings: Duplicates, doubtful labels, imbalance and odd files.
        dataset: The images that it looked at.
    """

    findings: Findings
    dataset: Dataset

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return self.findings.to_json()

    def __repr__(self) -> str:
        return f"Check({self.dataset.name!r}: {describe_findings(self.findings)})"


@dataclass(frozen=True)
class _PartFeatures:
    """The images of a part that can be decoded: rows, pixels, features of the end and of many."""

    rows: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    end: Features
    several: Features


@dataclass(frozen=True)
class _Checked:
    """The same of all parts, one after the other."""

    rows: NDArray[np.int64]
    pixels: Sequence[NDArray[np.uint8]]
    end: Features
    several: Features


def check(
    data: str | Path | Dataset,
    overrides: PlanOverrides = PlanOverrides(),
    options: Options = Options(),
) -> Check:
    """Return duplicates, doubtful labels, imbalance and odd files of labelled images.

    Images of every part are looked at; no run is scored.

    Args:
        data: The images, as for `fit`.
        overrides: Backbone, weights and resolution whose features tell what is alike; by default
            those of a linear and a multi-layer probe, which share the cache.
        options: Images, cache and machine; `run_dir.out` is an HTML page to write.

    Raises:
        UserError: When the page exists already, or weights or images cannot be had.
    """
    tune_allocator()
    page = None if options.run_dir.out is None else expand_user(options.run_dir.out)
    if page is not None:
        require_new_page(page, options.run_dir.overwrite)
    dataset = load_dataset(data, options.cache.dir)
    found = check_dataset(dataset, overrides, options)
    if page is not None:
        findings = found.to_json()
        galleries = check_galleries(findings, dataset)
        write_page(page, render_check_html(findings, galleries, version("regraft")))
    return found


def check_dataset(dataset: Dataset, overrides: PlanOverrides, options: Options) -> Check:
    """Return what is wrong with the images of a dataset; see `check`."""
    split = split_dataset(dataset, options.data)
    pool = BackbonePool(options.runtime.device)
    plan = resolve_plan("linear-probe", dataset, split, overrides, pool)
    network = TransferNetwork(pool.load(plan), plan, dataset.classes)
    several = resolve_plan("multi-layer-probe", dataset, split, overrides, pool)
    end_cut = network.features_cut()
    several_cut = TransferNetwork(network.backbone, several, dataset.classes).features_cut()
    every = np.concatenate([split[part] for part in PARTS])
    outliers, readable = find_odd_files(dataset, every)
    checked = _take_features(
        _Subset(dataset, split, set(readable.tolist())), (end_cut, several_cut), options, outliers
    )
    rows = checked.rows
    hashes = dataset.hashes[rows]
    reporter = options.runtime.reporter
    suspects = find_suspect_labels(
        checked.several,
        dataset.labels[rows],
        len(dataset.classes),
        options.data.split_seed,
        reporter,
    )
    index = ImageIndex.of(dataset, split)
    near = find_near_duplicates(checked.pixels, checked.end, hashes, reporter)
    findings = Findings(
        data=dataset.name,
        images={part: len(split[part]) for part in PARTS},
        split_digest=split.digest,
        network=CheckedWith(plan.backbone, plan.resolution, network.backbone.weights),
        balance=count_classes(dataset, split),
        exact=to_exact_groups(exact_duplicates(hashes), rows, index),
        near=to_near_pairs(near, rows, index),
        suspects=to_suspects(suspects, rows, index),
        suspect_count=suspects.count,
        odd=to_odd_files(outliers, index),
    )
    _remember(findings, dataset, options)
    return Check(findings, dataset)


@dataclass(frozen=True)
class _Subset:
    """The images of a dataset whose size can be read."""

    dataset: Dataset
    split: Split
    readable: set[int]

    def rows(self, part: str) -> NDArray[np.int64]:
        rows = [row for row in self.split[part].tolist() if row in self.readable]
        return np.array(rows, dtype=np.int64)


def _take_features(
    subset: _Subset, cuts: tuple[Cut, Cut], options: Options, outliers: list[Outlier]
) -> _Checked:
    """Return features and pixels of all images that can be decoded; others become outliers."""
    taken = []
    for name in PARTS:
        part = _take_part(subset, name, cuts, options, outliers)
        if part is not None:
            taken.append(part)
    if not taken:
        reasons = join_truncated(outlier.why for outlier in outliers)
        raise UserError(
            f"No image of {subset.dataset.name} can be decoded ({reasons}). Expected some whole "
            "ones. Repair them, or give other data."
        )
    end = np.concatenate([part.end for part in taken])
    width = taken[0].several.shape[1]
    images = sum(len(part.rows) for part in taken)
    # where memory is short, features of the end alone
    fits = _COPIES * 4 * images * width < free_memory()
    several = np.concatenate([part.several for part in taken]) if fits else end
    rows = np.concatenate([part.rows for part in taken])
    return _Checked(rows, [part.pixels for part in taken], end, several)


def _take_part(
    subset: _Subset,
    name: str,
    cuts: tuple[Cut, Cut],
    options: Options,
    outliers: list[Outlier],
) -> _PartFeatures | None:
    rows = subset.rows(name)
    preprocess = cuts[0].preprocess
    images = _open(subset.dataset, name, rows, options)
    try:
        if len(rows):
            images.pixels(preprocess)
    except Unreadable as error:
        outliers += find_unreadable(error, rows)
        rows = np.delete(rows, error.rows)
        images = _open(subset.dataset, name, rows, options)
    if not len(rows):
        return None
    pixels = images.pixels(preprocess).entry.arrays[0]
    outliers += find_single_colour(pixels, rows)
    end, several = images.extract(cuts)
    return _PartFeatures(rows, pixels, end.arrays[0], several.arrays[0])


def _open(dataset: Dataset, name: str, rows: NDArray[np.int64], options: Options) -> PartImages:
    return PartImages(name, dataset.take(rows), options.cache, options.runtime)


def remembered_check(
    dataset: Dataset, split_digest: str, cache: CacheOptions
) -> dict[str, Any] | None:
    """Return what the last check of these images found; None where there was none."""
    try:
        return dict(json.loads(_note_path(dataset, split_digest, cache).read_text()))
    except (OSError, ValueError):
        return None


def _note_path(dataset: Dataset, split_digest: str, cache: CacheOptions) -> Path:
    return cache.dir / "checks" / f"{dataset.fingerprint}-{split_digest}.json"


def _remember(findings: Findings, dataset: Dataset, options: Options) -> None:
    """Keep what was found, for the report; a cache that cannot be written is no reason to fail."""
    path = _note_path(dataset, findings.split_digest, options.cache)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, findings.to_json())
    except OSError as error:
        options.runtime.reporter.log(f"The check is not remembered: {error.strerror}.")
