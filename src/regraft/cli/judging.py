"""The verbs that judge images and finished runs: check, evaluate, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regraft.cli.arguments import Data, RunData, RunFolder
from regraft.cli.console import Output, print_result
from regraft.cli.flags import Only, add_verb
from regraft.cli.progress import reporting
from regraft.options import Options, PlanOverrides

app = typer.Typer()

CheckOverrides = Annotated[PlanOverrides, Only("backbone", "weights", "resolution", "precision")]
CheckOptions = Annotated[
    Options,
    Only(
        "split_seed",
        "train_images",
        "val_images",
        "cache_dir",
        "device",
        out="Also write the findings, with thumbnails, as one HTML page.",
        overwrite="Replace the page that is there.",
    ),
]
EvaluateOptions = Annotated[Options, Only("skip_bad", "cache_dir", "device")]
ReportOptions = Annotated[
    Options,
    Only(
        "cache_dir",
        "device",
        out="The file; report.html in the first folder by default.",
        overwrite="Replace the file that is there.",
    ),
]


@add_verb(app, epilog="Example:  regraft check photos/ --out check.html")
def check(data: Data, overrides: CheckOverrides, options: CheckOptions, output: Output) -> None:
    """Find duplicates within and across parts, doubtful labels, imbalance and odd files."""
    from regraft.cli.check_tables import print_check
    from regraft.commands import check as command

    with reporting(options, output.quiet) as reported:
        checked = command.check(data, overrides, reported)
    page = options.run_dir.out
    print_result(checked, output, lambda findings: print_check(findings, page))


@add_verb(app, epilog="Example:  regraft evaluate runs/digits-linear-probe --split test")
def evaluate(
    run: RunFolder,
    options: EvaluateOptions,
    output: Output,
    data: Annotated[
        str | None, typer.Argument(help="The images; by default those of the run.")
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            help="'val', 'test' (opens the held-out test part, which is recorded), or 'all' images "
            "of other data."
        ),
    ] = "val",
) -> None:
    """Show a run's scores by class and its calibration, also on the test part or other images."""
    from regraft.cli.tables import print_evaluation
    from regraft.commands import evaluate as command

    with reporting(options, output.quiet) as reported:
        evaluation = command.evaluate(run, data, split, reported)
    held_out = evaluation.run.test is None
    print_result(evaluation, output, lambda scores: print_evaluation(scores, run, held_out))


@add_verb(app, epilog="Example:  regraft report compare/photos --out report.html")
def report(
    paths: Annotated[
        list[Path], typer.Argument(help="Run folders, or the folder of a comparison.")
    ],
    options: ReportOptions,
    output: Output,
    data: RunData = None,
    format: Annotated[
        str,
        typer.Option(help="'html', one page that needs nothing else, or 'md' for a pull request."),
    ] = "html",
) -> None:
    """Write the evidence of finished runs on one page: scores, significance, costs, mistakes."""
    from regraft.cli.tables import print_report
    from regraft.commands import report as command

    with reporting(options, output.quiet) as reported:
        written = command.report(paths, data, format, reported)
    print_result(written, output, print_report)
