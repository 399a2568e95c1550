"""One cell of the probe, a backbone at a resolution: what the pooled features of each place, and of several side by side, are worth.

Refuses networks: features that were computed before come in, rows of numbers go out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regraft.evaluation import transferability
from regraft.evaluation.scores import compute_scores
from regraft.evaluation.transferability import knn_accuracy, leep_score, logme_score
from regraft.plans.schema import Phase
from regraft.probing.greedy_selection import select_greedily
from regraft.system.progress import SILENT, ProgressReporter
from regraft.training.linear import fit_linear_probe

NEIGHBOURS = 20  # that vote, where every class has as many


@dataclass(frozen=True)
class LayerFeatures:
    """The features of one place for every image of train and val, float16 `(n, d)`, and what they cost."""

    place: str
    train: NDArray[np.float16]
    val: NDArray[np.float16]
    multiply_adds: int  # from the image up to here
    seconds: float  # of one pass over train and val up to here
    bytes: int


@dataclass(frozen=True)
class Candidate:
    """A backbone at a resolution, with the features of its places in order of depth; the last place is the end of the network."""

    backbone: str
    resolution: int
    taken: tuple[LayerFeatures, ...]
    labels: tuple[NDArray[np.int64], NDArray[np.int64]]  # of train and val
    classes: int
    source: tuple[Tensor, Tensor] | None = (
        None  # weight and bias of the head that the backbone's weights came with
    )

    def features(self, places: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the features of some places side by side, float32, for train and for val."""
        chosen = [one for one in self.taken if one.place in places]
        train, val = (
            np.concatenate([getattr(one, part) for one in chosen], axis=1)
            for part in ("train", "val")
        )
        return torch.from_numpy(train).float(), torch.from_numpy(val).float()


@dataclass(frozen=True)
class ProbeRow:
    """What the features of one place, or of several side by side, reach on validation, and what they cost."""

    backbone: str
    resolution: int
    places: tuple[str, ...]
    kind: str  # "single", "greedy" (a few places chosen one after the other) or "all"
    features: int
    images: int  # of train
    accuracy: float  # of the solved linear probe
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
        """What people call it."""
        where = self.places[0] if self.kind == "single" else f"{len(self.places)} places"
        return f"{self.backbone} {self.resolution} px {where}"

    def plain(self) -> dict[str, Any]:
        """Return the row as it is written to JSON."""
        return {"name": self.name} | {
            one.name: getattr(self, one.name) for one in fields(self) if one.name != "right"
        }


def score_layers(
    cell: Candidate, phase: Phase, watcher: ProgressReporter = SILENT
) -> list[ProbeRow]:
    """Return a row for each place alone, in order of depth.

    Args:
        cell: The features.
        phase: How the linear probe is solved: its L2 path, and what decides on validation.
        watcher: Hears how far it is.
    """
    found = []
    for number, one in enumerate(cell.taken):
        found.append(_row(cell, (one.place,), "single", phase))
        watcher.step(f"judge {cell.backbone} {cell.resolution} px", number + 1, len(cell.taken))
    return found


def score_concatenated(
    cell: Candidate, phase: Phase, most: int, watcher: ProgressReporter = SILENT
) -> list[ProbeRow]:
    """Return a row for a few places side by side, chosen one after the other, and one for all of them; less where that is no more than one place.

    Args:
        cell: The features.
        phase: How the linear probe is solved.
        most: Numbers an image that may lie side by side; with more, places are left out evenly, and that is said.
        watcher: Hears of it.
    """
    kept = _thinned(cell, most, watcher)
    if len(kept) < 2:
        return []
    chosen = select_greedily(
        [cell.features([place])[0] for place in kept],
        torch.from_numpy(cell.labels[0]),
        cell.classes,
    )
    few = (
        [_row(cell, tuple(kept[number] for number in sorted(chosen)), "greedy", phase)]
        if len(chosen) > 1
        else []
    )
    return few + ([_row(cell, tuple(kept), "all", phase)] if len(kept) > len(chosen) else [])


def _row(cell: Candidate, places: tuple[str, ...], kind: str, phase: Phase) -> ProbeRow:
    x, x_val = cell.features(places)
    y, y_val = (torch.from_numpy(labels) for labels in cell.labels)
    solved = fit_linear_probe((x, y), (x_val, y_val), cell.classes, phase.l2, phase.monitor)
    with torch.inference_mode():
        logits = solved.layer(x_val).numpy()
    scores = compute_scores(logits, cell.labels[1])
    chosen = [one for one in cell.taken if one.place in places]
    single = (
        _free_scores(cell, places[0], x.numpy(), x_val.numpy())
        if kind == "single"
        else dict.fromkeys(("knn", "logme", "h_score", "leep"))
    )
    return ProbeRow(
        cell.backbone,
        cell.resolution,
        places,
        kind,
        x.shape[1],
        len(y),
        scores.accuracy,
        scores.ci95,
        scores.loss,
        solved.l2,
        **single,
        multiply_adds=chosen[-1].multiply_adds,
        seconds=chosen[-1].seconds,
        bytes=sum(one.bytes for one in chosen),
        right=logits.argmax(axis=1) == cell.labels[1],
    )


def _free_scores(
    cell: Candidate, place: str, x: NDArray[np.float32], x_val: NDArray[np.float32]
) -> dict[str, float | None]:
    """Return the accuracy of nearest neighbours, and the training-free scores on the train part."""
    y, y_val = cell.labels
    k = neighbour_count(y)
    leep = None
    if (
        cell.source is not None
        and place == cell.taken[-1].place
        and cell.source[0].shape[1] == x.shape[1]
    ):
        weight, bias = cell.source
        leep = leep_score(
            torch.nn.functional.linear(torch.from_numpy(x), weight.float(), bias.float())
            .softmax(dim=1)
            .numpy(),
            y,
        )
    return {
        "knn": knn_accuracy((x, y), (x_val, y_val), k),
        "logme": logme_score(x, y),
        "h_score": transferability.h_score(x, y),
        "leep": leep,
    }


def neighbour_count(labels: NDArray[np.int64]) -> int:
    """Return how many neighbours vote: 20, or as many as the smallest class has images."""
    return min(NEIGHBOURS, int(np.unique(labels, return_counts=True)[1].min()))


def _thinned(cell: Candidate, most: int, watcher: ProgressReporter) -> list[str]:
    """Return the places that may lie side by side: all, or every second, third, … counted from the end, until they fit."""
    step, places = 1, [one.place for one in cell.taken]
    width = {one.place: one.train.shape[1] for one in cell.taken}
    while sum(width[place] for place in places[::-1][::step]) > most and step < len(places):
        step += 1
    if step > 1:
        watcher.say(
            f"{cell.backbone} at {cell.resolution} px has {sum(width.values()):,} features; every {step}. place goes side by side, so that they fit."
        )
    return places[::-1][::step][::-1]
