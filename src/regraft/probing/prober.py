"""A probe under way: candidates are judged on their features, at once or in rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch

from regraft.data.images import Rows
from regraft.errors import UserError
from regraft.features.parts import OpenedParts, PartImages
from regraft.models.costs import layer_multiply_adds
from regraft.options import Options
from regraft.plans.schema import Plan
from regraft.probing.candidates import (
    MAX_NEIGHBOURS,
    Candidate,
    LayerFeatures,
    ProbeRow,
    neighbour_count,
    score_concatenated,
    score_layers,
)
from regraft.probing.grid import Key, ProbeGrid
from regraft.probing.instruments import Instruments, most_features
from regraft.probing.learning_curve import CurvePoint, LearningCurve, measure_learning_curve
from regraft.probing.networks import ProbeNetworks
from regraft.probing.rank_correlation import correlate_ranks
from regraft.probing.recommend import recommend
from regraft.probing.result import ProbeResult
from regraft.probing.successive_halving import (
    BudgetTooShortError,
    Dropped,
    SuccessiveHalving,
    TimeBudget,
)
from regraft.runs.folder import Run
from regraft.system.timer import format_duration
from regraft.training.linear import LabelledFeatures

_FEWEST_PER_CLASS = 5  # training images that a useful round needs
_FEWEST = 100


class Prober:
    """Judges the candidates of a grid, and concludes what is best.

    Args:
        grid: The candidates.
        parts: The images of train and val.
        options: Images, cache and machine.
        budget: The time that there is; None judges every candidate on all images.
        instruments: Clock, speed and free memory.
    """

    def __init__(
        self,
        grid: ProbeGrid,
        parts: OpenedParts,
        options: Options,
        budget: TimeBudget | None = None,
        instruments: Instruments = Instruments(),
    ) -> None:
        self.grid = grid
        self.parts = parts
        self.options = options
        self.budget = budget
        self.instruments = instruments
        self.reporter = options.runtime.reporter
        self.rows: dict[Key, list[ProbeRow]] = {}  # of the last round of each candidate
        self.candidates: dict[Key, Candidate] = {}
        self.dropped: list[Dropped[Key]] = []
        self.last: list[Key] = []  # candidates of the last round

    def judge(self) -> None:
        """Judge the candidates, each layer alone.

        Raises:
            UserError: When the budget is too short for one candidate.
        """
        self._report_neighbours()
        if self.budget is None:
            self._judge_all()
        else:
            self._judge_within(self.budget)

    def conclude(self, runs: Sequence[Run] = ()) -> ProbeResult:
        """Concatenate layers of the last candidates, and return what the probe found.

        Args:
            runs: Finished runs on the same validation images, which the scores should rank.
        """
        self._score_concatenated()
        last = [row for key in self.last for row in self.rows[key]]
        labels, val_labels = self.candidates[self.last[0]].labels
        counts = np.bincount(val_labels)
        recommendations = recommend(last, float(counts.max() / counts.sum()))
        dataset = self.parts.dataset
        return ProbeResult(
            data=dataset.name,
            classes=len(dataset.classes),
            data_options=self.options.data,
            split_digest=self.parts.split.digest,
            rows=[row for judged in self.rows.values() for row in judged],
            last=last,
            recommendations=recommendations,
            learning_curve=self._measure_curve(recommendations[-1].row),
            correlations=correlate_ranks(last, runs),
            runs=len(runs),
            neighbours=neighbour_count(labels),
            skipped=self.grid.skipped,
            dropped=self.dropped,
        )

    def _report_neighbours(self) -> None:
        voting = neighbour_count(self.parts["train"].labels)
        if voting < MAX_NEIGHBOURS:
            self.reporter.log(
                f"The smallest class has {voting} training images, so {voting} neighbours vote and "
                f"not {MAX_NEIGHBOURS}."
            )

    def _judge_all(self) -> None:
        for key in self.grid.plans:
            self._judge(key, self.parts["train"], self.parts["val"])
        self.last = list(self.grid.plans)

    def _judge_within(self, budget: TimeBudget) -> None:
        """Judge candidates by successive halving."""
        train = len(self.parts["train"])
        fewest = max(_FEWEST, _FEWEST_PER_CLASS * len(self.parts.dataset.classes))
        least = min(train, fewest)
        halving = SuccessiveHalving(self._costs(), budget, train, least, on_drop=self._drop)
        try:
            for round in halving.rounds():
                for key in round.candidates:
                    started = budget.clock()
                    self._judge(key, *self._subsets(round.images))
                    best = max(row.accuracy for row in self.rows[key])
                    halving.record(key, best, budget.clock() - started)
        except BudgetTooShortError as error:
            raise _too_short(budget, error) from error
        self.last = list(halving.candidates)

    def _costs(self) -> dict[Key, float]:
        """Return the seconds that a training image, and its share of val, take in each network."""
        train = len(self.parts["train"])
        val = len(self.parts["val"])
        share = 1 + min(1.0, val / train)
        costs = {}
        for key, plan in self.grid.plans.items():
            cut = self.grid.networks.cut(plan, "end")
            costs[key] = self.instruments.time_forward(cut) * share
        return costs

    def _subsets(self, images: int) -> tuple[PartImages, PartImages]:
        """Return so many training images, and at most as many validation images."""
        train = self.parts["train"]
        val = self.parts["val"]
        if images >= len(train):
            return train, val
        classes = len(np.unique(val.labels))
        most = max(min(images, len(val)), classes)
        return self._subset("train", images), self._subset("val", most)

    def _subset(self, name: str, images: int) -> PartImages:
        dataset = self.parts.dataset
        rows = dataset.subset(self.parts.rows[name], images, self.options.data.split_seed)
        return PartImages(name, dataset.take(rows), self.options.cache, self.options.runtime)

    def _drop(self, dropped: Dropped[Key]) -> None:
        self.dropped.append(dropped)
        backbone, resolution = dropped.candidate
        self.reporter.log(f"Dropping {backbone} at {resolution} px: {dropped.why}.")

    def _judge(self, key: Key, train: PartImages, val: PartImages) -> None:
        """Compute the features of every layer in one pass, and judge each layer alone."""
        backbone, resolution = key
        self.reporter.log(f"{backbone} at {resolution} px, {len(train):,} training images")
        plan = self.grid.plans[key]
        candidate = extract_candidate(self.grid.networks, plan, train, val)
        self.candidates[key] = candidate
        self.rows[key] = score_layers(candidate, plan.phases[0], self.reporter)

    def _score_concatenated(self) -> None:
        """Judge several layers together, the best candidate first, while there is time."""

        def best_first(key: Key) -> float:
            return -max(row.accuracy for row in self.rows[key])

        for number, key in enumerate(sorted(self.last, key=best_first)):
            if self._is_over():
                self.reporter.log(
                    "The budget is used up: layers are not concatenated for "
                    f"{len(self.last) - number} of {len(self.last)} candidates."
                )
                return
            phase = self.grid.plans[key].phases[0]
            candidate = self.candidates[key]
            most = most_features(len(candidate.labels[0]), self.instruments.free_memory())
            self.rows[key] += score_concatenated(candidate, phase, most, self.reporter)

    def _is_over(self) -> bool:
        budget = self.budget
        return budget is not None and budget.spent > budget.seconds

    def _measure_curve(self, row: ProbeRow) -> LearningCurve:
        """Return the learning curve of a row; its one point where the budget is used up."""
        if self._is_over():
            self.reporter.log("The budget is used up: there is no learning curve.")
            return LearningCurve([CurvePoint(row.images, row.accuracy, None, 1)], None)
        key = (row.backbone, row.resolution)
        candidate = self.candidates[key]
        train, val = candidate.features(row.layers)
        labels, val_labels = candidate.labels
        dataset = self.parts.dataset
        seed = self.options.data.split_seed
        seen = dataset.take(dataset.subset(self.parts.rows["train"], row.images, seed))

        def draw(size: int, repeat: int) -> Rows:
            return seen.subset(np.arange(len(seen)), size, repeat)

        return measure_learning_curve(
            LabelledFeatures(train, torch.from_numpy(labels)),
            LabelledFeatures(val, torch.from_numpy(val_labels)),
            candidate.classes,
            self.grid.plans[key].phases[0],
            (row.accuracy, row.l2),
            draw,
        )


def extract_candidate(
    networks: ProbeNetworks, plan: Plan, train: PartImages, val: PartImages
) -> Candidate:
    """Return a backbone at a resolution with the features of every layer, by one pass."""
    backbone = networks.load(plan)
    work = np.cumsum(list(layer_multiply_adds(backbone, fine=True).values()))
    names = [*list(backbone.blocks)[:-1], "end"]
    cuts = [networks.cut(plan, name) for name in names]
    train_entries = train.extract(cuts)
    val_entries = val.extract(cuts)
    seconds = sum(entry.seconds for entry in [*train_entries, *val_entries])
    total = max(1, int(work[-1]))
    layers = []
    for number, name in enumerate(names):
        train_entry = train_entries[number]
        val_entry = val_entries[number]
        layers.append(
            LayerFeatures(
                layer=name,
                train=train_entry.arrays[0],
                val=val_entry.arrays[0],
                multiply_adds=int(work[number]),
                seconds=seconds * float(work[number]) / total,
                bytes=train_entry.bytes + val_entry.bytes,
            )
        )
    return Candidate(
        backbone=plan.backbone,
        resolution=plan.resolution,
        layers=tuple(layers),
        labels=(train.labels, val.labels),
        classes=len(train.dataset.classes),
        source_head=networks.source_head(plan),
    )


def _too_short(budget: TimeBudget, error: BudgetTooShortError) -> UserError:
    backbone, resolution = cast(Key, error.candidate)
    return UserError(
        f"A budget of {budget.seconds:g} s is too short: {format_duration(error.spent)} went into "
        f"getting ready. The smallest useful run is {backbone} at {resolution} px with "
        f"{error.images:,} training images. Pass --budget {error.needed}s or more, or fewer "
        "backbones and resolutions."
    )
