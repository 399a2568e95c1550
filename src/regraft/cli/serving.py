"""The verb that serves a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regraft.cli.options import Cache, Device
from regraft.system.progress import ProgressReporter

app = typer.Typer()


class _Told(ProgressReporter):
    """Says on stderr what the server says."""

    def log(self, text: str) -> None:
        typer.echo(text, err=True)


@app.command(epilog="Example:  regraft serve runs/digits-linear-probe --port 7860")
def serve(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets others in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port; 0 takes a free one.")] = 7860,
    data: Annotated[
        str | None,
        typer.Option(
            help="The run's images, for examples and similar ones; by default where they were when it was fitted."
        ),
    ] = None,
    similar: Annotated[
        bool,
        typer.Option(help="Show similar training images; their features are taken at the start."),
    ] = True,
    max_mb: Annotated[float, typer.Option(min=0.1, help="Largest request, in MB.")] = 32.0,
    max_pixels: Annotated[
        float, typer.Option(min=0.001, help="Largest image, in millions of pixels.")
    ] = 50.0,
    cache: Cache = None,
    device: Device = "auto",
) -> None:
    """Serve a run as a web page, and over HTTP for programs; nothing leaves this machine."""
    from regraft.serving import server
    from regraft.serving.limits import Limits

    limits = Limits(body=int(max_mb * 1e6), pixels=int(max_pixels * 1e6))
    server.serve(run, host, port, data, similar, limits, _Told(), home=cache, device=device)
