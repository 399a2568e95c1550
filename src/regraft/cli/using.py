"""The verbs that use a finished run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from regraft.cli.options import Cache, Device, Json, Quiet
from regraft.errors import UserError

app = typer.Typer()


@app.command(
    epilog="Example:  regraft predict runs/mine new/ --out new.csv --min-confidence 0.9   or   find . -name '*.jpg' | regraft predict runs/mine -"
)
def predict(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Images, folders (searched through), patterns, zip, tar, Parquet; - reads a list from stdin."
        ),
    ],
    top: Annotated[int, typer.Option(min=1, help="Classes to show for each image.")] = 1,
    format: Annotated[
        str | None,
        typer.Option(
            help="table, csv, json (a line each) or parquet. [default: by --out, else table]"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write to, as results come.")] = None,
    batch_size: Annotated[
        int,
        typer.Option(help="Images at once. [default: what suits the machine]", show_default=False),
    ] = 0,
    min_confidence: Annotated[
        float | None,
        typer.Option(
            help="Abstain below this probability; probabilities are then calibrated on the run's validation images."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in --out.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is in --out.")
    ] = False,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say which class each image is; what cannot be read says why, and the rest goes on."""
    from regraft.cli.show import as_json, progress
    from regraft.cli.show_runs import predictions, written
    from regraft.commands.predict import predict_to
    from regraft.inference.writers import output_format
    from regraft.workflow.using import predict_named

    kind = output_format(format, out)
    if json and out is None and format not in (None, "json"):
        raise UserError(
            f"--json and --format {format} were both given. Expected one of them: --json prints one object. Leave one out."
        )
    if out is None and (resume or overwrite):
        raise UserError(
            "--resume and --overwrite were given without a file. Expected --out FILE. Name the file, or leave the flag out."
        )
    with progress(quiet or (out is None and sys.stdout.isatty())) as reporter:
        if out is not None:
            told = predict_to(
                run,
                paths,
                out,
                kind,
                top,
                device,
                batch_size,
                min_confidence,
                resume,
                overwrite,
                reporter,
            )
            as_json(told) if json else written(told)
        else:
            rows = predict_named(run, paths, top, device, batch_size, min_confidence, reporter)
            predictions(rows, "object" if json else kind, top)


@app.command(
    epilog="Example:  regraft export runs/mine --to onnx --out mine.onnx   or   regraft export runs/mine --to onnx --int8"
)
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    to: Annotated[
        str, typer.Option(help="onnx, safetensors, timm (a folder), torchscript, or hub-folder.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="File or folder to write. [default: exports/ under the run's name]"),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8",
            help="Whole numbers, ranges found on training images; what it costs on validation is reported.",
        ),
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="The run's images, where it does not find them itself.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the export that is there.")
    ] = False,
    cache: Cache = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a run for other programs, after checking that it answers as the run does."""
    from regraft.cli.show import as_json, progress
    from regraft.cli.show_runs import exported
    from regraft.workflow.using import export_named

    with progress(quiet) as reporter:
        told = export_named(run, to, out, int8, data, overwrite, home=cache, reporter=reporter)
    as_json(told) if json else exported(told)
