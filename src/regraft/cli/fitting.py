"""The verbs that fit, or say what would be fitted: fit, compare, plan, probe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regraft.cli.arguments import Data, Technique
from regraft.cli.console import Output, print_result
from regraft.cli.flags import Only, add_verb
from regraft.cli.progress import reporting
from regraft.commands.options import ProbeOptions, Ways
from regraft.options import Options, PlanOverrides

app = typer.Typer()

CompareOverrides = Annotated[PlanOverrides, Only("weights", "resolution", "overrides", "precision")]
PlanOptions = Annotated[
    Options, Only("split_seed", "train_images", "val_images", "cache_dir", "device", "keep")
]
ProbeOverrides = Annotated[PlanOverrides, Only("weights", "precision")]
ProbeSettings = Annotated[
    Options,
    Only(
        "split_seed",
        "train_images",
        "val_images",
        "out",
        "skip_bad",
        "cache_dir",
        "device",
        "compile",
        overwrite="Replace the probe that is in the folder.",
    ),
]


@add_verb(
    app, epilog="Example:  regraft fit photos/ --technique fine-tune --set phases.0.epochs=10"
)
def fit(
    data: Data,
    overrides: PlanOverrides,
    options: Options,
    output: Output,
    technique: Technique = "linear-probe",
) -> None:
    """Fit one technique or plan, and write a run folder; the test part stays held out."""
    from regraft.cli.tables import print_run
    from regraft.commands import fit as command

    with reporting(options, output.quiet) as reported:
        run = command.fit(data, technique, overrides, reported)
    held_out = run.test is None
    print_result(run, output, lambda scores: print_run(scores, held_out))


@add_verb(
    app, epilog="Example:  regraft compare photos/ --techniques linear-probe,fine-tune --seeds 3"
)
def compare(
    data: Data,
    ways: Ways,
    overrides: CompareOverrides,
    options: Options,
    output: Output,
    from_probe: Annotated[
        Path | None,
        typer.Option(
            help="Compare the plans of a folder of `regraft probe`; with --techniques, those too."
        ),
    ] = None,
) -> None:
    """Compare techniques and backbones on one split; the test part is opened once, at the end."""
    from regraft.cli.tables import print_leaderboard
    from regraft.commands import compare as command

    with reporting(options, output.quiet) as reported:
        comparison = command.compare(data, ways, overrides, reported, from_probe)
    path = comparison.path
    print_result(comparison, output, lambda board: print_leaderboard(board, path))


@add_verb(app, epilog="Example:  regraft plan photos/ --technique fine-tune-top --save plan.toml")
def plan(
    data: Data,
    overrides: PlanOverrides,
    options: PlanOptions,
    output: Annotated[Output, Only("json")],
    technique: Technique = "linear-probe",
    save: Annotated[Path | None, typer.Option(help="Write the plan to this TOML file.")] = None,
) -> None:
    """Show what would be frozen, cached and trained, and for about how long; nothing is run."""
    from regraft.cli.plan_tables import print_forecast
    from regraft.commands import plan as command

    forecast = command.plan(data, technique, overrides, options, save)
    print_result(forecast, output, print_forecast)


@add_verb(app, epilog="Example:  regraft probe photos/ --resolutions 64,96,128 --budget 5m")
def probe(
    data: Data,
    asked: ProbeOptions,
    overrides: ProbeOverrides,
    options: ProbeSettings,
    output: Output,
) -> None:
    """Find the feature layers, resolution and backbone to use, from frozen features alone."""
    from regraft.cli.probe_tables import print_probe
    from regraft.commands import probe as command

    with reporting(options, output.quiet) as reported:
        probed = command.probe(data, asked, overrides, reported)
    print_result(probed, output, print_probe)
