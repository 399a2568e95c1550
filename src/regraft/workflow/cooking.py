"""Recipes run on anybody's images: their plans for this backbone and these weights, and what was reported beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regraft.data.dataset import Dataset
from regraft.data.load import load_dataset
from regraft.errors import UserError
from regraft.models.backbone import Backbone, load_backbone, model_info
from regraft.models.layers import matching_stage
from regraft.plans.recipes import Recipe, find_recipe
from regraft.plans.schema import RESERVED_LAYERS, Plan, override_plan
from regraft.runs.folder import Run
from regraft.system.progress import ProgressReporter
from regraft.workflow.comparison import Comparison, compare
from regraft.workflow.named import asked, folder
from regraft.workflow.planning import Wish, arithmetic, make
from regraft.workflow.settings import Settings
from regraft.workflow.story import final_cut, fit, new_head, parameters
from regraft.workflow.summary import layers

CIFAR_CLASSES = 10
_ARITHMETIC = {"precision", "train_precision"}


def show_recipe(
    name: str, classes: int = CIFAR_CLASSES, wish: Wish | None = None
) -> dict[str, Any]:
    """Return a recipe's plan, provenance and reported figures, its layers one by one, and its parameters as counted here and as reported.

    Args:
        name: Of the recipe.
        classes: Number of classes.
        wish: Another backbone, resolution, weights or changes.

    Raises:
        UserError: For an unknown recipe, or one that does not fit the backbone.
    """
    recipe, plan = find_recipe(name), recipe_plan(find_recipe(name), wish or Wish())
    plan.check(model_info(plan.backbone), ())
    model = load_backbone(plan.backbone, "random", plan.resolution, plan.seed)
    listed = layers(model, plan, classes)
    counts = parameters(final_cut(model, plan), new_head(model, plan, classes))
    counts["statistics"] = sum(row["statistics"] for row in listed)
    told = _told(recipe)
    if (
        classes != CIFAR_CLASSES
        or {**plan.model_dump(), **recipe.plan.model_dump(include=_ARITHMETIC)}
        != recipe.plan.model_dump()
    ):
        told["counted"] = {}  # how counts differ is told of the very network that was reported
    return {
        **told,
        "plan": plan.model_dump(mode="json"),
        "classes": classes,
        "layers": listed,
        "parameters": counts,
    }


def run_recipe(
    name: str,
    data: str | Path | Dataset,
    wish: Wish | None = None,
    epochs: int | None = None,
    out: str | Path | None = None,
    **settings: Any,
) -> tuple[Run, dict[str, Any]]:
    """Return the finished run of a recipe, and its figures beside those that were reported; the test part stays shut.

    Args:
        name: Of the recipe.
        data: The images.
        wish: Another backbone, resolution, weights or changes.
        epochs: At most so many in every phase.
        out: The run's folder.
        **settings: Fields of `Settings`; with `train_images` and no `val_images`, no more validation images are used than training images.

    Raises:
        UserError: For an unknown recipe, or one that does not fit backbone, weights or images.
    """
    recipe = find_recipe(name)
    where, images = _ready(data, settings)
    plan = make(
        images,
        where.split(images),
        Wish(plan=recipe_plan(recipe, wish or Wish(), epochs, where.device)),
        where.device,
    )
    done = fit(images, plan, folder(out, "runs", f"{images.name}-{name}", where.resume), where)
    return done, beside(recipe, done)


def compare_recipes(
    names: Sequence[str],
    data: str | Path | Dataset,
    wish: Wish | None = None,
    epochs: int | None = None,
    out: str | Path | None = None,
    **settings: Any,
) -> tuple[Comparison, list[dict[str, Any]]]:
    """Return the comparison of several recipes, and for each its figures beside those that were reported; arguments as for `run_recipe`.

    The test part is opened once, at the end, for all of them.
    """
    chosen = [find_recipe(name) for name in dict.fromkeys(names)]
    where, images = _ready(data, settings)
    plans = {
        recipe.name: recipe_plan(recipe, wish or Wish(), epochs, where.device, where.watcher)
        for recipe in chosen
    }
    done = compare(
        images,
        folder(out, "compare", f"{images.name}-recipes", where.resume),
        (),
        (),
        settings=where,
        plans=plans,
    )
    return done, [beside(find_recipe(one.name), one) for one in done.runs]


def recipe_plan(
    recipe: Recipe,
    wish: Wish,
    epochs: int | None = None,
    device: str = "auto",
    watcher: ProgressReporter | None = None,
) -> Plan:
    """Return a recipe's plan after what a user asks for, in the arithmetic that suits the machine.

    Args:
        recipe: The recipe.
        wish: What a user asks for.
        epochs: At most so many in every phase.
        device: "auto", "cpu" or "cuda".
        watcher: Hears of places that were moved to another backbone; without one they are refused.

    Raises:
        UserError: When it cuts at a stage that the backbone asked for lacks; offers the one at which images have shrunk as much.
    """
    own = recipe.plan
    fields = wish.fields()
    if own.weights == "random":
        fields.pop("weights", None)  # from scratch is from scratch
    changed = override_plan(
        {**own.model_dump(mode="json"), **arithmetic(device), **fields}, wish.changes
    )
    if changed.backbone != own.backbone:
        changed = _placed(recipe, own, changed, watcher)
    if epochs is None:
        return changed
    fewer = [
        phase
        if phase.optimizer == "lbfgs"
        else phase.model_copy(update={"epochs": min(epochs, phase.epochs)})
        for phase in changed.phases
    ]
    return changed.model_copy(update={"phases": tuple(fewer)})


def beside(recipe: Recipe, done: Run) -> dict[str, Any]:
    """Return what a recipe's authors reported beside what a run of it measured.

    Returns:
        The recipe's words, and `measured`: accuracy and loss of train (in eval mode, without augmentation) and val, `gap`, `minutes`, `parameters`,
        `frozen_seconds` (computing the frozen part once; its share, where a comparison computed several in one pass) and
        `frozen_every_epoch_seconds` (about what every epoch would have cost in all), both None where nothing frozen was kept.
    """
    scores = done.scores
    once = scores["seconds"]["extract"] + scores.get("shared_seconds", 0.0)
    tuned = [phase for phase in done.plan.phases if phase.optimizer != "lbfgs"]
    looks = max((phase.looks for phase in tuned), default=1)
    epochs = sum("epoch" in row for row in done.history())
    measured = {
        f"{part}_{what}": scores[part][what]
        for part in ("train", "val")
        for what in ("loss", "accuracy")
    }
    minutes = (scores["seconds"]["total"] + scores.get("shared_seconds", 0.0)) / 60
    measured |= {
        "gap": scores["train"]["accuracy"] - scores["val"]["accuracy"],
        "minutes": round(minutes, 2),
    }
    measured |= {
        "parameters": scores["parameters"],
        "images": {part: scores[part]["n"] for part in ("train", "val")},
        "epochs": epochs,
    }
    kept = bool(
        scores["cache"]["bytes"]
    )  # else it was computed again every epoch, and nobody knows what that took
    measured["frozen_seconds"] = round(once, 1) if kept else None
    measured["frozen_every_epoch_seconds"] = (
        round(once / looks * max(1, epochs), 1) if kept else None
    )
    return {
        **_told(recipe),
        "backbone": done.plan.backbone,
        "measured": measured,
        "path": str(done.path),
    }


def _told(recipe: Recipe) -> dict[str, Any]:
    return {
        name: getattr(recipe, name)
        for name in ("name", "source", "technique", "about", "assumed", "reported", "counted")
    }


def _ready(data: str | Path | Dataset, settings: dict[str, Any]) -> tuple[Settings, Dataset]:
    where = asked(settings, data)
    images = load_dataset(data, where.home)
    whole = len(where.split(images).val)
    if where.train_images is not None and where.val_images is None and where.train_images < whole:
        where = asked({**settings, "val_images": where.train_images}, data)
        where.watcher.say(
            f"Judging on {where.val_images:,} of {whole:,} validation images, as few as there are to train on; --val-images takes more."
        )
    return where, images


def _placed(recipe: Recipe, own: Plan, plan: Plan, watcher: ProgressReporter | None) -> Plan:
    """Return the plan with the recipe's own places moved to where images have shrunk as much in another backbone; refuses where nobody is told."""
    known = (*RESERVED_LAYERS, *model_info(plan.backbone).places)
    same = zip(own.phases, plan.phases, strict=False)
    lacking = {
        f"phases.{number}.train": new.train
        for number, (old, new) in enumerate(same)
        if new.train == old.train and new.train not in known
    }
    if plan.until and plan.until == own.until and plan.until not in known:
        lacking["until"] = str(plan.until)
    if not lacking:
        return plan
    mine, theirs = (_blank(name, plan.resolution) for name in (own.backbone, plan.backbone))
    alike = {
        key: matching_stage(mine, place, theirs, key != "until") for key, place in lacking.items()
    }
    if watcher is not None:
        there = " and ".join(f"{lacking[key]} to {place}" for key, place in alike.items())
        watcher.say(
            f"{recipe.name}: {there}, where the images of {plan.backbone} have shrunk as much as those of {own.backbone}."
        )
        return override_plan(
            plan.model_dump(mode="json"), [f"{key}={place}" for key, place in alike.items()]
        )
    ways = " ".join(f"--set {key}={place}" for key, place in alike.items())
    raise UserError(
        f"The recipe {recipe.name} cuts {own.backbone} at {' and '.join(lacking.values())}, and {plan.backbone} has no such stage; "
        f"its stages are {', '.join(theirs.stages)}. Where its images have shrunk as much, it is cut with {ways}. Add that, or name another stage."
    )


def _blank(name: str, resolution: int) -> Backbone:
    return load_backbone(name, "random", None if model_info(name).fixed_resolution else resolution)
