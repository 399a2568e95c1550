"""`regraft evaluate`: score a finished run, on the held-out test part or on other images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.data.dataset import Dataset
from regraft.data.load import load_dataset
from regraft.errors import UserError, join_truncated
from regraft.evaluation.calibration import fit_temperature
from regraft.evaluation.metrics import Metrics, compute_metrics
from regraft.evaluation.scores import Scores, compute_scores
from regraft.features.parts import OpenedParts, PartImages, open_part, open_parts
from regraft.features.policy import CachePolicy
from regraft.features.scoring import compute_logits
from regraft.inference.restore import restore_network
from regraft.models.backbone import Backbone
from regraft.models.network import TransferNetwork
from regraft.options import CacheOptions, Options
from regraft.runs.folder import Run, load_run, verify_run
from regraft.runs.provenance import data_options, load_images, recorded_split
from regraft.runs.writer import Judged, lock_run, record_test
from regraft.system.disk import ADVICE_REPEAT
from regraft.system.hardware import resolve_device, tune_allocator

_WAIT = 30.0  # seconds for another process that opens the same run


@dataclass(frozen=True)
class Evaluation:
    """A run's scores, with those of the part that was asked for.

    Args:
        run: The run.
        part: "val", "test" or "all".
        metrics: Metrics by class, and calibration.
        scores: Accuracy and loss with intervals of the part; None for "val", which the run has.
    """

    run: Run
    part: str
    metrics: Metrics
    scores: Scores | None

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        values = {
            **self.run.scores,
            "part": self.part,
            "measures": self.metrics.to_json(),
        }
        if self.scores is not None:
            values[self.part] = self.scores.to_json()
        if self.part == "test" and self.run.test:
            values["opened"] = list(self.run.test.opened)
        values["warnings"] = self.run.warnings
        return values


def evaluate(
    run: str | Path | Run,
    data: str | Path | None = None,
    split: str = "val",
    options: Options = Options(),
) -> Evaluation:
    """Return the scores of a run on one part, or on other images.

    Args:
        run: A run, or its folder.
        data: The images; for "test" those that the run remembers, when None.
        split: "val" shows the scores of `fit`; "test" opens the held-out test part, which is
            recorded; "all" scores every image of `data`.
        options: `data.skip_bad`, `cache` and `runtime` count.

    Raises:
        UserError: When the run or the part does not exist, or the images are others than the run's.
    """
    finished = load_run(run.path if isinstance(run, Run) else run)
    verify_run(finished)
    tune_allocator()
    if split == "all":
        return _score_other(finished, data, options)
    if split == "val" and data is not None:
        raise UserError(
            f"DATA {data} was given, but --split val shows the scores of `regraft fit`. Expected "
            "--split all to score the run on those images."
        )
    if split not in ("val", "test"):
        raise UserError(f"--split {split!r} is no part. Expected 'val', 'test' or 'all'.")
    if split == "test":
        dataset = load_images(finished, data, options.cache.dir)
        finished = open_test(finished, dataset, options)
    judged = finished.predictions(split)
    return _evaluation(finished, split, judged["logits"], judged["targets"])


def _score_other(run: Run, data: str | Path | None, options: Options) -> Evaluation:
    if data is None:
        raise UserError(
            "--split all scores a run on other images, but no DATA was given. Name the images "
            "after the run folder."
        )
    dataset = load_dataset(data, options.cache.dir)
    logits, targets = score_dataset(run, dataset, options)
    return _evaluation(run, "all", logits, targets)


def _evaluation(
    run: Run, part: str, logits: NDArray[Any], targets: NDArray[np.int64]
) -> Evaluation:
    """Return the scores of one part; the temperature is the one fitted on validation."""
    temperature = None
    scores = None
    if part != "val":
        val = run.predictions("val")
        temperature = fit_temperature(val["logits"], val["targets"])
        scores = compute_scores(logits, targets)
    metrics = compute_metrics(logits, targets, run.classes, temperature)
    return Evaluation(run, part, metrics, scores)


def open_test(
    run: Run,
    dataset: Dataset,
    options: Options = Options(),
    backbone: Backbone | None = None,
    parts: OpenedParts | None = None,
    wait: float = _WAIT,
) -> Run:
    """Score a run on the test part of its own split, and record that the part was opened.

    Args:
        run: The run.
        dataset: The images that it was fitted on.
        options: `data.skip_bad`, `cache` and `runtime` count; the split is the run's.
        backbone: A backbone of the run's name and resolution that may be given its weights.
        parts: The parts, where the test part was opened already.
        wait: Seconds to wait for another process that opens the same run.

    Raises:
        UserError: When these are other images, or another process has the run for longer.
    """
    with lock_run(run, wait, ADVICE_REPEAT):
        run = load_run(run.path)
        network = restore_network(run, resolve_device(options.runtime.device), backbone)
        if parts is None:
            split = recorded_split(run, dataset)
            own = replace(options, data=data_options(run, options.data))
            parts = open_parts(dataset, split, network.preprocess, own, ("test",))
        test = parts["test"].for_run(options.runtime)
        logits = _logits(network, test, options.cache)
        judged = Judged(test.dataset.keys, test.labels, logits)
        scores = compute_scores(logits, test.labels).to_json()
        record_test(run, judged, scores, parts.skipped_in("test"))
    return load_run(run.path)


def score_dataset(
    run: Run, dataset: Dataset, options: Options = Options()
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return logits `(n, classes)` and labels of all images of another dataset.

    Classes are matched by their names; labels are the run's class numbers.

    Raises:
        UserError: When a class is none of the run's.
    """
    numbers = _match_classes(run, dataset)
    network = restore_network(run, resolve_device(options.runtime.device))
    images = open_part(dataset, "all", network.preprocess, options)
    uncached = replace(options.cache, keep="never")
    return _logits(network, images, uncached), numbers[images.labels]


def _match_classes(run: Run, dataset: Dataset) -> NDArray[np.int64]:
    """Return the run's number of each class of a dataset."""
    unknown = [name for name in dataset.classes if name not in run.classes]
    if unknown:
        raise UserError(
            f"{dataset.name} has the classes {join_truncated(map(repr, unknown))}, which the run "
            f"does not know. Expected some of {join_truncated(map(repr, run.classes))}. Rename "
            "them, or leave their images out."
        )
    number_of = {name: number for number, name in enumerate(run.classes)}
    return np.array([number_of[name] for name in dataset.classes], dtype=np.int64)


def _logits(
    network: TransferNetwork, images: PartImages, cache: CacheOptions
) -> NDArray[np.float32]:
    return compute_logits(network, network.final_cut(), images, CachePolicy(cache))
