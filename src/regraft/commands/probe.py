"""`regraft probe`: where to cut, at what resolution, which backbone, before anything is trained."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from regraft.commands.options import ProbeOptions as ProbeOptions
from regraft.commands.resolve import require_writable, resolve_plan, split_dataset
from regraft.data.dataset import Dataset
from regraft.data.images import Rows
from regraft.data.load import load_dataset
from regraft.data.split import Split
from regraft.errors import UserError
from regraft.features.parts import OpenedParts, PartImages, open_parts
from regraft.features.policy import time_forward_pass
from regraft.models.backbone import Backbone, check_backbone_name
from regraft.models.costs import layer_multiply_adds
from regraft.models.cut import cut_backbone
from regraft.models.network import Cut
from regraft.models.pool import BackbonePool
from regraft.models.transforms import Preprocess
from regraft.models.weights import source_classifier
from regraft.options import DataOptions, Options, PlanOverrides, RunDir
from regraft.plans.schema import Phase, Plan
from regraft.plans.toml import parse_plan, write_plan
from regraft.probing.candidates import (
    MAX_NEIGHBOURS,
    Candidate,
    LayerFeatures,
    ProbeRow,
    neighbour_count,
    score_concatenated,
    score_layers,
)
from regraft.probing.halving import parse_duration
from regraft.probing.learning_curve import CurvePoint, LearningCurve, measure_learning_curve
from regraft.probing.plots import plot_depth, plot_learning_curve, plot_probe_cost
from regraft.probing.rank_correlation import correlate_ranks
from regraft.probing.recommend import Recommendation, probe_front, recommend
from regraft.probing.successive_halving import (
    BudgetTooShortError,
    Dropped,
    SuccessiveHalving,
    TimeBudget,
)
from regraft.runs.directory import choose_dir, prepare_dir
from regraft.runs.folder import Run, find_finished, load_run
from regraft.runs.layout import PROBE
from regraft.runs.provenance import SPLIT_OPTIONS
from regraft.system.disk import ADVICE_REPEAT
from regraft.system.hardware import free_memory, tune_allocator
from regraft.system.locks import lock_path
from regraft.system.output import write_csv, write_json
from regraft.system.timer import format_duration
from regraft.training.linear import LabelledFeatures

RESOLUTIONS = (32, 48, 64, 96, 128, 160, 192, 224, 288, 384, 448, 512)
_AROUND = (-2, 1)  # steps of these around what suits the images
_MOST_FEATURES = 8192  # concatenated
_FEWEST_PER_CLASS = 5  # training images that a useful round needs
_FEWEST = 100

Key = tuple[str, int]  # a backbone and a resolution


@dataclass(frozen=True)
class Probe:
    """A finished probe.

    Args:
        path: Its folder.
        result: What it says, as plain data.
        plans: The recommended plans by budget, which `fit` takes.
    """

    path: Path
    result: dict[str, Any]
    plans: dict[str, Plan]

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {**self.result, "path": str(self.path)}

    def __repr__(self) -> str:
        return f"Probe({str(self.path)!r}: {self.result['verdict']})"


def probe(
    data: str | Path | Dataset,
    asked: ProbeOptions = ProbeOptions(),
    overrides: PlanOverrides = PlanOverrides(),
    options: Options = Options(),
    clock: Callable[[], float] = time.perf_counter,
) -> Probe:
    """Judge every layer by its frozen features, and recommend a plan for each budget.

    Args:
        data: The images, as for `fit`; the test part stays held out.
        asked: What is probed.
        overrides: Weights and precision.
        options: Images, cache, machine and folder.
        clock: Gives seconds.

    Raises:
        UserError: When names are unknown, images cannot be decoded, the folder is taken, nothing
            can be probed, or the budget is too short for one candidate.
    """
    tune_allocator()
    require_writable(options.run_dir.out)
    budget = None if asked.budget is None else parse_duration(asked.budget)
    _require_valid(asked)
    dataset = load_dataset(data, options.cache.dir)
    runs = _find_runs(asked, options)
    path = choose_dir(replace(options.run_dir, resume=False), "probe", dataset.name)
    started = clock()
    _require_free(path, options.run_dir)
    with lock_path(path, advice=ADVICE_REPEAT):
        prober = _Prober(dataset, asked, overrides, options)
        if budget is None:
            candidates = prober.judge_all()
        else:
            candidates = prober.judge_within(TimeBudget(budget, started, clock))
        conclusion = prober.conclude(candidates, runs)
        conclusion.result["seconds"] = round(clock() - started, 1)
        _write(path, conclusion, options.run_dir)
    return Probe(path, conclusion.result, conclusion.plans)


def _require_valid(asked: ProbeOptions) -> None:
    for side in asked.resolutions:
        if not 8 <= side <= 4096:
            raise UserError(
                f"--resolutions {side} was given. Expected sides in pixels from 8 to 4096. Write "
                "for example 64,96,128."
            )
    for folder in asked.runs or ():
        if not Path(folder).is_dir():
            raise UserError(
                f"--runs {folder} is no folder. Expected a run, a comparison, or a folder of them."
            )
    for name in asked.backbones:
        check_backbone_name(name)


def _find_runs(asked: ProbeOptions, options: Options) -> list[Run]:
    """Return finished runs; of those that nobody named, what cannot be read is left out."""
    folders = asked.runs if asked.runs is not None else [Path("runs"), Path("compare")]
    runs = []
    for path in find_finished([Path(folder) for folder in folders]):
        try:
            runs.append(load_run(path))
        except UserError as error:
            if asked.runs is not None:
                raise
            options.runtime.reporter.log(f"Leaving out a run: {error}")
    return runs


@dataclass(frozen=True)
class _Conclusion:
    """What follows from the judged candidates."""

    result: dict[str, Any]
    plans: dict[str, Plan]
    rows: list[ProbeRow]
    last: list[ProbeRow]
    recommendations: list[Recommendation]
    curve: LearningCurve


class _Prober:
    """A probe under way."""

    def __init__(
        self,
        dataset: Dataset,
        asked: ProbeOptions,
        overrides: PlanOverrides,
        options: Options,
    ) -> None:
        self.dataset = dataset
        self.overrides = overrides
        self.options = options
        self.reporter = options.runtime.reporter
        self.pool = BackbonePool(options.runtime.device)
        self.networks = _Networks(self.pool)
        self.rows: dict[Key, list[ProbeRow]] = {}  # of the last round of each candidate
        self.candidates: dict[Key, Candidate] = {}
        self.budget: TimeBudget | None = None
        self.dropped: list[dict[str, Any]] = []
        self.skipped: list[dict[str, Any]] = []
        split = split_dataset(dataset, options.data)
        self.plans: dict[Key, Plan] = {}
        for name in dict.fromkeys(asked.backbones):
            resolutions = dict.fromkeys(asked.resolutions) or self._around(name, split)
            for resolution in resolutions:
                self._admit((name, resolution), split)
        if not self.plans:
            first = self.skipped[0]
            raise UserError(f"Nothing can be probed. {first['name']}: {first['error']}")
        self.parts = self._open(split)
        self._report_neighbours()

    # which candidates there are

    def _around(self, name: str, split: Split) -> list[int]:
        """Return the resolutions to try where none were given; none for a skipped backbone."""
        try:
            suitable = self._resolve(replace(self.overrides, backbone=name), split).resolution
        except UserError as error:
            self._skip(name, error)
            return []
        if self.pool.info(name).fixed_resolution:
            return [suitable]
        distances = [abs(resolution - suitable) for resolution in RESOLUTIONS]
        middle = distances.index(min(distances))
        first = max(0, middle + _AROUND[0])
        return list(RESOLUTIONS[first : middle + _AROUND[1] + 1])

    def _resolve(self, overrides: PlanOverrides, split: Split) -> Plan:
        return resolve_plan("linear-probe", self.dataset, split, overrides, self.pool)

    def _admit(self, key: Key, split: Split) -> None:
        """Take a candidate in, or note why it is skipped."""
        backbone, resolution = key
        asked = replace(self.overrides, backbone=backbone, resolution=resolution)
        try:
            self.plans[key] = self._resolve(asked, split)
            # what flows through it tells whether it takes images of this size
            _ = self._backbone(key).values
        except UserError as error:
            self.plans.pop(key, None)
            self._skip(f"{backbone} {resolution} px", error)

    def _skip(self, name: str, error: UserError) -> None:
        self.skipped.append({"name": name, "error": str(error)})
        self.reporter.log(f"Skipping {name}: {error}")

    def _backbone(self, key: Key) -> Backbone:
        return self.networks.at(self.plans[key])

    def _open(self, split: Split) -> OpenedParts:
        """Decode train and val, as the largest candidate needs them."""
        largest = max(self.plans, key=lambda key: key[1])
        preprocess = Preprocess(self._backbone(largest).rules, largest[1])
        return open_parts(self.dataset, split, preprocess, self.options)

    def _report_neighbours(self) -> None:
        voting = neighbour_count(self.parts["train"].labels)
        if voting < MAX_NEIGHBOURS:
            self.reporter.log(
                f"The smallest class has {voting} training images, so {voting} neighbours vote and "
                f"not {MAX_NEIGHBOURS}."
            )

    # rounds

    def judge_all(self) -> list[Key]:
        """Judge all candidates on all images; returns them."""
        for key in self.plans:
            self._judge(key, self.parts["train"], self.parts["val"])
        return list(self.plans)

    def judge_within(self, budget: TimeBudget) -> list[Key]:
        """Judge candidates by successive halving; returns those of the last round."""
        self.budget = budget
        train = len(self.parts["train"])
        val = len(self.parts["val"])
        share = 1 + min(1.0, val / train)
        costs = {key: time_forward_pass(self._cut(key, "end")) * share for key in self.plans}
        fewest = max(_FEWEST, _FEWEST_PER_CLASS * len(self.dataset.classes))
        halving = SuccessiveHalving(costs, budget, train, min(train, fewest), on_drop=self._drop)
        try:
            for round in halving.rounds():
                for key in round.candidates:
                    started = budget.clock()
                    self._judge(key, *self._subsets(round.images))
                    best = max(row.accuracy for row in self.rows[key])
                    halving.record(key, best, budget.clock() - started)
        except BudgetTooShortError as error:
            raise _too_short(budget, error) from error
        return list(halving.candidates)

    def _subsets(self, images: int) -> tuple[PartImages, PartImages]:
        """Return so many training images, and at most as many validation images."""
        train = self.parts["train"]
        val = self.parts["val"]
        if images >= len(train):
            return train, val
        classes = len(np.unique(val.labels))
        seed = self.options.data.split_seed
        few = self.dataset.subset(self.parts.rows["train"], images, seed)
        most = max(min(images, len(val)), classes)
        judged = self.dataset.subset(self.parts.rows["val"], most, seed)
        return self._part("train", few), self._part("val", judged)

    def _part(self, name: str, rows: Rows) -> PartImages:
        taken = self.dataset.take(rows)
        return PartImages(name, taken, self.options.cache, self.options.runtime)

    def _drop(self, dropped: Dropped[Key]) -> None:
        backbone, resolution = dropped.candidate
        self.dropped.append({"name": f"{backbone} {resolution} px", "why": dropped.why})
        self.reporter.log(f"Dropping {backbone} at {resolution} px: {dropped.why}.")

    # one candidate

    def _cut(self, key: Key, layer: str) -> Cut:
        backbone = self._backbone(key)
        frozen, trained = cut_backbone(backbone, "head", (layer,))
        preprocess = Preprocess(backbone.rules, key[1])
        device = next(backbone.model.parameters()).device
        return Cut(frozen, trained, preprocess, self.plans[key].precision, device)

    def _judge(self, key: Key, train: PartImages, val: PartImages) -> None:
        """Take the features of every layer in one pass, and judge each layer alone."""
        backbone = self._backbone(key)
        self.reporter.log(f"{key[0]} at {key[1]} px, {len(train):,} training images")
        work = np.cumsum(list(layer_multiply_adds(backbone, fine=True).values()))
        names = [*list(backbone.blocks)[:-1], "end"]
        cuts = [self._cut(key, name) for name in names]
        train_entries = train.extract(cuts)
        val_entries = val.extract(cuts)
        seconds = sum(entry.seconds for entry in [*train_entries, *val_entries])
        total = max(1, int(work[-1]))
        layers = []
        for number, name in enumerate(names):
            done = int(work[number])
            features = train_entries[number]
            judged = val_entries[number]
            layers.append(
                LayerFeatures(
                    name,
                    features.arrays[0],
                    judged.arrays[0],
                    done,
                    seconds * float(work[number]) / total,
                    features.bytes + judged.bytes,
                )
            )
        plan = self.plans[key]
        self.candidates[key] = Candidate(
            key[0],
            key[1],
            tuple(layers),
            (train.labels, val.labels),
            len(self.dataset.classes),
            self._source_head(plan),
        )
        self.rows[key] = score_layers(self.candidates[key], plan.phases[0], self.reporter)

    def _source_head(self, plan: Plan) -> tuple[Tensor, Tensor] | None:
        """Return the class layer that came with the weights; one score (LEEP) needs it."""
        try:
            return self.networks.source_head(plan)
        except Exception as error:
            self.reporter.log(
                f"Doing without LEEP: the class layer of {plan.backbone} cannot be had "
                f"({type(error).__name__})."
            )
            return None

    # what follows

    def conclude(self, keys: Sequence[Key], runs: Sequence[Run]) -> _Conclusion:
        """Return what the probe says, and its recommendations among the last candidates."""
        self._score_concatenated(keys)
        last = [row for key in keys for row in self.rows[key]]
        rows = [row for judged in self.rows.values() for row in judged]
        counts = np.bincount(self.candidates[keys[0]].labels[1])
        recommendations = recommend(last, float(counts.max() / counts.sum()))
        best = recommendations[-1].row
        curve = self._learning_curve(best)
        comparable = [run for run in runs if self._is_comparable(run)]
        result = {
            "data": self.dataset.name,
            "classes": len(self.dataset.classes),
            "images": {"train": best.images, "val": len(best.right)},
            "asked": _split_options(self.options.data),
            "split_digest": self.parts.split.digest,
            "places": [row.to_json() for row in rows],
            "front": [row.name for row in probe_front(last)],
            "recommendations": [_describe(each) for each in recommendations],
            "learning_curve": {"of": best.name, **curve.to_json()},
            "hit_rate": [each.to_json() for each in correlate_ranks(last, comparable)],
            "runs": len(comparable),
            "neighbours": neighbour_count(self.candidates[keys[0]].labels[0]),
            "skipped": self.skipped,
            "dropped": self.dropped,
            "verdict": describe_probe(recommendations),
        }
        plans = {each.budget: self._recommended_plan(each) for each in recommendations}
        return _Conclusion(result, plans, rows, last, recommendations, curve)

    def _score_concatenated(self, keys: Sequence[Key]) -> None:
        """Judge several layers together, the best candidate first, while there is time."""
        ordered = sorted(keys, key=lambda key: -max(row.accuracy for row in self.rows[key]))
        for number, key in enumerate(ordered):
            if self._is_over():
                self.reporter.log(
                    "The budget is used up: layers are not concatenated for "
                    f"{len(keys) - number} of {len(keys)} candidates."
                )
                return
            phase = self.plans[key].phases[0]
            candidate = self.candidates[key]
            most = most_features(len(candidate.labels[0]), free_memory())
            self.rows[key] += score_concatenated(candidate, phase, most, self.reporter)

    def _is_over(self) -> bool:
        budget = self.budget
        return budget is not None and budget.spent > budget.seconds

    def _learning_curve(self, row: ProbeRow) -> LearningCurve:
        if self._is_over():
            self.reporter.log("The budget is used up: there is no learning curve.")
            return LearningCurve([CurvePoint(row.images, row.accuracy, None, 1)], None)
        key = (row.backbone, row.resolution)
        candidate = self.candidates[key]
        train, val = candidate.features(row.places)
        labels, val_labels = candidate.labels
        rows = self.dataset.subset(
            self.parts.rows["train"], row.images, self.options.data.split_seed
        )
        seen = self.dataset.take(rows)

        def draw(size: int, repeat: int) -> Rows:
            return seen.subset(np.arange(len(seen)), size, repeat)

        return measure_learning_curve(
            LabelledFeatures(train, torch.from_numpy(labels)),
            LabelledFeatures(val, torch.from_numpy(val_labels)),
            candidate.classes,
            self._phase(key),
            (row.accuracy, row.l2),
            draw,
        )

    def _phase(self, key: Key) -> Phase:
        return self.plans[key].phases[0]

    def _recommended_plan(self, recommendation: Recommendation) -> Plan:
        """Return the plan that takes the features of a recommended row."""
        row = recommendation.row
        until: Any = row.places
        if row.places == ("end",):
            until = ""
        elif len(row.places) == 1:
            until = row.places[0]
        values = self.plans[row.backbone, row.resolution].model_dump(mode="json")
        values["until"] = until
        values["technique"] = f"probe-{recommendation.budget}"
        return parse_plan(values)

    def _is_comparable(self, run: Run) -> bool:
        """Return whether a run began with these weights, and used these validation images."""
        try:
            predictions = run.predictions("val")
        except UserError:  # it is damaged
            return False
        val = self.parts["val"]
        own = dict(zip(val.dataset.keys.tolist(), val.labels.tolist(), strict=True))
        keys = predictions["keys"].tolist()
        other = dict(zip(keys, predictions["targets"].tolist(), strict=True))
        weights = self.overrides.weights or "pretrained"
        return own == other and run.plan.weights == weights


class _Networks:
    """The network used last, at any resolution, and the class layers that came with weights."""

    def __init__(self, pool: BackbonePool) -> None:
        self.pool = pool
        self._plan: Plan | None = None
        self._backbone: Backbone | None = None
        self._heads: dict[str, tuple[Tensor, Tensor] | None] = {}

    def at(self, plan: Plan) -> Backbone:
        """Return the backbone of a plan at the plan's resolution."""
        if self._backbone is None or self._plan is None:
            self._backbone = self.pool.load(plan)
        elif self._plan != plan:
            same = self._plan.backbone == plan.backbone and not self._backbone.fixed
            if same:
                self._backbone = self._backbone.at(plan.resolution)
            else:
                self._backbone = self.pool.load(plan)
        self._plan = plan
        return self._backbone

    def source_head(self, plan: Plan) -> tuple[Tensor, Tensor] | None:
        """Return the class layer of a backbone, asked for once."""
        if plan.backbone not in self._heads:
            self._heads[plan.backbone] = None  # where this fails, it is not tried again
            self._heads[plan.backbone] = source_classifier(plan.backbone, plan.weights)
        return self._heads[plan.backbone]


def most_features(images: int, memory: float) -> int:
    """Return how many features may be concatenated.

    They and their products fit into half of the free memory.

    Args:
        images: Number of training images.
        memory: Free bytes.
    """
    most = _MOST_FEATURES
    while most > 64 and 16 * (images * most + most * most) > memory / 2:
        most //= 2
    return most


def _split_options(options: DataOptions) -> dict[str, Any]:
    return {name: getattr(options, name) for name in SPLIT_OPTIONS}


def _describe(recommendation: Recommendation) -> dict[str, Any]:
    return {
        "budget": recommendation.budget,
        "why": recommendation.why,
        "plan": _plan_file(recommendation.budget),
        **recommendation.row.to_json(),
    }


def _plan_file(budget: str) -> str:
    return f"plan-{budget}.toml"


def _too_short(budget: TimeBudget, error: BudgetTooShortError) -> UserError:
    backbone, resolution = cast(Key, error.candidate)
    return UserError(
        f"A budget of {budget.seconds:g} s is too short: {format_duration(error.spent)} went into "
        f"getting ready. The smallest useful run is {backbone} at {resolution} px with "
        f"{error.images:,} training images. Pass --budget {error.needed}s or more, or fewer "
        "backbones and resolutions."
    )


def describe_probe(recommendations: Sequence[Recommendation]) -> str:
    """Return which row is best, and whether a cheaper one is as good, in a sentence."""
    best = recommendations[-1].row
    balanced = recommendations[1].row
    low, high = best.ci95
    text = (
        f"{best.name} reaches {best.accuracy:.1%} of {len(best.right):,} validation images with a "
        f"linear probe (95 % interval {low:.1%} to {high:.1%})"
    )
    if balanced is best:
        return f"{text}; everything cheaper is worse by more than chance."
    times = best.multiply_adds / max(1, balanced.multiply_adds)
    if times < 1.05:
        return f"{text}."
    return (
        f"{text}; {balanced.name} is not significantly different at {balanced.accuracy:.1%}, with "
        f"{times:.1f} times less work."
    )


def _require_free(path: Path, run_dir: RunDir) -> None:
    """Raise `UserError` before any work where the folder is taken, or cannot be made."""
    if not run_dir.overwrite:
        prepare_dir(path, "probe", run_dir, can_resume=False)
    absolute = path.absolute()
    there = next(folder for folder in (absolute, *absolute.parents) if folder.exists())
    if not os.access(there, os.W_OK):
        raise UserError(
            f"{path} cannot be written: {there} allows no writing. Give a folder that can with "
            "--out."
        )


def _write(path: Path, conclusion: _Conclusion, run_dir: RunDir) -> None:
    """Write tables, plots and plans; `probe.json` comes last."""
    result = conclusion.result
    prepare_dir(path, "probe", run_dir, can_resume=False)
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_csv(path / "places.csv", list(_table(result["places"])))
        for budget, plan in conclusion.plans.items():
            write_plan(plan, path / _plan_file(budget))
        plot_depth(conclusion.rows, path / "accuracy-by-depth.png")
        front = probe_front(conclusion.last)
        cost = path / "accuracy-against-cost.png"
        plot_probe_cost(conclusion.last, front, conclusion.recommendations, cost)
        name = result["learning_curve"]["of"]
        plot_learning_curve(conclusion.curve, name, path / "learning-curve.png")
        write_json(path / PROBE, result)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}). Give a folder that can with --out."
        ) from error


def _table(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield {**row, "places": " ".join(row["places"])}
