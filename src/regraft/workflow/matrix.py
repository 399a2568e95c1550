"""The probe: every place of every backbone at every resolution judged before anything is trained, in one pass a cell, and what follows from it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regraft.data.dataset import Dataset, Rows, Split
from regraft.errors import UserError
from regraft.models.backbone import Backbone, check_backbone_name, model_info
from regraft.models.cut import Prefix
from regraft.models.layers import cut_backbone, layer_multiply_adds
from regraft.models.weights import DEFAULT_BACKBONE, source_classifier
from regraft.plans.schema import Phase, Plan, parse_plan, write_plan
from regraft.probing.candidates import (
    NEIGHBOURS,
    Candidate,
    LayerFeatures,
    ProbeRow,
    neighbour_count,
    score_concatenated,
    score_layers,
)
from regraft.probing.halving import affordable_candidates, better_half, images_per_round
from regraft.probing.learning_curve import learning_curve
from regraft.probing.plots import plot_depth, plot_learning_curve, plot_probe_cost
from regraft.probing.rank_correlation import hit_rate
from regraft.probing.recommend import Recommendation, probe_front, recommend
from regraft.runs.folder import Run, prepare_dir, write_json, write_table
from regraft.system.files import ADVICE_REPEAT, lock_path
from regraft.system.hardware import free_memory
from regraft.workflow import keeping
from regraft.workflow.origin import SPLIT_BY
from regraft.workflow.parts import Part
from regraft.workflow.planning import Wish, make
from regraft.workflow.settings import Settings
from regraft.workflow.story import loaded, readable

RESOLUTIONS = (32, 48, 64, 96, 128, 160, 192, 224, 288, 384, 448, 512)
_AROUND = (-2, 1)  # steps of that ladder around what suits the images
_MOST_FEATURES = 8192  # side by side
_FEWEST_A_CLASS = 5  # training images that a round of the probe needs to be of use
_FEWEST = 100
_FOR_ROUNDS = (
    0.7  # of a budget; the rest is for places side by side, the learning curve and the pictures
)

Key = tuple[str, int]  # a backbone and a resolution


@dataclass(frozen=True)
class Probe:
    """A finished probe: its folder, what it says as plain data, and the recommended plans by budget."""

    path: Path
    told: dict[str, Any]
    plans: dict[str, Plan]

    def __repr__(self) -> str:
        return f"Probe({str(self.path)!r}: {self.told['verdict']})"


def probe(
    data: Dataset,
    out: Path,
    backbones: Sequence[str] = (DEFAULT_BACKBONE,),
    resolutions: Sequence[int] = (),
    budget: float | None = None,
    runs: Sequence[Run] = (),
    wish: Wish | None = None,
    settings: Settings | None = None,
) -> Probe:
    """Judge every place of every backbone at every resolution by its frozen features, and recommend a plan for each budget.

    Args:
        data: Labelled images; the test part stays shut.
        out: Folder for tables, pictures and plans.
        backbones: timm names; one that cannot be had, traced or shown images of a size is skipped with the reason.
        resolutions: Sides in pixels; those around what suits the images when empty.
        budget: Seconds for the whole probe; None takes every image in every cell.
        runs: Finished runs, to tell how well the scores rank what was really reached; those on other validation images are left out.
        wish: Weights and precision.
        settings: Where things are kept, and how many training images are used.

    Raises:
        UserError: When names are unknown, images unreadable, the folder is taken, nothing can be probed, or the budget is too short for one cell.
    """
    began = time.perf_counter()
    settings, wish = settings or Settings(), wish or Wish()
    for name in backbones:
        check_backbone_name(name)
    _check_folder(out, settings.overwrite)
    with lock_path(out, advice=ADVICE_REPEAT):
        work = _Work(
            data, list(dict.fromkeys(backbones)), list(dict.fromkeys(resolutions)), wish, settings
        )
        cells = work.every() if budget is None else work.within(budget, began)
        told, choices = work.conclude(cells, [one for one in runs if _comparable(one, work)])
        made = {choice.budget: work.plan_of(choice) for choice in choices}
        told["seconds"] = round(time.perf_counter() - began, 1)
        _write(
            out,
            told,
            work.judged,
            [row for cell in cells for row in work.judged[cell]],
            choices,
            made,
            settings.overwrite,
        )
    return Probe(out, told, made)


class _Work:
    """A probe under way."""

    def __init__(
        self,
        data: Dataset,
        backbones: list[str],
        resolutions: list[int],
        wish: Wish,
        settings: Settings,
    ) -> None:
        self.wish, self.settings, self.watcher = wish, settings, settings.watcher
        self.data = data
        self.skipped: list[dict[str, Any]] = []
        self.dropped: list[dict[str, Any]] = []
        self.judged: dict[Key, list[ProbeRow]] = {}  # the rows of the last round that a cell was in
        self.cells: dict[Key, Candidate] = {}
        self._network: tuple[Key, Backbone] | None = None
        self._sources: dict[
            str, tuple[Tensor, Tensor] | None
        ] = {}  # class layers that came with the weights
        self.deadline = float("inf")
        split = settings.split(data)
        self.plans: dict[Key, Plan] = {}
        for name in backbones:
            for resolution in resolutions or self._around(name, split):
                self._admit((name, resolution), split)
        if not self.plans:
            raise UserError(
                f"Nothing can be probed. {self.skipped[0]['name']}: {self.skipped[0]['error']}"
            )
        largest = max(self.plans, key=lambda key: key[1])
        self.data, split = readable(data, self._at(largest), ("train", "val"), settings)
        self.rows = (split.train, split.val)
        voting = neighbour_count(self.data.labels[split.train])
        if voting < NEIGHBOURS:
            self.watcher.say(
                f"The smallest class has {voting} training images, so {voting} neighbours vote and not {NEIGHBOURS}."
            )
        self.split_digest = split.digest

    # ── which cells there are

    def _around(self, name: str, split: Split) -> list[int]:
        """Return the resolutions to try where none were given; none for a backbone that is skipped."""
        try:
            suits = make(
                self.data, split, replace(self.wish, backbone=name), self.settings.device
            ).resolution
        except UserError as error:
            self._skip(name, error)
            return []
        if model_info(name).fixed_resolution:
            return [suits]
        middle = min(range(len(RESOLUTIONS)), key=lambda rung: abs(RESOLUTIONS[rung] - suits))
        return list(RESOLUTIONS[max(0, middle + _AROUND[0]) : middle + _AROUND[1] + 1])

    def _admit(self, key: Key, split: Split) -> None:
        """Take a cell in, or note why it is skipped."""
        try:
            self.plans[key] = make(
                self.data,
                split,
                replace(self.wish, backbone=key[0], resolution=key[1]),
                self.settings.device,
            )
            self._at(key).values  # noqa: B018  what flows through it tells whether it takes images of this size
        except UserError as error:
            self.plans.pop(key, None)
            self._skip(f"{key[0]} {key[1]} px", error)

    def _skip(self, name: str, error: UserError) -> None:
        self.skipped.append({"name": name, "error": str(error)})
        self.watcher.say(f"Skipping {name}: {error}")

    def _at(self, key: Key) -> Backbone:
        """Return the network of a cell; the one used last stays loaded."""
        if self._network is None or self._network[0] != key:
            same = (
                self._network is not None
                and self._network[0][0] == key[0]
                and not self._network[1].fixed
            )
            self._network = (
                key,
                self._network[1].at(key[1])
                if same and self._network
                else loaded(self.plans[key], self.settings),
            )
        return self._network[1]

    # ── rounds

    def every(self) -> list[Key]:
        """Judge all cells on all images; returns them."""
        for key in self.plans:
            self._judge(key, *self.rows)
        return list(self.plans)

    def within(self, budget: float, began: float) -> list[Key]:
        """Judge cells on more and more images, half of them dropped each time, until the budget is used; returns those of the last round."""
        train, val = self.rows
        least = min(len(train), max(_FEWEST, _FEWEST_A_CLASS * len(self.data.classes)))
        self.deadline = began + budget
        costs = {
            key: keeping.seconds(self._at(key), self._cut(key, "end"), self.plans[key])
            * (1 + min(1.0, len(val) / len(train)))
            for key in self.plans
        }

        def left() -> float:
            return budget * _FOR_ROUNDS - (time.perf_counter() - began)

        cheapest = min(costs, key=costs.__getitem__)
        if (
            costs[cheapest] * least < left()
        ):  # judging costs more than looking, and is learnt on the cheapest cell
            started = time.perf_counter()
            self._judge(cheapest, *self._few(least))
            judging = max(0.0, (time.perf_counter() - started) / least - costs[cheapest])
            costs = {key: cost + judging for key, cost in costs.items()}
        cells = [key for key in self.plans if key in affordable_candidates(costs, left(), least)]
        if not cells:
            raise _too_short(
                budget, time.perf_counter() - began, cheapest, costs[cheapest] * least, least
            )
        self._drop(
            [key for key in costs if key not in cells],
            "the budget has no room for it, even with the fewest images",
        )
        seen = 0
        while True:
            count = images_per_round([costs[key] for key in cells], left(), len(cells), len(train))
            if count <= seen:
                return cells
            seen = count = max(count, least)
            for key in cells:
                started = time.perf_counter()
                self._judge(key, *(self._few(count) if count < len(train) else self.rows))
                costs[key] = (time.perf_counter() - started) / count
            if count == len(train) or len(cells) == 1:
                return cells
            reached = {key: max(row.accuracy for row in self.judged[key]) for key in cells}
            kept = better_half(reached)
            why = f"after {count:,} training images its best place had {{:.3f}}, the last one kept {reached[kept[-1]]:.3f}"
            for key in cells:
                if key not in kept:
                    self._drop([key], why.format(reached[key]))
            cells = [
                key for key in cells if key in kept
            ]  # in their old order: one network after the other

    def _few(self, count: int) -> tuple[Rows, Rows]:
        """Return so many rows of train, and at most as many of val."""
        train, val = self.rows
        seed = self.settings.split_seed
        return self.data.subset(train, count, seed), self.data.subset(
            val, max(min(count, len(val)), len(np.unique(self.data.labels[val]))), seed
        )

    def _drop(self, keys: Sequence[Key], why: str) -> None:
        for key in keys:
            self.dropped.append({"name": f"{key[0]} {key[1]} px", "why": why})
            self.watcher.say(f"Dropping {key[0]} at {key[1]} px: {why}.")

    # ── one cell

    def _cut(self, key: Key, place: str) -> Prefix:
        return cut_backbone(self._at(key), "head", (place,))[0]

    def _judge(self, key: Key, train: Rows, val: Rows) -> None:
        """Take the features of every place in one pass, and judge each place alone."""
        model, plan = self._at(key), self.plans[key]
        self.watcher.say(f"{key[0]} at {key[1]} px, {len(train):,} training images")
        parts = [
            Part(name, self.data.take(rows), self.settings)
            for name, rows in (("train", train), ("val", val))
        ]
        works = list(np.cumsum(list(layer_multiply_adds(model, fine=True).values())))
        places = [*list(model.blocks)[:-1], "end"]
        prefixes = [self._cut(key, place) for place in places]
        named = [(prefix, prefix.digest()) for prefix in prefixes]
        entries = [part.kept(model, named, plan) for part in parts]
        spent = sum(entry.seconds for part in entries for entry in part)
        taken = tuple(
            LayerFeatures(
                place,
                mine.arrays[0],
                theirs.arrays[0],
                int(done),
                spent * float(done) / max(1, int(works[-1])),
                mine.bytes + theirs.bytes,
            )
            for place, done, mine, theirs in zip(places, works, *entries, strict=True)
        )
        labels = (parts[0].labels, parts[1].labels)
        self.cells[key] = Candidate(
            key[0], key[1], taken, labels, len(self.data.classes), self._source(plan)
        )
        self.judged[key] = score_layers(self.cells[key], self._phase(key), self.watcher)

    def _source(self, plan: Plan) -> tuple[Tensor, Tensor] | None:
        """Return the class layer that a backbone's weights came with, asked for once; one score needs it, so that it cannot be had is no error."""
        if plan.backbone not in self._sources:
            try:
                self._sources[plan.backbone] = source_classifier(plan.backbone, plan.weights)
            except Exception as error:
                self._sources[plan.backbone] = None
                self.watcher.say(
                    f"Doing without LEEP: the class layer of {plan.backbone} cannot be had ({type(error).__name__})."
                )
        return self._sources[plan.backbone]

    def _phase(self, key: Key) -> Phase:
        return self.plans[key].phases[0]

    # ── what follows

    def conclude(
        self, cells: Sequence[Key], runs: Sequence[Run]
    ) -> tuple[dict[str, Any], list[Recommendation]]:
        """Return what the probe says as plain data, and its choices among the cells of the last round."""
        best_first = sorted(cells, key=lambda key: -max(row.accuracy for row in self.judged[key]))
        for number, key in enumerate(best_first):
            if time.perf_counter() > self.deadline:
                self.watcher.say(
                    f"The budget is used up: places side by side are not tried in {len(cells) - number} of {len(cells)} cells."
                )
                break
            self.judged[key] += score_concatenated(
                self.cells[key], self._phase(key), self._most(key), self.watcher
            )
        last = [row for key in cells for row in self.judged[key]]
        everything = [row for rows in self.judged.values() for row in rows]
        counts = np.bincount(self.cells[cells[0]].labels[1])
        choices = recommend(last, float(counts.max() / counts.sum()))
        best = choices[-1].row
        return {
            "data": self.data.name,
            "classes": len(self.data.classes),
            "images": {"train": best.images, "val": len(best.right)},
            "asked": {name: getattr(self.settings, name) for name in SPLIT_BY},
            "split_digest": self.split_digest,
            "places": [row.plain() for row in everything],
            "front": [row.name for row in probe_front(last)],
            "recommendations": [
                {
                    "budget": one.budget,
                    "why": one.why,
                    "plan": f"plan-{one.budget}.toml",
                    **one.row.plain(),
                }
                for one in choices
            ],
            "learning_curve": {"of": best.name, **self._curve(best)},
            "hit_rate": hit_rate(last, runs),
            "runs": len(runs),
            "neighbours": neighbour_count(self.cells[cells[0]].labels[0]),
            "skipped": self.skipped,
            "dropped": self.dropped,
            "verdict": _verdict(choices),
        }, choices

    def _most(self, key: Key) -> int:
        """Return how many features may lie side by side, so that they and their products fit into half of the free memory."""
        images, most = len(self.cells[key].labels[0]), _MOST_FEATURES
        while most > 64 and 16 * (images * most + most * most) > free_memory() / 2:
            most //= 2
        return most

    def _curve(self, row: ProbeRow) -> dict[str, Any]:
        key = (row.backbone, row.resolution)
        cell, phase = self.cells[key], self._phase(key)
        x, x_val = cell.features(row.places)
        y, y_val = (torch.from_numpy(part) for part in cell.labels)
        seen = self.data.take(self.data.subset(self.rows[0], row.images, self.settings.split_seed))
        every, whole = np.arange(len(seen)), (row.accuracy, row.l2)
        if time.perf_counter() > self.deadline:
            self.watcher.say("The budget is used up: there is no learning curve.")
            return {
                "points": [
                    {"images": row.images, "accuracy": row.accuracy, "spread": None, "repeats": 1}
                ],
                "forecast": None,
            }
        return learning_curve(
            (x, y),
            (x_val, y_val),
            cell.classes,
            phase,
            whole,
            lambda size, number: seen.subset(every, size, number),
        )

    def plan_of(self, choice: Recommendation) -> Plan:
        """Return the plan that takes the features of a choice."""
        row = choice.row
        until: Any = (
            "" if row.places == ("end",) else row.places[0] if len(row.places) == 1 else row.places
        )
        return parse_plan(
            {
                **self.plans[row.backbone, row.resolution].model_dump(mode="json"),
                "until": until,
                "technique": f"probe-{choice.budget}",
            }
        )


def _comparable(one: Run, work: _Work) -> bool:
    """Whether a run began with the weights that the probe looks at, and was judged on these very validation images."""
    try:
        judged = one.predictions("val")
    except UserError:  # it is damaged
        return False
    mine = dict(
        zip(
            work.data.keys[work.rows[1]].tolist(),
            work.data.labels[work.rows[1]].tolist(),
            strict=True,
        )
    )
    same = dict(zip(judged["keys"].tolist(), judged["targets"].tolist(), strict=True)) == mine
    return same and one.plan.weights == (work.wish.weights or "pretrained")


def _too_short(budget: float, spent: float, cell: Key, seconds: float, least: int) -> UserError:
    needed = int(np.ceil((spent + seconds) / _FOR_ROUNDS + 1))
    return UserError(
        f"A budget of {budget:g} s is too short: {spent:.1f} s went into getting ready. The smallest useful run is {cell[0]} at {cell[1]} px with "
        f"{least:,} training images. Pass --budget {needed}s or more, or fewer backbones and resolutions."
    )


def _verdict(choices: Sequence[Recommendation]) -> str:
    best, alike = choices[-1].row, choices[1].row
    low, high = best.ci95
    text = f"{best.name} reaches {best.accuracy:.1%} of {len(best.right):,} validation images with a linear probe (95 % interval {low:.1%} to {high:.1%})"
    if alike is best:
        return f"{text}; everything cheaper is worse by more than chance."
    times = best.multiply_adds / max(1, alike.multiply_adds)
    return (
        f"{text}; {alike.name} cannot be told apart from it at {alike.accuracy:.1%}, with {times:.1f} times less work."
        if times >= 1.05
        else f"{text}."
    )


def _check_folder(out: Path, overwrite: bool) -> None:
    """Raise `UserError` before any work where the folder is taken, or cannot be made; nothing is removed yet."""
    if not overwrite:
        prepare_dir(out, "probe", None, False)
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK):
        raise UserError(
            f"{out} cannot be written: {there} allows no writing. Give a folder that can with --out."
        )


def _write(
    out: Path,
    told: dict[str, Any],
    judged: dict[Key, list[ProbeRow]],
    last: list[ProbeRow],
    choices: Sequence[Recommendation],
    made: dict[str, Plan],
    overwrite: bool,
) -> None:
    """Write tables, pictures and plans; `probe.json` comes last."""
    prepare_dir(out, "probe", None, overwrite)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_table(
            out / "places.csv",
            [{**row, "places": " ".join(row["places"])} for row in told["places"]],
        )
        for budget, plan in made.items():
            write_plan(plan, out / f"plan-{budget}.toml")
        plot_depth([row for rows in judged.values() for row in rows], out / "accuracy-by-depth.png")
        plot_probe_cost(last, probe_front(last), choices, out / "accuracy-against-cost.png")
        plot_learning_curve(
            told["learning_curve"], told["learning_curve"]["of"], out / "learning-curve.png"
        )
        write_json(out / "probe.json", told)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror}). Give a folder that can with --out."
        ) from error
