"""The verbs that use a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regraft.cli.options import Device, Json

app = typer.Typer()


@app.command(epilog="Example:  regraft predict runs/digits-linear-probe new/*.png --top 3")
def predict(
    run: Annotated[Path, typer.Argument(help="A run folder.")], paths: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    top: Annotated[int, typer.Option(min=1, help="Classes to show for each image.")] = 1, device: Device = "auto", json: Json = False,
) -> None:  # fmt: skip
    """Say which class each image is."""
    from regraft.cli import show
    from regraft.workflow import predict_named

    rows = predict_named(run, paths, top, device)
    if json:
        show.as_json({"predictions": rows})
        return
    for row in rows:
        said = f"cannot be read: {row['error']}" if row["error"] else "  ".join(f"{name} {chance:.3f}" for name, chance in row["ranked"])
        typer.echo(f"{row['path']}  {said}")
