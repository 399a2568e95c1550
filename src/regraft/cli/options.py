"""The arguments and flags that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Data = Annotated[
    str,
    typer.Argument(
        help="A name, folder, zip, tar, CSV, Parquet, .npz, hf:name or module:function; see `regraft sources`."
    ),
]
Backbone = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="Any timm name; `regraft backbones` lists them. [default: tf_efficientnet_lite0]",
    ),
]
Weights = Annotated[
    str | None, typer.Option(help="'pretrained', 'random', or a safetensors or state-dict file.")
]
Resolution = Annotated[
    int | None, typer.Option(help="Side in pixels; by default what suits images and backbone.")
]
Seed = Annotated[
    int | None, typer.Option(help="Seed of weights, order, augmentation and dropout. [default: 0]")
]
SplitSeed = Annotated[int, typer.Option(help="Seed of the split into train, val and test.")]
TrainImages = Annotated[
    int | None, typer.Option(help="Use a stratified subset of this many training images.")
]
ValImages = Annotated[
    int | None, typer.Option(help="Use a stratified subset of this many validation images.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change the plan: KEY=VALUE, e.g. phases.0.lr=3e-4. Repeatable."),
]
Out = Annotated[Path | None, typer.Option(help="Folder to write to; new or empty.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what is in the folder.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the run that is in the folder.")
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Go on without images that cannot be decoded.")
]
Cache = Annotated[
    Path | None,
    typer.Option("--cache", help="Cache folder; REGRAFT_CACHE or the platform's by default."),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Precision = Annotated[
    str | None,
    typer.Option(help="Arithmetic of the frozen part: auto, bfloat16 or float32. [default: auto]"),
]
Keep = Annotated[
    str, typer.Option(help="Keep the frozen part's output: auto (by measured cost), always, never.")
]
Compile = Annotated[
    str, typer.Option("--compile", help="Compile networks: auto (where it repays), on, off.")
]
Track = Annotated[
    str | None,
    typer.Option(help="Also send the course of the run to csv, tensorboard, mlflow or wandb."),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]

_SETTINGS = {
    "cache": "home",
    "train_images": "train_images",
    "val_images": "val_images",
    "split_seed": "split_seed",
    "resume": "resume",
    "overwrite": "overwrite",
    "skip_bad": "skip_bad",
    "device": "device",
    "keep": "keep",
    "compiling": "compile",
    "track": "track",
}


def settings(context: typer.Context) -> dict[str, Any]:
    """Return the fields of `workflow.Settings` that a verb was given, by their own names."""
    return {
        field: context.params[flag] for flag, field in _SETTINGS.items() if flag in context.params
    }
