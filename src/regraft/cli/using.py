"""The verbs that use a network: predict, export, serve, embed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from regraft.cli.arguments import Data, RunFolder
from regraft.cli.console import Output, print_json, print_result
from regraft.cli.flags import Only, add_verb, split_commas
from regraft.cli.progress import Messages, reporting, with_reporter
from regraft.commands.options import ExportRequest, PredictionTarget, PredictOptions
from regraft.errors import UserError
from regraft.options import Options, PlanOverrides
from regraft.serving.options import Limits, ServeOptions

app = typer.Typer()

_MILLION = 1e6
_FEATURES = "features.parquet"  # where features are written by default

PredictFlags = Annotated[PredictOptions, Only("top", "batch_size", "min_confidence", "device")]
ExportOptions = Annotated[Options, Only("cache_dir", overwrite="Replace the export that is there.")]
ServeSettings = Annotated[Options, Only("cache_dir", "device")]
EmbedOverrides = Annotated[PlanOverrides, Only("backbone", "weights", "resolution", "precision")]
EmbedOptions = Annotated[
    Options,
    Only(
        "split_seed",
        "skip_bad",
        "cache_dir",
        "device",
        "keep",
        "compile",
        out="The Parquet file: columns key, label, part, features; features.parquet by default.",
        overwrite="Replace the file that is there.",
    ),
]


@add_verb(
    app,
    epilog="Example:  regraft predict runs/mine new/ --out new.csv --min-confidence 0.9   or   "
    "find . -name '*.jpg' | regraft predict runs/mine -",
)
def predict(
    run: RunFolder,
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Images, folders (searched through), patterns, zip, tar, Parquet; - reads a list "
            "from stdin."
        ),
    ],
    options: PredictFlags,
    target: PredictionTarget,
    output: Output,
) -> None:
    """Predict the class of each image; one that cannot be decoded gets the reason."""
    from regraft.cli.prediction_tables import print_predictions, print_summary
    from regraft.commands import predict as command
    from regraft.inference.writers import output_format

    out = None if target.out is None else Path(target.out)
    form = output_format(target.format, out)
    if out is None:
        _require_printable(target, output)
    streams = out is None and sys.stdout.isatty()
    with reporting(options, output.quiet or streams) as reported:
        if out is None:
            predictions = command.predict(run, paths, reported)
            print_predictions(predictions, "object" if output.json else form, options.top)
        else:
            summary = command.predict_to(run, paths, replace(target, format=form), reported)
            print_result(summary, output, print_summary)


def _require_printable(target: PredictionTarget, output: Output) -> None:
    """Raise `UserError` for flags that do not go together where no file is written."""
    if output.json and target.format not in (None, "json"):
        raise UserError(
            f"--json and --format {target.format} were both given. Expected one of them: --json "
            "prints one object. Leave one out."
        )
    if target.resume or target.overwrite:
        raise UserError(
            "--resume and --overwrite were given without a file. Expected --out FILE. Name the "
            "file, or leave the flag out."
        )


@add_verb(
    app,
    epilog="Example:  regraft export runs/mine --to onnx --out mine.onnx   or   "
    "regraft export runs/mine --to onnx --int8",
)
def export(run: RunFolder, request: ExportRequest, options: ExportOptions, output: Output) -> None:
    """Write a run in another format, after checking that it predicts as the run does."""
    from regraft.cli.prediction_tables import print_export
    from regraft.commands import export as command

    with reporting(options, output.quiet) as reported:
        exported = command.export(run, request, reported)
    print_result(exported, output, print_export)


@add_verb(app, epilog="Example:  regraft serve runs/digits-linear-probe --port 7860")
def serve(
    run: RunFolder,
    asked: ServeOptions,
    options: ServeSettings,
    max_mb: Annotated[float, typer.Option(min=0.1, help="Largest request, in MB.")] = 32.0,
    max_pixels: Annotated[
        float, typer.Option(min=0.001, help="Largest image, in millions of pixels.")
    ] = 50.0,
) -> None:
    """Serve a run as a web page, and over HTTP for programs; nothing leaves this machine."""
    from regraft.serving import server

    limits = Limits(body=int(max_mb * _MILLION), pixels=int(max_pixels * _MILLION))
    server.serve(run, replace(asked, limits=limits), with_reporter(options, Messages()))


@add_verb(
    app,
    epilog="Example:  regraft embed photos/ --backbone resnet50 --layers layer3 "
    "--out features.parquet",
)
def embed(
    data: Data,
    overrides: EmbedOverrides,
    options: EmbedOptions,
    output: Output,
    layers: Annotated[
        str,
        typer.Option(
            "--layers",
            "--until",
            help="Where features are taken: stages or modules, comma-separated; "
            "`regraft backbones show NAME`.",
        ),
    ] = "end",
) -> None:
    """Write the features that a frozen network gives for each image; nothing is trained."""
    from regraft.cli.prediction_tables import describe_embedding, print_embedding
    from regraft.commands import embed as command

    path = options.run_dir.out or Path(_FEATURES)
    names = split_commas(layers, "--layers")
    options = replace(options, run_dir=replace(options.run_dir, out=path))
    with reporting(options, output.quiet) as reported:
        embedding = command.embed(data, names, overrides, reported)
    values = describe_embedding(embedding, path)
    if output.json:
        print_json(values)
    else:
        print_embedding(values)
