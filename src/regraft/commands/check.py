"""`regraft check`: what is wrong with labelled images, before anything is trained."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from regraft.checks.duplicates import exact_duplicates, find_near_duplicates
from regraft.checks.findings import (
    CheckedWith,
    Findings,
    ImageIndex,
    to_exact_groups,
    to_near_pairs,
    to_odd_files,
    to_suspects,
)
from regraft.checks.images import CheckReader
from regraft.checks.labels import find_suspect_labels
from regraft.checks.outliers import count_classes, find_odd_files
from regraft.commands.resolve import resolve_plan, split_dataset
from regraft.data.dataset import Dataset
from regraft.data.load import load_dataset
from regraft.data.split import PARTS, Split
from regraft.errors import UserError, join_truncated
from regraft.models.network import TransferNetwork, cut_features
from regraft.models.pool import BackbonePool
from regraft.options import CacheOptions, Options, PlanOverrides
from regraft.reporting.galleries import check_galleries
from regraft.reporting.html import render_check_html
from regraft.reporting.output import require_new_page, write_page
from regraft.system.files import expand_user
from regraft.system.hardware import tune_allocator
from regraft.system.output import write_json


@dataclass(frozen=True)
class Check:
    """A finished check.

    Args:
        findings: What it found.
        dataset: The images that it looked at.
    """

    findings: Findings
    dataset: Dataset

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return self.findings.to_json()

    def __repr__(self) -> str:
        return f"Check({self.dataset.name!r}: {self.findings.verdict})"


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
    finished = check_dataset(dataset, overrides, options)
    if page is not None:
        findings = finished.to_json()
        galleries = check_galleries(findings, dataset)
        write_page(page, render_check_html(findings, galleries, version("regraft")))
    return finished


def check_dataset(dataset: Dataset, overrides: PlanOverrides, options: Options) -> Check:
    """Return what is wrong with the images of a dataset; see `check`."""
    split = split_dataset(dataset, options.data)
    network, reader = _open(dataset, split, overrides, options)
    every = np.concatenate([split[part] for part in PARTS])
    outliers, readable = find_odd_files(dataset, every)
    images = reader.read({part: split[part][np.isin(split[part], readable)] for part in PARTS})
    outliers += reader.outliers
    if images is None:
        reasons = join_truncated(outlier.why for outlier in outliers)
        raise UserError(
            f"No image of {dataset.name} can be decoded ({reasons}). Expected some whole ones. "
            "Repair them, or give other data."
        )
    rows = images.rows
    labels = dataset.labels[rows]
    hashes = dataset.hashes[rows]
    classes = len(dataset.classes)
    reporter = options.runtime.reporter
    seed = options.data.split_seed
    suspects = find_suspect_labels(images.several, labels, classes, seed, reporter)
    near = find_near_duplicates(images.pixels, images.end, hashes, reporter)
    index = ImageIndex.of(dataset, split)
    plan = network.plan
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


def _open(
    dataset: Dataset, split: Split, overrides: PlanOverrides, options: Options
) -> tuple[TransferNetwork, CheckReader]:
    """Return the network whose features are compared, and what reads the images with it."""
    pool = BackbonePool(options.runtime.device)
    end = resolve_plan("linear-probe", dataset, split, overrides, pool)
    several = resolve_plan("multi-layer-probe", dataset, split, overrides, pool)
    network = TransferNetwork(pool.load(end), end, dataset.classes)
    several_cut = cut_features(network.backbone, several)
    return network, CheckReader(dataset, network.features_cut(), several_cut, options)


def remembered_check(
    dataset: Dataset, split_digest: str, cache: CacheOptions
) -> dict[str, Any] | None:
    """Return what the last check of these images found, as JSON; None where there was none."""
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
