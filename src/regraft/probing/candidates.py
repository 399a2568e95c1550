"""What the pooled features of each layer, and of several concatenated, are worth.

For one backbone at one resolution; features are computed before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from regraft.evaluation.scores import compute_scores
from regraft.evaluation.transferability import (
    compute_h_score,
    knn_accuracy,
    leep_score,
    logme_score,
)
from regraft.plans.schema import Phase
from regraft.probing.greedy_selection import select_greedily
from regraft.system.progress import SILENT, ProgressReporter
from regraft.training.linear import CrossEntropy, LabelledFeatures, LinearProbe, fit_logistic

MAX_NEIGHBOURS = 20  # that vote, where every class has as many
_JSON_KEYS = {"layers": "places"}  # fields that are written under another name


@dataclass(frozen=True)
class LayerFeatures:
    """The features of one layer for the images of train and val, and what they cost.

    Args:
        layer: Its name.
        train: Float16 `(n, d)`.
        val: The same of the validation part.
        multiply_adds: From the image up to this layer.
        seconds: Of one pass over train and val up to this layer.
        bytes: On disk.
    """

    layer: str
    train: NDArray[np.float16]
    val: NDArray[np.float16]
    multiply_adds: int
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Candidate:
    """A backbone at a resolution with the features of its layers.

    Args:
        backbone: Its timm name.
        resolution: Side in pixels.
        layers: Features of the layers in order of depth; the last is the end of the network.
        labels: Class numbers of train and val.
        classes: Number of classes.
        source_head: Weight and bias of the head that came with the backbone's weights, if any.
    """

    backbone: str
    resolution: int
    layers: tuple[LayerFeatures, ...]
    labels: tuple[NDArray[np.int64], NDArray[np.int64]]
    classes: int
    source_head: tuple[Tensor, Tensor] | None = None

    def select(self, names: Sequence[str]) -> list[LayerFeatures]:
        """Return some layers in order of depth."""
        return [features for features in self.layers if features.layer in names]

    def features(self, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the concatenated features of some layers, float32, for train and for val."""
        selected = self.select(names)
        train = np.concatenate([features.train for features in selected], axis=1)
        val = np.concatenate([features.val for features in selected], axis=1)
        return torch.from_numpy(train).float(), torch.from_numpy(val).float()


@dataclass(frozen=True)
class ProbeRow:
    """What the features of one layer, or of several concatenated, reach, and what they cost.

    Args:
        backbone: Its timm name.
        resolution: Side in pixels.
        layers: Names of the layers.
        kind: "single", "greedy" (a few layers chosen one after the other) or "all".
        features: Number of features.
        images: Number of training images.
        accuracy: Of a linear probe on validation.
        ci95: Its interval.
        loss: Mean log-loss on validation, in nats.
        l2: The chosen L2 value.
        knn: Accuracy of nearest neighbours; this and the next three None for several layers.
        logme: See `transferability`.
        h_score: The same.
        leep: The same; None also without a source head.
        multiply_adds: From the image up to the deepest layer.
        seconds: Of one pass over train and val up to the deepest layer.
        bytes: On disk.
        correct: Whether each validation image is predicted correctly.
    """

    backbone: str
    resolution: int
    layers: tuple[str, ...]
    kind: str
    features: int
    images: int
    accuracy: float
    ci95: tuple[float, float]
    loss: float
    l2: float
    knn: float | None
    logme: float | None
    h_score: float | None
    leep: float | None
    multiply_adds: int
    seconds: float
    bytes: int
    correct: NDArray[np.bool_] = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """Backbone, resolution and layer, or the number of layers."""
        layers = self.layers[0] if self.kind == "single" else f"{len(self.layers)} places"
        return f"{self.backbone} {self.resolution} px {layers}"

    def to_json(self) -> dict[str, Any]:
        """Return the row as it is written to JSON."""
        written: dict[str, Any] = {"name": self.name}
        for column in fields(self):
            if column.name != "correct":
                key = _JSON_KEYS.get(column.name, column.name)
                written[key] = getattr(self, column.name)
        return written


def score_layers(
    candidate: Candidate, phase: Phase, reporter: ProgressReporter = SILENT
) -> list[ProbeRow]:
    """Return a row for each layer alone, in order of depth.

    Args:
        candidate: The features.
        phase: How the linear probe is fitted: its L2 path and the monitored metric.
        reporter: Is told the progress.
    """
    task = f"judge {candidate.backbone} {candidate.resolution} px"
    rows = []
    for number, features in enumerate(candidate.layers, start=1):
        rows.append(_score_single(candidate, features, phase))
        reporter.progress(task, number, len(candidate.layers))
    return rows


def score_concatenated(
    candidate: Candidate, phase: Phase, most: int, reporter: ProgressReporter = SILENT
) -> list[ProbeRow]:
    """Return a row for a few concatenated layers, and one for all of them.

    The few are chosen one after the other. A row that would hold a single layer, or the same
    layers again, is left out.

    Args:
        candidate: The features.
        phase: How the linear probe is fitted.
        most: Maximum concatenated width; if exceeded, every 2nd, 3rd, … layer is used, and that
            is reported.
        reporter: Is told of it.
    """
    names = _thin_out(candidate, most, reporter)
    if len(names) < 2:
        return []
    features = [candidate.features([name])[0] for name in names]
    numbers = select_greedily(features, torch.from_numpy(candidate.labels[0]), candidate.classes)
    few = tuple(names[number] for number in sorted(numbers))
    rows = []
    if len(few) > 1:
        rows.append(_score_several(candidate, few, "greedy", phase))
    if len(names) > len(few):
        rows.append(_score_several(candidate, tuple(names), "all", phase))
    return rows


def neighbour_count(labels: NDArray[np.int64]) -> int:
    """Return how many neighbours vote: 20, or as many as the smallest class has images."""
    _, counts = np.unique(labels, return_counts=True)
    return min(MAX_NEIGHBOURS, int(counts.min()))


@dataclass(frozen=True)
class _FreeScores:
    """Scores of features without training a head."""

    knn: float | None = None
    logme: float | None = None
    h_score: float | None = None
    leep: float | None = None


def _score_single(candidate: Candidate, layer: LayerFeatures, phase: Phase) -> ProbeRow:
    train, val = _labelled(candidate, [layer.layer])
    x = train.features.numpy()
    labels, val_labels = candidate.labels
    neighbours = neighbour_count(labels)
    free = _FreeScores(
        knn=knn_accuracy((x, labels), (val.features.numpy(), val_labels), neighbours),
        logme=logme_score(x, labels),
        h_score=compute_h_score(x, labels),
        leep=_leep(candidate, layer, train),
    )
    probe = fit_logistic(train, val, CrossEntropy(candidate.classes), phase.l2, phase.monitor)
    return _make_row(candidate, [layer], "single", probe, val, free)


def _score_several(
    candidate: Candidate, names: tuple[str, ...], kind: str, phase: Phase
) -> ProbeRow:
    train, val = _labelled(candidate, names)
    probe = fit_logistic(train, val, CrossEntropy(candidate.classes), phase.l2, phase.monitor)
    return _make_row(candidate, candidate.select(names), kind, probe, val, _FreeScores())


def _labelled(
    candidate: Candidate, names: Sequence[str]
) -> tuple[LabelledFeatures, LabelledFeatures]:
    train, val = candidate.features(names)
    labels, val_labels = candidate.labels
    return (
        LabelledFeatures(train, torch.from_numpy(labels)),
        LabelledFeatures(val, torch.from_numpy(val_labels)),
    )


def _make_row(
    candidate: Candidate,
    layers: Sequence[LayerFeatures],
    kind: str,
    probe: LinearProbe,
    val: LabelledFeatures,
    free: _FreeScores,
) -> ProbeRow:
    with torch.inference_mode():
        logits = probe.layer(val.features).numpy()
    val_labels = candidate.labels[1]
    scores = compute_scores(logits, val_labels)
    deepest = layers[-1]
    names = [layer.layer for layer in layers]
    stored_bytes = sum(layer.bytes for layer in layers)
    return ProbeRow(
        backbone=candidate.backbone,
        resolution=candidate.resolution,
        layers=tuple(names),
        kind=kind,
        features=val.features.shape[1],
        images=len(candidate.labels[0]),
        accuracy=scores.accuracy,
        ci95=scores.ci95,
        loss=scores.loss,
        l2=probe.l2,
        knn=free.knn,
        logme=free.logme,
        h_score=free.h_score,
        leep=free.leep,
        multiply_adds=deepest.multiply_adds,
        seconds=deepest.seconds,
        bytes=stored_bytes,
        correct=logits.argmax(axis=1) == val_labels,
    )


def _leep(candidate: Candidate, layer: LayerFeatures, train: LabelledFeatures) -> float | None:
    """Return LEEP at the end of the network; None elsewhere and where no source head fits."""
    if candidate.source_head is None or layer.layer != candidate.layers[-1].layer:
        return None
    weight, bias = candidate.source_head
    if weight.shape[1] != train.features.shape[1]:
        return None
    logits = functional.linear(train.features, weight.float(), bias.float())
    return leep_score(logits.softmax(dim=1).numpy(), candidate.labels[0])


def _thin_out(candidate: Candidate, most: int, reporter: ProgressReporter) -> list[str]:
    """Return the layers to concatenate: all, or every 2nd, 3rd, … from the end, until they fit."""
    last_first = candidate.layers[::-1]
    step = 1
    while _width(last_first[::step]) > most and step < len(last_first):
        step += 1
    if step > 1:
        width = _width(last_first)
        reporter.log(
            f"{candidate.backbone} at {candidate.resolution} px has {width:,} features; "
            f"one layer in {step} is concatenated, so that they fit."
        )
    thinned = last_first[::step]
    return [layer.layer for layer in thinned[::-1]]


def _width(layers: Sequence[LayerFeatures]) -> int:
    return sum(layer.train.shape[1] for layer in layers)
