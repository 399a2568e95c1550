"""The verbs that look at images and at finished runs: check, evaluate, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regraft.cli.options import (
    Backbone,
    Cache,
    Data,
    Device,
    Json,
    Overwrite,
    Precision,
    Quiet,
    Resolution,
    SkipBad,
    SplitSeed,
    TrainImages,
    ValImages,
    Weights,
    settings,
)

app = typer.Typer()


@app.command(epilog="Example:  regraft check photos/ --out check.html")
def check(
    context: typer.Context,
    data: Data,
    backbone: Backbone = None,
    weights: Weights = None,
    resolution: Resolution = None,
    split_seed: SplitSeed = 0,
    train_images: TrainImages = None,
    val_images: ValImages = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Also write the findings, with thumbnails, as one HTML page."),
    ] = None,
    overwrite: Overwrite = False,
    cache: Cache = None,
    device: Device = "auto",
    precision: Precision = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what is wrong with the images: duplicates within and across parts, doubtful labels, imbalance, odd files."""
    from regraft.cli import show_runs
    from regraft.cli.show import as_json, progress
    from regraft.workflow.checking import check_named
    from regraft.workflow.planning import Wish

    with progress(quiet) as reporter:
        wish = Wish(backbone=backbone, weights=weights, resolution=resolution, precision=precision)
        found = check_named(data, wish, out, **settings(context), reporter=reporter)
    as_json(found.told) if json else show_runs.check(found.told, out)


@app.command(epilog="Example:  regraft evaluate runs/digits-linear-probe --split test")
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    data: Annotated[
        str | None, typer.Argument(help="The images; by default those of the run.")
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            help="'val', 'test' (opens it, and that is recorded), or 'all' images of other data."
        ),
    ] = "val",
    skip_bad: SkipBad = False,
    cache: Cache = None,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show a run's scores by class, its calibration and what it confuses; open its test part, or score it on other images."""
    from regraft.cli.show import as_json, progress
    from regraft.cli.show_runs import evaluation
    from regraft.workflow.named import evaluate_named

    with progress(quiet) as reporter:
        scores = evaluate_named(
            run, data, split, home=cache, device=device, skip_bad=skip_bad, reporter=reporter
        )
    as_json(scores) if json else evaluation(scores, str(run))


@app.command(epilog="Example:  regraft report compare/photos --out report.html")
def report(
    paths: Annotated[
        list[Path], typer.Argument(help="Run folders, or the folder of a comparison.")
    ],
    data: Annotated[
        str | None,
        typer.Option(help="The images, for pictures of mistakes; by default those of the runs."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The file. [default: report.html in the first folder]")
    ] = None,
    format: Annotated[
        str,
        typer.Option(help="'html', one page that needs nothing else, or 'md' for a pull request."),
    ] = "html",
    overwrite: Overwrite = False,
    cache: Cache = None,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Put the evidence of finished runs on one page: which way won, whether that is real, what it cost, where it fails."""
    from regraft.cli import show_runs
    from regraft.cli.show import as_json, progress
    from regraft.workflow.pages import report_named

    with progress(quiet) as reporter:
        path, told = report_named(
            paths,
            out,
            format,
            data,
            home=cache,
            device=device,
            overwrite=overwrite,
            reporter=reporter,
        )
    as_json({**told, "path": str(path)}) if json else show_runs.report(told, str(path))
