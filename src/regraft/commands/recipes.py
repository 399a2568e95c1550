"""`regraft recipes`: the source experiments on any images, measured beside what was reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from regraft.commands.compare import Comparison, compare_ways
from regraft.commands.fit import FitData, fit_plan
from regraft.commands.options import Ways
from regraft.commands.resolve import default_precision, resolve_plan, split_dataset
from regraft.data.dataset import Dataset
from regraft.data.load import load_dataset
from regraft.errors import UserError
from regraft.models.backbone import Backbone, load_backbone, model_info
from regraft.models.layers import matching_stage
from regraft.models.network import TransferNetwork
from regraft.models.pool import BackbonePool
from regraft.models.summary import LayerRow, summarize_layers
from regraft.options import Options, PlanOverrides
from regraft.plans.recipes import Recipe, find_recipe
from regraft.plans.schema import RESERVED_LAYERS, Phase, Plan
from regraft.plans.toml import override_plan
from regraft.runs.directory import choose_dir
from regraft.runs.folder import Run
from regraft.runs.provenance import describe_origin
from regraft.system.hardware import tune_allocator
from regraft.system.progress import ProgressReporter

CIFAR_CLASSES = 10
_ARITHMETIC = {"precision", "train_precision"}
_DESCRIBED = ("name", "source", "technique", "about", "assumed", "reported", "counted")


@dataclass(frozen=True)
class RecipeSummary:
    """A recipe's plan, provenance and reported figures, with its layers and parameters.

    Args:
        recipe: The recipe.
        plan: Its plan, after what was asked for.
        classes: Number of classes.
        layers: A row for each layer.
        parameters: Parameters by what happens to them, and `statistics`.
        is_reported: Whether this is the very network that was reported.
    """

    recipe: Recipe
    plan: Plan
    classes: int
    layers: tuple[LayerRow, ...]
    parameters: dict[str, int]
    is_reported: bool

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        described = describe_recipe(self.recipe)
        if not self.is_reported:
            described["counted"] = {}  # how counts differ is said of the reported network alone
        return {
            **described,
            "plan": self.plan.model_dump(mode="json"),
            "classes": self.classes,
            "layers": [row.to_json() for row in self.layers],
            "parameters": self.parameters,
        }


@dataclass(frozen=True)
class RecipeMeasures:
    """What a run of a recipe measured.

    Args:
        train_loss: Mean log-loss of train, in eval mode and without augmentation.
        train_accuracy: The same of accuracy.
        val_loss: Mean log-loss of val.
        val_accuracy: Accuracy of val.
        gap: Accuracy of train minus that of val.
        minutes: That it took, with its share of what several runs computed once.
        parameters: Number of parameters by what happens to them.
        images: Number of images of train and val.
        epochs: Of all phases.
        frozen_seconds: Computing the frozen part once, or its share of a pass for several; None
            where it was not cached.
        frozen_every_epoch_seconds: About what every epoch would have cost in all; None as above.
    """

    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    gap: float
    minutes: float
    parameters: dict[str, int]
    images: dict[str, int]
    epochs: int
    frozen_seconds: float | None
    frozen_every_epoch_seconds: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the measures as they are written to JSON."""
        return asdict(self)


@dataclass(frozen=True)
class RecipeRun:
    """A finished run of a recipe, with what was measured beside what was reported."""

    recipe: Recipe
    run: Run
    measured: RecipeMeasures

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {
            **describe_recipe(self.recipe),
            "backbone": self.run.plan.backbone,
            "measured": self.measured.to_json(),
            "path": str(self.run.path),
        }


@dataclass(frozen=True)
class RecipeComparison:
    """A comparison of recipes, each with what was reported of it."""

    comparison: Comparison
    runs: tuple[RecipeRun, ...]

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        recipes = [run.to_json() for run in self.runs]
        return {**self.comparison.to_json(), "recipes": recipes}


def show_recipe(
    name: str, classes: int = CIFAR_CLASSES, overrides: PlanOverrides = PlanOverrides()
) -> RecipeSummary:
    """Return a recipe with its layers and parameters, as counted here.

    Args:
        name: Of the recipe.
        classes: Number of classes.
        overrides: Another backbone, resolution, weights or changes.

    Raises:
        UserError: For an unknown recipe, or one that does not fit the backbone.
    """
    recipe = find_recipe(name)
    plan = recipe_plan(recipe, overrides)
    plan.check(model_info(plan.backbone), ())
    backbone = load_backbone(plan.backbone, "random", plan.resolution, plan.seed)
    network = TransferNetwork(backbone, plan, [str(number) for number in range(classes)])
    layers = tuple(summarize_layers(network))
    parameters = network.count_parameters()
    parameters["statistics"] = sum(row.statistics for row in layers)
    arithmetic = recipe.plan.model_dump(include=_ARITHMETIC)
    is_own_plan = {**plan.model_dump(), **arithmetic} == recipe.plan.model_dump()
    is_reported = is_own_plan and classes == CIFAR_CLASSES
    return RecipeSummary(recipe, plan, classes, layers, parameters, is_reported)


def run_recipe(
    name: str,
    data: str | Path | Dataset,
    overrides: PlanOverrides = PlanOverrides(),
    options: Options = Options(),
    epochs: int | None = None,
) -> RecipeRun:
    """Return the finished run of a recipe; the test part stays held out.

    Args:
        name: Of the recipe.
        data: The images.
        overrides: Another backbone, resolution, weights or changes.
        options: Images, cache, machine and folder. With `train_images` and no `val_images`, no
            more validation images are used than training images.
        epochs: At most so many in every phase.

    Raises:
        UserError: For an unknown recipe, or one that does not fit backbone, weights or images.
    """
    recipe = find_recipe(name)
    options, images = _prepare(data, options)
    pool = BackbonePool(options.runtime.device)
    own = recipe_plan(recipe, overrides, epochs, pool.device)
    asked = PlanOverrides(plan=own)
    plan = resolve_plan(name, images.dataset, images.split, asked, pool)
    path = choose_dir(options.run_dir, "runs", f"{images.dataset.name}-{name}")
    return measure_recipe(recipe, fit_plan(plan, images, path, options, pool))


def compare_recipes(
    names: Sequence[str],
    data: str | Path | Dataset,
    overrides: PlanOverrides = PlanOverrides(),
    options: Options = Options(),
    epochs: int | None = None,
) -> RecipeComparison:
    """Return the comparison of several recipes; arguments as for `run_recipe`.

    The test part is opened once, at the end, for all of them.
    """
    recipes = [find_recipe(name) for name in dict.fromkeys(names)]
    options, images = _prepare(data, options)
    runtime = options.runtime
    plans: dict[str, Path | Plan] = {}
    for recipe in recipes:
        plans[recipe.name] = recipe_plan(
            recipe, overrides, epochs, runtime.device, runtime.reporter
        )
    ways = Ways(techniques=(), backbones=(), plans=plans)
    path = choose_dir(options.run_dir, "compare", f"{images.dataset.name}-recipes")
    comparison = compare_ways(images, path, ways, PlanOverrides(), options)
    runs = [measure_recipe(find_recipe(run.name), run) for run in comparison.runs]
    return RecipeComparison(comparison, tuple(runs))


def recipe_plan(
    recipe: Recipe,
    overrides: PlanOverrides,
    epochs: int | None = None,
    device: str = "auto",
    reporter: ProgressReporter | None = None,
) -> Plan:
    """Return a recipe's plan after what a user asks for, in arithmetic that suits the machine.

    Args:
        recipe: The recipe.
        overrides: What a user asks for.
        epochs: At most so many in every phase.
        device: "auto", "cpu" or "cuda".
        reporter: Hears of layers that were moved to another backbone; without one they are
            refused.

    Raises:
        UserError: When it cuts at a stage that the backbone lacks; offers the one at which images
            have shrunk as much.
    """
    own = recipe.plan
    fields = overrides.fields()
    if own.weights == "random":
        fields.pop("weights", None)  # from scratch is from scratch
    values = {**own.model_dump(mode="json"), **default_precision(device), **fields}
    plan = override_plan(values, overrides.overrides)
    if plan.backbone != own.backbone:
        plan = _move_layers(recipe, plan, reporter)
    if epochs is None:
        return plan
    phases = [_limit_epochs(phase, epochs) for phase in plan.phases]
    return plan.model_copy(update={"phases": tuple(phases)})


def _limit_epochs(phase: Phase, epochs: int) -> Phase:
    if phase.optimizer == "lbfgs":
        return phase
    return phase.model_copy(update={"epochs": min(epochs, phase.epochs)})


def measure_recipe(recipe: Recipe, run: Run) -> RecipeRun:
    """Return what a run of a recipe measured, beside what was reported."""
    scores = run.scores
    train = scores.train
    val = scores.val
    shared = scores.shared_seconds
    epochs = sum("epoch" in row for row in run.history())
    frozen_seconds = None
    every_epoch = None
    if scores.cache.bytes:  # where it was not cached, nobody knows what every epoch took
        once = scores.seconds.extract + shared
        frozen_seconds = round(once, 1)
        every_epoch = round(once / _count_views(run.plan) * max(1, epochs), 1)
    measured = RecipeMeasures(
        train_loss=train.loss,
        train_accuracy=train.accuracy,
        val_loss=val.loss,
        val_accuracy=val.accuracy,
        gap=train.accuracy - val.accuracy,
        minutes=round(scores.work_seconds / 60, 2),
        parameters=scores["parameters"],
        images={"train": train.n, "val": val.n},
        epochs=epochs,
        frozen_seconds=frozen_seconds,
        frozen_every_epoch_seconds=every_epoch,
    )
    return RecipeRun(recipe, run, measured)


def _count_views(plan: Plan) -> int:
    """Return how many augmented views of each image the frozen part computes at most."""
    views = 1
    for phase in plan.phases:
        if phase.optimizer != "lbfgs":
            views = max(views, phase.looks)
    return views


def describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe's words and figures as plain data."""
    return {name: getattr(recipe, name) for name in _DESCRIBED}


def _prepare(data: str | Path | Dataset, options: Options) -> tuple[Options, FitData]:
    """Return the images, with as few for validation as there are to train on."""
    tune_allocator()
    dataset = load_dataset(data, options.cache.dir)
    chosen = options.data
    split = split_dataset(dataset, chosen)
    whole = len(split.val)
    train_images = chosen.train_images
    if train_images is not None and chosen.val_images is None and train_images < whole:
        chosen = replace(chosen, val_images=train_images)
        split = split_dataset(dataset, chosen)
        options.runtime.reporter.log(
            f"Validating on {train_images:,} of {whole:,} validation images, as few as there are "
            "to train on; --val-images takes more."
        )
    images = FitData(dataset, split, describe_origin(data, chosen))
    return replace(options, data=chosen), images


def _move_layers(recipe: Recipe, plan: Plan, reporter: ProgressReporter | None) -> Plan:
    """Return the plan with the recipe's own layers moved to where images have shrunk as much."""
    missing = _missing_layers(recipe.plan, plan)
    if not missing:
        return plan
    own = _blank(recipe.plan.backbone, plan.resolution)
    other = _blank(plan.backbone, plan.resolution)
    matching = {}
    for key, layer in missing.items():
        matching[key] = matching_stage(own, layer, other, key != "until")
    changes = [f"{key}={layer}" for key, layer in matching.items()]
    if reporter is None:
        flags = " ".join(f"--set {change}" for change in changes)
        raise UserError(
            f"The recipe {recipe.name} cuts {recipe.plan.backbone} at "
            f"{' and '.join(missing.values())}, and {plan.backbone} has no such stage; its stages "
            f"are {', '.join(other.stages)}. Where its images have shrunk as much, it is cut with "
            f"{flags}. Add that, or name another stage."
        )
    moves = " and ".join(f"{missing[key]} to {layer}" for key, layer in matching.items())
    reporter.log(
        f"{recipe.name}: {moves}, where the images of {plan.backbone} have shrunk as much as those "
        f"of {recipe.plan.backbone}."
    )
    return override_plan(plan.model_dump(mode="json"), changes)


def _missing_layers(own: Plan, plan: Plan) -> dict[str, str]:
    """Return the layers that a plan still has from its recipe, and its backbone lacks, by key."""
    known = {*RESERVED_LAYERS, *model_info(plan.backbone).places}
    missing = {}
    for number, (old, new) in enumerate(zip(own.phases, plan.phases, strict=False)):
        if new.train == old.train and new.train not in known:
            missing[f"phases.{number}.train"] = new.train
    if plan.until and plan.until == own.until and plan.until not in known:
        missing["until"] = str(plan.until)
    return missing


def _blank(name: str, resolution: int) -> Backbone:
    """Return a backbone with random weights, whose layers can be compared with another's."""
    fixed = model_info(name).fixed_resolution
    return load_backbone(name, "random", None if fixed else resolution)
