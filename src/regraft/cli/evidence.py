"""The verbs that look at finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regraft.cli.options import Cache, Device, Json, Quiet

app = typer.Typer()


@app.command(epilog="Example:  regraft evaluate runs/digits-linear-probe --split test")
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    data: Annotated[str | None, typer.Argument(help="The images; by default those of the run.")] = None,
    split: Annotated[str, typer.Option(help="'val', 'test' (opens it, and that is recorded), or 'all' images of other data.")] = "val",
    cache: Cache = None, device: Device = "auto", json: Json = False, quiet: Quiet = False,
) -> None:  # fmt: skip
    """Show a run's scores, open its test part, or score it on other images."""
    from regraft.cli import show
    from regraft.workflow import evaluate_named

    with show.progress(quiet) as watcher:
        scores = evaluate_named(run, data, split, home=cache, device=device, watcher=watcher)
    show.as_json(scores) if json else show.run(scores, str(run))
