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


@dataclass(frozen=True)
class LayerFeatures:
    """The features of one layer for the images of train and val, and what they cost.

    Args:
        place: Name of the layer.
        train: Float16 `(n, d)`.
        val: The same of the validation part.
        multiply_adds: From the image up to this layer.
        seconds: Of one pass over train and val up to this layer.
        bytes: On disk.
    """

    place: str
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
        taken: Features of the layers in order of depth; the last is the end of the network.
        labels: Class numbers of train and val.
        classes: Number of classes.
        source: Weight and bias of the head that came with the backbone's weights, if any.
    """

    backbone: str
    resolution: int
    taken: tuple[LayerFeatures, ...]
    labels: tuple[NDArray[np.int64], NDArray[np.int64]]
    classes: int
    source: tuple[Tensor, Tensor] | None = None

    def selected(self, places: Sequence[str]) -> list[LayerFeatures]:
        """Return some layers in order of depth."""
        return [layer for layer in self.taken if layer.place in places]

    def features(self, places: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the concatenated features of some layers, float32, for train and for val."""
        layers = self.selected(places)
        train = np.concatenate([layer.train for layer in layers], axis=1)
        val = np.concatenate([layer.val for layer in layers], axis=1)
        return torch.from_numpy(train).float(), torch.from_numpy(val).float()


@dataclass(frozen=True)
class ProbeRow:
    """What the features of one layer, or of several concatenated, reach, and what they cost.

    Args:
        backbone: Its timm name.
        resolution: Side in pixels.
        places: Names of the layers.
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
        right: Whether each validation image is right.
    """

    backbone: str
    resolution: int
    places: tuple[str, ...]
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
    right: NDArray[np.bool_] = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """Backbone, resolution and layer, or the number of layers."""
        layers = self.places[0] if self.kind == "single" else f"{len(self.places)} places"
        return f"{self.backbone} {self.resolution} px {layers}"

    def to_json(self) -> dict[str, Any]:
        """Return the row as it is written to JSON."""
        written: dict[str, Any] = {"name": self.name}
        for column in fields(self):
            if column.name != "right":
                written[column.name] = getattr(self, column.name)
        return written

    plain = to_json  # the old name, until its callers use the new one


def score_layers(
    cell: Candidate, phase: Phase, reporter: ProgressReporter = SILENT
) -> list[ProbeRow]:
    """Return a row for each layer alone, in order of depth.

    Args:
        cell: The features.
        phase: How the linear probe is fitted: its L2 path and the monitored metric.
        reporter: Is told the progress.
    """
    task = f"judge {cell.backbone} {cell.resolution} px"
    rows = []
    for number, layer in enumerate(cell.taken, start=1):
        rows.append(_score_single(cell, layer, phase))
        reporter.progress(task, number, len(cell.taken))
    return rows


def score_concatenated(
    cell: Candidate, phase: Phase, most: int, reporter: ProgressReporter = SILENT
) -> list[ProbeRow]:
    """Return a row for a few concatenated layers, and one for all of them.

    The few are chosen one after the other. A row that would hold a single layer, or the same
    layers again, is left out.

    Args:
        cell: The features.
        phase: How the linear probe is fitted.
        most: Maximum concatenated width; if exceeded, every 2nd, 3rd, … layer is used, and that
            is reported.
        reporter: Is told of it.
    """
    places = _thin_out(cell, most, reporter)
    if len(places) < 2:
        return []
    layers = [cell.features([place])[0] for place in places]
    numbers = select_greedily(layers, torch.from_numpy(cell.labels[0]), cell.classes)
    few = tuple(places[number] for number in sorted(numbers))
    rows = []
    if len(few) > 1:
        rows.append(_score_several(cell, few, "greedy", phase))
    if len(places) > len(few):
        rows.append(_score_several(cell, tuple(places), "all", phase))
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


def _score_single(cell: Candidate, layer: LayerFeatures, phase: Phase) -> ProbeRow:
    train, val = _labelled(cell, [layer.place])
    x = train.features.numpy()
    labels, val_labels = cell.labels
    neighbours = neighbour_count(labels)
    free = _FreeScores(
        knn=knn_accuracy((x, labels), (val.features.numpy(), val_labels), neighbours),
        logme=logme_score(x, labels),
        h_score=compute_h_score(x, labels),
        leep=_leep(cell, layer, train),
    )
    probe = fit_logistic(train, val, CrossEntropy(cell.classes), phase.l2, phase.monitor)
    return _make_row(cell, [layer], "single", probe, val, free)


def _score_several(cell: Candidate, places: tuple[str, ...], kind: str, phase: Phase) -> ProbeRow:
    train, val = _labelled(cell, places)
    probe = fit_logistic(train, val, CrossEntropy(cell.classes), phase.l2, phase.monitor)
    return _make_row(cell, cell.selected(places), kind, probe, val, _FreeScores())


def _labelled(cell: Candidate, places: Sequence[str]) -> tuple[LabelledFeatures, LabelledFeatures]:
    train, val = cell.features(places)
    labels, val_labels = cell.labels
    return (
        LabelledFeatures(train, torch.from_numpy(labels)),
        LabelledFeatures(val, torch.from_numpy(val_labels)),
    )


def _make_row(
    cell: Candidate,
    layers: Sequence[LayerFeatures],
    kind: str,
    probe: LinearProbe,
    val: LabelledFeatures,
    free: _FreeScores,
) -> ProbeRow:
    with torch.inference_mode():
        logits = probe.layer(val.features).numpy()
    val_labels = cell.labels[1]
    scores = compute_scores(logits, val_labels)
    deepest = layers[-1]
    return ProbeRow(
        backbone=cell.backbone,
        resolution=cell.resolution,
        places=tuple(layer.place for layer in layers),
        kind=kind,
        features=val.features.shape[1],
        images=len(cell.labels[0]),
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
        bytes=sum(layer.bytes for layer in layers),
        right=logits.argmax(axis=1) == val_labels,
    )


def _leep(cell: Candidate, layer: LayerFeatures, train: LabelledFeatures) -> float | None:
    """Return LEEP at the end of the network; None elsewhere and where no source head fits."""
    if cell.source is None or layer.place != cell.taken[-1].place:
        return None
    weight, bias = cell.source
    if weight.shape[1] != train.features.shape[1]:
        return None
    logits = functional.linear(train.features, weight.float(), bias.float())
    return leep_score(logits.softmax(dim=1).numpy(), cell.labels[0])


def _thin_out(cell: Candidate, most: int, reporter: ProgressReporter) -> list[str]:
    """Return the layers to concatenate: all, or every 2nd, 3rd, … from the end, until they fit."""
    last_first = cell.taken[::-1]
    step = 1
    while _width(last_first[::step]) > most and step < len(last_first):
        step += 1
    if step > 1:
        reporter.log(
            f"{cell.backbone} at {cell.resolution} px has {_width(last_first):,} features; "
            f"every {step}. place goes side by side, so that they fit."
        )
    thinned = last_first[::step]
    return [layer.place for layer in thinned[::-1]]


def _width(layers: Sequence[LayerFeatures]) -> int:
    return sum(layer.train.shape[1] for layer in layers)
