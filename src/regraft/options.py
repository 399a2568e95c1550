"""What a user may choose besides data and plan: small groups of options, each taken by what uses it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from regraft.errors import UserError
from regraft.system.progress import SILENT, ProgressReporter

if TYPE_CHECKING:
    from regraft.plans.schema import Plan

KEEP = ("auto", "always", "never")
COMPILE = ("auto", "on", "off")
TRACKERS = ("csv", "tensorboard", "mlflow", "wandb")


def default_cache_dir(cache_dir: str | Path | None = None) -> Path:
    """Return the cache folder: the one given, `REGRAFT_CACHE`, or the platform's."""
    named = cache_dir or os.environ.get("REGRAFT_CACHE")
    return Path(named or platformdirs.user_cache_path("regraft")).expanduser()


def option(default: Any, help: str, flag: str = "") -> Any:
    """Return a dataclass field with the help text, and the name of its flag where it is another."""
    return field(default=default, metadata={"help": help, "flag": flag})


def _require(flag: str, value: str, known: tuple[str, ...], advice: str) -> None:
    if value not in known:
        choices = f"{', '.join(known[:-1])} or {known[-1]}"
        raise UserError(f"{flag} {value} was given. Expected {choices}. {advice}")


@dataclass(frozen=True)
class DataOptions:
    """Which images are used, and how they are split."""

    train_images: int | None = option(None, "Use a stratified subset of this many training images.")
    val_images: int | None = option(None, "Use a stratified subset of this many validation images.")
    split_seed: int = option(0, "Seed of the split into train, val and test.")
    skip_bad: bool = option(False, "Go on without images that cannot be decoded.")


@dataclass(frozen=True)
class CacheOptions:
    """Where computed features are kept, and whether.

    Raises:
        UserError: When `keep` is not one of `KEEP`.
    """

    cache_dir: str | Path | None = option(
        None, "Cache folder; REGRAFT_CACHE or the platform's by default.", "--cache"
    )
    keep: str = option(
        "auto", "Keep the frozen part's output: auto (by measured cost), always, never."
    )

    @property
    def dir(self) -> Path:
        """The cache folder: the one given, `REGRAFT_CACHE`, or the platform's."""
        return default_cache_dir(self.cache_dir)

    def __post_init__(self) -> None:
        _require("--keep", self.keep, KEEP, "Leave it out to let regraft measure and choose.")


@dataclass(frozen=True)
class Runtime:
    """How the machine is used, and who hears of the progress.

    Raises:
        UserError: When `compile` is not one of `COMPILE`.
    """

    device: str = option("auto", "auto, cpu or cuda.")
    compile: str = option("auto", "Compile networks: auto (where it repays), on, off.")
    reporter: ProgressReporter = field(default=SILENT)

    def __post_init__(self) -> None:
        _require(
            "--compile", self.compile, COMPILE, "Leave it out to let regraft measure and choose."
        )


@dataclass(frozen=True)
class RunDir:
    """The folder of a run, a comparison or a probe, and what may be done with what is in it.

    Raises:
        UserError: When `track` is not one of `TRACKERS`.
    """

    out: str | Path | None = option(None, "Folder to write to; new or empty.")
    resume: bool = option(False, "Resume an unfinished run.")
    overwrite: bool = option(False, "Replace the run that is in the folder.")
    track: str | None = option(
        None, "Also send the course of the run to csv, tensorboard, mlflow or wandb."
    )

    def __post_init__(self) -> None:
        if self.track is not None:
            _require("--track", self.track, TRACKERS, "Leave it out to track nothing.")


@dataclass(frozen=True)
class PlanOverrides:
    """What a user asks of a plan by name; None leaves it to the technique or the plan file."""

    plan: str | Path | Plan | None = option(None, "A plan file instead of a technique.")
    backbone: str | None = option(
        None, "Any timm name; `regraft backbones` lists them. [default: tf_efficientnet_lite0]"
    )
    weights: str | None = option(
        None, "'pretrained', 'random', or a safetensors or state-dict file."
    )
    resolution: int | None = option(
        None, "Side in pixels; by default what suits images and backbone."
    )
    seed: int | None = option(
        None, "Seed of weights, order, augmentation and dropout. [default: 0]"
    )
    overrides: Sequence[str] = option(
        (), "Change the plan: KEY=VALUE, e.g. phases.0.lr=3e-4. Repeatable.", "--set"
    )
    precision: str | None = option(
        None, "Arithmetic of the frozen part: auto, bfloat16 or float32. [default: auto]"
    )

    def fields(self) -> dict[str, Any]:
        """Return what was asked for, under the names of the plan's fields."""
        values = {
            "backbone": self.backbone,
            "weights": self.weights,
            "resolution": self.resolution,
            "seed": self.seed,
        }
        if self.precision != "auto":
            values["precision"] = self.precision
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Options:
    """All groups of options, as a verb is given them; each function takes the group it uses."""

    data: DataOptions = DataOptions()
    cache: CacheOptions = CacheOptions()
    runtime: Runtime = Runtime()
    run_dir: RunDir = RunDir()
