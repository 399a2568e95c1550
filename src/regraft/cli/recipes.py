"""The verbs of `regraft recipes`: the source experiments listed, shown, run and compared."""

from __future__ import annotations

from typing import Annotated

import typer

from regraft.cli.arguments import Data, Json
from regraft.cli.console import Output, print_json, print_result
from regraft.cli.flags import Group, Only, add_verb
from regraft.cli.progress import reporting
from regraft.errors import UserError
from regraft.options import Options, PlanOverrides

app = typer.Typer(
    cls=Group,
    help="The source experiments as recipes: list, show, run or compare them.",
    invoke_without_command=True,
)

Name = Annotated[str, typer.Argument(help="A recipe; `regraft recipes` lists them.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="At most so many epochs in every phase.")]
ShowOverrides = Annotated[PlanOverrides, Only("backbone", "resolution", "overrides")]
RunOverrides = Annotated[
    PlanOverrides, Only("backbone", "weights", "resolution", "overrides", "seed", "precision")
]
RunOptions = Annotated[
    Options,
    Only(
        "split_seed",
        "train_images",
        "val_images",
        "out",
        "resume",
        "overwrite",
        "skip_bad",
        "cache_dir",
        "device",
        "keep",
        "compile",
    ),
]


@app.callback()
def recipes(context: typer.Context) -> None:
    """List all recipes when no other verb is given."""
    if context.invoked_subcommand is None:
        list_recipes()


@add_verb(app, "list")
def list_recipes(json: Json = False) -> None:
    """List the recipes with source, technique, backbone and reported validation accuracy."""
    from regraft.cli.recipe_tables import print_recipes
    from regraft.plans.recipes import all_recipes

    rows = []
    for recipe in all_recipes().values():
        rows.append(
            {
                "name": recipe.name,
                "source": recipe.source,
                "technique": recipe.technique,
                "backbone": recipe.plan.backbone,
                "reported": recipe.reported,
                "about": recipe.about,
            }
        )
    if json:
        print_json({"recipes": rows})
    else:
        print_recipes(rows)


@add_verb(app, "show", epilog="Example:  regraft recipes show resnet50-last-stage")
def show(
    name: Name,
    overrides: ShowOverrides,
    output: Annotated[Output, Only("json")],
    classes: Annotated[int, typer.Option(min=2, help="Classes of the images.")] = 10,
) -> None:
    """Print a recipe's plan, its layers one by one, frozen or trained, and what was reported."""
    from regraft.cli.recipe_tables import print_recipe
    from regraft.commands.recipes import show_recipe

    print_result(show_recipe(name, classes, overrides), output, print_recipe)


@add_verb(
    app,
    "run",
    epilog="Example:  regraft recipes run resnet50-last-stage cifar10 --train-images 500 "
    "--epochs 1 --weights random",
)
def run(
    name: Name,
    data: Data,
    overrides: RunOverrides,
    options: RunOptions,
    output: Output,
    epochs: Epochs = None,
) -> None:
    """Run a recipe, and print what was measured beside what was reported; test stays held out."""
    from regraft.cli.recipe_tables import print_measured
    from regraft.commands.recipes import run_recipe

    with reporting(options, output.quiet) as reported:
        done = run_recipe(name, data, overrides, reported, epochs)
    values = done.to_json()
    if output.json:
        print_json({**values, "scores": done.run.scores.to_json()})
    else:
        print_measured([values])


@add_verb(
    app,
    "compare",
    epilog="Example:  regraft recipes compare vgg16-frozen vgg16-three-blocks cifar10 "
    "--train-images 500 --weights random",
)
def compare(
    words: Annotated[
        list[str], typer.Argument(metavar="NAME... DATA", help="Recipes, and the images last.")
    ],
    overrides: RunOverrides,
    options: RunOptions,
    output: Output,
    epochs: Epochs = None,
) -> None:
    """Compare recipes: what was measured beside what was reported; test is opened at the end."""
    from regraft.cli.recipe_tables import print_measured
    from regraft.cli.tables import print_leaderboard
    from regraft.commands.recipes import compare_recipes

    *names, data = words
    if not names:
        raise UserError(
            f"Only {data!r} was given. Expected one or more recipes, and the images last. Write "
            f"for example: vgg16-frozen vgg16-three-blocks {data}."
        )
    with reporting(options, output.quiet) as reported:
        done = compare_recipes(names, data, overrides, reported, epochs)
    measured = [row.to_json() for row in done.runs]
    board = done.comparison.to_json()
    if output.json:
        print_json({**board, "recipes": measured})
        return
    print_measured(measured)
    print_leaderboard(board, done.comparison.path)
