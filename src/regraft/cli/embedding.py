"""The verb that gives a network's features of images."""

from __future__ import annotations

from pathlib import Path
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
    Overwrite,
    Precision,
    Quiet,
    Resolution,
    SkipBad,
    SplitSeed,
    Weights,
    settings,
)

app = typer.Typer()


@app.command(
    epilog="Example:  regraft embed photos/ --backbone resnet50 --until layer3 --out features.parquet"
)
def embed(
    context: typer.Context,
    data: Data,
    out: Annotated[
        Path, typer.Option(help="The Parquet file: columns key, label, part, features.")
    ] = Path("features.parquet"),
    until: Annotated[
        str,
        typer.Option(
            help="Where features are taken: stages or modules, comma-separated; `regraft backbones show NAME`."
        ),
    ] = "end",
    backbone: Backbone = None,
    weights: Weights = None,
    resolution: Resolution = None,
    split_seed: SplitSeed = 0,
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
    """Write what a frozen network says of each image to a Parquet file; nothing is trained."""
    from regraft.cli.show import as_json, progress
    from regraft.workflow.embedding import embed_named
    from regraft.workflow.planning import Wish

    places = [place.strip() for place in until.split(",") if place.strip()] or ["end"]
    wish = Wish(backbone=backbone, weights=weights, resolution=resolution, precision=precision)
    with progress(quiet) as reporter:
        images, _, features, plan = embed_named(
            data, places, wish, out, **settings(context), reporter=reporter
        )
    told = {
        "path": str(out),
        "images": len(images),
        "features": features.shape[1],
        "backbone": plan.backbone,
        "resolution": plan.resolution,
        "until": plan.until,
    }
    if json:
        as_json(told)
        return
    typer.echo(
        f"{features.shape[1]:,} features of {len(images):,} images from {plan.backbone} at {plan.resolution} px written to {out}"
    )
