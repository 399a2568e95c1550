"""The verbs of `regraft recipes`: the source experiments listed, shown, run and compared."""

from __future__ import annotations

from typing import Annotated

import typer

from regraft.cli.options import (
    Backbone,
    Cache,
    Compile,
    Data,
    Device,
    Json,
    Keep,
    Out,
    Overwrite,
    Precision,
    Quiet,
    Resolution,
    Resume,
    Seed,
    Set,
    SkipBad,
    SplitSeed,
    TrainImages,
    ValImages,
    Weights,
    settings,
)
from regraft.errors import UserError

app = typer.Typer(
    help="The source experiments as recipes: list, show, run or compare them.",
    invoke_without_command=True,
    rich_markup_mode="rich",
)

Name = Annotated[str, typer.Argument(help="A recipe; `regraft recipes` lists them.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="At most so many epochs in every phase.")]


@app.callback()
def recipes(context: typer.Context) -> None:
    """List all recipes when no other verb is given."""
    if context.invoked_subcommand is None:
        listed()


@app.command("list")
def listed(json: Json = False) -> None:
    """List the recipes with source, technique, backbone and reported validation accuracy."""
    from regraft.cli import show
    from regraft.cli.show import as_json
    from regraft.plans.recipes import all_recipes

    rows = [
        {
            "name": one.name,
            "source": one.source,
            "technique": one.technique,
            "backbone": one.plan.backbone,
            "reported": one.reported,
            "about": one.about,
        }
        for one in all_recipes().values()
    ]
    as_json({"recipes": rows}) if json else show.recipes(rows)


@app.command("show", epilog="Example:  regraft recipes show resnet50-last-stage")
def shown(
    name: Name,
    backbone: Backbone = None,
    resolution: Resolution = None,
    set: Set = None,
    classes: Annotated[int, typer.Option(min=2, help="Classes of the images.")] = 10,
    json: Json = False,
) -> None:
    """Print a recipe's plan, its layers one by one, frozen or trained, and what was reported."""
    from regraft.cli.show import as_json, recipe
    from regraft.commands.recipes import show_recipe
    from regraft.workflow.planning import Wish

    told = show_recipe(
        name, classes, Wish(backbone=backbone, resolution=resolution, changes=set or ())
    )
    as_json(told) if json else recipe(told)


@app.command(
    "run",
    epilog="Example:  regraft recipes run resnet50-last-stage cifar10 --train-images 500 --epochs 1 --weights random",
)
def ran(
    context: typer.Context,
    name: Name,
    data: Data,
    epochs: Epochs = None,
    backbone: Backbone = None,
    weights: Weights = None,
    resolution: Resolution = None,
    set: Set = None,
    seed: Seed = None,
    split_seed: SplitSeed = 0,
    train_images: TrainImages = None,
    val_images: ValImages = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    skip_bad: SkipBad = False,
    cache: Cache = None,
    device: Device = "auto",
    precision: Precision = None,
    keep: Keep = "auto",
    compiling: Compile = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a recipe on images, and print what was measured beside what was reported; the test part stays shut."""
    from regraft.cli.show import as_json, beside, progress
    from regraft.commands.recipes import run_recipe
    from regraft.workflow.planning import Wish

    with progress(quiet) as reporter:
        wish = Wish(
            backbone=backbone,
            weights=weights,
            resolution=resolution,
            seed=seed,
            changes=set or (),
            precision=precision,
        )
        done, told = run_recipe(
            name, data, wish, epochs, out, **settings(context), reporter=reporter
        )
    as_json({**told, "scores": done.scores}) if json else beside([told])


@app.command(
    "compare",
    epilog="Example:  regraft recipes compare vgg16-frozen vgg16-three-blocks cifar10 --train-images 500 --weights random",
)
def compared(
    context: typer.Context,
    words: Annotated[
        list[str], typer.Argument(metavar="NAME... DATA", help="Recipes, and the images last.")
    ],
    epochs: Epochs = None,
    backbone: Backbone = None,
    weights: Weights = None,
    resolution: Resolution = None,
    set: Set = None,
    seed: Seed = None,
    split_seed: SplitSeed = 0,
    train_images: TrainImages = None,
    val_images: ValImages = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    skip_bad: SkipBad = False,
    cache: Cache = None,
    device: Device = "auto",
    precision: Precision = None,
    keep: Keep = "auto",
    compiling: Compile = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run several recipes and print what was measured beside what was reported; curves on shared axes, the test part opened once at the end."""
    from regraft.cli.show import as_json, beside, leaderboard, progress
    from regraft.commands.recipes import compare_recipes
    from regraft.workflow.planning import Wish

    *names, data = words
    if not names:
        raise UserError(
            f"Only {data!r} was given. Expected one or more recipes, and the images last. Write for example: vgg16-frozen vgg16-three-blocks {data}."
        )
    with progress(quiet) as reporter:
        wish = Wish(
            backbone=backbone,
            weights=weights,
            resolution=resolution,
            seed=seed,
            changes=set or (),
            precision=precision,
        )
        done, told = compare_recipes(
            names, data, wish, epochs, out, **settings(context), reporter=reporter
        )
    if json:
        as_json({**done.board, "recipes": told})
        return
    beside(told)
    leaderboard(done.board, str(done.path))
