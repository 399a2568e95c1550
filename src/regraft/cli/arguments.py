"""Arguments and flags of several verbs that are no fields of an option dataclass."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    str,
    typer.Argument(
        help="A name, folder, zip, tar, CSV, Parquet, .npz, hf:name or module:function; see "
        "`regraft sources`."
    ),
]
RunFolder = Annotated[Path, typer.Argument(help="A run folder.")]
Technique = Annotated[str, typer.Option(help="A technique; `regraft techniques` lists them.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")
]
RunData = Annotated[
    str | None,
    typer.Option(
        "--data", help="The images, for pictures of mistakes; by default those of the runs."
    ),
]
